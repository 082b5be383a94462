# SPDX-License-Identifier: Apache-2.0
"""QoS specs and which types have them."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Client

LIMITS = {"total_iops_sec": "2000", "total_bytes_sec": "104857600"}


def make(admin: Client, name: str = "fast", **specs: Any) -> str:
    """The URL of new QoS specs."""
    answer = admin.post("/v3/qos-specs", {"qos_specs": {"name": name, **specs}})
    assert answer.status_code == 200, answer.text
    return f"/v3/qos-specs/{answer.json['qos_specs']['id']}"


def make_type(admin: Client, name: str = "gold") -> str:
    return str(admin.post("/v3/types", {"volume_type": {"name": name}}).json["volume_type"]["id"])


def show(admin: Client, one: str) -> Any:
    return admin.get(one).json["qos_specs"]


def of_type(admin: Client, kind: str) -> str | None:
    """Which QoS specs a type shows."""
    found: str | None = admin.get(f"/v3/types/{kind}").json["volume_type"]["qos_specs_id"]
    return found


def test_qos_specs_are_made_shown_changed_and_deleted(admin: Client) -> None:
    answer = admin.post("/v3/qos-specs", {"qos_specs": {"name": " fast ", "consumer": "front-end", **LIMITS}})
    made = answer.json
    one = f"/v3/qos-specs/{made['qos_specs']['id']}"
    whole = {"id": made["qos_specs"]["id"], "name": "fast", "consumer": "front-end", "specs": LIMITS}
    assert (answer.status_code, made["qos_specs"]) == (200, whole)
    assert [link["href"] for link in made["links"]] == [f"http://localhost{one}", f"http://localhost{one[3:]}"]
    assert admin.get(one).json == made
    assert admin.get("/v3/qos-specs").json == {"qos_specs": [whole]}
    change = {"total_iops_sec": "3000", "read_iops_sec": "10", "consumer": "both"}
    answer = admin.put(one, {"qos_specs": change})
    assert (answer.status_code, answer.json) == (200, {"qos_specs": change})
    limits = {**LIMITS, "total_iops_sec": "3000", "read_iops_sec": "10"}
    assert show(admin, one) == {**whole, "consumer": "both", "specs": limits}
    answer = admin.put(one + "/delete_keys", {"keys": ["total_iops_sec", "total_bytes_sec"]})
    assert (answer.status_code, answer.text) == (202, "")
    assert show(admin, one)["specs"] == {"read_iops_sec": "10"}
    answer = admin.delete(one)
    assert (answer.status_code, answer.text) == (202, "")
    assert admin.get(one).status_code == 404


def test_the_back_end_is_meant_if_nothing_is_said(admin: Client) -> None:
    found = show(admin, make(admin))
    assert (found["consumer"], found["specs"]) == ("back-end", {})


@pytest.mark.parametrize(
    ("specs", "status"),
    [
        ({"name": "x", "consumer": "somebody"}, 400),
        ({"name": "x", "consumer": ""}, 400),
        ({"name": "x", "consumer": None}, 400),
        ({"name": "x", "consumer": 1}, 400),
        ({}, 400),
        ({"name": None}, 400),
        ({"name": " "}, 400),
        ({"name": "x" * 256}, 400),
        ({"name": "x", "limit": 1}, 400),
        ({"name": "x", "limit": None}, 400),
        ({"name": "x", "limit": "x" * 256}, 400),
        ({"name": "x", "": "1"}, 400),
        ({"name": "x", "k" * 256: "1"}, 400),
        ({"name": "x", "total_iops_sec_per_gb": "many"}, 400),
        ({"name": "x", "total_iops_sec_per_gb_min": "-1"}, 400),
        ({"name": "x", "total_iops_sec_max": ""}, 400),
        ({"name": "fast"}, 409),
    ],
)
def test_qos_specs_that_cannot_be_are_refused(admin: Client, specs: dict[str, Any], status: int) -> None:
    one = make(admin, **LIMITS)
    assert admin.post("/v3/qos-specs", {"qos_specs": specs}).status_code == status
    assert admin.get("/v3/qos-specs").json["qos_specs"] == [show(admin, one)]
    change = {key: value for key, value in specs.items() if key != "name"}
    if change:
        assert admin.put(one, {"qos_specs": change}).status_code == status
    assert show(admin, one)["specs"] == LIMITS


@pytest.mark.parametrize(("method", "body"), [("POST", {}), ("POST", {"qos_specs": None}), ("PUT", {}),
    ("PUT", {"qos_specs": {"a": "1"}, "more": 1}), ("POST", {"qos_specs": {"name": "x"}, "more": 1})])  # fmt: skip
def test_a_body_without_its_envelope_is_refused(admin: Client, method: str, body: dict[str, Any]) -> None:
    one = make(admin)
    assert admin.request(method, one if method == "PUT" else "/v3/qos-specs", body).status_code == 400
    assert len(admin.get("/v3/qos-specs").json["qos_specs"]) == 1


def test_limits_go_all_or_none(admin: Client) -> None:
    one = make(admin, **LIMITS)
    assert admin.put(one + "/delete_keys", {"keys": ["total_iops_sec", "colour"]}).status_code == 404
    for body in (
        {},
        {"keys": None},
        {"keys": "total_iops_sec"},
        {"keys": [1]},
        {"keys": [""]},
        {"keys": ["a"], "x": 1},
    ):
        assert admin.put(one + "/delete_keys", body).status_code == 400
    assert show(admin, one)["specs"] == LIMITS
    assert admin.put(one + "/delete_keys", {"keys": ["total_iops_sec"] * 2}).status_code == 400
    assert show(admin, one)["specs"] == LIMITS


def test_lists_are_paged_sorted_and_filtered(admin: Client) -> None:
    for name, consumer in (("c", "both"), ("a", "both"), ("b", "front-end")):
        make(admin, name, consumer=consumer)

    def names(query: str) -> list[str]:
        return [one["name"] for one in admin.get(f"/v3/qos-specs?{query}").json["qos_specs"]]

    assert names("sort=name:asc") == ["a", "b", "c"]
    assert names("sort=created_at:asc&consumer=both") == ["c", "a"]
    assert names("name=b") == ["b"]
    answer = admin.get("/v3/qos-specs?sort=name:asc&limit=2").json
    [link] = answer["qos_specs_links"]
    following = admin.get(link["href"]).json
    assert [one["name"] for one in following["qos_specs"]] == ["c"]
    assert admin.get("/v3/qos-specs?marker=none").status_code == 404


def test_types_get_and_lose_qos_specs(admin: Client) -> None:
    fast, slow = make(admin), make(admin, "slow")
    gold, silver = make_type(admin), make_type(admin, "silver")
    fast_id = fast.rpartition("/")[2]
    for kind in (silver, gold, gold):
        answer = admin.get(f"{fast}/associate?vol_type_id={kind}")
        assert (answer.status_code, answer.text) == (202, "")
    assert of_type(admin, gold) == fast_id
    assert admin.get(fast + "/associations").json == {"qos_associations": [
        {"association_type": "volume_type", "name": "gold", "id": gold},
        {"association_type": "volume_type", "name": "silver", "id": silver},
    ]}  # fmt: skip
    assert admin.get(slow + "/associations").json == {"qos_associations": []}
    assert admin.get(f"{slow}/associate?vol_type_id={gold}").status_code == 400
    assert admin.get(f"{slow}/disassociate?vol_type_id={gold}").status_code == 202
    assert of_type(admin, gold) == fast_id
    assert admin.get(f"{fast}/disassociate?vol_type_id={gold}").status_code == 202
    assert (of_type(admin, gold), of_type(admin, silver)) == (None, fast_id)
    assert admin.get(f"{slow}/associate?vol_type_id={gold}").status_code == 202
    assert admin.get(fast + "/disassociate_all").status_code == 202
    assert admin.get(slow + "/associations").json["qos_associations"][0]["id"] == gold
    assert of_type(admin, silver) is None


@pytest.mark.parametrize("verb", ["associate", "disassociate"])
def test_only_a_type_that_there_is_gets_or_loses_them(admin: Client, verb: str) -> None:
    one = make(admin)
    assert admin.get(f"{one}/{verb}").status_code == 400
    assert admin.get(f"{one}/{verb}?vol_type_id=").status_code == 400
    assert admin.get(f"{one}/{verb}?vol_type_id=none").status_code == 404
    assert admin.get(f"/v3/qos-specs/none/{verb}?vol_type_id={make_type(admin)}").status_code == 404


def test_what_types_have_is_deleted_by_force_only(admin: Client) -> None:
    one, kind = make(admin, **LIMITS), make_type(admin)
    admin.get(f"{one}/associate?vol_type_id={kind}")
    assert admin.delete(one).status_code == 400
    assert admin.delete(one + "?force=false").status_code == 400
    assert admin.delete(one + "?force=perhaps").status_code == 400
    assert admin.get(one + "/associations").json["qos_associations"][0]["id"] == kind
    assert admin.delete(one + "?force=True").status_code == 202
    assert of_type(admin, kind) is None
    assert admin.get(one).status_code == 404


def test_a_type_that_has_qos_specs_can_be_deleted(admin: Client) -> None:
    one, kind = make(admin), make_type(admin)
    admin.get(f"{one}/associate?vol_type_id={kind}")
    assert admin.delete(f"/v3/types/{kind}").status_code == 202
    assert admin.get(one + "/associations").json == {"qos_associations": []}
    assert admin.delete(one).status_code == 202


def test_qos_specs_are_for_administrators(admin: Client, client: Client, reader: Client) -> None:
    one, kind = make(admin, **LIMITS), make_type(admin)
    for caller in (client, reader):
        for method, path, body in (
            ("GET", "/v3/qos-specs", None),
            ("POST", "/v3/qos-specs", {"qos_specs": {"name": "x"}}),
            ("GET", one, None),
            ("PUT", one, {"qos_specs": {"a": "1"}}),
            ("DELETE", one, None),
            ("PUT", one + "/delete_keys", {"keys": ["total_iops_sec"]}),
            ("GET", one + "/associations", None),
            ("GET", f"{one}/associate?vol_type_id={kind}", None),
            ("GET", f"{one}/disassociate?vol_type_id={kind}", None),
            ("GET", one + "/disassociate_all", None),
        ):
            assert caller.request(method, path, body).status_code == 403, (method, path)
        assert "qos_specs_id" not in caller.get(f"/v3/types/{kind}").json["volume_type"]
    assert show(admin, one)["specs"] == LIMITS
    assert of_type(admin, kind) is None


@pytest.mark.parametrize(
    ("consumer", "specs", "told"),
    [
        ("front-end", LIMITS, LIMITS),
        ("both", LIMITS, LIMITS),
        ("back-end", LIMITS, None),
        ("front-end", {"total_iops_sec_per_gb": "30"}, {"total_iops_sec": "90"}),
        ("front-end", {"total_iops_sec_per_gb": "30", "total_iops_sec_per_gb_min": "100"}, {"total_iops_sec": "100"}),
        ("front-end", {"total_iops_sec_per_gb": "30", "total_iops_sec_max": "50"}, {"total_iops_sec": "50"}),
    ],
)
def test_who_opens_a_volume_is_told_the_limits_of_the_front_end(
    admin: Client, client: Client, consumer: str, specs: dict[str, str], told: dict[str, str] | None
) -> None:
    one, kind = make(admin, consumer=consumer, **specs), make_type(admin)
    volume = client.volume(size=3, volume_type="gold")["id"]
    admin.get(f"{one}/associate?vol_type_id={kind}")
    wanted = {"volume_uuid": volume, "connector": {"host": "h", "initiator": "i", "ip": "10.0.0.1"}}
    answer = client.at("3.27").post("/v3/attachments", {"attachment": wanted})
    assert answer.json["attachment"]["connection_info"]["qos_specs"] == told


def test_a_volume_in_use_keeps_its_limits_when_it_gets_another_type(admin: Client, client: Client) -> None:
    one, kind = make(admin, consumer="front-end", **LIMITS), make_type(admin)
    make_type(admin, "silver")
    admin.get(f"{one}/associate?vol_type_id={kind}")
    volume = client.volume(volume_type="gold")["id"]
    attach = {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}}
    assert client.post(f"/v3/volumes/{volume}/action", attach).status_code == 202
    retype = {"os-retype": {"new_type": "silver", "migration_policy": "never"}}
    assert client.post(f"/v3/volumes/{volume}/action", retype).status_code == 400
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["volume_type"] == "gold"
    admin.get(one + "/disassociate_all")
    assert client.post(f"/v3/volumes/{volume}/action", retype).status_code == 202
