"""Models of the user's own, and the files behind them."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases.errors import InputError
from sgdphases.models.network import Network
from sgdphases.models.user import load_user_model
from sgdphases.user_code import is_user_model, user_model_source, user_model_sources

INPUT_SHAPE = (3, 2)

PAIRS = """
    import jax
    import jax.numpy as jnp
    from sgdphases.models.network import Network

    def pair(hyperparameters, input_shape, num_outputs):
        size = 1
        for side in input_shape:
            size *= side

        def init(key):
            return {"w": jax.random.normal(key, (size, num_outputs), "float32")}

        def apply(parameters, inputs):
            flat = inputs.reshape(len(inputs), -1)
            return hyperparameters["gain"] * flat @ parameters["w"]

        return init, apply

    def network(hyperparameters, input_shape, num_outputs):
        init, apply = pair(hyperparameters, input_shape, num_outputs)
        return Network(init, apply, features=lambda p, x: x.reshape(len(x), -1))

    def changed(init=None, apply=None):
        def function(hyperparameters, input_shape, num_outputs):
            first, second = pair(hyperparameters, input_shape, num_outputs)
            return init or first, apply or second
        return function

    text = changed(init=lambda key: {"w": jnp.zeros((6, 4)), "name": "text"})
    integers = changed(init=lambda key: {"w": jnp.zeros((6, 4)), "table": {"ids": jnp.arange(3)}})
    nothing = changed(init=lambda key: {})
    one_output = changed(apply=lambda p, x: (x.reshape(len(x), -1) @ p["w"])[:, 0])
    no_array = changed(apply=lambda p, x: [x, x])
    coarse = changed(apply=lambda p, x: (x.reshape(len(x), -1) @ p["w"]).astype("bfloat16"))
    bad_apply = changed(apply=lambda p, x: x @ p["w"])

    def fails(hyperparameters, input_shape, num_outputs):
        return hyperparameters["momentun"]

    def returns_text(hyperparameters, input_shape, num_outputs):
        return "a network"

    def takes_less(hyperparameters):
        return None

    constant = 3
"""

FAILING_LINE = PAIRS[: PAIRS.index("momentun")].count("\n") + 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, not on sys.path; what is imported from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


def build(name, num_outputs=4, **changes):
    hyperparameters = {"gain": 3.0, "precision": "float32", **changes}
    return load_user_model(name)(hyperparameters, INPUT_SHAPE, num_outputs)


def make_inputs(dtype="float32"):
    return np.random.default_rng(0).normal(size=(5, *INPUT_SHAPE)).astype(dtype)


# --- What a function may return ---


@pytest.mark.parametrize("name", ["mine:pair", "package.mine:network", "package.sub.mine:pair"])
def test_functions_that_return_pairs_and_networks(folder, name):
    module = name.split(":")[0].replace(".", "/")
    write(folder, f"{module}.py", PAIRS)
    if name.startswith("package.mine"):
        write(folder, "package/__init__.py", "")
    network = build(name)
    assert isinstance(network, Network)
    assert (network.features is not None) == name.endswith("network")
    parameters = network.init(jax.random.key(2))
    inputs = make_inputs()
    expected = 3.0 * inputs.reshape(5, -1) @ np.asarray(parameters["w"])
    np.testing.assert_allclose(network.apply(parameters, inputs), expected, rtol=1e-6)


def test_parameters_take_the_precision_of_the_run(folder):
    write(folder, "mine.py", PAIRS)
    with jax.enable_x64(True):
        network = build("mine:pair", precision="float64")
        parameters = network.init(jax.random.key(2))
        assert parameters["w"].dtype == "float64"
        assert network.apply(parameters, make_inputs("float64")).dtype == "float64"
        single = build("mine:pair", precision="tensorfloat32").init(jax.random.key(2))
        np.testing.assert_array_equal(parameters["w"], single["w"])


def check_module(network, reference, num_parameters):
    """Runs, beside each other too; seeds differ; the NTK's ingredients exist; agrees."""
    first, second = (network.init(jax.random.key(seed)) for seed in (0, 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(first)) == num_parameters
    assert any(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )
    inputs = make_inputs()
    outputs = network.apply(second, inputs)
    np.testing.assert_allclose(outputs, reference(second, inputs), rtol=1e-5, atol=1e-6)

    @jax.jit
    @jax.vmap
    def many(seed):
        parameters = network.init(jax.random.key(seed))
        gradient = jax.grad(lambda p: network.apply(p, inputs).sum())(parameters)
        _, moved = jax.jvp(lambda p: network.apply(p, inputs), (parameters,), (gradient,))
        stepped = jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradient)
        return network.apply(parameters, inputs), moved, network.apply(stepped, inputs)

    together, moved, stepped = many(jnp.array([0, 1], jnp.uint32))
    np.testing.assert_allclose(together[1], outputs, rtol=1e-5, atol=1e-6)
    # Outputs are nearly linear in so small a step of all parameters; they fall with it.
    assert np.all(np.sum(moved, axis=(1, 2)) > 0)
    assert np.all(stepped.sum((1, 2)) < together.sum((1, 2)))


