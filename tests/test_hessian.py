"""Hessian eigenvalues against closed forms, dense matrices, finite differences, scipy, matfree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matfree import decomp
from scipy.sparse.linalg import LinearOperator, eigsh

from sgdphases.curvature import kernel_scale_of, ntk_top_eigenvalue
from sgdphases.errors import InputError
from sgdphases.hessian import hessian_product, top_hessian_eigenvalues
from sgdphases.losses import LossFunction
from sgdphases.models import build_network

HYPERPARAMETERS = {
    "model": "fully_connected",
    "depth": 3,
    "width": 5,
    "activation": "tanh",
    "parametrisation": "ntk",
    "weight_scale": 1.3,
    "bias_scale": 0.4,
    "precision": "float64",
}
SIZE = 60


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


# Quadratic losses with known spectra.


def rotated(spectrum, seed=0):
    """A symmetric matrix with this spectrum and random eigenvectors."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))
    return (rotation * spectrum) @ rotation.T


def split(vector):
    """As parameters of several shapes."""
    return {"a": vector[:12].reshape(3, 4), "b": [vector[12:13].reshape(()), vector[13:]]}


def quadratic_loss(matrix):
    def loss(parameters):
        flat, _ = ravel_pytree(parameters)
        return 0.5 * flat @ matrix @ flat + jnp.sum(flat)

    return loss


@functools.partial(jax.jit, static_argnums=(1, 2))
def quadratic_eigenvalues(matrix, num_eigenvalues, num_lanczos_steps=SIZE):
    parameters = split(jnp.arange(len(matrix), dtype=matrix.dtype))
    return top_hessian_eigenvalues(
        quadratic_loss(matrix), parameters, num_eigenvalues, num_lanczos_steps, tolerance=1e-12
    )


def padded(*values):
    return np.concatenate([np.zeros(SIZE - len(values)), values])


SPECTRA = {
    "spread": np.linspace(-1, 3, SIZE),
    "clusters": np.concatenate([np.linspace(5, 5.01, 6), np.linspace(0.9, 1, SIZE - 6)]),
    "negative": -np.geomspace(1e-3, 10, SIZE),
    "indefinite, low rank": padded(4, 2, 1, -3, -7),
    "one eigenvalue": padded(2),
    "multiple outliers": np.concatenate([np.full(10, 3.0), np.linspace(0, 1, SIZE - 10)]),
    "multiple outliers, low rank": padded(*np.full(10, 3.0)),
    "multiple of the identity": np.full(SIZE, 2.0),
    "zero": np.zeros(SIZE),
}


@pytest.mark.parametrize("num_eigenvalues", [1, 5, 20])
def test_known_spectra(num_eigenvalues):
    """As many products as parameters exhaust every space, and then all copies are found."""
    for name, spectrum in SPECTRA.items():
        expected = np.sort(spectrum)[::-1][:num_eigenvalues]
        actual = quadratic_eigenvalues(jnp.asarray(rotated(spectrum)), num_eigenvalues)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12, err_msg=name)


def test_known_spectra_in_single_precision():
    for name, spectrum in SPECTRA.items():
        expected = np.sort(spectrum)[::-1][:20]
        matrix = jnp.asarray(rotated(spectrum), "float32")
        actual = quadratic_eigenvalues(matrix, 20)
        assert actual.dtype == jnp.float32
        tolerance = 1e-5 * np.max(np.abs(spectrum))
        np.testing.assert_allclose(actual, expected, atol=tolerance, err_msg=name)


@functools.partial(jax.jit, static_argnums=(1, 2))
def compiled_diagonal_eigenvalues(spectrum, num_eigenvalues, num_lanczos_steps):
    return top_hessian_eigenvalues(
        lambda p: 0.5 * jnp.sum(spectrum * p**2),
        jnp.zeros(len(spectrum)),
        num_eigenvalues,
        num_lanczos_steps,
    )


def diagonal_eigenvalues(spectrum, num_eigenvalues, num_lanczos_steps):
    spectrum = jnp.asarray(spectrum)
    return np.asarray(compiled_diagonal_eigenvalues(spectrum, num_eigenvalues, num_lanczos_steps))


