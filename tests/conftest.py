"""Throw-away copies of the project, and the real Snakemake in them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before JAX starts: runs are spread over two simulated devices, as over two GPUs.
XLA_FLAGS = "--xla_force_host_platform_device_count=2"
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)

PROJECT = Path(__file__).parents[1]
PROFILES = ("slurm", "tpu", "kubernetes")
LAID_OUT = ("Snakefile", "workflow", "config", "src", "environment.yml", *PROFILES)


@dataclass(frozen=True)
class Result:
    """What a run of Snakemake left on its standard streams."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def job_stats(self) -> dict[str, int]:
        """Jobs by rule, from the table that Snakemake prints before it runs any."""
        table = re.search(r"^job +count\n-.*\n((?:\w+ +\d+\n)+)", self.output, re.MULTILINE)
        rows = table[1].splitlines() if table else []
        jobs = {name: int(count) for name, count in (row.split() for row in rows)}
        jobs.pop("total", None)
        return jobs


@dataclass(frozen=True)
class Workspace:
    """A copy of the project in which Snakemake runs the copy's own code."""

    path: Path

    def snakemake(self, *arguments: str, timeout: float = 300, **environment: str) -> Result:
        process = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "1", "--nocolor", *arguments],
            cwd=self.path,
            # Jobs choose their own devices.
            env={
                **os.environ,
                "XLA_FLAGS": "",
                "PYTHONPATH": str(self.path / "src"),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Result(process.returncode, process.stdout, process.stderr)

    def write(self, path: str, text: str) -> Path:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def copy(self, path: Path) -> "Workspace":
        """A copy with its results and Snakemake's records, times of modification included."""
        shutil.copytree(self.path, path)
        return Workspace(path)


def lay_out(path: Path) -> Workspace:
    """Copy the project to `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for name in LAID_OUT:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, path / name)
        elif source.exists():
            shutil.copy2(source, path / name)
    return Workspace(path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: at the end they would keep one process busy alone."""
    items.sort(
        key=lambda item: (
            item.path.name not in ("test_workflow.py", "test_first_run.py", "test_resuming.py")
        )
    )


@pytest.fixture(scope="session")
def make_workspace() -> Callable[[Path], Workspace]:
    return lay_out


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return lay_out(tmp_path / "project")
