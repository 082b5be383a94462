# SPDX-License-Identifier: Apache-2.0
"""The database against the backup pool: backups whose data are gone, and data that no backup knows.

As in `audit`, of which it is a part: requests go on, so what the rows of before or after explain is no finding, and
nothing in Ceph is changed. Whether what is there is whole only `backup verify` says, which reads all of it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import select

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from cinderlite.context import World
from cinderlite.core import vault
from cinderlite.core.finding import UUID, Finding, Repair, set_row
from cinderlite.core.progress import Progress
from cinderlite.db import models

#: What such findings have for a back end's name.
NAME = "backups"

#: What `vault` calls chains, and the backups in them.
CHAIN = re.compile(f"volume-{UUID}\\.backup\\.{UUID}")
_SNAP = re.compile(f"backup\\.{UUID}\\.snap")


class _Row(NamedTuple):
    chain: str
    snap: str
    status: str
    busy: int
    #: Id of the chain's image, when that is in the trash.
    trashed: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """What the pool has."""

    #: chain → its backups' snapshots; None for one that is not there
    chains: dict[str, set[str] | None]
    #: id of a chain in the trash → its former name
    trash: dict[str, str]


def once(world: World, pool: Cluster, progress: Progress, again: str) -> dict[Any, Finding]:
    """What does not fit, as far as it can be told from names, by key. Raises Unavailable, CephError."""
    before = _read(world)
    seen = _look(pool, before, functools.partial(progress, f"backups in {pool.place}{again}"))
    after = _read(world)
    return {one.key: one for one in _Comparison(pool, before, seen, after).findings()}


def _read(world: World) -> dict[str, _Row]:
    table = models.Backup
    with world.db.read() as session:
        rows = session.execute(select(table.id, table.details, table.status, table.busy, table.intent)).all()
    return {
        row_id: _Row(
            str(details["chain"]),
            vault.snap_of(str(details["stored_as"])),
            status,
            busy,
            (intent or {}).get("image_id"),
        )
        for row_id, details, status, busy, intent in rows
    }


def _look(pool: Cluster, rows: dict[str, _Row], note: Callable[[int, int], None]) -> _Seen:
    there = {name for name in pool.images("volume-") if CHAIN.fullmatch(name)}
    wanted = sorted(there | {row.chain for row in rows.values() if not row.busy})
    chains: dict[str, set[str] | None] = {}
    for done, chain in enumerate(wanted):
        note(done, len(wanted))
        chains[chain] = _snaps(pool, chain) if chain in there else None
    trash = {image_id: name for image_id, name in pool.trashed() if CHAIN.fullmatch(name)}
    return _Seen(chains, trash)


def _snaps(pool: Cluster, chain: str) -> set[str] | None:
    try:
        return {one.name for one in pool.snapshots(chain) if _SNAP.fullmatch(one.name)}
    except errors.ImageNotFound:
        return None


class _Comparison:
    def __init__(self, pool: Cluster, before: dict[str, _Row], seen: _Seen, after: dict[str, _Row]) -> None:
        self._pool = pool
        self._before = before
        self._seen = seen
        self._after = after
        #: What a row of either reading knows.
        rows = [*before.values(), *after.values()]
        self._chains = {row.chain for row in rows}
        self._snaps = {(row.chain, row.snap) for row in rows}
        self._trashed = {row.trashed for row in rows}

    def findings(self) -> Iterator[Finding]:
        for backup_id, row in self._before.items():
            if row.status == "available" and not row.busy and row == self._after.get(backup_id):
                yield from self._missing(backup_id, row)
        for chain, snaps in self._seen.chains.items():
            if snaps is None:
                continue
            if chain not in self._chains:
                yield self._unknown(f"image {chain}", self._rbd("trash mv", f"{self._pool.place}/{chain}"))
                continue
            for snap in sorted(snaps):
                if (chain, snap) not in self._snaps:
                    yield self._unknown(f"{chain}@{snap}", self._rbd("snap rm", f"{self._pool.place}/{chain}@{snap}"))
        for image_id, name in self._seen.trash.items():
            if image_id not in self._trashed and name not in self._chains:
                command = self._rbd("trash rm", "--pool", self._pool.pool, image_id)
                what = "it is in the trash, and nobody will remove it from there"
                yield self._finding("trash", f"{name} ({image_id})", what, f"if nobody needs it: {command}")

    def _missing(self, backup_id: str, row: _Row) -> Iterator[Finding]:
        there = self._seen.chains[row.chain]
        if there is not None and row.snap in there:
            return
        what = f"the backup is available, but {row.chain}@{row.snap} is not in pool {self._pool.place}"
        in_trash = [image_id for image_id, name in self._seen.trash.items() if name == row.chain]
        if there is None and in_trash:
            command = self._rbd("trash restore", "--pool", self._pool.pool, in_trash[-1])
            yield self._finding("missing-backup", f"backup {backup_id}", f"{what}; it is in the trash", command)
            return
        table, gone = models.Backup, {"status": "error", "fail_reason": "Its data are not in the backup pool."}
        repair = set_row(table, backup_id, gone, table.status == row.status)
        yield self._finding("missing-backup", f"backup {backup_id}", what, "set the backup's status to error", repair)

    def _unknown(self, subject: str, command: str) -> Finding:
        remedy = f"cinderlite-manage rebuild --add takes in what has a record; if nobody needs it: {command}"
        return self._finding("unknown-backup", subject, "no backup knows it", remedy)

    def _rbd(self, *words: str) -> str:
        return " ".join(["rbd", "-c", self._pool.conffile, *words])

    def _finding(self, kind: str, subject: str, what: str, remedy: str, repair: Repair | None = None) -> Finding:
        return Finding(kind, NAME, subject, what, remedy, repair)
