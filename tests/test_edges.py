"""The coarse-to-fine scan against properties whose edges are known."""

import numpy as np
import pytest

from sgdphases.edges import find_edges


def scan(holds, first=1e-6, decades=12.0, rounds=3):
    first = np.atleast_1d(np.asarray(first, dtype=float))
    return find_edges(holds, first, decades, rates_per_decade=2, rounds=rounds)


def test_each_case_has_its_own_edge():
    targets = np.array([1.7e-4, 3.0, 2.2e5])
    edges = scan(lambda rates: rates < targets[:, None], first=[1e-6] * 3)
    assert edges.is_found.all()
    assert (edges.before < targets).all()
    assert (edges.beyond >= targets).all()
    np.testing.assert_allclose(edges.beyond / edges.before, 1, rtol=5e-3)


def test_every_round_narrows_the_bracket():
    widths = []
    for rounds in (1, 2, 3):
        edges = scan(lambda rates: rates < 1.3, rounds=rounds)
        widths.append(float(np.log10(edges.beyond / edges.before)[0]))
    assert widths == pytest.approx([1.0, 1.0 / 24, 1.0 / 24**2])


def test_the_first_stretch_counts_and_islands_beyond_it_do_not():
    def holds(rates):
        return ((rates > 1e-3) & (rates < 2e-1)) | (rates > 1e3)

    edges = scan(holds)
    assert edges.before[0] < 0.2 <= edges.beyond[0]


def test_an_island_that_a_coarse_rate_lands_on_does_not_hide_the_edge():
    """Beyond 0.4 the property holds near 1 only, where a rate of the first round is."""
    edges = scan(lambda rates: (rates < 0.4) | (np.abs(np.log10(rates)) < 0.01))
    assert edges.before[0] < 0.4 <= edges.beyond[0]


def test_a_range_that_begins_beyond_the_edge_does_not_take_an_island_for_it():
    """The property ceases to hold at 1e-8, below the range, and holds once more from 1 to 20."""

    def holds(rates):
        return (rates < 1e-8) | ((rates > 1) & (rates < 20))

    edges = find_edges(holds, np.array([1e-6, 1e-6]), 12.0, 2, 3, holds_below=[True, False])
    assert edges.is_found.tolist() == [False, True]
    assert edges.before[0] == pytest.approx(1e-6)
    assert edges.before[1] < 20 <= edges.beyond[1]


@pytest.mark.parametrize(("value", "end"), [(True, 1e6), (False, 1e-6)])
def test_a_range_without_an_edge_says_how_far_it_was_searched(value, end):
    edges = scan(lambda rates: np.full(rates.shape, value))
    assert not edges.is_found.any()
    assert np.isnan(edges.beyond).all()
    assert edges.before[0] == pytest.approx(end)


def test_a_case_without_an_edge_does_not_disturb_another():
    def holds(rates):
        return np.stack([np.ones(rates.shape[1], bool), rates[1] < 0.5])

    edges = scan(holds, first=[1e-6, 1e-6])
    assert edges.is_found.tolist() == [False, True]
    assert edges.before[1] < 0.5 <= edges.beyond[1]


def test_the_shape_is_the_same_in_every_round():
    shapes = set()

    def holds(rates):
        shapes.add(rates.shape)
        return rates < 1.0

    scan(holds)
    assert shapes == {(1, 25)}
