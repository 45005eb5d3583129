"""Loading prepared datasets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.arrays import Array, sha256_of
from sgdphases.errors import InputError

MANIFEST_FILE = "manifest.json"
ARRAY_NAMES = ("train_inputs", "train_targets", "test_inputs", "test_targets")

REMEDY = "delete the folder and rerun"


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory, ready for training.

    Attributes:
        name: The dataset's name.
        manifest: What its manifest says.
        train_inputs: Normalised inputs, shape (num_train, ...).
        train_targets: Shape (num_train, num_outputs): one-hot labels, or regression targets.
        test_inputs: Normalised inputs, shape (num_test, ...).
        test_targets: Shape (num_test, num_outputs).
        train_labels: int32 labels (num_train,), None for regression.
        test_labels: int32 labels (num_test,), None for regression.
    """

    name: str
    manifest: Mapping[str, Any]
    train_inputs: Array
    train_targets: Array
    test_inputs: Array
    test_targets: Array
    train_labels: npt.NDArray[np.int32] | None = None
    test_labels: npt.NDArray[np.int32] | None = None


def load(
    directory: Path, num_train: int | None = None, dtype: npt.DTypeLike = np.float32
) -> Dataset:
    """Load a prepared dataset.

    Checksums are not compared here, as that takes long for large files; `verify` does it.

    Args:
        directory: The folder that `prepare` wrote.
        num_train: Take only this many training samples, the first ones; None takes all.
        dtype: Floating type of inputs and targets.

    Returns:
        The normalised dataset.

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
    normalisation = manifest["normalisation"]
    num_classes = manifest["num_classes"]
    train_targets, train_labels = _targets(arrays["train_targets"][:num_train], num_classes, dtype)
    test_targets, test_labels = _targets(arrays["test_targets"], num_classes, dtype)
    return Dataset(
        name=manifest["name"],
        manifest=manifest,
        train_inputs=_normalise(arrays["train_inputs"][:num_train], normalisation, dtype),
        train_targets=train_targets,
        test_inputs=_normalise(arrays["test_inputs"], normalisation, dtype),
        test_targets=test_targets,
        train_labels=train_labels,
        test_labels=test_labels,
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
        entry = manifest["arrays"][name]
        _open_array(directory, entry)
        path = directory / entry["file"]
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


def _normalise(raw: Array, normalisation: Mapping[str, Any], dtype: npt.DTypeLike) -> Array:
    inputs = np.array(raw, dtype=dtype)
    # In place: a full image dataset should be in memory once, not three times.
    inputs *= np.asarray(normalisation["scale"], dtype)
    inputs -= np.asarray(normalisation["mean"], dtype)
    inputs /= np.asarray(normalisation["std"], dtype)
    return inputs


def _targets(
    stored: Array, num_classes: int | None, dtype: npt.DTypeLike
) -> tuple[Array, npt.NDArray[np.int32] | None]:
    """Give float targets (samples, outputs), and the labels where there are classes."""
    if num_classes is None:
        return np.array(stored, dtype=dtype), None
    labels = np.array(stored, dtype=np.int32)
    return np.eye(num_classes, dtype=dtype)[labels], labels
