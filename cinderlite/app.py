# SPDX-License-Identifier: Apache-2.0
"""The composition root: what is real, what is wired to what. Only this and `cmd` read the configuration."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import ipaddress
import logging
import pathlib
import pkgutil
import re
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Mapping
from typing import Any

import flask
from oslo_config import cfg
from oslo_context import context as oslo_context
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter
from werkzeug.sansio.utils import get_current_url

from cinderlite import config, errors, metrics, private
from cinderlite.api import admission, auth, compute, faults, filters, keystone, openapi, rest, versions, volume
from cinderlite.api.policy import Policy
from cinderlite.ceph.cluster import Cluster
from cinderlite.context import Backend, Context, ImageCache, Settings, World
from cinderlite.core import group_types, reconcile, recorder, types
from cinderlite.core.keys import OwnKeys
from cinderlite.db.session import Database
from cinderlite.guests import Hypervisor, remote
from cinderlite.guests.libvirt import LibvirtHypervisor
from cinderlite.guests.qmp import QmpHypervisor
from cinderlite.guests.several import SeveralHypervisors
from cinderlite.images import Converter, Glance, Images
from cinderlite.jobs import Jobs
from cinderlite.keys import KeyStore, master
from cinderlite.keys.castellan import CastellanKeys

LOG = logging.getLogger(__name__)

_GLOBAL_ID = re.compile(r"req-[0-9a-fA-F-]{36}")


def settings(conf: cfg.ConfigOpts) -> Settings:
    """The configured values that rules need."""
    return Settings(
        host=conf.host,
        availability_zone=conf.default_availability_zone or conf.storage_availability_zone,
        zone_fallback=conf.allow_availability_zone_fallback,
        default_volume_type=conf.default_volume_type,
        default_group_type=conf.default_group_type,
        quotas={
            name: conf[f"quota_{name}"]
            for name in ("volumes", "snapshots", "gigabytes", "backups", "backup_gigabytes", "groups")
        },
        per_volume_gigabytes=conf.per_volume_size_limit,
        max_page=conf.osapi_max_limit,
        lease=conf.operation_lease,
        batch=conf.reconcile_batch,
        service_down_after=conf.service_down_time,
        detach_wait=conf.guests.detach_wait,
        guest_gone_after=conf.guests.guest_gone_after,
        max_attachments=conf.guests.max_disk_devices_to_attach,
        fence_for=conf.guests.fence_seconds,
        give_up_detach_after=conf.guests.detach_give_up_after,
        stuck_after=conf.stuck_call_timeout,
        retention=conf.deleted_volume_retention,
        copy_speed=conf.volume_copy_bps_limit,
        freeze_for=conf.guests.freeze_timeout if conf.guests.freeze_file_systems else 0.0,
        snapshots_outlive=conf.snapshots_outlive_volumes,
        internal_project=conf.cinder_internal_tenant_project_id or "",
        internal_user=conf.cinder_internal_tenant_user_id or "",
    )


def real_world(conf: cfg.ConfigOpts) -> World:
    """The world as configured. Call it after the fork: nothing in it survives one."""
    db = Database(config.database_url(conf), conf.database.timeout, conf.api_threads + slow_threads(conf))
    return World(
        settings=settings(conf),
        db=db,
        backends={name: backend(conf, name, _cluster(conf[name])) for name in conf.enabled_backends},
        guests=hypervisor(conf),
        jobs=Jobs(conf.job_threads),
        flattening=Jobs(conf.rbd_concurrent_flatten_operations),
        backup_cluster=_backup_cluster(conf),
        images=images(conf),
        keys=keys(conf, db),
        signing=signing(conf),
    )


def hypervisor(conf: cfg.ConfigOpts) -> Hypervisor:
    """Where the servers are. Raises CinderliteError with what is missing."""
    monitors = QmpHypervisor(
        pathlib.Path(conf.guests.qmp_socket_directory),
        connect_timeout=conf.guests.qmp_connect_timeout,
        command_timeout=conf.guests.qmp_command_timeout,
        host=conf.host,
        locks=_own_directory(conf, "monitors"),
        rest=conf.guests.qmp_rest,
        tls=_tls(conf),
        mount_timeout=conf.guests.qmp_mount_timeout,
        observe=metrics.observe_guest,
        agent_socket=conf.guests.agent_socket,
        agent_timeout=conf.guests.agent_timeout,
    )
    if not conf.guests.libvirt_uris:
        return monitors
    if any(importlib.util.find_spec(name) is None for name in ("libvirt", "libvirt_qemu")):
        raise errors.CinderliteError(
            "libvirt_uris needs the modules libvirt and libvirt_qemu: python3-libvirt, or the extra 'libvirt'"
        )
    daemons = [
        LibvirtHypervisor(
            uri,
            host=urllib.parse.urlsplit(uri).hostname or conf.host,
            connect_timeout=conf.guests.libvirt_connect_timeout,
            call_timeout=conf.guests.libvirt_call_timeout,
            threads=conf.guests.libvirt_threads,
            agent_timeout=conf.guests.agent_timeout,
            observe=metrics.observe_guest,
        )
        for uri in conf.guests.libvirt_uris
    ]
    return SeveralHypervisors([monitors, *daemons])


def _tls(conf: cfg.ConfigOpts) -> ssl.SSLContext | None:
    """How monitors on other hosts are spoken to. Raises CinderliteError if the files cannot be used."""
    guests = conf.guests
    if not guests.qmp_tls_ca:
        return None
    return remote.context(guests.qmp_tls_ca, guests.qmp_tls_cert or "", guests.qmp_tls_key or "")


def keys(conf: cfg.ConfigOpts, db: Database) -> KeyStore | None:
    """Where the keys of encrypted volumes are. Raises CinderliteError with what is wrong with the configuration."""
    if conf.encryption.key_store == "database":
        return OwnKeys(db, master.read(pathlib.Path(conf.encryption.key_file)))
    if conf.encryption.key_store == "none":
        return None
    if importlib.util.find_spec("castellan") is None:
        raise errors.CinderliteError("key_store = castellan needs the extra 'castellan'")
    return CastellanKeys(conf, db.write)


def signing(conf: cfg.ConfigOpts) -> master.MasterKey | None:
    """What the records in Ceph are signed with, if there is a key file. Raises CinderliteError if it is none."""
    path = pathlib.Path(conf.encryption.key_file)
    return master.read(path) if conf.encryption.key_store == "database" or path.exists() else None


def images(conf: cfg.ConfigOpts) -> Images | None:
    """The image service, if one is configured and the library to talk to it is installed."""
    with_keystone = conf.auth_strategy == "keystone"
    if not (conf.glance_api_servers or conf.glance.auth_type or with_keystone):
        return None
    if importlib.util.find_spec("openstack") is None:
        if conf.glance_api_servers or conf.glance.auth_type:
            LOG.warning("there is no image service for want of openstacksdk; install the extra 'glance'")
        return None
    kind, name, interface = conf.glance_catalog_info.split(":")
    glance = Glance(
        servers=conf.glance_api_servers,
        catalog=(kind, name, interface),
        region=conf.glance.region_name,
        retries=conf.glance_num_retries,
        direct_schemes=conf.allowed_direct_url_schemes,
        service=functools.partial(_glance_login, conf, with_keystone=with_keystone),
        session={
            "verify": conf.glance.cafile or not conf.glance.insecure,
            "cert": (conf.glance.certfile, conf.glance.keyfile) if conf.glance.keyfile else conf.glance.certfile,
            "timeout": conf.glance.timeout,
        },
    )
    converter = Converter(
        pathlib.Path(conf.image_conversion_dir or pathlib.Path(conf.state_path) / "conversion"),
        address_space=conf.image_conversion_address_space_limit * 2**30,
        cpu_seconds=conf.image_conversion_cpu_limit,
        vmdk_types=frozenset(conf.vmdk_allowed_types),
        disabled=conf.image_conversion_disable,
    )
    return Images(glance, converter, conf.glance_num_retries, conf.enable_force_upload)


def _glance_login(conf: cfg.ConfigOpts, *, with_keystone: bool) -> Any:
    """How the service itself logs in at the image service; without an account it says nothing of who it is."""
    from keystoneauth1 import loading, noauth

    if conf.glance.auth_type:
        return loading.load_auth_from_conf_options(conf, "glance")
    return loading.load_auth_from_conf_options(conf, "keystone_authtoken") if with_keystone else noauth.NoAuth()


def backend(conf: cfg.ConfigOpts, name: str, cluster: Cluster) -> Backend:
    """The back end that a section of the configuration describes, over its cluster."""
    section = conf[name]
    return Backend(
        name=name,
        host=section.backend_host or conf.host,
        volume_backend_name=section.volume_backend_name or name,
        availability_zone=section.backend_availability_zone or conf.storage_availability_zone,
        cluster=cluster,
        reserved_percentage=section.reserved_percentage,
        max_over_subscription_ratio=section.max_over_subscription_ratio,
        cluster_name=section.rbd_cluster_name,
        secret_uuid=section.rbd_secret_uuid,
        max_clone_depth=section.rbd_max_clone_depth,
        image_cache=(
            ImageCache(section.image_volume_cache_max_size_gb, section.image_volume_cache_max_count)
            if section.image_volume_cache_enabled
            else None
        ),
        isolates=section.rbd_namespace_per_project,
        attachment_keys=section.rbd_attachment_keys,
    )


def _cluster(section: Any) -> Cluster:
    isolates = section.rbd_namespace_per_project
    return _connected(section, section.rbd_pool, section.rbd_ceph_conf, section.rbd_user, namespaces=isolates)


def _backup_cluster(conf: cfg.ConfigOpts) -> Cluster | None:
    """The cluster of the backup pool, with the time-outs of the first back end."""
    if conf.backup_ceph_pool is None:
        return None
    return _connected(
        conf[conf.enabled_backends[0]], conf.backup_ceph_pool, conf.backup_ceph_conf, conf.backup_ceph_user
    )


def _connected(section: Any, pool: str, conffile: str, user: str, *, namespaces: bool = False) -> Cluster:
    return Cluster(
        pool=pool,
        conffile=conffile,
        user=user,
        connect_timeout=section.rados_connect_timeout,
        mon_timeout=section.rados_mon_op_timeout,
        osd_timeout=section.rados_osd_op_timeout,
        call_timeout=section.rbd_call_timeout,
        threads=section.rbd_threads,
        namespaces=namespaces,
        observe=metrics.observe_ceph,
    )


def _own_directory(conf: cfg.ConfigOpts, name: str) -> pathlib.Path:
    directory = pathlib.Path(conf.state_path) / name
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    private.hand_over(directory)
    return directory


def _strategy(conf: cfg.ConfigOpts) -> auth.Strategy:
    """How callers are known."""
    if conf.auth_strategy == "http_basic":
        return auth.PasswordFile(pathlib.Path(conf.http_basic_auth_user_file))
    return auth.keystone if conf.auth_strategy == "keystone" else auth.noauth


@functools.lru_cache(1024)
def _reached_by(scheme: str, host: str) -> str:
    """By which URL a client reaches this service: it has a few, and writing one takes a while."""
    return get_current_url(scheme, host).rstrip("/")


class Edge:
    """What `rest` needs of the application: the caller's context, the policy, the links' base."""

    def __init__(self, conf: cfg.ConfigOpts, world: World) -> None:
        self.world = world
        self.policy = Policy(conf)
        self.filters = filters.load(conf.resource_query_filters_file)
        self._public = conf.public_endpoint.rstrip("/") if conf.public_endpoint else None
        self._strategy = _strategy(conf)
        self._of_services = frozenset(role.lower() for role in conf.keystone_authtoken.service_token_roles)

    def context(self, environ: Mapping[str, Any], request_id: str) -> Context:
        """Who asks. Raises Unauthorized."""
        who = self._strategy(environ)
        logged = oslo_context.get_current()
        if logged is not None:
            logged.user_id, logged.project_id = who.user_id, who.project_id
        return Context(
            self.world, who.user_id, who.project_id, who.roles, request_id, who.service_roles,
            self.policy.is_admin(who.roles), bool(self._of_services & (who.roles | who.service_roles)),
            who.token,
        )  # fmt: skip

    def base_url(self, request: flask.Request) -> str:
        """Base of the links in answers, without a slash at its end."""
        return self._public or _reached_by(request.scheme, request.host) + request.script_root

    @staticmethod
    def encode(query: Mapping[str, str]) -> str:
        """A query as text."""
        return urllib.parse.urlencode(list(query.items()))


def create_app(conf: cfg.ConfigOpts, world: World | None = None) -> flask.Flask:
    """The WSGI application, over the given world or the configured one."""
    app = flask.Flask("cinderlite", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = conf.osapi_max_request_body_size
    world = world or real_world(conf)
    edge = Edge(conf, world)
    app.extensions["cinderlite"] = edge
    types.ensure_default(world)
    group_types.ensure_reserved(world)
    _hook(app)
    versions.register(app, edge.base_url, lambda: _health(edge.world, conf.healthcheck_timeout))
    _serve_metrics(app, conf.metrics_allowed_networks)
    app.url_map.converters["project"] = _project_converter(conf.project_id_regex)
    for service in (volume, compute):
        _serve(app, service.SERVICE, blueprints(service), edge.policy)
        openapi.register(app, service.SERVICE, blueprints(service), edge.base_url)
    inside = app.wsgi_app
    app.wsgi_app = _Suffix(app)  # type: ignore[method-assign]
    if conf.enable_proxy_headers_parsing:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)  # type: ignore[method-assign]
    if conf.auth_strategy == "keystone":
        app.wsgi_app = keystone.Keystone(app.wsgi_app, conf)  # type: ignore[method-assign]
    # Outermost: what asks Keystone holds a place already.
    quick, slow = (
        admission.Gate(name, threads, max_waiting(conf), conf.api_max_wait)
        for name, threads in (("quick", conf.api_threads), ("slow", slow_threads(conf)))
    )
    door = admission.Admission(app.wsgi_app, inside, versions.OPEN, quick, slow)
    app.wsgi_app = door  # type: ignore[method-assign]
    app.extensions["admission"] = door
    return app


def slow_threads(conf: cfg.ConfigOpts) -> int:
    """Slow requests at work at a time in a process."""
    return int(conf.api_slow_threads or 2 * conf.api_threads)


def max_waiting(conf: cfg.ConfigOpts) -> int:
    """Requests of a class that may wait in a process."""
    return int(4 * conf.api_threads if conf.api_max_waiting is None else conf.api_max_waiting)


def blueprints(package: Any) -> list[rest.Blueprint]:
    """The resources of a service: the `bp` of each of its modules."""
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}").bp for name in names]


def _project_converter(pattern: str) -> type[BaseConverter]:
    return type("ProjectConverter", (BaseConverter,), {"regex": pattern})


def _serve(app: flask.Flask, service: Any, resources: list[rest.Blueprint], policy: Policy) -> None:
    """Register a service's resources under both forms of its URL, with and without the project."""
    names = {operation.policy for bp in resources for operation in bp.operations if operation.policy}
    fields = {
        rule for bp in resources for operation in bp.operations if operation.answer for rule in operation.answer.rules()
    }
    policy.refuse_unknown(names | fields)
    for bp in resources:
        name = f"{service.name}.{bp.name}".replace(".", "_")
        app.register_blueprint(bp, name=name, url_prefix=service.prefix)
        app.register_blueprint(bp, name=f"{name}_of_project", url_prefix=f"{service.prefix}/<project:project_id>")


