# SPDX-License-Identifier: Apache-2.0
"""Whether each pool is as the service needs it, asked and tried with the service's own cephx user.

What a newcomer gets wrong: rights are not proved by what the monitors say. So a small image of a name that nobody else
has goes through everything that the service does with images: it is made, written to, snapshotted, cloned, put into
the trash and removed from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
import uuid
from collections.abc import Iterator
from typing import Any

from cinderlite import errors
from cinderlite.ceph import rights
from cinderlite.ceph.cluster import Cluster, Facts
from cinderlite.context import World
from cinderlite.core import cephx_users

#: How bad it is: as it should be, worth knowing, to be put right.
OK, HINT, PROBLEM = "ok", "hint", "problem"
#: What helps where pool, user or rights are missing; it leaves what is there.
_BOOTSTRAP = "cinderlite-manage ceph bootstrap makes what is missing, or tells what changes the user's rights"
PREFIX = "cinderlite-check-"
#: Where clones are tried if those of projects are in namespaces; empty, it stays. No project's is called so.
NAMESPACE = "cinderlite.check"
_SNAP = "snap"
_SIZE = 4 * 2**20
#: The oldest release that is tested. Releases go by the alphabet.
_OLDEST = "pacific"
#: The first release whose clients open clones of the format that the service makes.
_CLONES = "mimic"
#: Shares of a pool at which to think of more disks, and at which it is late.
_FILLING, _FULL = 0.75, 0.85
#: Seconds that clocks may differ; tickets of cephx fail far later, but logs cannot be compared.
_CLOCK = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where all is well."""

    level: str
    backend: str
    subject: str
    what: str
    remedy: str = ""

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return f"{self.backend}: {self.level}: {self.subject}: {self.what}" + (
            f" -> {self.remedy}" if self.remedy else ""
        )


def check(world: World) -> Iterator[Finding]:
    """Look at every back end and at the backup pool."""
    clusters = {name: one.cluster for name, one in world.backends.items()}
    if world.backup_cluster is not None:
        clusters["backups"] = world.backup_cluster
    apart = {one.name for one in world.backends.values() if one.isolates}
    users = {(one.cluster.conffile, one.cluster.user): one.attachment_keys for one in world.backends.values()}
    for name, cluster in clusters.items():
        alike = {one.pool for one in clusters.values() if (one.conffile, one.user) == (cluster.conffile, cluster.user)}
        place = cluster.within(NAMESPACE) if name in apart else cluster
        yield from _Checkup(name, cluster, place, alike, users.get((cluster.conffile, cluster.user))).findings()


