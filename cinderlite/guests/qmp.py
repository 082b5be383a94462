# SPDX-License-Identifier: Apache-2.0
"""VMs behind a directory of QMP sockets.

`NAME.sock` is a VM's monitor; `NAME.json` beside it says whose it is. The VM's id and name are asked of QEMU itself.
A monitor takes one client at a time and tells events only to who is there, so a connection is made for one operation,
kept for as short as can be, and thrown away after a time-out: the command may still happen, and only looking tells.

All traffic runs on one asyncio loop in one thread of the process, begun at the first use (so after a fork).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import json
import logging
import pathlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError

from cinderlite import errors
from cinderlite.guests import Flavor, RbdDisk, Server, disks
from cinderlite.guests.disks import Place

# At DEBUG the library logs every message, the cephx key in it; and its errors are ours to report.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

#: Nova's words for QEMU's run states; one that is not here is ERROR.
STATUS = {
    "running": "ACTIVE", "paused": "PAUSED", "prelaunch": "PAUSED", "debug": "PAUSED", "inmigrate": "ACTIVE",
    "suspended": "SUSPENDED", "shutdown": "SHUTOFF", "postmigrate": "SHUTOFF", "finish-migrate": "ACTIVE",
    "restore-vm": "PAUSED", "save-vm": "PAUSED", "watchdog": "PAUSED",
}  # fmt: skip
#: Most bytes of an owner file that are read.
OWNER_MOST = 65536
#: Seconds between two looks whether a device is gone whose event may have been lost.
LOOK_AGAIN = 0.5
#: Seconds that one operation may take in all, whatever its parts add up to.
OPERATION_MOST = 120.0

#: The size of a VM whose owner file names none.
UNKNOWN = Flavor("0", "unknown", 0, 0, 0)

T = TypeVar("T")
Observe = Callable[[str, float, bool], None]


@dataclasses.dataclass(slots=True)
class _Machine:
    """What is known of the VM behind one socket."""

    path: pathlib.Path
    stamp: tuple[int, int]
    lock: asyncio.Lock
    id: str = ""
    name: str = ""
    status: str = "ERROR"
    #: QEMU's name of the machine type, which does not change while it runs.
    type: str = ""
    #: When it was last asked how it is, by the monotonic clock.
    asked: float = 0.0


class QmpHypervisor:
    """Every VM whose monitor is in `directory`. Time-outs in seconds.

    `refresh` is how long a VM's status is believed; what it holds is always asked.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        connect_timeout: float,
        command_timeout: float,
        host: str,
        refresh: float = 1.0,
        observe: Observe | None = None,
    ) -> None:
        self.directory = directory
        self.host = host
        self.connect_timeout = connect_timeout
        self.command_timeout = command_timeout
        self._refresh = refresh
        self._observe = observe or (lambda _verb, _seconds, _ok: None)
        self._machines: dict[pathlib.Path, _Machine] = {}
        self._looked = 0.0
        self._starting = threading.Lock()
        self._scanning: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # -- the interface

    def servers(self) -> Sequence[Server]:
        """Every VM there is, running or known to be shut off; one that is stuck does not hold the others up."""
        self._run("servers", self._scan())
        return [server for machine in list(self._machines.values()) if (server := self._server(machine))]

    def find(self, server_id: str) -> QmpGuest:
        """The VM of that UUID, running or not. Raises ServerNotFound."""
        machine = self._known(server_id)
        if machine is None:
            self._run("find", self._scan(force=True))
            machine = self._known(server_id)
        if machine is not None:
            if time.monotonic() - machine.asked >= self._refresh:
                self._run("find", self._ask(machine))
            if self._server(machine) is not None and machine.id == server_id:
                return QmpGuest(self, machine)
        raise errors.ServerNotFound(server_id)

    def close(self) -> None:
        """Let go of the thread and its connections."""
        with self._starting:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(self.command_timeout)
            if not thread.is_alive():
                loop.close()

    # -- the loop

    def _run(self, verb: str, work: Coroutine[Any, Any, T]) -> T:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._scanning = asyncio.Lock()
                self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
                self._thread.start()
            loop = self._loop
        began = time.monotonic()
        ok = False
        try:
            result = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, OPERATION_MOST), loop).result()
            ok = True
        except TimeoutError as error:
            raise errors.GuestTimeout("", f"{verb} took longer than {OPERATION_MOST:g} s") from error
        finally:
            self._observe(verb, time.monotonic() - began, ok)
        return result

    # -- which VMs there are

    def _known(self, server_id: str) -> _Machine | None:
        return next((machine for machine in list(self._machines.values()) if machine.id == server_id), None)

    async def _scan(self, *, force: bool = False) -> None:
        """Bring what is known up to date: all monitors are asked at the same time."""
        if self._scanning is None:
            raise errors.GuestUnreachable("", "the service is stopping")
        async with self._scanning:
            if not force and time.monotonic() - self._looked < self._refresh:
                return
            found = dict(_sockets(self.directory))
            for path in self._machines.keys() - found.keys():
                del self._machines[path]
            for path, stamp in found.items():
                known = self._machines.get(path)
                if known is None or known.stamp != stamp:
                    self._machines[path] = _Machine(path, stamp, known.lock if known else asyncio.Lock())
            await asyncio.gather(*(self._ask(machine) for machine in self._machines.values()))
            self._looked = time.monotonic()

    async def _ask(self, machine: _Machine) -> None:
        """Ask one VM who and how it is; what cannot be asked now keeps what was known of it."""
        if machine.lock.locked() and machine.id:
            return  # Somebody is working on it: it lives.
        machine.asked = time.monotonic()
        try:
            async with self._session(machine) as qmp:
                if not machine.id:
                    machine.id = str((await qmp.do("query-uuid"))["UUID"])
                    machine.name = str((await qmp.do("query-name")).get("name") or machine.path.stem)
                machine.status = STATUS.get((await qmp.do("query-status"))["status"], "ERROR")
        except errors.GuestGone:
            machine.status = "SHUTOFF"
            if not machine.id:
                machine.id, machine.name = _owner(machine.path).id, machine.path.stem
        except errors.Unavailable:
            machine.status = "ERROR"
            if not machine.id:
                machine.id, machine.name = _owner(machine.path).id, machine.path.stem

    def _server(self, machine: _Machine) -> Server | None:
        if not machine.id:
            return None
        owner = _owner(machine.path)
        return Server(
            machine.id, machine.name, machine.status, owner.project_id, owner.user_id, self.host, owner.created,
            owner.flavor, owner.metadata,
        )  # fmt: skip

    # -- talking to one

    @contextlib.asynccontextmanager
    async def _session(self, machine: _Machine) -> AsyncIterator[_Session]:
        """The one connection to a VM's monitor. Raises GuestGone, GuestUnreachable."""
        try:
            await asyncio.wait_for(machine.lock.acquire(), self.command_timeout)
        except TimeoutError as error:
            raise errors.GuestUnreachable(machine.id, "another operation on it takes long") from error
        client = QMPClient("cinderlite")
        try:
            try:
                await asyncio.wait_for(client.connect(str(machine.path)), self.connect_timeout)
            except TimeoutError as error:
                raise errors.GuestUnreachable(machine.id, "no greeting in time") from error
            except ConnectError as error:
                if isinstance(error.exc, ConnectionRefusedError | FileNotFoundError | ConnectionResetError | EOFError):
                    raise errors.GuestGone(machine.id) from error
                raise errors.GuestUnreachable(machine.id, str(error)) from error
            session = _Session(client, machine, self.command_timeout)
            # Another VM, perhaps another tenant's, may have been started behind the same path meanwhile.
            if machine.id and str((await session.do("query-uuid"))["UUID"]) != machine.id:
                raise errors.GuestGone(machine.id)
            yield session
        finally:
            # A client that gave up on a command would wait for it here; the connection is of no use any more then.
            with contextlib.suppress(QMPError, TimeoutError, OSError, EOFError):
                await asyncio.wait_for(client.disconnect(), 1)
            machine.lock.release()


