"""Train the denoiser of a generated dataset."""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from sgdphases.checkpoints import CheckpointFolder, make_identity
from sgdphases.datasets.loading import Dataset
from sgdphases.devices import is_out_of_memory
from sgdphases.diffusion.model_file import TrainedDenoiser
from sgdphases.diffusion.process import Velocity, diffuse, linear_schedule, velocity_of
from sgdphases.diffusion.unet import Denoiser, build_unet
from sgdphases.errors import InputError
from sgdphases.interruption import Interrupted, saving_on_signal
from sgdphases.models.network import Parameters
from sgdphases.progress import Progress, matrix_product_flop

logger = logging.getLogger(__name__)

# The loss is read from the device, and signals are seen, once in so many steps.
_STEPS_PER_SEGMENT = 20
_LARGEST_GRADIENT = 1.0
# Part of the training in which the learning rate rises.
_WARMUP = 0.05


class TrainingState(NamedTuple):
    """What a step changes.

    Attributes:
        parameters: The network's.
        averaged: Their moving average, which is what samples are drawn with.
        optimizer_state: Adam's.
        loss_sum: Sum of the losses since it was last read.
    """

    parameters: Parameters
    averaged: Parameters
    optimizer_state: Any
    loss_sum: jax.Array


def train_denoiser(
    name: str,
    definition: Mapping[str, Any],
    base: Dataset,
    checkpoint_folder: Path | None = None,
    checkpoint_seconds: float = 60.0,
    version: str = "",
) -> tuple[TrainedDenoiser, pd.DataFrame]:
    r"""Train a network to tell the noise in images of the base dataset.

    .. math:: L = E \| v - v_\theta(u, t, c) \|^2 / d

    over images and their classes (x₀, c), drawn with replacement, steps t and noise ε; u and v
    stand for x_t and ε, see `process.Velocity`. The class is left out with probability
    `label_dropout`. Pixels are on [0, 1]. Adam, a learning rate that rises, then falls as a cosine,
    gradients cut at norm 1. What is drawn at a step depends on the seed and the step alone.

    Args:
        name: The generated dataset's name.
        definition: Its resolved definition.
        base: The base dataset, with 8-bit images.
        checkpoint_folder: Where checkpoints are kept, None for none.
        checkpoint_seconds: Seconds between them.
        version: Version of the code; a checkpoint of another one is not used.

    Returns:
        The network with averaged parameters, and its mean loss up to each of some `step`s.

    Raises:
        InputError: The base dataset is not one of 8-bit images with classes, the numbers do not fit
            it, or training diverges.
        Interrupted: A signal asked to end; what has been done is saved.

    Reference:
        Ho et al. 2020, algorithm 1; Ho and Salimans 2022, algorithm 1. The loss weighs steps
        evenly in v, Ho et al. in ε.
    """
    check_base(name, definition, base)
    settings = definition["training"]
    num_steps, num_classes = settings["num_steps"], base.num_outputs
    scale = float(base.manifest["normalisation"]["scale"])
    mean, deviation = (scale * base.manifest["train_inputs_raw"][key] for key in ("mean", "std"))
    velocity = velocity_of(linear_schedule(**definition["process"]), mean, deviation)
    denoiser = build_unet(definition["network"], base.input_shape, num_classes)
    step = make_training_step(denoiser, velocity, definition, num_classes, scale)
    images = jax.device_put(np.asarray(base.train_inputs))
    labels = jax.device_put(np.asarray(base.train_labels))
    checkpoints = _open_checkpoints(
        checkpoint_folder, checkpoint_seconds, definition, base, version
    )
    state, first_step, losses = _start(denoiser, definition, checkpoints)
    flop = _flop_per_step(denoiser, state.parameters, settings["batch_size"], base.input_shape)
    with (
        saving_on_signal() as interruption,
        Progress(name, num_steps, 0, flop, first_step, first_step) as progress,
    ):
        for i in range(first_step, num_steps):
            try:
                state = step(state, np.int32(i), images, labels)
                is_segment = (i + 1) % _STEPS_PER_SEGMENT == 0 or i + 1 == num_steps
                if not is_segment:
                    continue
                total = float(state.loss_sum)
            except (RuntimeError, ValueError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise InputError(
                    f"dataset {name}: training does not fit into the memory of the device; "
                    "allowed: a smaller training.batch_size or network.width"
                ) from None
            state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
            if not math.isfinite(total):
                raise InputError(
                    f"dataset {name}: training diverged before step {i + 1}; allowed: a smaller "
                    "training.learning_rate"
                )
            losses.append((i + 1, total / (i % _STEPS_PER_SEGMENT + 1)))
            progress.update(i + 1, 0, i + 1)
            is_asked, saved = interruption.requested, False
            if checkpoints and (is_asked or checkpoints.due()):
                table = _loss_table(losses)
                saved = checkpoints.save(i + 1, state, {"losses": table}, {})
            if is_asked and i + 1 < num_steps:
                raise Interrupted(i + 1, saved)
    parameters = jax.device_get(state.averaged)
    model = TrainedDenoiser(
        network=dict(definition["network"]),
        image_shape=tuple(base.input_shape),
        num_classes=num_classes,
        scale=scale,
        mean=mean,
        deviation=deviation,
        parameters=parameters,
    )
    return model, _loss_table(losses)


def check_base(name: str, definition: Mapping[str, Any], base: Dataset) -> None:
    """Refuse a base dataset that nothing can be generated from, before hours are spent on it.

    Raises:
        InputError: It is not one of 8-bit images with classes, or the images asked for cannot be
            spread evenly over its classes.
    """
    values = base.manifest["arrays"]["train_inputs"]["dtype"]
    if base.train_labels is None or len(base.input_shape) != 3 or values != "uint8":
        kind = "labels" if base.train_labels is not None else "no labels"
        raise InputError(
            f"dataset {name}: base: {base.name!r} has samples of shape {base.input_shape}, "
            f"{values} values and {kind}; allowed: 8-bit images (height, width, channels) with "
            "class labels"
        )
    if base.manifest["train_inputs_raw"]["std"] == 0:
        raise InputError(f"dataset {name}: base: all pixels of {base.name!r} are equal")
    if definition["num_images"] % base.num_outputs:
        raise InputError(
            f"dataset {name}: num_images: {definition['num_images']}; allowed: a multiple of "
            f"{base.num_outputs}, the number of classes of {base.name!r}"
        )


def make_training_step(
    denoiser: Denoiser,
    velocity: Velocity,
    definition: Mapping[str, Any],
    num_classes: int,
    scale: float,
) -> Callable[[TrainingState, Any, jax.Array, jax.Array], TrainingState]:
    """A step of training as a compiled program, called as step(state, index, images, labels)."""
    settings, process = definition["training"], definition["process"]
    schedule = linear_schedule(**process)
    signal, spread = (jnp.asarray(x, jnp.float32) for x in (schedule.signal, schedule.noise))
    velocity = Velocity(*(jnp.asarray(x, jnp.float32) for x in velocity))
    optimizer = _optimizer(settings)
    batch_size = settings["batch_size"]

    def loss_of(
        parameters: Parameters, index: jax.Array, images: jax.Array, labels: jax.Array
    ) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(definition["seed"]), index)
        sample_key, step_key, noise_key, drop_key = jax.random.split(key, 4)
        chosen = jax.random.randint(sample_key, (batch_size,), 0, len(images))
        steps = jax.random.randint(step_key, (batch_size,), 1, schedule.num_steps + 1)
        clean = images[chosen].astype(jnp.float32) * scale
        noise = jax.random.normal(noise_key, clean.shape)
        classes = drop_labels(drop_key, labels[chosen], settings["label_dropout"], num_classes)
        read = velocity.read(diffuse(clean, noise, signal[steps], spread[steps]), steps)
        predicted = denoiser.apply(parameters, read, steps, classes)
        return jnp.square(predicted - velocity.target(read, noise, steps)).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainingState, index: jax.Array, images: jax.Array, labels: jax.Array
    ) -> TrainingState:
        loss, gradient = jax.value_and_grad(loss_of)(state.parameters, index, images, labels)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state)
        parameters = optax.apply_updates(state.parameters, updates)
        # At first the average forgets faster, or it would remember the start.
        decay = jnp.minimum(settings["averaging_decay"], (1.0 + index) / (10.0 + index))
        averaged = optax.incremental_update(parameters, state.averaged, 1 - decay)
        return TrainingState(parameters, averaged, optimizer_state, state.loss_sum + loss)

    return step


