"""The largest eigenvalues of the Hessian of a loss, without forming the Hessian."""

from collections.abc import Callable

import jax
from jax.flatten_util import ravel_pytree

from sgdphases.curvature import TOLERANCE, largest_eigenvalues
from sgdphases.errors import InputError
from sgdphases.models import Parameters

Loss = Callable[[Parameters], jax.Array]


def hessian_product(loss: Loss, parameters: Parameters) -> Callable[[Parameters], Parameters]:
    r"""Multiplication by the Hessian of a loss.

    .. math:: v \mapsto \frac{\partial}{\partial \epsilon} \nabla L(\theta + \epsilon v)
        \Big|_{\epsilon = 0}

    The Jacobian–vector product of the gradient; what does not depend on the vector is computed
    once. Matrix products are in the full precision of the parameters, whatever JAX's default is at
    the time.

    Args:
        loss: From parameters to a scalar.
        parameters: Pytree at which the Hessian is taken.

    Returns:
        Linear function between pytrees of the structure of the parameters.

    Reference:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    with jax.default_matmul_precision("highest"):
        _, product = jax.linearize(jax.grad(loss), parameters)
    return product


def top_hessian_eigenvalues(
    loss: Loss,
    parameters: Parameters,
    num_eigenvalues: int,
    num_lanczos_steps: int,
    tolerance: float = TOLERANCE,
) -> jax.Array:
    """The largest (algebraic) eigenvalues of the Hessian of a loss, by Lanczos.

    Eigenvalues that are merely close, such as the outliers of a wide network, one per class, are
    told apart when the products suffice: some four per wanted eigenvalue are a start, and more
    should then change nothing. Of an exactly multiple eigenvalue one copy is found at first; the
    others turn up one by one, by rounding, about every ten products, or all together where the
    products exhaust the space that the loss depends on. None is ever made up.

    Args:
        loss: From parameters to a scalar.
        parameters: Pytree at which the Hessian is taken.
        num_eigenvalues: How many.
        num_lanczos_steps: Hessian–vector products; there are never more than parameters. As many
            vectors of the parameters' size are kept in memory.
        tolerance: With a single eigenvalue, the relative residual at which to end before that. For
            several, all products are made.

    Returns:
        (num_eigenvalues,) in descending order; NaN where there are fewer parameters, and all NaN
        for broken parameters.

    Raises:
        InputError: Fewer products than eigenvalues.

    Reference:
        Richness paper, figs. 3 and 33–35; catalogue item 1.3.
    """
    if num_lanczos_steps < num_eigenvalues:
        raise InputError(
            f"num_lanczos_steps: {num_lanczos_steps} is not allowed; "
            f"allowed: at least the number of Hessian eigenvalues, {num_eigenvalues}"
        )
    flat, unravel = ravel_pytree(parameters)
    product = hessian_product(loss, parameters)

    def flat_product(vector: jax.Array) -> jax.Array:
        image: jax.Array = ravel_pytree(product(unravel(vector)))[0]
        return image

    return largest_eigenvalues(
        flat_product, flat.size, flat.dtype, num_eigenvalues, num_lanczos_steps, tolerance
    )
