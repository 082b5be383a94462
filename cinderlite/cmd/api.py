# SPDX-License-Identifier: Apache-2.0
"""`cinderlite-api`: the service under gunicorn, its production WSGI server, with threads.

The configuration is read twice: here, for the address and the number of processes, and in each worker after the fork,
since nothing that talks to Ceph may be made before it.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import pathlib
import resource
import shutil
import sys
from typing import TYPE_CHECKING, Any

import flask
from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from oslo_config import cfg
from oslo_log import log

from cinderlite import affinity, config, errors
from cinderlite.db import migrate
from cinderlite.keys import master

if TYPE_CHECKING:
    from cinderlite.api.admission import Admission
    from cinderlite.app import Background
    from cinderlite.cmd.worker import Tally

#: Connections that a process has at a time.
CONNECTIONS = 1000


class _Log(glogging.Logger):  # type: ignore[misc]
    """gunicorn's own lines, which go where those of the service go and look like them."""

    def setup(self, cfg: Any) -> None:
        """Have them go there."""
        super().setup(cfg)
        self.error_log.propagate = True


class _Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured by our options instead of its own."""

    #: What goes on beside requests; there is none but in a worker.
    background: Background
    #: Who is let in, as the worker asks it before it gives a request to a thread.
    admission: Admission

    def __init__(self, conf: cfg.ConfigOpts, argv: list[str]) -> None:
        self._conf = conf
        self._argv = argv
        super().__init__()

    def load_config(self) -> None:
        """Translate our options."""
        # Not before there is a directory for the figures of all processes: the metrics look for it when they are made.
        from cinderlite import app
        from cinderlite.cmd import worker

        # For what is at work, for what waits for its turn, and some for what always passes.
        places = self._conf.api_threads + app.slow_threads(self._conf)
        threads = places + 2 * app.max_waiting(self._conf) + 8
        address = self._conf.osapi_volume_listen
        host = f"[{address}]" if ":" in address else address
        for name, value in {
            "bind": f"{host}:{self._conf.osapi_volume_listen_port}",
            "workers": self._conf.osapi_volume_workers,
            "worker_class": worker.limited(
                seconds=self._conf.client_socket_timeout, body_most=self._conf.osapi_max_request_body_size
            ),
            "threads": threads,
            "graceful_timeout": self._conf.graceful_shutdown_timeout,
            # gthread's heartbeat does not depend on requests; a worker that misses it for so long is wedged.
            "timeout": 60,
            "keepalive": 75,
            "preload_app": False,
            "control_socket_disable": True,
            "proc_name": "cinderlite-api",
            "worker_connections": CONNECTIONS,
            "limit_request_line": min(8190, self._conf.max_header_line),  # gunicorn allows no more.
            "limit_request_field_size": self._conf.max_header_line,
            "limit_request_fields": 100,
            "logger_class": _Log,
            "errorlog": None,
            "loglevel": "warning",
            # Trust in the proxy is the application's own option.
            "forwarded_allow_ips": "",
            "pre_fork": _prepare,
            "child_exit": _forget_worker,
        }.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)
        self.stays = self._conf.api_cpu_affinity
        self.tally = worker.Tally() if self._conf.osapi_volume_workers > 1 else None

    def load(self) -> flask.Flask:
        """The application, in a worker."""
        from cinderlite import wsgi

        application, self.background = wsgi.load(self._argv)
        self.admission = application.extensions["admission"]
        return application


def _prepare(server: Any, worker: Any) -> None:
    others = list(server.WORKERS.values())
    if server.app.stays:
        worker.processor = affinity.choose(one.processor for one in others)
    tally: Tally | None = server.app.tally
    if tally is not None and (place := tally.free({one.place for one in others})) is not None:
        worker.tally, worker.place = tally, place


def _forget_worker(_server: Any, worker: Any) -> None:
    _forget_figures(worker.pid)
    if worker.tally is not None:
        worker.tally.tell(worker.place, None)


def _forget_figures(pid: int) -> None:
    """Let what a process told of how things are count no more."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def check(conf: cfg.ConfigOpts) -> None:
    """Refuse what must not be started. Raises errors.CinderliteError with a sentence."""
    open_door = conf.auth_strategy == "noauth" and not conf.noauth_allow_remote
    if open_door and not _is_loopback(conf.osapi_volume_listen):
        raise errors.CinderliteError(
            f"auth_strategy = noauth makes everybody an administrator, so it does not listen on "
            f"{conf.osapi_volume_listen}; set osapi_volume_listen = 127.0.0.1, or noauth_allow_remote = true"
        )
    if conf.auth_strategy == "keystone" and not config.logs_in(conf):
        raise errors.CinderliteError(
            "auth_strategy = keystone, which is what is meant where nothing is said, needs the service's account in "
            "[keystone_authtoken]: auth_type, auth_url and the like; without a Keystone set auth_strategy = http_basic"
        )
    if conf.encryption.key_store == "database":
        master.read(pathlib.Path(conf.encryption.key_file))


def _share_metrics(conf: cfg.ConfigOpts) -> None:
    """With several workers the figures are summed over files in one directory, emptied at the start."""
    if conf.osapi_volume_workers > 1:
        directory = pathlib.Path(conf.state_path) / "metrics"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)


def _give_memory_back() -> None:
    """Have what a job took for pieces of data go back to the system when it ends; glibc would keep it for the next."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD: what is bigger is mapped, and unmapped when it is freed.
        libc.mallopt(-8, 2)  # M_ARENA_MAX


def _allow_connections() -> None:
    """Let each process have its connections, beside those to Ceph, to guests and to the database."""
    wanted = 4 * CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def main() -> int:
    """Run the service until it is told to stop."""
    argv = sys.argv[1:]
    try:
        conf = config.load(argv)
        check(conf)
        migrate.require(migrate.version(config.database_url(conf)))
    except (errors.CinderliteError, cfg.Error) as error:
        print(f"cinderlite-api: {error}", file=sys.stderr)
        return 1
    log.setup(conf, "cinderlite")
    _share_metrics(conf)
    _give_memory_back()
    _allow_connections()
    server = _Server(conf, argv)
    _forget_figures(os.getpid())  # This one only has the figures that say nothing, and would be the least of all.
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
