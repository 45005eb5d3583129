"""Train a portrait of the richness paper: 21 richnesses by 7 learning rates, a centred µP MLP.

Prints one table and writes benchmarks/results/portrait_<device>.json.

`python benchmarks/portrait.py [--threads N] [--steps N]` starts it as a user does, by Snakemake in
a copy of the project, on the small embedded digits, and prints which share of the training jobs'
wall time, from the start of Python to the last table, goes into training (with the measurements
that are part of it).

`python benchmarks/portrait.py --device gpu [--samples N]` needs no Snakemake: it trains the paper's
portrait of MNIST-1M, one pass over 1M samples of MNIST's size (made up: ten prototypes and noise)
in batches of 64 at width 256, on the accelerator that JAX finds, and prints seconds, start-up and
compilation included, and the share of the card's peak, that of a large float32 product.
Richnesses below 1e-3 are trained in float64, all others in float32. The operations that count are
those of the products of the steps that were taken; a run that diverges takes no more.
"""

import argparse
import dataclasses
import json
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from common import (
    NUM_OUTPUTS,
    Case,
    add_common_arguments,
    describe_machine,
    limit_threads,
    print_table,
    repeat_for,
    write_result,
)

DEPTH = 3
RICHNESSES = [10.0 ** (exponent / 2) for exponent in range(-10, 11)]
# Two per decade below the largest that may converge.
RATE_FACTORS = [10.0 ** (-exponent / 2) for exponent in range(7)]
PROJECT = Path(__file__).resolve().parents[1]
LAID_OUT = ("Snakefile", "workflow", "config", "src", "environment.yml")
EXPERIMENT = "richness/benchmark_portrait"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4000, help="steps of a run, on the CPU")
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples, on the GPU")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.width, arguments.batch_size = 8, 16
        arguments.steps, arguments.samples = 20, 320
    return arguments


def learning_rates(richness: float) -> list[float]:
    """The portrait's rates: η ∝ γ² where lazy, γ^(2/L) where rich."""
    edge = richness**2 if richness < 1 else richness ** (2 / DEPTH)
    return [edge * factor for factor in RATE_FACTORS]


def hyperparameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all runs share."""
    return {
        "model": f"rich_mlp_L{DEPTH}",
        "width": arguments.width,
        "batch_size": arguments.batch_size,
    }


# --- as a Snakemake job ---


def experiment_file(arguments: argparse.Namespace) -> dict[str, Any]:
    """The experiment as a user would write it; JSON is YAML."""
    grid = [
        {"richness": [richness], "learning_rate": learning_rates(richness)}
        for richness in RICHNESSES
    ]
    return {
        "description": "A portrait over richness and learning rate",
        "dataset": {"published": "mnist", "embedded": "digits"},
        "hyperparameters": hyperparameters(arguments),
        "grid": grid,
        "stopping": {"num_steps": arguments.steps},
        "measurements": {"points_per_decade": 8},
        "evaluation": {"num_train": 512, "num_test": 360},
        "runs_per_shard": len(RICHNESSES) * len(RATE_FACTORS),
    }


def train_by_snakemake(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the portrait in a copy of the project; where the time of its training jobs went."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in LAID_OUT:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                shutil.copy2(source, folder / name)
        file = folder / f"config/experiments/{EXPERIMENT}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        # YAML 1.1 takes 1e-05 for a text, 1.0e-05 for a number.
        text = re.sub(r"\b(\d+)e", r"\1.0e", json.dumps(experiment_file(arguments), indent=1))
        file.write_text(re.sub(r"(\.\d+)\.0e", r"\1e", text), encoding="utf-8")
        began = time.perf_counter()
        process = subprocess.run(
            [
                *(sys.executable, "-m", "snakemake", "--cores", str(arguments.threads)),
                *("--nocolor", "--config", "scale=quick", f"experiments={EXPERIMENT}", "--"),
                f"results/experiments/{EXPERIMENT}/runs.parquet",
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        whole = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(process.stdout[-4000:])
        logs = (folder / "results/logs").rglob("training_*.log")
        training = [_training_seconds(log.read_text(encoding="utf-8")) for log in logs]
        walls = _job_seconds(process.stdout)
    return {
        "seconds_of_the_command": whole,
        "jobs": len(walls),
        "training_seconds": sum(training),
        "job_seconds": sum(walls),
        "training_share": sum(training) / sum(walls),
    }


def _training_seconds(log: str) -> float:
    """Seconds of training that a job logged: steps taken by their pace, over all its programs."""
    lines = re.findall(r"step (\d+) of \d+, ([\d.e+-]+) steps/s.* taken", log)
    return sum(int(steps) / float(pace) for steps, pace in lines)


def _job_seconds(output: str) -> list[float]:
    """Wall time of each training job by Snakemake's own clock, which has whole seconds."""
    moment, started, seconds = None, {}, []
    rule = None
    for line in output.splitlines():
        if found := re.fullmatch(r"\[(.*)\]", line):
            moment = datetime.strptime(found[1], "%a %b %d %H:%M:%S %Y")
        elif found := re.fullmatch(r"(?:local)?rule (\w+):", line):
            rule = found[1]
        elif (found := re.fullmatch(r"    jobid: (\d+)", line)) and rule == "training_shard":
            started[found[1]] = moment
        elif (found := re.match(r"Finished jobid: (\d+)", line)) and found[1] in started:
            seconds.append((moment - started[found[1]]).total_seconds())
    return seconds


# --- on an accelerator ---


