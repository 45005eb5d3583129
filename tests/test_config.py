"""The configuration and the experiment files, resolved."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from sgdphases import config, fingerprint, workflow
from sgdphases.config import (
    execution_settings,
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
from sgdphases.grid import hyperparameter_schemas
from sgdphases.model_table import model_names
from sgdphases.theory.programs import PROGRAMS
from sgdphases.validation import load_schema, read_yaml

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


TOY = {
    "model": "toy_one_parameter",
    "richness": 1.0,
    "depth": 3,
    "loss": "cross_entropy",
    "optimizer": "sgd",
}

SOFTMAX = {
    "model": "softmax_kernel",
    "num_samples": 4,
    "num_classes": 3,
    "inverse_temperature": 1.0,
    "logit_scale": 1.0,
    "displacement_l2": 0.0,
    "momentum": 0.0,
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
    needed = {name: set(program.hyperparameters) for name, program in PROGRAMS.items()}
    assert {name: set(keys) for name, keys in config.THEORY_MODELS.items()} == needed


def test_figures_are_known_without_importing_their_code():
    modules = workflow.figure_modules()
    assert {f: m for m in set(modules.values()) for f in draw.plots_of(m)} == modules
    assert len(modules) > 50


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
    assert settings == config.Config("quick", "headline", "embedded", None, "results", "auto")


def test_a_single_experiment_needs_no_list():
    assert read_config({"scale": "quick", "experiments": "a/b"}).experiments == ["a/b"]


def test_the_experiments_follow_the_scale():
    assert read_config({"scale": "quick"}).experiments == "headline"
    assert read_config({"scale": "smoke", "experiments": None}).experiments == "headline"
    assert read_config({"scale": "paper"}).experiments == "all"
    assert read_config({"scale": "quick", "experiments": "all"}).experiments == "all"


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
    (tmp_path / "a" / "one.yaml").write_text("headline: false\n")
    assert list(find_experiments(tmp_path, "headline")) == ["a/two", "b/one"]
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


def kinds_of_data(name):
    """A theory experiment has no data: it is the same with either kind."""
    theory = read_yaml(EXPERIMENTS[name]).get("kind") == "theory"
    return ["embedded"] if theory else ["embedded", "published"]


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
@pytest.mark.parametrize(
    ("name", "data"), [(name, data) for name in EXPERIMENTS for data in kinds_of_data(name)]
)
def test_shipped_experiments_load(name, data, scale):
    spec = load_experiment(EXPERIMENTS[name], scale, data, DATASETS)
    runs = expand_runs(spec)
    assert spec["experiment"] == name
    assert len({run["run_id"] for run in runs}) == len(runs) > 0
    if spec["kind"] == "training":
        assert spec["dataset"]["name"] in DATASETS
    assert {f"{spec['paper']}/{figure}" for figure in spec["figures"]} <= set(
        workflow.figure_modules()
    )
    # spec.yaml gives back what the jobs were planned from.
    written = yaml.safe_load(yaml.safe_dump(published_spec(spec), sort_keys=False))
    assert expand_runs(written) == runs
    assert written["num_runs"] == len(runs)


def test_defaults_are_filled_in(load):
    spec = load({"curvature": {"batch_size": 4}})
    assert spec["measurements"] == {"points_per_decade": 10}
    assert spec["curvature"] == {"batch_size": 4, "num_batches": 1, "num_lanczos_steps": 40}
    assert spec["dataset"] == {"name": "digits", "num_train": 64}
    run = expand_runs(spec)[0]
    assert (run["depth"], run["activation"], run["bias_scale"]) == (2, "relu", None)
    assert load(data="published")["dataset"]["name"] == "mnist"


def run_ids(spec):
    return [run["run_id"] for run in expand_runs(spec)]


def test_a_view_is_part_of_the_resolved_experiment(load):
    view = {"classes": [3, 1], "labels": "parity", "grey": True}
    spec = load({"dataset": {"name": "digits", **view}})
    assert spec["dataset"] == {"name": "digits", "num_train": None, **view}
    # A scale may take a view back.
    back = {"labels": "classes", "grey": False, "num_test": 5}
    spec = load({"dataset": {"name": "digits", **view}, "scales": {"quick": {"dataset": back}}})
    assert spec["dataset"] == {
        "name": "digits",
        "num_train": None,
        "classes": [3, 1],
        "num_test": 5,
    }


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
        # Keys of a view that change nothing.
        (
            {"dataset": {"name": "digits", "num_train": 9}},
            {"dataset": {"name": "digits", "num_train": 9, "grey": False, "labels": "classes"}},
        ),
        # What a run's numbers do not depend on.
        ({}, {"description": "Another one"}),
        ({}, {"figures": {"fig3a": {"caption": "Text"}}}),
        ({}, {"runs_per_shard": 1, "networks_per_shard": 1}),
        ({}, {"lowering": {"loop": "stepwise"}, "checkpoint_seconds": 5}),
        # Defaults written out.
        ({}, {"schedule": {"kind": "constant"}, "augmentation": {"flip": False, "crop": 0}}),
        ({}, {"grid": {**EXPERIMENT["grid"], "loss_normalisation": ["per_class"]}}),
        ({}, {"grid": {**EXPERIMENT["grid"], "precision": ["float32"], "richness": [1]}}),
        (
            {"measurements": {"hessian": {"every": 5}}},
            {"measurements": {"hessian": {"every": 5, "split": "train", "num_eigenvalues": 1}}},
        ),
        (
            {"schedule": {"kind": "piecewise", "boundaries": [0.5], "factors": [2]}},
            {"schedule": {"kind": "piecewise", "boundaries": [0.5], "factors": [2.0]}},
        ),
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
        {"schedule": {"kind": "warmup_cosine", "warmup": 0.1}},
        {"augmentation": {"flip": True}},
        {"stopping": {"num_steps": 3, "epochs": 1}},
        {"dataset": "digits"},
        *(
            {"dataset": {**EXPERIMENT["dataset"], **view}}
            for view in (
                {"num_test": 9},
                {"classes": [0, 1]},
                {"samples_per_class": 2},
                {"labels": "parity"},
                {"shuffled_labels": 0},
                {"grey": True},
                {"resize": 4},
            )
        ),
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


# --- hyperparameters ------------------------------------------------------------------------------


def runs_of(load, grid=None, **hyperparameters):
    grid = {"learning_rate": [0.1], **(grid or {})}
    return expand_runs(load({"hyperparameters": hyperparameters, "grid": grid}))


def test_defaults_are_those_of_the_model_and_the_file_has_the_last_word(load):
    (run,) = runs_of(load, model="rich_mlp_L3", width=8)
    assert run["parametrisation"] == "mup"
    assert run["centered"] is True
    assert (run["depth"], run["width"], run["weight_scale"]) == (3, 8, 1.0)
    (run,) = runs_of(load, model="rich_mlp_L3", parametrisation="ntk", centered=False)
    assert (run["parametrisation"], run["centered"]) == ("ntk", False)


def test_a_sweep_over_models_gives_each_run_the_defaults_of_its_own(load):
    grid = {"model": ["cat_fc3_2048", "wrn28_10", "rich_vit"], "width": [16]}
    runs = {run["model"]: run for run in runs_of(load, grid)}
    assert runs["cat_fc3_2048"]["depth"] == 4
    assert "widening_factor" not in runs["cat_fc3_2048"]
    assert (runs["wrn28_10"]["depth"], runs["wrn28_10"]["batch_norm_samples"]) == (28, 128)
    assert runs["rich_vit"]["attention_scale"] == "inverse"
    assert "depth" not in runs["rich_vit"]
    assert {run["width"] for run in runs.values()} == {16}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "per_class"),
        ({"loss": "cross_entropy"}, "per_sample"),
        ({"loss": "cross_entropy", "loss_normalisation": "sum"}, "sum"),
        ({"loss_normalisation": None}, "per_class"),
    ],
)
def test_the_normalisation_follows_the_loss(load, given, expected):
    (run,) = runs_of(load, model="fully_connected", **given)
    assert run["loss_normalisation"] == expected


def test_small_richness_is_computed_in_float64(load):
    grid = {"richness": [1.0e-5, 9.0e-4, 1.0e-3, 1.0, 1.0e5]}
    runs = runs_of(load, grid, model="rich_mlp_L2")
    assert [run["precision"] for run in runs] == ["float64"] * 2 + ["float32"] * 3
    (run,) = runs_of(load, {"richness": [1.0e-5]}, model="rich_mlp_L2", precision="float32")
    assert run["precision"] == "float32"


def test_a_run_listed_twice_by_way_of_defaults_is_refused(load):
    grid = [{"learning_rate": [0.1]}, {"learning_rate": [0.1], "loss_normalisation": ["per_class"]}]
    assert "twice" in refusal(load, {"grid": grid})


def test_runs_name_every_hyperparameter_in_one_order(load):
    order = list(hyperparameter_schemas())
    for name in model_names():
        (run,) = runs_of(load, model=name)
        given = [key for key in run if key in order]
        assert given == sorted(given, key=order.index)
        assert set(run) - set(given) == {"run_id", "learning_rate_relative_to"}
        assert run["loss_normalisation"] is not None
        assert run["precision"] is not None


# --- a user's own model ---------------------------------------------------------------------------


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """A user's module; gives a function that writes it anew."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "my_own_models.py").write_text(text, encoding="utf-8")

    write("def net(hyperparameters, input_shape, num_outputs): raise RuntimeError\n")
    return write


