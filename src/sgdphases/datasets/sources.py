"""What every source of a dataset gives, and the sources that need nothing published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sgdphases.datasets.arrays import Array, ArrayWriter, sha256_of
from sgdphases.datasets.npz import Member, open_npz
from sgdphases.datasets.progress import Progress
from sgdphases.datasets.work_folder import WorkFolder
from sgdphases.errors import InputError

# 8-bit pixels are put on [0, 1] before any mean or standard deviation is applied.
PIXEL_SCALE = 1 / 255

DIGITS_SEED = 0
DIGITS_NUM_TEST = 360
DIGITS_SCALE = 1 / 16

_MOST_VALUE_BYTES = 8
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class RawData:
    """Arrays before normalisation, and what the manifest says about them.

    An array too large for the memory is a memory map of the file `<name of the attribute>.npy`
    that the source has written in the work folder's `arrays`.

    Attributes:
        train_inputs: Shape (num_train, ...), any integer or floating type.
        train_targets: int32 labels (num_train,), or float64 targets (num_train, num_outputs).
        test_inputs: Shape (num_test, ...), the same trailing shape as `train_inputs`.
        test_targets: As `train_targets`, for the test samples.
        num_classes: The number of classes, None for regression.
        scale: The factor that brings raw inputs to the units of the normalisation.
        origin: Where the data came from, without any path of this machine.
        licence: Under what terms the data may be used.
        sample_order: What decides which samples come first.
        versions: Versions of the packages that made the data, by package name.
        class_names: Names of the classes in the order of their labels, where they have any.
        tokens: How text was turned into numbers; None where the inputs are no text.
        files: Further files of the dataset, written in the work folder's `arrays`: their names.
        stream: How training draws its own samples; None where it uses those above.
    """

    train_inputs: Array
    train_targets: Array
    test_inputs: Array
    test_targets: Array
    num_classes: int | None
    scale: float
    origin: dict[str, Any]
    licence: str
    sample_order: str
    versions: dict[str, str] = field(default_factory=dict)
    class_names: list[str] | None = None
    tokens: dict[str, Any] | None = None
    files: tuple[str, ...] = ()
    stream: dict[str, Any] | None = None


def read_digits() -> RawData:
    """Read scikit-learn's 8x8 digits and split them, stratified by class.

    Returns:
        1437 training and 360 test images, uint8 from 0 to 16, shape (samples, 8, 8, 1).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_inputs, test_inputs, train_targets, test_targets = train_test_split(
        digits.images.astype(np.uint8)[..., np.newaxis],
        digits.target.astype(np.int32),
        test_size=DIGITS_NUM_TEST,
        stratify=digits.target,
        random_state=DIGITS_SEED,
    )
    return RawData(
        train_inputs=train_inputs,
        train_targets=train_targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
        num_classes=10,
        scale=DIGITS_SCALE,
        origin={
            "description": "sklearn.datasets.load_digits, the test part of "
            "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI)",
        },
        licence="CC BY 4.0 (UCI Machine Learning Repository, https://doi.org/10.24432/C50P49)",
        sample_order=f"stratified random split, seed {DIGITS_SEED}",
        versions={"scikit-learn": metadata.version("scikit-learn")},
    )


def read_points(inputs: list[list[float]], targets: list[list[float]]) -> RawData:
    """Make a regression set from samples written out in the definition.

    Args:
        inputs: One row of numbers per sample, rows of equal length.
        targets: One row of numbers per sample, rows of equal length.

    Returns:
        float64 arrays; the test samples are the training samples.
    """
    input_array = np.array(inputs, dtype=np.float64)
    target_array = np.array(targets, dtype=np.float64)
    return RawData(
        train_inputs=input_array,
        train_targets=target_array,
        test_inputs=input_array,
        test_targets=target_array,
        num_classes=None,
        scale=1.0,
        origin={"description": "samples written out in the dataset definition"},
        licence="none needed",
        sample_order="as written in the definition",
    )


