"""Measure how fast batches come out of a memory map, in seeded order, and the memory that takes.

Prints one table and writes benchmarks/results/reading.json. The samples are images of 28 × 28 bytes
(MNIST's size). Ways: "read": the reading thread alone, up to raw batches on the device; "streamed":
read ahead, normalised and one-hot encoded; "device": the same, of data that lie on the device. With
"cold", the file is dropped from the system's cache first. GB are the file's (a batch of
floats has four times as many); GB/CPU s counts the time of all threads; the peak is the largest
growth of the process's own memory, without the pages of the file but with what the allocator keeps
for reuse. Each case has its own process:
`python benchmarks/reading.py [--samples N] [--folder F]`.
"""

import argparse
import ctypes
import gc
import json
import math
import mmap
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SHAPE = (28, 28, 1)
NUM_CLASSES = 10


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400_000, help="samples in the file")
    parser.add_argument("--folder", help="where the file is written; default: temporary folder")
    parser.add_argument("--block-mib", type=float, help="size of a block; default: the source's")
    parser.add_argument("--repeats", type=int, default=3, help="timings, of which the best counts")
    return parser.parse_args()


def own_memory() -> int:
    """Bytes that belong to this process alone: not the pages of mapped files."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The largest growth of the memory within the block, as the list's only entry."""
    before, peak, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], own_memory() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def write_samples(path: Path, count: int) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    stored = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *SHAPE))
    for start in range(0, count, 10_000):
        part = stored[start : start + 10_000]
        part[:] = generator.integers(0, 256, part.shape, np.uint8)
    stored.flush()


def drop_from_cache(path: Path, mapped: mmap.mmap) -> None:
    # Pages that are mapped somewhere stay in the cache.
    mapped.madvise(mmap.MADV_DONTNEED)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def return_free_memory() -> None:
    """Give what was freed back to the system, so that using it again shows."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def measure(
    path: Path, batch: int, way: str, is_cold: bool, block_mib: float | None, repeats: int
) -> dict[str, Any]:
    import jax
    import numpy as np

    from sgdphases.batches import open_batches
    from sgdphases.datasets.loading import Dataset, Normalisation

    inputs = np.load(path, mmap_mode="r")
    labels = (np.arange(len(inputs)) % NUM_CLASSES).astype(np.int32)
    dataset = Dataset(
        name="bytes",
        manifest={},
        train_inputs=inputs,
        train_targets=np.zeros((0, NUM_CLASSES)),
        test_inputs=inputs[:1],
        test_targets=np.zeros((0, NUM_CLASSES)),
        train_labels=labels,
        test_labels=labels[:1],
        normalisation=Normalisation(*map(np.array, (1 / 255, 0.1307, 0.3081))),
    )
    options = {
        "device_bytes": inputs.nbytes if way == "device" else 0,
        "block_bytes": None if block_mib is None else int(block_mib * 2**20),
    }
    num_steps = len(inputs) // batch
    open_source = partial(
        open_batches, dataset, batch, 0, np.float32, last_step=2 * num_steps, **options
    )
    with open_source() as source:  # compiles
        rows = source.num_rows
        num_blocks = max(1, num_steps // rows)
        jax.block_until_ready(source.segment(0, 1).inputs)
    timings, peaks = [], []
    for _ in range(repeats):
        return_free_memory()
        with peak_memory() as peak, open_source() as source:
            if is_cold:
                drop_from_cache(path, inputs._mmap)
            began, began_cpu = time.perf_counter(), time.process_time()
            for block in range(num_blocks):
                if way == "read":
                    jax.block_until_ready(source._reader.read(block))
                else:
                    jax.block_until_ready(source.segment(block * rows, 1).inputs)
            timings.append((time.perf_counter() - began, time.process_time() - began_cpu))
        peaks.append(peak[0])
    samples = num_blocks * rows * batch
    gigabytes = samples * math.prod(SHAPE) / 1e9
    seconds, cpu_seconds = (min(column) for column in zip(*timings, strict=True))
    return {
        "way": way,
        "batch": batch,
        "file": "cold" if is_cold else "warm",
        "steps_per_block": rows,
        "samples_per_second": samples / seconds,
        "gigabytes_per_second": gigabytes / seconds,
        "gigabytes_per_cpu_second": gigabytes / cpu_seconds,
        "peak_mebibytes": max(peaks) / 2**20,
        "block_mebibytes": 4 * rows * batch * (math.prod(SHAPE) + NUM_CLASSES) / 2**20,
    }


def main() -> None:
    arguments = parse_arguments()
    cases = [
        (batch, way, is_cold)
        for batch in (64, 512)
        for way in ("read", "streamed", "device")
        for is_cold in (False, True)
        if not is_cold or (way != "device" and hasattr(os, "posix_fadvise"))
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "inputs.npy"
        write_samples(path, arguments.samples)
        options = (arguments.block_mib, arguments.repeats)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
            futures = [processes.submit(measure, path, *case, *options) for case in cases]
            rows = [future.result() for future in futures]
    size = arguments.samples * math.prod(SHAPE) / 1e9
    print(f"{arguments.samples} images of 28 x 28 bytes, {size:.2f} GB")
    print(
        f"{'way':<10}{'batch':>6}{'file':>6}{'steps/block':>13}{'Msamples/s':>12}{'GB/s':>7}"
        f"{'GB/CPU s':>10}{'peak MiB':>10}{'block MiB':>11}"
    )
    for row in rows:
        print(
            f"{row['way']:<10}{row['batch']:>6}{row['file']:>6}{row['steps_per_block']:>13}"
            f"{row['samples_per_second'] / 1e6:>12.2f}{row['gigabytes_per_second']:>7.2f}"
            f"{row['gigabytes_per_cpu_second']:>10.2f}{row['peak_mebibytes']:>10.0f}"
            f"{row['block_mebibytes']:>11.1f}"
        )
    output = Path(__file__).parent / "results" / "reading.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps({"arguments": vars(arguments), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
