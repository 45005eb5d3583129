"""Figures of the catapult paper's convolutional networks: 1b, 3d-f, 5, S2 to S6, S9 and S11.

Learning rates are drawn in units of 2/λ₀.

Reference: Lewkowycz et al., The large learning rate phase of deep learning.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sgdphases.figures import catapult
from sgdphases.figures.style import (
    draw_phase_lines,
    evenly_chosen,
    ordered_colors,
    panels,
    shade_divergent,
)
from sgdphases.performance import (
    at_budget,
    budget_history,
    early_dynamics,
    fixed_steps,
    fixed_time,
    part_of,
)
from sgdphases.selection import RATE, trainable_edge, trained
from sgdphases.tables import ExperimentTables

Plotted = tuple[Figure, pd.DataFrame]

# Of Wide ResNets and CNNs in the paper: the critical rate and the largest of ReLU networks.
_LINES = (2.0, 12.0)
_BUDGET_COLOR, _DECAY_COLOR = "#7b4ea3", "#c23b3b"
_CURVES = 7


def plot_early_loss(tables: ExperimentTables) -> Plotted:
    """Figure 3d: training loss of a Wide ResNet over the first steps."""
    return catapult.plot_early_loss(early_dynamics(tables))


def plot_curvature_over_time(tables: ExperimentTables) -> Plotted:
    """Figure 3e: top NTK eigenvalue of a Wide ResNet over physical time."""
    return catapult.plot_curvature_over_time(early_dynamics(tables))


def plot_final_curvature(tables: ExperimentTables) -> Plotted:
    """Figure 3f: top NTK eigenvalue of a Wide ResNet at a physical time against learning rate."""
    return catapult.plot_final_curvature(early_dynamics(tables))


def plot_curvature_with_decay(tables: ExperimentTables) -> Plotted:
    """Figure S9: curvature of a Wide ResNet with L2, over time and at a physical time."""
    return catapult.plot_curvature_panels(early_dynamics(tables, decayed=True), _LINES, "log")


def plot_curvature_in_ntk_parametrisation(tables: ExperimentTables) -> Plotted:
    """Figure S11: the same in NTK parametrisation, without L2."""
    return catapult.plot_curvature_panels(early_dynamics(tables, "ntk"), _LINES, "log")


def _draw_accuracy(axis: Axes, runs: pd.DataFrame, stages: dict[str, str]) -> pd.DataFrame:
    """Accuracies against the learning rate, one line per stage of training: means over seeds.

    Args:
        axis: The axis.
        runs: The runs.
        stages: By the name of each stage, the column of its accuracy.

    Returns:
        The plotted numbers: `run_id`, `seed`, `learning_rate`, `relative_learning_rate`, `stage`,
        `accuracy`.
    """
    finite = runs[runs["status"] != "diverged"]
    parts = []
    colors = (_BUDGET_COLOR, _DECAY_COLOR)
    for (stage, column), color in zip(stages.items(), colors, strict=False):
        part = finite[["run_id", "seed", "learning_rate", RATE]]
        part = part.assign(stage=stage, accuracy=finite[column]).dropna(subset="accuracy")
        mean = part.groupby(part[RATE].round(9))["accuracy"].mean()
        axis.plot(mean.index, mean, color=color, marker="o", label=stage)
        parts.append(part)
    axis.set_xlim(0, 1.02 * runs[RATE].max())
    draw_phase_lines(axis, critical=1.0, constants=_LINES)
    edge = trainable_edge(runs)
    if edge is not None:
        shade_divergent(axis, float(np.sqrt(edge[0] * edge[1])), label="does not train")
    axis.set_xlabel(catapult.RATE_LABEL)
    if len(stages) > 1:
        axis.legend(loc="best")
    return pd.concat(parts, ignore_index=True)


def _accuracy_panels(
    drawn: list[tuple[str, pd.DataFrame, dict[str, str]]], split: str, letters: str
) -> Plotted:
    """Panels of accuracies against the learning rate.

    Args:
        drawn: Of each panel its title, its runs, and the column of each stage.
        split: train or test.
        letters: The paper's letters of the panels.
    """
    figure, axes = panels(len(drawn), height=3.0)
    parts = []
    for axis, letter, (title, runs, stages) in zip(axes, letters, drawn, strict=True):
        parts.append(_draw_accuracy(axis, runs, stages).assign(panel=letter))
        axis.set(ylabel=f"{'training' if split == 'train' else split} accuracy")
        # Above the names of the lines.
        axis.set_title(f"({letter}) {title}", pad=16)
    return figure, pd.concat(parts, ignore_index=True)


def _steps_panel(tables: ExperimentTables, split: str) -> tuple[str, pd.DataFrame, dict[str, str]]:
    runs = fixed_steps(tables).runs
    return f"{runs['budget_steps'].max():,.0f} steps", runs, {"end": f"final_{split}_accuracy"}


def _time_panel(
    tables: ExperimentTables, split: str, decayed: bool = True
) -> tuple[str, pd.DataFrame, dict[str, str]]:
    runs = at_budget(fixed_time(tables, decayed))
    time, steps = runs["budget_physical_time"].max(), runs["final_steps"].max()
    rate = runs["final_learning_rate"].max()
    stages = {
        "at constant rate": f"budget_{split}_accuracy",
        f"{steps:,.0f} steps at {rate:g} later": f"final_{split}_accuracy",
    }
    return f"physical time {time:g}", runs, stages


def plot_steps_performance(tables: ExperimentTables) -> Plotted:
    """Figure 1b: test accuracy after a fixed number of steps against the learning rate."""
    figure, (axis,) = panels(1, height=3.0)
    plotted = _draw_accuracy(axis, fixed_steps(tables).runs, {"end": "final_test_accuracy"})
    axis.set(ylabel="test accuracy")
    return figure, plotted


def plot_performance(letters: str, split: str = "test") -> Callable[[ExperimentTables], Plotted]:
    """Figures 5, S2, S5 and S6: accuracy after fixed steps, and after a physical time."""

    def plot(tables: ExperimentTables) -> Plotted:
        drawn = [_steps_panel(tables, split), _time_panel(tables, split)]
        return _accuracy_panels(drawn, split, letters)

    return plot


def plot_performance_without_decay(tables: ExperimentTables) -> Plotted:
    """Figure S4: test accuracy after a physical time without L2."""
    figure, (axis,) = panels(1, height=3.0)
    _, runs, stages = _time_panel(tables, "test", decayed=False)
    plotted = _draw_accuracy(axis, runs, stages)
    axis.set(ylabel="test accuracy")
    return figure, plotted


def plot_accuracy_over_time(tables: ExperimentTables) -> Plotted:
    """Figure S3: test accuracy over physical time, one curve per learning rate."""
    part = fixed_time(tables)
    part = part_of(part, trained(part.runs))
    history = budget_history(part).dropna(subset="test_accuracy").sort_values([RATE, "step"])
    history = history[history[RATE].isin(evenly_chosen(history[RATE], _CURVES))]
    history["physical_epochs"] = history["physical_time"] / history["steps_per_epoch"]
    figure, (axis,) = panels(1, height=3.0)
    rates = np.unique(history[RATE])
    for rate, color in zip(rates, ordered_colors(rates), strict=True):
        curve = history[history[RATE] == rate]
        label = f"{rate:.3g}"
        axis.plot(curve["physical_epochs"], curve["test_accuracy"], color=color, label=label)
    axis.set(xlabel="physical epochs (epochs times η)", ylabel="test accuracy")
    axis.set_xlim(0, history["physical_epochs"].max())
    axis.legend(title="η·λ₀/2", loc="center left", bbox_to_anchor=(1.0, 0.5))
    columns = ["run_id", "learning_rate", RATE, "step", "physical_time", "physical_epochs"]
    return figure, history[[*columns, "test_accuracy"]].reset_index(drop=True)


PLOTS: dict[str, Callable[[ExperimentTables], Plotted]] = {
    "catapult/fig1b": plot_steps_performance,
    "catapult/fig3d": plot_early_loss,
    "catapult/fig3e": plot_curvature_over_time,
    "catapult/fig3f": plot_final_curvature,
    "catapult/fig5ab": plot_performance("ab"),
    "catapult/fig5cd": plot_performance("cd"),
    "catapult/figS2": plot_performance("ab"),
    "catapult/figS3": plot_accuracy_over_time,
    "catapult/figS4": plot_performance_without_decay,
    "catapult/figS5": plot_performance("ab"),
    "catapult/figS6ab": plot_performance("ab", "train"),
    "catapult/figS6cd": plot_performance("cd", "train"),
    "catapult/figS9": plot_curvature_with_decay,
    "catapult/figS11": plot_curvature_in_ntk_parametrisation,
}
