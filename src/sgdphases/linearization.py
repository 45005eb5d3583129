"""Networks linearised in their parameters."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sgdphases.models import Parameters

Apply = Callable[[Parameters, jax.Array], jax.Array]


class OutputDistance(NamedTuple):
    """Distance between two sets of outputs.

    Attributes:
        root_mean_square: Root of the mean square over samples and outputs.
        frobenius: Root of the sum of squares over samples and outputs.
    """

    root_mean_square: jax.Array
    frobenius: jax.Array


def linearized_apply(apply: Apply) -> Callable[[Parameters, Parameters, jax.Array], jax.Array]:
    r"""The network linearised in its parameters, as a function of the point it is linearised at.

    .. math:: f_\mathrm{lin}(x, \theta) = f(x, \theta_0)
        + \sum_p \partial_p f(x, \theta_0)\,(\theta_p - \theta_{0,p})

    It costs about two evaluations of the network and can be trained like one: the base and the
    parameters may both be traced values, and gradients with respect to the parameters are
    J(θ₀)ᵀ times those with respect to the outputs.

    Args:
        apply: Network function from (parameters, inputs) to outputs.

    Returns:
        Function from (base, parameters, inputs) to outputs.

    Reference:
        Catapult paper, fig. 6; temperature paper, section 2 (Z_lin); catalogue item 1.8.
    """

    def apply_linear(base: Parameters, parameters: Parameters, inputs: jax.Array) -> jax.Array:
        displacement = jax.tree.map(jnp.subtract, parameters, base)
        outputs, change = jax.jvp(lambda p: apply(p, inputs), (base,), (displacement,))
        total: jax.Array = outputs + change
        return total

    return apply_linear


def linearize_network(apply: Apply, base: Parameters) -> Apply:
    """The network linearised at one point.

    Args:
        apply: Network function from (parameters, inputs) to outputs.
        base: Parameters at which it is linearised.

    Returns:
        Function from (parameters, inputs) to outputs, affine in the parameters.
    """
    apply_linear = linearized_apply(apply)
    return lambda parameters, inputs: apply_linear(base, parameters, inputs)


def linearized_distance(outputs: jax.Array, linearized_outputs: jax.Array) -> OutputDistance:
    r"""Distance between the outputs of a network and those of its linearised companion.

    .. math:: \|Z - Z_\mathrm{lin}\|_F \quad\text{and}\quad
        \|Z - Z_\mathrm{lin}\|_F / \sqrt{k|B|}

    An offset that both outputs share drops out; a common factor (1/richness, inverse temperature)
    is the caller's.

    Args:
        outputs: (batch, k) outputs.
        linearized_outputs: (batch, k) outputs of the companion on the same inputs.

    Returns:
        Both norms, as scalars.

    Reference:
        Temperature paper, fig. 3: ‖Z(t) − Z_lin(t)‖/t² gives the non-linear timescale; catalogue
        item 1.8.
    """
    frobenius = jnp.linalg.norm((outputs - linearized_outputs).reshape(-1))
    return OutputDistance(frobenius / math.sqrt(outputs.size), frobenius)
