"""What the local devices are, what fits on them, and how runs are spread over them.

Importing this module imports JAX but starts no backend.
"""

import hashlib
import logging
import math
import os
import platform
import re
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil  # type: ignore[import-untyped]
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sgdphases.errors import InputError

logger = logging.getLogger(__name__)

RUN_AXIS = "runs"

_DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"
# Programs that compile faster are not worth a file.
_SECONDS_WORTH_CACHING = 0.3
# An entry of the compilation cache that is younger may still be in the making.
_SECONDS_UNTIL_WRITTEN = 60.0
# Part of the memory that the estimate may fill: it knows nothing of fragmentation, of compilation
# and of what the measurements need.
_USABLE_SHARE = 0.7
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|failed to allocate|bad_alloc|_ALLOC_FAILED"
    r"|resource allocation failed",
    re.IGNORECASE,
)


def use_cpu_devices(threads: int) -> None:
    """Simulate one CPU device for each thread; call before JAX is used, after importing it or not.

    Runs spread over several devices of one thread each train faster than on one device of several
    threads. A number of devices that the user chose, in XLA_FLAGS or JAX_NUM_CPU_DEVICES, is kept.

    Args:
        threads: Threads that the job was given.

    Raises:
        RuntimeError: JAX has counted its devices already.
    """
    is_chosen = _DEVICE_COUNT_FLAG in os.environ.get("XLA_FLAGS", "")
    if not is_chosen and os.environ.get("JAX_NUM_CPU_DEVICES") is None:
        _configure(jax_num_cpu_devices=threads)


def check_accelerator(accelerator: str) -> dict[str, str | int]:
    """See what JAX computes on, and log it.

    Args:
        accelerator: What was asked for: auto, cpu, gpu or tpu.

    Returns:
        `device`, its kind as the maker calls it, and `num_devices`.

    Raises:
        InputError: JAX finds no such device.
    """
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        found = str(error).splitlines()[0]
        devices = []
    else:
        found = f"JAX finds {devices[0].platform} alone"
    if not devices or accelerator not in ("auto", devices[0].platform):
        package = {"gpu": "jax[cuda12]", "tpu": "jax[tpu]"}.get(accelerator, "jax")
        raise InputError(
            f"accelerator: {accelerator!r}: there is none on {platform.node()} ({found}); allowed: "
            f"a machine that has one, with {package} installed, or --config accelerator=cpu"
        )
    kind = str(devices[0].device_kind)
    logger.info("computing on %d x %s (%s)", len(devices), kind, devices[0].platform)
    return {"device": kind, "num_devices": len(devices)}


def use_compilation_cache(folder: Path) -> bool:
    """Keep compiled programs in a folder, for this job and all others that share it.

    The folder has one subfolder for each kind of host, because programs for the CPU may use
    instructions that another CPU lacks. Jobs may read and write at once: an entry that is not
    whole yet, or was left so by a job that was killed or a disk that was full, is compiled anew,
    and removed by a later job.

    Args:
        folder: The folder; it is made where it does not exist.

    Returns:
        Whether the folder can be written to. Where not, one line says so, and nothing is cached.
    """
    host_folder = folder / _host_kind()
    try:
        host_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=host_folder):
            pass
        _remove_incomplete_entries(host_folder)
    except OSError as error:
        logger.warning(
            "compiled programs cannot be kept at %s (%s); every job compiles its own",
            folder,
            error.strerror,
        )
        return False
    _configure(
        jax_compilation_cache_dir=str(host_folder),
        jax_persistent_cache_min_compile_time_secs=_SECONDS_WORTH_CACHING,
        jax_persistent_cache_min_entry_size_bytes=-1,
    )
    # JAX goes on without the entry in either case; its message is no help to the user.
    warnings.filterwarnings("ignore", message="Error (read|writ)ing persistent compilation cache")
    return True


def run_mesh(num_devices: int | None = None) -> Mesh:
    """One-dimensional mesh of the local devices, over which the runs are spread.

    Args:
        num_devices: How many of the local devices to use; None for all.
    """
    return Mesh(np.array(jax.local_devices()[:num_devices]), (RUN_AXIS,))


def run_sharding(mesh: Mesh) -> NamedSharding:
    """Placement of arrays whose leading axis is over runs: a part of them on each device."""
    return NamedSharding(mesh, PartitionSpec(RUN_AXIS))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Placement of arrays that all runs read: a copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def pad_runs(tree: Any, multiple: int) -> Any:
    """Repeat the last run until the number of runs is a multiple, as spreading them evenly needs.

    Args:
        tree: Pytree of arrays (runs, ...), of at least one run.
        multiple: Number of devices.

    Returns:
        The tree with ceil(runs / multiple)·multiple runs; NumPy arrays stay NumPy arrays.
    """

    def pad(leaf: Any) -> Any:
        missing = -len(leaf) % multiple
        if missing == 0:
            return leaf
        array_module = jnp if isinstance(leaf, jax.Array) else np
        return array_module.concatenate([leaf, array_module.repeat(leaf[-1:], missing, axis=0)])

    return jax.tree.map(pad, tree)


def unpad_runs(tree: Any, num_runs: int) -> Any:
    """The first `num_runs` of the leading axis of each array: the inverse of `pad_runs`."""
    return jax.tree.map(lambda leaf: leaf[:num_runs], tree)


