"""Read, validate and resolve the configuration and the experiment files.

Nothing here imports JAX: every job of a cluster parses the workflow again.
"""

import copy
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdphases.datasets.views import read_view
from sgdphases.errors import InputError
from sgdphases.grid import (
    LEARNING_RATE_UNIT,
    NETWORK_HYPERPARAMETERS,
    SECOND_HEAD_HYPERPARAMETERS,
    VECTORISED_HYPERPARAMETERS,
    canonical_text,
    content_hash,
    expand_grid,
    refuse_duplicates,
    text_hash,
)
from sgdphases.hyperparameters import Origin, check_run, common_hyperparameters, complete_run
from sgdphases.model_table import is_user_model, model_entry, model_names
from sgdphases.sections import (
    check_budgets,
    check_edge_search,
    check_final_rates,
    check_prediction,
    check_sections,
    check_timescales,
    check_tuning,
    check_units,
    refuse_sections_of_training,
)
from sgdphases.user_code import user_model_sources
from sgdphases.validation import (
    as_declared,
    check,
    describe_value,
    fill_defaults,
    load_schema,
    read_yaml,
    suggest,
)

# Names are kept here so that the workflow knows them without importing JAX; a test compares them
# with the registry. Each with the hyperparameters that define its runs, besides learning rate and
# seed.
THEORY_MODELS = {
    "warmup": ("width",),
    "warmup_descent": ("width",),
    "warmup_plane": ("width",),
    "linear_updates": ("width", "num_samples", "input_dim"),
    "linear_model": ("width", "num_samples", "input_dim"),
    "heavy_ball": ("width", "momentum"),
    "toy_one_parameter": ("richness", "depth", "loss", "optimizer"),
    "toy_one_parameter_edge": ("richness", "depth", "loss", "optimizer", "edge", "num_steps"),
    "toy_two_parameter": ("richness", "loss"),
    "toy_two_parameter_edge": ("richness", "loss", "edge", "num_steps"),
    "toy_two_parameter_updates": ("richness", "loss"),
    "wide_mode": ("kernel_mode_eigenvalue", "weight_decay", "homogeneity_degree"),
    "wide_spectrum": ("num_modes", "spectrum_exponent", "weight_decay", "homogeneity_degree"),
    "deep_linear": ("width", "weight_decay"),
    "ridge": ("num_samples", "input_dim", "weight_decay"),
    "softmax_kernel": (
        "num_samples",
        "num_classes",
        "inverse_temperature",
        "logit_scale",
        "displacement_l2",
        "momentum",
    ),
    "quartic": ("momentum",),
}
_THEORY_OPTIMIZERS = ("sgd", "sign_sgd")
_MOST_TOY_DEPTH = 63
# The version of a user's own model, in each of its runs.
MODEL_VERSION = "model_version"

# The values of `experiments` that are no patterns.
HEADLINE, EVERY = "headline", "all"

CONFIG_SOURCE = "config/config.yaml or --config"
# What the rules' wildcards match.
_EXPERIMENT_NAME = re.compile(r"[a-z0-9]+/[a-z0-9_]+")


@dataclass(frozen=True)
class Config:
    """The workflow's configuration.

    Attributes:
        scale: smoke, quick or paper.
        experiments: "headline", "all", or patterns over `<paper>/<experiment>`.
        data: embedded or published.
        manual_dir: Folder with already downloaded official files, or None.
        results_dir: Folder that results are written to.
        accelerator: auto, cpu, gpu or tpu: what jobs compute on.
    """

    scale: str
    experiments: str | list[str]
    data: str
    manual_dir: str | None
    results_dir: str
    accelerator: str


