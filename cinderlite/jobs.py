# SPDX-License-Identifier: Apache-2.0
"""Threads for work that moves data, which takes longer than a request may: a bounded number, and nothing queues here.

What is waiting waits in the database, as a row with an intent that nobody holds; so any process may take it up, and a
dead one loses nothing. While a job runs its lease is renewed from one heartbeat thread, and so are those of short work
that takes long for once; a job that lost its lease is told so at its next `checkpoint` and must leave the rest to
whoever has it now.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cinderlite import affinity, errors

LOG = logging.getLogger(__name__)

#: Seconds at most between two renewals of a lease, and so until a job learns that it is to leave off.
_BEAT_EVERY = 5.0


@dataclasses.dataclass(eq=False, slots=True)
class _Job:
    #: Renews the lease; False: it is lost.
    beat: Callable[[], bool]
    #: Seconds that the lease lasts without a renewal.
    lease: float
    renewed: float = dataclasses.field(default_factory=time.monotonic)
    lost: bool = False


_HERE = threading.local()


def checkpoint() -> None:
    """Called by long steps now and then. Raises Superseded when the work under way is not this process's any more."""
    job: _Job | None = getattr(_HERE, "job", None)
    if job is not None and job.lost:
        raise errors.Superseded


def asker() -> Callable[[], bool]:
    """For what is called back in a thread of a library's: whether the work of *this* thread is to leave off."""
    job: _Job | None = getattr(_HERE, "job", None)
    return lambda: job is not None and job.lost


@contextlib.contextmanager
def _at(job: _Job) -> Iterator[None]:
    """What is done in the block, in this thread, is that job."""
    before = getattr(_HERE, "job", None)
    _HERE.job = job
    try:
        yield
    finally:
        _HERE.job = before


class Jobs:
    """At most `threads` jobs at a time in this process; with 0 a job is done at once by who starts it (for tests)."""

    def __init__(self, threads: int) -> None:
        self._limit = threads
        self._changed = threading.Condition(threading.Lock())
        self._running: set[_Job] = set()
        #: Work whose leases are renewed, but that is done by who asked for it.
        self._held: set[_Job] = set()
        self._stopped = False
        self._heart: threading.Thread | None = None

    @property
    def stopped(self) -> bool:
        """Whether the process is ending, so that nothing is to be begun."""
        with self._changed:
            return self._stopped

    @property
    def threads(self) -> int:
        """How many can be done at a time."""
        return self._limit

    @property
    def running(self) -> int:
        """How many are being done."""
        with self._changed:
            return len(self._running)

    @property
    def room(self) -> int:
        """How many more jobs can be started now."""
        with self._changed:
            if self._limit == 0:
                return sys.maxsize
            return 0 if self._stopped else self._limit - len(self._running)

    def start(self, work: Callable[[], None], beat: Callable[[], bool], lease: float) -> bool:
        """Do `work` in a thread; False, and nothing is begun, if all threads are taken or the process is ending."""
        job = _Job(beat, lease)
        if self._limit == 0:
            self._run(job, work)
            return True
        with self._changed:
            if self._stopped or len(self._running) >= self._limit:
                return False
            self._running.add(job)
            self._keep(job)
        # A daemon: the process may end at any moment, that is what leases are for.
        threading.Thread(target=self._run, args=(job, work), name="job", daemon=True).start()
        return True

    @contextlib.contextmanager
    def holding(self, beat: Callable[[], bool], lease: float) -> Iterator[None]:
        """Renew the lease of what is done in the block, here and now, and tell its checkpoints when it is lost."""
        job = _Job(beat, lease)
        with self._changed:
            if self._limit:
                self._held.add(job)
                self._keep(job)
        try:
            with _at(job):
                yield
        finally:
            with self._changed:
                self._held.discard(job)

    def hold_until(
        self, ended: concurrent.futures.Future[Any], beat: Callable[[], bool], lease: float, then: Callable[[], None]
    ) -> None:
        """Renew the lease of work whose last call nobody waits for any more, until that has ended; then do `then`."""
        job = _Job(beat, lease)
        with self._changed:
            if self._limit:
                self._held.add(job)
                self._keep(job)

        def left(_ended: concurrent.futures.Future[Any]) -> None:
            with self._changed:
                self._held.discard(job)
            if not self._limit:
                then()
                return
            # Who ended it is wanted for the next one, and this may wait.
            threading.Thread(target=then, name="ended", daemon=True).start()

        ended.add_done_callback(left)

    def _keep(self, job: _Job) -> None:
        if self._heart is None:
            every = min(_BEAT_EVERY, job.lease / 4)
            self._heart = threading.Thread(target=self._beat, args=(every,), name="jobs-heart", daemon=True)
            self._heart.start()

    def stop(self, seconds: float) -> None:
        """Begin nothing more, tell jobs to leave off, and wait at most `seconds` for that.

        Leases are renewed as long as anything is under way: nobody may take up what has not left off yet.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            self._stopped = True
            for job in self._running:
                job.lost = True
            self._changed.notify_all()
            while self._running and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _run(self, job: _Job, work: Callable[[], None]) -> None:
        try:
            with affinity.anywhere(), _at(job):
                work()
        except Exception:  # The thread's last stop: the row keeps its intent and is tried again.
            LOG.exception("a job failed")
        finally:
            with self._changed:
                self._running.discard(job)
                self._changed.notify_all()

    def _beat(self, every: float) -> None:
        while True:
            with self._changed:
                self._changed.wait(every)
                if self._stopped and not (self._running or self._held):
                    self._heart = None
                    return
                due = time.monotonic() - every / 2
                jobs = [job for job in self._running | self._held if job.renewed < due]
            for job in jobs:
                self._renew(job)

    @staticmethod
    def _renew(job: _Job) -> None:
        began = time.monotonic()
        try:
            if job.beat():
                job.renewed = began
            else:
                job.lost = True
        except errors.Unavailable as error:
            LOG.warning("a lease cannot be renewed: %s", error)
            # Shortly before somebody else may take it up, this process must have left off.
            job.lost = job.lost or began - job.renewed > job.lease * 0.75
