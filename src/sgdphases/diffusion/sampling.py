"""Draw the images of a generated dataset, shard by shard."""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sgdphases.checkpoints import CheckpointFolder, make_identity
from sgdphases.devices import device_memory, intermediate_bytes
from sgdphases.diffusion.classes import shard_classes
from sgdphases.diffusion.model_file import TrainedDenoiser
from sgdphases.diffusion.process import (
    Schedule,
    StepBack,
    Velocity,
    clean_estimate,
    ddim_step,
    ddpm_step,
    guided,
    linear_schedule,
    sampling_steps,
    velocity_of,
)
from sgdphases.diffusion.unet import Denoiser
from sgdphases.interruption import Interrupted, saving_on_signal
from sgdphases.progress import Progress, matrix_product_flop

logger = logging.getLogger(__name__)

# Images drawn at once: as many as keep the device busy. On CPU they should stay in its cache.
_MOST_AT_ONCE = 2048
_MOST_AT_ONCE_ON_CPU = 64
_USABLE_SHARE = 0.7
_STEPS_PER_QUESTION = 10

Images = npt.NDArray[np.uint8]
NoisePredictor = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Move:
    """A step back and what it starts from.

    Attributes:
        step: t, from which it goes back.
        next_step: s, to which.
        signal: √ᾱ_t.
        spread: √(1 − ᾱ_t).
        back: The step back.
    """

    step: int
    next_step: int
    signal: float
    spread: float
    back: StepBack


def plan_moves(schedule: Schedule, settings: Mapping[str, Any]) -> list[Move]:
    """The steps of a sampler, from T to the data.

    Args:
        schedule: The schedule.
        settings: `sampler`: ddpm takes every step; ddim takes `num_steps`, with `eta`.

    Returns:
        The steps in order.
    """
    is_ddpm = settings["sampler"] == "ddpm"
    num_taken = schedule.num_steps if is_ddpm else settings["num_steps"]
    stops = sampling_steps(schedule.num_steps, num_taken).tolist()
    moves = []
    for step, next_step in itertools.pairwise(stops):
        if is_ddpm:
            back = ddpm_step(schedule, step)
        else:
            back = ddim_step(schedule, step, next_step, settings["eta"])
        signal, spread = float(schedule.signal[step]), float(schedule.noise[step])
        moves.append(Move(step, next_step, signal, spread, back))
    return moves


