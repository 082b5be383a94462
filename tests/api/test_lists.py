# SPDX-License-Identifier: Apache-2.0
"""Paging, sorting and filtering of lists."""

from __future__ import annotations

import datetime
import urllib.parse
from typing import Any

import pytest
from sqlalchemy import insert, select

from cinderlite.context import World
from cinderlite.db import models
from conftest import PROJECT, Client

START = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 -- naive UTC, as the database keeps it


@pytest.fixture
def seven(world: World) -> list[str]:
    """Ids of seven volumes; two pairs share their time, so that the tie-break shows."""
    rows: list[dict[str, Any]] = []
    with world.db.write() as session:
        kind = session.scalar(select(models.VolumeType.id))
        for number, (name, size, second) in enumerate(
            [("a", 1, 0), ("b", 2, 1), ("c", 3, 1), ("d", 1, 2), ("e", 2, 3), (None, 3, 3), ("a", 5, 4)]
        ):
            rows.append(
                {
                    "id": f"{number:08d}-0000-4000-8000-000000000000", "project_id": PROJECT, "user_id": "u",
                    "name": name, "size": size, "status": "error" if number == 3 else "available",
                    "availability_zone": "nova", "host": "h@b#p", "volume_type_id": kind, "bootable": number == 1,
                    "created_at": START + datetime.timedelta(seconds=second), "deleted": False, "busy": 0,
                    "lease_until": 0.0, "multiattach": False, "consumes_quota": True,
                }
            )  # fmt: skip
        session.execute(insert(models.Volume), rows)
        session.add(models.VolumeMetadata(volume_id=rows[2]["id"], key="k", value="v"))
    return [row["id"] for row in rows]


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [volume["id"] for volume in answer.json["volumes"]]


def numbers(client: Client, query: str) -> str:
    return "".join(str(int(id_[:8])) for id_ in ids(client.at("3.71").get(f"/v3/volumes/detail?{query}")))


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("", "6543210"), ("sort=created_at:asc", "0123456"), ("sort=size:asc,created_at:asc", "0314256"),
        ("sort=name:asc", "5061234"), ("sort=display_name", "4321605"), ("sort_key=size&sort_dir=asc", "0314256"),
        ("limit=2", "65"), ("limit=0", ""), ("offset=5", "10"), ("limit=2&offset=1", "54"),
    ],
)  # fmt: skip
def test_order_limit_and_offset(client: Client, seven: list[str], query: str, order: str) -> None:
    assert numbers(client, query) == order


@pytest.mark.parametrize("sort", ["created_at:desc", "created_at:asc", "size:asc", "name:desc", "name:asc,size:desc"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_following_the_links_gives_every_volume_once(client: Client, seven: list[str], sort: str, limit: int) -> None:
    whole = ids(client.get(f"/v3/{PROJECT}/volumes/detail?sort={sort}"))
    collected: list[str] = []
    path = f"/v3/{PROJECT}/volumes/detail?sort={sort}&limit={limit}&name~=x"
    while path:
        answer = client.get(path)
        collected += ids(answer)
        links = answer.json.get("volumes_links")
        path = links[0]["href"].removeprefix("http://localhost") if links else ""
        assert not path or path.startswith(f"/v3/{PROJECT}/volumes/detail?")
        assert not path or urllib.parse.parse_qs(path)["limit"] == [str(limit)]
    assert collected == whole
    assert len(set(collected)) == 7


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("name=a", "60"), ("name=A", ""), ("status=error", "3"), ("bootable=true", "1"), ("bootable=False", "654320"),
        ("metadata={'k':'v'}", "2"), ('metadata={"k":"v"}', "2"), ("metadata={'k':'x'}", ""), ("metadata={}", "6543210"),
        ("size=3", "52"), ("size=x", ""), ("availability_zone=nova&name=b", "1"), ("name~=", "643210"), ("name~=a", "60"),
        ("name~=%", ""), ("created_at=gt:2026-01-01T00:00:02,lte:2026-01-01T00:00:03", "54"), ("group_id=x", ""),
        ("created_at=eq:2026-01-01T00:00:00", "0"), ("consumes_quota=true&name=b", "1"), ("migration_status=None&name=b", "1"),
    ],
)  # fmt: skip
def test_filters(client: Client, seven: list[str], query: str, found: str) -> None:
    quoted = urllib.parse.quote(query, safe="=&")
    assert numbers(client, quoted) == found


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1", "limit=x", "limit=1.5", "offset=-1", "offset=x", "sort=name:sideways", "sort=nonsense",
        "sort=name&sort_key=name", "sort_dir=up", "metadata=x", "metadata=[1]", "metadata=__import__('os')",
        "nonsense=1", "bootable=maybe", "created_at=gt:yesterday", "created_at=around:2026-01-01", "with_count=perhaps",
        "host=h",
    ],
)  # fmt: skip
def test_a_query_that_is_none_is_400(client: Client, seven: list[str], query: str) -> None:
    answer = client.at("3.71").get(f"/v3/volumes?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.json["badRequest"]["message"]


def test_an_unknown_marker_is_404(client: Client, seven: list[str]) -> None:
    assert client.get("/v3/volumes?marker=nope").status_code == 404


def test_older_versions_drop_what_they_do_not_know(client: Client, seven: list[str]) -> None:
    assert len(ids(client.get("/v3/volumes?nonsense=1"))) == 7
    assert len(ids(client.at("3.59").get("/v3/volumes?created_at=gt:2030-01-01"))) == 7
    assert len(ids(client.at("3.1").get("/v3/volumes?bootable=nonsense"))) == 1
    assert client.at("3.33").get("/v3/volumes?name~=a").status_code == 400


def test_count_is_of_all_that_match(client: Client, seven: list[str]) -> None:
    answer = client.at("3.45").get("/v3/volumes?with_count=True&limit=1&name=a")
    assert (answer.json["count"], len(answer.json["volumes"])) == (2, 1)
    assert "count" not in client.at("3.44").get("/v3/volumes?with_count=True").json


def test_a_page_is_never_larger_than_the_maximum(client: Client, seven: list[str], world: World) -> None:
    object.__setattr__(world.settings, "max_page", 3)
    answer = client.get("/v3/volumes?limit=100")
    assert len(answer.json["volumes"]) == 3
    assert answer.json["volumes_links"][0]["rel"] == "next"


def test_summary(client: Client, seven: list[str]) -> None:
    answer = client.at("3.36").get("/v3/volumes/summary")
    assert answer.json == {"volume-summary": {"total_count": 7, "total_size": 17, "metadata": {"k": ["v"]}}}
    assert "metadata" not in client.at("3.12").get("/v3/volumes/summary").json["volume-summary"]
