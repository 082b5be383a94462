# SPDX-License-Identifier: Apache-2.0
"""kill -9 before each call that changes something in a libvirt: its disks and secrets are what the attachments say."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from backends.service import Service
from functional.test_crash import broken, die_at, restart
from lab.ceph import Ceph
from lab.libvirt import Domain, Libvirt
from lab.process import wait

pytestmark = pytest.mark.real


@pytest.fixture
def quiet(tmp_path: pathlib.Path, ceph: Ceph, sockets: pathlib.Path, libvirt: Libvirt) -> Iterator[Service]:
    """A service that is not started yet."""
    ceph.empty()
    made = Service(tmp_path, ceph.conf, sockets, {"guests": {"libvirt_uris": libvirt.uri}})
    yield made
    made.kill()
    ceph.empty()


@pytest.fixture(scope="module")
def small(libvirt: Libvirt) -> Iterator[Domain]:
    """A domain that lets any disk go at once."""
    made = Domain(libvirt, "small", ports=0, scsi=True, guest_os=False, memory=64)
    made.start()
    yield made
    made.forget()


@pytest.fixture
def secrets(libvirt: Libvirt) -> Callable[[], int]:
    """How many there are, but for those of tests before, whose domains were killed."""
    others = libvirt.secrets()
    return lambda: len(libvirt.secrets() - others)


def at_rest(service: Service, ceph: Ceph, secrets: Callable[[], int], domain: Domain, volume: str) -> bool:
    """Whether the volume is in the domain, now and when it will be started, or nothing of it is."""
    count = {"in-use": 1, "available": 0}.get(service.volume(volume)["status"], -1)
    running, kept = (domain.tell("XMLDesc", flags).count(f"ua-{volume}") for flags in (0, 2))
    return bool(count == running == kept == secrets() == len(ceph.users()))


@pytest.mark.parametrize("call", ["secretDefineXML", "setValue", "attachDeviceFlags"])
def test_attach(quiet: Service, ceph: Ceph, secrets: Callable[[], int], small: Domain, call: str) -> None:
    die_at(quiet, f"libvirt.{call}")
    volume = quiet.create()
    broken(quiet.attach, small.uuid, volume)
    restart(quiet)
    wait(lambda: at_rest(quiet, ceph, secrets, small, volume), timeout=60, what="all to be of one mind")
    assert quiet.volume(volume)["status"] == "in-use"
    quiet.detach(small.uuid, volume)
    wait(lambda: at_rest(quiet, ceph, secrets, small, volume), timeout=60, what="the disk to go")


@pytest.mark.parametrize("call", ["detachDeviceAlias", "detachDeviceFlags", "undefine"])
def test_detach(quiet: Service, ceph: Ceph, secrets: Callable[[], int], small: Domain, call: str) -> None:
    die_at(quiet, f"libvirt.{call}")
    volume = quiet.create()
    quiet.attach(small.uuid, volume)
    broken(quiet.detach, small.uuid, volume)
    restart(quiet)
    wait(lambda: quiet.volume(volume)["status"] == "available", timeout=60, what="the detach to be finished")
    wait(lambda: at_rest(quiet, ceph, secrets, small, volume), timeout=60, what="all to be of one mind")
