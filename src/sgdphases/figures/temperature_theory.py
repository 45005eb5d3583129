"""Figures of the temperature paper on early learning: 1, 2, 3, 7 and the appendices A and B.

Reference: Temperature check, section 2 and appendices A to D.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sgdphases.claims.catapult_theory import numbers
from sgdphases.claims.temperature_theory import effective_rate, logit_sizes, momentum_curves
from sgdphases.figures.style import LINE_COLOR, name_panel, ordered_colors, panels
from sgdphases.tables import ExperimentTables

Drawn = tuple[Figure, pd.DataFrame]
LineStyle = str | tuple[int, tuple[float, float]]

_DASHED = (0, (3, 1.5))
_DOTTED = (0, (1, 1.5))
_MARKERS = "osD^v"


def _draw_lines(
    axis: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    style: LineStyle = "-",
    marker: str = "",
    named: bool = True,
) -> None:
    """One line for each value of a column, coloured by its rank."""
    values = np.unique(table[by])
    for value, color in zip(values, ordered_colors(values), strict=True):
        line = table[table[by] == value].sort_values(x)
        label = f"{value:.3g}" if named else None
        axis.plot(line[x], line[y], color=color, linestyle=style, marker=marker, label=label)


def _positive_range(axis: Axes, values: "pd.Series[float]") -> None:
    """Logarithmic horizontal axis over the positive values."""
    axis.set_xscale("log")
    axis.set_xlim(values[values > 0].min(), values.max())


def plot_appendix_a(tables: ExperimentTables) -> Drawn:
    """Appendix A: one curve in ηβ²t, conditioning, and equilibria with L2 on the displacement."""
    figure, axes = panels(3, height=2.9)
    runs = tables.runs.assign(effective_learning_rate=effective_rate(tables.runs))
    is_free = runs["displacement_l2"] == 0
    several = runs.groupby(["seed", "num_classes", "logit_scale"])["inverse_temperature"]
    curves = runs[is_free & (several.transform("nunique") > 1)]
    columns = ["run_id", "inverse_temperature", "effective_learning_rate"]
    history = tables.history.merge(curves[columns], on="run_id")
    history["effective_time"] = history["step"] * history["effective_learning_rate"]
    history = history[history["step"] > 0]
    _draw_lines(
        axes[0], history, "physical_time", "train_loss", "inverse_temperature", _DASHED, named=False
    )
    _draw_lines(axes[0], history, "effective_time", "train_loss", "inverse_temperature")
    axes[0].set(xlabel="η·t, ηβ²·t", ylabel="training loss", xscale="log")
    axes[0].set_xlim(right=1e4 * history["physical_time"].max())
    axes[0].legend(title="β", loc="upper right")

    steep = runs[is_free & (several.transform("nunique") == 1)]
    steep = steep.assign(size=logit_sizes(steep))
    for color, (name, label) in zip(
        ordered_colors([0, 1]),
        (("jacobian_condition_number", "σ$_z$"), ("dynamics_condition_number", "Θ·σ$_z$")),
        strict=True,
    ):
        axes[1].plot(steep["size"], steep[name], "o", color=color, markersize=2.5, label=label)
    for value in steep["kernel_condition_number"].unique():
        axes[1].axhline(value, color=LINE_COLOR, linewidth=0.8, linestyle=_DOTTED)
    axes[1].set(xlabel="size of the logits Z", ylabel="condition number", yscale="log")
    axes[1].legend(loc="upper left")

    pulled = runs[~is_free].copy()
    pulled["ratio"] = numbers(pulled, "initial_ntk_top_eigenvalue") / numbers(
        pulled, "displacement_l2"
    )
    pulled = pulled.sort_values("ratio")
    for color, (name, label) in zip(
        ordered_colors([0, 1]),
        (("equilibrium_error", "eq. 16 with β²"), ("printed_equilibrium_error", "as printed")),
        strict=True,
    ):
        axes[2].plot(pulled["ratio"], pulled[name], marker="o", color=color, label=label)
    axes[2].set(xlabel="β²‖Θ‖/λ", ylabel="relative distance", xscale="log", yscale="log")
    axes[2].legend(loc="best")
    for axis, letter in zip(axes, "abc", strict=True):
        name_panel(axis, letter)
    conditions = ["kernel_condition_number", "jacobian_condition_number"]
    tidy = [
        history[[*columns, "physical_time", "effective_time", "train_loss"]].assign(panel="a"),
        steep[["run_id", "size", *conditions, "dynamics_condition_number"]].assign(panel="b"),
        pulled[["run_id", "ratio", "equilibrium_error", "printed_equilibrium_error"]].assign(
            panel="c"
        ),
    ]
    return figure, pd.concat(tidy, ignore_index=True)


_MOMENTUM_SPAN = 8.0


def plot_appendix_b(tables: ExperimentTables) -> Drawn:
    """Appendix B: momentum in √η·t, plain descent in η·t, and softmax in √η̃·t."""
    figure, axes = panels(3, height=2.9)
    quartic = momentum_curves(tables)
    moving = quartic[(quartic["momentum"] > 0) & (quartic["momentum_time"] <= _MOMENTUM_SPAN)]
    _draw_lines(axes[0], moving, "momentum_time", "parameter", "learning_rate")
    axes[0].set(xlabel="√η·t", ylabel="θ")
    axes[0].legend(title="η", loc="upper right")
    plain = quartic[(quartic["momentum"] == 0) & (quartic["physical_time"] <= _MOMENTUM_SPAN)]
    _draw_lines(axes[1], plain, "physical_time", "parameter", "learning_rate")
    axes[1].set(xlabel="η·t, no momentum", ylabel="θ")
    axes[1].legend(title="η", loc="upper right")

    runs = tables.runs[tables.runs["model"] == "softmax_kernel"]
    runs = runs.assign(effective_learning_rate=effective_rate(runs).round(12))
    columns = ["run_id", "inverse_temperature", "effective_learning_rate"]
    softmax = tables.history.merge(runs[columns], on="run_id")
    softmax["momentum_time"] = softmax["step"] * np.sqrt(softmax["effective_learning_rate"])
    softmax = softmax[softmax["momentum_time"] <= _MOMENTUM_SPAN]
    rates = np.unique(softmax["effective_learning_rate"])
    styles: tuple[LineStyle, ...] = ("-", _DASHED, _DOTTED)
    for rate, style in zip(rates, styles, strict=False):
        part = softmax[softmax["effective_learning_rate"] == rate]
        _draw_lines(
            axes[2], part, "momentum_time", "train_loss", "inverse_temperature", style,
            named=rate == rates[0],
        )  # fmt: skip
    axes[2].set(xlabel="√η̃·t", ylabel="training loss")
    axes[2].legend(title="β", loc="upper right")
    for axis, letter in zip(axes, "abc", strict=True):
        name_panel(axis, letter)
    shared = ["run_id", "learning_rate", "momentum"]
    tidy = [
        moving[[*shared, "momentum_time", "parameter"]].assign(panel="a"),
        plain[[*shared, "physical_time", "parameter"]].assign(panel="b"),
        softmax[[*columns, "momentum_time", "train_loss"]].assign(panel="c"),
    ]
    return figure, pd.concat(tidy, ignore_index=True)


PLOTS: dict[str, Callable[[ExperimentTables], Drawn]] = {
    "temperature/appA": plot_appendix_a,
    "temperature/appB": plot_appendix_b,
}
