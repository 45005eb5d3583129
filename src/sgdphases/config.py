"""Read, validate and resolve the configuration and the experiment files.

Nothing here imports JAX: every job of a cluster parses the workflow again.
"""

import copy
import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdphases.errors import InputError
from sgdphases.grid import LEARNING_RATE_UNIT, content_hash, expand_grid, hyperparameter_schemas
from sgdphases.validation import (
    as_declared,
    check,
    describe_value,
    fill_defaults,
    load_schema,
    read_yaml,
    resolve_reference,
    suggest,
)

# Names are kept here so that the workflow knows them without importing JAX; a test compares them
# with the registries.
TRAINING_MODELS = ("fully_connected",)
# Each with the hyperparameters that define its runs, besides learning rate and seed.
THEORY_MODELS = {
    "warmup": ("width",),
    "warmup_descent": ("width",),
    "warmup_plane": ("width",),
    "linear_updates": ("width", "num_samples", "input_dim"),
    "linear_model": ("width", "num_samples", "input_dim"),
    "heavy_ball": ("width", "momentum"),
}

# What defines a network at initialisation, and with it its curvature.
NETWORK_HYPERPARAMETERS = (
    "model",
    "depth",
    "width",
    "activation",
    "parametrisation",
    "weight_scale",
    "bias_scale",
    "loss",
    "precision",
    "seed",
)
# What may differ between the runs of one compiled program.
VECTORISED_HYPERPARAMETERS = (
    "learning_rate",
    LEARNING_RATE_UNIT,
    "momentum",
    "weight_decay",
    "seed",
)

CONFIG_SOURCE = "config/config.yaml or --config"
# What the rules' wildcards match.
_EXPERIMENT_NAME = re.compile(r"[a-z0-9]+/[a-z0-9_]+")


@dataclass(frozen=True)
class Config:
    """The workflow's configuration.

    Attributes:
        scale: smoke, quick or paper.
        experiments: "all", or patterns over `<paper>/<experiment>`.
        data: embedded or published.
        manual_dir: Folder with already downloaded official files, or None.
        results_dir: Folder that results are written to.
    """

    scale: str
    experiments: str | list[str]
    data: str
    manual_dir: str | None
    results_dir: str


def read_config(raw: Mapping[str, Any]) -> Config:
    """Validate the configuration as Snakemake merged it from file and command line.

    Raises:
        InputError: A key or a value is not allowed.
    """
    schema = load_schema("config")
    document = dict(raw)
    if isinstance(document.get("experiments"), str) and document["experiments"] != "all":
        # `--config experiments=catapult/fc_mnist` is the natural way to ask for one.
        document["experiments"] = [document["experiments"]]
    check(document, schema, CONFIG_SOURCE)
    document = fill_defaults(document, schema)
    data = document["data"] or ("published" if document["scale"] == "paper" else "embedded")
    manual_dir = document["manual_dir"]
    if manual_dir is not None and not Path(manual_dir).expanduser().is_dir():
        raise InputError(
            f"{CONFIG_SOURCE}: manual_dir: {document['manual_dir']!r} is no folder; allowed: a "
            "folder with already downloaded official files"
        )
    # Snakemake takes "results//logs" and "results/logs" for two places.
    results_dir = Path(document["results_dir"]).as_posix()
    if results_dir == "." or Path(results_dir).is_file() or set(results_dir) & set("{}"):
        raise InputError(
            f"{CONFIG_SOURCE}: results_dir: {document['results_dir']!r} is not allowed; allowed: a "
            "folder below or outside this one, without braces in its name"
        )
    return Config(**{**document, "data": data, "results_dir": results_dir})


