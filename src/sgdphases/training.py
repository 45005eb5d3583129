"""Train the runs of one shard together and measure them on the way."""

import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases import measurements
from sgdphases.augmentation import read_augmentation
from sgdphases.batches import Segment, open_batches
from sgdphases.checkpoints import Checkpoint, CheckpointFolder, make_identity
from sgdphases.curvature import probe_indices
from sgdphases.datasets.loading import Dataset
from sgdphases.devices import (
    device_memory,
    estimate_memory,
    intermediate_bytes,
    is_out_of_memory,
    pad_runs,
    replicated_sharding,
    run_mesh,
    run_sharding,
    runs_per_program,
)
from sgdphases.errors import InputError
from sgdphases.grid import VECTORISED_HYPERPARAMETERS, content_hash
from sgdphases.interruption import Interrupted, Interruption, saving_on_signal
from sgdphases.losses import LossFunction
from sgdphases.lowering import (
    candidate_lowerings,
    choose_lowering,
    is_worth_a_trial,
)
from sgdphases.measurements import Measurement, Member, Samples, measure_runs
from sgdphases.model_table import is_user_model
from sgdphases.models import Network, build_network, parameter_dtype, single_run_convolution
from sgdphases.models.heads import correlation_of_norm, spread_of
from sgdphases.optimizers import OptimizerRule
from sgdphases.progress import Progress, matrix_product_flop
from sgdphases.rate_schedules import (
    RateSchedule,
    physical_time,
    read_rate_schedule,
    schedule_of_run,
)
from sgdphases.runs import (
    DIVERGED,
    FINISHED,
    RUNNING,
    STATUS_NAMES,
    STOPPED,
    UNREACHABLE,
    Batches,
    Lowering,
    Rules,
    RunHyperparameters,
    RunState,
    advance,
    advance_stepwise,
    frozen_outputs,
    frozen_parameters,
    head_moments,
    initial_parameters,
    start_run,
    start_runs,
    step_run,
)
from sgdphases.schedule import measurement_steps, planned_steps, stopping_of_run
from sgdphases.storage import write_text
from sgdphases.summary import summarise_runs

logger = logging.getLogger(__name__)

