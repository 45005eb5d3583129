"""Views: parts and variants of a prepared dataset, made while it is read, without a copy on disk.

The steps, always in this order:

1. `classes`: samples of these classes stay, in their stored order; a label becomes its class's
   place in the list.
2. `samples_per_class`: of each class, the first so many training samples stay.
3. `num_train`, `num_test`: the first so many of what is left.
4. `shuffled_labels`: the labels of the training samples are permuted; test labels stay.
5. `labels: parity`: the targets become +1 for an even, −1 for an odd class, by the dataset's own
   numbers.
6. `grey`: channels become one, 0.299 R + 0.587 G + 0.114 B.
7. `resize`: images become n × n; each new pixel is the mean over the area that it covers.
8. Normalisation, by the dataset's numbers, whatever samples stay. Under `grey`, mean and standard
   deviation are weighted as the channels are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.arrays import Array
from sgdphases.errors import InputError

# ITU-R BT.601, as image libraries convert to grey.
GREY_WEIGHTS = (0.299, 0.587, 0.114)

# Keeps the permutation apart from other draws with the same seed.
_SHUFFLE_STREAM = (4, 1)
_IMAGE_NDIM = 3
_STAYS_OF_A_STREAM = ("num_test",)
_NEEDS_CLASSES = ("classes", "samples_per_class", "shuffled_labels", "labels")
_NEEDS_IMAGES = ("grey", "resize")


@dataclass(frozen=True)
class View:
    """What a view leaves and changes; the default is the whole dataset as it is.

    Attributes:
        num_train: Training samples to take, the first ones.
        num_test: Test samples to take, the first ones.
        classes: Classes to keep, in the order of the new labels.
        samples_per_class: Training samples to keep of each class, the first ones.
        labels: "classes", or "parity" for targets of ±1.
        shuffled_labels: Seed of a permutation of the training labels.
        grey: Whether images lose their colours.
        resize: Side of the images.
    """

    num_train: int | None = None
    num_test: int | None = None
    classes: tuple[int, ...] | None = None
    samples_per_class: int | None = None
    labels: str = "classes"
    shuffled_labels: int | None = None
    grey: bool = False
    resize: int | None = None

    def changed(self) -> dict[str, Any]:
        """The keys that differ from the default, as an experiment file would give them."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


def read_view(section: Mapping[str, Any] | None) -> View:
    """The view that an experiment's section `dataset` asks for.

    Args:
        section: The section; what is no key of a view is left aside. None is the same as {}.

    Returns:
        The view.
    """
    section = section or {}
    known = {field.name: section[field.name] for field in fields(View) if field.name in section}
    if known.get("classes") is not None:
        known["classes"] = tuple(known["classes"])
    return View(**known)


@dataclass(frozen=True)
class Facts:
    """What is known of a dataset; None where it is not.

    Attributes:
        task: "classification" or "regression".
        num_outputs: Classes, or regression targets.
        num_train: Training samples.
        num_test: Test samples.
        input_shape: Shape of one input.
        is_stream: Whether training samples are drawn afresh.
    """

    task: str | None = None
    num_outputs: int | None = None
    num_train: int | None = None
    num_test: int | None = None
    input_shape: tuple[int, ...] | None = None
    is_stream: bool = False


def facts_of_manifest(manifest: Mapping[str, Any]) -> Facts:
    """What the manifest of a prepared dataset says."""
    inputs, targets = (
        manifest["arrays"][f"test_{part}"]["shape"] for part in ("inputs", "targets")
    )
    num_classes = manifest["num_classes"]
    return Facts(
        task="regression" if num_classes is None else "classification",
        num_outputs=targets[1] if num_classes is None else num_classes,
        num_train=manifest["num_train"],
        num_test=inputs[0],
        input_shape=tuple(inputs[1:]),
        is_stream=manifest.get("stream") is not None,
    )