def test_close_outliers_are_told_apart():
    """Ten outliers, one per class, a percent apart."""
    spectrum = np.concatenate([np.linspace(1, 0.9, 10), 0.5 / np.arange(1, 391)])
    np.testing.assert_allclose(diagonal_eigenvalues(spectrum, 12, 48), spectrum[:12], rtol=1e-6)


def test_copies_of_a_multiple_eigenvalue_turn_up_late():
    """A known weakness: what is found is right, but of ten outliers some are missing."""
    spectrum = np.concatenate([np.ones(10), np.linspace(0.5, 0, 390)])
    found = diagonal_eigenvalues(spectrum, 12, 48)
    assert 1 <= np.sum(np.abs(found - 1) < 1e-4) < 10
    # Nothing is made up: each value is at most the one of the same rank.
    assert np.all(found <= spectrum[:12] + 1e-9)
    # Without a tail the Krylov space is exhausted, and all copies are there.
    spectrum[10:] = 0
    np.testing.assert_allclose(diagonal_eigenvalues(spectrum, 12, 48), spectrum[:12], atol=1e-12)


def test_fewer_parameters_than_eigenvalues():
    values = diagonal_eigenvalues(np.array([-1.0, 2.0, 5.0]), 5, 30)
    np.testing.assert_allclose(values[:3], [5, 2, -1])
    assert np.isnan(values[3:]).all()


def test_fewer_products_than_eigenvalues_are_refused():
    with pytest.raises(InputError, match=r"num_lanczos_steps: 3 .* allowed: at least .* 5"):
        diagonal_eigenvalues(np.ones(10), 5, 3)


def test_broken_parameters_give_nan():
    measure = jax.jit(lambda p: top_hessian_eigenvalues(lambda q: jnp.sum(q**4), p, 2, 6))
    for value in (np.nan, np.inf):
        assert np.isnan(measure(jnp.ones(6).at[2].set(value))).all()


def test_analytic_hessian():
    """Σ exp(cᵢθᵢ) + (Σθ)⁴/12 has the Hessian diag(c² exp(cθ)) + (Σθ)²."""
    rates, point = np.random.default_rng(0).normal(size=(2, 9))
    expected = np.diag(rates**2 * np.exp(rates * point)) + point.sum() ** 2
    values = top_hessian_eigenvalues(
        lambda p: jnp.sum(jnp.exp(rates * p)) + jnp.sum(p) ** 4 / 12, jnp.asarray(point), 9, 9
    )
    np.testing.assert_allclose(values, np.linalg.eigvalsh(expected)[::-1], rtol=1e-10)


# Networks.


def make_loss(loss_name, dtype="float64", **changes):
    """The loss of a network, and its parameters."""
    network = build_network({**HYPERPARAMETERS, "precision": dtype, **changes}, (4,), 3)
    generator = np.random.default_rng(0)
    inputs = jnp.asarray(generator.normal(size=(8, 4)), dtype)
    targets = jnp.asarray(np.eye(3)[generator.integers(3, size=8)], dtype)
    function = LossFunction(loss_name, "per_sample")
    parameters = network.init(jax.random.key(0))
    return lambda p: function(network.apply(p, inputs), targets), parameters


def flat_loss(loss, parameters):
    """The loss as a function of a vector."""
    _, unravel = ravel_pytree(parameters)
    return lambda vector: loss(unravel(vector))


@pytest.mark.parametrize("loss_name", ["mean_squared_error", "cross_entropy"])
def test_agrees_with_the_dense_hessian(loss_name):
    loss, parameters = make_loss(loss_name)
    flat, unravel = ravel_pytree(parameters)
    matrix = np.asarray(jax.jit(jax.hessian(flat_loss(loss, parameters)))(flat))
    spectrum = np.linalg.eigvalsh(matrix)[::-1]
    assert spectrum[-1] < -1e-3  # not only the Gauss–Newton part

    vector = np.random.default_rng(1).normal(size=len(matrix))

    @jax.jit
    def product(v):
        return ravel_pytree(hessian_product(loss, parameters)(unravel(v)))[0]

    image = product(jnp.asarray(vector))
    np.testing.assert_allclose(image, matrix @ vector, rtol=1e-9, atol=1e-11)

    step = 1e-5
    gradient = jax.jit(jax.grad(flat_loss(loss, parameters)))
    difference = (gradient(flat + step * vector) - gradient(flat - step * vector)) / (2 * step)
    np.testing.assert_allclose(image, difference, rtol=1e-5, atol=1e-7)

    values = jax.jit(lambda p: top_hessian_eigenvalues(loss, p, 5, 40))(parameters)
    np.testing.assert_allclose(values, spectrum[:5], rtol=1e-8)

    operator = LinearOperator(
        matrix.shape,
        matvec=lambda v: np.asarray(product(jnp.asarray(v).ravel())),
        dtype=np.float64,
    )
    by_scipy = eigsh(operator, k=5, which="LA", tol=1e-12, return_eigenvectors=False)
    np.testing.assert_allclose(values, np.sort(by_scipy)[::-1], rtol=1e-8)


