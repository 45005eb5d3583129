"""How far the weights have moved."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from sgdphases.models import Parameters

NORMS = ("frobenius", "nuclear", "spectral")

# Last parts of paths that say no more than that an array is a layer's weight.
_WEIGHT_KEYS = ("weight", "kernel")


def weight_movement_names(parameters: Parameters) -> list[str]:
    """Names of what `weight_movement` returns, in its order.

    Args:
        parameters: Pytree of arrays, or of their shapes.

    Returns:
        "weight_movement_<norm>_<layer>", sorted.
    """
    return sorted(
        f"weight_movement_{norm}_{layer}" for layer, _ in _weights(parameters) for norm in NORMS
    )


def weight_movement(parameters: Parameters, initial: Parameters) -> dict[str, jax.Array]:
    r"""Norms of the change of each weight matrix.

    .. math:: \|\Delta\|_F = \Big(\sum_i \sigma_i^2\Big)^{1/2}, \quad
        \|\Delta\|_* = \sum_i \sigma_i, \quad \|\Delta\|_2 = \max_i \sigma_i,
        \qquad \Delta = W(t) - W(0)

    with the singular values σ. An array of more than two axes, such as the kernel of a convolution,
    counts as the matrix whose columns are its last axis: (window·window·in, out). Arrays of fewer
    than two axes (biases, scales and offsets of normalisations) are no weight matrices and left
    out. A layer is named by its path: `hidden_0` is `parameters["hidden"][0]["weight"]`.

    Args:
        parameters: Pytree of arrays.
        initial: Pytree of the same structure and shapes.

    Returns:
        Scalars by "weight_movement_<norm>_<layer>", sorted by name, as `jax.jit` returns them too.

    Reference:
        Richness paper, fig. 45.
    """
    change = jax.tree.map(jnp.subtract, parameters, initial)
    norms = {}
    for layer, weight in _weights(change):
        singular_values = jnp.linalg.svd(weight.reshape(-1, weight.shape[-1]), compute_uv=False)
        norms[f"weight_movement_frobenius_{layer}"] = jnp.linalg.norm(singular_values)
        norms[f"weight_movement_nuclear_{layer}"] = jnp.sum(singular_values)
        norms[f"weight_movement_spectral_{layer}"] = jnp.max(singular_values)
    return dict(sorted(norms.items()))


def _weights(parameters: Parameters) -> Iterator[tuple[str, jax.Array]]:
    """The weight arrays with the names of their layers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        if len(leaf.shape) < 2:
            continue
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if keys[-1] in _WEIGHT_KEYS and len(keys) > 1:
            keys.pop()
        yield "_".join(keys), leaf
