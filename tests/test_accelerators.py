"""Jobs get the GPUs that they were given, and no two the same."""

import os
import subprocess
import sys
import time

import pytest

from sgdphases.accelerators import requested_devices, visible_gpus
from sgdphases.devices import check_accelerator
from sgdphases.errors import InputError

CHOOSE = """
import os, sys
from sgdphases.accelerators import use_accelerator
use_accelerator(sys.argv[1], int(sys.argv[2]))
names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_FLAGS", "JAX_PLATFORMS")
print([os.environ.get(name) for name in names], flush=True)
if len(sys.argv) > 3:
    sys.stdin.read()
"""
CLEAN = {"CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "XLA_FLAGS"}
CLEAN |= {"JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION"}


def start(tmp_path, accelerator, num_gpus, *arguments, **environment):
    """A process that chooses, says what, and ends when its input does."""
    known = {key: value for key, value in os.environ.items() if key not in CLEAN}
    return subprocess.Popen(
        [sys.executable, "-c", CHOOSE, accelerator, str(num_gpus), *arguments],
        env={**known, "TMPDIR": str(tmp_path), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def choose(*arguments, **environment):
    output, _ = start(*arguments, **environment).communicate(timeout=60)
    return eval(output)


def said(process):
    return eval(process.stdout.readline())


def test_jobs_at_once_get_gpus_of_their_own_and_those_after_them_what_is_free(tmp_path):
    gpus = {"CUDA_VISIBLE_DEVICES": "0,3,GPU-5"}
    first, second = (start(tmp_path, "gpu", 1, "stay", **gpus) for _ in range(2))
    held = [said(first)[0], said(second)[0]]
    assert len(set(held)) == 2
    two = start(tmp_path, "gpu", 2, **gpus)
    time.sleep(1.5)
    assert two.poll() is None  # one is free, and it waits for another
    first.kill()
    first.wait()
    output, _ = two.communicate(timeout=30)
    chosen = eval(output)[0].split(",")
    assert len(chosen) == 2
    assert held[1] not in chosen
    assert set(chosen) | {held[1]} == {"0", "3", "GPU-5"}
    second.communicate(timeout=30)


def test_a_job_of_a_scheduler_takes_all_that_it_sees(tmp_path):
    given = {"CUDA_VISIBLE_DEVICES": "2,5", "SLURM_JOB_ID": "7"}
    chosen, memory, flags, _ = choose(tmp_path, "gpu", 1, **given)
    assert chosen == "2,5"
    assert float(memory) == 0.9
    assert flags == "--xla_gpu_deterministic_ops=true"


def test_what_the_user_has_set_is_kept(tmp_path):
    flags = "--xla_gpu_deterministic_ops=false --xla_gpu_autotune_level=0"
    environment = {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}
    chosen = choose(tmp_path, "auto", 1, CUDA_VISIBLE_DEVICES="1", **environment)
    assert chosen[:3] == ["1", "0.4", flags]


@pytest.mark.parametrize(("accelerator", "platform"), [("cpu", "cpu"), ("tpu", "tpu")])
def test_other_platforms_leave_the_gpus_alone(tmp_path, accelerator, platform):
    chosen = choose(tmp_path, accelerator, 1, CUDA_VISIBLE_DEVICES="0")
    assert chosen == ["0", None, None, platform]
    assert not list(tmp_path.iterdir())


def test_without_gpus_nothing_is_set(tmp_path):
    assert choose(tmp_path, "auto", 1, CUDA_VISIBLE_DEVICES="") == ["", None, None, None]


def test_gpus_are_counted_by_their_files_and_named_by_their_place(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus(tmp_path) == []


def test_snakemake_is_asked_for_what_the_job_computes_on():
    assert requested_devices("auto") == requested_devices("gpu") == {"gpu": 1}
    assert requested_devices("tpu") == {"tpu": 1}
    assert requested_devices("cpu") == {}


def test_a_missing_accelerator_is_an_error_of_one_line():
    assert check_accelerator("auto")["device"] == "cpu"
    assert check_accelerator("cpu")["num_devices"] == 2  # as conftest simulates
    with pytest.raises(InputError, match=r"accelerator: 'gpu': there is none on .*jax\[cuda12\]"):
        check_accelerator("gpu")
