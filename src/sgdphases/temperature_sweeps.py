"""What figures, claims and the tuning of the temperature paper read from sweeps of β."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sgdphases.exponents import PowerLaw, fit_power_law
from sgdphases.summary import PEAK_MARGIN
from sgdphases.tables import ExperimentTables

BETA = "inverse_temperature"
NORM = "initial_logit_norm"
RATE = "learning_rate"
# Rates are compared in units of 1/β, rounded: the same rate in several runs is one rate.
RELATIVE_RATE = "rate_over_temperature"
_DIGITS = 6
# Steps of the temperature paper's figure 5b.
EARLY_STEPS = 20
# A run whose accuracy is below this part of the sweep's best has not learned.
_LEARNED = 0.5
# Accuracies are multiples of 1/samples, often the margin apart: rounding must not decide.
_ROUNDING = 1e-6
# Networks of different shape or start; swept beside β.
_FAMILY = ("model", "depth", "batch_norm", "weight_scale")


def with_accuracy(tables: ExperimentTables) -> pd.DataFrame:
    """The runs of a sweep with the test accuracy that counts.

    Args:
        tables: Tables of a training experiment on a classification dataset.

    Returns:
        The runs that took steps, with further columns: `accuracy`, at the end of the run, and of
        one that diverged that of its network before training; `rate_over_temperature`, the
        learning rate times β.
    """
    runs = tables.runs[tables.runs["status"] != "unreachable"].copy()
    start = tables.history[tables.history["step"] == 0].set_index("run_id")["test_accuracy"]
    untrained = start.reindex(runs["run_id"]).to_numpy(dtype=float)
    final = runs["final_test_accuracy"].to_numpy(dtype=float)
    runs["accuracy"] = np.where(runs["status"] == "diverged", untrained, final)
    runs[RELATIVE_RATE] = _relative_rate(runs)
    return runs


def _relative_rate(runs: pd.DataFrame) -> list[float]:
    product = runs[RATE].to_numpy(dtype=float) * runs[BETA].to_numpy(dtype=float)
    return [float(f"{value:.{_DIGITS}g}") for value in product]


def families(runs: pd.DataFrame) -> list[str]:
    """The columns, of those that define a network, in which the runs differ."""
    columns = [name for name in _FAMILY if name in runs]
    return [name for name in columns if len(runs[name].unique()) > 1]


def over_seeds(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Accuracies over seeds, for each setting and learning rate.

    Args:
        runs: What `with_accuracy` returned.
        by: Columns that define a setting.

    Returns:
        One row per setting and rate: `by`, `learning_rate`, `rate_over_temperature`, `mean`,
        `best`, `worst`, `deviation` (standard deviation, of several seeds), `seeds`.
    """
    groups = runs.groupby([*by, RELATIVE_RATE], dropna=False, as_index=False)
    return groups.agg(
        **{
            RATE: (RATE, "first"),
            "mean": ("accuracy", "mean"),
            "best": ("accuracy", "max"),
            "worst": ("accuracy", "min"),
            "deviation": ("accuracy", "std"),
            "seeds": ("accuracy", "count"),
        }
    )


