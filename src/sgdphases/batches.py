"""The batches of each step, handed to the training loop in segments on the device.

The order of the samples and their augmentation depend on the data seed and the step alone: neither
on how the steps are cut into segments, nor on whether the data lie on the device or are streamed.
So do samples that are drawn afresh at each step.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Event
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from sgdphases.augmentation import Augmentation, augment_steps, random_key
from sgdphases.datasets.arrays import Array
from sgdphases.datasets.loading import Dataset, Normalisation
from sgdphases.datasets.streams import SingleIndex
from sgdphases.datasets.views import Pixels
from sgdphases.errors import InputError

MOST_STEPS_PER_BLOCK = 1024
# A larger block on CPU would be fresh memory each time: its page faults cost more than its batches.
BLOCK_BYTES = {"cpu": 16 * 2**20}
BLOCK_BYTES_ELSEWHERE = 128 * 2**20
# Part of a device's memory that the data may fill.
DATA_FRACTION = 0.25
# Read between two looks at whether the reading was called off.
_READ_BYTES = 4 * 2**20
_ALIGNMENT = 64
_IMAGE_NDIM = 3
# Keeps the draws of fresh samples apart from those of order and augmentation.
_FRESH_STREAM = (3, 1)

NO_AUGMENTATION = Augmentation()


class Segment(NamedTuple):
    """Batches of consecutive steps.

    The arrays are a whole block of `BatchSource.num_rows` steps, always of the same shape, and the
    same arrays for all segments of one block: only a segment that enters a new block costs
    anything, and nothing is compiled anew.

    Attributes:
        inputs: (rows, batch, ...) normalised and augmented inputs.
        targets: (rows, batch, outputs) targets.
        first_row: Row of the segment's first step: step `first_step + i` trains on row
            `first_row + i`. In full-batch descent without augmentation there is a single row,
            which all steps train on.
        num_steps: Steps in the segment: as many as asked for, or those left in the block.
        block: Number of the block, under which can be kept what is computed from it.
    """

    inputs: jax.Array
    targets: jax.Array
    first_row: int
    num_steps: int
    block: int


class BatchSource:
    """Gives segments, and keeps the arrays of the last one's block.

        with open_batches(dataset, batch_size, data_seed, dtype, last_step=last_step) as source:
            while step < stop:
                segment = source.segment(step, stop - step)
                ...
                step += segment.num_steps

    Besides the block, there is at most one more of the same size while it is being made; and, where
    a thread reads, blocks as they are stored: one in use, one being read, and for a moment one that
    JAX has yet to let go of.

    Attributes:
        num_rows: Leading size of the arrays of all segments.
        is_full_batch: Whether each step trains on all samples, in order.
        one_row: Whether a single row serves all steps.
        kind: "device" where the data lie there, "streamed" where a thread reads them, "generated"
            where they are drawn afresh.
    """

    def __init__(self, reader: "_Reader", plan: "_Plan", dataset: Dataset) -> None:
        self._reader = reader
        self._plan = plan
        self._num_outputs = dataset.num_outputs
        self._pixels = dataset.pixels
        self._normalisation = _on_device(dataset.normalisation, plan)
        self._block: int | None = None
        self._arrays: tuple[jax.Array, jax.Array] | None = None
        self.num_rows = plan.num_rows
        self.is_full_batch = plan.is_full_batch
        self.one_row = plan.one_row
        self.kind = reader.kind

    def segment(self, first_step: int, num_steps: int) -> Segment:
        """Batches of the steps from `first_step` on.

        Args:
            first_step: Steps taken before, from 0.
            num_steps: Steps wanted, at least 1; fewer are given where the block ends before.

        Returns:
            The segment.

        Raises:
            Exception: Whatever went wrong in reading a streamed dataset; after `close`,
                `RuntimeError`.
        """
        block, row = (0, 0) if self.one_row else divmod(first_step, self.num_rows)
        if block != self._block or self._arrays is None:
            # Before, so that the memory is free for the new block.
            self._block, self._arrays = None, None
            self._arrays = self._make(block)
            self._block = block
            if self.one_row:
                self._reader.close()  # It still holds the data as stored.
        if not self.one_row:
            num_steps = min(num_steps, self.num_rows - row)
        return Segment(*self._arrays, row, num_steps, block)

    def _make(self, block: int) -> tuple[jax.Array, jax.Array]:
        plan = self._plan
        with jax.enable_x64(plan.is_wide):
            inputs, targets = _batches(
                *self._reader.read(block),
                self._normalisation,
                self._num_outputs,
                plan.working_type,
                self._pixels,
            )
            if plan.augmentation.changes_anything:
                inputs, targets = augment_steps(
                    plan.augmentation, plan.data_seed, block * plan.num_rows, inputs, targets
                )
            return inputs.astype(plan.dtype), targets.astype(plan.dtype)

    def close(self) -> None:
        """Stop reading and let go of the memory; closing twice is harmless."""
        self._block, self._arrays = None, None
        self._reader.close()

    def __enter__(self) -> Self:
        """The source itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the source."""
        self.close()


def open_batches(
    dataset: Dataset,
    batch_size: int,
    data_seed: int,
    dtype: DTypeLike,
    *,
    augmentation: Augmentation = NO_AUGMENTATION,
    last_step: int | None = None,
    block_bytes: int | None = None,
    device_bytes: int | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
) -> BatchSource:
    """The batches of a training.

    On an accelerator, data that fit lie in its memory as they are stored (an image of bytes stays
    bytes) and are gathered there. Larger data, and all data on CPU, are read by a thread, a block
    ahead, from their memory map. The samples of a stream are drawn on the device.

    Args:
        dataset: The data, raw or normalised.
        batch_size: Samples per batch; `num_train` or more mean full-batch descent, but for a
            stream.
        data_seed: Seed of the order of the samples and of the augmentation.
        dtype: Floating type of the batches; what is narrower than float32 is rounded at the end.
        augmentation: Random changes of each batch.
        last_step: Step after which no batch is needed, where it is known.
        block_bytes: Most bytes of a block, which holds one step at least and 1024 at most. None: 16
            MiB on CPU, 128 MiB elsewhere.
        device_bytes: Most bytes of data that are put on the device. None: a quarter of its memory;
            on CPU, nothing.
        sharding: A replicated sharding over the devices that need the batches; None is JAX's
            default device.

    Returns:
        The source; to be closed, or used as a context manager.

    Raises:
        InputError: The augmentation is for images, and the samples are none.
    """
    if augmentation.moves_pixels and len(dataset.input_shape) != _IMAGE_NDIM:
        raise InputError(
            f"augmentation: flip, crop and rotation are not allowed for samples of shape "
            f"{dataset.input_shape} (dataset {dataset.name}); allowed: (height, width, channels)"
        )
    dtype = jnp.dtype(dtype)
    device = jax.devices()[0] if sharding is None else min(sharding.device_set, key=_device_id)
    if block_bytes is None:
        block_bytes = BLOCK_BYTES.get(device.platform, BLOCK_BYTES_ELSEWHERE)
    is_full_batch = dataset.is_full_batch(batch_size)
    one_row = is_full_batch and not augmentation.changes_anything
    batch_size = dataset.batch_size(batch_size)
    working_type = jnp.promote_types(dtype, jnp.float32)
    # Images that a view makes smaller pass through the device at their stored size.
    shapes = (dataset.input_shape, dataset.train_inputs.shape[1:])
    sample_values = max(map(math.prod, shapes)) + dataset.num_outputs
    num_rows = max(1, block_bytes // (batch_size * sample_values * working_type.itemsize))
    num_rows = 1 if one_row else min(num_rows, MOST_STEPS_PER_BLOCK, max(1, last_step or num_rows))
    plan = _Plan(
        num_train=dataset.num_train,
        batch_size=batch_size,
        data_seed=data_seed,
        dtype=dtype,
        working_type=working_type,
        augmentation=augmentation,
        num_rows=num_rows,
        num_blocks=None if last_step is None else -(-last_step // num_rows),
        is_full_batch=is_full_batch,
        one_row=one_row,
        sharding=sharding,
    )
    if device_bytes is None:
        device_bytes = _memory_for_data(device)
    stored_values = dataset.num_train * math.prod(dataset.train_inputs.shape[1:])
    stored_bytes = stored_values * _stored_type(dataset, plan).itemsize
    reader: _Reader
    if dataset.stream is not None:
        reader = _GeneratingReader(dataset.stream, plan)
    elif one_row or stored_bytes <= device_bytes:
        reader = _DeviceReader(dataset, plan)
    else:
        reader = _StreamingReader(dataset, plan)
    return BatchSource(reader, plan, dataset)


def batch_indices(
    num_train: int, batch_size: int, first_step: int, num_steps: int, seed: int
) -> NDArray[np.int32]:
    """Samples of each step's batch: a fresh permutation every epoch, without the incomplete rest.

    Args:
        num_train: Number of training samples.
        batch_size: Samples per batch, at most `num_train`.
        first_step: Step of the first row.
        num_steps: Number of rows.
        seed: The experiment's data seed; the batches depend on it and on the step alone.

    Returns:
        (steps, batch) indices.
    """
    per_epoch = num_train // batch_size
    steps = np.arange(first_step, first_step + num_steps)
    rows = np.empty((num_steps, batch_size), dtype=np.int32)
    for epoch in np.unique(steps // per_epoch):
        order = _epoch_order(num_train, seed, int(epoch))
        batches = order[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        here = steps // per_epoch == epoch
        rows[here] = batches[steps[here] % per_epoch]
    return rows


# An epoch is asked for once per block, and a thread reads one block ahead.
@lru_cache(maxsize=4)
def _epoch_order(num_train: int, seed: int, epoch: int) -> NDArray[np.int32]:
    # The leading 1 keeps this stream apart from that of the curvature's batches.
    return np.random.default_rng([seed, 1, epoch]).permutation(num_train).astype(np.int32)


@dataclass(frozen=True)
class _Plan:
    """What a source and its reader agree on."""

    num_train: int
    batch_size: int
    data_seed: int
    dtype: np.dtype[np.generic]
    working_type: np.dtype[np.generic]
    augmentation: Augmentation
    num_rows: int
    num_blocks: int | None
    is_full_batch: bool
    one_row: bool
    sharding: jax.sharding.NamedSharding | None

    @property
    def is_wide(self) -> bool:
        return self.working_type == np.float64

    def indices(self, block: int) -> NDArray[np.int32]:
        """(rows, batch) samples of a block."""
        if self.is_full_batch:
            return np.tile(np.arange(self.num_train, dtype=np.int32), (self.num_rows, 1))
        return batch_indices(
            self.num_train, self.batch_size, block * self.num_rows, self.num_rows, self.data_seed
        )

    def place(self, array: Array) -> jax.Array:
        # Said here, as a thread does not inherit it.
        with jax.enable_x64(self.is_wide):
            placed: jax.Array = jax.device_put(array, self.sharding)
            return placed


class _Reader(Protocol):
    """Gives the samples of a block as they are stored, on the device.

    Inputs are (rows, batch, ...); targets (rows, batch, outputs), or (rows, batch) labels.
    """

    kind: str

    def read(self, block: int) -> tuple[jax.Array, jax.Array]: ...

    def close(self) -> None: ...


class _DeviceReader:
    """All data on the device."""

    kind = "device"

    def __init__(self, dataset: Dataset, plan: _Plan) -> None:
        self._plan = plan
        # A copy: on CPU the device might otherwise go on using the file's pages.
        rows = slice(None) if dataset.train_rows is None else dataset.train_rows
        inputs = np.array(dataset.train_inputs[rows], _stored_type(dataset, plan))
        targets = _stored_targets(dataset, plan)
        leading = np.newaxis if plan.one_row else ...
        self._data: tuple[jax.Array, jax.Array] | None = (
            plan.place(inputs[leading]),
            plan.place(targets[leading]),
        )

    def read(self, block: int) -> tuple[jax.Array, jax.Array]:
        if self._data is None:
            raise RuntimeError("the source of batches is closed")
        inputs, targets = self._data
        if self._plan.one_row:
            return inputs, targets
        indices = self._plan.place(self._plan.indices(block))
        return _gather(inputs, indices), _gather(targets, indices)

    def close(self) -> None:
        self._data = None


class _StreamingReader:
    """Data in host memory or a memory map: a thread reads the block after that asked for last."""

    kind = "streamed"

    def __init__(self, dataset: Dataset, plan: _Plan) -> None:
        self._plan = plan
        self._inputs = dataset.train_inputs
        self._rows = dataset.train_rows
        self._type = _stored_type(dataset, plan)
        self._targets = _stored_targets(dataset, plan)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[tuple[jax.Array, jax.Array]], Event] | None = None

    def read(self, block: int) -> tuple[jax.Array, jax.Array]:
        if self._ahead is None or self._ahead[0] != block:
            self._call_off()
            self._start(block)
        assert self._ahead is not None
        future = self._ahead[1]
        try:
            inputs, targets = future.result()
        finally:
            self._call_off()
        del future
        if self._plan.num_blocks is None or block + 1 < self._plan.num_blocks:
            self._start(block + 1)
        return inputs, targets

    def close(self) -> None:
        self._call_off()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _start(self, block: int) -> None:
        called_off = Event()
        future = self._executor.submit(self._read_block, block, called_off)
        self._ahead = (block, future, called_off)

    def _call_off(self) -> None:
        if self._ahead is not None:
            self._ahead[2].set()
            self._ahead = None

    def _read_block(self, block: int, called_off: Event) -> tuple[jax.Array, jax.Array]:
        indices = self._plan.indices(block)
        shape = self._inputs.shape[1:]
        # Fresh each time: on CPU it becomes the device's array without a copy.
        inputs = _empty_for_device((*indices.shape, *shape), self._type)
        rows = indices if self._rows is None else self._rows[indices]
        flat_inputs, flat_rows = inputs.reshape(-1, *shape), rows.reshape(-1)
        chunk = max(1, _READ_BYTES // max(1, flat_inputs[:1].nbytes))
        for start in range(0, len(flat_rows), chunk):
            if called_off.is_set():
                raise RuntimeError("reading was called off")
            part = slice(start, start + chunk)
            if self._inputs.dtype == self._type:
                # "clip" is the mode in which `take` writes to `out` directly.
                np.take(self._inputs, flat_rows[part], axis=0, out=flat_inputs[part], mode="clip")
            else:
                flat_inputs[part] = self._inputs[flat_rows[part]]
        return self._plan.place(inputs), self._plan.place(self._targets[indices])


def _empty_for_device(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """An array whose memory JAX takes as it is on CPU: only where it begins at a multiple of 64."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class _GeneratingReader:
    """Samples that no step sees again, drawn on the device."""

    kind = "generated"

    def __init__(self, stream: SingleIndex, plan: _Plan) -> None:
        self._plan, self._stream = plan, stream
        key = jax.random.key_data(random_key(plan.data_seed, *_FRESH_STREAM))
        direction = stream.direction.astype(plan.working_type)
        # On all devices, which then draw the same.
        self._placed: tuple[jax.Array, jax.Array] | None = (
            plan.place(np.asarray(key)),
            plan.place(direction),
        )

    def read(self, block: int) -> tuple[jax.Array, jax.Array]:
        if self._placed is None:
            raise RuntimeError("the source of batches is closed")
        plan, stream = self._plan, self._stream
        first_step = np.uint32(block * plan.num_rows)
        shape = (plan.num_rows, plan.batch_size)
        link = (stream.link_power, stream.factor)
        drawn: tuple[jax.Array, jax.Array]
        drawn = _draw_single_index(*self._placed, first_step, shape, link)
        return drawn

    def close(self) -> None:
        self._placed = None


