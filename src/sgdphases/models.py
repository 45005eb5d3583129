"""Network functions and their parametrisations."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Parameters = Any  # a pytree of arrays

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


class Network(NamedTuple):
    """A network as a pair of pure functions.

    Attributes:
        init: From a random key to parameters.
        apply: From parameters and inputs (batch, ...) to outputs (batch, outputs).
    """

    init: Callable[[jax.Array], Parameters]
    apply: Callable[[Parameters, jax.Array], jax.Array]


def fully_connected(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int
) -> Network:
    r"""A fully connected network with `depth` weight matrices.

    .. math:: h^{l+1} = s^l W^l \phi(h^l) + b^l

    Standard parametrisation: W ~ N(0, weight_scale²/fan_in), b ~ N(0, bias_scale²), s = 1.
    NTK parametrisation: W, b ~ N(0, 1), s = weight_scale/√fan_in, and b is multiplied by
    bias_scale. Without a bias_scale there are no biases. The activation stands between the
    matrices, not after the last.

    Args:
        hyperparameters: `depth`, `width`, `activation`, `parametrisation`, `weight_scale`,
            `bias_scale`, `precision`.
        input_shape: Shape of one input; inputs are flattened.
        num_outputs: Number of outputs.

    Returns:
        The network; its parameters are a list of {"weight": (fan_in, fan_out), "bias": (fan_out,)}.

    Reference:
        Catapult paper, SM A; Jacot et al. (2018) for the NTK parametrisation.
    """
    depth, width = hyperparameters["depth"], hyperparameters["width"]
    sizes = [math.prod(input_shape), *[width] * (depth - 1), num_outputs]
    activation = ACTIVATIONS[hyperparameters["activation"]]
    weight_scale = hyperparameters["weight_scale"]
    bias_scale = hyperparameters["bias_scale"]
    is_ntk = hyperparameters["parametrisation"] == "ntk"
    dtype = jnp.dtype(hyperparameters["precision"])

    def init_layer(key: jax.Array, fan_in: int, fan_out: int) -> dict[str, jax.Array]:
        weight_key, bias_key = jax.random.split(key)
        spread = 1.0 if is_ntk else weight_scale / math.sqrt(fan_in)
        layer = {"weight": spread * jax.random.normal(weight_key, (fan_in, fan_out), dtype)}
        if bias_scale is not None:
            spread = 1.0 if is_ntk else bias_scale
            layer["bias"] = spread * jax.random.normal(bias_key, (fan_out,), dtype)
        return layer

    def init(key: jax.Array) -> Parameters:
        keys = jax.random.split(key, depth)
        return [init_layer(k, i, o) for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def apply_layer(layer: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
        output = hidden @ layer["weight"]
        if is_ntk:
            output = output * (weight_scale / math.sqrt(layer["weight"].shape[0]))
        if bias_scale is not None:
            output = output + layer["bias"] * (bias_scale if is_ntk else 1.0)
        return output

    def apply(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        hidden = inputs.reshape(inputs.shape[0], -1)
        for layer in parameters[:-1]:
            hidden = activation(apply_layer(layer, hidden))
        return apply_layer(parameters[-1], hidden)

    return Network(init, apply)


MODELS: dict[str, Callable[[Mapping[str, Any], Sequence[int], int], Network]] = {
    "fully_connected": fully_connected,
}


def build_network(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int
) -> Network:
    """The network that `hyperparameters["model"]` names, for inputs of one shape."""
    return MODELS[hyperparameters["model"]](hyperparameters, input_shape, num_outputs)