LINEN = """
    import flax.linen as nn

    class Perceptron(nn.Module):
        width: int
        num_outputs: int
        norm: bool = False

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
            if self.norm:
                x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(self.num_outputs)(x)

    def perceptron(hyperparameters, input_shape, num_outputs):
        return Perceptron(hyperparameters["width"], num_outputs)

    def normalised(hyperparameters, input_shape, num_outputs):
        return Perceptron(hyperparameters["width"], num_outputs, norm=True)

    def empty(hyperparameters, input_shape, num_outputs):
        return nn.Sequential([lambda x: x[:, 0, 0]])
"""


def test_flax_linen_modules(folder):
    pytest.importorskip("flax.linen")
    write(folder, "mine.py", LINEN)
    network = build("mine:perceptron", width=7)

    def reference(parameters, inputs):
        first, second = parameters["Dense_0"], parameters["Dense_1"]
        hidden = inputs.reshape(5, -1) @ first["kernel"] + first["bias"]
        return np.maximum(hidden, 0) @ second["kernel"] + second["bias"]

    check_module(network, reference, 6 * 7 + 7 + 7 * 4 + 4)
    with pytest.raises(InputError, match=r"has the collections batch_stats.*allowed: params only"):
        build("mine:normalised", width=7)
    with pytest.raises(InputError, match="it has no parameters"):
        build("mine:empty")


NNX = """
    from flax import nnx

    class Perceptron(nnx.Module):
        def __init__(self, width, num_outputs, extra, rngs):
            self.first = nnx.Linear(6, width, rngs=rngs)
            self.second = nnx.Linear(width, num_outputs, rngs=rngs)
            self.extra = extra

        def __call__(self, x):
            return self.second(self.extra(nnx.relu(self.first(x.reshape(len(x), -1)))))

    def perceptron(hyperparameters, input_shape, num_outputs, *, key):
        return Perceptron(hyperparameters["width"], num_outputs, lambda x: x, nnx.Rngs(key))

    def normalised(hyperparameters, input_shape, num_outputs, key):
        norm = nnx.BatchNorm(hyperparameters["width"], rngs=nnx.Rngs(key))
        return Perceptron(hyperparameters["width"], num_outputs, norm, nnx.Rngs(key))

    def dropping(hyperparameters, input_shape, num_outputs, key):
        dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(key))
        return Perceptron(hyperparameters["width"], num_outputs, dropout, nnx.Rngs(key))

    def keyless(hyperparameters, input_shape, num_outputs):
        return Perceptron(5, num_outputs, lambda x: x, nnx.Rngs(0))
"""


def test_flax_nnx_modules(folder):
    pytest.importorskip("flax.nnx")
    write(folder, "mine.py", NNX)
    network = build("mine:perceptron", width=7)

    def reference(parameters, inputs):
        first, second = parameters["first"], parameters["second"]
        hidden = inputs.reshape(5, -1) @ first["kernel"] + first["bias"]
        return np.maximum(hidden, 0) @ second["kernel"] + second["bias"]

    check_module(network, reference, 6 * 7 + 7 + 7 * 4 + 4)
    with pytest.raises(InputError, match=r"variables BatchStat.*allowed: nnx.Param only"):
        build("mine:normalised", width=7)
    with pytest.raises(InputError, match=r"variables RngCount, RngKey.*dropout"):
        build("mine:dropping", width=7)
    with pytest.raises(InputError, match=r"a flax.nnx module holds its parameters.*, key\)"):
        build("mine:keyless")


