r"""Linearised networks under softmax cross-entropy: a constant kernel, block-diagonal in classes.

With logits z, kernel Θ between samples, one-hot targets Y and inverse temperature β, descent with
momentum m on the summed cross-entropy of softmax(βz) and on ½ λ_θ ‖θ − θ₀‖² moves logits by

.. math:: v \leftarrow m v + \beta\,\Theta\,[Y - \sigma(\beta z)] - \lambda_\theta (z - z_0),
    \qquad z \leftarrow z + \eta v

In rescaled logits Z = βz without λ_θ, only the effective learning rate ηβ² is left of β and η.

Reference: temperature paper, eqs. 3, 5 and appendix A; catalogue items 1.8 and 36.
"""

import numpy as np
from scipy.special import log_softmax, softmax

from sgdphases.theory.simulation import Columns, Hyperparameters, Program, State, Vector

# Sizes of what follows: R runs, M samples, K classes.


def softmax_jacobian(scaled_logits: Vector) -> Vector:
    r"""The derivative of the softmax.

    .. math:: \sigma_z = \mathrm{diag}(\sigma) - \sigma \sigma^T

    Args:
        scaled_logits: (..., K) rescaled logits Z.

    Returns:
        (..., K, K) symmetric matrices, whose rows sum to 0.

    Reference:
        Temperature paper, eq. 24.
    """
    probabilities = softmax(scaled_logits, axis=-1)
    diagonal = probabilities[..., None] * np.eye(scaled_logits.shape[-1])
    return np.asarray(diagonal - probabilities[..., :, None] * probabilities[..., None, :])


def small_logit_equilibrium(
    kernel: Vector,
    targets: Vector,
    inverse_temperature: Vector,
    displacement_l2: Vector,
    power: int = 2,
) -> Vector:
    r"""Where descent with L2 on the displacement ends, while rescaled logits are small.

    .. math:: z^* = \frac{\beta}{\lambda_\theta}
        \Big[1 + \frac{\beta^2}{K\lambda_\theta}\Theta\Big]^{-1} \Theta\,(Y - 1/K)

    Args:
        kernel: (R, M, M) kernels Θ.
        targets: (R, M, K) one-hot targets Y.
        inverse_temperature: (R,) β.
        displacement_l2: (R,) λ_θ above 0.
        power: Power of β in the bracket; the paper prints 1.

    Returns:
        (R, M, K) logits z*, of a start at 0.

    Reference:
        Temperature paper, eq. 16, with β² in place of β (catalogue item 36).
    """
    num_samples, num_classes = targets.shape[1:]
    ratio = (inverse_temperature**power / (num_classes * displacement_l2))[:, None, None]
    matrix = np.eye(num_samples) + ratio * kernel
    force = kernel @ (targets - 1 / num_classes)
    scale = (inverse_temperature / displacement_l2)[:, None, None]
    return np.asarray(scale * np.linalg.solve(matrix, force))


def conditioning(kernel: Vector, scaled_logits: Vector) -> Columns:
    r"""How far apart the rates of the linearised dynamics near some logits are.

    The rates are the eigenvalues of (Θ ⊗ 1) σ_z on logits that sum to 0 for each sample.

    Args:
        kernel: (R, M, M) kernels Θ, positive definite.
        scaled_logits: (R, M, K) rescaled logits Z.

    Returns:
        By name, each (R,): `kernel_condition_number` κ(Θ); `jacobian_condition_number`, the largest
        over the smallest eigenvalue of σ_z of any sample, and `dynamics_condition_number` κ(H),
        both without the mode that sums logits; `jacobian_deviation`, the largest distance of
        eigenvalues of σ_z from 0 (once) and 1/K (K − 1 times), which are those at Z = 0.

    Reference:
        Temperature paper, appendix A.3.
    """
    num_samples, num_classes = scaled_logits.shape[1:]
    jacobian = softmax_jacobian(scaled_logits)
    spectrum = np.linalg.eigvalsh(jacobian)
    at_zero = np.array([0.0] + [1 / num_classes] * (num_classes - 1))
    # Orthonormal columns that sum to 0.
    basis = np.linalg.svd(np.ones((1, num_classes)))[2][1:].T
    reduced = basis.T @ jacobian @ basis
    rates = np.linalg.eigvalsh(reduced)
    # (Θ ⊗ 1) σ_z has the spectrum of Lᵀ σ_z L with Θ = L Lᵀ.
    root = np.linalg.cholesky(kernel)
    product = np.einsum("rma,rmij,rmb->raibj", root, reduced, root)
    size = num_samples * (num_classes - 1)
    dynamics = np.linalg.eigvalsh(product.reshape(len(kernel), size, size))
    kernel_spectrum = np.linalg.eigvalsh(kernel)
    return {
        "kernel_condition_number": kernel_spectrum[:, -1] / kernel_spectrum[:, 0],
        "jacobian_condition_number": rates.max(axis=(1, 2)) / rates.min(axis=(1, 2)),
        "dynamics_condition_number": dynamics[:, -1] / dynamics[:, 0],
        "jacobian_deviation": np.abs(spectrum - at_zero).max(axis=(1, 2)),
    }


