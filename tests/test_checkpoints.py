"""Checkpoints: whole or not at all, verified, never fatal."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from sgdphases import checkpoints
from sgdphases.checkpoints import CheckpointFolder, delete_checkpoints, make_identity

SRC = Path(__file__).parents[1] / "src"
State = namedtuple("State", "parameters momentum step")


def make_tree(seed=0):
    key = jax.random.key(seed)
    weights = [jax.random.normal(key, (3, 4)), jax.random.normal(key, (4,)).astype(jnp.bfloat16)]
    return {
        "states": State(weights, None, jnp.arange(3, dtype=jnp.int32)),
        "loss": np.array([np.nan, np.inf, -0.0, 5e-324]),
        "alive": np.array([True, False]),
        "count": np.array(7, np.uint8),
        "empty": np.zeros((0, 5), np.float32),
        "columns_first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }


def make_tables():
    history = pd.DataFrame(
        {
            "run_id": ["a", "b"],
            "step": np.array([1, 2], np.int64),
            "train_loss": [np.nan, np.inf],
            "ntk_top_eigenvalue": [None, 2.0],
            "outputs": [[1.0, 0.1 + 0.2], [2.0, np.nan]],
        }
    )
    return {"history": history, "runs": history[["run_id"]].iloc[:0]}


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).shape == np.asarray(b).shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def save(folder, step, seed=None):
    seed = step if seed is None else seed
    return folder.save(step, make_tree(seed), make_tables(), {"step": step})


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "sgdphases")
    return lambda: [record.getMessage() for record in caplog.records]


def test_everything_comes_back_bit_by_bit(tmp_path, lines):
    folder = CheckpointFolder(tmp_path / "new" / "folder", "me")
    scalars = {"finished": False, "seconds": np.float64(0.1), "ids": ["a"], "rate": float("inf")}
    assert folder.save(12, make_tree(), make_tables(), scalars)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_tree())
    found = CheckpointFolder(tmp_path / "new" / "folder", "me").load(like)
    assert found.step == 12
    assert found.scalars == scalars
    assert_same_bits(found.tree, make_tree())
    # As Parquet, which is how results are kept, they are the same too.
    for name, table in make_tables().items():
        assert found.tables[name].to_parquet() == table.to_parquet()
    (line,) = lines()
    assert re.fullmatch(r"resuming at step 12 from .*\.npz", line)


def test_nothing_is_pickled_and_any_tool_reads_it(tmp_path):
    save(CheckpointFolder(tmp_path, "me"), 3)
    (path,) = tmp_path.iterdir()
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert all(array.dtype != object for array in arrays.values())


def test_values_that_would_need_a_pickle_are_refused(tmp_path):
    folder = CheckpointFolder(tmp_path, "me")
    with pytest.raises(TypeError):
        folder.save(1, {"key": jax.random.key(0)}, {}, {})
    with pytest.raises(TypeError):
        folder.save(1, {}, {}, {"path": tmp_path})
    assert files(tmp_path) == []


def test_the_last_two_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, "me")
    for step in (1, 2, 10):
        save(folder, step)
    assert [int(name.split("-")[1]) for name in files(tmp_path)] == [2, 10]
    assert CheckpointFolder(tmp_path, "me").load(make_tree()).step == 10
    # The same step again takes no other's place.
    save(folder, 10)
    assert [int(name.split("-")[1]) for name in files(tmp_path)] == [2, 10]


def damage_by_flipping(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_by_truncating(path):
    os.truncate(path, path.stat().st_size - 1)


def damage_by_emptying(path):
    os.truncate(path, 0)


def damage_by_replacing(path):
    # Its digest is right, but it is no archive.
    path.unlink()
    text = b"something else"
    digest = checkpoints._digest(text.decode())
    path.with_name(re.sub(r"[0-9a-f]{16}\.npz", f"{digest}.npz", path.name)).write_bytes(text)


DAMAGES = [damage_by_flipping, damage_by_truncating, damage_by_emptying, damage_by_replacing]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, lines, damage):
    folder = CheckpointFolder(tmp_path, "me")
    save(folder, 1)
    save(folder, 2)
    older, newer = sorted(tmp_path.iterdir())
    damage(newer)
    newer = max(tmp_path.iterdir())
    later = CheckpointFolder(tmp_path, "me")
    found = later.load(make_tree())
    assert found.step == 1
    assert_same_bits(found.tree, make_tree(1))
    warning, resuming = lines()
    assert str(newer) in warning
    assert "not used" in warning
    assert str(older) in resuming
    # The damaged one does not outlive the next checkpoint, though its step is later.
    save(later, 2, seed=9)
    assert newer.name not in files(tmp_path)
    assert len(files(tmp_path)) == 2
    assert_same_bits(CheckpointFolder(tmp_path, "me").load(make_tree()).tree, make_tree(9))


@pytest.mark.parametrize("damage", DAMAGES)
def test_both_damaged_starts_anew(tmp_path, lines, damage):
    folder = CheckpointFolder(tmp_path, "me")
    save(folder, 1)
    save(folder, 2)
    for path in list(tmp_path.iterdir()):
        damage(path)
    later = CheckpointFolder(tmp_path, "me")
    assert later.load(make_tree()) is None
    assert len(lines()) == 3
    assert "starting anew" in lines()[-1]
    assert save(later, 1)
    assert len(files(tmp_path)) == 1


def test_every_single_bit_counts(tmp_path):
    """Also where the archive's own checks do not look."""
    folder = CheckpointFolder(tmp_path, "me")
    folder.save(1, {"x": np.arange(3.0)}, {}, {})
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(whole), 60, replace=False):
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        assert CheckpointFolder(tmp_path, "me").load({"x": np.zeros(3)}) is None
    path.write_bytes(whole)
    assert CheckpointFolder(tmp_path, "me").load({"x": np.zeros(3)}).step == 1


