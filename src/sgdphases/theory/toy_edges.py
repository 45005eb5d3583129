"""The edges of a toy model's portrait: rates at which its runs change their behaviour.

Reference: richness paper, table 1.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sgdphases.edges import Edges, Rates, find_edges
from sgdphases.portraits import EDGES_FROM_ZERO, PortraitRules, is_below_edge
from sgdphases.theory.simulation import State, select
from sgdphases.theory.toy_simulation import ToyModel, ToyProgram, simulate_toy

# Two rates per decade, as in the paper; two more rounds bring them to a tenth of a per cent.
DECADES = 24.0
_RATES_PER_DECADE = 2
_ROUNDS = 3


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
        edges: (cases,) names in `sgdphases.portraits.EDGES`.
        last_steps: (cases,) steps of each run that is tried, two at least.
        divergence_factor: Multiple of the initial loss above which a run has diverged.
        rules: What counts as trained and as converged.

    Returns:
        The edges.
    """

    def holds(rates: Rates) -> NDArray[np.bool_]:
        cases, count = rates.shape
        rows = np.repeat(np.arange(cases), count)
        steps = last_steps[rows]
        # A run that hops across the minimum may be near it at every other step: the last two count.
        measured = {"steps": np.unique(last_steps - 1).tolist()}
        results, history = simulate_toy(
            program,
            {**select(state, rows), "learning_rate": rates.ravel()},
            steps,
            measured,
            divergence_factor,
            None,
        )
        late = np.full(rows.size, -np.inf)
        is_late = history["step"] >= steps[history["run"]] - 1
        np.maximum.at(late, history["run"][is_late], history["train_loss"][is_late])
        below = is_below_edge(
            rules,
            edges[rows],
            results["status"],
            results["initial_train_loss"],
            results["peak_train_loss"],
            late,
            program.loss.minimum,
        )
        return below.reshape(rates.shape)

    return find_edges(
        holds,
        state["learning_rate"],
        DECADES,
        _RATES_PER_DECADE,
        _ROUNDS,
        holds_below=np.isin(edges, EDGES_FROM_ZERO),
    )


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
