"""Products of dense layers whose gradients are fast on CPU.

XLA has fast code on CPU for products whose left factor is summed along its rows. The gradient of a
weight is summed along the columns of both factors, the samples; for this XLA has other code, which
takes up to ten times as long for few outputs and for widths that are multiples of 512.
`dense_product` is the usual product, with derivatives of every order, in which that gradient
transposes one of its factors beforehand where this pays.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from sgdphases.models.primitives import make_primitive

# Fewer outputs are transposed, with the gradient, rather than the inputs.
_FEW_OUTPUTS = 128
# Rows at distances of multiples of so many bytes share few places of a cache.
_BAD_STRIDE = 2048
# The inputs of more samples are not transposed: writing them would cost more than it gains.
_MANY_SAMPLES = 512
# Rows of inputs that are transposed at once.
_ROWS = 32


def dense_product(inputs: jax.Array, weight: jax.Array) -> jax.Array:
    r"""The product of a dense layer.

    .. math:: y_{\ldots j} = \sum_i x_{\ldots i} W_{ij}

    Args:
        inputs: (..., in).
        weight: (in, out).

    Returns:
        (..., out).
    """
    if jax.default_backend() != "cpu" or 0 in (*inputs.shape, *weight.shape):
        return inputs @ weight
    dtype = jnp.promote_types(inputs.dtype, weight.dtype)
    rows = inputs.reshape(-1, inputs.shape[-1]).astype(dtype)
    # As JAX's products do: the precision asked for here, not where the program is compiled.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    result: jax.Array = _product_primitive.bind(rows, weight.astype(dtype), precision=precision)
    return result.reshape(*inputs.shape[:-1], weight.shape[1])


def _product(left: jax.Array, right: jax.Array, *, precision: str | None) -> jax.Array:
    return jnp.matmul(left, right, precision=precision)


def _weight_gradient(inputs: jax.Array, errors: jax.Array, *, precision: str | None) -> jax.Array:
    """Inputs (samples, in) times errors (samples, out), summed over samples: (in, out)."""
    # Without the barriers XLA would merge the transpositions into the product again.
    barrier: Callable[[jax.Array], jax.Array] = jax.lax.optimization_barrier
    samples, fan_in = inputs.shape
    fan_out = errors.shape[1]
    if fan_out < _FEW_OUTPUTS and fan_out <= fan_in:
        return barrier(_product(barrier(errors.T), inputs, precision=precision)).T
    if samples > _MANY_SAMPLES or fan_in * inputs.dtype.itemsize % _BAD_STRIDE:
        return _product(inputs.T, errors, precision=precision)
    # In blocks of rows, because XLA writes a whole transposition with strides that defeat caches.
    blocks = [inputs[start : start + _ROWS].T for start in range(0, samples, _ROWS)]
    transposed = barrier(jnp.concatenate(blocks, axis=1))
    return _product(transposed, errors, precision=precision)


def _batch_weight_gradient(
    arguments: tuple[jax.Array, jax.Array],
    axes: tuple[int | None, int | None],
    *,
    precision: str | None,
) -> tuple[jax.Array, int]:
    """Runs that share their inputs: their errors beside each other are one matrix."""
    inputs, errors = arguments
    gradient = partial(_weight_gradient, precision=precision)
    if axes[0] is not None or axes[1] is None:
        return jax.vmap(gradient, in_axes=axes)(inputs, errors), 0
    beside = jnp.moveaxis(errors, axes[1], 1)
    samples, runs, fan_out = beside.shape
    together = gradient(inputs, beside.reshape(samples, runs * fan_out))
    return together.reshape(inputs.shape[1], runs, fan_out), 1


_product_primitive = make_primitive("dense_product", _product)
_gradient_primitive = make_primitive(
    "dense_weight_gradient", _weight_gradient, _batch_weight_gradient
)

# Both are linear in each of their two arguments.
ad.defbilinear(
    _product_primitive,
    lambda cotangent, inputs, weight, **options: _product(cotangent, weight.T, **options),
    lambda cotangent, inputs, weight, **options: _gradient_primitive.bind(
        inputs, cotangent, **options
    ),
)
ad.defbilinear(
    _gradient_primitive,
    lambda cotangent, inputs, errors, **options: _product(errors, cotangent.T, **options),
    lambda cotangent, inputs, errors, **options: _product_primitive.bind(
        inputs, cotangent, **options
    ),
)
