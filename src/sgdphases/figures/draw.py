"""Draw a figure by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sgdphases.figures import catapult, catapult_theory, richness_theory
from sgdphases.figures.style import apply_style
from sgdphases.storage import replacing, write_parquet
from sgdphases.tables import ExperimentTables

Plot = Callable[[ExperimentTables], tuple[Figure, pd.DataFrame]]

PLOTS: dict[str, Plot] = {**catapult.PLOTS, **catapult_theory.PLOTS, **richness_theory.PLOTS}


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
    for path in pictures:
        with replacing(path) as temporary:
            # Without a date the same numbers give the same bytes.
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, metadata=metadata)
    plt.close(figure)
    write_parquet(plotted, numbers)
