"""CIFAR-5M: about six million images of a diffusion model trained on CIFAR-10.

Six .npz files of about 3 GB each are poured into one array file, a few samples at a time. What is
finished is noted part by part, with checksums of what was read and of what was written, so that a
killed preparation goes on after the last finished part.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.archives import read_tar_member
from sgdphases.datasets.arrays import ArrayWriter, read_blocks, sha256_of
from sgdphases.datasets.fetching import (
    PublishedFile,
    check_manual_dir,
    fetch,
    locate,
    require_reachable,
)
from sgdphases.datasets.npz import Member, open_npz
from sgdphases.datasets.progress import Progress
from sgdphases.datasets.sources import PIXEL_SCALE, RawData
from sgdphases.datasets.work_folder import WorkFolder
from sgdphases.errors import InputError

logger = logging.getLogger(__name__)

IMAGE_SHAPE = (32, 32, 3)
CLASS_NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]

# No checksum of the parts is published; a definition may give those it expects.
PARTS = [
    PublishedFile(
        names=(f"part{number}.npz", f"cifar5m_part{number}.npz", f"cifar5m/part{number}.npz"),
        url=f"https://storage.googleapis.com/gresearch/cifar5m/part{number}.npz",
    )
    for number in range(6)
]
SAMPLES_PER_PART = 1_000_448  # of most parts; tells the space that downloads will need

CIFAR10 = PublishedFile(
    names=("cifar-10-binary.tar.gz",),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    num_bytes=170_052_171,
    checksum="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
TEST_BATCH = "cifar-10-batches-bin/test_batch.bin"
NUM_TEST = 10_000


def read_cifar5m(
    work: WorkFolder, manual_dir: Path | None, sha256: Mapping[str, str] | None = None
) -> RawData:
    """Pool the six parts as training samples; the test samples are those of CIFAR-10.

    Args:
        work: Where the arrays are written; downloaded parts are deleted as soon as they are read.
        manual_dir: A folder with the published files part0.npz to part5.npz (or cifar5m_part0.npz
            or cifar5m/part0.npz and so on) and cifar-10-binary.tar.gz, or None.
        sha256: Expected checksums of the parts, by the name part0.npz and so on.

    Returns:
        uint8 images (samples, 32, 32, 3) and int32 labels, in the order of the files.

    Raises:
        InputError: A file is missing, damaged, or not what it should be. Finished parts are kept.
    """
    check_manual_dir(manual_dir)
    parts = [replace(part, checksum=(sha256 or {}).get(part.names[0])) for part in PARTS]
    test_inputs, test_targets = _read_test_split(work, manual_dir)
    done = _usable_journal(parts, work, manual_dir)
    _require_space(parts[len(done) :], work, manual_dir)
    num_done = sum(entry["num_samples"] for entry in done)
    if done:
        logger.info("%s: going on after %d finished parts", work.dataset, len(done))
    for part in parts[: len(done)]:
        (work.downloads / part.names[0]).unlink(missing_ok=True)
    require_reachable(parts[len(done) :], work, manual_dir)
    inputs_file, targets_file = work.arrays / "train_inputs.npy", work.arrays / "train_targets.npy"
    # A journal, even of nothing, has the work folder keep its arrays.
    work.write_journal(done)
    with (
        ArrayWriter(inputs_file, IMAGE_SHAPE, np.uint8, num_done) as inputs,
        ArrayWriter(targets_file, (), np.int32, num_done) as targets,
    ):
        for part in parts[len(done) :]:
            [path] = fetch([part], work, manual_dir)
            is_download = path.parent == work.downloads
            try:
                checksum = part.checksum or sha256_of(path)
                done.append(_append_part(path, checksum, inputs, targets))
            except InputError:
                if is_download:  # to be downloaded again
                    path.unlink()
                raise
            inputs.flush()
            targets.flush()
            work.write_journal(done)
            if is_download:
                path.unlink()
    return RawData(
        train_inputs=np.load(inputs_file, mmap_mode="r"),
        train_targets=np.load(targets_file, mmap_mode="r"),
        test_inputs=test_inputs,
        test_targets=test_targets,
        num_classes=len(CLASS_NAMES),
        scale=PIXEL_SCALE,
        origin={
            "description": "CIFAR-5M, all six parts (its training and test samples); the test "
            "samples are those of CIFAR-10",
            "homepage": "https://github.com/preetum/cifar5m",
            "citation": "Nakkiran, Neyshabur and Sedghi (2021), The Deep Bootstrap Framework; "
            "Krizhevsky (2009), Learning multiple layers of features from tiny images",
            "files": {
                part.url: {"sha256": entry["sha256"], "bytes": entry["bytes"]}
                for part, entry in zip(parts, done, strict=True)
            }
            | {CIFAR10.url: {"sha256": CIFAR10.checksum, "bytes": CIFAR10.num_bytes}},
        },
        licence="not stated by its authors; see the homepage",
        sample_order="as in the files, part after part",
        class_names=CLASS_NAMES,
    )


def _append_part(
    path: Path, checksum: str, inputs: ArrayWriter, targets: ArrayWriter
) -> dict[str, Any]:
    """Pour one part into the arrays and describe it for the journal."""
    digests = {"inputs_sha256": hashlib.sha256(), "targets_sha256": hashlib.sha256()}
    first = inputs.num_samples
    with open_npz(path, ("X", "Y")) as members:
        _check_headers(members, path)
        labels = members["Y"].read()
        outside = np.flatnonzero((labels < 0) | (labels >= len(CLASS_NAMES)))
        if outside.size:
            raise InputError(
                f"{path}: Y[{outside[0]}] is label {labels[outside[0]]}; allowed: 0 to "
                f"{len(CLASS_NAMES) - 1}"
            )
        labels = labels.astype(np.int32)
        total = members["X"].num_bytes
        progress = Progress(f"{path.name}: reading", total, "bytes")
        for block in members["X"].blocks():
            inputs.append(block)
            digests["inputs_sha256"].update(block.data)
            progress.update((inputs.num_samples - first) * inputs.sample_bytes)
        targets.append(labels)
        digests["targets_sha256"].update(labels.data)
    return {
        "bytes": path.stat().st_size,
        "sha256": checksum,
        "num_samples": len(labels),
        **{name: digest.hexdigest() for name, digest in digests.items()},
    }


def _check_headers(members: Mapping[str, Member], path: Path) -> None:
    images, labels = members["X"], members["Y"]
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or images.is_fortran:
        raise InputError(
            f"{path}: X holds {images.dtype} values of shape {images.shape}; allowed: uint8 values "
            f"of shape (samples, {', '.join(map(str, IMAGE_SHAPE))}) in C order"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not labels.shape[0]:
        raise InputError(
            f"{path}: Y holds {labels.dtype} values of shape {labels.shape}; allowed: integers of "
            f"shape ({images.shape[0]},), one for each image in X"
        )


def _read_test_split(
    work: WorkFolder, manual_dir: Path | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Read the test batch of CIFAR-10: for each image a label, then its red, green and blue."""
    [path] = fetch([CIFAR10], work, manual_dir)
    content = np.frombuffer(read_tar_member(path, TEST_BATCH), np.uint8)
    height, width, channels = IMAGE_SHAPE
    if content.size != NUM_TEST * (1 + height * width * channels):
        raise InputError(f"{path}: {TEST_BATCH}: {content.size} bytes; not {NUM_TEST} images")
    records = content.reshape(NUM_TEST, -1)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= len(CLASS_NAMES):
        raise InputError(f"{path}: {TEST_BATCH}: has label {labels.max()}; allowed: 0 to 9")
    images = records[:, 1:].reshape(NUM_TEST, channels, height, width)
    return images.transpose(0, 2, 3, 1), labels


