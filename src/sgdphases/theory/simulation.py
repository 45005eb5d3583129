"""Advance many runs of a small system at once and record what they do.

A system is a `Program`: pure functions over a `State`, whose arrays all have the runs as leading
axis. `simulate` steps every run of a group together and drops a run as soon as it ends, so that
neither a diverged nor a converged run costs or warns any further.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdphases.schedule import measurement_steps

Vector = NDArray[np.float64]
# Arrays with the runs as leading axis.
State = dict[str, Vector]
# One value per run for each hyperparameter.
Hyperparameters = Mapping[str, NDArray[Any]]
# One value per run for each quantity that a program measures.
Columns = dict[str, Vector]


def _nothing(state: State) -> Columns:
    """Measure nothing."""
    del state
    return {}


@dataclass(frozen=True)
class Program:
    """A small closed system that gradient descent moves.

    Attributes:
        hyperparameters: Names a run must give besides `learning_rate` and `seed`.
        shape: Those of them on which array shapes depend: runs advance together if they agree.
        start: Hyperparameters of the runs to the state at step 0, without learning rate.
        advance: One step of gradient descent; `state["learning_rate"]` is (runs,).
        loss: State to the (runs,) training loss.
        distance: State to the (runs,) size of the output that training is still to remove.
        ntk_top_eigenvalue: State to the (runs,) top eigenvalue of the neural tangent kernel.
        observe: State to further (runs,) columns of the history.
        summarise: State of a run's last step to further (runs,) columns of the runs table.
    """

    hyperparameters: tuple[str, ...]
    shape: tuple[str, ...]
    start: Callable[[Hyperparameters], State]
    advance: Callable[[State], State]
    loss: Callable[[State], Vector]
    distance: Callable[[State], Vector]
    ntk_top_eigenvalue: Callable[[State], Vector]
    observe: Callable[[State], Columns] = _nothing
    summarise: Callable[[State], Columns] = _nothing


def select(columns: Mapping[str, NDArray[Any]], chosen: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Take rows of every array of a table.

    Args:
        columns: Arrays with a common first axis, by name.
        chosen: Indices or a mask of the rows.

    Returns:
        The rows, by name.
    """
    return {name: values[chosen] for name, values in columns.items()}


def simulate(
    program: Program,
    state: State,
    last_steps: NDArray[np.int64],
    measurements: Mapping[str, Any],
    divergence_factor: float,
    converged_output: float | None,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Advance all runs of a group until each of them ends.

    A run ends as diverged when its loss is not finite or exceeds `divergence_factor` times its
    initial loss, as stopped when `program.distance` falls below `converged_output`, as finished
    after its last step.

    Args:
        program: The system.
        state: State of all runs at step 0, with `learning_rate`.
        last_steps: (runs,) number of steps of each run's budget.
        measurements: Schedule of the history, see `sgdphases.schedule.measurement_steps`; a run's
            last step is measured besides.
        divergence_factor: Multiple of the initial loss above which a run has diverged.
        converged_output: Distance below which a run has converged, None for no such criterion.

    Returns:
        Columns with one row per run, in the order of the state, and columns with one row per run
        and measurement, whose `run` is the row of the run.
    """
    num_runs = len(last_steps)
    recorded_steps = set(measurement_steps(measurements, int(last_steps.max())).tolist())
    results: dict[str, NDArray[Any]] = {
        "status": np.full(num_runs, "finished", dtype=object),
        "steps": np.zeros(num_runs, dtype=np.int64),
        "initial_train_loss": program.loss(state),
        "peak_train_loss": program.loss(state),
        "peak_step": np.zeros(num_runs, dtype=np.int64),
        "final_train_loss": np.full(num_runs, np.nan),
        "initial_ntk_top_eigenvalue": program.ntk_top_eigenvalue(state),
        "final_ntk_top_eigenvalue": np.full(num_runs, np.nan),
    }
    rows = np.arange(num_runs)
    pieces = [_measure(program, state, rows, 0)]
    step = 0
    # A diverging run may overflow in the very step that ends it; its row says so.
    with np.errstate(over="ignore", invalid="ignore"):
        while rows.size:
            step += 1
            state = program.advance(state)
            loss = program.loss(state)
            diverged = ~(loss <= divergence_factor * results["initial_train_loss"][rows])
            rises = loss > results["peak_train_loss"][rows]
            results["peak_train_loss"][rows[rises]] = loss[rises]
            results["peak_step"][rows[rises]] = step
            converged = np.zeros_like(diverged)
            if converged_output is not None:
                converged = ~diverged & (program.distance(state) < converged_output)
            ended = diverged | converged | (step >= last_steps[rows])
            if step in recorded_steps:
                pieces.append(_measure(program, state, rows, step))
            elif ended.any():
                pieces.append(_measure(program, select(state, ended), rows[ended], step))
            if not ended.any():
                continue
            results["status"][rows[diverged]] = "diverged"
            results["status"][rows[converged]] = "stopped"
            results["steps"][rows[ended]] = step
            results["final_train_loss"][rows[ended]] = loss[ended]
            last = select(state, ended)
            results["final_ntk_top_eigenvalue"][rows[ended]] = program.ntk_top_eigenvalue(last)
            for name, values in program.summarise(last).items():
                results.setdefault(name, np.full(num_runs, np.nan))[rows[ended]] = values
            rows, state = rows[~ended], select(state, ~ended)
    history = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return results, history


def _measure(
    program: Program, state: State, rows: NDArray[np.int64], step: int
) -> dict[str, NDArray[Any]]:
    """One piece of history: the runs `rows` at `step`."""
    return {
        "run": rows.copy(),
        "step": np.full(rows.size, step, dtype=np.int64),
        "physical_time": step * state["learning_rate"],
        "train_loss": program.loss(state),
        "ntk_top_eigenvalue": program.ntk_top_eigenvalue(state),
        **program.observe(state),
    }
