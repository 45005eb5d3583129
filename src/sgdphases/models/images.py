"""What networks of images share: sizes, pooling, norms, padded convolutions, blocks of layers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.errors import InputError
from sgdphases.models.network import Layer, Layers, Parameters, batch_norm

IDENTITY = Layer(init=lambda key: {}, apply=lambda layer, inputs: inputs)


def image_shape(input_shape: Sequence[int], model: str) -> tuple[int, int, int]:
    """Height, width and channels of the inputs of a model that needs images.

    Raises:
        InputError: The inputs are not images.
    """
    if len(input_shape) != 3:
        raise InputError(
            f"{model}: inputs of shape {tuple(input_shape)} are not images; "
            "allowed: (height, width, channels)"
        )
    height, width, channels = input_shape
    return height, width, channels


def check_image_size(height: int, width: int, smallest: int, where: str) -> None:
    """Refuse images that pooling shrinks to nothing.

    Args:
        height: Rows of pixels.
        width: Columns of pixels.
        smallest: The fewest rows and columns of which something is left.
        where: The model, and the hyperparameters that decide.

    Raises:
        InputError: The image is smaller.
    """
    if min(height, width) < smallest:
        raise InputError(
            f"{where}: images of {height}x{width} pixels are too small; "
            f"allowed: at least {smallest}x{smallest}"
        )


def average_pool(inputs: jax.Array, window: int) -> jax.Array:
    """Mean over square windows beside each other; rows and columns that fill none are left out.

    Args:
        inputs: (batch, height, width, channels).
        window: Side of the window, and its step.

    Returns:
        (batch, height // window, width // window, channels).
    """
    if window == 1:
        return inputs
    rows, columns = (size // window * window for size in inputs.shape[1:3])
    # A sum of slices: a mean over axes of a reshaped image is slow on CPU.
    shifted = [
        inputs[:, i:rows:window, j:columns:window] for i in range(window) for j in range(window)
    ]
    return sum(shifted[1:], start=shifted[0]) / window**2


def global_average(inputs: jax.Array) -> jax.Array:
    """Mean over all positions, from (batch, height, width, channels) to (batch, channels)."""
    return inputs.mean((1, 2))


def padded(inputs: jax.Array, amount: int, value: float = 0.0) -> jax.Array:
    """Images (batch, height, width, channels) with `amount` pixels of `value` on every side."""
    return jnp.pad(
        inputs, ((0, 0), (amount, amount), (amount, amount), (0, 0)), constant_values=value
    )


def centred_convolution(
    layers: Layers, window: int, in_channels: int, out_channels: int, stride: int = 1
) -> Layer:
    """A convolution whose windows are centred on every `stride`-th pixel, the first included.

    Half a window of zeros stands on every side, as in the residual networks' original code. XLA's
    SAME agrees at stride 1; at stride 2 it centres on the odd pixels of images of even size.

    Args:
        layers: The maker of layers.
        window: Side of the window, odd.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the window.

    Returns:
        The layer, from (batch, height, width, in) to (batch, ⌈height/stride⌉, ⌈width/stride⌉, out).
    """
    convolution = layers.convolution(window, in_channels, out_channels, stride, "VALID")

    def apply(layer: Parameters, inputs: jax.Array) -> jax.Array:
        return convolution.apply(layer, padded(inputs, window // 2))

    return Layer(convolution.init, apply)


def norm_of(hyperparameters: Mapping[str, Any], num_channels: int, dtype: Any) -> Layer:
    """Batch norm if `batch_norm` is true, else nothing.

    The statistics are those of each `batch_norm_samples` consecutive samples, the last ones perhaps
    fewer; of the whole batch where it is None. Networks trained on several devices, each with its
    share of the batch, have the former.

    Args:
        hyperparameters: `batch_norm`, `batch_norm_samples`.
        num_channels: Size of the last axis.
        dtype: Type of the parameters.

    Returns:
        The layer; it keeps the shape of its input.

    Reference:
        Catalogue Part 2, `wrn28_10`: 8 devices with 128 samples each.
    """
    if not hyperparameters["batch_norm"]:
        return IDENTITY
    norm = batch_norm(num_channels, dtype)
    num_samples = hyperparameters["batch_norm_samples"]
    if num_samples is None:
        return norm

    def apply(layer: Parameters, inputs: jax.Array) -> jax.Array:
        num_whole = len(inputs) - len(inputs) % num_samples
        whole, rest = inputs[:num_whole], inputs[num_whole:]
        parts = []
        if len(whole):
            groups = whole.reshape(-1, num_samples, *whole.shape[1:])
            of_group = functools.partial(norm.apply, layer)
            parts.append(jax.vmap(of_group)(groups).reshape(whole.shape))
        if len(rest):
            parts.append(norm.apply(layer, rest))
        return jnp.concatenate(parts) if len(parts) > 1 else parts[0]

    return Layer(norm.init, apply)


def starting_at_zero(layer: Layer) -> Layer:
    """A layer, all of whose parameters are zero at first."""
    return Layer(lambda key: jax.tree.map(jnp.zeros_like, layer.init(key)), layer.apply)


def block(parts: Mapping[str, Layer], apply: Callable[[Parameters, jax.Array], jax.Array]) -> Layer:
    """A layer made of layers.

    Args:
        parts: Layers by name.
        apply: From the parameters of all parts, by name, and the block's input to its output.

    Returns:
        The layer; its parameters are a mapping with the names of the parts.
    """

    def init(key: jax.Array) -> Parameters:
        keys = jax.random.split(key, len(parts))
        return {name: part.init(k) for k, (name, part) in zip(keys, parts.items(), strict=True)}

    return Layer(init, apply)
