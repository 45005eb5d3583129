"""Grids: what they expand to, and what they refuse."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdphases.errors import InputError
from sgdphases.grid import (
    LEARNING_RATE_UNIT,
    content_hash,
    expand_grid,
    hyperparameter_schemas,
)

SHARED = {"model": "fully_connected"}
rates = st.floats(1e-6, 1e3).map(lambda value: float(f"{value:.6g}"))


def expand(grid):
    return expand_grid(SHARED, grid, "file.yaml")


def refusal(grid):
    with pytest.raises(InputError) as caught:
        expand(grid)
    line = str(caught.value)
    assert line.startswith("file.yaml: grid")
    assert "allowed" in line
    return line


def test_a_mapping_is_a_product_in_the_order_of_the_file():
    runs = expand({"learning_rate": [0.1, 1], "seed": [1, 0]})
    assert runs == [
        {**SHARED, LEARNING_RATE_UNIT: "absolute", "learning_rate": rate, "seed": seed}
        for rate, seed in itertools.product([0.1, 1.0], [1, 0])
    ]


def test_a_list_is_a_union():
    runs = expand([{"learning_rate": [0.1], "seed": [0, 1]}, {"learning_rate": [0.2]}])
    assert [(run["learning_rate"], run.get("seed")) for run in runs] == [
        (0.1, 0),
        (0.1, 1),
        (0.2, None),
    ]


def test_points_are_whole_settings():
    points = [
        {"width": 8, "learning_rate": 0.1},
        {"width": 16, "learning_rate": {"relative_to": "critical", "value": 0.5}},
    ]
    runs = expand({"points": points, "seed": [0, 1]})
    units = ["absolute", "absolute", "critical", "critical"]
    assert [run["width"] for run in runs] == [8, 8, 16, 16]
    assert [run["seed"] for run in runs] == [0, 1, 0, 1]
    assert [run[LEARNING_RATE_UNIT] for run in runs] == units


def test_the_grid_overrides_what_runs_share():
    runs = expand_grid({**SHARED, "width": 4}, {"width": [8]}, "file.yaml")
    assert [run["width"] for run in runs] == [8]


def test_an_empty_mapping_is_the_shared_setting_alone():
    assert expand_grid({**SHARED, "learning_rate": 1.0}, {}, "f") == [
        {**SHARED, LEARNING_RATE_UNIT: "absolute", "learning_rate": 1.0}
    ]


def test_generators_agree_with_a_list_by_hand():
    by_hand = expand({"learning_rate": [0.001, 0.01, 0.1, 1]})
    assert expand({"learning_rate": {"values": [0.001, 0.01, 0.1, 1.0]}}) == by_hand
    assert expand({"learning_rate": {"logspace": {"start": 0.001, "stop": 1, "num": 4}}}) == by_hand
    spaced = expand({"learning_rate": {"linspace": {"start": 0.1, "stop": 0.7, "num": 7}}})
    assert spaced == expand({"learning_rate": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]})


def test_generated_integers_are_integers():
    by_hand = expand({"width": [16, 64, 256]})
    generated = expand({"width": {"logspace": {"start": 16, "stop": 256, "num": 3}}})
    assert generated == by_hand
    assert all(isinstance(run["width"], int) for run in generated)
    line = refusal({"width": {"linspace": {"start": 1, "stop": 2, "num": 3}}})
    assert "grid.width.linspace: 1.5 is not allowed" in line


@given(st.lists(rates, min_size=1, max_size=5, unique=True), st.integers(1, 3))
def test_the_order_of_keys_does_not_change_a_run(values, num_seeds):
    seeds = list(range(num_seeds))
    one = expand({"learning_rate": values, "seed": seeds})
    other = expand({"seed": seeds, "learning_rate": values})
    assert {content_hash(run) for run in one} == {content_hash(run) for run in other}


@given(rates, st.floats(1.01, 1e3), st.integers(1, 20))
def test_generated_values_lie_between_their_ends(start, factor, num):
    stop = start * factor
    for kind in ("linspace", "logspace"):
        runs = expand({"learning_rate": {kind: {"start": start, "stop": stop, "num": num}}})
        values = [run["learning_rate"] for run in runs]
        assert len(values) == num
        assert values[0] == pytest.approx(start, rel=1e-11)
        assert values[-1] == pytest.approx(stop if num > 1 else start, rel=1e-11)
        assert (np.diff(values) > 0).all()


@given(rates)
def test_a_value_survives_the_rounding_of_generated_ones(value):
    generated = expand({"learning_rate": {"linspace": {"start": value, "stop": value, "num": 1}}})
    assert generated == expand({"learning_rate": [value]})


@pytest.mark.parametrize(
    ("grid", "fragments"),
    [
        ({"learning_rat": [1]}, ["grid.learning_rat:", "did you mean 'learning_rate'"]),
        ({"learning_rate": 0.1}, ["grid.learning_rate: 0.1", "a list, or a mapping"]),
        ({"learning_rate": []}, ["grid.learning_rate: []", "at least one value"]),
        ({"learning_rate": {"values": []}}, ["grid.learning_rate.values: []"]),
        ([{"seed": [1]}, {"seed": []}], ["grid[1].seed: []"]),
        ({"learning_rate": [0.1, -1]}, ["grid.learning_rate[1]: -1", "above 0"]),
        ({"learning_rate": {"values": [0.1, 0]}}, ["grid.learning_rate.values[1]: 0"]),
        ({"learning_rate": {"value": 0}}, ["grid.learning_rate.value: 0"]),
        ({"learning_rate": ["1e-3"]}, ["grid.learning_rate[0]: '1e-3'", "1.0e-3"]),
        ({"learning_rate": [float("nan")]}, ["grid.learning_rate[0]: nan", "finite"]),
        ({"learning_rate": [None]}, ["grid.learning_rate[0]: None"]),
        ({"learning_rate": [[0.1]]}, ["grid.learning_rate[0]: [0.1]"]),
        ({"seed": [True]}, ["grid.seed[0]: True"]),
        ({"seed": [1.0]}, ["grid.seed[0]: 1.0"]),
        ({"seed": [-1]}, ["grid.seed[0]: -1"]),
        ({"momentum": [1]}, ["grid.momentum[0]: 1", "below 1"]),
        ({"width": [0]}, ["grid.width[0]: 0"]),
        ({"activation": ["selu"]}, ["grid.activation[0]: 'selu'", "relu, tanh, erf, gelu"]),
        ({"learning_rate": {"values": [1], "linspace": {}}}, ["exactly one of"]),
        ({"learning_rate": {"relative_to": "critical"}}, ["exactly one of"]),
        ({"learning_rate": {"vals": [1]}}, ["unknown key 'vals'", "did you mean 'values'"]),
        ({"learning_rate": {"values": 3}}, ["grid.learning_rate.values: 3", "a list"]),
        (
            {"learning_rate": {"relative_to": "max", "value": 1}},
            [".relative_to: 'max'", "critical"],
        ),
        ({"learning_rate": {"relative_to": None, "value": 1}}, [".relative_to: None"]),
        ({"width": {"relative_to": "critical", "value": 1}}, ["grid.width.relative_to"]),
        ({"learning_rate": {"linspace": [1, 2, 3]}}, ["linspace: [1, 2, 3]", "start, stop, num"]),
        ({"learning_rate": {"logspace": {"start": 1, "stop": 2}}}, ["start, stop, num"]),
        (
            {"learning_rate": {"logspace": {"start": -1, "stop": 2, "num": 3}}},
            ["grid.learning_rate.logspace.start: -1", "above 0"],
        ),
        (
            {"learning_rate": {"logspace": {"start": "1e-3", "stop": 2, "num": 3}}},
            ["logspace.start: '1e-3'", "1.0e-3"],
        ),
        (
            {"learning_rate": {"linspace": {"start": 1, "stop": 2, "num": 0}}},
            ["linspace.num: 0", "at least 1"],
        ),
        ({"learning_rate": {"linspace": {"start": -1, "stop": 2, "num": 2}}}, ["linspace: -1.0"]),
        ({"seed": [0, 0]}, ["{'seed': 0}", "twice"]),
        ({"learning_rate": [1, 1.0]}, ["twice"]),
        ([{"seed": [0, 1]}, {"seed": [1]}], ["{'seed': 1}", "twice"]),
        ({"points": 3}, ["grid.points: 3", "a list of mappings"]),
        ({"points": []}, ["grid.points: []"]),
        ({"points": [3]}, ["grid.points: [3]", "a list of mappings"]),
        ({"points": [{"learning_rate": -1}]}, ["grid.points[0].learning_rate: -1"]),
        ({"points": [{"seed": [1, 2]}]}, ["grid.points[0].seed: [1, 2]"]),
        ({"points": [{"seed": {"values": [1, 2]}}]}, ["grid.points[0].seed", "a single value"]),
        ({"points": [{"rate": 1}]}, ["grid.points[0].rate", "learning_rate"]),
        ({"points": [{"seed": 1}], "seed": [2]}, ["grid.points[0].seed", "axis"]),
    ],
)
def test_refusals(grid, fragments):
    line = refusal(grid)
    for fragment in fragments:
        assert fragment in line


def test_a_content_hash_ignores_the_order_of_keys_only():
    assert content_hash({"a": 1, "b": [1, 2]}) == content_hash({"b": [1, 2], "a": 1})
    assert content_hash([1, 2]) != content_hash([2, 1])
    assert content_hash({"a": None}) != content_hash({})
    assert len(content_hash({})) == 12


def test_a_run_survives_json():
    """Notes of finished shards are read back from JSON: the runs must keep their names."""
    for run in expand({"learning_rate": [0.1, 1e-7, 1 / 3], "bias_scale": [None, 1]}):
        assert content_hash(json.loads(json.dumps(run))) == content_hash(run)


def test_every_hyperparameter_says_what_is_allowed():
    for schema in hyperparameter_schemas().values():
        assert schema["description"]
