"""Train many runs in one compiled program and measure them on the way.

The runs of a shard share their compiled shape and differ in learning rate, momentum, weight decay
and seed. One program advances all of them, over runs inside a loop over steps, on the same batches;
a run that has diverged or ended keeps its parameters from then on. Between the measurement steps
nothing returns to the host.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from numpy.typing import NDArray

from sgdphases.curvature import ntk_top_eigenvalue, probe_indices
from sgdphases.datasets.loading import Dataset
from sgdphases.losses import LOSSES, accuracy
from sgdphases.models import Network, Parameters, build_network
from sgdphases.phases import classify_phase
from sgdphases.schedule import measurement_steps, planned_steps

logger = logging.getLogger(__name__)

RUNNING, FINISHED, STOPPED, DIVERGED = range(4)
STATUS_NAMES = ("running", "finished", "stopped", "diverged")

# Steps whose batch indices are sent to the device at once.
_LONGEST_SEGMENT = 1024
# Samples that losses and accuracies are computed on at once, to bound memory.
_EVALUATION_CHUNK = 2048
_SECONDS_BETWEEN_MESSAGES = 10.0


class RunHyperparameters(NamedTuple):
    """What differs between the runs of one program; a field is (runs,), or a scalar of one run."""

    learning_rate: jax.Array
    momentum: jax.Array
    weight_decay: jax.Array
    num_steps: jax.Array


class RunState(NamedTuple):
    """What a run carries from step to step; with a leading axis, what all runs carry.

    Attributes:
        parameters: The network's parameters.
        optimizer_state: State of the optax transformation.
        step: Updates taken so far.
        status: RUNNING, FINISHED, STOPPED or DIVERGED.
        initial_loss: Loss on the first batch.
        peak_loss: Largest loss on any batch so far; infinite where it was no number.
    """

    parameters: Parameters
    optimizer_state: Any
    step: jax.Array
    status: jax.Array
    initial_loss: jax.Array
    peak_loss: jax.Array


@dataclass(frozen=True)
class Rules:
    """What all runs of a program share.

    Attributes:
        loss: Name of the loss.
        has_momentum: Whether the optimiser keeps a momentum buffer.
        divergence_factor: A loss above this multiple of the initial one is divergent.
        train_accuracy: Accuracy on the batch at which a run stops, or None.
        lowering: "map": the runs take their step one after the other, and one that has ended costs
            nothing; fastest on CPU. "vmap": all runs take their step as one batched operation;
            for accelerators.
    """

    loss: str
    has_momentum: bool
    divergence_factor: float
    train_accuracy: float | None
    lowering: str


def choose_lowering() -> str:
    """The lowering for the default device; `benchmarks/lowering.py` measures both."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


def make_optimizer(hyper: RunHyperparameters, has_momentum: bool) -> optax.GradientTransformation:
    r"""SGD with momentum and coupled L2 regularisation.

    .. math:: m \leftarrow \mu m + \nabla L + \lambda\theta, \quad
        \theta \leftarrow \theta - \eta m

    Args:
        hyper: Scalars of one run; traced values are allowed.
        has_momentum: Whether there is a momentum buffer at all.

    Reference:
        Catalogue item 1.1.4: the regulariser λ/2·‖θ‖² acts on all parameters and passes through
        the momentum buffer.
    """
    return optax.chain(
        optax.add_decayed_weights(hyper.weight_decay),
        optax.sgd(hyper.learning_rate, momentum=hyper.momentum if has_momentum else None),
    )


def start_run(
    network: Network, rules: Rules, hyper: RunHyperparameters, seed: jax.Array
) -> RunState:
    """The state of one run before its first step.

    Args:
        network: The network.
        rules: What all runs share.
        hyper: Scalars of the run.
        seed: Scalar seed of the parameters.

    Returns:
        The run with parameters drawn from the seed.
    """
    parameters = network.init(jax.random.key(seed))
    dtype = jax.tree.leaves(parameters)[0].dtype
    return RunState(
        parameters=parameters,
        optimizer_state=make_optimizer(hyper, rules.has_momentum).init(parameters),
        step=jnp.zeros((), jnp.int32),
        status=jnp.full((), RUNNING, jnp.int32),
        initial_loss=jnp.full((), jnp.nan, dtype),
        peak_loss=jnp.full((), -jnp.inf, dtype),
    )


