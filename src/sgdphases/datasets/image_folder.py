"""A user's own images, in one sub-folder for each class."""

from pathlib import Path

import numpy as np

from sgdphases.datasets.images import GREY_MODES, read_size_and_mode, store_images
from sgdphases.datasets.progress import Progress
from sgdphases.datasets.sources import PIXEL_SCALE, RawData
from sgdphases.datasets.work_folder import WorkFolder
from sgdphases.errors import InputError

SPLITS = ("train", "test")

# The classes' images would otherwise come one class after the other, and the first samples of
# the set would be of one class.
ORDER_SEED = 0


def read_image_folder(
    path: Path,
    work: WorkFolder,
    image_size: int | None = None,
    test_fraction: float | None = None,
    split_seed: int = 0,
) -> RawData:
    """Read images from `train/<class>` and `test/<class>`, or from `<class>` and split them.

    Classes are numbered in the order of their sorted names. Files whose name begins with a dot are
    passed over.

    Args:
        path: The folder.
        work: Where the arrays are written.
        image_size: Height and width that images are brought to, shorter side first, then cut
            around the centre; None for images that are all of one size.
        test_fraction: Share of each class's images that make the test split, at least one; None
            where there are folders train and test.
        split_seed: Seed of that split.

    Returns:
        uint8 images (samples, height, width, channels) with one channel if all are grey, else
        three; int32 labels; in an order shuffled once, the same way everywhere.

    Raises:
        InputError: A folder is missing or empty, the splits' classes differ, a file is no image or
            a damaged one, or sizes differ without `image_size`.
    """
    splits = _find_splits(path, test_fraction, split_seed)
    classes = sorted(splits["train"])
    size, num_channels = _common_format(path, splits, image_size)
    num_images = sum(len(files) for split in splits.values() for files in split.values())
    work.require_space(num_images * size[0] * size[1] * num_channels)
    targets = {}
    for split in SPLITS:
        files = [
            (file, label) for label, name in enumerate(classes) for file in splits[split][name]
        ]
        order = np.random.default_rng(ORDER_SEED).permutation(len(files))
        files = [files[i] for i in order]
        targets[split] = np.array([label for _, label in files], np.int32)
        store_images(
            work.arrays / f"{split}_inputs.npy",
            ((str(file), file) for file, _ in files),
            len(files),
            Path.read_bytes,
            num_channels,
            size,
            image_size is not None,
            work.num_threads,
        )
    return RawData(
        train_inputs=np.load(work.arrays / "train_inputs.npy", mmap_mode="r"),
        train_targets=targets["train"],
        test_inputs=np.load(work.arrays / "test_inputs.npy", mmap_mode="r"),
        test_targets=targets["test"],
        num_classes=len(classes),
        scale=PIXEL_SCALE,
        origin={
            "description": "the user's own images",
            "folder": path.name,
            "image_size": image_size,
            "split": "folders train and test"
            if test_fraction is None
            else f"a fraction {test_fraction} of each class, seed {split_seed}",
        },
        licence="as the user obtained the images",
        sample_order=f"shuffled once, seed {ORDER_SEED}",
        class_names=classes,
    )


def class_folders(path: Path, is_to_be_split: bool) -> list[Path]:
    """The folders of classes below a folder: a new, lost or renamed image changes one of them.

    Args:
        path: The folder.
        is_to_be_split: Whether it holds the classes themselves, and no folders train and test.

    Returns:
        Those that there are.

    Raises:
        InputError: The name of a class cannot be written.
    """
    parents = [path] if is_to_be_split else [path / split for split in SPLITS]
    return [folder for parent in parents for folder in _subfolders(parent)]


def _find_splits(
    path: Path, test_fraction: float | None, split_seed: int
) -> dict[str, dict[str, list[Path]]]:
    """Image files by split and class."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give the path of a folder of images")
    if test_fraction is None:
        for split in SPLITS:
            if not (path / split).is_dir():
                raise InputError(
                    f"{path}: has no folder {split!r}; needed: train/<class>/ and test/<class>/, "
                    f"or <class>/ and test_fraction in the dataset definition"
                )
        splits = {split: _find_classes(path / split) for split in SPLITS}
        differing = sorted(set(splits["train"]) ^ set(splits["test"]))
        if differing:
            lacking = "test" if differing[0] in splits["train"] else "train"
            raise InputError(
                f"{path / lacking}: class folder {differing[0]!r} is missing; it must hold the "
                f"same class folders as its sister"
            )
        return splits
    splits = {split: {} for split in SPLITS}
    generator = np.random.default_rng(split_seed)
    for name, files in _find_classes(path).items():
        num_test = max(1, round(test_fraction * len(files)))
        if num_test >= len(files):
            raise InputError(
                f"{path / name}: {len(files)} images; too few to set a fraction of "
                f"{test_fraction} apart for testing"
            )
        chosen = set(generator.permutation(len(files))[:num_test].tolist())
        splits["test"][name] = [file for i, file in enumerate(files) if i in chosen]
        splits["train"][name] = [file for i, file in enumerate(files) if i not in chosen]
    return splits


def _find_classes(path: Path) -> dict[str, list[Path]]:
    """Image files by class, both sorted by name."""
    classes = {}
    for folder in _subfolders(path):
        files = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        if not files:
            raise InputError(f"{folder}: no images in this class folder")
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: not a file; a class folder holds images only")
        classes[folder.name] = files
    if len(classes) < 2:
        raise InputError(
            f"{path}: {len(classes)} class folders; at least 2 are needed, each with its images"
        )
    return classes


def _subfolders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    for entry in entries:
        # It may have led to a class.
        if entry.is_symlink() and not entry.exists():
            raise InputError(f"{entry}: a link that leads nowhere; remove it or mend it")
    for folder in folders:
        try:
            folder.name.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path}: class folder {folder.name!a} is not allowed; allowed: names in UTF-8"
            ) from error
    return folders


def _common_format(
    path: Path, splits: dict[str, dict[str, list[Path]]], image_size: int | None
) -> tuple[tuple[int, int], int]:
    """Size that the images have or are brought to, and their number of channels."""
    files = [file for split in splits.values() for images in split.values() for file in images]
    progress = Progress(f"{path.name}: looking at the images", len(files), "images")
    sizes: dict[tuple[int, int], Path] = {}
    is_grey = True
    for number, file in enumerate(files):
        size, mode = read_size_and_mode(file)
        sizes.setdefault(size, file)
        is_grey = is_grey and mode in GREY_MODES
        progress.update(number)
    num_channels = 1 if is_grey else 3
    if image_size is not None:
        return (image_size, image_size), num_channels
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise InputError(
            f"{other}: {second[0]} x {second[1]} pixels, but {one} has {first[0]} x {first[1]}; "
            f"give image_size in the dataset definition to bring all to one size"
        )
    return next(iter(sizes)), num_channels
