r"""Infinitely wide networks under gradient flow with L2 regularisation.

For a network homogeneous of degree k in its parameters, with loss Σ ½(f − y)² + ½ λ‖θ‖²,

.. math:: \dot f = -\Theta_t (f - y) - k\lambda f, \qquad \Theta_t = e^{-qt}\,\Theta_0,
    \qquad q = 2(k - 1)\lambda

Eigenvectors of the kernel evolve independently, and each mode has a solution in closed form.

Reference: Lewkowycz and Gur-Ari, On the training dynamics of deep networks with L2 regularization,
section 4; catalogue item 1.7.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp

from sgdphases.theory.simulation import Columns, Hyperparameters, Program, State, Vector

# The integral over the past is cut evenly, for changes of the kernel, and towards the present
# geometrically, as a mode with a large eigenvalue forgets soon.
_EVEN_PANELS = 64
_GRADED_PANELS = 44
_NODES = 8
# Where the programs compare the closed form with an ODE solver.
_CHECKED_TIMES = 60
_ODE_TOLERANCE = 1e-12
_TARGET = 1.0


def _quadrature(even: int, graded: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights on [0, 1]: `even` panels, the first of them cut by halves `graded` times.

    Returns:
        (panels · nodes,) nodes and weights of Gauss and Legendre on each panel.
    """
    edges = np.linspace(0.0, 1.0, even + 1)
    edges = np.concatenate([[0.0], edges[1] * 0.5 ** np.arange(graded, 0, -1), edges[1:]])
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    widths = np.diff(edges)[:, None]
    return (
        (edges[:-1, None] + widths * (nodes + 1) / 2).ravel(),
        (widths * weights / 2).ravel(),
    )


_FINE = _quadrature(_EVEN_PANELS, _GRADED_PANELS)
# Over one step, in which an eigenvalue times the step is at most some units.
_STEP = _quadrature(1, 0)


