"""What a claim's measurement looks like."""

from collections.abc import Callable
from dataclasses import dataclass

from sgdphases.tables import ExperimentTables


@dataclass(frozen=True)
class Measurement:
    """A measured value, its interval where there is one, and how it came about.

    Attributes:
        value: The value.
        ci_low: Lower end of its interval.
        ci_high: Upper end.
        detail: How it came about.
        unmet: What else the claim says that does not hold, in words: whatever the value, the claim
            is then not reproduced. Empty where all holds.
    """

    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    detail: str = ""
    unmet: str = ""


@dataclass(frozen=True)
class ClaimMeasure:
    """How one claim is measured and what counts as reproduced.

    Attributes:
        experiment: Name of the experiment, without the paper.
        low: Smallest value that reproduces the claim, or None for no lower bound.
        high: Largest value that reproduces the claim, or None for no upper bound.
        measure: From the experiment's tables to the measured value; raises ValueError where the
            tables lack what is needed.
        dataset: The only dataset the claim is about, or None where it holds for any.
        scale: The only scale at which the claim is about what is trained, or None for any.
    """

    experiment: str
    low: float | None
    high: float | None
    measure: Callable[[ExperimentTables], Measurement]
    dataset: str | None = None
    scale: str | None = None
