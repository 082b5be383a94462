# SPDX-License-Identifier: Apache-2.0
"""A cluster in dicts: what `cinderlite.ceph.cluster.Cluster` shows, without Ceph.

It records no calls: tests look at its `stored` images and its `bin`. What a newcomer gets wrong first: a rule added
here alone proves nothing. `tests/contract/test_cluster.py` runs on this one and on a real cluster; it goes there first.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from cinderlite import errors, jobs
from cinderlite.ceph.cluster import Capacity, Cluster, Facts, HeldImage, Outline, Portrait
from cinderlite.ceph.data import CHUNK_BYTES, OpenImage
from cinderlite.ceph.images import OPTION, ImageInfo, SnapshotInfo, options
from cinderlite.ceph.look import GROUP, USER, Relative, Snap

_TOTAL = 100 * 2**30


@dataclasses.dataclass(frozen=True)
class FakeUser:
    """A cephx user for one image, or for all of a namespace."""

    image_id: str | None
    namespace: str
    read_only: bool = False
    key: str = dataclasses.field(default="", repr=False)


class FakeCluster(Cluster):
    """Knobs: `down` refuses everything, `stuck` lets calls on images begin and not end before `release()`.

    `watchers` are the foreign clients by image name, `children` the ids of images in the trash that clones need. `life`
    is called right before and right after everything that changes something: a process may end there by raising.
    """

    def __init__(self, *, pool: str = "volumes", user: str | None = "cinderlite") -> None:
        # Not Cluster's own: there is nothing to connect, and no threads are wanted.
        self.pool = pool
        self.namespace = ""
        #: namespace → the images there
        self.spaces: dict[str, FakeCluster] = {}
        self.user = user
        self.conffile = "/etc/ceph/ceph.conf"
        self.down = False
        self.stuck = False
        self.life: Callable[[], None] = lambda: None
        self.total_bytes = self.free_bytes = _TOTAL
        #: Whether the manager has figures of the pool already.
        self.statistics = True
        self.watchers: dict[str, list[str]] = {}
        #: those of them that died long ago, and are counted until they are looked at anew
        self.phantoms: set[str] = set()
        self.children: set[str] = set()
        #: name → (id, bytes)
        self.stored: dict[str, tuple[str, int]] = {}
        #: id of an image → snapshot → (bytes, the writes that it holds)
        self.snaps: dict[str, dict[str, tuple[int, str]]] = {}
        #: snapshots of several images at one moment, which stand among `snaps` too
        self.group_snaps: set[str] = set()
        #: id of a clone → id of its parent
        self.parents: dict[str, str] = {}
        #: id of an image → what stands for its data
        self.data: dict[str, str] = {}
        #: the pools of the same cluster beside this one
        self.others: dict[str, FakeCluster] = {}
        #: id of an image → what was noted at it
        self.notes: dict[str, dict[str, str]] = {}
        #: plain objects of the pool
        self.objects: dict[str, bytes] = {}
        #: name of an object → its entries
        self.omaps: dict[str, dict[str, bytes]] = {}
        #: ids of images without an exclusive lock
        self.shared: set[str] = set()
        #: id → former name, oldest first
        self.bin: dict[str, str] = {}
        #: name of an image that is on its way to another pool → how far it is
        self.migrations: dict[str, str] = {}
        #: what an examination finds
        self.facts = Facts("pacific", "mimic", None, False, True, True, [], [], True, False, [], [])
        #: seconds that its clock is ahead of ours
        self.clock = 0.0
        #: id of an image in the trash → bytes
        self.resting: dict[str, int] = {}
        #: what happens to the image of that name while it is being made whole
        self.meanwhile: Callable[[str], object] = lambda _name: None
        self.addresses = frozenset({"192.0.2.1:0/1"})
        #: address → the seconds that it was fenced for
        self.fences: dict[str, int] = {}
        self.monitor_map = [("127.0.0.1", 6789)]
        #: whether its user may make others, and those that there are: name → (id of the image, or namespace; key; note)
        self.may_make_users = True
        self.made_users: dict[str, FakeUser] = {}
        #: names that stand in the list of users, from right before there is one until right after
        self.listed_users: dict[str, bytes] = {}
        self.keys_made = 0
        self.base64_key: str | None = "AQBmYWtlIGtleSBub3QgYSBzZWNyZXQgYXQgYWxsIQ=="
        self.cluster_id = str(uuid.UUID(int=1))
        self._lock = threading.Lock()
        self._in_doubt: dict[str, tuple[Callable[[], Any], concurrent.futures.Future[Any], float]] = {}

    def __repr__(self) -> str:
        return f"<FakeCluster {self.place} user={self.user}>"

    def within(self, namespace: str) -> FakeCluster:
        """The images of a namespace; everything else is the pool's, and is set there."""
        if not namespace:
            return self
        return self.spaces.setdefault(namespace, FakeNamespace(self, namespace))

    def namespaces(self) -> list[str]:
        self.check()
        return sorted(self.spaces)

    def _everywhere(self) -> Iterator[FakeCluster]:
        """All namespaces of this pool and of those beside it."""
        for one in {id(one): one for one in (self.within(""), *self.others.values())}.values():
            yield one
            yield from one.spaces.values()

    def release(self) -> None:
        """End every stuck call, with its effect, in the order of their begin."""
        self.stuck = False
        for subject in list(self._in_doubt):
            step, future, _ = self._in_doubt.pop(subject)
            try:
                result = step()
            except errors.CephError as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    def check(self) -> None:
        if self.down:
            raise errors.CephUnavailable("the fake is down")

    def ping(self, seconds: float | None = None) -> float:
        del seconds
        self.check()
        return 0.0

    def overdue(self) -> float:
        return max((time.monotonic() - since for _, _, since in self._in_doubt.values()), default=0.0)

    def create(self, name: str, size_bytes: int) -> None:
        def step() -> None:
            _, found = self.stored.setdefault(name, (uuid.uuid4().hex[:12], size_bytes))
            if found != size_bytes:
                raise errors.ImageExists(name)

        self._change(name, step)

    def write_head(self, name: str, data: bytes) -> None:
        def step() -> None:
            self._look(name)
            FakeOpenImage(self, name, None).write(0, data)

        self._do(name, step)

    def info(self, name: str) -> ImageInfo:
        info: ImageInfo = self._do(name, lambda: self._look(name))
        return info

    def hold(self, name: str) -> HeldImage:
        self.info(name)
        return HeldImage(None, lambda _: self.info(name).watchers, lambda: None)

    def look_anew(self, name: str) -> None:
        def step() -> None:
            self.watchers[name] = [one for one in self.watchers.get(name, ()) if one not in self.phantoms]

        self._do(name, step)

    def trash(self, name: str, besides: AbstractSet[str] = frozenset(), *, keep_seconds: int = 0) -> str | None:
        del keep_seconds

        def step() -> str | None:
            if name not in self.stored:
                ids = [image_id for image_id, former in self.bin.items() if former == name]
                return ids[-1] if ids else None
            found = self._look(name)
            if strangers := sorted(set(found.watchers) - besides):
                raise errors.ImageBusy(name, ", ".join(strangers))
            self.resting[found.id] = self.stored.pop(name)[1]
            self.bin[found.id] = name
            return found.id

        image_id: str | None = self._change(name, step)
        return image_id

    def purge(self, image_id: str, snaps: Sequence[str] = ()) -> bool:
        def step() -> bool:
            name = self.bin.get(image_id)
            if name is not None and self.watchers.get(name):
                return False
            held = self.snaps.get(image_id, {})
            for snap in [one for one in held if one in snaps or one.endswith(".clone_snap")]:
                del held[snap]
            if image_id in self.children or self.snaps.get(image_id) or self._has_clones(image_id):
                raise errors.ImageBusy(image_id, "its snapshots or clones")
            self.bin.pop(image_id, None)
            self.resting.pop(image_id, None)
            self.parents.pop(image_id, None)
            return True

        return bool(self._change(image_id, step))

    def restore(self, image_id: str, name: str) -> None:
        def step() -> None:
            if name in self.stored and self.stored[name][0] != image_id:
                raise errors.ImageExists(name)
            if name in self.stored:
                return
            if image_id not in self.bin:
                raise errors.ImageNotFound(name)
            del self.bin[image_id]
            self.stored[name] = image_id, self.resting.pop(image_id)

        self._change(name, step)

    def depth(self, name: str, most: int) -> int:
        def step() -> int:
            parents = {child: above for pool in (*self.others.values(), self) for child, above in pool.parents.items()}
            found, image_id = 0, self._look(name).id
            while image_id in parents and found < most:
                found, image_id = found + 1, parents[image_id]
            return found

        return int(self._do(name, step))

    def flatten(
        self, name: str, begin: Callable[[AbstractSet[str]], None], progress: Callable[[int, int], None]
    ) -> None:
        self.check()
        begin(self.addresses)
        found = self._look(name)
        if found.id in self.parents:
            for done in range(2):
                progress(done, 2)
                self.meanwhile(name)
                jobs.checkpoint()
            self.parents.pop(found.id)

    def make_whole(self, name: str) -> None:
        self._change(name, lambda: self.parents.pop(self._look(name).id, None))

    def grow(self, name: str, size_bytes: int) -> None:
        def step() -> None:
            found = self._look(name)
            self.stored[name] = found.id, max(found.size_bytes, size_bytes)

        self._change(name, step)

    def limit(self, name: str, limits: Mapping[str, int]) -> None:
        def step() -> None:
            held = self.notes.setdefault(self._look(name).id, {})
            for key in [key for key in held if key.startswith(f"{OPTION}rbd_qos_")]:
                del held[key]
            held |= {OPTION + key: value for key, value in options(limits).items()}

        self._do(name, step)

    def limits(self, name: str) -> dict[str, str]:
        """What `limit` left at an image."""
        held = self.notes.get(self._look(name).id, {})
        return {key.removeprefix(OPTION): value for key, value in held.items() if key.startswith(OPTION)}

    def share(self, name: str) -> None:
        self._change(name, lambda: self.shared.add(self._look(name).id))

    def rename(self, name: str, new: str) -> None:
        def step() -> None:
            if name in self.stored and new in self.stored:
                raise errors.ImageExists(name)
            if name in self.stored:
                self.stored[new] = self.stored.pop(name)
            self._look(new)

        self._change(name, step)

    def snapshot(self, name: str, snap: str) -> None:
        def step() -> None:
            found = self._look(name)
            held = found.size_bytes, self.data.get(found.id, "")
            self.snaps.setdefault(found.id, {}).setdefault(snap, held)

        self._change(name, step)

    def remove_snapshot(self, name: str, snap: str) -> None:
        def step() -> None:
            if name in self.stored:
                self.snaps.get(self._look(name).id, {}).pop(snap, None)

        self._change(name, step)

    def rename_snapshot(self, name: str, snap: str, new: str) -> None:
        def step() -> None:
            held = self.snaps.get(self._look(name).id, {})
            if new not in held:
                if snap not in held:
                    raise errors.ImageNotFound(f"{name}@{snap}")
                held[new] = held.pop(snap)

        self._change(name, step)

    def snapshots(self, name: str) -> list[SnapshotInfo]:
        def step() -> list[SnapshotInfo]:
            held = self.snaps.get(self._look(name).id, {})
            return [SnapshotInfo(snap, size) for snap, (size, _) in held.items() if snap not in self.group_snaps]

        found: list[SnapshotInfo] = self._do(name, step)
        return found

    def outline(self, name: str) -> Outline:
        def step() -> Outline:
            found = self._look(name)
            return Outline(found.id, found.size_bytes, self._all_snaps(found.id))

        seen: Outline = self._do(name, step)
        return seen

    def portrait(self, name: str, image_id: str | None = None) -> Portrait:
        def step() -> Portrait:
            if image_id is None:
                found = self._look(name)
            elif image_id in self.bin:
                found = ImageInfo(image_id, 0, [])
            elif (self.stored.get(name) or ("",))[0] == image_id:
                found = self._look(name)
            else:
                raise errors.ImageNotFound(name)
            own = "" if found.id in self.parents else self.data.get(found.id, "")
            features = (
                ["layering"] if found.id in self.shared else ["layering", "exclusive-lock", "object-map", "fast-diff"]
            )
            return Portrait(
                id=found.id,
                size_bytes=found.size_bytes,
                used_bytes=None if found.id in self.shared else sum(_used(own.encode("latin-1"))),
                features=features,
                flags=[],
                parents=list(self._above(found.id)),
                children=[self._relative(child) for child, above in self.parents.items() if above == found.id],
                snapshots=self._all_snaps(found.id),
                watchers=found.watchers,
                lock_owners=found.watchers[:1],
            )

        seen: Portrait = self._do(name, step)
        return seen

    def created(self, name: str) -> float:
        self._do(name, lambda: self._look(name))
        return time.time() + self.clock

    def migration(self, name: str) -> str | None:
        self.check()
        return self.migrations.get(name)

    def examine(self, known: AbstractSet[str]) -> Facts:
        self.check()
        return dataclasses.replace(
            self.facts, writable_elsewhere=[pool for pool in self.facts.writable_elsewhere if pool not in known]
        )

    def _all_snaps(self, image_id: str) -> list[Snap]:
        return [
            Snap(
                number,
                name,
                GROUP if name in self.group_snaps else USER,
                size,
                name if name in self.group_snaps else None,
            )
            for number, (name, (size, _)) in enumerate(self.snaps.get(image_id, {}).items(), start=1)
        ]

    def _relative(self, image_id: str) -> Relative:
        for one in self._everywhere():
            names = {stored: name for name, (stored, _) in one.stored.items()} | one.bin
            if image_id in names:
                name, trashed = names[image_id], image_id in one.bin
                return Relative(one.pool, name, image_id, trashed=trashed, namespace=one.namespace)
        raise errors.ImageNotFound(image_id)

    def _above(self, image_id: str) -> Iterator[Relative]:
        while image_id in self.parents:
            image_id = self.parents[image_id]
            yield self._relative(image_id)

    def clone(self, parent: str, snap: str, name: str, size_bytes: int, *, source: Cluster | None = None) -> None:
        self._change(name, lambda: self._clone(parent, snap, name, size_bytes, source))

    def size_elsewhere(self, pool: str, name: str, snap: str) -> int:
        def step() -> int:
            other = self.others.get(pool)
            if other is None or name not in other.stored or snap not in other.snaps.get(other.stored[name][0], {}):
                raise errors.ImageNotFound(name)
            return other.snaps[other.stored[name][0]][snap][0]

        return int(self._do(name, step))

    def clone_elsewhere(self, pool: str, parent: str, snap: str, name: str, size_bytes: int) -> None:
        size = self.size_elsewhere(pool, parent, snap)

        def step() -> None:
            above = self.others[pool].stored[parent][0]
            if name not in self.stored:
                made = uuid.uuid4().hex[:12]
                self.stored[name] = made, max(size, size_bytes)
                self.parents[made] = above
                self.data[made] = self.others[pool].snaps[above][snap][1]

        self._change(name, step)

    def copy(self, parent: str, name: str, size_bytes: int, *, source: Cluster | None = None) -> None:
        snap = f"{name}.clone_snap"
        there = self.within(self.namespace if source is None else source.namespace)

        def freeze() -> None:
            if name not in self.stored:
                found = there._look(parent)
                held = found.size_bytes, self.data.get(found.id, "")
                self.snaps.setdefault(found.id, {}).setdefault(snap, held)

        def tidy() -> None:
            if parent in there.stored:
                self.snaps.get(there._look(parent).id, {}).pop(snap, None)

        self._change(name, freeze)
        self._change(name, lambda: self._clone(parent, snap, name, size_bytes, there))
        self.stored[name] = self.stored[name][0], size_bytes
        self._change(name, tidy)

    def roll_back(self, name: str, snap: str) -> None:
        def step() -> None:
            found = self._look(name)
            if snap not in self.snaps.get(found.id, {}) or snap in self.group_snaps:
                raise errors.ImageNotFound(f"{name}@{snap}")
            size, data = self.snaps[found.id][snap]
            self.stored[name] = found.id, size
            self.data[found.id] = data

        self._change(name, step)

    def move(self, name: str, pool: str, namespace: str = "") -> None:
        def step() -> None:
            target = (self if pool == self.pool else self.others[pool]).within(namespace)
            if name in target.stored:
                return
            found = self._look(name)
            if found.watchers:
                raise errors.ImageBusy(name, "another client")
            target.stored[name] = self.stored.pop(name)
            target.snaps[found.id] = self.snaps.pop(found.id, {})
            target.data[found.id] = self.data.pop(found.id, "")
            target.notes[found.id] = self.notes.pop(found.id, {})
            if found.id in self.parents:
                target.parents[found.id] = self.parents.pop(found.id)

        self._change(name, step)

    def group_snapshot(self, group: str, names: Sequence[str]) -> None:
        def step() -> None:
            if group in self.group_snaps:
                return
            for found in [self._look(name) for name in names]:
                held = found.size_bytes, self.data.get(found.id, "")
                self.snaps.setdefault(found.id, {})[group] = held
            self.group_snaps.add(group)

        self._change(group, step)

    def remove_group_snapshot(self, group: str, names: Sequence[str]) -> None:
        del names

        def step() -> None:
            for held in self.snaps.values():
                held.pop(group, None)
            self.group_snaps.discard(group)

        self._change(group, step)

    @contextlib.contextmanager
    def opened(self, name: str, snap: str | None = None, *, write: bool = False) -> Iterator[FakeOpenImage]:
        del write
        self.check()
        found = self._look(name)
        if snap is not None and snap not in self.snaps.get(found.id, {}):
            raise errors.ImageNotFound(name)
        yield FakeOpenImage(self, name, snap)

    def put_object(self, name: str, data: bytes) -> None:
        self._change(name, lambda: self.objects.update({name: data}))

    def get_object(self, name: str) -> bytes:
        self.check()
        return self.objects.get(name, b"")

    def drop_object(self, name: str) -> None:
        self._change(name, lambda: self.objects.pop(name, None))

    def put_entries(self, name: str, entries: Mapping[str, bytes], gone: Collection[str] = ()) -> None:
        def step() -> None:
            held = {**self.omaps.get(name, {}), **entries}
            self.omaps[name] = {key: value for key, value in held.items() if key not in gone}

        self._change(name, step)

    def has_entry(self, name: str, key: str) -> bool:
        self.check()
        return key in self.omaps.get(name, {})

    def entries(self, name: str) -> dict[str, bytes]:
        self.check()
        return dict(self.omaps.get(name, {}))

    def _has_clones(self, image_id: str) -> bool:
        return any(image_id in pool.parents.values() for pool in (self, *self.others.values()))

    def _clone(self, parent: str, snap: str, name: str, size_bytes: int, source: Cluster | None) -> None:
        if name in self.stored:
            return  # Of an earlier try: its parent may be gone by now.
        above = self.within(self.namespace if source is None else source.namespace)._look(parent)
        if snap not in self.snaps.get(above.id, {}) or snap in self.group_snaps:
            raise errors.ImageNotFound(name)
        size, data = self.snaps[above.id][snap]
        made = uuid.uuid4().hex[:12]
        self.stored[name] = made, max(size, size_bytes)
        self.parents[made] = above.id
        self.data[made] = data

    def images(self, prefix: str) -> set[str]:
        self.check()
        return {name for name in self.stored if name.startswith(prefix)}

    def trashed(self) -> list[tuple[str, str]]:
        self.check()
        return list(self.bin.items())

    def makes_users(self) -> bool:
        self.check()
        return self.may_make_users and self.base64_key is not None

    def note_user(self, user: str, note: bytes) -> None:
        self._change(user, lambda: self.listed_users.update({user: note}))

    def user_of_image(
        self, name: str, user: str, *, read_only: bool, flattens: bool, held: HeldImage | None = None
    ) -> str:
        del flattens, held
        found: ImageInfo = self._do(name, lambda: self._look(name))
        return self._user(FakeUser(found.id, self.namespace, read_only=read_only), user)

    def user_of_namespace(self, user: str, note: bytes) -> str:
        self.note_user(user, note)
        return self._user(FakeUser(None, self.namespace), user)

    def _user(self, made: FakeUser, user: str) -> str:
        def step() -> str:
            if not self.may_make_users:
                raise errors.UsersRefused(user)
            found = self.made_users.get(user)
            if found is None:
                self.keys_made += 1
            key = _key(self.keys_made) if found is None else found.key
            self.made_users[user] = dataclasses.replace(made, key=key)
            return key

        return str(self._change(user, step))

    def users(self) -> dict[str, bytes]:
        self.check()
        return dict(self.listed_users)

    def remove_user(self, user: str, *, for_good: bool = True) -> None:
        def remove() -> None:
            if not self.may_make_users:
                raise errors.UsersRefused(user)
            self.made_users.pop(user, None)

        self._change(user, remove)
        if for_good:
            self._change(user, lambda: self.listed_users.pop(user, None))

    def opens(self, user: str | None, key: str | None, name: str, *, write: bool = False) -> bool:
        """Whether somebody can open an image, if that is a user that was made here; of others nothing is known."""
        if user is None or not user.startswith(f"{self.user}."):
            return True
        found = self.made_users.get(str(user))
        if found is None or found.key != key or found.namespace != self.namespace or (write and found.read_only):
            return False
        return found.image_id is None or name not in self.stored or found.image_id == self.stored[name][0]

    def capacity(self) -> Capacity:
        self.check()
        if not self.statistics:
            raise errors.NoStatistics(self.pool)
        stored = [size for one in (self, *self.spaces.values()) for _, size in one.stored.values()]
        return Capacity(self.total_bytes, self.free_bytes, 0, sum(stored))

    def monitors(self) -> list[tuple[str, int]]:
        self.check()
        return list(self.monitor_map)

    def key(self) -> str | None:
        self.check()
        return self.base64_key

    def clients(self) -> frozenset[str]:
        return self.addresses

    def fence(self, addresses: Collection[str], seconds: int) -> None:
        def step() -> None:
            foreign = frozenset(addresses) - self.addresses
            for one in self._everywhere():
                one.fences |= dict.fromkeys(foreign, seconds)
                for image, clients in one.watchers.items():
                    one.watchers[image] = [client for client in clients if client not in foreign]

        self._change("(the fence)", step)

    def fenced(self) -> frozenset[str]:
        self.check()
        return frozenset(self.fences)

    def fsid(self) -> str:
        self.check()
        return self.cluster_id

    def close(self) -> None:
        self.down = True

    def _look(self, name: str) -> ImageInfo:
        if name not in self.stored:
            raise errors.ImageNotFound(name)
        image_id, size_bytes = self.stored[name]
        return ImageInfo(image_id, size_bytes, sorted(self.watchers.get(name, ())))

    def _do(self, subject: str, step: Callable[[], Any]) -> Any:
        self.check()
        with self._lock:
            if subject in self._in_doubt:
                raise errors.CephUnavailable(f"an earlier call on {subject} has not ended yet")
            if self.stuck:
                pending: concurrent.futures.Future[Any] = concurrent.futures.Future()
                self._in_doubt[subject] = step, pending, time.monotonic()
                raise errors.CephTimeout("the fake is stuck", pending)
            return step()

    def _change(self, subject: str, step: Callable[[], Any]) -> Any:
        """The same for what changes something."""
        self.life()
        result = self._do(subject, step)
        self.life()
        return result


