"""Two faults of Snakemake's plugin for Slurm, as of version 2.8.0, and their remedy."""

import sys
from typing import Any

_PLUGIN = "snakemake_executor_plugin_slurm"
_MARK = "is_mended"


def mend_plugin() -> None:
    """Have the plugin see cancelled jobs, and exclude only nodes that have a name.

    Slurm's accounting calls a job `CANCELLED by 1000`, after the user who did it. The plugin knows
    `CANCELLED` alone, takes anything else for a running job, and waits for ever.

    Where a node fails, Slurm puts its job back into the queue, and the accounting names its node
    `None assigned` until it runs again. The plugin notes that as the failed node, and every
    submission after it fails at `--exclude=None assigned`.

    Where the plugin is not loaded, or has no such functions, nothing happens.
    """
    plugin: Any = sys.modules.get(_PLUGIN)
    query = getattr(plugin, "query_job_status", None)
    if query is not None and not hasattr(query, _MARK):

        async def query_job_status(*arguments: Any, **options: Any) -> Any:
            states, *rest = await query(*arguments, **options)
            if states:
                states = {job: state.partition(" by ")[0] for job, state in states.items()}
            return (states, *rest)

        setattr(query_job_status, _MARK, True)
        plugin.query_job_status = query_job_status
    submit = getattr(plugin, "get_submit_command", None)
    if submit is not None and not hasattr(submit, _MARK):

        def get_submit_command(*arguments: Any, failed_nodes: Any = None, **options: Any) -> Any:
            nodes = {node for node in failed_nodes or () if " " not in node}
            return submit(*arguments, failed_nodes=nodes, **options)

        setattr(get_submit_command, _MARK, True)
        plugin.get_submit_command = get_submit_command
