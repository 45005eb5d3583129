"""Two output heads of chosen correlation."""

from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.errors import InputError
from sgdphases.models.network import Network, Parameters


def second_head(
    network: Network, parameters: Parameters, key: jax.Array, correlation: float | jax.Array
) -> Parameters:
    r"""Parameters at which the frozen half of a network with two correlated heads stays.

    The combined network is

    .. math:: z_c(x) = W_1 h(x, \theta_1) + W_2 h(x, \theta_2), \qquad
        W_2 = c\,W_1 + \sqrt{1 - c^2}\,G

    with θ₂ = θ₁ at the start and G a fresh draw of the readout. Only the first half is trained,
    so the kernel does not depend on c. The outputs at the start grow as √(1 + c): times √2 those of
    one head at c = 0, exactly zero at c = −1.

    Args:
        network: The network, whose parameters hold the last layer's under the key `readout`.
        parameters: Its parameters at the start, θ₁ and W₁.
        key: Random key of G; another one than that of `parameters`.
        correlation: c in [−1, 1].

    Returns:
        θ₂ and W₂: the parameters with every array of the readout, biases too, replaced.

    Raises:
        InputError: The parameters have no such key.

    Reference:
        Temperature paper, eqs. 71 and 72; catalogue 1.2.
    """
    if not isinstance(parameters, dict) or "readout" not in parameters:
        raise InputError(
            "head_correlation: the model has no last layer under the name readout; "
            "allowed: null for this model"
        )
    # Both factors are exact near c = ±1, where 1 − c² would cancel.
    spread = jnp.sqrt((1 - correlation) * (1 + correlation))

    def correlated(weights: Any, draw: Any) -> Any:
        return (correlation * weights + spread * draw).astype(weights.dtype)

    fresh = network.init(key)["readout"]
    return {**parameters, "readout": jax.tree.map(correlated, parameters["readout"], fresh)}
