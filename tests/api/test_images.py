# SPDX-License-Identifier: Apache-2.0
"""Volumes from images, images of volumes, images over volumes; against a small image service behind real HTTP."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import uuid
from typing import Any

import flask
import pytest
from oslo_config import cfg
from sqlalchemy import select

from cinderlite import errors, jobs
from cinderlite.context import World
from cinderlite.core import audit, encryption, image_cache, images, volumes
from cinderlite.db import models
from conftest import OTHER, PROJECT, Client, _client, cluster_of, settle
from fakes_cluster import FakeCluster
from fakes_glance import FakeGlance

pytest.importorskip("openstack", reason="the extra 'glance' is not installed")

DISK = b"begin" + bytes(6 * 2**20) + b"end"
GIB = 2**30
SMALL = 2**24


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes for a GiB here: nobody learns more from sending a real one to and fro."""
    for module in (encryption, volumes, images, image_cache):
        monkeypatch.setattr(module, "GIB", SMALL)


@pytest.fixture(autouse=True)
def quick(conf: cfg.ConfigOpts, glance: FakeGlance) -> None:
    """What the image service does not give at once it gives at the second try."""
    conf.set_override("glance_num_retries", 1)


@pytest.fixture
def cluster(world: World) -> FakeCluster:
    return cluster_of(world)


def bytes_of(cluster: FakeCluster, volume_id: str) -> bytes:
    return cluster.data.get(cluster.stored[f"volume-{volume_id}"][0], "").encode("latin-1")


def create(client: Client, image: str, size: int | None = 1, **fields: Any) -> dict[str, Any]:
    made = client.post("/v3/volumes", {"volume": {"size": size, "imageRef": image, **fields}})
    assert made.status_code == 202, made.text
    return client.get(f"/v3/volumes/{made.json['volume']['id']}").json["volume"]  # type: ignore[no-any-return]


def said(client: Client, volume_id: str) -> list[str]:
    found = client.at("3.5").get("/v3/messages").json["messages"]
    return [one["user_message"] for one in found if one["resource_uuid"] == volume_id]


def file(tmp_path: pathlib.Path, disk_format: str, disk: bytes = DISK) -> bytes:
    raw, made = tmp_path / "raw", tmp_path / "made"
    raw.write_bytes(disk.ljust(8 * 2**20, b"\0"))
    subprocess.run(["qemu-img", "convert", "-O", disk_format, raw, made], check=True, timeout=60)
    return made.read_bytes()


# -- volumes from images


def test_a_raw_image_becomes_a_bootable_volume(client: Client, glance: FakeGlance, cluster: FakeCluster) -> None:
    image = glance.create(DISK, name="debian", os_distro="debian", hw_disk_bus="virtio", min_disk=1)
    for reference in (image, f"http://glance/v2/images/{image}", "debian"):
        volume = create(client, reference)
        assert (volume["status"], volume["bootable"], volume["size"]) == ("available", "true", 1)
        assert bytes_of(cluster, volume["id"]) == DISK
        metadata = volume["volume_image_metadata"]
        assert metadata["image_id"] == image
        assert metadata["image_name"] == "debian"
        assert (metadata["os_distro"], metadata["hw_disk_bus"]) == ("debian", "virtio")
        assert (metadata["disk_format"], metadata["size"], metadata["min_disk"]) == ("raw", str(len(DISK)), "1")
        assert {"owner", "visibility", "os_hash_value", "direct_url", "file", "tags"}.isdisjoint(metadata)


def test_the_older_name_of_the_field_is_taken_too(client: Client, glance: FakeGlance) -> None:
    image = glance.create(DISK)
    made = client.post("/v3/volumes", {"volume": {"size": 1, "image_id": image}})
    assert made.status_code == 202
    assert client.get(f"/v3/volumes/{made.json['volume']['id']}").json["volume"]["bootable"] == "true"


def test_without_a_size_a_volume_is_as_big_as_its_image_needs(client: Client, glance: FakeGlance) -> None:
    assert create(client, glance.create(DISK), None)["size"] == 1
    assert create(client, glance.create(DISK, min_disk=3), None)["size"] == 3
    assert create(client, glance.create(DISK, virtual_size=2 * GIB + 1), None)["size"] == 3


