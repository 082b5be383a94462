# SPDX-License-Identifier: Apache-2.0
"""Steps on RBD images, each safe to repeat: "exists already" and "gone already" are fine.

Plain functions of an open I/O context; they run in the threads of `cluster.Cluster`, which also turns the errors of
librbd into ours. No threads, time-outs or connections here. What a newcomer gets wrong first: every step may have been
cut off half way by a time-out or a crash and is then simply run again, so it must look before it concludes. And only
an open for *writing* leaves a watcher behind: looking at an image must be a read-only open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from cinderlite import errors, jobs
from cinderlite.ceph import children
from cinderlite.ceph import trash as rbd_trash

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image as it is now. `watchers` are the addresses of clients, other than this process, that have it open.

    `owners` are those that hold its lock. One that was stopped for long holds it still, though it watches no more.
    """

    id: str
    size_bytes: int
    watchers: list[str]
    owners: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot and the size that its image had, in bytes."""

    name: str
    size_bytes: int


#: The end of the names of snapshots that are taken only to copy an image; Cinder's are called so, too.
_COPIED = ".clone_snap"
#: The end of the names of removed snapshots that clones in the old format, which Cinder makes, still need.
_REMOVED = ".removed"


@contextlib.contextmanager
def place(rados: Any, pool: str, namespace: str) -> Iterator[Any]:
    """An I/O context of a namespace of a pool, "" for the default one; nothing is asked for that."""
    with rados.open_ioctx(pool) as ioctx:
        ioctx.set_namespace(namespace)
        yield ioctx


def make_namespace(ioctx: Any, namespace: str) -> None:
    """Make a namespace of a pool; one that is there is as good as a new one."""
    import rbd

    with contextlib.suppress(rbd.ImageExists):
        rbd.RBD().namespace_create(ioctx, namespace)


def namespaces(ioctx: Any) -> list[str]:
    """All namespaces of a pool but the default one, which is not listed."""
    import rbd

    return [str(name) for name in rbd.RBD().namespace_list(ioctx)]


def create(ioctx: Any, name: str, size_bytes: int) -> None:
    """Make an empty image; one of that name and size is as good as a new one. Raises ImageExists for another size."""
    import rbd

    try:
        rbd.RBD().create(ioctx, name, size_bytes)
    except rbd.ImageExists:
        try:
            found = _size(ioctx, name)
        except rbd.ImageNotFound:
            # A create that was cut off leaves the name without a header: nobody can open that, nor does it hold data.
            _clear(ioctx, name, None)
            rbd.RBD().create(ioctx, name, size_bytes)
            return
        if found != size_bytes:
            raise errors.ImageExists(name) from None


def write_head(ioctx: Any, name: str, data: bytes) -> None:
    """Write what an image begins with; within one object that is one operation of an OSD."""
    import rbd

    with rbd.Image(ioctx, name) as image:
        image.write(data, 0)
        image.flush()


def opened(ioctx: Any, name: str) -> Any:
    """An image to be looked at: a context manager."""
    import rbd

    return rbd.Image(ioctx, name, read_only=True)


def info(ioctx: Any, name: str, ourselves: AbstractSet[str]) -> ImageInfo:
    """Read id, size and foreign watchers with one read-only open."""
    with opened(ioctx, name) as image:
        held = image.list_lockers()
        owners = {str(address) for _client, _cookie, address in held["lockers"]} if held else set()
        others = watchers(image, ourselves)
        return ImageInfo(str(image.id()), int(image.size()), others, sorted(owners - ourselves))


def watchers(image: Any, ourselves: AbstractSet[str]) -> list[str]:
    """Addresses of those who have an open image open, too."""
    return sorted({str(watcher["addr"]) for watcher in image.watchers_list()} - ourselves)


def trash(ioctx: Any, name: str, ourselves: AbstractSet[str], keep_seconds: int = 0) -> str | None:
    """Move the image to the trash and return its id, which outlives the name; None when there is no trace of it.

    librbd moves an image to the trash under a running guest without a word, so the guard against that is here. For
    `keep_seconds` others, who empty the trash as a whole, leave it there.
    """
    import rbd

    try:
        found = info(ioctx, name, ourselves)
        if found.watchers:
            raise errors.ImageBusy(name, ", ".join(found.watchers))
        rbd.RBD().trash_move(ioctx, name, keep_seconds)
    except rbd.ImageNotFound:
        ids = [image_id for image_id, trashed_name in trashed(ioctx) if trashed_name == name]
        _clear(ioctx, name, ids[-1] if ids else None)
        return ids[-1] if ids else None
    return found.id


def _clear(ioctx: Any, name: str, trashed_id: str | None) -> None:
    """Take away what a killed client left of an image that nobody can open by its name; nothing of it is fine.

    librbd creates, and moves to the trash, in several steps. Of an image in the trash only the entry in the directory
    may be left, and only that may go: to remove it by name would take the header and leave the data for ever.
    Raises CephUnavailable while the killed client's watch has not lapsed.
    """
    import rados
    import rbd

    if trashed_id is None:
        try:
            rbd.RBD().remove(ioctx, name)
        except rbd.ImageNotFound:
            return
        except rbd.ImageBusy as error:
            raise errors.CephUnavailable(f"what an earlier try left of {name} is still open") from error
        return
    with rados.WriteOpCtx() as change:
        ioctx.remove_omap_keys(change, (f"name_{name}", f"id_{trashed_id}"))
        ioctx.operate_write_op(change, "rbd_directory")


def purge(connection: Any, ioctx: Any, image_id: str, snaps: Sequence[str]) -> bool:
    """Remove an image from the trash, the snapshots named first; False while a client's watch on it has not lapsed.

    Raises ImageBusy when other snapshots or clones need it: waiting does not help there.
    """
    import rbd

    try:
        if snaps:
            # One whose removal was cut off may have no header any more, but it is in the trash until that is done.
            with contextlib.suppress(rbd.ImageNotFound), rbd.Image(ioctx, image_id=image_id) as image:
                for snap in snaps:
                    _remove_snapshot(image, snap)
        rbd.RBD().trash_remove(ioctx, image_id, force=True)
    except rbd.ImageNotFound:
        return True
    except rbd.ImageBusy:
        return False
    except rbd.ImageHasSnapshots:
        if not (_drop_left(ioctx, image_id) or _drop_needless(connection, ioctx, image_id)):
            raise errors.ImageBusy(image_id, "its snapshots or clones") from None
        return purge(connection, ioctx, image_id, ())
    return True


def restore(ioctx: Any, image_id: str, name: str) -> None:
    """Take an image out of the trash; done too if it is out already. Raises ImageNotFound, ImageExists."""
    import rbd

    try:
        rbd.RBD().trash_restore(ioctx, image_id, name)
    except rbd.ImageNotFound:
        with rbd.Image(ioctx, name, read_only=True) as image:
            if str(image.id()) != image_id:
                raise errors.ImageExists(name) from None


def _drop_left(ioctx: Any, image_id: str) -> bool:
    """Remove what copies that failed left of an image in the trash, ours or Cinder's; whether there was any.

    So go snapshots that were to be removed before, unless a clone still needs them.
    """
    import rbd

    with rbd.Image(ioctx, image_id=image_id) as image:
        left = [str(snap["name"]) for snap in image.list_snaps() if str(snap["name"]).endswith((_COPIED, _REMOVED))]
        gone = [_remove_snapshot(image, snap) for snap in left]
    return any(gone)


def _drop_needless(connection: Any, ioctx: Any, image_id: str) -> bool:
    """Remove the snapshots that were removed already, and that Ceph keeps for clones that are not there.

    While an image is on its way to another pool librbd gives its clones the new place; one that is removed at that
    moment is counted there for ever (of 40 tried one). Returns whether there was any.
    """
    import rbd

    dropped = False
    with rbd.Image(ioctx, image_id=image_id) as image:
        for snap in list(image.list_snaps()):
            if snap["namespace"] != rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH:
                continue
            counted = children.of(ioctx, image_id, int(snap["id"]))
            dead = [child for child in counted if not children.is_there(connection, child)]
            for child in dead:
                LOG.warning("image %s counts a clone %s, which is not there", image_id, child.id)
                children.cross_off(ioctx, image_id, int(snap["id"]), child)
            if dead and len(dead) == len(counted):
                image.remove_snap_by_id(snap["id"])
                dropped = True
    return dropped


def snapshot(ioctx: Any, name: str, snap: str) -> None:
    """Take a snapshot; one of that name is as good as a new one. Most of the time goes to the monitors (0.4 to 1 s)."""
    import rbd

    with rbd.Image(ioctx, name) as image, contextlib.suppress(rbd.ImageExists):
        image.create_snap(snap)


def remove_snapshot(ioctx: Any, name: str, snap: str) -> None:
    """Remove a snapshot; no trace of it, or of its image, is fine.

    With clones it only leaves sight: Ceph keeps its data until the last clone is gone, and then drops them by itself.
    With clones in the old format it cannot go: it gets another name, and is removed with the next one or the image.
    """
    import rbd

    with contextlib.suppress(rbd.ImageNotFound), rbd.Image(ioctx, name) as image:
        if not _remove_snapshot(image, snap):
            image.rename_snap(snap, f"{snap}{_REMOVED}")
            return
        for left in [str(one["name"]) for one in image.list_snaps() if str(one["name"]).endswith(_REMOVED)]:
            _remove_snapshot(image, left)


def _remove_snapshot(image: Any, snap: str) -> bool:
    """Remove a snapshot if it is there; False while clones in the old format need it."""
    import rbd

    with contextlib.suppress(rbd.ImageNotFound):
        # Pools that Cinder used have protected snapshots; ours never are.
        if image.is_protected_snap(snap):
            try:
                image.unprotect_snap(snap)
            except rbd.ImageBusy:
                return False
        image.remove_snap(snap)
    return True


def clone(ioctx: Any, parent: str, snap: str, name: str, size_bytes: int, *, source: Any = None) -> None:
    """Make an image of a snapshot, of that size or bigger than it; one that an earlier try made is completed.

    `source` is the parent's pool or namespace, if that is another. Raises ImageNotFound when there is no such snapshot,
    ImageBusy when there is and librbd did not find it.
    """
    _clone(ioctx, parent, snap, name, ioctx if source is None else source)
    _complete(ioctx, name, size_bytes)


def _clone(ioctx: Any, parent: str, snap: str, name: str, source: Any) -> None:
    import rbd

    try:
        rbd.RBD().clone(source, parent, snap, ioctx, name)
    except rbd.ImageNotFound:
        if _is_clone(ioctx, name, source):  # The snapshot of one that an earlier try made may have gone since.
            return
        if any(one.name == snap for one in snapshots(source, parent)):
            # Seen once, with a snapshot that was there before and after.
            raise errors.ImageBusy(parent, "another client") from None
        raise
    except rbd.ImageExists:
        if not _is_clone(ioctx, name, source):  # Cut off before its parent knew it: it holds nothing.
            _clear(ioctx, name, None)
            rbd.RBD().clone(source, parent, snap, ioctx, name)


def _complete(ioctx: Any, name: str, size_bytes: int, *, smaller: bool = False) -> None:
    """Give a clone its size, if `smaller` also one below its parent's, and take from it what is not its own."""
    import rbd

    with rbd.Image(ioctx, name, read_only=True) as image:  # Half the time of one to write to, which nobody may need.
        inherited, size = [key for key, _ in image.metadata_list()], image.size()
    resizes = size < size_bytes or (smaller and size > size_bytes)
    if not inherited and not resizes:
        return
    with rbd.Image(ioctx, name) as image:
        # What is set on the parent, limits above all, came along and is not the clone's.
        for key in inherited:
            image.metadata_remove(key)
        if resizes:
            image.resize(size_bytes)