def read_config(raw: Mapping[str, Any]) -> Config:
    """Validate the configuration as Snakemake merged it from file and command line.

    Raises:
        InputError: A key or a value is not allowed.
    """
    schema = load_schema("config")
    document = dict(raw)
    chosen = document.get("experiments")
    if isinstance(chosen, str) and chosen not in (HEADLINE, EVERY):
        # `--config experiments=catapult/fc_mnist` is the natural way to ask for one.
        document["experiments"] = [chosen]
    check(document, schema, CONFIG_SOURCE)
    document = fill_defaults(document, schema)
    published = document["scale"] == "paper"
    data = document["data"] or ("published" if published else "embedded")
    experiments = document["experiments"] or (EVERY if published else HEADLINE)
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
    resolved = {"experiments": experiments, "data": data, "results_dir": results_dir}
    return Config(**{**document, **resolved})


def find_experiments(folder: Path, patterns: str | list[str]) -> dict[str, Path]:
    """Find the experiment files that the patterns select.

    Args:
        folder: Folder with `<paper>/<experiment>.yaml`.
        patterns: "all", "headline" (all whose key `headline` is not false), or patterns such as
            `catapult/*`.

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
    if patterns == EVERY:
        return known
    if patterns == HEADLINE:
        return {name: path for name, path in known.items() if _is_headline(path)}
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


def _is_headline(path: Path) -> bool:
    """Whether an experiment is computed without being asked for; what cannot be read is."""
    try:
        return read_yaml(path).get("headline") is not False
    except InputError:  # told, with the others, when it is loaded
        return True


def merge(base: dict[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Override a document key by key.

    Args:
        base: The document.
        override: Values that replace those of the base. Mappings are merged; a list, an axis of
            the grid, its points and a schedule of another kind are replaced whole.

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
        elif key == "schedule" and "kind" in value:
            merged[key] = copy.deepcopy(value)
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
    if document.get("kind") == "theory":
        refuse_sections_of_training(document, source)
    # Defaults of hyperparameters depend on the model: each run is completed on its own.
    shared = document.pop("hyperparameters")
    document = {**fill_defaults(document, schema), "hyperparameters": shared}
    document = as_declared({k: v for k, v in document.items() if k != "scales"}, schema)
    document["dataset"] = _resolve_dataset(document, data, datasets, source)
    check_sections(document, source)
    shared = document["hyperparameters"]
    settings = expand_grid(shared, document["grid"], source)
    origin = Origin(source, shared, document["grid"])
    _check_settings(settings, document, origin)
    document["model_versions"] = _model_versions(settings, origin)
    runs = _complete(settings, document)
    if runs is not settings:
        refuse_duplicates(runs, document["grid"], source)
    if document["kind"] == "training":
        check_budgets(runs, document["stopping"], source)
        check_final_rates(runs, document["schedule"], source)
        check_prediction(runs, document, source)
        check_timescales(runs, document["measurements"], source)
        check_tuning(runs, document, source)
        check_edge_search(runs, document, source)
    return {
        "experiment": f"{path.parent.name}/{path.stem}",
        "paper": path.parent.name,
        "scale": scale,
        **document,
        "num_runs": len(runs),
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
    # What a key leaves as it is leaves the runs what they were.
    return {"name": name, "num_train": None, **read_view(entry).changed()}


def _check_settings(
    settings: list[dict[str, Any]], document: Mapping[str, Any], origin: Origin
) -> None:
    """Check of an experiment's runs, as the file gives them, what a schema cannot."""
    for setting in settings:
        if "model" not in setting:
            raise InputError(
                f"{origin.source}: hyperparameters: key 'model' is missing, here and in grid; "
                "required: model"
            )
        if document["kind"] == "theory":
            _check_theory(setting, origin)
        else:
            check_run(setting, origin)
    check_units(settings, document, origin.source)


