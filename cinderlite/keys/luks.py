# SPDX-License-Identifier: Apache-2.0
"""What a LUKS1 volume begins with: the header, and the master key, which a passphrase opens.

Everything is random, so that two headers for one passphrase have nothing in common. What a newcomer gets wrong first:
who opens the volume has to do as many rounds of PBKDF2 as the header says, and QEMU stands still meanwhile. Rounds make
guessing dear; our passphrases are 256 random bits, which nobody guesses, so the number is the least that is allowed.

The format is that of the LUKS On-Disk Format Specification 1.2.3; QEMU and cryptsetup try it in the tests.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cinderlite import errors

#: Where a volume's own data begin: a whole object of RBD, so that theirs begin where the image's objects do.
DATA_OFFSET = 4 * 2**20
#: The only cipher, in the words of dm-crypt.
CIPHER = "aes-xts-plain64"
#: Bits of the cipher's key as types give it → bytes of the master key. XTS takes two keys; Cinder counts one of them,
#: dm-crypt both, so both words for AES-256 mean that.
KEY_BYTES = {128: 32, 256: 64, 512: 64}
#: What a type means that does not say how many.
KEY_BITS = 256
#: Names of LUKS1 in types: Cinder's, and those of the classes that once stood there.
PROVIDERS = frozenset({
    "luks", "nova.volume.encryptors.luks.LuksEncryptor", "os_brick.encryptors.luks.LuksEncryptor",
})  # fmt: skip
_SECTOR = 512
_STRIPES = 4000
_ROUNDS = 1000
_SLOTS = 8
_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_MAGIC = b"LUKS\xba\xbe"
_ACTIVE, _INACTIVE = 0x00AC71F3, 0x0000DEAD
#: Key material begins at whole 4 KiB.
_ALIGNED = 8
_HASH = "sha256"


def header(passphrase: bytes, key_bytes: int) -> bytes:
    """The first bytes of a volume with a new master key of that many bytes. What is behind them does not matter."""
    master, salt = os.urandom(key_bytes), os.urandom(32)
    offset = _ALIGNED * _SECTOR
    material = _locked(passphrase, salt, master)
    digest_salt = os.urandom(32)
    start = _HEADER.pack(
        _MAGIC, 1, b"aes", b"xts-plain64", _HASH.encode(), DATA_OFFSET // _SECTOR, key_bytes,
        hashlib.pbkdf2_hmac(_HASH, master, digest_salt, _ROUNDS, 20), digest_salt, _ROUNDS,
        str(uuid.uuid4()).encode(),
    )  # fmt: skip
    sectors = -(-len(material) // _SECTOR // _ALIGNED) * _ALIGNED
    slots = [_SLOT.pack(_ACTIVE, _ROUNDS, salt, _ALIGNED, _STRIPES)]
    slots += [_SLOT.pack(_INACTIVE, 0, bytes(32), _ALIGNED + number * sectors, _STRIPES) for number in range(1, _SLOTS)]
    return b"".join([start, *slots]).ljust(offset, b"\0") + material


def _locked(passphrase: bytes, salt: bytes, master: bytes) -> bytes:
    """The master key, spread over many sectors and encrypted with what the passphrase gives."""
    key = hashlib.pbkdf2_hmac(_HASH, passphrase, salt, _ROUNDS, len(master))
    return _encrypted(key, 0, _spread(master).ljust(-(-len(master) * _STRIPES // _SECTOR) * _SECTOR, b"\0"))


def _spread(secret: bytes) -> bytes:
    """Stripes of which all are needed to get the secret back (the anti-forensic splitter of LUKS)."""
    stripes, mixed = [], bytes(len(secret))
    for _ in range(_STRIPES - 1):
        stripes.append(os.urandom(len(secret)))
        mixed = _diffused(_xor(mixed, stripes[-1]))
    return b"".join([*stripes, _xor(mixed, secret)])


def _diffused(data: bytes) -> bytes:
    size = hashlib.sha256().digest_size
    blocks = (data[start : start + size] for start in range(0, len(data), size))
    return b"".join(
        hashlib.sha256(struct.pack(">I", number) + block).digest()[: len(block)] for number, block in enumerate(blocks)
    )


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left) ^ int.from_bytes(right)).to_bytes(len(left))


def _encrypted(key: bytes, first: int, data: bytes) -> bytes:
    """Whole sectors, of which the first has that number."""
    algorithm = algorithms.AES(key)
    out = []
    for number in range(len(data) // _SECTOR):
        sector = Cipher(algorithm, modes.XTS((first + number).to_bytes(16, "little"))).encryptor()
        out.append(sector.update(data[number * _SECTOR : (number + 1) * _SECTOR]) + sector.finalize())
    return b"".join(out)


def refuse(provider: str, cipher: str | None, key_size: int | None, control_location: str) -> None:
    """Raise InvalidVolumeType for an encryption that nobody here could make, or open."""
    if provider not in PROVIDERS:
        raise errors.InvalidVolumeType(
            f"its encryption provider {provider} is not supported; luks is (QEMU opens LUKS1 only)"
        )
    if control_location != "front-end":
        raise errors.InvalidVolumeType("its encryption is that of a back end, and no back end here encrypts by itself")
    if cipher not in (None, CIPHER):
        raise errors.InvalidVolumeType(f"its cipher {cipher} is not supported; {CIPHER} is")
    if key_size is not None and key_size not in KEY_BYTES:
        raise errors.InvalidVolumeType(
            f"its key size of {key_size} bits is not supported; {', '.join(map(str, KEY_BYTES))} are"
        )
