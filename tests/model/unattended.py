# SPDX-License-Identifier: Apache-2.0
"""Processes that die while nobody takes up their work for a while, and users who go on meanwhile.

What each request must answer cannot be said then. But whatever happened, once somebody takes the work up everything
comes to rest, each row has its image and each image its row, snapshots keep their data, and all of it can be deleted.
"""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cinderlite.core import reconcile
from cinderlite.db import models
from conftest import PROJECT
from model import compare
from model.expected import LIMITS
from model.life import Killed
from model.stage import GROUP_TYPE, Stage

#: What is asked: noun of what it is done to, method, path behind that, body; None stands for another thing's id.
Request = tuple[str, str, str, Any]

_ACTION = "/action"
REQUESTS: dict[str, Request] = {
    "create": ("", "POST", "volumes", {"volume": {"size": 1}}),
    "create_on_fast": ("", "POST", "volumes", {"volume": {"size": 1, "volume_type": "quick"}}),
    "create_from_volume": ("volumes", "POST", "volumes", {"volume": {"source_volid": "ID"}}),
    "create_from_snapshot": ("snapshots", "POST", "volumes", {"volume": {"snapshot_id": "ID", "size": 2}}),
    "create_from_backup": ("backups", "POST", "volumes", {"volume": {"backup_id": "ID"}}),
    "snapshot": ("volumes", "POST", "snapshots", {"snapshot": {"volume_id": "ID"}}),
    "delete_volume": ("volumes", "DELETE", "volumes/ID", None),
    "cascade": ("volumes", "DELETE", "volumes/ID?cascade=True", None),
    "delete_snapshot": ("snapshots", "DELETE", "snapshots/ID", None),
    "extend": ("volumes", "POST", "volumes/ID/action", {"os-extend": {"new_size": 3}}),
    "revert": ("snapshots", "POST", "volumes/VOLUME/action", {"revert": {"snapshot_id": "ID"}}),
    "migrate": ("volumes", "POST", "volumes/ID/action", {"os-migrate_volume": {"host": "testhost@fast#fast"}}),
    "migrate_back": ("volumes", "POST", "volumes/ID/action", {"os-migrate_volume": {"host": "testhost@ceph#ceph"}}),
    "retype": (
        "volumes", "POST", "volumes/ID/action", {"os-retype": {"new_type": "quick", "migration_policy": "on-demand"}}
    ),
    "back_up": ("volumes", "POST", "backups", {"backup": {"volume_id": "ID"}}),
    "back_up_more": ("volumes", "POST", "backups", {"backup": {"volume_id": "ID", "incremental": True}}),
    "back_up_snapshot": ("snapshots", "POST", "backups", {"backup": {"volume_id": "VOLUME", "snapshot_id": "ID"}}),
    "restore": ("backups", "POST", "backups/ID/restore", {"restore": {"volume_id": "VOLUME"}}),
    "restore_anew": ("backups", "POST", "backups/ID/restore", {"restore": {}}),
    "delete_backup": ("backups", "DELETE", "backups/ID", None),
    "create_group": ("", "POST", "groups", {"group": {"group_type": GROUP_TYPE, "volume_types": ["__DEFAULT__"]}}),
    "join": ("volumes", "PUT", "groups/GROUP", {"group": {"add_volumes": "ID"}}),
    "delete_group": ("groups", "POST", "groups/ID/action", {"delete": {"delete-volumes": True}}),
    "snapshot_group": ("groups", "POST", "group_snapshots", {"group_snapshot": {"group_id": "ID"}}),
    "group_from_snapshot": (
        "group_snapshots", "POST", "groups/action", {"create-from-src": {"group_snapshot_id": "ID"}}
    ),
    "group_from_group": ("groups", "POST", "groups/action", {"create-from-src": {"source_group_id": "ID"}}),
    "delete_group_snapshot": ("group_snapshots", "DELETE", "group_snapshots/ID", None),
}  # fmt: skip
#: Often nothing, seldom a death or a lost answer after so many changes.
faults = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["kill", "kill", "doubt"])), max_size=1)


