"""What the Snakefile needs to know before any job runs.

It is evaluated each time the workflow is parsed, on compute nodes too: no JAX, no TensorFlow, and
the same answer everywhere.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sgdphases import figures
from sgdphases.config import (
    EVERY,
    Config,
    case_ids,
    cases_of,
    expand_runs,
    find_experiments,
    load_experiment,
    network_id,
    networks_of,
    read_config,
    shape_key,
)
from sgdphases.datasets.definition import load_definition
from sgdphases.datasets.facts import facts_of_definition
from sgdphases.datasets.image_folder import class_folders
from sgdphases.diffusion.definition import resolve_definition
from sgdphases.errors import InputError
from sgdphases.fingerprint import dictionary_keys, stage_fingerprint
from sgdphases.grid import LEARNING_RATE_UNIT
from sgdphases.planning import Record, Shard, plan_shards, read_notes, sort_key
from sgdphases.sections import check_data
from sgdphases.validation import read_yaml, suggest

EXPERIMENTS_FOLDER = Path("config/experiments")
DATASETS_FOLDER = Path("config/datasets")
_FIGURES_FOLDER = Path(figures.__path__[0])
# What the rules' wildcard matches.
_DATASET_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class ExperimentPlan:
    """One experiment and the shards its jobs compute.

    Attributes:
        spec: The resolved experiment.
        folder: The experiment's results folder.
    """

    spec: dict[str, Any]
    folder: Path

    @cached_property
    def runs(self) -> dict[str, dict[str, Any]]:
        """The runs by run_id."""
        return {run["run_id"]: run for run in expand_runs(self.spec)}

    @property
    def has_curvature(self) -> bool:
        """Whether the experiment measures its networks' curvature at initialisation."""
        return self.spec.get("curvature") is not None

    @cached_property
    def training_shards(self) -> dict[str, Shard]:
        """The shards of the training stage by name."""
        groups: dict[str, list[Record]] = {}
        for run in self.runs.values():
            groups.setdefault(shape_key(run), []).append(run)
        ordered = [
            {run["run_id"]: run for run in sorted(group, key=sort_key)}
            for _, group in sorted(groups.items())
        ]
        return self._plan("training", ordered, self.spec["runs_per_shard"])

    @property
    def _covered_runs(self) -> list[dict[str, Any]]:
        runs = list(self.runs.values())
        for shard in self.training_shards.values():
            runs += shard.items.values()
        return runs

    @cached_property
    def curvature_shards(self) -> dict[str, Shard]:
        """The shards of the curvature stage by name.

        They cover the networks of the grid, and those of runs that left the grid but share a
        finished training shard with runs that did not: the inputs of that shard stay the same.
        """
        networks = networks_of(self.spec, self._covered_runs)
        return self._plan("curvature", [networks], self.spec["networks_per_shard"])

    @property
    def has_edges(self) -> bool:
        """Whether the experiment searches the edges of its runs."""
        return self.spec.get("edge_search") is not None

    @cached_property
    def edge_shards(self) -> dict[str, Shard]:
        """The shards of the edge search by name; they cover the same runs as those of curvature."""
        groups: dict[str, dict[str, Record]] = {}
        for name, case in sorted(cases_of(self.spec, self._covered_runs).items()):
            groups.setdefault(shape_key(case), {})[name] = case
        ordered = [group for _, group in sorted(groups.items())]
        return self._plan("edge_search", ordered, self.spec["cases_per_shard"])

    @property
    def reference_edge(self) -> str | None:
        """The edge that learning rates are relative to."""
        return str(self.spec["edge_search"]["edges"][0]) if self.has_edges else None

    def case_ids(self, shard: str) -> list[str]:
        """The case of each run of a training shard whose rate is relative to its edge, else ""."""
        runs = list(self.training_shards[shard].items.values())
        if not self.has_edges:
            return [""] * len(runs)
        return [
            name if run[LEARNING_RATE_UNIT] == "edge" else ""
            for run, name in zip(runs, case_ids(self.spec, runs), strict=True)
        ]

    def edge_shards_of(self, shard: str) -> list[str]:
        """The shards of the edge search that the rates of a training shard are relative to."""
        needed = set(self.case_ids(shard)) - {""}
        if not needed:
            return []
        return [other.name for other in self.edge_shards.values() if needed & set(other.items)]

    def _plan(self, stage: str, groups: list[dict[str, Record]], size: int) -> dict[str, Shard]:
        version = stage_fingerprint(stage)
        finished = read_notes(self.folder / f"{stage}_shards", version)
        return {shard.name: shard for shard in plan_shards(groups, finished, size, version)}

    @property
    def has_prediction(self) -> bool:
        """Whether the experiment predicts weight decays from its time to peak."""
        return self.spec.get("prediction") is not None

    @property
    def has_tuning(self) -> bool:
        """Whether the experiment tunes its inverse temperature."""
        return self.spec.get("temperature_tuning") is not None

    @property
    def described(self) -> dict[str, Any]:
        """What results say of where they were measured, besides what the runs say."""
        data = {key: self.spec["dataset"][key] for key in ("name", "num_train")}
        return {key: self.spec[key] for key in ("experiment", "scale")} | {"dataset": data}

    def predictions_of(self, shard: str) -> list[str]:
        """The experiments whose predictions a training shard's weight decays are relative to."""
        return prediction_sources(self.training_shards[shard].items.values())

    def network_ids(self, shard: str) -> list[str]:
        """The network of each run of a training shard; empty names without a curvature stage."""
        runs = self.training_shards[shard].items.values()
        return [network_id(self.spec, run) if self.has_curvature else "" for run in runs]

    def curvature_shards_of(self, shard: str) -> list[str]:
        """The curvature shards that hold the networks of a training shard."""
        if not self.has_curvature:
            return []
        holding = {
            name
            for network in set(self.network_ids(shard))
            for name in self._curvature_shards_by_network[network]
        }
        # In the order of the plan.
        return sorted(holding, key=self._curvature_order.__getitem__)

    @cached_property
    def _curvature_order(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.curvature_shards)}

    @cached_property
    def _curvature_shards_by_network(self) -> dict[str, list[str]]:
        """Of each network, the curvature shards that hold it."""
        holding: dict[str, list[str]] = {}
        for shard in self.curvature_shards.values():
            for network in shard.items:
                holding.setdefault(network, []).append(shard.name)
        return holding


