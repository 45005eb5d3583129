"""What the temperature paper's early runs say, as its figures and claims read them.

Effective time is ηβ²·t. Reference: Temperature check, section 2.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.tables import ExperimentTables

Array = NDArray[np.float64]

# A fall of the loss that differs by this share from the linearised network's has departed from it.
DEPARTED = 0.02
# Logits below this size (root mean square) are small, above that one large.
SMALL_LOGITS, LARGE_LOGITS = 0.01, 30.0
# Below it the logits at the start are those of the fresh part of the second head.
_FRESH_HEAD = -0.9

_RUN_COLUMNS = [
    "run_id",
    "seed",
    "activation",
    "inverse_temperature",
    "head_correlation",
    "linearize_at",
    "learning_rate",
    "status",
]


def effective_rate(runs: pd.DataFrame) -> Array:
    """The effective learning rate ηβ² of each run."""
    rate = runs["learning_rate"].to_numpy(float)
    return np.asarray(rate * runs["inverse_temperature"].to_numpy(float) ** 2)


def curves(tables: ExperimentTables) -> pd.DataFrame:
    """The history with each run's hyperparameters and the `effective_time` of each row."""
    runs = tables.runs[[name for name in _RUN_COLUMNS if name in tables.runs]]
    runs = runs.assign(effective_learning_rate=effective_rate(runs))
    history = tables.history.drop(columns="experiment", errors="ignore").merge(runs, on="run_id")
    history["effective_time"] = history["step"] * history["effective_learning_rate"]
    return history.sort_values(["run_id", "step"], ignore_index=True)


def early_timescales(tables: ExperimentTables) -> pd.DataFrame:
    r"""The times of each run at its start, and their estimates from what it does until its end.

    .. math:: \hat\tau_z = \frac{\|Z^0\|}{\|Z(t) - Z^0\|/t}, \qquad
        \hat\tau_\mathrm{nl} = \frac{\|Z(t) - Z^0\|/t}{2\,\|Z(t) - Z_\mathrm{lin}(t)\|/t^2}

    Args:
        tables: An experiment that measures `timescales` at step 0.

    Returns:
        One row per run: its hyperparameters and what was measured at step 0;
        `estimated_logit_timescale` and `estimated_nonlinear_timescale`, where the distances were
        measured at the last step, in the time ηβ²t; `start`, a name of the logits at the start,
        common to runs of the same β√(1 + c) near c = −1, and null elsewhere.

    Raises:
        ValueError: The experiment measures no timescales.

    Reference:
        Temperature paper, sections 2.3 and 2.4; catalogue item 1.8.
    """
    if "logit_timescale" not in tables.history:
        raise ValueError("the experiment measures no timescales")
    history = curves(tables)
    start = history[history["step"] == 0].set_index("run_id")
    end = history[history["step"] > 0].groupby("run_id").last()
    if "scaled_logit_change" in history:
        time = end["effective_time"]
        speed = end["scaled_logit_change"] / time
        turn = 2 * end["scaled_linearized_distance"] / time**2
        start["estimated_logit_timescale"] = start["scaled_logit_norm"] / speed
        start["estimated_nonlinear_timescale"] = speed / turn
    if "head_correlation" in start:
        spread = 1 + start["head_correlation"].astype(float)
        norm = start["inverse_temperature"] * np.sqrt(spread)
        names = norm.map(lambda value: f"{value:.4g}")
        start["start"] = names.where(spread < 1 + _FRESH_HEAD)
    return start.reset_index().sort_values("scaled_logit_norm", ignore_index=True)


def departures(tables: ExperimentTables) -> pd.DataFrame:
    """When each run's loss leaves that of the network linearised at its start.

    Args:
        tables: Runs, and beside each the linearised one of the same β, rate and start.

    Returns:
        One row per pair, by inverse temperature: `inverse_temperature`, `departure_time`, the first
        effective time at which the fall of the loss differs by the share DEPARTED from the
        linearised one's (interpolated; NaN where it does not), `departure_loss`, the loss there,
        `last_time`.

    Raises:
        ValueError: No run has a linearised one beside it.

    Reference:
        Temperature paper, figure 1.
    """
    history = curves(tables)
    rows = []
    for (beta, *_), pair in history.groupby(["inverse_temperature", "head_correlation", "seed"]):
        is_linear = pair["linearize_at"].notna()
        if not is_linear.any() or is_linear.all():
            continue
        columns = ["step", "effective_time", "train_loss"]
        both = pair.loc[~is_linear, columns].merge(
            pair.loc[is_linear, ["step", "train_loss"]], on="step", suffixes=("", "_linearized")
        )
        both = both.sort_values("step")
        fall = both["train_loss"].iloc[0] - both["train_loss"].iloc[1:]
        linear = both["train_loss_linearized"].iloc[0] - both["train_loss_linearized"].iloc[1:]
        share = np.abs(fall / linear - 1).to_numpy()
        time = both["effective_time"].to_numpy()[1:]
        loss = both["train_loss"].to_numpy()[1:]
        first = int(np.argmax(share > DEPARTED))
        found = bool((share > DEPARTED).any())
        window = slice(max(first - 1, 0), first + 1)
        at = np.interp(DEPARTED, share[window], time[window]) if found else np.nan
        rows.append(
            {
                "inverse_temperature": beta,
                "departure_time": at,
                "departure_loss": np.interp(at, time, loss) if found else np.nan,
                "last_time": time[-1],
            }
        )
    if not rows:
        raise ValueError("no run has a linearised one beside it")
    return pd.DataFrame(rows).sort_values("inverse_temperature", ignore_index=True)


def family_of_starts(tables: ExperimentTables) -> pd.DataFrame:
    """Curves of runs at one β from several norms of the logits.

    Returns:
        Rows of `curves` with `logit_size` at the start and `scaled_time` t/τ_z, by size and step.

    Raises:
        ValueError: There are no such runs.
    """
    start = early_timescales(tables)
    # At c = -1 logits are 0 but for rounding.
    is_zero = (start["scaled_logit_norm"] == 0) | (start["head_correlation"] == -1)
    start = start[~is_zero & start["linearize_at"].isna()]
    counts = start.groupby("inverse_temperature")["run_id"].transform("count")
    start = start[counts > 2]
    if start.empty:
        raise ValueError("at no inverse temperature do runs start from several norms of the logits")
    beta = start["inverse_temperature"].min()
    start = start[start["inverse_temperature"] == beta]
    chosen = start[["run_id", "logit_timescale", "scaled_logit_size"]].rename(
        columns={"scaled_logit_size": "logit_size", "logit_timescale": "change_time"}
    )
    history = curves(tables).merge(chosen, on="run_id")
    history["scaled_time"] = history["effective_time"] / history["change_time"]
    return history.sort_values(["logit_size", "step"], ignore_index=True)
