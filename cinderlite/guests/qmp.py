# SPDX-License-Identifier: Apache-2.0
"""VMs behind a directory of QMP sockets: how they are found, asked and told. What is said is made in `disks`.

A VM's id, name and status are asked of QEMU itself; whose it is says the file beside its socket (`inventory`), and
whether it is one without a process, too: then it holds nothing, and gets its disks from whoever starts it (`launch`). A
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
import logging
import math
import pathlib
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from qemu.qmp import EventListener

from cinderlite import errors, metrics
from cinderlite.guests import (
    ABSENT,
    ARRIVING,
    COPYING,
    DISK_WITHIN,
    EQUAL,
    FAILED,
    MOVED,
    NONE,
    RUNNING,
    Heard,
    Mirror,
    RbdDisk,
    Server,
    agent,
    disks,
    impatience,
    inventory,
    monitor,
    rank,
    remote,
)
from cinderlite.guests.agent import Agent, NoChannel
from cinderlite.guests.disks import Place
from cinderlite.guests.monitor import Monitor, NoAnswer, NoGreeting, Question, Refused

LOG = logging.getLogger(__name__)

#: Nova's words for QEMU's run states; one that is not here is ERROR.
STATUS = {
    "running": "ACTIVE", "paused": "PAUSED", "prelaunch": "PAUSED", "debug": "PAUSED", "inmigrate": ARRIVING,
    "suspended": "SUSPENDED", "shutdown": "SHUTOFF", "postmigrate": "SHUTOFF", "finish-migrate": "ACTIVE",
    "restore-vm": "PAUSED", "save-vm": "PAUSED", "watchdog": "PAUSED",
}  # fmt: skip
#: Seconds between two looks whether a device is gone whose event may have been lost.
LOOK_AGAIN = 0.5
#: Seconds that a node may still be in use after its device was seen to be gone.
RELEASE_MOST = 2.0
#: Seconds between two looks how far a job is that ends at any moment.
JOB_AGAIN = 0.02
#: Seconds after which a job that is ready, and was told to complete, certainly is not ready any more.
COMPLETES_WITHIN = 0.2
#: Monitors that are asked at a time how their VM is, so that hundreds of VMs are not as many connections; and of those
#: that were silent the last time, which must not hold up the others.
ASKED_AT_A_TIME, SILENT_AT_A_TIME = 64, 8
#: Seconds that one operation may take in all beside what it was told to wait, whatever its parts add up to.
OPERATION_MOST = 120.0

# Questions that do not touch Ceph: they are answered even while an OSD is frozen.
PERIPHERALS: Question = ("qom-list", {"path": "/machine/peripheral"})
OBJECTS: Question = ("qom-list", {"path": "/objects"})
ANONYMOUS: Question = ("qom-list", {"path": "/machine/peripheral-anon"})
MACHINE_TYPE: Question = ("qom-get", {"path": "/machine", "property": "type"})
BLOCK: Question = ("query-blockstats", {})
NODES: Question = ("query-blockstats", {"query-nodes": True})
JOBS: Question = ("query-jobs", {})
PCI: Question = ("query-pci", {})
STATE: Question = ("query-status", {})

MIGRATES = "it is being migrated"
#: What a disk can be attached to: of a VM that is kept and off that it will have it when it is started.
KEPT = RUNNING | {"SHUTOFF"}

T = TypeVar("T")
Observe = Callable[[str, float, bool], None]
#: Does commands that are undone if one of them, or a later one, is refused.
Do = Callable[..., Coroutine[Any, Any, None]]


@dataclasses.dataclass(slots=True, eq=False)
class _Machine:
    """What is known of the VM behind one socket."""

    path: pathlib.Path
    stamp: inventory.Stamp
    turn: monitor.Turn
    #: Whether its monitor is where its owner file says.
    is_remote: bool = False
    id: str = ""
    name: str = ""
    status: str = "ERROR"
    #: When it was last asked how it is, by the monotonic clock.
    asked: float = -math.inf
    #: Whether its monitor did not answer the last time: nobody waits for it again then, lists least of all.
    hung: bool = False
    #: Whether nothing listened there when it was last asked.
    gone: bool = False
    asking: asyncio.Task[None] | None = None
    #: Why it is left alone until then, by the monotonic clock; "" if it is not. Then one operation finds out.
    silent: str = ""
    rests_until: float = 0.0
    probing: bool = False
    #: Whether its QEMU could not read the file of `impatience`.
    conf_unread: bool = False

    @property
    def rank(self) -> int:
        """Of two with one id the higher is meant."""
        return rank(self.status)


class QmpHypervisor:
    """Every VM whose monitor is in `directory`. Time-outs in seconds.

    `agent_socket` is the path of a VM's guest agent's, made of its monitor's directory and name, and its id.
    `locks` is a directory that the processes of this host share, so that they take turns at a monitor;
    `refresh` is how long a VM's status is believed; what it holds is always asked. `rest` is how long a VM is left
    alone whose monitor did not answer, `mount_timeout` how long a QEMU waits for Ceph's monitors (0: as it likes),
    `tls` how monitors on other hosts are spoken to (None: not at all).
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
        rest: float = 5.0,
        mount_timeout: int = 0,
        observe: Observe | None = None,
        agent_socket: str = "{directory}/{name}.agent",
        agent_timeout: float = 3.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.directory = directory
        self.agent_socket = agent_socket
        self.agent_timeout = agent_timeout
        self.host = host
        self.locks = locks
        self.connect_timeout = connect_timeout
        self.command_timeout = command_timeout
        self._refresh = refresh
        self._rest = rest
        self._tls = tls
        self._mount_timeout = mount_timeout
        self._observe = observe or (lambda _verb, _seconds, _ok: None)
        self._machines: dict[pathlib.Path, _Machine] = {}
        #: Every VM that there was since we began.
        self._seen: set[str] = set()
        #: And every host that one was on: of the last one's end there, too, the files here tell.
        self._hosts = {host}
        self._looked = -math.inf
        self._starting = threading.Lock()
        self._closed = False
        self._scanning: asyncio.Lock | None = None
        #: Who may ask how a VM is; by whether it was silent.
        self._room: dict[bool, asyncio.Semaphore] = {}
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
        found = self._known(server_id)
        if not found or any(inventory.stamp(machine.path) != machine.stamp for machine in found):
            self._run("find", server_id, self._look_for(server_id))
            found = self._known(server_id)
        if fresh or len(found) > 1:  # Which of two it is can change at any moment: it migrates.
            old = [machine for machine in found if time.monotonic() - machine.asked >= self._refresh]
            if old:
                self._run("find", server_id, self._ask(old))
                found = self._known(server_id)
        if not found:
            raise errors.ServerNotFound(server_id)
        return QmpGuest(self, max(found, key=lambda machine: machine.rank))

    @property
    def hosts(self) -> frozenset[str]:
        """See `guests.Hypervisor.hosts`."""
        return frozenset(self._hosts)

    def ended(self, server_id: str, ago: float) -> bool:
        """See `guests.Hypervisor.ended`: no owner file keeps it, and nothing that listens is it, or may be."""
        if any(inventory.owner(machine.path).id == server_id for machine in self._known(server_id)):
            return False  # The others need not be asked.
        try:
            self._run("ended", server_id, self._scan())
            volatile = inventory.is_volatile(self.directory)
        except (errors.Unavailable, OSError):
            return False
        machines = list(self._machines.values())
        if any(inventory.owner(machine.path).id == server_id for machine in machines):
            return False
        if any(machine.id in ("", server_id) for machine in machines if not machine.gone):
            return False
        # Where files are in memory, all are missing after a start of this host, and that tells nothing.
        return server_id in self._seen or ago < time.clock_gettime(time.CLOCK_BOOTTIME) or not volatile

    def silent(self) -> Sequence[str]:
        """See `guests.Hypervisor.silent`."""
        machines = list(self._machines.values())
        return [
            f"the monitor of server {one.id or one.path.stem} is silent: {one.silent or 'it could not be asked'}"
            for one in machines
            if one.silent or one.hung
        ]

    def listen(self, heard: Heard) -> None:
        """See `guests.Hypervisor.listen`: no monitor is listened to all the time, since it has one client at a time."""

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
                self._room = {
                    False: asyncio.Semaphore(ASKED_AT_A_TIME),
                    True: asyncio.Semaphore(SILENT_AT_A_TIME),
                }
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

    def _known(self, server_id: str) -> list[_Machine]:
        return [machine for machine in list(self._machines.values()) if machine.id == server_id]

    def _server(self, machine: _Machine) -> Server:
        owner = inventory.owner(machine.path)
        host = owner.monitor.rpartition(":")[0].strip("[]") if machine.is_remote else self.host
        return Server(
            machine.id, machine.name, machine.status, owner.project_id, owner.user_id, host, owner.created,
            owner.flavor, owner.metadata, attachable=KEPT if owner.id == machine.id else RUNNING,
        )  # fmt: skip

    async def _scan(self) -> None:
        """Bring what is known up to date: all monitors that were not asked just now are."""
        async with self._directory():
            if time.monotonic() - self._looked < self._refresh:
                return
            self._list()
            before = time.monotonic() - self._refresh
            await self._ask_all([machine for machine in self._machines.values() if machine.asked <= before])
            self._looked = time.monotonic()

    async def _look_for(self, server_id: str) -> None:
        """Find a VM that is new or not there, asking no others than the new ones, or the one whose file names it."""
        async with self._directory():
            self._list()
            new = [machine for machine in self._machines.values() if not machine.id]
            named = [machine for machine in new if inventory.owner(machine.path).id == server_id]
            await self._ask_all(named)
            if not self._known(server_id):
                await self._ask_all([machine for machine in new if machine not in named])

    def _directory(self) -> asyncio.Lock:
        if self._scanning is None:
            raise errors.GuestUnreachable("", "the service is stopping")
        return self._scanning

    def _list(self) -> None:
        """Which monitors there are."""
        found = dict(inventory.machines(self.directory))
        for path in self._machines.keys() - found.keys():
            del self._machines[path]
        for path, stamp in found.items():
            known = self._machines.get(path)
            if known is None or known.stamp != stamp:
                far = not inventory.is_here(path) and bool(inventory.owner(path).monitor)
                turn = known.turn if known else self._turn(path)
                self._machines[path] = _Machine(path, stamp, turn, is_remote=far)
                self._hosts.add(self._server(self._machines[path]).host)

    async def _ask_all(self, machines: Collection[_Machine]) -> None:
        """Ask some, but wait for none that was silent, and for nobody longer than a greeting may take."""
        asked = [(machine, machine.hung, self._asking(machine)) for machine in machines]
        patient = [task for _machine, hung, task in asked if not hung]
        if patient:
            await asyncio.wait(patient, timeout=self.connect_timeout + monitor.CLOSE_MOST)
        for machine, hung, task in asked:
            if not hung and not task.done():  # Its turn has not come, so many hang.
                self._unasked(machine, "ERROR", gone=False)

    async def _ask(self, machines: Sequence[_Machine]) -> None:
        await asyncio.gather(*(asyncio.shield(self._asking(machine)) for machine in machines))

    def _asking(self, machine: _Machine) -> asyncio.Task[None]:
        """The question how a VM is, put once however many want to know."""
        if machine.asking is None or machine.asking.done():
            machine.asking = asyncio.get_running_loop().create_task(self._question(machine))
        return machine.asking

    async def _question(self, machine: _Machine) -> None:
        """Ask one VM who and how it is; what cannot be asked now keeps what was known of it."""
        async with self._room[machine.hung]:
            if machine.id and machine.turn.taken:
                return  # Somebody is working on it: it lives.
            machine.asked = time.monotonic()
            await self._interrogate(machine)

    async def _interrogate(self, machine: _Machine) -> None:
        try:
            await self._refuse_gone(machine)
            async with asyncio.timeout(self.connect_timeout), self._session(machine) as qmp:
                who, called, how = await qmp.ask(("query-uuid", {}), ("query-name", {}), STATE)
                machine.id = inventory.identity(who["UUID"])
                machine.name = str(called.get("name") or machine.path.stem)
                machine.status, machine.hung, machine.gone = STATUS.get(how["status"], "ERROR"), False, False
        except errors.GuestGone:
            self._unasked(machine, "SHUTOFF", gone=True)
        except TimeoutError:
            self._unasked(machine, "ERROR", gone=False)
            if not machine.turn.taken:
                self._leave_alone(machine, "it did not say in time how it is")
        except errors.CinderliteError:
            self._unasked(machine, "ERROR", gone=False)
        except (LookupError, TypeError, AttributeError, ValueError):  # Whatever answered, it is no QEMU.
            self._unasked(machine, "ERROR", gone=False)
        self._seen.add(machine.id)

    async def _refuse_gone(self, machine: _Machine) -> None:
        """Raise GuestGone if a VM that is left alone for its silence is no more."""
        if self._rests(machine) and not await monitor.listens(self._where(machine)):
            machine.silent = ""
            raise errors.GuestGone(machine.id)

    @staticmethod
    def _unasked(machine: _Machine, status: str, *, gone: bool) -> None:
        machine.status, machine.gone, machine.hung = status, gone, not gone
        if not machine.id:
            machine.id, machine.name = inventory.owner(machine.path).id, machine.path.stem

    # -- talking to one

    @contextlib.asynccontextmanager
    async def _session(self, machine: _Machine) -> AsyncIterator[Monitor]:
        """The one connection to a VM's monitor. Raises GuestGone, GuestUnreachable.

        One that was silent is left alone for a while, in which nobody waits for it; then one operation tries.
        """
        self._refuse_silent(machine)
        tries = bool(machine.silent)
        machine.probing = machine.probing or tries
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(machine.turn.take(self.command_timeout))
                except TimeoutError as error:
                    raise errors.GuestUnreachable(machine.id, "another operation on it takes long") from error
                if not tries:
                    self._refuse_silent(machine)  # It may have fallen silent for the one before.
                qmp = await stack.enter_async_context(
                    monitor.connect(self._where(machine), machine.id, self.connect_timeout, self.command_timeout)
                )
                self._heard(machine)
                yield qmp
        except errors.GuestGone:
            machine.status, machine.gone = "SHUTOFF", True
            raise
        except (NoGreeting, NoAnswer) as error:
            self._leave_alone(machine, str(error.args[1]))
            raise
        finally:
            if tries:
                machine.probing = False

    def _where(self, machine: _Machine) -> monitor.Where:
        """Where a VM's monitor is. Raises GuestUnreachable if that is nowhere, or is not to be spoken to."""
        said = inventory.owner(machine.path).monitor if machine.is_remote else ""
        if not said:
            return machine.path
        try:
            host, port = remote.parse(said)
        except ValueError as error:
            raise errors.GuestUnreachable(machine.id, str(error)) from error
        if self._tls is None:
            raise errors.GuestUnreachable(machine.id, "its monitor is on another host, and qmp_tls_ca is not set")
        return remote.Remote(host, port, self._tls)

    def _refuse_silent(self, machine: _Machine) -> None:
        """Raise GuestUnreachable for a VM whose monitor did not answer just now, unless it is to be tried again."""
        if self._rests(machine):
            raise errors.GuestUnreachable(machine.id, f"{machine.silent}; it is left alone for {self._rest:g} s")

    @staticmethod
    def _rests(machine: _Machine) -> bool:
        return bool(machine.silent) and (machine.probing or time.monotonic() < machine.rests_until)

    def _leave_alone(self, machine: _Machine, why: str) -> None:
        if not machine.silent:
            file = machine.path.with_suffix(".json") if machine.is_remote else machine.path
            LOG.warning("the monitor of server %s (%s) is silent: %s", machine.id, file.name, why)
            metrics.SILENT_GUESTS.inc()
        machine.silent, machine.rests_until = why, time.monotonic() + self._rest

    @staticmethod
    def _heard(machine: _Machine) -> None:
        if machine.silent:
            LOG.info("the monitor of server %s (%s) answers again", machine.id, machine.path.name)
        machine.silent = ""

    def _agent(self, machine: _Machine) -> contextlib.AbstractAsyncContextManager[Agent]:
        """A connection to a VM's guest agent, which has answered. Raises NoChannel, GuestUnreachable, GuestTimeout."""
        path = self.agent_socket.format(directory=machine.path.parent, name=machine.path.stem, id=machine.id)
        lock = self.locks / f"{machine.path.stem}.agent.lock"
        return agent.connect(pathlib.Path(path), machine.id, lock, self.agent_timeout)

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

    def attach(self, disk: RbdDisk | Future[RbdDisk], taken: Collection[str]) -> str:
        """See `guests.Guest.attach`."""
        try:
            return self._hypervisor._run("attach", self._machine.id, self._attach(disk, taken))
        except errors.GuestGone:
            if inventory.owner(self._machine.path).id != self._machine.id:
                raise
            return disks.name("/dev/vd", taken, 0)

    def detach(self, volume_id: str, wait: float, let_go: Callable[[], None] | None = None) -> None:
        """See `guests.Guest.detach`."""
        self._hypervisor._run("detach", self._machine.id, self._detach(volume_id, wait, let_go), wait)

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """See `guests.Guest.resize`."""
        self._hypervisor._run("resize", self._machine.id, self._resize(volume_id, size_bytes))

    def disks(self) -> frozenset[str]:
        """See `guests.Guest.disks`."""
        return self._hypervisor._run("disks", self._machine.id, self._disks())

    def boots_from(self) -> str | None:
        """See `guests.Guest.boots_from`."""
        return self._hypervisor._run("boots_from", self._machine.id, self._boots_from())

    def places(self) -> Mapping[str, Place]:
        """See `guests.Guest.places`."""
        return self._hypervisor._run("places", self._machine.id, self._places())

    def room(self) -> Mapping[str, int]:
        """See `guests.Guest.room`."""
        return self._hypervisor._run("room", self._machine.id, self._room())

    def limit(self, limits: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
        """See `guests.Guest.limit`."""
        return self._hypervisor._run("limit", self._machine.id, self._limit(limits))

    def mirrored(self, target: RbdDisk) -> Mirror:
        """See `guests.Guest.mirrored`."""
        return self._hypervisor._run("mirrored", self._machine.id, self._mirrored(target))

    def mirror(self, target: RbdDisk, speed: int, arrived: Callable[[], None]) -> Mirror:
        """See `guests.Guest.mirror`."""
        return self._hypervisor._run("mirror", self._machine.id, self._mirror(target, speed, arrived))

    def pivot(self, target: RbdDisk) -> None:
        """See `guests.Guest.pivot`."""
        self._hypervisor._run("pivot", self._machine.id, self._pivot(target))

    def unmirror(self, target: RbdDisk) -> None:
        """See `guests.Guest.unmirror`."""
        self._hypervisor._run("unmirror", self._machine.id, self._unmirror(target))

    async def _limit(self, wanted: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
        async with self._hypervisor._session(self._machine) as qmp:
            there, objects, how = await qmp.ask_guest(PERIPHERALS, OBJECTS, STATE)
            self._refuse_migrating(how)
            present = disks.volumes(there)
            await _remove(qmp, disks.forget_secrets(present, objects))
            ours = sorted(present & wanted.keys())
            found = await qmp.ask(*(disks.limits(volume_id) for volume_id in ours))
            for volume_id, now in zip(ours, found, strict=True):
                command = disks.limit(volume_id, wanted[volume_id])
                if now != now | command.arguments["value"]:
                    await qmp.do(command.name, command.arguments)
            return present

    def is_frozen(self) -> bool | None:
        """See `guests.Guest.is_frozen`."""
        return self._hypervisor._run("is_frozen", self._machine.id, self._is_frozen())

    def freeze(self, seconds: float) -> int:
        """See `guests.Guest.freeze`."""
        return self._hypervisor._run("freeze", self._machine.id, self._freeze(seconds), seconds)

    def thaw(self) -> None:
        """See `guests.Guest.thaw`."""
        self._hypervisor._run("thaw", self._machine.id, self._thaw())

    async def _is_frozen(self) -> bool | None:
        try:
            async with self._hypervisor._agent(self._machine) as talk:
                return bool(await talk.do("guest-fsfreeze-status", self._hypervisor.agent_timeout) == "frozen")
        except (errors.GuestUnreachable, errors.GuestTimeout, errors.GuestRefused):
            await self._disks()  # Raises GuestGone.
            return None

    async def _freeze(self, seconds: float) -> int:
        async with self._hypervisor._agent(self._machine) as talk:
            return await talk.freeze(seconds)

    async def _thaw(self) -> None:
        try:
            async with self._hypervisor._agent(self._machine) as talk:
                await talk.do("guest-fsfreeze-thaw", self._hypervisor.agent_timeout)
        except NoChannel:
            await self._disks()  # Raises GuestGone; else whoever was frozen has been started anew without an agent.

    async def _disks(self) -> frozenset[str]:
        async with self._hypervisor._session(self._machine) as qmp:
            [there] = await qmp.ask_guest(PERIPHERALS)
            return disks.volumes(there)

    async def _boots_from(self) -> str | None:
        async with self._hypervisor._session(self._machine) as qmp:
            [there] = await qmp.ask_guest(PERIPHERALS)
            ours = sorted(disks.volumes(there))
            orders = await qmp.ask(
                *(("qom-get", {"path": _path(volume_id), "property": "bootindex"}) for volume_id in ours)
            )
            return next((volume_id for volume_id, order in zip(ours, orders, strict=True) if order >= 0), None)

    async def _places(self) -> Mapping[str, Place]:
        async with self._hypervisor._session(self._machine) as qmp:
            [there] = await qmp.ask_guest(PERIPHERALS)
            return {one: await self._place(qmp, one) for one in sorted(disks.volumes(there))}

    @staticmethod
    async def _place(qmp: Monitor, volume_id: str) -> Place:
        path = _path(volume_id)
        driver, bus = await qmp.ask(
            ("qom-get", {"path": path, "property": "type"}), ("qom-get", {"path": path, "property": "parent_bus"})
        )
        name = "scsi-id" if driver == "scsi-hd" else "addr"
        return disks.found(driver, bus, await qmp.do("qom-get", {"path": path, "property": name}))

    async def _room(self) -> Mapping[str, int]:
        async with self._hypervisor._session(self._machine) as qmp:
            there, pci, machine = await qmp.ask_guest(PERIPHERALS, PCI, MACHINE_TYPE)
            return disks.room(machine, pci, there)

    async def _resize(self, volume_id: str, size_bytes: int) -> None:
        async with self._hypervisor._session(self._machine) as qmp:
            [there] = await qmp.ask_guest(PERIPHERALS)
            if volume_id in disks.volumes(there):
                command = disks.resize(volume_id, size_bytes)
                await qmp.do(command.name, command.arguments)

    async def _attach(self, awaited: RbdDisk | Future[RbdDisk], taken: Collection[str]) -> str:
        async with self._hypervisor._session(self._machine) as qmp:
            found = await self._found(qmp)
            if not isinstance(awaited, Future):
                return await self._attach_to(qmp, found, awaited, taken)
            made = asyncio.wrap_future(awaited)
            await asyncio.wait([made], timeout=DISK_WITHIN)
            if made.done():
                return await self._attach_to(qmp, found, made.result(), taken)
        # Others want the monitor meanwhile, and nothing has been done yet.
        disk = await made
        async with self._hypervisor._session(self._machine) as qmp:
            return await self._attach_to(qmp, await self._found(qmp), disk, taken)

    @staticmethod
    async def _found(qmp: Monitor) -> Sequence[Any]:
        """What the guest has now, for `_attach_to`. Raises GuestRefused if it takes no disk."""
        *found, how = await qmp.ask_guest(PERIPHERALS, ANONYMOUS, BLOCK, PCI, MACHINE_TYPE, STATE)
        status = STATUS.get(how["status"], "ERROR")
        if status not in RUNNING:
            raise errors.GuestRefused(f"the server is {how['status']}, and takes no disk in that state")
        return found

    async def _attach_to(self, qmp: Monitor, found: Sequence[Any], disk: RbdDisk, taken: Collection[str]) -> str:
        there, unnamed, block, pci, machine = found
        disk = self._impatient(disk)
        if disk.volume_id in disks.volumes(there):
            letters = await self._letters(qmp, disk)
        else:
            places = disks.places(machine, pci, there, disk.tuning.bus)
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

    def _impatient(self, disk: RbdDisk) -> RbdDisk:
        """The same disk, opened without waiting for Ceph's monitors for long."""
        own = self._hypervisor
        if self._machine.conf_unread or self._machine.is_remote:
            return disk  # Of another host's files nothing is known here.
        return dataclasses.replace(disk, conf=impatience.file(own.directory, own._mount_timeout))

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
        try:
            async with _all_or_nothing(qmp) as do:
                await do(*disks.open_image(disk))
                return await self._device(qmp, do, disk, places)
        except Refused as error:
            if disk.conf is None or not error.says_unread:
                raise
        LOG.warning("the QEMU of server %s cannot read %s, and waits for Ceph as it likes", qmp.server_id, disk.conf)
        self._machine.conf_unread = True
        return await self._plug(qmp, dataclasses.replace(disk, conf=None), places)

    @staticmethod
    async def _device(qmp: Monitor, do: Do, disk: RbdDisk, places: Sequence[Place]) -> Place:
        threads: list[disks.Command] = []
        for place in places:
            if not threads:
                threads = list(disks.threads(disk, place))
                await do(*threads)
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
        raise disks.no_free_place(disk.tuning.bus)

    async def _detach(self, volume_id: str, wait: float, let_go: Callable[[], None] | None) -> None:
        device = disks.device_id(volume_id)

        def ours(event: Mapping[str, Any]) -> bool:
            # A virtio device ends with two events; the first, of its inner half, names no device.
            data = event.get("data")
            return isinstance(data, dict) and data.get("device") == device

        async with self._hypervisor._session(self._machine) as qmp:
            left = None
            with qmp.client.listener("DEVICE_DELETED", ours) as deleted:
                there, how = await qmp.ask_guest(PERIPHERALS, STATE)
                if volume_id in disks.volumes(there):
                    self._refuse_migrating(how)
                    try:
                        await qmp.try_("device_del", {"id": device})
                    except Refused as error:
                        if error.says_migrating:
                            raise errors.GuestUnreachable(self._machine.id, MIGRATES) from error
                        if not error.says_pending:
                            raise
                    left = await qmp.ask(NODES, JOBS)  # While the guest lets go, for nothing is added meanwhile.
                    if not await self._gone(qmp, deleted, volume_id, wait):
                        raise errors.DeviceHeld(self._machine.id)
            if let_go is not None:
                let_go()
            await self._clear(qmp, volume_id, left)

    def _refuse_migrating(self, how: Mapping[str, Any]) -> None:
        """Raise GuestUnreachable for a QEMU whose guest is another one's, still or now: both have the same devices.

        A copy of its status, which tells which of the two to ask the next time, is brought up to date.
        """
        self._machine.status = STATUS.get(how["status"], "ERROR")
        if how["status"] in ("inmigrate", "finish-migrate", "postmigrate"):
            raise errors.GuestUnreachable(self._machine.id, MIGRATES)

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
    async def _clear(qmp: Monitor, volume_id: str, left: list[Any] | None = None) -> None:
        """Remove what is left of a disk without a device; the answers about nodes and jobs, if they are known."""
        if left is None or _job(volume_id, left[1]) is not None:  # One that ran may have ended.
            left = await qmp.ask(NODES, JOBS)
        nodes, jobs = left
        await _end_job(qmp, volume_id, jobs)
        await _remove(qmp, disks.detach(volume_id, disks.names(nodes)))

    # -- copying it to another image

    async def _mirrored(self, target: RbdDisk) -> Mirror:
        async with self._hypervisor._session(self._machine) as qmp:
            found, _status, _node = await _look(qmp, target)
            return found

    async def _mirror(self, target: RbdDisk, speed: int, arrived: Callable[[], None]) -> Mirror:
        target = self._impatient(target)
        async with self._hypervisor._session(self._machine) as qmp:
            found, status, node = await _look(qmp, target)
            if found.phase == ABSENT:
                raise errors.GuestRefused("the server does not have the disk")
            if found.phase == NONE:
                if node is None:
                    raise errors.GuestRefused("the disk is not as this service plugs it in")
                await self._begin(qmp, target, node, speed)
                found, status, node = await _look(qmp, target)
            if status == "ready":
                found = await self._complete(qmp, target)
            if found.phase == EQUAL:
                # Over the same connection, so that nobody comes between while the guest waits.
                await asyncio.to_thread(arrived)
                found, _status, _node = await self._finalize(qmp, target)
            if found.phase == FAILED:
                raise errors.GuestRefused(found.reason)
            return found

    @staticmethod
    async def _begin(qmp: Monitor, target: RbdDisk, present: str, speed: int) -> None:
        nodes = await qmp.do(*NODES)
        # What an interrupted try opened; nobody uses it.
        left = [node for node in disks.names(nodes) if node in (disks.luks_node(target), disks.rbd_node(target))]
        await _remove(qmp, disks.leave(target.volume_id, left))
        async with _all_or_nothing(qmp) as do:
            *opening, copy = disks.mirror(target, present, speed)
            await do(*opening)
            await do(copy)

    @staticmethod
    async def _complete(qmp: Monitor, target: RbdDisk) -> Mirror:
        """Have a job that is ready stop both images where they are, and wait for that.

        It must be told once (told twice, QEMU 7.2 never closes the former image), and somebody who died may have done
        it: then it is ready for a moment only.
        """
        await asyncio.sleep(COMPLETES_WITHIN)
        told, deadline = False, time.monotonic() + qmp.timeout
        while True:
            found, status, _node = await _look(qmp, target)
            if found.phase != COPYING:
                return found
            if time.monotonic() > deadline:
                raise errors.GuestTimeout(qmp.server_id, "the copy does not come to an end")
            if status == "ready" and not told:
                await qmp.do("job-complete", {"id": disks.job(target.volume_id)})
                told = True
            else:
                await asyncio.sleep(JOB_AGAIN)

    @staticmethod
    async def _finalize(qmp: Monitor, target: RbdDisk) -> tuple[Mirror, str | None, str | None]:
        await qmp.do("job-finalize", {"id": disks.job(target.volume_id)})
        return await _look(qmp, target)

    async def _pivot(self, target: RbdDisk) -> None:
        async with self._hypervisor._session(self._machine) as qmp:
            found, _status, node = await _look(qmp, target)
            if found.phase == ABSENT:
                await self._clear(qmp, target.volume_id)
                return
            if found.phase == EQUAL:
                found, _status, node = await self._finalize(qmp, target)
            if found.phase != MOVED:
                raise errors.GuestRefused(found.reason or "the disk still uses the image that it had")
            await _let_go(qmp, target.volume_id, node)

    async def _unmirror(self, target: RbdDisk) -> None:
        async with self._hypervisor._session(self._machine) as qmp:
            found, _status, node = await _look(qmp, target)
            if found.phase == ABSENT:
                await self._clear(qmp, target.volume_id)
                return
            if found.phase == MOVED:
                raise errors.GuestRefused("the disk uses the other image already")
            await _let_go(qmp, target.volume_id, node)


@contextlib.asynccontextmanager
async def _all_or_nothing(qmp: Monitor) -> AsyncIterator[Do]:
    """Do commands, and undo all of them if one is refused; after a time-out nothing more is sent.

    Those that are given together are sent together, for a busy QEMU wakes up once for them: each must be refused if
    one before it was, or do no harm.
    """
    undo: list[tuple[str, Mapping[str, Any]]] = []

    async def do(*commands: disks.Command) -> None:
        sent = (qmp.do(command.name, command.arguments) for command in commands)
        answers = await asyncio.gather(*sent, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        undo.extend(
            command.undo
            for command, answer in zip(commands, answers, strict=True)
            if command.undo is not None and not isinstance(answer, BaseException)
        )
        # What has no answer counts more than what was refused: its end is unknown.
        for error in sorted(failed, key=lambda error: isinstance(error, Refused)):
            raise error

    try:
        yield do
    except (Refused, errors.NoFreePlace):
        for name, arguments in reversed(undo):
            # What cannot be undone is found and removed by the next attach or detach; the first reason counts.
            with contextlib.suppress(Refused):
                await qmp.do(name, arguments)
        raise


async def _remove(qmp: Monitor, commands: Iterable[disks.Command]) -> None:
    """Remove things, each when its last user has let it go; what is not there is fine."""
    deadline = time.monotonic() + RELEASE_MOST
    left = list(commands)
    while left:
        tries = (qmp.try_(command.name, command.arguments) for command in left)
        answers = await asyncio.gather(*tries, return_exceptions=True)
        for answer in answers:
            used = isinstance(answer, Refused) and answer.says_used
            if isinstance(answer, BaseException) and not (used and time.monotonic() < deadline):
                raise answer
        left = [command for command, answer in zip(left, answers, strict=True) if answer is not None]
        if left:
            await asyncio.sleep(0.05)


async def _look(qmp: Monitor, target: RbdDisk) -> tuple[Mirror, str | None, str | None]:
    """How far a disk is on its way to an image, the status of the job and the node that the disk uses now."""
    there, nodes, jobs = await qmp.ask_guest(PERIPHERALS, NODES, JOBS)
    node = disks.used(target.volume_id, nodes)
    if target.volume_id not in disks.volumes(there):
        return Mirror(ABSENT), None, node
    if node == disks.base_node(target):
        return Mirror(MOVED), None, node
    job = _job(target.volume_id, jobs)
    if job is None:
        return Mirror(NONE), None, node
    status, done, total = str(job["status"]), int(job["current-progress"]), int(job["total-progress"])
    phase = {"pending": EQUAL, "aborting": FAILED, "concluded": FAILED, "null": FAILED}.get(status, COPYING)
    return Mirror(phase, done, total, str(job.get("error", "the copy has ended"))), status, node


def _job(volume_id: str, jobs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((one for one in jobs if one["id"] == disks.job(volume_id)), None)


async def _let_go(qmp: Monitor, volume_id: str, keep: str | None) -> None:
    """End the job of a disk, and close what it could use but the node that it does use, and what that is made of."""
    nodes, jobs = await qmp.ask(NODES, JOBS)
    await _end_job(qmp, volume_id, jobs)
    kept = () if keep is None else (keep[1:],)
    left = [node for node in disks.below(volume_id, disks.names(nodes)) if node[1:] not in kept]
    await _remove(qmp, disks.leave(volume_id, left))


async def _end_job(qmp: Monitor, volume_id: str, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Break off the job of a disk and forget it. Raises GuestTimeout if it does not end, as with Ceph frozen."""
    job, name = _job(volume_id, jobs), {"id": disks.job(volume_id)}
    if job is not None and job["status"] not in ("aborting", "concluded"):
        await qmp.do("job-cancel", name)
    deadline = time.monotonic() + qmp.timeout
    while job is not None and job["status"] != "concluded":
        if time.monotonic() > deadline:
            raise errors.GuestTimeout(qmp.server_id, "the copy of a disk does not end")
        await asyncio.sleep(JOB_AGAIN)
        job = _job(volume_id, await qmp.do(*JOBS))
    if job is not None:
        await qmp.try_("job-dismiss", name)


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
