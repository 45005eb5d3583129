"""Checkpoints of a training job: written atomically, verified when read, never fatal.

A checkpoint is one plain `.npz` file, named by who may use it, its step and its sha256::

    <identity>-<step>-<digest>.npz

It is written under a temporary name, flushed to the disk and renamed, and so exists whole or not at
all; what the disk does to it later shows in the digest. Nothing in it is pickled. The last two are
kept. Two jobs may write to the same folder at once, as when a scheduler starts a job again whose
first process lives on: each removes only what neither needs.
"""

import errno
import hashlib
import io
import json
import logging
import os
import platform
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# A part of the identity: raise it when the contents of the file change.
_FORMAT = 1
_KEPT = 2
_NAME = re.compile(r"(?P<identity>[0-9a-f]{16})-(?P<step>\d{12})-(?P<digest>[0-9a-f]{16})\.npz")
_TEMPORARY_NAME = re.compile(r"\.writing-(?P<host>.*)-(?P<process>\d+)\.tmp")
# A temporary file that nobody has written to for so long is of a job that was killed.
_SECONDS_UNTIL_ABANDONED = 600.0
# Saving may take one part in so many of the wall time.
_LARGEST_SHARE = 20.0


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        step: Step that it was saved at.
        tree: Pytree of NumPy arrays; the caller puts them on devices.
        tables: Tables by name.
        scalars: The scalars, as JSON keeps them.
    """

    step: int
    tree: Any
    tables: dict[str, pd.DataFrame]
    scalars: dict[str, Any]


def make_identity(**parts: Any) -> str:
    """Hash of what a checkpoint must agree in with the job that resumes from it.

    Args:
        **parts: What determines the job's numbers, in types that JSON or NumPy knows: runs,
            settings, fingerprint of the code, lowering. The versions of JAX and NumPy and the kind
            of device are added.

    Returns:
        16 hexadecimal digits.
    """
    device = jax.devices()[0]
    software = [version(package) for package in ("jax", "jaxlib", "numpy")]
    known = [software, device.platform, device.device_kind, parts]
    return _digest(json.dumps(known, sort_keys=True, default=_plain))


class CheckpointFolder:
    """The last two checkpoints of one job, in a folder that is theirs alone.

    Nothing here raises an OSError: a checkpoint that cannot be written or read costs a warning and,
    at worst, time.
    """

    def __init__(self, path: Path, identity: str, interval: float = 60.0) -> None:
        """Open the folder; it comes into being with the first checkpoint.

        Args:
            path: The folder.
            identity: Who may use the checkpoints, from `make_identity`.
            interval: Seconds of wall time from one checkpoint to the next.
        """
        self.path = path
        self._identity = _digest(f"{_FORMAT} {identity}")
        self._interval = interval
        self._saved_at = time.monotonic()
        self._cost = 0.0
        self._kept: list[Path] = []
        self._failure: str | None = None

    def due(self) -> bool:
        """Whether it is time to save: the interval has passed, and 20 times what saving took."""
        waited = time.monotonic() - self._saved_at
        return waited >= max(self._interval, _LARGEST_SHARE * self._cost)

    def save(
        self,
        step: int,
        tree: Any,
        tables: Mapping[str, pd.DataFrame],
        scalars: Mapping[str, Any],
    ) -> bool:
        """Write a checkpoint, or warn that it could not be written.

        The warning comes once, until the reason changes or saving works again.

        Args:
            step: Step that training has reached.
            tree: Pytree of arrays, JAX or NumPy, of any type but random keys.
            tables: Tables by name.
            scalars: Values that JSON can hold; NumPy scalars become Python's.

        Returns:
            Whether it was written.
        """
        began = time.monotonic()
        members = _pack(tree, tables, scalars)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            written = self._write(step, members)
            self._kept = [*(path for path in self._kept if path != written), written][-_KEPT:]
            self._remove_others()
        except OSError as error:
            self._report_failure(error)
            return False
        finally:
            self._saved_at = time.monotonic()
            self._cost = self._saved_at - began
        if self._failure is not None:
            logger.info("checkpoints are written again at %s", self.path)
            self._failure = None
        return True

    def load(self, like: Any) -> Checkpoint | None:
        """Read the newest whole checkpoint that this job may use.

        Each file that is passed over costs one line.

        Args:
            like: Pytree of arrays or `jax.ShapeDtypeStruct` with the structure, the shapes and the
                types that the checkpoint must have.

        Returns:
            The checkpoint, or None: then training starts anew.
        """
        try:
            found = list(_checkpoints(self.path))
        except OSError as error:
            logger.warning("checkpoints at %s cannot be read (%s)", self.path, _reason(error))
            return None
        mine = sorted((p for p, name in found if name["identity"] == self._identity), reverse=True)
        if found and not mine:
            logger.warning(
                "checkpoints at %s are of other runs, settings, code or software; starting anew",
                self.path,
            )
        for path in mine:
            try:
                checkpoint = _read(path, like)
            except FileNotFoundError:
                continue  # another process has just replaced it
            except _UnusableError as problem:
                logger.warning("checkpoint %s %s; it is not used", path, problem)
                continue
            self._kept = [path]
            logger.info("resuming at step %d from %s", checkpoint.step, path)
            return checkpoint
        if mine:
            logger.warning("no checkpoint at %s can be used; starting anew", self.path)
        return None

    def delete(self) -> None:
        """Remove the checkpoints, once the results that they would lead to are written."""
        self._kept = []
        delete_checkpoints(self.path)

    def _write(self, step: int, members: Mapping[str, NDArray[Any]]) -> Path:
        temporary = self.path / f".writing-{platform.node()}-{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **members)
                file.flush()
                os.fsync(file.fileno())
            digest = _file_digest(temporary)
            path = self.path / f"{self._identity}-{step:012d}-{digest}.npz"
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(self.path)
        return path

    def _remove_others(self) -> None:
        """Remove every checkpoint but those to keep, and what killed jobs left half-written."""
        now = time.time()
        for path in self.path.iterdir():
            is_old = _NAME.fullmatch(path.name) is not None and path not in self._kept
            if is_old or _is_abandoned(path, now):
                path.unlink(missing_ok=True)

    def _report_failure(self, error: OSError) -> None:
        reason = _reason(error)
        if reason != self._failure:
            logger.warning(
                "checkpoint could not be written (%s) at %s; training goes on without",
                reason,
                self.path,
            )
        self._failure = reason


def delete_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in a folder and in its subfolders, and the folders left empty.

    Args:
        folder: The folder; it need not exist. Files that are no checkpoints stay.
    """
    try:
        for path in folder.iterdir() if folder.exists() else ():
            if path.is_dir() and not path.is_symlink():
                delete_checkpoints(path)
            elif _NAME.fullmatch(path.name) or _TEMPORARY_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        # Gone already; or other files are in there.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
            logger.warning("checkpoints at %s are not removed (%s)", folder, _reason(error))


