# SPDX-License-Identifier: Apache-2.0
"""What lies in the backup pool, and how it gets there and back.

A *chain* is one image: its first backup wrote all of it, each further one only what is different, and every backup is
an RBD snapshot of it. So every backup stands for itself, and any may be removed. Beside each lies its *index*: the
digest of every piece that is not all zeros. The index makes an increment right whatever happened to the source (a
snapshot on it only spares reading what did not change), and shows at each restore that the bytes are those of then.

What a newcomer gets wrong: the chain's head, outside of its snapshots, is only what the last backup left if the note
`head` says so; while it is being written the note is empty, and the next increment first goes back to its parent.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping

from cinderlite import errors, jobs
from cinderlite.ceph.cluster import Cluster, OpenImage
from cinderlite.ceph.data import CHUNK_BYTES
from cinderlite.core.progress import Progress as Shown
from cinderlite.core.progress import silent

_HEAD = "cinderlite_head"
_ENTRY = struct.Struct("<Q16s")
_MAGIC = b"cinderlite index 1\n"

#: Number of a piece → its digest.
Index = dict[int, bytes]
#: Is told how many pieces are done.
Progress = Callable[[int], None]


def snap_of(backup_id: str) -> str:
    """The name of a backup's snapshot, of the chain and for a while of the source too."""
    return f"backup.{backup_id}.snap"


def chain_of(volume_id: str, backup_id: str) -> str:
    """The name of the chain that a backup of a volume begins."""
    return f"volume-{volume_id}.backup.{backup_id}"


def _object_of(backup_id: str) -> str:
    return f"cinderlite.backup.{backup_id}"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _load(vault: Cluster, backup_id: str) -> Index:
    stored = vault.get_object(_object_of(backup_id))
    body = stored[len(_MAGIC) :]
    if not stored.startswith(_MAGIC) or len(body) % _ENTRY.size:
        raise errors.BackupDamaged(backup_id, "its index is missing or cut off")
    return dict(_ENTRY.iter_unpack(body))


def _save(vault: Cluster, backup_id: str, index: Index) -> None:
    vault.put_object(_object_of(backup_id), _MAGIC + b"".join(_ENTRY.pack(*one) for one in sorted(index.items())))


def holds(vault: Cluster, chain: str, backup_id: str) -> bool:
    """Whether a backup is complete in the pool."""
    try:
        return any(one.name == snap_of(backup_id) for one in vault.snapshots(chain))
    except errors.ImageNotFound:
        return False


def write(
    vault: Cluster,
    chain: str,
    backup_id: str,
    original: OpenImage,
    *,
    parent_id: str | None,
    base: str | None,
    progress: Progress,
) -> int:
    """Store an open image as a backup and return the number of its pieces; what an earlier try stored is used.

    `base` is a snapshot of the original that has what `parent_id` has, if there still is one.
    """
    if holds(vault, chain, backup_id):
        return len(_load(vault, backup_id))
    index: Index = {}
    if parent_id is None:
        vault.create(chain, original.size_bytes)
    else:
        index = _load(vault, parent_id)
        _rewind(vault, chain, parent_id)
    changed = original.chunks(base) if base is not None else None
    if changed is None:
        changed = sorted({*(original.chunks() or ()), *index})
    with vault.opened(chain, write=True) as target:
        target.set_note(_HEAD, "")
        target.resize(original.size_bytes)
        pieces = -(-original.size_bytes // CHUNK_BYTES)
        index = {number: digest for number, digest in index.items() if number < pieces}
        _store(original, target, changed, index, progress)
    _save(vault, backup_id, index)
    jobs.checkpoint()
    vault.snapshot(chain, snap_of(backup_id))
    with vault.opened(chain, write=True) as target:
        target.set_note(_HEAD, backup_id)
    return len(index)


def _rewind(vault: Cluster, chain: str, backup_id: str) -> None:
    with vault.opened(chain) as target:
        head = target.note(_HEAD)
    if head != backup_id:
        vault.roll_back(chain, snap_of(backup_id))


def _store(original: OpenImage, target: OpenImage, changed: Iterable[int], index: Index, progress: Progress) -> None:
    """Write the pieces that differ from what the index says, and bring the index up to date."""
    for done, number in enumerate(changed):
        jobs.checkpoint()
        data = original.read(number * CHUNK_BYTES, CHUNK_BYTES)
        if any(data):
            digest = _digest(data)
            if index.get(number) != digest:
                target.write(number * CHUNK_BYTES, data)
                index[number] = digest
        elif index.pop(number, None) is not None:
            target.zero(number * CHUNK_BYTES, CHUNK_BYTES)
        progress(done)
    target.flush()


def read(vault: Cluster, chain: str, backup_id: str, target: OpenImage, *, newest: tuple[str, str] | None) -> None:
    """Write a backup over an image that is at least as big, piece by piece and each compared with its digest.

    `newest` is the backup whose data the target had at one of its own snapshots, and that snapshot: then only what
    differs since is written. Raises BackupDamaged before a piece that is not what was stored would be written.
    """
    index = _load(vault, backup_id)
    changed = _changed(vault, index, target, newest)
    with vault.opened(chain, snap_of(backup_id)) as original:
        for number in changed:
            jobs.checkpoint()
            if number in index:
                target.write(number * CHUNK_BYTES, _checked(original, number, index, backup_id))
            else:
                target.zero(number * CHUNK_BYTES, CHUNK_BYTES)
    target.flush()


def _changed(vault: Cluster, index: Index, target: OpenImage, newest: tuple[str, str] | None) -> list[int]:
    if newest is not None:
        mine = target.chunks(newest[1])
        if mine is not None:
            then = _load(vault, newest[0])
            return sorted({*mine, *(number for number in {*index, *then} if index.get(number) != then.get(number))})
    return sorted({*index, *(target.chunks() or ())})


def _checked(original: OpenImage, number: int, index: Mapping[int, bytes], backup_id: str) -> bytes:
    data = original.read(number * CHUNK_BYTES, CHUNK_BYTES)
    if _digest(data) != index[number]:
        raise errors.BackupDamaged(backup_id, f"{len(data)} bytes from {number * CHUNK_BYTES} are not what was stored")
    return data


def verify(vault: Cluster, chain: str, backup_id: str, progress: Shown = silent) -> int:
    """Compare every piece of a backup with its digest and return how many there are. Raises BackupDamaged."""
    index = _load(vault, backup_id)
    with vault.opened(chain, snap_of(backup_id)) as original:
        pieces = sorted({*index, *(original.chunks() or ())})
        for done, number in enumerate(pieces):
            progress(f"pieces of {backup_id}", done, len(pieces))
            jobs.checkpoint()
            if number in index:
                _checked(original, number, index, backup_id)
            elif any(original.read(number * CHUNK_BYTES, CHUNK_BYTES)):
                raise errors.BackupDamaged(backup_id, f"what is from {number * CHUNK_BYTES} on was never stored")
    return len(index)


def remove(vault: Cluster, chain: str, backup_id: str) -> None:
    """Remove a backup; no trace of it is fine."""
    vault.remove_snapshot(chain, snap_of(backup_id))
    vault.drop_object(_object_of(backup_id))


def remove_chain(vault: Cluster, chain: str) -> str | None:
    """Put a chain without known backups into the trash, or find it there; its id for `purge`, None if there is none.

    One with further backups stays: their records may be all that somebody has left of a lost database.
    """
    with contextlib.suppress(errors.ImageNotFound):
        if vault.snapshots(chain):
            return None
    return vault.trash(chain)
