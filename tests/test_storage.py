"""Nothing half-written takes the place of a result."""

import subprocess
import sys

import pandas as pd
import pytest

from sgdphases.errors import InputError
from sgdphases.storage import read_parquet, replacing, write_parquet, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folder(tmp_path):
    path = tmp_path / "a" / "b" / "note.json"
    write_text("λ", path)
    assert path.read_text(encoding="utf-8") == "λ"
    assert names(path.parent) == ["note.json"]


def test_the_old_file_is_replaced(tmp_path):
    for text in ("old", "new"):
        write_text(text, tmp_path / "note")
    assert (tmp_path / "note").read_text() == "new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.parquet"
    write_text("old", path)

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert names(tmp_path) == ["table.parquet"]
    assert path.read_text() == "old"


def test_a_block_that_writes_nothing_is_no_success(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "table.parquet"):
        pass
    assert names(tmp_path) == []


def test_a_killed_writer_leaves_no_file_under_the_name(tmp_path):
    code = (
        "import os; from pathlib import Path; from sgdphases.storage import replacing\n"
        "with replacing(Path('runs.parquet')) as path:\n"
        "    path.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == -9
    assert not (tmp_path / "runs.parquet").exists()


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    """Matplotlib takes the format from it."""
    with replacing(tmp_path / "figure.svg") as temporary:
        assert temporary.suffix == ".svg"
        assert temporary.parent == tmp_path
        assert not temporary.match("figure*")
        temporary.touch()


def test_tables_keep_their_types(tmp_path):
    table = pd.DataFrame(
        {
            "phase": pd.array(["lazy", None], dtype="string"),
            "seed": [0, 1],
            "loss": [0.5, float("nan")],
        },
        index=[5, 7],
    )
    write_parquet(table, tmp_path / "runs.parquet")
    back = pd.read_parquet(tmp_path / "runs.parquet")
    pd.testing.assert_frame_equal(back, table.reset_index(drop=True))


@pytest.mark.parametrize("content", [None, b"", b"PAR1 cut"])
def test_table_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "runs.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"runs\.parquet: no readable table") as caught:
        read_parquet(path)
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)
