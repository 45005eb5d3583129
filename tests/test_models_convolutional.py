"""Networks of images: against plain references, known sizes, scales at initialisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.errors import InputError
from sgdphases.models.convolution import CONVOLUTION_METHODS, convolve
from sgdphases.models.convolutional import catapult_cnn, convolutional, l2_cnn
from sgdphases.models.images import average_pool, centred_convolution, norm_of
from sgdphases.models.network import Layers, max_pool
from sgdphases.models.residual_convnet import residual_convnet
from sgdphases.models.resnet import resnet
from sgdphases.models.wide_resnet import wide_resnet

# Paper-sized hyperparameters of each model.
DEFAULTS = {
    catapult_cnn: {"width": 320, "pool_window": 2, "pool_stride": 1},
    l2_cnn: {"width": 300, "batch_norm": False, "pool_window": 6, "pool_stride": 1},
    convolutional: {"width": 64, "num_convolutions": 2, "num_dense": 2, "pool_window": 2},
    wide_resnet: {"depth": 28, "widening_factor": 10, "width": 16, "batch_norm": True},
    resnet: {
        "depth": 18,
        "width": 64,
        "stem": "imagenet",
        "batch_norm": True,
        "zero_initial_branches": False,
    },
    residual_convnet: {"num_blocks": 3, "width": 64, "stem_stride": 2},
}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def make_layers(width=1, parametrisation="standard", weight_scale=1.5, bias_scale=None, **changes):
    options = {"dtype": jnp.float64, "convolution_method": "patches", **changes}
    return Layers(parametrisation, weight_scale, bias_scale, width, **options)


def make_network(
    model,
    input_shape,
    num_outputs=3,
    parametrisation="standard",
    weight_scale=1.5,
    bias_scale=0.3,
    convolution_method="native",
    **changes,
):
    """A network and its hyperparameters."""
    common = {"activation": "relu", "batch_norm_samples": None}
    hyperparameters = {**common, **DEFAULTS[model], **changes}
    layers = make_layers(
        hyperparameters["width"],
        parametrisation,
        weight_scale,
        bias_scale,
        convolution_method=convolution_method,
    )
    return model(hyperparameters, input_shape, num_outputs, layers), hyperparameters


def make_images(num_samples, input_shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num_samples, *input_shape)))


def draw_parameters(network, parametrisation="standard", seed=0):
    """Random parameters, norms included, of a size that keeps deep networks finite.

    Much faster than `init`, for which each shape of an array is compiled.
    """
    random = np.random.default_rng(seed)

    def draw(path, shape):
        values = random.normal(size=shape.shape)
        match path[-1].key:
            case "weight" if parametrisation == "standard":
                values *= math.sqrt(2 / math.prod(shape.shape[:-1]))
            case "scale":
                values = 1 + 0.2 * values
            case "bias" | "offset":
                values *= 0.3
        return jnp.asarray(values)

    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def quick_jit(function):
    """Compiled in little time, for what runs once; grouped native convolutions run slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def assert_trees_agree(tree, expected, rtol=1e-9):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(leaf, other, rtol=rtol, atol=rtol * scale)


# ---------------------------------------------------------------- layers


