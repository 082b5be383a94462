# SPDX-License-Identifier: Apache-2.0
"""A file system in a real guest that is whole in a snapshot, with QEMU's own agent, and thawed across a kill -9."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Callable, Iterator

import pytest

from backends.service import Service
from cinderlite.guests.qmp import QmpHypervisor
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import LabError, run, wait

pytestmark = pytest.mark.real

MIB = 2**20
SIZE = 32 * MIB


@pytest.fixture
def service(tmp_path: pathlib.Path, ceph: Ceph, sockets: pathlib.Path) -> Iterator[Service]:
    """A service that is not started yet, and freezes guests."""
    made = Service(tmp_path, ceph.conf, sockets, {"guests": {"freeze_file_systems": True, "agent_timeout": 10}})
    yield made
    made.stop()
    ceph.empty()


def formatted(path: pathlib.Path) -> bytes:
    """An empty file system."""
    run(
        ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(path), f"{SIZE // MIB}M"],
        timeout=30,
    )
    return path.read_bytes()


def snapshot(service: Service, volume: str) -> str:
    made = service.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume, "force": True}})
    assert made.status == 202, made.text
    return str(made.body["snapshot"]["id"])


def found_in(service: Service, ceph: Ceph, snap: str, path: pathlib.Path) -> tuple[str, bool]:
    """What is in a clone of a snapshot: the file "dirty", and whether the file system is clean as it lies there."""
    clone = service.create(snapshot_id=snap)
    path.write_bytes(ceph.read(f"volume-{clone}", SIZE, 0))
    said = run(["debugfs", "-R", "cat /dirty", str(path)], timeout=30)
    needs_recovery = "needs_recovery" in run(["dumpe2fs", "-h", str(path)], timeout=30)
    checked = subprocess.run(["e2fsck", "-f", "-n", str(path)], capture_output=True, check=False, timeout=30)
    return said, checked.returncode == 0 and not needs_recovery


def test_a_frozen_file_system_is_whole_in_its_snapshot(
    service: Service,
    ceph: Ceph,
    sockets: pathlib.Path,
    guest_of: Callable[..., Guest],
    tmp_path: pathlib.Path,
) -> None:
    guest = guest_of(agent=True)
    once = service.directory / "once"
    once.touch()
    service.start("backends.dying_api", DIE_AT="freezes.thaw:begun", DIE_ONCE=str(once))
    volume = service.create()
    ceph.write(f"volume-{volume}", formatted(tmp_path / "empty"), 0)
    assert service.attach(guest.uuid, volume).status == 200
    guest.run(f"mount -t ext4 -o commit=300 {guest.wait_disk(volume)} /mnt; echo data > /mnt/dirty")

    guest.run("kill -STOP $(pidof qemu-ga)")
    unfrozen = snapshot(service, volume)
    assert found_in(service, ceph, unfrozen, tmp_path / "unfrozen") == ("", False)
    assert "no guest agent answers" in service.log.read_text(encoding="utf-8")

    guest.run("kill -CONT $(pidof qemu-ga)")
    with pytest.raises((OSError, LabError)):  # It dies when the guest is to be thawed.
        snapshot(service, volume)
    agent = QmpHypervisor(sockets, connect_timeout=3, command_timeout=5, host="test", locks=tmp_path)
    assert agent.find(guest.uuid).is_frozen()
    service.kill()
    service.start()
    wait(lambda: agent.find(guest.uuid).is_frozen() is False, timeout=20, what="the guest to be thawed")
    agent.close()
    guest.run("echo more > /mnt/more; sync")

    [frozen] = [one["id"] for one in service.call("GET", "/v3/snapshots").body["snapshots"] if one["id"] != unfrozen]
    shown = f"/v3/snapshots/{frozen}"
    wait(lambda: service.call("GET", shown).body["snapshot"]["status"] == "available", timeout=20, what="the snapshot")
    assert found_in(service, ceph, frozen, tmp_path / "frozen") == ("data\n", True)
    guest.run("umount /mnt")
    service.detach(guest.uuid, volume)
