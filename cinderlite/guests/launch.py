# SPDX-License-Identifier: Apache-2.0
"""Pure: what a VM is started with so that its volumes are in it: arguments of QEMU, or libvirt's XML of the disks.

It is made of the very commands that plug a disk into a running guest (`disks`, `domains`), with the same names: nothing
that is done with a disk later asks how it came. What a newcomer gets wrong: everybody on a host can read QEMU's command
line. So what opens an image is in files, and the objects that QEMU makes of them are removed by the service as soon as
it sees the VM (`QmpGuest.limit`): the monitor would tell them.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from cinderlite import errors
from cinderlite.guests import RbdDisk, disks, domains
from cinderlite.guests.disks import Place

#: The virtio-scsi controller that is added for disks that find no place on the buses that were named.
CONTROLLER = "cinderlite"
#: The place in the order of booting of the disk that a VM boots from: the first one, as libvirt counts.
FIRST = 1
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
    """What a file has to hold for QEMU: a cephx key or what decrypts a volume."""

    file: str
    content: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """What is added to QEMU's command line, the files that it names, and where each volume is plugged in."""

    words: Sequence[str]
    secrets: Sequence[Secret]
    places: Mapping[str, Place]

    @property
    def line(self) -> str:
        """The words for a shell."""
        return shlex.join(self.words)


@dataclasses.dataclass(frozen=True, slots=True)
class Xml:
    """Elements for a domain's <devices>, and what `virsh secret-define` and `secret-set-value` are to be told first."""

    disks: Sequence[str]
    secrets: Sequence[tuple[str, str]] = dataclasses.field(repr=False)


def arguments(
    server_id: str,
    volumes: Sequence[RbdDisk],
    *,
    boot: str | None,
    buses: Sequence[str],
    directory: str,
    held: Mapping[str, Place],
) -> Arguments:
    """What a VM with these disks is started with; `boot` is the volume that it boots from.

    `buses` are empty PCIe root ports, each of which takes a disk, and buses that take many: a virtio-scsi controller's
    ("scsi0.0") or "pci.0" of a machine without PCIe. `directory` will have the secrets, `held` are places that must be
    kept, as of a VM that moves to another host. Raises InvalidInput for a name that is no bus, NoFreePlace.
    """
    _refuse_names(buses)
    used = {place.bus for place in held.values() if not _takes_many(place.bus)}
    ports = [bus for bus in dict.fromkeys(buses) if not _takes_many(bus) and bus not in used]
    shared = [*(bus for bus in buses if _takes_many(bus)), f"{CONTROLLER}.0"]
    places = {disk.volume_id: held.get(disk.volume_id) or _place(disk, ports, shared) for disk in volumes}
    said: list[tuple[str, Mapping[str, Any]]] = []
    if any(place.bus == shared[-1] for place in places.values()):
        said.append(("-device", {"driver": "virtio-scsi-pci", "id": CONTROLLER}))
    secrets: list[Secret] = []
    for disk in volumes:
        for option, values in _plugged(disk, places[disk.volume_id], boots=disk.volume_id == boot):
            shown = dict(values)
            if "data" in shown:
                secrets.append(Secret(f"{directory}/{server_id}.{shown['id']}", shown.pop("data")))
                shown["file"] = secrets[-1].file
            said.append((option, shown))
    return Arguments([word for option, values in said for word in (option, json.dumps(values))], secrets, places)


def _refuse_names(buses: Sequence[str]) -> None:
    for bus in buses:
        if not _NAME.fullmatch(bus):
            raise errors.InvalidInput(f"'{bus[:64]}' is not the name of a bus")
        if bus == "pcie.0":
            raise errors.InvalidInput("a disk on pcie.0 could not be detached; name pcie-root-ports")


def _takes_many(bus: str) -> bool:
    return bus.endswith(".0")


def _place(disk: RbdDisk, ports: list[str], shared: Sequence[str]) -> Place:
    """The next free place that suits a disk; a port is taken from the list. Raises NoFreePlace."""
    wanted = disk.tuning.bus
    block, scsi = disks.DRIVERS["virtio-blk"], disks.DRIVERS["virtio-scsi"]
    if ports and wanted != "virtio-scsi":
        return Place(block[0], ports.pop(0), "0x0", block[1])
    for bus in shared:
        driver, letters = block if bus == "pci.0" else scsi
        if disks.DRIVERS.get(wanted, (driver,))[0] == driver:
            return Place(driver, bus, None, letters)
    raise errors.NoFreePlace(f"No bus for volume {disk.volume_id} is named: it is meant for {wanted} only.")


def _plugged(disk: RbdDisk, place: Place, *, boots: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Option and value of each argument that makes a disk. What is removed again while QEMU runs is left to that."""
    options = {"object-add": "-object", "blockdev-add": "-blockdev", "device_add": "-device"}
    for command in disks.attach(disk, place):
        if command.name in options:
            first = {"bootindex": FIRST} if boots and command.name == "device_add" else {}
            yield options[command.name], {**command.arguments, **first}


def xml(server_id: str, volumes: Sequence[RbdDisk], *, boot: str | None, taken: Collection[str] = ()) -> Xml:
    """The same for a domain of libvirt's; `taken` are names of its other disks, such as "/dev/vda".

    Raises GuestRefused for an image that libvirt cannot name.
    """
    made, secrets, names = [], [], set(taken)
    for disk in volumes:
        domains.refuse_namespace(disk)
        bus = domains.BUSES.get(disk.tuning.bus, "virtio")
        name = disks.name(domains.LETTERS[bus], names, 0)
        names.add(name)
        place = domains.Place(bus, name.removeprefix("/dev/"))
        made.append(domains.make(disk, server_id, place, FIRST if disk.volume_id == boot else None))
        if disk.key is not None:
            secrets.append((domains.secret("ceph", server_id, disk.volume_id), disk.key))
        if disk.passphrase is not None:
            value = base64.b64encode(disk.passphrase.encode()).decode()
            secrets.append((domains.secret("volume", server_id, disk.volume_id), value))
    return Xml(made, secrets)
