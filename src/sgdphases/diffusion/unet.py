"""A small U-Net that reads a noisy image, the step and the class."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sgdphases.errors import InputError
from sgdphases.models.images import starting_at_zero
from sgdphases.models.network import Layer, Layers, Parameters, standard_normal

_LARGEST_GROUPS = 8
# The slowest of the sines that tell the step turns this many times slower than the fastest.
_PERIODS = 10_000.0
# Size of the embedding of step and class, in widths.
_EMBEDDING_WIDTHS = 4


class Denoiser(NamedTuple):
    """A network as pure functions.

    Attributes:
        init: From a random key to parameters.
        apply: From parameters, images (batch, height, width, channels), steps (batch,) and int
            classes (batch,) to a prediction of the images' shape. The class `num_classes` stands
            for none.
    """

    init: Callable[[jax.Array], Parameters]
    apply: Callable[[Parameters, jax.Array, jax.Array, jax.Array], jax.Array]


def build_unet(
    settings: Mapping[str, Any],
    image_shape: Sequence[int],
    num_classes: int,
) -> Denoiser:
    """Build the network.

    The image is cut into patches, whose pixels become channels. On the way down each level has
    residual blocks and halves the resolution; on the way up it doubles it, joins what the level had
    on the way down, and has as many blocks. Each block is group norm - SiLU - 3x3 convolution -
    group norm, scaled and shifted by the embedding of step and class - SiLU - 3x3 convolution. At
    the lowest resolution stand a block and two dense layers through which the whole image passes as
    one vector; they take the place of attention. The last layer of each, and that of the network,
    starts at zero.

    Args:
        settings: `width` (channels of the first level), `channel_multipliers` (of each level, in
            widths), `blocks_per_level`, `vector_width`, `patch_size`.
        image_shape: (height, width, channels).
        num_classes: Number of classes.

    Returns:
        The network.

    Raises:
        InputError: The images cannot be cut into patches and halved at each level.

    Reference:
        Ho et al. 2020, appendix B, made smaller; scale and shift as in Nichol and Dhariwal 2021;
        the vector as in Pearce 2022.
    """
    patch, width = settings["patch_size"], settings["width"]
    sizes = [width * multiplier for multiplier in settings["channel_multipliers"]]
    num_blocks = settings["blocks_per_level"]
    unit = patch * 2 ** (len(sizes) - 1)
    if any(side % unit for side in image_shape[:2]):
        raise InputError(
            f"network: images of {image_shape[0]}x{image_shape[1]} pixels cannot be cut into "
            f"patches of {patch} and halved {len(sizes) - 1} times; allowed: sides that are "
            f"multiples of {unit} (patch_size, channel_multipliers)"
        )
    # Each step is a program of its own: there, on CPU too, XLA's convolution is the fastest.
    layers = Layers("standard", 1.0, 0.0, width, jnp.float32, "native")
    num_features = _EMBEDDING_WIDTHS * width
    channels = image_shape[2] * patch**2
    flat_size = sizes[-1] * math.prod(side // unit for side in image_shape[:2])

    def blocks(size: int) -> list[dict[str, Layer]]:
        return [_block_layers(layers, size, num_features) for _ in range(num_blocks)]

    parts: dict[str, Any] = {
        "step": [layers.dense(width, num_features), layers.dense(num_features, num_features)],
        "class": _table(num_classes + 1, num_features),
        "input": layers.convolution(3, channels, sizes[0]),
        "down": [blocks(size) for size in sizes],
        "halve": [layers.dense(4 * a, b) for a, b in itertools.pairwise(sizes)],
        "middle": _block_layers(layers, sizes[-1], num_features),
        "vector": _vector_layers(layers, flat_size, settings["vector_width"], num_features),
        "join": [layers.dense(2 * size, size) for size in sizes],
        "up": [blocks(size) for size in sizes],
        "double": [layers.dense(b, 4 * a) for a, b in itertools.pairwise(sizes)],
        "norm": _scale_and_offset(sizes[0]),
        "output": starting_at_zero(layers.convolution(3, sizes[0], channels)),
    }

    def init(key: jax.Array) -> Parameters:
        flat, structure = jax.tree.flatten(parts, is_leaf=lambda x: isinstance(x, Layer))
        keys = jax.random.split(key, len(flat))
        return jax.tree.unflatten(
            structure, [layer.init(k) for layer, k in zip(flat, keys, strict=True)]
        )

    def apply(
        parameters: Parameters, noisy: jax.Array, steps: jax.Array, classes: jax.Array
    ) -> jax.Array:
        def through(name: str, inputs: jax.Array) -> jax.Array:
            result: jax.Array = parts[name].apply(parameters[name], inputs)
            return result

        def through_level(name: str, level: int, inputs: jax.Array) -> jax.Array:
            result: jax.Array = parts[name][level].apply(parameters[name][level], inputs)
            return result

        def through_blocks(name: str, level: int, hidden: jax.Array) -> jax.Array:
            for block, weights in zip(parts[name][level], parameters[name][level], strict=True):
                hidden = _apply_block(block, weights, hidden, embedding)
            return hidden

        embedding = through_level("step", 0, _sines(steps, width))
        embedding = through_level("step", 1, jax.nn.silu(embedding)) + through("class", classes)
        embedding = jax.nn.silu(embedding)
        hidden = through("input", to_patches(noisy, patch))
        kept = []
        for level in range(len(sizes)):
            if level:
                hidden = through_level("halve", level - 1, to_patches(hidden, 2))
            hidden = through_blocks("down", level, hidden)
            kept.append(hidden)
        hidden = _apply_block(parts["middle"], parameters["middle"], hidden, embedding)
        hidden = _apply_vector(parts["vector"], parameters["vector"], hidden, embedding)
        for level in reversed(range(len(sizes))):
            joined = jnp.concatenate([hidden, kept[level]], axis=-1)
            hidden = through_blocks("up", level, through_level("join", level, joined))
            if level:
                hidden = from_patches(through_level("double", level - 1, hidden), 2)
        hidden = jax.nn.silu(through("norm", _group_norm(hidden)))
        return from_patches(through("output", hidden), patch)

    return Denoiser(init, apply)


def _block_layers(layers: Layers, size: int, num_features: int) -> dict[str, Layer]:
    return {
        "norm": _scale_and_offset(size),
        "first": layers.convolution(3, size, size),
        "modulation": layers.dense(num_features, 2 * size),
        "second": starting_at_zero(layers.convolution(3, size, size)),
    }


def _apply_block(
    block: Mapping[str, Layer], weights: Parameters, inputs: jax.Array, embedding: jax.Array
) -> jax.Array:
    hidden = jax.nn.silu(block["norm"].apply(weights["norm"], _group_norm(inputs)))
    hidden = block["first"].apply(weights["first"], hidden)
    modulation = block["modulation"].apply(weights["modulation"], embedding)[:, None, None]
    scale, offset = jnp.split(modulation, 2, axis=-1)
    hidden = jax.nn.silu(_group_norm(hidden) * (1 + scale) + offset)
    return inputs + block["second"].apply(weights["second"], hidden)


def _vector_layers(
    layers: Layers, flat_size: int, size: int, num_features: int
) -> dict[str, Layer]:
    return {
        "first": layers.dense(flat_size, size),
        "modulation": layers.dense(num_features, 2 * size),
        "second": layers.dense(size, size),
        "last": starting_at_zero(layers.dense(size, flat_size)),
    }


def _apply_vector(
    parts: Mapping[str, Layer], weights: Parameters, inputs: jax.Array, embedding: jax.Array
) -> jax.Array:
    flat = jax.nn.silu(_group_norm(inputs)).reshape(len(inputs), -1)
    vector = parts["first"].apply(weights["first"], flat)
    modulation = parts["modulation"].apply(weights["modulation"], embedding)
    scale, offset = jnp.split(modulation, 2, axis=-1)
    vector = jax.nn.silu(vector * (1 + scale) + offset)
    vector = jax.nn.silu(parts["second"].apply(weights["second"], vector))
    return inputs + parts["last"].apply(weights["last"], vector).reshape(inputs.shape)


def to_patches(images: jax.Array, size: int) -> jax.Array:
    """Squares of pixels as channels: (batch, height/size, width/size, size²·channels)."""
    if size == 1:
        return images
    batch, height, width, channels = images.shape
    cut = images.reshape(batch, height // size, size, width // size, size, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, -1)


def from_patches(patches: jax.Array, size: int) -> jax.Array:
    """The inverse of `to_patches`."""
    if size == 1:
        return patches
    batch, rows, columns, _ = patches.shape
    cut = patches.reshape(batch, rows, columns, size, size, -1)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * size, columns * size, -1)


def _group_norm(hidden: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over positions and the channels of each group, for each sample."""
    batch, rows, columns, channels = hidden.shape
    num_groups = math.gcd(_LARGEST_GROUPS, channels)
    size = rows * columns * channels // num_groups

    # Sums over positions first: a mean over axes of a reshaped image is slow on CPU.
    def over_group(values: jax.Array) -> jax.Array:
        sums = values.sum((1, 2)).reshape(batch, num_groups, -1).sum(-1, keepdims=True) / size
        shape = (batch, num_groups, channels // num_groups)
        return jnp.broadcast_to(sums, shape).reshape(batch, 1, 1, channels)

    centred = hidden - over_group(hidden)
    return centred * jax.lax.rsqrt(over_group(jnp.square(centred)) + 1e-5)


def _scale_and_offset(size: int) -> Layer:
    def init(key: jax.Array) -> Parameters:
        del key  # nothing is random
        return {"scale": jnp.ones(size), "offset": jnp.zeros(size)}

    def apply(layer: Parameters, inputs: jax.Array) -> jax.Array:
        scaled: jax.Array = layer["scale"] * inputs + layer["offset"]
        return scaled

    return Layer(init, apply)


def _table(num_rows: int, size: int) -> Layer:
    def init(key: jax.Array) -> Parameters:
        return {"weight": standard_normal(key, (num_rows, size), jnp.float32)}

    def apply(layer: Parameters, rows: jax.Array) -> jax.Array:
        found: jax.Array = layer["weight"][rows]
        return found

    return Layer(init, apply)


def _sines(steps: jax.Array, size: int) -> jax.Array:
    """Sines and cosines of the step at geometrically spaced frequencies, (batch, size)."""
    count = size // 2
    frequencies = _PERIODS ** (-jnp.arange(count) / count)
    angles = steps[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
