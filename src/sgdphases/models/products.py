"""Products of dense layers whose gradients are fast on CPU.

XLA has fast code on CPU for products whose left factor is summed along its rows. The gradient of a
weight is summed along the columns of both factors, the samples; for this it falls back on code that
takes up to ten times as long where widths are multiples of large powers of two. `dense_product` is
the usual product, with derivatives of every order, in which that gradient transposes one of its
factors beforehand.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from sgdphases.models.primitives import make_primitive

# Layers with fewer outputs transpose these and their gradient, others their inputs.
_FEW_OUTPUTS = 128
# Rows at distances of multiples of so many bytes share few places of a cache.
_BAD_STRIDE = 2048
# Rows transposed at once, and most such blocks.
_ROWS = 16
_MOST_BLOCKS = 16


def dense_product(inputs: jax.Array, weight: jax.Array) -> jax.Array:
    r"""The product of a dense layer.

    .. math:: y_{\ldots j} = \sum_i x_{\ldots i} W_{ij}

    Args:
        inputs: (..., in).
        weight: (in, out).

    Returns:
        (..., out).
    """
    if jax.default_backend() != "cpu":
        return inputs @ weight
    rows = inputs.reshape(-1, inputs.shape[-1])
    result: jax.Array = _product_primitive.bind(rows, weight)
    return result.reshape(*inputs.shape[:-1], weight.shape[1])


def _product(inputs: jax.Array, weight: jax.Array) -> jax.Array:
    return inputs @ weight


def _weight_gradient(inputs: jax.Array, errors: jax.Array) -> jax.Array:
    """The sum over samples of inputs (samples, in) times errors (samples, out), (in, out)."""
    # Without the barriers XLA would merge the transpositions into the product again.
    barrier: Callable[[jax.Array], jax.Array] = jax.lax.optimization_barrier
    if errors.shape[1] < _FEW_OUTPUTS:
        return barrier(barrier(errors.T) @ inputs).T
    samples = len(inputs)
    if inputs.shape[1] * inputs.dtype.itemsize % _BAD_STRIDE:
        return inputs.T @ errors
    size = max(_ROWS, -(-samples // _MOST_BLOCKS))
    # In blocks of rows, because XLA writes a whole transposition with strides that defeat caches.
    blocks = [inputs[start : start + size].T for start in range(0, samples, size)]
    return barrier(jnp.concatenate(blocks, axis=1)) @ errors


def _batch_weight_gradient(
    arguments: tuple[jax.Array, jax.Array], axes: tuple[int | None, int | None]
) -> tuple[jax.Array, int]:
    """Of many runs; the errors of runs that share their inputs are put beside each other."""
    inputs, errors = arguments
    if axes[0] is not None or axes[1] is None:
        return jax.vmap(_weight_gradient, in_axes=axes)(inputs, errors), 0
    beside = jnp.moveaxis(errors, axes[1], 1)
    samples, runs, _ = beside.shape
    gradient = _weight_gradient(inputs, beside.reshape(samples, -1))
    return gradient.reshape(inputs.shape[1], runs, -1), 1


_product_primitive = make_primitive("dense_product", _product)
_gradient_primitive = make_primitive(
    "dense_weight_gradient", _weight_gradient, _batch_weight_gradient
)

# Both are linear in each of their two arguments.
ad.defbilinear(
    _product_primitive,
    lambda cotangent, inputs, weight: cotangent @ weight.T,
    lambda cotangent, inputs, weight: _gradient_primitive.bind(inputs, cotangent),
)
ad.defbilinear(
    _gradient_primitive,
    lambda cotangent, inputs, errors: errors @ cotangent.T,
    lambda cotangent, inputs, errors: _product_primitive.bind(inputs, cotangent),
)
