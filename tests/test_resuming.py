"""Killed, interrupted and starved training jobs go on and end at the same tables."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml

from sgdphases import training
from sgdphases.devices import use_compilation_cache
from sgdphases.errors import InputError
from sgdphases.interruption import EXIT_REQUEUE
from sgdphases.scripting import run_script
from sgdphases.storage import read_parquet, write_parquet
from test_engine import make_dataset, make_run, make_settings, train

NUM_STEPS = 4000


def long_job():
    """Some seconds of training, measured often, with a run that diverges on the way."""
    shared = {"batch_size": 4, "width": 64, "momentum": 0.5}
    runs = [
        make_run(f"run {i}", "fully_connected", **shared, learning_rate=rate, seed=i)
        for i, rate in enumerate((0.001, 0.01, 0.1, 1e8))
    ]
    measured = {"every": 20, "ntk_top_eigenvalue": {"every": 500}}
    settings = make_settings(
        NUM_STEPS,
        measurements=measured,
        curvature={"batch_size": 12, "num_batches": 1, "num_lanczos_steps": 4},
    )
    return runs, make_dataset((5,)), settings


def work(folder, name, checkpoints):
    """The body of a job's process; leaves its messages and its exit code like a workflow script."""
    with (folder / f"{name}.log").open("a", buffering=1) as log:
        sys.stderr = log
        use_compilation_cache(folder / "cache")

        def action():
            runs, dataset, settings = long_job()
            shard = train(
                runs, dataset, settings, checkpoint_folder=checkpoints, checkpoint_seconds=0.0
            )
            write_parquet(shard.runs, folder / name / "runs.parquet")
            write_parquet(shard.history, folder / name / "history.parquet")

        run_script(action, [])


# Its processes have imported JAX but not started it: half of what starting Python would take.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["sgdphases.training"])


def start(folder, name, checkpoints=None):
    process = CONTEXT.Process(target=work, args=(folder, name, checkpoints))
    process.start()
    return process


def finish(process, folder, name):
    process.join(timeout=300)
    assert process.exitcode == 0, (folder / f"{name}.log").read_text()


def tables(folder):
    return [read_parquet(folder / f"{name}.parquet") for name in ("runs", "history")]


