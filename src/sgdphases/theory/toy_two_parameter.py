r"""Two parameters: two layers with orthogonal weights u = (1, 0) and v = (0, 1) at the start.

.. math:: \tilde f = u \cdot v / \gamma = 2 u_1 u_2 / \gamma, \qquad
    K = (|u|^2 + |v|^2) / \gamma^2 = 2 (u_1^2 + u_2^2) / \gamma^2

v stays u with its elements exchanged. Unlike with one parameter, K can fall: there are catapults.

Reference: richness paper, appendix D; catalogue item 1.10.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from sgdphases.theory.simulation import Hyperparameters, State
from sgdphases.theory.toy_losses import TOY_LOSSES
from sgdphases.theory.toy_simulation import DeviceState, ToyModel, ToyProgram

Pair = tuple[jax.Array, jax.Array]


def output(first: jax.Array, second: jax.Array, richness: jax.Array) -> jax.Array:
    """The output 2 u1 u2 / gamma, which starts at 0 and needs no centring."""
    return 2.0 * first * second / richness


def tangent_kernel(first: jax.Array, second: jax.Array, richness: jax.Array) -> jax.Array:
    """The kernel K = 2 (u1^2 + u2^2) / gamma^2."""
    return 2.0 * (first**2 + second**2) / richness**2


def weight_step(
    first: jax.Array,
    second: jax.Array,
    residual: jax.Array,
    learning_rate: jax.Array,
    richness: jax.Array,
) -> Pair:
    """One step of gradient descent, u' = u + (eta Delta / gamma) swap(u).

    Args:
        first: (runs,) weights u1.
        second: (runs,) weights u2.
        residual: (runs,) Delta, minus the derivative of the loss by the output.
        learning_rate: (runs,) learning rate eta.
        richness: (runs,) richness gamma.

    Returns:
        Both weights after the step.

    Reference:
        Richness paper, equation 20, which lacks eta and has the sign wrong.
    """
    shift = learning_rate * residual / richness
    return first + shift * second, second + shift * first


def function_step(
    value: jax.Array,
    kernel: jax.Array,
    residual: jax.Array,
    learning_rate: jax.Array,
    richness: jax.Array,
) -> Pair:
    r"""One step of gradient descent in function space.

    .. math:: \tilde f' = \tilde f + \eta \Delta K + (\eta \Delta / \gamma)^2 \tilde f, \qquad
        K' = K + (\eta \Delta^2 / \gamma^2) (\eta K + 4 \tilde f / \Delta)

    Exact, whatever the loss.

    Args:
        value: (runs,) outputs f.
        kernel: (runs,) kernels K.
        residual: (runs,) Delta, minus the derivative of the loss by the output.
        learning_rate: (runs,) learning rate eta.
        richness: (runs,) richness gamma.

    Returns:
        Output and kernel after the step.

    Reference:
        Richness paper, equation 22, which has gamma for gamma^2 in the first line.
    """
    shift = learning_rate * residual / richness
    return (
        value + learning_rate * residual * kernel + shift**2 * value,
        kernel + shift**2 * kernel + 4.0 * learning_rate * residual * value / richness**2,
    )


def _start(hyperparameters: Hyperparameters) -> State:
    richness = hyperparameters["richness"].astype(float)
    return {
        "first": np.ones_like(richness),
        "second": np.zeros_like(richness),
        "richness": richness,
    }


def _output(state: DeviceState) -> jax.Array:
    return output(state["first"], state["second"], state["richness"])


def _kernel(state: DeviceState) -> jax.Array:
    return tangent_kernel(state["first"], state["second"], state["richness"])


@cache
def make_program(loss: str) -> ToyProgram:
    """The program of one loss.

    Args:
        loss: A key of `TOY_LOSSES`.

    Returns:
        The program; equal arguments give the same one, so that it is compiled once.
    """
    loss_function = TOY_LOSSES[loss]

    def advance(state: DeviceState) -> DeviceState:
        first, second = weight_step(
            state["first"],
            state["second"],
            -loss_function.slope(_output(state), jnp),
            state["learning_rate"],
            state["richness"],
        )
        return {**state, "first": first, "second": second}

    return ToyProgram(_start, advance, _output, loss_function, _kernel)


@cache
def make_updates_program(loss: str) -> ToyProgram:
    """The program of one loss that compares each step with the one in function space.

    Args:
        loss: A key of `TOY_LOSSES`.

    Returns:
        The program, which observes `step_deviation`, the largest relative deviation of output or
        kernel so far, and `kernel_fell`, 1 while the kernel has fallen in every step in which it
        had to: those with eta K of at most 4 and an output beyond the target by more than it.
    """
    plain = make_program(loss)

    def start(hyperparameters: Hyperparameters) -> State:
        state = _start(hyperparameters)
        unseen = np.zeros_like(state["first"])
        return {**state, "step_deviation": unseen, "kernel_fell": unseen + 1.0}

    def advance(state: DeviceState) -> DeviceState:
        value, kernel = _output(state), _kernel(state)
        rate, richness = state["learning_rate"], state["richness"]
        residual = -plain.loss.slope(value, jnp)
        expected_value, expected_kernel = function_step(value, kernel, residual, rate, richness)
        state = plain.advance(state)
        moved = _kernel(state)
        deviation = jnp.maximum(
            jnp.abs(_output(state) - expected_value) / jnp.maximum(jnp.abs(expected_value), 1.0),
            jnp.abs(moved - expected_kernel) / jnp.maximum(moved, kernel),
        )
        # K' - K is (eta Delta^2 / gamma^2) (eta K + 4 f / Delta).
        must_fall = (rate * kernel <= 4.0) & (value * residual < -(residual**2))
        return {
            **state,
            "step_deviation": jnp.maximum(state["step_deviation"], deviation),
            "kernel_fell": jnp.where(must_fall & (moved >= kernel), 0.0, state["kernel_fell"]),
        }

    def observe(state: DeviceState) -> DeviceState:
        return {name: state[name] for name in ("step_deviation", "kernel_fell")}

    return ToyProgram(start, advance, _output, plain.loss, _kernel, observe)


TWO_PARAMETER = ToyModel(
    hyperparameters=("richness", "loss"), shape=("loss",), program=make_program
)
UPDATES = ToyModel(
    hyperparameters=("richness", "loss"), shape=("loss",), program=make_updates_program
)
