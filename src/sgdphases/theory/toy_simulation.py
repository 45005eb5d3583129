"""Advance a whole plane of runs of a toy model in one compiled program, in float64.

A `ToyProgram` is a `Program` of which every run has one output and a convex loss of it, and whose
functions are written for arrays of JAX. Runs that have ended stay where they are while the others
go on: whatever overflows is a run that has diverged, and touches no other.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sgdphases.schedule import measurement_steps
from sgdphases.theory.simulation import Hyperparameters, State, select
from sgdphases.theory.toy_losses import ToyLoss, outputs_below

logger = logging.getLogger(__name__)

# Runs advance together in chunks of these sizes, filled up: few sizes mean few compiled programs,
# and so many runs stay in a CPU's cache.
_CHUNK = 2048
_FEW_RUNS = (128, 512)
# After so many steps at most the host looks whether any run is left, and tells how far it is.
_STEPS_TOGETHER = 20000
_SECONDS_BETWEEN_MESSAGES = 10.0

DeviceState = dict[str, jax.Array]


def _nothing(state: DeviceState) -> DeviceState:
    """Measure nothing."""
    del state
    return {}


@dataclass(frozen=True)
class ToyProgram:
    """A toy model that gradient descent, or its sign, moves.

    Attributes:
        start: Hyperparameters of the runs to the state at step 0, without learning rate.
        advance: One step; the state has `learning_rate`, (runs,).
        output: State to the (runs,) centred outputs divided by the richness, 0 at step 0.
        loss: The loss of the output.
        ntk_top_eigenvalue: State to the (runs,) tangent kernel; of arrays of NumPy too.
        observe: State to further (runs,) columns of the history and, named `final_…`, of the runs.
    """

    start: Callable[[Hyperparameters], State]
    advance: Callable[[DeviceState], DeviceState]
    output: Callable[[DeviceState], jax.Array]
    loss: ToyLoss
    ntk_top_eigenvalue: Callable[[Any], Any]
    observe: Callable[[DeviceState], DeviceState] = _nothing


@dataclass(frozen=True)
class ToyModel:
    """The toy programs of one model.

    Attributes:
        hyperparameters: Names a run must give besides `learning_rate` and `seed`.
        shape: Those of them that a program is compiled for: runs advance together if they agree.
        program: From these hyperparameters to the program; equal ones give the same program.
    """

    hyperparameters: tuple[str, ...]
    shape: tuple[str, ...]
    program: Callable[..., ToyProgram]


def simulate_toy(
    program: ToyProgram,
    state: State,
    last_steps: NDArray[np.int64],
    measurements: Mapping[str, Any],
    divergence_factor: float,
    converged_output: float | None,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Advance all runs of a group until each of them ends.

    A run ends as diverged when its loss is not finite or exceeds `divergence_factor` times its
    initial loss, as stopped when its output is nearer to 1, the target, than `converged_output`,
    as finished after its last step.

    Args:
        program: The toy model.
        state: State of all runs at step 0, with `learning_rate`.
        last_steps: (runs,) number of steps of each run's budget.
        measurements: Schedule of the history, see `sgdphases.schedule.measurement_steps`; a run's
            last step is measured besides.
        divergence_factor: Multiple of the initial loss above which a run has diverged.
        converged_output: Distance from the target below which a run has converged, None for no
            such criterion.

    Returns:
        Columns with one row per run, in the order of the state, and columns with one row per run
        and measurement, whose `run` is the row of the run.
    """
    bounds = np.array(outputs_below(program.loss, divergence_factor * program.loss.at_start))
    parts = []
    clock = _Clock()
    with jax.enable_x64(True):
        for rows in _chunks(len(last_steps)):
            filled = np.resize(rows, next(n for n in (*_FEW_RUNS, _CHUNK) if n >= rows.size))
            run = _begin(
                select(state, filled),
                # Runs that only fill up the chunk have ended before they begin.
                np.arange(filled.size) < rows.size,
                last_steps[filled],
                bounds,
                converged_output or 0.0,
            )
            clock.done = int(rows[0])
            results, history = _simulate_chunk(program, run, measurements, clock)
            history["run"] = rows[history["run"]]
            parts.append((results, history))
    results, history = (
        {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        for tables in zip(*parts, strict=True)
    )
    return results, history


def _chunks(num_runs: int) -> list[NDArray[np.int64]]:
    """Rows of the runs that advance together."""
    return [np.arange(start, min(start + _CHUNK, num_runs)) for start in range(0, num_runs, _CHUNK)]


class _Clock:
    """Tells now and then how far a simulation is."""

    def __init__(self) -> None:
        self.done = 0
        self._spoke = time.monotonic()

    def tell(self, step: int, last_step: int, left: int) -> None:
        """Say where the present chunk is, unless that has just been said."""
        if time.monotonic() - self._spoke > _SECONDS_BETWEEN_MESSAGES:
            self._spoke = time.monotonic()
            logger.info("%d runs done, %d at step %d of %d", self.done, left, step, last_step)


def _simulate_chunk(
    program: ToyProgram, run: "_Run", measurements: Mapping[str, Any], clock: _Clock
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Columns of the runs, and of the history, of one chunk."""
    last_step = int(run.last_steps.max())
    measured_steps = set(measurement_steps(measurements, last_step).tolist())
    between = range(_STEPS_TOGETHER, last_step, _STEPS_TOGETHER)
    first = _measure(program, run, np.flatnonzero(run.is_active))
    pieces = [first]
    for step in sorted({*measured_steps, *between, last_step} - {0}):
        was_active = np.asarray(run.is_active)
        if not was_active.any():
            break
        run = _advance(program, run, step)
        is_active = np.asarray(run.is_active)
        shown = was_active if step in measured_steps else was_active & ~is_active
        if shown.any():
            pieces.append(_measure(program, run, np.flatnonzero(shown)))
        clock.tell(step, last_step, int(is_active.sum()))
    history = {name: np.concatenate([piece[name] for piece in pieces]) for name in first}
    return _summarise(program, run, first), history


class _Run(NamedTuple):
    """The runs of a group at some step; arrays are (runs,) but for `step` and the two limits."""

    state: DeviceState
    step: jax.Array
    is_active: jax.Array
    has_diverged: jax.Array
    has_converged: jax.Array
    # Steps taken by each run.
    steps: jax.Array
    last_steps: jax.Array
    # The loss is convex: its peak is at the lowest or at the highest output.
    lowest: jax.Array
    highest: jax.Array
    lowest_step: jax.Array
    highest_step: jax.Array
    # Outputs outside have diverged; outputs nearer to 1 than the tolerance have converged.
    bounds: jax.Array
    tolerance: jax.Array


def _begin(
    state: State,
    is_active: NDArray[np.bool_],
    last_steps: NDArray[np.int64],
    bounds: NDArray[np.float64],
    tolerance: float,
) -> _Run:
    """The runs of a chunk at step 0, where every output is 0."""
    zeros = jnp.asarray(np.zeros(len(last_steps)))
    none = jnp.asarray(np.zeros(len(last_steps), bool))
    count = jnp.asarray(np.zeros(len(last_steps), np.int32))
    return _Run(
        state={name: jnp.asarray(values) for name, values in state.items()},
        step=jnp.asarray(0, jnp.int32),
        is_active=jnp.asarray(is_active),
        has_diverged=none,
        has_converged=none,
        steps=count,
        last_steps=jnp.asarray(last_steps.astype(np.int32)),
        lowest=zeros,
        highest=zeros,
        lowest_step=count,
        highest_step=count,
        bounds=jnp.asarray(bounds),
        tolerance=jnp.asarray(tolerance),
    )


@partial(jax.jit, static_argnums=0)
def _advance(program: ToyProgram, run: _Run, until: int) -> _Run:
    """Advance the runs to the step `until`, or until all have ended."""

    def goes_on(run: _Run) -> jax.Array:
        return (run.step < until) & run.is_active.any()

    def take_step(run: _Run) -> _Run:
        active, step = run.is_active, run.step + 1
        moved = program.advance(run.state)
        output = program.output(moved)
        # Also outside where the output is not a number.
        diverged = active & ~((output >= run.bounds[0]) & (output <= run.bounds[1]))
        converged = active & (jnp.abs(output - 1.0) < run.tolerance)
        sinks = active & (output < run.lowest)
        rises = active & (output > run.highest)
        return run._replace(
            state={
                name: jnp.where(active, moved[name], values) for name, values in run.state.items()
            },
            step=step,
            is_active=active & ~diverged & ~converged & (step < run.last_steps),
            has_diverged=run.has_diverged | diverged,
            has_converged=run.has_converged | converged,
            steps=jnp.where(active, step, run.steps),
            lowest=jnp.where(sinks, output, run.lowest),
            highest=jnp.where(rises, output, run.highest),
            lowest_step=jnp.where(sinks, step, run.lowest_step),
            highest_step=jnp.where(rises, step, run.highest_step),
        )

    return jax.lax.while_loop(goes_on, take_step, run)


@partial(jax.jit, static_argnums=0)
def _columns(program: ToyProgram, run: _Run) -> DeviceState:
    """What a run is and has been, at the step it is at."""
    output = program.output(run.state)
    below, above = (program.loss.value(extreme, jnp) for extreme in (run.lowest, run.highest))
    return {
        "train_loss": program.loss.value(output, jnp),
        "ntk_top_eigenvalue": program.ntk_top_eigenvalue(run.state),
        "output": output,
        **program.observe(run.state),
        "peak_train_loss": jnp.maximum(below, above),
        "peak_step": jnp.where(above > below, run.highest_step, run.lowest_step),
    }


_PEAKS = ("peak_train_loss", "peak_step")


def _summarise(
    program: ToyProgram, run: _Run, first: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Columns of the runs table, once all have ended; `first` is the measurement at step 0."""
    rows = first["run"]
    last = {name: np.asarray(values)[rows] for name, values in _columns(program, run).items()}
    ends = [np.asarray(run.has_diverged)[rows], np.asarray(run.has_converged)[rows]]
    return {
        "status": np.select(ends, ["diverged", "stopped"], "finished").astype(object),
        "steps": np.asarray(run.steps)[rows],
        "initial_train_loss": first["train_loss"],
        "initial_ntk_top_eigenvalue": first["ntk_top_eigenvalue"],
        **{name: last.pop(name) for name in _PEAKS},
        **{f"final_{name}": values for name, values in last.items()},
    }


def _measure(program: ToyProgram, run: _Run, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """One piece of history: the runs `rows`, each at the last step it has taken."""
    columns = {name: np.asarray(values)[rows] for name, values in _columns(program, run).items()}
    steps = np.asarray(run.steps)[rows].astype(np.int64)
    return {
        "run": rows.copy(),
        "step": steps,
        "physical_time": steps * np.asarray(run.state["learning_rate"])[rows],
        **{name: values for name, values in columns.items() if name not in _PEAKS},
    }
