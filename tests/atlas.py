"""The workflow's results at smoke scale, and what must be true of them."""

import pandas as pd
import yaml

from sgdphases.config import expand_runs

RUN_COLUMNS = {
    "experiment",
    "run_id",
    "seed",
    "status",
    "steps",
    "phase",
    "initial_train_loss",
    "peak_train_loss",
    "final_train_loss",
    "final_train_accuracy",
    "final_test_accuracy",
    "max_test_accuracy",
    "time_to_peak",
    "initial_ntk_top_eigenvalue",
    "final_ntk_top_eigenvalue",
}
HISTORY_COLUMNS = {
    "experiment",
    "run_id",
    "step",
    "physical_time",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
}
CLAIM_COLUMNS = {
    "id",
    "paper",
    "figure",
    "quantity",
    "expected",
    "low",
    "high",
    "measured",
    "ci_low",
    "ci_high",
    "verdict",
    "scale",
    "dataset",
    "experiment",
}


def make_atlas(workspace, *config):
    """Run the whole workflow in a copy of the project, which is returned."""
    result = workspace.snakemake(
        *("--cores", "2", "--config", "scale=smoke", *config),
        timeout=1800,
        # Programs this small run for less time than they take to be optimised.
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    assert result.returncode == 0, result.output[-3000:]
    return workspace


def check_tables(workspace, names):
    """The experiments that were computed are those of some names, and have tables that agree."""
    folders = sorted(
        path.parent for path in workspace.path.glob("results/experiments/*/*/spec.yaml")
    )
    assert [f"{folder.parent.name}/{folder.name}" for folder in folders] == sorted(names)
    for folder in folders:
        spec = yaml.safe_load((folder / "spec.yaml").read_text(encoding="utf-8"))
        runs = pd.read_parquet(folder / "runs.parquet")
        history = pd.read_parquet(folder / "history.parquet")
        assert set(runs) >= RUN_COLUMNS, folder
        assert set(history) >= HISTORY_COLUMNS, folder
        assert list(runs["run_id"]) == [run["run_id"] for run in expand_runs(spec)], folder
        assert set(history["run_id"]) <= set(runs["run_id"]), folder
        assert runs["status"].isin(["finished", "stopped", "diverged", "unreachable"]).all(), folder
        assert runs["phase"].dropna().isin(["lazy", "catapult", "divergent"]).all(), folder
        reached = runs[runs["status"] != "unreachable"]
        last = history.groupby("run_id")["step"].max()
        assert (last.loc[reached["run_id"]].to_numpy() == reached["steps"]).all(), folder
        assert (folder / "curvature.parquet").exists() == (spec.get("curvature") is not None)


def check_figures(workspace, names):
    """The figures that were drawn are those of some experiments, as pictures and numbers."""
    drawn = sorted((workspace.path / "results/figures").rglob("*.svg"))
    listed = [
        f"{name.split('/')[0]}/{figure}"
        for name in names
        for figure in yaml.safe_load(
            (workspace.path / f"config/experiments/{name}.yaml").read_text(encoding="utf-8")
        ).get("figures", {})
    ]
    assert sorted(f"{path.parent.name}/{path.stem}" for path in drawn) == sorted(listed)
    for path in drawn:
        assert path.read_text(encoding="utf-8").startswith("<?xml")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_parquet(path.with_suffix(".parquet"))) > 0, path


def check_scorecard(workspace):
    """Every claim is listed, and verdicts follow from values and ranges."""
    claims = pd.read_parquet(workspace.path / "results/claims.parquet")
    assert set(claims) >= CLAIM_COLUMNS
    assert len(claims) == 165
    assert claims["id"].is_unique
    measured = claims[claims["verdict"] != "not run"]
    assert len(measured) > 5
    assert (measured["scale"] == "smoke").all()
    below = measured["low"].notna() & (measured["measured"] < measured["low"])
    above = measured["high"].notna() & (measured["measured"] > measured["high"])
    reproduced = measured["verdict"] == "reproduced"
    assert not (reproduced & (below | above)).any()
    # Within its range and not reproduced: another condition of the claim fails, which detail names.
    failed = ~(reproduced | below | above)
    assert (measured.loc[failed, "detail"].str.len() > 0).all()
    text = (workspace.path / "results/claims.md").read_text(encoding="utf-8")
    assert all(name in text for name in claims["id"])
