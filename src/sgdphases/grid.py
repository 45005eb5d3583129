"""Expand a grid of hyperparameters into runs."""

import hashlib
import itertools
import json
from typing import Any

import numpy as np

from sgdphases.errors import InputError
from sgdphases.validation import (
    check,
    describe_value,
    format_path,
    load_schema,
    resolve_reference,
    suggest,
)

# Where a learning rate's unit is kept in a run: "absolute", or "critical" for units of 2/lambda_0.
LEARNING_RATE_UNIT = "learning_rate_relative_to"
_UNITS = ("absolute", "critical")
_GENERATORS = ("value", "values", "linspace", "logspace")
# Generated values are rounded to as many digits as one would write, so that a run keeps its
# identity when the same rate is listed by hand or by another generator.
_SIGNIFICANT_DIGITS = 12

Path = tuple[str | int, ...]


def hyperparameter_schemas() -> dict[str, dict[str, Any]]:
    """The schema of each known hyperparameter by name."""
    schema = load_schema("experiment")
    properties = resolve_reference(schema, "#/$defs/hyperparameters")["properties"]
    return dict(properties)


def content_hash(content: Any) -> str:
    """A short stable name for JSON-like content (12 hexadecimal digits of its sha256)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def expand_grid(
    hyperparameters: dict[str, Any], grid: dict[str, Any] | list[Any], source: str
) -> list[dict[str, Any]]:
    """List the hyperparameter settings of a grid.

    A grid is a mapping from hyperparameter to its values, of which the product is taken, or a list
    of such mappings, of which the union is taken. Values are a list, or one of `value`, `values`,
    `linspace`, `logspace` with `start`, `stop`, `num`; a learning rate may add
    `relative_to: critical`. The key `points` lists whole settings by hand.

    Args:
        hyperparameters: Values that all runs share.
        grid: The grid as read.
        source: The file, for messages.

    Returns:
        One mapping from hyperparameter to value per run, in the order of the file.

    Raises:
        InputError: An axis names no hyperparameter, a value is not allowed, the grid is empty or a
            run is listed twice.
    """
    parts = [(("grid",), grid)] if isinstance(grid, dict) else None
    parts = parts or [(("grid", i), part) for i, part in enumerate(grid)]
    runs: list[dict[str, Any]] = []
    for path, part in parts:
        runs.extend(_expand_product(hyperparameters, part, source, path))
    if not runs:
        raise InputError(f"{source}: grid: holds no run; allowed: at least one value on every axis")
    seen: set[str] = set()
    for run in runs:
        name = content_hash(run)
        if name in seen:
            swept = {key: run[key] for key in _swept(grid) if key in run}
            raise InputError(f"{source}: grid: the run {describe_value(swept)} is listed twice")
        seen.add(name)
    return runs


def _swept(grid: dict[str, Any] | list[Any]) -> list[str]:
    parts = [grid] if isinstance(grid, dict) else grid
    names = [key for part in parts for key in part if key != "points"]
    names += [key for part in parts for point in part.get("points", []) for key in point]
    return list(dict.fromkeys(names))


def _expand_product(
    hyperparameters: dict[str, Any], part: dict[str, Any], source: str, path: Path
) -> list[dict[str, Any]]:
    axes: list[list[dict[str, Any]]] = []
    for name, values in part.items():
        here = (*path, name)
        if name == "points":
            axes.append(_read_points(values, source, here))
        else:
            axes.append(_read_axis(name, values, source, here))
    return [
        _with_unit({**hyperparameters, **{k: v for setting in choice for k, v in setting.items()}})
        for choice in itertools.product(*axes)
    ]


def _with_unit(run: dict[str, Any]) -> dict[str, Any]:
    return {LEARNING_RATE_UNIT: "absolute", **run} if "learning_rate" in run else run


def _read_points(points: Any, source: str, path: Path) -> list[dict[str, Any]]:
    if not isinstance(points, list) or not all(isinstance(p, dict) for p in points):
        raise InputError(f"{source}: {format_path(path)}: allowed: a list of mappings")
    settings = []
    for i, point in enumerate(points):
        setting: dict[str, Any] = {}
        for name, value in point.items():
            here = (*path, i, name)
            single = value if isinstance(value, dict) else [value]
            choices = _read_axis(name, single, source, here)
            if len(choices) != 1:
                raise InputError(f"{source}: {format_path(here)}: allowed: a single value")
            setting.update(choices[0])
        settings.append(setting)
    return settings


def _read_axis(name: str, values: Any, source: str, path: Path) -> list[dict[str, Any]]:
    schemas = hyperparameter_schemas()
    where = f"{source}: {format_path(path)}"
    if name not in schemas:
        raise InputError(
            f"{where}: {name!r} is no known hyperparameter; allowed: {suggest(name, schemas)}"
        )
    unit = None
    if isinstance(values, dict):
        values, unit = _generate(name, values, where)
    if not isinstance(values, list):
        raise InputError(
            f"{where}: {describe_value(values)} is not allowed; allowed: a list, or a mapping with "
            f"one of {', '.join(_GENERATORS)}"
        )
    for i, value in enumerate(values):
        indexed = f"{format_path(path)}[{i}]"
        check(value, schemas[name], source, (indexed,))
    extra = {} if unit is None else {LEARNING_RATE_UNIT: unit}
    return [{name: _as_declared(value, schemas[name]), **extra} for value in values]


def _as_declared(value: Any, schema: dict[str, Any]) -> Any:
    """Whole numbers of a real hyperparameter as float, so that 1 and 1.0 are the same run."""
    kinds = schema.get("type", [])
    is_real = "number" in ([kinds] if isinstance(kinds, str) else kinds)
    return float(value) if is_real and value is not None else value


def _generate(name: str, values: dict[str, Any], where: str) -> tuple[list[Any], str | None]:
    unit = values.get("relative_to")
    if unit is not None and name != "learning_rate":
        raise InputError(f"{where}.relative_to: only a learning_rate may be relative")
    if unit is not None and unit not in _UNITS:
        raise InputError(
            f"{where}.relative_to: {describe_value(unit)} is not allowed; allowed: "
            f"{', '.join(_UNITS)}"
        )
    unknown = [key for key in values if key not in (*_GENERATORS, "relative_to")]
    if unknown:
        raise InputError(
            f"{where}: unknown key {unknown[0]!r}; allowed: "
            f"{suggest(str(unknown[0]), (*_GENERATORS, 'relative_to'))}"
        )
    given = [key for key in _GENERATORS if key in values]
    if len(given) != 1:
        raise InputError(f"{where}: allowed: exactly one of {', '.join(_GENERATORS)}")
    kind, content = given[0], values[given[0]]
    if kind == "value":
        return [content], unit
    if kind == "values":
        if not isinstance(content, list):
            raise InputError(f"{where}.values: {describe_value(content)} is no list")
        return content, unit
    return _spaced(kind, content, f"{where}.{kind}"), unit


def _spaced(kind: str, content: Any, where: str) -> list[float]:
    keys = {"start", "stop", "num"}
    if not isinstance(content, dict) or set(content) != keys:
        raise InputError(f"{where}: allowed: a mapping with exactly start, stop, num")
    for key in ("start", "stop"):
        value = content[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(
                f"{where}.{key}: {describe_value(value)} is no number (in YAML write 1.0e-3)"
            )
    num = content["num"]
    if isinstance(num, bool) or not isinstance(num, int) or num < 1:
        raise InputError(
            f"{where}.num: {describe_value(num)} is not allowed; allowed: an integer of at least 1"
        )
    if kind == "logspace":
        if min(content["start"], content["stop"]) <= 0:
            raise InputError(f"{where}: start and stop must be above 0")
        values = np.geomspace(content["start"], content["stop"], num)
    else:
        values = np.linspace(content["start"], content["stop"], num)
    return [float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values]
