"""Claims of the temperature paper about early learning, from theory and from networks at the start.

Reference: Temperature check, section 2 and appendices A to D.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.claims.catapult_theory import choose, numbers
from sgdphases.claims.l2_theory import farthest
from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.exponents import fit_power_law
from sgdphases.tables import ExperimentTables
from sgdphases.temperature_analysis import (
    DEPARTED,
    LARGE_LOGITS,
    SMALL_LOGITS,
    departures,
    early_timescales,
    effective_rate,
    family_of_starts,
)

Array = NDArray[np.float64]

# Logits whose rates are exponentially far apart, rather than as the kernel's.
_STEEP_LOGITS = 1.0
# Equation 16 is for β²‖Θ‖/λ_θ well below 1.
_SMALL_PULL = 0.05
# Rates at which descent with momentum is close to its continuous time.
_SMALL_RATE = 1e-3 * (1 + 1e-9)
# Accuracy that counts as early: some way above the chance of a tenth.
_EARLY_ACCURACY = 0.25
# Size of the logits that families of learning curves start from while small.
_SMALL_STARTS = 0.1
# Where the curves of a quartic are compared: while they fall, and to the first minimum.
_MOMENTUM_TIMES = np.linspace(0.5, 3.0, 26)


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
    runs = choose(runs, sizes >= 0.9 * _STEEP_LOGITS, "with large logits")
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


def _small(start: pd.DataFrame) -> pd.DataFrame:
    sizes = numbers(start, "scaled_logit_size")
    return choose(start, (sizes > 0) & (sizes <= SMALL_LOGITS), "with small logits at the start")


def _decades(start: pd.DataFrame) -> str:
    beta = numbers(start, "inverse_temperature")
    return f"β from {beta.min():g} to {beta.max():g}"


def _spread(values: Array) -> float:
    return float(values.max() / values.min())


def _estimates(start: pd.DataFrame, name: str) -> str:
    """How far estimates from short training are from the definitions, for a claim's detail."""
    if f"estimated_{name}" not in start:
        return "no estimates"
    ratio = numbers(start, f"estimated_{name}") / numbers(start, name)
    deviation = np.nanmax(np.abs(ratio - 1))
    return f"estimates from short training within {deviation:.1%} of the definition"


def logit_time_spread(tables: ExperimentTables) -> Measurement:
    """Relative spread over β of τ_z/‖Z⁰‖ at small logits, in the time ηβ²t."""
    start = early_timescales(tables)
    small = _small(start)
    if small["inverse_temperature"].nunique() < 2:
        raise ValueError("small logits at a single inverse temperature")
    ratio = numbers(small, "logit_timescale") / numbers(small, "scaled_logit_norm")
    detail = f"{_decades(small)}, {len(small)} runs; {_estimates(start, 'logit_timescale')}"
    return Measurement(_spread(ratio) - 1, detail=detail)


def plateau_ratio(tables: ExperimentTables) -> Measurement:
    """τ_z/‖Z⁰‖ at small logits over that at large ones, medians."""
    start = early_timescales(tables)
    speed = numbers(start, "logit_speed")
    size = numbers(start, "scaled_logit_size")
    small, large = speed[size <= SMALL_LOGITS], speed[size >= LARGE_LOGITS]
    if not (small.size and large.size):
        raise ValueError("no run with small, or none with large, logits at the start")
    ratios = large[:, None] / small[None, :]
    detail = f"{small.size} runs with small, {large.size} with large logits"
    value = float(np.median(large) / np.median(small))
    return Measurement(value, float(ratios.min()), float(ratios.max()), detail)


def nonlinear_time_spread(tables: ExperimentTables) -> Measurement:
    """Largest over smallest τ_nl/β over β, at small logits; the detail gives the slope."""
    start = early_timescales(tables)
    small = _small(start)
    beta = numbers(small, "inverse_temperature")
    time = numbers(small, "nonlinear_timescale")
    law = fit_power_law(beta, time)
    detail = (
        f"{_decades(small)}: slope {law.exponent:.4f} ({law.low:.4f} to {law.high:.4f}); "
        f"{_estimates(start, 'nonlinear_timescale')}"
    )
    return Measurement(_spread(time / beta), detail=detail)


def nonlinear_time_over_norms(tables: ExperimentTables) -> Measurement:
    """τ_nl/β over its median at small logits, over all β and norms the farthest from 1."""
    start = early_timescales(tables)
    start = start.assign(
        ratio=numbers(start, "nonlinear_timescale") / numbers(start, "inverse_temperature")
    )
    ratio = numbers(start, "ratio") / float(np.median(_small(start)["ratio"]))
    several = start.groupby("start")["ratio"].agg(["min", "max", "count"])
    several = several[several["count"] > 1]
    spread = (several["max"] / several["min"]).max()
    detail = f"{_decades(start)}; at the same β√(1 + c) over β a factor of at most {spread:.3g}"
    return Measurement(farthest(list(ratio)), float(ratio.min()), float(ratio.max()), detail)


