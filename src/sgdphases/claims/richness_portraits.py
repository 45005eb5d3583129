"""Claims of the richness paper about portraits of other networks, optimisers and data."""

import math

import numpy as np
import pandas as pd

from sgdphases.claims.catapult_theory import choose, diverged, numbers
from sgdphases.claims.richness import (
    LARGEST,
    LAZY,
    RICH,
    Portrait,
    clear_exponents,
    edge_law,
    farthest_exponent,
    found_edges,
    portraits_of,
)
from sgdphases.claims.richness_theory import MSE, Exponent, farthest, within
from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.portraits import PortraitRules, weight_matrices
from sgdphases.tables import ExperimentTables

_TOLERANCE = 0.2
_SINGLE_INDEX_TOLERANCE = 0.25
# A step of the paper's grid, two rates per decade.
_SHARP = 0.5
# Figure 39: the largest richness that trains at gamma^(3/L), and the factor that it may be off.
_LARGEST_RICHNESS, _RICHNESS_FACTOR = 1e4, 3.0
_PAPER_RUNS = (140, 160)
_RULE_TOLERANCE = 0.01


# --- figures 10 and 12: schedules and Adam ---


def scheduled_portraits(tables: ExperimentTables, optimizer: str) -> list[Portrait]:
    """The portraits of both losses with one optimiser, squared errors first."""
    portraits = portraits_of(tables, {"loss": "{}"}, optimizer=optimizer)
    return sorted(portraits, key=lambda portrait: portrait.loss != MSE)


def _scheduled(tables: ExperimentTables) -> Measurement:
    """RICH-40: the exponents under warm-up and cosine decay."""
    return farthest_exponent(tables, scheduled_portraits(tables, "sgd"), LARGEST)


def _adam(tables: ExperimentTables) -> Measurement:
    """RICH-41: the exponents with Adam, and whether rates train at the largest richness."""
    portraits = scheduled_portraits(tables, "adam")
    measured = farthest_exponent(tables, portraits, LARGEST)
    top = tables.runs["richness"].max()
    closed = [
        portrait.name
        for portrait in portraits
        if top not in set(found_edges(tables, "convergence", portrait)["richness"])
    ]
    unmet = f"nothing trains at richness {top:g}: {', '.join(closed)}" if closed else ""
    return _with_unmet(measured, unmet)


def _with_unmet(measured: Measurement, unmet: str) -> Measurement:
    return Measurement(
        measured.value,
        measured.ci_low,
        measured.ci_high,
        measured.detail,
        "; ".join(filter(None, (measured.unmet, unmet))),
    )


# --- figure 28: batch sizes ---


def batch_size_portraits(tables: ExperimentTables) -> list[Portrait]:
    """The portraits of the batch sizes, the smallest first."""
    return portraits_of(tables, {"batch_size": "B={}"})


def _batch_sizes(tables: ExperimentTables) -> Measurement:
    """RICH-38: decades by which the largest rich rate is lower at the smallest batch size."""
    portraits = batch_size_portraits(tables)
    if len(portraits) < 2:
        raise ValueError("a single batch size")
    exponents = farthest(clear_exponents(tables, portraits))
    smallest, largest = portraits[0], portraits[-1]

    def gain(edge: str, window: tuple[float, float]) -> tuple[float, int]:
        rates = [
            found_edges(tables, edge, portrait).groupby("richness")["rate"].mean()
            for portrait in (smallest, largest)
        ]
        both = pd.concat(rates, axis=1, join="inner", keys=["small", "large"])
        both = both[within(both.index.to_numpy(dtype=np.float64), window)]
        if both.empty:
            raise ValueError(f"no {edge} edge at both batch sizes")
        return float(np.log10(both["large"] / both["small"]).mean()), len(both)

    rich, count = gain("convergence", RICH)
    lazy, _ = gain("convergence", LAZY)
    unmet = [] if rich > 0 else ["the largest rich rate is no lower"]
    if abs(exponents.value) > _TOLERANCE:
        unmet.append("the exponents of the edges are not those of the theory")
    if abs(lazy) > _SHARP:
        unmet.append("lazy edges move by more than half a decade")
    return Measurement(
        rich,
        detail=f"mean over {count} values of the richness, {smallest.name} and {largest.name}; "
        f"lazy largest rates move by {lazy:.2f} decades; {exponents.detail}",
        unmet="; ".join(unmet),
    )


# --- figure 13: single-index functions ---


