"""The plane of inverse temperature and logit norm: second heads, and rates in units of 1/β."""

import jax
import numpy as np
import pytest

from sgdphases.config import shape_key
from sgdphases.datasets.loading import Dataset
from sgdphases.errors import InputError
from sgdphases.grid import expand_grid
from sgdphases.hyperparameters import Origin, check_run, complete_run
from sgdphases.models import build_network
from sgdphases.models.heads import correlation_of_norm
from sgdphases.training import Execution, train_shard

SAMPLES = 24


def make_dataset():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES + 8, 5))
    targets = np.eye(3)[rng.integers(0, 3, SAMPLES + 8)]
    return Dataset(
        name="test",
        manifest={},
        train_inputs=inputs[:SAMPLES],
        train_targets=targets[:SAMPLES],
        test_inputs=inputs[SAMPLES:],
        test_targets=targets[SAMPLES:],
    )


def make_setting(**changes):
    return {
        "model": "fully_connected",
        "depth": 2,
        "width": 16,
        "loss": "cross_entropy",
        "learning_rate": 0.1,
        "batch_size": SAMPLES,
        "precision": "float64",
        "learning_rate_relative_to": "absolute",
        **changes,
    }


def train(*changes, num_steps=6, together=1):
    runs = [
        {"run_id": f"run{i}", **complete_run(make_setting(**change))}
        for i, change in enumerate(changes)
    ]
    settings = {
        "experiment": "temperature/test",
        "stopping": {"num_steps": num_steps},
        "measurements": {"every": 2, "logit_norm": {"every": 2}},
        "curvature": None,
        "evaluation": {},
        "divergence_factor": 1e6,
        "data_seed": 3,
    }
    execution = Execution(lowering={"runs_together": together})
    return train_shard(settings, runs, [""] * len(runs), make_dataset(), {}, execution)


# --- the correlation for a norm -------------------------------------------------------------------


@pytest.mark.parametrize("product", [-0.4, 0.0, 0.6])
@pytest.mark.parametrize("norm", [0.0, 1e-6, 0.3, 1.1])
def test_the_combined_outputs_have_the_norm_asked_for(product, norm):
    rng = np.random.default_rng(1)
    own, noise = rng.normal(size=(2, 500))
    fresh = product * own + 0.8 * noise
    moments = [float(np.mean(pair)) for pair in (own * own, fresh * fresh, own * fresh)]
    correlation, largest = correlation_of_norm(*moments, norm)
    assert -1 <= correlation <= 1
    assert largest >= 2 * np.sqrt(moments[0]) * (1 - 1e-9)
    spread = np.sqrt((1 - correlation) * (1 + correlation))
    combined = (1 + correlation) * own + spread * fresh
    # 1 + c loses digits next to c = -1.
    assert np.sqrt(np.mean(combined**2)) == pytest.approx(norm, rel=1e-6, abs=1e-7)


def test_orthogonal_heads_of_one_size_follow_the_papers_formula():
    for correlation in (-0.9, 0.0, 0.5):
        norm = np.sqrt(2 * (1 + correlation))
        assert correlation_of_norm(1.0, 1.0, 0.0, norm)[0] == pytest.approx(correlation)
    assert correlation_of_norm(1.0, 1.0, 0.0, 5.0) == pytest.approx((1.0, 2.0))
    # A fresh head that dwarfs the network's own is largest at c = 0.
    assert correlation_of_norm(1e-12, 1.0, 0.0, 9.0) == pytest.approx((0.0, 1.0), abs=1e-3)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 3])
def test_runs_start_from_the_norm_asked_for_whatever_the_temperature(together):
    asked = [(0.1, 0.02), (1.0, 0.02), (10.0, 0.02), (1.0, 0.5), (10.0, 5.0), (1.0, 0.0)]
    shard = train(
        *({"inverse_temperature": b, "initial_logit_norm": n, "seed": 2} for b, n in asked),
        together=together,
    )
    start = shard.history[shard.history["step"] == 0].set_index("run_id")["logit_norm"]
    np.testing.assert_allclose(start[shard.runs["run_id"]], [n for _, n in asked], atol=1e-7)
    assert (shard.runs["status"] == "finished").all()
    correlations = shard.runs["head_correlation"].tolist()
    # The same norm at a larger factor takes heads that cancel more.
    assert correlations[0] > correlations[1] > correlations[2]
    assert correlations[-1] == -1.0
    assert shard.runs["initial_logit_norm"].tolist() == [n for _, n in asked]


def test_single_precision_starts_far_below_the_networks_own_norm():
    """At 1e-5 of it, 1 + c is less than single precision tells next to c = −1."""
    shard = train(
        {"inverse_temperature": 100.0, "initial_logit_norm": 1e-3, "precision": "float32"},
        num_steps=1,
    )
    assert shard.history["logit_norm"].iloc[0] == pytest.approx(1e-3, rel=0.01)


