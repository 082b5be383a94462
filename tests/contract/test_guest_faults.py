# SPDX-License-Identifier: Apache-2.0
"""A hypervisor under stress, tried on the fake, QEMU and libvirt; and QEMU's own faults, on that alone.

`test_guest.py` has the first half of the contract.

A test takes out of the Linux guest what it plugged in; guests that it makes or spoils are its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.guests import Guest, RbdDisk, disks, impatience
from contract.stages import FakeStage, LibvirtStage, RealStage, Stage
from lab.libvirt import Domain
from lab.process import run, wait

real = pytest.mark.real
#: Seconds in which a live guest lets a disk go.
SOON = 30.0


REAL_STAGES = [pytest.param(name, marks=real) for name in ("real_stage", "libvirt_stage")]


@pytest.fixture(params=["fake", *REAL_STAGES])
def stage(request: pytest.FixtureRequest) -> Stage:
    """Each of the three hypervisors."""
    if request.param == "fake":
        return FakeStage()
    found: RealStage = request.getfixturevalue(request.param)
    return found


def held_disk(guest: Guest, disk: RbdDisk) -> bool:
    return disk.volume_id in guest.disks()


def descriptors_open() -> int:
    return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())


# -- which VMs there are


def test_a_server_is_listed_and_found_by_its_id(stage: Stage) -> None:
    linux = stage.linux()
    [listed] = [server for server in stage.hypervisor.servers() if server.id == linux]
    assert (listed.name, listed.status, listed.project_id) == ("linux", "ACTIVE", "demo")
    assert listed.created.tzinfo is not None
    assert stage.hypervisor.find(linux).server == listed


def test_an_unknown_server_is_not_found(stage: Stage) -> None:
    for unknown in (str(uuid.uuid4()), "", "linux", "../linux", str(uuid.UUID(int=0))):
        with pytest.raises(errors.ServerNotFound):
            stage.hypervisor.find(unknown)


def test_a_new_server_is_found_at_once(stage: Stage) -> None:
    stage.hypervisor.servers()
    assert stage.hypervisor.find(stage.bare(0)).disks() == frozenset()


def test_a_paused_server_says_so(stage: Stage) -> None:
    bare = stage.bare(0)
    stage.pause(bare)
    assert {server.id: server.status for server in stage.hypervisor.servers()}[bare] == "PAUSED"


# -- attach and detach


def test_attach_and_detach_leave_nothing(stage: Stage) -> None:
    guest, disk = stage.hypervisor.find(stage.linux()), stage.disk()
    before = stage.holdings(stage.linux())
    assert not held_disk(guest, disk)
    assert guest.attach(disk, ()).startswith("/dev/vd")
    assert held_disk(guest, disk)
    guest.detach(disk.volume_id, SOON)
    assert not held_disk(guest, disk)
    assert stage.holdings(stage.linux()) == before


def test_attaching_and_detaching_twice_is_the_same_as_once(stage: Stage) -> None:
    guest, disk = stage.hypervisor.find(stage.linux()), stage.disk()
    name = guest.attach(disk, ())
    held = stage.holdings(stage.linux())
    assert guest.attach(disk, ()) == name
    assert stage.holdings(stage.linux()) == held
    guest.detach(disk.volume_id, SOON)
    guest.detach(disk.volume_id, SOON)
    guest.detach(str(uuid.uuid4()), SOON)


def test_several_disks_have_several_names(stage: Stage) -> None:
    guest, made = stage.hypervisor.find(stage.linux()), [stage.disk() for _ in range(3)]
    names: list[str] = []
    for disk in made:
        names.append(guest.attach(disk, names))
    assert len(set(names)) == 3
    assert guest.disks() >= {disk.volume_id for disk in made}
    for disk in made:
        guest.detach(disk.volume_id, SOON)


def test_many_at_a_time_take_turns(stage: Stage) -> None:
    made = [stage.disk() for _ in range(4)]
    before = stage.holdings(stage.linux())

    def plug(disk: RbdDisk) -> None:
        stage.hypervisor.find(stage.linux()).attach(disk, ())

    def unplug(disk: RbdDisk) -> None:
        stage.hypervisor.find(stage.linux()).detach(disk.volume_id, SOON)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(plug, made))
        assert stage.hypervisor.find(stage.linux()).disks() == {disk.volume_id for disk in made}
        list(pool.map(unplug, made))
    assert stage.holdings(stage.linux()) == before


def test_a_read_only_disk(stage: Stage) -> None:
    guest, disk = stage.hypervisor.find(stage.linux()), stage.disk(read_only=True)
    guest.attach(disk, ())
    guest.detach(disk.volume_id, SOON)


# -- places


@pytest.mark.parametrize("ports", [0, 1])
def test_no_place_names_the_remedy_and_leaves_nothing(stage: Stage, ports: int) -> None:
    bare = stage.bare(ports)
    guest = stage.hypervisor.find(bare)
    for _ in range(ports):
        guest.attach(stage.disk(), ())
    held = stage.holdings(bare)
    with pytest.raises(errors.NoFreePlace) as caught:
        guest.attach(stage.disk(), ())
    assert "pcie-root-port" in caught.value.message
    assert stage.holdings(bare) == held


@pytest.mark.parametrize("read_only", [False, True])
def test_without_a_port_a_scsi_controller_does(stage: Stage, *, read_only: bool) -> None:
    bare = stage.bare(0, scsi=True)
    guest, made = stage.hypervisor.find(bare), [stage.disk(read_only=read_only) for _ in range(3)]
    before = stage.holdings(bare)
    names: list[str] = []
    for disk in made:
        names.append(guest.attach(disk, names))
    assert names == ["/dev/sda", "/dev/sdb", "/dev/sdc"]
    assert guest.attach(made[1], [names[0], names[2]]) == "/dev/sdb"
    for disk in made:
        guest.detach(disk.volume_id, SOON)
    assert stage.holdings(bare) == before


def test_a_port_goes_before_the_scsi_controller(stage: Stage) -> None:
    guest = stage.hypervisor.find(stage.bare(1, scsi=True))
    assert guest.attach(stage.disk(), ()) == "/dev/vda"
    assert guest.attach(stage.disk(), ["/dev/vda"]) == "/dev/sda"


# -- faults


def test_an_image_that_does_not_exist_is_refused_and_leaves_nothing(stage: Stage) -> None:
    linux, disk = stage.linux(), stage.disk(exists=False)
    before = stage.holdings(linux)
    with pytest.raises(errors.GuestRefused, match="No such file or directory"):
        stage.hypervisor.find(linux).attach(disk, ())
    assert stage.holdings(linux) == before
    assert not held_disk(stage.hypervisor.find(linux), disk)


def test_a_paused_guest_holds_its_disk_until_it_runs_again(stage: Stage) -> None:
    linux, disk = stage.linux(), stage.disk()
    guest = stage.hypervisor.find(linux)
    before = stage.holdings(linux)
    guest.attach(disk, ())
    stage.pause(linux)
    try:
        for _ in range(2):
            with pytest.raises(errors.DeviceHeld):
                guest.detach(disk.volume_id, 0.3)
            assert held_disk(guest, disk)
    finally:
        stage.resume(linux)
    guest.detach(disk.volume_id, SOON)
    assert stage.holdings(linux) == before


def test_a_killed_guest_is_gone(stage: Stage) -> None:
    bare, disk = stage.bare(1), stage.disk()
    guest = stage.hypervisor.find(bare)
    guest.attach(disk, ())
    stage.kill(bare)
    for one in () if stage.keeps else (guest, stage.hypervisor.find(bare)):
        with pytest.raises(errors.GuestGone):
            one.disks()
        with pytest.raises(errors.GuestGone):
            one.detach(disk.volume_id, 1)
        with pytest.raises(errors.GuestGone):
            one.attach(disk, ())
    time.sleep(0.1 if stage.keeps else 0)  # Until the last list does not count any more.
    assert {server.id: server.status for server in stage.hypervisor.servers()}[bare] == "SHUTOFF"


# -- libvirt alone


@real
def test_a_saved_server_has_its_disk_still_and_whoever_opens_it(libvirt_stage: LibvirtStage) -> None:
    saved = libvirt_stage.add("saved", ports=0, scsi=True, guest_os=False, memory=64)
    assert isinstance(saved, Domain)
    guest, disk = libvirt_stage.hypervisor.find(saved.uuid), libvirt_stage.disk()
    told: list[str] = []
    guest.attach(disk, ())
    saved.tell("managedSave", 0)
    try:
        with pytest.raises(errors.DeviceHeld):
            guest.detach(disk.volume_id, SOON, lambda: told.append("too early"))
        assert not told, "it is resumed with the disk, and then opens the image"
    finally:
        saved.tell("managedSaveRemove", 0)
    guest.detach(disk.volume_id, SOON, lambda: told.append("let go"))
    assert told == ["let go"]


@real
def test_a_domain_that_is_not_defined_is_gone_with_its_end(libvirt_stage: LibvirtStage) -> None:
    fleeting = libvirt_stage.add("fleeting", ports=0, scsi=True, guest_os=False, memory=64, keep=False)
    guest, disk = libvirt_stage.hypervisor.find(fleeting.uuid), libvirt_stage.disk()
    before = libvirt_stage.secrets()
    for _ in range(2):
        guest.attach(disk, ())
        assert guest.disks() == {disk.volume_id}
        guest.detach(disk.volume_id, SOON)
        assert libvirt_stage.secrets() == before
    guest.attach(disk, ())
    fleeting.stop()
    for ask in (guest.disks, lambda: guest.attach(disk, ()), lambda: guest.detach(disk.volume_id, SOON)):
        with pytest.raises(errors.GuestGone):
            ask()
    assert libvirt_stage.secrets() == before
    with pytest.raises(errors.ServerNotFound):
        libvirt_stage.hypervisor.find(fleeting.uuid)


@real
@pytest.mark.timeout(60)
def test_what_happens_is_told_by_whichever_daemon_there_is(libvirt_stage: LibvirtStage) -> None:
    hypervisor, linux, disk = libvirt_stage.connect(), libvirt_stage.linux(), libvirt_stage.disk()
    heard: list[tuple[str, str | None]] = []
    hypervisor.listen(lambda server_id, volume_id: heard.append((server_id, volume_id)))
    guest = hypervisor.find(linux)
    for _ in range(2):
        guest.attach(disk, ())
        libvirt_stage.guests[linux].wait_disk(disk.volume_id)
        libvirt_stage.pause(linux)
        with pytest.raises(errors.DeviceHeld):
            guest.detach(disk.volume_id, 0.3)
        heard.clear()
        libvirt_stage.resume(linux)
        wait(lambda: (linux, disk.volume_id) in heard, timeout=10, what="the removal to be told")
        guest.detach(disk.volume_id, SOON)
        libvirt_stage.libvirt.kill()
        libvirt_stage.libvirt.start()
        wait(lambda: hypervisor.find(linux).server.status == "ACTIVE", timeout=10, what="a new connection")
    bare = libvirt_stage.bare(0)
    assert hypervisor.find(bare).server.status == "ACTIVE"
    libvirt_stage.kill(bare)
    wait(lambda: (bare, None) in heard, timeout=10, what="the end to be told")
    assert hypervisor.find(bare).server.status == "SHUTOFF"
    hypervisor.close()

    def known() -> dict[str, str]:
        return {server.id: server.status for server in libvirt_stage.hypervisor.servers()}

    wait(lambda: known().get(linux) == "ACTIVE", timeout=10, what="a new connection of the others'")


@real
@pytest.mark.timeout(120)
def test_file_systems_are_frozen_by_the_agent_that_libvirt_speaks_to(
    libvirt_stage: LibvirtStage, tmp_path: pathlib.Path
) -> None:
    vm, disk, image = libvirt_stage.add("frozen", ports=1, agent=True), libvirt_stage.disk(), tmp_path / "ext4"
    guest = libvirt_stage.hypervisor.find(vm.uuid)
    run(["mkfs.ext4", "-q", "-F", str(image), "16M"], timeout=30)
    libvirt_stage.ceph.write(disk.image, image.read_bytes(), 0)
    guest.attach(disk, ())
    vm.run(f"mount -t ext4 {vm.wait_disk(disk.volume_id)} /mnt")
    wait(lambda: guest.is_frozen() is False, timeout=30, what="the agent to answer")
    assert guest.freeze(5) == 1
    assert guest.is_frozen() is True
    with pytest.raises(errors.GuestRefused):
        guest.freeze(5)
    # Who comes later, in another process, thaws.
    later = libvirt_stage.connect()
    for _ in range(2):
        later.find(vm.uuid).thaw()
        assert guest.is_frozen() is False
    later.close()
    vm.run("kill -STOP $(pidof qemu-ga)")
    assert guest.is_frozen() is None
    for ask in (lambda: guest.freeze(1), guest.thaw):
        with pytest.raises((errors.GuestUnreachable, errors.GuestTimeout)):
            ask()
    vm.run("kill -CONT $(pidof qemu-ga)")
    wait(lambda: guest.is_frozen() is False, timeout=30, what="the agent to answer again")
    vm.stop()
    for gone in (guest.is_frozen, lambda: guest.freeze(1), guest.thaw):
        with pytest.raises(errors.GuestGone):
            gone()


@real
def test_libvirt_copies_no_disk_and_changes_nothing(libvirt_stage: LibvirtStage) -> None:
    disk = libvirt_stage.disk()
    guest, target = libvirt_stage.hypervisor.find(libvirt_stage.linux()), dataclasses.replace(disk, pool="second")
    with pytest.raises(errors.GuestRefused):
        guest.mirror(target, 0, lambda: None)
    guest.attach(disk, ())
    held = libvirt_stage.holdings(libvirt_stage.linux())
    for refused in (lambda: guest.mirror(target, 0, lambda: None), lambda: guest.pivot(target)):
        with pytest.raises(errors.GuestRefused):
            refused()
    guest.unmirror(target)
    assert guest.mirrored(target).phase == "none"
    # Of one pool's name in two clusters nothing is taken for the other.
    assert guest.mirrored(dataclasses.replace(disk, cluster=str(uuid.uuid4()))).phase == "none"
    assert libvirt_stage.holdings(libvirt_stage.linux()) == held
    guest.detach(disk.volume_id, SOON)
    guest.pivot(target)


@real
def test_an_image_of_a_namespace_is_refused(libvirt_stage: LibvirtStage) -> None:
    guest = libvirt_stage.hypervisor.find(libvirt_stage.linux())
    disk = dataclasses.replace(libvirt_stage.disk(), namespace="demo")
    with pytest.raises(errors.GuestRefused, match="namespace"):
        guest.attach(disk, ())
    assert guest.disks() == frozenset()


# -- QEMU alone: the key


@real
def test_the_key_is_left_nowhere(real_stage: RealStage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("qemu.qmp").setLevel(logging.DEBUG)
    linux, disk = real_stage.guests[real_stage.linux()], real_stage.disk()
    guest = real_stage.hypervisor.find(linux.uuid)
    guest.attach(disk, ())
    assert disks.secret(disk.volume_id) not in linux.holdings()["objects"]
    for file in ("cmdline", "environ"):
        assert real_stage.key.encode() not in pathlib.Path(f"/proc/{linux.pid}/{file}").read_bytes()
    guest.detach(disk.volume_id, SOON)
    assert real_stage.key not in caplog.text
    assert real_stage.key not in repr((disk, guest, guest.server))


@real
@pytest.mark.parametrize("key", ["no base64 at all!", "c2hvcnQ="])
def test_a_key_that_is_none_is_refused_without_being_repeated(real_stage: RealStage, key: str) -> None:
    linux = real_stage.linux()
    before = real_stage.holdings(linux)
    with pytest.raises(errors.GuestRefused) as caught:
        real_stage.hypervisor.find(linux).attach(dataclasses.replace(real_stage.disk(), key=key), ())
    assert key not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
    assert real_stage.holdings(linux) == before


# -- QEMU alone: what an interrupted operation leaves


def leave(stage: RealStage, disk: RbdDisk) -> None:
    """Make all that an attach makes before its device, with the secret that it would remove."""
    linux = stage.guests[stage.linux()]
    for command in disks.open_image(disk):
        if command.name != "object-del":
            linux.qmp(command.name, **command.arguments)


@real
def test_leftovers_without_a_device_do_not_stop_an_attach(real_stage: RealStage) -> None:
    linux, disk = real_stage.linux(), real_stage.disk()
    before = real_stage.holdings(linux)
    leave(real_stage, disk)
    guest = real_stage.hypervisor.find(linux)
    guest.attach(disk, ())
    assert held_disk(guest, disk)
    guest.detach(disk.volume_id, SOON)
    assert real_stage.holdings(linux) == before


@real
def test_leftovers_without_a_device_go_with_a_detach(real_stage: RealStage) -> None:
    linux, disk = real_stage.linux(), real_stage.disk()
    before = real_stage.holdings(linux)
    leave(real_stage, disk)
    real_stage.hypervisor.find(linux).detach(disk.volume_id, 0)
    assert real_stage.holdings(linux) == before


@real
def test_a_disk_that_was_unplugged_behind_our_back_is_cleared(real_stage: RealStage) -> None:
    linux, disk = real_stage.guests[real_stage.linux()], real_stage.disk()
    before = linux.holdings()
    guest = real_stage.hypervisor.find(linux.uuid)
    guest.attach(disk, ())
    linux.wait_disk(disk.volume_id)
    linux.qmp("device_del", id=disks.device_id(disk.volume_id))
    guest.detach(disk.volume_id, SOON)
    assert linux.holdings() == before


@real
def test_a_foreign_device_of_that_name_is_not_taken_for_ours(real_stage: RealStage) -> None:
    bare, disk = real_stage.guests[real_stage.bare(1)], real_stage.disk()
    theirs: dict[str, Any] = {"driver": "null-co", "node-name": "theirs"}
    bare.qmp("blockdev-add", **theirs)
    bare.qmp("device_add", driver="virtio-blk-pci", id=disks.device_id(disk.volume_id), bus="port1", drive="theirs")
    with pytest.raises(errors.GuestRefused, match="theirs"):
        real_stage.hypervisor.find(bare.uuid).attach(disk, ())


# -- QEMU alone: dying and hanging


@real
@pytest.mark.timeout(60)
def test_a_guest_that_dies_while_it_is_waited_for(real_stage: RealStage) -> None:
    bare, disk = real_stage.bare(1), real_stage.disk()
    guest = real_stage.hypervisor.find(bare)
    guest.attach(disk, ())
    killer = threading.Timer(0.3, real_stage.kill, [bare])
    killer.start()
    with pytest.raises(errors.GuestGone):
        guest.detach(disk.volume_id, 20)
    killer.join()


@real
@pytest.mark.timeout(60)
def test_a_hung_guest_holds_up_nobody_and_comes_back(real_stage: RealStage) -> None:
    bare = real_stage.guests[real_stage.bare(1)]
    hypervisor = real_stage.hypervisor
    guest, before = hypervisor.find(bare.uuid), hypervisor.servers()
    descriptors = descriptors_open()
    bare.freeze()
    try:
        time.sleep(0.1)
        assert {server.id: server.status for server in hypervisor.servers()}[bare.uuid] == "ERROR"
        for _ in range(5):
            # It was waited for once; now only the others are.
            time.sleep(0.1)
            found = {server.id: server for server in hypervisor.servers()}
            assert found[bare.uuid].status == "ERROR"
            assert found[real_stage.linux()].status == "ACTIVE"
        [known] = [server for server in before if server.id == bare.uuid]
        assert dataclasses.replace(found[bare.uuid], status=known.status) == known
        with pytest.raises(errors.GuestUnreachable):
            guest.disks()
    finally:
        bare.unfreeze()
    deadline = time.monotonic() + 10
    while {server.id: server.status for server in hypervisor.servers()}[bare.uuid] != "ACTIVE":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert hypervisor.find(bare.uuid).disks() == frozenset()
    assert descriptors_open() <= descriptors + 2


@real
@pytest.mark.timeout(60)
def test_a_frozen_cluster_ends_in_a_time_out_and_can_be_cleared(real_stage: RealStage) -> None:
    linux, disk = real_stage.linux(), real_stage.disk()
    guest = real_stage.hypervisor.find(linux)
    before = real_stage.holdings(linux)
    real_stage.ceph.pause_osd()
    try:
        with pytest.raises(errors.GuestTimeout):
            guest.attach(disk, ())
    finally:
        real_stage.ceph.resume_osd()
    # The command may still have happened: only looking tells, and a detach removes whatever there is.
    deadline = time.monotonic() + 20
    while True:
        try:
            guest.detach(disk.volume_id, SOON)
            break
        except errors.Unavailable:
            assert time.monotonic() < deadline
    assert real_stage.holdings(linux) == before


@real
@pytest.mark.timeout(60)
def test_a_frozen_monitor_of_ceph_stops_a_vm_for_no_longer_than_the_bound(real_stage: RealStage) -> None:
    """As when it freezes right after it was found to be well."""
    linux, disk = real_stage.linux(), real_stage.disk()
    guest = real_stage.hypervisor.find(linux)
    before = real_stage.holdings(linux)
    real_stage.ceph.pause_mon()
    try:
        with pytest.raises(errors.GuestRefused):  # QEMU itself gave up, in less than a command may take.
            guest.attach(disk, ())
        assert real_stage.holdings(linux) == before
    finally:
        real_stage.ceph.resume_mon()
    guest.attach(disk, ())
    guest.detach(disk.volume_id, SOON)


@real
def test_a_file_that_qemu_cannot_read_is_done_without(real_stage: RealStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when QEMU runs in a container, or may not look into the directory."""
    monkeypatch.setattr(impatience, "file", lambda *_: "/nonexistent/ceph.conf")
    bare, disk = real_stage.bare(1), real_stage.disk()
    guest = real_stage.hypervisor.find(bare)
    guest.attach(disk, ())
    assert held_disk(guest, disk)


