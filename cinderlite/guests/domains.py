# SPDX-License-Identifier: Apache-2.0
"""Pure: what libvirt's XML says of a domain and its disks, and the XML that makes an RBD image a disk of it.

Nothing here talks to libvirt; `libvirt` sends what is made here. A disk of ours is known by its serial number, which is
the volume's id, whoever plugged it in; names and secrets follow from the ids, so that a retry, a detach and a recovery
after a crash find the same things.

A domain's owner is in its metadata, in an element of our own or in Nova's::

    <cinderlite:server xmlns:cinderlite="urn:cinderlite:server:1" project="…" user="…" created="2026-01-01T12:00:00">
      <cinderlite:flavor id="…" name="…" vcpus="1" ram="512" disk="10"/>
      <cinderlite:metadata key="…">value</cinderlite:metadata>
    </cinderlite:server>

What a newcomer gets wrong: a domain that runs has two descriptions, the one it runs with and the one that it will be
started with next; a disk can be in one of them only.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import uuid
from collections.abc import Collection, Iterator, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from cinderlite import errors
from cinderlite.guests import Flavor, RbdDisk, Tuning, disks, inventory
from cinderlite.guests.inventory import Owner

OURS = "urn:cinderlite:server:1"
NOVAS = "http://openstack.org/xmlns/libvirt/nova/1.1", "http://openstack.org/xmlns/libvirt/nova/1.0"
#: libvirt does not know when a domain was made.
UNKNOWN_TIME = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
#: Names of secrets are reckoned from this.
_SPACE = uuid.UUID("5b1d2e0c-6a3f-4f0e-9a55-0f7c0c1de11e")
#: How the name begins that libvirt has for a disk of ours; it takes none that begins otherwise.
_ALIAS = "ua-"
#: How a name in the guest begins, by bus.
LETTERS = {"virtio": "/dev/vd", "scsi": "/dev/sd"}
#: libvirt's name of a bus by ours.
BUSES = {"virtio-blk": "virtio", "virtio-scsi": "scsi"}
#: Slots of a conventional PCI bus, without that of the host bridge.
_SLOTS = 31
#: LUNs of one target of a virtio-scsi controller; there are more, but guests look at so many.
_LUNS = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a disk goes: its bus, its name, and on SCSI the controller and unit."""

    bus: str
    name: str
    unit: tuple[str, int] | None = None
    #: Which of the domain's threads serves it, if the disk wants one of them.
    iothread: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """One look at a domain: `live` is what it runs with, `config` what it is started with; None for what is not."""

    live: Element | None
    config: Element | None

    @property
    def now(self) -> frozenset[str]:
        """Ids of our volumes in it: those that it runs with, or if it is off will be started with."""
        return frozenset(volumes(self.live if self.live is not None else self.config))

    @property
    def root(self) -> str | None:
        """Id of our volume that it boots from, if it says in which order its disks are tried."""
        found = volumes(self.live if self.live is not None else self.config)
        return next((volume_id for volume_id, disk in found.items() if disk.find("boot") is not None), None)

    @property
    def anywhere(self) -> dict[str, Element]:
        """The disks that are in either, by volume id."""
        return volumes(self.config) | volumes(self.live)


# -- whose a domain is


def parse(text: str) -> Element:
    """The XML of a domain; it comes from libvirt, which made it."""
    return ElementTree.fromstring(text)  # noqa: S314


def name(domain: Element) -> str:
    """What its tenant calls it."""
    for space in NOVAS:
        found = domain.findtext(f"metadata/{{{space}}}instance/{{{space}}}name")
        if found:
            return found
    return domain.findtext("name") or ""