def test_agrees_with_matfree():
    """With as many products and another start, where both have converged."""
    matrix = jnp.asarray(rotated(np.concatenate([-np.linspace(0, 2, 50), 3.0 + np.arange(10)])))
    start = jnp.asarray(np.random.default_rng(3).normal(size=SIZE))
    lanczos = decomp.tridiag_sym(45, reortho="full")
    by_matfree = jnp.linalg.eigvalsh(lanczos(lambda v: matrix @ v, start).J_small)[::-1]
    np.testing.assert_allclose(quadratic_eigenvalues(matrix, 8, 45), by_matfree[:8], rtol=1e-9)


def test_sharpness_of_a_perfect_fit_is_the_top_kernel_eigenvalue():
    """Without residuals the Hessian is the Gauss–Newton matrix; λ₀ is in the same units."""
    changes = {"loss_normalisation": "per_class", "richness": 2.5, "inverse_temperature": 1.0}
    hyperparameters = {**HYPERPARAMETERS, **changes}
    network = build_network(hyperparameters, (4,), 3)
    parameters = network.init(jax.random.key(0))
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)))
    targets = network.apply(parameters, inputs) / 2.5
    function = LossFunction("mean_squared_error", "per_class")

    @jax.jit
    def measure(p):
        sharpness = top_hessian_eigenvalues(
            lambda q: function(network.apply(q, inputs) / 2.5, targets), p, 1, 60, 1e-10
        )
        scale = kernel_scale_of(hyperparameters, 3, 8)
        return sharpness[0], ntk_top_eigenvalue(network.apply, p, inputs, 24, scale, 1e-10).value

    sharpness, eigenvalue = measure(parameters)
    assert float(sharpness) == pytest.approx(float(eigenvalue), rel=1e-9)


def test_runs_of_a_batch():
    loss, parameters = make_loss("cross_entropy", "float32", activation="relu", depth=2)
    factors = jnp.asarray([1.0, 0.3, np.nan, 2.0], "float32")
    runs = jax.tree.map(lambda p: jax.vmap(lambda f: f * p)(factors), parameters)

    def measure(p):
        return top_hessian_eigenvalues(loss, p, 2, 30)

    together = jax.jit(jax.vmap(measure))(runs)
    in_turn = jax.jit(lambda p: jax.lax.map(measure, p))(runs)
    assert together.dtype == in_turn.dtype == jnp.float32
    vectors = jax.vmap(lambda p: ravel_pytree(p)[0])(runs)
    dense = jax.jit(jax.vmap(jax.hessian(flat_loss(loss, parameters))))(vectors)
    for run in (0, 1, 3):
        expected = np.linalg.eigvalsh(np.asarray(dense[run], np.float64))[::-1][:2]
        np.testing.assert_allclose(together[run], expected, rtol=1e-4)
        np.testing.assert_allclose(in_turn[run], expected, rtol=1e-4)
    assert np.isnan(together[2]).all()
    assert np.isnan(in_turn[2]).all()


def test_reduced_precision_around_it_does_not_reach_the_products():
    loss, parameters = make_loss("mean_squared_error", "float32", depth=2)

    def program(precision):
        with jax.default_matmul_precision(precision):
            return str(jax.make_jaxpr(lambda p: top_hessian_eigenvalues(loss, p, 2, 5))(parameters))

    assert program("bfloat16") == program("float32")
    assert "HIGHEST" in program("bfloat16")
    assert "DEFAULT" not in program("bfloat16")
