"""The full linear model: one hidden layer, d inputs, m samples, general labels.

    f_a = v.(u x_a) / sqrt(n),   loss = |f - y|^2 / (2 m)
    Theta_ab = (|v|^2 x_a.x_b + x_a.u'u x_b) / (n m)

Two programs: the descent in the weights, and the same with the closed updates of error and kernel
carried beside it.

Reference: Lewkowycz et al., The large learning rate phase of deep learning, sections 2.2 and D.1.
The prefactor of the printed S1 reads sqrt(nm); gradient descent on the loss gives sqrt(n) m.
"""

import numpy as np

from sgdphases.theory.simulation import Columns, Hyperparameters, Program, State, Vector


def draw_problem(
    seed: int, width: int, num_samples: int, input_dim: int
) -> tuple[Vector, Vector, Vector, Vector]:
    """Draw weights and data, all independent standard normal.

    Args:
        seed: Seed.
        width: Width n.
        num_samples: Samples m.
        input_dim: Input dimension d.

    Returns:
        First weights u (width, input_dim), second weights v (width,), inputs (num_samples,
        input_dim) and labels (num_samples,).
    """
    generator = np.random.default_rng((seed, width, num_samples, input_dim))
    return (
        generator.standard_normal((width, input_dim)),
        generator.standard_normal(width),
        generator.standard_normal((num_samples, input_dim)),
        generator.standard_normal(num_samples),
    )


def outputs(first: Vector, second: Vector, inputs: Vector) -> Vector:
    """Outputs f_a = v.(u x_a) / sqrt(n).

    Args:
        first: (runs, width, input_dim) weights u.
        second: (runs, width) weights v.
        inputs: (runs, num_samples, input_dim).

    Returns:
        (runs, num_samples).
    """
    effective = np.einsum("rni,rn->ri", first, second) / np.sqrt(second.shape[1])
    return np.asarray(np.einsum("rmi,ri->rm", inputs, effective))


def kernel(first: Vector, second: Vector, inputs: Vector) -> Vector:
    """Neural tangent kernel on the training set, with the 1/m of the loss.

    Args:
        first: (runs, width, input_dim) weights u.
        second: (runs, width) weights v.
        inputs: (runs, num_samples, input_dim).

    Returns:
        (runs, num_samples, num_samples).

    Reference:
        Lewkowycz et al., equation S2.
    """
    gram = np.matmul(first.transpose(0, 2, 1), first)
    squared_norm = np.einsum("rn,rn->r", second, second)
    gram = gram + squared_norm[:, None, None] * np.eye(first.shape[2])
    product = np.matmul(np.matmul(inputs, gram), inputs.transpose(0, 2, 1))
    return np.asarray(product / (first.shape[1] * inputs.shape[1]))


def fisher_matrix(first: Vector, second: Vector, inputs: Vector) -> Vector:
    r"""Fisher (Gauss-Newton) matrix of the loss, from the gradients of the outputs.

    .. math:: F_{pq} = \frac{1}{m} \sum_a \partial_p f_a \partial_q f_a

    Args:
        first: (runs, width, input_dim) weights u.
        second: (runs, width) weights v.
        inputs: (runs, num_samples, input_dim).

    Returns:
        (runs, parameters, parameters), parameters = width * (input_dim + 1).

    Reference:
        Lewkowycz et al., SM A.
    """
    num_runs, num_samples, _ = inputs.shape
    by_first = second[:, None, :, None] * inputs[:, :, None, :]
    by_second = np.matmul(inputs, first.transpose(0, 2, 1))
    gradients = np.concatenate([by_first.reshape(num_runs, num_samples, -1), by_second], axis=2)
    product = np.matmul(gradients.transpose(0, 2, 1), gradients)
    return np.asarray(product / (second.shape[1] * num_samples))


def weight_step(
    first: Vector, second: Vector, inputs: Vector, error: Vector, learning_rate: Vector
) -> tuple[Vector, Vector]:
    """One step of gradient descent in the weights.

    u' = u - (eta / sqrt(n)) v zeta^T,   v' = v - (eta / sqrt(n)) u zeta,   zeta = X^T error / m

    Args:
        first: (runs, width, input_dim) weights u.
        second: (runs, width) weights v.
        inputs: (runs, num_samples, input_dim).
        error: (runs, num_samples), outputs minus labels.
        learning_rate: (runs,).

    Returns:
        Both weights after the step.

    Reference:
        Lewkowycz et al., equation S1 with sqrt(n) m for the printed sqrt(nm).
    """
    direction = mean_direction(inputs, error)
    shift = (learning_rate / np.sqrt(second.shape[1]))[:, None]
    return (
        first - shift[:, :, None] * second[:, :, None] * direction[:, None, :],
        second - shift * np.einsum("rni,ri->rn", first, direction),
    )


