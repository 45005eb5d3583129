r"""The tangent kernel of infinitely wide fully connected networks, in closed form.

In NTK parametrisation, with pre-activations h of covariance Σ and the tangent kernel Θ between
samples, one layer after the other,

.. math:: \Sigma' = \sigma_w^2\, \mathrm E[\phi(h)\phi(h')] + \sigma_b^2, \qquad
    \Theta' = \Sigma' + \sigma_w^2\, \mathrm E[\dot\phi(h)\dot\phi(h')]\,\Theta

from Σ = Θ = σ_w² x·x'/d + σ_b². The kernel between outputs i and j is δ_ij Θ.

Reference: temperature paper, figure 7 and appendix C; Jacot et al. 2018; Lee et al. 2019; Cho and
Saul 2009 (ReLU) and Williams 1997 (Erf) for the expectations.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.errors import InputError

# From variances a (rows) and b (columns) and covariances c to E[φφ'] and E[φ̇φ̇'].
_Moments = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def _relu(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    spread = jnp.sqrt(a * b)
    cosine = jnp.clip(c / spread, -1.0, 1.0)
    # sin of the angle: 1 − cos² would cancel.
    sine = jnp.sqrt((1 - cosine) * (1 + cosine))
    angle = jnp.arctan2(sine, cosine)
    rest = (math.pi - angle) / (2 * math.pi)
    return spread * (sine / (2 * math.pi) + rest * cosine), rest


def _erf(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    spread = (1 + 2 * a) * (1 + 2 * b)
    product = 2 / math.pi * jnp.arcsin(2 * c / jnp.sqrt(spread))
    return product, 4 / math.pi / jnp.sqrt(spread - 4 * c**2)


_MOMENTS: dict[str, _Moments] = {"relu": _relu, "erf": _erf}


def infinite_width_kernel(hyperparameters: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
    """The tangent kernel between samples of an infinitely wide network.

    Args:
        hyperparameters: `depth` (weight matrices), `activation`, `weight_scale`, `bias_scale`,
            `parametrisation`, of a fully connected network.
        inputs: (M, ...) inputs, none of them 0.

    Returns:
        (M, M) kernel Θ, the same for each output, without any factor of the loss.

    Raises:
        InputError: There is no closed form for the network.
    """
    activation, parametrisation = hyperparameters["activation"], hyperparameters["parametrisation"]
    if activation not in _MOMENTS or parametrisation != "ntk":
        raise InputError(
            "measurements.timescales.infinite_width: no closed form for activation "
            f"{activation!r} in parametrisation {parametrisation!r}; allowed: "
            f"{', '.join(_MOMENTS)} in parametrisation ntk"
        )
    weight_variance = hyperparameters["weight_scale"] ** 2
    bias_variance = (hyperparameters["bias_scale"] or 0.0) ** 2
    flat = inputs.reshape(len(inputs), -1)
    covariance: jax.Array = weight_variance * flat @ flat.T / flat.shape[1] + bias_variance
    kernel = covariance
    for _ in range(hyperparameters["depth"] - 1):
        variance = jnp.diag(covariance)
        product, slope = _MOMENTS[activation](variance[:, None], variance[None, :], covariance)
        covariance = weight_variance * product + bias_variance
        kernel = covariance + weight_variance * slope * kernel
    return kernel
