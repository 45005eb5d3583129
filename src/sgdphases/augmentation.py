"""Random changes of the training images, drawn on the device from the data seed and the step alone.

All runs of a program see the same changed batches, however the steps are cut into segments.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgdphases.errors import InputError

# Keeps these draws apart from those of the order of the samples and of the curvature's batches.
_STREAM = (2, 1)


@dataclass(frozen=True)
class Augmentation:
    """Which changes are drawn; the default changes nothing. Hashable: static under jit.

    The changes come in this order: rotation, flip, crop, mixup. What lies beyond an image's edge
    counts as zero, which in normalised inputs is the mean of the training set, and black where the
    inputs are only scaled to [0, 1].

    Attributes:
        flip: Mirror each image left to right with probability 1/2.
        crop: Pixels of padding on each side; a window of the image's size is cut out at random.
        mixup: Parameter of the Beta distribution from which each batch's mixing weight is drawn; 0
            mixes nothing.
        rotation: Largest angle in degrees by which each image is rotated, either way.
    """

    flip: bool = False
    crop: int = 0
    mixup: float = 0.0
    rotation: float = 0.0

    @property
    def changes_anything(self) -> bool:
        """Whether any change is drawn at all."""
        return self != Augmentation()

    @property
    def moves_pixels(self) -> bool:
        """Whether the inputs must be images (batch, height, width, channels)."""
        return self.flip or self.crop > 0 or self.rotation > 0


def read_augmentation(mapping: Mapping[str, Any] | None) -> Augmentation:
    """The augmentation that an experiment asks for.

    Args:
        mapping: Any of `flip` (true or false), `crop` (pixels), `mixup` (number), `rotation`
            (degrees, at most 180); None is the same as {}.

    Returns:
        The augmentation.

    Raises:
        InputError: A key is unknown, or a value is not allowed.
    """
    mapping = mapping or {}
    names = [field.name for field in fields(Augmentation)]
    for name in mapping:
        if name not in names:
            raise InputError(f"augmentation: {name!r} is not allowed; allowed: {', '.join(names)}")
    flip, crop = mapping.get("flip", False), mapping.get("crop", 0)
    if not isinstance(flip, bool):
        raise InputError(f"augmentation.flip: {flip!r} is not allowed; allowed: true or false")
    if not isinstance(crop, int) or isinstance(crop, bool) or crop < 0:
        raise InputError(f"augmentation.crop: {crop!r} is not allowed; allowed: pixels, >= 0")
    numbers = {}
    for name, most in (("mixup", math.inf), ("rotation", 180.0)):
        value = mapping.get(name, 0.0)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and 0 <= value <= most):
            limit = f"from 0 to {most:g}" if math.isfinite(most) else ">= 0"
            raise InputError(
                f"augmentation.{name}: {value!r} is not allowed; allowed: a number {limit}"
            )
        numbers[name] = float(value)
    return Augmentation(flip=flip, crop=crop, **numbers)


def augmentation_key(data_seed: int) -> jax.Array:
    """The random key of an experiment's augmentation; folding in a step gives that step's.

    Args:
        data_seed: The experiment's data seed, of any size.

    Returns:
        A key that depends on neither the precision nor JAX's default generator.
    """
    return random_key(data_seed, *_STREAM)


def random_key(*entropy: int) -> jax.Array:
    """A random key of integers of any size, the same whatever JAX's default generator is."""
    words = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    key: jax.Array = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    return key


