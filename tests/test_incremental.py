"""What a change of grid, caption or code computes again, and what it leaves alone.

All tests start from copies of one finished run of the real workflow at scale smoke.
"""

import json
from collections import Counter

import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slow

FILE = "config/experiments/catapult/fc_mnist.yaml"
FOLDER = "results/experiments/catapult/fc_mnist"
TARGETS = [
    f"{FOLDER}/{name}"
    for name in ("spec.yaml", "runs.parquet", "history.parquet", "curvature.parquet")
] + ["results/figures/catapult/fig3c.svg"]
ARGUMENTS = ["--config", "scale=smoke", "experiments=catapult/fc_mnist", "--"]
NOTHING = "Nothing to be done"
# What computes nothing anew: no data, no curvature, no training.
CHEAP = {"spec", "curvature", "aggregate", "figure"}


def make(workspace):
    result = workspace.snakemake(*ARGUMENTS, *TARGETS)
    assert result.returncode == 0, result.output
    return result


def jobs(workspace):
    """Jobs that would run, by rule."""
    result = workspace.snakemake("--dry-run", *ARGUMENTS, *TARGETS)
    assert result.returncode == 0, result.output
    assert bool(result.job_stats) != (NOTHING in result.output), result.output
    return result.job_stats


def edit(workspace, change):
    """Change the experiment file: `change` gets what it holds and the smoke scale's part."""
    document = yaml.safe_load((workspace.path / FILE).read_text(encoding="utf-8"))
    change(document, document["scales"]["smoke"])
    workspace.write(FILE, yaml.safe_dump(document, sort_keys=False))


def replace(workspace, module, old, new):
    path = f"src/sgdphases/{module}.py"
    text = (workspace.path / path).read_text(encoding="utf-8")
    assert old in text
    workspace.write(path, text.replace(old, new, 1))


def shards(workspace, stage="training"):
    """What each finished shard holds, by the shard's name."""
    notes = (workspace.path / FOLDER / f"{stage}_shards").glob("*/shard.json")
    return {note.parent.name: json.loads(note.read_text())["items"] for note in notes}


def stamps(workspace):
    """When each table of a shard was written."""
    tables = (workspace.path / FOLDER).glob("*_shards/*/*.parquet")
    return {str(t.relative_to(workspace.path)): t.stat().st_mtime_ns for t in tables}


def runs_table(workspace):
    return pd.read_parquet(workspace.path / FOLDER / "runs.parquet")


def add_rate(document, smoke):
    smoke["grid"]["learning_rate"]["values"].append(2.5)


def remove_rate(document, smoke):
    smoke["grid"]["learning_rate"]["values"].pop()


def add_seed(document, smoke):
    smoke["grid"]["seed"] = [0, 1]


@pytest.fixture(scope="module")
def original(tmp_path_factory, make_workspace):
    """Finished once; never changed."""
    workspace = make_workspace(tmp_path_factory.mktemp("incremental") / "project")

    def shrink(document, smoke):
        smoke["hyperparameters"].update(width=16, batch_size=16)
        smoke["dataset"] = {"num_train": 64}
        smoke["curvature"].update(batch_size=16, num_batches=1, num_lanczos_steps=4)
        smoke["evaluation"] = {"num_train": 32, "num_test": 32}
        smoke["stopping"] = {"num_steps": 4}

    edit(workspace, shrink)
    make(workspace)
    return workspace


@pytest.fixture
def finished(original, tmp_path):
    return original.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def two_seeds(original, tmp_path_factory):
    """Finished once more, with a second seed."""
    workspace = original.copy(tmp_path_factory.mktemp("two_seeds") / "project")
    edit(workspace, add_seed)
    stats = make(workspace).job_stats
    return workspace, stats


def test_a_view_trains_anew_on_the_same_dataset(finished):
    def change(document, smoke):
        smoke["dataset"].update(classes=[3, 1, 8], labels="parity", resize=4, num_train=32)

    edit(finished, change)
    stats = jobs(finished)
    assert "dataset" not in stats
    assert stats["curvature_shard"] > 0
    assert stats["training_shard"] > 0


def test_a_second_run_does_nothing(finished):
    before = stamps(finished)
    assert NOTHING in make(finished).output
    assert stamps(finished) == before
    rows = runs_table(finished)
    assert len(rows) == 3
    assert sorted(len(items) for items in shards(finished).values()) == [1, 2]
    assert set(rows["run_id"]) == {run for items in shards(finished).values() for run in items}


