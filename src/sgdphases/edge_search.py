"""The edges of a network's portrait, found with short training runs at many learning rates.

For each case, which is a run without its learning rate, a range of many decades is scanned and
refined around the edge (`sgdphases.edges`); all rates of all cases of one compiled shape train
together. What counts as trained, converged and peaked is said by `sgdphases.portraits`.

Reference: richness paper, section 3.1 and appendix A, which walks down from a rate of 1e12.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.config import shape_key
from sgdphases.datasets.loading import Dataset
from sgdphases.edges import Edges, Rates, find_edges
from sgdphases.errors import InputError
from sgdphases.grid import LEARNING_RATE_UNIT
from sgdphases.portraits import (
    EDGES,
    EDGES_FROM_ZERO,
    PortraitRules,
    is_below_edge,
    richness_law,
    weight_matrices,
)
from sgdphases.training import Execution, train_shard

logger = logging.getLogger(__name__)
# Where a search begins for networks without a depth: the smallest rate that trains rises so.
_SHALLOWEST = 2


@dataclass(frozen=True)
class EdgeSearch:
    """What is searched, and where.

    Attributes:
        edges: Names in `sgdphases.portraits.EDGES`; learning rates are relative to the first.
        decades: Length of the range, which begins at each case's learning rate.
        rates_per_decade: Rates of the first round.
        rounds: Rounds; each further one divides the bracket by the number of rates.
        rules: What counts as trained, as converged and as peaked.

    Raises:
        InputError: A value that is not allowed.
    """

    edges: tuple[str, ...] = ("convergence",)
    decades: float = 20.0
    rates_per_decade: int = 2
    rounds: int = 2
    # A short run shows that it trains long before it has converged.
    rules: PortraitRules = field(default_factory=lambda: PortraitRules(converged_loss=0.9))

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        for edge in self.edges:
            if edge not in EDGES:
                raise InputError(f"edges: {edge!r} is not allowed; allowed: {', '.join(EDGES)}")
        for name in ("decades", "rates_per_decade", "rounds"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"{name}: {getattr(self, name)!r} is not allowed; allowed: above 0"
                )

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Self:
        """What an experiment's sections `edge_search` and `portrait` ask for."""
        section = spec["edge_search"]
        rules = PortraitRules(**{"converged_loss": 0.9, **(spec.get("portrait") or {})})
        return cls(
            edges=tuple(section["edges"]),
            decades=section["decades"],
            rates_per_decade=section["rates_per_decade"],
            rounds=section["rounds"],
            rules=rules,
        )


def search_edges(
    settings: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    search: EdgeSearch,
    execution: Execution | None = None,
) -> pd.DataFrame:
    """Find the edges of some cases.

    Args:
        settings: The resolved experiment, as `sgdphases.training.train_shard` reads it; `stopping`
            says how long each run that is tried trains. Only its first and last step are measured.
        cases: Complete runs without a unit of their learning rate, each with a `case_id`; their
            `learning_rate` is where the range begins.
        dataset: The data.
        search: What is searched, and where.
        execution: How the runs are computed; without checkpoints.

    Returns:
        One row per case and edge, in their orders: the case's `case_id` and hyperparameters,
        `edge`, `learning_rate`, the last rate before the edge, and `rate_beyond`, the first tried
        beyond it. The latter is NaN where the range has no edge, which is logged; the former is
        then the end of what was searched.

    Raises:
        InputError: No case, or what training refuses.
    """
    if not cases:
        raise InputError("edge search: no case; allowed: at least one")
    quiet = {**settings, "measurements": {"steps": [0]}}
    before = np.full((len(cases), len(search.edges)), np.nan)
    beyond = np.full_like(before, np.nan)
    shapes: dict[str, list[int]] = {}
    for position, case in enumerate(cases):
        shapes.setdefault(shape_key(case), []).append(position)
    for positions in shapes.values():
        shape = _Shape(quiet, [cases[i] for i in positions], dataset, search, execution)
        for column, edge in enumerate(search.edges):
            found = shape.find(edge)
            before[positions, column], beyond[positions, column] = found.before, found.beyond
    rows = [
        {**case, "edge": edge, "learning_rate": last, "rate_beyond": next_rate}
        for case, lasts, nexts in zip(cases, before, beyond, strict=True)
        for edge, last, next_rate in zip(search.edges, lasts, nexts, strict=True)
    ]
    table = pd.DataFrame(rows)
    starts = {case["case_id"]: case["learning_rate"] for case in cases}
    for row in table[table["rate_beyond"].isna()].itertuples():
        logger.warning(
            "richness %s, seed %s: no %s edge between the learning rates %.3g and %.3g (searched "
            "up to %.3g)",
            row.richness,
            row.seed,
            row.edge,
            starts[row.case_id],
            starts[row.case_id] * 10**search.decades,
            row.learning_rate,
        )
    return table


