# SPDX-License-Identifier: Apache-2.0
"""`cinderlite-manage`: what an administrator does beside the API: see to the database, to Ceph, to volumes and backups.

Here are only the words of the command line; each command's work is a module of `core` or `ceph`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from oslo_config import cfg

from cinderlite import app, config, errors, private
from cinderlite.ceph import bootstrap
from cinderlite.cmd import bars
from cinderlite.context import World
from cinderlite.core import (
    audit,
    backups,
    cephx_users,
    checkup,
    explain,
    fencing,
    launches,
    mirrors,
    purge,
    rebuild,
    services,
    undelete,
)
from cinderlite.core.finding import Finding
from cinderlite.core.progress import Progress
from cinderlite.db import migrate
from cinderlite.db.session import Database

#: Does one command; returns the exit status.
Command = Callable[[cfg.ConfigOpts, argparse.Namespace], int]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cinderlite-manage", description="Administer cinderlite.")
    parser.add_argument("--config-file", action="append", default=[], metavar="FILE", help="configuration file")
    groups = parser.add_subparsers(dest="group", required=True)
    database = groups.add_parser("db", help="the database").add_subparsers(dest="action", required=True)
    _add(database, "upgrade", _upgrade, "bring the tables to this release's form")
    _add(database, "version", _version, "print the form that the tables have")
    old = _add(database, "purge", _purge, "remove for good what was deleted long ago")
    old.add_argument("age_in_days", type=_days, metavar="AGE_IN_DAYS", help="days since the deletion, at least 1")
    backup = groups.add_parser("backup", help="backups").add_subparsers(dest="action", required=True)
    check = _add(backup, "verify", _verify, "read backups and compare them with the digests taken when they were made")
    check.add_argument("ids", nargs="+", metavar="ID", help="ids of backups")
    volume = groups.add_parser("volume", help="volumes").add_subparsers(dest="action", required=True)
    _add(volume, "deleted", _deleted, "list the deleted volumes that can be brought back")
    back = _add(volume, "undelete", _undelete, "bring deleted volumes back, with their snapshots")
    back.add_argument("ids", nargs="+", metavar="ID", help="ids of volumes")
    back.add_argument("--force", action="store_true", help="also beyond the quota of their projects")
    stay = _add(volume, "cancel-move", _cancel_move, "have volumes that move while in use stay where they are")
    stay.add_argument("ids", nargs="+", metavar="ID", help="ids of volumes")
    held = groups.add_parser("attachment", help="attachments").add_subparsers(dest="action", required=True)
    free = _add(held, "force-detach", _force_detach, "take a volume from a server that is dead, hung or lost")
    free.add_argument("id", metavar="ID", help="id of the attachment")
    free.add_argument(
        "--client",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a client in Ceph that is that server's, as `rbd status` names it, where the service cannot tell",
    )
    parts = groups.add_parser("service", help="hosts of the service").add_subparsers(dest="action", required=True)
    gone = _add(parts, "remove", _remove_service, "forget a host that is gone for good")
    gone.add_argument("host", metavar="HOST", help="its name, as `openstack volume service list` has it")
    one = _add(groups, "explain", _explain, "tell all that is known of a volume")
    one.add_argument("volume", metavar="VOLUME", help="its id or its name")
    _as_json(one)
    whole = _add(groups, "audit", _audit, "compare the database with Ceph; status 1 if anything does not fit")
    whole.add_argument("--repair", action="store_true", help="put right what can be without losing data")
    _as_json(whole)
    anew = _add(groups, "rebuild", _rebuild, "fill an empty database with what Ceph and the guests hold")
    anew.add_argument("--dry-run", action="store_true", help="only tell what would be made")
    anew.add_argument("--add", action="store_true", help="into a database with volumes, too; what it has is left")
    anew.add_argument("--unsigned", action="store_true", help="believe also records that the key file did not sign")
    _as_json(anew)
    server = groups.add_parser("server", help="servers").add_subparsers(dest="action", required=True)
    _launch_words(_add(server, "launch-args", _launch, "tell what starts a server with its volumes"))
    ceph = groups.add_parser("ceph", help="Ceph").add_subparsers(dest="action", required=True)
    _as_json(_add(ceph, "check", _check, "try whether the service can work with its pools; status 1 if it cannot"))
    _bootstrap_words(_add(ceph, "bootstrap", _bootstrap, "make the pools and the user that the configuration names"))
    return parser


def _add(group: Any, name: str, command: Command, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
    parser.set_defaults(command=command)
    return parser


def _as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _bootstrap_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only print the commands that would do the same")
    parser.add_argument("--pool", action="append", help="a pool; may be given several times")
    parser.add_argument("--read-pool", action="append", default=[], help="a pool to clone from, such as Glance's")
    parser.add_argument("--user", help="the service's cephx user, without 'client.'")
    parser.add_argument("--ceph-conf", help="configuration file of the cluster")
    parser.add_argument("--keyring", type=pathlib.Path, help="file for the key; by default beside that file")
    parser.add_argument(
        "--libvirt",
        action="append",
        default=[],
        metavar="URI",
        help="a hypervisor's libvirt that is to know the key, such as qemu:///system; may be repeated",
    )
    parser.add_argument("--admin", default="admin", help="cephx user that may do all this, without 'client.'")
    parser.add_argument("--admin-keyring", help="its keyring, if Ceph would not find it")


def _launch_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", metavar="SERVER", help="its id or its name")
    parser.add_argument(
        "--format",
        choices=("shell", "json", "libvirt"),
        default="shell",
        help="arguments of QEMU for a shell (the files that they name are written), the same as JSON with what the "
        "files are to hold, or the XML of a libvirt domain's disks with that of the secrets",
    )
    parser.add_argument(
        "--boot", metavar="VOLUME", help="the volume to boot from, or none; else the first bootable one"
    )
    parser.add_argument(
        "--bus",
        action="append",
        default=[],
        help="an empty pcie-root-port, or a virtio-scsi bus (scsi0.0), or pci.0 of a machine without PCIe; may be "
        "repeated; without any, a virtio-scsi controller is added",
    )
    parser.add_argument(
        "--secrets",
        type=pathlib.Path,
        default=pathlib.Path(launches.DIRECTORY),
        metavar="DIRECTORY",
        help=f"where the files are that open the volumes, {launches.DIRECTORY} if nothing is said",
    )


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= 36500:
        raise argparse.ArgumentTypeError("it must be from 1 to 36500")
    return days


@contextlib.contextmanager
def _world(conf: cfg.ConfigOpts, *, tables: bool = True) -> Iterator[World]:
    world = app.real_world(conf)
    try:
        if tables:
            with world.db.look() as connection:
                migrate.require(migrate.version_of(connection))
        yield world
    finally:
        world.guests.close()
        clusters = [backend.cluster for backend in world.backends.values()]
        for cluster in clusters if world.backup_cluster is None else [*clusters, world.backup_cluster]:
            cluster.close()
        world.db.close()


def _upgrade(conf: cfg.ConfigOpts, _arguments: argparse.Namespace) -> int:
    url = config.database_url(conf)
    if url.startswith("sqlite:///"):
        path = pathlib.Path(url.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names, wrapped keys, who has what: nobody else on this host is to read them.
        path.touch(mode=0o640)
        private.hand_over(path)
    migrate.upgrade(url)
    return 0


def _version(conf: cfg.ConfigOpts, _arguments: argparse.Namespace) -> int:
    print(migrate.version(config.database_url(conf)) or "empty")
    return 0


def _purge(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    database = Database(config.database_url(conf), conf.database.timeout, 1)
    try:
        for table, count in purge.purge(database, datetime.timedelta(days=arguments.age_in_days)).items():
            print(f"{table}: {count}")
    finally:
        database.close()
    return 0


def _verify(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    """Look at each backup and say what was found; 1 if one is not as it was stored."""

    def look(world: World, backup_id: str, progress: Progress) -> str:
        return f"{backup_id}: {backups.verify(world, backup_id, progress)} pieces are as they were stored"

    return _each(conf, arguments.ids, look)


def _each(conf: cfg.ConfigOpts, ids: Sequence[str], work: Callable[[World, str, Progress], str]) -> int:
    """Print what `work` says of each id, or why it could not be done; 1 if one could not."""
    failed = 0
    with _world(conf) as world, bars.shown() as progress:
        for done, one in enumerate(ids):
            progress("all", done, len(ids))
            try:
                print(work(world, one, progress))
            except errors.CinderliteError as error:
                print(f"{one}: {error}")
                failed = 1
    return failed


def _deleted(conf: cfg.ConfigOpts, _arguments: argparse.Namespace) -> int:
    lines = [("ID", "NAME", "PROJECT", "GIB", "DELETED AT", "PURGED AT")]
    with _world(conf) as world:
        for one in undelete.listed(world):
            purged = datetime.datetime.fromtimestamp(one.purge_at or 0.0, datetime.UTC)
            lines.append((one.id, one.name or "-", one.project_id, str(one.size), _utc(one.deleted_at), _utc(purged)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _utc(moment: datetime.datetime | None) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else "-"


def _undelete(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    """Bring each volume back and say what it is then; 1 if one is not."""

    def bring(world: World, volume_id: str, _progress: Progress) -> str:
        return f"{volume_id}: {undelete.undelete(world, volume_id, force=arguments.force).status}"

    return _each(conf, arguments.ids, bring)


def _cancel_move(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    """Note it at each volume; 1 if one is not on its way, or is there already."""

    def cancel(world: World, volume_id: str, _progress: Progress) -> str:
        mirrors.cancel(world, volume_id)
        return f"{volume_id}: it stays; the service is taking back what was copied"

    return _each(conf, arguments.ids, cancel)


def _force_detach(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    with _world(conf) as world:
        print(fencing.by_operator(world, arguments.id, arguments.client))
    return 0


def _remove_service(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    with _world(conf) as world:
        print(f"{arguments.host}: {services.remove(world, arguments.host)} services removed")
    return 0


def _explain(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    with _world(conf) as world:
        told = explain.explain(world, arguments.volume)
    print(json.dumps(told, indent=2) if arguments.json else "\n".join(explain.lines(told)))
    return 0


def _audit(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    with _world(conf) as world, bars.shown() as progress:
        found = list(audit.audit(world, progress, repair=arguments.repair))
    _tell(found, as_json=arguments.json, nothing="the database and Ceph agree")
    return int(not all(one.repaired for one in found))


def _rebuild(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    """Say what was made and what could not be; 1 if there is any of that."""
    with _world(conf) as world, bars.shown() as progress:
        done = rebuild.rebuild(
            world, progress, dry_run=arguments.dry_run, add=arguments.add, unsigned=arguments.unsigned
        )
    if arguments.json:
        print(json.dumps({"made": done.made, "findings": [one.told() for one in done.findings]}, indent=2))
    else:
        for word, count in done.made.items():
            print(f"{word}: {count}{' would be made' if arguments.dry_run else ''}")
        print("\n".join(map(str, done.findings)))
    return int(bool(done.findings))


def _check(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    with _world(conf, tables=False) as world:
        found = list(checkup.check(world))
    _tell(found, as_json=arguments.json)
    return int(any(one.level == checkup.PROBLEM for one in found))


def _launch(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    with _world(conf) as world:
        server = launches.find(world, arguments.server)
        if arguments.format == "libvirt":
            xml = launches.libvirt(world, server, arguments.boot)
            print(json.dumps(launches.told(xml), indent=2))
            return 0
        directory = arguments.secrets.absolute()
        made = launches.qemu(world, server, arguments.boot, arguments.bus, str(directory))
    if arguments.format == "json":
        print(json.dumps(launches.told(made), indent=2))
        return 0
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for secret in made.secrets:
        _write_secret(pathlib.Path(secret.file), secret.content)
    print(made.line)
    return 0


def _write_secret(path: pathlib.Path, content: str) -> None:
    """A file that nobody else can read, not even while it is written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(content)
    partial.rename(path)