def read_gaussian(
    num_train: int, num_test: int, input_dim: int, output_dim: int, seed: int
) -> RawData:
    """Draw standard normal inputs and, independently of them, standard normal targets.

    Args:
        num_train: Number of training samples.
        num_test: Number of test samples.
        input_dim: Number of input features.
        output_dim: Number of outputs.
        seed: Seed of NumPy's default generator.

    Returns:
        float64 arrays, inputs (samples, input_dim) and targets (samples, output_dim).
    """
    shapes = [
        (num_train, input_dim),
        (num_train, output_dim),
        (num_test, input_dim),
        (num_test, output_dim),
    ]
    # One stream per array: asking for more samples keeps those already drawn.
    streams = np.random.default_rng(seed).spawn(len(shapes))
    train_inputs, train_targets, test_inputs, test_targets = (
        stream.standard_normal(shape) for stream, shape in zip(streams, shapes, strict=True)
    )
    return RawData(
        train_inputs=train_inputs,
        train_targets=train_targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
        num_classes=None,
        scale=1.0,
        origin={"description": f"drawn from standard normal distributions, seed {seed}"},
        licence="none needed",
        sample_order="as drawn",
    )


def read_npz(path: Path, work: WorkFolder, num_classes: int | None = None) -> RawData:
    """Read and check the arrays of a user's own .npz file.

    Args:
        path: A file with the arrays x_train, y_train, x_test and y_test; others are ignored.
            Integer y are class labels counted from 0, floating y are regression targets.
        work: Where the inputs are written, a few samples at a time.
        num_classes: The number of classes, or None for the largest training label + 1, in which
            case every label up to that one must occur.

    Returns:
        The arrays. 8-bit inputs are taken for pixels (scale 1/255), others are not scaled.

    Raises:
        InputError: The file cannot be read or its arrays do not make a dataset.
    """
    with open_npz(path, NPZ_KEYS) as members:
        _check_headers(members, path)
        work.require_space(members["x_train"].num_bytes + members["x_test"].num_bytes)
        labels = {key: members[key].read() for key in ("y_train", "y_test")}
        if labels["y_train"].dtype.kind in "iu":
            num_classes = _check_train_labels(labels["y_train"], num_classes, path)
            _check_labels(labels["y_test"], num_classes, path, "y_test")
            targets = {key: array.astype(np.int32) for key, array in labels.items()}
        else:
            if num_classes is not None:
                raise InputError(
                    f"{path}: num_classes is {num_classes} but y_train holds "
                    f"{labels['y_train'].dtype} values; labels must be integers"
                )
            targets = {key: _regression_targets(labels[key], path, key) for key in labels}
            if targets["y_train"].shape[1] != targets["y_test"].shape[1]:
                raise InputError(
                    f"{path}: y_train has {targets['y_train'].shape[1]} outputs but y_test has "
                    f"{targets['y_test'].shape[1]}"
                )
        inputs = {
            split: _store_inputs(members[f"x_{split}"], work.arrays / f"{split}_inputs.npy")
            for split in ("train", "test")
        }
    return RawData(
        train_inputs=inputs["train"],
        train_targets=targets["y_train"],
        test_inputs=inputs["test"],
        test_targets=targets["y_test"],
        num_classes=num_classes,
        scale=PIXEL_SCALE if inputs["train"].dtype == np.uint8 else 1.0,
        origin={
            "description": "the user's own arrays",
            "file": path.name,
            "sha256": sha256_of(path),
        },
        licence="as the user obtained the file",
        sample_order="as in the file",
    )


