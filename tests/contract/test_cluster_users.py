# SPDX-License-Identifier: Apache-2.0
"""cephx users for attachments, on the fake and on a real cluster: what each opens, and what is refused to it."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cinderlite import errors
from cinderlite.ceph import cephx, rights
from cinderlite.ceph.cluster import Cluster
from fakes_cluster import FakeCluster
from lab.ceph import Ceph
from lab.process import LabError

MIB = 2**20
NOTE = b'{"volume": "v"}'

#: Whether somebody with that user and key can open an image, also for writing.
Opens = Callable[..., bool]


@pytest.fixture
def name(cluster: Cluster) -> str:
    """A new image."""
    return image(cluster)


def image(cluster: Cluster) -> str:
    made = f"volume-{uuid.uuid4()}"
    cluster.create(made, 8 * MIB)
    return made


@pytest.fixture
def user(cluster: Cluster) -> Iterator[str]:
    """A name that the service's user may make."""
    made = f"{cluster.user}.test.{uuid.uuid4()}"
    yield made
    cluster.remove_user(made)


@pytest.fixture
def opens(request: pytest.FixtureRequest, cluster: Cluster) -> Opens:
    if isinstance(cluster, FakeCluster):
        return lambda user, key, name, *, write=False, at=cluster: at.opens(user, key, name, write=write)
    ceph: Ceph = request.getfixturevalue("ceph")

    def attempt(user: str, key: str, name: str, *, write: bool = False, at: Cluster = cluster) -> bool:
        import rados
        import rbd

        try:
            with (
                ceph.connected(user, key, at.pool, at.namespace) as (_, ioctx),
                rbd.Image(ioctx, name, read_only=not write) as opened,
            ):
                opened.read(0, 10)
                if write:
                    opened.write(b"written", MIB)
                    opened.flush()
        except (rados.PermissionDeniedError, rbd.PermissionError):
            return False
        return True

    return attempt


def made(cluster: Cluster, name: str, user: str, *, read_only: bool = False, flattens: bool = False) -> str:
    cluster.note_user(user, NOTE)
    return cluster.user_of_image(name, user, read_only=read_only, flattens=flattens)


def test_the_services_user_may_make_others(cluster: Cluster) -> None:
    assert cluster.makes_users()


def test_a_user_opens_its_image_and_no_other(cluster: Cluster, name: str, user: str, opens: Opens) -> None:
    key = made(cluster, name, user)
    assert opens(user, key, name, write=True)
    assert not opens(user, key, image(cluster))
    assert not opens(user, key, image(cluster), write=True)


def test_it_is_the_same_whenever_it_is_asked_for(cluster: Cluster, name: str, user: str, opens: Opens) -> None:
    key = made(cluster, name, user)
    assert made(cluster, name, user) == key
    assert made(cluster, name, user, read_only=True) == key
    assert opens(user, key, name)
    assert not opens(user, key, name, write=True)
    assert made(cluster, name, user) == key
    assert opens(user, key, name, write=True)


def test_of_an_image_that_is_made_anew(cluster: Cluster, name: str, user: str, opens: Opens) -> None:
    key = made(cluster, name, user)
    image_id = cluster.trash(name)
    assert image_id is not None
    assert cluster.purge(image_id)
    cluster.create(name, 8 * MIB)
    assert not opens(user, key, name)
    assert made(cluster, name, user) == key
    assert opens(user, key, name, write=True)