def test_a_users_model_may_read_any_hyperparameter_that_the_file_gives(load, own_model):
    (run,) = runs_of(load, model="my_own_models:net", num_blocks=3, width=7)
    assert (run["depth"], run["width"], run["activation"]) == (2, 7, "relu")
    assert run["num_blocks"] == 3
    assert "num_heads" not in run


def test_an_edited_model_of_the_user_trains_anew(load, own_model):
    changes = {
        "grid": {"learning_rate": [0.1], "model": ["my_own_models:net", "fully_connected"]},
        "curvature": {"batch_size": 4},
    }
    spec = load(changes)
    before, networks = expand_runs(spec), expand_networks(spec)
    own_model("def net(*everything): return None\n")
    # What is planned does not change under a workflow's feet.
    assert expand_runs(published_spec(spec)) == before
    after = expand_runs(load(changes))
    assert [a["run_id"] == b["run_id"] for a, b in zip(after, before, strict=True)] == [False, True]
    again = expand_networks(load(changes))
    assert [a["network_id"] == b["network_id"] for a, b in zip(again, networks, strict=True)] == [
        False,
        True,
    ]
    assert shape_key(after[0]) != shape_key(before[0])


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("my_absent_models:net", ["my_absent_models", "no module"]),
        ("my_own_models:", ["package.module:function"]),
        ("my own models:net", ["package.module:function"]),
    ],
)
def test_a_users_model_that_is_not_there_is_refused(load, own_model, name, fragments):
    line = refusal(load, {"grid": {"learning_rate": [0.1], "model": [name]}})
    for fragment in ["tiny.yaml: grid.model: ", "allowed: ", *fragments]:
        assert fragment in line


