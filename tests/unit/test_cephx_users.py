# SPDX-License-Identifier: Apache-2.0
"""As whom a guest opens an image, and that nobody is left who can when it does not any more."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import attachments, audit, cephx_users, checkup, explain, fencing, moves, records, volumes
from cinderlite.core.recorder import Recorder
from cinderlite.db import models
from cinderlite.guests import Server
from conftest import PROJECT, cluster_of, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor


class Dead(BaseException):
    """The process ends here."""


@pytest.fixture
def server(hypervisor: FakeHypervisor) -> Server:
    return hypervisor.add_server("one", PROJECT)


def attached(ctx: Context, server: Server, **fields: Any) -> models.Attachment:
    return attachments.attach(ctx, server, volumes.create(ctx, size=1, **fields).id)


def rows(world: World) -> list[models.Attachment]:
    with world.db.read() as session:
        return list(session.query(models.Attachment))


def held(hypervisor: FakeHypervisor, row: models.Attachment) -> Any:
    return hypervisor.guests[row.server_id or ""].held[row.volume_id]


def swept(world: World) -> int:
    """How many users are removed that nothing explains, now nor a while before."""
    return cephx_users.sweep(world, cephx_users.sweep(world, cephx_users.Swept(), 0.0), 0.0).removed


def test_each_attachment_has_a_user_of_its_own(
    ctx: Context, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    one, two = attached(ctx, server), attached(ctx, server)
    users = [held(hypervisor, row).user for row in (one, two)]
    assert set(users) == set(cluster.made_users) == set(cluster.users())
    for row, user in zip((one, two), users, strict=True):
        image = f"volume-{row.volume_id}"
        assert user.startswith("cinderlite.")
        assert row.id in user
        assert held(hypervisor, row).key == cluster.made_users[user].key
        assert cluster.made_users[user].image_id == cluster.stored[image][0]
    attachments.detach(ctx, one)
    assert set(cluster.made_users) == set(cluster.users()) == {users[1]}
    attachments.detach(ctx, two)
    assert (cluster.made_users, cluster.users()) == ({}, {})


def test_one_that_only_reads(ctx: Context, world: World, cluster: FakeCluster, server: Server) -> None:
    volume = volumes.create(ctx, size=1)
    with world.db.write() as session:
        session.get_one(models.Volume, volume.id).readonly = True
    attachments.attach(ctx, server, volume.id)
    assert [one.read_only for one in cluster.made_users.values()] == [True]


def test_an_attach_that_is_refused_leaves_nobody(
    ctx: Context, cluster: FakeCluster, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("full", PROJECT, ports=0)
    with pytest.raises(errors.NoFreePlace):
        attached(ctx, server)
    assert (cluster.made_users, cluster.users()) == ({}, {})


def test_one_that_is_not_accepted_leaves_nobody(
    ctx: Context, world: World, cluster: FakeCluster, server: Server
) -> None:
    """Its user is begun before that is decided."""
    attachments.attach(ctx, server, volumes.create(ctx, size=1).id, device="/dev/vdb")
    before = set(cluster.made_users)
    other = volumes.create(ctx, size=1)
    with pytest.raises(errors.DeviceInUse):
        attachments.attach(ctx, server, other.id, device=rows(world)[0].device)
    assert set(cluster.made_users) == set(cluster.users()) == before
    assert volumes.get(ctx, other.id).status == "available"


def test_who_dies_before_it_is_accepted_leaves_one_for_a_while(
    ctx: Context, world: World, cluster: FakeCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise Dead

    volume = volumes.create(ctx, size=1)
    with monkeypatch.context() as patched:
        patched.setattr(attachments, "_refuse_taken_name", die)
        with pytest.raises(Dead):
            attachments.attach(ctx, server, volume.id)
    assert rows(world) == []
    assert len(cluster.made_users) == 1
    found = cephx_users.sweep(world, cephx_users.Swept(), 0.0)
    assert (found.removed, len(cluster.made_users)) == (0, 1)
    assert cephx_users.sweep(world, found).removed == 0, "somebody may just be accepting it"
    assert cephx_users.sweep(world, found, 0.0).removed == 1
    assert (cluster.made_users, cluster.users()) == ({}, {})


def test_who_is_gone_when_it_is_accepted_leaves_nobody_who_is_made_later(
    ctx: Context,
    world: World,
    cluster: FakeCluster,
    hypervisor: FakeHypervisor,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, makes = volumes.create(ctx, size=1), cluster.user_of_image

    def slowly(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.5)
        return makes(*arguments, **named)

    def gone(*_: Any, **_named: Any) -> Any:
        raise errors.ServerNotFound(server.id)

    monkeypatch.setattr(cluster, "user_of_image", slowly)
    monkeypatch.setattr(hypervisor, "find", gone)
    with pytest.raises(errors.Conflict):
        attachments.attach(ctx, server, volume.id)
    assert rows(world) == []
    assert (cluster.made_users, cluster.users()) == ({}, {})


def test_what_changes_until_it_is_accepted_counts(
    ctx: Context, cluster: FakeCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, take = volumes.create(ctx, size=1), attachments._take_volume

    def made_read_only(*asked: Any) -> models.Volume:
        taken = take(*asked)
        taken.readonly = True
        return taken

    monkeypatch.setattr(attachments, "_take_volume", made_read_only)
    attachments.attach(ctx, server, volume.id)
    assert [one.read_only for one in cluster.made_users.values()] == [True]


def test_a_guest_that_refuses_while_its_user_is_still_being_made(
    ctx: Context,
    world: World,
    cluster: FakeCluster,
    hypervisor: FakeHypervisor,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, makes, made = volumes.create(ctx, size=1), cluster.user_of_image, threading.Event()
    hypervisor.guests[server.id].gone = True

    def slowly(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.2)
        try:
            return makes(*arguments, **named)
        finally:
            made.set()

    monkeypatch.setattr(cluster, "user_of_image", slowly)
    with pytest.raises(errors.Conflict):
        attachments.attach(ctx, server, volume.id)
    assert made.wait(10)
    assert rows(world) == []
    assert (cluster.made_users, cluster.users()) == ({}, {})


def test_a_cluster_that_does_not_answer_while_a_user_is_made(
    ctx: Context, world: World, cluster: FakeCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = volumes.create(ctx, size=1)

    def silent(*_arguments: Any, **_named: Any) -> str:
        raise errors.CephTimeout("no end of the call")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "user_of_image", silent)
        with pytest.raises(errors.CephTimeout):
            attachments.attach(ctx, server, volume.id)
    settle(world)
    swept(world)  # It may be made yet.
    assert rows(world) == []
    assert (cluster.made_users, cluster.users()) == ({}, {})
    assert volumes.get(ctx, volume.id).status == "available"
    attachments.attach(ctx, server, volume.id)


def test_a_user_that_is_made_after_it_was_given_up(
    ctx: Context, world: World, cluster: FakeCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor that stood still takes what it was told meanwhile in any order."""
    volume = volumes.create(ctx, size=1)
    make, remove = cluster.user_of_image, cluster.remove_user
    commands: list[Callable[[], object]] = []

    def give_up(name: str, user: str, **how: Any) -> str:
        commands.append(lambda: make(name, user, **how))
        raise errors.CephTimeout("no monitor answered")

    def go_on(user: str, **how: Any) -> None:
        remove(user, **how)
        if commands:
            listed = dict(cluster.listed_users)
            commands.pop()()
            cluster.listed_users.clear()  # Only the monitors are late.
            cluster.listed_users.update(listed)

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "user_of_image", give_up)
        patched.setattr(cluster, "remove_user", go_on)
        with pytest.raises(errors.CephTimeout):
            attachments.attach(ctx, server, volume.id)
        settle(world)
    swept(world)
    assert (rows(world), commands) == ([], [])
    assert (cluster.made_users, cluster.users()) == ({}, {})


