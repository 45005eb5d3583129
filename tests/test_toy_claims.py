"""The richness paper's toy claims and figures: from real tables, and failing on corrupted ones."""

import dataclasses
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from sgdphases.claims.evaluate import load_claims
from sgdphases.claims.richness_theory import (
    CROSS_ENTROPY,
    LAZY,
    MEASURES,
    MSE,
    RICH,
    cells,
    toy_edges,
)
from sgdphases.config import expand_runs, load_experiment
from sgdphases.figures import style
from sgdphases.figures.portrait import Plane
from sgdphases.figures.richness_theory import PLOTS
from sgdphases.portraits import REGIONS, PortraitRules
from sgdphases.tables import ExperimentTables
from sgdphases.theory.programs import run_theory

EXPERIMENTS = Path(__file__).parents[1] / "config" / "experiments" / "richness"
TOYS = sorted(path.stem for path in EXPERIMENTS.glob("toy_*.yaml"))
CLAIMS = sorted(MEASURES)
FEEDS = {
    f"richness/{figure}": path.stem
    for path in sorted(EXPERIMENTS.glob("toy_*.yaml"))
    for figure in yaml.safe_load(path.read_text(encoding="utf-8")).get("figures", {})
}


@cache
def compute(experiment):
    spec = load_experiment(EXPERIMENTS / f"{experiment}.yaml", "smoke", "embedded", {})
    runs, history = run_theory(spec, expand_runs(spec))
    return ExperimentTables(spec, runs, history, None)


def tables_of(claim):
    tables = compute(MEASURES[claim].experiment)
    return dataclasses.replace(tables, runs=tables.runs.copy(), history=tables.history.copy())


def holds(claim, tables):
    measure = MEASURES[claim]
    value = measure.measure(tables).value
    above = measure.low is None or value >= measure.low
    return above and (measure.high is None or value <= measure.high)


@pytest.fixture(autouse=True)
def _styled():
    style.apply_style()
    yield
    plt.close("all")


# Claims.