def mean_direction(inputs: Vector, error: Vector) -> Vector:
    """The vector zeta = sum_a error_a x_a / m, (runs, input_dim)."""
    return np.asarray(np.einsum("rmi,rm->ri", inputs, error) / inputs.shape[1])


def error_update(
    error: Vector,
    labels: Vector,
    kernel_matrix: Vector,
    inputs: Vector,
    learning_rate: Vector,
    width: int,
) -> Vector:
    """The error after one step of gradient descent, in closed form.

    error' = (1 - eta Theta) error + (eta^2 / (n m)) (X zeta) (f.error)

    Args:
        error: (runs, num_samples), outputs minus labels.
        labels: (runs, num_samples).
        kernel_matrix: (runs, num_samples, num_samples).
        inputs: (runs, num_samples, input_dim).
        learning_rate: (runs,).
        width: Width n.

    Returns:
        (runs, num_samples).

    Reference:
        Lewkowycz et al., equations 9 and S3.
    """
    projected = np.einsum("rmi,ri->rm", inputs, mean_direction(inputs, error))
    overlap = np.einsum("rm,rm->r", error + labels, error)
    rate = learning_rate[:, None]
    quadratic = rate**2 * overlap[:, None] * projected / (width * labels.shape[1])
    return np.asarray(error - rate * np.einsum("rab,rb->ra", kernel_matrix, error) + quadratic)


def kernel_update(
    kernel_matrix: Vector,
    error: Vector,
    labels: Vector,
    inputs: Vector,
    learning_rate: Vector,
    first: Vector,
    second: Vector,
) -> Vector:
    """The kernel after one step of gradient descent, in closed form.

    Args:
        kernel_matrix: (runs, num_samples, num_samples) before the step.
        error: (runs, num_samples), outputs minus labels, before the step.
        labels: (runs, num_samples).
        inputs: (runs, num_samples, input_dim).
        learning_rate: (runs,).
        first: (runs, width, input_dim) weights u before the step, for |u zeta|^2.
        second: (runs, width) weights v before the step, for |v|^2.

    Returns:
        (runs, num_samples, num_samples).

    Reference:
        Lewkowycz et al., equation S4.
    """
    width, num_samples = second.shape[1], labels.shape[1]
    output = error + labels
    direction = mean_direction(inputs, error)
    projected = np.einsum("rmi,ri->rm", inputs, direction)
    gram = np.einsum("rai,rbi->rab", inputs, inputs)
    cross = output[:, :, None] * projected[:, None, :]
    overlap = np.einsum("rm,rm->r", output, error)
    moved = np.einsum("rni,ri->rn", first, direction)
    rate = learning_rate[:, None, None]
    first_order = (
        cross + cross.transpose(0, 2, 1) + 2.0 / num_samples * overlap[:, None, None] * gram
    )
    second_order = (
        np.einsum("rn,rn->r", second, second)[:, None, None]
        * projected[:, :, None]
        * projected[:, None, :]
        + np.einsum("rn,rn->r", moved, moved)[:, None, None] * gram
    )
    return np.asarray(
        kernel_matrix
        - rate / (width * num_samples) * first_order
        + rate**2 / (width**2 * num_samples) * second_order
    )


def projected_kernel_update(
    kernel_matrix: Vector,
    error: Vector,
    labels: Vector,
    inputs: Vector,
    learning_rate: Vector,
    width: int,
) -> Vector:
    """The kernel after one step, projected onto the error before it.

    e.Theta' e = e.Theta e + (eta / n) |zeta|^2 (eta e.Theta e - 4 f.e)

    Args:
        kernel_matrix: (runs, num_samples, num_samples) before the step.
        error: (runs, num_samples) before the step.
        labels: (runs, num_samples).
        inputs: (runs, num_samples, input_dim).
        learning_rate: (runs,).
        width: Width n.

    Returns:
        (runs,).

    Reference:
        Lewkowycz et al., equation S5.
    """
    projection = project(kernel_matrix, error)
    direction = mean_direction(inputs, error)
    overlap = np.einsum("rm,rm->r", error + labels, error)
    squared = np.einsum("ri,ri->r", direction, direction)
    return np.asarray(
        projection + learning_rate / width * squared * (learning_rate * projection - 4.0 * overlap)
    )


def project(kernel_matrix: Vector, error: Vector) -> Vector:
    """The quadratic form error.Theta error, (runs,)."""
    return np.asarray(np.einsum("ra,rab,rb->r", error, kernel_matrix, error))


def top_eigenvalue(matrices: Vector) -> Vector:
    """Largest eigenvalue of each symmetric (runs, size, size) matrix, NaN where not finite."""
    finite = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
    safe = np.where(finite[:, None, None], matrices, 0.0)
    return np.where(finite, np.linalg.eigvalsh(safe)[:, -1], np.nan)