#: How Cinder calls a limit → the option of librbd that keeps it. There is none for what counts as one operation.
_LIMITS = {
    f"{what}_{ours}_sec{end}": f"rbd_qos_{'' if what == 'total' else what + '_'}{theirs}_{its}"
    for what in ("total", "read", "write")
    for ours, theirs in (("iops", "iops"), ("bytes", "bps"))
    for end, its in (("", "limit"), ("_max", "burst"), ("_max_length", "burst_seconds"))
}
#: Before the name of an option at an image.
OPTION = "conf_"


def options(limits: Mapping[str, int]) -> dict[str, str]:
    """Limits by Cinder's names as options of librbd."""
    return {_LIMITS[key]: str(value) for key, value in limits.items() if key in _LIMITS}


def limit(ioctx: Any, name: str, limits: Mapping[str, int]) -> None:
    """Have whoever opens an image, or has it open, keep these limits and no others. Raises rbd.ImageNotFound."""
    import rbd

    wanted = options(limits)
    with rbd.Image(ioctx, name, read_only=True) as image:
        there = dict(image.metadata_list())
    present = {key: there[OPTION + key] for key in _LIMITS.values() if OPTION + key in there}
    if present == wanted:
        return
    with rbd.Image(ioctx, name) as image:
        for key in present.keys() - wanted.keys():
            image.config_remove(key)
        for key, value in wanted.items():
            image.config_set(key, value)


