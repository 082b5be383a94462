# SPDX-License-Identifier: Apache-2.0
"""How the volumes of a type are encrypted, and how one volume is."""

from __future__ import annotations

import concurrent.futures
import time
from typing import Any

import pytest

from cinderlite.context import World
from cinderlite.core import types
from cinderlite.db import models
from conftest import Client, cluster_of

LUKS = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}


def make(admin: Client, name: str = "gold") -> str:
    """The URL of a new type."""
    return f"/v3/types/{admin.post('/v3/types', {'volume_type': {'name': name}}).json['volume_type']['id']}"


@pytest.fixture
def kind(admin: Client) -> str:
    """The URL of a type whose volumes are encrypted."""
    url = make(admin)
    assert admin.post(url + "/encryption", {"encryption": LUKS}).status_code == 200
    return url


def test_a_type_gets_changes_and_loses_its_encryption(admin: Client) -> None:
    url = make(admin)
    assert admin.get(url + "/encryption").json == {}
    assert admin.get(url + "/encryption/provider").status_code == 404
    answer = admin.post(url + "/encryption", {"encryption": {**LUKS, "key_size": "256"}})
    made = answer.json["encryption"]
    type_id = url.rpartition("/")[2]
    assert (answer.status_code, made) == (
        200, {"volume_type_id": type_id, "encryption_id": made["encryption_id"], **LUKS})  # fmt: skip
    found = admin.get(url + "/encryption").json
    assert found == {
        **made, "created_at": found["created_at"], "updated_at": None, "deleted": False, "deleted_at": None
    }  # fmt: skip
    assert admin.get(url + "/encryption/key_size").json == {"key_size": 256}
    change = {"key_size": 512, "cipher": None, "control_location": "back-end"}
    answer = admin.put(f"{url}/encryption/{made['encryption_id']}", {"encryption": change})
    assert (answer.status_code, answer.json) == (200, {"encryption": change})
    after = admin.get(url + "/encryption").json
    assert after == {**found, **change, "updated_at": after["updated_at"]}
    assert after["updated_at"] is not None
    answer = admin.delete(f"{url}/encryption/{made['encryption_id']}")
    assert (answer.status_code, answer.text) == (202, "")
    assert admin.get(url + "/encryption").json == {}


def test_clients_write_any_word_for_the_id_of_the_encryption(admin: Client, kind: str) -> None:
    assert admin.put(kind + "/encryption/provider", {"encryption": {"key_size": 128}}).status_code == 200
    assert admin.get(kind + "/encryption/key_size").json == {"key_size": 128}
    assert admin.delete(kind + "/encryption/provider").status_code == 202


def test_what_is_not_there_is_404_and_what_is_there_is_not_made_again(admin: Client, kind: str) -> None:
    plain = make(admin, "plain")
    assert admin.put(plain + "/encryption/x", {"encryption": {"key_size": 1}}).status_code == 404
    assert admin.delete(plain + "/encryption/x").status_code == 404
    assert admin.get(kind + "/encryption/colour").status_code == 404
    assert admin.get("/v3/types/none/encryption").status_code == 404
    assert admin.post("/v3/types/none/encryption", {"encryption": LUKS}).status_code == 404
    assert admin.post(kind + "/encryption", {"encryption": {**LUKS, "key_size": 1}}).status_code == 400
    assert admin.get(kind + "/encryption/key_size").json == {"key_size": 256}


@pytest.mark.parametrize(
    "change",
    [
        {"control_location": "middle"}, {"control_location": None}, {"provider": None}, {"provider": 1},
        {"provider": "x" * 256}, {"cipher": "x" * 256}, {"cipher": 1}, {"key_size": -1}, {"key_size": "many"},
        {"key_size": 2**31}, {"key_size": True}, {"key_size": ""},
    ],
)  # fmt: skip
def test_an_encryption_that_cannot_be_is_refused(admin: Client, kind: str, change: dict[str, Any]) -> None:
    plain = make(admin, "plain")
    assert admin.post(plain + "/encryption", {"encryption": {**LUKS, **change}}).status_code == 400
    assert admin.put(kind + "/encryption/x", {"encryption": change}).status_code == 400
    assert admin.get(plain + "/encryption").json == {}
    assert {key: admin.get(f"{kind}/encryption/{key}").json[key] for key in LUKS} == LUKS


