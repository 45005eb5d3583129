"""The top eigenvalue of the empirical neural tangent kernel, without forming the kernel."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.datasets.loading import Dataset
from sgdphases.losses import kernel_scale
from sgdphases.models import Parameters, build_network, parameter_dtype, single_run_convolution

logger = logging.getLogger(__name__)

Apply = Callable[[Parameters, jax.Array], jax.Array]

# The vectors of Lanczos are drawn from a fixed seed: the same network gives the same digits.
_LANCZOS_SEED = 0

# Relative residual at which Lanczos may end. The kernels of networks with k outputs have k largest
# eigenvalues about a percent apart. With 3e-4, in 13 of 8000 starts that lie badly Lanczos ends at
# the second of them; with 1e-4 in one; with this in none, for one or two products more.
TOLERANCE = 3e-5

# What networks of one compiled measurement may differ in.
_NOT_COMPILED = ("network_id", "seed", "richness", "inverse_temperature")


def kernel_scale_of(hyperparameters: Mapping[str, Any], num_outputs: int, num_samples: int) -> Any:
    r"""The factor of the tangent kernel at which 2/λ₀ is a run's critical learning rate.

    .. math:: s\,\frac{\beta^2}{\gamma^2} \cdot (N \text{ in µP}), \quad
        s = \frac{1}{k|B|},\ \frac{1}{|B|},\ 1

    with the s of the loss's normalisation, the richness γ by which outputs are divided, the inverse
    temperature β by which logits are multiplied, and the width N, by which every step of SGD in µP
    is multiplied.

    Args:
        hyperparameters: `loss_normalisation`, `richness` and `inverse_temperature` (which may be
            traced values), `parametrisation`, `width`.
        num_outputs: k.
        num_samples: |B|, the samples that the kernel is taken over.

    Returns:
        The factor of Σ_p ∂_p f ∂_p f.

    Reference:
        Catapult paper, SM A; richness paper, eqs. 10–14; temperature paper, eq. 5; catalogue items
        1.2, 1.3 and 64.
    """
    scale = kernel_scale(hyperparameters["loss_normalisation"], num_outputs, num_samples)
    if hyperparameters["parametrisation"] in ("mup", "depth_mup"):
        scale *= hyperparameters["width"]
    # Multiplied twice, not by a square, which may overflow where the result does not.
    factor = hyperparameters["inverse_temperature"] / hyperparameters["richness"]
    return scale * factor * factor


def ntk_product(
    apply: Apply,
    parameters: Parameters,
    inputs: jax.Array,
    scale: jax.typing.ArrayLike | None = None,
) -> Callable[[jax.Array], jax.Array]:
    r"""Multiplication by the empirical NTK matrix.

    .. math:: \Theta_{ij}(x, x') = s \sum_p \partial_p f_i(x) \partial_p f_j(x')

    One product is a vector–Jacobian product followed by a Jacobian–vector product, around the same
    linearisation. Matrix products are in the full precision of the parameters, whatever JAX's
    default is at the time.

    Args:
        apply: Network function from (parameters, inputs) to outputs (batch, k).
        parameters: Pytree at which the kernel is taken.
        inputs: (batch, ...) samples of the kernel.
        scale: The factor s, which may be a traced value; None means 1/(k|B|).

    Returns:
        Linear function from (batch, k) to (batch, k).

    Reference:
        Catapult paper, SM A.
    """
    with jax.default_matmul_precision("highest"):
        outputs, jacobian_product = jax.linearize(lambda p: apply(p, inputs), parameters)
        transposed_product = jax.linear_transpose(jacobian_product, parameters)
    factor = 1.0 / outputs.size if scale is None else scale

    def product(vector: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            (gradient,) = transposed_product(vector)
            result: jax.Array = jacobian_product(gradient)
        return result * jnp.asarray(factor, result.dtype)

    return product


class TopEigenvalue(NamedTuple):
    """The largest eigenvalue of a matrix, as Lanczos found it.

    Attributes:
        value: The eigenvalue; NaN where a product was not finite.
        residual: ‖A v − λ v‖/|λ| with its vector v: some eigenvalue lies within this relative
            distance, and where the largest is apart from the others, the error is of the order of
            its square.
    """

    value: jax.Array
    residual: jax.Array


def ntk_top_eigenvalue(
    apply: Apply,
    parameters: Parameters,
    inputs: jax.Array,
    num_lanczos_steps: int,
    scale: jax.typing.ArrayLike | None = None,
    tolerance: float = TOLERANCE,
) -> TopEigenvalue:
    """The largest eigenvalue of the empirical NTK matrix, by Lanczos.

    With the scale of `kernel_scale_of`, 2/eigenvalue is the learning rate above which the
    linearised network diverges; for squared errors it is the largest eigenvalue of the Gauss–Newton
    matrix of the loss.

    Args:
        apply: Network function from (parameters, inputs) to outputs (batch, k).
        parameters: Pytree at which the kernel is taken.
        inputs: (batch, ...) samples of the kernel.
        num_lanczos_steps: Matrix–vector products at most; there are never more than batch·k.
        scale: Factor of the kernel, which may be a traced value; None means 1/(k|B|).
        tolerance: Lanczos ends once its residual, relative to the eigenvalue, is below this. The
            relative error is then of the order of its square, and at most about the tolerance where
            eigenvalues are closer together than that. Networks of ten outputs take about 20 steps.

    Returns:
        The eigenvalue, in inverse units of the learning rate, and its residual; NaN for broken
        parameters.

    Reference:
        Catapult paper, SM A.
    """
    shape = jax.eval_shape(apply, parameters, inputs)
    # The scale comes after: squares of a kernel divided by richness² would leave float32.
    product = ntk_product(apply, parameters, inputs, scale=1.0)
    factor = 1.0 / math.prod(shape.shape) if scale is None else scale

    def flat_product(vector: jax.Array) -> jax.Array:
        return product(vector.reshape(shape.shape)).reshape(-1)

    end = _iterate(
        flat_product, math.prod(shape.shape), shape.dtype, 1, num_lanczos_steps, tolerance
    )
    value = _eigenvalues(end, 1)[0]
    residual = jnp.where(jnp.isnan(value), jnp.nan, _relative_residual(end))
    return TopEigenvalue(value * jnp.asarray(factor, shape.dtype), residual)


class _Krylov(NamedTuple):
    """A Lanczos iteration after some products.

    Attributes:
        num_products: Products so far.
        basis: (steps, size) orthonormal rows; zeros from `num_products` on.
        diagonal: (steps,) diagonal of the tridiagonal matrix.
        off_diagonal: (steps,) what couples a row to the next; the last one so far is the residual.
        remainder: (size,) direction of the next row.
        is_spent: Whether that is rounding noise, as the space of the rows is invariant.
        is_done: Whether another product would change nothing that matters.
    """

    num_products: jax.Array
    basis: jax.Array
    diagonal: jax.Array
    off_diagonal: jax.Array
    remainder: jax.Array
    is_spent: jax.Array
    is_done: jax.Array


def largest_eigenvalues(
    product: Callable[[jax.Array], jax.Array],
    size: int,
    dtype: Any,
    num_eigenvalues: int,
    num_products: int,
    tolerance: float = 0.0,
) -> jax.Array:
    """The largest (algebraic) eigenvalues of a symmetric matrix, by Lanczos.

    The iteration is reorthogonalised fully. Where its Krylov space is exhausted, as that of a
    matrix of low rank or with multiple eigenvalues is, it goes on from a random vector orthogonal
    to all before, so that every eigenvalue found is one of the matrix restricted to a space, and
    none is an artefact of rounding.

    An eigenvalue of multiplicity m shows once for each start: before exhaustion, its other copies
    are found through rounding errors only, and late. Nearly equal eigenvalues are told apart once
    the number of products suffices to resolve their distance.

    Args:
        product: Multiplication by the matrix, from (size,) to (size,).
        size: Number of rows of the matrix.
        dtype: Type of the vectors.
        num_eigenvalues: How many.
        num_products: Matrix–vector products at most; there are never more than `size`. As many
            vectors are kept.
        tolerance: With a single eigenvalue, the residual ‖A v − λ v‖/|λ| at which to end. For
            several, all products are made: that those found have converged does not show that none
            is missing between them.

    Returns:
        (num_eigenvalues,) in descending order; NaN from `size` on, and all NaN where a product is
        not finite.

    Reference:
        Golub & Van Loan, Matrix Computations, ch. 10; Daniel, Gragg, Kaufman & Stewart (1976) for
        when a vector counts as spent. `matfree` has the iteration with a fixed number of steps.
    """
    end = _iterate(product, size, dtype, num_eigenvalues, num_products, tolerance)
    return _eigenvalues(end, num_eigenvalues)


def _iterate(
    product: Callable[[jax.Array], jax.Array],
    size: int,
    dtype: Any,
    num_eigenvalues: int,
    num_products: int,
    tolerance: float,
) -> _Krylov:
    """The iteration of `largest_eigenvalues`, at its end."""
    steps = min(num_products, size)
    start = _Krylov(
        num_products=jnp.zeros((), jnp.int32),
        basis=jnp.zeros((steps, size), dtype),
        diagonal=jnp.zeros(steps, dtype),
        off_diagonal=jnp.zeros(steps, dtype),
        remainder=jnp.zeros(size, dtype),
        is_spent=jnp.ones((), bool),  # as the empty space is
        is_done=jnp.zeros((), bool),
    )

    def extend(state: _Krylov) -> _Krylov:
        extended = _extend(state, product)
        newest = state.num_products
        is_done = ~jnp.isfinite(extended.diagonal[newest] + extended.off_diagonal[newest])
        if num_eigenvalues == 1:
            is_done |= _relative_residual(extended) <= tolerance
        return extended._replace(is_done=is_done)

    with jax.default_matmul_precision("highest"):
        end: _Krylov
        end = jax.lax.while_loop(lambda s: (s.num_products < steps) & ~s.is_done, extend, start)
    return end


def _eigenvalues(end: _Krylov, num_eigenvalues: int) -> jax.Array:
    """What `largest_eigenvalues` returns of an iteration that has ended."""
    with jax.default_matmul_precision("highest"):
        values = jnp.linalg.eigvalsh(_tridiagonal(end))[::-1][:num_eigenvalues]
    values = jnp.where(jnp.arange(len(values)) < end.num_products, values, jnp.nan)
    is_finite = jnp.all(jnp.isfinite(end.diagonal) & jnp.isfinite(end.off_diagonal))
    values = jnp.where(is_finite, values, jnp.nan)
    return jnp.pad(values, (0, num_eigenvalues - len(values)), constant_values=jnp.nan)


def _relative_residual(state: _Krylov) -> jax.Array:
    """‖A v − λ v‖/|λ| of the largest eigenvalue after some products."""
    newest = state.num_products - 1
    with jax.default_matmul_precision("highest"):
        values, vectors = jnp.linalg.eigh(_tridiagonal(state))
    residual = state.off_diagonal[newest] * jnp.abs(vectors[newest, -1])
    # A matrix of zeros has been found exactly.
    is_exact = residual == 0
    relative: jax.Array = jnp.where(is_exact, 0.0, residual / jnp.abs(values[-1]))
    return relative


def _extend(state: _Krylov, product: Callable[[jax.Array], jax.Array]) -> _Krylov:
    """One more product."""

    def draw() -> jax.Array:
        key = jax.random.fold_in(jax.random.key(_LANCZOS_SEED), state.num_products)
        return jax.random.normal(key, state.remainder.shape, state.remainder.dtype)

    def put(rows: jax.Array, newest: jax.Array) -> jax.Array:
        array: jax.Array
        array = jax.lax.dynamic_update_index_in_dim(rows, newest, state.num_products, 0)
        return array

    vector = jax.lax.cond(state.is_spent, draw, lambda: state.remainder)
    vector = _orthogonal_part(vector, state.basis)
    vector = vector / _length(vector)
    basis = put(state.basis, vector)
    image = product(vector)
    once = _orthogonal_part(image, basis)
    twice = _orthogonal_part(once, basis)
    length = _length(twice)
    # What the second projection takes away was rounding noise, and then so is what it leaves.
    is_spent = length <= 0.5 * _length(once)
    return _Krylov(
        num_products=state.num_products + 1,
        basis=basis,
        diagonal=put(state.diagonal, jnp.vdot(vector, image)),
        off_diagonal=put(state.off_diagonal, jnp.where(is_spent, 0.0, length)),
        remainder=twice,
        is_spent=is_spent,
        is_done=state.is_done,
    )


def _orthogonal_part(vector: jax.Array, basis: jax.Array) -> jax.Array:
    return vector - (basis @ vector) @ basis


def _length(vector: jax.Array) -> jax.Array:
    """Euclidean norm, also where the squares would overflow or vanish."""
    largest = jnp.max(jnp.abs(vector))
    length: jax.Array = largest * jnp.linalg.norm(vector / jnp.where(largest == 0, 1, largest))
    return length


def _tridiagonal(state: _Krylov) -> jax.Array:
    """The matrix restricted to the rows so far; below all its eigenvalues in the rows to come."""
    is_there = jnp.arange(len(state.diagonal)) < state.num_products
    # By Gershgorin no eigenvalue lies below.
    bound = 2 * (jnp.max(jnp.abs(state.diagonal)) + 2 * jnp.max(state.off_diagonal))
    diagonal = jnp.where(is_there, state.diagonal, -bound)
    coupling = jnp.where(is_there[1:], state.off_diagonal[:-1], 0.0)
    return jnp.diag(diagonal) + jnp.diag(coupling, -1) + jnp.diag(coupling, 1)


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
        networks: Mappings with `network_id` and the hyperparameters of the network, among them
            those of `kernel_scale_of`.
        dataset: The data.

    Returns:
        One row per (network, batch): the network's hyperparameters, `batch`,
        `ntk_top_eigenvalue`, its `ntk_residual`, `critical_learning_rate` = 2/eigenvalue.
    """
    curvature = settings["curvature"]
    indices = probe_indices(
        dataset.num_train,
        curvature["batch_size"],
        curvature["num_batches"],
        settings["data_seed"],
    )
    rows = []
    measurements: dict[tuple[Any, ...], _MeasureSeed] = {}
    for network in networks:
        shape = tuple((k, v) for k, v in network.items() if k not in _NOT_COMPILED)
        scale = kernel_scale_of(network, dataset.num_outputs, indices.shape[1])
        with jax.enable_x64(network["precision"] == "float64"):
            if shape not in measurements:
                measurements[shape] = _compile_measurement(
                    network, dataset, indices, curvature["num_lanczos_steps"]
                )
            eigenvalues, residuals = measurements[shape](network["seed"], scale)
        # A kernel of zeros has no finite critical rate.
        with np.errstate(divide="ignore"):
            critical, mean_critical = 2 / eigenvalues, 2 / np.mean(eigenvalues)
        logger.info(
            "curvature %s: seed %s, mean critical learning rate %.4g over %d batches, "
            "relative residual up to %.2g",
            settings["experiment"],
            network["seed"],
            mean_critical,
            len(eigenvalues),
            residuals.max(),
        )
        rows += [
            {
                "experiment": settings["experiment"],
                **network,
                "batch": batch,
                "ntk_top_eigenvalue": eigenvalues[batch],
                "ntk_residual": residuals[batch],
                "critical_learning_rate": critical[batch],
            }
            for batch in range(len(eigenvalues))
        ]
    return pd.DataFrame(rows)


