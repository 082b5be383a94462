# SPDX-License-Identifier: Apache-2.0
"""Where the machine plays: the service over fakes, or over a real Ceph, with two back ends and a backup pool.

Both are asked over HTTP. Interrupted work is taken up as a new process would do it: `settle` lets every lease lapse and
reconciles, and may be interrupted itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import flask
import sqlalchemy
from oslo_config import cfg

from backends.databases import Databases
from cinderlite.ceph.cluster import Cluster, OpenImage
from cinderlite.context import World
from cinderlite.core import reconcile, records
from cinderlite.core.progress import silent
from cinderlite.core.rebuild import Rebuilt, rebuild
from cinderlite.core.recorder import Recorder
from cinderlite.db import models
from cinderlite.db.session import Database
from conftest import OTHER, PROJECT, Client, cluster_of, world_of_fakes, world_over
from fakes_cluster import FakeCluster
from lab.ceph import Ceph
from model.expected import LIMITS
from model.life import Killed, Life

T = TypeVar("T")

#: The configuration that both need.
CONF: dict[str, Any] = {
    "enabled_backends": ["ceph", "fast"], "fast__rbd_pool": "second", "backup_ceph_pool": "backups",
    # No clone is made whole: it would not need its parent any more.
    "ceph__rbd_max_clone_depth": 1000, "fast__rbd_max_clone_depth": 1000,
}  # fmt: skip
#: The group type that both have.
GROUP_TYPE = "plain"


class Stage:
    """The service over fakes; `clients` are a member of each project."""

    def __init__(
        self,
        application: flask.Flask,
        conf: cfg.ConfigOpts,
        databases: Databases,
        database: Database,
        clients: Sequence[Client],
        admin: Client,
    ) -> None:
        self.conf = conf
        self.clients = {project: client.at("3.71") for project, client in zip((PROJECT, OTHER), clients, strict=True)}
        self.admin = admin.at("3.71")
        #: Whether snapshots outlive volumes.
        self.outlive: bool = conf.snapshots_outlive_volumes
        self.database = database
        self._databases = databases
        self._application = application
        self.life = Life()
        #: What each project may have.
        self.limits: dict[str, int] = LIMITS

    def begin(self) -> None:
        """Start anew: nothing is there but the types and the projects' limits."""
        self._databases.fresh()
        self.life = Life()
        self.world = self.make_world()
        self._application.extensions["cinderlite"].world = self.world
        self._recorder = Recorder(self.world)
        with self.world.db.write() as session:
            specs = [models.ExtraSpec(key="volume_backend_name", value="fast")]
            session.add(models.VolumeType(name="quick", extra_spec_rows=specs))
            session.add(models.GroupType(name=GROUP_TYPE))
            for project in self.clients:
                session.add_all(models.Quota(project_id=project, resource=name, limit=limit)
                                for name, limit in self.limits.items())  # fmt: skip

    def make_world(self) -> World:
        """A world whose clusters take part in `life`."""
        made = world_of_fakes(self.conf, self.database)
        for cluster in [*(one.cluster for one in made.backends.values()), made.backup_cluster]:
            assert isinstance(cluster, FakeCluster)
            cluster.life = self.life
        # Where a volume goes must not hang on when the pools were looked at last.
        cluster_of(made, "fast").free_bytes //= 2
        return made

    def lose_database(self, faults: list[tuple[int, str]]) -> Rebuilt:
        """Throw the database away and build it anew from what was recorded, in spite of what goes wrong meanwhile."""
        self.life.faults = faults
        while self.life.faults:
            before = list(self.life.faults)
            with contextlib.suppress(Killed):
                self._recorder.once()
            if self.life.faults == before:
                self.life.faults.clear()
        while self._recorder.once():
            pass
        self._databases.fresh()
        self._recorder = Recorder(self.world)
        return rebuild(self.world, silent)

    def cluster(self, backend: str) -> Cluster:
        """The cluster of a back end."""
        return self.world.backends[backend].cluster

    @property
    def vault(self) -> Cluster:
        """The cluster with the backup pool."""
        assert self.world.backup_cluster is not None
        return self.world.backup_cluster

    def objects(self) -> set[str]:
        """Names of the plain objects in the backup pool."""
        assert isinstance(self.vault, FakeCluster)
        return set(self.vault.objects)

    @contextlib.contextmanager
    def outage(self, name: str) -> Iterator[None]:
        """While a back end, or the "vault", does not answer."""
        cluster: Any = self.vault if name == "vault" else self.cluster(name)
        cluster.down = True
        try:
            yield
        finally:
            cluster.down = False

    def write(self, backend: str, volume_id: str, offset: int, data: bytes) -> None:
        """What a guest writes."""
        with self.cluster(backend).opened(f"volume-{volume_id}", write=True) as image:
            image.write(offset, data)
            image.flush()

    def settle(self) -> None:
        """What processes that are started one after the other do, until nothing more comes of it."""
        before: object = None
        while (left := self._unfinished()) and (now := (left, list(self.life.faults))) != before:
            before = now
            self._let_go()
            with contextlib.suppress(Killed):
                reconcile.once(self.world)

    def _unfinished(self) -> list[tuple[str, str]]:
        """Rows with work left, and what is."""
        found: list[tuple[str, str]] = []
        with self.world.db.read() as session:
            for machine in reconcile.MACHINES:
                table = machine.model
                rows = session.execute(sqlalchemy.select(table.id, table.intent).where(table.busy == 1))
                found += [(row_id, intent["verb"]) for row_id, intent in rows]
        return found

    def _let_go(self) -> None:
        """The leases of a dead process lapse, and what waits for its next try is due."""
        with self.world.db.write() as session:
            for machine in reconcile.MACHINES:
                table = machine.model
                session.execute(
                    sqlalchemy.update(table).where(table.busy == 1).values(lease_owner=None, lease_until=0.0)
                )

    def rows(self, model: type[T]) -> Sequence[T]:
        """All rows of a table."""
        with self.world.db.read() as session:
            return session.scalars(sqlalchemy.select(model)).all()

    def groups(self) -> Sequence[models.Group]:
        """The rows of the groups, which alone tell where they are."""
        return self.rows(models.Group)

    def backup_details(self) -> dict[str, Mapping[str, Any]]:
        """What the database knows of each backup: its chain, among others."""
        rows = [one for one in self.rows(models.Backup) if one.status != "deleted"]
        return {one.id: {**one.details, "id": one.stored_as} for one in rows}