EQUINOX = """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    class Perceptron(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear
        order: jax.Array
        activation: callable

        def __init__(self, width, num_outputs, key):
            first, second = jax.random.split(key)
            self.first = eqx.nn.Linear(6, width, key=first)
            self.second = eqx.nn.Linear(width, num_outputs, use_bias=False, key=second)
            self.order = jnp.array([5, 4, 3, 2, 1, 0])
            self.activation = jax.nn.relu

        def __call__(self, x):
            assert x.shape == (3, 2), "one sample at a time"
            return self.second(self.activation(self.first(x.ravel()[self.order])))

    def perceptron(hyperparameters, input_shape, num_outputs, key=None):
        return Perceptron(hyperparameters["width"], num_outputs, key)

    def keyless(hyperparameters, input_shape, num_outputs):
        return Perceptron(5, num_outputs, jax.random.key(0))

    def normalised(hyperparameters, input_shape, num_outputs, key):
        norm = eqx.nn.BatchNorm(6, axis_name="batch", mode="batch")
        return eqx.nn.Sequential([norm, eqx.nn.Linear(6, num_outputs, key=key)])
"""


def test_equinox_modules(folder):
    pytest.importorskip("equinox")
    write(folder, "mine.py", EQUINOX)
    network = build("mine:perceptron", width=7)

    def reference(parameters, inputs):
        flat = inputs.reshape(5, -1)[:, ::-1]
        hidden = flat @ parameters.first.weight.T + parameters.first.bias
        return np.maximum(hidden, 0) @ parameters.second.weight.T

    check_module(network, reference, 6 * 7 + 7 + 7 * 4)
    with pytest.raises(InputError, match=r"an? equinox module holds its parameters.*, key\)"):
        build("mine:keyless")
    with pytest.raises(InputError, match=r"the equinox module has the state.*batch normalisation"):
        build("mine:normalised")


