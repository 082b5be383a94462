# SPDX-License-Identifier: Apache-2.0
"""What a cluster, a pool and a cephx user are like, asked with that user's own rights; nothing here writes.

A user cannot read its own capabilities, so they are tried: with commands that the monitors refuse as wrong only after
they have found them permitted, and with removing objects that do not exist. What a newcomer gets wrong first: such a
probe must be one that changes nothing *when it is permitted*, for that is the case it looks for.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import re
import uuid
from collections.abc import Set as AbstractSet
from typing import Any

from cinderlite import errors, private

#: Every pool that was initialised for RBD has it.
PROBE_OBJECT = "rbd_info"
#: Passes the capability of `profile rbd`, which looks only at its form, and is then refused as no address.
_NO_ADDRESS = "nobody/1"
_ERASURE_CODED = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """`release` is what all OSDs have at least; `health` the names of the cluster's own warnings."""

    release: str
    min_compat_client: str
    #: "1", "2" or "auto" if the pool itself sets it, against what our clients ask for.
    clone_format: str | None
    erasure_coded: bool
    application: bool
    initialised: bool
    #: Flags of the pool: full, nearfull, backfillfull, full_quota.
    full: list[str]
    health: list[str]
    #: Whether our user may cut off a dead client, which it must to break its lock.
    may_blocklist: bool
    #: Whether it may read the keys of all users, which only an administrator's needs.
    reads_keys: bool
    #: Further pools that it could write to.
    writable_elsewhere: list[str]
    #: Files with our user's key that more than their owner and group may use.
    open_files: list[str]


def examine(rados: Any, ioctx: Any, pool: str, user: str, known: AbstractSet[str]) -> Facts:
    """Look at everything; `known` are the pools that the user has a right to use. Raises CephError, CephTimeout."""
    osds = ask(rados, "osd dump")
    ours = next(one for one in osds["pools"] if one["pool_name"] == pool)
    pools = {str(one["pool_name"]) for one in osds["pools"]}
    return Facts(
        release=str(osds["require_osd_release"]),
        min_compat_client=str(osds["require_min_compat_client"]),
        clone_format=_clone_format(ioctx),
        erasure_coded=ours["type"] == _ERASURE_CODED,
        application="rbd" in ours["application_metadata"],
        initialised=is_initialised(ioctx),
        full=[flag for flag in str(ours["flags_names"]).split(",") if "full" in flag],
        health=sorted(ask(rados, "health")["checks"]),
        may_blocklist=_may_blocklist(rados),
        reads_keys=_permitted(_code(rados, prefix="auth get", entity=f"client.{user}")),
        writable_elsewhere=sorted(other for other in pools - known - {pool} if _writes(rados, other)),
        open_files=_open_files(rados),
    )


def _clone_format(ioctx: Any) -> str | None:
    import rbd

    for one in rbd.RBD().config_list(ioctx):
        if one["name"] == "rbd_default_clone_format" and one["source"] == rbd.RBD_CONFIG_SOURCE_POOL:
            return str(one["value"])
    return None


def is_initialised(ioctx: Any) -> bool:
    """Whether librbd was told that the pool is for images."""
    import rados

    try:
        ioctx.stat(PROBE_OBJECT)
    except rados.ObjectNotFound:
        return False
    return True


def _open_files(rados: Any) -> list[str]:
    named = re.split(r"[\s,;]+", f"{rados.conf_get('keyring') or ''} {rados.conf_get('keyfile') or ''}")
    return [path for path in named if path and private.is_open(pathlib.Path(path))]


def _may_blocklist(rados: Any) -> bool:
    return _permitted(_code(rados, prefix="osd blocklist", blocklistop="add", addr=_NO_ADDRESS))


def _permitted(code: int) -> bool:
    return code not in (errno.EACCES, errno.EPERM)


def _writes(rados: Any, pool: str) -> bool:
    """Whether our user may remove objects of a pool, tried on one that nobody has."""
    import rados as library

    with rados.open_ioctx(pool) as ioctx:
        try:
            ioctx.remove_object(f"cinderlite-check-{uuid.uuid4()}")
        except library.ObjectNotFound:
            return True
        except (library.PermissionError, library.PermissionDeniedError):
            return False
    return True


def ask(rados: Any, prefix: str) -> Any:
    """What the monitors answer to a command without arguments. Raises CephError, CephTimeout."""
    code, answer = command(rados, prefix=prefix)
    if code:
        raise errors.CephError(f"The monitors refuse {prefix}: {os.strerror(code)}.")
    return json.loads(answer)


def _code(rados: Any, **words: str) -> int:
    return command(rados, **words)[0]


def command(rados: Any, **words: Any) -> tuple[int, bytes]:
    """The errno and the answer of the monitors to a command. Raises CephTimeout."""
    code, answer, _ = rados.mon_command(json.dumps({**words, "format": "json"}), b"")
    if abs(code) == errno.ETIMEDOUT:
        raise errors.CephTimeout(f"{words['prefix']}: no monitor answered")
    return abs(code), bytes(answer)
