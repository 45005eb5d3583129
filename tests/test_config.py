"""The configuration and the experiment files, resolved."""

import copy
from pathlib import Path

import pytest
import yaml

from sgdphases import config, fingerprint, models, workflow
from sgdphases.config import (
    expand_networks,
    expand_runs,
    find_experiments,
    load_experiment,
    merge,
    published_spec,
    read_config,
    run_settings,
    shape_key,
)
from sgdphases.errors import InputError
from sgdphases.figures import draw
from sgdphases.theory.programs import PROGRAMS

PROJECT = Path(__file__).parents[1]
EXPERIMENTS = find_experiments(PROJECT / "config/experiments", "all")
DATASETS = {path.stem: path for path in (PROJECT / "config/datasets").glob("*.yaml")}
EXPERIMENT = {
    "description": "A grid",
    "dataset": {"published": "mnist", "embedded": "digits", "num_train": 64},
    "hyperparameters": {"model": "fully_connected", "width": 8},
    "grid": {"learning_rate": [0.1, 0.2], "seed": [0, 1]},
    "stopping": {"num_steps": 3},
}


@pytest.fixture
def load(tmp_path):
    def write_and_load(changes=None, scale="quick", data="embedded"):
        path = tmp_path / "catapult" / "tiny.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({**copy.deepcopy(EXPERIMENT), **(changes or {})}))
        return load_experiment(path, scale, data, DATASETS)

    return write_and_load


def refusal(action, *arguments):
    with pytest.raises(InputError) as caught:
        action(*arguments)
    return str(caught.value)


# --- names kept apart from what they name, so that parsing the workflow imports no JAX ------------


def test_models_are_those_of_the_registries():
    assert set(config.TRAINING_MODELS) == set(models.MODELS)
    needed = {name: set(program.hyperparameters) for name, program in PROGRAMS.items()}
    assert {name: set(keys) for name, keys in config.THEORY_MODELS.items()} == needed


def test_figures_are_known_without_importing_their_code():
    assert sorted(workflow.drawable_figures()) == sorted(draw.PLOTS)


# --- config.yaml ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "data", "expected"),
    [
        ("smoke", None, "embedded"),
        ("quick", None, "embedded"),
        ("paper", None, "published"),
        ("paper", "embedded", "embedded"),
        ("smoke", "published", "published"),
    ],
)
def test_the_data_follow_the_scale(scale, data, expected):
    assert read_config({"scale": scale, "data": data}).data == expected


def test_the_shipped_config_is_quick_and_embedded():
    settings = read_config(yaml.safe_load((PROJECT / "config/config.yaml").read_text()))
    assert settings == config.Config("quick", "all", "embedded", None, "results")


def test_a_single_experiment_needs_no_list():
    assert read_config({"scale": "quick", "experiments": "a/b"}).experiments == ["a/b"]


@pytest.mark.parametrize("folder", ["out", "out/", "./out", "out//"])
def test_the_results_folder_has_one_spelling(folder):
    assert read_config({"scale": "quick", "results_dir": folder}).results_dir == "out"


@pytest.mark.parametrize(
    ("document", "fragments"),
    [
        ({}, ["'scale'", "missing"]),
        ({"scale": "huge"}, ["scale: 'huge'", "smoke, quick, paper"]),
        ({"scale": "quick", "sclae": 1}, ["'sclae'", "did you mean 'scale'"]),
        ({"scale": "quick", "experiments": 3}, ["experiments: 3", "list"]),
        ({"scale": "quick", "experiments": []}, ["experiments: []", "list"]),
        ({"scale": "quick", "experiments": [3]}, ["experiments"]),
        ({"scale": "quick", "data": "real"}, ["data: 'real'", "embedded or published"]),
        ({"scale": "quick", "manual_dir": "/no/such/place"}, ["manual_dir", "/no/such/place"]),
        ({"scale": "quick", "results_dir": ""}, ["results_dir: ''", "folder"]),
    ],
)
def test_bad_configs_are_refused(document, fragments):
    line = refusal(read_config, document)
    for fragment in [config.CONFIG_SOURCE, *fragments]:
        assert fragment in line


# --- which experiments ----------------------------------------------------------------------------


