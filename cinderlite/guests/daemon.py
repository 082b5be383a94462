# SPDX-License-Identifier: Apache-2.0
"""One libvirt daemon: the connection to it, calls with an end to their waiting, libvirt's errors become ours.

Nothing here knows of domains' insides. libvirt's calls block, some for as long as QEMU or a network does, so each runs
in a thread of its own, at most `most` at a time for one daemon, and whoever waits for it leaves at its time-out. A
daemon that cannot be reached is left alone for a while: meanwhile every call is refused at once.

What a newcomer gets wrong: a call that ended in a time-out goes on. It may do its work yet, so nothing is sent after it
to the same domain before it has ended. And events come in the one thread that also keeps every connection alive: who is
told there notes it and returns.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from cinderlite import errors, metrics
from cinderlite.guests import disks, threads

LOG = logging.getLogger(__name__)

#: Seconds between two questions of a quiet connection whether the other end lives; after three without an answer it is
#: broken, and with it every call over it ends.
KEEPALIVE = 5
#: Seconds for which a daemon that could not be reached is not tried again.
REST = 5.0
#: What is done for no domain; like a domain each has one call at a time that nobody waits for any more.
_CONNECT, _PROBE, _LIST = "(connecting)", "(probe)", "(list)"
#: libvirt's words when something else was quicker: a disk with that name or address, or the end of the domain's QEMU.
QUICKER = (
    "already exists", "already contains a disk with that address", "not running", "no longer running",
    "unexpectedly quit", "read from monitor", "write to monitor",
)  # fmt: skip

T = TypeVar("T")
#: Takes the id of a domain, and libvirt's name of a device if that is gone from it.
Told = Callable[[str, str | None], None]


class Again(Exception):
    """Something else was quicker, such as another disk with the name chosen: look again, then try again."""


class _Dead(Exception):
    """The connection broke."""


@functools.cache
def library() -> Any:
    """libvirt's bindings, with the one event loop that it wants in each process; without it there is no keep-alive."""
    import libvirt

    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # Else it writes to stderr what it raises too.
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()
    return libvirt


@functools.cache
def agents() -> Any:
    """The part of libvirt's bindings that speaks to guest agents."""
    import libvirt_qemu

    return libvirt_qemu