class Sampler:
    """Draws images with one network, however many at once.

    An image depends on its key and its class, and, but for rounding, on nothing that it is drawn
    together with.
    """

    def __init__(
        self,
        predict_noise: NoisePredictor,
        image_shape: tuple[int, ...],
        num_classes: int,
        moves: list[Move],
        guidance: float,
        limits: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        """Get the programs ready; they are compiled at their first call.

        Args:
            predict_noise: From parameters, x_t (images, ...), int steps and classes (images,) to ε.
            image_shape: (height, width, channels).
            num_classes: Number of classes, and the class that stands for none.
            moves: The steps, from `plan_moves`.
            guidance: Strength w of the guidance; at 0 the network is asked once per step.
            limits: Pixels of the estimated clean image are kept within these.
        """
        self._predict_noise = predict_noise
        self._shape = image_shape
        self._num_classes = num_classes
        self._moves = moves
        self._guidance = guidance
        self._limits = limits
        self._begin = jax.jit(self._draw)
        self._step = jax.jit(self.step_back, static_argnames="is_random", donate_argnums=1)

    @property
    def num_steps(self) -> int:
        """Steps that an image takes."""
        return len(self._moves)

    def example(self, keys: jax.Array, classes: jax.Array) -> tuple[Any, ...]:
        """Shapes of what `step_back` takes for one image, beside the parameters."""
        noisy = jax.ShapeDtypeStruct((1, *self._shape), jnp.float32)
        steps = jax.ShapeDtypeStruct((2,), jnp.int32)
        numbers = jax.ShapeDtypeStruct((5,), jnp.float32)
        return noisy, keys[:1], classes[:1], steps, numbers

    def images(
        self,
        parameters: Any,
        keys: jax.Array,
        classes: jax.Array,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> jax.Array | None:
        """Draw images.

        Args:
            parameters: The network's.
            keys: (images,) random keys.
            classes: int (images,).
            is_stopped: Asked now and then whether to give up.

        Returns:
            float32 (images, height, width, channels), without limits any value; None if given up.
        """
        noisy: jax.Array = self._begin(keys, jnp.int32(self._moves[0].step))
        for i, move in enumerate(self._moves):
            if i % _STEPS_PER_QUESTION == 0:
                # A device that lags behind must not be given all the steps at once.
                noisy.block_until_ready()
                if is_stopped():
                    return None
            numbers = np.array([move.signal, move.spread, *move.back], np.float32)
            steps = np.array([move.step, move.next_step], np.int32)
            is_random = move.back.deviation > 0
            noisy = self._step(
                parameters, noisy, keys, classes, steps, numbers, is_random=is_random
            )
        return noisy

    def step_back(
        self,
        parameters: Any,
        noisy: jax.Array,
        keys: jax.Array,
        classes: jax.Array,
        steps: jax.Array,
        numbers: jax.Array,
        is_random: bool,
    ) -> jax.Array:
        """One step back of all images, as a function that JAX can trace.

        Args:
            parameters: The network's.
            noisy: x_t, (images, height, width, channels).
            keys: (images,).
            classes: (images,).
            steps: t and s.
            numbers: √ᾱ_t, √(1 − ᾱ_t) and the three numbers of the step back.
            is_random: Whether noise is added.

        Returns:
            x_s.
        """
        signal, spread, of_clean, of_noisy, deviation = numbers
        noise = self._predict(parameters, noisy, classes, steps[0])
        clean = clean_estimate(noisy, noise, signal, spread)
        if self._limits is not None:
            clean = jnp.clip(clean, *self._limits)
        result: jax.Array = of_clean * clean + of_noisy * noisy
        if is_random:
            result = result + deviation * self._draw(keys, steps[1])
        return result

    def _predict(
        self, parameters: Any, noisy: jax.Array, classes: jax.Array, step: jax.Array
    ) -> jax.Array:
        count = len(noisy)
        if self._guidance == 0:
            return self._predict_noise(parameters, noisy, jnp.full(count, step), classes)
        # Both questions in one batch.
        none = jnp.full_like(classes, self._num_classes)
        answers = self._predict_noise(
            parameters,
            jnp.concatenate([noisy, noisy]),
            jnp.full(2 * count, step),
            jnp.concatenate([classes, none]),
        )
        noise: jax.Array = guided(answers[:count], answers[count:], self._guidance)
        return noise

    def _draw(self, keys: jax.Array, step: jax.Array) -> jax.Array:
        def of_image(key: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(key, step), self._shape)

        return jax.vmap(of_image)(keys)


def noise_predictor(denoiser: Denoiser, velocity: Velocity) -> NoisePredictor:
    """What a network of velocities says of the noise."""
    velocity = Velocity(*(jnp.asarray(values, jnp.float32) for values in velocity))

    def predict(
        parameters: Any, noisy: jax.Array, steps: jax.Array, classes: jax.Array
    ) -> jax.Array:
        read = velocity.read(noisy, steps)
        answer = denoiser.apply(parameters, read, steps, classes)
        noise: jax.Array = velocity.noise(read, answer, steps)
        return noise

    return predict


def shard_keys(seed: int, shard: int, size: int) -> jax.Array:
    """Random keys of a shard's images, (size,): they depend on the seed and the shard alone."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), shard)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))


def to_pixels(images: jax.Array, scale: float) -> jax.Array:
    """8-bit values of images on [0, 1]; values outside are cut off."""
    return jnp.rint(jnp.clip(images, 0.0, 1.0) / scale).astype(jnp.uint8)


def sample_shard(
    name: str,
    definition: Mapping[str, Any],
    model: TrainedDenoiser,
    shard: int,
    size: int,
    checkpoint_folder: Path | None = None,
    checkpoint_seconds: float = 60.0,
    version: str = "",
) -> Images:
    """Draw the images of one shard.

    Args:
        name: The dataset's name.
        definition: Its resolved definition: `seed`, `process`, `sampling`.
        model: The trained denoiser.
        shard: Number of the shard, from 0.
        size: Images per shard.
        checkpoint_folder: Where what is drawn is kept until all is, None for nowhere.
        checkpoint_seconds: Seconds between checkpoints.
        version: Version of the code; a checkpoint of another one is not used.

    Returns:
        uint8 (images, height, width, channels).

    Raises:
        Interrupted: A signal asked to end; what has been drawn is saved.
    """
    settings = definition["sampling"]
    schedule = linear_schedule(**definition["process"])
    moves = plan_moves(schedule, settings)
    sampler = Sampler(
        noise_predictor(model.build(), velocity_of(schedule, model.mean, model.deviation)),
        model.image_shape,
        model.num_classes,
        moves,
        settings["guidance"],
    )
    parameters = jax.device_put(model.parameters)
    keys = shard_keys(definition["seed"], shard, size)
    classes = jnp.asarray(shard_classes(shard, size, model.num_classes))
    checkpoints = None
    if checkpoint_folder is not None:
        parts = {key: definition[key] for key in ("seed", "process", "sampling")}
        identity = make_identity(
            **parts, model=model.digest(), shard=shard, size=size, version=version
        )
        checkpoints = CheckpointFolder(checkpoint_folder, identity, checkpoint_seconds)
    images = np.zeros((size, *model.image_shape), np.uint8)
    done = 0
    if checkpoints and (found := checkpoints.load(images)):
        images, done = np.array(found.tree), found.step
    at_once, flop = _plan_batches(sampler, parameters, keys, classes)
    logger.info(
        "%s: shard %d: %d images, %d at once, %d steps each",
        name,
        shard,
        size,
        at_once,
        len(moves),
    )
    with (
        saving_on_signal() as interruption,
        Progress(
            f"{name} shard {shard}", size, 0, flop, done, done, activity="sampling", unit="image"
        ) as progress,
    ):
        while done < size:
            # The last batch is filled up with images drawn before: one program does for all.
            first = min(done, size - at_once)
            part = slice(first, first + at_once)
            drawn = sampler.images(
                parameters, keys[part], classes[part], lambda: interruption.requested
            )
            if drawn is not None:
                images[part] = np.asarray(to_pixels(drawn, model.scale))
                done = first + at_once
                progress.update(done, 0, done)
            is_asked, saved = interruption.requested, False
            if checkpoints and (is_asked or checkpoints.due()):
                saved = checkpoints.save(done, images, {}, {})
            if is_asked and done < size:
                raise Interrupted(done, saved)
    return images


def _plan_batches(
    sampler: Sampler, parameters: Any, keys: jax.Array, classes: jax.Array
) -> tuple[int, float]:
    """How many images to draw at once, and the operations that one image needs."""
    one = (parameters, *sampler.example(keys, classes))
    step = functools.partial(sampler.step_back, is_random=True)
    flop = matrix_product_flop(step, *one) * sampler.num_steps
    is_cpu = jax.default_backend() == "cpu"
    most = _MOST_AT_ONCE_ON_CPU if is_cpu else _MOST_AT_ONCE
    # All that a step computes is more than it needs at once.
    fitting = int(_USABLE_SHARE * device_memory()) // max(intermediate_bytes(step, *one), 1)
    num_batches = math.ceil(len(keys) / max(min(most, fitting), 1))
    return math.ceil(len(keys) / num_batches), flop
