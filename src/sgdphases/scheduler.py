"""A fault of Snakemake's scheduler, as of version 9.27, and its remedy."""

import sys
import threading
from typing import Any

_MODULE = "snakemake.scheduling.job_scheduler"
# In Snakemake's spelling.
_METHOD = "_schedule_reevalutation"
_PENDING = "_pending_reevaluation"


def mend_scheduler() -> None:
    """Have the scheduler look at the open jobs again once a second, not once for every job so far.

    While jobs wait, the scheduler asks to be woken a second later, each time it has looked. It also
    looks whenever a job ends, and asks again: every job that ends adds one more look a second, at
    the size of all input files, for as long as jobs wait. After some hundreds of jobs that takes a
    whole core. Here it asks only where no earlier wish is pending.

    Where Snakemake has no such method, nothing happens.
    """
    scheduler: Any = getattr(sys.modules.get(_MODULE), "JobScheduler", None)
    if scheduler is None or not hasattr(scheduler, _METHOD):
        return

    def schedule(self: Any, delay: float) -> None:
        def wake() -> None:
            # First: once released, the scheduler may ask again before the timer has ended.
            setattr(self, _PENDING, False)
            self._open_jobs.release()

        if not getattr(self, _PENDING, False):
            setattr(self, _PENDING, True)
            threading.Timer(delay, wake).start()

    setattr(scheduler, _METHOD, schedule)
