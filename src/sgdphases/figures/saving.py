"""Save a figure and what it shows."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sgdphases.storage import replacing, write_parquet


def save_figure(
    figure: Figure, plotted: pd.DataFrame, pictures: Sequence[Path], numbers: Path
) -> None:
    """Write a figure and the plotted numbers, and close it.

    A panel that no run has anything to show in says so.

    Args:
        figure: The figure.
        plotted: What it shows.
        pictures: Files to draw to; the suffix gives the format.
        numbers: Parquet file for the plotted numbers.
    """
    for axes in figure.axes:
        if axes.axison and not axes.has_data():
            axes.text(0.5, 0.5, "no run to show here", transform=axes.transAxes, ha="center")
    for path in pictures:
        with replacing(path) as temporary:
            # Without a date the same numbers give the same bytes.
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, metadata=metadata)
    plt.close(figure)
    write_parquet(plotted, numbers)
