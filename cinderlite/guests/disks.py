# SPDX-License-Identifier: Apache-2.0
"""Pure: which QMP commands make an RBD image a disk, which undo them, where a disk finds room, what it is called.

Every name follows from the volume's id, so that a retry, a detach and a recovery after a crash find the same things.
The nodes from top to bottom: device → throttle filter → rbd. The filter is always there, without limits at first: it
cannot be slipped under a running device later.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import string
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from cinderlite import errors
from cinderlite.guests import RbdDisk

PREFIX = "volume-"
#: PCI class of a bridge, as `query-pci` gives it.
_BRIDGE = 0x0604
#: Slots of a conventional PCI bus.
_SLOTS = 32

Arguments = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One QMP command, and the one that undoes it if a later one fails."""

    name: str
    arguments: Arguments = dataclasses.field(repr=False)
    undo: tuple[str, Arguments] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a disk can be plugged in: a bus, and the driver that fits it. `letters` begins its name in the guest."""

    driver: str
    bus: str
    address: str | None
    letters: str


def device_id(volume_id: str) -> str:
    """The QEMU device of a volume."""
    return f"{PREFIX}{volume_id}"


def short(volume_id: str) -> str:
    """A volume's id in 26 characters: a node name may have 31, and a UUID with a letter before it has 37."""
    return base64.b32encode(uuid.UUID(volume_id).bytes).decode().rstrip("=").lower()


def rbd_node(volume_id: str) -> str:
    """The block node that opens the image."""
    return f"r{short(volume_id)}"


def top_node(volume_id: str) -> str:
    """The throttle filter above it, which the device uses."""
    return f"t{short(volume_id)}"


def group(volume_id: str) -> str:
    """The throttle group of the filter."""
    return f"g{short(volume_id)}"


def secret(volume_id: str) -> str:
    """The object that holds the cephx key while the image is being opened."""
    return f"s{short(volume_id)}"


def volumes(peripherals: Sequence[Arguments]) -> frozenset[str]:
    """Ids of the volumes among the devices that `qom-list /machine/peripheral` gave."""
    names = (str(one["name"]) for one in peripherals)
    return frozenset(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))


def attach(disk: RbdDisk, place: Place) -> Iterator[Command]:
    """The commands that plug a disk in, in their order."""
    volume = disk.volume_id
    if disk.key is not None:
        held = {"qom-type": "secret", "id": secret(volume), "format": "base64", "data": disk.key}
        yield Command("object-add", held, ("object-del", {"id": secret(volume)}))
    yield Command("blockdev-add", _rbd(disk), ("blockdev-del", {"node-name": rbd_node(volume)}))
    if disk.key is not None:
        # Whoever reaches the monitor could read the key from the object; the open node does not need it any more.
        yield Command("object-del", {"id": secret(volume)})
    yield Command(
        "object-add", {"qom-type": "throttle-group", "id": group(volume)}, ("object-del", {"id": group(volume)})
    )
    yield Command("blockdev-add", _throttle(disk), ("blockdev-del", {"node-name": top_node(volume)}))
    yield Command("device_add", _device(disk, place))


def detach(volume_id: str) -> Iterator[Command]:
    """The commands that remove what is left of a disk whose device is gone; each may find nothing."""
    yield Command("blockdev-del", {"node-name": top_node(volume_id)})
    yield Command("blockdev-del", {"node-name": rbd_node(volume_id)})
    yield Command("object-del", {"id": group(volume_id)})
    yield Command("object-del", {"id": secret(volume_id)})


def _cache() -> dict[str, bool]:
    return {"direct": True, "no-flush": False}


def _rbd(disk: RbdDisk) -> dict[str, Any]:
    node: dict[str, Any] = {
        "driver": "rbd",
        "node-name": rbd_node(disk.volume_id),
        "pool": disk.pool,
        "image": disk.image,
        "server": [{"host": host, "port": str(port)} for host, port in disk.monitors],
        "discard": "unmap",
        "cache": _cache(),
        "read-only": disk.read_only,
    }
    if disk.user is not None:
        node["user"] = disk.user
    if disk.key is not None:
        node |= {"key-secret": secret(disk.volume_id), "auth-client-required": ["cephx"]}
    return node


def _throttle(disk: RbdDisk) -> dict[str, Any]:
    return {
        "driver": "throttle",
        "node-name": top_node(disk.volume_id),
        "throttle-group": group(disk.volume_id),
        "file": rbd_node(disk.volume_id),
        "discard": "unmap",
        "cache": _cache(),
        "read-only": disk.read_only,
    }


def _device(disk: RbdDisk, place: Place) -> dict[str, Any]:
    device: dict[str, Any] = {
        "driver": place.driver,
        "id": device_id(disk.volume_id),
        "bus": place.bus,
        "drive": top_node(disk.volume_id),
        # A virtio-blk disk shows the first 20 characters of it, a SCSI one all: what a Kubernetes node looks for.
        "serial": disk.volume_id,
        "write-cache": "on",
    }
    if place.address is not None:
        device["addr"] = place.address
    return device


def place(machine: str, pci: Sequence[Arguments], peripherals: Sequence[Arguments]) -> Place:
    """Where the next disk goes, from what `query-pci` and `qom-list /machine/peripheral` gave. Raises NoFreePlace.

    A PCIe root port takes one device; a second one is accepted in silence by QEMU 7.2, never seen by the guest and
    never let go. So only an *empty* port counts, and the slot is named.
    """
    types = {str(one["name"]): str(one["type"]) for one in peripherals}
    devices = [device for bus in pci for device in bus["devices"]]
    for device in devices:
        name = device["qdev_id"]
        is_port = types.get(name) == "child<pcie-root-port>" and device["class_info"]["class"] == _BRIDGE
        if is_port and not device.get("pci_bridge", {}).get("devices"):
            return Place("virtio-blk-pci", name, "0x0", "/dev/vd")
    if "i440fx" in machine and len({device["slot"] for device in devices if device["bus"] == 0}) < _SLOTS:
        return Place("virtio-blk-pci", "pci.0", None, "/dev/vd")
    for name, kind in types.items():
        if kind == "child<virtio-scsi-pci>":
            return Place("scsi-hd", f"{name}.0", None, "/dev/sd")
    raise errors.NoFreePlace(
        "The server has no free hot-plug port and no virtio-scsi controller. Detach a volume from it, or start it "
        "with more pcie-root-port devices or with a virtio-scsi-pci device."
    )


def foreign(kind: str, block: Sequence[Arguments]) -> int:
    """How many disks of a kind ("/dev/vd", "/dev/sd") the guest has that are not ours, by `query-blockstats`."""
    paths = (str(one.get("qdev", "")) for one in block)
    theirs = [path for path in paths if path and PREFIX not in path]
    return sum(1 for path in theirs if path.endswith("/virtio-backend") == (kind == "/dev/vd"))


def name(kind: str, taken: Collection[str], others: int) -> str:
    """The first free device name of a kind, after `others` disks that were there before: /dev/vdb, …, /dev/vdaa.

    It is what the guest's kernel chooses for a disk that is plugged in now; udev rules and reboots may choose others,
    which is why guests should look for the serial number.
    """
    candidates = (f"{kind}{letters}" for letters in _letters())
    return next(found for found in itertools.islice(candidates, others, None) if found not in taken)


def _letters() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)
