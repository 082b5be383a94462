# SPDX-License-Identifier: Apache-2.0
"""Records of backups: by one a service that shares the backup pool, or has lost its database, can restore a backup.

What a newcomer gets wrong: a record comes from outside. It names images of the backup pool, so it is believed only as
far as it names what a backup of that volume would be. It may come under another id than it was exported with: then
two backups share what is stored, which goes with the last of them.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
from collections.abc import Mapping
from typing import Any

from oslo_utils import uuidutils

from cinderlite import errors
from cinderlite.context import Context, World
from cinderlite.core import backups, quotas, vault
from cinderlite.db import models

#: What writes records that this service can read; clients look for the beginning, under which Cinder has its own.
SERVICE = "cinder.backup.drivers.cinderlite"
#: The columns that go along, and what they may hold.
_TEXT, _TEXT_OR_NOTHING = (str,), (str, type(None))
_CARRIED: dict[str, tuple[type, ...]] = {
    "id": _TEXT, "volume_id": _TEXT, "snapshot_id": _TEXT_OR_NOTHING, "parent_id": _TEXT_OR_NOTHING, "size": (int,),
    "object_count": (int,), "container": _TEXT_OR_NOTHING, "availability_zone": _TEXT_OR_NOTHING,
    "name": _TEXT_OR_NOTHING, "description": _TEXT_OR_NOTHING, "encryption_key_id": _TEXT_OR_NOTHING,
    "details": (dict,), "data_timestamp": _TEXT,
}  # fmt: skip


def export(backup: models.Backup) -> dict[str, str]:
    """The record of a backup, as the API gives it. Raises InvalidBackup."""
    backups.refuse_unavailable(backup)
    record = {name: getattr(backup, name) for name in _CARRIED}
    record["data_timestamp"] = (backup.data_timestamp or backup.created_at).isoformat()
    text = json.dumps(record, sort_keys=True).encode()
    return {"backup_service": SERVICE, "backup_url": base64.b64encode(text).decode()}


def take_in(ctx: Context, service: str, url: str) -> models.Backup:
    """Make a backup that a record describes known here. Raises InvalidInput, InvalidBackup if it is known already."""
    backups.cluster(ctx.world).check()
    if service != SERVICE:
        raise errors.InvalidInput(f"the record is one of {service}, not of {SERVICE}")
    record = _read(url)
    with ctx.world.db.write() as session:
        quotas.lock(session, ctx.project_id)
        known = session.get(models.Backup, record["id"])
        if known is not None:
            gone = known.status == "deleted"
            raise errors.InvalidBackup(
                "What was stored of it is still being removed." if gone else "Backup already exists in database."
            )
        quotas.admit_backup(session, ctx.settings, ctx.project_id, record["size"])
        backup = models.Backup(
            **record,
            project_id=ctx.project_id,
            user_id=ctx.user_id,
            host=ctx.settings.host,
            metadata_rows=[],
        )
        owner = backups.LIFECYCLE.start(backup, "import", ctx.settings.lease, ctx.request_id)
        session.add(backup)
    backups.LIFECYCLE.run(ctx.world, backup.id, owner)
    return backup


def _read(url: str) -> dict[str, Any]:
    try:
        record = json.loads(base64.b64decode(url, validate=True))
        moment = datetime.datetime.fromisoformat(record["data_timestamp"])
    except (binascii.Error, ValueError, LookupError, TypeError, RecursionError) as error:
        raise errors.InvalidInput("the record cannot be read") from error
    if not isinstance(record, dict) or not _is_sound(record):
        raise errors.InvalidInput("the record is not one of a backup")
    return {**record, "data_timestamp": moment}


def _is_sound(record: Mapping[str, Any]) -> bool:
    if record.keys() != _CARRIED.keys():
        return False
    if any(type(record[name]) not in kinds for name, kinds in _CARRIED.items()):
        return False
    if not all(uuidutils.is_uuid_like(record[name]) for name in ("id", "volume_id")) or record["size"] < 1:
        return False
    return _is_its_own(record, record["details"])


def _is_its_own(record: Mapping[str, Any], details: Mapping[str, Any]) -> bool:
    """Whether the details lead to a chain of that very volume, and to nothing else of the pool."""
    if details.keys() != {"chain", "stored_as", "snap", "volume"} or not isinstance(details["volume"], dict):
        return False
    if details["volume"].keys() != {"name", "bootable", "volume_type_id", "image_metadata", "metadata"}:
        return False
    if not isinstance(details["snap"], str) or not uuidutils.is_uuid_like(details["stored_as"]):
        return False
    if record["snapshot_id"] is None and details["snap"] != vault.snap_of(details["stored_as"]):
        return False
    first = str(details["chain"]).removeprefix(vault.chain_of(record["volume_id"], ""))
    return uuidutils.is_uuid_like(first) and details["chain"] == vault.chain_of(record["volume_id"], first)


@backups.LIFECYCLE.step("import")
def _import(world: World, backup: models.Backup, _arguments: Mapping[str, Any]) -> None:
    if not vault.holds(backups.cluster(world), backup.details["chain"], backup.stored_as):
        raise errors.BackupDamaged(backup.id, "it is not in the backup pool")
