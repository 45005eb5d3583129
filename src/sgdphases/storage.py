"""Write results so that nothing half-written is ever taken for finished."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sgdphases.errors import InputError

# Every job of the workflow parses it again, and the plan needs no table.
if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A job that was started again elsewhere may write the same file at the same time.
    writer = f"{platform.node()}-{os.getpid()}"
    temporary = path.with_name(f".{path.stem}.{writer}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        # A full disk is reported without a name, or with the temporary one.
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a table that the workflow wrote.

    Raises:
        InputError: The file is missing or damaged.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(
            f"{path}: no readable table ({problem}); delete it and run again"
        ) from None


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table to Parquet, atomically."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_text(text: str, path: Path) -> None:
    """Write a text file, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
