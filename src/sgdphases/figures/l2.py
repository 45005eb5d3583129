"""Figures of the L2 paper's trained networks: 1-4, 5c, S1-S12, and the decay of the kernel.

Times are in epochs, as in the paper; λ is the coefficient of L2.

Reference: Lewkowycz and Gur-Ari, On the training dynamics of deep networks with L2 regularization.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from sgdphases.figures.style import (
    LINE_COLOR,
    evenly_chosen,
    name_panel,
    ordered_colors,
    panels,
)
from sgdphases.l2_analysis import (
    accuracy_within,
    best_constant,
    decay_times,
    first_reached,
    kernel_losses,
    split_schedule,
    tuned_and_predicted,
    tuned_runs,
    with_peaks,
)
from sgdphases.tables import ExperimentTables

DECAY_LABEL = "L2 coefficient λ"
_GUIDE_COLOR = "#9a9a9a"
_DASHED = (0, (4, 2))
_DOTTED = (0, (1, 1.5))
_LINES = 9
# Colours of the paper's figure 5c.
_THEORY_COLORS = {1: "#3b6fb6", 2: "#d1662b"}
_NETWORK_COLOR = "#3f8f4f"

Plot = Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]


def _chosen(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    return runs[runs[column].isin(evenly_chosen(runs[column], _LINES))]


def _draw_lines(
    axis: Axes, table: pd.DataFrame, x: str, y: str, by: str, markers: bool = True
) -> None:
    """One line per value of `by`, coloured by its rank."""
    values = np.unique(table[by])
    for value, color in zip(values, ordered_colors(values), strict=True):
        line = table[(table[by] == value) & table[y].notna()].sort_values(x)
        marker = "o" if markers else ""
        axis.plot(line[x], line[y], color=color, marker=marker, label=f"{value:.3g}")


def _guide(axis: Axes, x: ArrayLike, y: ArrayLike) -> None:
    """A grey line of slope −1 through the middle of the points of a log–log panel."""
    points = np.array([x, y], dtype=np.float64)
    points = points[:, (np.isfinite(points) & (points > 0)).all(axis=0)]
    if points.shape[1] < 2:
        return
    level = float(np.median(points[0] * points[1]))
    ends = np.array([points[0].min(), points[0].max()])
    axis.plot(ends, level / ends, color=_GUIDE_COLOR, linewidth=2.5, alpha=0.6, zorder=1)


def _legend(axis: Axes, title: str) -> None:
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend(title=title, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _selected(tables: ExperimentTables, batch_norm: bool | None) -> ExperimentTables:
    """The runs with or without batch norm, or all."""
    if batch_norm is None:
        return tables
    runs = tables.runs[tables.runs["batch_norm"].astype(bool) == batch_norm]
    history = tables.history[tables.history["run_id"].isin(runs["run_id"])]
    return ExperimentTables(tables.spec, runs, history, tables.curvature)


def _time_panel(axis: Axes, runs: pd.DataFrame) -> pd.DataFrame:
    """Epochs to the best accuracy against λ, one line per learning rate."""
    plotted = _chosen(runs[(runs["weight_decay"] > 0) & runs["learned"]], "learning_rate")
    columns = ["run_id", "learning_rate", "weight_decay", "peak_epochs"]
    plotted = plotted[columns].sort_values(["learning_rate", "weight_decay"])
    _draw_lines(axis, plotted, "weight_decay", "peak_epochs", "learning_rate")
    for _, line in plotted.groupby("learning_rate"):
        _guide(axis, line["weight_decay"], line["peak_epochs"])
    axis.set(xlabel=DECAY_LABEL, ylabel="epochs to best test accuracy")
    if plotted["peak_epochs"].notna().any():  # an empty axis has no logarithm
        axis.set(xscale="log", yscale="log")
    return plotted


def _accuracy_panel(axis: Axes, runs: pd.DataFrame) -> pd.DataFrame:
    """Best accuracy against λ, one line per learning rate, and the line without L2."""
    finite = _chosen(runs[runs["status"] != "diverged"], "learning_rate")
    columns = ["run_id", "learning_rate", "weight_decay", "max_test_accuracy"]
    plotted = finite[columns].sort_values(["learning_rate", "weight_decay"])
    decaying = plotted[plotted["weight_decay"] > 0]
    _draw_lines(axis, decaying, "weight_decay", "max_test_accuracy", "learning_rate")
    without = runs.loc[runs["weight_decay"] == 0, "max_test_accuracy"]
    if not without.empty:
        axis.axhline(without.max(), color=LINE_COLOR, linestyle=_DASHED, label="λ = 0")
    axis.set(xlabel=DECAY_LABEL, ylabel="best test accuracy", xscale="log")
    return plotted


def _budgets(runs: pd.DataFrame) -> list[float]:
    """Budgets, in steps: times to peak of a large, a middle and a small λ, where known."""
    times = np.unique(runs["peak_step"].dropna())
    if len(times) < 3:
        times = np.geomspace(1, runs["steps"].max(), 5)
    return [float(value) for value in evenly_chosen(times, 5)[1:-1]]


def _budget_panel(axis: Axes, tables: ExperimentTables, runs: pd.DataFrame) -> pd.DataFrame:
    """Best accuracy within fixed budgets against λ, at one learning rate."""
    decaying = runs[(runs["weight_decay"] > 0) & (runs["status"] != "diverged")]
    # The learning rate of which the most runs peak, the smallest of these: it needs most time.
    counts = decaying.groupby("learning_rate")["peak_step"].count()
    rate = float(counts[counts == counts.max()].index.min())
    decaying = decaying[decaying["learning_rate"] == rate]
    parts = []
    for steps in _budgets(decaying):
        accuracy = accuracy_within(tables, steps).reindex(decaying["run_id"]).to_numpy()
        epochs = steps / decaying["steps_per_epoch"].iloc[0]
        part = decaying[["run_id", "learning_rate", "weight_decay"]]
        parts.append(part.assign(budget_epochs=epochs, test_accuracy=accuracy))
    plotted = pd.concat(parts, ignore_index=True)
    _draw_lines(axis, plotted, "weight_decay", "test_accuracy", "budget_epochs")
    axis.set(xlabel=DECAY_LABEL, ylabel="best test accuracy in T", xscale="log")
    return plotted


def _plot_time(batch_norm: bool | None = None) -> Plot:
    def plot(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
        """Figures 2a, 2d, 3a, 3d: epochs to the best test accuracy against λ."""
        figure, (axis,) = panels(1, height=3.0)
        plotted = _time_panel(axis, with_peaks(_selected(tables, batch_norm)))
        _legend(axis, "learning rate η")
        return figure, plotted

    return plot


def _plot_accuracy(batch_norm: bool | None = None) -> Plot:
    def plot(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
        """Figures 2b, 2e, 3b, 3e: best test accuracy against λ."""
        figure, (axis,) = panels(1, height=3.0)
        plotted = _accuracy_panel(axis, with_peaks(_selected(tables, batch_norm)))
        _legend(axis, "learning rate η")
        return figure, plotted

    return plot


def _plot_budget(batch_norm: bool | None = None) -> Plot:
    def plot(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
        """Figures 2c, 2f, 3c, 3f: best test accuracy within fixed budgets against λ."""
        figure, (axis,) = panels(1, height=3.0)
        selected = _selected(tables, batch_norm)
        plotted = _budget_panel(axis, selected, with_peaks(selected))
        axis.set_title(f"η = {plotted['learning_rate'].iloc[0]:g}")
        _legend(axis, "budget T in epochs")
        return figure, plotted

    return plot


def plot_three_panels(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figures S2 and S7: time to peak, best accuracy, and accuracy within budgets, against λ."""
    own = tuned_runs(tables.runs)["run_id"]
    runs = with_peaks(tables)
    runs = runs[runs["run_id"].isin(own)]
    figure, axes = panels(3, height=2.6)
    parts = [
        _time_panel(axes[0], runs).rename(columns={"peak_epochs": "value"}),
        _accuracy_panel(axes[1], runs).rename(columns={"max_test_accuracy": "value"}),
        _budget_panel(axes[2], tables, runs).rename(columns={"test_accuracy": "value"}),
    ]
    axes[2].legend(title="T in epochs", loc="best")
    for axis, letter in zip(axes, "abc", strict=True):
        name_panel(axis, letter)
    tidy = [part.assign(panel=letter) for part, letter in zip(parts, "abc", strict=True)]
    return figure, pd.concat(tidy, ignore_index=True)


