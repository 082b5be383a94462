# SPDX-License-Identifier: Apache-2.0
"""Several hypervisors in one list of servers."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Sequence

import pytest

from cinderlite import errors
from cinderlite.guests import Server
from cinderlite.guests.several import SeveralHypervisors
from fakes_hypervisor import FakeGuest, FakeHypervisor


class Away(FakeHypervisor):
    """One that can be away."""

    away = True

    def servers(self) -> Sequence[Server]:
        if self.away:
            raise errors.GuestUnreachable("", "away")
        return super().servers()

    def find(self, server_id: str, *, fresh: bool = True) -> FakeGuest:
        if self.away:
            raise errors.GuestUnreachable(server_id, "away")
        return super().find(server_id, fresh=fresh)

    def ended(self, server_id: str, ago: float) -> bool:
        return not self.away and super().ended(server_id, ago)


@pytest.fixture
def members() -> tuple[FakeHypervisor, Away]:
    return FakeHypervisor(), Away()


@pytest.fixture
def several(members: tuple[FakeHypervisor, Away]) -> Iterator[SeveralHypervisors]:
    made = SeveralHypervisors(members)
    yield made
    made.close()


def test_servers_of_all_are_in_one_list(several: SeveralHypervisors, members: tuple[FakeHypervisor, Away]) -> None:
    members[1].away = False
    made = {member.add_server("vm", "demo").id for member in members}
    assert {server.id for server in several.servers()} == made
    for server_id in made:
        assert several.find(server_id).server.id == server_id
    with pytest.raises(errors.ServerNotFound):
        several.find(str(uuid.uuid4()))


def test_one_that_is_away_takes_nothing_else_with_it(
    several: SeveralHypervisors, members: tuple[FakeHypervisor, Away]
) -> None:
    made = members[0].add_server("vm", "demo")
    assert [server.id for server in several.servers()] == [made.id]
    assert several.find(made.id).server == made
    # Nobody can tell whether the one that is away has it: not knowing is no reason to give its volumes back.
    with pytest.raises(errors.GuestUnreachable):
        several.find(str(uuid.uuid4()))


def test_if_all_are_away_there_is_no_list(members: tuple[FakeHypervisor, Away]) -> None:
    alone = SeveralHypervisors([members[1]])
    with pytest.raises(errors.GuestUnreachable):
        alone.servers()
    alone.close()


@pytest.mark.parametrize(
    ("first", "second", "meant"), [("SHUTOFF", "ACTIVE", 1), ("ACTIVE", "SHUTOFF", 0), ("SHUTOFF", "ERROR", 1)]
)
def test_of_two_with_one_id_the_one_that_runs_is_meant(
    several: SeveralHypervisors, members: tuple[FakeHypervisor, Away], first: str, second: str, meant: int
) -> None:
    members[1].away = False
    made = members[0].add_server("vm", "demo", status=first)
    guest = FakeGuest(dataclasses.replace(made, status=second, host="other"), 1, scsi=False)
    members[1].guests[made.id] = guest
    wanted = members[meant].guests[made.id]
    assert list(several.servers()) == [wanted.server]
    assert several.find(made.id) is wanted


def test_a_server_that_moved_is_found_where_it_is(
    several: SeveralHypervisors, members: tuple[FakeHypervisor, Away]
) -> None:
    members[1].away = False
    made = members[0].add_server("vm", "demo")
    assert several.find(made.id) is members[0].guests[made.id]
    members[1].guests[made.id] = members[0].guests.pop(made.id)
    assert several.find(made.id) is members[1].guests[made.id]


def test_a_server_has_ended_when_no_member_has_it_and_each_could_tell(
    several: SeveralHypervisors, members: tuple[FakeHypervisor, Away]
) -> None:
    assert several.hosts == {"testhost"}
    server_id = str(uuid.uuid4())
    assert not several.ended(server_id, 10.0**9)
    members[1].away = False
    assert several.ended(server_id, 10.0**9)
    made = members[1].add_server("vm", "demo", host="second", kept=True).id
    members[1].guests[made].gone = True
    assert several.hosts == {"testhost", "second"}
    assert not several.ended(made, 10.0**9)
