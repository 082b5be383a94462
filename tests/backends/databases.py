# SPDX-License-Identifier: Apache-2.0
"""The databases that the service runs on: SQLite as a file, PostgreSQL and MariaDB as servers of the suite's own.

A server runs as an unprivileged user in a temporary directory, listens on a socket there and nowhere else, and does
not care for what a power cut would leave. Tests share it: emptying its tables costs milliseconds, migrating does not.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

import sqlalchemy

from cinderlite.db import migrate, models
from lab import packages
from lab.process import LabError, free_ports, run, wait

#: Who runs the servers when the suite itself runs as root, which neither of them likes.
NOBODY = "nobody"

_TABLES = models.Base.metadata.sorted_tables
_FILLED = sqlalchemy.select(*(sqlalchemy.exists().select_from(table) for table in _TABLES))


class Databases(Protocol):
    """Databases of one kind."""

    def blank(self) -> str:
        """The URL of a new database without tables."""

    def fresh(self) -> str:
        """The URL of a migrated database without rows; what an earlier one held is gone."""

    def stop(self) -> None:
        """End what was started."""


class _Emptied:
    """Databases of which one is migrated once, and emptied for each test."""

    #: Statements before and after the deletes: foreign keys do not matter while everything goes.
    unbound: str
    bound: str
    _emptied: sqlalchemy.Engine | None = None

    def blank(self) -> str:
        raise NotImplementedError

    def fresh(self) -> str:
        if self._emptied is None:
            url = self.blank()
            migrate.upgrade(url)
            self._emptied = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with self._emptied.connect() as connection:
            filled = connection.execute(_FILLED).one()  # To ask all at once is quicker than to empty all.
            connection.exec_driver_sql(self.unbound)
            for table in itertools.compress(_TABLES, filled):
                connection.execute(table.delete())
            connection.exec_driver_sql(self.bound)
        return self._emptied.url.render_as_string(hide_password=False)

    def stop(self) -> None:
        if self._emptied is not None:
            self._emptied.dispose()


class Sqlite(_Emptied):
    """Files in a directory."""

    unbound = "PRAGMA foreign_keys = OFF"
    bound = "PRAGMA foreign_keys = ON"

    def __init__(self) -> None:
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="cl-db-"))
        self._made = 0

    def blank(self) -> str:
        self._made += 1
        return f"sqlite:///{self._directory}/{self._made}.sqlite"

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self._directory)


class _Server(_Emptied):
    """What both servers have in common."""

    def __init__(self) -> None:
        # A socket's path may have 107 characters, and only the owner may look inside.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="cl-db-", dir="/var/tmp"))
        self._account = _account()
        self._made = 0
        if self._account:
            shutil.chown(self.directory, NOBODY)
        self._lay_out()
        try:
            self.start()
        except LabError:
            self.stop()
            raise

    def start(self) -> None:
        """Start the server, for the first time or after `crash`, and wait until it answers. Raises LabError."""
        self._process = self._serve()
        wait(self._answers, timeout=60, what=type(self).__name__)

    def crash(self) -> None:
        """End the server and all of its connections at once, as if it had been killed."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(20)

    def _lay_out(self) -> None:
        raise NotImplementedError

    def _serve(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def url(self, name: str) -> str:
        raise NotImplementedError

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise LabError((self.directory / "log").read_text(encoding="utf-8", errors="replace")[-2000:])
        if not any(one.is_socket() for one in self.directory.iterdir()):
            return False
        try:
            self.administer("SELECT 1")
        except sqlalchemy.exc.OperationalError:
            return False
        return True

    def administer(self, statement: str) -> None:
        """Have a statement done as the administrator."""
        engine = sqlalchemy.create_engine(self.url(""), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(statement)
        finally:
            engine.dispose()

    def _make(self, arguments: Sequence[str | pathlib.Path]) -> None:
        """Run a program that lays out the data."""
        run([*(("setpriv", "--reuid", NOBODY, "--clear-groups") if self._account else ()), *arguments], timeout=120,
            cwd=self.directory)  # fmt: skip

    def _run(self, arguments: Sequence[str | pathlib.Path]) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [str(word) for word in arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                cwd=self.directory, **self._account,
            )  # fmt: skip

    def blank(self) -> str:
        self._made += 1
        self.administer(f"CREATE DATABASE made_{self._made}")
        return self.url(f"made_{self._made}")

    def stop(self) -> None:
        super().stop()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        shutil.rmtree(self.directory)


def _account() -> dict[str, Any]:
    """Whom to run a server as: nothing to say unless the suite runs as root."""
    return {"user": NOBODY, "group": pwd.getpwnam(NOBODY).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}


class Postgresql(_Server):
    """A PostgreSQL of the distribution's package."""

    unbound = "SET session_replication_role = replica"
    bound = "SET session_replication_role = DEFAULT"

    #: Whether a commit that was answered may be lost when the server is killed; a power cut is not cared for anyway.
    forgetful = True

    def _lay_out(self) -> None:
        self._make([self._programs() / "initdb", "-D", self.directory / "data", "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C",
                    "--no-sync"])  # fmt: skip

    @staticmethod
    def _programs() -> pathlib.Path:
        found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            raise LabError("postgresql is not installed: tools/lab/packages.py test")
        return found[-1]

    def _serve(self) -> subprocess.Popen[bytes]:
        commit = "off" if self.forgetful else "on"
        options = ("listen_addresses=", "fsync=off", f"synchronous_commit={commit}", "full_page_writes=off",
                   f"unix_socket_directories={self.directory}", "max_connections=200")  # fmt: skip
        return self._run([self._programs() / "postgres", "-D", self.directory / "data",
                          *(word for one in options for word in ("-c", one))])  # fmt: skip

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://tests@/{name or 'postgres'}?host={self.directory}"


class Mariadb(_Server):
    """A MariaDB of the distribution's package, with its own default character set, which is not Unicode."""

    unbound = "SET foreign_key_checks = 0"
    bound = "SET foreign_key_checks = 1"

    #: Options beside those of every server here.
    more: tuple[str, ...] = ()

    def _lay_out(self) -> None:
        if not pathlib.Path("/usr/sbin/mariadbd").exists():
            raise LabError("mariadb-server-core is not installed: tools/lab/packages.py test")
        # One that starts removes the temporary tables that are in its directory for them, whosever they are.
        temporary = self.directory / "temporary"
        temporary.mkdir()
        if self._account:
            shutil.chown(temporary, NOBODY)
        self._make(["/usr/bin/mariadb-install-db", "--no-defaults", f"--datadir={self.directory}/data",
                    f"--tmpdir={temporary}", "--skip-test-db", "--auth-root-authentication-method=normal"])  # fmt: skip

    def _serve(self) -> subprocess.Popen[bytes]:
        return self._run(
            ["/usr/sbin/mariadbd", "--no-defaults", f"--datadir={self.directory}/data",
             f"--tmpdir={self.directory}/temporary", f"--socket={self.directory}/socket",
             f"--pid-file={self.directory}/pid", "--skip-networking", "--skip-log-bin", "--max-connections=200",
             "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--innodb-buffer-pool-size=64M",
             *self.more]
        )  # fmt: skip

    def url(self, name: str) -> str:
        return f"mariadb+pymysql://root@localhost/{name}?unix_socket={self.directory}/socket"


class Node(Mariadb):
    """One MariaDB of a Galera cluster; `ports` is the first of three, `others` those of the nodes that it joins."""

    def __init__(self, ports: int, others: Sequence[int], scripts: pathlib.Path) -> None:
        self.ports = ports
        self._scripts = scripts
        own = (f"base_port={ports}", f"gmcast.listen_addr=tcp://127.0.0.1:{ports}", f"ist.recv_addr=127.0.0.1:{ports + 1}",
               "gcache.size=32M")  # fmt: skip
        self.more = (
            "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--wsrep-on=ON",
            "--wsrep-provider=/usr/lib/galera/libgalera_smm.so", "--wsrep-cluster-name=tests",
            f"--wsrep-node-address=127.0.0.1:{ports}", f"--wsrep-provider-options={';'.join(own)}",
            "--wsrep-sst-method=rsync", f"--wsrep-sst-receive-address=127.0.0.1:{ports + 2}",
            f"--wsrep-cluster-address=gcomm://{','.join(f'127.0.0.1:{one}' for one in others)}",
            *(() if others else ("--wsrep-new-cluster",)),
        )  # fmt: skip
        super().__init__()

    def _run(self, arguments: Sequence[str | pathlib.Path]) -> subprocess.Popen[bytes]:
        return super()._run(["env", f"PATH={self._scripts}:{os.environ['PATH']}", *arguments])

    def _answers(self) -> bool:
        return super()._answers() and self.status("wsrep_ready") == "ON"

    def status(self, name: str) -> str:
        """What it says of itself and of the cluster."""
        engine = sqlalchemy.create_engine(self.url(""))
        try:
            with engine.connect() as connection:
                return str(connection.exec_driver_sql(f"SHOW STATUS LIKE '{name}'").one()[1])
        finally:
            engine.dispose()

    def kill(self) -> None:
        """End it at once, as a host does that loses its power."""
        self._process.kill()
        self._process.wait(20)


class Galera(_Emptied):
    """Three MariaDBs of which each has what is committed on any; all connections are to the first."""

    unbound, bound = Mariadb.unbound, Mariadb.bound

    def __init__(self) -> None:
        packages.ensure(("galera-4", "rsync", "lsof", "iproute2"))
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="cl-db-", dir="/var/tmp"))
        self._directory.chmod(0o755)
        self.nodes: list[Node] = []
        try:
            # Of what would run a server for good only the scripts, which bring a node what the others have.
            run(["apt-get", "-q", "download", "mariadb-server"], timeout=300, cwd=self._directory)
            [package] = self._directory.glob("*.deb")
            run(["dpkg-deb", "-x", package, self._directory], timeout=120)
            for _ in range(3):
                there = [one.ports for one in self.nodes]
                self.nodes.append(Node(free_ports(3), there, self._directory / "usr/bin"))
        except LabError:
            self.stop()
            raise

    def blank(self) -> str:
        return self.nodes[0].blank()

    def stop(self) -> None:
        super().stop()
        for one in reversed(self.nodes):
            one.stop()
        shutil.rmtree(self._directory)


KINDS: dict[str, type[Databases]] = {
    "sqlite": Sqlite, "postgresql": Postgresql, "mariadb": Mariadb, "galera": Galera,
}  # fmt: skip
