"""Residual networks for ImageNet and for small images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.errors import InputError
from sgdphases.models.images import (
    IDENTITY,
    block,
    centred_convolution,
    global_average,
    image_shape,
    norm_of,
    padded,
    starting_at_zero,
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

# depth: (blocks of each of the four stages, whether they are bottlenecks)
STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
BOTTLENECK_EXPANSION = 4
# stem: (window, stride) of its convolution; only ImageNet's pools afterwards
STEMS = {"imagenet": (7, 2), "cifar": (3, 1)}


def resnet(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    """A residual network with norm and activation after each convolution.

    Stem - four stages of blocks with w, 2 w, 4 w and 8 w channels, four times as many after
    bottlenecks, each but the first halving the size - mean over positions - Dense. Stem `imagenet`:
    7x7 convolution of stride 2, then 3x3 maximum of stride 2; `cifar`: 3x3 convolution. Bottlenecks
    have their stride in the 3x3 convolution. With batch norm the convolutions have no biases, as in
    the original.

    In Depth-µP each residual branch is divided by the root of the number of blocks.

    Args:
        hyperparameters: `depth` (18, 34, 50, 101, 152), `width` (w; 64 in the original),
            `activation`, `stem` (imagenet, cifar), `batch_norm`, `batch_norm_samples`,
            `zero_initial_branches` (whether the last layer of each branch starts at zero).
        input_shape: (height, width, channels) of one input.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network.

    Raises:
        InputError: The inputs are no images, or depth or stem are not among those above.

    Reference:
        He et al., Deep Residual Learning for Image Recognition (2015), table 1; catalogue Part 2,
        `resnet50_tf_tpu`, `rich_resnet18`.
    """
    for name, allowed in (("depth", STAGES), ("stem", STEMS)):
        if hyperparameters[name] not in allowed:
            raise InputError(
                f"resnet: {name} {hyperparameters[name]}; allowed: {', '.join(map(str, allowed))}"
            )
    stages, is_bottleneck = STAGES[hyperparameters["depth"]]
    _, _, in_channels = image_shape(input_shape, "resnet")
    width = hyperparameters["width"]
    convolutions = (
        dataclasses.replace(layers, bias_scale=None) if hyperparameters["batch_norm"] else layers
    )

    stem = _stem(hyperparameters, convolutions, in_channels)
    blocks, channels = [], width
    for stage, num_blocks in enumerate(stages):
        for i in range(num_blocks):
            inner = width * 2**stage
            stride = 2 if stage > 0 and i == 0 else 1
            steps = [(3, inner, stride), (3, inner, 1)]
            if is_bottleneck:
                steps = [(1, inner, 1), (3, inner, stride), (1, BOTTLENECK_EXPANSION * inner, 1)]
            multiplier = layers.branch_multiplier(sum(stages))
            blocks.append(
                _residual_block(hyperparameters, convolutions, channels, steps, stride, multiplier)
            )
            channels = steps[-1][1]

    def features(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        hidden = stem.apply(parameters["input"], inputs)
        for layer, weights in zip(blocks, parameters["hidden"], strict=True):
            hidden = layer.apply(weights, hidden)
        return global_average(hidden)

    readout = layers.dense(channels, num_outputs, is_readout=True)
    return assemble({"input": stem, "hidden": blocks}, features, readout)


def _stem(hyperparameters: Mapping[str, Any], layers: Layers, in_channels: int) -> Layer:
    """From the image to the first block's input."""
    window, stride = STEMS[hyperparameters["stem"]]
    width = hyperparameters["width"]
    activation = ACTIVATIONS[hyperparameters["activation"]]
    convolution = centred_convolution(layers, window, in_channels, width, stride)
    norm = norm_of(hyperparameters, width, layers.dtype)

    def apply(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        hidden = convolution.apply(parameters["convolution"], inputs)
        hidden = activation(norm.apply(parameters["norm"], hidden))
        if hyperparameters["stem"] == "cifar":
            return hidden
        return max_pool(padded(hidden, 1, -jnp.inf), 3, 2)

    return block({"convolution": convolution, "norm": norm}, apply)


def _residual_block(
    hyperparameters: Mapping[str, Any],
    layers: Layers,
    in_channels: int,
    steps: Sequence[tuple[int, int, int]],
    stride: int,
    multiplier: float,
) -> Layer:
    """Convolutions with norms beside a shortcut, and φ of their sum.

    Args:
        hyperparameters: The network's.
        layers: The maker of convolutions.
        in_channels: Channels of the input.
        steps: Window, output channels and stride of each convolution.
        stride: Stride of the whole block.
        multiplier: Factor of the branch.
    """
    activation = ACTIVATIONS[hyperparameters["activation"]]

    def norm(num_channels: int) -> Layer:
        return norm_of(hyperparameters, num_channels, layers.dtype)

    parts, channels = {}, in_channels
    for i, (window, out_channels, step_stride) in enumerate(steps, start=1):
        parts[f"convolution_{i}"] = centred_convolution(
            layers, window, channels, out_channels, step_stride
        )
        parts[f"norm_{i}"] = norm(out_channels)
        channels = out_channels
    if hyperparameters["zero_initial_branches"]:
        last = f"{'norm' if hyperparameters['batch_norm'] else 'convolution'}_{len(steps)}"
        parts[last] = starting_at_zero(parts[last])
    changes_shape = stride != 1 or in_channels != channels
    parts["shortcut"], parts["shortcut_norm"] = (
        (centred_convolution(layers, 1, in_channels, channels, stride), norm(channels))
        if changes_shape
        else (IDENTITY, IDENTITY)
    )

    def apply(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        def part(name: str, values: jax.Array) -> jax.Array:
            return parts[name].apply(parameters[name], values)

        branch = inputs
        for i in range(1, len(steps) + 1):
            branch = part(f"norm_{i}", part(f"convolution_{i}", branch))
            branch = activation(branch) if i < len(steps) else branch
        shortcut = part("shortcut_norm", part("shortcut", inputs))
        return activation(shortcut + multiplier * branch)

    return block(parts, apply)
