r"""Early-time scales of networks trained by softmax cross-entropy.

With rescaled logits Z = βz, one-hot targets Y and the effective learning rate η̃ = ηβ², gradient
flow starts as

.. math:: \dot Z = \hat\Theta\,(Y - \sigma(Z)), \qquad
    \ddot Z = -\hat\Theta\,\dot\sigma + \dot{\hat\Theta}\,(Y - \sigma(Z))

in the time η̃t, where the second term of the latter, Z̈_nl, is what a linearised network lacks.

Reference: temperature paper, sections 2.3 and 2.4; catalogue item 1.8.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sgdphases.losses import kernel_scale
from sgdphases.models import Parameters

Logits = Callable[[Parameters], jax.Array]


class EarlyMotion(NamedTuple):
    """How rescaled logits set off, in the time η̃t.

    Attributes:
        velocity: (M, K) Ż.
        nonlinear_acceleration: (M, K) Z̈_nl.
    """

    velocity: jax.Array
    nonlinear_acceleration: jax.Array


def kernel_force(logits: Logits, parameters: Parameters, error: jax.Array) -> jax.Array:
    r"""The tangent kernel times an error: a vector–Jacobian and a Jacobian–vector product.

    .. math:: \hat\Theta\,u = J J^T u, \qquad J = \partial z / \partial \theta

    Args:
        logits: From parameters to the (M, K) logits z.
        parameters: Where the kernel is taken.
        error: (M, K) u.

    Returns:
        (M, K) product.
    """
    (direction,) = jax.vjp(logits, parameters)[1](error)
    product: jax.Array = jax.jvp(logits, (parameters,), (direction,))[1]
    return product


def early_motion(
    logits: Logits,
    parameters: Parameters,
    targets: jax.Array,
    inverse_temperature: jax.typing.ArrayLike = 1.0,
) -> EarlyMotion:
    r"""First derivative of the rescaled logits in time, and the nonlinear part of the second.

    .. math:: \dot Z = J v, \qquad v = J^T (Y - \sigma(Z)), \qquad
        \ddot Z_\mathrm{nl} = \frac1\beta\, v \cdot \partial_\theta \big(J J^T\big)\,(Y - \sigma(Z))

    for gradient flow of the summed loss with one learning rate for all parameters. No kernel is
    formed. At kinks (ReLU) derivatives are those beside them.

    Args:
        logits: From parameters to the (M, K) logits z on the training samples.
        parameters: Where the flow is.
        targets: (M, K) one-hot targets Y.
        inverse_temperature: β.

    Returns:
        Both, in the time η̃t.

    Reference:
        Temperature paper, eqs. 5, 8 and 9, with the sum's normalisation.
    """
    error = jax.lax.stop_gradient(
        targets - jax.nn.softmax(inverse_temperature * logits(parameters), axis=-1)
    )
    (direction,) = jax.vjp(logits, parameters)[1](error)
    velocity, change = jax.jvp(
        lambda values: kernel_force(logits, values, error), (parameters,), (direction,)
    )
    return EarlyMotion(velocity, change / inverse_temperature)


def loss_scale(normalisation: str, num_classes: int, num_samples: int) -> float:
    """The factor that a normalisation of the cross-entropy puts before its sum over samples.

    Args:
        normalisation: One of `losses.NORMALISATIONS`.
        num_classes: K.
        num_samples: Samples that the loss is taken over.
    """
    scale = kernel_scale(normalisation, num_classes, num_samples)
    return scale / 2 if normalisation == "per_class" else scale


def time_to_change(scaled_logits: jax.Array, velocity: jax.Array) -> jax.Array:
    r"""The time τ_z in which logits change by as much as they are, in units of η̃.

    .. math:: \tau_z = \|Z\|_F / \|\dot Z\|_F

    Reference:
        Temperature paper, eq. 7.
    """
    time: jax.Array = jnp.linalg.norm(scaled_logits) / jnp.linalg.norm(velocity)
    return time


def time_to_nonlinearity(motion: EarlyMotion) -> jax.Array:
    r"""The time τ_nl in which the kernel's change begins to count, in units of η̃.

    .. math:: \tau_\mathrm{nl} = \|\dot Z\|_F / \|\ddot Z_\mathrm{nl}\|_F \propto \beta

    Reference:
        Temperature paper, section 2.4, where the dots are swapped (catalogue item 31).
    """
    speed, turn = map(jnp.linalg.norm, motion)
    time: jax.Array = speed / turn
    return time
