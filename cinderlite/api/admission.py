# SPDX-License-Identifier: Apache-2.0
"""Who is let in: a bounded number of requests at work and a bounded number that wait, for each of two classes.

Every request comes in as a *quick* one. Where the operation turns out to be *slow* (it may wait for a guest, for
another service, or for Ceph's monitors to agree) it gives its quick place back before anything is done and takes a slow
one, so that slow work never holds what quick work needs. Who finds no place in time, or too many who wait already, is
told 503 with Retry-After; by then nothing was changed on his behalf. What moves data is no request at all (`jobs.py`).

To refuse in a thread costs about as much as a short read. Whoever reads requests can do it for much less, by
`turns_away`.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Collection
from typing import Any

from cinderlite import errors, metrics

LOG = logging.getLogger(__name__)

#: Keys of a request's WSGI environment: its place, and the error with which it is turned away.
PLACE = "cinderlite.place"
REFUSED = "cinderlite.refused"
#: Seconds without a refusal after which the next one is worth a line in the log again.
_QUIET = 60.0


class Gate:
    """Lets `running` requests of a class in at a time; at most `waiting` more wait, for `patience` seconds each.

    Who has waited longest is next. With a semaphore a newcomer would often be quicker than who is woken up, and under
    load some would wait for as long as they may.
    """

    def __init__(self, name: str, running: int, waiting: int, patience: float) -> None:
        self._name = name
        self._places = running
        self._room = waiting
        self._patience = patience
        self._refused_at = -_QUIET
        self._lock = threading.Lock()
        self._running = 0
        #: Each waits for its lock to be released by who leaves his place to it.
        self._queue: collections.deque[threading.Lock] = collections.deque()

    @property
    def is_full(self) -> bool:
        """Whether the next one would be refused at once."""
        return self._running >= self._places and len(self._queue) >= self._room

    def enter(self) -> None:
        """Take a place. Raises Overloaded, at once if too many wait already."""
        turn = threading.Lock()
        with self._lock:
            refused = self.is_full
            waits = not refused and self._running >= self._places
            if waits:
                turn.acquire()
                self._queue.append(turn)
            elif not refused:
                self._running += 1
        if refused:
            self.note_refusal("full")
            raise errors.Overloaded
        if waits:
            self._wait(turn)
        metrics.RUNNING.labels(self._name).inc()

    def leave(self) -> None:
        """Give the place back, or to who has waited longest."""
        metrics.RUNNING.labels(self._name).dec()
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._running -= 1

    def _wait(self, turn: threading.Lock) -> None:
        waiting = metrics.WAITING.labels(self._name)
        waiting.inc()
        has_it = turn.acquire(timeout=self._patience)
        waiting.dec()
        if not has_it:
            with self._lock:
                late = turn in self._queue  # Else it was given a place just now.
                if late:
                    self._queue.remove(turn)
            if late:
                self.note_refusal("late")
                raise errors.Overloaded

    def note_refusal(self, reason: str) -> None:
        """Count one who is refused, and tell the log when that begins."""
        metrics.SHED.labels(self._name, reason).inc()
        now = time.monotonic()
        if now - self._refused_at > _QUIET:
            LOG.warning(
                "too many %s requests: some are refused (cinderlite_requests_shed_total counts them)", self._name
            )
        self._refused_at = now


@dataclasses.dataclass
class Place:
    """Where a request stands: at one gate, or at none while it goes from one to the other."""

    gate: Gate | None
    slow: Gate

    def slow_down(self) -> None:
        """Change to the slow class. Raises Overloaded, and then holds no place."""
        self.leave()
        self.slow.enter()
        self.gate = self.slow

    def leave(self) -> None:
        """Give back what is held."""
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.leave()


class Admission:
    """In front of `app`. `inside` answers those that are refused, before it is even asked who they are.

    Requests for the paths in `free` pass always: who watches the service must see it when it is full.
    """

    def __init__(self, app: Any, inside: Any, free: Collection[str], quick: Gate, slow: Gate) -> None:
        self._app = app
        self._inside = inside
        self._free = free
        self._quick = quick
        self._slow = slow

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused at once, but for those that always pass."""
        return self._quick.is_full

    def turns_away(self, path: str) -> bool:
        """Whether a request for that path would be refused at once; it counts as refused then."""
        if not self._quick.is_full or path in self._free:
            return False
        self._quick.note_refusal("full")
        return True

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ.get("PATH_INFO", "/") in self._free:
            return self._app(environ, start_response)
        try:
            self._quick.enter()
        except errors.Overloaded as error:
            return self._inside({**environ, REFUSED: error}, start_response)
        place = Place(self._quick, self._slow)
        try:
            return self._app({**environ, PLACE: place}, start_response)
        finally:
            place.leave()