def size_of_snapshot(ioctx: Any, name: str, snap: str) -> int:
    """Bytes of a snapshot. Raises ImageNotFound when there is none.

    Never open an image *at* a snapshot that may not be there: librbd 16.2.15 then uses what it has freed, and now and
    then ends the process (six threads at it while others make and remove the snapshots: within seconds).
    """
    for one in snapshots(ioctx, name):
        if one.name == snap:
            return one.size_bytes
    raise errors.ImageNotFound(f"{name}@{snap}")


def copied_by(name: str) -> str:
    """The snapshot of another image by which an image is made as a copy."""
    return name + _COPIED


def copy(ioctx: Any, parent: str, name: str, size_bytes: int, *, source: Any = None) -> None:
    """Make an image that starts as another is now, by way of a snapshot that leaves sight again.

    The other may have become bigger than the copy was to be since that was asked for.
    """
    snap = copied_by(name)
    source = ioctx if source is None else source
    if not _is_clone(ioctx, name, source):  # Else an earlier try's, maybe after its snapshot was removed.
        snapshot(source, parent, snap)
        _clone(ioctx, parent, snap, name, source)
    _complete(ioctx, name, size_bytes, smaller=True)
    remove_snapshot(source, parent, snap)


def _is_clone(ioctx: Any, name: str, source: Any) -> bool:
    """Whether there is such an image and it shares data with one in `source` that keeps them for it.

    librbd tells the clone of its parent first and then the parent of the clone. What was cut off in between looks
    whole, until the snapshot is removed, which nothing seems to need.
    """
    import rbd

    try:
        with rbd.Image(ioctx, name, read_only=True) as image:
            image_id, parent_id = str(image.id()), str(image.parent_id())
            snap = image.get_parent_image_spec()["snap_name"]
        with rbd.Image(source, image_id=parent_id, read_only=True) as parent:
            snap_ids = [int(one["id"]) for one in parent.list_snaps() if one["name"] == snap]
    except rbd.ImageNotFound:  # No image, or one without a parent.
        return False
    return any(image_id in children.ids(source, parent_id, one) for one in snap_ids)