def single_index_portraits(tables: ExperimentTables) -> list[Portrait]:
    """The portrait, of the one width whose rates are relative to an edge."""
    if tables.edges is None:
        raise ValueError("no edges were searched")
    return portraits_of(tables, {"depth": "L={:.0f}"}, width=tables.edges["width"].iloc[0])


def _single_index(tables: ExperimentTables) -> Measurement:
    """RICH-42: the exponents with a single-index function."""
    regimes = ("lazy smallest", "rich smallest", *LARGEST)
    return farthest_exponent(tables, single_index_portraits(tables), regimes)


# --- figures 25 and 26: residual networks ---


def depth_portraits(tables: ExperimentTables, parametrisation: str) -> list[Portrait]:
    """The portraits of residual networks in one parametrisation, the shallowest first."""
    return portraits_of(tables, {"num_blocks": "{:.0f} blocks"}, parametrisation=parametrisation)


def _residual(tables: ExperimentTables) -> Measurement:
    """RICH-44: rich exponent of the largest rate of the deepest network in muP."""

    def exponents(parametrisation: str) -> list[Exponent]:
        return [
            Exponent(portrait.name, edge_law(tables, "convergence", portrait, RICH), 1.0)
            for portrait in depth_portraits(tables, parametrisation)
        ]

    plain, scaled = exponents("mup"), exponents("depth_mup")
    if min(len(plain), len(scaled)) < 2:
        raise ValueError("no several depths in muP and in Depth-muP")
    deepest = plain[-1].law
    of_scaled = [found.law.exponent for found in scaled]
    spread = max(of_scaled) - min(of_scaled)
    unmet = "" if spread <= _TOLERANCE else f"in Depth-µP the exponents differ by {spread:.2f}"
    return Measurement(
        deepest.exponent,
        deepest.low,
        deepest.high,
        f"µP: {farthest(plain).detail}; Depth-µP: {farthest(scaled).detail}",
        unmet,
    )


# --- figures 1d, 14 and 15: architectures ---


def model_portraits(tables: ExperimentTables, model: str, names: dict[str, str]) -> list[Portrait]:
    """The portraits of one model, told apart by columns, and how each is named."""
    return portraits_of(tables, names, model=model)


def _cut_off(tables: ExperimentTables) -> Measurement:
    """RICH-45: decades from the largest rate that trains to divergence, without LayerNorm."""
    gaps: dict[str, pd.Series[float]] = {}
    for portrait in model_portraits(tables, "rich_vit", {"normalisation": "{}"}):
        edges = [
            found_edges(tables, edge, portrait).groupby("richness")["rate"].mean()
            for edge in ("convergence", "divergence")
        ]
        if edges[0].empty:
            raise ValueError(f"no largest rate, normalisation {portrait.name}")
        both = pd.concat(edges, axis=1, join="inner", keys=["convergence", "divergence"])
        gaps[portrait.name] = (both["divergence"] / both["convergence"]).map(math.log10)
    if not {"none", "layer_norm"} <= set(gaps):
        raise ValueError("no vision transformers without and with LayerNorm")
    without, beside = gaps["none"], gaps["layer_norm"]
    if without.empty:
        raise ValueError("no largest rate and divergence at the same richness without LayerNorm")
    measured = float(without.mean())
    # A network with norms may stay finite at every rate: then there is no cut-off at all.
    unmet = "" if beside.empty or beside.mean() > measured else "no sharper than with LayerNorm"
    listed = (
        f"with LayerNorm {beside.mean():.2f}" if len(beside) else "with LayerNorm no divergence"
    )
    return Measurement(
        measured,
        detail=f"mean over {len(without)} values of the richness; {listed}",
        unmet=unmet,
    )


# --- figure 39: other rules for the learning rate ---


def rules_of_scaling(depth: int) -> dict[str, float]:
    """The exponents in the richness that figure 39 compares, by their names."""
    return {
        f"3/{depth}": 3.0 / depth,
        f"2/{depth + 1}": 2.0 / (depth + 1),
        f"2/{depth}": 2.0 / depth,
    }


def runs_by_rule(runs: pd.DataFrame, depth: int) -> dict[str, pd.DataFrame]:
    """Runs whose rates follow a power of the richness, by the rule's name.

    Args:
        runs: Runs of one network under all rules of `rules_of_scaling`, with one prefactor.
        depth: L.

    Returns:
        By name, the runs by increasing richness.

    Raises:
        ValueError: A rule has no run.
    """
    # The largest rate at the largest richness follows the largest exponent, which gives the
    # prefactor; what is left of any rate gives its exponent.
    rates, richness = numbers(runs, "learning_rate"), numbers(runs, "richness")
    top = np.lexsort((rates, richness))[-1]
    prefactor = rates[top] / richness[top] ** (3.0 / depth)
    exponents = np.log(rates / prefactor) / np.log(richness)
    return {
        name: choose(
            runs, np.abs(exponents - value) < _RULE_TOLERANCE, f"has the rule {name}"
        ).sort_values("richness")
        for name, value in rules_of_scaling(depth).items()
    }


