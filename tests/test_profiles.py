"""The profiles plan the jobs that they promise; no cluster is needed to plan."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from conftest import PROJECT, Result

ARGUMENTS = ["--config", "scale=smoke", "data=embedded", "experiments=[catapult/fc_mnist]"]
TARGET = "results/experiments/catapult/fc_mnist/runs.parquet"
# Without these, root may write where it likes.
PRIVILEGES = "-dac_override,-dac_read_search"


def plan(workspace, *arguments, prefix=()):
    """What Snakemake says that it would run; the profile chooses the executor and its cores."""
    process = subprocess.run(
        [*prefix, sys.executable, "-m", "snakemake", "--nocolor", "--dry-run", *arguments],
        cwd=workspace.path,
        env={**os.environ, "PYTHONPATH": str(workspace.path / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Result(process.returncode, process.stdout, process.stderr)


def resources(result, rule):
    """The resources of the first job of a rule."""
    assert result.returncode == 0, result.output[-2000:]
    block = re.search(rf"^rule {rule}:\n(?:    .*\n)+", result.output, re.MULTILINE)[0]
    listed = re.search(r"    resources: (.*)", block)
    return dict(entry.split("=", 1) for entry in listed[1].split(", "))


def test_slurm_plans_paper_scale_with_gpus_for_training(workspace):
    result = plan(workspace, "--profile", "slurm", "--config", "experiments=[catapult/fc_mnist]")
    assert "results/datasets/mnist/manifest.json" in result.output
    training = resources(result, "training_shard")
    assert (training["slurm_partition"], training["gpu"]) == ("gpu", "1")
    assert int(training["mem_mb"]) > 0
    assert int(training["runtime"]) > 0
    assert resources(result, "curvature_shard")["gpu"] == "1"
    for rule in ("dataset", "aggregate"):
        job = resources(result, rule)
        assert job["slurm_partition"] == "cpu"
        assert "gpu" not in job


def test_profiles_have_a_section_for_each_rule_on_an_accelerator():
    """And no rule has retries: the nested Snakemakes of a job would multiply them."""
    text = "".join(path.read_text("utf-8") for path in (PROJECT / "workflow/rules").glob("*.smk"))
    assert "retries" not in text
    rules = re.findall(r"^rule (\w+):\n((?:(?!^rule ).*\n)*)", text, re.MULTILINE)
    on_accelerators = {name for name, body in rules if "**DEVICES" in body}
    assert "training_shard" in on_accelerators
    for name in ("slurm", "tpu"):
        profile = yaml.safe_load((PROJECT / name / "config.yaml").read_text(encoding="utf-8"))
        assert set(profile["set-resources"]) == {*on_accelerators, "dataset"}
    assert not (PROJECT / "profiles").exists()


def test_a_partition_of_tpus_is_asked_for_tpus_and_no_gpu(workspace):
    result = plan(workspace, "--profile", "slurm", "--profile", "tpu", *ARGUMENTS, "--", TARGET)
    training = resources(result, "training_shard")
    assert (training["slurm_partition"], training["tpu"]) == ("tpu", "1")
    assert "gpu" not in training
    assert resources(result, "aggregate")["slurm_partition"] == "cpu"


def test_a_tpu_host_plans_jobs_one_after_the_other(workspace):
    arguments = [*ARGUMENTS, "accelerator=tpu", "--", TARGET]
    result = plan(workspace, "--cores", "8", "--resources", "tpu=1", *arguments)
    assert resources(result, "training_shard")["tpu"] == "1"


def test_the_pod_of_kubernetes_plans_its_jobs(workspace):
    job = yaml.safe_load((PROJECT / "kubernetes/job.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    assert program == "snakemake"
    result = plan(workspace, *arguments, *ARGUMENTS, "--", TARGET)
    assert resources(result, "training_shard")["gpu"] == "1"
    profile = yaml.safe_load((PROJECT / "kubernetes/config.yaml").read_text(encoding="utf-8"))
    assert profile["resources"] == [f"gpu={container['resources']['limits']['nvidia.com/gpu']}"]


@pytest.mark.parametrize("folder", [".", "results"])
def test_a_folder_without_permission_is_an_error_of_one_line(workspace, folder):
    prefix = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and there is no setpriv")
        prefix = ["setpriv", f"--bounding-set={PRIVILEGES}", f"--inh-caps={PRIVILEGES}"]
    path = workspace.path / folder
    path.mkdir(exist_ok=True)
    path.chmod(0o555)
    try:
        result = plan(workspace, "--cores", "1", *ARGUMENTS, "--", TARGET, prefix=prefix)
    finally:
        path.chmod(0o755)
    assert result.returncode == 2
    (line,) = result.error_lines
    assert f"{path.resolve()}: no permission to write there" in line
    assert "Traceback" not in result.output