def test_patterns_choose_experiments(tmp_path):
    for name in ("a/one", "a/two", "b/one"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").touch()
    (tmp_path / "a/.#one.yaml").touch()
    assert list(find_experiments(tmp_path, "all")) == ["a/one", "a/two", "b/one"]
    assert list(find_experiments(tmp_path, ["*/one", "a/o*"])) == ["a/one", "b/one"]
    line = refusal(find_experiments, tmp_path, ["a/*", "a/thre"])
    assert "experiments[1]: 'a/thre'" in line
    assert "a/one, a/two, b/one" in line


@pytest.mark.parametrize(
    "name", ["one.yaml", "a/one.yml", "a/b/c.yaml", "A/one.yaml", "a/o-e.yaml"]
)
def test_files_that_no_rule_would_find_are_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).touch()
    assert str(tmp_path / name) in refusal(find_experiments, tmp_path, "all")


def test_an_empty_folder_is_refused(tmp_path):
    assert "holds no experiment" in refusal(find_experiments, tmp_path, "all")


# --- scales ---------------------------------------------------------------------------------------


def test_merging_goes_key_by_key():
    base = {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}
    assert merge(base, {"a": {"y": 5}, "b": [3], "d": 4}) == {
        "a": {"x": 1, "y": 5},
        "b": [3],
        "c": 3,
        "d": 4,
    }
    assert base == {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}


def test_an_axis_is_replaced_whole():
    base = {"grid": {"learning_rate": {"logspace": {"start": 1, "stop": 2, "num": 3}}, "seed": [0]}}
    merged = merge(base, {"grid": {"learning_rate": {"values": [1]}}})
    assert merged == {"grid": {"learning_rate": {"values": [1]}, "seed": [0]}}
    assert merge(base, {"grid": [{"seed": [1]}]}) == {"grid": [{"seed": [1]}]}


def test_a_scale_overrides_only_itself(load):
    scales = {"scales": {"smoke": {"hyperparameters": {"width": 4}, "grid": {"seed": [0]}}}}
    assert load(scales, "smoke")["hyperparameters"] == {"model": "fully_connected", "width": 4}
    assert len(expand_runs(load(scales, "smoke"))) == 2
    assert load(scales, "paper") == {**load(None, "paper")}


# --- resolved experiments -------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["embedded", "published"])
@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shipped_experiments_load(name, scale, data):
    spec = load_experiment(EXPERIMENTS[name], scale, data, DATASETS)
    runs = expand_runs(spec)
    assert spec["experiment"] == name
    assert len({run["run_id"] for run in runs}) == len(runs) > 0
    if spec["kind"] == "training":
        assert spec["dataset"]["name"] in DATASETS
    assert {f"{spec['paper']}/{figure}" for figure in spec["figures"]} <= set(draw.PLOTS)
    # spec.yaml gives back what the jobs were planned from.
    written = yaml.safe_load(yaml.safe_dump(published_spec(spec), sort_keys=False))
    assert expand_runs(written) == runs
    assert written["num_runs"] == len(runs)


def test_defaults_are_filled_in(load):
    spec = load({"curvature": {"batch_size": 4}})
    assert spec["measurements"] == {"points_per_decade": 10}
    assert spec["curvature"] == {"batch_size": 4, "num_batches": 1, "num_lanczos_steps": 16}
    assert spec["dataset"] == {"name": "digits", "num_train": 64}
    run = expand_runs(spec)[0]
    assert (run["depth"], run["activation"], run["bias_scale"]) == (2, "relu", None)
    assert load(data="published")["dataset"]["name"] == "mnist"


def run_ids(spec):
    return [run["run_id"] for run in expand_runs(spec)]


