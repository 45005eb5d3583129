"""The grids of the L2 experiments are the published ones."""

import itertools
import time
from pathlib import Path

import pytest

from sgdphases import workflow
from sgdphases.claims import l2 as claims
from sgdphases.config import expand_runs, find_experiments, load_experiment

PROJECT = Path(__file__).parents[1]
DATASETS = {path.stem: path for path in (PROJECT / "config/datasets").glob("*.yaml")}

# L2 paper, SM A.
FC_RATES = [0.0025, 0.01, 0.02, 0.025, 0.03, 0.05, 0.08, 0.15, 0.3, 0.5, 1, 1.5, 2, 5, 10, 25, 50]
FC_DECAYS = [0, 1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 20, 50, 100]
WRN_RATES = [0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
WRN_DECAYS = [1.5625e-5, 6.25e-5, 1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 0.016]
CNN_DECAYS = [0, 5e-5, 1e-4, 5e-4, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2]
MSE_RATES = [0.001, 0.005, 0.01, 0.02, 0.035, 0.05, 0.15, 0.3]
MSE_DECAYS = [0, 1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1, 5, 50, 100]
TUNED_DECAYS = [5e-6, 1e-5, 5e-5, 1e-4, 2e-4, 4e-4, 1e-3, 2e-3]
BUDGETS = [50, 100, 250, 500, 1000, 1500, 2000]


def load(name):
    path = PROJECT / f"config/experiments/{name}.yaml"
    return load_experiment(path, "paper", "published", DATASETS)


def pairs(name, **chosen):
    runs = expand_runs(load(name))
    runs = [run for run in runs if all(run[key] == value for key, value in chosen.items())]
    found = sorted((run["learning_rate"], run["weight_decay"]) for run in runs)
    assert len(set(found)) == len(found)
    return found


def product(rates, decays):
    return sorted(itertools.product(map(float, rates), map(float, decays)))


def test_fully_connected():
    assert pairs("l2/fc_sgd") == product(FC_RATES, FC_DECAYS)
    assert load("l2/fc_sgd")["stopping"] == {"decay_time": 2.0, "physical_time": 1e6}
    products = [rate * decay for rate, decay in pairs("l2/fc_sgd") if decay]
    assert min(products) == pytest.approx(claims._PAPER_LEAST_PRODUCT)


def test_squared_error():
    assert pairs("l2/mse") == product(MSE_RATES, MSE_DECAYS)
    assert load("l2/mse")["stopping"] == {"decay_time": 1.0, "physical_time": 1e5}


def test_wide_resnet_up_to_4000_epochs_and_one_of_8000():
    affordable = [
        (rate, decay)
        for rate, decay in product(WRN_RATES, WRN_DECAYS)
        if 0.1 / (rate * decay) <= 4000 * (1 + 1e-9)
    ]
    expected = affordable + [(0.2, 6.25e-5)] + [(rate, 0.0) for rate in WRN_RATES]
    assert pairs("l2/wrn_sgd") == sorted(expected)
    # 0.1/(ηλ) epochs of 48 steps, and 10,000 epochs without L2.
    stopping = {"decay_time": pytest.approx(0.1 * (50000 // 1024)), "epochs": 10000}
    assert load("l2/wrn_sgd")["stopping"] == stopping


@pytest.mark.parametrize(("batch_norm", "epochs"), [(False, 21000), (True, 9500)])
def test_cnn(batch_norm, epochs):
    assert pairs("l2/cnn_sgd", batch_norm=batch_norm) == product([0.01], CNN_DECAYS)
    runs = [run for run in expand_runs(load("l2/cnn_sgd")) if run["batch_norm"] == batch_norm]
    assert [run["budget_epochs"] for run in runs if run["weight_decay"] == 0] == [epochs]
    # 0.01/(ηλ) epochs of 390 steps.
    decay_time = load("l2/cnn_sgd")["stopping"]["decay_time"]
    assert decay_time == pytest.approx(0.01 * (50000 // 128))


def test_budgets():
    assert pairs("l2/budgets", weight_decay_from=None) == product([0.2], TUNED_DECAYS)
    runs = [run for run in expand_runs(load("l2/budgets")) if run["weight_decay_from"]]
    found = sorted((run["weight_decay"], run["budget_epochs"]) for run in runs)
    assert found == sorted(itertools.product([1.0, 2.0], map(float, BUDGETS)))
    assert load("l2/estimate")["prediction"] == {
        "budget_epochs": [float(budget) for budget in BUDGETS],
        "first_decay": 0.3,
    }


def test_the_time_is_proportional_to_one_over_the_weight_decay():
    runs = expand_runs(load("l2/schedule"))
    fixed = [run for run in runs if run["budget_epochs"] == 200 and not run["weight_decay_from"]]
    assert len({run["weight_decay"] for run in fixed}) == 6
    others = [run for run in runs if run["budget_epochs"] != 200]
    assert {round(run["budget_epochs"] * run["weight_decay"], 9) for run in others} == {0.1}
    assert load("l2/schedule")["schedule"]["boundaries"] == [0.3, 0.6, 0.9]


def test_the_whole_paper_is_planned_in_seconds(monkeypatch):
    monkeypatch.chdir(PROJECT)
    began = time.perf_counter()
    plan = workflow.make_plan({"scale": "paper", "experiments": ["l2/*"]})
    assert time.perf_counter() - began < 20
    names = find_experiments(PROJECT / "config/experiments", ["l2/*"])
    assert sorted(plan.experiments) == sorted(names)
    runs = {name: experiment.spec["num_runs"] for name, experiment in plan.experiments.items()}
    assert (runs["l2/fc_sgd"], runs["l2/mse"], runs["l2/cnn_sgd"]) == (272, 112, 24)
    panels = [f"{number}{letter}" for number in (1, 5) for letter in "abc"]
    panels += [f"{number}{letter}" for number in (2, 3) for letter in "abcdef"]
    panels += ["4a", "4b", "S1a", "S1b", "S6a", "S6b", "S6c", "S11a", "S11b"]
    panels += [f"S{number}" for number in (2, 3, 4, 5, 7, 8, 9, 10, 12)]
    assert {f"l2/fig{panel}" for panel in panels} <= set(plan.figures)
