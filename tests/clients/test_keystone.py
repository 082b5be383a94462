# SPDX-License-Identifier: Apache-2.0
"""What a real Keystone says of a login is what counts: rules of what it may be used for, and its end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from backends import clients
from backends import keystone as identity
from backends.service import Service
from lab.process import LabError, wait

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("keystone")]


@pytest.fixture
def alice(keystone_and_service: tuple[identity.Keystone, Service]) -> clients.Client:
    return clients.Client(clients.newest(), keystone_and_service[0].env("alice"))


@pytest.fixture
def reading(keystone_and_service: tuple[identity.Keystone, Service], alice: clients.Client) -> Iterator[clients.Client]:
    """Alice's credential with which volumes can be looked at, and servers' attachments."""
    keystone, _ = keystone_and_service
    rules = [
        {"service": "volumev3", "method": "GET", "path": "/v3/**"},
        {"service": "compute", "method": "GET", "path": "/v2.1/**"},
    ]
    words = ("application", "credential")
    made = alice.openstack(*words, "create", "--access-rules", json.dumps(rules), "reading")
    environment = {
        "OS_AUTH_TYPE": "v3applicationcredential", "OS_AUTH_URL": keystone.auth_url, "OS_REGION_NAME": "RegionOne",
        "OS_APPLICATION_CREDENTIAL_ID": made.get("id") or made["ID"], "OS_IDENTITY_API_VERSION": "3",
        "OS_APPLICATION_CREDENTIAL_SECRET": made.get("secret") or made["Secret"],
    }  # fmt: skip
    yield clients.Client(alice.bin, environment)
    alice.openstack(*words, "delete", "reading")


def test_a_credential_with_access_rules_does_what_they_allow_and_no_more(
    alice: clients.Client, reading: clients.Client
) -> None:
    alice.openstack("volume", "create", "--size", "1", "seen")
    try:
        for _ in range(2):
            assert reading.openstack("volume", "show", "seen")["status"] == "available"
            assert isinstance(reading.openstack("server", "list"), list)
            with pytest.raises(LabError, match="401"):
                reading.openstack("volume", "create", "--size", "1", "more")
            with pytest.raises(LabError, match="401"):
                reading.openstack("volume", "delete", "seen")
        assert [one["Name"] for one in alice.openstack("volume", "list")] == ["seen"]
    finally:
        alice.openstack("volume", "delete", "seen")


def test_a_revoked_token_is_refused_when_its_time_in_the_cache_is_over(
    keystone_and_service: tuple[identity.Keystone, Service], alice: clients.Client
) -> None:
    keystone, service = keystone_and_service
    token = keystone.token("alice")

    def status() -> int:
        return service.call("GET", "/v3/volumes", user=None, headers={"X-Auth-Token": token}).status

    assert status() == 200
    alice.run("openstack", "token", "revoke", token)
    wait(lambda: status() == 401, timeout=20, what="the revoked token to be refused")
