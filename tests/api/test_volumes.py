# SPDX-License-Identifier: Apache-2.0
"""Volumes over HTTP: what may be sent, what comes back, who may see it."""

from __future__ import annotations

import concurrent.futures
import json
import re
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.context import World
from cinderlite.db import clock, models
from conftest import PROJECT, Client, cluster_of, settle
from fakes_cluster import FakeCluster


def test_the_first_get_is_final(client: Client, world: World) -> None:
    made = client.post("/v3/volumes", {"volume": {"size": 3, "name": "data"}})
    assert made.status_code == 202
    assert made.json["volume"]["status"] == "creating"
    assert not any(key.startswith("os-vol-") for key in made.json["volume"])
    path = f"/v3/volumes/{made.json['volume']['id']}"
    assert client.get(path).json["volume"]["status"] == "available"
    assert cluster_of(world).info(f"volume-{made.json['volume']['id']}").size_bytes == 3 * 1024**3
    assert client.delete(path).status_code == 202
    assert client.get(path).status_code == 404
    settle(world)
    assert not cluster_of(world).images("volume-")
    assert not cluster_of(world).trashed()


def test_the_shape_that_clients_parse(client: Client, admin: Client) -> None:
    volume = client.volume(name="x")
    assert volume["bootable"] == "false"
    assert volume["metadata"] == {}
    assert volume["attachments"] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", volume["created_at"])
    assert "migration_status" not in volume
    assert "os-vol-host-attr:host" not in volume
    seen = admin.at("3.71").get(f"/v3/volumes/{volume['id']}").json["volume"]
    assert re.fullmatch(r".+@.+#.+", seen["os-vol-host-attr:host"])
    assert seen["os-vol-tenant-attr:tenant_id"] == PROJECT
    assert {"migration_status", "provider_id", "cluster_name", "os-vol-mig-status-attr:migstat"} <= set(seen)


@pytest.mark.parametrize("size", [0, -1, "0", "-1", "x", "1.5", 1.5, True, None, [], 2**31, "9" * 30])
def test_a_size_that_is_none_is_400_and_creates_nothing(client: Client, world: World, size: Any) -> None:
    answer = client.post("/v3/volumes", {"volume": {"size": size}})
    assert answer.status_code == 400
    assert answer.json["badRequest"]["message"]
    assert client.get("/v3/volumes").json["volumes"] == []
    assert not cluster_of(world).images("volume-")


