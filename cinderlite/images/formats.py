# SPDX-License-Identifier: Apache-2.0
"""What is in the file of an image, and making raw bytes of it or it of raw bytes with `qemu-img`.

What a newcomer gets wrong first: a tenant's file is hostile. Its format is what its owner says, never what somebody
guesses, and the file must really be of that format (oslo.utils looks, in Python, before QEMU does). Files that name
other files (backing files, data files, extents) would show the host's; files that promise more than the volume holds
fill the disk. `qemu-img` runs with bounded memory, time and output, and dies with the thread that waits for it. Files
here have no name, so nothing is left of them when the process is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from cinderlite import errors, jobs

#: What Glance calls a format of bytes that are the disk.
RAW = frozenset({"raw", "iso"})
#: Glance's word for a format that has to be converted → QEMU's, and its options for making one.
CONVERTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "qcow2": ("qcow2", ()),
    "vmdk": ("vmdk", ("-o", "subformat=streamOptimized")),
    "vdi": ("vdi", ()),
    "vhd": ("vpc", ("-o", "subformat=dynamic,force_size=on")),
    "vhdx": ("vhdx", ()),
    "ploop": ("parallels", ()),
}
#: The formats of which it can be checked what is in a file.
READABLE = RAW | CONVERTED.keys() - {"ploop"}
#: What the bytes of a disk may look like from outside.
_DISKS = frozenset({"raw", "gpt", "iso", "luks"})
#: Bytes that are copied at a time.
PIECE = 4 * 2**20
_ZEROS = bytes(PIECE)
#: Bytes at the beginning of a file by which its format is known.
_HEAD = 2**20
#: qemu-img has up to 64 threads. Each with a heap of its own, which reserves 128 MiB, and a stack of 8 MiB now and then
#: took more address space than there is.
_ENVIRONMENT = {"LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}
_STACK = 2**20
_SECTOR = 512


@dataclasses.dataclass(frozen=True, slots=True)
class Converter:
    """How files are converted: where, and with how much memory (bytes) and time of a CPU (seconds a GiB)."""

    directory: pathlib.Path
    address_space: int
    cpu_seconds: int
    vmdk_types: frozenset[str]
    disabled: bool = False

    @contextlib.contextmanager
    def raw(self, image_id: str, disk_format: str, data: Iterable[bytes], most: int) -> Iterator[IO[bytes]]:
        """A file with the disk of an image of a converted format, of at most `most` bytes. Raises ImageUnacceptable."""
        with self._file() as source:
            receive(image_id, disk_format, data, source)
            self._refuse_unsafe(image_id, disk_format, source, most)
            with self._file() as target:
                self._convert(image_id, (source, CONVERTED[disk_format][0]), (target, "raw"), most)
                yield target

    @contextlib.contextmanager
    def plain(self, image_id: str, data: Iterable[bytes], most: int) -> Iterator[IO[bytes]]:
        """A file with the disk of an image that is raw already, of at most `most` bytes. Raises ImageUnacceptable."""
        with self._file() as file:
            with _no_space(image_id):
                for part in data:
                    jobs.checkpoint()
                    file.write(part)
                    if file.tell() > most:
                        raise errors.ImageUnacceptable(image_id, "it is larger than the volume")
                file.flush()
            refuse_disguised(image_id, os.pread(file.fileno(), _HEAD, 0))
            yield file

    @contextlib.contextmanager
    def encrypted(
        self, image_id: str, disk: IO[bytes], header: bytes, begin: int, passphrase: str
    ) -> Iterator[IO[bytes]]:
        """A file with a LUKS `header`, and behind its `begin` bytes what it makes of the disk in another file."""
        size = -(-os.fstat(disk.fileno()).st_size // _SECTOR) * _SECTOR
        with self._file() as target, os.fdopen(os.memfd_create("passphrase"), "wb") as secret:
            secret.write(passphrase.encode())
            secret.flush()
            with _no_space(image_id):
                target.write(header)
                target.truncate(begin + size)
                target.flush()
            words = [
                "convert", "-n", "--object", f"secret,id=opens,file={_path(secret)}", "--target-image-opts",
                "-f", "raw", _path(disk), f"driver=luks,key-secret=opens,file.filename={_path(target)}",
            ]  # fmt: skip
            self._qemu(image_id, words, [disk, target, secret], 1 + size // 2**30, begin + size)
            yield target

    @contextlib.contextmanager
    def of_raw(
        self, image_id: str, disk_format: str, size: int, data: Iterable[tuple[int, bytes]]
    ) -> Iterator[IO[bytes]]:
        """A file of a converted format with a disk of `size` bytes, of which `data` gives what is not zero."""
        with self._file() as source:
            with _no_space(image_id):
                source.truncate(size)
                for offset, piece in data:
                    source.seek(offset)
                    source.write(piece)
                source.flush()
            with self._file() as target:
                name, options = CONVERTED[disk_format]
                # Formats have tables beside the data, and ploop takes 128 MiB in advance.
                self._convert(image_id, (source, "raw"), (target, name), size + size // 8 + 2**28, options)
                yield target

    @contextlib.contextmanager
    def _file(self) -> Iterator[IO[bytes]]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.directory) as file:
            yield file

    def _refuse_unsafe(self, image_id: str, disk_format: str, source: IO[bytes], most: int) -> None:
        """What QEMU itself says of a file that looked right from outside."""
        name = CONVERTED[disk_format][0]
        text = self._qemu(image_id, ["info", "--output=json", "-f", name, _path(source)], [source], 1, most)
        said = json.loads(text)
        special = said.get("format-specific", {}).get("data", {})
        extents = [one.get("filename") for one in special.get("extents", [])]
        if said.get("backing-filename") or special.get("data-file") or any(one != _path(source) for one in extents):
            raise errors.ImageUnacceptable(image_id, "it refers to other files")
        if said.get("encrypted"):
            raise errors.ImageUnacceptable(image_id, "it is encrypted")
        if disk_format == "vmdk" and special.get("create-type") not in self.vmdk_types:
            raise errors.ImageUnacceptable(image_id, f"its VMDK subformat {special.get('create-type')} is not allowed")
        if int(said["virtual-size"]) > most:
            raise errors.ImageUnacceptable(
                image_id, f"its disk of {-(-int(said['virtual-size']) // 2**30)} GiB is larger than the volume"
            )

    def _convert(
        self,
        image_id: str,
        source: tuple[IO[bytes], str],
        target: tuple[IO[bytes], str],
        most: int,
        options: Sequence[str] = (),
    ) -> None:
        words = ["convert", "-f", source[1], "-O", target[1], *options, _path(source[0]), _path(target[0])]
        self._qemu(image_id, words, [source[0], target[0]], 1 + most // 2**30, most)

    def _qemu(self, image_id: str, words: Sequence[str], files: Sequence[IO[bytes]], times: int, most: int) -> str:
        """Run qemu-img within its limits, dying with this thread. Raises ImageUnacceptable."""
        limits = [
            f"--as={self.address_space}", f"--cpu={self.cpu_seconds * times}", f"--fsize={max(most, 2**20)}",
            "--core=0", f"--stack={_STACK}",
        ]  # fmt: skip
        command = ["setpriv", "--pdeathsig", "KILL", "--", "prlimit", *limits, "--", "qemu-img", *words]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=complaints,
                pass_fds=[file.fileno() for file in files], env={**os.environ, **_ENVIRONMENT},
            )  # fmt: skip
            code = _ended(process)
            out.seek(0)
            complaints.seek(0)
            if code != 0:
                # Of paths like /proc/self/fd/7 nobody learns anything, so they may be told.
                said = complaints.read(500).decode(errors="replace").strip() or f"it ended with {code}"
                raise errors.ImageUnacceptable(image_id, f"qemu-img {words[0]}: {said}")
            return out.read().decode(errors="replace")


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process; kill it when the work is not ours any more."""
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
            jobs.checkpoint()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _path(file: IO[bytes]) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def receive(image_id: str, disk_format: str, data: Iterable[bytes], target: IO[bytes]) -> None:
    """Write an image's file, looking at what is in it on the way. Raises ImageUnacceptable."""
    from oslo_utils.imageutils import format_inspector

    seen = format_inspector.InspectWrapper(iter(data), expected_format=disk_format)  # type: ignore[arg-type]
    try:
        with _no_space(image_id):
            for piece in seen:
                jobs.checkpoint()
                target.write(piece)
            target.flush()
        found = seen.format
        if found is None or str(found) != disk_format:
            raise errors.ImageUnacceptable(image_id, f"it is no {disk_format} file, but {found}")
        found.safety_check()
    except (format_inspector.ImageFormatError, format_inspector.SafetyCheckFailed) as error:
        raise errors.ImageUnacceptable(image_id, f"it is no {disk_format} file that can be used: {error}") from error


