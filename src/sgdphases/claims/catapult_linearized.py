"""Claims of the catapult paper about linear dynamics after the catapult.

Reference: Lewkowycz et al., The large learning rate phase of deep learning, section 4.1 and SM F.
"""

import numpy as np

from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.linear_dynamics import (
    SAME_ACCURACY,
    accuracies_by_kind,
    geometric_means,
    kernel_changes,
    tracked_rates,
)
from sgdphases.selection import RATE
from sgdphases.tables import ExperimentTables

# Rates this close to the critical one belong to neither phase at finite width.
_CATAPULT_LIMIT = 1.1


def tracking_limit(tables: ExperimentTables) -> Measurement:
    """Largest η·λ₀ up to which the network linearised at step 10 has the network's accuracy.

    The interval reaches to the first rate at which it has not. The network linearised at step 0
    must diverge at every rate above 2/λ₀ by more than a tenth.
    """
    accuracies = accuracies_by_kind(tables.runs)
    kinds = sorted(set(accuracies["linearize_at"]) - {-1})
    if kinds[0] != 0 or len(kinds) < 2:
        raise ValueError("the grid lacks a linearisation at step 0, or a later one")
    last, beyond = tracked_rates(accuracies)
    start = tables.runs[tables.runs["linearize_at"] == 0]
    above = start[start[RATE] > _CATAPULT_LIMIT]
    if above.empty:
        raise ValueError("the grid holds no rate above 2/λ₀")
    finite = int((above["status"] != "diverged").sum())
    unmet = f"{finite} of {len(above)} runs linearised at step 0 survive beyond 2/λ₀"
    return Measurement(
        2 * last,
        2 * last,
        2 * beyond if np.isfinite(beyond) else None,
        f"mean accuracies within {SAME_ACCURACY:g}; linearised at step {kinds[-1]}; interval: to "
        "the first rate at which they differ by more",
        unmet if finite else "",
    )


def change_against_width(tables: ExperimentTables) -> Measurement:
    """Largest ratio of the kernel's change at a width to that at the next smaller width.

    The change is that at the last step, its geometric mean over seeds.
    """
    if not (tables.runs[RATE] > _CATAPULT_LIMIT).all():
        raise ValueError("the grid holds a rate that is not above 2/λ₀")
    changes = kernel_changes(tables)
    means = geometric_means(changes[changes["step"] == changes["step"].max()])
    if len(means) < 2:
        raise ValueError("fewer than two widths trained")
    values = means.sort_values("width")["kernel_change"].to_numpy(dtype=float)
    listed = ", ".join(
        f"{change:.3g} at {width}"
        for width, change in zip(sorted(means["width"]), values, strict=True)
    )
    return Measurement(float((values[1:] / values[:-1]).max()), detail=f"change {listed}")


MEASURES: dict[str, ClaimMeasure] = {
    "CAT-20": ClaimMeasure("linearized", 4 * 0.8, 4 * 1.2, tracking_limit),
    "CAT-21": ClaimMeasure("kernel_constancy", None, 1, change_against_width),
}
