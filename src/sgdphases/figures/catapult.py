"""Figures of the catapult paper's trained networks: 3a-c, 4, S7, S8 and S10.

Learning rates are drawn in units of 2/λ₀, so that seeds with different λ₀ share an axis.

Reference: Lewkowycz et al., The large learning rate phase of deep learning.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sgdphases.figures.style import (
    LINE_COLOR,
    draw_phase_lines,
    evenly_chosen,
    mark_learning_rate,
    name_panel,
    ordered_colors,
    panels,
    shade_divergent,
)
from sgdphases.selection import RATE, trainable_edge, trained
from sgdphases.tables import ExperimentTables

RATE_LABEL = "learning rate η, in units of 2/λ₀"
_CURVES = 9
_EARLY_STEPS = 20
_SMALLEST_LOSS = 1e-10


def _first_seed(tables: ExperimentTables) -> pd.DataFrame:
    """Runs of the first seed, by learning rate."""
    runs: pd.DataFrame = tables.runs[tables.runs["seed"] == tables.runs["seed"].min()]
    return runs.sort_values(RATE)


def _curves(
    tables: ExperimentTables, column: str, last_step: int | None = None, count: int = _CURVES
) -> pd.DataFrame:
    """History of evenly chosen runs of the first seed that trained."""
    runs = _first_seed(tables)
    runs = runs[trained(runs)]
    runs = runs[runs[RATE].isin(evenly_chosen(runs[RATE], count))]
    history = tables.history.merge(runs[["run_id", "learning_rate", RATE]], on="run_id")
    history = history.dropna(subset=column).sort_values([RATE, "step"])
    if last_step is not None:
        history = history[history["step"] <= last_step]
    columns = ["run_id", "learning_rate", RATE, "step", "physical_time", column]
    return history[columns].reset_index(drop=True)


def _draw_curves(axis: Axes, history: pd.DataFrame, x: str, column: str) -> None:
    rates = np.unique(history[RATE])
    for rate, color in zip(rates, ordered_colors(rates), strict=True):
        curve = history[history[RATE] == rate]
        axis.plot(curve[x], curve[column], color=color, marker=".", label=f"{rate:.3g}")


def _legend_of_rates(axis: Axes) -> None:
    axis.legend(title="η·λ₀/2", loc="center left", bbox_to_anchor=(1.0, 0.5))


def plot_early_loss(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 3a: training loss over the first steps, one curve per learning rate."""
    plotted = _curves(tables, "train_loss", _EARLY_STEPS)
    figure, (axis,) = panels(1, height=3.0)
    _draw_curves(axis, plotted, "step", "train_loss")
    axis.set(xlabel="step t", ylabel="training loss", yscale="log")
    axis.set_xlim(0, plotted["step"].max())
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_of_rates(axis)
    return figure, plotted


