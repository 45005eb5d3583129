"""Put the training shards of an experiment together: runs.parquet and history.parquet."""

from pathlib import Path

from sgdphases.aggregation import aggregate_runs
from sgdphases.scripting import run_script
from sgdphases.storage import write_parquet
from sgdphases.tables import read_spec


def main() -> None:
    spec = read_spec(Path(snakemake.input.spec))
    shards = sorted({Path(path).parent for path in snakemake.input.shards})
    runs, history = aggregate_runs(spec, shards)
    write_parquet(runs, Path(snakemake.output.runs))
    write_parquet(history, Path(snakemake.output.history))


run_script(main, snakemake.log)
