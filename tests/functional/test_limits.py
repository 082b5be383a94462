# SPDX-License-Identifier: Apache-2.0
"""QoS specs on a real Ceph and a real guest: what QEMU and the image have, and that a change is live."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.service import Service
from cinderlite.guests import disks
from lab.ceph import Ceph
from lab.guest import Guest
from lab.process import wait

pytestmark = pytest.mark.real


def admin(service: Service, method: str, path: str, body: Any = None) -> Any:
    answer = service.call(method, f"/v3/{path}", body, user="root")
    assert answer.status in (200, 202), answer.text
    return answer.body


def test_limits_are_there_from_the_start_and_follow_every_change(
    service: Service, ceph: Ceph, guests: tuple[Guest, Guest]
) -> None:
    guest = guests[0]
    limits = {"total_iops_sec": "500", "total_iops_sec_max": "900", "write_bytes_sec_per_gb": "1048576"}
    body = {"name": "slow", "consumer": "both", **limits}
    specs = admin(service, "POST", "qos-specs", {"qos_specs": body})["qos_specs"]["id"]
    kind = admin(service, "POST", "types", {"volume_type": {"name": "gold"}})["volume_type"]["id"]
    admin(service, "GET", f"qos-specs/{specs}/associate?vol_type_id={kind}")
    volume = service.create(volume_type="gold")

    def throttled() -> dict[str, int]:
        found = guest.qmp("qom-get", path=f"/objects/{disks.group(volume)}", property="limits")
        return {key: value for key, value in found.items() if value and not key.endswith("-length")}

    def limited() -> dict[str, int]:
        listed = json.loads(ceph.rbd("config", "image", "list", f"{ceph.pool}/volume-{volume}", "--format", "json"))
        return {one["name"]: int(one["value"]) for one in listed if one["source"] == "image"}

    def follow(operations: int, burst: int, written: int) -> None:
        at_disk = {"iops-total": operations, "iops-total-max": burst, "bps-write": written}
        names = "rbd_qos_iops_limit", "rbd_qos_iops_burst", "rbd_qos_write_bps_limit"
        at_image = dict(zip(names, at_disk.values(), strict=True))
        wanted = [{key: value for key, value in one.items() if value} for one in (at_disk, at_image)]
        wait(lambda: [throttled(), limited()] == wanted, timeout=20, what=f"{wanted}")

    assert limited() == {"rbd_qos_iops_limit": 500, "rbd_qos_iops_burst": 900, "rbd_qos_write_bps_limit": 2**20}
    assert service.attach(guest.uuid, volume).status == 200
    assert throttled() == {"iops-total": 500, "iops-total-max": 900, "bps-write": 2**20}
    device = guest.wait_disk(volume)
    admin(service, "PUT", f"qos-specs/{specs}", {"qos_specs": {"total_iops_sec": "600"}})
    follow(600, 900, 2**20)
    grow = {"os-extend": {"new_size": 3}}
    assert service.call("POST", f"/v3/volumes/{volume}/action", grow, version="3.42").status == 202
    follow(600, 900, 3 * 2**20)
    guest.write(device, volume, mib=1)
    admin(service, "GET", f"qos-specs/{specs}/disassociate_all")
    service.kill()
    service.start()
    follow(0, 0, 0)
    assert service.volume(volume)["status"] == "in-use"
    assert service.detach(guest.uuid, volume).status == 202
    guest.wait_no_disk(volume)
