"""The programs by name, and a grid of their runs as tables."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.errors import InputError
from sgdphases.phases import classify_phase
from sgdphases.portraits import PortraitRules
from sgdphases.schedule import planned_steps
from sgdphases.theory import (
    decay_models,
    heavy_ball,
    linear_model,
    quartic,
    softmax_kernel,
    toy_edges,
    toy_one_parameter,
    toy_two_parameter,
    warmup,
    wide_network,
)
from sgdphases.theory.simulation import Program, select, simulate
from sgdphases.theory.toy_simulation import ToyModel, ToyProgram, simulate_toy

logger = logging.getLogger(__name__)

PROGRAMS: dict[str, Program | ToyModel] = {
    "warmup": warmup.RECURSION,
    "warmup_descent": warmup.DESCENT,
    "warmup_plane": warmup.PLANE,
    "linear_model": linear_model.MODEL,
    "linear_updates": linear_model.UPDATES,
    "heavy_ball": heavy_ball.HEAVY_BALL,
    "quartic": quartic.QUARTIC,
    "softmax_kernel": softmax_kernel.SOFTMAX_KERNEL,
    "toy_one_parameter": toy_one_parameter.ONE_PARAMETER,
    "toy_one_parameter_edge": toy_edges.edge_model(toy_one_parameter.ONE_PARAMETER),
    "toy_two_parameter": toy_two_parameter.TWO_PARAMETER,
    "toy_two_parameter_edge": toy_edges.edge_model(toy_two_parameter.TWO_PARAMETER),
    "toy_two_parameter_updates": toy_two_parameter.UPDATES,
    "wide_mode": wide_network.MODE,
    "wide_spectrum": wide_network.SPECTRUM,
    "deep_linear": decay_models.DEEP_LINEAR,
    "ridge": decay_models.RIDGE,
}

# Numbers held at a time by the weights of one group: 2^24 float64 are 128 MiB.
_GROUP_SIZE = 2**24
_DIVERGENCE_FACTOR = 1.0e6
_LEARNING_RATE_UNITS = ("absolute", "critical")
# Keys of a run that are no hyperparameter columns of their own.
_BOOKKEEPING = ("run_id", "seed", "learning_rate_relative_to")
_RUN_COLUMNS = (
    "relative_learning_rate",
    "status",
    "steps",
    "phase",
    "initial_train_loss",
    "peak_train_loss",
    "final_train_loss",
    "final_train_accuracy",
    "final_test_accuracy",
    "max_test_accuracy",
    "time_to_peak",
    "initial_ntk_top_eigenvalue",
    "final_ntk_top_eigenvalue",
    "peak_step",
    "convergence_step",
)
_HISTORY_COLUMNS = (
    "experiment",
    "run_id",
    "step",
    "physical_time",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "ntk_top_eigenvalue",
)


def run_theory(
    settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate a grid of runs of small systems.

    Args:
        settings: The resolved experiment: `experiment` (its name), `stopping`, `measurements`,
            `divergence_factor` and `portrait` are read.
        runs: One flat mapping per run with `run_id`, `model` (a key of `PROGRAMS`), `seed`,
            `learning_rate`, `learning_rate_relative_to` ("absolute", or "critical" for units of
            2 / initial kernel eigenvalue) and what the program needs.

    Returns:
        The tables of runs and of history, runs in the order given, history by run and step.

    Raises:
        InputError: A run names no known model or lacks what its model needs.
    """
    _check(runs)
    if not runs:
        raise InputError("theory: no run to simulate; allowed: at least one")
    began = time.monotonic()
    summaries: list[pd.DataFrame] = []
    histories: list[pd.DataFrame] = []
    for positions in _groups(runs):
        summary, history = _simulate_group(settings, [runs[i] for i in positions])
        summaries.append(summary.assign(position=positions))
        histories.append(history.assign(position=np.asarray(positions)[history["run"]]))
    measured = pd.concat(summaries, ignore_index=True).sort_values("position", ignore_index=True)
    history = pd.concat(histories, ignore_index=True).sort_values(
        ["position", "step"], ignore_index=True
    )
    experiment = str(settings.get("experiment", ""))
    logger.info("theory %s: %d runs in %.1f s", experiment, len(runs), time.monotonic() - began)
    run_ids = pd.Series([run["run_id"] for run in runs], dtype="string")
    history = history.assign(
        experiment=pd.array([experiment] * len(history), dtype="string"),
        run_id=run_ids.to_numpy()[history["position"]],
    ).drop(columns=["run", "position"])
    history["run_id"] = history["run_id"].astype("string")
    for name in ("train_accuracy", "test_loss", "test_accuracy"):
        history[name] = np.nan
    extras = [name for name in history.columns if name not in _HISTORY_COLUMNS]
    return (
        _runs_table(experiment, runs, measured.drop(columns="position")),
        history[[*_HISTORY_COLUMNS, *extras]],
    )


