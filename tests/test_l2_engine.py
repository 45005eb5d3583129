"""What the L2 paper needs of the engine: predicted weight decays and measurements of the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.datasets.loading import Dataset
from sgdphases.errors import InputError
from sgdphases.hyperparameters import complete_run
from sgdphases.models import build_network
from sgdphases.training import Execution, train_shard

SAMPLES, FEATURES = 12, 5


def make_dataset(num_outputs=1):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES + 4, FEATURES))
    targets = rng.choice([-1.0, 1.0], size=(SAMPLES + 4, num_outputs))
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
        "loss_normalisation": "sum",
        "batch_size": 4,
        "learning_rate": 0.01,
        "precision": "float64",
        "learning_rate_relative_to": "absolute",
        **changes,
    }
    return {"run_id": name, **complete_run(setting)}


def train(runs, dataset=None, time_constants=None, **changes):
    settings = {
        "experiment": "l2/test",
        "stopping": {"epochs": 4.0},
        "measurements": {"every": 3},
        "curvature": None,
        "evaluation": {},
        "divergence_factor": 1e6,
        "data_seed": 0,
        **changes,
    }
    ids = [""] * len(runs)
    dataset = dataset or make_dataset()
    return train_shard(settings, runs, ids, dataset, {}, Execution(), time_constants)


def test_a_predicted_weight_decay_trains_as_the_same_absolute_one():
    relative = make_run(
        "relative", weight_decay=2.0, weight_decay_from="l2/estimate", budget_epochs=2.0
    )
    absolute = make_run("absolute", weight_decay=0.5, budget_epochs=2.0)
    longer = make_run("longer", weight_decay=0.5)
    shard = train([relative, absolute, longer], time_constants={"l2/estimate": 0.5})
    runs = shard.runs.set_index("run_id")
    assert runs["weight_decay"].tolist() == [0.5] * 3
    assert runs["relative_weight_decay"].fillna(-1).tolist() == [2.0, -1, -1]
    assert runs["steps"].tolist() == [6, 6, 12]
    assert (runs["steps_per_epoch"] == 3).all()
    losses = shard.history.pivot_table("train_loss", index="step", columns="run_id")
    np.testing.assert_array_equal(losses["relative"].dropna(), losses["absolute"].dropna())
    assert losses["longer"].iloc[:3].tolist() == losses["absolute"].iloc[:3].tolist()


def jacobian_gram(run, dataset):
    hyperparameters = {k: v for k, v in run.items() if k != "run_id"}
    network = build_network(hyperparameters, (FEATURES,), 1)
    with jax.enable_x64(True):
        parameters = network.init(jax.random.key(run["seed"]))
        inputs = jnp.asarray(dataset.train_inputs)
        jacobian = jax.jacobian(lambda p: network.apply(p, inputs)[:, 0])(parameters)
        flat = np.concatenate(
            [np.asarray(leaf).reshape(SAMPLES, -1) for leaf in jax.tree.leaves(jacobian)], axis=1
        )
        return flat @ flat.T, np.asarray(network.apply(parameters, inputs))[:, 0]


def test_the_modes_of_a_kernel_are_its_eigenvectors():
    dataset, run = make_dataset(), make_run()
    measurements = {"every": 3, "kernel_modes": {"steps": [0], "num_samples": SAMPLES}}
    history = train([run], dataset, measurements=measurements).history
    start = history.iloc[0]
    gram, outputs = jacobian_gram(run, dataset)
    eigenvalues = np.linalg.eigvalsh(gram)[::-1]
    np.testing.assert_allclose(start["kernel_mode_eigenvalues"], eigenvalues, atol=1e-9)
    # Projections on eigenvectors give back quadratic forms, whatever the signs.
    for name, vector in (("targets", dataset.train_targets[:, 0]), ("outputs", outputs)):
        projections = np.asarray(start[f"kernel_mode_{name}"])
        np.testing.assert_allclose(
            projections**2 @ np.asarray(start["kernel_mode_eigenvalues"]), vector @ gram @ vector
        )
        assert np.linalg.norm(projections) == pytest.approx(np.linalg.norm(vector))


def test_kernel_modes_are_of_a_single_output():
    with pytest.raises(InputError, match=r"measurements\.kernel_modes: the network has several"):
        train([make_run()], make_dataset(2), measurements={"kernel_modes": {"num_samples": 4}})


@pytest.mark.parametrize("depth", [2, 3])
def test_a_relu_network_is_homogeneous_before_and_after_training(depth):
    measurements = {"every": 12, "homogeneity": {"num_samples": 4}}
    history = train([make_run(depth=depth)], measurements=measurements).history
    np.testing.assert_allclose(history["measured_degree"], depth, rtol=1e-12)
    for order in (0, 1, 2):
        assert (history[f"homogeneity_deviation_{order}"] < 1e-10).all()


def test_a_network_with_biases_is_not_homogeneous():
    measurements = {"every": 12, "homogeneity": {"num_samples": 4}}
    run = make_run(bias_scale=1.0)
    history = train([run], measurements=measurements).history
    assert (history["homogeneity_deviation_1"] > 1e-3).all()