def test_measures_are_of_claims_about_toys():
    table = load_claims().set_index("id")
    assert set(CLAIMS) <= set(table.index[table["paper"] == "richness"])
    assert {measure.experiment for measure in MEASURES.values()} <= set(TOYS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_is_reproduced(claim):
    assert holds(claim, tables_of(claim)), MEASURES[claim].measure(tables_of(claim))


@pytest.mark.parametrize("claim", CLAIMS)
def test_measurement_reads_tables_from_parquet(claim, tmp_path):
    tables = tables_of(claim)
    for name in ("runs", "history"):
        getattr(tables, name).to_parquet(tmp_path / f"{name}.parquet")
    read = dataclasses.replace(
        tables,
        runs=pd.read_parquet(tmp_path / "runs.parquet"),
        history=pd.read_parquet(tmp_path / "history.parquet"),
    )
    assert MEASURES[claim].measure(read) == MEASURES[claim].measure(tables)


@pytest.mark.parametrize("loss", [MSE, CROSS_ENTROPY])
def test_exponents_of_the_one_parameter_model_are_closer_than_the_claims_ask(loss):
    runs = compute("toy_edges").runs
    for depth in (2, 3, 5):
        lazy = toy_edges(runs, "convergence", loss, LAZY, depth).fit()
        assert lazy.exponent == pytest.approx(2, abs=0.02)
        assert lazy.low <= lazy.exponent <= lazy.high
        rich = toy_edges(runs, "convergence", loss, RICH, depth).fit()
        assert rich.exponent == pytest.approx(2 / depth, abs=0.02)
        smallest = toy_edges(runs, "training", loss, LAZY, depth).fit()
        assert smallest.exponent == pytest.approx(2, abs=0.05)


def tilted(experiment_edge, power):
    """Tilt one edge by a power of the richness."""

    def change(tables):
        runs = tables.runs
        mask = (runs["edge"] == experiment_edge).to_numpy(dtype=bool)
        factor = np.where(mask, runs["richness"] ** power, 1.0)
        for name in ("learning_rate", "rate_beyond"):
            runs[name] = runs[name] * factor

    return change


def scaled(column, factor, where=None):
    def change(tables):
        mask = True if where is None else where(tables.runs).to_numpy(dtype=bool)
        tables.runs[column] = np.where(mask, tables.runs[column] * factor, tables.runs[column])

    return change


def bent(column, power):
    def change(tables):
        tables.runs[column] = tables.runs[column] * tables.runs["richness"] ** power

    return change


def later(tables):
    tables.history["physical_time"] *= 1.05


def heavier(tables):
    tables.history["weight"] *= 1.001


def one_run(column, value):
    def change(tables):
        tables.runs.loc[tables.runs.index[0], column] = value

    return change


def shifted_minimum(tables):
    row = tables.runs.loc[tables.runs["loss"] == CROSS_ENTROPY, "final_train_loss"].idxmin()
    tables.runs.loc[row, "final_output"] = -1.0


def rich_peak(tables):
    runs = tables.runs
    rich = (runs["richness"] > 50) & (runs["final_train_loss"] < 1e-3)
    runs.loc[rich.idxmax(), "peak_train_loss"] = 0.6


@pytest.mark.parametrize(
    ("claim", "corrupt"),
    [
        ("RICH-01", bent("final_sharpness", 0.02)),
        ("RICH-02", tilted("convergence", 0.06)),
        ("RICH-03", tilted("convergence", -0.04)),
        ("RICH-04", tilted("convergence", -0.06)),
        ("RICH-05", tilted("divergence", 0.03)),
        ("RICH-06", tilted("convergence", 0.04)),
        ("RICH-07", tilted("training", 0.11)),
        ("RICH-08", tilted("training", 0.11)),
        ("RICH-09", later),
        ("RICH-10", heavier),
        ("RICH-11", shifted_minimum),
        ("RICH-12", scaled("learning_rate", 1.04)),
        ("RICH-13", scaled("rate_beyond", 1.04)),
        ("RICH-14", bent("peak_train_loss", 0.2)),
        ("RICH-15", scaled("learning_rate", 4.0, lambda runs: runs["edge"] == "catapult")),
        ("RICH-16", rich_peak),
        ("RICH-16b", scaled("learning_rate", 1.1)),
        ("RICH-17", one_run("final_step_deviation", 1e-9)),
        ("RICH-18", tilted("training", 0.06)),
        ("RICH-18", tilted("convergence", -0.06)),
        ("RICH-19", tilted("convergence", 0.25)),
        ("RICH-20", one_run("status", "diverged")),
        ("RICH-21", bent("final_weight", 0.1)),
    ],
)
def test_claim_fails_on_corrupted_tables(claim, corrupt):
    tables = tables_of(claim)
    corrupt(tables)
    assert not holds(claim, tables)


def test_an_edge_at_the_end_of_the_range_is_not_used():
    tables = tables_of("RICH-02")
    lazy = (tables.runs["edge"] == "convergence") & (tables.runs["richness"] < 1e-3)
    tables.runs.loc[lazy.idxmax(), "rate_beyond"] = np.nan
    with pytest.raises(ValueError, match="range searched"):
        MEASURES["RICH-02"].measure(tables)


def test_edges_that_were_not_searched_are_named():
    tables = tables_of("RICH-05")
    fewer = tables.runs[(tables.runs["edge"] != "divergence").to_numpy(dtype=bool)]
    with pytest.raises(ValueError, match="divergence edge"):
        MEASURES["RICH-05"].measure(dataclasses.replace(tables, runs=fewer))


# Figures.


def test_every_figure_has_an_experiment_that_feeds_it():
    assert set(FEEDS) == set(PLOTS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PLOTS)
def test_figure_draws_data_in_every_panel(name, tmp_path):
    figure, plotted = PLOTS[name](compute(FEEDS[name]))
    figure.savefig(tmp_path / "figure.png")
    assert figure.get_size_inches()[0] <= style.PAGE_WIDTH
    panels = [axis for axis in figure.axes if axis.axison and axis.get_visible()]
    assert panels
    assert all(axis.lines or axis.collections or axis.patches for axis in panels)
    assert len(plotted) > 10
    plotted.to_parquet(tmp_path / "plotted.parquet")


def test_portrait_shows_every_run_in_its_cell():
    tables = compute("toy_one_parameter")
    _, plotted = PLOTS["richness/fig6"](tables)
    runs = tables.runs[(tables.runs["depth"] == 5).to_numpy(dtype=bool)]
    assert len(plotted) == len(runs)
    part = plotted[plotted["loss"] == MSE]
    plane = Plane.of(part, "final_train_loss")
    assert plane.shown.shape == (part["learning_rate"].nunique(), part["richness"].nunique())
    merged = part.merge(runs, on=["loss", "richness", "learning_rate"], suffixes=("", "_of_run"))
    np.testing.assert_array_equal(merged["final_train_loss"], merged["final_train_loss_of_run"])


def test_regions_of_the_two_parameter_plane():
    tables = compute("toy_two_parameter")
    regions = pd.Series(cells(tables))
    assert set(regions) <= set(REGIONS)
    runs = tables.runs.reset_index(drop=True)
    ratio = runs["learning_rate"] / runs["richness"] ** 2
    lazy = runs["richness"] < 1e-2
    band = lazy & ratio.between(1.1, 1.95)
    assert band.sum() > 3
    assert (regions[band] == "catapult").all()
    assert (regions[lazy & (ratio > 2.05)] == "divergent").all()
    assert (regions[lazy & ratio.between(1e-4, 0.95)] == "convergent").all()
    assert (regions[lazy & (ratio < 1e-6)] == "untrained").all()


def test_captions_state_the_rules_in_force():
    rules = PortraitRules()
    for path in EXPERIMENTS.glob("toy_*.yaml"):
        figures = yaml.safe_load(path.read_text(encoding="utf-8")).get("figures", {})
        for name in {"fig6", "fig8", "fig9", "fig11"} & set(figures):
            caption = figures[name]["caption"]
            assert f"below {rules.trained_loss:g} of the initial" in caption
            assert f"above {rules.peak_factor:g} of its initial" in caption
