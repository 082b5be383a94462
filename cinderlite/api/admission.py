# SPDX-License-Identifier: Apache-2.0
"""Who is let in: a bounded number of requests at work and a bounded number that wait, for each of two classes.

Every request comes in as a *quick* one. Where the operation turns out to be *slow* (it may wait for a guest, for
another service, or for Ceph's monitors to agree) it gives its quick place back before anything is done and takes a slow
one, so that slow work never holds what quick work needs. Who finds no place in time, or too many who wait already, is
told 503 with Retry-After; by then nothing was changed on his behalf. What moves data is no request at all (`jobs.py`).
"""

from __future__ import annotations

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
    """Lets `running` requests of a class in at a time; at most `waiting` more wait, for `patience` seconds each."""

    def __init__(self, name: str, running: int, waiting: int, patience: float) -> None:
        self._name = name
        self._places = threading.Semaphore(running)
        self._room = threading.Semaphore(waiting)
        self._patience = patience
        self._refused_at = -_QUIET

    def enter(self) -> None:
        """Take a place. Raises Overloaded, at once if too many wait already."""
        if not self._places.acquire(blocking=False):
            self._wait()
        metrics.RUNNING.labels(self._name).inc()

    def leave(self) -> None:
        """Give the place back."""
        metrics.RUNNING.labels(self._name).dec()
        self._places.release()

    def _wait(self) -> None:
        if not self._room.acquire(blocking=False):
            self._refuse("full")
        waiting = metrics.WAITING.labels(self._name)
        waiting.inc()
        try:
            if not self._places.acquire(timeout=self._patience):
                self._refuse("late")
        finally:
            waiting.dec()
            self._room.release()

    def _refuse(self, reason: str) -> None:
        metrics.SHED.labels(self._name, reason).inc()
        now = time.monotonic()
        if now - self._refused_at > _QUIET:
            LOG.warning(
                "too many %s requests: some are refused (cinderlite_requests_shed_total counts them)", self._name
            )
        self._refused_at = now
        raise errors.Overloaded


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