def test_run_ids_do_not_depend_on_the_order_of_keys(load):
    def reverse(value):
        if isinstance(value, dict):
            return {key: reverse(entry) for key, entry in reversed(value.items())}
        return value

    spec = load({"curvature": {"batch_size": 4, "num_batches": 2}})
    assert set(run_ids(reverse(spec))) == set(run_ids(spec))
    # YAML dumped with sorted keys and with the order of a person.
    grid = {"seed": [0, 1], "learning_rate": [0.1, 0.2]}
    assert set(run_ids(load({"grid": grid}))) == set(run_ids(load()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"grid": {"learning_rate": [1, 2]}}, {"grid": {"learning_rate": [1.0, 2.0]}}),
        (
            {"hyperparameters": {"model": "fully_connected", "weight_scale": 1, "bias_scale": 0}},
            {
                "hyperparameters": {
                    "model": "fully_connected",
                    "weight_scale": 1.0,
                    "bias_scale": 0.0,
                }
            },
        ),
        (
            {"grid": {"learning_rate": [1.0], "bias_scale": [0]}},
            {"grid": {"learning_rate": [1.0]}}
            | {"hyperparameters": {"model": "fully_connected", "width": 8, "bias_scale": 0}},
        ),
        ({"stopping": {"physical_time": 25}}, {"stopping": {"physical_time": 25.0}}),
        (
            {"stopping": {"num_steps": 2, "train_accuracy": 1}, "divergence_factor": 10},
            {"stopping": {"num_steps": 2, "train_accuracy": 1.0}, "divergence_factor": 10.0},
        ),
        (
            {"grid": {"learning_rate": [0.01, 0.1, 1.0]}},
            {"grid": {"learning_rate": {"logspace": {"start": 0.01, "stop": 1, "num": 3}}}},
        ),
        ({"grid": {"learning_rate": [0.1]}}, {"grid": {"points": [{"learning_rate": 0.1}]}}),
        (
            {"grid": {"learning_rate": [0.1], "width": [8]}},
            {"grid": [{"learning_rate": {"relative_to": "absolute", "value": 0.1}}]},
        ),
        # What a run's numbers do not depend on.
        ({}, {"description": "Another one"}),
        ({}, {"figures": {"fig3a": {"caption": "Text"}}}),
        ({}, {"runs_per_shard": 1, "networks_per_shard": 1}),
    ],
)
def test_run_ids_do_not_depend_on_spelling(load, one, other):
    assert run_ids(load(one)) == run_ids(load(other))


@pytest.mark.parametrize(
    "changes",
    [
        {"stopping": {"num_steps": 4}},
        {"measurements": {"every": 1}},
        {"evaluation": {"num_train": 3}},
        {"data_seed": 1},
        {"divergence_factor": 10.0},
        {"curvature": {"batch_size": 4}},
        {"dataset": "digits"},
        {"hyperparameters": {"model": "fully_connected", "width": 9}},
    ],
)
def test_run_ids_depend_on_what_the_numbers_depend_on(load, changes):
    assert not set(run_ids(load(changes))) & set(run_ids(load()))
    assert run_settings(load(changes)) != run_settings(load()) or "hyperparameters" in changes


def test_settings_have_one_order_of_keys(load):
    """Snakemake compares the parameters of a job as text."""
    one = load({"stopping": {"num_steps": 3, "physical_time": 2}})
    other = {**one, "stopping": {"physical_time": 2.0, "num_steps": 3}}
    assert repr(run_settings(one)) == repr(run_settings(other))


def test_a_unit_makes_another_run(load):
    grid = {"learning_rate": {"relative_to": "critical", "values": [0.1, 0.2]}, "seed": [0, 1]}
    curvature = {"curvature": {"batch_size": 4}}
    relative, absolute = load({"grid": grid, **curvature}), load(curvature)
    assert not set(run_ids(relative)) & set(run_ids(absolute))


def test_networks_are_counted_once(load):
    grid = {"learning_rate": [0.1, 0.2], "momentum": [0.0, 0.9], "seed": [0, 1], "width": [4, 8]}
    networks = expand_networks(load({"grid": grid, "curvature": {"batch_size": 4}}))
    assert sorted((n["width"], n["seed"]) for n in networks) == [(4, 0), (4, 1), (8, 0), (8, 1)]
    assert len({network["network_id"] for network in networks}) == 4


def test_runs_of_one_shape_share_a_program(load):
    grid = {"learning_rate": [0.1, 0.2], "momentum": [0.0, 0.9], "seed": [0, 1]}
    assert len({shape_key(run) for run in expand_runs(load({"grid": grid}))}) == 1
    grid = {"learning_rate": [0.1], "width": [4, 8], "batch_size": [2, 4]}
    assert len({shape_key(run) for run in expand_runs(load({"grid": grid}))}) == 4