def _mean_decay(exponent: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 − e^(−x))/x, and 1 at 0."""
    safe = np.where(exponent == 0, 1.0, exponent)
    return np.asarray(np.where(exponent == 0, 1.0, -np.expm1(-safe) / safe))


def mode_solution(
    time: ArrayLike,
    kernel_mode_eigenvalue: ArrayLike,
    weight_decay: ArrayLike,
    homogeneity_degree: ArrayLike,
    target: ArrayLike = _TARGET,
    initial_output: ArrayLike = 0.0,
    quadrature: tuple[NDArray[np.float64], NDArray[np.float64]] = _FINE,
) -> NDArray[np.float64]:
    r"""The output of one mode of a wide network at a time.

    .. math:: f(t) = e^{-k\lambda t + (g_t - g)/q} f(0)
        + y \int_0^t g_s\, e^{-k\lambda(t - s) + (g_t - g_s)/q}\, ds, \qquad g_s = g e^{-qs}

    The paper's equation 3. Kernels enter as differences g_t − g_s in the exponent: the product of
    exponentials that is printed overflows. At k = 1, where q = 0, the kernel stays constant and
    (g_t − g_s)/q becomes −g(t − s).

    Args:
        time: Time t; all arguments broadcast.
        kernel_mode_eigenvalue: Eigenvalue g of the kernel at time 0.
        weight_decay: L2 coefficient λ.
        homogeneity_degree: Degree k of the network in its parameters; 1 is a linear model.
        target: Projection y of the targets on the mode.
        initial_output: Projection f(0) of the outputs.
        quadrature: Nodes and weights on [0, 1] for the integral, from the present backwards.

    Returns:
        Outputs f(t).

    Reference:
        L2 paper, theorem 2 and equation 3; catalogue item 1.7.
    """
    time, eigenvalue, decay, degree, target, initial = (
        np.asarray(value, dtype=np.float64)
        for value in (
            time,
            kernel_mode_eigenvalue,
            weight_decay,
            homogeneity_degree,
            target,
            initial_output,
        )
    )
    kernel_rate = 2 * (degree - 1) * decay
    start = np.exp(-degree * decay * time - eigenvalue * time * _mean_decay(kernel_rate * time))
    nodes, weights = quadrature
    columns = [
        values[..., None]
        for values in np.broadcast_arrays(time, eigenvalue, decay, degree, kernel_rate)
    ]
    span, eigenvalue, decay, degree, kernel_rate = columns
    past = span * nodes  # t − s
    then = eigenvalue * np.exp(-kernel_rate * (span - past))  # g_s
    exponent = -degree * decay * past - then * past * _mean_decay(kernel_rate * past)
    integral = (then * np.exp(exponent)) @ weights * span[..., 0]
    return np.asarray(start * initial + target * integral)


def kernel_solution(
    times: NDArray[np.float64],
    kernel: NDArray[np.float64],
    targets: NDArray[np.float64],
    initial_outputs: NDArray[np.float64],
    weight_decay: float,
    homogeneity_degree: int,
) -> NDArray[np.float64]:
    r"""The outputs of a wide network on all its training samples.

    .. math:: f(t) = e^{-k\lambda t}\Big\{ e^{(\Theta_t - \Theta_0)/q} f(0)
        + \int_0^t e^{(\Theta_t - \Theta_s)/q - (k-2)\lambda s}\, ds\; \Theta_0\, y \Big\}

    The matrix exponentials share the kernel's eigenvectors, so that each mode is `mode_solution`.

    Args:
        times: (times,) times.
        kernel: (samples, samples) kernel Θ₀, symmetric and positive semi-definite.
        targets: (samples,) targets y.
        initial_outputs: (samples,) outputs f(0).
        weight_decay: L2 coefficient λ.
        homogeneity_degree: Degree k.

    Returns:
        (times, samples) outputs.

    Reference:
        L2 paper, theorem 2; catalogue item 1.7.
    """
    eigenvalues, modes = np.linalg.eigh(kernel)
    outputs = mode_solution(
        times[:, None],
        np.maximum(eigenvalues, 0.0),
        weight_decay,
        homogeneity_degree,
        modes.T @ targets,
        modes.T @ initial_outputs,
    )
    return np.asarray(outputs @ modes.T)


def integrate_mode(
    times: NDArray[np.float64],
    kernel_mode_eigenvalue: float,
    weight_decay: float,
    homogeneity_degree: int,
    target: float = _TARGET,
    initial_output: float = 0.0,
) -> NDArray[np.float64]:
    r"""The same as `mode_solution`, by a general solver of ordinary differential equations.

    .. math:: \dot f = -g e^{-qt} (f - y) - k\lambda f

    Args:
        times: (times,) increasing times.
        kernel_mode_eigenvalue: Eigenvalue g.
        weight_decay: L2 coefficient λ.
        homogeneity_degree: Degree k.
        target: y.
        initial_output: f(0).

    Returns:
        (times,) outputs.

    Reference:
        L2 paper, equation 1, solved by scipy's LSODA.
    """
    rate = 2 * (homogeneity_degree - 1) * weight_decay

    def velocity(time: float, output: NDArray[np.float64]) -> NDArray[np.float64]:
        kernel = kernel_mode_eigenvalue * np.exp(-rate * time)
        return np.asarray(-kernel * (output - target) - homogeneity_degree * weight_decay * output)

    solution = solve_ivp(
        velocity,
        (0.0, float(times[-1])),
        [initial_output],
        method="LSODA",
        t_eval=times,
        rtol=_ODE_TOLERANCE,
        atol=_ODE_TOLERANCE,
    )
    return np.asarray(solution.y[0])


def _start_modes(eigenvalue: Vector, hyperparameters: Hyperparameters) -> State:
    """Modes whose outputs start at zero, where a wide network's are on average."""
    runs = len(eigenvalue)
    per_run = {
        name: hyperparameters[name].astype(np.float64)
        for name in ("weight_decay", "homogeneity_degree")
    }
    return {
        "kernel_mode_eigenvalue": eigenvalue,
        "initial_eigenvalue": eigenvalue,
        "output": np.zeros_like(eigenvalue),
        "time": np.zeros(runs),
        **per_run,
        # The smallest loss so far, and when.
        "least_loss": np.full(runs, np.inf),
        "least_loss_time": np.zeros(runs),
    }


