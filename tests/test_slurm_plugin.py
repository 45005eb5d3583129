"""The plugin for Slurm sees cancelled jobs, and excludes only nodes that have a name."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin

from sgdphases.slurm import mend_plugin


class Resources(dict):
    """As Snakemake gives them: by key and by attribute."""

    __getattr__ = dict.__getitem__


LISTED = r"printf '1|CANCELLED by 1000\n2|RUNNING\n3|OUT_OF_MEMORY\n'"


@pytest.fixture(autouse=True)
def mended(monkeypatch):
    for name in ("query_job_status", "get_submit_command"):
        monkeypatch.setattr(plugin, name, getattr(plugin, name))
    mend_plugin()
    mend_plugin()  # the workflow is parsed again


def states(command):
    return asyncio.run(plugin.query_job_status(command, logging.getLogger()))[0]


def test_a_cancelled_job_is_known_whoever_cancelled_it():
    assert states(LISTED) == {"1": "CANCELLED", "2": "RUNNING", "3": "OUT_OF_MEMORY"}
    assert states("false") is None


@pytest.mark.parametrize(
    ("failed", "excluded"),
    [
        ({"None assigned"}, None),
        ({"None assigned", "node07"}, "--exclude=node07 "),
        (set(), None),
        (None, None),
    ],
)
def test_only_nodes_that_have_a_name_are_excluded(failed, excluded):
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    job = SimpleNamespace(resources=Resources(runtime=10), threads=1)
    command = plugin.get_submit_command(job, dict.fromkeys(names, "x"), failed_nodes=failed)
    assert command.startswith("sbatch ")
    if excluded is None:
        assert "--exclude" not in command
    else:
        assert excluded in command