def owner(domain: Element) -> Owner:
    """Whose it is; what cannot be understood is nobody's, and must not hide the domains beside it."""
    size = _size(domain)
    try:
        ours = domain.find(f"metadata/{{{OURS}}}server")
        if ours is not None:
            return _our_owner(ours, size)
        for space in NOVAS:
            novas = domain.find(f"metadata/{{{space}}}instance")
            if novas is not None:
                return _nova_owner(novas, space, size)
    except (KeyError, ValueError):
        pass  # As of an owner file: see `inventory`.
    return Owner(UNKNOWN_TIME, flavor=size)


def _size(domain: Element) -> Flavor:
    """The size of a domain whose metadata names none: what it has."""
    # libvirt always shows it in KiB.
    ram = int(domain.findtext("memory") or 0) // 1024
    return dataclasses.replace(inventory.UNKNOWN, vcpus=int(domain.findtext("vcpu") or 0), ram=ram)


def _our_owner(ours: Element, size: Flavor) -> Owner:
    flavor = ours.find(f"{{{OURS}}}flavor")
    said = {} if flavor is None else flavor.attrib
    return Owner(
        created=_time(ours.get("created")),
        project_id=ours.attrib["project"],
        user_id=ours.get("user", ""),
        flavor=Flavor(
            said.get("id", size.id),
            said.get("name", size.name),
            int(said.get("vcpus", size.vcpus)),
            int(said.get("ram", size.ram)),
            int(said.get("disk", size.disk)),
        ),
        metadata={one.attrib["key"]: one.text or "" for one in ours.iter(f"{{{OURS}}}metadata")},
    )


def _nova_owner(nova: Element, space: str, size: Flavor) -> Owner:
    def number(what: str, otherwise: int) -> int:
        return int(nova.findtext(f"{{{space}}}flavor/{{{space}}}{what}") or otherwise)

    def who(what: str) -> str:
        found = nova.find(f"{{{space}}}owner/{{{space}}}{what}")
        return "" if found is None else found.get("uuid", "")

    flavor = nova.find(f"{{{space}}}flavor")
    called = size.name if flavor is None else flavor.get("name", size.name)
    return Owner(
        created=_time(nova.findtext(f"{{{space}}}creationTime")),
        project_id=who("project"),
        user_id=who("user"),
        flavor=Flavor(
            size.id if flavor is None else flavor.get("id", called),
            called,
            number("vcpus", size.vcpus),
            number("memory", size.ram),
            number("disk", size.disk),
        ),
    )


def _time(text: str | None) -> datetime.datetime:
    if not text:
        return UNKNOWN_TIME
    found = datetime.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


# -- its disks


def volumes(domain: Element | None) -> dict[str, Element]:
    """The RBD disks of a description whose serial number is a volume's id, by that."""
    found = [] if domain is None else domain.findall("devices/disk")
    ours = ((one.findtext("serial") or "", one) for one in found if _image(one) is not None)
    return {serial: one for serial, one in ours if disks.is_uuid(serial)}


def _image(disk: Element) -> str | None:
    source = disk.find("source")
    return source.get("name") if source is not None and source.get("protocol") == "rbd" else None


def image(disk: RbdDisk) -> str:
    """An image as libvirt names it."""
    return f"{disk.pool}/{disk.image}"


def is_image(found: Element, disk: RbdDisk) -> bool:
    """Whether a disk that is there is of that very image."""
    return _image(found) == image(disk)


def target(disk: Element) -> str:
    """The name that libvirt has for a disk, such as "vdb": what its calls want."""
    return disk.find("target").attrib["dev"]  # type: ignore[union-attr]  # every disk has one


def alias(disk: Element) -> str:
    """The name of a disk that runs, for QEMU."""
    return disk.find("alias").attrib["name"]  # type: ignore[union-attr]  # every disk that runs has one


def volume_of(name: str) -> str | None:
    """The volume behind the name that `make` gave a disk; None for another's."""
    found = name.removeprefix(_ALIAS)
    return found if found != name and disks.is_uuid(found) else None


def text(element: Element) -> str:
    """An element as XML."""
    return ElementTree.tostring(element, encoding="unicode")