def plain_convolution(images, weight, stride, padding):
    """The definition, position by position."""
    window, _, _, num_channels = weight.shape
    sizes, pads = [], []
    for size in images.shape[1:3]:
        if padding == "SAME":
            count = math.ceil(size / stride)
            total = max((count - 1) * stride + window - size, 0)
            pads.append((total // 2, total - total // 2))
        else:
            count = (size - window) // stride + 1
            pads.append((0, 0))
        sizes.append(count)
    images = np.pad(images, [(0, 0), *pads, (0, 0)])
    outputs = np.zeros((len(images), *sizes, num_channels))
    for i, j in np.ndindex(*sizes):
        patch = images[:, i * stride : i * stride + window, j * stride : j * stride + window]
        outputs[:, i, j] = np.einsum("bxyc,xycd->bd", patch, weight)
    return outputs


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_methods_agree_with_the_definition_and_each_other(stride, padding):
    random = np.random.default_rng(0)
    for window in (1, 3):
        images = random.normal(size=(2, 7, 6, 3))
        weight = random.normal(size=(window, window, 3, 4))
        expected = plain_convolution(images, weight, stride, padding)
        direction = random.normal(size=expected.shape)
        gradients = {}
        for method in CONVOLUTION_METHODS:

            def projection(x, w, method=method, direction=direction):
                outputs = convolve(x, w, stride, padding, method)
                return jnp.sum(outputs * direction), outputs

            both = quick_jit(jax.grad(projection, argnums=(0, 1), has_aux=True))
            gradients[method], outputs = both(images, weight)
            np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)
        # The projection is linear in both: its gradients give it back.
        np.testing.assert_allclose(
            jnp.sum(gradients["native"][1] * weight), np.sum(expected * direction), rtol=1e-12
        )
        assert_trees_agree(gradients["patches"], gradients["native"], 1e-12)
        assert_trees_agree(gradients["explicit"], gradients["native"], 1e-12)


@pytest.mark.parametrize(
    ("stride", "padding", "window", "samples"),
    [
        (1, "SAME", 3, 12),
        (2, "SAME", 3, 3),
        (2, "VALID", 1, 8),
        (3, "VALID", 5, 1),
        (1, "SAME", 4, 9),
    ],
)
def test_explicit_convolutions_have_all_derivatives(stride, padding, window, samples):
    """Second derivatives in both arguments, forward over reverse, and over a batch of kernels."""
    images, *directions = make_images(3, (samples, 8, 7, 3))
    weights = make_images(3, (window, window, 3, 2), seed=1)

    def derivatives(method):
        def loss(x, w):
            return jnp.sum(jnp.sin(convolve(x, w, stride, padding, method)))

        both = jax.grad(loss, argnums=(0, 1))
        tangents = (directions[0], weights[2])
        forward = jax.jvp(both, (images, weights[0]), tangents)
        reverse = jax.grad(lambda x, w: jnp.sum(jnp.square(both(x, w)[1])), argnums=(0, 1))
        return {
            "first and forward": forward,
            "reverse": reverse(images, weights[0]),
            "kernels": jax.vmap(jax.grad(loss, argnums=1), (None, 0))(images, weights),
        }

    results = [quick_jit(lambda m=m: derivatives(m))() for m in ("explicit", "native")]
    assert_trees_agree(*results, 1e-9)


def windowed(images, operation, initial, window, stride, padding=0):
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(images, initial, operation, sizes, strides, pads)


def largest(images, window, stride, padding=0):
    return windowed(images, jax.lax.max, -np.inf, window, stride, padding)


@pytest.mark.parametrize(("window", "stride"), [(2, 1), (2, 2), (3, 2), (6, 1), (1, 1)])
def test_max_pool_is_the_windowed_maximum(window, stride):
    images = make_images(2, (9, 8, 2))
    expected = largest(images, window, stride)
    np.testing.assert_array_equal(max_pool(images, window, stride), expected)
    direction = make_images(1, expected.shape, seed=1)[0]

    def gradient(pool):
        return quick_jit(jax.grad(lambda x: jnp.sum(pool(x, window, stride) * direction)))(images)

    np.testing.assert_allclose(gradient(max_pool), gradient(largest), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_average_pool_is_the_windowed_mean(window):
    images = make_images(2, (7, 6, 2))
    expected = windowed(images, jax.lax.add, 0.0, window, window) / window**2
    np.testing.assert_allclose(average_pool(images, window), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("window", "stride"), [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_centred_convolution_centres_on_the_first_pixel_and_every_stride(window, stride):
    layer = centred_convolution(make_layers(), window, 1, 1, stride)
    weight = jnp.zeros((window, window, 1, 1)).at[window // 2, window // 2].set(1)
    images = make_images(1, (5, 6, 1))
    outputs = quick_jit(layer.apply)({"weight": weight}, images)
    np.testing.assert_array_equal(outputs, images[:, ::stride, ::stride])


@pytest.mark.parametrize(("num_samples", "groups"), [(None, [5]), (2, [2, 2, 1]), (8, [5])])
def test_batch_norm_takes_its_statistics_over_each_group_of_samples(num_samples, groups):
    norm = norm_of({"batch_norm": True, "batch_norm_samples": num_samples}, 3, jnp.float64)
    parameters = {"scale": jnp.array([0.5, 1, 2]), "offset": jnp.array([0.1, 0, -3])}
    assert jax.tree.map(jnp.shape, norm.init(jax.random.key(0))) == {"scale": (3,), "offset": (3,)}
    images = 3 + 2 * make_images(5, (4, 4, 3))
    outputs = norm.apply(parameters, images)
    for part, group in zip(
        np.split(outputs, np.cumsum(groups)[:-1]),
        np.split(images, np.cumsum(groups)[:-1]),
        strict=True,
    ):
        normalised = (group - group.mean((0, 1, 2))) / np.sqrt(group.var((0, 1, 2)) + 1e-5)
        expected = parameters["scale"] * normalised + parameters["offset"]
        np.testing.assert_allclose(part, expected, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- plain references


def effective(parameters, parametrisation, weight_scale, bias_scale, width):
    """The weights and biases with which the forward pass is that of a plain network."""

    def layer(path, value):
        name, is_readout = path[-1].key, path[0].key == "readout"
        if name == "bias":
            return value * bias_scale if parametrisation == "ntk" else value
        if name != "weight" or parametrisation == "standard":
            return value
        value = value * weight_scale / math.sqrt(math.prod(value.shape[:-1]))
        return value / math.sqrt(width) if is_readout and "mup" in parametrisation else value

    return jax.tree_util.tree_map_with_path(layer, parameters)


def affine(layer, images, stride=1, padding=None):
    """A convolution with explicit padding, or a dense layer."""
    weight = layer["weight"]
    if weight.ndim == 2:
        outputs = images @ weight
    else:
        padding = weight.shape[0] // 2 if padding is None else padding
        outputs = jax.lax.conv_general_dilated(
            images,
            weight,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return outputs + layer.get("bias", 0)


def norm(layer, images):
    if not layer:
        return images
    normalised = (images - images.mean((0, 1, 2))) / jnp.sqrt(images.var((0, 1, 2)) + 1e-5)
    return layer["scale"] * normalised + layer["offset"]


def relu(values):
    return jnp.maximum(values, 0)


def four_convolutions_reference(p, images, hyperparameters, last_activation):
    window, stride = hyperparameters["pool_window"], hyperparameters["pool_stride"]

    def act(layer, values, padding):
        if "norm" in layer:
            return relu(norm(layer["norm"], affine(layer["convolution"], values, padding=padding)))
        return relu(affine(layer, values, padding=padding))

    second, third, fourth = p["hidden"]["convolutions"]
    values = act(second, act(p["input"], images, 1), 0)
    values = act(third, largest(values, window, stride), 1)
    values = largest(affine(fourth, values, padding=0), window, stride)
    values = values.reshape(len(images), -1)
    return affine(p["readout"], last_activation(affine(p["hidden"]["dense"], values)))


def catapult_reference(p, images, hyperparameters, _):
    return four_convolutions_reference(p, images, hyperparameters, relu)


def l2_reference(p, images, hyperparameters, _):
    return four_convolutions_reference(p, images, hyperparameters, lambda values: values)


def convolutional_reference(p, images, hyperparameters, _):
    window = hyperparameters["pool_window"]
    values = images
    for layer in [p["input"], *p["hidden"]["convolutions"]]:
        values = relu(affine(layer, values))
        values = windowed(values, jax.lax.add, 0.0, window, window) / window**2
    if hyperparameters["num_dense"] == 1:
        return affine(p["readout"], values.mean((1, 2)))
    values = values.reshape(len(images), -1)
    for layer in p["hidden"]["dense"]:
        values = relu(affine(layer, values))
    return affine(p["readout"], values)


def wide_resnet_reference(p, images, hyperparameters, is_depth_mup):
    blocks = p["hidden"]["blocks"]
    multiplier = 1 / math.sqrt(len(blocks)) if is_depth_mup else 1
    values = affine(p["input"], images)
    for i, block in enumerate(blocks):
        stride = 2 if i in (len(blocks) // 3, 2 * len(blocks) // 3) else 1
        activated = relu(norm(block["norm_1"], values))
        branch = affine(block["convolution_1"], activated, stride)
        branch = affine(block["convolution_2"], relu(norm(block["norm_2"], branch)))
        if block["shortcut"]:
            values = affine(block["shortcut"], activated, stride)
        values = values + multiplier * branch
    return affine(p["readout"], relu(norm(p["hidden"]["norm"], values)).mean((1, 2)))


def resnet_reference(p, images, hyperparameters, is_depth_mup):
    num_blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[hyperparameters["depth"]]
    halving = np.cumsum(num_blocks)[:-1]
    multiplier = 1 / math.sqrt(sum(num_blocks)) if is_depth_mup else 1
    is_imagenet = hyperparameters["stem"] == "imagenet"
    stem = p["input"]
    values = affine(stem["convolution"], images, 2 if is_imagenet else 1)
    values = relu(norm(stem["norm"], values))
    if is_imagenet:
        values = largest(values, 3, 2, padding=1)
    for i, block in enumerate(p["hidden"]):
        stride = 2 if i in halving else 1
        strides = (stride, 1) if hyperparameters["depth"] == 18 else (1, stride, 1)
        branch = values
        for j, step_stride in enumerate(strides, start=1):
            branch = relu(branch) if j > 1 else branch
            branch = affine(block[f"convolution_{j}"], branch, step_stride)
            branch = norm(block[f"norm_{j}"], branch)
        if block["shortcut"]:
            values = norm(block["shortcut_norm"], affine(block["shortcut"], values, stride))
        values = relu(values + multiplier * branch)
    return affine(p["readout"], values.mean((1, 2)))


def residual_convnet_reference(p, images, hyperparameters, is_depth_mup):
    multiplier = 1 / math.sqrt(hyperparameters["num_blocks"]) if is_depth_mup else 1
    values = affine(p["input"], images, hyperparameters["stem_stride"])
    for layer in p["hidden"]:
        values = values + multiplier * affine(layer, relu(values))
    return affine(p["readout"], relu(values).mean((1, 2)))


REFERENCES = {
    catapult_cnn: catapult_reference,
    l2_cnn: l2_reference,
    convolutional: convolutional_reference,
    wide_resnet: wide_resnet_reference,
    resnet: resnet_reference,
    residual_convnet: residual_convnet_reference,
}
CASES = [
    (catapult_cnn, (9, 8, 2), "standard", {"width": 5}),
    (l2_cnn, (9, 10, 2), "mup", {"width": 3, "pool_window": 3}),
    (
        l2_cnn,
        (14, 13, 2),
        "ntk",
        {"width": 3, "batch_norm": True, "pool_window": 3, "pool_stride": 2},
    ),
    (convolutional, (9, 8, 2), "mup", {"width": 4}),
    (convolutional, (6, 5, 2), "depth_mup", {"width": 4, "num_dense": 3, "pool_window": 1}),
    (convolutional, (9, 8, 2), "ntk", {"width": 4, "num_convolutions": 3, "num_dense": 1}),
    (
        wide_resnet,
        (8, 7, 2),
        "depth_mup",
        {"depth": 10, "widening_factor": 1, "width": 3, "batch_norm": False},
    ),
    (residual_convnet, (8, 7, 2), "mup", {"width": 4}),
    (residual_convnet, (7, 8, 2), "depth_mup", {"width": 4, "stem_stride": 1}),
]


@pytest.mark.parametrize(
    ("model", "input_shape", "parametrisation", "changes"),
    CASES,
    ids=lambda value: getattr(value, "__name__", None),
)
def test_outputs_and_gradients_agree_with_a_plain_reference(
    model, input_shape, parametrisation, changes
):
    network, hyperparameters = make_network(
        model, input_shape, parametrisation=parametrisation, **changes
    )
    parameters = draw_parameters(network, parametrisation)
    images = make_images(4, input_shape)
    direction = make_images(4, (3,), seed=1)

    def plain(p):
        return effective(p, parametrisation, 1.5, 0.3, hyperparameters["width"])

    def reference(p):
        is_depth_mup = parametrisation == "depth_mup"
        return REFERENCES[model](plain(p), images, hyperparameters, is_depth_mup), None

    def actual(p):
        return network.apply(p, images), network.features(p, images)

    def all_of(function):
        def projection(p):
            outputs, features = function(p)
            return jnp.sum(outputs * direction), (outputs, features)

        return quick_jit(jax.grad(projection, has_aux=True))(parameters)

    gradient, (outputs, features) = all_of(actual)
    expected_gradient, (expected, _) = all_of(reference)
    assert outputs.shape == (4, 3)
    assert float(jnp.std(expected)) > 1e-3
    np.testing.assert_allclose(outputs, expected, rtol=1e-9, atol=1e-10)
    assert_trees_agree(gradient, expected_gradient)
    from_features = affine(plain(parameters)["readout"], features)
    np.testing.assert_allclose(from_features, outputs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "input_shape", "parametrisation", "changes"),
    [
        (wide_resnet, (9, 8, 2), "standard", {"depth": 16, "widening_factor": 2, "width": 2}),
        (resnet, (33, 32, 3), "standard", {"depth": 50, "width": 2}),
        (resnet, (9, 8, 3), "depth_mup", {"width": 2, "stem": "cifar", "batch_norm": False}),
    ],
)
def test_outputs_of_deeper_networks_agree_with_a_plain_reference(
    model, input_shape, parametrisation, changes
):
    network, hyperparameters = make_network(
        model, input_shape, parametrisation=parametrisation, **changes
    )
    parameters = draw_parameters(network, parametrisation)
    images = make_images(4, input_shape)

    def reference(p):
        p = effective(p, parametrisation, 1.5, 0.3, hyperparameters["width"])
        return REFERENCES[model](p, images, hyperparameters, parametrisation == "depth_mup")

    expected = quick_jit(reference)(parameters)
    assert float(jnp.std(expected)) > 1e-3
    outputs = quick_jit(network.apply)(parameters, images)
    np.testing.assert_allclose(outputs, expected, rtol=1e-9, atol=1e-10)


def test_resnet_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    network, _ = make_network(resnet, (34, 33, 3), width=3)
    parameters = draw_parameters(network)
    images = make_images(3, (34, 33, 3))
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), parameters)

    def convolution(layer, values, stride=1):
        weight = layer["weight"].permute(3, 2, 0, 1)
        return functional.conv2d(values, weight, stride=stride, padding=weight.shape[-1] // 2)

    def batch_norm(layer, values):
        return functional.batch_norm(
            values, None, None, layer["scale"], layer["offset"], training=True, eps=1e-5
        )

    values = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    values = convolution(p["input"]["convolution"], values, 2)
    values = functional.relu(batch_norm(p["input"]["norm"], values))
    values = functional.max_pool2d(values, 3, 2, padding=1)
    for i, block in enumerate(p["hidden"]):
        stride = 2 if i in (2, 4, 6) else 1
        branch = batch_norm(block["norm_1"], convolution(block["convolution_1"], values, stride))
        branch = convolution(block["convolution_2"], functional.relu(branch))
        if block["shortcut"]:
            values = convolution(block["shortcut"], values, stride)
            values = batch_norm(block["shortcut_norm"], values)
        values = functional.relu(values + batch_norm(block["norm_2"], branch))
    outputs = values.mean((2, 3)) @ p["readout"]["weight"] + p["readout"]["bias"]
    outputs.square().sum().backward()

    def sum_of_squares(q):
        return jnp.sum(jnp.square(network.apply(q, images))), network.apply(q, images)

    gradient, actual = quick_jit(jax.grad(sum_of_squares, has_aux=True))(parameters)
    np.testing.assert_allclose(actual, outputs.detach(), rtol=1e-9, atol=1e-10)
    assert_trees_agree(gradient, jax.tree.map(lambda x: jnp.asarray(x.grad.numpy()), p))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_branches_that_start_at_zero(batch_norm, monkeypatch):
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: np.ones(shape))
    network, _ = make_network(
        resnet, (8, 8, 3), width=2, stem="cifar", batch_norm=batch_norm, zero_initial_branches=True
    )
    last = "norm_2" if batch_norm else "convolution_2"
    for block in network.init(jax.random.key(0))["hidden"]:
        assert all(not np.any(array) for array in jax.tree.leaves(block[last]))
        assert np.all(block["convolution_1"]["weight"])


# ---------------------------------------------------------------- sizes


def num_parameters(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(math.prod(shape.shape) for shape in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("model", "input_shape", "num_outputs", "changes", "expected"),
    [
        # Counts of the original code and of torchvision, which agree.
        (wide_resnet, (32, 32, 3), 10, {}, 36_479_194),
        (wide_resnet, (32, 32, 3), 10, {"depth": 16, "widening_factor": 4}, 2_748_890),
        (resnet, (224, 224, 3), 1000, {"depth": 18}, 11_689_512),
        (resnet, (224, 224, 3), 1000, {"depth": 34}, 21_797_672),
        (resnet, (224, 224, 3), 1000, {"depth": 50}, 25_557_032),
        (resnet, (224, 224, 3), 1000, {"depth": 101}, 44_549_160),
        (resnet, (224, 224, 3), 1000, {"depth": 152}, 60_192_808),
        (resnet, (32, 32, 3), 10, {"stem": "cifar"}, 11_173_962),
        # Four convolutions, then two dense layers on 86,528 and on 97,200 values.
        (
            catapult_cnn,
            (32, 32, 3),
            10,
            {},
            27 * 320
            + 2 * 9 * 320**2
            + 9 * 320 * 128
            + 86_528 * 256
            + 256 * 10
            + 3 * 320
            + 128
            + 256
            + 10,
        ),
        (
            l2_cnn,
            (32, 32, 3),
            10,
            {},
            27 * 300 + 3 * 9 * 300**2 + 97_200 * 500 + 500 * 10 + 4 * 300 + 500 + 10,
        ),
        # Batch norm has two parameters where a convolution has one bias.
        (
            l2_cnn,
            (32, 32, 3),
            10,
            {"batch_norm": True},
            27 * 300 + 3 * 9 * 300**2 + 97_200 * 500 + 500 * 10 + 7 * 300 + 500 + 10,
        ),
        (
            convolutional,
            (28, 28, 1),
            10,
            {"bias_scale": None},
            9 * 64 + 9 * 64**2 + 49 * 64 * 64 + 64 * 10,
        ),
        (
            convolutional,
            (32, 32, 3),
            10,
            {"bias_scale": None, "num_convolutions": 3, "num_dense": 1},
            27 * 64 + 2 * 9 * 64**2 + 64 * 10,
        ),
        (residual_convnet, (32, 32, 3), 10, {"bias_scale": None}, 27 * 64 + 27 * 64**2 + 640),
    ],
)
def test_numbers_of_parameters_at_paper_size(model, input_shape, num_outputs, changes, expected):
    network, _ = make_network(model, input_shape, num_outputs, **changes)
    assert num_parameters(network) == expected
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *input_shape), jnp.float64)
    assert jax.eval_shape(network.apply, shapes, images).shape == (2, num_outputs)


@pytest.mark.parametrize(
    ("model", "changes"),
    [(wide_resnet, {"batch_norm": False}), (resnet, {"batch_norm": False}), (catapult_cnn, {})],
)
def test_without_a_bias_scale_there_are_no_biases(model, changes):
    network, _ = make_network(model, (32, 32, 3), bias_scale=None, **changes)
    shapes = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    assert all(shape.ndim > 1 for shape in shapes)


@pytest.mark.parametrize(
    ("model", "width", "input_shape", "changes"),
    [
        (catapult_cnn, 40, (9, 9, 3), {}),
        (l2_cnn, 30, (16, 16, 3), {}),
        (convolutional, 8, (8, 8, 3), {}),
        (wide_resnet, 4, (8, 8, 3), {"depth": 10, "batch_norm": False}),
        (resnet, 8, (8, 8, 3), {"batch_norm": False}),
        (residual_convnet, 8, (8, 8, 3), {}),
    ],
)
def test_width_scales_every_layer(model, width, input_shape, changes):
    """Twice the width: four times the weights of hidden layers, twice those at the ends."""
    narrow, wide = (
        jax.eval_shape(
            make_network(model, input_shape, bias_scale=None, width=size, **changes)[0].init,
            jax.random.key(0),
        )
        for size in (width, 2 * width)
    )
    for key, factor in (("input", 2), ("hidden", 4), ("readout", 2)):
        for small, large in zip(
            jax.tree.leaves(narrow[key]), jax.tree.leaves(wide[key]), strict=True
        ):
            assert math.prod(large.shape) == factor * math.prod(small.shape)


# ---------------------------------------------------------------- refused input


@pytest.mark.parametrize(
    ("model", "smallest", "changes"),
    [
        (catapult_cnn, 7, {"width": 5}),
        (catapult_cnn, 10, {"width": 5, "pool_stride": 2}),
        (l2_cnn, 15, {"width": 3}),
        (convolutional, 4, {"width": 3}),
        (convolutional, 9, {"width": 3, "pool_window": 3, "num_dense": 1}),
    ],
)
def test_images_too_small_for_the_pooling_are_refused(model, smallest, changes):
    network, _ = make_network(model, (smallest, smallest + 1, 2), **changes)
    parameters = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, smallest, smallest + 1, 2), jnp.float64)
    features = jax.eval_shape(network.features, parameters, images)
    assert math.prod(features.shape) > 0
    assert jax.eval_shape(network.apply, parameters, images).shape == (2, 3)
    allowed = f"{smallest + 1}x{smallest - 1} pixels .* at least {smallest}x{smallest}$"
    with pytest.raises(InputError, match=allowed):
        make_network(model, (smallest + 1, smallest - 1, 2), **changes)


@pytest.mark.parametrize("model", DEFAULTS)
def test_inputs_that_are_no_images_are_refused(model):
    with pytest.raises(InputError, match=rf"{model.__name__}: .*\(784,\).*\(height, width, cha"):
        make_network(model, (784,))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (wide_resnet, {"depth": 4}, "depth 4; allowed: 6 n"),
        (wide_resnet, {"depth": 27}, "depth 27; allowed: 6 n"),
        (resnet, {"depth": 20}, "depth 20; allowed: 18, 34, 50, 101, 152"),
        (resnet, {"stem": "mnist"}, "stem mnist; allowed: imagenet, cifar"),
        (convolutional, {"num_dense": 0}, "num_dense 0; allowed: 1 or more"),
        (convolutional, {"num_convolutions": 0}, "num_convolutions 0; allowed: 1 or more"),
        (residual_convnet, {"num_blocks": 0}, "num_blocks 0; allowed: 1 or more"),
    ],
)
def test_sizes_that_do_not_exist_are_refused(model, changes, message):
    with pytest.raises(InputError, match=message):
        make_network(model, (32, 32, 3), **changes)


