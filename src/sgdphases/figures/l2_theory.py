"""Figures of the L2 paper's theory of infinitely wide networks: 5a and 5b.

Reference: Lewkowycz and Gur-Ari, On the training dynamics of deep networks with L2 regularization.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sgdphases.figures.style import LINE_COLOR, ordered_colors, panels
from sgdphases.tables import ExperimentTables

_DOTTED = (0, (1, 1.5))


def _plot_modes(
    tables: ExperimentTables, degree: int
) -> tuple[Figure, pd.DataFrame, list[tuple[float, float, str]]]:
    """Output of each mode over time for one degree, and (eigenvalue, λ, colour) of each."""
    runs = tables.runs[tables.runs["homogeneity_degree"] == degree]
    if runs.empty:
        raise ValueError(f"no run of degree {degree}")
    columns = ["run_id", "kernel_mode_eigenvalue", "weight_decay"]
    plotted = tables.history.merge(runs[columns], on="run_id")
    plotted = plotted[plotted["step"] > 0].sort_values(["kernel_mode_eigenvalue", "step"])
    figure, axes = panels(1, height=3.0)
    axis = axes[0]
    eigenvalues = np.unique(plotted["kernel_mode_eigenvalue"])
    modes = []
    for eigenvalue, color in zip(eigenvalues, ordered_colors(eigenvalues), strict=True):
        line = plotted[plotted["kernel_mode_eigenvalue"] == eigenvalue]
        decay = float(line["weight_decay"].iloc[0])
        label = f"{eigenvalue / decay:g}"
        axis.plot(line["physical_time"], line["output"], color=color, label=label)
        modes.append((float(eigenvalue), decay, color))
    axis.axhline(1.0, color=LINE_COLOR, linewidth=0.8)
    axis.set(xlabel="time t", ylabel="output f of the mode", xscale="log")
    axis.legend(title="g/λ", loc="center left", bbox_to_anchor=(1.0, 0.5))
    numbers = [*columns, "physical_time", "output"]
    return figure, plotted[numbers].reset_index(drop=True), modes


def plot_two_layers(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 5a: modes of a network with one hidden layer, and when those above λ decay."""
    figure, plotted, modes = _plot_modes(tables, 2)
    for eigenvalue, decay, color in modes:
        if eigenvalue > 2 * decay:
            time = np.log(eigenvalue / (2 * decay)) / (2 * decay)
            figure.axes[0].axvline(time, color=color, linestyle=_DOTTED)
    return figure, plotted


def plot_linear(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 5b: modes of a linear model, and where they end."""
    figure, plotted, modes = _plot_modes(tables, 1)
    for eigenvalue, decay, color in modes:
        figure.axes[0].axhline(eigenvalue / (eigenvalue + decay), color=color, linestyle=_DOTTED)
    return figure, plotted


PLOTS: dict[str, Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]] = {
    "l2/fig5a": plot_two_layers,
    "l2/fig5b": plot_linear,
}
