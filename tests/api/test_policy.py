# SPDX-License-Identifier: Apache-2.0
"""Who may do what: each operation as each role, by a table, and everything of one project tried by another.

The scenarios of the API's samples are played once for each role. Where the table says that the role may, it makes the
call itself; where it may not it tries, is refused, and an administrator goes on, to whom nothing may have changed.
"""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import pytest

import generate
import scenarios
from cinderlite.api import compute, volume
from cinderlite.context import World
from cinderlite.core import services
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
#: Scenarios in which no project comes to own anything.
WITHOUT_OWNER = {
    "default_types", "group_types", "pools", "qos", "quotas", "servers", "services", "types"
}  # fmt: skip
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


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


@pytest.mark.usefixtures("glance")
@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_another_projects_cannot_be_touched(admin: Client, stranger: Client, world: World, name: str) -> None:
    mine: set[str] = set()

    def judge(operation: str, call: str, answer: Any, _refused: int) -> bool:
        told = mine & set(_UUID.findall(answer.text))
        if answer.status_code < 400:
            assert not told, f"{operation} {call}: {answer.text}"
        if TABLE[operation] == "admin" or (mine & set(_UUID.findall(call)) and not call.startswith("GET")):
            assert 400 <= answer.status_code < 500, f"{operation} {call}: {answer.status_code} {answer.text}"
        return False

    class Owned(Played):
        def call(self, method: str, path: str, body: Any = None, *, refused: int = 0) -> Any:
            if path.endswith("/accept"):  # A transfer is meant for strangers.
                return admin.request(method, path, body).json
            answer = super().call(method, path, body, refused=refused)
            if method == "POST" and answer and not PUBLIC.fullmatch(self.admin.operation):
                mine.update(one["id"] for one in answer.values() if isinstance(one, dict) and "id" in one)
            return answer

    services.beat(world)
    importlib.import_module(f"scenarios.{name}").play(Owned(admin, stranger, judge).call, world)
    if name not in WITHOUT_OWNER:
        assert mine
