"""Lines of progress, and the operations of a step by hand and by tracing."""

import io
import logging
import math
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases import progress
from sgdphases.models.convolution import convolve
from sgdphases.progress import Progress, matrix_product_flop


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "sgdphases")
    return lambda: [record.getMessage() for record in caplog.records]


def test_lines_at_most_every_ten_seconds(clock, lines):
    with Progress("l2/mnist", 1000, 4, flop_per_step_per_run=1e9) as report:
        clock.now += 4
        report.update(40, 4)
        assert lines() == []
        clock.now += 6
        report.update(100, 2)
        clock.now += 5
        report.update(200, 2)
        clock.now += 5
        report.update(300, 1)
    # 100 steps of 4 runs, then 200 of 2: pace and GFLOP/s are those since the line before.
    assert lines() == [
        "training l2/mnist: step 100 of 1000, 10 steps/s, 2 of 4 runs alive, 40 GFLOP/s, "
        "at most 0:01:30 left",
        "training l2/mnist: step 300 of 1000, 20 steps/s, 1 of 4 runs alive, 40 GFLOP/s, "
        "at most 0:00:35 left",
        "training l2/mnist: step 300 of 1000, 15 steps/s, 1 of 4 runs alive, 40 GFLOP/s, "
        "0:00:20 taken",
    ]


def test_steps_before_the_resumption_count_for_nothing(clock, lines):
    with Progress("a", 600, 2, 1e9, first_step=500, first_run_steps=900) as report:
        clock.now += 10
        report.update(510, 2, run_steps=920)
    assert lines()[0].endswith("1 steps/s, 2 of 2 runs alive, 2 GFLOP/s, at most 0:01:30 left")


def test_nothing_done_and_operations_unknown(clock, lines):
    with Progress("a", 10, 2, math.nan) as report:
        clock.now += 10
        report.update(0, 2)
    assert "0 steps/s, 2 of 2 runs alive, unknown GFLOP/s, time left unknown" in lines()[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal_and_none_in_a_file(monkeypatch, clock):
    def output_of(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        handler = logging.StreamHandler(stream)
        logger = logging.getLogger()
        logger.addHandler(handler)
        logging.getLogger("sgdphases").setLevel(logging.INFO)
        try:
            with Progress("l2/mnist", 100, 3, 1.0) as report:
                for step in (10, 60):
                    clock.now += 10
                    report.update(step, 2)
        finally:
            logger.removeHandler(handler)
        return stream.getvalue()

    shown = output_of(Terminal())
    assert "60/100" in shown
    assert "2 of 3 runs" in shown
    # The lines of the log are whole, each on its own.
    assert shown.replace("\r", "\n").count("\ntraining l2/mnist: step 60 of 100") >= 1
    plain = output_of(io.StringIO())
    assert "\r" not in plain
    assert [line.split(",")[0] for line in plain.splitlines()] == [
        "training l2/mnist: step 10 of 100",
        "training l2/mnist: step 60 of 100",
        "training l2/mnist: step 60 of 100",
    ]


def shapes(*sizes):
    return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


LAYERS, BATCH = (784, 512, 256, 10), 128
# A product forward, one for each weight's gradient, and one for the gradient that is passed back
# to every layer but the first.
FORWARD = 2 * BATCH * (784 * 512 + 512 * 256 + 256 * 10)
BACKWARD = FORWARD + 2 * BATCH * (512 * 256 + 256 * 10)


def mlp_loss(parameters, inputs, activation=jnp.tanh):
    for weight in parameters[:-1]:
        inputs = activation(inputs @ weight)
    return jnp.mean((inputs @ parameters[-1]) ** 2)


WEIGHTS = shapes(*pairwise(LAYERS))
(INPUTS,) = shapes((BATCH, LAYERS[0]))


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu, jax.nn.gelu])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(jax.jit(f))])
def test_fully_connected_forward_and_backward(activation, wrap):
    def loss(parameters, inputs):
        return mlp_loss(parameters, inputs, activation)

    assert matrix_product_flop(wrap(loss), WEIGHTS, INPUTS) == FORWARD
    both = jax.value_and_grad(wrap(loss))
    assert matrix_product_flop(both, WEIGHTS, INPUTS) == FORWARD + BACKWARD
    assert matrix_product_flop(wrap(both), WEIGHTS, INPUTS) == FORWARD + BACKWARD


def test_many_runs_count_many_times():
    weights = [jax.ShapeDtypeStruct((5, *leaf.shape), leaf.dtype) for leaf in WEIGHTS]
    both = jax.vmap(jax.value_and_grad(mlp_loss), in_axes=(0, None))
    assert matrix_product_flop(both, weights, INPUTS) == 5 * (FORWARD + BACKWARD)


