"""The workflow on a real Slurm, as a user runs it: `snakemake --profile slurm`.

The tests build on each other in this order, in one copy of the project: a Slurm job costs seconds.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cluster
import pandas as pd
import pytest
import yaml

from conftest import PROJECT, Result, Workspace, lay_out
from sgdphases.config import find_experiments

IMPATIENT = Path(__file__).with_name("impatient_snakemake.py")
# Six jobs at once keep two cores busy, and within memory.
JOBS = ["--jobs", "6"]
# Those of the atlas, of one paper.
CATAPULT = [
    name
    for name in find_experiments(PROJECT / "config/experiments", "headline")
    if name.startswith("catapult/")
]
SMOKE = ["scale=smoke", "accelerator=auto", f"experiments={json.dumps(CATAPULT)}"]
FAULTS = ["scale=smoke", "accelerator=auto", "experiments=[faults/*]"]
EXPERIMENT = "config/experiments/catapult/fc_mnist.yaml"
# Rules that run on the login node.
LOCAL = {
    "all",
    "spec",
    "curvature",
    "edges",
    "time_constant",
    "prediction",
    "figure",
    "claims",
    "usage",
}
NUM_VICTIMS = 5
VICTIMS_SCRATCH = "results/scratch/faults/victims"

VICTIMS = f"""\
# Runs that take some seconds, each a job of its own.
description: Runs to be disturbed
dataset: digits
hyperparameters: {{model: fully_connected, depth: 2, width: 96, activation: relu, batch_size: 64}}
grid:
  learning_rate: [0.05]
  seed: [{", ".join(map(str, range(NUM_VICTIMS)))}]
