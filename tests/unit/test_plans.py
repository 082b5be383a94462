# SPDX-License-Identifier: Apache-2.0
"""No list reads a whole table: what SQLite says of how it would answer each, by every filter and sort key.

PostgreSQL and MariaDB choose by what is in the tables, so their plans of empty ones would say nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event

from cinderlite.api.paging import Listing
from cinderlite.api.volume import attachments, backups, groups, snapshots, volumes
from cinderlite.context import World
from conftest import Client

LISTS: dict[str, Listing] = {
    "volumes": volumes.LISTING,
    "snapshots": snapshots.LISTING,
    "backups": backups.LISTING,
    "attachments": attachments.LISTING,
    "groups": groups.LISTING,
}
#: Filters that an administrator uses over all projects, where those of a project have no few rows to look through.
OVER_ALL = {"name", "status", "volume_id", "group_id", "host"}
VALUES = {"metadata": "{'a':'b'}", "bootable": "true", "size": "1"}


def plans(world: World, client: Client, path: str) -> list[str]:
    """How the statements of a request read tables."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    event.listen(world.db.engine, "before_cursor_execute", note)
    try:
        answer = client.at("3.71").get(path)
    finally:
        event.remove(world.db.engine, "before_cursor_execute", note)
    assert answer.status_code == 200, answer.text
    with world.db.engine.connect() as connection:
        return [
            row[3]
            for statement, parameters in asked
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


def scanned(world: World, client: Client, path: str, table: str) -> list[str]:
    """Where a whole table is read."""
    return [line for line in plans(world, client, path) if line.startswith(f"SCAN {table}")]


@pytest.fixture(autouse=True)
def only_sqlite(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("database") != "sqlite":
        pytest.skip("plans of empty tables say nothing")


def _rows(listing: Listing) -> str:
    return str(sqlalchemy.inspect(listing.id.class_).local_table.name)


@pytest.mark.parametrize("kind", LISTS)
def test_a_projects_lists_read_what_is_the_projects(world: World, client: Client, kind: str) -> None:
    listing = LISTS[kind]
    queries = [
        "",
        *(f"{key}={VALUES.get(key, 'x')}" for key in listing.filters),
        *(f"sort={key}" for key in listing.keys),
    ]
    for query in queries:
        if client.at("3.71").get(f"/v3/{kind}?{query}").status_code == 400:
            continue  # Not for members.
        assert scanned(world, client, f"/v3/{kind}?{query}", _rows(listing)) == [], query


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_all_projects_read_no_whole_table(world: World, admin: Client, kind: str) -> None:
    listing = LISTS[kind]
    [newest, *_] = scanned(world, admin, f"/v3/{kind}?all_tenants=1&limit=50", _rows(listing)) or [""]
    assert not newest or "USING INDEX" in newest  # In the order of the page, with which it ends.
    for key in sorted(OVER_ALL & listing.filters.keys()):
        assert scanned(world, admin, f"/v3/{kind}?all_tenants=1&limit=50&{key}=x", _rows(listing)) == [], key
