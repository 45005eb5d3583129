"""Losses and accuracy against a few lines of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.losses import LOSSES, accuracy, mean_squared_error


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 3)), np.eye(3)[rng.integers(3, size=7)]


def test_mean_squared_error_is_halved_and_averaged_over_samples_and_outputs(batch):
    outputs, targets = batch
    expected = np.sum((outputs - targets) ** 2) / (2 * 3 * 7)
    assert float(mean_squared_error(outputs, targets)) == pytest.approx(expected, rel=1e-14)


def test_mean_squared_error_of_one_output_is_half_the_square():
    assert float(mean_squared_error(jnp.array([[3.0]]), jnp.array([[0.0]]))) == 4.5


def test_mean_squared_error_gradient(batch):
    outputs, targets = batch
    gradient = jax.grad(mean_squared_error)(outputs, targets)
    np.testing.assert_allclose(gradient, (outputs - targets) / (3 * 7), rtol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name, batch):
    outputs, targets = batch
    gradient = jax.grad(LOSSES[name])(outputs, targets)
    for index in np.ndindex(outputs.shape):
        shift = np.zeros_like(outputs)
        shift[index] = 1e-6
        above, below = (
            LOSSES[name](outputs + shift, targets),
            LOSSES[name](outputs - shift, targets),
        )
        np.testing.assert_allclose(gradient[index], (above - below) / 2e-6, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_means_over_the_batch(name, batch):
    outputs, targets = batch
    single = [LOSSES[name](o[None], t[None]) for o, t in zip(outputs, targets, strict=True)]
    np.testing.assert_allclose(LOSSES[name](outputs, targets), np.mean(single), rtol=1e-13)


def test_accuracy_is_the_share_of_hits():
    outputs = jnp.array([[0.9, 0.1], [0.2, 0.3], [-5.0, -6.0], [0.0, 1.0]])
    targets = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert float(accuracy(outputs, targets)) == 0.75


def test_accuracy_of_one_output_is_not_defined():
    assert np.isnan(float(accuracy(jnp.ones((4, 1)), jnp.ones((4, 1)))))
