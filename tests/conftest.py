# SPDX-License-Identifier: Apache-2.0
"""What every tier uses: a configuration, the application over fakes, a client that speaks a version.

Fakes are of what we own (the cluster, the hypervisor), never of rbd or QMP calls; tests look at answers and at what
the fakes then hold, and the same contract suite runs on the fakes and on the real thing.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import pkgutil
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flask
import pytest
import sqlalchemy
from oslo_config import cfg
from sqlalchemy import event

import cinderlite
from backends.databases import KINDS, Databases
from backends.service import Service
from cinderlite import app as composition
from cinderlite import config
from cinderlite.ceph.cluster import Cluster
from cinderlite.context import Context, World
from cinderlite.core import group_types, reconcile, types
from cinderlite.core.keys import OwnKeys
from cinderlite.db.session import Database
from cinderlite.jobs import Jobs
from cinderlite.keys.master import MasterKey
from fakes_cluster import FakeCluster
from fakes_glance import FakeGlance
from fakes_hypervisor import FakeHypervisor
from lab.ceph import Ceph
from lab.guest import Guest
from lab.libvirt import Domain, Libvirt
from lab.process import PATIENCE

# Hypothesis draws from the constants of the modules that are there: those that come late would make what is drawn, and
# with it what is found, depend on which tests a worker had before.
for _module in pkgutil.walk_packages(cinderlite.__path__, "cinderlite."):
    if not _module.name.startswith("cinderlite.db.migrations."):
        importlib.import_module(_module.name)

PROJECT = "aaaaaaaa11114111811111111111aaaa"
OTHER = "bbbbbbbb22224222822222222222bbbb"


def configuration(directory: pathlib.Path, **overrides: Any) -> cfg.ConfigOpts:
    """A configuration for tests: noauth on loopback, a database of its own."""
    path = directory / "cinderlite.conf"
    path.write_text(
        "[DEFAULT]\nauth_strategy = noauth\nosapi_volume_listen = 127.0.0.1\nhost = testhost\n"
        f"state_path = {directory}\n",
        encoding="utf-8",
    )
    # Which back ends there are decides which options there are.
    backends = ",".join(overrides.pop("enabled_backends", ["ceph"]))
    with path.open("a", encoding="utf-8") as file:
        file.write(f"enabled_backends = {backends}\n")
    conf = config.load(["--config-file", str(path)])
    for name, value in overrides.items():
        group, _, option = name.rpartition("__")
        conf.set_override(option, value, group or None)
    return conf


@pytest.fixture
def conf(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> cfg.ConfigOpts:
    """The configuration; `@pytest.mark.parametrize("conf", [{"quota_volumes": 2}], indirect=True)` overrides."""
    return configuration(tmp_path, **dict(getattr(request, "param", {})))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which database the fakes' world is over; PostgreSQL and MariaDB are started by the suite."""
    parser.addoption("--database", choices=sorted(KINDS), default="sqlite", help="database of the API's tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another database only what talks to one is done again; what waits for real parts may take its time."""
    for item in items:
        if item.get_closest_marker("real"):
            own = item.get_closest_marker("timeout")
            item.add_marker(pytest.mark.timeout(PATIENCE * (own.args[0] if own else 300)), append=False)
    if config.getoption("--database") == "sqlite":
        return
    others = [item for item in items if "databases" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Databases of the kind that --database names."""
    made = KINDS[request.config.getoption("database")]()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def database(databases: Databases) -> Iterator[Database]:
    """Connections that all tests share: with an engine of its own each would compile every statement again."""
    made = Database(databases.fresh(), 10)
    event.listen(made.engine, "before_cursor_execute", _refuse_to_write_in_a_read)
    yield made
    made.close()


def _refuse_to_write_in_a_read(
    connection: sqlalchemy.Connection, _cursor: object, statement: str, *_how: object
) -> None:
    # On SQLite it would be committed at once, elsewhere never.
    writes = statement.startswith(("INSERT", "UPDATE", "DELETE"))
    if writes and not connection.get_execution_options().get("cinderlite_write"):
        raise AssertionError(f"{statement} in a session to read with")


@pytest.fixture
def glance(conf: cfg.ConfigOpts) -> Iterator[FakeGlance]:
    """An image service, which the world of a test that asks for this has."""
    made = FakeGlance()
    conf.set_override("glance_api_servers", [made.url])
    yield made
    made.stop()


@pytest.fixture
def world(conf: cfg.ConfigOpts, databases: Databases, database: Database, request: pytest.FixtureRequest) -> World:
    """A world of fakes over a real database, which is empty."""
    databases.fresh()
    if "glance" in request.fixturenames:
        request.getfixturevalue("glance")
    return world_of_fakes(conf, database)


def world_of_fakes(conf: cfg.ConfigOpts, database: Database) -> World:
    """A world of fakes over a database, which is empty."""
    clusters = {name: FakeCluster(pool=conf[name].rbd_pool) for name in conf.enabled_backends}
    vault = FakeCluster(pool="backups")
    for cluster in (*clusters.values(), vault):
        cluster.others = {one.pool: one for one in (*clusters.values(), vault)}
    return world_over(conf, database, clusters, vault)


def world_over(conf: cfg.ConfigOpts, database: Database, clusters: Mapping[str, Cluster], vault: Cluster) -> World:
    """A world with a cluster for each back end and one for backups, and a fake hypervisor."""
    settings = dataclasses.replace(composition.settings(conf), detach_wait=0.1, guest_gone_after=0.0)
    backends = {name: composition.backend(conf, name, cluster) for name, cluster in clusters.items()}
    images = composition.images(conf)
    master = MasterKey([os.urandom(32)])
    keys = OwnKeys(database, master)
    guests = FakeHypervisor()
    guests.clusters = {one.pool: one for one in clusters.values() if isinstance(one, FakeCluster)}
    made = World(settings, database, backends, guests, Jobs(0), Jobs(0), vault, images, keys, master)
    types.ensure_default(made)
    group_types.ensure_reserved(made)
    return made


@pytest.fixture
def cluster(world: World) -> FakeCluster:
    """The fake cluster of the world, or of its first back end."""
    return cluster_of(world)


def cluster_of(world: World, backend: str = "ceph") -> FakeCluster:
    """The fake cluster behind a back end, where the first project's new images are."""
    found = world.backends[backend].cluster
    assert isinstance(found, FakeCluster)
    return found.within(world.backends[backend].namespace_for(PROJECT))


@pytest.fixture
def vault(world: World) -> FakeCluster:
    """The fake cluster with the backup pool."""
    assert isinstance(world.backup_cluster, FakeCluster)
    return world.backup_cluster


@pytest.fixture
def hypervisor(world: World) -> FakeHypervisor:
    """The fake hypervisor of the world."""
    assert isinstance(world.guests, FakeHypervisor)
    return world.guests


@pytest.fixture(scope="session")
def applications() -> dict[str, tuple[flask.Flask, Any]]:
    """Applications with what they know of the service, by configuration: making one costs more than most tests."""
    return {}


@pytest.fixture
def application(
    conf: cfg.ConfigOpts, world: World, applications: dict[str, tuple[flask.Flask, Any]], request: pytest.FixtureRequest
) -> flask.Flask:
    """The application over the world of fakes, with no background thread: tests call `settle` instead.

    Its extension `asked` names what the last request was: service, operation, rule.
    """
    own = request.node.callspec.params.get("conf", {}) if hasattr(request.node, "callspec") else {}
    key = repr(sorted(own.items()))
    if key not in applications:
        made = composition.create_app(conf, world)
        made.after_request(functools.partial(_note, made))
        applications[key] = made, made.extensions["cinderlite"]
    app, edge = applications[key]
    edge.world = world
    app.extensions["cinderlite"] = copy.copy(edge)
    return app


def _note(app: flask.Flask, response: flask.Response) -> flask.Response:
    rule = flask.request.url_rule.rule if flask.request.url_rule else ""
    service = flask.g.get("service")
    app.extensions["asked"] = service.name if service else "none", flask.g.get("operation", "none"), rule
    return response


@dataclasses.dataclass(frozen=True)
class Client:
    """Asks the application as somebody, at a version of each service."""

    app: flask.Flask
    headers: dict[str, str]

    def at(self, version: str) -> Client:
        """The same caller at another version: "3.60" of block storage or "2.89" of compute."""
        service = "volume" if version.startswith("3") else "compute"
        return dataclasses.replace(self, headers={**self.headers, "OpenStack-API-Version": f"{service} {version}"})

    def with_headers(self, **headers: str) -> Client:
        """The same caller with further headers; underscores stand for dashes."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return dataclasses.replace(self, headers={**self.headers, **more})

    @property
    def operation(self) -> str:
        """Which one answered the last request of anybody, such as "volume/volumes.show"."""
        return "/".join(self.app.extensions["asked"][:2])

    @property
    def rule(self) -> str:
        """The rule of the last request's path, such as "/v3/volumes/<id>"."""
        return str(self.app.extensions["asked"][2])

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the body goes as JSON. Answers werkzeug's TestResponse (its `json` is anything)."""
        data = None if body is None else json.dumps(body)
        kind = None if body is None else "application/json"
        return self.app.test_client().open(path, method=method, data=data, headers=self.headers, content_type=kind)

    def get(self, path: str) -> Any:
        """GET."""
        return self.request("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        """POST."""
        return self.request("POST", path, body)

    def put(self, path: str, body: Any = None) -> Any:
        """PUT."""
        return self.request("PUT", path, body)

    def delete(self, path: str) -> Any:
        """DELETE."""
        return self.request("DELETE", path)

    def volume(self, **fields: Any) -> dict[str, Any]:
        """Create a volume and answer it as it is afterwards."""
        made = self.post("/v3/volumes", {"volume": {"size": 1, **fields}})
        assert made.status_code == 202, made.text
        return self.get(f"/v3/volumes/{made.json['volume']['id']}").json["volume"]  # type: ignore[no-any-return]


class _Identities:
    """A strategy for tests: headers X-Test-User, -Project, -Roles, -Service-Roles say who asks."""

    def __call__(self, environ: dict[str, Any]) -> Any:
        from cinderlite.api.auth import Identity

        roles = frozenset(environ.get("HTTP_X_TEST_ROLES", "member,reader").split(","))
        services = frozenset(environ.get("HTTP_X_TEST_SERVICE_ROLES", "").split(",")) - {""}
        user, project = environ.get("HTTP_X_TEST_USER", "alice"), environ.get("HTTP_X_TEST_PROJECT", PROJECT)
        return Identity(user, project, roles, services)


def _client(app: flask.Flask, project: str, roles: str, user: str) -> Client:
    app.extensions["cinderlite"]._strategy = _Identities()
    return Client(app, {"X-Test-Project": project, "X-Test-Roles": roles, "X-Test-User": user})


@pytest.fixture
def client(application: flask.Flask) -> Client:
    """A member of the project."""
    return _client(application, PROJECT, "member,reader", "alice")


@pytest.fixture
def reader(application: flask.Flask) -> Client:
    """A reader of the same project."""
    return _client(application, PROJECT, "reader", "rita")


@pytest.fixture
def stranger(application: flask.Flask) -> Client:
    """A member of another project."""
    return _client(application, OTHER, "member,reader", "bob")


@pytest.fixture
def admin(application: flask.Flask) -> Client:
    """An administrator, of the first project."""
    return _client(application, PROJECT, "admin,member,reader", "root")


@pytest.fixture
def nova(client: Client) -> Client:
    """A compute service that calls on the member's behalf, with its own token beside the member's."""
    return client.with_headers(X_Test_Service_Roles="service")


@pytest.fixture
def ctx(world: World) -> Context:
    """A member's context, for tests below HTTP."""
    return Context(world, "alice", PROJECT, frozenset({"member", "reader"}), "req-test")


def settle(world: World, passes: int = 3) -> None:
    """What the background thread does, now: finish what has an intent, whatever its retry time."""
    import sqlalchemy

    for _ in range(passes):
        with world.db.write() as session:
            for table in (machine.model for machine in reconcile.MACHINES):
                session.execute(sqlalchemy.update(table).where(table.lease_owner.is_(None)).values(lease_until=0.0))
        reconcile.once(world)


# -- real parts, started once a session when a test asks for them


@pytest.fixture(scope="session")
def lab_directory() -> Iterator[pathlib.Path]:
    """A directory with a short path: a socket's may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/var/tmp") as name:
        yield pathlib.Path(name)


@pytest.fixture(scope="session")
def ceph(lab_directory: pathlib.Path) -> Iterator[Ceph]:
    """A one-node Ceph."""
    cluster = Ceph(lab_directory / "ceph")
    cluster.start()
    yield cluster
    cluster.destroy()


@pytest.fixture(scope="session")
def sockets(lab_directory: pathlib.Path) -> pathlib.Path:
    """The directory of monitors that the service looks into."""
    return lab_directory / "sockets"


@pytest.fixture(scope="session")
def both_guests(lab_directory: pathlib.Path, sockets: pathlib.Path) -> Iterator[tuple[Guest, Guest]]:
    """Two Linux guests of project demo for all tests."""
    made = (Guest(lab_directory, "vm1", sockets=sockets), Guest(lab_directory, "vm2", sockets=sockets))
    for guest in made:
        guest.start(wait_for_os=False)
    for guest in made:
        guest.ready()
    yield made
    for guest in made:
        guest.forget()


@pytest.fixture
def guests(both_guests: tuple[Guest, Guest]) -> tuple[Guest, Guest]:
    """Two running Linux guests of project demo, without disks."""
    for guest in both_guests:
        guest.renew()
    return both_guests


@pytest.fixture
def guest_of(lab_directory: pathlib.Path, sockets: pathlib.Path) -> Iterator[Callable[..., Guest]]:
    """Makes further guests, which end with the test."""
    made: list[Guest] = []

    def make(**options: Any) -> Guest:
        guest = Guest(lab_directory, f"extra{len(made)}", sockets=sockets, **options)
        made.append(guest)
        guest.start()
        return guest

    yield make
    for guest in made:
        guest.forget()


@pytest.fixture(scope="session")
def libvirt() -> Iterator[Libvirt]:
    """A libvirt daemon of its own, in a directory that its user can reach."""
    pytest.importorskip("libvirt")
    if shutil.which("libvirtd") is None:
        pytest.skip("no libvirtd on this machine")
    with tempfile.TemporaryDirectory(prefix="clv-", dir="/var/tmp") as name:
        pathlib.Path(name).chmod(0o711)
        made = Libvirt(pathlib.Path(name))
        made.start()
        yield made
        made.kill()


@pytest.fixture(scope="session")
def domain(libvirt: Libvirt) -> Iterator[Domain]:
    """A Linux guest of libvirt's, of project demo; a test leaves it running, and no volume in it."""
    made = Domain(libvirt, "linux")
    made.start()
    yield made
    made.forget()


@pytest.fixture
def service_options() -> Mapping[str, Mapping[str, object]]:
    """What the service is configured with beside what it always is; a module may have its own."""
    return {}


@pytest.fixture
def service(
    tmp_path: pathlib.Path,
    ceph: Ceph,
    guests: Any,
    sockets: pathlib.Path,
    service_options: Mapping[str, Mapping[str, object]],
) -> Iterator[Service]:
    """A running service with a database of its own; a test leaves no volume behind."""
    running = Service(tmp_path, ceph.conf, sockets, service_options)
    running.start()
    yield running
    # As an operator does it, so that no watch is left for which the pool could not be emptied for 30 s.
    running.stop()
    # The next test's service has another database: what this one had begun is nobody's now.
    ceph.empty()
