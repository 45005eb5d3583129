"""Tiny ImageNet: 200 classes of ImageNet in 64x64 pixels, as its authors publish it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdphases.datasets.archives import DAMAGE, open_zip
from sgdphases.datasets.fetching import PublishedFile, check_manual_dir, fetch
from sgdphases.datasets.images import store_images
from sgdphases.datasets.sources import PIXEL_SCALE, RawData
from sgdphases.datasets.work_folder import WorkFolder
from sgdphases.errors import InputError

FOLDER = "tiny-imagenet-200"
ARCHIVE = PublishedFile(
    names=("tiny-imagenet-200.zip",),
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    num_bytes=248_100_043,
    checksum="90528d7ca1a48142e341f4ef8d21d0de",
    algorithm="md5",
)
NUM_CLASSES = 200
TRAIN_PER_CLASS = 500
NUM_VALIDATION = 10_000
IMAGE_SIZE = (64, 64)

# The archive has one class after the other; the first samples should be of all of them.
ORDER_SEED = 0


@dataclass(frozen=True)
class Tree:
    """The files of the set, unpacked or not.

    Attributes:
        where: The archive or the folder, for messages.
        names: Paths of all files below the set's own folder, with forward slashes.
        read: Gives a file's content.
    """

    where: Path
    names: frozenset[str]
    read: Callable[[str], bytes]

    def lines(self, name: str) -> list[str]:
        """The lines of a text file that are not empty."""
        if name not in self.names:
            raise InputError(f"{self.where}: {name} is missing; get the official archive again")
        try:
            text = self.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where}: {name} is no text: {error}") from error
        return [line for line in text.splitlines() if line.strip()]


def read_tiny_imagenet(work: WorkFolder, manual_dir: Path | None) -> RawData:
    """Read Tiny ImageNet; its validation images are the test samples, as its own have no labels.

    A label is the line, counted from 0, of the class in wnids.txt. Grey images are turned to RGB.

    Args:
        work: Where the arrays are written.
        manual_dir: A folder with tiny-imagenet-200.zip or the unpacked folder tiny-imagenet-200,
            or None.

    Returns:
        100,000 and 10,000 uint8 images (samples, 64, 64, 3) and int32 labels; the training samples
        in an order shuffled once, the same way everywhere.

    Raises:
        InputError: The archive is damaged or can neither be found nor downloaded, a file is missing
            or too many, an annotation is wrong, or an image is damaged.
    """
    with _open_tree(work, manual_dir) as tree:
        classes = _read_classes(tree)
        words = dict(line.split("\t", 1) for line in tree.lines("words.txt") if "\t" in line)
        splits = {
            "train": _list_training_images(tree, classes),
            "test": _list_validation_images(tree, classes),
        }
        num_images = sum(map(len, splits.values()))
        work.require_space(num_images * IMAGE_SIZE[0] * IMAGE_SIZE[1] * 3)
        for split, images in splits.items():
            store_images(
                work.arrays / f"{split}_inputs.npy",
                ((f"{tree.where}: {name}", name) for name, _ in images),
                len(images),
                tree.read,
                num_channels=3,
                size=IMAGE_SIZE,
                resizes=False,
                num_threads=work.num_threads,
            )
        is_archive = tree.where.is_file()
    return RawData(
        train_inputs=np.load(work.arrays / "train_inputs.npy", mmap_mode="r"),
        train_targets=np.array([label for _, label in splits["train"]], np.int32),
        test_inputs=np.load(work.arrays / "test_inputs.npy", mmap_mode="r"),
        test_targets=np.array([label for _, label in splits["test"]], np.int32),
        num_classes=len(classes),
        scale=PIXEL_SCALE,
        origin={
            "description": "Tiny ImageNet, official "
            + ("archive" if is_archive else "archive as unpacked by the user")
            + "; the test samples are its validation images",
            "homepage": "http://cs231n.stanford.edu/",
            "citation": "Le and Yang (2015), Tiny ImageNet Visual Recognition Challenge",
            "files": {ARCHIVE.url: {"md5": ARCHIVE.checksum, "bytes": ARCHIVE.num_bytes}}
            if is_archive
            else {},
        },
        licence="as ImageNet: non-commercial research and education, https://image-net.org",
        sample_order=f"training samples shuffled once, seed {ORDER_SEED}; test samples as in "
        "val_annotations.txt",
        class_names=[words.get(wnid, wnid) for wnid in classes],
    )


@contextmanager
def _open_tree(work: WorkFolder, manual_dir: Path | None) -> Iterator[Tree]:
    check_manual_dir(manual_dir)
    folder = manual_dir / FOLDER if manual_dir else None
    if folder is not None and folder.is_dir():
        names = frozenset(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        yield Tree(folder, names, lambda name: (folder / name).read_bytes())
        return
    [path] = fetch([ARCHIVE], work, manual_dir)
    with open_zip(path) as archive:

        def read(name: str) -> bytes:
            try:
                return archive.read(f"{FOLDER}/{name}")
            except DAMAGE as error:
                raise InputError(f"{path}: {name} is damaged: {error}") from error

        prefix = f"{FOLDER}/"
        members = (name for name in archive.namelist() if not name.endswith("/"))
        yield Tree(
            path,
            frozenset(name.removeprefix(prefix) for name in members if name.startswith(prefix)),
            read,
        )


def _read_classes(tree: Tree) -> list[str]:
    classes = tree.lines("wnids.txt")
    if len(set(classes)) != NUM_CLASSES or len(classes) != NUM_CLASSES:
        raise InputError(
            f"{tree.where}: wnids.txt: {len(set(classes))} classes in {len(classes)} lines; "
            f"{NUM_CLASSES} different ones expected"
        )
    return classes


def _list_training_images(tree: Tree, classes: list[str]) -> list[tuple[str, int]]:
    """File and label of each training image, in the order of the samples."""
    by_class: dict[str, list[str]] = {wnid: [] for wnid in classes}
    for name in tree.names:
        parts = name.split("/")
        if parts[0] != "train" or parts[2:3] != ["images"]:
            continue
        if parts[1] not in by_class:
            raise InputError(f"{tree.where}: train/{parts[1]} is no class of wnids.txt")
        by_class[parts[1]].append(name)
    images = []
    for label, wnid in enumerate(classes):
        files = sorted(by_class[wnid], key=_number_in_name)
        if len(files) != TRAIN_PER_CLASS:
            raise InputError(
                f"{tree.where}: train/{wnid}/images: {len(files)} images; {TRAIN_PER_CLASS} "
                f"expected; get or unpack the official archive again"
            )
        images += [(name, label) for name in files]
    order = np.random.default_rng(ORDER_SEED).permutation(len(images))
    return [images[i] for i in order]


def _list_validation_images(tree: Tree, classes: list[str]) -> list[tuple[str, int]]:
    labels = {wnid: label for label, wnid in enumerate(classes)}
    images = []
    for line in tree.lines("val/val_annotations.txt"):
        file, wnid = [*line.split("\t"), ""][:2]
        name = f"val/images/{file}"
        if wnid not in labels:
            raise InputError(
                f"{tree.where}: val/val_annotations.txt: {file} is of class {wnid!r}, which is not "
                f"in wnids.txt"
            )
        if name not in tree.names:
            raise InputError(f"{tree.where}: {name} is missing, but val_annotations.txt lists it")
        images.append((name, labels[wnid]))
    if len(images) != NUM_VALIDATION or len(dict(images)) != NUM_VALIDATION:
        raise InputError(
            f"{tree.where}: val/val_annotations.txt: {len(dict(images))} images in {len(images)} "
            f"lines; {NUM_VALIDATION} different ones expected"
        )
    return images


def _number_in_name(name: str) -> tuple[int, str]:
    """Sorts n01443537_9.JPEG before n01443537_10.JPEG."""
    numbers = re.findall(r"\d+", name.rsplit("_", 1)[-1])
    return (int(numbers[0]) if numbers else 0, name)
