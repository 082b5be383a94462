# SPDX-License-Identifier: Apache-2.0
"""Stages for the guests' contract: the same few moves on a hypervisor in dicts and on QEMU with Ceph behind it."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import tempfile
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from cinderlite.guests import Hypervisor, RbdDisk, monitor
from cinderlite.guests.libvirt import LibvirtHypervisor
from cinderlite.guests.qmp import QmpHypervisor
from cinderlite.keys import luks
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor
from lab.ceph import Ceph
from lab.guest import Guest
from lab.libvirt import Domain, Libvirt

PROJECT = "demo"
MIB = 2**20
PASSPHRASE = "0123456789abcdef" * 4


class Stage(Protocol):
    """What a test may do beside talking to the hypervisor."""

    hypervisor: Hypervisor
    #: Whether a guest that was killed is still known, with its disks.
    keeps: bool

    def linux(self) -> str:
        """Id of a running guest that lets disks go, with four free ports; what a test plugs in it takes out."""

    def bare(self, ports: int, *, scsi: bool = False) -> str:
        """Id of a new guest without an operating system."""

    def disk(self, *, exists: bool = True, read_only: bool = False) -> RbdDisk:
        """A disk of a new image."""

    def locked(self) -> RbdDisk:
        """A disk of a new image that is encrypted."""

    def target(self, disk: RbdDisk, *, mib: int = 16, exists: bool = True) -> RbdDisk:
        """The same disk with an image in another pool, whose plain bytes are none of its own."""

    def write(self, server_id: str, disk: RbdDisk, text: str) -> None:
        """Have a guest write to the start of a disk, and wait until that is stored."""

    def begin_write(self, server_id: str, disk: RbdDisk, text: str) -> Callable[[], bool]:
        """Have a guest write, and do not wait; what is answered tells whether the guest knows that it is stored."""

    def content(self, disk: RbdDisk) -> object:
        """What an image holds in Ceph, to be compared."""

    def holdings(self, server_id: str) -> object:
        """Everything in a guest that attaching could leave behind, to be compared."""

    def pause(self, server_id: str) -> None: ...

    def resume(self, server_id: str) -> None: ...

    def kill(self, server_id: str) -> None: ...


class FakeStage:
    """On dicts."""

    keeps = False

    def __init__(self) -> None:
        self.fake = FakeHypervisor()
        self.hypervisor: Hypervisor = self.fake
        self._linux = self.fake.add_server("linux", PROJECT).id
        self.pools = {name: FakeCluster(pool=name) for name in ("volumes", "second")}
        self.fake.clusters = self.pools

    def linux(self) -> str:
        return self._linux

    def bare(self, ports: int, *, scsi: bool = False) -> str:
        made = self.fake.add_server("bare", PROJECT, ports=ports, scsi=scsi).id
        self.fake.guests[made].holds = True
        return made

    def disk(self, *, exists: bool = True, read_only: bool = False) -> RbdDisk:
        volume = str(uuid.uuid4())
        if not exists:
            for guest in self.fake.guests.values():
                guest.missing_images.add(f"volume-{volume}")
        disk = RbdDisk(volume, "volumes", f"volume-{volume}", [("127.0.0.1", 3300)], "user", "a2V5", read_only)
        if exists:
            self.pools["volumes"].create(disk.image, 16 * MIB)
        return disk

    def locked(self) -> RbdDisk:
        return dataclasses.replace(self.disk(), passphrase=PASSPHRASE)

    def target(self, disk: RbdDisk, *, mib: int = 16, exists: bool = True) -> RbdDisk:
        other = "volumes" if disk.pool == "second" else "second"
        if exists:
            self.pools[other].create(disk.image, mib * MIB)
        return dataclasses.replace(disk, pool=other)

    def write(self, server_id: str, disk: RbdDisk, text: str) -> None:
        assert self.fake.guests[server_id].write(disk.volume_id, text)

    def begin_write(self, server_id: str, disk: RbdDisk, text: str) -> Callable[[], bool]:
        guest = self.fake.guests[server_id]
        guest.write(disk.volume_id, text)
        return lambda: disk.volume_id not in guest.waiting

    def content(self, disk: RbdDisk) -> object:
        cluster = self.pools[disk.pool]
        return cluster.data.get(cluster.stored[disk.image][0], "")

    def holdings(self, server_id: str) -> object:
        guest = self.fake.guests[server_id]
        return dict(guest.held), dict(guest.mirrors)

    def pause(self, server_id: str) -> None:
        self.fake.guests[server_id].paused = True

    def resume(self, server_id: str) -> None:
        self.fake.guests[server_id].paused = False

    def kill(self, server_id: str) -> None:
        self.fake.guests[server_id].gone = True


class RealStage:
    """On QEMU and Ceph; time-outs are short, but longer than a busy machine's QEMU takes for an answer."""

    keeps = False
    connect_timeout = 3.0
    command_timeout = 15.0
    rest = 0.5
    mount_timeout = 4

    def __init__(self, directory: pathlib.Path, ceph: Ceph) -> None:
        self.directory = directory
        self.sockets = directory / "contract"
        self.ceph = ceph
        self.key = ceph.command("auth", "print-key", f"client.{ceph.user}").strip()
        port = ceph.conf.read_text(encoding="ascii").partition("v2:127.0.0.1:")[2].partition(",")[0]
        self._monitors = [("127.0.0.1", int(port))]
        self._devices: dict[str, str] = {}
        self.guests: dict[str, Guest] = {}
        self.hypervisor: Hypervisor = self.connect()
        self._linux = self.add("linux", guest_os=True)

    def connect(self) -> Hypervisor:
        """A further hypervisor over the same sockets, as another process would have."""
        return QmpHypervisor(
            self.sockets,
            connect_timeout=self.connect_timeout,
            command_timeout=self.command_timeout,
            host="testhost",
            locks=self.directory,
            refresh=0.05,
            rest=self.rest,
            mount_timeout=self.mount_timeout,
        )

    def add(self, name: str, **options: Any) -> Guest:
        made = Guest(self.directory, name, project=PROJECT, sockets=self.sockets, **options)
        made.start()
        self.guests[made.uuid] = made
        return made

    def is_at_work(self, server_id: str) -> bool:
        """Whether an operation on a server is under way."""
        return monitor.Turn(self.directory / f"{self.guests[server_id].socket.stem}.lock").taken

    def linux(self) -> str:
        return self._linux.uuid

    def bare(self, ports: int, *, scsi: bool = False) -> str:
        return self.add(f"bare{len(self.guests)}", ports=ports, scsi=scsi, guest_os=False, memory=64).uuid

    def disk(self, *, exists: bool = True, read_only: bool = False) -> RbdDisk:
        volume = str(uuid.uuid4())
        if exists:
            self.ceph.rbd("create", "--size", "16", f"{self.ceph.pool}/volume-{volume}")
        return RbdDisk(volume, self.ceph.pool, f"volume-{volume}", self._monitors, self.ceph.user, self.key, read_only)

    def locked(self) -> RbdDisk:
        volume = str(uuid.uuid4())
        self._import(f"{self.ceph.pool}/volume-{volume}", luks.header(PASSPHRASE.encode(), 64), 16)
        disk = RbdDisk(volume, self.ceph.pool, f"volume-{volume}", self._monitors, self.ceph.user, self.key)
        return dataclasses.replace(disk, passphrase=PASSPHRASE)

    def target(self, disk: RbdDisk, *, mib: int = 16, exists: bool = True) -> RbdDisk:
        self.ceph.add_pool("second")
        other = self.ceph.pool if disk.pool == "second" else "second"
        if exists:
            header = b"" if disk.passphrase is None else self._start(disk)[: luks.DATA_OFFSET]
            self._import(f"{other}/{disk.image}", header, mib, noise=b"left" * (MIB // 4))
        return dataclasses.replace(disk, pool=other)

    def _import(self, image: str, header: bytes, mib: int, noise: bytes = b"") -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(header + noise)
            file.truncate((luks.DATA_OFFSET if header else 0) + mib * MIB)
            file.flush()
            self.ceph.rbd("import", "--no-progress", file.name, image)

    def _start(self, disk: RbdDisk) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "image"
            self.ceph.rbd("export", "--no-progress", f"{disk.pool}/{disk.image}", str(path))
            return path.read_bytes()

    def write(self, server_id: str, disk: RbdDisk, text: str) -> None:
        guest = self.guests[server_id]
        self._devices[disk.volume_id] = guest.wait_disk(disk.volume_id)
        guest.write(self._devices[disk.volume_id], text, 1)

    def begin_write(self, server_id: str, disk: RbdDisk, text: str) -> Callable[[], bool]:
        guest, mark = self.guests[server_id], f"/{text}"
        # To look which disk it is would be to read from it, which waits as well.
        dd = f"dd of={self._devices[disk.volume_id]} bs=4096 conv=sync,fsync"
        guest.run(f"rm -f {mark}; (echo {text} | {dd}; touch {mark}) > /dev/null 2>&1 &")
        return lambda: "yes" in guest.run(f"[ -e {mark} ] && echo yes || echo no")

    def content(self, disk: RbdDisk) -> object:
        return hashlib.sha256(self._start(disk)).hexdigest()

    def holdings(self, server_id: str) -> object:
        return self.guests[server_id].holdings()

    def pause(self, server_id: str) -> None:
        self.guests[server_id].pause()

    def resume(self, server_id: str) -> None:
        self.guests[server_id].resume()

    def kill(self, server_id: str) -> None:
        self.guests[server_id].kill()

    def tidy(self) -> None:
        """End the guests that a test made; the one of all tests starts anew if a test that failed left a disk in it."""
        for server_id in [one for one in self.guests if one != self._linux.uuid]:
            self.guests.pop(server_id).forget()
        self._linux.renew()

    def end(self) -> None:
        self.hypervisor.close()
        for guest in self.guests.values():
            guest.forget()


class LibvirtStage(RealStage):
    """On a libvirt daemon's domains and Ceph."""

    keeps = True

    def __init__(self, directory: pathlib.Path, ceph: Ceph, libvirt: Libvirt, domain: Domain) -> None:
        self.libvirt = libvirt
        self._shared = domain
        super().__init__(directory, ceph)

    def connect(self) -> Hypervisor:
        return LibvirtHypervisor(
            self.libvirt.uri,
            host="testhost",
            connect_timeout=self.connect_timeout,
            call_timeout=self.command_timeout,
            threads=4,
            refresh=0.05,
        )

    def add(self, name: str, **options: Any) -> Guest:
        made = self._shared if name == "linux" else Domain(self.libvirt, name, project=PROJECT, **options)
        if not made.running():
            made.start()
        self.guests[made.uuid] = made
        return made

    def end(self) -> None:
        self.hypervisor.close()

    def secrets(self) -> set[str]:
        """What libvirt keeps to open images with."""
        return self.libvirt.secrets()
