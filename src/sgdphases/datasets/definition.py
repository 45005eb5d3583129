"""Reading and validating dataset definitions."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sgdphases.errors import InputError
from sgdphases.validation import check, describe_value, load_schema, read_yaml


def load_definition(path: Path) -> dict[str, Any]:
    """Read a dataset definition and validate it.

    Args:
        path: The YAML file.

    Returns:
        The definition, as written.

    Raises:
        InputError: The file is missing, is not YAML, or breaks a rule. The message names the
            file, the key path, the value and what is allowed.
    """
    return validate_definition(read_yaml(path), str(path))


def validate_definition(definition: dict[str, Any], source: str) -> dict[str, Any]:
    """Check a dataset definition against the schema and the rules a schema cannot express.

    Args:
        definition: What the YAML file holds.
        source: The file, as the user knows it.

    Returns:
        The definition itself.

    Raises:
        InputError: The definition breaks a rule. The message names the file, the key path, the
            value and what is allowed.
    """
    check(definition, load_schema("dataset"), source)
    if definition["source"] == "points":
        _check_points(definition, source)
    if "vocabulary_size" in definition:
        _check_tokens(definition, source)
    if definition["source"] == "gaussian_mixture":
        _check_mixture(definition, source)
    if isinstance(definition.get("normalisation"), dict):
        _check_normalisation(definition["normalisation"], source)
    return definition


def _check_points(definition: dict[str, Any], source: str) -> None:
    for key in ("inputs", "targets"):
        rows = definition[key]
        if len({len(row) for row in rows}) > 1:
            raise InputError(
                f"{source}: {key}: {describe_value(rows)} is not allowed; allowed: rows of "
                f"equal length"
            )
        if not _all_finite(number for row in rows for number in row):
            raise InputError(
                f"{source}: {key}: {describe_value(rows)} is not allowed; allowed: finite numbers"
            )
    num_inputs, num_targets = len(definition["inputs"]), len(definition["targets"])
    if num_inputs != num_targets:
        raise InputError(
            f"{source}: targets: {num_targets} rows; allowed: {num_inputs}, one for each row of "
            f"inputs"
        )


def _check_tokens(definition: dict[str, Any], source: str) -> None:
    choice = definition.get("normalisation", "none")
    if choice != "none":
        raise InputError(
            f"{source}: normalisation: {describe_value(choice)} is not allowed; allowed: none, as "
            f"tokens are names and no quantities"
        )


def _check_mixture(definition: dict[str, Any], source: str) -> None:
    given = [key for key in ("input_dim", "input_shape") if key in definition]
    if len(given) != 1:
        fault = "both are given" if given else "neither is given"
        raise InputError(
            f"{source}: input_dim, input_shape: {fault}; allowed: one of them, a number of "
            f"features or [height, width, channels]"
        )
    num_features = math.prod(mixture_shape(definition))
    if definition["num_classes"] > num_features:
        raise InputError(
            f"{source}: num_classes: {definition['num_classes']} is not allowed; allowed: at most "
            f"the number of features, {num_features}, as the means are orthogonal"
        )


def mixture_shape(definition: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of a sample of the source gaussian_mixture."""
    shape = definition.get("input_shape")
    return (definition["input_dim"],) if shape is None else tuple(shape)


def _check_normalisation(normalisation: dict[str, Any], source: str) -> None:
    for key in ("mean", "std"):
        value = normalisation[key]
        if not _all_finite(value if isinstance(value, list) else [value]):
            raise InputError(
                f"{source}: normalisation.{key}: {value!r} is not allowed; allowed: finite numbers"
            )


def _all_finite(numbers: Iterable[float]) -> bool:
    return all(math.isfinite(number) for number in numbers)
