"""What figures and claims of the L2 paper read from the tables of an experiment."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sgdphases.errors import InputError
from sgdphases.prediction import find_peak
from sgdphases.tables import ExperimentTables
from sgdphases.theory.wide_network import mode_solution

# A run whose best accuracy is below this part of the grid's best has not learned.
_LEARNED = 0.5
# Weight decays whose accuracy is this close to the best count as good (L2 paper, figure 4b).
_BAR = 0.001 + 1e-9


def with_peaks(tables: ExperimentTables) -> pd.DataFrame:
    """The runs of a grid with the times of their best test accuracy.

    Args:
        tables: Tables of a training experiment on a classification dataset.

    Returns:
        The runs with further columns: `learned`, whether the run stayed finite and reached half of
        the best accuracy of the grid; `peak_step` and `peak_epochs`, null where the run has not
        learned or its accuracy is still highest at its last measurement; `best_step`, the first
        step of the highest accuracy itself, null where `peak_step` is.
    """
    runs = tables.runs.copy()
    runs["learned"] = (runs["status"] != "diverged") & (
        runs["max_test_accuracy"] >= _LEARNED * runs["max_test_accuracy"].max()
    )
    by_run = dict(iter(tables.history.groupby("run_id")))
    steps = []
    for run_id, learned in zip(runs["run_id"], runs["learned"], strict=True):
        try:
            steps.append(float(find_peak(by_run[run_id]).step) if learned else np.nan)
        except InputError:
            steps.append(np.nan)
    runs["peak_step"] = steps
    runs["peak_epochs"] = runs["peak_step"] / runs["steps_per_epoch"]
    ordered = tables.history.dropna(subset="test_accuracy").sort_values("step", kind="stable")
    best = ordered.loc[ordered.groupby("run_id")["test_accuracy"].idxmax()].set_index("run_id")
    runs["best_step"] = best["step"].reindex(runs["run_id"]).to_numpy(float)
    runs["best_step"] = runs["best_step"].where(runs["peak_step"].notna())
    return runs


def accuracy_within(tables: ExperimentTables, steps: float) -> "pd.Series[float]":
    """The best test accuracy of each run within so many steps.

    Args:
        tables: Tables of a training experiment.
        steps: Budget; a run that ended before counts with all of its measurements.

    Returns:
        Accuracies by run_id.
    """
    within = tables.history[tables.history["step"] <= steps]
    return within.groupby("run_id")["test_accuracy"].max()


def first_reached(tables: ExperimentTables, train_accuracy: float) -> pd.DataFrame:
    """The first measurement at which each run reached a training accuracy.

    Args:
        tables: Tables of a training experiment.
        train_accuracy: The accuracy.

    Returns:
        By run_id: `step` and `test_accuracy`; runs that never reached it are left out.
    """
    reached = tables.history[tables.history["train_accuracy"] >= train_accuracy]
    return reached.sort_values("step").groupby("run_id")[["step", "test_accuracy"]].first()


def tuned_and_predicted(tables: ExperimentTables) -> pd.DataFrame:
    """For each budget, the tuned weight decay and the accuracies at it and at the predicted one.

    Args:
        tables: Tables of an experiment with runs of given weight decays, and runs of multiples of
            the predicted one with a budget each.

    Returns:
        One row per factor and budget: `factor`, `budget_epochs`, `predicted_weight_decay` (times
        the factor), `predicted_accuracy`, `tuned_weight_decay`, `tuned_accuracy`, `low`, `high`
        (the weight decays whose accuracy is within 0.001 of the tuned one).

    Raises:
        ValueError: There are no tuned or no predicted runs.
    """
    # Runs that diverged count too, with what they reached before: the prediction may not lose one.
    runs = tables.runs
    tuned, predicted = tuned_runs(runs), runs[runs["relative_weight_decay"].notna()]
    if tuned.empty or predicted.empty:
        raise ValueError("the grid lacks runs at tuned or at predicted weight decays")
    rows = []
    ordered = predicted.sort_values(["relative_weight_decay", "budget_epochs"])
    for run in ordered.to_dict("records"):
        steps = run["budget_epochs"] * run["steps_per_epoch"]
        accuracy = accuracy_within(tables, steps).reindex(tuned["run_id"]).to_numpy()
        decays = tuned["weight_decay"].to_numpy()
        near = decays[accuracy >= accuracy.max() - _BAR]
        rows.append(
            {
                "factor": run["relative_weight_decay"],
                "budget_epochs": run["budget_epochs"],
                "predicted_weight_decay": run["weight_decay"],
                "predicted_accuracy": run["max_test_accuracy"],
                "tuned_weight_decay": decays[accuracy.argmax()],
                "tuned_accuracy": accuracy.max(),
                "low": near.min(),
                "high": near.max(),
            }
        )
    return pd.DataFrame(rows)


def tuned_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of given weight decays and the experiment's whole training time, by weight decay."""
    own = runs["relative_weight_decay"].isna() & runs["budget_epochs"].isna()
    return runs[own].sort_values("weight_decay")


