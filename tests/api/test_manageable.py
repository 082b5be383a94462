# SPDX-License-Identifier: Apache-2.0
"""Taking over what is in the pool, and letting go of it again."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import PROJECT, Client
from fakes_cluster import FakeCluster

HOST = "testhost@ceph#ceph"
GIB = 2**30


def manage(admin: Client, image: str, **more: Any) -> Any:
    return admin.post("/v3/os-volume-manage", {"volume": {"host": HOST, "ref": {"source-name": image}, **more}})


def listed(admin: Client, query: str = "", kind: str = "volumes") -> list[dict[str, Any]]:
    path = f"/v3/manageable_{kind}/detail?host=testhost%40ceph&{query}"
    found: list[dict[str, Any]] = admin.at("3.8").get(path).json[f"manageable-{kind}"]
    return found


def test_either_a_host_or_a_cluster_is_named(admin: Client, cluster: FakeCluster) -> None:
    cluster.create("theirs", GIB)
    host, ref = "testhost@ceph%23ceph", {"source-name": "theirs"}
    for version, query, status in (
        ("3.16", f"host={host}&cluster=c", 200), ("3.17", f"host={host}&cluster=c", 400), ("3.17", "cluster=c", 404),
        ("3.16", "cluster=c", 400), ("3.17", "", 400),
    ):  # fmt: skip
        assert admin.at(version).get(f"/v3/manageable_volumes?{query}").status_code == status, (version, query)
    both = {"host": "testhost@ceph#ceph", "cluster": "c", "ref": ref}
    assert admin.at("3.16").post("/v3/manageable_volumes", {"volume": both}).status_code == 400
    assert admin.at("3.16").post("/v3/manageable_volumes", {"volume": {**both, "host": None}}).status_code == 404
    assert admin.at("3.16").post("/v3/manageable_volumes", {"volume": {**both, "cluster": None}}).status_code == 202


def test_an_image_becomes_a_volume_and_an_image_again(admin: Client, cluster: FakeCluster) -> None:
    cluster.create("theirs", 2 * GIB - 1)
    cluster.data[cluster.info("theirs").id] = "kept"
    made = manage(admin, "theirs", name="mine", metadata={"k": "v"}, bootable=True)
    assert made.status_code == 202, made.text
    assert made.json["volume"]["status"] == "creating"
    volume = admin.get(f"/v3/volumes/{made.json['volume']['id']}").json["volume"]
    assert (volume["status"], volume["size"], volume["name"], volume["bootable"]) == ("available", 2, "mine", "true")
    image = f"volume-{volume['id']}"
    assert cluster.images("") == {image}
    assert admin.post(f"/v3/volumes/{volume['id']}/action", {"os-unmanage": {}}).status_code == 202
    assert admin.get(f"/v3/volumes/{volume['id']}").status_code == 404
    assert cluster.images("") == {image}
    assert cluster.trashed() == []
    again = manage(admin, image).json["volume"]["id"]
    assert cluster.data[cluster.info(f"volume-{again}").id] == "kept"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"ref": {"source-name": "theirs"}}, 400),
        ({"host": HOST}, 400),
        ({"host": HOST, "ref": {"source-id": "x"}}, 400),
        ({"host": HOST, "ref": 7}, 400),
        ({"host": HOST, "ref": {"source-name": "not there"}}, 400),
        ({"host": "elsewhere@ceph", "ref": {"source-name": "theirs"}}, 404),
        ({"host": HOST, "ref": {"source-name": "theirs"}, "volume_type": "gold"}, 404),
    ],
)
def test_what_cannot_be_taken_over_is_refused(
    admin: Client, cluster: FakeCluster, body: dict[str, Any], status: int
) -> None:
    cluster.create("theirs", GIB)
    assert admin.post("/v3/os-volume-manage", {"volume": body}).status_code == status
    assert admin.get("/v3/volumes").json["volumes"] == []
    assert cluster.images("") == {"theirs"}


def test_what_is_a_volume_or_open_is_not_taken_over(admin: Client, client: Client, cluster: FakeCluster) -> None:
    volume = admin.volume()["id"]
    assert manage(admin, f"volume-{volume}").status_code == 400
    cluster.create("theirs", GIB)
    cluster.watchers["theirs"] = ["192.0.2.1:0/1"]
    assert manage(admin, "theirs").status_code == 400
    assert manage(client, "theirs").status_code == 403
    found = {one["reference"]["source-name"]: one for one in listed(admin)}
    assert found["theirs"]["reason_not_safe"] == "in use"
    assert found[f"volume-{volume}"] == {
        "reference": {"source-name": f"volume-{volume}"},
        "size": 1,
        "safe_to_manage": False,
        "reason_not_safe": "already managed",
        "cinder_id": volume,
        "extra_info": None,
    }
    assert admin.at("3.7").get(f"/v3/manageable_volumes?host={HOST}").status_code == 404


def test_lists_are_sorted_and_cut(admin: Client, cluster: FakeCluster) -> None:
    for name, size in (("a", 3), ("b", 1), ("c", 2)):
        cluster.create(name, size * GIB)

    def names(query: str) -> list[str]:
        return [one["reference"]["source-name"] for one in listed(admin, query)]

    assert names("") == ["c", "b", "a"]
    assert names("sort=size:asc") == ["b", "c", "a"]
    assert names("sort=reference:asc&limit=2") == ["a", "b"]
    assert names('sort=reference:asc&limit=1&marker={"source-name":"a"}') == ["b"]
    assert names("sort=reference:asc&offset=2") == ["c"]
    for bad in ("sort=name:asc", "sort=size:up", "marker=x", "limit=-1"):
        assert admin.at("3.8").get(f"/v3/manageable_volumes?host=testhost%40ceph&{bad}").status_code == 400
    assert admin.at("3.8").get("/v3/manageable_volumes").status_code == 400
    assert admin.at("3.8").get("/v3/manageable_volumes?host=nobody").status_code == 404


def test_a_quota_holds_for_what_is_taken_over(admin: Client, cluster: FakeCluster) -> None:
    admin.put(f"/v3/os-quota-sets/{PROJECT}", {"quota_set": {"gigabytes": 1}})
    cluster.create("theirs", 2 * GIB)
    assert manage(admin, "theirs").status_code == 413
    assert cluster.images("") == {"theirs"}


def test_an_rbd_snapshot_becomes_a_snapshot(admin: Client, cluster: FakeCluster) -> None:
    volume = admin.volume()["id"]
    image = f"volume-{volume}"
    cluster.snapshot(image, "theirs")
    body = {"snapshot": {"volume_id": volume, "ref": {"source-name": "theirs"}, "name": "mine"}}
    made = admin.post("/v3/os-snapshot-manage", body)
    assert made.status_code == 202, made.text
    snapshot = made.json["snapshot"]["id"]
    assert admin.get(f"/v3/snapshots/{snapshot}").json["snapshot"]["status"] == "available"
    assert [one.name for one in cluster.snapshots(image)] == [f"snapshot-{snapshot}"]
    assert admin.post("/v3/os-snapshot-manage", body).status_code == 400
    [shown] = listed(admin, kind="snapshots")
    assert (shown["cinder_id"], shown["source_reference"]) == (snapshot, {"source-name": image})
    assert admin.post(f"/v3/volumes/{volume}/action", {"os-unmanage": {}}).status_code == 400
    assert admin.post(f"/v3/snapshots/{snapshot}/action", {"os-unmanage": {}}).status_code == 202
    assert admin.get(f"/v3/snapshots/{snapshot}").status_code == 404
    assert [one.name for one in cluster.snapshots(image)] == [f"snapshot-{snapshot}"]
