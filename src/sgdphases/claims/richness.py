"""Claims of the richness paper about trained networks: edges of their portraits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from sgdphases.portraits import PortraitRules, classify_cells, weight_matrices
from sgdphases.tables import ExperimentTables

LAZY: Window = (0.0, 3.2e-3)
RICH: Window = (10.0, np.inf)
_PORTRAIT = "mlp_portrait"
_TOLERANCE = 0.2
# What a portrait must have been fitted for, to be compared with the theory.
LARGEST = ("lazy largest", "rich largest")
# With two layers the smallest rich rate is gamma times a logarithm.
_LEAST_DEPTH_OF_SMALLEST_RATE = 3


@dataclass(frozen=True)
class Portrait:
    """One portrait of an experiment: runs that differ in richness, rate and seed alone.

    Attributes:
        name: What tells it from the experiment's others.
        values: What its runs have in common, by column.
        loss: Name of the loss.
        optimizer: Name of the optimiser.
        depth: L of the theory's exponents, or None where the network has no such number.
    """

    name: str
    values: Mapping[str, object]
    loss: str
    optimizer: str
    depth: int | None

    def choose(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table of runs or edges that belong to it."""
        return table[having(table, **self.values)]

    def named(self, name: str) -> "Portrait":
        """The same portrait under another name."""
        return replace(self, name=name)


def portraits_of(
    tables: ExperimentTables, names: Mapping[str, str], **values: object
) -> list[Portrait]:
    """The portraits of an experiment.

    Args:
        tables: The experiment.
        names: The columns that tell its portraits apart, and how each is named, with `{}` for the
            value.
        values: Columns, and the value that all portraits asked for have.

    Returns:
        The portraits, sorted by the columns.
    """
    runs = tables.runs[having(tables.runs, **values)] if values else tables.runs
    found = []
    for _, rows in runs.sort_values(list(names)).groupby(list(names), sort=False):
        first = rows.iloc[0]
        shared = {**values, **{name: first[name] for name in names}}
        found.append(
            Portrait(
                name=", ".join(text.format(first[name]) for name, text in names.items()),
                values=shared,
                loss=str(first["loss"]),
                optimizer=str(first["optimizer"]),
                depth=weight_matrices(first.dropna().to_dict()),
            )
        )
    return found


def mlp_portraits(tables: ExperimentTables, loss: str) -> list[Portrait]:
    """The portraits of fully connected networks of several depths with one loss."""
    return portraits_of(tables, {"depth": "L={:.0f}"}, loss=loss)


def found_edges(tables: ExperimentTables, edge: str, portrait: Portrait) -> pd.DataFrame:
    """The edges of one kind that lie within the searched range.

    Args:
        tables: An experiment with edges.
        edge: Name of the edge.
        portrait: Of which portrait.

    Returns:
        One row per case, by increasing richness: the columns of `edges.parquet`, `rate`, the middle
        of the last bracket of the search, and `decades`, its width.

    Raises:
        ValueError: The experiment has no edges.
    """
    if tables.edges is None:
        raise ValueError("no edges were searched")
    edges = portrait.choose(tables.edges)
    chosen = edges[having(edges, edge=edge)].dropna(subset=["rate_beyond"])
    before, beyond = (chosen[name].astype(float) for name in ("learning_rate", "rate_beyond"))
    chosen = chosen.assign(rate=np.sqrt(before * beyond), decades=np.log10(beyond / before))
    return chosen.sort_values(["richness", "seed"])


def edge_law(tables: ExperimentTables, edge: str, portrait: Portrait, window: Window) -> PowerLaw:
    """The power law of an edge in the richness; seeds and the spacing of rates give its interval.

    Args:
        tables: An experiment with edges.
        edge: Name of the edge.
        portrait: Of which portrait.
        window: Richness, ends included.

    Returns:
        The fit.

    Raises:
        ValueError: Fewer than two values of the richness have the edge.
    """
    found = found_edges(tables, edge, portrait)
    found = found[within(found["richness"].to_numpy(dtype=np.float64), window)]
    if found["richness"].nunique() < 2:
        raise ValueError(
            f"fewer than two {edge} edges of {portrait.name}, {portrait.loss}, at richness from "
            f"{window[0]:g} to {window[1]:g}"
        )
    return fit_power_law(found["richness"], found["rate"], found["decades"])


@dataclass(frozen=True)
class EdgeExponent(Exponent):
    """The exponent of one edge in one regime.

    Attributes:
        portrait: Of which portrait.
        edge: Name of the edge.
        window: The richness that it is fitted over, ends included.
    """

    portrait: Portrait
    edge: str
    window: Window


def portrait_exponents(tables: ExperimentTables, portrait: Portrait) -> list[EdgeExponent]:
    """The exponents of a portrait's edges, beside those of the theory.

    Args:
        tables: An experiment with edges.
        portrait: The portrait.

    Returns:
        The lazy exponents of the smallest, the critical and the largest rate, and the rich ones of
        the smallest and the largest; of those that have two edges at least, and that the theory
        knows.

    Reference:
        Richness paper, table 1, figures 11 and 12; catalogue item 1.10.
    """
    cases: list[tuple[str, str, Window, float]]
    if portrait.optimizer == "sgd":
        cases = [
            ("lazy smallest", "training", LAZY, 2.0),
            ("lazy critical", "catapult", LAZY, 2.0),
            ("lazy largest", "convergence", LAZY, 2.0 if portrait.loss == MSE else 1.0),
            ("rich smallest", "training", RICH, 1.0),
        ]
        if portrait.loss == CROSS_ENTROPY:
            # The largest rate of the toy models. Near it, catapults take ever more steps to come
            # down at smaller richness.
            cases.append(("lazy finite", "divergence", LAZY, 1.0))
        if portrait.depth is not None:
            cases.append(("rich largest", "convergence", RICH, 2.0 / portrait.depth))
    else:
        cases = [
            (f"lazy {name}", edge, LAZY, 1.0)
            for name, edge in (("smallest", "training"), ("largest", "convergence"))
        ]
        if portrait.depth is not None:
            cases += [
                (f"rich {name}", edge, RICH, 1.0 / portrait.depth)
                for name, edge in (("smallest", "training"), ("largest", "convergence"))
            ]
    found = []
    for name, edge, window, expected in cases:
        try:
            law = edge_law(tables, edge, portrait, window)
        except ValueError:
            continue
        found.append(EdgeExponent(f"{portrait.name} {name}", law, expected, portrait, edge, window))
    return found


