"""Exponents of power laws, with intervals that know how finely the plane was searched."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """y = prefactor * x^exponent, with the interval of the exponent.

    Attributes:
        exponent: Slope of log y over log x.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        prefactor: Value of the fit at x = 1.
    """

    exponent: float
    low: float
    high: float
    prefactor: float

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """The fitted values at `x`."""
        return np.asarray(self.prefactor * np.asarray(x, dtype=float) ** self.exponent)


def fit_power_law(x: ArrayLike, y: ArrayLike, spacing: ArrayLike = 0.0) -> PowerLaw:
    r"""Fit a power law by least squares in logarithms.

    The interval is that of the residuals, in which seeds and curvature show, or that of values
    known only up to the spacing of their grid, whichever is wider:

    .. math:: \max(t \, s, z \sqrt{\langle \delta^2 \rangle / 12}) \Big/
        \sqrt{\sum_i (\log x_i - \langle \log x \rangle)^2}

    with the quantiles t of Student's distribution, as s is estimated, and z of the normal one.

    Args:
        x: (points,) abscissae above 0, two different ones at least.
        y: (points,) values above 0; several, of several seeds, may share an abscissa.
        spacing: Decades from one value of the grid of y to the next, one for all points or one for
            each: y is anywhere within that.

    Returns:
        The power law. Two points on a grid without spacing leave no freedom for an interval, which
        then has no width.

    Raises:
        ValueError: Too few points, or values that have no logarithm.
    """
    values = np.stack([np.asarray(x, dtype=float).ravel(), np.asarray(y, dtype=float).ravel()])
    if not ((values > 0).all() and np.isfinite(values).all()):
        raise ValueError("a power law needs finite values above 0")
    log_x, log_y = np.log(values)
    if np.unique(log_x).size < 2:
        raise ValueError(f"{np.unique(log_x).size} different abscissae; needed are two at least")
    centred = log_x - log_x.mean()
    spread = float(centred @ centred)
    exponent = float(centred @ log_y) / spread
    offset = float(log_y.mean() - exponent * log_x.mean())
    freedom = log_x.size - 2
    residuals = log_y - offset - exponent * log_x
    scatter = float(residuals @ residuals) / freedom if freedom else 0.0
    gridded = float(np.mean((np.log(10.0) * np.asarray(spacing, dtype=float)) ** 2)) / 12
    level = (1 + _CONFIDENCE) / 2
    scattered = float(stdtrit(freedom, level) * np.sqrt(scatter)) if freedom else 0.0
    width = max(scattered, float(ndtri(level) * np.sqrt(gridded))) / float(np.sqrt(spread))
    return PowerLaw(exponent, exponent - width, exponent + width, float(np.exp(offset)))
