"""Claims of the temperature paper about early learning, from theory and from networks at the start.

Reference: Temperature check, section 2 and appendices A to D.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.claims.catapult_theory import choose, numbers
from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.tables import ExperimentTables

Array = NDArray[np.float64]

# Logits whose rates are exponentially far apart, rather than as the kernel's.
_LARGE_LOGITS = 1.0
# Equation 16 is for β²‖Θ‖/λ_θ well below 1.
_SMALL_PULL = 0.05
# Rates at which descent with momentum is close to its continuous time.
_SMALL_RATE = 1e-3 * (1 + 1e-9)
# Where the curves of a quartic are compared: while they fall, and to the first minimum.
_MOMENTUM_TIMES = np.linspace(0.5, 3.0, 26)


def effective_rate(runs: pd.DataFrame) -> Array:
    """The effective learning rate ηβ² of each run."""
    return numbers(runs, "learning_rate") * numbers(runs, "inverse_temperature") ** 2


def same_dynamics(tables: ExperimentTables) -> Measurement:
    """Largest relative distance of losses and logit norms of runs with the same ηβ² and start."""
    runs = tables.runs[numbers(tables.runs, "displacement_l2") == 0]
    keys = ["seed", "num_classes", "logit_scale"]
    counts = runs.groupby(keys)["inverse_temperature"].transform("nunique")
    runs = choose(runs, (counts > 1).to_numpy(bool), "with another inverse temperature beside it")
    if np.ptp(effective_rate(runs)) > 1e-9 * effective_rate(runs).max():
        raise ValueError("the runs differ in their effective learning rate")
    history = tables.history.merge(runs[["run_id", "inverse_temperature"]], on="run_id")
    deviations = []
    for name in ("train_loss", "scaled_logit_norm"):
        curves = history.pivot_table(name, index="step", columns="inverse_temperature")
        spread = curves.max(axis=1) - curves.min(axis=1)
        deviations.append(float((spread / curves.max(axis=1)).max()))
    betas = ", ".join(f"{value:g}" for value in sorted(runs["inverse_temperature"].unique()))
    return Measurement(max(deviations), detail=f"β = {betas}, {len(curves)} steps compared")


def logit_sum_change(tables: ExperimentTables) -> Measurement:
    """Largest change of a sample's sum of rescaled logits."""
    change = numbers(tables.history, "logit_sum_change")
    detail = f"{len(tables.runs)} runs with a block-diagonal kernel"
    return Measurement(float(change.max()), detail=detail)


def small_logit_spectrum(tables: ExperimentTables) -> Measurement:
    """Largest distance of eigenvalues of the softmax's Jacobian at Z = 0 from 0 and 1/K."""
    at_zero = numbers(tables.runs, "logit_scale") == 0
    runs = choose(tables.runs, at_zero, "with zero logits")
    classes = ", ".join(str(k) for k in sorted(runs["num_classes"].unique()))
    deviation = numbers(runs, "jacobian_deviation")
    return Measurement(float(deviation.max()), detail=f"K = {classes}, {len(runs)} runs")


def logit_sizes(runs: pd.DataFrame) -> Array:
    """Root of the mean square of each run's rescaled logits at the start."""
    count = numbers(runs, "num_samples") * numbers(runs, "num_classes")
    return np.asarray(numbers(runs, "initial_logit_norm") / np.sqrt(count))


def exponential_conditioning(tables: ExperimentTables) -> Measurement:
    """Smallest R² over seeds of log κ(H) as a straight line in the size of large logits."""
    sizes = logit_sizes(tables.runs)
    runs = tables.runs.assign(size=sizes)
    runs = choose(runs, sizes >= 0.9 * _LARGE_LOGITS, "with large logits")
    fits, slopes = [], []
    for _, line in runs.groupby("seed"):
        if line["size"].nunique() < 4:
            continue
        size, condition = numbers(line, "size"), np.log(numbers(line, "dynamics_condition_number"))
        slopes.append(np.polyfit(size, condition, 1)[0])
        fits.append(np.corrcoef(size, condition)[0, 1] ** 2 * np.sign(slopes[-1]))
    if not fits:
        raise ValueError("fewer than four sizes of large logits at any seed")
    detail = f"κ grows as exp(a·size) with a = {min(slopes):.2f} to {max(slopes):.2f}"
    return Measurement(float(min(fits)), min(fits), max(fits), detail)


def equilibrium_error(tables: ExperimentTables) -> Measurement:
    """Relative distance of the logits at the end of descent from eq. 16, where that applies."""
    runs = tables.runs[numbers(tables.runs, "displacement_l2") > 0]
    ratio = numbers(runs, "initial_ntk_top_eigenvalue") / numbers(runs, "displacement_l2")
    runs = choose(runs, ratio <= _SMALL_PULL, "with a small β²‖Θ‖/λ")
    if (runs["status"] != "stopped").any():
        raise ValueError("descent has not come to its end")
    errors = numbers(runs, "equilibrium_error")
    as_printed = numbers(runs, "printed_equilibrium_error")[errors.argmax()]
    largest = ratio[ratio <= _SMALL_PULL].max()
    detail = f"β²‖Θ‖/λ up to {largest:.2g}; as printed: {as_printed:.2g}"
    return Measurement(float(errors.max()), detail=detail)


def momentum_curves(tables: ExperimentTables) -> pd.DataFrame:
    """The quartic's history with `momentum_ratio` (1 − m)/√η and `momentum_time` √η·t."""
    runs = tables.runs[tables.runs["model"] == "quartic"].copy()
    root = np.sqrt(numbers(runs, "learning_rate"))
    runs["momentum_ratio"] = ((1 - numbers(runs, "momentum")) / root).round(6)
    columns = ["run_id", "learning_rate", "momentum", "momentum_ratio"]
    history = tables.history.merge(runs[columns], on="run_id")
    history["momentum_time"] = history["step"] * np.sqrt(history["learning_rate"])
    return history.sort_values(["learning_rate", "step"], ignore_index=True)


def momentum_collapse(tables: ExperimentTables) -> Measurement:
    """Largest distance of small-step curves at the same √η·t and ratio, in units of the start."""
    curves = momentum_curves(tables)
    curves = curves[(curves["momentum"] > 0) & (curves["learning_rate"] <= _SMALL_RATE)]
    spreads, rates = [], []
    for _, group in curves.groupby("momentum_ratio"):
        if group["learning_rate"].nunique() < 2:
            continue
        lines = [
            np.interp(_MOMENTUM_TIMES, line["momentum_time"], line["parameter"])
            for _, line in group.groupby("learning_rate")
        ]
        spreads.append(float(np.ptp(lines, axis=0).max()))
        rates += sorted(group["learning_rate"].unique())
    if not spreads:
        raise ValueError("fewer than two small learning rates at any ratio of damping to √η")
    detail = f"η = {', '.join(f'{rate:g}' for rate in rates)}"
    return Measurement(max(spreads), detail=detail)


MEASURES: dict[str, ClaimMeasure] = {
    "TMP-01": ClaimMeasure("softmax_kernel", None, 1e-6, same_dynamics),
    "TMP-28": ClaimMeasure("softmax_kernel", None, 1e-10, logit_sum_change),
    "TMP-29": ClaimMeasure("softmax_kernel", None, 1e-12, small_logit_spectrum),
    "TMP-30": ClaimMeasure("softmax_kernel", 0.99, None, exponential_conditioning),
    "TMP-31": ClaimMeasure("softmax_kernel", None, 1e-4, equilibrium_error),
    "TMP-32": ClaimMeasure("momentum_time", None, 0.02, momentum_collapse),
}
