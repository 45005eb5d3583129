"""Random changes of images: against plain numpy and scipy, and what they depend on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from sgdphases.augmentation import (
    Augmentation,
    _rotated,
    augment,
    augment_steps,
    augmentation_key,
    read_augmentation,
)
from sgdphases.errors import InputError

BATCH, HEIGHT, WIDTH = 12, 7, 5


def make_images(batch=BATCH, channels=2, seed=0, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=(batch, HEIGHT, WIDTH, channels))
    return jnp.asarray(values, dtype)


def make_targets(batch=BATCH, dtype=np.float32):
    """Each sample its own class: from mixed targets the partners can be read off."""
    return jnp.eye(batch, dtype=dtype)


def steps_of(rule, num_steps, images, targets, data_seed=0):
    """(steps, batch, ...) of the same batch in each step."""
    copies = [jnp.stack([array] * num_steps) for array in (images, targets)]
    return [np.asarray(array) for array in augment_steps(rule, data_seed, 0, *copies)]


# --- the mapping -----------------------------------------------------------------------------


def test_reading():
    assert read_augmentation(None) == read_augmentation({}) == Augmentation()
    assert not Augmentation().changes_anything
    full = {"flip": True, "crop": 4, "mixup": 1, "rotation": 10.0}
    assert read_augmentation(full) == Augmentation(True, 4, 1.0, 10.0)
    for key in full:
        rule = read_augmentation({key: full[key]})
        assert rule.changes_anything
        assert rule.moves_pixels == (key != "mixup")


@pytest.mark.parametrize(
    ("mapping", "fragments"),
    [
        ({"flips": True}, ["'flips'", "flip, crop, mixup, rotation"]),
        ({"flip": 1}, ["augmentation.flip", "1", "true or false"]),
        ({"crop": -1}, ["augmentation.crop", "-1", ">= 0"]),
        ({"crop": 1.5}, ["augmentation.crop", "1.5"]),
        ({"crop": True}, ["augmentation.crop", "True"]),
        ({"mixup": -0.1}, ["augmentation.mixup", "-0.1", ">= 0"]),
        ({"mixup": float("nan")}, ["augmentation.mixup", "nan"]),
        ({"mixup": "1"}, ["augmentation.mixup", "'1'"]),
        ({"rotation": 181}, ["augmentation.rotation", "181", "from 0 to 180"]),
        ({"rotation": True}, ["augmentation.rotation", "True"]),
    ],
)
def test_faulty_mapping_is_named(mapping, fragments):
    with pytest.raises(InputError) as caught:
        read_augmentation(mapping)
    for fragment in fragments:
        assert fragment in str(caught.value)


# --- each change -----------------------------------------------------------------------------


def test_nothing_is_changed_by_default():
    images, targets = make_images(), make_targets()
    changed = augment(Augmentation(), augmentation_key(0), images, targets)
    np.testing.assert_array_equal(changed[0], images)
    np.testing.assert_array_equal(changed[1], targets)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [0, 2])
def test_flip_and_crop_give_windows_of_the_padded_image(flip, crop):
    images = make_images()
    num_steps = 40
    changed, targets = steps_of(
        Augmentation(flip=flip, crop=crop), num_steps, images, make_targets()
    )
    np.testing.assert_array_equal(targets, np.stack([make_targets()] * num_steps))
    padded = np.pad(images, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
    counts = {}
    for mirrored, row, column in itertools.product(
        range(1 + flip), range(2 * crop + 1), range(2 * crop + 1)
    ):
        source = padded[:, :, ::-1] if mirrored else padded
        window = source[:, row : row + HEIGHT, column : column + WIDTH]
        counts[mirrored, row, column] = int((changed == window).all((2, 3, 4)).sum())
    # Each image is exactly one of the windows, and none is preferred.
    assert sum(counts.values()) == num_steps * BATCH
    if len(counts) > 1:
        assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("quarters", [0, 1, 2, -1])
def test_quarter_turns(quarters):
    images = make_images()[:, :WIDTH]
    rows, columns = np.meshgrid(np.arange(WIDTH), np.arange(WIDTH), indexing="ij")
    angles = jnp.full((BATCH, 1, 1), quarters * np.pi / 2, jnp.float32)
    turned = _rotated(images, jnp.asarray(rows)[None], jnp.asarray(columns)[None], angles)
    np.testing.assert_allclose(turned, np.rot90(images, quarters, axes=(1, 2)), atol=1e-5)


def test_rotation_against_scipy():
    with jax.enable_x64(True):
        images = make_images(dtype=np.float64)
        degrees = np.linspace(-170, 175, BATCH)
        rows, columns = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
        angles = jnp.asarray(np.deg2rad(degrees))[:, None, None]
        turned = _rotated(images, jnp.asarray(rows)[None], jnp.asarray(columns)[None], angles)
    for image, angle, result in zip(images, degrees, turned, strict=True):
        expected = scipy.ndimage.rotate(
            image, angle, axes=(1, 0), reshape=False, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(result, expected, atol=1e-12)


def test_rotation_angles_fill_their_range():
    # A ramp along each axis: what is interpolated is the coordinate itself.
    most = 30.0
    size = 9
    centred = np.arange(size) - (size - 1) / 2
    rows, columns = np.meshgrid(centred, centred, indexing="ij")
    images = jnp.asarray(np.stack([np.stack([rows, columns], -1)] * 50), jnp.float32)
    turned, _ = steps_of(Augmentation(rotation=most), 10, images, make_targets(50))
    turned = turned.reshape(-1, size, size, 2)
    middle = size // 2
    up, right = turned[:, middle - 1, middle], turned[:, middle, middle + 1]
    np.testing.assert_allclose(turned[:, middle, middle], 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(up, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((up * right).sum(1), 0, atol=1e-5)
    angles = np.rad2deg(np.arctan2(right[:, 0], right[:, 1]))
    uniform = scipy.stats.uniform(-most, 2 * most)
    assert scipy.stats.kstest(angles, uniform.cdf).pvalue > 1e-3


def test_crop_moves_the_rotated_image():
    """A window that was moved is the rotated image, moved, and zero outside."""
    images = make_images(batch=60)
    both, alone = Augmentation(crop=2, rotation=40.0), Augmentation(rotation=40.0)
    # Each change has draws of its own: the angles are the same with and without the crop.
    (cropped,), (rotated,) = (steps_of(r, 1, images, make_targets(60))[0] for r in (both, alone))
    padded = np.pad(rotated, ((0, 0), (2, 2), (2, 2), (0, 0)))
    distance = np.stack(
        [
            np.abs(cropped - padded[:, row : row + HEIGHT, column : column + WIDTH]).max((1, 2, 3))
            for row, column in itertools.product(range(5), range(5))
        ]
    )
    np.testing.assert_allclose(distance.min(0), 0, atol=1e-5)
    assert len(set(distance.argmin(0).tolist())) > 10


@pytest.mark.parametrize(("alpha", "shape"), [(0.3, (BATCH, 3)), (4.0, (BATCH, 4, 3, 2))])
def test_mixup(alpha, shape):
    num_steps = 300
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    mixed, targets = steps_of(Augmentation(mixup=alpha), num_steps, images, make_targets())
    weights, orders = [], []
    for inputs, soft in zip(mixed, targets, strict=True):
        np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
        own = np.diag(soft)
        others = soft - np.diag(own)
        order = np.where(others.max(1) > 0, others.argmax(1), np.arange(BATCH))
        moved = order != np.arange(BATCH)
        if not moved.any() or not 1e-3 < (weight := own[moved][0]) < 1 - 1e-3:
            continue
        # One weight for the whole batch, and partners that are a permutation.
        np.testing.assert_allclose(own[moved], weight, atol=1e-6)
        assert sorted(order) == list(range(BATCH))
        expected = weight * np.asarray(images) + (1 - weight) * np.asarray(images)[order]
        np.testing.assert_allclose(inputs, expected, atol=1e-5)
        weights.append(weight)
        orders.append(tuple(order))
    assert len(weights) > 0.9 * num_steps * scipy.stats.beta(alpha, alpha).cdf(1 - 2e-3)
    assert len(set(orders)) > 0.95 * len(orders)
    inner = scipy.stats.beta(alpha, alpha)
    low, high = inner.cdf(1e-3), inner.cdf(1 - 1e-3)
    assert scipy.stats.kstest(weights, lambda x: (inner.cdf(x) - low) / (high - low)).pvalue > 1e-3


# --- what the draws depend on ----------------------------------------------------------------

ALL = Augmentation(flip=True, crop=2, mixup=1.0, rotation=15.0)


def test_changes_depend_on_the_step_however_the_steps_are_cut():
    generator = np.random.default_rng(5)
    images = generator.normal(size=(6, BATCH, HEIGHT, WIDTH, 2)).astype(np.float32)
    targets = np.stack([make_targets()] * 6)

    def changed(first, steps):
        arrays = (jnp.asarray(array[steps]) for array in (images, targets))
        return [np.asarray(array) for array in augment_steps(ALL, 7, first, *arrays)]

    early, late = changed(10, slice(0, 4)), changed(12, slice(2, 6))
    for one, other in zip(early, late, strict=True):
        np.testing.assert_array_equal(one[2:], other[:2])
    step = jax.jit(augment, static_argnums=0)
    for index in range(4):
        key = jax.random.fold_in(augmentation_key(7), 10 + index)
        single = step(ALL, key, jnp.asarray(images[index]), jnp.asarray(targets[index]))
        for one, block in zip(single, early, strict=True):
            np.testing.assert_allclose(one, block[index], atol=1e-5)


def test_precisions_see_the_same_changes():
    single = steps_of(ALL, 4, make_images(), make_targets())
    with jax.enable_x64(True):
        images, targets = make_images(dtype=np.float64), make_targets(dtype=np.float64)
        double = steps_of(ALL, 4, images, targets)
    for narrow, wide in zip(single, double, strict=True):
        assert (narrow.dtype, wide.dtype) == (np.float32, np.float64)
        np.testing.assert_allclose(narrow, wide, atol=2e-5)


def test_seeds_and_steps_differ():
    images, targets = make_images(), make_targets()
    results = [
        steps_of(ALL, 4, images, targets, data_seed=seed)[0] for seed in (0, 1, 2**32, 2**70)
    ]
    flat = np.stack(results).reshape(16, -1)
    assert len(np.unique(flat, axis=0)) == 16