# --- what shares what -----------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("hyperparameters", "axis", "programs"),
    [
        ({"optimizer": "adam"}, {"first_moment_decay": [0.5, 0.9], "epsilon": [0.1, 0.2]}, 1),
        ({"optimizer": "adam"}, {"second_moment_decay": [0.5, 0.9]}, 1),
        ({}, {"weight_decay": [0.0, 0.1], "richness": [0.5, 2.0]}, 1),
        # The smaller ones are computed in float64.
        ({}, {"richness": [1.0e-5, 1.0e-4, 1.0e-2, 1.0]}, 2),
        ({"loss": "cross_entropy"}, {"inverse_temperature": [0.1, 10.0]}, 1),
        ({}, {"head_correlation": [-1.0, 0.0, 0.5]}, 1),
        # Without a second head there is another program.
        ({}, {"head_correlation": [None, 0.0, 0.5]}, 2),
        ({}, {"linearize_at": [None, 0, 10]}, 3),
        ({}, {"optimizer": ["sgd", "adam", "sign_sgd"]}, 3),
        ({}, {"label_shift": [0.0, -0.01], "centered": [True, False]}, 4),
    ],
)
def test_what_may_differ_within_a_program(load, hyperparameters, axis, programs):
    runs = runs_of(load, axis, model="fully_connected", **hyperparameters)
    assert len({shape_key(run) for run in runs}) == programs


