# SPDX-License-Identifier: Apache-2.0
"""A one-node Ceph in a directory, on loopback, without systemd: one monitor, one manager, one OSD on a sparse file.

It answers about ten seconds after its first start. Good for tests and for a demonstration, never for data.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from cinderlite.ceph import rights
from lab.process import PATIENCE, LabError, end, free_ports, pid_in, port_is_free, run, wait

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port},v1:127.0.0.1:{port1}]
public network = 127.0.0.0/8
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
run dir = {dir}/run
log file = {dir}/log/$name.log
admin socket = {dir}/run/$name.$pid.asok
pid file = {dir}/run/$name.pid
crash dir = {dir}/crash
keyring = {dir}/$name.keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool delete = true
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 1
mgr initial modules =
mon data = {dir}/mon
mgr data = {dir}/mgr
osd data = {dir}/osd
osd objectstore = bluestore
bluestore block size = {block_size}
osd memory target = 939524096
{extra}
"""
#: Seconds in which the pools can be emptied, unless somebody who was killed or forgotten still has an image open.
_EMPTIED_IN = 1.5
#: Seconds after which a watch counts as one that the OSD will never end: its client died between sending it and being
#: heard, so that the OSD wrote it down and knows nobody whom it could miss. One that starts anew does.
_WATCHED_FOR = 25
#: A real cluster's monitors propose once a second, and its OSDs give up a dead client's watch after 30 s; a test suite
#: would spend its time waiting for that.
_IMPATIENT = "paxos propose interval = 0.05\npaxos min wait = 0.01\nosd client watch timeout = 15"


