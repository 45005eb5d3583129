"""Put the training shards of an experiment together: runs.parquet and history.parquet."""

from pathlib import Path

import yaml

from sgdphases.aggregation import aggregate_runs
from sgdphases.scripting import run_script
from sgdphases.storage import write_parquet


def main() -> None:
    spec = yaml.safe_load(Path(snakemake.input.spec).read_text(encoding="utf-8"))
    shards = sorted({Path(path).parent for path in snakemake.input.shards})
    runs, history = aggregate_runs(spec, shards)
    write_parquet(runs, Path(snakemake.output.runs))
    write_parquet(history, Path(snakemake.output.history))


run_script(main, snakemake.log)