# --- What is refused ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine:absent", "absent does not exist; allowed: a function"),
        ("mine:constant", "constant is not a function"),
        ("mine:returns_text", "it returns str, which is not allowed; allowed: a Network, a pair"),
        ("mine:fails", rf"calling it failed: KeyError: 'momentun' \(.*mine.py:{FAILING_LINE}\)"),
        ("mine:takes_less", "calling it failed: TypeError: takes_less"),
        ("mine:text", "making its parameters failed: TypeError"),
        ("mine:integers", "its parameter table/ids is int32; allowed: floating-point numbers"),
        ("mine:nothing", "it has no parameters"),
        ("mine:one_output", r"its output is \(2,\); allowed: \(2, 4\)"),
        ("mine:no_array", "its output is list; allowed"),
        ("mine:coarse", "its output is bfloat16 where the run is in float32"),
        ("mine:bad_apply", r"applying it failed: TypeError: .*\(.*mine.py:\d+\)"),
        ("mine", "mine is not the name of a function; allowed: package.module:function"),
        ("mine:", "is not the name of a function"),
        ("mi ne:pair", "is not the name of a function"),
        ("mine.py:pair", "there is no module mine.py in a Python file"),
        ("absent.module:pair", "there is no module absent.module in a Python file; allowed: modul"),
        ("sys:exit", "there is no module sys in a Python file"),
        ("json:pair", r"Python has the module json from .* already, and not from .*json.py; allow"),
        ("broken:pair", "importing it failed: SyntaxError"),
        (
            "needy:pair",
            "importing it failed: ModuleNotFoundError: No module named 'absent_library'",
        ),
    ],
)
def test_refusals_are_one_line(folder, name, expected):
    write(folder, "mine.py", PAIRS)
    write(folder, "json.py", PAIRS)
    write(folder, "broken.py", "def pair(:\n")
    write(folder, "needy.py", "import absent_library\n")
    with pytest.raises(InputError, match=expected) as caught:
        build(name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_libraries_nobody_imported_stay_unimported(folder):
    write(folder, "mine.py", PAIRS)
    program = """
        import sys
        from sgdphases.models.user import load_user_model
        load_user_model("mine:pair")({"gain": 1.0, "precision": "float32"}, (3, 2), 4)
        assert not {"flax", "equinox"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=folder)


# --- The files behind a model ---


def test_sources_are_found_without_importing(folder):
    write(folder, "package/__init__.py", "raise RuntimeError('imported')")
    write(folder, "package/mine.py", "raise RuntimeError('imported')")
    program = """
        import sys
        from sgdphases.user_code import user_model_source, user_model_sources
        print(user_model_source("package.mine:model"), len(user_model_sources("package.mine:m")))
        assert not {"jax", "numpy", "package"} & set(sys.modules)
    """
    # Beside no folder of its own, as a script is.
    found = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program)],
        check=True,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert found.stdout == f"{folder / 'package' / 'mine.py'} 2\n"


def test_source_in_modules_packages_and_namespaces(folder, monkeypatch):
    files = [
        write(folder, "single.py", ""),
        write(folder, "package/__init__.py", ""),
        write(folder, "package/inner/mine.py", ""),
        write(folder, "space/deep/mine.py", ""),
    ]
    names = ["single:f", "package:f", "package.inner.mine:f", "space.deep.mine:f"]
    assert [user_model_source(name) for name in names] == files
    # The current directory comes first, unless sys.path says where it comes.
    other = write(folder, "elsewhere/single.py", "")
    monkeypatch.syspath_prepend(str(folder / "elsewhere"))
    assert user_model_source("single:f") == files[0]
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    assert user_model_source("single:f") == other
    # A folder without a file is no module to load.
    with pytest.raises(InputError, match="no module space in a Python file"):
        user_model_source("space:f")
    assert [is_user_model(name) for name in ("space:f", "wrn28_10")] == [True, False]


@pytest.mark.parametrize("name", ["mine:pair", "package.sub.mine:pair"])
def test_the_file_found_is_the_file_imported(folder, name):
    write(folder, f"{name.split(':')[0].replace('.', '/')}.py", PAIRS)
    load_user_model(name)
    assert sys.modules[name.split(":")[0]].__file__ == str(user_model_source(name))


def test_a_module_written_just_now_is_found(folder):
    with pytest.raises(InputError, match="no module late"):
        user_model_source("late:f")
    assert user_model_source("late:f") if write(folder, "late.py", "") else None


def test_sources_follow_the_users_own_imports(folder, monkeypatch):
    write(folder, "mine.py", "import jax\nimport layers.norms, helper\nfrom layers import blocks")
    write(folder, "layers/__init__.py", "")
    write(folder, "layers/norms.py", "from . import constants\nfrom ..helper import x")
    write(folder, "layers/constants.py", "def f():\n    from .late import late")
    write(folder, "layers/late.py", "import mine")
    write(folder, "layers/blocks.py", "from layers.deep.part import thing")
    write(folder, "layers/deep/part.py", "")
    write(folder, "layers/unused.py", "")
    write(folder, "helper.py", "import installed, numpy")
    write(folder, "site-packages/installed/__init__.py", "from installed import other\nimport near")
    write(folder, "site-packages/installed/other.py", "")
    write(folder, "site-packages/near.py", "")
    monkeypatch.syspath_prepend(str(folder / "site-packages"))
    names = [str(path.relative_to(folder)) for path in user_model_sources("mine:model")]
    assert names == [
        "helper.py",
        "layers/__init__.py",
        "layers/blocks.py",
        "layers/constants.py",
        "layers/deep/part.py",
        "layers/late.py",
        "layers/norms.py",
        "mine.py",
    ]
    # Of an installed package its own files only, not all that is installed beside it.
    names = [path.name for path in user_model_sources("installed:model")]
    assert names == ["__init__.py", "other.py"]


def test_a_source_that_is_not_python(folder):
    write(folder, "mine.py", "def pair(:\n")
    with pytest.raises(InputError, match=r"mine:pair: .*mine.py is not Python"):
        user_model_sources("mine:pair")
