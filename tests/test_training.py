"""Training many runs at once against training one at a time in a few lines of numpy."""

import re
import types

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sgdphases import lowering, training
from sgdphases.batches import batch_indices
from sgdphases.datasets.loading import Dataset
from sgdphases.hyperparameters import complete_run
from sgdphases.measurements import measure_runs
from sgdphases.models import build_network
from sgdphases.runs import advance, start_runs
from sgdphases.training import Execution, train_shard

NUM_STEPS = 30
NUM_TRAIN = 24


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


def make_dataset(num_outputs=3, num_train=NUM_TRAIN, num_test=10):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_train + num_test, 5))
    targets = np.eye(num_outputs)[rng.integers(num_outputs, size=len(inputs))]
    if num_outputs == 1:
        targets = rng.normal(size=(len(inputs), 1))
    return Dataset(
        name="test",
        manifest={},
        train_inputs=inputs[:num_train],
        train_targets=targets[:num_train],
        test_inputs=inputs[num_train:],
        test_targets=targets[num_train:],
    )


def make_runs(*changes, **shared):
    return [
        {
            "run_id": f"run {i}",
            **complete_run(
                {
                    "model": "fully_connected",
                    "depth": 3,
                    "width": 6,
                    "activation": "tanh",
                    "parametrisation": "ntk",
                    "weight_scale": 1.4,
                    "learning_rate": 0.5,
                    "learning_rate_relative_to": "absolute",
                    "precision": "float64",
                    "seed": i,
                    **shared,
                    **change,
                }
            ),
        }
        for i, change in enumerate(changes)
    ]


def make_settings(stopping=None, measurements=None, **changes):
    return {
        "experiment": "catapult/test",
        "stopping": stopping or {"num_steps": NUM_STEPS},
        "measurements": measurements or {"dense_until": 4, "every": 10},
        "curvature": {"batch_size": 512, "num_batches": 1, "num_lanczos_steps": 40},
        "evaluation": {},
        "divergence_factor": 1e6,
        "data_seed": 3,
        **changes,
    }


def train(settings, runs, dataset, critical=None, together=1):
    network_ids = [f"network of seed {run['seed']}" for run in runs]
    execution = Execution(lowering={"runs_together": together})
    return train_shard(settings, runs, network_ids, dataset, critical or {}, execution)


def rows_of(table, run):
    return table[table["run_id"] == run["run_id"]].reset_index(drop=True)


# The reference: one run, in numpy, with the derivatives written out.

FUNCTIONS = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}
# In terms of the function's value.
DERIVATIVES = {"relu": lambda a: a > 0, "tanh": lambda a: 1 - a**2}


