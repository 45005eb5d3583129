"""The scheduler wakes once a second, however many jobs have ended."""

import threading
import time

import pytest
from snakemake.scheduling.job_scheduler import JobScheduler

from sgdphases.scheduler import mend_scheduler


class Scheduler:
    """What the method reads of a scheduler."""

    def __init__(self):
        self._open_jobs = threading.Semaphore(0)

    def wakings(self):
        count = 0
        while self._open_jobs.acquire(blocking=False):
            count += 1
        return count


@pytest.fixture
def mended(monkeypatch):
    # Puts the method back afterwards.
    monkeypatch.setattr(
        JobScheduler, "_schedule_reevalutation", JobScheduler._schedule_reevalutation
    )
    mend_scheduler()
    return JobScheduler._schedule_reevalutation


def test_many_wishes_wake_it_once(mended):
    scheduler = Scheduler()
    for _ in range(50):
        mended(scheduler, 0.05)
    time.sleep(0.5)
    assert scheduler.wakings() == 1


def test_it_can_be_woken_again(mended):
    scheduler = Scheduler()
    for _ in range(20):
        mended(scheduler, 0.01)
        assert scheduler._open_jobs.acquire(timeout=5)
    assert scheduler.wakings() == 0