class Unattended(RuleBasedStateMachine):
    """One life of the service."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self._broken = True
        self._marks = 0
        #: Snapshot → what it held when it was there.
        self._held: dict[str, bytes] = {}

    @initialize()
    def begin(self) -> None:
        self.stage.limits = dict.fromkeys(LIMITS, -1)
        self.stage.begin()
        self._broken = False

    def _listed(self, noun: str) -> list[dict[str, Any]]:
        answer = self.stage.admin.get(f"/v3/{noun}/detail?sort=created_at:asc")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json[noun]
        return found

    def _ask(self, method: str, path: str, body: Any = None) -> int | None:
        """The status; None if the process died."""
        try:
            answer = self.stage.admin.request(method, f"/v3/{path}", body)
        except Killed:
            note(f"{method} {path} {body}: killed")
            return None
        note(f"{method} {path} {body}: {answer.status_code} {answer.json}")
        assert answer.status_code < 500, answer.text
        return int(answer.status_code)

    @rule(what=st.sampled_from(sorted(REQUESTS)), which=st.integers(0, 5), other=st.integers(0, 5), wrong=faults)
    def ask(self, what: str, which: int, other: int, wrong: list[tuple[int, str]]) -> None:
        """One request, during which the process may die."""
        noun, method, path, body = REQUESTS[what]
        names: dict[str, str] = {}
        for word, of in (("ID", noun), ("VOLUME", "volumes"), ("GROUP", "groups")):
            things = self._listed(of) if of else []
            if things:
                names[word] = things[(which if word == "ID" else other) % len(things)]["id"]
        if noun == "snapshots" and "ID" in names:
            [names["VOLUME"]] = [one["volume_id"] for one in self._listed(noun) if one["id"] == names["ID"]]
        with contextlib.suppress(KeyError):  # There is no such thing: nothing to ask.
            path, body = _filled(path, names), _filled(body, names)
            self._broken = True
            self.stage.life.faults = list(wrong)
            self._ask(method, path, body)
            self.stage.life.faults = []
            self._broken = False

    @rule(which=st.integers(0, 5))
    def write(self, which: int) -> None:
        """A guest writes to a volume that is there, whatever is under way with it."""
        things = self._listed("volumes")
        if not things:
            return
        one = things[which % len(things)]
        backend = one["os-vol-host-attr:host"].partition("#")[2]
        if f"volume-{one['id']}" in self.stage.cluster(backend).images(""):
            self._marks += 1
            self.stage.write(backend, one["id"], 512 * (which % 2), f"{self._marks:08d}".encode())

    @rule(wrong=faults)
    def take_up(self, wrong: list[tuple[int, str]]) -> None:
        """Other processes take the work up, or their leases lapse."""
        self._broken = True
        self.stage.life.faults = list(wrong)
        self.stage.settle()
        self.stage.life.faults = []
        self._at_rest()
        self._broken = False

    def _at_rest(self) -> None:
        """Nothing is under way, and the database and Ceph agree."""
        rows = [row for machine in reconcile.MACHINES for row in self.stage.rows(machine.model)]
        for row in rows:
            ended = isinstance(row, models.Volume) and row.deleted
            assert ended or not row.busy, (row.id, row.status, row.intent, row.reason)
            calm = row.status in ("available", "error", "error_restoring", "error_deleting")
            assert ended or calm, (row.id, row.status)
        volumes = [row for row in rows if isinstance(row, models.Volume) and not row.deleted]
        snapshots = [row for row in rows if isinstance(row, models.Snapshot)]
        for name in ("ceph", "fast"):
            cluster = self.stage.cluster(name)
            mine = {one.image: one for one in volumes if one.host.endswith(f"#{name}")}
            there = cluster.images("")
            assert there <= mine.keys()
            assert {image for image, one in mine.items() if one.status == "available"} <= there
            for image in there:
                held = {one.name for one in cluster.snapshots(image)}
                known = [one for one in snapshots if one.volume_id == mine[image].id]
                kept = {one.snap for one in known if one.status == "available" and one.group_snap is None}
                assert kept <= held
                assert {one for one in held if "backup" not in one} <= {one.snap for one in known}
                for one in known:
                    if one.snap in kept:
                        with cluster.opened(image, one.snap) as opened:
                            assert self._held.setdefault(one.id, opened.read(0, 1024)) == opened.read(0, 1024)
                if mine[image].status == "available":
                    assert cluster.info(image).size_bytes == mine[image].size * 2**30

    def teardown(self) -> None:
        """Take up what is left, delete everything, and look that nothing remains."""
        if self._broken:
            return
        self.take_up([])
        before = compare.answers(self.stage)
        done = self.stage.lose_database([])
        note(str(done.findings))
        assert compare.answers(self.stage) == before
        self._at_rest()
        for noun, body in (("group_snapshots", None), ("groups", {"delete": {"delete-volumes": False}}),
                           ("snapshots", None), ("backups", None), ("volumes", None)):  # fmt: skip
            for one in self._listed(noun):
                self._remove(noun, one["id"], body)
        self._at_rest()
        for cluster in (self.stage.cluster("ceph"), self.stage.cluster("fast"), self.stage.vault):
            assert (cluster.images(""), cluster.trashed()) == (set(), [])
        assert self.stage.objects() == set()
        assert not [row.id for machine in reconcile.MACHINES for row in self.stage.rows(machine.model) if row.busy]
        used = self.stage.admin.get(f"/v3/os-quota-sets/{PROJECT}?usage=True").json["quota_set"]
        assert {name: one["in_use"] for name, one in used.items() if name != "id" and one["in_use"]} == {}

    def _remove(self, noun: str, one: str, body: Any) -> None:
        if noun == "groups":
            members = self.stage.admin.get(f"/v3/groups/{one}?list_volume=True").json["group"]["volumes"]
            if members:
                leaving = {"group": {"remove_volumes": ",".join(members)}}
                assert self._ask("PUT", f"groups/{one}", leaving) == 202
            assert self._ask("POST", f"groups/{one}/action", body) == 202
        else:
            assert self._ask("DELETE", f"{noun}/{one}") == 202
        self.stage.settle()


def _filled(template: Any, names: dict[str, str]) -> Any:
    """The template with ids in place of words. Raises KeyError if there is none."""
    if isinstance(template, dict):
        return {key: _filled(value, names) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, names) for value in template]
    if isinstance(template, str):
        if template in ("ID", "VOLUME", "GROUP"):
            return names[template]
        head, *rest = template.split("/")
        return "/".join([head, *(_word(part, names) for part in rest)])
    return template


def _word(part: str, names: dict[str, str]) -> str:
    name, mark, query = part.partition("?")
    return (names[name] if name in ("ID", "VOLUME", "GROUP") else name) + mark + query