class Reference:
    def __init__(self, run, dataset):
        self.run, self.dataset = run, dataset
        shape = dataset.train_inputs.shape[1:]
        with jax.enable_x64(True):
            network = build_network(run, shape, dataset.train_targets.shape[1])
            start = network.init(jax.random.key(run["seed"]))
        layers = [start["input"], *start["hidden"], start["readout"]]
        self.start = [{name: np.array(array) for name, array in layer.items()} for layer in layers]

    def scales(self, layer):
        if self.run["parametrisation"] == "standard":
            return 1.0, 1.0
        return self.run["weight_scale"] / np.sqrt(len(layer["weight"])), self.run["bias_scale"]

    def forward(self, layers, inputs):
        activations = [inputs]
        for i, layer in enumerate(layers):
            weight_scale, bias_scale = self.scales(layer)
            z = weight_scale * (activations[-1] @ layer["weight"])
            if "bias" in layer:
                z += bias_scale * layer["bias"]
            is_last = i == len(layers) - 1
            activations.append(z if is_last else FUNCTIONS[self.run["activation"]](z))
        return activations

    def backward(self, layers, activations, error):
        gradients = []
        for layer, before in zip(reversed(layers), reversed(activations[:-1]), strict=True):
            weight_scale, bias_scale = self.scales(layer)
            gradient = {"weight": weight_scale * (before.T @ error)}
            if "bias" in layer:
                gradient["bias"] = bias_scale * error.sum(axis=0)
            gradients.insert(0, gradient)
            derivative = DERIVATIVES[self.run["activation"]](before)
            error = weight_scale * (error @ layer["weight"].T) * derivative
        return gradients

    def measure(self, layers, inputs, targets):
        outputs = self.forward(layers, inputs)[-1]
        loss = np.sum((outputs - targets) ** 2) / (2 * targets.size)
        return loss, np.mean(outputs.argmax(axis=1) == targets.argmax(axis=1))

    def train(self, num_steps, batches=None):
        """The parameters after 0, 1, ..., num_steps steps."""
        run, data = self.run, self.dataset
        layers = self.start
        buffers = [
            {name: np.zeros_like(array) for name, array in layer.items()} for layer in layers
        ]
        states = [layers]
        for step in range(num_steps):
            batch = slice(None) if batches is None else batches[step]
            inputs, targets = data.train_inputs[batch], data.train_targets[batch]
            activations = self.forward(layers, inputs)
            error = (activations[-1] - targets) / targets.size
            gradients = self.backward(layers, activations, error)
            buffers = [
                {
                    name: run["momentum"] * buffer[name]
                    + gradient[name]
                    + run["weight_decay"] * layer[name]
                    for name in layer
                }
                for buffer, gradient, layer in zip(buffers, gradients, layers, strict=True)
            ]
            layers = [
                {name: layer[name] - run["learning_rate"] * buffer[name] for name in layer}
                for buffer, layer in zip(buffers, layers, strict=True)
            ]
            states.append(layers)
        return states

    def top_eigenvalue(self, layers):
        """Of the kernel on all training samples, from the Jacobian row by row."""
        rows = []
        for x in self.dataset.train_inputs:
            activations = self.forward(layers, x[None])
            for error in np.eye(activations[-1].shape[1]):
                gradients = self.backward(layers, activations, error[None])
                rows.append(
                    np.concatenate(
                        [array.ravel() for layer in gradients for array in layer.values()]
                    )
                )
        jacobian = np.array(rows)
        return np.linalg.eigvalsh(jacobian @ jacobian.T)[-1] / len(jacobian)


OPTIMISERS = (
    {"learning_rate": 0.9},
    {"learning_rate": 0.1, "momentum": 0.9},
    {"learning_rate": 0.5, "weight_decay": 0.2},
    {"learning_rate": 0.05, "momentum": 0.5, "weight_decay": 0.3, "seed": 0},
)
RELU, STANDARD, MINIBATCH = (
    {"activation": "relu"},
    {"parametrisation": "standard"},
    {"batch_size": 7},
)
# By name, with the number of runs that take a step together.
SHAPES = {
    "full batch, relu, ntk": (1, {**RELU, "batch_size": NUM_TRAIN}),
    "full batch, tanh, standard, biases": ("all", {**STANDARD, "bias_scale": 0.5}),
    "minibatch, relu, ntk, biases": ("all", {**MINIBATCH, **RELU, "bias_scale": 0.5}),
    "minibatch, tanh, standard": (1, {**MINIBATCH, **STANDARD}),
}


@pytest.fixture(scope="module", params=SHAPES)
def trained(request, dataset):
    """Runs of every optimiser in one shard, beside their references."""
    together, shared = SHAPES[request.param]
    runs = make_runs(*OPTIMISERS, **shared)
    full_batch = runs[0]["batch_size"] >= NUM_TRAIN
    batches = None if full_batch else batch_indices(NUM_TRAIN, 7, 0, NUM_STEPS, seed=3)
    references = [Reference(run, dataset) for run in runs]
    measurements = {"dense_until": 4, "every": 10, "ntk_top_eigenvalue": {"every": 15}}
    shard = train(make_settings(measurements=measurements), runs, dataset, together=together)
    states = [reference.train(NUM_STEPS, batches) for reference in references]
    return types.SimpleNamespace(
        runs=runs, references=references, states=states, shard=shard, dataset=dataset
    )


def test_histories_agree_with_the_reference(trained):
    for run, reference, states in zip(
        trained.runs, trained.references, trained.states, strict=True
    ):
        history = rows_of(trained.shard.history, run)
        assert history["step"].tolist() == [0, 1, 2, 3, 4, 10, 15, 20, 30]
        np.testing.assert_allclose(history["physical_time"], history["step"] * run["learning_rate"])
        for part in ("train", "test"):
            inputs, targets = (
                getattr(trained.dataset, f"{part}_{kind}") for kind in ("inputs", "targets")
            )
            expected = [
                reference.measure(states[step], inputs, targets) for step in history["step"]
            ]
            measured = history[[f"{part}_loss", f"{part}_accuracy"]]
            np.testing.assert_allclose(measured, expected, rtol=1e-10)
        assert history["train_loss"].iloc[-1] < 0.9 * history["train_loss"].iloc[0]


