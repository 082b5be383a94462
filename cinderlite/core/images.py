# SPDX-License-Identifier: Apache-2.0
"""Volumes from images, images from volumes, and images written over volumes.

A raw image that Glance keeps in the same Ceph cluster is cloned at once; every other one is copied by a job, through
`qemu-img` if it is not raw. What a newcomer gets wrong: Glance decides who may see an image, so it is asked with the
caller's token before anything is begun, and never inside a transaction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from cinderlite import errors, jobs
from cinderlite.ceph.cluster import Cluster, OpenImage
from cinderlite.ceph.data import CHUNK_BYTES
from cinderlite.context import Context, World
from cinderlite.core import encryption, image_cache, volumes
from cinderlite.core.volumes import GIB, Origin
from cinderlite.db import models
from cinderlite.images import Image, Images, Location, formats
from cinderlite.keys import luks

LOG = logging.getLogger(__name__)

#: What Glance itself says of an image; whatever else is there its owner has said.
_GLANCES_OWN = frozenset({
    "id", "name", "status", "visibility", "protected", "owner", "size", "virtual_size", "min_disk", "min_ram",
    "checksum", "os_hash_algo", "os_hash_value", "os_hidden", "disk_format", "container_format", "created_at",
    "updated_at", "tags", "file", "self", "schema", "direct_url", "locations", "stores", "store", "url", "metadata",
})  # fmt: skip
#: What of that a volume's image metadata repeat, as Cinder does; and under which names it keeps id and name.
_KEPT = ("checksum", "container_format", "disk_format", "min_disk", "min_ram", "size")
_CORE = frozenset({*_KEPT, "image_id", "image_name", "name"})
#: Properties that Glance does not let anybody set, or that would no longer be true of another image.
_RESERVED = ("os_glance", "img_signature", "signature_verified", "cinder_encryption_key")
#: Containers whose content is not the disk itself.
_PACKED = frozenset({"compressed", "docker", "ova"})
#: Visibilities of images that every project may use.
_FOR_ALL = ("public", "community")
_ZEROS = bytes(CHUNK_BYTES)


def service(world: World) -> Images:
    """The image service. Raises InvalidInput when there is none."""
    if world.images is None:
        raise errors.InvalidInput("this service works without an image service")
    return world.images


# -- volumes from images


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """An image that a volume can be made from; `at_once` if every back end can clone it from `parent`."""

    image: Image
    parent: Location | None
    at_once: bool


def source(ctx: Context, reference: str, *, of_servers: bool) -> tuple[str, Any]:
    """What a volume from the image of that id, URL or name is really made from: a key of SOURCES and what it takes.

    An image that a Nova made of a server with volumes holds no data but names a snapshot, which counts if `of_servers`.
    Raises ImageUnknown, ImageUnacceptable, GlanceUnavailable.
    """
    image = _seen(ctx, reference)
    snapshot = _root_snapshot(image) if of_servers else None
    if snapshot is not None:
        return "snapshot_id", snapshot
    _refuse_unusable(service(ctx.world), image)
    parent = image.in_rbd if image.disk_format == "raw" else None
    if parent is None:
        return "image_id", Found(image, None, at_once=False)
    reachable = [_can_clone(backend.cluster, parent) for backend in ctx.world.backends.values()]
    return "image_id", Found(image, parent if any(reachable) else None, at_once=all(reachable))


def _seen(ctx: Context, reference: str) -> Image:
    """The image as the caller sees it. Raises ImageUnknown."""
    glance = service(ctx.world).glance
    glance.lend(ctx.request_id, ctx.token)

    def visible(image: Image) -> bool:
        theirs = image.fields.get("owner")
        return ctx.is_admin or theirs in (None, ctx.project_id) or image.fields.get("visibility") in _FOR_ALL

    return glance.find(ctx.request_id, reference, visible)


def _root_snapshot(image: Image) -> str | None:
    devices = image.fields.get("block_device_mapping") or "[]"
    # Whoever has the image can write there what he likes.
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        for device in json.loads(devices) if isinstance(devices, str) else devices:
            if isinstance(device, dict) and device.get("source_type") == "snapshot" and device.get("boot_index") == 0:
                return str(device.get("snapshot_id"))
    return None


def _refuse_unusable(images: Images, image: Image) -> None:
    """Raise InvalidInput or ImageUnacceptable for an image that cannot become a volume."""
    if image.status != "active":
        raise errors.InvalidInput(f"Image {image.id} is not active.")
    if image.fields.get("container_format") in _PACKED or image.fields.get("cinder_encryption_key_id"):
        raise errors.ImageUnacceptable(image.id, "it is compressed, encrypted or a container of other files")
    if image.disk_format not in formats.READABLE:
        raise errors.ImageUnacceptable(image.id, f"its format {image.disk_format or 'unknown'} is not supported")
    _refuse_conversion(images, image.id, image.disk_format)


def _refuse_conversion(images: Images, image_id: str, disk_format: str) -> None:
    if disk_format not in formats.RAW and images.converter.disabled:
        raise errors.ImageUnacceptable(image_id, "image conversion is disabled here, and its format is not raw")


def _refuse_encrypted(volume: models.Volume) -> None:
    """Raise InvalidVolume for a volume whose bytes say nothing without a key, which is not ours to hand on."""
    if volume.encrypted:
        raise errors.InvalidVolume(f"Volume {volume.id} is encrypted; it can neither be an image nor become one.")


def _can_clone(cluster: Cluster, parent: Location) -> bool:
    """Whether a cluster has an image and lets us read it; if that is not known it is copied."""
    try:
        return cluster.fsid() == parent.fsid and cluster.size_elsewhere(parent.pool, parent.image, parent.snap) >= 0
    except (errors.CephError, errors.Unavailable) as error:
        LOG.info("image %s cannot be cloned: %s", parent.image, error)
        return False


def _metadata(image: Image) -> dict[str, str]:
    """What a volume remembers of its image."""
    own = {key: value for key, value in image.fields.items() if key not in _GLANCES_OWN and _is_plain(value)}
    kept = {key: image.fields[key] for key in _KEPT if image.fields.get(key) is not None}
    names = {"image_id": image.id} | ({"image_name": image.fields["name"]} if image.fields.get("name") else {})
    return {key: str(value) for key, value in (own | kept | names).items()}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _origin(ctx: Context, session: Session, found: Found) -> Origin:
    image = found.image
    cached = image_cache.find(ctx.world, session, image.id, image.fields.get("checksum"))
    # What is copied may turn out to be bigger than Glance knew.
    fits = all(entry.size <= image.needs_gigabytes for entry in cached.values())
    at_once = found.at_once or (fits and len(cached) == len(ctx.world.backends))
    return Origin(
        size=image.needs_gigabytes,
        bootable=True,
        image_metadata=_metadata(image),
        volume_type_id=image.fields.get("cinder_img_volume_type"),
        verb="create" if at_once else "download",
        verb_to_encrypt="download",
        arguments={
            "id": image.id,
            "parent": dataclasses.asdict(found.parent) if found.parent else None,
            "cached": {pool: entry.id for pool, entry in cached.items()},
        },
    )


def _fill(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    cluster = world.cluster_of(volume)
    if volume.encrypted:  # What others have of the image is plain, and what this one gets is its own.
        cluster.create(volume.image, encryption.image_bytes(volume))
        _show_downloading(world, volume)
        _copy(world, volume, arguments["id"])
        return {}
    parent = arguments["parent"]
    if parent is not None and cluster.fsid() == parent["fsid"]:
        cluster.clone_elsewhere(parent["pool"], parent["image"], parent["snap"], volume.image, volume.size * GIB)
        return {"clone_depth": 1}
    depth = image_cache.use(world, volume, arguments.get("cached", {}).get(volume.host))
    if depth is not None:
        return {"clone_depth": depth}
    cluster.create(volume.image, volume.size * GIB)
    _show_downloading(world, volume)
    image, end = _copy(world, volume, arguments["id"])
    image_cache.keep(world, volume, _metadata(image), max(image.needs_gigabytes, -(-end // GIB)))
    return {}


volumes.SOURCES["image_id"] = volumes.Source(_origin, _fill)


def _show_downloading(world: World, volume: models.Volume) -> None:
    """Show that the volume waits for data and no longer for a place; as long as this work is still ours."""
    with world.db.write() as session:
        session.execute(
            update(models.Volume)
            .where(models.Volume.id == volume.id, models.Volume.lease_owner == volume.lease_owner)
            .values(status="downloading")
            .execution_options(synchronize_session=False)
        )


def _copy(world: World, volume: models.Volume, image_id: str) -> tuple[Image, int]:
    """Write the disk of an image into a volume of which everything else is zero; the image, and where its data end."""
    images = service(world)
    intent: Mapping[str, Any] = volume.intent or {}
    asker, size = intent["request_id"], volume.size * GIB
    start = encryption.header(world, volume)
    with _patience(images, intent):
        image = images.glance.show(asker, image_id)
        _refuse_unusable(images, image)
        with contextlib.ExitStack() as stack:
            data = _watched(stack.enter_context(contextlib.closing(images.glance.download(asker, image))))
            if start is not None:
                pieces = formats.allocated(stack.enter_context(_encrypted(images, image, data, size, start)))
            elif image.disk_format in formats.RAW:
                pieces = formats.numbered(data)
            else:
                file = stack.enter_context(images.converter.raw(image.id, image.disk_format, data, size))
                pieces = formats.allocated(file)
            end = _write(world.cluster_of(volume), volume.image, pieces, image, encryption.image_bytes(volume))
    return image, end


@contextlib.contextmanager
def _encrypted(
    images: Images, image: Image, data: Iterable[bytes], size: int, start: tuple[bytes, str]
) -> Iterator[IO[bytes]]:
    """A file with what an encrypted volume holds of an image. Zeros are encrypted too: the guest is to read zeros."""
    (header, passphrase), tool = start, images.converter
    is_raw = image.disk_format in formats.RAW
    plain = tool.plain(image.id, data, size) if is_raw else tool.raw(image.id, image.disk_format, data, size)
    with plain as disk, tool.encrypted(image.id, disk, header, luks.DATA_OFFSET, passphrase) as file:
        yield file


def _watched(data: Iterable[bytes]) -> Iterator[bytes]:
    for part in data:
        jobs.checkpoint()
        yield part


def _write(cluster: Cluster, name: str, pieces: Iterable[tuple[int, bytes]], image: Image, size: int) -> int:
    end = 0
    with cluster.opened(name, write=True) as target:
        for offset, piece in pieces:
            jobs.checkpoint()
            if offset == 0 and image.disk_format in formats.RAW:
                formats.refuse_disguised(image.id, piece)
            if offset + len(piece) > size:
                raise errors.ImageUnacceptable(image.id, "it is larger than the volume")
            target.write(offset, piece)
            end = offset + len(piece)
        target.flush()
    return end


@contextlib.contextmanager
def _patience(images: Images, intent: Mapping[str, Any]) -> Iterator[None]:
    """Let a copy be tried again a few times while the image service does not answer, and then fail."""
    try:
        yield
    except errors.GlanceUnavailable as error:
        if intent.get("tries", 0) >= images.tries:
            raise errors.ImageCopyFailed(error.message) from error
        raise


# -- images written over volumes


def reimage(ctx: Context, volume: models.Volume, image_id: str, *, reserved: bool) -> None:
    """Write an image over a volume, one that is reserved for a server only with `reserved`.

    Raises InvalidVolume, Conflict when several servers have to do with it, and what `source` raises.
    """
    _refuse_encrypted(volume)
    ctx.world.cluster_of(volume).check()
    image = _seen(ctx, image_id)
    _refuse_unusable(service(ctx.world), image)
    if _root_snapshot(image) is not None:
        raise errors.ImageUnacceptable(image.id, "it holds no data but names a snapshot")
    if image.needs_gigabytes > volume.size:
        raise errors.InvalidInput(
            f"Size of specified image {image.needs_gigabytes}GB is larger than volume size {volume.size}GB."
        )
    sources = frozenset({"available", "error", "reserved"} if reserved else {"available", "error"})
    with ctx.world.db.write() as session:
        current = volumes.lock(session, volume.id)
        held = select(models.Attachment.id).where(models.Attachment.volume_id == volume.id)
        if len(session.scalars(held).all()) > 1:
            raise errors.Conflict("Cannot re-image a volume which is attached to more than one server.")
        owner = volumes.LIFECYCLE.begin(
            session, volume.id, "reimage", ctx.settings.lease, ctx.request_id, sources=sources, image_id=image.id
        )
        if owner is None:
            raise errors.InvalidVolume(
                f"Volume {volume.id} status must be {' or '.join(sorted(sources))}, "
                f"but current status is: {current.status}."
            )
    volumes.LIFECYCLE.run(ctx.world, volume.id, owner)


@volumes.LIFECYCLE.step("reimage")
def _reimage(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> dict[str, Any]:
    cluster = world.cluster_of(volume)
    try:
        cluster.info(volume.image)
    except errors.ImageNotFound:  # Of a volume that failed before it had one.
        cluster.create(volume.image, volume.size * GIB)
    _clear(cluster, volume.image)
    image, _ = _copy(world, volume, arguments["image_id"])
    with world.db.write() as session:
        current = volumes.lock(session, volume.id)
        session.refresh(current, ["image_metadata_rows"])
        volumes.write_metadata(
            session, current.image_metadata_rows, models.ImageMetadata, _metadata(image), replace=True
        )
    return {"bootable": True}


def _clear(cluster: Cluster, name: str) -> None:
    with cluster.opened(name, write=True) as target:
        for number in target.chunks() or ():
            jobs.checkpoint()
            target.zero(number * CHUNK_BYTES, CHUNK_BYTES)
        target.flush()


# -- images from volumes


@dataclasses.dataclass(frozen=True, slots=True)
class Uploading:
    """A volume and the image that is being made of it."""

    volume: models.Volume
    image: Image


def upload(
    ctx: Context,
    volume: models.Volume,
    *,
    image_name: str,
    disk_format: str = "raw",
    container_format: str = "bare",
    force: bool = False,
    **shared: Any,
) -> Uploading:
    """Make an image of a volume, one in use only with `force`; both as accepted.

    `shared` are Glance's visibility and protected. Raises InvalidVolume, ImageUnacceptable, GlanceRefused.
    """
    images = service(ctx.world)
    _refuse_encrypted(volume)
    ctx.world.cluster_of(volume).check()
    image_id = models.new_id()
    _refuse_conversion(images, image_id, disk_format)
    if container_format in _PACKED:
        raise errors.ImageUnacceptable(image_id, f"container format {container_format} is not supported")
    images.glance.lend(ctx.request_id, ctx.token)
    sources = frozenset({"available", "in-use"} if force and images.force_upload else {"available"})
    with ctx.world.db.write() as session:
        owner = volumes.LIFECYCLE.begin(
            session, volume.id, "upload", ctx.settings.lease, ctx.request_id, sources=sources, image_id=image_id,
            disk_format=disk_format,
        )  # fmt: skip
        current = volumes.find(ctx, session, volume.id)
        session.refresh(current.volume_type, ["extra_spec_rows"])
    if owner is None:
        raise errors.InvalidVolume(f"Volume {volume.id} status must be {' or '.join(sorted(sources))}")
    fields = {"name": image_name, "disk_format": disk_format, "container_format": container_format, **shared}
    own = {key: value for key, value in _properties(volume).items() if key not in fields}
    try:
        image = images.glance.create(ctx.request_id, image_id, volume.project_id, **own, **fields)
    except errors.CinderliteError as error:
        volumes.LIFECYCLE.give_up(ctx.world, volume.id, owner, error)
        raise
    volumes.LIFECYCLE.run(ctx.world, volume.id, owner)
    return Uploading(current, image)


def _properties(volume: models.Volume) -> dict[str, str]:
    """What an image of a volume inherits from the image that the volume was made from."""
    rows = volume.image_metadata_rows
    return {row.key: row.value for row in rows if row.key not in _CORE and not row.key.startswith(_RESERVED)}


@volumes.LIFECYCLE.step("upload")
def _upload(world: World, volume: models.Volume, arguments: Mapping[str, Any]) -> None:
    images, asker, image_id = service(world), arguments["request_id"], arguments["image_id"]
    try:
        with _patience(images, arguments), _steady(world.cluster_of(volume), volume, image_id) as source:
            _send(images, asker, image_id, arguments["disk_format"], source)
    except errors.Unavailable:
        raise
    except errors.CinderliteError:
        # An image without its data must not stay, nor look as if it were whole.
        with contextlib.suppress(errors.CinderliteError):
            images.glance.delete(asker, image_id)
        raise


@contextlib.contextmanager
def _steady(cluster: Cluster, volume: models.Volume, image_id: str) -> Iterator[OpenImage]:
    """A volume's image open for reading; if servers may write to it, a snapshot that is there for so long."""
    snap = f"image-{image_id}" if volume.previous_status == "in-use" else None
    if snap is not None:
        cluster.snapshot(volume.image, snap)
    try:
        with cluster.opened(volume.image, snap) as source:
            yield source
    finally:
        if snap is not None:
            cluster.remove_snapshot(volume.image, snap)