def depth(rados: Any, ioctx: Any, name: str, most: int) -> int:
    """How many images are below an image, counted up to `most`. Raises ImageNotFound.

    Each is opened by its id, since it may be in the trash; one that we may not open is the last.
    """
    import rbd

    with contextlib.ExitStack() as pools:
        with rbd.Image(ioctx, name, read_only=True) as image:
            parent = _parent(image)
        found = 0
        while parent is not None and found < most:
            pool, namespace, image_id = parent
            found += 1
            below = pools.enter_context(rados.open_ioctx(pool))
            below.set_namespace(namespace)
            try:
                with rbd.Image(below, image_id=image_id, read_only=True) as image:
                    parent = _parent(image)
            except (rbd.ImageNotFound, rbd.PermissionError):
                parent = None
    return found


def _parent(image: Any) -> tuple[str, str, str] | None:
    """Pool, namespace and id of the image that an open one was made from; None if it shares nothing."""
    import rbd

    try:
        spec = image.get_parent_image_spec()
        return str(spec["pool_name"]), str(spec["pool_namespace"]), str(image.parent_id())
    except rbd.ImageNotFound:
        return None


def flatten(ioctx: Any, name: str, progress: Callable[[int, int], None]) -> None:
    """Give an image all that it shares with those below it; done too if it shares nothing. Raises ImageNotFound.

    What an earlier try copied is not copied again. Others can use the image meanwhile: the client that writes to it is
    asked to do the work, and goes on with it when this one is killed.
    """
    import rbd

    leave_off = jobs.asker()

    def go_on(done: int, total: int) -> int:
        progress(done, total)
        return -errno.ECANCELED if leave_off() else 0

    with rbd.Image(ioctx, name) as image:
        if _parent(image) is not None:
            image.flatten(on_progress=go_on)