def time_ratio_exponent(tables: ExperimentTables) -> Measurement:
    """Exponent of τ_z/τ_nl in β at a fixed norm of the logits, the farthest from −1."""
    start = early_timescales(tables)
    start["ratio"] = numbers(start, "logit_timescale") / numbers(start, "nonlinear_timescale")
    laws = [
        fit_power_law(group["inverse_temperature"], group["ratio"])
        for _, group in start[start["scaled_logit_norm"] > 0].groupby("start")
        if group["inverse_temperature"].nunique() > 2
    ]
    if not laws:
        raise ValueError("at no norm of the logits are there three inverse temperatures")
    worst = max(laws, key=lambda law: abs(law.exponent + 1))
    detail = f"{len(laws)} norms, {_decades(start)}"
    return Measurement(worst.exponent, worst.low, worst.high, detail)


def departure_order(tables: ExperimentTables) -> Measurement:
    """1 if the smaller β, the earlier its loss departs from the linearised network's.

    A run that does not depart counts as the last; at least three must, before any other ends.
    """
    found = departures(tables)
    times = numbers(found, "departure_time")
    departed = ~np.isnan(times)
    if departed.sum() < 3:
        raise ValueError(f"only {departed.sum()} runs depart from the linearised network")
    last = numbers(found, "last_time")
    if (last[~departed] <= times[departed].max()).any():
        raise ValueError("runs that do not depart end before others have departed")
    late = np.where(departed, times, np.inf)
    rises = np.diff(late[: departed.sum() + 1]) > 0
    in_order = bool(rises.all() and departed[: departed.sum()].all())
    listed = ", ".join(
        f"{beta:g}: {'later than ' + format(end, '.3g') if np.isnan(at) else format(at, '.3g')}"
        for beta, at, end in zip(found["inverse_temperature"], times, last, strict=True)
    )
    return Measurement(float(in_order), detail=f"ηβ²t at {DEPARTED:.0%} by β: {listed}")


def early_collapse(tables: ExperimentTables) -> Measurement:
    """Relative spread over norms of the time to an early training accuracy, in units of τ_z.

    Of the runs with small logits: from larger ones, the fastest modes of the loss have relaxed
    before the logits have changed.
    """
    history = family_of_starts(tables)
    history = history[history["logit_size"] <= _SMALL_STARTS]
    times: list[float] = []
    raw: list[float] = []
    sizes: list[float] = []
    for _, curve in history.groupby("logit_size"):
        accuracy = np.maximum.accumulate(numbers(curve, "train_accuracy"))
        if not accuracy[0] < _EARLY_ACCURACY <= accuracy[-1]:
            continue
        first = int(np.argmax(accuracy >= _EARLY_ACCURACY))
        window = slice(first - 1, first + 1)
        for name, found in (("scaled_time", times), ("effective_time", raw)):
            axis = numbers(curve, name)
            found.append(float(np.interp(_EARLY_ACCURACY, accuracy[window], axis[window])))
        sizes.append(float(curve["logit_size"].iloc[0]))
    if len(times) < 2:
        raise ValueError(f"fewer than two runs reach an accuracy of {_EARLY_ACCURACY:g}")
    values = np.array(times)
    deviation = float(np.abs(values / values.mean() - 1).max())
    detail = (
        f"{len(times)} norms, sizes {min(sizes):.2g} to {max(sizes):.2g}: t/τ_z from "
        f"{values.min():.3g} to {values.max():.3g}, ηβ²t from {min(raw):.3g} to {max(raw):.3g}"
    )
    return Measurement(deviation, detail=detail)


