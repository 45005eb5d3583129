"""Heavy-ball momentum on a quadratic: the warm-up model linearised at its initial weights.

Reference: Lewkowycz et al., The large learning rate phase of deep learning, section C.2.
"""

import numpy as np

from sgdphases.theory.simulation import Columns, Hyperparameters, Program, State, Vector
from sgdphases.theory.warmup import initial_functions


def heavy_ball_step(
    output: Vector,
    velocity: Vector,
    ntk_top_eigenvalue: Vector,
    learning_rate: Vector,
    momentum: Vector,
) -> tuple[Vector, Vector]:
    """One step of gradient descent with momentum on the loss f^2 / 2 of a linear model.

    b' = momentum b + lambda f,   f' = f - eta b'

    Stable for eta lambda < 2 (1 + momentum).

    Args:
        output: (runs,) output f.
        velocity: (runs,) buffer b in function space.
        ntk_top_eigenvalue: (runs,) kernel lambda, constant for a linear model.
        learning_rate: (runs,) learning rate eta.
        momentum: (runs,) in [0, 1).

    Returns:
        Output and buffer after the step, each (runs,).
    """
    velocity = momentum * velocity + ntk_top_eigenvalue * output
    return output - learning_rate * velocity, velocity


def _start(hyperparameters: Hyperparameters) -> State:
    output, kernel = initial_functions(hyperparameters["seed"], hyperparameters["width"])
    return {
        "output": output,
        "velocity": np.zeros_like(output),
        "ntk_top_eigenvalue": kernel,
        "momentum": hyperparameters["momentum"].astype(float),
    }


def _advance(state: State) -> State:
    output, velocity = heavy_ball_step(
        state["output"],
        state["velocity"],
        state["ntk_top_eigenvalue"],
        state["learning_rate"],
        state["momentum"],
    )
    return {**state, "output": output, "velocity": velocity}


def _distance(state: State) -> Vector:
    """At rest only if both the output and the next shift are small."""
    return np.maximum(np.abs(state["output"]), np.abs(state["learning_rate"] * state["velocity"]))


def _loss(state: State) -> Vector:
    return state["output"] ** 2 / 2


def _kernel(state: State) -> Vector:
    return state["ntk_top_eigenvalue"]


def _observe(state: State) -> Columns:
    return {"output": state["output"]}


HEAVY_BALL = Program(
    hyperparameters=("width", "momentum"),
    shape=(),
    start=_start,
    advance=_advance,
    loss=_loss,
    distance=_distance,
    ntk_top_eigenvalue=_kernel,
    observe=_observe,
)