def device_memory(num_jobs: int = 1) -> int:
    """Memory that a job may still take on one device.

    An accelerator tells how much of what JAX was allowed to take is free. CPU devices share the
    memory of the host, or of the job's control group where that is less, and the jobs beside this
    one share it too.

    Args:
        num_jobs: Jobs at once on the host; counts for CPU devices only.

    Returns:
        Bytes for each of the local devices.
    """
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics["bytes_in_use"])
    available = min(psutil.virtual_memory().available, _control_group_memory())
    return int(available // (num_jobs * jax.local_device_count()))


def intermediate_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of all values that a function computes in turn: more than it needs at once.

    Args:
        function: A function that JAX can trace.
        arguments: Its arguments, arrays or their shapes.

    Returns:
        The sum over all operations, each body of a loop counted once.
    """

    def total(jaxpr: Any) -> int:
        size = 0
        for equation in jaxpr.eqns:
            size += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
            for parameter in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
                if _is_jaxpr(parameter):
                    size += total(getattr(parameter, "jaxpr", parameter))
        return size

    return total(jax.make_jaxpr(function)(*arguments).jaxpr)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a program takes on a device.

    Attributes:
        fixed: Whatever the number of runs: the arrays that all of them read.
        per_run: For each run: its state, before and after, and what its step needs in between.
    """

    fixed: int
    per_run: int


def estimate_memory(
    step_function: Callable[..., Any], run_args: tuple[Any, ...], shared_args: tuple[Any, ...] = ()
) -> MemoryEstimate:
    """Memory of a program that takes the steps of many runs at once, by XLA's account of one run.

    Args:
        step_function: Step of one run, called as step_function(*run_args, *shared_args).
        run_args: Pytrees of arrays or `jax.ShapeDtypeStruct` that each run has its own of.
        shared_args: Likewise what the runs share.

    Returns:
        The estimate.
    """
    compiled = jax.jit(step_function).lower(*run_args, *shared_args).compile()
    shared = _num_bytes(shared_args)
    analysis = compiled.memory_analysis()
    if analysis is None:  # not every backend gives one: the state, its gradient and its successor
        return MemoryEstimate(shared, 3 * _num_bytes(run_args))
    per_run = analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return MemoryEstimate(shared, _num_bytes(run_args) + per_run)


def runs_per_program(
    num_runs: int, estimate: MemoryEstimate, available: int, num_devices: int = 1
) -> int:
    """How many runs one program should train.

    Args:
        num_runs: Number of runs.
        estimate: Memory of the program.
        available: Bytes for it on each device.
        num_devices: Devices over which the runs of the program are spread.

    Returns:
        All runs where they fit; else so many, a multiple of the devices, that the fewest programs
        of about equal size are needed. At least one run for each device, fit or not.
    """
    fitting = max(int(_USABLE_SHARE * available - estimate.fixed) // max(estimate.per_run, 1), 1)
    num_programs = math.ceil(num_runs / (fitting * num_devices))
    evenly = math.ceil(num_runs / num_programs)
    return min(math.ceil(evenly / num_devices) * num_devices, max(num_runs, 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the host, has no memory left."""
    if isinstance(error, MemoryError):
        return True
    # XLA raises RuntimeError, and ValueError where it is the compiler that finds out.
    return isinstance(error, RuntimeError | ValueError) and bool(_OUT_OF_MEMORY.search(str(error)))


def _configure(**options: Any) -> None:
    for name, value in options.items():
        jax.config.update(name, value)


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _control_group_memory(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes left to this process by the control groups that it is in, infinite without a limit."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    left = math.inf
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        inner = top / group.lstrip("/")
        # A limit binds all groups within. A container sees its own group as the top.
        for folder in (inner, *inner.parents):
            left = min(left, _left_in_group(folder))
            if folder == top:
                break
    return left


def _left_in_group(folder: Path) -> float:
    """Limit of a control group, of version 2 or 1, less its use without files read."""
    for limit_name, used_name, cached_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = (int((folder / name).read_text()) for name in (limit_name, used_name))
            statistics = dict(line.split() for line in (folder / "memory.stat").open())
        except (OSError, ValueError):  # no such file, or the limit is "max"
            continue
        return max(limit - used + int(statistics.get(cached_name, 0)), 0)
    return math.inf


def _host_kind() -> str:
    """Name of the hosts whose CPU has the same instructions as this one's."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = platform.processor()
    flags = re.search(r"^(flags|Features)\s*:(.*)$", text, re.MULTILINE)
    model = re.search(r"^model name\s*:(.*)$", text, re.MULTILINE)
    known = [match[0] for match in (flags, model) if match] or [text]
    return f"{platform.machine()}-{hashlib.sha256(''.join(known).encode()).hexdigest()[:8]}"


def _remove_incomplete_entries(folder: Path) -> None:
    """Remove the entries of the compilation cache that were cut short.

    JAX neither writes them atomically nor replaces one that it cannot read. Entries that an earlier
    call has looked at, by the time of a file beside them, are not looked at again.
    """
    now = time.time()
    marker = folder / "looked-at"
    looked_at = marker.stat().st_mtime if marker.exists() else -math.inf
    for entry in folder.glob("*-cache"):
        try:
            is_due = looked_at <= entry.stat().st_mtime < now - _SECONDS_UNTIL_WRITTEN
            if is_due and not _is_whole(entry.read_bytes()):
                entry.unlink()
        except FileNotFoundError:  # another job was faster
            continue
    marker.touch()
    os.utime(marker, (now, now - _SECONDS_UNTIL_WRITTEN))


def _is_whole(entry: bytes) -> bool:
    """Whether an entry of the cache is a complete zlib stream, or in another format not empty."""
    if entry[:1] != b"\x78":
        return len(entry) > 0
    stream = zlib.decompressobj()
    try:
        stream.decompress(entry)
    except zlib.error:
        return False
    return stream.eof
