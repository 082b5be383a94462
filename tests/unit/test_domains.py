# SPDX-License-Identifier: Apache-2.0
"""libvirt's XML: whose a domain is, where a disk goes, and what one is made of."""

from __future__ import annotations

import datetime
import uuid
from xml.etree.ElementTree import Element

import pytest

from cinderlite.guests import Flavor, RbdDisk, disks, domains, inventory
from cinderlite.guests.domains import Place, View

SERVER, VOLUME = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
DISK = RbdDisk(VOLUME, "volumes", f"volume-{VOLUME}", [("10.0.0.1", 3300), ("fd00::1", 6789)], "cinderlite", "a2V5")


def domain(metadata: str = "", devices: str = "") -> Element:
    return domains.parse(
        f"<domain><name>instance-1</name><memory unit='KiB'>524288</memory><vcpu>2</vcpu>"
        f"<metadata>{metadata}</metadata><devices>{devices}</devices></domain>"
    )


def held(disk: RbdDisk, place: Place) -> Element:
    return domain(devices=domains.make(disk, SERVER, place))


SIZE = Flavor("0", "unknown", 2, 512, 0)
NOVA = """
<nova:instance xmlns:nova="{space}">
  <nova:name>web1</nova:name><nova:creationTime>2026-02-03 04:05:06</nova:creationTime>
  <nova:flavor name="m1.small"><nova:memory>2048</nova:memory><nova:disk>20</nova:disk><nova:vcpus>1</nova:vcpus></nova:flavor>
  <nova:owner><nova:user uuid="u1">alice</nova:user><nova:project uuid="p1">demo</nova:project></nova:owner>
</nova:instance>
"""
OURS = """
<c:server xmlns:c="urn:cinderlite:server:1" project="p1" user="u1" created="2026-02-03T04:05:06+00:00">
  <c:flavor id="7" name="small" vcpus="1" ram="2048" disk="20"/><c:metadata key="role">web</c:metadata>
</c:server>
"""
MADE = datetime.datetime(2026, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)


def test_our_own_owner() -> None:
    assert domains.owner(domain(OURS)) == inventory.Owner(
        MADE, "", "p1", "u1", Flavor("7", "small", 1, 2048, 20), {"role": "web"}
    )
    assert domains.name(domain(OURS)) == "instance-1"


@pytest.mark.parametrize("space", domains.NOVAS)
def test_novas_owner(space: str) -> None:
    found = domain(NOVA.format(space=space))
    flavor = Flavor("m1.small", "m1.small", 1, 2048, 20)
    assert domains.owner(found) == inventory.Owner(MADE, "", "p1", "u1", flavor)
    assert domains.name(found) == "web1"


def test_our_own_goes_before_novas() -> None:
    both = domain(NOVA.format(space=domains.NOVAS[0]) + OURS.replace("p1", "p2"))
    assert domains.owner(both).project_id == "p2"


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        '<c:server xmlns:c="urn:cinderlite:server:1"/>',
        '<c:server xmlns:c="urn:cinderlite:server:1" project="p1" created="yesterday"/>',
        '<c:server xmlns:c="urn:cinderlite:server:1" project="p1"><c:flavor vcpus="many"/></c:server>',
        '<c:server xmlns:c="urn:cinderlite:server:2" project="p1"/>',
        '<n:instance xmlns:n="http://openstack.org/xmlns/libvirt/nova/1.1"/>',
    ],
)
def test_what_cannot_be_understood_is_nobodys(metadata: str) -> None:
    found = domains.owner(domain(metadata))
    assert (found.project_id, found.user_id, found.flavor) == ("", "", SIZE)


def test_a_disk_is_found_by_its_serial_number() -> None:
    there = held(DISK, Place("virtio", "vdb"))
    assert domains.volumes(there).keys() == {VOLUME}
    assert domains.is_image(domains.volumes(there)[VOLUME], DISK)
    for other in (
        f"<disk><source protocol='rbd' name='volumes/x'/><serial>{VOLUME.upper()[:-1]}X</serial><target dev='vda'/></disk>",
        f"<disk><source file='/x'/><serial>{VOLUME}</serial><target dev='vda'/></disk>",
        "<disk><source protocol='rbd' name='volumes/x'/><target dev='vda'/></disk>",
        f"<disk><serial>{VOLUME}</serial><target dev='vda'/></disk>",
    ):
        assert domains.volumes(domain(devices=other)) == {}
    assert domains.volumes(None) == {}


def test_a_volume_is_known_by_the_name_that_libvirt_has_for_its_disk() -> None:
    made = domains.volumes(held(DISK, Place("virtio", "vdb")))[VOLUME]
    assert domains.volume_of(domains.alias(made)) == VOLUME
    for other in ("virtio-disk0", "ua-data", VOLUME):
        assert domains.volume_of(other) is None


