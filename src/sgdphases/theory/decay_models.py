r"""Small models trained by gradient descent with L2 regularisation.

A deep linear network on one sample, whose output L2 holds below the target or at zero, and
over-parameterised ridge regression, which converges in a time proportional to 1/λ.

Reference: Lewkowycz and Gur-Ari, On the training dynamics of deep networks with L2 regularization,
SM B.1 and the footnote on linear regression; catalogue item 1.7.
"""

import numpy as np

from sgdphases.theory.simulation import Columns, Hyperparameters, Program, State, Vector
from sgdphases.theory.warmup import draw_weights, network_ntk, network_output

_TARGET = 1.0


def decaying_weight_step(
    first: Vector, second: Vector, learning_rate: Vector, weight_decay: Vector
) -> tuple[Vector, Vector]:
    """One step of descent on ½(f − 1)² + ½ λ(‖u‖² + ‖v‖²) with f = v·u/√n.

    u' = u - eta ((f - 1) v / sqrt(n) + lambda u), and the same with u and v exchanged

    Args:
        first: (runs, width) weights u.
        second: (runs, width) weights v.
        learning_rate: (runs,) learning rate η.
        weight_decay: (runs,) L2 coefficient λ.

    Returns:
        Both weights after the step.
    """
    error = network_output(first, second) - _TARGET
    shift = (learning_rate * error / np.sqrt(first.shape[-1]))[:, None]
    kept = (1.0 - learning_rate * weight_decay)[:, None]
    return kept * first - shift * second, kept * second - shift * first


def fixed_point(width: Vector, weight_decay: Vector) -> Vector:
    r"""The output at which a linear network with one hidden layer ends.

    .. math:: f = \max(1 - \lambda \sqrt{n}, 0)

    The sign printed in the paper is wrong.

    Args:
        width: (runs,) width n.
        weight_decay: (runs,) L2 coefficient λ.

    Returns:
        (runs,) outputs.

    Reference:
        L2 paper, SM B.1; catalogue item 1.7.
    """
    return np.maximum(_TARGET - weight_decay * np.sqrt(width), 0.0)


def _start_linear(hyperparameters: Hyperparameters) -> State:
    weights = [
        draw_weights(int(seed), int(width))
        for seed, width in zip(hyperparameters["seed"], hyperparameters["width"], strict=True)
    ]
    return {
        "first": np.stack([first for first, _ in weights]),
        "second": np.stack([second for _, second in weights]),
        "weight_decay": hyperparameters["weight_decay"].astype(np.float64),
    }


def _advance_linear(state: State) -> State:
    first, second = decaying_weight_step(
        state["first"], state["second"], state["learning_rate"], state["weight_decay"]
    )
    return {**state, "first": first, "second": second}


def _output(state: State) -> Vector:
    return network_output(state["first"], state["second"])


def _loss_linear(state: State) -> Vector:
    return (_output(state) - _TARGET) ** 2 / 2


def _distance_linear(state: State) -> Vector:
    width = np.full(len(state["first"]), float(state["first"].shape[1]))
    return np.abs(_output(state) - fixed_point(width, state["weight_decay"]))


def _kernel_linear(state: State) -> Vector:
    return network_ntk(state["first"], state["second"])


def _observe_linear(state: State) -> Columns:
    return {"output": _output(state)}


def _summarise_linear(state: State) -> Columns:
    width = np.full(len(state["first"]), float(state["first"].shape[1]))
    return {
        "final_output": _output(state),
        "predicted_output": fixed_point(width, state["weight_decay"]),
    }


def _start_ridge(hyperparameters: Hyperparameters) -> State:
    """Gaussian inputs and targets; more inputs than samples, so that weights have a null space."""
    state: dict[str, list[Vector]] = {"inputs": [], "targets": [], "weights": [], "solution": []}
    for seed, samples, dim, decay in zip(
        *(hyperparameters[name] for name in ("seed", "num_samples", "input_dim", "weight_decay")),
        strict=True,
    ):
        generator = np.random.default_rng(int(seed))
        inputs = generator.standard_normal((samples, dim)) / np.sqrt(dim)
        targets = generator.standard_normal(samples)
        gram = inputs @ inputs.T + decay * np.eye(samples)
        state["inputs"].append(inputs)
        state["targets"].append(targets)
        state["weights"].append(generator.standard_normal(dim))
        state["solution"].append(inputs.T @ np.linalg.solve(gram, targets))
    arrays = {name: np.stack(values) for name, values in state.items()}
    distance = np.linalg.norm(arrays["weights"] - arrays["solution"], axis=1)
    decay = hyperparameters["weight_decay"].astype(np.float64)
    return {**arrays, "weight_decay": decay, "initial_distance": distance}


def _error(state: State) -> Vector:
    outputs = np.einsum("rsd,rd->rs", state["inputs"], state["weights"])
    return np.asarray(outputs - state["targets"])


def _advance_ridge(state: State) -> State:
    gradient = np.einsum("rsd,rs->rd", state["inputs"], _error(state))
    gradient += state["weight_decay"][:, None] * state["weights"]
    return {**state, "weights": state["weights"] - state["learning_rate"][:, None] * gradient}


def _loss_ridge(state: State) -> Vector:
    return np.asarray(np.sum(_error(state) ** 2, axis=1) / 2)


def _distance_ridge(state: State) -> Vector:
    """Distance of the weights from the solution, in units of the initial one."""
    distance = np.linalg.norm(state["weights"] - state["solution"], axis=1)
    return np.asarray(distance / state["initial_distance"])


def _kernel_ridge(state: State) -> Vector:
    return np.asarray(np.linalg.norm(state["inputs"], ord=2, axis=(1, 2)) ** 2)


DEEP_LINEAR = Program(
    hyperparameters=("width", "weight_decay"),
    shape=("width",),
    start=_start_linear,
    advance=_advance_linear,
    loss=_loss_linear,
    distance=_distance_linear,
    ntk_top_eigenvalue=_kernel_linear,
    observe=_observe_linear,
    summarise=_summarise_linear,
)

RIDGE = Program(
    hyperparameters=("num_samples", "input_dim", "weight_decay"),
    shape=("num_samples", "input_dim"),
    start=_start_ridge,
    advance=_advance_ridge,
    loss=_loss_ridge,
    distance=_distance_ridge,
    ntk_top_eigenvalue=_kernel_ridge,
)
