"""How the learning rate of a run changes with its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgdphases.errors import InputError

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class RateSchedule:
    """A learning-rate schedule; hashable, so that it can be a static argument of a program.

    ==============  ===========================================================================
    kind            factor of the learning rate at step t of T
    ==============  ===========================================================================
    constant        1
    piecewise       product of the factors whose boundary·T, rounded to whole steps, is ≤ t
    warmup_cosine   t/W before W = warmup·T, rounded; then (1 + cos(π (t − W)/(T − W)))/2
    final_rate      1 for the budget; then learning_rate, absolute, for num_steps more steps
    ==============  ===========================================================================

    Attributes:
        kind: One of the above.
        boundaries: Increasing fractions of the run's steps, between 0 and 1.
        factors: What the rate is multiplied by at each boundary; they accumulate, so that three
            factors of 0.2 end at 0.008.
        warmup: Fraction of the run's steps.
        learning_rate: Absolute rate of the steps after the budget.
        num_steps: Number of steps after the budget.

    Reference:
        L2 paper, SM A (piecewise); richness paper, figs. 10 and 12 (warm-up and cosine); catapult
        paper, figs. 5, S2, S5 (final rate); catalogue Part 4.
    """

    kind: str = "constant"
    boundaries: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    warmup: float = 0.0
    learning_rate: float = 0.0
    num_steps: int = 0

    @property
    def extra_steps(self) -> int:
        """Steps that a run takes after its budget; its base steps are all the others."""
        return self.num_steps

    @property
    def mean_factor(self) -> float:
        """Mean of the factor over the budget, as if that were many steps."""
        if self.kind == "warmup_cosine":
            return 0.5
        edges = np.array([0.0, *self.boundaries, 1.0])
        return float(np.diff(edges) @ np.cumprod([1.0, *self.factors]))


# What a schedule of each kind must give beside its kind, and nothing else.
_KEYS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "piecewise": ("boundaries", "factors"),
    "warmup_cosine": ("warmup",),
    "final_rate": ("learning_rate", "num_steps"),
}


def read_rate_schedule(settings: Mapping[str, Any] | None) -> RateSchedule:
    """The schedule that an experiment's `schedule` mapping describes.

    Args:
        settings: `kind` and what that kind needs, see RateSchedule; None for a constant rate.

    Returns:
        The schedule.

    Raises:
        InputError: A kind, key or value that is not allowed.
    """
    given: dict[str, Any] = {"kind": "constant"} if settings is None else dict(settings)
    kind = given.pop("kind", None)
    if kind not in _KEYS:
        raise InputError(f"schedule.kind: {kind!r} is not allowed; allowed: {', '.join(_KEYS)}")
    if set(given) != set(_KEYS[kind]):
        needed = ", ".join(_KEYS[kind]) or "nothing else"
        raise InputError(
            f"schedule: {', '.join(map(str, given)) or 'nothing'} beside kind {kind} is not "
            f"allowed; allowed: {needed}"
        )
    if kind == "piecewise":
        return _read_piecewise(given["boundaries"], given["factors"])
    if kind == "warmup_cosine":
        if not (_is_number(given["warmup"]) and 0 <= given["warmup"] < 1):
            raise _refusal("warmup", given["warmup"], "a fraction from 0 to below 1")
        return RateSchedule(kind, warmup=float(given["warmup"]))
    if kind == "final_rate":
        rate, steps = given["learning_rate"], given["num_steps"]
        if not (_is_number(rate) and 0 < rate < np.inf):
            raise _refusal("learning_rate", rate, "a number above 0")
        if not (_is_number(steps) and steps >= 1 and steps == int(steps)):
            raise _refusal("num_steps", steps, "a whole number from 1")
        return RateSchedule(kind, learning_rate=float(rate), num_steps=int(steps))
    return RateSchedule()


def schedule_of_run(schedule: RateSchedule, run: Mapping[str, Any]) -> RateSchedule:
    """An experiment's schedule with a run's own final rate and steps.

    Args:
        schedule: The schedule; only one with a final rate changes.
        run: The run, with `final_learning_rate` and `final_steps`, None for those of the schedule.

    Returns:
        The run's schedule.
    """
    if schedule.kind != "final_rate":
        return schedule
    rate, steps = run["final_learning_rate"], run["final_steps"]
    return replace(
        schedule,
        learning_rate=schedule.learning_rate if rate is None else rate,
        num_steps=schedule.num_steps if steps is None else steps,
    )


def _read_piecewise(boundaries: Any, factors: Any) -> RateSchedule:
    for name, values in (("boundaries", boundaries), ("factors", factors)):
        if not (isinstance(values, list | tuple) and values and all(map(_is_number, values))):
            raise _refusal(name, values, "a list of numbers")
    edges = np.array([0.0, *boundaries, 1.0])
    if not (np.diff(edges) > 0).all():
        raise _refusal("boundaries", boundaries, "increasing fractions between 0 and 1")
    if not (len(factors) == len(boundaries) and all(0 < factor < np.inf for factor in factors)):
        raise _refusal("factors", factors, "a number above 0 for each of the boundaries")
    return RateSchedule("piecewise", tuple(map(float, boundaries)), tuple(map(float, factors)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refusal(key: str, value: Any, allowed: str) -> InputError:
    return InputError(f"schedule.{key}: {value!r} is not allowed; allowed: {allowed}")


def rate_factor(
    schedule: RateSchedule,
    step: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
    base_steps: jax.typing.ArrayLike,
    learning_rate: jax.typing.ArrayLike,
    final_learning_rate: jax.typing.ArrayLike,
) -> jax.Array:
    """What a run's learning rate is multiplied by at a step; all but the schedule may be traced.

    Args:
        schedule: The schedule.
        step: Scalar, steps taken before this one.
        num_steps: Scalar, steps of the whole run.
        base_steps: Scalar, steps of the budget: `num_steps` without the run's final steps.
        learning_rate: Scalar, the run's absolute learning rate.
        final_learning_rate: Scalar, its rate after the budget, used by kind final_rate alone.

    Returns:
        The scalar factor, in the type of `learning_rate` but at least float32.

    Reference:
        See RateSchedule; agrees with `optax.piecewise_constant_schedule` and
        `optax.warmup_cosine_decay_schedule`.
    """
    # Figures and theory need schedules, and not the seconds that JAX takes to be imported.
    import jax.numpy as jnp

    dtype = jnp.promote_types(jnp.result_type(learning_rate), jnp.float32)
    step, num_steps, base_steps, learning_rate, final_learning_rate = (
        jnp.asarray(value).astype(dtype)
        for value in (step, num_steps, base_steps, learning_rate, final_learning_rate)
    )
    factor = jnp.ones_like(step)
    if schedule.kind == "piecewise":
        for boundary, change in zip(schedule.boundaries, schedule.factors, strict=True):
            factor = jnp.where(step >= jnp.rint(boundary * num_steps), factor * change, factor)
    elif schedule.kind == "warmup_cosine":
        warmup = jnp.rint(schedule.warmup * num_steps)
        decay = jnp.maximum(num_steps - warmup, 1)
        # Past the last step, where only runs that have ended still are, the rate stays at zero.
        progress = jnp.clip((step - warmup) / decay, 0, 1)
        rising = step / jnp.maximum(warmup, 1)
        factor = jnp.where(step < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * progress)))
    elif schedule.kind == "final_rate":
        factor = jnp.where(step < base_steps, factor, final_learning_rate / learning_rate)
    return factor


def physical_time(
    schedule: RateSchedule, steps: ArrayLike, num_steps: int, learning_rate: float
) -> NDArray[np.float64]:
    r"""Sum of the learning rates of a run's first steps, in double precision on the host.

    .. math:: t_\mathrm{phys}(t) = \sum_{s < t} \eta_s

    Args:
        schedule: The schedule.
        steps: Numbers of steps t taken, of any shape.
        num_steps: Steps of the whole run.
        learning_rate: The run's absolute learning rate.

    Returns:
        Physical times in the shape of `steps`.

    Reference:
        Catapult paper, section 3 (t·η at a constant rate); catalogue item 1.5.
    """
    taken = np.asarray(steps, dtype=np.float64)
    if schedule.kind == "piecewise":
        starts = np.rint(np.array(schedule.boundaries) * num_steps)
        levels = np.cumprod([1.0, *schedule.factors])
        # Each change of the rate counts for the steps since its boundary.
        late = np.maximum(taken[..., None] - starts, 0)
        return np.asarray(learning_rate * (taken + late @ np.diff(levels)))
    if schedule.kind == "warmup_cosine":
        warmup = np.rint(schedule.warmup * num_steps)
        rising = np.minimum(taken, warmup)
        falling = np.maximum(taken - warmup, 0)
        # Sum of cos(2 a j) over j < n is sin(n a) cos((n - 1) a) / sin(a).
        angle = np.pi / (2 * max(num_steps - warmup, 1))
        cosines = np.sin(falling * angle) * np.cos((falling - 1) * angle) / np.sin(angle)
        warm = rising * (rising - 1) / (2 * max(warmup, 1))
        return np.asarray(learning_rate * (warm + 0.5 * (falling + cosines)))
    late = np.maximum(taken - (num_steps - schedule.extra_steps), 0)
    if schedule.kind == "constant":
        late = np.zeros_like(taken)
    return np.asarray(learning_rate * (taken - late) + schedule.learning_rate * late)
