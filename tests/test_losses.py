"""Losses and accuracy against a few lines of numpy, and against PyTorch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.errors import InputError
from sgdphases.losses import (
    LOSS_NAMES,
    NORMALISATIONS,
    LossFunction,
    accuracy,
    describe,
    kernel_scale,
    mean_squared_error,
)

EVERY_LOSS = list(itertools.product(LOSS_NAMES, NORMALISATIONS))


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(7, 3))), jnp.eye(3)[rng.integers(3, size=7)]


def reference(name, normalisation, outputs, targets, inverse_temperature=1.0):
    """The sum over samples and outputs, times the factor as the papers write it."""
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    num_samples, num_outputs = outputs.shape
    if name == "mean_squared_error":
        total = 0.0
        for f, y in zip(outputs.ravel(), targets.ravel(), strict=True):
            total += (f - y) ** 2
        factors = {
            "per_class": 1 / (2 * num_outputs * num_samples),
            "per_sample": 0.5 / num_samples,
        }
        return total * factors.get(normalisation, 0.5)
    weights = np.exp(inverse_temperature * outputs)
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    total = -np.sum(targets * np.log(probabilities))
    factors = {"per_class": 1 / (2 * num_outputs * num_samples), "per_sample": 1 / num_samples}
    return total * factors.get(normalisation, 1.0)


@pytest.mark.parametrize(("name", "normalisation"), EVERY_LOSS)
def test_every_loss_is_as_the_papers_write_it(name, normalisation, batch):
    loss = LossFunction(name, normalisation)
    np.testing.assert_allclose(loss(*batch), reference(name, normalisation, *batch), rtol=1e-13)


@pytest.mark.parametrize(("name", "normalisation"), EVERY_LOSS)
def test_targets_may_be_mixed_and_shifted(name, normalisation, batch):
    outputs, targets = batch
    mixed = 0.3 * targets + 0.7 * targets[::-1]
    loss = LossFunction(name, normalisation, label_shift=-0.01)
    expected = reference(name, normalisation, outputs, mixed - 0.01)
    np.testing.assert_allclose(loss(outputs, mixed), expected, rtol=1e-13)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_inverse_temperature_acts_inside_the_softmax_alone(normalisation, batch):
    cross_entropy = LossFunction("cross_entropy", normalisation)
    expected = reference("cross_entropy", normalisation, *batch, inverse_temperature=2.5)
    np.testing.assert_allclose(cross_entropy(*batch, 2.5), expected, rtol=1e-13)
    squared = LossFunction("mean_squared_error", normalisation)
    assert float(squared(*batch, 2.5)) == float(squared(*batch))


def test_inverse_temperature_may_differ_between_batched_runs(batch):
    loss = LossFunction("cross_entropy")
    temperatures = jnp.array([1e-3, 1.0, 40.0])
    together = jax.jit(jax.vmap(lambda b: loss(*batch, b)))(temperatures)
    np.testing.assert_allclose(together, [loss(*batch, float(b)) for b in temperatures], rtol=1e-14)


@pytest.mark.parametrize(("name", "normalisation"), EVERY_LOSS)
def test_values_and_gradients_agree_with_torch(name, normalisation, batch):
    torch = pytest.importorskip("torch")
    outputs, targets = (torch.tensor(np.asarray(a)) for a in batch)
    outputs.requires_grad_()
    if name == "mean_squared_error":
        mean = torch.nn.functional.mse_loss(outputs, targets)
        factor = {"per_class": 0.5, "per_sample": 0.5 * 3, "sum": 0.5 * 3 * 7}[normalisation]
    else:
        mean = torch.nn.functional.cross_entropy(outputs, targets)
        factor = {"per_class": 1 / (2 * 3), "per_sample": 1.0, "sum": 7.0}[normalisation]
    expected = factor * mean
    expected.backward()
    value, gradient = jax.value_and_grad(LossFunction(name, normalisation))(*batch)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-13)
    np.testing.assert_allclose(gradient, outputs.grad.numpy(), rtol=1e-12, atol=1e-16)


def test_learning_rate_and_weight_decay_convert_to_mean_nll():
    """The catalogue's example: 0.2 and 5e-4 per class are 0.01 and 0.01 with the mean NLL."""
    outputs = jnp.asarray(np.random.default_rng(1).normal(size=(5, 10)))
    targets = jnp.eye(10)[:5]
    per_class, per_sample = (
        jax.grad(LossFunction("cross_entropy", n))(outputs, targets)
        for n in ("per_class", "per_sample")
    )
    step = 0.2 * (per_class + 5e-4 * outputs)
    np.testing.assert_allclose(step, 0.01 * (per_sample + 0.01 * outputs), rtol=1e-12)


