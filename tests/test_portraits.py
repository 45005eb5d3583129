"""The regions of a portrait, on one run of each kind."""

import numpy as np
import pytest

from sgdphases.portraits import EDGES, REGIONS, PortraitRules, classify_cells, is_below_edge

# status, initial, peak and final loss, region
CASES = [
    ("finished", 1.0, 1.0, 0.95, "untrained"),
    ("finished", 1.0, 1.0, 0.89, "convergent"),
    ("finished", 1.0, 1.04, 0.1, "convergent"),
    ("finished", 1.0, 1.06, 0.1, "catapult"),
    ("stopped", 1.0, 5.0, 0.0, "catapult"),
    ("finished", 1.0, 1.2, 1.1, "unsettled"),
    ("diverged", 1.0, np.inf, np.nan, "divergent"),
    ("diverged", 1.0, 1.0, 0.1, "divergent"),
]


def test_each_kind_of_run_has_its_region():
    status, initial, peak, final, expected = zip(*CASES, strict=True)
    found = classify_cells(PortraitRules(), status, initial, peak, final)
    assert found.tolist() == list(expected)
    assert set(expected) == set(REGIONS)


def test_losses_count_from_the_smallest_one():
    """Of 0.69, only 0.11 can be lost: a fall to 0.65 is more than a third of it."""
    arguments = (["finished"], [0.693], [0.693], [0.65])
    assert classify_cells(PortraitRules(), *arguments).tolist() == ["untrained"]
    assert classify_cells(PortraitRules(), *arguments, 0.582).tolist() == ["convergent"]


def test_an_experiment_may_change_the_rules():
    assert PortraitRules.of({}) == PortraitRules.of({"portrait": None}) == PortraitRules()
    rules = PortraitRules.of({"portrait": {"trained_loss": 0.5, "peak_factor": 2.0}})
    found = classify_cells(rules, ["finished"] * 2, [1.0] * 2, [1.5, 1.0], [0.4, 0.6])
    assert found.tolist() == ["convergent", "untrained"]
    with pytest.raises(TypeError):
        PortraitRules.of({"portrait": {"trained": 0.5}})


# Edges below which a run behaves as it does, by final and peak loss of a run that starts at 1.
SIDES = [
    ("finished", 1.0, 0.95, ["training", "catapult", "divergence"]),
    ("finished", 1.0, 0.5, ["catapult", "divergence"]),
    ("finished", 1.0, 0.001, ["catapult", "convergence", "divergence"]),
    ("finished", 9.0, 0.001, ["convergence", "divergence"]),
    ("finished", 9.0, 2.0, ["training", "divergence"]),
    ("diverged", np.inf, np.nan, ["training"]),
    ("diverged", 1.0, 0.001, ["training"]),
]


@pytest.mark.parametrize(("status", "peak", "final", "expected"), SIDES)
def test_each_kind_of_run_is_below_some_edges(status, peak, final, expected):
    count = len(EDGES)
    found = is_below_edge(
        PortraitRules(), EDGES, [status] * count, [1.0] * count, [peak] * count, [final] * count
    )
    assert [edge for edge, below in zip(EDGES, found, strict=True) if below] == expected
