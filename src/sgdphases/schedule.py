"""When a run is measured and when it ends."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdphases.errors import InputError
from sgdphases.rate_schedules import RateSchedule

# Steps are counted in 32-bit integers on the device.
MOST_STEPS = 2**31 - 1
# Keeps 250/0.5 at 500 steps where the division rounds upwards.
_MARGIN = 1 - 1e-9


def measurement_steps(schedule: Mapping[str, Any], last_step: int) -> NDArray[np.int64]:
    """The steps at which a run is measured.

    Every step up to `dense_until`, `points_per_decade` log-spaced steps in each decade, every
    `every` steps, those listed as `steps`, and always the first. The steps do not depend on
    `last_step`, so that runs of different length are measured at the same steps however they are
    grouped; a run's own last step is measured besides.

    Args:
        schedule: Mapping with any of `dense_until`, `points_per_decade`, `every`, `steps`.
        last_step: Largest step of interest.

    Returns:
        Sorted unique steps in 0..last_step.
    """
    steps = [np.zeros(1, dtype=np.int64)]
    if "dense_until" in schedule:
        steps.append(np.arange(min(schedule["dense_until"], last_step) + 1))
    if "every" in schedule:
        steps.append(np.arange(0, last_step + 1, schedule["every"]))
    if "points_per_decade" in schedule:
        per_decade = schedule["points_per_decade"]
        count = math.ceil(per_decade * math.log10(max(last_step, 1))) + 1
        steps.append(np.rint(10 ** (np.arange(count) / per_decade)).astype(np.int64))
    if "steps" in schedule:
        steps.append(np.asarray(schedule["steps"], dtype=np.int64))
    merged = np.unique(np.concatenate(steps))
    return merged[merged <= last_step]


# A run's own budgets, and the criteria of an experiment that they lower.
BUDGETS = {
    "budget_epochs": "epochs",
    "budget_steps": "num_steps",
    "budget_physical_time": "physical_time",
}


def stopping_of_run(stopping: Mapping[str, Any], run: Mapping[str, Any]) -> Mapping[str, Any]:
    """An experiment's stopping criteria with a run's own budgets among them.

    Args:
        stopping: The experiment's section `stopping`.
        run: The run, with `budget_epochs`, `budget_steps` and `budget_physical_time`: after which
            it ends at the latest, or None.

    Returns:
        The criteria that hold for the run.
    """
    own = {key: run[budget] for budget, key in BUDGETS.items() if run[budget] is not None}
    return {**stopping, **{key: min(own[key], stopping.get(key, math.inf)) for key in own}}


def planned_steps(
    stopping: Mapping[str, Any],
    learning_rate: float,
    weight_decay: float = 0.0,
    steps_per_epoch: int = 1,
    schedule: RateSchedule | None = None,
) -> int:
    """Steps a run takes unless it diverges or reaches another criterion first.

    The first of these budgets that is used up ends a run: `num_steps`; `epochs`, of which there may
    be fractions; `physical_time`, the sum of the learning rates of all steps; `decay_time`, which
    is steps times learning rate times weight decay, the rate being that before any schedule. A run
    takes `min_steps`, if given, however soon its physical or decay time is over. The steps at a
    schedule's final rate come after the budget.

    Args:
        stopping: Mapping with at least one of the budgets above, and possibly `min_steps`. Other
            keys are other criteria and ignored.
        learning_rate: Absolute learning rate.
        weight_decay: Coefficient of L2; at 0 the decay time never ends.
        steps_per_epoch: Batches in an epoch.
        schedule: How the learning rate changes; None for a constant one.

    Returns:
        The smallest budget and the schedule's extra steps, at least 1.

    Raises:
        InputError: No budget ends the run, or after more steps than can be counted.

    Reference:
        Catalogue item 1.5; L2 paper, SM A (budgets of c/(ηλ)); catapult paper, fig. 5 (steps at a
        final rate).
    """
    schedule = schedule or RateSchedule()
    budgets: list[float] = []
    if "num_steps" in stopping:
        budgets.append(stopping["num_steps"])
    if "epochs" in stopping:
        budgets.append(stopping["epochs"] * steps_per_epoch * _MARGIN)
    times: list[float] = []
    if "physical_time" in stopping:
        times.append(stopping["physical_time"] / learning_rate / schedule.mean_factor)
    if "decay_time" in stopping and weight_decay > 0:
        times.append(stopping["decay_time"] / learning_rate / weight_decay)
    # In this order: max() of a number and NaN is its first argument.
    budgets += [max(steps * _MARGIN, stopping.get("min_steps", 1)) for steps in times]
    if not budgets:
        reason = " ends no run of weight_decay 0" if "decay_time" in stopping else " ends no run"
        raise InputError(
            f"stopping: {dict(stopping)}{reason}; "
            "allowed: any of num_steps, epochs, physical_time besides"
        )
    steps = min(budgets) + schedule.extra_steps
    if not steps <= MOST_STEPS:
        raise InputError(
            f"stopping: {dict(stopping)} takes {steps:.3g} steps at the learning rate "
            f"{learning_rate:.6g}; allowed: at most {MOST_STEPS}"
        )
    return max(1, math.ceil(min(budgets))) + schedule.extra_steps
