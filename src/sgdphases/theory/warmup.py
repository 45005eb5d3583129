"""The warm-up model: a linear network with one hidden layer, one sample x = 1 and label y = 0.

    f = v.u / sqrt(n),   loss = f^2 / 2,   lambda = (|u|^2 + |v|^2) / n

Three programs: the exact recursion in (f, lambda); the descent in the weights u, v, which carries
the recursion beside it; and the descent inside the plane in which it can be drawn.

Reference: Lewkowycz et al., The large learning rate phase of deep learning, section 2.1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdphases.theory.simulation import Columns, Hyperparameters, Program, State, Vector


def draw_weights(seed: int, width: int) -> tuple[Vector, Vector]:
    """Draw the initial weights u and v, independent standard normal, each (width,)."""
    first, second = np.random.default_rng((seed, width)).standard_normal((2, width))
    return first, second


def network_output(first: Vector, second: Vector) -> Vector:
    """The output f = v.u / sqrt(n) for weights (..., width)."""
    return np.asarray(np.einsum("...i,...i->...", first, second) / np.sqrt(first.shape[-1]))


def network_ntk(first: Vector, second: Vector) -> Vector:
    """The kernel lambda = (|u|^2 + |v|^2) / n for weights (..., width)."""
    squared_norms = np.einsum("...i,...i->...", first, first) + np.einsum(
        "...i,...i->...", second, second
    )
    return np.asarray(squared_norms / first.shape[-1])


def recursion_step(
    output: Vector, ntk_top_eigenvalue: Vector, learning_rate: Vector, width: Vector
) -> tuple[Vector, Vector]:
    """One step of gradient descent in function space.

    f' = (1 - eta lambda + eta^2 f^2 / n) f,   lambda' = lambda + (eta f^2 / n) (eta lambda - 4)

    Exact at every width: no higher orders are dropped.

    Args:
        output: (runs,) output f.
        ntk_top_eigenvalue: (runs,) kernel lambda.
        learning_rate: (runs,) learning rate eta.
        width: (runs,) width n.

    Returns:
        Output and kernel after the step, each (runs,).

    Reference:
        Lewkowycz et al., equations 6 and 7.
    """
    scaled_rate = learning_rate * ntk_top_eigenvalue
    growth = learning_rate * output**2 / width
    return (
        (1.0 - scaled_rate + learning_rate * growth) * output,
        ntk_top_eigenvalue + growth * (scaled_rate - 4.0),
    )


def weight_step(first: Vector, second: Vector, learning_rate: Vector) -> tuple[Vector, Vector]:
    """One step of gradient descent in the weights.

    u' = u - eta f v / sqrt(n),   v' = v - eta f u / sqrt(n)

    Args:
        first: (runs, width) weights u.
        second: (runs, width) weights v.
        learning_rate: (runs,) learning rate eta.

    Returns:
        Both weights after the step.

    Reference:
        Lewkowycz et al., equation 4.
    """
    shift = learning_rate * network_output(first, second) / np.sqrt(first.shape[-1])
    return first - shift[:, None] * second, second - shift[:, None] * first


def plane_step(
    dim1: Vector, dim2: Vector, learning_rate: Vector, width: Vector
) -> tuple[Vector, Vector]:
    """One step of gradient descent inside the plane u = d1 r + d2 s, v = d1 r - d2 s.

    d1' = d1 (1 - eta f / sqrt(n)),   d2' = d2 (1 + eta f / sqrt(n)),   f = (d1^2 - d2^2) / sqrt(n)

    Args:
        dim1: (runs,) coordinate along r, the part that u and v share.
        dim2: (runs,) coordinate along s, the part in which they are opposed.
        learning_rate: (runs,) learning rate eta.
        width: (runs,) width n.

    Returns:
        Both coordinates after the step.

    Reference:
        Lewkowycz et al., caption of figure S1.
    """
    shift = learning_rate * (dim1**2 - dim2**2) / width
    return dim1 * (1.0 - shift), dim2 * (1.0 + shift)


def orthogonal_part(weights: Vector, other: Vector) -> Vector:
    """Norm of the component of some weights orthogonal to others.

    Args:
        weights: (runs, width) weights.
        other: (runs, width) weights that the component is orthogonal to.

    Returns:
        (runs,) norms.

    Reference:
        Catapult paper, section 5.2.
    """
    overlap = np.einsum("ri,ri->r", weights, other) / np.einsum("ri,ri->r", other, other)
    return np.asarray(np.linalg.norm(weights - overlap[:, None] * other, axis=1))


def weight_correlation(first: Vector, second: Vector) -> Vector:
    """Cosine of the angle between two layers' weights.

    Args:
        first: (runs, width) weights u.
        second: (runs, width) weights v.

    Returns:
        (runs,) cosines.

    Reference:
        Catapult paper, figure S1e.
    """
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray(np.einsum("ri,ri->r", first, second) / norms)


def initial_functions(seeds: NDArray[Any], widths: NDArray[Any]) -> tuple[Vector, Vector]:
    """Output and kernel at initialisation, from weights drawn as the paper draws them.

    Args:
        seeds: (runs,) seeds.
        widths: (runs,) widths n.

    Returns:
        (runs,) outputs f and (runs,) kernels lambda.

    Reference:
        Catapult paper, eqs 3 and 5 with x = 1.
    """
    pairs, positions = np.unique(np.stack([seeds, widths]), axis=1, return_inverse=True)
    values = []
    for seed, width in pairs.T:
        first, second = draw_weights(int(seed), int(width))
        values.append((network_output(first, second), network_ntk(first, second)))
    outputs, kernels = np.array(values).T
    return outputs[positions.ravel()], kernels[positions.ravel()]


def _half_square(state: State) -> Vector:
    return state["output"] ** 2 / 2


def _absolute_output(state: State) -> Vector:
    return np.abs(state["output"])


def _kernel(state: State) -> Vector:
    return state["ntk_top_eigenvalue"]


def _output_column(state: State) -> Columns:
    return {"output": state["output"]}


# The recursion.


def _start_recursion(hyperparameters: Hyperparameters) -> State:
    output, kernel = initial_functions(hyperparameters["seed"], hyperparameters["width"])
    return {
        "output": output,
        "ntk_top_eigenvalue": kernel,
        "width": hyperparameters["width"].astype(float),
    }


def _advance_recursion(state: State) -> State:
    output, kernel = recursion_step(
        state["output"], state["ntk_top_eigenvalue"], state["learning_rate"], state["width"]
    )
    return {**state, "output": output, "ntk_top_eigenvalue": kernel}


RECURSION = Program(
    hyperparameters=("width",),
    shape=(),
    start=_start_recursion,
    advance=_advance_recursion,
    loss=_half_square,
    distance=_absolute_output,
    ntk_top_eigenvalue=_kernel,
    observe=_output_column,
)


# The descent in the weights, with the recursion carried beside it.


def _with_functions(state: State) -> State:
    return {
        **state,
        "output": network_output(state["first"], state["second"]),
        "ntk_top_eigenvalue": network_ntk(state["first"], state["second"]),
    }


def _start_descent(hyperparameters: Hyperparameters) -> State:
    weights = [
        draw_weights(int(seed), int(width))
        for seed, width in zip(hyperparameters["seed"], hyperparameters["width"], strict=True)
    ]
    first, second = np.stack(weights, axis=1)
    state = _with_functions({"first": first, "second": second})
    return {
        **state,
        "width": hyperparameters["width"].astype(float),
        "initial_output": state["output"],
        "initial_ntk": state["ntk_top_eigenvalue"],
        "recursion_output": state["output"],
        "recursion_ntk": state["ntk_top_eigenvalue"],
        "recursion_deviation": np.zeros_like(state["output"]),
        "step_deviation": np.zeros_like(state["output"]),
    }


def _advance_descent(state: State) -> State:
    rate, width = state["learning_rate"], state["width"]
    first, second = weight_step(state["first"], state["second"], rate)
    carried = recursion_step(state["recursion_output"], state["recursion_ntk"], rate, width)
    restarted = recursion_step(state["output"], state["ntk_top_eigenvalue"], rate, width)
    state = _with_functions({**state, "first": first, "second": second})
    return {
        **state,
        "recursion_output": carried[0],
        "recursion_ntk": carried[1],
        "recursion_deviation": np.maximum(
            state["recursion_deviation"], _relative_deviation(state, *carried)
        ),
        "step_deviation": np.maximum(
            state["step_deviation"], _relative_deviation(state, *restarted)
        ),
    }


def _relative_deviation(state: State, output: Vector, ntk_top_eigenvalue: Vector) -> Vector:
    """How far output and kernel are from those of the weights, the larger of the two."""
    # What has decayed is compared on the scale it started from: it is the small difference of
    # numbers of that size, whose rounding does not shrink with it.
    output_scale = np.maximum(np.abs(state["output"]), np.abs(state["initial_output"]))
    kernel_scale = np.maximum(state["ntk_top_eigenvalue"], state["initial_ntk"])
    return np.maximum(
        np.abs(output - state["output"]) / output_scale,
        np.abs(ntk_top_eigenvalue - state["ntk_top_eigenvalue"]) / kernel_scale,
    )


def _observe_descent(state: State) -> Columns:
    root = np.sqrt(state["width"])
    return {
        "output": state["output"],
        "weight_correlation": weight_correlation(state["first"], state["second"]),
        "first_orthogonal_norm": orthogonal_part(state["first"], state["second"]) / root,
        "second_orthogonal_norm": orthogonal_part(state["second"], state["first"]) / root,
    }


def _summarise_descent(state: State) -> Columns:
    return {
        "recursion_deviation": state["recursion_deviation"],
        "step_deviation": state["step_deviation"],
        **{f"final_{name}": values for name, values in _observe_descent(state).items()},
    }


DESCENT = Program(
    hyperparameters=("width",),
    shape=("width",),
    start=_start_descent,
    advance=_advance_descent,
    loss=_half_square,
    distance=_absolute_output,
    ntk_top_eigenvalue=_kernel,
    observe=_observe_descent,
    summarise=_summarise_descent,
)


# The plane.


def plane_basis(seed: int, width: int) -> tuple[Vector, Vector, float, float]:
    """Orthonormal r, s and coordinates of a start that is near a random initialisation.

    r points along u + v and s along the part of u - v orthogonal to it, for random u and v, so
    that d1 = r.(u+v)/2 and d2 = s.(u-v)/2 give an output and a kernel of the usual size.

    Args:
        seed: Seed of the random weights.
        width: Width n, at least 2.

    Returns:
        r and s, each (width,), then d1 and d2.
    """
    first, second = draw_weights(seed, width)
    shared, opposed = (first + second) / 2, (first - second) / 2
    dim1 = float(np.linalg.norm(shared))
    along = shared / dim1
    across = opposed - (opposed @ along) * along
    dim2 = float(np.linalg.norm(across))
    return along, across / dim2, dim1, dim2


def _start_plane(hyperparameters: Hyperparameters) -> State:
    bases = [
        plane_basis(int(seed), int(width))
        for seed, width in zip(hyperparameters["seed"], hyperparameters["width"], strict=True)
    ]
    along = np.stack([basis[0] for basis in bases])
    across = np.stack([basis[1] for basis in bases])
    dim1, dim2 = (np.array([basis[i] for basis in bases]) for i in (2, 3))
    state = {
        "first": dim1[:, None] * along + dim2[:, None] * across,
        "second": dim1[:, None] * along - dim2[:, None] * across,
        "along": along,
        "across": across,
        "dim1": dim1,
        "dim2": dim2,
        "width": hyperparameters["width"].astype(float),
        "plane_deviation": np.zeros_like(dim1),
    }
    return _with_functions(state)


def _advance_plane(state: State) -> State:
    first, second = weight_step(state["first"], state["second"], state["learning_rate"])
    dim1, dim2 = plane_step(state["dim1"], state["dim2"], state["learning_rate"], state["width"])
    difference = np.maximum(
        np.linalg.norm(
            first - dim1[:, None] * state["along"] - dim2[:, None] * state["across"], axis=1
        ),
        np.linalg.norm(
            second - dim1[:, None] * state["along"] + dim2[:, None] * state["across"], axis=1
        ),
    )
    deviation = difference / np.hypot(dim1, dim2)
    return _with_functions(
        {
            **state,
            "first": first,
            "second": second,
            "dim1": dim1,
            "dim2": dim2,
            "plane_deviation": np.maximum(state["plane_deviation"], deviation),
        }
    )


def _observe_plane(state: State) -> Columns:
    return {
        "output": state["output"],
        "dim1": np.einsum("ri,ri->r", state["first"] + state["second"], state["along"]) / 2,
        "dim2": np.einsum("ri,ri->r", state["first"] - state["second"], state["across"]) / 2,
        "weight_correlation": weight_correlation(state["first"], state["second"]),
    }


def _summarise_plane(state: State) -> Columns:
    return {"plane_deviation": state["plane_deviation"]}


PLANE = Program(
    hyperparameters=("width",),
    shape=("width",),
    start=_start_plane,
    advance=_advance_plane,
    loss=_half_square,
    distance=_absolute_output,
    ntk_top_eigenvalue=_kernel,
    observe=_observe_plane,
    summarise=_summarise_plane,
)
