"""Fully connected networks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sgdphases.models.network import ACTIVATIONS, Layers, Network, Parameters, assemble


def fully_connected(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    r"""A fully connected network with `depth` weight matrices.

    .. math:: h^{l+1} = s\,h^l + W^l \phi(h^l) + b^l

    The activation stands between the matrices, not after the last. The skip connection s is 1 in
    Depth-µP, where each of the hidden matrices is divided by the root of their number, and 0
    otherwise.

    Args:
        hyperparameters: `depth`, `width`, `activation`.
        input_shape: Shape of one input; inputs are flattened.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network; a network of depth 1 has a readout only.

    Reference:
        Catapult paper, SM A; richness paper, eqs. 11–13.
    """
    depth, width = hyperparameters["depth"], hyperparameters["width"]
    sizes = [math.prod(input_shape), *[width] * (depth - 1), num_outputs]
    activation = ACTIVATIONS[hyperparameters["activation"]]
    *inner, readout = [
        layers.dense(fan_in, fan_out, is_readout=i == depth - 1)
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
    ]
    skip = layers.skip_multiplier()
    branch = layers.branch_multiplier(max(1, depth - 2))

    def features(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        hidden = inputs.reshape(inputs.shape[0], -1)
        if not inner:
            return hidden
        hidden = inner[0].apply(parameters["input"], hidden)
        for layer, weights in zip(inner[1:], parameters["hidden"], strict=True):
            update = branch * layer.apply(weights, activation(hidden))
            hidden = skip * hidden + update if skip else update
        return activation(hidden)

    parts = {"input": inner[0], "hidden": inner[1:]} if inner else {}
    return assemble(parts, features, readout)
