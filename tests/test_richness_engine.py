"""What the richness paper needs of the engine: rates by law, a zero readout, functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import test_training as training
from sgdphases import training as engine
from sgdphases.alignment import feature_gram, ntk_gram
from sgdphases.config import expand_networks, expand_runs, load_experiment
from sgdphases.datasets.views import Facts
from sgdphases.errors import InputError
from sgdphases.hyperparameters import complete_run
from sgdphases.models import build_network
from sgdphases.sections import check_data

DATASETS = {"digits": None, "single_index_cubic": None}


@pytest.fixture
def load(tmp_path):
    def load(grid, hyperparameters=None, **changes):
        document = {
            "description": "test",
            "dataset": "digits",
            "hyperparameters": hyperparameters or {"model": "rich_mlp_L3"},
            "grid": {"seed": [0], **grid},
            "stopping": {"num_steps": 5},
            "figures": {},
            **changes,
        }
        document = {key: value for key, value in document.items() if value != {}}
        path = tmp_path / "richness" / "test.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return load_experiment(path, "quick", "embedded", DATASETS)

    return load


LAW = {"relative_to": "richness_law", "values": [3.0]}


@pytest.mark.parametrize(
    ("model", "optimizer", "expected"),
    [
        ("rich_mlp_L3", "sgd", [3e-4, 3, 30]),
        ("rich_mlp_L2", "sgd", [3e-4, 3, 94.8683298051]),
        ("rich_cnn_L4", "sgd", [3e-4, 3, 16.8702397557]),
        ("rich_mlp_L3", "adam", [3e-2, 3, 9.48683298051]),
    ],
)
def test_rates_follow_the_richness_law(load, model, optimizer, expected):
    grid = {"richness": [0.01, 1.0, 10**1.5], "learning_rate": LAW}
    spec = load(grid, {"model": model, "optimizer": optimizer})
    runs = expand_runs(spec)
    assert [run["learning_rate"] for run in runs] == pytest.approx(expected, rel=1e-11)
    assert {run["learning_rate_relative_to"] for run in runs} == {"absolute"}


def test_the_same_rate_by_law_and_by_hand_is_listed_twice(load):
    with pytest.raises(InputError, match="listed twice"):
        load(
            {
                "points": [
                    {"learning_rate": {"relative_to": "richness_law", "value": 0.5}},
                    {"learning_rate": 0.5},
                ]
            }
        )


def test_a_law_needs_the_depth(load):
    with pytest.raises(InputError, match=r"'richness_law' needs the depth, .*'rich_vit'.*allowed"):
        load({"learning_rate": LAW}, {"model": "rich_vit"})


def test_theory_has_no_law(load):
    with pytest.raises(InputError, match="'richness_law' is for trained networks"):
        load(
            {"learning_rate": LAW, "richness": [1.0], "depth": [2]},
            {"model": "toy_one_parameter", "loss": "mean_squared_error", "optimizer": "sgd"},
            kind="theory",
            dataset={},
        )


def network_of(**changes):
    run = complete_run(
        {
            "model": "rich_mlp_L3",
            "learning_rate": 1.0,
            "width": 8,
            "precision": "float64",
            **changes,
        }
    )
    return build_network(run, (5,), 3)


def test_a_zero_readout_leaves_the_conjugate_kernel():
    inputs = np.random.default_rng(0).normal(size=(6, 5))
    with jax.enable_x64(True):
        network = network_of(zero_readout=True)
        parameters = network.init(jax.random.key(1))
        whole = network_of().init(jax.random.key(1))
        np.testing.assert_array_equal(network.apply(parameters, inputs), 0)
        np.testing.assert_array_equal(parameters["input"]["weight"], whole["input"]["weight"])
        kernel = ntk_gram(network.apply, parameters, jnp.asarray(inputs))
        features = feature_gram(network.features(parameters, jnp.asarray(inputs)))
        np.testing.assert_allclose(kernel / features, np.full((6, 6), 3 / 8**2), rtol=1e-12)


def test_a_zero_readout_is_another_network(load):
    changes = {"learning_rate": [0.1], "zero_readout": [False, True]}
    assert len(expand_networks(load(changes, curvature={"batch_size": 4}))) == 2


@pytest.mark.parametrize(
    ("hyperparameters", "fragment"),
    [
        ({"head_correlation": 0.5, "centered": False}, "second head"),
        ({"initial_logit_norm": 1.0, "loss": "cross_entropy", "centered": False}, "second head"),
    ],
)
def test_a_zero_readout_has_no_second_head(load, hyperparameters, fragment):
    with pytest.raises(InputError, match=f"zero_readout: True: .*{fragment}.*allowed"):
        load(
            {"learning_rate": [0.1]},
            {"model": "rich_mlp_L3", "zero_readout": True, **hyperparameters},
        )


def test_a_model_of_ones_own_has_no_zero_readout(load, tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text("def build(run, shape, outputs):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"zero_readout: True: .*does not tell its last layer"):
        load({"learning_rate": [0.1]}, {"model": "own_model:build", "zero_readout": True})


def test_true_classes_need_classes(load):
    spec = load({"learning_rate": [0.1]}, measurements={"true_class_outputs": {}})
    facts = Facts(task="regression", is_stream=True)
    with pytest.raises(InputError, match="true_class_outputs: the dataset 'digits' has no classes"):
        check_data(spec, expand_runs(spec), facts, "test.yaml")


def test_functions_and_features_agree_with_their_definitions():
    dataset = training.make_dataset()
    runs = training.make_runs(
        {}, {"learning_rate": 1.0}, parametrisation="mup", centered=True, richness=2.0
    )
    settings = training.make_settings(
        {"num_steps": 3},
        {
            "steps": [0],
            "outputs": {"num_samples": 8},
            "true_class_outputs": {"num_samples": 8},
            "feature_movement": {"num_samples": 8, "steps": [0, 1]},
        },
    )
    shard = training.train(settings, runs, dataset)
    labels = dataset.test_targets[:8].argmax(axis=1)
    for run in runs:
        rows = training.rows_of(shard.history, run)
        first, last = rows.iloc[0], rows.iloc[-1]
        outputs = np.array(last["outputs"]).reshape(8, 3)
        np.testing.assert_allclose(
            last["true_class_outputs"], outputs[np.arange(8), labels], rtol=1e-12
        )
        np.testing.assert_allclose(first["outputs"], 0, atol=1e-15)
        assert first["feature_movement"] == 0
        assert last["feature_movement"] > rows.iloc[1]["feature_movement"] > 0
        with jax.enable_x64(True):
            network = build_network(run, (5,), 3)
            start = network.init(jax.random.key(run["seed"]))
            features = np.asarray(network.features(start, jnp.asarray(dataset.test_inputs[:8])))
        assert first["feature_size"] == pytest.approx(float(np.sqrt(np.mean(features**2))))


def test_features_of_a_model_that_does_not_tell_them_are_refused(monkeypatch):
    build = engine.build_network
    monkeypatch.setattr(
        engine, "build_network", lambda *arguments: build(*arguments)._replace(features=None)
    )
    engine._network.cache_clear()
    settings = training.make_settings(
        {"num_steps": 1}, {"steps": [0], "feature_movement": {"num_samples": 4}}
    )
    with pytest.raises(InputError, match=r"measurements.feature_movement: .*last hidden layer"):
        training.train(settings, training.make_runs({}, width=5), training.make_dataset())
    engine._network.cache_clear()
