"""Figures of the richness paper's toy models: 1a-b, 6, 8, 9, 11, 38, table 1, and toy versions.

Reference: richness paper, sections 4.1 and 4.2, appendices D, F and O.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sgdphases.claims.catapult_theory import choose, numbers
from sgdphases.claims.richness_portraits import rules_of_scaling, runs_by_rule, scaling_runs
from sgdphases.claims.richness_theory import (
    CROSS_ENTROPY,
    LAZY,
    MSE,
    RICH,
    RICH_TRAINING,
    RICH_TRAINING_STEPS,
    STEPS,
    TRIANGLE_STEPS,
    ToyEdges,
    best_runs,
    cells,
    escape_times,
    toy_edges,
)
from sgdphases.exponents import PowerLaw
from sgdphases.figures.portrait import (
    CATAPULT_COLOR,
    DIVERGENT_COLOR,
    Plane,
    draw_portrait,
    draw_theory_line,
    label_slope,
    portrait_key,
)
from sgdphases.figures.style import LINE_COLOR, name_panel, ordered_colors, panels
from sgdphases.portraits import PortraitRules
from sgdphases.tables import ExperimentTables
from sgdphases.theory import toy_laws
from sgdphases.theory.toy_losses import TOY_LOSSES

Array = NDArray[np.float64]
Drawn = tuple[Figure, pd.DataFrame]

_PORTRAIT_HEIGHT = 3.5
# Final losses above the smallest one are shown over this range.
_FINAL_LOSSES = LogNorm(1e-6, 1.0)
LOSS_NAMES = {MSE: "squared errors", CROSS_ENTROPY: "cross-entropy"}
_PORTRAIT_DEPTH = 5
_SCHEMATIC_DEPTH = 3
_SCHEMATIC_STEPS = (100, 1000, 10000)
_WHOLE = (1e-5, 1e5)
_RULE_COLOR = "#1f4fa3"
_DEPTH_COLORS = {2: "#3b6fb6", 3: "#4f9a5b", 4: "#8a63a8", 5: "#d1662b"}
_UNTRAINED_COLORS = ("#cfd8e6", "#b4c3da", "#97abcb")
_CONVERGENT_COLOR = "#e8efe0"


def _plane_of(tables: ExperimentTables, loss: str, depth: int | None, column: str) -> pd.DataFrame:
    """The cells of one portrait, with losses above the smallest one."""
    runs = tables.runs.assign(region=cells(tables))
    mask = (runs["loss"] == loss).to_numpy(dtype=bool, na_value=False)
    if depth is not None:
        mask &= (runs["depth"] == depth).to_numpy(dtype=bool, na_value=False)
    chosen = choose(runs, mask, f"with {loss}")
    plotted = chosen[["richness", "learning_rate", "region", column]].copy()
    plotted[column] -= TOY_LOSSES[loss].minimum
    return plotted.assign(loss=loss).reset_index(drop=True)


def _draw_panel(
    figure: Figure,
    axis: Axes,
    cells_of_panel: pd.DataFrame,
    column: str,
    label: str,
    norm: LogNorm,
    has_marks: bool = True,
) -> Plane:
    plane = Plane.of(cells_of_panel, column)
    mesh = draw_portrait(axis, plane, norm, has_marks)
    figure.colorbar(mesh, ax=axis, label=label, extend="both", pad=0.02)
    return plane


def _finish(figure: Figure, axes: Sequence[Axes], planes: Sequence[Plane]) -> None:
    """Axis labels and one key for all panels."""
    axes[0].set_ylabel("learning rate η")
    regions = np.concatenate([plane.regions.ravel() for plane in planes])
    figure.legend(handles=portrait_key(regions), loc="outside lower center", ncols=4)


def _label(loss: str) -> str:
    return "final loss" if loss == MSE else "final loss − smallest"


# Figures 6, 8, 9, 11, 38: planes.


def plot_one_parameter(tables: ExperimentTables) -> Drawn:
    """Figure 6: final loss of the one-parameter model over the plane, for both losses."""
    figure, axes = panels(2, height=_PORTRAIT_HEIGHT, share_y=True)
    pieces, planes = [], []
    for axis, letter, loss in zip(axes, "ab", (MSE, CROSS_ENTROPY), strict=True):
        part = _plane_of(tables, loss, _PORTRAIT_DEPTH, "final_train_loss")
        plane = _draw_panel(figure, axis, part, "final_train_loss", _label(loss), _FINAL_LOSSES)
        _one_parameter_lines(axis, plane.richness, loss, tables)
        name_panel(axis, letter, LOSS_NAMES[loss])
        pieces.append(part.assign(panel=letter))
        planes.append(plane)
    _finish(figure, axes, planes)
    return figure, pd.concat(pieces, ignore_index=True)


def _one_parameter_lines(axis: Axes, richness: Array, loss: str, tables: ExperimentTables) -> None:
    """The smallest rate that trains, the largest stable one and, with cross-entropy, gamma."""
    depth = _PORTRAIT_DEPTH
    rules = PortraitRules.of(tables.spec)
    num_steps = int(tables.spec["stopping"]["num_steps"])
    smallest = toy_laws.smallest_training_rate(richness, depth, loss, num_steps, rules.trained_loss)
    largest = toy_laws.largest_stable_rate(richness, depth, loss)
    draw_theory_line(axis, richness, smallest)
    draw_theory_line(axis, richness, largest)
    lazy, rich = _nearest(richness, 1e-3), _nearest(richness, 1e3)
    label_slope(axis, richness[lazy], smallest[lazy], "γ²", "below")
    label_slope(axis, richness[rich], smallest[rich], "γ", "below")
    label_slope(axis, richness[lazy], largest[lazy], "γ²", "below" if loss != MSE else "above")
    label_slope(axis, richness[rich], largest[rich], f"$γ^{{2/{depth}}}$")
    if loss == CROSS_ENTROPY:
        below = richness[richness <= 1.0]
        draw_theory_line(axis, below, below)
        label_slope(axis, richness[lazy], richness[lazy], "γ")


def _nearest(values: Array, target: float) -> int:
    return int(np.argmin(np.abs(np.log(values / target))))


def plot_sign_sgd(tables: ExperimentTables) -> Drawn:
    """Figure 11: final loss of the one-parameter model under SignSGD over the plane."""
    figure, axes = panels(2, height=_PORTRAIT_HEIGHT, share_y=True)
    depth = _PORTRAIT_DEPTH
    num_steps = int(tables.spec["stopping"]["num_steps"])
    pieces, planes = [], []
    for axis, letter, loss in zip(axes, "ab", (MSE, CROSS_ENTROPY), strict=True):
        part = _plane_of(tables, loss, depth, "final_train_loss")
        plane = _draw_panel(figure, axis, part, "final_train_loss", _label(loss), _FINAL_LOSSES)
        weight = toy_laws.minimiser(plane.richness, depth)
        reaching = (weight - 1.0) / num_steps
        hopping = plane.richness / (depth * weight ** (depth - 1))
        lazy, rich = _nearest(plane.richness, 1e-3), _nearest(plane.richness, 1e3)
        for rates, where in ((reaching, "below"), (hopping, "above")):
            draw_theory_line(axis, plane.richness, rates)
            label_slope(axis, plane.richness[lazy], rates[lazy], "γ", where)
            label_slope(axis, plane.richness[rich], rates[rich], f"$γ^{{1/{depth}}}$", where)
        name_panel(axis, letter, LOSS_NAMES[loss])
        pieces.append(part.assign(panel=letter))
        planes.append(plane)
    _finish(figure, axes, planes)
    return figure, pd.concat(pieces, ignore_index=True)


def _plot_two_parameter(tables: ExperimentTables, loss: str) -> Drawn:
    """Final loss, and largest loss on the way, of the two-parameter model over the plane."""
    figure, axes = panels(2, height=_PORTRAIT_HEIGHT, share_y=True)
    pieces, planes = [], []
    columns = {"final_train_loss": _label(loss), "peak_train_loss": "largest loss"}
    for axis, letter, (column, label) in zip(axes, "ab", columns.items(), strict=True):
        part = _plane_of(tables, loss, None, column)
        if column == "peak_train_loss":
            part[column] += TOY_LOSSES[loss].minimum
            norm = LogNorm(TOY_LOSSES[loss].at_start, 1e10 if loss == MSE else 1e5)
        else:
            norm = _FINAL_LOSSES
        # Lines and dots would hide the largest losses, which lie in a narrow band.
        is_final = column == "final_train_loss"
        plane = _draw_panel(figure, axis, part, column, label, norm, has_marks=is_final)
        if is_final:
            _two_parameter_lines(axis, plane.richness, loss, tables)
        name_panel(axis, letter, label)
        pieces.append(part.rename(columns={column: "loss_shown"}).assign(panel=letter))
        planes.append(plane)
    _finish(figure, axes, planes)
    return figure, pd.concat(pieces, ignore_index=True)


def _two_parameter_lines(axis: Axes, richness: Array, loss: str, tables: ExperimentTables) -> None:
    function = TOY_LOSSES[loss]
    num_steps = int(tables.spec["stopping"]["num_steps"])
    rules = PortraitRules.of(tables.spec)
    smallest = toy_laws.two_parameter_training_rate(richness, loss, num_steps, rules.trained_loss)
    lazy, rich = _nearest(richness, 1e-3), _nearest(richness, 1e3)
    draw_theory_line(axis, richness, smallest)
    label_slope(axis, richness[lazy], smallest[lazy], "γ²", "below")
    label_slope(axis, richness[rich], smallest[rich], "γ log γ", "below")
    below, above = richness[richness <= 1.0], richness[richness >= 1.0]
    critical = 1.0 / function.minimal_curvature
    draw_theory_line(axis, below, critical * below**2)
    draw_theory_line(axis, above, critical * above)
    label_slope(axis, richness[lazy], critical * richness[lazy] ** 2, "γ²", "below")
    label_slope(axis, richness[rich], critical * richness[rich], "γ")
    highest = 2.0 * below**2 if loss == MSE else below
    draw_theory_line(axis, below, highest)
    label_slope(axis, below[lazy], highest[lazy], "2γ²" if loss == MSE else "γ")


def plot_two_parameter_squared_errors(tables: ExperimentTables) -> Drawn:
    """Figure 8: final and largest loss of the two-parameter model, squared errors."""
    return _plot_two_parameter(tables, MSE)


def plot_two_parameter_cross_entropy(tables: ExperimentTables) -> Drawn:
    """Figure 9: final and largest loss of the two-parameter model, cross-entropy."""
    return _plot_two_parameter(tables, CROSS_ENTROPY)


def plot_other_rules(tables: ExperimentTables) -> Drawn:
    """Figure 38: other rules for the learning rate over the portrait of the one-parameter model."""
    figure, (axis,) = panels(1, height=_PORTRAIT_HEIGHT)
    depth = _PORTRAIT_DEPTH
    part = _plane_of(tables, MSE, depth, "final_train_loss")
    plane = _draw_panel(figure, axis, part, "final_train_loss", _label(MSE), _FINAL_LOSSES)
    rich = plane.richness[plane.richness >= 1.0]
    # Just inside the convergent region at a richness of 1.
    prefactor = float(toy_laws.largest_stable_rate(1.0, depth, MSE))
    rules = {
        f"$γ^{{3/{depth}}}$": 3.0 / depth,
        f"$γ^{{2/{depth}}}$": 2.0 / depth,
        f"$γ^{{2/{depth + 1}}}$": 2.0 / (depth + 1),
    }
    pieces = [part.assign(series="portrait")]
    for name, exponent in rules.items():
        rates = prefactor * rich**exponent
        draw_theory_line(axis, rich, rates, color=_RULE_COLOR)
        axis.annotate(
            name,
            (rich[-1], rates[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_RULE_COLOR,
            annotation_clip=False,
        )
        series = pd.DataFrame({"richness": rich, "learning_rate": rates, "exponent": exponent})
        pieces.append(series.assign(series="rule"))
    axis.set_xlim(left=0.1)
    axis.set_ylim(1e-4, 1e3)
    _finish(figure, [axis], [plane])
    return figure, pd.concat(pieces, ignore_index=True)


# Figures 1a and 1b: the regions of table 1 and the edges found.


def _schematic(tables: ExperimentTables, loss: str) -> Drawn:
    """Regions of table 1 with the edges that the toy models have."""
    figure, (axis,) = panels(1, height=4.0)
    depth = _SCHEMATIC_DEPTH
    richness = np.geomspace(*_WHOLE, 401)
    lazy = richness <= 1
    smallest = {steps: np.where(lazy, richness**2, richness) / steps for steps in _SCHEMATIC_STEPS}
    critical = np.where(lazy, richness**2, richness ** (2.0 / depth))
    widest = 2.0 * critical if loss == MSE else richness
    largest = np.where(lazy, np.maximum(widest, critical), critical)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(visible=False)
    bottom, top = 1e-16, 1e5
    axis.fill_between(richness, largest, top, color=DIVERGENT_COLOR, linewidth=0)
    longest = smallest[_SCHEMATIC_STEPS[-1]]
    axis.fill_between(
        richness, longest, critical, where=critical > longest, color=_CONVERGENT_COLOR, linewidth=0
    )
    axis.fill_between(
        richness, critical, largest, where=lazy, color=CATAPULT_COLOR, alpha=0.55, linewidth=0
    )
    # What trains in more steps only: the region grows downwards with T.
    for steps, color in zip(_SCHEMATIC_STEPS, _UNTRAINED_COLORS, strict=True):
        axis.fill_between(
            richness, bottom, np.minimum(smallest[steps], critical), color=color, linewidth=0
        )
    lines = {f"T={steps}": rates for steps, rates in smallest.items()}
    lines |= {"critical": critical, "largest": largest}
    for rates in lines.values():
        axis.plot(richness, rates, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
    pieces = [
        pd.DataFrame({"series": f"table 1, {name}", "richness": richness, "learning_rate": rates})
        for name, rates in lines.items()
    ]
    for name, found, marker in _schematic_edges(tables, loss):
        axis.plot(
            found.richness,
            found.rates,
            linestyle="none",
            marker=marker,
            markersize=3.2,
            color="black",
            markerfacecolor="white",
            markeredgewidth=0.7,
        )
        pieces.append(
            pd.DataFrame({"series": name, "richness": found.richness, "learning_rate": found.rates})
        )
    _schematic_labels(axis, loss, depth)
    axis.set_xlim(*_WHOLE)
    axis.set_ylim(bottom, top)
    axis.set_xlabel("richness γ")
    axis.set_ylabel("learning rate η")
    axis.legend(handles=_schematic_key(), loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, pd.concat(pieces, ignore_index=True)


def _schematic_edges(tables: ExperimentTables, loss: str) -> list[tuple[str, ToyEdges, str]]:
    """The edges of the toy models that the sketch shows: name, edges and marker."""
    runs, depth = tables.runs, _SCHEMATIC_DEPTH
    found = [
        (
            f"training, T={steps}",
            toy_edges(runs, "training", loss, _WHOLE, depth, num_steps=steps),
            "o",
        )
        for steps in _SCHEMATIC_STEPS
    ]
    found.append(("convergence", toy_edges(runs, "convergence", loss, _WHOLE, depth), "o"))
    steps = STEPS if loss == MSE else TRIANGLE_STEPS
    found += [
        (edge, toy_edges(runs, edge, loss, (1e-5, 0.1), num_steps=steps), "D")
        for edge in ("catapult", "divergence")
    ]
    return found


def _schematic_labels(axis: Axes, loss: str, depth: int) -> None:
    label_slope(axis, 1e-3, 1e-6 if loss == CROSS_ENTROPY else 2e-6, "γ²")
    label_slope(axis, 1e3, 1e3 ** (2 / depth), f"$γ^{{2/{depth}}}$")
    label_slope(axis, 1e-3, 1e-10, "γ²/T", "below")
    label_slope(axis, 1e3, 0.1, "γ/T", "below")
    if loss == CROSS_ENTROPY:
        label_slope(axis, 1e-3, 1e-3, "γ")


def _schematic_key() -> list[Patch | Line2D]:
    regions = [
        Patch(color=DIVERGENT_COLOR, label="divergent"),
        Patch(color=CATAPULT_COLOR, alpha=0.55, label="catapult"),
        Patch(color=_CONVERGENT_COLOR, label="convergent"),
        *(
            Patch(color=color, label=f"untrained, T = {steps}")
            for color, steps in zip(_UNTRAINED_COLORS, _SCHEMATIC_STEPS, strict=True)
        ),
    ]
    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=marker,
            markersize=3.5,
            color="black",
            markerfacecolor="white",
            label=label,
        )
        for marker, label in (("o", "one parameter,\ndepth 3"), ("D", "two parameters"))
    ]
    return [*regions, *marks]


def plot_schematic_squared_errors(tables: ExperimentTables) -> Drawn:
    """Figure 1a: the regions for squared errors."""
    return _schematic(tables, MSE)


def plot_schematic_cross_entropy(tables: ExperimentTables) -> Drawn:
    """Figure 1b: the regions for cross-entropy."""
    return _schematic(tables, CROSS_ENTROPY)


# Table 1.


def _table_entries(
    tables: ExperimentTables, loss: str
) -> list[tuple[str, int | None, PowerLaw, float]]:
    """The entries of table 1: what, depth (None: two parameters), fit and the paper's exponent."""
    runs = tables.runs
    found: list[tuple[str, int | None, PowerLaw, float]] = []

    def add(name: str, expected: float, depth: int | None, *arguments: object) -> None:
        edges = toy_edges(runs, *arguments)  # type: ignore[arg-type]
        found.append((name, depth, edges.fit(), expected))

    two_steps = STEPS if loss == MSE else TRIANGLE_STEPS
    for depth in (2, 3, 5):
        add("lazy η_min", 2.0, depth, "training", loss, LAZY, depth)
        if loss == CROSS_ENTROPY:
            add("lazy η_crit", 2.0, depth, "convergence", loss, LAZY, depth)
            add("lazy η_max", 1.0, depth, "divergence", loss, LAZY, depth)
        else:
            add("lazy η_max", 2.0, depth, "convergence", loss, LAZY, depth)
        rich_steps = ("sgd", RICH_TRAINING_STEPS)
        add("rich η_min", 1.0, depth, "training", loss, RICH_TRAINING, depth, *rich_steps)
        add("rich η_max", 2.0 / depth, depth, "convergence", loss, RICH, depth)
    two = (loss, LAZY, None, "sgd", two_steps)
    add("lazy η_crit", 2.0, None, "catapult", *two)
    add("lazy η_max", 2.0 if loss == MSE else 1.0, None, "divergence", *two)
    return found


