"""Figures of the catapult paper's solvable models: 1a, 2a-c, S1 and S12.

Reference: Lewkowycz et al., The large learning rate phase of deep learning.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import NDArray

from sgdphases.claims.catapult_theory import (
    choose,
    critical_distance,
    diverged,
    fit_exponent,
    in_exponent_window,
    in_phase,
    numbers,
)
from sgdphases.figures.style import (
    LINE_COLOR,
    PAGE_WIDTH,
    PHASE_COLORS,
    draw_phase_lines,
    evenly_chosen,
    name_panel,
    ordered_colors,
    panels,
    shade_divergent,
)
from sgdphases.tables import ExperimentTables

_CURVES = 9
_GRID = 121
# The loss is drawn over this many decades below its largest value.
_SURFACE_DECADES = 4
_LOSS_DECADES = 8
# Half-width of the lazy panel in units of its path, but at least the next times the catapult's
# panel; half-width of the divergent panel in units of the catapult's.
_CLOSE = 1.5
_CLOSEST = 0.05
_FAR = 2.0
_SURFACE_MAP = "viridis"
_PATH_COLOR = "#e8452c"

Array = NDArray[np.float64]
Surface = Callable[[Array, Array], Array]


# Figure 2: the recursion over time.


def _first_seed(tables: ExperimentTables) -> pd.DataFrame:
    seeds = numbers(tables.runs, "seed")
    return choose(tables.runs, seeds == seeds.min(), "has a seed")


def _curves(tables: ExperimentTables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs of the first seed that trained, evenly chosen by rate, and their history."""
    runs = _first_seed(tables)
    runs = runs[in_phase(runs, "lazy") | in_phase(runs, "catapult")]
    rates = evenly_chosen(numbers(runs, "learning_rate"), _CURVES)
    runs = runs[np.isin(numbers(runs, "learning_rate"), rates)].sort_values("learning_rate")
    history = tables.history.merge(runs[["run_id", "learning_rate"]], on="run_id")
    return runs, history.sort_values(["learning_rate", "step"])


def _plot_over_time(
    tables: ExperimentTables, column: str, label: str
) -> tuple[Figure, Axes, pd.DataFrame]:
    """One curve per learning rate over physical time."""
    runs, history = _curves(tables)
    figure, (axis,) = panels(1, height=3.0)
    rates = numbers(runs, "learning_rate")
    for run_id, rate, color in zip(runs["run_id"], rates, ordered_colors(rates), strict=True):
        curve = history[history["run_id"] == run_id]
        axis.plot(curve["physical_time"], curve[column], color=color, label=f"{rate:.2f}")
    axis.set_xlabel("physical time t·η")
    axis.set_ylabel(label)
    axis.set_xlim(left=0)
    axis.legend(title="learning rate η", loc="center left", bbox_to_anchor=(1.0, 0.5))
    plotted = history[["run_id", "learning_rate", "step", "physical_time", column]]
    return figure, axis, plotted.reset_index(drop=True)


