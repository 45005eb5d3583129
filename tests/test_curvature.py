"""The top NTK eigenvalue against dense matrices, closed forms and a second library."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

from sgdphases import curvature
from sgdphases.curvature import (
    TOLERANCE,
    critical_learning_rates,
    kernel_scale_of,
    largest_eigenvalues,
    measure_networks,
    ntk_product,
    ntk_top_eigenvalue,
    probe_indices,
)
from sgdphases.datasets.loading import Dataset
from sgdphases.losses import LossFunction, mean_squared_error
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
    "loss_normalisation": "per_class",
    "richness": 1.0,
    "inverse_temperature": 1.0,
    "precision": "float64",
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@functools.cache
def build(num_features, num_outputs, items):
    return build_network({**HYPERPARAMETERS, **dict(items)}, (num_features,), num_outputs)


def make_network(inputs, num_outputs=3, seed=0, **changes):
    network = build(inputs.shape[1], num_outputs, tuple(changes.items()))
    return network, network.init(jax.random.key(seed))


def make_inputs(num_samples=6, num_features=5, seed=0):
    return np.random.default_rng(seed).normal(size=(num_samples, num_features))


@functools.cache
def compiled_jacobian(network):
    return jax.jit(jax.jacobian(lambda p, x: network.apply(p, x).ravel()))


def dense_jacobian(network, parameters, inputs):
    """(k|B|, parameters) derivatives of all outputs by all parameters."""
    tree = compiled_jacobian(network)(parameters, jnp.asarray(inputs))
    columns = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(columns, axis=1)


def dense_kernel(network, parameters, inputs):
    jacobian = dense_jacobian(network, parameters, inputs).astype(np.float64)
    return jacobian @ jacobian.T / len(jacobian)


@functools.cache
def compiled_measurement(network, num_lanczos_steps, tolerance):
    return jax.jit(
        lambda p, x: (
            ntk_top_eigenvalue(network.apply, p, x, num_lanczos_steps, tolerance=tolerance).value
        )
    )


def top_eigenvalue(network, parameters, inputs, num_lanczos_steps=30, tolerance=1e-10):
    measure = compiled_measurement(network, num_lanczos_steps, tolerance)
    return float(measure(parameters, jnp.asarray(inputs)))


def linear_kernel(parameters, inputs, num_features=5, width=8):
    """The kernel of two linear layers, in closed form."""
    first = np.asarray(parameters["input"]["weight"], np.float64)
    last = np.asarray(parameters["readout"]["weight"], np.float64)
    inputs = np.asarray(inputs, np.float64)
    hidden, num_outputs = inputs @ first, last.shape[1]
    kernel = np.kron(inputs @ inputs.T, last.T @ last)
    kernel += np.kron(hidden @ hidden.T, np.eye(num_outputs))
    return 1.3**4 / (num_features * width) * kernel / len(kernel)


LINEAR = {"depth": 2, "activation": "identity"}


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 2, "activation": "relu", "parametrisation": "standard", "bias_scale": 0.5},
        {"depth": 3, "activation": "identity", "parametrisation": "standard", "bias_scale": None},
        {"depth": 4, "activation": "tanh", "parametrisation": "ntk", "bias_scale": 0.5},
        {"depth": 3, "activation": "relu", "parametrisation": "mup", "bias_scale": None},
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


def test_warm_up_model():
    """One input x = 1 and two linear layers: λ = (‖u‖² + ‖v‖²)/n."""
    inputs, width = np.ones((1, 1)), 50
    network, parameters = make_network(
        inputs, 1, depth=2, width=width, activation="identity", weight_scale=1.0
    )
    expected = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(parameters)) / width
    assert top_eigenvalue(network, parameters, inputs) == pytest.approx(expected, rel=1e-12)


def test_non_zero_spectrum_is_that_of_the_gauss_newton_matrix():
    """Claim CAT-43."""
    inputs = make_inputs(4)
    network, parameters = make_network(inputs, 2, bias_scale=0.5)
    jacobian = dense_jacobian(network, parameters, inputs)
    kernel = dense_kernel(network, parameters, inputs)
    spectrum = np.linalg.eigvalsh(jacobian.T @ jacobian / len(jacobian))
    np.testing.assert_allclose(spectrum[-8:], np.linalg.eigvalsh(kernel), rtol=1e-8)
    np.testing.assert_allclose(spectrum[:-8], 0, atol=1e-12)
    assert top_eigenvalue(network, parameters, inputs) == pytest.approx(spectrum[-1], rel=1e-8)


# Kernels whose Krylov space is exhausted before the Lanczos steps are.
DEFICIENT = {
    "one distinct input": np.repeat(make_inputs(1), 20, axis=0),
    "three distinct inputs": np.repeat(make_inputs(3), 7, axis=0)[:20],
    "two dimensions": make_inputs(20, 2) @ make_inputs(2),
}


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("name", DEFICIENT)
def test_kernels_of_low_rank(name, precision, tolerance):
    inputs = jnp.asarray(DEFICIENT[name], precision)
    for seed in range(4):
        network, parameters = make_network(inputs, seed=seed, precision=precision, **LINEAR)
        expected = np.linalg.eigvalsh(linear_kernel(parameters, inputs))[-1]
        measured = top_eigenvalue(network, parameters, inputs, tolerance=0.0)
        assert measured == pytest.approx(expected, rel=tolerance)


def test_zero_kernel():
    inputs = np.zeros((6, 5))
    network, parameters = make_network(inputs, **LINEAR)
    assert top_eigenvalue(network, parameters, inputs, 8) == 0.0


def test_broken_parameters_give_nan():
    """A wrong finite number would pass for a measurement."""
    inputs = make_inputs()
    network, parameters = make_network(inputs, **LINEAR)
    for factor in (np.nan, np.inf, 1e160):
        broken = jax.tree.map(lambda p, f=factor: f * p, parameters)
        assert np.isnan(top_eigenvalue(network, broken, inputs, 8))
    weight = parameters["readout"]["weight"].at[0, 0].set(np.nan)
    one_layer = {**parameters, "readout": {"weight": weight}}
    assert np.isnan(top_eigenvalue(network, one_layer, inputs, 8))


@pytest.mark.parametrize(("num_samples", "num_outputs"), [(1, 1), (2, 2)])
def test_kernels_smaller_than_the_number_of_lanczos_steps(num_samples, num_outputs):
    inputs = make_inputs(num_samples)
    network, parameters = make_network(inputs, num_outputs, **LINEAR)
    expected = np.linalg.eigvalsh(linear_kernel(parameters, inputs))[-1]
    assert top_eigenvalue(network, parameters, inputs) == pytest.approx(expected, rel=1e-10)


def test_agrees_with_scipy_on_the_same_operator():
    num_samples = 40
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


# Units in which 2/λ₀ is the critical learning rate.


@pytest.mark.parametrize("normalisation", ["per_class", "per_sample", "sum"])
@pytest.mark.parametrize("parametrisation", ["ntk", "mup"])
def test_units_are_those_of_the_loss_that_is_trained(normalisation, parametrisation):
    """λ₀ is the top eigenvalue of (step per learning rate) x Gauss–Newton matrix of the loss."""
    richness, width, inputs = 3.7, 8, make_inputs(4)
    network, parameters = make_network(inputs, 2, parametrisation=parametrisation, width=width)
    loss = LossFunction("mean_squared_error", normalisation)
    targets = jnp.zeros((4, 2))
    curvature = jax.hessian(lambda f: loss(f.reshape(4, 2) / richness, targets))(jnp.ones(8))
    jacobian = dense_jacobian(network, parameters, inputs)
    step = width if parametrisation == "mup" else 1
    expected = step * np.linalg.eigvalsh(jacobian.T @ curvature @ jacobian)[-1]

    hyperparameters = {
        "loss_normalisation": normalisation,
        "richness": richness,
        "inverse_temperature": 1.0,
        "parametrisation": parametrisation,
        "width": width,
    }
    scale = kernel_scale_of(hyperparameters, 2, 4)
    kernel = scale * jacobian @ jacobian.T
    assert np.linalg.eigvalsh(kernel)[-1] == pytest.approx(expected, rel=1e-9)
    traced = jax.jit(lambda r: kernel_scale_of({**hyperparameters, "richness": r}, 2, 4))(richness)
    assert float(traced) == pytest.approx(scale, rel=1e-12)
    product = ntk_product(network.apply, parameters, inputs, scale)(jnp.ones((4, 2)))
    np.testing.assert_allclose(product.ravel(), kernel @ np.ones(8), rtol=1e-10)


def test_runs_of_a_batch_have_their_own_scale():
    inputs = jnp.asarray(make_inputs(5), "float32")
    runs = [make_network(inputs, seed=seed, precision="float32", **LINEAR) for seed in range(3)]
    network, parameters = runs[0][0], [parameters for _, parameters in runs]
    scales = jnp.asarray([1.0, 1e-10, 1e10], "float32")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parameters), scales

    def measure(run):
        return ntk_top_eigenvalue(network.apply, run[0], inputs, 15, run[1]).value

    expected = [
        float(scale) * np.linalg.eigvalsh(15 * linear_kernel(run, inputs))[-1]
        for run, scale in zip(parameters, scales, strict=True)
    ]
    for batched in (jax.vmap(measure), lambda runs: jax.lax.map(measure, runs)):
        values = jax.jit(batched)(stacked)
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_reduced_precision_around_it_does_not_reach_the_kernel():
    inputs = jnp.asarray(make_inputs(8), "float32")
    network, parameters = make_network(inputs, precision="float32")

    def program(precision):
        with jax.default_matmul_precision(precision):
            return str(
                jax.make_jaxpr(lambda p: ntk_top_eigenvalue(network.apply, p, inputs, 5))(
                    parameters
                )
            )

    assert program("bfloat16") == program("float32")
    assert "HIGHEST" in program("bfloat16")
    assert "DEFAULT" not in program("bfloat16")


# The iteration, on matrices.


def cluster_spectrum(size=400):
    """As of ten outputs: ten large eigenvalues, the top two a percent apart, and a tail."""
    top = [1, 0.99, 0.96, 0.95, 0.94, 0.93, 0.9, 0.88, 0.87, 0.85]
    return np.concatenate([top, 0.25 / np.arange(1, size - 9) ** 0.3])


def test_stops_early_within_the_promised_error():
    """Other orders of the eigenvalues are other start vectors; one lies badly, for 3e-4 already."""
    spectrum = cluster_spectrum()
    orders = np.stack([np.random.default_rng(i).permutation(spectrum) for i in range(200)])
    with jax.enable_x64(False):
        measure = jax.jit(
            jax.vmap(
                lambda diagonal: largest_eigenvalues(
                    lambda v: diagonal * v, spectrum.size, jnp.float32, 1, 60, TOLERANCE
                )[0]
            )
        )
        values = np.asarray(measure(jnp.asarray(orders, jnp.float32)))
    assert np.max(np.abs(values - 1)) < 1e-4


def test_number_of_products():
    spectrum = jnp.asarray(cluster_spectrum())
    calls = []

    def product(vector):
        jax.debug.callback(lambda: calls.append(1))
        return spectrum * vector

    jax.block_until_ready(
        largest_eigenvalues(product, spectrum.size, spectrum.dtype, 1, 60, TOLERANCE)
    )
    jax.effects_barrier()
    assert 12 < len(calls) < 30


@pytest.mark.parametrize("num_products", [2, 5, 12])
def test_residual_bounds_the_error_of_too_few_products(num_products):
    inputs = jnp.asarray(make_inputs(12))
    network, parameters = make_network(inputs)
    kernel = dense_kernel(network, parameters, inputs)
    spectrum = np.linalg.eigvalsh(kernel)
    found = jax.jit(lambda p: ntk_top_eigenvalue(network.apply, p, inputs, num_products))(
        parameters
    )
    value, residual = float(found.value), float(found.residual)
    assert np.min(np.abs(spectrum - value)) <= residual * value * (1 + 1e-9)
    assert value <= spectrum[-1] * (1 + 1e-9)
    if num_products == 2:
        assert residual > 0.01


def test_iteration_keeps_its_relative_accuracy_at_any_scale():
    """The squares of the extremes are not float32 numbers."""
    with jax.enable_x64(False):
        measure = jax.jit(
            lambda d: largest_eigenvalues(lambda v: d * v, 12, jnp.float32, 1, 12, tolerance=0.0)
        )
        for scale in (1e-30, 1.0, 1e30):
            spectrum = jnp.asarray(scale * np.linspace(0.1, 1, 12), jnp.float32)
            assert float(measure(spectrum)[0]) == pytest.approx(scale, rel=1e-5)


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


def make_settings(batch_size=8, num_batches=2):
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
    assert list(table["network_id"]) == ["n0"] * 2 + ["n5"] * 2 + ["n6"] * 2
    assert list(table["batch"]) == [0, 1] * 3
    assert table["ntk_top_eigenvalue"].dtype == np.float64
    assert (table["ntk_residual"] <= TOLERANCE).all()
    np.testing.assert_allclose(table["critical_learning_rate"], 2 / table["ntk_top_eigenvalue"])
    indices = probe_indices(12, 8, 2, 0)
    for _, row in table.iterrows():
        inputs = jnp.asarray(dataset.train_inputs[indices[row["batch"]]], row["precision"])
        changes = {name: row[name] for name in ("seed", "width", "precision")}
        with jax.enable_x64(row["precision"] == "float64"):
            network, parameters = make_network(inputs, **changes)
            expected = np.linalg.eigvalsh(dense_kernel(network, parameters, inputs))[-1]
        tolerance = 1e-6 if row["precision"] == "float64" else 1e-5
        assert row["ntk_top_eigenvalue"] == pytest.approx(expected, rel=tolerance)

    critical = critical_learning_rates(table)
    assert critical.keys() == {"n0", "n5", "n6"}
    mean = table.loc[table["network_id"] == "n5", "ntk_top_eigenvalue"].mean()
    assert critical["n5"] == pytest.approx(2 / mean)


def test_a_network_is_measured_the_same_in_any_company(monkeypatch):
    """Networks that differ in seed and richness share one program."""
    compiled = []
    compile_measurement = curvature._compile_measurement
    monkeypatch.setattr(
        curvature,
        "_compile_measurement",
        lambda *arguments: compiled.append(1) or compile_measurement(*arguments),
    )
    dataset, settings = make_dataset(), make_settings(num_batches=1)
    richness = [1.0, 1e-20, 1e-5, 4.0]
    networks = [make_networks(seed, richness=r)[0] for seed, r in enumerate(richness)]
    together = measure_networks(settings, networks, dataset)
    assert len(compiled) == 1
    alone = measure_networks(settings, make_networks(2), dataset)
    expected = np.asarray(alone["ntk_top_eigenvalue"]) * 1e10
    np.testing.assert_allclose(together["ntk_top_eigenvalue"][2], expected, rtol=1e-12)
    assert np.isfinite(together["ntk_top_eigenvalue"]).all()


def test_a_network_without_curvature_has_no_finite_critical_rate():
    dataset = make_dataset()
    dataset.train_inputs[:] = 0
    table = measure_networks(make_settings(num_batches=1), make_networks(0, **LINEAR), dataset)
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
