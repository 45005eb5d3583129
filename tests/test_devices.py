"""Devices, their memory, runs spread over them, and the cache of compiled programs."""

import json
import logging
import math
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdphases import devices
from sgdphases.devices import (
    MemoryEstimate,
    device_memory,
    estimate_memory,
    is_out_of_memory,
    pad_runs,
    replicated_sharding,
    run_mesh,
    run_sharding,
    runs_per_program,
    unpad_runs,
    use_compilation_cache,
)
from sgdphases.errors import InputError

SRC = Path(__file__).parents[1] / "src"


def start(program, *arguments, **environment):
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(("XLA", "JAX"))}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**inherited, "PYTHONPATH": str(SRC), "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output, errors


SPREAD = """
import jax, jax.numpy as jnp, numpy as np
from sgdphases.devices import *
use_cpu_devices(3)
print(jax.device_count())
mesh = run_mesh()
runs = jax.device_put(pad_runs(np.arange(7.0, dtype=np.float32), mesh.size), run_sharding(mesh))
data = jax.device_put(np.arange(4), replicated_sharding(mesh))
print(sorted(len(shard.data) for shard in runs.addressable_shards))
print(len(data.addressable_shards[0].data), run_mesh(2).size, mesh.axis_names)
print(np.asarray(unpad_runs(jnp.sin(runs), 7)).shape)
try:
    use_cpu_devices(4)
except RuntimeError:
    print("too late")
"""


def test_runs_are_spread_over_simulated_devices():
    output, errors = finish(start(SPREAD))
    lines = ["3", "[3, 3, 3]", "4 2 ('runs',)", "(7,)", "too late"]
    assert output.splitlines() == lines
    assert errors == ""


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, "2"),
        ({"JAX_NUM_CPU_DEVICES": "1"}, "1"),
    ],
)
def test_number_of_devices_that_the_user_chose_is_kept(environment, count):
    program = "import jax; from sgdphases.devices import *; use_cpu_devices(3); "
    output, _ = finish(start(program + "print(jax.device_count())", **environment))
    assert output.strip() == count


CACHED = """
import json, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from sgdphases.devices import use_compilation_cache
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split("/")[-1]))
assert use_compilation_cache(Path(sys.argv[1]))
threshold = jax.config.jax_persistent_cache_min_compile_time_secs
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

def loss(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w)
    return jnp.sum(x)

step = jax.jit(jax.grad(loss))
weights, x = [jnp.eye(8)] * 30, jnp.ones((2, 8))
lowered = step.lower(weights, x)
events.clear()
began = time.perf_counter()
compiled = lowered.compile()
seconds = time.perf_counter() - began
hit = "cache_hits" in events
total = float(sum(jnp.sum(g) for g in compiled(weights, x)))
print(json.dumps([threshold, hit, seconds, total]))
"""