def place_of(disk: Element) -> Place:
    """Where a disk is, so that it can be put at the same place of the other description."""
    address = disk.find("address")
    bus = disk.find("target").get("bus", "virtio")  # type: ignore[union-attr]  # every disk has one
    if address is None or address.get("type") != "drive":
        return Place(bus, target(disk))
    return Place(bus, target(disk), (address.get("controller", "0"), int(address.get("unit", 0))))


def places(view: View, taken: Collection[str], bus: str = "") -> Iterator[Place]:
    """Where a further disk can go, best first; `taken` are names that it does not get. With `bus` only there.

    Whether a PCI slot is free for virtio is libvirt's to know: it says so when that is tried.
    """
    both = [one for one in (view.live, view.config) if one is not None]
    there = [disk for one in both for disk in one.findall("devices/disk")]
    names = {f"/dev/{target(disk)}" for disk in there} | set(taken)
    controllers = [_controllers(one) for one in both]
    buses = {disk.find("target").get("bus") for disk in there}  # type: ignore[union-attr]  # every disk has one
    order = ["scsi", "virtio"] if "scsi" in buses and "virtio" not in buses else ["virtio", "scsi"]
    for one in [BUSES[bus]] if bus else order:
        called = disks.name(LETTERS[one], names, 0).removeprefix("/dev/")
        if one == "virtio":
            yield Place(one, called, iothread=_idlest(both))
        else:
            yield from (Place(one, called, unit) for unit in _units(there, frozenset.intersection(*controllers)))


def _idlest(both: list[Element]) -> str | None:
    """The thread that serves the fewest disks; None for a domain without threads."""
    threads = [_threads(one) for one in both]
    busy = [found.get("iothread") for one in both for found in one.findall("devices/disk/driver")]
    return min(sorted(frozenset.intersection(*threads)), key=busy.count, default=None)


def _threads(domain: Element) -> frozenset[str]:
    return frozenset(str(number + 1) for number in range(int(domain.findtext("iothreads") or 0))) | frozenset(
        one.get("id", "") for one in domain.findall("iothreadids/iothread")
    )


def room(view: View) -> dict[str, int]:
    """How many more disks each bus takes: on PCIe one for each port that nothing is in."""
    domain = view.live if view.live is not None else view.config
    if domain is None:
        return {"virtio-blk": 0, "virtio-scsi": 0}
    there = domain.findall("devices/disk")
    addresses = [one for one in domain.iter("address") if one.get("type") == "pci"]
    used = {int(one.get("bus", "0"), 16) for one in addresses}
    models = [
        (one.get("model"), int(one.get("index", "0"))) for one in domain.findall("devices/controller[@type='pci']")
    ]
    ports = sum(model == "pcie-root-port" and index not in used for model, index in models)
    slots = {one.get("slot") for one in addresses if int(one.get("bus", "0"), 16) == 0}
    conventional = any(model == "pci-root" for model, _index in models)
    taken = sum(place_of(disk).unit is not None for disk in there)
    return {
        "virtio-blk": ports + (_SLOTS - len(slots) if conventional else 0),
        "virtio-scsi": max(0, _LUNS * len(_controllers(domain)) - taken),
    }


def _controllers(domain: Element) -> frozenset[str]:
    found = domain.findall("devices/controller")
    return frozenset(
        one.get("index", "0")
        for one in found
        if one.get("type") == "scsi" and one.get("model", "").startswith("virtio-")
    )


def _units(there: list[Element], controllers: frozenset[str]) -> Iterator[tuple[str, int]]:
    """The first free unit of each controller."""
    used = {place_of(disk).unit for disk in there}
    for controller in sorted(controllers):
        units = ((controller, number) for number in range(_LUNS))
        yield from itertools.islice((one for one in units if one not in used), 1)


# -- what is held to what


