# SPDX-License-Identifier: Apache-2.0
"""All that is known of one volume, from the database and from Ceph side by side, for an operator who looks for a fault.

Nothing here changes anything. What a newcomer gets wrong: a volume that moves between pools may not be opened just so
(see doc/decisions/0007). So the migration is asked for first, and decides where one may look, if at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from cinderlite import errors
from cinderlite.ceph.cluster import Portrait
from cinderlite.ceph.look import TRASH, USER, Relative, Snap
from cinderlite.context import World
from cinderlite.core import cephx_users, encryption, states
from cinderlite.core.volumes import GIB
from cinderlite.db import clock, models

#: How far a migration must be for its target to be opened.
_OPENABLE = frozenset({"prepared", "executing", "executed"})
#: What may be under way beside a volume and have a part in it.
_BESIDE: tuple[type[Any], ...] = (models.Volume, models.Backup, models.Group, models.GroupSnapshot, models.Flatten)

Told = dict[str, Any]


def explain(world: World, which: str) -> Told:
    """Everything about a volume that is named by its id, its image's name or its own. Raises VolumeNotFound.

    Raises InvalidInput when several volumes have that name. What cannot be found out is said in `unknown`.
    """
    with world.db.read() as session:
        volume = _find(session, which)
        snapshots = list(session.scalars(select(models.Snapshot).where(models.Snapshot.volume_id == volume.id)))
        now = clock.read(session)
        elsewhere = list(_elsewhere(session, volume, now))
    told: Told = {
        "volume": _volume(volume),
        "work": _work(volume, now),
        "work_elsewhere": elsewhere,
        "attachments": [_attachment(world, volume, one, now) for one in volume.attachments],
        "migration": None,
        "image": None,
        "snapshots": [],
        "unknown": None,
        "remarks": [],
    }
    seen = None
    try:
        told["migration"], seen = _look(world, volume)
    except errors.ImageNotFound:
        told["unknown"] = f"{world.cluster_of(volume).place} has no such image"
    except (errors.Unavailable, errors.CephError) as error:
        told["unknown"] = str(error)
    if seen is not None:
        pool, portrait = seen
        told["image"] = {"pool": pool, "name": volume.image, **dataclasses.asdict(portrait)}
        del told["image"]["snapshots"]
        told["remarks"] = list(_remarks(volume, portrait, pool, at_work=bool(elsewhere)))
    told["snapshots"] = _snapshots(snapshots, seen[1].snapshots if seen else None, now)
    told["remarks"] += [
        f"snapshot {one['id']} is not in Ceph"
        for one in told["snapshots"]
        if seen and not one["kind"] and not one["work"] and one["status"] != "error"
    ]
    return told


def _find(session: Session, which: str) -> models.Volume:
    table = models.Volume
    wanted = or_(table.id == which.removeprefix("volume-"), (table.name == which) & table.deleted.is_(False))
    query = select(table).where(wanted).options(joinedload(table.volume_type), selectinload(table.attachments))
    found = list(session.scalars(query.limit(20)))
    if not found:
        raise errors.VolumeNotFound(which)
    if len(found) > 1:
        raise errors.InvalidInput(f"several volumes have that name: {', '.join(sorted(one.id for one in found))}")
    return found[0]


def _look(world: World, volume: models.Volume) -> tuple[str | None, tuple[str, Portrait] | None]:
    """How far a move is, and the image with the pool that it is in; None while nobody may open it."""
    cluster, intent = world.cluster_of(volume), volume.intent or {}
    in_trash = intent.get("image_id") or (volume.kept or {}).get("image_id")
    if volume.deleted and in_trash is not None:
        return None, (cluster.place, cluster.portrait(volume.image, in_trash))
    state = cluster.migration(volume.image)
    if state is None:
        return None, (cluster.place, cluster.portrait(volume.image))
    if state not in _OPENABLE or not {"host", "namespace"} & intent.keys():
        return state, None
    target = world.cluster(intent.get("host", volume.host)).within(intent.get("namespace", ""))
    return state, (target.place, target.portrait(volume.image))


def _volume(volume: models.Volume) -> Told:
    names = (
        "id",
        "name",
        "project_id",
        "status",
        "size",
        "host",
        "migration_status",
        "group_id",
        "multiattach",
        "encrypted",
    )
    told = {name: getattr(volume, name) for name in names}
    return told | {
        "volume_type": volume.volume_type.name,
        "created_at": _moment(volume.created_at),
        "deleted_at": _moment(volume.deleted_at),
        "last_error": volume.reason,
    }


def _moment(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def _work(row: models.Working, now: float) -> Told | None:
    """What is under way on a row at a time of the database's clock; `progress` is in percent.

    `waits` are the seconds until the next try, or until the lease ends.
    """
    if row.intent is None:
        return None
    return {
        "verb": row.intent["verb"],
        "progress": row.intent.get("progress"),
        "request_id": row.intent.get("request_id"),
        "tries": row.intent.get("tries", 0),
        "owner": None if row.lease_owner is None else states.shown_owner(row.lease_owner),
        "waits": round(max(row.lease_until - now, 0.0), 1),
        "last_error": row.reason,
    }


def _elsewhere(session: Session, volume: models.Volume, now: float) -> Iterator[Told]:
    """Work on other things that this volume, or its group, has a part in: a backup of it, a clone that is made."""
    ours = {volume.id, volume.group_id} - {None}
    for model in _BESIDE:
        for row in session.scalars(select(model).where(model.busy == 1)):
            if row is volume:
                continue
            columns = {
                getattr(row, name, None) for name in ("id", "volume_id", "group_id") if model is not models.Volume
            }
            if ours & columns or ours & set(json.dumps(row.intent).split('"')):
                yield {"kind": model.__name__.lower(), "id": row.id, "status": row.status, "work": _work(row, now)}


def _attachment(world: World, volume: models.Volume, row: models.Attachment, now: float) -> Told:
    names = ("id", "status", "server_id", "host", "device", "mode", "managed")
    more = {"cephx_user": _cephx_user(world, volume, row), "work": _work(row, now), "last_error": row.reason}
    return {name: getattr(row, name) for name in names} | more


def _cephx_user(world: World, volume: models.Volume, row: models.Attachment) -> str | None:
    """Its own, if it has one and we know where."""
    with contextlib.suppress(errors.BackendMissing):
        return row.cephx_name and cephx_users.user_of(row.cephx_name, world.cluster_of(volume))
    return None


def _snapshots(rows: Iterable[models.Snapshot], seen: list[Snap] | None, now: float) -> list[Told]:
    """The snapshots of both sides; `kind` is None for those that Ceph does not have."""
    left = {row.held_as: row for row in rows}
    told = []
    for snap in seen or ():
        row = left.pop(snap.name if snap.kind == USER else snap.origin or "", None) if snap.kind != TRASH else None
        told.append(dataclasses.asdict(snap) | {"snap_id": snap.id} | _row(row, now))
    return told + [{"kind": None, "origin": None, **_row(row, now), "name": row.held_as} for row in left.values()]


def _row(row: models.Snapshot | None, now: float) -> Told:
    if row is None:
        return {"id": None, "status": None, "work": None}
    return {"id": row.id, "status": row.status, "work": _work(row, now)}


def _remarks(volume: models.Volume, image: Portrait, pool: str, *, at_work: bool) -> Iterator[str]:
    """What does not fit together, unless work under way explains it."""
    if volume.busy or volume.deleted:
        return
    if -(-(image.size_bytes - encryption.header_bytes(volume)) // GIB) != volume.size:
        yield f"the volume has {volume.size} GiB and its image {_size(image.size_bytes)}: cinderlite-manage audit"
    if image.watchers and not volume.attachments and not at_work:
        yield "a client has the image open, but the volume is attached nowhere; the watch of a dead one ends after 30 s"
    for flag in image.flags:
        yield f"{flag}: rbd object-map rebuild {pool}/{volume.image}"


# -- as text


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    for label, texts in _paragraphs(told):
        for number, text in enumerate(texts or ["none"] if label else texts):
            yield f"{label if number == 0 else '':<13}{text}"


def _paragraphs(told: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    volume, image = told["volume"], told["image"]
    named = f' "{volume["name"]}"' if volume["name"] else ""
    yield "volume", [f"{volume['id']}{named}"]
    yield "status", [volume["status"] + _because(volume["last_error"] if told["work"] is None else None)]
    yield "size", [f"{volume['size']} GiB"]
    yield "type", [volume["volume_type"] + (", encrypted" if volume["encrypted"] else "")]
    yield "project", [volume["project_id"]]
    yield "host", [volume["host"]]
    yield "work", _shown_work(told["work"])
    yield (
        "",
        [
            f"{one['kind']} {one['id']} {one['status']}: {' '.join(_shown_work(one['work']))}"
            for one in told["work_elsewhere"]
        ],
    )
    yield "attachments", [_shown_attachment(one) for one in told["attachments"]]
    yield "migration", [told["migration"] or volume["migration_status"] or "none"]
    if image is None:
        yield "image", [told["unknown"] or "nobody may open it while it moves"]
    else:
        yield from _shown_image(image)
    yield f"snapshots {len(told['snapshots']) or ''}", [_shown_snapshot(one) for one in told["snapshots"]]
    yield "remarks", told["remarks"]


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _shown_work(work: Told | None) -> list[str]:
    if work is None:
        return []
    who = f"done by {work['owner']}, lease for" if work["owner"] else "next try in"
    done = "" if work["progress"] is None else f" {work['progress']} %"
    return [
        f"{work['verb']}{done}, tried {work['tries']} times, {who} {work['waits']:g} s{_because(work['last_error'])}"
    ]


def _shown_attachment(one: Told) -> str:
    where = f"server {one['server_id']}" if one["server_id"] else f"host {one['host']}"
    who = "" if one["managed"] else ", plugged in by somebody else"
    who += f", as client.{one['cephx_user']}" if one["cephx_user"] else ""
    device = f" as {one['device']}" if one["device"] else ""
    return " ".join([f"{one['id']} {one['status']}: {where}{device}{who}", *_shown_work(one["work"])])


def _shown_image(image: Told) -> Iterator[tuple[str, list[str]]]:
    used = "unknown without fast-diff" if image["used_bytes"] is None else _size(image["used_bytes"])
    yield "image", [f"{image['pool']}/{image['name']}, id {image['id']}"]
    yield "", [f"{_size(image['size_bytes'])}, used {used}"]
    yield "features", [", ".join(image["features"])]
    yield f"parents {len(image['parents']) or ''}", [_shown_relative(one) for one in image["parents"]]
    if image["children"] is None:
        yield "children", ["unknown: there are some in pools that our user may not read"]
    else:
        yield f"children {len(image['children']) or ''}", [_shown_relative(one) for one in image["children"]]
    yield "watchers", image["watchers"]
    yield "lock", image["lock_owners"]


def _shown_relative(one: Mapping[str, Any]) -> str:
    relative = Relative(**one)
    words = {True: ", in the trash", False: "", None: ", into which our user may not look"}
    snap = f"@{relative.snap}" if relative.snap else ""
    place = "/".join(part for part in (relative.pool, relative.namespace, relative.image) if part)
    return f"{place}{snap}{words[relative.trashed]}"


def _shown_snapshot(one: Told) -> str:
    row = f"{one['status']}" if one["id"] else "no volume snapshot's"
    if one["kind"] is None:
        return f"{one['name']}: {row}, not in Ceph"
    words = {USER: one["name"], TRASH: f"{one['origin']}, removed, kept by Ceph for its clones"}
    name = words.get(one["kind"]) or f"{one['origin'] or one['name']} ({one['kind']})"
    return f"{name}, {_size(one['size_bytes'])}" + ("" if one["kind"] == TRASH else f": {row}")


def _size(size: int) -> str:
    for unit, bytes_of in (("GiB", GIB), ("MiB", 2**20)):
        if size >= bytes_of:
            return f"{size / bytes_of:.4g} {unit}"
    return f"{size} bytes"
