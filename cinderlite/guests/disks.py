# SPDX-License-Identifier: Apache-2.0
"""Pure: which QMP commands make an RBD image a disk, which undo them, where a disk finds room, what it is called.

Nothing here talks to QEMU; `qmp` sends what is made here. Every name follows from the volume's id, so that a retry, a
detach and a recovery after a crash find the same things. The nodes from top to bottom: device → throttle filter →
(what decrypts, if the volume is encrypted) → rbd. The filter is always there, without limits at first: it cannot be
slipped under a running device later.

What a newcomer gets wrong: "the next port" is not the next *free* port, see `places`; and the device name is a guess
of what the guest's kernel will say, see `name`: the serial number is what holds.
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


def luks_node(volume_id: str) -> str:
    """The node that decrypts, between the two."""
    return f"l{short(volume_id)}"


def group(volume_id: str) -> str:
    """The throttle group of the filter."""
    return f"g{short(volume_id)}"


def secret(volume_id: str) -> str:
    """The object that holds the cephx key while the image is being opened."""
    return f"s{short(volume_id)}"


def passphrase(volume_id: str) -> str:
    """The object that holds what decrypts the volume while that is being opened."""
    return f"p{short(volume_id)}"


def volume_of(node: str) -> str:
    """The volume that a node, group or secret of ours belongs to. Raises ValueError for a name that is not ours."""
    return str(uuid.UUID(bytes=base64.b32decode(node[1:].upper() + "======")))


def volumes(peripherals: Sequence[Arguments]) -> frozenset[str]:
    """Ids of the volumes among the devices that `qom-list /machine/peripheral` gave."""
    names = (str(one["name"]) for one in peripherals)
    found = (name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    return frozenset(one for one in found if _is_uuid(one))


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def attach(disk: RbdDisk, place: Place) -> Iterator[Command]:
    """The commands that plug a disk in, in their order."""
    yield from open_image(disk)
    yield plug(disk, place)


def open_image(disk: RbdDisk) -> Iterator[Command]:
    """The commands that open the image and make the node that a device can use, wherever it will be plugged in."""
    volume = disk.volume_id
    if disk.key is not None:
        held = {"qom-type": "secret", "id": secret(volume), "format": "base64", "data": disk.key}
        yield Command("object-add", held, ("object-del", {"id": secret(volume)}))
    yield Command("blockdev-add", _rbd(disk), ("blockdev-del", {"node-name": rbd_node(volume)}))
    if disk.key is not None:
        # Whoever reaches the monitor could read the key from the object; the open node does not need it any more.
        yield Command("object-del", {"id": secret(volume)})
    if disk.passphrase is not None:
        held = {"qom-type": "secret", "id": passphrase(volume), "format": "raw", "data": disk.passphrase}
        yield Command("object-add", held, ("object-del", {"id": passphrase(volume)}))
        yield Command("blockdev-add", _luks(disk), ("blockdev-del", {"node-name": luks_node(volume)}))
        yield Command("object-del", {"id": passphrase(volume)})
    yield Command(
        "object-add", {"qom-type": "throttle-group", "id": group(volume)}, ("object-del", {"id": group(volume)})
    )
    yield Command("blockdev-add", _throttle(disk), ("blockdev-del", {"node-name": top_node(volume)}))


def plug(disk: RbdDisk, place: Place) -> Command:
    """The command that makes the open image a disk of the guest."""
    return Command("device_add", _device(disk, place))


def resize(volume_id: str, size_bytes: int) -> Command:
    """The command that shows a guest the new size. It sets the image's size too: never say less than that has."""
    return Command("block_resize", {"node-name": top_node(volume_id), "size": size_bytes})


def detach(volume_id: str) -> Iterator[Command]:
    """The commands that remove what is left of a disk whose device is gone; each may find nothing."""
    yield Command("blockdev-del", {"node-name": top_node(volume_id)})
    yield Command("blockdev-del", {"node-name": luks_node(volume_id)})
    yield Command("blockdev-del", {"node-name": rbd_node(volume_id)})
    yield Command("object-del", {"id": group(volume_id)})
    yield Command("object-del", {"id": secret(volume_id)})
    yield Command("object-del", {"id": passphrase(volume_id)})


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


def _luks(disk: RbdDisk) -> dict[str, Any]:
    return {
        "driver": "luks",
        "node-name": luks_node(disk.volume_id),
        "key-secret": passphrase(disk.volume_id),
        "file": rbd_node(disk.volume_id),
        "cache": _cache(),
        "read-only": disk.read_only,
    }


