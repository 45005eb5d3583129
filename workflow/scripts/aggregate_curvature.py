"""Put the curvature shards of an experiment together: curvature.parquet."""

from pathlib import Path

import yaml

from sgdphases.aggregation import aggregate_curvature
from sgdphases.scripting import run_script
from sgdphases.storage import write_parquet


def main() -> None:
    spec = yaml.safe_load(Path(snakemake.input.spec).read_text(encoding="utf-8"))
    shards = [Path(path).parent for path in snakemake.input.shards]
    write_parquet(aggregate_curvature(spec, shards), Path(snakemake.output[0]))


run_script(main, snakemake.log)
