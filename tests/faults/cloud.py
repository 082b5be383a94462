# SPDX-License-Identifier: Apache-2.0
"""What is broken on purpose: two hosts of the API with several processes each, a Ceph, a PostgreSQL, a libvirt, guests.

Both hosts are on this machine, and neither knows: each has a name of its own in its kernel's eyes, so they take each
other's processes for ones that cannot be seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from backends.databases import Postgresql
from backends.service import Answer, Service
from lab.ceph import Ceph
from lab.guest import Guest
from lab.libvirt import Domain, Libvirt

#: The last of the guests is libvirt's, the others have monitors.
HOSTS, WORKERS, GUESTS = 2, 4, 3
#: Seconds after which the work of a host that is silent is another's.
LEASE = 8
SECOND, BACKUPS = "second", "backups"
#: Volume types by the back end that they are for.
TYPES = {"ceph": "plain", SECOND: "quick"}
GROUP_TYPE = "together"
#: The chance to die at each point that an operation passes, while that is wanted.
CHANCE = 0.01


class _Database(Postgresql):
    """One that keeps what it has committed when it is killed."""

    forgetful = False


class Host(Service):
    """One host of the API; `armed` is there while its processes are to die by chance."""

    def __init__(self, directory: pathlib.Path, name: str, cloud: Cloud) -> None:
        self.name = name
        self.armed = directory / "armed"
        ceph = cloud.ceph
        options: dict[str, dict[str, object]] = {
            "DEFAULT": {
                "osapi_volume_workers": WORKERS, "operation_lease": LEASE, "enabled_backends": f"ceph,{SECOND}",
                "backup_ceph_pool": BACKUPS, "backup_ceph_conf": ceph.conf, "backup_ceph_user": ceph.user,
                **{f"quota_{what}": -1 for what in ("volumes", "snapshots", "gigabytes", "backups", "groups")},
                "quota_backup_gigabytes": -1,
            },
            "ceph": {"backend_host": "everywhere"},
            "database": {"connection": cloud.url},
            "guests": {"libvirt_uris": cloud.libvirt.uri, "libvirt_connect_timeout": 2, "libvirt_call_timeout": 5},
            SECOND: {
                "rbd_ceph_conf": ceph.conf, "rbd_pool": SECOND, "backend_host": "everywhere",
                "rados_connect_timeout": 3, "rados_mon_op_timeout": 3, "rados_osd_op_timeout": 3, "rbd_call_timeout": 4,
            },
        }  # fmt: skip
        super().__init__(directory, ceph.conf, cloud.sockets, options, hostname=name)

    def begin(self) -> None:
        """Start it, so that it can be made to die by chance."""
        self.start("backends.dying_api", DIE_CHANCE=str(CHANCE), DIE_ARMED=str(self.armed))


@dataclasses.dataclass
class Cloud:
    """All of it; `hosts` and `guests` are running when it is handed out."""

    ceph: Ceph
    database: Postgresql
    url: str
    sockets: pathlib.Path
    libvirt: Libvirt
    hosts: list[Host] = dataclasses.field(default_factory=list)
    guests: list[Guest] = dataclasses.field(default_factory=list)

    def admin(self, method: str, path: str, body: object = None) -> Answer:
        """Ask as an administrator, while nothing is broken."""
        return self.hosts[0].call(method, path, body, user="root", version="3.71")

    def pools(self) -> list[str]:
        """The pools with images of volumes."""
        return [self.ceph.pool, SECOND]


@contextlib.contextmanager
def started(directory: pathlib.Path) -> Iterator[Cloud]:
    """A cloud, whatever becomes of the body."""
    with contextlib.ExitStack() as stack:
        ceph = Ceph(directory / "ceph")
        stack.callback(ceph.destroy)
        ceph.start()
        for pool in (SECOND, BACKUPS):
            ceph.add_pool(pool)
        database = _Database()
        stack.callback(database.stop)
        libvirt = Libvirt(pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clv-", dir="/var/tmp"))))
        libvirt.directory.chmod(0o711)
        stack.callback(libvirt.kill)
        libvirt.start()
        cloud = Cloud(ceph, database, database.blank(), directory / "sockets", libvirt)
        small: dict[str, Any] = {"ports": 0, "scsi": True, "guest_os": False, "memory": 64}
        for number in range(GUESTS):
            if number < GUESTS - 1:
                guest = Guest(directory, f"vm{number}", sockets=cloud.sockets, **small)
            else:
                guest = Domain(libvirt, f"vm{number}", **small)
            stack.callback(guest.forget)
            guest.start()
            cloud.guests.append(guest)
        for number in range(HOSTS):
            host = Host(directory / f"host{number}", f"faults{number}", cloud)
            stack.callback(host.kill)
            host.begin()
            cloud.hosts.append(host)
        _furnish(cloud)
        yield cloud


def _furnish(cloud: Cloud) -> None:
    for backend, name in TYPES.items():
        made = cloud.admin("POST", "/v3/types", {"volume_type": {"name": name}}).body["volume_type"]["id"]
        body = {"extra_specs": {"volume_backend_name": backend}}
        cloud.admin("POST", f"/v3/types/{made}/extra_specs", body)
    specs = {"consistent_group_snapshot_enabled": "<is> True"}
    cloud.admin("POST", "/v3/group_types", {"group_type": {"name": GROUP_TYPE, "group_specs": specs}})
