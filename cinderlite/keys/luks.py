# SPDX-License-Identifier: Apache-2.0
"""What a LUKS1 volume begins with: the header, and the master key, which a passphrase opens; and other passphrases.

Everything is random, so that two headers for one passphrase have nothing in common. What a newcomer gets wrong first:
who opens the volume has to do as many rounds of PBKDF2 as the header says, and QEMU stands still meanwhile. Rounds make
guessing dear; our passphrases are 256 random bits, which nobody guesses, so the number is the least that is allowed.

The format is that of the LUKS On-Disk Format Specification 1.2.3; QEMU and cryptsetup try it in the tests.
"""

from __future__ import annotations

import hashlib
import hmac
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
#: A slot with more takes too long to try: it is none of ours.
_MOST_ROUNDS = 10_000_000
_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_MAGIC = b"LUKS\xba\xbe"
_ACTIVE, _INACTIVE = 0x00AC71F3, 0x0000DEAD
#: Key material begins at whole 4 KiB.
_ALIGNED = 8
_HASH = "sha256"


class NotOpened(Exception):
    """The passphrase does not open it, or it is no header that anybody here could have made."""


def header(passphrase: bytes, key_bytes: int) -> bytes:
    """The first bytes of a volume with a new master key of that many bytes. What is behind them does not matter."""
    return _sealed(passphrase, os.urandom(key_bytes), DATA_OFFSET // _SECTOR)


def opens(start: bytes, passphrase: bytes) -> bool:
    """Whether a passphrase opens what a volume begins with, of which DATA_OFFSET bytes are enough."""
    try:
        _master(start, passphrase)
    except NotOpened:
        return False
    return True


def resealed(start: bytes, old: bytes, new: bytes) -> bytes:
    """What a volume is to begin with so that `new` opens it in place of `old`, and of all other passphrases it had.

    The master key, and so all that is encrypted with it, stays. Raises NotOpened.
    """
    master = _master(start, old)
    data_sector = _HEADER.unpack_from(start)[5]
    used = max(end for slot, end in _areas(start) if slot[0] == _ACTIVE)
    if used > len(start):  # It says that there is key material where nobody put any.
        raise NotOpened
    sealed = _sealed(new, master, data_sector).ljust(used, b"\0")
    if len(sealed) > data_sector * _SECTOR:
        raise NotOpened
    return sealed


def _areas(start: bytes) -> list[tuple[tuple[int, int, bytes, int, int], int]]:
    """The slots, each with where its key material ends."""
    size = _HEADER.unpack_from(start)[6]
    slots = [_SLOT.unpack_from(start, _HEADER.size + number * _SLOT.size) for number in range(_SLOTS)]
    return [(slot, slot[3] * _SECTOR + _padded(size * slot[4])) for slot in slots]


def _master(start: bytes, passphrase: bytes) -> bytes:
    """The master key. Raises NotOpened."""
    if len(start) < _HEADER.size + _SLOTS * _SLOT.size or not start.startswith(_MAGIC + b"\0\1"):
        raise NotOpened
    _, _, cipher, mode, digest, _, size, known, salt, rounds, _ = _HEADER.unpack_from(start)
    if not 1 <= rounds <= _MOST_ROUNDS:
        raise NotOpened
    ours = b"aes", b"xts-plain64", _HASH.encode()
    if tuple(word.rstrip(b"\0") for word in (cipher, mode, digest)) != ours or size not in KEY_BYTES.values():
        raise NotOpened
    for (active, slot_rounds, slot_salt, first, stripes), end in _areas(start):
        if active == _ACTIVE and stripes == _STRIPES and 1 <= slot_rounds <= _MOST_ROUNDS and end <= len(start):
            key = hashlib.pbkdf2_hmac(_HASH, passphrase, slot_salt, slot_rounds, size)
            found = _gathered(_ciphered(key, start[first * _SECTOR : end], decrypt=True)[: size * stripes], size)
            if hmac.compare_digest(hashlib.pbkdf2_hmac(_HASH, found, salt, rounds, 20), known):
                return found
    raise NotOpened


def _padded(length: int) -> int:
    """The bytes of as many sectors as it takes."""
    return -(-length // _SECTOR) * _SECTOR


def _sealed(passphrase: bytes, master: bytes, data_sector: int) -> bytes:
    """The header of a volume whose data begin at that sector."""
    key_bytes, salt = len(master), os.urandom(32)
    offset = _ALIGNED * _SECTOR
    material = _locked(passphrase, salt, master)
    digest_salt = os.urandom(32)
    start = _HEADER.pack(
        _MAGIC, 1, b"aes", b"xts-plain64", _HASH.encode(), data_sector, key_bytes,
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
    return _ciphered(key, _spread(master).ljust(_padded(len(master) * _STRIPES), b"\0"))


def _spread(secret: bytes) -> bytes:
    """Stripes of which all are needed to get the secret back (the anti-forensic splitter of LUKS)."""
    stripes, mixed = [], bytes(len(secret))
    for _ in range(_STRIPES - 1):
        stripes.append(os.urandom(len(secret)))
        mixed = _diffused(_xor(mixed, stripes[-1]))
    return b"".join([*stripes, _xor(mixed, secret)])


def _gathered(stripes: bytes, size: int) -> bytes:
    """What was spread."""
    mixed = bytes(size)
    for start in range(0, len(stripes) - size, size):
        mixed = _diffused(_xor(mixed, stripes[start : start + size]))
    return _xor(mixed, stripes[-size:])


def _diffused(data: bytes) -> bytes:
    size = hashlib.sha256().digest_size
    blocks = (data[start : start + size] for start in range(0, len(data), size))
    return b"".join(
        hashlib.sha256(struct.pack(">I", number) + block).digest()[: len(block)] for number, block in enumerate(blocks)
    )


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left) ^ int.from_bytes(right)).to_bytes(len(left))


def _ciphered(key: bytes, data: bytes, *, decrypt: bool = False) -> bytes:
    """Whole sectors, numbered from 0, encrypted or decrypted."""
    algorithm = algorithms.AES(key)
    out = []
    for number in range(len(data) // _SECTOR):
        cipher = Cipher(algorithm, modes.XTS(number.to_bytes(16, "little")))
        sector = cipher.decryptor() if decrypt else cipher.encryptor()
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