def _start(hyperparameters: Hyperparameters) -> State:
    """Random positive definite kernels, labels, and normal rescaled logits of a given scale.

    What is drawn depends on the seed alone: runs that differ in β have the same rescaled logits.
    """
    drawn: dict[str, list[Vector]] = {"kernel": [], "targets": [], "scaled_logits": []}
    for seed, samples, classes in zip(
        *(hyperparameters[name] for name in ("seed", "num_samples", "num_classes")), strict=True
    ):
        generator = np.random.default_rng(int(seed))
        features = generator.standard_normal((samples, 2 * samples)) / np.sqrt(2 * samples)
        drawn["kernel"].append(features @ features.T)
        drawn["targets"].append(np.eye(classes)[generator.integers(0, classes, samples)])
        drawn["scaled_logits"].append(generator.standard_normal((samples, classes)))
    arrays = {name: np.stack(values) for name, values in drawn.items()}
    numbers = {
        name: hyperparameters[name].astype(np.float64)
        for name in ("inverse_temperature", "displacement_l2", "momentum")
    }
    scale = hyperparameters["logit_scale"].astype(np.float64)
    scaled_logits = scale[:, None, None] * arrays.pop("scaled_logits")
    logits = scaled_logits / numbers["inverse_temperature"][:, None, None]
    return {
        **arrays,
        **numbers,
        **conditioning(arrays["kernel"], scaled_logits),
        "logits": logits,
        "initial_logits": logits,
        "velocity": np.zeros_like(logits),
        "initial_logit_norm": np.linalg.norm(scaled_logits, axis=(1, 2)),
    }


def _scaled(state: State) -> Vector:
    return np.asarray(state["inverse_temperature"][:, None, None] * state["logits"])


def _force(state: State) -> Vector:
    error = state["targets"] - softmax(_scaled(state), axis=-1)
    pull = state["logits"] - state["initial_logits"]
    inverse_temperature = state["inverse_temperature"][:, None, None]
    return np.asarray(
        inverse_temperature * state["kernel"] @ error
        - state["displacement_l2"][:, None, None] * pull
    )


def _advance(state: State) -> State:
    velocity = state["momentum"][:, None, None] * state["velocity"] + _force(state)
    logits = state["logits"] + state["learning_rate"][:, None, None] * velocity
    return {**state, "velocity": velocity, "logits": logits}


def _loss(state: State) -> Vector:
    return np.asarray(-np.sum(state["targets"] * log_softmax(_scaled(state), axis=-1), axis=(1, 2)))


def _distance(state: State) -> Vector:
    """Size of the force, which is 0 where descent ends, in units of the kernel's at Z = 0."""
    unit = np.linalg.norm(state["kernel"] @ state["targets"], axis=(1, 2))
    force = np.linalg.norm(_force(state), axis=(1, 2))
    return np.asarray(force / (state["inverse_temperature"] * unit))


def _kernel(state: State) -> Vector:
    top = np.linalg.norm(state["kernel"], ord=2, axis=(1, 2))
    return np.asarray(state["inverse_temperature"] ** 2 * top)


def _observe(state: State) -> Columns:
    change = _scaled(state) - (
        state["inverse_temperature"][:, None, None] * state["initial_logits"]
    )
    return {
        "scaled_logit_norm": np.linalg.norm(_scaled(state), axis=(1, 2)),
        "scaled_logit_change": np.linalg.norm(change, axis=(1, 2)),
        "logit_sum_change": np.abs(change.sum(axis=2)).max(axis=1),
    }


_MEASURED_AT_START = (
    "initial_logit_norm",
    "kernel_condition_number",
    "jacobian_condition_number",
    "dynamics_condition_number",
    "jacobian_deviation",
)


def _summarise(state: State) -> Columns:
    columns = {name: state[name] for name in _MEASURED_AT_START}
    found = state["logits"] - state["initial_logits"]
    norm = np.linalg.norm(found, axis=(1, 2))
    pull = state["displacement_l2"]
    for name, power in (("equilibrium_error", 2), ("printed_equilibrium_error", 1)):
        error = np.full(len(pull), np.nan)
        has_pull = pull > 0
        predicted = small_logit_equilibrium(
            state["kernel"][has_pull],
            state["targets"][has_pull],
            state["inverse_temperature"][has_pull],
            pull[has_pull],
            power,
        )
        error[has_pull] = np.linalg.norm(found[has_pull] - predicted, axis=(1, 2)) / norm[has_pull]
        columns[name] = error
    return columns


SOFTMAX_KERNEL = Program(
    hyperparameters=(
        "num_samples",
        "num_classes",
        "inverse_temperature",
        "logit_scale",
        "displacement_l2",
        "momentum",
    ),
    shape=("num_samples", "num_classes"),
    start=_start,
    advance=_advance,
    loss=_loss,
    distance=_distance,
    ntk_top_eigenvalue=_kernel,
    observe=_observe,
    summarise=_summarise,
)
