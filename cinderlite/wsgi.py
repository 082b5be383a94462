# SPDX-License-Identifier: Apache-2.0
"""The object that a WSGI server such as uwsgi or gunicorn loads: `cinderlite.wsgi:application`.

The configuration is the usual one (/etc/cinderlite/cinderlite.conf, or the file that CINDERLITE_CONFIG names). Load it
in each worker, after the fork: a connection to Ceph does not survive one (uwsgi: `lazy-apps = true`; gunicorn: no
`preload_app`).
"""

from __future__ import annotations

import atexit
import os

import flask
from oslo_log import log

from cinderlite import app as composition
from cinderlite import config


def load(argv: list[str]) -> tuple[flask.Flask, composition.Background]:
    """Read the configuration, set up logging, and start an application with what goes on beside its requests."""
    conf = config.load(argv)
    log.setup(conf, "cinderlite")
    application = composition.create_app(conf)
    return application, composition.start_background(application, conf)


def __getattr__(name: str) -> flask.Flask:
    # Made when a server asks for it: importing this module for its types starts nothing.
    if name != "application":
        raise AttributeError(name)
    path = os.environ.get("CINDERLITE_CONFIG")
    globals()[name], background = load(["--config-file", path] if path else [])
    atexit.register(background.stop)
    return globals()[name]  # type: ignore[no-any-return]
