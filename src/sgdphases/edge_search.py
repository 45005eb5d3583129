"""The edges of a network's portrait, found with short training runs at many learning rates.

For each case, which is a run without its learning rate, a range of many decades is scanned and
refined around the edge (`sgdphases.edges`); all rates of all cases of one compiled shape train
together. What counts as trained, converged and peaked is said by `sgdphases.portraits`.

Reference: richness paper, section 3.1 and appendix A, which walks down from a rate of 1e12.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sgdphases.config import shape_key
from sgdphases.datasets.loading import Dataset
from sgdphases.edges import Edges, Rates, find_edges
from sgdphases.errors import InputError
from sgdphases.grid import LEARNING_RATE_UNIT
from sgdphases.portraits import EDGES, PortraitRules, is_below_edge
from sgdphases.training import Execution, train_shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EdgeSearch:
    """What is searched, and where.

    Attributes:
        edge: A name in `sgdphases.portraits.EDGES`.
        decades: Length of the range, which begins at each case's learning rate.
        rates_per_decade: Rates of the first round.
        rounds: Rounds; each further one divides the bracket by the number of rates.
        rules: What counts as trained, as converged and as peaked.

    Raises:
        InputError: A value that is not allowed.
    """

    edge: str = "convergence"
    decades: float = 20.0
    rates_per_decade: int = 2
    rounds: int = 2
    # A short run shows that it trains long before it has converged.
    rules: PortraitRules = field(default_factory=lambda: PortraitRules(converged_loss=0.9))

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        if self.edge not in EDGES:
            raise InputError(f"edge: {self.edge!r} is not allowed; allowed: {', '.join(EDGES)}")
        for name in ("decades", "rates_per_decade", "rounds"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"{name}: {getattr(self, name)!r} is not allowed; allowed: above 0"
                )


def search_edges(
    settings: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    search: EdgeSearch,
    execution: Execution | None = None,
) -> pd.DataFrame:
    """Find one edge for each of some cases.

    Args:
        settings: The resolved experiment, as `sgdphases.training.train_shard` reads it; `stopping`
            says how long each run that is tried trains. Only its first and last step are measured.
        cases: Complete runs with `run_id`; their absolute `learning_rate` is where the range
            begins.
        dataset: The data.
        search: What is searched, and where.
        execution: How the runs are computed; without checkpoints.

    Returns:
        One row per case, in their order: its hyperparameters, `edge`, `learning_rate`, the last
        rate before the edge, and `rate_beyond`, the first tried beyond it. The latter is NaN where
        the range has no edge, which is logged; the former is then the end of what was searched.

    Raises:
        InputError: No case, a rate in other than absolute units, or what training refuses.
    """
    if not cases:
        raise InputError("edge search: no case; allowed: at least one")
    for case in cases:
        unit = case.get(LEARNING_RATE_UNIT, "absolute")
        if unit != "absolute":
            raise InputError(
                f"edge search: run {case['run_id']!r}: {LEARNING_RATE_UNIT} {unit!r} is not "
                "allowed; allowed: an absolute rate, at which the range begins"
            )
    quiet = {**settings, "measurements": {"steps": [0]}}
    before = np.full(len(cases), np.nan)
    beyond = np.full(len(cases), np.nan)
    shapes: dict[str, list[int]] = {}
    for position, case in enumerate(cases):
        shapes.setdefault(shape_key(case), []).append(position)
    for positions in shapes.values():
        found = _search_shape(quiet, [cases[i] for i in positions], dataset, search, execution)
        before[positions], beyond[positions] = found.before, found.beyond
    table = pd.DataFrame([dict(case) for case in cases])
    table["edge"] = search.edge
    table["learning_rate"], table["rate_beyond"] = before, beyond
    for case, last, next_rate in zip(cases, before, beyond, strict=True):
        if not np.isfinite(next_rate):
            logger.warning(
                "run %s: no %s edge between the learning rates %.3g and %.3g (searched up to %.3g)",
                case["run_id"],
                search.edge,
                case["learning_rate"],
                case["learning_rate"] * 10**search.decades,
                last,
            )
    return table


def _search_shape(
    settings: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    search: EdgeSearch,
    execution: Execution | None,
) -> Edges:
    """Find the edges of cases of one compiled shape."""

    def holds(rates: Rates) -> NDArray[np.bool_]:
        runs = [
            {**case, "run_id": f"{case['run_id']}/{i}", "learning_rate": float(rate)}
            for case, row in zip(cases, rates, strict=True)
            for i, rate in enumerate(row)
        ]
        table = train_shard(settings, runs, [""] * len(runs), dataset, {}, execution).runs
        below = is_below_edge(
            search.rules,
            np.full(len(runs), search.edge, dtype=object),
            table["status"].to_numpy(dtype=object),
            *(
                table[f"{name}_train_loss"].to_numpy(dtype=float, na_value=np.nan)
                for name in ("initial", "peak", "final")
            ),
        )
        return below.reshape(rates.shape)

    starts = np.array([case["learning_rate"] for case in cases], dtype=float)
    return find_edges(holds, starts, search.decades, search.rates_per_decade, search.rounds)


def rates_below(edge: ArrayLike, decades: float = 3.0, rates_per_decade: int = 2) -> Rates:
    """Learning rates at and below an edge, evenly spaced in logarithms.

    Args:
        edge: (cases,) rates of the edges, or one.
        decades: How far below.
        rates_per_decade: How densely.

    Returns:
        (cases, rates) learning rates, decreasing; with the defaults the 7 of the paper.
    """
    count = round(decades * rates_per_decade) + 1
    factors = 10.0 ** -(np.arange(count) / rates_per_decade)
    return np.asarray(np.asarray(edge, dtype=float)[..., None] * factors)
