"""Convolutional networks without residual connections."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sgdphases.errors import InputError
from sgdphases.models.images import (
    average_pool,
    block,
    check_image_size,
    global_average,
    image_shape,
    norm_of,
)
from sgdphases.models.network import (
    ACTIVATIONS,
    Layer,
    Layers,
    Network,
    Parameters,
    assemble,
    max_pool,
)


def catapult_cnn(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    """The catapult paper's network of four convolutions and two dense layers.

    Conv SAME (w) - φ - Conv VALID (w) - φ - MaxPool - Conv SAME (w) - φ - Conv VALID (0.4 w) -
    MaxPool - Dense (0.8 w) - φ - Dense, with 3x3 windows; w = 320 is the paper's. Pooling windows
    move by one pixel, the default of JAX Stax.

    Args:
        hyperparameters: `width` (w), `activation` (φ), `pool_window`, `pool_stride`.
        input_shape: (height, width, channels) of one input.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network.

    Raises:
        InputError: The inputs are no images, or too small for the pooling.

    Reference:
        Catapult paper, SM A, figures 5a,b; catalogue Part 2, `cat_cnn` and "Pooling trap".
    """
    width = hyperparameters["width"]
    return _four_convolutions(
        "catapult_cnn",
        {**hyperparameters, "batch_norm": False},
        input_shape,
        num_outputs,
        layers,
        channels=(width, width, width, _share(width, 128, 320)),
        dense_width=_share(width, 256, 320),
        dense_activation=ACTIVATIONS[hyperparameters["activation"]],
    )


def l2_cnn(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    """The L2 paper's network of four convolutions and two dense layers.

    Conv SAME (w) - Act - Conv VALID (w) - Act - MaxPool - Conv SAME (w) - Act - Conv VALID (w) -
    MaxPool - Dense (5/3 w) - Dense, with 3x3 windows, where Act is φ, or batch norm and φ; w = 300
    is the paper's. Pooling windows move by one pixel, the default of JAX Stax. A convolution that
    batch norm follows has no bias, which the norm would subtract.

    Args:
        hyperparameters: `width` (w), `activation` (φ), `batch_norm`, `batch_norm_samples`,
            `pool_window`, `pool_stride`.
        input_shape: (height, width, channels) of one input.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network.

    Raises:
        InputError: The inputs are no images, or too small for the pooling.

    Reference:
        L2 paper, SM A, figure 3; catalogue Part 2, `l2_cnn` and "Pooling trap".
    """
    width = hyperparameters["width"]
    return _four_convolutions(
        "l2_cnn",
        hyperparameters,
        input_shape,
        num_outputs,
        layers,
        channels=(width,) * 4,
        dense_width=_share(width, 500, 300),
        dense_activation=ACTIVATIONS["identity"],
    )


def _share(width: int, part: int, whole: int) -> int:
    """The same share of `width` as `part` of `whole`; at least 1."""
    return max(1, round(width * part / whole))


def _four_convolutions(
    model: str,
    hyperparameters: Mapping[str, Any],
    input_shape: Sequence[int],
    num_outputs: int,
    layers: Layers,
    *,
    channels: Sequence[int],
    dense_width: int,
    dense_activation: Callable[[jax.Array], jax.Array],
) -> Network:
    """The form that the catapult and the L2 paper's networks share."""
    window, stride = hyperparameters["pool_window"], hyperparameters["pool_stride"]
    activation = ACTIVATIONS[hyperparameters["activation"]]

    def remaining_size(size: int) -> int:
        for _ in range(2):  # a convolution VALID, then a pooling
            size = (size - 2 - window) // stride + 1
        return size

    height, width, in_channels = image_shape(input_shape, model)
    # Before the second pair of them window + 2 rows are needed, and before the first pair:
    smallest = (window + 1) * stride + window + 2
    where = f"{model}, pool_window {window}, pool_stride {stride}"
    check_image_size(height, width, smallest, where)

    sizes = itertools.pairwise((in_channels, *channels))
    first, second, third, fourth = (
        _convolution_and_norm(hyperparameters, layers, fan_in, fan_out, padding, is_last)
        for (fan_in, fan_out), padding, is_last in zip(
            sizes, ("SAME", "VALID") * 2, (False, False, False, True), strict=True
        )
    )
    num_positions = remaining_size(height) * remaining_size(width)
    dense = layers.dense(num_positions * channels[-1], dense_width)

    def features(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        second_weights, third_weights, fourth_weights = parameters["hidden"]["convolutions"]
        hidden = activation(first.apply(parameters["input"], inputs))
        hidden = activation(second.apply(second_weights, hidden))
        hidden = max_pool(hidden, window, stride)
        hidden = activation(third.apply(third_weights, hidden))
        # As printed, no activation follows the fourth convolution.
        hidden = max_pool(fourth.apply(fourth_weights, hidden), window, stride)
        hidden = hidden.reshape(len(hidden), -1)
        return dense_activation(dense.apply(parameters["hidden"]["dense"], hidden))

    parts = {"input": first, "hidden": {"convolutions": [second, third, fourth], "dense": dense}}
    return assemble(parts, features, layers.dense(dense_width, num_outputs, is_readout=True))


def _convolution_and_norm(
    hyperparameters: Mapping[str, Any],
    layers: Layers,
    in_channels: int,
    out_channels: int,
    padding: str,
    is_last: bool,
) -> Layer:
    """A 3x3 convolution, and batch norm after it unless it is the last or the network has none."""
    if is_last or not hyperparameters["batch_norm"]:
        return layers.convolution(3, in_channels, out_channels, padding=padding)
    without_bias = dataclasses.replace(layers, bias_scale=None)
    convolution = without_bias.convolution(3, in_channels, out_channels, padding=padding)
    norm = norm_of(hyperparameters, out_channels, layers.dtype)

    def apply(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        hidden = convolution.apply(parameters["convolution"], inputs)
        return norm.apply(parameters["norm"], hidden)

    return block({"convolution": convolution, "norm": norm}, apply)


def convolutional(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    r"""Convolutions and dense layers of constant width, without residual connections.

    `num_convolutions` times [Conv 3x3 SAME - φ - AveragePool], then `num_dense` weight matrices
    with φ between them. The average over windows beside each other keeps the network homogeneous.

    With several dense matrices the first, a hidden layer, reads all pixels of all channels: a
    fan-in of a constant times the width, which its factor 1/√fan_in accounts for. A readout next to
    the convolutions reads the mean of each channel: `width` values, so that in µP its factor is
    1/width, as printed, and no property of the image enters the limit of infinite width.

    There is no residual branch, so Depth-µP is µP here.

    Args:
        hyperparameters: `num_convolutions`, `num_dense`, `width`, `activation`, `pool_window` (1
            for no pooling).
        input_shape: (height, width, channels) of one input.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network.

    Raises:
        InputError: The inputs are no images, or too small for the pooling; or there is no
            convolution or no dense layer.

    Reference:
        Richness paper, App. A.3 and E, eqs. 11-14; catalogue Part 2, `rich_cnn_L4` and
        `rich_cnn3_readout`.
    """
    num_convolutions, num_dense, width, window = (
        hyperparameters[name] for name in ("num_convolutions", "num_dense", "width", "pool_window")
    )
    for name in ("num_convolutions", "num_dense"):
        if hyperparameters[name] < 1:
            raise InputError(f"convolutional: {name} {hyperparameters[name]}; allowed: 1 or more")
    activation = ACTIVATIONS[hyperparameters["activation"]]

    rows, columns, in_channels = image_shape(input_shape, "convolutional")
    reduction = window**num_convolutions
    where = f"convolutional, num_convolutions {num_convolutions}, pool_window {window}"
    check_image_size(rows, columns, reduction, where)

    first, *convolutions = [
        layers.convolution(3, fan_in, width)
        for fan_in in (in_channels, *[width] * (num_convolutions - 1))
    ]
    flat_size = (rows // reduction) * (columns // reduction) * width
    dense = [
        layers.dense(size, width) for size in (flat_size, *[width] * num_dense)[: num_dense - 1]
    ]

    def features(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        hidden = average_pool(activation(first.apply(parameters["input"], inputs)), window)
        for layer, weights in zip(convolutions, parameters["hidden"]["convolutions"], strict=True):
            hidden = average_pool(activation(layer.apply(weights, hidden)), window)
        hidden = hidden.reshape(len(hidden), -1) if dense else global_average(hidden)
        for layer, weights in zip(dense, parameters["hidden"]["dense"], strict=True):
            hidden = activation(layer.apply(weights, hidden))
        return hidden

    parts = {"input": first, "hidden": {"convolutions": convolutions, "dense": dense}}
    return assemble(parts, features, layers.dense(width, num_outputs, is_readout=True))
