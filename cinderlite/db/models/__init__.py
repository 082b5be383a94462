# SPDX-License-Identifier: Apache-2.0
"""All tables. Rows are data, not actors: what may happen to them stands in `core`.

Three columns make an operation survive its process: `intent` says what is to be done (JSON, NULL at rest),
`lease_owner` who is doing it, `lease_until` until when nobody else may. `core.states` is the only writer of them.
Ids are text UUIDs as the API shows them; times are naive UTC. Where a row names another one that may be deleted
before it (the snapshot that a volume was made from), it keeps the id and there is no foreign key.
"""

from __future__ import annotations

from cinderlite.db.models.actions import ServerAction
from cinderlite.db.models.attachments import Attachment, Freeze, Leftover, OwnClient
from cinderlite.db.models.backups import Backup, BackupMetadata
from cinderlite.db.models.base import Base, Recorded, Working, new_id, new_mark, utcnow
from cinderlite.db.models.groups import Group, GroupSnapshot, GroupType, GroupTypeSpec, GroupVolumeType
from cinderlite.db.models.keys import EncryptionKey
from cinderlite.db.models.records import VAULT, GoneRecord, Recorder, host_of
from cinderlite.db.models.services import Message, ProjectLock, Quota, QuotaClass, Service
from cinderlite.db.models.types import (
    DefaultType,
    ExtraSpec,
    QosKey,
    QosSpecs,
    TypeAccess,
    TypeEncryption,
    VolumeType,
)
from cinderlite.db.models.volumes import (
    Flatten,
    ImageMetadata,
    Snapshot,
    SnapshotMetadata,
    Transfer,
    Volume,
    VolumeMetadata,
)

__all__ = [
    "VAULT",
    "Attachment",
    "Backup",
    "BackupMetadata",
    "Base",
    "DefaultType",
    "EncryptionKey",
    "ExtraSpec",
    "Flatten",
    "Freeze",
    "GoneRecord",
    "Group",
    "GroupSnapshot",
    "GroupType",
    "GroupTypeSpec",
    "GroupVolumeType",
    "ImageMetadata",
    "Leftover",
    "Message",
    "OwnClient",
    "ProjectLock",
    "QosKey",
    "QosSpecs",
    "Quota",
    "QuotaClass",
    "Recorded",
    "Recorder",
    "ServerAction",
    "Service",
    "Snapshot",
    "SnapshotMetadata",
    "Transfer",
    "TypeAccess",
    "TypeEncryption",
    "Volume",
    "VolumeMetadata",
    "VolumeType",
    "Working",
    "host_of",
    "new_id",
    "new_mark",
    "utcnow",
]
