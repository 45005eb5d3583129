"""Estimates of what a plan costs."""

from dataclasses import replace

import pytest

from sgdphases.command import main
from sgdphases.cost import Assumptions, dataset_bytes, describe_costs, estimate_costs, known_facts
from sgdphases.workflow import make_plan

EXPERIMENT = """\
description: A known network
dataset: digits
hyperparameters: {model: fully_connected, depth: 2, width: 100, activation: relu, batch_size: 50}
grid: {learning_rate: [0.1, 0.2, 0.3], seed: [0]}
stopping: {num_steps: 1000}
measurements: {steps: [500]}
evaluation: {num_train: 1000, num_test: 360}
runs_per_shard: 2
"""
ASSUMPTIONS = Assumptions(teraflops=1e-3, seconds_per_step=0.0, seconds_per_job=0.0)


@pytest.fixture
def project(workspace, monkeypatch):
    monkeypatch.chdir(workspace.path)
    workspace.write("config/experiments/catapult/known.yaml", EXPERIMENT)
    return workspace


def costs_of(assumptions=ASSUMPTIONS):
    plan = make_plan({"scale": "quick", "experiments": ["catapult/known"]})
    (cost,) = estimate_costs(plan, assumptions)
    return cost


def test_hours_are_those_of_the_products_counted_by_hand(project):
    cost = costs_of()
    forward = 2 * (64 * 100 + 100 * 10)
    # Measured at the first step, step 500, and each run's last.
    flop = 3 * (3 * forward * 50 * 1000 + forward * 1360 * 3)
    assert (cost.num_runs, cost.num_jobs, cost.num_pending) == (3, 3, 3)
    assert cost.device_hours == pytest.approx(flop / 1e9 / 3600)
    assert cost.longest_job_hours == pytest.approx(cost.device_hours * 2 / 3)
    assert not cost.assumes_rates


def test_small_networks_are_bound_by_their_steps_and_jobs(project):
    slow = replace(ASSUMPTIONS, teraflops=1e6, seconds_per_step=0.36, seconds_per_job=36.0)
    assert costs_of(slow).device_hours == pytest.approx(2 * (0.1 + 0.01))


def test_the_sweep_of_a_tuning_is_a_job(project):
    plain = costs_of()
    tuned = EXPERIMENT.replace("activation: relu", "activation: relu, loss: cross_entropy")
    tuned += "temperature_tuning: {points_per_decade: 1, num_fresh_seeds: 2}\n"
    project.write("config/experiments/catapult/known.yaml", tuned)
    cost = costs_of()
    # Beside the three runs of the grid: β = 0.01, 0.1 and 10, and two seeds at two β.
    assert (cost.num_jobs, cost.num_pending) == (4, 4)
    assert cost.device_hours == pytest.approx(plain.device_hours * 10 / 3)
    assert cost.longest_job_hours == pytest.approx(plain.device_hours * 7 / 3)


def test_facts_follow_the_view(project):
    plain = known_facts({"name": "mnist"})
    assert (plain.num_train, plain.input_shape) == (60_000, (28, 28, 1))
    viewed = known_facts({"name": "cifar10", "classes": [1, 2], "labels": "parity", "grey": True})
    assert (viewed.num_train, viewed.num_outputs) == (10_000, 1)
    assert viewed.input_shape == (32, 32, 1)
    assert known_facts({"name": "imagenet"}).input_shape == (224, 224, 3)


def test_the_command_prints_every_experiment_and_refuses_bad_input(project, capsys):
    assert main(["plan", "--config", "scale=smoke", "experiments=[catapult/*]"]) == 0
    printed = capsys.readouterr().out
    for path in project.path.glob("config/experiments/catapult/*.yaml"):
        assert f"catapult/{path.stem} " in printed
    assert "TFLOP/s" in printed
    assert main(["plan", "--teraflops", "0"]) == 2
    assert main(["plan", "--config", "scale=large"]) == 2
    assert "allowed: " in capsys.readouterr().err


def test_what_is_not_known_is_said(project):
    cost = replace(costs_of(), device_hours=None, longest_job_hours=None)
    text = describe_costs(
        [cost, replace(cost, assumes_rates=True)], ASSUMPTIONS, project.path, {"mine": None}
    )
    assert "?: the size of the data is not known" in text
    assert "~: steps depend on rates" in text
    assert "Datasets: mine ?" in text


def test_datasets_take_what_their_arrays_do(project):
    patterns = ["catapult/fc_mnist", "l2/imagenet", "catapult/scalar_relu", "temperature/gru"]
    plan = make_plan({"scale": "paper", "experiments": patterns})
    sizes = dataset_bytes(plan)
    assert sizes["mnist"] == 70_000 * 28 * 28
    assert sizes["imdb"] == 50_000 * 256 * 2
    assert 1.9e11 < sizes["imagenet"] < 2.1e11
    assert sizes["single_point"] < 100