@pytest.mark.parametrize(
    "body",
    [
        None, [], {}, {"volume": None}, {"volume": []}, {"volume": "x"},
        {"volume": {"size": 1, "name": "x" * 256}}, {"volume": {"size": 1, "name": 5}},
        {"volume": {"size": 1, "metadata": []}}, {"volume": {"size": 1, "metadata": {"k": 1}}},
        {"volume": {"size": 1, "metadata": {"k": None}}}, {"volume": {"size": 1, "metadata": {"": "v"}}},
        {"volume": {"size": 1, "metadata": {"k" * 256: "v"}}}, {"volume": {"size": 1, "metadata": {"k": "v" * 256}}},
        {"volume": {"size": 1, "multiattach": True}}, {"volume": {"size": 1, "availability_zone": "nowhere"}},
        {"volume": {"size": 1, "snapshot_id": "x"}}, {"volume": {"size": 1, "name": "a\x00b"}},
        {"volume": {"size": 1, "imageRef": "11111111-1111-4111-8111-111111111111"}},
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_400_and_creates_nothing(client: Client, world: World, body: Any) -> None:
    answer = client.post("/v3/volumes", body)
    assert answer.status_code == 400, answer.text
    assert not cluster_of(world).images("volume-")


def test_unknown_keys_are_ignored_before_3_53_and_refused_after(client: Client) -> None:
    body = {"volume": {"size": 1, "status": "creating", "user_id": "x"}}
    assert client.at("3.52").post("/v3/volumes", body).status_code == 202
    answer = client.at("3.53").post("/v3/volumes", body)
    assert answer.status_code == 400
    assert "Additional properties are not allowed" in answer.json["badRequest"]["message"]
    hinted = {"volume": {"size": 1}, "OS-SCH-HNT:scheduler_hints": {"same_host": []}}
    assert client.at("3.71").post("/v3/volumes", hinted).status_code == 202


def test_what_the_cli_sends_with_everything_unset(client: Client) -> None:
    keys = ["volume_type", "consistencygroup_id", "imageRef", "backup_id", "description", "source_volid",
            "snapshot_id", "availability_zone", "metadata", "name"]  # fmt: skip
    answer = client.at("3.71").post("/v3/volumes", {"volume": {"size": 1, **dict.fromkeys(keys)}})
    assert answer.status_code == 202


def test_content_types(client: Client) -> None:
    for given, status in (
        ("text/plain", 415),
        ("application/json; charset=utf-8", 202),
        ("application/vnd.openstack.volume+json", 202),
        (None, 400),
    ):
        answer = client.app.test_client().post(
            "/v3/volumes", data='{"volume": {"size": 1}}', headers=client.headers, content_type=given
        )
        assert answer.status_code == status, given
    broken = client.app.test_client().post(
        "/v3/volumes", data='{"volume": ', headers=client.headers, content_type="application/json"
    )
    assert json.loads(broken.text)["badRequest"]["message"] == "Malformed request body"
    deep = client.app.test_client().post(
        "/v3/volumes", data="[" * 60000, headers=client.headers, content_type="application/json"
    )
    assert deep.status_code == 400
    huge = client.app.test_client().post(
        "/v3/volumes", data="x" * 200_000, headers=client.headers, content_type="application/json"
    )
    assert huge.status_code == 413


def test_names_of_any_script_and_blanks_around_them(client: Client) -> None:
    assert client.volume(name="  данные 数据 💾  ")["name"] == "данные 数据 💾"
    assert client.volume(name="x" * 255)["name"] == "x" * 255


def test_update(client: Client) -> None:
    volume = client.volume(name="a", metadata={"k": "v"})
    path = f"/v3/volumes/{volume['id']}"
    answer = client.put(path, {"volume": {"display_name": "b", "description": "c"}})
    assert answer.status_code == 200
    changed = client.get(path).json["volume"]
    assert (changed["name"], changed["description"], changed["metadata"]) == ("b", "c", {"k": "v"})
    client.put(path, {"volume": {"metadata": {"n": "1"}}})
    assert client.get(path).json["volume"]["metadata"] == {"n": "1"}
    bodies: list[Any] = [{"volume": {}}, {"volume": {"nonsense": 1}}]
    for body in bodies:
        assert client.at("3.53").put(path, body).status_code == 400
        assert client.at("3.52").put(path, body).status_code == 200
    assert client.get(path).json["volume"]["name"] == "b"


def test_what_may_change_of_a_volume_that_is_busy(client: Client, admin: Client) -> None:
    path = f"/v3/volumes/{client.volume()['id']}"
    for status, renamed, written in (("uploading", 200, 400), ("maintenance", 400, 400)):
        admin.post(f"{path}/action", {"os-reset_status": {"status": status}})
        assert client.put(path, {"volume": {"name": status}}).status_code == renamed
        assert client.post(f"{path}/metadata", {"metadata": {"k": "v"}}).status_code == written
    assert client.get(path).json["volume"]["name"] == "uploading"


def test_statuses_are_reset_in_letters_of_either_case(client: Client, admin: Client) -> None:
    path = f"/v3/volumes/{client.volume()['id']}"
    wanted = {"status": "Maintenance", "attach_status": "DETACHED", "migration_status": "None"}
    assert admin.post(f"{path}/action", {"os-reset_status": wanted}).status_code == 202
    found = admin.get(path).json["volume"]
    assert (found["status"], found["migration_status"]) == ("maintenance", None)


def test_isolation_of_projects_and_roles(client: Client, stranger: Client, reader: Client, admin: Client) -> None:
    volume = client.volume(name="mine")
    path = f"/v3/volumes/{volume['id']}"
    for method, tail, body in (
        ("GET", "", None), ("PUT", "", {"volume": {"name": "x"}}), ("DELETE", "", None), ("GET", "/metadata", None),
        ("POST", "/metadata", {"metadata": {"a": "b"}}), ("DELETE", "/metadata/a", None),
    ):  # fmt: skip
        assert stranger.request(method, path + tail, body).status_code == 404
        if method != "GET":
            answer = reader.request(method, path + tail, body)
            assert answer.status_code == 403
            assert "Policy doesn't allow" in answer.json["forbidden"]["message"]
    assert stranger.get("/v3/volumes?all_tenants=1").json["volumes"] == []
    assert reader.get(path).status_code == 200
    assert reader.post("/v3/volumes", {"volume": {"size": 1}}).status_code == 403
    stranger.volume(name="theirs")
    assert len(admin.get("/v3/volumes").json["volumes"]) == 1
    assert len(admin.get("/v3/volumes?all_tenants=1").json["volumes"]) == 2
    assert client.get(path).json["volume"]["name"] == "mine"


def test_quota_is_exact_under_concurrency(client: Client, world: World) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.post("/v3/volumes", {"volume": {"size": 1}}), range(100)))
    assert sorted(answer.status_code for answer in answers) == [202] * 10 + [413] * 90
    assert len(cluster_of(world).images("volume-")) == 10
    refused = next(answer for answer in answers if answer.status_code == 413)
    assert refused.json["overLimit"]["message"] == (
        "VolumeLimitExceeded: Maximum number of volumes allowed (10) exceeded for quota 'volumes'."
    )
    assert refused.headers["Retry-After"] == "0"