def step_run(
    network: Network,
    rules: Rules,
    state: RunState,
    hyper: RunHyperparameters,
    inputs: jax.Array,
    targets: jax.Array,
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

    Returns:
        The run after the step.
    """

    def loss_and_outputs(parameters: Parameters) -> tuple[jax.Array, jax.Array]:
        outputs = network.apply(parameters, inputs)
        return LOSSES[rules.loss](outputs, targets), outputs

    (loss, outputs), gradient = jax.value_and_grad(loss_and_outputs, has_aux=True)(state.parameters)
    running = state.status == RUNNING
    initial_loss = jnp.where(state.step == 0, loss, state.initial_loss)
    diverged = ~jnp.isfinite(loss) | (loss > rules.divergence_factor * initial_loss)
    reached = jnp.zeros((), bool)
    if rules.train_accuracy is not None:
        reached = ~diverged & (accuracy(outputs, targets) >= rules.train_accuracy)
    updating = running & ~diverged & ~reached

    optimizer = make_optimizer(hyper, rules.has_momentum)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.parameters)
    parameters = optax.apply_updates(state.parameters, updates)

    step = state.step + updating
    status = jnp.where(updating & (step >= hyper.num_steps), FINISHED, state.status)
    status = jnp.where(running & reached, STOPPED, status)
    status = jnp.where(running & diverged, DIVERGED, status)
    seen_loss = jnp.where(jnp.isnan(loss), jnp.inf, loss)
    peak_loss = jnp.where(running, jnp.maximum(state.peak_loss, seen_loss), state.peak_loss)

    # A selection, not a product with zero: infinities of a diverged run must not reach its kept
    # parameters.
    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(updating, new, old)

    return RunState(
        parameters=jax.tree.map(keep, parameters, state.parameters),
        optimizer_state=jax.tree.map(keep, optimizer_state, state.optimizer_state),
        step=step,
        status=status.astype(jnp.int32),
        initial_loss=initial_loss,
        peak_loss=peak_loss,
    )


@partial(jax.jit, static_argnums=(0, 1))
def start_runs(
    network: Network, rules: Rules, hyper: RunHyperparameters, seeds: jax.Array
) -> RunState:
    """The state of all runs before their first step.

    Args:
        network: The network.
        rules: What all runs share.
        hyper: Hyperparameters, each (runs,).
        seeds: (runs,) seeds.

    Returns:
        State of the runs, with a leading axis over runs.
    """
    # Not vmap: batched random draws take twice as long to compile.
    states: RunState = jax.lax.map(lambda run: start_run(network, rules, *run), (hyper, seeds))
    return states


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def advance(
    network: Network,
    rules: Rules,
    states: RunState,
    hyper: RunHyperparameters,
    inputs: jax.Array,
    targets: jax.Array,
    batches: jax.Array | None,
    num_steps: jax.Array,
) -> RunState:
    """Advance all runs by up to `num_steps` steps, fewer when every run has ended.

    Args:
        network: The network.
        rules: What all runs share.
        states: State of the runs, with a leading axis over runs.
        hyper: Hyperparameters, each (runs,).
        inputs: (samples, ...) training inputs.
        targets: (samples, outputs) training targets.
        batches: (longest segment, batch) sample indices of which the first `num_steps` rows count,
            or None for full-batch descent.
        num_steps: Steps to take; a traced value, so that segments of any length share a program.

    Returns:
        State of the runs afterwards.
    """

    def step_running(
        state: RunState, run_hyper: RunHyperparameters, batch: tuple[jax.Array, jax.Array]
    ) -> RunState:
        result: RunState = jax.lax.cond(
            state.status == RUNNING,
            lambda s: step_run(network, rules, s, run_hyper, *batch),
            lambda s: s,
            state,
        )
        return result

    def step_all(current: RunState, batch: tuple[jax.Array, jax.Array]) -> RunState:
        result: RunState
        if rules.lowering == "map":
            result = jax.lax.map(lambda run: step_running(run[0], run[1], batch), (current, hyper))
        else:
            batched = jax.vmap(partial(step_run, network, rules), in_axes=(0, 0, None, None))
            result = batched(current, hyper, *batch)
        return result

    def unfinished(carry: tuple[jax.Array, RunState]) -> jax.Array:
        index, current = carry
        return (index < num_steps) & jnp.any(current.status == RUNNING)

    def body(carry: tuple[jax.Array, RunState]) -> tuple[jax.Array, RunState]:
        index, current = carry
        batch = (inputs, targets)
        if batches is not None:
            batch = (inputs[batches[index]], targets[batches[index]])
        return index + 1, step_all(current, batch)

    start = (jnp.zeros((), jnp.int32), states)
    result: RunState = jax.lax.while_loop(unfinished, body, start)[1]
    return result


@partial(jax.jit, static_argnums=(0, 1))
def evaluate(
    network: Network,
    loss: str,
    parameters: Parameters,
    wanted: jax.Array,
    inputs: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy of the wanted runs on a set of samples.

    Args:
        network: The network.
        loss: Name of the loss.
        parameters: Parameters with a leading axis over runs.
        wanted: (runs,) whether to evaluate a run; the others cost nothing.
        inputs: (samples, ...).
        targets: (samples, outputs).

    Returns:
        (runs,) losses and (runs,) accuracies, NaN where not wanted.
    """

    def evaluate_run(run_parameters: Parameters) -> tuple[jax.Array, jax.Array]:
        outputs = jnp.concatenate(
            [
                network.apply(run_parameters, inputs[start : start + _EVALUATION_CHUNK])
                for start in range(0, len(inputs), _EVALUATION_CHUNK)
            ]
        )
        return LOSSES[loss](outputs, targets), accuracy(outputs, targets)

    result: tuple[jax.Array, jax.Array] = _map_wanted(evaluate_run, parameters, wanted)
    return result


@partial(jax.jit, static_argnums=(0, 4))
def measure_curvature(
    network: Network,
    parameters: Parameters,
    wanted: jax.Array,
    inputs: jax.Array,
    num_lanczos_steps: int,
) -> jax.Array:
    """Top NTK eigenvalue of the wanted runs.

    Args:
        network: The network.
        parameters: Parameters with a leading axis over runs.
        wanted: (runs,) whether to measure a run; the others cost nothing.
        inputs: (samples, ...) of the kernel.
        num_lanczos_steps: Products per measurement.

    Returns:
        (runs,) eigenvalues, NaN where not wanted.
    """

    def measure(run_parameters: Parameters) -> jax.Array:
        return ntk_top_eigenvalue(network.apply, run_parameters, inputs, num_lanczos_steps)

    eigenvalues: jax.Array = _map_wanted(measure, parameters, wanted)
    return eigenvalues


def _map_wanted(
    function: Callable[[Parameters], Any], parameters: Parameters, wanted: jax.Array
) -> Any:
    """`function` of each wanted run in turn, and NaN, without the work, of the others."""

    def apply_one(run: tuple[Parameters, jax.Array]) -> Any:
        run_parameters, is_wanted = run
        shapes = jax.eval_shape(function, run_parameters)
        nothing = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)
        return jax.lax.cond(is_wanted, function, lambda _: nothing, run_parameters)

    return jax.lax.map(apply_one, (parameters, wanted))


