"""One look for every figure of the project."""

from collections.abc import Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

# Width of a figure in the report, in inches.
PAGE_WIDTH = 7.0
PANEL_HEIGHT = 2.6
# Names of 1, 2 and 5 of each decade side by side need so much.
_INCHES_PER_DECADE = 1.2

# Colours of the phases, distinguishable without colour vision.
PHASE_COLORS = {"lazy": "#3b6fb6", "catapult": "#d1662b", "divergent": "#7a7a7a"}
LINE_COLOR = "#444444"
SHADE_COLOR = "#e4e4e4"
# Dark at small values, light (but never too light to read) at large ones.
ORDERED_PALETTE = "viridis"
_PALETTE_RANGE = (0.0, 0.88)

# Numerators of the learning rates c / lambda_0 that separate the phases.
CRITICAL_CONSTANT = 2.0


def apply_style() -> None:
    """Set the style of all figures drawn from here on; draws without a display.

    The same numbers give the same bytes: names inside an SVG do not change from run to run.
    """
    matplotlib.use("Agg")
    sns.set_theme(
        context="paper",
        style="ticks",
        rc={
            "axes.axisbelow": True,
            "axes.edgecolor": LINE_COLOR,
            "axes.grid": True,
            "axes.labelsize": 9,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 9,
            "figure.constrained_layout.use": True,
            "figure.dpi": 150,
            "figure.figsize": (PAGE_WIDTH, PANEL_HEIGHT),
            "font.family": "DejaVu Sans",
            "font.size": 8,
            "grid.color": "#cccccc",
            "grid.alpha": 0.6,
            "grid.linewidth": 0.4,
            "legend.fontsize": 7.5,
            "legend.frameon": False,
            "legend.title_fontsize": 7.5,
            "lines.linewidth": 1.3,
            "lines.markersize": 3.5,
            "savefig.dpi": 200,
            "svg.fonttype": "none",
            "svg.hashsalt": "sgdphases",
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
        },
    )


def panels(
    count: int, columns: int | None = None, height: float = PANEL_HEIGHT, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of report width with `count` panels.

    Args:
        count: Number of panels.
        columns: Panels in a row; all by default.
        height: Height of a row in inches.
        share_y: Whether the panels have one vertical axis.

    Returns:
        The figure and its panels row by row.
    """
    columns = columns or count
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(PAGE_WIDTH, height * rows), sharey=share_y, squeeze=False
    )
    flat = list(axes.ravel())
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def ordered_colors(values: ArrayLike) -> list[str]:
    """Colours for ordered values such as learning rates, by rank: dark small, light large.

    Args:
        values: (count,) numbers; equal numbers share a colour.

    Returns:
        One hexadecimal colour per value.
    """
    numbers = np.asarray(values, dtype=np.float64)
    distinct, ranks = np.unique(numbers, return_inverse=True)
    steps = len(sns.color_palette(ORDERED_PALETTE, as_cmap=True).colors)
    wide = sns.color_palette(ORDERED_PALETTE, steps).as_hex()
    positions = np.linspace(*_PALETTE_RANGE, max(distinct.size, 2)) * (steps - 1)
    return [wide[round(positions[rank])] for rank in ranks.ravel()]


def evenly_chosen(values: ArrayLike, count: int) -> NDArray[np.float64]:
    """At most `count` of the distinct values, evenly spaced by rank, first and last included."""
    distinct = np.unique(np.asarray(values, dtype=np.float64))
    positions = np.linspace(0, distinct.size - 1, min(count, distinct.size))
    return np.asarray(distinct[np.rint(positions).astype(int)])


def draw_phase_lines(axis: Axes, critical: float, constants: Sequence[float] = (2.0, 4.0)) -> None:
    """Draw dashed vertical lines at learning rates c / lambda_0, with `c/λ₀` above each.

    Args:
        axis: Axis with the learning rate on the horizontal axis.
        critical: Where 2 / lambda_0 lies on that axis.
        constants: The numerators c.
    """
    for constant in constants:
        mark_learning_rate(axis, critical * constant / CRITICAL_CONSTANT, f"{constant:g}/λ₀")


def mark_learning_rate(axis: Axes, position: float, name: str) -> None:
    """Draw a dashed vertical line with its name above the frame, where there are no data."""
    axis.axvline(position, color=LINE_COLOR, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.5)
    axis.text(
        position,
        1.015,
        name,
        transform=axis.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=7,
        color=LINE_COLOR,
    )


def shade_divergent(axis: Axes, from_: float, label: str = "diverges") -> None:
    """Shade the learning rates at which training diverges, up to the present end of the axis.

    Args:
        axis: Axis with the learning rate on the horizontal axis.
        from_: Smallest rate that diverges.
        label: Text in the shade.
    """
    left, right = axis.get_xlim()
    axis.axvspan(from_, right, color=SHADE_COLOR, linewidth=0, zorder=0)
    axis.set_xlim(left, right)
    logarithmic = axis.get_xscale() == "log"
    middle = np.sqrt(from_ * right) if logarithmic else (from_ + right) / 2
    axis.text(
        float(middle),
        0.5,
        label,
        transform=axis.get_xaxis_transform(),
        ha="center",
        va="center",
        rotation=90,
        fontsize=7,
        color=LINE_COLOR,
    )


def name_panel(axis: Axes, letter: str, text: str = "") -> None:
    """Write `(letter) text` above the upper left corner of a panel."""
    axis.set_title(f"({letter}) {text}".rstrip(), pad=8)


def label_short_axes(figure: Figure) -> None:
    """Name 1, 2 and 5 of each decade as plain numbers on logarithmic axes of under two decades.

    Elsewhere, and where a plot has named its own ticks, nothing changes.

    Args:
        figure: A drawn figure.
    """
    for axis in figure.axes:
        for part, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            formatters = (part.get_major_formatter(), part.get_minor_formatter())
            own = any(type(formatter) is not LogFormatterSciNotation for formatter in formatters)
            if own or part.get_scale() != "log" or limits[1] >= 100 * limits[0]:
                continue
            inches = axis.get_position().width * figure.get_figwidth()
            if part is axis.xaxis and inches < _INCHES_PER_DECADE * np.log10(limits[1] / limits[0]):
                part.set_minor_formatter(NullFormatter())
                continue
            part.set_minor_locator(LogLocator(subs=(2, 5)))
            part.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            part.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
