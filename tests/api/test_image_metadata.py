# SPDX-License-Identifier: Apache-2.0
"""What is known of a volume's image, and whether a server can boot from it."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest

from cinderlite.context import World
from cinderlite.db import models
from conftest import Client

IMAGE = {"image_id": "5137a025-3c5f-43c1-bc64-5f41270040a5", "image_name": "image", "ramdisk_id": "somedisk"}


def act(client: Client, volume: str, action: str, **body: Any) -> Any:
    return client.post(f"/v3/volumes/{volume}/action", {action: body})


def test_image_metadata_is_added_to_shown_and_removed(client: Client, reader: Client) -> None:
    volume = client.volume()["id"]
    shown = f"/v3/volumes/{volume}"
    assert act(reader, volume, "os-show_image_metadata").json == {"metadata": {}}
    assert "volume_image_metadata" not in client.get(shown).json["volume"]
    assert "volume_image_metadata" not in client.get("/v3/volumes/detail").json["volumes"][0]
    answer = act(client, volume, "os-set_image_metadata", metadata=IMAGE)
    assert (answer.status_code, answer.json) == (200, {"metadata": IMAGE})
    assert act(client, volume, "os-set_image_metadata", metadata={"image_name": "b"}).json["metadata"] == {
        **IMAGE, "image_name": "b"}  # fmt: skip
    assert client.get(shown).json["volume"]["volume_image_metadata"] == {**IMAGE, "image_name": "b"}
    [listed] = client.get("/v3/volumes/detail").json["volumes"]
    assert listed["volume_image_metadata"] == {**IMAGE, "image_name": "b"}
    assert "volume_image_metadata" not in client.get("/v3/volumes").json["volumes"][0]
    answer = act(client, volume, "os-unset_image_metadata", key="ramdisk_id")
    assert (answer.status_code, answer.text) == (200, "")
    left = act(reader, volume, "os-show_image_metadata").json["metadata"]
    assert left == {"image_id": IMAGE["image_id"], "image_name": "b"}
    assert act(client, volume, "os-unset_image_metadata", key="ramdisk_id").status_code == 404
    assert "volume_image_metadata" not in client.put(shown, {"volume": {"name": "x"}}).json["volume"]


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("os-set_image_metadata", {}),
        ("os-set_image_metadata", {"metadata": None}),
        ("os-set_image_metadata", {"metadata": {"": "x"}}),
        ("os-set_image_metadata", {"metadata": {"k": None}}),
        ("os-set_image_metadata", {"metadata": {"k": 1}}),
        ("os-set_image_metadata", {"metadata": {"k": "v"}, "more": 1}),
        ("os-unset_image_metadata", {}),
        ("os-unset_image_metadata", {"key": ""}),
        ("os-unset_image_metadata", {"key": "x" * 256}),
        ("os-set_bootable", {}),
        ("os-set_bootable", {"bootable": "perhaps"}),
        ("os-set_bootable", {"bootable": None}),
    ],
)
def test_what_is_no_such_thing_is_400(client: Client, action: str, body: dict[str, Any]) -> None:
    assert act(client, client.volume()["id"], action, **body).status_code == 400


def test_a_volume_can_be_made_bootable(client: Client, reader: Client) -> None:
    volume = client.volume()
    for wanted, shown in ((True, "true"), ("false", "false"), ("True", "true")):
        answer = act(client, volume["id"], "os-set_bootable", bootable=wanted)
        assert (answer.status_code, answer.text) == (200, "")
        assert reader.get(f"/v3/volumes/{volume['id']}").json["volume"]["bootable"] == shown


def test_who_may(client: Client, reader: Client, stranger: Client) -> None:
    volume = client.volume()["id"]
    act(client, volume, "os-set_image_metadata", metadata=IMAGE)
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("os-set_bootable", {"bootable": True}),
        ("os-set_image_metadata", {"metadata": IMAGE}),
        ("os-unset_image_metadata", {"key": "image_id"}),
        ("os-show_image_metadata", {}),
    )
    for action, body in calls:
        assert act(stranger, volume, action, **body).status_code == 404
        assert act(reader, volume, action, **body).status_code == (200 if "show" in action else 403)


def test_nothing_is_changed_while_the_volume_is_uploaded(client: Client, world: World) -> None:
    volume = client.volume()["id"]
    act(client, volume, "os-set_image_metadata", metadata=IMAGE)
    with world.db.write() as session:
        session.get_one(models.Volume, volume).status = "uploading"
    assert act(client, volume, "os-set_image_metadata", metadata={"a": "b"}).status_code == 400
    assert act(client, volume, "os-unset_image_metadata", key="image_id").status_code == 400
    assert act(client, volume, "os-show_image_metadata").json["metadata"] == IMAGE


def test_clones_inherit_it(client: Client) -> None:
    volume = client.volume()["id"]
    act(client, volume, "os-set_image_metadata", metadata=IMAGE)
    act(client, volume, "os-set_bootable", bootable=True)
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"]
    for source in ({"snapshot_id": snapshot}, {"source_volid": volume}):
        clone = client.volume(**source)
        assert (clone["volume_image_metadata"], clone["bootable"]) == (IMAGE, "true")


def test_administrators_filter_by_it(client: Client, admin: Client) -> None:
    made, _ = client.volume(name="a")["id"], client.volume(name="b")
    act(client, made, "os-set_image_metadata", metadata=IMAGE)

    def found(asker: Client, version: str, wanted: Any) -> Any:
        query = urllib.parse.urlencode({"glance_metadata": wanted})
        answer = asker.at(version).get(f"/v3/volumes?{query}")
        return len(answer.json["volumes"]) if answer.status_code == 200 else answer.status_code

    both = json.dumps({"image_name": "image", "ramdisk_id": "somedisk"})
    for version in ("3.4", "3.71"):
        assert found(admin, version, "{'image_name': 'image'}") == 1
        assert found(admin, version, both) == 1
        assert found(admin, version, {"image_name": "image", "ramdisk_id": "x"}) == 0
        assert found(admin, version, "image") == 400
    assert found(admin, "3.3", {"image_name": "x"}) == 2
    assert found(client, "3.30", {"image_name": "x"}) == 2, "from members it is dropped, as Cinder does by default"
    assert found(client, "3.31", {"image_name": "x"}) == 400
