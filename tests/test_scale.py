"""Planning stays possible where grids are large."""

import time

import pytest
import yaml

from sgdphases.workflow import make_plan

pytestmark = pytest.mark.slow

NUM_SEEDS_OF_A_RATE = 200
EXPERIMENT = {
    "description": "Many runs",
    "dataset": "digits",
    "hyperparameters": {"model": "fully_connected", "depth": 2, "width": 32, "batch_size": 64},
    "stopping": {"num_steps": 10},
    "measurements": {"every": 10},
    "curvature": {"batch_size": 64, "num_batches": 1},
    "evaluation": {"num_train": 64, "num_test": 64},
}


def seconds_to_plan(num_runs):
    """CPU seconds until every shard and its inputs are known, as when the workflow is parsed."""
    rates = {"relative_to": "critical", "logspace": {"start": 1e-2, "stop": 10.0}}
    rates["logspace"]["num"] = num_runs // NUM_SEEDS_OF_A_RATE
    grid = {"learning_rate": rates, "seed": list(range(NUM_SEEDS_OF_A_RATE))}
    with open("config/experiments/catapult/many.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump({**EXPERIMENT, "grid": grid}, file)
    began = time.process_time()
    plan = make_plan({"scale": "quick", "experiments": ["catapult/many"]})
    experiment = plan.experiments["catapult/many"]
    inputs = [experiment.curvature_shards_of(shard) for shard in experiment.training_shards]
    seconds = time.process_time() - began
    assert len(experiment.runs) == num_runs
    assert all(inputs)
    return seconds


def test_planning_grows_linearly_up_to_100_000_runs(workspace, monkeypatch):
    monkeypatch.chdir(workspace.path)
    seconds_to_plan(1000)  # imports, and reads schemas
    small, large = seconds_to_plan(20_000), seconds_to_plan(100_000)
    print(f"20,000 runs: {small:.1f} s, 100,000 runs: {large:.1f} s")
    assert large < 60
    assert large < 1.6 * 5 * small
