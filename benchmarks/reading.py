"""Measure how fast batches come out of a memory map, in seeded order, and the memory that takes.

Prints one table and writes benchmarks/results/reading.json:
`python benchmarks/reading.py [--samples N] [--folder F] [--threads N]`. The samples are images of
28 x 28 bytes (MNIST's size), in two files, the second four times as large; a pass reads as many of
each. Ways: "sequence": the file's bytes copied in their order, which nothing that shuffles can
beat; "numpy": each batch by indexing the memory map; "read": the reading thread of
`sgdphases.batches` alone, up to raw batches on the device; "streamed": the same, normalised and
one-hot encoded; "device": the same of data that lie on the device. With "cold", the file is dropped
from the system's cache first. GB are the file's bytes of the samples asked for (as floats they are
four times as many); GB/CPU s counts the time of all threads; the peak is the largest growth of the
process's own memory, without the pages of the file but with what the allocator keeps for reuse.
Each case has its own process; the best of some passes counts.
"""

import argparse
import ctypes
import gc
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

from common import (
    add_common_arguments,
    describe_machine,
    limit_threads,
    print_table,
    write_result,
)

SHAPE = (28, 28, 1)
NUM_CLASSES = 10
LARGER = 4
# What the table shows of a row, under which headings.
COLUMNS = {
    "way": "way",
    "batch": "batch",
    "file": "file",
    "file_gigabytes": "of GB",
    "million_samples_per_second": "Msamples/s",
    "gigabytes_per_second": "GB/s",
    "gigabytes_per_cpu_second": "GB/CPU s",
    "peak_mebibytes": "peak MiB",
    "block_mebibytes": "block MiB",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=400_000, help="samples in the smaller file")
    parser.add_argument("--folder", help="where the files are written; default: temporary folder")
    parser.add_argument("--block-mib", type=float, help="size of a block; default: the source's")
    parser.add_argument("--repeats", type=int, default=3, help="passes, of which the best counts")
    add_common_arguments(parser)
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
    path: Path, way: str, batch: int, is_cold: bool, num_samples: int, options: dict[str, Any]
) -> dict[str, Any]:
    """One row of the table: some passes over `num_samples` samples of a file."""
    limit_threads(options["threads"])
    import jax
    import numpy as np

    from sgdphases.batches import batch_indices, open_batches
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
    block_mib = options["block_mib"]
    open_source = partial(
        open_batches,
        dataset,
        batch,
        0,
        np.float32,
        device_bytes=inputs.nbytes if way == "device" else 0,
        block_bytes=None if block_mib is None else int(block_mib * 2**20),
    )
    with open_source(last_step=len(inputs) // batch) as source:
        rows = source.num_rows
        jax.block_until_ready(source.segment(0, 1).inputs)  # compiles
    num_blocks = max(1, num_samples // (batch * rows))

    def take(source: Any, block: int) -> None:
        first = block * rows
        match way:
            case "sequence":
                np.array(inputs[first * batch : (first + rows) * batch])
            case "numpy":
                for indices in batch_indices(len(inputs), batch, first, rows, 0):
                    np.asarray(inputs[indices])
            case "read":
                jax.block_until_ready(source._reader.read(block))
            case _:
                jax.block_until_ready(source.segment(first, 1).inputs)

    timings, peaks = [], []
    for _ in range(options["repeats"]):
        return_free_memory()
        with peak_memory() as peak, open_source(last_step=num_blocks * rows) as source:
            if is_cold:
                drop_from_cache(path, inputs._mmap)
            began, began_cpu = time.perf_counter(), time.process_time()
            for block in range(num_blocks):
                take(source, block)
            timings.append((time.perf_counter() - began, time.process_time() - began_cpu))
        peaks.append(peak[0])
    samples = num_blocks * rows * batch
    gigabytes = samples * math.prod(SHAPE) / 1e9
    seconds, cpu_seconds = (min(column) for column in zip(*timings, strict=True))
    return {
        "way": way,
        "batch": batch,
        "file_gigabytes": inputs.nbytes / 1e9,
        "file": "cold" if is_cold else "warm",
        "steps_per_block": rows,
        "million_samples_per_second": samples / seconds / 1e6,
        "gigabytes_per_second": gigabytes / seconds,
        "gigabytes_per_cpu_second": gigabytes / cpu_seconds,
        "peak_mebibytes": max(peaks) / 2**20,
        "block_mebibytes": 4 * rows * batch * (math.prod(SHAPE) + NUM_CLASSES) / 2**20,
    }


def main() -> None:
    arguments = parse_arguments()
    num_samples = 5_000 if arguments.smoke else arguments.samples
    repeats = 1 if arguments.smoke else arguments.repeats
    options = {
        "threads": arguments.threads,
        "block_mib": arguments.block_mib,
        "repeats": repeats,
    }
    ways = ("sequence", "numpy", "read", "streamed", "device")
    # With "larger", the file of which a pass reads a part only.
    cases = [(way, batch, False, False) for batch in (64, 512) for way in ways]
    cases += [(way, 512, False, True) for way in ("read", "streamed")]
    if hasattr(os, "posix_fadvise"):
        cases += [(way, 512, True, False) for way in ("sequence", "read")]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        smaller, larger = Path(folder) / "smaller.npy", Path(folder) / "larger.npy"
        write_samples(smaller, num_samples)
        write_samples(larger, LARGER * num_samples)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
            futures = [
                processes.submit(
                    measure, larger if of_larger else smaller, *case, num_samples, options
                )
                for *case, of_larger in cases
            ]
            rows = [future.result() for future in futures]
    print_table(tuple(COLUMNS.values()), [[row[column] for column in COLUMNS] for row in rows])
    content = {
        "machine": describe_machine(arguments.threads),
        "arguments": vars(arguments),
        "rows": rows,
    }
    write_result(arguments.results, "reading", content)


if __name__ == "__main__":
    main()
