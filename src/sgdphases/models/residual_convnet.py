"""Residual convolutional networks of constant width and any number of blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sgdphases.errors import InputError
from sgdphases.models.images import centred_convolution, global_average, image_shape
from sgdphases.models.network import ACTIVATIONS, Layers, Network, Parameters, assemble


def residual_convnet(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    r"""A convolution, `num_blocks` residual branches of one convolution each, and a readout.

    .. math:: h^{l+1} = h^l + \frac{1}{\mathrm{num\_blocks}^a} W^l * \phi(h^l)

    with a = 1/2 in Depth-µP, else 0. All hidden layers have `width` channels. The readout reads the
    mean of each channel of φ(h) over positions: `width` values, so that its factor in µP is
    1/width, as printed.

    Args:
        hyperparameters: `num_blocks`, `width`, `activation` (φ), `stem_stride` (step of the first
            convolution).
        input_shape: (height, width, channels) of one input.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network.

    Raises:
        InputError: The inputs are no images, or there is no block.

    Reference:
        Richness paper, eqs. 11-14, figures 25 and 26; catalogue Part 2, `rich_resconv`.
    """
    num_blocks, width = hyperparameters["num_blocks"], hyperparameters["width"]
    if num_blocks < 1:
        raise InputError(f"residual_convnet: num_blocks {num_blocks}; allowed: 1 or more")
    _, _, in_channels = image_shape(input_shape, "residual_convnet")
    activation = ACTIVATIONS[hyperparameters["activation"]]
    stem = centred_convolution(layers, 3, in_channels, width, hyperparameters["stem_stride"])
    blocks = [centred_convolution(layers, 3, width, width) for _ in range(num_blocks)]
    multiplier = layers.branch_multiplier(num_blocks)

    def features(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        hidden = stem.apply(parameters["input"], inputs)
        for layer, weights in zip(blocks, parameters["hidden"], strict=True):
            hidden = hidden + multiplier * layer.apply(weights, activation(hidden))
        return global_average(activation(hidden))

    readout = layers.dense(width, num_outputs, is_readout=True)
    return assemble({"input": stem, "hidden": blocks}, features, readout)
