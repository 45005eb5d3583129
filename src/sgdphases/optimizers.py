"""Optimizers as optax transformations of which every hyperparameter may be a traced value."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sgdphases.errors import InputError

OPTIMIZER_NAMES = ("sgd", "adam", "sign_sgd")
WEIGHT_DECAY_RULES = ("constant", "auto_l2")

# Steps are counted in 32-bit integers; the second number is the largest float32 below that.
_MOST_STEPS = 2**31 - 1
_MOST_STEPS_FLOAT = 2147483520.0


class OptimizerHyperparameters(Protocol):
    """What may differ between the runs of one program: scalars, traced values allowed.

    Any object with these attributes will do, whatever else it has.
    """

    @property
    def learning_rate(self) -> jax.typing.ArrayLike:
        """Absolute learning rate η."""

    @property
    def momentum(self) -> jax.typing.ArrayLike:
        """Coefficient µ of the momentum buffer, for sgd and sign_sgd."""

    @property
    def weight_decay(self) -> jax.typing.ArrayLike:
        """Coefficient λ of the L2 regulariser; with auto_l2, that of the start."""

    @property
    def first_moment_decay(self) -> jax.typing.ArrayLike:
        """Adam's β₁."""

    @property
    def second_moment_decay(self) -> jax.typing.ArrayLike:
        """Adam's β₂."""

    @property
    def epsilon(self) -> jax.typing.ArrayLike:
        """Adam's ε."""


@dataclass(frozen=True)
class OptimizerRule:
    """What the runs of one program share of the optimizer; hashable.

    Attributes:
        name: One of OPTIMIZER_NAMES.
        has_momentum: Whether sgd and sign_sgd keep a momentum buffer at all; adam has its own.
        weight_decay_rule: One of WEIGHT_DECAY_RULES.
        auto_l2_interval: Steps from one measurement of auto_l2 to the next.

    Raises:
        InputError: A name, rule or interval that is not allowed.
    """

    name: str = "sgd"
    has_momentum: bool = False
    weight_decay_rule: str = "constant"
    auto_l2_interval: int = 10

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        _check("optimizer", self.name, OPTIMIZER_NAMES)
        _check("weight_decay_rule", self.weight_decay_rule, WEIGHT_DECAY_RULES)
        if self.auto_l2_interval < 1:
            raise InputError(
                f"auto_l2_interval: {self.auto_l2_interval!r} is not allowed; "
                "allowed: a whole number from 1"
            )


