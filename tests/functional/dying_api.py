# SPDX-License-Identifier: Apache-2.0
"""cinderlite-api that kills itself (SIGKILL, all its processes) at the point that DIE_AT names.

Points: `begun`, `stepped` (before and after the step, that is: right after the first commit and right before the
second), `settled` (right after the second commit), `qmp:N` (before the N-th QMP command of an attach or detach),
`qmp:NAME` (before the first command of that name).
`DIE_VERB` limits it to one verb. It dies at most once: the file DIE_ONCE is removed first.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from typing import Any

from cinderlite.cmd import api
from cinderlite.core import states
from cinderlite.guests import monitor

POINT, _, COUNT = os.environ["DIE_AT"].partition(":")
VERB = os.environ["DIE_VERB"]
ONCE = pathlib.Path(os.environ["DIE_ONCE"])


def die() -> None:
    """End everything that belongs to this service, without a last word."""
    if ONCE.exists():
        ONCE.unlink()
        os.killpg(os.getpgid(0), signal.SIGKILL)


def break_states() -> None:
    """Die around the step."""
    run, settle = states.Machine.run, states.Machine._settle

    def dying_run(self: states.Machine, world: Any, begun: Any, owner: str) -> Any:
        with world.db.read() as session:
            row = session.get(self.model, begun if isinstance(begun, str) else begun.id)
        mine = row is not None and row.intent is not None and row.intent["verb"] == VERB
        if mine and POINT == "begun":
            die()
        outcome = run(self, world, begun, owner)
        if mine and POINT == "settled":
            die()
        return outcome

    def dying_settle(self: states.Machine, world: Any, row: Any, *rest: Any) -> Any:
        if row.intent["verb"] == VERB and POINT == "stepped":
            die()
        return settle(self, world, row, *rest)

    states.Machine.run = dying_run  # type: ignore[method-assign]
    states.Machine._settle = dying_settle  # type: ignore[method-assign, assignment]


def break_qmp() -> None:
    """Die before the N-th command that changes something, or the first of a name."""
    do = monitor.Monitor.do
    changing = {"object-add", "object-del", "blockdev-add", "blockdev-del", "device_add", "device_del"}
    seen = 0

    async def dying_do(self: monitor.Monitor, command: str, arguments: Any = None) -> Any:
        nonlocal seen
        if command in changing:
            seen += 1
            if str(seen) == COUNT:
                die()
        if command == COUNT:
            die()
        return await do(self, command, arguments)

    if POINT == "qmp":
        monitor.Monitor.do = dying_do  # type: ignore[method-assign]


if __name__ == "__main__":
    break_states()
    break_qmp()
    sys.exit(api.main())
