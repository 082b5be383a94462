# SPDX-License-Identifier: Apache-2.0
"""Giving a hypervisor's libvirt the cephx key, as the secret whose UUID connection info names (`rbd_secret_uuid`).

It is told by virsh, of the package libvirt-clients, so that a hypervisor can be another machine (qemu+ssh://). What a
newcomer gets wrong: a command line can be read by everybody on the machine. The key goes through a pipe.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from typing import Any

from cinderlite import errors

#: Seconds that libvirt may take, also one far away.
_PATIENCE = 30
_STDIN = "/dev/stdin"


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
    """The key of a cephx user, for one libvirt; without a UUID under the cluster's own."""

    uri: str
    conffile: str
    user: str
    uuid: str | None

    @property
    def command(self) -> str:
        """What does the same in a shell."""
        ceph = shlex.join(["ceph", "-c", self.conffile])
        uuid = self.uuid or f"$({ceph} fsid)"
        virsh = shlex.join(["virsh", "-c", self.uri])
        define = f'echo "{self._description(uuid)}" | {virsh} secret-define {_STDIN}'
        key = f"{ceph} auth get-key {shlex.quote('client.' + self.user)}"
        return f'{define} && {key} | {virsh} secret-set-value "{uuid}" --file {_STDIN}'

    def set(self, cluster: Any, key: bytes) -> bool:
        """Define the secret unless it is there, and set its value, which nobody can read to compare."""
        uuid = self.uuid or str(cluster.get_fsid())
        self._virsh(self._description(uuid).encode(), "secret-define", _STDIN)
        self._virsh(key, "secret-set-value", uuid, "--file", _STDIN)
        return True

    def _description(self, uuid: str) -> str:
        # A libvirt refuses two secrets of one name, and users of two clusters may have the same name.
        name = f"client.{self.user} {uuid}"
        usage = f"<usage type='ceph'><name>{name}</name></usage>"
        return f"<secret ephemeral='no' private='yes'><uuid>{uuid}</uuid>{usage}</secret>"

    def _virsh(self, said: bytes, *words: str) -> None:
        try:
            done = subprocess.run(
                ["virsh", "-q", "-c", self.uri, *words], input=said, capture_output=True, timeout=_PATIENCE, check=False
            )
        except FileNotFoundError:
            raise errors.CephError(
                "There is no virsh: install libvirt-clients, or run on the hypervisor what --dry-run prints."
            ) from None
        except subprocess.TimeoutExpired:
            raise errors.CephError(f"The libvirt of {self.uri} does not answer.") from None
        if done.returncode != 0:
            complaint = done.stderr.decode(errors="replace").strip().splitlines()
            raise errors.CephError(f"The libvirt of {self.uri} refuses: {complaint[-1] if complaint else words[0]}")
