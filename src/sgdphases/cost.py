"""What a plan costs, before anything runs: jobs, device-hours, disk.

Operations are counted in the traced programs, as the log of a training job counts them; how fast a
device gets through them is assumed.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sgdphases.datasets.facts import facts_of_definition
from sgdphases.datasets.views import Facts, read_view
from sgdphases.planning import Shard
from sgdphases.rate_schedules import RateSchedule, read_rate_schedule, schedule_of_run
from sgdphases.schedule import BUDGETS, measurement_steps, planned_steps, stopping_of_run
from sgdphases.temperature_tuning import sweep_values
from sgdphases.workflow import ExperimentPlan, Plan, known_definition, prediction_sources

# What the builders of tensorflow-datasets deliver, by the names that these have there.
_BUILDERS = {
    "mnist": Facts("classification", 10, 60_000, 10_000, (28, 28, 1)),
    "cifar10": Facts("classification", 10, 50_000, 10_000, (32, 32, 3)),
    "cifar100": Facts("classification", 100, 50_000, 10_000, (32, 32, 3)),
    "imdb_reviews": Facts("classification", 2, 25_000, 25_000),
    "imagenet2012": Facts("classification", 1000, 1_281_167, 50_000),
}
_SAMPLES_OF_CIFAR5M = 6_002_688
_EIGHT_BIT_SOURCES = frozenset({"tfds", "cifar5m", "tiny_imagenet", "folder", "diffusion"})
# Of a training step: the pass forward, and twice as much backward.
_PASSES_PER_STEP = 3
# Bytes that a number of a history takes, in the shards and once more in the experiment's table.
_BYTES_PER_CELL = 2 * 8
_COLUMNS = 10
# Two checkpoints are kept, with parameters, momentum and initial parameters in each.
_COPIES_IN_CHECKPOINTS = 6


@dataclass(frozen=True)
class Assumptions:
    """How fast a device is.

    Attributes:
        teraflops: 10¹² operations of matrix products per second.
        seconds_per_step: A step takes at least so long, however small the network.
        seconds_per_job: To start, read the data and compile.
        critical_learning_rate: Of networks whose curvature is not measured yet.
        weight_decay: Of runs whose weight decay waits for a prediction.
    """

    teraflops: float = 10.0
    seconds_per_step: float = 1e-4
    seconds_per_job: float = 60.0
    critical_learning_rate: float = 1.0
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class Cost:
    """What one experiment takes.

    Attributes:
        experiment: Its name.
        num_runs: Runs of the grid.
        num_jobs: Jobs that a cluster gets, those that are done included.
        num_pending: Of these, jobs that are not done.
        device_hours: Of one accelerator, over all jobs that are not done; None where the size of
            the data is not known.
        longest_job_hours: Of the longest of these jobs.
        results_bytes: Tables of shards and experiment, uncompressed; of theory not estimated: 0.
        scratch_bytes: Checkpoints of the job that has the largest.
        assumes_rates: Whether steps follow from rates that are not known yet.
    """

    experiment: str
    num_runs: int
    num_jobs: int
    num_pending: int
    device_hours: float | None
    longest_job_hours: float | None
    results_bytes: float
    scratch_bytes: float
    assumes_rates: bool


def estimate_costs(plan: Plan, assumptions: Assumptions | None = None) -> list[Cost]:
    """Estimate what each experiment of a plan takes.

    Args:
        plan: The plan.
        assumptions: How fast a device is.

    Returns:
        One estimate for each experiment, in the plan's order.
    """
    assumptions = assumptions or Assumptions()
    return [
        _theory_cost(experiment)
        if experiment.spec["kind"] == "theory"
        else _training_cost(experiment, assumptions)
        for experiment in plan.experiments.values()
    ]


def known_facts(dataset: Mapping[str, Any]) -> Facts:
    """What is known of an experiment's data before they are prepared, its view included.

    Args:
        dataset: Section `dataset` of the resolved experiment.

    Returns:
        The facts; the view's classes count as equally frequent.
    """
    definition = known_definition(dataset["name"])
    facts = facts_of_definition(definition)
    if definition["source"] == "tfds" and definition["tfds_name"] in _BUILDERS:
        known = _BUILDERS[definition["tfds_name"]]
        side = definition.get("image_size")
        shape = facts.input_shape or ((side, side, 3) if side else known.input_shape)
        facts = replace(known, input_shape=shape)
    elif definition["source"] == "cifar5m":
        facts = replace(facts, num_train=_SAMPLES_OF_CIFAR5M, num_test=10_000)
    elif definition["source"] == "diffusion":
        facts = replace(_BUILDERS["mnist"], num_train=definition["num_images"])
    view = read_view(dataset)
    count, outputs, shape = facts.num_train, facts.num_outputs, facts.input_shape
    if view.classes is not None:
        if count is not None and outputs:
            count = count * len(view.classes) // outputs
        outputs = len(view.classes)
    if view.samples_per_class is not None and outputs:
        count = view.samples_per_class * outputs
    if view.num_train is not None:
        count = view.num_train if count is None else min(count, view.num_train)
    if shape is not None and len(shape) == 3:
        side = view.resize
        shape = (side or shape[0], side or shape[1], 1 if view.grey else shape[2])
    outputs = 1 if view.labels == "parity" else outputs
    return replace(facts, num_train=count, num_outputs=outputs, input_shape=shape)


def dataset_bytes(plan: Plan) -> dict[str, float | None]:
    """Bytes of the arrays of each dataset that a plan uses; None where their size is not known."""
    names = {p.spec["dataset"]["name"] for p in plan.experiments.values() if p.spec["dataset"]}
    sizes: dict[str, float | None] = {}
    for name in sorted(names):
        facts, source = known_facts({"name": name}), known_definition(name)["source"]
        counts, shape = (facts.num_train, facts.num_test), facts.input_shape
        if shape is None or None in counts:
            sizes[name] = None
            continue
        # Images are stored as they come, in 8 bits, and tokens of texts in 16.
        is_image = source in _EIGHT_BIT_SOURCES and len(shape) == 3
        each = 1 if is_image else 2 if source == "tfds" else 4
        sizes[name] = float(each * math.prod(shape) * sum(count or 0 for count in counts))
    return sizes


def _theory_cost(experiment: ExperimentPlan) -> Cost:
    name, is_done = experiment.spec["experiment"], (experiment.folder / "runs.parquet").exists()
    num_runs = len(experiment.runs)
    return Cost(name, num_runs, 1, int(not is_done), 0.0, 0.0, 0.0, 0.0, assumes_rates=False)


def _training_cost(experiment: ExperimentPlan, assumptions: Assumptions) -> Cost:
    spec, facts = experiment.spec, known_facts(experiment.spec["dataset"])
    schedule = read_rate_schedule(spec.get("schedule"))
    shards = list(experiment.training_shards.values())
    curvature_shards = (
        list(experiment.curvature_shards.values()) if experiment.has_curvature else []
    )
    hours: list[float] | None = []
    rows, scratch, num_pending = 0.0, 0.0, 0
    for shard in shards:
        runs = list(shard.items.values())
        steps = [_steps_of(spec, run, facts, schedule, assumptions) for run in runs]
        measured = [len(measurement_steps(spec["measurements"], count)) + 1 for count in steps]
        rows += sum(measured)
        if _is_done(experiment, "training", shard):
            continue
        num_pending += 1
        seconds, num_parameters = _seconds_of(spec, runs, steps, measured, facts, assumptions)
        scratch = max(scratch, _COPIES_IN_CHECKPOINTS * 4.0 * num_parameters * len(runs))
        hours = None if seconds is None or hours is None else [*hours, seconds / 3600]
    for shard in curvature_shards:
        if _is_done(experiment, "curvature", shard):
            continue
        num_pending += 1
        hours = (
            None
            if hours is None
            else [*hours, _curvature_seconds(spec, shard, facts, assumptions) / 3600]
        )
    edge_shards = list(experiment.edge_shards.values()) if experiment.has_edges else []
    for shard in edge_shards:
        if _is_done(experiment, "edge_search", shard):
            continue
        num_pending += 1
        seconds = _edge_seconds(spec, shard, facts, assumptions)
        hours = None if seconds is None or hours is None else [*hours, seconds / 3600]
    if experiment.has_tuning and not (experiment.folder / "temperature_tuning.json").exists():
        num_pending += 1
        seconds = _tuning_seconds(experiment, facts, schedule, assumptions)
        hours = None if seconds is None or hours is None else [*hours, seconds / 3600]
    waits_for_curvature = any(
        run["learning_rate_relative_to"] == "critical"
        and {"physical_time", "decay_time"} & set(stopping_of_run(spec["stopping"], run))
        for run in experiment.runs.values()
    )
    waits_for_prediction = "decay_time" in spec["stopping"] and bool(
        prediction_sources(experiment.runs.values())
    )
    return Cost(
        experiment=spec["experiment"],
        num_runs=len(experiment.runs),
        num_jobs=len(shards)
        + len(curvature_shards)
        + len(edge_shards)
        + int(experiment.has_tuning)
        + 1,
        num_pending=num_pending + 1 if num_pending else 0,  # aggregation
        device_hours=None if hours is None else sum(hours),
        longest_job_hours=None if hours is None else max(hours, default=0.0),
        results_bytes=rows * _COLUMNS * _BYTES_PER_CELL,
        scratch_bytes=scratch,
        assumes_rates=waits_for_curvature or waits_for_prediction,
    )


def _is_done(experiment: ExperimentPlan, stage: str, shard: Shard) -> bool:
    table = {"training": "runs", "curvature": "curvature", "edge_search": "edges"}[stage]
    return (experiment.folder / f"{stage}_shards" / shard.name / f"{table}.parquet").exists()


def _edge_seconds(
    spec: Mapping[str, Any], shard: Shard, facts: Facts, assumptions: Assumptions
) -> float | None:
    """Seconds of a job of the edge search, None where the data are not known."""
    search = spec["edge_search"]
    rates = round(search["decades"] * search["rates_per_decade"]) + 1
    # All edges share the runs of the first round.
    tried = rates * (1 + (search["rounds"] - 1) * len(search["edges"]))
    runs = [case for case in shard.items.values() for _ in range(tried)]
    steps = [search["num_steps"]] * len(runs)
    return _seconds_of(spec, runs, steps, [2] * len(runs), facts, assumptions)[0]


def _tuning_seconds(
    experiment: ExperimentPlan, facts: Facts, schedule: RateSchedule, assumptions: Assumptions
) -> float | None:
    """Seconds of the job that sweeps β, unless it goes beyond its range; None as below."""
    spec, options = experiment.spec, experiment.spec["temperature_tuning"]
    tuned = list(experiment.runs.values())
    values = sweep_values(options["start"], options["stop"], options["points_per_decade"])
    # β = 1 has been trained; the gain compares two β.
    swept = (len(values) - 1) * len({run["seed"] for run in tuned})
    runs = [tuned[0]] * (swept + 2 * options["num_fresh_seeds"])
    steps = [_steps_of(spec, run, facts, schedule, assumptions) for run in runs]
    measured = [len(measurement_steps(spec["measurements"], count)) + 1 for count in steps]
    return _seconds_of(spec, runs, steps, measured, facts, assumptions)[0]


def _steps_of(
    spec: Mapping[str, Any],
    run: Mapping[str, Any],
    facts: Facts,
    schedule: RateSchedule,
    assumptions: Assumptions,
) -> int:
    rate = run["learning_rate"]
    if run["learning_rate_relative_to"] == "critical":
        rate *= assumptions.critical_learning_rate
    decay = run["weight_decay"]
    if run["weight_decay_from"] is not None:
        decay *= assumptions.weight_decay
    count = facts.num_train or 0
    batch = run["batch_size"]
    per_epoch = 1 if batch in (None, "full") or not count else max(count // batch, 1)
    stopping = stopping_of_run(spec["stopping"], run)
    return planned_steps(stopping, rate, decay, per_epoch, schedule_of_run(schedule, run))


def _seconds_of(
    spec: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    steps: Sequence[int],
    measured: Sequence[int],
    facts: Facts,
    assumptions: Assumptions,
) -> tuple[float | None, int]:
    """Seconds of a training job, None where the data are not known; and parameters of a run."""
    if facts.input_shape is None or facts.num_outputs is None:
        return None, 0
    run = runs[0]
    flop, num_parameters = _network_size(run, facts)
    batch = _batch_size(run["batch_size"], facts)
    training = _PASSES_PER_STEP * flop * batch * float(np.sum(steps))
    evaluated = sum(
        min(spec["evaluation"][f"num_{split}"], count or math.inf)
        for split, count in (("train", facts.num_train), ("test", facts.num_test))
    )
    measuring = flop * evaluated * float(np.sum(measured))
    for key, per_product in (("ntk_top_eigenvalue", 4.0), ("hessian", 6.0)):
        if (section := spec["measurements"].get(key)) is None:
            continue
        samples = section.get("batch_size", (spec.get("curvature") or {}).get("batch_size", 512))
        products = section.get(
            "num_lanczos_steps", (spec.get("curvature") or {}).get("num_lanczos_steps", 30)
        )
        times = sum(len(measurement_steps(section, count)) + 1 for count in steps)
        measuring += per_product * flop * samples * products * times
    seconds = (training + measuring) / (assumptions.teraflops * 1e12)
    least = assumptions.seconds_per_step * max(steps)
    return assumptions.seconds_per_job + max(seconds, least), num_parameters


def _curvature_seconds(
    spec: Mapping[str, Any], shard: Shard, facts: Facts, assumptions: Assumptions
) -> float:
    if facts.input_shape is None or facts.num_outputs is None:
        return assumptions.seconds_per_job
    section, seconds = spec["curvature"], assumptions.seconds_per_job
    for network in shard.items.values():
        flop, _ = _network_size(network, facts)
        products = section["num_lanczos_steps"] * section["num_batches"]
        samples = _batch_size(section["batch_size"], facts)
        seconds += 4.0 * flop * samples * products / (assumptions.teraflops * 1e12)
    return seconds


def _batch_size(given: int | str | None, facts: Facts) -> int:
    count = facts.num_train or 512
    return min(given, count) if isinstance(given, int) else count


def _network_size(run: Mapping[str, Any], facts: Facts) -> tuple[float, int]:
    """Operations of the pass forward for one sample, and the number of parameters."""
    # Only what the network is built from: runs that differ in their rate share it.
    left_out = {"run_id", "network_id", "learning_rate", "weight_decay", "seed", *BUDGETS}
    left_out |= {"final_learning_rate", "final_steps"}
    known = tuple(sorted((k, v) for k, v in run.items() if k not in left_out))
    assert facts.input_shape is not None
    return _traced_size(known, facts.input_shape, facts.num_outputs or 1)


@functools.lru_cache(maxsize=4096)
def _traced_size(
    known: tuple[tuple[str, Any], ...], input_shape: tuple[int, ...], num_outputs: int
) -> tuple[float, int]:
    import jax

    from sgdphases.models import build_network, parameter_dtype
    from sgdphases.progress import matrix_product_flop

    samples = 2
    run = dict(known)
    with jax.enable_x64(run["precision"] == "float64"):
        network = build_network(run, input_shape, num_outputs, "patches")
        parameters = jax.eval_shape(network.init, jax.random.key(0))
        inputs = jax.ShapeDtypeStruct((samples, *input_shape), parameter_dtype(run["precision"]))
        flop = matrix_product_flop(network.apply, parameters, inputs) / samples
    leaves = jax.tree.leaves(parameters)
    return flop, sum(math.prod(leaf.shape) for leaf in leaves)


def describe_costs(
    costs: Sequence[Cost],
    assumptions: Assumptions,
    results: Path,
    datasets: Mapping[str, float | None],
) -> str:
    """The estimates as a table for reading.

    Args:
        costs: The estimates.
        assumptions: What they rest on.
        results: The results folder.
        datasets: From `dataset_bytes`.

    Returns:
        A table with one line for each experiment, their sum, and what was assumed.
    """
    from tabulate import tabulate

    def shown(cost: Cost, value: float | None) -> str:
        if value is None:
            return "?"
        return f"{'~' if cost.assumes_rates else ''}{value:.3g}"

    lines = [
        [
            *(cost.experiment, cost.num_runs, cost.num_jobs, cost.num_pending),
            *(shown(cost, cost.device_hours), shown(cost, cost.longest_job_hours)),
            *(_bytes(cost.results_bytes or None), _bytes(cost.scratch_bytes or None)),
        ]
        for cost in costs
    ]
    known = [cost for cost in costs if cost.device_hours is not None]
    whole = [
        *("all", sum(c.num_runs for c in costs), sum(c.num_jobs for c in costs)),
        *(sum(c.num_pending for c in costs), f"{sum(c.device_hours or 0 for c in known):.3g}"),
        f"{max((c.longest_job_hours or 0 for c in known), default=0.0):.3g}",
        *(_bytes(sum(c.results_bytes for c in costs)), ""),
    ]
    headers = ["experiment", "runs", "jobs", "to do", "device-hours", "longest job", "tables"]
    table = tabulate([*lines, whole], [*headers, "checkpoints"], disable_numparse=True)
    notes = [
        f"Device-hours assume {assumptions.teraflops:g} TFLOP/s per device (--teraflops), at least "
        f"{assumptions.seconds_per_step:g} s a step and {assumptions.seconds_per_job:g} s a job; "
        "theory runs on CPUs, and its tables are not estimated.",
        "Not counted: jobs that prepare datasets, or draw them from a diffusion model.",
        f"Tables and checkpoints (of the largest job) go to {results}.",
    ]
    if datasets:
        sizes = [
            f"{name} {'?' if size is None else _bytes(size)}" for name, size in datasets.items()
        ]
        notes.append(f"Datasets: {', '.join(sizes)}; about twice as much while they are made.")
    if any(cost.assumes_rates for cost in costs):
        notes.append(
            "~: steps depend on rates that are measured first; a critical rate of "
            f"{assumptions.critical_learning_rate:g} is assumed."
        )
    if len(known) < len(costs):
        notes.append("?: the size of the data is not known before they are prepared.")
    return "\n".join([table, "", *notes])


def _bytes(number: float | None) -> str:
    if number is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
