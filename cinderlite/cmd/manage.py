# SPDX-License-Identifier: Apache-2.0
"""`cinderlite-manage`: what an administrator does beside the API, with the database (`db`) and with backups."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import sys

from oslo_config import cfg

from cinderlite import app, config, errors
from cinderlite.core import backups, purge
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
    backup = groups.add_parser("backup", help="backups").add_subparsers(dest="action", required=True)
    check = backup.add_parser("verify", help="read backups and compare them with the digests taken when they were made")
    check.add_argument("ids", nargs="+", metavar="ID", help="ids of backups")
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


def _verify(conf: cfg.ConfigOpts, ids: list[str]) -> int:
    """Look at each backup and say what was found; 1 if one is not as it was stored."""
    world = app.real_world(conf)
    failed = 0
    try:
        for backup_id in ids:
            try:
                print(f"{backup_id}: {backups.verify(world, backup_id)} pieces are as they were stored")
            except (errors.BackendError, errors.BackupNotFound, errors.InvalidBackup) as error:
                print(f"{backup_id}: {error}")
                failed = 1
    finally:
        world.db.close()
    return failed


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
        elif arguments.action == "verify":
            return _verify(conf, arguments.ids)
        else:
            print(migrate.version(url) or "empty")
    except (errors.CinderliteError, cfg.Error) as error:
        print(f"cinderlite-manage: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