@partial(jax.jit, static_argnums=(3, 4))
def _draw_single_index(
    key: jax.Array,
    direction: jax.Array,
    first_step: jax.Array,
    shape: tuple[int, int],
    link: tuple[int, float],
) -> tuple[jax.Array, jax.Array]:
    """The (rows, batch, D) inputs and (rows, batch, 1) targets of consecutive steps."""
    (num_rows, batch_size), (power, factor) = shape, link
    steps = first_step + jnp.arange(num_rows, dtype=jnp.uint32)
    step_keys = jax.vmap(
        lambda step: jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step)
    )(steps)

    def draw(step_key: jax.Array) -> jax.Array:
        # In float32, so that every precision sees the same samples.
        return jax.random.normal(step_key, (batch_size, len(direction)), jnp.float32)

    inputs = jax.vmap(draw)(step_keys).astype(direction.dtype)
    projections = jnp.matmul(inputs, direction, precision="highest")
    return inputs, factor * projections[..., jnp.newaxis] ** power


@jax.jit
def _gather(samples: jax.Array, indices: jax.Array) -> jax.Array:
    """`samples[indices]`; a program of its own, which on CPU copies whole rows.

    Fused with the arithmetic that follows, it would compute the place of each value.
    """
    rows = samples.reshape(len(samples), -1).at[indices].get(mode="promise_in_bounds")
    return rows.reshape(*indices.shape, *samples.shape[1:])