stopping: {{num_steps: 30000}}
measurements: {{every: 300}}
evaluation: {{num_train: 256, num_test: 256}}
checkpoint_seconds: 0.5
runs_per_shard: 1
figures: {{}}
"""


@pytest.fixture(scope="session")
def slurm():
    """The cluster, for as long as the tests run."""
    if reason := cluster.missing_requirement():
        pytest.skip(reason)
    cluster.start()
    yield
    cluster.stop()


@pytest.fixture(scope="session")
def project(slurm, tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("slurm") / "project")


@pytest.fixture(scope="session")
def local(project, tmp_path_factory):
    """The same tables on this machine alone, with what the jobs on Slurm leave of its cores.

    Programs that either side has compiled are not compiled again by the other.
    """
    workspace = lay_out(tmp_path_factory.mktemp("local") / "project")
    programs = project.path / "results/cache/programs"
    programs.mkdir(parents=True)
    link = workspace.path / "results/cache/programs"
    link.parent.mkdir(parents=True)
    link.symlink_to(programs)
    tables_alone = ["--until", "aggregate", "curvature", "theory"]
    with (workspace.path / "local.log").open("w") as log:
        process = subprocess.Popen(
            [
                *("nice", "-n", "19", sys.executable, "-m", "snakemake", "--nocolor"),
                *("--cores", "all", *tables_alone, "--config", *SMOKE),
            ],
            cwd=workspace.path,
            env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(workspace.path / "src")},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Linux may share cores by session first: nice counts within one, and this among them.
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text("19")
    yield process, workspace
    if process.poll() is None:
        process.terminate()
    process.wait()


def start(project: Workspace, name: str, *arguments: str) -> subprocess.Popen:
    """Start Snakemake with the profile; what it says goes to a file of that name."""
    log = (project.path / f"{name}.log").open("w")
    return subprocess.Popen(
        [
            *(sys.executable, IMPATIENT, "--profile", "slurm", "--nocolor", "--latency-wait", "10"),
            *("--slurm-init-seconds-before-status-checks", "1", *JOBS, *arguments),
        ],
        cwd=project.path,
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(project.path / "src")},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen, project: Workspace, name: str, timeout=600.0) -> Result:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return Result(process.returncode, (project.path / f"{name}.log").read_text(), "")


def run(project: Workspace, name: str, *arguments: str, timeout=600.0) -> Result:
    return finish(start(project, name, *arguments), project, name, timeout)


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    paths = sorted(folder.glob("experiments/*/*/*.parquet"))
    return {str(path.relative_to(folder)): pd.read_parquet(path) for path in paths}


def accounted(*fields: str, since: str = "now-1hours") -> list[list[str]]:
    """What the accounting knows of the jobs, those that were requeued several times."""
    text = cluster.run(
        "sacct", "-X", "--duplicates", "-n", "-P", f"-S{since}", f"--format={','.join(fields)}"
    )
    return [line.split("|") for line in text.splitlines()]


@pytest.fixture(scope="session")
def smoke(project, local):
    """The smoke scale of a paper on Slurm, beside the local run: its tables, before any edit."""
    began = time.monotonic()
    result = run(project, "smoke", "--config", *SMOKE, timeout=600)
    seconds = time.monotonic() - began
    assert result.returncode == 0, result.output[-4000:]
    print(f"smoke scale of the catapult paper on Slurm: {seconds:.0f} s")
    assert seconds < float(os.environ.get("SGDPHASES_SLURM_SECONDS", "240"))
    stats = result.job_stats
    states = Counter((partition, state) for partition, state in accounted("Partition", "State"))
    on_gpu = stats["training_shard"] + stats["curvature_shard"]
    elsewhere = sum(count for rule, count in stats.items() if rule not in LOCAL) - on_gpu
    assert states == {("gpu", "COMPLETED"): on_gpu, ("cpu", "COMPLETED"): elsewhere}
    for note in (project.path / "results").glob("experiments/*/*/training_shards/*/shard.json"):
        assert '"device": "cpu"' in note.read_text()

    on_slurm = tables(project.path / "results")
    assert len(on_slurm) > 30
    return on_slurm


def dry_run(project: Workspace) -> dict[str, int]:
    result = run(project, "dry", "--dry-run", "--config", *SMOKE)
    assert result.returncode == 0, result.output[-3000:]
    return result.job_stats


def edit(project: Workspace, change: Callable[[list[float]], None]) -> None:
    path = project.path / EXPERIMENT
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(document["scales"]["smoke"]["grid"]["learning_rate"]["values"])
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def num_figures(project: Workspace) -> int:
    document = yaml.safe_load((project.path / EXPERIMENT).read_text(encoding="utf-8"))
    return len(document["figures"])


@pytest.mark.usefixtures("smoke")
def test_a_cancelled_job_is_reported_and_a_rerun_does_what_is_left(project):
    """With an added value: one training job, and what is put together from it."""
    assert dry_run(project) == {}
    edit(project, lambda values: values.append(2.5))
    wanted = {"spec": 1, "training_shard": 1, "aggregate": 1, "curvature": 1, "claims": 1}
    wanted |= {"figure": num_figures(project), "usage": 1, "all": 1}
    assert dry_run(project) == wanted
    num_jobs = len(accounted("JobID"))

    process = start(project, "cancelled", "--retries", "0", "--config", *SMOKE)
    # At once: so small a job is soon over.
    (job,) = wait_for(lambda: running_jobs("gpu"), process)
    cluster.run("scancel", job)
    result = finish(process, project, "cancelled")
    assert result.returncode == 1
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in result.output
    assert "Error in rule training_shard" in result.output

    left = dry_run(project)
    assert left["training_shard"] == left["aggregate"] == 1
    assert not {"curvature_shard", "dataset", "theory"} & set(left)
    process = start(project, "rerun", "--config", *SMOKE)
    wait_for(lambda: any((project.path / ".snakemake/locks").iterdir()), process)
    beside = run(project, "beside", "--config", *SMOKE)
    assert beside.returncode == 1
    assert "Directory cannot be locked" in beside.output
    result = finish(process, project, "rerun")
    assert result.returncode == 0, result.output[-3000:]
    partitions = [partition for _, partition in accounted("JobID", "Partition")[num_jobs:]]
    # The cancelled one, and of the rerun training and aggregation.
    assert sorted(partitions) == ["cpu", "gpu", "gpu"]
    runs = pd.read_parquet(project.path / "results/experiments/catapult/fc_mnist/runs.parquet")
    assert 2.5 in runs["relative_learning_rate"].round(9).to_list()
    assert dry_run(project) == {}


@pytest.mark.usefixtures("smoke")
def test_a_removed_value_trains_nothing_and_a_changed_figure_draws_figures(project):
    edit(project, lambda values: values.remove(2.5))
    without_training = dry_run(project)
    assert without_training == {
        "spec": 1,
        "aggregate": 1,
        "curvature": 1,
        "figure": num_figures(project),
        "claims": 1,
        "usage": 1,
        "all": 1,
    }
    edit(project, lambda values: values.append(2.5))
    path = project.path / "src/sgdphases/figures/style.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "\n_CHANGED = 1\n", encoding="utf-8")
    figures = len(list((project.path / "results/figures").rglob("*.svg")))
    assert dry_run(project) == {"figure": figures, "all": 1}
    path.write_text(text, encoding="utf-8")


def wait_for(condition, process=None, seconds=120.0):
    """What the condition gives, once that is something."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert process is None or process.poll() is None, "Snakemake has ended"
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found


