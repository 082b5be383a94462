# SPDX-License-Identifier: Apache-2.0
"""The database against Ceph, back end by back end: what each has that the other does not know of.

Requests go on meanwhile. So the rows are read before and after Ceph is asked, and what either reading explains (a row
that is busy, that changed, that came or went) is no finding. What a newcomer gets wrong: an image named volume-* that
no row knows may be all that somebody has of his data: unmanaging leaves just that. So a repair changes rows only, or
has a purge that was begun tried again; everything else is the operator's, with the command said.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import select

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster, Outline
from cinderlite.ceph.look import GROUP, USER, Snap
from cinderlite.context import Backend, World
from cinderlite.core import audit_backups, cephx_users, encryption, volumes
from cinderlite.core.finding import UUID, Finding, Repair, set_row
from cinderlite.core.progress import Progress, silent
from cinderlite.db import models

_IMAGE = re.compile(f"volume-({UUID})")
#: What the service calls its snapshots: of users, of backups, and those that copying needs for a while.
_SNAP = re.compile(
    f"snapshot-{UUID}|backup\\.{UUID}\\.snap|image-cache-{UUID}|image-{UUID}|volume-({UUID})\\.clone_snap"
)
_GROUP_SNAP = re.compile(f"group_snapshot-{UUID}")
#: After so many tries of a purge somebody should look; by then it has been tried for ten minutes.
_MANY_TRIES = 15


class _Row(NamedTuple):
    host: str
    namespace: str
    status: str
    size: int
    header: int
    deleted: bool
    busy: int
    updated_at: Any
    intent: Any
    #: Id of the image by which it can be brought back, or that its snapshots need.
    kept: str | None
    #: Whether it was deleted and its image keeps its name, for its snapshots.
    outlived: bool


class _Snapshot(NamedTuple):
    volume_id: str
    status: str
    busy: int
    held_as: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """What the database says at one moment."""

    volumes: dict[str, _Row]
    snapshots: dict[str, _Snapshot]
    #: Names that snapshots in Ceph may have.
    known: frozenset[str]
    #: Ids of the volumes that have attachments, with the attachments' statuses.
    attached: dict[str, set[str]]


def audit(world: World, progress: Progress = silent, *, repair: bool = False) -> Iterator[Finding]:
    """What does not fit, of all back ends; with `repair` what can be put right without losing data is.

    Raises DatabaseUnavailable.
    """
    for name, cluster, part in _parts(world, progress):
        try:
            found = list(part())
        except (errors.Unavailable, errors.CephError) as error:
            if isinstance(error, errors.DatabaseUnavailable):
                raise  # Of none of them anything could be said.
            found = [Finding("unreachable", name, cluster.pool, str(error), "cinderlite-manage ceph check")]
        for finding in found:
            if repair and finding.repair is not None:
                finding.repaired = finding.repair(world)
            yield finding


def _parts(world: World, progress: Progress) -> Iterator[tuple[str, Cluster, Callable[[], Iterator[Finding]]]]:
    """What is looked at, one after another: its name, its cluster, and how."""
    for backend in world.backends.values():
        yield backend.name, backend.cluster, functools.partial(_of, world, backend, progress)
    if world.backup_cluster is not None:
        look = functools.partial(_twice, functools.partial(audit_backups.once, world, world.backup_cluster, progress))
        yield audit_backups.NAME, world.backup_cluster, look


def _of(world: World, backend: Backend, progress: Progress) -> Iterator[Finding]:
    yield from _twice(functools.partial(_once, world, backend, progress))
    yield from _users(world, backend)


def _twice(look: Callable[[str], dict[Any, Finding]]) -> Iterator[Finding]:
    """What is found both times, by a key, if anything is. `look` is told what to add to what it says of its progress.

    What comes and goes between two readings of the rows is in neither, but does not come twice either.
    """
    if first := look(""):
        yield from (again for key, again in look(", again").items() if key in first)


def _users(world: World, backend: Backend) -> Iterator[Finding]:
    """What the service's own sweep would remove, if it ran and were let."""
    for user, what in cephx_users.leftovers(world, backend).items():
        if cephx_users.may_be_open(world, backend, what):
            open_ = f"server {what.get('server')} has it, or cannot be asked, and there is no attachment"
            remedy = "cinderlite-manage rebuild --add makes one; else have the server let it go"
            yield Finding("unknown-attachment", backend.name, f"volume {what.get('volume')}", open_, remedy)
            continue
        remedy = f"the service removes it within a minute; by hand: ceph auth del client.{user}"
        yield Finding("leaked-user", backend.name, f"client.{user}", "a cephx user that no attachment has", remedy)