_MeasureSeed = Callable[[int, float], tuple[NDArray[np.float64], NDArray[np.float64]]]


def _compile_measurement(
    network: Mapping[str, Any], dataset: Dataset, indices: NDArray[np.int64], num_lanczos_steps: int
) -> _MeasureSeed:
    """From a seed and the kernel's factor to the (batches,) eigenvalues and their residuals."""
    function = build_network(
        network, dataset.input_shape, dataset.num_outputs, single_run_convolution()
    )
    measure = jax.jit(lambda p, x: ntk_top_eigenvalue(function.apply, p, x, num_lanczos_steps, 1.0))
    dtype = parameter_dtype(network["precision"])

    def measure_seed(seed: int, scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        parameters = function.init(jax.random.key(seed))
        found = [measure(parameters, dataset.inputs_at(batch, dtype)) for batch in indices]
        values, residuals = np.asarray(found, dtype=np.float64).T
        # Scaled in double precision: 1/richness² may leave float32.
        return scale * values, residuals

    return measure_seed


def critical_learning_rates(curvature: pd.DataFrame) -> dict[str, float]:
    """The critical learning rate 2/λ₀ of each network, λ₀ averaged over its batches."""
    means = curvature.groupby("network_id")["ntk_top_eigenvalue"].mean()
    return {str(name): float(rate) for name, rate in (2.0 / means).items()}
