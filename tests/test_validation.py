"""Reading YAML and the one line that says what is wrong."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdphases.errors import InputError
from sgdphases.validation import (
    as_declared,
    check,
    describe_value,
    fill_defaults,
    format_path,
    load_schema,
    read_yaml,
    resolve_reference,
    suggest,
)

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "text"},
        "rate": {"type": "number", "exclusiveMinimum": 0, "description": "a number above 0"},
        "scale": {"type": ["number", "null"], "default": None, "description": "number or null"},
        "count": {"$ref": "#/$defs/count"},
        "rates": {"type": "array", "items": {"type": "number", "description": "a number"}},
        "kind": {"enum": ["one", "two"], "default": "one", "description": "one or two"},
    },
    "$defs": {"count": {"type": "integer", "minimum": 1, "default": 8, "description": "integer"}},
}


def message(action, *arguments):
    with pytest.raises(InputError) as caught:
        action(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a: [1, 2", ["not valid YAML", "line 1"]),
        ("a: 1\nb:\t- 2\n  c", ["not valid YAML", "line 2"]),
        ("a: 1\nb: 2\na: 3\n", ["line 3", "'a'", "twice"]),
        ("outer:\n  a: 1\n  'a': 3\n", ["line 3", "'a'", "twice"]),
        ("list: [{x: 1, x: 2}]", ["'x'", "twice"]),
        ("? [1, 2]\n: 3\n", ["not valid YAML", "unhashable"]),
        ("{{value}}", ["not valid YAML", "unhashable"]),
        ("a: !python/object:os.system 1", ["not valid YAML", "constructor"]),
        ("a: *unknown", ["not valid YAML", "unknown"]),
        ("- a\n- b\n", ["holds list", "mapping"]),
        ("just text", ["holds str", "mapping"]),
        ("", ["holds NoneType", "mapping"]),
        ("a: \x00", ["not valid YAML"]),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path, text, fragments):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    line = message(read_yaml, path)
    for fragment in [str(path), *fragments]:
        assert fragment in line


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert "no such file" in message(read_yaml, tmp_path / "absent.yaml")
    assert "cannot be read" in message(read_yaml, tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    assert "not valid YAML" in message(read_yaml, binary)


def test_merge_keys_may_override(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(
        "base: &base {a: 1, b: 2}\nmore: &more\n  <<: *base\n  b: 3\nall: {<<: *more}\n"
    )
    assert read_yaml(path)["more"] == {"a": 1, "b": 3}
    assert read_yaml(path)["all"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("document", "fragments"),
    [
        ({"name": 3}, ["name: 3 is not allowed", "allowed: text"]),
        ({"name": "x", "rat": 1}, ["unknown key 'rat'", "did you mean 'rate'"]),
        ({"rate": 1.0}, ["key 'name' is missing"]),
        ({"name": "x", "rate": 0}, ["rate: 0 is not allowed", "a number above 0"]),
        ({"name": "x", "rate": True}, ["rate: True is not allowed"]),
        ({"name": "x", "rate": "1e-3"}, ["rate: '1e-3' is not allowed", "1.0e-3"]),
        ({"name": "x", "rate": math.nan}, ["rate: nan is not allowed", "a finite number"]),
        ({"name": "x", "rate": math.inf}, ["rate: inf is not allowed", "a finite number"]),
        ({"name": "x", "rate": 10**400}, ["rate: 1000", "below 2^63"]),
        ({"name": "x", "rates": [1, -math.inf]}, ["rates[1]: -inf is not allowed"]),
        ({"name": "x", "rates": [1, "1E5"]}, ["rates[1]: '1E5'", "1.0e-3"]),
        ({"name": "x", "count": 2.0}, ["count: 2.0 is not allowed"]),
        ({"name": "x", "count": True}, ["count: True is not allowed"]),
        ({"name": "x", 3: 4}, ["3: key 3 is not allowed", "text"]),
        ({"name": "x", "kind": "three"}, ["kind: 'three'", "one or two"]),
        ([], ["[] is not allowed"]),
    ],
)
def test_faults_name_path_value_and_what_is_allowed(document, fragments):
    line = message(check, document, SCHEMA, "file.yaml")
    assert line.startswith("file.yaml: ")
    for fragment in fragments:
        assert fragment in line


def test_the_prefix_is_part_of_the_path():
    line = message(check, {"name": 3}, SCHEMA, "f", ("grid", 2))
    assert line.startswith("f: grid[2].name: 3")


def test_endless_nesting_is_refused():
    circle = []
    circle.append(circle)
    assert "too deep" in message(check, {"name": circle}, SCHEMA, "f")


def test_a_valid_document_passes():
    check({"name": "x", "rate": 1, "scale": None, "count": 2, "rates": [1, 2.5]}, SCHEMA, "f")


def test_defaults_come_from_the_schema_and_its_references():
    assert fill_defaults({"name": "x"}, SCHEMA) == {
        "name": "x",
        "scale": None,
        "count": 8,
        "kind": "one",
    }
    assert fill_defaults({"kind": "two"}, SCHEMA)["kind"] == "two"


def test_whole_numbers_of_real_keys_become_float():
    typed = as_declared({"rate": 1, "scale": 2, "count": 3, "name": "x", "other": 4}, SCHEMA)
    kinds = {key: type(value).__name__ for key, value in typed.items()}
    assert kinds == {
        "rate": "float",
        "scale": "float",
        "count": "int",
        "name": "str",
        "other": "int",
    }
    assert as_declared(None, SCHEMA["properties"]["scale"]) is None


def test_unknown_references_are_a_fault_of_the_program():
    with pytest.raises(KeyError):
        resolve_reference(SCHEMA, "#/$defs/absent")


def test_paths_read_as_in_the_file():
    assert format_path(["grid", "learning_rate", 2]) == "grid.learning_rate[2]"
    assert format_path(["grid", 0, "seed"]) == "grid[0].seed"
    assert format_path([]) == ""


def test_suggestions_list_everything_and_the_nearest():
    assert suggest("learning_rat", ["seed", "learning_rate"]) == (
        "learning_rate, seed (did you mean 'learning_rate'?)"
    )
    assert suggest("zzz", ["b", "a"]) == "a, b"


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=30))
def test_values_are_described_in_one_short_line(value):
    text = describe_value(value)
    assert len(text) <= 60
    assert "\n" not in text


@pytest.mark.parametrize("name", ["config", "experiment", "dataset"])
def test_every_leaf_of_a_schema_says_what_is_allowed(name):
    """A rule without a description would end in a message of the validator's own."""

    def leaves(part, path):
        if isinstance(part, dict):
            rules = {"enum", "minimum", "exclusiveMinimum", "pattern", "minLength", "minItems"}
            if rules & set(part):
                yield path, part
            for key, value in part.items():
                # Alternatives are described as a whole, by what holds them.
                if key not in ("anyOf", "oneOf"):
                    yield from leaves(value, (*path, key))
        elif isinstance(part, list):
            for i, value in enumerate(part):
                yield from leaves(value, (*path, str(i)))

    bare = [path for path, part in leaves(load_schema(name), ("",)) if "description" not in part]
    assert bare == []