class _Shape:
    """Cases of one compiled shape, and the runs that were trained for them."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        cases: Sequence[Mapping[str, Any]],
        dataset: Dataset,
        search: EdgeSearch,
        execution: Execution | None,
    ) -> None:
        self.settings, self.cases, self.dataset = settings, cases, dataset
        self.search, self.execution = search, execution
        # All edges begin with the same rates.
        self.trained: dict[bytes, pd.DataFrame] = {}

    def find(self, edge: str) -> Edges:
        starts = np.array([case["learning_rate"] for case in self.cases], dtype=float)
        search = self.search

        def holds(rates: Rates) -> NDArray[np.bool_]:
            table = self.train(rates)
            below = is_below_edge(
                search.rules,
                np.full(len(table), edge, dtype=object),
                table["status"].to_numpy(dtype=object),
                *(
                    table[f"{name}_train_loss"].to_numpy(dtype=float, na_value=np.nan)
                    for name in ("initial", "peak", "final")
                ),
            )
            return below.reshape(rates.shape)

        return find_edges(
            holds,
            starts,
            search.decades,
            search.rates_per_decade,
            search.rounds,
            holds_below=edge in EDGES_FROM_ZERO,
        )

    def train(self, rates: Rates) -> pd.DataFrame:
        key = rates.tobytes()
        if key not in self.trained:
            runs = [
                {
                    **{key: value for key, value in case.items() if key != "case_id"},
                    LEARNING_RATE_UNIT: "absolute",
                    "run_id": f"{case['case_id']}/{i}",
                    "learning_rate": float(rate),
                }
                for case, row in zip(self.cases, rates, strict=True)
                for i, rate in enumerate(row)
            ]
            shard = train_shard(
                self.settings, runs, [""] * len(runs), self.dataset, {}, self.execution
            )
            self.trained[key] = shard.runs
        return self.trained[key]


def first_learning_rate(section: Mapping[str, Any], case: Mapping[str, Any]) -> float:
    """Where the search of a case begins.

    Args:
        section: The experiment's section `edge_search`.
        case: The case's hyperparameters.

    Returns:
        The absolute learning rate.
    """
    first: float = section["first_rate"]
    if section["first_rate_relative_to"] == "absolute":
        return first
    depth = weight_matrices(case) or _SHALLOWEST
    return first * richness_law(case["richness"], depth, case["optimizer"])


def edge_learning_rates(table: pd.DataFrame, edge: str, source: str) -> dict[str, float]:
    """The learning rate of one edge for each case.

    Args:
        table: Edges as `search_edges` gives them.
        edge: Which.
        source: The experiment, for messages.

    Returns:
        By case_id; NaN where a case has no edge within the searched range, which is logged.

    Raises:
        InputError: No case has one.
    """
    rows = table[table["edge"] == edge]
    missing = rows[rows["rate_beyond"].isna()]
    if len(missing):
        first = missing.iloc[0]
        fault = (
            f"{source}: edge_search: no {edge} edge was found for {len(missing)} of {len(rows)} "
            f"cases, first for richness {first['richness']:g} and seed {first['seed']} (searched "
            f"up to the learning rate {first['learning_rate']:.3g})"
        )
        if len(missing) == len(rows):
            raise InputError(
                f"{fault}; allowed: a range that contains it (first_rate, decades), or absolute "
                "learning rates"
            )
        logger.warning("%s: their runs are unreachable", fault)
    found = rows["learning_rate"].astype(float).where(rows["rate_beyond"].notna())
    return dict(zip(rows["case_id"], found, strict=True))
