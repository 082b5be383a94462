# SPDX-License-Identifier: Apache-2.0
"""What cinderlite costs over the bare calls: medians and ratios, interleaved in one run; see `tools/bench`.

A bare call and the same thing through the API take turns, so that a machine whose speed drifts slows both. The ratios
are what counts; the milliseconds are those of a small emulated guest and a one-node Ceph on loopback. How the cost
grows with what there is, `growth` measures.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import rados
import rbd
import sqlalchemy

import growth
import reporting
from backends.glance import Glance
from backends.service import Service
from cinderlite.db import models
from cinderlite.db.session import Database
from cinderlite.guests import RbdDisk, disks, domains
from lab.ceph import Ceph
from lab.guest import Guest
from lab.libvirt import Domain, Libvirt
from lab.process import run
from measuring import Client, available, commit, expect, timed

MIB, GIB = 2**20, 2**30
#: The pool that backups go to.
BACKUPS = "backups"
#: A real cluster's monitors agree once a second, and the lab's, as often as they are asked.
_HASTY = "10 snapshots, monitors of the lab"
#: How many guests there are for attachments at a time.
CROWD = 20
#: What is compared with bare calls, and how many times their time it may take.
AIMS: dict[str, float | None] = {
    "create": 2.0,
    "delete": 2.0,
    "clone": 2.0,
    "10 snapshots": 1.3,
    _HASTY: None,
    "attach": 1.3,
    "detach": 1.3,
    "attach, libvirt": 1.3,
    "detach, libvirt": 1.3,
    f"{CROWD} attachments": None,
}
#: Where a disk is plugged in: of the guest that is looked at, and of one of the crowd.
PORT = disks.Place("virtio-blk-pci", "port1", "0x0", "/dev/vd")
TARGET = disks.Place("scsi-hd", "scsi0.0", None, "/dev/sd")


class Bare:
    """The same things without cinderlite: librbd in this process, QMP over a second monitor of the guest."""

    def __init__(self, ceph: Ceph, guest: Guest) -> None:
        self.cluster = rados.Rados(conffile=str(ceph.conf), name=f"client.{ceph.user}")
        self.cluster.conf_set("rbd_default_clone_format", "2")  # As the service does: nothing to protect.
        self.cluster.connect()
        self.ioctx = self.cluster.open_ioctx(ceph.pool)
        self.rbd = rbd.RBD()
        self.ceph = ceph
        self.guest = guest
        port = int(ceph.conf.read_text(encoding="ascii").split(",v1:127.0.0.1:")[1].split("]")[0])
        self.monitors = [("127.0.0.1", port)]
        self.key = ceph.command("auth", "print-key", f"client.{ceph.user}").strip()

    def disk(self, name: str, volume: str) -> RbdDisk:
        """The description that cinderlite would make too."""
        return RbdDisk(volume, self.ceph.pool, name, self.monitors, self.ceph.user, self.key)

    @contextlib.contextmanager
    def monitor(self, guest: Guest | None = None) -> Iterator[Monitor]:
        """A connection to the guest's other monitor."""
        monitor = Monitor(guest or self.guest)
        try:
            yield monitor
        finally:
            monitor.close()

    def attach(self, disk: RbdDisk, guest: Guest | None = None, place: disks.Place = PORT) -> None:
        """The bare sequence of attaching."""
        with self.monitor(guest) as monitor:
            for command in disks.attach(disk, place):
                monitor.do(command.name, command.arguments)

    @contextlib.contextmanager
    def domain(self, domain: Domain, disk: RbdDisk) -> Iterator[tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
        """libvirt's calls that attach and detach a disk, over one connection and with one secret for all."""
        connection = domain.libvirt.connection()
        secret = connection.secretDefineXML(domains.secret("ceph", domain.uuid, disk.volume_id))
        secret.setValue(base64.b64decode(self.key))
        found = connection.lookupByUUIDString(domain.uuid)
        xml = domains.make(disk, domain.uuid, domains.Place("virtio", "vda"))
        both = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        yield lambda _: found.attachDeviceFlags(xml, both), lambda _: found.detachDeviceFlags(xml, both)
        secret.undefine()
        connection.close()

    def detach(self, volume: str, guest: Guest | None = None) -> None:
        """The bare sequence of detaching."""
        with self.monitor(guest) as monitor:
            monitor.do("device_del", {"id": disks.device_id(volume)})
            monitor.event("DEVICE_DELETED", disks.device_id(volume))
            nodes = disks.names(monitor.do("query-blockstats", {"query-nodes": True}))
            mine = disks.top_node(volume), *disks.below(volume, nodes), disks.group(volume)
            for command in disks.detach(volume, nodes):
                if {*command.arguments.values()} & {*mine}:
                    monitor.do(command.name, command.arguments)


class Monitor:
    """The least of QMP."""

    def __init__(self, guest: Guest) -> None:
        import socket

        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(guest.directory / "private.sock"))
        self._stream = self._socket.makefile("rw", encoding="utf-8")
        self._events: list[Any] = []
        self._stream.readline()
        self.do("qmp_capabilities", {})

    def do(self, command: str, arguments: Any) -> Any:
        """One command."""
        self._stream.write(json.dumps({"execute": command, "arguments": dict(arguments)}) + "\n")
        self._stream.flush()
        while "event" in (said := json.loads(self._stream.readline())):
            self._events.append(said)
        if "error" in said:
            raise RuntimeError(f"{command}: {said['error']['desc']}")
        return said["return"]

    def event(self, name: str, device: str) -> None:
        """Wait for an event of a device."""
        while not any(one["event"] == name and one.get("data", {}).get("device") == device for one in self._events):
            self._events.append(json.loads(self._stream.readline()))

    def close(self) -> None:
        """Let go."""
        self._stream.close()
        self._socket.close()