def augment(
    rule: Augmentation, key: jax.Array, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The batch of one step, changed at random.

    All draws are made in float32, so that every precision sees the same changes.

    Args:
        rule: The changes.
        key: The step's key.
        inputs: (batch, height, width, channels), normalised; where the rule only mixes,
            (batch, ...).
        targets: (batch, k).

    Returns:
        Inputs and targets of the same shapes and types.
    """
    pixels_key, mixup_key = jax.random.split(key)
    if rule.moves_pixels:
        inputs = _move_pixels(rule, pixels_key, inputs)
    if rule.mixup > 0:
        inputs, targets = _mix(rule, mixup_key, inputs, targets)
    return inputs, targets


def augment_steps(
    rule: Augmentation,
    data_seed: int,
    first_step: int,
    inputs: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The batches of consecutive steps, each changed as `augment` changes it.

    Not to be called under jit: compiled as one program with mixup, the pixels of a mixed image
    would be moved anew for each of its two parts, which on CPU takes up to four times as long.

    Args:
        rule: The changes.
        data_seed: The experiment's data seed.
        first_step: Step of the first batch.
        inputs: (steps, batch, height, width, channels); (steps, batch, ...) where the rule only
            mixes. The array is used up.
        targets: (steps, batch, k).

    Returns:
        Inputs and targets of the same shapes and types.
    """
    keys = _step_keys(augmentation_key(data_seed), np.uint32(first_step), len(inputs))
    if rule.moves_pixels:
        inputs = _move_pixels_of_steps(rule, keys[:, 0], inputs)
    if rule.mixup > 0:
        inputs, targets = _mix_steps(rule, keys[:, 1], inputs, targets)
    return inputs, targets


@partial(jax.jit, static_argnums=2)
def _step_keys(key: jax.Array, first_step: jax.Array, num_steps: int) -> jax.Array:
    """(steps, 2) keys: what `augment` splits each step's key into."""
    steps = first_step + jnp.arange(num_steps, dtype=jnp.uint32)
    return jax.vmap(lambda step: jax.random.split(jax.random.fold_in(key, step)))(steps)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _move_pixels_of_steps(rule: Augmentation, keys: jax.Array, inputs: jax.Array) -> jax.Array:
    moved: jax.Array = jax.vmap(partial(_move_pixels, rule))(keys, inputs)
    return moved


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _mix_steps(
    rule: Augmentation, keys: jax.Array, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    mixed: tuple[jax.Array, jax.Array] = jax.vmap(partial(_mix, rule))(keys, inputs, targets)
    return mixed


def _move_pixels(rule: Augmentation, key: jax.Array, images: jax.Array) -> jax.Array:
    """Rotation, flip and crop in one pass: where in its source each pixel comes from.

    One gather with computed indices: on CPU as fast as a slice per image, and four times as fast as
    products with selection matrices.
    """
    batch, height, width, _ = images.shape
    # One draw for all: each would be compiled separately.
    draws = jax.random.uniform(key, (4, batch, 1), jnp.float32)
    places = 2 * rule.crop + 1
    offsets = jnp.floor(places * draws[:2]).astype(jnp.int32) - rule.crop
    rows = jnp.arange(height, dtype=jnp.int32) + offsets[0]
    columns = jnp.arange(width, dtype=jnp.int32) + offsets[1]
    if rule.flip:
        columns = jnp.where(draws[2] < 0.5, width - 1 - columns, columns)
    rows, columns = rows[:, :, None], columns[:, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if rule.rotation > 0:
        most = math.radians(rule.rotation)
        angles = most * (2 * draws[3][..., None].astype(images.dtype) - 1)
        moved = _rotated(images, rows, columns, angles)
    else:
        samples = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
        # Clipped by hand: the selection below is cheaper than a gather's own.
        inner_rows, inner_columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
        moved = images.at[samples, inner_rows, inner_columns].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], moved, 0)


def _rotated(
    images: jax.Array, rows: jax.Array, columns: jax.Array, angles: jax.Array
) -> jax.Array:
    """Pixels (rows, columns) of the images turned anticlockwise about their centres, bilinearly."""
    _, height, width, _ = images.shape
    down, right = rows - (height - 1) / 2, columns - (width - 1) / 2
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    source_rows = cosine * down + sine * right + (height - 1) / 2
    source_columns = cosine * right - sine * down + (width - 1) / 2
    interpolate = partial(jax.scipy.ndimage.map_coordinates, order=1, mode="constant", cval=0.0)
    over_channels = jax.vmap(interpolate, in_axes=(-1, None), out_axes=-1)
    moved: jax.Array = jax.vmap(over_channels)(images, [source_rows, source_columns])
    return moved


def _mix(
    rule: Augmentation, key: jax.Array, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Mixup with one weight for the whole batch.

    .. math:: \tilde x_i = w x_i + (1 - w) x_{\pi(i)}, \quad
        \tilde y_i = w y_i + (1 - w) y_{\pi(i)}, \quad w \sim \mathrm{Beta}(\alpha, \alpha)

    Reference:
        Zhang, Cisse, Dauphin, Lopez-Paz: mixup: beyond empirical risk minimization, 2018.
    """
    weight_key, order_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, rule.mixup, rule.mixup, dtype=jnp.float32)
    order = jax.random.permutation(order_key, len(inputs))

    def mix(values: jax.Array) -> jax.Array:
        own = weight.astype(values.dtype)
        return own * values + (1 - own) * values[order]

    return mix(inputs), mix(targets)