def _once(world: World, backend: Backend, progress: Progress, again: str) -> dict[Any, Finding]:
    before = _read(world)
    seen = []
    for cluster in _places(backend, before):
        note = functools.partial(progress, f"images of {cluster.place}{again}")
        seen.append(_look(backend, cluster, before, note))
    after = _read(world)
    return {
        (there.cluster.namespace, *one.key): one
        for there in seen
        for one in _Comparison(world, backend, before, there, after).findings()
    }


def _places(backend: Backend, rows: _Rows) -> list[Cluster]:
    """The namespaces of a pool: those that Ceph lists, the default one, which it does not, and what rows speak of."""
    named = {row.namespace for row in rows.volumes.values() if row.host == backend.pool and not row.deleted}
    return [backend.cluster.within(one) for one in sorted({"", *named, *backend.cluster.namespaces()})]


def _read(world: World) -> _Rows:
    backup = models.Backup
    with world.db.read() as session:
        found = {
            row.id: _Row(
                row.host, row.namespace, row.status, row.size, encryption.header_bytes(row), row.deleted, row.busy,
                row.updated_at, row.intent, (row.kept or {}).get("image_id"), bool((row.kept or {}).get("named")),
            )
            for row in session.scalars(select(models.Volume))
        }  # fmt: skip
        snapshots = {
            row.id: _Snapshot(row.volume_id, row.status, row.busy, row.held_as)
            for row in session.scalars(select(models.Snapshot))
        }
        backups = session.execute(select(backup.id, backup.details)).all()
        group_snapshots = session.scalars(select(models.GroupSnapshot)).all()
        attachments = session.execute(select(models.Attachment.volume_id, models.Attachment.status)).all()
    known = {row.held_as for row in snapshots.values()} | {f"snapshot-{row_id}" for row_id in snapshots}
    known |= {f"backup.{one}.snap" for row_id, details in backups for one in (row_id, details.get("stored_as"))}
    attached: dict[str, set[str]] = {}
    for volume_id, status in attachments:
        attached.setdefault(volume_id, set()).add(status)
    return _Rows(found, snapshots, frozenset(known | {row.snap for row in group_snapshots}), attached)


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """What Ceph says of a namespace; an image that was looked for and is not there is None, or how far it has moved."""

    cluster: Cluster
    images: set[str]
    outlines: dict[str, Outline | str | None]
    #: id of an image in the trash → its former name
    trash: dict[str, str]


def _look(backend: Backend, cluster: Cluster, rows: _Rows, note: Callable[[int, int], None]) -> _Seen:
    """Ask Ceph. Only images of volumes at rest are opened: one that moves must not be (doc/decisions/0007)."""
    images = cluster.images("volume-")
    at_rest = [
        volume_id
        for volume_id, row in rows.volumes.items()
        if (row.host, row.namespace) == (backend.pool, cluster.namespace)
        and (row.outlived or not row.deleted)
        and not row.busy
    ]
    outlines = {}
    for done, volume_id in enumerate(at_rest):
        note(done, len(at_rest))
        outlines[volume_id] = _outline(cluster, f"volume-{volume_id}", images)
    return _Seen(cluster, images, outlines, dict(cluster.trashed()))


def _outline(cluster: Cluster, name: str, images: set[str]) -> Outline | str | None:
    if name not in images:  # A migration takes the name away.
        return cluster.migration(name)
    try:
        return cluster.outline(name)
    except errors.ImageNotFound:
        return None


