"""The command line, for those who want a number and no grid.

`sgdphases predict-l2 --experiment l2/estimate --budget-epochs 100 1000` trains what the experiment
asks for, unless that has been done, and prints the weight decay for each budget;
`sgdphases tune-temperature --experiment temperature/tuning` the inverse temperature to use,
`sgdphases predict-rates --experiment catapult/fc_mnist` the learning rates to expect.
`sgdphases plan --config scale=paper` says how many runs and jobs the workflow has, and estimates
hours and disk, before anything is submitted.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sgdphases.config import EVERY, find_experiments, read_config
from sgdphases.cost import Assumptions, dataset_bytes, describe_costs, estimate_costs
from sgdphases.errors import InputError
from sgdphases.learning_rates import describe_rates, read_rates
from sgdphases.prediction import (
    describe_prediction,
    predicted_weight_decay,
    read_prediction,
    with_budgets,
)
from sgdphases.scripting import EXIT_BAD_INPUT
from sgdphases.temperature_tuning import describe_tuning, read_tuning
from sgdphases.validation import read_yaml, suggest
from sgdphases.workflow import EXPERIMENTS_FOLDER, make_plan

_CONFIG_FILE = Path("config/config.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after the program's name; None for those it was called with.

    Returns:
        The exit code: 0, 2 on bad input, that of Snakemake where it failed.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sgdphases", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    predict = commands.add_parser(
        "predict-l2",
        help="predict the weight decay for a budget of training",
        description="Predict the weight decay for a budget of training from one cheap run: "
        "c = time to peak x weight decay, prediction = c / budget.",
    )
    predict.add_argument(
        "--experiment", required=True, help="<paper>/<experiment> with a section prediction"
    )
    predict.add_argument(
        "--budget-epochs",
        type=float,
        nargs="+",
        required=True,
        metavar="EPOCHS",
        help="epochs of training that there is time for",
    )
    predict.add_argument(
        "--first-decay",
        type=float,
        metavar="FRACTION",
        help="fraction of the budget after which the learning rate first falls",
    )
    predict.set_defaults(run=predict_l2)
    tune = commands.add_parser(
        "tune-temperature",
        help="find the inverse temperature to train with",
        description="Tune the learning rate at inverse temperature 1, sweep the inverse "
        "temperature at learning rates divided by it, and measure what is gained with fresh seeds.",
    )
    tune.add_argument(
        "--experiment",
        required=True,
        help="<paper>/<experiment> with a section temperature_tuning",
    )
    tune.set_defaults(run=tune_temperature)
    rates = commands.add_parser(
        "predict-rates",
        help="predict the learning rates that a network trains with",
        description="Predict from the curvature of a network at initialisation the learning rates "
        "at which its loss first rises, and beyond which it does not train.",
    )
    rates.add_argument(
        "--experiment", required=True, help="<paper>/<experiment> with a section curvature"
    )
    rates.add_argument(
        "--sweep",
        action="store_true",
        help="train the experiment's grid of learning rates, and compare",
    )
    rates.set_defaults(run=show_rates)
    plan = commands.add_parser(
        "plan",
        help="count runs and jobs, and estimate hours and disk",
        description="Count the runs and jobs of each experiment, and estimate the hours of GPUs "
        "and the disk that they take. Nothing is run or written.",
    )
    plan.add_argument(
        "--teraflops",
        type=float,
        default=Assumptions.teraflops,
        help="what a device is assumed to compute, in 10^12 operations of matrix products a second "
        "(default: %(default)g)",
    )
    plan.set_defaults(run=show_plan)
    for command in (predict, tune, rates):
        command.add_argument("--cores", default="all", help="cores to use (default: all)")
    for command in (predict, tune, rates, plan):
        command.add_argument(
            "--config",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="the workflow's configuration, as in snakemake --config",
        )
    return parser


def predict_l2(options: argparse.Namespace) -> int:
    """Measure c with the workflow, and print the weight decay for each budget.

    Args:
        options: `experiment`, `budget_epochs`, `first_decay`, `config`, `cores`.

    Returns:
        The exit code.

    Raises:
        InputError: The experiment is unknown or predicts nothing, or a budget is not allowed.
    """
    # Before anything is trained.
    for budget in options.budget_epochs:
        predicted_weight_decay(1.0, budget, options.first_decay)
    file = _result_file(options, "prediction", "{budget_epochs: [100]}", "prediction.json")
    if status := _make(file, options):
        return status
    prediction = with_budgets(read_prediction(file), options.budget_epochs, options.first_decay)
    print(describe_prediction(prediction))
    return 0


def tune_temperature(options: argparse.Namespace) -> int:
    """Tune the inverse temperature with the workflow, and print the one to use.

    Args:
        options: `experiment`, `config`, `cores`.

    Returns:
        The exit code.

    Raises:
        InputError: The experiment is unknown or tunes none.
    """
    file = _result_file(options, "temperature_tuning", "{}", "temperature_tuning.json")
    if status := _make(file, options):
        return status
    print(describe_tuning(read_tuning(file)))
    return 0


def show_rates(options: argparse.Namespace) -> int:
    """Predict learning rates with the workflow, compare them with a sweep if asked, and print.

    Args:
        options: `experiment`, `sweep`, `config`, `cores`.

    Returns:
        The exit code.

    Raises:
        InputError: The experiment is unknown or measures no curvature.
    """
    name = "learning_rate_sweep.json" if options.sweep else "learning_rates.json"
    file = _result_file(options, "curvature", "{batch_size: 512, num_batches: 4}", name)
    if status := _make(file, options):
        return status
    print(describe_rates(read_rates(file)))
    return 0


def _result_file(options: argparse.Namespace, section: str, example: str, name: str) -> Path:
    """Where the workflow writes what an experiment's section asks for."""
    known = find_experiments(EXPERIMENTS_FOLDER, EVERY)
    if options.experiment not in known:
        raise InputError(
            f"--experiment: {options.experiment!r} is no experiment; allowed: "
            f"{suggest(options.experiment, known)}"
        )
    if section not in read_yaml(known[options.experiment]):
        raise InputError(
            f"{known[options.experiment]}: has no section {section}; allowed: for example "
            f"{section}: {example}"
        )
    results = Path(read_config(_configuration(options.config)).results_dir)
    return results / "experiments" / str(options.experiment) / name


