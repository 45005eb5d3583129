"""Batches: their order, values, and the thread that reads them ahead."""

import threading
import time
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases import batches
from sgdphases.augmentation import Augmentation, augment_steps
from sgdphases.batches import batch_indices, open_batches
from sgdphases.datasets.loading import Dataset, Normalisation
from sgdphases.devices import replicated_sharding, run_mesh
from sgdphases.errors import InputError

NUM_TRAIN, CLASSES, SHAPE = 50, 3, (4, 4, 3)
SEED = 3


def make_pixels(num_train=NUM_TRAIN, shape=SHAPE):
    """Images of bytes, of which the first two values count the samples."""
    pixels = np.random.default_rng(0).integers(0, 256, (num_train, *shape), dtype=np.uint8)
    flat = pixels.reshape(num_train, -1)
    flat[:, 0], flat[:, 1] = np.arange(num_train) % 256, np.arange(num_train) // 256
    return pixels


def make_raw(folder, num_train=NUM_TRAIN, shape=SHAPE, stored=np.uint8):
    """A dataset in memory maps; what samples it holds can be told from their values."""
    np.save(folder / "inputs.npy", make_pixels(num_train, shape).astype(stored))
    inputs = np.load(folder / "inputs.npy", mmap_mode="r")
    labels = (np.arange(num_train) % CLASSES).astype(np.int32)
    return Dataset(
        name="raw",
        manifest={},
        train_inputs=inputs,
        train_targets=np.zeros((0, CLASSES)),
        test_inputs=inputs[:7],
        test_targets=np.zeros((0, CLASSES)),
        train_labels=labels,
        test_labels=labels[:7],
        normalisation=Normalisation(
            scale=np.array(1 / 255),
            mean=np.array([0.4914, 0.4822, 0.4465])[-shape[-1] :],
            std=np.array([0.247, 0.243, 0.2616])[-shape[-1] :],
        ),
    )


def normalised(dataset, dtype):
    """The same dataset as floats in memory."""
    train, test = (dataset.evaluation_set(split, None, dtype) for split in ("train", "test"))
    return Dataset("normalised", {}, *train, *test, dataset.train_labels, dataset.test_labels)


@pytest.fixture
def raw(tmp_path):
    return make_raw(tmp_path)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert reading_threads() == []


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def collect(source, num_steps, lengths=(10**9,), first_step=0):
    """(steps, batch, ...) inputs and targets, asked for in segments of cycling lengths."""
    inputs, targets, step, turn = [], [], first_step, 0
    while step < first_step + num_steps:
        wanted = min(lengths[turn % len(lengths)], first_step + num_steps - step)
        segment = source.segment(step, wanted)
        assert 1 <= segment.num_steps <= wanted
        rows = slice(segment.first_row, segment.first_row + segment.num_steps)
        inputs.append(np.asarray(segment.inputs[rows]))
        targets.append(np.asarray(segment.targets[rows]))
        step, turn = step + segment.num_steps, turn + 1
    return np.concatenate(inputs), np.concatenate(targets)


def step_bytes(batch_size, dtype=np.float32):
    return batch_size * (int(np.prod(SHAPE)) + CLASSES) * np.dtype(dtype).itemsize


