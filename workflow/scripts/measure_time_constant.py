"""Measure the time to peak times the weight decay of an experiment's runs: time_constant.json.

Inputs: the experiment's training shards.
"""

import json
from pathlib import Path

from sgdphases.aggregation import aggregate
from sgdphases.prediction import measure_time_constant
from sgdphases.scripting import run_script
from sgdphases.storage import write_text
from sgdphases.tables import ExperimentTables


def main() -> None:
    spec, wanted = snakemake.params.spec, snakemake.params.run_ids
    shards = sorted({Path(path).parent for path in snakemake.input})
    runs, history = (
        aggregate(spec, shards, table, "run_id", wanted) for table in ("runs", "history")
    )
    measured = measure_time_constant(ExperimentTables(spec, runs, history, None))
    write_text(json.dumps(measured, indent=1) + "\n", Path(snakemake.output[0]))


run_script(main, snakemake.log)
