# SPDX-License-Identifier: Apache-2.0
"""Who may do what: each operation as each role, by a table, and everything of one project tried by another.

The scenarios of the API's samples are played once for each role. Where the table says that the role may, it makes the
call itself; where it may not it tries, is refused, and an administrator goes on, to whom nothing may have changed.
"""

from __future__ import annotations

import collections
import copy
import importlib
import pathlib
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy

import generate
import scenarios
from cinderlite.api import compute, volume
from cinderlite.context import World
from cinderlite.core import services
from cinderlite.db import models
from conftest import PROJECT, Client, _client

#: Operation → the least role that may; everybody who is logged in is `anybody`.
TABLE = dict(
    line.split()
    for line in (pathlib.Path(__file__).parent / "roles.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
RANK = ["anybody", "reader", "member", "admin"]
ROLES = {"anybody": "visitor", "reader": "reader", "member": "member,reader"}
SCENARIOS = sorted(info.name for info in pkgutil.iter_modules(scenarios.__path__))
#: What is not of one project, or names itself only to those who see it anyway.
PUBLIC = re.compile(r"(volume/(types|group_types|qos|encryption|default_types|services)|compute/servers)\..*")
#: What a reader may do with a type that is his to see; the scenario's is not.
HIDDEN = {"volume/types.show", "volume/types.show_extra_specs", "volume/types.show_extra_spec"}
#: What leads from a fake cluster to others.
_LINKS = {"others", "spaces", "_in_doubt"}
_ID = re.compile(rf"[0-9a-f]{{8}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}}|{PROJECT}")
#: Operation → whether it looks up what its path names.
LOOKING = {
    f"{service.SERVICE.name}/{operation.name}": bool(operation.finders)
    for service in (volume, compute)
    for operation in generate.operations(service)
}


class Played:
    """Lets `admin` go on after what `somebody` got, if that is a refusal that `judge` expects."""

    def __init__(self, admin: Client, somebody: Client, judge: Callable[[str, str, Any, Any], bool]) -> None:
        self.admin = admin
        self.somebody = somebody
        self.judge = judge

    def call(self, method: str, path: str, body: Any = None, *, refused: int = 0) -> Any:
        version = "3.71" if path.startswith("/v3") else "2.100"
        answer = self.somebody.at(version).request(method, path, body)
        if self.judge(self.admin.operation, f"{method} {path} {body}", answer, refused):
            return answer.get_json(silent=True)
        answer = self.admin.at(version).request(method, path, body)
        assert answer.status_code == refused or answer.status_code < 400, f"{method} {path}: {answer.text}"
        return answer.get_json(silent=True)


def test_the_table_names_every_operation() -> None:
    declared = [
        f"{service.SERVICE.name}/{operation.name}"
        for service in (volume, compute)
        for operation in generate.operations(service)
    ]
    assert sorted(TABLE) == sorted(declared)
    assert set(TABLE.values()) <= set(RANK)


@pytest.mark.usefixtures("glance")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_each_role_may_what_the_table_says(admin: Client, world: World, name: str, role: str) -> None:
    def judge(operation: str, call: str, answer: Any, refused: int) -> bool:
        if RANK.index(TABLE[operation]) > RANK.index(role):
            # What only some projects may see is a 404 for the others, whatever they want of it.
            assert answer.status_code in {403, 404}, f"{role} {operation} {call}: {answer.status_code} {answer.text}"
            return False
        if operation in HIDDEN and answer.status_code == 404:
            return False
        assert answer.status_code == refused or answer.status_code < 400, f"{role} {operation} {call}: {answer.text}"
        return True

    services.beat(world)
    played = Played(admin, _client(admin.app, PROJECT, ROLES[role], "root"), judge)
    importlib.import_module(f"scenarios.{name}").play(played.call, world)


def dump(world: World) -> Any:
    """All that the service keeps: rows, images, and what servers hold."""
    with world.db.read() as session:
        rows = {
            table.name: sorted(map(repr, session.execute(sqlalchemy.select(table))))
            for table in models.Base.metadata.sorted_tables
        }
    clusters = [one.cluster for one in world.backends.values()] + [world.backup_cluster]
    clusters += [space for one in clusters for space in one.spaces.values() if space.stored]  # type: ignore[union-attr]
    stored = [
        {name: value for name, value in vars(one).items() if isinstance(value, dict | set) and name not in _LINKS}
        for one in clusters
    ]
    held = {one: (guest.held, guest.metadata, guest.sizes) for one, guest in world.guests.guests.items()}  # type: ignore[attr-defined]
    return copy.deepcopy((rows, stored, held))


def ids(world: World) -> set[str]:
    """What the first project has: itself, its servers, and whatever has a row with its name."""
    servers = (guest.server for guest in world.guests.guests.values())  # type: ignore[attr-defined]
    found = {PROJECT} | {server.id for server in servers if server.project_id == PROJECT}
    with world.db.read() as session:
        for table in models.Base.metadata.sorted_tables:
            if {"id", "project_id"} <= set(table.columns.keys()):
                mine = sqlalchemy.select(table.c.id).where(table.c.project_id == PROJECT)
                found.update(map(str, session.scalars(mine)))
    return found


class Owned(Played):
    """Plays a scenario for its project, but first lets `somebody` of another project try each call.

    `tried` gets the statuses of those that name something of the first project's, by operation.
    """

    def __init__(self, admin: Client, somebody: Client, world: World) -> None:
        super().__init__(admin, somebody, self.refuses)
        self.world = world
        self.mine: set[str] = set()
        self.before: Any = None
        self.tried: dict[str, set[int]] = collections.defaultdict(set)

    def refuses(self, operation: str, call: str, answer: Any, _refused: int) -> bool:
        """Judge what the stranger got."""
        if answer.status_code < 400:
            assert not self.mine & set(_ID.findall(answer.text)), f"{operation} {call}: {answer.text}"
        # A list of what belongs to something that he does not see is an empty one.
        named = call.partition("?")[0] if call.startswith("GET") else call
        if TABLE[operation] == "admin" or self.mine & set(_ID.findall(named)):
            # A transfer is meant for strangers, who have its key.
            expected = {400} if "/accept " in call else {403, 404}
            assert answer.status_code in expected, f"{operation} {call}: {answer.status_code} {answer.text}"
            self.tried[operation].add(answer.status_code)
            assert dump(self.world) == self.before, f"{operation} {call}"
        return False

    def call(self, method: str, path: str, body: Any = None, *, refused: int = 0) -> Any:
        """One call of the scenario."""
        self.mine = ids(self.world)
        self.before = dump(self.world)
        if path.endswith("/accept"):
            wrong = self.somebody.request(method, path, {"accept": {"auth_key": "0123456789abcdef"}})
            self.refuses(self.admin.operation, f"{method} {path} with a wrong key", wrong, 0)
            return self.admin.request(method, path, body).json
        return super().call(method, path, body, refused=refused)


@pytest.mark.usefixtures("glance")
@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_another_projects_cannot_be_touched(admin: Client, stranger: Client, world: World, name: str) -> None:
    services.beat(world)
    owned = Owned(admin, stranger, world)
    scenario = importlib.import_module(f"scenarios.{name}")
    scenario.play(owned.call, world)
    for operation in scenario.OPERATIONS:
        words = " ".join(map(str, sorted(owned.tried[operation]))) or "names nothing of another project's"
        print(f"{operation:<50} {words}")
    # Whatever looks something up was asked for something of the other project's.
    looking = {one for one in scenario.OPERATIONS if LOOKING[one] and not PUBLIC.fullmatch(one)}
    assert looking - owned.tried.keys() == set()


def test_each_operation_is_tried_by_another_project() -> None:
    """With the test before: every operation belongs to a scenario."""
    played = [one for name in SCENARIOS for one in importlib.import_module(f"scenarios.{name}").OPERATIONS]
    assert sorted(played) == sorted(TABLE)
