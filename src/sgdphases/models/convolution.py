"""Convolutions that are fast inside compiled loops on CPU.

XLA has fast code on CPU for convolutions of the usual layout (images NHWC, kernels HWIO). What
autodiff makes of them has other layouts, which XLA rearranges outside of loops only: within the
loop over steps, gradients take a hundred times as long as they should. `explicit_convolution` is
the same function, with derivatives of every order, forward and reverse, in the usual layout.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from sgdphases.models.primitives import make_primitive

# "patches": shifted copies of the images beside each other, times one matrix; the only one that
# suits runs with kernels of their own in one batched operation. "native": XLA's convolution.
# "explicit": XLA's convolution with derivatives written out, see above.
CONVOLUTION_METHODS = ("patches", "native", "explicit")

Pads = tuple[tuple[int, int], tuple[int, int]]

# Samples that a kernel's gradient sums over at once.
_CHUNK = 8


def convolve(
    inputs: jax.Array, weight: jax.Array, stride: int, padding: str, method: str
) -> jax.Array:
    """Cross-correlate images with a square kernel.

    Args:
        inputs: (batch, height, width, in).
        weight: (window, window, in, out).
        stride: Step of the window in both directions.
        padding: SAME (as TensorFlow and XLA define it) or VALID.
        method: One of CONVOLUTION_METHODS; they differ in speed and rounding only.

    Returns:
        (batch, height', width', out).
    """
    window = weight.shape[:2]
    (top, bottom), (left, right) = jax.lax.padtype_to_pads(
        inputs.shape[1:3], window, (stride, stride), padding
    )
    pads = ((top, bottom), (left, right))
    if method == "native":
        return _convolution(inputs, weight, stride=stride, pads=pads)
    if method == "explicit":
        return explicit_convolution(inputs, weight, stride, pads)
    return _patches(inputs, weight.shape[0], stride, pads) @ weight.reshape(-1, weight.shape[3])


def _patches(inputs: jax.Array, window: int, stride: int, pads: Pads) -> jax.Array:
    """What each position of the window sees, (batch, height', width', window²·in)."""
    padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    rows, columns = ((size - window) // stride + 1 for size in padded.shape[1:3])
    shifted = [
        padded[
            :,
            i : i + stride * (rows - 1) + 1 : stride,
            j : j + stride * (columns - 1) + 1 : stride,
        ]
        for i in range(window)
        for j in range(window)
    ]
    return jnp.concatenate(shifted, axis=-1)


def explicit_convolution(
    inputs: jax.Array, weight: jax.Array, stride: int, pads: Pads
) -> jax.Array:
    """A convolution whose derivatives keep XLA's usual layout.

    Args:
        inputs: (batch, height, width, in).
        weight: (window, window, in, out).
        stride: Step of the window in both directions.
        pads: Rows before and after the images, then columns.

    Returns:
        (batch, height', width', out).
    """
    result: jax.Array = _convolution_primitive.bind(inputs, weight, stride=stride, pads=pads)
    return result


def _convolution(
    inputs: jax.Array, weight: jax.Array, *, stride: int, pads: Sequence[tuple[int, int]]
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        inputs, weight, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _weight_gradient(
    inputs: jax.Array, cotangent: jax.Array, *, window: int, stride: int, pads: Pads
) -> jax.Array:
    """Gradient of a convolution with respect to its kernel, (window, window, in, out).

    It is a convolution with the roles changed: channels are its batch, samples its channels, and
    the cotangent is its kernel. Few samples at once keep the images in the cache.
    """
    spread = _spread(cotangent, stride)
    samples = len(inputs)
    chunk = next(size for size in range(min(_CHUNK, samples), 0, -1) if samples % size == 0)
    # Rows and columns behind the last window are not used.
    used = [
        (low, window - 1 + covered - size - low)
        for size, covered, (low, _) in zip(inputs.shape[1:3], spread.shape[1:3], pads, strict=True)
    ]

    def of_chunk(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        images, errors = part
        return _convolution(
            images.transpose(3, 1, 2, 0), errors.transpose(1, 2, 0, 3), stride=1, pads=used
        )

    def split(array: jax.Array) -> jax.Array:
        return array.reshape(samples // chunk, chunk, *array.shape[1:])

    if samples == chunk:
        total = of_chunk((inputs, spread))
    else:
        shape = (inputs.shape[3], window, window, cotangent.shape[3])
        total = jax.lax.scan(
            lambda sum_, part: (sum_ + of_chunk(part), None),
            jnp.zeros(shape, inputs.dtype),
            (split(inputs), split(spread)),
        )[0]
    return total.transpose(1, 2, 0, 3)


def _spread(cotangent: jax.Array, stride: int) -> jax.Array:
    """The cotangent with stride - 1 zeros between its rows and columns."""
    if stride == 1:
        return cotangent
    zero = jnp.zeros((), cotangent.dtype)
    between = (0, 0, stride - 1)
    return jax.lax.pad(cotangent, zero, ((0, 0, 0), between, between, (0, 0, 0)))


def _input_gradient(
    cotangent: jax.Array, weight: jax.Array, sizes: tuple[int, ...], stride: int, pads: Pads
) -> jax.Array:
    """Gradient of a convolution with respect to images of the given height and width."""
    window = weight.shape[0]
    spread = _spread(cotangent, stride)
    (top, left), (rows, columns) = (pads[0][0], pads[1][0]), spread.shape[1:3]
    height, width = sizes
    new_pads = (
        (window - 1 - top, height + top - rows),
        (window - 1 - left, width + left - columns),
    )
    return explicit_convolution(spread, weight[::-1, ::-1].transpose(0, 1, 3, 2), 1, new_pads)


# Both are linear in each of their two arguments, and their transposes are made of the two again:
# that gives JAX all derivatives.
_convolution_primitive = make_primitive("explicit_convolution", _convolution)
_weight_gradient_primitive = make_primitive("explicit_weight_gradient", _weight_gradient)

ad.defbilinear(
    _convolution_primitive,
    lambda cotangent, inputs, weight, *, stride, pads: _input_gradient(
        cotangent, weight, inputs.aval.shape[1:3], stride, pads
    ),
    lambda cotangent, inputs, weight, *, stride, pads: _weight_gradient_primitive.bind(
        inputs, cotangent, window=weight.aval.shape[0], stride=stride, pads=pads
    ),
)
ad.defbilinear(
    _weight_gradient_primitive,
    lambda cotangent, inputs, errors, *, window, stride, pads: _input_gradient(
        errors, cotangent, inputs.aval.shape[1:3], stride, pads
    ),
    lambda cotangent, inputs, errors, *, window, stride, pads: explicit_convolution(
        inputs, cotangent, stride, pads
    ),
)