def _make(file: Path, options: argparse.Namespace) -> int:
    """Have the workflow make a file; its exit code."""
    # The file comes first: options that take several values would take it for one of theirs.
    command = [sys.executable, "-m", "snakemake", str(file)]
    command += ["--cores", options.cores, "--quiet", "rules"]
    command += ["--config", *options.config] if options.config else []
    # What it prints are messages about the work, not the answer.
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode


def show_plan(options: argparse.Namespace) -> int:
    """Print what each experiment takes.

    Args:
        options: `config`, `teraflops`.

    Returns:
        The exit code.

    Raises:
        InputError: Something is wrong with the configuration or an experiment.
    """
    if not options.teraflops > 0:
        raise InputError(f"--teraflops: {options.teraflops:g} is not allowed; allowed: above 0")
    # Sizes are traced, nothing is computed: no need for the GPU that others may be using.
    os.environ["JAX_PLATFORMS"] = "cpu"
    plan = make_plan(_configuration(options.config))
    assumptions = Assumptions(teraflops=options.teraflops)
    results, costs = Path(plan.config.results_dir), estimate_costs(plan, assumptions)
    print(describe_costs(costs, assumptions, results, dataset_bytes(plan)))
    return 0


def _configuration(given: Sequence[str]) -> dict[str, Any]:
    """The workflow's configuration: the file's, and over it what was given."""
    configuration = read_yaml(_CONFIG_FILE)
    for pair in given:
        key, separator, value = pair.partition("=")
        try:
            configuration[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            separator = ""
        if not separator:
            raise InputError(f"--config: {pair!r} is not allowed; allowed: KEY=VALUE")
    return configuration