def plot_table(tables: ExperimentTables) -> Drawn:
    """Table 1: fitted exponents with their intervals beside the paper's."""
    figure, axes = panels(2, height=3.2, share_y=True)
    names = ["lazy η_min", "lazy η_crit", "lazy η_max", "rich η_min", "rich η_max"]
    shifts: dict[int | None, float] = {2: -0.24, 3: -0.08, 5: 0.08, None: 0.24}
    rows = []
    for axis, letter, loss in zip(axes, "ab", (MSE, CROSS_ENTROPY), strict=True):
        for name, depth, law, expected in _table_entries(tables, loss):
            place = names.index(name) + shifts[depth]
            axis.plot(
                [place - 0.07, place + 0.07],
                [expected, expected],
                color="#9a9a9a",
                linewidth=4,
                solid_capstyle="butt",
                zorder=1,
            )
            axis.errorbar(
                place,
                law.exponent,
                yerr=[[law.exponent - law.low], [law.high - law.exponent]],
                marker="D" if depth is None else "o",
                markersize=3.5,
                linestyle="none",
                color="black" if depth is None else _DEPTH_COLORS[depth],
                capsize=2,
                zorder=2,
            )
            rows.append(
                {
                    "panel": letter,
                    "loss": loss,
                    "entry": name,
                    "depth": 2 if depth is None else depth,
                    "parameters": 2 if depth is None else 1,
                    "expected": expected,
                    "exponent": law.exponent,
                    "low": law.low,
                    "high": law.high,
                    "prefactor": law.prefactor,
                }
            )
        labels = [name.replace(" η_", "\n$η_{\\mathrm{") + "}}$" for name in names]
        axis.set_xticks(range(len(names)), labels)
        axis.set_ylim(0, 2.3)
        name_panel(axis, letter, LOSS_NAMES[loss])
    axes[0].set_ylabel("exponent in γ")
    handles: list[Patch | Line2D] = [
        Line2D(
            [], [], linestyle="none", marker="o", color=_DEPTH_COLORS[depth], label=f"L = {depth}"
        )
        for depth in (2, 3, 5)
    ]
    handles.append(
        Line2D([], [], linestyle="none", marker="D", color="black", label="two parameters")
    )
    handles.append(Patch(color="#9a9a9a", label="paper"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure, pd.DataFrame(rows)


# Figures 3a and 45, toy versions: the end of training.


def _plot_minima(
    tables: ExperimentTables, column: str, label: str, lines: Callable[[Array, int], list[Array]]
) -> Drawn:
    """A quantity at the end of training over the richness, one series per depth."""
    figure, (axis,) = panels(1, height=3.2)
    pieces = []
    for depth in sorted({int(depth) for depth in numbers(tables.runs, "depth")}):
        best = best_runs(tables, depth)
        richness = numbers(best, "richness")
        values = numbers(best, column)
        if column == "final_weight":
            values = np.abs(values - 1.0)
        axis.plot(
            richness,
            values,
            linestyle="none",
            marker="o",
            markersize=2.5 if richness.size > 50 else 4,
            color=_DEPTH_COLORS[depth],
            label=f"L = {depth}",
        )
        for part, rates in zip((richness <= 1, richness >= 1), lines(richness, depth), strict=True):
            draw_theory_line(axis, richness[part], rates[part], color=_DEPTH_COLORS[depth])
        pieces.append(
            pd.DataFrame(
                {
                    "depth": depth,
                    "richness": richness,
                    "learning_rate": numbers(best, "learning_rate"),
                    column: values,
                }
            )
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("richness γ")
    axis.set_ylabel(label)
    axis.legend(loc="best")
    return figure, pd.concat(pieces, ignore_index=True)


def plot_final_curvature(tables: ExperimentTables) -> Drawn:
    """Figure 3a, toy version: second derivative of the loss at the end of training."""

    def lines(richness: Array, depth: int) -> list[Array]:
        return [depth**2 / richness**2, depth**2 * richness ** (-2.0 / depth)]

    return _plot_minima(tables, "final_sharpness", "second derivative of the loss", lines)


def plot_weight_movement(tables: ExperimentTables) -> Drawn:
    """Figure 45, toy version: movement of the weight in training."""

    def lines(richness: Array, depth: int) -> list[Array]:
        return [richness / depth, richness ** (1.0 / depth)]

    return _plot_minima(tables, "final_weight", "movement of the weight", lines)


# Figures 4a, 30 and 39, toy versions: losses over time.


def _draw_losses(
    axis: Axes, tables: ExperimentTables, runs: pd.DataFrame, time: str, smallest: float
) -> pd.DataFrame:
    """Losses above the smallest one over time, one curve per richness."""
    runs = runs.sort_values("richness")
    richness = numbers(runs, "richness")
    pieces: list[pd.DataFrame] = []
    for run_id, value, color in zip(
        runs["run_id"], richness, ordered_colors(richness), strict=True
    ):
        recorded = tables.history[tables.history["run_id"] == run_id].sort_values("step")
        loss = numbers(recorded, "train_loss") - smallest
        curve = recorded[["step", "physical_time"]].assign(
            richness=value,
            rich_time=numbers(recorded, "physical_time") / value,
            loss_shown=loss,
        )[np.isfinite(loss)]
        name = f"$10^{{{np.log10(value):.3g}}}$"
        axis.plot(curve[time], curve["loss_shown"], color=color, label=name)
        pieces.append(curve[["richness", "step", "physical_time", "rich_time", "loss_shown"]])
    axis.set_yscale("log")
    return pd.concat(pieces, ignore_index=True)


def plot_catapults(tables: ExperimentTables) -> Drawn:
    """Figure 4a, toy version: catapults of the two-parameter model over time."""
    figure, axes = panels(2, height=3.0)
    pieces = []
    for axis, letter, loss in zip(axes, "ab", (MSE, CROSS_ENTROPY), strict=True):
        mask = (tables.runs["loss"] == loss).to_numpy(dtype=bool, na_value=False)
        runs = choose(tables.runs, mask, f"with {loss}")
        smallest = TOY_LOSSES[loss].minimum
        part = _draw_losses(axis, tables, runs, "step", smallest)
        axis.set_xlabel("step t")
        axis.set_ylim(bottom=1e-4)
        if loss == CROSS_ENTROPY:
            axis.set_xscale("log")
            axis.set_xlim(left=1)
        axis.set_ylabel("loss" if loss == MSE else "loss − smallest")
        name_panel(axis, letter, LOSS_NAMES[loss])
        pieces.append(part.assign(panel=letter, loss=loss))
    axes[-1].legend(title="γ", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, pd.concat(pieces, ignore_index=True)


def plot_escape(tables: ExperimentTables) -> Drawn:
    """Figure 30, toy version: loss against eta t / gamma at large richness, one panel per depth."""
    depths = sorted({int(depth) for depth in numbers(tables.runs, "depth")})
    figure, axes = panels(len(depths), columns=2, height=2.2)
    times = escape_times(tables)
    pieces = []
    for axis, letter, depth in zip(axes, "abcdef", depths, strict=False):
        runs = tables.runs[(tables.runs["depth"] == depth).to_numpy(dtype=bool)]
        part = _draw_losses(axis, tables, runs, "rich_time", 0.0)
        of_depth = times[times["depth"] == depth]
        for expected in np.unique(of_depth["expected"]):
            axis.axvline(expected, color=LINE_COLOR, linewidth=0.9, linestyle=(0, (4, 2)))
        axis.set_xlim(0, 1.25 * float(of_depth["expected"].max()))
        axis.set_ylim(bottom=1e-3)
        axis.set_xlabel("ηt/γ")
        axis.set_ylabel("loss")
        axis.legend(title="γ", loc="lower left")
        name_panel(axis, letter, f"L = {depth}")
        pieces.append(part.assign(panel=letter, depth=depth))
    return figure, pd.concat(pieces, ignore_index=True)


def draw_scalings(tables: ExperimentTables, limits: tuple[float | None, float | None]) -> Drawn:
    """Losses over time under three rules for the learning rate, a panel for each.

    Args:
        tables: An experiment whose absolute rates follow these rules.
        limits: Smallest and largest loss that is shown, None for that of the data.

    Returns:
        The figure and the plotted numbers.
    """
    runs, depth = scaling_runs(tables)
    rules = runs_by_rule(runs, depth)
    figure, axes = panels(len(rules), height=2.8, share_y=True)
    pieces = []
    for axis, letter, (name, chosen) in zip(axes, "abc", rules.items(), strict=True):
        part = _draw_losses(axis, tables, chosen, "step", 0.0)
        axis.set_xscale("log")
        axis.set_xlim(left=1)
        axis.set_ylim(*limits)
        axis.set_xlabel("step t")
        name_panel(axis, letter, f"$η ∝ γ^{{{name}}}$")
        pieces.append(part.assign(panel=letter, exponent=rules_of_scaling(depth)[name]))
    axes[0].set_ylabel("loss")
    axes[-1].legend(title="γ", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, pd.concat(pieces, ignore_index=True)


def plot_other_scalings(tables: ExperimentTables) -> Drawn:
    """Figure 39, toy version: losses over time under three rules for the learning rate."""
    return draw_scalings(tables, (1e-8, 1e6))


PLOTS: dict[str, Callable[[ExperimentTables], Drawn]] = {
    "richness/fig1a": plot_schematic_squared_errors,
    "richness/fig1b": plot_schematic_cross_entropy,
    "richness/fig3a_toy": plot_final_curvature,
    "richness/fig4a_toy": plot_catapults,
    "richness/fig6": plot_one_parameter,
    "richness/fig8": plot_two_parameter_squared_errors,
    "richness/fig9": plot_two_parameter_cross_entropy,
    "richness/fig11": plot_sign_sgd,
    "richness/fig30_toy": plot_escape,
    "richness/fig38": plot_other_rules,
    "richness/fig39_toy": plot_other_scalings,
    "richness/fig45_toy": plot_weight_movement,
    "richness/table1": plot_table,
}
