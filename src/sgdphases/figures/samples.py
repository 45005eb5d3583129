"""Sample sheets of generated datasets."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from sgdphases.datasets.loading import Dataset
from sgdphases.figures.saving import save_figure
from sgdphases.figures.style import PAGE_WIDTH, apply_style, name_panel

_COPIES = 10
# Pixels of background between images.
_GAP = 2


def draw_samples(dataset: Dataset, pictures: Sequence[Path], numbers: Path) -> None:
    """Draw one image of each class, and a sheet with ten of each.

    Args:
        dataset: Images with classes, as stored.
        pictures: Files to draw to; the suffix gives the format.
        numbers: Parquet file: one row per image, `panel`, `class`, `row` of the sheet, `index` in
            the dataset, and `pixels`, row by row.
    """
    apply_style()
    figure, plotted = plot_samples(dataset)
    save_figure(figure, plotted, pictures, numbers)


def plot_samples(dataset: Dataset) -> tuple[Figure, pd.DataFrame]:
    """Figure 7: (a) the first image of each class in a row; (b) the first ten, class by class."""
    assert dataset.train_labels is not None
    num_classes = dataset.num_outputs
    chosen = [
        np.flatnonzero(dataset.train_labels == label)[:_COPIES] for label in range(num_classes)
    ]
    num_copies = min(len(indices) for indices in chosen)
    figure, axes = plt.subplots(
        2,
        1,
        figsize=(PAGE_WIDTH, PAGE_WIDTH * (1 + num_copies) / num_classes + 0.7),
        height_ratios=[1, num_copies],
    )
    rows = []
    first = [indices[:1] for indices in chosen]
    several = [indices[:num_copies] for indices in chosen]
    for axis, letter, columns, text in zip(
        axes,
        "ab",
        (first, several),
        ("one of each class", "the first of each class below each other"),
        strict=True,
    ):
        axis.imshow(_sheet(dataset, columns), cmap="gray_r", interpolation="nearest")
        axis.set_axis_off()
        name_panel(axis, letter, text)
        for label, indices in enumerate(columns):
            for row, index in enumerate(indices):
                pixels = dataset.train_inputs[index].ravel().tolist()
                rows.append((letter, label, row, int(index), pixels))
    return figure, pd.DataFrame(rows, columns=["panel", "class", "row", "index", "pixels"])


def _sheet(dataset: Dataset, columns: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float64]:
    """Images below each other, the columns beside each other, (height, width) or with 3 colours."""
    images = np.stack([np.stack([dataset.train_inputs[i] for i in column]) for column in columns])
    pad = ((0, 0), (0, 0), (_GAP, _GAP), (_GAP, _GAP), (0, 0))
    padded = np.pad(images, pad)  # columns, rows, height, width, channels
    num_columns, num_rows, height, width, channels = padded.shape
    sheet = padded.transpose(1, 2, 0, 3, 4).reshape(
        num_rows * height, num_columns * width, channels
    )
    scaled: npt.NDArray[np.float64] = sheet / max(int(images.max()), 1)
    return scaled[..., 0] if channels == 1 else scaled
