# SPDX-License-Identifier: Apache-2.0
"""What Ceph and the guests hold that a database could be rebuilt from; nothing here writes.

What a newcomer gets wrong: an image that a live migration holds must not be opened (doc/decisions/0007). So only images
of pools where their volumes' records are, or where no migration is on its way to, are looked at.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from sqlalchemy import select

from cinderlite import errors
from cinderlite.ceph.cluster import Cluster, Outline
from cinderlite.ceph.look import GROUP, USER
from cinderlite.context import World
from cinderlite.core import records, vault
from cinderlite.core.audit_backups import CHAIN
from cinderlite.core.finding import UUID, Finding
from cinderlite.core.progress import Progress
from cinderlite.core.records import Record
from cinderlite.db import models

#: Images that are looked at at a time.
_AT_A_TIME = 8
_IMAGE = re.compile(f"volume-({UUID})")
_SNAP = re.compile(f"snapshot-({UUID})")

#: Ids of rows by table.
Known = Mapping[type[Any], AbstractSet[str]]


@dataclasses.dataclass(slots=True)
class Pool:
    """One pool: what volumes call it, and its records by key, its images and its trash (by id) by namespace."""

    host: str
    cluster: Cluster
    images: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    trash: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    records: dict[str, Record] = dataclasses.field(default_factory=dict)

    def look(self) -> None:
        """Ask which images are there, and in the trash, in all namespaces."""
        for namespace in ("", *self.cluster.namespaces()):
            cluster = self.cluster.within(namespace)
            self.images[namespace] = cluster.images("volume-")
            self.trash[namespace] = dict(cluster.trashed())

    def find(self, name: str, *namespaces: str) -> Cluster | None:
        """The first of the namespaces that has an image.

        Others are not looked into: who can write to one may give an image there any name.
        """
        for namespace in namespaces:
            if name in self.images.get(namespace, ()):
                return self.cluster.within(namespace)
        return None

    def of(self, model: type[Any]) -> list[Record]:
        """The records of one table's rows."""
        return [record for record in self.records.values() if record.kind.model is model]


@dataclasses.dataclass(slots=True)
class Found:
    """A volume that is there: its record, and the pool and the namespace that have the image."""

    record: Record
    host: str
    cluster: Cluster


