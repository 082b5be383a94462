# SPDX-License-Identifier: Apache-2.0
"""The pure part of plugging disks in: names, commands, places, device names; tables of what goes in and comes out."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.guests import RbdDisk, disks
from cinderlite.guests.disks import Place

VOLUME = "8f2c1d34-aaaa-4bbb-8ccc-0123456789ab"
KEY = "AQDsecretsecretsecretsecretsecretsecret=="
MONITORS = [("10.0.0.1", 3300), ("fd00::1", 3300)]
PORT = Place("virtio-blk-pci", "port1", "0x0", "/dev/vd")


def disk(**otherwise: Any) -> RbdDisk:
    fields: dict[str, Any] = {
        "volume_id": VOLUME, "pool": "volumes", "image": f"volume-{VOLUME}", "monitors": MONITORS, "user": "cinderlite",
        "key": KEY,
    }  # fmt: skip
    return RbdDisk(**fields | otherwise)


def arguments(one: RbdDisk, place: Place = PORT) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for command in disks.attach(one, place):
        found.setdefault(command.name, []).append(dict(command.arguments))
    return found


# -- names


def nodes(volume: str) -> list[str]:
    return [disks.rbd_node(disk(volume_id=volume)), disks.luks_node(disk(volume_id=volume))]


@pytest.mark.parametrize("make", [disks.top_node, disks.group, disks.secret, disks.job])
def test_names_are_short_start_with_a_letter_and_lead_back(make: Any) -> None:
    for volume in (VOLUME, str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1)), str(uuid.uuid4())):
        for name in (make(volume), *nodes(volume)):
            assert len(name) <= 31
            assert name[0].isalpha()
            assert name.isalnum()
            assert disks.volume_of(name) == volume


def test_names_of_one_volume_differ() -> None:
    made = {make(VOLUME) for make in (disks.top_node, disks.group, disks.secret, disks.passphrase, disks.job)}
    assert len({*made, *nodes(VOLUME)}) == 7


def test_nodes_of_the_images_of_one_volume_differ_by_where_these_are() -> None:
    places = [disk(), disk(pool="fast"), disk(cluster="another"), disk(namespace="a project")]
    assert len({disks.rbd_node(one) for one in places} | {disks.luks_node(one) for one in places}) == 8
    assert disks.base_node(disk()) == disks.rbd_node(disk())
    assert disks.base_node(disk(passphrase="x")) == disks.luks_node(disk())


@pytest.mark.parametrize("name", ["", "r", "scsi0", "libvirt-1-storage", "#block123", "rnotbase32notbase32notbase1"])
def test_a_foreign_name_leads_nowhere(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - binascii's, uuid's: which does not matter
        disks.volume_of(name)


def test_only_devices_named_after_a_volume_are_ours() -> None:
    listed = [
        {"name": "type", "type": "string"},
        {"name": "port1", "type": "child<pcie-root-port>"},
        {"name": disks.device_id(VOLUME), "type": "child<virtio-blk-pci>"},
        {"name": "volume-data", "type": "child<virtio-blk-pci>"},
        {"name": f"volume-{VOLUME.upper()}", "type": "child<virtio-blk-pci>"},
        {"name": f"x-volume-{VOLUME}", "type": "child<virtio-blk-pci>"},
    ]
    assert disks.volumes(listed) == {VOLUME}


# -- commands


def test_commands_come_in_order_and_each_step_can_be_undone() -> None:
    commands = list(disks.attach(disk(), PORT))
    assert [command.name for command in commands] == [
        "object-add", "blockdev-add", "object-del", "object-add", "blockdev-add", "device_add",
    ]  # fmt: skip
    undone = {tuple(command.undo[1].values()) for command in commands if command.undo}
    assert undone == {
        (disks.secret(VOLUME),),
        (disks.rbd_node(disk()),),
        (disks.group(VOLUME),),
        (disks.top_node(VOLUME),),
    }
    others = ["t", disks.rbd_node(disk(volume_id=str(uuid.uuid4()))), disks.top_node(VOLUME)]
    removed = list(disks.detach(VOLUME, [*nodes(VOLUME), *others, *nodes(VOLUME)]))
    assert [command.name for command in removed] == ["blockdev-del"] * 5 + ["object-del"] * 4
    # From top to bottom.
    assert [one.arguments["node-name"][0] for one in removed[:5]] == ["t", "l", "l", "r", "r"]


def test_the_key_is_gone_before_the_device_comes() -> None:
    said = [(command.name, command.arguments.get("id")) for command in disks.attach(disk(), PORT)]
    key = disks.secret(VOLUME)
    assert said.index(("object-add", key)) < said.index(("object-del", key)) < len(said) - 1


def test_the_image_is_opened_by_key_and_addresses_alone() -> None:
    rbd, throttle = arguments(disk())["blockdev-add"]
    assert rbd == {
        "driver": "rbd", "node-name": disks.rbd_node(disk()), "pool": "volumes", "image": f"volume-{VOLUME}",
        "server": [{"host": "10.0.0.1", "port": "3300"}, {"host": "fd00::1", "port": "3300"}],
        "user": "cinderlite", "key-secret": disks.secret(VOLUME), "auth-client-required": ["cephx"],
        "discard": "unmap", "cache": {"direct": True, "no-flush": False}, "read-only": False,
    }  # fmt: skip
    assert (throttle["file"], throttle["throttle-group"]) == (disks.rbd_node(disk()), disks.group(VOLUME))
    assert throttle["discard"] == "unmap"


def test_the_key_travels_as_base64_and_shows_nowhere() -> None:
    one = disk()
    secret, group = arguments(one)["object-add"]
    assert secret == {"qom-type": "secret", "id": disks.secret(VOLUME), "format": "base64", "data": KEY}
    assert (group["qom-type"], group["id"]) == ("throttle-group", disks.group(VOLUME))
    assert KEY not in repr(one)
    assert KEY not in repr(list(disks.attach(one, PORT)))


def test_limits_stand_in_the_group_from_the_start_and_a_change_names_all() -> None:
    wanted = {"total_iops_sec": 5, "read_bytes_sec_max_length": 3, "size_iops_sec": 4096}
    _, group = arguments(disk(limits=wanted))["object-add"]
    command = disks.limit(VOLUME, wanted)
    assert group["limits"] == command.arguments["value"]
    assert (command.name, command.arguments["path"]) == ("qom-set", f"/objects/{disks.group(VOLUME)}")
    said = dict(group["limits"])
    assert [said.pop(key) for key in ("iops-total", "bps-read-max-length", "iops-size")] == [5, 3, 4096]
    assert len(said) == 16
    assert all(value == (1 if key.endswith("-max-length") else 0) for key, value in said.items())


def test_a_cluster_without_logins_needs_no_secret() -> None:
    found = arguments(disk(key=None, user=None))
    rbd, _ = found["blockdev-add"]
    assert not {"user", "key-secret", "auth-client-required"} & rbd.keys()
    assert [one["qom-type"] for one in found["object-add"]] == ["throttle-group"]
    assert "object-del" not in found


def test_read_only_holds_for_both_nodes() -> None:
    assert [node["read-only"] for node in arguments(disk(read_only=True))["blockdev-add"]] == [True, True]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (PORT, {"driver": "virtio-blk-pci", "bus": "port1", "addr": "0x0"}),
        (Place("virtio-blk-pci", "pci.0", None, "/dev/vd"), {"driver": "virtio-blk-pci", "bus": "pci.0"}),
        (Place("scsi-hd", "scsi0.0", None, "/dev/sd"), {"driver": "scsi-hd", "bus": "scsi0.0"}),
    ],
)
def test_the_device(place: Place, expected: dict[str, str]) -> None:
    [device] = arguments(disk(), place)["device_add"]
    always = {"id": f"volume-{VOLUME}", "drive": disks.top_node(VOLUME), "serial": VOLUME, "write-cache": "on"}
    assert device == {**always, **expected}


# -- places


def pci(*slots: tuple[str, int, bool]) -> list[dict[str, Any]]:
    """`query-pci` of a machine with these devices: id, class, whether something sits behind it."""
    devices = []
    for slot, (name, kind, occupied) in enumerate(slots):
        device: dict[str, Any] = {"bus": 0, "slot": slot, "function": 0, "qdev_id": name, "class_info": {"class": kind}}
        if kind == 0x0604:
            device["pci_bridge"] = {"bus": {}, **({"devices": [{"slot": 0}]} if occupied else {})}
        devices.append(device)
    return [{"bus": 0, "devices": devices}]


def listed(**drivers: str) -> list[dict[str, str]]:
    return [{"name": "type", "type": "string"}] + [{"name": k, "type": f"child<{v}>"} for k, v in drivers.items()]


Q35, PC = "pc-q35-7.2-machine", "pc-i440fx-7.2-machine"
HOST = ("", 0x0600, False)
PORTS = {"p1": "pcie-root-port", "p2": "pcie-root-port", "p3": "pcie-root-port"}
SCSI = {"scsi0": "virtio-scsi-pci"}


@pytest.mark.parametrize(
    ("machine", "devices", "types", "buses"),
    [
        (Q35, [HOST, ("p1", 0x0604, False), ("p2", 0x0604, False)], PORTS, ["p1", "p2"]),
        (Q35, [HOST, ("p1", 0x0604, True), ("p2", 0x0604, False)], PORTS, ["p2"]),
        (Q35, [HOST, ("p1", 0x0604, True), ("p2", 0x0604, False), ("scsi0", 0x0100, False)], {**PORTS, **SCSI}, ["p2", "scsi0.0"]),
        (Q35, [HOST, ("p1", 0x0604, True), ("scsi0", 0x0100, False)], {**PORTS, **SCSI}, ["scsi0.0"]),
        (Q35, [HOST, ("scsi0", 0x0100, False)], {"scsi0": "virtio-scsi-pci-non-transitional"}, ["scsi0.0"]),
        (Q35, [HOST, ("b", 0x0604, False), ("scsi0", 0x0100, False)], {"b": "pcie-pci-bridge", **SCSI}, ["scsi0.0"]),
        (PC, [HOST], {}, ["pci.0"]),
        (PC, [HOST, ("scsi0", 0x0100, False)], SCSI, ["pci.0", "scsi0.0"]),
        (PC, [("", 0x0600, False)] * 32, SCSI, ["scsi0.0"]),
    ],
)  # fmt: skip
def test_places_best_first(machine: str, devices: Any, types: dict[str, str], buses: list[str]) -> None:
    found = disks.places(machine, pci(*devices), listed(**types))
    assert [place.bus for place in found] == buses
    for place in found:
        assert (place.driver == "scsi-hd") == (place.letters == "/dev/sd")
        assert place.address == ("0x0" if place.bus in PORTS else None)


@pytest.mark.parametrize(
    ("machine", "devices", "types"),
    [
        (Q35, [HOST], {}),
        (Q35, [HOST, ("p1", 0x0604, True)], PORTS),
        (Q35, [HOST, ("", 0x0604, False)], {}),
        (PC, [HOST] * 32, {}),
        ("microvm-machine", [], {}),
    ],
)
def test_no_place_names_the_remedy(machine: str, devices: Any, types: dict[str, str]) -> None:
    with pytest.raises(errors.NoFreePlace) as caught:
        disks.places(machine, pci(*devices), listed(**types))
    for word in ("pcie-root-port", "virtio-scsi-pci", "Detach"):
        assert word in str(caught.value)


# -- device names

BLOCK = [
    {"qdev": "ide"}, {"qdev": "cd"}, {"qdev": ""}, {},
    {"qdev": "/machine/peripheral-anon/device[0]"}, {"qdev": "/machine/peripheral-anon/device[1]"},
    {"qdev": "/machine/peripheral/root/virtio-backend"}, {"qdev": "/machine/peripheral-anon/device[2]/virtio-backend"},
    {"qdev": f"/machine/peripheral/volume-{VOLUME}/virtio-backend"}, {"qdev": f"volume-{VOLUME}"},
    {"qdev": "/machine/unattached/device[9]"},
]  # fmt: skip
LISTED = listed(
    **{"ide": "ide-hd", "cd": "ide-cd", "device[0]": "scsi-hd", "device[1]": "nvme", "device[2]": "virtio-blk-pci"}
)


def test_disks_that_were_there_before_are_counted_by_kind() -> None:
    assert disks.foreign("/dev/vd", BLOCK, LISTED) == 2
    assert disks.foreign("/dev/sd", BLOCK, LISTED) == 3


@pytest.mark.parametrize(
    ("kind", "taken", "others", "expected"),
    [
        ("/dev/vd", [], 0, "/dev/vda"),
        ("/dev/vd", [], 1, "/dev/vdb"),
        ("/dev/vd", ["/dev/vdb", "/dev/vdd"], 1, "/dev/vdc"),
        ("/dev/sd", ["/dev/vda"], 0, "/dev/sda"),
        ("/dev/vd", [], 25, "/dev/vdz"),
        ("/dev/vd", [], 26, "/dev/vdaa"),
        ("/dev/vd", ["/dev/vdaa"], 26, "/dev/vdab"),
        ("/dev/vd", [], 26 + 26 * 26, "/dev/vdaaa"),
    ],
)
def test_the_next_free_letter(kind: str, taken: list[str], others: int, expected: str) -> None:
    assert disks.name(kind, taken, others) == expected