def test_eigenvalues_agree_with_the_reference(trained):
    for run, reference, states in zip(
        trained.runs, trained.references, trained.states, strict=True
    ):
        history = rows_of(trained.shard.history, run)
        measured = history.dropna(subset="ntk_top_eigenvalue")
        assert measured["step"].tolist() == [0, 15, 30]
        expected = [reference.top_eigenvalue(states[step]) for step in measured["step"]]
        np.testing.assert_allclose(measured["ntk_top_eigenvalue"], expected, rtol=1e-6)


def test_run_table_summarises_the_history(trained):
    for run, (_, row) in zip(trained.runs, trained.shard.runs.iterrows(), strict=True):
        history = rows_of(trained.shard.history, run)
        assert row["run_id"] == run["run_id"]
        assert row["status"] == "finished"
        assert row["steps"] == NUM_STEPS
        first, last = history.iloc[0], history.iloc[-1]
        assert row["initial_train_loss"] == first["train_loss"]
        assert row["initial_ntk_top_eigenvalue"] == first["ntk_top_eigenvalue"]
        for name in ("train_loss", "train_accuracy", "test_accuracy", "ntk_top_eigenvalue"):
            assert row[f"final_{name}"] == last[name]
        assert row["max_test_accuracy"] == history["test_accuracy"].max()
        assert row["peak_train_loss"] >= history["train_loss"].max()
        assert row["phase"] in ("lazy", "catapult")
        for name in ("learning_rate", "momentum", "weight_decay", "seed", "activation", "width"):
            assert row[name] == run[name]


def test_peak_is_the_largest_loss_of_any_batch(trained):
    """Between the measurements as well."""
    run, reference, states = trained.runs[1], trained.references[1], trained.states[1]
    data = trained.dataset
    batches = [np.arange(NUM_TRAIN)] * NUM_STEPS
    if run["batch_size"] < NUM_TRAIN:
        batches = batch_indices(NUM_TRAIN, run["batch_size"], 0, NUM_STEPS, seed=3)
    batch_losses = [
        reference.measure(state, data.train_inputs[batch], data.train_targets[batch])[0]
        for state, batch in zip(states[:-1], batches, strict=True)
    ]
    measured = rows_of(trained.shard.history, run)["train_loss"].max()
    expected = max(*batch_losses, measured)
    assert trained.shard.runs["peak_train_loss"][1] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("trained", [next(iter(SHAPES)), list(SHAPES)[2]], indirect=True)
def test_runs_without_momentum_do_not_notice_those_with(trained):
    plain = [run for run in trained.runs if run["momentum"] == 0]
    measurements = {"dense_until": 4, "every": 10, "ntk_top_eigenvalue": {"every": 15}}
    apart = train(make_settings(measurements=measurements), plain, trained.dataset)
    for run in plain:
        pd.testing.assert_frame_equal(
            rows_of(apart.history, run), rows_of(trained.shard.history, run), rtol=1e-12
        )


# Shards.


@pytest.mark.parametrize("size", [1, 7])
def test_a_run_does_not_depend_on_the_size_of_its_shard(size, dataset, shard_of_twenty):
    runs, large = shard_of_twenty
    small = train(make_settings(), runs[20 - size :], dataset)
    for run in runs[20 - size :]:
        pd.testing.assert_frame_equal(
            rows_of(small.history, run), rows_of(large.history, run), rtol=1e-11
        )
        # Other runs may lengthen the program, but not this run.
        some, others = (rows_of(t.runs, run).drop(columns="lowering") for t in (small, large))
        pd.testing.assert_frame_equal(some, others, rtol=1e-11)


@pytest.fixture(scope="module")
def shard_of_twenty(dataset):
    runs = make_runs(*({"learning_rate": 0.05 * (i + 1)} for i in range(20)), batch_size=7)
    return runs, train(make_settings(), runs, dataset)


def test_history_has_one_row_per_run_and_step(shard_of_twenty):
    _, shard = shard_of_twenty
    assert not shard.history.duplicated(["run_id", "step"]).any()
    assert (shard.history.groupby("run_id").size() == 8).all()


