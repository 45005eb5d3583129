"""Claims of the richness paper about trained networks: edges of their portraits."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.claims.catapult_theory import numbers
from sgdphases.claims.richness_theory import (
    CROSS_ENTROPY,
    MSE,
    Exponent,
    Window,
    farthest,
    having,
    within,
)
from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.exponents import PowerLaw, fit_power_law
from sgdphases.portraits import PortraitRules, classify_cells
from sgdphases.tables import ExperimentTables

LAZY: Window = (0.0, 3.2e-3)
RICH: Window = (10.0, np.inf)
_PORTRAIT = "mlp_portrait"
_TOLERANCE = 0.2
# With two layers the smallest rich rate is gamma times a logarithm.
_LEAST_DEPTH_OF_SMALLEST_RATE = 3


def found_edges(tables: ExperimentTables, edge: str, loss: str, depth: int) -> pd.DataFrame:
    """The edges of one kind that lie within the searched range.

    Args:
        tables: An experiment with edges.
        edge: Name of the edge.
        loss: Name of the loss.
        depth: Number of weight matrices.

    Returns:
        One row per case, by increasing richness: the columns of `edges.parquet`, `rate`, the middle
        of the last bracket of the search, and `decades`, its width.

    Raises:
        ValueError: The experiment has no edges.
    """
    if tables.edges is None:
        raise ValueError("no edges were searched")
    edges = tables.edges
    chosen = edges[having(edges, edge=edge, loss=loss, depth=depth)].dropna(subset=["rate_beyond"])
    before, beyond = numbers(chosen, "learning_rate"), numbers(chosen, "rate_beyond")
    chosen = chosen.assign(rate=np.sqrt(before * beyond), decades=np.log10(beyond / before))
    return chosen.sort_values(["richness", "seed"])


def edge_law(
    tables: ExperimentTables, edge: str, loss: str, depth: int, window: Window
) -> PowerLaw:
    """The power law of an edge in the richness; seeds and the spacing of rates give its interval.

    Args:
        tables: An experiment with edges.
        edge: Name of the edge.
        loss: Name of the loss.
        depth: Number of weight matrices.
        window: Richness, ends included.

    Returns:
        The fit.

    Raises:
        ValueError: Fewer than two values of the richness have the edge.
    """
    found = found_edges(tables, edge, loss, depth)
    found = found[within(numbers(found, "richness"), window)]
    if found["richness"].nunique() < 2:
        raise ValueError(
            f"fewer than two {edge} edges at depth {depth} with {loss} and richness from "
            f"{window[0]:g} to {window[1]:g}"
        )
    return fit_power_law(found["richness"], found["rate"], found["decades"])


def depths_of(tables: ExperimentTables) -> list[int]:
    """The depths of an experiment's networks."""
    return sorted({int(depth) for depth in tables.runs["depth"].unique()})


@dataclass(frozen=True)
class EdgeExponent(Exponent):
    """The exponent of one edge in one regime.

    Attributes:
        depth: Number of weight matrices.
        edge: Name of the edge.
        window: The richness that it is fitted over, ends included.
    """

    depth: int
    edge: str
    window: Window


def portrait_exponents(tables: ExperimentTables, loss: str) -> list[EdgeExponent]:
    """The exponents of the edges of trained networks, beside those of the theory.

    Args:
        tables: An experiment with edges.
        loss: Name of the loss.

    Returns:
        For each depth the lazy exponents of the smallest, the critical and the largest rate, and
        the rich ones of the smallest and the largest; of those that have two edges at least.

    Reference:
        Richness paper, table 1; catalogue item 1.10.
    """
    lazy_largest = 2.0 if loss == MSE else 1.0
    found = []
    for depth in depths_of(tables):
        cases = [
            ("lazy smallest", "training", LAZY, 2.0),
            ("lazy critical", "catapult", LAZY, 2.0),
            ("lazy largest", "convergence", LAZY, lazy_largest),
            ("rich smallest", "training", RICH, 1.0),
            ("rich largest", "convergence", RICH, 2.0 / depth),
        ]
        for name, edge, window, expected in cases:
            try:
                law = edge_law(tables, edge, loss, depth, window)
            except ValueError:
                continue
            found.append(EdgeExponent(f"L={depth} {name}", law, expected, depth, edge, window))
    return found


