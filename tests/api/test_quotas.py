# SPDX-License-Identifier: Apache-2.0
"""Limits of projects, of classes of projects, and for each volume type."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.context import World
from conftest import OTHER, PROJECT, Client, cluster_of, settle

OURS, THEIRS = f"/v3/os-quota-sets/{PROJECT}", f"/v3/os-quota-sets/{OTHER}"
DEFAULTS = {
    "volumes": 10, "snapshots": 10, "gigabytes": 1000, "backups": 10, "backup_gigabytes": 1000, "groups": 10,
    "per_volume_gigabytes": -1, "volumes___DEFAULT__": -1, "gigabytes___DEFAULT__": -1, "snapshots___DEFAULT__": -1,
}  # fmt: skip
DEFAULT_CLASS = "/v3/os-quota-class-sets/default"


def make(admin: Client, name: str = "gold", *, public: bool = True, **specs: str) -> str:
    """A new type's id."""
    wanted = {"name": name, "os-volume-type-access:is_public": public, "extra_specs": specs}
    return str(admin.post("/v3/types", {"volume_type": wanted}).json["volume_type"]["id"])


def limit(admin: Client, **limits: Any) -> dict[str, int]:
    """Set limits of the project; all that it has then."""
    answer = admin.put(OURS, {"quota_set": limits})
    assert answer.status_code == 200, answer.text
    found: dict[str, int] = answer.json["quota_set"]
    return found


def used(client: Client, name: str) -> dict[str, int]:
    found: dict[str, int] = client.get(OURS + "?usage=True").json["quota_set"][name]
    return found


def create(client: Client, size: int = 1, kind: str = "gold") -> Any:
    return client.post("/v3/volumes", {"volume": {"size": size, "volume_type": kind}})


def act(client: Client, volume: str, action: str, **body: Any) -> int:
    return int(client.post(f"/v3/volumes/{volume}/action", {action: body}).status_code)


# -- what is shown and set


def test_limits_are_shown_for_each_type_set_and_taken_back(admin: Client, client: Client) -> None:
    make(admin)
    of_gold = {"volumes_gold": -1, "gigabytes_gold": -1, "snapshots_gold": -1}
    whole = {**DEFAULTS, **of_gold}
    assert client.get(OURS).json == {"quota_set": {"id": PROJECT, **whole}}
    assert client.get(OURS + "/defaults").json == {"quota_set": {"id": PROJECT, **whole}}
    assert limit(admin, volumes_gold=2, gigabytes="50") == {**whole, "volumes_gold": 2, "gigabytes": 50}
    assert limit(admin, snapshots_gold=0) == {**whole, "volumes_gold": 2, "gigabytes": 50, "snapshots_gold": 0}
    assert client.get(OURS + "/defaults").json["quota_set"]["volumes_gold"] == -1
    assert admin.get(THEIRS).json["quota_set"] == {"id": OTHER, **whole}
    answer = admin.delete(OURS)
    assert (answer.status_code, answer.text) == (200, "")
    assert client.get(OURS).json == {"quota_set": {"id": PROJECT, **whole}}


def test_who_sees_the_limits_of_a_private_type(admin: Client, client: Client) -> None:
    kind = make(admin, public=False)
    assert "volumes_gold" in admin.get(OURS).json["quota_set"]
    assert "volumes_gold" not in client.get(OURS).json["quota_set"]
    admin.post(f"/v3/types/{kind}/action", {"addProjectAccess": {"project": PROJECT}})
    assert client.get(OURS).json["quota_set"]["volumes_gold"] == -1


@pytest.mark.parametrize(
    "limits", [{"volumes_silver": 1}, {"backups_gold": 1}, {"volumes_gold": -2}, {"volumes_gold": "many"},
               {"volumes_gold": None}, {"volumes_gold": 2**31}, {"volumes_gold": True}]
)  # fmt: skip
def test_limits_that_cannot_be_are_refused(admin: Client, limits: dict[str, Any]) -> None:
    make(admin)
    assert admin.put(OURS, {"quota_set": {"volumes": 5, **limits}}).status_code == 400
    assert admin.put(DEFAULT_CLASS, {"quota_class_set": {"volumes": 5, **limits}}).status_code == 400
    assert admin.get(OURS).json["quota_set"]["volumes"] == 10
    assert admin.get(DEFAULT_CLASS).json["quota_class_set"]["volumes_gold"] == -1


def test_what_was_shown_can_be_sent_back(admin: Client) -> None:
    shown = admin.get(OURS).json["quota_set"]
    assert limit(admin, **shown, tenant_id=PROJECT) == {key: value for key, value in shown.items() if key != "id"}
    assert limit(admin, tenant_id=PROJECT)["volumes"] == 10
    for body in ({}, {"force": True, "volumes": 5}):
        assert admin.put(OURS, {"quota_set": body}).status_code == 400
    assert admin.get(OURS).json["quota_set"]["volumes"] == 10