def limits(disk: Element) -> dict[str, int]:
    """What a disk is held to. libvirt has Cinder's names for that."""
    found = disk.find("iotune")
    return {} if found is None else {one.tag: int(one.text or 0) for one in found if one.tag in disks.LIMITS}


def same_limits(disk: Element, wanted: Mapping[str, int]) -> bool:
    """Whether a disk is held to that and nothing else; a burst of one second is what it has without saying so."""
    return disks.throttle(limits(disk)) == disks.throttle(wanted)


def tuning(wanted: Mapping[str, int]) -> dict[str, int]:
    """Limits for a call that changes them: all there are, since libvirt keeps what it is not told."""
    return {one: wanted.get(one, 0) for one in disks.LIMITS}


# -- making one


def secret_id(kind: str, server_id: str, volume_id: str) -> str:
    """The secret of one disk of one server: its cephx key ("ceph") or what opens it ("volume")."""
    return str(uuid.uuid5(_SPACE, f"{kind} {server_id} {volume_id}"))


def secret(kind: str, server_id: str, volume_id: str) -> str:
    """The XML that defines it: kept by libvirt for the next start of the server, and shown to nobody."""
    made = Element("secret", ephemeral="no", private="yes")
    SubElement(made, "uuid").text = secret_id(kind, server_id, volume_id)
    SubElement(made, "description").text = f"cinderlite: volume {volume_id} on server {server_id}"
    usage = SubElement(made, "usage", type=kind)
    SubElement(usage, "name" if kind == "ceph" else kind).text = f"cinderlite {server_id} {volume_id}"
    return text(made)


def _driver(tuning: Tuning, place: Place) -> dict[str, str]:
    said = {"cache": tuning.cache, "discard": tuning.discard}
    if tuning.detect_zeroes != "off":
        said["detect_zeroes"] = tuning.detect_zeroes
    if place.bus == "virtio" and tuning.queues:
        said["queues"] = str(tuning.queues)
    if tuning.iothread and place.iothread is not None:
        said["iothread"] = place.iothread
    return said


def refuse_namespace(disk: RbdDisk) -> None:
    """Raise GuestRefused for an image in a namespace of a pool.

    libvirt 9 takes pool/namespace/image for an image "namespace/image", and QEMU does not find that.
    """
    if disk.namespace:
        raise errors.GuestRefused("libvirt cannot open an image in a namespace of a pool")


def make(disk: RbdDisk, server_id: str, place: Place, order: int | None = None) -> str:
    """The XML of a disk at a place; `order` is when it is tried in booting, if it is."""
    made = Element("disk", type="network", device="disk")
    SubElement(made, "driver", {"name": "qemu", "type": "raw", **_driver(disk.tuning, place)})
    source = SubElement(made, "source", protocol="rbd", name=image(disk))
    for host, port in disk.monitors:
        SubElement(source, "host", name=host, port=str(port))
    if disk.key is not None:
        auth = SubElement(source, "auth", username=disk.user or "admin")
        SubElement(auth, "secret", type="ceph", uuid=secret_id("ceph", server_id, disk.volume_id))
    if disk.passphrase is not None:
        encryption = SubElement(source, "encryption", format="luks")
        SubElement(encryption, "secret", type="passphrase", uuid=secret_id("volume", server_id, disk.volume_id))
    SubElement(made, "target", dev=place.name, bus=place.bus)
    if place.unit is not None:
        controller, unit = place.unit
        SubElement(made, "address", type="drive", controller=controller, bus="0", target="0", unit=str(unit))
    if order is not None:
        SubElement(made, "boot", order=str(order))
    if disk.limits:
        tune = SubElement(made, "iotune")
        for key, value in sorted(disk.limits.items()):
            SubElement(tune, key).text = str(value)
    if disk.read_only:
        SubElement(made, "readonly")
    if disk.shared:
        SubElement(made, "shareable")
    SubElement(made, "serial").text = disk.volume_id
    SubElement(made, "alias", name=f"{_ALIAS}{disk.volume_id}")
    return text(made)
