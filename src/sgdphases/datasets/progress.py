"""How far the preparation of a dataset is, in lines of the log."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Tells how far something is: a line in the log now and then, none for what is soon over."""

    def __init__(self, what: str, total: int, unit: str = "samples", done: int = 0) -> None:
        """Start the clock.

        Args:
            what: What is being done.
            total: How much there is to do.
            unit: In what units; "bytes" are shown as MB and GB.
            done: How much was done before.
        """
        self._what = what
        self._total = total
        self._unit = unit
        self._first = done
        self._began = self._spoke = time.monotonic()

    def update(self, done: int) -> None:
        """Note how much is done by now, what was done before included."""
        now = time.monotonic()
        if now - self._spoke < SECONDS_BETWEEN_LINES or done <= self._first:
            return
        self._spoke = now
        pace = (done - self._first) / max(now - self._began, 1e-9)
        left = timedelta(seconds=round(max(self._total - done, 0) / pace))
        if self._unit == "bytes":
            amounts = [format_bytes(number) for number in (done, self._total, pace)]
        else:
            amounts = [str(done), f"{self._total} {self._unit}", f"{pace:.3g} {self._unit}"]
        logger.info("%s: %s of %s, %s/s, %s left", self._what, *amounts, left)


@contextmanager
def telling_growth(what: str, folder: Path) -> Iterator[None]:
    """Log now and then how much a folder holds, while a library fills it without a word."""
    is_over = threading.Event()

    def tell() -> None:
        while not is_over.wait(SECONDS_BETWEEN_LINES):
            logger.info("%s: %s so far", what, format_bytes(_size_of(folder)))

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def format_bytes(number: float) -> str:
    """Give a number of bytes in the unit that suits it, such as 3.1 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.{0 if unit == 'bytes' or number >= 100 else 1}f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        # Temporary files come and go.
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total