class _Suffix:
    """Drops a `.json` behind a path, as Cinder does; not behind a key, which its owner may have given that end."""

    def __init__(self, app: flask.Flask) -> None:
        self._app = app.wsgi_app
        self._urls = app.url_map.bind("")

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ.get("PATH_INFO", "")
        if path.endswith(".json") and self._drops(path.removesuffix(".json"), environ["REQUEST_METHOD"]):
            environ = {**environ, "PATH_INFO": path.removesuffix(".json")}
        return self._app(environ, start_response)

    def _drops(self, path: str, method: str) -> bool:
        try:
            rule, _ = self._urls.match(path, method, return_rule=True)
        except HTTPException:
            return False
        return not rule.rule.endswith("<key>")


def _hook(app: flask.Flask) -> None:
    """What happens around every request: ids, version, faults, log line, figures."""

    @app.before_request
    def enter() -> None:
        flask.g.began = time.monotonic()
        request_id = f"req-{uuid.uuid4()}"
        flask.g.request_id = request_id
        given = flask.request.headers.get("X-Openstack-Request-Id", "")
        oslo_context.RequestContext(
            request_id=request_id, global_request_id=given if _GLOBAL_ID.fullmatch(given) else None
        )
        service = next((one for one in versions.SERVICES if flask.request.path.startswith(f"{one.prefix}/")), None)
        if service is not None:
            flask.g.service = service
            flask.g.version = service.negotiate(flask.request.headers)
        refused = flask.request.environ.get(admission.REFUSED)
        if refused is not None:
            raise refused

    @app.after_request
    def leave(response: flask.Response) -> flask.Response:
        service = flask.g.get("service")
        if service is not None:
            response.headers.extend(service.headers(flask.g.get("version")))
        response.headers["x-openstack-request-id"] = flask.g.request_id
        response.headers["x-compute-request-id"] = flask.g.request_id
        elapsed = rest.observe(response)
        LOG.info(
            "%s %s %s %s %.1f ms", flask.request.remote_addr, flask.request.method, flask.request.path,
            response.status_code, elapsed * 1000,
        )  # fmt: skip
        return response

    @app.errorhandler(errors.CinderliteError)
    def ours(error: errors.CinderliteError) -> flask.Response:
        if isinstance(error, errors.Overloaded):
            pass  # The gate said so; a line for each would be one more load.
        elif isinstance(error, errors.Unavailable):
            LOG.warning("%s: %s", type(error).__name__, error)
        elif error.status >= 500:
            LOG.error("%s: %s", type(error).__name__, error, exc_info=error)
        return faults.of_ours(error)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> flask.Response:
        return faults.of_http(error)

    @app.errorhandler(Exception)
    def unforeseen(error: Exception) -> flask.Response:
        LOG.error("unforeseen error", exc_info=error)
        return faults.fault(500, faults.INTERNAL)