def _throttle(disk: RbdDisk) -> dict[str, Any]:
    return {
        "driver": "throttle",
        "node-name": top_node(disk.volume_id),
        "throttle-group": group(disk.volume_id),
        "file": (rbd_node if disk.passphrase is None else luks_node)(disk.volume_id),
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
    if disk.shared:
        device["share-rw"] = True
    if place.address is not None:
        device["addr"] = place.address
    return device


def places(machine: str, pci: Sequence[Arguments], peripherals: Sequence[Arguments]) -> list[Place]:
    """Where the next disk can go, best first, from `query-pci` and `qom-list /machine/peripheral`. Raises NoFreePlace.

    A PCIe root port takes one device; a second one is accepted in silence by QEMU 7.2, never seen by the guest and
    never let go. So only an *empty* port counts, and the slot is named. Whether a port or bus is made for hot-plug at
    all is not in these answers: QEMU says so when it is tried, and the next place is taken.
    """
    types = _types(peripherals)
    devices = [device for bus in pci for device in bus["devices"]]
    found = [Place("virtio-blk-pci", port, "0x0", "/dev/vd") for port in _empty_ports(devices, types)]
    if "i440fx" in machine and len({device["slot"] for device in devices if device["bus"] == 0}) < _SLOTS:
        found.append(Place("virtio-blk-pci", "pci.0", None, "/dev/vd"))
    controllers = sorted(name for name, kind in types.items() if kind.startswith("virtio-scsi-"))
    found += [Place("scsi-hd", f"{name}.0", None, "/dev/sd") for name in controllers]
    if not found:
        raise no_free_place()
    return found


def place(machine: str, pci: Sequence[Arguments], peripherals: Sequence[Arguments]) -> Place:
    """The best of `places`. Raises NoFreePlace."""
    return places(machine, pci, peripherals)[0]


def no_free_place() -> errors.NoFreePlace:
    """The error that tells what to do."""
    return errors.NoFreePlace(
        "The server has no free hot-plug port and no virtio-scsi controller. Detach a volume from it, or start it "
        "with more pcie-root-port devices or with a virtio-scsi-pci device."
    )


def _empty_ports(devices: Sequence[Arguments], types: Mapping[str, str]) -> Iterator[str]:
    for device in devices:
        is_port = types.get(device["qdev_id"]) == "pcie-root-port" and device["class_info"]["class"] == _BRIDGE
        if is_port and not device.get("pci_bridge", {}).get("devices"):
            yield device["qdev_id"]


def _types(listed: Sequence[Arguments]) -> dict[str, str]:
    """Device → driver, from what `qom-list` gave."""
    return {str(one["name"]): str(one["type"]).removeprefix("child<").removesuffix(">") for one in listed}


def foreign(kind: str, block: Sequence[Arguments], listed: Sequence[Arguments]) -> int:
    """How many disks of a kind ("/dev/vd", "/dev/sd") the guest has that are not ours.

    From `query-blockstats`, which names every device but not its driver, and from `qom-list` of /machine/peripheral
    and /machine/peripheral-anon together, which have the driver.
    """
    types = _types(listed)
    paths = (str(one.get("qdev") or "") for one in block)
    return sum(1 for path in paths if path and PREFIX not in path and _letters_of(path, types) == kind)


def _letters_of(path: str, types: Mapping[str, str]) -> str | None:
    """How Linux begins the name of a device; None for one that is no disk to it, or has names of another form."""
    if path.endswith("/virtio-backend"):
        return "/dev/vd"
    driver = types.get(path.rpartition("/")[2], "")
    return None if driver == "nvme" or driver.endswith(("-cd", "floppy")) else "/dev/sd"


def name(kind: str, taken: Collection[str], others: int) -> str:
    """The first free device name of a kind, after `others` disks that were there before: /dev/vdb, …, /dev/vdaa.

    It is what the guest's kernel chooses for a disk that is plugged in now, if the guest has let go of every name that
    is not in `taken`. It stays the answer for as long as the caller keeps it; a reboot orders the disks anew, and udev
    may do as it likes, which is why guests should look for the serial number.
    """
    candidates = (f"{kind}{letters}" for letters in _letters())
    return next(found for found in itertools.islice(candidates, others, None) if found not in taken)


def _letters() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)
