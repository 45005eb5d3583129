"""Functions of arrays whose derivatives are given rather than found by JAX."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

# From arguments, the axis of each that runs lie along, or None, and the options by name, to the
# result and its axis.
BatchRule = Callable[..., tuple[jax.Array, int]]


def make_primitive(
    name: str, function: Callable[..., jax.Array], batch: BatchRule | None = None
) -> Primitive:
    """A primitive of JAX that computes what a function does; it has no derivatives yet.

    Within `jax.shard_map` it needs `check_vma=False`: it does not tell how devices differ.

    Args:
        name: Its name, as in traces.
        function: From arrays, and options by name, to an array.
        batch: How `jax.vmap` takes it; None: as it takes the function.

    Returns:
        The primitive, whose `bind` takes what the function takes.
    """
    primitive = Primitive(name)

    def abstract(*arguments: Any, **options: Any) -> Any:
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
        shape = jax.eval_shape(partial(function, **options), *shapes)
        return jax.core.ShapedArray(shape.shape, shape.dtype)

    def batch_function(arguments: Any, axes: Any, **options: Any) -> tuple[jax.Array, int]:
        return jax.vmap(partial(function, **options), in_axes=axes)(*arguments), 0

    primitive.def_impl(function)
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = batch or batch_function
    return primitive
