"""Claims and figures of further portraits, on tables that follow the theory or break it."""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sgdphases.claims.evaluate import evaluate_claims
from sgdphases.claims.richness_portraits import MEASURES
from sgdphases.config import expand_runs, load_experiment
from sgdphases.figures.richness_portraits import PLOTS
from sgdphases.grid import LEARNING_RATE_UNIT
from sgdphases.portraits import weight_matrices
from sgdphases.tables import ExperimentTables

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "config/experiments/richness"
DATASETS = {path.stem: path for path in (ROOT / "config/datasets").glob("*.yaml")}
NAMES = {
    *(measure.experiment for measure in MEASURES.values()),
    *("attention_temperature", "single_index_cubic", "tiny_imagenet_portraits"),
}
STEPS = 100
# Of a rate to that at which the loss leaves the finite range.
TO_DIVERGENCE = {"none": 2.0, "layer_norm": 30.0}


def rate(edge, run):
    """The edge of a run's case, as the theory has it."""
    gamma, depth = run["richness"], weight_matrices(run)
    is_lazy, adam = gamma <= 1, run["optimizer"] == "adam"
    if run["model"] == "rich_resconv":
        # Of the networks tried, the deepest have the largest exponent, in muP alone.
        depth = 4 if run["parametrisation"] == "depth_mup" else 4 / np.log2(run["num_blocks"] + 3)
        if run["parametrisation"] == "mup" and run["num_blocks"] >= 8:
            depth = 2
    depth = depth or 3
    if adam:
        largest, smallest = (gamma if is_lazy else gamma ** (1 / depth),) * 2
    else:
        largest = gamma ** (2 if is_lazy else 2 / depth)
        smallest = gamma ** (2 if is_lazy else 1)
    critical = largest
    if is_lazy and not adam and run["loss"] == "cross_entropy":
        largest = gamma
    if run["batch_size"] == 16 and not is_lazy:
        largest *= 0.5
    beyond = TO_DIVERGENCE.get(run.get("normalisation"), 2.0)
    rates = {
        "training": smallest / STEPS,
        "catapult": critical,
        "convergence": largest,
        "divergence": beyond * largest,
    }
    return rates[edge]


def make_tables(name, scale="quick"):
    spec = load_experiment(FOLDER / f"{name}.yaml", scale, "embedded", DATASETS)
    records = expand_runs(spec)
    relative = [run[LEARNING_RATE_UNIT] == "edge" for run in records]
    edges = pd.DataFrame(
        {**run, "edge": edge, "middle": rate(edge, run)}
        for run, has_edge in zip(records, relative, strict=True)
        if has_edge
        for edge in (spec["edge_search"] or {}).get("edges", [])
    )
    if len(edges):
        edges = edges.drop(columns=["learning_rate", "run_id"]).drop_duplicates()
        edges["learning_rate"] = edges["middle"] / 1.02
        edges["rate_beyond"] = edges["middle"] * 1.02
    runs = pd.DataFrame(records)
    at_edge = [
        rate("convergence", run) / 1.02 if has_edge else np.nan
        for run, has_edge in zip(records, relative, strict=True)
    ]
    runs["edge_learning_rate"] = at_edge
    runs["learning_rate"] *= np.where(relative, at_edge, 1.0)
    # Under the steepest rule a network diverges above a richness of 1e4.
    too_large = (runs["learning_rate"] > 1.5e4) & ~np.array(relative)
    runs = runs.assign(
        status=np.where(too_large, "diverged", "finished"),
        initial_train_loss=1.0,
        peak_train_loss=1.0,
        final_train_loss=1 / (1 + runs["learning_rate"]),
        final_train_accuracy=0.9,
        final_test_accuracy=0.8,
    )
    history = pd.DataFrame(
        {
            "run_id": np.repeat(runs["run_id"].to_numpy(), 2),
            "step": [0, STEPS] * len(runs),
            "physical_time": 0.0,
            "train_loss": np.ravel(runs[["initial_train_loss", "final_train_loss"]].to_numpy()),
        }
    )
    return ExperimentTables(spec, runs, history, None, edges=edges if len(edges) else None)


def score(tables, claim):
    name = f"richness/{MEASURES[claim].experiment}"
    return evaluate_claims({name: tables}).set_index("id").loc[claim]


@pytest.mark.parametrize("claim", sorted(MEASURES))
def test_claims_hold_where_the_theory_does(claim):
    found = score(make_tables(MEASURES[claim].experiment), claim)
    assert found["verdict"] == "reproduced", found["detail"]


def steeper(tables):
    """Largest rates that rise too fast."""
    factor = np.where(tables.edges["edge"] == "convergence", tables.edges["richness"] ** 0.5, 1.0)
    changed = {name: tables.edges[name] * factor for name in ("learning_rate", "rate_beyond")}
    return dataclasses.replace(tables, edges=tables.edges.assign(**changed))


