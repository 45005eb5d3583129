"""The table of models: its entries, and that each model reads what its entry lists."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from sgdphases.errors import InputError
from sgdphases.grid import hyperparameter_schemas
from sgdphases.hyperparameters import common_hyperparameters, complete_run
from sgdphases.model_table import is_user_model, model_entry, model_names
from sgdphases.models import FACTORIES, Layers, parameter_dtype
from sgdphases.models.resnet import STAGES
from sgdphases.validation import as_declared, check

CATALOGUE = (
    *("cat_fc3_2048", "cat_fc1", "cat_fc2_2048", "cat_fc2_tanh", "cat_relu_scalar", "cat_cnn"),
    *("wrn28_10", "l2_fc3_2048", "l2_cnn", "l2_wrn", "l2_fc3_64", "l2_two_layer_relu"),
    *("resnet50_tf_tpu", "tmp_wrn_small", "tmp_wrn_big", "tmp_fc", "tmp_gru"),
    *("rich_mlp_L2", "rich_mlp_L3", "rich_mlp_L4", "rich_cnn_L4", "rich_cnn3_readout"),
    *("rich_resnet", "rich_resnet18", "rich_resconv", "rich_vit", "rich_sim_mlp"),
)
# What the networks of a function are trained on, where that is no CIFAR-10.
INPUTS = {"fully_connected": (784,), "gru": (20,), "resnet": (224, 224, 3)}


def build(name, hidden=(), **changes):
    """Shapes of a model's parameters and outputs; the model sees its own hyperparameters only."""
    run = complete_run({"model": name, "learning_rate": 1.0, **changes})
    entry = model_entry(name)
    layers = Layers(
        parametrisation=run["parametrisation"],
        weight_scale=run["weight_scale"],
        bias_scale=run["bias_scale"],
        width=run["width"],
        dtype=jnp.dtype(parameter_dtype(run["precision"])),
        convolution_method="native",
    )
    own = set(entry["hyperparameters"]) - set(common_hyperparameters()) - set(hidden)
    shape = INPUTS.get(entry["function"], (32, 32, 3))
    factory = FACTORIES[entry["function"]]
    network = factory({key: run[key] for key in own}, shape, 10, layers)
    parameters = jax.eval_shape(network.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    return parameters, jax.eval_shape(network.apply, parameters, inputs)


def test_the_functions_of_the_table_are_those_there_are():
    assert {model_entry(name)["function"] for name in model_names()} == set(FACTORIES)
    assert {*CATALOGUE, *FACTORIES} == set(model_names())


@pytest.mark.parametrize("name", model_names())
def test_defaults_are_allowed_and_typed(name):
    entry, schemas = model_entry(name), hyperparameter_schemas()
    assert set(entry) == {"function", "hyperparameters"}
    for key, value in entry["hyperparameters"].items():
        check(value, schemas[key], name, (key,))
        typed = as_declared(value, schemas[key])
        assert (typed, type(typed)) == (value, type(value)), key


@pytest.mark.parametrize("name", model_names())
def test_a_model_reads_what_its_entry_lists(name):
    """At paper size; nothing is computed."""
    own = set(model_entry(name)["hyperparameters"]) - set(common_hyperparameters())
    # Without batch norm nobody asks for the samples of its statistics.
    changes = {"batch_norm": True} if "batch_norm" in own else {}
    _, outputs = build(name, **changes)
    assert outputs.shape == (4, 10)
    for key in own:
        with pytest.raises(KeyError, match=key):
            build(name, hidden=[key], **changes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Bias-free fully connected networks by hand.
        ("cat_fc3_2048", 784 * 2048 + 2 * 2048**2 + 2048 * 10),
        ("rich_mlp_L2", 784 * 256 + 256 * 10),
        ("rich_sim_mlp", 784 * 200 + 200**2 + 200 * 10),
        ("l2_fc3_64", 784 * 64 + 2 * 64**2 + 64 * 10 + 3 * 64 + 10),
        # Zagoruyko and Komodakis, table 1: 36.5 million; torchvision's resnet50: 25.6 million, of
        # which 1.84 million are for 990 classes more.
        ("wrn28_10", 36.5e6),
        ("resnet50_tf_tpu", 25.557e6 - 990 * 2049),
    ],
)
def test_the_networks_have_their_papers_sizes(name, expected):
    parameters, _ = build(name)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))
    assert count == pytest.approx(expected, rel=0.0 if isinstance(expected, int) else 2e-3)


def test_widths_scale_the_catalogue():
    wide, _ = build("rich_cnn_L4", width=128)
    narrow, _ = build("rich_cnn_L4", width=64)
    assert wide["readout"]["weight"].shape[0] == 2 * narrow["readout"]["weight"].shape[0]


def test_the_depths_of_residual_networks_are_those_there_are():
    for depth in range(4, 160):
        try:
            build("resnet", depth=depth)
        except InputError:
            assert depth not in STAGES
        else:
            assert depth in (18, 34, 50, 101, 152)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="did you mean 'wrn28_10'"):
        model_entry("wrn28")
    assert is_user_model("package.module:function")
    assert not any(is_user_model(name) for name in model_names())


def test_an_entry_is_the_callers_to_change():
    model_entry("gru")["hyperparameters"]["width"] = 1
    assert model_entry("gru")["hyperparameters"]["width"] == 128


def test_reading_the_table_imports_no_jax():
    code = (
        "import sys; from sgdphases.hyperparameters import complete_run;"
        "complete_run({'model': 'wrn28_10'}); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
