"""Other output heads: two of chosen correlation, and one that starts at zero."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq, minimize_scalar

from sgdphases.errors import InputError
from sgdphases.models.network import Network, Parameters


def second_head(
    network: Network,
    parameters: Parameters,
    key: jax.Array,
    correlation: float | jax.Array,
    spread: float | jax.Array | None = None,
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
        spread: √(1 − c²), for a c whose precision does not tell it; None: computed from c.

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
    if spread is None:
        spread = spread_of(correlation)

    def correlated(weights: Any, draw: Any) -> Any:
        return (correlation * weights + spread * draw).astype(weights.dtype)

    fresh = network.init(key)["readout"]
    return {**parameters, "readout": jax.tree.map(correlated, parameters["readout"], fresh)}


def zero_readout(network: Network) -> Network:
    r"""The network with a last layer that starts at zero, and with it outputs that do.

    Its tangent kernel at the start is that of the last layer alone, the conjugate kernel

    .. math:: K(x, x') \propto \phi(x) \cdot \phi(x')

    so a zero readout is no way to centre a lazy network.

    Args:
        network: The network, whose parameters hold the last layer's under the key `readout`.

    Returns:
        The same functions with another initialisation.

    Reference:
        Richness paper, appendix A.2.
    """

    def init(key: jax.Array) -> Parameters:
        parameters = network.init(key)
        return {**parameters, "readout": jax.tree.map(jnp.zeros_like, parameters["readout"])}

    return network._replace(init=init)


def spread_of(correlation: Any) -> Any:
    """√(1 − c²), the weight of the fresh draw in a second head of correlation c."""
    # Both factors are exact near c = ±1, where 1 − c² would cancel.
    return ((1 - correlation) * (1 + correlation)) ** 0.5


def correlation_of_norm(
    own: float, fresh: float, product: float, norm: float
) -> tuple[float, float]:
    r"""The correlation of heads at which the outputs of both have a given norm.

    With a the outputs of the readout, b those of a fresh one, and c = cos φ,

    .. math:: z_c = (1 + c)\,a + \sqrt{1 - c^2}\,b
        = 2\cos\tfrac\varphi2 \left(\cos\tfrac\varphi2\,a + \sin\tfrac\varphi2\,b\right)

    whose norm falls from its largest value, at or near c = 1, to 0 at c = −1.

    Args:
        own: Mean of a² over samples and outputs.
        fresh: Mean of b².
        product: Mean of ab.
        norm: Root mean square of the outputs that is asked for.

    Returns:
        c, and the largest norm that there is: where `norm` exceeds it, c is where it is largest.

    Reference:
        Temperature paper, D.1; catalogue items 1.2 and 39: √(2(1 + c)) times the norm of one head
        where a and b are orthogonal and equally large.
    """

    def norm_at(half: float) -> float:
        cosine, sine = np.cos(half), np.sin(half)
        mixed = cosine**2 * own + sine**2 * fresh + 2 * cosine * sine * product
        return float(2 * cosine * np.sqrt(max(mixed, 0.0)))

    peak = minimize_scalar(
        lambda half: -norm_at(half),
        bounds=(0.0, np.pi / 2),
        method="bounded",
        options={"xatol": 1e-12},
    )
    top = max((0.0, float(peak.x)), key=norm_at)
    largest = norm_at(top)
    if norm >= largest:
        return float(np.cos(2 * top)), largest
    if norm <= norm_at(np.pi / 2):  # 0, but for rounding
        return -1.0, largest
    half = brentq(lambda angle: norm_at(angle) - norm, top, np.pi / 2, xtol=1e-14)
    return float(np.cos(2 * half)), largest