def test_mean_squared_error_is_the_loss_per_class(batch):
    loss = LossFunction("mean_squared_error", "per_class")
    np.testing.assert_allclose(mean_squared_error(*batch), loss(*batch), rtol=1e-14)
    assert float(mean_squared_error(jnp.array([[3.0]]), jnp.array([[0.0]]))) == 4.5


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_kernel_scale_is_the_curvature_of_the_squared_error(normalisation, batch):
    """Then gradient descent multiplies the error by 1 - η·scale·ΘΘᵀ, and 2/λ₀ is critical."""
    outputs, targets = batch
    loss = LossFunction("mean_squared_error", normalisation)
    curvature = jax.hessian(lambda f: loss(f.reshape(7, 3), targets))(outputs.ravel())
    expected = kernel_scale(normalisation, num_outputs=3, num_samples=7) * np.eye(21)
    np.testing.assert_allclose(curvature, expected, rtol=1e-13, atol=1e-16)


def test_huge_logits_lose_nothing():
    targets = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    outputs = jnp.array([[1e4, 0.0], [1e4, 0.0]])
    loss = LossFunction("cross_entropy", "sum")
    assert float(loss(outputs, targets)) == 1e4
    assert np.isfinite(jax.grad(loss)(outputs, targets)).all()


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_losses_of_reduced_outputs_are_computed_in_single_precision(name):
    outputs = jnp.asarray(np.random.default_rng(2).normal(size=(64, 10)), jnp.bfloat16)
    targets = jnp.eye(10, dtype=jnp.bfloat16)[np.arange(64) % 10]
    value = LossFunction(name)(outputs, targets)
    assert value.dtype == jnp.float32
    expected = reference(name, "per_class", outputs.astype(jnp.float64), targets)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_losses_are_static_arguments():
    assert hash(LossFunction("cross_entropy")) == hash(LossFunction("cross_entropy"))
    assert LossFunction("cross_entropy", "sum") != LossFunction("cross_entropy")


def test_unknown_losses_are_refused(batch):
    with pytest.raises(InputError, match=r"^loss: 'hinge' is not allowed; allowed: mean_squared"):
        LossFunction("hinge")
    for call in (lambda n: LossFunction("cross_entropy", n), lambda n: kernel_scale(n, 1, 1)):
        with pytest.raises(
            InputError, match=r"^loss_normalisation: 'mean' is not allowed; allowed"
        ):
            call("mean")
    with pytest.raises(InputError, match="cross_entropy is not allowed with 1 output"):
        LossFunction("cross_entropy")(jnp.ones((2, 1)), jnp.ones((2, 1)))


def test_descriptions_tell_the_normalisation():
    lines = {describe(LossFunction(*names), 10) for names in EVERY_LOSS}
    assert len(lines) == len(EVERY_LOSS)
    per_class = LossFunction("cross_entropy", "per_class")
    assert describe(per_class, 10) == "cross-entropy: mean NLL / (2k), k = 10"
    shifted = LossFunction("mean_squared_error", "per_sample", -0.01)
    assert describe(shifted, 100) == (
        "mean squared error: sum of squares / (2|B|); -0.01 on every target"
    )


def test_accuracy_is_the_share_of_hits():
    outputs = jnp.array([[0.9, 0.1], [0.2, 0.3], [-5.0, -6.0], [0.0, 1.0]])
    targets = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert float(accuracy(outputs, targets)) == 0.75


def test_accuracy_of_one_output_goes_by_the_sign_of_labels():
    outputs = jnp.array([[0.2], [-3.0], [1e-30], [0.0], [jnp.nan]])
    assert float(accuracy(outputs, jnp.array([[1.0], [-1.0], [-1.0], [1.0], [1.0]]))) == 0.4
    # A batch may happen to hold one class only.
    assert float(accuracy(outputs[:2], -jnp.ones((2, 1)))) == 0.5


@pytest.mark.parametrize("target", [0.0, 0.5, 2.0])
def test_accuracy_of_a_regression_is_not_defined(target):
    assert np.isnan(float(accuracy(jnp.ones((3, 1)), jnp.array([[1.0], [-1.0], [target]]))))
