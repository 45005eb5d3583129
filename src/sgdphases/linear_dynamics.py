"""How closely networks follow their linearisation after the catapult is over.

Reference: Lewkowycz et al., The large learning rate phase of deep learning, section 4.1 and SM F.
"""

import numpy as np
import pandas as pd

from sgdphases.selection import RATE
from sgdphases.tables import ExperimentTables

# Test accuracies this close count as the same.
SAME_ACCURACY = 0.02


def accuracies_by_kind(runs: pd.DataFrame) -> pd.DataFrame:
    """Test accuracies of networks and of their linearisations at each learning rate.

    Args:
        runs: Rows with `linearize_at` (null: the network itself), `relative_learning_rate`, `seed`,
            `status`, `final_test_accuracy`.

    Returns:
        One row per kind and rate, sorted: `linearize_at` (−1: the network itself),
        `relative_learning_rate`, `accuracy` (mean over seeds), `lowest`, `highest`, and
        `difference`, the mean over seeds of the distance from the network's own accuracy. All are
        NaN where a run of the kind diverged, the difference also where one of the network did.

    Raises:
        ValueError: The grid holds no network that is itself, or none that is linearised.
    """
    kinds = runs["linearize_at"].astype("float64").fillna(-1).astype(int)
    accuracy = runs["final_test_accuracy"].where(runs["status"] != "diverged").astype("float64")
    table = runs.assign(linearize_at=kinds, accuracy=accuracy)
    # Relative rates are those of each seed's own network, and come back from a division.
    table[RATE] = runs[RATE].round(9)
    own = table[table["linearize_at"] == -1].set_index([RATE, "seed"])["accuracy"]
    if own.empty or len(own) == len(table):
        raise ValueError("the grid holds no network, or no linearised one")
    pairs = pd.MultiIndex.from_frame(table[[RATE, "seed"]])
    table["difference"] = (table["accuracy"] - own.reindex(pairs).to_numpy()).abs()
    # NumPy's means, unlike those of pandas, are NaN where a value is.
    rows = [
        {
            "linearize_at": kind,
            RATE: rate,
            "accuracy": group["accuracy"].to_numpy(dtype=float).mean(),
            "lowest": group["accuracy"].to_numpy(dtype=float).min(),
            "highest": group["accuracy"].to_numpy(dtype=float).max(),
            "difference": group["difference"].to_numpy(dtype=float).mean(),
        }
        for (kind, rate), group in table.groupby(["linearize_at", RATE])
    ]
    return pd.DataFrame(rows)


def tracked_rates(accuracies: pd.DataFrame) -> tuple[float, float]:
    """Up to which learning rate the network linearised last has the accuracy of the network.

    Args:
        accuracies: What `accuracies_by_kind` returned.

    Returns:
        The last rate of those, from the smallest on, at which the two differ by at most 0.02; and
        the first at which they do not. Zero and the smallest rate where they never agree; the
        largest and infinity where they always do.
    """
    kind = accuracies["linearize_at"].max()
    rows = accuracies[accuracies["linearize_at"] == kind].sort_values(RATE)
    rates = rows[RATE].to_numpy(dtype=float)
    agrees = rows["difference"].to_numpy(dtype=float) <= SAME_ACCURACY
    count = len(rates) if agrees.all() else int(np.argmin(agrees))
    bounded = np.concatenate([[0.0], rates, [np.inf]])
    return float(bounded[count]), float(bounded[count + 1])


def kernel_changes(tables: ExperimentTables) -> pd.DataFrame:
    """The measured changes of tangent kernels since the step that they are compared with.

    Args:
        tables: Tables of an experiment with the measurement `kernel_change`.

    Returns:
        One row per run and measurement after that step: `width`, `seed`,
        `relative_learning_rate`, `step`, `kernel_change`.
    """
    history = tables.history.dropna(subset="kernel_change")
    history = history[history["kernel_change"] > 0]
    runs = tables.runs[tables.runs["status"] != "diverged"]
    merged = history.merge(runs[["run_id", "width", "seed", RATE]], on="run_id")
    columns = ["width", "seed", RATE, "step", "kernel_change"]
    changes: pd.DataFrame = merged[columns].sort_values(columns).reset_index(drop=True)
    return changes


def geometric_means(changes: pd.DataFrame) -> pd.DataFrame:
    """Geometric mean over seeds: one row per width and step, with `kernel_change`."""
    logarithms = changes.assign(kernel_change=np.log(changes["kernel_change"]))
    means = logarithms.groupby(["width", "step"], as_index=False)["kernel_change"].mean()
    result: pd.DataFrame = means.assign(kernel_change=np.exp(means["kernel_change"]))
    return result
