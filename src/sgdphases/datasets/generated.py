"""Datasets drawn from a distribution that the definition states."""

import math
from collections.abc import Sequence

import numpy as np

from sgdphases.datasets.definition import mixture_shape
from sgdphases.datasets.sources import RawData
from sgdphases.datasets.streams import make_single_index


def read_single_index(
    input_dim: int, link_power: int, num_train: int, num_test: int, seed: int
) -> RawData:
    """Draw the fixed samples of a single-index model; training itself draws its own.

    Args:
        input_dim: Number of input features.
        link_power: 2 for y = (w·x)², 3 for y = 0.1 (w·x)³.
        num_train: Samples for measuring training losses and curvature.
        num_test: Test samples.
        seed: Seed of w and of these samples.

    Returns:
        float64 inputs (samples, input_dim) and targets (samples, 1), and the model.
    """
    # One stream each: asking for more samples keeps those already drawn, and the model.
    of_model, *of_splits = np.random.default_rng(seed).spawn(3)
    model = make_single_index(input_dim, link_power, of_model)
    train_inputs, test_inputs = (
        generator.standard_normal((count, input_dim))
        for generator, count in zip(of_splits, (num_train, num_test), strict=True)
    )
    link = "(w·x)²" if link_power == 2 else "0.1 (w·x)³"
    return RawData(
        train_inputs=train_inputs,
        train_targets=model.targets(train_inputs),
        test_inputs=test_inputs,
        test_targets=model.targets(test_inputs),
        num_classes=None,
        scale=1.0,
        origin={"description": f"y = {link}, x standard normal, w a unit vector of seed {seed}"},
        licence="none needed",
        sample_order="as drawn; training draws fresh samples at every step",
        stream=model.as_json(),
    )


def read_gaussian_mixture(
    num_classes: int,
    separation: float,
    num_train: int,
    num_test: int,
    seed: int,
    input_dim: int | None = None,
    input_shape: Sequence[int] | None = None,
) -> RawData:
    """Draw samples of classes that are unit normal distributions about orthogonal means.

    Args:
        num_classes: Number of classes, at most the number of features.
        separation: Distance between the means of any two classes, in standard deviations.
        num_train: Training samples; the classes take turns.
        num_test: Test samples, likewise.
        seed: Seed of the means and the samples.
        input_dim: Number of features; or
        input_shape: shape of an image (height, width, channels).

    Returns:
        float32 inputs and labels.
    """
    shape = mixture_shape({"input_dim": input_dim, "input_shape": input_shape})
    of_means, *of_splits = np.random.default_rng(seed).spawn(3)
    # Orthonormal columns.
    directions, _ = np.linalg.qr(of_means.standard_normal((math.prod(shape), num_classes)))
    means = (separation / math.sqrt(2)) * directions.T
    labels = [np.arange(count, dtype=np.int32) % num_classes for count in (num_train, num_test)]
    inputs = []
    for generator, own in zip(of_splits, labels, strict=True):
        drawn = generator.standard_normal((len(own), math.prod(shape)), dtype=np.float32)
        drawn += means.astype(np.float32)[own]
        inputs.append(drawn.reshape(-1, *shape))
    return RawData(
        train_inputs=inputs[0],
        train_targets=labels[0],
        test_inputs=inputs[1],
        test_targets=labels[1],
        num_classes=num_classes,
        scale=1.0,
        origin={
            "description": f"{num_classes} unit normal distributions, means {separation:g} apart, "
            f"seed {seed}: a stand-in for testing, no data of any paper",
        },
        licence="none needed",
        sample_order="as drawn, the classes in turn",
    )
