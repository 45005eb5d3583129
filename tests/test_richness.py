"""Claims and figures of the richness paper about trained networks, and tables that break them."""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sgdphases.claims import richness
from sgdphases.claims.evaluate import evaluate_claims
from sgdphases.claims.richness import MEASURES, edge_law, found_edges, mlp_portraits
from sgdphases.claims.richness_theory import CROSS_ENTROPY, MSE
from sgdphases.config import expand_runs, load_experiment
from sgdphases.figures.richness import PLOTS
from sgdphases.tables import ExperimentTables

ROOT = Path(__file__).parents[1]
FILE = ROOT / "config/experiments/richness/mlp_portrait.yaml"
DATASETS = {path.stem: path for path in (ROOT / "config/datasets").glob("*.yaml")}
STEPS = 200


def rates(edge, loss, gamma, depth):
    """Edges that follow the theory exactly."""
    largest = gamma ** (2 if gamma <= 1 else 2 / depth)
    lazy_cross_entropy = loss == CROSS_ENTROPY and gamma <= 1
    return {
        "training": gamma ** (2 if gamma <= 1 else 1) / STEPS,
        "catapult": largest,
        "convergence": gamma if lazy_cross_entropy else largest,
        "divergence": 2 * (gamma if lazy_cross_entropy else largest),
    }[edge]


@pytest.fixture(scope="module")
def tables():
    spec = load_experiment(FILE, "quick", "embedded", DATASETS)
    runs = pd.DataFrame(expand_runs(spec))
    cases = runs[["depth", "loss", "richness", "seed"]].drop_duplicates()
    edges = pd.concat([cases.assign(edge=edge) for edge in spec["edge_search"]["edges"]])
    middle = np.array(
        [
            rates(*row)
            for row in edges[["edge", "loss", "richness", "depth"]].itertuples(index=False)
        ]
    )
    edges = edges.assign(learning_rate=middle / 1.02, rate_beyond=middle * 1.02)
    key = ["depth", "loss", "richness", "seed"]
    of_case = edges[edges["edge"] == "convergence"].set_index(key)["learning_rate"]
    runs["edge_learning_rate"] = of_case.loc[list(map(tuple, runs[key].to_numpy()))].to_numpy()
    critical = [rates("catapult", *row) for row in runs[["loss", "richness", "depth"]].to_numpy()]
    runs["learning_rate"] *= runs["edge_learning_rate"]
    peaked = runs["learning_rate"] > critical
    runs = runs.assign(
        status="finished",
        initial_train_loss=1.0,
        peak_train_loss=np.where(peaked, 3.0, 1.0),
        final_train_loss=0.1,
        final_train_accuracy=0.9,
        final_test_accuracy=0.8,
    )
    return ExperimentTables(spec, runs, pd.DataFrame(), None, edges=edges)


def verdict(tables, claim):
    scored = evaluate_claims({"richness/mlp_portrait": tables}).set_index("id")
    return scored.loc[claim, "verdict"]


@pytest.mark.parametrize("claim", sorted(MEASURES))
def test_claims_hold_where_the_theory_does(tables, claim):
    assert verdict(tables, claim) == "reproduced"


def steeper(edges):
    """Largest rates that rise too fast."""
    chosen = edges["edge"] == "convergence"
    factor = np.where(chosen, edges["richness"] ** 0.5, 1.0)
    return edges.assign(
        learning_rate=edges["learning_rate"] * factor, rate_beyond=edges["rate_beyond"] * factor
    )


def shallow_untrained(edges):
    """Two layers that train at fewer rates than three."""
    chosen = (edges["edge"] == "training") & (edges["depth"] == 2) & (edges["richness"] > 1)
    factor = np.where(chosen, 1e6, 1.0)
    return edges.assign(
        learning_rate=edges["learning_rate"] * factor, rate_beyond=edges["rate_beyond"] * factor
    )


@pytest.mark.parametrize(
    ("claim", "change"),
    [("RICH-28", steeper), ("RICH-29", shallow_untrained), ("RICH-30", steeper)],
)
def test_claims_fail_where_it_does_not(tables, claim, change):
    wrong = dataclasses.replace(tables, edges=change(tables.edges))
    assert verdict(wrong, claim) == "not reproduced"


def test_a_portrait_without_an_edge_is_no_reproduction(tables):
    lost = (tables.edges["depth"] == 4) & (tables.edges["edge"] == "convergence")
    edges = tables.edges.assign(rate_beyond=tables.edges["rate_beyond"].mask(lost))
    measured = MEASURES["RICH-28"].measure(dataclasses.replace(tables, edges=edges))
    assert measured.unmet == "not fitted: L=4 lazy largest, L=4 rich largest"


@pytest.mark.parametrize("claim", ["RICH-28", "RICH-29"])
def test_without_squared_errors_there_is_nothing_to_score(tables, claim):
    chosen = [table[table["loss"] == CROSS_ENTROPY] for table in (tables.runs, tables.edges)]
    fewer = dataclasses.replace(tables, runs=chosen[0], edges=chosen[1])
    assert verdict(fewer, claim) == "not run"