@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk", "vdi", "vhd", "vhdx"])
def test_other_formats_are_converted(
    client: Client, glance: FakeGlance, cluster: FakeCluster, tmp_path: pathlib.Path, disk_format: str
) -> None:
    data = file(tmp_path, {"vhd": "vpc"}.get(disk_format, disk_format))
    volume = create(client, glance.create(data, disk_format=disk_format))
    assert (volume["status"], volume["bootable"]) == ("available", "true")
    assert bytes_of(cluster, volume["id"]) == DISK


def test_an_image_in_the_same_cluster_is_cloned(client: Client, glance: FakeGlance, cluster: FakeCluster) -> None:
    image = in_rbd(glance, cluster)
    volume = create(client, image, 3)
    assert volume["status"] == "available"
    assert bytes_of(cluster, volume["id"]) == DISK
    image_id, size = cluster.stored[f"volume-{volume['id']}"]
    assert size == 3 * SMALL
    assert cluster.parents[image_id] == cluster.others["images"].stored[image][0]
    assert volume["volume_image_metadata"]["image_id"] == image


def in_rbd(glance: FakeGlance, cluster: FakeCluster, **fields: Any) -> str:
    pool = cluster.others.setdefault("images", FakeCluster(pool="images"))
    image = glance.create(DISK, **fields)
    pool.create(image, 8 * 2**20)
    pool.data[pool.stored[image][0]] = DISK.decode("latin-1")
    pool.snapshot(image, "snap")
    glance.stored[image]["direct_url"] = f"rbd://{cluster.cluster_id}/images/{image}/snap"
    return image


def test_what_cannot_be_cloned_is_copied(client: Client, glance: FakeGlance, cluster: FakeCluster) -> None:
    elsewhere, gone, foreign = (in_rbd(glance, cluster) for _ in range(3))
    glance.stored[elsewhere]["direct_url"] = f"rbd://{uuid.uuid4()}/images/{elsewhere}/snap"
    cluster.others["images"].remove_snapshot(gone, "snap")
    # Whoever may set locations must not get at somebody else's image by them.
    victim = client.volume()
    cluster.data[cluster.stored[f"volume-{victim['id']}"][0]] = "secret"
    cluster.snapshot(f"volume-{victim['id']}", "snap")
    url = f"rbd://{cluster.cluster_id}/{cluster.pool}/volume-{victim['id']}/snap"
    glance.stored[foreign] |= {"direct_url": url, "locations": [{"url": url, "metadata": {}}]}
    cluster.others[cluster.pool] = cluster
    for image in (elsewhere, gone, foreign):
        volume = create(client, image)
        assert bytes_of(cluster, volume["id"]) == DISK
        assert cluster.stored[f"volume-{volume['id']}"][0] not in cluster.parents


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({"status": "queued"}, 1, "not active"),
        ({"status": "deactivated"}, 1, "not active"),
        ({"min_disk": 2}, 1, "cannot be smaller"),
        ({"size": GIB + 1}, 1, "cannot be smaller"),
        ({"virtual_size": GIB + 1}, 1, "cannot be smaller"),
        ({"disk_format": "ploop"}, 1, "ploop is not supported"),
        ({"disk_format": None}, 1, "unknown is not supported"),
        ({"container_format": "ova"}, 1, "container"),
        ({"cinder_encryption_key_id": "x"}, 1, "encrypted"),
    ],
)
def test_what_cannot_become_a_volume_is_refused(
    client: Client, glance: FakeGlance, cluster: FakeCluster, fields: dict[str, Any], size: int, words: str
) -> None:
    image = glance.create(DISK, **fields)
    refused = client.post("/v3/volumes", {"volume": {"size": size, "imageRef": image}})
    assert refused.status_code == 400
    assert words in refused.json["badRequest"]["message"]
    assert cluster.stored == {}
    assert client.get("/v3/volumes").json["volumes"] == []


def test_unknown_images_are_refused(client: Client, glance: FakeGlance) -> None:
    glance.create(DISK, name="twice")
    glance.create(DISK, name="twice")
    for reference, status in ((str(uuid.uuid4()), 400), ("nothing", 400), ("twice", 409)):
        assert client.post("/v3/volumes", {"volume": {"size": 1, "imageRef": reference}}).status_code == status
    both = {"size": 1, "imageRef": "twice", "source_volid": str(uuid.uuid4())}
    assert client.post("/v3/volumes", {"volume": both}).status_code == 400


