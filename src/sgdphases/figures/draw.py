"""Draw a figure by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sgdphases.figures import catapult, catapult_theory, l2, l2_theory, richness_theory
from sgdphases.figures.saving import save_figure
from sgdphases.figures.style import apply_style
from sgdphases.tables import ExperimentTables

Plot = Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]

PLOTS: dict[str, Plot] = {
    **catapult.PLOTS,
    **catapult_theory.PLOTS,
    **l2.PLOTS,
    **l2_theory.PLOTS,
    **richness_theory.PLOTS,
}


def draw_figure(
    name: str, tables: ExperimentTables, pictures: Sequence[Path], numbers: Path
) -> None:
    """Draw a figure and keep the plotted numbers.

    Args:
        name: `<paper>/<figure>`.
        tables: The experiment that feeds it.
        pictures: Files to draw to; the suffix gives the format.
        numbers: Parquet file for the plotted numbers.
    """
    apply_style()
    figure, plotted = PLOTS[name](tables)
    save_figure(figure, plotted, pictures, numbers)
