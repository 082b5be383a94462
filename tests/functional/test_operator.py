# SPDX-License-Identifier: Apache-2.0
"""The operator's commands on a real Ceph: from a bare cluster to a fault that is found, explained and repaired."""

from __future__ import annotations

import json
import pathlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import select

from cinderlite import app, config
from cinderlite.cmd import manage
from cinderlite.context import Context, World
from cinderlite.core import records, snapshots, types, volumes
from cinderlite.core.recorder import Recorder
from cinderlite.db import models
from lab.ceph import Ceph
from lab.libvirt import Libvirt

pytestmark = pytest.mark.real

POOL, USER = "bootstrapped", "fresh"
Manage = Callable[..., tuple[int, str]]


@pytest.fixture
def keyring(ceph: Ceph) -> Iterator[pathlib.Path]:
    """Where the key of the new user goes; it, the user and the pool are gone afterwards."""
    path = ceph.directory / f"client.{USER}.keyring"
    yield path
    path.unlink(missing_ok=True)
    ceph.command("auth", "rm", f"client.{USER}")
    if POOL in ceph.command("osd", "pool", "ls").split():
        ceph.command("osd", "pool", "rm", POOL, POOL, "--yes-i-really-really-mean-it")


@pytest.fixture
def conf(tmp_path: pathlib.Path, ceph: Ceph) -> pathlib.Path:
    """A configuration for a pool and a user that do not exist yet."""
    path = tmp_path / "cinderlite.conf"
    path.write_text(
        f"[DEFAULT]\nstate_path = {tmp_path}\nhost = lab\n[guests]\nqmp_socket_directory = {tmp_path}\n"
        f"[ceph]\nrbd_ceph_conf = {ceph.conf}\nrbd_pool = {POOL}\nrbd_user = {USER}\nrados_connect_timeout = 3\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def run(conf: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Manage:
    """Runs cinderlite-manage: its status and all that it printed."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["cinderlite-manage", "--config-file", str(conf), *words])
        status = manage.main()
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.fixture
def world(run: Manage, conf: pathlib.Path, keyring: pathlib.Path) -> Iterator[World]:
    """The service's own world, over a fresh database; it connects when it is first used."""
    assert run("db", "upgrade")[0] == 0
    made = app.real_world(config.load(["--config-file", str(conf)]))
    types.ensure_default(made)
    yield made
    made.guests.close()
    made.backends["ceph"].cluster.close()
    made.db.close()


def test_from_a_bare_cluster_to_a_repaired_fault(
    world: World, run: Manage, ceph: Ceph, keyring: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    bootstrap_makes_what_is_missing(run, ceph, keyring)
    ctx = Context(world, "alice", "demo", frozenset({"member"}), "req-operator")
    first = volumes.create(ctx, size=1, name="data")
    taken = snapshots.create(ctx, volumes.get(ctx, first.id), name="monday")
    second = volumes.create(ctx, source=("snapshot_id", taken.id))
    with world.cluster(first.host).opened(first.image, write=True) as image:
        image.write(0, b"x")
    assert run("audit") == (0, "the database and Ceph agree\n")
    status, text = run("explain", "data", "--json")
    assert status == 0
    told: dict[str, Any] = json.loads(text)
    assert (told["volume"]["id"], told["volume"]["status"], told["remarks"]) == (first.id, "available", [])
    assert (told["image"]["size_bytes"], told["image"]["used_bytes"]) == (2**30, 4 * 2**20)
    assert [one["image"] for one in told["image"]["children"]] == [second.image]
    assert [(one["name"], one["status"]) for one in told["snapshots"]] == [(taken.snap, "available")]
    status, text = run("explain", second.id)
    assert f"{POOL}/{first.image}@{taken.snap}" in text

    stray = f"volume-{uuid.uuid4()}"
    ceph.rbd("resize", "--size", "2G", "--no-progress", f"{POOL}/{first.image}")
    ceph.rbd("snap", "create", f"{POOL}/{second.image}@snapshot-{uuid.uuid4()}")
    ceph.rbd("create", "--size", "1G", f"{POOL}/{stray}")
    lost = volumes.create(ctx, size=1)
    ceph.rbd("rm", "--no-progress", f"{POOL}/{lost.image}")
    before = ceph.rbd("ls", "-l", POOL)
    status, text = run("audit", "--json")
    assert status == 1
    expected = {
        ("wrong-size", first.image), ("missing-image", lost.image), ("leaked-snapshot", second.image),
        ("extra-image", stray),
    }  # fmt: skip
    assert {(one["kind"], one["subject"].partition("@")[0]) for one in json.loads(text)} == expected
    status, text = run("audit", "--repair")
    assert (status, text.count("repaired")) == (1, 2)
    assert volumes.get(ctx, first.id).size == 2
    assert volumes.get(ctx, lost.id).status == "error"
    assert ceph.rbd("ls", "-l", POOL) == before
    # What is said is what does it.
    [command] = [line.rpartition(": ")[2] for line in text.splitlines() if stray in line]
    ceph.rbd(*command.split()[3:])
    assert stray in ceph.trash(POOL)
    the_database_is_lost_and_rebuilt(run, world, first, tmp_path)


def the_database_is_lost_and_rebuilt(run: Manage, world: World, first: Any, state: pathlib.Path) -> None:
    recorder = Recorder(world)
    while recorder.once():
        pass
    recorder.let_go()
    tables = (models.Volume, models.Snapshot, models.VolumeType)

    def rows() -> list[list[dict[str, Any]]]:
        hidden = frozenset({"unwritten", "record_host", "lease_until", "lease_owner"})
        with world.db.read() as session:
            return [[records.plain(row, hidden) for row in session.scalars(select(table).order_by(table.id))]
                    for table in tables]  # fmt: skip

    before = rows()
    status, text = run("rebuild")
    assert (status, "it has 3 volumes" in text) == (1, True)
    world.db.close()
    for path in state.glob("cinderlite.sqlite*"):
        path.unlink()
    assert run("db", "upgrade")[0] == 0
    status, text = run("rebuild", "--dry-run")
    assert "volumes: 3 would be made" in text
    assert rows() == [[], [], []]
    status, text = run("rebuild", "--json")
    told = json.loads(text)
    # What the audit told of before, and nothing else.
    assert (status, [one["kind"] for one in told["findings"]]) == (1, ["unmanaged-snapshot"])
    assert rows() == before
    status, text = run("explain", first.id, "--json")
    assert (status, json.loads(text)["remarks"]) == (0, [])


def libvirt_is_told_the_key(run: Manage, ceph: Ceph, words: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/var/tmp") as name:
        pathlib.Path(name).chmod(0o755)  # libvirt runs as somebody else.
        libvirt = Libvirt(pathlib.Path(name) / "libvirt")
        try:
            libvirt.start()
            for _ in range(2):
                status, text = run(*words, "--libvirt", libvirt.uri)
                assert (status, text.count("secret-set-value")) == (0, 1), text
            uuid = ceph.command("fsid").strip()
            kept = libvirt.directory / "home" / ".config" / "libvirt" / "secrets" / f"{uuid}.base64"
            assert (
                kept.read_text(encoding="ascii").strip() == ceph.command("auth", "print-key", f"client.{USER}").strip()
            )
        finally:
            libvirt.destroy()
    assert kept.parent.exists() is False
    status, text = run(*words, "--libvirt", libvirt.uri)
    assert (status, "cinderlite-manage: The libvirt of" in text) == (1, True)


def bootstrap_makes_what_is_missing(run: Manage, ceph: Ceph, keyring: pathlib.Path) -> None:
    status, text = run("ceph", "check")
    assert status == 1
    assert f"no key for client.{USER}" in text
    words = ("ceph", "bootstrap", "--keyring", str(keyring))
    status, text = run(*words, "--dry-run")
    assert (status, len(text.splitlines())) == (0, 3)
    assert POOL not in ceph.command("osd", "pool", "ls").split()
    status, text = run(*words)
    assert (status, text.count("done: ")) == (0, 3)
    assert keyring.stat().st_mode & 0o777 == 0o600
    assert ceph.command("auth", "print-key", f"client.{USER}").strip() not in text
    status, text = run(*words)
    assert (status, text.count("there already: ")) == (0, 3)
    libvirt_is_told_the_key(run, ceph, words)
    # Neither a pool of something else's nor rights that somebody gave are touched.
    ceph.command("osd", "pool", "application", "enable", POOL, "rgw", "--yes-i-really-mean-it")
    status, text = run(*words)
    assert (status, f"{POOL} is used by rgw" in text) == (1, True)
    ceph.command("osd", "pool", "application", "disable", POOL, "rgw", "--yes-i-really-mean-it")
    ceph.command("auth", "caps", f"client.{USER}", "mon", "allow *", "osd", "allow *")
    status, text = run(*words)
    assert status == 1
    assert "ceph -c" in text
    status, text = run("ceph", "check")
    assert (status, "problem: rights: it may read the keys" in text) == (1, True)
    rights = f"profile rbd pool={POOL}"
    ceph.command("auth", "caps", f"client.{USER}", "mon", "profile rbd", "osd", rights, "mgr", rights)
    status, text = run("ceph", "check")
    assert (status, "problem" in text) == (0, False), text
    assert "trial: an image was made" in text
    # Whoever has the rights of before goes on as before, and is told how it could be.
    assert "hint: users: it may not make cephx users" in text
    status, text = run(*words)
    assert (status, text.count("there already: ")) == (0, 3)
    assert ceph.images(POOL) == ceph.trash(POOL) == []
