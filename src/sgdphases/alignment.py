"""How well a kernel on held-out samples is aligned with the targets."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sgdphases.models import Parameters

# Gradients of as many samples as fit into this are held at once, twice.
_BLOCK_BYTES = 2**29


def ntk_gram(
    apply: Callable[[Parameters, jax.Array], jax.Array],
    parameters: Parameters,
    inputs: jax.Array,
    block_size: int | None = None,
    samples_interact: bool = False,
) -> jax.Array:
    r"""Gram matrix of the empirical NTK, summed over outputs.

    .. math:: K(x, x') = \sum_i \sum_p \partial_p f_i(x)\, \partial_p f_i(x')

    It is not normalised: alignments do not depend on its scale. Output by output, the gradients of
    a block of samples are multiplied by those of another; by symmetry every pair of blocks is met
    once. It costs about k·P² multiply–adds per parameter.

    Args:
        apply: Network function from (parameters, inputs) to outputs (batch, k).
        parameters: Pytree at which the kernel is taken.
        inputs: (P, ...) samples.
        block_size: Samples whose gradients are held at once, twice; None fills half a gibibyte
            each, in every run where runs are batched.
        samples_interact: Whether a sample's outputs depend on the rest of the batch, as they do
            with batch normalisation. If so, each gradient goes through the whole batch, at P times
            the cost.

    Returns:
        (P, P) symmetric positive semi-definite matrix.

    Reference:
        Richness paper, figs. 4b and 40–42; catalogue item 1.4.
    """
    num_samples = len(inputs)
    outputs = jax.eval_shape(apply, parameters, inputs)
    if block_size is None:
        bytes_each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters))
        block_size = max(1, _BLOCK_BYTES // bytes_each)
    block_size = min(block_size, num_samples)
    num_blocks = math.ceil(num_samples / block_size)
    # The last block is filled up with copies of the last sample.
    members = np.minimum(np.arange(num_blocks * block_size), num_samples - 1)
    blocks = jnp.asarray(members.reshape(num_blocks, block_size))

    def output(values: Parameters, sample: jax.Array, index: jax.Array) -> jax.Array:
        if samples_interact:
            return apply(values, inputs)[sample, index]
        return apply(values, inputs[sample][None])[0, index]

    gradients = jax.vmap(jax.grad(output), (None, 0, None))

    def block_gram(rows: jax.Array, columns: jax.Array) -> jax.Array:
        def add_output(index: jax.Array, total: jax.Array) -> jax.Array:
            left = gradients(parameters, rows, index)
            right = left if columns is rows else gradients(parameters, columns, index)
            products = jax.tree.map(
                lambda a, b: a.reshape(block_size, -1) @ b.reshape(block_size, -1).T, left, right
            )
            return jax.tree.reduce(jnp.add, products, total)

        start = jnp.zeros((block_size, block_size), outputs.dtype)
        gram: jax.Array = jax.lax.fori_loop(0, outputs.shape[1], add_output, start)
        return gram

    with jax.default_matmul_precision("highest"):
        if num_blocks == 1:
            return block_gram(blocks[0], blocks[0])
        first, second = np.triu_indices(num_blocks)
        grams = jax.lax.map(
            lambda pair: block_gram(blocks[pair[0]], blocks[pair[1]]), (first, second)
        )
    tiles = jnp.zeros((num_blocks, num_blocks, block_size, block_size), grams.dtype)
    tiles = tiles.at[second, first].set(grams.swapaxes(1, 2)).at[first, second].set(grams)
    size = num_blocks * block_size
    return tiles.swapaxes(1, 2).reshape(size, size)[:num_samples, :num_samples]


def feature_gram(features: jax.Array) -> jax.Array:
    r"""Gram matrix of features, such as those that the last layer reads.

    .. math:: K(x, x') = \phi(x) \cdot \phi(x')

    Args:
        features: (P, ...) features.

    Returns:
        (P, P) symmetric positive semi-definite matrix.

    Reference:
        Richness paper, figs. 4b and 5b; catalogue item 1.4.
    """
    flat = features.reshape(len(features), -1)
    return jnp.matmul(flat, flat.T, precision="highest")


def kernel_target_alignment(gram: jax.Array, targets: jax.Array) -> jax.Array:
    r"""Kernel–target alignment with the nuclear norm.

    .. math:: \frac{\mathrm{tr}(y^\top K y)}{\|K\|_* \|y\|_F^2}

    At most 1, where K is proportional to y yᵀ for a single output. The nuclear norm of a Gram
    matrix is its trace, as it has no negative eigenvalue.

    Args:
        gram: (P, P) symmetric positive semi-definite kernel matrix.
        targets: (P, outputs) targets y.

    Returns:
        The scalar alignment; NaN of a kernel or targets of zeros.

    Reference:
        Richness paper, figs. 4b and 40–42; catalogue item 1.4 for several outputs.
    """
    image = jnp.matmul(gram, targets, precision="highest")
    return jnp.vdot(targets, image) / (jnp.trace(gram) * jnp.sum(jnp.square(targets)))


def centered_kernel_alignment(gram: jax.Array, targets: jax.Array) -> jax.Array:
    r"""Centred kernel alignment (CKA) of a kernel with that of the targets.

    .. math:: \frac{\mathrm{HSIC}(K, yy^\top)}
        {\sqrt{\mathrm{HSIC}(K, K)\, \mathrm{HSIC}(yy^\top, yy^\top)}},
        \quad \mathrm{HSIC}(K, L) = \mathrm{tr}(K H L H), \quad H = I - \tfrac{1}{P} 1 1^\top

    Args:
        gram: (P, P) symmetric kernel matrix K.
        targets: (P, outputs) targets y.

    Returns:
        The scalar alignment; NaN where all features, or all targets, are the same.

    Reference:
        Richness paper, fig. 5b; catalogue item 1.4. Kornblith et al. (2019), Similarity of neural
        network representations revisited.
    """
    gram = gram - jnp.mean(gram, axis=0, keepdims=True)
    gram = gram - jnp.mean(gram, axis=1, keepdims=True)
    targets = targets - jnp.mean(targets, axis=0, keepdims=True)
    # tr(K H y yᵀ H) and ‖H y yᵀ H‖_F, without the (P, P) matrix of the targets.
    shared = jnp.vdot(targets, jnp.matmul(gram, targets, precision="highest"))
    target_norm = jnp.linalg.norm(jnp.matmul(targets.T, targets, precision="highest"))
    alignment: jax.Array = shared / (jnp.linalg.norm(gram) * target_norm)
    return alignment