def _health(world: World, timeout: float) -> dict[str, str]:
    """Ask every back end's Ceph and the database at the same time, each for at most `timeout` seconds."""
    questions = {f"ceph:{name}": one.cluster.ping for name, one in world.backends.items()} | {"database": world.db.ping}
    found = dict.fromkeys(questions, "no answer")

    def ask(name: str, question: Any) -> None:
        try:
            question()
            found[name] = "ok"
        except errors.CinderliteError:
            found[name] = "unavailable"

    asked = [threading.Thread(target=ask, args=(name, question), daemon=True) for name, question in questions.items()]
    deadline = time.monotonic() + timeout
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def _serve_metrics(app: flask.Flask, allowed: list[str]) -> None:
    networks = [ipaddress.ip_network(text) for text in allowed]

    @app.get("/metrics")
    def exposition() -> flask.Response:
        address = None
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(flask.request.remote_addr or "")
        if address is None or not any(address in network for network in networks):
            raise errors.NotFound("The resource could not be found.")
        text, content_type = metrics.exposition()
        return flask.Response(text, content_type=content_type)


class Background:
    """What a process does beside requests: its jobs, listener and reconciler, and what writes records."""

    def __init__(self, world: World, interval: float, seconds: float) -> None:
        self._jobs = (world.jobs, world.flattening)
        self._listener = reconcile.Listener(world)
        self._reconciler = reconcile.Reconciler(world, interval)
        self._recorder = recorder.Recorder(world)
        self._seconds = seconds

    def start(self) -> None:
        """Begin."""
        self._listener.start()
        self._reconciler.start()
        self._recorder.start()

    def stop(self) -> None:
        """Leave off, so that other processes can go on at once: jobs at their next checkpoint, passes after this step.

        Returns when that is done, or after `seconds`; then leases and dead processes are found as after a crash.
        """
        deadline = time.monotonic() + self._seconds
        for jobs in self._jobs:
            jobs.stop(0)
        for one in (self._recorder, self._listener, self._reconciler, *self._jobs):
            try:
                one.stop(max(0.0, deadline - time.monotonic()))
            except errors.Unavailable as error:
                LOG.warning("not all is left as it should be: %s", error)


def start_background(app: flask.Flask, conf: cfg.ConfigOpts) -> Background:
    """Start what this process does beside requests."""
    world = app.extensions["cinderlite"].world
    background = Background(world, conf.reconcile_interval, conf.graceful_shutdown_timeout)
    background.start()
    return background