class Ceph:
    """One cluster. `osd_size_gib` is the size of its one disk, a sparse file."""

    pool = "volumes"
    user = "cinderlite"

    def __init__(
        self, directory: pathlib.Path, *, osd_size_gib: int = 10, fast_paxos: bool = True, port: int | None = None
    ) -> None:
        self.directory = directory.absolute()  # The daemons change to / when they go into the background.
        self.conf = self.directory / "ceph.conf"
        self._size = osd_size_gib
        self._fast = fast_paxos
        self._port = port
        self._read_only: set[str] = set()
        #: Further pools of the service's own.
        self._added: list[str] = []

    # -- life

    def start(self) -> None:
        """Start what does not run, after making what does not exist. Raises LabError."""
        if not (self.directory / "made").exists():
            self._make()
        self.check_ports()
        for daemon in ("mon", "mgr"):
            self._run(daemon)
        if not self._pid("osd"):
            before = self._osd_is_up_since()
            self._run("osd")
            # The monitor takes one that was killed for up until somebody misses it.
            wait(lambda: self._osd_is_up_since() > before, timeout=60, what="the OSD to be up")
        wait(self._answers, timeout=60, what="Ceph to answer")
        self._provide()

    def stop(self) -> None:
        """End every daemon, the monitor last."""
        for daemon in ("mgr", "osd", "mon"):
            end(self._pid_file(daemon), str(self.conf))

    def destroy(self) -> None:
        """End every daemon at once and remove the data."""
        self._clear()

    @property
    def port(self) -> int | None:
        """First of the monitor's two ports: the one it has, else the one that was asked for."""
        made = re.search(r"v2:127\.0\.0\.1:(\d+)", self._settings())
        return int(made[1]) if made else self._port

    def check_ports(self) -> None:
        """Raise LabError if another program has the monitor's: its own complaint would speak of keyrings."""
        port = self.port
        if port is None or self._pid("mon"):
            return
        for number in (port, port + 1):
            if not port_is_free(number):
                raise LabError(f"port {number}, which Ceph's monitor needs, is taken by another program")

    def running(self) -> bool:
        """Whether all three daemons live."""
        return all(self._pid(daemon) for daemon in ("mon", "mgr", "osd"))

    # -- use

    def command(self, *arguments: str, timeout: float = 30) -> str:
        """Run `ceph` as the administrator and return what it printed."""
        limit = str(int(timeout))
        return run(["ceph", "-c", self.conf, "--connect-timeout", limit, *arguments], timeout=timeout + 5)

    def rbd(self, *arguments: str, timeout: float = 60) -> str:
        """Run `rbd` as the administrator and return what it printed."""
        return run(["rbd", "-c", str(self.conf), *arguments], timeout=timeout)

    def images(self, pool: str | None = None) -> list[str]:
        """Names of the images in a pool, without one in the service's first."""
        return self.rbd("ls", pool or self.pool).split()

    def trash(self, pool: str | None = None) -> list[str]:
        """Former names of the images in a pool's trash."""
        return [entry["name"] for entry in self._listed("trash", "ls", pool or self.pool)]

    def _listed(self, *arguments: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(self.rbd(*arguments, "--format", "json") or "[]")
        return found

    def empty(self) -> None:
        """Remove every image of the pools that are the service's, their trash, and the cephx users that it made.

        Until the watch of a client that was killed lapses its image cannot be removed, and a test that failed leaves
        disks in guests: who has an image open for long is fenced. Raises LabError.
        """
        refused: list[str] = []
        began = time.monotonic()
        anew = False

        def emptied() -> bool:
            nonlocal anew
            refused.clear()
            if time.monotonic() - began > _WATCHED_FOR and not anew:
                anew = True
                self.kill_osd()
                self.start()
            try:
                if time.monotonic() - began > _EMPTIED_IN:
                    self._fence_all()
                for space in self._full():
                    refused.extend(self._remove_all(space))
            except LabError as error:  # What was listed is gone, or only half there.
                refused.append(str(error))
            return not self._full()

        try:
            wait(emptied, timeout=90, what="the pools to be empty")
        except LabError as error:
            raise LabError(f"{error}: {'; '.join(refused)}") from error
        for user in self.users():
            self.command("auth", "del", user)

    def _fence_all(self) -> None:
        """Have Ceph take nothing more from whoever has an image of the service's pools open."""
        for space in self._full():
            for name in self.images(space):
                for address in self._watchers(f"{space}/{name}"):
                    self.command("osd", "blocklist", "add", address)

    def _full(self) -> list[str]:
        """The pools of the service's and their namespaces, as `rbd` names them, that hold anything.

        By the bindings: the program takes half a second for each question, and a session's tests make many namespaces.
        """
        import rados
        import rbd

        rbds, found = rbd.RBD(), []
        with rados.Rados(conffile=str(self.conf)) as cluster:
            for pool in (self.pool, *self._added):
                with cluster.open_ioctx(pool) as ioctx:
                    for space in ("", *rbds.namespace_list(ioctx)):
                        ioctx.set_namespace(space)
                        if rbds.list(ioctx) or list(rbds.trash_list(ioctx)) or list(rbds.group_list(ioctx)):
                            found.append(f"{pool}/{space}" if space else pool)
        return found

    def _remove_all(self, pool: str) -> list[str]:
        """Remove what can be removed of a pool, or a namespace, now; what was refused. Parents go in a later round."""
        refused: list[str] = []

        def attempt(*arguments: str) -> bool:
            try:
                self.rbd(*arguments)
            except LabError as error:
                refused.append(str(error))
                return False
            return True

        # No image goes while a group has a snapshot of it, and nothing with snapshots from the trash. What a killed
        # service had begun to remove cannot be restored, only removed.
        for group in self.rbd("group", "ls", pool).split():
            for snap in self._listed("group", "snap", "ls", f"{pool}/{group}"):
                attempt("group", "snap", "rm", f"{pool}/{group}@{snap['snapshot']}")
            attempt("group", "rm", f"{pool}/{group}")
        for entry in self._listed("trash", "ls", pool):
            image = f"{pool}/{entry['id']}"
            if not attempt("trash", "restore", "--image", f"was-{entry['id']}", image):
                attempt("trash", "rm", "--no-progress", image)
        for name in self.images(pool):
            if watchers := self._watchers(f"{pool}/{name}"):  # `rbd rm` would wait ten seconds for their answer.
                refused.append(f"{name} is open for {', '.join(watchers)}")
                continue
            attempt("snap", "purge", "--no-progress", f"{pool}/{name}")
            attempt("rm", "--no-progress", f"{pool}/{name}")
        return refused

    def watchers(self, image: str) -> list[str]:
        """Addresses of the clients that have an image open."""
        return self._watchers(f"{self.pool}/{image}")

    def _watchers(self, image: str) -> list[str]:
        status = json.loads(self.rbd("status", image, "--format", "json"))
        return [watcher["address"] for watcher in status.get("watchers", [])]

    def add_pool(self, name: str, *, read_only: bool = False) -> None:
        """Make a further pool that the service's user may use, or only read, unless it is there."""
        pools = self.command("osd", "pool", "ls").split()
        if name in pools:
            return
        if read_only:
            self._read_only.add(name)
        else:
            self._added.append(name)
        self.command("osd", "pool", "create", name, "8")
        self.rbd("pool", "init", name)
        mine = [pool for pool in [*pools, name] if not pool.startswith((".", "device_health"))]
        self.command("auth", "caps", f"client.{self.user}", *self._rights(mine))

    def opened_by(self, image: str) -> str:
        """The cephx user that the service has made for an image."""
        entries = json.loads(self.command("auth", "ls", "--format", "json"))["auth_dump"]
        [found] = [one["entity"] for one in entries if f"rbd_id.{image}" in one["caps"].get("osd", "")]
        return str(found)

    def _rights(self, pools: Sequence[str]) -> list[str]:
        """What `cinderlite-manage ceph bootstrap` would give the service's user."""
        return rights.of_service(self.user, [one for one in pools if one not in self._read_only], self._read_only)

    def users(self) -> list[str]:
        """The cephx users that the service has made."""
        entries = json.loads(self.command("auth", "ls", "--format", "json"))["auth_dump"]
        return sorted(one["entity"] for one in entries if one["entity"].startswith(f"client.{self.user}."))

    # -- data

    def write(self, image: str, data: bytes, offset: int = 0) -> None:
        """Write to an image, as any client may; needs the bindings of librbd."""
        with self._opened(image) as opened:
            opened.write(data, offset)
            opened.flush()

    def read(self, image: str, length: int, offset: int = 0) -> bytes:
        """Read from an image."""
        with self._opened(image) as opened:
            return bytes(opened.read(offset, length))

    @contextlib.contextmanager
    def _opened(self, image: str) -> Iterator[Any]:
        import rados
        import rbd

        with (
            rados.Rados(conffile=str(self.conf), name=f"client.{self.user}") as cluster,
            cluster.open_ioctx(self.pool) as ioctx,
            rbd.Image(ioctx, image) as opened,
        ):
            yield opened

    @contextlib.contextmanager
    def connected(self, user: str, key: str, pool: str | None = None, namespace: str = "") -> Iterator[tuple[Any, Any]]:
        """A connection as QEMU makes it, with nothing but a key, and an I/O context of a pool."""
        import rados

        only = {"key": key, "keyring": "/dev/null"}
        client = rados.Rados(conffile=str(self.conf), name=f"client.{user}", conf=only)
        client.connect(PATIENCE * 5)
        try:
            with client.open_ioctx(pool or self.pool) as ioctx:
                ioctx.set_namespace(namespace)
                yield client, ioctx
        finally:
            client.shutdown()

    # -- faults

    def pause_osd(self) -> None:
        """Freeze the OSD: its peers wait for it, as for a disk that hangs."""
        self._signal("osd", signal.SIGSTOP)

    def resume_osd(self) -> None:
        """Let the OSD go on."""
        self._signal("osd", signal.SIGCONT)

    def kill_osd(self) -> None:
        """End the OSD as a power cut does; `start` starts it again."""
        end(self._pid_file("osd"), str(self.conf), kill=True)

    def pause_mon(self) -> None:
        """Freeze the monitor."""
        self._signal("mon", signal.SIGSTOP)

    def resume_mon(self) -> None:
        """Let the monitor go on."""
        self._signal("mon", signal.SIGCONT)

    # -- inside

    @staticmethod
    def _name(daemon: str) -> str:
        return {"mon": "a", "mgr": "x", "osd": "0"}[daemon]

    def _pid_file(self, daemon: str) -> pathlib.Path:
        return self.directory / "run" / f"{daemon}.{self._name(daemon)}.pid"

    def _pid(self, daemon: str) -> int | None:
        return pid_in(self._pid_file(daemon), str(self.conf))

    def _kill(self) -> None:
        for daemon in ("mgr", "osd", "mon"):
            end(self._pid_file(daemon), str(self.conf), kill=True)

    def _signal(self, daemon: str, number: signal.Signals) -> None:
        pid = self._pid(daemon)
        if pid is None:
            raise LabError(f"ceph-{daemon} does not run")
        os.kill(pid, number)

    def _run(self, daemon: str) -> None:
        if not self._pid(daemon):
            run([f"ceph-{daemon}", "-c", self.conf, "-i", self._name(daemon)], timeout=60)

    def _osd_is_up_since(self) -> int:
        """The epoch of the OSD's last start that the monitor knows of; 0 for none."""
        [osd] = json.loads(self.command("osd", "dump", "--format", "json"))["osds"]
        return int(osd["up_from"])

    def _answers(self) -> bool:
        try:
            status = json.loads(self.command("status", "--format", "json", timeout=5))
        except LabError:
            return False
        osds = status["osdmap"]
        return bool(osds.get("num_up_osds") and status["mgrmap"].get("available"))

    def _make(self) -> None:
        self._clear()
        self.check_ports()
        self.directory.mkdir(parents=True, mode=0o700)
        port = self._port or free_ports(2)
        fsid = str(uuid.uuid4())
        extra = _IMPATIENT if self._fast else ""
        self.conf.write_text(
            _CONF.format(
                fsid=fsid, port=port, port1=port + 1, dir=self.directory, block_size=self._size * 2**30, extra=extra
            ),
            encoding="ascii",
        )
        for name in ("run", "log", "crash", "mon", "mgr", "osd"):
            (self.directory / name).mkdir()
        self._make_mon_and_mgr(fsid, port)
        self._make_osd()
        (self.directory / "made").touch()

    def _clear(self) -> None:
        """Remove what an interrupted start has left, its monitor included; never anything else."""
        if not self.directory.exists():
            return
        if any(self.directory.iterdir()) and f"run dir = {self.directory}/run\n" not in self._settings():
            raise LabError(f"{self.directory} is not empty and holds no cluster of the lab")
        self._kill()
        shutil.rmtree(self.directory)

    def _settings(self) -> str:
        return self.conf.read_text(encoding="utf-8") if self.conf.exists() else ""

    def _make_mon_and_mgr(self, fsid: str, port: int) -> None:
        here = self.directory
        admin, mon, mgr = here / "client.admin.keyring", here / "mon.keyring", here / "mgr.x.keyring"
        everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        make = ["ceph-authtool", "--create-keyring", "--gen-key"]
        run([*make, admin, "-n", "client.admin", *everything])
        run([*make, mon, "-n", "mon.", "--cap", "mon", "allow *"])
        run([*make, mgr, "-n", "mgr.x", "--cap", "mon", "allow profile mgr", "--cap", "osd", "allow *"])
        for keyring in (admin, mgr):
            run(["ceph-authtool", mon, "--import-keyring", keyring])
        address = f"[v2:127.0.0.1:{port},v1:127.0.0.1:{port + 1}]"
        run(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, here / "monmap"])
        run(["ceph-mon", "-c", self.conf, "--mkfs", "-i", "a", "--monmap", here / "monmap", "--keyring", mon])
        # The monitor looks for its own keyring under its data directory from now on.
        run(["ceph-mon", "-c", self.conf, "-i", "a"])

    def _make_osd(self) -> None:
        keyring = self.directory / "osd.0.keyring"
        run(["ceph-authtool", "--create-keyring", "--gen-key", keyring, "-n", "osd.0"])
        secret = run(["ceph-authtool", "-p", "-n", "osd.0", keyring]).strip()
        osd = str(uuid.uuid4())
        run(
            ["ceph", "-c", self.conf, "--connect-timeout", "30", "osd", "new", osd, "-i", "-"],
            stdin=json.dumps({"cephx_secret": secret}),
        )
        run(["ceph-osd", "-c", self.conf, "-i", "0", "--mkfs", "--osd-uuid", osd], timeout=120)

    def _provide(self) -> None:
        """The pool and the service's own user, once."""
        keyring = self.directory / f"client.{self.user}.keyring"
        if keyring.exists():
            return
        if self.pool not in self.command("osd", "pool", "ls").split():
            self.command("osd", "pool", "create", self.pool, "8")
        self.rbd("pool", "init", self.pool)
        made = self.command("auth", "get-or-create", f"client.{self.user}", *self._rights([self.pool]))
        partial = keyring.with_suffix(".part")
        partial.touch(mode=0o600)
        partial.write_text(made, encoding="ascii")
        partial.rename(keyring)  # Its presence says that all of this is done.
