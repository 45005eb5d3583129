"""Optimizers against PyTorch, numpy and a literal transcription of AutoL2."""

import itertools
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdphases.errors import InputError
from sgdphases.optimizers import (
    OptimizerRule,
    auto_l2,
    make_optimizer,
    rate_scales,
)


class Hyperparameters(NamedTuple):
    learning_rate: Any
    momentum: Any = 0.0
    weight_decay: Any = 0.0
    first_moment_decay: Any = 0.9
    second_moment_decay: Any = 0.999
    epsilon: Any = 1e-8


SHAPES = {"input": {"weight": (3, 4), "bias": (4,)}, "readout": {"weight": (4, 2)}}
NUM_STEPS = 25


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def draw(seed, leading=()):
    """Normal numbers in the structure of SHAPES."""
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda s: rng.normal(size=(*leading, *s)), SHAPES, is_leaf=is_shape)


def descend(rule, hyper, factors=None, scales=None, losses=None, errors=None):
    """Parameters after steps along given gradients, which do not depend on them."""
    gradients = draw(1, (NUM_STEPS,))
    ones = jnp.ones(NUM_STEPS)
    extra = {
        "learning_rate_factor": ones if factors is None else jnp.asarray(factors),
        "loss": ones if losses is None else jnp.asarray(losses),
        "error": ones if errors is None else jnp.asarray(errors),
    }
    optimizer = make_optimizer(rule, hyper, scales)

    def step(carry, inputs):
        parameters, state = carry
        gradient, more = inputs
        updates, state = optimizer.update(gradient, state, parameters, **more)
        return (optax.apply_updates(parameters, updates), state), None

    start = jax.tree.map(jnp.asarray, draw(0))
    carry = (start, optimizer.init(start))
    return jax.lax.scan(step, carry, (gradients, extra))[0][0]


def descend_in_torch(torch, make, factors):
    leaves = [torch.tensor(a) for a in jax.tree.leaves(draw(0))]
    gradients = [torch.tensor(a) for a in jax.tree.leaves(draw(1, (NUM_STEPS,)))]
    optimizer = make(leaves)
    rate = optimizer.param_groups[0]["lr"]
    for step, factor in enumerate(factors):
        optimizer.param_groups[0]["lr"] = rate * factor
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient[step]
        optimizer.step()
    return [leaf.numpy() for leaf in leaves]


def assert_same(result, expected, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.3)])
def test_sgd_agrees_with_torch(momentum, weight_decay):
    torch = pytest.importorskip("torch")
    factors = np.linspace(1, 0.1, NUM_STEPS)
    hyper = Hyperparameters(0.05, momentum, weight_decay)
    result = descend(OptimizerRule("sgd", has_momentum=momentum > 0), hyper, factors)

    def make(leaves):
        return torch.optim.SGD(leaves, lr=0.05, momentum=momentum, weight_decay=weight_decay)

    assert_same(result, descend_in_torch(torch, make, factors))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_agrees_with_torch(weight_decay):
    torch = pytest.importorskip("torch")
    factors = np.linspace(1, 0.1, NUM_STEPS)
    hyper = Hyperparameters(0.05, 0.0, weight_decay, 0.8, 0.95, 1e-3)

    def make(leaves):
        return torch.optim.Adam(leaves, 0.05, (0.8, 0.95), eps=1e-3, weight_decay=weight_decay)

    result = descend(OptimizerRule("adam"), hyper, factors)
    assert_same(result, descend_in_torch(torch, make, factors))


def by_hand(has_momentum, learning_rate, momentum, weight_decay, factors):
    """Coupled L2, then the buffer, then the sign, in numpy."""

    def one(parameters, gradients):
        buffer = np.zeros_like(parameters)
        for gradient, factor in zip(gradients, factors, strict=True):
            gradient = gradient + weight_decay * parameters
            buffer = momentum * buffer + gradient if has_momentum else gradient
            parameters = parameters - learning_rate * factor * np.sign(buffer)
        return parameters

    return jax.tree.map(one, draw(0), draw(1, (NUM_STEPS,)))


