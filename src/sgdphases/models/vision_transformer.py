"""Vision transformers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.errors import InputError
from sgdphases.models.network import ACTIVATIONS, Layer, Layers, Network, Parameters, assemble
from sgdphases.models.tokens import (
    combine,
    layer_norm,
    position_embedding,
    root_mean_square_norm,
)

# The norms of the tokens, and of the queries and keys, in each choice of normalisation.
_Norm = Callable[[int, Any], Layer] | None
_NORMS: dict[str, tuple[_Norm, _Norm]] = {
    "layer_norm": (layer_norm, None),
    "qk_layer_norm": (layer_norm, layer_norm),
    "qk_norm": (layer_norm, root_mean_square_norm),
    "none": (None, None),
}
NORMALISATIONS = tuple(_NORMS)

# The power of the size of a query by which the attention's logits are divided.
_ATTENTION_EXPONENTS = {"inverse": 1.0, "inverse_root": 0.5}
ATTENTION_SCALES = tuple(_ATTENTION_EXPONENTS)


def vision_transformer(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    r"""A vision transformer that reads the mean of its tokens.

    An image is cut into squares of side `patch_size`; one matrix makes each a token, to which a
    learned vector of its position is added. Then come `num_blocks` blocks

    .. math::
        h &\leftarrow h + b\,W_o\,\mathrm{attention}(\mathrm{norm}(h)) \\
        h &\leftarrow h + b\,W_2\,\phi(W_1\,\mathrm{norm}(h))

    with b = 1, or 1/√(2·num_blocks) in Depth-µP, and W_1 from width to mlp_ratio·width. The readout
    acts on the mean over the tokens of norm(h). In each head, with queries q, keys k and values v
    of size d_q = width/num_heads, token i receives

    .. math:: \sum_j \mathrm{softmax}_j\!\left(\frac{q_i\cdot k_j}{d_q^{a}\,T}\right) v_j

    with T the `attention_temperature` and a = 1 where `attention_scale` is `inverse`, ½ where it is
    `inverse_root`; None is `inverse` in µP and Depth-µP, and `inverse_root` elsewhere. With
    `inverse_root` the logits of a wide head move at any width, in the NTK parametrisation too.

    `normalisation` is one of

    - layer_norm: norm is a layer normalisation, before each branch and before the readout.
    - qk_layer_norm: that, and each head's queries and keys pass a layer normalisation over their
      d_q values, whose scale and offset the heads share (QK-LayerNorm).
    - qk_norm: layer_norm, and queries and keys are brought to length √d_q, without centring, and
      multiplied by a learned scale for each of the d_q values, which the heads share (QK-norm).
      While the scales are 1, q·k/d_q is the cosine of the angle between q and k.
    - none: norm(h) = h; nothing is normalised.

    Args:
        hyperparameters: `num_blocks`, `num_heads`, `width`, `mlp_ratio`, `patch_size`,
            `activation`, `normalisation`, `attention_scale`, `attention_temperature`.
        input_shape: (height, width, channels) of an image.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network; its features are the mean token, (batch, width).

    Raises:
        InputError: A hyperparameter is not allowed, or does not fit the images.

    Reference:
        Richness paper, App. A and H (figs. 14–16); catalogue 1.2 and Part 2, `rich_vit`.
    """
    _check(hyperparameters, input_shape)
    width, num_blocks = hyperparameters["width"], hyperparameters["num_blocks"]
    patch_size = hyperparameters["patch_size"]
    num_tokens = math.prod(size // patch_size for size in input_shape[:2])
    patches = layers.dense(patch_size**2 * input_shape[2], width)
    positions = position_embedding(layers, num_tokens, width)
    block = _block(hyperparameters, layers)
    make_norm, _ = _NORMS[hyperparameters["normalisation"]]
    norm = make_norm(width, layers.dtype) if make_norm else None

    def features(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        first, hidden = parameters["input"], parameters["hidden"]
        tokens = patches.apply(first["patches"], cut_patches(inputs, patch_size))
        tokens = positions.apply(first["positions"], tokens)
        for weights in hidden["blocks"]:
            tokens = block.apply(weights, tokens)
        return _normalise(norm, hidden, "norm", tokens).mean(axis=1)

    hidden = {"blocks": [block] * num_blocks} | ({"norm": norm} if norm else {})
    parts = {"input": {"patches": patches, "positions": positions}, "hidden": hidden}
    return assemble(parts, features, layers.dense(width, num_outputs, is_readout=True))


def cut_patches(images: jax.Array, patch_size: int) -> jax.Array:
    """Cut images into squares, row by row.

    Args:
        images: (batch, height, width, channels).
        patch_size: Side of a square; it divides height and width.

    Returns:
        (batch, squares, patch_size²·channels), the values of a square in the order of the image.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    squares = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return squares.swapaxes(2, 3).reshape(batch, rows * columns, -1)