def _check_theory(setting: Mapping[str, Any], origin: Origin) -> None:
    model = setting["model"]
    if model not in THEORY_MODELS:
        raise InputError(
            f"{origin.path('model')}: {model!r} is no theory model; allowed: "
            f"{suggest(model, THEORY_MODELS)}"
        )
    needed = {"model", "learning_rate", "seed", *THEORY_MODELS[model]}
    missing = sorted(needed - set(setting))
    if missing:
        raise InputError(
            f"{origin.source}: grid: key {missing[0]!r} is missing, in grid and hyperparameters; "
            f"required: {', '.join(sorted(needed))}"
        )
    unused = sorted(set(setting) - needed - {LEARNING_RATE_UNIT})
    if unused:
        raise InputError(
            f"{origin.path(unused[0])}: the model {model!r} does not use it; allowed: "
            f"{', '.join(sorted(needed))}"
        )
    if "depth" in needed and not 2 <= setting["depth"] <= _MOST_TOY_DEPTH:
        raise InputError(
            f"{origin.path('depth')}: {setting['depth']!r} is not allowed with {model}; allowed: "
            f"2 to {_MOST_TOY_DEPTH}"
        )
    if setting.get("optimizer", "sgd") not in _THEORY_OPTIMIZERS:
        raise InputError(
            f"{origin.path('optimizer')}: {setting['optimizer']!r}: no theory model has it; "
            f"allowed: {', '.join(_THEORY_OPTIMIZERS)}"
        )


def _model_versions(settings: Iterable[Mapping[str, Any]], origin: Origin) -> dict[str, str]:
    """Version of each of the user's own models, so that an edited one trains anew."""
    versions = {}
    for name in sorted({setting["model"] for setting in settings}):
        if is_user_model(name):
            try:
                sources = user_model_sources(name)
            except InputError as error:
                raise InputError(f"{origin.path('model')}: {error}") from None
            digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
            versions[name] = content_hash(digests)
    return versions


