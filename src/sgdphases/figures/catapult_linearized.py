"""Figures of the catapult paper about linear dynamics after the catapult: 6, S13a and S13b.

Reference: Lewkowycz et al., The large learning rate phase of deep learning, section 4.1 and SM F.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sgdphases.figures.style import (
    SHADE_COLOR,
    draw_phase_lines,
    name_panel,
    ordered_colors,
    panels,
)
from sgdphases.linear_dynamics import (
    SAME_ACCURACY,
    accuracies_by_kind,
    geometric_means,
    kernel_changes,
)
from sgdphases.selection import RATE
from sgdphases.tables import ExperimentTables

_RATE_LABEL = "learning rate η, in units of 2/λ₀"
_LIMITS = (2.0, 4.0, 12.0)


def _draw_by_kind(tables: ExperimentTables, column: str) -> tuple[Figure, pd.DataFrame]:
    """A column of `accuracies_by_kind` against the learning rate, one line per kind."""
    plotted = accuracies_by_kind(tables.runs)
    figure, (axis,) = panels(1, height=3.0)
    kinds = np.unique(plotted["linearize_at"])
    if column == "difference":
        axis.axhspan(0, SAME_ACCURACY, color=SHADE_COLOR, linewidth=0, zorder=0)
    for kind, color in zip(kinds, ordered_colors(kinds), strict=True):
        if column == "difference" and kind < 0:  # the network itself, of which it is a difference
            continue
        line = plotted[plotted["linearize_at"] == kind]
        label = "network" if kind < 0 else f"linearised at step {kind}"
        axis.plot(line[RATE], line[column], color=color, marker="o", label=label)
        if column == "accuracy":
            axis.fill_between(
                line[RATE], line["lowest"], line["highest"], color=color, alpha=0.2, linewidth=0
            )
    largest = 1.02 * plotted[RATE].max()
    axis.set_xlim(0, largest)
    axis.set_xlabel(_RATE_LABEL)
    shown = [constant for constant in _LIMITS if constant <= 2 * largest]
    draw_phase_lines(axis, critical=1.0, constants=shown)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, plotted


def plot_accuracies(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 6: test accuracy of the network and of its linearisations."""
    figure, plotted = _draw_by_kind(tables, "accuracy")
    figure.axes[0].set_ylabel("test accuracy")
    return figure, plotted


def plot_differences(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S13a: how far the linearised networks' accuracies are from the network's."""
    figure, plotted = _draw_by_kind(tables, "difference")
    figure.axes[0].set_ylabel("difference of test accuracies")
    figure.axes[0].set_ylim(bottom=0)
    return figure, plotted


def plot_kernel_change(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S13b: change of the tangent kernel over time, and at the end against the width."""
    changes = kernel_changes(tables)
    means = geometric_means(changes)
    figure, axes = panels(2, height=3.0)
    widths = np.unique(means["width"])
    for width, color in zip(widths, ordered_colors(widths), strict=True):
        line = means[means["width"] == width]
        axes[0].plot(line["step"], line["kernel_change"], color=color, marker="o", label=f"{width}")
    axes[0].set(xlabel="step t", ylabel="relative change of the kernel", yscale="log")
    # Room for the legend below the lines.
    axes[0].set_ylim(bottom=0.25 * means["kernel_change"].min())
    axes[0].legend(title="width", loc="lower right", ncols=3)
    last = changes[changes["step"] == changes["step"].max()]
    line = means[means["step"] == changes["step"].max()]
    axes[1].plot(last["width"], last["kernel_change"], linestyle="none", marker="o", alpha=0.5)
    axes[1].plot(line["width"], line["kernel_change"], color="black")
    axes[1].set(xlabel="width", ylabel="relative change at the end", xscale="log", yscale="log")
    axes[1].set_xticks(widths, [f"{width}" for width in widths])
    axes[1].minorticks_off()
    for axis, letter in zip(axes, "ab", strict=True):
        name_panel(axis, letter)
    return figure, changes


PLOTS: dict[str, Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]] = {
    "catapult/fig6": plot_accuracies,
    "catapult/figS13a": plot_differences,
    "catapult/figS13b": plot_kernel_change,
}