def _slopes(tables: ExperimentTables) -> Measurement:
    """RICH-28: every exponent with squared errors, those with a logarithm of gamma left out."""
    exponents = [
        found
        for found in portrait_exponents(tables, MSE)
        if not (
            found.edge == "training"
            and found.window == RICH
            and found.depth < _LEAST_DEPTH_OF_SMALLEST_RATE
        )
    ]
    if not exponents:
        raise ValueError("no exponent could be fitted")
    return farthest(exponents)


def _spans(tables: ExperimentTables) -> Measurement:
    """RICH-29: how many decades of rates train at the largest richness that all depths share."""
    spans = {}
    depths = depths_of(tables)
    top = tables.runs["richness"].max()
    for depth in depths:
        smallest = found_edges(tables, "training", MSE, depth).set_index("richness")["rate"]
        largest = found_edges(tables, "convergence", MSE, depth).set_index("richness")["rate"]
        shared = sorted(set(smallest.index) & set(largest.index))
        spans[depth] = {
            value: float(np.log10(largest.loc[[value]].mean() / smallest.loc[[value]].mean()))
            for value in shared
        }
    common = set.intersection(*(set(span) for span in spans.values()))
    if len(depths) < 2 or not common:
        raise ValueError("no richness at which networks of two depths train")
    richness = max(common)
    decades = [spans[depth][richness] for depth in depths]
    listed = ", ".join(f"L={depth} {span:.2f}" for depth, span in zip(depths, decades, strict=True))
    return Measurement(
        float(np.min(-np.diff(decades))),
        detail=f"decades of rates that train at richness {richness:g}: {listed}",
        unmet="" if top in spans[depths[0]] else f"L={depths[0]} does not train at {top:g}",
    )


def _triangle(tables: ExperimentTables) -> Measurement:
    """RICH-30: with cross-entropy, lazy rates converge up to gamma and peak above gamma^2."""
    depths = depths_of(tables)
    largest = [
        Exponent(
            f"L={depth} largest", edge_law(tables, "convergence", CROSS_ENTROPY, depth, LAZY), 1.0
        )
        for depth in depths
    ]
    critical = [
        Exponent(
            f"L={depth} critical", edge_law(tables, "catapult", CROSS_ENTROPY, depth, LAZY), 2.0
        )
        for depth in depths
    ]
    runs = tables.runs[
        having(tables.runs, loss=CROSS_ENTROPY) & within(numbers(tables.runs, "richness"), LAZY)
    ]
    catapults = int((cells(tables, runs) == "catapult").sum())
    unmet = [] if catapults else ["no lazy run is a catapult"]
    if abs(farthest(critical).value) > _TOLERANCE:
        unmet.append("the critical rate does not follow gamma^2")
    measured = farthest(largest, relative_to=1.0)
    return Measurement(
        measured.value,
        measured.ci_low,
        measured.ci_high,
        f"{measured.detail}; {farthest(critical).detail}; {catapults} of {len(runs)} lazy runs are "
        "catapults",
        unmet="; ".join(unmet),
    )


def cells(tables: ExperimentTables, runs: pd.DataFrame) -> NDArray[np.object_]:
    """The region of the portrait that each of some runs lies in.

    Args:
        tables: The experiment, whose section `portrait` may change the thresholds.
        runs: (runs,) rows of its table of runs.

    Returns:
        (runs,) names of regions.
    """
    return classify_cells(
        PortraitRules.of(tables.spec),
        runs["status"].to_numpy(dtype=object),
        numbers(runs, "initial_train_loss"),
        runs["peak_train_loss"].to_numpy(dtype=np.float64, na_value=np.nan),
        runs["final_train_loss"].to_numpy(dtype=np.float64, na_value=np.nan),
    )


MEASURES: dict[str, ClaimMeasure] = {
    "RICH-28": ClaimMeasure(_PORTRAIT, -_TOLERANCE, _TOLERANCE, _slopes),
    "RICH-29": ClaimMeasure(_PORTRAIT, 0.0, None, _spans),
    "RICH-30": ClaimMeasure(_PORTRAIT, 0.85, 1.15, _triangle),
}