def _complete(settings: list[dict[str, Any]], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    if spec["kind"] == "theory":
        return settings
    versions = spec.get("model_versions", {})
    return [
        {**complete_run(setting), MODEL_VERSION: versions[setting["model"]]}
        if setting["model"] in versions
        else complete_run(setting)
        for setting in settings
    ]


def expand_runs(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """List an experiment's runs.

    Returns:
        One flat mapping per run: `run_id`, a name derived from everything that determines the
        run's numbers, and every hyperparameter under its code name.
    """
    settings = expand_grid(spec["hyperparameters"], spec["grid"], spec["experiment"])
    common = {key: spec.get(key) for key in _RUN_SETTINGS}
    if spec["kind"] == "theory" and "portrait" in spec:
        # Its thresholds decide where an edge is.
        common["portrait"] = spec["portrait"]
    # The hash of [common, builder, run], with the text of what is common written once.
    common_text = canonical_text(common)
    relative_text = canonical_text(edge_settings(spec)) if spec.get("edge_search") else ""
    return [
        {
            "run_id": text_hash(
                f"[{common_text},{canonical_text([_builder(run), run])[1:]}"
                + (relative_text if run.get(LEARNING_RATE_UNIT) == "edge" else "")
            ),
            **run,
        }
        for run in _complete(settings, spec)
    ]


def _builder(run: Mapping[str, Any]) -> str:
    """What the name of a run's model stands for; the table of models may change."""
    name = run["model"]
    return str(model_entry(name)["function"] if name in model_names() else name)


# What, besides its hyperparameters, determines a run's numbers.
_RUN_SETTINGS = (
    "kind",
    "dataset",
    "stopping",
    "schedule",
    "augmentation",
    "measurements",
    "curvature",
    "evaluation",
    "divergence_factor",
    "data_seed",
)
# How jobs do their work, which changes their numbers by rounding at most.
_EXECUTION_SETTINGS = ("lowering", "checkpoint_seconds")


def network_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's hyperparameters that defines its network at initialisation."""
    left_out = {"run_id", LEARNING_RATE_UNIT, *common_hyperparameters()}
    left_out -= set(NETWORK_HYPERPARAMETERS)
    return {key: value for key, value in run.items() if key not in left_out}


def network_id(spec: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Name of a run's network together with the data its curvature is measured on.

    Args:
        spec: The resolved experiment.
        run: One of its runs.

    Returns:
        12 hexadecimal digits.
    """
    settings = [spec[key] for key in ("dataset", "curvature", "data_seed")]
    return content_hash([network_of(run), _builder(run), *settings])


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


def edge_case(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run without its learning rate: what has edges."""
    left_out = {"run_id", "learning_rate", LEARNING_RATE_UNIT}
    return {key: value for key, value in run.items() if key not in left_out}


def case_ids(spec: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of some runs' cases together with all that their edges depend on.

    Args:
        spec: The resolved experiment.
        runs: Some of its runs.

    Returns:
        12 hexadecimal digits for each run.
    """
    common = canonical_text(edge_settings(spec))
    return [text_hash(canonical_text([edge_case(run), _builder(run)]) + common) for run in runs]


def cases_of(
    spec: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The distinct cases of those runs that are relative to an edge; of all where none is.

    Args:
        spec: The resolved experiment.
        runs: Some of its runs.

    Returns:
        By case_id, in the order of the runs: `case_id` and the case's hyperparameters.
    """
    every = list(runs)
    runs = [run for run in every if run[LEARNING_RATE_UNIT] == "edge"] or every
    names = case_ids(spec, runs)
    return {
        name: {"case_id": name, **edge_case(run)} for name, run in zip(names, runs, strict=True)
    }


def expand_cases(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The distinct cases whose edges are searched, each with its `case_id`."""
    return list(cases_of(spec, expand_runs(spec)).values())


def edge_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an experiment that, with the hyperparameters, determines where edges are.

    Keys are sorted: Snakemake compares the parameters of a job as text.
    """
    search = {"edge_search": spec["edge_search"], "portrait": spec.get("portrait")}
    stopping = {"num_steps": spec["edge_search"]["num_steps"]}
    settings = {**run_settings(spec), **search, "stopping": stopping, "measurements": {}}
    in_order: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
    return in_order


def shape_key(run: Mapping[str, Any]) -> str:
    """Name of the compiled program that a run belongs to."""
    shared = {
        k: v for k, v in run.items() if k not in (*VECTORISED_HYPERPARAMETERS, "run_id", "case_id")
    }
    # A program computes outputs of a second head for all its runs or for none.
    has_second_head = any(run.get(name) is not None for name in SECOND_HEAD_HYPERPARAMETERS)
    return content_hash([shared, has_second_head])


def run_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an experiment that, with the hyperparameters, determines a run's numbers.

    Keys are sorted: Snakemake compares the parameters of a job as text.
    """
    settings = {"experiment": spec["experiment"], **{key: spec.get(key) for key in _RUN_SETTINGS}}
    in_order: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
    return in_order


def execution_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """How the jobs of an experiment do their work: what no run's identity depends on.

    A changed value must rerun nothing that has finished. Snakemake compares the parameters of a
    job, but not those whose function takes `input` beside the wildcards.

    Returns:
        `lowering`, a mapping with what is forced: any of `runs_together` (a number or "all"),
        `convolution`, `loop`; `checkpoint_seconds`.
    """
    forced = {} if spec["lowering"] == "auto" else dict(spec["lowering"])
    return {"lowering": forced, "checkpoint_seconds": spec["checkpoint_seconds"]}


def published_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved experiment as written to spec.yaml.

    Captions stay out: they belong to the figures, and an edited caption must not touch the tables.
    How the runs are grouped into jobs, how these work, and whether they are computed without being
    asked for, stays out too.
    """
    shards = ("runs_per_shard", "networks_per_shard", "cases_per_shard")
    hidden = ("figures", "headline", *shards, *_EXECUTION_SETTINGS)
    return {key: value for key, value in spec.items() if key not in hidden}
