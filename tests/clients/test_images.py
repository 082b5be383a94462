# SPDX-License-Identifier: Apache-2.0
"""Unmodified clients make volumes from images and images from volumes, with each user's own rights at the image service."""

from __future__ import annotations

import os
import pathlib
import subprocess
import time
from typing import Any

import pytest

from backends import keystone as identity
from backends.service import Service
from clients.conftest import Cloud
from lab.process import LabError

pytest.importorskip("openstack", reason="the extra 'glance' is not installed")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("keystone")]


@pytest.fixture
def cloud(keystone_and_service: tuple[identity.Keystone, Service]) -> Cloud:
    """The cloud with an image service; no guest is needed."""
    keystone, service = keystone_and_service
    return Cloud(service, keystone, None)  # type: ignore[arg-type]


def settled(client: Any, kind: str, name: str) -> str:
    """The status of a volume or an image once it does not change any more."""
    for _ in range(120):
        status = str(client.openstack(kind, "show", name)["status"])
        if status not in ("creating", "downloading", "uploading", "queued", "saving"):
            break
        time.sleep(0.5)
    return status


@pytest.mark.parametrize("kind", ["newest", "debian12"])
def test_images_and_volumes_become_each_other(cloud: Cloud, tmp_path: pathlib.Path, kind: str) -> None:
    alice, bob = cloud.client(kind, "alice"), cloud.client("newest", "bob")
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(2**20))
    image = f"image-{kind}"
    alice.openstack("image", "create", "--disk-format", "raw", "--private", "--file", str(disk), image)
    alice.openstack("volume", "create", "--image", image, "--size", "1", f"from-{kind}")
    assert settled(alice, "volume", f"from-{kind}") == "available"
    shown = alice.openstack("volume", "show", f"from-{kind}")
    assert (str(shown["bootable"]).lower(), shown["volume_image_metadata"]["image_name"]) == ("true", image)
    image_id = alice.openstack("image", "show", image)["id"]
    with pytest.raises(LabError, match=r"(?i)image"):
        bob.openstack("volume", "create", "--image", image_id, "--size", "1", "not-mine")
    assert bob.openstack("volume", "list") == []
    alice.openstack("image", "create", "--volume", f"from-{kind}", "--disk-format", "qcow2", f"made-{kind}")
    assert settled(alice, "volume", f"from-{kind}") == "available"
    assert settled(alice, "image", f"made-{kind}") == "active"
    assert alice.openstack("image", "show", f"made-{kind}")["owner"] == cloud.keystone.projects["demo"]  # type: ignore[union-attr]
    alice.openstack("volume", "delete", f"from-{kind}")
    for name in (image, f"made-{kind}"):
        alice.openstack("image", "delete", name)


def test_after_a_restart_the_service_goes_on_with_its_own_account(cloud: Cloud, tmp_path: pathlib.Path) -> None:
    alice = cloud.client("newest", "alice")
    disk, made = tmp_path / "disk", tmp_path / "made"
    disk.write_bytes(os.urandom(150 * 2**20))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, made], check=True, timeout=60)
    alice.openstack("image", "create", "--disk-format", "qcow2", "--private", "--file", str(made), "big")
    alice.openstack("volume", "create", "--image", "big", "--size", "1", "from-big")
    cloud.service.kill()
    cloud.service.start()
    assert settled(alice, "volume", "from-big") == "available"
    alice.openstack("volume", "delete", "from-big")
    alice.openstack("image", "delete", "big")
