"""Draw a figure by name.

Every module of this folder may name figures in a dictionary `PLOTS`, written out at its top level:
`<paper>/<figure>` to the function that draws it. Only the module of the figure is imported.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sgdphases.figures.saving import save_figure
from sgdphases.figures.style import apply_style, label_short_axes
from sgdphases.tables import ExperimentTables

Plot = Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]


def plots_of(module: str) -> dict[str, Plot]:
    """The figures that a module of this folder draws, by `<paper>/<figure>`."""
    plots: dict[str, Plot] = import_module(f"sgdphases.figures.{module}").PLOTS
    return plots


def draw_figure(
    name: str, module: str, tables: ExperimentTables, pictures: Sequence[Path], numbers: Path
) -> None:
    """Draw a figure and keep the plotted numbers.

    Args:
        name: `<paper>/<figure>`.
        module: The module of this folder that draws it.
        tables: The experiment that feeds it.
        pictures: Files to draw to; the suffix gives the format.
        numbers: Parquet file for the plotted numbers.
    """
    apply_style()
    figure, plotted = plots_of(module)[name](tables)
    label_short_axes(figure)
    save_figure(figure, plotted, pictures, numbers)
