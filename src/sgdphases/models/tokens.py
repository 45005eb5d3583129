"""Layers of networks that read tokens: embeddings and normalisations over the last axis."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.models.network import Layer, Layers, Parameters, standard_normal

NORMALISATION_EPSILON = 1e-5


def embedding(layers: Layers, num_rows: int, width: int) -> Layer:
    """A learned table that gives each row's index a vector.

    It is a fully connected layer on one-hot inputs, of which one value at a time is not zero. Hence
    the fan-in that sets its scale is 1: entries are weight_scale·N(0, 1) in every parametrisation.
    It has no bias. Its parameters are {"weight": (num_rows, width)}.

    Args:
        layers: The maker of layers.
        num_rows: Number of vectors.
        width: Their size.

    Returns:
        The layer, from indices (...) to vectors (..., width).
    """
    spread, multiplier = _embedding_scales(layers)

    def init(key: jax.Array) -> Parameters:
        return {"weight": spread * standard_normal(key, (num_rows, width), layers.dtype)}

    def apply(layer: Parameters, rows: jax.Array) -> jax.Array:
        weight: jax.Array = layer["weight"]
        return weight[rows] * multiplier

    return Layer(init, apply)


def position_embedding(layers: Layers, num_tokens: int, width: int) -> Layer:
    """Adds to each token a learned vector of its position, drawn as an `embedding` is.

    Args:
        layers: The maker of layers.
        num_tokens: Number of tokens of every input.
        width: Size of a token.

    Returns:
        The layer, from (batch, num_tokens, width) to the same shape.
    """
    _, multiplier = _embedding_scales(layers)

    def apply(layer: Parameters, tokens: jax.Array) -> jax.Array:
        weight: jax.Array = layer["weight"]
        return tokens + weight * multiplier

    return Layer(embedding(layers, num_tokens, width).init, apply)


def layer_norm(width: int, dtype: Any) -> Layer:
    """Layer normalisation: the last axis to mean 0 and variance 1, then a learned scale and offset.

    Its parameters are {"scale": ones, "offset": zeros}.

    Args:
        width: Size of the last axis.
        dtype: Type of the parameters.

    Returns:
        The layer, from (..., width) to the same shape.
    """

    def init(key: jax.Array) -> Parameters:
        del key  # nothing is random
        return {"scale": jnp.ones(width, dtype), "offset": jnp.zeros(width, dtype)}

    def apply(layer: Parameters, inputs: jax.Array) -> jax.Array:
        scale: jax.Array = layer["scale"]
        offset: jax.Array = layer["offset"]
        centred = inputs - inputs.mean(-1, keepdims=True)
        return _to_unit_mean_square(centred) * scale + offset

    return Layer(init, apply)


def root_mean_square_norm(width: int, dtype: Any) -> Layer:
    """The last axis to mean square 1, hence to length √width, then a learned scale.

    Its parameters are {"scale": ones}.

    Args:
        width: Size of the last axis.
        dtype: Type of the parameters.

    Returns:
        The layer, from (..., width) to the same shape.
    """

    def init(key: jax.Array) -> Parameters:
        del key  # nothing is random
        return {"scale": jnp.ones(width, dtype)}

    def apply(layer: Parameters, inputs: jax.Array) -> jax.Array:
        scale: jax.Array = layer["scale"]
        return _to_unit_mean_square(inputs) * scale

    return Layer(init, apply)


def combine(
    parts: Mapping[str, Layer | None], apply: Callable[[Parameters, jax.Array], jax.Array]
) -> Layer:
    """A layer made of named parts, whose parameters are those of the parts by name.

    Args:
        parts: The parts; those that are None have no parameters and no name.
        apply: From the layer's parameters and its input to its output.

    Returns:
        The layer.
    """
    present = {name: part for name, part in parts.items() if part is not None}

    def init(key: jax.Array) -> Parameters:
        keys = jax.random.split(key, len(present))
        return {
            name: part.init(part_key)
            for (name, part), part_key in zip(present.items(), keys, strict=True)
        }

    return Layer(init, apply)


def _embedding_scales(layers: Layers) -> tuple[float, float]:
    """Spread of the drawn values, and what they are multiplied by."""
    if layers.parametrisation == "standard":
        return layers.weight_scale, 1.0
    return 1.0, layers.weight_scale


def _to_unit_mean_square(inputs: jax.Array) -> jax.Array:
    mean_square = jnp.square(inputs).mean(-1, keepdims=True)
    return inputs * jax.lax.rsqrt(mean_square + NORMALISATION_EPSILON)
