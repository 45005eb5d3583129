"""A generated dataset through the real Snakemake: rules, quality, figure, bad input."""

import json

import numpy as np
import pandas as pd
import pytest

from sgdphases.datasets import load, verify

pytestmark = pytest.mark.slow

FIGURE = "results/figures/richness/fig7.svg"
TARGETS = ["results/datasets/mnist1m/quality.json", FIGURE]
SMOKE = ["--config", "scale=smoke"]


@pytest.fixture(scope="module")
def smoke(make_workspace, tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("generated") / "project")
    result = workspace.snakemake("--cores", "2", *TARGETS, *SMOKE)
    assert result.returncode == 0, result.output[-3000:]
    assert result.job_stats == {
        "dataset": 1,
        "diffusion_model": 1,
        "diffusion_shard": 2,
        "diffusion_dataset": 1,
        "diffusion_quality": 1,
        "sample_sheet": 1,
    }
    return workspace


def test_dataset_quality_and_figure_are_there(smoke):
    folder = smoke.path / "results/datasets/mnist1m"
    verify(folder)
    dataset = load(folder)
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), np.full(10, 20))
    quality = json.loads((folder / "quality.json").read_text())
    assert (quality["dataset"], quality["base"]) == ("mnist1m", "digits")
    assert 0 <= quality["label_agreement"] <= 1
    assert quality["classifier_test_accuracy"] > 0.9
    assert quality["test_accuracy_of_real"] > 0.7
    assert (smoke.path / FIGURE).read_text().startswith("<?xml")
    assert len(pd.read_parquet((smoke.path / FIGURE).with_suffix(".parquet"))) == 110


def test_a_second_call_has_nothing_to_do_and_more_shards_draw_only_these(smoke):
    result = smoke.snakemake(*TARGETS, *SMOKE)
    assert "Nothing to be done" in result.output
    definition = smoke.path / "config/datasets/mnist1m.yaml"
    text = definition.read_text()
    before = "    num_images: 200\n    num_shards: 2\n"
    assert before in text
    definition.write_text(text.replace(before, "    num_images: 300\n    num_shards: 3\n"))
    result = smoke.snakemake("--dry-run", *TARGETS, *SMOKE)
    definition.write_text(text)
    assert result.job_stats["diffusion_shard"] == 1
    assert "diffusion_model" not in result.job_stats
    assert result.job_stats["diffusion_dataset"] == 1


def test_figure_is_in_the_report_when_asked_for(smoke):
    result = smoke.snakemake(FIGURE, *SMOKE, "--report", "results/report.html")
    assert result.returncode == 0, result.output[-2000:]
    assert "fig7" in (smoke.path / "results/report.html").read_text()


def test_default_targets_leave_it_out(workspace):
    result = workspace.snakemake("--dry-run", *SMOKE)
    assert result.returncode == 0, result.output[-2000:]
    assert not [rule for rule in result.job_stats if rule.startswith("diffusion")]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("guidance: 0.5", "guidance: -1.0", "sampling.guidance: -1.0 is not allowed"),
        ("sampler: ddim", "sampler: euler", "sampling.sampler: 'euler' is not allowed"),
        ("embedded: digits", "embedded: digit", "base: 'digit' is no dataset to learn from"),
        ("num_images: 200\n", "num_images: 201\n", "num_images: 201; allowed: a multiple of num_"),
    ],
)
def test_bad_definition_ends_before_any_job(workspace, old, new, says):
    path = workspace.path / "config/datasets/mnist1m.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    result = workspace.snakemake(FIGURE, *SMOKE)
    assert result.returncode == 2
    assert "Traceback" not in result.output
    (line,) = result.error_lines
    assert "mnist1m.yaml" in line
    assert says in line
    assert not (workspace.path / "results").exists()
