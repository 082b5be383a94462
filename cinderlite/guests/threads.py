# SPDX-License-Identifier: Apache-2.0
"""Something done in a thread of its own, whoever still waits for it.

`concurrent.futures`' own pool joins its threads when Python exits, and so would wait for a call that hangs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


def begin(name: str, work: Callable[[], T]) -> Future[T]:
    """Start it; the future has what it returns or raises."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # Who gives up waiting does not end it.

    def serve() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it goes to who waits
            future.set_exception(error)

    threading.Thread(target=serve, name=name, daemon=True).start()
    return future


def result(of: T | Future[T]) -> T:
    """What it is, or will be. Raises what the work raises."""
    return of.result() if isinstance(of, Future) else of


class Upon(Generic[T]):
    """Something that is begun in a thread of its own when somebody says so, and only once."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._name = name
        self._work = work
        self._lock = threading.Lock()
        self._begun: Future[T] | None = None
        self._over = False

    def begin(self) -> None:
        """Start it, unless it was, or is not to be any more."""
        with self._lock:
            if self._begun is None and not self._over:
                self._begun = begin(self._name, self._work)

    def end(self) -> None:
        """Have it begun no more, by however late a word; wait until it has ended, if it was."""
        with self._lock:
            self._over = True
        if self._begun is not None:
            concurrent.futures.wait([self._begun])

    def result(self) -> T:
        """What it returns, begun now at the latest. Raises what it raises."""
        self.begin()
        if self._begun is None:
            raise RuntimeError(f"{self._name} was not begun")
        return self._begun.result()


@contextlib.contextmanager
def beside(name: str, work: Callable[[], T]) -> Iterator[Future[T]]:
    """Do it beside what is done meanwhile, at the end of which it has ended, too, however that was."""
    future = begin(name, work)
    try:
        yield future
    finally:
        concurrent.futures.wait([future])
