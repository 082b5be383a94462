# SPDX-License-Identifier: Apache-2.0
"""`cinderlite-status upgrade check`: is everything there that this release needs?

Exit status as oslo.upgradecheck's: 0 all well, 1 warnings, 2 something will not work.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator

from oslo_config import cfg

from cinderlite import app, config, errors
from cinderlite.context import Backend, World
from cinderlite.db import migrate

OK, WARNING, FAILURE = 0, 1, 2
WORDS = {OK: "Success", WARNING: "Warning", FAILURE: "Failure"}

Finding = tuple[str, int, str]


def _database(url: str) -> Finding:
    have, want = migrate.version(url), migrate.newest()
    if have == want:
        return "Database", OK, f"the tables are at {want}"
    if migrate.serves(have):
        return "Database", WARNING, f"the tables are at {have}, of a later release: upgrade this host, too"
    return (
        "Database",
        FAILURE,
        f"the tables are at {have or 'nothing'}, not at {want}: run cinderlite-manage db upgrade",
    )


def _ceph(backend: Backend) -> Finding:
    backend.cluster.ping()
    backend.cluster.key()
    return f"Ceph ({backend.name})", OK, f"pool {backend.cluster.pool} answers"


def _guests(world: World) -> Finding:
    found = world.guests.servers()
    if silent := world.guests.silent():
        return "Guests", WARNING, f"{len(found)} servers, but {'; '.join(silent)}"
    if not found:
        return "Guests", WARNING, "no server was found"
    return "Guests", OK, f"{len(found)} servers"


def _tried(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except errors.CinderliteError as error:
        return name, FAILURE, str(error)


def findings(conf: cfg.ConfigOpts) -> Iterator[Finding]:
    """Each check's name, level and sentence."""
    url = config.database_url(conf)
    yield _tried("Database", lambda: _database(url))
    world = app.real_world(conf)
    for backend in world.backends.values():
        yield _tried(f"Ceph ({backend.name})", functools.partial(_ceph, backend))
    yield _tried("Guests", lambda: _guests(world))
    world.guests.close()
    for backend in world.backends.values():
        backend.cluster.close()
    world.db.close()


def main() -> int:
    """Print what was found; returns the worst level."""
    parser = argparse.ArgumentParser(prog="cinderlite-status", description="Check cinderlite's surroundings.")
    parser.add_argument("--config-file", action="append", default=[], metavar="FILE", help="configuration file")
    groups = parser.add_subparsers(dest="group", required=True)
    groups.add_parser("upgrade", help="upgrades").add_subparsers(dest="action", required=True).add_parser(
        "check", help="is everything there that this release needs?"
    )
    arguments = parser.parse_args()
    argv = [part for path in arguments.config_file for part in ("--config-file", path)]
    try:
        found = list(findings(config.load(argv)))
    except (errors.CinderliteError, cfg.Error) as error:
        print(f"cinderlite-status: {error}", file=sys.stderr)
        return FAILURE
    for name, level, sentence in found:
        print(f"{name}: {WORDS[level]}: {sentence}")
    return max(level for _, level, _ in found)


if __name__ == "__main__":
    sys.exit(main())
