"""The phases of a run, at and around their thresholds."""

import numpy as np
import pytest

from sgdphases.phases import CURVATURE_DROP, PEAK_FACTOR, classify_phase

NAN = float("nan")


@pytest.mark.parametrize(
    ("status", "losses", "curvatures", "expected"),
    [
        ("finished", (1.0, 1.0, 0.1), (4.0, 4.0), "lazy"),
        ("stopped", (1.0, 1.0, 0.1), (4.0, 4.0), "lazy"),
        ("finished", (1.0, 3.0, 0.1), (4.0, 1.0), "catapult"),
        ("stopped", (1.0, 3.0, 0.1), (4.0, 1.0), "catapult"),
        # A peak without a drop of the curvature, or the other way round, is no catapult.
        ("finished", (1.0, 3.0, 0.1), (4.0, 4.0), "lazy"),
        ("finished", (1.0, 1.0, 0.1), (4.0, 1.0), "lazy"),
        ("diverged", (1.0, np.inf, np.inf), (4.0, NAN), "divergent"),
        ("diverged", (1.0, NAN, NAN), (NAN, NAN), "divergent"),
        ("diverged", (1.0, 3.0, 0.1), (4.0, 1.0), "divergent"),
        # Finite, but not trained; or curvature not measured.
        ("finished", (1.0, 3.0, 1.0), (4.0, 1.0), None),
        ("finished", (1.0, 3.0, 2.0), (4.0, 1.0), None),
        ("finished", (1.0, 3.0, 0.1), (NAN, 1.0), None),
        ("finished", (1.0, 3.0, 0.1), (4.0, NAN), None),
        ("finished", (1.0, 3.0, NAN), (4.0, 1.0), None),
        # The thresholds themselves belong to the lazy phase.
        ("finished", (1.0, PEAK_FACTOR, 0.1), (4.0, 1.0), "lazy"),
        ("finished", (1.0, 1.0001 * PEAK_FACTOR, 0.1), (4.0, 1.0), "catapult"),
        ("finished", (1.0, 3.0, 0.1), (4.0, CURVATURE_DROP * 4.0), "lazy"),
        ("finished", (1.0, 3.0, 0.1), (4.0, 0.9999 * CURVATURE_DROP * 4.0), "catapult"),
    ],
)
def test_one_run(status, losses, curvatures, expected):
    (phase,) = classify_phase([status], *([value] for value in (*losses, *curvatures)))
    assert phase == expected


def test_runs_are_classified_one_by_one():
    phases = classify_phase(
        ["finished", "diverged", "finished", "stopped"],
        [1.0, 1.0, 1.0, 1.0],
        [1.0, 9.0, 9.0, 9.0],
        [0.5, 9.0, 0.5, 2.0],
        [4.0, 4.0, 4.0, 4.0],
        [4.0, NAN, 1.0, 1.0],
    )
    assert phases.tolist() == ["lazy", "divergent", "catapult", None]
    assert phases.dtype == object
    assert classify_phase([], [], [], [], [], []).tolist() == []


@pytest.mark.parametrize(
    ("peak", "final_eigenvalue", "phase"),
    [(1.06, 0.97, "catapult"), (1.04, 0.97, "lazy"), (1.06, 0.99, "lazy"), (1.04, 0.99, "lazy")],
)
def test_thresholds_are_those_of_the_documentation(peak, final_eigenvalue, phase):
    assert list(classify_phase(["finished"], [1.0], [peak], [0.5], [1.0], [final_eigenvalue])) == [
        phase
    ]
