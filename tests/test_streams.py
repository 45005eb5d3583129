"""Generated data: single-index streams, drawn afresh at every step, and Gaussian mixtures."""

import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from sgdphases.batches import open_batches
from sgdphases.datasets import load, load_definition, prepare, verify
from sgdphases.devices import replicated_sharding, run_mesh
from sgdphases.errors import InputError
from sgdphases.interruption import Interrupted
from sgdphases.models import build_network
from sgdphases.training import _Trainer
from test_engine import make_run, make_settings, rows_of, train

CONFIG_DIR = Path(__file__).parents[1] / "config" / "datasets"
SEED, BATCH, DIM = 3, 16, 8


def definition(link_power=2, **changes):
    counts = {"num_train": 50, "num_test": 40}
    return {
        "source": "single_index",
        "input_dim": DIM,
        "link_power": link_power,
        "seed": 1,
        **counts,
        **changes,
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folders = {}
    for power in (2, 3):
        folders[power] = tmp_path_factory.mktemp("streams") / f"power_{power}"
        prepare(f"power_{power}", definition(power), folders[power], None)
        verify(folders[power])
    return folders


def draw(dataset, num_steps, *, first=0, batch=BATCH, seed=SEED, dtype=np.float32, rows=None):
    sizes = {} if rows is None else {"block_bytes": rows * batch * (DIM + 1) * 4}
    inputs, targets, step = [], [], first
    with open_batches(dataset, batch, seed, dtype, **sizes) as source:
        assert source.kind == "generated"
        assert not source.is_full_batch
        while step < first + num_steps:
            segment = source.segment(step, first + num_steps - step)
            part = slice(segment.first_row, segment.first_row + segment.num_steps)
            inputs.append(np.asarray(segment.inputs[part]))
            targets.append(np.asarray(segment.targets[part]))
            step += segment.num_steps
    return np.concatenate(inputs), np.concatenate(targets)


# --- single index ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quadratic", "cubic"])
def test_fixed_samples_follow_the_model(name, tmp_path):
    prepare("it", load_definition(CONFIG_DIR / f"single_index_{name}.yaml"), tmp_path / "it", None)
    dataset = load(tmp_path / "it", dtype=np.float64)
    stream = json.loads((tmp_path / "it/manifest.json").read_text())["stream"]
    direction = np.array(stream["direction"])
    assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-14)
    power, factor = {"quadratic": (2, 1.0), "cubic": (3, 0.1)}[name]
    for inputs, targets in (
        (dataset.train_inputs, dataset.train_targets),
        (dataset.test_inputs, dataset.test_targets),
    ):
        expected = factor * (inputs @ direction) ** power
        np.testing.assert_allclose(targets[:, 0], expected, atol=1e-12)
    assert not np.isin(dataset.test_inputs[:, 0], dataset.train_inputs[:, 0]).any()
    assert dataset.manifest["task"] == "regression"


def test_more_samples_keep_the_model_and_those_before(prepared, tmp_path):
    prepare("more", definition(num_train=60, num_test=41), tmp_path / "more", None)
    more, less = load(tmp_path / "more"), load(prepared[2])
    np.testing.assert_array_equal(more.stream.direction, less.stream.direction)
    np.testing.assert_array_equal(more.train_inputs[:50], less.train_inputs)
    np.testing.assert_array_equal(more.test_inputs[:40], less.test_inputs)