def test_an_added_rate_trains_the_new_run_only(finished):
    old_shards, old_stamps = shards(finished), stamps(finished)
    edit(finished, add_rate)
    stats = make(finished).job_stats
    assert stats["training_shard"] == 1
    assert not {"curvature_shard", "dataset"} & set(stats)
    new = {name: items for name, items in shards(finished).items() if name not in old_shards}
    (items,) = new.values()
    (run,) = items.values()
    assert run["learning_rate"] == 2.5
    assert old_stamps.items() <= stamps(finished).items()
    assert sorted(shards(finished).keys() - new.keys()) == sorted(old_shards)
    assert len(runs_table(finished)) == 4
    assert jobs(finished) == {}


def test_a_removed_rate_trains_nothing(finished):
    before = stamps(finished)
    edit(finished, remove_rate)
    stats = make(finished).job_stats
    assert set(stats) - {"all"} <= CHEAP
    assert stamps(finished) == before
    left = yaml.safe_load((finished.path / FOLDER / "spec.yaml").read_text())
    assert len(runs_table(finished)) == len(left["grid"]["learning_rate"]["values"]) == 2
    # And back: everything is there still.
    edit(finished, lambda document, smoke: smoke["grid"]["learning_rate"]["values"].append(8.0))
    assert set(jobs(finished)) <= CHEAP


def test_an_added_seed_trains_and_measures_that_seed_only(original, two_seeds):
    workspace, stats = two_seeds
    assert stats["curvature_shard"] == 1
    assert "dataset" not in stats
    for stage, number in (("training", 3), ("curvature", 1)):
        new = shards(workspace, stage).keys() - shards(original, stage).keys()
        items = [item for name in new for item in shards(workspace, stage)[name].values()]
        assert Counter(item["seed"] for item in items) == {1: number}
    assert stamps(original).items() <= stamps(workspace).items()
    assert Counter(runs_table(workspace)["seed"]) == {0: 3, 1: 3}
    curvature = pd.read_parquet(workspace.path / FOLDER / "curvature.parquet")
    assert Counter(curvature["seed"]) == {0: 1, 1: 1}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_removed_seed_trains_nothing(two_seeds, tmp_path, seed):
    workspace = two_seeds[0].copy(tmp_path / "project")
    edit(workspace, lambda document, smoke: smoke["grid"].update(seed=[seed]))
    assert set(jobs(workspace)) <= CHEAP


def test_a_caption_redraws_the_figure_at_most(finished):
    edit(finished, lambda document, smoke: document["figures"]["fig3c"].update(caption="New."))
    assert set(jobs(finished)) <= {"figure"}


def test_words_compute_nothing(finished):
    def reword(document, smoke):
        document["description"] = "In other words"
        smoke["stopping"] = dict(reversed(smoke["stopping"].items()))
        for part in ("hyperparameters", "curvature", "evaluation"):
            document[part] = dict(reversed(document[part].items()))

    edit(finished, reword)
    assert set(jobs(finished)) <= CHEAP


TRAINED = {"training_shard", "aggregate", "figure"}


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        ("training", '"""Train the runs', '"""Train all the runs', set()),
        ("training", "import logging\n", "import logging  # for messages\n", set()),
        ("validation", "is not allowed", "is refused", set()),
        ("figures/style", '"""', '"""New. ', set()),
        ("training", "\nlogger = ", "\n_NEW = 3\nlogger = ", TRAINED),
        (
            "curvature",
            "\nlogger = ",
            "\n_NEW = 3\nlogger = ",
            TRAINED | {"curvature_shard", "curvature"},
        ),
        ("figures/style", "\nimport ", "\nimport abc\nimport ", {"figure"}),
    ],
)
def test_code_runs_again_what_depends_on_it(finished, module, old, new, expected):
    replace(finished, module, old, new)
    assert set(jobs(finished)) == expected


def test_a_lost_shard_is_trained_again_under_its_name(finished):
    names = set(shards(finished))
    lost = finished.path / FOLDER / "training_shards" / sorted(names)[0]
    # Snakemake asks for a shard's tables when it puts them together, and not before.
    (lost / "runs.parquet").unlink()
    (finished.path / FOLDER / "runs.parquet").unlink()
    assert make(finished).job_stats["training_shard"] == 1
    assert set(shards(finished)) == names
    assert (lost / "runs.parquet").exists()
