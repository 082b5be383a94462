# SPDX-License-Identifier: Apache-2.0
"""Who asks (`Context`) and the world that the answer comes from (`World`): the first argument of every rule."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cinderlite import errors
from cinderlite.ceph import namespaces
from cinderlite.db.session import Database
from cinderlite.jobs import Jobs

if TYPE_CHECKING:
    from cinderlite.ceph.cluster import Cluster
    from cinderlite.db import models
    from cinderlite.guests import Hypervisor
    from cinderlite.images import Images
    from cinderlite.keys import KeyStore
    from cinderlite.keys.master import MasterKey


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The configured values that rules need; sizes in GiB, times in seconds, -1 for no limit."""

    host: str
    availability_zone: str
    zone_fallback: bool
    default_volume_type: str
    default_group_type: str | None
    quotas: dict[str, int]
    per_volume_gigabytes: int
    max_page: int
    lease: float
    batch: int
    service_down_after: float
    detach_wait: float
    guest_gone_after: float
    max_attachments: int
    #: Seconds for which Ceph keeps out the clients of a server that lost a volume by force.
    fence_for: int = 30 * 86400
    #: Seconds after which a detach is given up that the guest refuses; 0 for never.
    give_up_detach_after: float = 0.0
    #: Seconds after which a process ends for a call to Ceph that was given up and goes on; 0 for never.
    stuck_after: float = 0.0
    #: Seconds for which a deleted volume can be brought back.
    retention: float = 0.0
    #: Bytes a second that a guest copies of a volume that moves; 0 for no limit.
    copy_speed: int = 0
    #: Seconds for which guests may be frozen while a snapshot is taken; 0: they are not.
    freeze_for: float = 0.0
    #: Whether a volume with snapshots can be deleted without them.
    snapshots_outlive: bool = False
    #: The project and user that own what the service keeps for itself; without both it keeps nothing.
    internal_project: str = ""
    internal_user: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageCache:
    """How much a pool's cache of images may hold; 0 for no limit."""

    max_gib: int
    max_count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """One pool of one cluster, as a section of the configuration describes it; `name` is the section's."""

    name: str
    host: str
    volume_backend_name: str
    availability_zone: str
    cluster: Cluster
    reserved_percentage: int
    max_over_subscription_ratio: float
    cluster_name: str
    #: The libvirt secret that holds the key; None for the cluster's fsid.
    secret_uuid: str | None
    #: A clone with more images below it is made whole in the background.
    max_clone_depth: int
    #: None: images that were copied are not kept.
    image_cache: ImageCache | None = None
    #: Whether each project's new images are in an RBD namespace of its own.
    isolates: bool = False
    #: As whom guests open images, a word of `rbd_attachment_keys`.
    attachment_keys: str = "auto"

    @property
    def pool(self) -> str:
        """Its name as Cinder writes it in volumes: host@backend#pool."""
        return f"{self.host}@{self.name}#{self.volume_backend_name}"

    def namespace_for(self, project_id: str) -> str:
        """Where a new image of a project belongs; "" for the pool's default namespace."""
        return namespaces.of_project(project_id) if self.isolates else ""


@dataclasses.dataclass(slots=True)
class Room:
    """How much a pool holds in GiB, as Ceph said it at `read` (monotonic); None for what it did not say.

    `provisioned` is what its images may grow to, with those that were accepted since.
    """

    read: float
    total: float | None
    free: float | None
    provisioned: float


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """What the service works on: the database, the back ends, the guests. One a process, made after the fork."""

    settings: Settings
    db: Database
    #: By name, in the order of enabled_backends.
    backends: Mapping[str, Backend]
    guests: Hypervisor
    jobs: Jobs
    #: For making images whole, apart from `jobs`: nobody's work ever waits for that.
    flattening: Jobs
    #: The cluster with the backup pool, if there are to be backups.
    backup_cluster: Cluster | None = None
    #: None: there is no image service.
    images: Images | None = None
    #: None: no volume can be encrypted.
    keys: KeyStore | None = None
    #: Signs the records that Ceph keeps; None: they are not signed.
    signing: MasterKey | None = None
    #: What each back end was last seen to hold, by its name.
    room: dict[str, Room] = dataclasses.field(default_factory=dict)
    #: Set to make the reconciler look now rather than at its next turn.
    wake: threading.Event = dataclasses.field(default_factory=threading.Event)

    def backend(self, pool: str) -> Backend:
        """The back end of a volume's `host`, such as host@ceph#ceph. Raises BackendMissing."""
        name = pool.partition("@")[2].partition("#")[0]
        if name not in self.backends:
            raise errors.BackendMissing(name)
        return self.backends[name]

    def cluster(self, pool: str) -> Cluster:
        """The cluster behind a `host`, in the pool's default namespace. Raises BackendMissing."""
        return self.backend(pool).cluster

    def cluster_of(self, volume: models.Volume) -> Cluster:
        """Where a volume's image is: the cluster behind its `host`, in its namespace. Raises BackendMissing."""
        return self.cluster(volume.host).within(volume.namespace)


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """One request: the caller, with Keystone's ids and role names, and the world."""

    world: World
    user_id: str
    project_id: str
    roles: frozenset[str]
    request_id: str
    #: The service's own roles, from the X-Service-Token of a service that calls on a user's behalf.
    service_roles: frozenset[str] = frozenset()
    is_admin: bool = False
    #: Whether another service asks, such as a Nova, for itself or with its token beside the user's.
    is_service: bool = False
    #: What the caller logged in with, if another service can be asked with it on his behalf.
    token: str | None = dataclasses.field(default=None, repr=False)

    @property
    def settings(self) -> Settings:
        """The configured values."""
        return self.world.settings
