# SPDX-License-Identifier: Apache-2.0
"""The process's one connection to Ceph: made late, shared by all threads, bounded in time, renewed when it is cut off.

What happens to an image is in `images`; here are the connection, the threads that wait for librbd in our stead, the
breaker that spares requests the wait for a dead cluster, the table from errno to our errors, and the statistics.

What a newcomer gets wrong first:

* The time-outs of librados are not enough. While no monitor answers, opening an image for writing hangs for ever in
  spite of them. So every call runs in a thread of ours, and after `call_timeout` its caller leaves with `CephTimeout`;
  the call goes on, and what it does in the end is unknown until `CephTimeout.pending` ends.
* `rbd.OSError` and `rbd.PermissionError` are not Python's own: `except OSError` catches neither.
* A connection does not survive `fork()`: the child would hang in its first call. The child starts with nothing, and
  never even frees what it inherited, for that hangs too.
* Closing an I/O context that somebody uses crashes the process; so the last user of an old connection closes it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import configparser
import contextlib
import copy
import ctypes
import dataclasses
import errno
import logging
import math
import os
import pathlib
import queue
import re
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

from cinderlite import affinity, errors, failpoints
from cinderlite.ceph import cephx, checkup, fences, images, look, objects, rights, watches
from cinderlite.ceph.checkup import Facts
from cinderlite.ceph.data import OpenImage
from cinderlite.ceph.images import ImageInfo, SnapshotInfo
from cinderlite.ceph.look import Outline, Portrait

__all__ = [
    "Capacity",
    "Cluster",
    "Facts",
    "HeldImage",
    "ImageInfo",
    "OpenImage",
    "Outline",
    "Portrait",
    "SnapshotInfo",
]

LOG = logging.getLogger(__name__)

#: After a good probe, `check` believes in the cluster for so long.
FRESH_SECONDS = 1.0
#: After a bad one, `check` refuses at once for so long.
BREAKER_SECONDS = 2.0
#: Statistics are read anew after so long: on a pool of many images they cost more than a create.
CAPACITY_SECONDS = 5.0
#: The monitor map is asked anew after so long; it changes when an operator changes it.
MONITORS_SECONDS = 5.0
#: A user that may not make others is asked anew after so long; a new right counts for new connections only.
RIGHTS_SECONDS = 60.0

#: What an errno of librbd or librados means to us; any other becomes CephError.
BY_ERRNO: dict[int, type[errors.CinderliteError]] = {
    errno.ENOENT: errors.ImageNotFound,
    errno.EEXIST: errors.ImageExists,
    errno.EBUSY: errors.ImageBusy,
    errno.ENOTEMPTY: errors.ImageBusy,
    errno.ETIMEDOUT: errors.CephTimeout,  # an operation that timed out inside librados may still be applied
    errno.ECANCELED: errors.Superseded,  # only ever by the answer to "shall I go on?"
    errno.ESHUTDOWN: errors.CephUnavailable,
    errno.ENOTCONN: errors.CephUnavailable,
    errno.ECONNREFUSED: errors.CephUnavailable,
}
#: With these Ceph did answer, so they count as success of the call.
_ANSWERS = (errors.ImageNotFound, errors.ImageExists, errors.ImageBusy)
T = TypeVar("T")
#: Seconds for which a connection is kept at least, though no answer comes over it.
REPLACED_AFTER = 20.0
#: The probe is a subject like an image: while one is stuck, no second one is started.
_PROBE = "(the probe)"


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes of the pool: what users can store in all, what is left, what is stored, and what images promise."""

    total_bytes: int
    free_bytes: int
    used_bytes: int
    provisioned_bytes: int