def grow(ioctx: Any, name: str, size_bytes: int) -> None:
    """Make an image that big; one that is already bigger stays as it is, since to shrink is to lose data."""
    import rbd

    with rbd.Image(ioctx, name) as image:
        if image.size() < size_bytes:
            image.resize(size_bytes)


def share(ioctx: Any, name: str) -> None:
    """Make an image fit for several writers at a time: without the lock that they would pass to and fro.

    The features that need the lock go with it, so that deleting and measuring take longer. A no-op if it is done.
    """
    import rbd

    mask = (
        rbd.RBD_FEATURE_EXCLUSIVE_LOCK
        | rbd.RBD_FEATURE_OBJECT_MAP
        | rbd.RBD_FEATURE_FAST_DIFF
        | rbd.RBD_FEATURE_JOURNALING
    )
    with rbd.Image(ioctx, name, read_only=True) as image:
        present = image.features() & mask
    if present:
        with rbd.Image(ioctx, name) as image:
            image.update_features(present, False)


def roll_back(ioctx: Any, name: str, snap: str) -> None:
    """Write a snapshot's data over its image, which takes as long as there are data. Raises ImageNotFound."""
    import rbd

    try:
        with rbd.Image(ioctx, name) as image:
            image.rollback_to_snap(snap)
    except rbd.ImageNotFound as error:
        raise errors.ImageNotFound(f"{name}@{snap}") from error


#: How far a migration is: librbd's number and what an operator is told.
MIGRATION = {0: "failed", 1: "preparing", 2: "prepared", 3: "executing", 4: "executed", 5: "aborting"}
#: Noted at an image that has all that it moved with, until nothing is left of the move.
_MOVED = "cinderlite_moved"
#: With these a broken-off copy is gone on with later, by this process or another; with others it is taken back.
_GOES_ON = errno.ECANCELED, errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN


def move(connection: Any, source: Any, target: Any, name: str) -> None:
    """Move an image to another pool by live migration: prepare, copy, commit, each if it is what comes next.

    A client killed while it prepares or commits leaves an image in the target that is in no migration. Only the note
    tells whether that has the data; without it, and with a source that was put aside, the source is brought back.
    Raises CephUnavailable as long as the image is half way, as while a dead client still holds what it left.
    """
    import rbd

    try:
        _move(connection, source, target, name)
    except rbd.Error as error:
        nowhere = _put_aside(source, name) is None and not _is_there(target, name)
        if nowhere or _is_there(source, name):
            raise
        reason = type(error).__name__
        raise errors.CephUnavailable(f"{name} is half way to another pool and cannot go on now: {reason}") from error


def _is_there(ioctx: Any, name: str) -> bool:
    """Whether a pool has an image of that name; not to be asked of the target of a move under way, see `migration`."""
    import rbd

    try:
        with rbd.Image(ioctx, name, read_only=True):
            return True
    except rbd.ImageNotFound:
        return False


