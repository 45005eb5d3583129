"""Group runs into shards: the units that one job computes together.

A shard is a chunk of the sorted list of items that no finished shard holds, and is named by a hash
of its items. Chunks are consecutive and of equal size, so that taking whole chunks away, as jobs
finish, leaves the boundaries of the others where they were: a workflow parsed again on a compute
node plans the same shards as the head node did.

A finished shard leaves a note of its items beside its results. The note is no declared output of
the job, so Snakemake does not remove it when it runs the job again, and a shard that has to be
computed anew keeps its boundaries.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdphases.grid import LEARNING_RATE_UNIT, content_hash
from sgdphases.storage import write_text

NOTE_NAME = "shard.json"

Record = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """A group of items that one job computes.

    Attributes:
        name: Hash of the items' names and of the version of the code that computes them.
        items: The items (runs or networks) by name, in the order of computation.
    """

    name: str
    items: Mapping[str, Record]


def shard_name(items: Iterable[str], version: str) -> str:
    """Name of a shard.

    Args:
        items: Names of its items in order.
        version: Version of the code that computes them.

    Returns:
        12 hexadecimal digits.
    """
    return content_hash([version, *items])


def plan_shards(
    groups: Sequence[Mapping[str, Record]], finished: Iterable[Shard], size: int, version: str
) -> list[Shard]:
    """Plan the shards that together hold every item.

    Args:
        groups: Items by name in sorted order, one mapping for each compiled shape; a shard holds
            items of one.
        finished: Shards already computed; those with no wanted item are left out.
        size: Items per shard.
        version: Version of the code that computes the items.

    Returns:
        Finished shards that are still wanted, then the new ones.
    """
    wanted = {name for group in groups for name in group}
    # Sorted by name: two finished shards may hold the same item after an edit and its undoing, and
    # every parse must choose the same one.
    planned: list[Shard] = []
    held: set[str] = set()
    for shard in sorted(finished, key=lambda shard: shard.name):
        new = (wanted & set(shard.items)) - held
        if new:
            planned.append(shard)
            held |= new
    for group in groups:
        missing = [name for name in group if name not in held]
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            planned.append(Shard(shard_name(chunk, version), {n: group[n] for n in chunk}))
    return planned


def sort_key(run: Record) -> tuple[Any, ...]:
    """Sorting key of a run: neighbours take a similar number of steps."""
    return (run[LEARNING_RATE_UNIT], run["learning_rate"], run["seed"], run["run_id"])


def read_notes(folder: Path, version: str) -> list[Shard]:
    """The shards under `folder` that were computed by code of `version`.

    A note that cannot be read counts as absent: its items are then computed again.

    Args:
        folder: Folder with one folder for each shard.
        version: Version of the code wanted.

    Returns:
        The shards, sorted by name.
    """
    shards = []
    for path in sorted(folder.glob(f"*/{NOTE_NAME}")):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            if note["version"] == version:
                items = {name: dict(record) for name, record in note["items"].items()}
                # A folder under another name is a copy, and no shard.
                if path.parent.name == shard_name(items, version):
                    shards.append(Shard(path.parent.name, items))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return shards


def write_note(
    folder: Path,
    items: Mapping[str, Record],
    version: str,
    device: Mapping[str, str | int] | None = None,
) -> None:
    """Leave the note of a finished shard in its folder, atomically.

    Args:
        folder: The shard's folder.
        items: The items that were computed, by name, in their order.
        version: Version of the code that computed them.
        device: What they were computed on, `device` and `num_devices`; nothing depends on it.
    """
    note = {"version": version, **(device or {}), "items": dict(items)}
    write_text(json.dumps(note), folder / NOTE_NAME)