@pytest.mark.parametrize(
    ("hyperparameters", "axis", "networks"),
    [
        ({}, {"depth": [1, 2], "activation": ["relu", "tanh"], "bias_scale": [None, 0]}, 8),
        ({}, {"richness": [0.5, 1.0], "loss_normalisation": ["per_class", "sum"]}, 4),
        ({"loss": "cross_entropy"}, {"inverse_temperature": [1, 2]}, 2),
        ({}, {"parametrisation": ["standard", "mup"], "precision": ["float32", "float64"]}, 4),
        # The tangent kernel knows nothing of these.
        ({"loss": "cross_entropy"}, {"momentum": [0, 0.5], "label_shift": [0, 1]}, 1),
        ({}, {"head_correlation": [None, 0.5], "linearize_at": [None, 3]}, 1),
        ({}, {"centered": [True, False], "weight_decay": [0, 1], "batch_size": [4, 8]}, 1),
        ({}, {"optimizer": ["sgd", "adam"]}, 1),
    ],
)
def test_what_makes_another_network(load, hyperparameters, axis, networks):
    changes = {
        "hyperparameters": {"model": "fully_connected", **hyperparameters},
        "grid": {"learning_rate": [0.1], **axis},
        "curvature": {"batch_size": 4},
    }
    found = expand_networks(load(changes))
    assert len({network["network_id"] for network in found}) == len(found) == networks


def test_how_jobs_work_is_kept_apart(load):
    assert execution_settings(load()) == {"lowering": {}, "checkpoint_seconds": 60.0}
    forced = {"runs_together": "all", "convolution": "patches", "loop": "compiled"}
    spec = load({"lowering": forced, "checkpoint_seconds": 5})
    assert execution_settings(spec) == {"lowering": forced, "checkpoint_seconds": 5.0}
    assert run_settings(spec) == run_settings(load())
    assert not {"lowering", "checkpoint_seconds"} & set(published_spec(spec))


def test_sections_are_resolved(load):
    spec = load(
        {
            "stopping": {"epochs": 2, "decay_time": 1, "num_steps": 9},
            "augmentation": {"mixup": 1},
            "measurements": {
                "steps": [0, 3],
                "hessian": {"num_eigenvalues": 5, "split": "test", "steps": [1]},
                "kernel_alignment": {},
                "weight_movement": {"every": 2},
                "outputs": {"dense_until": 3},
                "linearized_distance": {"from_step": 2},
            },
        }
    )
    settings = run_settings(spec)
    assert settings["stopping"] == {"epochs": 2.0, "decay_time": 1.0, "num_steps": 9}
    assert settings["schedule"] == {"kind": "constant"}
    assert settings["augmentation"] == {"flip": False, "crop": 0, "mixup": 1.0, "rotation": 0.0}
    assert settings["measurements"] == {
        "steps": [0, 3],
        "hessian": {
            "num_eigenvalues": 5,
            "batch_size": 512,
            "split": "test",
            "num_lanczos_steps": 80,
            "steps": [1],
        },
        "kernel_alignment": {"kernels": ["ntk", "last_layer"], "num_samples": 128},
        "weight_movement": {"every": 2},
        "outputs": {"num_samples": 32, "dense_until": 3},
        "linearized_distance": {"from_step": 2, "num_samples": 128},
    }