def test_a_richness_divides_the_logits():
    shard = train(
        {"inverse_temperature": 2.0, "richness": 4.0, "initial_logit_norm": 0.1},
        {"inverse_temperature": 0.5, "richness": 1.0, "initial_logit_norm": 0.1},
    )
    first, second = shard.runs["head_correlation"]
    assert first == pytest.approx(second)


@pytest.mark.parametrize("together", [1, 2])
def test_a_norm_out_of_reach_trains_nothing_and_says_so(together):
    shard = train(
        {"inverse_temperature": 0.01, "initial_logit_norm": 1.0},
        {"inverse_temperature": 1.0, "initial_logit_norm": 0.5},
        together=together,
    )
    assert shard.runs["status"].tolist() == ["unreachable", "finished"]
    assert shard.runs["steps"].tolist() == [0, 6]
    rows = shard.history[shard.history["run_id"] == "run0"]
    # As close as it gets.
    assert rows["step"].tolist() == [0]
    assert 0.001 < rows["logit_norm"].iloc[0] < 1.0
    alone = train({"inverse_temperature": 1.0, "initial_logit_norm": 0.5})
    np.testing.assert_allclose(
        shard.history.loc[shard.history["run_id"] == "run1", "train_loss"],
        alone.history["train_loss"],
        rtol=1e-12,
    )


def test_the_same_run_by_its_norm_and_by_its_correlation():
    by_norm = train({"inverse_temperature": 3.0, "initial_logit_norm": 0.7, "seed": 4})
    correlation = float(by_norm.runs["head_correlation"].iloc[0])
    by_correlation = train({"inverse_temperature": 3.0, "head_correlation": correlation, "seed": 4})
    np.testing.assert_array_equal(
        by_norm.history["train_loss"], by_correlation.history["train_loss"]
    )
    assert by_norm.history["train_loss"].is_monotonic_decreasing


def test_the_logit_norm_is_that_of_the_scaled_logits():
    (run,) = train({"inverse_temperature": 2.5}).history["logit_norm"].iloc[[0]]
    (cold,) = train({"inverse_temperature": 1.0}).history["logit_norm"].iloc[[0]]
    assert run == pytest.approx(2.5 * cold)
    dataset = make_dataset()
    with jax.enable_x64(True):
        network = build_network(complete_run(make_setting()), (5,), 3)
        outputs = network.apply(network.init(jax.random.key(0)), dataset.train_inputs)
    assert cold == pytest.approx(float(np.sqrt(np.mean(np.square(outputs)))))


def test_runs_with_and_without_a_second_head_are_compiled_apart():
    plain, by_norm, by_correlation = (
        complete_run(make_setting(**change))
        for change in ({}, {"initial_logit_norm": 1.0}, {"head_correlation": 0.5})
    )
    assert shape_key(plain) != shape_key(by_norm) == shape_key(by_correlation)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"initial_logit_norm": 1.0, "head_correlation": 0.5}, "initial_logit_norm: 1.0: the norm"),
        ({"initial_logit_norm": 1.0, "centered": True}, "initial_logit_norm null or centered"),
        ({"initial_logit_norm": 1.0, "loss": "mean_squared_error"}, "with loss cross_entropy"),
        ({"initial_logit_norm": 1.0, "precision": "bfloat16"}, "have a second head"),
    ],
)
def test_what_does_not_go_with_a_norm_is_refused(changes, fragment):
    setting = make_setting(**changes)
    with pytest.raises(InputError, match=fragment):
        check_run(setting, Origin("test.yaml", setting, {}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inverse_temperature", 0),
        ("inverse_temperature", -1.0),
        ("initial_logit_norm", -0.1),
        ("initial_logit_norm", "large"),
    ],
)
def test_temperatures_and_norms_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=rf"test.yaml: grid.{name}\[0\]: .*allowed"):
        expand_grid({}, {name: [value]}, "test.yaml")


# --- rates in units of the temperature ------------------------------------------------------------


def test_rates_in_units_of_the_temperature_are_absolute_in_each_run():
    grid = {
        "inverse_temperature": [0.01, 1.0, 3.0],
        "learning_rate": {"relative_to": "temperature", "values": [0.1, 0.3]},
    }
    runs = expand_grid({"loss": "cross_entropy"}, grid, "test.yaml")
    assert [run["learning_rate"] for run in runs] == [10, 30, 0.1, 0.3, 0.0333333333333, 0.1]
    assert {run["learning_rate_relative_to"] for run in runs} == {"absolute"}
    # One that all runs share counts too, and so does a point.
    points = [{"learning_rate": {"relative_to": "temperature", "value": 0.1}}]
    runs = expand_grid({"inverse_temperature": 0.5}, {"points": points}, "test.yaml")
    assert runs[0]["learning_rate"] == 0.2


def test_the_same_rate_in_two_units_is_listed_twice():
    grid = [
        {
            "inverse_temperature": [0.5],
            "learning_rate": {"relative_to": "temperature", "values": [0.1]},
        },
        {"inverse_temperature": [0.5], "learning_rate": [0.2]},
    ]
    with pytest.raises(InputError, match="listed twice"):
        expand_grid({}, grid, "test.yaml")
