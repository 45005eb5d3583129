"""Figures of the richness paper from trained networks: portraits, and the exponents of edges."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sgdphases.claims.richness import (
    EdgeExponent,
    Portrait,
    cells,
    found_edges,
    mlp_portraits,
    portrait_exponents,
)
from sgdphases.claims.richness_theory import CROSS_ENTROPY, MSE
from sgdphases.figures.portrait import draw_columns, draw_theory_line, no_rate_key, portrait_key
from sgdphases.figures.richness_theory import LOSS_NAMES
from sgdphases.figures.style import LINE_COLOR, name_panel, panels
from sgdphases.portraits import EDGES
from sgdphases.tables import ExperimentTables

Drawn = tuple[Figure, pd.DataFrame]

_PORTRAIT_HEIGHT = 3.0
# The paper does not say which it is.
_DEPTH_OF_FIGURE_1C = 3
_EDGE_COLORS = dict(zip(EDGES, ("#222222", "#d1662b", "#3b6fb6", "#7a7a7a"), strict=True))


@dataclass(frozen=True)
class Shown:
    """What the colour of a portrait's cells is.

    Attributes:
        column: Column of the runs.
        label: Its name in the figure.
        norm: From values to colours.
    """

    column: str
    label: str
    norm: Normalize


TRAIN_ACCURACY = Shown("final_train_accuracy", "final training accuracy", Normalize(0.0, 1.0))
TEST_ACCURACY = Shown("final_test_accuracy", "final test accuracy", Normalize(0.0, 1.0))
RELATIVE_LOSS = Shown("relative_loss", "final / initial loss", Normalize(0.0, 1.0))


def portrait_cells(tables: ExperimentTables, portrait: Portrait, column: str) -> pd.DataFrame:
    """The cells of one portrait, seeds averaged.

    Args:
        tables: An experiment whose learning rates are relative to an edge.
        portrait: The portrait.
        column: What is shown: a column of the runs, or relative_loss.

    Returns:
        One row per richness and relative rate: both, the geometric mean `learning_rate`, the mean
        of the column and the `region` of the first seed that was trained. Where none was, because
        there is no edge, learning rate and region are null.
    """
    runs = portrait.choose(tables.runs)
    runs = runs.assign(
        region=cells(tables, runs),
        relative_loss=runs["final_train_loss"] / runs["initial_train_loss"],
        below_edge=(runs["learning_rate"] / runs["edge_learning_rate"]).round(9),
        log_rate=np.log10(runs["learning_rate"].astype(float)),
    ).sort_values("seed")
    trained = runs.dropna(subset=["learning_rate"])
    merged = trained.groupby(["richness", "below_edge"], as_index=False).agg(
        log_rate=("log_rate", "mean"), region=("region", "first"), **{column: (column, "mean")}
    )
    merged["learning_rate"] = 10 ** merged.pop("log_rate")
    left_out = np.setdiff1d(runs["richness"], trained["richness"])
    if left_out.size:
        merged = pd.concat([merged, pd.DataFrame({"richness": left_out})], ignore_index=True)
    return merged.astype({"region": object})


def _draw_edges(axis: Axes, tables: ExperimentTables, portrait: Portrait) -> pd.DataFrame:
    """The edges that were found, and for each regime the laws of the theory through them."""
    pieces: list[pd.DataFrame] = []
    for edge in searched_edges(tables):
        found = found_edges(tables, edge, portrait)
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
    for exponent in portrait_exponents(tables, portrait):
        _draw_expected(axis, exponent)
    return pd.concat(pieces, ignore_index=True)


def searched_edges(tables: ExperimentTables) -> list[str]:
    """The edges that an experiment searches, in the order of `EDGES`."""
    return [edge for edge in EDGES if edge in tables.spec["edge_search"]["edges"]]


def _draw_expected(axis: Axes, exponent: EdgeExponent) -> None:
    """A line of the theory's slope through the middle of the fit."""
    (low, high), window = axis.get_xlim(), exponent.window
    x: NDArray[np.float64] = np.array([max(low, window[0]), min(high, window[1])])
    middle = np.sqrt(x.prod())
    draw_theory_line(axis, x, float(exponent.law(middle)) * (x / middle) ** exponent.expected)