class _Mortal(Cluster):
    """A real cluster that takes part in a life, and may pretend to be down."""

    life: Life
    down = False
    _LOOKS = frozenset({
        "info", "list", "list_trash", "list_snapshots", "size_elsewhere", "get_object", "entries", "outline", "migration",
    })  # fmt: skip
    _LOOKS_AT_ALL = frozenset({"ping", "probe", "capacity", "monitors", "key", "fsid"})

    def check(self) -> None:
        if not self.down:
            super().check()
            return
        from cinderlite import errors

        raise errors.CephUnavailable("it is said to be down")

    def _call(self, verb: str, *rest: Any, **more: Any) -> Any:
        return self._living(verb, lambda: super(_Mortal, self)._call(verb, *rest, **more))

    def _bulk(self, verb: str, *rest: Any, **more: Any) -> Any:
        return self._living(verb, lambda: super(_Mortal, self)._bulk(verb, *rest, **more))

    def _living(self, verb: str, step: Callable[[], T]) -> T:
        changes = verb not in self._LOOKS | self._LOOKS_AT_ALL
        if changes:
            self.life()
        result = step()
        if changes:
            self.life()
        return result

    @contextlib.contextmanager
    def opened(self, name: str, snap: str | None = None, *, write: bool = False) -> Iterator[OpenImage]:
        if write:
            self.life()
        with super().opened(name, snap, write=write) as image:
            yield image
        if write:
            self.life()


class RealStage(Stage):
    """The same over a real Ceph."""

    def __init__(self, ceph: Ceph, *rest: Any) -> None:
        super().__init__(*rest)
        for pool in ("second", "backups"):
            ceph.add_pool(pool)
        self._ceph = ceph
        self._clusters = {name: self._connect(pool) for name, pool in
                          (("ceph", ceph.pool), ("fast", "second"), ("vault", "backups"))}  # fmt: skip

    def _connect(self, pool: str) -> _Mortal:
        made = _Mortal(
            pool=pool, conffile=str(self._ceph.conf), user=self._ceph.user, connect_timeout=5, mon_timeout=5,
            osd_timeout=5, call_timeout=20.0, threads=2,
        )  # fmt: skip
        made.life = self.life
        return made

    def make_world(self) -> World:
        for cluster in self._clusters.values():
            cluster.life = self.life
            for name in (*records.objects(), records.CATALOGUE):  # Of another database.
                cluster.drop_object(name)
        backends = {name: self._clusters[name] for name in ("ceph", "fast")}
        return world_over(self.conf, self.database, backends, self._clusters["vault"])

    def objects(self) -> set[str]:
        known = [f"cinderlite.backup.{one['id']}" for one in self.backup_details().values()]
        return {name for name in known if self.vault.get_object(name)}

    def end(self) -> None:
        """Close the connections."""
        for cluster in self._clusters.values():
            cluster.close()
