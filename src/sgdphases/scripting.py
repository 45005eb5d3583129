"""What every workflow script does: log, and end on bad input with one line."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sgdphases.errors import InputError

EXIT_BAD_INPUT = 2


def run_script(action: Callable[[], None], log: Sequence[str]) -> None:
    """Run the body of a workflow script.

    Messages go to standard error and to the rule's log file. An InputError ends the process with
    one line and exit code 2; any other exception is a fault of the program and shows its traceback.

    Args:
        action: The body of the script.
        log: The rule's log files; the first is written, an empty sequence writes none.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log:
        Path(log[0]).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log[0], mode="w", encoding="utf-8"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=handlers, force=True)
    logging.getLogger("sgdphases").setLevel(logging.INFO)
    try:
        action()
    except InputError as error:
        logging.getLogger(__name__).error("error: %s", error)
        sys.exit(EXIT_BAD_INPUT)


def use_threads(threads: int) -> None:
    """Give JAX's CPU backend as many threads as Snakemake gave the job; call before importing JAX."""
    if "jax" in sys.modules:
        raise RuntimeError("use_threads comes too late: JAX is imported already")
    os.environ["NPROC"] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