def head_norms(tables: ExperimentTables) -> Measurement:
    """Root mean square norm of the logits over that at c = 0 and √(1 + c), the farthest from 1."""
    start = early_timescales(tables)
    square = start.assign(square=numbers(start, "scaled_logit_norm") ** 2)
    table = square.pivot_table("square", index="seed", columns="head_correlation")
    known = table.columns.to_numpy(float)
    others = np.flatnonzero((known != 0) & (known != -1))
    if not (known == 0).any() or others.size < 2:
        raise ValueError("correlation 0, or two others, are missing")
    correlations = known[others]

    def ratios(rows: pd.DataFrame) -> Array:
        norms = np.sqrt(rows.to_numpy(float).mean(axis=0))
        return np.asarray(norms[others] / norms[known == 0] / np.sqrt(1 + correlations))

    found = ratios(table)
    worst = int(np.abs(np.log(found)).argmax())
    generator = np.random.default_rng(0)
    draws = [
        ratios(table.iloc[rows])[worst]
        for rows in generator.integers(0, len(table), (200, len(table)))
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    listed = ", ".join(f"c = {c:g}: {r:.4f}" for c, r in zip(correlations, found, strict=True))
    detail = f"{len(table)} networks; {listed}; interval: bootstrap over networks"
    return Measurement(float(found[worst]), float(low), float(high), detail)


def kernel_constancy(tables: ExperimentTables) -> Measurement:
    """Largest relative spread over c of the kernel times Y − 1/K, network by network."""
    speeds = early_timescales(tables).groupby("seed")["small_logit_speed"]
    if (speeds.count() < 2).all():
        raise ValueError("a single correlation of the heads")
    spread = (speeds.max() / speeds.min() - 1).max()
    return Measurement(float(spread), detail=f"{len(speeds)} networks")


def wide_panels(tables: ExperimentTables) -> dict[str, pd.DataFrame]:
    """Panels of figure 7, by name: `logit_size`, and `measured` and `closed_form` τ_z/‖Z⁰‖."""
    start = early_timescales(tables)
    panels = {}
    for name, activation, prefix in (
        ("relu", "relu", ""),
        ("erf", "erf", ""),
        ("relu, shuffled labels", "relu", "shuffled_"),
    ):
        runs = start[start["activation"] == activation]
        speeds = [f"{prefix}logit_speed", f"{prefix}infinite_width_logit_speed"]
        if runs.empty or not set(speeds) <= set(runs):
            raise ValueError(f"nothing measured of {name}")
        measured, closed_form = (1 / numbers(runs, speed) for speed in speeds)
        columns = ["run_id", "inverse_temperature", "head_correlation"]
        panels[name] = runs[columns].assign(
            logit_size=numbers(runs, "scaled_logit_size"),
            measured=measured,
            closed_form=closed_form,
        )
    return panels


def closed_form_correlation(tables: ExperimentTables) -> Measurement:
    """Correlation of τ_z/‖Z⁰‖ with the closed form, the smallest of the panels."""
    found = {
        name: float(np.corrcoef(panel["measured"], panel["closed_form"])[0, 1])
        for name, panel in wide_panels(tables).items()
    }
    detail = ", ".join(f"{name}: {value:.4f}" for name, value in found.items())
    return Measurement(min(found.values()), detail=detail)


def plateau_order(tables: ExperimentTables) -> Measurement:
    """1 if the ratio of plateaus is larger for ReLU than for Erf, and with shuffled labels."""
    ratios = {}
    for name, panel in wide_panels(tables).items():
        small = panel.loc[panel["logit_size"] <= SMALL_LOGITS, "measured"]
        large = panel.loc[panel["logit_size"] >= LARGE_LOGITS, "measured"]
        if small.empty or large.empty:
            raise ValueError("no run with small, or none with large, logits at the start")
        ratios[name] = float(small.median() / large.median())
    relu, erf, shuffled = ratios.values()
    detail = ", ".join(f"{name}: {value:.3g}" for name, value in ratios.items())
    return Measurement(float(relu > erf and shuffled > relu), detail=detail)


MEASURES: dict[str, ClaimMeasure] = {
    "TMP-01": ClaimMeasure("softmax_kernel", None, 1e-6, same_dynamics),
    "TMP-02": ClaimMeasure("timescales", None, 0.01, logit_time_spread),
    "TMP-03": ClaimMeasure("timescales", 1.0, 8.0, plateau_ratio),
    "TMP-04": ClaimMeasure("timescales", None, 2.0, nonlinear_time_spread),
    "TMP-05": ClaimMeasure("timescales", 1 / 3, 3.0, nonlinear_time_over_norms),
    "TMP-06": ClaimMeasure("learning_curves", 1.0, 1.0, departure_order),
    "TMP-07": ClaimMeasure("learning_curves", None, 0.15, early_collapse),
    "TMP-08": ClaimMeasure("head_correlation", 0.98, 1.02, head_norms),
    "TMP-09": ClaimMeasure("head_correlation", None, 1e-10, kernel_constancy),
    "TMP-12": ClaimMeasure("timescales", -1.05, -0.95, time_ratio_exponent),
    "TMP-26": ClaimMeasure("wide_kernel", 0.95, None, closed_form_correlation),
    "TMP-27": ClaimMeasure("wide_kernel", 1.0, 1.0, plateau_order),
    "TMP-28": ClaimMeasure("softmax_kernel", None, 1e-10, logit_sum_change),
    "TMP-29": ClaimMeasure("softmax_kernel", None, 1e-12, small_logit_spectrum),
    "TMP-30": ClaimMeasure("softmax_kernel", 0.99, None, exponential_conditioning),
    "TMP-31": ClaimMeasure("softmax_kernel", None, 1e-4, equilibrium_error),
    "TMP-32": ClaimMeasure("momentum_time", None, 0.02, momentum_collapse),
}
