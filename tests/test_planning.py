"""Shard plans: what must hold however runs come, go and finish."""

import json

from hypothesis import given
from hypothesis import strategies as st

from sgdphases.planning import (
    NOTE_NAME,
    Shard,
    plan_shards,
    read_notes,
    shard_name,
    sort_key,
    write_note,
)

VERSION = "v1"
names = st.integers(0, 60).map(lambda i: f"run{i:02d}")
# Up to three compiled shapes; a name belongs to one of them.
grids = st.lists(names, min_size=1, unique=True).map(sorted)
sizes = st.integers(1, 7)


def grouped(items):
    """Items by shape, as `ExperimentPlan` hands them over: sorted, one mapping each."""
    groups = {}
    for name in items:
        groups.setdefault(int(name[3:]) % 3, {})[name] = {"run_id": name}
    return [dict(sorted(group.items())) for _, group in sorted(groups.items())]


def plan(items, finished, size):
    return plan_shards(grouped(items), finished, size, VERSION)


def contents(shards):
    return {shard.name: tuple(shard.items) for shard in shards}


def names_in(shards):
    return [name for shard in shards for name in shard.items]


@st.composite
def histories(draw):
    """A size, and finished shards as earlier grids of the same experiment left them."""
    size = draw(sizes)
    finished = []
    for _ in range(draw(st.integers(0, 3))):
        planned = plan(draw(grids), finished, size)
        done = draw(st.lists(st.sampled_from(planned), unique_by=lambda shard: shard.name))
        known = {shard.name for shard in finished}
        finished += [shard for shard in done if shard.name not in known]
    return size, finished


@given(grids, histories())
def test_every_item_is_planned_and_new_shards_hold_exactly_the_missing(items, history):
    size, finished = history
    planned = plan(items, finished, size)
    assert set(items) <= set(names_in(planned))
    old = {shard.name for shard in finished}
    new_items = names_in(shard for shard in planned if shard.name not in old)
    assert len(new_items) == len(set(new_items))
    assert set(new_items) == set(items) - set(names_in(finished))


@given(grids, histories())
def test_names_are_unique_and_depend_on_the_content(items, history):
    size, finished = history
    planned = plan(items, finished, size)
    assert len(contents(planned)) == len(planned)
    for shard in planned:
        assert shard.name == shard_name(shard.items, VERSION)
        assert shard.name != shard_name(shard.items, "v2")


@given(grids, histories())
def test_a_shard_holds_one_shape_and_at_most_its_size(items, history):
    size, finished = history
    for shard in plan(items, finished, size):
        assert 1 <= len(shard.items) <= size
        assert len({int(name[3:]) % 3 for name in shard.items}) == 1


@given(grids, histories(), st.data())
def test_a_parse_while_jobs_finish_plans_the_same_shards(items, history, data):
    """The head node planned; some of its shards are done when a compute node parses again."""
    size, finished = history
    planned = plan(items, finished, size)
    old = {shard.name for shard in finished}
    new = [shard for shard in planned if shard.name not in old]
    done = data.draw(st.lists(st.sampled_from(new), unique_by=lambda s: s.name)) if new else []
    again = plan(items, data.draw(st.permutations([*finished, *done])), size)
    assert contents(again) == contents(planned)


@given(grids, histories())
def test_the_order_of_finished_shards_does_not_matter(items, history):
    size, finished = history
    forwards = plan(items, finished, size)
    backwards = plan(items, finished[::-1], size)
    assert [shard.name for shard in forwards] == [shard.name for shard in backwards]


@given(grids, grids, sizes)
def test_added_items_leave_finished_shards_alone(items, added, size):
    finished = plan(items, [], size)
    grown = plan(sorted({*items, *added}), finished, size)
    kept = contents(grown)
    assert all(kept[shard.name] == tuple(shard.items) for shard in finished)
    new = [shard for shard in grown if shard.name not in contents(finished)]
    assert set(names_in(new)) == set(added) - set(items)


@given(grids, sizes, st.data())
def test_removed_items_need_no_new_shard(items, size, data):
    finished = plan(items, [], size)
    left = data.draw(st.lists(st.sampled_from(items), min_size=1, unique=True).map(sorted))
    planned = plan(left, finished, size)
    assert set(contents(planned)) <= set(contents(finished))
    # A shard with no wanted item is no input of the table any more.
    assert all(set(shard.items) & set(left) for shard in planned)


def test_finished_shards_that_overlap_are_taken_by_name():
    first = Shard(shard_name(["run00"], VERSION), {"run00": {}})
    both = Shard(shard_name(["run00", "run03"], VERSION), {"run00": {}, "run03": {}})
    planned = plan_shards([{"run00": {}, "run03": {}}], [first, both], 2, VERSION)
    expected = [both] if both.name < first.name else [first, both]
    assert [shard.name for shard in planned] == [shard.name for shard in expected]


def test_runs_are_sorted_by_rate_seed_and_name():
    def run(unit, rate, seed, name):
        return {
            "learning_rate_relative_to": unit,
            "learning_rate": rate,
            "seed": seed,
            "run_id": name,
        }

    runs = [
        run("absolute", 0.1, 0, "b"),
        run("absolute", 0.1, 1, "a"),
        run("absolute", 2.0, 0, "c"),
        run("critical", 0.1, 0, "d"),
    ]
    assert sorted([runs[i] for i in (2, 0, 3, 1)], key=sort_key) == runs


def test_a_note_brings_back_items_in_their_order(tmp_path):
    items = {"b": {"learning_rate": 0.1, "bias_scale": None}, "a": {"learning_rate": 1.0}}
    name = shard_name(items, VERSION)
    write_note(tmp_path / name, items, VERSION)
    (shard,) = read_notes(tmp_path, VERSION)
    assert shard.name == name
    assert list(shard.items.items()) == list(items.items())
    assert read_notes(tmp_path, "v2") == []


def test_a_damaged_note_counts_as_absent(tmp_path):
    good = shard_name(["a"], VERSION)
    write_note(tmp_path / good, {"a": {}}, VERSION)
    write_note(tmp_path / f"{good} (copy)", {"a": {}}, VERSION)
    texts = {
        "empty": "",
        "cut": '{"version": "v1", "ite',
        "list": "[]",
        "no_items": json.dumps({"version": VERSION}),
        "wrong_items": json.dumps({"version": VERSION, "items": 3}),
        "nothing": json.dumps({"version": VERSION, "items": None}),
        "no_records": json.dumps({"version": VERSION, "items": {"a": 1}}),
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / NOTE_NAME).write_text(text)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / NOTE_NAME).write_bytes(b"\xff\xfe\x00")
    assert [shard.name for shard in read_notes(tmp_path, VERSION)] == [good]
    assert read_notes(tmp_path / "absent", VERSION) == []
