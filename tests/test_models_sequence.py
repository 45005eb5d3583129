"""Vision transformers, recurrent networks and correlated heads."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from sgdphases.errors import InputError
from sgdphases.models.fully_connected import fully_connected
from sgdphases.models.heads import second_head
from sgdphases.models.network import Layers, Network
from sgdphases.models.recurrent import gru
from sgdphases.models.tokens import embedding
from sgdphases.models.vision_transformer import NORMALISATIONS, cut_patches, vision_transformer

PARAMETRISATIONS = ("standard", "ntk", "mup", "depth_mup")
IMAGE_SHAPE = (4, 6, 3)
TRANSFORMER = {
    "num_blocks": 2,
    "num_heads": 2,
    "width": 6,
    "mlp_ratio": 2,
    "patch_size": 2,
    "activation": "gelu",
    "normalisation": "layer_norm",
    "attention_scale": None,
    "attention_temperature": 1.0,
}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def make_layers(parametrisation="standard", width=6, **changes):
    layers = Layers(
        parametrisation=parametrisation,
        weight_scale=1.3,
        bias_scale=0.4,
        width=width,
        dtype=jnp.dtype("float64"),
        convolution_method="patches",
    )
    return dataclasses.replace(layers, **changes)


def make_transformer(parametrisation="standard", bias_scale=0.4, **changes):
    hyperparameters = {**TRANSFORMER, **changes}
    layers = make_layers(parametrisation, hyperparameters["width"], bias_scale=bias_scale)
    return vision_transformer(hyperparameters, IMAGE_SHAPE, 3, layers)


def make_gru(input_shape, parametrisation="standard", width=4, vocabulary_size=9, **changes):
    hyperparameters = {"width": width, "vocabulary_size": vocabulary_size}
    return gru(hyperparameters, input_shape, 3, make_layers(parametrisation, width, **changes))


def make_images(num_images=5, seed=0):
    return np.random.default_rng(seed).normal(size=(num_images, *IMAGE_SHAPE))


def start(network, seed=0, noise=0.3):
    """Parameters at the start, away from the ones and zeros of the norms."""
    leaves, structure = jax.tree.flatten(network.init(jax.random.key(seed)))
    generator = np.random.default_rng(seed)
    return structure.unflatten([x + noise * generator.normal(size=x.shape) for x in leaves])


# --- Vision transformers ---


class ReferenceTransformer:
    """The transformer written out, token by token and head by head."""

    def __init__(self, hyperparameters, parametrisation, weight_scale, bias_scale):
        self.hyper = hyperparameters
        self.parametrisation = parametrisation
        self.weight_scale, self.bias_scale = weight_scale, bias_scale

    def dense(self, layer, inputs, readout=False):
        fan_in = len(layer["weight"])
        multiplier, bias_multiplier = self.weight_scale / np.sqrt(fan_in), 1.0
        if self.parametrisation == "standard":
            multiplier = 1.0
        elif self.parametrisation == "ntk":
            bias_multiplier = self.bias_scale
        elif readout:
            multiplier /= np.sqrt(self.hyper["width"])
        outputs = inputs @ layer["weight"] * multiplier
        return outputs + layer["bias"] * bias_multiplier if "bias" in layer else outputs

    @staticmethod
    def layer_norm(layer, token):
        spread = np.sqrt(np.var(token) + 1e-5)
        return (token - np.mean(token)) / spread * layer["scale"] + layer["offset"]

    def norm(self, owner, name, token):
        if self.hyper["normalisation"] == "none":
            return token
        return self.layer_norm(owner[name], token)

    def query_key_norm(self, owner, name, vector):
        if self.hyper["normalisation"] == "qk_layer_norm":
            return self.layer_norm(owner[name], vector)
        if self.hyper["normalisation"] == "qk_norm":
            length = np.sqrt(np.sum(vector**2) + 1e-5 * len(vector))
            return np.sqrt(len(vector)) * vector / length * owner[name]["scale"]
        return vector

    def attention(self, layer, tokens):
        num_heads = self.hyper["num_heads"]
        size = self.hyper["width"] // num_heads
        scale = self.hyper["attention_scale"]
        if scale is None:
            scale = "inverse" if "mup" in self.parametrisation else "inverse_root"
        divisor = self.hyper["attention_temperature"]
        divisor *= {"inverse": size, "inverse_root": np.sqrt(size)}[scale]
        mixed = np.zeros_like(tokens)
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            queries, keys, values = (
                [self.dense(layer[name], token)[part] for token in tokens]
                for name in ("query", "key", "value")
            )
            queries = [self.query_key_norm(layer, "query_norm", query) for query in queries]
            keys = [self.query_key_norm(layer, "key_norm", key) for key in keys]
            for i, query in enumerate(queries):
                scores = np.array([query @ key / divisor for key in keys])
                weights = np.exp(scores - scores.max())
                for weight, value in zip(weights / weights.sum(), values, strict=True):
                    mixed[i, part] += weight * value
        return np.array([self.dense(layer["output"], token) for token in mixed])

    def perceptron(self, layer, token):
        hidden = self.dense(layer["first"], token)
        inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
        return self.dense(layer["second"], 0.5 * hidden * (1 + np.tanh(inner)))

    def __call__(self, parameters, image):
        side = self.hyper["patch_size"]
        first, hidden = parameters["input"], parameters["hidden"]
        tokens = []
        for top in range(0, image.shape[0], side):
            for left in range(0, image.shape[1], side):
                patch = image[top : top + side, left : left + side].ravel()
                position = first["positions"]["weight"][len(tokens)]
                if self.parametrisation != "standard":
                    position = position * self.weight_scale
                tokens.append(self.dense(first["patches"], patch) + position)
        tokens = np.array(tokens)
        branch = 1.0
        if self.parametrisation == "depth_mup":
            branch = 1 / np.sqrt(2 * self.hyper["num_blocks"])
        for block in hidden["blocks"]:
            normalised = np.array([self.norm(block, "attention_norm", t) for t in tokens])
            tokens = tokens + branch * self.attention(block["attention"], normalised)
            normalised = [self.norm(block, "perceptron_norm", token) for token in tokens]
            updates = [self.perceptron(block["perceptron"], token) for token in normalised]
            tokens = tokens + branch * np.array(updates)
        mean = np.mean([self.norm(hidden, "norm", token) for token in tokens], axis=0)
        return mean, self.dense(parameters["readout"], mean, readout=True)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize(
    ("normalisation", "scale", "bias_scale"),
    [
        ("layer_norm", None, None),
        ("qk_layer_norm", "inverse_root", 0.4),
        ("qk_norm", None, 0.4),
        ("none", "inverse", 0.4),
    ],
)
def test_transformer_against_the_formulas_written_out(
    normalisation, scale, bias_scale, parametrisation
):
    changes = {
        "normalisation": normalisation,
        "attention_scale": scale,
        "attention_temperature": 0.7,
    }
    network = make_transformer(parametrisation, bias_scale, **changes)
    parameters, images = start(network), make_images(3)
    reference = ReferenceTransformer(
        {**TRANSFORMER, **changes}, parametrisation, weight_scale=1.3, bias_scale=bias_scale
    )
    expected = [reference(jax.tree.map(np.asarray, parameters), image) for image in images]
    features, outputs = map(np.array, zip(*expected, strict=True))
    np.testing.assert_allclose(network.features(parameters, images), features, rtol=1e-11)
    np.testing.assert_allclose(network.apply(parameters, images), outputs, rtol=1e-11)


def test_transformer_parameters_and_their_spread():
    network = make_transformer(width=120, num_blocks=3, normalisation="qk_norm")
    parameters = network.init(jax.random.key(1))
    assert parameters.keys() == {"input", "hidden", "readout"}
    assert len(parameters["hidden"]["blocks"]) == 3
    block = parameters["hidden"]["blocks"][1]
    assert block["perceptron"]["first"]["weight"].shape == (120, 240)
    # The norms of queries and keys have one scale per channel of a head and no offset.
    assert block["attention"]["query_norm"].keys() == {"scale"}
    assert block["attention"]["query_norm"]["scale"].shape == (60,)
    assert parameters["input"]["positions"]["weight"].shape == (6, 120)
    spreads = {
        "positions": (parameters["input"]["positions"]["weight"], 1.3),
        "patches": (parameters["input"]["patches"]["weight"], 1.3 / math.sqrt(12)),
        "second": (block["perceptron"]["second"]["weight"], 1.3 / math.sqrt(240)),
        "bias": (block["attention"]["key"]["bias"], 0.4),
        "readout": (parameters["readout"]["weight"], 1.3 / math.sqrt(120)),
    }
    for name, (array, spread) in spreads.items():
        tolerance = 5 * spread / math.sqrt(2 * array.size)
        assert np.std(array) == pytest.approx(spread, abs=tolerance), name
    np.testing.assert_array_equal(parameters["hidden"]["norm"]["scale"], 1.0)
    weights = [block["attention"][name]["weight"].ravel() for name in ("query", "key", "value")]
    weights.append(parameters["hidden"]["blocks"][0]["attention"]["query"]["weight"].ravel())
    assert np.abs(np.corrcoef(weights) - np.eye(4)).max() < 0.05


def test_only_the_named_normalisations_are_there():
    present = {}
    for normalisation in NORMALISATIONS:
        parameters = make_transformer(normalisation=normalisation).init(jax.random.key(0))
        paths, _ = zip(*jax.tree_util.tree_leaves_with_path(parameters["hidden"]), strict=True)
        names = {entry.key for path in paths for entry in path if hasattr(entry, "key")}
        present[normalisation] = {name for name in names if name.endswith("norm")}
    blocks = {"norm", "attention_norm", "perceptron_norm"}
    assert present == {
        "layer_norm": blocks,
        "qk_layer_norm": blocks | {"query_norm", "key_norm"},
        "qk_norm": blocks | {"query_norm", "key_norm"},
        "none": set(),
    }


def rescaled_queries(parameters, factor):
    blocks = [
        {
            **block,
            "attention": {
                **block["attention"],
                "query": jax.tree.map(lambda x: factor * x, block["attention"]["query"]),
            },
        }
        for block in parameters["hidden"]["blocks"]
    ]
    return {**parameters, "hidden": {**parameters["hidden"], "blocks": blocks}}


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_only_norms_of_queries_and_keys_take_away_the_size_of_the_logits(normalisation):
    """Divided logits are a temperature; with QK norms the weights cannot change it."""
    images = make_images()
    network, cooler, no_attention = (
        make_transformer(normalisation=normalisation, attention_temperature=temperature)
        for temperature in (1.0, 0.5, 1e18)
    )
    parameters = start(network)
    larger = rescaled_queries(parameters, 2.0)
    outputs = network.apply(parameters, images)
    scaled_outputs = network.apply(larger, images)
    assert np.abs(cooler.apply(parameters, images) - outputs).max() > 1e-3
    if normalisation in ("qk_norm", "qk_layer_norm"):
        # But for the small number that keeps the norms finite.
        np.testing.assert_allclose(scaled_outputs, outputs, atol=2e-5)
    else:
        np.testing.assert_allclose(scaled_outputs, cooler.apply(parameters, images), rtol=1e-12)
    # At high temperature attention is uniform, as it is with queries of 0.
    if "qk" not in normalisation:
        uniform = network.apply(rescaled_queries(parameters, 0.0), images)
        np.testing.assert_allclose(no_attention.apply(parameters, images), uniform, rtol=1e-10)


def test_attention_scale_follows_the_parametrisation_where_it_is_not_given():
    images = make_images()
    for parametrisation in PARAMETRISATIONS:
        default, inverse, root = (
            make_transformer(parametrisation, attention_scale=scale)
            for scale in (None, "inverse", "inverse_root")
        )
        parameters = start(default)
        outputs = [np.asarray(n.apply(parameters, images)) for n in (default, inverse, root)]
        chosen, other = (1, 2) if "mup" in parametrisation else (2, 1)
        np.testing.assert_array_equal(outputs[0], outputs[chosen])
        assert np.abs(outputs[0] - outputs[other]).max() > 1e-3


def test_patches_are_cut_in_the_order_of_the_image():
    image = np.arange(4 * 6 * 2).reshape(1, 4, 6, 2)
    patches = cut_patches(jnp.asarray(image), 2)
    assert patches.shape == (1, 6, 8)
    np.testing.assert_array_equal(patches[0, 1], image[0, 0:2, 2:4].ravel())
    np.testing.assert_array_equal(patches[0, 5], image[0, 2:4, 4:6].ravel())


@pytest.mark.parametrize(
    ("changes", "image_shape", "expected"),
    [
        ({"normalisation": "batch"}, IMAGE_SHAPE, "allowed: layer_norm, qk_layer_norm, qk_norm, n"),
        ({"attention_scale": "root"}, IMAGE_SHAPE, "allowed: null, inverse, inverse_root"),
        ({"attention_temperature": 0.0}, IMAGE_SHAPE, "allowed: numbers above 0"),
        ({"activation": "sine"}, IMAGE_SHAPE, "activation: 'sine' is not allowed"),
        ({"num_heads": 4}, IMAGE_SHAPE, "num_heads: 4 does not divide the width, 6"),
        ({"patch_size": 4}, IMAGE_SHAPE, "patch_size: 4 does not divide .* 4 and 6"),
        ({}, (24,), r"inputs of shape \(24,\) are not images"),
    ],
)
def test_transformer_refuses_what_does_not_fit(changes, image_shape, expected):
    with pytest.raises(InputError, match=expected):
        vision_transformer({**TRANSFORMER, **changes}, image_shape, 3, make_layers())


# --- Recurrent networks ---


def torch_gru(parameters, embedded_from, gates):
    """torch.nn.GRU with our weights, which act with multipliers of 1."""
    torch = pytest.importorskip("torch")
    state = parameters["hidden"]["state"]
    num_inputs, three_widths = gates["weight"].shape
    unit = torch.nn.GRU(num_inputs, three_widths // 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for name, array in (
            ("weight_ih_l0", gates["weight"].T),
            ("weight_hh_l0", state["weight"].T),
            ("bias_ih_l0", gates["bias"]),
            ("bias_hh_l0", state["bias"]),
        ):
            getattr(unit, name).copy_(torch.tensor(np.asarray(array)))
    return unit, torch.tensor(np.asarray(embedded_from))


def test_gru_on_vectors_against_pytorch_with_gradients():
    network = make_gru((7, 2))
    parameters = start(network)
    inputs = np.random.default_rng(3).normal(size=(5, 7, 2))
    unit, vectors = torch_gru(parameters, inputs, parameters["input"]["gates"])
    _, last = unit(vectors)
    (last[0] ** 2).sum().backward()
    np.testing.assert_allclose(
        network.features(parameters, inputs), last[0].detach().numpy(), rtol=1e-12
    )
    gradient = jax.grad(lambda p: jnp.sum(network.features(p, inputs) ** 2))(parameters)
    for ours, theirs in (
        (gradient["input"]["gates"]["weight"].T, unit.weight_ih_l0),
        (gradient["input"]["gates"]["bias"], unit.bias_ih_l0),
        (gradient["hidden"]["state"]["weight"].T, unit.weight_hh_l0),
        (gradient["hidden"]["state"]["bias"], unit.bias_hh_l0),
    ):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-10)


def test_gru_on_padded_tokens_against_packed_sequences_of_pytorch():
    torch = pytest.importorskip("torch")
    network = make_gru((6,))
    parameters = start(network)
    lengths = [6, 4, 1, 3]
    tokens = np.random.default_rng(0).integers(1, 9, size=(4, 6))
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = 0
    table = np.asarray(parameters["input"]["embedding"]["weight"])
    unit, vectors = torch_gru(parameters, table[tokens], parameters["hidden"]["gates"])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        vectors, lengths, batch_first=True, enforce_sorted=False
    )
    _, last = unit(packed)
    features = network.features(parameters, tokens)
    np.testing.assert_allclose(features, last[0].detach().numpy(), rtol=1e-12)
    readout = parameters["readout"]
    expected = np.asarray(features) @ readout["weight"] + readout["bias"]
    np.testing.assert_allclose(network.apply(parameters, tokens), expected, rtol=1e-12)
    # Tokens as floats, and padding in front or in between, make no difference.
    np.testing.assert_array_equal(network.features(parameters, tokens.astype(float)), features)
    in_front = np.array([np.concatenate([row[row == 0], row[row > 0]]) for row in tokens])
    np.testing.assert_array_equal(network.features(parameters, in_front), features)


def test_gru_parametrisations_are_one_function_of_the_scaled_weights():
    inputs = np.random.default_rng(0).integers(0, 9, size=(4, 5))
    standard = make_gru((5,))
    for parametrisation in ("ntk", "mup", "depth_mup"):
        network = make_gru((5,), parametrisation)
        parameters = start(network)
        bias_factor = 0.4 if parametrisation == "ntk" else 1.0

        def scaled(layer, factor, bias_factor=bias_factor):
            return {"weight": factor * layer["weight"], "bias": bias_factor * layer["bias"]}

        hidden = {name: scaled(p, 1.3 / 2) for name, p in parameters["hidden"].items()}
        factor = 1.3 / 2 if parametrisation == "ntk" else 1.3 / 4
        rescaled = {
            "input": {"embedding": {"weight": 1.3 * parameters["input"]["embedding"]["weight"]}},
            "hidden": hidden,
            "readout": scaled(parameters["readout"], factor),
        }
        np.testing.assert_allclose(
            network.apply(parameters, inputs), standard.apply(rescaled, inputs), rtol=1e-12
        )


def test_the_last_token_stands_for_all_higher_ones():
    network = make_gru((3,), vocabulary_size=5)
    parameters = start(network)
    rare, last, other = (
        network.apply(parameters, np.array([[1, token, 2]])) for token in (70000, 4, 3)
    )
    np.testing.assert_array_equal(rare, last)
    assert np.abs(np.asarray(rare - other)).min() > 1e-4


def test_an_image_is_the_sequence_of_its_rows():
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 2))
    network, of_vectors = make_gru((3, 4, 2)), make_gru((3, 8))
    parameters = start(network)
    np.testing.assert_array_equal(
        network.apply(parameters, images), of_vectors.apply(parameters, images.reshape(2, 3, 8))
    )


def test_gru_parameters_and_embedding_spread():
    parameters = make_gru((4,)).init(jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, parameters)
    assert shapes == {
        "input": {"embedding": {"weight": (9, 4)}},
        "hidden": {
            "gates": {"weight": (4, 12), "bias": (12,)},
            "state": {"weight": (4, 12), "bias": (12,)},
        },
        "readout": {"weight": (4, 3), "bias": (3,)},
    }
    for parametrisation in PARAMETRISATIONS:
        table = embedding(make_layers(parametrisation), 400, 30)
        rows = table.apply(table.init(jax.random.key(0)), jnp.arange(400))
        assert np.std(rows) == pytest.approx(1.3, rel=0.04)


@pytest.mark.parametrize(
    ("input_shape", "vocabulary_size", "expected"),
    [
        ((2, 3, 4, 5), 9, "are not sequences; allowed"),
        ((5,), 1, "vocabulary_size: 1 is not allowed"),
    ],
)
def test_gru_refuses_what_does_not_fit(input_shape, vocabulary_size, expected):
    with pytest.raises(InputError, match=expected):
        make_gru(input_shape, vocabulary_size=vocabulary_size)


# --- What both share ---

NETWORKS = {
    "transformer": lambda: (
        make_transformer("mup", normalisation="qk_norm", num_blocks=1),
        make_images(2),
    ),
    "gru": lambda: (make_gru((5,), "ntk"), np.array([[3.0, 1, 0, 8, 0], [0, 0, 0, 0, 0]])),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_of_first_and_second_order(name):
    """As sharpness and linearised networks need them: forward over reverse, and forward."""
    network, inputs = NETWORKS[name]()
    parameters = start(network)
    flat, unflatten = ravel_pytree(parameters)
    direction = np.random.default_rng(1).normal(size=flat.shape)

    @jax.jit
    def along(step):
        def loss(vector):
            return jnp.sum(jnp.sin(network.apply(unflatten(vector), inputs)))

        point = flat + step * direction
        gradient, curvature = jax.jvp(jax.grad(loss), (point,), (jnp.asarray(direction),))
        slope = jax.jvp(loss, (point,), (jnp.asarray(direction),))[1]
        return loss(point), slope, gradient @ direction, curvature @ direction

    step = 1e-4
    before, here, after = (np.array(along(s)) for s in (-step, 0.0, step))
    np.testing.assert_allclose(here[1], here[2], rtol=1e-10)
    np.testing.assert_allclose(here[1], (after[0] - before[0]) / (2 * step), rtol=1e-5)
    np.testing.assert_allclose(here[3], (after[2] - before[2]) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_runs_beside_each_other_are_the_runs_alone(name):
    network, inputs = NETWORKS[name]()
    runs = [start(network, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *runs)
    together = jax.jit(jax.vmap(network.apply, in_axes=(0, None)))(stacked, inputs)
    alone = [network.apply(parameters, inputs) for parameters in runs]
    np.testing.assert_allclose(together, alone, rtol=1e-11, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("parametrisation", ["ntk", "mup"])
@pytest.mark.parametrize("name", ["transformer", "gru"])
def test_features_move_as_the_parametrisation_says(name, parametrisation):
    """The coordinate check: one step moves what the readout reads ∝ N^0 in µP, N^(-1/2) in NTK.

    Centred outputs are 0 at the start, hence the gradient of ½(f̃ − y)² is that of −y·f. The raw
    rate is width·η in µP and η in NTK, and outputs move by order 1 in both.
    """
    widths = np.array([32, 256])
    targets = np.random.default_rng(0).normal(size=(4, 3))
    moved = np.zeros((2, len(widths)))
    for column, width in enumerate(map(int, widths)):
        if name == "transformer":
            # With 1/√d_q the logits of a single head move at any width, in NTK too.
            changes = {"num_heads": 1, "num_blocks": 1, "mlp_ratio": 1}
            changes["attention_scale"] = "inverse"
            network = make_transformer(parametrisation, None, width=width, **changes)
            inputs = make_images(4)
        else:
            network = make_gru((4,), parametrisation, width, bias_scale=None)
            inputs = np.random.default_rng(1).integers(1, 9, size=(4, 4))
        rate = 0.1 * (width if parametrisation == "mup" else 1)
        pairs = zip(*movement(network, inputs, targets, rate, num_seeds=4), strict=True)
        moved[:, column] = [np.sqrt(np.mean((x - y) ** 2)) for x, y in pairs]
    features, outputs = (np.polyfit(np.log(widths), np.log(row), 1)[0] for row in moved)
    assert features == pytest.approx(0.0 if parametrisation == "mup" else -0.5, abs=0.12)
    assert outputs == pytest.approx(0.0, abs=0.12)


def movement(network, inputs, targets, rate, num_seeds):
    """Features and outputs at the start of each seed, and the same after one step of SGD."""

    @jax.jit
    def observe(parameters):
        gradient = jax.grad(lambda p: -jnp.mean(targets * network.apply(p, inputs)))(parameters)
        return network.features(parameters, inputs), network.apply(parameters, inputs), gradient

    seen = []
    for seed in range(num_seeds):
        parameters = network.init(jax.random.key(seed))
        *before, gradient = observe(parameters)
        *after, _ = observe(jax.tree.map(lambda p, g: p - rate * g, parameters, gradient))
        seen.append((before, after))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *seen)


# --- Correlated heads ---


def make_small(bias_scale=0.5, num_outputs=4, parametrisation="ntk"):
    layers = make_layers(parametrisation, 16, bias_scale=bias_scale)
    hyperparameters = {"depth": 2, "width": 16, "activation": "relu"}
    return fully_connected(hyperparameters, (5,), num_outputs, layers)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_opposite_heads_cancel_exactly(parametrisation):
    network = make_small(parametrisation=parametrisation)
    parameters = network.init(jax.random.key(0))
    frozen = second_head(network, parameters, jax.random.key(1), -1.0)
    inputs = np.random.default_rng(0).normal(size=(6, 5))
    total = network.apply(parameters, inputs) + network.apply(frozen, inputs)
    np.testing.assert_array_equal(total, 0.0)
    same = second_head(network, parameters, jax.random.key(1), 1.0)
    jax.tree.map(np.testing.assert_array_equal, same, parameters)


def test_size_of_the_combined_outputs():
    """‖Z_c‖ = √(1 + c)·‖Z_0‖ = √(2(1 + c)) times one head, in root mean square over draws."""
    network = make_small(num_outputs=20)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)))
    correlations = jnp.array([0.0, -0.9, -1 + 1e-6, 0.6, 1.0])

    @jax.jit
    @jax.vmap
    def squares(parameters, second_key):
        single = network.apply(parameters, inputs)

        def combined(correlation):
            frozen = second_head(network, parameters, second_key, correlation)
            return jnp.sum(jnp.square(single + network.apply(frozen, inputs)))

        return jnp.sum(jnp.square(single)), jax.vmap(combined)(correlations)

    first_keys, second_keys = jax.random.split(jax.random.key(0), (2, 2000))
    single, combined = squares(jax.vmap(network.init)(first_keys), second_keys)
    single, combined = single.mean(0), combined.mean(0)
    np.testing.assert_allclose(combined / combined[0], 1 + correlations, rtol=0.05)
    np.testing.assert_allclose(combined / single, 2 * (1 + correlations), rtol=0.05)


@pytest.mark.parametrize("parametrisation", ["standard", "ntk"])
def test_entries_of_the_heads_are_correlated_and_of_one_spread(parametrisation):
    network = make_small(0.5, 400, parametrisation)
    parameters = network.init(jax.random.key(0))
    # As a traced value, which runs of one program may differ in.
    frozen = jax.jit(lambda c: second_head(network, parameters, jax.random.key(1), c))(0.7)
    for name in ("weight", "bias"):
        first, second = (np.ravel(p["readout"][name]) for p in (parameters, frozen))
        tolerance = 4 / math.sqrt(first.size)
        assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.7, abs=tolerance)
        assert np.std(second) == pytest.approx(np.std(first), rel=tolerance)
    jax.tree.map(np.testing.assert_array_equal, frozen["input"], parameters["input"])


def test_heads_keep_the_type_of_the_parameters():
    layers = make_layers("standard", 4, dtype=jnp.dtype("float32"))
    network = fully_connected({"depth": 2, "width": 4, "activation": "relu"}, (3,), 2, layers)
    parameters = network.init(jax.random.key(0))
    frozen = second_head(network, parameters, jax.random.key(1), jnp.float64(0.3))
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("float32")}


def test_heads_need_a_readout():
    network = Network(init=lambda key: [jax.random.normal(key, (3,))], apply=lambda p, x: x @ p[0])
    with pytest.raises(InputError, match="head_correlation: the model has no last layer"):
        second_head(network, network.init(jax.random.key(0)), jax.random.key(1), 0.0)