def draw_portraits(
    tables: ExperimentTables,
    portraits: Sequence[Portrait],
    shown: Shown = TRAIN_ACCURACY,
    columns: int | None = None,
) -> Drawn:
    """Draw the portraits of an experiment side by side.

    Args:
        tables: An experiment with edges.
        portraits: Which of its portraits.
        shown: What the colour is.
        columns: Panels in a row; all by default.

    Returns:
        The figure and the plotted numbers.

    Raises:
        ValueError: There is no portrait.
    """
    if not portraits:
        raise ValueError("the experiment has no such portrait")
    figure, axes = panels(
        len(portraits),
        columns=columns,
        height=_PORTRAIT_HEIGHT if columns is None else 2.4,
        share_y=True,
    )
    pieces, mesh = [], None
    for axis, letter, portrait in zip(axes, ascii_lowercase, portraits, strict=False):
        part = portrait_cells(tables, portrait, shown.column)
        mesh = draw_columns(axis, part, shown.column, shown.norm) or mesh
        edges = _draw_edges(axis, tables, portrait)
        name_panel(axis, letter, portrait.name)
        named = {"panel": letter, "portrait": portrait.name}
        pieces += [part.assign(**named), edges.assign(**named)]
    for axis in axes[:: columns or len(axes)]:
        axis.set_ylabel("learning rate η")
    if mesh is not None:
        figure.colorbar(mesh, ax=list(axes), label=shown.label, pad=0.01)
    plotted = pd.concat(pieces, ignore_index=True)
    rates = plotted["learning_rate"].astype(float)
    axes[0].set_ylim(rates.min() / 3, rates.max() * 3)
    handles = portrait_key(plotted["region"].to_numpy(dtype=object))
    if plotted["learning_rate"].isna().any():
        handles.append(no_rate_key())
    handles += [
        Line2D([], [], color=_EDGE_COLORS[edge], marker="s", markersize=2.5, label=f"{edge} edge")
        for edge in searched_edges(tables)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure, plotted


def _plot_mlps(loss: str) -> Callable[[ExperimentTables], Drawn]:
    def plot(tables: ExperimentTables) -> Drawn:
        """Figure 23: portraits of fully connected networks of several depths with one loss."""
        return draw_portraits(tables, mlp_portraits(tables, loss))

    return plot


def plot_one_mlp(tables: ExperimentTables) -> Drawn:
    """Figure 1c: the portrait of a fully connected network, test accuracy."""
    portraits = [p for p in mlp_portraits(tables, MSE) if p.depth == _DEPTH_OF_FIGURE_1C]
    return draw_portraits(tables, portraits, TEST_ACCURACY)


def draw_exponents(
    tables: ExperimentTables, groups: Mapping[str, Sequence[Portrait]], height: float
) -> Drawn:
    """Draw fitted exponents of edges with their intervals, beside those of the theory.

    Args:
        tables: An experiment with edges.
        groups: The portraits of each panel, by its name.
        height: Height of the figure in inches.

    Returns:
        The figure and the plotted numbers.
    """
    figure, axes = panels(len(groups), height=height)
    pieces = []
    for axis, letter, (name, portraits) in zip(axes, ascii_lowercase, groups.items(), strict=False):
        found = [
            exponent for portrait in portraits for exponent in portrait_exponents(tables, portrait)
        ]
        rows = pd.DataFrame(
            {
                "name": [exponent.name for exponent in found],
                "exponent": [exponent.law.exponent for exponent in found],
                "low": [exponent.law.low for exponent in found],
                "high": [exponent.law.high for exponent in found],
                "expected": [exponent.expected for exponent in found],
            }
        )
        places = np.arange(len(rows))[::-1]
        axis.errorbar(
            rows["exponent"],
            places,
            xerr=[rows["exponent"] - rows["low"], rows["high"] - rows["exponent"]],
            linestyle="none",
            marker="o",
            color="#3b6fb6",
            capsize=2,
            label="fitted, 95 %",
        )
        axis.plot(rows["expected"], places, "|", color=LINE_COLOR, markersize=9, label="theory")
        axis.set_yticks(places, rows["name"], fontsize=7)
        axis.set_xlabel("exponent of η in γ")
        name_panel(axis, letter, name)
        pieces.append(rows.assign(panel=letter, group=name))
        # A regime with two points has an interval wider than the figure is for.
        axis.set_xlim(-0.25, 2.75)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure, pd.concat(pieces, ignore_index=True)


def plot_exponents(tables: ExperimentTables) -> Drawn:
    """Fitted exponents of the edges of figure 23, beside those of the theory."""
    groups = {name: mlp_portraits(tables, loss) for loss, name in LOSS_NAMES.items()}
    return draw_exponents(tables, groups, _PORTRAIT_HEIGHT)


PLOTS: dict[str, Callable[[ExperimentTables], Drawn]] = {
    "richness/fig1c": plot_one_mlp,
    "richness/fig23": _plot_mlps(MSE),
    "richness/fig23_cross_entropy": _plot_mlps(CROSS_ENTROPY),
    "richness/exponents": plot_exponents,
}
