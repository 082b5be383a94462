# SPDX-License-Identifier: Apache-2.0
"""The file that QEMU reads for the sake of one time-out: what is kept of the original, and what never is."""

from __future__ import annotations

import configparser
import pathlib

import pytest

from cinderlite.guests import impatience

ORIGINAL = """\
[global]
fsid = 11111111-1111-4111-8111-111111111111
mon_host = 192.0.2.1
  key = AQBzZWNyZXQ=
keyring = /etc/ceph/secret,\\
  /etc/ceph/another
[client]
Keyfile=/etc/ceph/third
rbd_cache = false
key_ring_size = 3
client_mount_timeout = 300
"""


def said(path: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False)
    found.read(path, encoding="utf-8")
    return found


def test_settings_are_kept_and_secrets_are_not(tmp_path: pathlib.Path) -> None:
    original = tmp_path / "ceph.conf"
    original.write_text(ORIGINAL, encoding="utf-8")
    path = impatience.file(tmp_path, 7, original)
    assert path is not None
    found = said(path)
    assert (found["global"]["mon_host"], found["client"]["rbd_cache"]) == ("192.0.2.1", "false")
    assert (found["client"]["client_mount_timeout"], found["client"]["key_ring_size"]) == ("7", "3")
    text = pathlib.Path(path).read_text(encoding="utf-8")
    assert not [word for word in ("AQBz", "secret", "another", "third") if word in text]
    assert pathlib.Path(path).stat().st_mode & 0o777 == 0o644
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ceph.conf", impatience.NAME]


def test_it_follows_the_original(tmp_path: pathlib.Path) -> None:
    original = tmp_path / "ceph.conf"
    path = impatience.file(tmp_path, 7, original)
    assert path is not None
    assert said(path).sections() == ["client"]
    before = pathlib.Path(path).stat().st_mtime_ns
    assert impatience.file(tmp_path, 7, original) == path
    assert pathlib.Path(path).stat().st_mtime_ns == before
    original.write_text("[global]\nms_mode = secure\n", encoding="utf-8")
    impatience.file(tmp_path, 7, original)
    assert said(path)["global"]["ms_mode"] == "secure"


def test_what_cannot_be_written_is_done_without(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    assert impatience.file(tmp_path / "nowhere", 7, tmp_path / "none") is None
    assert "cannot be written" in caplog.text
    assert impatience.file(tmp_path, 0) is None
    assert list(tmp_path.iterdir()) == []
