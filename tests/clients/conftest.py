# SPDX-License-Identifier: Apache-2.0
"""Two services, one with a password file and one with a real Keystone, and the clients of both kinds for each."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import pytest

from backends import clients
from backends import glance as image_service
from backends import keystone as identity
from backends.service import PASSWORD, USERS, Service
from lab import packages
from lab.ceph import Ceph
from lab.guest import Guest


@dataclasses.dataclass(frozen=True)
class Cloud:
    """A running service, how to become one of its users, and a guest of project demo."""

    service: Service
    keystone: identity.Keystone | None
    guest: Guest

    def client(self, kind: str, user: str) -> clients.Client:
        """The clients of a kind ("newest" or "debian12") as a user."""
        folder = clients.newest() if kind == "newest" else pathlib.Path("/usr/bin")
        if self.keystone is not None:
            return clients.Client(folder, self.keystone.env("admin" if user == "root" else user, USERS[user][0]))
        volume, compute = f"{self.service.url}/v3", f"{self.service.url}/v2.1"
        environment = {
            "OS_AUTH_TYPE": "http_basic", "OS_USERNAME": user, "OS_PASSWORD": PASSWORD, "OS_ENDPOINT": volume,
            "OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE": volume, "OS_VOLUME_ENDPOINT_OVERRIDE": volume,
            "OS_COMPUTE_ENDPOINT_OVERRIDE": compute,
        }  # fmt: skip
        options = ("--os-auth-type", "http_basic", "--os-endpoint", volume, "--os-project-id", USERS[user][0],
                   "--os-username", user, "--os-password", PASSWORD)  # fmt: skip
        return clients.Client(folder, environment, options)


@pytest.fixture(scope="package")
def keystone_and_service(
    lab_directory: pathlib.Path, ceph: Ceph, sockets: pathlib.Path
) -> Iterator[tuple[identity.Keystone, Service]]:
    """A Keystone, a Glance in its catalogue, and a service that trusts the one and finds the other."""
    packages.ensure((*identity.PACKAGES, *image_service.PACKAGES, *clients.PACKAGES))
    made = Service(lab_directory / "with-keystone", ceph.conf, sockets)
    glance = image_service.Glance(lab_directory / "glance")
    keystone = identity.Keystone(lab_directory / "keystone", made.url, glance.url)
    with contextlib.ExitStack() as stack:
        stack.callback(ceph.empty)
        for part in (keystone, glance):
            stack.callback(part.stop)
        keystone.start()
        glance.start(keystone, ceph)
        trust = {**keystone.middleware(), "service_type": "volumev3", "token_cache_time": 5}
        made.configure({"DEFAULT": {"auth_strategy": "keystone"}, "keystone_authtoken": trust})
        stack.callback(made.kill)
        made.start()
        yield keystone, made


@pytest.fixture(scope="package")
def service_with_passwords(lab_directory: pathlib.Path, ceph: Ceph, sockets: pathlib.Path) -> Iterator[Service]:
    """A service with a password file."""
    packages.ensure(clients.PACKAGES)
    made = Service(lab_directory / "with-passwords", ceph.conf, sockets)
    made.start()
    yield made
    made.kill()
    ceph.empty()


@pytest.fixture(
    scope="package",
    params=[pytest.param(way, marks=pytest.mark.xdist_group(way)) for way in ("http_basic", "keystone")],
)
def cloud(request: pytest.FixtureRequest, lab_directory: pathlib.Path, sockets: pathlib.Path) -> Iterator[Cloud]:
    """A cloud of each way to log in, with a guest that belongs to its project demo."""
    keystone, project = None, "demo"
    if request.param == "keystone":
        keystone, service = request.getfixturevalue("keystone_and_service")
        project = keystone.projects["demo"]
    else:
        service = request.getfixturevalue("service_with_passwords")
    guest = Guest(lab_directory, f"for-{request.param[:4]}", sockets=sockets, project=project)
    guest.start()
    yield Cloud(service, keystone, guest)
    guest.forget()