def _check(runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError for the first run that cannot be simulated."""
    for run in runs:
        name = run.get("model")
        if name not in PROGRAMS:
            raise InputError(f"theory: model {name!r} is unknown; allowed: {', '.join(PROGRAMS)}")
        needed = ("run_id", "seed", "learning_rate", *PROGRAMS[name].hyperparameters)
        missing = [key for key in needed if run.get(key) is None]
        if missing:
            raise InputError(f"theory: run {run.get('run_id')!r} of {name} lacks {missing[0]}")
        if not run["learning_rate"] > 0:
            raise InputError(
                f"theory: run {run['run_id']!r}: learning_rate {run['learning_rate']!r} is not "
                "allowed; allowed: a number above 0"
            )
        unit = run.get("learning_rate_relative_to", "absolute")
        if unit not in _LEARNING_RATE_UNITS:
            raise InputError(
                f"theory: run {run['run_id']!r}: learning_rate_relative_to {unit!r} is not "
                f"allowed; allowed: {', '.join(_LEARNING_RATE_UNITS)}"
            )


def _groups(runs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Positions of the runs that advance together: one model, one shape, bounded memory."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, run in enumerate(runs):
        shape = [run[key] for key in PROGRAMS[run["model"]].shape]
        groups.setdefault((run["model"], *shape), []).append(position)
    chunks: list[list[int]] = []
    for (_, *shape), positions in groups.items():
        sizes = [value for value in shape if isinstance(value, int)]
        size = max(1, _GROUP_SIZE // max(1, int(np.prod(sizes, dtype=np.int64))))
        chunks += [positions[i : i + size] for i in range(0, len(positions), size)]
    return chunks


def _simulate_group(
    settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate runs of one program and one shape."""
    model = PROGRAMS[runs[0]["model"]]
    names = ("seed", *model.hyperparameters)
    hyperparameters = {name: np.array([run[name] for run in runs]) for name in names}
    program: Program | ToyProgram
    if isinstance(model, ToyModel):
        program = model.program(**{name: runs[0][name] for name in model.shape})
    else:
        program = model
    state = program.start(hyperparameters)
    critical = 2.0 / program.ntk_top_eigenvalue(state)
    given = np.array([run["learning_rate"] for run in runs], dtype=np.float64)
    relative = np.array([run.get("learning_rate_relative_to") == "critical" for run in runs])
    state["learning_rate"] = np.where(relative, given * critical, given)
    stopping = settings["stopping"]
    last_steps = np.array([planned_steps(stopping, rate) for rate in state["learning_rate"]])
    if "num_steps" in hyperparameters:
        last_steps = np.minimum(last_steps, hyperparameters["num_steps"])
    divergence_factor = settings.get("divergence_factor", _DIVERGENCE_FACTOR)
    found = {}
    if "edge" in hyperparameters and isinstance(program, ToyProgram):
        # The runs of the tables are those at the edges; the rates given are where searches begin.
        edges = toy_edges.search(
            program,
            state,
            hyperparameters["edge"],
            last_steps,
            divergence_factor,
            PortraitRules.of(settings),
        )
        state["learning_rate"] = edges.before
        found["rate_beyond"] = edges.beyond
        relative[:] = False
        given = edges.before
    arguments = (
        select(state, np.arange(len(runs))),
        last_steps,
        settings.get("measurements", {}),
        divergence_factor,
        stopping.get("converged_output"),
    )
    if isinstance(program, ToyProgram):
        results, history = simulate_toy(program, *arguments)
    else:
        results, history = simulate(program, *arguments)
    results |= found
    results["learning_rate"] = state["learning_rate"]
    # The ratio itself where it was given, lest rounding move a run across a threshold.
    results["relative_learning_rate"] = np.where(relative, given, given / critical)
    return pd.DataFrame(results), pd.DataFrame(history)


def _runs_table(
    experiment: str, runs: Sequence[Mapping[str, Any]], measured: pd.DataFrame
) -> pd.DataFrame:
    """Put hyperparameters and measured columns of all runs in their order and types."""
    names = list(dict.fromkeys(key for run in runs for key in run if key not in _BOOKKEEPING))
    table: dict[str, Any] = {
        "experiment": pd.array([experiment] * len(runs), dtype="string"),
        "run_id": pd.array([run["run_id"] for run in runs], dtype="string"),
        "seed": pd.array([int(run["seed"]) for run in runs], dtype="Int64"),
    }
    for name in names:
        table[name] = _typed([run.get(name) for run in runs])
    stopped = (measured["status"] == "stopped").to_numpy()
    steps = measured["steps"].astype("Int64")
    phases = classify_phase(
        measured["status"],
        measured["initial_train_loss"],
        measured["peak_train_loss"],
        measured["final_train_loss"],
        measured["initial_ntk_top_eigenvalue"],
        measured["final_ntk_top_eigenvalue"],
    )
    table |= {
        **{name: measured[name].to_numpy() for name in measured.columns},
        "status": measured["status"].astype("string"),
        "steps": steps,
        "peak_step": measured["peak_step"].astype("Int64"),
        "convergence_step": steps.where(stopped),
        "phase": pd.array(phases, dtype="string"),
        "time_to_peak": np.full(len(runs), np.nan),
    }
    for name in ("final_train_accuracy", "final_test_accuracy", "max_test_accuracy"):
        table[name] = np.full(len(runs), np.nan)
    extras = [name for name in table if name not in ("experiment", "run_id", "seed", *names)]
    extras = [name for name in extras if name not in _RUN_COLUMNS]
    ordered = ["experiment", "run_id", "seed", *names, *_RUN_COLUMNS, *extras]
    return pd.DataFrame({name: table[name] for name in ordered})


def _typed(values: list[Any]) -> pd.Series | NDArray[np.float64]:
    """A hyperparameter's column in the narrowest type that holds all its values."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present) and present:
        return pd.Series(values, dtype="boolean")
    if all(isinstance(value, int) for value in present) and present:
        return pd.Series(values, dtype="Int64")
    if all(isinstance(value, (int, float)) for value in present):
        return np.array([np.nan if value is None else value for value in values], dtype=float)
    return pd.Series(values, dtype="string")
