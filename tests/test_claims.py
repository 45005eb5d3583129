"""Claims: the table, the verdicts, and the measures of trained networks on made-up tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sgdphases.claims import catapult
from sgdphases.claims.evaluate import (
    MEASURES,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    evaluate_claims,
    load_claims,
    verdict_of,
    write_scorecard,
)
from sgdphases.tables import ExperimentTables

# The ranges that follow from the tolerances of the claims' table.
RANGES = {
    "CAT-01": (None, 1e-10),
    "CAT-02": (0.98, 1.02),
    "CAT-03": (1.99, 2.01),
    "CAT-04": (0.99, 1.01),
    "CAT-05": (1, 1),
    "CAT-06": (1, 1),
    "CAT-07": (None, 1),
    "CAT-08": (-1.05, -0.95),
    "CAT-09": (-1.12, -0.88),
    "CAT-10": (1, 1),
    "CAT-11": (None, 1e-10),
    "CAT-12": (0.9, 1.1),
    "CAT-13": (5.625, 6.875),
    "CAT-14": (9, 15),
    "CAT-15": (None, 9),
    "CAT-16": (1, 1),
    "CAT-17": (0.144, 0.216),
    "CAT-18": (8.4, 15.6),
    "CAT-19": (7, 12),
    "CAT-20": (3.2, 4.8),
    "CAT-21": (None, 1),
    "CAT-22": (5e-5, 2e-4),
    "CAT-23": (0.5, 1),
    "CAT-24": (-0.02, 0.02),
    "CAT-25": (0.112, 0.168),
    "CAT-26": (2, 12),
    "CAT-27": (2, None),
    "CAT-28": (0.962, 0.968),
    "CAT-29": (0.3, 0.5),
    "CAT-30": (None, 0.04),
    "CAT-31": (1700, 2300),
    "CAT-32": (None, 0.05),
    "CAT-33": (2.159, 2.921),
    "CAT-34": (1, 1),
    "CAT-35": (0.095, 0.105),
    "CAT-36": (0.99, 1.01),
    "CAT-37": (None, 0.05),
    "CAT-38": (0.048, 0.072),
    "CAT-39": (3, 5),
    "CAT-40": (25.176, 37.764),
    "CAT-41": (0.8, 1.2),
    "CAT-42": (None, 0),
    "CAT-43": (None, 1e-8),
    "RICH-01": (-0.01, 0.01),
    "RICH-02": (1.95, 2.05),
    "RICH-03": (-0.03, 0.03),
    "RICH-04": (1.95, 2.05),
    "RICH-05": (0.98, 1.02),
    "RICH-06": (-0.03, 0.03),
    "RICH-07": (-0.1, 0.1),
    "RICH-08": (0.9, 1.1),
    "RICH-09": (0.98, 1.02),
    "RICH-10": (None, 1e-4),
    "RICH-11": (1 - 1e-6, 1 + 1e-6),
    "RICH-12": (0.99, 1.01),
    "RICH-13": (1.98, 2.02),
    "RICH-14": (-2.1, -1.9),
    "RICH-15": (None, 5),
    "RICH-16": (None, 1.01),
    "RICH-16b": (0.98, 1.02),
    "RICH-17": (None, 1e-10),
    "RICH-18": (0.95, 1.05),
    "RICH-19": (-0.1, 0.1),
    "RICH-20": (1, 1),
    "RICH-21": (-0.05, 0.05),
    "RICH-28": (-0.2, 0.2),
    "RICH-29": (0, None),
    "RICH-30": (0.85, 1.15),
    "RICH-36": (1e4 / 3, 3e4),
    "RICH-38": (0, None),
    "RICH-40": (-0.2, 0.2),
    "RICH-41": (-0.2, 0.2),
    "RICH-42": (-0.25, 0.25),
    "RICH-44": (0.8, 1.2),
    "RICH-45": (None, 0.5),
    "RICH-46": (140, 160),
    "RICH-22": (-0.07, 0.07),
    "RICH-23": (-0.15, 0.15),
    "RICH-24": (10, 10),
    "RICH-25": (None, 0.5),
    "RICH-26": (0.8, 1.2),
    "RICH-27": (1, None),
    "RICH-31": (-0.005, None),
    "RICH-32": (None, 0),
    "RICH-33": (None, 0.01),
    "RICH-34": (1e-4, 1e-2),
    "RICH-35": (None, 0.05),
    "RICH-37": (None, 2),
    "RICH-39": (None, 0.05),
    "RICH-43": (0.99, None),
    "RICH-47": (None, 1e-12),
    "RICH-48": (-2.01, -1.99),
    "RICH-49": (-0.1, 0.1),
}
RATES = [0.5, 0.9, 1.5, 3.0, 5.0, 6.0, 6.5, 7.0]
EDGE = 6.0


def make_tables(dataset="mnist", seeds=(0, 1), critical=6.25, transient=3):
    """A caricature of figure 3: lazy up to 1, catapult up to EDGE, divergent beyond."""
    runs, history = [], []
    for seed in seeds:
        for rate in RATES:
            run_id = f"{seed}-{rate}"
            diverges, jumps = rate > EDGE, rate > 1
            final = np.inf if diverges else 0.1
            curvature = 2 / critical
            ends_at = curvature if not jumps else 0.5 * curvature / rate
            runs.append(
                {
                    "run_id": run_id,
                    "seed": seed,
                    "momentum": 0.0,
                    "learning_rate": rate * critical,
                    "relative_learning_rate": rate,
                    "status": "diverged" if diverges else "finished",
                    "phase": "divergent" if diverges else "catapult" if jumps else "lazy",
                    "initial_train_loss": 1.0,
                    "final_train_loss": final,
                    "final_test_accuracy": 0.8 + 0.02 * rate if rate <= EDGE else 0.1,
                    "initial_ntk_top_eigenvalue": curvature,
                    "final_ntk_top_eigenvalue": np.nan if diverges else ends_at,
                }
            )
            for step in range(8):
                risen = jumps and 0 < step < transient
                loss = 5.0 if risen else 1.0 if step == 0 else 0.5
                history.append({"run_id": run_id, "step": step, "train_loss": loss})
    curvature = pd.DataFrame(
        [
            {"seed": s, "batch": b, "width": 2048, "ntk_top_eigenvalue": 2 / critical}
            for s in seeds
            for b in range(2)
        ]
    )
    spec = {"scale": "paper", "dataset": {"name": dataset}, "curvature": {}}
    return ExperimentTables(spec, pd.DataFrame(runs), pd.DataFrame(history), curvature)


def score(tables, claim, experiment="catapult/fc_mnist"):
    claims = evaluate_claims({experiment: tables})
    return claims.set_index("id").loc[claim]


def test_table_holds_the_claims_of_four_papers():
    claims = load_claims()
    assert len(claims) == 165
    assert claims["id"].is_unique
    counts = claims["paper"].value_counts().to_dict()
    assert counts == {"richness": 50, "catapult": 43, "l2": 39, "temperature": 33}
    assert (claims[["figure", "quantity", "expected"]] != "").all(axis=None)


def test_every_measure_belongs_to_a_claim():
    assert set(MEASURES) <= set(load_claims()["id"])


def test_ranges_are_those_of_the_tolerances():
    other = ("L2-", "TMP-")
    assert set(RANGES) == {claim for claim in MEASURES if not claim.startswith(other)}
    for claim, (low, high) in RANGES.items():
        measure = MEASURES[claim]
        assert (low is None) == (measure.low is None), claim
        assert (high is None) == (measure.high is None), claim
        assert measure.low is None or measure.low == pytest.approx(low), claim
        assert measure.high is None or measure.high == pytest.approx(high), claim


@pytest.mark.parametrize(
    ("measured", "low", "high", "verdict"),
    [
        (1.0, 0.9, 1.1, REPRODUCED),
        (0.9, 0.9, 1.1, REPRODUCED),
        (0.89, 0.9, 1.1, NOT_REPRODUCED),
        (1.11, 0.9, 1.1, NOT_REPRODUCED),
        (5.0, None, 9, REPRODUCED),
        (10.0, None, 9, NOT_REPRODUCED),
        (10.0, 9, None, REPRODUCED),
        (np.nan, None, 9, NOT_REPRODUCED),
    ],
)
def test_verdict(measured, low, high, verdict):
    assert verdict_of(measured, low, high) == verdict


@pytest.mark.parametrize(
    ("claim", "measured"), [("CAT-13", 6.25), ("CAT-14", 12), ("CAT-15", 3), ("CAT-16", 1)]
)
def test_caricature_reproduces(claim, measured):
    row = score(make_tables(), claim)
    assert row["measured"] == pytest.approx(measured)
    assert row["verdict"] == REPRODUCED


def test_critical_rate_averages_eigenvalues_over_batches_first():
    tables = make_tables(seeds=(0,))
    tables.curvature["ntk_top_eigenvalue"] = [0.2, 0.6]
    assert catapult.critical_rate(tables).value == pytest.approx(2 / 0.4)


def test_critical_rate_off_by_a_fifth_is_not_reproduced():
    assert score(make_tables(critical=7.5), "CAT-13")["verdict"] == NOT_REPRODUCED


def make_initial_tables(dataset="cifar10", scale="paper", factor=1.0):
    """The printed critical rates of the networks on CIFAR-10, times a factor."""
    root = np.sqrt(2)
    networks = [
        ("wrn28_10", "standard", root, 0.18),
        ("wrn28_10", "standard", 1.0, 0.14),
        ("wrn28_10", "ntk", root, 31.47),
        ("cat_cnn", "standard", root, 1e-4),
    ]
    rows = [
        {
            "model": model,
            "parametrisation": parametrisation,
            "weight_scale": weight_scale,
            "width": 16,
            "seed": seed,
            "batch": batch,
            "ntk_top_eigenvalue": 2 / (factor * rate) * (1 + sign * 0.1),
            "ntk_residual": 1e-5,
        }
        for model, parametrisation, weight_scale, rate in networks
        for seed in (0, 1)
        for batch, sign in enumerate((-1, 1))
    ]
    curvature = pd.DataFrame(rows)
    spec = {"scale": scale, "dataset": {"name": dataset}, "curvature": {"batch_size": 256}}
    return ExperimentTables(spec, pd.DataFrame(), pd.DataFrame(), curvature)


@pytest.mark.parametrize(
    ("claim", "printed"),
    [("CAT-17", 0.18), ("CAT-22", 1e-4), ("CAT-25", 0.14), ("CAT-40", 31.47)],
)
def test_critical_rates_of_the_networks_on_cifar10(claim, printed):
    experiment = "catapult/initial_curvature"
    row = score(make_initial_tables(), claim, experiment)
    assert row["verdict"] == REPRODUCED
    assert row["measured"] == pytest.approx(printed)
    assert "2 batches of 256 samples" in row["detail"]
    far = score(make_initial_tables(factor=2.5), claim, experiment)
    assert far["verdict"] == NOT_REPRODUCED
    for other in ({"dataset": "digits"}, {"scale": "quick"}):
        row = score(make_initial_tables(**other), claim, experiment)
        assert row["verdict"] == NOT_RUN
        assert "scale=paper data=published" in row["detail"]


def test_claim_about_mnist_is_not_run_on_stand_in_data():
    row = score(make_tables(dataset="digits"), "CAT-13")
    assert row["verdict"] == NOT_RUN
    assert np.isnan(row["measured"])
    assert "mnist" in row["detail"]
    other = score(make_tables(dataset="digits"), "CAT-14")
    assert (other["verdict"], other["dataset"]) == (REPRODUCED, "digits")


def test_edge_that_the_grid_does_not_bracket_is_not_run():
    tables = make_tables()
    below = replace(tables, runs=tables.runs[tables.runs["relative_learning_rate"] <= EDGE])
    assert score(below, "CAT-14")["verdict"] == NOT_RUN


def test_finite_run_that_does_not_train_is_beyond_the_edge():
    tables = make_tables()
    runs = tables.runs.copy()
    runs.loc[runs["relative_learning_rate"] == EDGE, "final_train_loss"] = 3.0
    assert score(replace(tables, runs=runs), "CAT-14")["measured"] == pytest.approx(10)


def test_long_transient_is_not_reproduced():
    tables = make_tables(transient=3)
    history = tables.history.copy()
    history["step"] *= 5
    row = score(replace(tables, history=history), "CAT-15")
    assert (row["measured"], row["verdict"]) == (15, NOT_REPRODUCED)


def test_transient_that_does_not_end_is_not_run():
    assert score(make_tables(transient=9), "CAT-15")["verdict"] == NOT_RUN


@pytest.mark.parametrize(("rate", "factor"), [(0.5, 0.9), (0.5, 1.1), (3.0, 20.0)])
def test_curvature_outside_its_limit_is_not_reproduced(rate, factor):
    tables = make_tables()
    runs = tables.runs.copy()
    runs.loc[runs["relative_learning_rate"] == rate, "final_ntk_top_eigenvalue"] *= factor
    row = score(replace(tables, runs=runs), "CAT-16")
    assert row["measured"] < 1
    assert row["verdict"] == NOT_REPRODUCED


def test_best_rate_is_that_of_the_mean_over_seeds():
    tables = make_tables()
    row = score(tables, "CAT-19", "catapult/fc1_mnist512")
    assert (row["measured"], row["verdict"]) == (12, REPRODUCED)
    runs = tables.runs.copy()
    runs.loc[runs["relative_learning_rate"] == 0.5, "final_test_accuracy"] = 0.99
    row = score(replace(tables, runs=runs), "CAT-19", "catapult/fc1_mnist512")
    assert (row["measured"], row["verdict"]) == (1, NOT_REPRODUCED)


def test_effective_critical_rate_is_where_the_curvature_crosses_the_middle():
    rates = np.array([0.01, 0.03, 0.1, 0.3, 1.0])
    runs = pd.DataFrame(
        {
            "seed": 0,
            "momentum": 0.9,
            "relative_learning_rate": rates,
            "status": "finished",
            "initial_train_loss": 1.0,
            "final_train_loss": 0.1,
            "initial_ntk_top_eigenvalue": 1.0,
            "final_ntk_top_eigenvalue": [0.9, 0.8, 0.1, 0.01, 0.01],
        }
    )
    tables = replace(make_tables(), runs=runs)
    assert catapult.effective_critical_rate(tables).value == pytest.approx(0.1)


def test_run_above_the_critical_rate_that_keeps_its_curvature_counts_against_the_claim():
    tables = make_tables()
    runs = tables.runs.copy()
    stays = runs["relative_learning_rate"] == 3.0
    runs.loc[stays, "final_ntk_top_eigenvalue"] = runs.loc[stays, "initial_ntk_top_eigenvalue"]
    runs.loc[stays, "phase"] = "lazy"
    assert score(replace(tables, runs=runs), "CAT-16")["verdict"] == NOT_REPRODUCED


def test_rate_at_which_one_seed_diverges_is_no_candidate_for_the_best():
    tables = make_tables()
    runs = tables.runs.copy()
    runs.loc[runs["run_id"] == "0-7.0", ["status", "final_test_accuracy"]] = ["finished", 0.99]
    row = score(replace(tables, runs=runs), "CAT-19", "catapult/fc1_mnist512")
    assert row["measured"] == 12


def make_scalar_runs():
    rates = np.array([1.0, 5.0, 7.0, 10.0])
    runs = pd.DataFrame(
        {
            "relative_learning_rate": rates,
            "status": "finished",
            "final_ntk_top_eigenvalue": np.where(rates > 4, 0.0, 0.4),
        }
    )
    return replace(make_tables(dataset="single_point"), runs=runs)


def test_dead_outputs_beyond_the_largest_rate():
    tables = make_scalar_runs()
    assert score(tables, "CAT-34", "catapult/scalar_relu")["verdict"] == REPRODUCED


@pytest.mark.parametrize("change", [{"status": "diverged"}, {"final_ntk_top_eigenvalue": 0.1}])
def test_run_that_diverges_or_lives_on_is_not_dead(change):
    tables = make_scalar_runs()
    tables.runs.loc[3, list(change)] = list(change.values())
    row = score(tables, "CAT-34", "catapult/scalar_relu")
    assert (row["measured"], row["verdict"]) == (0.5, NOT_REPRODUCED)


def make_momentum_tables(**final):
    names = ["tanh", "identity", "relu"]
    runs = pd.DataFrame({"run_id": names, "activation": names, "momentum": 0.9})
    history = pd.DataFrame(
        [
            {"run_id": name, "step": step, "ntk_top_eigenvalue": 2.0 * value}
            for name in names
            for step, value in enumerate((1.0, final[name]))
        ]
    )
    return replace(make_tables(), runs=runs, history=history)


@pytest.mark.parametrize(
    ("final", "verdict"),
    [
        ({"tanh": 0.98, "identity": 1.03, "relu": 0.5}, REPRODUCED),
        ({"tanh": 0.90, "identity": 1.0, "relu": 0.5}, NOT_REPRODUCED),
        ({"tanh": 1.0, "identity": 1.1, "relu": 0.5}, NOT_REPRODUCED),
        # Nothing sets ReLU apart.
        ({"tanh": 1.0, "identity": 1.0, "relu": 0.99}, NOT_REPRODUCED),
    ],
)
def test_constancy_with_momentum(final, verdict):
    row = score(make_momentum_tables(**final), "CAT-37", "catapult/fc2_activations_momentum")
    assert row["verdict"] == verdict


@pytest.mark.parametrize(("critical", "verdict"), [(0.06, REPRODUCED), (0.08, NOT_REPRODUCED)])
def test_critical_rate_of_tanh(critical, verdict):
    row = score(make_tables(critical=critical), "CAT-38", "catapult/fc2_tanh")
    assert row["verdict"] == verdict


def test_largest_rate_of_tanh_is_not_that_of_relu():
    assert score(make_tables(), "CAT-39", "catapult/fc2_tanh")["verdict"] == NOT_REPRODUCED


def test_experiment_that_was_not_selected_is_not_run(monkeypatch):
    monkeypatch.delitem(MEASURES, "RICH-22")
    claims = evaluate_claims({}).set_index("id")
    assert (claims["verdict"] == NOT_RUN).all()
    assert claims.loc["CAT-13", "detail"] == (
        "the experiment was not selected: snakemake -c2 results/claims.md --config "
        """'experiments=["catapult/fc_mnist"]' data=published"""
    )
    assert claims.loc["RICH-22", "detail"] == "no experiment measures it yet"


def test_scorecard_shows_failures_and_escapes_pipes(tmp_path):
    claims = evaluate_claims({"catapult/fc_mnist": make_tables(critical=9.0)})
    write_scorecard(claims, tmp_path / "claims.md", tmp_path / "claims.html")
    markdown = (tmp_path / "claims.md").read_text(encoding="utf-8")
    line = next(line for line in markdown.splitlines() if line.startswith("| CAT-13 "))
    assert "not reproduced" in line
    assert "mnist" in line
    rows = [line for line in markdown.splitlines() if line.startswith("| TMP-08 ")]
    assert len(rows) == 1
    page = (tmp_path / "claims.html").read_text(encoding="utf-8")
    assert 'class="not-reproduced"' in page
    assert all(name in page for name in claims["id"])
