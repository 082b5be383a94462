# SPDX-License-Identifier: Apache-2.0
"""Every method of the newest clients' block-storage half is called once for real, and what comes back looked at.

The plays run inside the clients' environment and do the looking. What there is to call they take from the installed
packages: a method that a new release adds fails here until somebody calls it.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from backends import clients
from backends.glance import Glance
from backends.service import PASSWORD, Service
from lab.ceph import Ceph

pytest.importorskip("openstack", reason="the extra 'glance' is not installed")
pytestmark = [pytest.mark.real, pytest.mark.timeout(900), pytest.mark.xdist_group("keystone")]

BACKUPS, SECOND = "backups", "second"
FOREIGN = "database"
TESTS = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def glance(lab_directory: pathlib.Path, ceph: Ceph) -> Iterator[Glance]:
    """An image service that believes anybody."""
    with Glance.running(lab_directory / "glance-of-clients", ceph) as made:
        yield made


@pytest.fixture
def service(tmp_path: pathlib.Path, ceph: Ceph, glance: Glance, sockets: pathlib.Path) -> Iterator[Service]:
    """A running service with two back ends, a backup pool and images, and an RBD image that is nobody's."""
    for pool in (BACKUPS, SECOND):
        ceph.add_pool(pool)
    sockets.mkdir(exist_ok=True)
    options = {
        "DEFAULT": {
            "enabled_backends": f"ceph,{SECOND}", "backup_ceph_pool": BACKUPS, "backup_ceph_conf": ceph.conf,
            "backup_ceph_user": ceph.user, "glance_api_servers": glance.url,
        },
        SECOND: {"rbd_ceph_conf": ceph.conf, "rbd_pool": SECOND, "rbd_user": ceph.user},
    }  # fmt: skip
    ceph.rbd("create", "--size", "1G", f"{ceph.pool}/{FOREIGN}")
    running = Service(tmp_path, ceph.conf, sockets, options)
    running.start()
    yield running
    running.stop()
    ceph.empty()
    for image in glance.images():
        glance.delete(image["id"])


def told(name: str, service: Service, glance: Glance) -> dict[str, Any]:
    """What a play tells that an administrator runs in the newest clients' environment."""
    environment = {
        "OS_AUTH_TYPE": "http_basic", "OS_USERNAME": "root", "OS_PASSWORD": PASSWORD, "OS_ENDPOINT": f"{service.url}/v3",
        "OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE": f"{service.url}/v3", "OS_IMAGE_ENDPOINT_OVERRIDE": glance.url,
        "PYTHONPATH": str(TESTS),
    }  # fmt: skip
    props = {"image": glance.create(bytes(2**20)), "foreign": FOREIGN, "second": SECOND}
    client = clients.Client(clients.newest(), environment)
    return dict(json.loads(client.run("python", "-m", f"clients.{name}", json.dumps(props), timeout=600)))


@pytest.mark.parametrize(("name", "known"), [("play_sdk", 183), ("play_cinderclient", 166)])
def test_each_method_is_called(service: Service, glance: Glance, ceph: Ceph, name: str, known: int) -> None:
    heard = told(name, service, glance)
    assert not heard["failed"], "\n\n".join([*heard["failed"].values(), service.tail()])
    assert heard["never"] == []
    assert len(heard["called"]) >= known
    # The play cleans up after itself; what it has let go of is still there.
    [left] = ceph.images()
    assert left.startswith("volume-")
    assert service.call("GET", "/v3/volumes?all_tenants=1", user="root").body["volumes"] == []