class _UnusableError(Exception):
    """A checkpoint is damaged or does not fit; the message says how."""


def _plain(value: Any) -> Any:
    """What JSON can hold of a NumPy value."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _flush_folder(path: Path) -> None:
    """Make a rename last through a loss of power, where the file system knows of such a thing."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(folder)
    except OSError:
        pass
    finally:
        os.close(folder)


def _checkpoints(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """The checkpoints in a folder with their parsed names; none where there is no folder."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if name := _NAME.fullmatch(path.name):
            yield path, name


def _is_abandoned(path: Path, now: float) -> bool:
    """Whether a file is a temporary one whose writer is gone."""
    name = _TEMPORARY_NAME.fullmatch(path.name)
    if name is None:
        return False
    try:
        if now - path.stat().st_mtime > _SECONDS_UNTIL_ABANDONED:
            return True
        if name["host"] == platform.node():
            os.kill(int(name["process"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # gone by now, or a process of somebody else
        pass
    return False


def _pack(
    tree: Any, tables: Mapping[str, pd.DataFrame], scalars: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Everything as arrays that a file without pickles can hold, by the name of the member."""
    leaves = [(key, np.asarray(leaf)) for key, leaf in _leaves(tree)]
    metadata = {
        "arrays": [_describe(key, leaf) for key, leaf in leaves],
        "tables": list(tables),
        "scalars": dict(scalars),
    }
    text = json.dumps(metadata, default=_plain)
    return {
        "metadata": np.frombuffer(text.encode(), np.uint8),
        **{f"array_{i}": _as_native(leaf) for i, (_, leaf) in enumerate(leaves)},
        **{f"table_{i}": _table_bytes(table) for i, table in enumerate(tables.values())},
    }


def _read(path: Path, like: Any) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        _UnusableError: It is damaged, or holds other arrays than `like`.
        FileNotFoundError: It is gone.
    """
    name = _NAME.fullmatch(path.name)
    assert name is not None  # only such files are read
    try:
        if _file_digest(path) != name["digest"]:
            raise _UnusableError("is damaged (its sha256 is not that of its name)")
        with np.load(path, allow_pickle=False) as file:
            metadata = json.loads(file["metadata"].tobytes())
            wanted = [_describe(key, leaf) for key, leaf in _leaves(like)]
            if metadata["arrays"] != wanted:
                raise _UnusableError("holds arrays of another structure, shape or type")
            leaves = [
                file[f"array_{i}"].view(jnp.dtype(dtype))
                for i, (_, _, dtype) in enumerate(metadata["arrays"])
            ]
            tables = {
                table: pd.read_parquet(io.BytesIO(file[f"table_{i}"].tobytes()))
                for i, table in enumerate(metadata["tables"])
            }
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise _UnusableError(f"cannot be read ({str(error) or type(error).__name__})") from error
    tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Checkpoint(int(name["step"]), tree, tables, metadata["scalars"])


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _describe(key: str, leaf: Any) -> list[Any]:
    """Name, shape and type of a leaf, in the words of JSON."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return [key, list(leaf.shape), str(leaf.dtype)]


def _as_native(array: NDArray[Any]) -> NDArray[Any]:
    """The array, or, of a type that NumPy cannot write (bfloat16), its bytes as integers."""
    if array.dtype.isbuiltin == 1:
        return array
    return array.view(f"u{array.dtype.itemsize}")


def _table_bytes(table: pd.DataFrame) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return np.frombuffer(buffer.getbuffer(), np.uint8)
