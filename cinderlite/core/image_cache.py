# SPDX-License-Identifier: Apache-2.0
"""Volumes of the service's own project, one for each image that was copied, from which further volumes are cloned.

What a newcomer gets wrong: an entry must hold the image and nothing else. It is cloned from a snapshot that is taken
while the new volume is still nobody's; once that one is available its owner may have written to it. An entry has a
snapshot for good, since to take one for each clone would cost up to a second of the monitors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, exists, func, update
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import Context, ImageCache, World
from cinderlite.core import quotas, volumes
from cinderlite.core.volumes import GIB, Origin
from cinderlite.db import models

LOG = logging.getLogger(__name__)


def _owner(world: World, host: str) -> tuple[ImageCache, Context] | None:
    """The limits of a pool's cache, and the service as the project that owns it; None if there is none."""
    settings = world.settings
    limits = world.backend(host).image_cache
    if limits is None or not settings.internal_project or not settings.internal_user:
        return None
    return limits, Context(world, settings.internal_user, settings.internal_project, frozenset(), "image-cache")


def _entries(ctx: Context, host: str) -> Select[models.Volume]:
    """The entries of a pool, those used last first."""
    used = func.coalesce(models.Volume.updated_at, models.Volume.created_at)
    return volumes.visible(ctx).where(models.Volume.host == host).order_by(used.desc())


def _of_image(query: Select[models.Volume], image_id: str, checksum: str | None) -> Select[models.Volume]:
    rows = models.ImageMetadata
    for key, value in (("image_id", image_id), ("checksum", checksum)):
        if value is not None:
            query = query.where(
                exists().where(rows.volume_id == models.Volume.id, rows.key == key, rows.value == value)
            )
    return query


def find(world: World, session: Session, image_id: str, checksum: str | None) -> dict[str, models.Volume]:
    """Pool → the entry for an image that can be cloned there, into volumes that are as big as it."""
    found = {}
    for backend in world.backends.values():
        owner = _owner(world, backend.pool)
        if owner is not None:
            query = _of_image(_entries(owner[1], backend.pool), image_id, checksum)
            entry = session.scalars(query.where(models.Volume.status == "available").limit(1)).one_or_none()
            if entry is not None:
                found[backend.pool] = entry
    return found


def use(world: World, volume: models.Volume, entry_id: str | None) -> int | None:
    """Make a new volume's image from an entry, and return its clone depth; None if it is too big, or gone."""
    with world.db.read() as session:
        entry = session.get(models.Volume, entry_id) if entry_id is not None else None
    if entry is None or entry.deleted or entry.size > volume.size:
        return None
    try:
        there = world.cluster_of(entry)
        world.cluster_of(volume).clone(entry.image, _snap(entry), volume.image, volume.size * GIB, source=there)
    except errors.ImageNotFound:
        return None
    with world.db.write() as session:
        session.execute(update(models.Volume).where(models.Volume.id == entry.id).values(updated_at=models.utcnow()))
    return entry.clone_depth + 1


def _snap(entry: models.Volume) -> str:
    """The snapshot that an entry is cloned from; by its name it goes with the image, as one that a copy left."""
    return f"{entry.image}.clone_snap"


def keep(world: World, volume: models.Volume, metadata: Mapping[str, str], size: int) -> None:
    """Keep what a new volume holds, `size` GiB of an image and nothing else yet, if its pool has a cache.

    That it cannot be kept is no failure of the volume.
    """
    owner = _owner(world, volume.host)
    if owner is None or (owner[0].max_gib and size > owner[0].max_gib):
        return
    try:
        _keep(*owner, volume, metadata, size)
    except errors.CinderliteError as error:
        LOG.warning("the image of volume %s is not kept: %s", volume.id, error)


def _keep(limits: ImageCache, ctx: Context, volume: models.Volume, metadata: Mapping[str, str], size: int) -> None:
    world, cluster = ctx.world, ctx.world.cluster_of(volume)
    snap = f"image-cache-{volume.id}"
    cluster.snapshot(volume.image, snap)
    try:
        with world.db.write() as session:
            quotas.lock(session, ctx.project_id)
            known = _of_image(_entries(ctx, volume.host), metadata["image_id"], metadata.get("checksum"))
            if session.scalars(known.where(models.Volume.status != "error").limit(1)).one_or_none() is not None:
                return
            entry = _new(ctx, volume, metadata, size)
            source = {"kind": "image_cache", "id": volume.id, "image": volume.image, "snap": snap}
            source["namespace"] = volume.namespace
            lease = volumes.LIFECYCLE.start(entry, "create", ctx.settings.lease, ctx.request_id, source=source)
            session.add(entry)
        volumes.LIFECYCLE.run(world, entry.id, lease)
    finally:
        cluster.remove_snapshot(volume.image, snap)
    _make_room(limits, ctx, volume.host)


def _new(ctx: Context, volume: models.Volume, metadata: Mapping[str, str], size: int) -> models.Volume:
    return models.Volume(
        id=models.new_id(),
        project_id=ctx.project_id,
        user_id=ctx.user_id,
        name=f"image-{metadata['image_id']}",
        size=size,
        availability_zone=volume.availability_zone,
        host=volume.host,
        volume_type_id=volume.volume_type_id,
        bootable=True,
        clone_depth=0 if volume.namespace else volume.clone_depth + 1,
        image_metadata_rows=[models.ImageMetadata(key=key, value=value) for key, value in metadata.items()],
    )


def _make_room(limits: ImageCache, ctx: Context, host: str) -> None:
    """Remove entries that failed, and those not used for longest until the rest is within the limits."""
    with ctx.world.db.read() as session:
        entries = list(session.scalars(_entries(ctx, host).where(models.Volume.busy == 0)))
    count, size = 0, 0
    for entry in entries:
        count, size = count + 1, size + entry.size
        too_many = (limits.max_count and count > limits.max_count) or (limits.max_gib and size > limits.max_gib)
        if too_many or entry.status == "error":
            volumes.delete(ctx, entry)
            count, size = count - 1, size - entry.size


def _origin(ctx: Context, session: Session, volume_id: str) -> Origin:
    """Nobody asks for a volume from the cache by name."""
    del ctx, session
    raise errors.VolumeNotFound(volume_id)


def _fill(world: World, entry: models.Volume, arguments: Mapping[str, Any]) -> None:
    cluster = world.cluster_of(entry)
    source = cluster.within(arguments.get("namespace", ""))
    cluster.clone(arguments["image"], arguments["snap"], entry.image, entry.size * GIB, source=source)
    with cluster.opened(entry.image, write=True) as image:
        image.resize(entry.size * GIB)
    if source.namespace != cluster.namespace:  # Others are to read it, but nothing of that project's.
        cluster.make_whole(entry.image)
    cluster.snapshot(entry.image, _snap(entry))


volumes.SOURCES["image_cache"] = volumes.Source(_origin, _fill)
