"""What all parts of the dataset stage share about arrays and their files."""

import hashlib
from pathlib import Path
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        The digest in hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
