# SPDX-License-Identifier: Apache-2.0
"""Writes the records of what changed (`records`) into Ceph, a second later and many at once.

Nobody's request waits for it: every change of a row marks it (`models.Recorded`), in the same statement, and who finds
the mark as it was when the record is written takes it away. So nothing is lost with a process, and a change during the
writing is written again.

What a newcomer gets wrong: two writers could put an older record over a newer one. So one process writes at a time, by
the lease in `models.Recorder`; and what is to be removed from a pool is removed before anything is written there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, insert, or_, select, update
from sqlalchemy.orm import Session, joinedload, selectinload

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from cinderlite.context import World
from cinderlite.core import catalogue, reconcile, records, states
from cinderlite.db import clock, models
from cinderlite.db.indexes import marked, unindexed

LOG = logging.getLogger(__name__)

#: Records written at once.
BATCH = 200
#: Seconds between two looks for changes.
INTERVAL = 1.0
#: Seconds between two looks at what administrators made.
CATALOGUE_EVERY = 10.0
#: Seconds for which one process writes alone without saying so again.
_LEASE = 60.0
#: What may take long, by table: then the record says that it is under way. What is left of a deleted volume may have
#: to wait for its clones.
_LONG = {
    machine.model: [move.verb for move in machine.moves.values() if move.long or move.verb in ("hollow", "purge")]
    for machine in reconcile.MACHINES
}


class Recorder(threading.Thread):
    """Writes what changed every second until it is stopped; or `once`, without being started."""

    def __init__(self, world: World) -> None:
        super().__init__(name="recorder", daemon=True)
        self._world = world
        self._me = states.new_owner()
        #: Until when this process writes for certain, by the monotonic clock.
        self._until = 0.0
        self._catalogue_at = 0.0
        #: What was last written of the catalogue, by place.
        self._catalogues: dict[str, str] = {}
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """The thread's work; an error is logged and tried again."""
        while not self._stop_asked.wait(INTERVAL):
            try:
                self.once()
            except errors.Unavailable as error:
                LOG.warning("records: %s", error)
            except Exception:  # The loop must outlive a defect in one pass; the log has it all.
                LOG.exception("records: a pass failed")

    def stop(self, timeout: float) -> None:
        """Ask the thread to end, wait at most `timeout` seconds for it, and let another process write."""
        self._stop_asked.set()
        self.join(timeout)
        if not self.is_alive():  # Else it still writes.
            self.let_go()

    def once(self) -> int:
        """Write what changed; how many records that were. None if another process does it."""
        written = 0
        for host, cluster in records.places(self._world).items():
            try:
                written += self._place(host, cluster)
            except (errors.Unavailable, errors.BackendError) as error:
                if isinstance(error, errors.DatabaseUnavailable):
                    raise
                LOG.warning("records in %s: %s", host, error)
        if time.monotonic() >= self._catalogue_at:
            self._catalogue()
            self._catalogue_at = time.monotonic() + CATALOGUE_EVERY
        return written

    def let_go(self) -> None:
        """Let another process write."""
        table = models.Recorder
        with self._world.db.write() as session:
            session.execute(
                update(table).where(table.lease_owner == self._me).values(lease_owner=None, lease_until=0.0)
            )
        self._until = 0.0

    # -- one at a time

    def _leads(self) -> bool:
        """Whether this process is the one that writes; it tries to be."""
        began = time.monotonic()
        if self._until > began + _LEASE / 2:
            return True
        with self._world.db.write() as session:
            row = records.identity(session)
            now = clock.read(session)
            held = row.lease_owner not in (None, self._me) and row.lease_until > now
            if held and not states.owner_is_dead(row.lease_owner or ""):
                return False
            row.lease_owner, row.lease_until = self._me, now + _LEASE
        self._until = began + _LEASE
        return True

    # -- rows

    def _place(self, host: str, cluster: Cluster) -> int:
        kinds = [kind for kind in records.KINDS if (kind.model is models.Backup) == (host == models.VAULT)]
        gone = self._gone(host)
        if not (gone or any(self._changed(host, kind, 1) for kind in kinds)) or not self._leads():
            return 0
        cluster.check()
        while gone:
            self._remove(cluster, gone)
            gone = self._gone(host)
        written = 0
        for kind in kinds:
            # What changes all the time has its next turn with all others.
            done = BATCH
            while done == BATCH:
                rows = self._changed(host, kind, BATCH)
                done = self._write(host, cluster, kind, rows) if rows else 0
                written += done
        return written

    def _gone(self, host: str) -> Sequence[models.GoneRecord]:
        table = models.GoneRecord
        with self._world.db.read() as session:
            return session.scalars(select(table).where(table.host == host).order_by(table.id).limit(BATCH)).all()

    def _remove(self, cluster: Cluster, gone: Sequence[models.GoneRecord]) -> None:
        _put(cluster, {}, [(row.row_id, records.key_of(row.kind, row.row_id)) for row in gone])
        table = models.GoneRecord
        with self._world.db.write() as session:
            session.execute(delete(table).where(table.id.in_([row.id for row in gone])))

    def _changed(self, host: str, kind: records.Kind, limit: int) -> Sequence[Any]:
        """Rows of a place whose records are to be written."""
        table = kind.model
        query = select(table).where(marked(table.unwritten), models.host_of(table) == host, _is_ready(table))
        query = query.options(*(selectinload(getattr(table, part)) for part in kind.parts))
        if table is models.Volume:
            query = query.options(joinedload(table.volume_type))
        with self._world.db.read() as session:
            return session.scalars(query.limit(limit)).all()

    def _write(self, host: str, cluster: Cluster, kind: records.Kind, rows: Sequence[Any]) -> int:
        """Write the records of rows, and how many these were: some may have to wait for their next turn."""
        rows = self._placed(host, rows) if kind.model is models.Volume else rows
        keys = self._wrapped_keys(rows)
        stay, go = {}, []
        for row in rows:
            key = records.key_of(kind.word, row.id)
            if _is_over(row):
                go.append((row.id, key))
            else:
                stay[row.id, key] = records.seal(self._world.signing, records.told(kind, row, keys.get(row.id)))
        _put(cluster, stay, go)
        with self._world.db.write(repeatable=True) as session:
            _written(session, kind.model, {row.id: row.unwritten for row in rows})
        return len(rows)

    def _placed(self, host: str, rows: Sequence[models.Volume]) -> Sequence[models.Volume]:
        """Note where the records of volumes are about to be, and have those go that are where the volumes were.

        Those rows are left out that somebody holds: their turn comes again.
        """
        new = {row.id: row for row in rows if row.record_host != host}
        if not new:
            return rows
        table = models.Volume
        with self._world.db.write() as session:
            mine = set(session.scalars(_unheld(table, new)))
            # The mark is set to itself, or this would be a change.
            noted = update(table).where(table.id.in_(mine)).values(record_host=host, unwritten=table.unwritten)
            session.execute(noted.execution_options(synchronize_session=False))
            for row_id in mine:
                if new[row_id].record_host is not None:
                    self._remove_before(session, new[row_id])
        return [row for row in rows if row.id not in new.keys() - mine]

    @staticmethod
    def _remove_before(session: Session, volume: models.Volume) -> None:
        """Have the records of a volume that was moved, and of what goes with it, removed from where they are."""
        gone = [(models.Volume.__tablename__, volume.id)]
        for model in (models.Snapshot, models.Attachment):
            with_it = model.volume_id == volume.id
            gone += [(model.__tablename__, row_id) for row_id in session.scalars(select(model.id).where(with_it))]
            session.execute(update(model).where(with_it).values(unwritten=models.new_mark()))
        values = [{"host": volume.record_host, "kind": kind, "row_id": row_id} for kind, row_id in gone]
        session.execute(insert(models.GoneRecord), values)

    def _wrapped_keys(self, rows: Sequence[Any]) -> dict[str, str]:
        """Row → its wrapped key, if the key is in the database and is to stay."""
        owners = [row for row in rows if isinstance(row, models.Volume | models.Backup) and not _ends(row)]
        ids = {row.encryption_key_id: row.id for row in owners}
        table = models.EncryptionKey
        if not any(ids):
            return {}
        with self._world.db.read() as session:
            return {ids[one.id]: one.wrapped for one in session.scalars(select(table).where(table.id.in_(ids)))}

    # -- what administrators made

    def _catalogue(self) -> None:
        with self._world.db.read() as session:
            said = catalogue.told(session)
        text = json.dumps(said, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        stale = [host for host in records.places(self._world) if self._catalogues.get(host) != digest]
        if not stale or not self._leads():
            return
        with self._world.db.write() as session:
            database_id = records.identity(session).database_id
        sealed = records.seal(self._world.signing, {**said, "written": models.utcnow().isoformat()})
        for host in stale:
            try:
                cluster = records.places(self._world)[host]
                cluster.check()
                cluster.put_entries(records.CATALOGUE, {database_id: sealed})
            except (errors.Unavailable, errors.BackendError) as error:
                LOG.warning("records in %s: %s", host, error)
            else:
                self._catalogues[host] = digest


def _written(session: Session, table: type[Any], marks: Mapping[str, int | None]) -> None:
    """Take away the marks that are still what they were.

    Nobody is waited for: who holds a row now is changing it. So no request can be caught in a deadlock with this.
    """
    query = _unheld(table, marks).add_columns(table.unwritten)
    as_seen = [row_id for row_id, mark in session.execute(query) if marks[row_id] == mark]
    done = update(table).where(table.id.in_(as_seen)).values(unwritten=None)
    session.execute(done.execution_options(synchronize_session=False))


def _unheld(table: type[Any], ids: Iterable[str]) -> Select[Any]:
    """Takes those rows that nobody else holds, until the transaction ends."""
    return select(table.id).where(table.id.in_(ids)).with_for_update(skip_locked=True)


def _is_ready(table: type[Any]) -> ColumnElement[bool]:
    """What is at rest, and what may not be for long. All else is only about to be something else."""
    long = _LONG[table]
    rests: ColumnElement[bool] = unindexed(table.busy) == 0
    return or_(rests, table.intent["verb"].as_string().in_(long)) if long else rests


def _is_over(row: Any) -> bool:
    """Whether nothing of a row's thing is left, so that there is nothing to be rebuilt."""
    if not isinstance(row, models.Volume) or row.busy:
        return False
    return row.deleted and row.purge_at is None and row.status != "outlived"


def _ends(row: models.Volume | models.Backup) -> bool:
    """Whether a row's key is about to go for good, or has gone."""
    return row.intent is not None and row.intent["verb"] == "purge"


def _put(cluster: Cluster, stay: Mapping[tuple[str, str], bytes], go: Sequence[tuple[str, str]]) -> None:
    """Write and remove entries, by the ids of their rows and their keys, with one call for each object."""
    objects: dict[str, tuple[dict[str, bytes], list[str]]] = {}
    for (row_id, key), text in stay.items():
        objects.setdefault(records.object_of(row_id), ({}, []))[0][key] = text
    for row_id, key in go:
        objects.setdefault(records.object_of(row_id), ({}, []))[1].append(key)
    for name, (entries, gone) in objects.items():
        cluster.put_entries(name, entries, gone)
