"""Fitted power laws: exact laws, intervals that cover, and a second library."""

import numpy as np
import pytest
from scipy import stats

from sgdphases.exponents import fit_power_law

X = np.geomspace(1e-4, 1e-1, 13)


def test_an_exact_law_is_recovered_without_width():
    law = fit_power_law(X, 3.0 * X**-1.3)
    assert law.exponent == pytest.approx(-1.3)
    assert law.prefactor == pytest.approx(3.0)
    assert law.high - law.low < 1e-12
    np.testing.assert_allclose(law(X), 3.0 * X**-1.3)


def test_interval_is_that_of_linear_regression():
    y = X**2 * np.exp(0.1 * np.random.default_rng(0).standard_normal(X.size))
    law = fit_power_law(X, y)
    reference = stats.linregress(np.log(X), np.log(y))
    assert law.exponent == pytest.approx(reference.slope)
    quantile = stats.t.ppf(0.975, X.size - 2)
    assert law.high - law.exponent == pytest.approx(quantile * reference.stderr)


@pytest.mark.parametrize("x", [X, X[:3]])
def test_interval_of_values_on_a_grid_covers_the_law(x):
    """Values rounded to a grid of fifths of a decade, over many offsets of the grid."""
    covered = []
    for offset in np.linspace(0, 0.2, 40, endpoint=False):
        true = np.log10(0.7 * x**1.5)
        y = 10 ** (np.round((true - offset) / 0.2) * 0.2 + offset)
        law = fit_power_law(x, y, spacing=0.2)
        covered.append(law.low <= 1.5 <= law.high)
    assert np.mean(covered) >= 0.95


def test_spacing_widens_what_the_residuals_would_hide():
    y = 10.0 ** np.round(np.log10(X))
    assert fit_power_law(X[::4], y[::4]).high == pytest.approx(1.0)
    assert fit_power_law(X[::4], y[::4], spacing=1.0).high > 1.2


def test_several_seeds_share_an_abscissa():
    seeds = np.array([0.9, 1.0, 1.1])
    x, y = np.repeat(X, 3), (X[:, None] * seeds).ravel()
    law = fit_power_law(x, y)
    assert law.exponent == pytest.approx(1.0)
    assert law.low < 1.0 < law.high


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0], [1.0], "two at least"),
        ([1.0, 1.0], [1.0, 2.0], "two at least"),
        ([1.0, 2.0], [0.0, 1.0], "above 0"),
        ([1.0, 2.0], [np.nan, 1.0], "finite"),
    ],
)
def test_what_has_no_power_law_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(x, y)