def scaling_runs(tables: ExperimentTables) -> tuple[pd.DataFrame, int]:
    """Those runs of an experiment whose rates are relative to nothing, and their L."""
    runs = tables.runs
    if "edge_learning_rate" in runs:
        relative = runs["edge_learning_rate"].notna() | (runs["status"] == "unreachable")
        runs = runs[~relative]
    if runs.empty:
        raise ValueError("no run has an absolute learning rate")
    depth = weight_matrices(runs.iloc[0].dropna().to_dict())
    if depth is None:
        raise ValueError("a network without a number of layers")
    return runs, depth


def _other_scalings(tables: ExperimentTables) -> Measurement:
    """RICH-36: the richness above which eta = gamma^(3/L) diverges."""
    runs, depth = scaling_runs(tables)
    steepest, shallow, best = runs_by_rule(runs, depth).values()
    diverges = diverged(steepest)
    richness = numbers(steepest, "richness")
    unmet = []
    threshold = np.inf
    if diverges.any():
        first = int(diverges.argmax())
        threshold = float(np.sqrt(richness[first] * richness[max(first - 1, 0)]))
        if not diverges[first:].all():
            unmet.append("a larger richness trains once more")
    for name, others in ((f"2/{depth + 1}", shallow), (f"2/{depth}", best)):
        if diverged(others).any():
            unmet.append(f"γ^({name}) diverges")
    losses = [
        rows["final_train_loss"].iloc[-1] / rows["initial_train_loss"].iloc[-1]
        for rows in (shallow, best)
    ]
    if not losses[0] > losses[1]:
        unmet.append(f"γ^(2/{depth + 1}) does not train more slowly than γ^(2/{depth})")
    initial, final = (
        steepest[f"{name}_train_loss"].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in ("initial", "final")
    )
    trained = richness[PortraitRules.of(tables.spec).has_trained(initial, final)]
    upto = f"trains up to richness {trained.max():g}" if trained.size else "never trains"
    return Measurement(
        threshold,
        detail=f"γ^(3/{depth}) {upto} and diverges in {int(diverges.sum())} of {len(diverges)} "
        f"runs; at richness {richness[-1]:g} the loss falls to {losses[0]:.3g} under "
        f"γ^(2/{depth + 1}), to {losses[1]:.3g} under γ^(2/{depth})",
        unmet="; ".join(unmet),
    )


# --- a portrait's size ---


def _runs_of_a_portrait(tables: ExperimentTables) -> Measurement:
    """RICH-46: runs of one portrait."""
    runs = tables.runs
    seeds = runs["seed"].nunique()
    return Measurement(
        float(len(runs) / seeds),
        detail=f"{runs['richness'].nunique()} values of the richness, {seeds} seed(s); how long "
        "they take is in docs/benchmarks.md and in the usage table",
    )


MEASURES: dict[str, ClaimMeasure] = {
    "RICH-36": ClaimMeasure(
        "alternative_scalings",
        _LARGEST_RICHNESS / _RICHNESS_FACTOR,
        _LARGEST_RICHNESS * _RICHNESS_FACTOR,
        _other_scalings,
    ),
    "RICH-38": ClaimMeasure("batch_size_portraits", 0.0, None, _batch_sizes),
    "RICH-40": ClaimMeasure("optimizer_portraits", -_TOLERANCE, _TOLERANCE, _scheduled),
    "RICH-41": ClaimMeasure("optimizer_portraits", -_TOLERANCE, _TOLERANCE, _adam),
    "RICH-42": ClaimMeasure(
        "single_index_quadratic", -_SINGLE_INDEX_TOLERANCE, _SINGLE_INDEX_TOLERANCE, _single_index
    ),
    "RICH-44": ClaimMeasure("depth_portraits", 1 - _TOLERANCE, 1 + _TOLERANCE, _residual),
    "RICH-45": ClaimMeasure("architecture_portraits", None, _SHARP, _cut_off),
    "RICH-46": ClaimMeasure("full_portrait", *_PAPER_RUNS, _runs_of_a_portrait),
}
