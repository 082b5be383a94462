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
