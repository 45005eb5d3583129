"""The top NTK eigenvalue against dense matrices, closed forms and a second library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

from sgdphases.curvature import (
    critical_learning_rates,
    measure_networks,
    ntk_product,
    ntk_top_eigenvalue,
    probe_indices,
)
from sgdphases.datasets.loading import Dataset
from sgdphases.losses import mean_squared_error
from sgdphases.models import build_network

HYPERPARAMETERS = {
    "model": "fully_connected",
    "depth": 3,
    "width": 8,
    "activation": "tanh",
    "parametrisation": "ntk",
    "weight_scale": 1.3,
    "bias_scale": None,
    "loss": "mean_squared_error",
    "precision": "float64",
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def make_network(inputs, num_outputs=3, seed=0, **changes):
    network = build_network({**HYPERPARAMETERS, **changes}, inputs.shape[1:], num_outputs)
    return network, network.init(jax.random.key(seed))


def make_inputs(num_samples=6, num_features=5, seed=0):
    return np.random.default_rng(seed).normal(size=(num_samples, num_features))


def dense_jacobian(network, parameters, inputs):
    """(k|B|, parameters) derivatives of all outputs by all parameters."""
    tree = jax.jacobian(lambda p: network.apply(p, inputs).ravel())(parameters)
    columns = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(columns, axis=1)


def dense_kernel(network, parameters, inputs):
    jacobian = dense_jacobian(network, parameters, inputs).astype(np.float64)
    return jacobian @ jacobian.T / len(jacobian)


def top_eigenvalue(network, parameters, inputs, num_lanczos_steps=30):
    measure = jax.jit(
        lambda p: ntk_top_eigenvalue(network.apply, p, jnp.asarray(inputs), num_lanczos_steps)
    )
    return float(measure(parameters))


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 2, "activation": "relu", "parametrisation": "ntk", "bias_scale": None},
        {"depth": 2, "activation": "tanh", "parametrisation": "standard", "bias_scale": 0.5},
        {"depth": 3, "activation": "relu", "parametrisation": "standard", "bias_scale": 0.5},
        {"depth": 3, "activation": "identity", "parametrisation": "standard", "bias_scale": None},
        {"depth": 4, "activation": "tanh", "parametrisation": "ntk", "bias_scale": 0.5},
        {"depth": 4, "activation": "relu", "parametrisation": "ntk", "bias_scale": 0.5},
        {"depth": 4, "activation": "identity", "parametrisation": "ntk", "bias_scale": 0.5},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_agrees_with_the_dense_kernel(changes):
    inputs = make_inputs(20)
    network, parameters = make_network(inputs, **changes)
    kernel = dense_kernel(network, parameters, inputs)
    vector = np.random.default_rng(1).normal(size=(20, 3))
    product = ntk_product(network.apply, parameters, inputs)(jnp.asarray(vector))
    np.testing.assert_allclose(product.ravel(), kernel @ vector.ravel(), rtol=1e-11, atol=1e-12)
    expected = np.linalg.eigvalsh(kernel)[-1]
    assert top_eigenvalue(network, parameters, inputs) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [3, 50])
def test_warm_up_model(width):
    """One input x = 1 and two linear layers: λ = (‖u‖² + ‖v‖²)/n."""
    inputs = np.ones((1, 1))
    network, parameters = make_network(
        inputs, 1, depth=2, width=width, activation="identity", weight_scale=1.0
    )
    expected = sum(float(np.sum(layer["weight"] ** 2)) for layer in parameters) / width
    assert top_eigenvalue(network, parameters, inputs) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bias_scale", [None, 0.5])
def test_non_zero_spectrum_is_that_of_the_gauss_newton_matrix(bias_scale):
    """Claim CAT-43."""
    inputs = make_inputs(4)
    network, parameters = make_network(inputs, 2, bias_scale=bias_scale)
    jacobian = dense_jacobian(network, parameters, inputs)
    kernel = dense_kernel(network, parameters, inputs)
    spectrum = np.linalg.eigvalsh(jacobian.T @ jacobian / len(jacobian))
    np.testing.assert_allclose(spectrum[-8:], np.linalg.eigvalsh(kernel), rtol=1e-8)
    np.testing.assert_allclose(spectrum[:-8], 0, atol=1e-12)
    assert top_eigenvalue(network, parameters, inputs) == pytest.approx(spectrum[-1], rel=1e-8)


# Kernels whose Krylov space is exhausted before the Lanczos steps are.
DEFICIENT = {
    "one distinct input": (np.repeat(make_inputs(1), 20, axis=0), {"activation": "relu"}),
    "three distinct inputs": (np.repeat(make_inputs(3), 7, axis=0), {}),
    "linear in two dimensions": (make_inputs(20, 2), {"activation": "identity"}),
}


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("name", DEFICIENT)
def test_kernels_of_low_rank(name, precision, tolerance):
    inputs, changes = DEFICIENT[name]
    inputs = jnp.asarray(inputs, precision)
    network, _ = make_network(inputs, precision=precision, **changes)
    measure = jax.jit(lambda p: ntk_top_eigenvalue(network.apply, p, inputs, 30))
    for seed in range(4):
        parameters = network.init(jax.random.key(seed))
        expected = np.linalg.eigvalsh(dense_kernel(network, parameters, inputs))[-1]
        assert float(measure(parameters)) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("num_lanczos_steps", [1, 12])
def test_zero_kernel(num_lanczos_steps):
    inputs = np.zeros((6, 5))
    network, parameters = make_network(inputs)
    assert top_eigenvalue(network, parameters, inputs, num_lanczos_steps) == 0.0


@pytest.mark.parametrize(("num_samples", "num_outputs"), [(1, 1), (2, 2)])
def test_kernels_smaller_than_the_number_of_lanczos_steps(num_samples, num_outputs):
    inputs = make_inputs(num_samples)
    network, parameters = make_network(inputs, num_outputs)
    expected = np.linalg.eigvalsh(dense_kernel(network, parameters, inputs))[-1]
    assert top_eigenvalue(network, parameters, inputs) == pytest.approx(expected, rel=1e-10)


def test_broken_parameters_give_nan():
    """A wrong finite number would pass for a measurement."""
    inputs = jnp.asarray(make_inputs(), "float32")
    network, parameters = make_network(inputs, activation="identity", precision="float32")
    measure = jax.jit(lambda p: ntk_top_eigenvalue(network.apply, p, inputs, 8))
    # The kernel of the last is finite, but the squared norm of a Lanczos vector is not.
    for factor in (np.nan, np.inf, 1e12):
        broken = jax.tree.map(lambda p, f=factor: f * p, parameters)
        assert np.isnan(float(measure(broken)))
    one_layer = [*parameters[:-1], {"weight": parameters[-1]["weight"].at[0, 0].set(np.nan)}]
    assert np.isnan(float(measure(one_layer)))


@pytest.mark.parametrize("num_samples", [10, 40])
def test_agrees_with_scipy_on_the_same_operator(num_samples):
    inputs = make_inputs(num_samples)
    network, parameters = make_network(inputs, activation="relu", depth=4, bias_scale=0.1)
    product = jax.jit(ntk_product(network.apply, parameters, jnp.asarray(inputs)))
    operator = LinearOperator(
        (3 * num_samples,) * 2,
        matvec=lambda vector: np.asarray(product(vector.reshape(-1, 3))).ravel(),
        dtype=np.float64,
    )
    expected = eigsh(operator, k=1, which="LA", tol=1e-12, return_eigenvectors=False)[0]
    assert top_eigenvalue(network, parameters, inputs) == pytest.approx(expected, rel=1e-8)


def test_critical_rate_is_where_the_linearised_network_turns_unstable():
    inputs, targets = make_inputs(6), make_inputs(6, 3, seed=1)
    network, parameters = make_network(inputs)
    jacobian = dense_jacobian(network, parameters, inputs)
    start = np.asarray(network.apply(parameters, inputs))
    critical = 2 / top_eigenvalue(network, parameters, inputs)
    loss_gradient = jax.jit(jax.grad(mean_squared_error))

    def distance_after(learning_rate, num_steps=300):
        shift = np.zeros(jacobian.shape[1])
        for _ in range(num_steps):
            outputs = start + (jacobian @ shift).reshape(start.shape)
            shift -= (
                learning_rate * jacobian.T @ np.asarray(loss_gradient(outputs, targets)).ravel()
            )
        residual = (start - targets).ravel() + jacobian @ shift
        top = np.linalg.eigh(jacobian @ jacobian.T)[1][:, -1]
        return abs(top @ residual) / abs(top @ (start - targets).ravel())

    # Along the top direction the error shrinks or grows by |1 - ηλ₀| a step.
    assert distance_after(0.99 * critical) == pytest.approx(0.98**300, rel=1e-3)
    assert distance_after(1.01 * critical) == pytest.approx(1.02**300, rel=1e-3)


# Measuring the networks of an experiment.


def make_dataset(num_train=12):
    return Dataset(
        name="test",
        manifest={},
        train_inputs=make_inputs(num_train).astype(np.float32),
        train_targets=np.eye(3, dtype=np.float32)[np.arange(num_train) % 3],
        test_inputs=make_inputs(2),
        test_targets=np.eye(3)[:2],
    )


def make_settings(batch_size=8, num_batches=3):
    return {
        "experiment": "catapult/test",
        "data_seed": 0,
        "curvature": {
            "batch_size": batch_size,
            "num_batches": num_batches,
            "num_lanczos_steps": 24,
        },
    }


def make_networks(*seeds, **changes):
    return [
        {**HYPERPARAMETERS, "network_id": f"n{seed}", "seed": seed, **changes} for seed in seeds
    ]


def test_measure_networks():
    dataset, settings = make_dataset(), make_settings()
    networks = [*make_networks(0, 5), *make_networks(6, width=9, precision="float32")]
    table = measure_networks(settings, networks, dataset)
    assert list(table["network_id"]) == ["n0"] * 3 + ["n5"] * 3 + ["n6"] * 3
    assert list(table["batch"]) == [0, 1, 2] * 3
    assert table["ntk_top_eigenvalue"].dtype == np.float64
    np.testing.assert_allclose(table["critical_learning_rate"], 2 / table["ntk_top_eigenvalue"])
    indices = probe_indices(12, 8, 3, 0)
    for _, row in table.iterrows():
        inputs = jnp.asarray(dataset.train_inputs[indices[row["batch"]]], row["precision"])
        changes = {name: row[name] for name in ("width", "precision", "seed")}
        with jax.enable_x64(row["precision"] == "float64"):
            network, parameters = make_network(inputs, **changes)
            expected = np.linalg.eigvalsh(dense_kernel(network, parameters, inputs))[-1]
        tolerance = 1e-6 if row["precision"] == "float64" else 1e-5
        assert row["ntk_top_eigenvalue"] == pytest.approx(expected, rel=tolerance)

    critical = critical_learning_rates(table)
    assert critical.keys() == {"n0", "n5", "n6"}
    mean = table.loc[table["network_id"] == "n5", "ntk_top_eigenvalue"].mean()
    assert critical["n5"] == pytest.approx(2 / mean)


def test_a_network_is_measured_the_same_in_any_company():
    dataset, settings = make_dataset(), make_settings(num_batches=2)
    together = measure_networks(settings, make_networks(0, 5, 2), dataset)
    alone = measure_networks(settings, make_networks(5), dataset)
    np.testing.assert_array_equal(
        together.loc[together["network_id"] == "n5", "ntk_top_eigenvalue"],
        alone["ntk_top_eigenvalue"],
    )


def test_a_network_without_curvature_has_no_finite_critical_rate():
    dataset = make_dataset()
    dataset.train_inputs[:] = 0
    table = measure_networks(make_settings(num_batches=1), make_networks(0), dataset)
    assert table["ntk_top_eigenvalue"].tolist() == [0.0]
    assert table["critical_learning_rate"].tolist() == [np.inf]
    assert critical_learning_rates(table) == {"n0": np.inf}


def test_probe_batches():
    batches = probe_indices(100, 30, 4, seed=3)
    assert batches.shape == (4, 30)
    assert all(len(set(batch)) == 30 for batch in batches)
    assert len({tuple(batch) for batch in batches}) == 4
    np.testing.assert_array_equal(batches[:2], probe_indices(100, 30, 2, seed=3))
    assert not np.array_equal(batches, probe_indices(100, 30, 4, seed=4))
    for batch_size in (100, 512):
        np.testing.assert_array_equal(
            probe_indices(100, batch_size, 4, seed=3), np.arange(100)[None]
        )
