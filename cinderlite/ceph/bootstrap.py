# SPDX-License-Identifier: Apache-2.0
"""Making the pools and the cephx user that the service needs, with an administrator's keyring; telling libvirt the key.

Each step looks first and is a no-op if it was done, so that it can be run again; none changes a pool that another
application has, or a user that exists with other rights. What a newcomer gets wrong: the key is a secret. It goes from
the monitors into a file of mode 0600, and into no output, error or command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cinderlite import errors
from cinderlite.ceph import checkup, rights
from cinderlite.ceph.libvirt_secret import Secret

#: Seconds that each call may take.
_PATIENCE = "30"


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be there. `read_only` are pools of others that the service only clones from, such as Glance's."""

    conffile: str
    user: str
    pools: Sequence[str]
    keyring: pathlib.Path
    read_only: Sequence[str] = ()
    #: Which libvirts are to have the key, and under which UUIDs; None for that of the cluster.
    libvirts: Sequence[str] = ()
    secret_uuids: Sequence[str | None] = ()
    #: Whether guests are to open images as users that it makes.
    makes_users: bool = True

    @property
    def caps(self) -> list[str]:
        """The least rights that do, as pairs of a daemon's kind and what is allowed there."""
        return self._caps(makes_users=self.makes_users)

    @property
    def enough(self) -> list[list[str]]:
        """Those, and what does as well, but that guests may have to open images as this very user."""
        return [self.caps, self._caps(makes_users=False)]

    def _caps(self, *, makes_users: bool) -> list[str]:
        return rights.of_service(self.user, self.pools, self.read_only, makes_users=makes_users)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step: the command that does the same, and what does it; that returns whether anything was to be done."""

    command: str
    run: Callable[[Any], bool]


def steps(wanted: Wanted) -> Iterator[Step]:
    """All steps in order. Running one raises CephError with a sentence."""
    conf = ["-c", wanted.conffile]
    for pool in wanted.pools:
        yield Step(shlex.join(["ceph", *conf, "osd", "pool", "create", pool]), _Pool(pool).create)
        yield Step(shlex.join(["rbd", *conf, "pool", "init", pool]), _Pool(pool).initialise)
    make = shlex.join(["ceph", *conf, "auth", "get-or-create", f"client.{wanted.user}", *wanted.caps])
    user = _User(wanted)
    # Into another file first: the one that is there would be emptied before it is known whether Ceph gives anything.
    new = shlex.quote(f"{wanted.keyring}.new")
    yield Step(f"(umask 077; {make} > {new} && mv {new} {shlex.quote(str(wanted.keyring))})", user.make)
    for uri in wanted.libvirts:
        for uuid in wanted.secret_uuids:
            secret = Secret(uri, wanted.conffile, wanted.user, uuid)
            yield Step(secret.command, functools.partial(user.tell, secret))


@contextlib.contextmanager
def connected(conffile: str, admin: str, keyring: str | None) -> Iterator[Any]:
    """A connection as an administrator. Raises CephUnavailable."""
    import rados
    import rbd

    options = {"client_mount_timeout": _PATIENCE, "rados_mon_op_timeout": _PATIENCE, "rados_osd_op_timeout": _PATIENCE}
    if keyring is not None:
        options["keyring"] = keyring
    try:
        cluster = rados.Rados(conffile=conffile, name=f"client.{admin}", conf=options)
        cluster.connect()
    except rados.Error as error:
        reason = f"client.{admin} with {conffile}: {type(error).__name__}"
        raise errors.CephUnavailable(f"no connection as {reason}") from error
    try:
        yield cluster
    except (rados.Error, rbd.Error) as error:
        raise errors.CephError(f"Ceph refuses: {type(error).__name__}.") from error
    finally:
        cluster.shutdown()


class _Pool:
    def __init__(self, name: str) -> None:
        self._name = name

    def create(self, cluster: Any) -> bool:
        if self._name in cluster.list_pools():
            return False
        _command(cluster, prefix="osd pool create", pool=self._name)
        return True

    def initialise(self, cluster: Any) -> bool:
        import rbd

        with cluster.open_ioctx(self._name) as ioctx:
            present = set(ioctx.application_list())
            if others := present - {"rbd"}:
                raise errors.CephError(f"Pool {self._name} is used by {', '.join(sorted(others))} and was left alone.")
            if present and checkup.is_initialised(ioctx):
                return False
            rbd.RBD().pool_init(ioctx, False)
        return True


class _User:
    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._entity = f"client.{wanted.user}"

    def make(self, cluster: Any) -> bool:
        if self._wanted.keyring.exists():
            self._compare(cluster)
            return False
        command = {"prefix": "auth get-or-create", "entity": self._entity, "caps": self._wanted.caps}
        code, answer, _ = cluster.mon_command(json.dumps(command | {"format": "json"}), b"")
        if abs(code) == errno.EINVAL:
            raise self._different()
        if code:
            raise errors.CephError(f"The monitors refuse to make {self._entity}: {os.strerror(abs(code))}.")
        self._write(json.loads(answer)[0]["key"])
        return True

    def tell(self, secret: Secret, cluster: Any) -> bool:
        """Let a libvirt know the key."""
        return secret.set(cluster, _command(cluster, prefix="auth get-key", entity=self._entity, format="plain"))

    def _compare(self, cluster: Any) -> None:
        """Refuse a user with other rights than wanted, or none; its keyring is there already."""
        code, answer, _ = cluster.mon_command(
            json.dumps({"prefix": "auth get", "entity": self._entity, "format": "json"}), b""
        )
        if code:
            raise errors.CephError(
                f"{self._wanted.keyring} is there, but Ceph has no {self._entity}; move it away first."
            )
        found = json.loads(answer)[0]["caps"]
        if found not in [dict(zip(caps[::2], caps[1::2], strict=True)) for caps in self._wanted.enough]:
            raise self._different()

    def _different(self) -> errors.CephError:
        caps = shlex.join(["ceph", "-c", self._wanted.conffile, "auth", "caps", self._entity, *self._wanted.caps])
        return errors.CephError(f"{self._entity} exists with other rights, which were left; to change them: {caps}")

    def _write(self, key: str) -> None:
        path = self._wanted.keyring
        partial = path.with_name(f"{path.name}.part")
        try:
            partial.unlink(missing_ok=True)
            with os.fdopen(
                os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii"
            ) as file:
                file.write(f"[{self._entity}]\n\tkey = {key}\n")
            partial.rename(path)  # That it is there says that it is whole.
        except OSError as error:
            raise errors.CephError(f"{path} cannot be written: {error.strerror}.") from error


def _command(cluster: Any, **command: Any) -> bytes:
    code, answer, _ = cluster.mon_command(json.dumps({"format": "json", **command}), b"")
    if code:
        raise errors.CephError(f"The monitors refuse {command['prefix']}: {os.strerror(abs(code))}.")
    return bytes(answer)