def _usable_journal(
    parts: list[PublishedFile], work: WorkFolder, manual_dir: Path | None
) -> list[dict[str, Any]]:
    """What the journal notes as finished, as far as the files still bear it out."""
    usable: list[dict[str, Any]] = []
    first = 0
    for part, entry in zip(parts, work.read_journal(), strict=False):
        logger.info("%s: checking what an interrupted run made of %s", work.dataset, part.names[0])
        path = locate(part, manual_dir)
        is_same_source = path is None or (
            path.stat().st_size == entry["bytes"] and sha256_of(path) == entry["sha256"]
        )
        if part.checksum not in (None, entry["sha256"]) or not is_same_source:
            logger.info("%s: %s has changed; reading it again", work.dataset, part.names[0])
            break
        if not _is_kept(work, first, entry):
            logger.info("%s: %s was not kept whole", work.dataset, part.names[0])
            break
        usable.append(entry)
        first += entry["num_samples"]
    return usable


def _is_kept(work: WorkFolder, first: int, entry: dict[str, Any]) -> bool:
    """Whether the arrays still hold a part, from sample `first` on."""
    for name in ("inputs", "targets"):
        digest = hashlib.sha256()
        path = work.arrays / f"train_{name}.npy"
        try:
            for block in read_blocks(path, first=first, number=entry["num_samples"]):
                digest.update(block.data)
        except (OSError, EOFError, ValueError):
            return False
        if digest.hexdigest() != entry[f"{name}_sha256"]:
            return False
    return True


def _require_space(parts: list[PublishedFile], work: WorkFolder, manual_dir: Path | None) -> None:
    """Check that the images of the given parts will fit, and one downloaded part at a time."""
    image_bytes = int(np.prod(IMAGE_SHAPE))
    needed = 0
    downloaded = 0
    for part in parts:
        if path := locate(part, manual_dir):
            with open_npz(path, ("X", "Y")) as members:
                _check_headers(members, path)
                needed += members["X"].num_bytes
        else:
            needed += SAMPLES_PER_PART * image_bytes
            downloaded = SAMPLES_PER_PART * image_bytes
    work.require_space(needed + downloaded)