def at_best_rate(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Each setting at the learning rate whose mean test accuracy over seeds is highest.

    Args:
        runs: What `with_accuracy` returned.
        by: Columns that define a setting.

    Returns:
        The row of `over_seeds` of each setting's best rate, of several equally good ones the middle
        one, with a column `at_end`: whether it is the smallest or the largest of several.
    """
    rows = []
    for _, group in over_seeds(runs, by).groupby(list(by), dropna=False):
        ordered = group.sort_values(RELATIVE_RATE).reset_index(drop=True)
        best = np.flatnonzero(ordered["mean"] >= ordered["mean"].max() - 1e-12)
        index = int(best[len(best) // 2])
        at_end = len(ordered) > 1 and index in (0, len(ordered) - 1)
        rows.append(ordered.iloc[[index]].assign(at_end=at_end))
    return pd.concat(rows, ignore_index=True)


def plane_cells(tables: ExperimentTables) -> pd.DataFrame:
    """The cells of the plane of β and logit norm that can be reached, at their best rates.

    Args:
        tables: Tables of an experiment that sweeps both, measures step 20 and the logit norm.

    Returns:
        One row per cell, with the columns of `at_best_rate` (`accuracy` for `mean`), and means over
        seeds: `early_accuracy`, test accuracy after 20 steps, and `final_logit_norm`.

    Raises:
        ValueError: No cell can be reached.
    """
    runs = with_accuracy(tables)
    if runs.empty:
        raise ValueError("no cell of the plane can be reached")
    cells = at_best_rate(runs, [BETA, NORM]).rename(columns={"mean": "accuracy"})
    history = tables.history[tables.history["step"] == EARLY_STEPS]
    early = history.groupby("run_id")["test_accuracy"].first()
    last = tables.history.sort_values("step").groupby("run_id")["logit_norm"].last()
    runs["early_accuracy"] = early.reindex(runs["run_id"]).to_numpy()
    runs["final_logit_norm"] = last.reindex(runs["run_id"]).to_numpy()
    means = runs.groupby([BETA, NORM, RATE], as_index=False)[
        ["early_accuracy", "final_logit_norm"]
    ].mean()
    return cells.merge(means, on=[BETA, NORM, RATE])


def best_rates(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The learning rates with the best test accuracy, seed by seed.

    Accuracies of small networks have a plateau, on which the largest is a matter of chance: the
    best rate is the geometric mean of all whose accuracy is within 0.005 of the best.

    Args:
        runs: What `with_accuracy` returned.
        by: Columns that define a setting.

    Returns:
        One row per setting and seed: `by`, `seed`, `learning_rate`, and `at_end`, whether the
        plateau reaches the smallest or the largest rate of the sweep, beyond which it may go on.
    """
    rows = []
    for key, group in runs.groupby([*by, "seed"], dropna=False):
        ordered = group.sort_values(RATE)
        accuracy = ordered["accuracy"].to_numpy(dtype=float)
        is_best = accuracy >= accuracy.max() - PEAK_MARGIN - _ROUNDING
        rate = np.exp(np.log(ordered[RATE].to_numpy(dtype=float)[is_best]).mean())
        at_end = bool(is_best[0] or is_best[-1])
        rows.append({**dict(zip([*by, "seed"], key, strict=True)), RATE: rate, "at_end": at_end})
    return pd.DataFrame(rows)


def largest_rates(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The largest learning rate up to which runs learn, from the best one on, seed by seed.

    Args:
        runs: What `with_accuracy` returned.
        by: Columns that define a setting.

    Returns:
        One row per setting and seed whose sweep goes beyond: `by`, `seed`, `learning_rate`. A run
        learns if it reaches half of the best accuracy of all.
    """
    enough = _LEARNED * runs["accuracy"].max()
    rows = []
    for key, group in runs.groupby([*by, "seed"], dropna=False):
        ordered = group.sort_values(RATE)
        accuracy = ordered["accuracy"].to_numpy(dtype=float)
        best = int(accuracy.argmax())
        fails = accuracy[best:] < enough
        if accuracy[best] >= enough and fails.any():
            rate = float(ordered[RATE].iloc[best + int(fails.argmax()) - 1])
            rows.append({**dict(zip([*by, "seed"], key, strict=True)), RATE: rate})
    return pd.DataFrame(rows, columns=[*by, "seed", RATE])


def rate_spacing(runs: pd.DataFrame) -> float:
    """Decades from one learning rate of a sweep, in units of 1/β, to the next."""
    rates = np.unique(runs[RELATIVE_RATE])
    if len(rates) < 2:
        raise ValueError("one learning rate is no sweep")
    return float(np.diff(np.log10(rates)).mean())


def lazy_from(runs: pd.DataFrame) -> float:
    r"""The inverse temperature from which on learning rates follow 1/β.

    A network whose outputs are of order 1 at initialisation is one of the richness paper with
    γ = 1/(β√N) in µP: lazy up to γ = 1.

    Returns:
        1/√N of fully connected networks of width N; 0 of others.

    Reference:
        Catalogue item 64; richness paper, section 3.
    """
    if not (runs["model"] == "fully_connected").all():
        return 0.0
    return float(1 / np.sqrt(runs["width"].max()))


def fit_rates(rates: pd.DataFrame, spacing: float) -> PowerLaw:
    """The power law of learning rates in β.

    Args:
        rates: Rows with `inverse_temperature` and `learning_rate`, one for each seed.
        spacing: Decades between the rates of the sweep.

    Raises:
        ValueError: Fewer than three inverse temperatures.
    """
    if rates[BETA].nunique() < 3:
        raise ValueError(f"learning rates at {rates[BETA].nunique()} inverse temperatures alone")
    return fit_power_law(rates[BETA], rates[RATE], spacing)