class HeldImage:
    """An image that is open to be looked at again: another open takes ten times as long. Who asked for it closes it.

    A call that nobody waits for any more may still use it then: librbd would use what is freed. So the last one closes.
    """

    def __init__(self, image: Any, look: Callable[[HeldImage], list[str]], end: Callable[[], None]) -> None:
        self._image = image
        self._look = look
        self._end = end
        self._lock = threading.Lock()
        self._users = 1

    def watchers(self) -> list[str]:
        """Addresses of the foreign clients that have it open now. Raises ImageNotFound, and what any method may."""
        return self._look(self)

    @contextlib.contextmanager
    def used(self) -> Iterator[Any]:
        """librbd's image. Raises CephUnavailable after it was closed."""
        with self._lock:
            if not self._users:
                raise errors.CephUnavailable("the image was closed")
            self._users += 1
        try:
            yield self._image
        finally:
            self.close()

    def close(self) -> None:
        """Use it no more. Nobody waits for its end, which can take long."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            threading.Thread(target=self._end, name="ceph-close", daemon=True).start()


@dataclasses.dataclass(eq=False, slots=True)
class _Connection:
    rados: Any
    ioctx: Any
    addresses: frozenset[str]
    users: int = 0
    retired: bool = False
    made: float = dataclasses.field(default_factory=time.monotonic)
    #: The connection that this one is, within a namespace.
    whole: _Connection | None = None

    @contextlib.contextmanager
    def within(self, pool: str, namespace: str) -> Iterator[_Connection]:
        """The same with an I/O context of a namespace, for as long as it is used."""
        if not namespace:
            yield self
            return
        with images.place(self.rados, pool, namespace) as ioctx:
            yield _Connection(self.rados, ioctx, self.addresses, whole=self)

    def shut_down(self) -> None:
        self.ioctx.close()
        self.rados.shutdown()


@dataclasses.dataclass(eq=False, slots=True)
class _Task:
    work: Callable[[_Task], Any]
    subject: str | None
    #: Whether it takes as long as there are data.
    long: bool = False
    future: concurrent.futures.Future[Any] = dataclasses.field(default_factory=concurrent.futures.Future)
    begun: bool = False
    done: bool = False
    abandoned: bool = False


class _Threads:
    """At most `limit` daemon threads; a caller leaves at its deadline, whatever the call does.

    concurrent.futures' own pool will not do: its queue has no bound and it joins hung threads when Python exits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition(threading.Lock())
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._started = 0
        self._busy = 0
        #: The calls that nobody waits for any more, and since when.
        self._left: dict[_Task, float] = {}
        self._doubts: collections.Counter[str] = collections.Counter()
        self._stopped = False

    def run(self, work: Callable[[_Task], Any], subject: str | None, seconds: float, *, long: bool = False) -> Any:
        """Run `work` and return what it returns; CephUnavailable: was not begun, CephTimeout: was begun, goes on."""
        deadline = time.monotonic() + seconds
        task = _Task(work, subject, long)
        # Nobody who is handed the future may cancel it: the call itself cannot be cancelled.
        task.future.set_running_or_notify_cancel()
        self._take_slot(subject, deadline)
        # A slot is a thread that is idle or about to be, so nothing ever lies in the queue.
        self._tasks.put(task)
        try:
            return task.future.result(deadline - time.monotonic())
        except concurrent.futures.TimeoutError:
            if not self._abandon(task):
                return task.future.result(seconds)
        if not task.begun:
            raise errors.CephUnavailable(f"no connection within {seconds:g} s")
        raise errors.CephTimeout(f"no end of the call within {seconds:g} s", task.future)

    def begin(self, task: _Task) -> bool:
        """Mark the point from which on the cluster may change; False: the caller has gone, leave it."""
        with self._changed:
            task.begun = task.begun or not task.abandoned
            return not task.abandoned

    def overdue(self) -> float:
        """Seconds for which nobody has waited for the oldest call that should have ended; 0 if there is none."""
        with self._changed:
            return max((time.monotonic() - since for task, since in self._left.items() if not task.long), default=0.0)

    def stop(self) -> None:
        """Refuse further calls and let the threads end when they are through."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            for _ in range(self._started):
                self._tasks.put(None)

    def _take_slot(self, subject: str | None, deadline: float) -> None:
        with self._changed:
            while True:
                if self._stopped:
                    raise errors.CephUnavailable("the connection was closed")
                if subject is not None and self._doubts[subject]:
                    raise errors.CephUnavailable(f"an earlier call on {subject} has not ended yet")
                if self._busy < self._limit:
                    break
                if len(self._left) >= self._limit:
                    raise errors.CephUnavailable(f"all {self._limit} calls in hand are stuck")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise errors.CephUnavailable(f"{self._limit} calls are in hand already")
            self._busy += 1
            if self._busy > self._started:
                threading.Thread(target=self._serve, name=f"ceph-{self._started}", daemon=True).start()
                self._started += 1

    def _abandon(self, task: _Task) -> bool:
        with self._changed:
            if task.done:
                return False
            task.abandoned = True
            self._left[task] = time.monotonic()
            if task.subject is not None and task.begun:
                self._doubts[task.subject] += 1
            # Those who wait for a slot may have to give up hope.
            self._changed.notify_all()
            return True

    def _finish(self, task: _Task) -> None:
        with self._changed:
            task.done = True
            self._busy -= 1
            if task.abandoned:
                del self._left[task]
                if task.subject is not None and task.begun:
                    self._doubts[task.subject] -= 1
                    self._doubts += collections.Counter()  # drops those that are at zero
            self._changed.notify()

    def _serve(self) -> None:
        # No time-out: an idle thread has nothing else to do, and as a daemon it holds nobody up.
        while (task := self._tasks.get()) is not None:
            try:
                result = task.work(task)
            except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
                self._finish(task)
                task.future.set_exception(error)
            else:
                self._finish(task)
                task.future.set_result(result)
                del result
            del task


class _Breaker:
    """Answers "does the cluster live?" from the last probe, lets one prober at a time ask anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._good_until = -math.inf
        self._refuse_until = -math.inf
        self._reason: str | None = None
        self._probe: concurrent.futures.Future[str | None] | None = None

    def doubt(self) -> None:
        """Have the next `check` probe, however fresh the last good probe is."""
        self._good_until = -math.inf

    def check(self, probe: Callable[[], None], seconds: float) -> None:
        now = time.monotonic()
        if now < self._good_until:
            return
        with self._lock:
            running = self._probe
            if self._reason is not None and (running is not None or now < self._refuse_until):
                raise errors.CephUnavailable(self._reason)
            mine: concurrent.futures.Future[str | None] = concurrent.futures.Future()
            if running is None:
                self._probe = mine
        if running is None:
            reason = self._ask(probe, mine)
        else:
            try:
                reason = running.result(seconds)
            except concurrent.futures.TimeoutError:
                reason = "a probe has not ended yet"
        if reason is not None:
            raise errors.CephUnavailable(reason)

    def _ask(self, probe: Callable[[], None], mine: concurrent.futures.Future[str | None]) -> str | None:
        reason: str | None = "a probe failed"
        started = time.monotonic()
        try:
            probe()
            reason = None
        except (errors.Unavailable, errors.BackendError) as error:
            reason = str(error.args[0])
        finally:
            with self._lock:
                self._probe = None
                self._reason = reason
                if reason is None:
                    self._good_until = started + FRESH_SECONDS
                else:
                    self._refuse_until = time.monotonic() + BREAKER_SECONDS
            mine.set_result(reason)
        return reason


class _Here:
    """All that belongs to one process and must not cross `fork()`."""

    def __init__(self, threads: int) -> None:
        self.pid = os.getpid()
        self.threads = _Threads(threads)
        self.breaker = _Breaker()
        self.lock = threading.Lock()
        self.connecting = threading.Lock()
        #: For calls that are bounded in time, and (True) for those that move data.
        self.connections: dict[bool, _Connection] = {}
        self.suspect = False
        self.counting = threading.Lock()
        #: Those that are known to exist.
        self.namespaces: set[str] = set()
        self.capacity: tuple[float, Capacity] | None = None
        self.monitors: tuple[float, list[tuple[str, int]]] | None = None
        #: Whether our user may make others, and until when that is believed.
        self.makes_users: tuple[float, bool] = (0.0, False)


