"""What a run's record says about the run as a whole: one row of `runs.parquet`."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.phases import classify_phase

# A test accuracy within this distance of the best counts as having peaked (catalogue item 1.5).
PEAK_MARGIN = 0.005
_ROUNDING = 1e-6


def summarise_runs(
    runs: pd.DataFrame,
    history: pd.DataFrame,
    batch_peak: NDArray[np.float64],
    peak_by_batch: bool,
) -> pd.DataFrame:
    """Add to a table of runs what their record says about each as a whole.

    Args:
        runs: One row per run: `run_id`, `status` and anything else.
        history: Rows of these runs in order of their steps; every run has at least one.
        batch_peak: (runs,) largest loss on any batch.
        peak_by_batch: Whether batch losses compare with measured ones, as they do where a batch is
            all of the data; only then do they tell the phase.

    Returns:
        The table with the losses, accuracies, times, top NTK eigenvalues and phases.
    """
    by_run = history.groupby("run_id", sort=False)
    # Not first() and last(), which pass over NaN.
    first, last = (by_run.nth(i).set_index("run_id") for i in (0, -1))
    ids = runs["run_id"]
    table = runs.copy()
    table["initial_train_loss"] = first.loc[ids, "train_loss"].to_numpy()
    losses = history.assign(train_loss=history["train_loss"].fillna(np.inf))
    measured_peak = losses.groupby("run_id")["train_loss"].max().loc[ids].to_numpy()
    table["peak_train_loss"] = np.fmax(measured_peak, batch_peak)
    table["final_train_loss"] = last.loc[ids, "train_loss"].to_numpy()
    table["final_train_accuracy"] = last.loc[ids, "train_accuracy"].to_numpy()
    table["final_test_accuracy"] = last.loc[ids, "test_accuracy"].to_numpy()
    table["max_test_accuracy"] = by_run["test_accuracy"].max().loc[ids].to_numpy()
    table["time_to_peak"] = time_to_peak(history).reindex(ids).to_numpy()
    measured = "ntk_top_eigenvalue" in history
    for name, rows in (("initial", first), ("final", last)):
        eigenvalue = rows.loc[ids, "ntk_top_eigenvalue"].to_numpy() if measured else np.nan
        table[f"{name}_ntk_top_eigenvalue"] = eigenvalue
    table["phase"] = pd.array(
        classify_phase(
            table["status"],
            table["initial_train_loss"],
            table["peak_train_loss"] if peak_by_batch else measured_peak,
            table["final_train_loss"],
            table["initial_ntk_top_eigenvalue"],
            table["final_ntk_top_eigenvalue"],
        ),
        dtype="string",
    )
    return table


def time_to_peak(history: pd.DataFrame) -> "pd.Series[float]":
    """First measured step at which the test accuracy is within 0.005 of its maximum.

    Args:
        history: Rows of any number of runs with `run_id`, `step`, `test_accuracy`.

    Returns:
        Steps by run_id; runs without a test accuracy are left out.

    Reference:
        L2 paper, section 2; catalogue item 1.5 for the absolute margin.
    """
    best = history.groupby("run_id")["test_accuracy"].transform("max")
    # Accuracies are multiples of 1/samples, often the margin apart: rounding must not decide.
    near = history[history["test_accuracy"] >= best - PEAK_MARGIN - _ROUNDING]
    return near.groupby("run_id")["step"].min().astype(float)