def _start_one(hyperparameters: Hyperparameters) -> State:
    eigenvalue = hyperparameters["kernel_mode_eigenvalue"].astype(np.float64)
    return _start_modes(eigenvalue[:, None], hyperparameters)


def _start_spectrum(hyperparameters: Hyperparameters) -> State:
    (count,) = set(hyperparameters["num_modes"].tolist())
    exponent = hyperparameters["spectrum_exponent"].astype(np.float64)[:, None]
    return _start_modes(np.arange(1.0, count + 1) ** -exponent, hyperparameters)


def _advance(state: State) -> State:
    """Gradient flow for as long as the learning rate says: exact, and not a step of descent."""
    step = state["learning_rate"][:, None]
    decay, degree = state["weight_decay"][:, None], state["homogeneity_degree"][:, None]
    output = mode_solution(
        step,
        state["kernel_mode_eigenvalue"],
        decay,
        degree,
        initial_output=state["output"],
        quadrature=_STEP,
    )
    time = state["time"] + state["learning_rate"]
    # From the start, lest rounding add up.
    kernel = state["initial_eigenvalue"] * np.exp(-2 * (degree - 1) * decay * time[:, None])
    moved = {**state, "output": output, "time": time, "kernel_mode_eigenvalue": kernel}
    loss = _loss(moved)
    is_least = loss < state["least_loss"]
    return {
        **moved,
        "least_loss": np.where(is_least, loss, state["least_loss"]),
        "least_loss_time": np.where(is_least, time, state["least_loss_time"]),
    }


def _loss(state: State) -> Vector:
    return np.asarray(np.sum((state["output"] - _TARGET) ** 2, axis=1) / 2)


def _distance(state: State) -> Vector:
    return np.asarray(np.max(np.abs(state["output"] - _TARGET), axis=1))


def _kernel(state: State) -> Vector:
    return np.asarray(np.max(state["kernel_mode_eigenvalue"], axis=1))


def _observe_one(state: State) -> Columns:
    return {"output": state["output"][:, 0]}


def _summarise_spectrum(state: State) -> Columns:
    return {"least_loss": state["least_loss"], "least_loss_time": state["least_loss_time"]}


def _summarise_one(state: State) -> Columns:
    """How far the closed form, at once and step by step, is from an ODE solver."""
    deviations = []
    for row in range(len(state["time"])):
        end = state["time"][row]
        mode = (
            float(state["initial_eigenvalue"][row, 0]),
            float(state["weight_decay"][row]),
            int(state["homogeneity_degree"][row]),
        )
        times = np.geomspace(end * 1e-6, end, _CHECKED_TIMES)
        integrated = integrate_mode(times, *mode)
        at_once = np.abs(mode_solution(times, *mode) - integrated).max()
        by_steps = np.abs(state["output"][row, 0] - integrated[-1])
        deviations.append(max(at_once, by_steps))
    return {**_summarise_spectrum(state), "ode_deviation": np.array(deviations)}


MODE = Program(
    hyperparameters=("kernel_mode_eigenvalue", "weight_decay", "homogeneity_degree"),
    shape=(),
    start=_start_one,
    advance=_advance,
    loss=_loss,
    distance=_distance,
    ntk_top_eigenvalue=_kernel,
    observe=_observe_one,
    summarise=_summarise_one,
)

SPECTRUM = Program(
    hyperparameters=("num_modes", "spectrum_exponent", "weight_decay", "homogeneity_degree"),
    shape=("num_modes",),
    start=_start_spectrum,
    advance=_advance,
    loss=_loss,
    distance=_distance,
    ntk_top_eigenvalue=_kernel,
    summarise=_summarise_spectrum,
)