@real
def test_another_vm_on_the_same_socket_is_another_vm(real_stage: RealStage) -> None:
    first = real_stage.bare(1)
    name = real_stage.guests[first].name
    guest = real_stage.hypervisor.find(first)
    real_stage.guests.pop(first).forget()
    second = real_stage.add(name, ports=1, guest_os=False, memory=64, uuid=str(uuid.uuid4()))
    with pytest.raises(errors.GuestGone):
        guest.attach(real_stage.disk(), ())
    with pytest.raises(errors.ServerNotFound):
        real_stage.hypervisor.find(first)
    assert real_stage.hypervisor.find(second.uuid).disks() == frozenset()


@real
def test_a_socket_that_a_dead_vm_left_does_not_hide_the_living_one(real_stage: RealStage) -> None:
    bare = real_stage.bare(1)
    dead = real_stage.sockets / "a-former-start.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    dead.with_suffix(".json").write_text(json.dumps({"id": bare, "project_id": "demo"}), encoding="ascii")
    try:
        assert [server.status for server in real_stage.hypervisor.servers() if server.id == bare] == ["ACTIVE"]
        assert real_stage.hypervisor.find(bare).server.status == "ACTIVE"
    finally:
        dead.unlink()
        dead.with_suffix(".json").unlink()


@pytest.fixture
def babbler(real_stage: RealStage) -> Iterator[str]:
    """A socket in the directory that answers, but not as QEMU does."""
    path = real_stage.sockets / "babbler.sock"
    server_id = str(uuid.uuid4())
    path.with_suffix(".json").write_text(json.dumps({"id": server_id, "project_id": "demo"}), encoding="ascii")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def babble() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):  # Some hang up at once.
                    connection.sendall(b"QEMU 7.2.0 monitor - type 'help' for more information\r\n(qemu) ")

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        yield server_id
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    path.unlink()
    path.with_suffix(".json").unlink()


