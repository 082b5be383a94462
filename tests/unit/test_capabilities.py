# SPDX-License-Identifier: Apache-2.0
"""What a type asks for and what a back end has."""

from __future__ import annotations

import pytest

from cinderlite.context import World
from cinderlite.core import capabilities


@pytest.mark.parametrize(
    ("name", "wanted", "fits"),
    [
        ("volume_backend_name", "ceph", True),
        ("volume_backend_name", "fast", False),
        ("capabilities:volume_backend_name", "ceph", True),
        ("capabilities:volume_backend_name", "fast", False),
        ("storage_protocol", "<or> iSCSI <or> ceph", True),
        ("storage_protocol", "<or> iSCSI <or> FC", False),
        ("vendor_name", "Open Source", True),
        ("vendor_name", "<in> Source", True),
        ("vendor_name", "s== Open", False),
        ("vendor_name", "== 1", False),
        ("multiattach", "<is> True", True),
        ("multiattach", "<is> false", False),
        ("replication_enabled", "<is> True", False),
        ("replication_enabled", "== 0", True),
        ("nobody:knows", "this", True),
        ("nobody knows", "this", False),
        ("storage_protocol", "", False),
    ],
)
def test_what_a_back_end_has_decides(world: World, name: str, wanted: str, fits: bool) -> None:
    backend = world.backends["ceph"]
    assert capabilities.satisfy(backend, {name: wanted}) is fits
    assert capabilities.satisfy(backend, {"volume_backend_name": "ceph", name: wanted}) is fits


@pytest.mark.parametrize(
    ("have", "wanted", "fits"),
    [
        (True, "<is> True", True), (True, "<is> False", False), (True, "True", False), ("no", "<is> False", True),
        (5, "= 4", True), (5, "= 6", False), (5, "<= 5", True), (5, "!= 5", False), (5, ">=", False), (5, ">= x", False),
        ("abc", "<in> b", True), ("b", "<or> a <or> b", True), ("c", "<or> a <or> b", False), ("x", "<or>", False),
        ("b", "s<= b", True), ("b", "s>= c", False), ("b", "s< c", True), ("b", "s!= c", True), ("b", "s> a", True),
        (None, "x", False), (None, "<is> False", False), ("", "", True), ("two words", "two words", True),
    ],
)  # fmt: skip
def test_the_language_of_extra_specs(have: object, wanted: str, fits: bool) -> None:
    assert capabilities.matches(have, wanted) is fits