def test_captions_are_no_part_of_the_published_spec(load):
    spec = load({"figures": {"fig3a": {"caption": "Text"}}, "runs_per_shard": 3})
    assert not {"figures", "runs_per_shard", "networks_per_shard"} & set(published_spec(spec))


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"dataset": None}, ["dataset: None"]),
        ({"dataset": "mnits"}, ["dataset: 'mnits'", "did you mean 'mnist'"]),
        (
            {"dataset": {"published": "mnist", "embedded": "digit"}},
            ["dataset.embedded: 'digit'", "did you mean 'digits'"],
        ),
        ({"dataset": {"published": "mnist"}}, ["dataset: {'published': 'mnist'}"]),
        ({"grid": {"seed": [0]}}, ["key 'learning_rate' is missing"]),
        (
            {"grid": {"learning_rate": [0.1], "input_dim": [3]}},
            ["grid.input_dim", "'fully_connected' does not use it"],
        ),
        (
            {"grid": {"learning_rate": [0.1], "model": ["fully_connected", "warmup"]}},
            ["grid.model: 'warmup' is no training model", "fully_connected"],
        ),
        (
            {"grid": {"learning_rate": {"relative_to": "critical", "value": 1}}},
            ["relative_to: 'critical'", "curvature"],
        ),
        (
            {"measurements": {"ntk_top_eigenvalue": {}}},
            ["measurements.ntk_top_eigenvalue", "curvature section"],
        ),
        (
            {"stopping": {"num_steps": 1, "converged_output": 0.1}},
            ["stopping.converged_output", "theory"],
        ),
        ({"stopping": {"num_steps": 2**31}}, ["stopping.num_steps: 2147483648", "2^31"]),
        ({"figures": {"fig 3": {"caption": "x"}}}, ["figures: 'fig 3'", "letters"]),
        ({"kind": "theory"}, ["dataset:", "theory experiment has no data"]),
    ],
)
def test_what_a_schema_cannot_refuse(load, changes, fragments):
    line = refusal(load, changes)
    assert "tiny.yaml" in line
    for fragment in fragments:
        assert fragment in line


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({}, []),
        ({"hyperparameters": {"model": "warmup"}}, ["key 'width' is missing"]),
        ({"grid": {"learning_rate": [0.1]}}, ["key 'seed' is missing"]),
        (
            {"hyperparameters": {"model": "warmup", "width": 4, "momentum": 0.5}},
            ["hyperparameters.momentum", "'warmup' does not use it"],
        ),
        ({"hyperparameters": {"model": "warm"}}, ["'warm' is no theory model", "'warmup'"]),
        ({"curvature": {"batch_size": 4}}, ["curvature", "theory"]),
    ],
)
def test_theory_experiments_have_what_their_model_reads(tmp_path, changes, fragments):
    document = {
        "kind": "theory",
        "description": "A theory",
        "hyperparameters": {"model": "warmup", "width": 4},
        "grid": {"learning_rate": {"relative_to": "critical", "values": [0.5]}, "seed": [0]},
        "stopping": {"physical_time": 25},
        **changes,
    }
    path = tmp_path / "theory.yaml"
    path.write_text(yaml.safe_dump(document))
    if not fragments:
        assert load_experiment(path, "quick", "embedded", DATASETS)["dataset"] is None
        return
    line = refusal(load_experiment, path, "quick", "embedded", DATASETS)
    for fragment in fragments:
        assert fragment in line


def test_parsing_the_workflow_imports_nothing_heavy():
    """Each job of a cluster parses it again."""
    modules = {m for stage in ("workflow", "scripting") for m in fingerprint.stage_modules(stage)}
    text = "\n".join(fingerprint._path(module).read_text() for module in modules)
    for heavy in ("jax", "tensorflow", "matplotlib", "sklearn", "scipy"):
        assert f"\nimport {heavy}" not in text
        assert f"\nfrom {heavy}" not in text


def test_scale_adds_num_train_to_a_dataset_given_by_name(tmp_path):
    text = EXPERIMENTS["catapult/fc_mnist"].read_text(encoding="utf-8")
    text = text.replace("dataset: {published: mnist, embedded: digits}", "dataset: mine")
    path = tmp_path / "catapult" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    spec = load_experiment(path, "smoke", "embedded", {"mine": path})
    assert spec["dataset"] == {"name": "mine", "num_train": 256}


@pytest.mark.parametrize("folder", [".", "res{x}", __file__])
def test_results_dir_that_cannot_be_one(folder):
    with pytest.raises(InputError, match="results_dir"):
        read_config({"scale": "quick", "results_dir": folder})
