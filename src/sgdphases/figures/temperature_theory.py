"""Figures of the temperature paper on early learning: 1, 2, 3, 7 and the appendices A and B.

Reference: Temperature check, section 2 and appendices A to D.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sgdphases.claims.catapult_theory import numbers
from sgdphases.claims.temperature_theory import logit_sizes, momentum_curves, wide_panels
from sgdphases.figures.style import LINE_COLOR, name_panel, ordered_colors, panels
from sgdphases.tables import ExperimentTables
from sgdphases.temperature_analysis import (
    curves,
    departures,
    early_timescales,
    effective_rate,
    family_of_starts,
)

Drawn = tuple[Figure, pd.DataFrame]
LineStyle = str | tuple[int, tuple[float, float]]

_DASHED = (0, (3, 1.5))
_DOTTED = (0, (1, 1.5))
_SIZE_LABEL = "size of the logits Z⁰ (root mean square)"
_TIME_LABEL = "effective time ηβ²·t"


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


def _legend_beside(axis: Axes, title: str) -> None:
    axis.legend(title=title, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _paired_curves(tables: ExperimentTables) -> pd.DataFrame:
    """Curves of the runs that have a linearised one beside them, and of those."""
    history = curves(tables)
    pairs = history.groupby(["inverse_temperature", "head_correlation", "seed"])["linearize_at"]
    history["linearized"] = history["linearize_at"].notna()
    is_paired = pairs.transform(lambda flags: flags.notna().any())
    return history[is_paired & (history["step"] > 0)]


def _plot_learning_curves(time: str, label: str, marked: bool) -> Callable[..., Drawn]:
    def plot(tables: ExperimentTables) -> Drawn:
        """Figure 1: training loss at several β, and of the linearised network."""
        figure, (axis,) = panels(1, height=3.0)
        history = _paired_curves(tables)
        _draw_lines(
            axis, history[~history["linearized"]], time, "train_loss", "inverse_temperature"
        )
        linear = history[history["linearized"]]
        if marked:
            # They are one curve: that of the largest β is the longest in effective time.
            linear = linear[linear["inverse_temperature"] == linear["inverse_temperature"].max()]
            linear = linear.sort_values(time)
            axis.plot(
                linear[time], linear["train_loss"], color="black", linestyle=_DASHED, linewidth=1
            )
            found = departures(tables)
            colors = ordered_colors(found["inverse_temperature"])
            axis.scatter(found["departure_time"], found["departure_loss"], c=colors, s=22, zorder=3)
        else:
            _draw_lines(
                axis, linear, time, "train_loss", "inverse_temperature", _DASHED, named=False
            )
        axis.set(xlabel=label, ylabel="training loss", xscale="log")
        _legend_beside(axis, "β")
        columns = ["run_id", "inverse_temperature", "linearized", "step", "effective_time"]
        return figure, history[[*columns, "train_loss"]].reset_index(drop=True)

    return plot


def _plot_accuracy(time: str, label: str) -> Callable[..., Drawn]:
    def plot(tables: ExperimentTables) -> Drawn:
        """Figure 2 centre and right: accuracy from several norms of the logits."""
        figure, (axis,) = panels(1, height=3.0)
        history = family_of_starts(tables)
        history = history[history["step"] > 0]
        _draw_lines(axis, history, time, "test_accuracy", "logit_size")
        axis.set(xlabel=label, ylabel="test accuracy", xscale="log")
        axis.set_title(f"β = {history['inverse_temperature'].iloc[0]:g}")
        _legend_beside(axis, "size of Z⁰")
        columns = ["run_id", "logit_size", "step", "effective_time", "scaled_time"]
        return figure, history[[*columns, "test_accuracy"]].reset_index(drop=True)

    return plot


def _draw_times(axis: Axes, table: pd.DataFrame, defined: str, estimated: str) -> None:
    """A time against the size of the logits, one line for each β; crosses: estimates."""
    _draw_lines(axis, table, "scaled_logit_size", defined, "inverse_temperature", marker=".")
    if estimated in table:
        axis.plot(table["scaled_logit_size"], table[estimated], "x", color="black", markersize=4)
    axis.set(xlabel=_SIZE_LABEL, xscale="log", yscale="log")


def plot_logit_time(tables: ExperimentTables) -> Drawn:
    """Figure 2 left: τ_z over the norm of the logits, and τ_z, against that norm."""
    table = early_timescales(tables)
    table = table[table["scaled_logit_norm"] > 0].copy()
    names = ("logit_timescale", "estimated_logit_timescale")
    for name in names:
        table[f"{name}_over_norm"] = table[name] / table["scaled_logit_norm"]
    figure, axes = panels(2, height=3.0)
    _draw_times(axes[0], table, *(f"{name}_over_norm" for name in names))
    axes[0].set(ylabel="τ$_z$/‖Z⁰‖", yscale="linear")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(title="β", loc="lower left")
    _draw_times(axes[1], table, *names)
    axes[1].set(ylabel="τ$_z$")
    columns = ["run_id", "inverse_temperature", "head_correlation", "scaled_logit_size", *names]
    return figure, table[[*columns, f"{names[0]}_over_norm"]].reset_index(drop=True)


def _plot_nonlinear_time(over_temperature: bool) -> Callable[..., Drawn]:
    def plot(tables: ExperimentTables) -> Drawn:
        """Figure 3: τ_nl, and τ_nl over β, against the norm of the logits."""
        table = early_timescales(tables)
        table = table[table["scaled_logit_norm"] > 0].copy()
        names = ("nonlinear_timescale", "estimated_nonlinear_timescale")
        if over_temperature:
            for name in names:
                table[name] = table[name] / table["inverse_temperature"]
        figure, (axis,) = panels(1, height=3.0)
        _draw_times(axis, table, *names)
        axis.set(ylabel="τ$_{nl}$/β" if over_temperature else "τ$_{nl}$")
        if over_temperature:
            axis.set_yscale("linear")
            axis.set_ylim(bottom=0)
        _legend_beside(axis, "β")
        columns = ["run_id", "inverse_temperature", "head_correlation", "scaled_logit_size"]
        return figure, table[[*columns, *names]].reset_index(drop=True)

    return plot


def _plot_wide(name: str) -> Callable[..., Drawn]:
    def plot(tables: ExperimentTables) -> Drawn:
        """Figure 7: τ_z over the norm of the logits in wide networks, and in closed form."""
        panel = wide_panels(tables)[name].sort_values("logit_size")
        correlation = np.corrcoef(panel["measured"], panel["closed_form"])[0, 1]
        figure, (axis,) = panels(1, height=3.0)
        colors = ordered_colors([0, 1])
        size = panel["logit_size"]
        axis.plot(size, panel["measured"], "o", color=colors[0], label="network: τ$_z$/‖Z⁰‖")
        for beta, line in panel.groupby("inverse_temperature"):
            is_first = beta == panel["inverse_temperature"].min()
            label = "infinite width: 1/‖Θ(Y − σ)‖" if is_first else None
            axis.plot(line["logit_size"], line["closed_form"], color=colors[1], label=label)
        axis.set(xlabel=_SIZE_LABEL, ylabel="time over norm", xscale="log")
        axis.set_ylim(bottom=0)
        axis.set_title(f"{name}; correlation {correlation:.4f}")
        axis.legend(loc="best")
        return figure, panel.reset_index(drop=True)

    return plot


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
    axes[0].set(xlabel="η·t (dashed), ηβ²·t", ylabel="training loss", xscale="log")
    axes[0].set_xlim(right=1e6 * history["physical_time"].max())
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
    "temperature/fig1left": _plot_learning_curves("step", "step t", marked=False),
    "temperature/fig1right": _plot_learning_curves("effective_time", _TIME_LABEL, marked=True),
    "temperature/fig2left": plot_logit_time,
    "temperature/fig2center": _plot_accuracy("effective_time", _TIME_LABEL),
    "temperature/fig2right": _plot_accuracy("scaled_time", "time over that of the logits, t/τ$_z$"),
    "temperature/fig3left": _plot_nonlinear_time(over_temperature=False),
    "temperature/fig3right": _plot_nonlinear_time(over_temperature=True),
    "temperature/fig7left": _plot_wide("relu"),
    "temperature/fig7middle": _plot_wide("erf"),
    "temperature/fig7right": _plot_wide("relu, shuffled labels"),
    "temperature/appA": plot_appendix_a,
    "temperature/appB": plot_appendix_b,
}
