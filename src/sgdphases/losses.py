"""Losses, in the normalisation of each paper, and accuracy."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from sgdphases.errors import InputError

LOSS_NAMES = ("mean_squared_error", "cross_entropy")
NORMALISATIONS = ("per_class", "per_sample", "sum")

_DESCRIPTIONS = {
    ("mean_squared_error", "per_class"): "mean squared error: sum of squares / (2k|B|)",
    ("mean_squared_error", "per_sample"): "mean squared error: sum of squares / (2|B|)",
    ("mean_squared_error", "sum"): "mean squared error: sum of squares / 2",
    ("cross_entropy", "per_class"): "cross-entropy: mean NLL / (2k)",
    ("cross_entropy", "per_sample"): "cross-entropy: mean NLL",
    ("cross_entropy", "sum"): "cross-entropy: sum of NLL",
}


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


@dataclass(frozen=True)
class LossFunction:
    r"""A loss in one normalisation; hashable, so that it can be a static argument of a program.

    With k outputs, batch B, targets y (one-hot, mixed or real) and inverse temperature β:

    ==============  ===========================  ==================================
    normalisation   mean_squared_error           cross_entropy
    ==============  ===========================  ==================================
    per_class       Σ (f − y)² / (2k|B|)         −Σ y log softmax(β f) / (2k|B|)
    per_sample      Σ (f − y)² / (2|B|)          −Σ y log softmax(β f) / |B|
    sum             Σ (f − y)² / 2               −Σ y log softmax(β f)
    ==============  ===========================  ==================================

    The loss is computed in float32 or better, whatever the type of the outputs. The L2 regulariser
    is not part of it.

    Attributes:
        name: One of LOSS_NAMES.
        normalisation: One of NORMALISATIONS.
        label_shift: Added to every target; −0.01 takes 0.01 from each.

    Raises:
        InputError: A name or normalisation that does not exist.

    Reference:
        Catapult paper, SM A (MSE per class); L2 paper, SM A (cross-entropy per class; the printed
        minus sign is missing); temperature paper, eq. 1; richness paper, eq. 10; catalogue items
        1.1.1–1.1.7, and Part 3 for the shifted labels.
    """

    name: str
    normalisation: str = "per_class"
    label_shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        if self.name not in LOSS_NAMES:
            raise InputError(
                f"loss: {self.name!r} is not allowed; allowed: {', '.join(LOSS_NAMES)}"
            )
        _check_normalisation(self.normalisation)

    def __call__(
        self,
        outputs: jax.Array,
        targets: jax.Array,
        inverse_temperature: jax.typing.ArrayLike = 1.0,
    ) -> jax.Array:
        """The loss of a batch.

        Args:
            outputs: (batch, outputs) network outputs.
            targets: (batch, outputs) targets; for cross-entropy at least two.
            inverse_temperature: Multiplies the outputs inside the softmax; a traced value is
                allowed. Squared errors are not affected by it: a configuration that asks for one
                other than 1 with them is refused before it comes here.

        Returns:
            The scalar loss.

        Raises:
            InputError: Cross-entropy of a single output, which is the same whatever the output.
        """
        num_samples, num_outputs = outputs.shape
        dtype = jnp.promote_types(outputs.dtype, jnp.float32)
        outputs = outputs.astype(dtype)
        targets = targets.astype(dtype) + self.label_shift
        if self.name == "mean_squared_error":
            total = 0.5 * jnp.sum(jnp.square(outputs - targets))
            per_class = num_outputs
        else:
            if num_outputs == 1:
                raise InputError(
                    "loss: cross_entropy is not allowed with 1 output; allowed: mean_squared_error"
                )
            logits = jnp.asarray(inverse_temperature, dtype) * outputs
            total = jnp.sum(optax.softmax_cross_entropy(logits, targets))
            per_class = 2 * num_outputs
        divisor = {"per_class": per_class * num_samples, "per_sample": num_samples, "sum": 1}
        return total / divisor[self.normalisation]


def kernel_scale(normalisation: str, num_outputs: int, num_samples: int) -> float:
    """The factor of the tangent kernel at which 2/λ₀ is the critical learning rate.

    Args:
        normalisation: One of NORMALISATIONS.
        num_outputs: k.
        num_samples: |B|, the samples that the kernel is taken over.

    Returns:
        1/(k|B|) for per_class, 1/|B| for per_sample, 1 for sum: the curvature of the squared error
        with respect to each output.

    Raises:
        InputError: A normalisation that does not exist.

    Reference:
        Catapult paper, section 2 and SM A; catalogue item 1.3.
    """
    _check_normalisation(normalisation)
    scales = {"per_class": 1 / (num_outputs * num_samples), "per_sample": 1 / num_samples}
    return scales.get(normalisation, 1.0)


def describe(loss: LossFunction, num_outputs: int) -> str:
    """One readable line on the loss and the normalisation in force, for logs.

    Args:
        loss: The loss.
        num_outputs: k.
    """
    line = _DESCRIPTIONS[loss.name, loss.normalisation]
    if loss.normalisation == "per_class":
        line += f", k = {num_outputs}"
    if loss.label_shift:
        line += f"; {loss.label_shift:+g} on every target"
    return line


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Share of samples that are classified as their target says.

    With several outputs the largest decides. A single output is compared by its sign where all
    targets of the batch are exactly +1 or −1; with other targets, those of a regression, the
    accuracy is NaN. An output of 0 has no sign and is wrong.

    Args:
        outputs: (batch, outputs).
        targets: (batch, outputs) one-hot, mixed, ±1 or real; without any label shift.

    Returns:
        The scalar accuracy.
    """
    dtype = jnp.promote_types(outputs.dtype, jnp.float32)
    if outputs.shape[-1] == 1:
        hits = jnp.sign(outputs) == targets
        share = jnp.mean(hits.astype(dtype))
        return jnp.where(jnp.all(jnp.abs(targets) == 1), share, jnp.nan)
    hits = jnp.argmax(outputs, axis=-1) == jnp.argmax(targets, axis=-1)
    return jnp.mean(hits.astype(dtype))


def _check_normalisation(normalisation: str) -> None:
    if normalisation not in NORMALISATIONS:
        raise InputError(
            f"loss_normalisation: {normalisation!r} is not allowed; "
            f"allowed: {', '.join(NORMALISATIONS)}"
        )
