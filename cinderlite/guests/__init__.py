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
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Flavor:
    """Size of a VM. `ram` in MiB, `disk` in GiB."""

    id: str
    name: str
    vcpus: int
    ram: int
    disk: int


#: Statuses of a server with a QEMU to plug a disk into.
RUNNING = frozenset({"ACTIVE", "PAUSED"})
#: Status of a QEMU that waits for its guest to arrive from another one.
ARRIVING = "MIGRATING"


def rank(status: str) -> int:
    """Of two that are one server, as while it migrates or behind a former start's socket, the higher is meant."""
    return {"SHUTOFF": 0, ARRIVING: 1, "ERROR": 2}.get(status, 3)


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A VM as its tenant sees it. `status` is Nova's word: ACTIVE, PAUSED, SUSPENDED, SHUTOFF, MIGRATING or ERROR."""

    id: str
    name: str
    status: str
    project_id: str
    user_id: str
    host: str
    created: datetime.datetime
    flavor: Flavor
    metadata: Mapping[str, str]
    #: Statuses in which its hypervisor can plug a disk into it.
    attachable: frozenset[str] = RUNNING


#: Seconds for which a server is kept for a disk that is being made, as Ceph or a key store may take long.
DISK_WITHIN = 1.0
#: What a disk can be plugged into.
BUSES = "virtio-blk", "virtio-scsi"


@dataclasses.dataclass(frozen=True, slots=True)
class Tuning:
    """How a disk is plugged in where there is a choice; it has no say in what the disk holds."""

    #: One of BUSES; "" for the best that has room.
    bus: str = ""
    #: Whether a thread of its own serves it, on virtio-blk.
    iothread: bool = False
    #: How many queues it has, on virtio-blk; 0 for as many as the guest has processors.
    queues: int = 0
    #: "none", "writeback" (librbd's cache, which a flush of the guest empties) or "writethrough".
    cache: str = "none"
    #: What becomes of the guest's trims: "unmap" or "ignore".
    discard: str = "unmap"
    #: What becomes of zeros that the guest writes: "off", "on" (they are cheap to write) or "unmap" (and take no room).
    detect_zeroes: str = "off"


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
    #: By Cinder's names, such as total_bytes_sec_max, and such that they can be kept together.
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    #: The pool's namespace that has the image; "" for the default one.
    namespace: str = ""
    #: UUID of the cluster that has the pool.
    cluster: str = ""
    tuning: Tuning = Tuning()
    #: The file that QEMU reads Ceph's settings from; None for what it would read by itself.
    conf: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Mirror:
    """How far a disk is on its way to another image; `done` of `total` bytes."""

    phase: str
    done: int = 0
    total: int = 0
    #: Why it failed.
    reason: str = ""


#: Phases of a mirror. ABSENT: the guest does not have the disk at all.
ABSENT, NONE, FAILED, COPYING = "absent", "none", "failed", "copying"
#: Both images hold the same, and the guest's writes wait; or it uses the other one.
EQUAL, MOVED = "equal", "moved"


#: Takes the id of a server, and that of a volume if this is about one of its disks.
Heard = Callable[[str, str | None], None]


