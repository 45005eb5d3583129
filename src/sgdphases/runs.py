"""The compiled program that advances many runs at once.

The runs of a program share their network's shape, loss and optimiser, and differ in what
`RunHyperparameters` holds. Runs are independent: they are spread over the local devices, and each
device takes them group by group through a whole segment of steps, which keeps a group's parameters
in the cache. The batches of the segment are shared by all runs. A group whose runs have all ended
costs nothing more, and between the ends of a segment nothing returns to the host.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from sgdphases.linearization import linearized_apply
from sgdphases.losses import LossFunction, accuracy
from sgdphases.models import Network, Parameters
from sgdphases.models.heads import second_head
from sgdphases.optimizers import OptimizerRule, make_optimizer, rate_scales
from sgdphases.rate_schedules import RateSchedule, rate_factor

RUNNING, FINISHED, STOPPED, DIVERGED, UNREACHABLE = range(5)
STATUS_NAMES = ("running", "finished", "stopped", "diverged", "unreachable")

# Name of the mesh axis that runs are spread over.
RUN_AXIS = "runs"


class RunHyperparameters(NamedTuple):
    """What differs between the runs of one program; a field is (runs,), or a scalar of one run.

    Attributes:
        learning_rate: Absolute learning rate.
        momentum: Momentum coefficient of SGD.
        weight_decay: Coefficient of the L2 regulariser; where AutoL2 starts.
        first_moment_decay: Adam's decay of the mean gradient.
        second_moment_decay: Adam's decay of the mean squared gradient.
        epsilon: Adam's addition to the root of the latter.
        richness: Feature-learning strength γ that divides the outputs.
        inverse_temperature: Factor of the logits in the cross-entropy.
        num_steps: Steps after which the run is finished.
        base_steps: Steps at the run's own rate, before a final one.
        final_learning_rate: Absolute learning rate after these; 0 where there is none.
        linearize_at: Step from which a linearised run's network is linear.
        frozen: Index of the run's frozen network.
    """

    learning_rate: jax.Array
    momentum: jax.Array
    weight_decay: jax.Array
    first_moment_decay: jax.Array
    second_moment_decay: jax.Array
    epsilon: jax.Array
    richness: jax.Array
    inverse_temperature: jax.Array
    num_steps: jax.Array
    base_steps: jax.Array
    final_learning_rate: jax.Array
    linearize_at: jax.Array
    frozen: jax.Array


class Twin(NamedTuple):
    """The linearised model that accompanies a run.

    Attributes:
        base: Parameters at which it is linearised.
        parameters: Its own parameters.
        optimizer_state: Its own state of the optimiser.
    """

    base: Parameters
    parameters: Parameters
    optimizer_state: Any


class RunState(NamedTuple):
    """What a run carries from step to step; with a leading axis, what all runs carry.

    Attributes:
        parameters: The network's parameters.
        optimizer_state: State of the optax transformation.
        step: Updates taken so far.
        status: RUNNING, FINISHED, STOPPED or DIVERGED; UNREACHABLE from the start where no second
            head gives the logits that were asked for.
        initial_loss: Loss on the first batch.
        peak_loss: Largest loss on any batch so far; infinite where it was no number.
        base: Parameters at which a linearised run's network is linear; None for other runs.
        twin: The linearised model beside the run; None where its distance is not measured.
    """

    parameters: Parameters
    optimizer_state: Any
    step: jax.Array
    status: jax.Array
    initial_loss: jax.Array
    peak_loss: jax.Array
    base: Parameters | None
    twin: Twin | None


class Batches(NamedTuple):
    """The batches of a segment, shared by all runs.

    Attributes:
        inputs: (steps, batch, ...) inputs; a single row serves every step.
        targets: (steps, batch, outputs) targets.
        offsets: (frozen networks, steps, batch, outputs) outputs of the frozen networks, or None.
    """

    inputs: jax.Array
    targets: jax.Array
    offsets: jax.Array | None


@dataclass(frozen=True)
class Rules:
    """What all runs of a program share.

    Attributes:
        loss: The loss.
        optimizer: The optimiser.
        rate_schedule: How the learning rate changes along a run.
        parametrisation: The network's parametrisation, which the steps of µP depend on.
        width: The network's width, likewise.
        frozen: "centered": the outputs at initialisation are subtracted; "second_head": those of a
            frozen copy with a correlated readout are added; None: neither.
        divergence_factor: A loss above this multiple of the initial one is divergent.
        train_accuracy: Accuracy on the batch at which a run stops, or None.
        is_linearized: Whether the network is replaced by its linearisation.
        twin_from: Step at which the linearised twin of each run starts, or None for no twins.
    """

    loss: LossFunction
    optimizer: OptimizerRule
    rate_schedule: RateSchedule
    parametrisation: str
    width: int
    frozen: str | None
    divergence_factor: float
    train_accuracy: float | None
    is_linearized: bool
    twin_from: int | None


@dataclass(frozen=True)
class Lowering:
    """How the runs of a program are computed; it changes speed and rounding only.

    Attributes:
        runs_together: Runs of a device that take each step as one batched operation; such groups
            follow one after the other.
        convolution: One of `models.convolution.CONVOLUTION_METHODS`.
        loop: "compiled": the steps of a segment are a loop within the program. "stepwise": each
            step of each run is a call from the host, which keeps the threads of XLA's convolution
            on CPU.
        unroll: Steps within one iteration of the compiled loop. XLA copies the parameters once per
            iteration on CPU; a program of more steps takes longer to compile.
    """

    runs_together: int = 1
    convolution: str = "patches"
    loop: str = "compiled"
    unroll: int = 1


def effective_outputs(
    network: Network,
    state: RunState,
    hyper: RunHyperparameters,
    inputs: jax.Array,
    offset: jax.Array | None,
) -> Callable[[Parameters], jax.Array]:
    r"""The outputs that a run is trained on, as a function of its parameters.

    .. math:: \tilde f(x) = \left[f(x, \theta) + \text{offset}(x)\right] / \gamma

    Args:
        network: The network.
        state: The run; its base is used where it is linearised.
        hyper: Scalars of the run.
        inputs: (batch, ...) inputs.
        offset: (batch, outputs) outputs of the frozen network with their sign, or None.

    Returns:
        From parameters to (batch, outputs).

    Reference:
        Richness paper, eq. 10 with 1/γ applied once (catalogue items 1.2 and 50); temperature
        paper, SM D.1, for the second head.
    """

    def outputs(parameters: Parameters) -> jax.Array:
        if state.base is None:
            raw = network.apply(parameters, inputs)
        else:
            raw = linearized_apply(network.apply)(state.base, parameters, inputs)
        return (raw if offset is None else raw + offset) / hyper.richness

    return outputs


def start_run(rules: Rules, hyper: RunHyperparameters, parameters: Parameters) -> RunState:
    """The state of one run before its first step.

    Args:
        rules: What all runs share.
        hyper: Scalars of the run.
        parameters: Its parameters at initialisation.

    Returns:
        The run.
    """
    dtype = jax.tree.leaves(parameters)[0].dtype
    optimizer_state = _optimizer(rules, hyper, parameters).init(parameters)
    has_twin = rules.twin_from is not None
    return RunState(
        parameters=parameters,
        optimizer_state=optimizer_state,
        step=jnp.zeros((), jnp.int32),
        status=jnp.full((), RUNNING, jnp.int32),
        initial_loss=jnp.full((), jnp.nan, dtype),
        peak_loss=jnp.full((), -jnp.inf, dtype),
        base=parameters if rules.is_linearized else None,
        twin=Twin(parameters, parameters, optimizer_state) if has_twin else None,
    )


def _optimizer(rules: Rules, hyper: RunHyperparameters, parameters: Parameters) -> Any:
    scales = rate_scales(parameters, rules.parametrisation, rules.optimizer.name, rules.width)
    return make_optimizer(rules.optimizer, hyper, scales)


class _Update(NamedTuple):
    """What one step of the optimiser gives."""

    loss: jax.Array
    outputs: jax.Array
    parameters: Parameters
    optimizer_state: Any


def _descend(
    outputs_of: Callable[[Parameters], jax.Array],
    rules: Rules,
    hyper: RunHyperparameters,
    parameters: Parameters,
    optimizer_state: Any,
    targets: jax.Array,
    step: jax.Array,
) -> _Update:
    def loss_and_outputs(values: Parameters) -> tuple[jax.Array, jax.Array]:
        outputs = outputs_of(values)
        return rules.loss(outputs, targets, hyper.inverse_temperature), outputs

    (loss, outputs), gradient = jax.value_and_grad(loss_and_outputs, has_aux=True)(parameters)
    factor = rate_factor(
        rules.rate_schedule,
        step,
        hyper.num_steps,
        hyper.base_steps,
        hyper.learning_rate,
        hyper.final_learning_rate,
    )
    updates, optimizer_state = _optimizer(rules, hyper, parameters).update(
        gradient,
        optimizer_state,
        parameters,
        learning_rate_factor=factor,
        loss=loss,
        error=1 - accuracy(outputs, targets),
    )
    parameters = jax.tree.map(lambda p, u: p + u.astype(p.dtype), parameters, updates)
    return _Update(loss, outputs, parameters, optimizer_state)


def step_run(
    network: Network,
    rules: Rules,
    state: RunState,
    hyper: RunHyperparameters,
    inputs: jax.Array,
    targets: jax.Array,
    offsets: jax.Array | None,
    is_due: jax.Array | bool = True,
) -> RunState:
    """One step of one run, or nothing where the run has ended.

    The loss is that of the batch before the update. A run whose loss is not finite, or exceeds
    `divergence_factor` times its initial loss, takes no further update.

    Args:
        network: The network.
        rules: What all runs share.
        state: The run before the step.
        hyper: Scalars of the run.
        inputs: (batch, ...) inputs.
        targets: (batch, outputs) targets.
        offsets: (frozen networks, batch, outputs) outputs of the frozen networks, or None.
        is_due: Whether to take the step at all.

    Returns:
        The run after the step.
    """
    offset = None if offsets is None else offsets[hyper.frozen]
    update = _descend(
        effective_outputs(network, state, hyper, inputs, offset),
        rules,
        hyper,
        state.parameters,
        state.optimizer_state,
        targets,
        state.step,
    )
    loss = update.loss
    running = (state.status == RUNNING) & is_due
    initial_loss = jnp.where(running & (state.step == 0), loss, state.initial_loss)
    diverged = ~jnp.isfinite(loss) | (loss > rules.divergence_factor * initial_loss)
    reached = jnp.zeros((), bool)
    if rules.train_accuracy is not None:
        reached = ~diverged & (accuracy(update.outputs, targets) >= rules.train_accuracy)
    updating = running & ~diverged & ~reached

    step = state.step + updating
    status = jnp.where(updating & (step >= hyper.num_steps), FINISHED, state.status)
    status = jnp.where(running & reached, STOPPED, status)
    status = jnp.where(running & diverged, DIVERGED, status)
    seen_loss = jnp.where(jnp.isnan(loss), jnp.inf, loss)
    peak_loss = jnp.where(running, jnp.maximum(state.peak_loss, seen_loss), state.peak_loss)

    # A selection, not a product with zero: infinities of a diverged run must not reach its kept
    # parameters.
    parameters, optimizer_state = _choose(
        updating,
        (update.parameters, update.optimizer_state),
        (state.parameters, state.optimizer_state),
    )
    base = state.base
    if base is not None:
        # Up to the step of linearisation the base follows: there the two models are the same.
        base = _choose(updating & (step <= hyper.linearize_at), parameters, base)
    twin = state.twin
    if twin is not None and rules.twin_from is not None:
        other = _descend(
            effective_outputs(network, state._replace(base=twin.base), hyper, inputs, offset),
            rules,
            hyper,
            twin.parameters,
            twin.optimizer_state,
            targets,
            state.step,
        )
        moved = Twin(twin.base, other.parameters, other.optimizer_state)
        followed = Twin(parameters, parameters, optimizer_state)
        moved = _choose(step <= rules.twin_from, followed, moved)
        twin = _choose(updating, moved, twin)
    return RunState(
        parameters=parameters,
        optimizer_state=optimizer_state,
        step=step,
        status=status.astype(jnp.int32),
        initial_loss=initial_loss,
        peak_loss=peak_loss,
        base=base,
        twin=twin,
    )


def _choose(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


@partial(jax.jit, static_argnums=0)
def start_runs(rules: Rules, hyper: RunHyperparameters, parameters: Parameters) -> RunState:
    """The state of all runs before their first step.

    Args:
        rules: What all runs share.
        hyper: Hyperparameters, each (runs,).
        parameters: Parameters at initialisation, with a leading axis over runs.

    Returns:
        State of the runs, with a leading axis over runs.
    """
    return jax.vmap(partial(start_run, rules))(hyper, parameters)


def initial_parameters(network: Network, seeds: NDArray[np.uint32]) -> Parameters:
    """The parameters of networks at initialisation.

    They are drawn one by one, not in one program: it would hold a random draw for each layer,
    which takes seconds to compile, where a draw on its own is compiled once for each shape.

    Args:
        network: The network.
        seeds: (networks,) seeds.

    Returns:
        Parameters with a leading axis over the networks.
    """
    distinct, index = np.unique(seeds, return_inverse=True)
    drawn = [network.init(jax.random.key(seed)) for seed in distinct]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[index], *drawn)


def spread(
    function: Callable[..., Any], mesh: Mesh, per_run: int, shared: int
) -> Callable[..., Any]:
    """Apply a function to the runs of each device separately.

    Args:
        function: Takes `per_run` arguments with a leading axis over runs, then `shared` ones; what
            it returns has a leading axis over runs.
        mesh: The devices, along the axis "runs".
        per_run: Number of arguments that are cut along the runs.
        shared: Number of arguments that every device sees whole.

    Returns:
        The function of all runs.
    """
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(RUN_AXIS),) * per_run + (PartitionSpec(),) * shared,
        out_specs=PartitionSpec(RUN_AXIS),
        check_vma=False,
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(4,))
def advance(
    network: Network,
    rules: Rules,
    lowering: Lowering,
    mesh: Mesh,
    states: RunState,
    hyper: RunHyperparameters,
    batches: Batches,
    first_row: jax.Array,
    num_steps: jax.Array,
) -> RunState:
    """Advance all runs by up to `num_steps` steps, each until it ends.

    Args:
        network: The network.
        rules: What all runs share.
        lowering: How the runs are computed.
        mesh: The devices.
        states: State of the runs, with a leading axis over runs; its memory is reused.
        hyper: Hyperparameters, each (runs,).
        batches: Batches of consecutive steps.
        first_row: The row of `batches` to begin with.
        num_steps: Steps to take; a traced value, so that segments of any length share a program.

    Returns:
        State of the runs afterwards.
    """

    def step_group(
        group: RunState,
        group_hyper: RunHyperparameters,
        shared: Batches,
        index: jax.Array,
        is_due: jax.Array,
    ) -> RunState:
        row = jnp.minimum(index, shared.inputs.shape[0] - 1)
        offsets = None if shared.offsets is None else shared.offsets[:, row]
        step = partial(step_run, network, rules)
        if group.step.ndim == 1:
            step = jax.vmap(step, in_axes=(0, 0, None, None, None, None))
        result: RunState = step(
            group, group_hyper, shared.inputs[row], shared.targets[row], offsets, is_due
        )
        return result

    def advance_group(
        group: RunState,
        group_hyper: RunHyperparameters,
        shared: Batches,
        first: jax.Array,
        length: jax.Array,
    ) -> RunState:
        def unfinished(carry: tuple[jax.Array, RunState]) -> jax.Array:
            index, current = carry
            return (index < first + length) & jnp.any(current.status == RUNNING)

        def body(carry: tuple[jax.Array, RunState]) -> tuple[jax.Array, RunState]:
            index, current = carry
            for _ in range(lowering.unroll):
                is_due = index < first + length
                current = step_group(current, group_hyper, shared, index, is_due)
                index = index + 1
            return index, current

        start = (first, group)
        result: RunState = jax.lax.while_loop(unfinished, body, start)[1]
        return result

    def advance_local(local: RunState, local_hyper: RunHyperparameters, *shared: Any) -> RunState:
        result: RunState = map_groups(
            lambda group: advance_group(*group, *shared),
            (local, local_hyper),
            lowering.runs_together,
        )
        return result

    shared = (batches, first_row, num_steps)
    result: RunState = spread(advance_local, mesh, 2, 3)(states, hyper, *shared)
    return result


def map_groups(function: Callable[[Any], Any], runs: Any, group_size: int) -> Any:
    """Apply a function to groups of runs, one group after the other.

    Args:
        function: From a group, arrays with a leading axis of `group_size`, or without that axis
            where a group is a single run, to such arrays.
        runs: Pytree of arrays with a leading axis over runs, a multiple of `group_size`.
        group_size: Runs per group.

    Returns:
        What the function gives, with a leading axis over runs.
    """
    num_runs = jax.tree.leaves(runs)[0].shape[0]
    if group_size == 1:
        return jax.lax.map(function, runs)
    if group_size == num_runs:
        return function(runs)
    grouped = jax.tree.map(lambda a: a.reshape(-1, group_size, *a.shape[1:]), runs)
    result = jax.lax.map(function, grouped)
    return jax.tree.map(lambda a: a.reshape(num_runs, *a.shape[2:]), result)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def _one_step(
    network: Network,
    rules: Rules,
    state: RunState,
    hyper: RunHyperparameters,
    batches: Batches,
    index: jax.Array,
) -> RunState:
    offsets = None if batches.offsets is None else batches.offsets[:, index]
    return step_run(
        network, rules, state, hyper, batches.inputs[index], batches.targets[index], offsets
    )


# Steps between looks at whether a run has ended, each of which waits for the device.
_STEPS_BETWEEN_LOOKS = 16


def advance_stepwise(
    network: Network,
    rules: Rules,
    states: RunState,
    hyper: RunHyperparameters,
    batches: Batches,
    first_row: int,
    num_steps: int,
) -> RunState:
    """As `advance`, with a call from the host for each step of each run, on one device.

    Args:
        network: The network.
        rules: What all runs share.
        states: State of the runs, with a leading axis over runs.
        hyper: Hyperparameters, each (runs,).
        batches: Batches of consecutive steps.
        first_row: The row of `batches` to begin with.
        num_steps: Steps to take.

    Returns:
        State of the runs afterwards.
    """
    last_row = batches.inputs.shape[0] - 1
    ended = []
    for run in range(states.status.shape[0]):
        state, run_hyper = jax.tree.map(lambda a, i=run: a[i], (states, hyper))
        for index in range(num_steps):
            if index % _STEPS_BETWEEN_LOOKS == 0 and int(state.status) != RUNNING:
                break
            row = jnp.asarray(min(first_row + index, last_row), jnp.int32)
            state = _one_step(network, rules, state, run_hyper, batches, row)
        ended.append(state)
    result: RunState = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ended)
    return result


@partial(jax.jit, static_argnums=(0, 1))
def frozen_parameters(
    network: Network,
    frozen: str,
    initial: Parameters,
    seeds: jax.Array,
    correlations: jax.Array,
    spreads: jax.Array,
) -> Parameters:
    """Parameters of the frozen networks.

    Args:
        network: The network.
        frozen: "centered" or "second_head".
        initial: Parameters at initialisation, with a leading axis over the frozen networks.
        seeds: (frozen networks,) seeds they were drawn from.
        correlations: (frozen networks,) correlation c of the second readout with the first.
        spreads: (frozen networks,) √(1 − c²): next to c = −1, where it is all that is left of the
            outputs, single precision does not tell it from c.

    Returns:
        Parameters with a leading axis over the frozen networks.
    """
    if frozen == "centered":
        return initial

    def add_head(member: tuple[Parameters, jax.Array, jax.Array, jax.Array]) -> Parameters:
        parameters, seed, correlation, spread = member
        return second_head(network, parameters, _head_key(seed), correlation, spread)

    return jax.lax.map(add_head, (initial, seeds, correlations, spreads))


def _head_key(seed: jax.Array) -> jax.Array:
    """Key of the second head's own draw, folded in: independent of the parameters'."""
    return jax.random.fold_in(jax.random.key(seed), 1)


@partial(jax.jit, static_argnums=(0, 4))
def head_moments(
    network: Network, initial: Parameters, seeds: jax.Array, inputs: jax.Array, chunk: int
) -> jax.Array:
    """Mean products of the outputs of the two heads of which a second head is a mixture.

    Args:
        network: The network.
        initial: Parameters at initialisation, with a leading axis over networks.
        seeds: (networks,) seeds they were drawn from.
        inputs: (samples, ...) inputs.
        chunk: Samples computed at once.

    Returns:
        (networks, 3): means over samples and outputs of a², b² and ab, with a the outputs of the
        readout itself and b those of the fresh one, as `models.heads.correlation_of_norm` takes
        them.
    """

    def moments(member: tuple[Parameters, jax.Array]) -> jax.Array:
        parameters, seed = member
        fresh = second_head(network, parameters, _head_key(seed), 0.0)
        own, other = (
            in_chunks(partial(network.apply, values), inputs, chunk)
            for values in (parameters, fresh)
        )
        return jnp.stack([jnp.mean(own * own), jnp.mean(other * other), jnp.mean(own * other)])

    result: jax.Array = jax.lax.map(moments, (initial, seeds))
    return result


@partial(jax.jit, static_argnums=(0, 1, 4))
def frozen_outputs(
    network: Network, frozen: str, parameters: Parameters, inputs: jax.Array, chunk: int
) -> jax.Array:
    """What the frozen networks add to the outputs.

    Args:
        network: The network.
        frozen: "centered" or "second_head".
        parameters: Parameters with a leading axis over the frozen networks.
        inputs: (samples, ...) inputs.
        chunk: Samples computed at once.

    Returns:
        (frozen networks, samples, outputs).
    """
    sign = -1.0 if frozen == "centered" else 1.0
    outputs: jax.Array = jax.lax.map(
        lambda member: sign * in_chunks(partial(network.apply, member), inputs, chunk), parameters
    )
    return outputs


def in_chunks(
    function: Callable[[jax.Array], jax.Array], inputs: jax.Array, chunk: int
) -> jax.Array:
    """Apply a function to samples in chunks of equal size, to bound memory.

    The last chunk reaches back into the one before it, so that statistics over a batch are always
    taken over as many samples.

    Args:
        function: From (chunk, ...) to (chunk, ...).
        inputs: (samples, ...).
        chunk: Samples per chunk; more than there are means all of them.

    Returns:
        (samples, ...).
    """
    num_samples = inputs.shape[0]
    if chunk >= num_samples:
        return function(inputs)
    num_chunks = math.ceil(num_samples / chunk)
    starts = jnp.minimum(jnp.arange(num_chunks) * chunk, num_samples - chunk)
    results = jax.lax.map(
        lambda start: function(jax.lax.dynamic_slice_in_dim(inputs, start, chunk)), starts
    )
    whole = results[:-1].reshape(-1, *results.shape[2:])
    return jnp.concatenate([whole, results[-1, num_chunks * chunk - num_samples :]])
