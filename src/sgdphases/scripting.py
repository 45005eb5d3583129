"""What every workflow script does: log, and end on bad input with one line."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sgdphases.errors import InputError

EXIT_BAD_INPUT = 2


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
    """Give JAX on the CPU the threads that Snakemake gave the job; call before importing JAX."""
    if "jax" in sys.modules:
        raise RuntimeError("use_threads comes too late: JAX is imported already")
    os.environ["NPROC"] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def run_jobs_from(source: str) -> None:
    """Let the jobs that this process starts import the package from the folder `source`."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([source, *others]))