def _move(connection: Any, source: Any, target: Any, name: str) -> None:
    import rbd

    state = migration(source, name)
    if state in (rbd.RBD_IMAGE_MIGRATION_STATE_PREPARING, rbd.RBD_IMAGE_MIGRATION_STATE_ABORTING):
        with contextlib.suppress(rbd.ImageNotFound, rbd.InvalidArgument):  # An abort was cut off, too.
            rbd.RBD().migration_abort(target, name)
        state = None
    if state is None:
        if _is_noted(target, name):
            _finish_move(connection, source, target, name)
            return
        _bring_back(source, target, name)
        if not _prepare(source, target, name):
            return
    if state != rbd.RBD_IMAGE_MIGRATION_STATE_EXECUTED:
        try:
            rbd.RBD().migration_execute(target, name, on_progress=_go_on)
        except rbd.OSError as error:
            if error.errno not in _GOES_ON:
                rbd.RBD().migration_abort(target, name)
            raise
    with rbd.Image(target, name) as image:
        image.metadata_set(_MOVED, "yes")
    rbd.RBD().migration_commit(target, name)
    _finish_move(connection, source, target, name)


def _prepare(source: Any, target: Any, name: str) -> bool:
    """Begin the migration of an image; False if it was moved already. Raises rbd.ImageNotFound if it is nowhere."""
    import rbd

    try:
        found = info(source, name, frozenset())
        if found.watchers:
            raise errors.ImageBusy(name, ", ".join(found.watchers))
        _end_migration(source, found.id)  # The last step of an abort.
        _forget_note(source, name)  # Of an earlier move: it would go along and speak for this one.
        rbd.RBD().migration_prepare(source, name, target, name)
    except rbd.ImageNotFound:
        if not _made_whole(source, name):
            with rbd.Image(target, name, read_only=True):
                return False
        rbd.RBD().migration_prepare(source, name, target, name)
    return True


def _is_noted(ioctx: Any, name: str) -> bool:
    import rbd

    try:
        with rbd.Image(ioctx, name, read_only=True) as image:
            return _MOVED in dict(image.metadata_list())
    except rbd.ImageNotFound:
        return False


def _forget_note(ioctx: Any, name: str) -> None:
    import rbd

    if _is_noted(ioctx, name):
        with rbd.Image(ioctx, name) as image:
            image.metadata_remove(_MOVED)


def _finish_move(connection: Any, source: Any, target: Any, name: str) -> None:
    """Remove what a cut-off commit left of the source, then the note."""
    image_id = _put_aside(source, name)
    if image_id is not None:
        _end_migration(source, image_id)
        if not purge(connection, source, image_id, _all_snapshots(source, image_id)):
            raise errors.CephUnavailable(f"a dead client still holds what is left of {name} where it was")
    _forget_note(target, name)


def _put_aside(source: Any, name: str) -> str | None:
    """The id of an image that a migration took the name from."""
    found = [one.id for one in rbd_trash.entries(source) if one.source == rbd_trash.BY_MIGRATION and one.name == name]
    return found[-1] if found else None


def _bring_back(source: Any, target: Any, name: str) -> None:
    """Give the source of a migration that was never prepared its name again; what is in the target holds nothing.

    `migration_abort` would do that, but it does not take an image for one in migration before both sides are marked.
    """
    import rados
    import rbd

    image_id = _put_aside(source, name)
    if image_id is None:
        return
    _end_migration(source, image_id)
    with rbd.Image(source, image_id=image_id, read_only=True) as image:  # The data are there: else nothing may go.
        if list(image.watchers_list()):
            raise errors.CephUnavailable(f"a dead client still holds {name}, which it was moving to another pool")
    _remove_begun(target, name)

    def text(value: str) -> bytes:
        return len(value).to_bytes(4, "little") + value.encode()

    source.write_full(f"rbd_id.{name}", text(image_id))
    with rados.WriteOpCtx() as change:
        source.set_omap(change, (f"name_{name}", f"id_{image_id}"), (text(image_id), text(name)))
        source.operate_write_op(change, "rbd_directory")
    with rados.WriteOpCtx() as change:
        source.remove_omap_keys(change, (f"id_{image_id}",))
        source.operate_write_op(change, rbd_trash.OBJECT)