def test_a_reader_makes_no_volume(reader: Client, glance: FakeGlance) -> None:
    assert reader.post("/v3/volumes", {"volume": {"size": 1, "imageRef": glance.create(DISK)}}).status_code == 403


def test_a_service_without_an_image_service_says_so(client: Client, application: flask.Flask, world: World) -> None:
    application.extensions["cinderlite"].world = dataclasses.replace(world, images=None)
    volume = client.volume()["id"]
    refused = client.post("/v3/volumes", {"volume": {"size": 1, "imageRef": str(uuid.uuid4())}})
    assert (refused.status_code, "without an image service" in refused.text) == (400, True)
    for action in (
        {"os-volume_upload_image": {"image_name": "x"}},
        {"os-reimage": {"image_id": str(uuid.uuid4())}},
    ):
        assert client.at("3.68").post(f"/v3/volumes/{volume}/action", action).status_code == 400


def test_an_image_service_that_is_down_is_503_and_begins_nothing(client: Client, glance: FakeGlance) -> None:
    image = glance.create(DISK)
    glance.down = True
    assert client.post("/v3/volumes", {"volume": {"size": 1, "imageRef": image}}).status_code == 503
    assert client.get("/v3/volumes").json["volumes"] == []


def test_an_image_may_name_the_type_of_its_volumes(admin: Client, glance: FakeGlance) -> None:
    assert admin.post("/v3/types", {"volume_type": {"name": "fast"}}).status_code == 200
    image = glance.create(DISK, cinder_img_volume_type="fast")
    assert create(admin, image)["volume_type"] == "fast"
    assert create(admin, image, volume_type="__DEFAULT__")["volume_type"] == "__DEFAULT__"
    unknown = glance.create(DISK, cinder_img_volume_type="none of that name")
    assert admin.post("/v3/volumes", {"volume": {"size": 1, "imageRef": unknown}}).status_code == 404


def test_an_image_of_a_server_with_volumes_stands_for_its_snapshot(client: Client, glance: FakeGlance) -> None:
    source = client.volume()
    snapshot = client.post("/v3/snapshots", {"snapshot": {"volume_id": source["id"]}}).json["snapshot"]["id"]
    devices = [
        {"source_type": "snapshot", "boot_index": 1, "snapshot_id": str(uuid.uuid4())},
        {"source_type": "snapshot", "boot_index": 0, "snapshot_id": snapshot},
    ]
    image = glance.create(b"", block_device_mapping=json.dumps(devices))
    assert create(client.at("3.46"), image)["snapshot_id"] == snapshot
    assert create(client.at("3.45"), image)["snapshot_id"] is None
    assert reimage(client, source["id"], image).status_code == 400


# -- what goes wrong on the way


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_a_file_that_is_not_what_it_says_ends_in_error(
    client: Client, glance: FakeGlance, tmp_path: pathlib.Path, disk_format: str
) -> None:
    data = file(tmp_path, "qcow2") if disk_format == "raw" else file(tmp_path, "vdi")
    volume = create(client, glance.create(data, disk_format=disk_format))
    assert volume["status"] == "error"
    [message] = said(client, volume["id"])
    assert message.startswith("copy image to volume: Image ")
    assert "unacceptable" in message
    assert client.delete(f"/v3/volumes/{volume['id']}").status_code == 202


def test_a_wrong_hash_ends_in_error(client: Client, glance: FakeGlance) -> None:
    image = glance.create(DISK)
    glance.data[image] = DISK[:-1] + b"?"
    volume = create(client, image)
    assert volume["status"] == "error"
    assert "hash" in said(client, volume["id"])[0]


def test_a_download_that_breaks_off_is_tried_again(client: Client, glance: FakeGlance, world: World) -> None:
    glance.cut = 5 * 2**20
    volume = create(client, glance.create(DISK))
    assert volume["status"] == "downloading"
    glance.cut = None
    settle(world)
    assert client.get(f"/v3/volumes/{volume['id']}").json["volume"]["status"] == "available"


