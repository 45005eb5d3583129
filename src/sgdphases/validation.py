"""Read YAML and check it against a JSON Schema, with one clear line for what is wrong."""

import copy
import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, relevance
from jsonschema.validators import extend

from sgdphases.errors import InputError

_NUMBER_AS_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_LONGEST_VALUE = 60
_DEEPEST_PATH = 30
_LARGEST_INTEGER = 2**63 - 1


def _is_integer(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON Schema counts 512.0 as an integer; here it would be a second name for the same run, and no
# array has 512.0 rows.
_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


# Where a value stands in a file: ("grid", "learning_rate", 2).
KeyPath = tuple[str | int, ...]


class _UniqueKeys:
    """Of a YAML loader: refuse a key given twice, where YAML would keep the last in silence."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Keys are compared as written, before merged ones (<<: *anchor) join them: those may be
        # overridden. A mapping that others merge comes here once for each of them.
        if not hasattr(node, "keys_are_unique"):
            seen = set()
            for key, _ in node.value:
                name = (key.tag, str(key.value))
                if name in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(name)
            node.keys_are_unique = True  # type: ignore[attr-defined]
        super().flatten_mapping(node)  # type: ignore[misc]


class _Loader(_UniqueKeys, yaml.SafeLoader):
    """In Python: slow, and precise in its messages."""


class _FastLoader(_UniqueKeys, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """In C, where PyYAML has it: every job of a cluster reads all files again."""


def _load(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_FastLoader)
    except yaml.YAMLError:
        return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: The file is missing, is not valid YAML, gives a key twice or holds no mapping.
    """
    try:
        document = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not a text file"
        raise InputError(f"{path}: not valid YAML{where}: {problem}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds {type(document).__name__}; allowed: a mapping of keys")
    return document


@cache
def load_schema(name: str) -> dict[str, Any]:
    """Read the package's JSON Schema `name`, e.g. "experiment"."""
    text = resources.files("sgdphases").joinpath(f"schemas/{name}.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def describe_value(value: Any) -> str:
    """The value as one would write it, shortened."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def format_path(parts: Iterable[str | int]) -> str:
    """A key path as text: `grid.learning_rate[2]`."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def suggest(name: str, allowed: Iterable[str]) -> str:
    """The allowed names, and the nearest one first where there is one."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{', '.join(names)}{hint}"


def check(document: Any, schema: dict[str, Any], source: str, prefix: KeyPath = ()) -> None:
    """Validate `document` and raise on its most telling fault.

    Args:
        document: What was read.
        schema: A JSON Schema whose `description` fields say what is allowed, in words.
        source: The file, as the user knows it.
        prefix: Key path of `document` within the file.

    Raises:
        InputError: `source: key path: value; allowed …`.
    """
    for path, fault in _unusable_parts(document, prefix):
        raise InputError(f"{source}: {format_path(path)}: {fault}")
    errors = list(_Validator(schema).iter_errors(document))
    if errors:
        worst = max(errors, key=relevance)
        raise InputError(f"{source}: {_describe(worst, prefix)}")


def _unusable_parts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """What YAML can write and no schema can refuse, with its key path."""
    if len(path) > _DEEPEST_PATH:
        yield path[:3], f"nested too deeply; allowed: at most {_DEEPEST_PATH} levels"
    elif isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                yield (
                    (*path, str(key)),
                    f"key {key!r} is not allowed; allowed: text (in quotes where it looks like a "
                    "number or a truth value)",
                )
            yield from _unusable_parts(entry, (*path, key))
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            yield from _unusable_parts(entry, (*path, i))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"{value} is not allowed; allowed: a finite number"
    elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        yield path, f"{describe_value(value)} is not allowed; allowed: integers below 2^63"


def _describe(error: ValidationError, prefix: KeyPath) -> str:
    path = format_path([*prefix, *error.absolute_path])
    where = f"{path}: " if path else ""
    schema = error.schema if isinstance(error.schema, dict) else {}
    value: Any = error.instance
    if error.validator == "additionalProperties":
        known = schema.get("properties", {})
        unknown = sorted(set(value) - set(known), key=str)[0]
        return f"{where}unknown key {unknown!r}; allowed: {suggest(str(unknown), known)}"
    if error.validator == "required":
        needed: Any = error.validator_value
        missing = [key for key in needed if key not in value]
        return f"{where}key {missing[0]!r} is missing; required: {', '.join(needed)}"
    allowed = schema.get("description", error.message)
    note = ""
    if isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value):
        note = " (YAML reads this as text: a number needs a dot and no quotes, as in 1.0e-3)"
    return f"{where}{describe_value(value)} is not allowed; allowed: {allowed}{note}"


def fill_defaults(
    document: dict[str, Any], schema: dict[str, Any], root: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The document with the schema's defaults for the keys it leaves out.

    Mappings within the document, and those that are defaults, are filled too.

    Args:
        document: A valid document.
        schema: Its schema.
        root: The schema that local references point into; `schema` itself where left out.
    """
    root = root or schema
    filled = {}
    for key, entry in schema.get("properties", {}).items():
        target = resolve_reference(root, entry["$ref"]) if "$ref" in entry else entry
        if key in document or "default" in target:
            value = document[key] if key in document else copy.deepcopy(target["default"])
            is_mapping = isinstance(value, dict)
            filled[key] = fill_defaults(value, target, root) if is_mapping else value
    return {**document, **filled}


def as_declared(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    """The value with whole numbers of real-valued keys as float, so that 1 and 1.0 are the same.

    Args:
        value: A valid value.
        schema: Its schema.
        root: The schema that local references point into; `schema` itself where left out.
    """
    root = root or schema
    if "$ref" in schema:
        schema = resolve_reference(root, schema["$ref"])
    if isinstance(value, dict):
        entries = schema.get("properties", {})
        return {key: as_declared(entry, entries.get(key, {}), root) for key, entry in value.items()}
    if isinstance(value, list):
        return [as_declared(entry, schema.get("items", {}), root) for entry in value]
    kinds = schema.get("type", [])
    is_real = "number" in ([kinds] if isinstance(kinds, str) else kinds)
    return float(value) if is_real and isinstance(value, int) else value


def resolve_reference(schema: dict[str, Any], reference: str) -> dict[str, Any]:
    """The part of `schema` that the local reference `#/$defs/…` names."""
    part: Any = schema
    for name in reference.removeprefix("#/").split("/"):
        part = part[name]
    if not isinstance(part, dict):
        raise jsonschema.SchemaError(f"{reference} is no schema")
    return part