class _Session:
    """An open connection to one monitor."""

    def __init__(self, client: QMPClient, machine: _Machine, timeout: float) -> None:
        self.client = client
        self.machine = machine
        self.timeout = timeout

    async def do(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """One command. Raises GuestRefused with QEMU's words, GuestTimeout, GuestGone."""
        try:
            return await asyncio.wait_for(self.client.execute(command, dict(arguments or {})), self.timeout)
        except TimeoutError as error:
            raise errors.GuestTimeout(self.machine.id, f"{command} is without an answer") from error
        except ExecuteError as error:
            # Not chained: the library's error carries what was sent, which may be a key.
            raise _Refused(error.error_class, str(error)) from None
        except (QMPError, EOFError, OSError):
            raise await self._lost(command) from None

    async def _lost(self, command: str) -> errors.CinderliteError:
        """The connection broke: because the VM ended, or something else."""
        try:
            _, writer = await asyncio.wait_for(asyncio.open_unix_connection(str(self.machine.path)), 1)
        except (ConnectionRefusedError, FileNotFoundError):
            return errors.GuestGone(self.machine.id)
        except (TimeoutError, OSError):
            return errors.GuestTimeout(self.machine.id, f"the connection broke in {command}")
        writer.close()
        return errors.GuestTimeout(self.machine.id, f"the connection broke in {command}")

    async def peripherals(self) -> Sequence[Mapping[str, Any]]:
        """Devices with an id; does not touch Ceph, so it answers even when an OSD does not."""
        return await self.do("qom-list", {"path": "/machine/peripheral"})  # type: ignore[no-any-return]

    async def try_(self, command: str, arguments: Mapping[str, Any]) -> None:
        """A command that may find nothing to do."""
        try:
            await self.do(command, arguments)
        except _Refused as error:
            if not error.says_missing:
                raise


class _Refused(errors.GuestRefused):
    """QEMU's answer that it will not."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text

    @property
    def says_missing(self) -> bool:
        """Whether the thing is not there (any more)."""
        words = ("Failed to find node", "Cannot find", "not found", "does not exist")
        return self.kind == "DeviceNotFound" or any(word in self.text for word in words)

    @property
    def says_duplicate(self) -> bool:
        """Whether a thing of that name is there already."""
        return "uplicate" in self.text

    @property
    def says_pending(self) -> bool:
        """Whether an unplug is under way already."""
        return "in the process of unplug" in self.text


class QmpGuest:
    """One VM."""

    def __init__(self, hypervisor: QmpHypervisor, machine: _Machine) -> None:
        self._hypervisor = hypervisor
        self._machine = machine

    @property
    def server(self) -> Server:
        """The VM as its tenant sees it, as just asked. Raises ServerNotFound."""
        server = self._hypervisor._server(self._machine)
        if server is None:
            raise errors.ServerNotFound(self._machine.id)
        return server

    def attach(self, disk: RbdDisk, taken: Collection[str]) -> str:
        """See `guests.Guest.attach`."""
        return self._hypervisor._run("attach", self._attach(disk, taken))

    def detach(self, volume_id: str, wait: float) -> None:
        """See `guests.Guest.detach`."""
        self._hypervisor._run("detach", self._detach(volume_id, wait))

    def disks(self) -> frozenset[str]:
        """See `guests.Guest.disks`."""
        return self._hypervisor._run("disks", self._disks())

    async def _disks(self) -> frozenset[str]:
        async with self._hypervisor._session(self._machine) as qmp:
            return disks.volumes(await qmp.peripherals())

    async def _attach(self, disk: RbdDisk, taken: Collection[str]) -> str:
        async with self._hypervisor._session(self._machine) as qmp:
            there = await qmp.peripherals()
            block = await qmp.do("query-blockstats")
            if disk.volume_id in disks.volumes(there):
                kind = await self._kind(qmp, disk.volume_id)
                return disks.name(kind, taken, disks.foreign(kind, block))
            if not self._machine.type:
                self._machine.type = await qmp.do("qom-get", {"path": "/machine", "property": "type"})
            place = disks.place(self._machine.type, await qmp.do("query-pci"), there)
            try:
                await self._plug(qmp, disk, place)
            except _Refused as error:
                if not error.says_duplicate:
                    raise
                # What an interrupted attach left without a device; ours by its name, and of no use to anybody.
                await self._clear(qmp, disk.volume_id)
                await self._plug(qmp, disk, place)
            return disks.name(place.letters, taken, disks.foreign(place.letters, block))

    async def _kind(self, qmp: _Session, volume_id: str) -> str:
        path = f"/machine/peripheral/{disks.device_id(volume_id)}"
        driver = await qmp.do("qom-get", {"path": path, "property": "type"})
        return "/dev/sd" if driver == "scsi-hd" else "/dev/vd"

    async def _plug(self, qmp: _Session, disk: RbdDisk, place: Place) -> None:
        undo: list[tuple[str, Mapping[str, Any]]] = []
        try:
            for command in disks.attach(disk, place):
                await qmp.do(command.name, command.arguments)
                if command.undo is not None:
                    undo.append(command.undo)
        except _Refused:
            for name, arguments in reversed(undo):
                await qmp.try_(name, arguments)
            raise

    async def _detach(self, volume_id: str, wait: float) -> None:
        device = disks.device_id(volume_id)

        def ours(event: Mapping[str, Any]) -> bool:
            # A virtio device ends with two events; the first, of its inner half, names no device.
            data = event.get("data")
            return isinstance(data, dict) and data.get("device") == device

        async with self._hypervisor._session(self._machine) as qmp:
            with qmp.client.listener("DEVICE_DELETED", ours) as deleted:
                if volume_id in disks.volumes(await qmp.peripherals()):
                    try:
                        await qmp.try_("device_del", {"id": device})
                    except _Refused as error:
                        if not error.says_pending:
                            raise
                    if not await self._gone(qmp, deleted, volume_id, wait):
                        raise errors.DeviceHeld(self._machine.id)
            await self._clear(qmp, volume_id)

    async def _gone(self, qmp: _Session, deleted: EventListener, volume_id: str, wait: float) -> bool:
        """Wait for the device to be gone: for the event, and by looking, as an event can be lost."""
        deadline = time.monotonic() + wait
        while True:
            left = deadline - time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(deleted.get(), max(min(left, LOOK_AGAIN), 0.05))
                return True
            if volume_id not in disks.volumes(await qmp.peripherals()):
                return True
            if left <= 0:
                return False

    @staticmethod
    async def _clear(qmp: _Session, volume_id: str) -> None:
        """Remove what is left of a disk without a device."""
        for command in disks.detach(volume_id):
            await qmp.try_(command.name, command.arguments)


@dataclasses.dataclass(frozen=True, slots=True)
class _Owner:
    """What a VM's owner file says; nobody's VM without one."""

    created: datetime.datetime
    id: str = ""
    project_id: str = ""
    user_id: str = ""
    flavor: Flavor = UNKNOWN
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _sockets(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, tuple[int, int]]]:
    """The monitors there are, each with a mark that changes when its VM is started anew."""
    try:
        for path in sorted(directory.glob("*.sock")):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield path, (status.st_ino, status.st_mtime_ns)
    except OSError as error:
        raise errors.GuestUnreachable("", f"the directory of monitors cannot be read: {error.strerror}") from error


def _owner(path: pathlib.Path) -> _Owner:
    """The owner of the VM behind a socket. A file that cannot be read hides no other VM: its own is nobody's."""
    file = path.with_suffix(".json")
    created = _born(file) or _born(path) or datetime.datetime.now(datetime.UTC)
    try:
        with file.open("rb") as stream:
            said = json.loads(stream.read(OWNER_MOST))
        flavor = said.get("flavor") or {}
        return _Owner(
            created=created,
            id=str(said.get("id", "")).lower(),
            project_id=str(said["project_id"]),
            user_id=str(said.get("user_id", "")),
            flavor=Flavor(
                str(flavor.get("id", "0")), str(flavor.get("name", "unknown")), int(flavor.get("vcpus", 0)),
                int(flavor.get("ram", 0)), int(flavor.get("disk", 0)),
            ),
            metadata={str(key): str(value) for key, value in (said.get("metadata") or {}).items()},
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _Owner(created)


def _born(path: pathlib.Path) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    except FileNotFoundError:
        return None