def find_experiments(folder: Path, patterns: str | list[str]) -> dict[str, Path]:
    """Find the experiment files that the patterns select.

    Args:
        folder: Folder with `<paper>/<experiment>.yaml`.
        patterns: "all", or patterns such as `catapult/*`.

    Returns:
        Mapping from `<paper>/<experiment>` to its file, sorted by name.

    Raises:
        InputError: A pattern selects nothing, or a file is not where or what it is taken for.
    """
    known = {}
    for path in sorted(folder.rglob("*.y*ml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if path.name.startswith("."):  # an editor's own file
            continue
        if path.suffix != ".yaml" or not _EXPERIMENT_NAME.fullmatch(name):
            raise InputError(
                f"{path}: not the name of an experiment; allowed: {folder}/<paper>/"
                "<experiment>.yaml in lower-case letters, digits and, in the experiment, _"
            )
        known[name] = path
    if not known:
        raise InputError(f"{folder}: holds no experiment; allowed: <paper>/<experiment>.yaml")
    if patterns == "all":
        return known
    chosen: set[str] = set()
    for i, pattern in enumerate(patterns):
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise InputError(
                f"{CONFIG_SOURCE}: experiments[{i}]: {pattern!r} matches no experiment; allowed: "
                f"{suggest(pattern, known)}"
            )
        chosen.update(matches)
    return {name: known[name] for name in sorted(chosen)}


def merge(base: dict[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Override a document key by key.

    Args:
        base: The document.
        override: Values that replace those of the base. Mappings are merged; a list, an axis of
            the grid and its points are replaced whole.

    Returns:
        The merged document; neither argument is changed.
    """
    merged = copy.deepcopy(base)
    for key, value in override.items():
        old = merged.get(key)
        if not (isinstance(value, dict) and isinstance(old, dict)):
            merged[key] = copy.deepcopy(value)
        elif key == "grid":
            # An axis or a list of points is one value: merging `values` into `logspace` would mix
            # them.
            merged[key] = {**old, **copy.deepcopy(value)}
        else:
            merged[key] = merge(old, value)
    return merged


def load_experiment(
    path: Path, scale: str, data: str, datasets: Mapping[str, Path]
) -> dict[str, Any]:
    """Read an experiment file and resolve it for one scale and one kind of data.

    Args:
        path: The experiment file, `<paper>/<experiment>.yaml`.
        scale: smoke, quick or paper.
        data: embedded or published.
        datasets: Known datasets by name.

    Returns:
        The resolved experiment: every default filled in, `hyperparameters` and `grid` as given,
        and `experiment`, `paper`, `scale`, `num_runs`.

    Raises:
        InputError: Whatever is wrong with the file, with its key path.
    """
    source = str(path)
    schema = load_schema("experiment")
    raw = read_yaml(path)
    check(raw, schema, source)
    override = raw.get("scales", {}).get(scale, {})
    if isinstance(raw.get("dataset"), str) and isinstance(override.get("dataset"), dict):
        # So that a scale can add num_train to a dataset given by its name.
        raw["dataset"] = {"name": raw["dataset"]}
    document = merge({k: v for k, v in raw.items() if k != "scales"}, override)
    source = f"{source} (scale {scale})" if override else source
    check(document, schema, source)
    document = {k: v for k, v in fill_defaults(document, schema).items() if k != "scales"}
    if document.get("curvature") is not None:
        curvature_schema = resolve_reference(schema, "#/$defs/curvature")
        document["curvature"] = fill_defaults(document["curvature"], curvature_schema, schema)
    document = as_declared(document, schema)
    document["dataset"] = _resolve_dataset(document, data, datasets, source)
    num_runs = _check_semantics(document, source)
    return {
        "experiment": f"{path.parent.name}/{path.stem}",
        "paper": path.parent.name,
        "scale": scale,
        **document,
        "num_runs": num_runs,
    }


def _resolve_dataset(
    document: dict[str, Any], data: str, datasets: Mapping[str, Path], source: str
) -> dict[str, Any] | None:
    dataset = document.get("dataset")
    if document["kind"] == "theory":
        if dataset is not None:
            raise InputError(
                f"{source}: dataset: {describe_value(dataset)} is not allowed; allowed: nothing, a "
                "theory experiment has no data"
            )
        return None
    if dataset is None:
        raise InputError(
            f"{source}: key 'dataset' is missing; required: dataset, by a training experiment"
        )
    entry = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
    name = entry.get("name") or entry[data]
    if name not in datasets:
        where = (
            "dataset"
            if isinstance(dataset, str)
            else f"dataset.{'name' if 'name' in entry else data}"
        )
        raise InputError(
            f"{source}: {where}: {name!r} is no known dataset; allowed: {suggest(name, datasets)}"
        )
    return {"name": name, "num_train": entry.get("num_train")}


def _check_semantics(document: dict[str, Any], source: str) -> int:
    """Check what a schema cannot; return the number of runs."""
    theory = document["kind"] == "theory"
    shared = document["hyperparameters"]
    models = tuple(THEORY_MODELS) if theory else TRAINING_MODELS
    runs = expand_grid(_with_defaults(shared, theory), document["grid"], source)
    for run in runs:
        if run["model"] not in models:
            where = "hyperparameters.model" if run["model"] == shared["model"] else "grid.model"
            raise InputError(
                f"{source}: {where}: {run['model']!r} is no {document['kind']} model; allowed: "
                f"{suggest(run['model'], models)}"
            )
        _check_names(run, shared, theory, source)
    if theory:
        if document.get("curvature") is not None:
            given = describe_value(document["curvature"])
            raise InputError(f"{source}: curvature: {given}: a theory experiment has none")
        return len(runs)
    relative = any(run[LEARNING_RATE_UNIT] == "critical" for run in runs)
    if relative and document.get("curvature") is None:
        raise InputError(
            f"{source}: grid.learning_rate.relative_to: 'critical' needs the top NTK eigenvalue; "
            "allowed: with a curvature section (curvature: {batch_size: 512}), or absolute rates"
        )
    if "ntk_top_eigenvalue" in document["measurements"] and document.get("curvature") is None:
        raise InputError(
            f"{source}: measurements.ntk_top_eigenvalue: needs a curvature section, whose batch is "
            "used"
        )
    if "converged_output" in document["stopping"]:
        raise InputError(
            f"{source}: stopping.converged_output: only a theory experiment may stop by it"
        )
    return len(runs)


def _check_names(
    run: Mapping[str, Any], shared: Mapping[str, Any], theory: bool, source: str
) -> None:
    """A run has the hyperparameters that its model reads: all of them, and no other."""
    if theory:
        needed = {"model", "learning_rate", "seed", *THEORY_MODELS[run["model"]]}
    else:
        schemas = hyperparameter_schemas()
        needed = {"model", "learning_rate", *(k for k, s in schemas.items() if "default" in s)}
    missing = sorted(needed - set(run))
    if missing:
        raise InputError(
            f"{source}: grid: key {missing[0]!r} is missing, in grid and hyperparameters; "
            f"required: {', '.join(sorted(needed))}"
        )
    unused = sorted(set(run) - needed - {LEARNING_RATE_UNIT})
    if unused:
        where = "hyperparameters" if unused[0] in shared else "grid"
        raise InputError(
            f"{source}: {where}.{unused[0]}: the model {run['model']!r} does not use it; allowed: "
            f"{', '.join(sorted(needed))}"
        )


def _with_defaults(shared: dict[str, Any], theory: bool) -> dict[str, Any]:
    """Defaults belong to trained networks; a theory model has only the hyperparameters it names."""
    schemas = hyperparameter_schemas()
    defaults = {k: s["default"] for k, s in schemas.items() if "default" in s and not theory}
    return {**defaults, **{key: as_declared(value, schemas[key]) for key, value in shared.items()}}


def expand_runs(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """List an experiment's runs.

    Returns:
        One flat mapping per run: `run_id`, a name derived from everything that determines the
        run's numbers, and every hyperparameter under its code name.
    """
    settings = expand_grid(
        _with_defaults(spec["hyperparameters"], spec["kind"] == "theory"),
        spec["grid"],
        spec["experiment"],
    )
    common = {key: spec.get(key) for key in _RUN_SETTINGS}
    return [{"run_id": content_hash([common, setting]), **setting} for setting in settings]


# What, besides its hyperparameters, determines a run's numbers.
_RUN_SETTINGS = (
    "kind",
    "dataset",
    "stopping",
    "measurements",
    "curvature",
    "evaluation",
    "divergence_factor",
    "data_seed",
)


def network_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's hyperparameters that defines its network at initialisation."""
    return {key: run[key] for key in NETWORK_HYPERPARAMETERS}


def network_id(spec: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Name of a run's network together with the data its curvature is measured on.

    Args:
        spec: The resolved experiment.
        run: One of its runs.

    Returns:
        12 hexadecimal digits.
    """
    return content_hash([network_of(run), spec["dataset"], spec["curvature"], spec["data_seed"]])


def networks_of(
    spec: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The distinct networks of some runs.

    Args:
        spec: The resolved experiment.
        runs: Some of its runs.

    Returns:
        By network_id, in the order of the runs: `network_id` and the network's hyperparameters.
    """
    networks = {}
    for run in runs:
        name = network_id(spec, run)
        networks[name] = {"network_id": name, **network_of(run)}
    return networks


def expand_networks(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The distinct networks whose curvature is measured, each with its `network_id`."""
    return list(networks_of(spec, expand_runs(spec)).values())


def shape_key(run: Mapping[str, Any]) -> str:
    """Name of the compiled program that a run belongs to."""
    return content_hash(
        {k: v for k, v in run.items() if k not in (*VECTORISED_HYPERPARAMETERS, "run_id")}
    )


def run_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an experiment that, with the hyperparameters, determines a run's numbers.

    Keys are sorted: Snakemake compares the parameters of a job as text.
    """
    settings = {"experiment": spec["experiment"], **{key: spec.get(key) for key in _RUN_SETTINGS}}
    in_order: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
    return in_order


def published_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved experiment as written to spec.yaml.

    Captions stay out: they belong to the figures, and an edited caption must not touch the tables.
    How the runs are grouped into jobs stays out too.
    """
    hidden = ("figures", "runs_per_shard", "networks_per_shard")
    return {key: value for key, value in spec.items() if key not in hidden}