def test_a_download_that_always_breaks_off_ends_in_error(client: Client, glance: FakeGlance, world: World) -> None:
    glance.cut = 5 * 2**20
    volume = create(client, glance.create(DISK))
    assert volume["status"] == "downloading"
    settle(world)
    assert client.get(f"/v3/volumes/{volume['id']}").json["volume"]["status"] == "error"
    assert "could not be copied" in said(client, volume["id"])[0]


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_a_process_that_dies_half_way_is_finished_by_the_next(
    client: Client, glance: FakeGlance, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path, disk_format: str,
) -> None:  # fmt: skip
    image = glance.create(DISK if disk_format == "raw" else file(tmp_path, "qcow2"), disk_format=disk_format)
    left = 3

    def die() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "checkpoint", die)
        with pytest.raises(KeyboardInterrupt):
            client.post("/v3/volumes", {"volume": {"size": 1, "imageRef": image}})
    [listed] = client.get("/v3/volumes/detail").json["volumes"]
    assert listed["status"] == "downloading"
    abandon(world, listed["id"])
    settle(world)
    assert client.get(f"/v3/volumes/{listed['id']}").json["volume"]["status"] == "available"
    assert bytes_of(cluster, listed["id"]) == DISK


def abandon(world: World, volume_id: str) -> None:
    """What the death of its process does to a row."""
    with world.db.write() as session:
        row = session.get_one(models.Volume, volume_id)
        row.lease_owner, row.lease_until = None, 0.0


def test_an_image_that_is_removed_meanwhile_ends_in_error(
    client: Client, glance: FakeGlance, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = glance.create(DISK)
    with monkeypatch.context() as patched:
        patched.setattr(volumes.LIFECYCLE, "run", lambda *_: None)
        made = client.post("/v3/volumes", {"volume": {"size": 1, "imageRef": image}}).json["volume"]["id"]
    del glance.stored[image]
    abandon(world, made)
    settle(world)
    assert client.get(f"/v3/volumes/{made}").json["volume"]["status"] == "error"
    assert "Invalid image identifier" in said(client, made)[0]


# -- images of volumes


def upload(client: Client, volume_id: str, version: str = "3.1", **fields: Any) -> Any:
    body = {"os-volume_upload_image": {"image_name": "made", **fields}}
    return client.at(version).post(f"/v3/volumes/{volume_id}/action", body)


def test_a_volume_becomes_an_image(client: Client, glance: FakeGlance, cluster: FakeCluster) -> None:
    source = create(client, glance.create(DISK, os_distro="debian", os_glance_x="y", signature_verified="True"))
    answer = upload(client, source["id"], container_format="bare", disk_format="raw", protected=True)
    assert answer.status_code == 202
    said_of = answer.json["os-volume_upload_image"]
    assert said_of["status"] == "uploading"
    assert (said_of["id"], said_of["size"], said_of["display_description"]) == (source["id"], 1, None)
    assert (said_of["image_name"], said_of["disk_format"], said_of["container_format"]) == ("made", "raw", "bare")
    assert (said_of["visibility"], said_of["protected"]) == ("private", True)
    assert said_of["volume_type"]["name"] == "__DEFAULT__"
    made = glance.stored[said_of["image_id"]]
    assert (made["status"], made["size"], made["owner"]) == ("active", SMALL, PROJECT)
    assert (made["visibility"], made["protected"], made["os_distro"]) == ("private", True, "debian")
    assert {"os_glance_x", "signature_verified", "image_id", "image_name"}.isdisjoint(made)
    assert glance.data[made["id"]].rstrip(b"\0") == DISK
    assert client.get(f"/v3/volumes/{source['id']}").json["volume"]["status"] == "available"


def test_before_3_1_nothing_is_said_of_visibility(client: Client, glance: FakeGlance) -> None:
    volume = client.volume()
    answer = upload(client, volume["id"], "3.0").json["os-volume_upload_image"]
    assert {"visibility", "protected"}.isdisjoint(answer)
    assert glance.stored[answer["image_id"]]["visibility"] == "shared"
    assert upload(client, volume["id"], "3.0", visibility="private").status_code == 400


@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk", "vdi", "vhd", "vhdx", "ploop"])
def test_an_image_is_converted(
    client: Client, glance: FakeGlance, cluster: FakeCluster, tmp_path: pathlib.Path, disk_format: str
) -> None:
    source = client.volume()["id"]
    cluster.data[cluster.stored[f"volume-{source}"][0]] = DISK.decode("latin-1")
    image = upload(client, source, disk_format=disk_format).json["os-volume_upload_image"]["image_id"]
    made = tmp_path / "image"
    made.write_bytes(glance.data[image])
    name = {"vhd": "vpc", "ploop": "parallels"}.get(disk_format, disk_format)
    words = ["qemu-img", "info", "--output=json", "-f", name, str(made)]
    found = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)
    assert (found["format"], found["virtual-size"]) == (name, SMALL)
    assert glance.stored[image]["disk_format"] == disk_format