@pytest.mark.parametrize("missing", ["provider", "control_location"])
def test_who_encrypts_and_where_must_be_said(admin: Client, missing: str) -> None:
    url = make(admin)
    wanted = {key: value for key, value in LUKS.items() if key != missing}
    assert admin.post(url + "/encryption", {"encryption": wanted}).status_code == 400
    assert admin.post(url + "/encryption", {}).status_code == 400
    assert admin.get(url + "/encryption").json == {}


def test_only_administrators_deal_with_the_encryption_of_types(client: Client, reader: Client, kind: str) -> None:
    for caller in (client, reader):
        assert caller.get(kind + "/encryption").status_code == 403
        assert caller.get(kind + "/encryption/cipher").status_code == 403
        assert caller.post(kind + "/encryption", {"encryption": LUKS}).status_code == 403
        assert caller.put(kind + "/encryption/x", {"encryption": {"key_size": 1}}).status_code == 403
        assert caller.delete(kind + "/encryption/x").status_code == 403


def test_how_volumes_are_encrypted_does_not_change_under_them(admin: Client, client: Client) -> None:
    url = make(admin)
    volume = client.volume(volume_type="gold")["id"]
    assert admin.post(url + "/encryption", {"encryption": LUKS}).status_code == 400
    client.delete(f"/v3/volumes/{volume}")
    assert admin.post(url + "/encryption", {"encryption": LUKS}).status_code == 200


def test_what_encrypted_volumes_have_does_not_change_under_them(
    admin: Client, client: Client, world: World, kind: str
) -> None:
    volume = client.volume()["id"]
    _encrypt(world, volume, kind)
    assert admin.put(kind + "/encryption/x", {"encryption": {"key_size": 1}}).status_code == 400
    assert admin.delete(kind + "/encryption/x").status_code == 400
    assert admin.get(kind + "/encryption/key_size").json == {"key_size": 256}


def _encrypt(world: World, volume_id: str, kind: str) -> None:
    """As a Cinder before us may have left a volume."""
    with world.db.write() as session:
        row = session.get_one(models.Volume, volume_id)
        row.volume_type_id, row.encryption_key_id = kind.rpartition("/")[2], "00000000-0000-4000-8000-000000000001"


def test_a_volume_asked_for_while_its_type_gets_encrypted_is_encrypted(
    admin: Client, client: Client, world: World
) -> None:
    type_id = make(admin).rpartition("/")[2]
    wanted = {"volume": {"size": 1, "volume_type": "gold"}}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with world.db.write() as session:
            types.lock_unused(session, type_id)
            asked = pool.submit(client.post, "/v3/volumes", wanted)
            time.sleep(0.3)  # So that it waits for the type; if it does not yet, the test cannot fail.
            session.add(models.TypeEncryption(volume_type_id=type_id, provider="luks", control_location="front-end"))
        made = asked.result()
    assert (made.status_code, made.json["volume"]["encrypted"]) == (202, True)
    [(_, size)] = cluster_of(world).stored.values()
    assert size > 2**30


def test_a_volume_says_how_it_is_encrypted(
    client: Client, reader: Client, stranger: Client, world: World, kind: str
) -> None:
    url = f"/v3/volumes/{client.volume()['id']}"
    assert reader.get(url + "/encryption").json == {"encryption_key_id": None}
    answer = reader.get(url + "/encryption/encryption_key_id")
    assert (answer.status_code, answer.text) == (200, "")
    assert reader.get(url + "/encryption/cipher").status_code == 404
    _encrypt(world, url.rpartition("/")[2], kind)
    key = "00000000-0000-4000-8000-000000000001"
    assert reader.at("3.64").get(url).json["volume"]["encryption_key_id"] == key
    found = reader.at("3.63").get(url).json["volume"]
    assert (found["encrypted"], "encryption_key_id" in found) == (True, False)
    plain = client.at("3.64").volume()
    assert (plain["encrypted"], "encryption_key_id" in plain) == (False, False)
    assert reader.get(url + "/encryption").json == {"encryption_key_id": key, **LUKS}
    for name, text in (("encryption_key_id", key), ("cipher", LUKS["cipher"]), ("key_size", "256")):
        answer = reader.get(f"{url}/encryption/{name}")
        assert (answer.status_code, answer.text, answer.mimetype) == (200, text, "text/plain")
    assert stranger.get(url + "/encryption").status_code == 404
    assert stranger.get(url + "/encryption/cipher").status_code == 404
    assert client.with_headers(X_Test_Roles="none").get(url + "/encryption").status_code == 403
