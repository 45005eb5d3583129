"""Losses of the richness paper's toy models, as functions of the centred and scaled output.

Both are convex with their minimum at an output of 1 and are meant for arrays of JAX in float64.

Reference: richness paper, equations 4 and 9; catalogue item 1.1 (8).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
from scipy.optimize import brentq

# Probability of the first label, chosen so that the cross-entropy is smallest at an output of 1.
_FIRST_LABEL = 1.0 / (1.0 + math.exp(-1.0))


@dataclass(frozen=True)
class ToyLoss:
    """A loss of one output.

    Attributes:
        value: Outputs to losses.
        slope: Outputs to first derivatives.
        curvature: Outputs to second derivatives.
        at_start: The loss of an output of 0, with which every run starts.
        initial_residual: Minus the first derivative there.
        minimum: The smallest loss, at an output of 1.
        minimal_curvature: The second derivative there.
    """

    value: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]
    curvature: Callable[[jax.Array], jax.Array]
    at_start: float
    initial_residual: float
    minimum: float
    minimal_curvature: float


@cache
def outputs_below(loss: ToyLoss, level: float) -> tuple[float, float]:
    """The interval of outputs whose loss is at most `level`, which is above the minimum."""

    def excess(output: float) -> float:
        with jax.enable_x64(True):
            return float(loss.value(jnp.asarray(output))) - level

    ends = []
    for direction in (-1.0, 1.0):
        distance = 1.0
        while excess(1.0 + direction * distance) <= 0:
            distance *= 10
        ends.append(brentq(excess, 1.0, 1.0 + direction * distance, rtol=1e-14))
    return ends[0], ends[1]


def output_when_trained(loss: ToyLoss, trained_loss: float) -> float:
    """The output below 1 at which the loss, above the smallest, has fallen to a fraction of it.

    Args:
        loss: The loss.
        trained_loss: The fraction of the loss at an output of 0.
    """
    level = loss.minimum + trained_loss * (loss.at_start - loss.minimum)
    return outputs_below(loss, level)[0]


def _squared_error(output: jax.Array) -> jax.Array:
    return (output - 1.0) ** 2 / 2


def _squared_error_slope(output: jax.Array) -> jax.Array:
    return output - 1.0


def _cross_entropy(output: jax.Array) -> jax.Array:
    """The paper prints the two weights exchanged, with the minimum at an output of -1."""
    return _FIRST_LABEL * jnp.logaddexp(0.0, -output) + (1 - _FIRST_LABEL) * jnp.logaddexp(
        0.0, output
    )


def _cross_entropy_slope(output: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(output) - _FIRST_LABEL


def _cross_entropy_curvature(output: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(output) * jax.nn.sigmoid(-output)


TOY_LOSSES: dict[str, ToyLoss] = {
    "mean_squared_error": ToyLoss(
        value=_squared_error,
        slope=_squared_error_slope,
        curvature=jnp.ones_like,
        at_start=0.5,
        initial_residual=1.0,
        minimum=0.0,
        minimal_curvature=1.0,
    ),
    "cross_entropy": ToyLoss(
        value=_cross_entropy,
        slope=_cross_entropy_slope,
        curvature=_cross_entropy_curvature,
        at_start=math.log(2.0),
        initial_residual=_FIRST_LABEL - 0.5,
        minimum=_FIRST_LABEL * math.log1p(math.exp(-1.0)) + (1 - _FIRST_LABEL) * math.log1p(math.e),
        minimal_curvature=_FIRST_LABEL * (1 - _FIRST_LABEL),
    ),
}
