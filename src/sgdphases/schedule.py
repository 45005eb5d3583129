"""When a run is measured and when it ends."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdphases.errors import InputError

# Steps are counted in 32-bit integers on the device.
MOST_STEPS = 2**31 - 1


def measurement_steps(schedule: Mapping[str, Any], last_step: int) -> NDArray[np.int64]:
    """The steps at which a run is measured.

    Every step up to `dense_until`, `points_per_decade` log-spaced steps in each decade, every
    `every` steps, and always the first. The steps do not depend on `last_step`, so that runs of
    different length are measured at the same steps however they are grouped; a run's own last
    step is measured besides.

    Args:
        schedule: Mapping with any of `dense_until`, `points_per_decade`, `every`.
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
    merged = np.unique(np.concatenate(steps))
    return merged[merged <= last_step]


def planned_steps(stopping: Mapping[str, Any], learning_rate: float) -> int:
    """Steps a run takes unless it diverges or reaches another criterion first.

    Args:
        stopping: Mapping with `num_steps`, `physical_time` (steps times learning rate) or both, and
            possibly `min_steps`, which a run takes however soon its physical time is over.
        learning_rate: Absolute learning rate.

    Returns:
        The smaller of the two budgets, at least 1.

    Raises:
        InputError: That is more steps than can be counted.
    """
    budgets: list[float] = []
    if "num_steps" in stopping:
        budgets.append(stopping["num_steps"])
    if "physical_time" in stopping:
        # The small margin keeps 250/0.5 at 500 steps where the division rounds upwards.
        steps = stopping["physical_time"] / learning_rate * (1 - 1e-9)
        # In this order: max() of a number and NaN is its first argument.
        budgets.append(max(steps, stopping.get("min_steps", 1)))
    steps = min(budgets)
    if not steps <= MOST_STEPS:
        raise InputError(
            f"stopping: {dict(stopping)} takes {steps:.3g} steps at the learning rate "
            f"{learning_rate:.6g}; allowed: at most {MOST_STEPS}"
        )
    return max(1, math.ceil(steps))