def running_jobs(partition: str) -> list[str]:
    return cluster.run("squeue", "-h", "-tR", f"-p{partition}", "-o%i").split()


def pending_jobs() -> list[str]:
    return cluster.run("squeue", "-h", "-tPD", "-pgpu", "-o%i").split()


def nodes_of_jobs() -> dict[str, str]:
    """Node of each running job of the partition `gpu`."""
    shown = cluster.run("squeue", "-h", "-tR", "-pgpu", "-o%i %N")
    return dict(line.split() for line in shown.splitlines())


def training_processes(job: str) -> set[int]:
    """The processes of a Slurm job that train: two, where the first one has outlived its node."""
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            if b".train_shard.py" not in (folder / "cmdline").read_bytes():
                continue
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_JOB_ID={job}".encode() in environment:
            found.add(int(folder.name))
    return found


def freeze_victims(project: Workspace, process: subprocess.Popen) -> dict[str, int]:
    """Hold each training process once it has saved a checkpoint, until all are held; by job."""
    frozen: dict[str, int] = {}

    def are_frozen():
        for job in set(nodes_of_jobs()) - set(frozen):
            for number in training_processes(job):
                if any((project.path / VICTIMS_SCRATCH / shard_of(number)).rglob("*.npz")):
                    os.kill(number, signal.SIGSTOP)
                    frozen[job] = number
        return len(frozen) == NUM_VICTIMS

    wait_for(are_frozen, process, 180)
    return frozen


def shard_of(process: int) -> str:
    """The shard that a process trains, by its log file; before it has opened that, no shard's."""
    for file in Path(f"/proc/{process}/fd").iterdir():
        name = re.fullmatch(r"training_(\w{12})\.log", Path(os.readlink(file)).name)
        if name:
            return name[1]
    return "none"


def test_smoke_scale_on_slurm_equals_the_local_run(smoke, local):
    """After the tests that leave cores idle, in which the local run goes on."""
    process, workspace = local
    result = finish(process, workspace, "local", timeout=400)
    assert result.returncode == 0, result.output[-4000:]
    on_this_machine = tables(workspace.path / "results")
    assert set(on_this_machine) == set(smoke)
    for name, table in on_this_machine.items():
        pd.testing.assert_frame_equal(table, smoke[name], check_exact=True)