def test_a_guest_that_refuses_while_nobody_knows_whether_its_user_is_made(
    ctx: Context,
    world: World,
    cluster: FakeCluster,
    hypervisor: FakeHypervisor,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The monitors make it late, when the guest's refusal has ended everything else."""
    volume, make = volumes.create(ctx, size=1), cluster.user_of_image
    late: list[Callable[[], object]] = []
    hypervisor.guests[server.id].gone = True

    def give_up(name: str, user: str, **how: Any) -> str:
        late.append(lambda: make(name, user, **how))
        raise errors.CephTimeout("no monitor answered")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "user_of_image", give_up)
        with pytest.raises((errors.Conflict, errors.CephTimeout)):
            attachments.attach(ctx, server, volume.id)
        settle(world)
    listed = dict(cluster.listed_users)
    late.pop()()
    cluster.listed_users.clear()  # Only the monitors are late.
    cluster.listed_users.update(listed)
    swept(world)
    assert rows(world) == []
    assert (cluster.made_users, cluster.users()) == ({}, {})
    assert volumes.get(ctx, volume.id).status == "available"


def test_a_detach_is_not_over_before_the_user_is_gone(
    ctx: Context, world: World, cluster: FakeCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = attached(ctx, server)

    def silent(_user: str, **_how: Any) -> None:
        raise errors.CephTimeout("no end of the call")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "remove_user", silent)
        attachments.detach(ctx, row)
        assert [one.status for one in rows(world)] == ["detaching"]
    settle(world)
    assert rows(world) == []
    assert (cluster.made_users, cluster.users()) == ({}, {})


