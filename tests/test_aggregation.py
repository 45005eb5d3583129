"""Putting the tables of shards together."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from sgdphases.aggregation import aggregate, aggregate_curvature, aggregate_runs
from sgdphases.config import expand_networks, expand_runs
from sgdphases.errors import InputError
from sgdphases.storage import write_parquet

SPEC = {
    "experiment": "catapult/tiny",
    "kind": "training",
    "hyperparameters": {"model": "fully_connected"},
    "grid": {"learning_rate": [0.1, 0.2, 0.3], "seed": [0, 1]},
    "dataset": {"name": "digits", "num_train": None},
    "curvature": {"batch_size": 4},
    "data_seed": 0,
}
RUNS = [run["run_id"] for run in expand_runs(SPEC)]


@pytest.fixture
def shard(tmp_path):
    """A writer of one shard's table; gives the shard's folder."""

    def write(name, table="runs", **columns):
        write_parquet(pd.DataFrame(columns), tmp_path / name / f"{table}.parquet")
        return tmp_path / name

    return write


def test_rows_come_in_the_order_of_the_grid(shard):
    folders = [shard("one", run_id=["c", "a"], loss=[3, 1]), shard("two", run_id=["b"], loss=[2])]
    for order in (folders, folders[::-1]):
        table = aggregate(SPEC, order, "runs", "run_id", ["b", "c", "a"])
        assert table["run_id"].tolist() == ["b", "c", "a"]
        assert table["loss"].tolist() == [2, 3, 1]
        assert table.index.tolist() == [0, 1, 2]


def test_rows_of_an_item_keep_their_order(shard):
    one = shard("one", run_id=["b", "a", "b", "a"], step=[0, 0, 10, 10])
    two = shard("two", run_id=["c", "c"], step=[0, 5])
    table = aggregate(SPEC, [one, two], "runs", "run_id", ["c", "a", "b"])
    assert table.to_numpy().tolist() == [
        ["c", 0],
        ["c", 5],
        ["a", 0],
        ["a", 10],
        ["b", 0],
        ["b", 10],
    ]


def test_rows_of_other_items_are_left_out(shard):
    table = aggregate(SPEC, [shard("one", run_id=["a", "b", "c"])], "runs", "run_id", ["b"])
    assert table["run_id"].tolist() == ["b"]


def test_an_item_of_two_shards_is_taken_from_the_first(shard):
    """After an edit and its undoing two finished shards may hold the same run."""
    one = shard("one", run_id=["a", "a", "b"], step=[0, 1, 0], loss=[1, 1, 1])
    two = shard("two", run_id=["b", "c", "a"], step=[0, 0, 0], loss=[2, 2, 2])
    table = aggregate(SPEC, [one, two], "runs", "run_id", ["a", "b", "c"])
    assert table["loss"].tolist() == [1, 1, 1, 2]
    table = aggregate(SPEC, [two, one], "runs", "run_id", ["a", "b", "c"])
    assert table["loss"].tolist() == [2, 2, 2]


def test_a_missing_item_is_named(shard):
    with pytest.raises(InputError, match=r"catapult/tiny: 2 of 3 items .* first b; delete"):
        aggregate(SPEC, [shard("one", run_id=["a"])], "runs", "run_id", ["a", "c", "b"])


@pytest.mark.filterwarnings("error")
def test_types_do_not_depend_on_what_a_shard_holds(shard):
    """One shard with no phase and no kernel, one with both."""
    none = shard("one", run_id=["a"], phase=[None], final_ntk_top_eigenvalue=[float("nan")])
    some = shard("two", run_id=["b"], phase=["lazy"], final_ntk_top_eigenvalue=[1.5])
    for folders, wanted in (([none], ["a"]), ([some], ["b"]), ([none, some], ["a", "b"])):
        table = aggregate(SPEC, folders, "runs", "run_id", wanted)
        assert table["phase"].dtype == "string"
        assert table["final_ntk_top_eigenvalue"].dtype == float
    assert table["phase"].isna().tolist() == [True, False]


@pytest.mark.filterwarnings("error")
def test_hyperparameters_have_one_type_whichever_models_have_them(shard, tmp_path):
    plain = shard("plain", run_id=["a"], seed=[0], depth=[3], bias_scale=[float("nan")])
    wide = shard(
        "wide",
        run_id=["b"],
        seed=[1],
        batch_norm=[True],
        batch_norm_samples=[float("nan")],
        linearize_at=[5],
        attention_scale=["inverse"],
        bias_scale=[0.5],
        model_version=["0123456789ab"],
    )
    alone = aggregate(SPEC, [plain], "runs", "run_id", ["a"])
    assert (alone["depth"].dtype, alone["bias_scale"].dtype) == ("int64", "float64")
    both = aggregate(SPEC, [plain, wide], "runs", "run_id", ["a", "b"])
    expected = {
        "seed": "int64",
        "depth": "Int64",
        "batch_norm": "boolean",
        "batch_norm_samples": "Int64",
        "linearize_at": "Int64",
        "attention_scale": "string",
        "bias_scale": "float64",
        "model_version": "string",
    }
    assert {name: str(both[name].dtype) for name in expected} == expected
    assert both["depth"].tolist() == [3, pd.NA]
    swapped = aggregate(SPEC, [wide, plain], "runs", "run_id", ["a", "b"])
    pd.testing.assert_frame_equal(swapped, both)
    # In the file a column has the type that it has without missing values.
    both.to_parquet(tmp_path / "both.parquet", index=False)
    stored = pq.read_schema(tmp_path / "both.parquet")
    assert [str(stored.field(name).type) for name in ("depth", "batch_norm", "linearize_at")] == [
        "int64",
        "bool",
        "int64",
    ]


def test_runs_and_history_are_those_of_the_spec(shard):
    shard("one", run_id=[*RUNS[::-1], "left the grid"], seed=range(7))
    shard("one", "history", run_id=[run for run in RUNS for _ in range(2)], step=[0, 1] * 6)
    runs, history = aggregate_runs(SPEC, [shard("one", "other", x=[1])])
    assert runs["run_id"].tolist() == RUNS
    assert history["run_id"].tolist() == [run for run in RUNS for _ in range(2)]
    assert history["step"].tolist() == [0, 1] * 6


def test_curvature_has_one_row_for_each_network_and_batch(shard):
    networks = [network["network_id"] for network in expand_networks(SPEC)]
    assert len(networks) == 2
    ids = [network for network in networks[::-1] for _ in range(3)]
    folder = shard("one", "curvature", network_id=ids, batch=[0, 1, 2] * 2)
    table = aggregate_curvature(SPEC, [folder])
    assert table["network_id"].tolist() == ids[::-1]
    assert table["batch"].tolist() == [0, 1, 2] * 2
