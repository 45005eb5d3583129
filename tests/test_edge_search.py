"""Edges of trained networks: against a linear model's spectrum, and their laws in the richness."""

import numpy as np
import pandas as pd
import pytest

from sgdphases import edge_search
from sgdphases.datasets.loading import Dataset
from sgdphases.edge_search import (
    EdgeSearch,
    edge_learning_rates,
    first_learning_rate,
    search_edges,
)
from sgdphases.errors import InputError
from sgdphases.exponents import fit_power_law
from sgdphases.hyperparameters import complete_run
from sgdphases.training import train_shard

SETTINGS = {
    "experiment": "richness/test",
    "stopping": {"num_steps": 200},
    "curvature": {"batch_size": 512, "num_batches": 1, "num_lanczos_steps": 40},
    "evaluation": {},
    "divergence_factor": 1e6,
    "data_seed": 0,
    "measurements": {"every": 1},
}


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(16, 5))
    targets = np.eye(2)[rng.integers(2, size=16)]
    return Dataset("test", {}, inputs, targets, inputs[:4], targets[:4])


def make_cases(*changes, **shared):
    return [
        {
            "case_id": f"case {i}",
            **complete_run(
                {
                    "model": "fully_connected",
                    "loss_normalisation": "per_sample",
                    "learning_rate": 1e-6,
                    "precision": "float64",
                    "seed": 0,
                    **shared,
                    **change,
                }
            ),
        }
        for i, change in enumerate(changes)
    ]


LINEAR = {"depth": 1, "activation": "identity"}
RICH = {"parametrisation": "mup", "centered": True, "width": 16, "activation": "relu"}


def test_largest_stable_rate_of_a_linear_model_is_that_of_its_spectrum(dataset):
    cases = make_cases({"richness": 1.0}, {"richness": 0.5}, **LINEAR)
    table = search_edges(SETTINGS, cases, dataset, EdgeSearch(decades=10, rounds=3))
    inputs = dataset.train_inputs
    kernel = inputs @ inputs.T / inputs.shape[1] / len(inputs)
    expected = 2 / np.linalg.eigvalsh(kernel)[-1] * table["richness"] ** 2
    np.testing.assert_allclose(table["learning_rate"], expected, rtol=0.02)
    assert (table["rate_beyond"] > table["learning_rate"]).all()
    assert table["case_id"].tolist() == ["case 0", "case 1"]
    assert (table["edge"] == "convergence").all()


@pytest.mark.parametrize(
    ("edge", "depth", "richness", "exponent", "tolerance"),
    [
        ("catapult", 2, (1e-4, 1e-3, 1e-2), 2, 0.02),
        ("training", 2, (1e-4, 1e-3, 1e-2), 2, 0.02),
        ("convergence", 3, (1e2, 1e3, 1e4), 2 / 3, 0.05),
    ],
)
def test_edges_have_their_exponents(dataset, edge, depth, richness, exponent, tolerance):
    start = 1e-12 if exponent == 2 else 1e-2
    cases = make_cases(*({"richness": value} for value in richness), depth=depth, **RICH)
    cases = [{**case, "learning_rate": start} for case in cases]
    table = search_edges(SETTINGS, cases, dataset, EdgeSearch((edge,), decades=10))
    assert np.isfinite(table["rate_beyond"]).all()
    law = fit_power_law(richness, table["learning_rate"])
    assert law.exponent == pytest.approx(exponent, abs=tolerance)


def test_cases_of_several_shapes_keep_their_order_and_do_not_depend_on_each_other(dataset):
    cases = make_cases({"width": 4}, {"width": 8}, {"width": 4, "seed": 1}, depth=2)
    search = EdgeSearch(("divergence",), decades=9, rates_per_decade=1)
    together = search_edges(SETTINGS, cases, dataset, search)
    assert together["case_id"].tolist() == [case["case_id"] for case in cases]
    assert len(set(together["learning_rate"])) > 1
    alone = search_edges(SETTINGS, cases[2:], dataset, search)
    assert alone["learning_rate"][0] == pytest.approx(together["learning_rate"][2])


def test_an_edge_beyond_the_range_is_reported_and_not_used(dataset, caplog):
    search = EdgeSearch(("divergence", "catapult"), decades=2)
    table = search_edges(SETTINGS, make_cases({}, **LINEAR), dataset, search)
    assert table["edge"].tolist() == ["divergence", "catapult"]
    assert table["rate_beyond"].isna().all()
    assert table["learning_rate"][0] == pytest.approx(1e-4)
    assert (
        "richness 1.0, seed 0: no divergence edge between the learning rates 1e-06 and 0.0001"
        in caplog.text
    )
    with pytest.raises(InputError, match=r"no divergence edge was found for 1 of 1 .*first_rate"):
        edge_learning_rates(table, "divergence", "richness/test")