def diverging_shard(dataset, *bad, together):
    """Two sound runs around the others; the first rate is beyond all numbers, the second finite."""
    changes = [{"learning_rate": 0.5}, *({"learning_rate": rate} for rate in bad), {"seed": 9}]
    runs = make_runs(*changes, parametrisation="standard", batch_size=7)
    measurements = {"dense_until": 2, "every": 10, "ntk_top_eigenvalue": {"every": 10}}
    settings = make_settings(measurements=measurements)
    return runs, train(settings, runs, dataset, together=together)


@pytest.fixture(scope="module", params=[1, "all"])
def diverged(request, dataset):
    runs, shard = diverging_shard(dataset, 1e300, 30.0, together=request.param)
    _, harmless = diverging_shard(dataset, 0.01, 0.02, together=request.param)
    return runs, shard, harmless


def test_a_diverging_run_leaves_its_neighbours_bit_identical(diverged):
    runs, shard, harmless = diverged
    assert shard.runs["status"].tolist() == ["finished", "diverged", "diverged", "finished"]
    assert (harmless.runs["status"] == "finished").all()
    for i in (0, 3):
        for table in ("history", "runs"):
            pd.testing.assert_frame_equal(
                rows_of(getattr(shard, table), runs[i]),
                rows_of(getattr(harmless, table), runs[i]),
                check_exact=True,
            )


def test_divergence_is_recorded(diverged, dataset):
    runs, shard, _ = diverged
    batches = batch_indices(NUM_TRAIN, 7, 0, NUM_STEPS, seed=3)
    with np.errstate(all="ignore"):
        reference = Reference(runs[2], dataset)
        states = reference.train(NUM_STEPS, batches)
        losses = np.array(
            [
                reference.measure(state, dataset.train_inputs[batch], dataset.train_targets[batch])[
                    0
                ]
                for state, batch in zip(states[:-1], batches, strict=True)
            ]
        )
    expected_steps = int(np.argmax(losses > 1e6 * losses[0]))
    assert 2 < expected_steps < NUM_STEPS
    row = shard.runs.iloc[2]
    assert row["steps"] == expected_steps
    measured = rows_of(shard.history, runs[2])["train_loss"].max()
    peak = max(measured, losses[: expected_steps + 1].max())
    assert row["peak_train_loss"] == pytest.approx(peak, rel=1e-9)
    assert np.isfinite(row[["initial_train_loss", "final_train_loss"]].astype(float)).all()

    beyond = shard.runs.iloc[1]
    assert beyond["steps"] == 1
    assert beyond["peak_train_loss"] == np.inf
    assert (shard.runs["phase"][[1, 2]] == "divergent").all()
    for run, steps in zip(runs, shard.runs["steps"], strict=True):
        history = rows_of(shard.history, run)
        assert history["step"].iloc[-1] == steps
        assert history["step"].is_unique
        assert np.isfinite(
            history.iloc[0][["train_loss", "ntk_top_eigenvalue"]].astype(float)
        ).all()


@pytest.mark.parametrize(("rate", "peak_is_finite"), [(1e300, False), (1e6, True)])
@pytest.mark.parametrize("batch_size", [512, 7])
def test_divergence_by_the_last_update_is_seen(dataset, rate, peak_is_finite, batch_size):
    runs = make_runs({"learning_rate": rate}, {}, batch_size=batch_size)
    shard = train(make_settings({"num_steps": 1}), runs, dataset)
    assert shard.runs["status"].tolist() == ["diverged", "finished"]
    assert shard.runs["steps"].tolist() == [1, 1]
    assert np.isfinite(shard.runs["peak_train_loss"][0]) == peak_is_finite
    assert shard.runs["peak_train_loss"][0] > 1e6 * shard.runs["initial_train_loss"][0]


def test_a_loss_that_is_no_number_has_an_infinite_peak(dataset):
    runs = make_runs({"learning_rate": 1e200}, depth=4, activation="identity")
    shard = train(make_settings({"num_steps": 1}), runs, dataset)
    assert shard.runs["status"].tolist() == ["diverged"]
    assert np.isnan(shard.runs["final_train_loss"][0])
    assert shard.runs["peak_train_loss"][0] == np.inf


# Stopping.


