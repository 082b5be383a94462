# SPDX-License-Identifier: Apache-2.0
"""What the QoS specs of a volume's type come to: for who opens the volume (front end) and for librbd (back end).

Limits have Cinder's names here, whoever keeps them. What a newcomer gets wrong: specs that contradict themselves refuse
an attach, nothing else. A disk that is plugged in already, or an image, gets as much of them as can be kept: an
administrator's slip must not take a disk away from a server that was only restarted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import sqlalchemy
from sqlalchemy import ColumnElement, bindparam, or_, select
from sqlalchemy.orm import Session, selectinload

from cinderlite import errors
from cinderlite.context import World
from cinderlite.db import models

_UNITS = "iops", "bytes"
_WHATS = "total", "read", "write"
#: The limits that can have a burst, and can be given for each GiB of the volume.
BASES = tuple(f"{what}_{unit}_sec" for what, unit in itertools.product(_WHATS, _UNITS))
SIZE_OF_ONE = "size_iops_sec"
#: Every limit that is kept. `_max_length` is in seconds, `size_iops_sec` in bytes: what is bigger counts as several.
NAMES = frozenset(f"{base}{end}" for base in BASES for end in ("", "_max", "_max_length")) | {SIZE_OF_ONE}
#: More than this QEMU refuses, and it is as good as no limit.
MOST = 10**15
#: Seconds of a burst at most, for QEMU.
LONGEST = 2**32 - 1

FRONT_END, BACK_END = ("front-end", "both"), ("back-end", "both")

Limits = dict[str, int]


# -- what specs mean


def reckoned(specs: Mapping[str, str], size: int) -> dict[str, str]:
    """The specs for a volume of `size` GiB: those for each GiB multiplied, their `_max` being no burst but a cap."""
    found = dict(specs)
    for base in BASES:
        each, least = found.pop(f"{base}_per_gb", None), found.pop(f"{base}_per_gb_min", "0")
        if each is not None:
            value = max(int(least), int(each) * size)
            found[base] = str(min(value, int(found.pop(f"{base}_max", value))))
            found.pop(f"{base}_max_length", None)
    return found


def _numbers(specs: Mapping[str, str]) -> Limits:
    """The limits among specs; 0 is none."""
    found = {key: int(specs[key]) for key in NAMES & specs.keys() if specs[key].isdecimal()}
    return {key: min(value, MOST) for key, value in sorted(found.items()) if value}


def _flaws(limits: Limits, *, together: bool = False) -> Iterator[tuple[str, str]]:
    """Each limit that cannot be kept beside the others, and why.

    Only librbd takes limits in total `together` with those of reading and writing.
    """
    for what, unit in itertools.product(_WHATS, _UNITS):
        base, whole = f"{what}_{unit}_sec", f"total_{unit}_sec"
        burst, length = f"{base}_max", f"{base}_max_length"
        beside = base != whole and whole in limits and not together
        if base in limits and beside:
            yield base, f"{base} and {whole} exclude each other"
        kept = base in limits and not beside and limits.get(burst, 0) >= limits[base]
        if burst in limits and not kept:
            yield burst, f"{burst} needs a {base} that is not more, and no {whole} beside it"
        if length in limits and not (kept and limits[length] <= min(LONGEST, MOST // limits[burst])):
            yield length, f"{length} needs a {burst}, and must not be too long for it"
    if SIZE_OF_ONE in limits and not any(f"{what}_iops_sec" in limits for what in _WHATS):
        yield SIZE_OF_ONE, f"{SIZE_OF_ONE} needs a limit of operations"


def kept(specs: Mapping[str, str], size: int, *, together: bool = False) -> Limits:
    """As much of the specs as can be kept for a volume of `size` GiB; with `together` by librbd."""
    found = _numbers(reckoned(specs, size))
    for key, _ in list(_flaws(found, together=together)):
        del found[key]
    return found


# -- what a volume is to have


def _specs(session: Session, type_id: str) -> dict[str, str] | None:
    """The specs of a type that who opens a volume is to keep."""
    specs_id = session.get_one(models.VolumeType, type_id).qos_specs_id
    if specs_id is None:
        return None
    # Of what the session has read already it asks the database no second time.
    found = session.get_one(models.QosSpecs, specs_id, options=[selectinload(models.QosSpecs.keys)])
    return {row.key: row.value for row in found.keys} if found.consumer in FRONT_END else None


def told(session: Session, volume: models.Volume, type_id: str | None = None) -> dict[str, str] | None:
    """The specs that who opens the volume is told to keep, with another type if one is named."""
    specs = _specs(session, type_id or volume.volume_type_id)
    return None if specs is None else reckoned(specs, volume.size)


def of_disk(session: Session, volume: models.Volume) -> Limits:
    """The limits that QEMU is to keep where the volume is plugged in."""
    return kept(_specs(session, volume.volume_type_id) or {}, volume.size)


#: Made once: every new volume needs it.
_OF_IMAGE = (
    select(models.QosKey.key, models.QosKey.value)
    .join(models.QosSpecs, models.QosSpecs.id == models.QosKey.qos_specs_id)
    .join(models.VolumeType, models.VolumeType.qos_specs_id == models.QosSpecs.id)
    .where(models.VolumeType.id == bindparam("type"), models.QosSpecs.consumer.in_(BACK_END))
)


def of_image(world: World, volume: models.Volume) -> Limits:
    """The limits that every librbd is to keep that opens the volume's image."""
    with world.db.look() as connection:
        rows = connection.execute(_OF_IMAGE, {"type": volume.volume_type_id})
        specs = {row.key: row.value for row in rows}
    return kept(specs, volume.size, together=True)


def refuse_flawed(session: Session, volume: models.Volume, type_id: str | None = None) -> None:
    """Raise InvalidQosSpecs if QEMU could not keep all that the volume is to have, with another type if it is named."""
    for _, why in _flaws(_numbers(told(session, volume, type_id) or {})):
        raise errors.InvalidQosSpecs(f"{why}; volume {volume.id} cannot be limited so")


# -- what is to be done about it


def due() -> dict[str, str]:
    """Columns of a volume whose image's limits are to be looked at; see `image_limits`."""
    return {"limits_due": models.new_id()}


def look_at(session: Session, *consumers: str, of_types: ColumnElement[bool]) -> None:
    """Have the limits of the images of all volumes of some types looked at, if such a consumer has to do with them."""
    if not set(consumers).intersection(BACK_END):
        return
    # Held: of a volume that is just being made with one of them nothing would be seen here.
    types = session.scalars(select(models.VolumeType.id).where(of_types).with_for_update()).all()
    table = models.Volume
    session.execute(
        sqlalchemy.update(table)
        # One that can still be brought back is to have its limits then.
        .where(or_(table.deleted.is_(False), table.purge_at.is_not(None)), table.volume_type_id.in_(types))
        .values(**due())
        .execution_options(synchronize_session=False)
    )
