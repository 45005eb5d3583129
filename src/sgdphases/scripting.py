"""What every workflow script does: log, and end on bad input with one line."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sgdphases.errors import InputError
from sgdphases.interruption import EXIT_REQUEUE, Interrupted

EXIT_BAD_INPUT = 2

# What the user can do something about where a file cannot be written or read.
_STORAGE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
)


@contextmanager
def ending_on_bad_input() -> Iterator[None]:
    """End the process on an InputError in the block, while the workflow is parsed.

    One line and nothing else: Snakemake would add its own account of where the Snakefile raised it.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_BAD_INPUT)


def refuse_unwritable(*folders: Path) -> None:
    """Say in one line that results cannot be written, where Snakemake would show a traceback.

    Args:
        folders: Folders that are there, or will be made.

    Raises:
        InputError: One cannot be written to, or not be made.
    """
    for folder in folders:
        nearest = folder.absolute()
        while not nearest.exists():
            nearest = nearest.parent
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(
                f"{nearest}: no permission to write there, for {folder.absolute()}; allowed: a "
                "copy of this repository in a folder of yours, and a results_dir to write to"
            )


def run_script(action: Callable[[], None], log: Sequence[str]) -> None:
    """Run the body of a workflow script.

    Messages go to standard error and to the rule's log file. An InputError, a full disk and a
    folder without permission end the process with one line and exit code 2; an interruption with
    one line and EXIT_REQUEUE. Any other exception is a fault of the program and shows its
    traceback.

    Args:
        action: The body of the script.
        log: The rule's log files; the first is written, an empty sequence writes none.
    """
    # A full disk that takes no line of the log must not hide the one line that says so.
    logging.raiseExceptions = False
    console = logging.StreamHandler(sys.stderr)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[console], force=True)
    logging.getLogger("sgdphases").setLevel(logging.INFO)
    logger = logging.getLogger(__name__)
    try:
        if log:
            Path(log[0]).parent.mkdir(parents=True, exist_ok=True)
            logging.getLogger().addHandler(logging.FileHandler(log[0], mode="w", encoding="utf-8"))
        action()
    except InputError as error:
        logger.error("error: %s", error)
        sys.exit(EXIT_BAD_INPUT)
    except Interrupted as interruption:
        logger.warning("%s", interruption)
        sys.exit(EXIT_REQUEUE)
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        logger.error(
            "error: %s: %s; what is finished is kept",
            error.filename or "a file",
            os.strerror(error.errno),
        )
        sys.exit(EXIT_BAD_INPUT)


def use_threads(threads: int) -> None:
    """Give JAX on the CPU the threads that Snakemake gave the job; call before importing JAX."""
    if "jax" in sys.modules:
        raise RuntimeError("use_threads comes too late: JAX is imported already")
    os.environ["NPROC"] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def run_jobs_from(source: str) -> None:
    """Let the jobs that this process starts import the package from the folder `source`."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([source, *others]))