def test_no_limit_is_set_below_what_is_used(admin: Client, client: Client) -> None:
    make(admin)
    client.volume(size=2, volume_type="gold")
    client.volume(size=1, volume_type="gold")
    for limits in ({"volumes_gold": 1}, {"gigabytes_gold": 2}, {"volumes_gold": 5, "gigabytes_gold": 0}):
        assert admin.put(OURS, {"quota_set": limits}).status_code == 400
    assert limit(admin, volumes_gold=2, gigabytes_gold=3)["volumes_gold"] == 2
    assert limit(admin, volumes_gold=-1, gigabytes_gold=-1)["volumes_gold"] == -1


def test_usage_is_told_for_each_type(admin: Client, client: Client) -> None:
    make(admin)
    limit(admin, gigabytes_gold=20)
    volume = client.volume(size=2, volume_type="gold")["id"]
    client.volume(size=5)
    client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}})
    assert used(client, "gigabytes_gold") == {"limit": 20, "in_use": 4, "reserved": 0}
    assert used(client, "volumes_gold") == {"limit": -1, "in_use": 1, "reserved": 0}
    assert used(client, "snapshots_gold") == {"limit": -1, "in_use": 1, "reserved": 0}
    assert used(client, "gigabytes___DEFAULT__")["in_use"] == 5
    assert used(client, "gigabytes")["in_use"] == 9


# -- what is enforced


def test_a_types_limits_hold_for_new_volumes(admin: Client, client: Client, stranger: Client) -> None:
    make(admin)
    limit(admin, volumes_gold=2, gigabytes_gold=5)
    assert create(client, 4).status_code == 202
    answer = create(client, 2)
    assert answer.status_code == 413
    assert "exceeds allowed gigabytes_gold quota. Requested 2G, quota is 5G and 4G has been" in answer.text
    assert create(client, 1).status_code == 202
    limit(admin, gigabytes_gold=-1)
    answer = create(client, 1)
    assert (answer.status_code, "exceeded for quota 'volumes_gold'" in answer.text) == (413, True)
    assert client.volume()["volume_type"] == "__DEFAULT__"
    assert create(stranger, 6).status_code == 202
    admin.delete(OURS)
    assert create(client, 6).status_code == 202


def test_a_types_limits_hold_for_extending_and_snapshots(admin: Client, client: Client) -> None:
    make(admin)
    limit(admin, gigabytes_gold=4, snapshots_gold=1)
    volume = client.volume(size=1, volume_type="gold")["id"]
    wanted = {"snapshot": {"volume_id": volume}}
    assert client.post("/v3/snapshots", wanted).status_code == 202
    assert client.post("/v3/snapshots", wanted).status_code == 413
    assert act(client, volume, "os-extend", new_size=4) == 413
    assert act(client, volume, "os-extend", new_size=3) == 202
    limit(admin, snapshots_gold=-1)
    assert client.post("/v3/snapshots", wanted).status_code == 413
    assert used(client, "gigabytes_gold") == {"limit": 4, "in_use": 4, "reserved": 0}
    plain = client.volume(size=1)["id"]
    assert act(client, plain, "os-extend", new_size=9) == 202


def test_a_types_limits_hold_for_volumes_that_get_it(admin: Client, client: Client) -> None:
    make(admin)
    limit(admin, gigabytes_gold=3)
    first, second, third = (client.volume(size=size)["id"] for size in (2, 2, 1))
    retype = {"new_type": "gold", "migration_policy": "never"}
    assert act(client, first, "os-retype", **retype) == 202
    assert act(client, second, "os-retype", **retype) == 413
    assert act(client, third, "os-retype", **retype) == 202
    assert client.get(f"/v3/volumes/{second}").json["volume"]["volume_type"] == "__DEFAULT__"
    assert used(client, "gigabytes_gold") == {"limit": 3, "in_use": 3, "reserved": 0}


