"""The edges of a toy model's portrait: rates at which its runs change their behaviour.

training: the first rate at which the loss falls enough to count as trained.
catapult: the last rate before the loss exceeds its initial value at some step.
convergence: the last rate of the first stretch at which the loss converges.
divergence: the last rate before the loss leaves the finite range.

Reference: richness paper, table 1.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sgdphases.edges import Edges, Rates, find_edges
from sgdphases.portraits import PortraitRules
from sgdphases.theory.simulation import State, select
from sgdphases.theory.toy_simulation import ToyModel, ToyProgram, simulate_toy

EDGES = ("training", "catapult", "convergence", "divergence")
# Two rates per decade, as in the paper; two more rounds bring them to a tenth of a per cent.
DECADES = 24.0
_RATES_PER_DECADE = 2
_ROUNDS = 3
# The initial loss is recomputed each time the output passes its start: rounding is no rise.
_ROUNDING = 1e-9


def search(
    program: ToyProgram,
    state: State,
    edges: NDArray[np.object_],
    last_steps: NDArray[np.int64],
    divergence_factor: float,
    rules: PortraitRules,
) -> Edges:
    """Search the edges of some cases, upwards from the learning rates of their state.

    Args:
        program: The toy model.
        state: State of the cases at step 0; `learning_rate` is where each search begins, which
            covers `DECADES` decades.
        edges: (cases,) names in `EDGES`.
        last_steps: (cases,) steps of each run that is tried, two at least.
        divergence_factor: Multiple of the initial loss above which a run has diverged.
        rules: What counts as trained and as converged.

    Returns:
        The edges.
    """

    def holds(rates: Rates) -> NDArray[np.bool_]:
        cases, count = rates.shape
        rows = np.repeat(np.arange(cases), count)
        behaviour = _behaviour(
            program,
            {**select(state, rows), "learning_rate": rates.ravel()},
            last_steps[rows],
            divergence_factor,
            rules,
        )
        chosen = np.select([edges[rows] == name for name in EDGES], [behaviour[n] for n in EDGES])
        return np.asarray(chosen.reshape(rates.shape), dtype=bool)

    return find_edges(holds, state["learning_rate"], DECADES, _RATES_PER_DECADE, _ROUNDS)


def _behaviour(
    program: ToyProgram,
    state: State,
    last_steps: NDArray[np.int64],
    divergence_factor: float,
    rules: PortraitRules,
) -> dict[str, NDArray[np.bool_]]:
    """What holds of each run at rates below each of the edges."""
    # A run that hops across the minimum is near it at every other step perhaps: the last two count.
    measured = {"steps": np.unique(last_steps - 1).tolist()}
    results, history = simulate_toy(program, state, last_steps, measured, divergence_factor, None)
    initial = results["initial_train_loss"] - program.loss.minimum
    late = np.full(len(last_steps), -np.inf)
    at_end = history["step"] >= last_steps[history["run"]] - 1
    np.maximum.at(late, history["run"][at_end], history["train_loss"][at_end])
    finite = results["status"] != "diverged"
    late = np.where(finite, late, np.inf) - program.loss.minimum
    return {
        "training": ~(finite & rules.has_trained(initial, late)),
        "catapult": results["peak_train_loss"] <= (1 + _ROUNDING) * results["initial_train_loss"],
        "convergence": finite & rules.has_converged(initial, late),
        "divergence": finite,
    }


def edge_model(model: ToyModel) -> ToyModel:
    """The model whose runs are those at the edges of another, with as many steps as they say."""
    return ToyModel(
        hyperparameters=(*model.hyperparameters, "edge", "num_steps"),
        shape=(*model.shape, "num_steps"),
        program=_without_steps(model.program),
    )


def _without_steps(make: Callable[..., ToyProgram]) -> Callable[..., ToyProgram]:
    def make_program(**shape: object) -> ToyProgram:
        return make(**{name: value for name, value in shape.items() if name != "num_steps"})

    return make_program