def test_of_another_job_it_is_passed_over_and_then_replaced(tmp_path, lines):
    save(CheckpointFolder(tmp_path, "you"), 50)
    folder = CheckpointFolder(tmp_path, "me")
    assert folder.load(make_tree()) is None
    (line,) = lines()
    assert str(tmp_path) in line
    assert "starting anew" in line
    save(folder, 1)
    assert len(files(tmp_path)) == 1
    assert CheckpointFolder(tmp_path, "me").load(make_tree()).step == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: {**tree, "alive": np.zeros(3, bool)},
        lambda tree: {**tree, "alive": np.zeros(2, np.int8)},
        lambda tree: {**tree, "more": np.zeros(2)},
        lambda tree: {**tree, "states": tree["states"]._replace(momentum=np.zeros(1))},
        lambda tree: {name.upper(): leaf for name, leaf in tree.items()},
    ],
)
def test_arrays_that_do_not_fit_are_not_used(tmp_path, lines, change):
    save(CheckpointFolder(tmp_path, "me"), 1)
    assert CheckpointFolder(tmp_path, "me").load(change(make_tree())) is None
    assert "another structure, shape or type" in lines()[0]


def test_no_folder_is_no_checkpoint(tmp_path, lines):
    folder = CheckpointFolder(tmp_path / "none", "me")
    assert folder.load(make_tree()) is None
    folder.delete()
    assert lines() == []
    assert files(tmp_path) == []


def test_identity():
    parts = {"runs": [{"learning_rate": np.float64(0.1), "steps": np.int64(3)}], "lowering": "map"}
    identity = make_identity(**parts)
    assert re.fullmatch("[0-9a-f]{16}", identity)
    assert make_identity(**dict(reversed(parts.items()))) == identity
    assert make_identity(**{**parts, "lowering": "vmap"}) != identity
    # A long array counts to its last element.
    zeros = np.zeros(5000)
    assert make_identity(x=zeros) != make_identity(x=np.where(np.arange(5000) == 2500, 1.0, zeros))
    with pytest.raises(TypeError):
        make_identity(x=object())


def test_identity_depends_on_the_version_of_jax(monkeypatch):
    identity = make_identity(x=1)
    monkeypatch.setattr(checkpoints, "version", lambda package: "0")
    assert make_identity(x=1) != identity


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_costs_the_checkpoint_alone(tmp_path, lines, monkeypatch, code):
    folder = CheckpointFolder(tmp_path, "me")
    save(folder, 1)
    before = files(tmp_path)

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert not save(folder, 2)
        assert not save(folder, 3)
    assert lines() == [
        f"checkpoint could not be written ({os.strerror(code)}) at {tmp_path}; "
        "training goes on without"
    ]
    assert files(tmp_path) == before
    # Room again: told once, and the earlier one is still the one to fall back to.
    assert save(folder, 4)
    assert save(folder, 5)
    assert lines()[1:] == [f"checkpoints are written again at {tmp_path}"]


def test_folder_that_cannot_be_made(tmp_path, lines):
    (tmp_path / "file").write_text("in the way")
    folder = CheckpointFolder(tmp_path / "file" / "folder", "me")
    assert folder.load(make_tree()) is None
    assert not save(folder, 1)
    folder.delete()
    assert lines()[-1].startswith("checkpoint could not be written (Not a directory) at ")
    assert len(lines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path, lines):
    tmp_path.chmod(0o500)
    assert not save(CheckpointFolder(tmp_path / "folder", "me"), 1)
    tmp_path.chmod(0o700)
    assert "(Permission denied)" in lines()[0]