def split_schedule(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Runs of a fixed training time, of a time proportional to 1/λ, and at the predicted λ.

    Args:
        runs: Runs with `weight_decay`, `budget_epochs`, `weight_scale`, `relative_weight_decay`.

    Returns:
        The three parts; a run may belong to the first two.

    Raises:
        ValueError: The grid lacks runs of a fixed or of a proportional time.
    """
    own = runs[runs["relative_weight_decay"].isna()]
    predicted = runs[runs["relative_weight_decay"].notna()]
    product = (own["budget_epochs"] * own["weight_decay"]).round(9)
    counts = product.value_counts()
    proportional = own[product == (counts.idxmax() if len(counts) else np.nan)]
    rest = own[~own["run_id"].isin(proportional["run_id"]) & own["budget_epochs"].notna()]
    if proportional["weight_decay"].nunique() < 2 or rest.empty:
        raise ValueError("the grid lacks runs of a fixed time or of a time proportional to 1/λ")
    is_fixed = (own["budget_epochs"] == rest["budget_epochs"].iloc[0]) & (
        own["weight_scale"] == rest["weight_scale"].iloc[0]
    )
    return own[is_fixed], proportional, predicted


def best_constant(runs: pd.DataFrame) -> float:
    """The constant weight decay of the best test accuracy, averaged over seeds."""
    constant = runs[(runs["weight_decay_rule"] == "constant") & (runs["status"] != "diverged")]
    accuracy = constant.groupby("weight_decay")["max_test_accuracy"].mean()
    return float(accuracy.index[int(accuracy.argmax())])


def decay_times(history: pd.DataFrame) -> pd.DataFrame:
    """The measurements at which AutoL2's weight decay is first seen to have fallen.

    Args:
        history: Rows of one AutoL2 run in the order of their steps.

    Returns:
        The rows.
    """
    falls = history["weight_decay"].diff() < 0
    return history[falls]


def kernel_losses(
    tables: ExperimentTables, run_id: str, times: ArrayLike, homogeneity_degree: int
) -> NDArray[np.float64]:
    """The training loss that the kernel of a run at its first step predicts.

    Args:
        tables: Tables with the measurement `kernel_modes`.
        run_id: The run whose kernel is taken.
        times: (times,) physical times.
        homogeneity_degree: Degree k; 1 keeps the kernel fixed.

    Returns:
        (times,) summed squared errors, halved.
    """
    history = tables.history[tables.history["run_id"] == run_id].sort_values("step")
    start = history.dropna(subset="kernel_mode_eigenvalues").iloc[0]
    eigenvalues, targets, outputs = (
        np.asarray(start[f"kernel_mode_{name}"], dtype=float)
        for name in ("eigenvalues", "targets", "outputs")
    )
    (decay,) = tables.runs.loc[tables.runs["run_id"] == run_id, "weight_decay"]
    modes = mode_solution(
        np.asarray(times, dtype=float)[:, None],
        np.maximum(eigenvalues, 0.0),
        decay,
        homogeneity_degree,
        targets,
        outputs,
    )
    return np.asarray(np.sum((modes - targets) ** 2, axis=1) / 2)
