# SPDX-License-Identifier: Apache-2.0
"""Volumes of encrypted types: what their images begin with, who is given what opens them, and where their keys end."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
from typing import Any

import flask
import pytest
from sqlalchemy import select

from cinderlite import errors
from cinderlite.context import World
from cinderlite.core import undelete, volumes
from cinderlite.core.keys import OwnKeys
from cinderlite.db import models
from cinderlite.keys import luks
from conftest import PROJECT, Client, settle
from fakes_cluster import FakeCluster
from fakes_glance import FakeGlance
from fakes_hypervisor import FakeHypervisor

LUKS = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}
GIB = 2**30
CACHE = {
    "ceph__image_volume_cache_enabled": True,
    "cinder_internal_tenant_project_id": "cache",
    "cinder_internal_tenant_user_id": "cache",
}


class Killed(BaseException):
    """What a step that is cut off raises."""


def make_type(admin: Client, name: str, encryption: dict[str, Any] | None = None, **specs: str) -> None:
    body = {"volume_type": {"name": name, "extra_specs": specs}}
    url = f"/v3/types/{admin.post('/v3/types', body).json['volume_type']['id']}/encryption"
    if encryption is not None:
        assert admin.post(url, {"encryption": encryption}).status_code == 200


@pytest.fixture(autouse=True)
def gold(admin: Client) -> None:
    """A type whose volumes are encrypted, beside one whose volumes are not."""
    make_type(admin, "gold", LUKS)
    make_type(admin, "plain")


@pytest.fixture
def volume(client: Client) -> str:
    """The id of an encrypted volume."""
    made = client.volume(volume_type="gold")
    assert made["status"] == "available"
    return str(made["id"])


def keys(world: World) -> set[str]:
    """The ids of all keys."""
    with world.db.read() as session:
        return set(session.scalars(select(models.EncryptionKey.id)))


def key_of(world: World, row_id: str, model: Any = models.Volume) -> str:
    with world.db.read() as session:
        return str(session.get_one(model, row_id).encryption_key_id)


def secret(world: World, row_id: str, model: Any = models.Volume) -> bytes:
    assert world.keys is not None
    return world.keys.secret(key_of(world, row_id, model))


def head(cluster: FakeCluster, volume_id: str) -> bytes:
    with cluster.opened(f"volume-{volume_id}") as image:
        return image.read(0, 8192)


def opens(world: World, cluster: FakeCluster, volume_id: str, *others: bytes) -> list[bool]:
    """Whether a volume's own secret opens its image, and whether others do."""
    with cluster.opened(f"volume-{volume_id}") as image:
        start = image.read(0, luks.DATA_OFFSET)
    return [luks.opens(start, one.hex().encode()) for one in (secret(world, volume_id), *others)]


def act(client: Client, volume_id: str, **action: Any) -> Any:
    [(name, body)] = action.items()
    return client.post(f"/v3/volumes/{volume_id}/action", {name.replace("__", "-"): body})


def attach(client: Client, world: World, volume_id: str, *, project: str = PROJECT) -> tuple[str, Any]:
    """The server, and the answer."""
    assert isinstance(world.guests, FakeHypervisor)
    server = world.guests.add_server("vm", project).id
    path = f"/v2.1/servers/{server}/os-volume_attachments"
    return server, client.post(path, {"volumeAttachment": {"volumeId": volume_id}})


def test_the_image_begins_with_a_header_and_is_as_much_larger(
    client: Client, cluster: FakeCluster, world: World, volume: str
) -> None:
    assert cluster.stored[f"volume-{volume}"][1] == GIB + luks.DATA_OFFSET
    assert head(cluster, volume).startswith(b"LUKS\xba\xbe\0\1aes\0")
    assert secret(world, volume).hex() not in cluster.data[cluster.stored[f"volume-{volume}"][0]]
    shown = client.at("3.64").get(f"/v3/volumes/{volume}").json["volume"]
    assert (shown["encrypted"], shown["size"], shown["encryption_key_id"]) == (True, 1, key_of(world, volume))
    assert client.get(f"/v3/volumes/{volume}/encryption").json == {"encryption_key_id": key_of(world, volume), **LUKS}


