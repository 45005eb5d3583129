r"""Momentum on a quartic: the simplest loss whose gradient changes on the way.

.. math:: \mathcal L = \theta^4/4, \quad \theta_0 = 1, \qquad
    v \leftarrow (1 - \gamma_d) v - \theta^3, \quad \theta \leftarrow \theta + \eta v

For small steps, runs with the same γ_d/√η are one curve in the time √η·t, and without momentum all
runs are one curve in η·t.

Reference: temperature paper, appendix B (γ there is the damping γ_d = 1 − momentum).
"""

import numpy as np

from sgdphases.theory.simulation import Columns, Hyperparameters, Program, State, Vector


def _start(hyperparameters: Hyperparameters) -> State:
    momentum = hyperparameters["momentum"].astype(np.float64)
    return {
        "parameter": np.ones_like(momentum),
        "velocity": np.zeros_like(momentum),
        "momentum": momentum,
    }


def _advance(state: State) -> State:
    velocity = state["momentum"] * state["velocity"] - state["parameter"] ** 3
    parameter = state["parameter"] + state["learning_rate"] * velocity
    return {**state, "velocity": velocity, "parameter": parameter}


def _loss(state: State) -> Vector:
    return state["parameter"] ** 4 / 4


def _distance(state: State) -> Vector:
    """At rest only if both the parameter and the next shift are small."""
    shift = state["learning_rate"] * state["velocity"]
    return np.maximum(np.abs(state["parameter"]), np.abs(shift))


def _curvature(state: State) -> Vector:
    """The second derivative, which is the kernel of a quadratic."""
    return 3 * state["parameter"] ** 2


def _observe(state: State) -> Columns:
    return {"parameter": state["parameter"]}


QUARTIC = Program(
    hyperparameters=("momentum",),
    shape=(),
    start=_start,
    advance=_advance,
    loss=_loss,
    distance=_distance,
    ntk_top_eigenvalue=_curvature,
    observe=_observe,
)
