"""Kernel alignments against dense matrices, definitions written out, and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.alignment import (
    centered_kernel_alignment,
    feature_gram,
    kernel_target_alignment,
    ntk_gram,
)
from sgdphases.curvature import ntk_product
from sgdphases.models import build_network

HYPERPARAMETERS = {
    "model": "fully_connected",
    "depth": 3,
    "width": 6,
    "activation": "tanh",
    "parametrisation": "ntk",
    "weight_scale": 1.3,
    "bias_scale": 0.4,
    "precision": "float64",
}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def make_network(**changes):
    return build_network({**HYPERPARAMETERS, **changes}, (5,), 3)


def make_inputs(num_samples=7, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num_samples, 5)))


def random_gram(num_samples=12, rank=5, seed=0):
    factor = np.random.default_rng(seed).normal(size=(num_samples, rank))
    return factor @ factor.T


def random_targets(num_samples=12, num_outputs=3, seed=1):
    return np.random.default_rng(seed).normal(size=(num_samples, num_outputs))


def normalised_over_batch(parameters, inputs):
    """A network in which every sample's outputs depend on all samples."""
    hidden = jnp.tanh(inputs @ parameters["input"])
    hidden = (hidden - hidden.mean(0)) / (0.1 + hidden.std(0))
    return hidden @ parameters["readout"]


def dense_gram(apply, parameters, inputs):
    """From the Jacobian of the whole batch, output by output."""
    jacobian = jax.jit(jax.jacobian(apply))(parameters, inputs)
    shape = jax.eval_shape(apply, parameters, inputs).shape
    rows = np.concatenate(
        [np.reshape(leaf, (*shape, -1)) for leaf in jax.tree.leaves(jacobian)], axis=2
    )
    return np.einsum("xip,yip->xy", rows, rows)


@functools.cache
def compiled_gram(apply, block_size, samples_interact):
    return jax.jit(lambda p, x: ntk_gram(apply, p, x, block_size, samples_interact))


# The kernel.


def test_ntk_gram_agrees_with_the_dense_jacobian():
    network, inputs = make_network(), make_inputs()
    parameters = network.init(jax.random.key(0))
    expected = dense_gram(network.apply, parameters, inputs)
    # 7 samples: one block, blocks that do not divide it, one sample each, more than there are.
    for block_size in (None, 3, 1, 20):
        actual = compiled_gram(network.apply, block_size, False)(parameters, inputs)
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(actual, actual.T, rtol=1e-12)


def test_ntk_gram_is_the_partial_trace_of_the_kernel():
    network, inputs = make_network(), make_inputs(4)
    parameters = network.init(jax.random.key(0))
    product = ntk_product(network.apply, parameters, inputs, scale=1.0)
    columns = jax.jit(jax.vmap(product))(jnp.eye(12).reshape(12, 4, 3)).reshape(4, 3, 4, 3)
    gram = compiled_gram(network.apply, None, False)(parameters, inputs)
    np.testing.assert_allclose(gram, np.einsum("xiyi->xy", columns), rtol=1e-10)


def test_ntk_gram_of_two_linear_layers():
    network, inputs = make_network(depth=2, activation="identity", bias_scale=None), make_inputs()
    parameters = network.init(jax.random.key(0))
    first, last = parameters["input"]["weight"], parameters["readout"]["weight"]
    expected = inputs @ inputs.T * np.sum(last**2) + 3 * (inputs @ first) @ (inputs @ first).T
    gram = compiled_gram(network.apply, 2, False)(parameters, inputs)
    np.testing.assert_allclose(gram, 1.3**4 / 30 * expected, rtol=1e-11)


def test_ntk_gram_of_a_network_whose_samples_interact():
    generator = np.random.default_rng(0)
    parameters = {
        "input": jnp.asarray(generator.normal(size=(5, 4))),
        "readout": jnp.asarray(generator.normal(size=(4, 2))),
    }
    inputs = make_inputs()
    expected = dense_gram(normalised_over_batch, parameters, inputs)
    actual = compiled_gram(normalised_over_batch, 3, True)(parameters, inputs)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
    alone = compiled_gram(normalised_over_batch, 3, False)(parameters, inputs)
    assert not np.allclose(alone, expected, rtol=0.1)