class Guest(Protocol):
    """One VM. What needs a process raises GuestGone of one without; libvirt's keep their disks while they are off."""

    @property
    def server(self) -> Server: ...

    def attach(self, disk: RbdDisk | Future[RbdDisk], taken: Collection[str]) -> str:
        """Plug `disk` in and return its device name in the guest as far as it can be told, such as "/dev/vdb".

        One that is still being made ready is waited for when nothing else is left to be asked first. What that raises
        is raised, with nothing changed; if the guest refuses earlier, it is not waited for.

        `taken` are the names of the server's other volumes, which the new one does not get. One that is off, and can
        be attached to, has the disk when it is started.

        Rolls every step back on failure. Raises NoFreePlace, GuestRefused, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def detach(self, volume_id: str, wait: float, let_go: Callable[[], None] | None = None) -> None:
        """Unplug the disk and wait at most `wait` seconds for the guest to let it go; done too if it is not there.

        `let_go` is called as soon as the guest has no such disk any more, nor will have one when it is started or
        resumed, before what is left of it is tidied up. It may not wait for anything.

        Raises DeviceHeld when the guest still holds it, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def boots_from(self) -> str | None:
        """Id of our volume that it was started to boot from; None if that is none of ours, or cannot be told.

        Raises GuestGone, GuestUnreachable, GuestTimeout.
        """

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """Show the guest that the disk has grown to that size, which its image has already; done if it is not there.

        Raises GuestRefused, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def limit(self, limits: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
        """Put the limits of disks right that are not what they are to be, by volume id; answers as `disks` does.

        What is not there is left out. Raises GuestRefused, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def mirrored(self, target: RbdDisk) -> Mirror:
        """How far the disk is on its way to the image `target`, without changing anything.

        Raises GuestGone, GuestUnreachable, GuestTimeout.
        """

    def mirror(self, target: RbdDisk, speed: int, arrived: Callable[[], None]) -> Mirror:
        """Have the disk copied to the image `target`, with what the guest writes meanwhile, and tell how far that is.

        Called again and again. Once both images are equal the guest's writes wait while `arrived` is called, in another
        thread; after that the disk uses `target`. If it raises they wait on, until `mirror`, `pivot` or `unmirror`
        follow. `speed` in bytes a second, 0 for no limit. Raises GuestRefused, GuestGone, GuestUnreachable,
        GuestTimeout.
        """

    def pivot(self, target: RbdDisk) -> None:
        """Go on with the image `target` that has all the disk holds, and let go of the other one; done if it has.

        Done too if the guest does not have the disk. Raises GuestRefused if it still uses the other one and the two are
        not equal, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def unmirror(self, target: RbdDisk) -> None:
        """Go on with the image that the disk had, and let go of `target`; done if there is nothing to end.

        Raises GuestRefused if the guest uses `target` already, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def is_frozen(self) -> bool | None:
        """Whether its file systems are frozen, by the word of its agent; None if it has none that answers.

        Raises GuestGone.
        """

    def freeze(self, seconds: float) -> int:
        """Have its agent freeze the file systems, which may take so long; how many that were.

        Raises GuestRefused, GuestUnreachable, and GuestTimeout: then they may be frozen, or will be.
        """

    def thaw(self) -> None:
        """Have its agent thaw the file systems, those too that it was told to freeze and did not yet.

        Done if nothing is frozen. Raises GuestRefused, GuestGone, GuestUnreachable, GuestTimeout.
        """

    def disks(self) -> frozenset[str]:
        """Ids of our volumes in this guest now.

        Raises GuestGone, GuestUnreachable, GuestTimeout.
        """

    def places(self) -> Mapping[str, Any]:
        """Where our volumes are plugged in, as `disks.Place` has it; nothing where the hypervisor keeps that itself.

        Raises GuestGone, GuestUnreachable, GuestTimeout.
        """

    def room(self) -> Mapping[str, int]:
        """How many more disks can be plugged in now, by bus.

        Raises GuestGone, GuestUnreachable, GuestTimeout.
        """


class Hypervisor(Protocol):
    """All VMs that this service can reach."""

    def servers(self) -> Sequence[Server]:
        """Every VM there is, running or known to be shut off; one that is stuck does not hold the others up."""

    def find(self, server_id: str, *, fresh: bool = True) -> Guest:
        """The VM of that UUID, running or not; its status is asked unless not `fresh`. Raises ServerNotFound."""

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts whose servers these are."""

    def ended(self, server_id: str, ago: float) -> bool:
        """Whether a server that was there `ago` seconds ago certainly is no more, and nobody starts it again.

        Not one that is shut off or restarted, or that cannot be asked now.
        """

    def silent(self) -> Sequence[str]:
        """Who could not be asked when that was last tried, and why, a sentence each; their servers may be missing."""

    def listen(self, heard: Heard) -> None:
        """Have `heard` called with a server that has begun or ended, or has let the disk of a volume go.

        By those who are told; most of what happens is still to be looked for. In any thread, which must not be kept
        waiting.
        """

    def close(self) -> None:
        """Let go of every thread and connection."""
