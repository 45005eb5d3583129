"""Which runs of a table trained, and where training ceases."""

import pandas as pd

RATE = "relative_learning_rate"


def trained(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Whether each run stayed finite and ended below its initial loss.

    Args:
        runs: Rows with `status`, `initial_train_loss`, `final_train_loss`.

    Returns:
        (runs,) truth values.
    """
    return (runs["status"] != "diverged") & (runs["final_train_loss"] < runs["initial_train_loss"])


def trainable_edge(runs: pd.DataFrame) -> tuple[float, float] | None:
    """The learning rates between which training ceases, in units of 2/λ₀.

    Args:
        runs: Rows with `relative_learning_rate` and what `trained` reads.

    Returns:
        The largest rate that trained and the next larger rate of the grid, or None where no rate
        or the largest one of the grid trained.
    """
    largest = runs.loc[trained(runs), RATE].max()
    above = runs.loc[runs[RATE] > largest, RATE]
    return None if above.empty else (float(largest), float(above.min()))
