"""Predict the learning rates of an experiment's networks: learning_rates.json, learning_rates.md.

Inputs: the experiment's spec.yaml and curvature.parquet.
"""

from pathlib import Path

from sgdphases.learning_rates import describe_rates, predict_rates, write_rates
from sgdphases.scripting import run_script
from sgdphases.storage import read_parquet
from sgdphases.tables import read_spec


def main() -> None:
    spec = read_spec(Path(snakemake.input.spec))
    curvature = read_parquet(Path(snakemake.input.curvature))
    prediction = predict_rates(spec, curvature, snakemake.params.momenta)
    write_rates(prediction, Path(snakemake.output.rates), Path(snakemake.output.text))
    print(describe_rates(prediction))


run_script(main, snakemake.log)
