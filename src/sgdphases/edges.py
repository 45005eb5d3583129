"""Find the learning rate at which runs change their behaviour: a batched coarse-to-fine scan.

Many rates are tried for each case at once, first over many decades, then around the change, again
and again. A bisection would try one at a time, and be misled by rates at which a run that does not
settle looks for once as if it had.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rates = NDArray[np.float64]


@dataclass(frozen=True)
class Edges:
    """Where some property that holds at small rates ceases to hold.

    Attributes:
        before: (cases,) the largest rate tried of the first stretch of rates at which it holds.
        beyond: (cases,) the smallest rate tried above that, at which it does not; NaN where it
            never held, still held at the end of the range, or ceased to before it begins: then
            there is no edge.
    """

    before: Rates
    beyond: Rates

    @property
    def is_found(self) -> NDArray[np.bool_]:
        """(cases,) whether the range contains the edge."""
        return np.isfinite(self.beyond)


def find_edges(
    holds: Callable[[Rates], NDArray[np.bool_]],
    first_rates: Rates,
    decades: float,
    rates_per_decade: int,
    rounds: int,
    holds_below: ArrayLike = False,
) -> Edges:
    """Find the end of the first stretch of learning rates at which a property holds.

    Islands beyond that stretch, at which it holds once more, do not count. The second round begins
    one rate of the first below the last at which the property held, which may have been an island.

    Args:
        holds: From (cases, rates) learning rates, increasing along each row, to whether the
            property holds; called with the same shape in every round.
        first_rates: (cases,) smallest rate of each case's range.
        decades: Length of the range.
        rates_per_decade: Rates tried per decade in the first round.
        rounds: Rounds; each divides the bracket by the number of rates tried.
        holds_below: Whether the property holds at all small enough rates, for all cases or for
            each: where it does not at the first one, the edge lies below the range, and what
            follows is an island.

    Returns:
        The edges, one per case.
    """
    count = round(decades * rates_per_decade) + 1
    low, high = np.log10(first_rates), np.log10(first_rates) + decades
    found = np.ones(len(first_rates), dtype=bool)
    for attempt in range(rounds):
        exponents = np.linspace(low, high, count, axis=1)
        held = holds(10.0**exponents)
        start = held.argmax(axis=1)
        after = ~held & (np.arange(count) > start[:, None])
        end = after.argmax(axis=1)
        is_inside = held.any(axis=1) & after.any(axis=1)
        if attempt == 0:
            has_begun = held.any(axis=1) & (held[:, 0] | ~np.asarray(holds_below))
            found = is_inside & has_begun
            # The ends of the range tell how far it was searched.
            never = np.where(has_begun, high, low)
        rows = np.flatnonzero(found & is_inside)
        margin = 2 if attempt == 0 else 1
        low[rows] = exponents[rows, np.maximum(end[rows] - margin, 0)]
        high[rows] = exponents[rows, end[rows]]
    return Edges(
        before=10.0 ** np.where(found, low, never), beyond=np.where(found, 10.0**high, np.nan)
    )