def _remove_begun(target: Any, name: str) -> None:
    """Remove an image in the target that has none of its data yet, but maybe its snapshots. It need not be there."""
    import rbd

    held = errors.CephUnavailable(f"a dead client still holds what it made of {name} in the other pool")
    try:
        with contextlib.suppress(rbd.ImageNotFound):
            if info(target, name, frozenset()).watchers:
                raise held
            with rbd.Image(target, name) as image:
                for snap in [str(snap["name"]) for snap in image.list_snaps()]:
                    if not _remove_snapshot(image, snap):
                        raise held
        _clear(target, name, None)
    except rbd.ImageBusy as error:
        raise held from error


def _end_migration(ioctx: Any, image_id: str) -> None:
    """Take the mark of a migration from an image, which nobody may write to while it has that."""
    import rados

    # Not marked yet, or its header is gone already.
    with contextlib.suppress(rados.ObjectNotFound, rados.InvalidArgumentError):
        ioctx.stat(_header(image_id))
        ioctx.execute(_header(image_id), "rbd", "migration_remove", b"")


def _header(image_id: str) -> str:
    return f"rbd_header.{image_id}"


def _all_snapshots(ioctx: Any, image_id: str) -> list[str]:
    import rbd

    try:
        with rbd.Image(ioctx, image_id=image_id, read_only=True) as image:
            return [str(snap["name"]) for snap in image.list_snaps()]
    except rbd.ImageNotFound:
        return []


def _made_whole(source: Any, name: str) -> bool:
    """Give a clone what it shares with its parent; False if there is no such image.

    A clone whose parent's snapshot was removed is not found by migration_prepare.
    """
    import rbd

    try:
        with rbd.Image(source, name) as image:
            image.flatten(on_progress=_go_on)
    except rbd.ImageNotFound:
        return False
    return True


def migration(source: Any, name: str) -> int | None:
    """How far the migration of an image is; None if there is none.

    Asked at the source, which is the first to be marked and the last to be unmarked. Two traps of librbd: to open the
    target by its name spins for ever after a client died that was preparing the migration, and to ask for a source
    whose header is gone already is a segmentation fault (both seen with 16.2).
    """
    import rados
    import rbd

    image_id = _put_aside(source, name)
    if image_id is None:
        return None
    try:
        source.stat(_header(image_id))
    except rados.ObjectNotFound:
        return None
    try:
        return int(rbd.RBD().migration_status(source, name)["state"])
    except (rbd.ImageNotFound, rbd.InvalidArgument):
        return None


def _go_on(_done: int, _total: int) -> int:
    """librbd's question, now and then, whether to go on. It does not pass on what is raised here, only a number."""
    try:
        jobs.checkpoint()
    except errors.Superseded:
        return -errno.ECANCELED
    return 0