def _tell(found: Iterable[Finding | checkup.Finding], *, as_json: bool, nothing: str = "") -> None:
    if as_json:
        print(json.dumps([one.told() for one in found], indent=2))
    else:
        print("\n".join(map(str, found)) or nothing)


def _bootstrap(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> int:
    for wanted in _wanted(conf, arguments):
        steps = list(bootstrap.steps(wanted))
        if arguments.dry_run:
            print("\n".join(step.command for step in steps))
            continue
        with bootstrap.connected(wanted.conffile, arguments.admin, arguments.admin_keyring) as cluster:
            for step in steps:
                print(f"{'done' if step.run(cluster) else 'there already'}: {step.command}")
        print(f"Let the service read {wanted.keyring} (chown), then: cinderlite-manage ceph check")
    return 0


def _wanted(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> list[bootstrap.Wanted]:
    """What the command line asks for, and where it says nothing the configuration; each user once."""
    first = conf[conf.enabled_backends[0]]
    if arguments.pool:
        pools = {(arguments.ceph_conf or first.rbd_ceph_conf, arguments.user or first.rbd_user): arguments.pool}
    else:
        pools = {}
        sections = [conf[name] for name in conf.enabled_backends]
        named = [(one.rbd_ceph_conf, one.rbd_user, one.rbd_pool) for one in sections]
        if conf.backup_ceph_pool is not None:
            named.append((conf.backup_ceph_conf, conf.backup_ceph_user, conf.backup_ceph_pool))
        for conffile, user, pool in named:
            pools.setdefault((arguments.ceph_conf or conffile, arguments.user or user), []).append(pool)
    secrets: dict[tuple[str, str], dict[str | None, None]] = {}
    makers = set()
    for one in (conf[name] for name in conf.enabled_backends):
        whose = arguments.ceph_conf or one.rbd_ceph_conf, arguments.user or one.rbd_user
        secrets.setdefault(whose, {})[one.rbd_secret_uuid] = None
        if one.rbd_attachment_keys != cephx_users.SERVICE:
            makers.add(whose)
    if arguments.keyring is not None and len(pools) > 1:
        raise errors.InvalidInput("--keyring can only be given for one user; give --user and --pool, too.")
    return [
        bootstrap.Wanted(
            conffile, user, list(dict.fromkeys(names)),
            arguments.keyring or pathlib.Path(conffile).parent / f"ceph.client.{user}.keyring", arguments.read_pool,
            arguments.libvirt, list(secrets.get((conffile, user), ())), (conffile, user) in makers,
        )
        for (conffile, user), names in pools.items()
    ]  # fmt: skip


def main() -> int:
    """Run one command; returns its exit status."""
    arguments = _parser().parse_args()
    argv = [part for path in arguments.config_file for part in ("--config-file", path)]
    try:
        return int(arguments.command(config.load(argv), arguments))
    except (errors.CinderliteError, cfg.Error) as error:
        print(f"cinderlite-manage: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
