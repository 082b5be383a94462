# SPDX-License-Identifier: Apache-2.0
"""What every hypervisor promises, tried on the fake and on QEMU, so that the fake cannot lie."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
import tempfile
import uuid
from collections.abc import Callable, Iterator

import pytest

from cinderlite import errors
from cinderlite.guests import Guest, Hypervisor, RbdDisk, disks
from cinderlite.guests.qmp import QmpHypervisor
from cinderlite.keys import luks
from fakes_hypervisor import FakeGuest, FakeHypervisor
from lab.ceph import Ceph
from lab.guest import Guest as LabGuest
from lab.process import wait


class Lab(abc.ABC):
    """VMs to try things on, and images to plug into them."""

    hypervisor: Hypervisor

    @abc.abstractmethod
    def vm(self, *, ports: int = 2, scsi: bool = False) -> str:
        """A running VM; returns its id."""

    @abc.abstractmethod
    def disk(self, *, exists: bool = True, passphrase: str | None = None) -> RbdDisk:
        """An image of its own, encrypted if there is a passphrase, or the description of one that does not exist."""

    @abc.abstractmethod
    def pause(self, server_id: str, paused: bool) -> None:
        """Let the VM's operating system stand still, or go on."""

    @abc.abstractmethod
    def kill(self, server_id: str) -> None:
        """End the VM as a crash would."""

    @abc.abstractmethod
    def holdings(self, server_id: str) -> object:
        """Everything that plugging in can leave behind."""

    def guest(self, server_id: str) -> Guest:
        """The VM."""
        return self.hypervisor.find(server_id)


class FakeLab(Lab):
    """The fake."""

    def __init__(self) -> None:
        self.fake = FakeHypervisor()
        self.hypervisor = self.fake
        self.missing: set[str] = set()
        self.locked: dict[str, str | None] = {}

    def _guest(self, server_id: str) -> FakeGuest:
        return self.fake.find(server_id)

    def vm(self, *, ports: int = 2, scsi: bool = False) -> str:
        server = self.fake.add_server("vm", "demo", ports=ports, scsi=scsi)
        self._guest(server.id).missing_images = self.missing
        self._guest(server.id).locked_images = self.locked
        return server.id

    def disk(self, *, exists: bool = True, passphrase: str | None = None) -> RbdDisk:
        volume = str(uuid.uuid4())
        if not exists:
            self.missing.add(f"volume-{volume}")
        self.locked[f"volume-{volume}"] = passphrase
        disk = RbdDisk(volume, "volumes", f"volume-{volume}", [("127.0.0.1", 6789)], "cinderlite", "a2V5")
        return dataclasses.replace(disk, passphrase=passphrase)

    def pause(self, server_id: str, paused: bool) -> None:
        self._guest(server_id).holds = paused

    def kill(self, server_id: str) -> None:
        self._guest(server_id).gone = True

    def holdings(self, server_id: str) -> object:
        return dict(self._guest(server_id).held)


