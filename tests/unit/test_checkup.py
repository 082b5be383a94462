# SPDX-License-Identifier: Apache-2.0
"""Whether a pool is fit for the service: each finding has its cause and its remedy."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import pytest

from cinderlite import app as composition
from cinderlite import errors
from cinderlite.ceph.libvirt_secret import Secret
from cinderlite.cmd import manage
from cinderlite.context import World
from cinderlite.core import checkup
from fakes_cluster import FakeCluster

SECRET = "457eb676-33da-42ec-9a8c-9293d545c337"


def bad(world: World) -> dict[str, checkup.Finding]:
    """What is not as it should be with the first back end, by subject."""
    return {one.subject: one for one in checkup.check(world) if one.backend == "ceph" and one.level != checkup.OK}


def test_all_is_well_and_nothing_is_left(world: World, cluster: FakeCluster, vault: FakeCluster) -> None:
    found = list(checkup.check(world))
    assert {one.backend for one in found} == {"ceph", "backups"}
    assert {one.level for one in found} == {checkup.OK}
    assert {one.subject for one in found} == {
        "connection",
        "release",
        "pool",
        "room",
        "rights",
        "users",
        "clones",
        "trial",
        "clocks",
    }
    for one in (cluster, vault):
        assert (one.stored, one.bin) == ({}, {})


@pytest.mark.parametrize(
    ("facts", "subject", "remedy"),
    [
        ({"release": "octopus"}, "release", "upgrade"),
        ({"application": False}, "pool", "rbd pool init volumes"),
        ({"initialised": False}, "pool", "rbd pool init volumes"),
        ({"erasure_coded": True}, "pool", "replicated"),
        ({"full": ["nearfull"]}, "room", "ceph df"),
        ({"may_blocklist": False}, "rights", "ceph auth caps client.cinderlite mon 'profile rbd"),
        ({"reads_keys": True}, "rights", "ceph auth caps client.cinderlite"),
        ({"writable_elsewhere": ["vms"]}, "rights", "profile rbd-read-only"),
        ({"open_files": ["/etc/ceph/keyring"]}, "keyring", "chmod 640 /etc/ceph/keyring"),
        ({"clone_format": "1"}, "clones", "rbd config pool remove volumes rbd_default_clone_format"),
        ({"health": ["MON_CLOCK_SKEW"]}, "clocks", "chrony"),
    ],
)
def test_what_is_wrong_has_a_remedy(
    world: World, cluster: FakeCluster, facts: dict[str, Any], subject: str, remedy: str
) -> None:
    cluster.facts = dataclasses.replace(cluster.facts, **facts)
    found = bad(world)
    assert set(found) == {subject}
    assert found[subject].level == checkup.PROBLEM
    assert remedy in found[subject].remedy


def test_old_clients_are_a_hint(world: World, cluster: FakeCluster) -> None:
    cluster.facts = dataclasses.replace(cluster.facts, min_compat_client="luminous")
    assert {one.subject: one.level for one in bad(world).values()} == {"clones": checkup.HINT}


def test_pools_that_the_same_user_has_to_use_are_no_excess(world: World, cluster: FakeCluster) -> None:
    cluster.facts = dataclasses.replace(cluster.facts, writable_elsewhere=["backups"])
    assert bad(world) == {}


@pytest.mark.parametrize(("free", "level"), [(30, None), (20, checkup.HINT), (10, checkup.PROBLEM)])
def test_a_pool_that_fills_up(
    world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, free: int, level: str | None
) -> None:
    seen = dataclasses.replace(cluster.capacity(), total_bytes=100, free_bytes=free, used_bytes=100 - free)
    monkeypatch.setattr(cluster, "capacity", lambda: seen)
    assert {one.level for one in bad(world).values()} == ({level} if level else set())


def test_a_cluster_that_does_not_answer(world: World, cluster: FakeCluster) -> None:
    cluster.down = True
    [one] = bad(world).values()
    assert (one.level, one.subject) == (checkup.PROBLEM, "connection")
    assert "cinderlite-manage ceph bootstrap" in one.remedy


@pytest.mark.parametrize("fails", ["create", "created", "snapshot", "clone", "trash", "purge"])
def test_a_right_that_is_missing(
    world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def refuse(*_arguments: Any, **_named: Any) -> Any:
        raise errors.CephError("Operation not permitted")

    monkeypatch.setattr(cluster, fails, refuse)
    found = [one for one in checkup.check(world) if one.backend == "ceph" and one.level != checkup.OK]
    assert "Operation not permitted" in found[0].what
    assert (found[0].level, found[0].subject) == (checkup.PROBLEM, "trial")
    # What could not be removed is told of, and nothing else.
    left = {*cluster.stored, *cluster.bin.values()}
    assert {one.what.partition(" ")[0] for one in found[1:]} == left
    assert bool(left) == (fails in ("trash", "purge"))


@pytest.mark.parametrize(("seconds", "word"), [(90.0, "ahead"), (-90.0, "behind")])
def test_clocks_that_differ(world: World, cluster: FakeCluster, seconds: float, word: str) -> None:
    cluster.clock = seconds
    assert word in bad(world)["clocks"].what


def test_the_command(
    world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(composition, "real_world", lambda _conf: world)
    monkeypatch.setattr("sys.argv", ["cinderlite-manage", "ceph", "check", "--json"])
    assert manage.main() == 0
    assert {one["level"] for one in json.loads(capsys.readouterr().out)} == {"ok"}
    # The command closed it, so it is down now.
    monkeypatch.setattr("sys.argv", ["cinderlite-manage", "ceph", "check"])
    assert manage.main() == 1
    assert "ceph: problem: connection: " in capsys.readouterr().out


def test_what_bootstrap_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    conf = tmp_path / "conf"
    said = (
        "[DEFAULT]",
        "backup_ceph_pool = backups",
        "backup_ceph_user = saver",
        "[ceph]",
        "rbd_attachment_keys = service",
    )
    conf.write_text("\n".join(said), encoding="utf-8")
    words = ["cinderlite-manage", "--config-file", str(conf), "ceph", "bootstrap", "--dry-run"]
    monkeypatch.setattr("sys.argv", words)
    assert manage.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "ceph -c /etc/ceph/ceph.conf osd pool create volumes",
        "rbd -c /etc/ceph/ceph.conf pool init volumes",
    ]
    assert lines[2] == (
        "(umask 077; ceph -c /etc/ceph/ceph.conf auth get-or-create client.cinderlite mon 'profile rbd' "
        "osd 'profile rbd pool=volumes' mgr 'profile rbd pool=volumes' > /etc/ceph/ceph.client.cinderlite.keyring.new "
        "&& mv /etc/ceph/ceph.client.cinderlite.keyring.new /etc/ceph/ceph.client.cinderlite.keyring)"
    )
    assert "osd pool create backups" in lines[3]
    assert "client.saver mon 'profile rbd' osd 'profile rbd pool=backups'" in lines[5]
    assert len(lines) == 6
    monkeypatch.setattr("sys.argv", [*words, "--keyring", "x"])
    assert manage.main() == 1
    monkeypatch.setattr("sys.argv", [*words, "--pool", "a", "--pool", "b", "--read-pool", "images", "--user", "me"])
    assert manage.main() == 0
    caps = "profile rbd pool=a, profile rbd pool=b, profile rbd-read-only pool=images"
    assert f"client.me mon 'profile rbd' osd '{caps}' mgr '{caps}'" in capsys.readouterr().out
    conf.write_text(f"[DEFAULT]\nbackup_ceph_pool = backups\n[ceph]\nrbd_secret_uuid = {SECRET}\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", [*words, "--libvirt", "qemu:///system", "--libvirt", "qemu+ssh://b/system"])
    assert manage.main() == 0
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first == (
        f"echo \"<secret ephemeral='no' private='yes'><uuid>{SECRET}</uuid><usage type='ceph'>"
        f'<name>client.cinderlite {SECRET}</name></usage></secret>" | virsh -c qemu:///system secret-define /dev/stdin '
        "&& ceph -c /etc/ceph/ceph.conf auth get-key client.cinderlite | "
        f'virsh -c qemu:///system secret-set-value "{SECRET}" --file /dev/stdin'
    )
    assert second == first.replace("qemu:///system", "qemu+ssh://b/system")
    conf.write_text("", encoding="utf-8")
    assert manage.main() == 0
    assert "<uuid>$(ceph -c /etc/ceph/ceph.conf fsid)</uuid>" in capsys.readouterr().out


def test_a_secret_without_a_libvirt(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """What went wrong is said, and the key is not."""
    secret = Secret(f"qemu+unix:///session?socket={tmp_path}/none", "ceph.conf", "me", SECRET)
    said = []
    for path in (os.environ["PATH"], str(tmp_path)):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(errors.CephError) as refused:
            secret.set(None, b"a2V5a2V5")
        said.append(str(refused.value))
    # The fast tier has no libvirt at hand.
    assert "refuses: " in said[0] or "There is no virsh" in said[0]
    assert said[1].startswith("There is no virsh: install libvirt-clients")
    assert "a2V5a2V5" not in str(said)
