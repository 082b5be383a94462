# SPDX-License-Identifier: Apache-2.0
"""Running VMs and their disks: the one small interface that `core` uses, whatever the hypervisor.

QEMU is the truth about which disk is in which guest. Nothing here stores anything: every answer was just read from
the hypervisor. What a newcomer gets wrong first: an unplug is a *request* that the guest grants when it likes, and an
event that fires while nobody listens is lost, so `detach` may end with `DeviceHeld` and is simply called again later.
Every method is idempotent: attaching what is attached and detaching what is gone both succeed.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Flavor:
    """Size of a VM. `ram` in MiB, `disk` in GiB."""

    id: str
    name: str
    vcpus: int
    ram: int
    disk: int


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A VM as its tenant sees it. `status` is Nova's word: ACTIVE, PAUSED, SUSPENDED, SHUTOFF or ERROR."""

    id: str
    name: str
    status: str
    project_id: str
    user_id: str
    host: str
    created: datetime.datetime
    flavor: Flavor
    metadata: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class RbdDisk:
    """An RBD image to be plugged into a guest; the guest sees `volume_id` as the disk's serial number.

    `monitors` are (host, port) pairs without brackets, `key` the base64 cephx key of `user` (without "client.").
    """

    volume_id: str
    pool: str
    image: str
    monitors: Sequence[tuple[str, int]]
    user: str | None
    key: str | None = dataclasses.field(repr=False)
    read_only: bool = False
    #: Whether other guests may hold it at the same time.
    shared: bool = False
    #: What opens it, if it is encrypted (LUKS1); the guest sees plain data.
    passphrase: str | None = dataclasses.field(default=None, repr=False)


class Guest(Protocol):
    """One running VM."""

    @property
    def server(self) -> Server: ...

    def attach(self, disk: RbdDisk, taken: Collection[str]) -> str:
        """Plug `disk` in and return its device name in the guest as far as it can be told, such as "/dev/vdb".

        `taken` are the names of the server's other volumes, which the new one does not get.

        Rolls every step back on failure. Raises NoFreePlace, GuestRefused, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def detach(self, volume_id: str, wait: float) -> None:
        """Unplug the disk and wait at most `wait` seconds for the guest to let it go; done too if it is not there.

        Raises DeviceHeld when the guest still holds it, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """Show the guest that the disk has grown to that size, which its image has already; done if it is not there.

        Raises GuestRefused, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def disks(self) -> frozenset[str]:
        """Ids of our volumes in this guest now.

        Raises GuestGone, GuestUnreachable, GuestTimeout.
        """


class Hypervisor(Protocol):
    """All VMs that this service can reach."""

    def servers(self) -> Sequence[Server]:
        """Every VM there is, running or known to be shut off; one that is stuck does not hold the others up."""

    def find(self, server_id: str, *, fresh: bool = True) -> Guest:
        """The VM of that UUID, running or not; its status is asked unless not `fresh`. Raises ServerNotFound."""

    def close(self) -> None:
        """Let go of every thread and connection."""
