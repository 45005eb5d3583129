# What all rules share: the plan, and where things are.
from pathlib import Path

from sgdphases.accelerators import requested_devices
from sgdphases.config import (
    edge_settings,
    execution_settings,
    published_spec,
    run_settings,
)
from sgdphases.fingerprint import stage_fingerprint
from sgdphases.scripting import ending_on_bad_input, refuse_unwritable
from sgdphases.sections import momenta_of
from sgdphases.workflow import (
    dataset_files,
    generated_datasets,
    generated_definition,
    known_definition,
    make_plan,
    preparation_threads,
)

with ending_on_bad_input():
    PLAN = make_plan(config)
    refuse_unwritable(Path(), Path(PLAN.config.results_dir))

RESULTS = PLAN.config.results_dir
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
# What a rule that computes on an accelerator asks for.
DEVICES = requested_devices(PLAN.config.accelerator)
EXPERIMENT = f"{RESULTS}/experiments/{{paper}}/{{experiment}}"
THEORY = [
    name for name, plan in PLAN.experiments.items() if plan.spec["kind"] == "theory"
]
TRAINING = [name for name in PLAN.experiments if name not in THEORY]
GENERATED = generated_datasets()


wildcard_constraints:
    paper="[a-z0-9]+",
    experiment="[a-z0-9_]+",
    dataset="[A-Za-z0-9_-]+",
    figure="[A-Za-z0-9_]+",
    shard="[0-9a-f]{12}",


def one_of(names):
    """A pattern that matches the names, or nothing where there are none."""
    return "|".join(sorted(set(names))) or "(?!)"


def none_of(names, pattern):
    """The pattern, but for where the names stand in a path."""
    return f"(?!(?:{one_of(names)})[/.]){pattern}"


def plan_of(wildcards):
    return PLAN.experiments[f"{wildcards.paper}/{wildcards.experiment}"]


def momenta(wildcards):
    with ending_on_bad_input():
        plan = plan_of(wildcards)
        return momenta_of(plan.spec, plan.runs.values())


def dataset_definition(wildcards):
    with ending_on_bad_input():
        return known_definition(wildcards.dataset)


def dataset_sources(wildcards):
    with ending_on_bad_input():
        return dataset_files(wildcards.dataset)


def dataset_manifest(wildcards):
    """The manifest stands for the dataset: it is written last."""
    name = plan_of(wildcards).spec["dataset"]["name"]
    return f"{RESULTS}/datasets/{name}/manifest.json"


def experiment_tables(name):
    """All that an experiment leaves: what was measured, and what is predicted from it."""
    folder = f"{RESULTS}/experiments/{name}"
    tables = ["spec.yaml", "runs.parquet", "history.parquet"]
    if PLAN.experiments[name].has_curvature:
        tables.append("curvature.parquet")
    if PLAN.experiments[name].has_edges:
        tables.append("edges.parquet")
    if PLAN.experiments[name].has_prediction:
        tables.append("prediction.json")
    if PLAN.experiments[name].has_tuning:
        tables += ["temperature_tuning.json", "temperature_sweep.parquet"]
    return [f"{folder}/{table}" for table in tables]


def figure_files(name):
    return [
        f"{RESULTS}/figures/{name}.{suffix}" for suffix in ("svg", "png", "parquet")
    ]


def feeding_experiment(wildcards):
    """The experiment that a figure is drawn from."""
    return PLAN.figures[f"{wildcards.paper}/{wildcards.figure}"]


def figure_module(wildcards):
    return PLAN.figure_modules[f"{wildcards.paper}/{wildcards.figure}"]


def figure_caption(wildcards):
    figures = PLAN.experiments[feeding_experiment(wildcards)].spec["figures"]
    return figures[wildcards.figure]["caption"]


def diffusion_definition(wildcards, keys=None):
    """The resolved definition, or what a job reads of it: other keys then rerun nothing."""
    with ending_on_bad_input():
        definition = generated_definition(wildcards.dataset, PLAN.config)
    return {key: definition[key] for key in keys} if keys else definition


def shard_size(definition):
    return definition["num_images"] // definition["num_shards"]


def diffusion_base(wildcards):
    base = diffusion_definition(wildcards)["base"]
    return f"{RESULTS}/datasets/{base}/manifest.json"
