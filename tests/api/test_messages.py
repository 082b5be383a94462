# SPDX-License-Identifier: Apache-2.0
"""User messages over HTTP: who sees them, and how long lists of them are read."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from cinderlite.context import World
from cinderlite.core import reconcile
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client

RESOURCE = "22222222-2222-4222-8222-22222222222{}"


@pytest.fixture
def five(world: World) -> list[str]:
    """Ids of the project's five messages, the oldest first; beside them another project's, and one past its end."""
    now = models.utcnow()
    with world.db.write() as session:
        for number in range(7):
            session.add(
                models.Message(
                    id=f"{number:08d}-0000-4000-8000-000000000000",
                    project_id=OTHER if number == 5 else PROJECT,
                    request_id=f"req-{number % 2}",
                    resource_type="VOLUME" if number % 2 else "VOLUME_SNAPSHOT",
                    resource_uuid=RESOURCE.format(number),
                    event_id=f"VOLUME_VOLUME_00{number}_001",
                    text=f"number {number}",
                    created_at=now + datetime.timedelta(seconds=number),
                    expires_at=now + datetime.timedelta(days=-1 if number == 6 else 30),
                )
            )
    return [f"{number:08d}-0000-4000-8000-000000000000" for number in range(5)]


def numbers(client: Client, query: str = "", version: str = "3.71") -> str:
    answer = client.at(version).get(f"/v3/messages?{query}")
    assert answer.status_code == 200, answer.text
    return "".join(str(int(one["id"][:8])) for one in answer.json["messages"])


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "43210"), ("limit=2", "43"), ("offset=3", "10"), ("limit=0", ""), ("sort=created_at:asc", "01234"),
        ("sort=event_id:desc", "43210"), ("sort_key=resource_type&sort_dir=asc", "13024"), ("event_id=VOLUME_VOLUME_002_001", "2"),
        ("resource_type=VOLUME", "31"), ("request_id=req-0", "420"), ("message_level=ERROR", "43210"),
        ("message_level=INFO", ""), (f"resource_uuid={RESOURCE.format(3)}", "3"), ("event_id~=_004_", "4"),
        ("marker=00000003-0000-4000-8000-000000000000", "210"), ("request_id=req-0&resource_type=VOLUME", ""),
    ],
)  # fmt: skip
def test_lists(client: Client, five: list[str], query: str, found: str) -> None:
    assert numbers(client, query) == found


def test_paging_came_with_35(client: Client, five: list[str]) -> None:
    assert numbers(client, "limit=1&sort=created_at:asc&request_id=req-0&marker=x", "3.4") == "43210"
    assert numbers(client, "limit=1", "3.5") == "4"
    assert numbers(client, "nonsense=1", "3.30") == "43210"
    for query in ("nonsense=1", "limit=-1", "sort=nonsense", "sort=created_at:up"):
        assert client.at("3.31").get(f"/v3/messages?{query}").status_code == 400, query
    assert client.at("3.5").get("/v3/messages?marker=x").status_code == 404
    assert client.at("3.2").get("/v3/messages").status_code == 404


def test_the_links_lead_to_every_message(client: Client, five: list[str]) -> None:
    found: list[str] = []
    path = "/v3/messages?limit=2&sort=created_at:asc"
    while path:
        answer = client.at("3.5").get(path).json
        found += [one["id"] for one in answer["messages"]]
        links = answer.get("messages_links")
        path = links[0]["href"].removeprefix("http://localhost") if links else ""
    assert found == five


def test_what_a_message_says(client: Client, five: list[str]) -> None:
    [found] = client.at("3.5").get("/v3/messages?limit=1").json["messages"]
    assert client.at("3.3").get(f"/v3/messages/{found['id']}").json["message"] == found
    assert set(found) == {"id", "event_id", "user_message", "message_level", "created_at", "guaranteed_until",
                          "request_id", "resource_type", "resource_uuid", "links"}  # fmt: skip
    assert (found["user_message"], found["message_level"]) == ("number 4", "ERROR")


def test_whose_they_are(client: Client, reader: Client, stranger: Client, admin: Client, five: list[str]) -> None:
    assert numbers(stranger) == "5"
    assert numbers(stranger, "all_tenants=1") == "5"
    assert numbers(admin) == "43210"
    assert numbers(admin, "all_tenants=1") == "543210"
    path = f"/v3/messages/{five[0]}"
    assert stranger.at("3.3").get(path).status_code == 404
    assert stranger.at("3.3").delete(path).status_code == 404
    assert reader.at("3.3").get(path).status_code == 200
    assert reader.at("3.3").delete(path).status_code == 403
    gone: Any = client.at("3.3").delete(path)
    assert (gone.status_code, gone.data) == (204, b"")
    assert client.at("3.3").get(path).status_code == 404
    assert numbers(client) == "4321"


def test_what_has_served_its_time_is_removed(client: Client, world: World, five: list[str]) -> None:
    reconcile.forget(world)
    with world.db.read() as session:
        assert session.get(models.Message, "00000006-0000-4000-8000-000000000000") is None
    assert numbers(client) == "43210"