# ---------------------------------------------------------------- initialisation, movement


def mean_square_outputs(network, images, num_draws):
    keys = jax.random.split(jax.random.key(1), num_draws)
    outputs = quick_jit(jax.vmap(lambda key: network.apply(network.init(key), images)))(keys)
    return np.mean(np.square(outputs), axis=(0, 2))


@pytest.mark.parametrize(
    ("parametrisation", "width"),
    [("standard", 16), ("ntk", 16), ("mup", 4), ("mup", 16)],
)
def test_mean_square_outputs_of_plain_networks_at_initialisation(parametrisation, width):
    """On single pixels, of which a window sees one in nine, with weight_scale √18.

    A convolution then doubles the mean square and ReLU halves it; the readout multiplies by 18,
    and in µP divides by the width.
    """
    network, _ = make_network(
        convolutional,
        (1, 1, 4),
        20,
        parametrisation,
        weight_scale=math.sqrt(18),
        bias_scale=None,
        convolution_method="patches",
        width=width,
        num_convolutions=2,
        num_dense=1,
        pool_window=1,
    )
    images = make_images(3, (1, 1, 4))
    expected = 18 * np.mean(np.square(images), axis=(1, 2, 3))
    expected /= width if parametrisation == "mup" else 1
    actual = mean_square_outputs(network, images, 1000)
    np.testing.assert_allclose(actual, expected, rtol=0.1)