def test_a_schedule_of_another_kind_is_replaced_whole(load):
    piecewise = {"kind": "piecewise", "boundaries": [0.5], "factors": [0.1]}
    scales = {"smoke": {"schedule": {"kind": "constant"}}, "quick": {"schedule": {"factors": [1]}}}
    changes = {"schedule": piecewise, "scales": scales}
    assert load(changes, "smoke")["schedule"] == {"kind": "constant"}
    assert load(changes, "quick")["schedule"] == {**piecewise, "factors": [1.0]}


def given(**hyperparameters):
    """An experiment with these hyperparameters."""
    return {"hyperparameters": hyperparameters}


def fc(**hyperparameters):
    return given(model="fully_connected", **hyperparameters)


def piecewise(boundaries, factors):
    return {"schedule": {"kind": "piecewise", "boundaries": boundaries, "factors": factors}}


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
        # --- hyperparameters, each given alone ---
        (given(), ["hyperparameters: key 'model' is missing"]),
        (given(model="fully_conected"), ["'fully_conected'", "did you mean 'fully_connected'"]),
        (given(model="gru", depth=3), ["hyperparameters.depth", "'gru' does not use it", "width"]),
        (
            given(model="fully_connected", patch_size=3),
            ["hyperparameters.patch_size", "does not use it", "activation, depth, width"],
        ),
        (fc(activation="swish"), ["hyperparameters.activation: 'swish'", "erf, gelu"]),
        (fc(parametrisation="mp"), ["parametrisation: 'mp'", "standard, ntk, mup, depth_mup"]),
        (fc(centered="yes"), ["centered: 'yes'", "true or false"]),
        (fc(richness=0), ["richness: 0", "above 0"]),
        (fc(head_correlation=1.5), ["head_correlation: 1.5", "from -1 to 1"]),
        (fc(linearize_at=-1), ["linearize_at: -1", "null for never"]),
        (fc(loss="hinge"), ["loss: 'hinge'", "mean_squared_error, cross_entropy"]),
        (fc(loss_normalisation="mean"), ["loss_normalisation: 'mean'", "per_class, per_sample"]),
        (fc(inverse_temperature="1e2"), ["inverse_temperature: '1e2'", "1.0e-3"]),
        (fc(label_shift=None), ["label_shift: None", "number"]),
        (fc(optimizer="lion"), ["optimizer: 'lion'", "sgd, adam, sign_sgd"]),
        (fc(first_moment_decay=1), ["first_moment_decay: 1", "below 1"]),
        (fc(epsilon=0), ["epsilon: 0", "above 0"]),
        (fc(weight_decay_rule="auto"), ["weight_decay_rule: 'auto'", "constant, auto_l2"]),
        (fc(auto_l2_interval=0), ["auto_l2_interval: 0", "at least 1"]),
        (fc(precision="float16"), ["precision: 'float16'", "tensorfloat32, bfloat16"]),
        (given(model="wrn28_10", batch_norm=1), ["batch_norm: 1", "true or false"]),
        (given(model="wrn28_10", batch_norm_samples=1), ["batch_norm_samples: 1", "at least 2"]),
        (given(model="resnet", stem="tiny"), ["stem: 'tiny'", "imagenet, cifar"]),
        (given(model="rich_vit", normalisation="batch"), ["normalisation: 'batch'", "qk_norm"]),
        (given(model="rich_vit", attention_scale="root"), ["attention_scale: 'root'", "inverse"]),
        # --- hyperparameters, together ---
        (
            fc(centered=True, precision="bfloat16"),
            ["hyperparameters.precision: 'bfloat16'", "centered", "float32 or float64"],
        ),
        (
            fc(richness=0.1, precision="tensorfloat32"),
            ["hyperparameters.precision: 'tensorfloat32'", "richness", "float32 or float64"],
        ),
        # The model's default is at fault together with what the file says.
        (
            given(model="rich_mlp_L2", precision="bfloat16"),
            ["hyperparameters.precision: 'bfloat16'", "centered"],
        ),
        (
            {"grid": {"learning_rate": [1], "head_correlation": [0.5], "centered": [False, True]}},
            ["grid.head_correlation: 0.5", "exclude each other", "centered false"],
        ),
        (
            given(model="rich_mlp_L2", head_correlation=0),
            ["hyperparameters.head_correlation: 0.0", "exclude each other"],
        ),
        (
            fc(inverse_temperature=2),
            ["inverse_temperature: 2.0", "mean_squared_error", "with loss cross_entropy"],
        ),
        (
            fc(optimizer="adam", momentum=0.9),
            ["hyperparameters.momentum: 0.9", "optimizer adam", "sgd or sign_sgd"],
        ),
        (
            {"grid": {"learning_rate": [1], "optimizer": ["sgd", "adam"], "momentum": [0.5]}},
            ["grid.momentum: 0.5", "optimizer adam"],
        ),
        (fc(epsilon=0.1), ["hyperparameters.epsilon: 0.1", "optimizer sgd", "adam"]),
        (fc(second_moment_decay=0.9), ["second_moment_decay: 0.9", "optimizer sgd", "adam"]),
        (fc(auto_l2_interval=5), ["auto_l2_interval: 5", "weight_decay_rule constant", "auto_l2"]),
        (
            fc(weight_decay_rule="auto_l2"),
            ["weight_decay_rule: 'auto_l2'", "weight_decay above 0, usually 0.1"],
        ),
        (
            given(model="sgdphases.errors:net", parametrisation="mup"),
            ["hyperparameters.parametrisation: 'mup'", "one's own model"],
        ),
        (given(model="wrn28_10", depth=30), ["hyperparameters.depth: 30", "6 n + 4"]),
        (given(model="resnet", depth=20), ["hyperparameters.depth: 20", "18, 34, 50"]),
        (given(model="rich_vit", num_heads=3), ["num_heads: 3", "width 256", "divisor"]),
        # --- sections ---
        ({"stopping": {"min_steps": 3}}, ["stopping", "num_steps, epochs, physical_time"]),
        ({"stopping": {"train_accuracy": 1.0}}, ["stopping", "decay_time"]),
        ({"stopping": {"num_steps": 1, "min_steps": 3}}, ["stopping.min_steps", "physical_time"]),
        ({"stopping": {"epochs": 0}}, ["stopping.epochs: 0", "above 0"]),
        ({"stopping": {"decay_time": 1}}, ["stopping.decay_time", "weight_decay 0", "num_steps"]),
        ({"schedule": {"kind": "cosine"}}, ["schedule.kind: 'cosine'", "warmup_cosine"]),
        ({"schedule": {"boundaries": [0.5]}}, ["schedule: key 'kind' is missing"]),
        ({"schedule": {"kind": "warmup_cosine"}}, ["schedule: key 'warmup' is missing"]),
        (
            {"schedule": {"kind": "constant", "warmup": 0.1}},
            ["schedule: key 'warmup' is not used by kind constant"],
        ),
        ({"schedule": {"kind": "warmup_cosine", "warmup": 1}}, ["schedule.warmup: 1", "below 1"]),
        (piecewise([0.6, 0.3], [1, 2]), ["schedule.boundaries: [0.6, 0.3]", "increasing"]),
        (piecewise([0.3, 1.5], [1, 2]), ["schedule.boundaries[1]: 1.5", "below 1"]),
        (piecewise([0.3], [1, 2]), ["schedule.factors: [1.0, 2.0]", "as many as boundaries, 1"]),
        (piecewise([0.3], [-1]), ["schedule.factors[0]: -1", "above 0"]),
        (
            {"schedule": {"kind": "final_rate", "learning_rate": 0.1}},
            ["schedule: key 'num_steps' is missing", "kind, learning_rate, num_steps"],
        ),
        (
            {"schedule": {"kind": "final_rate", "learning_rate": 0.1, "num_steps": 0}},
            ["schedule.num_steps: 0", "at least 1"],
        ),
        (
            {"grid": {"learning_rate": [0.1], "final_steps": [3]}},
            ["final_steps: 3", "kind constant has no final phase", "final_rate"],
        ),
        (
            {"grid": {"learning_rate": [0.1], "final_steps": [-1]}},
            ["grid.final_steps[0]: -1", "at least 0"],
        ),
        (
            {"grid": {"learning_rate": [0.1], "budget_steps": [0]}},
            ["grid.budget_steps[0]: 0", "at least 1"],
        ),
        (
            {"grid": {"learning_rate": [0.1], "budget_physical_time": [0]}},
            ["grid.budget_physical_time[0]: 0", "above 0"],
        ),
        ({"stopping": {"physical_time": -1}}, ["stopping.physical_time: -1", "above 0"]),
        ({"augmentation": {"mixup": -0.5}}, ["augmentation.mixup: -0.5", "at least 0"]),
        ({"augmentation": {"flip": 1}}, ["augmentation.flip: 1", "true or false"]),
        ({"augmentation": {"crop": 1.5}}, ["augmentation.crop: 1.5", "integer"]),
        ({"augmentation": {"rotation": 360}}, ["augmentation.rotation: 360", "0 to 180"]),
        ({"augmentation": {"mix": 1}}, ["augmentation: unknown key 'mix'", "'mixup'"]),
        ({"measurements": {"steps": []}}, ["measurements.steps: []", "a list of steps"]),
        ({"measurements": {"steps": [1.5]}}, ["measurements.steps[0]: 1.5", "integer"]),
        ({"measurements": {"hesian": {}}}, ["measurements: unknown key 'hesian'", "'hessian'"]),
        ({"measurements": {"hessian": {"split": "all"}}}, ["hessian.split: 'all'", "train, test"]),
        (
            {"measurements": {"hessian": {"num_eigenvalues": 90}}},
            ["hessian.num_lanczos_steps: 80", "90 eigenvalues"],
        ),
        (
            {"measurements": {"kernel_alignment": {"kernels": ["nngp"]}}},
            ["kernel_alignment.kernels[0]: 'nngp'", "ntk, last_layer"],
        ),
        (
            {"measurements": {"kernel_alignment": {"kernels": ["ntk", "ntk"]}}},
            ["kernel_alignment.kernels: ['ntk', 'ntk']", "each once"],
        ),
        ({"measurements": {"outputs": {"num_samples": 0}}}, ["outputs.num_samples: 0"]),
        (
            {"measurements": {"linearized_distance": {"from_step": -1}}},
            ["linearized_distance.from_step: -1"],
        ),
        (
            {"measurements": {"timescales": {}}},
            ["measurements.timescales: loss 'mean_squared_error'", "cross_entropy"],
        ),
        (
            fc(loss="cross_entropy", parametrisation="mup")
            | {"measurements": {"timescales": {"steps": [0]}}},
            ["measurements.timescales: parametrisation 'mup'", "standard, ntk"],
        ),
        (
            fc(loss="cross_entropy", activation="tanh")
            | {"measurements": {"timescales": {"infinite_width": True}}},
            ["timescales.infinite_width", "activation 'tanh'", "relu or erf"],
        ),
        (
            given(model="wide_resnet", depth=10, loss="cross_entropy", parametrisation="ntk")
            | {"measurements": {"timescales": {"infinite_width": True}}},
            ["infinite_width: no closed form for wide_resnet", "fully connected"],
        ),
        (
            {
                "measurements": {
                    "timescales": {"linearized": True},
                    "linearized_distance": {"from_step": 2},
                }
            },
            ["linearized_distance.from_step: 2", "allowed: 0"],
        ),
        (
            {
                "measurements": {
                    "linearized_distance": {"from_step": 2},
                    "kernel_change": {"from_step": 5},
                }
            },
            ["kernel_change.from_step: 5", "allowed: 2"],
        ),
        (
            {
                "measurements": {"kernel_change": {"from_step": 7}},
                "stopping": {"num_steps": 5},
                "schedule": {"kind": "final_rate", "learning_rate": 0.1, "num_steps": 2},
            },
            ["kernel_change.from_step: 7", "runs end after 7 steps", "allowed: below 7"],
        ),
        ({"lowering": "fast"}, ["lowering: 'fast'", "runs_together (a number or all)"]),
        ({"lowering": {"loop": "scan"}}, ["lowering", "'scan'"]),
        ({"lowering": {"runs_together": 0}}, ["lowering", "runs_together"]),
        ({"checkpoint_seconds": 0}, ["checkpoint_seconds: 0", "above 0"]),
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
def test_bad_experiments_are_refused(load, changes, fragments):
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
        ({"hyperparameters": {**TOY, "richness": 0.0}}, ["richness: 0", "above 0"]),
        ({"hyperparameters": {**TOY, "richness": -1.0}}, ["richness: -1", "above 0"]),
        ({"hyperparameters": {**TOY, "depth": 1}}, ["hyperparameters.depth: 1", "2 to 63"]),
        ({"hyperparameters": {**TOY, "depth": 64}}, ["hyperparameters.depth: 64", "2 to 63"]),
        (
            {"hyperparameters": {**TOY, "optimizer": "adam"}},
            ["hyperparameters.optimizer: 'adam'", "sgd, sign_sgd"],
        ),
        (
            {"hyperparameters": {**TOY, "model": "toy_one_parameter_edge"}},
            ["key 'edge' is missing", "num_steps"],
        ),
        (
            {"hyperparameters": {**TOY, "edge": "sharp"}},
            ["edge: 'sharp'", "training, catapult, convergence, divergence"],
        ),
        (
            {"hyperparameters": {**SOFTMAX, "num_classes": 1}},
            ["hyperparameters.num_classes: 1", "at least 2"],
        ),
        (
            {"hyperparameters": {**SOFTMAX, "displacement_l2": -0.5}},
            ["hyperparameters.displacement_l2: -0.5", "at least 0"],
        ),
        ({"hyperparameters": {"model": "quartic"}}, ["key 'momentum' is missing"]),
        ({"portrait": {"trained_loss": 0}}, ["portrait.trained_loss: 0", "above 0"]),
        ({"portrait": {"threshold": 1}}, ["portrait", "threshold", "trained_loss"]),
        ({"curvature": {"batch_size": 4}}, ["curvature", "theory"]),
        ({"schedule": {"kind": "constant"}}, ["schedule", "theory"]),
        ({"augmentation": {"flip": True}}, ["augmentation", "theory"]),
        ({"lowering": {"loop": "compiled"}}, ["lowering", "theory"]),
        ({"measurements": {"hessian": {}}}, ["measurements.hessian", "dense_until"]),
        ({"stopping": {"epochs": 1}}, ["stopping.epochs", "only a training experiment"]),
        (
            {"stopping": {"num_steps": 1, "train_accuracy": 1}},
            ["stopping.train_accuracy", "only a training experiment"],
        ),
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


def test_the_documentation_names_everything():
    text = (PROJECT / "config/README.md").read_text(encoding="utf-8")
    schema = load_schema("experiment")
    names = {*schema["properties"], *hyperparameter_schemas(), *model_names()}
    for section in ("dataset", "stopping", "schedule", "augmentation", "measurements", "curvature"):
        names |= set(schema["$defs"][section]["properties"])
    for name, part in schema["$defs"]["measurements"]["properties"].items():
        if "properties" in part:
            names |= {name, *part["properties"]}
    for choices in ("activation", "parametrisation", "optimizer", "precision", "normalisation"):
        names |= {str(c) for c in hyperparameter_schemas()[choices].get("enum", [])} - {"None"}
    missing = [name for name in sorted(names) if not re.search(rf"\b{re.escape(name)}\b", text)]
    assert missing == []