def _block(hyperparameters: Mapping[str, Any], layers: Layers) -> Layer:
    """Attention and a perceptron with one hidden layer, each a residual branch."""
    width = hyperparameters["width"]
    multiplier = layers.branch_multiplier(2 * hyperparameters["num_blocks"])
    make_norm, _ = _NORMS[hyperparameters["normalisation"]]
    norm = make_norm(width, layers.dtype) if make_norm else None
    branches = {
        "attention": _attention(hyperparameters, layers),
        "perceptron": _perceptron(hyperparameters, layers),
    }

    def apply(parameters: Parameters, tokens: jax.Array) -> jax.Array:
        for name, branch in branches.items():
            normalised = _normalise(norm, parameters, f"{name}_norm", tokens)
            tokens = tokens + multiplier * branch.apply(parameters[name], normalised)
        return tokens

    return combine({**branches, **{f"{name}_norm": norm for name in branches}}, apply)


def _attention(hyperparameters: Mapping[str, Any], layers: Layers) -> Layer:
    width, num_heads = hyperparameters["width"], hyperparameters["num_heads"]
    size = width // num_heads
    scale = hyperparameters["attention_scale"] or ("inverse" if layers.is_mup else "inverse_root")
    divisor = size ** _ATTENTION_EXPONENTS[scale] * hyperparameters["attention_temperature"]
    projections = {name: layers.dense(width, width) for name in ("query", "key", "value")}
    output = layers.dense(width, width)
    _, make_norm = _NORMS[hyperparameters["normalisation"]]
    norm = make_norm(size, layers.dtype) if make_norm else None

    def apply(parameters: Parameters, tokens: jax.Array) -> jax.Array:
        query, key, value = (
            layer.apply(parameters[name], tokens).reshape(*tokens.shape[:2], num_heads, size)
            for name, layer in projections.items()
        )
        query = _normalise(norm, parameters, "query_norm", query)
        key = _normalise(norm, parameters, "key_norm", key)
        logits = jnp.einsum("bihd,bjhd->bhij", query, key) / divisor
        mixed = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(logits), value)
        return output.apply(parameters["output"], mixed.reshape(tokens.shape))

    norms = {"query_norm": norm, "key_norm": norm}
    return combine({**projections, "output": output, **norms}, apply)


def _perceptron(hyperparameters: Mapping[str, Any], layers: Layers) -> Layer:
    width = hyperparameters["width"]
    hidden_width = hyperparameters["mlp_ratio"] * width
    activation = ACTIVATIONS[hyperparameters["activation"]]
    first, second = layers.dense(width, hidden_width), layers.dense(hidden_width, width)

    def apply(parameters: Parameters, tokens: jax.Array) -> jax.Array:
        hidden = activation(first.apply(parameters["first"], tokens))
        return second.apply(parameters["second"], hidden)

    return combine({"first": first, "second": second}, apply)


def _normalise(
    norm: Layer | None, parameters: Parameters, name: str, inputs: jax.Array
) -> jax.Array:
    return norm.apply(parameters[name], inputs) if norm else inputs


def _check(hyperparameters: Mapping[str, Any], input_shape: Sequence[int]) -> None:
    choices = {
        "normalisation": NORMALISATIONS,
        "attention_scale": (None, *ATTENTION_SCALES),
        "activation": tuple(ACTIVATIONS),
    }
    for name, allowed in choices.items():
        if hyperparameters[name] not in allowed:
            listed = ", ".join("null" if value is None else value for value in allowed)
            raise InputError(f"{name}: {hyperparameters[name]!r} is not allowed; allowed: {listed}")
    temperature = hyperparameters["attention_temperature"]
    if not temperature > 0:
        raise InputError(
            f"attention_temperature: {temperature!r} is not allowed; allowed: numbers above 0"
        )
    width, num_heads = hyperparameters["width"], hyperparameters["num_heads"]
    if width % num_heads:
        raise InputError(
            f"num_heads: {num_heads} does not divide the width, {width}; allowed: its divisors"
        )
    if len(input_shape) != 3:
        raise InputError(
            f"model vision_transformer: inputs of shape {tuple(input_shape)} are not images; "
            "allowed: (height, width, channels)"
        )
    patch_size = hyperparameters["patch_size"]
    if any(size % patch_size for size in input_shape[:2]):
        raise InputError(
            f"patch_size: {patch_size} does not divide the images' height and width, "
            f"{input_shape[0]} and {input_shape[1]}; allowed: their common divisors"
        )
