"""Snakemake that looks for finished Slurm jobs every second or two.

The plugin waits ten seconds longer after each look that finds nothing, up to three minutes, and has
no option for it: right for jobs of hours, and minutes lost with those of the tests. Nothing else is
changed.
"""

import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

LONGEST_WAIT = 2


def wait(executor: Executor) -> int:
    return min(vars(executor).get("seconds_between_looks", LONGEST_WAIT), LONGEST_WAIT)


def set_wait(executor: Executor, seconds: int) -> None:
    vars(executor)["seconds_between_looks"] = seconds


Executor.next_seconds_between_status_checks = property(wait, set_wait)

if __name__ == "__main__":
    main(sys.argv[1:])
