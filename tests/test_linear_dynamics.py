"""Linear dynamics after the catapult: what tables say, the claims, the figures."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sgdphases.claims.catapult_linearized import MEASURES
from sgdphases.claims.evaluate import NOT_REPRODUCED, NOT_RUN, REPRODUCED, evaluate_claims
from sgdphases.figures import style
from sgdphases.figures.catapult_linearized import PLOTS
from sgdphases.linear_dynamics import (
    accuracies_by_kind,
    geometric_means,
    kernel_changes,
    tracked_rates,
)
from sgdphases.tables import ExperimentTables

RATES = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
SPEC = {"scale": "quick", "dataset": {"name": "digits"}}


def make_linearized(leaves_at=2.0, start_survives=False):
    """The network linearised at step 10 has its accuracy up to a rate; that at step 0 diverges."""
    rows = []
    for seed in (0, 1):
        for rate in RATES:
            for kind in (None, 0, 10):
                diverged = kind == 0 and rate > 1 and not start_survives
                gap = 0.1 if kind == 10 and rate > leaves_at else 0.005
                accuracy = 0.8 + 0.01 * seed + (0 if kind is None else (-1) ** seed * gap)
                rows.append(
                    {
                        "run_id": f"{seed}-{rate}-{kind}",
                        "seed": seed,
                        "relative_learning_rate": rate,
                        "linearize_at": kind,
                        "status": "diverged" if diverged else "stopped",
                        "final_test_accuracy": np.nan if diverged else accuracy,
                    }
                )
    runs = pd.DataFrame(rows)
    runs["linearize_at"] = runs["linearize_at"].astype("Int64")
    return ExperimentTables(SPEC, runs, pd.DataFrame(), None)


def make_changes(exponent=-0.5, rate=1.5):
    runs, history = [], []
    for width in (64, 128, 256):
        for seed in (0, 1, 2):
            run_id = f"{width}-{seed}"
            runs.append(
                {
                    "run_id": run_id,
                    "width": width,
                    "seed": seed,
                    "relative_learning_rate": rate,
                    "status": "finished",
                }
            )
            for step in (0, 50, 100, 1000):
                change = 0.0 if step <= 50 else 10.0 ** (seed - 1) * width**exponent * step / 1000
                history.append({"run_id": run_id, "step": step, "kernel_change": change})
            history.append({"run_id": run_id, "step": 200, "kernel_change": np.nan})
    return ExperimentTables(SPEC, pd.DataFrame(runs), pd.DataFrame(history), None)


def score(tables, claim):
    claims = evaluate_claims({f"catapult/{MEASURES[claim].experiment}": tables})
    return claims.set_index("id").loc[claim]


def test_accuracies_are_compared_seed_by_seed():
    accuracies = accuracies_by_kind(make_linearized().runs).set_index(
        ["linearize_at", "relative_learning_rate"]
    )
    # The seeds differ by +0.1 and -0.1, which the mean accuracies hide.
    assert accuracies.loc[(10, 2.5), "accuracy"] == pytest.approx(0.805)
    assert accuracies.loc[(10, 2.5), "difference"] == pytest.approx(0.1)
    assert accuracies.loc[(-1, 2.5), "difference"] == 0
    assert accuracies.loc[(-1, 2.5), ["lowest", "highest"]].tolist() == pytest.approx([0.8, 0.81])


def test_seeds_share_rates_that_differ_by_rounding():
    runs = make_linearized().runs
    expected = accuracies_by_kind(runs)
    is_second = runs["seed"] == 1
    runs.loc[is_second, "relative_learning_rate"] *= 1 - 2**-52
    pd.testing.assert_frame_equal(accuracies_by_kind(runs), expected)


def test_a_rate_at_which_a_seed_diverged_has_no_accuracy():
    tables = make_linearized()
    tables.runs.loc[tables.runs["run_id"] == "1-1.5-10", "status"] = "diverged"
    accuracies = accuracies_by_kind(tables.runs)
    rows = accuracies.set_index(["linearize_at", "relative_learning_rate"])
    assert rows.loc[(10, 1.5)].isna().all()
    assert tracked_rates(accuracies) == (1.0, 1.5)


@pytest.mark.parametrize(
    ("leaves_at", "expected"), [(2.0, (2.0, 2.5)), (0.1, (0.0, 0.5)), (9.0, (3.0, np.inf))]
)
def test_rates_up_to_which_accuracies_agree(leaves_at, expected):
    assert tracked_rates(accuracies_by_kind(make_linearized(leaves_at).runs)) == expected


def test_the_linearised_network_tracks_up_to_four():
    row = score(make_linearized(), "CAT-20")
    assert (row["verdict"], row["measured"], row["ci_high"]) == (REPRODUCED, 4, 5)
    for other in (make_linearized(9.0), make_linearized(1.0)):
        assert score(other, "CAT-20")["verdict"] == NOT_REPRODUCED
    survives = score(make_linearized(start_survives=True), "CAT-20")
    assert survives["verdict"] == NOT_REPRODUCED
    assert survives["detail"].startswith("8 of 8 runs linearised at step 0 survive")
    tables = make_linearized()
    late = replace(tables, runs=tables.runs[tables.runs["linearize_at"] != 0])
    assert score(late, "CAT-20")["verdict"] == NOT_RUN
    alone = replace(tables, runs=tables.runs[tables.runs["linearize_at"].isna()])
    assert score(alone, "CAT-20")["verdict"] == NOT_RUN


def test_changes_of_kernels_fall_with_the_width():
    changes = kernel_changes(make_changes())
    assert set(changes["step"]) == {100, 1000}
    means = geometric_means(changes).set_index(["width", "step"])["kernel_change"]
    assert means[(64, 1000)] == pytest.approx(1 / 8)
    row = score(make_changes(), "CAT-21")
    assert row["verdict"] == REPRODUCED
    assert row["measured"] == pytest.approx(2**-0.5)
    assert "0.125 at 64" in row["detail"]
    assert score(make_changes(0.1), "CAT-21")["verdict"] == NOT_REPRODUCED
    assert score(make_changes(rate=0.9), "CAT-21")["verdict"] == NOT_RUN


@pytest.mark.parametrize("name", PLOTS)
def test_every_figure_draws_what_it_reports(name):
    style.apply_style()
    tables = make_changes() if name.endswith("S13b") else make_linearized()
    figure, plotted = PLOTS[name](tables)
    assert len(plotted) > 0
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.lines for axis in figure.axes)
    plt.close("all")
