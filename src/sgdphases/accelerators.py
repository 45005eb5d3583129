"""Give a job the accelerator that it was given, before JAX is imported.

Slurm shows a job its own GPUs only. Snakemake on one machine, with `--resources gpu=2`, counts jobs
but does not say which GPU is whose: jobs claim them by locking a file each. The lock of a process
that has ended, however it ended, is free again.
"""

import fcntl
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

AUTO, CPU, GPU, TPU = "auto", "cpu", "gpu", "tpu"
# One job has the GPU for itself. The rest is for libraries that allocate past JAX.
_MEMORY_SHARE = "0.9"
# Sums in the same order each time, where XLA knows of such a kernel.
_DETERMINISM_FLAG = "--xla_gpu_deterministic_ops"
_SECONDS_BETWEEN_TRIALS = 1.0
# Kept open, and with them the locks, until the process ends.
_claimed: list[IO[str]] = []


def requested_devices(accelerator: str) -> dict[str, int]:
    """What a job that computes on an accelerator asks Snakemake for.

    Args:
        accelerator: auto, cpu, gpu or tpu. Under auto a job asks for a GPU, which counts for
            something where the number of GPUs is given only.

    Returns:
        The number of `gpu` or `tpu`; nothing on CPUs.
    """
    return {AUTO: {GPU: 1}, GPU: {GPU: 1}, TPU: {TPU: 1}}.get(accelerator, {})


def use_accelerator(accelerator: str, num_gpus: int = 1) -> None:
    """Choose the devices and set XLA's memory and determinism; call before importing JAX.

    What the user has set in the environment is kept.

    Args:
        accelerator: auto (a GPU where there is one), cpu, gpu or tpu.
        num_gpus: GPUs that Snakemake gave the job.

    Raises:
        RuntimeError: JAX is imported already.
    """
    if "jax" in sys.modules:
        raise RuntimeError("use_accelerator comes too late: JAX is imported already")
    if accelerator in (CPU, TPU):
        os.environ.setdefault("JAX_PLATFORMS", accelerator)
        return
    visible = visible_gpus()
    if not visible:
        return
    if not is_given_by_scheduler():
        chosen = claim(visible, min(max(num_gpus, 1), len(visible)))
        # The order in which the driver numbers them may differ from process to process.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", _MEMORY_SHARE)
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISM_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISM_FLAG}=true".strip()


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return [name for name in names if name and name != "-1"]
    # CUDA counts those that there are, whatever the numbers of their files.
    files = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(index) for index in range(len(files))]


def is_given_by_scheduler() -> bool:
    """Whether the GPUs that the process sees are its own: in a job of Slurm."""
    return "SLURM_JOB_ID" in os.environ and "CUDA_VISIBLE_DEVICES" in os.environ


def claim(names: Sequence[str], count: int, folder: Path | None = None) -> list[str]:
    """Lock GPUs that no other job of this user holds; wait until there are enough.

    Args:
        names: The GPUs to choose from.
        count: How many of them.
        folder: Folder of the locks on this machine; None for the usual one.

    Returns:
        The names of the GPUs, which stay locked until the process ends.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"sgdphases-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    is_told = False
    while True:
        locked = dict(_lock(names, count, folder))
        if len(locked) == count:
            _claimed.extend(locked.values())
            return list(locked)
        # All or none: two jobs that wait for each other's would wait for ever.
        for file in locked.values():
            file.close()
        if not is_told:
            logger.info("waiting for %d of the GPUs %s", count, ", ".join(names))
            is_told = True
        time.sleep(_SECONDS_BETWEEN_TRIALS)


def _lock(names: Sequence[str], count: int, folder: Path) -> Iterator[tuple[str, IO[str]]]:
    found = 0
    for name in names:
        if found == count:
            return
        file = (folder / f"{re.sub('[^A-Za-z0-9-]', '_', name)}.lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        found += 1
        yield name, file
