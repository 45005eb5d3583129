"""Put the shards of an experiment's edge search together: edges.parquet."""

from pathlib import Path

from sgdphases.aggregation import aggregate_edges
from sgdphases.scripting import run_script
from sgdphases.storage import write_parquet
from sgdphases.tables import read_spec


def main() -> None:
    spec = read_spec(Path(snakemake.input.spec))
    shards = [Path(path).parent for path in snakemake.input.shards]
    write_parquet(aggregate_edges(spec, shards), Path(snakemake.output[0]))


run_script(main, snakemake.log)
