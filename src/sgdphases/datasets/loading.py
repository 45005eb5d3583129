"""Loading prepared datasets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.arrays import ARRAY_NAMES, MANIFEST_FILE, Array, sha256_of
from sgdphases.errors import InputError

REMEDY = "delete the folder and rerun"


# Inputs that would take more bytes than this as normalised floats stay raw in their memory maps.
MOST_NORMALISED_BYTES = 64 * 2**20


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


@dataclass(frozen=True)
class Dataset:
    """A dataset ready for training: normalised in memory, or raw in memory maps.

    Whoever needs samples takes them from `inputs_at`, `evaluation_set` or, batch by batch on the
    device, `sgdphases.batches`: these give normalised floats in both cases.

    Attributes:
        name: The dataset's name.
        manifest: What its manifest says.
        train_inputs: Inputs, shape (num_train, ...); as stored where there is a `normalisation`.
        train_targets: Shape (num_train, num_outputs): one-hot labels, or regression targets. Empty,
            (0, num_outputs), in a raw dataset with labels.
        test_inputs: Inputs, shape (num_test, ...), as `train_inputs`.
        test_targets: As `train_targets`.
        train_labels: int32 labels (num_train,), None for regression.
        test_labels: int32 labels (num_test,), None for regression.
        normalisation: What is still to be done to the inputs; None where they are normalised.
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

    @property
    def num_train(self) -> int:
        """Number of training samples."""
        return len(self.train_inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.train_inputs.shape[1:]

    @property
    def num_outputs(self) -> int:
        """Number of classes, or of regression targets."""
        return int(self.train_targets.shape[1])

    def inputs_at(self, indices: npt.NDArray[np.integer], dtype: npt.DTypeLike) -> Array:
        """Normalised training inputs.

        Args:
            indices: Samples, of any shape.
            dtype: Floating type.

        Returns:
            Array of shape (*indices.shape, *input_shape).
        """
        return self._normalised(self.train_inputs[indices], dtype)

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
        inputs, targets, labels = {
            "train": (self.train_inputs, self.train_targets, self.train_labels),
            "test": (self.test_inputs, self.test_targets, self.test_labels),
        }[split]
        if self.normalisation is not None and labels is not None:
            targets = one_hot(labels[:count], self.num_outputs, dtype)
        return self._normalised(inputs[:count], dtype), np.asarray(targets[:count], dtype)

    def _normalised(self, inputs: Array, dtype: npt.DTypeLike) -> Array:
        if self.normalisation is None:
            return np.asarray(inputs, dtype)
        return self.normalisation.apply(inputs, dtype)


def one_hot(labels: npt.NDArray[np.int32], num_classes: int, dtype: npt.DTypeLike) -> Array:
    """Rows of the identity, shape (samples, num_classes)."""
    return np.eye(num_classes, dtype=dtype)[labels]


def load(
    directory: Path,
    num_train: int | None = None,
    dtype: npt.DTypeLike = np.float32,
    most_normalised_bytes: int = MOST_NORMALISED_BYTES,
) -> Dataset:
    """Load a prepared dataset.

    Checksums are not compared here, as that takes long for large files; `verify` does it.

    Args:
        directory: The folder that `prepare` wrote.
        num_train: Take only this many training samples, the first ones; None takes all.
        dtype: Floating type of inputs and targets, where they are normalised here.
        most_normalised_bytes: Inputs that would take more than this as floats are not normalised
            here: they stay in their memory maps, and their targets stay labels.

    Returns:
        The dataset, normalised or raw.

    Raises:
        InputError: The folder is incomplete, a file does not fit the manifest, or there are fewer
            training samples than asked for.
    """
    manifest = _read_manifest(directory)
    arrays = {name: _open_array(directory, manifest["arrays"][name]) for name in ARRAY_NAMES}
    available = manifest["num_train"]
    if num_train is not None and not 1 <= num_train <= available:
        raise InputError(
            f"dataset {manifest['name']}: {num_train} training samples asked for; allowed: 1 to "
            f"{available} ({directory})"
        )
    for split in ("inputs", "targets"):
        arrays[f"train_{split}"] = arrays[f"train_{split}"][:num_train]
    numbers = {key: np.asarray(manifest["normalisation"][key]) for key in ("scale", "mean", "std")}
    normalisation = Normalisation(**numbers)
    values = arrays["train_inputs"].size + arrays["test_inputs"].size
    is_raw = values * np.dtype(dtype).itemsize > most_normalised_bytes
    if not is_raw:
        for name in ("train_inputs", "test_inputs"):
            arrays[name] = normalisation.apply(arrays[name], dtype)
    labels: dict[str, npt.NDArray[np.int32] | None] = {"train": None, "test": None}
    for split in labels:
        name = f"{split}_targets"
        if (num_classes := manifest["num_classes"]) is None:
            arrays[name] = np.array(arrays[name], dtype=dtype)
        else:
            labels[split] = split_labels = np.array(arrays[name], dtype=np.int32)
            arrays[name] = one_hot(split_labels[:0] if is_raw else split_labels, num_classes, dtype)
    return Dataset(
        name=manifest["name"],
        manifest=manifest,
        **arrays,
        train_labels=labels["train"],
        test_labels=labels["test"],
        normalisation=normalisation if is_raw else None,
    )


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