def test_a_user_that_ceph_will_not_remove_keeps_no_volume(
    ctx: Context, world: World, cluster: FakeCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is out of the guest by then: to say that it is attached would have it plugged in again."""
    row = attached(ctx, server)

    def refuses(_user: str, **_how: Any) -> None:
        raise errors.CephError("The monitors refuse auth del: Input/output error.")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "remove_user", refuses)
        attachments.detach(ctx, row)
        settle(world)
    assert rows(world) == []
    assert volumes.get(ctx, row.volume_id).status == "available"
    assert swept(world) == 1
    assert (cluster.made_users, cluster.users()) == ({}, {})


def test_a_guest_that_is_started_anew_uses_the_same_key(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    row = attached(ctx, server)
    before = held(hypervisor, row)
    hypervisor.guests[server.id].held.clear()
    settle(world)
    assert held(hypervisor, row).key == before.key
    assert set(cluster.made_users) == {before.user}


def test_a_guest_that_is_gone_leaves_nobody(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    attached(ctx, server)
    hypervisor.guests[server.id].gone = True
    settle(world)
    assert rows(world) == []
    assert (cluster.made_users, cluster.users()) == ({}, {})


@pytest.mark.parametrize("verb", ["attach", "detach"])
@pytest.mark.parametrize("at", range(12))
def test_killed_anywhere_it_leaves_nobody_that_no_row_has(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server, verb: str, at: int
) -> None:
    volume = volumes.create(ctx, size=1)
    row = attachments.attach(ctx, server, volume.id) if verb == "detach" else None
    count = 0

    def life() -> None:
        nonlocal count
        count += 1
        if count == at:
            raise Dead

    cluster.life = life
    try:
        if row is None:
            attachments.attach(ctx, server, volume.id)
        else:
            attachments.detach(ctx, row)
    except Dead:
        pass
    cluster.life = lambda: None
    with world.db.write() as session:  # Its lease ends.
        for one in session.query(models.Attachment).where(models.Attachment.busy == 1):
            one.lease_until = 0.0
    settle(world)
    users = {cephx_users.user_of(str(one.cephx_name), cluster) for one in rows(world)}
    assert set(cluster.made_users) == set(cluster.users()) == users
    assert swept(world) == 0
    assert len(users) == len(hypervisor.guests[server.id].held) <= 1


# -- who may not


@pytest.mark.parametrize("conf", [{"ceph__rbd_attachment_keys": "auto"}], indirect=True)
def test_a_service_that_may_not_make_users_lends_its_own(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    cluster.may_make_users = False
    row = attached(ctx, server)
    assert (row.cephx_name, held(hypervisor, row).user) == (None, cluster.user)
    assert held(hypervisor, row).key == cluster.key()
    cluster.down = True
    attachments.detach(ctx, row)  # Without a user there is nothing to ask Ceph.
    assert rows(world) == []


def test_a_right_that_is_lost_meanwhile(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cluster, "makes_users", lambda: True)
    cluster.may_make_users = False
    row = attached(ctx, server)
    assert held(hypervisor, row).user == cluster.user
    attachments.detach(ctx, row)
    assert rows(world) == []


@pytest.mark.parametrize("conf", [{"ceph__rbd_attachment_keys": "attachment"}], indirect=True)
def test_where_each_must_have_its_own_nothing_else_is_lent(
    ctx: Context, world: World, cluster: FakeCluster, server: Server
) -> None:
    cluster.may_make_users = False
    with pytest.raises(errors.UsersRefused, match="ceph check"):
        attached(ctx, server)
    assert rows(world) == []
    [finding] = [one for one in checkup.check(world) if (one.backend, one.subject) == ("ceph", "users")]
    assert finding.level == checkup.PROBLEM
    assert "auth get-or-create" in finding.remedy


def test_the_check_tells_how(world: World, cluster: FakeCluster) -> None:
    [finding] = [one for one in checkup.check(world) if (one.backend, one.subject) == ("ceph", "users")]
    assert finding.level == checkup.OK
    cluster.may_make_users = False
    [finding] = [one for one in checkup.check(world) if (one.backend, one.subject) == ("ceph", "users")]
    assert finding.level == checkup.HINT
    assert finding.remedy.startswith("ceph auth caps client.cinderlite mon 'profile rbd, allow command ")


@pytest.mark.parametrize("conf", [{"ceph__rbd_attachment_keys": "service"}], indirect=True)
def test_where_nobody_is_to_have_his_own(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    row = attached(ctx, server)
    assert held(hypervisor, row).user == cluster.user
    assert (cluster.made_users, cluster.users()) == ({}, {})
    assert not [one for one in checkup.check(world) if (one.backend, one.subject) == ("ceph", "users")]


@pytest.mark.parametrize(
    "conf", [{"ceph__rbd_attachment_keys": "project", "ceph__rbd_namespace_per_project": True}], indirect=True
)
def test_one_for_a_project(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    one, two = attached(ctx, server), attached(ctx, server)
    assert held(hypervisor, one).user == held(hypervisor, two).user != cluster.user
    [user] = cluster.made_users.values()
    assert (user.image_id, user.namespace) == (None, cluster.namespace)
    for row in (one, two):
        attachments.detach(ctx, row)
    assert swept(world) == 0
    for row in (one, two):
        volumes.delete(ctx, volumes.get(ctx, row.volume_id))
    assert swept(world) == 1
    assert (cluster.made_users, cluster.users()) == ({}, {})


# -- what nothing explains


def lose(world: World, row: models.Attachment) -> None:
    with world.db.write() as session:
        session.delete(session.get_one(models.Attachment, row.id))


def test_users_that_no_row_explains_are_found_and_removed(
    ctx: Context, world: World, cluster: FakeCluster, server: Server
) -> None:
    stays, goes = attached(ctx, server), attached(ctx, server)
    lose(world, goes)
    left = cephx_users.user_of(str(goes.cephx_name), cluster)
    # Another service's, with another database, on the same pool.
    foreign = f"cinderlite.00000000.{goes.id}.00000000"
    cluster.note_user(foreign, b"{}")
    cluster.user_of_image(f"volume-{goes.volume_id}", foreign, read_only=False, flattens=False)
    [finding] = [one for one in audit.audit(world) if one.kind == "leaked-user"]
    assert finding.subject == f"client.{left}"
    assert swept(world) == 1
    assert set(cluster.made_users) == {cephx_users.user_of(str(stays.cephx_name), cluster), foreign}
    assert swept(world) == 0


def test_what_a_guest_still_uses_is_kept_though_its_row_was_lost(
    ctx: Context, world: World, cluster: FakeCluster, server: Server
) -> None:
    row = attached(ctx, server)
    lose(world, row)
    adopted = models.Attachment(
        volume_id=row.volume_id, server_id=row.server_id, project_id=row.project_id, mode="rw", status="attached",
        previous_status="attached",
    )  # fmt: skip
    with world.db.write() as session:
        session.add(adopted)
    assert swept(world) == 0
    lose(world, adopted)
    assert swept(world) == 1, "what is detached goes, whatever its server says"
    assert cluster.made_users == {}


def test_an_attachment_that_a_database_forgot_keeps_its_user_while_the_guest_has_the_disk(
    ctx: Context,
    world: World,
    cluster: FakeCluster,
    hypervisor: FakeHypervisor,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a dump of before it was put back: the disk would stop."""
    row = attached(ctx, server)
    Recorder(world).once()
    with world.db.write() as session:
        session.execute(sqlalchemy.delete(models.Attachment))  # Nobody notes that the record is to go.
    guest = hypervisor.guests[server.id]
    for guest.silent in (False, True):
        assert swept(world) == 0
        [finding] = [one for one in audit.audit(world) if one.kind == "unknown-attachment"]
        assert row.volume_id in str(finding)
    guest.silent = False

    def refuses(_server_id: str, **_how: bool) -> Any:
        raise errors.GuestRefused("libvirt says no")

    with monkeypatch.context() as patched:  # Nor is anybody who cannot be asked a reason to act.
        patched.setattr(hypervisor, "find", refuses)
        assert swept(world) == 0
    guest.held.clear()
    assert swept(world) == 1
    assert cluster.made_users == {}


def test_one_that_was_listed_and_never_made(ctx: Context, world: World, cluster: FakeCluster) -> None:
    with world.db.write() as session:
        database = records.identity(session).database_id.replace("-", "")[:8]
    cluster.listed_users[f"cinderlite.{database}.x.y"] = b"nonsense"
    assert swept(world) == 1
    assert cluster.users() == {}


def test_it_is_told_as_whom_a_server_has_it_open(
    ctx: Context, world: World, cluster: FakeCluster, server: Server
) -> None:
    row = attached(ctx, server)
    told = explain.explain(world, row.volume_id)
    [user] = cluster.made_users
    assert [one["cephx_user"] for one in told["attachments"]] == [user]
    assert f"as client.{user}" in "\n".join(explain.lines(told))
    assert next(iter(cluster.made_users.values())).key not in str(told)


@pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}], indirect=True)
def test_what_a_clone_shares_stays_where_its_guest_may_read_it(ctx: Context, world: World, server: Server) -> None:
    parent = volumes.create(ctx, size=1)
    clone = volumes.create(ctx, size=1, source=("source_volid", parent.id))
    row = attachments.attach(ctx, server, clone.id)
    with pytest.raises(errors.InvalidVolume, match=clone.id):
        moves.migrate(ctx, volumes.get(ctx, parent.id), "testhost@fast#fast")
    attachments.detach(ctx, row)
    moves.migrate(ctx, volumes.get(ctx, parent.id), "testhost@fast#fast")
    settle(world)
    assert volumes.get(ctx, parent.id).host == "testhost@fast#fast"


@pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}], indirect=True)
def test_who_moves_in_use_has_another_user_there(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    fast = cluster_of(world, "fast")
    row = attached(ctx, server)
    [before] = cluster.made_users
    moves.migrate(ctx, volumes.get(ctx, row.volume_id), "testhost@fast#fast")
    settle(world)
    assert (cluster.made_users, cluster.users()) == ({}, {})
    assert set(fast.made_users) == set(fast.users()) == {held(hypervisor, row).user}
    assert held(hypervisor, row).user != before
    attachments.detach(ctx, attachments.get(ctx, row.id))
    assert (fast.made_users, fast.users()) == ({}, {})


@pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}], indirect=True)
def test_a_move_that_fails_leaves_nobody_there(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    row = attached(ctx, server)
    hypervisor.guests[server.id].breaks = "no space left"
    moves.migrate(ctx, volumes.get(ctx, row.volume_id), "testhost@fast#fast")
    settle(world)
    fast = cluster_of(world, "fast")
    assert (fast.made_users, fast.users()) == ({}, {})
    assert set(cluster.made_users) == {held(hypervisor, row).user}


def test_who_keeps_a_shared_volume_open_is_fenced_and_nobody_else(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "_CLOSES_WITHIN", 0.0)
    volume = volumes.create(ctx, size=1)
    with world.db.write() as session:
        session.get_one(models.Volume, volume.id).multiattach = True
    made = []
    for number in (1, 2):
        server = hypervisor.add_server(f"vm{number}", PROJECT)
        made.append(attachments.attach(ctx, server, volume.id))
        with world.db.write() as session:
            session.get_one(models.Attachment, made[-1].id).clients = [f"192.0.2.7{number}:0/1"]
    cluster.watchers[f"volume-{volume.id}"] = ["192.0.2.71:0/1", "192.0.2.72:0/1"]
    attachments.detach(ctx, made[0])
    assert [one.id for one in rows(world)] == [made[1].id]
    assert cluster.fenced() == {"192.0.2.71:0/1"}


def test_nobody_is_fenced_for_another_who_came_at_the_same_time(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "_CLOSES_WITHIN", 0.0)
    volume = volumes.create(ctx, size=1)
    with world.db.write() as session:
        session.get_one(models.Volume, volume.id).multiattach = True
    zero, one, two = (hypervisor.add_server(name, PROJECT) for name in ("zero", "one", "two"))
    for number, server in enumerate((zero, one, two)):
        hypervisor.guests[server.id].address = f"192.0.2.7{number}:0/1"
    attachments.attach(ctx, zero, volume.id)  # Only one that is in use can be attached to two at a time.
    plug = hypervisor.guests[one.id].attach
    meanwhile: list[models.Attachment] = []

    def both(*asked: Any) -> str:
        device = plug(*asked)
        meanwhile.append(attachments.attach(ctx, two, volume.id))
        return device

    monkeypatch.setattr(hypervisor.guests[one.id], "attach", both)
    first = attachments.attach(ctx, one, volume.id)
    attachments.detach(ctx, first)
    assert {row.server_id for row in rows(world)} == {zero.id, two.id}
    assert cluster.watchers[f"volume-{volume.id}"] == ["192.0.2.70:0/1", "192.0.2.72:0/1"]
    assert cluster.fenced() == frozenset()


def test_a_server_that_is_off_is_not_taken_for_another(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "_CLOSES_WITHIN", 0.0)
    volume = volumes.create(ctx, size=1)
    with world.db.write() as session:
        session.get_one(models.Volume, volume.id).multiattach = True
    off, runs = (hypervisor.add_server(name, PROJECT) for name in ("off", "runs"))
    guest = hypervisor.guests[off.id]
    guest.kept = guest.gone = True
    plug = guest.attach

    def meanwhile(*asked: Any) -> str:
        cluster.watchers[f"volume-{volume.id}"] = ["192.0.2.71:0/1"]  # The other one's, just then.
        return plug(*asked)

    monkeypatch.setattr(guest, "attach", meanwhile)
    kept = dataclasses.replace(guest.server, attachable=frozenset({"SHUTOFF"}))
    first = attachments.attach(ctx, kept, volume.id)
    attachments.attach(ctx, runs, volume.id)
    attachments.detach(ctx, first)
    assert cluster.watchers[f"volume-{volume.id}"] == ["192.0.2.71:0/1"]
    assert cluster.fenced() == frozenset()


def test_nobody_is_fenced_who_let_go(ctx: Context, cluster: FakeCluster, server: Server) -> None:
    attachments.detach(ctx, attached(ctx, server))
    assert cluster.fenced() == frozenset()


def test_an_attachment_that_ends_by_force_leaves_nobody(
    ctx: Context, world: World, cluster: FakeCluster, hypervisor: FakeHypervisor, server: Server
) -> None:
    row = attached(ctx, server)
    hypervisor.guests[server.id].silent = True
    fencing.force_detach(ctx, row)
    assert rows(world) == []
    assert (cluster.made_users, cluster.users()) == ({}, {})