def test_quota_of_gigabytes(client: Client, admin: Client) -> None:
    path = f"/v3/os-quota-sets/{PROJECT}"
    assert client.put(path, {"quota_set": {"gigabytes": 5}}).status_code == 403
    assert admin.put(path, {"quota_set": {"gigabytes": 5, "per_volume_gigabytes": 4}}).status_code == 200
    assert client.post("/v3/volumes", {"volume": {"size": 5}}).status_code == 413
    client.volume(size=4)
    answer = client.post("/v3/volumes", {"volume": {"size": 2}})
    assert answer.status_code == 413
    assert "Requested 2G, quota is 5G and 4G has been consumed" in answer.json["overLimit"]["message"]
    for wrong in ({"gigabytes": 3}, {"nonsense": 1}, {"volumes": -2}, {"volumes": "x"}, {}):
        assert admin.put(path, {"quota_set": wrong}).status_code == 400
    usage = client.get(path + "?usage=True").json["quota_set"]
    assert usage["gigabytes"] == {"limit": 5, "in_use": 4, "reserved": 0}
    absolute = client.get("/v3/limits").json["limits"]["absolute"]
    assert (absolute["maxTotalVolumeGigabytes"], absolute["totalGigabytesUsed"]) == (5, 4)
    assert len(absolute) == 10
    assert admin.delete(path).status_code == 200
    assert client.get(path).json["quota_set"]["gigabytes"] == 1000


def test_metadata_and_its_etag(client: Client) -> None:
    at = client.at("3.15")
    path = f"/v3/volumes/{client.volume(metadata={'a': '1'})['id']}/metadata"
    shown = at.get(path)
    assert shown.json == {"metadata": {"a": "1"}}
    tag = shown.headers["ETag"]
    assert "ETag" not in client.get(path).headers
    assert at.post(path, {"metadata": {"b/c.d": "2"}}).json["metadata"] == {"a": "1", "b/c.d": "2"}
    late = at.with_headers(If_Match=tag).put(path, {"metadata": {"x": "y"}})
    assert (late.status_code, late.data) == (412, b"")
    assert client.with_headers(If_Match=tag).put(path + "/a", {"meta": {"a": "5"}}).status_code == 200
    now = at.get(path).headers["ETag"]
    assert at.with_headers(If_Match=now).put(path, {"metadata": {"x": "y"}}).json == {"metadata": {"x": "y"}}
    assert at.get(path + "/x").json == {"meta": {"x": "y"}}
    assert at.get(path + "/a").status_code == 404
    assert at.put(path + "/x", {"meta": {"z": "1"}}).status_code == 400
    assert (at.delete(path + "/x").status_code, at.delete(path + "/x").status_code) == (200, 404)


