"""Loading prepared datasets."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.arrays import ARRAY_NAMES, MANIFEST_FILE, Array, sha256_of
from sgdphases.datasets.streams import SingleIndex, read_stream
from sgdphases.datasets.views import (
    GREY_WEIGHTS,
    Pixels,
    Selection,
    check_view,
    facts_of_manifest,
    pixels_of,
    read_view,
    select,
    view_labels,
)
from sgdphases.errors import InputError

REMEDY = "delete the folder and rerun"


# Inputs that would take more bytes than this as normalised floats stay raw in their memory maps.
MOST_NORMALISED_BYTES = 64 * 2**20
# Normalised at once on the way into memory.
_CHUNK_VALUES = 2**22


@dataclass(frozen=True)
class Normalisation:
    """The numbers of x = (raw * scale - mean) / std.

    Attributes:
        scale: Shape ().
        mean: Shape (), or (channels,) along the last axis.
        std: As `mean`.
    """

    scale: Array
    mean: Array
    std: Array

    def apply(self, raw: Array, dtype: npt.DTypeLike) -> Array:
        """Normalise in `dtype`, or in float32 and round where `dtype` is narrower.

        Args:
            raw: Stored inputs (samples, ...).
            dtype: Floating type.

        Returns:
            A new array of the same shape.
        """
        wide = np.promote_types(dtype, np.float32)
        inputs = np.array(raw, dtype=wide)
        # In place: a full image dataset should be in memory once, not three times.
        inputs *= self.scale.astype(wide)
        inputs -= self.mean.astype(wide)
        inputs /= self.std.astype(wide)
        return inputs.astype(dtype, copy=False)

    def of_grey(self) -> "Normalisation":
        """The normalisation of images whose three channels became one.

        The mean is that of the grey pixels; the standard deviation is theirs where the channels
        vary together, and a little larger elsewhere.
        """
        mean, std = (
            np.dot(GREY_WEIGHTS, numbers) if numbers.ndim else numbers
            for numbers in (self.mean, self.std)
        )
        return Normalisation(self.scale, np.asarray(mean), np.asarray(std))


@dataclass(frozen=True)
class Dataset:
    """A dataset ready for training: normalised in memory, or raw in memory maps.

    Whoever needs samples takes them from `inputs_at`, `evaluation_set` or, batch by batch on the
    device, `sgdphases.batches`: these give normalised floats in both cases.

    Attributes:
        name: The dataset's name.
        manifest: What its manifest says, whatever the view.
        train_inputs: Inputs, shape (num_train, ...); where there is a `normalisation` as stored,
            and of `train_rows` those that are samples.
        train_targets: Shape (num_train, num_outputs): one-hot labels, or regression targets. Empty,
            (0, num_outputs), in a raw dataset with labels.
        test_inputs: Inputs, shape (num_test, ...), as `train_inputs`.
        test_targets: As `train_targets`.
        train_labels: int32 labels (num_train,), None for regression.
        test_labels: int32 labels (num_test,), None for regression.
        normalisation: What is still to be done to the inputs; None where they are normalised.
        train_rows: (num_train,) places of the samples in `train_inputs`; None: all, in order.
        test_rows: As `train_rows`.
        pixels: What is to be done to the inputs before that.
        stream: What draws the batches of training; None where they are taken from the samples
            above, which a stream has for measurements.
    """

    name: str
    manifest: Mapping[str, Any]
    train_inputs: Array
    train_targets: Array
    test_inputs: Array
    test_targets: Array
    train_labels: npt.NDArray[np.int32] | None = None
    test_labels: npt.NDArray[np.int32] | None = None
    normalisation: Normalisation | None = None
    train_rows: npt.NDArray[np.int32] | None = None
    test_rows: npt.NDArray[np.int32] | None = None
    pixels: Pixels | None = None
    stream: SingleIndex | None = None

    @property
    def num_train(self) -> int:
        """Number of stored training samples."""
        return len(self.train_inputs if self.train_rows is None else self.train_rows)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        stored = self.train_inputs.shape[1:]
        return stored if self.pixels is None else self.pixels.shape(stored)

    @property
    def num_outputs(self) -> int:
        """Number of classes, or of regression targets."""
        return int(self.train_targets.shape[1])

    def batch_size(self, wanted: int) -> int:
        """Samples of a batch where `wanted` are asked for: of a stream always as many."""
        return wanted if self.stream is not None else min(wanted, self.num_train)

    def is_full_batch(self, batch_size: int) -> bool:
        """Whether a batch holds all samples that there are."""
        return self.stream is None and batch_size >= self.num_train

    def inputs_at(self, indices: npt.NDArray[np.integer], dtype: npt.DTypeLike) -> Array:
        """Normalised training inputs.

        Args:
            indices: Samples, of any shape.
            dtype: Floating type.

        Returns:
            Array of shape (*indices.shape, *input_shape).
        """
        rows = indices if self.train_rows is None else self.train_rows[indices]
        return self._finished(self.train_inputs[rows], dtype)

    def targets_at(self, indices: npt.NDArray[np.integer], dtype: npt.DTypeLike) -> Array:
        """Targets of training samples, (*indices.shape, num_outputs): as `inputs_at`."""
        if self.normalisation is not None and self.train_labels is not None:
            return one_hot(self.train_labels[indices], self.num_outputs, dtype)
        return np.array(self.train_targets[indices], dtype)

    def evaluation_set(
        self, split: str, count: int | None, dtype: npt.DTypeLike
    ) -> tuple[Array, Array]:
        """The first samples of a split, normalised.

        Args:
            split: "train" or "test".
            count: Number of samples; None, or more than there are, means all of them.
            dtype: Floating type.

        Returns:
            Inputs (count, ...) and targets (count, num_outputs), not to be changed: they may be the
            dataset's own.
        """
        inputs, rows, targets, labels = {
            "train": (self.train_inputs, self.train_rows, self.train_targets, self.train_labels),
            "test": (self.test_inputs, self.test_rows, self.test_targets, self.test_labels),
        }[split]
        if self.normalisation is not None and labels is not None:
            targets = one_hot(labels[:count], self.num_outputs, dtype)
        chosen = inputs[:count] if rows is None else inputs[rows[:count]]
        return self._finished(chosen, dtype), np.asarray(targets[:count], dtype)

    def _finished(self, stored: Array, dtype: npt.DTypeLike) -> Array:
        if self.normalisation is None:
            return np.asarray(stored, dtype)
        return finish(stored, self.pixels, self.normalisation, dtype)


def finish(
    stored: Array, pixels: Pixels | None, normalisation: Normalisation, dtype: npt.DTypeLike
) -> Array:
    """Samples as stored, (samples, ...), as they are trained on: a new array."""
    if pixels is not None:
        stored = pixels.apply(stored.astype(np.promote_types(dtype, np.float32)))
    return normalisation.apply(stored, dtype)


def one_hot(labels: npt.NDArray[np.int32], num_classes: int, dtype: npt.DTypeLike) -> Array:
    """Rows of the identity, shape (samples, num_classes)."""
    return np.eye(num_classes, dtype=dtype)[labels]


def load(
    directory: Path,
    view: Mapping[str, Any] | None = None,
    dtype: npt.DTypeLike = np.float32,
    most_normalised_bytes: int = MOST_NORMALISED_BYTES,
) -> Dataset:
    """Load a prepared dataset, or a view of it.

    Checksums are not compared here, as that takes long for large files; `verify` does it.

    Args:
        directory: The folder that `prepare` wrote.
        view: An experiment's section `dataset`; `sgdphases.datasets.views` says what its keys do.
            None is the whole dataset as it is.
        dtype: Floating type of inputs and targets, where they are normalised here.
        most_normalised_bytes: Inputs that would take more than this as floats are not normalised
            here: they stay in their memory maps, and their targets stay labels.

    Returns:
        The dataset, normalised or raw.

    Raises:
        InputError: The folder is incomplete, a file does not fit the manifest, or the view does not
            suit the dataset.
    """
    manifest = _read_manifest(directory)
    arrays = {name: _open_array(directory, manifest["arrays"][name]) for name in ARRAY_NAMES}
    chosen, where = read_view(view), f"dataset {manifest['name']}: "
    check_view(chosen, facts_of_manifest(manifest), where)
    pixels = pixels_of(chosen, arrays["train_inputs"].shape[1:])
    numbers = {key: np.asarray(manifest["normalisation"][key]) for key in ("scale", "mean", "std")}
    normalisation = Normalisation(**numbers)
    if pixels is not None and pixels.to_grey:
        normalisation = normalisation.of_grey()

    num_classes = manifest["num_classes"]
    selections = {
        split: select(chosen, split, arrays[f"{split}_targets"], num_classes, where)
        for split in ("train", "test")
    }
    shape = arrays["train_inputs"].shape[1:]
    values = math.prod(shape if pixels is None else pixels.shape(shape))
    num_samples = sum(selection.count for selection in selections.values())
    is_raw = num_samples * values * np.dtype(dtype).itemsize > most_normalised_bytes

    fields: dict[str, Any] = {}
    for split, selection in selections.items():
        stored, targets = arrays[f"{split}_inputs"], arrays[f"{split}_targets"]
        if not is_raw:
            stored = _into_memory(stored, selection, pixels, normalisation, dtype)
        elif selection.rows is None:
            stored = stored[: selection.count]
        else:
            fields[f"{split}_rows"] = selection.rows
        if num_classes is None:
            targets = np.array(selection.of(targets), dtype=dtype)
        else:
            labels, num_labels = view_labels(chosen, split, selection, targets, num_classes)
            if num_labels is None:
                targets = labels[:, np.newaxis].astype(dtype)
            else:
                fields[f"{split}_labels"] = labels
                targets = one_hot(labels[:0] if is_raw else labels, num_labels, dtype)
        fields |= {f"{split}_inputs": stored, f"{split}_targets": targets}
    stream = manifest.get("stream")
    return Dataset(
        name=manifest["name"],
        manifest=manifest,
        normalisation=normalisation if is_raw else None,
        pixels=pixels if is_raw else None,
        stream=None if stream is None else read_stream(stream),
        **fields,
    )


def _into_memory(
    stored: Array,
    selection: Selection,
    pixels: Pixels | None,
    normalisation: Normalisation,
    dtype: npt.DTypeLike,
) -> Array:
    """The selected samples, finished; as they are stored they are never in memory all at once."""
    shape = stored.shape[1:]
    inputs = np.empty((selection.count, *(pixels.shape(shape) if pixels else shape)), dtype)
    chunk = max(1, _CHUNK_VALUES // max(1, math.prod(shape)))
    for start in range(0, selection.count, chunk):
        part = slice(start, min(start + chunk, selection.count))
        rows = part if selection.rows is None else selection.rows[part]
        inputs[part] = finish(stored[rows], pixels, normalisation, dtype)
    return inputs


def verify(directory: Path) -> None:
    """Compare the files of a prepared dataset with the checksums in its manifest.

    Args:
        directory: The folder that `prepare` wrote.

    Raises:
        InputError: The folder is incomplete or a file's content has changed.
    """
    manifest = _read_manifest(directory)
    for name in ARRAY_NAMES:
        _open_array(directory, manifest["arrays"][name])
    for entry in (*manifest["arrays"].values(), *manifest.get("files", {}).values()):
        path = directory / entry["file"]
        if not path.is_file():
            raise InputError(f"{path}: missing, but the manifest lists it; {REMEDY}")
        found = sha256_of(path)
        if found != entry["sha256"]:
            raise InputError(
                f"{path}: content changed: SHA-256 {found} found, {entry['sha256']} expected; "
                f"{REMEDY}"
            )


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        complete = {"name", "num_train", "num_classes", "normalisation", "arrays"} <= set(
            manifest
        ) and set(ARRAY_NAMES) <= set(manifest["arrays"])
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file: the dataset is not prepared; {REMEDY}") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged manifest: {error}; {REMEDY}") from error
    if not complete:
        raise InputError(f"{path}: incomplete manifest; {REMEDY}")
    return dict(manifest)


def _open_array(directory: Path, entry: Mapping[str, Any]) -> Array:
    """Open an array as a memory map and check it against its manifest entry."""
    path = directory / entry["file"]
    try:
        found_bytes = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: missing, but the manifest lists it; {REMEDY}") from error
    if found_bytes != entry["bytes"]:
        raise InputError(f"{path}: {found_bytes} bytes found, {entry['bytes']} expected; {REMEDY}")
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged array file: {error}; {REMEDY}") from error
    if list(array.shape) != entry["shape"] or array.dtype.name != entry["dtype"]:
        raise InputError(
            f"{path}: {array.dtype.name} array of shape {list(array.shape)} found, "
            f"{entry['dtype']} of shape {entry['shape']} expected; {REMEDY}"
        )
    return array
