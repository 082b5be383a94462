# SPDX-License-Identifier: Apache-2.0
"""Compares what was promised with what there is: in the API, in the database's tables, in Ceph and in the guests.

It looks with the tools of Ceph, not with the service's own audit; that is asked last, for what it says of the same.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy

from cinderlite.db import models
from faults.cloud import BACKUPS, SECOND, Cloud
from faults.data import Data
from faults.driver import BACKUP, GROUP, GROUP_SNAPSHOT, SNAPSHOT, TENANTS, VOLUME, Thing
from faults.report import Report
from lab.guest import Guest
from lab.libvirt import Domain
from lab.process import LabError

#: Seconds within which all comes to rest once nothing is broken any more, and within which all can be removed.
AT_REST_WITHIN, REMOVED_WITHIN = 180.0, 240.0
#: Seconds after which an OSD is made to look for watches of the dead: of some hundred it forgets one now and then.
_ROUSED_AFTER = 60.0
_KINDS = (VOLUME, SNAPSHOT, BACKUP, GROUP, GROUP_SNAPSHOT)
_CALM = frozenset({"available", "in-use"})
#: What says that it failed, and leaves its owner to delete it.
_FAILED = frozenset({"error", "error_restoring", "error_extending", "error_managing"})
_SNAPSHOT = re.compile(r"snapshot-([0-9a-f-]{36})")
_OF_BACKUP = re.compile(r"backup\.([0-9a-f-]{36})\.snap")
#: What a volume's disk is called in a guest with a monitor, and in one of libvirt's.
_DISK = re.compile(r"(?:volume|ua)-([0-9a-f-]{36})")
#: libvirt's flag for what a domain is started with (VIR_DOMAIN_XML_INACTIVE).
_KEPT = 2
Row = dict[str, Any]


class Judge:
    """Looks at a cloud in which nothing is broken any more, and in which nobody asks for anything."""

    def __init__(self, cloud: Cloud, data: Data, report: Report, things: Sequence[Thing]) -> None:
        self._cloud, self._data, self._report, self._things = cloud, data, report, things
        self._engine = sqlalchemy.create_engine(cloud.url)
        [self._libvirts] = [guest for guest in cloud.guests if isinstance(guest, Domain)]

    def judge(self) -> None:
        """All of it; what is wrong goes into the report."""
        took = self._wait(self._unrest, AT_REST_WITHIN, "stuck")
        self._report.notes["at rest after"] = f"{took:.0f} s"
        self._compare_promises()
        self._compare_data()
        for what in self._unexplained():
            self._report.wrong("orphaned", what)
        self._recount()
        self._audit()
        took = self._wait(self._left, REMOVED_WITHIN, "orphaned")
        self._report.notes["removed after"] = f"{took:.0f} s"
        self._recount()

    def _wait(self, look: Callable[[], list[str]], most: float, verdict: str) -> float:
        """Until there is nothing to be seen; the seconds. What is to be seen at the end is wrong."""
        began = time.monotonic()
        roused = False
        while found := self._seen(look):
            elapsed = time.monotonic() - began
            if elapsed > most:
                for what in found:
                    self._report.wrong(verdict, what)
                break
            if elapsed > _ROUSED_AFTER and not roused:
                self._cloud.ceph.command("osd", "down", "0")
                roused = True
            time.sleep(1)
        return time.monotonic() - began

    @staticmethod
    def _seen(look: Callable[[], list[str]]) -> list[str]:
        try:
            return look()
        except LabError as error:  # What went away while it was looked at, as a rule.
            return [str(error)]

    # -- what there is

    def _listed(self, kind: str) -> dict[str, Row]:
        rows = self._cloud.admin("GET", f"/v3/{kind}/detail?all_tenants=1").body[kind]
        return {row["id"]: row for row in rows}

    def _pool_of(self, volume: Row) -> str:
        return SECOND if f"@{SECOND}#" in volume["os-vol-host-attr:host"] else self._cloud.ceph.pool

    def _images(self, pool: str) -> list[Row]:
        """The images of a pool, and their snapshots."""
        return list(json.loads(self._cloud.ceph.rbd("ls", "-l", "--format", "json", pool)))

    def _busy(self) -> list[str]:
        """Rows with work left. What clones need of a deleted volume waits for them."""
        found = []
        with self._engine.connect() as connection:
            for table in models.Base.metadata.sorted_tables:
                if "busy" in table.c:
                    for row in connection.execute(sqlalchemy.select(table).where(table.c.busy == 1)).mappings():
                        waits = row.get("deleted") or row["status"] == "deleted"
                        if not (waits and row["intent"]["verb"] in ("purge", "hollow")):
                            found.append(f"{table.name} {row['id']}: {row['status']} {row['intent']} {row['reason']}")
        return found

    # -- at rest

    def _unrest(self) -> list[str]:
        """What is still under way, or not of one mind yet."""
        found = self._busy()
        for kind in _KINDS:
            for row in self._listed(kind).values():
                if row["status"].endswith("ing") and not row["status"].startswith("error"):
                    found.append(f"{kind} {row['id']} is {row['status']}")
        volumes = self._listed(VOLUME)
        attached = {
            guest.uuid: {key for key, row in volumes.items() if guest.uuid in _servers(row)}
            for guest in self._cloud.guests
        }
        for guest in self._cloud.guests:
            try:
                held = _disks(guest)
            except LabError as error:
                found.append(str(error))
                continue
            if held != attached[guest.uuid]:
                found.append(f"{guest.name} has {sorted(held)} and should have {sorted(attached[guest.uuid])}")
        kept = set(_DISK.findall(self._libvirts.tell("XMLDesc", _KEPT)))
        if kept != attached[self._libvirts.uuid]:
            found.append(f"libvirt would start {self._libvirts.name} with {sorted(kept)}")
        secrets, plugged = self._cloud.libvirt.secrets(), len(attached[self._libvirts.uuid])
        if len(secrets) != plugged:
            found.append(f"libvirt has the secrets {secrets} for {plugged} attachments")
        users, known = self._cloud.ceph.users(), sum(len(row["attachments"]) for row in volumes.values())
        if len(users) != known:
            found.append(f"there are cephx users {users} for {known} attachments")
        found += self._watched(volumes)
        return found

    def _watched(self, volumes: dict[str, Row]) -> Iterator[str]:
        for pool in (*self._cloud.pools(), BACKUPS):
            for image in self._cloud.ceph.images(pool):
                status = json.loads(self._cloud.ceph.rbd("status", f"{pool}/{image}", "--format", "json"))
                row = volumes.get(image.removeprefix("volume-"), {"attachments": ()})
                watchers = [one["address"] for one in status.get("watchers", [])]
                if len(watchers) != len(row["attachments"]):
                    yield f"{pool}/{image} is open {watchers} for {len(row['attachments'])} attachments"

    # -- promises

    def _compare_promises(self) -> None:
        there = {kind: self._listed(kind) for kind in _KINDS}
        failed: list[str] = []
        for thing in self._things:
            row = there[thing.kind].get(thing.id)
            if row is None:
                if not thing.gone and not (thing.of is not None and thing.of.gone and thing.kind == SNAPSHOT):
                    self._report.wrong("lost", f"{thing} is gone")
            elif thing.gone == "accepted":
                self._report.wrong("undead", f"{thing} is {row['status']}")
            elif row["status"] in _FAILED:
                failed.append(f"{thing} is {row['status']}: {self._reason(thing)}")
                if thing.usable and thing.kind == VOLUME and row["status"] == "error":
                    self._report.wrong("lost", f"{thing} was usable and is {row['status']}")
            elif thing.kind == VOLUME and row["size"] not in thing.sizes:
                self._report.wrong("damaged", f"{thing} has {row['size']} GiB")
        known = {thing.id for thing in self._things}
        unknown = [
            key for kind in _KINDS for key, row in there[kind].items()
            if key not in known and not row.get("group_snapshot_id")
        ]  # fmt: skip
        self._report.notes["failed, and said so"] = "".join([str(len(failed)), *(f"\n  {one}" for one in failed)])
        self._report.notes["there without an answer to whoever asked for it"] = str(len(unknown))

    def _reason(self, thing: Thing) -> str:
        """What the service says of a thing that failed."""
        table = models.Base.metadata.tables["volume_groups" if thing.kind == GROUP else thing.kind]
        with self._engine.connect() as connection:
            return str(connection.scalar(sqlalchemy.select(table.c.reason).where(table.c.id == thing.id)))

    def _compare_data(self) -> None:
        """Volumes where they are; snapshots and backups by a volume that is made of each."""
        volumes = self._listed(VOLUME)
        checked = 0
        for thing in self._things:
            row = volumes.get(thing.id)
            if thing.kind == VOLUME and row is not None and row["status"] in _CALM:
                checked += 1
                self._compare(thing, row)
                size = row["size"] * 2**30
                info = self._cloud.ceph.rbd("info", f"{self._pool_of(row)}/volume-{thing.id}", "--format", "json")
                if json.loads(info)["size"] != size:
                    self._report.wrong("damaged", f"the image of {thing} has {json.loads(info)['size']} bytes")
        made = {}
        for kind in (SNAPSHOT, BACKUP):
            rows = self._listed(kind)
            for thing in self._things:
                well = not thing.gone and rows.get(thing.id, {}).get("status") == "available"
                if thing.kind == kind and well and (copy := self._copy(thing, rows[thing.id])):
                    made[copy] = thing
        self._wait(lambda: [f"a copy of {made[key]}" for key in self._unready(made)], AT_REST_WITHIN, "stuck")
        volumes = self._listed(VOLUME)
        for key, thing in made.items():
            if volumes[key]["status"] != "available":
                self._report.wrong("damaged", f"{thing} cannot be copied: {volumes[key]['status']}")
            else:
                checked += 1
                self._compare(thing, volumes[key])
        self._report.notes["compared data"] = str(checked)

    def _compare(self, thing: Thing, volume: Row) -> None:
        try:
            digest = self._data.digest(self._pool_of(volume), f"volume-{volume['id']}")
        except OSError as error:
            self._report.wrong("lost", f"{thing}: {error}")
        else:
            if digest not in thing.digests:
                self._report.wrong("damaged", f"{thing} holds {digest[:8]}")

    def _copy(self, thing: Thing, row: Row) -> str:
        if thing.kind == SNAPSHOT:
            body = {"volume": {"size": row["size"], "snapshot_id": thing.id}}
            answer = self._cloud.hosts[0].call("POST", "/v3/volumes", body, user=thing.user)
        else:
            path = f"/v3/backups/{thing.id}/restore"
            answer = self._cloud.hosts[0].call("POST", path, {"restore": {}}, user=thing.user)
        if answer.status != 202:
            self._report.wrong("damaged", f"{thing} cannot be copied: {answer.text}")
            return ""
        return str(answer.body["volume"]["id"] if thing.kind == SNAPSHOT else answer.body["restore"]["volume_id"])

    def _unready(self, made: dict[str, Thing]) -> list[str]:
        volumes = self._listed(VOLUME)
        return [key for key in made if volumes[key]["status"].endswith(("ing", "-backup"))]

    # -- Ceph

    def _unexplained(self) -> Iterator[str]:
        """Images, snapshots and what is in the trash that no row knows of."""
        volumes, snapshots, backups = self._listed(VOLUME), self._listed(SNAPSHOT), self._listed(BACKUP)
        with self._engine.connect() as connection:
            table = models.Volume.__table__
            leaving = set(connection.scalars(sqlalchemy.select(table.c.id).where(table.c.busy == 1)))
            # What snapshots of several volumes hold.
            moments = set(connection.scalars(sqlalchemy.select(models.Snapshot.__table__.c.group_snap)))
        for pool in self._cloud.pools():
            for one in self._images(pool):
                name = one["image"].removeprefix("volume-")
                if name not in volumes and name not in leaving:
                    yield f"{pool}/{one['image']}@{one.get('snapshot', '')}"
                taken = _SNAPSHOT.fullmatch(one.get("snapshot", ""))
                if taken and taken[1] not in snapshots:
                    yield f"{pool}/{one['image']}@{taken[0]}"
            for name in self._cloud.ceph.trash(pool):
                if name.removeprefix("volume-") not in leaving:
                    yield f"{pool}: {name} in the trash"
            for name in set(self._cloud.ceph.rbd("group", "ls", pool).split()) - moments:
                yield f"{pool}: group {name}"
        for one in self._images(BACKUPS):
            taken = _OF_BACKUP.fullmatch(one.get("snapshot", ""))
            if taken and taken[1] not in backups:
                yield f"{BACKUPS}/{one['image']}@{taken[0]}"

    def _audit(self) -> None:
        try:
            self._cloud.hosts[0].manage("audit")
        except LabError as error:
            self._report.wrong("orphaned", f"the service's own audit says {error}")

    # -- quotas

    def _recount(self) -> None:
        """What the quotas count against what the lists show."""
        for project in TENANTS.values():
            answer = self._cloud.admin("GET", f"/v3/os-quota-sets/{project}?usage=True").body["quota_set"]
            used = {key: answer[key]["in_use"] for key in ("volumes", "snapshots", "gigabytes", "backups", "groups")}
            rows = {kind: self._of(kind, project) for kind in (VOLUME, SNAPSHOT, BACKUP, GROUP)}
            counted = {kind: len(found) for kind, found in rows.items()}
            counted["gigabytes"] = sum(row["size"] for kind in (VOLUME, SNAPSHOT) for row in rows[kind])
            if used != counted:
                self._report.wrong("miscounted", f"{project} uses {used}, the lists have {counted}")

    def _of(self, kind: str, project: str) -> list[Row]:
        user = {project: user for user, project in TENANTS.items()}[project]
        answer = self._cloud.hosts[0].call("GET", f"/v3/{kind}/detail", user=user, version="3.71")
        return list(answer.body[kind])

    # -- the end of all

    def _left(self) -> list[str]:
        """Ask for the removal of whatever is left, as its owner; what is left of it."""
        owners = {project: user for user, project in TENANTS.items()}
        left = []
        for user in TENANTS:  # Nobody took what was offered.
            for offer in self._cloud.hosts[0].call("GET", "/v3/volume-transfers", user=user).body["transfers"]:
                self._cloud.hosts[0].call("DELETE", f"/v3/volume-transfers/{offer['id']}", user=user)
        for kind in (GROUP_SNAPSHOT, SNAPSHOT, VOLUME, BACKUP, GROUP):
            for key, row in self._listed(kind).items():
                left.append(f"{kind} {key} is {row['status']}")
                if row["status"].endswith("ing") and not row["status"].startswith("error"):
                    continue
                project = row.get("os-vol-tenant-attr:tenant_id") or row.get("os-backup-project-attr:project_id")
                user = owners.get(project or "demo", "alice")
                self._remove(kind, key, row, user)
        for pool in (*self._cloud.pools(), BACKUPS):
            left += [f"{pool}/{image}" for image in self._cloud.ceph.images(pool)]
            left += [f"{pool}: {name} in the trash" for name in self._cloud.ceph.trash(pool)]
            left += [f"{pool}: group {name}" for name in self._cloud.ceph.rbd("group", "ls", pool).split()]
        left += self._cloud.ceph.users()
        left += [f"secret {name} of libvirt's" for name in self._cloud.libvirt.secrets()]
        for guest in self._cloud.guests:
            left += [f"volume {name} in {guest.name}" for name in _disks(guest)]
        return left

    def _remove(self, kind: str, key: str, row: Row, user: str) -> None:
        host = self._cloud.hosts[0]
        for server in _servers(row):
            host.detach(server, key)
        if kind == GROUP:
            body = {"delete": {"delete-volumes": True}}
            host.call("POST", f"/v3/groups/{key}/action", body, user=user, version="3.71")
        elif kind != VOLUME or not row.get("group_id"):
            cascade = "?cascade=true" if kind == VOLUME else ""
            host.call("DELETE", f"/v3/{kind}/{key}{cascade}", user=user, version="3.71")


def _disks(guest: Guest) -> set[str]:
    """The volumes that a guest has now. Raises LabError."""
    return {found[1] for name in guest.holdings()["devices"] if (found := _DISK.fullmatch(name))}


def _servers(row: Row) -> list[str]:
    return [one["server_id"] for one in row.get("attachments", ())]