def check_view(view: View, facts: Facts, where: str) -> None:
    """Check a view against what is known of its dataset.

    Args:
        view: The view.
        facts: What is known.
        where: What comes before a key in messages, such as "dataset mnist: ".

    Raises:
        InputError: The view does not suit the dataset.
    """
    asked = view.changed()
    if facts.is_stream:
        for key in asked:
            if key not in _STAYS_OF_A_STREAM:
                raise InputError(
                    f"{where}{key}: {_written(asked[key])} is not allowed for samples that are "
                    f"drawn afresh; allowed: {', '.join(_STAYS_OF_A_STREAM)}"
                )
    if facts.task == "regression":
        for key in _NEEDS_CLASSES:
            if key in asked:
                raise InputError(
                    f"{where}{key}: {_written(asked[key])} is not allowed for regression targets; "
                    "allowed: for a dataset with classes"
                )
    _check_classes(view, facts.num_outputs, where)
    if facts.input_shape is not None:
        _check_shape(asked, facts.input_shape, where)
    for key, count in (("num_train", facts.num_train), ("num_test", facts.num_test)):
        check_count(getattr(view, key), count, f"{where}{key}")


def check_count(asked: int | None, available: int | None, where: str) -> None:
    """Check that there are as many samples as asked for; None is no limit.

    Raises:
        InputError: There are fewer.
    """
    if asked is not None and (asked < 1 or (available is not None and asked > available)):
        most = "a whole number" if available is None else f"{available}, as many as there are"
        raise InputError(f"{where}: {asked} is not allowed; allowed: 1 to {most}")


def _check_classes(view: View, num_classes: int | None, where: str) -> None:
    classes = view.classes
    if classes is not None and num_classes is not None:
        for name in classes:
            if not 0 <= name < num_classes:
                raise InputError(
                    f"{where}classes: {name} is no class of the dataset; allowed: 0 to "
                    f"{num_classes - 1}"
                )
    if view.labels == "parity" and classes and len({name % 2 for name in classes}) == 1:
        raise InputError(
            f"{where}labels: 'parity' is not allowed with classes {list(classes)}, all "
            f"{'odd' if classes[0] % 2 else 'even'}; allowed: with even and odd classes"
        )


def _check_shape(asked: Mapping[str, Any], shape: tuple[int, ...], where: str) -> None:
    for key in _NEEDS_IMAGES:
        if key in asked and len(shape) != _IMAGE_NDIM:
            raise InputError(
                f"{where}{key}: {_written(asked[key])} is not allowed for samples of shape "
                f"{shape}; allowed: for images (height, width, channels)"
            )
    if "grey" in asked and shape[-1] not in (1, len(GREY_WEIGHTS)):
        raise InputError(
            f"{where}grey: true is not allowed for images of {shape[-1]} channels; allowed: for 1 "
            f"(which it leaves as they are) or {len(GREY_WEIGHTS)}"
        )


def _written(value: Any) -> str:
    """A value as YAML has it."""
    return "true" if value is True else repr(value)