@real
def test_what_is_no_monitor_is_an_error_beside_the_others(real_stage: RealStage, babbler: str) -> None:
    assert real_stage.hypervisor.find(babbler).server.status == "ERROR"
    time.sleep(0.1)  # Until the last list does not count any more.
    found = {server.id: server.status for server in real_stage.hypervisor.servers()}
    assert found[babbler] == "ERROR"
    assert found[real_stage.linux()] == "ACTIVE"
    with pytest.raises(errors.GuestUnreachable):
        real_stage.hypervisor.find(babbler).disks()


@real
def test_two_processes_take_turns_at_one_monitor(real_stage: RealStage) -> None:
    """A process that waits for its turn does not take the VM for hung, and its operation is done after all."""
    bare, first, second = real_stage.bare(2), real_stage.disk(), real_stage.disk()
    other = real_stage.connect()
    try:
        mine, theirs = real_stage.hypervisor.find(bare), other.find(bare)
        mine.attach(first, ())
        with ThreadPoolExecutor(2) as pool:
            # Nobody in this guest lets go, so the monitor is held for as long as it is waited for.
            holding = pool.submit(mine.detach, first.volume_id, 3.0)
            wait(lambda: real_stage.is_at_work(bare), timeout=10, what="the first one's turn")
            assert {server.id: server.status for server in other.servers()}[bare] == "ACTIVE"
            theirs.attach(second, ())
            assert holding.done()
            with pytest.raises(errors.DeviceHeld):
                holding.result()
        assert mine.disks() == {first.volume_id, second.volume_id}
    finally:
        other.close()


@real
def test_closing_ends_what_is_under_way_and_the_thread(real_stage: RealStage) -> None:
    bare, disk = real_stage.bare(1), real_stage.disk()
    hypervisor = real_stage.connect()
    guest = hypervisor.find(bare)
    guest.attach(disk, ())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(guest.detach, disk.volume_id, 30)
        wait(lambda: real_stage.is_at_work(bare), timeout=10, what="it to begin")
        hypervisor.close()
        with pytest.raises(errors.GuestTimeout):
            waiting.result(5)
    assert [thread.name for thread in threading.enumerate()].count("qmp") <= 1
    with pytest.raises(errors.GuestUnreachable):
        guest.disks()
    assert real_stage.hypervisor.find(bare).disks() == {disk.volume_id}
