# SPDX-License-Identifier: Apache-2.0
"""What is left of SQLite's file when the power fails, on a file system of its own that is cut off at any moment.

The file system lies in a file, by a loop device: what has not been written to that device is in the kernel's memory
alone, so that a copy of the file is what a machine finds that comes back.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from oslo_config import cfg
from sqlalchemy import select, text

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.core import volumes
from cinderlite.db import migrate, models
from cinderlite.db.session import Database
from conftest import PROJECT, cluster_of, world_of_fakes

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")]

#: Seconds for which nothing is written to the device unless somebody waits for it.
COMMIT = 300
THREADS = 6


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)


class Disk:
    """A file system in a file, and what it would be after the power failed."""

    def __init__(self, directory: pathlib.Path, small: pathlib.Path | None = None) -> None:
        """In a directory; on what is too `small` for it, writing to the disk fails at some time."""
        self._directory = directory
        self._image = (small or directory) / "disk"
        self._cuts = 0
        with self._image.open("wb") as image:
            image.truncate(64 * 2**20)
        _run("mkfs.ext4", "-q", self._image)

    def mounted(self) -> contextlib.AbstractContextManager[pathlib.Path]:
        """Where the file system is, while it is in use."""
        return self._mounted(self._image, f"commit={COMMIT}")

    @contextlib.contextmanager
    def after_a_cut(self) -> Iterator[pathlib.Path]:
        """Where the file system is that the machine would find, were the power to fail now."""
        self._cuts += 1
        image = self._directory / f"cut{self._cuts}"
        shutil.copyfile(self._image, image)
        with self._mounted(image) as place:
            yield place

    @contextlib.contextmanager
    def _mounted(self, image: pathlib.Path, *options: str) -> Iterator[pathlib.Path]:
        place = self._directory / f"{image.name}.mounted"
        place.mkdir()
        _run("mount", "-o", ",".join(("loop", *options)), image, place)
        try:
            yield place
        finally:
            _run("umount", place)


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Disk:
    return Disk(tmp_path)


@pytest.fixture
def failing(tmp_path: pathlib.Path) -> Iterator[Disk]:
    """One that can be written to for a while."""
    small = tmp_path / "small"
    small.mkdir()
    _run("mount", "-t", "tmpfs", "-o", "size=9m", "none", small)
    yield Disk(tmp_path, small)
    _run("umount", small)


def _url(place: pathlib.Path) -> str:
    return f"sqlite:///{place}/cinderlite.sqlite"


@contextlib.contextmanager
def _database(place: pathlib.Path) -> Iterator[Database]:
    with contextlib.closing(Database(_url(place), 10)) as database:
        yield database


def _put(database: Database, *names: str, repeatable: bool = False) -> None:
    with database.write(repeatable=repeatable) as session:
        for name in names:
            session.add(models.VolumeType(id=models.new_id(), name=name, description="x" * 250, is_public=True))


def _refuse(name: str, _size: int) -> None:
    raise errors.ImageExists(name)


def _left(disk: Disk) -> set[str]:
    with disk.after_a_cut() as place, _database(place) as database, database.read() as session:
        return set(session.scalars(select(models.VolumeType.name)))


def test_what_was_accepted_is_there_after_a_power_cut(disk: Disk) -> None:
    with disk.mounted() as place:
        migrate.upgrade(_url(place))
        with _database(place) as database:
            _put(database, "accepted")
            _put(database, "settled", repeatable=True)
            left = _left(disk)
            assert "accepted" in left
            # Nobody waited for it; were it there, this would not be a power cut.
            assert "settled" not in left
            _put(database, "accepted later")
            assert {"accepted", "settled", "accepted later"} <= _left(disk)


def test_a_link_is_followed(disk: Disk) -> None:
    """SQLite has its log beside the file that a link names."""
    with disk.mounted() as place:
        (place / "cinderlite.sqlite").symlink_to("elsewhere.sqlite")
        migrate.upgrade(_url(place))
        with _database(place) as database:
            _put(database, "accepted")
            assert "accepted" in _left(disk)


def test_what_has_failed_stays_so(disk: Disk, conf: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be tried once more after a power cut, and might succeed, though somebody was told that it failed."""
    with disk.mounted() as place:
        migrate.upgrade(_url(place))
        with _database(place) as database:
            world = world_of_fakes(conf, database)
            monkeypatch.setattr(cluster_of(world), "create", _refuse)
            failed = volumes.create(Context(world, "alice", PROJECT, frozenset({"member"}), "req-x"), size=1)
            with disk.after_a_cut() as left, _database(left) as found, found.read() as session:
                assert session.get_one(models.Volume, failed.id).status == "error"


def test_those_who_wait_together_have_all_waited(disk: Disk) -> None:
    with disk.mounted() as place:
        migrate.upgrade(_url(place))
        with _database(place) as database, ThreadPoolExecutor(THREADS) as pool:
            for turn in range(8):
                names = {f"{turn} {number}" for number in range(12)}
                list(pool.map(lambda name: _put(database, name), names))
                assert names <= _left(disk)


def test_a_disk_that_fails_is_told_to_everybody(failing: Disk) -> None:
    with failing.mounted() as place:
        migrate.upgrade(_url(place))
        with contextlib.closing(Database(_url(place), 1)) as database, database.read() as reader:
            reader.execute(text("BEGIN"))  # So that nothing is written back: it is the log that fills the disk.
            reader.execute(select(models.VolumeType.id)).all()

            def write(thread: int) -> set[str]:
                told: set[str] = set()
                for turn in range(200):
                    names = [f"{thread} {turn} {number}" for number in range(20)]
                    try:
                        _put(database, *names)
                    except errors.DatabaseUnavailable:
                        return told
                    told.update(names)
                raise AssertionError("the disk did not fail")

            with ThreadPoolExecutor(THREADS) as pool:
                told = set().union(*pool.map(write, range(THREADS)))
            assert told <= _left(failing)
