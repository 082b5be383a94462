# SPDX-License-Identifier: Apache-2.0
"""A hypervisor in dicts: what `cinderlite.guests.Hypervisor` promises, without QEMU.

It records no calls: tests look at what its guests hold. `tests/contract/test_guest.py` runs on this one and on QEMU.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Collection, Sequence

from cinderlite import errors
from cinderlite.guests import Flavor, RbdDisk, Server, disks

FLAVOR = Flavor("1", "small", 1, 512, 0)


class FakeGuest:
    """Knobs: `holds` keeps virtio devices as a guest without a system does, `paused` too; `gone`, `silent` (hung)."""

    def __init__(self, server: Server, ports: int, *, scsi: bool) -> None:
        self._server = server
        self.ports = ports
        self.scsi = scsi
        self.holds = False
        self.paused = False
        self.gone = False
        self.silent = False
        self.held: dict[str, RbdDisk] = {}
        #: volume → bytes, once it was told of a new size
        self.sizes: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        self.missing_images: set[str] = set()
        #: image → what opens it, None for a plain one
        self.locked_images: dict[str, str | None] = {}

    @property
    def server(self) -> Server:
        """The VM, with the status that its knobs give."""
        status = "PAUSED" if self.paused else self._server.status
        status = "SHUTOFF" if self.gone else "ERROR" if self.silent else status
        return dataclasses.replace(self._server, status=status)

    def attach(self, disk: RbdDisk, taken: Collection[str]) -> str:
        """Hold the disk, on a port if one is free, else on the SCSI controller if there is one."""
        self._reach()
        if disk.volume_id not in self.held:
            kind = "/dev/vd" if list(self._kinds.values()).count("/dev/vd") < self.ports else "/dev/sd"
            if kind == "/dev/sd" and not self.scsi:
                raise disks.no_free_place()
            if disk.image in self.missing_images:
                raise errors.GuestRefused(f"error reading header from {disk.image}: No such file or directory")
            if self.locked_images.get(disk.image, disk.passphrase) != disk.passphrase:
                raise errors.GuestRefused("Invalid password, cannot unlock any keyslot")
            self.held[disk.volume_id] = disk
            self._kinds[disk.volume_id] = kind
        return disks.name(self._kinds[disk.volume_id], taken, 0)

    def detach(self, volume_id: str, wait: float) -> None:
        """Let the disk go, unless this guest holds on to it."""
        del wait
        self._reach()
        # A SCSI disk goes without the guest being asked.
        if (self.holds or self.paused) and self._kinds.get(volume_id) == "/dev/vd":
            raise errors.DeviceHeld(self._server.id)
        self.held.pop(volume_id, None)
        self._kinds.pop(volume_id, None)

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """Note the size that the guest sees."""
        self._reach()
        if volume_id in self.held:
            self.sizes[volume_id] = size_bytes

    def disks(self) -> frozenset[str]:
        """What is held."""
        self._reach()
        return frozenset(self.held)

    def _reach(self) -> None:
        if self.gone:
            raise errors.GuestGone(self._server.id)
        if self.silent:
            raise errors.GuestUnreachable(self._server.id, "no greeting in time")


class FakeHypervisor:
    """VMs by id; `add_server` makes one."""

    def __init__(self) -> None:
        self.guests: dict[str, FakeGuest] = {}

    def add_server(
        self,
        name: str,
        project_id: str,
        *,
        status: str = "ACTIVE",
        host: str = "testhost",
        ports: int = 4,
        scsi: bool = False,
    ) -> Server:
        """A new VM of a project."""
        created = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(minutes=len(self.guests))
        server = Server(str(uuid.uuid4()), name, status, project_id, "alice", host, created, FLAVOR, {})
        self.guests[server.id] = FakeGuest(server, ports, scsi=scsi)
        return server

    def servers(self) -> Sequence[Server]:
        """Every VM."""
        return [guest.server for guest in self.guests.values()]

    def find(self, server_id: str, *, fresh: bool = True) -> FakeGuest:
        """The VM of that id. Raises ServerNotFound."""
        del fresh  # What it shows is never old.
        if server_id not in self.guests:
            raise errors.ServerNotFound(server_id)
        return self.guests[server_id]

    def close(self) -> None:
        """Nothing to let go."""