def _send(images: Images, asker: str, image_id: str, disk_format: str, source: OpenImage) -> None:
    announced = images.glance.show(asker, image_id)
    if announced.status == "active":
        return  # An earlier try came so far.
    if announced.status != "queued":
        raise errors.GlanceUnavailable(f"image {image_id} is still {announced.status}")
    with contextlib.ExitStack() as stack:
        data: Callable[[], Iterable[bytes]] = lambda: _whole(source)  # noqa: E731
        size = source.size_bytes
        if disk_format not in formats.RAW:
            file = stack.enter_context(images.converter.of_raw(image_id, disk_format, size, _pieces(source)))
            data, size = lambda: _watched(formats.content(file)), _length(file)
        images.glance.upload(asker, image_id, data, size)
    taken = images.glance.show(asker, image_id)
    if (taken.status, taken.size) != ("active", size):
        raise errors.ImageCopyFailed(f"the image service has taken {taken.size} of {size} bytes")


def _length(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _whole(source: OpenImage) -> Iterator[bytes]:
    """All bytes of an image; what was never written is not asked for."""
    held = set(source.chunks() or ())
    for offset in range(0, source.size_bytes, CHUNK_BYTES):
        jobs.checkpoint()
        if offset // CHUNK_BYTES in held:
            yield source.read(offset, CHUNK_BYTES)
        else:
            yield _ZEROS[: source.size_bytes - offset]


def _pieces(source: OpenImage) -> Iterator[tuple[int, bytes]]:
    for number in source.chunks() or ():
        jobs.checkpoint()
        yield number * CHUNK_BYTES, source.read(number * CHUNK_BYTES, CHUNK_BYTES)