class Cluster:
    """The pool of images, for all threads of a process; connects at the first call.

    One stands for the pool's default namespace; `within` gives another, which knows the images there and no others.

    Any method may raise CephUnavailable, CephTimeout or CephError; what else it raises is said there. `observe` is told
    the verb, the seconds and the success of every call that was let through.
    """

    def __init__(
        self,
        *,
        pool: str,
        conffile: str,
        user: str | None,
        connect_timeout: int,
        mon_timeout: int,
        osd_timeout: int,
        call_timeout: float,
        threads: int,
        namespaces: bool = False,
        observe: Callable[[str, float, bool], None] | None = None,
    ) -> None:
        self.pool = pool
        self.namespace = ""
        self.user = user
        self.conffile = conffile
        self._connect_timeout = connect_timeout
        self._options = {
            "client_mount_timeout": str(connect_timeout),
            "rados_mon_op_timeout": str(mon_timeout),
            "rados_osd_op_timeout": str(osd_timeout),
            # A fresh cluster would clone in the old format, which needs protected snapshots.
            "rbd_default_clone_format": "2",
        }
        self._call_timeout = call_timeout
        self._limit = threads
        #: Whether statistics count the images of all namespaces, at a call for each.
        self._counts_all = namespaces
        self._observe = observe
        self._pool_itself = self
        self._this_process = _Here(threads)
        _CLUSTERS.add(self)

    def __repr__(self) -> str:
        return f"<Cluster {self.place} user={self.user} conffile={self.conffile}>"

    @property
    def place(self) -> str:
        """Where its images are, as Ceph's commands name it: pool, or pool/namespace."""
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool

    def within(self, namespace: str) -> Cluster:
        """The same pool in one of its namespaces, "" for the default one, over the same connections.

        What makes an image there makes the namespace if it is missing.
        """
        if namespace == self.namespace:
            return self
        found = copy.copy(self)
        found.namespace = namespace
        return found

    @property
    def _here(self) -> _Here:
        return self._pool_itself._this_process  # noqa: SLF001 - another namespace of the same pool

    # Does it live?

    def check(self) -> None:
        """Refuse with CephUnavailable if the cluster is known or now found not to answer; nearly free when it does."""
        here = self._here
        here.breaker.check(lambda: self._probe(here), self._call_timeout)

    def ping(self, seconds: float | None = None) -> float:
        """Ask a monitor and an OSD now, whatever is known already; return the seconds it took."""
        started = time.perf_counter()
        self._call("ping", _ask_both, seconds=seconds)
        return time.perf_counter() - started

    def overdue(self) -> float:
        """Seconds for which the oldest call goes on that was given up; 0 if all have ended.

        To remove an image takes as long as it has data, and does not count.
        """
        return self._here.threads.overdue()

    # Images

    def create(self, name: str, size_bytes: int) -> None:
        """Make an empty image unless it is there already. Raises ImageExists if it is, with another size."""
        self._make("create", lambda c: images.create(c.ioctx, name, size_bytes), name)

    def write_head(self, name: str, data: bytes) -> None:
        """Write what an image begins with, all of it or nothing: at most one object. Raises ImageNotFound."""
        self._call("write_head", lambda c: images.write_head(c.ioctx, name, data), name)

    def info(self, name: str) -> ImageInfo:
        """Look at an image without opening it for writing. Raises ImageNotFound."""
        info: ImageInfo = self._call("info", lambda c: images.info(c.ioctx, name, self._ourselves()), name)
        return info

    def hold(self, name: str) -> HeldImage:
        """Open an image to look at it more than once, without a watch of ours. Raises ImageNotFound."""
        import rbd

        here = self._here

        def step(connection: _Connection) -> HeldImage:
            lender, image = connection.whole or connection, images.opened(connection.ioctx, name)
            with here.lock:
                lender.users += 1

            def watchers(held: HeldImage) -> list[str]:
                with held.used() as opened:
                    return images.watchers(opened, self._ourselves())

            def look(held: HeldImage) -> list[str]:
                found: list[str] = self._call("look", lambda _: watchers(held), name)
                return found

            def end() -> None:
                with contextlib.suppress(rbd.Error):  # There is nothing of it to lose.
                    image.close()
                self._give_back(here, lender)

            return HeldImage(image, look, end)

        try:
            held: HeldImage = self._call("hold", step, name)
        except errors.CephTimeout as error:
            if error.pending is not None:
                error.pending.add_done_callback(_close_late)
            raise
        return held

    def look_anew(self, name: str) -> None:
        """Have Ceph find out anew who has an image open, should it count one for ever that died; see `watches`.

        What it finds shows after its time-out for watches (30 s). No trace of the image is fine.
        """
        self._call("look_anew", lambda c: self._look_anew(c, name), name)

    def _look_anew(self, connection: _Connection, name: str = "", image_id: str = "") -> None:
        """The same for an image that was found busy, as well as can be."""
        import rados
        import rbd

        try:
            image_id = image_id or images.info(connection.ioctx, name, frozenset()).id
            with images.place(connection.rados, self.pool, self.namespace) as ioctx:
                watches.look_anew(ioctx, image_id)
        except (rados.Error, rbd.Error) as error:
            LOG.warning("who has image %s open is not looked at anew: %s", name or image_id, error)

    def trash(self, name: str, besides: AbstractSet[str] = frozenset(), *, keep_seconds: int = 0) -> str | None:
        """Move an image to the trash, or find it there; its id for `purge`, None if there is no trace of it.

        For `keep_seconds` only `purge` removes it. Raises ImageBusy naming the addresses of other clients, but for
        those in `besides`, that have it open.
        """

        def step(connection: _Connection) -> str | None:
            try:
                return images.trash(connection.ioctx, name, self._ourselves() | besides, keep_seconds)
            except errors.ImageBusy:
                self._look_anew(connection, name)
                raise

        image_id: str | None = self._call("trash", step, name)
        return image_id

    def restore(self, image_id: str, name: str) -> None:
        """Take an image out of the trash; done too if it is out already. Raises ImageNotFound, ImageExists."""
        self._call("restore", lambda c: images.restore(c.ioctx, image_id, name), name)

    def purge(self, image_id: str, snaps: Sequence[str] = ()) -> bool:
        """Remove an image from the trash, the snapshots named first; False while a client's watch has not lapsed.

        Raises ImageBusy when other snapshots or clones need it: waiting does not help there.
        """

        def step(connection: _Connection) -> bool:
            done = images.purge(connection.rados, connection.ioctx, image_id, snaps)
            if not done:
                self._look_anew(connection, image_id=image_id)
            return done

        return bool(self._call("purge", step, image_id, long=True))

    def grow(self, name: str, size_bytes: int) -> None:
        """Make an image that big, unless it is already. Raises ImageNotFound."""
        self._call("grow", lambda c: images.grow(c.ioctx, name, size_bytes), name)

    def limit(self, name: str, limits: Mapping[str, int]) -> None:
        """Have who opens an image, or has it open, keep these limits (by Cinder's names). Raises ImageNotFound."""
        self._call("limit", lambda c: images.limit(c.ioctx, name, limits), name)

    def share(self, name: str) -> None:
        """Make an image fit for several writers at a time; it then has no exclusive lock and no object map."""
        self._call("share", lambda c: images.share(c.ioctx, name), name)

    def rename(self, name: str, new: str) -> None:
        """Give an image another name; done too if it has it already. Raises ImageNotFound, ImageExists."""
        self._call("rename", lambda c: images.rename(c.ioctx, name, new), name)

    def images(self, prefix: str) -> set[str]:
        """Names of the images that begin so."""
        names: set[str] = self._call("list", lambda c: images.names(c.ioctx, prefix))
        return names

    def trashed(self) -> list[tuple[str, str]]:
        """(id, former name) of the images in the trash, oldest first."""
        entries: list[tuple[str, str]] = self._call("list_trash", lambda c: images.trashed(c.ioctx))
        return entries

    # For an operator

    def outline(self, name: str) -> Outline:
        """Id, size and all snapshots of an image that is in no migration. Raises ImageNotFound."""
        found: Outline = self._call("outline", lambda c: look.outline(c.ioctx, name), name)
        return found

    def portrait(self, name: str, image_id: str | None = None) -> Portrait:
        """All that Ceph knows of an image, found by its id if that is given, as one in the trash must be.

        One that is in a migration may be the target of one that is prepared at least. Raises ImageNotFound.
        """
        found: Portrait = self._call(
            "portrait", lambda c: look.portrait(c.rados, c.ioctx, name, image_id, self._ourselves()), name
        )
        return found

    def created(self, name: str) -> float:
        """When an image was made, by the cluster's clock, in seconds since the epoch. Raises ImageNotFound."""
        return float(self._call("created", lambda c: look.created(c.ioctx, name), name))

    def migration(self, name: str) -> str | None:
        """How far the migration of an image out of this pool is, a word of images.MIGRATION; None if there is none."""
        state: int | None = self._call("migration", lambda c: images.migration(c.ioctx, name), name)
        return None if state is None else images.MIGRATION.get(state, "unknown")

    def examine(self, known: AbstractSet[str]) -> Facts:
        """What decides whether the service can work here; `known` are the pools that our user has a right to use."""
        found: Facts = self._call(
            "examine", lambda c: checkup.examine(c.rados, c.ioctx, self.pool, self.user or "admin", known)
        )
        return found

    # Snapshots and clones

    def snapshot(self, name: str, snap: str) -> None:
        """Take a snapshot unless it is there already. Raises ImageNotFound."""
        self._call("snapshot", lambda c: images.snapshot(c.ioctx, name, snap), name)

    def remove_snapshot(self, name: str, snap: str) -> None:
        """Remove a snapshot, whether it has clones or not; no trace of it is fine."""
        self._call("remove_snapshot", lambda c: images.remove_snapshot(c.ioctx, name, snap), name)

    def rename_snapshot(self, name: str, snap: str, new: str) -> None:
        """Give a snapshot another name; done too if it has it already. Raises ImageNotFound, ImageExists."""
        self._call("rename_snapshot", lambda c: images.rename_snapshot(c.ioctx, name, snap, new), name)

    def snapshots(self, name: str) -> list[SnapshotInfo]:
        """The snapshots that users made of an image, oldest first. Raises ImageNotFound."""
        found: list[SnapshotInfo] = self._call("list_snapshots", lambda c: images.snapshots(c.ioctx, name), name)
        return found

    def clone(self, parent: str, snap: str, name: str, size_bytes: int, *, source: Cluster | None = None) -> None:
        """Make an image of a snapshot, sharing its data; `size_bytes` may be more. Raises ImageNotFound.

        `source` is the namespace of the same pool that the parent is in, if that is another one.
        """

        def step(connection: _Connection) -> None:
            with self._beside(connection, source) as ioctx:
                images.clone(connection.ioctx, parent, snap, name, size_bytes, source=ioctx)

        self._make("clone", step, name)

    def size_elsewhere(self, pool: str, name: str, snap: str) -> int:
        """Bytes of a snapshot in another pool, if our user may read it there. Raises ImageNotFound."""

        def step(connection: _Connection) -> int:
            with connection.rados.open_ioctx(pool) as source:
                return images.size_of_snapshot(source, name, snap)

        return int(self._call("size_elsewhere", step, name))

    def clone_elsewhere(self, pool: str, parent: str, snap: str, name: str, size_bytes: int) -> None:
        """Make an image of a snapshot in another pool, as `clone` does. Raises ImageNotFound."""

        def step(connection: _Connection) -> None:
            with connection.rados.open_ioctx(pool) as source:
                images.clone(connection.ioctx, parent, snap, name, size_bytes, source=source)

        self._make("clone_elsewhere", step, name)

    def copy(self, parent: str, name: str, size_bytes: int, *, source: Cluster | None = None) -> None:
        """Make an image that starts as another one is now, sharing its data; `source` as for `clone`.

        Raises ImageNotFound. What cannot be leaves no snapshot on the other image; what is to be tried again may.
        """

        def step(connection: _Connection) -> None:
            with self._beside(connection, source) as ioctx:
                images.copy(connection.ioctx, parent, name, size_bytes, source=ioctx)

        try:
            self._make("copy", step, name)
        except errors.CephError:
            (source or self).remove_snapshot(parent, images.copied_by(name))
            raise

    def depth(self, name: str, most: int) -> int:
        """How many images are below a clone, each made from the next, counted up to `most`. Raises ImageNotFound."""
        return int(self._call("depth", lambda c: images.depth(c.rados, c.ioctx, name, most), name))

    def flatten(
        self, name: str, begin: Callable[[AbstractSet[str]], None], progress: Callable[[int, int], None]
    ) -> None:
        """Give a clone all that it shares with others; an earlier try is gone on with. Takes as long as there are data.

        `begin` is told the addresses that the image will be open under, `progress` now and then how many objects of
        how many are done. Raises ImageNotFound, and what `begin` raises.
        """

        def step(connection: _Connection) -> None:
            begin(connection.addresses)
            images.flatten(connection.ioctx, name, progress)

        self._bulk("flatten", step, name)

    def make_whole(self, name: str) -> None:
        """The same for an image that nobody has open, so that nobody need be told."""
        self.flatten(name, lambda _clients: None, lambda _done, _total: None)

    def roll_back(self, name: str, snap: str) -> None:
        """Write a snapshot's data over its image; takes as long as there are data. Raises ImageNotFound."""
        self._bulk("roll_back", lambda c: images.roll_back(c.ioctx, name, snap))

    def move(self, name: str, pool: str, namespace: str = "") -> None:
        """Move an image with its snapshots to another pool or namespace; one that is half way is moved on.

        Takes as long as there are data. Raises ImageNotFound, ImageBusy when somebody has it open.
        """

        def step(connection: _Connection) -> None:
            with images.place(connection.rados, pool, namespace) as target:
                if namespace:
                    images.make_namespace(target, namespace)
                try:
                    images.move(connection.rados, connection.ioctx, target, name)
                except errors.ImageBusy:
                    self._look_anew(connection, name)
                    raise

        self._bulk("move", step, name)

    def group_snapshot(self, group: str, names: Sequence[str]) -> None:
        """Take the snapshot `group` of several images at one moment; nothing writes to any of them meanwhile.

        `opened` shows what it holds of each; it cannot be cloned or rolled back. Raises ImageNotFound, ImageBusy.
        """
        self._bulk("group_snapshot", lambda c: images.group_snapshot(c.ioctx, group, names), group)

    def remove_group_snapshot(self, group: str, names: Sequence[str]) -> None:
        """Remove a snapshot of several images; no trace of it, or of an image, is fine."""
        self._bulk("remove_group_snapshot", lambda c: images.remove_group_snapshot(c.ioctx, group, names), group)

    # Data

    @contextlib.contextmanager
    def opened(self, name: str, snap: str | None = None, *, write: bool = False) -> Iterator[OpenImage]:
        """An image, or a snapshot of it, open for long work in this thread; its calls may wait for ever for an OSD.

        The snapshot is a user's, or one that `group_snapshot` took.

        Raises ImageNotFound; what librbd says inside is raised as ours too.
        """
        import rados
        import rbd

        connection = self._borrow(self._here, bulk=True)
        try:
            with (
                connection.within(self.pool, self.namespace) as placed,
                rbd.Image(placed.ioctx, name, read_only=not write) as image,
            ):
                chosen = None if snap is None else images.snap_id(image, snap)
                if chosen is not None:
                    image.set_snap_by_id(chosen)
                elif snap is not None:
                    raise errors.ImageNotFound(f"{name}@{snap}")
                yield OpenImage(image, chosen)
        except (rados.Error, rbd.Error) as error:
            if _errno(error) == errno.ESHUTDOWN:
                self._retire(self._here, connection)
            raise _translated(error, "opened", name) from error
        finally:
            self._give_back(self._here, connection)

    def put_object(self, name: str, data: bytes) -> None:
        """Store `data` as an object of the pool, in place of what it held."""
        self._bulk("put_object", lambda c: objects.put(c.ioctx, name, data))

    def get_object(self, name: str) -> bytes:
        """The bytes of an object of the pool; none if there is no such object."""
        return self._bulk("get_object", lambda c: objects.get(c.ioctx, name))

    def drop_object(self, name: str) -> None:
        """Remove an object of the pool; no trace of it is fine."""
        self._bulk("drop_object", lambda c: objects.drop(c.ioctx, name))

    def put_entries(self, name: str, entries: Mapping[str, bytes], gone: Collection[str] = ()) -> None:
        """Store entries, by key, of an object of the pool and remove those that are `gone`, all at once."""
        self._call("put_entries", lambda c: objects.put_entries(c.ioctx, name, entries, gone), name)

    def has_entry(self, name: str, key: str) -> bool:
        """Whether an object of the pool has an entry; not if there is no such object."""
        return bool(self._call("has_entry", lambda c: objects.has_entry(c.ioctx, name, key), name))

    def entries(self, name: str) -> dict[str, bytes]:
        """All entries of an object of the pool; none if there is no such object."""
        return self._bulk("entries", lambda c: objects.entries(c.ioctx, name))

    # Users that guests open images as

    def makes_users(self) -> bool:
        """Whether our user has a key and may make others; asked once, and again now and then after a no."""

        def step(connection: _Connection) -> bool:
            return self._key(connection) is not None and cephx.makes(connection.rados, self.user or "admin")

        here = self._here
        until, may = here.makes_users
        if not may and time.monotonic() >= until:
            may = bool(self._call("makes_users", step))
            here.makes_users = time.monotonic() + RIGHTS_SECONDS, may
        return may

    def note_user(self, user: str, note: bytes) -> None:
        """Put a user into the list of users, with a note what it is for, before it is made."""

        def step(connection: _Connection) -> None:
            with images.place(connection.rados, self.pool, "") as ioctx:
                objects.put_entries(ioctx, cephx.REGISTER, {user: note}, ())

        self._call("note_user", step, user)

    def user_of_image(
        self, name: str, user: str, *, read_only: bool, flattens: bool, held: HeldImage | None = None
    ) -> str:
        """The key of a user that opens that image, and reads what is below it, and nothing else; made if need be.

        It has to stand in the list of users before, see `note_user`. With `flattens` its client can be asked to make
        the image whole. Who has the image `held` saves another open. Raises ImageNotFound, UsersRefused.
        """
        place = rights.Place(self.pool, self.namespace)

        def step(connection: _Connection) -> str:
            with held.used() if held else images.opened(connection.ioctx, name) as image:
                caps = cephx.of_image(connection.rados, image, place, name, read_only=read_only, flattens=flattens)
            return cephx.make(connection.rados, user, caps)

        return str(self._call("user_of_image", step, name))

    def user_of_namespace(self, user: str, note: bytes) -> str:
        """The key of a user that opens all images of this namespace, and reads the default one; made if need be.

        Raises UsersRefused.
        """
        caps = rights.of_namespace(rights.Place(self.pool, self.namespace))

        self.note_user(user, note)
        return str(self._call("user_of_namespace", lambda c: cephx.make(c.rados, user, caps), user))

    def users(self) -> dict[str, bytes]:
        """The users that were made for this pool, or were about to be, with their notes."""

        def step(connection: _Connection) -> dict[str, bytes]:
            with images.place(connection.rados, self.pool, "") as ioctx:
                return objects.entries(ioctx, cephx.REGISTER)

        found: dict[str, bytes] = self._call("users", step)
        return found

    def remove_user(self, user: str, *, for_good: bool = True) -> None:
        """Remove a user that was made here, whose clients can then connect no more; no trace of it is fine.

        Those that are connected are so until their tickets lapse. Unless `for_good` it stays in the list, to be removed
        once more: who gave up making it does not know whether his command is still on its way to the monitors, and it
        may come after this one. Raises UsersRefused.
        """

        def step(connection: _Connection) -> None:
            cephx.remove(connection.rados, user)
            if for_good:
                with images.place(connection.rados, self.pool, "") as ioctx:
                    cephx.forget(ioctx, [user])

        self._call("remove_user", step, user)

    # The cluster

    def capacity(self) -> Capacity:
        """Bytes of the pool, at most CAPACITY_SECONDS old."""
        here = self._here
        if here.capacity is not None and time.monotonic() < here.capacity[0]:
            return here.capacity[1]
        if not here.counting.acquire(timeout=self._call_timeout):
            raise errors.CephUnavailable("its statistics are still being read")
        try:
            if here.capacity is None or time.monotonic() >= here.capacity[0]:
                fresh: Capacity = self._call("capacity", self._capacity)
                here.capacity = time.monotonic() + CAPACITY_SECONDS, fresh
            return here.capacity[1]
        finally:
            here.counting.release()

    def monitors(self) -> list[tuple[str, int]]:
        """Address and port of every monitor, at most MONITORS_SECONDS old; IPv6 addresses without brackets."""
        here = self._here
        if here.monitors is None or time.monotonic() >= here.monitors[0]:
            fresh: list[tuple[str, int]] = self._call("monitors", _monitors)
            here.monitors = time.monotonic() + MONITORS_SECONDS, fresh
        return here.monitors[1]

    def key(self) -> str | None:
        """The cephx key of our user, base64 as in the keyring; None if librados needed none."""
        key: str | None = self._call("key", self._key)
        return key

    def clients(self) -> frozenset[str]:
        """Addresses of our own connections, those of this process."""
        return self._ourselves()

    def fence(self, addresses: Collection[str], seconds: int) -> None:
        """Have Ceph take nothing more from clients with these addresses, for so long; returns when that is so.

        Never from our own: those are left out. Done too if it is so already. There is no way back for a client but to
        connect anew, which it may do under another address.
        """
        foreign = frozenset(addresses) - self._ourselves()
        if foreign:
            self._call("fence", lambda c: fences.put_up(c.rados, c.ioctx, foreign, seconds))

    def fenced(self) -> frozenset[str]:
        """Addresses of the clients that are fenced, whoever did that."""
        found: frozenset[str] = self._call("fenced", lambda c: fences.standing(c.rados))
        return found

    def fsid(self) -> str:
        """UUID of the cluster."""
        return str(self._call("fsid", lambda c: c.rados.get_fsid()))

    def close(self) -> None:
        """Refuse further calls and disconnect; calls in hand end first, but nobody waits for them."""
        here = self._here
        here.threads.stop()
        with here.lock:
            connections = list(here.connections.values())
            here.connections.clear()
            for connection in connections:
                connection.retired = True
            idle = [connection for connection in connections if not connection.users]
        for thread in [_shut_down(connection) for connection in idle]:
            thread.join(self._connect_timeout)

    def namespaces(self) -> list[str]:
        """The pool's namespaces, without the default one."""
        found: list[str] = self._call("list_namespaces", lambda c: images.namespaces(c.ioctx))
        return found

    # Within

    def _make(self, verb: str, step: Callable[[_Connection], Any], name: str) -> None:
        """Run a step that makes an image, in a namespace that is made if this process does not know it."""
        known = self._here.namespaces
        while self.namespace:
            fresh = self.namespace not in known
            if fresh:
                self._call("make_namespace", lambda c: images.make_namespace(c.ioctx, self.namespace))
                known.add(self.namespace)
            try:
                self._call(verb, step, name)
            except (errors.ImageNotFound, errors.ImageBusy):
                # Somebody may have removed the namespace, empty as it was: librbd says the same of a missing snapshot.
                known.discard(self.namespace)
                if fresh:
                    raise
            else:
                return
        self._call(verb, step, name)

    @contextlib.contextmanager
    def _beside(self, connection: _Connection, other: Cluster | None) -> Iterator[Any]:
        """The I/O context of another namespace of the pool; None for this one."""
        if other is None or other.namespace == self.namespace:
            yield None
            return
        with images.place(connection.rados, self.pool, other.namespace) as ioctx:
            yield ioctx

    def _call(
        self,
        verb: str,
        step: Callable[[_Connection], Any],
        subject: str | None = None,
        *,
        here: _Here | None = None,
        seconds: float | None = None,
        long: bool = False,
    ) -> Any:
        here = here or self._here
        started = time.perf_counter()
        ok = False
        if failpoints.watch is not None:
            failpoints.watch(f"ceph.{verb}")
        try:
            result = here.threads.run(
                lambda task: self._attempt(here, task, verb, step, subject),
                subject,
                self._call_timeout if seconds is None else min(seconds, self._call_timeout),
                long=long,
            )
            ok = True
        except _ANSWERS:
            ok = True
            raise
        except errors.CephTimeout:
            here.suspect = True
            here.breaker.doubt()
            raise
        finally:
            if self._observe is not None:
                self._observe(verb, time.perf_counter() - started, ok)
        if failpoints.watch is not None:
            failpoints.watch(f"ceph.{verb}:done")
        return result

    def _bulk(self, verb: str, step: Callable[[_Connection], T], subject: str | None = None) -> T:
        """Run `step`, which may take hours, in this thread, over a connection whose OSD calls never time out.

        A step looks at `jobs.checkpoint` now and then. Raises what the errnos of librbd mean, and CephUnavailable.
        """
        started = time.perf_counter()
        ok = False
        if failpoints.watch is not None:
            failpoints.watch(f"ceph.{verb}")
        try:
            result: T = self._attempt(self._here, None, verb, step, subject, bulk=True)
            ok = True
        finally:
            if self._observe is not None:
                self._observe(verb, time.perf_counter() - started, ok)
        if failpoints.watch is not None:
            failpoints.watch(f"ceph.{verb}:done")
        return result

    def _attempt(
        self,
        here: _Here,
        task: _Task | None,
        verb: str,
        step: Callable[[_Connection], Any],
        subject: str | None,
        *,
        bulk: bool = False,
    ) -> Any:
        import rados
        import rbd

        retry = True
        while True:
            connection = self._borrow(here, bulk=bulk)
            try:
                if task is not None and not here.threads.begin(task):
                    raise errors.CephUnavailable("given up before it was begun")
                with connection.within(self.pool, self.namespace) as placed:
                    return step(placed)
            except (rados.Error, rbd.Error) as error:
                if _errno(error) == errno.ESHUTDOWN:
                    # This client is on the blocklist: for good, while a new one is welcome. Nothing was applied.
                    self._retire(here, connection)
                    if retry:
                        retry = False
                        continue
                raise _translated(error, verb, subject) from error
            finally:
                self._give_back(here, connection)

    def _borrow(self, here: _Here, *, bulk: bool) -> _Connection:
        if (connection := _current(here, bulk=bulk)) is not None:
            return connection
        if not here.connecting.acquire(timeout=self._connect_timeout):
            raise errors.CephUnavailable("another thread is still connecting")
        try:
            if (connection := _current(here, bulk=bulk)) is None:
                connection = self._connect(bulk=bulk)
                with here.lock:
                    connection.users += 1
                    here.connections[bulk] = connection
            return connection
        finally:
            here.connecting.release()

    def _connect(self, *, bulk: bool) -> _Connection:
        import rados

        name = None if self.user is None else f"client.{self.user}"
        words = {
            errno.ENOENT: f"no key for {name or 'client.admin'}, or no {self.conffile}",
            errno.EACCES: f"it refuses the key of {name or 'client.admin'}",
            errno.EPERM: f"it refuses the key of {name or 'client.admin'}",
            errno.ETIMEDOUT: f"no monitor within {self._connect_timeout} s",
        }
        try:
            options = self._options | ({"rados_osd_op_timeout": "0"} if bulk else {})
            with affinity.anywhere():
                cluster = rados.Rados(conffile=self.conffile, name=name, conf=options)
                cluster.connect()
        except rados.Error as error:
            number = _errno(error)
            reason = words.get(number, os.strerror(number) if number else "no connection")
            raise errors.CephUnavailable(reason) from error
        try:
            ioctx = cluster.open_ioctx(self.pool)
            addresses = _addresses(cluster.get_addrs())
        except rados.Error as error:
            cluster.shutdown()
            reason = f"no pool {self.pool}" if _errno(error) == errno.ENOENT else os.strerror(_errno(error))
            raise errors.CephUnavailable(reason) from error
        return _Connection(cluster, ioctx, addresses)

    def _give_back(self, here: _Here, connection: _Connection) -> None:
        with here.lock:
            connection.users -= 1
            last = connection.retired and not connection.users
        if last:
            _shut_down(connection)

    def _ourselves(self) -> frozenset[str]:
        with self._here.lock:
            return frozenset().union(*(connection.addresses for connection in self._here.connections.values()))

    def _retire(self, here: _Here, connection: _Connection) -> None:
        with here.lock:
            connection.retired = True
            for kind, current in list(here.connections.items()):
                if current is connection:
                    del here.connections[kind]

    def _probe(self, here: _Here) -> None:
        # After a time-out the OSDs may be well and the monitors not; then every open for writing would be lost.
        try:
            if here.suspect:
                self._call("probe", _ask_both, _PROBE, here=here)
                here.suspect = False
            else:
                self._call("probe", _ask_osd, _PROBE, here=here)
        except errors.CephTimeout:
            self._replace_old(here)
            raise

    def _replace_old(self, here: _Here) -> None:
        """Have the next call connect anew.

        librados waits for ever on a connection to an OSD that was refused once, as an OSD does which has just started
        and does not know the monitors' secrets yet ("could not find secret_id" in its log). A new one is welcome.
        """
        with here.lock:
            old = [one for one in here.connections.items() if one[1].made + REPLACED_AFTER < time.monotonic()]
            for kind, connection in old:
                connection.retired = True
                del here.connections[kind]
            unused = [connection for _, connection in old if not connection.users]
        for connection in unused:
            _shut_down(connection)

    def _capacity(self, connection: _Connection) -> Capacity:
        for pool in checkup.ask(connection.rados, "df")["pools"]:
            if pool["name"] == self.pool:
                # `stored` and `max_avail` are what users see, copies and erasure coding taken into account.
                used, free = int(pool["stats"]["stored"]), int(pool["stats"]["max_avail"])
                return Capacity(used + free, free, used, self._provisioned(connection))
        # Statistics come from the manager: for the first seconds of a pool, or of a manager, there are none.
        raise errors.NoStatistics(self.pool)

    def _provisioned(self, connection: _Connection) -> int:
        total = 0
        for namespace in ("", *images.namespaces(connection.ioctx)) if self._counts_all else ("",):
            with images.place(connection.rados, self.pool, namespace) as ioctx:
                total += images.provisioned(ioctx)
        return total

    def _key(self, connection: _Connection) -> str | None:
        option = connection.rados.conf_get
        if key := option("key"):
            return str(key)
        if keyfile := option("keyfile"):
            return pathlib.Path(keyfile).read_text(encoding="ascii").strip()
        section = f"client.{self.user or 'admin'}"
        for path in re.split(r"[\s,;]+", option("keyring") or ""):
            keyring = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
            try:
                keyring.read(path, encoding="utf-8")
            except configparser.Error:
                # The parser's message quotes the line, and that may be the key.
                raise errors.CephError(f"The keyring {path} cannot be read.") from None
            if keyring.has_option(section, "key"):
                return keyring.get(section, "key")
        return None

    def _start_anew(self) -> None:
        _keep_for_ever(self._here)
        self._this_process = _Here(self._limit)


