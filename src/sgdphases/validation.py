"""Read YAML and check it against a JSON Schema, with one clear line for what is wrong."""

import difflib
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from jsonschema.exceptions import ValidationError, relevance
from jsonschema.validators import validator_for

from sgdphases.errors import InputError

_NUMBER_AS_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_LONGEST_VALUE = 60


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: The file is missing, is not valid YAML, gives a key twice or holds no mapping.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
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


def check(document: Any, schema: dict[str, Any], source: str, prefix: tuple[str, ...] = ()) -> None:
    """Validate `document` and raise on its most telling fault.

    Args:
        document: What was read.
        schema: A JSON Schema whose `description` fields say what is allowed, in words.
        source: The file, as the user knows it.
        prefix: Key path of `document` within the file.

    Raises:
        InputError: `source: key path: value; allowed …`.
    """
    errors = list(validator_for(schema)(schema).iter_errors(document))
    if errors:
        worst = max(errors, key=relevance)
        raise InputError(f"{source}: {_describe(worst, prefix)}")


def _describe(error: ValidationError, prefix: tuple[str, ...]) -> str:
    path = format_path([*prefix, *error.absolute_path])
    where = f"{path}: " if path else ""
    schema = error.schema if isinstance(error.schema, dict) else {}
    if error.validator == "additionalProperties":
        known = schema.get("properties", {})
        unknown = sorted(set(error.instance) - set(known), key=str)[0]
        return f"{where}unknown key {unknown!r}; allowed: {suggest(str(unknown), known)}"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{where}key {missing[0]!r} is missing"
    allowed = schema.get("description", error.message)
    value = error.instance
    note = ""
    if isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value):
        note = " (YAML reads this as text: a number needs a dot and no quotes, as in 1.0e-3)"
    return f"{where}{describe_value(value)} is not allowed; allowed: {allowed}{note}"


def fill_defaults(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The document with the schema's top-level defaults for the keys it leaves out."""
    defaults = {
        key: entry["default"]
        for key, entry in schema.get("properties", {}).items()
        if "default" in entry
    }
    return {**defaults, **document}


def resolve_reference(schema: dict[str, Any], reference: str) -> dict[str, Any]:
    """The part of `schema` that the local reference `#/$defs/…` names."""
    part: Any = schema
    for name in reference.removeprefix("#/").split("/"):
        part = part[name]
    if not isinstance(part, dict):
        raise jsonschema.SchemaError(f"{reference} is no schema")
    return part
