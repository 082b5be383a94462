# SPDX-License-Identifier: Apache-2.0
"""Work whose last call nobody waits for any more."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from cinderlite.jobs import Jobs


def test_what_follows_a_late_end_keeps_nobody_who_ended_it() -> None:
    """It is a thread that calls Ceph, which is counted as free, and what follows may wait for the database."""
    late: Future[None] = Future()
    late.set_running_or_notify_cancel()
    done, free = threading.Event(), threading.Event()

    def follow() -> None:
        free.wait(10)
        done.set()

    Jobs(1).hold_until(late, lambda: True, 60.0, follow)
    ender = threading.Thread(target=late.set_result, args=(None,))
    ender.start()
    ender.join(5)
    assert not ender.is_alive()
    assert not done.is_set()
    free.set()
    assert done.wait(10)