@pytest.mark.parametrize("has_momentum", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.7])
def test_sign_sgd_takes_the_sign_of_the_regularised_gradient(has_momentum, weight_decay):
    factors = np.linspace(1, 0.1, NUM_STEPS)
    result = descend(
        OptimizerRule("sign_sgd", has_momentum),
        Hyperparameters(0.05, 0.9, weight_decay),
        factors,
    )
    assert_same(result, by_hand(has_momentum, 0.05, 0.9, weight_decay, factors))


@pytest.mark.parametrize(
    ("name", "same"),
    [("sgd", optax.sgd(0.05)), ("adam", optax.adam(0.05)), ("sign_sgd", optax.sign_sgd(0.05))],
)
def test_without_decay_and_schedule_each_is_that_of_optax(name, same):
    parameters, gradient = draw(0), draw(1)
    optimizer = make_optimizer(OptimizerRule(name), Hyperparameters(0.05))
    result, _ = optimizer.update(gradient, optimizer.init(parameters), parameters)
    expected, _ = same.update(gradient, same.init(parameters), parameters)
    assert_same(result, expected, rtol=1e-14)


RULES = [
    OptimizerRule(name, has_momentum, decay, auto_l2_interval=5)
    for name in ("sgd", "adam", "sign_sgd")
    for has_momentum in (False, True)
    for decay in ("constant", "auto_l2")
    if not (name == "adam" and has_momentum)
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_batched_runs_agree_with_single_ones(rule):
    """Every hyperparameter may be traced, and differ between the runs of a program."""
    hypers = Hyperparameters(
        learning_rate=np.array([0.1, 0.2, 1e-3]),
        momentum=np.array([0.0, 0.5, 0.99]),
        weight_decay=np.array([0.0, 0.1, 2.0]),
        first_moment_decay=np.array([0.0, 0.9, 0.5]),
        second_moment_decay=np.array([0.999, 0.9, 0.5]),
        epsilon=np.array([1e-8, 1e-3, 0.1]),
    )
    losses = np.random.default_rng(4).normal(size=NUM_STEPS)

    @jax.jit
    def single(hyper):
        return descend(rule, hyper, losses=losses)

    together = jax.jit(jax.vmap(single))(hypers)
    for i in range(3):
        alone = single(jax.tree.map(lambda h, i=i: h[i], hypers))
        assert_same(jax.tree.map(lambda a, i=i: a[i], together), alone)


def test_single_precision_stays_single():
    """A type that changed in a step could not be carried through a compiled loop."""
    parameters = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), draw(0))
    hyper = Hyperparameters(*(jnp.float32(0.1) for _ in range(6)))
    for rule in RULES:
        optimizer = make_optimizer(rule, hyper, rate_scales(parameters, "mup", rule.name, 64))
        state = optimizer.init(parameters)
        updates, after = optimizer.update(
            parameters, state, parameters, loss=jnp.float32(1), error=jnp.float32(1)
        )
        assert {a.dtype for a in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
        types = jax.tree.map(lambda a: (a.dtype, a.shape), (state, after))
        assert types[0] == types[1]


def test_rules_are_static_arguments():
    assert hash(OptimizerRule("adam")) == hash(OptimizerRule("adam"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lion"}, "^optimizer: 'lion' is not allowed; allowed: sgd, adam, sign_sgd$"),
        ({"weight_decay_rule": "none"}, "^weight_decay_rule: 'none' .* constant, auto_l2$"),
        ({"auto_l2_interval": 0}, "^auto_l2_interval: 0 is not allowed"),
    ],
)
def test_unknown_rules_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        OptimizerRule(**arguments)


# Rates of the layers


WIDTH = 64
NETWORK = {
    "input": {"weight": (10, WIDTH), "bias": (WIDTH,)},
    "hidden": [
        {"weight": (WIDTH, WIDTH), "bias": (WIDTH,)},
        {"convolution": {"weight": (3, 3, WIDTH, WIDTH)}, "norm": {"scale": (WIDTH,)}},
    ],
    "readout": {"weight": (WIDTH, 2), "bias": (2,)},
}


def shapes(tree):
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=lambda x: type(x) is tuple
    )