class _Comparison:
    """One namespace of a back end: two readings of the rows, and Ceph's between them."""

    def __init__(self, world: World, backend: Backend, before: _Rows, seen: _Seen, after: _Rows) -> None:
        self._world = world
        self._backend = backend
        self._cluster = seen.cluster
        self._before = before
        self._seen = seen
        self._after = after
        self._known = before.known | after.known
        #: Volumes that are on their way, or were meanwhile, and the images that they are made of.
        both = before.volumes | after.volumes
        self._moving = {
            one for one, row in both.items() if row.busy or before.volumes.get(one) != after.volumes.get(one)
        }
        self._taken = {(row.intent or {}).get("image") for row in (*before.volumes.values(), *after.volumes.values())}

    def findings(self) -> Iterator[Finding]:
        for volume_id, outline in self._seen.outlines.items():
            row = self._before.volumes[volume_id]
            if volume_id not in self._moving:
                if row.outlived:
                    yield from self._left_snapshots(volume_id, outline)
                elif outline is None:
                    yield from self._missing(volume_id, row)
                elif isinstance(outline, str):
                    yield self._stuck_migration(volume_id, outline)
                else:
                    yield from self._differences(volume_id, row, outline)
                yield from self._wrong_status(volume_id, row)
        for name in sorted(self._seen.images):
            yield from self._extra(name)
        for image_id, name in self._seen.trash.items():
            yield from self._trashed(image_id, name)

    # -- volumes

    def _missing(self, volume_id: str, row: _Row) -> Iterator[Finding]:
        if row.status.startswith("error"):
            return  # It is said there already.
        name = f"volume-{volume_id}"
        what = f"the volume is {row.status}, but its image is not in pool {self._place}"
        in_trash = [image_id for image_id, former in self._seen.trash.items() if former == name]
        if in_trash:
            command = self._rbd("trash restore", *self._where, in_trash[-1])
            yield self._finding("missing-image", name, f"{what}; it is in the trash", command)
        elif elsewhere := self._elsewhere(name):
            yield self._finding(
                "missing-image", name, f"{what}; one of that name is in {elsewhere}", "look at both pools"
            )
        elif row.status != "available":
            remedy = f"detach it, then openstack volume set --state error {volume_id}"
            yield self._finding("missing-image", name, what, remedy)
        else:
            yield self._finding(
                "missing-image",
                name,
                what,
                "set the volume's status to error",
                _set_volume(volume_id, row, status="error"),
            )

    def _elsewhere(self, name: str) -> str | None:
        for other in self._world.backends.values():
            try:
                for one in _places(other, self._after):
                    is_here = other is self._backend and one.namespace == self._cluster.namespace
                    if not is_here and name in one.images(name):
                        return f"{other.pool}/{one.namespace}".rstrip("/")
            except errors.Unavailable:
                return f"{other.pool} perhaps, which does not answer"
        return None

    def _stuck_migration(self, volume_id: str, state: str) -> Finding:
        name = f"volume-{volume_id}"
        what = f"its migration to another pool is {state}, but no work is under way"
        return self._finding("migration", name, what, self._rbd("migration abort", f"{self._place}/{name}"))

    def _differences(self, volume_id: str, row: _Row, outline: Outline) -> Iterator[Finding]:
        name = f"volume-{volume_id}"
        size = -(-(outline.size_bytes - row.header) // volumes.GIB)
        if size != row.size:
            what = f"the volume has {row.size} GiB, its image {outline.size_bytes} bytes"
            remedy = f"set the volume's size to {size} GiB"
            yield self._finding("wrong-size", name, what, remedy, _set_volume(volume_id, row, size=size))
        yield from self._lost_snapshots(volume_id, {_called(one) for one in outline.snapshots})
        for snap in outline.snapshots:
            if self._is_leaked(name, snap):
                yield self._leaked(name, snap)

    def _wrong_status(self, volume_id: str, row: _Row) -> Iterator[Finding]:
        """One that administrators have set, or a dump of the database that was put back has."""
        name, change = f"volume-{volume_id}", "openstack volume set --state"
        attachments = [one.attached.get(volume_id, set()) for one in (self._before, self._after)]
        if row.status == "in-use" and not any(attachments):
            remedy = f"if nobody has it open (cinderlite-manage explain {volume_id}): {change} available {volume_id}"
            yield self._finding("wrong-status", name, "the volume is in-use, but has no attachment", remedy)
        elif row.status == "available" and all("attached" in one for one in attachments):
            remedy = f"detach it, or {change} in-use {volume_id}"
            yield self._finding("wrong-status", name, "the volume is available, but is attached", remedy)

    def _left_snapshots(self, volume_id: str, outline: Outline | str | None) -> Iterator[Finding]:
        """Of an image that only its snapshots need, its size says nothing."""
        there = outline.snapshots if isinstance(outline, Outline) else []
        yield from self._lost_snapshots(volume_id, {_called(one) for one in there})
        for snap in there:
            if self._is_leaked(f"volume-{volume_id}", snap):
                yield self._leaked(f"volume-{volume_id}", snap)

    def _lost_snapshots(self, volume_id: str, there: set[str | None]) -> Iterator[Finding]:
        for snapshot_id, row in self._before.snapshots.items():
            at_rest = (
                not row.busy and not row.status.startswith("error") and row == self._after.snapshots.get(snapshot_id)
            )
            if row.volume_id == volume_id and at_rest and row.held_as not in there:
                yield self._finding(
                    "missing-snapshot",
                    f"volume-{volume_id}@{row.held_as}",
                    f"the snapshot is {row.status}, but not in Ceph",
                    "set the snapshot's status to error",
                    set_row(models.Snapshot, snapshot_id, {"status": "error"}, models.Snapshot.status == row.status),
                )

    def _is_leaked(self, image: str, snap: Snap) -> bool:
        name = _called(snap)
        # Its own name has the one that what is kept of an image is cloned from.
        if name is None or name in self._known or name == f"{image}.clone_snap":
            return False
        if snap.kind == GROUP:
            return _GROUP_SNAP.fullmatch(name) is not None
        match = _SNAP.fullmatch(name)
        # A volume that is being copied from this one explains its snapshot.
        return match is not None and match[1] not in self._moving

    def _leaked(self, name: str, snap: Snap) -> Finding:
        if snap.kind == GROUP:
            command = self._rbd("group snap rm", f"{self._place}/{snap.origin}@{snap.origin}")
            return self._finding("leaked-snapshot", f"{name}@{snap.origin}", "no group snapshot knows it", command)
        command = self._rbd("snap rm", f"{self._place}/{name}@{snap.name}")
        if snap.name.startswith("snapshot-") and not self._after.volumes[name.removeprefix("volume-")].deleted:
            take = f"cinder snapshot-manage {name.removeprefix('volume-')} {snap.name}"
            command = f"take it over: {take}; if nobody needs it: {command}"
        return self._finding("leaked-snapshot", f"{name}@{snap.name}", "nothing in the database knows it", command)

    # -- images that no volume has

    def _extra(self, name: str) -> Iterator[Finding]:
        match = _IMAGE.fullmatch(name)
        if not match or match[1] in self._moving or name in self._taken:
            return
        row = self._after.volumes.get(match[1])
        if (
            row is not None
            and row.outlived
            and (row.host, row.namespace) == (self._backend.pool, self._cluster.namespace)
        ):
            return
        if row is not None and not row.deleted:
            if (row.host, row.namespace) != (self._backend.pool, self._cluster.namespace):
                remedy = f"compare both images before one goes: cinderlite-manage explain {match[1]}"
                there = f"{row.host}/{row.namespace}".rstrip("/")
                yield self._finding("extra-image", name, f"its volume is on {there}", remedy)
            return
        what = "no volume has it" if row is None else "its volume was deleted, or let go (unmanaged)"
        command = self._rbd("trash mv", f"{self._place}/{name}")
        called = f"{self._cluster.namespace}/{name}".lstrip("/")
        take = f"cinder manage {self._backend.pool} {called}"
        yield self._finding("extra-image", name, what, f"take it over: {take}; if nobody needs it: {command}")

    def _trashed(self, image_id: str, name: str) -> Iterator[Finding]:
        match = _IMAGE.fullmatch(name)
        if not match:
            return
        row = self._after.volumes.get(match[1])
        if row is not None and row.busy:
            yield from self._waiting(match[1], row, image_id)
        if match[1] in self._moving or (row is not None and not row.deleted):
            return  # A volume at rest without its image is another finding.
        if row is not None and row.kept == image_id:
            return  # It can still be brought back.
        command = self._rbd("trash rm", *self._where, image_id)
        what = "it is in the trash, and nobody will remove it from there"
        yield self._finding("trash", f"{name} ({image_id})", what, f"if nobody needs it: {command}")

    def _waiting(self, volume_id: str, row: _Row, image_id: str) -> Iterator[Finding]:
        tries = row.intent.get("tries", 0)
        if row.intent.get("image_id") == image_id and tries >= _MANY_TRIES:
            what = f"its purge was tried {tries} times; cinderlite-manage explain {volume_id} says why"
            subject = f"volume-{volume_id} ({image_id})"
            yield self._finding("purge-waits", subject, what, "try again now", _hasten(volume_id))

    # -- words

    @property
    def _place(self) -> str:
        return self._cluster.place

    @property
    def _where(self) -> list[str]:
        namespace = self._cluster.namespace
        return ["--pool", self._cluster.pool, *(["--namespace", namespace] if namespace else [])]

    def _rbd(self, *words: str) -> str:
        return " ".join(["rbd", "-c", self._backend.cluster.conffile, *words])

    def _finding(self, kind: str, subject: str, what: str, remedy: str, repair: Repair | None = None) -> Finding:
        return Finding(kind, self._backend.name, subject, what, remedy, repair)


def _called(snap: Snap) -> str | None:
    """What the database calls a snapshot; None for one that is not its business."""
    return {USER: snap.name, GROUP: snap.origin}.get(snap.kind)


def _set_volume(volume_id: str, seen: _Row, **values: Any) -> Repair:
    table = models.Volume
    still = table.deleted.is_(False), table.host == seen.host, table.status == seen.status, table.size == seen.size
    return set_row(table, volume_id, values, *still)


def _hasten(volume_id: str) -> Repair:
    def repair(world: World) -> bool:
        with world.db.write() as session:
            return volumes.LIFECYCLE.hasten(session, volume_id) == 1

    return repair