def batch_indices(
    num_train: int, batch_size: int, first_step: int, num_steps: int, seed: int
) -> NDArray[np.int32]:
    """Samples of each step's batch: a fresh permutation every epoch, without the incomplete rest.

    Args:
        num_train: Number of training samples.
        batch_size: Samples per batch, at most `num_train`.
        first_step: Step of the first row.
        num_steps: Number of rows.
        seed: The experiment's data seed; the batches depend on it and on the step alone.

    Returns:
        (steps, batch) indices.
    """
    per_epoch = num_train // batch_size
    steps = np.arange(first_step, first_step + num_steps)
    rows = np.empty((num_steps, batch_size), dtype=np.int32)
    for epoch in np.unique(steps // per_epoch):
        # The leading 1 keeps this stream apart from that of the curvature's batches.
        order = np.random.default_rng([seed, 1, epoch]).permutation(num_train)
        batches = order[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        here = steps // per_epoch == epoch
        rows[here] = batches[steps[here] % per_epoch]
    return rows


def resolve_learning_rates(
    runs: Sequence[Mapping[str, Any]], critical: Mapping[str, float], network_ids: Sequence[str]
) -> NDArray[np.float64]:
    """Absolute learning rates of runs.

    Args:
        runs: Runs with `learning_rate` and `learning_rate_relative_to` (absolute, or critical for
            units of 2/λ₀).
        critical: Critical learning rate of each network.
        network_ids: Network of each run.

    Returns:
        (runs,) absolute learning rates.
    """
    rates = [
        run["learning_rate"] * critical[network]
        if run["learning_rate_relative_to"] == "critical"
        else run["learning_rate"]
        for run, network in zip(runs, network_ids, strict=True)
    ]
    return np.asarray(rates, dtype=np.float64)


@dataclass(frozen=True)
class TrainedShard:
    """Tables of a shard's runs: `runs`, one row per run; `history`, one per run and measurement."""

    runs: pd.DataFrame
    history: pd.DataFrame


def train_shard(
    settings: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    network_ids: Sequence[str],
    dataset: Dataset,
    critical: Mapping[str, float],
) -> TrainedShard:
    """Train the runs of one shard together.

    Args:
        settings: The resolved experiment: `experiment`, `stopping`, `measurements`, `curvature`,
            `evaluation`, `divergence_factor`, `data_seed`.
        runs: Runs of one compiled shape.
        network_ids: Network of each run.
        dataset: The data.
        critical: Critical learning rate of each network; empty without a curvature stage.

    Returns:
        The shard's tables.
    """
    with jax.enable_x64(runs[0]["precision"] == "float64"):
        return _Trainer(settings, runs, network_ids, dataset, critical).train()


class _Trainer:
    """Holds what stays the same while a shard trains, and the record.

    The losses at step 0 fix which losses count as divergent from then on.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        runs: Sequence[Mapping[str, Any]],
        network_ids: Sequence[str],
        dataset: Dataset,
        critical: Mapping[str, float],
    ) -> None:
        shared = runs[0]
        self.settings = settings
        self.table = pd.DataFrame(runs)
        # A hyperparameter that is null throughout would otherwise lose its type.
        nulls = self.table.columns[self.table.isna().all()]
        self.table[nulls] = self.table[nulls].astype(np.float64)
        rates = resolve_learning_rates(runs, critical, network_ids)
        self.table["learning_rate"] = rates
        self.table["critical_learning_rate"] = [critical.get(n, np.nan) for n in network_ids]
        self.num_steps = np.array([planned_steps(settings["stopping"], rate) for rate in rates])
        dtype = np.dtype(shared["precision"])
        self.hyper = RunHyperparameters(
            learning_rate=jnp.asarray(rates, dtype),
            momentum=jnp.asarray(self.table["momentum"].to_numpy(), dtype),
            weight_decay=jnp.asarray(self.table["weight_decay"].to_numpy(), dtype),
            num_steps=jnp.asarray(self.num_steps, jnp.int32),
        )
        self.inputs = jnp.asarray(dataset.train_inputs, dtype)
        self.targets = jnp.asarray(dataset.train_targets, dtype)
        evaluation = settings["evaluation"]
        self.evaluation_sets = {
            "train": (
                self.inputs[: evaluation.get("num_train")],
                self.targets[: evaluation.get("num_train")],
            ),
            "test": (
                jnp.asarray(dataset.test_inputs[: evaluation.get("num_test")], dtype),
                jnp.asarray(dataset.test_targets[: evaluation.get("num_test")], dtype),
            ),
        }
        self.batch_size = shared["batch_size"]
        self.full_batch = self.batch_size >= len(self.inputs)
        stopping_accuracy = settings["stopping"].get("train_accuracy")
        self.stopping_accuracy = stopping_accuracy
        self.rules = Rules(
            loss=shared["loss"],
            has_momentum=bool((self.table["momentum"] > 0).any()),
            divergence_factor=settings["divergence_factor"],
            # On a part of the data the batch says too little: then the measurements decide.
            train_accuracy=stopping_accuracy if self.full_batch else None,
            lowering=choose_lowering(),
        )
        self.network = build_network(shared, self.inputs.shape[1:], self.targets.shape[1])
        schedule = settings["measurements"].get("ntk_top_eigenvalue")
        self.curvature_steps = None
        if schedule is not None:
            self.curvature_steps = measurement_steps(schedule, int(self.num_steps.max()))
            batch_size, seed = settings["curvature"]["batch_size"], settings["data_seed"]
            (probe,) = probe_indices(len(self.inputs), batch_size, 1, seed)
            self.probe_inputs = self.inputs[jnp.asarray(probe)]
        self.history: list[pd.DataFrame] = []

    def train(self) -> TrainedShard:
        last_step = int(self.num_steps.max())
        loss_steps = measurement_steps(self.settings["measurements"], last_step)
        stops = np.union1d(loss_steps, [] if self.curvature_steps is None else self.curvature_steps)
        seeds = jnp.asarray(self.table["seed"].to_numpy(), jnp.uint32)
        states = start_runs(self.network, self.rules, self.hyper, seeds)
        states = self.measure(states, np.ones(len(self.table), dtype=bool), step=0)
        began = spoke = time.monotonic()
        step = 0
        for stop in [*stops[stops > 0].astype(int), last_step]:
            was_running = np.asarray(states.status) == RUNNING
            if not was_running.any():
                break
            while step < stop and (np.asarray(states.status) == RUNNING).any():
                length = min(stop - step, _LONGEST_SEGMENT)
                states = self.advance(states, step, length)
                step += length
                if time.monotonic() - spoke > _SECONDS_BETWEEN_MESSAGES:
                    spoke = time.monotonic()
                    self.report(states, step, last_step, spoke - began)
            states = self.measure(states, was_running, step)
        self.report(states, step, last_step, time.monotonic() - began)
        # A run that ends where it has just been measured is recorded once more at that step, then
        # with its curvature.
        history = pd.concat(self.history, ignore_index=True)
        history = history.drop_duplicates(["run_id", "step"], keep="last", ignore_index=True)
        return TrainedShard(self.summarise(states, history), history)

    def advance(self, states: RunState, step: int, length: int) -> RunState:
        batches = None
        if not self.full_batch:
            rows = np.zeros((_LONGEST_SEGMENT, self.batch_size), dtype=np.int32)
            rows[:length] = batch_indices(
                len(self.inputs), self.batch_size, step, length, self.settings["data_seed"]
            )
            batches = jnp.asarray(rows)
        advanced: RunState = advance(
            self.network,
            self.rules,
            states,
            self.hyper,
            self.inputs,
            self.targets,
            batches,
            jnp.asarray(length, jnp.int32),
        )
        return advanced

    def measure(self, states: RunState, was_running: NDArray[np.bool_], step: int) -> RunState:
        """Record the runs that were still running; each run's last row is that of its own end."""
        values: dict[str, NDArray[Any]] = {}
        for name, (inputs, targets) in self.evaluation_sets.items():
            loss, hits = evaluate(
                self.network,
                self.rules.loss,
                states.parameters,
                jnp.asarray(was_running),
                inputs,
                targets,
            )
            values[f"{name}_loss"] = np.asarray(loss, dtype=np.float64)
            values[f"{name}_accuracy"] = np.asarray(hits, dtype=np.float64)
        train_loss = values["train_loss"]
        if step == 0:
            self.divergent_loss = self.rules.divergence_factor * train_loss
        status = np.array(states.status)
        # The last update of a run is followed by no step that would see it diverge.
        diverged = ~np.isfinite(train_loss) | (train_loss > self.divergent_loss)
        status[was_running & diverged] = DIVERGED
        if self.stopping_accuracy is not None and not self.full_batch:
            reached = values["train_accuracy"] >= self.stopping_accuracy
            status[(status == RUNNING) & reached] = STOPPED
        if self.curvature_steps is not None:
            wanted = was_running & ((status != RUNNING) | bool(np.isin(step, self.curvature_steps)))
            values["ntk_top_eigenvalue"] = self.measure_curvature(states, wanted)
        rows = pd.DataFrame(
            {
                "experiment": self.settings["experiment"],
                "run_id": self.table["run_id"],
                "step": np.asarray(states.step, dtype=np.int64),
                "physical_time": np.asarray(states.step) * self.table["learning_rate"],
                **values,
            }
        )
        self.history.append(rows[was_running])
        return states._replace(status=jnp.asarray(status))

    def measure_curvature(self, states: RunState, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
        eigenvalues = measure_curvature(
            self.network,
            states.parameters,
            jnp.asarray(wanted),
            self.probe_inputs,
            self.settings["curvature"]["num_lanczos_steps"],
        )
        return np.asarray(eigenvalues, dtype=np.float64)

    def report(self, states: RunState, step: int, last_step: int, seconds: float) -> None:
        running = int((np.asarray(states.status) == RUNNING).sum())
        logger.info(
            "training %s: step %d of %d, %d of %d runs running, %.0f steps/s",
            self.settings["experiment"],
            step,
            last_step,
            running,
            len(self.table),
            step / max(seconds, 1e-9),
        )

    def summarise(self, states: RunState, history: pd.DataFrame) -> pd.DataFrame:
        by_run = history.groupby("run_id", sort=False)
        # Not first() and last(), which pass over NaN.
        first, last = (by_run.nth(i).set_index("run_id") for i in (0, -1))
        ids = self.table["run_id"]
        table = self.table.drop(columns="learning_rate_relative_to")
        table.insert(0, "experiment", self.settings["experiment"])
        table["relative_learning_rate"] = table["learning_rate"] / table["critical_learning_rate"]
        table["status"] = [STATUS_NAMES[code] for code in np.asarray(states.status)]
        table["steps"] = np.asarray(states.step, dtype=np.int64)
        table["initial_train_loss"] = first.loc[ids, "train_loss"].to_numpy()
        losses = history.assign(train_loss=history["train_loss"].fillna(np.inf))
        measured_peak = losses.groupby("run_id")["train_loss"].max().loc[ids].to_numpy()
        batch_peak = np.asarray(states.peak_loss, dtype=np.float64)
        table["peak_train_loss"] = np.fmax(measured_peak, batch_peak)
        table["final_train_loss"] = last.loc[ids, "train_loss"].to_numpy()
        table["final_train_accuracy"] = last.loc[ids, "train_accuracy"].to_numpy()
        table["final_test_accuracy"] = last.loc[ids, "test_accuracy"].to_numpy()
        table["max_test_accuracy"] = by_run["test_accuracy"].max().loc[ids].to_numpy()
        table["time_to_peak"] = time_to_peak(history).reindex(ids).to_numpy()
        measured = "ntk_top_eigenvalue" in history
        for name, rows in (("initial", first), ("final", last)):
            eigenvalue = rows.loc[ids, "ntk_top_eigenvalue"].to_numpy() if measured else np.nan
            table[f"{name}_ntk_top_eigenvalue"] = eigenvalue
        # Losses of small batches scatter; only where the batch is all the data do they compare
        # with the loss that the run started from.
        peak = table["peak_train_loss"] if self.full_batch else measured_peak
        table["phase"] = pd.array(
            classify_phase(
                table["status"],
                table["initial_train_loss"],
                peak,
                table["final_train_loss"],
                table["initial_ntk_top_eigenvalue"],
                table["final_ntk_top_eigenvalue"],
            ),
            dtype="string",
        )
        return table


# A test accuracy within this distance of the best counts as having peaked (catalogue item 1.5).
PEAK_MARGIN = 0.005
_ROUNDING = 1e-6


def time_to_peak(history: pd.DataFrame) -> "pd.Series[float]":
    """First measured step at which the test accuracy is within 0.005 of its maximum.

    Args:
        history: Rows of any number of runs with `run_id`, `step`, `test_accuracy`.

    Returns:
        Steps by run_id; runs without a test accuracy are left out.

    Reference:
        L2 paper, section 2; catalogue item 1.5 for the absolute margin.
    """
    best = history.groupby("run_id")["test_accuracy"].transform("max")
    # Accuracies are multiples of 1/samples, often the margin apart: rounding must not decide.
    near = history[history["test_accuracy"] >= best - PEAK_MARGIN - _ROUNDING]
    return near.groupby("run_id")["step"].min().astype(float)
