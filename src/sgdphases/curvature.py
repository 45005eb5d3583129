"""The top eigenvalue of the empirical neural tangent kernel, without forming the kernel."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matfree import decomp
from numpy.typing import NDArray

from sgdphases.datasets.loading import Dataset
from sgdphases.models import Parameters, build_network

logger = logging.getLogger(__name__)

Apply = Callable[[Parameters, jax.Array], jax.Array]

# The start vector of Lanczos is fixed: the same network gives the same digits.
_LANCZOS_SEED = 0


def ntk_product(
    apply: Apply, parameters: Parameters, inputs: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    r"""Multiplication by the empirical NTK matrix.

    .. math:: \Theta_{ij}(x, x') = \frac{1}{k|B|} \sum_p \partial_p f_i(x) \partial_p f_j(x')

    One product is a vector–Jacobian product followed by a Jacobian–vector product, around the same
    linearisation.

    Args:
        apply: Network function from (parameters, inputs) to outputs (batch, k).
        parameters: Pytree at which the kernel is taken.
        inputs: (batch, ...) samples of the kernel.

    Returns:
        Linear function from (batch, k) to (batch, k).

    Reference:
        Catapult paper, SM A.
    """
    outputs, jacobian_product = jax.linearize(lambda p: apply(p, inputs), parameters)
    transposed_product = jax.linear_transpose(jacobian_product, parameters)
    scale = 1.0 / outputs.size

    def product(vector: jax.Array) -> jax.Array:
        (gradient,) = transposed_product(vector)
        result: jax.Array = scale * jacobian_product(gradient)
        return result

    return product


def ntk_top_eigenvalue(
    apply: Apply, parameters: Parameters, inputs: jax.Array, num_lanczos_steps: int
) -> jax.Array:
    """The largest eigenvalue of the empirical NTK matrix, by Lanczos.

    It is also the largest eigenvalue of the Gauss–Newton matrix of the loss 1/(2k|B|) Σ (f − y)²,
    so that 2/eigenvalue is the learning rate above which the linearised network diverges.

    Args:
        apply: Network function from (parameters, inputs) to outputs (batch, k).
        parameters: Pytree at which the kernel is taken.
        inputs: (batch, ...) samples of the kernel.
        num_lanczos_steps: Matrix–vector products; at most batch·k are used.

    Returns:
        The scalar eigenvalue, in inverse units of the learning rate.

    Reference:
        Catapult paper, SM A; Lanczos with full reorthogonalisation from matfree.
    """
    shape = jax.eval_shape(apply, parameters, inputs)
    # From numpy: XLA would take most of its compile time to fold a draw of JAX into a constant.
    draw = np.random.default_rng(_LANCZOS_SEED).standard_normal(math.prod(shape.shape))
    start = jnp.asarray(draw, shape.dtype)
    steps = min(num_lanczos_steps, start.size)
    product = ntk_product(apply, parameters, inputs)

    def flat_product(vector: jax.Array) -> jax.Array:
        return product(vector.reshape(shape.shape)).reshape(-1)

    # Not `tridiag_sym`, whose averaged off-diagonals hide where the recursion was spent.
    lanczos = decomp.hessenberg(steps, reortho="full", custom_vjp=False)
    hessenberg = lanczos(flat_product, start).J_small
    top: jax.Array = jnp.linalg.eigvalsh(_finished_block(hessenberg))[-1]
    return top


def _finished_block(hessenberg: jax.Array) -> jax.Array:
    """The symmetric tridiagonal matrix of Lanczos, zero behind the point where it was spent.

    A kernel of low rank exhausts its Krylov space after a few products; what follows is normalised
    rounding noise, which is no longer orthogonal and would add eigenvalues far above the kernel's.
    The zeros put there hide nothing, as the kernel has no negative eigenvalue.

    Args:
        hessenberg: (steps, steps) upper Hessenberg matrix of the Arnoldi iteration.

    Returns:
        (steps, steps) matrix; NaN or infinite entries before that point are kept.
    """
    diagonal, off_diagonal = jnp.diagonal(hessenberg), jnp.diagonal(hessenberg, -1)
    # An error of this size in an off-diagonal enters the eigenvalue squared.
    tolerance = math.sqrt(np.finfo(hessenberg.dtype).eps)
    is_spent = off_diagonal <= tolerance * jax.lax.cummax(diagonal[:-1])
    before = jnp.cumsum(is_spent) == 0
    off_diagonal = jnp.where(before, off_diagonal, 0.0)
    diagonal = jnp.append(diagonal[0], jnp.where(before, diagonal[1:], 0.0))
    return jnp.diag(diagonal) + jnp.diag(off_diagonal, -1) + jnp.diag(off_diagonal, 1)


def probe_indices(
    num_train: int, batch_size: int, num_batches: int, seed: int
) -> NDArray[np.int64]:
    """Samples of the batches on which curvature is measured.

    Args:
        num_train: Number of training samples.
        batch_size: Samples per batch; more than there are means all of them.
        num_batches: Number of batches.
        seed: The experiment's data seed.

    Returns:
        (batches, samples) indices; all samples in order where a batch holds them all.
    """
    if batch_size >= num_train:
        return np.arange(num_train)[None]
    batches = [
        np.random.default_rng([seed, batch]).choice(num_train, batch_size, replace=False)
        for batch in range(num_batches)
    ]
    return np.stack(batches)


def measure_networks(
    settings: Mapping[str, Any], networks: Sequence[Mapping[str, Any]], dataset: Dataset
) -> pd.DataFrame:
    """Measure the top NTK eigenvalue of networks at initialisation.

    Args:
        settings: `curvature` (batch_size, num_batches, num_lanczos_steps), `data_seed`,
            `experiment`.
        networks: Mappings with `network_id` and the hyperparameters of the network.
        dataset: The data.

    Returns:
        One row per (network, batch): the network's hyperparameters, `batch`,
        `ntk_top_eigenvalue`, `critical_learning_rate` = 2/eigenvalue.
    """
    curvature = settings["curvature"]
    indices = probe_indices(
        len(dataset.train_inputs),
        curvature["batch_size"],
        curvature["num_batches"],
        settings["data_seed"],
    )
    rows = []
    measurements: dict[tuple[Any, ...], Callable[[int], NDArray[np.float64]]] = {}
    for network in networks:
        shape = tuple((k, v) for k, v in network.items() if k not in ("network_id", "seed"))
        if shape not in measurements:
            measurements[shape] = _compile_measurement(
                network, dataset, indices, curvature["num_lanczos_steps"]
            )
        with jax.enable_x64(network["precision"] == "float64"):
            eigenvalues = measurements[shape](network["seed"])
        # A kernel of zeros has no finite critical rate.
        with np.errstate(divide="ignore"):
            critical, mean_critical = 2 / eigenvalues, 2 / np.mean(eigenvalues)
        logger.info(
            "curvature %s: seed %s, mean critical learning rate %.4g over %d batches",
            settings["experiment"],
            network["seed"],
            mean_critical,
            len(eigenvalues),
        )
        rows += [
            {
                "experiment": settings["experiment"],
                **network,
                "batch": batch,
                "ntk_top_eigenvalue": eigenvalues[batch],
                "critical_learning_rate": critical[batch],
            }
            for batch in range(len(eigenvalues))
        ]
    return pd.DataFrame(rows)


def _compile_measurement(
    network: Mapping[str, Any], dataset: Dataset, indices: NDArray[np.int64], num_lanczos_steps: int
) -> Callable[[int], NDArray[np.float64]]:
    """From a seed to the (batches,) eigenvalues; networks that differ in the seed share it."""
    dtype = np.dtype(network["precision"])
    function = build_network(
        network, dataset.train_inputs.shape[1:], dataset.train_targets.shape[1]
    )
    init = jax.jit(function.init)
    measure = jax.jit(lambda p, x: ntk_top_eigenvalue(function.apply, p, x, num_lanczos_steps))

    def measure_seed(seed: int) -> NDArray[np.float64]:
        parameters = init(jax.random.key(seed))
        values = [
            measure(parameters, jnp.asarray(dataset.train_inputs[batch], dtype))
            for batch in indices
        ]
        return np.asarray(values, dtype=np.float64)

    return measure_seed


def critical_learning_rates(curvature: pd.DataFrame) -> dict[str, float]:
    """The critical learning rate 2/λ₀ of each network, λ₀ averaged over its batches."""
    means = curvature.groupby("network_id")["ntk_top_eigenvalue"].mean()
    return {str(name): float(rate) for name, rate in (2.0 / means).items()}
