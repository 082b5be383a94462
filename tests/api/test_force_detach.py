# SPDX-License-Identifier: Apache-2.0
"""os-force_detach: who is fenced and who never is, what comes to rest after it, and what the lost server does later."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
import sqlalchemy

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import fencing, own_clients, states
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeGuest, FakeHypervisor

HERE, THERE, STRANGER = "192.0.2.7:0/77", "192.0.2.8:0/88", "192.0.2.9:0/99"


@pytest.fixture
def lost(hypervisor: FakeHypervisor) -> FakeGuest:
    """A server whose clients Ceph sees."""
    return guest(hypervisor, "lost", HERE)


def guest(hypervisor: FakeHypervisor, name: str, address: str) -> FakeGuest:
    made = hypervisor.guests[hypervisor.add_server(name, PROJECT).id]
    made.address = address
    return made


def attach(client: Client, server: FakeGuest, volume: str) -> Any:
    path = f"/v2.1/servers/{server.server.id}/os-volume_attachments"
    return client.at("2.60").post(path, {"volumeAttachment": {"volumeId": volume}})


def force(admin: Client, volume: str, **more: Any) -> Any:
    return admin.post(f"/v3/volumes/{volume}/action", {"os-force_detach": more})


def shown(client: Client, volume: str) -> Any:
    return client.get(f"/v3/volumes/{volume}").json["volume"]


def attachment(client: Client, volume: str, server: FakeGuest) -> str:
    held = shown(client, volume)["attachments"]
    return str(next(one["attachment_id"] for one in held if one["server_id"] == server.server.id))


def leftovers(world: World) -> list[str]:
    with world.db.read() as session:
        return list(session.scalars(sqlalchemy.select(models.Leftover.server_id)))


def shared(world: World, client: Client) -> str:
    """A volume for several servers."""
    volume: str = client.volume()["id"]
    with world.db.write() as session:
        session.get_one(models.Volume, volume).multiattach = True
    return volume


def words(client: Client, volume: str) -> str:
    found = client.at("3.5").get("/v3/messages").json["messages"]
    return " ".join(one["user_message"] for one in found if one["resource_uuid"] == volume)


def test_a_hung_server_is_fenced_before_the_volume_is_free(
    client: Client, admin: Client, cluster: FakeCluster, hypervisor: FakeHypervisor, lost: FakeGuest
) -> None:
    volume = client.volume()["id"]
    assert attach(client, lost, volume).status_code == 200
    lost.silent = True
    assert force(client, volume).status_code == 403
    assert force(admin, volume).status_code == 202
    assert (shown(client, volume)["status"], shown(client, volume)["attachments"]) == ("available", [])
    assert "cannot write to it any more" in words(client, volume)
    assert set(cluster.fences) == {HERE}
    other = guest(hypervisor, "other", THERE)
    assert attach(client, other, volume).status_code == 200
    assert other.write(volume, "the second's")
    with pytest.raises(OSError, match="fenced"):
        lost.write(volume, "the first's")
    assert cluster.data[cluster.stored[f"volume-{volume}"][0]] == "the second's"


def test_one_that_was_stopped_for_long_is_fenced_though_nobody_sees_it(
    client: Client, admin: Client, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.silent = True
    cluster.watchers.clear()
    assert force(admin, volume).status_code == 202
    assert (set(cluster.fences), shown(client, volume)["status"]) == ({HERE}, "available")


def test_a_server_that_answers_gives_the_disk_back_and_is_not_fenced(
    client: Client, admin: Client, world: World, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    assert force(admin, volume).status_code == 202
    assert (shown(client, volume)["status"], lost.held, cluster.fences) == ("available", {}, {})
    assert leftovers(world) == []


def test_a_dead_server_that_nobody_sees_is_not_fenced(
    client: Client, admin: Client, world: World, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume, other = client.volume()["id"], client.volume()["id"]
    for one in (volume, other):
        attach(client, lost, one)
    lost.gone = True
    del cluster.watchers[f"volume-{volume}"]
    assert force(admin, volume).status_code == 202
    assert (shown(client, volume)["status"], cluster.fences) == ("available", {})
    # Ceph may see it for half a minute more; nobody need wait for that.
    assert force(admin, other).status_code == 202
    assert (shown(client, other)["status"], set(cluster.fences)) == ("available", {HERE})
    settle(world)
    assert leftovers(world) == []


def test_a_server_that_comes_back_loses_the_dead_disk(
    client: Client, admin: Client, world: World, lost: FakeGuest
) -> None:
    volume, kept = client.volume()["id"], client.volume()["id"]
    for one in (volume, kept):
        attach(client, lost, one)
    lost.silent = True
    force(admin, volume)
    settle(world)
    assert (leftovers(world), set(lost.held)) == ([lost.server.id], {volume, kept})
    lost.silent = False
    settle(world)
    assert (leftovers(world), set(lost.held)) == ([], {kept})
    assert shown(client, kept)["status"] == "in-use"


def test_the_same_server_gets_the_volume_anew_only_without_the_dead_disk(
    client: Client, admin: Client, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.silent = True
    force(admin, volume)
    lost.silent, lost.holds = False, True
    answer = attach(client, lost, volume)
    assert (answer.status_code, "taken from it by force" in answer.text) == (409, True)
    assert shown(client, volume)["status"] == "available"
    lost.holds, lost.address = False, THERE  # A new node of QEMU's is a new client.
    assert attach(client, lost, volume).status_code == 200
    assert lost.write(volume, "anew")
    assert cluster.watchers[f"volume-{volume}"] == [THERE]


def test_of_several_servers_only_the_one_is_fenced(
    client: Client, admin: Client, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, lost: FakeGuest
) -> None:
    volume, other = shared(world, client), guest(hypervisor, "other", THERE)
    for one in (lost, other):
        assert attach(client, one, volume).status_code == 200
    lost.silent = True
    assert force(admin, volume).status_code == 400  # There are two, and none is named.
    assert force(admin, volume, attachment_id=attachment(client, volume, lost)).status_code == 202
    assert (set(cluster.fences), shown(client, volume)["status"]) == ({HERE}, "in-use")
    assert other.write(volume, "still there")


def forget_clients(world: World) -> None:
    """As of attachments that an earlier release made."""
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Attachment).values(clients=None))


def test_without_a_memory_the_rest_of_the_users_tell_or_nobody_is_fenced(
    client: Client, admin: Client, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, lost: FakeGuest
) -> None:
    alone, volume, other = client.volume()["id"], shared(world, client), guest(hypervisor, "other", THERE)
    attach(client, lost, alone)
    for one in (lost, other):
        attach(client, one, volume)
    forget_clients(world)
    lost.silent = True
    assert force(admin, alone).status_code == 202
    assert set(cluster.fences) == {HERE}
    cluster.fences.clear()
    mine, theirs = (attachment(client, volume, one) for one in (lost, other))
    cluster.watchers[f"volume-{volume}"] = [HERE, THERE]
    refused = force(admin, volume, attachment_id=mine)
    assert (refused.status_code, HERE in refused.text, "--client" in refused.text) == (409, True, True)
    assert (cluster.fences, shown(client, volume)["status"]) == ({}, "in-use")
    with world.db.write() as session:
        session.get_one(models.Attachment, theirs).clients = [THERE]
    assert force(admin, volume, attachment_id=mine).status_code == 202
    assert set(cluster.fences) == {HERE}


def test_an_administrator_may_name_the_client(
    client: Client, ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, lost: FakeGuest
) -> None:
    volume, other = shared(world, client), guest(hypervisor, "other", THERE)
    for one in (lost, other):
        attach(client, one, volume)
    forget_clients(world)
    lost.silent = True
    with world.db.read() as session:
        row = session.get_one(models.Attachment, attachment(client, volume, lost))
    with pytest.raises(errors.InvalidInput, match=STRANGER):
        fencing.force_detach(ctx, row, [STRANGER])
    assert fencing.by_operator(world, row.id, [HERE]) == f"volume {volume} is in-use"
    assert (set(cluster.fences), shown(client, volume)["status"]) == ({HERE}, "in-use")


def test_our_own_processes_are_never_fenced(
    client: Client, admin: Client, world: World, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume, ours = client.volume()["id"], "192.0.2.1:0/2"
    attach(client, lost, volume)
    own_clients.tell(world)
    with world.db.write() as session:
        known = set(session.scalars(sqlalchemy.select(models.OwnClient.address)))
        session.add(models.OwnClient(address=ours, seen_at=time.time()))  # Another process's.
    assert known == set(cluster.addresses)
    cluster.watchers[f"volume-{volume}"] += [ours]
    lost.silent = True
    assert force(admin, volume).status_code == 202
    assert set(cluster.fences) == {HERE}


def test_a_volume_of_somebody_elses_guest_is_fenced_too(client: Client, admin: Client, cluster: FakeCluster) -> None:
    """Attached by a Nova, say, whose host is lost: the image is open, and nobody can be asked."""
    volume, server = client.volume()["id"], str(uuid.uuid4())
    client.post(f"/v3/volumes/{volume}/action", {"os-attach": {"instance_uuid": server, "mountpoint": "/dev/vdb"}})
    cluster.watchers[f"volume-{volume}"] = [STRANGER]
    assert force(admin, volume).status_code == 202
    assert (set(cluster.fences), shown(client, volume)["status"]) == ({STRANGER}, "available")


def test_what_nobody_has_is_free_after_it(admin: Client, stranger: Client, cluster: FakeCluster) -> None:
    volume = admin.volume()["id"]
    assert force(stranger, volume).status_code in (403, 404)
    assert force(admin, volume, attachment_id=str(uuid.uuid4())).status_code == 202
    assert (force(admin, volume).status_code, shown(admin, volume)["status"], cluster.fences) == (202, "available", {})
    assert stranger.headers["X-Test-Project"] == OTHER


def test_with_ceph_down_nothing_is_begun(client: Client, admin: Client, cluster: FakeCluster, lost: FakeGuest) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.silent, cluster.down = True, True
    answer = force(admin, volume)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert shown(client, volume)["status"] == "in-use"


def test_a_fence_that_does_not_stand_yet_keeps_the_volume(
    client: Client, admin: Client, world: World, hypervisor: FakeHypervisor, lost: FakeGuest,
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.silent = True

    def fails(_addresses: Any, _seconds: int) -> None:
        raise errors.CephTimeout("not every OSD knows the fence yet")

    monkeypatch.setattr(cluster, "fence", fails)
    assert force(admin, volume).status_code == 202
    assert shown(client, volume)["status"] == "detaching"
    assert "not every OSD knows" in words(client, volume)
    assert attach(client, guest(hypervisor, "other", THERE), volume).status_code == 400
    monkeypatch.undo()
    settle(world)
    assert (shown(client, volume)["status"], set(cluster.fences)) == ("available", {HERE})


def test_a_user_that_may_fence_nobody_changes_nothing(
    client: Client, admin: Client, cluster: FakeCluster, lost: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.silent = True

    def refuses(_addresses: Any, _seconds: int) -> None:
        raise errors.CephError("fence: Permission denied")

    monkeypatch.setattr(cluster, "fence", refuses)
    assert force(admin, volume).status_code == 409
    assert shown(client, volume)["status"] == "in-use"
    assert "Permission denied" in words(client, volume)


def test_a_detach_that_is_stuck_is_taken_over(
    client: Client, admin: Client, world: World, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.holds = True
    path = f"/v2.1/servers/{lost.server.id}/os-volume_attachments/{volume}"
    assert client.delete(path).status_code == 202
    lost.silent = True
    settle(world)
    assert shown(client, volume)["status"] == "detaching"
    assert force(admin, volume).status_code == 202
    assert (shown(client, volume)["status"], set(cluster.fences)) == ("available", {HERE})


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", range(1, 3))
def test_killed_in_the_middle_it_comes_to_rest_fenced(
    client: Client, ctx: Context, world: World, cluster: FakeCluster, lost: FakeGuest, moment: int
) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.silent = True
    left = [moment]

    def life() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with world.db.read() as session:
        row = session.get_one(models.Attachment, attachment(client, volume, lost))
    cluster.life = life
    with pytest.raises(Killed):
        fencing.force_detach(ctx, row)
    assert shown(client, volume)["status"] == "detaching"
    with world.db.write() as session:  # As of a process that is dead.
        session.execute(sqlalchemy.update(models.Attachment).values(lease_owner=None, lease_until=0.0))
    settle(world)
    assert (shown(client, volume)["status"], set(cluster.fences)) == ("available", {HERE})
    assert leftovers(world) == [lost.server.id]


def test_a_fence_lasts_as_long_as_the_server_cannot_be_asked(
    client: Client, admin: Client, world: World, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.silent = True
    force(admin, volume)
    cluster.fences.clear()
    settle(world)
    assert cluster.fences == {}  # There is time enough.
    with world.db.write() as session:
        session.execute(sqlalchemy.update(models.Leftover).values(fenced_until=time.time() + 60))
    settle(world)
    assert set(cluster.fences) == {HERE}
    with world.db.read() as session:
        assert session.scalars(sqlalchemy.select(models.Leftover)).one().fenced_until > time.time() + 3600


def test_the_client_of_a_server_that_was_restarted_is_met_anew(
    client: Client, admin: Client, world: World, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume = client.volume()["id"]
    attach(client, lost, volume)
    lost.gone = True
    settle(world, 1)
    lost.restart()
    lost.address = THERE
    settle(world)
    assert cluster.watchers[f"volume-{volume}"] == [THERE]
    forget_clients(world)  # As if whoever started the server had plugged the disk in.
    settle(world)
    lost.silent = True
    cluster.watchers.clear()
    assert force(admin, volume).status_code == 202
    assert set(cluster.fences) == {THERE}


def test_who_only_reserved_a_volume_is_nobodys_client(
    client: Client, admin: Client, world: World, cluster: FakeCluster, lost: FakeGuest
) -> None:
    volume = shared(world, client)
    attach(client, lost, volume)
    forget_clients(world)
    body = {"attachment": {"volume_uuid": volume, "instance_uuid": str(uuid.uuid4())}}
    made = client.at("3.27").post("/v3/attachments", body).json["attachment"]["id"]
    assert force(admin, volume, attachment_id=made).status_code == 202
    assert (cluster.fences, shown(client, volume)["status"]) == ({}, "in-use")


def test_a_client_that_came_meanwhile_is_fenced_too(
    client: Client, ctx: Context, world: World, cluster: FakeCluster, lost: FakeGuest
) -> None:
    """By an attach that was at work in a process that is slow to leave off."""
    volume = client.volume()["id"]
    attach(client, lost, volume)
    forget_clients(world)
    opened, cluster.watchers[f"volume-{volume}"] = cluster.watchers[f"volume-{volume}"], []
    path = f"/v2.1/servers/{lost.server.id}/os-volume_attachments/{volume}"
    lost.holds, held = True, attachment(client, volume, lost)
    client.delete(path)
    with world.db.write() as session:
        row = session.get_one(models.Attachment, held)
        row.lease_owner, row.lease_until = states.new_owner(), time.time() + 3600
    lost.silent = True
    fencing.force_detach(ctx, row)
    assert (shown(client, volume)["status"], cluster.fences) == ("detaching", {})
    cluster.watchers[f"volume-{volume}"] = opened
    with world.db.write() as session:
        session.get_one(models.Attachment, row.id).lease_owner = None
    settle(world)
    assert (shown(client, volume)["status"], set(cluster.fences)) == ("available", {HERE})
