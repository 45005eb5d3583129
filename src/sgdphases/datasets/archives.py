"""Archives, read without anything in them reaching beyond them.

Members are read where they lie, and none is unpacked: no name or link in an archive can make a
file elsewhere. An archive that tries to is refused all the same, as it is not what it should be.
"""

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sgdphases.errors import InputError

# What reading a damaged or encrypted archive raises, OSError apart.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive after a look at the names of its members.

    Args:
        path: The archive.

    Yields:
        The archive.

    Raises:
        InputError: It is damaged, or a member lies outside or is a link.
    """
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise InputError(f"{path}: not a zip archive, or a truncated one: {error}") from error
    with archive:
        for member in archive.infolist():
            _check_name(path, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                _refuse(path, member.filename, "is a link")
        yield archive


def read_tar_member(path: Path, name: str) -> bytes:
    """Read one file of a tar archive, compressed or not.

    Args:
        path: The archive.
        name: The member.

    Returns:
        Its content.

    Raises:
        InputError: The archive is damaged, has no such file, or a member before it lies outside or
            is a link.
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _check_name(path, member.name)
                if not (member.isreg() or member.isdir()):
                    _refuse(path, member.name, "is a link or no file")
                if member.name == name and (file := archive.extractfile(member)):
                    return file.read()
    except DAMAGE as error:
        raise InputError(f"{path}: damaged archive: {error}") from error
    except OSError as error:
        # gzip reports damage as an error of the system without a number.
        if error.errno is not None:
            raise
        raise InputError(f"{path}: damaged archive: {error}") from error
    raise InputError(f"{path}: has no {name}; it is not the official archive")


def _check_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or (parts and (parts[0] == "/" or parts[0].endswith(":"))):
        _refuse(path, name, "leads out of it")


def _refuse(path: Path, member: str, fault: str) -> None:
    raise InputError(
        f"{path}: unsafe archive: member {member!r} {fault}; get the official one again"
    )