def test_ntk_gram_of_a_batch_of_runs():
    network = make_network(precision="float32")
    inputs = make_inputs().astype("float32")
    runs = jax.jit(jax.vmap(network.init))(jax.random.split(jax.random.key(0), 2))

    def measure(parameters):
        return ntk_gram(network.apply, parameters, inputs, 4)

    together = jax.jit(jax.vmap(measure))(runs)
    in_turn = jax.jit(lambda p: jax.lax.map(measure, p))(runs)
    assert together.dtype == in_turn.dtype == jnp.float32
    for run in range(2):
        parameters = jax.tree.map(lambda leaf, i=run: leaf[i].astype("float64"), runs)
        expected = dense_gram(network.apply, parameters, inputs.astype("float64"))
        np.testing.assert_allclose(together[run], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(in_turn[run], expected, rtol=1e-4, atol=1e-4)


def test_reduced_precision_around_it_does_not_reach_the_kernel():
    network, inputs = make_network(), make_inputs(3)
    parameters = network.init(jax.random.key(0))

    def program(precision):
        with jax.default_matmul_precision(precision):
            return str(jax.make_jaxpr(lambda p: ntk_gram(network.apply, p, inputs, 2))(parameters))

    assert program("bfloat16") == program("float32")
    assert "DEFAULT" not in program("bfloat16")


def test_feature_gram():
    features = np.random.default_rng(0).normal(size=(6, 2, 3))
    expected = features.reshape(6, 6) @ features.reshape(6, 6).T
    np.testing.assert_allclose(feature_gram(jnp.asarray(features)), expected, rtol=1e-13)


# The alignments.


def by_definition(gram, targets):
    """The kernel–target alignment, and CKA from its Hilbert–Schmidt criteria."""
    nuclear = np.linalg.norm(gram, "nuc")
    alignment = np.trace(targets.T @ gram @ targets) / (nuclear * np.linalg.norm(targets) ** 2)
    centring = np.eye(len(gram)) - 1 / len(gram)

    def criterion(first, second):
        return np.trace(first @ centring @ second @ centring)

    other = targets @ targets.T
    norm = np.sqrt(criterion(gram, gram) * criterion(other, other))
    return alignment, criterion(gram, other) / norm


@pytest.mark.parametrize(("num_outputs", "rank"), [(1, 12), (3, 5)])
def test_alignments_agree_with_their_definitions(num_outputs, rank):
    gram, targets = random_gram(rank=rank), random_targets(num_outputs=num_outputs)
    expected = by_definition(gram, targets)
    gram, targets = jnp.asarray(gram), jnp.asarray(targets)
    assert float(kernel_target_alignment(gram, targets)) == pytest.approx(expected[0], rel=1e-12)
    assert float(centered_kernel_alignment(gram, targets)) == pytest.approx(expected[1], rel=1e-12)


def test_a_kernel_of_the_targets_is_aligned_best():
    targets = jnp.asarray(random_targets(num_outputs=1))
    best = targets @ targets.T
    assert float(kernel_target_alignment(5 * best, targets)) == pytest.approx(1, rel=1e-12)
    assert float(centered_kernel_alignment(5 * best, targets)) == pytest.approx(1, rel=1e-12)
    # CKA stays 1 with several outputs and a shift of all features.
    targets = jnp.asarray(random_targets())
    shifted = feature_gram(targets + 7)
    assert float(centered_kernel_alignment(shifted, targets)) == pytest.approx(1, rel=1e-10)


def test_alignment_of_a_kernel_that_knows_nothing():
    """K = 1 has the alignment 1/P; a kernel orthogonal to the targets 0."""
    targets = jnp.asarray(random_targets())
    assert float(kernel_target_alignment(jnp.eye(12), targets)) == pytest.approx(1 / 12)
    normal = np.linalg.svd(np.asarray(targets))[0][:, 3:]
    gram = jnp.asarray(normal @ normal.T)
    assert float(kernel_target_alignment(gram, targets)) == pytest.approx(0, abs=1e-14)


def test_alignment_with_balanced_one_hot_targets():
    """A kernel that is 1 within each of k equal classes, else 0: 1/k, and CKA 1."""
    targets = jnp.asarray(np.eye(4)[np.arange(12) % 4])
    gram = targets @ targets.T
    assert float(kernel_target_alignment(gram, targets)) == pytest.approx(1 / 4)
    assert float(centered_kernel_alignment(gram, targets)) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_alignments_do_not_depend_on_scales(scale):
    gram, targets = random_gram(), random_targets()
    expected = by_definition(gram, targets)
    gram, targets = jnp.asarray(scale * gram, "float32"), jnp.asarray(3 * targets, "float32")
    for function, value in zip(
        (kernel_target_alignment, centered_kernel_alignment), expected, strict=True
    ):
        result = jax.jit(function)(gram, targets)
        assert result.dtype == jnp.float32
        assert float(result) == pytest.approx(value, rel=1e-5)


def test_alignments_of_a_batch_of_runs():
    grams = np.stack([random_gram(seed=seed) for seed in range(3)])
    targets = random_targets()
    expected = np.asarray([by_definition(gram, targets) for gram in grams])
    for i, function in enumerate((kernel_target_alignment, centered_kernel_alignment)):
        together = jax.vmap(function, (0, None))(jnp.asarray(grams), jnp.asarray(targets))
        np.testing.assert_allclose(together, expected[:, i], rtol=1e-11)


def test_constant_features_have_no_centred_alignment():
    value = centered_kernel_alignment(jnp.ones((4, 4)), jnp.asarray(random_targets(4)))
    assert np.isnan(float(value))
