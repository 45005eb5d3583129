"""A part of the workflow at smoke scale: one experiment that trains, one of theory."""

import json

import pandas as pd
import pytest

EXPERIMENTS = ("catapult/fc_mnist", "catapult/warmup_phases")


@pytest.fixture(scope="module")
def first(make_workspace, tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("first") / "project")
    chosen = f"experiments={json.dumps(EXPERIMENTS)}"
    command = ("--cores", "2", "--config", "scale=smoke", chosen)
    result = workspace.snakemake(*command, timeout=600)
    assert result.returncode == 0, result.output[-3000:]
    return workspace, command


def test_tables_figures_and_verdicts_are_there(first):
    workspace, _ = first
    for name in EXPERIMENTS:
        folder = workspace.path / "results/experiments" / name
        runs = pd.read_parquet(folder / "runs.parquet")
        history = pd.read_parquet(folder / "history.parquet")
        assert len(runs)
        assert set(history["run_id"]) == set(runs["run_id"])
    figures = workspace.path / "results/figures/catapult"
    drawn = {path.stem for path in figures.glob("*.svg")}
    assert {"fig2a", "fig2b", "fig2c", "fig3c"} <= drawn
    assert {path.stem for path in figures.glob("*.parquet")} == drawn
    claims = pd.read_parquet(workspace.path / "results/claims.parquet").set_index("id")
    assert claims.loc["CAT-04", "verdict"] in ("reproduced", "not reproduced")
    assert (claims["verdict"] == "not run").sum() > 100


def test_a_second_run_has_nothing_to_do(first):
    workspace, command = first
    again = workspace.snakemake(*command)
    assert again.returncode == 0
    assert "Nothing to be done" in again.output
