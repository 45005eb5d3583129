"""Claims of the catapult paper about trained networks, measured from the training experiments.

Learning rates are compared as η·λ₀, so that the paper's limits are 2, 4 and 12.

Reference: Lewkowycz et al., The large learning rate phase of deep learning.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.selection import RATE, trainable_edge, trained
from sgdphases.tables import ExperimentTables

_SLACK = 0.05
# Rates this close to the critical one belong to neither phase at finite width.
_LAZY_LIMIT = 0.9
_CATAPULT_LIMIT = 1.1


def _mean_over_seeds(values: "pd.Series[float]", detail: str) -> Measurement:
    """Mean, with the smallest and the largest value over seeds as its interval."""
    several = len(values) > 1
    return Measurement(
        float(values.mean()),
        float(values.min()) if several else None,
        float(values.max()) if several else None,
        f"{detail}; interval: smallest and largest of {len(values)} seeds" if several else detail,
    )


def critical_rate(tables: ExperimentTables) -> Measurement:
    """Critical learning rate 2/λ₀ at initialisation, λ₀ averaged over batches, mean over seeds."""
    if tables.curvature is None:
        raise ValueError("the experiment has no curvature stage")
    eigenvalues = tables.curvature.groupby("seed")["ntk_top_eigenvalue"].mean()
    width = ", ".join(str(width) for width in sorted(tables.curvature["width"].unique()))
    return _mean_over_seeds(2.0 / eigenvalues, f"width {width}")


def critical_rate_of(**network: str | float) -> Callable[[ExperimentTables], Measurement]:
    """As `critical_rate`, of the networks of a grid that have the given hyperparameters."""

    def measure(tables: ExperimentTables) -> Measurement:
        if tables.curvature is None:
            raise ValueError("the experiment has no curvature stage")
        chosen = tables.curvature
        for name, value in network.items():
            chosen = chosen[chosen[name] == value]
        if chosen.empty:
            raise ValueError(f"the grid lacks the network {network}")
        measured = critical_rate(replace(tables, curvature=chosen))
        size, batches = tables.spec["curvature"]["batch_size"], chosen["batch"].nunique()
        lowest, highest = chosen["ntk_top_eigenvalue"].min(), chosen["ntk_top_eigenvalue"].max()
        detail = (
            f"{measured.detail}; {batches} batches of {size} samples, λ₀ {lowest:.4g} to "
            f"{highest:.4g}, relative residual at most {chosen['ntk_residual'].max():.2g}"
        )
        return replace(measured, detail=detail)

    return measure


def maximal_rate(tables: ExperimentTables) -> Measurement:
    """Largest η·λ₀ that trains; the interval reaches to the first rate that does not."""
    edges = [edge for _, runs in tables.runs.groupby("seed") if (edge := trainable_edge(runs))]
    if len(edges) < tables.runs["seed"].nunique():
        raise ValueError("the grid holds no rate below, or none above, the edge of training")
    largest = 2 * np.array([edge[0] for edge in edges])
    return Measurement(
        float(largest.mean()),
        float(largest.min()),
        float(2 * max(edge[1] for edge in edges)),
        f"{len(edges)} seeds; interval: smallest edge to the first rate that does not train",
    )


def transient_length(tables: ExperimentTables) -> Measurement:
    """Steps until the loss is back below its start for good, the longest of all runs above 2/λ₀."""
    # Chosen by rate: choosing by what a run did would leave out those that contradict the claim.
    runs = tables.runs[trained(tables.runs) & (tables.runs[RATE] > _CATAPULT_LIMIT)]
    if runs.empty:
        raise ValueError("no run above 2/λ₀ trained")
    history = tables.history.merge(runs[["run_id", "initial_train_loss"]], on="run_id")
    above = history[history["train_loss"] > history["initial_train_loss"]]
    # The next measured step is the first below: measurements are dense over the transient.
    last_above = above.groupby("run_id")["step"].max()
    later = history.merge(last_above.rename("last_above"), on="run_id")
    back = later[later["step"] > later["last_above"]].groupby("run_id")["step"].min()
    if back.empty or len(back) < len(last_above):
        raise ValueError("no loss rises, or a run ends before its loss is back")
    spread = f"median {back.median():g}, longest {back.max():g} of {len(back)} runs"
    return Measurement(float(back.max()), float(back.min()), float(back.max()), spread)


def curvature_limits(tables: ExperimentTables) -> Measurement:
    """Share of runs that keep λ within 5 % (lazy) or end with λ below 1.05·2/η (catapult)."""
    runs = tables.runs[trained(tables.runs)].dropna(subset="final_ntk_top_eigenvalue")
    lazy = runs[runs[RATE] <= _LAZY_LIMIT]
    catapult = runs[runs[RATE] > _CATAPULT_LIMIT]
    if lazy.empty or catapult.empty:
        raise ValueError("the grid holds no lazy or no catapult run")
    ratio = lazy["final_ntk_top_eigenvalue"] / lazy["initial_ntk_top_eigenvalue"]
    constant = (ratio - 1).abs() <= _SLACK
    bound = (1 + _SLACK) * 2 / catapult["learning_rate"]
    below = catapult["final_ntk_top_eigenvalue"] < bound
    detail = (
        f"lazy: {constant.sum()} of {len(lazy)} runs constant, λ/λ₀ ends at {ratio.min():.3f} to "
        f"{ratio.max():.3f}; catapult: {below.sum()} of {len(catapult)} runs below 2/η"
    )
    return Measurement(float(pd.concat([constant, below]).mean()), detail=detail)


def best_rate(tables: ExperimentTables) -> Measurement:
    """η·λ₀ of the best test accuracy, averaged over seeds before the best is taken."""
    accuracy = tables.runs.assign(rate=tables.runs[RATE].round(9))
    accuracy = accuracy[accuracy["status"] != "diverged"]
    if accuracy["rate"].nunique() < 3:
        raise ValueError("fewer than three rates stayed finite")
    seeds = accuracy["seed"].nunique()
    # A rate at which a seed diverged is no candidate.
    by_rate = accuracy.groupby("rate")["final_test_accuracy"]
    mean = by_rate.mean()[by_rate.count() == seeds]
    by_seed = 2 * accuracy.loc[accuracy.groupby("seed")["final_test_accuracy"].idxmax(), "rate"]
    lazy = mean[mean.index < 1].max()
    # The best rates of single seeds are another estimator, and no interval of this one.
    detail = (
        f"accuracy {mean.max():.4f} there, at best {lazy:.4f} below 2/λ₀; best of single seeds at "
        f"{', '.join(f'{rate:g}' for rate in by_seed)}"
    )
    return Measurement(2 * float(mean.index[int(mean.argmax())]), detail=detail)


def dead_outputs(tables: ExperimentTables) -> Measurement:
    """Share of runs beyond 12/λ₀ that end finite with zero kernel, that is with output 0."""
    runs = tables.runs[tables.runs[RATE] > 6]
    if runs.empty:
        raise ValueError("no rate beyond 12/λ₀")
    dead = (runs["status"] != "diverged") & (runs["final_ntk_top_eigenvalue"] == 0)
    onset = 2 * tables.runs.loc[tables.runs["final_ntk_top_eigenvalue"] == 0, RATE].min()
    return Measurement(
        float(dead.mean()), detail=f"{len(runs)} runs; first dead run at η·λ₀ = {onset:.3g}"
    )


def momentum_constancy(tables: ExperimentTables) -> Measurement:
    """Largest |λ/λ₀ − 1| of tanh and identity with momentum, while ReLU moves over 5 %."""
    runs = tables.runs[tables.runs["momentum"] > 0]
    history = tables.history.dropna(subset="ntk_top_eigenvalue")
    history = history.merge(runs[["run_id", "activation"]], on="run_id").sort_values("step")
    start = history.groupby("run_id")["ntk_top_eigenvalue"].transform("first")
    distance = (history["ntk_top_eigenvalue"] / start - 1).abs()
    movement = distance.groupby(history["activation"]).max()
    if not {"tanh", "identity", "relu"} <= set(movement.index):
        raise ValueError("the grid lacks one of tanh, identity, relu with momentum")
    smooth = movement[["tanh", "identity"]].max()
    detail = ", ".join(f"{name} moves {value:.3f}" for name, value in movement.items())
    detail += f" within {int(history['step'].max())} steps"
    unmet = "" if movement["relu"] > _SLACK else f"relu moves at most {_SLACK:g}"
    return Measurement(float(smooth), detail=detail, unmet=unmet)


def effective_critical_rate(tables: ExperimentTables) -> Measurement:
    """Onset of strong curvature dynamics with momentum, in units of 2/λ₀.

    The rate at which λ at the end crosses the middle, in logarithm, between its initial value and
    that at the end at 2/λ₀. The paper names no definition; it expects 1 − momentum.
    """
    onsets = []
    for _, runs in tables.runs[trained(tables.runs)].groupby("seed"):
        ordered = runs.sort_values(RATE)
        ordered = ordered[ordered[RATE] <= 1 + _SLACK]
        if len(ordered) < 4 or ordered[RATE].max() < 1 - _SLACK:
            raise ValueError("the grid holds fewer than four trained rates up to 2/λ₀")
        rates, curvature = np.log(ordered[RATE]), np.log(ordered["final_ntk_top_eigenvalue"])
        start = np.log(ordered["initial_ntk_top_eigenvalue"].iloc[0])
        middle = (start + curvature.iloc[-1]) / 2
        first_below = int((curvature < middle).to_numpy().argmax())
        if first_below == 0:
            raise ValueError("no rate of the grid lies below the onset")
        inside = slice(first_below - 1, first_below + 1)
        # np.interp needs rising abscissae, and the curvature falls here.
        onset = np.interp(-middle, -curvature.iloc[inside], rates.iloc[inside])
        onsets.append(float(np.exp(onset)))
    momentum = tables.runs["momentum"].max()
    return _mean_over_seeds(pd.Series(onsets), f"momentum {momentum:g}, 1 − momentum expected")


def _within(center: float, tolerance: float) -> tuple[float, float]:
    return center * (1 - tolerance), center * (1 + tolerance)


def _initial(low: float, high: float, model: str = "wrn28_10", **network: Any) -> ClaimMeasure:
    """A printed critical rate of a network at full size on CIFAR-10."""
    measure = critical_rate_of(model=model, **network)
    return ClaimMeasure("initial_curvature", low, high, measure, "cifar10", "paper")


_ROOT_2 = 1.4142135623730951
# The paper's constants belong to MNIST; the limits in units of 1/λ₀ hold for any data.
MEASURES: dict[str, ClaimMeasure] = {
    "CAT-13": ClaimMeasure("fc_mnist", *_within(6.25, 0.1), critical_rate, "mnist"),
    "CAT-14": ClaimMeasure("fc_mnist", *_within(12, 0.25), maximal_rate),
    "CAT-15": ClaimMeasure("fc_mnist", None, 9, transient_length),
    "CAT-16": ClaimMeasure("fc_mnist", 1, 1, curvature_limits),
    "CAT-17": _initial(*_within(0.18, 0.2), parametrisation="standard", weight_scale=_ROOT_2),
    "CAT-22": _initial(1e-4 / 2, 1e-4 * 2, model="cat_cnn"),
    "CAT-25": _initial(*_within(0.14, 0.2), parametrisation="standard", weight_scale=1.0),
    "CAT-40": _initial(*_within(31.47, 0.2), parametrisation="ntk"),
    # "Between 2/λ₀ and 12/λ₀, near the latter": at least as near to 12 as to 2.
    "CAT-19": ClaimMeasure("fc1_mnist512", 7, 12, best_rate),
    "CAT-33": ClaimMeasure("scalar_relu", *_within(2.54, 0.15), critical_rate),
    "CAT-34": ClaimMeasure("scalar_relu", 1, 1, dead_outputs),
    "CAT-35": ClaimMeasure("fc3_momentum", *_within(1 - 0.9, 0.05), effective_critical_rate),
    "CAT-37": ClaimMeasure("fc2_activations_momentum", None, _SLACK, momentum_constancy),
    "CAT-38": ClaimMeasure("fc2_tanh", *_within(0.06, 0.2), critical_rate, "mnist"),
    "CAT-39": ClaimMeasure("fc2_tanh", *_within(4, 0.25), maximal_rate),
}
