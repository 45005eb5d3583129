"""The folder in which a dataset is put together, and what of it outlives an interruption."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdphases.datasets.arrays import naming
from sgdphases.datasets.progress import format_bytes
from sgdphases.errors import InputError

IDENTITY_FILE = "identity.json"
JOURNAL_FILE = "journal.json"


@dataclass(frozen=True)
class WorkFolder:
    """A folder beside the dataset's own, on the same file system.

    Attributes:
        dataset: The dataset's name, for messages.
        path: The folder.
        num_threads: How many threads may be used at a time.
    """

    dataset: str
    path: Path
    num_threads: int = 1

    @property
    def arrays(self) -> Path:
        """Where the finished arrays are put together."""
        return self.path / "arrays"

    @property
    def downloads(self) -> Path:
        """Downloaded files: complete ones, and parts to be continued."""
        return self.path / "downloads"

    @property
    def scratch(self) -> Path:
        """Whatever else a source needs on the way."""
        return self.path / "scratch"

    def open(self, identity: dict[str, Any]) -> None:
        """Make the folder ready, with what an interrupted preparation left of use in it.

        Args:
            identity: What the arrays depend on. Arrays that were begun under another are removed;
                downloads stay.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if _read_json(self.path / IDENTITY_FILE) != identity:
            (self.path / JOURNAL_FILE).unlink(missing_ok=True)
        self._remove_unusable()
        (self.path / IDENTITY_FILE).write_text(json.dumps(identity), encoding="utf-8")
        for folder in (self.arrays, self.downloads, self.scratch):
            folder.mkdir(exist_ok=True)

    def close(self) -> None:
        """Remove all but what the next attempt can go on with: the folder too, if that is empty."""
        self._remove_unusable()
        if not self._has_downloads() and not (self.path / JOURNAL_FILE).exists():
            self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path)

    def read_journal(self) -> list[dict[str, Any]]:
        """Read what an interrupted preparation noted as finished; nothing if it noted nothing."""
        journal = _read_json(self.path / JOURNAL_FILE)
        return journal if isinstance(journal, list) else []

    def write_journal(self, journal: list[dict[str, Any]]) -> None:
        """Note what is finished. Without a journal, begun arrays do not outlive an interruption."""
        path = self.path / JOURNAL_FILE
        temporary = path.with_suffix(".tmp")
        with naming(path):
            temporary.write_text(json.dumps(journal), encoding="utf-8")
            temporary.replace(path)

    def require_space(self, num_bytes: int) -> None:
        """Refuse to begin what will not fit.

        Args:
            num_bytes: How much is still to be written.

        Raises:
            InputError: There is less room on the disk.
        """
        free = shutil.disk_usage(self.path).free
        if free < num_bytes:
            raise InputError(
                f"dataset {self.dataset}: no space: {format_bytes(num_bytes)} needed, "
                f"{format_bytes(free)} free in {self.path.parent}; free some, or set results_dir "
                f"to a folder on another disk"
            )

    def _remove_unusable(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        if not (self.path / JOURNAL_FILE).exists():
            shutil.rmtree(self.arrays, ignore_errors=True)

    def _has_downloads(self) -> bool:
        return self.downloads.is_dir() and any(self.downloads.iterdir())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
