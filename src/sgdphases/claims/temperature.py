"""Claims of the temperature paper about trained networks, measured from the training experiments.

Reference: Temperature check: theory and practice for training models with softmax-cross-entropy
losses.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.tables import ExperimentTables
from sgdphases.temperature_sweeps import (
    BETA,
    NORM,
    RELATIVE_RATE,
    at_best_rate,
    best_rates,
    families,
    fit_rates,
    largest_rates,
    lazy_from,
    plane_cells,
    rate_spacing,
    with_accuracy,
)

# Norms of the rescaled logits, per sample and output, above which they count as large.
_LARGE_NORM = 1.0 + 1e-9
# The paper's range of good inverse temperatures, and the smallest below which seeds scatter.
_GOOD_RANGE = (0.01 * (1 - 1e-9), 10.0 * (1 + 1e-9))
_UNSTABLE_BELOW = 0.01 * (1 - 1e-9)
_TABLE_TEMPERATURE = 0.3


def _slopes(
    tables: ExperimentTables, rates_of: Callable[[pd.DataFrame], pd.DataFrame]
) -> Measurement:
    """Exponent of rates in β where networks are lazy, of all depths the one farthest from −1."""
    runs = with_accuracy(tables)
    spacing, start = rate_spacing(runs), lazy_from(runs)
    found, texts = [], []
    for depth, own in runs.groupby("depth"):
        rates = rates_of(own)
        lazy, rich = rates[rates[BETA] >= start], rates[rates[BETA] < start]
        law = fit_rates(lazy, spacing)
        found.append(law)
        text = (
            f"depth {depth}: {law.exponent:.3f} ± {(law.high - law.low) / 2:.3f} for β from "
            f"{lazy[BETA].min():.2g} to {lazy[BETA].max():.2g}"
        )
        if rich[BETA].nunique() >= 3:
            below = fit_rates(rich, spacing)
            text += (
                f", {below.exponent:.3f} ± {(below.high - below.low) / 2:.3f} for β from "
                f"{rich[BETA].min():.2g} to {rich[BETA].max():.2g} (where −2/L is expected)"
            )
        texts.append(text)
    worst = max(found, key=lambda law: abs(law.exponent + 1))
    detail = "; ".join(texts) + "; intervals: 95 %, from scatter or the spacing of rates"
    return Measurement(worst.exponent, worst.low, worst.high, detail)


def best_rate_slope(tables: ExperimentTables) -> Measurement:
    """Exponent of the learning rate with the best test accuracy in β, the farthest from −1."""

    def inside(runs: pd.DataFrame) -> pd.DataFrame:
        rates = best_rates(runs, [BETA])
        # At an end of the sweep the best rate is not known.
        return rates[~rates["at_end"]]

    return _slopes(tables, inside)


def largest_rate_slope(tables: ExperimentTables) -> Measurement:
    """Exponent of the largest learning rate that trains in β, the farthest from −1."""
    return _slopes(tables, lambda runs: largest_rates(runs, [BETA]))


def _largest(table: pd.DataFrame, column: str) -> dict[str, Any]:
    """The row in which a column is largest."""
    return {str(k): v for k, v in table.iloc[int(table[column].argmax())].items()}


def best_temperature_of_plane(tables: ExperimentTables) -> Measurement:
    """The inverse temperature of the most accurate cell of the plane."""
    best = _largest(plane_cells(tables), "accuracy")
    detail = f"accuracy {best['accuracy']:.4f} at norm {best[NORM]:g}"
    return Measurement(float(best[BETA]), detail=detail)


def norm_independence(tables: ExperimentTables) -> Measurement:
    """Spread of test accuracies over logit norms up to 1, the widest of all β."""
    cells = plane_cells(tables)
    small = cells[cells[NORM] <= _LARGE_NORM]
    by_beta = small.groupby(BETA)["accuracy"].agg(["min", "max", "count"])
    by_beta = by_beta[by_beta["count"] > 1]
    if by_beta.empty:
        raise ValueError("at no inverse temperature can two norms up to 1 be reached")
    widths = by_beta["max"] - by_beta["min"]
    large = cells[cells[NORM] > _LARGE_NORM]
    drop = ""
    if not large.empty:
        reference = small.groupby(BETA)["accuracy"].mean()
        lost = reference.reindex(large[BETA]).to_numpy() - large["accuracy"].to_numpy()
        drop = f"; norms above 1 lose up to {np.nanmax(lost):.4f}"
    detail = f"{len(widths)} inverse temperatures, widest at β = {widths.idxmax():g}{drop}"
    return Measurement(float(widths.max()), detail=detail)


def commonest_rate(tables: ExperimentTables) -> Measurement:
    """The learning rate times β that is best in most cells of the plane."""
    counts = plane_cells(tables)[RELATIVE_RATE].value_counts()
    detail = f"best in {counts.iloc[0]} of {counts.sum()} cells"
    return Measurement(float(counts.index[0]), detail=detail)


def early_ordering(tables: ExperimentTables) -> Measurement:
    """Rank correlation of the accuracy after 20 steps with β, and minus that with the norm.

    Means over norms and over β; the smaller of the two.
    """
    cells = plane_cells(tables)

    def mean_correlation(fixed: str, varied: str) -> float:
        ranks = [
            float(spearmanr(line[varied], line["early_accuracy"]).statistic)
            for _, line in cells.groupby(fixed)
            if len(line) > 2 and len(line["early_accuracy"].unique()) > 1
        ]
        if not ranks:
            raise ValueError("fewer than three cells of the plane in every row")
        return float(np.mean(ranks))

    with_beta, with_norm = mean_correlation(NORM, BETA), mean_correlation(BETA, NORM)
    detail = f"with β at fixed norm {with_beta:.3f}, with the norm at fixed β {with_norm:.3f}"
    return Measurement(min(with_beta, -with_norm), detail=detail)


def final_norms(tables: ExperimentTables) -> Measurement:
    """How far the norm of the logits at the end is from 1, as a factor, for norms up to 1."""
    cells = plane_cells(tables)
    small = cells[cells[NORM] <= _LARGE_NORM]
    if small.empty:
        raise ValueError("no norm up to 1 can be reached")
    norms = small["final_logit_norm"].to_numpy(float)
    detail = f"{norms.min():.3g} to {norms.max():.3g} from {small[NORM].min():g} to 1"
    return Measurement(float(np.maximum(norms, 1 / norms).max()), detail=detail)


def _best_of_families(tables: ExperimentTables) -> tuple[pd.DataFrame, list[str]]:
    runs = with_accuracy(tables)
    names = families(runs)
    return at_best_rate(runs, [*names, BETA]), names


def _with_norm(best: pd.DataFrame) -> pd.DataFrame:
    if "batch_norm" not in best:
        raise ValueError("no runs with and without batch norm")
    return best[best["batch_norm"].astype(bool)]


def best_temperature_with_norm(tables: ExperimentTables) -> Measurement:
    """The inverse temperature with the best mean accuracy, with batch norm."""
    own = _with_norm(_best_of_families(tables)[0])
    best = _largest(own, "mean")
    return Measurement(float(best[BETA]), detail=f"mean accuracy {best['mean']:.4f}")


def advantage_of_norm(tables: ExperimentTables) -> Measurement:
    """Mean accuracy with batch norm less the best without, the smallest of all β."""
    best, _ = _best_of_families(tables)
    own = _with_norm(best).groupby(BETA)["mean"].max()
    others = best[~best["batch_norm"].astype(bool)].groupby(BETA)["mean"].max()
    gaps = (own - others).dropna()
    detail = ", ".join(f"{gap:+.4f} at β = {beta:g}" for beta, gap in gaps.items())
    return Measurement(float(gaps.min()), detail=detail)


def scatter_at_small_temperature(tables: ExperimentTables) -> Measurement:
    """Scatter over seeds below β = 0.01 over that above, without batch norm, medians.

    The mean must fall besides, and by more than twice as much as the best seed does.
    """
    best, _ = _best_of_families(tables)
    if "batch_norm" in best:
        best = best[~best["batch_norm"].astype(bool)]
    below, above = best[best[BETA] < _UNSTABLE_BELOW], best[best[BETA] >= _UNSTABLE_BELOW]
    if below.empty or above.empty or best["seeds"].max() < 2:
        raise ValueError("no inverse temperature below 0.01 with several seeds")
    falls = {name: float(above[name].max() - below[name].max()) for name in ("mean", "best")}
    ratio = float(below["deviation"].median() / above["deviation"].median())
    detail = f"mean falls by {falls['mean']:.4f}, best seed by {falls['best']:.4f}"
    holds = falls["mean"] > 2 * max(falls["best"], 0.0)
    unmet = "" if holds else "the mean does not fall by more than twice the best seed's fall"
    return Measurement(ratio, detail=detail, unmet=unmet)


def best_temperature_of_means(tables: ExperimentTables) -> Measurement:
    """The inverse temperature with the best mean; the best seed must be at a smaller one."""
    best, _ = _best_of_families(tables)
    mean, seed = (_largest(best, name) for name in ("mean", "best"))
    detail = (
        f"mean {mean['mean']:.4f} at β = {mean[BETA]:g}, best seed {seed['best']:.4f} at β = "
        f"{seed[BETA]:g}"
    )
    unmet = "" if seed[BETA] < mean[BETA] else "the best seed is not at a smaller β"
    return Measurement(float(mean[BETA]), detail=detail, unmet=unmet)


def outside_good_range(tables: ExperimentTables) -> Measurement:
    """Networks whose best mean is at an inverse temperature outside of 0.01 to 10."""
    best, names = _best_of_families(tables)
    groups = [own for _, own in best.groupby(names, dropna=False)] if names else [best]
    betas = [float(_largest(own, "mean")[BETA]) for own in groups]
    outside = [beta for beta in betas if not _GOOD_RANGE[0] <= beta <= _GOOD_RANGE[1]]
    detail = f"of {len(betas)}, best at β = {', '.join(f'{beta:g}' for beta in sorted(betas))}"
    return Measurement(float(len(outside)), detail=detail)


def _percent_at(inverse_temperature: float) -> Callable[[ExperimentTables], Measurement]:
    def measure(tables: ExperimentTables) -> Measurement:
        """Best accuracy in percent, with batch norm, mean over seeds."""
        runs = tables.runs[np.isclose(tables.runs[BETA], inverse_temperature)]
        if "batch_norm" in runs:
            runs = runs[runs["batch_norm"].astype(bool)]
        if runs.empty:
            raise ValueError(f"no run at inverse temperature {inverse_temperature:g}")
        percents = 100 * runs["max_test_accuracy"].to_numpy(float)
        spread = f", standard deviation {percents.std(ddof=1):.2f}" if len(percents) > 1 else ""
        return Measurement(float(percents.mean()), detail=f"{len(percents)} seeds{spread}")

    return measure


def quoted(tables: ExperimentTables) -> Measurement:
    """A number that the paper did not measure."""
    del tables  # none of them can tell
    raise ValueError(
        "the paper quotes it from Ghiasi et al. (2018): neither dropout nor label smoothing is "
        "trained here"
    )


def _of_paper(
    experiment: str,
    dataset: str,
    low: float | None,
    high: float | None,
    measure: Callable[[ExperimentTables], Measurement],
) -> ClaimMeasure:
    """A claim about the paper's own network and data."""
    return ClaimMeasure(experiment, low, high, measure, dataset, "paper")