def prediction_sources(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The experiments that the weight decays of some runs are relative to, sorted."""
    return sorted({run["weight_decay_from"] for run in runs} - {None})


@dataclass
class Plan:
    """All that the configuration asks for.

    Attributes:
        config: The validated configuration.
        experiments: The chosen experiments by `<paper>/<experiment>`.
        figures: Experiment that feeds a figure, by `<paper>/<figure>`.
        figure_modules: Module of `figures` that draws it.
    """

    config: Config
    experiments: dict[str, ExperimentPlan]
    figures: dict[str, str]
    figure_modules: dict[str, str]


def make_plan(raw_config: Mapping[str, Any]) -> Plan:
    """Validate the configuration and every chosen experiment, and plan the shards.

    Args:
        raw_config: The configuration as Snakemake merged it.

    Raises:
        InputError: Whatever is wrong, before any job runs.
    """
    config = read_config(raw_config)
    datasets = {path.stem: path for path in sorted(DATASETS_FOLDER.glob("*.yaml"))}
    experiments: dict[str, ExperimentPlan] = {}
    fed_by: dict[str, str] = {}
    drawn_by = figure_modules()
    pending = find_experiments(EXPERIMENTS_FOLDER, config.experiments)
    while pending:
        name = min(pending)
        path = pending.pop(name)
        spec = load_experiment(path, config.scale, config.data, datasets)
        folder = Path(config.results_dir) / "experiments" / name
        experiments[name] = plan = ExperimentPlan(spec, folder)
        if spec["dataset"] is not None:
            facts = facts_of_definition(known_definition(spec["dataset"]["name"]))
            check_data(spec, plan.runs.values(), facts, str(path))
        pending |= _sources_to_load(experiments, name, path)
    experiments = dict(sorted(experiments.items()))
    for name, plan in experiments.items():
        spec, path = plan.spec, EXPERIMENTS_FOLDER / f"{name}.yaml"
        _check_sources(experiments, name, path)
        for figure in spec["figures"]:
            key = f"{spec['paper']}/{figure}"
            if key not in drawn_by:
                prefix = f"{spec['paper']}/"
                of_paper = [f.removeprefix(prefix) for f in drawn_by if f.startswith(prefix)]
                raise InputError(
                    f"{path}: figures.{figure}: {figure!r} is no known figure of the paper; "
                    f"allowed: {suggest(figure, of_paper) or 'none'}"
                )
            if key in fed_by:
                raise InputError(
                    f"{path}: figures.{figure}: {fed_by[key]} feeds {figure!r} already; allowed: "
                    "one experiment for each figure"
                )
            fed_by[key] = name
    used = sorted({p.spec["dataset"]["name"] for p in experiments.values() if p.spec["dataset"]})
    for name in used:
        if not _DATASET_NAME.fullmatch(name):
            raise InputError(
                f"{datasets[name]}: not the name of a dataset; allowed: letters, digits, _ and -"
            )
        if known_definition(name)["source"] == "diffusion":
            generated_definition(name, config)
        dataset_files(name)
    return Plan(config, experiments, fed_by, drawn_by)


def _sources_to_load(
    experiments: Mapping[str, ExperimentPlan], name: str, path: Path
) -> dict[str, Path]:
    """Experiments that `name` takes its weight decays from and that nobody has asked for yet."""
    plan = experiments[name]
    if plan.spec["kind"] == "theory":
        return {}
    found = {}
    for source in prediction_sources(plan.runs.values()):
        known = find_experiments(EXPERIMENTS_FOLDER, EVERY)
        if source not in known:
            raise InputError(
                f"{path}: weight_decay_from: {source!r} is no known experiment; allowed: "
                f"{suggest(source, known)}"
            )
        if source not in experiments:
            found[source] = known[source]
    return found


# What the unit of a weight decay and the time to peak in epochs depend on, besides model and data.
_SHARED_WITH_SOURCE = (
    "learning_rate",
    LEARNING_RATE_UNIT,
    "momentum",
    "loss",
    "loss_normalisation",
    "batch_size",
)


def _check_sources(experiments: Mapping[str, ExperimentPlan], name: str, path: Path) -> None:
    """Refuse weight decays from an experiment that predicts none, or none at the run's rate."""
    plan = experiments[name]
    if plan.spec["kind"] == "theory":
        return
    for run in plan.runs.values():
        source = run["weight_decay_from"]
        if source is None:
            continue
        if not experiments[source].has_prediction:
            predicting = [other for other, plan in experiments.items() if plan.has_prediction]
            raise InputError(
                f"{path}: weight_decay_from: {source!r} has no section prediction; allowed: "
                f"{suggest(source, predicting) or 'an experiment that has one'}"
            )
        measured = next(iter(experiments[source].runs.values()))
        for key in _SHARED_WITH_SOURCE:
            if run[key] != measured[key]:
                raise InputError(
                    f"{path}: {key}: {run[key]!r} differs from that of {source}, where the time to "
                    f"peak is measured; allowed: {measured[key]!r}"
                )


def known_definition(name: str) -> dict[str, Any]:
    """The definition of the dataset `name`, validated."""
    return load_definition(DATASETS_FOLDER / f"{name}.yaml")


def generated_definition(name: str, config: Config) -> dict[str, Any]:
    """The definition of the generated dataset `name`, resolved for the configuration."""
    sources = {path.stem: _source_of(path) for path in sorted(DATASETS_FOLDER.glob("*.yaml"))}
    path = DATASETS_FOLDER / f"{name}.yaml"
    return resolve_definition(known_definition(name), config.scale, config.data, sources, str(path))


def generated_datasets() -> list[str]:
    """The datasets that are drawn from a diffusion model."""
    return [
        path.stem
        for path in sorted(DATASETS_FOLDER.glob("*.yaml"))
        if _DATASET_NAME.fullmatch(path.stem) and _source_of(path) == "diffusion"
    ]


def _source_of(path: Path) -> str:
    """Where a dataset comes from; a definition that cannot be read is told of where it is used."""
    try:
        return str(read_yaml(path).get("source"))
    except InputError:
        return ""


def dataset_files(name: str) -> list[str]:
    """The user's own files that a dataset is made from; of images, the folders they lie in.

    Args:
        name: The dataset's name.

    Returns:
        Their paths.

    Raises:
        InputError: One is not there, cannot be read, or has a name that Snakemake does not take.
    """
    definition = known_definition(name)
    if "path" not in definition:
        return []
    where, path = f"{DATASETS_FOLDER / name}.yaml: path", Path(definition["path"]).expanduser()
    try:
        is_folder = definition["source"] == "folder"
        files = class_folders(path, "test_fraction" in definition) if is_folder else []
        files = files or [path]
        missing = [file for file in files if not file.exists()]
    except OSError as error:
        raise InputError(f"{where}: {error.filename}: {error.strerror}") from error
    if missing:
        raise InputError(
            f"{where}: {str(missing[0])!r}: no such file; allowed: an existing .npz file or folder "
            f"of images, relative to {Path.cwd()}"
        )
    for file in map(str, files):
        # Snakemake takes them for a wildcard.
        if set("{}") & set(file):
            raise InputError(f"{where}: {file!r} is not allowed; allowed: names without {{ and }}")
    return [str(file) for file in files]


def preparation_threads(definition: Mapping[str, Any]) -> int:
    """Cores that the preparation of a dataset makes use of: encoded images are decoded together."""
    decodes = definition["source"] in {"folder", "tiny_imagenet"} or "image_size" in definition
    return 8 if decodes else 1


def figure_modules() -> dict[str, str]:
    """The module of `figures` that draws a figure, by `<paper>/<figure>`; none is imported."""
    return {
        figure: module
        for module in sorted(path.stem for path in _FIGURES_FOLDER.glob("*.py"))
        for figure in dictionary_keys(f"{figures.__name__}.{module}", "PLOTS")
    }