def test_full_batch_runs_stop_at_the_step_that_reaches_the_accuracy(dataset):
    runs = make_runs(*({"learning_rate": rate} for rate in (0.6, 1.5, 1e-6)), seed=4, width=40)
    measurements = {"dense_until": 3, "every": 5, "ntk_top_eigenvalue": {"every": 50}}
    settings = make_settings({"num_steps": 60, "train_accuracy": 0.65}, measurements)
    shard = train(settings, runs, dataset)
    assert shard.runs["status"].tolist() == ["stopped", "stopped", "finished"]
    for run, steps in zip(runs[:2], shard.runs["steps"], strict=False):
        reference = Reference(run, dataset)
        accuracies = [
            reference.measure(state, dataset.train_inputs, dataset.train_targets)[1]
            for state in reference.train(60)
        ]
        assert steps == np.argmax(np.array(accuracies) >= 0.65)
        history = rows_of(shard.history, run)
        scheduled = sorted({*range(4), *range(0, 60, 5)})
        assert history["step"].tolist() == [*(s for s in scheduled if s < steps), steps]
        assert history["train_accuracy"].iloc[-1] >= 0.65
        assert np.isfinite(history["ntk_top_eigenvalue"].iloc[[0, -1]]).all()
        assert history["ntk_top_eigenvalue"].iloc[1:-1].isna().all()


def test_a_run_that_stops_where_it_was_measured_is_recorded_once(dataset):
    """With its curvature, though the schedule asked for none at that step."""
    measurements = {"dense_until": 60, "ntk_top_eigenvalue": {"every": 1000}}
    settings = make_settings({"num_steps": 60, "train_accuracy": 0.65}, measurements)
    runs = make_runs({"learning_rate": 0.6}, {"learning_rate": 1e3}, {}, seed=4, width=40)
    shard = train(settings, runs, dataset)
    assert shard.runs["status"].tolist() == ["stopped", "diverged", "stopped"]
    for run, steps in zip(runs, shard.runs["steps"], strict=True):
        history = rows_of(shard.history, run)
        assert history["step"].tolist() == list(range(steps + 1))
        assert history["ntk_top_eigenvalue"].notna().tolist() == [
            step in (0, steps) for step in range(steps + 1)
        ]


def test_minibatch_runs_stop_at_the_measurement_that_reaches_the_accuracy(dataset):
    runs = make_runs(
        *({"learning_rate": rate} for rate in (0.6, 1.5, 1e-6)), seed=4, width=40, batch_size=7
    )
    settings = make_settings({"num_steps": 60, "train_accuracy": 0.65}, {"every": 4})
    shard = train(settings, runs, dataset)
    assert shard.runs["status"].tolist() == ["stopped", "stopped", "finished"]
    for run, steps in zip(runs[:2], shard.runs["steps"], strict=False):
        history = rows_of(shard.history, run)
        reached = history["train_accuracy"] >= 0.65
        assert history["step"].tolist() == list(range(0, steps + 1, 4))
        assert reached.tolist() == [False] * (len(history) - 1) + [True]


def test_physical_time_and_number_of_steps_end_runs(dataset):
    rates = [1.0, 0.5, 0.3, 0.2]
    runs = make_runs(*({"learning_rate": rate} for rate in rates))
    shard = train(make_settings({"physical_time": 5.0, "num_steps": 20}), runs, dataset)
    assert shard.runs["steps"].tolist() == [5, 10, 17, 20]
    assert (shard.runs["status"] == "finished").all()
    for run, steps in zip(runs, shard.runs["steps"], strict=True):
        history = rows_of(shard.history, run)
        reference = Reference(run, dataset)
        scheduled = (0, 1, 2, 3, 4, 10, 20)
        assert history["step"].tolist() == sorted({*(s for s in scheduled if s < steps), steps})
        assert history["physical_time"].iloc[-1] == pytest.approx(steps * run["learning_rate"])
        loss, _ = reference.measure(
            reference.train(steps)[-1], dataset.train_inputs, dataset.train_targets
        )
        assert rows_of(shard.runs, run)["final_train_loss"][0] == pytest.approx(loss, rel=1e-10)


def test_training_ends_early_when_every_run_has(dataset, monkeypatch):
    calls = []
    original = training.advance

    def count(*arguments):
        calls.append(int(arguments[-1]))  # the number of steps
        assert len(calls) < 10
        return original(*arguments)

    monkeypatch.setattr(training, "advance", count)
    monkeypatch.setattr(training, "is_worth_a_trial", lambda platform, flop: False)
    runs = make_runs({"learning_rate": 1e3}, {"learning_rate": 1e300}, batch_size=7)
    settings = make_settings({"num_steps": 2_000_000_000}, {"dense_until": 1})
    shard = train(settings, runs, dataset)
    assert (shard.runs["status"] == "diverged").all()
    assert sum(calls) < 2000


