"""Compare an experiment's runs with the rates predicted: learning_rate_sweep.json and .md.

Inputs: the experiment's learning_rates.json and tables.
"""

from pathlib import Path

from sgdphases.learning_rates import describe_rates, read_rates, summarise_sweep, write_rates
from sgdphases.scripting import run_script
from sgdphases.tables import load_experiment


def main() -> None:
    predicted = read_rates(Path(snakemake.input.rates))
    summary = summarise_sweep(load_experiment(Path(snakemake.input.spec).parent), predicted)
    write_rates(summary, Path(snakemake.output.rates), Path(snakemake.output.text))
    print(describe_rates(summary))


run_script(main, snakemake.log)
