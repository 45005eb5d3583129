"""Claims of the catapult paper about convolutional networks: early dynamics and performance.

Learning rates are compared as η·λ₀, so that the paper's limits are 2 and 12.

Reference: Lewkowycz et al., The large learning rate phase of deep learning.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import stats

from sgdphases.claims import catapult
from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.performance import (
    at_budget,
    budget_history,
    early_dynamics,
    fixed_steps,
    fixed_time,
    part_of,
)
from sgdphases.selection import RATE, trainable_edge, trained
from sgdphases.summary import time_to_peak
from sgdphases.tables import ExperimentTables

# In units of 2/λ₀: the largest rate of ReLU networks is 12/λ₀; the paper's curve at 6.25/0.4 of a
# critical rate, close to it, is the one that differs.
_LARGEST_RATE = 6.0
_OVERLAPPING_RATE = 5.0
# Fewer steps resolve no physical time.
_FEWEST_STEPS = 10
# Wide ResNet 28-10 on CIFAR-100: an error of 19.25 % (Zagoruyko and Komodakis 2016, table 4).
_REFERENCE_ACCURACY = 0.8075

Measure = Callable[[ExperimentTables], Measurement]


def maximal_rate(tables: ExperimentTables) -> Measurement:
    """Largest η·λ₀ at which the network of figures 3d-f trains."""
    return catapult.maximal_rate(early_dynamics(tables))


def effect_of_decay(tables: ExperimentTables) -> Measurement:
    """λ at the end with L2 over that without, median over rates above 2/λ₀ that train in both.

    Single rates near the largest are chaotic, and differ at the smallest perturbation.
    """
    with_l2, without = (early_dynamics(tables, decayed=decayed) for decayed in (True, False))
    edges = [trainable_edge(part.runs) for part in (with_l2, without)]
    if edges[0] is None or edges[1] is None:
        raise ValueError("the grid holds no rate above the edge of training")
    columns = ["seed", RATE, "final_ntk_top_eigenvalue"]
    first, second = (
        part.runs.loc[trained(part.runs) & (part.runs[RATE] > 1), columns].assign(
            rate=lambda runs: runs[RATE].round(9)
        )
        for part in (with_l2, without)
    )
    both = first.merge(second, on=["seed", "rate"], suffixes=("", "_without"))
    if both.empty:
        raise ValueError("no rate above 2/λ₀ trained with L2 and without")
    ratio = both["final_ntk_top_eigenvalue"] / both["final_ntk_top_eigenvalue_without"]
    detail = (
        f"λ at the end with L2 over that without, median of {len(ratio)} rates above 2/λ₀; trains "
        f"up to η·λ₀ = {2 * edges[0][0]:.3g} with L2, {2 * edges[1][0]:.3g} without"
    )
    overlap = max(edges[0][0], edges[1][0]) <= min(edges[0][1], edges[1][1])
    unmet = "" if overlap else "L2 moves the edge of training by more than a rate of the grid"
    return Measurement(float(ratio.median()), float(ratio.min()), float(ratio.max()), detail, unmet)


def best_rate_after(part: Callable[[ExperimentTables], ExperimentTables]) -> Measure:
    """η·λ₀ of the best test accuracy at the end of the runs of a part."""
    return lambda tables: catapult.best_rate(part(tables))


def place_of_best_rate(tables: ExperimentTables) -> Measurement:
    """Where the best rate after fixed steps lies: 0 at 2/λ₀, 1 at the largest that trains."""
    part = fixed_steps(tables)
    edge = trainable_edge(part.runs)
    if edge is None or edge[0] <= 1:
        raise ValueError("the grid holds no edge of training above 2/λ₀")
    best = catapult.best_rate(part)
    place = (best.value / 2 - 1) / (edge[0] - 1)
    detail = (
        f"0 is 2/λ₀, 1 the largest that trains: best at η·λ₀ = {best.value:.3g}, trains up to "
        f"{2 * edge[0]:.3g}; {best.detail}"
    )
    return Measurement(place, detail=detail)


def trend_in_physical_time(tables: ExperimentTables) -> Measurement:
    """Change of the test accuracy after a physical time over all rates that train.

    Of the least-squares line in log η, before any decay; interval: 95 % by its standard error.
    """
    runs = at_budget(fixed_time(tables))
    runs = runs[trained(runs)].dropna(subset="budget_test_accuracy")
    if runs[RATE].nunique() < 3:
        raise ValueError("fewer than three rates trained")
    logs = np.log(runs[RATE])
    line = stats.linregress(logs, runs["budget_test_accuracy"])
    span = float(logs.max() - logs.min())
    error = float(stats.t.ppf(0.975, len(runs) - 2) * line.stderr) * span
    change = float(line.slope) * span
    accuracy = runs["budget_test_accuracy"]
    detail = (
        f"change over η·λ₀ from {2 * runs[RATE].min():.3g} to {2 * runs[RATE].max():.3g}, accuracy "
        f"{accuracy.min():.4f} to {accuracy.max():.4f}"
    )
    return Measurement(change, change - error, change + error, detail)


def overlap_in_physical_time(tables: ExperimentTables) -> Measurement:
    """Distance of the test accuracies of rates up to 10/λ₀ at equal physical times: a mean.

    At each physical time the largest less the smallest accuracy, interpolated between
    measurements; the mean over times from ten steps of the largest rate on, evenly spaced.
    """
    part = fixed_time(tables)
    part = part_of(part, trained(part.runs) & (part.runs[RATE] <= _OVERLAPPING_RATE))
    history = budget_history(part).dropna(subset="test_accuracy").sort_values("step")
    if history[RATE].nunique() < 3:
        raise ValueError("fewer than three rates trained")
    begin = _FEWEST_STEPS * float(history["learning_rate"].max())
    end = float(history.groupby("run_id")["physical_time"].max().min())
    if begin >= end:
        raise ValueError("the largest rate takes fewer than ten steps")
    times = np.linspace(begin, end, 100)
    curves = np.array(
        [
            np.interp(times, curve["physical_time"], curve["test_accuracy"])
            for _, curve in history.groupby("run_id")
        ]
    )
    spread = np.ptp(curves, axis=0)
    detail = (
        f"mean distance of {len(curves)} curves, η·λ₀ from {2 * history[RATE].min():.3g} to "
        f"{2 * history[RATE].max():.3g}; largest distance {spread.max():.3f}, at the end "
        f"{spread[-1]:.3f}"
    )
    return Measurement(float(spread.mean()), detail=detail)


def training_accuracies(tables: ExperimentTables) -> Measurement:
    """Rank correlation of rate and training accuracy after a physical time.

    After fixed steps, the smallest rate must have a lower training accuracy than the best.
    """
    runs = at_budget(fixed_time(tables))
    runs = runs[trained(runs)].dropna(subset="budget_train_accuracy")
    accuracy = runs["budget_train_accuracy"]
    if accuracy.nunique() < 2 or runs[RATE].nunique() < 3:
        raise ValueError("fewer than three rates trained, or all to the same training accuracy")
    correlation = float(stats.spearmanr(runs[RATE], accuracy).statistic)
    steps = fixed_steps(tables).runs
    steps = steps[steps["status"] != "diverged"].sort_values(RATE)
    smallest = float(steps["final_train_accuracy"].iloc[0])
    best = float(steps["final_train_accuracy"].max())
    detail = (
        f"rank correlation with the rate; accuracy {accuracy.min():.4f} to {accuracy.max():.4f} "
        f"after a physical time; after fixed steps {smallest:.4f} at the smallest rate, {best:.4f} "
        "at the best"
    )
    unmet = "" if smallest < best else "no rate does better than the smallest after fixed steps"
    return Measurement(correlation, detail=detail, unmet=unmet)


def softmax_accuracy(tables: ExperimentTables) -> Measurement:
    """Test accuracy at the end of training, mean over seeds."""
    accuracy = tables.runs["final_test_accuracy"]
    return Measurement(
        float(accuracy.mean()),
        float(accuracy.min()),
        float(accuracy.max()),
        f"interval: smallest and largest of {len(accuracy)} seeds",
    )


def gap_to_reference(tables: ExperimentTables) -> Measurement:
    """Test accuracy of the Wide ResNet paper on CIFAR-100 less the best after decay."""
    runs = fixed_time(tables).runs
    best = runs.sort_values("final_test_accuracy").iloc[-1]
    accuracy = float(best["final_test_accuracy"])
    detail = f"{accuracy:.4f} at η·λ₀ = {2 * float(best[RATE]):.3g}"
    return Measurement(_REFERENCE_ACCURACY - accuracy, detail=detail)


def epochs_to_convergence(tables: ExperimentTables) -> Measurement:
    """Physical epochs until the test accuracy is within 0.005 of its best at a constant rate.

    Median over rates that train; interval: smallest and largest.
    """
    part = fixed_time(tables)
    part = part_of(part, trained(part.runs) & (part.runs[RATE] < _LARGEST_RATE))
    peaks = time_to_peak(budget_history(part))
    runs = part.runs.set_index("run_id").loc[peaks.index]
    epochs = peaks * runs["learning_rate"] / runs["steps_per_epoch"]
    return Measurement(
        float(epochs.median()), float(epochs.min()), float(epochs.max()), f"{len(epochs)} rates"
    )


def _within(center: float, tolerance: float) -> tuple[float, float]:
    return center * (1 - tolerance), center * (1 + tolerance)


_paper_alone = partial(ClaimMeasure, scale="paper")

MEASURES: dict[str, ClaimMeasure] = {
    "CAT-18": ClaimMeasure("wrn_cifar10", *_within(12, 0.3), maximal_rate),
    # "Near the largest": at least as near to it as to 2/λ₀.
    "CAT-23": ClaimMeasure("cnn_cifar10", 0.5, 1, place_of_best_rate),
    "CAT-24": ClaimMeasure("cnn_cifar10", -0.02, 0.02, trend_in_physical_time),
    "CAT-26": ClaimMeasure("wrn_performance", 2, 12, best_rate_after(fixed_steps)),
    "CAT-27": ClaimMeasure("wrn_performance", 2, None, best_rate_after(fixed_time)),
    "CAT-28": _paper_alone("wrn_softmax", 0.962, 0.968, softmax_accuracy, "cifar10"),
    "CAT-29": _paper_alone("wrn_cifar100", *_within(0.4, 0.25), catapult.critical_rate, "cifar100"),
    "CAT-30": _paper_alone("wrn_cifar100", None, 0.04, gap_to_reference, "cifar100"),
    "CAT-31": _paper_alone("wrn_cifar100", *_within(2000, 0.15), epochs_to_convergence, "cifar100"),
    # "A few %".
    "CAT-32": ClaimMeasure("wrn_cifar100", None, 0.05, overlap_in_physical_time),
    "CAT-41": ClaimMeasure("wrn_cifar10", *_within(1, 0.2), effect_of_decay),
    "CAT-42": ClaimMeasure("wrn_performance", None, 0, training_accuracies),
}
