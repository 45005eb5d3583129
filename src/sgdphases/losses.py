"""Losses, in the normalisation of each paper, and accuracy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def mean_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    r"""Squared error, halved and averaged over samples and outputs.

    .. math:: \frac{1}{2k|B|} \sum_{x \in B} \sum_i (f_i(x) - y_i)^2

    Args:
        outputs: (batch, outputs) network outputs f.
        targets: (batch, outputs) one-hot or real targets y.

    Returns:
        The scalar loss.

    Reference:
        Catapult paper, SM A (with k = 1 its eq. 1).
    """
    return 0.5 * jnp.mean(jnp.square(outputs - targets))


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Share of samples whose largest output is the target class; NaN for a single output.

    Args:
        outputs: (batch, outputs).
        targets: (batch, outputs) one-hot.
    """
    if outputs.shape[-1] == 1:
        return jnp.full((), jnp.nan, outputs.dtype)
    hits = jnp.argmax(outputs, axis=-1) == jnp.argmax(targets, axis=-1)
    return jnp.mean(hits.astype(outputs.dtype))


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mean_squared_error": mean_squared_error,
}