def _check_headers(members: Mapping[str, Member], path: Path) -> None:
    """Check what the arrays say of themselves before any of them is read."""
    for key in ("x_train", "x_test"):
        member = members[key]
        if member.dtype.kind not in "iuf" or member.dtype.itemsize > _MOST_VALUE_BYTES:
            raise InputError(
                f"{path}: {key} holds {member.dtype} values; allowed: integers or floating numbers "
                f"of at most 64 bits"
            )
        if len(member.shape) < 2:
            raise InputError(
                f"{path}: {key} has shape {member.shape}; allowed: (samples, features) or "
                f"(samples, height, width, channels)"
            )
        if 0 in member.shape:
            raise InputError(f"{path}: {key} is empty, shape {member.shape}")
    train, test = members["x_train"], members["x_test"]
    if train.shape[1:] != test.shape[1:]:
        raise InputError(
            f"{path}: x_test has samples of shape {test.shape[1:]}, x_train of shape "
            f"{train.shape[1:]}; they must be equal"
        )
    if train.dtype.newbyteorder("=") != test.dtype.newbyteorder("="):
        raise InputError(
            f"{path}: x_test holds {test.dtype} values, x_train holds {train.dtype}; they must be "
            f"equal, as 8-bit inputs are scaled to [0, 1]"
        )
    for part in ("train", "test"):
        num_inputs, num_targets = members[f"x_{part}"].shape[0], _length(members[f"y_{part}"])
        if num_inputs != num_targets:
            raise InputError(
                f"{path}: x_{part} has {num_inputs} samples but y_{part} has {num_targets}"
            )


def _store_inputs(member: Member, target: Path) -> Array:
    """Check inputs while they are copied to an array file, and open it as a memory map."""
    progress = Progress(f"{member.path.name}: copying {member.key}", member.shape[0])
    dtype = member.dtype.newbyteorder("=")
    with ArrayWriter(target, member.shape[1:], dtype) as writer:
        for block in member.blocks():
            _check_finite(block, member.path, member.key, writer.num_samples)
            writer.append(block)
            progress.update(writer.num_samples)
    array: Array = np.load(target, mmap_mode="r", allow_pickle=False)
    return array


def _length(member: Member) -> int:
    return member.shape[0] if member.shape else 0


def _check_finite(array: Array, path: Path, key: str, first: int = 0) -> None:
    """Refuse numbers that are not finite; `first` is the index of the array's first sample."""
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if not finite.all():
        index = np.unravel_index(int(np.argmin(finite)), array.shape)
        position = ", ".join(str(int(i)) for i in (index[0] + first, *index[1:]))
        raise InputError(
            f"{path}: {key}[{position}] is {array[index]}; allowed: finite numbers only"
        )


def _check_train_labels(labels: Array, num_classes: int | None, path: Path) -> int:
    """Check training labels and return the number of classes."""
    if num_classes is not None:
        _check_labels(labels, num_classes, path, "y_train")
        return num_classes
    # The largest label is a count of classes only if no smaller label is left out.
    _check_label_shape(labels, path, "y_train")
    present = np.unique(labels)
    if int(present[0]) < 0:
        raise InputError(f"{path}: y_train has label {present[0]}; labels start at 0")
    if not np.array_equal(present, np.arange(len(present))):
        absent = int(np.argmax(present != np.arange(len(present))))
        raise InputError(
            f"{path}: y_train goes up to label {present[-1]} but has no label {absent}; labels "
            f"must be contiguous from 0, or give num_classes in the dataset definition"
        )
    if len(present) < 2:
        raise InputError(f"{path}: y_train has one class only; at least 2 are needed")
    return len(present)


def _check_labels(labels: Array, num_classes: int, path: Path, key: str) -> None:
    _check_label_shape(labels, path, key)
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise InputError(f"{path}: {key} has label {outside[0]}; allowed: 0 to {num_classes - 1}")


def _check_label_shape(labels: Array, path: Path, key: str) -> None:
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {key} holds {labels.dtype} values; allowed: integer labels, as in y_train"
        )
    if labels.ndim != 1:
        raise InputError(
            f"{path}: {key} holds integer labels of shape {labels.shape}; allowed: (samples,)"
        )


def _regression_targets(targets: Array, path: Path, key: str) -> Array:
    """Check regression targets and give them as float64 (samples, outputs)."""
    if targets.dtype.kind != "f":
        raise InputError(
            f"{path}: {key} holds {targets.dtype} values; allowed: integer labels or floating "
            f"targets, the same kind in y_train and y_test"
        )
    if targets.ndim > 2 or targets.size == 0:
        raise InputError(
            f"{path}: {key} has shape {targets.shape}; allowed: (samples,) or (samples, outputs)"
        )
    _check_finite(targets, path, key)
    return targets.astype(np.float64).reshape(len(targets), -1)
