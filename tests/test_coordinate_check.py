"""Coordinate check: how far activations move in a few steps, over widths."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.hyperparameters import complete_run
from sgdphases.losses import LossFunction
from sgdphases.models import build_network
from sgdphases.optimizers import OptimizerRule, make_optimizer, rate_scales

WIDTHS = (64, 256, 1024)
NUM_SEEDS = 3
NUM_STEPS = 4


def movement(parametrisation, optimizer, learning_rate, width, seed):
    """Root mean square change of the last hidden layer, of the output, after a few steps."""
    run = complete_run(
        {
            "model": "fully_connected",
            "depth": 3,
            "width": width,
            "activation": "tanh",
            "parametrisation": parametrisation,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
        }
    )
    network = build_network(run, (10,), 1)
    rng = np.random.default_rng(seed)
    inputs = jnp.asarray(rng.normal(size=(8, 10)), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(8, 1)), jnp.float32)
    loss = LossFunction("mean_squared_error", "per_sample")
    start = parameters = network.init(jax.random.key(seed))
    hyper = types.SimpleNamespace(**run)
    scales = rate_scales(parameters, parametrisation, optimizer, width)
    transform = make_optimizer(OptimizerRule(optimizer), hyper, scales)
    state = transform.init(parameters)

    @jax.jit
    def step(parameters, state):
        gradient = jax.grad(lambda p: loss(network.apply(p, inputs), targets, 1.0))(parameters)
        updates, state = transform.update(gradient, state, parameters)
        return jax.tree.map(jnp.add, parameters, updates), state

    for _ in range(NUM_STEPS):
        parameters, state = step(parameters, state)
    return [
        float(jnp.sqrt(jnp.mean(jnp.square(f(parameters, inputs) - f(start, inputs)))))
        for f in (network.features, network.apply)
    ]


def exponents(parametrisation, optimizer, rate_of_width):
    """Slopes of log movement over log width, of the last hidden layer and of the output."""
    moves = [
        [movement(parametrisation, optimizer, rate_of_width(n), n, s) for s in range(NUM_SEEDS)]
        for n in WIDTHS
    ]
    logs = np.log(np.mean(moves, axis=1))
    return np.polyfit(np.log(WIDTHS), logs, 1)[0]


@pytest.mark.parametrize(
    ("parametrisation", "optimizer", "rate_of_width", "expected"),
    [
        ("mup", "sgd", lambda n: 0.1, 0.0),
        ("depth_mup", "sgd", lambda n: 0.1, 0.0),
        ("mup", "adam", lambda n: 0.02, 0.0),
        ("mup", "sign_sgd", lambda n: 0.02, 0.0),
        ("ntk", "sgd", lambda n: 0.1, -0.5),
        # The same dynamics as in NTK parametrisation at a rate in proportion to 1/width.
        ("standard", "sgd", lambda n: 4.0 / n, -0.5),
    ],
)
def test_movement_of_activations(parametrisation, optimizer, rate_of_width, expected):
    hidden, output = exponents(parametrisation, optimizer, rate_of_width)
    assert hidden == pytest.approx(expected, abs=0.12)
    # The output moves as fast at any width, or nothing would be learned.
    if parametrisation != "standard":
        assert output == pytest.approx(0.0, abs=0.2)


def test_the_check_sees_a_wrong_multiplier():
    """At the rates of NTK parametrisation the hidden layers of µP stand still in the limit."""
    hidden, _ = exponents("mup", "sgd", lambda n: 0.1 / n)
    assert hidden < -0.8
