# SPDX-License-Identifier: Apache-2.0
"""Several hypervisors in one: QEMU's monitors of this host and the libvirt daemons of others.

All are asked at the same time, so that one that is down holds nobody up for longer than its own time-out. A server that
two of them know, as after a migration, is the one that runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from cinderlite import errors
from cinderlite.guests import Guest, Heard, Hypervisor, Server, rank, threads

T = TypeVar("T")


class SeveralHypervisors:
    """The servers of all `members`."""

    def __init__(self, members: Sequence[Hypervisor]) -> None:
        self.members = members
        #: Who had a server when it was last looked for.
        self._last: dict[str, Hypervisor] = {}

    def servers(self) -> Sequence[Server]:
        """Every server; of a member that cannot tell none, unless no member can."""
        answers, refusals = self._all(lambda member: (member, member.servers()))
        if refusals and not answers:
            raise refusals[0]
        best: dict[str, Server] = {}
        for member, found in answers:
            for server in found:
                if server.id not in best or rank(server.status) > rank(best[server.id].status):
                    best[server.id] = server
                    self._last[server.id] = member
        return list(best.values())

    def find(self, server_id: str, *, fresh: bool = True) -> Guest:
        """The server of that UUID. Raises ServerNotFound, GuestUnreachable if a member that may have it cannot tell."""
        last = self._last.get(server_id)
        if last is not None:
            try:
                guest = last.find(server_id, fresh=fresh)
            except (errors.ServerNotFound, errors.Unavailable):
                guest = None
            if guest is not None and rank(guest.server.status) == rank("ACTIVE"):
                return guest
        answers, refusals = self._all(lambda member: (member, member.find(server_id, fresh=fresh)))
        if not answers:
            raise next((one for one in refusals if isinstance(one, errors.Unavailable)), refusals[0])
        member, found = max(answers, key=lambda answer: rank(answer[1].server.status))
        self._last[server_id] = member
        return found

    @property
    def hosts(self) -> frozenset[str]:
        """See `guests.Hypervisor.hosts`."""
        return frozenset().union(*(member.hosts for member in self.members))

    def ended(self, server_id: str, ago: float) -> bool:
        """See `guests.Hypervisor.ended`: no member has it, and each could tell."""
        answers, refusals = self._all(lambda member: member.ended(server_id, ago))
        return all(answers) and not refusals

    def silent(self) -> Sequence[str]:
        """See `guests.Hypervisor.silent`."""
        return [sentence for member in self.members for sentence in member.silent()]

    def listen(self, heard: Heard) -> None:
        """See `guests.Hypervisor.listen`."""
        for member in self.members:
            member.listen(heard)

    def close(self) -> None:
        """Close every member."""
        for member in self.members:
            member.close()

    def _all(self, ask: Callable[[Hypervisor], T]) -> tuple[list[T], list[errors.CinderliteError]]:
        """What each member says, and what those raise that do not."""
        answers: list[T] = []
        refusals: list[errors.CinderliteError] = []
        for future in [threads.begin("guests", functools.partial(ask, member)) for member in self.members]:
            try:
                answers.append(future.result())
            except errors.CinderliteError as error:
                refusals.append(error)
        return answers, refusals
