# SPDX-License-Identifier: Apache-2.0
"""Something done in a thread of its own, whoever still waits for it.

`concurrent.futures`' own pool joins its threads when Python exits, and so would wait for a call that hangs.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def begin(name: str, work: Callable[[], T]) -> Future[T]:
    """Start it; the future has what it returns or raises."""
    future: Future[T] = Future()

    def serve() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it goes to who waits
            future.set_exception(error)

    threading.Thread(target=serve, name=name, daemon=True).start()
    return future


def wait(*begun: Future[Any]) -> None:
    """Until all of it has ended, however that was."""
    concurrent.futures.wait(begun)
