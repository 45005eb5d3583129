"""The theory claims: measured on real runs, and failing where the tables are made to fail."""

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sgdphases.claims.catapult_theory import MEASURES, edge, fit_exponent
from sgdphases.config import expand_runs, load_experiment
from sgdphases.tables import ExperimentTables
from sgdphases.theory.programs import run_theory

EXPERIMENTS = Path(__file__).parents[1] / "config" / "experiments" / "catapult"
CLAIMS = [*(f"CAT-{number:02d}" for number in range(1, 13)), "CAT-36", "CAT-43"]


@cache
def compute(experiment, scale):
    spec = load_experiment(EXPERIMENTS / f"{experiment}.yaml", scale, "embedded", {})
    runs, history = run_theory(spec, expand_runs(spec))
    return ExperimentTables(spec, runs, history, None)


def tables_of(claim, scale="quick"):
    tables = compute(MEASURES[claim].experiment, scale)
    return dataclasses.replace(tables, runs=tables.runs.copy(), history=tables.history.copy())


def holds(claim, tables):
    measure = MEASURES[claim]
    value = measure.measure(tables).value
    above = measure.low is None or value >= measure.low
    return above and (measure.high is None or value <= measure.high)


def test_every_claim_has_a_measure():
    assert sorted(MEASURES) == sorted(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("scale", ["smoke", "quick"])
def test_claim_is_reproduced(claim, scale):
    assert holds(claim, tables_of(claim, scale))


@pytest.mark.parametrize("claim", CLAIMS)
def test_measurement_reads_tables_from_parquet(claim, tmp_path):
    tables = tables_of(claim, "smoke")
    expected = MEASURES[claim].measure(tables)
    for name in ("runs", "history"):
        getattr(tables, name).to_parquet(tmp_path / f"{name}.parquet")
    read = dataclasses.replace(
        tables,
        runs=pd.read_parquet(tmp_path / "runs.parquet"),
        history=pd.read_parquet(tmp_path / "history.parquet"),
    )
    assert MEASURES[claim].measure(read) == expected


def set_where(runs, mask, column, values):
    runs.loc[mask, column] = values


def late_catapult(tables):
    set_where(tables.runs, tables.runs["relative_learning_rate"] < 1.05, "phase", "lazy")


def early_divergence(tables):
    set_where(tables.runs, tables.runs["relative_learning_rate"] > 1.7, "status", "diverged")


def sharp_run(tables):
    row = tables.runs.index[tables.runs["relative_learning_rate"].between(1.2, 1.8)][0]
    tables.runs.loc[row, "final_ntk_top_eigenvalue"] = 2.1 / tables.runs.loc[row, "learning_rate"]


def high_peak(tables):
    at_three = np.isclose(tables.runs["relative_learning_rate"], 1.5)
    tables.runs.loc[at_three, "peak_train_loss"] *= 3


def lazy_bump(tables):
    lazy = (tables.runs["relative_learning_rate"] < 0.9) & (tables.runs["width"] == 1000)
    row = tables.runs.index[lazy][0]
    tables.runs.loc[row, "peak_train_loss"] = 1.1 * tables.runs.loc[row, "initial_train_loss"]


def flat_law(tables):
    tables.runs["convergence_step"] = tables.runs["convergence_step"].astype(float) ** 0.8


def scaled(column, factor):
    def change(tables):
        tables.runs[column] = tables.runs[column] * factor

    return change


def overwritten(column, value):
    def change(tables):
        tables.runs.loc[tables.runs.index[0], column] = value

    return change


def late_peak(tables):
    tables.runs["peak_step"] = tables.runs["peak_step"] + 2


def uneven_descent(tables):
    lazy = tables.runs.loc[tables.runs["relative_learning_rate"] < 1, "run_id"].iloc[0]
    rows = tables.history.index[tables.history["run_id"] == lazy]
    tables.history.loc[rows[3], "train_loss"] *= 10


def unsettled_catapult(tables):
    catapult = tables.runs["relative_learning_rate"].between(1, 2)
    set_where(tables.runs, catapult, "status", "finished")


@pytest.mark.parametrize(
    ("claim", "corrupt"),
    [
        ("CAT-01", overwritten("recursion_deviation", 1e-9)),
        ("CAT-01", overwritten("step_deviation", 1e-9)),
        ("CAT-01", overwritten("recursion_deviation", np.nan)),
        ("CAT-02", late_catapult),
        ("CAT-03", early_divergence),
        ("CAT-04", scaled("final_ntk_top_eigenvalue", 0.98)),
        ("CAT-04", scaled("final_ntk_top_eigenvalue", 1.02)),
        ("CAT-05", sharp_run),
        ("CAT-06", high_peak),
        ("CAT-06", lazy_bump),
        ("CAT-07", late_peak),
        ("CAT-08", flat_law),
        ("CAT-09", flat_law),
        ("CAT-10", uneven_descent),
        ("CAT-10", unsettled_catapult),
        ("CAT-10", overwritten("plane_deviation", 0.1)),
        ("CAT-11", overwritten("error_deviation", 1e-9)),
        ("CAT-11", overwritten("kernel_deviation", 1e-9)),
        ("CAT-11", overwritten("projected_kernel_deviation", 1e-9)),
        ("CAT-43", overwritten("fisher_deviation", 1e-7)),
        ("CAT-12", scaled("relative_learning_rate", 1.15)),
        ("CAT-12", early_divergence),
        ("CAT-36", scaled("relative_learning_rate", 1.02)),
    ],
)
def test_claim_fails_on_corrupted_tables(claim, corrupt):
    tables = tables_of(claim)
    corrupt(tables)
    assert not holds(claim, tables)


@pytest.mark.parametrize(
    ("claim", "needed"),
    [
        ("CAT-01", "recursion_deviation"),
        ("CAT-04", "final_ntk_top_eigenvalue"),
        ("CAT-07", "peak_step"),
        ("CAT-08", "convergence_step"),
        ("CAT-11", "error_deviation"),
        ("CAT-36", "momentum"),
    ],
)
def test_missing_column_is_named(claim, needed):
    tables = tables_of(claim)
    for runs in (tables.runs.drop(columns=needed), tables.runs.assign(**{needed: np.nan})):
        with pytest.raises(ValueError, match=needed):
            MEASURES[claim].measure(dataclasses.replace(tables, runs=runs))


@pytest.mark.parametrize(
    ("claim", "keep", "message"),
    [
        ("CAT-01", lambda runs: runs["width"] != 100, "width 100"),
        ("CAT-02", lambda runs: runs["phase"] != "catapult", "above the edge"),
        ("CAT-03", lambda runs: runs["status"] == "diverged", "below the edge"),
        ("CAT-05", lambda runs: runs["relative_learning_rate"] < 1, "between"),
        ("CAT-06", lambda runs: runs["relative_learning_rate"] > 1.05, "one side"),
        ("CAT-07", lambda runs: runs["width"] == 1000, "single width"),
        ("CAT-09", lambda runs: runs["relative_learning_rate"] < 1, "window above"),
        ("CAT-10", lambda runs: runs["relative_learning_rate"] < 2, "divergent phase"),
        ("CAT-36", lambda runs: runs["momentum"] == 0, "no run has momentum"),
    ],
)
def test_missing_runs_are_named(claim, keep, message):
    tables = tables_of(claim)
    fewer = dataclasses.replace(tables, runs=tables.runs[keep(tables.runs).fillna(True)])
    with pytest.raises(ValueError, match=message):
        MEASURES[claim].measure(fewer)


def test_unconverged_run_spoils_an_exponent():
    tables = tables_of("CAT-08")
    inside = tables.runs["relative_learning_rate"].between(0.95, 0.99)
    tables.runs.loc[tables.runs.index[inside][0], "convergence_step"] = pd.NA
    with pytest.raises(ValueError, match="converged"):
        MEASURES["CAT-08"].measure(tables)


def test_edge_lies_midway_and_is_not_moved_by_what_trains_beyond():
    rates = np.array([1.0, 2.0, 3.0, 4.0])
    assert edge(rates, np.array([False, False, True, True])) == 2.5
    assert edge(rates, np.array([False, True, False, True])) == 1.5


def test_fit_recovers_an_exact_law():
    distance = np.geomspace(0.01, 0.2, 9)
    exponent, prefactor = fit_exponent(distance, 3.0 * distance**-1.3)
    assert exponent == pytest.approx(-1.3)
    assert prefactor == pytest.approx(3.0)
