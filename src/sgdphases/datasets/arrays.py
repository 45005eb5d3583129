"""What all parts of the dataset stage share about arrays and their files."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.progress import Progress

Array = npt.NDArray[Any]

MANIFEST_FILE = "manifest.json"
ARRAY_NAMES = ("train_inputs", "train_targets", "test_inputs", "test_targets")

# What is in memory at a time of an array too large for it.
BLOCK_BYTES = 8 * 2**20


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Compute a checksum of a file.

    Args:
        path: The file.
        algorithm: As `hashlib` names it.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.new(algorithm)
    progress = Progress(f"{path.name}: computing its checksum", path.stat().st_size, "bytes")
    done = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            progress.update(done)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    return digest_of(path, "sha256")


class ArrayWriter:
    """Writes an array file block by block, in the bytes that `numpy.save` would write.

    Neither the memory nor the number of samples need be known beforehand: the header is written
    again, in the same space, when the last sample is there::

        with ArrayWriter(path, (32, 32, 3), np.uint8) as writer:
            for block in blocks:
                writer.append(block)
    """

    def __init__(
        self, path: Path, sample_shape: tuple[int, ...], dtype: npt.DTypeLike, num_samples: int = 0
    ) -> None:
        """Open the file.

        Args:
            path: The file.
            sample_shape: Shape of one sample.
            dtype: Type of the array.
            num_samples: How many samples of a file written before stay; 0 starts anew.
        """
        self._path = path
        self._sample_shape = sample_shape
        self._dtype = np.dtype(dtype)
        self.num_samples = num_samples
        start = len(self._header()) + num_samples * self.sample_bytes
        with naming(path):
            self._file = path.open("r+b" if num_samples else "wb")
            self._file.write(self._header())
            self._file.truncate(start)
            self._file.seek(start)

    @property
    def sample_bytes(self) -> int:
        """Size of one sample."""
        return int(np.prod(self._sample_shape)) * self._dtype.itemsize

    def append(self, samples: Array) -> None:
        """Write further samples, (number, *sample_shape)."""
        if samples.shape[1:] != self._sample_shape or samples.dtype != self._dtype:
            raise ValueError(f"{samples.dtype} samples of shape {samples.shape[1:]}")
        with naming(self._path):
            self._file.write(np.ascontiguousarray(samples).data)
        self.num_samples += len(samples)

    def flush(self) -> None:
        """Make sure that what is written survives a crash of the machine."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def _header(self) -> bytes:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self.num_samples, *self._sample_shape),
            },
        )
        return header.getvalue()

    def __enter__(self) -> Self:
        """Give the writer itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Complete the header, unless the writing failed, and close the file."""
        with naming(self._path), self._file:
            if kind is None:
                self._file.seek(0)
                self._file.write(self._header())


def read_blocks(
    path: Path, block_bytes: int = BLOCK_BYTES, first: int = 0, number: int | None = None
) -> Iterator[Array]:
    """Read an array file along its first axis, a few samples at a time.

    A memory map would do the same, but what is read through it counts as memory of the process.

    Args:
        path: The file, with its samples one after the other (C order).
        block_bytes: About how much to read at a time.
        first: The first sample to read.
        number: How many to read, whether or not the header counts them already; None for all.

    Yields:
        Consecutive samples, (number, *sample_shape).

    Raises:
        EOFError: The file ends before the last of them.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        (num_samples, *sample_shape), _, dtype = np.lib.format.read_array_header_1_0(file)
        sample_size = int(np.prod(sample_shape))
        file.seek(first * sample_size * dtype.itemsize, os.SEEK_CUR)
        at_once = max(1, block_bytes // max(1, sample_size * dtype.itemsize))
        remaining = num_samples - first if number is None else number
        while remaining > 0:
            block = np.fromfile(file, dtype, min(at_once, remaining) * sample_size)
            if block.size != min(at_once, remaining) * sample_size:
                raise EOFError(f"{path}: ends before its last sample")
            yield block.reshape(-1, *sample_shape)
            remaining -= at_once


def describe_array(path: Path) -> dict[str, Any]:
    """What a manifest says of an array file."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"shape": list(array.shape), "dtype": array.dtype.name, **describe_file(path)}


def describe_file(path: Path) -> dict[str, Any]:
    """What a manifest says of any file."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the block the name of the file: a full disk is reported without one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
