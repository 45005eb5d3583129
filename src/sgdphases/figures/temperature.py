"""Figures of the temperature paper's trained networks: 4-6 and table 1, and the tuning of β.

Reference: Temperature check: theory and practice for training models with softmax-cross-entropy
losses.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sgdphases.figures.portrait import cell_edges
from sgdphases.figures.style import (
    LINE_COLOR,
    ORDERED_PALETTE,
    name_panel,
    ordered_colors,
    panels,
)
from sgdphases.tables import ExperimentTables
from sgdphases.temperature_sweeps import (
    BETA,
    EARLY_STEPS,
    NORM,
    RATE,
    at_best_rate,
    best_rates,
    families,
    fit_rates,
    largest_rates,
    lazy_from,
    over_seeds,
    plane_cells,
    rate_spacing,
    with_accuracy,
)

BETA_LABEL = "inverse temperature β"
NORM_LABEL = "‖Z⁰‖ per sample and output"
_DASHED = (0, (4, 2))

Plot = Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]


def plot_best_rates(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 4: best and largest learning rate against β, one panel per network."""
    runs = with_accuracy(tables)
    spacing, start = rate_spacing(runs), lazy_from(runs)
    depths = sorted(runs["depth"].unique())
    figure, axes = panels(len(depths), height=2.9)
    parts = []
    for axis, depth, letter in zip(axes, depths, "abcd", strict=False):
        own = runs[runs["depth"] == depth]
        best, largest = best_rates(own, [BETA]), largest_rates(own, [BETA])
        _draw_rates(axis, best, spacing)
        axis.plot(
            largest[BETA],
            largest[RATE],
            linestyle="none",
            marker="^",
            markerfacecolor="none",
            color="#9a9a9a",
            label="largest that learns",
        )
        _draw_fits(axis, best, spacing, start, int(depth))
        axis.set(xlabel=BETA_LABEL, ylabel="learning rate η", xscale="log", yscale="log")
        axis.legend(loc="lower left")
        fully_connected = (own["model"] == "fully_connected").all()
        name_panel(axis, letter, f"L = {depth}" if fully_connected else "Wide ResNet")
        parts.append(best.assign(depth=depth, rate="best"))
        parts.append(largest.assign(depth=depth, rate="largest"))
    return figure, pd.concat(parts, ignore_index=True)


def _draw_rates(axis: Axes, best: pd.DataFrame, spacing: float) -> None:
    inside = best[~best["at_end"]]
    half = 10 ** (spacing / 2)
    bars = [inside[RATE] * (1 - 1 / half), inside[RATE] * (half - 1)]
    axis.errorbar(
        inside[BETA], inside[RATE], yerr=bars, color="#3b6fb6", fmt="o", capsize=2, label="best η*"
    )
    ends = best[best["at_end"]]
    if not ends.empty:
        axis.plot(ends[BETA], ends[RATE], "x", color="#3b6fb6", label="best at an end of the sweep")


def _draw_fits(axis: Axes, best: pd.DataFrame, spacing: float, start: float, depth: int) -> None:
    """The power law where networks are lazy, and the slope −2/L that is expected below."""
    inside = best[~best["at_end"]]
    lazy, rich = inside[inside[BETA] >= start], inside[inside[BETA] < start]
    if lazy[BETA].nunique() >= 3:
        law = fit_rates(lazy, spacing)
        ends = np.array([lazy[BETA].min(), lazy[BETA].max()])
        half = (law.high - law.low) / 2
        axis.plot(ends, law(ends), color=LINE_COLOR, label=f"slope {law.exponent:.2f} ± {half:.2f}")
    if rich[BETA].nunique() >= 2:
        ends = np.array([rich[BETA].min(), start])
        slope = -2 / depth
        level = np.exp(np.mean(np.log(rich[RATE]) - slope * np.log(rich[BETA])))
        axis.plot(
            ends, level * ends**slope, color="#d1662b", linestyle=_DASHED, label=f"β^(−2/{depth})"
        )


