"""What the temperature paper needs of the engine."""

import numpy as np
import pytest

from sgdphases.config import network_of
from sgdphases.curvature import critical_learning_rates, measure_networks
from sgdphases.datasets.loading import Dataset
from sgdphases.hyperparameters import complete_run
from sgdphases.training import Execution, train_shard

SAMPLES, FEATURES, CLASSES = 12, 5, 3
SETTINGS = {
    "experiment": "temperature/test",
    "stopping": {"num_steps": 20},
    "measurements": {"every": 5, "weight_movement": {"every": 5}},
    "curvature": {"batch_size": SAMPLES, "num_batches": 1, "num_lanczos_steps": 40},
    "evaluation": {},
    "divergence_factor": 1e6,
    "data_seed": 0,
}


def make_dataset():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES + 4, FEATURES))
    targets = np.eye(CLASSES)[rng.integers(0, CLASSES, SAMPLES + 4)]
    return Dataset(
        name="test",
        manifest={},
        train_inputs=inputs[:SAMPLES],
        train_targets=targets[:SAMPLES],
        test_inputs=inputs[SAMPLES:],
        test_targets=targets[SAMPLES:],
    )


def make_run(name="run", **changes):
    setting = {
        "model": "fully_connected",
        "depth": 3,
        "width": 8,
        "loss": "cross_entropy",
        "batch_size": SAMPLES,
        "learning_rate": 0.3,
        "precision": "float64",
        "learning_rate_relative_to": "absolute",
        **changes,
    }
    return {"run_id": name, **complete_run(setting)}


def train(runs, **changes):
    ids = [""] * len(runs)
    return train_shard({**SETTINGS, **changes}, runs, ids, make_dataset(), {}, Execution())


@pytest.mark.parametrize("inverse_temperature", [0.125, 1.0, 16.0])
@pytest.mark.parametrize(
    "network",
    [
        {"parametrisation": "mup", "centered": True, "momentum": 0.5},
        {"parametrisation": "ntk", "head_correlation": -0.3, "batch_size": 4},
    ],
    ids=["centered", "second head"],
)
def test_an_inverse_temperature_is_one_over_a_richness(network, inverse_temperature):
    """β multiplies the outputs that γ divides: both descriptions are the same run."""
    rate = 0.3 / inverse_temperature
    hot = make_run("hot", **network, learning_rate=rate, inverse_temperature=inverse_temperature)
    rich = make_run("rich", **network, learning_rate=rate, richness=1 / inverse_temperature)
    history = train([hot, rich]).history.drop(columns="experiment")
    columns = ["run_id", "step"]
    one, other = (history[history["run_id"] == n].drop(columns=columns) for n in ("hot", "rich"))
    assert len(one) == 5
    assert one["weight_movement_frobenius_input"].iloc[-1] > 1e-3
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_both_have_the_same_critical_learning_rate():
    runs = [make_run(inverse_temperature=8.0), make_run(richness=0.125)]
    networks = [{"network_id": str(i), **network_of(run)} for i, run in enumerate(runs)]
    rates = critical_learning_rates(measure_networks(SETTINGS, networks, make_dataset()))
    assert rates["0"] == pytest.approx(rates["1"], rel=1e-9)
    alone = {"network_id": "2", **network_of(make_run())}
    (rate,) = critical_learning_rates(measure_networks(SETTINGS, [alone], make_dataset())).values()
    assert rates["0"] == pytest.approx(rate / 64, rel=1e-9)


def test_both_are_computed_in_double_precision_alike():
    for changes in ({"inverse_temperature": 2000.0}, {"richness": 5e-4}):
        assert make_run(precision=None, **changes)["precision"] == "float64"
    assert make_run(precision=None, inverse_temperature=100.0)["precision"] == "float32"