@pytest.mark.parametrize("conf", [{"enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "nvme"}], indirect=True)
def test_a_volume_on_its_way_to_a_type_counts_for_it(
    admin: Client, client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(admin, volume_backend_name="fast")
    limit(admin, volumes_gold=1)
    first, second = client.volume()["id"], client.volume()["id"]
    retype = {"new_type": "gold", "migration_policy": "on-demand"}

    def late(*_arguments: object) -> None:
        raise errors.CephTimeout("move", None)

    with monkeypatch.context() as patch:
        patch.setattr(cluster_of(world), "move", late)
        assert act(client, first, "os-retype", **retype) == 202
        assert client.get(f"/v3/volumes/{first}").json["volume"]["status"] == "retyping"
        assert act(client, second, "os-retype", **retype) == 413
        assert create(client).status_code == 413
    settle(world)
    assert client.get(f"/v3/volumes/{first}").json["volume"]["volume_type"] == "gold"
    assert create(client).status_code == 413


def test_a_types_limit_is_exact_under_concurrency(admin: Client, client: Client) -> None:
    make(admin)
    limit(admin, volumes_gold=3)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: create(client).status_code, range(16)))
    assert sorted(answers) == [202] * 3 + [413] * 13


# -- classes


def test_the_default_class_gives_the_defaults(admin: Client, client: Client, stranger: Client) -> None:
    make(admin)
    whole = {**DEFAULTS, "volumes_gold": -1, "gigabytes_gold": -1, "snapshots_gold": -1}
    assert admin.get(DEFAULT_CLASS).json == {"quota_class_set": {"id": "default", **whole}}
    changed = {**whole, "volumes": 1, "volumes_gold": 0}
    answer = admin.put(DEFAULT_CLASS, {"quota_class_set": {"volumes": 1, "volumes_gold": "0"}})
    assert (answer.status_code, answer.json) == (200, {"quota_class_set": changed})
    assert admin.get(DEFAULT_CLASS).json["quota_class_set"] == {"id": "default", **changed}
    assert client.get(OURS).json["quota_set"] == {"id": PROJECT, **changed}
    assert client.get(OURS + "/defaults").json["quota_set"] == {"id": PROJECT, **changed}
    assert client.get("/v3/limits").json["limits"]["absolute"]["maxTotalVolumes"] == 1
    limit(admin, volumes=2)
    assert client.get(OURS).json["quota_set"]["volumes"] == 2
    assert create(client).status_code == 413
    for caller, answers in ((client, [202, 202, 413]), (stranger, [202, 413])):
        assert [create(caller, kind="__DEFAULT__").status_code for _ in answers] == answers
    admin.delete(OURS)
    assert client.get(OURS).json["quota_set"]["volumes"] == 1


def test_another_class_stands_for_itself(admin: Client, client: Client) -> None:
    admin.put(DEFAULT_CLASS, {"quota_class_set": {"snapshots": 7}})
    answer = admin.put("/v3/os-quota-class-sets/big", {"quota_class_set": {"volumes": 99}})
    assert answer.json["quota_class_set"] == {**DEFAULTS, "snapshots": 7, "volumes": 99}
    found = admin.get("/v3/os-quota-class-sets/big").json["quota_class_set"]
    assert found == {"id": "big", **DEFAULTS, "snapshots": 7, "volumes": 99}
    assert client.get(OURS).json["quota_set"]["volumes"] == 10
    assert admin.get("/v3/os-quota-class-sets/none").json["quota_class_set"]["volumes"] == 10


def test_what_is_no_class_or_no_body_is_refused(admin: Client) -> None:
    assert admin.put(f"/v3/os-quota-class-sets/{'x' * 256}", {"quota_class_set": {"volumes": 1}}).status_code == 400
    for body in ({}, {"quota_class_set": None}, {"quota_set": {"volumes": 1}}):
        assert admin.put(DEFAULT_CLASS, body).status_code == 400
    assert admin.get(DEFAULT_CLASS).json["quota_class_set"]["volumes"] == 10


def test_limits_are_set_by_administrators(admin: Client, client: Client, reader: Client, stranger: Client) -> None:
    for caller in (client, reader, stranger):
        assert caller.put(OURS, {"quota_set": {"volumes": 1}}).status_code == 403
        assert caller.delete(OURS).status_code == 403
        assert caller.get(DEFAULT_CLASS).status_code == 403
        assert caller.put(DEFAULT_CLASS, {"quota_class_set": {"volumes": 1}}).status_code == 403
    assert reader.get(OURS).status_code == 200
    assert stranger.get(OURS).status_code == 403
    assert admin.get(DEFAULT_CLASS).json["quota_class_set"]["volumes"] == 10


def test_a_renamed_type_keeps_its_limits_and_a_deleted_one_takes_them_along(admin: Client, client: Client) -> None:
    kind = make(admin)
    limit(admin, volumes_gold=1)
    admin.put(DEFAULT_CLASS, {"quota_class_set": {"gigabytes_gold": 5}})
    admin.put(f"/v3/types/{kind}", {"volume_type": {"name": "golden"}})
    found = client.get(OURS).json["quota_set"]
    assert (found["volumes_golden"], found["gigabytes_golden"], "volumes_gold" in found) == (1, 5, False)
    assert create(client, 6, "golden").status_code == 413
    admin.delete(f"/v3/types/{kind}")
    make(admin, "golden")
    found = client.get(OURS).json["quota_set"]
    assert (found["volumes_golden"], found["gigabytes_golden"]) == (-1, -1)