MEASURES: dict[str, ClaimMeasure] = {
    "TMP-10": ClaimMeasure("optimal_rate", -1.15, -0.85, best_rate_slope),
    "TMP-11": ClaimMeasure("optimal_rate", -1.15, -0.85, largest_rate_slope),
    "TMP-13": _of_paper("plane", "cifar10", 0.01 / 3, 0.03, best_temperature_of_plane),
    "TMP-14": ClaimMeasure("plane", None, 0.01, norm_independence),
    "TMP-15": _of_paper("plane", "cifar10", 10**-2.5 / 3, 10**-2.5 * 3, commonest_rate),
    "TMP-16": ClaimMeasure("plane", 0.5, None, early_ordering),
    "TMP-17": ClaimMeasure("plane", None, 10, final_norms),
    "TMP-18": _of_paper("weight_scales", "cifar10", 10 / 3, 30, best_temperature_with_norm),
    "TMP-19": ClaimMeasure("weight_scales", 0, None, advantage_of_norm),
    "TMP-20": ClaimMeasure("weight_scales", 1, None, scatter_at_small_temperature),
    "TMP-21": ClaimMeasure("gru", 1 / 3, 3, best_temperature_of_means, "imdb"),
    "TMP-22": _of_paper("imagenet", "imagenet", 76.31, 76.71, _percent_at(1.0)),
    "TMP-23": ClaimMeasure("imagenet", 76.60, 77.00, quoted),
    "TMP-24": ClaimMeasure("imagenet", 76.97, 77.37, quoted),
    "TMP-25": _of_paper("imagenet", "imagenet", 77.17, 77.57, _percent_at(_TABLE_TEMPERATURE)),
    "TMP-33": ClaimMeasure("weight_scales", None, 0, outside_good_range),
}
