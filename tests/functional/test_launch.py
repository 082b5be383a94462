# SPDX-License-Identifier: Apache-2.0
"""VMs that are started with their volumes: they boot from one, and the disks are like any that were plugged in later."""

from __future__ import annotations

import pathlib
import shlex
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backends.service import Service
from cinderlite.guests import disks
from lab.ceph import Ceph
from lab.guest import Guest, boot_sector, root_disk
from lab.process import wait

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

BUSES = "--bus", "port1", "--bus", "port2"


class Host:
    """A service, and servers that are kept."""

    def __init__(self, service: Service, ceph: Ceph, directory: pathlib.Path, sockets: pathlib.Path) -> None:
        self.service, self.ceph = service, ceph
        self._directory, self._sockets = directory, sockets
        self.guests: list[Guest] = []

    def server(self, name: str, **options: Any) -> Guest:
        """One that is not started yet."""
        guest = Guest(self._directory, name, sockets=self._sockets, kept=True, **options)
        guest.announce()
        self.guests.append(guest)
        return guest

    def volume(self, guest: Guest, content: bytes = b"", *, goes: bool = False) -> str:
        """One of a server's that starts with this."""
        volume = self.service.create()
        if content:
            self.ceph.write(f"volume-{volume}", content)
        self.attach(guest, volume, goes=goes)
        return volume

    def attach(self, guest: Guest, volume: str, *, goes: bool = False) -> None:
        body = {"volumeAttachment": {"volumeId": volume, "delete_on_termination": goes}}
        path = f"/v2.1/servers/{guest.uuid}/os-volume_attachments"
        answer = self.service.call("POST", path, body, version="2.79")
        assert answer.status == 200, answer.text
        assert self.service.volume(volume)["status"] == "in-use"

    def launch(self, guest: Guest, *words: str, incoming: bool = False) -> None:
        """Start a server with the words that are told for it, and nothing else of ours; or have it wait for its guest."""
        with tempfile.TemporaryDirectory() as directory:
            line = self.service.manage("server", "launch-args", guest.uuid, "--secrets", directory, *words)
            guest.arguments = [*shlex.split(line), *(["-incoming", "defer"] if incoming else [])]
            guest.start(wait_for_os=not incoming)


@pytest.fixture(scope="module")
def host(
    tmp_path_factory: pytest.TempPathFactory, ceph: Ceph, lab_directory: pathlib.Path, sockets: pathlib.Path
) -> Iterator[Host]:
    """The one of all tests here."""
    service = Service(tmp_path_factory.mktemp("service"), ceph.conf, sockets)
    service.start()
    made = Host(service, ceph, lab_directory, sockets)
    yield made
    for guest in made.guests:
        guest.stop()
        guest.forget()
    service.stop()
    ceph.empty()


def test_the_firmware_boots_from_the_volume_that_is_named(host: Host) -> None:
    guest = host.server("firmware", guest_os=False, ports=1, memory=64)
    for text in ("the first", "the second"):
        last = host.volume(guest, boot_sector(text))
    host.launch(guest, "--boot", last)
    wait(lambda: "the second" in guest.console(), timeout=30, what="the firmware to boot")
    assert "the first" not in guest.console()
    # On virtio-scsi, where the guest is not asked.
    action = f"/v3/volumes/{last}/action"
    for is_root, status in ((True, 400), (False, 202)):  # An empty volume is not known as one to boot from.
        assert host.service.call("POST", action, {"os-set_bootable": {"bootable": is_root}}).status == 200
        assert host.service.detach(guest.uuid, last).status == status
    host.service.rest(last, "available")
    assert "cinderlite" in guest.holdings()["devices"]