def test_two_volumes_have_nothing_in_common(client: Client, cluster: FakeCluster, world: World, volume: str) -> None:
    other = client.volume(volume_type="gold")["id"]
    assert secret(world, other) != secret(world, volume)
    assert head(cluster, other) != head(cluster, volume)
    assert len(secret(world, volume)) == 32


def test_a_volume_is_encrypted_from_the_first_answer_on(client: Client) -> None:
    wanted = {"volume": {"size": 1, "volume_type": "gold"}}
    assert client.post("/v3/volumes", wanted).json["volume"]["encrypted"] is True
    assert client.post("/v3/volumes", {"volume": {"size": 1}}).json["volume"]["encrypted"] is False


def test_a_plain_volume_has_neither_header_nor_key(client: Client, cluster: FakeCluster, world: World) -> None:
    made = client.volume(volume_type="plain")["id"]
    assert cluster.stored[f"volume-{made}"][1] == GIB
    assert head(cluster, made) == bytes(8192)
    assert keys(world) == set()


def test_without_a_key_store_there_are_no_encrypted_volumes(
    client: Client, application: flask.Flask, cluster: FakeCluster, world: World
) -> None:
    application.extensions["cinderlite"].world = dataclasses.replace(world, keys=None)
    answer = client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "gold"}})
    assert (answer.status_code, "key store" in answer.text) == (400, True)
    assert client.volume(volume_type="plain")["status"] == "available"
    assert len(cluster.stored) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"provider": "luks2"}, "luks2"), ({"provider": "nova.volume.encryptors.nop.NoOpEncryptor"}, "NoOp"),
        ({"cipher": "serpent-xts-plain64"}, "serpent"), ({"key_size": 1}, "1 bits"),
        ({"control_location": "back-end"}, "back end"),
    ],
)  # fmt: skip
def test_an_encryption_that_nobody_can_make_is_refused(
    client: Client, admin: Client, world: World, change: dict[str, Any], reason: str
) -> None:
    make_type(admin, "strange", {**LUKS, **change})
    answer = client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "strange"}})
    assert (answer.status_code, reason in answer.text) == (400, True)
    assert keys(world) == set()


def test_an_encryption_that_leaves_things_open_and_one_of_old_are_taken(client: Client, admin: Client) -> None:
    make_type(admin, "short", {"provider": "luks", "control_location": "front-end"})
    old = "nova.volume.encryptors.luks.LuksEncryptor"
    make_type(admin, "old", {**LUKS, "provider": old, "key_size": 512})
    assert client.volume(volume_type="short")["encrypted"] is True
    made = client.volume(volume_type="old")
    assert made["encrypted"] is True
    assert client.get(f"/v3/volumes/{made['id']}/encryption").json["provider"] == old


def test_encrypted_volumes_are_not_for_several_servers(client: Client, admin: Client, volume: str) -> None:
    make_type(admin, "shared", LUKS, multiattach="<is> True")
    answer = client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "shared"}})
    assert (answer.status_code, "Multiattach" in answer.text) == (400, True)
    assert act(client, volume, os__retype={"new_type": "shared"}).status_code == 400


def test_a_server_is_given_what_opens_the_volume_and_nobody_else_is(
    client: Client, admin: Client, hypervisor: FakeHypervisor, world: World, volume: str, caplog: Any
) -> None:
    server, answer = attach(client, world, volume)
    assert answer.status_code == 200
    [disk] = hypervisor.guests[server].held.values()
    words = secret(world, volume).hex()
    assert disk.passphrase == words
    assert words not in repr(disk)
    shown = [
        client.at("3.71").get(path).text
        for path in (f"/v3/volumes/{volume}", f"/v3/volumes/{volume}/encryption", f"/v2.1/servers/{server}")
    ]
    assert words not in "".join([*shown, answer.text, admin.at("3.71").get("/v3/attachments/detail").text, caplog.text])
    plain = client.volume()["id"]
    other, _ = attach(client, world, plain)
    assert [disk.passphrase for disk in hypervisor.guests[other].held.values()] == [None]


