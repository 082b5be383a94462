# SPDX-License-Identifier: Apache-2.0
"""Which commands plug a disk in, where it goes and what it is called: values in, values out."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.guests import RbdDisk, disks
from cinderlite.guests.monitor import Refused

VOLUME = "8f2c1d34-aaaa-4bbb-8ccc-0123456789ab"
DISK = RbdDisk(VOLUME, "volumes", f"volume-{VOLUME}", [("10.0.0.1", 6789), ("::1", 6789)], "cinderlite", "a2V5")


def port(name: str, *, held: bool = False) -> dict[str, Any]:
    inside = {"devices": [{"bus": 1, "slot": 0, "qdev_id": "x", "class_info": {"class": 256}}]} if held else {}
    return {"bus": 0, "slot": 1, "qdev_id": name, "class_info": {"class": 0x0604}, "pci_bridge": inside}


def peripheral(**types: str) -> list[dict[str, str]]:
    return [{"name": name, "type": f"child<{kind}>"} for name, kind in types.items()]


def test_names_fit_and_follow_from_the_id() -> None:
    names = [disks.rbd_node(DISK), disks.top_node(VOLUME), disks.group(VOLUME), disks.secret(VOLUME)]
    names += [disks.luks_node(DISK), disks.passphrase(VOLUME), disks.job(VOLUME)]
    assert len(set(names)) == 7
    for name in names:
        assert len(name) <= 31
        assert name[0].isalpha()
        assert name.isalnum()
    assert disks.volumes(peripheral(**{disks.device_id(VOLUME): "virtio-blk-pci", "port1": "pcie-root-port"})) == {
        VOLUME
    }


def test_the_key_travels_as_a_secret_that_goes_once_the_node_is_open() -> None:
    commands = list(disks.attach(DISK, disks.Place("virtio-blk-pci", "port1", "0x0", "/dev/vd")))
    assert [command.name for command in commands] == [
        "object-add", "blockdev-add", "object-del", "object-add", "blockdev-add", "device_add",
    ]  # fmt: skip
    assert commands[0].arguments == {
        "qom-type": "secret",
        "id": disks.secret(VOLUME),
        "format": "base64",
        "data": "a2V5",
    }
    assert commands[1].arguments["server"] == [{"host": "10.0.0.1", "port": "6789"}, {"host": "::1", "port": "6789"}]
    assert commands[1].arguments["cache"] == {"direct": True, "no-flush": False}
    assert commands[2].arguments == {"id": disks.secret(VOLUME)}
    assert commands[4].arguments["file"] == disks.rbd_node(DISK)
    device = commands[5].arguments
    assert (device["drive"], device["serial"], device["addr"]) == (disks.top_node(VOLUME), VOLUME, "0x0")
    assert "a2V5" not in repr(commands)
    assert "a2V5" not in repr(DISK)


def test_an_encrypted_disk_has_a_node_more_and_its_passphrase_goes_like_the_key() -> None:
    disk = dataclasses.replace(DISK, passphrase="open sesame")
    commands = list(disks.attach(disk, disks.Place("virtio-blk-pci", "port1", "0x0", "/dev/vd")))
    plain = list(disks.attach(DISK, disks.Place("virtio-blk-pci", "port1", "0x0", "/dev/vd")))
    assert commands[:3] == plain[:3]
    secret, node, gone = commands[3:6]
    assert secret.arguments["data"] == "open sesame"
    assert (node.arguments["driver"], node.arguments["file"]) == ("luks", disks.rbd_node(DISK))
    assert node.arguments["key-secret"] == secret.arguments["id"] == gone.arguments["id"]
    assert gone.name == "object-del"
    assert commands[7].arguments["file"] == disks.luks_node(disk)
    assert commands[8].arguments == plain[5].arguments
    assert "sesame" not in repr([disk, commands])
    done = [command.undo for command in commands if command.undo is not None]
    nodes = [disks.rbd_node(disk), disks.luks_node(disk), "another"]
    removed = [tuple(one.arguments.values()) for one in disks.detach(VOLUME, nodes)]
    assert {tuple(undo[1].values()) for undo in done} <= set(removed)
    assert ("another",) not in removed


def test_what_is_undone_is_what_was_done() -> None:
    for command in disks.attach(DISK, disks.Place("scsi-hd", "scsi0.0", None, "/dev/sd")):
        if command.undo is not None:
            name = command.arguments.get("node-name") or command.arguments["id"]
            assert name in command.undo[1].values()
            assert command.undo[0] == command.name.replace("add", "del")


@pytest.mark.parametrize(
    ("machine", "devices", "peripherals", "expected"),
    [
        ("pc-q35-7.2-machine", [port("p1", held=True), port("p2")], peripheral(p1="pcie-root-port", p2="pcie-root-port"), "p2"),
        ("pc-q35-7.2-machine", [port("p1", held=True)], peripheral(p1="pcie-root-port", s="virtio-scsi-pci"), "s.0"),
        ("pc-q35-7.2-machine", [port("b1")], peripheral(b1="pcie-pci-bridge", s="virtio-scsi-pci"), "s.0"),
        ("pc-i440fx-7.2-machine", [], peripheral(), "pci.0"),
        ("pc-i440fx-7.2-machine", [{"bus": 0, "slot": n, "qdev_id": "", "class_info": {"class": 1}} for n in range(32)],
         peripheral(s="virtio-scsi-pci"), "s.0"),
    ],
)  # fmt: skip
def test_a_place_is_found(machine: str, devices: list[Any], peripherals: list[Any], expected: str) -> None:
    assert disks.places(machine, [{"bus": 0, "devices": devices}], peripherals)[0].bus == expected


def test_no_place_names_the_remedy() -> None:
    with pytest.raises(errors.NoFreePlace, match=r"pcie-root-port.*virtio-scsi-pci"):
        disks.places(
            "pc-q35-7.2-machine", [{"bus": 0, "devices": [port("p", held=True)]}], peripheral(p="pcie-root-port")
        )


def test_device_names() -> None:
    taken: list[str] = []
    for _ in range(30):
        taken.append(disks.name("/dev/vd", taken, 1))
    assert taken[:2] == ["/dev/vdb", "/dev/vdc"]
    assert taken[24:27] == ["/dev/vdz", "/dev/vdaa", "/dev/vdab"]
    assert disks.name("/dev/sd", ["/dev/sda", "/dev/sdc"], 0) == "/dev/sdb"
    assert all(a != b for a, b in itertools.pairwise(taken))


@pytest.mark.parametrize(
    ("text", "under_way"),
    [
        ("Device volume-1 is already in the process of unplug", True),
        ("Hot-unplug failed: guest is busy (power indicator blinking)", True),
        ("Bus 'pcie.0' does not support hotplugging", False),
    ],
)
def test_an_unplug_that_is_under_way_is_no_refusal(text: str, *, under_way: bool) -> None:
    assert Refused("GenericError", text).says_pending is under_way