class _Checkup:
    """One pool; `place` is where clones are tried, `alike` are the pools that its user has to have rights on.

    `users` is which attachments get cephx users of their own, a word of rbd_attachment_keys; None: nothing is attached.
    """

    def __init__(self, name: str, cluster: Cluster, place: Cluster, alike: set[str], users: str | None) -> None:
        self._name = name
        self._cluster = cluster
        self._place = place
        self._alike = alike
        self._users = users

    def findings(self) -> Iterator[Finding]:
        cluster = self._cluster
        try:
            seconds = cluster.ping()
            yield self._good("connection", f"pool {cluster.pool} answers in {seconds * 1000:.0f} ms")
            facts = cluster.examine(self._alike)
        except (errors.Unavailable, errors.CephError) as error:
            remedy = f"see that Ceph runs, and that {cluster.conffile} and the keyring are right; {_BOOTSTRAP}"
            yield self._bad("connection", str(error), remedy)
            return
        yield self._release(facts)
        yield from self._pool(facts)
        yield from self._room(facts)
        yield from self._rights(facts)
        for path in facts.open_files:
            yield self._bad("keyring", f"others may read {path}, which holds the service's key", f"chmod 640 {path}")
        yield from self._makes_users()
        yield from self._clones(facts)
        if "MON_CLOCK_SKEW" in facts.health:
            yield self._bad("clocks", "the monitors' differ", "run chrony on all of them; see ceph health detail")
        yield from self._try()

    def _release(self, facts: Facts) -> Finding:
        if facts.release < _OLDEST:
            return self._bad("release", f"the OSDs are {facts.release}", f"upgrade Ceph to {_OLDEST} (16) or later")
        return self._good("release", f"the OSDs are {facts.release} or later")

    def _pool(self, facts: Facts) -> Iterator[Finding]:
        pool = self._cluster.pool
        if facts.erasure_coded:
            remedy = "use a replicated pool, and this one as rbd_default_data_pool"
            yield self._bad("pool", f"{pool} is erasure-coded and cannot hold images' headers", remedy)
        if not (facts.initialised and facts.application):
            yield self._bad("pool", f"{pool} is not initialised for RBD", f"rbd pool init {pool}")
        elif not facts.erasure_coded:
            yield self._good("pool", f"{pool} is initialised for RBD")

    def _room(self, facts: Facts) -> Iterator[Finding]:
        try:
            seen = self._cluster.capacity()
        except errors.CephUnavailable as error:
            yield self._hint("room", str(error), "see that a manager runs: ceph mgr stat")
            return
        share = seen.used_bytes / seen.total_bytes if seen.total_bytes else 1.0
        what = f"{share:.0%} of the pool is used, {seen.free_bytes / 2**30:.1f} GiB are free"
        if facts.full or share >= _FULL:
            flags = f" ({', '.join(facts.full)})" if facts.full else ""
            yield self._bad("room", what + flags, "add OSDs or delete volumes; see ceph df and ceph health detail")
        elif share >= _FILLING:
            yield self._hint("room", what, "plan for more OSDs; see ceph df")
        else:
            yield self._good("room", what)

    def _rights(self, facts: Facts) -> Iterator[Finding]:
        caps = self._caps()
        if not facts.may_blocklist:
            what = "it may not cut off dead clients, so disks would stay locked after a host's crash"
            yield self._bad("rights", what, caps)
        if facts.reads_keys:
            yield self._bad("rights", "it may read the keys of all cephx users", caps)
        if facts.writable_elsewhere:
            what = f"it may also write to {', '.join(facts.writable_elsewhere)}"
            yield self._bad("rights", what, f"{caps}; a pool that is only cloned from needs profile rbd-read-only")
        if facts.may_blocklist and not facts.reads_keys and not facts.writable_elsewhere:
            yield self._good("rights", "no more than profile rbd on its pools, as far as that can be tried")

    def _makes_users(self) -> Iterator[Finding]:
        if self._users in (None, cephx_users.SERVICE):
            return
        if self._cluster.makes_users():
            whose = "namespace of a project" if self._users == cephx_users.PROJECT else "attachment"
            yield self._good("users", f"it may make a cephx user for each {whose}")
            return
        what = "it may not make cephx users, so servers open all volumes with its own key"
        level = HINT if self._users == cephx_users.AUTO else PROBLEM
        yield Finding(level, self._name, "users", what, f"{self._caps()}; then start the service anew")

    def _caps(self) -> str:
        if self._cluster.user in (None, "admin"):
            return f"give the service a user of its own (rbd_user): {_BOOTSTRAP}"
        makes_users = self._users not in (None, cephx_users.SERVICE)
        caps = rights.of_service(self._cluster.user, sorted(self._alike), makes_users=makes_users)
        return shlex.join(["ceph", "auth", "caps", rights.entity(self._cluster.user), *caps])

    def _clones(self, facts: Facts) -> Iterator[Finding]:
        if facts.clone_format not in (None, "2"):
            remedy = f"rbd config pool remove {self._cluster.pool} rbd_default_clone_format"
            yield self._bad("clones", f"the pool asks for clones of format {facts.clone_format}", remedy)
        elif facts.min_compat_client < _CLONES:
            what = f"clients from {facts.min_compat_client} on are let in, but clones need {_CLONES} (13) or later"
            yield self._hint("clones", what, f"ceph osd set-require-min-compat-client {_CLONES}")
        else:
            yield self._good("clones", "every client that is let in can open them")

    def _try(self) -> Iterator[Finding]:
        name = PREFIX + str(uuid.uuid4())
        trial = _Trial(self._cluster, self._place, name)
        try:
            trial.run()
        except (errors.Unavailable, errors.BackendError) as error:
            with contextlib.suppress(errors.Unavailable, errors.BackendError):  # What stays is told of below.
                trial.remove()
            yield self._bad("trial", f"{trial.doing} an image failed: {error}", self._caps())
        else:
            yield self._good("trial", "an image was made, written, snapshotted, cloned and removed")
        yield from self._clock(trial.ahead)
        yield from self._left_over()

    def _clock(self, ahead: float | None) -> Iterator[Finding]:
        if ahead is not None and abs(ahead) > _CLOCK:
            what = f"the OSDs' clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
            yield self._bad("clocks", what, "run chrony on all of them")
        elif ahead is not None:
            yield self._good("clocks", "the OSDs' and this machine's agree")

    def _left_over(self) -> Iterator[Finding]:
        """What an earlier check did not come to remove; it may be another one that is just at work."""
        rbd = f"rbd -c {self._cluster.conffile}"
        left = {}
        try:
            for one in {one.place: one for one in (self._cluster, self._place)}.values():
                for name in one.images(PREFIX):
                    left[name] = f"{rbd} snap purge {one.place}/{name}; {rbd} rm {one.place}/{name}"
                for image_id, name in one.trashed():
                    if name.startswith(PREFIX):
                        left[name] = f"{rbd} trash rm {one.place}/{image_id}"
        except (errors.Unavailable, errors.CephError) as error:
            yield self._bad("trial", str(error), self._caps())
            return
        for name, command in sorted(left.items()):
            yield self._hint("trial", f"{name} is left of a check", command)

    def _good(self, subject: str, what: str) -> Finding:
        return Finding(OK, self._name, subject, what)

    def _hint(self, subject: str, what: str, remedy: str) -> Finding:
        return Finding(HINT, self._name, subject, what, remedy)

    def _bad(self, subject: str, what: str, remedy: str) -> Finding:
        return Finding(PROBLEM, self._name, subject, what, remedy)


class _Trial:
    """An image that goes through everything; `doing` is the step that it is at, `ahead` how much a clock is, in s."""

    def __init__(self, cluster: Cluster, place: Cluster, name: str) -> None:
        self._cluster = cluster
        self._place = place
        self._name = name
        self._copy = f"{name}-clone"
        self.doing = "creating"
        self.ahead: float | None = None

    def run(self) -> None:
        began = time.time()
        self._cluster.create(self._name, _SIZE)
        made, ended = self._cluster.created(self._name), time.time()
        self.ahead = max(made - ended, 0.0) or min(made - began, 0.0)
        self.doing = "writing"
        with self._cluster.opened(self._name, write=True) as image:
            image.write(0, b"cinderlite")
        self.doing = "taking a snapshot of"
        self._cluster.snapshot(self._name, _SNAP)
        self.doing = "cloning"
        self._place.clone(self._name, _SNAP, self._copy, _SIZE, source=self._cluster)
        self.doing = "removing"
        self.remove()

    def remove(self) -> None:
        for place, name, snaps in ((self._place, self._copy, ()), (self._cluster, self._name, (_SNAP,))):
            image_id = place.trash(name)
            if image_id is not None and not place.purge(image_id, snaps):
                raise errors.CephUnavailable(f"{name} stays in the trash, for a client holds it")
