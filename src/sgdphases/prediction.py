r"""From a cheap run at a large weight decay to the weight decay for a budget of training.

The test accuracy of an overparameterised network peaks at a time t* that is inversely proportional
to the L2 coefficient λ. One short run at a large λ measures c = t*·λ, and λ = c/T is the smallest
coefficient whose accuracy peaks within T epochs.

Reference: Lewkowycz and Gur-Ari, On the training dynamics of deep networks with L2 regularization.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.errors import InputError
from sgdphases.summary import PEAK_MARGIN
from sgdphases.tables import ExperimentTables, plain_value

# Accuracies are multiples of 1/samples, often the margin apart: rounding must not decide.
_ROUNDING = 1e-6
# What a prediction is based on, besides what was measured.
_BASIS = ("model", "width", "loss", "learning_rate", "momentum", "batch_size", "weight_decay")


@dataclass(frozen=True)
class Peak:
    """When a run's test accuracy comes within 0.005 of its maximum.

    Attributes:
        step: The first measured step at which it has.
        step_before: The last measured step before that, at which it had not: the peak lies between.
        accuracy: The maximum.
    """

    step: int
    step_before: int
    accuracy: float


def find_peak(history: pd.DataFrame) -> Peak:
    """Find when a run's test accuracy peaks.

    Args:
        history: The rows of one run, with `step` and `test_accuracy`.

    Returns:
        The peak.

    Raises:
        InputError: There is no accuracy, it never rises by more than the margin, or it is highest
            at the last measurement, so that it may not have peaked yet.

    Reference:
        L2 paper, section 2; catalogue item 1.5 for the absolute margin.
    """
    measured = history.dropna(subset="test_accuracy").sort_values("step")
    steps = measured["step"].to_numpy(dtype=np.int64)
    accuracy = measured["test_accuracy"].to_numpy(dtype=np.float64)
    if not len(steps):
        raise InputError("no test accuracy is measured; allowed: a classification dataset")
    best = float(accuracy.max())
    near = accuracy >= best - PEAK_MARGIN - _ROUNDING
    if near[0]:
        raise InputError(
            f"the test accuracy never rises: it is {accuracy[0]:.4f} at the start and at most "
            f"{best:.4f}; allowed: a smaller weight_decay, a larger learning_rate or more steps"
        )
    # Several measurements may share the maximum: the first of them tells.
    if int(accuracy.argmax()) == len(steps) - 1:
        raise InputError(
            f"the test accuracy is highest at the last measurement (step {steps[-1]}), so that it "
            "may not have peaked yet; allowed: more steps or a larger weight_decay"
        )
    first = int(near.argmax())
    return Peak(int(steps[first]), int(steps[first - 1]), best)


def time_constants(
    peaks: Iterable[Peak], weight_decay: float, steps_per_epoch: int
) -> NDArray[np.float64]:
    r"""Time to peak times weight decay.

    .. math:: c = t_* \lambda

    Args:
        peaks: Peaks of runs.
        weight_decay: Their L2 coefficient λ.
        steps_per_epoch: Steps of an epoch.

    Returns:
        (runs,) c in epochs.

    Reference:
        L2 paper, section 3; catalogue item 1.6.
    """
    return np.array([peak.step for peak in peaks]) / steps_per_epoch * weight_decay


def predicted_weight_decay(
    constant: float, budget_epochs: float, first_decay: float | None = None
) -> float:
    r"""The weight decay whose accuracy peaks at the end of a budget.

    .. math:: \lambda_\text{pred} = c / T \quad\text{or}\quad c / T_1

    Args:
        constant: c, in epochs.
        budget_epochs: Budget T.
        first_decay: T₁/T, fraction of the budget after which the learning rate first falls; None
            for a constant rate.

    Returns:
        The L2 coefficient.

    Raises:
        InputError: A budget that is not positive, or a fraction outside (0, 1).

    Reference:
        L2 paper, section 3; catalogue item 1.6.
    """
    if not 0 < budget_epochs < np.inf:
        raise InputError(f"budget_epochs: {budget_epochs!r}; allowed: a number above 0")
    if first_decay is not None and not 0 < first_decay < 1:
        raise InputError(f"first_decay: {first_decay!r}; allowed: a number above 0 and below 1")
    return constant / (budget_epochs * (1.0 if first_decay is None else first_decay))


def measure_time_constant(tables: ExperimentTables) -> dict[str, Any]:
    """Measure c from the tables of an experiment with a section `prediction`.

    Args:
        tables: Its tables; runs differ in their seed alone. Of the spec, `experiment`, `scale` and
            `dataset` are read.

    Returns:
        What time_constant.json holds, see docs/results.md.

    Raises:
        InputError: A run diverged or shows no peak.
    """
    runs, name = tables.runs, tables.spec["experiment"]
    shared = runs.iloc[0]
    peaks = []
    for run in runs.to_dict("records"):
        where = f"{name}: run {run['run_id']} (seed {run['seed']})"
        if run["status"] == "diverged":
            raise InputError(f"{where}: diverged; allowed: a smaller learning_rate or weight_decay")
        try:
            peaks.append(find_peak(tables.history[tables.history["run_id"] == run["run_id"]]))
        except InputError as error:
            raise InputError(f"{where}: no peak to predict from: {error}") from None
    per_epoch = int(shared["steps_per_epoch"])
    by_seed = time_constants(peaks, float(shared["weight_decay"]), per_epoch)
    constant = float(by_seed.mean())
    several = len(by_seed) > 1
    return {
        "experiment": name,
        "scale": tables.spec["scale"],
        "dataset": tables.spec["dataset"]["name"],
        "num_train": tables.spec["dataset"]["num_train"],
        **{key: plain_value(shared[key]) for key in _BASIS if key in runs},
        "steps_per_epoch": per_epoch,
        "steps_per_run": int(runs["steps"].max()),
        "seeds": [int(seed) for seed in runs["seed"]],
        "time_to_peak_steps": [peak.step for peak in peaks],
        "step_before_peak": [peak.step_before for peak in peaks],
        "max_test_accuracy": [peak.accuracy for peak in peaks],
        "time_to_peak_epochs": float(np.mean([peak.step for peak in peaks])) / per_epoch,
        "l2_time_constant": constant,
        "l2_time_constant_low": float(by_seed.min()) if several else None,
        "l2_time_constant_high": float(by_seed.max()) if several else None,
        "l2_time_constant_standard_error": (
            float(by_seed.std(ddof=1) / np.sqrt(len(by_seed))) if several else None
        ),
    }


def with_budgets(
    prediction: dict[str, Any], budgets: Iterable[float], first_decay: float | None
) -> dict[str, Any]:
    """A time constant, or a prediction for other budgets, with the weight decays for budgets.

    Args:
        prediction: With `l2_time_constant`, and whatever else.
        budgets: Budgets T in epochs.
        first_decay: T₁/T of a piecewise constant schedule, for which weight decays are then
            predicted besides those for a constant rate; None for the latter alone.

    Returns:
        The prediction with its `predictions`, one for each schedule and budget.

    Raises:
        InputError: A budget that is not positive, or a fraction outside (0, 1).
    """
    rows = [
        {
            "schedule": "constant" if fraction is None else "piecewise",
            "budget_epochs": budget,
            "first_decay_epoch": None if fraction is None else fraction * budget,
            "weight_decay": predicted_weight_decay(
                prediction["l2_time_constant"], budget, fraction
            ),
        }
        for fraction in dict.fromkeys((None, first_decay))
        for budget in budgets
    ]
    return {**prediction, "predictions": rows}


def describe_prediction(prediction: dict[str, Any]) -> str:
    """The prediction in words: what it is based on, c, and a line for each budget.

    Args:
        prediction: What `with_budgets` returned.

    Returns:
        Lines of text.
    """
    data = prediction["dataset"]
    if prediction["num_train"] is not None:
        data = f"{prediction['num_train']} samples of {data}"
    seeds = len(prediction["seeds"])
    low, high = prediction["l2_time_constant_low"], prediction["l2_time_constant_high"]
    interval = (
        f" ({low:.3g} to {high:.3g} over {seeds} seeds)" if low is not None else " (one seed)"
    )
    momentum = f", momentum {prediction['momentum']:g}" if prediction["momentum"] else ""
    width = f", width {prediction['width']}" if prediction.get("width") else ""
    lines = [
        f"{prediction['experiment']} (scale {prediction['scale']}): {prediction['model']}{width} "
        f"on {data}, batches of {prediction['batch_size']}, learning rate "
        f"{prediction['learning_rate']:g}{momentum}",
        f"{prediction['steps_per_run']} steps per run at weight decay "
        f"{prediction['weight_decay']:g}: test accuracy within {PEAK_MARGIN} of its peak "
        f"{np.mean(prediction['max_test_accuracy']):.4f} after "
        f"{prediction['time_to_peak_epochs']:.4g} epochs",
        f"c = {prediction['l2_time_constant']:.4g} epochs{interval}",
    ]
    for row in prediction["predictions"]:
        until = (
            ""
            if row["first_decay_epoch"] is None
            else f", learning rate lowered first at {row['first_decay_epoch']:g}"
        )
        lines.append(
            f"budget {row['budget_epochs']:g} epochs{until}: weight decay {row['weight_decay']:.3g}"
        )
    return "\n".join(lines)


def read_time_constants(files: Iterable[Path]) -> dict[str, float]:
    """The time constants c that experiments measured, by experiment.

    Args:
        files: Their time_constant.json.

    Returns:
        c in epochs by `<paper>/<experiment>`.

    Raises:
        InputError: A file is damaged.
    """
    return {
        prediction["experiment"]: prediction["l2_time_constant"]
        for prediction in map(read_prediction, files)
    }


def read_prediction(file: Path) -> dict[str, Any]:
    """Read a time_constant.json or prediction.json.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        prediction: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not 0 < prediction["l2_time_constant"] < np.inf:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: missing or damaged; delete it and run again") from None
    return prediction