def _start_model(hyperparameters: Hyperparameters) -> State:
    names = ("seed", "width", "num_samples", "input_dim")
    problems = [
        draw_problem(*map(int, values))
        for values in zip(*(hyperparameters[name] for name in names), strict=True)
    ]
    first, second, inputs, labels = (
        np.stack([problem[i] for problem in problems]) for i in range(4)
    )
    return {
        "first": first,
        "second": second,
        "inputs": inputs,
        "labels": labels,
        "error": outputs(first, second, inputs) - labels,
        # Errors outside the span of the inputs are beyond the reach of a linear model.
        "reachable": np.matmul(inputs, np.linalg.pinv(inputs)),
    }


def _advance_model(state: State) -> State:
    first, second = weight_step(
        state["first"],
        state["second"],
        state["inputs"],
        state["error"],
        state["learning_rate"],
    )
    error = outputs(first, second, state["inputs"]) - state["labels"]
    return {**state, "first": first, "second": second, "error": error}


def _mean_half_square(state: State) -> Vector:
    return np.asarray(np.mean(state["error"] ** 2, axis=1) / 2)


def _removable_error(state: State) -> Vector:
    removable = np.einsum("rab,rb->ra", state["reachable"], state["error"])
    return np.asarray(np.abs(removable).max(axis=1))


def _kernel_of(state: State) -> Vector:
    return kernel(state["first"], state["second"], state["inputs"])


def _model_eigenvalue(state: State) -> Vector:
    return top_eigenvalue(_kernel_of(state))


MODEL = Program(
    hyperparameters=("width", "num_samples", "input_dim"),
    shape=("width", "num_samples", "input_dim"),
    start=_start_model,
    advance=_advance_model,
    loss=_mean_half_square,
    distance=_removable_error,
    ntk_top_eigenvalue=_model_eigenvalue,
)


def _start_updates(hyperparameters: Hyperparameters) -> State:
    state = _start_model(hyperparameters)
    zeros = np.zeros(len(state["error"]))
    return {
        **state,
        "initial_error_norm": np.linalg.norm(state["error"], axis=1),
        "closed_error": state["error"],
        "closed_kernel": _kernel_of(state),
        "error_deviation": zeros,
        "kernel_deviation": zeros,
        "projected_kernel_deviation": zeros,
    }


def _advance_updates(state: State) -> State:
    width = state["second"].shape[1]
    labels, inputs, rate = state["labels"], state["inputs"], state["learning_rate"]
    closed_error = error_update(
        state["closed_error"], labels, state["closed_kernel"], inputs, rate, width
    )
    closed_kernel = kernel_update(
        state["closed_kernel"],
        state["closed_error"],
        labels,
        inputs,
        rate,
        state["first"],
        state["second"],
    )
    closed_projection = projected_kernel_update(
        _kernel_of(state), state["error"], labels, inputs, rate, width
    )
    moved = _advance_model(state)
    kernel_after = _kernel_of(moved)
    projection_after = project(kernel_after, state["error"])
    error_scale = np.maximum(np.linalg.norm(moved["error"], axis=1), state["initial_error_norm"])
    deviations = {
        "error_deviation": np.linalg.norm(closed_error - moved["error"], axis=1) / error_scale,
        "kernel_deviation": np.linalg.norm(closed_kernel - kernel_after, axis=(1, 2))
        / np.linalg.norm(kernel_after, axis=(1, 2)),
        "projected_kernel_deviation": np.abs(closed_projection - projection_after)
        / (np.linalg.norm(kernel_after, axis=(1, 2)) * np.sum(state["error"] ** 2, axis=1)),
    }
    return {
        **moved,
        "closed_error": closed_error,
        "closed_kernel": closed_kernel,
        **{name: np.maximum(state[name], values) for name, values in deviations.items()},
    }


def _summarise_updates(state: State) -> Columns:
    names = ("error_deviation", "kernel_deviation", "projected_kernel_deviation")
    columns = {name: state[name] for name in names}
    kernel_spectrum = np.linalg.eigvalsh(_kernel_of(state))
    fisher = fisher_matrix(state["first"], state["second"], state["inputs"])
    fisher_spectrum = np.linalg.eigvalsh(fisher)
    # The kernel's eigenvalues come last; before them all are zero.
    expected = np.zeros_like(fisher_spectrum)
    expected[:, -kernel_spectrum.shape[1] :] = kernel_spectrum
    distance = np.abs(fisher_spectrum - expected).max(axis=1)
    return {**columns, "fisher_deviation": distance / kernel_spectrum[:, -1]}


UPDATES = Program(
    hyperparameters=MODEL.hyperparameters,
    shape=MODEL.shape,
    start=_start_updates,
    advance=_advance_updates,
    loss=_mean_half_square,
    distance=_removable_error,
    ntk_top_eigenvalue=_model_eigenvalue,
    summarise=_summarise_updates,
)
