"""Networks: shapes, scales at initialisation and how they move with width."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.model_table import model_entry, model_names
from sgdphases.models import FACTORIES, build_network
from sgdphases.models.network import ACTIVATIONS

PARAMETRISATIONS = ("standard", "ntk", "mup", "depth_mup")


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


def layers_of(parameters):
    inner = [parameters["input"], *parameters["hidden"]] if "input" in parameters else []
    return [*inner, parameters["readout"]]


def parameters_of(layers):
    first, *hidden, readout = layers
    return {"input": first, "hidden": hidden, "readout": readout}


def make_inputs(num_samples=6, input_shape=(5,), seed=0):
    return np.random.default_rng(seed).normal(size=(num_samples, *input_shape))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("bias_scale", [None, 0.0])
@pytest.mark.parametrize("depth", [1, 4])
def test_shapes_and_types(depth, bias_scale, precision):
    network = make_network(
        (4, 3, 1), 2, depth=depth, width=7, bias_scale=bias_scale, precision=precision
    )
    layers = layers_of(network.init(jax.random.key(0)))
    sizes = [12, *[7] * (depth - 1), 2]
    assert [layer["weight"].shape for layer in layers] == list(itertools.pairwise(sizes))
    for layer, size in zip(layers, sizes[1:], strict=True):
        assert layer.keys() == ({"weight"} if bias_scale is None else {"weight", "bias"})
        assert all(array.dtype == precision for array in layer.values())
        assert bias_scale is None or layer["bias"].shape == (size,)
    parameters = network.init(jax.random.key(0))
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
    rescaled = parameters_of(
        {
            name: array * (1.3 / np.sqrt(len(layer["weight"])) if name == "weight" else bias_scale)
            for name, array in layer.items()
        }
        for layer in layers_of(parameters)
    )
    inputs = make_inputs()
    np.testing.assert_allclose(
        ntk.apply(parameters, inputs), standard.apply(rescaled, inputs), rtol=1e-13
    )
    # The same key gives the same function in both parametrisations.
    drawn = standard.init(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), rescaled, drawn)


def test_forward_pass_by_hand():
    network = make_network((2,), 1, depth=2, width=2, weight_scale=1.0, bias_scale=0.5)
    parameters = parameters_of(
        [
            {"weight": jnp.array([[1.0, -1.0], [2.0, 1.0]]), "bias": jnp.array([2.0, 0.0])},
            {"weight": jnp.array([[3.0], [5.0]]), "bias": jnp.array([-4.0])},
        ]
    )
    # (1, 2) -> (5, 1)/√2 + (1, 0), both above 0 -> (15/√2 + 3 + 5/√2)/√2 - 2
    expected = (20 / np.sqrt(2) + 3) / np.sqrt(2) - 2
    outputs = network.apply(parameters, jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(outputs, [[expected]], rtol=1e-14)


@pytest.mark.parametrize(
    ("parametrisation", "skip", "branch"), [("mup", 0, 1), ("depth_mup", 1, 2)]
)
def test_maximal_update_parametrisation(parametrisation, skip, branch):
    """Richness paper, eqs. 11-13: h = s h + W φ(h)/(√N · √branches), f = W φ(h)/N."""
    network = make_network(
        (3,), 2, depth=6, width=16, parametrisation=parametrisation, weight_scale=1.0
    )
    parameters = network.init(jax.random.key(0))
    first, *hidden, last = (np.array(layer["weight"]) for layer in layers_of(parameters))
    for weight in (first, *hidden):
        assert np.std(weight) == pytest.approx(1, rel=0.35)
    inputs = make_inputs(4, (3,))
    h = inputs @ first / np.sqrt(3)
    for weight in hidden:
        h = skip * h + np.maximum(h, 0) @ weight / (np.sqrt(16) * branch)
    np.testing.assert_allclose(
        network.apply(parameters, inputs), np.maximum(h, 0) @ last / 16, rtol=1e-12
    )
    np.testing.assert_allclose(network.features(parameters, inputs), np.maximum(h, 0), rtol=1e-12)


def test_a_network_of_depth_one_is_linear():
    network = make_network((3,), 2, depth=1, parametrisation="standard")
    parameters = network.init(jax.random.key(0))
    inputs = make_inputs(4, (3,))
    np.testing.assert_allclose(
        network.apply(parameters, inputs), inputs @ parameters["readout"]["weight"], rtol=1e-14
    )


def test_the_table_names_the_factories():
    functions = {model_entry(name)["function"] for name in model_names()}
    assert functions == set(FACTORIES)


def test_initialisation_of_a_seed_does_not_depend_on_its_companions():
    network = make_network(depth=2, bias_scale=0.1, precision="float32")
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
    layers = [*layers_of(first), *layers_of(second)]
    weights = [layer["weight"].ravel() for layer in layers]
    assert np.abs(np.corrcoef(weights) - np.eye(6)).max() < 0.03
    biases = [layer["bias"] for layer in layers]
    assert np.abs(np.corrcoef(biases) - np.eye(6)).max() < 0.35
