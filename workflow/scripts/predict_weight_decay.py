"""Predict weight decays from an experiment's time to peak: prediction.json.

Inputs: the tables of the experiment.
"""

import json
from pathlib import Path

from sgdphases.prediction import describe_prediction, predict
from sgdphases.scripting import run_script
from sgdphases.storage import write_text
from sgdphases.tables import load_experiment


def main() -> None:
    prediction = predict(load_experiment(Path(snakemake.input[0]).parent))
    write_text(json.dumps(prediction, indent=1) + "\n", Path(snakemake.output[0]))
    print(describe_prediction(prediction))


run_script(main, snakemake.log)
