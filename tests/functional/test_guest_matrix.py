# SPDX-License-Identifier: Apache-2.0
"""Every kind of guest through the same operations; what the API, QEMU and Ceph then hold is always the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from backends.service import Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real

GIB = 2**30


@pytest.fixture
def service_options() -> Mapping[str, Mapping[str, object]]:
    """Most of these guests do not let go by themselves, however long they are waited for."""
    return {"guests": {"detach_wait": 3}}


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a guest is made and brought into its state, and what makes it let go of a disk if it does not by itself."""

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Guest], Any] = lambda _guest: None
    remedy: Callable[[Guest], Any] | None = None


def reset(guest: Guest) -> None:
    """As its reset button does."""
    guest.qmp("system_reset")


KINDS = {
    "linux": Kind(),
    "linux-on-i440fx": Kind({"machine": "pc"}),
    # Its kernel presses the attention button, and then lets go after five seconds.
    "native-pcie-hot-plug": Kind({"arguments": ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]}),
    "booting": Kind(prepare=reset),
    "paused": Kind(prepare=Guest.pause, remedy=Guest.resume),
    "without-an-operating-system": Kind({"guest_os": False}, remedy=reset),
    "without-acpi": Kind({"kernel_words": "acpi=off"}, remedy=reset),
}


def truth(service: Service, ceph: Ceph, guest: Guest, volume: str) -> tuple[str, int, int]:
    """A volume's status, how many clients have its image open, and how many devices the guest has of it."""
    devices = guest.holdings()["devices"]
    watchers = ceph.watchers(f"volume-{volume}")
    return service.volume(volume)["status"], len(watchers), sum(volume in name for name in devices)


@pytest.mark.parametrize("name", KINDS)
def test_whatever_the_guest_is_like(service: Service, ceph: Ceph, guest_of: Callable[..., Guest], name: str) -> None:
    kind = KINDS[name]
    guest = guest_of(**kind.options)
    users = ceph.users()
    volume = service.create()
    kind.prepare(guest)

    attached = service.attach(guest.uuid, volume)
    assert attached.status == 200, attached.text
    assert truth(service, ceph, guest, volume) == ("in-use", 1, 1)

    made = service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True}})
    snapshot = made.body["snapshot"]["id"]
    assert service.call("GET", f"/v3/snapshots/{snapshot}").body["snapshot"]["status"] == "available"
    grow = {"os-extend": {"new_size": 2}}
    assert service.call("POST", f"/v3/volumes/{volume}/action", grow, version="3.42").status == 202
    assert service.volume(volume)["size"] == 2
    sizes = {node["image"]["virtual-size"] for node in guest.qmp("query-named-block-nodes")}
    assert sizes == {2 * GIB}

    assert service.detach(guest.uuid, volume).status == 202
    if kind.remedy is not None:
        assert truth(service, ceph, guest, volume) == ("detaching", 1, 1)
        assert "has not released the disk" in service.messages(volume)[0]
        assert service.detach(guest.uuid, volume).status == 400
        kind.remedy(guest)
    service.rest(volume, "available", 60)
    assert truth(service, ceph, guest, volume) == ("available", 0, 0)

    assert service.call("DELETE", f"/v3/snapshots/{snapshot}").status == 202
    assert service.call("DELETE", f"/v3/volumes/{volume}").status == 202
    # What is removed from the trash is tried again after a minute at most.
    wait(lambda: not any(volume in name for name in left(ceph)), timeout=90, what="nothing to be left")
    assert ceph.users() == users


def left(ceph: Ceph) -> list[str]:
    """Names of all images, those in the trash too."""
    return [*ceph.images(), *ceph.trash()]