_CLUSTERS: weakref.WeakSet[Cluster] = weakref.WeakSet()


def _after_fork() -> None:
    for cluster in _CLUSTERS:
        cluster._start_anew()  # noqa: SLF001 - only this module may do it, and only here


os.register_at_fork(after_in_child=_after_fork)


def _keep_for_ever(inherited: _Here) -> None:
    # Freeing a handle whose threads stayed in the parent waits for them for ever, also when the child exits.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _current(here: _Here, *, bulk: bool) -> _Connection | None:
    with here.lock:
        connection = here.connections.get(bulk)
        if connection is not None:
            connection.users += 1
        return connection


def _shut_down(connection: _Connection) -> threading.Thread:
    # In a thread of its own, since it waits for what the cluster still owes us.
    thread = threading.Thread(target=connection.shut_down, name="ceph-shut-down", daemon=True)
    thread.start()
    return thread


def _close_late(opening: concurrent.futures.Future[HeldImage]) -> None:
    """Close what nobody has waited for."""
    if opening.exception() is None:
        opening.result().close()


def _translated(error: Exception, verb: str, subject: str | None) -> errors.CinderliteError:
    number = _errno(error)
    kind = BY_ERRNO.get(number, errors.CephError)
    if subject is None and issubclass(kind, _ANSWERS):
        kind = errors.CephError
    if kind is errors.ImageBusy:
        return kind(subject, "another client")
    if issubclass(kind, _ANSWERS):
        return kind(subject)
    reason = os.strerror(number) if number else type(error).__name__
    return kind(f"{verb} {subject or ''}".rstrip() + f": {reason}")


