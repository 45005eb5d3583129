"""Expand a grid of hyperparameters into runs."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sgdphases.errors import InputError
from sgdphases.validation import (
    KeyPath,
    as_declared,
    check,
    describe_value,
    format_path,
    load_schema,
    resolve_reference,
    suggest,
)

# Where a learning rate's unit is kept in a run: "absolute", "critical" for units of 2/lambda_0, or
# "edge" for units of the rate of an edge that was searched.
# One in units of the temperature or of the richness law is made absolute before anything runs: the
# run itself says how hot and how rich it is.
LEARNING_RATE_UNIT = "learning_rate_relative_to"
# Of the common hyperparameters, those that define a network at initialisation, and with it its
# curvature; those of the model all do. Centring and a second head change the outputs, and not the
# tangent kernel.
NETWORK_HYPERPARAMETERS = (
    "model",
    "parametrisation",
    "weight_scale",
    "bias_scale",
    "zero_readout",
    "richness",
    "inverse_temperature",
    "loss",
    "loss_normalisation",
    "precision",
    "seed",
)
# What may differ between the runs of one compiled program.
VECTORISED_HYPERPARAMETERS = (
    "learning_rate",
    LEARNING_RATE_UNIT,
    "momentum",
    "weight_decay",
    "weight_decay_from",
    "budget_epochs",
    "budget_steps",
    "budget_physical_time",
    "final_learning_rate",
    "final_steps",
    "first_moment_decay",
    "second_moment_decay",
    "epsilon",
    "richness",
    "inverse_temperature",
    "head_correlation",
    "initial_logit_norm",
    "seed",
)
# Of which any that is not null gives a run a second, frozen head.
SECOND_HEAD_HYPERPARAMETERS = ("head_correlation", "initial_logit_norm")

_TEMPERATURE = "temperature"
# Multiples of `portraits.richness_law`; resolved once the run's depth is known.
RICHNESS_LAW = "richness_law"
_UNITS = ("absolute", "critical", "edge", _TEMPERATURE, RICHNESS_LAW)
_GENERATORS = ("value", "values", "linspace", "logspace")
# Of a weight decay that another experiment predicts.
_PREDICTION_KEYS = ("from", "budget")
# Generated values are rounded to as many digits as one would write, so that a run keeps its
# identity when the same rate is listed by hand or by another generator.
_SIGNIFICANT_DIGITS = 12
_NUMBER = {"type": "number", "description": "a number"}
_POSITIVE_NUMBER = {"type": "number", "exclusiveMinimum": 0, "description": "a number above 0"}
_COUNT = {"type": "integer", "minimum": 1, "description": "an integer of at least 1"}


def hyperparameter_schemas() -> dict[str, dict[str, Any]]:
    """The schema of each known hyperparameter by name."""
    schema = load_schema("experiment")
    properties = resolve_reference(schema, "#/$defs/hyperparameters")["properties"]
    return dict(properties)


def content_hash(content: Any) -> str:
    """A short stable name for JSON-like content (12 hexadecimal digits of its sha256)."""
    return text_hash(canonical_text(content))


def canonical_text(content: Any) -> str:
    """JSON-like content as one text, whatever the order of its keys."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def text_hash(text: str) -> str:
    """12 hexadecimal digits of a text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def expand_grid(
    hyperparameters: dict[str, Any], grid: dict[str, Any] | list[Any], source: str
) -> list[dict[str, Any]]:
    """List the hyperparameter settings of a grid.

    A grid is a mapping from hyperparameter to its values, of which the product is taken, or a list
    of such mappings, of which the union is taken. Values are a list, or one of `value`, `values`,
    `linspace`, `logspace` with `start`, `stop`, `num`; a learning rate may add
    `relative_to: critical`, `edge` or `richness_law`, or `relative_to: temperature` for multiples
    of 1 over the run's inverse temperature; a weight decay may be `from` an experiment with a
    prediction for each `budget` of epochs, its values being factors, 1 where there are none. The
    key `points` lists whole settings by hand.

    Args:
        hyperparameters: Values that all runs share.
        grid: The grid as read.
        source: The file, for messages.

    Returns:
        One mapping from hyperparameter to value per run, in the order of the file; defaults are
        not filled in.

    Raises:
        InputError: An axis names no hyperparameter or holds no value, a value is not allowed, or a
            run is listed twice.
    """
    runs: list[dict[str, Any]] = []
    if isinstance(grid, dict):
        runs.extend(_expand_product(hyperparameters, grid, source, ("grid",)))
    else:
        for i, part in enumerate(grid):
            runs.extend(_expand_product(hyperparameters, part, source, ("grid", i)))
    refuse_duplicates(runs, grid, source)
    return runs


def refuse_duplicates(
    runs: Iterable[Mapping[str, Any]], grid: dict[str, Any] | list[Any], source: str
) -> None:
    """Refuse a grid that lists the same run twice.

    Args:
        runs: Its runs.
        grid: The grid as read.
        source: The file, for messages.

    Raises:
        InputError: Two runs have the same hyperparameters.
    """
    # All else is the same in all runs, or follows from these.
    names = [*swept_names(grid), LEARNING_RATE_UNIT]
    seen: set[tuple[Any, ...]] = set()
    for run in runs:
        values = tuple(run.get(name) for name in names)
        if values in seen:
            swept = {key: run[key] for key in swept_names(grid) if key in run}
            raise InputError(
                f"{source}: grid: the run {describe_value(swept)} is listed twice; allowed: once"
            )
        seen.add(values)


def swept_names(grid: dict[str, Any] | list[Any]) -> list[str]:
    """The hyperparameters that a grid, as read, gives values for."""
    parts = [grid] if isinstance(grid, dict) else grid
    settings = [*parts, *(point for part in parts for point in part.get("points", []))]
    names = [key for setting in settings for key in setting if key != "points"]
    decays = [setting.get("weight_decay") for setting in settings]
    if any(isinstance(decay, dict) and "from" in decay for decay in decays):
        names += ["weight_decay_from", "budget_epochs"]
    return list(dict.fromkeys(names))


def _expand_product(
    hyperparameters: dict[str, Any], part: dict[str, Any], source: str, path: KeyPath
) -> list[dict[str, Any]]:
    axes: list[list[dict[str, Any]]] = []
    for name, values in part.items():
        here = (*path, name)
        if name == "points":
            axes.append(_read_points(values, part, source, here))
        else:
            axes.append(_read_axis(name, values, source, here))
    return [
        _with_unit({**hyperparameters, **{k: v for setting in choice for k, v in setting.items()}})
        for choice in itertools.product(*axes)
    ]


def _with_unit(run: dict[str, Any]) -> dict[str, Any]:
    if "learning_rate" not in run:
        return run
    if run.get(LEARNING_RATE_UNIT) == _TEMPERATURE:
        rate = rounded(run["learning_rate"] / run.get("inverse_temperature", 1.0))
        return {**run, "learning_rate": rate, LEARNING_RATE_UNIT: "absolute"}
    return {LEARNING_RATE_UNIT: "absolute", **run}


def _read_points(
    points: Any, part: dict[str, Any], source: str, path: KeyPath
) -> list[dict[str, Any]]:
    if points == []:
        raise _empty(source, path)
    if not isinstance(points, list) or not all(isinstance(p, dict) for p in points):
        raise InputError(
            f"{source}: {format_path(path)}: {describe_value(points)} is not allowed; allowed: a "
            "list of mappings from hyperparameter to its value"
        )
    settings = []
    for i, point in enumerate(points):
        setting: dict[str, Any] = {}
        for name, value in point.items():
            here = (*path, i, name)
            if name in part:
                raise InputError(
                    f"{source}: {format_path(here)}: {name!r} is an axis of the same grid; "
                    "allowed: to give it in one of the two"
                )
            if isinstance(value, dict):
                choices = _read_axis(name, value, source, here)
            else:
                choices = [_read_value(name, value, source, here)]
            if len(choices) != 1:
                raise InputError(
                    f"{source}: {format_path(here)}: {describe_value(value)} is not allowed; "
                    "allowed: a single value"
                )
            setting.update(choices[0])
        settings.append(setting)
    return settings


def _read_axis(name: str, values: Any, source: str, path: KeyPath) -> list[dict[str, Any]]:
    schema = _schema_of(name, source, path)
    if values == []:
        raise _empty(source, path)
    if isinstance(values, list):
        return [_read_value(name, v, source, (*path, i)) for i, v in enumerate(values)]
    if not isinstance(values, dict):
        raise InputError(
            f"{source}: {format_path(path)}: {describe_value(values)} is not allowed; allowed: a "
            f"list, or a mapping with one of {', '.join(_GENERATORS)}"
        )
    where = f"{source}: {format_path(path)}"
    if name == "weight_decay" and set(_PREDICTION_KEYS) & set(values):
        return _read_prediction(values, source, path)
    unit = _read_unit(name, values, where)
    kind = _generator_of(values, where)
    here, content = (*path, kind), values[kind]
    if kind == "value":
        settings = [_read_value(name, content, source, here)]
    elif kind == "values":
        if not isinstance(content, list):
            raise InputError(
                f"{where}.values: {describe_value(content)} is not allowed; allowed: a list"
            )
        settings = [_read_value(name, v, source, (*here, i)) for i, v in enumerate(content)]
    else:
        spaced: list[Any] = _spaced(kind, content, source, here)
        if schema.get("type") == "integer":
            spaced = [int(value) if value.is_integer() else value for value in spaced]
        settings = [_read_value(name, value, source, here) for value in spaced]
    if not settings:
        raise _empty(source, here)
    extra = {} if unit is None else {LEARNING_RATE_UNIT: unit}
    return [{**setting, **extra} for setting in settings]


def _read_prediction(values: dict[str, Any], source: str, path: KeyPath) -> list[dict[str, Any]]:
    """Weight decays relative to those that another experiment predicts, budget by budget."""
    for key in _PREDICTION_KEYS:
        if values.get(key) is None:
            raise InputError(
                f"{source}: {format_path(path)}: key {key!r} is missing; required: from (an "
                "experiment with a prediction) and budget (epochs), together"
            )
    budgets = values["budget"] if isinstance(values["budget"], list) else [values["budget"]]
    factors = {key: value for key, value in values.items() if key not in _PREDICTION_KEYS}
    settings = []
    for budget in budgets:
        setting = {
            **_read_value("weight_decay_from", values["from"], source, (*path, "from")),
            **_read_value("budget_epochs", budget, source, (*path, "budget")),
        }
        settings += [
            {**factor, **setting}
            for factor in _read_axis("weight_decay", factors or {"value": 1.0}, source, path)
        ]
    if not settings:
        raise _empty(source, (*path, "budget"))
    return settings


def _empty(source: str, path: KeyPath) -> InputError:
    return InputError(
        f"{source}: {format_path(path)}: [] is not allowed; allowed: at least one value"
    )


def _schema_of(name: str, source: str, path: KeyPath) -> dict[str, Any]:
    schemas = hyperparameter_schemas()
    if name not in schemas:
        raise InputError(
            f"{source}: {format_path(path)}: {name!r} is no known hyperparameter; allowed: "
            f"{suggest(name, schemas)}"
        )
    return schemas[name]


def _read_value(name: str, value: Any, source: str, path: KeyPath) -> dict[str, Any]:
    schema = _schema_of(name, source, path)
    check(value, schema, source, path)
    return {name: as_declared(value, schema)}


def _read_unit(name: str, values: dict[str, Any], where: str) -> str | None:
    """What the values are relative to; None where the mapping does not say."""
    if "relative_to" not in values:
        return None
    unit = values["relative_to"]
    if name != "learning_rate":
        raise InputError(
            f"{where}.relative_to: {describe_value(unit)} is not allowed; allowed: only in "
            "learning_rate"
        )
    if unit not in _UNITS:
        raise InputError(
            f"{where}.relative_to: {describe_value(unit)} is not allowed; allowed: "
            f"{', '.join(_UNITS)}"
        )
    return str(unit)


def _generator_of(values: dict[str, Any], where: str) -> str:
    known = (*_GENERATORS, "relative_to")
    for key in values:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; allowed: {suggest(str(key), known)}")
    given = [key for key in _GENERATORS if key in values]
    if len(given) != 1:
        raise InputError(
            f"{where}: {describe_value(values)} is not allowed; allowed: exactly one of "
            f"{', '.join(_GENERATORS)}"
        )
    return given[0]


def _spaced(kind: str, content: Any, source: str, path: KeyPath) -> list[float]:
    if not isinstance(content, dict) or set(content) != {"start", "stop", "num"}:
        raise InputError(
            f"{source}: {format_path(path)}: {describe_value(content)} is not allowed; allowed: a "
            "mapping with exactly start, stop, num"
        )
    number = _POSITIVE_NUMBER if kind == "logspace" else _NUMBER
    for key, schema in (("start", number), ("stop", number), ("num", _COUNT)):
        check(content[key], schema, source, (*path, key))
    space = np.geomspace if kind == "logspace" else np.linspace
    values = space(content["start"], content["stop"], content["num"])
    return [rounded(value) for value in values]


def rounded(value: float) -> float:
    """A number as one would write it by hand."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
