# SPDX-License-Identifier: Apache-2.0
"""Moving volumes that a server has open: what is refused, what they hold afterwards, and who may die meanwhile."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy

from cinderlite import errors
from cinderlite.cmd import manage
from cinderlite.context import World
from cinderlite.core import cephx_users, mirrors, reconcile
from cinderlite.db import models
from cinderlite.guests import FAILED
from conftest import PROJECT, Client, cluster_of, settle
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeGuest, FakeHypervisor
from model.life import Killed, Life

HERE, FAST = "testhost@ceph#ceph", "testhost@fast#fast"
two = pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}], indirect=True)
pytestmark = two


def make_type(world: World, name: str, **specs: str) -> None:
    with world.db.write() as session:
        rows = [models.ExtraSpec(key=key, value=value) for key, value in specs.items()]
        session.add(models.VolumeType(name=name, extra_spec_rows=rows))


def act(client: Client, volume: str, action: str, **body: Any) -> Any:
    return client.at("3.59").post(f"/v3/volumes/{volume}/action", {action: body})


def migrate(admin: Client, volume: str) -> Any:
    """To where it is not."""
    there = {HERE: FAST, FAST: HERE}[shown(admin, volume)[1]]
    return act(admin, volume, "os-migrate_volume", host=there)


def shown(admin: Client, volume: str) -> tuple[str, str, str | None]:
    found = admin.get(f"/v3/volumes/{volume}").json["volume"]
    return found["status"], found["os-vol-host-attr:host"], found["os-vol-mig-status-attr:migstat"]


def attachments(server: str) -> str:
    return f"/v2.1/servers/{server}/os-volume_attachments"


@pytest.fixture
def guest(hypervisor: FakeHypervisor) -> FakeGuest:
    return hypervisor.find(hypervisor.add_server("vm1", PROJECT).id)


@pytest.fixture
def volume(admin: Client, guest: FakeGuest, cluster: FakeCluster) -> str:
    """One that the guest has open and has written to."""
    made: str = admin.volume()["id"]
    attach(admin, guest, made)
    assert guest.write(made, "written")
    return made


def attach(admin: Client, guest: FakeGuest, volume: str) -> None:
    body = {"volumeAttachment": {"volumeId": volume}}
    assert admin.at("2.60").post(attachments(guest.server.id), body).status_code == 200


def held(world: World, backend: str, volume: str) -> str | None:
    """What the image of a volume in a back end holds; None if there is no image."""
    cluster = cluster_of(world, backend)
    image = cluster.stored.get(f"volume-{volume}")
    return None if image is None else cluster.data.get(image[0], "")


def nothing_is_left(world: World) -> bool:
    clusters = cluster_of(world), cluster_of(world, "fast")
    users = {user for one in clusters for user in (*one.made_users, *one.users())}
    with world.db.read() as session:
        rows = [(row, session.get_one(models.Volume, row.volume_id)) for row in session.query(models.Attachment)]
    needed = {cephx_users.user_of(str(row.cephx_name), world.cluster_of(volume)) for row, volume in rows}
    return not any(one.bin or one.resting for one in clusters) and users == needed


def test_a_server_goes_on_with_the_other_image(admin: Client, world: World, guest: FakeGuest, volume: str) -> None:
    before = guest.held[volume]
    assert migrate(admin, volume).status_code == 202
    assert shown(admin, volume) == ("in-use", FAST, "success")
    assert (held(world, "ceph", volume), held(world, "fast", volume)) == (None, "written")
    now = guest.held[volume]
    assert (before.pool, now.pool, now.limits) == ("volumes", "nvme", before.limits)
    assert nothing_is_left(world)
    guest.write(volume, "more")
    settle(world)
    assert act(admin, volume, "os-migrate_volume", host=FAST).status_code == 400
    assert migrate(admin, volume).status_code == 202
    assert (held(world, "ceph", volume), held(world, "fast", volume)) == ("more", None)
    assert admin.delete(f"{attachments(guest.server.id)}/{volume}").status_code == 202
    assert shown(admin, volume) == ("available", HERE, "success")
    assert admin.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world)
    assert nothing_is_left(world)


def test_a_backup_can_be_deleted_meanwhile(admin: Client, world: World, volume: str) -> None:
    other = admin.volume()["id"]
    backup = admin.post("/v3/backups", {"backup": {"volume_id": other}}).json["backup"]["id"]
    cluster_of(world, "fast").life = life = Life()
    life.faults = [(0, "no answer")]
    assert migrate(admin, volume).status_code == 202
    assert shown(admin, volume)[2] == "migrating"
    assert admin.delete(f"/v3/backups/{backup}").status_code == 202
    settle(world)
    assert shown(admin, volume) == ("in-use", FAST, "success")


def test_a_restarted_server_gets_the_image_that_counts(
    admin: Client, world: World, guest: FakeGuest, volume: str
) -> None:
    assert migrate(admin, volume).status_code == 202
    guest.restart()
    settle(world)
    assert guest.held[volume].pool == "nvme"
    assert shown(admin, volume) == ("in-use", FAST, "success")


def test_a_new_type_may_move_it(admin: Client, client: Client, world: World, guest: FakeGuest, volume: str) -> None:
    make_type(world, "quick", volume_backend_name="fast")
    assert act(client, volume, "os-retype", new_type="quick").status_code == 400
    assert shown(admin, volume) == ("in-use", HERE, None)
    assert act(client, volume, "os-retype", new_type="quick", migration_policy="on-demand").status_code == 202
    assert shown(admin, volume) == ("in-use", FAST, "success")
    assert admin.get(f"/v3/volumes/{volume}").json["volume"]["volume_type"] == "quick"
    assert held(world, "fast", volume) == "written"


def test_a_new_type_that_stays_does_not_ask_what_was_made_of_it(admin: Client, world: World, volume: str) -> None:
    make_type(world, "gold")
    assert admin.volume(source_volid=volume)["status"] == "available"
    assert act(admin, volume, "os-retype", new_type="gold", migration_policy="on-demand").status_code == 202
    assert shown(admin, volume) == ("in-use", HERE, None)


def test_another_cluster_is_within_reach(admin: Client, world: World, volume: str) -> None:
    cluster_of(world, "fast").cluster_id = "another"
    assert migrate(admin, volume).status_code == 202
    assert shown(admin, volume) == ("in-use", FAST, "success")
    assert (held(world, "ceph", volume), held(world, "fast", volume)) == (None, "written")


# -- what is refused


def refused(admin: Client, world: World, volume: str, words: str) -> None:
    before = shown(admin, volume)
    answer = migrate(admin, volume)
    assert answer.status_code == 400
    assert words in answer.json["badRequest"]["message"]
    make_type(world, "quick", volume_backend_name="fast")
    assert act(admin, volume, "os-retype", new_type="quick", migration_policy="on-demand").status_code == 400
    assert shown(admin, volume) == before
    assert held(world, "fast", volume) is None


def test_one_with_snapshots_stays(admin: Client, world: World, volume: str) -> None:
    body = {"snapshot": {"volume_id": volume, "force": True}}
    assert admin.post("/v3/snapshots", body).status_code == 202
    refused(admin, world, volume, "snapshots")


def test_one_with_clones_that_need_it_stays(admin: Client, world: World, volume: str, cluster: FakeCluster) -> None:
    image_id = cluster.stored[f"volume-{volume}"][0]
    cluster.snaps[image_id] = {"what-only-a-clone-needs": (2**30, "")}
    refused(admin, world, volume, "clones")


def test_what_backups_left_may_go(admin: Client, world: World, volume: str) -> None:
    assert admin.post("/v3/backups", {"backup": {"volume_id": volume, "force": True}}).status_code == 202
    assert migrate(admin, volume).status_code == 202
    assert shown(admin, volume) == ("in-use", FAST, "success")
    assert nothing_is_left(world)
    more = {"backup": {"volume_id": volume, "force": True, "incremental": True}}
    made = admin.post("/v3/backups", more).json["backup"]["id"]
    assert admin.get(f"/v3/backups/{made}").json["backup"]["status"] == "available"


def test_one_that_another_service_plugged_in_stays(admin: Client, world: World) -> None:
    volume = admin.volume()["id"]
    body = {"attachment": {"volume_uuid": volume, "connector": {"host": "c"}, "instance_uuid": models.new_id()}}
    made = admin.at("3.71").post("/v3/attachments", body).json["attachment"]["id"]
    done = admin.at("3.71").post(f"/v3/attachments/{made}/action", {"os-complete": None})
    assert done.status_code == 204
    refused(admin, world, volume, "another service")


def test_one_of_several_servers_stays(
    admin: Client, world: World, hypervisor: FakeHypervisor, guest: FakeGuest
) -> None:
    make_type(world, "shared", multiattach="<is> True")
    volume = admin.volume(volume_type="shared")["id"]
    other = hypervisor.find(hypervisor.add_server("vm2", PROJECT).id)
    attach(admin, guest, volume)
    attach(admin, other, volume)
    answer = migrate(admin, volume)
    assert (answer.status_code, "several servers" in answer.text) == (400, True)
    assert admin.delete(f"{attachments(other.server.id)}/{volume}").status_code == 202
    assert migrate(admin, volume).status_code == 202
    assert shown(admin, volume) == ("in-use", FAST, "success")
    fast = cluster_of(world, "fast")
    assert fast.stored[f"volume-{volume}"][0] in fast.shared


def test_one_that_may_only_be_read_stays(admin: Client, guest: FakeGuest) -> None:
    volume = admin.volume()["id"]
    assert act(admin, volume, "os-update_readonly_flag", readonly=True).status_code == 202
    attach(admin, guest, volume)
    assert migrate(admin, volume).status_code == 400


# -- while it moves


class Unknown:
    """Lets nobody know how the change ended that a guest is told to make, from the n-th on."""

    def __init__(self, first: int = 0) -> None:
        self.left = first

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise errors.GuestTimeout("vm", "it hangs")


@pytest.fixture
def moving(admin: Client, hypervisor: FakeHypervisor, guest: FakeGuest, volume: str) -> str:
    """A volume of which some is copied."""
    guest.copying, hypervisor.life = 2, Unknown(4)
    original = mirrors._LOOK_EVERY
    mirrors._LOOK_EVERY = 0.0
    try:
        assert migrate(admin, volume).status_code == 202
    finally:
        mirrors._LOOK_EVERY = original
    assert shown(admin, volume) == ("maintenance", HERE, "migrating")
    hypervisor.life = lambda: None
    return volume


def test_nothing_else_is_done_to_it_meanwhile(
    admin: Client, world: World, hypervisor: FakeHypervisor, guest: FakeGuest, moving: str
) -> None:
    other = hypervisor.add_server("vm2", PROJECT).id
    tries = [
        act(admin, moving, "os-extend", new_size=2),
        act(admin, moving, "os-retype", new_type="__DEFAULT__", migration_policy="on-demand"),
        act(admin, moving, "os-migrate_volume", host=FAST),
        act(admin, moving, "os-reset_status", status="available"),
        act(admin, moving, "os-force_delete"),
        admin.post("/v3/snapshots", {"snapshot": {"volume_id": moving, "force": True}}),
        admin.post("/v3/backups", {"backup": {"volume_id": moving, "force": True}}),
        admin.post("/v3/volumes", {"volume": {"source_volid": moving}}),
        admin.post(attachments(other), {"volumeAttachment": {"volumeId": moving}}),
        admin.delete(f"{attachments(guest.server.id)}/{moving}"),
        admin.delete(f"/v3/volumes/{moving}"),
    ]
    assert [one.status_code for one in tries] == [400] * len(tries), [one.text for one in tries]
    assert guest.disks() == {moving}
    for host in (HERE, FAST):
        [listed] = (
            admin.at("3.8")
            .get(f"/v3/manageable_volumes/detail?host={host.replace('#', '%23')}")
            .json["manageable-volumes"]
        )
        assert (listed["safe_to_manage"], listed["cinder_id"]) == (False, moving)
    settle(world)
    assert shown(admin, moving) == ("in-use", FAST, "success")
    assert held(world, "fast", moving) == "written"


def manage_says(monkeypatch: pytest.MonkeyPatch, world: World, *words: str) -> int:
    @contextlib.contextmanager
    def own(_conf: Any) -> Any:
        yield world

    monkeypatch.setattr(manage, "_world", own)
    monkeypatch.setattr(sys, "argv", ["cinderlite-manage", *words])
    return manage.main()


def test_the_operator_sees_how_far_it_is_and_cancels_it(
    admin: Client, world: World, guest: FakeGuest, moving: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert manage_says(monkeypatch, world, "explain", moving) == 0
    assert "mirror 0 %" in capsys.readouterr().out
    assert manage_says(monkeypatch, world, "volume", "cancel-move", moving) == 0
    assert moving in capsys.readouterr().out
    settle(world)
    assert shown(admin, moving) == ("in-use", HERE, "error")
    assert (held(world, "ceph", moving), held(world, "fast", moving)) == ("written", None)
    assert not guest.mirrors
    assert nothing_is_left(world)
    [message] = admin.at("3.3").get("/v3/messages").json["messages"]
    assert message["resource_uuid"] == moving
    assert manage_says(monkeypatch, world, "volume", "cancel-move", moving) == 1
    assert migrate(admin, moving).status_code == 202
    assert shown(admin, moving) == ("in-use", FAST, "success")


def test_what_is_over_is_not_cancelled(
    admin: Client, world: World, hypervisor: FakeHypervisor, guest: FakeGuest, volume: str
) -> None:
    hypervisor.life = Unknown(6)
    assert migrate(admin, volume).status_code == 202
    assert shown(admin, volume) == ("maintenance", FAST, "completing")
    with pytest.raises(errors.InvalidVolume):
        mirrors.cancel(world, volume)
    hypervisor.life = lambda: None
    settle(world)
    assert shown(admin, volume) == ("in-use", FAST, "success")
    with pytest.raises(errors.InvalidVolume):
        mirrors.cancel(world, volume)
    assert guest.held[volume].pool == "nvme"


def test_a_job_that_lost_the_race_with_a_cancel_changes_nothing(
    admin: Client, world: World, hypervisor: FakeHypervisor, guest: FakeGuest, volume: str
) -> None:
    moments: list[None] = []
    stored: list[bool] = []

    def cancel_late() -> None:
        moments.append(None)
        if len(moments) == 6:  # Both are equal, and the guest's writes wait.
            mirrors.cancel(world, volume)
            stored.append(guest.write(volume, "late"))

    hypervisor.life = cancel_late
    assert migrate(admin, volume).status_code == 202
    settle(world)
    assert stored == [False]
    assert shown(admin, volume) == ("in-use", HERE, "error")
    assert (held(world, "ceph", volume), held(world, "fast", volume)) == ("late", None)


# -- what goes wrong


def stays(admin: Client, world: World, volume: str, content: str = "written") -> None:
    assert shown(admin, volume) == ("in-use", HERE, "error")
    assert (held(world, "ceph", volume), held(world, "fast", volume)) == (content, None)
    assert nothing_is_left(world)


def test_a_copy_that_fails_leaves_all_as_it_was(admin: Client, world: World, guest: FakeGuest, volume: str) -> None:
    make_type(world, "quick", volume_backend_name="fast")
    guest.breaks = "No space left on device"
    assert act(admin, volume, "os-retype", new_type="quick", migration_policy="on-demand").status_code == 202
    stays(admin, world, volume)
    assert admin.get(f"/v3/volumes/{volume}").json["volume"]["volume_type"] == "__DEFAULT__"
    with world.db.read() as session:
        assert "No space left" in str(session.get_one(models.Volume, volume).reason)


def test_a_server_that_ends_meanwhile_keeps_its_volume_where_it_was(
    admin: Client, world: World, guest: FakeGuest, moving: str
) -> None:
    guest.gone = True
    settle(world)
    # Ceph has not noticed yet.
    assert shown(admin, moving) == ("maintenance", HERE, "migrating")
    guest.restart()
    settle(world)
    assert shown(admin, moving) == ("available", HERE, "error")
    assert (held(world, "ceph", moving), held(world, "fast", moving)) == ("written", None)
    assert nothing_is_left(world)


def test_one_that_changed_over_and_ended_at_once_is_in_the_other_pool(
    admin: Client, world: World, hypervisor: FakeHypervisor, guest: FakeGuest, volume: str
) -> None:
    def die_after_a_write() -> None:
        if guest.held[volume].pool == "nvme":
            hypervisor.life = lambda: None
            guest.write(volume, "last words")
            guest.gone = True
            raise Killed

    hypervisor.life = die_after_a_write
    with pytest.raises(Killed):
        migrate(admin, volume)
    guest.restart()
    take_up(world)
    assert shown(admin, volume) == ("in-use", FAST, "success")
    assert (held(world, "ceph", volume), held(world, "fast", volume)) == (None, "last words")


def test_a_server_that_never_changes_over_keeps_what_it_writes(
    admin: Client, world: World, hypervisor: FakeHypervisor, guest: FakeGuest, volume: str
) -> None:
    """QEMU fails although both were equal, after it was written down that the other one counts."""
    moments: list[None] = []

    def break_late() -> None:
        moments.append(None)
        if len(moments) == 7:
            target = guest.mirrors[volume][0]
            guest.mirrors[volume], guest.breaks = (target, FAILED), "Operation not permitted"
            guest.write(volume, "goes on")
            raise errors.GuestTimeout("vm", "who knows")

    hypervisor.life = break_late
    assert migrate(admin, volume).status_code == 202
    assert shown(admin, volume)[1] == FAST
    settle(world)
    guest.breaks = ""
    stays(admin, world, volume, "goes on")


def test_what_an_administrator_completed_in_qemu_is_taken_as_it_is(
    admin: Client, world: World, hypervisor: FakeHypervisor, guest: FakeGuest, volume: str
) -> None:
    moments: list[None] = []

    def complete() -> None:
        moments.append(None)
        if len(moments) == 6:
            hypervisor.life = lambda: None
            guest.pivot(guest.mirrors[volume][0])
            guest.write(volume, "by hand")
            raise errors.GuestTimeout("vm", "who knows")

    hypervisor.life = complete
    assert migrate(admin, volume).status_code == 202
    with contextlib.suppress(errors.InvalidVolume):
        mirrors.cancel(world, volume)
    settle(world)
    assert shown(admin, volume) == ("in-use", FAST, "success")
    assert (held(world, "ceph", volume), held(world, "fast", volume)) == (None, "by hand")


def test_a_former_image_that_is_still_open_is_waited_for(
    admin: Client, world: World, cluster: FakeCluster, volume: str
) -> None:
    cluster.watchers[f"volume-{volume}"] = ["192.0.2.9:0/1"]
    assert migrate(admin, volume).status_code == 202
    assert shown(admin, volume) == ("maintenance", FAST, "completing")
    assert held(world, "ceph", volume) is not None
    cluster.watchers.clear()
    settle(world)
    assert shown(admin, volume) == ("in-use", FAST, "success")
    assert held(world, "ceph", volume) is None


def test_a_pool_that_is_gone_does_not_hold_the_volume_for_ever(
    admin: Client, world: World, moving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_of(world, "fast").down = True
    settle(world)
    assert shown(admin, moving) == ("maintenance", HERE, "migrating")
    mirrors.cancel(world, moving)
    settle(world)
    assert shown(admin, moving) == ("maintenance", HERE, "migrating")
    monkeypatch.setattr(mirrors, "_PATIENCE", 0.0)
    settle(world)
    assert shown(admin, moving) == ("in-use", HERE, "error")


# -- who dies


def take_up(world: World) -> None:
    """What other processes do once the leases of dead ones have lapsed."""
    table = models.Volume
    for _ in range(5):
        with world.db.write() as session:
            for machine in reconcile.MACHINES:
                working = machine.model.busy == 1
                session.execute(
                    sqlalchemy.update(machine.model).where(working).values(lease_owner=None, lease_until=0.0)
                )
        reconcile.once(world)
        with world.db.read() as session:
            if session.scalar(sqlalchemy.select(table.id).where(table.busy == 1, table.deleted.is_(False))) is None:
                return


def writes_on(guest: FakeGuest, volume: str) -> str:
    guest.write(volume, "after the death")
    return "after the death"


def writes_and_ends(guest: FakeGuest, volume: str) -> str:
    stored = guest.write(volume, "last words")
    guest.restart()
    return "last words" if stored else "written"


@pytest.mark.parametrize("meanwhile", [writes_on, writes_and_ends])
def test_whoever_dies_at_whatever_moment_no_write_is_lost(
    admin: Client,
    world: World,
    hypervisor: FakeHypervisor,
    guest: FakeGuest,
    meanwhile: Callable[[FakeGuest, str], str],
) -> None:
    life, deaths = Life(), 0
    hypervisor.life = life
    for name in ("ceph", "fast"):
        cluster_of(world, name).life = life
    went = set()
    while True:
        volume = admin.volume()["id"]
        before = shown(admin, volume)[1]
        attach(admin, guest, volume)
        assert guest.write(volume, "written")
        life.faults = [(deaths, "kill")]
        try:
            answer = migrate(admin, volume)
            assert answer.status_code == 202, answer.text
        except Killed:
            expected = meanwhile(guest, volume)
        else:
            break
        finally:
            life.faults = []
        take_up(world)
        status, host, _ = shown(admin, volume)
        backend = host.rpartition("#")[2]
        other = {"ceph": "fast", "fast": "ceph"}[backend]
        assert (status, held(world, backend, volume), held(world, other, volume)) == ("in-use", expected, None), deaths
        assert guest.held[volume].pool == cluster_of(world, backend).pool
        assert nothing_is_left(world)
        assert admin.delete(f"{attachments(guest.server.id)}/{volume}").status_code == 202
        assert admin.delete(f"/v3/volumes/{volume}").status_code == 202
        settle(world)
        went.add(host != before)
        deaths += 1
    assert deaths > 10
    assert True in went


def test_it_is_tried_again_whatever_is_not_known(
    admin: Client, world: World, hypervisor: FakeHypervisor, guest: FakeGuest
) -> None:
    life = Life()
    hypervisor.life = life
    for name in ("ceph", "fast"):
        cluster_of(world, name).life = life
    for moment in range(0, 20, 3):
        volume = admin.volume()["id"]
        before = shown(admin, volume)[1]
        attach(admin, guest, volume)
        assert guest.write(volume, "written")
        life.faults = [(moment, "doubt"), (moment, "doubt")]
        assert migrate(admin, volume).status_code == 202
        take_up(world)
        life.faults = []
        take_up(world)
        status, host, migration = shown(admin, volume)
        assert (status, migration, host == before) == ("in-use", "success", False), moment
        assert held(world, host.rpartition("#")[2], volume) == "written"
        assert held(world, before.rpartition("#")[2], volume) is None
        assert admin.delete(f"{attachments(guest.server.id)}/{volume}").status_code == 202
        assert admin.delete(f"/v3/volumes/{volume}").status_code == 202
        settle(world)