def snapshots(ioctx: Any, name: str) -> list[SnapshotInfo]:
    """The snapshots that users made of an image, oldest first, without those that only clones or groups still need."""
    import rbd

    with rbd.Image(ioctx, name, read_only=True) as image:
        return [
            SnapshotInfo(str(snap["name"]), int(snap["size"]))
            for snap in image.list_snaps()
            if snap["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER and not str(snap["name"]).endswith(_REMOVED)
        ]


def group_snapshot(ioctx: Any, group: str, names: Sequence[str]) -> None:
    """Take a snapshot of several images at one moment; one that an earlier try took is as good as a new one if whole.

    It is of an RBD group of the same name, which holds the images only meanwhile, for an image can be in one group.
    Ceph has all writers wait for it. Raises ImageBusy while an image is in another group.
    """
    import rbd

    with contextlib.suppress(rbd.ObjectExists):
        rbd.RBD().group_create(ioctx, group)
    held = rbd.Group(ioctx, group)
    taken = {str(one["name"]): one["state"] for one in held.list_snaps()}
    if group in taken and not (taken[group] == rbd.RBD_GROUP_SNAP_STATE_COMPLETE and _hold_all(ioctx, group, names)):
        _drop_group_snapshot(ioctx, group, names)
        del taken[group]
    try:
        if group not in taken:
            for name in names:
                _join(ioctx, held, name)
            held.create_snap(group)
    except (rbd.Error, errors.CephError):
        with contextlib.suppress(rbd.Error):
            _leave(ioctx, held, names)
        raise
    _leave(ioctx, held, names)


def _hold_all(ioctx: Any, group: str, names: Sequence[str]) -> bool:
    """Whether each image has its part: a removal that was cut off has taken away some, and Ceph calls it complete."""
    import rbd

    for name in names:
        with rbd.Image(ioctx, name, read_only=True) as image:
            if snap_id(image, group) is None:
                return False
    return True


def _join(ioctx: Any, held: Any, name: str) -> None:
    import rbd

    try:
        held.add_image(ioctx, name)
    except rbd.ObjectExists:
        raise errors.ImageBusy(name, "another group of images") from None
    except rbd.ObjectNotFound:
        raise errors.ImageNotFound(name) from None


def _leave(ioctx: Any, held: Any, names: Sequence[str]) -> None:
    """Take out of a group those images that it has; for one that another group has librbd has no good answer."""
    import rbd

    with contextlib.suppress(rbd.ObjectNotFound):
        for name in {str(one["name"]) for one in held.list_images()}.intersection(names):
            held.remove_image(ioctx, name)


def remove_group_snapshot(ioctx: Any, group: str, names: Sequence[str]) -> None:
    """Remove the snapshot that `group_snapshot` took, or what was begun of it; no trace of it is fine."""
    import rbd

    _drop_group_snapshot(ioctx, group, names)
    _leave(ioctx, rbd.Group(ioctx, group), names)
    rbd.RBD().group_remove(ioctx, group)


def _drop_group_snapshot(ioctx: Any, group: str, names: Sequence[str]) -> None:
    """What each image holds goes first: a try that was cut off did not write down yet which those are."""
    import rbd

    for name in names:
        with contextlib.suppress(rbd.ImageNotFound):
            with rbd.Image(ioctx, name, read_only=True) as image:
                found = snap_id(image, group)
            if found is not None:
                with rbd.Image(ioctx, name) as image:
                    image.remove_snap_by_id(found)
    with contextlib.suppress(rbd.ObjectNotFound):
        rbd.Group(ioctx, group).remove_snap(group)


def snap_id(image: Any, snap: str) -> int | None:
    """The id of an open image's snapshot: a user's of that name, or what a group's snapshot of that name holds."""
    import rbd

    found = None
    for one in image.list_snaps():
        if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER and one["name"] == snap:
            return int(one["id"])
        if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_GROUP and one["group"]["snap_name"] == snap:
            found = int(one["id"])
    return found


def rename(ioctx: Any, name: str, new: str) -> None:
    """Give an image another name; done too if it has it already. Raises ImageNotFound, ImageExists."""
    import rbd

    try:
        rbd.RBD().rename(ioctx, name, new)
    except rbd.ImageNotFound:
        with rbd.Image(ioctx, new, read_only=True):  # Raises ImageNotFound if there is neither.
            pass


def rename_snapshot(ioctx: Any, name: str, snap: str, new: str) -> None:
    """Give a snapshot another name; done too if it has it already. Raises ImageNotFound, ImageExists."""
    import rbd

    with rbd.Image(ioctx, name) as image:
        if new in {str(one["name"]) for one in image.list_snaps()}:
            return
        try:
            image.rename_snap(snap, new)
        except rbd.ImageNotFound as error:
            raise errors.ImageNotFound(f"{name}@{snap}") from error


def names(ioctx: Any, prefix: str) -> set[str]:
    """Names of the pool's images, without those in the trash."""
    import rbd

    return {str(name) for name in rbd.RBD().list(ioctx) if name.startswith(prefix)}


def trashed(ioctx: Any) -> list[tuple[str, str]]:
    """(id, former name) of what somebody moved to the trash, oldest first; librbd's own entries are not ours."""
    return [(entry.id, entry.name) for entry in rbd_trash.entries(ioctx) if entry.source == rbd_trash.BY_USER]


def provisioned(ioctx: Any) -> int:
    """Sum of the sizes of all images in the pool, the trash left out, in bytes."""
    import rbd

    return int(rbd.RBD().pool_stats_get(ioctx)["image_provisioned_bytes"])


def _size(ioctx: Any, name: str) -> int:
    import rbd

    with rbd.Image(ioctx, name, read_only=True) as image:
        return int(image.size())