def test_no_user_without_its_image(cluster: Cluster, user: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(errors.ImageNotFound):
        made(cluster, "volume-none", user)
    # It is in the list nonetheless: whoever dies there must be found out.
    assert user in cluster.users()
    if not isinstance(cluster, FakeCluster):
        assert f"client.{user}" not in request.getfixturevalue("ceph").users()


def test_one_that_is_removed(cluster: Cluster, name: str, user: str, opens: Opens) -> None:
    key = made(cluster, name, user)
    assert cluster.users()[user] == NOTE
    assert cluster.within("apart").users()[user] == NOTE
    cluster.remove_user(user)
    assert user not in cluster.users()
    assert not opens(user, key, name)
    cluster.remove_user(user)
    assert made(cluster, name, user) != key


def test_in_a_namespace(cluster: Cluster, user: str, opens: Opens) -> None:
    there = cluster.within("tenant")
    name = image(there)
    key = made(there, name, user)
    assert opens(user, key, name, write=True, at=there)
    cluster.create(name, 8 * MIB)
    assert not opens(user, key, name)
    assert not opens(user, key, image(there), at=there)


def test_a_user_of_a_whole_namespace(cluster: Cluster, user: str, opens: Opens) -> None:
    there, other = cluster.within("tenant"), cluster.within("another")
    key = there.user_of_namespace(user, NOTE)
    assert there.user_of_namespace(user, NOTE) == key
    assert cluster.users()[user] == NOTE
    assert opens(user, key, image(there), write=True, at=there)
    assert not opens(user, key, image(other), at=other)
    assert not opens(user, key, image(cluster), write=True)


# -- on a real cluster


real = pytest.mark.parametrize("cluster", [pytest.param("real", marks=pytest.mark.real)], indirect=True)


def refused(work: Callable[[], Any]) -> bool:
    import rados
    import rbd

    try:
        work()
    except (rados.PermissionDeniedError, rados.PermissionError, rbd.PermissionError):
        return True
    return False


@real
def test_whoever_has_the_key_gets_at_nothing_else(cluster: Cluster, ceph: Ceph, name: str, user: str) -> None:
    import rbd

    other = image(cluster)
    ceph.write(other, b"theirs")
    with cluster.opened(other) as opened:
        other_id = str(opened._image.id())
    key = made(cluster, name, user)
    with ceph.connected(user, key) as (client, ioctx):
        data = f"rbd_data.{other_id}.{0:016x}"
        for attempt in (
            lambda: ioctx.read(data, 6),
            lambda: ioctx.write(data, b"mine"),
            lambda: ioctx.remove_object(data),
            lambda: ioctx.stat(f"rbd_header.{other_id}"),
            lambda: ioctx.execute(f"rbd_header.{other_id}", "rbd", "get_size", b"\xff" * 8),
            lambda: rbd.Image(ioctx, other, read_only=True),
            lambda: rbd.Image(ioctx, image_id=other_id, read_only=True),
            lambda: rbd.RBD().list(ioctx),
            lambda: rbd.RBD().trash_list(ioctx).__next__(),
            lambda: rbd.RBD().create(ioctx, "mine", MIB),
            lambda: rbd.RBD().remove(ioctx, name),
            lambda: ioctx.execute("rbd_info", "rbd", "metadata_set", b""),
            lambda: ioctx.write(cephx.REGISTER, b"mine"),
        ):
            assert refused(attempt)
        assert list(ioctx.list_objects()) == []
        for command in (
            {"prefix": "auth get", "entity": f"client.{cluster.user}"},
            {"prefix": "auth get", "entity": f"client.{user}"},
            {"prefix": "auth get-or-create", "entity": f"client.{user}.x"},
            {"prefix": "auth ls"},
            {"prefix": "config-key dump"},
            {"prefix": "mgr dump"},
        ):
            assert client.mon_command(json.dumps(command), b"")[0] == -13
    assert ceph.read(other, 6) == b"theirs"


def grown(cluster: Cluster, ceph: Ceph) -> tuple[str, str]:
    """An image with data, and a clone of it."""
    parent, child = image(cluster), f"volume-{uuid.uuid4()}"
    ceph.write(parent, b"below")
    cluster.snapshot(parent, "snap")
    cluster.clone(parent, "snap", child, 8 * MIB)
    return parent, child


@real
def test_what_is_below_a_clone_is_read_and_not_written(cluster: Cluster, ceph: Ceph, user: str) -> None:
    import rbd

    parent, middle = grown(cluster, ceph)
    cluster.snapshot(middle, "snap")
    elsewhere = cluster.within("tenant")
    name = f"volume-{uuid.uuid4()}"
    elsewhere.clone(middle, "snap", name, 8 * MIB, source=cluster)
    with cluster.opened(parent) as opened:
        parent_id = str(opened._image.id())
    # One that was deleted lies in the trash, and is read all the same.
    cluster.trash(parent)
    key = made(elsewhere, name, user)
    with ceph.connected(user, key, namespace="tenant") as (client, ioctx):
        with rbd.Image(ioctx, name) as opened:
            assert opened.read(0, 5) == b"below"
            opened.write(b"above", 0)
            opened.flush()
            assert opened.read(0, 5) == b"above"
        with client.open_ioctx(ceph.pool) as default:
            assert default.read(f"rbd_data.{parent_id}.{0:016x}", 5) == b"below"
            for attempt in (
                lambda: default.write(f"rbd_data.{parent_id}.{0:016x}", b"evil"),
                lambda: default.remove_object(f"rbd_header.{parent_id}"),
                lambda: default.execute(f"rbd_header.{parent_id}", "rbd", "set_size", (1).to_bytes(8, "little")),
                lambda: rbd.Image(default, middle),
                lambda: rbd.RBD().list(default),
            ):
                assert refused(attempt)


@real
def test_below_a_clone_of_another_pool_and_beside_its_data(cluster: Cluster, ceph: Ceph, user: str) -> None:
    import rbd

    ceph.add_pool("second")
    parent, name = f"volume-{uuid.uuid4()}", f"volume-{uuid.uuid4()}"
    ceph.rbd("create", "--size", "8", f"second/{parent}")
    ceph.rbd("snap", "create", "--no-progress", f"second/{parent}@snap")
    spec = ["--rbd-default-clone-format=2", f"second/{parent}@snap", f"{ceph.pool}/{name}"]
    ceph.rbd("clone", "--data-pool", "second", *spec)
    key = made(cluster, name, user)
    with ceph.connected(user, key) as (_, ioctx), rbd.Image(ioctx, name) as opened:
        assert opened.read(0, 4) == bytes(4)
        opened.write(b"data", 0)
        opened.flush()
    ceph.rbd("rm", "--no-progress", f"{ceph.pool}/{name}")
    ceph.rbd("snap", "purge", "--no-progress", f"second/{parent}")
    ceph.rbd("rm", "--no-progress", f"second/{parent}")


@real
def test_what_the_service_has_done_by_who_has_the_lock(cluster: Cluster, ceph: Ceph, user: str) -> None:
    import rbd

    _, name = grown(cluster, ceph)
    key = made(cluster, name, user)
    with ceph.connected(user, key) as (_, ioctx), rbd.Image(ioctx, name) as opened:
        opened.write(b"locked", MIB)
        opened.flush()
        assert opened.is_exclusive_lock_owner()
        cluster.snapshot(name, "taken")
        cluster.grow(name, 16 * MIB)
        cluster.remove_snapshot(name, "taken")
        assert opened.is_exclusive_lock_owner()
        assert opened.size() == 16 * MIB
        # It may not cross itself off at its parent, where it could cross off others, too.
        with pytest.raises(errors.CephError):
            cluster.make_whole(name)
    assert cluster.depth(name, 5) == 1
    key = made(cluster, name, user, flattens=True)
    with ceph.connected(user, key) as (_, ioctx), rbd.Image(ioctx, name) as opened:
        opened.write(b"locked", MIB)
        opened.flush()
        cluster.make_whole(name)
        assert opened.read(0, 5) == b"below"
    assert cluster.depth(name, 5) == 0


@real
def test_only_who_writes_may_cut_off_dead_clients(cluster: Cluster, ceph: Ceph, name: str, user: str) -> None:
    nobody = "192.0.2.1:0/1"
    key = made(cluster, name, user, read_only=True)
    with ceph.connected(user, key) as (client, _):
        assert refused(lambda: client.blocklist_add(nobody, 1))
    key = made(cluster, name, user)
    with ceph.connected(user, key) as (client, _):
        client.blocklist_add(nobody, 1)


@real
def test_the_service_cannot_make_a_user_that_may_more(cluster: Cluster, ceph: Ceph, user: str) -> None:
    good = rights.of_image(
        "a",
        rights.Objects(rights.Place(ceph.pool, ""), "1", "rbd_data.1", ceph.pool),
        [],
        read_only=True,
        flattens=False,
    )
    words = good.words
    bad = [
        [*words[:1], "allow *", *words[2:]],
        [*words[:3], "allow *", *words[4:]],
        [*words[:3], f"{good.osd}, allow *", *words[4:]],
        [*words[:3], f"allow rwx pool={ceph.pool}", *words[4:]],
        [*words[:3], 'allow rwx pool=other namespace="" object_prefix rbd_data.1', *words[4:]],
        [*words[:5], "allow *", *words[6:]],
        words[:4],
        [*words, "mon", "allow *"],
    ]
    with connected_as_service(cluster, ceph) as client:
        for caps in bad:
            command = {"prefix": "auth get-or-create", "entity": f"client.{user}", "caps": caps}
            assert client.mon_command(json.dumps(command), b"")[0] == -13
        command = {"prefix": "auth get-or-create", "entity": "client.somebody", "caps": words}
        assert client.mon_command(json.dumps(command), b"")[0] == -13
        assert client.mon_command(json.dumps({"prefix": "auth del", "entity": "client.admin"}), b"")[0] == -13
        command = {"prefix": "auth get-or-create", "entity": f"client.{user}", "caps": words}
        assert client.mon_command(json.dumps(command), b"")[0] == 0


@contextlib.contextmanager
def connected_as_service(cluster: Cluster, ceph: Ceph) -> Iterator[Any]:
    import rados

    with rados.Rados(conffile=str(ceph.conf), name=f"client.{cluster.user}") as client:
        yield client


@real
def test_a_service_that_may_not_make_users(cluster: Cluster, ceph: Ceph, name: str) -> None:
    user = f"lesser{uuid.uuid4().hex[:8]}"
    keyring = ceph.directory / f"client.{user}.keyring"
    caps = rights.of_service(user, [ceph.pool], makes_users=False)
    keyring.write_text(ceph.command("auth", "get-or-create", f"client.{user}", *caps), encoding="ascii")
    other = Cluster(
        pool=ceph.pool, conffile=str(ceph.conf), user=user, connect_timeout=5, mon_timeout=5, osd_timeout=5,
        call_timeout=10.0, threads=2,
    )  # fmt: skip
    try:
        assert not other.makes_users()
        with pytest.raises(errors.UsersRefused):
            made(other, name, f"{user}.x")
        with pytest.raises(errors.UsersRefused):
            other.remove_user(f"{user}.x")
    finally:
        other.close()
        ceph.command("auth", "del", f"client.{user}")
        with contextlib.suppress(LabError):
            keyring.unlink()
