# SPDX-License-Identifier: Apache-2.0
"""Text that means something to a database, to RBD, to a shell or to a log is only text here.

Whatever something is called, nothing changes but what the request is about, and it is shown as it was given.
"""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest

from api.test_policy import dump
from cinderlite.context import World
from conftest import Client, cluster_of, settle

NAMES = [
    "'; DROP TABLE volumes; --", '" OR ""="', "%", "_", "%' OR '1'='1", "\\", "volumes/volume-x@snapshot-y", "a@b", "../../etc",
    "/", "$(reboot)", "`reboot`", "{0.__class__}", "%(name)s", "%s%n", "\r\nX-Evil: 1", "\x1b[31m", "\u202eevil", "\ufeff",
    "\U0001f4a9" * 255, "ü" * 255, " ", "None", "null", "-1", "<script>", "a,b:c=d", "client.admin", "\x7f",
]  # fmt: skip
#: What no database holds.
REFUSED = ["\0", "a\0b", "\ud800", "x" * 256]
KEYS = [name for name in NAMES if len(name) < 200]


def others(world: World, *mine: str) -> Any:
    """All that is there but the rows and images that name one of these ids."""
    rows, stored, held = dump(world)
    mine += tuple(
        image
        for cluster in stored
        for name, (image, _) in cluster["stored"].items()
        if any(one in name for one in mine)
    )
    kept = {table: [row for row in found if not any(one in row for one in mine)] for table, found in rows.items()}
    clusters = [
        {name: {key: value for key, value in found.items() if not any(one in repr((key, value)) for one in mine)}
         for name, found in cluster.items() if isinstance(found, dict)}
        for cluster in stored
    ]  # fmt: skip
    return kept, clusters, held


