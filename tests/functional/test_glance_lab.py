# SPDX-License-Identifier: Apache-2.0
"""The suite's Glance and Keystone work together, and images can be in files and in Ceph."""

from __future__ import annotations

import pathlib

import pytest

from backends import glance as image_service
from backends import keystone as identity
from lab import packages
from lab.ceph import Ceph

pytestmark = pytest.mark.real


def test_a_user_stores_images_in_both_places(lab_directory: pathlib.Path, ceph: Ceph) -> None:
    packages.ensure((*image_service.PACKAGES, *identity.PACKAGES))
    glance = image_service.Glance(lab_directory / "glance-of-keystone")
    keystone = identity.Keystone(lab_directory / "keystone-of-glance", "http://127.0.0.1:9", glance.url)
    keystone.start()
    try:
        glance.start(keystone, ceph)
        alice, bob = keystone.token("alice"), keystone.token("bob", "other")
        for store in ("file", "rbd"):
            made = glance.create(b"bytes" * 1000, alice, store)
            assert glance.data(made, alice) == b"bytes" * 1000
            assert glance.image(made, alice)["direct_url"].startswith(f"{store}://")
            assert glance.image(made, alice)["owner"] == keystone.projects["demo"]
            assert glance.image(made, bob) == {}
            glance.delete(made, alice)
            assert glance.image(made, alice) == {}
    finally:
        glance.stop()
        keystone.stop()