def plot_loss_over_time(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 2a: training loss over physical time, one curve per learning rate."""
    figure, axis, plotted = _plot_over_time(tables, "train_loss", "loss")
    top = float(plotted["train_loss"].max())
    start = float(plotted.loc[plotted["step"] == 0, "train_loss"].iloc[0])
    axis.set_yscale("log")
    axis.set_ylim(start * 10.0**-_LOSS_DECADES, 3 * top)
    return figure, plotted


def plot_curvature_over_time(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 2b: top NTK eigenvalue over physical time, one curve per learning rate."""
    figure, axis, plotted = _plot_over_time(tables, "ntk_top_eigenvalue", "top NTK eigenvalue λ")
    axis.set_ylim(bottom=0)
    return figure, plotted


def plot_final_curvature(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 2c: top NTK eigenvalue at a fixed physical time against the learning rate."""
    runs = _first_seed(tables).sort_values("learning_rate")
    columns = ["learning_rate", "final_ntk_top_eigenvalue", "status", "phase"]
    plotted = runs[columns].reset_index(drop=True)
    figure, (axis,) = panels(1, height=3.0)
    finite = plotted[~diverged(plotted)]
    axis.plot(
        finite["learning_rate"],
        finite["final_ntk_top_eigenvalue"],
        color=LINE_COLOR,
        linewidth=0.5,
        zorder=1,
    )
    for phase in ("lazy", "catapult"):
        chosen = finite[in_phase(finite, phase)]
        axis.plot(
            chosen["learning_rate"],
            chosen["final_ntk_top_eigenvalue"],
            linestyle="none",
            marker="o",
            markersize=3.2,
            color=PHASE_COLORS[phase],
            label=f"{phase} runs",
        )
    other = finite[finite["phase"].isna().to_numpy()]
    if len(other):
        axis.plot(
            other["learning_rate"],
            other["final_ntk_top_eigenvalue"],
            linestyle="none",
            marker="x",
            color=LINE_COLOR,
            label="not trained by then",
        )
    critical = float((2.0 / numbers(runs, "initial_ntk_top_eigenvalue")).mean())
    bound = np.linspace(critical, numbers(finite, "learning_rate").max(), 100)
    axis.plot(bound, 2.0 / bound, color=LINE_COLOR, linewidth=0.9, linestyle=":", label="2/η")
    axis.set_xlabel("learning rate η")
    budget = tables.spec.get("stopping", {}).get("physical_time")
    axis.set_ylabel("top NTK eigenvalue λ" + (f" at t = {budget:g}/η" if budget else ""))
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, 1.02 * numbers(plotted, "learning_rate").max())
    gone = plotted[diverged(plotted)]
    if len(gone):
        # Midway between the last rate that stays finite and the first that does not.
        last, first = (numbers(part, "learning_rate") for part in (finite, gone))
        shade_divergent(axis, float((last[last < first.min()].max() + first.min()) / 2))
    draw_phase_lines(axis, critical)
    axis.legend(loc="lower left")
    return figure, plotted


# Figures 1a and S1: the plane.


def _path(tables: ExperimentTables, phase: str) -> tuple[pd.Series, pd.DataFrame]:
    """The run of `phase` that starts with the largest loss, and its history.

    Raises:
        ValueError: No run is in that phase.
    """
    runs = tables.runs[in_phase(tables.runs, phase)]
    if runs.empty:
        raise ValueError(f"no run is in the {phase} phase")
    run = runs.sort_values(["initial_train_loss", "seed"]).iloc[-1]
    history = tables.history[tables.history["run_id"] == run["run_id"]].sort_values("step")
    return run, history


def _plane_surface(width: float) -> Surface:
    """Loss over the plane's coordinates: f = (d1^2 - d2^2) / sqrt(n)."""
    return lambda dim1, dim2: (dim1**2 - dim2**2) ** 2 / (2.0 * width)


def _correlation_surface(width: float) -> Surface:
    """Loss over correlation and curvature: f = sqrt(n) lambda cos(u, v) / 2."""
    return lambda correlation, curvature: width * (curvature * correlation) ** 2 / 8.0


def _draw_surface(
    axis: Axes, surface: Surface, horizontal: Array, vertical: Array, norm: LogNorm, panel: str
) -> pd.DataFrame:
    """Shade a panel by the loss and return its grid."""
    grid_x, grid_y = np.meshgrid(horizontal, vertical)
    loss = surface(grid_x, grid_y)
    axis.pcolormesh(
        grid_x,
        grid_y,
        np.maximum(loss, norm.vmin or 0.0),
        norm=norm,
        cmap=_SURFACE_MAP,
        shading="gouraud",
        rasterized=True,
    )
    axis.grid(visible=False)
    return pd.DataFrame(
        {
            "panel": panel,
            "series": "loss surface",
            "x": grid_x.ravel(),
            "y": grid_y.ravel(),
            "train_loss": loss.ravel(),
        }
    )


def _draw_path(
    axis: Axes, history: pd.DataFrame, horizontal: str, vertical: str, panel: str, phase: str
) -> pd.DataFrame:
    """Draw the points visited, from an open circle to a star, and return them."""
    across, along = numbers(history, horizontal), numbers(history, vertical)
    axis.plot(across, along, color=_PATH_COLOR, linewidth=0.7, marker="o", markersize=2.6)
    axis.plot(
        across[:1],
        along[:1],
        marker="o",
        markersize=4.5,
        color="white",
        markeredgecolor=_PATH_COLOR,
    )
    if phase != "divergent":
        axis.plot(
            across[-1:],
            along[-1:],
            marker="*",
            markersize=7.5,
            color="white",
            markeredgecolor=_PATH_COLOR,
            markeredgewidth=0.8,
            zorder=5,
        )
    return pd.DataFrame(
        {
            "panel": panel,
            "series": phase,
            "step": history["step"].to_numpy(),
            "x": across,
            "y": along,
            "train_loss": numbers(history, "train_loss"),
        }
    )


def _norm(largest: float) -> LogNorm:
    return LogNorm(largest * 10.0**-_SURFACE_DECADES, largest)


def _correlation_panel(
    axis: Axes, run: pd.Series, history: pd.DataFrame, panel: str
) -> tuple[pd.DataFrame, LogNorm]:
    """The catapult run over correlation of the weights and curvature."""
    surface = _correlation_surface(float(run["width"]))
    top = 1.12 * float(run["initial_ntk_top_eigenvalue"])
    reach = 1.15 * float(np.abs(numbers(history, "weight_correlation")).max())
    reach = min(1.0, reach)
    norm = _norm(float(surface(np.array(reach), np.array(top))))
    grid = _draw_surface(
        axis,
        surface,
        np.linspace(-reach, reach, _GRID),
        np.linspace(0.0, top, _GRID),
        norm,
        panel,
    )
    bound = 2.0 / float(run["learning_rate"])
    axis.axhline(bound, color="white", linestyle=(0, (4, 2)), linewidth=1.0)
    axis.text(0.97 * reach, bound, "λ = 2/η", color="white", fontsize=7.5, ha="right", va="bottom")
    path = _draw_path(axis, history, "weight_correlation", "ntk_top_eigenvalue", panel, "catapult")
    axis.set_xlabel("correlation of u and v")
    axis.set_ylabel("top NTK eigenvalue λ")
    return pd.concat([grid, path], ignore_index=True), norm


def plot_catapult_path(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure 1a: loss surface over weight correlation and curvature with a catapult's path."""
    run, history = _path(tables, "catapult")
    figure, axis = plt.subplots(figsize=(0.75 * PAGE_WIDTH, 3.4))
    plotted, norm = _correlation_panel(axis, run, history, "a")
    figure.colorbar(ScalarMappable(norm, _SURFACE_MAP), ax=axis, label="loss", extend="min")
    return figure, plotted


def plot_plane(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S1: the plane, one panel per phase, and the catapult in the coordinates of 1a."""
    figure, axes = panels(6, columns=3, height=2.45)
    run, history = _path(tables, "catapult")
    surface = _plane_surface(float(run["width"]))
    start = float(np.abs(history[["dim1", "dim2"]].iloc[0].to_numpy(dtype=float)).max())
    reach = 1.6 * start
    norm = _norm(float(surface(np.array(reach), np.array(0.0))))
    ticks = np.linspace(-reach, reach, _GRID)
    pieces = [_draw_surface(axes[0], surface, ticks, ticks, norm, "a")]
    axes[0].plot(ticks, ticks, color="white", linewidth=0.8)
    axes[0].plot(ticks, -ticks, color="white", linewidth=0.8)
    name_panel(axes[0], "a", "loss surface")
    phases = ("lazy", "catapult", "divergent")
    for axis, letter, phase in zip(axes[1:4], "bcd", phases, strict=True):
        run, history = _path(tables, phase)
        window = _window(history, phase, reach)
        pieces.append(_draw_surface(axis, surface, *window, norm, letter))
        # lambda = 2 (d1^2 + d2^2) / n, so that lambda = 2 / eta is a circle.
        radius = float(np.sqrt(float(run["width"]) / float(run["learning_rate"])))
        axis.add_patch(
            Circle((0, 0), radius, fill=False, color="white", linestyle=(0, (4, 2)), linewidth=0.9)
        )
        pieces.append(_draw_path(axis, history, "dim1", "dim2", letter, phase))
        if phase == "catapult":
            catapult_run, catapult_history = run, history
        name_panel(axis, letter, f"{phase}, η·λ₀ = {2 * float(run['relative_learning_rate']):g}")
        axis.set_xlim(window[0][0], window[0][-1])
        axis.set_ylim(window[1][0], window[1][-1])
    for axis in axes[:4]:
        axis.set_aspect("equal")
        axis.locator_params(nbins=4)
        axis.set_xlabel("d₁")
        axis.set_ylabel("d₂", labelpad=0)
    plotted, _ = _correlation_panel(axes[4], catapult_run, catapult_history, "e")
    name_panel(axes[4], "e", "the run of (c)")
    pieces.append(plotted)
    _draw_key(figure, axes[5], norm)
    return figure, pd.concat(pieces, ignore_index=True)


def _window(history: pd.DataFrame, phase: str, reach: float) -> tuple[Array, Array]:
    """Coordinates of a panel: close to a lazy path, far from a divergent one."""
    unit = np.linspace(-1.0, 1.0, _GRID)
    if phase != "lazy":
        scale = reach if phase == "catapult" else _FAR * reach
        return scale * unit, scale * unit
    points = history[["dim1", "dim2"]].to_numpy(dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    half = max(_CLOSE * float((high - low).max()), _CLOSEST * reach)
    centre = (low + high) / 2
    return centre[0] + half * unit, centre[1] + half * unit


def _draw_key(figure: Figure, axis: Axes, norm: LogNorm) -> None:
    """Colour bar and key of the signs, in place of a sixth panel."""
    axis.set_axis_off()
    bar = axis.inset_axes((0.05, 0.78, 0.9, 0.08))
    figure.colorbar(
        ScalarMappable(norm, _SURFACE_MAP),
        cax=bar,
        orientation="horizontal",
        label="loss in (a)–(d)",
        extend="both",
    )
    start, end = (
        Line2D(
            [],
            [],
            color="none",
            marker=marker,
            markersize=size,
            markerfacecolor="white",
            markeredgecolor=_PATH_COLOR,
            label=label,
        )
        for marker, size, label in (("o", 4.5, "start"), ("*", 7.5, "converged"))
    )
    steps = Line2D([], [], color=_PATH_COLOR, marker="o", markersize=2.6, label="steps")
    bound = Line2D([], [], color=LINE_COLOR, linestyle=(0, (4, 2)), label="λ = 2/η")
    axis.legend(
        handles=[start, steps, end, bound], loc="lower left", bbox_to_anchor=(0.0, -0.05, 1.0, 1.0)
    )


# Figure S12: critical slowing down.


def plot_critical_slowing(tables: ExperimentTables) -> tuple[Figure, pd.DataFrame]:
    """Figure S12: steps to convergence on both sides of the critical rate, and their exponents."""
    runs = tables.runs[tables.runs["convergence_step"].notna().to_numpy()]
    figure, axes = panels(2, height=3.0, share_y=True)
    pieces = []
    for axis, letter, side in zip(axes, "ab", (-1, 1), strict=True):
        sign, name = ("<", "below") if side < 0 else (">", "above")
        chosen = runs[side * critical_distance(runs) > 0]
        distance = side * critical_distance(chosen)
        # Steps to convergence against |eta - eta_crit| of each seed's own lambda_0.
        shown = pd.DataFrame(
            {
                "panel": letter,
                "series": name,
                "seed": chosen["seed"].to_numpy(),
                "learning_rate": numbers(chosen, "learning_rate"),
                "scaled_distance": distance,
                "convergence_step": numbers(chosen, "convergence_step"),
                "fitted": in_exponent_window(chosen, side),
            }
        )
        pieces.append(shown)
        color = PHASE_COLORS["lazy" if side < 0 else "catapult"]
        axis.plot(
            shown["scaled_distance"],
            shown["convergence_step"],
            linestyle="none",
            marker="o",
            markersize=2.2,
            alpha=0.35,
            color=color,
            markeredgewidth=0,
            label="single seeds",
        )
        medians = (
            shown.groupby(["scaled_distance", "fitted"])["convergence_step"].median().reset_index()
        )
        for fitted, face in ((True, color), (False, "white")):
            points = medians[medians["fitted"] == fitted]
            axis.plot(
                points["scaled_distance"],
                points["convergence_step"],
                linestyle="none",
                marker="o",
                markersize=5,
                color=color,
                markerfacecolor=face,
                label="median, fitted" if fitted else "median, not fitted",
            )
        pieces.append(medians.assign(panel=letter, series=f"{name}, median over seeds"))
        inside = shown[shown["fitted"].to_numpy()]
        fits = [
            fit_exponent(numbers(group, "scaled_distance"), numbers(group, "convergence_step"))
            for _, group in inside.groupby("seed")
        ]
        if fits:
            exponent = float(np.median([fit[0] for fit in fits]))
            # Through the middle of the fitted points, with the slope of the median seed.
            middle = np.log(inside["scaled_distance"]).mean()
            height = np.log(inside["convergence_step"]).groupby(inside["seed"]).mean().median()
            line = np.geomspace(
                inside["scaled_distance"].min(), inside["scaled_distance"].max(), 50
            )
            law = np.exp(height + exponent * (np.log(line) - middle))
            axis.plot(
                line,
                law,
                color="black",
                linewidth=1.0,
                label=f"exponent {exponent:.2f}".replace("-", "−"),
            )
            pieces.append(
                pd.DataFrame(
                    {
                        "panel": letter,
                        "series": f"{name}, fit",
                        "scaled_distance": line,
                        "convergence_step": law,
                        "exponent": exponent,
                    }
                )
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("|η − 2/λ₀| · λ₀")
        axis.legend(loc="lower left")
        name_panel(axis, letter, f"η {sign} 2/λ₀")
    axes[0].set_ylabel("steps to convergence")
    return figure, pd.concat(pieces, ignore_index=True)


PLOTS: dict[str, Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]] = {
    "catapult/fig1a": plot_catapult_path,
    "catapult/fig2a": plot_loss_over_time,
    "catapult/fig2b": plot_curvature_over_time,
    "catapult/fig2c": plot_final_curvature,
    "catapult/figS1": plot_plane,
    "catapult/figS12": plot_critical_slowing,
}