@pytest.mark.parametrize("parametrisation", ["mup", "depth_mup"])
def test_rates_in_mup(parametrisation):
    parameters = shapes(NETWORK)
    sgd = rate_scales(parameters, parametrisation, "sgd", WIDTH)
    assert jax.tree.structure(sgd) == jax.tree.structure(parameters)
    assert set(jax.tree.leaves(sgd)) == {64.0}
    for optimizer in ("adam", "sign_sgd"):
        assert rate_scales(parameters, parametrisation, optimizer, WIDTH) == {
            "input": {"weight": 1.0, "bias": 1.0},
            "hidden": [
                {"weight": 0.125, "bias": 1.0},
                {"convolution": {"weight": 0.125}, "norm": {"scale": 1.0}},
            ],
            "readout": {"weight": 1.0, "bias": 1.0},
        }


@pytest.mark.parametrize("parametrisation", ["standard", "ntk"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sign_sgd"])
def test_rates_elsewhere_are_all_the_same(parametrisation, optimizer):
    assert rate_scales(shapes(NETWORK), parametrisation, optimizer, WIDTH) is None


def test_rates_of_parameters_without_keys():
    assert rate_scales(jnp.ones((3, 3)), "mup", "adam", 64) == 1.0
    assert rate_scales([jnp.ones((3, 3))], "mup", "sgd", 64) == [64.0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sign_sgd"])
def test_scales_multiply_the_rate_of_their_array(optimizer):
    rule, hyper = OptimizerRule(optimizer), Hyperparameters(0.05, weight_decay=0.0)
    start, plain = draw(0), descend(rule, hyper)
    scales = {"input": {"weight": 3.0, "bias": 0.5}, "readout": {"weight": 64.0}}
    scaled = descend(rule, hyper, scales=scales)
    expected = jax.tree.map(lambda p, q, s: p + s * (q - p), start, plain, scales)
    assert_same(scaled, expected, rtol=1e-11)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sign_sgd"])
def test_hidden_layers_and_outputs_move_alike_at_all_widths_in_mup(optimizer):
    """One step on one sample: h moves by O(η) and, beyond its O(1/√N) start, so does f."""
    inputs, rate = jnp.asarray(np.random.default_rng(0).normal(size=10)), 0.05

    def forward(parameters, width):
        hidden = jnp.tanh(inputs @ parameters["input"] / np.sqrt(10))
        hidden = hidden @ parameters["hidden"] / np.sqrt(width)
        return hidden, jnp.tanh(hidden) @ parameters["readout"] / width

    def moves(width):
        """Root mean squares over seeds of the changes of h and f."""
        sizes = {"input": (4, 10, width), "hidden": (4, width, width), "readout": (4, width)}
        start = {
            name: jnp.asarray(np.random.default_rng(i).normal(size=size))
            for i, (name, size) in enumerate(sizes.items())
        }
        return [np.sqrt(np.mean(np.square(m))) for m in jax.jit(jax.vmap(move))(start)]

    def move(start):
        width = start["readout"].size
        scales = rate_scales(start, "mup", optimizer, width)
        step = make_optimizer(OptimizerRule(optimizer), Hyperparameters(rate), scales)
        gradient = jax.grad(lambda p: 0.5 * (forward(p, width)[1] - 1) ** 2)(start)
        updates, _ = step.update(gradient, step.init(start), start)
        before, after = forward(start, width), forward(optax.apply_updates(start, updates), width)
        return after[0] - before[0], after[1] - before[1]

    narrow, wide = np.array(moves(64)), np.array(moves(512))
    # Any other power of the width would show as a factor of 2.8 or more.
    np.testing.assert_allclose(wide / narrow, 1, atol=0.5)
    assert (wide > 0.1 * rate).all()


# AutoL2


def transcription(losses, errors, interval, initial=Fraction(1, 10)):
    """The algorithm line by line, with exact coefficients; the coefficient after each step."""
    min_loss = min_error = float("inf")
    min_step, weight_decay, record = 0, initial, []
    for t in range(len(losses)):
        if t % interval == 0:
            loss_t, error_t = losses[t], errors[t]
            loss_before = losses[t - interval] if t > 0 else float("inf")
            error_before = errors[t - interval] if t > 0 else float("inf")
            increases = False
            if loss_t > min_loss and loss_before > min_loss:
                increases = True
            if error_t > min_error and error_before > min_error:
                increases = True
            if increases and t > min_step:
                weight_decay = weight_decay / 10
                min_step = t + Fraction(1, 10) / weight_decay
            else:
                min_loss = min(loss_before, min_loss)
                min_error = min(error_before, min_error)
        record.append(float(weight_decay))
    return np.array(record)


def coefficients(losses, errors, interval, initial=0.1, dtype=jnp.float64):
    """The coefficient of auto_l2 in each step of many runs, (runs, steps)."""
    parameters = jnp.ones((), dtype)

    @jax.jit
    @jax.vmap
    def run(run_losses, run_errors, start):
        transformation = auto_l2(start, interval)

        def step(state, measured):
            loss, error = measured
            update, state = transformation.update(
                jnp.zeros_like(parameters), state, parameters, loss=loss, error=error
            )
            return state, update

        return jax.lax.scan(step, transformation.init(parameters), (run_losses, run_errors))[1]

    losses, errors = (jnp.asarray(a, dtype) for a in (losses, errors))
    return np.asarray(run(losses, errors, jnp.full(len(losses), initial, dtype)))


def adversarial_losses(length):
    t = np.arange(length, dtype=np.float64)
    rng = np.random.default_rng(0)
    return np.array(
        [
            t,  # rises for ever: falls as soon as it is allowed to
            -t,
            np.ones(length),  # ties with the minimum are no increase
            np.where(t < 20, 1.0, 2.0),
            np.abs(t - 30),
            t // 5 % 2,  # each measurement at every other level
            t // 10 % 2,
            t // 10 % 3,
            np.where(t % 100 < 90, t, -t),  # minima that keep falling between increases
            np.where(t < 40, t, -t),  # a fall in the resting time
            np.full(length, np.inf),
            np.where(t == 50, 1e30, 1 / (1 + t)),  # one outlier
            np.where((t >= 50) & (t < 70), 1e30, 1 / (1 + t)),  # two measurements of it
            np.cumsum(rng.normal(size=length)),
            rng.normal(size=length),
            rng.integers(3, size=length).astype(float),
            np.exp(-t / 100) + 0.01 * rng.normal(size=length),
        ]
    )


@pytest.mark.parametrize("interval", [1, 5, 10])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_auto_l2_is_its_transcription(interval, dtype):
    losses = adversarial_losses(600).astype(dtype)
    pairs = list(itertools.product(losses, losses))
    result = coefficients(*map(np.array, zip(*pairs, strict=True)), interval, dtype=dtype)
    expected = [transcription(a.tolist(), b.tolist(), interval) for a, b in pairs]
    np.testing.assert_allclose(result, expected, rtol=1e-6 if dtype == jnp.float32 else 1e-14)
    assert len(np.unique(np.array(expected)[:, -1])) > 2


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=40, max_size=40))
def test_auto_l2_is_its_transcription_on_ties(levels):
    losses, errors = np.array(levels, dtype=float).T
    result = coefficients_of_short_runs(losses, errors)
    np.testing.assert_allclose(result, transcription(losses, errors, 2), rtol=1e-14)


@jax.jit
def coefficients_of_short_runs(losses, errors):
    transformation, parameters = auto_l2(0.1, 2), jnp.ones(())

    def step(state, measured):
        update, state = transformation.update(
            jnp.zeros(()), state, parameters, loss=measured[0], error=measured[1]
        )
        return state, update

    return jax.lax.scan(step, transformation.init(parameters), (losses, errors))[1]


@pytest.mark.parametrize("interval", [5, 10])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_auto_l2_rests_ten_to_ten_thousand_steps(interval, dtype):
    """A loss that rises for ever: each fall comes at the first measurement after the rest."""
    length = 11_400
    rising = np.arange(length, dtype=np.float64)
    (result,) = coefficients(rising[None], np.zeros((1, length)), interval, dtype=dtype)
    falls = np.flatnonzero(np.diff(result)) + 1
    first = 2 * interval
    # After strictly more than 10, 100, 1000 and 10⁴ steps.
    rests = np.array([10, 100, 1000, 10_000]) + interval
    np.testing.assert_array_equal(falls, first + np.concatenate([[0], np.cumsum(rests)]))
    np.testing.assert_allclose(result[falls], [1e-2, 1e-3, 1e-4, 1e-5, 1e-6], rtol=1e-6)
    expected = transcription(rising.tolist(), [0.0] * length, interval)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_auto_l2_minima_fall_while_it_rests():
    """An increase of the loss in the resting time does not keep the error from its minimum."""
    losses = [0, 1, 2, 3, 4, 5, *[-1.0] * 20]
    errors = [5, 5, 5, 5, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, *[0.0] * 12]
    # The coefficient falls at step 2, then rests to step 12. Meanwhile the error's minimum becomes
    # 1, at step 5, when the loss is still above its minimum; from there on the error exceeds it.
    (result,) = coefficients(np.array([losses]), np.array([errors]), 1)
    np.testing.assert_allclose(result[:14], [0.1] * 2 + [0.01] * 11 + [0.001], rtol=1e-14)


def test_auto_l2_minima_do_not_fall_with_the_coefficient():
    """At step 2 the loss makes the coefficient fall, and so the error of step 1 is passed over."""
    losses, errors = [0, 1, 2, *[-1.0] * 20], [5, 1, *[5.0] * 21]
    (result,) = coefficients(np.array([losses]), np.array([errors]), 1)
    np.testing.assert_allclose(result, [0.1] * 2 + [0.01] * 21, rtol=1e-14)


def test_auto_l2_looks_at_every_interval_only():
    """What happens in between is not seen."""
    length, interval = 200, 10
    rng = np.random.default_rng(3)
    losses = rng.normal(size=length)
    noisy = np.where(np.arange(length) % interval == 0, losses, 1e3 * rng.normal(size=length))
    results = coefficients(np.array([losses, noisy]), np.zeros((2, length)), interval)
    np.testing.assert_array_equal(results[0], results[1])
    assert results[0, -1] < 0.1


def test_auto_l2_without_a_defined_error_goes_by_the_loss():
    rng = np.random.default_rng(5)
    losses = rng.normal(size=(4, 300))
    undefined, constant = np.full((4, 300), np.nan), np.ones((4, 300))
    np.testing.assert_array_equal(
        coefficients(losses, undefined, 5), coefficients(losses, constant, 5)
    )


@pytest.mark.parametrize("initial", [0.0, 0.03, 1e-12])
def test_auto_l2_may_start_from_any_coefficient(initial):
    length = 400
    # Late enough that the longest rest counted from there would overflow.
    rising = np.maximum(np.arange(length, dtype=np.float64), 200)
    (result,) = coefficients(rising[None], np.zeros((1, length)), 1, initial=initial)
    if initial == 0:
        assert (result == 0).all()
        return
    expected = transcription(rising.tolist(), [0.0] * length, 1, Fraction(initial))
    np.testing.assert_allclose(result, expected, rtol=1e-14)


def test_auto_l2_is_coupled_through_the_momentum_buffer():
    """In a chain with optax's own optimizer, and the same inside make_optimizer."""
    losses = np.random.default_rng(7).normal(size=NUM_STEPS)
    decays = transcription(losses.tolist(), [1.0] * NUM_STEPS, 5)
    assert len(set(decays)) > 1

    def by_numpy(parameters, gradients):
        buffer = np.zeros_like(parameters)
        for gradient, decay in zip(gradients, decays, strict=True):
            buffer = 0.9 * buffer + gradient + decay * parameters
            parameters = parameters - 0.2 * buffer
        return parameters

    expected = jax.tree.map(by_numpy, draw(0), draw(1, (NUM_STEPS,)))
    rule = OptimizerRule("sgd", True, "auto_l2", auto_l2_interval=5)
    result = descend(rule, Hyperparameters(0.2, 0.9, 0.1), losses=losses)
    assert_same(result, expected)

    optimizer = optax.chain(auto_l2(interval=5), optax.sgd(0.2, momentum=0.9))
    parameters = draw(0)
    state = optimizer.init(parameters)
    gradients = draw(1, (NUM_STEPS,))
    for step, loss in enumerate(losses):
        gradient = jax.tree.map(lambda g, step=step: g[step], gradients)
        updates, state = optimizer.update(gradient, state, parameters, loss=loss, error=1.0)
        parameters = optax.apply_updates(parameters, updates)
    assert_same(parameters, expected)


def test_auto_l2_needs_parameters_loss_and_error():
    transformation = auto_l2()
    state = transformation.init(jnp.ones(2))
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        transformation.update(jnp.ones(2), state, loss=1.0, error=1.0)
    with pytest.raises(TypeError, match="loss"):
        transformation.update(jnp.ones(2), state, jnp.ones(2), error=1.0)
