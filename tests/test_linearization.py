"""Linearised networks against closed forms, finite differences and gradient descent by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.linearization import linearize_network, linearized_apply, linearized_distance
from sgdphases.models import build_network

HYPERPARAMETERS = {
    "model": "fully_connected",
    "depth": 2,
    "width": 6,
    "activation": "tanh",
    "parametrisation": "ntk",
    "weight_scale": 1.3,
    "bias_scale": 0.4,
    "precision": "float64",
}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def make_network(**changes):
    return build_network({**HYPERPARAMETERS, **changes}, (5,), 3)


def make_inputs(num_samples=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num_samples, 5)))


def add(parameters, direction, factor=1.0):
    return jax.tree.map(lambda p, d: p + factor * d, parameters, direction)


def test_a_network_that_is_linear_in_its_parameters_is_its_own_linearisation():
    network, inputs = make_network(depth=1), make_inputs()
    base, parameters = (network.init(jax.random.key(seed)) for seed in (0, 1))
    linear = linearize_network(network.apply, base)
    np.testing.assert_allclose(
        linear(parameters, inputs), network.apply(parameters, inputs), rtol=1e-13
    )


def test_two_linear_layers_in_closed_form():
    """U V x about (U₀, V₀): U₀V₀x + (U − U₀)V₀x + U₀(V − V₀)x."""
    network, inputs = make_network(activation="identity", bias_scale=None), make_inputs()
    base, other = (network.init(jax.random.key(seed)) for seed in (0, 1))
    (first, last), (first_other, last_other) = (
        (p["input"]["weight"], p["readout"]["weight"]) for p in (base, other)
    )
    multiplier = 1.3**2 / np.sqrt(5 * 6)
    expected = (
        multiplier
        * inputs
        @ (first @ last + (first_other - first) @ last + first @ (last_other - last))
    )
    actual = linearized_apply(network.apply)(base, other, inputs)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_change_is_the_directional_derivative():
    network, inputs = make_network(), make_inputs()
    base, direction = (network.init(jax.random.key(seed)) for seed in (0, 1))
    step = 1e-5
    ahead, behind = (network.apply(add(base, direction, s), inputs) for s in (step, -step))
    linear = linearize_network(network.apply, base)
    np.testing.assert_array_equal(linear(base, inputs), network.apply(base, inputs))
    change = linear(add(base, direction), inputs) - linear(base, inputs)
    np.testing.assert_allclose(change, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-9)


def test_distance_is_of_second_order():
    """And its coefficient is half the second derivative, which the temperature paper reads off."""
    network, inputs = make_network(), make_inputs()
    base, direction = (network.init(jax.random.key(seed)) for seed in (0, 1))

    def along(size):
        return network.apply(add(base, direction, size), inputs)

    second_derivative = jax.jacfwd(jax.jacfwd(along))(0.0)
    linear = linearize_network(network.apply, base)
    for size in (1e-3, 1e-4):
        distance = linearized_distance(along(size), linear(add(base, direction, size), inputs))
        expected = np.linalg.norm(second_derivative) / 2
        assert float(distance.frobenius) / size**2 == pytest.approx(expected, rel=20 * size)


def test_distance_norms():
    outputs, others = np.random.default_rng(0).normal(size=(2, 7, 3))
    distance = linearized_distance(jnp.asarray(outputs), jnp.asarray(others))
    assert float(distance.frobenius) == pytest.approx(np.linalg.norm(outputs - others))
    expected = np.sqrt(np.mean((outputs - others) ** 2))
    assert float(distance.root_mean_square) == pytest.approx(expected)


def test_training_it_is_descent_with_a_constant_kernel():
    """The base is an argument, as that of a run linearised later in its training."""
    network, inputs, targets = make_network(), make_inputs(), make_inputs(seed=1)[:, :3]
    base, start = (network.init(jax.random.key(seed)) for seed in (0, 1))
    apply = linearized_apply(network.apply)
    learning_rate = 0.05

    @jax.jit
    def step(base_point, parameters):
        def loss(p):
            return 0.5 * jnp.sum((apply(base_point, p, inputs) - targets) ** 2)

        return add(parameters, jax.grad(loss)(parameters), -learning_rate)

    parameters = start
    for _ in range(20):
        parameters = step(base, parameters)

    jacobian = jax.jacobian(lambda p: network.apply(p, inputs).ravel())(base)
    rows = np.concatenate([leaf.reshape(12, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    outputs = np.asarray(apply(base, start, inputs)).ravel()
    for _ in range(20):
        outputs = outputs - learning_rate * rows @ rows.T @ (outputs - targets.ravel())
    np.testing.assert_allclose(apply(base, parameters, inputs).ravel(), outputs, rtol=1e-10)


def test_runs_of_a_batch_keep_their_own_base():
    network = make_network(precision="float32")
    inputs = make_inputs().astype("float32")
    bases, others = (
        jax.vmap(network.init)(jax.random.split(jax.random.key(seed), 3)) for seed in (0, 1)
    )
    apply = linearized_apply(network.apply)
    together = jax.jit(jax.vmap(apply, (0, 0, None)))(bases, others, inputs)
    assert together.dtype == jnp.float32
    in_turn = jax.lax.map(lambda run: apply(*run, inputs), (bases, others))
    for run in range(3):
        base, parameters = (jax.tree.map(lambda leaf, i=run: leaf[i], p) for p in (bases, others))
        expected = apply(base, parameters, inputs)
        np.testing.assert_allclose(together[run], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(in_turn[run], expected, rtol=1e-4, atol=1e-5)
