# SPDX-License-Identifier: Apache-2.0
"""Random sequences of what users and administrators ask, of guests' writes, and of processes that die meanwhile.

Each rule says what must come of one request: the statuses with which it may be refused, or how `Expected` changes. A
fault is arranged before a request and met during it or while it is being finished by the next process. What a newcomer
gets wrong: what was begun in Ceph was accepted, so a request that is killed there must be done in the end all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from conftest import OTHER, PROJECT
from model import compare
from model.expected import (
    KINDS,
    PLAIN,
    Backup,
    Expected,
    Group,
    Snapshot,
    Transfer,
    Volume,
)  # fmt: skip
from model.life import Killed
from model.stage import GROUP_TYPE, Stage

T = TypeVar("T")

#: Which of the things that are there.
pick = st.integers(0, 5)
#: Seldom: another project asks.
foreign = st.integers(0, 9).map(lambda number: number == 9)
sizes = st.integers(1, 3)
kinds = st.sampled_from([None, "quick"])
words = st.sampled_from(["one", "two"])
#: Where guests write: seldom behind the first piece of 4 MiB, since the fake's data are one string.
places = st.sampled_from([0, 512, 4096, 0, 512, 4096, 4 * 2**20])
#: What goes wrong how often in a row: after so many changes.
faults = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["kill", "doubt"])), min_size=1, max_size=3)


class Machine(RuleBasedStateMachine):
    """One life of the service."""

    stage: Stage
    #: Whether back ends may be down for a while.
    outages = True

    def __init__(self) -> None:
        super().__init__()
        self.expected = Expected()
        self.turn = 0
        #: What goes wrong with the next request, and what is out of reach meanwhile.
        self._faults: list[tuple[int, str]] = []
        self._down: str | None = None
        self._marks = 0
        self._ending = False
        #: Whether something was not as expected: then the rest would only hide it.
        self._broken = True

    @initialize()
    def begin(self) -> None:
        self.stage.begin()
        self._broken = False

    def teardown(self) -> None:
        """Delete everything, with what is still to go wrong, and look that nothing is left."""
        if self._broken:
            return
        self.lose_the_database()
        there, self._ending, self._down = self.expected, True, None
        for transfer in list(there.transfers.values()):
            self._end_transfer(transfer, transfer.project)
        for group in list(there.groups.values()):
            for member in there.members(group.id):
                self._leave(group, member)
            self._delete_group(group, group.project, with_volumes=False)
        for backup in list(there.backups.values()):
            self._delete_backup(backup, backup.project)
        for snapshot in list(there.snapshots.values()):
            self._delete_snapshot(snapshot, snapshot.project)
        for volume in list(there.volumes.values()):
            self._delete_volume(volume, volume.project, cascade=False)
        assert not any((there.volumes, there.snapshots, there.backups, there.groups, there.transfers))
        for _ in range(2):
            self._compare()

    # -- asking

    def _compare(self) -> None:
        self.turn += 1
        compare.everything(self.stage, self.expected, self.turn)
        self._broken = False

    def _ask(
        self,
        project: str | None,
        method: str,
        path: str,
        body: Any = None,
        *,
        refused: Sequence[int] = (),
        noun: str = "",
        then: Callable[[Any], None],
    ) -> None:
        """One request of a member, or of the administrator; `then` is told the answer's JSON, and compare all.

        Of a `noun` the answer has the id; if it was lost it is looked up.
        """
        self._broken = True
        client = self.stage.clients[project] if project else self.stage.admin
        down, self._down = self._down, None
        self.stage.life.faults, self._faults = self._faults, []
        note(f"{method} {path} {body} as {project or 'admin'}; {self.stage.life.faults}, down: {down}")
        answer, status = None, None
        try:
            with self.stage.outage(down) if down else contextlib.nullcontext():
                found = client.request(method, path, body)
            answer, status = found.json, found.status_code
        except Killed:
            assert not refused, f"begun, but it had to be refused: {method} {path}"
        self.stage.settle()
        self.stage.life.faults.clear()
        if status is not None and status >= 300:
            allowed = {*refused, 503} if down else set(refused)
            assert status in allowed, (method, path, body, status, answer, allowed)
        else:
            assert not refused, f"accepted, but it had to be refused: {method} {path} {body} {refused}"
            then(answer if answer is not None else self._lost(noun))
        if not self._ending:
            self._compare()

    def _lost(self, noun: str) -> Any:
        """The answer that a killed process did not give."""
        if not noun:
            return None
        known: Any = getattr(self.expected, noun)
        listed = self.stage.admin.get(f"/v3/{noun}?all_tenants=1").json[noun]
        [made] = [one["id"] for one in listed if one["id"] not in known]
        return {noun.removesuffix("s"): {"id": made}, "restore": {"volume_id": made}}

    def _act(self, project: str | None, volume: Volume, action: str, fields: Any, **how: Any) -> None:
        self._ask(project, "POST", f"/v3/volumes/{volume.id}/action", {action: fields}, **how)

    def _owner(self, thing: Any, other: bool) -> tuple[str, list[int]]:
        """Who asks, and what another project is told."""
        project: str = thing.project
        return (project, []) if not other else (OTHER if project == PROJECT else PROJECT, [404])

    def _backend(self, volume_id: str) -> str:
        """Which of them the service chose."""
        host = self.stage.admin.get(f"/v3/volumes/{volume_id}").json["volume"]["os-vol-host-attr:host"]
        return str(host).partition("@")[2].partition("#")[0]

    def _some(self, things: dict[str, T], number: int) -> T:
        return list(things.values())[number % len(things)]

    # -- volumes

    def _create(self, project: str, wanted: int | None, kind: str | None, refused: list[int],
                source: Volume | Snapshot | Backup | None = None) -> None:  # fmt: skip
        there = self.expected
        chosen = kind or (self._kind_of(source) if source else PLAIN)
        size = wanted or (source.size if source else 0)
        near = self._home(source).backend if isinstance(source, Volume | Snapshot) else None
        if source and size < source.size:
            refused = [*refused, 400]
        if near and near not in KINDS[chosen]:
            refused = [*refused, 400]
        if there.exceeds(project, chosen, {"volumes": 1, "gigabytes": size}):
            refused = [*refused, 413]
        fields: dict[str, Any] = {"size": wanted, "volume_type": kind}
        parent = None
        if isinstance(source, Snapshot):
            fields["snapshot_id"], parent = source.id, source.volume
        elif isinstance(source, Volume):
            fields["source_volid"], parent = source.id, source.id
        elif source is not None:
            fields["backup_id"] = source.id
        data = dict(source.data) if source else {}

        def made(answer: Any) -> None:
            volume_id = answer["volume"]["id"]
            backend = self._backend(volume_id)
            assert backend in ([near] if near else KINDS[chosen])
            there.volumes[volume_id] = Volume(
                volume_id, there.next(), project, size, chosen, backend, data=data, parent=parent,
                snapshot_id=fields.get("snapshot_id"), source_volid=fields.get("source_volid"),
            )  # fmt: skip

        self._ask(project, "POST", "/v3/volumes", {"volume": fields}, refused=refused, noun="volumes", then=made)

    def _home(self, source: Volume | Snapshot) -> Volume:
        return source if isinstance(source, Volume) else self.expected.home(source)

    def _kind_of(self, source: Volume | Snapshot | Backup) -> str:
        return self._home(source).kind if isinstance(source, Volume | Snapshot) else source.kind

    @rule(project=st.sampled_from([PROJECT, OTHER]), size=sizes, kind=kinds)
    def create(self, project: str, size: int, kind: str | None) -> None:
        self._create(project, size, kind, [])

    @precondition(lambda self: self.expected.snapshots)
    @rule(which=pick, other=foreign, size=st.none() | sizes, kind=st.none() | kinds)
    def create_from_snapshot(self, which: int, other: bool, size: int | None, kind: str | None) -> None:
        source = self._some(self.expected.snapshots, which)
        project, refused = self._owner(source, other)
        self._create(project, size, kind, refused, source)

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, other=foreign, size=st.none() | sizes, kind=st.none() | kinds)
    def create_from_volume(self, which: int, other: bool, size: int | None, kind: str | None) -> None:
        source = self._some(self.expected.volumes, which)
        project, refused = self._owner(source, other)
        if source.status != "available":
            refused = [*refused, 400]
        self._create(project, size, kind, refused, source)

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, other=foreign, cascade=st.booleans())
    def delete_volume(self, which: int, other: bool, cascade: bool) -> None:
        volume = self._some(self.expected.volumes, which)
        project, _ = self._owner(volume, other)
        self._delete_volume(volume, project, cascade=cascade)

    def _delete_volume(self, volume: Volume, project: str, *, cascade: bool) -> None:
        mine = self.expected.snapshots_of(volume.id)
        refused = [] if project == volume.project else [404]
        alone = self.stage.outlive and not cascade
        if volume.status != "available" or volume.group or (mine and not cascade and not alone):
            refused.append(400)
        if any(one.project != volume.project for one in mine) and not alone:
            refused.append(400)
        path = f"/v3/volumes/{volume.id}" + ("?cascade=True" if cascade else "")

        def done(_answer: Any) -> None:
            self.expected.drop_volume(volume.id, alone=alone)

        self._ask(project, "DELETE", path, refused=refused, then=done)

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, other=foreign, size=st.integers(1, 4))
    def extend(self, which: int, other: bool, size: int) -> None:
        volume = self._some(self.expected.volumes, which)
        project, refused = self._owner(volume, other)
        if volume.status != "available" or size <= volume.size:
            refused.append(400)
        if self.expected.exceeds(volume.project, volume.kind, {"gigabytes": size - volume.size}):
            refused.append(413)

        def done(_answer: Any) -> None:
            volume.size = size

        self._act(project, volume, "os-extend", {"new_size": size}, refused=refused, then=done)

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, other=foreign, name=words, metadata=st.none() | words)
    def rename(self, which: int, other: bool, name: str, metadata: str | None) -> None:
        volume = self._some(self.expected.volumes, which)
        project, refused = self._owner(volume, other)
        changes: dict[str, Any] = {"name": name} | ({"metadata": {"k": metadata}} if metadata else {})

        def done(_answer: Any) -> None:
            volume.name = name
            volume.metadata = changes.get("metadata", volume.metadata)

        self._ask(project, "PUT", f"/v3/volumes/{volume.id}", {"volume": changes}, refused=refused, then=done)

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, key=st.sampled_from(["k", "l"]), value=words)
    def add_metadata(self, which: int, key: str, value: str) -> None:
        volume = self._some(self.expected.volumes, which)
        path = f"/v3/volumes/{volume.id}/metadata"

        def done(_answer: Any) -> None:
            volume.metadata = {**volume.metadata, key: value}

        self._ask(volume.project, "POST", path, {"metadata": {key: value}}, then=done)

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, key=st.sampled_from(["k", "l"]))
    def delete_metadata(self, which: int, key: str) -> None:
        volume = self._some(self.expected.volumes, which)
        path = f"/v3/volumes/{volume.id}/metadata/{key}"
        refused = [] if key in volume.metadata else [404]

        def done(_answer: Any) -> None:
            volume.metadata = {name: value for name, value in volume.metadata.items() if name != key}

        self._ask(volume.project, "DELETE", path, refused=refused, then=done)

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, place=places, erase=st.integers(0, 3).map(lambda number: number == 3))
    def write(self, which: int, place: int, erase: bool) -> None:
        """A guest writes, bytes that nobody wrote before; or zeros."""
        volume = self._some(self.expected.volumes, which)
        self._marks += 1
        data = bytes(8) if erase else f"{self._marks:08d}".encode()
        self.stage.write(volume.backend, volume.id, place, data)
        volume.data = {**volume.data, place: data}

    # -- snapshots

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, other=foreign, name=st.none() | words)
    def snapshot(self, which: int, other: bool, name: str | None) -> None:
        there, volume = self.expected, self._some(self.expected.volumes, which)
        project, refused = self._owner(volume, other)
        if volume.status != "available":
            refused.append(400)
        if there.exceeds(project, volume.kind, {"snapshots": 1, "gigabytes": volume.size}):
            refused.append(413)
        data = dict(volume.data)

        def made(answer: Any) -> None:
            one = answer["snapshot"]["id"]
            there.snapshots[one] = Snapshot(
                one, there.next(), project, volume.id, volume.size, volume.kind, data, name
            )  # fmt: skip

        body = {"snapshot": {"volume_id": volume.id, "name": name}}
        self._ask(project, "POST", "/v3/snapshots", body, refused=refused, noun="snapshots", then=made)

    @precondition(lambda self: self.expected.snapshots)
    @rule(which=pick, other=foreign)
    def delete_snapshot(self, which: int, other: bool) -> None:
        snapshot = self._some(self.expected.snapshots, which)
        self._delete_snapshot(snapshot, self._owner(snapshot, other)[0])

    def _delete_snapshot(self, snapshot: Snapshot, project: str) -> None:
        refused = [] if project == snapshot.project else [404]
        path = f"/v3/snapshots/{snapshot.id}"
        self._ask(project, "DELETE", path, refused=refused, then=lambda _: self.expected.drop_snapshot(snapshot.id))

    @precondition(lambda self: self.expected.snapshots)
    @rule(which=pick, other=foreign)
    def revert(self, which: int, other: bool) -> None:
        snapshot = self._some(self.expected.snapshots, which)
        volume = self.expected.home(snapshot)
        project, refused = self._owner(volume, other)
        if volume.id not in self.expected.volumes:
            refused.append(404)
        if self.expected.snapshots_of(volume.id)[-1] is not snapshot or snapshot.project != volume.project:
            refused.append(400)
        if snapshot.size != volume.size:
            refused.append(400)
        if volume.status != "available":
            refused.append(409)

        def done(_answer: Any) -> None:
            volume.data = dict(snapshot.data)

        self._act(project, volume, "revert", {"snapshot_id": snapshot.id}, refused=refused, then=done)

    # -- transfers

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, other=foreign, no_snapshots=st.booleans())
    def offer(self, which: int, other: bool, no_snapshots: bool) -> None:
        volume = self._some(self.expected.volumes, which)
        project, refused = self._owner(volume, other)
        if volume.status != "available" or volume.group:
            refused.append(400)

        def made(answer: Any) -> None:
            one = answer["transfer"]
            transfer = Transfer(one["id"], one["auth_key"], project, volume.id, no_snapshots)
            self.expected.transfers[transfer.id] = transfer
            volume.status = "awaiting-transfer"

        body = {"transfer": {"volume_id": volume.id, "no_snapshots": no_snapshots}}
        self._ask(project, "POST", "/v3/volume-transfers", body, refused=refused, then=made)

    @precondition(lambda self: self.expected.transfers)
    @rule(which=pick, other=st.booleans(), wrong=foreign)
    def accept(self, which: int, other: bool, wrong: bool) -> None:
        there, transfer = self.expected, self._some(self.expected.transfers, which)
        project, _ = self._owner(transfer, other)
        volume = there.volumes[transfer.volume]
        along = [] if transfer.no_snapshots else [
            one for one in there.snapshots_of(volume.id) if one.project == volume.project]  # fmt: skip
        refused = [400] if wrong else []
        wanted = {"volumes": 1, "gigabytes": volume.size + sum(one.size for one in along)}
        if along:
            wanted["snapshots"] = len(along)
        if project != volume.project and there.exceeds(project, volume.kind, wanted):
            refused.append(413)

        def done(_answer: Any) -> None:
            del there.transfers[transfer.id]
            volume.status = "available"
            volume.project = project
            for one in along:
                one.project = project

        key = "0" * 16 if wrong else transfer.key
        path = f"/v3/volume-transfers/{transfer.id}/accept"
        self._ask(project, "POST", path, {"accept": {"auth_key": key}}, refused=refused, then=done)

    @precondition(lambda self: self.expected.transfers)
    @rule(which=pick, other=foreign)
    def end_transfer(self, which: int, other: bool) -> None:
        transfer = self._some(self.expected.transfers, which)
        self._end_transfer(transfer, self._owner(transfer, other)[0])

    def _end_transfer(self, transfer: Transfer, project: str) -> None:
        def done(_answer: Any) -> None:
            del self.expected.transfers[transfer.id]
            self.expected.volumes[transfer.volume].status = "available"

        refused = [] if project == transfer.project else [404]
        self._ask(project, "DELETE", f"/v3/volume-transfers/{transfer.id}", refused=refused, then=done)

    # -- types and places

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, other=foreign, kind=st.sampled_from(sorted(KINDS)), move=st.booleans())
    def retype(self, which: int, other: bool, kind: str, move: bool) -> None:
        there, volume = self.expected, self._some(self.expected.volumes, which)
        project, refused = self._owner(volume, other)
        moves = volume.backend not in KINDS[kind]
        if volume.kind == kind or volume.group or volume.status != "available" or (moves and not move):
            refused.append(400)
        along = there.snapshots_of(volume.id)
        if self._exceeds_retyped(volume, kind):
            refused.append(413)

        def done(_answer: Any) -> None:
            volume.kind = kind
            for one in along:
                one.kind = kind
            if moves:
                volume.backend, volume.migration = KINDS[kind][0], "success"

        body = {"new_type": kind, "migration_policy": "on-demand" if move else "never"}
        self._act(project, volume, "os-retype", body, refused=refused, then=done)

    def _exceeds_retyped(self, volume: Volume, kind: str) -> bool:
        """Whether the volume's project may not have so much of a type, with its snapshots."""
        own = [one.size for one in self.expected.snapshots_of(volume.id) if one.project == volume.project]
        wanted = {"volumes": 1, "gigabytes": volume.size + sum(own)} | ({"snapshots": len(own)} if own else {})
        return self.expected.exceeds(volume.project, kind, wanted, only_of_type=True)

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, backend=st.sampled_from(["ceph", "fast"]))
    def migrate(self, which: int, backend: str) -> None:
        volume = self._some(self.expected.volumes, which)
        refused = []
        if volume.backend == backend or volume.status != "available" or volume.group:
            refused.append(400)
        if backend not in KINDS[volume.kind]:
            refused.append(400)

        def done(_answer: Any) -> None:
            volume.backend, volume.migration = backend, "success"

        body = {"host": f"testhost@{backend}#{backend}"}
        self._act(None, volume, "os-migrate_volume", body, refused=refused, then=done)

    # -- backups

    @precondition(lambda self: self.expected.volumes)
    @rule(which=pick, other=foreign, incremental=st.booleans())
    def back_up(self, which: int, other: bool, incremental: bool) -> None:
        volume = self._some(self.expected.volumes, which)
        refused = [] if volume.status == "available" else [400]
        self._back_up(volume, None, self._owner(volume, other)[0], incremental, refused)

    @precondition(lambda self: self.expected.snapshots)
    @rule(which=pick, other=foreign, incremental=st.booleans())
    def back_up_snapshot(self, which: int, other: bool, incremental: bool) -> None:
        snapshot = self._some(self.expected.snapshots, which)
        project, refused = self._owner(snapshot, other)
        self._back_up(self.expected.home(snapshot), snapshot, project, incremental, refused)

    def _back_up(
        self, volume: Volume, snapshot: Snapshot | None, project: str, incremental: bool, refused: list[int]
    ) -> None:
        there = self.expected
        if project != volume.project:
            refused = [*refused, 404]
        moment = snapshot.order if snapshot else there.next()
        earlier = [one for one in there.backups.values()
                   if (one.volume, one.project) == (volume.id, project) and one.order < moment]  # fmt: skip
        if incremental and not earlier:
            refused = [*refused, 400]
        source: Volume | Snapshot = snapshot or volume
        if there.exceeds(project, None, {"backups": 1, "backup_gigabytes": source.size}):
            refused = [*refused, 413]

        def made(answer: Any) -> None:
            one = answer["backup"]["id"]
            there.backups[one] = Backup(
                one, moment, project, volume.id, snapshot.id if snapshot else None, source.size, dict(source.data),
                incremental, volume.kind, dict(volume.metadata),
            )  # fmt: skip
            if snapshot is None:
                volume.backups = {one}

        body = {"volume_id": volume.id, "incremental": incremental, "snapshot_id": snapshot.id if snapshot else None}
        self._ask(project, "POST", "/v3/backups", {"backup": body}, refused=refused, noun="backups", then=made)

    @precondition(lambda self: self.expected.backups)
    @rule(which=pick, other=foreign, into=st.none() | pick)
    def restore(self, which: int, other: bool, into: int | None) -> None:
        there, backup = self.expected, self._some(self.expected.backups, which)
        project, refused = self._owner(backup, other)
        path = f"/v3/backups/{backup.id}/restore"
        if into is None or not there.volumes:
            self._restore_anew(backup, project, refused, path)
            return
        volume = self._some(there.volumes, into)
        if volume.project != project:
            refused.append(404)
        if volume.status != "available" or volume.size < backup.size:
            refused.append(400)

        def done(_answer: Any) -> None:
            volume.data = dict(backup.data)

        self._ask(project, "POST", path, {"restore": {"volume_id": volume.id}}, refused=refused, then=done)

    def _restore_anew(self, backup: Backup, project: str, refused: list[int], path: str) -> None:
        there = self.expected
        if there.exceeds(project, backup.kind, {"volumes": 1, "gigabytes": backup.size}):
            refused = [*refused, 413]

        def made(answer: Any) -> None:
            one = answer["restore"]["volume_id"]
            there.volumes[one] = Volume(
                one, there.next(), project, backup.size, backup.kind, self._backend(one),
                f"restore_backup_{backup.id}", dict(backup.metadata), dict(backup.data),
            )  # fmt: skip
            assert there.volumes[one].backend in KINDS[backup.kind]

        self._ask(project, "POST", path, {"restore": {}}, refused=refused, noun="volumes", then=made)

    @precondition(lambda self: self.expected.backups)
    @rule(which=pick, other=foreign, size=st.none() | sizes)
    def create_from_backup(self, which: int, other: bool, size: int | None) -> None:
        backup = self._some(self.expected.backups, which)
        project, refused = self._owner(backup, other)
        self._create(project, size, None, refused, backup)

    @precondition(lambda self: self.expected.backups)
    @rule(which=pick, other=foreign)
    def delete_backup(self, which: int, other: bool) -> None:
        backup = self._some(self.expected.backups, which)
        self._delete_backup(backup, self._owner(backup, other)[0])

    def _delete_backup(self, backup: Backup, project: str) -> None:
        def done(_answer: Any) -> None:
            del self.expected.backups[backup.id]
            self.expected.gone.append(f"backups/{backup.id}")
            if backup.volume in self.expected.volumes:
                self.expected.volumes[backup.volume].backups.discard(backup.id)

        refused = [] if project == backup.project else [404]
        self._ask(project, "DELETE", f"/v3/backups/{backup.id}", refused=refused, then=done)

    # -- groups

    @rule(project=st.sampled_from([PROJECT, OTHER]))
    def create_group(self, project: str) -> None:
        refused = [413] if self.expected.exceeds(project, None, {"groups": 1}) else []

        def made(answer: Any) -> None:
            one = answer["group"]["id"]
            [backend] = [row.host.partition("#")[2] for row in self.stage.groups() if row.id == one]
            self.expected.groups[one] = Group(one, project, backend)

        body = {"group": {"group_type": GROUP_TYPE, "volume_types": [PLAIN]}}
        self._ask(project, "POST", "/v3/groups", body, refused=refused, noun="groups", then=made)

    @precondition(lambda self: self.expected.groups and self.expected.volumes)
    @rule(which=pick, volume=pick, other=foreign)
    def join(self, which: int, volume: int, other: bool) -> None:
        group, one = self._some(self.expected.groups, which), self._some(self.expected.volumes, volume)
        project, refused = self._owner(group, other)
        if (one.project, one.backend, one.kind, one.status) != (group.project, group.backend, PLAIN, "available"):
            refused.append(400)
        if one.group is not None:
            refused.append(400)

        def done(_answer: Any) -> None:
            one.group = group.id

        body = {"group": {"add_volumes": one.id}}
        self._ask(project, "PUT", f"/v3/groups/{group.id}", body, refused=refused, then=done)

    @precondition(lambda self: any(one.group for one in self.expected.volumes.values()))
    @rule(which=pick)
    def leave(self, which: int) -> None:
        members = [one for one in self.expected.volumes.values() if one.group]
        volume = members[which % len(members)]
        self._leave(self.expected.groups[volume.group or ""], volume)

    def _leave(self, group: Group, volume: Volume) -> None:
        def done(_answer: Any) -> None:
            volume.group = None

        body = {"group": {"remove_volumes": volume.id}}
        self._ask(group.project, "PUT", f"/v3/groups/{group.id}", body, then=done)

    @precondition(lambda self: self.expected.groups)
    @rule(which=pick, other=foreign, with_volumes=st.booleans())
    def delete_group(self, which: int, other: bool, with_volumes: bool) -> None:
        group = self._some(self.expected.groups, which)
        self._delete_group(group, self._owner(group, other)[0], with_volumes=with_volumes)

    def _delete_group(self, group: Group, project: str, *, with_volumes: bool) -> None:
        there, members = self.expected, self.expected.members(group.id)
        refused = [] if project == group.project else [404]
        if (members and not with_volumes) or any(
            there.snapshots_of(one.id) and not self.stage.outlive for one in members
        ):
            refused.append(400)

        def done(_answer: Any) -> None:
            del there.groups[group.id]
            there.gone.append(f"groups/{group.id}")
            for one in members:
                there.drop_volume(one.id, alone=self.stage.outlive)

        path, body = f"/v3/groups/{group.id}/action", {"delete": {"delete-volumes": with_volumes}}
        self._ask(project, "POST", path, body, refused=refused, then=done)

    # -- what goes wrong

    @rule(faults=faults)
    def arrange_faults(self, faults: list[tuple[int, str]]) -> None:
        self._faults = list(faults)

    @precondition(lambda self: self.outages)
    @rule(name=st.sampled_from(["ceph", "fast", "vault"]))
    def arrange_outage(self, name: str) -> None:
        self._down = name

    @rule()
    def lose_the_database(self) -> None:
        """Built anew, it says what the lost one said; only what was offered to other projects is not on offer now."""
        self._broken = True
        faults, self._faults = self._faults, []
        note(f"the database is lost; {faults}")
        for transfer in self.expected.transfers.values():
            self.expected.volumes[transfer.volume].status = "available"
        self.expected.transfers.clear()
        before = compare.answers(self.stage)
        done = self.stage.lose_database(faults)
        assert done.findings == []
        assert compare.answers(self.stage) == before
        self._compare()
