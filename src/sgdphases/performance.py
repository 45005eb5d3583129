"""The parts of the catapult paper's experiments on convolutional networks, each for some panels.

Reference: Lewkowycz et al., The large learning rate phase of deep learning, figs. 3, 5, S2 to S6,
S9, S11.
"""

from dataclasses import replace

import pandas as pd

from sgdphases.tables import ExperimentTables


def part_of(tables: ExperimentTables, chosen: "pd.Series[bool]") -> ExperimentTables:
    """The tables with some of their runs.

    Args:
        tables: Tables of an experiment.
        chosen: (runs,) truth values.

    Returns:
        The tables with these runs and their history.

    Raises:
        ValueError: No run is chosen.
    """
    runs = tables.runs[chosen]
    if runs.empty:
        raise ValueError("the grid holds no such runs")
    history = tables.history[tables.history["run_id"].isin(runs["run_id"])]
    return replace(tables, runs=runs, history=history)


def early_dynamics(
    tables: ExperimentTables, parametrisation: str = "standard", decayed: bool = False
) -> ExperimentTables:
    """The runs of one panel of early dynamics: in a parametrisation, with L2 or without."""
    is_decayed = tables.runs["weight_decay"] > 0
    is_of_panel = tables.runs["parametrisation"] == parametrisation
    return part_of(tables, is_of_panel & (is_decayed == decayed))


def fixed_steps(tables: ExperimentTables) -> ExperimentTables:
    """The runs with L2 that end after a number of steps."""
    runs = tables.runs
    return part_of(tables, runs["budget_steps"].notna() & (runs["weight_decay"] > 0))


def fixed_time(tables: ExperimentTables, decayed: bool = True) -> ExperimentTables:
    """The runs, with L2 or without, whose budget is a physical time."""
    runs = tables.runs
    has_decay = runs["weight_decay"] > 0
    return part_of(tables, runs["budget_physical_time"].notna() & (has_decay == decayed))


def at_budget(tables: ExperimentTables) -> pd.DataFrame:
    """Runs with what was measured where their budget ended and their final rate began.

    Args:
        tables: Tables of runs with a final phase of `final_steps`.

    Returns:
        The runs with `budget_train_accuracy` and `budget_test_accuracy`; NaN where a run did not
        get so far.
    """
    ends = tables.runs[["run_id", "steps"]].assign(
        step=tables.runs["steps"] - tables.runs["final_steps"].fillna(0)
    )
    ends = ends[tables.runs["status"] != "diverged"][["run_id", "step"]]
    accuracies = tables.history[["run_id", "step", "train_accuracy", "test_accuracy"]]
    names = {f"{split}_accuracy": f"budget_{split}_accuracy" for split in ("train", "test")}
    found = ends.merge(accuracies, on=["run_id", "step"]).rename(columns=names)
    return tables.runs.merge(found.drop(columns="step"), on="run_id", how="left")


def budget_history(tables: ExperimentTables) -> pd.DataFrame:
    """The history of runs up to the end of their budgets.

    Args:
        tables: Tables of runs with a final phase of `final_steps`.

    Returns:
        History with `learning_rate`, `relative_learning_rate` and `steps_per_epoch`.
    """
    columns = ["run_id", "learning_rate", "relative_learning_rate", "steps_per_epoch"]
    runs = tables.runs[columns].assign(
        last=tables.runs["steps"] - tables.runs["final_steps"].fillna(0)
    )
    history = tables.history.merge(runs, on="run_id")
    return history[history["step"] <= history["last"]].drop(columns="last")