def test_other_jobs_use_what_one_has_compiled(tmp_path):
    """Two jobs compile at once; a third finds the program; a fourth finds it cut short."""

    def finish_job(process):
        output, errors = finish(process)
        # Not a word: no warning of JAX, none of XLA.
        assert errors == ""
        return json.loads(output)

    first = [start(CACHED, tmp_path / "cache"), start(CACHED, tmp_path / "cache")]
    results = [finish_job(process) for process in first]
    compiling, total = max(result[2] for result in results), results[0][3]
    threshold, hit, loading, same = finish_job(start(CACHED, tmp_path / "cache"))
    assert hit
    assert loading < compiling / 2
    assert threshold == devices._SECONDS_WORTH_CACHING
    entries = list((tmp_path / "cache").glob("*/jit_loss-*-cache"))
    assert len(entries) == 1
    os.truncate(entries[0], entries[0].stat().st_size // 2)
    _, hit, _, again = finish_job(start(CACHED, tmp_path / "cache"))
    assert not hit
    assert total == results[1][3] == same == again


def test_entries_cut_short_are_removed_once_nobody_writes_them(tmp_path):
    whole = zlib.compress(os.urandom(5000))
    contents = {
        "whole": whole,
        "short": whole[:3000],
        "empty": b"",
        "damaged": whole[:100] + b"?" + whole[101:],
        "zstandard": b"\x28\xb5\x2f\xfd what only another library can read",
    }

    def write(age):
        for name, data in contents.items():
            path = tmp_path / f"{name}-cache"
            path.write_bytes(data)
            os.utime(path, (time.time() - age,) * 2)

    def left():
        devices._remove_incomplete_entries(tmp_path)
        return {path.name.removesuffix("-cache") for path in tmp_path.glob("*-cache")}

    write(age=0)
    assert left() == set(contents)
    write(age=100)
    os.utime(tmp_path / "looked-at", (time.time() - 200,) * 2)
    assert left() == {"whole", "zstandard"}
    # What has been looked at is not looked at again.
    write(age=100)
    assert left() == set(contents)


def test_folder_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    before = jax.config.jax_compilation_cache_dir
    assert not use_compilation_cache(tmp_path / "file" / "cache")
    assert jax.config.jax_compilation_cache_dir == before
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"compiled programs cannot be kept at {tmp_path / 'file' / 'cache'}" in record.message


def test_kind_of_host_is_stable_and_can_name_a_folder():
    assert devices._host_kind() == devices._host_kind()
    assert re.fullmatch(r"\w+-[0-9a-f]{8}", devices._host_kind())


def test_padding_repeats_the_last_run_and_can_be_undone():
    tree = {"a": np.arange(10.0).reshape(5, 2), "b": [jnp.arange(5)]}
    padded = pad_runs(tree, 4)
    assert isinstance(padded["a"], np.ndarray)
    assert padded["a"].dtype == np.float64
    assert isinstance(padded["b"][0], jax.Array)
    np.testing.assert_array_equal(padded["a"][5:], np.tile(tree["a"][-1:], (3, 1)))
    np.testing.assert_array_equal(padded["b"][0], [0, 1, 2, 3, 4, 4, 4, 4])
    for left, right in zip(
        jax.tree.leaves(unpad_runs(padded, 5)), jax.tree.leaves(tree), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    assert pad_runs(tree, 5) is not tree
    np.testing.assert_array_equal(pad_runs(tree, 5)["a"], tree["a"])
    np.testing.assert_array_equal(pad_runs(np.ones((1, 2)), 3), np.ones((3, 2)))


def test_mesh_and_placements():
    mesh = run_mesh()
    assert mesh.axis_names == ("runs",)
    assert list(mesh.devices) == jax.local_devices()
    assert run_mesh(1).size == 1
    assert not run_sharding(mesh).is_fully_replicated or mesh.size == 1
    assert replicated_sharding(mesh).is_fully_replicated


def groups(tmp_path, membership, **contents):
    (tmp_path / "membership").write_text(membership)
    for name, text in contents.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return devices._control_group_memory(tmp_path / "membership", tmp_path / "groups")


def test_limit_of_control_groups_version_2(tmp_path):
    """The limit of an outer group binds too; what is cached of files can be had back."""
    inner = "system.slice/job_7/step_0"
    left = groups(
        tmp_path,
        f"0::/{inner}\n",
        **{
            f"{inner}/memory.max": "max",
            f"{inner}/memory.current": 50,
            "system.slice/job_7/memory.max": 1000,
            "system.slice/job_7/memory.current": 700,
            "system.slice/job_7/memory.stat": "anon 500\ninactive_file 200",
            "memory.max": 5000,
            "memory.current": 100,
            "memory.stat": "anon 100",
        },
    )
    assert left == 1000 - 700 + 200


def test_limit_of_control_groups_version_1_in_a_container(tmp_path):
    left = groups(
        tmp_path,
        "12:cpu,cpuacct:/outside\n4:memory:/outside/container\n0::/\n",
        **{
            "memory/memory.limit_in_bytes": 400,
            "memory/memory.usage_in_bytes": 500,
            "memory/memory.stat": "total_inactive_file 20",
        },
    )
    assert left == 0


def test_no_control_groups(tmp_path):
    assert groups(tmp_path, "0::/\n") == math.inf
    assert devices._control_group_memory(tmp_path / "none", tmp_path) == math.inf


def test_memory_of_cpu_devices_is_shared(monkeypatch):
    memory = SimpleNamespace(available=8000)
    monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(devices, "_control_group_memory", lambda: math.inf)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    assert device_memory() == 4000
    assert device_memory(num_jobs=4) == 1000
    monkeypatch.setattr(devices, "_control_group_memory", lambda: 2000)
    assert device_memory() == 1000


def test_memory_of_an_accelerator_is_what_it_says(monkeypatch):
    statistics = {"bytes_limit": 1000, "bytes_in_use": 300, "peak_bytes_in_use": 900}
    accelerator = SimpleNamespace(memory_stats=lambda: statistics)
    monkeypatch.setattr(jax, "local_devices", lambda: [accelerator])
    assert device_memory(num_jobs=4) == 700


def test_this_machine_has_memory():
    assert 2**20 < device_memory() <= devices.psutil.virtual_memory().total


def step(parameters, learning_rate, inputs):
    def loss(weights):
        return jnp.mean((jnp.tanh(inputs @ weights[0]) @ weights[1]) ** 2)

    return [
        w - learning_rate * g for w, g in zip(parameters, jax.grad(loss)(parameters), strict=True)
    ]


def shape(*size):
    return jax.ShapeDtypeStruct(size, jnp.float32)


def test_estimate_is_near_what_many_runs_at_once_need():
    inputs = shape(512, 100)
    run = ([shape(100, 300), shape(300, 10)], shape())
    estimate = estimate_memory(step, run, (inputs,))
    assert estimate.fixed == 512 * 100 * 4
    runs = jax.tree.map(lambda s: shape(16, *s.shape), run)
    many = jax.jit(jax.vmap(step, in_axes=(0, 0, None))).lower(*runs, inputs).compile()
    analysis = many.memory_analysis()
    needed = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - estimate.fixed
    )
    assert 0.7 * needed < 16 * estimate.per_run < 2 * needed


def test_backend_without_an_account_of_memory(monkeypatch):
    compiled = SimpleNamespace(memory_analysis=lambda: None)
    lowered = SimpleNamespace(compile=lambda: compiled)
    monkeypatch.setattr(jax, "jit", lambda function: SimpleNamespace(lower=lambda *_: lowered))
    estimate = estimate_memory(step, ([shape(10)], shape()), (shape(5),))
    assert estimate == MemoryEstimate(fixed=20, per_run=3 * 44)


@given(
    num_runs=st.integers(1, 500),
    fixed=st.integers(0, 1000),
    per_run=st.integers(0, 100),
    available=st.integers(0, 10_000),
    num_devices=st.integers(1, 9),
)
def test_programs_hold_what_fits_and_are_as_few_as_can_be(
    num_runs, fixed, per_run, available, num_devices
):
    size = runs_per_program(num_runs, MemoryEstimate(fixed, per_run), available, num_devices)
    assert 1 <= size <= num_runs
    assert size % num_devices == 0 or size == num_runs
    on_a_device = math.ceil(size / num_devices)
    usable = devices._USABLE_SHARE * available
    assert on_a_device == 1 or fixed + on_a_device * per_run <= usable
    if per_run > 0:
        most = max(math.floor((usable - fixed) / per_run), 1) * num_devices
        assert math.ceil(num_runs / size) == math.ceil(num_runs / most)


def test_all_runs_in_one_program_where_they_fit():
    assert runs_per_program(150, MemoryEstimate(1000, 10), 10**6, 2) == 150
    assert runs_per_program(150, MemoryEstimate(0, 10), 1000, 1) == 50
    assert runs_per_program(150, MemoryEstimate(10**9, 10), 1000, 4) == 4


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.",
        "RESOURCE_EXHAUSTED: Failed to allocate request for 176.00MiB (184549376B) on device 0",
        "INTERNAL: Failed to load in-memory CUBIN: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "INTERNAL: custom call 'xla.gpu.conv.forward' failed: CUDNN_STATUS_ALLOC_FAILED",
        "INTERNAL: failed to create cublas handle: the resource allocation failed",
        "std::bad_alloc",
    ],
)
def test_messages_of_accelerators_that_are_out_of_memory(message):
    assert is_out_of_memory(jax.errors.JaxRuntimeError(message))


def test_cpu_that_is_out_of_memory():
    """More than there are addresses."""
    with pytest.raises(Exception) as on_device:  # noqa: PT011 - its type is the question
        jnp.zeros(2**58, jnp.float32).block_until_ready()
    assert is_out_of_memory(on_device.value)
    with pytest.raises(Exception) as within_a_program:  # noqa: PT011
        jax.jit(lambda x: jnp.sort(jnp.outer(x, x))[0])(jnp.ones(2**23)).block_until_ready()
    assert is_out_of_memory(within_a_program.value)
    with pytest.raises(MemoryError) as on_host:
        np.zeros(2**58)
    assert is_out_of_memory(on_host.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("INVALID_ARGUMENT: shapes differ"),
        jax.errors.JaxRuntimeError("INTERNAL: launch failed"),
        InputError("dataset 'out of memory' is not known"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_no_lack_of_memory(error):
    assert not is_out_of_memory(error)
