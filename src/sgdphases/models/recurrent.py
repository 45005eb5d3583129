"""Recurrent networks."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.errors import InputError
from sgdphases.models.network import Layers, Network, Parameters, assemble
from sgdphases.models.tokens import embedding

PADDING = 0  # the token that fills sequences up to a common length


def gru(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int, layers: Layers
) -> Network:
    r"""A gated recurrent unit, whose last state the readout reads.

    .. math::
        r &= \sigma(W_r x + U_r h), \qquad z = \sigma(W_z x + U_z h) \\
        n &= \tanh(W_n x + r \odot (U_n h)) \\
        h &\leftarrow (1 - z) \odot n + z \odot h

    from h = 0, with a bias to each product. The three matrices that act on the same vector stand
    beside each other in the order r, z, n.

    A sequence of tokens is looked up in a table of `vocabulary_size` vectors of size `width`. Token
    0 is padding: the state does not move on it, before, after or within the text. The last token of
    the vocabulary stands for every higher one as well, so that tokens in the order of their
    frequency may be cut at any size. In a sequence of vectors each moves the state, in an image
    each row.

    Args:
        hyperparameters: `width`, the size of the state; `vocabulary_size`, for tokens.
        input_shape: (length,) of a sequence of tokens, given as integers or as floats of their
            value, (length, channels) of a sequence of vectors, or (height, width, channels) of an
            image, a sequence of its rows.
        num_outputs: Number of outputs.
        layers: The maker of layers.

    Returns:
        The network; its features are the last state, (batch, width).

    Raises:
        InputError: Inputs of another shape, or a vocabulary without words.

    Reference:
        Cho et al. (2014), as cuDNN and PyTorch compute it: r acts after U_n. Temperature paper,
        Section 3.3.3; catalogue Part 2, `tmp_gru`.
    """
    width = hyperparameters["width"]
    state = layers.dense(width, 3 * width)
    driven, drive = _drive(hyperparameters, input_shape, layers)

    def features(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        drives, moves = drive(parameters, inputs)

        def step(hidden: jax.Array, at_step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            drive_now, moves_now = at_step
            recurrent = state.apply(parameters["hidden"]["state"], hidden)
            x_reset, x_update, x_candidate = jnp.split(drive_now, 3, axis=-1)
            h_reset, h_update, h_candidate = jnp.split(recurrent, 3, axis=-1)
            reset = jax.nn.sigmoid(x_reset + h_reset)
            update = jax.nn.sigmoid(x_update + h_update)
            candidate = jnp.tanh(x_candidate + reset * h_candidate)
            moved = (1 - update) * candidate + update * hidden
            return jnp.where(moves_now[:, None], moved, hidden), None

        start = jnp.zeros((inputs.shape[0], width), drives.dtype)
        last, _ = jax.lax.scan(step, start, (drives.swapaxes(0, 1), moves.T))
        return last

    parts = {**driven, "hidden": {**driven["hidden"], "state": state}}
    return assemble(parts, features, layers.dense(width, num_outputs, is_readout=True))


def _drive(
    hyperparameters: Mapping[str, Any], input_shape: Sequence[int], layers: Layers
) -> tuple[dict[str, Any], Callable[[Parameters, jax.Array], tuple[jax.Array, jax.Array]]]:
    """How inputs act on the gates.

    Returns:
        The layers under `input` and `hidden`; and a function from all parameters and inputs to W x
        of the three gates (batch, length, 3·width) and to where the state moves (batch, length).
    """
    width = hyperparameters["width"]
    if len(input_shape) in (2, 3):
        # These weights see the inputs themselves, so they do not grow with the width on their side.
        gates = layers.dense(math.prod(input_shape[1:]), 3 * width)

        def from_vectors(parameters: Parameters, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            vectors = inputs.reshape(*inputs.shape[:2], -1)
            drives = gates.apply(parameters["input"]["gates"], vectors)
            return drives, jnp.ones(vectors.shape[:2], bool)

        return {"input": {"gates": gates}, "hidden": {}}, from_vectors

    if len(input_shape) != 1:
        raise InputError(
            f"model gru: inputs of shape {tuple(input_shape)} are not sequences; "
            "allowed: (length,) of tokens, (length, channels) of vectors, (height, width, "
            "channels) of images, row by row"
        )
    vocabulary_size = hyperparameters["vocabulary_size"]
    if vocabulary_size < 2:
        raise InputError(
            f"vocabulary_size: {vocabulary_size} is not allowed; allowed: 2 (padding and one word) "
            "and above"
        )
    table, gates = embedding(layers, vocabulary_size, width), layers.dense(width, 3 * width)

    def from_tokens(parameters: Parameters, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = jnp.clip(inputs.astype(jnp.int32), 0, vocabulary_size - 1)
        vectors = table.apply(parameters["input"]["embedding"], tokens)
        return gates.apply(parameters["hidden"]["gates"], vectors), tokens != PADDING

    return {"input": {"embedding": table}, "hidden": {"gates": gates}}, from_tokens