def assert_equal(left, right):
    for one, other in zip(left, right, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder with the compiled programs, and the tables of a job that nothing disturbed."""
    folder = tmp_path_factory.mktemp("job")
    finish(start(folder, "whole"), folder, "whole")
    runs, history = tables(folder / "whole")
    assert runs["status"].tolist() == ["finished", "finished", "finished", "diverged"]
    assert runs["steps"].tolist()[:3] == [NUM_STEPS] * 3
    return folder, [runs, history]


def newest_step(checkpoints):
    names = [path.name for path in checkpoints.rglob("*.npz")]
    return max((int(name.split("-")[-2]) for name in names), default=0)


def wait_for_step(process, checkpoints, step):
    deadline = time.monotonic() + 120
    while newest_step(checkpoints) < step and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_twenty_times(uninterrupted):
    folder, expected = uninterrupted
    checkpoints = folder / "checkpoints"
    chance = random.Random(0)
    steps = []
    for kill in range(20):
        process = start(folder, "killed", checkpoints)
        if kill % 4 == 3:
            # Anywhere before it has got further, while it starts or reads what was saved.
            time.sleep(chance.uniform(0.0, 1.5))
        else:
            # While it trains, measures or saves.
            wait_for_step(process, checkpoints, newest_step(checkpoints) + 1)
            time.sleep(chance.uniform(0.0, 0.1))
        assert process.exitcode is None, "it ended before it was killed: the job is too short"
        process.kill()
        process.join()
        steps.append(newest_step(checkpoints))
    assert steps == sorted(steps), "a killed job lost what an earlier one had saved"
    assert len(set(steps)) > 10
    assert steps[-1] < NUM_STEPS
    finish(start(folder, "killed", checkpoints), folder, "killed")
    assert_equal(tables(folder / "killed"), expected)


def test_a_terminated_job_saves_and_asks_to_be_run_again(uninterrupted):
    folder, expected = uninterrupted
    checkpoints = folder / "terminated_checkpoints"
    process = start(folder, "terminated", checkpoints)
    wait_for_step(process, checkpoints, 1)
    process.terminate()
    process.join(timeout=60)
    messages = (folder / "terminated.log").read_text()
    assert process.exitcode == EXIT_REQUEUE, messages
    assert "run again to resume" in messages
    assert "Traceback" not in messages
    saved = newest_step(checkpoints)
    assert 0 < saved < NUM_STEPS
    finish(start(folder, "terminated", checkpoints), folder, "terminated")
    assert f"going on from step {saved}" in (folder / "terminated.log").read_text()
    assert_equal(tables(folder / "terminated"), expected)


# Within one process.


@pytest.fixture
def short_job():
    rates = (0.03, 0.04, 0.05, 0.06)
    runs = [
        make_run(f"run {i}", "fully_connected", learning_rate=rate, seed=i)
        for i, rate in enumerate(rates)
    ]
    return runs, make_dataset((5,))


def train_until_saved(job, folder, monkeypatch, saves=2):
    """Train until so many checkpoints have been written, then fail as a crash would."""
    original = training.CheckpointFolder.save
    count = 0

    def save(self, *arguments):
        nonlocal count
        saved = original(self, *arguments)
        count += 1
        if count == saves:
            raise KeyboardInterrupt
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(training.CheckpointFolder, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(*job, checkpoint_folder=folder, checkpoint_seconds=0.0)
    return sorted(folder.rglob("*.npz"))


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_checkpoints(damaged, short_job, tmp_path, monkeypatch, caplog):
    expected = train(*short_job)
    files = train_until_saved(short_job, tmp_path, monkeypatch)
    assert len(files) == 2
    for file in sorted(files, key=lambda path: int(path.name.split("-")[-2]))[-damaged:]:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    shard = train(*short_job, checkpoint_folder=tmp_path)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert sum("damaged" in record.getMessage() for record in warnings) >= damaged
    assert_equal([shard.runs, shard.history], [expected.runs, expected.history])


def test_a_checkpoint_of_other_settings_is_not_used(short_job, tmp_path, monkeypatch):
    runs, dataset = short_job
    train_until_saved(short_job, tmp_path, monkeypatch)
    settings = make_settings(20, data_seed=4)
    expected = train(runs, dataset, settings)
    shard = train(runs, dataset, settings, checkpoint_folder=tmp_path)
    assert_equal([shard.runs, shard.history], [expected.runs, expected.history])


def test_programs_that_finished_are_not_trained_again(short_job, tmp_path, monkeypatch):
    runs, dataset = short_job
    expected = train(runs, dataset, most_runs=2)
    trained = []
    first = training._Trainer.train

    def fail_in_second(self):
        if self.table["run_id"][0] == "run 2":
            raise KeyboardInterrupt
        return first(self)

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "train", fail_in_second)
        with pytest.raises(KeyboardInterrupt):
            train(runs, dataset, most_runs=2, checkpoint_folder=tmp_path)

    def advance(*arguments):
        trained.append(np.asarray(arguments[5].learning_rate).tolist())
        return ADVANCE(*arguments)

    monkeypatch.setattr(training, "advance", advance)
    shard = train(runs, dataset, most_runs=2, checkpoint_folder=tmp_path)
    assert set(map(tuple, trained)) == {(0.05, 0.06)}
    assert_equal([shard.runs, shard.history], [expected.runs, expected.history])


ADVANCE = training.advance


def test_a_job_that_goes_on_keeps_its_programs(short_job, tmp_path, monkeypatch, caplog):
    """Though more memory is free then."""
    expected = train(*short_job, most_runs=2)
    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "runs_that_fit", lambda self: 2)
        train_until_saved(short_job, tmp_path, monkeypatch)
    with caplog.at_level("INFO"):
        shard = train(*short_job, checkpoint_folder=tmp_path)
    assert any("resuming at step" in message for message in caplog.messages)
    assert_equal([shard.runs, shard.history], [expected.runs, expected.history])


def test_out_of_memory_halves_the_runs(short_job, monkeypatch, caplog):
    runs, dataset = short_job
    expected = train(runs, dataset)
    sizes = []

    def advance(*arguments):
        states = arguments[4]
        sizes.append(states.status.shape[0])
        if states.status.shape[0] > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")
        return ADVANCE(*arguments)

    monkeypatch.setattr(training, "advance", advance)
    shard = train(runs, dataset)
    assert sizes[0] == 4
    assert set(sizes[1:]) == {2}
    assert "out of device memory with 4 runs at once: going on with 2" in caplog.messages
    assert shard.runs["run_id"].tolist() == expected.runs["run_id"].tolist()
    np.testing.assert_allclose(
        shard.runs["final_train_loss"], expected.runs["final_train_loss"], rtol=1e-11
    )


def test_a_single_run_too_large_for_the_memory(short_job, monkeypatch):
    def advance(*arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")

    monkeypatch.setattr(training, "advance", advance)
    with pytest.raises(InputError, match="a single run does not fit"):
        train(*short_job)


def test_other_errors_are_not_taken_for_too_little_memory(short_job, monkeypatch):
    def advance(*arguments):
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setattr(training, "advance", advance)
    with pytest.raises(RuntimeError, match="something else"):
        train(*short_job)


# Through Snakemake.

EXPERIMENT = {
    "description": "A job to be killed",
    "dataset": "digits",
    "hyperparameters": {"model": "fully_connected", "width": 64, "batch_size": 64},
    "grid": {"learning_rate": [0.5, 1.0]},
    "stopping": {"num_steps": 6000},
    "measurements": {"every": 50},
    "evaluation": {"num_train": 64, "num_test": 64},
    "checkpoint_seconds": 0.05,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_workflow_goes_on(how, workspace):
    workspace.write("config/experiments/user/job.yaml", yaml.safe_dump(EXPERIMENT))
    target = "results/experiments/user/job/runs.parquet"
    config = ["--config", "experiments=user/job", "scale=smoke"]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", target, *config]
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "PYTHONPATH": str(workspace.path / "src"),
    }
    process = subprocess.Popen(
        command,
        cwd=workspace.path,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    scratch = workspace.path / "results/scratch"
    deadline = time.monotonic() + 180
    while newest_step(scratch) == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    # The whole group, as a cluster's scheduler does.
    os.killpg(process.pid, how)
    process.wait(timeout=60)
    assert newest_step(scratch) > 0
    assert not (workspace.path / target).exists()
    workspace.snakemake("--unlock", *config)
    result = workspace.snakemake(target, "--rerun-incomplete", *config)
    assert result.returncode == 0, result.output
    assert "going on from step" in result.output
    assert not list(scratch.rglob("*.npz"))
    resumed = tables(workspace.path / "results/experiments/user/job")

    # The same job, never interrupted.
    for folder in (workspace.path / "results/experiments/user/job/training_shards").iterdir():
        for file in folder.glob("*.parquet"):
            file.unlink()
    result = workspace.snakemake(target, *config)
    assert result.returncode == 0, result.output
    assert "going on from step" not in result.output
    assert_equal(resumed, tables(workspace.path / "results/experiments/user/job"))