@dataclass(frozen=True)
class Pixels:
    """What a view does to images; hashable, so that it can be a static argument of a program.

    Attributes:
        to_grey: Whether three channels become one.
        size: Side of the resulting images; None leaves them as they are.
    """

    to_grey: bool
    size: int | None

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an image of this shape afterwards."""
        height, width, channels = shape
        return (self.size or height, self.size or width, 1 if self.to_grey else channels)

    def apply(self, images: Any, array_module: Any = np) -> Any:
        r"""The changed images.

        .. math:: x'_{ijc} = \sum_{hw} R_{ih} C_{jw} x_{hwc}

        with the shares R and C of the old pixels in the new ones, whose rows sum to 1.

        Args:
            images: (..., height, width, channels) floating.
            array_module: numpy, or jax.numpy.

        Returns:
            (..., size, size, channels).
        """
        if self.to_grey:
            weights = np.asarray(GREY_WEIGHTS, images.dtype)
            images = array_module.einsum("...c,c->...", images, weights)[..., None]
        if self.size is not None:
            height, width = images.shape[-3:-1]
            rows, columns = (_shares(n, self.size).astype(images.dtype) for n in (height, width))
            images = array_module.einsum("ih,...hwc->...iwc", rows, images, optimize=True)
            images = array_module.einsum("jw,...iwc->...ijc", columns, images, optimize=True)
        return images


def pixels_of(view: View, shape: tuple[int, ...]) -> Pixels | None:
    """What a view does to samples of a shape; None where it changes nothing."""
    to_grey = view.grey and shape[-1] > 1
    size = None if view.resize is None or shape[:2] == (view.resize,) * 2 else view.resize
    return Pixels(to_grey, size) if to_grey or size is not None else None


def _shares(old: int, new: int) -> Array:
    """(new, old) shares of old pixels, in a row of them, in the means that are the new ones."""
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    lower, upper = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
    shares: Array = np.clip(upper - lower, 0, None) * (new / old)
    return shares


@dataclass(frozen=True)
class Selection:
    """The samples of a split that a view leaves.

    Attributes:
        rows: Their places among the stored samples, in increasing order; None: the first `count`.
        count: Number of samples.
    """

    rows: npt.NDArray[np.int32] | None
    count: int

    def of(self, stored: Array) -> Array:
        """The samples themselves: of a memory map a part of the map where they lie in a row."""
        return stored[: self.count] if self.rows is None else stored[self.rows]


def select(
    view: View, split: str, stored_targets: Array, num_classes: int | None, where: str
) -> Selection:
    """Select a split's samples: steps 1 to 3.

    Args:
        view: The view.
        split: "train" or "test".
        stored_targets: The split's labels (samples,), or regression targets.
        num_classes: Number of classes; None for regression.
        where: What comes before a key in messages.

    Returns:
        The selection.

    Raises:
        InputError: There are fewer samples than asked for.
    """
    per_class = view.samples_per_class if split == "train" else None
    key = f"num_{split}"
    wanted = getattr(view, key)
    if num_classes is None or (view.classes is None and per_class is None):
        check_count(wanted, len(stored_targets), f"{where}{key}")
        return Selection(None, wanted or len(stored_targets))
    labels = np.asarray(stored_targets)
    kept = []
    for name in view.classes or range(num_classes):
        found = np.flatnonzero(labels == name)
        if len(found) < (per_class or 1):
            fault = f"classes: {name}" if per_class is None else f"samples_per_class: {per_class}"
            raise InputError(
                f"{where}{fault} is not allowed: class {name} has {len(found)} {split} samples; "
                "allowed: at least one, and not more than each class has"
            )
        kept.append(found[:per_class])
    rows = np.sort(np.concatenate(kept)).astype(np.int32)
    check_count(wanted, len(rows), f"{where}{key}")
    return Selection(rows[:wanted], wanted or len(rows))


def view_labels(
    view: View, split: str, selection: Selection, stored_labels: Array, num_classes: int
) -> tuple[npt.NDArray[np.int32], int | None]:
    """The labels of a split's samples: steps 1, 4 and 5.

    Args:
        view: The view.
        split: "train" or "test".
        selection: The split's samples.
        stored_labels: (stored samples,) the split's labels.
        num_classes: Number of classes of the dataset.

    Returns:
        (samples,) labels and the number of classes; or ±1 and None under `labels: parity`.
    """
    labels = np.array(selection.of(stored_labels), dtype=np.int32)
    if split == "train" and view.shuffled_labels is not None:
        generator = np.random.default_rng([view.shuffled_labels, *_SHUFFLE_STREAM])
        labels = generator.permutation(labels)
    if view.labels == "parity":
        return np.where(labels % 2 == 0, 1, -1).astype(np.int32), None
    if view.classes is None:
        return labels, num_classes
    places = np.full(num_classes, -1, dtype=np.int32)
    places[list(view.classes)] = np.arange(len(view.classes))
    return places[labels], len(view.classes)