def test_only_some_may_upload(
    client: Client, reader: Client, stranger: Client, admin: Client, glance: FakeGlance
) -> None:
    volume = client.volume()["id"]
    assert upload(reader, volume).status_code == 403
    assert upload(stranger, volume).status_code == 404
    assert upload(client, volume, visibility="public").status_code == 403
    assert glance.stored == {}
    assert upload(admin, volume, visibility="public").status_code == 202


@pytest.mark.parametrize(
    "fields",
    [
        {"image_name": ""}, {"image_name": None}, {"image_name": "x" * 256}, {"disk_format": "qcow"}, {"force": "perhaps"},
        {"visibility": "secret"}, {"protected": "perhaps"}, {"unknown": 1}, {"container_format": "compressed"},
    ],
)  # fmt: skip
def test_uploads_that_are_not_well_formed_are_refused(
    client: Client, glance: FakeGlance, fields: dict[str, Any]
) -> None:
    volume = client.volume()["id"]
    assert upload(client, volume, **fields).status_code == 400
    assert glance.stored == {}
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def in_use(world: World, volume_id: str, status: str = "in-use") -> None:
    with world.db.write() as session:
        session.get_one(models.Volume, volume_id).status = status


def test_a_volume_in_use_needs_force(client: Client, glance: FakeGlance, world: World, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    cluster.data[cluster.stored[f"volume-{volume}"][0]] = "data"
    in_use(world, volume)
    assert upload(client, volume).status_code == 400
    assert glance.stored == {}
    image = upload(client, volume, force=True).json["os-volume_upload_image"]["image_id"]
    assert glance.data[image].rstrip(b"\0") == b"data"
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"
    assert cluster.snapshots(f"volume-{volume}") == []
    in_use(world, volume, "error")
    assert upload(client, volume, force=True).status_code == 400


def test_an_upload_that_fails_leaves_no_image(client: Client, glance: FakeGlance, cluster: FakeCluster) -> None:
    volume = client.volume()["id"]
    glance.full = True
    assert upload(client, volume).status_code == 202
    assert glance.stored == {}
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    assert said(client, volume)[0].startswith("copy volume to image: The image service refuses: 413")


def test_an_image_service_that_refuses_the_image_changes_nothing(
    client: Client, glance: FakeGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    taken = glance.create(b"")
    monkeypatch.setattr(models, "new_id", lambda: taken)
    assert upload(client, volume).status_code == 400
    monkeypatch.undo()
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    assert glance.stored[taken]["status"] == "active"
    glance.down = True
    assert upload(client, volume).status_code == 503
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_an_upload_that_dies_half_way_is_finished_by_the_next(
    client: Client, glance: FakeGlance, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch,
    disk_format: str,
) -> None:  # fmt: skip
    volume = client.volume()["id"]
    cluster.data[cluster.stored[f"volume-{volume}"][0]] = DISK.decode("latin-1")
    in_use(world, volume)
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "checkpoint", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            upload(client, volume, force=True, disk_format=disk_format)
    [image] = glance.stored.values()
    assert image["status"] == "queued"
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "uploading"
    abandon(world, volume)
    settle(world)
    assert image["status"] == "active"
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "in-use"
    assert cluster.snapshots(f"volume-{volume}") == []


def test_an_upload_whose_image_is_gone_gives_the_volume_back(
    client: Client, glance: FakeGlance, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    with monkeypatch.context() as patched:
        patched.setattr(volumes.LIFECYCLE, "run", lambda *_: None)
        upload(client, volume)
    glance.stored.clear()
    abandon(world, volume)
    settle(world)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"
    assert said(client, volume)


def test_a_volume_that_is_being_uploaded_can_do_nothing_else(
    client: Client, glance: FakeGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = client.volume()["id"]
    monkeypatch.setattr(volumes.LIFECYCLE, "run", lambda *_: None)
    assert upload(client, volume).status_code == 202
    assert upload(client, volume).status_code == 400
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    assert len(glance.stored) == 1


# -- images over volumes


def reimage(client: Client, volume_id: str, image: str, version: str = "3.68", **fields: Any) -> Any:
    body = {"os-reimage": {"image_id": image, **fields}}
    return client.at(version).post(f"/v3/volumes/{volume_id}/action", body)


def test_an_image_is_written_over_a_volume(
    client: Client, glance: FakeGlance, cluster: FakeCluster, tmp_path: pathlib.Path
) -> None:
    volume = create(client, glance.create(b"old" * 2**20 * 4, os_distro="debian"))["id"]
    for data, fields in ((DISK, {}), (file(tmp_path, "qcow2", b"other"), {"disk_format": "qcow2"})):
        image = glance.create(data, name="new", os_version="12", **fields)
        assert reimage(client, volume, image).status_code == 202
        shown = client.get(f"/v3/volumes/{volume}").json["volume"]
        assert (shown["status"], shown["bootable"]) == ("available", "true")
        assert shown["volume_image_metadata"]["image_id"] == image
        assert "os_distro" not in shown["volume_image_metadata"]
        assert bytes_of(cluster, volume) == (b"other" if fields else DISK)


def test_reimage_asks_for_the_right_state(
    client: Client, stranger: Client, reader: Client, glance: FakeGlance, world: World, cluster: FakeCluster
) -> None:
    image, volume = glance.create(DISK), client.volume()["id"]
    assert reimage(client, volume, image, "3.67").status_code == 404
    assert reimage(stranger, volume, image).status_code == 404
    assert reimage(reader, volume, image).status_code == 403
    assert reimage(client, volume, "no id").status_code == 400
    assert reimage(client, volume, str(uuid.uuid4())).status_code == 400
    assert reimage(client, volume, glance.create(DISK, min_disk=2)).status_code == 400
    assert reimage(client, volume, glance.create(DISK, status="queued")).status_code == 400
    for status, expected in (("in-use", 400), ("reserved", 400), ("error", 202)):
        in_use(world, volume, status)
        assert reimage(client, volume, image).status_code == expected
        assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == status
    in_use(world, volume, "reserved")
    assert reimage(client, volume, image, reimage_reserved=True).status_code == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "reserved"
    assert bytes_of(cluster, volume) == DISK


def test_an_encrypted_volume_is_neither_uploaded_nor_reimaged(client: Client, glance: FakeGlance, world: World) -> None:
    volume, image = client.volume()["id"], glance.create(DISK)
    with world.db.write() as session:
        session.get_one(models.Volume, volume).encryption_key_id = str(uuid.uuid4())
    assert upload(client, volume).status_code == 400
    assert reimage(client, volume, image).status_code == 400
    assert list(glance.stored) == [image]


def test_a_volume_of_several_servers_is_not_reimaged(client: Client, glance: FakeGlance, world: World) -> None:
    volume = client.volume()["id"]
    with world.db.write() as session:
        for _ in range(2):
            session.add(models.Attachment(volume_id=volume, project_id=PROJECT, status="reserved"))
    assert reimage(client, volume, glance.create(DISK)).status_code == 409


def test_a_reimage_that_fails_ends_in_error_and_can_be_done_again(
    client: Client, glance: FakeGlance, cluster: FakeCluster
) -> None:
    volume = client.volume()["id"]
    wrong = glance.create(DISK)
    glance.data[wrong] = b"wrong"
    assert reimage(client, volume, wrong).status_code == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "error"
    assert said(client, volume)[0].startswith("reimage volume: ")
    del cluster.stored[f"volume-{volume}"]
    assert reimage(client, volume, glance.create(DISK)).status_code == 202
    assert bytes_of(cluster, volume) == DISK


def test_a_reimage_that_dies_half_way_is_finished_by_the_next(
    client: Client, glance: FakeGlance, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = create(client, glance.create(b"old" * 2**20 * 4))["id"]
    image = glance.create(DISK)
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "checkpoint", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reimage(client, volume, image)
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "downloading"
    abandon(world, volume)
    settle(world)
    shown = client.get(f"/v3/volumes/{volume}").json["volume"]
    assert (shown["status"], shown["volume_image_metadata"]["image_id"]) == ("available", image)
    assert bytes_of(cluster, volume) == DISK


# -- who asks


@pytest.fixture
def with_tokens(application: flask.Flask, glance: FakeGlance) -> Client:
    """Somebody whose token the image service knows, while it does not know the service."""
    glance.tokens = {"of-alice"}
    client = _client(application, PROJECT, "member,reader", "alice")
    edge = application.extensions["cinderlite"]
    known = edge._strategy
    edge._strategy = lambda environ: dataclasses.replace(known(environ), token=environ.get("HTTP_X_AUTH_TOKEN"))
    return client.with_headers(X_Auth_Token="of-alice")


def test_the_caller_is_asked_for_with_his_own_token(
    with_tokens: Client, glance: FakeGlance, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    volume = create(with_tokens, glance.create(DISK))
    assert volume["status"] == "available"
    answer = upload(with_tokens, volume["id"])
    image = answer.json["os-volume_upload_image"]["image_id"]
    assert glance.stored[image]["owner"] is None  # Whose it is says the token.
    assert set(glance.seen) == {"of-alice"}
    assert "of-alice" not in caplog.text


def test_a_token_that_lapsed_or_was_lost_is_replaced_by_the_service(
    with_tokens: Client, glance: FakeGlance, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = glance.create(DISK)
    with monkeypatch.context() as patched:
        patched.setattr(volumes.LIFECYCLE, "run", lambda *_: None)
        made = with_tokens.post("/v3/volumes", {"volume": {"size": 1, "imageRef": image}}).json["volume"]["id"]
    with world.db.read() as session:
        assert "of-alice" not in json.dumps(session.get_one(models.Volume, made).intent)
    glance.tokens = {"notused"}  # keystoneauth's word of those who do not log in, such as the service here.
    abandon(world, made)
    settle(world)
    assert with_tokens.get(f"/v3/volumes/{made}").json["volume"]["status"] == "available"


def test_a_caller_whom_the_image_service_does_not_know_gets_nothing_of_it(
    with_tokens: Client, glance: FakeGlance
) -> None:
    volume = with_tokens.volume()["id"]
    image = glance.create(DISK)
    glance.tokens = {"of-alice", "notused"}
    stranger = with_tokens.with_headers(X_Auth_Token="of-bob")
    assert stranger.post("/v3/volumes", {"volume": {"size": 1, "imageRef": image}}).status_code == 503
    assert upload(stranger, volume).status_code == 503
    assert list(glance.stored) == [image]
    assert "notused" not in glance.seen


def test_without_tokens_projects_see_their_own_images_and_those_for_all(
    client: Client, stranger: Client, admin: Client, glance: FakeGlance
) -> None:
    for visibility, others in (("private", 400), ("shared", 400), ("public", 202), ("community", 202)):
        image = glance.create(DISK, owner=PROJECT, visibility=visibility, name=visibility)
        glance.create(DISK, owner=str(uuid.uuid4()), visibility="private", name=visibility)
        for reference in (image, visibility):
            body = {"volume": {"size": 1, "imageRef": reference}}
            assert client.post("/v3/volumes", body).status_code == 202
            assert stranger.post("/v3/volumes", body).status_code == others
    hidden = glance.create(DISK, owner=OTHER, visibility="private")
    assert admin.post("/v3/volumes", {"volume": {"size": 1, "imageRef": hidden}}).status_code == 202


# -- images that are kept


INTERNAL = "cccccccc33334333833333333333cccc"
CACHE = {
    "cinder_internal_tenant_project_id": INTERNAL,
    "cinder_internal_tenant_user_id": "cinderlite",
    "ceph__image_volume_cache_enabled": True,
}
kept = pytest.mark.parametrize("conf", [CACHE], indirect=True)


def entries(world: World) -> list[models.Volume]:
    with world.db.read() as session:
        query = select(models.Volume).where(models.Volume.project_id == INTERNAL, models.Volume.deleted.is_(False))
        return list(session.scalars(query.order_by(models.Volume.created_at)))


@kept
def test_the_second_volume_of_an_image_is_a_clone(
    client: Client, stranger: Client, glance: FakeGlance, world: World, cluster: FakeCluster, tmp_path: pathlib.Path
) -> None:
    image = glance.create(file(tmp_path, "qcow2"), disk_format="qcow2", visibility="public", os_distro="debian")
    first = create(client, image, 3)["id"]
    [entry] = entries(world)
    assert (entry.status, entry.size, entry.name) == ("available", 1, f"image-{image}")
    assert cluster.stored[entry.image][1] == SMALL
    assert cluster.snapshots(f"volume-{first}") == []
    cluster.data[cluster.stored[f"volume-{first}"][0]] = "what its owner wrote"
    del glance.data[image]
    for asker, size in ((client, 1), (stranger, 2)):
        second = create(asker, image, size)
        assert (second["status"], second["bootable"]) == ("available", "true")
        assert second["volume_image_metadata"]["os_distro"] == "debian"
        assert bytes_of(cluster, second["id"]) == DISK
        made, size_bytes = cluster.stored[f"volume-{second['id']}"]
        assert (cluster.parents[made], size_bytes) == (cluster.stored[entry.image][0], size * SMALL)
    assert [one.id for one in entries(world)] == [entry.id]
    assert len(cluster.snapshots(entry.image)) == 1
    assert {one["id"] for one in client.get("/v3/volumes").json["volumes"]}.isdisjoint({entry.id})


@kept
def test_who_may_not_see_an_image_gets_nothing_from_the_cache(
    client: Client, stranger: Client, glance: FakeGlance, world: World
) -> None:
    image = glance.create(DISK, owner=PROJECT, visibility="private")
    create(client, image)
    assert len(entries(world)) == 1
    assert stranger.post("/v3/volumes", {"volume": {"size": 1, "imageRef": image}}).status_code == 400


@pytest.mark.parametrize(
    "conf",
    [{**CACHE, "ceph__image_volume_cache_max_count": 2}, {**CACHE, "ceph__image_volume_cache_max_size_gb": 2}],
    indirect=True,
)
def test_what_was_not_used_for_longest_goes(
    client: Client, glance: FakeGlance, world: World, cluster: FakeCluster
) -> None:
    one, two, three = (glance.create(DISK + letter) for letter in (b"1", b"2", b"3"))
    for image in (one, two, one, three):
        volume = create(client, image)
        assert volume["status"] == "available"
    assert {entry.name for entry in entries(world)} == {f"image-{one}", f"image-{three}"}
    big = glance.create(DISK, min_disk=3)
    assert create(client, big, 3)["status"] == "available"
    assert (f"image-{big}" in {entry.name for entry in entries(world)}) == (
        not world.backends["ceph"].image_cache.max_gib  # type: ignore[union-attr]
    )


@kept
def test_an_entry_goes_with_its_snapshot_and_is_nothing_to_audit(
    client: Client, admin: Client, glance: FakeGlance, world: World, cluster: FakeCluster
) -> None:
    create(client, glance.create(DISK))
    [entry] = entries(world)
    assert list(audit.audit(world)) == []
    assert admin.delete(f"/v3/volumes/{entry.id}").status_code == 202
    settle(world)
    assert (entries(world), cluster.bin, entry.image in cluster.stored) == ([], {}, False)


@kept
def test_an_entry_that_is_bigger_than_glance_knew_is_only_for_volumes_of_its_size(
    client: Client, glance: FakeGlance, world: World, cluster: FakeCluster, tmp_path: pathlib.Path
) -> None:
    image = glance.create(file(tmp_path, "qcow2", DISK.ljust(SMALL + 5, b"x")), disk_format="qcow2")
    create(client, image, 2)
    [entry] = entries(world)
    assert entry.size == 2
    body = {"volume": {"size": 1, "imageRef": image}}
    small = client.post("/v3/volumes", body).json["volume"]["id"]
    assert client.get(f"/v3/volumes/{small}").json["volume"]["status"] == "error"
    made = cluster.stored[f"volume-{create(client, image, 2)['id']}"][0]
    assert cluster.parents[made] == cluster.stored[entry.image][0]


@kept
def test_an_entry_that_is_gone_is_no_harm(
    client: Client, glance: FakeGlance, world: World, cluster: FakeCluster
) -> None:
    image = glance.create(DISK)
    create(client, image)
    [entry] = entries(world)
    del cluster.stored[entry.image]
    again = create(client, image)
    assert (again["status"], bytes_of(cluster, again["id"])) == ("available", DISK)


@kept
def test_a_cache_that_fails_does_not_fail_the_volume(
    client: Client, glance: FakeGlance, world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **_named: Any) -> None:
        raise errors.CephError("no clones today")

    image = glance.create(DISK)
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "clone", broken)
        volume = create(client, image)
    assert (volume["status"], bytes_of(cluster, volume["id"])) == ("available", DISK)
    assert entries(world) == []
    assert create(client, image)["status"] == "available"
    assert len(entries(world)) == 1


def test_without_a_project_of_its_own_the_service_keeps_nothing(
    client: Client, glance: FakeGlance, cluster: FakeCluster
) -> None:
    create(client, glance.create(DISK))
    assert len(cluster.stored) == 1
