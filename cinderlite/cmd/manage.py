# SPDX-License-Identifier: Apache-2.0
"""`cinderlite-manage`: what an administrator does beside the API. `db upgrade` and `db version` for now."""

from __future__ import annotations

import argparse
import pathlib
import sys

from oslo_config import cfg

from cinderlite import config, errors
from cinderlite.db import migrate


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cinderlite-manage", description="Administer cinderlite.")
    parser.add_argument("--config-file", action="append", default=[], metavar="FILE", help="configuration file")
    groups = parser.add_subparsers(dest="group", required=True)
    database = groups.add_parser("db", help="the database").add_subparsers(dest="action", required=True)
    database.add_parser("upgrade", help="bring the tables to this release's form")
    database.add_parser("version", help="print the form that the tables have")
    return parser


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
        else:
            print(migrate.version(url) or "empty")
    except (errors.CinderliteError, cfg.Error) as error:
        print(f"cinderlite-manage: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
