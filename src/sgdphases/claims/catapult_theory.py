"""Claims of the catapult paper about its solvable models, measured from the theory experiments.

Rates are compared in units of the critical rate, eta lambda_0 / 2, so that the thresholds of the
theory are 1 and 2 whatever the kernel a seed starts from.

Reference: Lewkowycz et al., The large learning rate phase of deep learning.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.tables import ExperimentTables

# Thresholds of the theory in units of 2 / lambda_0.
CRITICAL = 1.0
MAXIMAL = 2.0
# Width of the paper's figure 2.
FIGURE_WIDTH = 1000
# Rates closer to the critical one than this are no test of where the loss rises: at finite width
# it does so above 2 + eta^2 f_0^2 / n.
_EDGE_MARGIN = 0.01
# |eta lambda_0 - 2| in which the critical exponents are fitted.
EXPONENT_WINDOW = (0.01, 0.2)
_PEAK_BAND = (0.2, 0.5)
_LAZY_LIMIT = 0.9
_PLANE_TOLERANCE = 1e-8
_BOOTSTRAP_DRAWS = 2000
# Listed rates are rounded, so comparisons with them leave room for the last digits.
_ROUNDING = 1e-9


def numbers(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A column as float64 with NaN for null.

    Raises:
        ValueError: The table has no row, no such column, or only nulls in it.
    """
    if name not in table.columns:
        raise ValueError(f"the runs have no column {name!r}")
    values = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(values).all():
        raise ValueError(f"the runs have no value of {name!r}")
    return np.asarray(values)


def choose(table: pd.DataFrame, mask: NDArray[np.bool_], what: str) -> pd.DataFrame:
    """The rows of `mask`.

    Raises:
        ValueError: There is none; `what` says which rows were wanted.
    """
    chosen = table[mask]
    if chosen.empty:
        raise ValueError(f"no run {what}")
    return chosen


def edge(rates: NDArray[np.float64], above: NDArray[np.bool_]) -> float:
    """Where runs change from one behaviour to another as the learning rate grows.

    Args:
        rates: (runs,) learning rates.
        above: (runs,) whether a run shows the behaviour of large rates.

    Returns:
        Midway between the smallest rate that shows it and the next smaller rate of the grid.

    Raises:
        ValueError: No run shows it, or none at a smaller rate does not.
    """
    if not above.any():
        raise ValueError("no run lies above the edge")
    first = rates[above].min()
    below = rates[(rates < first) & ~above]
    if not below.size:
        raise ValueError("no run lies below the edge")
    return float((first + below.max()) / 2)


