# SPDX-License-Identifier: Apache-2.0
"""`cinderlite-manage`: what an administrator does beside the API: `db upgrade`, `db version`, `db purge`."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import sys

from oslo_config import cfg

from cinderlite import config, errors
from cinderlite.core import purge
from cinderlite.db import migrate
from cinderlite.db.session import Database


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cinderlite-manage", description="Administer cinderlite.")
    parser.add_argument("--config-file", action="append", default=[], metavar="FILE", help="configuration file")
    groups = parser.add_subparsers(dest="group", required=True)
    database = groups.add_parser("db", help="the database").add_subparsers(dest="action", required=True)
    database.add_parser("upgrade", help="bring the tables to this release's form")
    database.add_parser("version", help="print the form that the tables have")
    old = database.add_parser("purge", help="remove for good what was deleted long ago")
    old.add_argument("age_in_days", type=_days, metavar="AGE_IN_DAYS", help="days since the deletion, at least 1")
    return parser


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= 36500:
        raise argparse.ArgumentTypeError("it must be from 1 to 36500")
    return days


def _purge(conf: cfg.ConfigOpts, days: int) -> None:
    database = Database(config.database_url(conf), conf.database.timeout, 1)
    try:
        for table, count in purge.purge(database, datetime.timedelta(days=days)).items():
            print(f"{table}: {count}")
    finally:
        database.close()


def main() -> int:
    """Run one command; returns its exit status."""
    arguments = _parser().parse_args()
    argv = [part for path in arguments.config_file for part in ("--config-file", path)]
    try:
        conf = config.load(argv)
        url = config.database_url(conf)
        if arguments.action == "upgrade":
            if url.startswith("sqlite:///"):
                pathlib.Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            migrate.upgrade(url)
        elif arguments.action == "purge":
            _purge(conf, arguments.age_in_days)
        else:
            print(migrate.version(url) or "empty")
    except (errors.CinderliteError, cfg.Error) as error:
        print(f"cinderlite-manage: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
