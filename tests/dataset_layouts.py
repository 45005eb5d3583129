"""Writes archives and folders in the layouts in which datasets are published."""

import csv
import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sgdphases.datasets import cifar5m, tiny_imagenet
from sgdphases.datasets.arrays import digest_of

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]

REAL_DATA = os.environ.get("SGDPHASES_REAL_DATA")
NUM_PARTS = 6


def real_file(name: str) -> Path:
    """A file of the folder of real data; the test is skipped where there is none."""
    if REAL_DATA is None:
        pytest.skip(f"SGDPHASES_REAL_DATA is not set to a folder with {name}")
    path = Path(REAL_DATA) / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


# --- CIFAR -----------------------------------------------------------------------------------


def random_images(number: int, seed: int = 0) -> tuple[Images, Labels]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (number, 32, 32, 3), np.uint8)
    return images, generator.integers(0, 10, number)


def write_parts(
    folder: Path, images: Images, labels: Labels, compressed: Sequence[int] = ()
) -> list[Path]:
    """The six parts of CIFAR-5M, of unequal length, some of them compressed."""
    edges = np.linspace(0, len(images), NUM_PARTS + 1).astype(int)
    paths = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        paths.append(folder / f"part{number}.npz")
        save = np.savez_compressed if number in compressed else np.savez
        save(paths[-1], X=images[start:stop], Y=labels[start:stop])
    return paths


def cifar_records(images: Images, *labels: Labels) -> bytes:
    """Images in the binary layout of CIFAR: labels, then the red, green and blue pixels."""
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    columns = [np.asarray(column, np.uint8)[:, None] for column in labels]
    return np.concatenate([*columns, pixels], axis=1).tobytes()


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_cifar10(folder: Path, train: tuple[Images, Labels], test: tuple[Images, Labels]) -> Path:
    """The official binary archive, in five batches and one for testing."""
    batches = zip(*(np.array_split(array, 5) for array in train), strict=True)
    files = {
        f"cifar-10-batches-bin/data_batch_{number}.bin": cifar_records(*batch)
        for number, batch in enumerate(batches, start=1)
    }
    files["cifar-10-batches-bin/test_batch.bin"] = cifar_records(*test)
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join([*cifar5m.CLASS_NAMES, ""]).encode()
    return write_tar(folder / "cifar-10-binary.tar.gz", files)


def registered(file: Any, path: Path) -> Any:
    """The published file with the size and checksum of a smaller one that stands in for it."""
    return replace(file, num_bytes=path.stat().st_size, checksum=digest_of(path, file.algorithm))


# --- Tiny ImageNet ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TinySet:
    """Encoded images of a few classes, in the order of the labels."""

    wnids: list[str]
    names: list[str]
    train: list[list[bytes]]
    validation: list[tuple[bytes, int]]

    def files(self) -> dict[str, bytes]:
        files = {
            "wnids.txt": "\n".join([*self.wnids, ""]).encode(),
            # Sorted, and with more classes than there are, as the official one.
            "words.txt": "".join(
                f"{wnid}\t{name}\n"
                for wnid, name in sorted(
                    [*zip(self.wnids, self.names, strict=True), ("n99999999", "another")]
                )
            ).encode(),
            "val/val_annotations.txt": "".join(
                f"val_{i}.JPEG\t{self.wnids[label]}\t0\t32\t44\t62\n"
                for i, (_, label) in enumerate(self.validation)
            ).encode(),
        }
        for wnid, images in zip(self.wnids, self.train, strict=True):
            boxes = "".join(f"{wnid}_{i}.JPEG\t0\t10\t63\t58\n" for i in range(len(images)))
            files[f"train/{wnid}/{wnid}_boxes.txt"] = boxes.encode()
            for i, image in enumerate(images):
                files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = image
        for i, (image, _) in enumerate(self.validation):
            files[f"val/images/val_{i}.JPEG"] = image
        files["test/images/test_0.JPEG"] = self.validation[0][0]
        return files

    def register(self, monkeypatch: pytest.MonkeyPatch, archive: Path | None = None) -> None:
        """Let the loader expect this many classes and images, and this archive."""
        monkeypatch.setattr(tiny_imagenet, "NUM_CLASSES", len(self.wnids))
        monkeypatch.setattr(tiny_imagenet, "TRAIN_PER_CLASS", len(self.train[0]))
        monkeypatch.setattr(tiny_imagenet, "NUM_VALIDATION", len(self.validation))
        if archive is not None:
            monkeypatch.setattr(
                tiny_imagenet, "ARCHIVE", registered(tiny_imagenet.ARCHIVE, archive)
            )


def jpeg(
    seed: int, size: tuple[int, int] = (64, 64), mode: str = "RGB", kind: str = "JPEG"
) -> bytes:
    """A noisy encoded image."""
    channels = () if mode == "L" else (len(mode),)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *channels), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels, mode).save(content, kind)
    return content.getvalue()


def small_tiny_set() -> TinySet:
    """Three classes of two images, one grey, and four validation images."""
    wnids = ["n03", "n01", "n02"]
    train = [[jpeg(0), jpeg(1, mode="L")], [jpeg(2), jpeg(3)], [jpeg(4), jpeg(5)]]
    validation = [(jpeg(6), 2), (jpeg(7), 0), (jpeg(8), 1), (jpeg(9), 0)]
    return TinySet(wnids, ["cat", "dog", "fish"], train, validation)


def real_tiny_set(train_per_class: int, validation_per_class: int) -> TinySet:
    """The first images of each of the 200 genuine classes."""
    with np.load(real_file("tinyimagenet_200c_jpegbytes_16k_2k.npz")) as data:
        arrays = {key: data[key] for key in data.files}

    def image(split: str, i: int) -> bytes:
        start, stop = arrays[f"{split}_offsets"][i : i + 2]
        return arrays[f"{split}_jpeg"][start:stop].tobytes()

    def first(split: str, number: int) -> list[Labels]:
        labels = arrays[f"y_{split}"]
        return [np.flatnonzero(labels == label)[:number] for label in range(200)]

    validation = sorted(int(i) for found in first("val", validation_per_class) for i in found)
    return TinySet(
        wnids=[str(wnid) for wnid in arrays["wnids"]],
        names=[str(name) for name in arrays["class_names"]],
        train=[[image("train", i) for i in found] for found in first("train", train_per_class)],
        validation=[(image("val", i), int(arrays["y_val"][i])) for i in validation],
    )


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes], prefix: str = "tiny-imagenet-200/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path


# --- IMDB ------------------------------------------------------------------------------------


def read_reviews(number: int) -> list[dict[str, str]]:
    """The first so many genuine reviews of each split and label."""
    chosen: dict[tuple[str, str], list[dict[str, str]]] = {}
    with gzip.open(real_file("imdb_subset.csv.gz"), "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows = chosen.setdefault((row["split"], row["label"]), [])
            if len(rows) < number:
                rows.append(row)
    return [row for rows in chosen.values() for row in rows]


def write_imdb(folder: Path, reviews: Iterable[Mapping[str, str]]) -> Path:
    files = {"aclImdb/README": b"Large Movie Review Dataset v1.0"}
    for row in reviews:
        label = ("neg", "pos")[int(row["label"])]
        name = f"aclImdb/{row['split']}/{label}/{row['id']}_{row['rating']}.txt"
        files[name] = row["text"].encode()
    files["aclImdb/train/unsup/0_0.txt"] = b"A review without a label."
    return write_tar(folder / "aclImdb_v1.tar.gz", files)