class FakeNamespace(FakeCluster):
    """A namespace of a fake's pool: it has images and a trash of its own, and shows and sets the pool's knobs."""

    _OWN = frozenset({"_whole", "namespace", "stored", "bin", "migrations"})

    def __init__(self, whole: FakeCluster, namespace: str) -> None:
        self._whole = whole
        self.namespace = namespace
        self.stored = {}
        self.bin = {}
        self.migrations = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN or name in vars(FakeCluster):
            super().__setattr__(name, value)
        else:
            setattr(self._whole, name, value)

    def within(self, namespace: str) -> FakeCluster:
        return self._whole.within(namespace)


class FakeOpenImage(OpenImage):
    """An open image of the fake; its data are the Latin-1 text in `FakeCluster.data`, zeros behind that left out."""

    def __init__(self, cluster: FakeCluster, name: str, snap: str | None) -> None:
        self._cluster = cluster
        self._name = name
        self._id = cluster.stored[name][0]
        self._snap = snap

    @property
    def size_bytes(self) -> int:
        if self._snap is not None:
            return self._cluster.snaps[self._id][self._snap][0]
        return self._cluster.stored[self._name][1]

    def _held(self) -> bytes:
        if self._snap is not None:
            return self._cluster.snaps[self._id][self._snap][1].encode("latin-1")
        return self._cluster.data.get(self._id, "").encode("latin-1")

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, max(self.size_bytes - offset, 0))
        return self._held()[offset : offset + length].ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        self._cluster.check()
        self._cluster.life()
        held = self._held()
        now = held[:offset].ljust(offset, b"\0") + data + held[offset + len(data) :]
        self._cluster.data[self._id] = now.rstrip(b"\0").decode("latin-1")

    def zero(self, offset: int, length: int) -> None:
        if offset < len(self._held()):
            self.write(offset, bytes(length))

    def flush(self) -> None:
        self._cluster.check()

    def resize(self, size_bytes: int) -> None:
        self._cluster.life()
        self._cluster.data[self._id] = self._held()[:size_bytes].decode("latin-1")
        self._cluster.stored[self._name] = self._id, size_bytes

    def chunks(self, since: str | None = None) -> list[int] | None:
        snaps = self._cluster.snaps.get(self._id, {})
        before = ""
        if since is not None:
            older = list(snaps) if self._snap is None else list(snaps)[: list(snaps).index(self._snap)]
            if since not in older:
                return None
            before = snaps[since][1]
        now, then = self._held(), before.encode("latin-1")
        longest = max(len(now), len(then))
        pieces = range(-(-longest // CHUNK_BYTES))
        return [one for one in pieces if _piece(now, one) != _piece(then, one)]

    def note(self, key: str) -> str | None:
        return self._cluster.notes.get(self._id, {}).get(key)

    def set_note(self, key: str, value: str) -> None:
        self._cluster.life()
        self._cluster.notes.setdefault(self._id, {})[key] = value


def _key(number: int) -> str:
    return base64.b64encode(b"the %d. key of the fake" % number).decode()


def _piece(data: bytes, number: int) -> bytes:
    return data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES].ljust(CHUNK_BYTES, b"\0")


def _used(data: bytes) -> list[int]:
    pieces = range(-(-len(data) // CHUNK_BYTES))
    return [CHUNK_BYTES for one in pieces if _piece(data, one).strip(b"\0")]
