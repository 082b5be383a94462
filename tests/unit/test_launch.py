# SPDX-License-Identifier: Apache-2.0
"""What a VM is started with: that it is what a hot-plug makes, where disks go, and that no key is in it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any
from xml.etree import ElementTree

import pytest

from cinderlite import errors
from cinderlite.guests import RbdDisk, Tuning, disks, domains, launch

SERVER = "0b6f3c1e-0000-4000-8000-00000000000a"
IDS = [f"8f2c1d34-aaaa-4bbb-8ccc-00000000000{number}" for number in range(4)]
DISKS = [RbdDisk(one, "volumes", f"volume-{one}", [("10.0.0.1", 6789)], "cinderlite", "a2V5") for one in IDS]
SCSI, BLOCK = Tuning(bus="virtio-scsi"), Tuning(bus="virtio-blk")


def made(*volumes: RbdDisk, buses: tuple[str, ...] = (), **more: Any) -> launch.Arguments:
    options: dict[str, Any] = {"boot": None, "directory": "/run/x", "held": {}, **more}
    return launch.arguments(SERVER, volumes, buses=buses, **options)


def said(arguments: launch.Arguments, option: str) -> list[dict[str, Any]]:
    return [
        json.loads(value) for word, value in zip(arguments.words, arguments.words[1:], strict=False) if word == option
    ]


def buses(arguments: launch.Arguments) -> list[str]:
    return [one["bus"] for one in said(arguments, "-device") if "bus" in one]


def test_it_is_what_a_hot_plug_makes() -> None:
    disk = dataclasses.replace(
        DISKS[0], passphrase="f" * 64, limits={"total_iops_sec": 7}, read_only=True, tuning=Tuning(iothread=True)
    )
    found = made(disk, buses=("port1",))
    plugged = list(disks.attach(disk, disks.Place("virtio-blk-pci", "port1", "0x0", "/dev/vd")))
    assert said(found, "-blockdev") == [one.arguments for one in plugged if one.name == "blockdev-add"]
    assert said(found, "-device") == [one.arguments for one in plugged if one.name == "device_add"]
    objects = [dict(one.arguments) for one in plugged if one.name == "object-add"]
    for one in objects:
        if one.pop("data", None):
            one["file"] = f"/run/x/{SERVER}.{one['id']}"
    assert said(found, "-object") == objects


def test_no_key_is_on_the_command_line() -> None:
    found = made(dataclasses.replace(DISKS[0], passphrase="f" * 64), DISKS[1])
    assert [one.content for one in found.secrets] == ["a2V5", "f" * 64, "a2V5"]
    assert len({one.file for one in found.secrets}) == 3
    for text in (found.line, repr(found)):
        assert "a2V5" not in text
        assert "f" * 64 not in text
    assert shlex.split(found.line) == list(found.words)


def test_the_disk_to_boot_from_says_so_and_no_other() -> None:
    devices = said(made(*DISKS[:2], buses=("port1", "port2"), boot=IDS[1]), "-device")
    assert [one.get("bootindex") for one in devices] == [None, 1]


@pytest.mark.parametrize(
    ("tunings", "named", "expected"),
    [
        ([Tuning()] * 2, ("port1", "port2"), ["port1", "port2"]),
        ([Tuning()] * 2, (), ["cinderlite.0", "cinderlite.0"]),
        ([Tuning()] * 3, ("port1", "scsi0.0"), ["port1", "scsi0.0", "scsi0.0"]),
        ([Tuning()] * 2, ("pci.0",), ["pci.0", "pci.0"]),
        ([SCSI, Tuning()], ("port1", "pci.0"), ["cinderlite.0", "port1"]),
        ([BLOCK, SCSI, BLOCK], ("scsi0.0", "port1", "pci.0"), ["port1", "scsi0.0", "pci.0"]),
    ],
)
def test_where_disks_go(tunings: list[Tuning], named: tuple[str, ...], expected: list[str]) -> None:
    found = made(
        *(dataclasses.replace(disk, tuning=one) for disk, one in zip(DISKS, tunings, strict=False)), buses=named
    )
    assert buses(found) == expected
    added = [one["id"] for one in said(found, "-device") if one["driver"] == "virtio-scsi-pci"]
    assert added == (["cinderlite"] if "cinderlite.0" in expected else [])
    drivers = {one["bus"]: one["driver"] for one in said(found, "-device") if "bus" in one}
    assert all((bus in ("scsi0.0", "cinderlite.0")) == (driver == "scsi-hd") for bus, driver in drivers.items())


def test_what_finds_no_place_or_is_no_bus_is_refused() -> None:
    with pytest.raises(errors.NoFreePlace, match=IDS[0]):
        made(dataclasses.replace(DISKS[0], tuning=BLOCK), buses=("scsi0.0",))
    for name in ("", "pcie.0", "a b", "1port", "x" * 65, 'port"1'):
        with pytest.raises(errors.InvalidInput):
            made(DISKS[0], buses=(name,))


def test_a_disk_that_is_somewhere_stays_there() -> None:
    held = {
        IDS[0]: disks.found("virtio-blk-pci", "/machine/peripheral/port1/port1", 0),
        IDS[1]: disks.found("scsi-hd", "/machine/peripheral/scsi0/scsi0.0", 3),
        IDS[2]: disks.found("virtio-blk-pci", "/machine/q35/pcie/pci.0", 0x28),
    }
    found = made(*DISKS, buses=("port1", "port2", "scsi0.0"), held=held)
    assert buses(found) == ["port1", "scsi0.0", "pci.0", "port2"]
    devices = said(found, "-device")
    assert [one.get("addr") for one in devices] == ["0x0", None, "0x5", "0x0"]
    assert devices[1]["scsi-id"] == 3


def test_xml_has_the_order_and_the_secrets() -> None:
    encrypted = dataclasses.replace(DISKS[1], passphrase="f" * 64)
    found = launch.xml(SERVER, [DISKS[0], encrypted, dataclasses.replace(DISKS[2], tuning=SCSI)], boot=IDS[0])
    parsed = [ElementTree.fromstring(one) for one in found.disks]  # noqa: S314 - our own
    assert [one.find("target").get("dev") for one in parsed] == ["vda", "vdb", "sda"]  # type: ignore[union-attr]
    assert [one.find("boot") is not None for one in parsed] == [True, False, False]
    assert [one.findtext("serial") for one in parsed] == IDS[:3]
    wanted = [domains.secret_id("ceph", SERVER, one) for one in IDS[:3]]
    wanted.insert(2, domains.secret_id("volume", SERVER, IDS[1]))
    assert [ElementTree.fromstring(one).findtext("uuid") for one, _ in found.secrets] == wanted  # noqa: S314
    assert "a2V5" not in repr(found)
    with pytest.raises(errors.GuestRefused, match="namespace"):
        launch.xml(SERVER, [dataclasses.replace(DISKS[0], namespace="p")], boot=None)
