"""Draw a phase portrait: a colour for each cell of a plane of richness and learning rate."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike, NDArray

from sgdphases.figures.style import LINE_COLOR, ORDERED_PALETTE

DIVERGENT_COLOR = "#b8b8b8"
CATAPULT_COLOR = "#d1662b"
_HATCH_COLOR = "#5a5a5a"
_MARKED_COLUMNS = 33
_UNSETTLED_STYLE: dict[str, Any] = {
    "facecolor": "none",
    "edgecolor": _HATCH_COLOR,
    "hatch": "/////",
    "linewidth": 0,
}
_NO_RATE_STYLE: dict[str, Any] = {
    "facecolor": "none",
    "edgecolor": "#c4c4c4",
    "hatch": "....",
    "linewidth": 0,
}
_HALO = [patheffects.withStroke(linewidth=2.2, foreground="white")]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """The cells of a portrait as matrices with the learning rate along the first axis.

    Attributes:
        richness: (columns,) richness, increasing.
        learning_rate: (rows,) learning rates, increasing.
        shown: (rows, columns) what the colour shows; NaN where there is no run.
        regions: (rows, columns) names of regions; None where there is no run.
    """

    richness: Array
    learning_rate: Array
    shown: Array
    regions: NDArray[np.object_]

    @classmethod
    def of(cls, cells: pd.DataFrame, column: str) -> "Plane":
        """The plane of a table with `richness`, `learning_rate`, `region` and what is shown."""
        matrices = [
            cells.pivot_table(
                index="learning_rate", columns="richness", values=name, aggfunc="first"
            )
            for name in (column, "region")
        ]
        values = matrices[0].reindex_like(matrices[1])
        return cls(
            richness=matrices[1].columns.to_numpy(dtype=float),
            learning_rate=matrices[1].index.to_numpy(dtype=float),
            shown=values.to_numpy(dtype=float),
            regions=matrices[1].to_numpy(dtype=object),
        )

    def is_in(self, region: str) -> NDArray[np.bool_]:
        """Which cells lie in a region."""
        return np.asarray(self.regions == region)


def draw_portrait(axis: Axes, plane: Plane, norm: LogNorm, has_marks: bool = True) -> QuadMesh:
    """Draw a plane: colours, grey where runs diverged, dots on catapults, hatches on the unsettled.

    Args:
        axis: Where; both axes become logarithmic.
        plane: What.
        norm: From values to colours; values beyond its ends have the colours of the ends.
        has_marks: Whether to draw dots and hatches.

    Returns:
        The coloured cells, for a colour bar.
    """
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(visible=False)
    edges = cell_edges(plane.richness), cell_edges(plane.learning_rate)
    divergent = plane.is_in("divergent")
    axis.pcolormesh(
        *edges,
        np.ma.masked_where(~divergent, np.ones(divergent.shape)),
        cmap=ListedColormap([DIVERGENT_COLOR]),
        rasterized=True,
    )
    shown = np.ma.masked_where(divergent | ~np.isfinite(plane.shown), plane.shown)
    mesh = axis.pcolormesh(
        *edges,
        np.clip(shown, norm.vmin, norm.vmax),
        norm=norm,
        cmap=ORDERED_PALETTE,
        rasterized=True,
    )
    unsettled = plane.is_in("unsettled")
    if has_marks and unsettled.any():
        with_color = axis.contourf(
            plane.richness,
            plane.learning_rate,
            unsettled.astype(float),
            levels=[0.5, 1.5],
            colors="none",
            hatches=["/////"],
        )
        with_color.set_edgecolor(_HATCH_COLOR)
        with_color.set_linewidth(0.0)
    if has_marks:
        _mark_catapults(axis, plane)
    axis.set_xlim(edges[0][0], edges[0][-1])
    axis.set_ylim(edges[1][0], edges[1][-1])
    axis.set_xlabel("richness γ")
    return mesh


def draw_columns(axis: Axes, cells: pd.DataFrame, column: str, norm: Normalize) -> QuadMesh | None:
    """Draw a portrait each of whose columns has learning rates of its own.

    Args:
        axis: Where; both axes become logarithmic.
        cells: `richness`, `learning_rate`, `region` and what is shown, one row per cell; a richness
            whose learning rate is null has no run, and is hatched.
        column: What is shown.
        norm: From values to colours.

    Returns:
        Coloured cells, for a colour bar; None where every run diverged.
    """
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(visible=False)
    richness = np.unique(cells["richness"])
    sides = cell_edges(richness)
    mesh = None
    for left, right, value in zip(sides[:-1], sides[1:], richness, strict=True):
        column_cells = cells[cells["richness"] == value].sort_values("learning_rate")
        if column_cells["learning_rate"].isna().any():
            axis.axvspan(left, right, **_NO_RATE_STYLE)
            continue
        rates = column_cells["learning_rate"].to_numpy(dtype=float)
        divergent = (column_cells["region"] == "divergent").to_numpy()
        ends = np.array([left, right]), cell_edges(rates)
        axis.pcolormesh(
            *ends,
            np.ma.masked_where(~divergent, np.ones(rates.size))[:, None],
            cmap=ListedColormap([DIVERGENT_COLOR]),
            rasterized=True,
        )
        shown = column_cells[column].to_numpy(dtype=float)
        if not divergent.all():
            mesh = axis.pcolormesh(
                *ends,
                np.ma.masked_where(divergent | ~np.isfinite(shown), shown)[:, None],
                norm=norm,
                cmap=ORDERED_PALETTE,
                rasterized=True,
            )
        regions = column_cells["region"]
        for region, bottom, top in zip(regions, ends[1][:-1], ends[1][1:], strict=True):
            if region == "unsettled":
                size = right - left, top - bottom
                axis.add_patch(Rectangle((left, bottom), *size, **_UNSETTLED_STYLE))
    catapults = cells[cells["region"] == "catapult"]
    axis.plot(
        catapults["richness"],
        catapults["learning_rate"],
        linestyle="none",
        marker="o",
        markersize=2.5,
        markeredgewidth=0,
        color=CATAPULT_COLOR,
    )
    axis.set_xlim(sides[0], sides[-1])
    axis.set_xlabel("richness γ")
    return mesh


def _mark_catapults(axis: Axes, plane: Plane) -> None:
    """Put a dot on each cell of a small plane, on some cells of a large one."""
    rows, columns = np.nonzero(plane.is_in("catapult"))
    every = max(1, plane.richness.size // _MARKED_COLUMNS)
    shown = (rows % every == 0) & (columns % every == 0)
    rows, columns = rows[shown], columns[shown]
    axis.plot(
        plane.richness[columns],
        plane.learning_rate[rows],
        linestyle="none",
        marker="o",
        markersize=1.5,
        markeredgewidth=0,
        color=CATAPULT_COLOR,
        rasterized=True,
    )


def cell_edges(centres: Array) -> Array:
    """Ends of the cells around logarithmically spaced centres."""
    logs = np.log10(centres)
    if logs.size == 1:
        return np.asarray(10.0 ** (logs[0] + np.array([-0.5, 0.5])))
    middles = (logs[:-1] + logs[1:]) / 2
    first, last = 2 * logs[0] - middles[0], 2 * logs[-1] - middles[-1]
    return np.asarray(10.0 ** np.concatenate([[first], middles, [last]]))


def draw_theory_line(axis: Axes, x: ArrayLike, y: ArrayLike, color: str = "black") -> None:
    """Draw a dashed curve that stays readable on any colour."""
    (line,) = axis.plot(x, y, color=color, linewidth=1.0, linestyle=(0, (4, 2)), zorder=3)
    line.set_path_effects([patheffects.withStroke(linewidth=2.0, foreground="white", alpha=0.6)])


def label_slope(axis: Axes, x: float, y: float, text: str, where: str = "above") -> None:
    """Write a power law beside a curve at (x, y), above or below it."""
    axis.annotate(
        text,
        (x, y),
        xytext=(0, 5 if where == "above" else -5),
        textcoords="offset points",
        ha="center",
        va="bottom" if where == "above" else "top",
        fontsize=8,
        zorder=4,
        path_effects=_HALO,
        annotation_clip=True,
    )


def no_rate_key() -> Patch:
    """Legend entry of a richness at which no learning rate of the search has the edge."""
    return Patch(**_NO_RATE_STYLE, label="no rate found")


def portrait_key(regions: NDArray[np.object_]) -> list[Patch | Line2D]:
    """Legend entries of the marks that occur."""
    handles: list[Patch | Line2D] = []
    present = set(regions[pd.notna(regions)].ravel().tolist())
    if "catapult" in present:
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                markersize=3,
                color=CATAPULT_COLOR,
                label="catapult",
            )
        )
    if "unsettled" in present:
        handles.append(Patch(**_UNSETTLED_STYLE, label="not settled"))
    if "divergent" in present:
        handles.append(Patch(facecolor=DIVERGENT_COLOR, label="diverged"))
    handles.append(Line2D([], [], color=LINE_COLOR, linestyle=(0, (4, 2)), label="theory"))
    return handles