@pytest.mark.slow
def test_faults_leave_the_results_as_they_are(project):
    """A cancelled, a killed, a late, a pre-empted job, and one whose node fails under it."""
    project.write("config/experiments/faults/victims.yaml", VICTIMS)
    table = "results/experiments/faults/victims/runs.parquet"
    process = start(project, "faults", table, "--config", *FAULTS)
    victims = freeze_victims(project, process)
    began = time.monotonic()
    by_node: dict[str, list[str]] = {}
    for job, node in nodes_of_jobs().items():
        by_node.setdefault(node, []).append(job)
    assert {node: len(jobs) for node, jobs in by_node.items()} == {"gpu1": 1, "gpu2": 1, "gpu3": 3}
    (orphaned,), (preempted,) = by_node["gpu1"], by_node["gpu2"]
    cancelled, killed, late = by_node["gpu3"]
    # Its process stays held: past its time, Slurm lets it go on to end it.
    cluster.run("scontrol", "update", f"JobId={late}", "TimeLimit=1")
    cluster.kill_node("gpu1")
    cluster.run(
        *("sbatch", "-purgent", "-wgpu2", "--gpus=1", "-n1", "-t1", "-o/dev/null"),
        "--wrap=sleep 3",
    )
    cluster.run("scancel", cancelled)
    os.kill(victims[killed], signal.SIGKILL)

    # The job of the failed node starts again elsewhere while its first process is still there.
    def is_running_again():
        for job in pending_jobs():
            # Two minutes later, if one lets Slurm wait.
            cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        others = training_processes(orphaned) - {victims[orphaned]}
        return others and nodes_of_jobs().get(orphaned) not in (None, "gpu1")

    wait_for(is_running_again, process, 120)
    os.kill(victims[orphaned], signal.SIGCONT)
    print(f"the failed node's job ran again after {time.monotonic() - began:.0f} s")
    result = finish(process, project, "faults", timeout=300)
    assert result.returncode == 0, result.output[-4000:]
    print(f"all faults were overcome after {time.monotonic() - began:.0f} s")
    for job, state in ((cancelled, "CANCELLED"), (killed, "FAILED"), (late, "TIMEOUT")):
        assert f"SLURM-job '{job}' failed, SLURM status is: '{state}'" in result.output
    states = Counter((job, state.split()[0]) for job, state in accounted("JobID", "State"))
    assert states[preempted, "PREEMPTED"] == states[preempted, "COMPLETED"] == 1
    assert states[orphaned, "NODE_FAIL"] == states[orphaned, "COMPLETED"] == 1
    logs = (project.path / "results/logs/faults/victims").glob("training_*.log")
    resumed = [path for path in logs if "resuming at step" in path.read_text()]
    # The orphan may be done, its checkpoint deleted, before the job beside it looks for one.
    assert len(resumed) >= NUM_VICTIMS - 1

    wait_for(lambda: not Path(f"/proc/{victims[orphaned]}").exists(), seconds=60)
    assert run(project, "settled", "-n", table, "--config", *FAULTS).job_stats == {}
    assert not list((project.path / "results/scratch").rglob("*.npz"))
    undisturbed = project.snakemake(
        *("--cores", "all", table.replace("results", "calm", 1)),
        *("--config", *FAULTS, "results_dir=calm"),
    )
    assert undisturbed.returncode == 0, undisturbed.output[-3000:]
    for name in ("runs", "history"):
        disturbed, calm = (
            pd.read_parquet(project.path / folder / f"experiments/faults/victims/{name}.parquet")
            for folder in ("results", "calm")
        )
        pd.testing.assert_frame_equal(disturbed, calm, check_exact=True)


def test_a_missing_partition_is_named(project):
    table = "elsewhere/experiments/catapult/warmup_descent/runs.parquet"
    result = run(
        project,
        "partition",
        table,
        *("--config", *SMOKE, "results_dir=elsewhere"),
        *("--default-resources", "slurm_partition=nowhere", "mem_mb=1000", "runtime=10"),
    )
    assert result.returncode == 1
    assert "invalid partition specified: nowhere" in result.output


def test_a_job_that_finds_no_gpu_says_so(project):
    """Slurm believes in the GPUs of its nodes; JAX does not."""
    table = "without/experiments/catapult/fc_mnist/runs.parquet"
    names = [name for name in SMOKE if not name.startswith("accelerator")]
    arguments = [*names, "accelerator=gpu", "results_dir=without"]
    result = run(project, "without", table, "--retries", "0", "--config", *arguments)
    assert result.returncode == 1
    logs = (project.path / "without/logs/catapult/fc_mnist").glob("curvature_*.log")
    log = next(logs)
    (line,) = log.read_text().splitlines()
    assert line.startswith("error: accelerator: 'gpu': there is none on ")
    assert log.name in result.output
