"""Wide residual networks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sgdphases.errors import InputError
from sgdphases.models.images import (
    IDENTITY,
    block,
    centred_convolution,
    global_average,
    image_shape,
    norm_of,
)
from sgdphases.models.network import ACTIVATIONS, Layer, Layers, Network, Parameters, assemble

NUM_GROUPS = 3


def wide_resnet(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    """A Wide ResNet of pre-activation blocks of two 3x3 convolutions.

    Conv (w) - group (k w) - group (2 k w), half the size - group (4 k w), half the size - norm -
    φ - mean over positions - Dense, where a group has (depth - 4)/6 blocks. WRN-28-10 has depth
    28, k = 10 and w = 16. With batch norm the convolutions have no biases, as in the original.

    In Depth-µP each residual branch is divided by the root of the number of blocks.

    Args:
        hyperparameters: `depth` (6 n + 4), `widening_factor` (k), `width` (w, which scales all
            layers), `activation` (φ), `batch_norm`, `batch_norm_samples`.
        input_shape: (height, width, channels) of one input.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network.

    Raises:
        InputError: The inputs are no images, or the depth is not 6 n + 4.

    Reference:
        Zagoruyko and Komodakis, Wide Residual Networks (2016), table 1; catalogue Part 2,
        `wrn28_10`, `l2_wrn`, `tmp_wrn_small`, `tmp_wrn_big`.
    """
    depth, width = hyperparameters["depth"], hyperparameters["width"]
    num_blocks, rest = divmod(depth - 4, 6)
    if rest or num_blocks < 1:
        raise InputError(f"wide_resnet: depth {depth}; allowed: 6 n + 4, i.e. 10, 16, 22, 28, ...")
    _, _, in_channels = image_shape(input_shape, "wide_resnet")
    activation = ACTIVATIONS[hyperparameters["activation"]]
    convolutions = (
        dataclasses.replace(layers, bias_scale=None) if hyperparameters["batch_norm"] else layers
    )

    stem = centred_convolution(convolutions, 3, in_channels, width)
    blocks, channels = [], width
    for group in range(NUM_GROUPS):
        out_channels = width * hyperparameters["widening_factor"] * 2**group
        for i in range(num_blocks):
            stride = 2 if group > 0 and i == 0 else 1
            blocks.append(
                _residual_block(
                    hyperparameters,
                    convolutions,
                    channels,
                    out_channels,
                    stride,
                    layers.branch_multiplier(NUM_GROUPS * num_blocks),
                )
            )
            channels = out_channels
    norm = norm_of(hyperparameters, channels, layers.dtype)

    def features(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        hidden = stem.apply(parameters["input"], inputs)
        for layer, weights in zip(blocks, parameters["hidden"]["blocks"], strict=True):
            hidden = layer.apply(weights, hidden)
        return global_average(activation(norm.apply(parameters["hidden"]["norm"], hidden)))

    parts = {"input": stem, "hidden": {"blocks": blocks, "norm": norm}}
    return assemble(parts, features, layers.dense(channels, num_outputs, is_readout=True))


def _residual_block(
    hyperparameters: Mapping[str, Any],
    layers: Layers,
    in_channels: int,
    out_channels: int,
    stride: int,
    multiplier: float,
) -> Layer:
    """Norm - φ - Conv - norm - φ - Conv beside a shortcut.

    Where the shape changes the shortcut is a 1x1 convolution of what the first convolution reads.
    """
    activation = ACTIVATIONS[hyperparameters["activation"]]
    changes_shape = stride != 1 or in_channels != out_channels
    parts = {
        "norm_1": norm_of(hyperparameters, in_channels, layers.dtype),
        "convolution_1": centred_convolution(layers, 3, in_channels, out_channels, stride),
        "norm_2": norm_of(hyperparameters, out_channels, layers.dtype),
        "convolution_2": centred_convolution(layers, 3, out_channels, out_channels),
        "shortcut": centred_convolution(layers, 1, in_channels, out_channels, stride)
        if changes_shape
        else IDENTITY,
    }

    def apply(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        def part(name: str, values: jax.Array) -> jax.Array:
            return parts[name].apply(parameters[name], values)

        activated = activation(part("norm_1", inputs))
        branch = part("convolution_1", activated)
        branch = part("convolution_2", activation(part("norm_2", branch)))
        shortcut = part("shortcut", activated if changes_shape else inputs)
        return shortcut + multiplier * branch

    return block(parts, apply)
