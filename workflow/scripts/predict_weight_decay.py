"""Predict the weight decays for an experiment's budgets from its time constant: prediction.json.

Inputs: the experiment's spec.yaml and time_constant.json.
"""

import json
from pathlib import Path

from sgdphases.prediction import describe_prediction, read_prediction, with_budgets
from sgdphases.scripting import run_script
from sgdphases.storage import write_text
from sgdphases.tables import read_spec


def main() -> None:
    settings = read_spec(Path(snakemake.input.spec))["prediction"]
    measured = read_prediction(Path(snakemake.input.time_constant))
    prediction = with_budgets(measured, settings["budget_epochs"], settings["first_decay"])
    write_text(json.dumps(prediction, indent=1) + "\n", Path(snakemake.output[0]))
    print(describe_prediction(prediction))


run_script(main, snakemake.log)
