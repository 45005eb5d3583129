"""Signals end a job early, and nothing is lost."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sgdphases.interruption import EXIT_REQUEUE, SIGNALS, Interrupted, saving_on_signal
from sgdphases.scripting import EXIT_BAD_INPUT

SRC = Path(__file__).parents[1] / "src"


def start(program, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SRC), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


TRAINING = """
import sys, time
from pathlib import Path
import numpy as np
import pandas as pd
from sgdphases.checkpoints import CheckpointFolder
from sgdphases.interruption import Interrupted, saving_on_signal
from sgdphases.scripting import run_script

folder = Path(sys.argv[1])

def main():
    checkpoints = CheckpointFolder(folder / "scratch", "me")
    state, step, history = np.ones(3), 0, pd.DataFrame({"step": [0], "x": [1.0]})
    saved = checkpoints.load(state)
    if saved is not None:
        state, step, history = saved.tree, saved.step, saved.tables["history"]
    with saving_on_signal() as interruption:
        while step < 60:
            print(step, flush=True)
            time.sleep(0.02)
            state, step = state * 1.01 - 0.001 * step, step + 1
            row = pd.DataFrame({"step": [step], "x": [state[0]]})
            history = pd.concat([history, row], ignore_index=True)
            if interruption.requested:
                tables = {"history": history}
                raise Interrupted(step, checkpoints.save(step, state, tables, {}))
    history.to_parquet(folder / "history.parquet")
    checkpoints.delete()

run_script(main, [str(folder / "log" / "train.log")])
"""


def train(folder, *signals):
    """Train, sending the signals one after the other when some steps have been taken."""
    process = start(TRAINING, folder)
    for _ in range(10):
        process.stdout.readline()
    for number in signals:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_interrupted_training_resumes_and_gives_the_same_file(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert train(whole) == (0, "")

    steps = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        code, errors = train(parts, number)
        assert code == EXIT_REQUEUE == 75
        lines = errors.splitlines()
        assert f"{number.name}: progress will be saved at the end of this segment" in lines
        end = re.fullmatch(
            r"interrupted at step (\d+): progress saved; run again to resume", lines[-1]
        )
        assert end
        assert lines[-1] in (parts / "log" / "train.log").read_text().splitlines()
        steps.append(int(end[1]))
    assert 0 < steps[0] < steps[1] < 60
    code, errors = train(parts)
    assert code == 0
    assert f"resuming at step {steps[1]} from " in errors
    assert (parts / "history.parquet").read_bytes() == (whole / "history.parquet").read_bytes()
    assert not (parts / "scratch").exists()


def test_one_request_that_arrives_twice_is_one(tmp_path):
    """The job step and its parent both pass it on."""
    code, errors = train(tmp_path, signal.SIGINT, signal.SIGTERM)
    assert code == EXIT_REQUEUE
    assert "progress saved" in errors


# Seconds in one function of C that lets other threads run but that no signal wakes, as in a
# compiled program.
BUSY = """
import hashlib, logging
from sgdphases.interruption import saving_on_signal
logging.basicConfig(format="%(message)s")
with saving_on_signal():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


@pytest.mark.parametrize(
    ("signals", "ends_by"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 143),
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM), 143),
    ],
)
def test_second_signal_ends_at_once_even_within_a_compiled_program(signals, ends_by):
    with start(BUSY) as process:
        try:
            assert process.stdout.readline() == "busy\n"
            for number in signals[:-1]:
                process.send_signal(number)
                time.sleep(1.2)
                assert process.poll() is None
            # The first was told of at once, not when the program came back.
            first = process.stderr.readline()
            assert first.startswith(f"{signals[0].name}: progress will be saved")
            process.send_signal(signals[-1])
            assert process.wait(timeout=5) == ends_by
        finally:
            process.kill()


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def test_everything_is_as_before_afterwards():
    before, threads = handlers(), threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None

    def interrupted():
        with saving_on_signal() as interruption:
            assert handlers() != before
            assert not interruption.requested
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: interruption.requested)
            raise Interrupted(3)

    with pytest.raises(Interrupted):
        interrupted()
    assert handlers() == before
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_signals_that_the_process_ignores_stay_ignored():
    old = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with saving_on_signal() as interruption:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.1)
            assert not interruption.requested
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, old)


def test_other_threads_train_without():
    seen = []

    def train():
        with saving_on_signal() as interruption:
            seen.append((handlers(), interruption.requested))
            interruption.request()
            seen.append((handlers(), interruption.requested))

    before = handlers()
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [(before, False), (before, True)]


def test_message_does_not_claim_what_was_not_saved():
    assert "progress saved" in str(Interrupted(7))
    assert "not saved" in str(Interrupted(7, saved=False))
    assert Interrupted(7, saved=False).step == 7


SCRIPT = """
import errno, logging, os, sys
from pathlib import Path
from sgdphases.errors import InputError
from sgdphases.scripting import run_script
def main():
    logging.getLogger("sgdphases").info("at work")
    {body}
run_script(main, sys.argv[1:])
"""


def run_body(body, *log):
    process = start(SCRIPT.format(body=body), *log)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.splitlines()


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "raise PermissionError(errno.EACCES, 'no', '/a/file')",
            "error: /a/file: Permission denied; what is finished is kept",
        ),
        (
            "raise OSError(errno.EROFS, 'no', '/a/file')",
            "error: /a/file: Read-only file system; what is finished is kept",
        ),
        ("raise InputError('width: 0 is not allowed')", "error: width: 0 is not allowed"),
    ],
)
def test_what_the_user_can_mend_is_one_line(tmp_path, body, line):
    log = tmp_path / "logs" / "x.log"
    assert run_body(body, log) == (EXIT_BAD_INPUT, ["at work", line])
    assert log.read_text().splitlines() == ["at work", line]


def test_other_errors_show_where_they_come_from():
    code, lines = run_body("raise OSError(errno.EIO, 'broken', '/a/file')")
    assert code == 1
    assert "Traceback (most recent call last):" in lines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_full_disk_under_results_and_log_is_one_line():
    body = "Path('/dev/full').write_text('result')"
    code, lines = run_body(body, "/dev/full")
    assert code == EXIT_BAD_INPUT
    (line,) = [line for line in lines if line != "at work"]
    assert line.startswith("error: ")
    assert "No space left on device" in line