def test_a_server_that_was_started_anew_gets_it_again(
    client: Client, hypervisor: FakeHypervisor, world: World, volume: str
) -> None:
    server, _ = attach(client, world, volume)
    [disk] = hypervisor.guests[server].held.values()
    hypervisor.guests[server].held.clear()
    settle(world)
    assert hypervisor.guests[server].held == {volume: disk}


def test_a_volume_whose_key_is_gone_is_not_attached(
    client: Client, hypervisor: FakeHypervisor, world: World, volume: str
) -> None:
    assert world.keys is not None
    world.keys.forget(key_of(world, volume))
    server, answer = attach(client, world, volume)
    assert (answer.status_code, "no encryption key" in answer.text) == (409, True)
    assert hypervisor.guests[server].held == {}
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


class Closed(OwnKeys):
    """A store that does not answer."""

    def secret(self, key_id: str) -> bytes:
        raise errors.KeyStoreUnavailable(key_id)


def test_an_attach_without_the_key_store_is_undone(
    client: Client, application: flask.Flask, hypervisor: FakeHypervisor, world: World, volume: str
) -> None:
    assert isinstance(world.keys, OwnKeys)
    closed = dataclasses.replace(world, keys=Closed(world.db, world.keys._master))
    application.extensions["cinderlite"].world = closed
    server, answer = attach(client, world, volume)
    assert answer.status_code == 503
    settle(world)
    assert hypervisor.guests[server].held == {}
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["status"] == "available"


def test_a_nova_is_told_that_it_is_encrypted_and_by_which_key(nova: Client, world: World, volume: str) -> None:
    wanted = {"volume_uuid": volume, "instance_uuid": "2c6eb1b1-4a29-4d3c-9c2e-2f0d4e3a1b00"}
    made = nova.at("3.44").post("/v3/attachments", {"attachment": {**wanted, "connector": {"host": "h"}}})
    info = made.json["attachment"]["connection_info"]
    assert info["encrypted"] is True
    assert secret(world, volume).hex() not in made.text
    assert act(nova, volume, os__initialize_connection={"connector": {"host": "h"}}).json["connection_info"]["data"][
        "encrypted"
    ]


def test_the_last_key_goes_with_what_it_opens(client: Client, world: World, volume: str) -> None:
    other = client.volume(volume_type="gold")["id"]
    assert keys(world) == {key_of(world, volume), key_of(world, other)}
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world)
    assert keys(world) == {key_of(world, other)}


def test_a_volume_that_clones_still_need_has_no_key_any_more(
    client: Client, cluster: FakeCluster, world: World, volume: str
) -> None:
    clone = client.volume(source_volid=volume)["id"]
    mine = secret(world, volume)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world)
    assert cluster.bin
    assert keys(world) == {key_of(world, clone)}
    assert opens(world, cluster, clone, mine) == [True, False]