class Survey:
    """Looks at everything at once; the attributes say what was found.

    `known` has what the database has already, which is not looked for. With `unsigned` records need not be signed.
    """

    def __init__(self, world: World, known: Known, *, unsigned: bool) -> None:
        self._world = world
        self._known = known
        self._unsigned = unsigned
        self.pools: dict[str, Pool] = {}
        self.findings: list[Finding] = []
        #: Which database wrote the catalogue, and what that says.
        self.database_id: str | None = None
        self.catalogue: Mapping[str, Any] = {}
        self.volumes: dict[str, Found] = {}
        #: By volume, also of volumes that the database has, if snapshots of them are missing.
        self.outlines: dict[str, Outline] = {}
        self.backups: set[str] = set()
        #: Server → its host, and the volumes that it holds; without those that cannot be asked.
        self.guests: dict[str, tuple[str, frozenset[str]]] = {}

    def look(self, progress: Progress) -> None:
        """Ask Ceph and the guests. Raises what a pool's cluster says that does not answer."""
        places = records.places(self._world)
        for number, (host, cluster) in enumerate(places.items()):
            progress("pools", number, len(places))
            cluster.check()
            self.pools[host] = pool = Pool(host, cluster)
            pool.look()
            self._read(pool)
        self._choose_catalogue()
        self._find_volumes()
        self._look_at_images(progress)
        self._find_backups(progress)
        self._ask_guests()

    def missing(self, model: type[Any]) -> Iterator[Record]:
        """Records of what the database has not, from whatever pool, each id once."""
        told = set(self._known[model])
        for pool in self.pools.values():
            for record in pool.of(model):
                if record.id not in told:
                    told.add(record.id)
                    yield record

    def note(self, kind: str, where: str, subject: str, what: str, remedy: str) -> None:
        """Tell the operator of something that could not be rebuilt."""
        self.findings.append(Finding(kind, where, subject, what, remedy))

    # -- records

    def _read(self, pool: Pool) -> None:
        for name in records.objects():
            for key, stored in pool.cluster.entries(name).items():
                try:
                    pool.records[key] = records.parsed(
                        self._world.signing, pool.host, key, stored, unsigned=self._unsigned
                    )
                except errors.InvalidInput as error:
                    self.note(
                        "record",
                        pool.host,
                        key,
                        str(error.args[0]),
                        "left out; --unsigned takes also what is not signed",
                    )

    def _choose_catalogue(self) -> None:
        """The one that knows most of the volumes' types; of those the newest, if several pools have it."""
        wanted = {record.row.get("volume_type_id") for record in self.missing(models.Volume)}
        found: list[tuple[int, str, str, Mapping[str, Any]]] = []
        for pool in self.pools.values():
            for database_id, stored in pool.cluster.entries(records.CATALOGUE).items():
                try:
                    said = records.opened(self._world.signing, stored, unsigned=self._unsigned)
                except errors.InvalidInput as error:
                    self.note("catalogue", pool.host, database_id, str(error.args[0]), "left out")
                    continue
                types = {one.get("id") for one in said.get("volume_types", ())}
                found.append((len(types & wanted), str(said.get("written")), database_id, said))
        if not found:
            self.note(
                "catalogue", "-", "types, quotas", "no pool has them", "make them anew; types will have a name only"
            )
            return
        *_, self.database_id, self.catalogue = max(found, key=lambda one: one[:3])
        for other in sorted({one[2] for one in found} - {self.database_id}):
            self.note("catalogue", "-", other, "it has another database's types and quotas", "left out")

    # -- volumes

    def _find_volumes(self) -> None:
        for pool in self.pools.values():
            for record in pool.of(models.Volume):
                if record.id in self._known[models.Volume]:
                    continue
                found = self._left(record, pool) if record.row.get("deleted") else self._place(record, pool)
                # Of two records the one beside the image is the newer one.
                if found is not None and (record.id not in self.volumes or found.host == pool.host):
                    self.volumes[record.id] = found
        there = {f"volume-{one}" for one in self.volumes.keys() | self._known[models.Volume]}
        for host, pool in self.pools.items():
            for namespace, names in pool.images.items() if host != models.VAULT else ():
                for name in sorted(filter(_IMAGE.fullmatch, names - there)):
                    where = pool.cluster.within(namespace).place
                    take = f"if it is a volume: cinder manage {host} {name}"
                    self.note("unmanaged-image", where, name, "there is no record of it", take)

    def _place(self, record: Record, pool: Pool) -> Found | None:
        """Where a volume's image is; it may have been moved since the record was written."""
        name, namespace = f"volume-{record.id}", str(record.row.get("namespace") or "")
        written = pool.cluster.within(namespace)
        elsewhere = self._elsewhere(record, pool)
        if name in pool.images.get(namespace, ()):
            for other in elsewhere:
                what = f"{other.cluster.place} has an image of that name, too: it was being moved"
                remedy = "if a server has it open, look which of both (query-named-block-nodes) before it is detached"
                self.note("two-images", pool.host, name, what, remedy)
            return Found(record, pool.host, written)
        state = written.migration(name)
        if state is not None:
            remedy = f"rbd -c {written.conffile} migration abort {written.place}/{name}, then again with --add"
            self.note("migration", pool.host, name, f"its migration to another place is {state}", remedy)
            return None
        if elsewhere:
            return elsewhere[0]
        if str(record.row.get("status")).startswith("error"):
            return Found(record, pool.host, written)  # That it has no image may be why.
        if name in pool.trash.get(namespace, {}).values():
            remedy = f"if that was a mistake: rbd -c {written.conffile} trash restore, then again with --add"
            self.note("trash", pool.host, name, "its image is in the trash: it was being deleted", remedy)
        else:
            self.note("missing-image", pool.host, name, "there is a record of it, but no image", "its data are lost")
        return None

    def _elsewhere(self, record: Record, pool: Pool) -> list[Found]:
        """Images of a volume's name in other places where its owner may have it."""
        found = []
        for backend in self._world.backends.values():
            of_owner = backend.namespace_for(str(record.row.get("project_id")))
            cluster = self.pools[backend.pool].find(f"volume-{record.id}", of_owner, "")
            there = backend.pool, cluster.namespace if cluster else ""
            if cluster is not None and there != (pool.host, str(record.row.get("namespace") or "")):
                found.append(Found(record, backend.pool, cluster))
        return found

    @staticmethod
    def _left(record: Record, pool: Pool) -> Found | None:
        """Where a deleted volume is of which something is left: in the trash, or in its place if snapshots need it."""
        name, namespace = f"volume-{record.id}", str(record.row.get("namespace") or "")
        if _has_its_place(record):
            there = name in pool.images.get(namespace, ())
        else:
            there = pool.trash.get(namespace, {}).get(_image_id(record) or "") == name
        return Found(record, pool.host, pool.cluster.within(namespace)) if there else None

    def _look_at_images(self, progress: Progress) -> None:
        wanted = {}
        for volume_id, found in self.volumes.items():
            names = self.pools[found.host].images.get(found.cluster.namespace, ())
            if f"volume-{volume_id}" in names:
                wanted[volume_id] = found.cluster
        wanted |= self._with_missing_snapshots()
        with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as threads:
            outlines = threads.map(lambda one: _outline(one[1], f"volume-{one[0]}"), wanted.items())
            for number, (volume_id, outline) in enumerate(zip(wanted, outlines, strict=True), start=1):
                progress("images", number, len(wanted))
                if outline is None:  # It went meanwhile.
                    self.volumes.pop(volume_id, None)
                else:
                    self.outlines[volume_id] = outline
        self._note_unknown_snapshots()

    def _with_missing_snapshots(self) -> dict[str, Cluster]:
        """Where the images are of volumes that the database has, if it lacks snapshots of them."""
        ids = {record.row.get("volume_id") for record in self.missing(models.Snapshot)} & self._known[models.Volume]
        with self._world.db.read() as session:
            rows = session.scalars(select(models.Volume).where(models.Volume.id.in_(ids))).all() if ids else []
        return {row.id: self._world.cluster_of(row) for row in rows}

    def _note_unknown_snapshots(self) -> None:
        told = {record.id for record in self.missing(models.Snapshot)} | self._known[models.Snapshot]
        for volume_id, outline in self.outlines.items():
            for snap in outline.snapshots:
                match = _SNAP.fullmatch(snap.name) if snap.kind == USER else None
                if match and match[1] not in told:
                    take = f"cinder snapshot-manage {volume_id} {snap.name}"
                    subject = f"volume-{volume_id}@{snap.name}"
                    self.note("unmanaged-snapshot", "-", subject, "there is no record of it", take)

    def holds(self, volume_id: str, snap: str) -> bool:
        """Whether the image of a volume has a snapshot, a user's or a group's."""
        outline = self.outlines.get(volume_id)
        names = {USER: "name", GROUP: "origin"}
        return outline is not None and any(
            getattr(one, names[one.kind]) == snap for one in outline.snapshots if one.kind in names
        )

    # -- backups and guests

    def _find_backups(self, progress: Progress) -> None:
        pool = self.pools.get(models.VAULT)
        if pool is None:
            return
        chains: dict[str, set[str]] = {}
        wanted = list(self.missing(models.Backup))
        for number, record in enumerate(wanted, start=1):
            progress("backups", number, len(wanted))
            details = record.row.get("details") or {}
            chain = str(details.get("chain"))
            if chain not in chains:
                chains[chain] = _snaps(pool.cluster, chain)
            if vault.snap_of(str(details.get("stored_as"))) in chains[chain]:
                self.backups.add(record.id)
        for name in sorted(pool.images[""] - chains.keys()):
            if CHAIN.fullmatch(name) and not self._known[models.Backup]:
                remedy = "import the records of its backups, if somebody exported them"
                self.note("unmanaged-backups", pool.host, name, "there is no record of what it holds", remedy)

    def _ask_guests(self) -> None:
        try:
            servers = self._world.guests.servers()
        except errors.Unavailable as error:
            self.note("guests", "-", "servers", str(error), "attachments are as they were written down")
            return
        for server in servers:
            try:
                disks = self._world.guests.find(server.id, fresh=False).disks()
            except (errors.GuestGone, errors.ServerNotFound):
                continue
            except (errors.Unavailable, errors.GuestRefused) as error:
                self.note("guests", "-", server.id, str(error), "its attachments are as they were written down")
            else:
                self.guests[server.id] = server.host, disks
        for sentence in self._world.guests.silent():
            self.note("guests", "-", "servers", sentence, "attachments there are as they were written down")


def _image_id(record: Record) -> str | None:
    """The id in the trash of a deleted volume's image."""
    found = _remembered(record).get("image_id")
    return str(found) if found else None


def _has_its_place(record: Record) -> bool:
    """Whether the image of a deleted volume has not been moved to the trash."""
    remembered = _remembered(record)
    return record.row.get("status") == "outlived" or bool(remembered.get("named")) or remembered.get("verb") == "hollow"


def _remembered(record: Record) -> Mapping[str, Any]:
    """What the row of a deleted volume knows of its image."""
    return (record.row.get("intent") if record.row.get("busy") else record.row.get("kept")) or {}


def _outline(cluster: Cluster, name: str) -> Outline | None:
    with contextlib.suppress(errors.ImageNotFound):
        return cluster.outline(name)
    return None


def _snaps(cluster: Cluster, chain: str) -> set[str]:
    with contextlib.suppress(errors.ImageNotFound):
        return {one.name for one in cluster.snapshots(chain)}
    return set()
