"""Figures of the richness paper from trained networks: portraits, and the exponents of edges."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sgdphases.claims.richness import (
    EdgeExponent,
    cells,
    depths_of,
    found_edges,
    portrait_exponents,
)
from sgdphases.claims.richness_theory import CROSS_ENTROPY, MSE, having
from sgdphases.figures.portrait import draw_columns, draw_theory_line, portrait_key
from sgdphases.figures.style import LINE_COLOR, name_panel, panels
from sgdphases.portraits import EDGES
from sgdphases.tables import ExperimentTables

Drawn = tuple[Figure, pd.DataFrame]

_PORTRAIT_HEIGHT = 3.0
_ACCURACIES = Normalize(0.0, 1.0)
_EDGE_COLORS = dict(zip(EDGES, ("#222222", "#d1662b", "#3b6fb6", "#7a7a7a"), strict=True))
_LOSS_NAMES = {MSE: "squared errors", CROSS_ENTROPY: "cross-entropy"}


def portrait_cells(tables: ExperimentTables, loss: str, depth: int) -> pd.DataFrame:
    """The cells of one portrait, seeds averaged.

    Args:
        tables: An experiment whose learning rates are relative to an edge.
        loss: Name of the loss.
        depth: Number of weight matrices.

    Returns:
        One row per richness and relative rate: both, the geometric mean `learning_rate`, the mean
        `final_train_accuracy` and the `region` of the first seed.
    """
    runs = tables.runs[having(tables.runs, loss=loss, depth=depth)]
    runs = runs.assign(
        region=cells(tables, runs),
        below_edge=(runs["learning_rate"] / runs["edge_learning_rate"]).round(9),
        log_rate=np.log10(runs["learning_rate"].astype(float)),
    ).sort_values("seed")
    merged = runs.groupby(["richness", "below_edge"], as_index=False).agg(
        log_rate=("log_rate", "mean"),
        final_train_accuracy=("final_train_accuracy", "mean"),
        region=("region", "first"),
    )
    merged["learning_rate"] = 10 ** merged.pop("log_rate")
    return merged


def _draw_edges(axis: Axes, tables: ExperimentTables, loss: str, depth: int) -> pd.DataFrame:
    """The edges that were found, and for each regime the laws of the theory through them."""
    pieces: list[pd.DataFrame] = []
    for edge in EDGES:
        found = found_edges(tables, edge, loss, depth)
        line = found.groupby("richness", as_index=False)["rate"].mean()
        axis.plot(
            line["richness"],
            line["rate"],
            color=_EDGE_COLORS[edge],
            linewidth=0.9,
            marker="s",
            markersize=1.8,
        )
        pieces.append(line.assign(edge=edge, learning_rate=line.pop("rate")))
    for exponent in portrait_exponents(tables, loss):
        if exponent.depth == depth:
            _draw_expected(axis, exponent)
    return pd.concat(pieces, ignore_index=True)


def _draw_expected(axis: Axes, exponent: EdgeExponent) -> None:
    """A line of the theory's slope through the middle of the fit."""
    (low, high), window = axis.get_xlim(), exponent.window
    x: NDArray[np.float64] = np.array([max(low, window[0]), min(high, window[1])])
    middle = np.sqrt(x.prod())
    draw_theory_line(axis, x, float(exponent.law(middle)) * (x / middle) ** exponent.expected)


def _plot_portraits(tables: ExperimentTables, loss: str) -> Drawn:
    depths = depths_of(tables)
    figure, axes = panels(len(depths), height=_PORTRAIT_HEIGHT, share_y=True)
    pieces, mesh = [], None
    for axis, letter, depth in zip(axes, "abcdef", depths, strict=False):
        part = portrait_cells(tables, loss, depth)
        mesh = draw_columns(axis, part, "final_train_accuracy", _ACCURACIES) or mesh
        edges = _draw_edges(axis, tables, loss, depth)
        name_panel(axis, letter, f"L = {depth}, {_LOSS_NAMES[loss]}")
        pieces += [part.assign(panel=letter), edges.assign(panel=letter)]
    axes[0].set_ylabel("learning rate η")
    if mesh is not None:
        figure.colorbar(mesh, ax=list(axes), label="final training accuracy", pad=0.01)
    plotted = pd.concat(pieces, ignore_index=True)
    rates = plotted["learning_rate"].astype(float)
    axes[0].set_ylim(rates.min() / 3, rates.max() * 3)
    handles = portrait_key(plotted["region"].to_numpy(dtype=object))
    handles += [
        Line2D([], [], color=_EDGE_COLORS[edge], marker="s", markersize=2.5, label=f"{edge} edge")
        for edge in EDGES
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure, plotted


def plot_squared_errors(tables: ExperimentTables) -> Drawn:
    """Figures 1c and 23: portraits of networks of several depths, squared errors."""
    return _plot_portraits(tables, MSE)


def plot_cross_entropy(tables: ExperimentTables) -> Drawn:
    """As figure 23, with cross-entropy."""
    return _plot_portraits(tables, CROSS_ENTROPY)


def plot_exponents(tables: ExperimentTables) -> Drawn:
    """Fitted exponents of the edges with their intervals, beside those of the theory."""
    figure, axes = panels(2, height=_PORTRAIT_HEIGHT, share_y=False)
    pieces = []
    for axis, letter, loss in zip(axes, "ab", (MSE, CROSS_ENTROPY), strict=True):
        found = portrait_exponents(tables, loss)
        rows = pd.DataFrame(
            {
                "name": [exponent.name for exponent in found],
                "exponent": [exponent.law.exponent for exponent in found],
                "low": [exponent.law.low for exponent in found],
                "high": [exponent.law.high for exponent in found],
                "expected": [exponent.expected for exponent in found],
            }
        )
        height = np.arange(len(rows))[::-1]
        axis.errorbar(
            rows["exponent"],
            height,
            xerr=[rows["exponent"] - rows["low"], rows["high"] - rows["exponent"]],
            linestyle="none",
            marker="o",
            color="#3b6fb6",
            capsize=2,
            label="fitted, 95 %",
        )
        axis.plot(rows["expected"], height, "|", color=LINE_COLOR, markersize=9, label="theory")
        axis.set_yticks(height, rows["name"], fontsize=7)
        axis.set_xlabel("exponent of η in γ")
        name_panel(axis, letter, _LOSS_NAMES[loss])
        pieces.append(rows.assign(panel=letter, loss=loss))
        # A regime with two points has an interval wider than the figure is for.
        axis.set_xlim(-0.25, 2.75)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure, pd.concat(pieces, ignore_index=True)


PLOTS: dict[str, Callable[[ExperimentTables], Drawn]] = {
    "richness/fig23": plot_squared_errors,
    "richness/fig23_cross_entropy": plot_cross_entropy,
    "richness/exponents": plot_exponents,
}
