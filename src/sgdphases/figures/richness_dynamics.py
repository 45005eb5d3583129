"""Figures of the richness paper about networks while they train and at the end of training.

Eigenvalues of the Hessian are shown in units of the inverse learning rate, in µP N times those with
respect to the weights, as claims compare them.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sgdphases.claims.catapult_theory import numbers
from sgdphases.claims.richness_dynamics import (
    ACTIVE,
    LAZY,
    RICH,
    Group,
    batch_curves,
    chosen_runs,
    curve,
    function_correlation,
    function_pairs,
    groups_of,
    kernel_law,
    last_rows,
    layers_of,
    lazy_curves,
    loss_exponents,
    movement_in_width,
    rate_factor,
    rows_of,
    spectrum_names,
    squared_error_groups,
    width_curves,
    width_runs,
)
from sgdphases.claims.richness_theory import CROSS_ENTROPY, MSE, Window, having, within
from sgdphases.exponents import PowerLaw
from sgdphases.figures.portrait import draw_theory_line
from sgdphases.figures.richness_theory import LOSS_NAMES
from sgdphases.figures.style import (
    LINE_COLOR,
    evenly_chosen,
    name_panel,
    ordered_colors,
    panels,
)
from sgdphases.movement import NORMS
from sgdphases.tables import ExperimentTables

Array = NDArray[np.float64]
Drawn = tuple[Figure, pd.DataFrame]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MOST_LEGEND_ENTRIES = 9
_MOST_COLUMNS = 3
_LAYER_COLORS = ("#3b6fb6", "#d1662b", "#4f9a5b", "#8a63a8", "#7a7a7a")
_PAIR_COLORS = {"lazy-lazy": "#3b6fb6", "rich-rich": "#d1662b", "lazy-rich": "#7a7a7a"}


def _letters(count: int) -> list[str]:
    """a, b, ... z, then a1, b1, ..."""
    return [_LETTERS[i % 26] + (str(i // 26) if i >= 26 else "") for i in range(count)]


def _richness_name(value: float) -> str:
    if 0.01 < value < 100:
        return f"{value:.3g}"
    exponent = int(np.floor(np.log10(value) + 1e-9))
    mantissa = f"{value / 10.0**exponent:.2g}"
    power = f"$10^{{{exponent}}}$"
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _richness_colors(richness: Iterable[float]) -> dict[float, str]:
    distinct = np.unique(np.array(list(richness), dtype=float))
    return dict(zip(distinct.tolist(), ordered_colors(distinct), strict=True))


def _richness_legend(
    figure: Figure, colors: dict[float, str], others: Sequence[Line2D] = ()
) -> None:
    """One key for all panels: the colours of the richness, and other lines."""
    shown = evenly_chosen(list(colors), _MOST_LEGEND_ENTRIES)
    handles = [
        Line2D([], [], color=colors[value], label=f"γ = {_richness_name(value)}")
        for value in shown.tolist()
    ]
    handles += others
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))


def _dashed(label: str) -> Line2D:
    return Line2D([], [], color="black", linewidth=1.0, linestyle=(0, (4, 2)), label=label)


def _draw_over_time(
    axis: Axes,
    tables: ExperimentTables,
    runs: pd.DataFrame,
    column: str,
    colors: dict[float, str],
    is_rescaled: bool = False,
    value: Callable[[Array, pd.Series], Array] = lambda values, _: values,
) -> pd.DataFrame:
    """A quantity of each run over the steps, or over ηt/γ, coloured by the richness.

    Args:
        axis: Where; the horizontal axis becomes logarithmic.
        tables: The experiment.
        runs: Rows of its table of runs.
        column: What is shown; steps at which it was not measured are left out.
        colors: Colour of each richness.
        is_rescaled: Whether over ηt/γ.
        value: From the measured values and the run to what is shown.

    Returns:
        What was drawn: `model`, `loss`, `richness`, `seed`, `step`, `rich_time`, `quantity`,
        `value`.
    """
    pieces = []
    for run in rows_of(runs):
        recorded = curve(tables, run["run_id"])
        if column not in recorded.columns:
            continue
        recorded = recorded[recorded[column].notna() & (recorded["step"] > 0)]
        if recorded.empty:
            continue
        richness = float(run["richness"])
        shown = pd.DataFrame(
            {
                "model": run["model"],
                "loss": run["loss"],
                "richness": richness,
                "seed": int(run["seed"]),
                "step": recorded["step"].astype("int64"),
                "rich_time": numbers(recorded, "physical_time") / richness,
                "quantity": column,
                "value": value(numbers(recorded, column), run),
            }
        )
        x = "rich_time" if is_rescaled else "step"
        axis.plot(shown[x], shown["value"], color=colors[richness], linewidth=1.1)
        pieces.append(shown)
    axis.set_xscale("log")
    axis.set_xlabel("ηt/γ" if is_rescaled else "step t")
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def _stack(pieces: Iterable[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([piece for piece in pieces if not piece.empty], ignore_index=True)


def _long(losses: pd.DataFrame, name: str) -> pd.DataFrame:
    """Curves in columns as one row per step and curve; `name` is what tells curves apart."""
    whole = losses.rename_axis(index="step").reset_index()
    return whole.melt(id_vars="step", var_name=name, value_name="value")


def _first_seed(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[having(runs, seed=runs["seed"].min())]


# Figures 2 and 32.


def plot_losses(tables: ExperimentTables) -> Drawn:
    """Figures 2a, 2b and 32: losses over time, and final accuracies over the richness."""
    groups = groups_of(tables.runs)
    figure, axes = panels(2 * len(groups), columns=2)
    colors = _richness_colors(numbers(tables.runs, "richness"))
    letters = _letters(len(axes))
    pieces = []
    for i, group in enumerate(groups):
        left, right = axes[2 * i : 2 * i + 2]
        runs = _first_seed(group.runs)
        part = _draw_over_time(left, tables, runs, "test_loss", colors)
        left.set_yscale("log")
        left.set_ylabel("test loss")
        try:
            for laws in loss_exponents(tables, group).values():
                if laws:
                    _draw_late_law(left, laws[0], float(runs["steps"].max()))
        except ValueError:  # too short a run to fit
            pass
        name_panel(left, letters[2 * i], group.name)
        ends = group.runs.groupby("richness", as_index=False).agg(
            value=("final_test_accuracy", "mean"),
            low=("final_test_accuracy", "min"),
            high=("final_test_accuracy", "max"),
        )
        ends = ends.astype(float)
        right.errorbar(
            ends["richness"],
            ends["value"],
            yerr=[ends["value"] - ends["low"], ends["high"] - ends["value"]],
            marker="o",
            color=LINE_COLOR,
            capsize=2,
            linewidth=0.8,
        )
        right.set_xscale("log")
        right.set_xlabel("richness γ")
        right.set_ylabel("final test accuracy")
        name_panel(right, letters[2 * i + 1], group.name)
        shown = ends.assign(model=group.model, loss=group.loss, quantity="final_test_accuracy")
        pieces += [part.assign(panel=letters[2 * i]), shown.assign(panel=letters[2 * i + 1])]
    _richness_legend(figure, colors, [_dashed("fitted power laws")])
    return figure, _stack(pieces)


def _draw_late_law(axis: Axes, law: PowerLaw, last: float) -> None:
    steps = np.array([last / 10, last])
    draw_theory_line(axis, steps, law(steps))
    axis.annotate(
        f"$t^{{{law.exponent:.2f}}}$",
        (last, float(law(last))),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        annotation_clip=False,
    )


# Figures 3 and 33 to 35.


def plot_hessian(tables: ExperimentTables) -> Drawn:
    """Figures 3 and 33 to 35: the largest Hessian eigenvalues at the end and over time."""
    groups = groups_of(tables.runs)
    figure, axes = panels(4 * len(groups), columns=2)
    colors = _richness_colors(numbers(tables.runs, "richness"))
    letters = _letters(len(axes))
    pieces = []
    for i, group in enumerate(groups):
        four, names = axes[4 * i : 4 * i + 4], letters[4 * i : 4 * i + 4]
        pieces.append(_draw_spectra(four[0], tables, group).assign(panel=names[0]))
        name_panel(four[0], names[0], f"{group.name}, end of training")
        runs = _first_seed(group.runs)
        part = _draw_over_time(
            four[1], tables, runs, "sharpness", colors, value=lambda v, run: v * rate_factor(run)
        )
        name_panel(four[1], names[1], "largest eigenvalue")
        pieces.append(part.assign(panel=names[1]))
        for axis, letter, regime, run in (
            (four[2], names[2], "lazy", runs.iloc[0]),
            (four[3], names[3], "rich", runs.iloc[-1]),
        ):
            part = _draw_spectrum_over_time(axis, tables, run)
            name_panel(axis, letter, f"{regime}, γ = {_richness_name(float(run['richness']))}")
            pieces.append(part.assign(panel=letter))
        for axis in four:
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_ylabel("Hessian eigenvalue")
    _richness_legend(figure, colors, [_dashed("γ⁻² and γ^(−2/L)")])
    return figure, _stack(pieces)


def _draw_spectra(axis: Axes, tables: ExperimentTables, group: Group) -> pd.DataFrame:
    """The largest eigenvalues at the end over the richness, with the powers of the theory."""
    ends = last_rows(tables, group.runs)
    factors = np.array([rate_factor(run) for run in rows_of(group.runs)])
    richness = numbers(ends, "richness")
    pieces = []
    for rank, name in enumerate(spectrum_names(ends), 1):
        values = numbers(ends, name) * factors
        axis.plot(
            richness,
            values,
            linestyle="none",
            marker="o",
            markersize=4 if rank == 1 else 2,
            color=LINE_COLOR if rank == 1 else "#8fa8cc",
            zorder=3 if rank == 1 else 2,
        )
        pieces.append(
            pd.DataFrame(
                {
                    "model": group.model,
                    "loss": group.loss,
                    "richness": richness,
                    "rank": rank,
                    "quantity": "end",
                    "value": values,
                }
            )
        )
    axis.set_xlabel("richness γ")
    if group.depth is not None:
        largest = pieces[0]
        for window, exponent in ((LAZY, -2.0), (RICH, -2.0 / group.depth)):
            _draw_power(axis, richness, numbers(largest, "value"), window, exponent)
    return pd.concat(pieces, ignore_index=True)


def _draw_power(axis: Axes, x: Array, y: Array, window: Window, exponent: float) -> None:
    """A line of a given slope through the points of a window, somewhat longer than it."""
    inside = within(x, window) & np.isfinite(y) & (y > 0)
    if not inside.any():
        return
    prefactor = np.exp(np.mean(np.log(y[inside]) - exponent * np.log(x[inside])))
    ends = np.array([x[inside].min() / 2, x[inside].max() * 2])
    draw_theory_line(axis, ends, prefactor * ends**exponent)


def _draw_spectrum_over_time(axis: Axes, tables: ExperimentTables, run: pd.Series) -> pd.DataFrame:
    recorded = curve(tables, run["run_id"])
    names = spectrum_names(recorded)
    recorded = recorded[recorded[names[0]].notna() & (recorded["step"] > 0)]
    colors = ordered_colors(np.arange(len(names)))
    pieces = []
    for rank, (name, color) in enumerate(zip(names, colors, strict=True), 1):
        values = numbers(recorded, name) * rate_factor(run)
        axis.plot(recorded["step"], values, color=color, linewidth=0.9)
        pieces.append(
            pd.DataFrame(
                {
                    "model": run["model"],
                    "loss": run["loss"],
                    "richness": float(run["richness"]),
                    "rank": rank,
                    "step": recorded["step"].astype("int64"),
                    "quantity": "over_time",
                    "value": values,
                }
            )
        )
    axis.set_xlabel("step t")
    return pd.concat(pieces, ignore_index=True)


# Figures 4b and 40.


def plot_silent_alignment(tables: ExperimentTables) -> Drawn:
    """Figures 4b and 40: loss, alignment and sharpness of rich networks over time."""
    groups = groups_of(tables.runs)
    figure, axes = panels(6 * len(groups), columns=3, height=2.2)
    rich = tables.runs[within(numbers(tables.runs, "richness"), ACTIVE)]
    colors = _richness_colors(numbers(rich, "richness"))
    letters = _letters(len(axes))
    quantities = (
        ("train_loss", "training loss"),
        ("kernel_target_alignment_last_layer", "alignment (last layer)"),
        ("sharpness", "sharpness × η/2"),
    )

    def over_edge(values: Array, run: pd.Series) -> Array:
        return values * rate_factor(run) * float(run["learning_rate"]) / 2

    pieces = []
    for i, group in enumerate(groups):
        runs = _first_seed(chosen_runs(group, ACTIVE))
        for row, is_rescaled in enumerate((False, True)):
            for column, (name, label) in enumerate(quantities):
                place = 6 * i + 3 * row + column
                axis = axes[place]
                value = over_edge if name == "sharpness" else lambda values, _: values
                part = _draw_over_time(axis, tables, runs, name, colors, is_rescaled, value)
                axis.set_ylabel(label)
                if name == "sharpness":
                    axis.axhline(1, color="black", linewidth=1.0, linestyle=(0, (4, 2)))
                    axis.set_yscale("log")
                name_panel(axis, letters[place], group.name if column == 0 else "")
                pieces.append(part.assign(panel=letters[place]))
    _richness_legend(figure, colors, [_dashed("2/η")])
    return figure, _stack(pieces)


# Figures 5, 43 and 44.


def plot_functions(tables: ExperimentTables) -> Drawn:
    """Figures 5, 43 and 44: functions of pairs of networks, and alignment of representations."""
    groups = groups_of(tables.runs)
    figure, axes = panels(5 * len(groups), columns=3, height=2.4)
    colors = _richness_colors(numbers(tables.runs, "richness"))
    letters = _letters(len(axes))
    pieces = []
    for i, group in enumerate(groups):
        five, names = axes[5 * i : 5 * i + 5], letters[5 * i : 5 * i + 5]
        pairs = function_pairs(group)
        for axis, letter, pair in zip(five[:3], names[:3], pairs, strict=True):
            x, y = (
                np.asarray(curve(tables, name)["true_class_outputs"].dropna().iloc[-1], dtype=float)
                for name in (pair.first, pair.second)
            )
            axis.plot(x, y, ".", markersize=2.5, color=_PAIR_COLORS[pair.name], alpha=0.6)
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            draw_theory_line(axis, ends, ends)
            first, second = (_richness_name(value) for value in pair.richness)
            axis.set_xlabel(f"output, γ = {first}")
            axis.set_ylabel(f"output, γ = {second}")
            name_panel(axis, letter, pair.name)
            pieces.append(
                pd.DataFrame(
                    {
                        "model": group.model,
                        "loss": group.loss,
                        "quantity": pair.name,
                        "first": x,
                        "second": y,
                        "panel": letter,
                    }
                )
            )
        rich = _first_seed(chosen_runs(group, ACTIVE))
        column = "centered_kernel_alignment"
        part = _draw_over_time(five[3], tables, rich, column, colors, is_rescaled=True)
        five[3].set_ylabel("CKA with the targets")
        name_panel(five[3], names[3], group.name)
        pieces.append(part.assign(panel=names[3]))
        for pair in pairs:
            found = function_correlation(tables, pair.first, pair.second)
            found = found[(found["step"] > 0).to_numpy(dtype=bool)]
            color = _PAIR_COLORS[pair.name]
            five[4].plot(found["step"], found["correlation"], color=color, marker="o")
            pieces.append(
                found.assign(
                    model=group.model,
                    loss=group.loss,
                    quantity=f"{pair.name} correlation",
                    panel=names[4],
                )
            )
        five[4].set_xscale("log")
        five[4].set_xlabel("step t")
        five[4].set_ylabel("correlation of outputs")
        name_panel(five[4], names[4], group.name)
    shown = {value: color for value, color in colors.items() if value >= ACTIVE[0]}
    keys = [
        Line2D([], [], color=color, marker="o", label=name) for name, color in _PAIR_COLORS.items()
    ]
    _richness_legend(figure, shown, keys)
    return figure, _stack(pieces)


# Figure 45.


def plot_movement(tables: ExperimentTables) -> Drawn:
    """Figure 45: how far each layer's weights have moved, over the richness."""
    groups = squared_error_groups(tables)
    figure, axes = panels(len(NORMS) * len(groups), columns=len(NORMS))
    letters = _letters(len(axes))
    pieces, layers = [], []
    for i, group in enumerate(groups):
        runs = _first_seed(group.runs)
        history = tables.history[
            tables.history["run_id"].isin(runs["run_id"]).to_numpy(dtype=bool)
            & (tables.history["step"] > 0).to_numpy(dtype=bool)
        ]
        layers = layers_of(history)
        merged = history.merge(runs[["run_id", "richness"]], on="run_id").sort_values("richness")
        for column, norm in enumerate(NORMS):
            axis, letter = axes[len(NORMS) * i + column], letters[len(NORMS) * i + column]
            for layer, color in zip(layers, _LAYER_COLORS * len(layers), strict=False):
                name = f"weight_movement_{norm}_{layer}"
                measured = merged.dropna(subset=[name])
                steps = np.unique(numbers(measured, "step"))
                for age, step in enumerate(steps, 1):
                    part = measured[having(measured, step=int(step))]
                    axis.plot(
                        part["richness"],
                        part[name],
                        color=color,
                        linewidth=0.9,
                        alpha=0.15 + 0.85 * age / len(steps),
                        marker="o" if age == len(steps) else "",
                        markersize=2.5,
                    )
                    pieces.append(
                        pd.DataFrame(
                            {
                                "model": group.model,
                                "layer": layer,
                                "norm": norm,
                                "step": int(step),
                                "richness": part["richness"],
                                "value": part[name],
                                "panel": letter,
                            }
                        )
                    )
                final = part if steps.size else measured
                assert group.depth is not None
                _draw_power(
                    axis, numbers(final, "richness"), numbers(final, name), RICH, 1 / group.depth
                )
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel("richness γ")
            axis.set_ylabel("movement of the weights")
            name_panel(axis, letter, f"{norm}, {group.model}")
    handles = [
        Line2D([], [], color=color, marker="o", markersize=2.5, label=layer)
        for layer, color in zip(layers, _LAYER_COLORS * len(layers), strict=False)
    ]
    handles.append(_dashed("γ^(1/L)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    return figure, _stack(pieces)


# Figures 16, 24, 30, 31, 41 and 42.


def plot_rescaled_time(tables: ExperimentTables) -> Drawn:
    """Figures 16, 24, 30, 31, 41 and 42: losses and alignment of rich networks over time."""
    groups = groups_of(tables.runs)
    columns = (
        ("train_loss", False, "training loss"),
        ("train_loss", True, "training loss"),
        ("kernel_target_alignment_last_layer", True, "alignment"),
    )
    figure, axes = panels(len(columns) * len(groups), columns=len(columns), height=2.2)
    colors = _richness_colors(numbers(tables.runs, "richness"))
    letters = _letters(len(axes))
    pieces = []
    for i, group in enumerate(groups):
        for j, (name, is_rescaled, label) in enumerate(columns):
            place = len(columns) * i + j
            part = _draw_over_time(
                axes[place], tables, _first_seed(group.runs), name, colors, is_rescaled
            )
            axes[place].set_ylabel(label)
            name_panel(axes[place], letters[place], group.name if j == 0 else "")
            pieces.append(part.assign(panel=letters[place]))
    _richness_legend(figure, colors)
    return figure, _stack(pieces)


# Figure 29 and appendix A.2.


def _draw_lazy_curves(
    axis: Axes, losses: pd.DataFrame, colors: dict[float, str], style: str = "-"
) -> pd.DataFrame:
    losses = losses[losses.index > 0]
    for richness, series in losses.items():
        axis.plot(series.index, series, color=colors[float(str(richness))], linestyle=style)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("step t")
    return _long(losses, "richness")


def plot_lazy_consistency(tables: ExperimentTables) -> Drawn:
    """Figure 29: lazy networks at η ∝ γ² in double precision."""
    runs = tables.runs[having(tables.runs, precision="float64", zero_readout=False)]
    losses = [loss for loss in (MSE, CROSS_ENTROPY) if having(runs, loss=loss).any()]
    models = list(dict.fromkeys(runs["model"]))
    figure, axes = panels(len(losses) * len(models), columns=len(losses))
    colors = _richness_colors(numbers(runs, "richness"))
    letters = _letters(len(axes))
    pieces = []
    for i, (model, loss) in enumerate((m, loss) for m in models for loss in losses):
        found = _draw_lazy_curves(
            axes[i], lazy_curves(tables, loss, "float64", model=model), colors
        )
        axes[i].set_ylabel("training loss / initial")
        name_panel(axes[i], letters[i], f"{model}, {LOSS_NAMES[loss]}")
        pieces.append(found.assign(model=model, loss=loss, panel=letters[i]))
    _richness_legend(figure, colors)
    return figure, _stack(pieces)


def plot_precision(tables: ExperimentTables) -> Drawn:
    """Appendix A.2: single against double precision, a zero readout against centred outputs."""
    figure, axes = panels(2)
    single = lazy_curves(tables, MSE, "float32")
    double = lazy_curves(tables, MSE, "float64")
    zero = lazy_curves(tables, MSE, "float64", zero_readout=True)
    colors = _richness_colors([*single.columns, *zero.columns])
    pieces = [_draw_lazy_curves(axes[0], single, colors).assign(kind="float32", panel="a")]
    axes[0].plot(
        double.index[1:], double.iloc[1:, 0], color="black", linestyle=(0, (4, 2)), zorder=3
    )
    name_panel(axes[0], "a", "float32")
    pieces.append(_draw_lazy_curves(axes[1], zero, colors).assign(kind="zero readout", panel="b"))
    shown = double.loc[:, [value for value in zero.columns if value in double.columns]]
    pieces.append(_draw_lazy_curves(axes[1], shown, colors, ":").assign(kind="centred", panel="b"))
    name_panel(axes[1], "b", "readout at zero (solid), centred (dotted)")
    axes[0].set_ylabel("training loss / initial")
    _richness_legend(figure, colors, [_dashed("float64, smallest γ")])
    return figure, _stack(pieces)


# Figures 4a, 36 and 37, appendix B.1.


def plot_catapults(tables: ExperimentTables) -> Drawn:
    """Figures 4a, 36 and 37: losses over time above the critical rate; the kernel at the start."""
    groups = groups_of(tables.runs)
    figure, axes = panels(len(groups) + 1, columns=min(_MOST_COLUMNS, len(groups) + 1))
    colors = _richness_colors(numbers(tables.runs, "richness"))
    letters = _letters(len(axes))
    pieces = []
    for axis, letter, group in zip(axes, letters, groups, strict=False):
        part = _draw_over_time(axis, tables, _first_seed(group.runs), "train_loss", colors)
        axis.set_yscale("log")
        axis.set_ylabel("training loss")
        name_panel(axis, letter, group.name)
        pieces.append(part.assign(panel=letter))
    law = kernel_law(tables)
    assert tables.curvature is not None  # as the law has seen
    table = tables.curvature[having(tables.curvature, loss=MSE)]
    richness = numbers(table, "richness")
    values = numbers(table, "ntk_top_eigenvalue")
    axes[-1].loglog(richness, values, "o", color=LINE_COLOR)
    ends = np.array([richness.min(), richness.max()])
    draw_theory_line(axes[-1], ends, law(ends))
    axes[-1].set_xlabel("richness γ")
    axes[-1].set_ylabel("top NTK eigenvalue λ₀")
    name_panel(axes[-1], letters[-1], f"$γ^{{{law.exponent:.3f}}}$")
    pieces.append(
        pd.DataFrame(
            {
                "richness": richness,
                "quantity": "ntk_top_eigenvalue",
                "value": values,
                "panel": letters[-1],
            }
        )
    )
    _richness_legend(figure, colors)
    return figure, _stack(pieces)


# Figures 17 to 22, appendix B, figure 27.


def plot_widths(tables: ExperimentTables) -> Drawn:
    """Figures 17 to 22: losses over time at one rate, and final losses over the rate."""
    runs = width_runs(tables)
    cases = width_curves(tables)
    columns = min(_MOST_COLUMNS, len(cases))
    blocks = -(-len(cases) // columns)
    figure, axes = panels(2 * blocks * columns, columns=columns, height=2.4)
    widths = np.unique(numbers(runs, "width"))
    colors = dict(zip(widths.tolist(), ordered_colors(widths), strict=True))
    letters = _letters(len(axes))
    has_names = len({(case.model, case.loss) for case in cases}) > 1
    pieces = []
    for i, case in enumerate(cases):
        place = 2 * columns * (i // columns) + i % columns
        over_time, over_rate = axes[place], axes[place + columns]
        values: dict[str, str | float] = {
            "model": case.model,
            "loss": case.loss,
            "richness": case.richness,
        }
        part = runs[having(runs, **values)]
        for width, color in colors.items():
            if width in case.losses.columns:
                losses = case.losses[width][case.losses.index > 0]
                over_time.plot(losses.index, losses, color=color)
                shown = pd.DataFrame({"step": losses.index, "value": losses.to_numpy()})
                pieces.append(shown.assign(**values, width=int(width), panel=letters[place]))
            wide = part[having(part, width=int(width))]
            kept = wide[(wide["status"] != "diverged").to_numpy(dtype=bool)]
            ends = kept.groupby("learning_rate", as_index=False).agg(
                value=("final_train_loss", "mean")
            )
            over_rate.plot(ends["learning_rate"], ends["value"], color=color, marker="o")
            name = letters[place + columns]
            pieces.append(ends.assign(**values, width=int(width), panel=name))
        for axis, label in ((over_time, "step t"), (over_rate, "learning rate η")):
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel(label)
        title = f"γ = {_richness_name(case.richness)}"
        if has_names:
            title = f"{case.model}, {'MSE' if case.loss == MSE else 'CE'}, {title}"
        name_panel(over_time, letters[place], title)
        name_panel(over_rate, letters[place + columns])
        if place % columns == 0:
            over_time.set_ylabel("test loss")
            over_rate.set_ylabel("final training loss")
    for axis in axes:
        axis.set_visible(bool(axis.lines))
    handles = [Line2D([], [], color=c, label=f"N = {int(width)}") for width, c in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    return figure, _stack(pieces)


def plot_movement_in_width(tables: ExperimentTables) -> Drawn:
    """Appendix B: movement of the last hidden layer over the width, in NTK and in µP."""
    moved = movement_in_width(tables)
    figure, axes = panels(2, share_y=True)
    steps = np.unique(numbers(moved, "step"))
    colors = dict(zip(steps.tolist(), ordered_colors(steps), strict=True))
    for axis, letter, name, exponent in ((axes[0], "a", "ntk", -0.5), (axes[1], "b", "mup", 0.0)):
        for step, color in colors.items():
            part = moved[having(moved, parametrisation=name, step=int(step))]
            means = part.groupby("width", as_index=False).agg(
                feature_movement=("feature_movement", "mean")
            )
            axis.loglog(means["width"], means["feature_movement"], "o", color=color)
            _draw_power(
                axis,
                numbers(means, "width"),
                numbers(means, "feature_movement"),
                (0.0, np.inf),
                exponent,
            )
        axis.set_xlabel("width N")
        name_panel(axis, letter, "NTK, γ = 1" if name == "ntk" else "µP, γ = 1")
    axes[0].set_ylabel("movement of activations")
    handles = [
        Line2D([], [], color=c, marker="o", label=f"step {int(s)}") for s, c in colors.items()
    ]
    handles.append(_dashed("$N^{-1/2}$ and $N^0$"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    return figure, moved


def plot_batch_sizes(tables: ExperimentTables) -> Drawn:
    """Figure 27: losses over time for several batch sizes at the same learning rate."""
    found = batch_curves(tables)
    figure, axes = panels(len(found), columns=min(_MOST_COLUMNS, len(found)))
    sizes = sorted({int(size) for part in found for size in part.losses.columns})
    colors = dict(zip(sizes, ordered_colors(sizes), strict=True))
    letters = _letters(len(axes))
    pieces = []
    for axis, letter, part in zip(axes, letters, found, strict=True):
        losses = part.losses[part.losses.index > 0]
        for size in losses.columns:
            axis.plot(losses.index, losses[size], color=colors[int(size)])
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("step t")
        axis.set_ylabel("test loss / initial")
        name_panel(
            axis, letter, f"γ = {_richness_name(part.richness)}, η = {part.learning_rate:.3g}"
        )
        pieces.append(
            _long(losses, "batch_size").assign(
                model=part.model,
                richness=part.richness,
                learning_rate=part.learning_rate,
                panel=letter,
            )
        )
    handles = [Line2D([], [], color=colors[size], label=f"B = {size}") for size in sizes]
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    return figure, _stack(pieces)


PLOTS: dict[str, Callable[[ExperimentTables], Drawn]] = {
    "richness/fig2": plot_losses,
    "richness/fig3": plot_hessian,
    "richness/fig4a": plot_catapults,
    "richness/fig4b": plot_silent_alignment,
    "richness/fig5": plot_functions,
    "richness/fig16": plot_rescaled_time,
    "richness/fig17": plot_widths,
    "richness/fig27": plot_batch_sizes,
    "richness/fig29": plot_lazy_consistency,
    "richness/fig30": plot_rescaled_time,
    "richness/fig45": plot_movement,
    "richness/appendix_a2": plot_precision,
    "richness/appendix_b": plot_movement_in_width,
}