def test_a_server_runs_from_a_volume_and_migrates_and_ends(host: Host, tmp_path: pathlib.Path) -> None:
    service, ceph = host.service, host.ceph
    guest = host.server("source", root="/dev/vda", ports=2)
    data = host.volume(guest, goes=True)
    root_disk(tmp_path / "root", "from ceph")
    root = host.volume(guest, (tmp_path / "root").read_bytes())
    assert not guest.running()
    host.launch(guest, *BUSES, "--boot", root)
    command = pathlib.Path(f"/proc/{guest.pid}/cmdline").read_text(encoding="utf-8")
    assert ceph.command("auth", "print-key", f"client.{ceph.user}").strip() not in command

    assert guest.find(root) == "/dev/vda"
    assert guest.run("cat /on-disk").strip() == "from ceph"
    assert "ext4" in guest.run("grep ' / ' /proc/mounts | tail -n 1")
    guest.run("echo written by the guest > /mark; sync")
    assert b"written by the guest" in ceph.read(f"volume-{root}", 16 * 2**20)
    keys = {disks.secret(root), disks.secret(data)}
    wait(lambda: not keys & guest.holdings()["objects"], timeout=20, what="the keys to be taken out of QEMU")

    _like_one_that_was_plugged_in_later(host, guest, data)
    target = host.server("target", root="/dev/vda", ports=2, uuid=guest.uuid)
    host.launch(target, *BUSES, "--boot", root, incoming=True)
    _migrates(host, guest, target, data)

    # It is off, and has its volumes; without an owner file it has ended.
    target.stop()
    time.sleep(2)  # More than `guest_gone_after`, with some passes of the reconciler in it.
    assert {service.volume(one)["status"] for one in (root, data)} == {"in-use"}
    target.forget()
    service.rest(data, "gone")
    service.rest(root, "available")


def _like_one_that_was_plugged_in_later(host: Host, guest: Guest, volume: str) -> None:
    device = guest.wait_disk(volume)
    assert disks.group(volume) in guest.holdings()["objects"]
    grow = host.service.call("POST", f"/v3/volumes/{volume}/action", {"os-extend": {"new_size": 2}}, version="3.42")
    assert grow.status == 202
    sectors = f"cat /sys/block/{device.removeprefix('/dev/')}/size"
    wait(lambda: guest.run(sectors).strip() == str(2 * 2**21), timeout=20, what="the guest to see the new size")
    assert host.service.detach(guest.uuid, volume).status == 202
    host.service.rest(volume, "available")
    guest.wait_no_disk(volume)
    assert not [one for one in guest.holdings()["nodes"] if disks.short(volume) in one]
    host.attach(guest, volume, goes=True)


def _migrates(host: Host, source: Guest, target: Guest, volume: str) -> None:
    """From one QEMU to the other, while the guest writes one block after the other, each with its number."""
    device = source.wait_disk(volume)
    write = f"dd of={device} bs=4096 seek=$n count=1 conv=sync,fsync,notrunc"
    source.run(
        f"echo 0 > /tmp/n; (n=0; while [ $n -lt 4000 ]; do echo $n | {write} 2> /dev/null; echo $n > /tmp/n; n=$((n+1)); done) &"
    )

    def count(guest: Guest) -> int:
        return int(guest.run("cat /tmp/n").strip() or 0)

    wait(lambda: count(source) > 5, timeout=20, what="the guest to write")
    before = source.holdings(), target.holdings()["devices"]
    assert disks.device_id(volume) in before[1]
    time.sleep(1.5)  # Some passes of the reconciler.
    assert (source.holdings(), target.holdings()["devices"]) == before
    assert host.service.volume(volume)["status"] == "in-use"

    there = count(source)
    place = f"unix:{target.directory}/migration"
    target.qmp("migrate-incoming", uri=place)
    source.qmp("migrate", uri=place)
    wait(lambda: source.qmp("query-migrate")["status"] == "completed", timeout=60, what="the migration")
    wait(lambda: count(target) > there + 5, timeout=20, what="the guest to go on writing")
    source.forget()
    time.sleep(1.5)
    assert host.service.volume(volume)["status"] == "in-use"
    last = count(target)
    stored = host.ceph.read(f"volume-{volume}", last * 4096)
    assert [int(stored[n * 4096 :][:8].split(b"\n")[0]) for n in range(last)] == list(range(last))