# Longer segments would keep signals and checkpoints waiting.
_SECONDS_PER_SEGMENT = 2.0
# Time that each lowering is tried for, besides its compilation.
_SECONDS_PER_TRIAL = 0.3
# Samples that outputs are computed for at once, to bound memory; images take more of it.
_EVALUATION_CHUNK = 2048
_EVALUATION_CHUNK_OF_IMAGES = 256
_MATRIX_PRECISION = {"tensorfloat32": "tensorfloat32", "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class TrainedShard:
    """Tables of a shard's runs: `runs`, one row per run; `history`, one per run and measurement."""

    runs: pd.DataFrame
    history: pd.DataFrame


@dataclass(frozen=True)
class Execution:
    """How a shard is computed; nothing here changes its numbers but for rounding.

    Attributes:
        lowering: Fields of `Lowering` that are forced, "all" runs together included; what is not
            named is chosen.
        checkpoint_folder: Where the shard's checkpoints are kept, or None for none.
        checkpoint_seconds: Seconds between them.
        cache_folder: Where choices of lowerings are kept, or None.
        jobs: Jobs that share the memory of this machine.
        most_runs: Most runs of one program, or None for as many as memory holds.
        version: Version of the code; a checkpoint of another one is not used.
    """

    lowering: Mapping[str, Any] | None = None
    checkpoint_folder: Path | None = None
    checkpoint_seconds: float = 60.0
    cache_folder: Path | None = None
    jobs: int = 1
    most_runs: int | None = None
    version: str = ""


def train_shard(
    settings: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    network_ids: Sequence[str],
    dataset: Dataset,
    critical: Mapping[str, float],
    execution: Execution | None = None,
    time_constants: Mapping[str, float] | None = None,
    edges: Mapping[str, float] | None = None,
) -> TrainedShard:
    """Train the runs of one shard together.

    As many runs as fit into memory form a program. Where the device has too little memory all the
    same, the number is halved and training goes on.

    Args:
        settings: The resolved experiment: `experiment`, `stopping`, `schedule`, `measurements`,
            `curvature`, `evaluation`, `augmentation`, `divergence_factor`, `data_seed`.
        runs: Runs of one compiled shape.
        network_ids: Network of each run.
        dataset: The data.
        critical: Critical learning rate of each network; empty without a curvature stage.
        execution: How the shard is computed.
        time_constants: Time to peak times weight decay, in epochs, of each experiment that weight
            decays are relative to.
        edges: By run_id, the learning rate that each run's is relative to, of those whose unit is
            an edge; NaN where there is no such edge: the run is then unreachable.

    Returns:
        The shard's tables.

    Raises:
        InputError: A setting does not fit the data, or a single run does not fit into memory.
        Interrupted: A signal asked to end; what has been done is saved in the checkpoint folder.
    """
    execution = execution or Execution()
    precision = runs[0]["precision"]
    matrix_precision = _MATRIX_PRECISION.get(precision, "highest")
    everything = list(zip(runs, network_ids, strict=True))
    pending = _read_parts(execution.checkpoint_folder, everything)
    is_known = pending is not None
    if pending is None:
        pending = _cut(everything, execution.most_runs or len(everything))
    finished: list[TrainedShard] = []
    done: list[_Part] = []
    with (
        saving_on_signal() as interruption,
        jax.enable_x64(precision == "float64"),
        jax.default_matmul_precision(matrix_precision),
    ):
        while pending:
            part = pending.pop(0)
            try:
                trainer = _Trainer(
                    settings,
                    part,
                    dataset,
                    critical,
                    time_constants or {},
                    edges or {},
                    execution,
                    interruption,
                )
                fitting = len(part) if is_known else trainer.runs_that_fit()
                if fitting < len(part):
                    logger.info("memory holds %d of %d runs at once", fitting, len(part))
                    pending[:0] = _cut(part, fitting)
                    continue
                _write_parts(execution.checkpoint_folder, [*done, part, *pending])
                finished.append(trainer.train())
                done.append(part)
            except InputError as error:
                # What a model or a measurement refuses does not know the experiment.
                raise InputError(f"{settings['experiment']}: {error}") from None
            except (RuntimeError, ValueError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise InputError(
                        f"{settings['experiment']}: a single run does not fit into the memory of "
                        f"the device ({str(error).splitlines()[0]}); allowed: a smaller width, "
                        "batch_size, or measurement batch"
                    ) from None
                half = math.ceil(len(part) / 2)
                logger.warning(
                    "out of device memory with %d runs at once: going on with %d", len(part), half
                )
                pending[:0] = _cut(part, half)
    order = {run["run_id"]: position for position, run in enumerate(runs)}
    table = pd.concat([shard.runs for shard in finished], ignore_index=True)
    history = pd.concat([shard.history for shard in finished], ignore_index=True)
    by_run = table["run_id"].map(order).argsort(kind="stable")
    by_step = np.lexsort((history["run_id"].map(order), history["step"]))
    counts = table["status"].value_counts()
    logger.info(
        "training %s: %s",
        settings["experiment"],
        ", ".join(f"{counts.get(name, 0)} {name}" for name in STATUS_NAMES[1:]),
    )
    return TrainedShard(
        table.iloc[by_run].reset_index(drop=True), history.iloc[by_step].reset_index(drop=True)
    )


# How a shard was cut into programs: a job that goes on must cut it alike, whatever memory is free
# then.
_PARTS_FILE = "parts.json"


def _read_parts(folder: Path | None, everything: "_Part") -> "list[_Part] | None":
    """The parts that an earlier job on the same runs made; None where there are none."""
    if folder is None:
        return None
    try:
        names = json.loads((folder / _PARTS_FILE).read_text(encoding="utf-8"))
        by_name = {run["run_id"]: (run, network) for run, network in everything}
        parts = [[by_name[name] for name in part] for part in names]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return parts if sum(map(len, parts)) == len(everything) else None


def _write_parts(folder: Path | None, parts: "list[_Part]") -> None:
    if folder is None:
        return
    names = [[run["run_id"] for run, _ in part] for part in parts]
    # Without it a job that goes on may have to start anew: no reason to end this one.
    with contextlib.suppress(OSError):
        write_text(json.dumps(names), folder / _PARTS_FILE)


_Part = list[tuple[Mapping[str, Any], str]]


def _cut(part: _Part, size: int) -> list[_Part]:
    return [part[start : start + size] for start in range(0, len(part), size)]


@functools.lru_cache(maxsize=32)
def _network(
    hyperparameters: tuple[tuple[str, Any], ...],
    input_shape: tuple[int, ...],
    num_outputs: int,
    convolution: str,
) -> Network:
    """The network of a shape; always the same object, as compiled programs are kept by it."""
    return build_network(dict(hyperparameters), input_shape, num_outputs, convolution)


def resolve_learning_rates(
    runs: Sequence[Mapping[str, Any]],
    critical: Mapping[str, float],
    network_ids: Sequence[str],
    edges: Mapping[str, float],
) -> NDArray[np.float64]:
    """Absolute learning rates of runs.

    Args:
        runs: Runs with `learning_rate` and `learning_rate_relative_to` (absolute, critical for
            units of 2/λ₀, or edge for units of the learning rate of the run's edge).
        critical: Critical learning rate of each network.
        network_ids: Network of each run.
        edges: Learning rate of the edge by run_id.

    Returns:
        (runs,) absolute learning rates.
    """
    units = {
        "absolute": lambda run, network: 1.0,
        "critical": lambda run, network: critical[network],
        "edge": lambda run, network: edges[run["run_id"]],
    }
    rates = [
        run["learning_rate"] * units[run["learning_rate_relative_to"]](run, network)
        for run, network in zip(runs, network_ids, strict=True)
    ]
    return np.asarray(rates, dtype=np.float64)


def resolve_weight_decays(
    runs: Sequence[Mapping[str, Any]],
    time_constants: Mapping[str, float],
    schedule: RateSchedule,
) -> NDArray[np.float64]:
    r"""Absolute weight decays of runs.

    .. math:: \lambda = \text{factor} \cdot c / T_1

    T₁ is the run's budget T in epochs, or the time at which its schedule first lowers the rate.

    Args:
        runs: Runs with `weight_decay`, `weight_decay_from` (null for an absolute one, or the name
            of the experiment that c was measured by) and `budget_epochs`.
        time_constants: c of each experiment, in epochs.
        schedule: The runs' schedule.

    Returns:
        (runs,) absolute weight decays.

    Reference:
        L2 paper, section 3; catalogue item 1.6.
    """
    until_decay = schedule.boundaries[0] if schedule.boundaries else 1.0
    decays = [
        run["weight_decay"]
        if run["weight_decay_from"] is None
        else run["weight_decay"]
        * time_constants[run["weight_decay_from"]]
        / (run["budget_epochs"] * until_decay)
        for run in runs
    ]
    return np.asarray(decays, dtype=np.float64)


class _Trainer:
    """Holds what stays the same while the runs of one program train, and the record."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        part: _Part,
        dataset: Dataset,
        critical: Mapping[str, float],
        time_constants: Mapping[str, float],
        edges: Mapping[str, float],
        execution: Execution,
        interruption: Interruption,
    ) -> None:
        self.mesh = run_mesh(min(jax.local_device_count(), len(part)))
        # Neighbours in a shard take similar rates: dealt out in turn, devices have as much to do.
        part = [
            member for device in range(self.mesh.size) for member in part[device :: self.mesh.size]
        ]
        runs, network_ids = [dict(run) for run, _ in part], [network for _, network in part]
        self.settings, self.execution, self.interruption = settings, execution, interruption
        self.dataset, self.shared = dataset, runs[0]
        self.table = pd.DataFrame(runs)
        # A hyperparameter that is null throughout would otherwise lose its type.
        nulls = self.table.columns[self.table.isna().all()]
        self.table[nulls] = self.table[nulls].astype(np.float64)
        # Whole numbers that some runs have, one type in all tables.
        counts = ["budget_steps", "final_steps", "linearize_at"]
        self.table[counts] = self.table[counts].astype(np.float64)
        rates = resolve_learning_rates(runs, critical, network_ids, edges)
        self.table["learning_rate"] = rates
        # A run relative to an edge that its case does not have takes no step.
        self.rates = np.nan_to_num(rates)
        self.table["critical_learning_rate"] = [critical.get(n, np.nan) for n in network_ids]
        if edges:
            self.table["edge_learning_rate"] = [edges.get(run["run_id"], np.nan) for run in runs]
        self.dtype = np.dtype(parameter_dtype(self.shared["precision"]))
        self.augmentation = read_augmentation(settings.get("augmentation"))
        self.rate_schedule = read_rate_schedule(settings.get("schedule"))
        self.schedules = [schedule_of_run(self.rate_schedule, run) for run in runs]
        if self.rate_schedule.kind == "final_rate":
            self.table["final_learning_rate"] = [s.learning_rate for s in self.schedules]
            self.table["final_steps"] = [float(s.extra_steps) for s in self.schedules]
        decays = resolve_weight_decays(runs, time_constants, self.rate_schedule)
        is_relative = self.table["weight_decay_from"].notna()
        self.table["relative_weight_decay"] = self.table["weight_decay"].where(is_relative)
        self.table["weight_decay"] = decays
        self.batch_size = dataset.batch_size(self.shared["batch_size"])
        self.full_batch = dataset.is_full_batch(self.batch_size)
        if dataset.stream is not None and "epochs" in settings["stopping"]:
            raise InputError(
                f"stopping.epochs: the dataset {dataset.name!r} has no end; allowed: num_steps, "
                "physical_time, decay_time"
            )
        self.steps_per_epoch = dataset.num_train // self.batch_size
        self.num_steps = np.array(
            [
                planned_steps(
                    stopping_of_run(settings["stopping"], run),
                    rate,
                    decay,
                    self.steps_per_epoch,
                    schedule,
                )
                if rate > 0
                else 1 + schedule.extra_steps
                for run, rate, decay, schedule in zip(
                    runs, self.rates, decays, self.schedules, strict=True
                )
            ]
        )
        final_steps = np.array([schedule.extra_steps for schedule in self.schedules])
        self.base_steps = self.num_steps - final_steps
        # Measured besides: where a run goes on at its final rate; nowhere in other runs.
        self.ends_of_budgets = np.where(final_steps > 0, self.base_steps, -1)
        self.last_step = int(self.num_steps.max())
        self.platform = self.mesh.devices.flat[0].platform
        not_of_shape = (*VECTORISED_HYPERPARAMETERS, "run_id")
        self.shape = tuple(sorted((k, v) for k, v in runs[0].items() if k not in not_of_shape))
        self.networks = functools.partial(
            _network, self.shape, tuple(dataset.input_shape), dataset.num_outputs
        )
        # For measurements, one run after the other.
        self.network = self.networks(single_run_convolution())
        shapes = jax.eval_shape(self.network.init, jax.random.key(0))
        self.has_convolutions = any(leaf.ndim == 4 for leaf in jax.tree.leaves(shapes))
        self.is_reachable = self._correlate_heads() & (self.rates > 0)
        self.rules = self._rules()
        self.hyper, self.seeds = self._hyperparameters()

    def _correlate_heads(self) -> NDArray[np.bool_]:
        """Choose the second heads that give the logits asked for; (runs,) whether there is one."""
        table = self.table
        asked = table["initial_logit_norm"].notna().to_numpy()
        is_reachable = np.ones(len(table), dtype=bool)
        if not asked.any():
            return is_reachable
        inputs, _ = self.dataset.evaluation_set(
            "train", self.settings["evaluation"].get("num_train"), self.dtype
        )
        seeds = np.unique(table["seed"].to_numpy(np.uint32)[asked])
        moments = head_moments(
            self.network,
            initial_parameters(self.network, seeds),
            jnp.asarray(seeds),
            jnp.asarray(inputs),
            self.chunk,
        )
        of_seed = dict(zip(seeds, np.asarray(moments, np.float64), strict=True))
        correlations = table["head_correlation"].to_numpy(np.float64, copy=True)
        for row, run in enumerate(table.to_dict("records")):
            if not asked[row]:
                continue
            # The logits are multiplied by β and, as all outputs are, divided by the richness.
            norm = run["initial_logit_norm"] * run["richness"] / run["inverse_temperature"]
            own, fresh, product = of_seed[run["seed"]]
            correlation, largest = correlation_of_norm(own, fresh, product, norm)
            is_reachable[row], correlations[row] = norm <= largest, correlation
        table["head_correlation"] = correlations
        return is_reachable

    def _rules(self) -> Rules:
        shared, settings = self.shared, self.settings
        stopping_accuracy = settings["stopping"].get("train_accuracy")
        # A batch of a part of the data, or of changed data, says too little: measurements decide.
        by_batch = self.full_batch and not self.augmentation.changes_anything
        self.stopping_accuracy = None if by_batch else stopping_accuracy
        measured = settings["measurements"]
        twin = measured.get("linearized_distance") or measured.get("kernel_change")
        if measured.get("timescales", {}).get("linearized"):
            twin = {"from_step": 0}
        return Rules(
            loss=LossFunction(shared["loss"], shared["loss_normalisation"], shared["label_shift"]),
            optimizer=OptimizerRule(
                name=shared["optimizer"],
                has_momentum=bool((self.table["momentum"] > 0).any()),
                weight_decay_rule=shared["weight_decay_rule"],
                auto_l2_interval=shared["auto_l2_interval"],
            ),
            rate_schedule=self.rate_schedule,
            parametrisation=shared["parametrisation"],
            width=shared.get("width", 1),
            frozen=self._frozen_kind(),
            divergence_factor=settings["divergence_factor"],
            train_accuracy=stopping_accuracy if by_batch else None,
            is_linearized=shared["linearize_at"] is not None,
            twin_from=None if twin is None else twin["from_step"],
        )

    def _frozen_kind(self) -> str | None:
        if self.shared["centered"]:
            return "centered"
        return "second_head" if self.table["head_correlation"].notna().all() else None

    def _hyperparameters(self) -> tuple[RunHyperparameters, jax.Array]:
        """Hyperparameters and seeds of the runs, padded to a multiple of the devices."""
        frozen: dict[tuple[int, float], int] = {}
        index = []
        for run in self.table.to_dict("records"):
            correlation = run["head_correlation"] if self.rules.frozen == "second_head" else 0.0
            index.append(frozen.setdefault((run["seed"], correlation), len(frozen)))
        # A run of each: the frozen network is what that run starts from.
        self.frozen_runs = np.array([index.index(i) for i in range(len(frozen))])
        self.frozen_seeds = np.array([seed for seed, _ in frozen], np.uint32)
        self.frozen_correlations = np.array([c for _, c in frozen])
        names = (
            "momentum",
            "weight_decay",
            "first_moment_decay",
            "second_moment_decay",
            "epsilon",
            "richness",
            "inverse_temperature",
        )
        values = {
            "learning_rate": self.rates.astype(self.dtype),
            "num_steps": self.num_steps.astype(np.int32),
            "base_steps": self.base_steps.astype(np.int32),
            "final_learning_rate": np.array([s.learning_rate for s in self.schedules], self.dtype),
            "linearize_at": self.table["linearize_at"].fillna(0).to_numpy(np.int32),
            "frozen": np.array(index, np.int32),
            **{name: self.table[name].to_numpy(self.dtype) for name in names},
        }
        hyper = RunHyperparameters(**{name: jnp.asarray(v) for name, v in values.items()})
        # Groups of a forced size are filled up too.
        group = (self.execution.lowering or {}).get("runs_together", 1)
        group = 1 if group == "all" else min(group, math.ceil(len(self.table) / self.mesh.size))
        seeds = self.table["seed"].to_numpy(np.uint32)
        padded = pad_runs((hyper, seeds), self.mesh.size * group)
        placed: tuple[RunHyperparameters, jax.Array] = jax.device_put(
            padded, run_sharding(self.mesh)
        )
        return placed

    @property
    def runs_per_device(self) -> int:
        """Runs on each device, padding included."""
        return int(self.seeds.shape[0]) // self.mesh.size

    def runs_that_fit(self) -> int:
        """How many of the runs one program can hold, by an estimate of its memory."""
        if self.execution.most_runs is not None:
            return len(self.table)
        state, hyper, *batch = self.step_arguments
        available = device_memory(self.execution.jobs)
        step = functools.partial(step_run, self.network, self.rules)
        # Small runs need no compiled program to tell that they fit.
        if intermediate_bytes(step, state, hyper, *batch) * len(self.table) < available / 2:
            return len(self.table)
        estimate = estimate_memory(step, (state, hyper), tuple(batch))
        return runs_per_program(len(self.table), estimate, available, self.mesh.size)

    def train(self) -> TrainedShard:
        """Train the runs of this program to their ends, from the last checkpoint if any."""
        with open_batches(
            self.dataset,
            self.batch_size,
            self.settings["data_seed"],
            self.dtype,
            augmentation=self.augmentation,
            last_step=self.last_step,
            sharding=replicated_sharding(self.mesh),
        ) as source:
            self.source = source
            self.block: tuple[int, Batches] | None = None
            states = self.start()
            self.frozen = None
            if self.rules.frozen is not None:
                self.frozen = frozen_parameters(
                    self.network,
                    self.rules.frozen,
                    jax.tree.map(lambda a: a[self.frozen_runs], states.parameters),
                    jnp.asarray(self.frozen_seeds),
                    jnp.asarray(self.frozen_correlations, self.dtype),
                    jnp.asarray(spread_of(self.frozen_correlations), self.dtype),
                )
            self.lowering = self.choose_lowering()
            self.measurements = self.prepare_measurements()
            self.shared_stops = np.concatenate([m.steps for m in self.measurements])
            return self.train_from(states, self.open_checkpoints())

    def open_checkpoints(self) -> CheckpointFolder | None:
        folder = self.execution.checkpoint_folder
        if folder is None:
            return None
        identity = make_identity(
            settings=dict(self.settings),
            # As resolved: a learning rate in units of 2/λ₀ depends on what was measured before.
            runs=self.table.astype(object).where(self.table.notna(), None).to_dict("records"),
            version=self.execution.version,
            lowering=asdict(self.lowering),
            devices=[self.platform, self.mesh.size],
        )
        name = content_hash(list(self.table["run_id"]))
        return CheckpointFolder(folder / name, identity, self.execution.checkpoint_seconds)

    def train_from(self, states: RunState, checkpoints: CheckpointFolder | None) -> TrainedShard:
        # A tree of what changes while training, and the record so far.
        self.was_running = np.ones(len(self.table), dtype=bool)
        self.divergent_loss = np.full(len(self.table), np.inf)
        self.history: list[pd.DataFrame] = []
        step = 0
        saved = None if checkpoints is None else checkpoints.load(self.tree(states))
        if saved is not None:
            if saved.scalars["finished"]:
                return TrainedShard(saved.tables["runs"], saved.tables["history"])
            step, states = saved.step, self.restore(saved)
            logger.info("training %s: going on from step %d", self.settings["experiment"], step)
        else:
            states = self.measure(states, 0)
        stops = np.unique([*self.shared_stops, *self.ends_of_budgets, self.last_step])
        seconds_per_step = 0.0
        with self.progress(step, states) as progress:
            while (np.asarray(states.status) == RUNNING).any():
                stop = int(stops[np.searchsorted(stops, step, side="right")])
                while step < stop and (np.asarray(states.status) == RUNNING).any():
                    began = time.perf_counter()
                    length = stop - step
                    if seconds_per_step > 0:
                        length = min(length, max(1, int(_SECONDS_PER_SEGMENT / seconds_per_step)))
                    else:
                        length = min(length, 8)  # until its speed is known
                    segment = self.source.segment(step, length)
                    states = self.advance(states, segment)
                    step += segment.num_steps
                    alive = int((np.asarray(states.status) == RUNNING).sum())
                    seconds_per_step = (time.perf_counter() - began) / segment.num_steps
                    progress.update(step, alive, int(np.asarray(states.step).sum()))
                    # Where a measurement is due it comes first: what is saved must have it.
                    if step < stop and alive:
                        self.save_if_due(checkpoints, states, step)
                states = self.measure(states, step)
                self.save_if_due(checkpoints, states, step)
        # A run that ends where it has just been measured is recorded once more at that step, then
        # with all that is measured at its end.
        history = pd.concat(self.history, ignore_index=True)
        history = history.drop_duplicates(["run_id", "step"], keep="last", ignore_index=True)
        shard = TrainedShard(self.summarise(states, history), history)
        if checkpoints is not None:
            tables = {"runs": shard.runs, "history": shard.history}
            checkpoints.save(step, self.tree(states), tables, {"finished": True})
        return shard

    def start(self) -> RunState:
        """All runs before their first step; those that fill up the devices have ended."""
        states: RunState = start_runs(self.rules, self.hyper, self.initial_parameters())
        is_padding = np.arange(len(self.seeds)) >= len(self.table)
        status = np.where(is_padding, FINISHED, np.asarray(states.status)).astype(np.int32)
        status[: len(self.table)][~self.is_reachable] = UNREACHABLE
        states = states._replace(status=jnp.asarray(status))
        placed: RunState = jax.device_put(states, run_sharding(self.mesh))
        return placed

    def initial_parameters(self) -> Any:
        parameters = initial_parameters(self.network, np.asarray(self.seeds))
        return jax.device_put(parameters, run_sharding(self.mesh))

    def tree(self, states: RunState) -> dict[str, Any]:
        return {
            "states": states,
            "was_running": self.was_running,
            "divergent_loss": self.divergent_loss,
        }

    def restore(self, saved: Checkpoint) -> RunState:
        self.was_running = np.asarray(saved.tree["was_running"])
        self.divergent_loss = np.asarray(saved.tree["divergent_loss"])
        self.history = [saved.tables["history"]]
        states: RunState = jax.device_put(saved.tree["states"], run_sharding(self.mesh))
        return states

    def save_if_due(
        self, checkpoints: CheckpointFolder | None, states: RunState, step: int
    ) -> None:
        requested = self.interruption.requested
        saved = False
        if checkpoints is not None and (requested or checkpoints.due()):
            tables = {"history": pd.concat(self.history, ignore_index=True)}
            saved = checkpoints.save(step, self.tree(states), tables, {"finished": False})
        if requested:
            raise Interrupted(step, saved)

    def advance(self, states: RunState, segment: Segment) -> RunState:
        batches = self.batches(segment)
        network = self.networks(self.lowering.convolution)
        if self.lowering.loop == "stepwise":
            return advance_stepwise(
                network,
                self.rules,
                states,
                self.hyper,
                batches,
                segment.first_row,
                segment.num_steps,
            )
        advanced: RunState = advance(
            network,
            self.rules,
            self.lowering,
            self.mesh,
            states,
            self.hyper,
            batches,
            jnp.asarray(segment.first_row, jnp.int32),
            jnp.asarray(segment.num_steps, jnp.int32),
        )
        return advanced

    def batches(self, segment: Segment) -> Batches:
        """The segment's block of batches, with the frozen networks' outputs, computed once."""
        if self.block is None or self.block[0] != segment.block:
            rows, batch = segment.targets.shape[:2]
            offsets = self.offsets(segment.inputs.reshape(rows * batch, *segment.inputs.shape[2:]))
            if offsets is not None:
                offsets = offsets.reshape(len(offsets), rows, batch, -1)
            self.block = (segment.block, Batches(segment.inputs, segment.targets, offsets))
        return self.block[1]

    def offsets(self, inputs: jax.Array, chunk: int | None = None) -> jax.Array | None:
        """Outputs of the frozen networks, from as many samples at once as the run's own."""
        if self.rules.frozen is None:
            return None
        outputs: jax.Array = frozen_outputs(
            self.network, self.rules.frozen, self.frozen, inputs, chunk or self.chunk
        )
        return outputs

    @property
    def chunk(self) -> int:
        """Samples whose outputs are computed at once; as trained where layers look at the batch."""
        size: int = self.batch_size
        if self.shared.get("batch_norm"):
            return size
        return (
            max(size, _EVALUATION_CHUNK_OF_IMAGES) if self.has_convolutions else _EVALUATION_CHUNK
        )

    def choose_lowering(self) -> Lowering:
        forced = dict(self.execution.lowering or {})
        if "runs_together" in forced:
            wanted = forced["runs_together"]
            forced["runs_together"] = (
                self.runs_per_device if wanted == "all" else min(wanted, self.runs_per_device)
            )
        offered = candidate_lowerings(
            self.platform,
            self.runs_per_device,
            self.mesh.size,
            self.has_convolutions,
            is_user_model(self.shared["model"]),
        )
        candidates = [
            candidate
            for candidate in offered
            if all(getattr(candidate, key) == value for key, value in forced.items())
        ] or [replace(offered[0], **forced)]
        flop = float(self.num_steps.sum()) * self.flop_per_step
        if len(candidates) == 1 or not is_worth_a_trial(self.platform, flop):
            return candidates[0]
        description = {
            "network": dict(self.shape),
            "input_shape": list(self.dataset.input_shape),
            "runs_per_device": self.runs_per_device,
            "devices": [str(self.mesh.devices.flat[0].device_kind), self.mesh.size],
            "jax": jax.__version__,
            "forced": forced,
        }
        return choose_lowering(
            candidates, self.seconds_per_step, self.execution.cache_folder, description
        )

    def seconds_per_step(self, lowering: Lowering) -> float:
        """Time that the runs take for a step under a lowering, at rates of zero: none diverges."""
        network = self.networks(lowering.convolution)
        hyper = self.hyper._replace(
            learning_rate=jnp.zeros_like(self.hyper.learning_rate),
            num_steps=jnp.full_like(self.hyper.num_steps, np.iinfo(np.int32).max),
            base_steps=jnp.full_like(self.hyper.base_steps, np.iinfo(np.int32).max),
        )
        states: RunState = start_runs(self.rules, hyper, self.initial_parameters())
        # Placed as a step leaves them: the second call would otherwise compile once more.
        states = jax.device_put(states, run_sharding(self.mesh))
        batches = self.batches(self.source.segment(0, 1))

        def take(current: RunState, count: int) -> RunState:
            if lowering.loop == "stepwise":
                return advance_stepwise(network, self.rules, current, hyper, batches, 0, count)
            first, steps = jnp.zeros((), jnp.int32), jnp.asarray(count, jnp.int32)
            advanced: RunState = advance(
                network, self.rules, lowering, self.mesh, current, hyper, batches, first, steps
            )
            return advanced

        states = jax.block_until_ready(take(states, 1))  # compiles
        count, seconds = 1, 0.0
        while True:
            began = time.perf_counter()
            states = jax.block_until_ready(take(states, count))
            seconds = time.perf_counter() - began
            if not (np.asarray(states.status) == RUNNING).all():
                return math.inf  # a run ended at once: the time says nothing
            if seconds > _SECONDS_PER_TRIAL or count >= 1024:
                return seconds / count
            count *= 4

    @functools.cached_property
    def step_arguments(self) -> tuple[Any, ...]:
        """Shapes of what `step_run` takes for one run: state, hyperparameters and batch."""
        hyper = jax.tree.map(lambda a: jax.ShapeDtypeStruct((), a.dtype), self.hyper)
        parameters = jax.eval_shape(self.network.init, jax.random.key(0))
        start = functools.partial(start_run, self.rules)
        batch, outputs = (self.batch_size,), (self.batch_size, self.dataset.num_outputs)
        offsets = None
        if self.rules.frozen is not None:
            offsets = jax.ShapeDtypeStruct((len(self.frozen_seeds), *outputs), self.dtype)
        return (
            jax.eval_shape(start, hyper, parameters),
            hyper,
            jax.ShapeDtypeStruct((*batch, *self.dataset.input_shape), self.dtype),
            jax.ShapeDtypeStruct(outputs, self.dtype),
            offsets,
        )

    @functools.cached_property
    def flop_per_step(self) -> float:
        """Floating-point operations of the matrix products of one step of one run."""
        # The products are the same however convolutions are computed.
        step = functools.partial(step_run, self.networks("patches"), self.rules)
        return matrix_product_flop(step, *self.step_arguments)

    def progress(self, step: int, states: RunState) -> Progress:
        return Progress(
            self.settings["experiment"],
            self.last_step,
            len(self.table),
            self.flop_per_step,
            first_step=step,
            first_run_steps=int(np.asarray(states.step).sum()),
        )

    def prepare_measurements(self) -> list["_Scheduled"]:
        """All that is measured, with its steps; losses and accuracies come first."""
        asked, evaluation = self.settings["measurements"], self.settings["evaluation"]
        samples = {
            split: self.samples(*self.dataset.evaluation_set(split, count, self.dtype))
            for split, count in (
                ("train", evaluation.get("num_train")),
                ("test", evaluation.get("num_test")),
            )
        }
        found = [
            Measurement(asked, measurements.losses(self.network, self.rules, self.chunk), samples)
        ]
        if "ntk_top_eigenvalue" in asked:
            batch = self.probe(self.settings["curvature"]["batch_size"])
            steps = self.settings["curvature"]["num_lanczos_steps"]
            measure = measurements.top_kernel_eigenvalue(self.network, self.shape, steps)
            found.append(Measurement(asked["ntk_top_eigenvalue"], measure, {"batch": batch}))
        if "hessian" in asked:
            options = asked["hessian"]
            size = options["batch_size"]
            choose = self.probe if options["split"] == "train" else self.test_samples
            batch = choose(size, chunk=size)
            measure = measurements.hessian(
                self.network, self.rules, options["num_eigenvalues"], options["num_lanczos_steps"]
            )
            found.append(Measurement(options, measure, {"batch": batch}))
        if "kernel_alignment" in asked:
            options = asked["kernel_alignment"]
            measure = measurements.alignment(
                self.network, tuple(options["kernels"]), bool(self.shared.get("batch_norm"))
            )
            batch = self.test_samples(options["num_samples"])
            found.append(Measurement(options, measure, {"batch": batch}))
        if "kernel_modes" in asked:
            options = asked["kernel_modes"]
            modes = self.dataset.evaluation_set("train", options["num_samples"], self.dtype)
            measure = measurements.kernel_modes(self.network, bool(self.shared.get("batch_norm")))
            found.append(Measurement(options, measure, {"batch": self.samples(*modes)}))
        if "kernel_change" in asked:
            options = asked["kernel_change"]
            some = self.dataset.evaluation_set("train", options["num_samples"], self.dtype)
            measure = measurements.kernel_change(self.network, bool(self.shared.get("batch_norm")))
            found.append(Measurement(options, measure, {"train": self.samples(*some)}))
        if "homogeneity" in asked:
            options = asked["homogeneity"]
            batch = self.test_samples(options["num_samples"])
            found.append(
                Measurement(options, measurements.homogeneity(self.network), {"batch": batch})
            )
        if "timescales" in asked:
            options = asked["timescales"]
            measure = measurements.timescales(
                self.network,
                self.rules,
                self.shape,
                options["infinite_width"],
                options["shuffled_labels"],
                self.chunk,
            )
            early = self.dataset.evaluation_set("train", options["num_samples"], self.dtype)
            found.append(Measurement(options, measure, {"train": self.samples(*early)}))
        if "logit_norm" in asked:
            measure = measurements.logit_norm(self.network, self.chunk)
            found.append(Measurement(asked["logit_norm"], measure, {"train": samples["train"]}))
        if "weight_movement" in asked:
            measure = measurements.movement(self.network)
            found.append(Measurement(asked["weight_movement"], measure, {}))
        for name, make in (
            ("outputs", measurements.held_out_outputs),
            ("true_class_outputs", measurements.true_class_outputs),
            ("feature_movement", measurements.feature_movement),
            ("linearized_distance", measurements.twin_distance),
        ):
            if name in asked:
                points = {"points": self.test_samples(asked[name]["num_samples"])}
                found.append(Measurement(asked[name], make(self.network, self.chunk), points))
        return [_Scheduled(m, measurement_steps(m.schedule, self.last_step)) for m in found]

    def probe(self, batch_size: int, chunk: int | None = None) -> Samples:
        """The training samples that curvature is measured on."""
        (indices,) = probe_indices(
            self.dataset.num_train, batch_size, 1, self.settings["data_seed"]
        )
        return self.samples(
            self.dataset.inputs_at(indices, self.dtype),
            self.dataset.targets_at(indices, self.dtype),
            chunk,
        )

    def samples(self, inputs: Any, targets: Any, chunk: int | None = None) -> Samples:
        replicated = replicated_sharding(self.mesh)
        inputs, targets = jax.device_put((inputs, targets), replicated)
        return Samples(inputs, targets, self.offsets(inputs, chunk))

    def test_samples(self, count: int, chunk: int | None = None) -> Samples:
        """The first test samples."""
        return self.samples(*self.dataset.evaluation_set("test", count, self.dtype), chunk)

    def measure(self, states: RunState, step: int) -> RunState:
        """Record the runs that were still running; each run's last row is that of its own end."""
        has_ended = np.asarray(states.status)[: len(self.table)] != RUNNING
        budget_ends = self.ends_of_budgets == step
        # What a run is trained beside must not change its record.
        is_its_step = has_ended | budget_ends | np.isin(step, self.shared_stops)
        was_running = self.was_running & is_its_step
        base, *others = self.measurements
        values = self.measured(base, states, was_running)
        train_loss = values["train_loss"]
        if step == 0:
            # The first losses fix which losses count as divergent from then on.
            self.divergent_loss = self.rules.divergence_factor * train_loss
        status = np.array(states.status)[: len(self.table)]
        # The last update of a run is followed by no step that would see it diverge.
        diverged = ~np.isfinite(train_loss) | (train_loss > self.divergent_loss)
        status[was_running & diverged] = DIVERGED
        if self.stopping_accuracy is not None:
            reached = values["train_accuracy"] >= self.stopping_accuracy
            status[(status == RUNNING) & reached] = STOPPED
        for scheduled in others:
            is_due = bool(np.isin(step, scheduled.steps))
            wanted = was_running & ((status != RUNNING) | is_due | budget_ends)
            values |= self.measured(scheduled, states, wanted)
        steps = np.asarray(states.step, dtype=np.int64)[: len(self.table)]
        rows = pd.DataFrame(
            {
                "experiment": self.settings["experiment"],
                "run_id": self.table["run_id"],
                "step": steps,
                "physical_time": [
                    float(physical_time(schedule, taken, int(planned), rate))
                    for taken, planned, rate, schedule in zip(
                        steps, self.num_steps, self.rates, self.schedules, strict=True
                    )
                ],
                **values,
            }
        )
        self.history.append(rows[was_running])
        self.was_running = status == RUNNING
        padded = np.array(states.status)
        padded[: len(self.table)] = status
        return states._replace(status=jax.device_put(padded, run_sharding(self.mesh)))

    def measured(
        self, scheduled: "_Scheduled", states: RunState, wanted: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """(runs,) values by name: NaN, or None for lists of values, where not wanted."""
        if not wanted.any() and scheduled is not self.measurements[0]:
            return {}
        members = Member(states, self.hyper, self.seeds)
        padded = np.zeros(len(self.seeds), dtype=bool)
        padded[: len(wanted)] = wanted
        # Losses take as much memory as training; other measurements one run at a time.
        is_losses = scheduled is self.measurements[0]
        group = self.lowering.runs_together if is_losses and self.platform != "cpu" else 1
        with jax.default_matmul_precision("highest"):
            values = measure_runs(
                scheduled.measurement.measure,
                self.mesh,
                group,
                members,
                jax.device_put(padded, run_sharding(self.mesh)),
                scheduled.measurement.samples,
            )
        arrays = {
            name: np.asarray(value, np.float64)[: len(self.table)] for name, value in values.items()
        }
        return {
            name: array
            if array.ndim == 1
            else [row if want else None for row, want in zip(array, wanted, strict=True)]
            for name, array in arrays.items()
        }

    def summarise(self, states: RunState, history: pd.DataFrame) -> pd.DataFrame:
        steps, status, peak = (
            np.asarray(values)[: len(self.table)]
            for values in (states.step, states.status, states.peak_loss)
        )
        table = self.table.drop(columns="learning_rate_relative_to")
        table.insert(0, "experiment", self.settings["experiment"])
        table["relative_learning_rate"] = table["learning_rate"] / table["critical_learning_rate"]
        table["status"] = [STATUS_NAMES[code] for code in status]
        table["steps"] = steps.astype(np.int64)
        table["steps_per_epoch"] = self.steps_per_epoch
        table["lowering"] = self.describe_lowering()
        # Losses of small batches scatter; only where the batch is all the data do they compare
        # with the loss that the run started from.
        return summarise_runs(
            table, history, peak.astype(np.float64), peak_by_batch=self.full_batch
        )

    def describe_lowering(self) -> str:
        lowering = self.lowering
        parts = [f"{self.platform} x {self.mesh.size}", f"{lowering.runs_together} together"]
        parts += [lowering.loop] + ([f"unroll {lowering.unroll}"] if lowering.unroll > 1 else [])
        parts += [lowering.convolution] if self.has_convolutions else []
        return ", ".join(parts)


@dataclass(frozen=True)
class _Scheduled:
    measurement: Measurement
    steps: NDArray[np.int64]
