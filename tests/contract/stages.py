# SPDX-License-Identifier: Apache-2.0
"""Stages for the guests' contract: the same few moves on a hypervisor in dicts and on QEMU with Ceph behind it."""

from __future__ import annotations

import pathlib
import uuid
from typing import Any, Protocol

from cinderlite.guests import Hypervisor, RbdDisk
from cinderlite.guests.qmp import QmpHypervisor
from fakes_hypervisor import FakeHypervisor
from lab.ceph import Ceph
from lab.guest import Guest

PROJECT = "demo"


class Stage(Protocol):
    """What a test may do beside talking to the hypervisor."""

    hypervisor: Hypervisor

    def linux(self) -> str:
        """Id of a running guest that lets disks go, with four free ports; what a test plugs in it takes out."""

    def bare(self, ports: int, *, scsi: bool = False) -> str:
        """Id of a new guest without an operating system."""

    def disk(self, *, exists: bool = True, read_only: bool = False) -> RbdDisk:
        """A disk of a new image."""

    def holdings(self, server_id: str) -> object:
        """Everything in a guest that attaching could leave behind, to be compared."""

    def pause(self, server_id: str) -> None: ...

    def resume(self, server_id: str) -> None: ...

    def kill(self, server_id: str) -> None: ...


class FakeStage:
    """On dicts."""

    def __init__(self) -> None:
        self.fake = FakeHypervisor()
        self.hypervisor: Hypervisor = self.fake
        self._linux = self.fake.add_server("linux", PROJECT).id

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
        return RbdDisk(volume, "volumes", f"volume-{volume}", [("127.0.0.1", 3300)], "user", "a2V5", read_only)

    def holdings(self, server_id: str) -> object:
        return dict(self.fake.guests[server_id].held)

    def pause(self, server_id: str) -> None:
        self.fake.guests[server_id].paused = True

    def resume(self, server_id: str) -> None:
        self.fake.guests[server_id].paused = False

    def kill(self, server_id: str) -> None:
        self.fake.guests[server_id].gone = True


class RealStage:
    """On QEMU and Ceph; time-outs are short."""

    connect_timeout = 1.0
    command_timeout = 2.0

    def __init__(self, directory: pathlib.Path, ceph: Ceph) -> None:
        self.directory = directory
        self.sockets = directory / "contract"
        self.ceph = ceph
        self.key = ceph.command("auth", "print-key", f"client.{ceph.user}").strip()
        port = ceph.conf.read_text(encoding="ascii").partition("v2:127.0.0.1:")[2].partition(",")[0]
        self._monitors = [("127.0.0.1", int(port))]
        self._spare: list[str] = []
        self.guests: dict[str, Guest] = {}
        self.qmp = self.connect()
        self.hypervisor: Hypervisor = self.qmp
        self._linux = self.add("linux", guest_os=True)

    def connect(self) -> QmpHypervisor:
        """A further hypervisor over the same sockets, as another process would have."""
        return QmpHypervisor(
            self.sockets,
            connect_timeout=self.connect_timeout,
            command_timeout=self.command_timeout,
            host="testhost",
            locks=self.directory,
            refresh=0.05,
        )

    def add(self, name: str, **options: Any) -> Guest:
        made = Guest(self.directory, name, project=PROJECT, sockets=self.sockets, **options)
        made.start()
        self.guests[made.uuid] = made
        return made

    def linux(self) -> str:
        return self._linux.uuid

    def bare(self, ports: int, *, scsi: bool = False) -> str:
        return self.add(f"bare{len(self.guests)}", ports=ports, scsi=scsi, guest_os=False, memory=64).uuid

    def disk(self, *, exists: bool = True, read_only: bool = False) -> RbdDisk:
        volume = str(uuid.uuid4())
        if exists:
            self.ceph.rbd("create", "--size", "16", f"{self.ceph.pool}/volume-{volume}")
        return RbdDisk(volume, self.ceph.pool, f"volume-{volume}", self._monitors, self.ceph.user, self.key, read_only)

    def holdings(self, server_id: str) -> object:
        return self.guests[server_id].holdings()

    def pause(self, server_id: str) -> None:
        self.guests[server_id].pause()

    def resume(self, server_id: str) -> None:
        self.guests[server_id].resume()

    def kill(self, server_id: str) -> None:
        self.guests[server_id].kill()

    def tidy(self) -> None:
        """End the guests that a test made."""
        for server_id in [one for one in self.guests if one != self._linux.uuid]:
            self.guests.pop(server_id).forget()

    def end(self) -> None:
        self.qmp.close()
        for guest in self.guests.values():
            guest.forget()