def made_up_images(num_samples: int) -> Any:
    """A dataset of bytes: each sample is one of ten prototypes and noise."""
    import numpy as np

    from sgdphases.datasets.loading import Dataset, Normalisation

    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 256, (NUM_OUTPUTS, 784), dtype=np.uint8)
    labels = rng.integers(NUM_OUTPUTS, size=num_samples, dtype=np.int32)
    inputs = np.empty((num_samples, 784), np.uint8)
    for start in range(0, num_samples, 50_000):
        part = slice(start, start + 50_000)
        noise = rng.integers(0, 128, (len(labels[part]), 784), dtype=np.uint8)
        inputs[part] = prototypes[labels[part]] // 2 + noise
    return Dataset(
        name="made_up",
        manifest={},
        train_inputs=inputs,
        train_targets=np.empty((0, NUM_OUTPUTS), np.float32),
        test_inputs=inputs[:1000],
        test_targets=np.empty((0, NUM_OUTPUTS), np.float32),
        train_labels=labels,
        test_labels=labels[:1000],
        normalisation=Normalisation(*map(np.asarray, (1 / 255, 0.5, 0.25))),
    )


def measured_peak(size: int) -> float:
    """GFLOP/s of a large float32 product, without reduced precision."""
    import jax
    import jax.numpy as jnp

    with jax.default_matmul_precision("highest"):
        matrix = jnp.ones((size, size))
        product = jax.jit(lambda a: a @ a)

        def steps(count: int) -> None:
            results = [product(matrix) for _ in range(count)]
            jax.block_until_ready(results)

        steps(1)
        measure = repeat_for(steps)
        measure(0.1)
        return statistics.median(measure(0.2) for _ in range(5)) * 2 * size**3 / 1e9


def train_directly(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the portrait in this process, one program for each precision."""
    import jax

    from sgdphases.hyperparameters import complete_run
    from sgdphases.training import train_shard

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    backend = jax.default_backend()
    device = jax.devices()[0].device_kind
    dataset = made_up_images(arguments.samples)
    num_steps = arguments.samples // arguments.batch_size
    settings = {
        "experiment": "benchmarks/portrait",
        "stopping": {"num_steps": num_steps},
        "measurements": {"points_per_decade": 4},
        "curvature": {"batch_size": 128, "num_batches": 1, "num_lanczos_steps": 10},
        "evaluation": {"num_train": 1000, "num_test": 1000},
        "divergence_factor": 1e6,
        "data_seed": 0,
    }
    shared = {**hyperparameters(arguments), "learning_rate_relative_to": "absolute", "seed": 0}
    runs = [
        complete_run({**shared, "richness": richness, "learning_rate": rate})
        for richness in RICHNESSES
        for rate in learning_rates(richness)
    ]
    case = Case(
        "portrait", "fully_connected", arguments.width, (784,), 1, arguments.batch_size, True
    )
    programs = []
    for precision in ("float32", "float64"):
        of_program = [
            {"run_id": f"run{index}", **run}
            for index, run in enumerate(runs)
            if run["precision"] == precision
        ]
        began = time.perf_counter()
        shard = train_shard(settings, of_program, ["network"] * len(of_program), dataset, {})
        seconds = time.perf_counter() - began
        # The frozen network's pass is the same for all runs.
        alone = dataclasses.replace(case, centered=False).flop_per_step()
        run_steps = int(shard.runs["steps"].sum())
        flop = run_steps * alone + num_steps * (case.flop_per_step() - alone)
        programs.append(
            {
                "precision": precision,
                "runs": len(of_program),
                "seconds": seconds,
                "run_steps": run_steps,
                "gflops": flop / seconds / 1e9,
                "statuses": shard.runs["status"].value_counts().to_dict(),
                "lowering": shard.runs["lowering"].iloc[0],
            }
        )
    seconds = sum(program["seconds"] for program in programs)
    gflops = sum(program["gflops"] * program["seconds"] for program in programs) / seconds
    peak = measured_peak(256 if arguments.smoke else 8192)
    return {
        "backend": backend,
        "device": device,
        "runs": len(runs),
        "steps": num_steps,
        "seconds": seconds,
        "gflops": gflops,
        "peak_gflops": peak,
        "share_of_peak": gflops / peak,
        "programs": programs,
    }


def main() -> None:
    arguments = parse_arguments()
    if arguments.device == "cpu":
        limit_threads(arguments.threads)
        result = train_by_snakemake(arguments)
        num_runs = len(RICHNESSES) * len(RATE_FACTORS)
        print(f"{num_runs} runs of {arguments.steps} steps, {arguments.threads} thread(s)")
        names = ("jobs", "job_seconds", "training_seconds", "training_share")
        print_table(names, [[float(result[name]) for name in names]])
    else:
        result = train_directly(arguments)
        print(f"{result['runs']} runs of {result['steps']} steps on {result['device']}")
        rows = [
            [program["precision"], *(float(program[key]) for key in ("runs", "seconds", "gflops"))]
            for program in result["programs"]
        ]
        print_table(
            ("program", "runs", "seconds", "GFLOP/s"),
            [*rows, ["together", float(result["runs"]), result["seconds"], result["gflops"]]],
        )
        print(
            f"peak, a float32 product: {result['peak_gflops']:.0f} GFLOP/s; "
            f"share of it: {result['share_of_peak']:.1%}"
        )
    write_result(
        arguments.results,
        f"portrait_{arguments.device}",
        {
            "machine": describe_machine(arguments.threads),
            "arguments": vars(arguments),
            **result,
        },
    )


if __name__ == "__main__":
    main()
