"""Mean, spread and range of an array larger than the memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.arrays import read_blocks
from sgdphases.datasets.progress import Progress

# In float64 a block takes eight times as much as its pixels, which should stay in the cache.
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Statistics:
    """What the values of an array are like.

    Attributes:
        minimum: The smallest.
        maximum: The largest.
        channel_mean: Mean for each channel, shape (channels,).
        channel_std: Standard deviation for each channel, shape (channels,).
    """

    minimum: float
    maximum: float
    channel_mean: npt.NDArray[np.float64]
    channel_std: npt.NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self.channel_mean.mean())

    @property
    def std(self) -> float:
        """Standard deviation of all values."""
        return float(np.sqrt(np.square(self.channel_std).mean() + self.channel_mean.var()))

    def describe(self, per_channel: bool) -> dict[str, Any]:
        """What a manifest says of them.

        Args:
            per_channel: Whether the channels mean something.
        """
        return {
            "min": self.minimum,
            "max": self.maximum,
            "mean": self.mean,
            "std": self.std,
            "channel_mean": self.channel_mean.tolist() if per_channel else None,
            "channel_std": self.channel_std.tolist() if per_channel else None,
        }


def input_statistics(path: Path, num_channels: int) -> Statistics:
    r"""Compute statistics in one pass and in float64.

    Two parts with n and m values, means a and b, and sums of squared deviations S and T have
    together the mean and the sum of squared deviations

    .. math::
        a + (b - a) \frac{m}{n + m}, \qquad S + T + (b - a)^2 \frac{n m}{n + m},

    without the cancellation that a sum of squares suffers from.

    Args:
        path: An array file with at least one sample.
        num_channels: How many indices of the last axis are kept apart; 1 for all together.

    Returns:
        The statistics.

    Reference:
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance.
    """
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    progress = Progress(f"{path.stem}: mean and standard deviation", shape[0])
    count = 0
    # For each position within a sample: sums along the first axis are the fast ones.
    mean = squares = np.zeros(int(np.prod(shape[1:])))
    lowest, highest = [], []
    for block in read_blocks(path, BLOCK_BYTES):
        rows = block.reshape(len(block), -1)
        lowest.append(rows.min().item())
        highest.append(rows.max().item())
        centred = rows.astype(np.float64)
        block_mean = centred.mean(axis=0)
        centred -= block_mean
        share = len(rows) / (count + len(rows))
        shift = block_mean - mean
        squares = squares + np.square(centred, out=centred).sum(axis=0)
        squares += shift**2 * (count * share)
        mean = mean + shift * share
        count += len(rows)
        progress.update(count)
    means = mean.reshape(-1, num_channels)
    variances = squares.reshape(-1, num_channels) / count
    return Statistics(
        minimum=min(lowest),
        maximum=max(highest),
        channel_mean=means.mean(axis=0),
        channel_std=np.sqrt(variances.mean(axis=0) + means.var(axis=0)),
    )
