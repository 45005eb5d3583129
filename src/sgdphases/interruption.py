"""End a training job early, at a signal, without losing what it has done.

A scheduler that takes a machine back sends SIGTERM and kills the job some seconds later (in Slurm
`KillWait`, or the partition's `GraceTime`); `--signal=USR1@120` has Slurm give notice earlier.
Within that time the job saves its state and exits with EXIT_REQUEUE. Snakemake counts any exit code
but 0 as a failed job: with `--retries` it starts the job again, which resumes, and a later call of
Snakemake does the same. Where Slurm runs the job by itself, `--requeue` starts it again after a
pre-emption, and `RequeueExit=75` in slurm.conf after this exit code; a batch script may also call
`scontrol requeue $SLURM_JOB_ID` on it.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h: a failure that passes; try again later.
EXIT_REQUEUE = 75

# Asked to end; a second one is meant to end the process at once.
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
# What schedulers and terminals send; some of them do not exist on every platform.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
# One request reaches a process several times: from the terminal or the job step, which signal all
# processes of a group, and from the parent, which passes on what it got itself.
_SECONDS_OF_ONE_REQUEST = 1.0


class Interrupted(Exception):  # noqa: N818 - not an error
    """Training has ended early because a signal asked for it.

    Attributes:
        step: Step that training had reached.
        saved: Whether a checkpoint of that step was written.
    """

    def __init__(self, step: int, saved: bool = True) -> None:
        saving = "progress saved" if saved else "progress since the last checkpoint not saved"
        super().__init__(f"interrupted at step {step}: {saving}; run again to resume")
        self.step = step
        self.saved = saved


class Interruption:
    """What `saving_on_signal` yields."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether a signal has asked the process to save and end."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask for it as a signal would."""
        self._event.set()


@contextmanager
def saving_on_signal(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[Interruption]:
    """Turn signals into a flag; a second SIGTERM or SIGINT ends the process at once.

    The loop polls the flag between the segments of training::

        with saving_on_signal() as interruption:
            while ...:
                states = advance(states)
                if interruption.requested:
                    raise Interrupted(step, checkpoints.save(step, states, ...))

    A signal that the process was started to ignore (as by nohup) stays ignored. Outside the main
    thread, where Python handles no signals, nothing changes and the flag is never raised.

    Args:
        signals: The signals to turn into the flag.

    Yields:
        The flag, as `requested`.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    # Python runs handlers between two of its instructions, but the main thread may be inside a
    # compiled program for minutes. The signals' numbers are therefore also written to a pipe, by
    # the operating system's handler, and read by a thread of their own.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handled = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    watcher = threading.Thread(
        target=_watch, args=(reader, frozenset(handled), interruption), daemon=True
    )
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old_handlers = {
        number: signal.signal(number, lambda *_: interruption.request()) for number in handled
    }
    watcher.start()
    try:
        yield interruption
    finally:
        for number, handler in old_handlers.items():
            # None: installed by other code than Python's, and out of its reach.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(old_writer)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, signals: frozenset[signal.Signals], interruption: Interruption) -> None:
    """Read the numbers of arriving signals until the other end of the pipe is closed."""
    told_at: float | None = None
    is_told = False
    while byte := os.read(reader, 1):
        if byte[0] not in signals:
            continue
        number, now = signal.Signals(byte[0]), time.monotonic()
        if not is_told:
            is_told = True
            interruption.request()
            logger.warning("%s: progress will be saved at the end of this segment", number.name)
        # Notice given ahead by the other signals is no first call to end.
        if number in _ENDING:
            if told_at is None:
                told_at = now
            elif now - told_at > _SECONDS_OF_ONE_REQUEST:
                logger.warning("second %s: ending at once", number.name)
                os._exit(128 + number)
