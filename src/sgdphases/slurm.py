"""What Snakemake's plugin for Slurm needs to be told."""

import sys
from typing import Any

_PLUGIN = "snakemake_executor_plugin_slurm"


def recognise_cancelled_jobs() -> None:
    """Have the plugin see that a job was cancelled.

    Slurm's accounting calls it `CANCELLED by 1000`, after the user who did it. Version 2.8.0 of the
    plugin knows `CANCELLED` alone, takes anything else for a running job, and waits for ever. Where
    the plugin is not loaded, or is another one by then, nothing happens.
    """
    plugin: Any = sys.modules.get(_PLUGIN)
    query = getattr(plugin, "query_job_status", None)
    if query is None or getattr(query, "recognises_cancelled_jobs", False):
        return

    async def query_job_status(*arguments: Any, **options: Any) -> Any:
        states, *rest = await query(*arguments, **options)
        if states:
            states = {job: state.partition(" by ")[0] for job, state in states.items()}
        return (states, *rest)

    vars(query_job_status)["recognises_cancelled_jobs"] = True
    plugin.query_job_status = query_job_status
