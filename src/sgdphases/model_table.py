"""The models by name: what builds each of them, and its default hyperparameters.

Nothing here imports JAX: the workflow reads the table each time it is parsed.
"""

from functools import cache
from pathlib import Path
from typing import Any

from sgdphases.errors import InputError
from sgdphases.user_code import is_user_model
from sgdphases.validation import read_yaml, suggest

__all__ = ["is_user_model", "model_entry", "model_names"]

# Part of the package's data.
_TABLE = Path(__file__).parent / "models" / "table.yaml"


@cache
def _table() -> dict[str, Any]:
    return read_yaml(_TABLE)


def model_names() -> tuple[str, ...]:
    """The names of the package's models."""
    return tuple(_table())


def model_entry(name: str) -> dict[str, Any]:
    """What the table says of a model.

    Args:
        name: One of `model_names()`.

    Returns:
        A mapping with `function`, the name of the function that builds the model, and
        `hyperparameters`, their defaults by name.

    Raises:
        InputError: There is no such model.
    """
    table = _table()
    if name not in table:
        raise InputError(
            f"model: {name!r} is no known model; allowed: package.module:function, or "
            f"{suggest(name, table)}"
        )
    entry = table[name]
    return {"function": entry["function"], "hyperparameters": dict(entry["hyperparameters"])}