def test_trials_of_lowerings_measure_steps_and_no_compilation(dataset, monkeypatch, caplog):
    caplog.set_level("INFO", "sgdphases.lowering")
    monkeypatch.setattr(lowering, "_TRIALS", 1)
    monkeypatch.setattr(training, "is_worth_a_trial", lambda platform, flop: True)
    train(make_settings({"num_steps": 20}), make_runs({}, {"learning_rate": 0.1}), dataset)
    times = re.findall(r"lowering .*: (\S+) s per step", caplog.text)
    assert len(times) > 1
    assert all(float(seconds) < 0.05 for seconds in times)


@pytest.mark.parametrize("together", [1, "all"])
def test_ended_runs_end_the_loop_on_the_device(together, dataset):
    """A billion steps of two runs, one of which ends early and one at once, are over at once."""
    some = make_runs({"learning_rate": 1e3}, {"learning_rate": 1e300})
    settings = make_settings({"num_steps": 1_000_000_000}, {"steps": [1_000_000_000]})
    shard = train(settings, some, dataset, together=together)
    assert (shard.runs["status"] == "diverged").all()
    assert (shard.runs["steps"] < 100).all()


def test_each_program_is_compiled_once(dataset):
    """Whatever the lengths of the segments between measurements."""
    programs = {start_runs: 1, advance: 1, measure_runs: 2}
    before = {program: program._cache_size() for program in programs}
    settings = make_settings(
        {"num_steps": 41}, {"points_per_decade": 5, "ntk_top_eigenvalue": {"every": 7}}
    )
    train(settings, make_runs({}, {"learning_rate": 1e3}, width=7, batch_size=5), dataset)
    compiled = {program: program._cache_size() - size for program, size in before.items()}
    assert compiled == programs


def test_relative_learning_rates(dataset):
    runs = make_runs(
        {"learning_rate": 1.5, "learning_rate_relative_to": "critical"},
        {"learning_rate": 0.25, "learning_rate_relative_to": "absolute"},
    )
    critical = {"network of seed 0": 0.4, "network of seed 1": 0.5}
    table = train(make_settings({"num_steps": 1}), runs, dataset, critical).runs
    np.testing.assert_allclose(table["learning_rate"], [0.6, 0.25])
    np.testing.assert_allclose(table["critical_learning_rate"], [0.4, 0.5])
    np.testing.assert_allclose(table["relative_learning_rate"], [1.5, 0.5])


def test_evaluation_on_part_of_the_samples(dataset):
    runs = make_runs({})
    settings = make_settings({"num_steps": 2}, evaluation={"num_train": 6, "num_test": 4})
    history = train(settings, runs, dataset).history
    reference = Reference(runs[0], dataset)
    states = reference.train(2)
    for part, size in (("train", 6), ("test", 4)):
        inputs, targets = (getattr(dataset, f"{part}_{kind}") for kind in ("inputs", "targets"))
        expected = [reference.measure(s, inputs[:size], targets[:size])[0] for s in states]
        np.testing.assert_allclose(history[f"{part}_loss"], expected, rtol=1e-10)


# Tables.