class RealLab(Lab):
    """QEMU guests and images on a real Ceph."""

    def __init__(self, directory: pathlib.Path, ceph: Ceph, make: Callable[..., LabGuest]) -> None:
        self.hypervisor = QmpHypervisor(
            directory, connect_timeout=3, command_timeout=10, host="lab", locks=directory, refresh=0.0
        )
        self.ceph = ceph
        self.make = make
        self.vms: dict[str, LabGuest] = {}
        self.key = ceph.command("auth", "print-key", f"client.{ceph.user}").strip()
        port = ceph.conf.read_text(encoding="ascii").split(",v1:127.0.0.1:")[1].split("]")[0]
        self.monitors = [("127.0.0.1", int(port))]

    def vm(self, *, ports: int = 2, scsi: bool = False) -> str:
        guest = self.make(ports=ports, scsi=scsi)
        self.vms[guest.uuid] = guest
        return guest.uuid

    def disk(self, *, exists: bool = True, passphrase: str | None = None) -> RbdDisk:
        volume = str(uuid.uuid4())
        if exists and passphrase is None:
            self.ceph.rbd("create", "--size", "64M", f"{self.ceph.pool}/volume-{volume}")
        elif exists:
            with tempfile.NamedTemporaryFile() as file:
                file.write(luks.header(str(passphrase).encode(), 64))
                file.truncate(luks.DATA_OFFSET + 64 * 2**20)
                file.flush()
                self.ceph.rbd("import", file.name, f"{self.ceph.pool}/volume-{volume}")
        disk = RbdDisk(volume, self.ceph.pool, f"volume-{volume}", self.monitors, self.ceph.user, self.key)
        return dataclasses.replace(disk, passphrase=passphrase)

    def pause(self, server_id: str, paused: bool) -> None:
        if paused:
            self.vms[server_id].pause()
        else:
            self.vms[server_id].resume()

    def kill(self, server_id: str) -> None:
        self.vms[server_id].kill()

    def holdings(self, server_id: str) -> object:
        return self.vms[server_id].holdings()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Both labs in turn."""
    if request.param == "fake":
        yield FakeLab()
        return
    ceph: Ceph = request.getfixturevalue("ceph")
    made = RealLab(request.getfixturevalue("sockets"), ceph, request.getfixturevalue("guest_of"))
    yield made
    made.hypervisor.close()
    for guest in made.vms.values():
        guest.kill()
    ceph.empty()


def test_a_vm_is_listed_and_found(lab: Lab) -> None:
    server_id = lab.vm()
    [server] = [one for one in lab.hypervisor.servers() if one.id == server_id]
    assert (server.status, server.project_id) == ("ACTIVE", "demo")
    assert lab.guest(server_id).server == server
    with pytest.raises(errors.ServerNotFound):
        lab.hypervisor.find(str(uuid.uuid4()))


def test_attach_and_detach_are_idempotent_and_leave_nothing(lab: Lab) -> None:
    server_id, disk = lab.vm(), lab.disk()
    before = lab.holdings(server_id)
    guest = lab.guest(server_id)
    device = guest.attach(disk, ())
    assert device.startswith("/dev/vd")
    assert guest.disks() == {disk.volume_id}
    held = lab.holdings(server_id)
    assert guest.attach(disk, ()) == device
    assert lab.holdings(server_id) == held
    _detached(guest, disk)
    assert guest.disks() == frozenset()
    assert lab.holdings(server_id) == before
    guest.detach(disk.volume_id, 5)
    assert lab.holdings(server_id) == before


def test_names_that_are_taken_are_not_given_again(lab: Lab) -> None:
    guest = lab.guest(lab.vm())
    first, second = lab.disk(), lab.disk()
    name = guest.attach(first, ())
    assert guest.attach(second, {name}) != name
    for disk in (first, second):
        _detached(guest, disk)


def test_a_vm_without_room_refuses_and_a_scsi_controller_is_room(lab: Lab) -> None:
    full = lab.vm(ports=0)
    before = lab.holdings(full)
    with pytest.raises(errors.NoFreePlace, match="port"):
        lab.guest(full).attach(lab.disk(), ())
    assert lab.holdings(full) == before
    roomy = lab.guest(lab.vm(ports=0, scsi=True))
    disk = lab.disk()
    assert roomy.attach(disk, ()).startswith("/dev/sd")
    _detached(roomy, disk)


def test_a_missing_image_is_refused_and_rolled_back(lab: Lab) -> None:
    server_id = lab.vm()
    before = lab.holdings(server_id)
    with pytest.raises(errors.GuestRefused, match="No such file") as caught:
        lab.guest(server_id).attach(lab.disk(exists=False), ())
    assert lab.holdings(server_id) == before
    if isinstance(lab, RealLab):
        assert lab.key not in str(caught.value)
        assert caught.value.__cause__ is None


def test_an_encrypted_disk_is_opened_by_its_passphrase_only_and_leaves_nothing(lab: Lab) -> None:
    server_id, disk = lab.vm(), lab.disk(passphrase="0123456789abcdef" * 4)
    before = lab.holdings(server_id)
    guest = lab.guest(server_id)
    with pytest.raises(errors.GuestRefused, match="Invalid password") as caught:
        guest.attach(dataclasses.replace(disk, passphrase="f" * 64), ())
    assert "f" * 64 not in str(caught.value)
    assert lab.holdings(server_id) == before
    guest.attach(disk, ())
    held = lab.holdings(server_id)
    guest.attach(disk, ())
    assert lab.holdings(server_id) == held
    if isinstance(lab, RealLab):
        nodes = {one["node-name"]: one for one in lab.vms[server_id].qmp("query-named-block-nodes")}
        # The header is not the guest's.
        assert nodes[disks.top_node(disk.volume_id)]["image"]["virtual-size"] == 64 * 2**20
        names = lab.vms[server_id].holdings()["objects"]
        assert not {disks.secret(disk.volume_id), disks.passphrase(disk.volume_id)} & names
    _detached(guest, disk)
    assert lab.holdings(server_id) == before


def test_a_guest_that_stands_still_holds_its_disk_until_it_goes_on(lab: Lab) -> None:
    server_id, disk = lab.vm(), lab.disk()
    guest = lab.guest(server_id)
    guest.attach(disk, ())
    lab.pause(server_id, True)
    with pytest.raises(errors.DeviceHeld, match="reboot the guest"):
        guest.detach(disk.volume_id, 0.5)
    assert guest.disks() == {disk.volume_id}
    lab.pause(server_id, False)
    _detached(guest, disk)


def test_a_dead_vm_is_gone(lab: Lab) -> None:
    server_id, disk = lab.vm(), lab.disk()
    guest = lab.guest(server_id)
    guest.attach(disk, ())
    lab.kill(server_id)
    for ask in (guest.disks, lambda: guest.detach(disk.volume_id, 1), lambda: guest.attach(disk, ())):
        with pytest.raises(errors.GuestGone):
            ask()
    assert lab.hypervisor.find(server_id).server.status == "SHUTOFF"


def test_a_disk_never_shows_its_key(lab: Lab) -> None:
    disk = dataclasses.replace(lab.disk(exists=False), key="c2VjcmV0")
    assert "c2VjcmV0" not in repr(disk)


def _detached(guest: Guest, disk: RbdDisk) -> None:
    """Detach, as often as a guest that is still booting needs."""

    def gone() -> bool:
        try:
            guest.detach(disk.volume_id, 5)
        except errors.DeviceHeld:
            return False
        return True

    wait(gone, timeout=30, what="the guest to let go")
