"""The whole workflow at smoke scale, as a user runs it."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from atlas import check_figures, check_scorecard, check_tables, make_atlas
from sgdphases.config import find_experiments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smoke(make_workspace, tmp_path_factory):
    return make_atlas(make_workspace(tmp_path_factory.mktemp("smoke") / "project"))


def test_every_headline_experiment_leaves_its_tables(smoke):
    check_tables(smoke, find_experiments(smoke.path / "config/experiments", "headline"))


def test_relative_rates_are_resolved_from_the_curvature(smoke):
    folder = smoke.path / "results/experiments/catapult/fc_mnist"
    curvature = pd.read_parquet(folder / "curvature.parquet")
    runs = pd.read_parquet(folder / "runs.parquet")
    critical = 2 / curvature.groupby("seed")["ntk_top_eigenvalue"].mean()
    listed = [0.5, 1.5, 8.0]
    assert sorted(runs["relative_learning_rate"].round(9)) == listed
    expected = critical.loc[runs["seed"]].to_numpy() * runs["relative_learning_rate"]
    pd.testing.assert_series_equal(runs["learning_rate"], expected, check_names=False)


def test_the_inverse_temperature_is_tuned_around_the_grids_runs(smoke):
    folder = smoke.path / "results/experiments/temperature/tuning"
    tuning = json.loads((folder / "temperature_tuning.json").read_text(encoding="utf-8"))
    sweep = pd.read_parquet(folder / "temperature_sweep.parquet")
    runs = pd.read_parquet(folder / "runs.parquet")
    assert tuning["learning_rate_at_1"] == 0.3
    rates = sweep["learning_rate"] * sweep["inverse_temperature"]
    assert rates.to_numpy() == pytest.approx(0.3)
    at_one = sweep[(sweep["stage"] == "sweep") & (sweep["inverse_temperature"] == 1)]
    assert set(at_one["run_id"]) < set(runs["run_id"])
    values = sorted(row["inverse_temperature"] for row in tuning["sweep"])
    assert set(values) >= {0.01, 0.1, 1.0, 10.0}
    assert tuning["inverse_temperature"] in values
    assert set(tuning["fresh_seeds"]).isdisjoint(tuning["seeds"])


def test_figures_are_pictures_with_their_numbers(smoke):
    check_figures(smoke, find_experiments(smoke.path / "config/experiments", "headline"))


def test_scorecard_lists_every_claim_and_computes_verdicts(smoke):
    check_scorecard(smoke)


def test_a_second_run_has_nothing_to_do(smoke):
    result = smoke.snakemake("--config", "scale=smoke")
    assert result.returncode == 0
    assert "Nothing to be done" in result.output


def test_report_is_written(smoke):
    result = smoke.snakemake("--config", "scale=smoke", "--report", "results/report.html")
    assert result.returncode == 0, result.output[-2000:]
    text = (smoke.path / "results/report.html").read_text(encoding="utf-8")
    for name in ("fig3c", "figS12", "Figures, catapult", "Claims", "Computing time"):
        assert name in text
    # A colon in a category breaks the links that Snakemake adds to the description.
    assert "System Message" not in text


def test_training_never_imports_tensorflow():
    modules = "sgdphases.training, sgdphases.curvature, sgdphases.datasets, sgdphases.workflow"
    code = f"import sys, {modules}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parsing_imports_neither_jax_nor_matplotlib():
    code = (
        "import sys, sgdphases.workflow;"
        "sys.exit(', '.join({'jax', 'matplotlib', 'pandas', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_scale_paper_is_planned_without_running(workspace):
    before = os.times()
    result = workspace.snakemake("--dry-run", "--config", "scale=paper", "manual_dir=config")
    after = os.times()
    assert result.returncode == 0, result.output[-2000:]
    assert after.children_user - before.children_user < 30
    assert result.job_stats["training_shard"] > 10
    assert sum(result.job_stats.values()) < 5000
    assert "results/datasets/mnist/manifest.json" in result.output