@partial(jax.jit, static_argnames=("num_outputs", "dtype", "pixels"))
def _batches(
    inputs: jax.Array,
    targets: jax.Array,
    normalisation: tuple[jax.Array, ...] | None,
    num_outputs: int,
    dtype: np.dtype[np.generic],
    pixels: Pixels | None,
) -> tuple[jax.Array, jax.Array]:
    """Stored samples of a block, finished, and their targets, labels as rows of the identity."""
    inputs = inputs.astype(dtype)
    if pixels is not None:
        with jax.default_matmul_precision("highest"):
            inputs = pixels.apply(inputs, jnp)
    if normalisation is not None:
        scale, mean, std, lowest = normalisation
        # Exactly what `Normalisation.apply` computes. `lowest` is minus infinity, which XLA does
        # not know: the first selection keeps it from fusing product and difference into one
        # rounding, the second from replacing the quotient by a product with 1 / std.
        product = jnp.maximum(inputs * scale, lowest)
        inputs = (product - mean) / jnp.maximum(std, jnp.minimum(inputs, lowest))
    if targets.ndim == 2:  # labels (rows, batch)
        return inputs, jax.nn.one_hot(targets, num_outputs, dtype=dtype)
    return inputs, targets.astype(dtype)


def _on_device(normalisation: Normalisation | None, plan: _Plan) -> tuple[jax.Array, ...] | None:
    if normalisation is None:
        return None
    numbers = (normalisation.scale, normalisation.mean, normalisation.std, np.array(-np.inf))
    return tuple(plan.place(number.astype(plan.working_type)) for number in numbers)


def _stored_type(dataset: Dataset, plan: _Plan) -> np.dtype[np.generic]:
    """The type in which samples wait on the device: their own where it is small."""
    stored = dataset.train_inputs.dtype
    return stored if stored.itemsize <= 2 else plan.working_type


def _stored_targets(dataset: Dataset, plan: _Plan) -> Array:
    """Labels (samples,), or targets (samples, outputs) of a regression or a normalised dataset."""
    if dataset.normalisation is not None and dataset.train_labels is not None:
        return dataset.train_labels
    return np.asarray(dataset.train_targets, plan.working_type)


def _memory_for_data(device: jax.Device) -> int:
    """Bytes that data may take on a device.

    None on CPU: host memory is no nearer once it is called a device's, XLA's gather takes three
    times as long as numpy's, and a memory map is shared by all jobs on a machine.
    """
    statistics = device.memory_stats() or {}
    return int(DATA_FRACTION * statistics.get("bytes_limit", 0))


def _device_id(device: jax.Device) -> int:
    return int(device.id)