def test_a_volume_without_an_image_goes_with_its_key(
    client: Client, cluster: FakeCluster, world: World, volume: str
) -> None:
    del cluster.stored[f"volume-{volume}"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    assert keys(world) == set()


def test_a_volume_that_somebody_has_open_keeps_its_key(
    client: Client, cluster: FakeCluster, world: World, volume: str
) -> None:
    cluster.watchers[f"volume-{volume}"] = ["10.0.0.9:0/1"]
    assert client.delete(f"/v3/volumes/{volume}").status_code == 400
    assert keys(world) == {key_of(world, volume)}


def snapshot_of(client: Client, volume: str) -> str:
    answer = client.post("/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True}})
    return str(answer.json["snapshot"]["id"])


def test_clones_have_a_secret_of_their_own_and_their_parents_data(
    client: Client, cluster: FakeCluster, world: World, volume: str
) -> None:
    with cluster.opened(f"volume-{volume}", write=True) as image:
        image.write(luks.DATA_OFFSET, b"ciphertext")
    snapshot = snapshot_of(client, volume)
    clones = [client.volume(size=2, snapshot_id=snapshot)["id"], client.volume(source_volid=volume)["id"]]
    assert [cluster.stored[f"volume-{one}"][1] - luks.DATA_OFFSET for one in clones] == [2 * GIB, GIB]
    for clone in clones:
        assert opens(world, cluster, clone, secret(world, volume)) == [True, False]
        assert key_of(world, clone) != key_of(world, volume)
        with cluster.opened(f"volume-{clone}") as image:
            assert image.read(luks.DATA_OFFSET, 10) == b"ciphertext"
        assert client.get(f"/v3/volumes/{clone}").json["volume"]["encrypted"] is True
    assert opens(world, cluster, volume, *(secret(world, one) for one in clones)) == [True, False, False]
    assert client.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 202
    settle(world)
    assert len(keys(world)) == 2
    grandchild = client.volume(source_volid=clones[1])["id"]
    assert opens(world, cluster, grandchild, *(secret(world, one) for one in clones)) == [True, False, False]


def test_nothing_becomes_encrypted_or_plain_by_being_cloned(client: Client, admin: Client, volume: str) -> None:
    plain = client.volume(volume_type="plain")["id"]
    make_type(admin, "other", {**LUKS, "key_size": 128})
    make_type(admin, "same", {**LUKS, "provider": "os_brick.encryptors.luks.LuksEncryptor"})
    for source, kind in ((volume, "plain"), (plain, "gold"), (volume, "other")):
        for wanted in ({"source_volid": source}, {"snapshot_id": snapshot_of(client, source)}):
            answer = client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": kind, **wanted}})
            assert (answer.status_code, "encrypted" in answer.text) == (400, True)
    assert client.volume(source_volid=volume, volume_type="same")["status"] == "available"


def test_nothing_becomes_encrypted_or_plain_by_being_retyped(client: Client, admin: Client, volume: str) -> None:
    plain = client.volume(volume_type="plain")["id"]
    make_type(admin, "other", {**LUKS, "key_size": 128})
    make_type(admin, "same", LUKS)
    for source, kind in ((volume, "plain"), (plain, "gold"), (volume, "other")):
        answer = act(client, source, os__retype={"new_type": kind, "migration_policy": "on-demand"})
        assert (answer.status_code, "encryption" in answer.text) == (400, True)
    assert act(client, volume, os__retype={"new_type": "same"}).status_code == 202
    assert client.get(f"/v3/volumes/{volume}").json["volume"]["volume_type"] == "same"


def test_it_grows_by_as_much_as_is_asked_for(
    client: Client, cluster: FakeCluster, hypervisor: FakeHypervisor, world: World, volume: str
) -> None:
    assert act(client, volume, os__extend={"new_size": 2}).status_code == 202
    assert cluster.stored[f"volume-{volume}"][1] == 2 * GIB + luks.DATA_OFFSET
    server, _ = attach(client, world, volume)
    assert act(client.at("3.42"), volume, os__extend={"new_size": 3}).status_code == 202
    assert cluster.stored[f"volume-{volume}"][1] == 3 * GIB + luks.DATA_OFFSET
    assert hypervisor.guests[server].sizes == {volume: 3 * GIB}


def test_it_goes_back_to_its_snapshot(client: Client, cluster: FakeCluster, volume: str) -> None:
    before = head(cluster, volume)
    snapshot = snapshot_of(client, volume)
    with cluster.opened(f"volume-{volume}", write=True) as image:
        image.write(0, b"lost")
    assert act(client.at("3.40"), volume, revert={"snapshot_id": snapshot}).status_code == 202
    assert head(cluster, volume) == before


def backup_of(client: Client, volume: str, **fields: Any) -> str:
    made = client.post("/v3/backups", {"backup": {"volume_id": volume, **fields}})
    assert made.status_code == 202, made.text
    return str(made.json["backup"]["id"])


def test_a_backup_has_a_key_of_its_own_and_what_is_restored_too(
    client: Client, cluster: FakeCluster, world: World, volume: str
) -> None:
    before, mine = head(cluster, volume), secret(world, volume)
    backup = backup_of(client, volume)
    shown = client.at("3.64").get(f"/v3/backups/{backup}").json["backup"]
    assert (shown["status"], shown["encryption_key_id"]) == ("available", key_of(world, backup, models.Backup))
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world)
    assert keys(world) == {shown["encryption_key_id"]}
    restored = client.post(f"/v3/backups/{backup}/restore", {"restore": {}}).json["restore"]["volume_id"]
    assert client.get(f"/v3/volumes/{restored}").json["volume"]["status"] == "available"
    assert (head(cluster, restored), secret(world, restored)) == (before, mine)
    assert cluster.stored[f"volume-{restored}"][1] == GIB + luks.DATA_OFFSET
    assert client.delete(f"/v3/backups/{backup}").status_code == 202
    assert keys(world) == {key_of(world, restored)}


def test_a_backup_is_restored_onto_any_encrypted_volume_and_no_other(
    client: Client, cluster: FakeCluster, world: World, volume: str
) -> None:
    with cluster.opened(f"volume-{volume}", write=True) as image:
        image.write(luks.DATA_OFFSET, b"ciphertext")
    backup = backup_of(client, volume)
    answer = client.post(f"/v3/backups/{backup}/restore", {"restore": {"volume_id": client.volume()["id"]}})
    assert (answer.status_code, "encrypted" in answer.text) == (400, True)
    plain = backup_of(client, client.volume()["id"])
    assert client.post(f"/v3/backups/{plain}/restore", {"restore": {"volume_id": volume}}).status_code == 400
    clone = client.volume(source_volid=volume)["id"]
    for target in (volume, clone, client.volume(volume_type="gold")["id"]):
        before = secret(world, target)
        answer = client.post(f"/v3/backups/{backup}/restore", {"restore": {"volume_id": target}})
        assert answer.status_code == 202
        assert client.get(f"/v3/volumes/{target}").json["volume"]["status"] == "available"
        assert secret(world, target) == before
        assert opens(world, cluster, target) == [True]
        with cluster.opened(f"volume-{target}") as image:
            assert image.read(luks.DATA_OFFSET, 10) == b"ciphertext"


def test_its_record_carries_the_key(
    client: Client, admin: Client, vault: FakeCluster, world: World, volume: str
) -> None:
    backup = backup_of(client, volume)
    record = admin.get(f"/v3/backups/{backup}/export_record").json["backup-record"]
    key = key_of(world, backup, models.Backup)
    with world.db.write() as session:  # As another service sees it, which has the same key store.
        session.delete(session.get_one(models.Backup, backup))
    assert admin.post("/v3/backups/import_record", {"backup-record": record}).status_code == 201
    assert client.at("3.64").get(f"/v3/backups/{backup}").json["backup"]["encryption_key_id"] == key
    assert vault.stored


def test_a_transfer_takes_the_key_along(client: Client, stranger: Client, world: World, volume: str) -> None:
    offer = client.at("3.70").post("/v3/volume-transfers", {"transfer": {"volume_id": volume}}).json["transfer"]
    path = f"/v3/volume-transfers/{offer['id']}/accept"
    assert stranger.at("3.70").post(path, {"accept": {"auth_key": offer["auth_key"]}}).status_code == 202
    assert isinstance(world.guests, FakeHypervisor)
    server, answer = attach(stranger, world, volume, project="bbbbbbbb22224222822222222222bbbb")
    assert answer.status_code == 200
    assert world.guests.guests[server].held[volume].passphrase == secret(world, volume).hex()


def test_what_is_not_ours_to_hand_on_stays(client: Client, admin: Client, cluster: FakeCluster, volume: str) -> None:
    assert act(admin, volume, os__unmanage={}).status_code == 400
    cluster.create("found", GIB)
    body = {"volume": {"host": "testhost@ceph#ceph", "ref": {"source-name": "found"}, "volume_type": "gold"}}
    answer = admin.post("/v3/os-volume-manage", body)
    assert (answer.status_code, "encrypted" in answer.text) == (400, True)
    assert "found" in cluster.stored


def test_a_snapshot_that_is_taken_over_is_as_big_as_its_volume(
    admin: Client, cluster: FakeCluster, volume: str
) -> None:
    cluster.snapshot(f"volume-{volume}", "by-hand")
    listed = admin.at("3.8").get("/v3/manageable_snapshots?host=testhost@ceph").json["manageable-snapshots"]
    assert [one["size"] for one in listed] == [1]
    body = {"snapshot": {"volume_id": volume, "ref": {"source-name": "by-hand"}}}
    assert admin.post("/v3/os-snapshot-manage", body).json["snapshot"]["size"] == 1


def test_groups_are_made_from_groups_of_encrypted_volumes(
    client: Client, admin: Client, cluster: FakeCluster, world: World
) -> None:
    kind = admin.at("3.11").post("/v3/group_types", {"group_type": {"name": "g"}}).json["group_type"]["id"]
    types = {one["name"]: one["id"] for one in client.get("/v3/types").json["volume_types"]}
    wanted = {"group": {"group_type": kind, "volume_types": [types["gold"]]}}
    group = client.at("3.13").post("/v3/groups", wanted).json["group"]["id"]
    member = client.at("3.13").volume(volume_type="gold", group_id=group)["id"]
    made = client.at("3.14").post("/v3/groups/action", {"create-from-src": {"name": "copy", "source_group_id": group}})
    assert made.status_code == 202, made.text
    settle(world)
    copies = client.at("3.13").get(f"/v3/volumes/detail?group_id={made.json['group']['id']}").json["volumes"]
    [copy] = copies
    assert (copy["status"], copy["encrypted"]) == ("available", True)
    assert opens(world, cluster, copy["id"], secret(world, member)) == [True, False]


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_a_volume_from_an_image_is_encrypted(
    client: Client, glance: FakeGlance, cluster: FakeCluster, world: World, tmp_path: pathlib.Path, disk_format: str
) -> None:
    disk, made, volume = (tmp_path / name for name in ("disk", "made", "volume"))
    disk.write_bytes(b"begin" + bytes(5 * 2**20) + b"end".ljust(512))
    qemu_img("convert", "-f", "raw", "-O", disk_format, disk, made)
    image = glance.create(made.read_bytes(), disk_format=disk_format, name="debian")
    shown = client.volume(imageRef=image, volume_type="gold")
    assert (shown["status"], shown["encrypted"], shown["bootable"]) == ("available", True, "true")
    assert shown["volume_image_metadata"]["image_name"] == "debian"
    name = f"volume-{shown['id']}"
    assert cluster.stored[name][1] == GIB + luks.DATA_OFFSET
    data = cluster.data[cluster.stored[name][0]].encode("latin-1")
    assert b"begin" not in data
    volume.write_bytes(data.ljust(luks.DATA_OFFSET + 2**23, b"\0"))
    (tmp_path / "secret").write_text(secret(world, shown["id"]).hex(), encoding="ascii")
    options = ["--object", f"secret,id=s,file={tmp_path / 'secret'}", "--image-opts"]
    qemu_img("convert", *options, f"driver=luks,key-secret=s,file.filename={volume}", "-O", "raw", tmp_path / "back")
    assert (tmp_path / "back").read_bytes().startswith(disk.read_bytes())


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, timeout=60)