class Daemon:
    """The daemon behind a URI. Time-outs in seconds; what only looks has that of connecting.

    `told` is called in the thread of the events, with what happens to domains while there is a connection.
    """

    def __init__(self, uri: str, *, connect_timeout: float, call_timeout: float, most: int, told: Told) -> None:
        self.uri = uri
        self._told = told
        self.connect_timeout = connect_timeout
        self.call_timeout = call_timeout
        self._most = most
        self._slots = threading.BoundedSemaphore(most)
        self._connecting = threading.Lock()
        self._connection: Any = None
        self._closed = False
        #: Until when it is not tried, by the monotonic clock, and why.
        self._resting = 0.0, ""
        #: Domain → calls that were given up by who waited for them and have not ended.
        self._stuck: collections.Counter[str] = collections.Counter()
        self._counting = threading.Lock()

    def call(self, server_id: str, work: Callable[[Any], T], *, changes: bool = False, longer: float = 0.0) -> T:
        """What `work` makes of a connection; it may take so many seconds `longer` than other calls.

        Raises GuestUnreachable if nothing was changed, GuestTimeout if it is one that `changes` and its end is unknown,
        GuestGone, GuestRefused, Again, and what `work` raises.
        """
        connection = self._connected(server_id)
        unknown = errors.GuestTimeout if changes else errors.GuestUnreachable
        seconds = (self.call_timeout if changes else self.connect_timeout) + longer
        try:
            return self._run(server_id or _LIST, lambda: self._translated(connection, server_id, work), seconds)
        except _Dead as error:
            self._drop(connection, str(error))
            raise unknown(server_id, f"the connection to libvirt broke: {error}") from None
        except TimeoutError:
            self._probe(connection)
            raise unknown(server_id, f"libvirt did not end a call within {seconds:g} s") from None

    def close(self) -> None:
        """Let go of the connection; calls that are under way end by themselves."""
        self._closed = True
        with self._connecting:
            self._part(self._connection)
            self._connection = None

    # -- the connection

    def _connected(self, server_id: str) -> Any:
        if self._connection is not None and not self._closed:
            return self._connection
        until, why = self._resting
        # While somebody finds out whether it is back nobody else waits for that.
        patience = 0 if why else self.connect_timeout
        if self._closed or time.monotonic() < until or not self._connecting.acquire(timeout=patience):
            raise errors.GuestUnreachable(server_id, "the service is stopping" if self._closed else why)
        try:
            if self._connection is None:
                self._connection = self._run(_CONNECT, self._open, self.connect_timeout, self._part)
                if self.silent:
                    LOG.info("libvirt at %s answers again", self.uri)
                self._resting = 0.0, ""
        except (TimeoutError, _Dead, errors.GuestUnreachable) as error:
            why = str(error) if isinstance(error, _Dead) else "no answer in time"
            self._rest(REST, why)
            raise errors.GuestUnreachable(server_id, self._resting[1]) from None
        finally:
            self._connecting.release()
        return self._connection

    def _open(self) -> Any:
        libvirt, connection = library(), None
        try:
            connection = libvirt.open(self.uri)
            with contextlib.suppress(libvirt.libvirtError):  # Not every transport can do it.
                connection.setKeepAlive(KEEPALIVE, 3)
            self._subscribe(connection)
        except libvirt.libvirtError as error:
            self._part(connection)
            raise _Dead(error.get_error_message()) from None
        return connection

    def _subscribe(self, connection: Any) -> None:
        """Have libvirt tell what happens. What happened while nobody listened has to be looked for."""
        libvirt = library()
        # The bindings keep what they are given for as long as it is registered, which the connection is not to be.
        told, matters = (
            self._told,
            {getattr(libvirt, f"VIR_DOMAIN_EVENT_{name}") for name in ("STARTED", "STOPPED", "CRASHED", "UNDEFINED")},
        )

        def lifecycle(_connection: Any, domain: Any, event: int, _detail: int, _opaque: None) -> None:
            if event in matters:
                told(domain.UUIDString(), None)

        def removed(_connection: Any, domain: Any, alias: str, _opaque: None) -> None:
            told(domain.UUIDString(), alias)

        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed),
        ):
            connection.domainEventRegisterAny(None, event, callback, None)

    def _probe(self, connection: Any) -> None:
        """After a call without an end: drop the connection, unless it is only that call's domain that hangs."""
        try:
            self._run(_PROBE, lambda: self._translated(connection, "", lambda one: one.getLibVersion()), REST / 2)
        except (TimeoutError, _Dead, errors.CinderliteError):
            self._drop(connection, "no answer in time")

    def _drop(self, connection: Any, why: str) -> None:
        with self._connecting:
            if self._connection is connection:
                self._connection = None
                self._rest(REST / 5, why)
        self._part(connection)

    @property
    def silent(self) -> str:
        """Why it could not be reached when that was last tried; empty if it could."""
        return self._resting[1]

    def _rest(self, seconds: float, why: str) -> None:
        sentence = f"libvirt at {self.uri} cannot be reached: {why}"
        if not self.silent:
            LOG.warning("%s", sentence)
            metrics.SILENT_GUESTS.inc()
        self._resting = time.monotonic() + seconds, sentence

    def _part(self, connection: Any) -> None:
        if connection is not None:
            # It says good-bye, which waits for a daemon that does not answer.
            threads.begin("libvirt-close", functools.partial(_close, connection))

    # -- calls

    def _run(
        self, subject: str, work: Callable[[], T], seconds: float, late: Callable[[T], None] = lambda _made: None
    ) -> T:
        """What `work` returns, in a thread of its own; `late` gets it when nobody waits for it any more.

        Raises TimeoutError when it has not ended in time.
        """
        deadline = time.monotonic() + seconds
        if subject and self._stuck[subject]:
            raise errors.GuestUnreachable(subject, "an earlier call of libvirt's on it has not ended yet")
        if not self._slots.acquire(timeout=seconds):
            raise errors.GuestUnreachable(subject, f"{self._most} calls are in hand already")
        future = threads.begin("libvirt", work)
        future.add_done_callback(lambda _done: self._slots.release())
        try:
            return future.result(max(deadline - time.monotonic(), 0.01))
        except concurrent.futures.TimeoutError:
            if future.done():
                return future.result()
            self._count(subject, 1)

            def ended(done: concurrent.futures.Future[T]) -> None:
                self._count(subject, -1)
                if done.exception() is None:
                    late(done.result())

            future.add_done_callback(ended)
            raise

    def _count(self, subject: str, more: int) -> None:
        with self._counting:
            self._stuck[subject] += more
            self._stuck += collections.Counter()  # drops those that are at zero

    @staticmethod
    def _translated(connection: Any, server_id: str, work: Callable[[Any], T]) -> T:
        libvirt = library()
        try:
            return work(connection)
        except libvirt.libvirtError as error:
            raise _ours(libvirt, connection, server_id, error) from None


def _close(connection: Any) -> None:
    libvirt = library()
    # What is registered holds the connection: it would stay open, and go on telling.
    for callback in list(getattr(connection, "domainEventCallbackID", ())):
        with contextlib.suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(callback)
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


def _ours(libvirt: Any, connection: Any, server_id: str, error: Any) -> Exception:
    text = error.get_error_message() or "libvirt gave no reason"
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return errors.GuestGone(server_id)
    if not _lives(libvirt, connection):
        return _Dead(text)
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return errors.GuestUnreachable(server_id, "another operation on it takes long")
    if "No more available PCI" in text:
        return disks.no_free_place()
    if any(word in text for word in QUICKER):
        return Again(text)
    return errors.GuestRefused(text)


def _lives(libvirt: Any, connection: Any) -> bool:
    try:
        return bool(connection.isAlive() == 1)
    except libvirt.libvirtError:
        return False


@contextlib.contextmanager
def unless(code: str) -> Iterator[None]:
    """Pass over libvirt's error of that name, such as VIR_ERR_NO_SECRET: what was to go is gone."""
    libvirt = library()
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != getattr(libvirt, code):
            raise
