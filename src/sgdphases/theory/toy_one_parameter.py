r"""One parameter: a linear network of width 1 whose weights start at 1 and stay equal.

.. math:: \tilde f(w) = (w^L - 1) / \gamma, \qquad w_0 = 1, \qquad w_* = (1 + \gamma)^{1/L}

Rates are those of the repeated weight, whose gradient is L times that of a single one.

Reference: richness paper, sections 4.1, 4.2 and F.1; catalogue item 1.10.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from sgdphases.theory.simulation import Hyperparameters, State
from sgdphases.theory.toy_losses import TOY_LOSSES, ToyLoss
from sgdphases.theory.toy_simulation import DeviceState, ToyModel, ToyProgram

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
    slope: jax.Array = loss.slope(output(weight, depth, richness), jnp)
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
    curvature: jax.Array = loss.curvature(value, jnp)
    slope: jax.Array = loss.slope(value, jnp)
    return curvature * tangent**2 + slope * residual


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