@pytest.mark.parametrize("conf", [CACHE], indirect=True)
def test_an_image_that_could_be_cloned_is_copied_and_not_kept(
    client: Client, glance: FakeGlance, cluster: FakeCluster
) -> None:
    image = glance.create(b"disk" * 512)
    plain = client.volume(imageRef=image)
    kept = len(cluster.stored)
    assert kept == 2
    made = client.volume(imageRef=image, volume_type="gold")
    assert (plain["status"], made["status"]) == ("available", "available")
    assert cluster.stored[f"volume-{made['id']}"][0] not in cluster.parents
    assert head(cluster, made["id"]).startswith(b"LUKS")
    assert len(cluster.stored) == kept + 1
    assert client.volume(imageRef=image)["status"] == "available"


@pytest.mark.parametrize("conf", [{"deleted_volume_retention": 3600}], indirect=True)
def test_a_volume_that_can_be_brought_back_keeps_its_key(client: Client, world: World, volume: str) -> None:
    mine = key_of(world, volume)
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    settle(world)
    assert keys(world) == {mine}
    undelete.undelete(world, volume)
    assert attach(client, world, volume)[1].status_code == 200


# -- what a crash leaves


@pytest.mark.parametrize("step", ["create", "write_head"])
def test_a_create_that_was_cut_off_is_finished_with_the_same_key(
    client: Client, cluster: FakeCluster, world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as cut:
        cut.setattr(FakeCluster, step, _die)
        with pytest.raises(Killed):
            client.post("/v3/volumes", {"volume": {"size": 1, "volume_type": "gold"}})
    [before] = keys(world)
    _orphan(world)
    settle(world)
    [made] = client.get("/v3/volumes/detail").json["volumes"]
    assert (made["status"], made["encrypted"]) == ("available", True)
    assert keys(world) == {before} == {key_of(world, made["id"])}
    assert head(cluster, made["id"]).startswith(b"LUKS")


@pytest.mark.parametrize("moment", ["clone", "write_head", "_settle"])
def test_a_clone_that_was_cut_off_is_sealed_with_the_same_key(
    client: Client, cluster: FakeCluster, world: World, volume: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    snapshot = snapshot_of(client, volume)
    with monkeypatch.context() as cut:
        cut.setattr(volumes.LIFECYCLE if moment == "_settle" else FakeCluster, moment, _die)
        with pytest.raises(Killed):
            client.post("/v3/volumes", {"volume": {"size": 1, "snapshot_id": snapshot}})
    before = keys(world)
    assert client.delete(f"/v3/volumes/{volume}?cascade=true").status_code == 400  # It may be needed again.
    _orphan(world)
    settle(world)
    [clone] = [one for one in client.get("/v3/volumes/detail").json["volumes"] if one["id"] != volume]
    assert (clone["status"], keys(world)) == ("available", before)
    assert opens(world, cluster, clone["id"], secret(world, volume)) == [True, False]


def test_a_clone_that_nothing_opens_fails(client: Client, cluster: FakeCluster, volume: str) -> None:
    with cluster.opened(f"volume-{volume}", write=True) as image:
        image.write(0, b"not a header")
    assert client.volume(source_volid=volume)["status"] == "error"


def test_a_delete_that_was_cut_off_leaves_no_key(
    client: Client, world: World, volume: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.delete(f"/v3/volumes/{volume}").status_code == 202
    with monkeypatch.context() as cut:
        cut.setattr(OwnKeys, "forget", _die)
        with pytest.raises(Killed):
            settle(world)
    assert len(keys(world)) == 1
    _orphan(world)
    settle(world)
    assert keys(world) == set()
    assert client.get(f"/v3/volumes/{volume}").status_code == 404


def test_a_create_that_fails_leaves_its_key_to_the_delete(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_words: Any) -> None:
        raise errors.CephError("no")

    with monkeypatch.context() as broken:
        broken.setattr(FakeCluster, "write_head", fail)
        made = client.volume(volume_type="gold")
    assert (made["status"], made["encrypted"], len(keys(world))) == ("error", True, 1)
    assert client.delete(f"/v3/volumes/{made['id']}").status_code == 202
    settle(world)
    assert keys(world) == set()


def _die(*_words: Any, **_more: Any) -> None:
    raise Killed


def _orphan(world: World) -> None:
    """The process that was at work is dead."""
    with world.db.write() as session:
        for row in session.scalars(select(models.Volume).where(models.Volume.busy == 1)):
            row.lease_owner = None
