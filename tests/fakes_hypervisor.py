# SPDX-License-Identifier: Apache-2.0
"""A hypervisor in dicts: what `cinderlite.guests.Hypervisor` promises, without QEMU.

It records no calls: tests look at what its guests hold. `tests/contract/test_guest.py` runs on this one and on QEMU.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from cinderlite import errors
from cinderlite.guests import (
    ABSENT,
    ARRIVING,
    BUSES,
    COPYING,
    EQUAL,
    FAILED,
    MOVED,
    NONE,
    RUNNING,
    Flavor,
    Heard,
    Mirror,
    RbdDisk,
    Server,
    disks,
    threads,
)
from fakes_cluster import FakeCluster

FLAVOR = Flavor("1", "small", 1, 512, 0)


class FakeGuest:
    """Knobs: `holds` keeps virtio devices as a guest without a system does, `paused` too; `gone`, `silent` (hung).

        With `refuses_limits` it keeps those that its disks have. `copying` is how often a mirror says that it is not done
        yet, `breaks` why it fails after that. One that is `defined` is shut off when it is `gone`, and has its disks when
        it is started, as with libvirt; one that is `kept` by its owner file has none, and gets them from who starts it. Its
    `address` is what Ceph sees of it; without one that sees nothing of it.
    """

    def __init__(
        self,
        server: Server,
        ports: int,
        *,
        scsi: bool,
        defined: bool = False,
        kept: bool = False,
        hypervisor: FakeHypervisor | None = None,
    ) -> None:
        self._server = server
        #: its server's; may be changed
        self.metadata: dict[str, str] = dict(server.metadata)
        self._hypervisor = hypervisor or FakeHypervisor()
        self.ports = ports
        self.scsi = scsi
        self.defined = defined
        self.kept = kept
        self.holds = False
        self.paused = False
        self.gone = False
        self.silent = False
        #: whether it waits for its guest, which is another one's still
        self.arriving = False
        self.address = ""
        self.refuses_limits = False
        #: the volume that it was started to boot from
        self.root: str | None = None
        self.copying = 0
        self.breaks = ""
        self.held: dict[str, RbdDisk] = {}
        #: volume → bytes, once it was told of a new size
        self.sizes: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        self.missing_images: set[str] = set()
        #: image → what opens it, None for a plain one
        self.locked_images: dict[str, str | None] = {}
        #: volume → what it is copied to, and how far that is
        self.mirrors: dict[str, tuple[RbdDisk, str]] = {}
        #: volume → what its guest wrote and was not told yet that it is stored
        self.waiting: dict[str, str] = {}
        #: its agent: None is none, else whether it answers; and whether the file systems are frozen
        self.agent: bool | None = None
        self.frozen = False
        #: how often they were
        self.freezes = 0

    @property
    def server(self) -> Server:
        """The VM, with the status that its knobs give."""
        status = "PAUSED" if self.paused else ARRIVING if self.arriving else self._server.status
        status = "SHUTOFF" if self.gone else "ERROR" if self.silent else status
        return dataclasses.replace(self._server, status=status, metadata=self.metadata)

    def attach(self, disk: RbdDisk | Future[RbdDisk], taken: Collection[str]) -> str:
        """Hold the disk, on a port if one is free, else on the SCSI controller if there is one."""
        if self.gone and self.kept:
            return disks.name("/dev/vd", taken, 0)
        self._reach()
        disk = threads.result(disk)
        if disk.volume_id not in self.held:
            free = self.room()
            buses = [bus for bus in ([disk.tuning.bus] if disk.tuning.bus else BUSES) if free[bus]]
            if not buses:
                raise disks.no_free_place(disk.tuning.bus)
            kind = disks.DRIVERS[buses[0]][1]
            if disk.image in self.missing_images and not self.gone:
                raise errors.GuestRefused(f"error reading header from {disk.image}: No such file or directory")
            if self.locked_images.get(disk.image, disk.passphrase) != disk.passphrase and not self.gone:
                raise errors.GuestRefused("Invalid password, cannot unlock any keyslot")
            self._connect(disk)
            self.held[disk.volume_id] = disk
            self._kinds[disk.volume_id] = kind
            cluster = self._cluster(disk)
            if self.address and cluster is not None and not disk.read_only:
                cluster.watchers.setdefault(disk.image, []).append(self.address)
        return disks.name(self._kinds[disk.volume_id], taken, 0)

    def detach(self, volume_id: str, wait: float, let_go: Callable[[], None] | None = None) -> None:
        """Let the disk go, unless this guest holds on to it."""
        del wait
        self._reach()
        self._refuse_arriving()
        # A SCSI disk goes without the guest being asked.
        if (self.holds or self.paused) and not self.gone and self._kinds.get(volume_id) == "/dev/vd":
            raise errors.DeviceHeld(self._server.id)
        if let_go is not None:
            let_go()
        ended = [self.held.pop(volume_id, None), self.mirrors.pop(volume_id, (None, ""))[0]]
        for disk in ended:
            if disk is not None:
                self._close(disk)
        self._kinds.pop(volume_id, None)

    def boots_from(self) -> str | None:
        """What the knob says."""
        self._reach()
        return self.root

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """Note the size that the guest sees."""
        self._reach()
        if volume_id in self.held and not self.gone:
            self.sizes[volume_id] = size_bytes

    def limit(self, limits: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
        """Note the limits at the disks that are held."""
        self._reach()
        self._refuse_arriving()
        if self.refuses_limits:
            raise errors.GuestRefused("the fake keeps its limits")
        for volume_id in self.held.keys() & limits.keys():
            self.held[volume_id] = dataclasses.replace(self.held[volume_id], limits=dict(limits[volume_id]))
        return frozenset(self.held)

    def write(self, volume_id: str, text: str) -> bool:
        """Have the guest write; whether it was told that this is stored. In the other case it waits for that."""
        if self.mirrors.get(volume_id, (None, ""))[1] == EQUAL:
            self.waiting[volume_id] = text
            return False
        self._store(self.held[volume_id], text)
        return True

    def _cluster(self, disk: RbdDisk) -> FakeCluster | None:
        found = self._hypervisor.clusters.get(disk.pool)
        return None if found is None else found.within(disk.namespace)

    def _connect(self, disk: RbdDisk) -> None:
        cluster = self._cluster(disk)
        if cluster is not None and not cluster.opens(disk.user, disk.key, disk.image, write=not disk.read_only):
            raise errors.GuestRefused(f"error connecting as {disk.user}: Permission denied")

    def _store(self, disk: RbdDisk, text: str) -> None:
        cluster = self._cluster(disk)
        if cluster is not None and self.address in cluster.fences:
            raise OSError(errno.ESHUTDOWN, "this client is fenced")
        if cluster is not None:
            cluster.data[cluster.stored[disk.image][0]] = text

    def mirrored(self, target: RbdDisk) -> Mirror:
        """How far it is."""
        self._reach()
        held = self.held.get(target.volume_id)
        if held is None:
            return Mirror(ABSENT)
        if disks.base_node(held) == disks.base_node(target):
            return Mirror(MOVED)
        phase = self.mirrors.get(target.volume_id, (target, NONE))[1]
        return Mirror(phase, int(phase == EQUAL) * 100, 100, self.breaks)

    def mirror(self, target: RbdDisk, speed: int, arrived: Callable[[], None]) -> Mirror:
        """Copy as often as the knob says, then be equal, and go on with the other image."""
        del speed
        found = self.mirrored(target)
        if found.phase == ABSENT:
            raise errors.GuestRefused("the server does not have the disk")
        if found.phase == NONE:
            self._hypervisor.life()
            self._begin(target)
            self._hypervisor.life()
        if self.mirrors.get(target.volume_id, (target, NONE))[1] == COPYING:
            self._go_on(target)
        if self.mirrored(target).phase == EQUAL:
            arrived()
            self._change_over(target)
        found = self.mirrored(target)
        if found.phase == FAILED:
            raise errors.GuestRefused(found.reason)
        return found

    def _begin(self, target: RbdDisk) -> None:
        cluster, source = self._cluster(target), self._cluster(self.held[target.volume_id])
        if target.image in self.missing_images or (cluster is not None and target.image not in cluster.stored):
            raise errors.GuestRefused(f"error reading header from {target.image}: No such file or directory")
        self._connect(target)
        if cluster is not None and source is not None:
            cluster.watchers.setdefault(target.image, []).append(self._server.id)
            if cluster.stored[target.image][1] != source.stored[target.image][1]:
                self.breaks = "Source and target image have different sizes"
        self.mirrors[target.volume_id] = target, COPYING

    def _go_on(self, target: RbdDisk) -> None:
        if self.copying:
            self.copying -= 1
            return
        self._hypervisor.life()
        if not self.breaks:
            source = self._cluster(self.held[target.volume_id])
            if source is not None:
                self._store(target, source.data.get(source.stored[target.image][0], ""))
        self.mirrors[target.volume_id] = target, FAILED if self.breaks else EQUAL
        self._hypervisor.life()

    def pivot(self, target: RbdDisk) -> None:
        """Hold the other image, and write there what waited."""
        found = self.mirrored(target)
        if found.phase == EQUAL:
            self._change_over(target)
        elif found.phase not in (ABSENT, MOVED):
            raise errors.GuestRefused(found.reason or "the disk still uses the image that it had")

    def _change_over(self, target: RbdDisk) -> None:
        self._hypervisor.life()
        held = self.held[target.volume_id]
        self.held[target.volume_id] = dataclasses.replace(target, limits=held.limits)
        del self.mirrors[target.volume_id]
        self._close(held)
        self._wake(target.volume_id)
        self._hypervisor.life()

    def unmirror(self, target: RbdDisk) -> None:
        """Hold what was held."""
        if self.mirrored(target).phase == MOVED:
            raise errors.GuestRefused("the disk uses the other image already")
        self._hypervisor.life()
        if self.mirrors.pop(target.volume_id, None) is not None:
            self._close(target)
        self._wake(target.volume_id)
        self._hypervisor.life()

    def _wake(self, volume_id: str) -> None:
        if volume_id in self.waiting:
            self.write(volume_id, self.waiting.pop(volume_id))

    def _close(self, disk: RbdDisk) -> None:
        cluster = self._cluster(disk)
        for client in (self._server.id, self.address):
            if cluster is not None and client in cluster.watchers.get(disk.image, ()):
                cluster.watchers[disk.image].remove(client)

    def move(self, host: str) -> None:
        """Be on another host."""
        self._server = dataclasses.replace(self._server, host=host)

    def restart(self) -> None:
        """End the process, as a crash does, and start it anew: it holds nothing then."""
        for disk in [*self.held.values(), *(target for target, _ in self.mirrors.values())]:
            self._close(disk)
        for held in (self.held, self._kinds, self.mirrors, self.waiting):
            held.clear()
        self.gone = False

    def is_frozen(self) -> bool | None:
        """What the agent says."""
        self._reach()
        return self.frozen if self.agent else None

    def freeze(self, seconds: float) -> int:
        """Freeze one file system."""
        del seconds
        self._talk()
        if self.frozen:
            raise errors.GuestRefused("Command guest-fsfreeze-freeze has been disabled")
        self.frozen = True
        self.freezes += 1
        return 1

    def thaw(self) -> None:
        """Thaw it."""
        self._reach()
        if self.agent is not None:
            self._talk()
            self.frozen = False

    def _talk(self) -> None:
        self._reach()
        if self.agent is None:
            raise errors.GuestUnreachable(self._server.id, "there is no channel to an agent")
        if not self.agent:
            raise errors.GuestTimeout(self._server.id, "its agent has no answer to guest-sync-delimited")

    def disks(self) -> frozenset[str]:
        """What is held."""
        self._reach()
        return frozenset(self.held)

    def places(self) -> Mapping[str, Any]:
        """A port each, as this guest counts them."""
        self._reach()
        return {one: disks.Place("virtio-blk-pci", f"port{n}", "0x0", "/dev/vd") for n, one in enumerate(self.held, 1)}

    def room(self) -> dict[str, int]:
        """Places that no disk is in."""
        self._reach()
        kinds = list(self._kinds.values())
        return {
            "virtio-blk": self.ports - kinds.count("/dev/vd"),
            "virtio-scsi": 256 - kinds.count("/dev/sd") if self.scsi else 0,
        }

    def _refuse_arriving(self) -> None:
        if self.arriving:
            raise errors.GuestUnreachable(self._server.id, "it is being migrated")

    def _reach(self) -> None:
        if self.gone and not self.defined:
            raise errors.GuestGone(self._server.id)
        if self.silent:
            raise errors.GuestUnreachable(self._server.id, "no greeting in time")


class FakeHypervisor:
    """VMs by id; `add_server` makes one."""

    def __init__(self) -> None:
        self.guests: dict[str, FakeGuest] = {}
        #: pool → cluster, where a guest can read and write
        self.clusters: dict[str, FakeCluster] = {}
        #: called right before and right after what a mirror changes; a process may end there by raising
        self.life: Callable[[], None] = lambda: None
        self.heard: Heard = lambda _server_id, _volume_id: None

    def add_server(
        self,
        name: str,
        project_id: str,
        *,
        status: str = "ACTIVE",
        host: str = "testhost",
        ports: int = 4,
        scsi: bool = False,
        defined: bool = False,
        kept: bool = False,
    ) -> Server:
        """A new VM of a project."""
        created = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(minutes=len(self.guests))
        server = Server(str(uuid.uuid4()), name, status, project_id, "alice", host, created, FLAVOR, {})
        if defined or kept:
            server = dataclasses.replace(server, attachable=RUNNING | {"SHUTOFF"})
        self.guests[server.id] = FakeGuest(server, ports, scsi=scsi, defined=defined, kept=kept, hypervisor=self)
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

    @property
    def hosts(self) -> frozenset[str]:
        """The one that servers are on by default, and those of others."""
        return frozenset({"testhost", *(guest.server.host for guest in self.guests.values())})

    def ended(self, server_id: str, ago: float) -> bool:
        """Whether it is unknown, or gone for good."""
        del ago
        guest = self.guests.get(server_id)
        return guest is None or (guest.gone and not guest.defined and not guest.kept)

    def silent(self) -> Sequence[str]:
        """Those that do not answer."""
        return [f"the monitor of server {key} is silent" for key, guest in self.guests.items() if guest.silent]

    def listen(self, heard: Heard) -> None:
        """Who is told."""
        self.heard = heard

    def close(self) -> None:
        """Nothing to let go."""
