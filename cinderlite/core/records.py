# SPDX-License-Identifier: Apache-2.0
"""What Ceph keeps of each row, so that a lost database can be built anew: which rows, in what form, and where.

A record is a row with the rows that are part of it (metadata), as JSON. It lies in the pool of the volume or backup
that it is about, as an entry of one of a few objects: so many are written at once, and none is copied by a clone, as an
image's own metadata would be. Who writes them is `recorder`, who reads them `rebuild`.

What a newcomer gets wrong: a record comes from outside. Every hypervisor may write to the pool, so where the service
has a key file records are signed with its key, and a row is made only for an image that is there.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import sqlalchemy
from oslo_utils import uuidutils
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster
from cinderlite.context import World
from cinderlite.db import models
from cinderlite.db.session import make_and_lock
from cinderlite.keys.master import MasterKey

_OBJECT = "cinderlite.records"
#: Digits that ids begin with; an object for each keeps objects small, even with a million volumes.
SHARDS = "0123456789abcdef"
#: The object with what administrators made, by the id of the database.
CATALOGUE = f"{_OBJECT}.catalogue"
#: Instead of a signature, by a service without a key file.
_UNSIGNED = "-"
#: Columns that say who is at work, or how far the record is.
_OMITTED = frozenset({"lease_owner", "lease_until", "unwritten", "record_host"})


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """Rows of one table that have records, and the relationships to what is part of them."""

    model: type[Any]
    parts: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """As the key of an entry begins."""
        return str(self.model.__tablename__)


#: In the order in which rows can be made.
KINDS = (
    Kind(models.Group, ("volume_type_rows",)),
    Kind(models.Volume, ("metadata_rows", "image_metadata_rows")),
    Kind(models.GroupSnapshot),
    Kind(models.Snapshot, ("metadata_rows",)),
    Kind(models.Backup, ("metadata_rows",)),
    Kind(models.Attachment),
)
BY_WORD = {kind.word: kind for kind in KINDS}


def object_of(row_id: str) -> str:
    """Name of the object that has the records of a row of that id."""
    return f"{_OBJECT}.{row_id[0]}"


def objects() -> list[str]:
    """Names of all objects that have records of rows."""
    return [f"{_OBJECT}.{digit}" for digit in SHARDS]


def key_of(kind: str, row_id: str) -> str:
    """The key of an entry."""
    return f"{kind}/{row_id}"


def places(world: World) -> dict[str, Cluster]:
    """Where records are: the pools of the back ends by what volumes call them in `host`, and that of the backups."""
    found = {backend.pool: backend.cluster for backend in world.backends.values()}
    if world.backup_cluster is not None:
        found[models.VAULT] = world.backup_cluster
    return found


def forget(world: World, row: models.Volume | models.Backup) -> None:
    """Remove the record of what has a key, and with it the key. Raises CephUnavailable."""
    host = models.VAULT if isinstance(row, models.Backup) else row.record_host or row.host
    cluster = places(world).get(host)
    if cluster is not None:
        cluster.put_entries(object_of(row.id), {}, [key_of(type(row).__tablename__, row.id)])


def identity(session: Session) -> models.Recorder:
    """The row that says which database this is, held until the transaction ends."""
    make_and_lock(session, models.Recorder, id=1)
    return session.get_one(models.Recorder, 1)


# -- rows as text


def columns(model: type[Any]) -> dict[str, Any]:
    """The types of a table's columns by the names of their attributes."""
    mapper = sqlalchemy.inspect(model)
    return {mapper.get_property_by_column(column).key: column.type for column in mapper.local_table.columns}


def plain(row: Any, omitted: AbstractSet[str] = _OMITTED) -> dict[str, Any]:
    """The columns of a row as JSON can hold them."""
    return {name: _plain(getattr(row, name)) for name in columns(type(row)) if name not in omitted}


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.datetime) else value


def values(model: type[Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Columns for a row of that table; what this release does not know is left out. Raises ValueError, TypeError."""
    known = columns(model)
    return {name: _typed(known[name], value) for name, value in written.items() if name in known}


def _typed(kind: Any, value: Any) -> Any:
    if isinstance(kind, sqlalchemy.DateTime) and value is not None:
        return datetime.datetime.fromisoformat(value)
    return value


def seal(keys: MasterKey | None, content: Mapping[str, Any]) -> bytes:
    """A record as it is stored: a signature and what it says."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return (keys.sign(text) if keys else _UNSIGNED).encode() + b" " + text


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is stored of one row, and whether the service itself wrote it as far as can be told."""

    kind: Kind
    id: str
    #: The pool that has it, as in `places`.
    host: str
    row: dict[str, Any]
    parts: Mapping[str, list[dict[str, Any]]]
    #: The type's name, if there is no catalogue.
    type_name: str | None
    wrapped_key: str | None

    def made(self, **changes: Any) -> Any:
        """The row, not yet in a database. Raises ValueError, TypeError."""
        relations = sqlalchemy.inspect(self.kind.model).relationships
        parts = {
            name: [relations[name].mapper.class_(**values(relations[name].mapper.class_, one)) for one in rows]
            for name, rows in self.parts.items()
            if name in self.kind.parts
        }
        return self.kind.model(**(values(self.kind.model, self.row) | changes), **parts)


def opened(keys: MasterKey | None, stored: bytes, *, unsigned: bool = False) -> dict[str, Any]:
    """What a stored record says. Raises InvalidInput with what is wrong with it.

    One that is not signed is good only if there is no key, or with `unsigned`.
    """
    signature, _, text = stored.partition(b" ")
    if keys is not None and not unsigned and not keys.signed(text, signature.decode("latin-1")):
        raise errors.InvalidInput("it is not signed with the key of this service's key file")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise errors.InvalidInput("it cannot be read")
    return content


def parsed(keys: MasterKey | None, host: str, key: str, stored: bytes, *, unsigned: bool = False) -> Record:
    """The record that is stored in a pool under a key. Raises InvalidInput with what is wrong with it."""
    content = opened(keys, stored, unsigned=unsigned)
    kind = BY_WORD.get(str(content.get("kind")))
    row, parts = content.get("row"), content.get("parts")
    if kind is None or not isinstance(row, dict) or not isinstance(parts, dict):
        raise errors.InvalidInput("it is of a kind that this release does not know")
    row_id = str(row.get("id"))
    if key != key_of(kind.word, row_id) or not uuidutils.is_uuid_like(row_id):
        raise errors.InvalidInput("it is about something else than its name says")
    record = Record(kind, row_id, host, row, parts, content.get("type"), content.get("key"))
    try:
        record.made()
    except (ValueError, TypeError, AttributeError, LookupError):
        raise errors.InvalidInput("it cannot be read") from None
    return record


def told(kind: Kind, row: Any, wrapped_key: str | None) -> dict[str, Any]:
    """What the record of a row says that was loaded with its parts, and with its type if it is a volume."""
    said: dict[str, Any] = {
        "kind": kind.word,
        "row": plain(row),
        "parts": {name: [plain(one) for one in getattr(row, name)] for name in kind.parts},
    }
    if kind.model is models.Volume:
        said["type"] = row.volume_type.name
    if wrapped_key is not None:
        said["key"] = wrapped_key
    return said