def test_a_disk_that_is_off_and_one_that_runs() -> None:
    first, second = held(DISK, Place("virtio", "vda")), domain()
    assert View(None, first).now == {VOLUME}
    assert View(second, first).now == frozenset()
    assert View(second, first).anywhere.keys() == {VOLUME}


def test_what_a_domain_boots_from() -> None:
    place = Place("virtio", "vda")
    root, data = (domain(devices=domains.make(DISK, SERVER, place, order)) for order in (1, None))
    assert View(None, root).root == View(root, data).root == VOLUME
    assert View(data, root).root is View(None, data).root is View(domain(), root).root is None


CONTROLLER = "<controller type='scsi' index='{}' model='{}'/>"
ROOT = "<disk><target dev='{}' bus='{}'/></disk>"


def named(view: View, *taken: str) -> list[str]:
    return [place.name for place in domains.places(view, taken)]


def test_places() -> None:
    empty, virtio = domain(), domain(devices=ROOT.format("vda", "virtio"))
    scsi = domain(devices=CONTROLLER.format(0, "virtio-scsi") + ROOT.format("sda", "scsi"))
    assert named(View(empty, empty)) == ["vda"]
    assert named(View(virtio, empty)) == ["vdb"]
    assert named(View(empty, virtio), "/dev/vdb") == ["vdc"]
    # The bus that the guest is known to have a driver for goes first.
    assert named(View(scsi, scsi)) == ["sdb", "vda"]
    # A controller must be in both.
    assert named(View(scsi, empty)) == ["vda"]
    assert named(View(None, scsi)) == ["sdb", "vda"]
    other = domain(devices=CONTROLLER.format(0, "lsilogic"))
    assert named(View(other, other)) == ["vda"]


def test_a_unit_is_taken_once() -> None:
    text = CONTROLLER.format(0, "virtio-scsi") + CONTROLLER.format(1, "virtio-scsi")
    found = domain(devices=text)
    for number in range(20):
        [first, second] = [place for place in domains.places(View(found, found), ()) if place.bus == "scsi"]
        assert (first.unit, second.unit) == (("0", number), ("1", 0))
        volume = str(uuid.uuid4())
        text += domains.make(RbdDisk(volume, "p", "i", [], None, None), SERVER, first)
        found = domain(devices=text)
        assert domains.place_of(domains.volumes(found)[volume]) == first


def test_what_a_disk_is_made_of() -> None:
    full = RbdDisk(
        VOLUME, "volumes", "image", DISK.monitors, "cinderlite", "a2V5", read_only=True, shared=True,
        passphrase="open sesame", limits={"total_iops_sec": 10, "total_iops_sec_max": 20},
    )  # fmt: skip
    text = domains.make(full, SERVER, Place("virtio", "vdb"))
    assert "a2V5" not in text
    assert "open sesame" not in text
    made = domains.parse(text)
    source = made.find("source")
    assert source is not None
    assert [one.attrib for one in source.findall("host")] == [
        {"name": "10.0.0.1", "port": "3300"},
        {"name": "fd00::1", "port": "6789"},
    ]
    secrets = [one.get("uuid") for one in made.iter("secret")]
    assert secrets == [domains.secret_id(kind, SERVER, VOLUME) for kind in ("ceph", "volume")]
    assert domains.limits(made) == full.limits
    assert [made.find(one) is not None for one in ("readonly", "shareable")] == [True, True]
    assert made.findtext("serial") == VOLUME
    plain = domains.parse(domains.make(RbdDisk(VOLUME, "p", "i", [], None, None), SERVER, Place("virtio", "vda")))
    assert [plain.find(one) for one in ("readonly", "shareable", "iotune", "source/auth", "source/encryption")] == [
        None
    ] * 5


def test_limits_are_compared_as_they_are_meant() -> None:
    burst = {"total_iops_sec": 10, "total_iops_sec_max": 20}
    disk = domains.parse(
        domains.make(RbdDisk(VOLUME, "p", "i", [], None, None, limits=burst), SERVER, Place("virtio", "vda"))
    )
    assert domains.same_limits(disk, burst)
    assert domains.same_limits(disk, {**burst, "total_iops_sec_max_length": 1})
    assert not domains.same_limits(disk, {})
    assert domains.tuning(burst).keys() == disks.LIMITS.keys()


def test_secrets_are_each_disks_own() -> None:
    names = {domains.secret_id(kind, server, VOLUME) for kind in ("ceph", "volume") for server in (SERVER, VOLUME)}
    assert len(names) == 4
    assert 'private="yes"' in domains.secret("ceph", SERVER, VOLUME)
