# SPDX-License-Identifier: Apache-2.0
"""What is kept of a deleted volume for as long as it can be brought back.

Its image is in the trash with its snapshots; the rows of those snapshots go with the deletion, so that nothing counts
or shows them, and are written down in the volume's own row. Where snapshots outlive it, its image keeps its name, and
their rows stay.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from cinderlite.db import models

#: Columns of a snapshot that are what they were; the others say what is under way, or are the volume's.
_COLUMNS = (
    "id", "project_id", "user_id", "name", "description", "volume_size", "progress", "consumes_quota",
    "encryption_key_id", "created_at", "updated_at",
)  # fmt: skip
_TIMES = frozenset({"created_at", "updated_at"})


def remember(session: Session, volume: models.Volume) -> None:
    """Write down in a volume that was just deleted what it was, with the snapshots that go with it."""
    table = models.Snapshot
    along = select(table).where(table.volume_id == volume.id, table.status == "deleting", table.busy == 0)
    along = along.where(table.group_snapshot_id.is_(None))  # Others stay, or go with their group's snapshot.
    rows = session.scalars(along.options(selectinload(table.metadata_rows)))
    volume.kept = {
        **(volume.kept or {}),
        "status": volume.previous_status,
        "snapshots": [_written(row) for row in rows],
    }


def _written(row: models.Snapshot) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _COLUMNS}
    for name in _TIMES:
        values[name] = values[name].isoformat() if values[name] else None
    return {**values, "status": row.previous_status, "metadata": {one.key: one.value for one in row.metadata_rows}}


def snapshots(volume: models.Volume) -> list[models.Snapshot]:
    """The rows of a deleted volume's snapshots, on their way back; not in the database yet."""
    return [_row(volume, dict(one)) for one in (volume.kept or {}).get("snapshots", ())]


def _row(volume: models.Volume, written: dict[str, Any]) -> models.Snapshot:
    metadata, before = written.pop("metadata"), written.pop("status")
    for name in _TIMES:
        written[name] = datetime.datetime.fromisoformat(written[name]) if written[name] else None
    return models.Snapshot(
        **written,
        volume_id=volume.id,
        volume_type_id=volume.volume_type_id,
        status="restoring",
        previous_status=before,
        metadata_rows=[models.SnapshotMetadata(key=key, value=value) for key, value in metadata.items()],
    )
