# SPDX-License-Identifier: Apache-2.0
"""Random work with faults in the middle of it; when the dust has settled rows, devices, watchers and data agree.

Bounded and repeatable as far as such a thing can be: CHAOS_SEED chooses what happens, CHAOS_STEPS how often. What falls
together with what is the machine's to say.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backends.service import HASTY, Answer, Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import PATIENCE, LabError, wait

pytestmark = pytest.mark.real

SEED = int(os.environ.get("CHAOS_SEED", "20261121"))
STEPS = int(os.environ.get("CHAOS_STEPS", "24"))
MIB = 2**20
#: Bigger than that no volume gets, in GiB.
BIGGEST = 4


@dataclasses.dataclass
class Volume:
    """What is known of a volume for certain: the least size, in GiB, and the sha256 of its first MiB."""

    id: str
    size: int
    digest: str


class Chaos:
    """The work, the faults, and what must hold afterwards."""

    def __init__(self, service: Service, ceph: Ceph, guests: list[Guest], dice: random.Random) -> None:
        self.service, self.ceph, self.guests, self.dice = service, ceph, guests, dice
        self.volumes: dict[str, Volume] = {}
        #: snapshot → the sha256 of the first MiB when it was taken
        self.snapshots: dict[str, str] = {}
        self.pool = concurrent.futures.ThreadPoolExecutor(1)

    # -- the work; each returns what is to be done, so that a fault can come in the middle

    def add(self) -> None:
        """A volume with data, before anything breaks."""
        made = self.service.create()
        data = os.urandom(16) * (MIB // 16)
        self.ceph.write(f"volume-{made}", data)
        self.volumes[made] = Volume(made, 1, hashlib.sha256(data).hexdigest())

    def attach(self, volume: Volume) -> None:
        guest = self.dice.choice(self.guests)
        self._call(
            "POST", f"/v2.1/servers/{guest.uuid}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume.id}}
        )

    def detach(self, volume: Volume) -> None:
        for server in self._servers(volume.id):
            self._call("DELETE", f"/v2.1/servers/{server}/os-volume_attachments/{volume.id}")

    def extend(self, volume: Volume) -> None:
        size = volume.size + 1
        answer = None
        if size <= BIGGEST:
            answer = self._call("POST", f"/v3/volumes/{volume.id}/action", {"os-extend": {"new_size": size}}, "3.42")
        if answer is not None and answer.status == 202:
            volume.size = size

    def snapshot(self, volume: Volume) -> None:
        body = {"snapshot": {"volume_id": volume.id, "force": True}}
        answer = self._call("POST", "/v3/snapshots", body)
        if answer is not None and answer.status == 202:
            self.snapshots[answer.body["snapshot"]["id"]] = volume.digest

    def write(self, volume: Volume) -> None:
        """By a guest that has it for certain. If it does not, nothing was written."""
        for guest in self.guests:
            if guest.running() and self._servers(volume.id) == [guest.uuid]:
                guest.ready()
                device = guest.find(volume.id)
                if device is not None and self.service.volume(volume.id)["status"] == "in-use":
                    volume.digest = guest.write(device, str(self.dice.random()), 1)

    def _call(self, method: str, path: str, body: Any = None, version: str = "") -> Answer | None:
        """The answer; None if the service died meanwhile."""
        with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
            answer = self.service.call(method, path, body, version=version)
            assert answer.status in (200, 202, 400, 404, 409, 503), (method, path, answer.status, answer.text)
            return answer
        return None

    def _servers(self, volume: str) -> list[str]:
        return [one["server_id"] for one in self.service.volume(volume).get("attachments", [])]

    # -- the faults; each makes good what it broke, but not what follows from that

    def kill_api(self) -> None:
        self.service.kill()
        self.service.start()

    def kill_guest(self) -> None:
        guest = self.dice.choice(self.guests)
        guest.kill()
        time.sleep(self.dice.uniform(0, 4))
        guest.start()

    def freeze_osd(self) -> None:
        self.ceph.pause_osd()
        time.sleep(self.dice.uniform(0.2, 7))
        self.ceph.resume_osd()

    def kill_osd(self) -> None:
        self.ceph.kill_osd()
        time.sleep(self.dice.uniform(0, 2))
        self.ceph.start()

    def step(self) -> None:
        """One piece of work, maybe with a fault in the middle of it."""
        work = self.dice.choices(
            [self.attach, self.detach, self.extend, self.snapshot, self.write], weights=[6, 4, 2, 2, 4]
        )[0]
        fault: Callable[[], None] = self.dice.choices(
            [lambda: None, self.kill_api, self.kill_guest, self.freeze_osd, self.kill_osd], weights=[8, 3, 2, 2, 1]
        )[0]
        volume = self.dice.choice(list(self.volumes.values()))
        if work == self.write:
            work(volume)
            fault()
            return
        begun = self.pool.submit(work, volume)
        time.sleep(self.dice.uniform(0, 0.4))
        fault()
        begun.result(120)

    # -- what must hold

    def disagreements(self) -> list[str]:
        """Where rows, devices, watchers, images and sizes are not of one mind; empty at rest."""
        rows = {one["id"]: one for one in self._listed("volumes")}
        found = [f"lost {one}" for one in self.volumes.keys() - rows.keys()]
        found += [
            f"{one['id']} is {one['status']}" for one in rows.values() if one["status"] not in ("available", "in-use")
        ]
        snapshots = {one["id"]: one["status"] for one in self._listed("snapshots")}
        found += [f"lost {one}" for one in self.snapshots.keys() - snapshots.keys()]
        found += [f"snapshot {one} is {how}" for one, how in snapshots.items() if how != "available"]
        in_ceph = json.loads(self.ceph.rbd("ls", "-l", "--format", "json", self.ceph.pool))
        images = {one["image"]: one["size"] for one in in_ceph if "snapshot" not in one}
        taken = {one["snapshot"] for one in in_ceph if "snapshot" in one}
        if set(images) != {f"volume-{one}" for one in rows} or taken != {f"snapshot-{one}" for one in snapshots}:
            found.append(f"Ceph has {sorted(images)}, {sorted(taken)}")
        for guest in self.guests:
            try:
                devices = guest.holdings()["devices"]
            except LabError as error:  # Its QEMU waits for an OSD that was started anew.
                found.append(str(error))
                continue
            held = {one.removeprefix("volume-") for one in devices if one.startswith("volume-")}
            mine = {key for key, row in rows.items() for one in row["attachments"] if one["server_id"] == guest.uuid}
            if held != mine:
                found.append(f"{guest.name} has {sorted(held)} and should have {sorted(mine)}")
        for key, row in rows.items():
            if len(self.ceph.watchers(f"volume-{key}")) != len(row["attachments"]):
                found.append(f"{key} is open {self.ceph.watchers(f'volume-{key}')}")
            if images.get(f"volume-{key}", 0) != row["size"] * 1024 * MIB:
                found.append(f"{key} has {images.get(f'volume-{key}')} bytes")
        return found

    def _listed(self, what: str) -> list[dict[str, Any]]:
        return list(self.service.call("GET", f"/v3/{what}/detail", version="3.71").body[what])

    def rest(self) -> None:
        """Wait for that. Raises LabError with what does not agree."""
        deadline = time.monotonic() + PATIENCE * 90
        while found := self.disagreements():
            if time.monotonic() > deadline:
                raise LabError(f"{found}; {self.service.tail()}")
            time.sleep(0.5)

    def digests(self) -> dict[str, str]:
        """The data of each volume, read where it is."""
        found = {}
        for volume in self.volumes.values():
            where = [guest for guest in self.guests if guest.uuid in self._servers(volume.id)]
            if where:
                where[0].ready()
                found[volume.id] = where[0].sha256(where[0].wait_disk(volume.id), 1)
            else:
                found[volume.id] = hashlib.sha256(self.ceph.read(f"volume-{volume.id}", MIB)).hexdigest()
        return found

    def of_snapshots(self) -> dict[str, str]:
        """The data of each snapshot, read from a volume made from it."""
        found = {}
        for snapshot in self.snapshots:
            made = self.service.create(size=BIGGEST, snapshot_id=snapshot)
            self.service.rest(made, "available")
            found[snapshot] = hashlib.sha256(self.ceph.read(f"volume-{made}", MIB)).hexdigest()
        return found

    def clear(self) -> None:
        """Detach and delete all of it as a tenant would."""
        for one in self._listed("volumes"):
            for attachment in one["attachments"]:
                assert self.service.detach(attachment["server_id"], one["id"]).status == 202
        for one in self._listed("volumes"):
            self.service.rest(one["id"], "available")
            assert self.service.call("DELETE", f"/v3/volumes/{one['id']}?cascade=true").status == 202


@pytest.fixture
def chaos(tmp_path: pathlib.Path, ceph: Ceph, lab_directory: pathlib.Path) -> Iterator[Chaos]:
    """A service over guests of its own, which may be killed."""
    sockets = lab_directory / "chaos"
    guests = [Guest(lab_directory, f"chaos{number}", sockets=sockets, ports=6) for number in range(2)]
    service = Service(tmp_path, ceph.conf, sockets, HASTY)
    try:
        for guest in guests:
            guest.start(wait_for_os=False)
        service.start()
        yield Chaos(service, ceph, guests, random.Random(SEED))
    finally:
        service.stop()
        for guest in guests:
            guest.forget()
        with contextlib.suppress(LabError):
            ceph.resume_osd()
        ceph.start()
        ceph.empty()


@pytest.mark.timeout(3000)
def test_whatever_breaks_all_comes_to_rest(chaos: Chaos) -> None:
    users = chaos.ceph.command("auth", "ls", "--format", "json")
    before = [guest.holdings() for guest in chaos.guests]
    for guest in chaos.guests:
        guest.ready()
    for _ in range(4):
        chaos.add()
    for _ in range(STEPS):
        chaos.step()
    chaos.rest()
    assert chaos.digests() == {one.id: one.digest for one in chaos.volumes.values()}
    assert all(chaos.service.volume(one.id)["size"] >= one.size for one in chaos.volumes.values())
    assert chaos.of_snapshots() == chaos.snapshots
    chaos.clear()
    wait(lambda: not chaos.ceph.images() and not chaos.ceph.trash(), timeout=60, what="Ceph to be empty")
    assert [guest.holdings() for guest in chaos.guests] == before
    # A user that was made while nobody knew of it goes with a later look.
    wait(lambda: chaos.ceph.command("auth", "ls", "--format", "json") == users, timeout=90, what="their users to go")