@pytest.fixture
def bystanders(client: Client) -> list[str]:
    """Volumes whose names a pattern or a quote could mean."""
    return [str(client.volume(name=name, metadata={"k": name})["id"]) for name in ("plain", "%", "a@b", "'")]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_only_a_name(client: Client, world: World, bystanders: list[str], name: str) -> None:
    before = others(world)
    given, name = name, name.strip()  # As Cinder does.
    volume = client.volume(name=given, description=given, metadata={"said": given})
    mine = [volume["id"]]
    assert (volume["name"], volume["description"], volume["metadata"]) == (name, name, {"said": given})
    assert list(cluster_of(world).stored) == [f"volume-{one}" for one in [*bystanders, *mine]]
    taken = client.post("/v3/snapshots", {"snapshot": {"volume_id": mine[0], "name": name, "metadata": {"said": name}}})
    mine.append(taken.json["snapshot"]["id"])
    renamed = client.put(f"/v3/volumes/{mine[0]}", {"volume": {"name": f"{name[:200]}2", "description": name}})
    assert renamed.json["volume"]["name"] == f"{name[:200]}2"
    assert client.put(f"/v3/snapshots/{mine[1]}", {"snapshot": {"name": name}}).json["snapshot"]["name"] == name
    mine.append(client.volume(name=name, snapshot_id=mine[1])["id"])
    assert others(world, *mine) == before
    # It is found by what it is called, and nothing else is.
    for path in (f"/v3/snapshots?{urllib.parse.urlencode({'name': name})}",):
        assert [one["id"] for one in client.get(path).json["snapshots"]] == [mine[1]]
    found = client.at("3.71").get(f"/v3/volumes?{urllib.parse.urlencode({'name~': f'{name[:200]}2'})}")
    assert [one["id"] for one in found.json["volumes"]] == [mine[0]]
    by_metadata = urllib.parse.urlencode({"metadata": json.dumps({"said": given})})
    assert {one["id"] for one in client.get(f"/v3/volumes?{by_metadata}").json["volumes"]} == {mine[0]}
    for path in (f"/v3/volumes/{mine[2]}", f"/v3/snapshots/{mine[1]}", f"/v3/volumes/{mine[0]}"):
        assert client.delete(path).status_code == 202
    settle(world)
    assert list(cluster_of(world).stored) == [f"volume-{one}" for one in bystanders]


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_only_a_key(client: Client, world: World, bystanders: list[str], name: str) -> None:
    volume = str(client.volume(metadata={"keep": "1"})["id"])
    before = others(world, volume)
    path = f"/v3/volumes/{volume}/metadata/{urllib.parse.quote(name, safe='')}"
    made = client.put(path, {"meta": {name: "2"}})
    if made.status_code == 200:
        assert client.get(f"/v3/volumes/{volume}").json["volume"]["metadata"] == {"keep": "1", name: "2"}
        assert client.delete(path).status_code == 200
    else:
        assert made.status_code in {400, 404}, made.text
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["metadata"] == {"keep": "1"}
    assert others(world, volume) == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stored_is_refused(client: Client, world: World, bystanders: list[str], name: str) -> None:
    before = dump(world)
    volume = bystanders[0]
    for method, path, body in (
        ("POST", "/v3/volumes", {"volume": {"size": 1, "name": name}}),
        ("POST", "/v3/volumes", {"volume": {"size": 1, "metadata": {"k": name}}}),
        ("PUT", f"/v3/volumes/{volume}", {"volume": {"name": name}}),
        ("POST", f"/v3/volumes/{volume}/metadata", {"metadata": {name: "1"}}),
        ("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume, "name": name}}),
        ("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume, "metadata": {"k": name}}}),
    ):
        answer = client.request(method, path, body)
        assert answer.status_code == 400, f"{method} {path}: {answer.status_code} {answer.text}"
    assert dump(world) == before


@pytest.mark.parametrize("name", [*NAMES, *REFUSED])
def test_an_image_is_taken_over_by_its_very_name_only(
    admin: Client, world: World, bystanders: list[str], name: str
) -> None:
    cluster_of(world).stored["a"] = ("a", 2**30)
    before = dump(world)
    host = admin.get(f"/v3/volumes/{bystanders[0]}").json["volume"]["os-vol-host-attr:host"]
    volume = {"volume": {"host": host, "ref": {"source-name": name}}}
    snapshot = {"snapshot": {"volume_id": bystanders[0], "ref": {"source-name": name}}}
    for path, body in (("/v3/os-volume-manage", volume), ("/v3/os-snapshot-manage", snapshot)):
        answer = admin.request("POST", path, body)
        assert answer.status_code in {400, 404}, f"{path}: {answer.status_code} {answer.text}"
    assert dump(world) == before


LISTS = [
    "volumes", "snapshots", "backups", "attachments", "groups", "group_snapshots", "group_types", "types", "messages",
    "volume-transfers", "qos-specs", "manageable_volumes", "scheduler-stats/get_pools", "clusters",
]  # fmt: skip
ODD = [
    *NAMES[:6], "x" * 4000, "0x" + "f" * 6000, "{1: 0x" + "f" * 5000 + "}", "[" * 3000, "{" * 3000, "--5", "²", "1e999", "nan",
    "gt:0001-01-01T00:00:00+23:59", "lt:9999-12-31T23:59:59-23:59", "created_at:desc," * 300, "id:asc'--", "{'a': '\\ud800'}",
]  # fmt: skip
PARAMETERS = [
    "marker", "limit", "offset", "sort", "sort_key", "sort_dir", "all_tenants", "with_count", "name", "name~", "status",
    "metadata", "created_at", "updated_at", "size", "bootable", "volume_id", "project_id", "host", "extra_specs", "is_public",
]  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
def test_whatever_is_asked_of_a_list(admin: Client, bystanders: list[str], path: str) -> None:
    for name in PARAMETERS:
        for said in ODD:
            query = urllib.parse.urlencode({name: said}, errors="surrogatepass")
            answer = admin.at("3.71").get(f"/v3/{path}?{query}")
            assert answer.status_code < 500, f"{path}?{name}={said[:80]!r}: {answer.text}"


@pytest.mark.parametrize("path", ["servers", "servers/detail", "os-services", "flavors", "os-availability-zone/detail"])
def test_whatever_is_asked_of_a_list_of_compute(admin: Client, path: str) -> None:
    for name in ("marker", "limit", "name", "status", "flavor", "changes-since", "all_tenants", "ip"):
        for said in ODD:
            query = urllib.parse.urlencode({name: said}, errors="surrogatepass")
            answer = admin.at("2.100").get(f"/v2.1/{path}?{query}")
            assert answer.status_code < 500, f"{path}?{name}={said[:80]!r}: {answer.text}"
