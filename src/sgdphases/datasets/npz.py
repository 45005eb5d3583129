"""Arrays in .npz files, checked before they are read, and read a few samples at a time."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from sgdphases.datasets.archives import DAMAGE, open_zip
from sgdphases.datasets.arrays import BLOCK_BYTES, Array
from sgdphases.errors import InputError


@dataclass(frozen=True)
class Member:
    """One array of an .npz file, none of it read yet but its header.

    Attributes:
        path: The file.
        key: The array's name in it.
        shape: Its shape.
        dtype: Its type, as stored.
        is_fortran: Whether the first index changes fastest in the file.
    """

    archive: zipfile.ZipFile
    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool

    @property
    def num_bytes(self) -> int:
        """Size of the array."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def blocks(self) -> Iterator[Array]:
        """Read the array along its first axis, a few samples at a time.

        Yields:
            Consecutive samples in C order and in this machine's byte order.

        Raises:
            InputError: The array is damaged; this may come after all of it was given.
        """
        if self.is_fortran:  # its samples do not lie one after the other
            yield self.read()
            return
        sample_shape = self.shape[1:]
        sample_bytes = int(np.prod(sample_shape)) * self.dtype.itemsize
        at_once = max(1, BLOCK_BYTES // max(1, sample_bytes))
        with _reporting_damage(self.path, self.key), self.archive.open(f"{self.key}.npy") as file:
            _read_header(file, self.path, self.key)
            for start in range(0, self.shape[0], at_once):
                number = min(at_once, self.shape[0] - start)
                content = file.read(number * sample_bytes)
                if len(content) != number * sample_bytes:
                    raise EOFError(f"it ends within sample {start + len(content) // sample_bytes}")
                block = np.frombuffer(content, self.dtype).reshape(number, *sample_shape)
                yield np.asarray(block, self.dtype.newbyteorder("="))
            if file.read(1):  # at the end the checksum is compared, too
                raise EOFError("it goes on after its last sample")

    def read(self) -> Array:
        """Read the whole array.

        Returns:
            The array in C order and in this machine's byte order.

        Raises:
            InputError: The array is damaged.
        """
        with _reporting_damage(self.path, self.key), self.archive.open(f"{self.key}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise EOFError("it goes on after its last sample")
        return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


@contextmanager
def open_npz(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Member]]:
    """Open an .npz file and read the headers of some of its arrays.

    Nothing in it is ever unpickled.

    Args:
        path: The file.
        keys: The arrays that it must have; others are ignored.

    Yields:
        The arrays by name, to be read within the block.

    Raises:
        InputError: The file is missing, damaged or no .npz file; an array is missing or holds
            anything but numbers.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of an .npz file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz file, or a truncated one; write it with np.savez")
    with open_zip(path) as archive:
        found = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        missing = [key for key in keys if key not in found]
        if missing:
            raise InputError(
                f"{path}: missing {', '.join(missing)}; needed: {', '.join(keys)}; "
                f"found: {', '.join(found) or 'nothing'}"
            )
        members = {}
        for key in keys:
            with _reporting_damage(path, key), archive.open(f"{key}.npy") as file:
                shape, is_fortran, dtype = _read_header(file, path, key)
            members[key] = Member(archive, path, key, shape, dtype, is_fortran)
        yield members


def _read_header(
    file: IO[bytes], path: Path, key: str
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise InputError(f"{path}: {key} is not an array of numbers")
    if dtype.hasobject:
        raise InputError(f"{path}: {key} holds Python objects; allowed: an array of numbers")
    return shape, is_fortran, dtype


@contextmanager
def _reporting_damage(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except (*DAMAGE, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: {key} is damaged: {error}") from error
