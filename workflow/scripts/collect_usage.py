"""Collect what the jobs took: usage.parquet, and a page for the report.

Inputs: the tables of the experiments. What is read besides are the benchmark files of their jobs.
"""

from pathlib import Path

from sgdphases.scripting import run_script
from sgdphases.storage import write_parquet
from sgdphases.usage import collect_usage, write_usage_page


def main() -> None:
    usage = collect_usage(Path(snakemake.params.results))
    write_parquet(usage, Path(snakemake.output.table))
    write_usage_page(usage, Path(snakemake.output.page))


run_script(main, snakemake.log)
