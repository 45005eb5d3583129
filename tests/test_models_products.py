"""The product of dense layers: as the usual one, with all derivatives, and fast ones on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.models.products import dense_product
from sgdphases.progress import matrix_product_flop

# (samples, in, out): few outputs; few, but more than inputs; rows at an awkward distance, in one
# block, in unequal ones, and too many; rows at another distance; a single sample.
SHAPES = [
    (12, 20, 7),
    (12, 7, 20),
    (32, 256, 130),
    (70, 256, 128),
    (530, 256, 128),
    (9, 30, 140),
    (1, 256, 128),
]


def draw(*shapes, dtype=np.float64):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape).astype(dtype)) for shape in shapes]


def loss_of(product):
    return lambda x, w: jnp.sum(jnp.sin(product(x, w) / x.shape[-1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_product_has_all_derivatives(shape):
    samples, fan_in, fan_out = shape
    with jax.enable_x64(True):
        x, w, dx, dw = draw((samples, fan_in), (fan_in, fan_out)) * 2

        @jax.jit(static_argnums=0)
        def derivatives(product):
            both = jax.grad(loss_of(product), argnums=(0, 1))
            squares = jax.grad(
                lambda x, w: sum(jnp.sum(jnp.square(g)) for g in both(x, w)), argnums=(0, 1)
            )
            return product(x, w), jax.jvp(both, (x, w), (dx, dw)), squares(x, w)

        found, expected = derivatives(dense_product), derivatives(jnp.matmul)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            scale = float(jnp.abs(other).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("axes", [(None, 0), (None, 1), (None, 2), (0, None), (1, 0), (2, 1)])
@pytest.mark.parametrize("shape", [(12, 20, 7), (8, 256, 130)])
def test_runs_together_have_the_gradients_of_runs_alone(shape, axes):
    samples, fan_in, fan_out = shape
    with jax.enable_x64(True):
        x, w = draw((3, samples, fan_in), (3, fan_in, fan_out))
        x, w = (a[0] if axis is None else a for a, axis in zip((x, w), axes, strict=True))
        gradient = jax.grad(loss_of(dense_product), argnums=(0, 1))
        moved = [
            a if axis is None else jnp.moveaxis(a, 0, axis)
            for a, axis in zip((x, w), axes, strict=True)
        ]
        together = jax.jit(jax.vmap(gradient, in_axes=axes))(*moved)
        for run in range(3):
            one = [a if axis is None else a[run] for a, axis in zip((x, w), axes, strict=True)]
            alone = jax.grad(loss_of(jnp.matmul), argnums=(0, 1))(*one)
            for found, expected in zip(together, alone, strict=True):
                np.testing.assert_allclose(found[run], expected, rtol=1e-11, atol=1e-13)


def test_leading_axes_are_samples():
    x, w = draw((2, 3, 5), (5, 4), dtype=np.float32)
    assert dense_product(x, w).shape == (2, 3, 4)
    np.testing.assert_allclose(dense_product(x, w), x @ w, rtol=1e-5)
    gradient = jax.grad(lambda w: jnp.sum(dense_product(x, w) ** 2))(w)
    np.testing.assert_allclose(gradient, jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w), rtol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="on CPU alone")
@pytest.mark.parametrize("shape", [(128, 512, 512), (128, 512, 10), (16, 512, 512)])
def test_no_gradient_of_such_shapes_is_summed_along_columns_on_cpu(shape):
    """XLA must not take the transpositions back: its own gradients would be summed that way."""
    samples, fan_in, fan_out = shape
    x, w = draw((samples, fan_in), (fan_in, fan_out), dtype=np.float32)

    def is_slow(product):
        gradient = jax.jit(jax.grad(loss_of(product), argnums=1))
        return "lhs_contracting_dims={0}" in gradient.lower(x, w).compile().as_text()

    assert is_slow(jnp.matmul)
    assert not is_slow(dense_product)


def test_runs_that_share_inputs_take_one_product():
    x, w = draw((8, 20), (3, 20, 7), dtype=np.float32)
    gradients = jax.vmap(jax.grad(loss_of(dense_product), argnums=1), in_axes=(None, 0))
    text = jax.jit(gradients).lower(x, w).as_text()
    assert "8x21xf32" in text  # the errors of the three runs beside each other


@pytest.mark.parametrize("types", [("float32", "float64"), ("float64", "float32")])
def test_gradients_have_the_types_of_their_arguments(types):
    with jax.enable_x64(True):
        x, w = (a.astype(t) for a, t in zip(draw((4, 6), (6, 3)), types, strict=True))
        assert dense_product(x, w).dtype == np.float64
        gradients = jax.grad(loss_of(dense_product), argnums=(0, 1))(x, w)
        assert tuple(str(g.dtype) for g in gradients) == types


@pytest.mark.parametrize("shapes", [((0, 512), (512, 128)), ((2, 0, 512), (512, 128))])
def test_no_samples_have_no_gradient(shapes):
    x, w = draw(*shapes, dtype=np.float32)
    assert dense_product(x, w).shape == (*x.shape[:-1], 128)
    assert not jax.grad(lambda w: jnp.sum(dense_product(x, w)))(w).any()


def test_precision_is_that_of_the_moment():
    x, w = draw((4, 6), (6, 3), dtype=np.float32)

    def loss(w):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(dense_product(x, w) ** 2)

    text = jax.jit(jax.grad(loss)).lower(w).as_text()
    assert text.count("precision = [HIGHEST, HIGHEST]") == text.count("dot_general") == 2


def test_products_are_counted():
    """Each of the two gradients needs as many operations as the product itself."""
    samples, fan_in, fan_out = 6, 5, 4
    x, w = draw((samples, fan_in), (fan_in, fan_out), dtype=np.float32)
    forward = 2 * samples * fan_in * fan_out
    loss = loss_of(dense_product)
    assert matrix_product_flop(dense_product, x, w) == forward
    assert matrix_product_flop(jax.grad(loss, argnums=1), x, w) == 2 * forward
    assert matrix_product_flop(jax.grad(loss, argnums=(0, 1)), x, w) == 3 * forward
