# SPDX-License-Identifier: Apache-2.0
"""Keystone in front of the service: keystonemiddleware, and for a moment the memory of whom it confirmed.

The middleware keeps tokens it has seen (`token_cache_time`), but reads one anew and writes a dozen headers from it for
every request, which takes a fifth of the time of a short read. So whom it confirmed is known for some seconds more,
by the very tokens. Nothing else of a request counts: what the middleware judges by more than its tokens (an
application credential with access rules, a token bound to a login) is never remembered.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from keystonemiddleware import auth_token
from oslo_config import cfg

from cinderlite.api import auth, compute, versions

#: Seconds for which whoever was confirmed is known without another look, `token_cache_time` at most: that much longer
#: does a token work that was revoked.
REMEMBERED = 10.0
#: Pairs of tokens remembered at a time.
REMEMBERED_MOST = 1024
#: Key of a request's WSGI environment: its tokens as they came, a user's and a service's.
_TOKENS = "cinderlite.tokens"


class Keystone:
    """keystonemiddleware in front of all of `app` but its open paths.

    Requests reach the app with the caller's identity (`auth.IDENTITY`), which no header can claim, or without one if
    the middleware is told to leave the decision to the service.
    """

    def __init__(self, app: Any, conf: cfg.ConfigOpts) -> None:
        self._app = app
        options = conf.keystone_authtoken
        self._seconds = min(REMEMBERED, float(options.token_cache_time))
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str | None], tuple[float, auth.Identity]] = OrderedDict()
        self._guarded = self._compute = self._middleware(conf, options.service_type)
        if options.service_type is not None:
            self._compute = self._middleware(conf, "compute")

    def _middleware(self, conf: cfg.ConfigOpts, service_type: str | None) -> Any:
        return auth_token.AuthProtocol(
            self._confirmed,
            {
                "oslo_config_config": conf,
                "log_name": "cinderlite.keystone",
                "service_type": service_type,
                # Access rules name a service; else nobody reads the catalogue, which is written for every request.
                "include_service_catalog": service_type is not None,
            },
        )

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ.get("PATH_INFO", "/")
        if path in versions.OPEN:
            return self._app(environ, start_response)
        tokens = environ.get("HTTP_X_AUTH_TOKEN", ""), environ.get("HTTP_X_SERVICE_TOKEN")
        until, who = self._known.get(tokens, (0.0, None))
        if who is not None and time.monotonic() < until:
            return self._app({**environ, auth.IDENTITY: who}, start_response)
        guarded = self._compute if path.startswith(f"{compute.SERVICE.prefix}/") else self._guarded
        return guarded({**environ, _TOKENS: tokens}, start_response)

    def _confirmed(self, environ: dict[str, Any], start_response: Any) -> Any:
        """What stands behind the middleware, which has set its own headers in the place of the client's."""
        who = auth.of_headers(environ)
        if who is not None:
            self._remember(environ, who)
            environ[auth.IDENTITY] = who
        return self._app(environ, start_response)

    def _remember(self, environ: Mapping[str, Any], who: auth.Identity) -> None:
        tokens, token = environ[_TOKENS], environ.get("keystone.token_info", {}).get("token", {})
        ruled = (token.get("application_credential") or {}).get("access_rules") is not None
        if not tokens[0] or ruled or token.get("bind") or "expires_at" not in token:
            return
        ends = datetime.datetime.fromisoformat(token["expires_at"])
        service = environ["keystone.token_auth"].service
        if service is not None:
            if service.bind:
                return
            ends = min(ends, service.expires)
        seconds = min(self._seconds, (ends - datetime.datetime.now(datetime.UTC)).total_seconds())
        if seconds <= 0:
            return
        with self._lock:
            self._known[tokens] = time.monotonic() + seconds, who
            self._known.move_to_end(tokens)
            while len(self._known) > REMEMBERED_MOST:
                self._known.popitem(last=False)