def test_an_edge_below_the_range_is_reported_and_no_island_is_used(dataset, caplog):
    """From a rate that trains at once, a search of the smallest one that does finds nothing."""
    search = EdgeSearch(("training", "divergence"), decades=4)
    start = {**make_cases({}, **LINEAR)[0], "learning_rate": 0.1}
    table = search_edges(SETTINGS, [start], dataset, search).set_index("edge")
    assert np.isnan(table.loc["training", "rate_beyond"])
    assert table.loc["training", "learning_rate"] == pytest.approx(0.1)
    assert table.loc["divergence", "rate_beyond"] > table.loc["divergence", "learning_rate"] > 0.1
    assert "no training edge between the learning rates 0.1 and 1e+03" in caplog.text


def test_runs_of_a_case_without_an_edge_are_unreachable_beside_those_of_one_that_has_it(
    dataset, caplog
):
    table = pd.DataFrame(
        {
            "case_id": ["a", "b"],
            "richness": [1.0, 10.0],
            "seed": 0,
            "edge": "convergence",
            "learning_rate": [0.1, 7.0],
            "rate_beyond": [0.2, np.nan],
        }
    )
    rates = edge_learning_rates(table, "convergence", "richness/test")
    assert rates["a"] == 0.1
    assert np.isnan(rates["b"])
    assert "no convergence edge was found for 1 of 2 cases, first for richness 10" in caplog.text
    shared = {"richness": 1.0, "learning_rate": 0.5, "learning_rate_relative_to": "edge"}
    runs = [
        {**{k: v for k, v in case.items() if k != "case_id"}, **shared, "run_id": case["case_id"]}
        for case in make_cases({}, {}, depth=2, **RICH)
    ]
    by_run = dict(zip(["case 0", "case 1"], rates.values(), strict=True))
    settings = {**SETTINGS, "stopping": {"physical_time": 1.0}}
    trained = train_shard(settings, runs, [""] * 2, dataset, {}, edges=by_run)
    found = trained.runs.set_index("run_id")
    assert found["status"].tolist() == ["finished", "unreachable"]
    assert found["steps"].tolist() == [20, 0]
    assert found["learning_rate"].tolist()[0] == 0.05
    assert found.loc["case 1", ["learning_rate", "edge_learning_rate"]].isna().all()
    assert (trained.history["run_id"] == "case 1").sum() == 1


def test_several_edges_share_the_runs_of_the_first_round(dataset, monkeypatch):
    calls = []
    train = edge_search.train_shard

    def counted(settings, runs, *others):
        calls.append(len(runs))
        return train(settings, runs, *others)

    monkeypatch.setattr(edge_search, "train_shard", counted)
    edges = ("training", "convergence")
    cases = [{**case, "learning_rate": 1e-6} for case in make_cases({}, depth=2, **RICH)]
    both = search_edges(SETTINGS, cases, dataset, EdgeSearch(edges, decades=8))
    assert len(calls) == 3
    for edge in edges:
        alone = search_edges(SETTINGS, cases, dataset, EdgeSearch((edge,), decades=8))
        expected = both[both["edge"] == edge].reset_index(drop=True)
        assert alone.equals(expected)
    assert edge_learning_rates(both, "convergence", "x") == {
        "case 0": both["learning_rate"][1],
    }


@pytest.mark.parametrize(
    ("richness", "depth", "optimizer", "expected"),
    [(0.01, 3, "sgd", 1e-4), (8.0, 3, "sgd", 4.0), (0.01, 3, "adam", 0.01)],
)
def test_where_a_search_may_begin(richness, depth, optimizer, expected):
    case = {"richness": richness, "depth": depth, "optimizer": optimizer}
    section = {"first_rate": 0.1, "first_rate_relative_to": "richness_law"}
    assert first_learning_rate(section, case) == pytest.approx(0.1 * expected)
    section["first_rate_relative_to"] = "absolute"
    assert first_learning_rate(section, case) == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": ("sharp",)}, "training, catapult, convergence, divergence"),
        ({"decades": 0}, "decades"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        EdgeSearch(**changes)


def test_a_network_without_a_depth_is_searched_from_the_law_of_the_shallowest():
    section = {"first_rate": 0.1, "first_rate_relative_to": "richness_law"}
    case = {"richness": 100.0, "optimizer": "sgd"}
    assert first_learning_rate(section, case) == pytest.approx(10.0)
    convolutional = {**case, "num_convolutions": 2, "num_dense": 2}
    assert first_learning_rate(section, convolutional) == pytest.approx(1.0)


def test_cases_are_needed(dataset):
    with pytest.raises(InputError, match="no case"):
        search_edges(SETTINGS, [], dataset, EdgeSearch())
