"""Losses of the richness paper's toy models, as functions of the centred and scaled output.

Both are convex with their minimum at an output of 1. They are written for the arrays of NumPy and
of JAX, whose module `xp` is; JAX is not imported here, so that figures need not wait for it.

Reference: richness paper, equations 4 and 9; catalogue item 1.1 (8).
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

# Probability of the first label, chosen so that the cross-entropy is smallest at an output of 1.
_FIRST_LABEL = 1.0 / (1.0 + math.exp(-1.0))


class OfOutput(Protocol):
    """A function of outputs, which are an array of the module `xp`."""

    def __call__(self, output: Any, xp: Any = np) -> Any:
        """Values of the shape of the outputs."""


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

    value: OfOutput
    slope: OfOutput
    curvature: OfOutput
    at_start: float
    initial_residual: float
    minimum: float
    minimal_curvature: float


@cache
def outputs_below(loss: ToyLoss, level: float) -> tuple[float, float]:
    """The interval of outputs whose loss is at most `level`, which is above the minimum."""
    from scipy.optimize import brentq  # takes a third of a second, and few need it

    def excess(output: float) -> float:
        return float(loss.value(output)) - level

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


def _squared_error(output: Any, xp: Any = np) -> Any:
    return (output - 1.0) ** 2 / 2


def _squared_error_slope(output: Any, xp: Any = np) -> Any:
    return output - 1.0


def _squared_error_curvature(output: Any, xp: Any = np) -> Any:
    return xp.ones_like(output)


def _cross_entropy(output: Any, xp: Any = np) -> Any:
    """The paper prints the two weights exchanged, with the minimum at an output of -1."""
    first, second = xp.logaddexp(0.0, -output), xp.logaddexp(0.0, output)
    return _FIRST_LABEL * first + (1 - _FIRST_LABEL) * second


def _cross_entropy_slope(output: Any, xp: Any = np) -> Any:
    return 1.0 / (1.0 + xp.exp(-output)) - _FIRST_LABEL


def _cross_entropy_curvature(output: Any, xp: Any = np) -> Any:
    return 1.0 / (1.0 + xp.exp(-output)) / (1.0 + xp.exp(output))


TOY_LOSSES: dict[str, ToyLoss] = {
    "mean_squared_error": ToyLoss(
        value=_squared_error,
        slope=_squared_error_slope,
        curvature=_squared_error_curvature,
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
