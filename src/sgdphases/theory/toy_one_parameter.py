r"""One parameter: a linear network of width 1 whose weights start at 1 and stay equal.

.. math:: \tilde f(w) = (w^L - 1) / \gamma, \qquad w_0 = 1, \qquad w_* = (1 + \gamma)^{1/L}

Rates are those of the repeated weight, whose gradient is L times that of a single one.

Reference: richness paper, sections 4.1, 4.2 and F.1; catalogue item 1.10.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgdphases.theory.simulation import Hyperparameters, State
from sgdphases.theory.toy_losses import TOY_LOSSES, ToyLoss, output_when_trained
from sgdphases.theory.toy_simulation import DeviceState, ToyModel, ToyProgram

Array = NDArray[np.float64]

MOST_DEPTH = 63


def power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """Whole powers, from 0 to `MOST_DEPTH`, by repeated squaring: faster than the general power."""
    result = jnp.ones_like(base)
    for bit in range(MOST_DEPTH.bit_length()):
        result = jnp.where((exponent >> bit) & 1, result * base, result)
        base = base * base
    return result


def output(weight: jax.Array, depth: jax.Array, richness: jax.Array) -> jax.Array:
    """The centred output (w^L - 1) / gamma."""
    return (power(weight, depth) - 1.0) / richness


def gradient(weight: jax.Array, depth: jax.Array, richness: jax.Array, loss: ToyLoss) -> jax.Array:
    """Derivative of the loss by the weight, l'(f) L w^(L-1) / gamma.

    Args:
        weight: (runs,) weights w.
        depth: (runs,) depth L.
        richness: (runs,) richness gamma.
        loss: The loss l.

    Returns:
        (runs,) derivatives.

    Reference:
        Richness paper, equations 4 and 9.
    """
    slope = loss.slope(output(weight, depth, richness))
    return slope * depth * power(weight, depth - 1) / richness


def sharpness(weight: jax.Array, depth: jax.Array, richness: jax.Array, loss: ToyLoss) -> jax.Array:
    """Second derivative of the loss by the weight.

    l''(f) (L w^(L-1) / gamma)^2 + l'(f) L (L-1) w^(L-2) / gamma

    Args:
        weight: (runs,) weights w.
        depth: (runs,) depth L, at least 2.
        richness: (runs,) richness gamma.
        loss: The loss l.

    Returns:
        (runs,) second derivatives.

    Reference:
        Richness paper, equation 6, which gives the first term at the minimum.
    """
    value = output(weight, depth, richness)
    tangent = depth * power(weight, depth - 1) / richness
    residual = depth * (depth - 1) * power(weight, depth - 2) / richness
    return loss.curvature(value) * tangent**2 + loss.slope(value) * residual


# What is known in closed form.


def minimiser(richness: ArrayLike, depth: int) -> Array:
    """The weight (1 + gamma)^(1/L) at which the output is 1; equation 5."""
    return np.asarray((1.0 + np.asarray(richness, dtype=float)) ** (1.0 / depth))


def minimal_sharpness(richness: ArrayLike, depth: int, loss: str) -> Array:
    """Second derivative of the loss at its minimum, l''(1) L^2 w_*^(2L-2) / gamma^2; equation 6."""
    tangent = depth * minimiser(richness, depth) ** (depth - 1) / np.asarray(richness, dtype=float)
    return np.asarray(TOY_LOSSES[loss].minimal_curvature * tangent**2)


def largest_stable_rate(richness: ArrayLike, depth: int, loss: str) -> Array:
    """The rate 2 / l''(w_*) above which descent leaves the minimum; equation 7, with prefactors."""
    return np.asarray(2.0 / minimal_sharpness(richness, depth, loss))


def early_weight(rich_time: ArrayLike, depth: int) -> Array:
    r"""The weight while the output is still far from 1, under gradient flow.

    .. math:: w = e^{2\tau} \ (L = 2), \qquad w = (1 - L(L-2)\tau)^{-1/(L-2)} \ (L \ge 3)

    Args:
        rich_time: tau = eta t / gamma, below 1 / (L(L-2)) for L of at least 3.
        depth: Depth L, at least 2.

    Returns:
        Weights of the shape of `rich_time`.

    Reference:
        Richness paper, equation 8, which lacks the factor L-2 and has the exponent's sign wrong.
    """
    time = np.asarray(rich_time, dtype=float)
    if depth == 2:
        return np.asarray(np.exp(2.0 * time))
    return np.asarray((1.0 - depth * (depth - 2) * time) ** (-1.0 / (depth - 2)))


def early_time(weight: ArrayLike, depth: int) -> Array:
    """The time eta t / gamma at which `early_weight` reaches a weight."""
    weight = np.asarray(weight, dtype=float)
    if depth == 2:
        return np.asarray(np.log(weight) / 2.0)
    return np.asarray((1.0 - weight ** -(depth - 2.0)) / (depth * (depth - 2)))


def smallest_training_rate(
    richness: ArrayLike, depth: int, loss: str, num_steps: int, trained_loss: float
) -> Array:
    """The rate at which the loss just falls enough to count as trained, while it is on the plateau.

    Args:
        richness: Richness gamma.
        depth: Depth L.
        loss: A key of `TOY_LOSSES`.
        num_steps: Steps T.
        trained_loss: Multiple of the initial loss, above the smallest, that counts as trained.

    Returns:
        Rates of the shape of `richness`: gamma^2 / T at small, gamma / T at large richness.

    Reference:
        Richness paper, section 4.1.
    """
    richness = np.asarray(richness, dtype=float)
    function = TOY_LOSSES[loss]
    needed = output_when_trained(function, trained_loss)
    time = early_time((1.0 + richness * needed) ** (1.0 / depth), depth)
    return np.asarray(richness * time / (num_steps * function.initial_residual))


def escape_time(richness: ArrayLike, depth: int) -> Array:
    """The time eta t / gamma at which a rich run leaves the plateau.

    1 / (L (L-2)) for L of at least 3, whatever gamma, and ln(gamma) / 4 for L = 2, where the
    output is logistic and passes 1/2 then.

    Args:
        richness: Richness gamma, far above 1.
        depth: Depth L, at least 2.

    Returns:
        Times of the shape of `richness`.

    Reference:
        Richness paper, section 4.1; catalogue item 1.10.
    """
    richness = np.asarray(richness, dtype=float)
    if depth == 2:
        return np.asarray(np.log(richness) / 4.0)
    return np.full_like(richness, 1.0 / (depth * (depth - 2)))


# The programs.


def _start(hyperparameters: Hyperparameters) -> State:
    richness = hyperparameters["richness"].astype(float)
    return {
        "weight": np.ones_like(richness),
        "richness": richness,
        "depth": hyperparameters["depth"],
        "takes_sign": hyperparameters["optimizer"] == "sign_sgd",
    }


def _output(state: DeviceState) -> jax.Array:
    return output(state["weight"], state["depth"], state["richness"])


def _kernel(state: DeviceState) -> jax.Array:
    return (state["depth"] * state["weight"] ** (state["depth"] - 1) / state["richness"]) ** 2


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
        weight = state["weight"]
        slope = gradient(weight, state["depth"], state["richness"], loss_function)
        step = jnp.where(state["takes_sign"], jnp.sign(slope), slope)
        return {**state, "weight": weight - state["learning_rate"] * step}

    def observe(state: DeviceState) -> DeviceState:
        weight = state["weight"]
        curvature = sharpness(weight, state["depth"], state["richness"], loss_function)
        return {"weight": weight, "sharpness": curvature}

    return ToyProgram(_start, advance, _output, loss_function, _kernel, observe)


ONE_PARAMETER = ToyModel(
    hyperparameters=("richness", "depth", "loss", "optimizer"),
    shape=("loss",),
    program=make_program,
)
