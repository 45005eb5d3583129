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

    Args:
        figure: The figure.
        plotted: What it shows.
        pictures: Files to draw to; the suffix gives the format.
        numbers: Parquet file for the plotted numbers.
    """
    for path in pictures:
        with replacing(path) as temporary:
            # Without a date the same numbers give the same bytes.
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, metadata=metadata)
    plt.close(figure)
    write_parquet(plotted, numbers)
