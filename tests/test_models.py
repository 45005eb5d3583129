"""Networks: shapes, scales at initialisation and how they move with width."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.losses import mean_squared_error
from sgdphases.models import ACTIVATIONS, MODELS, build_network

PARAMETRISATIONS = ("standard", "ntk")


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def make_network(input_shape=(5,), num_outputs=3, **changes):
    hyperparameters = {
        "model": "fully_connected",
        "depth": 3,
        "width": 8,
        "activation": "relu",
        "parametrisation": "ntk",
        "weight_scale": math.sqrt(2),
        "bias_scale": None,
        "precision": "float64",
        **changes,
    }
    return build_network(hyperparameters, input_shape, num_outputs)


def make_inputs(num_samples=6, input_shape=(5,), seed=0):
    return np.random.default_rng(seed).normal(size=(num_samples, *input_shape))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("bias_scale", [None, 0.0])
@pytest.mark.parametrize("depth", [1, 4])
def test_shapes_and_types(depth, bias_scale, precision):
    network = make_network(
        (4, 3, 1), 2, depth=depth, width=7, bias_scale=bias_scale, precision=precision
    )
    parameters = network.init(jax.random.key(0))
    sizes = [12, *[7] * (depth - 1), 2]
    assert [layer["weight"].shape for layer in parameters] == list(itertools.pairwise(sizes))
    for layer, size in zip(parameters, sizes[1:], strict=True):
        assert layer.keys() == ({"weight"} if bias_scale is None else {"weight", "bias"})
        assert all(array.dtype == precision for array in layer.values())
        assert bias_scale is None or layer["bias"].shape == (size,)
    outputs = network.apply(parameters, jnp.asarray(make_inputs(6, (4, 3, 1)), precision))
    assert outputs.shape == (6, 2)
    assert outputs.dtype == precision


@pytest.mark.parametrize(("parametrisation", "bias_scale"), [("standard", None), ("ntk", 0.5)])
def test_mean_square_output_at_initialisation_does_not_depend_on_width(parametrisation, bias_scale):
    """E f² = 2·mean(x²) + depth·bias_scale² for ReLU with weight_scale √2, at any width."""
    inputs = make_inputs(4)
    expected = 2 * np.mean(inputs**2, axis=1) + 3 * (bias_scale or 0) ** 2
    for width in (16, 256):
        network = make_network(
            num_outputs=50, width=width, parametrisation=parametrisation, bias_scale=bias_scale
        )
        keys = jax.random.split(jax.random.key(width), 1000)
        outputs = jax.jit(
            lambda k, n=network: jax.lax.map(lambda key: n.apply(n.init(key), inputs), k)
        )(keys)
        np.testing.assert_allclose(np.mean(outputs**2, axis=(0, 2)), expected, rtol=0.08)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias_scale", [None, 0.5])
def test_ntk_forward_equals_standard_forward_with_rescaled_weights(activation, bias_scale):
    ntk, standard = (
        make_network(
            activation=activation, parametrisation=name, weight_scale=1.3, bias_scale=bias_scale
        )
        for name in ("ntk", "standard")
    )
    parameters = ntk.init(jax.random.key(3))
    rescaled = [
        {
            name: array * (1.3 / np.sqrt(len(layer["weight"])) if name == "weight" else bias_scale)
            for name, array in layer.items()
        }
        for layer in parameters
    ]
    inputs = make_inputs()
    np.testing.assert_allclose(
        ntk.apply(parameters, inputs), standard.apply(rescaled, inputs), rtol=1e-13
    )
    # The same key gives the same function in both parametrisations.
    drawn = standard.init(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), rescaled, drawn)


def test_forward_pass_by_hand():
    network = make_network((2,), 1, depth=2, width=2, weight_scale=1.0, bias_scale=0.5)
    parameters = [
        {"weight": jnp.array([[1.0, -1.0], [2.0, 1.0]]), "bias": jnp.array([2.0, 0.0])},
        {"weight": jnp.array([[3.0], [5.0]]), "bias": jnp.array([-4.0])},
    ]
    # (1, 2) -> (5, 1)/√2 + (1, 0), both above 0 -> (15/√2 + 3 + 5/√2)/√2 - 2
    expected = (20 / np.sqrt(2) + 3) / np.sqrt(2) - 2
    outputs = network.apply(parameters, jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(outputs, [[expected]], rtol=1e-14)


@pytest.mark.parametrize("name", MODELS)
def test_initialisation_of_a_seed_does_not_depend_on_its_companions(name):
    network = make_network(model=name, depth=2, bias_scale=0.1, precision="float32")
    seeds = [0, 7, 4294967295]
    with jax.enable_x64(False):
        initialise = jax.vmap(lambda seed: network.init(jax.random.key(seed)))
        many = jax.jit(initialise)(jnp.array(seeds, jnp.uint32))
        # As the training stage and the curvature stage write a seed.
        alone = [network.init(jax.random.key(seed)) for seed in seeds]
    for i, parameters in enumerate(alone):
        for one, batched in zip(jax.tree.leaves(parameters), jax.tree.leaves(many), strict=True):
            np.testing.assert_array_equal(one, batched[i])


def test_seeds_and_layers_are_independent_draws():
    network = make_network((200,), 200, depth=3, width=200, bias_scale=1.0)
    first, second = (network.init(jax.random.key(seed)) for seed in (0, 1))
    weights = [layer["weight"].ravel() for layer in (*first, *second)]
    assert np.abs(np.corrcoef(weights) - np.eye(6)).max() < 0.03
    biases = [layer["bias"] for layer in (*first, *second)]
    assert np.abs(np.corrcoef(biases) - np.eye(6)).max() < 0.35


@pytest.mark.slow
def test_activations_move_as_the_inverse_root_of_the_width_in_ntk_parametrisation():
    """The coordinate check: after some steps hidden units have moved ∝ n^(-1/2), outputs ∝ n^0."""
    widths = np.array([128, 512, 2048])
    inputs = jnp.asarray(make_inputs(8), "float32")
    targets = jnp.asarray(make_inputs(8, (3,), seed=1), "float32")
    movements = np.zeros((2, len(widths)))
    for column, width in enumerate(widths):
        network = make_network(width=int(width), activation="tanh", precision="float32")
        gradient = jax.jit(
            jax.grad(lambda p, n=network: mean_squared_error(n.apply(p, inputs), targets))
        )
        for seed in range(4):
            start = parameters = network.init(jax.random.key(seed))
            for _ in range(5):
                parameters = jax.tree.map(
                    lambda p, g: p - 0.5 * g, parameters, gradient(parameters)
                )
            for row, layers in enumerate((slice(-1), slice(None))):
                moved = network.apply(parameters[layers], inputs) - network.apply(
                    start[layers], inputs
                )
                movements[row, column] += np.mean(np.square(moved)) / 4
    hidden, output = (np.polyfit(np.log(widths), 0.5 * np.log(m), 1)[0] for m in movements)
    assert hidden == pytest.approx(-0.5, abs=0.1)
    assert output == pytest.approx(0.0, abs=0.1)
