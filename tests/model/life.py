# SPDX-License-Identifier: Apache-2.0
"""When a process dies, or does not learn how a call ended: at the n-th moment at which it changes something in Ceph.

A moment is right before or right after a change, so both what was done and what was not can be lost. What a newcomer
gets wrong: `Killed` is no Exception. Nothing in the service may catch it, as nothing catches SIGKILL.
"""

from __future__ import annotations

from cinderlite import errors


class Killed(BaseException):
    """The process ends here."""


class Life:
    """Called at each such moment; `faults` are how many of them pass quietly, and what then happens, one by one."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, str]] = []

    def __call__(self) -> None:
        if not self.faults:
            return
        left, what = self.faults[0]
        if left:
            self.faults[0] = left - 1, what
            return
        self.faults.pop(0)
        if what == "kill":
            raise Killed
        raise errors.CephTimeout("the end of it is not known")
