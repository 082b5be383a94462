# SPDX-License-Identifier: Apache-2.0
"""The domains of one libvirt daemon as servers. The XML that is read and sent is made in `domains`.

A domain that is defined keeps its disks while it is off: they are in the description that it is started with. So a disk
is plugged into both, what runs and what will be started; and it is taken out of what runs first, and only when the
guest has let it go out of the other. A domain that is off, or was killed, is therefore not gone: gone is what libvirt
does not know any more.

What a newcomer gets wrong: not finding a server is no proof that there is none while the daemon cannot be asked. `find`
says GuestUnreachable then, or the volumes of a server would be given to somebody else while its host is away.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from cinderlite import errors, failpoints
from cinderlite.guests import (
    ABSENT,
    DISK_WITHIN,
    NONE,
    RUNNING,
    Heard,
    Mirror,
    RbdDisk,
    Server,
    daemon,
    disks,
    domains,
    threads,
)
from cinderlite.guests.agent import NoChannel
from cinderlite.guests.daemon import Again, Daemon, library
from cinderlite.guests.domains import Place, View

#: What a disk can be plugged into: of a domain that is off, the description that it will be started with.
PLUGGABLE = RUNNING | {"SHUTOFF"}
#: Seconds after which a domain's owner and name are read again.
DESCRIBED_FOR = 30.0
#: Times that a change is tried anew when something else was quicker.
ATTEMPTS = 8

#: Seconds for which libvirt waits for a sign of life of a guest's agent.
SIGN_OF_LIFE = 5.0
#: Seconds between two looks whether a guest has let go, should nobody tell.
LOOK_AGAIN = 0.5

T = TypeVar("T")
Observe = Callable[[str, float, bool], None]


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    """A server as it was when it was last asked how it is (`asked`) and who it is (`described`)."""

    server: Server
    asked: float
    described: float


class LibvirtHypervisor:
    """Every domain of one daemon; `host` is how the servers on it are said to be on, `refresh` as for QmpHypervisor."""

    def __init__(
        self,
        uri: str,
        *,
        host: str,
        connect_timeout: float,
        call_timeout: float,
        threads: int,
        refresh: float = 1.0,
        agent_timeout: float = 5.0,
        observe: Observe | None = None,
    ) -> None:
        self.host = host
        self.agent_timeout = agent_timeout
        self._daemon = Daemon(
            uri, connect_timeout=connect_timeout, call_timeout=call_timeout, most=threads, told=self._told
        )
        self._heard: Heard | None = None
        #: Who waits for something to happen to a domain, by its id.
        self._waiting: list[tuple[str, threading.Event]] = []
        self._refresh = refresh
        self._observe = observe or (lambda _verb, _seconds, _ok: None)
        self._known: dict[str, _Known] = {}
        self._looked = -math.inf
        self._looking = threading.Lock()

    # -- the interface

    def servers(self) -> Sequence[Server]:
        """Every domain; of a daemon that cannot be asked those that it had, each in ERROR."""
        with self._looking:
            if time.monotonic() - self._looked >= self._refresh:
                try:
                    with self.observed("servers"):
                        self._known = self._daemon.call("", self._look)
                except (errors.Unavailable, errors.GuestRefused):
                    self._known = {key: _unasked(one) for key, one in self._known.items()}
                self._looked = time.monotonic()
        return [one.server for one in self._known.values()]

    def find(self, server_id: str, *, fresh: bool = True) -> LibvirtGuest:
        """The domain of that UUID, running or not; its status is asked unless not `fresh`.

        Raises ServerNotFound, GuestUnreachable if that cannot be told now.
        """
        if not disks.is_uuid(server_id):
            raise errors.ServerNotFound(server_id)
        known = self._known.get(server_id)
        if known is None or (fresh and time.monotonic() - known.asked >= self._refresh):
            try:
                known = self._daemon.call(server_id, lambda connection: self._ask(connection, server_id, known))
            except errors.GuestGone as error:
                self._known.pop(server_id, None)
                raise errors.ServerNotFound(server_id) from error
            except (errors.Unavailable, errors.GuestRefused):
                if known is None:
                    raise
                known = _unasked(known)
            self._known[server_id] = known
        return LibvirtGuest(self, known.server)

    @property
    def hosts(self) -> frozenset[str]:
        """See `guests.Hypervisor.hosts`."""
        return frozenset({self.host})

    def ended(self, server_id: str, ago: float) -> bool:
        """See `guests.Hypervisor.ended`: libvirt does not know it any more."""
        del ago
        try:
            self.find(server_id)
        except errors.ServerNotFound:
            return True
        except (errors.Unavailable, errors.GuestRefused):
            return False
        return False

    def silent(self) -> Sequence[str]:
        """See `guests.Hypervisor.silent`."""
        return [self._daemon.silent] if self._daemon.silent else []

    def listen(self, heard: Heard) -> None:
        """See `guests.Hypervisor.listen`: from the first question on, and while there is a connection."""
        self._heard = heard

    @contextlib.contextmanager
    def awaited(self, server_id: str) -> Iterator[threading.Event]:
        """An event that is set whenever something happens to a domain."""
        waiting = server_id, threading.Event()
        self._waiting.append(waiting)
        try:
            yield waiting[1]
        finally:
            self._waiting.remove(waiting)

    def _told(self, server_id: str, device: str | None) -> None:
        """What libvirt says has happened, in the thread of its events."""
        for name, rung in tuple(self._waiting):
            if name == server_id:
                rung.set()
        volume_id = None if device is None else domains.volume_of(device)
        known = self._known.get(server_id)
        if device is None and known is not None:  # It is another's status now.
            self._known[server_id] = dataclasses.replace(known, asked=-math.inf)
            self._looked = -math.inf
        if self._heard is not None and (device is None or volume_id is not None):
            self._heard(server_id, volume_id)

    def close(self) -> None:
        """Let go of the connection."""
        self._daemon.close()

    @contextlib.contextmanager
    def observed(self, verb: str) -> Iterator[None]:
        """Count what is done in it."""
        began, done = time.monotonic(), False
        try:
            yield
            done = True
        finally:
            self._observe(verb, time.monotonic() - began, done)

    def call(self, server_id: str, work: Callable[[Any], T], *, changes: bool, longer: float = 0.0) -> T:
        """What `work` makes of a domain. Raises what `Daemon.call` does."""

        def look_up(connection: Any) -> T:
            return work(connection.lookupByUUIDString(server_id))

        for _ in range(ATTEMPTS):
            with contextlib.suppress(Again):
                return self._daemon.call(server_id, look_up, changes=changes, longer=longer)
        raise errors.GuestUnreachable(server_id, "it is being changed all the time")

    def free(self, server_id: str, work: Callable[[Any], None]) -> None:
        """Have `work` done with the connection, for what is not a domain's."""
        self._daemon.call(server_id, work, changes=True)

    # -- which domains there are

    def _look(self, connection: Any) -> dict[str, _Known]:
        """All of them in one question, beside those that are seen for the first time."""
        libvirt = library()
        flag = libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE
        saved = {domain.UUIDString() for domain in connection.listAllDomains(flag)}
        found = {}
        for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
            server_id = domain.UUIDString()
            state = stats.get("state.state", libvirt.VIR_DOMAIN_NOSTATE)
            status = "SUSPENDED" if server_id in saved else _status(state)
            with daemon.unless("VIR_ERR_NO_DOMAIN"):  # It ended meanwhile.
                found[server_id] = self._learn(domain, server_id, status, self._known.get(server_id))
        return found

    def _ask(self, connection: Any, server_id: str, known: _Known | None) -> _Known:
        domain = connection.lookupByUUIDString(server_id)
        status = _status(domain.state()[0])
        if status == "SHUTOFF" and domain.hasManagedSaveImage():
            status = "SUSPENDED"
        return self._learn(domain, server_id, status, known)

    def _learn(self, domain: Any, server_id: str, status: str, known: _Known | None) -> _Known:
        now = time.monotonic()
        if known is not None and now - known.described < DESCRIBED_FOR:
            return _Known(dataclasses.replace(known.server, status=status), now, known.described)
        said = domains.parse(domain.XMLDesc(0))
        owner = domains.owner(said)
        if not owner.project_id:
            # `virsh metadata --config` of one that runs is told only here.
            with daemon.unless("VIR_ERR_OPERATION_INVALID"):
                owner = domains.owner(domains.parse(domain.XMLDesc(library().VIR_DOMAIN_XML_INACTIVE)))
        server = Server(
            server_id, domains.name(said), status, owner.project_id, owner.user_id, self.host, owner.created,
            owner.flavor, owner.metadata, attachable=PLUGGABLE,
        )  # fmt: skip
        return _Known(server, now, now)


