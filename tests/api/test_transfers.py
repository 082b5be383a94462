# SPDX-License-Identifier: Apache-2.0
"""Transfers over HTTP: a volume goes to another project, with its snapshots or without them."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import pytest
import sqlalchemy

from cinderlite.context import World
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client

NEW, OLD = "/v3/volume-transfers", "/v3/os-volume-transfer"
PATHS = pytest.mark.parametrize("path", [NEW, OLD])


def offer(client: Client, volume: str, path: str = NEW, **fields: Any) -> dict[str, Any]:
    """Offer a volume and answer the offer, key and all."""
    made = client.post(path, {"transfer": {"volume_id": volume, **fields}})
    assert made.status_code == 202, made.text
    return made.json["transfer"]  # type: ignore[no-any-return]


def accept(client: Client, transfer: dict[str, Any], path: str = NEW, key: Any = None) -> Any:
    """Ask for what is offered, with its key or another."""
    key = transfer["auth_key"] if key is None else key
    return client.post(f"{path}/{transfer['id']}/accept", {"accept": {"auth_key": key}})


def snapshot(client: Client, volume: str) -> str:
    """Id of a new snapshot."""
    made = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}})
    assert made.status_code == 202, made.text
    return str(made.json["snapshot"]["id"])


def status(client: Client, volume: str) -> str:
    return str(client.get(f"/v3/volumes/{volume}").json["volume"]["status"])


@PATHS
def test_a_volume_goes_to_whoever_has_the_key(client: Client, stranger: Client, path: str) -> None:
    volume = client.volume(name="data")["id"]
    made = offer(client, volume, path, name="a gift")
    assert (made["volume_id"], made["name"]) == (volume, "a gift")
    assert status(client, volume) == "awaiting-transfer"
    taken = accept(stranger, made, path)
    assert taken.status_code == 202, taken.text
    assert set(taken.json["transfer"]) == {"id", "volume_id", "name", "links"}
    assert status(stranger, volume) == "available"
    assert client.get(f"/v3/volumes/{volume}").status_code == 404
    assert client.get(f"{path}/{made['id']}").status_code == 404
    assert stranger.delete(f"/v3/volumes/{volume}").status_code == 202


@PATHS
def test_the_key_is_shown_once(client: Client, world: World, path: str) -> None:
    made = offer(client, client.volume()["id"], path)
    for answer in (client.get(f"{path}/{made['id']}"), client.get(path), client.get(f"{path}/detail")):
        assert answer.status_code == 200
        assert made["id"] in answer.text
        assert made["auth_key"] not in answer.text
    with world.db.read() as session:
        kept = session.execute(sqlalchemy.select(models.Transfer.__table__)).one()
    assert made["auth_key"] not in str(kept)


def test_what_is_shown_in_which_version(client: Client) -> None:
    made = offer(client.at("3.57"), client.volume()["id"], name="x")
    short, of_old = {"id", "volume_id", "name", "links"}, {"id", "volume_id", "name", "links", "created_at"}
    history = {"no_snapshots", "source_project_id", "destination_project_id", "accepted"}
    assert set(made) == of_old | history | {"auth_key"}
    for version, keys in (("3.54", of_old), ("3.55", of_old | {"no_snapshots"}), ("3.57", of_old | history)):
        shown = client.at(version).get(f"{NEW}/{made['id']}").json["transfer"]
        assert set(shown) == keys, version
        [listed] = client.at(version).get(f"{NEW}/detail").json["transfers"]
        assert listed == shown
    assert (shown["source_project_id"], shown["destination_project_id"], shown["accepted"]) == (PROJECT, None, False)
    [brief] = client.at("3.71").get(NEW).json["transfers"]
    assert set(brief) == short
    assert all("/os-volume-transfer/" in link["href"] for link in brief["links"])


@PATHS
def test_a_wrong_key_changes_nothing(client: Client, stranger: Client, path: str) -> None:
    volume = client.volume()["id"]
    made = offer(client, volume, path)
    for key in ("x", "", 5, made["auth_key"].upper() + "0"):
        refused = accept(stranger, made, path, key)
        assert refused.status_code == 400, refused.text
        assert made["auth_key"] not in refused.text
    assert status(client, volume) == "awaiting-transfer"
    assert accept(stranger, made, path).status_code == 202


@PATHS
def test_bodies_that_are_none(client: Client, path: str) -> None:
    volume = client.volume()["id"]
    bodies: list[dict[str, Any]] = [
        {}, {"transfer": None}, {"transfer": {}}, {"transfer": {"volume_id": "x"}}, {"transfer": {"volume_id": None}},
        {"transfer": {"volume_id": volume, "name": "x" * 256}}, {"transfer": {"volume_id": volume, "other": 1}},
        {"transfer": {"volume_id": volume}, "beside": 1}, {"transfer": {"volume_id": volume, "no_snapshots": "maybe"}},
    ]  # fmt: skip
    for body in bodies:
        assert client.at("3.55").post(path, body).status_code == 400, body
    unknown = "11111111-1111-4111-8111-111111111111"
    assert client.post(path, {"transfer": {"volume_id": unknown}}).status_code == 404
    made = offer(client, volume, path)
    keys: list[dict[str, Any]] = [{}, {"accept": {}}, {"accept": {"auth_key": None}}, {"accept": {"auth_key": True}},
                 {"accept": {"auth_key": ["x"]}}, {"accept": {"auth_key": "x", "other": 1}}]  # fmt: skip
    for sent in keys:
        assert client.post(f"{path}/{made['id']}/accept", sent).status_code == 400, sent
    assert client.post(f"{path}/{unknown}/accept", {"accept": {"auth_key": "x"}}).status_code == 404


def test_leaving_snapshots_came_with_355_and_the_newer_path(client: Client) -> None:
    body = {"transfer": {"volume_id": client.volume()["id"], "no_snapshots": True}}
    assert client.at("3.54").post(NEW, body).status_code == 400
    assert client.at("3.71").post(OLD, body).status_code == 400
    assert client.at("3.55").post(NEW, body).status_code == 202


@PATHS
def test_an_offer_can_be_taken_back(client: Client, stranger: Client, path: str) -> None:
    volume = client.volume()["id"]
    made = offer(client, volume, path)
    assert client.delete(f"{path}/{made['id']}").status_code == 202
    assert status(client, volume) == "available"
    assert client.delete(f"{path}/{made['id']}").status_code == 404
    assert accept(stranger, made, path).status_code == 404
    assert client.get(path).json["transfers"] == []


@PATHS
def test_who_may_what(client: Client, reader: Client, stranger: Client, admin: Client, path: str) -> None:
    volume = client.volume()["id"]
    body = {"transfer": {"volume_id": volume}}
    assert stranger.post(path, body).status_code == 404
    assert reader.post(path, body).status_code == 403
    made = offer(client, volume, path)
    one = f"{path}/{made['id']}"
    assert reader.get(one).status_code == 200
    assert reader.delete(one).status_code == 403
    assert stranger.get(one).status_code == 404
    assert stranger.delete(one).status_code == 404
    assert stranger.get(path).json["transfers"] == []
    assert stranger.get(f"{path}?all_tenants=1").json["transfers"] == []
    elsewhere = admin.with_headers(X_Test_Project=OTHER)
    assert elsewhere.get(path).json["transfers"] == []
    assert [one["id"] for one in elsewhere.get(f"{path}?all_tenants=1").json["transfers"]] == [made["id"]]
    assert elsewhere.get(one).status_code == 200
    assert elsewhere.delete(one).status_code == 202


def test_only_what_is_available_is_offered(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    for word in ("error", "in-use", "awaiting-transfer", "maintenance"):
        if word == "in-use":
            client.post(f"/v3/volumes/{volume}/action", {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}})
        else:
            admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": word}})
        before = status(client, volume)
        answer = client.post(NEW, {"transfer": {"volume_id": volume}})
        assert answer.status_code == 400, before
        assert status(client, volume) == before
        client.post(f"/v3/volumes/{volume}/action", {"os-detach": {}})
        admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": "available"}})
    offer(client, volume)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    assert client.post(NEW, {"transfer": {"volume_id": volume}}).status_code == 400


def test_snapshots_go_along(client: Client, stranger: Client) -> None:
    volume = client.volume()["id"]
    one = snapshot(client, volume)
    assert accept(stranger, offer(client, volume)).status_code == 202
    assert client.get(f"/v3/snapshots/{one}").status_code == 404
    found = stranger.get(f"/v3/snapshots/{one}").json["snapshot"]
    assert (found["os-extended-snapshot-attributes:project_id"], found["status"]) == (OTHER, "available")
    assert stranger.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 202
    assert stranger.get(f"/v3/snapshots/{one}").status_code == 404


def test_snapshots_are_left(client: Client, stranger: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    left = snapshot(client, volume)
    made = offer(client.at("3.55"), volume, no_snapshots=True)
    assert accept(stranger, made).status_code == 202
    assert client.get(f"/v3/snapshots/{left}").status_code == 200
    assert stranger.get(f"/v3/snapshots/{left}").status_code == 404
    # What was left is its owner's: the volume's new owner neither deletes it nor takes it along.
    for how in ("", "?cascade=true"):
        assert stranger.delete(f"/v3/volumes/{volume}{how}").status_code == 400
    assert client.get(f"/v3/snapshots/{left}").json["snapshot"]["status"] == "available"
    assert accept(admin.with_headers(X_Test_Project="c" * 32), offer(stranger, volume)).status_code == 202
    assert client.get(f"/v3/snapshots/{left}").status_code == 200
    clone = client.volume(snapshot_id=left)
    assert clone["status"] == "available"
    assert client.delete(f"/v3/snapshots/{left}").status_code == 202
    assert admin.delete(f"/v3/volumes/{volume}").status_code == 202


def test_a_snapshot_that_is_not_available_stops_the_offer(client: Client, stranger: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    one = snapshot(client, volume)
    reset = {"os-reset_status": {"status": "error"}}
    admin.post(f"/v3/snapshots/{one}/action", reset)
    answer = client.post(NEW, {"transfer": {"volume_id": volume}})
    assert answer.status_code == 400
    assert one in answer.json["badRequest"]["message"]
    assert status(client, volume) == "available"
    made = offer(client.at("3.55"), volume, no_snapshots=True)
    assert accept(stranger, made).status_code == 202


@pytest.mark.parametrize("conf", [{"quota_volumes": 1, "quota_snapshots": 1, "quota_gigabytes": 4}], indirect=True)
def test_the_accepting_project_pays(client: Client, stranger: Client, admin: Client) -> None:
    volume = client.volume(size=2)["id"]
    snapshot(client, volume)
    made = offer(client, volume)
    own = stranger.volume(size=1)["id"]
    refused = accept(stranger, made)
    assert refused.status_code == 413
    assert "exceed" in refused.json["overLimit"]["message"]
    assert status(client, volume) == "awaiting-transfer"
    stranger.delete(f"/v3/volumes/{own}")
    # Two GiB of the volume and two of its snapshot: just allowed.
    admin.put(f"/v3/os-quota-sets/{OTHER}", {"quota_set": {"gigabytes": 3}})
    assert accept(stranger, made).status_code == 413
    admin.put(f"/v3/os-quota-sets/{OTHER}", {"quota_set": {"gigabytes": 4, "snapshots": 0}})
    assert accept(stranger, made).status_code == 413
    admin.put(f"/v3/os-quota-sets/{OTHER}", {"quota_set": {"snapshots": 1}})
    assert accept(stranger, made).status_code == 202
    used = client.get(f"/v3/os-quota-sets/{PROJECT}?usage=True").json["quota_set"]
    assert (used["volumes"]["in_use"], used["snapshots"]["in_use"], used["gigabytes"]["in_use"]) == (0, 0, 0)


@pytest.mark.parametrize("conf", [{"quota_volumes": 1}], indirect=True)
def test_ones_own_offer_costs_nothing(client: Client) -> None:
    volume = client.volume()["id"]
    assert accept(client, offer(client, volume)).status_code == 202
    assert status(client, volume) == "available"


def test_a_private_type_stays_private(client: Client, stranger: Client, world: World) -> None:
    with world.db.write() as session:
        kind = models.VolumeType(name="gold", is_public=False)
        session.add(kind)
        session.flush()
        session.add(models.TypeAccess(volume_type_id=kind.id, project_id=PROJECT))
    volume = client.volume(volume_type="gold")["id"]
    made = offer(client, volume)
    answer = accept(stranger, made)
    assert answer.status_code == 400
    assert "gold" in answer.json["badRequest"]["message"]
    with world.db.write() as session:
        session.add(models.TypeAccess(volume_type_id=kind.id, project_id=OTHER))
    assert accept(stranger, made).status_code == 202


def test_encrypted_volumes_since_370(client: Client, stranger: Client, world: World) -> None:
    volume = client.volume()["id"]
    with world.db.write() as session:
        session.get_one(models.Volume, volume).encryption_key_id = "11111111-1111-4111-8111-111111111111"
    body = {"transfer": {"volume_id": volume}}
    assert client.at("3.69").post(NEW, body).status_code == 400
    assert client.at("3.71").post(OLD, body).status_code == 400
    assert client.at("3.70").post(NEW, {"transfer": {"volume_id": volume, "no_snapshots": True}}).status_code == 400
    assert status(client, volume) == "available"
    assert accept(stranger, offer(client.at("3.70"), volume)).status_code == 202


def test_an_old_key_opens_no_later_offer(client: Client, stranger: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    first = offer(client, volume)
    admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": "available"}})
    assert accept(stranger, first).status_code == 400
    second = offer(client, volume)
    assert accept(stranger, first).status_code == 404
    assert accept(stranger, second, key=first["auth_key"]).status_code == 400
    assert accept(stranger, second).status_code == 202


def test_an_offer_ends_with_its_volume(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    made = offer(client, volume)
    admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": "available"}})
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    assert client.get(f"{NEW}/{made['id']}").status_code == 404
    assert client.get(NEW).json["transfers"] == []


def test_taking_back_does_not_touch_a_status_set_by_hand(client: Client, admin: Client) -> None:
    volume = client.volume()["id"]
    made = offer(client, volume)
    admin.post(f"/v3/volumes/{volume}/action", {"os-reset_status": {"status": "error"}})
    assert client.delete(f"{NEW}/{made['id']}").status_code == 202
    assert status(client, volume) == "error"


def test_two_accept_and_one_gets_it(client: Client, stranger: Client, world: World) -> None:
    volume = client.volume()["id"]
    made = offer(client, volume)
    third = stranger.with_headers(X_Test_Project="c" * 32)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        codes = [one.status_code for one in pool.map(lambda who: accept(who, made), (stranger, third))]
    assert sorted(codes) in ([202, 400], [202, 404])
    with world.db.read() as session:
        owner = session.get_one(models.Volume, volume).project_id
        kept = session.get_one(models.Transfer, made["id"])
    assert owner == (OTHER if codes[0] == 202 else "c" * 32)
    assert (kept.accepted, kept.destination_project_id, kept.deleted) == (True, owner, True)


def test_lists_are_paged_and_sorted_since_359(client: Client) -> None:
    made = [offer(client, client.volume()["id"], name=name)["id"] for name in ("b", "c", "a")]

    def listed(query: str, version: str = "3.59", path: str = NEW) -> list[str]:
        answer = client.at(version).get(f"{path}?{query}")
        assert answer.status_code == 200, answer.text
        return [str(one["id"]) for one in answer.json["transfers"]]

    assert listed("sort=name:asc") == [made[2], made[0], made[1]]
    assert listed("sort=created_at:desc") == made[::-1]
    assert listed("sort=name:asc", "3.58") == made
    assert listed("sort=name:asc", "3.71", OLD) == made
    assert listed("name=c") == [made[1]]
    assert listed(f"limit=1&sort=created_at:asc&marker={made[0]}") == [made[1]]
    first = client.at("3.59").get(f"{NEW}?limit=2&sort=created_at:asc").json
    assert [one["id"] for one in first["transfers"]] == made[:2]
    following = first["transfers_links"][0]["href"].removeprefix("http://localhost")
    assert [one["id"] for one in client.at("3.59").get(following).json["transfers"]] == made[2:]
    assert client.at("3.59").get(f"{NEW}?sort=nonsense").status_code == 400
    assert client.at("3.59").get(f"{NEW}?marker=nope").status_code == 404
    assert client.at("3.59").get(f"{NEW}?nonsense=1").status_code == 400


def test_nobody_goes_back_to_a_snapshot_that_stayed_behind(client: Client, stranger: Client) -> None:
    volume = client.volume()["id"]
    kept = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"]
    offer = {"transfer": {"volume_id": volume, "no_snapshots": True}}
    made = client.at("3.71").post("/v3/volume-transfers", offer).json["transfer"]
    key = {"accept": {"auth_key": made["auth_key"]}}
    assert stranger.post(f"/v3/volume-transfers/{made['id']}/accept", key).status_code == 202
    assert stranger.get(f"/v3/snapshots/{kept}").status_code == 404
    back = {"revert": {"snapshot_id": kept}}
    assert stranger.at("3.40").post(f"/v3/volumes/{volume}/action", back).status_code == 400
