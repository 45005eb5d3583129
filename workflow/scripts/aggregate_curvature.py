"""Put the curvature shards of an experiment together: curvature.parquet."""

from pathlib import Path

from sgdphases.aggregation import aggregate_curvature
from sgdphases.scripting import run_script
from sgdphases.storage import write_parquet
from sgdphases.tables import read_spec


def main() -> None:
    spec = read_spec(Path(snakemake.input.spec))
    shards = [Path(path).parent for path in snakemake.input.shards]
    write_parquet(aggregate_curvature(spec, shards), Path(snakemake.output[0]))


run_script(main, snakemake.log)
