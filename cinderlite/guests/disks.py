# SPDX-License-Identifier: Apache-2.0
"""Pure: which QMP commands make an RBD image a disk, which undo them, where a disk finds room, what it is called.

Nothing here talks to QEMU; `qmp` sends what is made here. Every name follows from the volume's id, so that a retry, a
detach and a recovery after a crash find the same things. The nodes from top to bottom: device → throttle filter →
(what decrypts, if the volume is encrypted) → rbd. The filter is always there, also without limits: it cannot be
slipped under a running device later.

While a disk is copied to another image there are two rbd nodes, and two that decrypt. So their names also tell the
pool (`base_node`): which image a guest uses is which of them is below its throttle filter, and to ask for that
QEMU need not ask Ceph.

What a newcomer gets wrong: "the next port" is not the next *free* port, see `places`; and the device name is a guess
of what the guest's kernel will say, see `name`: the serial number is what holds.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import string
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cinderlite import errors
from cinderlite.guests import RbdDisk

PREFIX = "volume-"
#: What QEMU says when an unplug is under way already: the second where the guest has a button for that (PCIe).
UNPLUGS = "in the process of unplug", "guest is busy"
#: How Cinder calls a limit → how a throttle group does.
LIMITS = {
    f"{what}_{ours}_sec{end}": f"{theirs}-{what}{end.replace('_', '-')}"
    for ours, theirs in (("iops", "iops"), ("bytes", "bps"))
    for what in ("total", "read", "write")
    for end in ("", "_max", "_max_length")
} | {"size_iops_sec": "iops-size"}
#: PCI class of a bridge, as `query-pci` gives it.
_BRIDGE = 0x0604
#: Slots of a conventional PCI bus.
_SLOTS = 32
#: Targets of a virtio-scsi controller; QEMU gives each disk one of its own.
_TARGETS = 256
#: The driver of each bus, and how Linux begins a name there.
DRIVERS = {"virtio-blk": ("virtio-blk-pci", "/dev/vd"), "virtio-scsi": ("scsi-hd", "/dev/sd")}

Arguments = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One QMP command, and the one that undoes it if a later one fails."""

    name: str
    arguments: Arguments = dataclasses.field(repr=False)
    undo: tuple[str, Arguments] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a disk can be plugged in: a bus, and the driver that fits it. `letters` begins its name in the guest.

    `address` is the slot on a PCI bus, or the id on a SCSI one; None for any.
    """

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


def _where(disk: RbdDisk) -> str:
    """Where the image is, in the four characters that a node name has left."""
    where = hashlib.sha256(f"{disk.cluster}/{disk.pool}/{disk.namespace}".encode()).digest()
    return base64.b32encode(where).decode()[:4].lower()


def rbd_node(disk: RbdDisk) -> str:
    """The block node that opens the image."""
    return f"r{short(disk.volume_id)}{_where(disk)}"


def top_node(volume_id: str) -> str:
    """The throttle filter above it, which the device uses."""
    return f"t{short(volume_id)}"


def luks_node(disk: RbdDisk) -> str:
    """The node that decrypts, between the two."""
    return f"l{short(disk.volume_id)}{_where(disk)}"


def base_node(disk: RbdDisk) -> str:
    """The node right below the throttle filter when a guest uses that image."""
    return (rbd_node if disk.passphrase is None else luks_node)(disk)


def job(volume_id: str) -> str:
    """The job that copies the disk to another image."""
    return f"m{short(volume_id)}"


def group(volume_id: str) -> str:
    """The throttle group of the filter."""
    return f"g{short(volume_id)}"


def secret(volume_id: str) -> str:
    """The object that holds the cephx key while the image is being opened."""
    return f"s{short(volume_id)}"


def iothread(volume_id: str) -> str:
    """The thread that serves it, if it has one of its own."""
    return f"i{short(volume_id)}"


def passphrase(volume_id: str) -> str:
    """The object that holds what decrypts the volume while that is being opened."""
    return f"p{short(volume_id)}"


def volume_of(node: str) -> str:
    """The volume that a node, group or secret of ours belongs to. Raises ValueError for a name that is not ours."""
    return str(uuid.UUID(bytes=base64.b32decode(node[1:27].upper() + "======")))


def volumes(peripherals: Sequence[Arguments]) -> frozenset[str]:
    """Ids of the volumes among the devices that `qom-list /machine/peripheral` gave."""
    names = (str(one["name"]) for one in peripherals)
    found = (name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    return frozenset(one for one in found if is_uuid(one))


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID as APIs write it."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def attach(disk: RbdDisk, place: Place) -> Iterator[Command]:
    """The commands that plug a disk in, in their order."""
    yield from open_image(disk)
    yield from threads(disk, place)
    yield plug(disk, place)


def open_image(disk: RbdDisk) -> Iterator[Command]:
    """The commands that open the image and make the node that a device can use, wherever it will be plugged in."""
    volume = disk.volume_id
    yield from _open_base(disk)
    limited = {"qom-type": "throttle-group", "id": group(volume), "limits": throttle(disk.limits)}
    yield Command("object-add", limited, ("object-del", {"id": group(volume)}))
    yield Command("blockdev-add", _throttle(disk), ("blockdev-del", {"node-name": top_node(volume)}))


def _open_base(disk: RbdDisk, *, sparse: bool = False) -> Iterator[Command]:
    volume = disk.volume_id
    if disk.key is not None:
        held = {"qom-type": "secret", "id": secret(volume), "format": "base64", "data": disk.key}
        yield Command("object-add", held, ("object-del", {"id": secret(volume)}))
    yield Command(
        "blockdev-add",
        _rbd(disk) | ({"detect-zeroes": "unmap"} if sparse else {}),
        ("blockdev-del", {"node-name": rbd_node(disk)}),
    )
    if disk.key is not None:
        # Whoever reaches the monitor could read the key from the object; the open node does not need it any more.
        yield Command("object-del", {"id": secret(volume)})
    if disk.passphrase is not None:
        held = {"qom-type": "secret", "id": passphrase(volume), "format": "raw", "data": disk.passphrase}
        yield Command("object-add", held, ("object-del", {"id": passphrase(volume)}))
        yield Command("blockdev-add", _luks(disk), ("blockdev-del", {"node-name": luks_node(disk)}))
        yield Command("object-del", {"id": passphrase(volume)})


def threads(disk: RbdDisk, place: Place) -> Iterator[Command]:
    """The command that makes the thread that is to serve the disk there, if it is to have one of its own."""
    if disk.tuning.iothread and place.driver == "virtio-blk-pci":
        made = iothread(disk.volume_id)
        yield Command("object-add", {"qom-type": "iothread", "id": made}, ("object-del", {"id": made}))


def plug(disk: RbdDisk, place: Place) -> Command:
    """The command that makes the open image a disk of the guest."""
    return Command("device_add", _device(disk, place))


def resize(volume_id: str, size_bytes: int) -> Command:
    """The command that shows a guest the new size. It sets the image's size too: never say less than that has."""
    return Command("block_resize", {"node-name": top_node(volume_id), "size": size_bytes})