def test_when_ceph_does_not_answer_nothing_is_begun(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume()
    cluster.down = True
    answer = client.post("/v3/volumes", {"volume": {"size": 1}})
    assert answer.status_code == 503
    assert "serviceUnavailable" in answer.json
    assert answer.headers["Retry-After"]
    assert client.delete(f"/v3/volumes/{volume['id']}").status_code == 503
    assert client.get("/healthcheck").status_code == 503
    assert [one["status"] for one in client.get("/v3/volumes/detail").json["volumes"]] == ["available"]
    assert client.put(f"/v3/volumes/{volume['id']}", {"volume": {"name": "x"}}).status_code == 200
    cluster.down = False
    assert client.delete(f"/v3/volumes/{volume['id']}").status_code == 202


def test_an_image_that_somebody_has_open_is_not_deleted(client: Client, cluster: FakeCluster) -> None:
    volume = client.volume()
    cluster.watchers[f"volume-{volume['id']}"] = ["192.0.2.7:0/123"]
    answer = client.delete(f"/v3/volumes/{volume['id']}")
    assert answer.status_code == 400
    assert "192.0.2.7:0/123" in answer.json["badRequest"]["message"]
    assert client.get(f"/v3/volumes/{volume['id']}").json["volume"]["status"] == "available"
    assert cluster.images("volume-") == {f"volume-{volume['id']}"}


def test_an_image_that_librbd_finds_busy_though_nobody_else_has_it_is_deleted_later(
    client: Client, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that this service is just making whole: nobody can do anything about that."""
    path, trash = f"/v3/volumes/{client.volume()['id']}", cluster.trash

    def busy(name: str, *_: object, **_named: object) -> None:
        raise errors.ImageBusy(name, "another client")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "trash", busy)
        assert client.delete(path).status_code == 202
        assert client.get(path).json["volume"]["status"] == "deleting"
    settle(world)
    assert client.get(path).status_code == 404
    assert cluster.trash == trash
    assert not cluster.images("volume-")


def test_what_a_dead_process_of_the_service_left_open_is_deleted(
    client: Client, world: World, cluster: FakeCluster
) -> None:
    volume = client.volume()
    cluster.watchers[f"volume-{volume['id']}"] = ["192.0.2.7:0/123"]
    with world.db.write() as session:
        session.add(models.OwnClient(address="192.0.2.7:0/123", seen_at=clock.read(session)))
    assert client.delete(f"/v3/volumes/{volume['id']}").status_code == 202
    assert client.get(f"/v3/volumes/{volume['id']}").status_code == 404
    assert cluster.images("volume-") == set()


def test_an_unforeseen_error_tells_nothing_of_itself(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("a secret path /etc/ceph/key")

    monkeypatch.setattr(cluster_of(world), "check", broken)
    answer = client.post("/v3/volumes", {"volume": {"size": 1}})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json["computeFault"]["code"] == 500


def test_a_failed_create_is_an_error_with_a_message(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_name: str, _size: int) -> None:
        raise errors.CephError("the pool is full")

    monkeypatch.setattr(cluster_of(world), "create", refuse)
    made = client.post("/v3/volumes", {"volume": {"size": 1}})
    assert made.status_code == 202
    assert client.get(f"/v3/volumes/{made.json['volume']['id']}").json["volume"]["status"] == "error"
    [message] = client.at("3.5").get("/v3/messages").json["messages"]
    assert message["resource_uuid"] == made.json["volume"]["id"]
    assert message["request_id"] == made.headers["x-openstack-request-id"]
    assert "the pool is full" in message["user_message"]
    assert client.delete(f"/v3/volumes/{made.json['volume']['id']}").status_code == 202