def plot_time_to_fit(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figures S1a, S1b: epochs to training accuracy 1 against the learning rate, by λ."""
    reached = first_reached(tables, 1.0)["step"].rename("fit_step")
    columns = ["run_id", "learning_rate", "weight_decay", "steps_per_epoch"]
    runs = tables.runs[columns].merge(reached, left_on="run_id", right_index=True)
    if runs.empty:
        raise ValueError("no run reaches training accuracy 1")
    runs["fit_epochs"] = runs["fit_step"] / runs["steps_per_epoch"]
    plotted = _chosen(runs, "weight_decay").drop(columns=["steps_per_epoch", "fit_step"])
    figure, (axis,) = panels(1, height=3.0)
    _draw_lines(axis, plotted, "learning_rate", "fit_epochs", "weight_decay")
    _guide(axis, plotted["learning_rate"], plotted["fit_epochs"])
    axis.set(xlabel="learning rate η", ylabel="epochs to training accuracy 1")
    axis.set(xscale="log", yscale="log")
    _legend(axis, "λ")
    return figure, plotted.reset_index(drop=True)


def _plot_curves(batch_norm: bool | None = None) -> Plot:
    def plot(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
        """Figure S6: training curves for the smallest, a middle and the largest λ."""
        selected = _selected(tables, batch_norm)
        runs = with_peaks(selected)
        runs = runs[runs["learned"] & (runs["weight_decay"] > 0)]
        counts = runs.groupby("learning_rate")["run_id"].count()
        rate = float(counts[counts == counts.max()].index.min())
        runs = runs[runs["learning_rate"] == rate]
        runs = runs[runs["weight_decay"].isin(evenly_chosen(runs["weight_decay"], 3))]
        columns = ["run_id", "learning_rate", "steps_per_epoch", "weight_decay"]
        history = selected.history.drop(columns="weight_decay", errors="ignore")
        plotted = history.merge(runs[columns], on="run_id")
        plotted["epoch"] = plotted["step"] / plotted["steps_per_epoch"]
        quantities = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
        figure, axes = panels(4, columns=2, height=2.3)
        shown = plotted[plotted["epoch"] > 0]
        for axis, name in zip(axes, quantities, strict=True):
            _draw_lines(axis, shown, "epoch", name, "weight_decay", markers=False)
            label = name.replace("_", " ").replace("train ", "training ")
            axis.set(xlabel="epoch", ylabel=label, xscale="log")
            if name.endswith("loss"):
                axis.set_yscale("log")
        axes[1].legend(title=f"λ (η = {rate:g})", loc="best")
        return figure, plotted[[*columns[:1], *columns[3:], "learning_rate", "epoch", *quantities]]

    return plot


def plot_estimate(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 4a: test accuracy against t·λ at a large λ, and c."""
    columns = ["run_id", "seed", "weight_decay", "steps_per_epoch"]
    plotted = tables.history.merge(tables.runs[columns], on="run_id")
    plotted["epochs_times_decay"] = (
        plotted["step"] / plotted["steps_per_epoch"] * plotted["weight_decay"]
    )
    runs = with_peaks(tables)
    constants = runs["peak_epochs"] * runs["weight_decay"]
    figure, (axis,) = panels(1, height=3.0)
    _draw_lines(axis, plotted, "epochs_times_decay", "test_accuracy", "seed", markers=False)
    constant = float(constants.mean())
    axis.axvline(constant, color=LINE_COLOR, linestyle=_DASHED)
    axis.text(constant, 1.015, f"c = {constant:.3g}", transform=axis.get_xaxis_transform())
    axis.set(xlabel="t·λ, t in epochs", ylabel="test accuracy")
    axis.set_xlim(left=0)
    _legend(axis, "seed")
    return figure, plotted[["run_id", "seed", "step", "epochs_times_decay", "test_accuracy"]]


def _comparison(tables: ExperimentTables, factor: float) -> pd.DataFrame:
    compared = tuned_and_predicted(tables)
    chosen = compared[np.isclose(compared["factor"], factor)]
    if chosen.empty:
        raise ValueError(f"no run at {factor:g} times the predicted weight decay")
    return chosen.reset_index(drop=True)


def _name_of(factor: float) -> str:
    return "c/T" if factor == 1 else f"{factor:g}c/T"


def _mark_budgets(axis: Axes, budgets: ArrayLike) -> None:
    """Name some of the budgets on a logarithmic axis, and nothing between them."""
    chosen = evenly_chosen(budgets, 4)
    axis.set_xscale("log")
    axis.set_xticks(chosen, [f"{budget:g}" for budget in chosen])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("budget T in epochs")


def _prediction_panel(axis: Axes, compared: pd.DataFrame) -> None:
    """Accuracy within each budget, at the tuned and at the predicted weight decay."""
    factor = float(compared["factor"].iloc[0])
    axis.plot(
        compared["budget_epochs"],
        compared["tuned_accuracy"],
        color=LINE_COLOR,
        marker="o",
        label="tuned λ",
    )
    axis.plot(
        compared["budget_epochs"],
        compared["predicted_accuracy"],
        color=_THEORY_COLORS[2],
        marker="s",
        linestyle=_DASHED,
        label=f"λ = {_name_of(factor)}",
    )
    axis.set_ylabel("best test accuracy")
    _mark_budgets(axis, compared["budget_epochs"])
    axis.legend(loc="lower right")


def _tuned_panel(axis: Axes, compared: pd.DataFrame) -> None:
    """The tuned weight decay of each budget with its bar, and the prediction."""
    budgets, tuned = compared["budget_epochs"], compared["tuned_weight_decay"]
    bars = [tuned - compared["low"], compared["high"] - tuned]
    predicted = compared["predicted_weight_decay"]
    axis.fill_between(
        budgets, predicted / 10, predicted * 10, color=_THEORY_COLORS[2], alpha=0.12, linewidth=0
    )
    axis.plot(
        budgets,
        predicted,
        color=_THEORY_COLORS[2],
        linestyle=_DASHED,
        label=_name_of(float(compared["factor"].iloc[0])),
    )
    axis.errorbar(budgets, tuned, yerr=bars, color=LINE_COLOR, fmt="o", capsize=3, label="tuned λ")
    axis.set(ylabel=DECAY_LABEL, yscale="log")
    _mark_budgets(axis, budgets)
    axis.legend(loc="upper right")


def plot_prediction(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 1b: accuracy within a budget, weight decay tuned and predicted."""
    figure, (axis,) = panels(1, height=3.0)
    compared = _comparison(tables, 1.0)
    _prediction_panel(axis, compared)
    return figure, compared


def plot_tuned_decay(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 4b: tuned weight decay against the budget, and the prediction."""
    figure, (axis,) = panels(1, height=3.0)
    compared = _comparison(tables, 1.0)
    _tuned_panel(axis, compared)
    return figure, compared


def _budget_lines(axis: Axes, tables: ExperimentTables, compared: pd.DataFrame) -> pd.DataFrame:
    """Accuracy within each budget against λ, with the predicted λ of each."""
    tuned = tuned_runs(tables.runs[tables.runs["status"] != "diverged"])
    parts = []
    colors = ordered_colors(compared["budget_epochs"])
    for row, color in zip(compared.to_dict("records"), colors, strict=True):
        steps = row["budget_epochs"] * tuned["steps_per_epoch"].iloc[0]
        accuracy = accuracy_within(tables, steps).reindex(tuned["run_id"]).to_numpy()
        label = f"{row['budget_epochs']:g}"
        axis.plot(tuned["weight_decay"], accuracy, color=color, marker="o", label=label)
        axis.axvline(row["predicted_weight_decay"], color=color, linestyle=_DASHED, linewidth=0.9)
        part = tuned[["run_id", "weight_decay"]]
        parts.append(part.assign(budget_epochs=row["budget_epochs"], test_accuracy=accuracy))
    axis.set(xlabel=DECAY_LABEL, ylabel="best test accuracy in T", xscale="log")
    return pd.concat(parts, ignore_index=True)


def plot_budgets(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S3: accuracy within budgets against λ, and the predicted λ."""
    figure, (axis,) = panels(1, height=3.2)
    plotted = _budget_lines(axis, tables, _comparison(tables, 1.0))
    _legend(axis, "T in epochs")
    return figure, plotted


def plot_doubled_constant(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S4: figures S3, 4b and 1b with the constant c doubled."""
    compared = _comparison(tables, 2.0)
    figure, axes = panels(3, height=2.6)
    lines = _budget_lines(axes[0], tables, compared)
    _tuned_panel(axes[1], compared)
    _prediction_panel(axes[2], compared)
    for axis, letter in zip(axes, "abc", strict=True):
        name_panel(axis, letter)
    return figure, pd.concat(
        [lines.assign(panel="a"), compared.assign(panel="b and c")], ignore_index=True
    )


def plot_schedule(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 1a: best accuracy against λ, for a fixed time and for a time proportional to 1/λ."""
    fixed, proportional, predicted = split_schedule(tables.runs)
    scale, time = fixed["weight_scale"].iloc[0], fixed["budget_epochs"].iloc[0]
    proportional = proportional[proportional["weight_scale"] == scale]
    product = float((proportional["budget_epochs"] * proportional["weight_decay"]).iloc[0])
    figure, (axis,) = panels(1, height=3.0)
    names = {"fixed": f"T = {time:g} epochs", "proportional": f"T = {product:.3g}/λ epochs"}
    parts = []
    for (kind, label), part, color in zip(
        names.items(), (fixed, proportional), _THEORY_COLORS.values(), strict=True
    ):
        line = part.sort_values("weight_decay")
        axis.plot(
            line["weight_decay"], line["max_test_accuracy"], color=color, marker="o", label=label
        )
        parts.append(line.assign(training_time=kind))
    for run in predicted.to_dict("records"):
        decay, accuracy = run["weight_decay"], run["max_test_accuracy"]
        axis.axvline(decay, color=LINE_COLOR, linestyle=_DASHED, label="c/T₁")
        axis.plot(decay, accuracy, color=_THEORY_COLORS[1], marker="s")
    parts.append(predicted.assign(training_time="predicted"))
    axis.set(xlabel=DECAY_LABEL, ylabel="best test accuracy", xscale="log")
    axis.legend(loc="best")
    columns = ["run_id", "training_time", "weight_decay", "budget_epochs", "max_test_accuracy"]
    return figure, pd.concat(parts, ignore_index=True)[columns]


def plot_weight_scales(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S12: best accuracy against λ at times proportional to 1/λ, by scale of the weights."""
    _, proportional, _ = split_schedule(tables.runs)
    figure, (axis,) = panels(1, height=3.0)
    _draw_lines(axis, proportional, "weight_decay", "max_test_accuracy", "weight_scale")
    axis.set(xlabel=DECAY_LABEL, ylabel="best test accuracy", xscale="log")
    _legend(axis, "σ_w")
    columns = ["run_id", "weight_scale", "weight_decay", "budget_epochs", "max_test_accuracy"]
    return figure, proportional[columns].reset_index(drop=True)


def _auto_curves(tables: ExperimentTables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """History of the first seed's runs with a readable `rule`, and the falls of AutoL2."""
    runs = tables.runs[tables.runs["seed"] == tables.runs["seed"].min()]
    runs = runs[runs["status"] != "diverged"]
    columns = ["run_id", "weight_decay_rule", "constant", "steps_per_epoch"]
    runs = runs.rename(columns={"weight_decay": "constant"})
    history = tables.history.merge(runs[columns], on="run_id").sort_values(["run_id", "step"])
    history["epoch"] = history["step"] / history["steps_per_epoch"]
    automatic = history[history["weight_decay_rule"] == "auto_l2"]
    falls = [decay_times(part) for _, part in automatic.groupby("run_id")]
    if not falls:
        raise ValueError("no run of AutoL2 stayed finite")
    return history, pd.concat(falls)


def _auto_panel(
    axis: Axes, history: pd.DataFrame, falls: pd.DataFrame, column: str, constants: list[float]
) -> None:
    chosen = history[history["weight_decay_rule"] == "constant"]
    chosen = chosen[chosen["constant"].isin(constants)]
    _draw_lines(axis, chosen, "epoch", column, "constant", markers=False)
    automatic = history[history["weight_decay_rule"] == "auto_l2"]
    axis.plot(automatic["epoch"], automatic[column], color=_THEORY_COLORS[2], label="AutoL2")
    for epoch in falls["epoch"]:
        axis.axvline(epoch, color=_THEORY_COLORS[2], linestyle=_DOTTED, linewidth=0.9)
    axis.set(xlabel="epoch", ylabel=column.replace("_", " ").replace("train ", "training "))
    axis.set_xscale("symlog", linthresh=1.0)
    axis.set_xlim(left=0)


def _auto_numbers(history: pd.DataFrame) -> pd.DataFrame:
    columns = ["run_id", "weight_decay_rule", "constant", "epoch", "weight_decay"]
    columns += ["train_loss", "test_accuracy"]
    return history[columns].reset_index(drop=True)


def plot_auto_l2(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figures 1c, S11a: test accuracy with AutoL2 and with the best constant weight decay."""
    history, falls = _auto_curves(tables)
    figure, (axis,) = panels(1, height=3.0)
    _auto_panel(axis, history, falls, "test_accuracy", [best_constant(tables.runs)])
    axis.legend(title="λ", loc="best")
    return figure, _auto_numbers(history)


def plot_auto_l2_constants(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figures S9, S10: accuracy and loss with AutoL2 and with several constant weight decays."""
    history, falls = _auto_curves(tables)
    constants = [float(value) for value in np.unique(history["constant"])]
    figure, axes = panels(2, height=3.0)
    for axis, column, letter in zip(axes, ("test_accuracy", "train_loss"), "ab", strict=True):
        _auto_panel(axis, history, falls, column, constants)
        name_panel(axis, letter)
    axes[1].set_yscale("log")
    axes[0].legend(title="λ", loc="best")
    return figure, _auto_numbers(history)


def plot_auto_l2_cnn(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S11b: AutoL2 and the best constant weight decay, without and with batch norm."""
    norms = sorted(tables.runs["batch_norm"].astype(bool).unique())
    figure, axes = panels(len(norms), height=3.0, share_y=True)
    parts = []
    for axis, letter, norm in zip(axes, "ab", norms, strict=False):
        selected = _selected(tables, norm)
        history, falls = _auto_curves(selected)
        _auto_panel(axis, history, falls, "test_accuracy", [best_constant(selected.runs)])
        axis.legend(title="λ", loc="best")
        name_panel(axis, letter, f"{'with' if norm else 'without'} batch norm")
        parts.append(_auto_numbers(history).assign(batch_norm=norm))
    return figure, pd.concat(parts, ignore_index=True)


def plot_squared_error(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S5: learning rate and weight decay with mean squared error."""
    runs = with_peaks(tables)
    early = first_reached(tables, 1.0)["test_accuracy"].rename("fit_test_accuracy")
    runs = runs.merge(early, left_on="run_id", right_index=True, how="left")
    runs = runs[runs["learned"]]
    shown = _chosen(runs, "weight_decay")
    columns = ["run_id", "learning_rate", "weight_decay"]
    figure, axes = panels(4, columns=2, height=2.5)
    named = {
        "fit_test_accuracy": "test accuracy when fitted",
        "max_test_accuracy": "best test accuracy",
    }
    for axis, (name, label) in zip(axes[:2], named.items(), strict=True):
        _draw_lines(axis, shown, "learning_rate", name, "weight_decay")
        axis.set(xlabel="learning rate η", ylabel=label, xscale="log")
    # Both panels tell the same kind of number: a common scale shows which spread is wider.
    limits = [axis.get_ylim() for axis in axes[:2]]
    for axis in axes[:2]:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    axes[1].legend(title="λ", loc="center left", bbox_to_anchor=(1.0, 0.5))
    counts = runs.groupby("learning_rate")["run_id"].count()
    rate = float(counts[counts == counts.max()].index.max())
    curves = tables.history.merge(
        shown.loc[shown["learning_rate"] == rate, ["run_id", "weight_decay", "steps_per_epoch"]],
        on="run_id",
    )
    curves = curves[curves["step"] > 0].sort_values(["weight_decay", "step"])
    curves["epoch"] = curves["step"] / curves["steps_per_epoch"]
    for axis, name in zip(axes[2:], ("train_loss", "test_accuracy"), strict=True):
        _draw_lines(axis, curves, "epoch", name, "weight_decay", markers=False)
        label = "training loss" if name == "train_loss" else "test accuracy"
        axis.set(xlabel=f"epoch (η = {rate:g})", ylabel=label, xscale="log")
    axes[2].set_yscale("log")
    for axis, letter in zip(axes, "abcd", strict=True):
        name_panel(axis, letter)
    tidy = [
        shown[[*columns, "fit_test_accuracy", "max_test_accuracy"]].assign(panel="a and b"),
        curves[["run_id", "weight_decay", "epoch", "train_loss", "test_accuracy"]].assign(
            panel="c and d"
        ),
    ]
    return figure, pd.concat(tidy, ignore_index=True)


def plot_plane(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S8: best accuracy over (η, λ) at one training time, and over (λ, T) at one η."""
    runs = tables.runs
    times = runs.groupby("learning_rate")["budget_epochs"]
    is_time = runs["learning_rate"].isin(times.min().index[times.min() < times.max()])
    figure, axes = panels(2, height=2.9)
    parts = []
    for axis, part, rows, label, letter in (
        (axes[0], runs[~is_time], "learning_rate", "learning rate η", "a"),
        (axes[1], runs[is_time], "budget_epochs", "training time T in epochs", "b"),
    ):
        plane = part.pivot_table("max_test_accuracy", index=rows, columns="weight_decay")
        image = axis.imshow(plane.to_numpy(), origin="lower", aspect="auto", cmap="viridis")
        axis.set_xticks(range(plane.shape[1]), [f"{value:.2g}" for value in plane.columns])
        axis.set_yticks(range(plane.shape[0]), [f"{value:g}" for value in plane.index])
        axis.set(xlabel=DECAY_LABEL, ylabel=label)
        axis.grid(visible=False)
        _write_values(axis, plane)
        figure.colorbar(image, ax=axis, label="best test accuracy")
        name_panel(axis, letter)
        columns = ["run_id", "learning_rate", "weight_decay", "budget_epochs", "max_test_accuracy"]
        parts.append(part[columns].assign(panel=letter))
    return figure, pd.concat(parts, ignore_index=True)


def _write_values(axis: Axes, plane: pd.DataFrame) -> None:
    values = plane.to_numpy(dtype=float)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        if np.isfinite(value):
            color = "white" if value < middle else "black"
            axis.text(
                column, row, f"{value:.3f}", ha="center", va="center", fontsize=6, color=color
            )


def plot_kernel_decay(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Theorem 1: decay of the kernel's top eigenvalue, by depth and width."""
    runs = tables.runs[tables.runs["seed"] == tables.runs["seed"].min()]
    history = tables.history.drop(columns="weight_decay", errors="ignore")
    plotted = history.dropna(subset="ntk_top_eigenvalue").merge(
        runs[["run_id", "depth", "width", "weight_decay", "initial_ntk_top_eigenvalue"]],
        on="run_id",
    )
    plotted["relative_eigenvalue"] = (
        plotted["ntk_top_eigenvalue"] / plotted["initial_ntk_top_eigenvalue"]
    )
    rate = 2 * (plotted["depth"] - 1) * plotted["weight_decay"]
    plotted["predicted"] = np.exp(-rate * plotted["physical_time"])
    figure, (axis,) = panels(1, height=3.0)
    depths = np.unique(plotted["depth"])
    for depth, color in zip(depths, ordered_colors(depths), strict=True):
        lines = plotted[plotted["depth"] == depth].sort_values("step")
        for (width, line), marker in zip(lines.groupby("width"), "o^sD", strict=False):
            axis.plot(
                line["physical_time"],
                line["relative_eigenvalue"],
                color=color,
                marker=marker,
                label=f"k = {depth}, width {width}",
            )
        axis.plot(line["physical_time"], line["predicted"], color=color, linestyle=_DASHED)
    axis.set(xlabel="time t·η", ylabel="top kernel eigenvalue / start", yscale="log")
    axis.set_xlim(left=0)
    axis.legend(loc="best")
    columns = ["run_id", "depth", "width", "step", "physical_time"]
    return figure, plotted[[*columns, "relative_eigenvalue", "predicted"]]


def plot_kernel_and_network(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 5c: training loss of a wide network, and of its kernel for k = 1 and 2."""
    by_width = tables.runs.sort_values("width")
    network, kernel = by_width.iloc[-1], by_width.iloc[0]
    history = tables.history[tables.history["run_id"] == network["run_id"]]
    history = history[history["step"] > 0].sort_values("step")
    times = history["physical_time"].to_numpy(dtype=float)
    plotted = pd.DataFrame({"physical_time": times, "network": history["train_loss"].to_numpy()})
    figure, (axis,) = panels(1, height=3.0)
    for degree, color in _THEORY_COLORS.items():
        losses = kernel_losses(tables, kernel["run_id"], times, degree)
        plotted[f"kernel_{degree}"] = losses
        axis.plot(times, losses, color=color, label=f"kernel, k = {degree}")
    axis.plot(
        times, plotted["network"], color=_NETWORK_COLOR, label=f"network, width {network['width']}"
    )
    least = times[int(plotted["kernel_2"].argmin())]
    axis.axvline(least, color=LINE_COLOR, linestyle=_DOTTED)
    axis.set(xlabel="time t·η", ylabel="training loss", xscale="log", yscale="log")
    axis.legend(loc="best")
    return figure, plotted


PLOTS: dict[str, Plot] = {
    "l2/fig1a": plot_schedule,
    "l2/fig1b": plot_prediction,
    "l2/fig1c": plot_auto_l2,
    "l2/fig2a": _plot_time(),
    "l2/fig2b": _plot_accuracy(),
    "l2/fig2c": _plot_budget(),
    "l2/fig2d": _plot_time(),
    "l2/fig2e": _plot_accuracy(),
    "l2/fig2f": _plot_budget(),
    "l2/fig3a": _plot_time(batch_norm=False),
    "l2/fig3b": _plot_accuracy(batch_norm=False),
    "l2/fig3c": _plot_budget(batch_norm=False),
    "l2/fig3d": _plot_time(batch_norm=True),
    "l2/fig3e": _plot_accuracy(batch_norm=True),
    "l2/fig3f": _plot_budget(batch_norm=True),
    "l2/fig4a": plot_estimate,
    "l2/fig4b": plot_tuned_decay,
    "l2/fig5c": plot_kernel_and_network,
    "l2/figS1a": plot_time_to_fit,
    "l2/figS1b": plot_time_to_fit,
    "l2/figS2": plot_three_panels,
    "l2/figS3": plot_budgets,
    "l2/figS4": plot_doubled_constant,
    "l2/figS5": plot_squared_error,
    "l2/figS6a": _plot_curves(),
    "l2/figS6b": _plot_curves(),
    "l2/figS6c": _plot_curves(batch_norm=False),
    "l2/figS7": plot_three_panels,
    "l2/figS8": plot_plane,
    "l2/figS9": plot_auto_l2_constants,
    "l2/figS10": plot_auto_l2_constants,
    "l2/figS11a": plot_auto_l2,
    "l2/figS11b": plot_auto_l2_cnn,
    "l2/figS12": plot_weight_scales,
    "l2/thm1": plot_kernel_decay,
}