@dataclasses.dataclass(frozen=True)
class Lab:
    """What the service works on."""

    ceph: Ceph
    guest: Guest
    libvirt: Libvirt
    glance: Glance


class Bench:
    """The measurements; `samples` are milliseconds by name."""

    def __init__(self, service: Service, lab: Lab, rounds: int) -> None:
        self.service, self.rounds = service, rounds
        self.ceph, self.guest, self.libvirt, self.glance = lab.ceph, lab.guest, lab.libvirt, lab.glance
        self.client = Client(service)
        self.bare = Bare(lab.ceph, lab.guest)
        self.samples: dict[str, list[float]] = {}
        self.facts: dict[str, float] = {}

    def note(self, name: str, milliseconds: float) -> None:
        """One sample."""
        self.samples.setdefault(name, []).append(milliseconds)

    def volumes(self) -> None:
        """Create and delete."""
        for number in range(self.rounds):
            name = f"bench-{number}"
            self.note("bare create", timed(functools.partial(self.bare.rbd.create, self.bare.ioctx, name, GIB))[0])
            spent, volume = self.made()
            self.note("create", spent)
            self.note("bare delete", timed(functools.partial(self.bare.rbd.trash_move, self.bare.ioctx, name, 0))[0])
            self.note("delete", timed(functools.partial(self.remove, volume))[0])
        for entry in list(self.bare.rbd.trash_list(self.bare.ioctx)):
            if entry["name"].startswith("bench-"):
                self.bare.rbd.trash_remove(self.bare.ioctx, entry["id"], True)

    def clones(self) -> None:
        """Make a volume of a snapshot."""
        bare = self.bare
        bare.rbd.create(bare.ioctx, "bench-parent", GIB)
        with rbd.Image(bare.ioctx, "bench-parent") as image:
            image.create_snap("s")
        parent = self.made()[1]
        snapshot = self.snapshot(Client(self.service), parent)
        for number in range(self.rounds):
            name = f"bench-clone-{number}"
            clone = functools.partial(bare.rbd.clone, bare.ioctx, "bench-parent", "s", bare.ioctx, name)
            self.note("bare clone", timed(clone)[0])
            spent, volume = self.made(snapshot_id=snapshot)
            self.note("clone", spent)
            bare.rbd.remove(bare.ioctx, name)
            self.remove(volume)
        with rbd.Image(bare.ioctx, "bench-parent") as image:
            image.remove_snap("s")
        bare.rbd.remove(bare.ioctx, "bench-parent")

    def snapshots(self) -> None:
        """Ten snapshots of ten volumes at a time; each needs the monitors to agree."""
        many = 10
        images = [f"bench-many-{number}" for number in range(many)]
        for name in images:
            self.bare.rbd.create(self.bare.ioctx, name, GIB)
        volumes = [self.made()[1] for _ in images]
        clients = [Client(self.service) for _ in images]

        def bare(name: str, snap: str) -> None:
            with rbd.Image(self.bare.ioctx, name) as image:
                image.create_snap(snap)

        def all_at_once(work: Callable[..., Any], *arguments: Any) -> float:
            return timed(lambda: list(pool.map(work, *arguments)))[0]

        with concurrent.futures.ThreadPoolExecutor(many) as pool:
            for what, interval, least in (("10 snapshots", "1", "0.05"), (_HASTY, "0.05", "0.01")):
                self.ceph.command("tell", "mon.*", "config", "set", "paxos_propose_interval", interval)
                self.ceph.command("tell", "mon.*", "config", "set", "paxos_min_wait", least)
                for _ in range(max(5, self.rounds // 3)):
                    self.note(f"bare {what}", all_at_once(bare, images, [str(uuid.uuid4())] * many))
                    self.note(what, all_at_once(self.snapshot, clients, volumes))
        for name in images:
            with rbd.Image(self.bare.ioctx, name) as image:
                for snap in list(image.list_snaps()):
                    image.remove_snap(snap["name"])
            self.bare.rbd.remove(self.bare.ioctx, name)

    def made(self, size: int = 1, **fields: Any) -> tuple[float, str]:
        """Make a volume; milliseconds of the request, after which the volume must be available, and its id."""
        body = {"volume": {"size": size, **fields}}
        spent, answer = timed(functools.partial(self.client.call, "POST", "/v3/volumes", body))
        volume = str(answer["volume"]["id"])
        available(self.client, volume)
        return spent, volume

    def remove(self, volume: str) -> None:
        """Delete a volume."""
        self.client.call("DELETE", f"/v3/volumes/{volume}")

    def snapshot(self, client: Client, volume: str) -> str:
        """Take a snapshot; its id."""
        return str(client.call("POST", "/v3/snapshots", {"snapshot": {"volume_id": volume}})["snapshot"]["id"])

    def seen(self, guest: Guest, volume: str, attach: Callable[[], Any]) -> float:
        """Milliseconds from the call until the guest's kernel shows the disk."""
        watching = threading.Event()
        # Without a process begun for each look, which an emulated processor would be busy with, and we wait for.
        looks = "set -- /sys/block/vd*/serial; [ -e $1 ]"
        word = f"until {looks}; do read -t 0.005 -r never <&4; done; grep -q {volume[:20]} $1"

        def watch() -> float:
            watching.set()
            guest.run(word, timeout=60)
            return time.perf_counter()

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            found = pool.submit(watch)
            watching.wait()
            time.sleep(0.05)
            began = time.perf_counter()
            attach()
            return (found.result() - began) * 1000

    def attachments(self) -> None:
        """Attach until the guest sees it, detach until it is released; by QMP, and by libvirt."""
        with self.a_stranger() as disk:
            self._attachments(self.guest, disk, "", self.bare.attach, self.bare.detach)
        self.guest.pause()  # So that only one emulated guest has the processors.
        domain = Domain(self.libvirt, "linux")
        try:
            domain.start()
            with self.a_stranger() as disk, self.bare.domain(domain, disk) as (attach, detach):
                self._attachments(domain, disk, ", libvirt", attach, detach)
        finally:
            domain.forget()
            self.guest.resume()

    @contextlib.contextmanager
    def a_stranger(self) -> Iterator[RbdDisk]:
        """An image that cinderlite does not know."""
        image = f"bench-{uuid.uuid4()}"
        self.bare.rbd.create(self.bare.ioctx, image, GIB)
        yield self.bare.disk(image, str(uuid.uuid4()))
        self.bare.rbd.remove(self.bare.ioctx, image)

    def _attachments(
        self, guest: Guest, disk: RbdDisk, how: str, attach: Callable[[RbdDisk], Any], detach: Callable[[str], Any]
    ) -> None:
        volume = self.made()[1]
        path = f"/v2.1/servers/{guest.uuid}/os-volume_attachments"
        body = {"volumeAttachment": {"volumeId": volume}}
        for _ in range(max(5, self.rounds // 3)):
            self.note(f"bare attach{how}", self.seen(guest, disk.volume_id, lambda: attach(disk)))
            time.sleep(0.3)
            self.note(f"bare detach{how}", timed(lambda: detach(disk.volume_id))[0])
            time.sleep(0.3)
            self.note(f"attach{how}", self.seen(guest, volume, lambda: self.client.call("POST", path, body)))
            time.sleep(0.3)
            self.note(f"detach{how}", timed(lambda: self.client.call("DELETE", f"{path}/{volume}"))[0])
            time.sleep(0.3)
        self.remove(volume)

    def crowd(self) -> None:
        """An attachment to one of many guests, and one to each of them at a time.

        They have no operating system: what is measured is the request, and SCSI asks no guest.
        """
        directory = self.guest.images / "crowd"
        guests = [
            Guest(
                directory, f"crowd{number}", sockets=self.guest.sockets, ports=0, scsi=True, memory=48, guest_os=False
            )
            for number in range(CROWD)
        ]
        try:
            for guest in guests:
                guest.start()
            images = [f"bench-crowd-{number}" for number in range(CROWD)]
            for image in images:
                self.bare.rbd.create(self.bare.ioctx, image, GIB)
            strangers = [self.bare.disk(image, str(uuid.uuid4())) for image in images]
            volumes = [self.made()[1] for _ in guests]
            clients = [Client(self.service) for _ in guests]
            self._crowd(guests, strangers, list(zip(clients, guests, volumes, strict=True)))
            for image, volume in zip(images, volumes, strict=True):
                self.remove(volume)
                self.bare.rbd.remove(self.bare.ioctx, image)
        finally:
            for guest in guests:
                guest.forget()

    def _crowd(self, guests: list[Guest], strangers: list[RbdDisk], ours: list[tuple[Client, Guest, str]]) -> None:
        def path(guest: Guest) -> str:
            return f"/v2.1/servers/{guest.uuid}/os-volume_attachments"

        def attach(client: Client, guest: Guest, volume: str) -> None:
            client.call("POST", path(guest), {"volumeAttachment": {"volumeId": volume}})

        def detach(client: Client, guest: Guest, volume: str) -> None:
            client.call("DELETE", f"{path(guest)}/{volume}")
            expect(client.call("GET", f"/v3/volumes/{volume}")["volume"]["status"] == "available", "it to be detached")

        with concurrent.futures.ThreadPoolExecutor(CROWD) as pool:

            def all_at_once(work: Callable[..., Any], *arguments: Any) -> float:
                return timed(lambda: list(pool.map(work, *arguments)))[0]

            for _ in range(5):
                self.note("bare attach of one", timed(lambda: self.bare.attach(strangers[0], guests[0], TARGET))[0])
                self.bare.detach(strangers[0].volume_id, guests[0])
                self.note("attach of one", timed(lambda: attach(*ours[0]))[0])
                detach(*ours[0])
                bare = all_at_once(self.bare.attach, strangers, guests, [TARGET] * CROWD)
                self.note(f"bare {CROWD} attachments", bare)
                all_at_once(self.bare.detach, [disk.volume_id for disk in strangers], guests)
                self.note(f"{CROWD} attachments", all_at_once(attach, *zip(*ours, strict=True)))
                all_at_once(detach, *zip(*ours, strict=True))

    def lists(self) -> None:
        """1,000 volumes in detail, of 1,000 and of 10,000 rows."""
        for total, name in ((1000, "list 1000 of 1000"), (10000, "list 1000 of 10000")):
            _fill(self.service, total)
            for _ in range(10):
                listed = functools.partial(self.client.call, "GET", "/v3/volumes/detail?limit=1000", version="3.71")
                spent, answer = timed(listed)
                expect(len(answer["volumes"]) == 1000, "1000 volumes in the list")
                self.note(name, spent)

    def shows(self) -> None:
        """Requests per second of show with eight clients."""
        volume = self.client.call("GET", "/v3/volumes?limit=1")["volumes"][0]["id"]
        each = 250

        def ask() -> None:
            client = Client(self.service)
            for _ in range(each):
                client.call("GET", f"/v3/volumes/{volume}")

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            began = time.perf_counter()
            for future in [pool.submit(ask) for _ in range(8)]:
                future.result()
            self.facts["show, 8 clients, requests/s"] = 8 * each / (time.perf_counter() - began)

    def memory(self) -> None:
        """Resident memory of every process of the service, MiB."""
        sizes = self.sizes()
        self.facts["memory, largest process, MiB"] = max(sizes)
        self.facts["memory, all processes, MiB"] = sum(sizes)

    def sizes(self) -> list[float]:
        """MiB that each process of the service has in memory."""
        listed = run(["ps", "-o", "rss=", "--ppid", str(self.service.pid), "--pid", str(self.service.pid)])
        return [int(line) / 1024 for line in listed.split()]

    def data(self) -> None:
        """Memory while data pass through: a volume's into a backup, and an image's into a volume, small and big."""
        block = os.urandom(4 * MIB)
        for size in (256 * MIB, 2 * GIB):
            volume = self.made(size=2)[1]
            with rbd.Image(self.bare.ioctx, f"volume-{volume}") as image:
                for offset in range(0, size, len(block)):
                    image.write(block, offset)
            self.peak(f"backup of {size // MIB} MiB", "backups", "backup", {"volume_id": volume})
            image_id = self.glance.create(block * (size // len(block)), store="file")
            self.peak(f"import of {size // MIB} MiB", "volumes", "volume", {"size": 2, "imageRef": image_id})
            self.glance.delete(image_id)

    def peak(self, what: str, things: str, thing: str, body: dict[str, Any]) -> None:
        """The most memory of all processes while something is being made."""
        most = 0.0
        made = self.client.call("POST", f"/v3/{things}", {thing: body})[thing]["id"]
        while (status := self.client.call("GET", f"/v3/{things}/{made}")[thing]["status"]) != "available":
            expect(status in ("creating", "downloading"), f"{what} to go on, not to be {status}")
            most = max(most, sum(self.sizes()))
            time.sleep(0.05)
        expect(most > 0, f"{what} to take longer than a request")
        self.facts[f"memory, {what}, all processes, MiB"] = most


def _fill(service: Service, total: int) -> None:
    """Rows up to `total`, straight into the database."""
    database = Database(f"sqlite:///{service.directory}/cinderlite.sqlite", 30)
    with database.write() as session:
        kind = session.scalar(sqlalchemy.select(models.VolumeType.id))
        count = session.scalar(
            sqlalchemy.select(sqlalchemy.func.count())
            .where(models.Volume.deleted.is_(False))
            .select_from(models.Volume)
        )
        start = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 -- naive UTC, as the database keeps it
        rows = [
            {
                "id": str(uuid.uuid4()), "project_id": "demo", "user_id": "alice", "name": f"row {number}", "size": 1,
                "status": "available", "availability_zone": "nova", "host": "h@ceph#ceph", "volume_type_id": kind,
                "bootable": False, "multiattach": False, "consumes_quota": True, "deleted": False, "busy": 0,
                "lease_until": 0.0, "created_at": start + datetime.timedelta(seconds=number),
            }
            for number in range(total - int(count or 0))
        ]  # fmt: skip
        session.execute(sqlalchemy.insert(models.Volume), rows)
    database.close()


def report(bench: Bench) -> dict[str, Any]:
    """Medians, ratios and facts."""
    medians = {name: round(statistics.median(values), 2) for name, values in bench.samples.items()}
    ratios = {name: round(medians[name] / medians[f"bare {name}"], 2) for name in AIMS}
    for kind in ("", "bare "):
        ratios[f"{kind}crowd / one"] = round(medians[f"{kind}{CROWD} attachments"] / medians[f"{kind}attach of one"], 2)
    ratios["list of 10000 rows / of 1000"] = round(medians["list 1000 of 10000"] / medians["list 1000 of 1000"], 2)
    return {
        "median_ms": medians,
        "ratio": ratios,
        "facts": {name: round(value, 1) for name, value in bench.facts.items()},
    }


def _service(directory: pathlib.Path, lab: Lab) -> Service:
    options: dict[str, object] = {
        "quota_volumes": -1, "quota_gigabytes": -1, "quota_snapshots": -1, "reconcile_interval": 5,
        "backup_ceph_pool": BACKUPS, "backup_ceph_conf": lab.ceph.conf, "backup_ceph_user": lab.ceph.user,
        "glance_api_servers": lab.glance.url,
    }  # fmt: skip
    sections: dict[str, dict[str, object]] = {"DEFAULT": options, "guests": {"libvirt_uris": lab.libvirt.uri}}
    service = Service(directory / "service", lab.ceph.conf, directory / "sockets", sections)
    service.start()
    return service


def bare(directory: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Everything that is measured beside bare calls; see `report`."""
    ceph, guest = Ceph(directory / "ceph"), Guest(directory, "vm1", sockets=directory / "sockets", ports=2)
    directory.chmod(0o711)  # libvirt's guests run as another user.
    daemon = Libvirt(directory / "libvirt")
    try:
        ceph.start()
        daemon.start()
        ceph.add_pool(BACKUPS)
        guest.start()
        with Glance.running(directory / "glance") as glance:
            lab = Lab(ceph, guest, daemon, glance)
            service = _service(directory, lab)
            try:
                bench = Bench(service, lab, rounds)
                for part in (
                    bench.volumes, bench.clones, bench.snapshots, bench.attachments, bench.crowd, bench.lists,
                    bench.shows, bench.memory, bench.data,
                ):  # fmt: skip
                    print(f"measuring {part.__name__} …", file=sys.stderr, flush=True)
                    part()
            finally:
                service.kill()
    finally:
        guest.forget()
        daemon.destroy()
        ceph.destroy()
    return report(bench)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="how often each thing is done (30)")
    parser.add_argument("--requests", type=int, default=growth.FULL.requests, help="over which memory must stay")
    parser.add_argument("--only", help=f"some parts, with commas: {', '.join(('bare', *growth.PARTS))}")
    parser.add_argument("--small", action="store_true", help="only try whether everything can be measured; minutes")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there too; parts left out stay in it")
    parser.add_argument("--page", type=pathlib.Path, help="write all of them there as a page, with charts beside it")
    arguments = parser.parse_args()
    parts = arguments.only.split(",") if arguments.only else ["bare", *growth.PARTS]
    if unknown := {*parts} - {"bare", *growth.PARTS}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if arguments.small and (arguments.json or arguments.page):
        parser.error("what --small measures is not kept")
    if arguments.only and arguments.page and not arguments.json:
        parser.error("a page of some parts would lack the others: name the --json that has them")
    sizes = dataclasses.replace(growth.FULL, rounds=arguments.rounds, requests=arguments.requests)
    figures = reporting.Figures.load(arguments.json)
    for name in parts:
        print(f"part {name} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="cl-", dir="/var/tmp") as place:
            if name == "bare":
                figures.bare = bare(pathlib.Path(place), growth.SMALL.rounds if arguments.small else arguments.rounds)
                figures.rounds = arguments.rounds
            else:
                figures.grown[name] = growth.measure(
                    pathlib.Path(place), name, growth.SMALL if arguments.small else sizes
                )
        figures.commits[name] = commit()
        if arguments.json:
            figures.save(arguments.json)
    print(reporting.text(figures, AIMS, CROWD))
    if arguments.page:
        reporting.write(arguments.page, figures, AIMS, CROWD)
    return 0


if __name__ == "__main__":
    sys.exit(main())
