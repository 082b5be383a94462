# SPDX-License-Identifier: Apache-2.0
"""A new database from what Ceph and the guests hold, for the day on which the old one is lost.

All that is there is looked at first (`survey`), then the rows are made in one transaction: a rebuild that is cut off
leaves the database as it was, and is simply run again. What a newcomer gets wrong: a record may be some seconds older
than what it is about, and so it never wins. Only what Ceph has gets a row, with Ceph's size; what was under way counts
as failed; a guest's disk is attached whatever was written of it, and one that the guest lacks is not.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import (
    backups,
    catalogue,
    encryption,
    group_snapshots,
    holders,
    mirrors,
    records,
    volumes,
)
from cinderlite.core.finding import Finding
from cinderlite.core.progress import Progress
from cinderlite.core.records import Record
from cinderlite.core.states import RETURN, Machine
from cinderlite.core.survey import Found, Known, Survey
from cinderlite.db import models
from cinderlite.keys import luks

#: Statuses of a volume that pass with something that is not rebuilt.
_PASSING = frozenset({"awaiting-transfer", "backing-up"})
#: What nobody is at work on.
_AT_REST: dict[str, Any] = {"intent": None, "busy": 0}


@dataclasses.dataclass(slots=True)
class Rebuilt:
    """How many rows of each kind were made, and what could not be, or is not known."""

    made: collections.Counter[str]
    findings: list[Finding]


class _Undone(Exception):
    """Ends a transaction that was only to show what it would do."""


def rebuild(
    world: World, progress: Progress, *, dry_run: bool = False, add: bool = False, unsigned: bool = False
) -> Rebuilt:
    """Make rows of all that Ceph has records of; with `dry_run` only tell which.

    With `add` the database may have volumes, and what it has stays as it is. With `unsigned` records need not be
    signed. Raises Conflict for a database that has volumes, and what a cluster says that does not answer; then nothing
    is made.
    """
    with world.db.read() as session:
        known = _known(session)
    _refuse_used(known, add=add)
    survey = Survey(world, known, unsigned=unsigned)
    survey.look(progress)
    making = _Making(survey)
    with contextlib.suppress(_Undone), world.db.write() as session:
        _refuse_used(_known(session), add=add)
        making.all(session)
        if dry_run:
            raise _Undone
    if not dry_run:
        _try_keys(world, survey)
    return Rebuilt(making.made, survey.findings)


def _known(session: Session) -> Known:
    return {kind.model: set(session.scalars(select(kind.model.id))) for kind in records.KINDS}


def _refuse_used(known: Known, *, add: bool) -> None:
    for model, ids in known.items():
        if ids and not add:
            raise errors.Conflict(
                f"The database is in use: it has {len(ids)} {model.__tablename__}. With --add what is missing is added."
            )


def _try_keys(world: World, survey: Survey) -> None:
    """Tell which volumes the service cannot open."""
    for record in [found.record for found in survey.volumes.values()] + list(survey.missing(models.Backup)):
        if record.wrapped_key is None:
            continue  # It has no key, or one in a store of its own.
        try:
            encryption.secret(world, record.row["encryption_key_id"])
        except (errors.KeyNotFound, errors.KeyStoreUnavailable) as error:
            survey.note("key", record.kind.word, record.id, str(error), "configure the key store that it was made with")


class _Making:
    """Makes the rows, in an order in which each finds what it names."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self.made: collections.Counter[str] = collections.Counter()
        #: Ids of the volumes that got an attachment.
        self._attached: set[str] = set()

    def all(self, session: Session) -> None:
        """Make all rows."""
        self._session = session
        used = session.scalar(select(func.count()).select_from(models.Volume))
        self._there = catalogue.restore(session, self._survey.catalogue)
        self.made["types and quotas"] = self._there.count
        if self._survey.database_id is not None and not used:
            records.identity(session).database_id = self._survey.database_id
        steps = {
            models.Group: self._group, models.GroupSnapshot: self._group_snapshot, models.Snapshot: self._snapshot,
            models.Backup: self._backup, models.Attachment: self._attachment,
        }  # fmt: skip
        for kind in records.KINDS:
            if kind.model is models.Volume:
                rows: list[Any] = [self._volume(found) for found in self._survey.volumes.values()]
            else:
                rows = [steps[kind.model](record) for record in self._survey.missing(kind.model)]
            self._add(kind.word, [row for row in rows if row is not None])
        self._add(models.Attachment.__tablename__, self._adopted())
        self._show_holders()

    def _add(self, word: str, rows: list[Any]) -> None:
        self._session.add_all(rows)
        self._session.flush()
        self.made[word] += len(rows)
        self._attached |= {row.volume_id for row in rows if isinstance(row, models.Attachment)}

    # -- volumes

    def _volume(self, found: Found) -> models.Volume:
        record = found.record
        changes: dict[str, Any] = {
            "host": found.host,
            "namespace": found.cluster.namespace,
            "record_host": record.host,
            "volume_type_id": self._type(record.row.get("volume_type_id"), record.type_name),
        }
        if not record.row.get("deleted"):
            changes |= self._at_rest(record)
        if record.row.get("group_id") and self._session.get(models.Group, record.row["group_id"]) is None:
            changes["group_id"] = None
        self._key(record)
        row: models.Volume = record.made(**changes)
        return row

    def _at_rest(self, record: Record) -> dict[str, Any]:
        outline = self._survey.outlines.get(record.id)
        header = luks.DATA_OFFSET if record.row.get("encryption_key_id") else 0
        moved = record.row.get("busy") and record.row["intent"]["verb"] in (
            "migrate",
            "retype_and_move",
            *mirrors.VERBS,
        )
        status = _settled(volumes.LIFECYCLE, record)
        return {
            **_AT_REST,
            **({"size": -(-(outline.size_bytes - header) // encryption.GIB)} if outline else {}),
            "status": "error_restoring" if status == "restoring-backup" else status,
            **({"migration_status": "error"} if moved else {}),
        }

    def _type(self, type_id: Any, name: str | None) -> str:
        """The type of a volume; one without a catalogue gets one of that name."""
        known = self._there.id(str(type_id)) or ""
        if self._session.get(models.VolumeType, known) is not None:
            return known
        name = name or f"rebuilt-{known}"
        other = self._session.scalars(select(models.VolumeType).where(models.VolumeType.name == name)).one_or_none()
        if other is None:
            self._add("types and quotas", [models.VolumeType(id=known, name=name)])
            return known
        self._there.instead[known] = other.id
        return other.id

    def _key(self, record: Record) -> None:
        key_id = record.row.get("encryption_key_id")
        if key_id and record.wrapped_key and self._session.get(models.EncryptionKey, key_id) is None:
            self._session.add(models.EncryptionKey(id=key_id, wrapped=record.wrapped_key))

    def _snapshot(self, record: Record) -> models.Snapshot | None:
        row: models.Snapshot = record.made(**_AT_REST)
        volume = self._session.get(models.Volume, row.volume_id)
        failed = row.status.startswith("error")  # That it is not in Ceph may be why.
        if volume is None or not (failed or self._survey.holds(volume.id, row.held_as)):
            subject = f"volume-{row.volume_id}@{row.held_as}"
            self._survey.note("missing-snapshot", "-", subject, "there is a record of it, but no snapshot", "left out")
            return None
        row.volume_type_id = volume.volume_type_id
        row.status = row.status if failed else "available"
        if row.group_snapshot_id and self._session.get(models.GroupSnapshot, row.group_snapshot_id) is None:
            row.group_snapshot_id = None
        return row

    # -- groups

    def _group(self, record: Record) -> models.Group | None:
        row: models.Group = record.made(**_AT_REST)
        row.group_type_id = self._there.id(row.group_type_id) or ""
        if self._session.get(models.GroupType, row.group_type_id) is None:
            self._survey.note(
                "group", row.host, row.id, "its group type is not known", "left out; its volumes are in none"
            )
            return None
        kinds = {self._there.id(one.volume_type_id) for one in row.volume_type_rows}
        there = [one for one in kinds if one and self._session.get(models.VolumeType, one) is not None]
        row.volume_type_rows = [models.GroupVolumeType(volume_type_id=one) for one in sorted(there)]
        row.host = record.host
        return row

    def _group_snapshot(self, record: Record) -> models.GroupSnapshot | None:
        row: models.GroupSnapshot = record.made(**_AT_REST, status=_settled(group_snapshots.LIFECYCLE, record))
        group = self._session.get(models.Group, row.group_id)
        if group is None:
            return None
        row.group_type_id = group.group_type_id
        return row

    # -- backups

    def _backup(self, record: Record) -> models.Backup | None:
        if record.row.get("status") == "deleted":  # Only its chain is still to be purged.
            waiting: models.Backup = record.made()
            return waiting
        status = _settled(backups.LIFECYCLE, record)
        if record.id in self._survey.backups:
            status = "available"
        elif not status.startswith("error"):
            self._survey.note("missing-backup", "-", record.id, "there is a record of it, but no data", "left out")
            return None
        self._key(record)
        row: models.Backup = record.made(**_AT_REST, status=status)
        return row

    # -- attachments

    def _attachment(self, record: Record) -> models.Attachment | None:
        """What was attached, unless its guest does not hold it any more."""
        row: models.Attachment = record.made(**_AT_REST)
        if self._session.get(models.Volume, row.volume_id) is None:
            return None
        if row.managed and row.server_id in self._survey.guests:
            if row.volume_id not in self._survey.guests[row.server_id][1]:
                return None
            row.status = "attached"
        return row

    def _adopted(self) -> list[models.Attachment]:
        """What guests hold though nothing was written of it; the reconciler finds out the rest."""
        table = models.Attachment
        rows = []
        for server_id, (host, held) in self._survey.guests.items():
            has = set(self._session.scalars(select(table.volume_id).where(table.server_id == server_id)))
            for volume_id in sorted(held - has):
                volume = self._session.get(models.Volume, volume_id)
                if volume is not None and not volume.deleted:
                    intent = {"verb": "restore", "request_id": "rebuild"}
                    rows.append(
                        models.Attachment(
                            volume_id=volume_id, server_id=server_id, project_id=volume.project_id, host=host,
                            mode="ro" if volume.readonly else "rw", status="attached", previous_status="attached",
                            intent=intent, busy=1,
                        )
                    )  # fmt: skip
        return rows

    def _show_holders(self) -> None:
        """Volumes whose status says only who holds them get the one that says so now."""
        table = models.Attachment
        held: dict[str, list[str]] = {}
        for volume_id, status in self._session.execute(select(table.volume_id, table.status)):
            held.setdefault(volume_id, []).append(status)
        for volume_id in self._survey.volumes:
            row = self._session.get_one(models.Volume, volume_id)
            if row.status in holders.FOLLOWING | _PASSING and not row.deleted:
                row.status = holders.status(held.get(volume_id, ()))
        for volume_id in self._attached - self._survey.volumes.keys():  # It was there before.
            holders.follow(self._session, volume_id)


def _settled(machine: Machine, record: Record) -> str:
    """The status of a row once what was under way on it has failed."""
    row = record.row
    status = str(row["status"])
    if row.get("busy"):
        move = machine.moves.get(str((row.get("intent") or {}).get("verb")))
        status = move.failure if move else "error"
    return str(row.get("previous_status") or "available") if status == RETURN else status