def throttle(limits: Mapping[str, int]) -> dict[str, int]:
    """Limits as a throttle group has them, all of them: of what is left out of a change QEMU keeps what there was."""
    none = {theirs: 1 if theirs.endswith("-length") else 0 for theirs in LIMITS.values()}
    return none | {LIMITS[ours]: value for ours, value in limits.items()}


def limits(volume_id: str) -> tuple[str, Arguments]:
    """The question for the limits that a disk has."""
    return "qom-get", {"path": f"/objects/{group(volume_id)}", "property": "limits"}


def limit(volume_id: str, wanted: Mapping[str, int]) -> Command:
    """The command that changes the limits of a disk; the guest does not notice."""
    where = {"path": f"/objects/{group(volume_id)}", "property": "limits"}
    return Command("qom-set", {**where, "value": throttle(wanted)})


def detach(volume_id: str, nodes: Iterable[str]) -> Iterator[Command]:
    """The commands that remove what is left, also among these nodes, of a disk without a device; nothing is fine."""
    yield Command("blockdev-del", {"node-name": top_node(volume_id)})
    yield from _close(below(volume_id, nodes))
    yield Command("object-del", {"id": group(volume_id)})
    yield Command("object-del", {"id": iothread(volume_id)})
    yield from _forget_secrets(volume_id)


def below(volume_id: str, nodes: Iterable[str]) -> list[str]:
    """Those of some nodes that are below a disk's throttle filter, or were, or are to be; each before what it uses."""
    ours = tuple(letter + short(volume_id) for letter in "lr")
    return sorted(node for node in nodes if node.startswith(ours))


