"""What the benchmarks share: cases, the operations they need, fair timing, tables and results.

Each side of a comparison lives in a process of its own, with its own environment, and is asked for
one short measurement after the other in turn (A B C A B C ...), so that all of them see the same
moments. On a machine that others use too, measurements during which other processes took more than
a twentieth of the processors are set aside and made again, up to some patience. A speed is the
median of the measurements that count, a ratio that of two such medians.
"""

import argparse
import importlib
import json
import logging
import math
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NUM_OUTPUTS = 10
# Samples that a side's batches are drawn from; small, as reading data is not compared.
NUM_SAMPLES = 2048
_SECONDS_UNTIL_READY = 600.0


@dataclass(frozen=True)
class Case:
    """Networks of one shape that are trained together with plain SGD and the squared error.

    Attributes:
        name: Short name, as in tables.
        model: `fully_connected` (depth 3) or `convolutional` (two 3x3 convolutions, each followed
            by an average over 2x2 pixels, then two dense layers); no biases.
        width: Width of the hidden layers.
        input_shape: Shape of a sample.
        num_runs: Runs trained together.
        batch_size: Samples per step.
        centered: Whether the outputs at initialisation are subtracted. All runs then have the same
            initialisation, as in a portrait over learning rates, and need those outputs only once.
    """

    name: str
    model: str
    width: int
    input_shape: tuple[int, ...]
    num_runs: int
    batch_size: int = 128
    centered: bool = False

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The network in the package's words."""
        own = {"depth": 3} if self.model == "fully_connected" else {}
        return {
            "model": self.model,
            "width": self.width,
            "activation": "relu",
            "parametrisation": "standard",
            "weight_scale": math.sqrt(2),
            "bias_scale": None,
            "precision": "float32",
            **own,
        }

    def products(self) -> list[int]:
        """Multiplications per sample in each layer's forward pass, from the input on."""
        width = self.width
        if self.model == "fully_connected":
            return [math.prod(self.input_shape) * width, width * width, width * NUM_OUTPUTS]
        rows, columns, channels = self.input_shape
        flat = (rows // 4) * (columns // 4) * width
        return [
            rows * columns * 9 * channels * width,
            (rows // 2) * (columns // 2) * 9 * width * width,
            flat * width,
            width * NUM_OUTPUTS,
        ]

    def flop_per_step(self) -> float:
        """Operations of the products that a step of all runs needs.

        Forward, for the gradient of the weights, and for that of the activations, except those of
        the first layer: nobody needs the gradient of the inputs. With centred networks, forward
        once more for all runs together.
        """
        products = self.products()
        of_one_run = 3 * sum(products) - products[0]
        shared = sum(products) if self.centered else 0
        return 2.0 * self.batch_size * (self.num_runs * of_one_run + shared)


CASES = {
    case.name: case
    for case in (
        Case("fc512", "fully_connected", 512, (784,), 16),
        Case("fc512-centred", "fully_connected", 512, (784,), 16, centered=True),
        Case("fc64", "fully_connected", 64, (784,), 64),
        Case("fc64-centred", "fully_connected", 64, (784,), 64, centered=True),
        Case("cnn32", "convolutional", 32, (28, 28, 1), 16),
        Case("cnn64", "convolutional", 64, (28, 28, 1), 8),
        Case("cnn32-colour", "convolutional", 32, (32, 32, 3), 16),
        Case("cnn64-colour", "convolutional", 64, (32, 32, 3), 8),
    )
}


def tiny(case: Case) -> Case:
    """The case at sizes that show only that the script works."""
    shape = (784,) if case.model == "fully_connected" else (8, 8, case.input_shape[-1])
    return replace(case, width=8, num_runs=2, batch_size=8, input_shape=shape)


# --- sides ---


@dataclass
class Side:
    """One side of a comparison.

    Attributes:
        name: As in tables.
        maker: "module:function" that, in the side's process, takes `arguments` and returns a
            function from seconds to measure for, to a rate; and a mapping of what else to tell.
        arguments: Arguments of the maker, by name.
        environment: Environment variables of the process.
        rates: The measurements that count.
        set_aside: Measurements that other processes disturbed.
        told: What the maker told, and `seconds_to_ready`.
        failure: Why the side is not available, or None.
    """

    name: str
    maker: str
    arguments: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    set_aside: list[float] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


Sampler = Callable[[float], float]


def _serve(connection: Connection, maker: str, arguments: Mapping[str, Any]) -> None:
    """In a side's process: prepare, then measure when asked."""
    try:
        module, function = maker.split(":")
        sample, told = getattr(importlib.import_module(module), function)(**arguments)
        sample(0.05)
        connection.send((None, told))
        while (seconds := connection.recv()) is not None:
            connection.send(sample(seconds))
    except (EOFError, BrokenPipeError):  # the benchmark has ended
        return
    except Exception as error:
        traceback.print_exc()
        connection.send((f"{type(error).__name__}: {str(error).splitlines()[0]}"[:160], {}))


def measure_in_turn(sides: Sequence[Side], rounds: int, seconds: float, patience: int = 4) -> None:
    """Fill the sides' `rates`: the sides are measured in turn.

    Args:
        sides: The sides; one that cannot be prepared gets a `failure`.
        rounds: Measurements of each side that count.
        seconds: How long a measurement takes, about.
        patience: At most so many times as many rounds are made; a side that was disturbed in all
            of them is left with the disturbed ones.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[tuple[Side, Connection, Any]] = []
    try:
        for side in sides:
            began = time.perf_counter()
            ours, theirs = context.Pipe()
            kept = dict(os.environ)
            os.environ.update(side.environment)
            process = context.Process(
                target=_serve, args=(theirs, side.maker, side.arguments), daemon=True
            )
            process.start()
            os.environ.clear()
            os.environ.update(kept)
            theirs.close()
            try:
                ready = ours.poll(_SECONDS_UNTIL_READY)
                side.failure, side.told = ours.recv() if ready else ("took too long", {})
            except EOFError:
                side.failure = f"its process ended with code {process.exitcode}"
            side.told["seconds_to_ready"] = time.perf_counter() - began
            processes.append((side, ours, process))
        names = ", ".join(f"{side.name} ({_readiness(side)})" for side in sides)
        print(f"measuring in turn: {names}", file=sys.stderr, flush=True)
        for _ in range(patience * rounds):
            waiting = [p for p in processes if not p[0].failure and len(p[0].rates) < rounds]
            for side, connection, process in waiting:
                before = _processor_seconds(process.pid)
                connection.send(seconds)
                rate = connection.recv()
                is_quiet = _share_of_others(before, _processor_seconds(process.pid)) < _QUIET
                (side.rates if is_quiet else side.set_aside).append(rate)
        for side in sides:
            if len(side.rates) < min(rounds, 3):
                side.rates, side.set_aside = [*side.rates, *side.set_aside], []
                side.told["was_disturbed"] = True
    finally:
        for side, connection, process in processes:
            if side.failure is None:
                connection.send(None)
            process.join(10 if side.failure is None else 0)
            process.terminate()
            process.join()
            connection.close()


def _readiness(side: Side) -> str:
    return "not available" if side.failure else f"ready in {side.told['seconds_to_ready']:.0f} s"


# Share of the processors that other processes may take during a measurement.
_QUIET = 0.05


def _processor_seconds(process: int) -> tuple[float, float, float] | None:
    """Wall clock, and processor time of everybody and of a process; None if that is not told."""
    try:
        text = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        own = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return None
    user, nice, system, _, _, *interrupts = (int(value) for value in text.split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + sum(interrupts)
    return time.perf_counter(), busy / tick, (int(own[11]) + int(own[12])) / tick


def _share_of_others(
    before: tuple[float, float, float] | None, after: tuple[float, float, float] | None
) -> float:
    """Share of the processors that processes other than the measured one took."""
    if before is None or after is None:
        return 0.0
    wall, everybody, own = (b - a for a, b in zip(before, after, strict=True))
    return (everybody - own) / (wall * (os.cpu_count() or 1))


def ratio(side: Side, other: Side) -> float:
    """How many times as fast as the other a side is; NaN if one is not available."""
    return median(side) / median(other)


def median(side: Side) -> float:
    """The median of what a side reached; NaN where it is not available."""
    return statistics.median(side.rates) if side.rates else math.nan


def repeat_for(steps: Callable[[int], None]) -> Callable[[float], float]:
    """From something that takes a number of steps, to a measurement of steps per second.

    The number of steps is chosen by the last measurement's rate.
    """
    known = {"rate": 0.0}

    def measure(seconds: float) -> float:
        count = max(1, round(seconds * known["rate"]))
        began = time.perf_counter()
        steps(count)
        known["rate"] = count / (time.perf_counter() - began)
        return known["rate"]

    return measure


# --- this package's side ---


def limit_threads(threads: int) -> None:
    """Give this process, and those it starts, as many processors as it has threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


def training_job(
    case: Case, threads: int, lowering: Mapping[str, Any] | None = None
) -> tuple[Callable[[int], float], dict[str, Any]]:
    """Training as a job of the pipeline does it, from runs and a dataset to tables.

    Args:
        case: What is trained.
        threads: Threads of the CPU; 0 leaves JAX's devices as they are.
        lowering: A forced lowering, or None for the fastest of those that a long job tries.

    Returns:
        Train all runs for a number of steps, and return the steps per second that the job logs,
        which count from after the first measurement to after the last; and the lowering.
    """
    import numpy as np

    from sgdphases.datasets.loading import Dataset
    from sgdphases.devices import use_cpu_devices
    from sgdphases.hyperparameters import complete_run
    from sgdphases.training import Execution, train_shard

    if threads:
        use_cpu_devices(threads)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((NUM_SAMPLES, *case.input_shape), dtype=np.float32)
    targets = np.eye(NUM_OUTPUTS, dtype=np.float32)[rng.integers(NUM_OUTPUTS, size=NUM_SAMPLES)]
    dataset = Dataset("noise", {}, inputs, targets, inputs[:128], targets[:128])
    runs = [
        {
            "run_id": f"run{index}",
            **complete_run(
                {
                    **case.hyperparameters,
                    "learning_rate": 1e-3 * (1 + index / case.num_runs),
                    "learning_rate_relative_to": "absolute",
                    "batch_size": case.batch_size,
                    "centered": case.centered,
                    "seed": 0 if case.centered else index,
                }
            ),
        }
        for index in range(case.num_runs)
    ]
    network_ids = [run["run_id"] for run in runs]
    settings = {
        "experiment": f"benchmarks/{case.name}",
        "measurements": {"dense_until": 0, "every": 10**9},
        "curvature": {"batch_size": 128, "num_batches": 1, "num_lanczos_steps": 10},
        "evaluation": {"num_train": 128, "num_test": 128},
        "divergence_factor": 1e6,
        "data_seed": 0,
    }
    paces: list[float] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found = re.search(r"([\d.e+]+) steps/s.* taken", record.getMessage())
            if found:
                paces.append(float(found[1]))

    progress = logging.getLogger("sgdphases.progress")
    progress.setLevel(logging.INFO)
    progress.addHandler(Reader())

    def train(num_steps: int, forced: Mapping[str, Any]) -> float:
        train_shard(
            {**settings, "stopping": {"num_steps": num_steps}},
            runs,
            network_ids,
            dataset,
            {},
            Execution(lowering=dict(forced)),
        )
        return paces[-1]

    chosen = dict(lowering) if lowering is not None else _fastest_lowering(case, train)
    return lambda num_steps: train(num_steps, chosen), chosen


def _fastest_lowering(case: Case, train: Callable[..., float]) -> dict[str, Any]:
    """The choice that a long job makes by its trial."""
    from dataclasses import asdict

    import jax

    from sgdphases.devices import run_mesh
    from sgdphases.lowering import candidate_lowerings, choose_lowering

    mesh = run_mesh(min(jax.local_device_count(), case.num_runs))
    runs_per_device = math.ceil(case.num_runs / mesh.size)
    platform_name = mesh.devices.flat[0].platform
    has_convolutions = case.model == "convolutional"
    candidates = candidate_lowerings(platform_name, runs_per_device, mesh.size, has_convolutions)

    paces = {
        candidate: _compiled_pace(partial(train, forced=asdict(candidate)))
        for candidate in candidates
    }
    return asdict(choose_lowering(candidates, lambda c: 1 / paces[c](1.0), None, {}))


def _compiled_pace(train: Callable[[int], float]) -> Callable[[float], float]:
    """Measure a job when its program has been compiled, as the other sides are.

    Args:
        train: Takes a number of steps, and returns steps per second.

    Returns:
        From seconds to measure for, to steps per second. Measurements of one length take the same
        number of steps, as another number may be another program.
    """
    counts: dict[float, int] = {}

    def measure(seconds: float) -> float:
        if seconds not in counts:
            train(8)
            counts[seconds] = max(8, round(seconds * train(8)))
            train(counts[seconds])
        return train(counts[seconds])

    return measure


def train_with_engine(
    case: Case, threads: int, lowering: Mapping[str, Any] | None = None
) -> tuple[Sampler, dict[str, Any]]:
    """This package's side of a comparison: GFLOP/s of a training job."""
    train, chosen = training_job(case, threads, lowering)
    flop, pace = case.flop_per_step(), _compiled_pace(train)
    return lambda seconds: pace(seconds) * flop / 1e9, {"lowering": chosen}


# --- results ---


def print_complaints(name: str, sides: Sequence[Side]) -> None:
    """Say which sides are missing, and which were measured on a busy machine."""
    for side in sides:
        if side.failure:
            print(f"{name}: {side.name} is not available: {side.failure}")
    disturbed = [side.name for side in sides if side.told.get("was_disturbed")]
    if disturbed:
        print(f"{name}: other processes disturbed all measurements of: {', '.join(disturbed)}")


def describe_machine(threads: int) -> dict[str, Any]:
    """What a result depends on besides the code."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
        processor = match[1] if match else platform.processor()
    except OSError:
        processor = platform.processor()
    versions = {}
    for name in ("jax", "torch", "numpy", "sgdphases"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": processor,
        "processors": os.cpu_count(),
        "threads": threads,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print columns, those of texts left-aligned; NaN is shown as a dash."""
    is_text = [isinstance(value, str) for value in rows[0]]
    cells = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        columns = zip(row, widths, is_text, strict=True)
        print("  ".join(c.ljust(w) if left else c.rjust(w) for c, w, left in columns).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return str(value)


def write_result(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write a benchmark's JSON, in which NaN is null, and say where it is.

    Args:
        folder: Where to.
        name: The benchmark.
        content: Mappings, sequences, numbers, paths and texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(_plain(content), indent=1) + "\n", encoding="utf-8")
    print(f"written: {file}", file=sys.stderr)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def add_common_arguments(parser: argparse.ArgumentParser, seconds: float | None = None) -> None:
    """Add the options of all benchmarks; with `seconds`, those of measuring in turn too."""
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: only that it works")
    if seconds is not None:
        parser.add_argument("--rounds", type=int, default=7, help="measurements of each side")
        parser.add_argument(
            "--seconds", type=float, default=seconds, help="length of a measurement"
        )