def test_depths_that_train_at_as_many_rates_are_no_shrinking_triangle(tables):
    """Every network has the edges of three weight matrices."""
    rows = tables.edges.set_index(["loss", "edge", "richness"])
    of_three = rows[rows["depth"] == 3]
    missing = rows.index.difference(of_three.index)
    rows = rows.drop(missing)
    for name in ("learning_rate", "rate_beyond"):
        rows[name] = of_three[name].reindex(rows.index)
    same = dataclasses.replace(tables, edges=rows.reset_index())
    assert "no fewer rates" in MEASURES["RICH-29"].measure(same).unmet


def test_a_triangle_is_compared_at_large_richness_alone(tables):
    lazy = dataclasses.replace(tables, edges=tables.edges[tables.edges["richness"] <= 1])
    assert verdict(lazy, "RICH-29") == "not run"


def test_a_triangle_needs_no_rate_that_diverges(tables):
    edges = tables.edges[tables.edges["edge"] != "divergence"]
    measured = MEASURES["RICH-30"].measure(dataclasses.replace(tables, edges=edges))
    assert measured.value == pytest.approx(1.0)
    assert "stay finite: fewer than two divergence edges of " in measured.detail


def test_a_triangle_without_catapults_is_none(tables):
    runs = tables.runs.assign(peak_train_loss=1.0)
    measured = MEASURES["RICH-30"].measure(dataclasses.replace(tables, runs=runs))
    assert measured.unmet == "no lazy run is a catapult"


def test_an_edge_that_was_not_found_is_left_out_of_the_fit(tables):
    edges = tables.edges.copy()
    lost = (edges["richness"] == 1e4) & (edges["depth"] == 2)
    edges.loc[lost, "rate_beyond"] = np.nan
    edges.loc[lost, "learning_rate"] = 1e30
    fewer = dataclasses.replace(tables, edges=edges)
    portrait = mlp_portraits(fewer, MSE)[0]
    found = found_edges(fewer, "convergence", portrait)
    assert found["richness"].max() == 1e3
    assert edge_law(fewer, "convergence", portrait, richness.RICH).exponent == pytest.approx(1.0)
    assert "does not train" in MEASURES["RICH-29"].measure(fewer).unmet
    with pytest.raises(ValueError, match="fewer than two"):
        edge_law(fewer, "convergence", portrait, (2.0, 5.0))


def test_without_edges_no_claim_is_scored(tables):
    without = dataclasses.replace(tables, edges=None)
    assert {verdict(without, claim) for claim in MEASURES} == {"not run"}


def test_a_richness_without_an_edge_is_shown_as_such(tables, tmp_path):
    runs = tables.runs.copy()
    lost = (runs["richness"] == 1e4) & (runs["depth"] == 3)
    runs.loc[lost, ["learning_rate", "edge_learning_rate"]] = np.nan
    runs.loc[lost, "status"] = "unreachable"
    figure, plotted = PLOTS["richness/fig1c"](dataclasses.replace(tables, runs=runs))
    figure.savefig(tmp_path / "figure.png")
    assert "no rate found" in [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)
    shown = plotted[plotted["edge"].isna()]
    assert shown.loc[shown["learning_rate"].isna(), "richness"].tolist() == [1e4]
    assert shown.loc[shown["richness"] == 1e4, "region"].isna().all()


def test_a_portrait_that_was_not_searched_is_said(tables):
    fewer = dataclasses.replace(tables, runs=tables.runs[tables.runs["depth"] != 3])
    with pytest.raises(ValueError, match="no such portrait"):
        PLOTS["richness/fig1c"](fewer)


def test_a_cell_that_is_not_settled_is_hatched(tables):
    chosen = (tables.runs["richness"] == 1.0) & (tables.runs["depth"] == 3)
    runs = tables.runs.copy()
    runs.loc[chosen, ["peak_train_loss", "final_train_loss"]] = [3.0, 1.0]
    figure, plotted = PLOTS["richness/fig1c"](dataclasses.replace(tables, runs=runs))
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    plt.close(figure)
    assert len(hatched) == (plotted["region"] == "unsettled").sum() == 7
    assert all(patch.get_x() < 1.0 < patch.get_x() + patch.get_width() for patch in hatched)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sorted(PLOTS))
def test_figures_show_every_case(tables, name, tmp_path):
    figure, plotted = PLOTS[name](tables)
    figure.savefig(tmp_path / "figure.png")
    plt.close(figure)
    assert len(plotted) >= 20
    plotted.to_parquet(tmp_path / "plotted.parquet")
    if name == "richness/exponents":
        assert np.allclose(plotted["exponent"], plotted["expected"])
        assert (plotted["low"] <= plotted["high"]).all()
    else:
        shown = plotted.dropna(subset=["region"])
        of_figure = tables.runs["loss"] == MSE
        if name == "richness/fig1c":
            of_figure &= tables.runs["depth"] == 3
        assert len(shown) == of_figure.sum()
        assert set(shown["region"]) <= {"convergent", "catapult"}