def _close(nodes: Iterable[str]) -> Iterator[Command]:
    return (Command("blockdev-del", {"node-name": node}) for node in nodes)


def forget_secrets(present: Collection[str], objects: Sequence[Arguments]) -> Iterator[Command]:
    """The commands that remove what opened the images of disks that are there, from `qom-list /objects`.

    A VM that was started with its disks has it still.
    """
    there = {str(one["name"]) for one in objects}
    for volume_id in sorted(present):
        yield from (one for one in _forget_secrets(volume_id) if one.arguments["id"] in there)


def _forget_secrets(volume_id: str) -> Iterator[Command]:
    yield Command("object-del", {"id": secret(volume_id)})
    yield Command("object-del", {"id": passphrase(volume_id)})


# -- copying a disk to another image


def used(volume_id: str, stats: Sequence[Arguments]) -> str | None:
    """The node right below a disk's throttle filter, from `query-blockstats` with its nodes; None if there is none."""
    tops = (one for one in stats if one.get("node-name") == top_node(volume_id))
    return next((str(one["parent"]["node-name"]) for one in tops if one.get("parent")), None)


def names(stats: Sequence[Arguments]) -> list[str]:
    """All nodes, from `query-blockstats` with its nodes."""
    return [str(one["node-name"]) for one in stats if one.get("node-name")]


def mirror(target: RbdDisk, present: str, speed: int) -> Iterator[Command]:
    """The commands that open an image and have all that the disk holds, or is written to it, copied there.

    `present` is the node in whose place it will be, `speed` in bytes a second, 0 for no limit.
    """
    # What was never written to an encrypted image is read as noise, and is zeros again only right before Ceph.
    yield from _open_base(target, sparse=target.passphrase is not None)
    arguments = {
        "job-id": job(target.volume_id),
        # QEMU copies only what has no other node above it, so the filter and what decrypts are passed, too.
        "device": top_node(target.volume_id),
        "replaces": present,
        "target": base_node(target),
        "sync": "full",
        # Each write waits for both images: they are equal from the moment at which the job is ready.
        "copy-mode": "write-blocking",
        "speed": speed,
        # Its end is ours to say, and to see.
        "auto-finalize": False,
        "auto-dismiss": False,
    }
    yield Command("blockdev-mirror", arguments)


def leave(volume_id: str, nodes: Iterable[str]) -> Iterator[Command]:
    """The commands that close nodes which are not used (any more), and remove what opening them may have left."""
    yield from _close(below(volume_id, nodes))
    yield from _forget_secrets(volume_id)


def _options(disk: RbdDisk) -> dict[str, Any]:
    """What all nodes of a disk have alike. Without `direct` librbd has its cache."""
    return {
        "discard": disk.tuning.discard,
        "cache": {"direct": disk.tuning.cache == "none", "no-flush": False},
        "read-only": disk.read_only,
    }


def _rbd(disk: RbdDisk) -> dict[str, Any]:
    node: dict[str, Any] = {
        "driver": "rbd",
        "node-name": rbd_node(disk),
        "pool": disk.pool,
        "image": disk.image,
        "server": [{"host": host, "port": str(port)} for host, port in disk.monitors],
        **_options(disk),
    }
    if disk.namespace:
        node["namespace"] = disk.namespace
    if disk.conf is not None:
        node["conf"] = disk.conf
    if disk.user is not None:
        node["user"] = disk.user
    if disk.key is not None:
        node |= {"key-secret": secret(disk.volume_id), "auth-client-required": ["cephx"]}
    return node


def _luks(disk: RbdDisk) -> dict[str, Any]:
    return {
        "driver": "luks",
        "node-name": luks_node(disk),
        "key-secret": passphrase(disk.volume_id),
        "file": rbd_node(disk),
        **_options(disk),
    }


def _throttle(disk: RbdDisk) -> dict[str, Any]:
    node = {
        "driver": "throttle",
        "node-name": top_node(disk.volume_id),
        "throttle-group": group(disk.volume_id),
        "file": base_node(disk),
        **_options(disk),
    }
    if disk.tuning.detect_zeroes != "off":
        # Here, where what the guest writes is not encrypted yet.
        node["detect-zeroes"] = disk.tuning.detect_zeroes
    return node


