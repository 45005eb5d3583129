"""The top eigenvalue of the empirical neural tangent kernel, without forming the kernel."""

import logging
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


def ntk_product(apply: Apply, parameters: Parameters, inputs: jax.Array) -> Callable[[jax.Array], jax.Array]:
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
    start = jax.random.normal(jax.random.key(_LANCZOS_SEED), shape.shape, shape.dtype)
    steps = min(num_lanczos_steps, start.size)
    product = ntk_product(apply, parameters, inputs)

    def flat_product(vector: jax.Array) -> jax.Array:
        return product(vector.reshape(shape.shape)).reshape(-1)

    tridiagonalise = decomp.tridiag_sym(steps, reortho="full", custom_vjp=False)
    tridiagonal = tridiagonalise(flat_product, start.reshape(-1)).J_small
    # A kernel of low rank ends the recursion early and leaves NaN behind the finished block; zeros
    # there decouple that block, and the kernel has no negative eigenvalue that a zero could hide.
    top = jnp.linalg.eigvalsh(jnp.nan_to_num(tridiagonal, nan=0.0, posinf=0.0, neginf=0.0))[-1]
    return jnp.where(jnp.isfinite(tridiagonal[0, 0]), top, jnp.nan)


def probe_indices(num_train: int, batch_size: int, num_batches: int, seed: int) -> NDArray[np.int64]:
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
    for network in networks:
        with jax.enable_x64(network["precision"] == "float64"):
            eigenvalues = _measure_network(network, dataset, indices, curvature["num_lanczos_steps"])
        logger.info(
            "curvature %s: seed %s, mean critical learning rate %.4g over %d batches",
            settings["experiment"],
            network["seed"],
            2 / np.mean(eigenvalues),
            len(eigenvalues),
        )
        rows += [
            {
                "experiment": settings["experiment"],
                **network,
                "batch": batch,
                "ntk_top_eigenvalue": value,
                "critical_learning_rate": 2 / value,
            }
            for batch, value in enumerate(eigenvalues)
        ]
    return pd.DataFrame(rows)


def _measure_network(
    network: Mapping[str, Any], dataset: Dataset, indices: NDArray[np.int64], num_lanczos_steps: int
) -> list[float]:
    dtype = np.dtype(network["precision"])
    function = build_network(
        network, dataset.train_inputs.shape[1:], dataset.train_targets.shape[1]
    )
    parameters = function.init(jax.random.key(network["seed"]))
    measure = jax.jit(
        lambda p, x: ntk_top_eigenvalue(function.apply, p, x, num_lanczos_steps)
    )
    return [
        float(measure(parameters, jnp.asarray(dataset.train_inputs[batch], dtype)))
        for batch in indices
    ]


def critical_learning_rates(curvature: pd.DataFrame) -> dict[str, float]:
    """The critical learning rate 2/λ₀ of each network, λ₀ averaged over its batches."""
    means = curvature.groupby("network_id")["ntk_top_eigenvalue"].mean()
    return {str(name): 2.0 / float(value) for name, value in means.items()}
