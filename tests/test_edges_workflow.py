"""The edge search within the real workflow: learning rates relative to an edge."""

import numpy as np
import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slow

NAME = "richness/portrait"
FILE = f"config/experiments/{NAME}.yaml"
FOLDER = f"results/experiments/{NAME}"
ARGUMENTS = ["--config", "scale=smoke", f"experiments={NAME}", "--", f"{FOLDER}/edges.parquet"]
RATES = {"relative_to": "edge", "values": [0.1, 1.0]}
EXPERIMENT = {
    "description": "A small portrait",
    "dataset": {"name": "digits", "num_train": 64},
    "hyperparameters": {
        "model": "fully_connected",
        "depth": 2,
        "width": 16,
        "parametrisation": "mup",
        "centered": True,
        "batch_size": 32,
        "precision": "float64",
    },
    "grid": {"richness": [0.01, 100.0], "learning_rate": RATES, "seed": [0, 1]},
    "stopping": {"num_steps": 30},
    "edge_search": {
        "num_steps": 20,
        "edges": ["convergence", "training"],
        "first_rate": 1.0e-4,
        "first_rate_relative_to": "richness_law",
        "decades": 8,
        "rates_per_decade": 1,
    },
    "evaluation": {"num_train": 32, "num_test": 32},
    "measurements": {"steps": [0]},
    "figures": {},
}


def run(workspace, **changes):
    text = yaml.safe_dump({**EXPERIMENT, **changes}, sort_keys=False)
    workspace.write(FILE, text)
    return workspace.snakemake(*ARGUMENTS, f"{FOLDER}/runs.parquet")


def tables(workspace):
    return [pd.read_parquet(workspace.path / FOLDER / f"{t}.parquet") for t in ("edges", "runs")]


def test_rates_are_relative_to_the_edge_and_a_new_one_trains_alone(make_workspace, tmp_path):
    workspace = make_workspace(tmp_path / "project")
    result = run(workspace)
    assert result.returncode == 0, result.output
    edges, runs = tables(workspace)
    assert len(edges) == 2 * 2 * 2
    assert np.isfinite(edges["rate_beyond"]).all()
    largest = edges[edges["edge"] == "convergence"].set_index(["richness", "seed"])
    expected = largest.loc[list(zip(runs["richness"], runs["seed"], strict=True)), "learning_rate"]
    assert np.allclose(runs["edge_learning_rate"], expected)
    factors = (runs["learning_rate"] / runs["edge_learning_rate"]).round(9)
    assert sorted(factors) == [0.1] * 4 + [1.0] * 4

    grid = {**EXPERIMENT["grid"], "learning_rate": {**RATES, "values": [0.1, 0.3, 1.0]}}
    result = run(workspace, grid=grid)
    assert result.returncode == 0, result.output
    assert "edge_shard" not in result.job_stats
    assert result.job_stats["training_shard"] == 1
    assert len(tables(workspace)[1]) == 12

    # A search that ends before the edge: the runs are not trained at the end of its range.
    search = {**EXPERIMENT["edge_search"], "decades": 2}
    result = run(workspace, edge_search=search)
    assert result.returncode != 0
    (line,) = {line for line in result.error_lines if "edge" in line}
    assert "no convergence edge was found for 4 of 4 cases" in line
    assert "decades" in line
    assert len(pd.read_parquet(workspace.path / FOLDER / "edges.parquet")) == 8

    # So small a richness needs another range: its runs take no step, the others train.
    grid = {**EXPERIMENT["grid"], "seed": [0]}
    search = {**EXPERIMENT["edge_search"], "first_rate_relative_to": "absolute", "decades": 6}
    result = run(workspace, edge_search=search, grid=grid)
    assert result.returncode == 0, result.output
    assert "no convergence edge was found for 1 of 2 cases, first for richness 100" in result.output
    status = tables(workspace)[1].set_index("richness")["status"]
    assert set(status[100.0]) == {"unreachable"}
    assert set(status[0.01]) <= {"finished", "diverged"}


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"edge_search": None}, ["relative_to", "'edge'", "edge_search"]),
        (
            {"edge_search": {**EXPERIMENT["edge_search"], "edges": ["sharp"]}},
            ["edge_search.edges[0]", "'sharp'", "convergence"],
        ),
        (
            {"edge_search": {**EXPERIMENT["edge_search"], "decades": 0}},
            ["edge_search.decades", "above 0"],
        ),
        (
            {"grid": {**EXPERIMENT["grid"], "richness": [0.0]}},
            ["grid.richness[0]", "above 0"],
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(make_workspace, tmp_path, changes, fragments):
    workspace = make_workspace(tmp_path / "project")
    changes = {key: value for key, value in changes.items() if value is not None} | (
        {} if changes.get("edge_search", 1) is not None else {"edge_search": None}
    )
    document = {**EXPERIMENT, **changes}
    document = {key: value for key, value in document.items() if value is not None}
    workspace.write(FILE, yaml.safe_dump(document, sort_keys=False))
    result = workspace.snakemake("--dry-run", *ARGUMENTS)
    assert result.returncode == 2
    (line,) = result.error_lines
    for fragment in (FILE, *fragments):
        assert fragment in line