def _device(disk: RbdDisk, place: Place) -> dict[str, Any]:
    device: dict[str, Any] = {
        "driver": place.driver,
        "id": device_id(disk.volume_id),
        "bus": place.bus,
        "drive": top_node(disk.volume_id),
        # A virtio-blk disk shows the first 20 characters of it, a SCSI one all: what a Kubernetes node looks for.
        "serial": disk.volume_id,
        "write-cache": "off" if disk.tuning.cache == "writethrough" else "on",
    }
    if disk.shared:
        device["share-rw"] = True
    if place.driver == "virtio-blk-pci":
        if disk.tuning.iothread:
            device["iothread"] = iothread(disk.volume_id)
        if disk.tuning.queues:
            device["num-queues"] = disk.tuning.queues
    if place.address is not None:
        device |= {"scsi-id": int(place.address)} if place.driver == "scsi-hd" else {"addr": place.address}
    return device


def places(machine: str, pci: Sequence[Arguments], peripherals: Sequence[Arguments], bus: str = "") -> list[Place]:
    """Where the next disk can go, best first, from `query-pci` and `qom-list /machine/peripheral`. Raises NoFreePlace.

    With `bus` only there.

    A PCIe root port takes one device; a second one is accepted in silence by QEMU 7.2, never seen by the guest and
    never let go. So only an *empty* port counts, and the slot is named. Whether a port or bus is made for hot-plug at
    all is not in these answers: QEMU says so when it is tried, and the next place is taken.
    """
    types = _types(peripherals)
    devices = _devices(pci)
    block, scsi = DRIVERS["virtio-blk"], DRIVERS["virtio-scsi"]
    found = [Place(block[0], port, "0x0", block[1]) for port in _empty_ports(devices, types)]
    if _free_slots(machine, devices):
        found.append(Place(block[0], "pci.0", None, block[1]))
    found += [Place(scsi[0], f"{name}.0", None, scsi[1]) for name in _controllers(types)]
    found = [one for one in found if one.driver == DRIVERS.get(bus, (one.driver,))[0]]
    if not found:
        raise no_free_place(bus)
    return found


def found(driver: str, bus: str, address: int) -> Place:
    """The place of a disk that is there, from its type, its parent bus and its address or SCSI id."""
    letters = next(letters for one, letters in DRIVERS.values() if one == driver)
    # Of a PCI address the lowest three bits are the function, which is always the first.
    where = str(address) if driver == "scsi-hd" else hex(address >> 3)
    return Place(driver, bus.rpartition("/")[2], where, letters)


def room(machine: str, pci: Sequence[Arguments], peripherals: Sequence[Arguments]) -> dict[str, int]:
    """How many more disks each bus takes, from the same answers."""
    types, devices = _types(peripherals), _devices(pci)
    used = sum(kind.startswith("scsi-") for kind in types.values())
    return {
        "virtio-blk": len(list(_empty_ports(devices, types))) + _free_slots(machine, devices),
        "virtio-scsi": max(0, _TARGETS * len(_controllers(types)) - used),
    }


def no_free_place(bus: str = "") -> errors.NoFreePlace:
    """The error that tells what to do; with `bus` only that one would have done."""
    what = {
        "": "no free hot-plug port and no virtio-scsi controller with a free target",
        "virtio-blk": "no free hot-plug port, and the volume is meant for no other bus",
        "virtio-scsi": "no virtio-scsi controller with a free target, and the volume is meant for no other bus",
    }[bus]
    return errors.NoFreePlace(
        f"The server has {what}. Detach a volume from it, or start it with more pcie-root-port devices or with a "
        "virtio-scsi-pci device."
    )


def _devices(pci: Sequence[Arguments]) -> list[Arguments]:
    return [device for bus in pci for device in bus["devices"]]


def _free_slots(machine: str, devices: Sequence[Arguments]) -> int:
    """Of a conventional PCI bus; PCIe's root takes nothing while the machine runs."""
    used = {device["slot"] for device in devices if device["bus"] == 0}
    return _SLOTS - len(used) if "i440fx" in machine else 0


def _controllers(types: Mapping[str, str]) -> list[str]:
    return sorted(name for name, kind in types.items() if kind.startswith("virtio-scsi-"))


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