def _check(where: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{where}: {value!r} is not allowed; allowed: {', '.join(allowed)}")


def make_optimizer(
    rule: OptimizerRule,
    hyper: OptimizerHyperparameters,
    scales: optax.Params | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The optimizer of one run.

    .. math:: g = \nabla L + \lambda\theta, \quad
        u = \begin{cases}
            g \text{ or } m \leftarrow \mu m + g & \text{sgd} \\
            \hat m / (\sqrt{\hat v} + \varepsilon) \text{ of } g & \text{adam} \\
            \operatorname{sign}(g) \text{ or } \operatorname{sign}(m) & \text{sign\_sgd}
        \end{cases}, \quad
        \theta \leftarrow \theta - \eta \, \text{factor} \, \text{scale} \, u

    The regulariser λ/2·‖θ‖² is part of the gradient in each of them and acts on all parameters. Its
    coefficient is the number `hyper.weight_decay`, or follows `auto_l2` from there.

    The transformation's `update(gradient, state, parameters, ...)` takes by name what changes from
    step to step: `learning_rate_factor`, that of the schedule (1 without it); `loss` and `error`,
    the empirical loss and 1 − accuracy at the parameters before the update, which only auto_l2
    needs and the others ignore.

    Args:
        rule: What the runs of a program share.
        hyper: Scalars of one run.
        scales: Factors of the learning rate of each array of the parameters, see `rate_scales`;
            None for 1 everywhere.

    Returns:
        The transformation.

    Reference:
        L2 paper, SM A (coupled L2; catalogue item 1.1.4); richness paper, App. F (sign_sgd: the
        sign of the gradient; with momentum that of the buffer, as in Bernstein et al. 2018).
    """
    if rule.weight_decay_rule == "auto_l2":
        decay = auto_l2(hyper.weight_decay, rule.auto_l2_interval)
    else:
        decay = optax.add_decayed_weights(hyper.weight_decay)
    steps: list[optax.GradientTransformation] = [decay]
    if rule.name == "adam":
        steps.append(
            optax.scale_by_adam(hyper.first_moment_decay, hyper.second_moment_decay, hyper.epsilon)
        )
    elif rule.has_momentum:
        steps.append(optax.trace(hyper.momentum))
    if rule.name == "sign_sgd":
        steps.append(optax.scale_by_sign())
    return optax.chain(*steps, _scale_by_rates(hyper.learning_rate, scales))


def _scale_by_rates(
    learning_rate: jax.typing.ArrayLike, scales: optax.Params | None
) -> optax.GradientTransformationExtraArgs:
    """Multiply by minus the learning rate, its factor at this step and each array's scale."""

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        learning_rate_factor: jax.typing.ArrayLike = 1.0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        rate = -jnp.multiply(learning_rate, learning_rate_factor)
        if scales is None:
            return jax.tree.map(lambda u: rate * u, updates), state
        return jax.tree.map(lambda u, scale: (rate * scale) * u, updates, scales), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def rate_scales(
    parameters: optax.Params, parametrisation: str, optimizer: str, width: int
) -> optax.Params | None:
    """Factors of the learning rate of each array of parameters.

    In µP and Depth-µP every array takes the raw rate width·η with sgd. Adam and sign_sgd do not see
    the size of the gradient: there the matrices and convolutions between hidden layers, under the
    key `hidden`, take η/√width, and all else η. In other parametrisations all take η.

    Args:
        parameters: Parameters or their shapes, as `jax.eval_shape` gives them, with the top-level
            keys `input`, `hidden` and `readout`.
        parametrisation: standard, ntk, mup or depth_mup.
        optimizer: One of OPTIMIZER_NAMES.
        width: Width N of the network.

    Returns:
        A pytree of floats in the structure of the parameters; None where all are 1.

    Reference:
        Richness paper, eq. 14 (sgd). For adam and sign_sgd with N(0, 1) entries and the forward
        pass W h/√N: a change of every entry by η/√N moves the layer's output by O(η).
    """
    if parametrisation not in ("mup", "depth_mup"):
        return None
    if optimizer == "sgd":
        return jax.tree.map(lambda _: float(width), parameters)

    def scale(path: tuple[Any, ...], array: Any) -> float:
        is_hidden = [getattr(key, "key", None) for key in path[:1]] == ["hidden"]
        return width**-0.5 if is_hidden and len(array.shape) >= 2 else 1.0

    return jax.tree_util.tree_map_with_path(scale, parameters)


class AutoL2State(NamedTuple):
    """What auto_l2 carries from step to step; all scalars.

    Attributes:
        weight_decay: Coefficient in force.
        step: Updates so far.
        min_step: The coefficient does not fall before this step is over.
        min_loss: Smallest loss recorded, without that of the latest measurement.
        min_error: The same of the error.
        previous_loss: Loss of the latest measurement.
        previous_error: Error of the latest measurement.
    """

    weight_decay: jax.Array
    step: jax.Array
    min_step: jax.Array
    min_loss: jax.Array
    min_error: jax.Array
    previous_loss: jax.Array
    previous_error: jax.Array


def auto_l2(
    initial_weight_decay: jax.typing.ArrayLike = 0.1, interval: int = 10
) -> optax.GradientTransformationExtraArgs:
    """Coupled L2 regularisation whose coefficient falls tenfold whenever training stops improving.

    Every `interval` steps t, the loss and the error are compared with their minima. Where one of
    them exceeds its minimum both at t and at t − interval, and t > min_step, the coefficient is
    divided by 10 and then min_step = t + 0.1/coefficient: it rests 10, 100, 1000, 10⁴ steps after
    it has become 0.01, 0.001, 10⁻⁴, 10⁻⁵. Otherwise the minima take in the values of t − interval.

    To be used in a chain in place of `optax.add_decayed_weights`, before the optimizer proper::

        optimizer = optax.chain(auto_l2(), optax.sgd(0.2, momentum=0.9))
        updates, state = optimizer.update(gradient, state, parameters, loss=loss, error=error)

    where `loss`, without the regulariser, and `error`, the share of wrong answers, are those at
    `parameters`. All decisions are selections, so that runs can be batched by `jax.vmap`.

    What the paper leaves open or contradicts is resolved so:

    1. SM E measures every 5 steps, SM A every 10: `interval`, 10 by default.
    2. The minima start at infinity (a version of the paper says 1); nor does the first measurement,
       at t = 0, have one before it.
    3. The printed text compares the error with itself: it is compared with its minimum.
    4. "Otherwise" belongs to the decision itself: the minima go on falling in the resting time,
       when an increase has no consequence. They are never reset.

    The step t counts the updates taken, and a new coefficient takes effect in the update at t. The
    resting time is rounded down to whole steps, which changes nothing as t is one. An error of NaN,
    where none is defined, never counts as an increase.

    Args:
        initial_weight_decay: Coefficient at the start; a traced value is allowed.
        interval: Steps from one measurement to the next.

    Returns:
        A transformation whose `update` needs the parameters, and `loss` and `error` by name; its
        state is an AutoL2State.

    Reference:
        L2 paper, SM E, algorithm 1; catalogue item 1.6.
    """

    def init(params: optax.Params) -> AutoL2State:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        unknown = jnp.full((), jnp.inf, dtype)
        return AutoL2State(
            weight_decay=jnp.asarray(initial_weight_decay, dtype),
            step=jnp.zeros((), jnp.int32),
            min_step=jnp.zeros((), jnp.int32),
            min_loss=unknown,
            min_error=unknown,
            previous_loss=unknown,
            previous_error=unknown,
        )

    def update(
        updates: optax.Updates,
        state: AutoL2State,
        params: optax.Params | None = None,
        *,
        loss: jax.typing.ArrayLike,
        error: jax.typing.ArrayLike,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AutoL2State]:
        del extra_args
        state = _measure(state, interval, jnp.asarray(loss), jnp.asarray(error))
        decay = optax.add_decayed_weights(state.weight_decay)
        updates, _ = decay.update(updates, decay.init(params), params)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def _measure(state: AutoL2State, interval: int, loss: jax.Array, error: jax.Array) -> AutoL2State:
    """The state of auto_l2 after the measurement at this step, if there is one."""
    step = state.step
    dtype = state.weight_decay.dtype
    loss, error = loss.astype(dtype), error.astype(dtype)
    loss_rises = (loss > state.min_loss) & (state.previous_loss > state.min_loss)
    error_rises = (error > state.min_error) & (state.previous_error > state.min_error)
    measures = step % interval == 0
    falls = measures & (loss_rises | error_rises) & (step > state.min_step)
    weight_decay = jnp.where(falls, state.weight_decay / 10, state.weight_decay)
    # The small margin keeps 0.1/0.01 at 10 steps where the division rounds downwards.
    rest = jnp.floor(0.1 / weight_decay * (1 + 8 * np.finfo(dtype).eps))
    rest = jnp.minimum(rest, _MOST_STEPS_FLOAT).astype(jnp.int32)
    keeps = measures & ~falls
    return AutoL2State(
        weight_decay=weight_decay,
        step=optax.safe_increment(step),
        min_step=jnp.where(falls, step + jnp.minimum(rest, _MOST_STEPS - step), state.min_step),
        min_loss=jnp.where(keeps, jnp.fmin(state.previous_loss, state.min_loss), state.min_loss),
        min_error=jnp.where(
            keeps, jnp.fmin(state.previous_error, state.min_error), state.min_error
        ),
        previous_loss=jnp.where(measures, loss, state.previous_loss),
        previous_error=jnp.where(measures, error, state.previous_error),
    )
