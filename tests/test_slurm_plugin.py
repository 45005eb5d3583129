"""The plugin for Slurm sees that a job was cancelled."""

import asyncio
import logging

import snakemake_executor_plugin_slurm as plugin

from sgdphases.slurm import recognise_cancelled_jobs

LISTED = r"printf '1|CANCELLED by 1000\n2|RUNNING\n3|OUT_OF_MEMORY\n'"


def states(command):
    return asyncio.run(plugin.query_job_status(command, logging.getLogger()))[0]


def test_a_cancelled_job_is_known_whoever_cancelled_it(monkeypatch):
    monkeypatch.setattr(plugin, "query_job_status", plugin.query_job_status)
    recognise_cancelled_jobs()
    recognise_cancelled_jobs()  # the workflow is parsed again
    assert states(LISTED) == {"1": "CANCELLED", "2": "RUNNING", "3": "OUT_OF_MEMORY"}
    assert states("false") is None
