"""Claims of the L2 paper about its theory, measured from the theory experiments.

Reference: Lewkowycz and Gur-Ari, On the training dynamics of deep networks with L2 regularization.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sgdphases.claims.catapult_theory import choose, fit_exponent, numbers
from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.tables import ExperimentTables

# The rate of the last half of a run, long after everything else.
_LATE = 0.5
# Eigenvalues this many times the weight decay are far above it.
_FAR_ABOVE = 50.0


def farthest(ratios: Sequence[float]) -> float:
    """The ratio that is farthest from 1."""
    values = np.asarray(ratios, dtype=float)
    return float(values[np.abs(np.log(values)).argmax()])


def ode_deviation(tables: ExperimentTables) -> Measurement:
    """Largest distance of the closed form, at once and by steps, from an ODE solver."""
    deviations = numbers(tables.runs, "ode_deviation")
    return Measurement(float(deviations.max()), detail=f"{len(deviations)} runs, target 1")


def _lines(tables: ExperimentTables, degree: int | None = None) -> list[pd.DataFrame]:
    """The history of each run, of one degree or of all above 1, with its hyperparameters."""
    runs = tables.runs
    is_wanted = (
        (runs["homogeneity_degree"] > 1)
        if degree is None
        else (runs["homogeneity_degree"] == degree)
    )
    runs = choose(runs, is_wanted.to_numpy(dtype=bool), "of the degree wanted")
    columns = ["run_id", "kernel_mode_eigenvalue", "weight_decay", "homogeneity_degree"]
    merged = tables.history.merge(runs[columns], on="run_id").sort_values("step")
    return [line for _, line in merged.groupby("run_id")]


def late_rate(tables: ExperimentTables) -> Measurement:
    """Rate at which outputs decay in the last half of a run over kλ, the farthest from 1."""
    ratios = []
    for line in _lines(tables):
        late = line[line["physical_time"] >= _LATE * line["physical_time"].max()]
        slope = np.polyfit(late["physical_time"], np.log(late["output"]), 1)[0]
        expected = line["homogeneity_degree"].iloc[0] * line["weight_decay"].iloc[0]
        ratios.append(float(-slope / expected))
    return Measurement(farthest(ratios), min(ratios), max(ratios), f"{len(ratios)} runs")


def decay_time(tables: ExperimentTables) -> Measurement:
    """Time at which a mode far above λ has fallen to half, over ln(g/2λ)/2λ, at degree 2.

    The mode must first rise to 1 − 1/e in about 1/g, before it falls.
    """
    ratios, rises = [], []
    for line in _lines(tables, degree=2):
        eigenvalue = float(line["kernel_mode_eigenvalue"].iloc[0])
        decay = float(line["weight_decay"].iloc[0])
        if eigenvalue < _FAR_ABOVE * decay:
            continue
        time, output = (line[name].to_numpy(float) for name in ("physical_time", "output"))
        top = int(output.argmax())
        rise = np.interp(1 - np.exp(-1), output[: top + 1], time[: top + 1])
        fall = np.interp(-0.5, -output[top:], time[top:])
        rises.append(float(rise * eigenvalue) if rise < fall else np.nan)
        ratios.append(float(fall / (np.log(eigenvalue / (2 * decay)) / (2 * decay))))
    if not ratios:
        raise ValueError("no mode far above the weight decay")
    in_order = all(0.5 <= rise <= 2 for rise in rises)
    detail = f"rise after {', '.join(f'{rise:.3g}' for rise in rises)} times 1/g"
    unmet = "" if in_order else "a mode does not rise in about 1/g before it falls"
    return Measurement(farthest(ratios), detail=detail, unmet=unmet)


def linear_limit(tables: ExperimentTables) -> Measurement:
    """Largest distance of a linear model's last output from g/(g + λ)."""
    distances = []
    for line in _lines(tables, degree=1):
        eigenvalue = line["kernel_mode_eigenvalue"].iloc[0]
        limit = eigenvalue / (eigenvalue + line["weight_decay"].iloc[0])
        distances.append(abs(float(line["output"].iloc[-1]) - limit))
    return Measurement(max(distances), detail=f"{len(distances)} modes")


def _least_loss_times(tables: ExperimentTables, degree: int) -> "pd.Series[float]":
    """The time of the least loss by weight decay."""
    mask = numbers(tables.runs, "homogeneity_degree") == degree
    runs = choose(tables.runs, mask, f"of degree {degree}")
    return runs.set_index("weight_decay")["least_loss_time"].sort_index().astype(float)


def least_loss_slope(tables: ExperimentTables) -> Measurement:
    """Exponent of the time of the least loss in λ, degree 2."""
    times = _least_loss_times(tables, 2)
    if len(times) < 3:
        raise ValueError("fewer than three weight decays")
    exponent, _ = fit_exponent(
        np.asarray(times.index, dtype=np.float64), np.asarray(times, dtype=np.float64)
    )
    products = ", ".join(f"{value:.3f}" for value in times * times.index)
    return Measurement(exponent, detail=f"t·λ = {products}")


def degree_ratio(tables: ExperimentTables) -> Measurement:
    """Smallest ratio of the times of the least loss at degree 2 and at degree 3."""
    ratio = _least_loss_times(tables, 2) / _least_loss_times(tables, 3)
    return Measurement(float(ratio.min()), float(ratio.min()), float(ratio.max()))


def fixed_point_distance(tables: ExperimentTables) -> Measurement:
    """Largest distance of a deep linear network's last output from max(1 − λ√n, 0)."""
    distance = np.abs(
        numbers(tables.runs, "final_output") - numbers(tables.runs, "predicted_output")
    )
    return Measurement(float(distance.max()), detail=f"{len(distance)} runs")


def ridge_slope(tables: ExperimentTables) -> Measurement:
    """Exponent of the convergence time of ridge regression in λ."""
    runs = choose(tables.runs, (tables.runs["status"] == "stopped").to_numpy(bool), "converged")
    exponent, _ = fit_exponent(numbers(runs, "weight_decay"), numbers(runs, "convergence_step"))
    return Measurement(exponent, detail=f"{len(runs)} of {len(tables.runs)} runs converged")


MEASURES: dict[str, ClaimMeasure] = {
    "L2-01": ClaimMeasure("wide_modes", None, 1e-6, ode_deviation),
    "L2-03": ClaimMeasure("wide_modes", 0.98, 1.02, late_rate),
    "L2-04": ClaimMeasure("wide_modes", 0.8, 1.2, decay_time),
    "L2-05": ClaimMeasure("wide_modes", None, 1e-6, linear_limit),
    "L2-06": ClaimMeasure("wide_spectrum", -1.05, -0.95, least_loss_slope),
    "L2-07": ClaimMeasure("wide_spectrum", 1.0, None, degree_ratio),
    "L2-08": ClaimMeasure("deep_linear", None, 1e-3, fixed_point_distance),
    "L2-39": ClaimMeasure("ridge", -1.02, -0.98, ridge_slope),
}
