# SPDX-License-Identifier: Apache-2.0
"""What must be there: plain objects that say what the service's answers, its database and Ceph have to show.

What a newcomer gets wrong: nothing here is learnt from the service but what it may choose freely, that is ids, keys of
transfers and the back end of a new volume. Everything else follows from what was asked.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

#: Offset → bytes; what is not in it reads as zeros.
Data = dict[int, bytes]

#: The volume types, with the back ends on which their volumes may be.
KINDS = {"__DEFAULT__": ("ceph", "fast"), "quick": ("fast",)}
PLAIN = "__DEFAULT__"

#: The limits of each project, low enough to be met.
LIMITS = {
    "volumes": 6, "gigabytes": 16, "snapshots": 5, "backups": 4, "backup_gigabytes": 8, "groups": 2,
    "volumes_quick": 3, "gigabytes_quick": 7, "snapshots_quick": 3,
}  # fmt: skip


@dataclasses.dataclass
class Volume:
    """A volume; `parent` is the volume of whose image its own is a clone."""

    id: str
    order: int
    project: str
    size: int
    kind: str
    backend: str
    name: str | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    data: Data = dataclasses.field(default_factory=dict)
    status: str = "available"
    migration: str | None = None
    group: str | None = None
    snapshot_id: str | None = None
    source_volid: str | None = None
    parent: str | None = None
    #: The backups that left a snapshot on its image, for the next increment.
    backups: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Snapshot:
    """A snapshot of a volume."""

    id: str
    order: int
    project: str
    volume: str
    size: int
    kind: str
    data: Data
    name: str | None = None


@dataclasses.dataclass
class Backup:
    """A backup; `order` is when its data were those of the volume."""

    id: str
    order: int
    project: str
    volume: str
    snapshot: str | None
    size: int
    data: Data
    incremental: bool
    #: What a volume made from it is like.
    kind: str
    metadata: dict[str, str]


@dataclasses.dataclass
class Transfer:
    """An open offer of a volume."""

    id: str
    key: str
    project: str
    volume: str
    no_snapshots: bool


@dataclasses.dataclass
class Group:
    """A group of volumes of the plain type."""

    id: str
    project: str
    backend: str


class Expected:
    """All that there is, by id and in the order of creation."""

    def __init__(self) -> None:
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.backups: dict[str, Backup] = {}
        self.transfers: dict[str, Transfer] = {}
        self.groups: dict[str, Group] = {}
        #: Volumes that were deleted: their images stay while snapshots are left, then in the trash while clones need them.
        self.deleted: dict[str, Volume] = {}
        #: Paths of what is not there any more.
        self.gone: list[str] = []
        self._orders = itertools.count()

    def next(self) -> int:
        """The next place in the order of creation."""
        return next(self._orders)

    # -- what follows from it

    def snapshots_of(self, volume_id: str) -> list[Snapshot]:
        """A volume's snapshots, whoever has them, oldest first."""
        return [one for one in self.snapshots.values() if one.volume == volume_id]

    def members(self, group_id: str) -> list[Volume]:
        """The volumes of a group."""
        return [one for one in self.volumes.values() if one.group == group_id]

    def home(self, snapshot: Snapshot) -> Volume:
        """The volume of a snapshot, which may have been deleted."""
        return self.volumes.get(snapshot.volume) or self.deleted[snapshot.volume]

    def outlived(self) -> dict[str, Volume]:
        """The deleted volumes of which snapshots are left."""
        left = {one.volume for one in self.snapshots.values()}
        return {volume_id: volume for volume_id, volume in self.deleted.items() if volume_id in left}

    def trash(self) -> dict[str, set[str]]:
        """Back end → volumes whose images must still be in the trash: the ancestors of those that have theirs."""
        needed: set[str] = set()
        named = self.volumes | self.outlived()
        for volume in named.values():
            parent = volume.parent
            while parent is not None:
                needed.add(parent)
                parent = (self.volumes.get(parent) or self.deleted[parent]).parent
        found: dict[str, set[str]] = {"ceph": set(), "fast": set()}
        for volume_id in needed - named.keys():
            found[self.deleted[volume_id].backend].add(volume_id)
        return found

    def usage(self, project: str) -> dict[str, int]:
        """What a project uses of each resource that has a limit."""
        used = dict.fromkeys(LIMITS, 0)
        held = [("volumes", one.size, one.kind) for one in self.volumes.values() if one.project == project]
        held += [("snapshots", one.size, one.kind) for one in self.snapshots.values() if one.project == project]
        for noun, size, kind in held:
            for name, amount in ((noun, 1), ("gigabytes", size)):
                used[name] += amount
                if f"{name}_{kind}" in used:
                    used[f"{name}_{kind}"] += amount
        mine = [one for one in self.backups.values() if one.project == project]
        used["backups"], used["backup_gigabytes"] = len(mine), sum(one.size for one in mine)
        used["groups"] = sum(one.project == project for one in self.groups.values())
        return used

    def exceeds(self, project: str, kind: str | None, wanted: Mapping[str, int], *, only_of_type: bool = False) -> bool:
        """Whether a project's quota does not allow so much more."""
        used = self.usage(project)
        names = [(name, amount) for name, amount in wanted.items() if not only_of_type]
        names += [(f"{name}_{kind}", amount) for name, amount in wanted.items() if f"{name}_{kind}" in LIMITS]
        return any(used[name] + amount > LIMITS[name] for name, amount in names)

    # -- what happens to it

    def drop_volume(self, volume_id: str, *, alone: bool = False) -> None:
        """A volume goes, and its snapshots with it if it does not go alone."""
        self.deleted[volume_id] = self.volumes.pop(volume_id)
        self.gone.append(f"volumes/{volume_id}")
        for snapshot in [] if alone else self.snapshots_of(volume_id):
            self.drop_snapshot(snapshot.id)

    def drop_snapshot(self, snapshot_id: str) -> None:
        """A snapshot goes."""
        del self.snapshots[snapshot_id]
        self.gone.append(f"snapshots/{snapshot_id}")