def run(program, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SRC), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


LIMITED = """
import logging, resource, sys
from pathlib import Path
import numpy as np
from sgdphases.checkpoints import CheckpointFolder
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
folder = CheckpointFolder(Path(sys.argv[1]), "me")
for step, size in ((1, 1_000), (2, 1_000_000), (3, 25_000), (4, 1_000)):
    print(folder.save(step, {"x": np.full(size, float(step))}, {}, {}))
print(folder.load({"x": np.zeros(1_000)}).step)
"""


def test_file_that_outgrows_the_limit_of_the_system(tmp_path):
    """A real failure in the middle of writing, by the limit on the size of files."""
    process = run(LIMITED, tmp_path)
    output, errors = process.communicate(timeout=60)
    assert output.split() == ["True", "False", "False", "True", "4"]
    assert errors == (
        f"checkpoint could not be written (File too large) at {tmp_path}; "
        "training goes on without\n"
    )
    assert [int(name.split("-")[1]) for name in files(tmp_path)] == [1, 4]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from sgdphases.checkpoints import CheckpointFolder
folder = CheckpointFolder(Path(sys.argv[1]), "me")
found = folder.load({"x": np.zeros(400_000)})
step = 0 if found is None else found.step
if found is not None:
    assert (found.tree["x"] == step).all()
    assert found.scalars == {"step": step}
print(step, flush=True)
while True:
    step += 1
    folder.save(step, {"x": np.full(400_000, float(step))}, {}, {"step": step})
"""


def test_killed_while_writing(tmp_path):
    """What a killed job leaves is always whole, is used by the next, and does not add up."""
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(5):
        process = run(KILLED, tmp_path)
        steps.append(int(process.stdout.readline()))
        time.sleep(rng.uniform(0.05, 0.25))
        process.kill()
        _, errors = process.communicate(timeout=60)
        assert errors == ""
        # Two checkpoints, or three between a renaming and a removal, and one half-written file.
        assert len(files(tmp_path)) <= 4
    assert steps[0] == 0
    assert all(after > before for before, after in pairwise(steps))
    delete_checkpoints(tmp_path)
    assert not tmp_path.exists()


def test_half_written_files_of_the_dead_are_removed_and_of_the_living_not(tmp_path):
    node = checkpoints.platform.node()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        abandoned = [f".writing-{node}-{dead.pid}.tmp", ".writing-far-away-1.tmp"]
        kept = [f".writing-{node}-{living.pid}.tmp", ".writing-elsewhere-1.tmp", "notes.txt"]
        for name in abandoned + kept:
            (tmp_path / name).write_text("half")
        long_ago = time.time() - 3600
        os.utime(tmp_path / ".writing-far-away-1.tmp", (long_ago, long_ago))
        folder = CheckpointFolder(tmp_path, "me")
        save(folder, 1)
        assert sorted(kept) == [name for name in files(tmp_path) if not name.endswith(".npz")]
        living.send_signal(signal.SIGKILL)
    folder.delete()
    assert files(tmp_path) == ["notes.txt"]


def test_two_jobs_at_once_on_one_folder(tmp_path, lines):
    """As when a scheduler takes a machine for dead: the orphan goes on beside its successor."""
    orphan = CheckpointFolder(tmp_path, "me")
    save(orphan, 100)
    save(orphan, 200)
    successor = CheckpointFolder(tmp_path, "me")
    assert successor.load(make_tree()).step == 200
    for step in (300, 400):
        assert save(orphan, step)
        assert save(successor, step - 50)
        assert CheckpointFolder(tmp_path, "me").load(make_tree()) is not None
    orphan.delete()
    assert not tmp_path.exists()
    assert save(successor, 400)
    assert CheckpointFolder(tmp_path, "me").load(make_tree()).step == 400
    assert all(line.startswith("resuming") for line in lines())


def test_deleting_takes_subfolders_and_leaves_what_is_not_ours(tmp_path):
    save(CheckpointFolder(tmp_path / "a", "me"), 1)
    save(CheckpointFolder(tmp_path / "b", "me"), 1)
    (tmp_path / "b" / "notes.txt").write_text("mine")
    delete_checkpoints(tmp_path)
    assert files(tmp_path) == ["b"]
    assert files(tmp_path / "b") == ["notes.txt"]


def test_due_by_the_clock_and_by_what_saving_costs(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    folder = CheckpointFolder(tmp_path, "me", interval=60)
    assert not folder.due()
    now[0] = 60
    assert folder.due()

    def slow(descriptor):
        now[0] += 5

    monkeypatch.setattr(os, "fsync", slow)
    save(folder, 1)  # one flush of the file and one of the folder: ten seconds
    now[0] += 199
    assert not folder.due()
    now[0] += 1
    assert folder.due()