@pytest.mark.parametrize("parametrisation", ["ntk", "depth_mup"])
def test_mean_square_outputs_of_residual_networks_at_initialisation(parametrisation):
    """On single pixels and without activation each of 2 blocks multiplies by 1 + 1, or 1 + 1/2."""
    width = 16
    network, _ = make_network(
        residual_convnet,
        (1, 1, 4),
        20,
        parametrisation,
        weight_scale=3.0,
        bias_scale=None,
        convolution_method="patches",
        activation="identity",
        width=width,
        num_blocks=2,
    )
    images = make_images(3, (1, 1, 4))
    growth = (1 + 1 / 2) ** 2 if parametrisation == "depth_mup" else 2**2
    expected = 9 * growth * np.mean(np.square(images), axis=(1, 2, 3))
    expected /= 1 if parametrisation == "ntk" else width
    actual = mean_square_outputs(network, images, 1000)
    np.testing.assert_allclose(actual, expected, rtol=0.1)


def relative_movement(model, width, parametrisation, **changes):
    """Change of the features in one step at rate 0.1 on two images, relative to their size."""
    network, _ = make_network(
        model, (4, 4, 3), 1, parametrisation, math.sqrt(2), None, "patches", width=width, **changes
    )
    images = make_images(2, (4, 4, 3))
    rate = 0.1 * (width if parametrisation == "mup" else 1)

    def difference(parameters):
        return jnp.ptp(network.apply(parameters, images))

    def movement(parameters):
        gradient = jax.grad(difference)(parameters)
        moved = jax.tree.map(lambda x, g: x - rate * g, parameters, gradient)
        start, end = network.features(parameters, images), network.features(moved, images)
        return jnp.mean(jnp.square(end - start)), jnp.mean(jnp.square(start))

    compiled = quick_jit(movement)
    draws = [draw_parameters(network, parametrisation, seed) for seed in range(4)]
    changes_squared, sizes_squared = zip(*map(compiled, draws), strict=True)
    return math.sqrt(sum(changes_squared) / sum(sizes_squared))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (convolutional, {}),
        (residual_convnet, {"num_blocks": 2}),
    ],
)
def test_features_move_alike_at_all_widths_in_mup_and_less_in_wider_ntk_networks(model, changes):
    """The coordinate check: over a factor 8 in width."""
    mup, ntk = (
        relative_movement(model, 128, parametrisation, **changes)
        / relative_movement(model, 16, parametrisation, **changes)
        for parametrisation in ("mup", "ntk")
    )
    assert 0.6 < mup < 1.6
    assert 0.6 < ntk * math.sqrt(8) < 1.6
