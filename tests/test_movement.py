"""Norms of the change of weights against numpy and known singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.models import build_network
from sgdphases.movement import weight_movement, weight_movement_names

HYPERPARAMETERS = {
    "model": "fully_connected",
    "depth": 4,
    "width": 6,
    "activation": "relu",
    "parametrisation": "mup",
    "weight_scale": 1.0,
    "bias_scale": 0.3,
    "precision": "float64",
}
NUMPY_NORMS = {"frobenius": "fro", "nuclear": "nuc", "spectral": 2}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def random_like(parameters, seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), leaf.dtype), parameters
    )


def test_layers_of_a_network():
    network = build_network(HYPERPARAMETERS, (5,), 3)
    initial = network.init(jax.random.key(0))
    parameters = random_like(initial, 1)
    norms = jax.jit(weight_movement)(parameters, initial)
    layers = {
        "input": ("input",),
        "hidden_0": ("hidden", 0),
        "hidden_1": ("hidden", 1),
        "readout": ("readout",),
    }
    assert set(norms) == {f"weight_movement_{n}_{layer}" for n in NUMPY_NORMS for layer in layers}
    for layer, path in layers.items():
        new, old = parameters, initial
        for key in path:
            new, old = new[key], old[key]
        change = np.asarray(new["weight"] - old["weight"])
        for name, order in NUMPY_NORMS.items():
            value = norms[f"weight_movement_{name}_{layer}"]
            assert value.shape == ()
            assert float(value) == pytest.approx(np.linalg.norm(change, order), rel=1e-12)


def test_order_is_the_same_in_and_out_of_compiled_code():
    initial = {"hidden": [{"weight": jnp.zeros((2, 2))} for _ in range(11)]}
    names = weight_movement_names(jax.eval_shape(lambda: initial))
    assert list(weight_movement(initial, initial)) == names
    assert list(jax.jit(weight_movement)(initial, initial)) == names
    assert names == sorted(names)
    assert len(names) == 33


def test_known_singular_values_of_a_convolution():
    """(window, window, in, out) counts as the matrix (window·window·in, out)."""
    generator = np.random.default_rng(0)
    left, _ = np.linalg.qr(generator.normal(size=(18, 4)))
    right, _ = np.linalg.qr(generator.normal(size=(4, 4)))
    change = (left * [3.0, 2.0, 0.5, 0.0]) @ right
    initial = random_like({"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)}, 1)
    parameters = {
        "kernel": initial["kernel"] + change.reshape(3, 3, 2, 4),
        "bias": initial["bias"] + 1,
    }
    norms = weight_movement({"convolution": parameters}, {"convolution": initial})
    expected = {"frobenius": np.sqrt(13.25), "nuclear": 5.5, "spectral": 3.0}
    assert {name: float(value) for name, value in norms.items()} == pytest.approx(
        {f"weight_movement_{name}_convolution": value for name, value in expected.items()},
        rel=1e-12,
    )


def test_nothing_moved():
    parameters = {"readout": {"weight": jnp.ones((3, 2))}}
    assert all(float(norm) == 0 for norm in weight_movement(parameters, parameters).values())


def test_an_array_that_is_no_layer_keeps_its_name():
    parameters = {"embedding": jnp.ones((3, 2)), "weight": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    layers = {name.split("_", 3)[3] for name in weight_movement_names(parameters)}
    assert layers == {"embedding", "weight"}


def test_batches_of_runs():
    initial = random_like({"readout": {"weight": jnp.zeros((3, 5, 4), "float32")}}, 0)
    parameters = random_like(initial, 1)
    together = jax.jit(jax.vmap(weight_movement))(parameters, initial)
    in_turn = jax.lax.map(lambda run: weight_movement(*run), (parameters, initial))
    change = np.asarray(parameters["readout"]["weight"] - initial["readout"]["weight"])
    for name, order in NUMPY_NORMS.items():
        expected = [np.linalg.norm(matrix, order) for matrix in change]
        for values in (together, in_turn):
            values = values[f"weight_movement_{name}_readout"]
            assert values.dtype == jnp.float32
            np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_broken_run_does_not_reach_its_neighbour():
    initial = random_like({"readout": {"weight": jnp.zeros((2, 5, 4))}}, 0)
    broken = {"readout": {"weight": initial["readout"]["weight"].at[0, 0, 0].set(jnp.nan)}}
    norms = jax.vmap(weight_movement)(broken, initial)
    for values in norms.values():
        assert np.isnan(values[0])
        assert values[1] == 0