def drop_labels(
    key: jax.Array, labels: jax.Array, probability: float, num_classes: int
) -> jax.Array:
    """Labels, each replaced by `num_classes`, which stands for none, with some probability."""
    dropped = jax.random.bernoulli(key, probability, labels.shape)
    return jnp.where(dropped, num_classes, labels)


def _optimizer(settings: Mapping[str, Any]) -> optax.GradientTransformation:
    num_steps = settings["num_steps"]
    warmup = min(math.ceil(_WARMUP * num_steps), num_steps - 1)
    rate = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else settings["learning_rate"],
        settings["learning_rate"],
        warmup,
        num_steps,
    )
    return optax.chain(optax.clip_by_global_norm(_LARGEST_GRADIENT), optax.adam(rate))


def _start(
    denoiser: Denoiser, definition: Mapping[str, Any], checkpoints: CheckpointFolder | None
) -> tuple[TrainingState, int, list[tuple[int, float]]]:
    """State, step and losses to go on from: of the last checkpoint, or of the beginning."""

    def fresh() -> TrainingState:
        # Of the draws of the steps this key is none: those fold in a step.
        parameters = denoiser.init(jax.random.key(definition["seed"]))
        optimizer_state = _optimizer(definition["training"]).init(parameters)
        averaged = jax.tree.map(jnp.copy, parameters)
        return TrainingState(parameters, averaged, optimizer_state, jnp.zeros(()))

    found = checkpoints.load(jax.eval_shape(fresh)) if checkpoints else None
    if found is None:
        return jax.jit(fresh)(), 0, []
    losses = list(found.tables["losses"].itertuples(index=False, name=None))
    return jax.device_put(found.tree), found.step, losses


def _open_checkpoints(
    folder: Path | None,
    seconds: float,
    definition: Mapping[str, Any],
    base: Dataset,
    version: str,
) -> CheckpointFolder | None:
    if folder is None:
        return None
    parts = {key: definition[key] for key in ("network", "process", "training", "seed")}
    data = {array: entry["sha256"] for array, entry in base.manifest["arrays"].items()}
    return CheckpointFolder(folder, make_identity(**parts, data=data, version=version), seconds)


def _flop_per_step(
    denoiser: Denoiser, parameters: Parameters, batch_size: int, image_shape: tuple[int, ...]
) -> float:
    noisy = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    integers = jax.ShapeDtypeStruct((batch_size,), jnp.int32)

    def loss(parameters: Parameters, noisy: Any, steps: Any, classes: Any) -> jax.Array:
        return jnp.square(denoiser.apply(parameters, noisy, steps, classes)).mean()

    return matrix_product_flop(jax.value_and_grad(loss), parameters, noisy, integers, integers)


def _loss_table(losses: list[tuple[int, float]]) -> pd.DataFrame:
    return pd.DataFrame(losses, columns=["step", "loss"])
