# SPDX-License-Identifier: Apache-2.0
"""VMs behind a directory of QMP sockets: how they are found, asked and told. What is said is made in `disks`.

A VM's id, name and status are asked of QEMU itself; whose it is says the file beside its socket (`inventory`). A
monitor takes one client at a time and tells events only to who is there, so a connection is made for one operation and
kept for as short as can be; operations on one VM queue up.

What a newcomer gets wrong: a command that got no answer in time may still happen. That is `GuestTimeout`, nothing is
rolled back then, and only looking again tells. And a path is not a VM: another one may listen there since, so every
operation first asks who answers.

How one connection is made, used and ended is in `monitor`. All traffic runs on one asyncio loop in one thread of the
process, begun at the first use (so after a fork).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from qemu.qmp import EventListener

from cinderlite import errors
from cinderlite.guests import RbdDisk, Server, disks, inventory, monitor
from cinderlite.guests.disks import Place
from cinderlite.guests.monitor import Monitor, Question, Refused

#: Nova's words for QEMU's run states; one that is not here is ERROR.
STATUS = {
    "running": "ACTIVE", "paused": "PAUSED", "prelaunch": "PAUSED", "debug": "PAUSED", "inmigrate": "ACTIVE",
    "suspended": "SUSPENDED", "shutdown": "SHUTOFF", "postmigrate": "SHUTOFF", "finish-migrate": "ACTIVE",
    "restore-vm": "PAUSED", "save-vm": "PAUSED", "watchdog": "PAUSED",
}  # fmt: skip
#: Statuses in which a disk can be plugged in.
PLUGGABLE = frozenset({"ACTIVE", "PAUSED"})
#: Seconds between two looks whether a device is gone whose event may have been lost.
LOOK_AGAIN = 0.5
#: Seconds that a node may still be in use after its device was seen to be gone.
RELEASE_MOST = 2.0
#: Seconds that one operation may take in all beside what it was told to wait, whatever its parts add up to.
OPERATION_MOST = 120.0

# Questions that do not touch Ceph: they are answered even while an OSD is frozen.
PERIPHERALS: Question = ("qom-list", {"path": "/machine/peripheral"})
ANONYMOUS: Question = ("qom-list", {"path": "/machine/peripheral-anon"})
MACHINE_TYPE: Question = ("qom-get", {"path": "/machine", "property": "type"})
BLOCK: Question = ("query-blockstats", {})
PCI: Question = ("query-pci", {})
STATE: Question = ("query-status", {})

T = TypeVar("T")
Observe = Callable[[str, float, bool], None]


@dataclasses.dataclass(slots=True, eq=False)
class _Machine:
    """What is known of the VM behind one socket."""

    path: pathlib.Path
    stamp: inventory.Stamp
    turn: monitor.Turn
    id: str = ""
    name: str = ""
    status: str = "ERROR"
    #: When it was last asked how it is, by the monotonic clock.
    asked: float = 0.0
    #: Whether its monitor did not answer the last time: nobody waits for it again then, lists least of all.
    hung: bool = False
    asking: asyncio.Task[None] | None = None

    @property
    def rank(self) -> int:
        """Of two with one id (one is a former start's) the higher is meant."""
        return {"SHUTOFF": 0, "ERROR": 1}.get(self.status, 2)


class QmpHypervisor:
    """Every VM whose monitor is in `directory`. Time-outs in seconds.

    `locks` is a directory that the processes of this host share, so that they take turns at a monitor;
    `refresh` is how long a VM's status is believed; what it holds is always asked.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        connect_timeout: float,
        command_timeout: float,
        host: str,
        locks: pathlib.Path,
        refresh: float = 1.0,
        observe: Observe | None = None,
    ) -> None:
        self.directory = directory
        self.host = host
        self.locks = locks
        self.connect_timeout = connect_timeout
        self.command_timeout = command_timeout
        self._refresh = refresh
        self._observe = observe or (lambda _verb, _seconds, _ok: None)
        self._machines: dict[pathlib.Path, _Machine] = {}
        self._looked = 0.0
        self._starting = threading.Lock()
        self._closed = False
        self._scanning: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # -- the interface

    def servers(self) -> Sequence[Server]:
        """Every VM there is, running or known to be shut off; one that is stuck does not hold the others up."""
        self._run("servers", "", self._scan())
        best: dict[str, _Machine] = {}
        for machine in list(self._machines.values()):
            if machine.id and (machine.id not in best or machine.rank > best[machine.id].rank):
                best[machine.id] = machine
        return [self._server(machine) for machine in best.values()]

    def find(self, server_id: str, *, fresh: bool = True) -> QmpGuest:
        """The VM of that UUID, running or not; its status is asked unless not `fresh`. Raises ServerNotFound."""
        machine = self._known(server_id)
        if machine is None or inventory.stamp(machine.path) != machine.stamp:
            self._run("find", server_id, self._scan(only_new=True))
            machine = self._known(server_id)
        if fresh and machine is not None and time.monotonic() - machine.asked >= self._refresh:
            self._run("find", server_id, self._ask(machine))
            machine = self._known(server_id)
        if machine is None:
            raise errors.ServerNotFound(server_id)
        return QmpGuest(self, machine)

    def close(self) -> None:
        """Let go of the thread and its connections; what is under way ends with GuestTimeout."""
        with self._starting:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            # Each connection is given its time to close; the loop stops after that in any case.
            ended = asyncio.run_coroutine_threadsafe(_cancel_all(2 * monitor.CLOSE_MOST), loop)
            concurrent.futures.wait([ended], 3 * monitor.CLOSE_MOST)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(monitor.CLOSE_MOST)
            if not thread.is_alive():
                loop.close()

    # -- the loop

    def _run(self, verb: str, server_id: str, work: Coroutine[Any, Any, T], wait: float = 0.0) -> T:
        most = OPERATION_MOST + wait
        with self._starting:
            if self._closed:
                work.close()
                raise errors.GuestUnreachable(server_id, "the service is stopping")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._scanning = asyncio.Lock()
                self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(_within(most, work), self._loop)
        began = time.monotonic()
        ok = False
        try:
            # The loop ends it in time; should the loop itself be stuck, the caller is not.
            result = future.result(most + 2 * monitor.CLOSE_MOST)
            ok = True
        except TimeoutError as error:
            future.cancel()
            raise errors.GuestTimeout(server_id, f"{verb} took longer than {most:g} s") from error
        except concurrent.futures.CancelledError as error:
            raise errors.GuestTimeout(server_id, f"the service was stopped in {verb}") from error
        finally:
            self._observe(verb, time.monotonic() - began, ok)
        return result

    # -- which VMs there are

    def _known(self, server_id: str) -> _Machine | None:
        found = [machine for machine in list(self._machines.values()) if machine.id == server_id]
        return max(found, key=lambda machine: machine.rank, default=None)

    def _server(self, machine: _Machine) -> Server:
        owner = inventory.owner(machine.path)
        return Server(
            machine.id, machine.name, machine.status, owner.project_id, owner.user_id, self.host, owner.created,
            owner.flavor, owner.metadata,
        )  # fmt: skip

    async def _scan(self, *, only_new: bool = False) -> None:
        """Bring what is known up to date: all monitors (or the new ones) are asked at the same time."""
        if self._scanning is None:
            raise errors.GuestUnreachable("", "the service is stopping")
        async with self._scanning:
            if not only_new and time.monotonic() - self._looked < self._refresh:
                return
            found = dict(inventory.sockets(self.directory))
            for path in self._machines.keys() - found.keys():
                del self._machines[path]
            for path, stamp in found.items():
                known = self._machines.get(path)
                if known is None or known.stamp != stamp:
                    self._machines[path] = _Machine(path, stamp, known.turn if known else self._turn(path))
            asked = [machine for machine in self._machines.values() if not (only_new and machine.id)]
            patient = [self._asking(machine) for machine in asked if not machine.hung]
            for machine in asked:
                self._asking(machine)
            await asyncio.gather(*(asyncio.shield(task) for task in patient))
            if not only_new:
                self._looked = time.monotonic()

    async def _ask(self, machine: _Machine) -> None:
        await asyncio.shield(self._asking(machine))

    def _asking(self, machine: _Machine) -> asyncio.Task[None]:
        """The question how a VM is, put once however many want to know."""
        if machine.asking is None or machine.asking.done():
            machine.asking = asyncio.get_running_loop().create_task(self._question(machine))
        return machine.asking

    async def _question(self, machine: _Machine) -> None:
        """Ask one VM who and how it is; what cannot be asked now keeps what was known of it."""
        if machine.id and machine.turn.taken:
            return  # Somebody is working on it: it lives.
        machine.asked = time.monotonic()
        try:
            async with asyncio.timeout(self.connect_timeout), self._session(machine) as qmp:
                who, called, how = await qmp.ask(("query-uuid", {}), ("query-name", {}), STATE)
                machine.id = inventory.identity(who["UUID"])
                machine.name = str(called.get("name") or machine.path.stem)
                machine.status, machine.hung = STATUS.get(how["status"], "ERROR"), False
        except errors.GuestGone:
            self._unasked(machine, "SHUTOFF", hung=False)
        except (errors.CinderliteError, TimeoutError):
            self._unasked(machine, "ERROR", hung=True)
        except (LookupError, TypeError, AttributeError, ValueError):  # Whatever answered, it is no QEMU.
            self._unasked(machine, "ERROR", hung=True)

    @staticmethod
    def _unasked(machine: _Machine, status: str, *, hung: bool) -> None:
        machine.status, machine.hung = status, hung
        if not machine.id:
            machine.id, machine.name = inventory.owner(machine.path).id, machine.path.stem

    # -- talking to one

    @contextlib.asynccontextmanager
    async def _session(self, machine: _Machine) -> AsyncIterator[Monitor]:
        """The one connection to a VM's monitor. Raises GuestGone, GuestUnreachable."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(machine.turn.take(self.command_timeout))
            except TimeoutError as error:
                raise errors.GuestUnreachable(machine.id, "another operation on it takes long") from error
            yield await stack.enter_async_context(
                monitor.connect(machine.path, machine.id, self.connect_timeout, self.command_timeout)
            )

    def _turn(self, path: pathlib.Path) -> monitor.Turn:
        return monitor.Turn(self.locks / f"{path.stem}.lock")


class QmpGuest:
    """One VM."""

    def __init__(self, hypervisor: QmpHypervisor, machine: _Machine) -> None:
        self._hypervisor = hypervisor
        self._machine = machine

    @property
    def server(self) -> Server:
        """The VM as its tenant sees it, as just asked."""
        return self._hypervisor._server(self._machine)

    def attach(self, disk: RbdDisk, taken: Collection[str]) -> str:
        """See `guests.Guest.attach`."""
        return self._hypervisor._run("attach", self._machine.id, self._attach(disk, taken))

    def detach(self, volume_id: str, wait: float) -> None:
        """See `guests.Guest.detach`."""
        self._hypervisor._run("detach", self._machine.id, self._detach(volume_id, wait), wait)

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """See `guests.Guest.resize`."""
        self._hypervisor._run("resize", self._machine.id, self._resize(volume_id, size_bytes))

    def disks(self) -> frozenset[str]:
        """See `guests.Guest.disks`."""
        return self._hypervisor._run("disks", self._machine.id, self._disks())

    async def _disks(self) -> frozenset[str]:
        async with self._hypervisor._session(self._machine) as qmp:
            [there] = await qmp.ask_guest(PERIPHERALS)
            return disks.volumes(there)

    async def _resize(self, volume_id: str, size_bytes: int) -> None:
        async with self._hypervisor._session(self._machine) as qmp:
            [there] = await qmp.ask_guest(PERIPHERALS)
            if volume_id in disks.volumes(there):
                command = disks.resize(volume_id, size_bytes)
                await qmp.do(command.name, command.arguments)

    async def _attach(self, disk: RbdDisk, taken: Collection[str]) -> str:
        async with self._hypervisor._session(self._machine) as qmp:
            there, unnamed, block, pci, machine, how = await qmp.ask_guest(
                PERIPHERALS, ANONYMOUS, BLOCK, PCI, MACHINE_TYPE, STATE
            )
            status = STATUS.get(how["status"], "ERROR")
            if status not in PLUGGABLE:
                raise errors.GuestRefused(f"the server is {how['status']}, and takes no disk in that state")
            if disk.volume_id in disks.volumes(there):
                letters = await self._letters(qmp, disk)
            else:
                places = disks.places(machine, pci, there)
                try:
                    place = await self._plug(qmp, disk, places)
                except Refused as error:
                    if not error.says_duplicate:
                        raise
                    # What an interrupted attach left without a device; ours by its name, and of no use to anybody.
                    await self._clear(qmp, disk.volume_id)
                    place = await self._plug(qmp, disk, places)
                letters = place.letters
            return disks.name(letters, taken, disks.foreign(letters, block, [*there, *unnamed]))

    async def _letters(self, qmp: Monitor, disk: RbdDisk) -> str:
        """How the name of a disk begins that is there already. Raises GuestRefused if it is not what we plug in."""
        path = _path(disk.volume_id)
        driver, node = await qmp.ask(
            ("qom-get", {"path": path, "property": "type"}), ("qom-get", {"path": path, "property": "drive"})
        )
        if node != disks.top_node(disk.volume_id):
            raise errors.GuestRefused(f"a device of the volume's name is there, but uses {node or 'nothing'}")
        return "/dev/sd" if driver == "scsi-hd" else "/dev/vd"

    async def _plug(self, qmp: Monitor, disk: RbdDisk, places: Sequence[Place]) -> Place:
        """Every step, or none if QEMU refuses one; after a time-out nobody knows, and nothing more is sent."""
        undo: list[tuple[str, Mapping[str, Any]]] = []
        try:
            for command in disks.open_image(disk):
                await qmp.do(command.name, command.arguments)
                if command.undo is not None:
                    undo.append(command.undo)
            place = await self._device(qmp, disk, places)
        except (Refused, errors.NoFreePlace):
            for name, arguments in reversed(undo):
                # What cannot be undone is found and removed by the next attach or detach; the first reason counts.
                with contextlib.suppress(Refused):
                    await qmp.do(name, arguments)
            raise
        return place

    @staticmethod
    async def _device(qmp: Monitor, disk: RbdDisk, places: Sequence[Place]) -> Place:
        for place in places:
            command = disks.plug(disk, place)
            where = "qom-get", {"path": _path(disk.volume_id), "property": "addr"}
            # The question is answered right after the command: a busy QEMU wakes up once for both.
            both = qmp.do(command.name, command.arguments), qmp.do(*where)
            answers: Sequence[Any] = await asyncio.gather(*both, return_exceptions=True)
            done, address = answers
            if isinstance(done, Refused) and done.says_elsewhere:
                continue
            if isinstance(done, BaseException):
                raise done
            # Only what sits in slot 0 of a port is seen by the guest, and can ever be unplugged.
            if place.address is not None and address != 0:
                raise errors.GuestTimeout(qmp.server_id, "the disk is not where the guest can see it")
            return place
        raise disks.no_free_place()

    async def _detach(self, volume_id: str, wait: float) -> None:
        device = disks.device_id(volume_id)

        def ours(event: Mapping[str, Any]) -> bool:
            # A virtio device ends with two events; the first, of its inner half, names no device.
            data = event.get("data")
            return isinstance(data, dict) and data.get("device") == device

        async with self._hypervisor._session(self._machine) as qmp:
            with qmp.client.listener("DEVICE_DELETED", ours) as deleted:
                [there] = await qmp.ask_guest(PERIPHERALS)
                if volume_id in disks.volumes(there):
                    try:
                        await qmp.try_("device_del", {"id": device})
                    except Refused as error:
                        if not error.says_pending:
                            raise
                    if not await self._gone(qmp, deleted, volume_id, wait):
                        raise errors.DeviceHeld(self._machine.id)
            await self._clear(qmp, volume_id)

    @staticmethod
    async def _gone(qmp: Monitor, deleted: EventListener, volume_id: str, wait: float) -> bool:
        """Wait for the device to be gone: for the event, and by looking, as an event can be lost."""
        deadline = time.monotonic() + wait
        while True:
            left = deadline - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(min(left, LOOK_AGAIN), 0.05)):
                    await deleted.get()
                return True
            if volume_id not in disks.volumes(await qmp.do(*PERIPHERALS)):
                return True
            if left <= 0:
                return False

    @staticmethod
    async def _clear(qmp: Monitor, volume_id: str) -> None:
        """Remove what is left of a disk without a device, each part when its last user has let it go."""
        deadline = time.monotonic() + RELEASE_MOST
        for command in disks.detach(volume_id):
            while True:
                try:
                    await qmp.try_(command.name, command.arguments)
                    break
                except Refused as error:
                    if not error.says_used or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(0.05)


def _path(volume_id: str) -> str:
    return f"/machine/peripheral/{disks.device_id(volume_id)}"


async def _within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(seconds):
        return await work


async def _cancel_all(most: float) -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=most)