def test_agrees_with_the_compiler_where_there_is_nothing_but_products():
    (left, right) = shapes((64, 96), (96, 32))
    counted = jax.jit(jnp.matmul).lower(left, right).compile().cost_analysis()["flops"]
    assert matrix_product_flop(jnp.matmul, left, right) == counted == 2 * 64 * 96 * 32


def test_loops_conditions_and_own_derivatives():
    (matrix,) = shapes((8, 8))
    product = 2 * 8**3

    @jax.custom_vjp
    def square(x):
        return x @ x

    square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, length=7)[0]

    def nested(x):
        return jax.lax.fori_loop(0, 3, lambda _, c: scanned(c), x)

    def mapped(x):
        return jax.lax.map(lambda _: x @ x, jnp.arange(4))

    def conditional(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y, lambda y: y @ y @ y, x)

    def unneeded(x):
        unused = x @ x
        return x + 0 * unused.shape[0]

    expected = {
        scanned: 7,
        nested: 21,
        mapped: 4,
        conditional: 2,
        unneeded: 0,
        square: 1,
        jax.grad(lambda x: square(x).sum()): 2,
        jax.checkpoint(lambda x: x @ x): 1,
        lambda x: jnp.einsum("ij,kj->ik", x, x): 1,
        lambda x: x @ x[0]: 1 / 8,
        jnp.sin: 0,
    }
    for function, products in expected.items():
        assert matrix_product_flop(function, matrix) == products * product


def test_loop_of_unknown_length_has_no_number():
    def until_large(x):
        return jax.lax.while_loop(lambda c: c.sum() < 1e9, lambda c: c @ c, x)

    def newton(x):  # no products: its length does not matter
        return jax.lax.while_loop(lambda c: c.sum() < 1e9, lambda c: 2 * c, x) @ x

    (matrix,) = shapes((8, 8))
    assert math.isnan(matrix_product_flop(until_large, matrix))
    assert math.isnan(
        matrix_product_flop(lambda x: jax.lax.cond(True, until_large, newton, x), matrix)
    )
    assert matrix_product_flop(newton, matrix) == 2 * 8**3


def test_spread_over_devices_counts_all_of_them():
    mesh = jax.make_mesh((1,), ("runs",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("runs")
    spread = jax.shard_map(
        lambda x: jax.vmap(lambda y: y @ y)(x), mesh=mesh, in_specs=spec, out_specs=spec
    )
    assert matrix_product_flop(spread, *shapes((3, 8, 8))) == 3 * 2 * 8**3


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_forward_and_backward(stride):
    """Each of the two gradients needs as many products as the convolution itself."""
    inputs, kernel = shapes((2, 8, 8, 3), (3, 3, 3, 5))

    def loss(x, w):
        return jnp.sum(convolve(x, w, stride, "SAME", "native") ** 2)

    forward = 2 * (2 * (8 // stride) ** 2 * 5) * (3 * 3 * 3)
    assert matrix_product_flop(loss, inputs, kernel) == forward
    assert matrix_product_flop(jax.grad(loss, argnums=1), inputs, kernel) == 2 * forward
    assert matrix_product_flop(jax.grad(loss, argnums=(0, 1)), inputs, kernel) == 3 * forward


# Not "explicit", which is a primitive of its own: training counts the products of "patches".
@pytest.mark.parametrize("method", ["patches", "native"])
def test_convolution_counts_the_same_however_it_is_computed(method):
    inputs, kernel = shapes((2, 8, 8, 3), (3, 3, 3, 5))

    def loss(x, w):
        return jnp.sum(convolve(x, w, 1, "SAME", method) ** 2)

    forward = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
    assert matrix_product_flop(jax.value_and_grad(loss, argnums=1), inputs, kernel) == 2 * forward


def test_grouped_convolution_and_runs_as_groups():
    inputs, kernel = shapes((2, 8, 8, 6), (3, 3, 2, 9))

    def convolution(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        )

    forward = 2 * (2 * 8 * 8 * 9) * (3 * 3 * 2)
    assert matrix_product_flop(convolution, inputs, kernel) == forward
    many = jax.vmap(jax.grad(lambda w, x: jnp.sum(convolution(x, w) ** 2)), in_axes=(0, None))
    (kernels,) = shapes((4, 3, 3, 2, 9))
    assert matrix_product_flop(many, kernels, inputs) == 4 * 2 * forward


def test_arrays_serve_as_shapes():
    assert matrix_product_flop(jnp.dot, np.ones(3), np.ones(3)) == 6