@pytest.mark.parametrize("power", [2, 3])
def test_moments_of_fresh_samples(prepared, power):
    dataset = load(prepared[power])
    inputs, targets = draw(dataset, 400, batch=250)
    flat = inputs.reshape(-1, DIM).astype(np.float64)
    count = len(flat)
    assert count == 100_000  # in batches of more than are stored
    assert len(np.unique(flat[:, 0] + 1j * flat[:, 1])) == count
    # Five standard errors of each.
    np.testing.assert_allclose(flat.mean(0), 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(flat.T @ flat / count, np.eye(DIM), atol=5 * np.sqrt(2 / count))
    np.testing.assert_allclose((flat**4).mean(), 3, atol=5 * np.sqrt(96 / flat.size))
    # Of z²: mean 1, variance 2; of 0.1 z³: mean 0, variance 0.15, fourth moment 10395e-4.
    mean, variance, spread = {2: (1, 2, 56), 3: (0, 0.15, 1.0395 - 0.15**2)}[power]
    values = targets.reshape(-1).astype(np.float64)
    assert abs(values.mean() - mean) < 5 * np.sqrt(variance / count)
    assert abs(values.var() - variance) < 5 * np.sqrt(spread / count)
    expected = dataset.stream.targets(flat)
    np.testing.assert_allclose(values, expected[:, 0], rtol=1e-4, atol=1e-5)


def test_batches_depend_on_seed_and_step_alone(prepared):
    dataset = load(prepared[2])
    inputs, targets = draw(dataset, 30)
    for first in (0, 12):
        other_inputs, other_targets = draw(dataset, 30 - first, first=first, rows=7)
        np.testing.assert_array_equal(other_inputs, inputs[first:])
        np.testing.assert_array_equal(other_targets, targets[first:])
    # Of what is stored, in which precision it is trained on: nothing.
    wide = load(prepared[2], {"num_test": 1}, np.float64)
    wide_inputs, wide_targets = draw(wide, 30, dtype=np.float64)
    np.testing.assert_array_equal(wide_inputs, inputs)
    np.testing.assert_allclose(
        wide_targets, wide.stream.targets(wide_inputs.reshape(-1, DIM)).reshape(30, BATCH, 1)
    )
    assert not np.isin(draw(dataset, 30, seed=SEED + 1)[0], inputs).all(-1).any()


NUM_STEPS = 60
RATE = 0.02


@pytest.fixture(scope="module")
def job(prepared):
    """Linear networks on fresh samples, and what nothing disturbed made of them."""
    shared = {
        "depth": 2,
        "width": 6,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "activation": "identity",
    }
    runs = [
        make_run(f"run {i}", "fully_connected", parametrisation="standard", **shared, seed=i)
        for i in range(2)
    ]
    dataset = load(prepared[3], dtype=np.float64)
    settings = make_settings(NUM_STEPS, measurements={"every": 20})
    return runs, dataset, settings, train(runs, dataset, settings)


def test_training_takes_the_batches_of_its_steps(job):
    """By hand, on the batches that only the stream knows."""
    runs, dataset, _, shard = job
    inputs, targets = draw(dataset, NUM_STEPS, dtype=np.float64)
    for run in runs:
        with jax.enable_x64(True):
            start = build_network(run, (DIM,), 1).init(jax.random.key(run["seed"]))
        first, second = (np.asarray(start[name]["weight"]) for name in ("input", "readout"))
        losses = []
        for step in range(NUM_STEPS + 1):
            if step % 20 == 0:
                error = dataset.train_inputs @ first @ second - dataset.train_targets
                losses.append((error**2).mean() / 2)
            if step < NUM_STEPS:
                residual = (inputs[step] @ first @ second - targets[step]) / BATCH
                of_first = inputs[step].T @ residual @ second.T
                of_second = (inputs[step] @ first).T @ residual
                first, second = first - RATE * of_first, second - RATE * of_second
        found = rows_of(shard.history, run)["train_loss"]
        np.testing.assert_allclose(found, losses, rtol=1e-9)
        assert losses[-1] < losses[0]


def test_a_resumed_run_equals_an_uninterrupted_one(job, tmp_path, monkeypatch):
    runs, dataset, settings, whole = job
    advance = _Trainer.advance

    def interrupt(self, states, segment):
        if segment.first_row + segment.num_steps > 30:
            self.interruption.request()
        return advance(self, states, segment)

    monkeypatch.setattr(_Trainer, "advance", interrupt)
    with pytest.raises(Interrupted) as caught:
        train(runs, dataset, settings, checkpoint_folder=tmp_path)
    assert caught.value.saved
    assert 30 < caught.value.step < NUM_STEPS
    monkeypatch.undo()
    resumed = train(runs, dataset, settings, checkpoint_folder=tmp_path)
    pd.testing.assert_frame_equal(resumed.runs, whole.runs, check_exact=True)
    pd.testing.assert_frame_equal(resumed.history, whole.history, check_exact=True)


def test_epochs_of_a_stream_are_refused(prepared):
    settings = make_settings(stopping={"epochs": 1, "num_steps": 5})
    with pytest.raises(InputError, match=r"stopping\.epochs.*'power_2' has no end.*num_steps"):
        train(
            [make_run("run", "fully_connected", learning_rate=0.1)],
            load(prepared[2], dtype=np.float64),
            settings,
        )


def test_several_devices_draw_the_same(prepared):
    everywhere = replicated_sharding(run_mesh(2))
    segments = []
    for sharding in (None, everywhere):
        options = {"last_step": 6, "sharding": sharding}
        with open_batches(load(prepared[2]), BATCH, SEED, np.float32, **options) as source:
            segments.append(source.segment(0, 6))
    for one, other in zip(*(segment[:2] for segment in segments), strict=True):
        assert len(other.addressable_shards) == 2
        assert other.sharding.is_fully_replicated
        for shard in other.addressable_shards:
            np.testing.assert_array_equal(shard.data, one)


# --- Gaussian mixture ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{"input_dim": 12}, {"input_shape": [2, 3, 2]}])
def test_gaussian_mixture(tmp_path, shape):
    wanted = {
        "source": "gaussian_mixture",
        "num_classes": 3,
        "separation": 5.0,
        "num_train": 30_000,
        "num_test": 300,
        "seed": 4,
        **shape,
    }
    prepare("mixture", wanted, tmp_path / "mixture", None)
    dataset = load(tmp_path / "mixture", dtype=np.float64)
    assert dataset.input_shape == tuple(shape.get("input_shape", (12,)))
    assert dataset.manifest["class_balance"] == {"train": [10_000] * 3, "test": [100] * 3}
    assert "stand-in" in dataset.manifest["origin"]["description"]
    inputs, labels = dataset.train_inputs.reshape(-1, 12), dataset.train_labels
    means = np.stack([inputs[labels == name].mean(0) for name in range(3)])
    distances = np.linalg.norm(means[:, None] - means, axis=-1)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(distances, 5.0, atol=0.1)
    rest = inputs - means[labels]
    np.testing.assert_allclose(rest.T @ rest / len(rest), np.eye(12), atol=5 * np.sqrt(2 / 30_000))
    # Each test sample is nearest to its own class's mean, but for the tail at 2.5 deviations.
    test = dataset.test_inputs.reshape(-1, 12)
    nearest = np.linalg.norm(test[:, None] - means, axis=-1).argmin(1)
    assert (nearest == dataset.test_labels).mean() > 0.95


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_dim": 0}, ["input_dim", "0", ">= 1"]),
        ({"link_power": 4}, ["link_power", "4", "2 for y"]),
        ({"link_power": None}, ["link_power", "None"]),
        ({"seed": -1}, ["seed", "-1", ">= 0"]),
        ({"normalisation": "standardise"}, ["'normalisation'", "allowed"]),
        ({"source": "gaussian_mixture", "link_power": 2}, ["'link_power'"]),
    ],
)
def test_faulty_single_index(changes, says):
    with pytest.raises(InputError) as caught:
        prepare("it", {**definition(), **changes}, Path("never"), None)
    for part in says:
        assert part in str(caught.value)
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_dim": 3}, ["num_classes: 4", "at most", "3"]),
        ({}, ["input_dim, input_shape: neither"]),
        ({"input_dim": 9, "input_shape": [3, 3, 1]}, ["input_dim, input_shape: both"]),
        ({"input_shape": [3, 3]}, ["input_shape", "[height, width, channels]"]),
        ({"input_dim": 9, "separation": -1.0}, ["separation", "-1.0", ">= 0"]),
    ],
)
def test_faulty_gaussian_mixture(changes, says):
    counts = {"num_train": 8, "num_test": 8, "seed": 0}
    good = {"source": "gaussian_mixture", "num_classes": 4, "separation": 1.0, **counts}
    with pytest.raises(InputError) as caught:
        prepare("it", {**good, **changes}, Path("never"), None)
    for part in says:
        assert part in str(caught.value)
