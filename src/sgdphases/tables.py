"""The tables of one experiment, as figures and claims read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from sgdphases.storage import read_parquet


@dataclass(frozen=True)
class ExperimentTables:
    """What one experiment left on disk.

    Attributes:
        spec: The resolved experiment (`spec.yaml`).
        runs: One row per run (`runs.parquet`).
        history: One row per run and measurement (`history.parquet`).
        curvature: One row per (network, seed, batch) (`curvature.parquet`), or None where the
            experiment has no curvature stage.
        sweep: One row per run of a sweep of inverse temperatures (`temperature_sweep.parquet`), or
            None where the experiment tunes none.
        edges: One row per case and edge (`edges.parquet`), or None where none are searched.
    """

    spec: dict[str, Any]
    runs: pd.DataFrame
    history: pd.DataFrame
    curvature: pd.DataFrame | None
    sweep: pd.DataFrame | None = None
    edges: pd.DataFrame | None = None


def read_spec(path: Path) -> dict[str, Any]:
    """Read a resolved experiment that the workflow wrote."""
    spec: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return spec


def load_experiment(directory: Path) -> ExperimentTables:
    """Read the tables of the experiment in `directory`."""
    spec = read_spec(directory / "spec.yaml")

    def read_if_any(section: str, table: str) -> pd.DataFrame | None:
        path = directory / f"{table}.parquet"
        return read_parquet(path) if spec.get(section) is not None else None

    return ExperimentTables(
        spec=spec,
        runs=read_parquet(directory / "runs.parquet"),
        history=read_parquet(directory / "history.parquet"),
        curvature=read_if_any("curvature", "curvature"),
        edges=read_if_any("edge_search", "edges"),
        sweep=read_if_any("temperature_tuning", "temperature_sweep"),
    )


def plain_value(value: Any) -> Any:
    """A table's value as JSON has it: of Python's own types, null where it is missing."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if pd.isna(value) else value
