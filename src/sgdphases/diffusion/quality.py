"""How good generated images are."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from sgdphases.datasets.loading import Dataset
from sgdphases.models.fully_connected import fully_connected
from sgdphases.models.network import Layers, Network, Parameters
from sgdphases.progress import Progress

logger = logging.getLogger(__name__)

_DEPTH = 3
_LEARNING_RATE = 1e-3
_BATCH_SIZE = 128
_STEPS_PER_SEGMENT = 100
_EVALUATION_BATCH = 2000

Array = npt.NDArray[Any]


def measure_quality(
    generated: Dataset, real: Dataset, settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Measure generated images with classifiers.

    A classifier that has seen real images only tells what generated images show: how often it
    agrees with the label they were drawn for. Two more, alike but for their data, are trained on
    as many generated as real images; both are tested on real ones.

    Args:
        generated: The generated dataset.
        real: Its base.
        settings: `num_samples` (whose labels are compared), `num_train` (images of either kind that
            the two are trained on, at most as many as both have), `num_steps`, `width`.
        seed: Seed of the classifiers.

    Returns:
        What was measured, as JSON can hold it.
    """
    num_classes = real.num_outputs
    num_samples = min(settings["num_samples"], generated.num_train)
    num_train = min(settings["num_train"], generated.num_train, real.num_train)
    test = _arrays(real, "test", None)
    classifier = functools.partial(_train_classifier, settings=settings, num_classes=num_classes)
    samples, labels = _arrays(generated, "train", num_samples)
    judge = classifier("classifier of real images", *_arrays(real, "train", None), seed=seed)
    agrees = judge.predict(samples) == labels
    of_classes = [float(agrees[labels == label].mean()) for label in range(num_classes)]
    on_generated, on_real = (
        classifier(f"classifier of {num_train} {kind} images", *data, seed=seed + 1)
        for kind, data in (
            ("generated", _arrays(generated, "train", num_train)),
            ("real", _arrays(real, "train", num_train)),
        )
    )
    return {
        "num_samples": num_samples,
        "label_agreement": float(agrees.mean()),
        "label_agreement_of_classes": of_classes,
        "classifier_test_accuracy": judge.accuracy(*test),
        "classifier_num_train": real.num_train,
        "num_train": num_train,
        "test_accuracy_of_generated": on_generated.accuracy(*test),
        "test_accuracy_of_real": on_real.accuracy(*test),
        "relative_spread": relative_spread(
            (samples, labels), _arrays(real, "train", num_samples), num_classes
        ),
    }


def relative_spread(
    generated: tuple[Array, Array], real: tuple[Array, Array], num_classes: int
) -> float:
    r"""Variance of generated images within their classes, relative to that of real ones.

    .. math:: \frac{\sum_c \mathrm{tr}\, \mathrm{Cov}(x \mid c, \text{generated})}
        {\sum_c \mathrm{tr}\, \mathrm{Cov}(x \mid c, \text{real})}

    Guidance makes samples more typical, and this smaller than 1.

    Args:
        generated: Images (samples, ...) and labels (samples,).
        real: Likewise.
        num_classes: Number of classes.
    """

    def within(data: tuple[Array, Array]) -> float:
        images, labels = data
        flat = images.reshape(len(images), -1)
        return sum(
            float(flat[labels == label].var(axis=0, dtype=np.float64).sum())
            for label in range(num_classes)
        )

    return within(generated) / within(real)


class _Classifier:
    """A trained classifier."""

    def __init__(self, network: Network, parameters: Parameters) -> None:
        self._apply = jax.jit(network.apply)
        self._parameters = parameters

    def predict(self, images: Array) -> npt.NDArray[np.int32]:
        """The likeliest class of each image."""
        answers = [
            np.asarray(self._apply(self._parameters, images[i : i + _EVALUATION_BATCH]))
            for i in range(0, len(images), _EVALUATION_BATCH)
        ]
        return np.asarray(np.concatenate(answers).argmax(axis=-1), np.int32)

    def accuracy(self, images: Array, labels: Array) -> float:
        """Share of the images whose class it tells."""
        return float((self.predict(images) == labels).mean())


def _train_classifier(
    name: str,
    images: Array,
    labels: Array,
    *,
    settings: Mapping[str, Any],
    num_classes: int,
    seed: int,
) -> _Classifier:
    """Train a fully connected network with Adam on cross-entropy, at a cosine learning rate."""
    num_steps, width = settings["num_steps"], settings["width"]
    layers = Layers("standard", 2**0.5, 0.0, width, jnp.float32, "native")
    hyperparameters = {"depth": _DEPTH, "width": width, "activation": "relu"}
    network = fully_connected(hyperparameters, images.shape[1:], num_classes, layers)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps))

    def loss_of(parameters: Parameters, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits = network.apply(parameters, inputs)
        loss: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
        return loss

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, index: Any, all_images: jax.Array, all_labels: jax.Array) -> Any:
        parameters, optimizer_state = state
        key = jax.random.fold_in(jax.random.key(seed), index)
        chosen = jax.random.randint(key, (_BATCH_SIZE,), 0, len(all_images))
        gradient = jax.grad(loss_of)(parameters, all_images[chosen], all_labels[chosen])
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(parameters, updates), optimizer_state

    all_images, all_labels = jax.device_put(images), jax.device_put(labels)
    parameters = network.init(jax.random.key(seed))
    state = (parameters, optimizer.init(parameters))
    with Progress(name, num_steps, 0, float("nan")) as progress:
        for i in range(num_steps):
            state = step(state, np.int32(i), all_images, all_labels)
            if (i + 1) % _STEPS_PER_SEGMENT == 0 or i + 1 == num_steps:
                jax.block_until_ready(state)
                progress.update(i + 1, 0, i + 1)
    return _Classifier(network, state[0])


def _arrays(dataset: Dataset, split: str, count: int | None) -> tuple[Array, Array]:
    """Normalised images and labels, the first `count`."""
    images, targets = dataset.evaluation_set(split, count, np.float32)
    return images, np.asarray(targets.argmax(axis=-1), np.int32)