def refuse_disguised(image_id: str, head: bytes) -> None:
    """Raise ImageUnacceptable if bytes that are said to be a disk begin like a file of another format."""
    from oslo_utils.imageutils import format_inspector

    seen = format_inspector.InspectWrapper(iter([head[:_HEAD]]))  # type: ignore[arg-type]
    for _ in seen:
        pass
    found = {str(one) for one in seen.formats or ()} - _DISKS
    if found:
        raise errors.ImageUnacceptable(image_id, f"it is said to be raw, but is a {', '.join(sorted(found))} file")


def numbered(data: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """A stream in pieces of PIECE bytes, each with its offset; those that are nothing but zeros are left out."""
    offset, held, length = 0, [], 0
    for part in data:
        held.append(part)
        length += len(part)
        while length >= PIECE:
            rest = memoryview(held[-1])[len(held[-1]) - (length - PIECE) :]
            piece = b"".join([*held[:-1], memoryview(held[-1])[: len(held[-1]) - len(rest)]])
            held, length = [bytes(rest)], len(rest)
            if piece != _ZEROS:
                yield offset, piece
            offset += PIECE
    if length:
        yield offset, b"".join(held)


def allocated(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The pieces of a file that hold data, each with its offset; holes and zeros are left out."""
    descriptor, end, offset = file.fileno(), os.fstat(file.fileno()).st_size, 0
    while offset < end:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA) // PIECE * PIECE
        except OSError:  # ENXIO: nothing but a hole is left.
            return
        piece = os.pread(descriptor, PIECE, offset)
        if piece != _ZEROS[: len(piece)]:
            yield offset, piece
        offset += PIECE


def content(file: IO[bytes]) -> Iterator[bytes]:
    """A file from its beginning, in pieces."""
    file.seek(0)
    return iter(lambda: file.read(PIECE), b"")


@contextlib.contextmanager
def _no_space(image_id: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.ImageUnacceptable(
            image_id, f"it does not fit into image_conversion_dir: {error.strerror}"
        ) from error