def _errno(error: Exception) -> int:
    # Some of librbd's errors have none, and librados' may be negative.
    number: int | None = getattr(error, "errno", None)
    return abs(number or 0)


def _ask_osd(connection: _Connection) -> None:
    import rados

    try:
        connection.ioctx.stat(checkup.PROBE_OBJECT)  # Reading it touches an OSD; that it is missing is an answer too.
    except rados.ObjectNotFound:
        return


def _ask_both(connection: _Connection) -> None:
    checkup.ask(connection.rados, "fsid")
    _ask_osd(connection)


def _monitors(connection: _Connection) -> list[tuple[str, int]]:
    found = []
    for mon in checkup.ask(connection.rados, "mon dump")["mons"]:
        addresses = {entry["type"]: entry["addr"] for entry in mon["public_addrs"]["addrvec"]}
        # Without a prefix to say so, clients take an unusual port for the older protocol first.
        host, _, port = (addresses.get("v1") or addresses["v2"]).rpartition(":")
        found.append((host.strip("[]"), int(port)))
    return found


def _addresses(text: str) -> frozenset[str]:
    """The addresses of a client as watchers show them, from "[v2:A,v1:B]" or "A"; all end in the same nonce."""
    # Brackets around the list go, those of IPv6 addresses stay.
    inner = text[1:-1] if re.match(r"\[(v\d|any):", text) else text
    return frozenset(re.sub(r"^(v\d|any):", "", part) for part in inner.split(","))