def _plot_plane(column: str, label: str, logarithmic: bool = False) -> Plot:
    def plot(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
        """Figures 5a, 5b, 5c: a quantity over the plane of β and the initial logit norm."""
        every = tables.runs[[BETA, NORM]].drop_duplicates()
        cells = every.merge(plane_cells(tables), on=[BETA, NORM], how="left")
        cells["reachable"] = cells["accuracy"].notna()
        shown = cells.pivot_table(column, index=NORM, columns=BETA, dropna=False)
        reachable = cells.pivot_table("reachable", index=NORM, columns=BETA, aggfunc="first")
        shown = shown.reindex_like(reachable)
        edges = (
            cell_edges(reachable.columns.to_numpy(float)),
            cell_edges(reachable.index.to_numpy(float)),
        )
        figure, (axis,) = panels(1, height=3.2)
        axis.grid(visible=False)
        values = shown.to_numpy(dtype=float)
        norm = (LogNorm if logarithmic else Normalize)(np.nanmin(values), np.nanmax(values))
        mesh = axis.pcolormesh(
            *edges, np.ma.masked_invalid(values), norm=norm, cmap=ORDERED_PALETTE, rasterized=True
        )
        _hatch_unreachable(axis, edges, reachable.to_numpy(dtype=bool))
        _write_cells(axis, shown, norm)
        _mark_single_head(axis, tables)
        axis.set(xscale="log", yscale="log", xlabel=BETA_LABEL, ylabel=NORM_LABEL)
        axis.set_xlim(edges[0][0], edges[0][-1])
        axis.set_ylim(edges[1][0], edges[1][-1])
        figure.colorbar(mesh, ax=axis, label=label)
        return figure, cells

    return plot


def _hatch_unreachable(axis: Axes, edges: Sequence[np.ndarray], reachable: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(~reachable), strict=True):
        left, right = edges[0][column : column + 2]
        bottom, top = edges[1][row : row + 2]
        axis.fill_between(
            [left, right], bottom, top, facecolor="none", edgecolor="#b0b0b0", hatch="////", lw=0
        )
    if not reachable.all():
        handle = Patch(facecolor="none", edgecolor="#b0b0b0", hatch="////", label="out of reach")
        axis.legend(handles=[handle], loc="upper left", frameon=True)


def _write_cells(axis: Axes, shown: pd.DataFrame, norm: Normalize) -> None:
    values = shown.to_numpy(dtype=float)
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        value = values[row, column]
        axis.text(
            float(shown.columns[column]),
            float(shown.index[row]),
            f"{value:.3g}",
            ha="center",
            va="center",
            fontsize=6,
            color="white" if norm(value) < 0.6 else "black",
        )


def _mark_single_head(axis: Axes, tables: ExperimentTables) -> None:
    """The line on which a network without a second head starts, from the correlations found."""
    runs = tables.runs[tables.runs["status"] != "unreachable"]
    runs = runs[(runs["head_correlation"] > -0.99) & (runs["head_correlation"] < 1)]
    if runs.empty:
        return
    scale = runs[NORM] / runs[BETA] / np.sqrt(2 * (1 + runs["head_correlation"]))
    betas = np.unique(tables.runs[BETA])
    axis.plot(betas, float(np.median(scale)) * betas, color="white", linestyle=_DASHED)


def _family_name(key: Sequence[object], names: Sequence[str]) -> str:
    parts = []
    for name, value in zip(names, key, strict=True):
        if name == "weight_scale":
            parts.append(f"σ_w = {value:.3g}")
        elif name == "batch_norm":
            parts.append("batch norm" if value else "no batch norm")
        else:
            parts.append(str(value))
    return ", ".join(parts)


def _draw_families(axis: Axes, best: pd.DataFrame, names: Sequence[str], column: str) -> None:
    """One line per family, with batch norm in orange."""
    groups = list(best.groupby(list(names), dropna=False)) if names else [((), best)]
    colors = ordered_colors(np.arange(len(groups)))
    for (key, group), color in zip(groups, colors, strict=True):
        line = group.sort_values(BETA)
        label = _family_name(key, names)
        has_norm = "batch_norm" in names and bool(line["batch_norm"].iloc[0])
        shade = "#d1662b" if has_norm else color
        axis.plot(line[BETA], line[column], color=shade, marker="o", label=label)
        if column == "mean":
            axis.fill_between(
                line[BETA], line["worst"], line["best"], color=shade, alpha=0.15, linewidth=0
            )
    axis.set(xscale="log", xlabel=BETA_LABEL)


def _best_of_families(tables: ExperimentTables) -> tuple[pd.DataFrame, list[str]]:
    runs = with_accuracy(tables)
    names = families(runs)
    return at_best_rate(runs, [*names, BETA]), names


def _plot_seeds(column: str, label: str) -> Plot:
    def plot(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
        """Figures 6a, 6b: mean or best test accuracy over seeds against β."""
        best, names = _best_of_families(tables)
        figure, (axis,) = panels(1, height=3.0)
        _draw_families(axis, best, names, column)
        axis.set_ylabel(label)
        if names:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure, best

    return plot


def plot_mean_and_best(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 6c, and 6a with 6b of fully connected networks: mean and best against β."""
    best, names = _best_of_families(tables)
    figure, axes = panels(2, height=2.8, share_y=True)
    for axis, column, letter, text in zip(
        axes, ("mean", "best"), "ab", ("mean of seeds", "best seed"), strict=True
    ):
        _draw_families(axis, best, names, column)
        name_panel(axis, letter, text)
    axes[0].set_ylabel("test accuracy")
    if names:
        axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, best


def plot_table(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Table 1: best test accuracy by inverse temperature, with every seed."""
    runs = tables.runs
    has_norm = "batch_norm" in families(runs)
    by = ["batch_norm", BETA] if has_norm else [BETA]
    groups = runs.groupby(by)["max_test_accuracy"]
    table = groups.agg(["mean", "std", "count"]).reset_index()
    figure, (axis,) = panels(1, height=1.2 + 0.4 * len(table))
    for position, row in enumerate(table.to_dict("records")):
        own = runs
        for name in by:
            own = own[own[name] == row[name]]
        axis.plot(own["max_test_accuracy"], [position] * len(own), "o", color="#9a9a9a")
        spread = row["std"] if row["count"] > 1 else np.nan
        axis.errorbar(
            row["mean"],
            position + 0.15,
            xerr=np.nan_to_num(spread),
            fmt="s",
            color="#3b6fb6",
            capsize=3,
        )
        text = f"{row['mean']:.4f}" + (f" ± {spread:.4f}" if row["count"] > 1 else "")
        axis.annotate(text, (1.01, position), xycoords=("axes fraction", "data"), va="center")
    names = [
        f"β = {row[BETA]:g}" + (", no batch norm" if has_norm and not row["batch_norm"] else "")
        for row in table.to_dict("records")
    ]
    axis.set_yticks(range(len(table)), names)
    axis.set_ylim(-0.5, len(table) - 0.3)
    axis.set_xlabel("best test accuracy")
    return figure, table


def plot_tuning(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Section 3.4: learning rates at β = 1, and the sweep of β at the best of them over β."""
    runs, sweep = with_accuracy(tables), tables.sweep
    if sweep is None:
        raise ValueError("no inverse temperature was tuned")
    rates = over_seeds(runs, [BETA]).sort_values(RATE)
    swept = over_seeds(sweep[sweep["stage"] == "sweep"], [BETA]).sort_values(BETA)
    fresh = over_seeds(sweep[sweep["stage"] == "gain"], [BETA]).sort_values(BETA)
    figure, axes = panels(2, height=2.8)
    for axis, table, column, letter, label in (
        (axes[0], rates, RATE, "a", "learning rate η at β = 1"),
        (axes[1], swept, BETA, "b", BETA_LABEL),
    ):
        axis.plot(table[column], table["mean"], color="#3b6fb6", marker="o", label="seeds tuned on")
        axis.fill_between(
            table[column], table["worst"], table["best"], color="#3b6fb6", alpha=0.15, linewidth=0
        )
        best = table[column].iloc[int(table["mean"].argmax())]
        axis.axvline(best, color=LINE_COLOR, linestyle=_DASHED, linewidth=0.9)
        axis.set(xlabel=label, xscale="log", ylabel="test accuracy")
        name_panel(axis, letter)
    axes[1].errorbar(
        fresh[BETA],
        fresh["mean"],
        yerr=fresh["deviation"].fillna(0),
        color="#d1662b",
        fmt="s",
        capsize=3,
        label="fresh seeds",
    )
    axes[1].legend(loc="best")
    parts = [rates.assign(panel="a"), swept.assign(panel="b"), fresh.assign(panel="b, fresh seeds")]
    return figure, pd.concat(parts, ignore_index=True)


PLOTS: dict[str, Plot] = {
    "temperature/fig4": plot_best_rates,
    "temperature/fig5a": _plot_plane("accuracy", "test accuracy"),
    "temperature/fig5b": _plot_plane("early_accuracy", f"test accuracy after {EARLY_STEPS} steps"),
    "temperature/fig5c": _plot_plane("final_logit_norm", "‖Z‖ at the end", logarithmic=True),
    "temperature/fig6a": _plot_seeds("mean", "mean test accuracy"),
    "temperature/fig6b": _plot_seeds("best", "test accuracy of the best seed"),
    "temperature/fig6c": plot_mean_and_best,
    "temperature/fig6_fully_connected": plot_mean_and_best,
    "temperature/table1": plot_table,
    "temperature/section3_4": plot_tuning,
}
