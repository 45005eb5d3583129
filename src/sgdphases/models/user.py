"""Models of the user's own: a function named as `package.module:function`."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.errors import InputError
from sgdphases.models.network import Network, Parameters
from sgdphases.user_code import search_path, split_name, user_model_source

_RETURNED = (
    "a Network, a pair (init, apply), a flax.linen, flax.nnx or equinox module (the latter two "
    "from a function that takes a keyword key)"
)

# From hyperparameters, the shape of an input and the number of outputs.
UserModelFactory = Callable[[Mapping[str, Any], Sequence[int], int], Network]

# From a random key to what the user's function returns.
_Build = Callable[[jax.Array], Any]


def load_user_model(name: str) -> UserModelFactory:
    """The factory of a user's model.

    The function is called as function(hyperparameters, input_shape, num_outputs), the first a
    mapping of the hyperparameters that runs of one program share (not learning rate, richness, seed
    and the like), and returns one of

    - a `Network`;
    - a pair (init, apply): init(key) -> parameters, apply(parameters, inputs) -> outputs;
    - a flax.linen module without other collections than `params`;
    - a flax.nnx module without other variables than `nnx.Param`;
    - an equinox module without state, which acts on one sample and is mapped over the batch.

    Modules of flax.nnx and equinox hold their parameters, so their function takes a keyword `key`
    as well; what a key of 0 gives tells their structure. The numbers in them that are not
    parameters to be trained, such as integers, must not depend on the key.

    Inputs are (batch, *input_shape) floating-point numbers, tokens too; outputs are
    (batch, num_outputs). Parameters are floating-point numbers. They are converted to float64 where
    that is the run's `precision`, and to float32 elsewhere.

    Args:
        name: `package.module:function`; the current directory is searched too.

    Returns:
        From these hyperparameters, the shape of one input and the number of outputs to the network.

    Raises:
        InputError: There is no such module or function, or importing it fails. What is returned
            raises it where the function fails, returns something else, or gives outputs of another
            shape, parameters that are not floating-point, or outputs of lower precision than those.
    """
    module_name, function_name = split_name(name)
    source = user_model_source(name)
    sys.path[:] = search_path()
    with _reporting(name, "importing it"):
        module = importlib.import_module(module_name)
    imported = Path(module.__file__ or "")
    if imported.resolve() != source.resolve():
        raise InputError(
            f"model {name}: Python has the module {module_name} from {imported} already, and not "
            f"from {source}; allowed: a name that no other module has"
        )
    function = getattr(module, function_name, None)
    if not callable(function):
        problem = "is not a function" if hasattr(module, function_name) else "does not exist"
        raise InputError(
            f"model {name}: {function_name} {problem}; allowed: a function "
            f"({module_name}.{function_name}(hyperparameters, input_shape, num_outputs))"
        )
    takes_key = _takes_key(function)

    def factory(
        hyperparameters: Mapping[str, Any],
        input_shape: Sequence[int],
        num_outputs: int,
    ) -> Network:
        # A reduced precision concerns matrix products only.
        dtype = "float64" if hyperparameters["precision"] == "float64" else "float32"

        def build(key: jax.Array) -> Any:
            extra = {"key": key} if takes_key else {}
            return function(dict(hyperparameters), tuple(input_shape), num_outputs, **extra)

        inputs = jax.eval_shape(lambda: jnp.zeros((2, *input_shape), dtype))
        with _reporting(name, "calling it"):
            returned = build(jax.random.key(0))
        with _reporting(name, "looking into what it returns"):
            network = _as_network(name, returned, build if takes_key else None, inputs)
        network = _converted(network, dtype)
        _check(name, network, inputs, num_outputs)
        return network

    return factory


def _takes_key(function: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(function).parameters.get("key")
    except (TypeError, ValueError):  # some compiled functions have no signature
        return False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter is not None and parameter.kind in named


def _as_network(
    name: str, returned: Any, build: _Build | None, inputs: jax.ShapeDtypeStruct
) -> Network:
    if isinstance(returned, Network):
        return returned
    if isinstance(returned, tuple) and len(returned) == 2 and all(map(callable, returned)):
        return Network(*returned)
    if _is_module_of("flax.linen", returned):
        return _from_linen(name, returned, inputs)
    for library, convert in (("flax.nnx", _from_nnx), ("equinox", _from_equinox)):
        if _is_module_of(library, returned) and callable(returned):
            if build is None:
                raise InputError(
                    f"model {name}: a {library} module holds its parameters, so the function must "
                    "take the random key they come from; allowed: "
                    "function(hyperparameters, input_shape, num_outputs, key)"
                )
            return convert(name, returned, build)
    raise InputError(
        f"model {name}: it returns {type(returned).__name__}, which is not allowed; "
        f"allowed: {_RETURNED}"
    )


def _is_module_of(library: str, value: Any) -> bool:
    """Whether a value is a module of a library, which is not imported for it."""
    imported = sys.modules.get(library)
    return imported is not None and isinstance(value, imported.Module)


def _from_linen(name: str, module: Any, inputs: jax.ShapeDtypeStruct) -> Network:
    def variables(key: jax.Array) -> dict[str, Any]:
        return dict(module.init(key, jnp.zeros(inputs.shape, inputs.dtype)))

    others = sorted(jax.eval_shape(variables, jax.random.key(0)).keys() - {"params"})
    if others:
        raise _state_error(name, "flax.linen module", "collections", others, "params only")
    return Network(
        init=lambda key: variables(key).get("params", {}),
        apply=lambda parameters, x: module.apply({"params": parameters}, x),
    )


def _from_nnx(name: str, module: Any, build: _Build) -> Network:
    nnx = sys.modules["flax.nnx"]
    graph, _, rest = nnx.split(module, nnx.Param, ...)
    others = sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(rest)})
    if others:
        raise _state_error(name, "flax.nnx module", "variables", others, "nnx.Param only")

    def init(key: jax.Array) -> Parameters:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(parameters: Parameters, x: jax.Array) -> jax.Array:
        outputs: jax.Array = nnx.merge(graph, nnx.State(parameters))(x)
        return outputs

    return Network(init, apply)


def _from_equinox(name: str, module: Any, build: _Build) -> Network:
    equinox = sys.modules["equinox"]
    index = equinox.nn.StateIndex
    leaves = jax.tree.leaves(module, is_leaf=lambda leaf: isinstance(leaf, index))
    if any(isinstance(leaf, index) for leaf in leaves):
        raise _state_error(name, "equinox module", "state", ["StateIndex"], "no state")
    # Integers and functions in the module are no parameters: one copy of them serves all.
    rest = equinox.filter(module, equinox.is_inexact_array, inverse=True)

    def init(key: jax.Array) -> Parameters:
        return equinox.filter(build(key), equinox.is_inexact_array)

    def apply(parameters: Parameters, x: jax.Array) -> jax.Array:
        outputs: jax.Array = jax.vmap(equinox.combine(parameters, rest))(x)
        return outputs

    return Network(init, apply)


def _state_error(name: str, kind: str, what: str, found: Sequence[str], allowed: str) -> InputError:
    """A module keeps more than parameters: running averages of batch norm, random states."""
    return InputError(
        f"model {name}: the {kind} has the {what} {', '.join(found)}, which training would leave "
        "as they are (batch normalisation with running averages, dropout and the like cannot be "
        f"used); allowed: {allowed}"
    )


def _converted(network: Network, dtype: Any) -> Network:
    """The network with its floating-point parameters in one type."""

    def convert(array: Any) -> Any:
        array = jnp.asarray(array)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return network._replace(init=lambda key: jax.tree.map(convert, network.init(key)))


def _check(name: str, network: Network, inputs: jax.ShapeDtypeStruct, num_outputs: int) -> None:
    with _reporting(name, "making its parameters"):
        parameters = jax.eval_shape(network.init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    if not leaves:
        raise InputError(f"model {name}: it has no parameters; allowed: one array and more")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InputError(
                f"model {name}: its parameter {where} is {leaf.dtype}; "
                "allowed: floating-point numbers"
            )
    with _reporting(name, "applying it"):
        outputs = jax.eval_shape(network.apply, parameters, inputs)
    expected = (inputs.shape[0], num_outputs)
    if getattr(outputs, "shape", None) != expected:
        got = getattr(outputs, "shape", type(outputs).__name__)
        raise InputError(
            f"model {name}: for inputs of shape {inputs.shape} its output is {got}; "
            f"allowed: {expected}"
        )
    if jnp.promote_types(outputs.dtype, inputs.dtype) != outputs.dtype:
        raise InputError(
            f"model {name}: its output is {outputs.dtype} where the run is in {inputs.dtype}; "
            "allowed: networks that compute in the precision of their parameters and inputs"
        )


@contextmanager
def _reporting(name: str, action: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line that says where."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        source = str(user_model_source(name))
        places = [f" ({frame.filename}:{frame.lineno})" for frame in frames]
        own = [place for place in places if place.startswith(f" ({source}:")]
        text = str(error).strip().split("\n")[0]
        raise InputError(
            f"model {name}: {action} failed: {type(error).__name__}: {text}{(own or [''])[-1]}"
        ) from error
