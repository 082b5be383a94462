# SPDX-License-Identifier: Apache-2.0
"""Files of all formats become disks and the other way round; what could harm the host is refused."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from cinderlite import errors, jobs
from cinderlite.images import formats
from cinderlite.images.formats import Converter
from cinderlite.keys import luks

pytest.importorskip("oslo_utils.imageutils.format_inspector")

MIB = 2**20
DISK = b"begin" + bytes(5 * MIB) + b"middle" * 1000 + bytes(3 * MIB) + b"end"
SIZE = 16 * MIB


@pytest.fixture
def converter(tmp_path: pathlib.Path) -> Converter:
    """With a quarter of the memory that there is by default: how much is used must not depend on luck."""
    return Converter(tmp_path / "conversion", 2**28, 60, frozenset({"streamOptimized", "monolithicSparse"}))


def whole(data: Iterator[tuple[int, bytes]], size: int = SIZE) -> bytes:
    disk = bytearray(size)
    for offset, piece in data:
        disk[offset : offset + len(piece)] = piece
    return bytes(disk)


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, timeout=60)


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(DISK.ljust(SIZE, b"\0"))
    return path


@pytest.mark.parametrize("name", sorted(formats.READABLE - formats.RAW))
def test_a_disk_survives_both_ways(converter: Converter, name: str) -> None:
    with converter.of_raw("id", name, SIZE, formats.numbered(iter([DISK]))) as file:
        data = b"".join(formats.content(file))
    with converter.raw("id", name, iter([data[:1000], data[1000:]]), SIZE) as file:
        assert whole(formats.allocated(file)) == DISK.ljust(SIZE, b"\0")
    assert list(converter.directory.iterdir()) == []


@pytest.mark.parametrize("tail", [b"", b"x" * 700, bytes(5 * MIB)])
def test_what_is_encrypted_has_the_whole_disk_with_its_zeros(
    converter: Converter, tmp_path: pathlib.Path, tail: bytes
) -> None:
    header, passphrase, disk = luks.header(b"12" * 32, 64), "12" * 32, DISK + tail
    plain = converter.plain("id", iter([disk[:1000], disk[1000:]]), SIZE)
    with plain as file, converter.encrypted("id", file, header, luks.DATA_OFFSET, passphrase) as made:
        stored = whole(formats.allocated(made), luks.DATA_OFFSET + SIZE)
    assert list(converter.directory.iterdir()) == []
    assert (stored[: len(header)], b"middle" in stored) == (header, False)
    (tmp_path / "volume").write_bytes(stored)
    (tmp_path / "secret").write_text(passphrase, encoding="ascii")
    source = ["--image-opts", f"driver=luks,key-secret=s,file.filename={tmp_path / 'volume'}"]
    qemu_img("convert", "--object", f"secret,id=s,file={tmp_path / 'secret'}", *source, "-O", "raw", tmp_path / "back")
    assert (tmp_path / "back").read_bytes().startswith(disk)


def test_what_is_no_disk_or_too_big_is_not_encrypted(converter: Converter) -> None:
    for data, most, reason in ((DISK, len(DISK) - 1, "larger"), (b"QFI\xfb\0\0\0\3" + bytes(MIB), SIZE, "qcow2")):
        with pytest.raises(errors.ImageUnacceptable, match=reason), converter.plain("id", iter([data]), most):
            pass


def test_ploop_can_be_made(converter: Converter) -> None:
    with converter.of_raw("id", "ploop", SIZE, formats.numbered(iter([DISK]))) as file:
        assert next(formats.content(file)).startswith(b"With")


def test_numbered_pieces_leave_zeros_out() -> None:
    data = b"a" + bytes(formats.PIECE * 3) + b"b"
    parts = [data[at : at + 70_001] for at in range(0, len(data), 70_001)]
    found = list(formats.numbered(iter(parts)))
    assert [offset for offset, _ in found] == [0, formats.PIECE * 3]
    assert whole(iter(found), len(data)) == data


def refused(converter: Converter, path: pathlib.Path, name: str, most: int = SIZE) -> str:
    with pytest.raises(errors.ImageUnacceptable) as found, converter.raw("id", name, iter([path.read_bytes()]), most):
        raise AssertionError("it was taken")
    assert list(converter.directory.iterdir()) == []
    return str(found.value)


def test_a_file_of_another_format_than_it_says_is_refused(
    converter: Converter, disk: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other"
    qemu_img("convert", "-O", "vdi", disk, other)
    assert "qcow2" in refused(converter, other, "qcow2")
    assert "vmdk" in refused(converter, disk, "vmdk")
    qcow2 = tmp_path / "qcow2"
    qemu_img("convert", "-O", "qcow2", disk, qcow2)
    with pytest.raises(errors.ImageUnacceptable, match="qcow2"):
        formats.refuse_disguised("id", qcow2.read_bytes())
    formats.refuse_disguised("id", DISK)


def test_files_that_refer_to_other_files_are_refused(
    converter: Converter, disk: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    backed, split = tmp_path / "backed", tmp_path / "split"
    qemu_img("create", "-f", "qcow2", "-b", disk, "-F", "raw", backed)
    assert "backing" in refused(converter, backed, "qcow2")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'bytes'},data_file_raw=on", split, "1M")
    assert "data_file" in refused(converter, split, "qcow2")
    text = tmp_path / "text.vmdk"
    text.write_text('# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 20 FLAT "/etc/shadow" 0\n' * 40)
    assert "vmdk" in refused(converter, text, "vmdk")


def test_a_file_that_promises_more_than_the_volume_holds_is_refused(
    converter: Converter, tmp_path: pathlib.Path
) -> None:
    bomb = tmp_path / "bomb"
    qemu_img("create", "-f", "qcow2", bomb, "100G")
    assert "100 GiB is larger" in refused(converter, bomb, "qcow2")


def test_an_encrypted_file_is_refused(converter: Converter, tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secret"
    qemu_img(
        "create", "-f", "qcow2", "--object", "secret,id=s,data=abc",
        "-o", "encrypt.format=aes,encrypt.key-secret=s", secret, "1M",
    )  # fmt: skip
    assert "encrypted" in refused(converter, secret, "qcow2")


def test_vmdk_subformats_that_the_operator_does_not_allow_are_refused(
    tmp_path: pathlib.Path, disk: pathlib.Path
) -> None:
    strict = Converter(tmp_path / "conversion", 2**30, 60, frozenset({"monolithicSparse"}))
    file = tmp_path / "stream"
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, file)
    assert "streamOptimized is not allowed" in refused(strict, file, "vmdk")


def test_a_broken_file_and_limits_end_in_a_sentence(tmp_path: pathlib.Path, disk: pathlib.Path) -> None:
    file = tmp_path / "qcow2"
    qemu_img("convert", "-O", "qcow2", disk, file)
    data = bytearray(file.read_bytes())
    table = int.from_bytes(data[40:48])
    data[table : table + 8] = bytes(5) + b"\1\2\0"  # Where no table can be.
    roomy, narrow = (Converter(tmp_path / "conversion", size, 60, frozenset()) for size in (2**30, 2**20))
    file.write_bytes(data)
    assert "qemu-img convert" in refused(roomy, file, "qcow2")
    assert "qemu-img info" in refused(narrow, file, "qcow2")


def test_a_conversion_that_lost_its_lease_ends(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise errors.Superseded

    monkeypatch.setattr(jobs, "checkpoint", lost)
    with pytest.raises(errors.Superseded), converter.raw("id", "qcow2", iter([b"QFI\xfb"]), SIZE):
        raise AssertionError("it went on")
    with pytest.raises(errors.Superseded):
        formats._ended(subprocess.Popen(["sleep", "60"]))
