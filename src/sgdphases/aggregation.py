"""Put the tables of an experiment's shards together."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sgdphases.config import MODEL_VERSION, expand_cases, expand_networks, expand_runs
from sgdphases.errors import InputError
from sgdphases.grid import hyperparameter_schemas
from sgdphases.storage import read_parquet

# Columns of text that may be null besides those of hyperparameters.
_TEXT_COLUMNS = ("phase", MODEL_VERSION)
# By JSON type, the column types without and with missing values; both are stored alike.
_COLUMN_TYPES = {
    "number": ("float64", "float64"),
    "integer": ("int64", "Int64"),
    "boolean": ("bool", "boolean"),
}


def aggregate(
    spec: dict[str, Any], shards: Iterable[Path], table: str, key: str, wanted: Sequence[str]
) -> pd.DataFrame:
    """Concatenate one table of all shards, in the order of the grid.

    Args:
        spec: The resolved experiment.
        shards: Folders of the shards.
        table: Name of the table, e.g. "runs".
        key: Column that names the item a row belongs to.
        wanted: The grid's items in order; rows of others are left out.

    Returns:
        The table, sorted by item and then as the shards hold it.

    Raises:
        InputError: A wanted item is in no shard.
    """
    parts = [read_parquet(folder / f"{table}.parquet") for folder in shards]
    # Columns of some shards only come last, in an order that does not depend on the shards' names.
    common = [column for column in parts[0] if all(column in part for part in parts)]
    merged = pd.concat(parts, ignore_index=True)
    merged = merged[[*common, *sorted(set(merged) - set(common), key=str)]]
    # Two finished shards may hold the same item after an edit and its undoing.
    first_part = pd.concat(
        [part[[key]].drop_duplicates().assign(part=i) for i, part in enumerate(parts)]
    ).drop_duplicates(key)
    origin = pd.concat([part[[key]].assign(part=i) for i, part in enumerate(parts)])
    chosen = origin["part"].to_numpy() == merged[key].map(first_part.set_index(key)["part"])
    merged = merged[chosen & merged[key].isin(wanted)]
    missing = set(wanted) - set(merged[key])
    if missing:
        raise InputError(
            f"{spec['experiment']}: {len(missing)} of {len(wanted)} items are in no shard, first "
            f"{sorted(missing)[0]}; delete the experiment's shards folder and run again"
        )
    order = {name: i for i, name in enumerate(wanted)}
    merged = merged.sort_values(key, key=lambda names: names.map(order), kind="stable")
    return _typed(merged.reset_index(drop=True))


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Give columns types that do not depend on which runs a shard happens to hold.

    A column that is null in a whole shard, or that only the runs of some models have, would
    otherwise lose its type.
    """
    types = {column: "string" for column in _TEXT_COLUMNS if column in table}
    for column, schema in hyperparameter_schemas().items():
        if column not in table:
            continue
        has_nulls = bool(table[column].isna().any())
        kinds = schema.get("type", "enum")
        kind = next(k for k in ([kinds] if isinstance(kinds, str) else kinds) if k != "null")
        if kind in _COLUMN_TYPES:
            types[column] = _COLUMN_TYPES[kind][has_nulls]
        elif has_nulls:
            types[column] = "string"
    return table.astype(types)


def aggregate_curvature(spec: dict[str, Any], shards: Iterable[Path]) -> pd.DataFrame:
    """Put the curvature of an experiment's networks together.

    Args:
        spec: The resolved experiment.
        shards: Folders of the curvature shards.

    Returns:
        One row per (network, seed, batch): see `measure_networks`.

    Raises:
        InputError: A network is in no shard, or a shard's table cannot be read.
    """
    wanted = [network["network_id"] for network in expand_networks(spec)]
    return aggregate(spec, shards, "curvature", "network_id", wanted)


def aggregate_edges(spec: dict[str, Any], shards: Iterable[Path]) -> pd.DataFrame:
    """Put the edges of an experiment's cases together.

    Args:
        spec: The resolved experiment.
        shards: Folders of the shards of the edge search.

    Returns:
        One row per case and edge: see `search_edges`.

    Raises:
        InputError: A case is in no shard, or a shard's table cannot be read.
    """
    wanted = [case["case_id"] for case in expand_cases(spec)]
    return aggregate(spec, shards, "edges", "case_id", wanted)


def aggregate_runs(
    spec: dict[str, Any], shards: Sequence[Path]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put the runs of an experiment together.

    Args:
        spec: The resolved experiment.
        shards: Folders of the training shards.

    Returns:
        The tables `runs` and `history`: see `train_shard`.

    Raises:
        InputError: A run is in no shard, or a shard's table cannot be read.
    """
    wanted = [run["run_id"] for run in expand_runs(spec)]
    runs = aggregate(spec, shards, "runs", "run_id", wanted)
    history = aggregate(spec, shards, "history", "run_id", wanted)
    return runs, history