def edges(
    runs: pd.DataFrame, keys: Sequence[str], above: Callable[[pd.DataFrame], NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """The edge in relative learning rate within each group of runs.

    Args:
        runs: Runs of any number of groups.
        keys: Columns in which the runs of a group agree.
        above: From the runs of a group to which of them lie above the edge.

    Returns:
        (groups,) edges in units of 2/lambda_0, in the order of the keys.
    """
    return np.array(
        [
            edge(numbers(group, "relative_learning_rate"), above(group))
            for _, group in runs.groupby(list(keys), sort=True)
        ]
    )


def diverged(runs: pd.DataFrame) -> NDArray[np.bool_]:
    """Which runs diverged."""
    return np.asarray(runs["status"].eq("diverged").to_numpy(dtype=bool, na_value=False))


def in_phase(runs: pd.DataFrame, phase: str) -> NDArray[np.bool_]:
    """Which runs were classified as `phase`."""
    return np.asarray(runs["phase"].eq(phase).to_numpy(dtype=bool, na_value=False))


def fit_exponent(distance: NDArray[np.float64], steps: NDArray[np.float64]) -> tuple[float, float]:
    r"""Fit a power law by least squares in logarithms.

    .. math:: \text{steps} = \text{prefactor} \cdot \text{distance}^{\text{exponent}}

    Args:
        distance: (runs,) distances from the critical rate, above 0.
        steps: (runs,) steps to convergence.

    Returns:
        The exponent and the prefactor.
    """
    exponent, offset = np.polyfit(np.log(distance), np.log(steps), 1)
    return float(exponent), float(np.exp(offset))


def critical_distance(runs: pd.DataFrame) -> NDArray[np.float64]:
    """Signed distance eta lambda_0 - 2 of each run from the critical learning rate."""
    return 2.0 * (numbers(runs, "relative_learning_rate") - CRITICAL)


def in_exponent_window(runs: pd.DataFrame, side: int) -> NDArray[np.bool_]:
    """Which runs the critical exponent of one side is fitted to.

    Args:
        runs: Rows with `relative_learning_rate`.
        side: -1 below the critical rate, 1 above it.

    Returns:
        (runs,) truth values.
    """
    distance = side * critical_distance(runs)
    low, high = EXPONENT_WINDOW
    return np.asarray((distance >= low - _ROUNDING) & (distance <= high + _ROUNDING))


def seed_exponents(runs: pd.DataFrame, side: int) -> NDArray[np.float64]:
    """Critical exponent of the convergence time of each seed on one side of the critical rate.

    Raises:
        ValueError: A run of the fit did not converge, or a seed has fewer than three.
    """
    where = "above" if side > 0 else "below"
    fitted = choose(runs, in_exponent_window(runs, side), f"in the fit window {where}")
    exponents = []
    for seed, group in fitted.groupby("seed", sort=True):
        steps = numbers(group, "convergence_step")
        if len(group) < 3 or np.isnan(steps).any():
            raise ValueError(
                f"seed {seed} has {np.isfinite(steps).sum()} of {len(group)} converged runs in the "
                f"fit window {where}; needed are all, and three at least"
            )
        exponents.append(fit_exponent(np.abs(critical_distance(group)), steps)[0])
    return np.array(exponents)


def _farthest_from(values: NDArray[np.float64], target: float) -> float:
    return float(values[np.argmax(np.abs(values - target))])


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _fraction(holds: NDArray[np.bool_], detail: str) -> Measurement:
    return Measurement(
        float(np.mean(holds)), detail=f"{int(holds.sum())} of {holds.size} runs; {detail}"
    )


def _recursion_deviation(tables: ExperimentTables) -> Measurement:
    """CAT-01: largest relative deviation of the recursion from descent in the weights, n = 100.

    Along the whole run where it lasts; within single steps also for runs that diverge, on whose
    way rounding itself grows without bound.
    """
    runs = choose(tables.runs, numbers(tables.runs, "width") == 100, "has width 100")
    lasting = choose(runs, ~diverged(runs), "of width 100 stayed finite")
    carried = float(np.max(numbers(lasting, "recursion_deviation")))
    single = float(np.max(numbers(runs, "step_deviation")))
    return Measurement(
        float(np.max([carried, single])),
        detail=f"{carried:.1e} along {len(lasting)} runs of {int(numbers(lasting, 'steps').max())} "
        f"steps, {single:.1e} within single steps of {len(runs)} runs, at width 100",
    )


def _critical_rate(tables: ExperimentTables) -> Measurement:
    """CAT-02: edge of the lazy phase in units of 2 / lambda_0 at width 1000, mean over seeds."""
    runs = choose(tables.runs, numbers(tables.runs, "width") == FIGURE_WIDTH, "has width 1000")
    found = edges(runs, ["seed"], lambda group: in_phase(group, "catapult"))
    critical = 2.0 / numbers(runs, "initial_ntk_top_eigenvalue")
    low, high = _range(found)
    return Measurement(
        float(found.mean()),
        low,
        high,
        f"in units of 2/lambda_0, which is {critical.min():.3f} to {critical.max():.3f}; mean and "
        f"range of {found.size} seeds at width 1000",
    )


def _maximal_rate(tables: ExperimentTables) -> Measurement:
    """CAT-03: edge of divergence in units of 2 / lambda_0, mean over seeds and widths."""
    found = edges(tables.runs, ["width", "seed"], diverged)
    low, high = _range(found)
    widths = sorted(set(numbers(tables.runs, "width").astype(int).tolist()))
    return Measurement(
        float(found.mean()),
        low,
        high,
        f"in units of 2/lambda_0; mean and range over seeds and widths {widths}",
    )


def _lazy_curvature(tables: ExperimentTables) -> Measurement:
    """CAT-04: lambda_final / lambda_0 up to 0.9 of the critical rate, seed mean, worst rate."""
    rates = numbers(tables.runs, "relative_learning_rate")
    width = numbers(tables.runs, "width")
    runs = choose(
        tables.runs,
        (rates <= _LAZY_LIMIT + _ROUNDING) & (width == FIGURE_WIDTH),
        "has width 1000 and at most 0.9 of the critical rate",
    )
    ratio = numbers(runs, "final_ntk_top_eigenvalue") / numbers(runs, "initial_ntk_top_eigenvalue")
    if np.isnan(ratio).any():
        raise ValueError("a lazy run has no final top eigenvalue")
    by_rate = pd.Series(ratio).groupby(numbers(runs, "relative_learning_rate"))
    means: NDArray[np.float64] = np.array(by_rate.mean().tolist())
    low, high = _range(ratio)
    return Measurement(
        _farthest_from(means, 1.0),
        low,
        high,
        f"mean over {runs['seed'].nunique()} seeds at the rate where it is farthest from 1, of "
        f"{means.size} up to {numbers(runs, 'relative_learning_rate').max():.3f} of 2/lambda_0; "
        "range of single runs",
    )


def _between_thresholds(runs: pd.DataFrame) -> pd.DataFrame:
    rates = numbers(runs, "relative_learning_rate")
    inside = (rates > CRITICAL + _ROUNDING) & (rates < MAXIMAL - _ROUNDING)
    return choose(runs, inside, "lies between 2/lambda_0 and 4/lambda_0")


def _catapult_curvature(tables: ExperimentTables) -> Measurement:
    """CAT-05: fraction of runs between the thresholds that end with lambda below 2 / eta."""
    runs = _between_thresholds(tables.runs)
    scaled = numbers(runs, "final_ntk_top_eigenvalue") * numbers(runs, "learning_rate")
    return _fraction(
        scaled < 2.0,
        f"largest final eta lambda {np.nanmax(scaled):.3f}, at "
        f"{runs['relative_learning_rate'].nunique()} rates",
    )


def _loss_bump(tables: ExperimentTables) -> Measurement:
    """CAT-06: fraction of runs whose loss peaks when, and at eta lambda_0 = 3 where, it should."""
    rates = numbers(tables.runs, "relative_learning_rate")
    wide = numbers(tables.runs, "width") >= FIGURE_WIDTH
    finite = rates < MAXIMAL - _ROUNDING
    onset = choose(
        tables.runs,
        wide & finite & (np.abs(rates - CRITICAL) >= _EDGE_MARGIN - _ROUNDING),
        "of width 1000 or more lies off the critical rate",
    )
    above = numbers(onset, "relative_learning_rate") > CRITICAL
    if above.all() or not above.any():
        raise ValueError("runs of width 1000 or more lie on one side of the critical rate only")
    rises = numbers(onset, "peak_train_loss") > numbers(onset, "initial_train_loss")
    middle = choose(tables.runs, np.isclose(rates, 1.5), "has learning_rate * lambda_0 = 3")
    peaks = 2.0 * numbers(middle, "peak_train_loss") / numbers(middle, "width")
    in_band = (peaks >= _PEAK_BAND[0]) & (peaks <= _PEAK_BAND[1])
    low, high = _range(peaks)
    return _fraction(
        np.concatenate([rises == above, in_band]),
        f"peak f^2/n at eta lambda_0 = 3 from {low:.3f} to {high:.3f} in {peaks.size} runs; loss "
        f"rises exactly above 2/lambda_0 in {int((rises == above).sum())} of {rises.size} runs at "
        "least 1 % off it",
    )


def _time_to_loss_peak(tables: ExperimentTables) -> Measurement:
    """CAT-07: largest distance, in steps, of the loss peak from ln(n/f_0^2)/(2 ln(eta l_0 - 1))."""
    runs = _between_thresholds(tables.runs)
    width = numbers(runs, "width")
    if np.unique(width).size < 2:
        raise ValueError("the runs have a single width, growth with it cannot be measured")
    scaled_rate = 2.0 * numbers(runs, "relative_learning_rate")
    predicted = np.log(width / (2.0 * numbers(runs, "initial_train_loss"))) / (
        2.0 * np.log(scaled_rate - 1.0)
    )
    measured = numbers(runs, "peak_step")
    means = pd.Series(measured).groupby(width).mean()
    listed = ", ".join(f"{value:.1f}" for value in means)
    return Measurement(
        float(np.max(np.abs(measured - predicted))),
        detail=f"steps, largest of {len(runs)} runs; mean peak step {listed} at widths "
        f"{', '.join(f'{value:.0e}' for value in means.index)}",
    )


def _critical_exponent(side: int) -> Callable[[ExperimentTables], Measurement]:
    """CAT-08 and CAT-09: critical exponent on one side, median over seeds."""

    def measure(tables: ExperimentTables) -> Measurement:
        exponents = seed_exponents(tables.runs, side)
        draws = np.random.default_rng(0).choice(exponents, (_BOOTSTRAP_DRAWS, exponents.size))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        return Measurement(
            float(np.median(exponents)),
            float(low),
            float(high),
            f"median over {exponents.size} seeds with bootstrapped 95 % interval; mean "
            f"{exponents.mean():.3f}, range {exponents.min():.3f} to {exponents.max():.3f}: seeds "
            "that start with a large output flatten the law at finite width",
        )

    return measure


def _plane_phases(tables: ExperimentTables) -> Measurement:
    """CAT-10: fraction of runs in the plane that behave as their learning rate demands."""
    runs = tables.runs
    rates = numbers(runs, "relative_learning_rate")
    phases = {
        "lazy": rates < CRITICAL,
        "catapult": (rates > CRITICAL) & (rates < MAXIMAL),
        "divergent": rates > MAXIMAL,
    }
    missing = [name for name, mask in phases.items() if not mask.any()]
    if missing:
        raise ValueError(f"no run lies in the {missing[0]} phase")
    initial, peak = (numbers(runs, f"{name}_train_loss") for name in ("initial", "peak"))
    flatter = numbers(runs, "final_ntk_top_eigenvalue") < numbers(
        runs, "initial_ntk_top_eigenvalue"
    )
    converged = runs["status"].eq("stopped").to_numpy(dtype=bool, na_value=False)
    losses = tables.history.sort_values("step").groupby("run_id")["train_loss"]
    falls = losses.apply(lambda loss: bool(loss.is_monotonic_decreasing))
    if not set(runs["run_id"]) <= set(falls.index):
        raise ValueError("a run has no history")
    monotone = falls.loc[runs["run_id"]].to_numpy(dtype=bool)
    expected = np.select(
        [phases["lazy"], phases["catapult"], phases["divergent"]],
        [monotone & converged, (peak > initial) & converged & flatter, diverged(runs) & ~flatter],
        default=False,
    )
    deviation = numbers(runs, "plane_deviation")
    return _fraction(
        np.asarray(expected & (deviation < _PLANE_TOLERANCE), dtype=bool),
        f"distance from the plane at most {np.max(deviation):.0e} of the weights' norm",
    )


def _update_deviation(tables: ExperimentTables) -> Measurement:
    """CAT-11: largest relative deviation of the closed updates from descent in the weights."""
    names = ("error_deviation", "kernel_deviation", "projected_kernel_deviation")
    largest = {name: float(np.max(numbers(tables.runs, name))) for name in names}
    listed = ", ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in largest.items())
    return Measurement(
        float(np.max(list(largest.values()))), detail=f"{len(tables.runs)} runs; {listed}"
    )


def _fisher_deviation(tables: ExperimentTables) -> Measurement:
    """CAT-43: largest deviation of the spectra of kernel and Fisher matrix, over λ."""
    deviation = numbers(tables.runs, "fisher_deviation")
    width, samples = (int(tables.runs[name].iloc[0]) for name in ("width", "num_samples"))
    detail = (
        f"{len(deviation)} linear networks of width {width} at the end of their runs, {samples} "
        "samples, one output; all eigenvalues, the zeros included"
    )
    return Measurement(float(np.max(deviation)), detail=detail)


def _linear_model_edges(tables: ExperimentTables) -> Measurement:
    """CAT-12: edges of the full linear model over their predictions, the farthest from 1."""
    runs = tables.runs
    onset = edges(runs, ["seed"], lambda group: in_phase(group, "catapult")) / CRITICAL
    first_divergence = edges(runs, ["seed"], diverged) / MAXIMAL
    stable = runs[~diverged(runs)]
    last_stable = stable.groupby("seed")["relative_learning_rate"].max().to_numpy() / MAXIMAL
    ratios = np.concatenate([onset, first_divergence, last_stable])
    low, high = _range(ratios)
    return Measurement(
        _farthest_from(ratios, 1.0),
        low,
        high,
        f"farthest from 1 and range over {onset.size} seeds: eta_crit lambda_0 / 2 "
        f"{onset.min():.3f} to {onset.max():.3f}, first divergence at eta lambda_0 / 4 "
        f"{first_divergence.min():.3f} to {first_divergence.max():.3f}, last stable run at up to "
        f"{last_stable.max():.3f}",
    )


def _momentum_edge(tables: ExperimentTables) -> Measurement:
    """CAT-36: largest stable rate over (2 / lambda_0)(1 + momentum), the farthest from 1."""
    momentum = numbers(tables.runs, "momentum")
    runs = tables.runs
    if not (momentum > 0).any():
        raise ValueError("no run has momentum")
    found = edges(runs, ["momentum", "seed"], diverged)
    coefficients = np.array([key[0] for key, _ in runs.groupby(["momentum", "seed"], sort=True)])
    ratios = found / (1.0 + coefficients.astype(float))
    low, high = _range(ratios)
    listed = ", ".join(
        f"{2 * found[coefficients == value].mean():.3f} at momentum {value:g}"
        for value in np.unique(coefficients)
    )
    return Measurement(
        _farthest_from(ratios, 1.0),
        low,
        high,
        f"farthest from 1 and range over seeds and momenta; stable up to eta lambda_0 = {listed}",
    )


MEASURES: dict[str, ClaimMeasure] = {
    "CAT-01": ClaimMeasure("warmup_descent", None, 1e-10, _recursion_deviation),
    "CAT-02": ClaimMeasure("warmup_threshold", 0.98, 1.02, _critical_rate),
    "CAT-03": ClaimMeasure("warmup_threshold", 1.99, 2.01, _maximal_rate),
    "CAT-04": ClaimMeasure("warmup_phases", 0.99, 1.01, _lazy_curvature),
    "CAT-05": ClaimMeasure("warmup_threshold", 1.0, 1.0, _catapult_curvature),
    "CAT-06": ClaimMeasure("warmup_threshold", 1.0, 1.0, _loss_bump),
    "CAT-07": ClaimMeasure("warmup_width", None, 1.0, _time_to_loss_peak),
    "CAT-08": ClaimMeasure("warmup_critical_exponent", -1.05, -0.95, _critical_exponent(-1)),
    "CAT-09": ClaimMeasure("warmup_critical_exponent", -1.12, -0.88, _critical_exponent(1)),
    "CAT-10": ClaimMeasure("warmup_plane", 1.0, 1.0, _plane_phases),
    "CAT-11": ClaimMeasure("linear_updates", None, 1e-10, _update_deviation),
    "CAT-12": ClaimMeasure("linear_model_thresholds", 0.9, 1.1, _linear_model_edges),
    "CAT-36": ClaimMeasure("heavy_ball", 0.99, 1.01, _momentum_edge),
    "CAT-43": ClaimMeasure("linear_updates", None, 1e-8, _fisher_deviation),
}