def plot_curvature_over_time(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 3b: top NTK eigenvalue over physical time, one curve per learning rate."""
    plotted = _curves(tables, "ntk_top_eigenvalue")
    figure, (axis,) = panels(1, height=3.0)
    _draw_curves(axis, plotted, "physical_time", "ntk_top_eigenvalue")
    axis.set(xlabel="physical time t·η", ylabel="curvature λ", yscale="log")
    axis.set_xlim(left=0)
    _legend_of_rates(axis)
    return figure, plotted


def _by_rate(
    axis: Axes,
    tables: ExperimentTables,
    column: str,
    constants: Sequence[float],
    only_trained: bool = True,
    logarithmic: bool = False,
) -> pd.DataFrame:
    """A final quantity against the learning rate, one line per seed.

    With `only_trained`, runs that did not train are left out and their rates are shaded; without,
    only runs that left the finite range are left out.
    """
    columns = ["run_id", "seed", "learning_rate", RATE, "status", column]
    plotted = tables.runs[columns].assign(trained=trained(tables.runs))
    plotted = plotted.sort_values(["seed", RATE]).reset_index(drop=True)
    shown = plotted[plotted["trained"] if only_trained else plotted["status"] != "diverged"]
    seeds = np.unique(shown["seed"])
    for seed, color in zip(seeds, ordered_colors(seeds), strict=True):
        line = shown[shown["seed"] == seed]
        axis.plot(line[RATE], line[column], color=color, marker="o", label=f"{seed}")
    axis.set_xlabel(RATE_LABEL)
    axis.set_xscale("log" if logarithmic else "linear")
    left = 0.8 * plotted[RATE].min() if logarithmic else 0
    axis.set_xlim(left, (1.1 if logarithmic else 1.02) * plotted[RATE].max())
    draw_phase_lines(axis, critical=1.0, constants=constants)
    edge = trainable_edge(tables.runs)
    if only_trained and edge is not None:
        shade_divergent(axis, float(np.sqrt(edge[0] * edge[1])), label="does not train")
    if len(seeds) > 1:
        axis.legend(title="seed", loc="best")
    return plotted


def plot_final_curvature(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 3c: top NTK eigenvalue at the end of training against the learning rate."""
    figure, (axis,) = panels(1, height=3.0)
    plotted = _by_rate(axis, tables, "final_ntk_top_eigenvalue", (2.0, 4.0, 12.0))
    axis.set(ylabel="λ at the end", yscale="log")
    return figure, plotted


def plot_test_accuracy(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 4: test accuracy at the end of training against the learning rate."""
    figure, (axis,) = panels(1, height=3.0)
    plotted = _by_rate(axis, tables, "final_test_accuracy", (2.0, 4.0, 12.0))
    axis.set(ylabel="test accuracy")
    return figure, plotted


def plot_scalar_relu(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S7: loss and curvature over time and the final curvature of the scalar ReLU model."""
    figure, axes = panels(4, columns=2, height=2.5)
    loss = _curves(tables, "train_loss", last_step=_EARLY_STEPS)
    curvature = _curves(tables, "ntk_top_eigenvalue", last_step=_EARLY_STEPS)
    _draw_curves(axes[0], loss, "step", "train_loss")
    axes[0].set(xlabel="step t", ylabel="loss", yscale="log")
    axes[0].set_ylim(bottom=_SMALLEST_LOSS)
    _draw_curves(axes[1], curvature, "step", "ntk_top_eigenvalue")
    axes[1].set(xlabel="step t", ylabel="curvature λ", yscale="log")
    _legend_of_rates(axes[1])
    for axis, letter in zip(axes[:2], "ab", strict=True):
        name_panel(axis, letter)
    quantities = ("final_ntk_top_eigenvalue", "final_train_loss")
    final = [
        _by_rate(axis, tables, quantity, (2.0, 4.0, 12.0), only_trained=False)
        for axis, quantity in zip(axes[2:], quantities, strict=True)
    ]
    for axis, letter, name in zip(axes[2:], "cd", ("λ", "loss"), strict=True):
        axis.set(ylabel=f"{name} at the end")
        _name_beside(axis, letter)
    tidy = [
        loss.assign(panel="a").rename(columns={"train_loss": "value"}),
        curvature.assign(panel="b").rename(columns={"ntk_top_eigenvalue": "value"}),
        final[0].assign(panel="c").rename(columns={quantities[0]: "value"}),
        final[1].assign(panel="d").rename(columns={quantities[1]: "value"}),
    ]
    return figure, pd.concat(tidy, ignore_index=True)


def _name_beside(axis: Axes, letter: str) -> None:
    """Write a panel's letter where the names of the lines above its frame leave room."""
    axis.text(-0.02, 1.015, f"({letter})", transform=axis.transAxes, ha="right", va="bottom")


def plot_momentum_activations(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S8a: curvature relative to its start, per activation, with and without momentum."""
    runs = _first_seed(tables)[["run_id", "activation", "momentum"]]
    history = tables.history.merge(runs, on="run_id").dropna(subset="ntk_top_eigenvalue")
    history = history.sort_values(["activation", "momentum", "step"])
    start = history.groupby("run_id")["ntk_top_eigenvalue"].transform("first")
    history["relative_eigenvalue"] = history["ntk_top_eigenvalue"] / start
    figure, (axis,) = panels(1, height=3.0)
    activations = list(dict.fromkeys(history["activation"]))
    colors = dict(zip(activations, ordered_colors(range(len(activations))), strict=True))
    for _, curve in history.groupby("run_id"):
        activation, momentum = curve.iloc[0][["activation", "momentum"]]
        style = "-" if momentum > 0 else (0, (3, 1.5))
        axis.plot(
            curve["step"], curve["relative_eigenvalue"], color=colors[activation], linestyle=style
        )
    axis.set(xlabel="step t", ylabel="λ / λ₀")
    axis.set_xlim(0, history["step"].max())
    largest = history["momentum"].max()
    handles = [Line2D([], [], color=colors[name], label=name) for name in activations]
    handles += [
        Line2D([], [], color=LINE_COLOR, label=f"momentum {largest:g}"),
        Line2D([], [], color=LINE_COLOR, linestyle=(0, (3, 1.5)), label="no momentum"),
    ]
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    columns = ["run_id", "activation", "momentum", "step", "relative_eigenvalue"]
    return figure, history[columns].reset_index(drop=True)


def plot_momentum_curvature(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S8b: final curvature against the learning rate with momentum."""
    figure, (axis,) = panels(1, height=3.0)
    plotted = _by_rate(axis, tables, "final_ntk_top_eigenvalue", (), logarithmic=True)
    momentum = float(tables.runs["momentum"].max())
    axis.set(ylabel="λ at the end", yscale="log")
    lines = {"(1−m)·2/λ₀": 1 - momentum, "2/λ₀": 1.0, "(1+m)·2/λ₀": 1 + momentum}
    for name, position in lines.items():
        mark_learning_rate(axis, position, name)
    return figure, plotted


def plot_curvature_panels(
    tables: ExperimentTables, constants: Sequence[float], scale: str = "linear"
) -> tuple[Figure, pd.DataFrame]:
    """Curvature over time, and at the end of training against the learning rate.

    Args:
        tables: Tables of the runs.
        constants: Where lines c/λ₀ are drawn.
        scale: linear or log, of the curvature.
    """
    figure, axes = panels(2, height=3.0)
    curvature = _curves(tables, "ntk_top_eigenvalue", count=6)
    _draw_curves(axes[0], curvature, "physical_time", "ntk_top_eigenvalue")
    axes[0].set(xlabel="physical time t·η", ylabel="curvature λ", yscale=scale)
    axes[0].set_xlim(left=0)
    axes[0].legend(title="η·λ₀/2", loc="best", ncols=2)
    name_panel(axes[0], "a")
    final = _by_rate(axes[1], tables, "final_ntk_top_eigenvalue", constants)
    axes[1].set(ylabel="λ at the end", yscale=scale)
    _name_beside(axes[1], "b")
    tidy = [
        curvature.assign(panel="a").rename(columns={"ntk_top_eigenvalue": "value"}),
        final.assign(panel="b").rename(columns={"final_ntk_top_eigenvalue": "value"}),
    ]
    return figure, pd.concat(tidy, ignore_index=True)


def plot_tanh(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S10: curvature over time and at the end of training of a tanh network."""
    return plot_curvature_panels(tables, (2.0, 4.0))


PLOTS: dict[str, Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]] = {
    "catapult/fig3a": plot_early_loss,
    "catapult/fig3b": plot_curvature_over_time,
    "catapult/fig3c": plot_final_curvature,
    "catapult/fig4": plot_test_accuracy,
    "catapult/figS7": plot_scalar_relu,
    "catapult/figS8a": plot_momentum_activations,
    "catapult/figS8b": plot_momentum_curvature,
    "catapult/figS10": plot_tanh,
}