# --- the order -------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_train", "batch_size"), [(50, 8), (48, 8), (7, 7), (5, 1)])
def test_order_is_a_permutation_of_each_epoch(num_train, batch_size):
    per_epoch = num_train // batch_size
    rows = batch_indices(num_train, batch_size, 0, 4 * per_epoch, SEED)
    assert rows.dtype == np.int32
    for epoch in range(4):
        order = np.random.default_rng([SEED, 1, epoch]).permutation(num_train)
        expected = order[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        np.testing.assert_array_equal(rows[epoch * per_epoch : (epoch + 1) * per_epoch], expected)
    for first, count in ((0, 1), (3, 2 * per_epoch), (4 * per_epoch - 1, 1)):
        part = batch_indices(num_train, batch_size, first, count, SEED)
        np.testing.assert_array_equal(part[: len(rows) - first], rows[first : first + count])


def test_changing_the_indices_does_not_change_the_next_ones():
    first = batch_indices(12, 4, 0, 3, SEED)
    kept = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(batch_indices(12, 4, 0, 3, SEED), kept)


# --- the values ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["device", "streamed"])
def test_values_are_those_that_numpy_computes(raw, kind, dtype):
    device_bytes = 10**9 if kind == "device" else 0
    expected, expected_targets = raw.evaluation_set("train", None, dtype)
    indices = batch_indices(NUM_TRAIN, 8, 0, 20, SEED)
    for dataset in (raw, normalised(raw, dtype)):
        with open_batches(dataset, 8, SEED, dtype, device_bytes=device_bytes) as source:
            assert source.kind == kind
            inputs, targets = collect(source, 20)
        assert inputs.dtype == targets.dtype == dtype
        # To the last bit: neither the way through raw bytes nor the device shows.
        np.testing.assert_array_equal(inputs, expected[indices])
        np.testing.assert_array_equal(targets, expected_targets[indices])


@pytest.mark.parametrize("stored", [np.float32, np.float64, np.int64, np.int16])
@pytest.mark.parametrize("device_bytes", [0, 10**9])
def test_stored_types(tmp_path, stored, device_bytes):
    dataset = make_raw(tmp_path, stored=stored)
    expected, _ = dataset.evaluation_set("train", None, np.float32)
    with open_batches(dataset, 8, SEED, np.float32, device_bytes=device_bytes) as source:
        inputs, _ = collect(source, 7)
    np.testing.assert_array_equal(inputs, expected[batch_indices(NUM_TRAIN, 8, 0, 7, SEED)])


@pytest.mark.parametrize("device_bytes", [0, 10**9])
def test_regression_targets(raw, device_bytes):
    targets = np.random.default_rng(1).normal(size=(NUM_TRAIN, 2))
    dataset = replace(raw, train_targets=targets, train_labels=None)
    with open_batches(dataset, 8, SEED, np.float32, device_bytes=device_bytes) as source:
        _, found = collect(source, 7)
    indices = batch_indices(NUM_TRAIN, 8, 0, 7, SEED)
    np.testing.assert_array_equal(found, targets.astype(np.float32)[indices])


def test_reduced_precision_is_rounded_at_the_end(raw):
    expected, _ = raw.evaluation_set("train", None, np.float32)
    with open_batches(raw, 8, SEED, jnp.bfloat16) as source:
        inputs, targets = collect(source, 6)
    assert inputs.dtype == targets.dtype == jnp.bfloat16
    indices = batch_indices(NUM_TRAIN, 8, 0, 6, SEED)
    np.testing.assert_array_equal(inputs, expected[indices].astype(jnp.bfloat16))


@pytest.mark.parametrize("rule", [Augmentation(flip=True, crop=1), Augmentation(mixup=0.5)])
def test_augmented_batches_do_not_depend_on_the_way(raw, rule):
    def batches_of(device_bytes, rows, **options):
        with open_batches(
            raw,
            8,
            SEED,
            np.float32,
            augmentation=rule,
            device_bytes=device_bytes,
            block_bytes=rows * step_bytes(8),
        ) as source:
            return collect(source, 12, **options)

    inputs, targets = batches_of(10**9, 6)
    for other in (batches_of(0, 6, lengths=(1, 4)), batches_of(10**9, 4), batches_of(0, 4)):
        np.testing.assert_array_equal(other[0], inputs)
        np.testing.assert_array_equal(other[1], targets)
    indices = batch_indices(NUM_TRAIN, 8, 0, 6, SEED)
    plain = (jnp.asarray(a[indices]) for a in raw.evaluation_set("train", None, np.float32))
    for expected, found in zip(
        augment_steps(rule, SEED, 0, *plain), (inputs, targets), strict=True
    ):
        np.testing.assert_array_equal(found[:6], expected)
    assert not np.array_equal(inputs[:6], inputs[6:])


# --- segments --------------------------------------------------------------------------------


@pytest.mark.parametrize("device_bytes", [0, 10**9])
def test_each_sample_once_per_epoch_however_segments_are_cut(tmp_path, device_bytes):
    num_train, batch_size, epochs = 300, 7, 3
    dataset = make_raw(tmp_path, num_train)
    per_epoch = num_train // batch_size
    reference = None
    for rows, lengths in ((1000, (10**9,)), (10, (10**9,)), (10, (1, 5, 3)), (7, (2, 100))):
        with open_batches(
            dataset,
            batch_size,
            SEED,
            np.float32,
            device_bytes=device_bytes,
            block_bytes=rows * step_bytes(batch_size),
            last_step=epochs * per_epoch,
        ) as source:
            assert source.num_rows == min(rows, epochs * per_epoch)
            inputs, targets = collect(source, epochs * per_epoch, lengths)
        scale, mean, std = (getattr(dataset.normalisation, k) for k in ("scale", "mean", "std"))
        counters = inputs.reshape(epochs, per_epoch * batch_size, -1)[..., :2]
        low, high = np.moveaxis(np.rint((counters * std[:2] + mean[:2]) / scale), -1, 0)
        samples = (low + 256 * high).astype(int)
        for epoch in samples:
            assert len(set(epoch)) == per_epoch * batch_size
            assert set(epoch) <= set(range(num_train))
        labels = targets.argmax(-1).reshape(epochs, -1)
        np.testing.assert_array_equal(labels, samples % CLASSES)
        if reference is None:
            reference = inputs
        np.testing.assert_array_equal(inputs, reference)


def test_segments_of_a_block_share_its_arrays(raw):
    with open_batches(raw, 8, SEED, np.float32, block_bytes=10 * step_bytes(8)) as source:
        assert source.num_rows == 10
        first, second = source.segment(0, 3), source.segment(3, 100)
        assert second.inputs is first.inputs
        assert (first.first_row, first.num_steps, first.block) == (0, 3, 0)
        assert (second.first_row, second.num_steps, second.block) == (3, 7, 0)
        compiled = batches._batches._cache_size()
        for step, wanted in ((10, 4), (27, 1), (5, 5), (123, 10**6)):
            segment = source.segment(step, wanted)
            assert segment.inputs.shape == (10, 8, *SHAPE)
            assert segment.targets.shape == (10, 8, CLASSES)
            assert (segment.block, segment.first_row) == divmod(step, 10)
        assert batches._batches._cache_size() == compiled


def test_rows_are_bounded(tmp_path, raw):
    dataset = make_raw(tmp_path, 5000, (1, 1, 3))
    with open_batches(dataset, 1, SEED, np.float32) as source:
        assert source.num_rows == batches.MOST_STEPS_PER_BLOCK
    with open_batches(dataset, 1, SEED, np.float32, last_step=20) as source:
        assert source.num_rows == 20
    with open_batches(raw, 8, SEED, np.float32, block_bytes=1) as source:
        assert source.num_rows == 1


@pytest.mark.parametrize("batch_size", [NUM_TRAIN, 512])
def test_full_batch_is_one_row(raw, batch_size):
    with open_batches(raw, batch_size, SEED, np.float32, device_bytes=0) as source:
        assert source.is_full_batch
        assert source.one_row
        assert source.num_rows == 1
        segment = source.segment(0, 10**6)
        assert (segment.first_row, segment.num_steps) == (0, 10**6)
        assert source.segment(17, 5).inputs is segment.inputs
    for found, expected in zip(segment[:2], raw.evaluation_set("train", None, "f4"), strict=True):
        np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("device_bytes", [0, 10**9])
def test_full_batch_with_augmentation_changes_from_step_to_step(raw, device_bytes):
    options = {"augmentation": Augmentation(flip=True), "device_bytes": device_bytes}
    with open_batches(raw, 512, SEED, np.float32, last_step=6, **options) as source:
        assert source.is_full_batch
        assert not source.one_row
        inputs, _ = collect(source, 6)
    expected, _ = raw.evaluation_set("train", None, np.float32)
    same = (inputs == expected).all((2, 3, 4))
    np.testing.assert_array_equal((inputs == expected[:, :, ::-1]).all((2, 3, 4)), ~same)
    assert len(np.unique(same, axis=0)) == 6


def test_augmentation_of_vectors_is_refused(raw):
    dataset = replace(raw, train_inputs=raw.train_inputs.reshape(NUM_TRAIN, -1))
    with pytest.raises(InputError, match=r"augmentation.*\(48,\).*height"):
        open_batches(dataset, 8, SEED, np.float32, augmentation=Augmentation(crop=1))


# --- reading ahead ---------------------------------------------------------------------------


class Watched(np.ndarray):
    """An array that is read by indexing, as its type is not the one wanted; `read` is told."""

    read = None

    def __getitem__(self, index):
        if isinstance(index, np.ndarray):
            type(self).read(index)
        return np.asarray(super().__getitem__(index))


@pytest.fixture
def watched(monkeypatch):
    """A dataset of float64, and the indices that were read of it."""
    seen = []
    monkeypatch.setattr(Watched, "read", seen.append)
    inputs = np.arange(NUM_TRAIN * 3.0).reshape(NUM_TRAIN, 3).view(Watched)
    targets = np.zeros((NUM_TRAIN, 1))
    return Dataset("watched", {}, inputs, targets, inputs, targets), seen


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def open_watched(dataset, **options):
    rows = options.pop("rows", 5)
    return open_batches(
        dataset, 10, SEED, np.float32, device_bytes=0, block_bytes=rows * 10 * 4 * 4, **options
    )


def test_next_block_is_read_before_it_is_asked_for(watched):
    dataset, seen = watched
    with open_watched(dataset, last_step=15) as source:
        assert source.num_rows == 5
        for block in range(3):
            source.segment(5 * block, 1)
            wait_for(lambda block=block: len(seen) == min(block + 2, 3))
            # Segments of the same block read nothing.
            source.segment(5 * block + 1, 4)
        time.sleep(0.1)
    # Nothing is read twice, and nothing behind the last step.
    expected = batch_indices(NUM_TRAIN, 10, 0, 15, SEED).reshape(3, 50)
    np.testing.assert_array_equal(np.stack(seen), expected)


def test_another_block_than_foreseen(watched):
    dataset, _ = watched
    with open_watched(dataset) as source:
        for step in (0, 500, 37, 38, 0):
            segment = source.segment(step, 1)
            indices = batch_indices(NUM_TRAIN, 10, step, 1, SEED)
            found = segment.inputs[segment.first_row]
            np.testing.assert_array_equal(found[:, 0], 3 * indices[0])


def test_error_of_the_thread_reaches_the_caller(watched, monkeypatch):
    dataset, seen = watched

    def fail_later(index):
        seen.append(index)
        if len(seen) > 2:
            raise OSError("the disk is gone")

    monkeypatch.setattr(Watched, "read", fail_later)
    with open_watched(dataset) as source:
        source.segment(0, 5)
        source.segment(5, 5)
        with pytest.raises(OSError, match="the disk is gone"):
            source.segment(10, 5)
        # A second attempt reads again.
        monkeypatch.setattr(Watched, "read", seen.append)
        assert source.segment(10, 5).block == 2


@pytest.mark.parametrize("device_bytes", [0, 10**9])
def test_closed_source_gives_nothing(raw, device_bytes):
    source = open_batches(raw, 8, SEED, np.float32, device_bytes=device_bytes)
    source.segment(0, 1)
    source.close()
    source.close()
    with pytest.raises(RuntimeError):
        source.segment(0, 1)


def test_interruption_stops_the_thread_in_the_middle_of_a_block(watched, monkeypatch):
    dataset, seen = watched
    reached, go_on = threading.Event(), threading.Event()

    def hold(index):
        seen.append(index)
        if len(seen) > 5:
            reached.set()
            assert go_on.wait(30)

    monkeypatch.setattr(Watched, "read", hold)
    monkeypatch.setattr(batches, "_READ_BYTES", 10 * 3 * 4)  # One step at a time.

    def interrupt():
        with open_watched(dataset) as source:
            source.segment(0, 5)
            assert reached.wait(30)
            assert len(reading_threads()) == 1
            threading.Timer(0.2, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert reading_threads() == []
    # One block of five steps, and the step that was being read.
    assert len(seen) == 6


def test_forgotten_source_ends_its_thread(watched):
    dataset, _ = watched
    source = open_watched(dataset, last_step=10)
    source.segment(0, 1)
    assert len(reading_threads()) == 1
    del source
    wait_for(lambda: reading_threads() == [])


def test_streaming_holds_few_blocks(tmp_path):
    shape, batch_size, rows, num_blocks = (32, 32, 3), 16, 16, 12
    dataset = make_raw(tmp_path, 1000, shape)
    values = rows * batch_size * int(np.prod(shape))
    sizes = {"block_bytes": 4 * (values + rows * batch_size * CLASSES)}
    tracemalloc.start()
    try:
        with open_batches(dataset, batch_size, SEED, np.float32, device_bytes=0, **sizes) as source:
            assert source.num_rows == rows
            jax.block_until_ready(source.segment(0, rows).inputs)
            tracemalloc.reset_peak()
            for block in range(1, num_blocks):
                jax.block_until_ready(source.segment(block * rows, rows).inputs)
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Of the file's bytes, which are what numpy holds: one block in use, one being read, one that
    # JAX has yet to let go of.
    assert values < peak < 3.5 * values


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_what_was_read_is_not_copied(dtype):
    kept = [batches._empty_for_device((3, 5, 7), np.dtype(dtype)) for _ in range(20)]
    with jax.enable_x64(True):
        for array in kept:
            assert (array.shape, array.dtype) == ((3, 5, 7), dtype)
            array[:] = 1
            placed = jax.device_put(array)
            assert placed.unsafe_buffer_pointer() == array.ctypes.data
            np.testing.assert_array_equal(placed, array)


def test_data_lie_on_accelerators_only(raw):
    def device(**statistics):
        return SimpleNamespace(memory_stats=lambda: statistics or None)

    assert batches._memory_for_data(device(bytes_limit=1000)) == 250
    assert batches._memory_for_data(device()) == 0
    size = raw.train_inputs.nbytes
    for device_bytes, kind in ((size, "device"), (size - 1, "streamed")):
        with open_batches(raw, 8, SEED, np.float32, device_bytes=device_bytes) as source:
            assert source.kind == kind


# --- several devices -------------------------------------------------------------------------


@pytest.mark.parametrize("device_bytes", [0, 10**9])
def test_several_devices_hold_the_same_batches(raw, device_bytes):
    everywhere = replicated_sharding(run_mesh(2))
    options = {"augmentation": Augmentation(flip=True), "last_step": 6}
    found = []
    for sharding, devices in ((None, 1), (everywhere, 2)):
        options |= {"device_bytes": device_bytes, "sharding": sharding}
        with open_batches(raw, 8, SEED, np.float32, **options) as source:
            segment = source.segment(0, 6)
            for array in segment[:2]:
                assert len(array.addressable_shards) == devices
                assert array.sharding.is_fully_replicated
                for shard in array.addressable_shards:
                    np.testing.assert_array_equal(shard.data, array)
            found.append(collect(source, 6))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_full_batch_is_on_every_device(raw):
    with open_batches(
        raw, 512, SEED, np.float32, sharding=replicated_sharding(run_mesh(2))
    ) as source:
        assert len(source.segment(0, 6).inputs.addressable_shards) == 2