class _Late(Exception):
    """The disk is not made yet."""


def _soon(disk: RbdDisk | Future[RbdDisk]) -> RbdDisk:
    """The disk, if it is made within the time that a server waits for one. Raises _Late, and what its making raises."""
    try:
        return disk.result(DISK_WITHIN) if isinstance(disk, Future) else disk
    except TimeoutError:
        raise _Late from None


def _unasked(known: _Known) -> _Known:
    return dataclasses.replace(known, server=dataclasses.replace(known.server, status="ERROR"), asked=time.monotonic())


def _status(state: int) -> str:
    """Nova's word for libvirt's state."""
    libvirt = library()
    return {
        libvirt.VIR_DOMAIN_RUNNING: "ACTIVE",
        libvirt.VIR_DOMAIN_BLOCKED: "ACTIVE",
        libvirt.VIR_DOMAIN_SHUTDOWN: "ACTIVE",  # It has been asked to end, and has not ended.
        libvirt.VIR_DOMAIN_PAUSED: "PAUSED",
        libvirt.VIR_DOMAIN_PMSUSPENDED: "SUSPENDED",
        libvirt.VIR_DOMAIN_SHUTOFF: "SHUTOFF",
    }.get(state, "ERROR")


class LibvirtGuest:
    """One domain."""

    def __init__(self, hypervisor: LibvirtHypervisor, server: Server) -> None:
        self._hypervisor = hypervisor
        self._server = server

    @property
    def server(self) -> Server:
        """The domain as its tenant sees it, as just asked."""
        return self._server

    def attach(self, disk: RbdDisk | Future[RbdDisk], taken: Collection[str]) -> str:
        """See `guests.Guest.attach`."""
        with self._hypervisor.observed("attach"):
            with contextlib.suppress(_Late):
                return self._do(lambda domain: self._attach(domain, lambda: _soon(disk), taken))
            ready = threads.result(disk)  # Here, since no thread of the daemon's should wait long for Ceph.
            return self._do(lambda domain: self._attach(domain, lambda: ready, taken))

    def detach(self, volume_id: str, wait: float, let_go: Callable[[], None] | None = None) -> None:
        """See `guests.Guest.detach`."""
        with self._hypervisor.observed("detach"):
            try:
                with self._hypervisor.awaited(self._server.id) as rung:
                    if self._do(lambda domain: self._ask_back(domain, volume_id)):
                        self._await(volume_id, wait, rung)
                self._do(lambda domain: self._take_out(domain, volume_id, let_go))
            except errors.GuestGone:
                self._hypervisor.free(self._server.id, lambda connection: self._drop_secrets(connection, volume_id))
                raise

    def _await(self, volume_id: str, wait: float, rung: threading.Event) -> None:
        """Until the guest has let the disk go: looked for when libvirt tells something, and at times.

        Here, since no thread of the daemon's should wait for a guest.
        """
        deadline = time.monotonic() + wait
        while self._do(lambda domain: volume_id in domains.volumes(_view(domain).live), changes=False):
            left = deadline - time.monotonic()
            if left <= 0:
                raise errors.DeviceHeld(self._server.id)
            rung.wait(min(left, LOOK_AGAIN))
            rung.clear()

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """See `guests.Guest.resize`."""

        def resize(domain: Any) -> None:
            there = domains.volumes(_view(domain).live)
            if volume_id in there:
                domain.blockResize(
                    domains.target(there[volume_id]), size_bytes, library().VIR_DOMAIN_BLOCK_RESIZE_BYTES
                )

        self._call("resize", resize)

    def limit(self, limits: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
        """See `guests.Guest.limit`."""
        return self._call("limit", lambda domain: self._limit(domain, limits))

    def mirrored(self, target: RbdDisk) -> Mirror:
        """See `guests.Guest.mirrored`: it never is. libvirt names no cluster, and two may have an image of one name."""
        there = self._do(lambda domain: _view(domain).anywhere, changes=False)
        return Mirror(NONE if target.volume_id in there else ABSENT)

    def mirror(self, target: RbdDisk, speed: int, arrived: Callable[[], None]) -> Mirror:
        """See `guests.Guest.mirror`: not with libvirt. Nothing is changed."""
        del target, speed, arrived
        raise errors.GuestRefused("a disk of a server of libvirt's is not copied while the server has it")

    def pivot(self, target: RbdDisk) -> None:
        """See `guests.Guest.pivot`."""
        if self.mirrored(target).phase == NONE:
            raise errors.GuestRefused("the disk still uses the image that it had")

    def unmirror(self, target: RbdDisk) -> None:
        """See `guests.Guest.unmirror`: there is nothing to undo."""

    def is_frozen(self) -> bool | None:
        """See `guests.Guest.is_frozen`."""
        with self._hypervisor.observed("is_frozen"):
            try:
                return bool(self._ask_agent("guest-fsfreeze-status", self._hypervisor.agent_timeout) == "frozen")
            except (errors.GuestUnreachable, errors.GuestTimeout, errors.GuestRefused):
                self.disks()  # Raises GuestGone.
                return None

    def freeze(self, seconds: float) -> int:
        """See `guests.Guest.freeze`."""
        with self._hypervisor.observed("freeze"):
            count = self._ask_agent("guest-fsfreeze-freeze", seconds)
        if not isinstance(count, int):
            raise errors.GuestRefused("no sense in its answer")
        return count

    def thaw(self) -> None:
        """See `guests.Guest.thaw`."""
        with self._hypervisor.observed("thaw"), contextlib.suppress(NoChannel):
            self._ask_agent("guest-fsfreeze-thaw", self._hypervisor.agent_timeout)

    def _ask_agent(self, command: str, seconds: float) -> Any:
        """What the guest's agent answers. Raises NoChannel, GuestGone, GuestRefused, GuestUnreachable, GuestTimeout.

        Not by libvirt's own call for freezing, which waits without an end, and meanwhile nobody could thaw.
        """
        text = json.dumps({"execute": command})

        def ask(domain: Any) -> Any:
            if not domain.isActive():
                raise errors.GuestGone(self._server.id)
            with _agent_errors(self._server.id, command):
                answer = daemon.agents().qemuAgentCommand(domain, text, math.ceil(seconds), 0)
            try:
                return json.loads(answer).get("return")
            except (ValueError, AttributeError, RecursionError):  # Whatever a hostile guest sends.
                raise errors.GuestRefused("no sense in its answer") from None

        # Before it says a command libvirt asks for a sign of life, for as long as it likes.
        return self._hypervisor.call(self._server.id, ask, changes=True, longer=seconds + SIGN_OF_LIFE)

    def disks(self) -> frozenset[str]:
        """See `guests.Guest.disks`."""
        with self._hypervisor.observed("disks"):
            return self._do(lambda domain: _view(domain).now, changes=False)

    def boots_from(self) -> str | None:
        """See `guests.Guest.boots_from`."""
        with self._hypervisor.observed("boots_from"):
            return self._do(lambda domain: _view(domain).root, changes=False)

    def places(self) -> Mapping[str, Any]:
        """See `guests.Guest.places`: libvirt keeps that itself."""
        return {}

    def room(self) -> Mapping[str, int]:
        """See `guests.Guest.room`."""
        with self._hypervisor.observed("room"):
            return self._do(lambda domain: domains.room(_view(domain)), changes=False)

    def _call(self, verb: str, work: Callable[[Any], T]) -> T:
        with self._hypervisor.observed(verb):
            return self._do(work)

    def _do(self, work: Callable[[Any], T], *, changes: bool = True) -> T:
        return self._hypervisor.call(self._server.id, work, changes=changes)

    # -- in a thread of the daemon's

    def _attach(self, domain: Any, made: Callable[[], RbdDisk], taken: Collection[str]) -> str:
        self._refuse_busy(domain)
        status = _status(domain.state()[0])
        if status not in PLUGGABLE or domain.hasManagedSaveImage():
            raise errors.GuestRefused("the server is neither running nor shut off, and takes no disk in that state")
        view = _view(domain)
        disk = made()
        domains.refuse_namespace(disk)
        there = view.anywhere.get(disk.volume_id)
        if there is None:
            found: Iterator[Place] = domains.places(view, taken, disk.tuning.bus)
        elif domains.is_image(there, disk):
            found = iter([domains.place_of(there)])
        else:
            raise errors.GuestRefused("a disk with the volume's serial number is there, but of another image")
        flags = _missing(view, disk.volume_id)
        place = self._plug(domain, disk, found, flags) if flags else next(found)
        return f"/dev/{place.name}"

    def _plug(self, domain: Any, disk: RbdDisk, found: Iterator[Place], flags: int) -> Place:
        """Into what lacks it, or into nothing."""
        libvirt, connection = library(), domain.connect()
        _keep_secrets(connection, disk, self._server.id)
        try:
            for place in found:
                with _unless_said("No more available PCI"):  # Another bus may have room.
                    _pass("attachDeviceFlags")
                    domain.attachDeviceFlags(domains.make(disk, self._server.id, place), flags)
                    return place
            raise disks.no_free_place(disk.tuning.bus)
        except (libvirt.libvirtError, errors.NoFreePlace):
            if _missing(_view(domain), disk.volume_id) != flags:
                # It plugged the disk in and could not write that down, or the like: only a detach makes that good.
                raise errors.GuestTimeout(self._server.id, "libvirt did half of it") from None
            if disk.volume_id not in _view(domain).anywhere:
                self._drop_secrets(connection, disk.volume_id)
            raise

    def _ask_back(self, domain: Any, volume_id: str) -> bool:
        """Ask the guest for the disk; whether it has it at all."""
        there = domains.volumes(_view(domain).live)
        if volume_id not in there:
            return False
        self._refuse_busy(domain)
        with daemon.unless("VIR_ERR_DEVICE_MISSING"), _unless_said(*disks.UNPLUGS):
            # Unlike detachDeviceFlags it does not wait, with the domain locked, for as long as libvirt likes.
            _pass("detachDeviceAlias")
            domain.detachDeviceAlias(domains.alias(there[volume_id]), library().VIR_DOMAIN_AFFECT_LIVE)
        return True

    def _take_out(self, domain: Any, volume_id: str, let_go: Callable[[], None] | None) -> None:
        """Out of what it will be started with, when what runs does not have it."""
        there = domains.volumes(_view(domain).config)
        if volume_id in there:
            if domain.hasManagedSaveImage():
                raise errors.DeviceHeld(self._server.id)
            _pass("detachDeviceFlags")
            domain.detachDeviceFlags(domains.text(there[volume_id]), library().VIR_DOMAIN_AFFECT_CONFIG)
        if volume_id in domains.volumes(_view(domain).live):  # It was started meanwhile.
            raise errors.DeviceHeld(self._server.id)
        if let_go is not None:
            let_go()
        self._drop_secrets(domain.connect(), volume_id)

    def _limit(self, domain: Any, wanted: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
        libvirt, view = library(), _view(domain)
        for element, flag in (
            (view.live, libvirt.VIR_DOMAIN_AFFECT_LIVE),
            (view.config, libvirt.VIR_DOMAIN_AFFECT_CONFIG),
        ):
            there = domains.volumes(element)
            for volume_id in sorted(there.keys() & wanted.keys()):
                if not domains.same_limits(there[volume_id], wanted[volume_id]):
                    tuning = domains.tuning(wanted[volume_id])
                    domain.setBlockIoTune(domains.target(there[volume_id]), tuning, flag)
        return view.now

    def _drop_secrets(self, connection: Any, volume_id: str) -> None:
        for kind in ("ceph", "volume"):
            with daemon.unless("VIR_ERR_NO_SECRET"):
                name = domains.secret_id(kind, self._server.id, volume_id)
                held = connection.secretLookupByUUIDString(name)
                _pass("undefine")
                held.undefine()

    def _refuse_busy(self, domain: Any) -> None:
        """Raise GuestUnreachable while the domain is on its way to another host: libvirt would let us wait for that."""
        libvirt = library()
        moving = libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
        if not domain.isActive():
            return
        if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE and domain.jobStats().get("operation") in moving:
            raise errors.GuestUnreachable(self._server.id, "it is being migrated")


def _view(domain: Any) -> View:
    libvirt = library()
    live = domains.parse(domain.XMLDesc(0)) if domain.isActive() else None
    config = domains.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if domain.isPersistent() else None
    return View(live, config)


def _missing(view: View, volume_id: str) -> int:
    """The flags for what there is of a domain and lacks the disk."""
    libvirt = library()
    both = (view.live, libvirt.VIR_DOMAIN_AFFECT_LIVE), (view.config, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    flags = [flag for one, flag in both if one is not None and volume_id not in domains.volumes(one)]
    return int(sum(flags))


def _keep_secrets(connection: Any, disk: RbdDisk, server_id: str) -> None:
    """What opens the image, in libvirt's hands. Raises GuestRefused for a key that is none."""
    values = {}
    if disk.key is not None:
        try:
            values["ceph"] = base64.b64decode(disk.key, validate=True)
        except binascii.Error:
            raise errors.GuestRefused("the cephx key is not in base64") from None
    if disk.passphrase is not None:
        values["volume"] = disk.passphrase.encode()
    for kind, value in values.items():
        _pass("secretDefineXML")
        made = connection.secretDefineXML(domains.secret(kind, server_id, disk.volume_id))
        _pass("setValue")
        made.setValue(value)


def _pass(call: str) -> None:
    if failpoints.watch is not None:
        failpoints.watch(f"libvirt.{call}")


@contextlib.contextmanager
def _agent_errors(server_id: str, command: str) -> Iterator[None]:
    """libvirt's words for an agent that does not answer become ours."""
    libvirt = library()
    try:
        yield
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED:
            raise NoChannel(server_id, "there is no channel to an agent") from None
        # libvirt 9.0 has one word for an agent that was not told the command, and for one that did not answer to it.
        silent = "UNRESPONSIVE", "UNSYNCED", "COMMAND_TIMEOUT"
        if code in {getattr(libvirt, f"VIR_ERR_AGENT_{name}", None) for name in silent}:
            raise errors.GuestTimeout(server_id, f"its agent has no answer to {command}") from None
        raise


@contextlib.contextmanager
def _unless_said(*words: str) -> Iterator[None]:
    """Pass over an error that libvirt has no code for, only words, its own or QEMU's."""
    libvirt = library()
    try:
        yield
    except libvirt.libvirtError as error:
        if not any(word in error.get_error_message() for word in words):
            raise
