"""What is known of the toy models in closed form.

Reference: richness paper, section 4.1 and appendix D; catalogue item 1.10.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgdphases.theory.toy_losses import TOY_LOSSES, output_when_trained

Array = NDArray[np.float64]


def minimiser(richness: ArrayLike, depth: int) -> Array:
    """The weight (1 + gamma)^(1/L) at which the output is 1; equation 5."""
    return np.asarray((1.0 + np.asarray(richness, dtype=float)) ** (1.0 / depth))


def minimal_sharpness(richness: ArrayLike, depth: int, loss: str) -> Array:
    """Second derivative of the loss at its minimum, l''(1) L^2 w_*^(2L-2) / gamma^2; equation 6."""
    tangent = depth * minimiser(richness, depth) ** (depth - 1) / np.asarray(richness, dtype=float)
    return np.asarray(TOY_LOSSES[loss].minimal_curvature * tangent**2)


def largest_stable_rate(richness: ArrayLike, depth: int, loss: str) -> Array:
    """The rate 2 / l''(w_*) above which descent leaves the minimum; equation 7, with prefactors."""
    return np.asarray(2.0 / minimal_sharpness(richness, depth, loss))


def early_weight(rich_time: ArrayLike, depth: int) -> Array:
    r"""The weight while the output is still far from 1, under gradient flow.

    .. math:: w = e^{2\tau} \ (L = 2), \qquad w = (1 - L(L-2)\tau)^{-1/(L-2)} \ (L \ge 3)

    Args:
        rich_time: tau = eta t / gamma, below 1 / (L(L-2)) for L of at least 3.
        depth: Depth L, at least 2.

    Returns:
        Weights of the shape of `rich_time`.

    Reference:
        Richness paper, equation 8, which lacks the factor L-2 and has the exponent's sign wrong.
    """
    time = np.asarray(rich_time, dtype=float)
    if depth == 2:
        return np.asarray(np.exp(2.0 * time))
    return np.asarray((1.0 - depth * (depth - 2) * time) ** (-1.0 / (depth - 2)))


def early_time(weight: ArrayLike, depth: int) -> Array:
    """The time eta t / gamma at which `early_weight` reaches a weight."""
    weight = np.asarray(weight, dtype=float)
    if depth == 2:
        return np.asarray(np.log(weight) / 2.0)
    return np.asarray((1.0 - weight ** -(depth - 2.0)) / (depth * (depth - 2)))


def smallest_training_rate(
    richness: ArrayLike, depth: int, loss: str, num_steps: int, trained_loss: float
) -> Array:
    """The rate at which the loss just falls enough to count as trained, while it is on the plateau.

    Args:
        richness: Richness gamma.
        depth: Depth L.
        loss: A key of `TOY_LOSSES`.
        num_steps: Steps T.
        trained_loss: Multiple of the initial loss, above the smallest, that counts as trained.

    Returns:
        Rates of the shape of `richness`: gamma^2 / T at small, gamma / T at large richness.

    Reference:
        Richness paper, section 4.1.
    """
    richness = np.asarray(richness, dtype=float)
    function = TOY_LOSSES[loss]
    needed = output_when_trained(function, trained_loss)
    time = early_time((1.0 + richness * needed) ** (1.0 / depth), depth)
    return np.asarray(richness * time / (num_steps * function.initial_residual))


def escape_time(richness: ArrayLike, depth: int) -> Array:
    """The time eta t / gamma at which a rich run leaves the plateau.

    1 / (L (L-2)) for L of at least 3, whatever gamma, and ln(gamma) / 4 for L = 2, where the
    output is logistic and passes 1/2 then.

    Args:
        richness: Richness gamma, far above 1.
        depth: Depth L, at least 2.

    Returns:
        Times of the shape of `richness`.

    Reference:
        Richness paper, section 4.1; catalogue item 1.10.
    """
    richness = np.asarray(richness, dtype=float)
    if depth == 2:
        return np.asarray(np.log(richness) / 4.0)
    return np.full_like(richness, 1.0 / (depth * (depth - 2)))


def two_parameter_training_rate(
    richness: ArrayLike, loss: str, num_steps: int, trained_loss: float
) -> Array:
    """The rate at which the loss of the two-parameter model just counts as trained.

    On the plateau u = (cosh tau, sinh tau) with tau = eta t Delta_0 / gamma.

    Args:
        richness: Richness gamma.
        loss: A key of `TOY_LOSSES`.
        num_steps: Steps T.
        trained_loss: Fraction of the initial loss, above the smallest, that counts as trained.

    Returns:
        Rates of the shape of `richness`: gamma^2 / T at small, gamma log(gamma) / T at large
        richness.
    """
    richness = np.asarray(richness, dtype=float)
    function = TOY_LOSSES[loss]
    time = np.arcsinh(richness * output_when_trained(function, trained_loss)) / 2.0
    return np.asarray(richness * time / (num_steps * function.initial_residual))