HYPERPARAMETER_TYPES = {
    "float64": (
        "learning_rate",
        "momentum",
        "first_moment_decay",
        "second_moment_decay",
        "epsilon",
        "weight_decay",
        "relative_weight_decay",
        "weight_decay_from",
        "budget_epochs",
        "budget_steps",
        "budget_physical_time",
        "final_learning_rate",
        "final_steps",
        "weight_scale",
        "bias_scale",
        "richness",
        "head_correlation",
        "initial_logit_norm",
        "linearize_at",
        "inverse_temperature",
        "label_shift",
    ),
    "int64": ("seed", "width", "depth", "batch_size", "auto_l2_interval"),
    "bool": ("centered", "zero_readout"),
    "string": (
        "model",
        "activation",
        "parametrisation",
        "loss",
        "loss_normalisation",
        "optimizer",
        "weight_decay_rule",
        "precision",
    ),
}
RUN_TYPES = {
    "string": ("experiment", "run_id", "status", "phase", "lowering"),
    "int64": ("steps", "steps_per_epoch"),
    "float64": (
        "initial_train_loss",
        "peak_train_loss",
        "final_train_loss",
        "final_train_accuracy",
        "final_test_accuracy",
        "max_test_accuracy",
        "time_to_peak",
        "initial_ntk_top_eigenvalue",
        "final_ntk_top_eigenvalue",
        "critical_learning_rate",
        "relative_learning_rate",
    ),
}
HISTORY_TYPES = {
    "string": ("experiment", "run_id"),
    "int64": ("step",),
    "float64": ("physical_time", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
}


def parquet_types(table):
    schema = pa.Table.from_pandas(table, preserve_index=False).schema
    types = {field.name: str(field.type) for field in schema}
    return {
        name: {"double": "float64", "large_string": "string"}.get(kind, kind)
        for name, kind in types.items()
    }


def test_columns_and_their_types(dataset):
    expected_runs = {
        name: kind
        for kinds in (HYPERPARAMETER_TYPES, RUN_TYPES)
        for kind, names in kinds.items()
        for name in names
    }
    expected_history = {name: kind for kind, names in HISTORY_TYPES.items() for name in names}
    # Nothing that is measured is null but one phase.
    settings = make_settings(
        {"num_steps": 2}, {"dense_until": 2, "ntk_top_eigenvalue": {"dense_until": 2}}
    )
    full = train(
        settings,
        make_runs({}, {"weight_decay": 5.0}, bias_scale=0.5, precision="float32"),
        dataset,
        {"network of seed 0": 0.4, "network of seed 1": 0.5},
    )
    assert parquet_types(full.runs) == expected_runs
    assert parquet_types(full.history) == {**expected_history, "ntk_top_eigenvalue": "float64"}
    # All that can be null is.
    bare = train(
        make_settings({"num_steps": 2}), make_runs({}, precision="float32"), make_dataset(1)
    )
    assert parquet_types(bare.runs) == expected_runs
    assert parquet_types(bare.history) == expected_history
    null = bare.runs.columns[bare.runs.isna().all()]
    assert set(null) == {
        "relative_weight_decay",
        "weight_decay_from",
        "budget_epochs",
        "budget_steps",
        "budget_physical_time",
        "final_learning_rate",
        "final_steps",
        "bias_scale",
        "head_correlation",
        "initial_logit_norm",
        "linearize_at",
        "phase",
        "final_train_accuracy",
        "final_test_accuracy",
        "max_test_accuracy",
        "time_to_peak",
        "initial_ntk_top_eigenvalue",
        "final_ntk_top_eigenvalue",
        "critical_learning_rate",
        "relative_learning_rate",
    }
    assert list(bare.runs.columns) == list(full.runs.columns)


def test_runs_have_budgets_and_final_phases_of_their_own(dataset):
    """Some end by steps, others by physical time and a final rate, measured where that begins."""
    schedule = {"kind": "final_rate", "learning_rate": 0.3, "num_steps": 6}
    settings = make_settings({"num_steps": 100}, {"every": 10}, schedule=schedule)
    runs = make_runs(
        {"learning_rate": 0.5, "budget_steps": 15, "final_steps": 0},
        {"learning_rate": 0.5, "budget_physical_time": 6.0},
        {"learning_rate": 0.25, "budget_physical_time": 6.0, "final_learning_rate": 0.1},
        {"learning_rate": 0.5, "budget_steps": 20, "final_steps": 3},
        seed=4,
    )
    shard = train(settings, runs, dataset, together="all")
    assert shard.runs["steps"].tolist() == [15, 12 + 6, 24 + 6, 20 + 3]
    assert shard.runs["final_steps"].tolist() == [0, 6, 6, 3]
    assert shard.runs["final_learning_rate"].tolist() == [0.3, 0.3, 0.1, 0.3]
    phases = [(15, 0, 0.3), (12, 6, 0.3), (24, 6, 0.1), (20, 3, 0.3)]
    for run, (base, final, rate) in zip(runs, phases, strict=True):
        history = rows_of(shard.history, run)
        end = base + final
        assert history["step"].tolist() == sorted({*range(0, end, 10), base, end})
        time = run["learning_rate"] * base + rate * final
        assert history["physical_time"].iloc[-1] == pytest.approx(time)
        reference = Reference(run, dataset)
        states = reference.train(base)
        reference.start, reference.run = states[-1], {**run, "learning_rate": rate}
        states += reference.train(final)[1:]
        losses = [
            reference.measure(states[step], dataset.train_inputs, dataset.train_targets)[0]
            for step in history["step"]
        ]
        np.testing.assert_allclose(history["train_loss"], losses, rtol=1e-9)