def clear_exponents(tables: ExperimentTables, portraits: Iterable[Portrait]) -> list[EdgeExponent]:
    """Those of the exponents of some portraits that have no logarithm of the richness besides."""
    return [
        found
        for portrait in portraits
        for found in portrait_exponents(tables, portrait)
        if not (
            found.edge == "training"
            and found.window == RICH
            and portrait.depth is not None
            and portrait.depth < _LEAST_DEPTH_OF_SMALLEST_RATE
        )
    ]


def farthest_exponent(
    tables: ExperimentTables, portraits: Sequence[Portrait], regimes: Iterable[str]
) -> Measurement:
    """The exponent of some portraits that is farthest from the theory.

    Args:
        tables: An experiment with edges.
        portraits: Which of its portraits.
        regimes: Names such as `rich largest` of exponents that every portrait must have.

    Returns:
        Its deviation; unmet where a portrait lacks an exponent.

    Raises:
        ValueError: There is none.
    """
    exponents = clear_exponents(tables, portraits)
    fitted = {found.name for found in exponents}
    names = [f"{portrait.name} {regime}" for portrait in portraits for regime in regimes]
    missing = [name for name in names if name not in fitted]
    measured = farthest(exponents)
    return replace(measured, unmet=f"not fitted: {', '.join(missing)}" if missing else "")


def _slopes(tables: ExperimentTables) -> Measurement:
    """RICH-28: every exponent with squared errors, those with a logarithm of gamma left out."""
    return farthest_exponent(tables, mlp_portraits(tables, MSE), ("lazy smallest", *LARGEST))


def _spans(tables: ExperimentTables) -> Measurement:
    """RICH-29: how many decades of rates train at the largest richness that all depths share."""
    spans = {}
    portraits = mlp_portraits(tables, MSE)
    top = tables.runs["richness"].max()
    for portrait in portraits:
        smallest = found_edges(tables, "training", portrait).set_index("richness")["rate"]
        largest = found_edges(tables, "convergence", portrait).set_index("richness")["rate"]
        shared = sorted(set(smallest.index) & set(largest.index))
        spans[portrait.name] = {
            value: float(np.log10(largest.loc[[value]].mean() / smallest.loc[[value]].mean()))
            for value in shared
        }
    if len(portraits) < 2:
        raise ValueError("networks of fewer than two depths")
    common = set.intersection(*(set(span) for span in spans.values()))
    richness = max(common, default=0.0)
    if not within(np.array([richness]), RICH).any():
        raise ValueError("no large richness at which networks of all depths train")
    shallowest = portraits[0].name
    decades = [span[richness] for span in spans.values()]
    listed = ", ".join(f"{name} {span[richness]:.2f}" for name, span in spans.items())
    fewer = float(np.min(-np.diff(decades)))
    unmet = [] if fewer > 0 else ["a deeper network trains at no fewer rates"]
    if top not in spans[shallowest]:
        unmet.append(f"{shallowest} does not train at {top:g}")
    return Measurement(
        fewer,
        detail=f"decades of rates that train at richness {richness:g}: {listed}",
        unmet="; ".join(unmet),
    )


def _triangle(tables: ExperimentTables) -> Measurement:
    """RICH-30: with cross-entropy, lazy rates converge up to gamma and peak above gamma^2."""
    portraits = mlp_portraits(tables, CROSS_ENTROPY)

    def laws(name: str, edge: str, expected: float) -> list[Exponent]:
        return [
            Exponent(f"{portrait.name} {name}", edge_law(tables, edge, portrait, LAZY), expected)
            for portrait in portraits
        ]

    measured = farthest(laws("largest", "convergence", 1.0), relative_to=1.0)
    critical = farthest(laws("critical", "catapult", 2.0))
    try:
        finite = farthest(laws("finite", "divergence", 1.0)).detail
    except ValueError as error:  # told beside the claim alone
        finite = str(error)
    runs = pd.concat([portrait.choose(tables.runs) for portrait in portraits])
    runs = runs[within(numbers(runs, "richness"), LAZY)]
    catapults = int((cells(tables, runs) == "catapult").sum())
    unmet = [] if catapults else ["no lazy run is a catapult"]
    if abs(critical.value) > _TOLERANCE:
        unmet.append("the critical rate does not follow gamma^2")
    return Measurement(
        measured.value,
        measured.ci_low,
        measured.ci_high,
        f"{measured.detail}; the last rates that stay finite: {finite}; {critical.detail}; "
        f"{catapults} of {len(runs)} lazy runs are catapults",
        unmet="; ".join(unmet),
    )


def cells(tables: ExperimentTables, runs: pd.DataFrame) -> NDArray[np.object_]:
    """The region of the portrait that each of some runs lies in.

    Args:
        tables: The experiment, whose section `portrait` may change the thresholds.
        runs: (runs,) rows of its table of runs.

    Returns:
        (runs,) names of regions; None of an unreachable run.
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
