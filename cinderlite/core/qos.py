# SPDX-License-Identifier: Apache-2.0
"""QoS specs: limits for the volumes of the types that they are associated with.

What a newcomer gets wrong: nothing is enforced here. What the specs come to for a volume is in `limits`; a change is
brought to the disks that are plugged in, and to the images, by the reconciler, which is woken for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import sqlalchemy
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, selectinload

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.core import limits as kept
from cinderlite.core import types
from cinderlite.db import models
from cinderlite.db.session import refusing

#: What the API shows of QoS specs is loaded with their row.
SHOWN = (selectinload(models.QosSpecs.keys),)
#: Limits that somebody keeps, or that are reckoned with before.
_NUMBERS = re.compile(r"(read|write|total)_(iops|bytes)_sec(_per_gb|_per_gb_min|_max|_max_length)?|size_iops_sec")


def specs(qos: models.QosSpecs) -> dict[str, str]:
    """The limits of QoS specs that were loaded with them."""
    return {row.key: row.value for row in sorted(qos.keys, key=lambda row: row.key)}


def get(ctx: Context, qos_id: str) -> models.QosSpecs:
    """The QoS specs of that id. Raises QosSpecsNotFound."""
    with ctx.world.db.read() as session:
        found = session.get(models.QosSpecs, qos_id, options=SHOWN)
    if found is None:
        raise errors.QosSpecsNotFound(qos_id)
    return found


def create(ctx: Context, name: str, consumer: str, limits: Mapping[str, str]) -> models.QosSpecs:
    """Create QoS specs. Raises QosSpecsExists, InvalidQosSpecs."""
    _refuse_no_numbers(limits)
    rows = [models.QosKey(key=key, value=value) for key, value in limits.items()]
    qos = models.QosSpecs(id=models.new_id(), name=name, consumer=consumer, keys=rows)
    with refusing(errors.QosSpecsExists(name)), ctx.world.db.write() as session:
        session.add(qos)
    return qos


def _refuse_no_numbers(limits: Mapping[str, str]) -> None:
    for key, value in limits.items():
        if _NUMBERS.fullmatch(key) and not (value.isascii() and value.isdigit()):
            raise errors.InvalidQosSpecs(f"{key} must be a whole number, not '{value}'")


def update(ctx: Context, qos: models.QosSpecs, limits: Mapping[str, str], consumer: str | None = None) -> None:
    """Add limits, or replace the values of those there are. Raises QosSpecsNotFound, InvalidQosSpecs."""
    _refuse_no_numbers(limits)
    with ctx.world.db.write() as session:
        current = _lock(session, qos.id)
        for key, value in limits.items():
            session.merge(models.QosKey(qos_specs_id=qos.id, key=key, value=value))
        before, current.consumer = current.consumer, consumer or current.consumer
        current.updated_at = models.utcnow()
        kept.look_at(session, before, current.consumer, of_types=_having(qos.id))
    ctx.world.wake.set()


def remove(ctx: Context, qos: models.QosSpecs, keys: Sequence[str]) -> None:
    """Remove limits, all of them or none. Raises QosSpecsNotFound, QosKeyNotFound."""
    with ctx.world.db.write() as session:
        current = _lock(session, qos.id)
        current.updated_at = models.utcnow()
        for key in keys:
            row = session.get(models.QosKey, (qos.id, key))
            if row is None:
                raise errors.QosKeyNotFound(qos.id, key)
            session.delete(row)
        kept.look_at(session, current.consumer, of_types=_having(qos.id))
    ctx.world.wake.set()


def delete(ctx: Context, qos: models.QosSpecs, *, force: bool = False) -> None:
    """Delete QoS specs, with `force` also those that types have. Raises QosSpecsNotFound, QosSpecsInUse."""
    with ctx.world.db.write() as session:
        current = _lock(session, qos.id)
        if force:
            _let_go(session, current)
        elif session.scalar(select(models.VolumeType.id).where(models.VolumeType.qos_specs_id == qos.id).limit(1)):
            raise errors.QosSpecsInUse
        session.delete(current)
    ctx.world.wake.set()


def _lock(session: Session, qos_id: str) -> models.QosSpecs:
    """The QoS specs, which no type gets before this transaction ends. Raises QosSpecsNotFound."""
    query = select(models.QosSpecs).where(models.QosSpecs.id == qos_id)
    found = session.scalars(query.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if found is None:
        raise errors.QosSpecsNotFound(qos_id)
    return found


# -- which types have them


def associations(ctx: Context, qos: models.QosSpecs) -> Sequence[models.VolumeType]:
    """The types that have these QoS specs, by name."""
    table = models.VolumeType
    with ctx.world.db.read() as session:
        return session.scalars(select(table).where(table.qos_specs_id == qos.id).order_by(table.name)).all()


def associate(ctx: Context, qos: models.QosSpecs, type_id: str) -> None:
    """Give a type QoS specs. Raises VolumeTypeNotFound, InvalidVolumeType if it has others."""
    with ctx.world.db.write() as session:
        current = _lock(session, qos.id)
        kind = types.lock(session, type_id)
        if kind.qos_specs_id not in (None, qos.id):
            raise errors.InvalidVolumeType(
                f"Type {type_id} is already associated with another qos specs: {kind.qos_specs_id}"
            )
        kind.qos_specs_id, kind.updated_at = qos.id, models.utcnow()
        kept.look_at(session, current.consumer, of_types=models.VolumeType.id == type_id)
    ctx.world.wake.set()


def disassociate(ctx: Context, qos: models.QosSpecs, type_id: str) -> None:
    """Take QoS specs from a type, if it has them. Raises QosSpecsNotFound, VolumeTypeNotFound."""
    with ctx.world.db.write() as session:
        current = _lock(session, qos.id)
        kind = types.lock(session, type_id)
        if kind.qos_specs_id == qos.id:
            kind.qos_specs_id, kind.updated_at = None, models.utcnow()
            kept.look_at(session, current.consumer, of_types=models.VolumeType.id == type_id)
    ctx.world.wake.set()


def disassociate_all(ctx: Context, qos: models.QosSpecs) -> None:
    """Take QoS specs from all types that have them."""
    with ctx.world.db.write() as session:
        _let_go(session, _lock(session, qos.id))
    ctx.world.wake.set()


def _let_go(session: Session, qos: models.QosSpecs) -> None:
    kept.look_at(session, qos.consumer, of_types=_having(qos.id))
    having = sqlalchemy.update(models.VolumeType).where(_having(qos.id))
    session.execute(having.values(qos_specs_id=None, updated_at=models.utcnow()))


def _having(qos_id: str) -> ColumnElement[bool]:
    return models.VolumeType.qos_specs_id == qos_id
