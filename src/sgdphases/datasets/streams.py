"""Streams: datasets whose training samples are drawn afresh at every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdphases.datasets.arrays import Array

# By the power of the link function, the factor before it.
LINK_FACTORS = {2: 1.0, 3: 0.1}


@dataclass(frozen=True)
class SingleIndex:
    r"""Samples of a single-index model.

    .. math:: x \sim N(0, I_D), \quad y = a (w \cdot x)^k, \quad \|w\| = 1

    Attributes:
        direction: (D,) the unit vector w, float64.
        link_power: k.
        factor: a.

    Reference:
        Richness paper, fig. 13. With the printed w of independent normal entries y would grow as
        D^(k/2) (catalogue item 60).
    """

    direction: Array
    link_power: int
    factor: float

    @property
    def input_dim(self) -> int:
        """D."""
        return len(self.direction)

    def targets(self, inputs: Array) -> Array:
        """(samples, 1) targets of (samples, D) inputs."""
        projections = inputs @ self.direction
        targets: Array = self.factor * projections[:, None] ** self.link_power
        return targets

    def as_json(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "kind": "single_index",
            "direction": self.direction.tolist(),
            "link_power": self.link_power,
            "factor": self.factor,
        }


def make_single_index(
    input_dim: int, link_power: int, generator: np.random.Generator
) -> SingleIndex:
    """A single-index model of a random direction.

    Args:
        input_dim: D.
        link_power: 2, or 3.
        generator: Draws the direction.

    Returns:
        The model.
    """
    direction = generator.standard_normal(input_dim)
    return SingleIndex(direction / np.linalg.norm(direction), link_power, LINK_FACTORS[link_power])


def read_stream(description: Mapping[str, Any]) -> SingleIndex:
    """The stream that a manifest describes."""
    return SingleIndex(
        np.array(description["direction"], dtype=np.float64),
        int(description["link_power"]),
        float(description["factor"]),
    )