def scaled(factor, **chosen):
    """Largest rates of some cases that are a multiple of what they were."""

    def change(tables):
        edges = tables.edges
        mask = (edges["edge"] == "convergence") & (edges["richness"] > 1)
        for name, value in chosen.items():
            mask &= edges[name] == value
        # The same richness, moved less and less: an exponent changes too.
        factors = np.where(mask, factor(edges["richness"]), 1.0)
        changed = {name: edges[name] * factors for name in ("learning_rate", "rate_beyond")}
        return dataclasses.replace(tables, edges=edges.assign(**changed))

    return change


def without(**chosen):
    """A search that has not found some edges."""

    def change(tables):
        edges = tables.edges.copy()
        mask = np.logical_and.reduce([edges[name] == value for name, value in chosen.items()])
        edges.loc[mask, "rate_beyond"] = np.nan
        return dataclasses.replace(tables, edges=edges)

    return change


def no_divergence(tables):
    return dataclasses.replace(tables, runs=tables.runs.assign(status="finished"))


def slow_rule_is_best(tables):
    loss = tables.runs["learning_rate"] / 1e6
    return dataclasses.replace(tables, runs=tables.runs.assign(final_train_loss=loss))


def fewer(tables):
    return dataclasses.replace(tables, runs=tables.runs[tables.runs["richness"] > 1])


@pytest.mark.parametrize(
    ("claim", "change", "detail"),
    [
        ("RICH-36", no_divergence, "in 0 of 7"),
        ("RICH-36", slow_rule_is_best, "does not train more slowly"),
        ("RICH-38", steeper, "exponents of the edges"),
        ("RICH-38", scaled(lambda _: 0.1, batch_size=256), "B=16 and B=256"),
        ("RICH-38", scaled(lambda _: 2.0, batch_size=16), "the largest rich rate is no lower"),
        ("RICH-40", steeper, "rich largest"),
        ("RICH-40", without(optimizer="sgd", edge="convergence"), "not fitted: "),
        ("RICH-41", steeper, "rich largest"),
        ("RICH-41", without(optimizer="adam", richness=1e5), "nothing trains at richness 100000"),
        ("RICH-42", steeper, "rich largest"),
        ("RICH-44", scaled(lambda g: g**-0.5, parametrisation="mup"), "8 blocks 0.5"),
        ("RICH-44", scaled(lambda g: g**0.5, num_blocks=8, parametrisation="depth_mup"), "differ"),
        ("RICH-45", scaled(lambda _: 0.01, normalisation="none"), "mean over"),
        ("RICH-46", fewer, "values of the richness"),
    ],
)
def test_claims_fail_where_it_does_not(claim, change, detail):
    found = score(change(make_tables(MEASURES[claim].experiment)), claim)
    assert found["verdict"] == "not reproduced", found["detail"]
    assert detail in found["detail"]


@pytest.mark.parametrize("claim", sorted(set(MEASURES) - {"RICH-36", "RICH-46"}))
def test_without_edges_no_claim_is_scored(claim):
    tables = make_tables(MEASURES[claim].experiment)
    found = score(dataclasses.replace(tables, edges=None), claim)
    assert found["verdict"] == "not run"


@pytest.mark.parametrize(
    ("claim", "column", "value", "detail"),
    [
        ("RICH-38", "batch_size", 16, "a single batch size"),
        ("RICH-41", "optimizer", "sgd", "no exponent could be fitted"),
        (
            "RICH-44",
            "parametrisation",
            "mup",
            "no several depths in muP and in Depth-muP",
        ),
        ("RICH-45", "model", "rich_cnn_L4", "no vision transformers without and with LayerNorm"),
    ],
)
def test_a_grid_that_lacks_what_is_compared_is_not_scored(claim, column, value, detail):
    tables = make_tables(MEASURES[claim].experiment)
    runs, edges = (table[table[column] == value] for table in (tables.runs, tables.edges))
    found = score(dataclasses.replace(tables, runs=runs, edges=edges), claim)
    assert (found["verdict"], found["detail"]) == ("not run", detail)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", ["quick", "smoke"])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_figures_show_every_run(name, scale, tmp_path):
    tables = make_tables(name, scale)
    shown = 0
    for figure_name in tables.spec["figures"]:
        figure, plotted = PLOTS[f"richness/{figure_name}"](tables)
        figure.savefig(tmp_path / "figure.png")
        plt.close(figure)
        plotted.to_parquet(tmp_path / "plotted.parquet")
        if "region" in plotted:
            shown += int(plotted["region"].notna().sum())
        elif "exponent" in plotted and "low" in plotted and scale == "quick":
            assert np.allclose(plotted["exponent"], plotted["expected"])
        elif "train_loss" in plotted or "loss_shown" in plotted:
            assert len(plotted) == 2 * tables.runs["edge_learning_rate"].isna().sum()
    relative = tables.runs["edge_learning_rate"].notna() & (tables.runs["seed"] == 0)
    assert shown == relative.sum()
