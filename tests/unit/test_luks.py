# SPDX-License-Identifier: Apache-2.0
"""What an encrypted volume begins with, opened by QEMU's own tool."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest

from cinderlite import errors
from cinderlite.keys import luks

PASSPHRASE = b"0123456789abcdef" * 4
MIB = 2**20


def qemu_io(path: pathlib.Path, passphrase: bytes, *commands: str) -> subprocess.CompletedProcess[str]:
    """Open a volume as QEMU does, and have something done to its plain data."""
    secret = path.with_suffix(".secret")
    secret.write_bytes(passphrase)
    options = ["--object", f"secret,id=s,file={secret}", "--image-opts"]
    words = [word for command in commands for word in ("-c", command)]
    return subprocess.run(
        ["qemu-io", *options, *words, f"driver=luks,key-secret=s,file.filename={path}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def volume(path: pathlib.Path, header: bytes) -> pathlib.Path:
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(luks.DATA_OFFSET + 8 * MIB)
    return path


@pytest.mark.parametrize("size", sorted(set(luks.KEY_BYTES.values())))
def test_qemu_opens_it_and_what_is_behind_it_is_the_whole_size(tmp_path: pathlib.Path, size: int) -> None:
    path = volume(tmp_path / "volume", luks.header(PASSPHRASE, size))
    done = qemu_io(path, PASSPHRASE, "length", "write -P 0x5a 7M 1M", "read -P 0x5a 7M 1M")
    assert (done.returncode, "8 MiB" in done.stdout, done.stderr) == (0, True, "")
    assert b"Z" * 64 not in path.read_bytes()
    known = subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True, timeout=60)
    said = json.loads(known.stdout)["format-specific"]["data"]
    assert (said["cipher-alg"], said["cipher-mode"], said["ivgen-alg"]) == (f"aes-{size * 4}", "xts", "plain64")
    # More would have every guest stand still while the volume is opened.
    assert said["slots"][0]["iters"] == said["master-key-iters"] == 1000


def test_another_passphrase_does_not_open_it(tmp_path: pathlib.Path) -> None:
    path = volume(tmp_path / "volume", luks.header(PASSPHRASE, 64))
    done = qemu_io(path, PASSPHRASE[1:], "length")
    assert (done.returncode, "Invalid password" in done.stderr) == (1, True)


def test_two_headers_for_one_passphrase_have_nothing_in_common() -> None:
    one, other = luks.header(PASSPHRASE, 64), luks.header(PASSPHRASE, 64)
    assert len(one) == len(other) < luks.DATA_OFFSET
    assert one[4096:8192] != other[4096:8192]
    assert one[112:132] != other[112:132]  # The digest of the master key.
    assert PASSPHRASE not in one


OTHER = b"fedcba9876543210" * 4


@pytest.mark.parametrize("size", sorted(set(luks.KEY_BYTES.values())))
def test_another_passphrase_takes_the_place_of_the_first(tmp_path: pathlib.Path, size: int) -> None:
    path = volume(tmp_path / "volume", luks.header(PASSPHRASE, size))
    assert qemu_io(path, PASSPHRASE, "write -P 0x5a 7M 1M").returncode == 0
    start = path.read_bytes()[: luks.DATA_OFFSET]
    assert (luks.opens(start, PASSPHRASE), luks.opens(start, OTHER)) == (True, False)
    sealed = luks.resealed(start, PASSPHRASE, OTHER)
    with path.open("r+b") as file:
        file.write(sealed)
    assert (luks.opens(sealed, PASSPHRASE), luks.opens(sealed, OTHER)) == (False, True)
    done = qemu_io(path, OTHER, "length", "read -P 0x5a 7M 1M")
    assert (done.returncode, "8 MiB" in done.stdout, done.stderr) == (0, True, "")
    assert "Invalid password" in qemu_io(path, PASSPHRASE, "length").stderr
    # What they share is the size, and nothing random: neither salt, nor digest, nor name.
    assert sealed[112:208] != start[112:208]


def qemu_img(*words: str) -> None:
    """Run it, again if it saw no time pass on the processor's clock while it measured how fast it is."""
    for _ in range(20):
        done = subprocess.run(["qemu-img", *words], check=False, timeout=60, capture_output=True, text=True)
        if "accurate CPU usage" not in done.stderr:
            break
    assert (done.returncode, done.stderr) == (0, "")


def test_what_qemu_made_is_sealed_too_with_every_other_way_to_open_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "volume"
    for name, words in (("one", PASSPHRASE), ("two", OTHER)):
        (tmp_path / name).write_bytes(words)
    secrets = [word for name in ("one", "two") for word in ("--object", f"secret,id={name},file={tmp_path / name}")]
    qemu_img("create", "-q", "-f", "luks", *secrets, "-o", "key-secret=one,iter-time=10", str(path), "8M")
    amend = ["--image-opts", f"driver=luks,key-secret=one,file.filename={path}", "-o", "state=active,new-secret=two"]
    qemu_img("amend", *secrets, *amend, "-o", "iter-time=10")
    assert qemu_io(path, OTHER, "write -P 0x5a 1M 1M").returncode == 0
    third = b"third" * 8
    start = path.read_bytes()[: luks.DATA_OFFSET]
    with path.open("r+b") as file:
        file.write(luks.resealed(start, PASSPHRASE, third))
    done = qemu_io(path, third, "length", "read -P 0x5a 1M 1M")
    assert (done.returncode, "8 MiB" in done.stdout, done.stderr) == (0, True, "")
    for gone in (PASSPHRASE, OTHER):
        assert "Invalid password" in qemu_io(path, gone, "length").stderr


@pytest.mark.parametrize("start", [b"", b"LUKS\xba\xbe\0\1", bytes(8192), b"LUKS\xba\xbe\0\2" + bytes(300000)])
def test_what_is_no_header_is_opened_by_nothing(start: bytes) -> None:
    assert not luks.opens(start, PASSPHRASE)
    with pytest.raises(luks.NotOpened):
        luks.resealed(start, PASSPHRASE, OTHER)


@pytest.mark.parametrize(
    ("place", "what"), [(8, b"twofish\0"), (40, b"cbc-essiv:sha256"), (72, b"sha1\0\0"), (108, b"\0\0\0\7")]
)
def test_one_of_another_kind_is_opened_by_nothing(place: int, what: bytes) -> None:
    start = luks.header(PASSPHRASE, 64)
    assert not luks.opens(start[:place] + what + start[place + len(what) :], PASSPHRASE)
    assert not luks.opens(start[:4096], PASSPHRASE)  # Without its key material.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"provider": "luks2"}, "luks2"), ({"provider": "plain"}, "plain"), ({"cipher": "aes-cbc-essiv"}, "essiv"),
        ({"key_size": 192}, "192"), ({"control_location": "back-end"}, "back end"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(change: dict[str, object], reason: str) -> None:
    fine = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end"}
    luks.refuse(**fine)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidVolumeType, match=reason):
        luks.refuse(**{**fine, **change})  # type: ignore[arg-type]
