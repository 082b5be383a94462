# SPDX-License-Identifier: Apache-2.0
"""Volumes from images and images of volumes with a real Glance, its files and its pool, a real Ceph and qemu-img."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from backends.glance import POOL, Glance
from backends.service import Service
from lab.ceph import Ceph
from lab.process import wait

pytest.importorskip("openstack", reason="the extra 'glance' is not installed")
pytestmark = pytest.mark.real

MIB = 2**20
DISK = b"begin" + os.urandom(MIB) + bytes(9 * MIB) + b"end"


@pytest.fixture(scope="module")
def glance(lab_directory: pathlib.Path, ceph: Ceph) -> Iterator[Glance]:
    """An image service that believes anybody; its default store is in Ceph."""
    with Glance.running(lab_directory / "glance-of-images", ceph) as made:
        yield made


@pytest.fixture
def cloud(tmp_path: pathlib.Path, ceph: Ceph, glance: Glance, sockets: pathlib.Path) -> Iterator[Service]:
    """A running service over it."""
    sockets.mkdir(exist_ok=True)
    running = Service(tmp_path, ceph.conf, sockets, {"DEFAULT": {"glance_api_servers": glance.url}})
    running.start()
    yield running
    running.stop()
    ceph.empty()
    for image in glance.images():
        glance.delete(image["id"])


def converted(tmp_path: pathlib.Path, disk_format: str, *options: str) -> bytes:
    raw, made = tmp_path / "disk", tmp_path / "converted"
    raw.write_bytes(DISK.ljust(16 * MIB, b"\0"))
    subprocess.run(["qemu-img", "convert", "-O", disk_format, *options, raw, made], check=True, timeout=60)
    return made.read_bytes()


def holds(ceph: Ceph, volume: str, data: bytes) -> bool:
    image = f"volume-{volume}"
    return ceph.read(image, len(data)) == data and not any(ceph.read(image, MIB, len(data)))


def parent(ceph: Ceph, volume: str) -> Any:
    return json.loads(ceph.rbd("info", f"{ceph.pool}/volume-{volume}", "--format", "json")).get("parent")


def test_a_raw_image_in_the_same_cluster_is_cloned_at_once(cloud: Service, ceph: Ceph, glance: Glance) -> None:
    image = glance.create(DISK.ljust(16 * MIB, b"\0"), name="debian", os_distro="debian")
    volume = cloud.create(imageRef=image, size=2)
    shown = cloud.volume(volume)
    assert (shown["status"], shown["bootable"], shown["volume_image_metadata"]["os_distro"]) == (
        "available", "true", "debian",
    )  # fmt: skip
    above = parent(ceph, volume)
    assert (above["pool"], above["image"], above["snapshot"]) == (POOL, image, "snap")
    assert holds(ceph, volume, DISK)
    assert cloud.call("DELETE", f"/v3/volumes/{volume}").status == 202
    wait(lambda: not ceph.trash(), timeout=60, what="the clone to be gone")


@pytest.mark.parametrize("disk_format", ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx"])
def test_every_other_image_is_copied(
    cloud: Service, ceph: Ceph, glance: Glance, tmp_path: pathlib.Path, disk_format: str
) -> None:
    options = ("-o", "subformat=streamOptimized") if disk_format == "vmdk" else ()
    data = DISK if disk_format == "raw" else converted(tmp_path, {"vhd": "vpc"}.get(disk_format, disk_format), *options)
    volume = cloud.create(imageRef=glance.create(data, store="file", disk_format=disk_format))
    cloud.rest(volume, "available")
    assert parent(ceph, volume) is None
    assert holds(ceph, volume, DISK)
    assert list((cloud.directory / "conversion").glob("*")) == []


def test_what_would_harm_the_host_ends_in_error(cloud: Service, glance: Glance, tmp_path: pathlib.Path) -> None:
    backed = tmp_path / "backed"
    words = ["qemu-img", "create", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", str(backed), "1M"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    volume = cloud.create(imageRef=glance.create(backed.read_bytes(), store="file", disk_format="qcow2"))
    cloud.rest(volume, "error")
    [message] = cloud.messages(volume)
    assert "backing" in message


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_a_volume_becomes_an_image_and_a_volume_again(
    cloud: Service, ceph: Ceph, glance: Glance, disk_format: str
) -> None:
    volume = cloud.create()
    ceph.write(f"volume-{volume}", DISK)
    body = {"os-volume_upload_image": {"image_name": "made", "disk_format": disk_format}}
    answer = cloud.call("POST", f"/v3/volumes/{volume}/action", body, version="3.1")
    assert answer.status == 202, answer.text
    image = answer.body["os-volume_upload_image"]["image_id"]
    cloud.rest(volume, "available", timeout=120)
    found = glance.image(image)
    assert (found["status"], found["visibility"], found["disk_format"]) == ("active", "private", disk_format)
    assert disk_format != "raw" or found["size"] == 2**30
    assert cloud.messages(volume) == []
    again = cloud.create(imageRef=image)
    cloud.rest(again, "available", timeout=120)
    assert holds(ceph, again, DISK)


def test_an_image_is_written_over_a_volume(cloud: Service, ceph: Ceph, glance: Glance, tmp_path: pathlib.Path) -> None:
    old = glance.create(os.urandom(30 * MIB))
    volume = cloud.create(imageRef=old)
    assert parent(ceph, volume)["image"] == old
    new = glance.create(converted(tmp_path, "qcow2"), store="file", disk_format="qcow2")
    body = {"os-reimage": {"image_id": new}}
    assert cloud.call("POST", f"/v3/volumes/{volume}/action", body, version="3.68").status == 202
    cloud.rest(volume, "available")
    assert cloud.volume(volume)["volume_image_metadata"]["image_id"] == new
    assert holds(ceph, volume, DISK.ljust(31 * MIB, b"\0"))


class Gate(socketserver.ThreadingTCPServer):
    """A way to a server on this host on which no more than so many bytes come back before it is `opened`."""

    daemon_threads = True

    def __init__(self, port: int, most: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passer)
        self.port, self.left, self.opened = port, most, threading.Event()

    @classmethod
    @contextlib.contextmanager
    def before(cls, port: int, most: int) -> Iterator[Gate]:
        with cls(port, most) as gate:
            threading.Thread(target=gate.serve_forever, daemon=True).start()
            try:
                yield gate
            finally:
                gate.opened.set()
                gate.shutdown()


class _Passer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        gate: Any = self.server
        with socket.create_connection(("127.0.0.1", gate.port), timeout=60) as server:
            threading.Thread(target=self._pass, args=(self.request, server), daemon=True).start()
            self._pass(server, self.request, gate)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, gate: Gate | None = None) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
                if gate is not None:
                    gate.left -= len(piece)
                    if gate.left < 0:
                        gate.opened.wait(60)
            target.shutdown(socket.SHUT_WR)


@pytest.mark.slow
def test_a_service_that_is_killed_half_way_finishes_what_it_began(cloud: Service, ceph: Ceph, glance: Glance) -> None:
    data = os.urandom(160 * MIB)
    image = glance.create(data, store="file")
    cloud.stop()
    with Gate.before(glance.port, len(data) // 2) as gate:
        cloud.configure({"DEFAULT": {"glance_api_servers": f"http://127.0.0.1:{gate.server_address[1]}"}})
        cloud.start()
        volume = cloud.create(imageRef=image)
        wait(lambda: f"volume-{volume}" in ceph.images(), timeout=30, what="the image")
        wait(lambda: bool(ceph.read(f"volume-{volume}", 1).strip(b"\0")), timeout=60, what="data to arrive")
        cloud.kill()
        assert any(ceph.read(f"volume-{volume}", MIB, len(data) - MIB)) is False
        gate.opened.set()
        cloud.start()
        cloud.rest(volume, "available", timeout=120)
    found = hashlib.sha256()
    for offset in range(0, len(data), 16 * MIB):
        found.update(ceph.read(f"volume-{volume}", 16 * MIB, offset))
    assert found.digest() == hashlib.sha256(data).digest()


@pytest.mark.slow
def test_a_service_that_is_killed_while_it_uploads_finishes_it(cloud: Service, ceph: Ceph, glance: Glance) -> None:
    volume = cloud.create()
    ceph.write(f"volume-{volume}", DISK)
    body = {"os-volume_upload_image": {"image_name": "made"}}
    answer = cloud.call("POST", f"/v3/volumes/{volume}/action", body)
    image = answer.body["os-volume_upload_image"]["image_id"]
    wait(lambda: glance.image(image)["status"] == "saving", timeout=30, what="the upload to begin")
    cloud.kill()
    cloud.start()
    cloud.rest(volume, "available", timeout=120)
    found = glance.image(image)
    assert (found.get("status"), found.get("size")) == ("active", 2**30), cloud.messages(volume)


def test_with_its_memory_the_service_stays_small(cloud: Service, glance: Glance) -> None:
    volume = cloud.create(imageRef=glance.create(os.urandom(60 * MIB), store="file"))
    cloud.rest(volume, "available")
    for pid in cloud.workers():
        status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        [resident] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
        assert resident < 150 * 1024


def test_an_image_that_is_kept_is_cloned_and_outlives_its_first_volume(
    cloud: Service, ceph: Ceph, glance: Glance, tmp_path: pathlib.Path
) -> None:
    cloud.stop()
    internal = {"cinder_internal_tenant_project_id": "0" * 32, "cinder_internal_tenant_user_id": "cinderlite"}
    cloud.configure({"DEFAULT": internal, "ceph": {"image_volume_cache_enabled": "true"}})
    cloud.start()
    image = glance.create(converted(tmp_path, "qcow2"), store="file", disk_format="qcow2")
    first = cloud.create(imageRef=image, size=3)
    cloud.rest(first, "available")
    [entry] = set(ceph.images()) - {f"volume-{first}"}
    assert json.loads(ceph.rbd("info", f"{ceph.pool}/{entry}", "--format", "json"))["size"] == 2**30
    ceph.write(f"volume-{first}", b"what its owner wrote")
    second = cloud.create(imageRef=image)
    assert cloud.volume(second)["status"] == "available"
    assert parent(ceph, second)["image"] == entry
    assert holds(ceph, second, DISK)
    assert cloud.call("DELETE", f"/v3/volumes/{first}").status == 202
    third = cloud.create(imageRef=image, size=2)
    assert holds(ceph, third, DISK)
