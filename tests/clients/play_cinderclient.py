# SPDX-License-Identifier: Apache-2.0
"""Calls every method of python-cinderclient's managers against a running service; runs in the clients' environment.

    python -m clients.play_cinderclient '{"image": ID, "foreign": NAME, "second": BACKEND}'

The environment logs in, as an administrator of project demo. Prints in JSON what was called, what never, what failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from cinderclient import base, client, exceptions
from cinderclient.v3 import group_types as group_types_module
from cinderclient.v3 import volume_types as volume_types_module
from keystoneauth1 import http_basic, session

from clients.recording import Recording, until

#: What all managers have: it looks through what `list` brings, or sends nothing.
INHERITED = ("cinderclient.base", "cinderclient.utils", "cinderclient.apiclient.base")
PROJECT = "demo"
SERVER = "6e5e1b6c-7b7e-4a0f-8a2d-0c5d3a8a4f7b"
CONNECTOR = {"host": "store1", "ip": "192.0.2.8", "initiator": "iqn.1993-08.org.debian:01:1", "os_type": "linux"}
CONSISTENT = {"consistent_group_snapshot_enabled": "<is> True"}
REPLICATED = {"group_replication_enabled": "<is> True"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """The client at the newest version, and what the service has for the play."""

    cinder: Any
    seen: Recording
    #: An image of Glance's, an RBD image of nobody's, and the name of a second back end.
    image: str
    foreign: str
    second: str

    def wait(self, made: Any, status: str = "available") -> Any:
        """Wait for something, or what a manager gets by an id, to come to a status; what it is then."""

        def settled() -> Any:
            shown = made.manager.get(made.id)
            assert status.startswith("error") or not shown.status.startswith("error"), f"{shown} is {shown.status}"
            return shown if shown.status == status else None

        return until(settled, f"{made} to be {status}")

    def gone(self, deleted: Any) -> None:
        """Wait for something to be gone."""

        def missing() -> bool:
            try:
                deleted.manager.get(deleted.id)
            except exceptions.NotFound:
                return True
            return False

        until(missing, f"{deleted} to be gone")

    @contextlib.contextmanager
    def volume(self, name: str, size: int = 1, **fields: Any) -> Iterator[Any]:
        """A volume that is gone afterwards."""
        made = self.wait(self.cinder.volumes.create(size, name=name, **fields))
        yield made
        self.cinder.volumes.delete(made)
        self.gone(made)

    def status(self, volume: Any) -> str:
        """The status of a volume now."""
        return str(self.cinder.volumes.get(volume.id).status)

    def pool(self) -> str:
        """The pool of the first back end, as hosts name it."""
        return next(str(one.name) for one in self.cinder.pools.list() if self.second not in one.name)


def host(volume: Any) -> str:
    """Where a volume is."""
    return str(getattr(volume, "os-vol-host-attr:host"))


def volumes(stage: Stage) -> None:
    there = stage.cinder.volumes
    with stage.volume("data", metadata={"a": "b"}) as made:
        assert (made.size, made.name, made.bootable, made.metadata) == (1, "data", "false", {"a": "b"})
        assert [one.id for one in there.list(search_opts={"name": "data"})] == [made.id]
        there.update(made, description="of the shop")
        there.set_metadata(made, {"c": "d", "e": "f"})
        there.delete_metadata(made, ["a"])
        assert there.get(made.id).metadata == {"c": "d", "e": "f"}
        there.update_all_metadata(made, {"g": "h"})
        there.extend(made, 2)
        stage.wait(made)
        there.update_readonly_flag(made, True)
        there.set_bootable(made, True)
        shown = there.get(made.id)
        assert (shown.size, shown.description, shown.bootable) == (2, "of the shop", "true")
        assert shown.metadata == {"g": "h", "readonly": "True"}
        there.set_image_metadata(made, {"os_distro": "debian", "hw_qemu": "yes"})
        there.delete_image_metadata(made, ["hw_qemu"])
        assert there.show_image_metadata(made)[1]["metadata"] == {"os_distro": "debian"}
        assert there.get_encryption_metadata(made.id) == {"encryption_key_id": None}
        summary = there.summary(all_tenants=False)["volume-summary"]
        assert (summary["total_count"], summary["total_size"]) == (1, 2)
        there.reset_state(made, "error", "detached")
        assert stage.status(made) == "error"
        there.reset_state(made, "available")
        # Only what began on an attached volume waits for somebody to complete it.
        with stage.seen.refused(400, "extension"):
            there.extend_volume_completion(made)
    lost = stage.wait(there.create(1, name="by force"))
    there.force_delete(lost)
    stage.gone(lost)


def moves(stage: Stage) -> None:
    there = stage.cinder.volumes
    kind = stage.cinder.volume_types.create("wide")
    with stage.volume("mover") as made:
        pools = there.get_pools(False, {})._info["pools"]
        [other] = {one["name"] for one in pools} - {host(made)}
        there.retype(made, "wide", "never")
        assert stage.wait(made).volume_type == "wide"
        there.migrate_volume(made, other, False, False)
        until(lambda: host(there.get(made.id)) == other, "the volume to be elsewhere")
        assert stage.wait(made).migration_status == "success"
        with stage.seen.refused(400, "migrat"):
            there.migrate_volume_completion(made, made.id, False)
    stage.cinder.volume_types.delete(kind)


def attaching(stage: Stage) -> None:
    there, attachments = stage.cinder.volumes, stage.cinder.attachments
    with stage.volume("attached") as made:
        there.reserve(made)
        assert stage.status(made) == "attaching"
        there.unreserve(made)
        info = there.initialize_connection(made, CONNECTOR)
        assert info["driver_volume_type"] == "rbd"
        assert info["data"]["name"].endswith(f"volume-{made.id}")
        there.attach(made, None, "/dev/rbd0", host_name="store1")
        [held] = there.get(made.id).attachments
        assert (held["host_name"], held["device"]) == ("store1", "/dev/rbd0")
        there.begin_detaching(made)
        assert stage.status(made) == "detaching"
        there.roll_detaching(made)
        assert stage.status(made) == "in-use"
        there.terminate_connection(made, CONNECTOR)
        there.detach(made, held["attachment_id"])
        assert stage.status(made) == "available"
        one = attachments.create(made.id, None, SERVER, "rw")["id"]
        assert (attachments.show(one).status, attachments.show(one).instance) == ("reserved", SERVER)
        assert attachments.update(one, CONNECTOR).connection_info["driver_volume_type"] == "rbd"
        attachments.complete(one)
        assert [(found.id, found.status) for found in attachments.list()] == [(one, "attached")]
        assert stage.status(made) == "in-use"
        attachments.delete(one)
        assert stage.status(made) == "available"


def snapshots(stage: Stage) -> None:
    there = stage.cinder.volume_snapshots
    with stage.volume("pictured") as made:
        one = stage.wait(there.create(made.id, name="monday", metadata={"a": "b"}))
        assert (one.size, one.volume_id, one.metadata) == (1, made.id, {"a": "b"})
        assert [found.name for found in there.list()] == ["monday"]
        there.update(one, name="tuesday")
        there.set_metadata(one, {"c": "d"})
        there.delete_metadata(one, ["a"])
        assert (there.get(one.id).name, there.get(one.id).metadata) == ("tuesday", {"c": "d"})
        there.update_all_metadata(one, {"e": "f"})
        assert there.get(one.id).metadata == {"e": "f"}
        there.reset_state(one, "creating")
        there.update_snapshot_status(one, {"status": "available", "progress": "100%"})
        assert there.get(one.id).status == "available"
        stage.cinder.volumes.revert_to_snapshot(made, one)
        stage.wait(made)
        there.delete(stage.wait(one))
        stage.gone(one)


def taking_over(stage: Stage) -> None:
    there, snapshots_there = stage.cinder.volumes, stage.cinder.volume_snapshots
    pool = stage.pool()
    found = [one.reference["source-name"] for one in there.list_manageable(pool) if one.safe_to_manage]
    assert found == [stage.foreign]
    made = stage.wait(there.manage(pool, {"source-name": stage.foreign}, name="taken over", metadata={"a": "b"}))
    assert (made.name, made.size, made.metadata) == ("taken over", 1, {"a": "b"})
    one = stage.wait(snapshots_there.create(made.id, name="let go"))
    snapshots_there.unmanage(one)
    stage.gone(one)
    [free] = [found.reference for found in snapshots_there.list_manageable(pool) if found.safe_to_manage]
    again = stage.wait(snapshots_there.manage(made.id, free, name="taken back"))
    assert (again.name, again.size) == ("taken back", 1)
    snapshots_there.delete(again)
    stage.gone(again)
    there.unmanage(made)
    stage.gone(made)


def images(stage: Stage) -> None:
    there = stage.cinder.volumes
    with stage.volume("boot", imageRef=stage.image) as made:
        assert made.bootable == "true"
        assert made.volume_image_metadata["image_id"] == stage.image
        said = there.upload_to_image(made, False, "uploaded", "bare", "qcow2", "private", False)[1]
        assert said["os-volume_upload_image"]["image_name"] == "uploaded"
        stage.wait(made)
        there.reimage(made, stage.image)
        assert stage.wait(made).volume_image_metadata["image_id"] == stage.image


def backups(stage: Stage) -> None:
    there = stage.cinder.backups
    with stage.volume("saved") as made:
        one = stage.wait(there.create(made.id, name="monday", metadata={"a": "b"}))
        assert (one.name, one.size, one.is_incremental, one.metadata) == ("monday", 1, False, {"a": "b"})
        assert [found.id for found in there.list()] == [one.id]
        there.update(one, name="tuesday")
        assert there.get(one.id).name == "tuesday"
        record = there.export_record(one.id)
        there.reset_state(one, "error")
        assert there.get(one.id).status == "error"
        there.delete(one)
        stage.gone(one)
        # A record outlives its row, not the data: what comes back is told to be broken, or never was available.
        imported = until(lambda: taken_in(stage, record), "what was stored of it to be gone")
        assert imported["id"] == one.id
        until(lambda: there.get(one.id).status in ("available", "error"), "the record to be taken in")
        there.delete(one, force=True)
        stage.gone(one)
        another = stage.wait(there.create(made.id))
        restoring = stage.cinder.restores.restore(another.id, name="restored")
        stage.wait(another)
        restored = stage.wait(stage.cinder.volumes.get(restoring.volume_id))
        assert (restored.name, restored.size) == ("restored", 1)
        stage.cinder.volumes.delete(restored)
        stage.gone(restored)
        there.delete(another)
        stage.gone(another)


def taken_in(stage: Stage, record: dict[str, str]) -> dict[str, Any] | None:
    """The answer to an import of a record, which is refused as long as what was stored under it is being removed."""
    try:
        answer: dict[str, Any] = stage.cinder.backups.import_record(record["backup_service"], record["backup_url"])
    except exceptions.BadRequest as error:
        if "still being removed" not in str(error):
            raise
        return None
    return answer


def types(stage: Stage) -> None:
    there = stage.cinder.volume_types
    assert there.default().name == "__DEFAULT__"
    kind = there.create("gold", "fast", is_public=False)
    assert (kind.name, kind.is_public) == ("gold", False)
    assert {one.name for one in there.list()} == {"__DEFAULT__", "gold"}
    assert there.update(kind, description="faster").description == "faster"
    assert there.get(kind).description == "faster"
    kind.set_keys({"a": "b", "c": "d"})
    kind.unset_keys(["c"])
    assert kind.get_keys() == {"a": "b"}
    access = stage.cinder.volume_type_access
    access.add_project_access(kind, "other")
    assert [one.project_id for one in access.list(kind)] == ["other"]
    access.remove_project_access(kind, "other")
    assert access.list(kind) == []
    encryption = stage.cinder.volume_encryption_types
    luks = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end"}
    assert encryption.create(kind, luks).provider == "luks"
    encryption.update(kind, {"key_size": 512})
    assert encryption.get(kind).key_size == 512
    assert [one.volume_type_id for one in encryption.list()] == [kind.id]
    encryption.delete(kind)
    assert encryption.list() == []
    defaults = stage.cinder.default_types
    assert defaults.create(kind.id, PROJECT).volume_type_id == kind.id
    assert [(one.project_id, one.volume_type_id) for one in defaults.list()] == [(PROJECT, kind.id)]
    defaults.delete(PROJECT)
    assert defaults.list() == []
    there.delete(kind)
    stage.gone(kind)


def qos(stage: Stage) -> None:
    there = stage.cinder.qos_specs
    kind = stage.cinder.volume_types.create("limited")
    spec = there.create("slow", {"consumer": "front-end", "write_iops_sec": "10"})
    there.set_keys(spec.id, {"read_iops_sec": "50"})
    assert there.get(spec).specs == {"write_iops_sec": "10", "read_iops_sec": "50"}
    there.unset_keys(spec.id, ["read_iops_sec"])
    assert [(one.name, one.specs) for one in there.list()] == [("slow", {"write_iops_sec": "10"})]
    there.associate(spec, kind.id)
    assert [one.id for one in there.get_associations(spec)] == [kind.id]
    there.disassociate(spec, kind.id)
    there.associate(spec, kind.id)
    there.disassociate_all(spec)
    assert there.get_associations(spec) == []
    there.delete(spec)
    until(lambda: there.list() == [], "the specs to be gone")
    stage.cinder.volume_types.delete(kind)


def transfers(stage: Stage) -> None:
    there = stage.cinder.transfers
    with stage.volume("given") as made:
        offer = there.create(made.id, "for you", no_snapshots=True)
        assert stage.status(made) == "awaiting-transfer"
        assert there.get(offer.id).no_snapshots is True
        assert [one.name for one in there.list()] == ["for you"]
        there.delete(offer)
        assert stage.status(made) == "available"
        offer = there.create(made.id, "again")
        assert there.accept(offer.id, offer.auth_key).volume_id == made.id
        stage.wait(made)


def quotas(stage: Stage) -> None:
    there, classes = stage.cinder.quotas, stage.cinder.quota_classes
    default = there.defaults(PROJECT).volumes
    assert there.update(PROJECT, volumes=default + 5).volumes == default + 5
    with stage.volume("counted"):
        used = there.get(PROJECT, usage=True).volumes
        assert (used["limit"], used["in_use"]) == (default + 5, 1)
        absolute = {one.name: one.value for one in stage.cinder.limits.get().absolute}
        assert (absolute["maxTotalVolumes"], absolute["totalVolumesUsed"]) == (default + 5, 1)
    there.delete(PROJECT)
    assert there.get(PROJECT).volumes == classes.get("default").volumes == default
    assert classes.update("default", backups=77).backups == 77
    assert there.get(PROJECT).backups == 77


def messages(stage: Stage) -> None:
    there = stage.cinder.messages
    kind = stage.cinder.volume_types.create("nowhere")
    kind.set_keys({"volume_backend_name": "no-such"})
    made = stage.wait(stage.cinder.volumes.create(1, name="lost", volume_type="nowhere"), "error")
    [said] = [one for one in there.list() if one.resource_uuid == made.id]
    assert there.get(said.id).user_message == said.user_message != ""
    there.delete(said)
    assert said.id not in [one.id for one in there.list()]
    stage.cinder.volumes.delete(made)
    stage.gone(made)
    stage.cinder.volume_types.delete(kind)


def group_types(stage: Stage) -> None:
    there = stage.cinder.group_types
    kind = there.create("pairs", "of two")
    assert (there.get(kind).name, there.get(kind).is_public) == ("pairs", True)
    assert "pairs" in [one.name for one in there.list()]
    assert there.update(kind, description="of more").description == "of more"
    kind.set_keys({"a": "b", "c": "d"})
    kind.unset_keys(["c"])
    assert kind.get_keys() == {"a": "b"}
    # The service names none.
    with stage.seen.refused(404, "default"):
        there.default()
    there.delete(kind)
    stage.gone(kind)


def _group(stage: Stage, name: str, specs: dict[str, str], volume_type: str = "__DEFAULT__") -> Any:
    """A group with a volume, of a group type of its own with these specs."""
    kind = stage.cinder.group_types.create(f"for {name}")
    kind.set_keys(specs)
    group = stage.wait(stage.cinder.groups.create(kind.id, volume_type, name=name))
    stage.wait(stage.cinder.volumes.create(1, name=f"in {name}", group_id=group.id, volume_type=volume_type))
    return group


def groups(stage: Stage) -> None:
    there = stage.cinder.groups
    group = _group(stage, "shop", CONSISTENT)
    there.update(group, description="two disks")
    group = stage.wait(group)
    assert group.description == "two disks"
    [listed] = there.list(list_volume=True)
    [inside] = listed.volumes
    assert stage.cinder.volumes.get(inside).name == "in shop"
    there.reset_state(group, "error")
    assert there.get(group.id).status == "error"
    there.reset_state(group, "available")
    there.delete(group, delete_volumes=True)
    stage.gone(group)


def replication(stage: Stage) -> None:
    """None without a driver for it: Cinder refuses in the same words."""
    there = stage.cinder.groups
    remote = stage.cinder.volume_types.create("remote")
    remote.set_keys({"replication_enabled": "<is> True"})
    kind = stage.cinder.group_types.create("copied")
    kind.set_keys(REPLICATED)
    # No back end replicates, so there is none for it.
    group = stage.wait(there.create(kind.id, "remote", name="far"), "error")
    with stage.seen.refused(400, "replication"):
        there.enable_replication(group)
    with stage.seen.refused(400, "replication"):
        there.disable_replication(group)
    with stage.seen.refused(400, "replication"):
        there.failover_replication(group)
    assert there.list_replication_targets(group)[1]["replication_targets"] == []
    there.delete(group)
    stage.gone(group)
    stage.cinder.volume_types.delete(remote)


def group_snapshots(stage: Stage) -> None:
    there = stage.cinder.group_snapshots
    group = _group(stage, "album", CONSISTENT)
    picture = stage.wait(there.create(group.id, name="monday"))
    assert picture.group_id == group.id
    assert [one.name for one in there.list()] == ["monday"]
    there.reset_state(picture, "error")
    assert there.get(picture.id).status == "error"
    there.reset_state(picture, "available")
    # Its name cannot be changed: Cinder has nothing at that path.
    with stage.seen.refused(404, ""):
        there.update(picture, name="tuesday")
    copy = stage.wait(stage.cinder.groups.get(stage.cinder.groups.create_from_src(picture.id, None, "copy")["id"]))
    [inside] = stage.cinder.groups.get(copy.id, list_volume=True).volumes
    assert stage.cinder.volumes.get(inside).size == 1
    stage.cinder.groups.delete(copy, delete_volumes=True)
    stage.gone(copy)
    there.delete(picture)
    stage.gone(picture)
    stage.cinder.groups.delete(group, delete_volumes=True)
    stage.gone(group)


def consistency_groups(stage: Stage) -> None:
    there, pictures = stage.cinder.consistencygroups, stage.cinder.cgsnapshots
    group = stage.wait(there.create("__DEFAULT__", name="old"))
    assert [one.name for one in there.list()] == ["old"]
    made = stage.wait(
        stage.cinder.volumes.create(1, name="member", consistencygroup_id=group.id, volume_type="__DEFAULT__")
    )
    assert made.consistencygroup_id == group.id
    there.update(group, description="of old")
    group = stage.wait(group)
    assert there.get(group.id).description == "of old"
    picture = stage.wait(pictures.create(group.id, name="monday"))
    assert pictures.get(picture.id).consistencygroup_id == group.id
    assert [one.name for one in pictures.list()] == ["monday"]
    with stage.seen.refused(404, ""):
        pictures.update(picture, name="tuesday")
    copy = stage.wait(there.get(there.create_from_src(picture.id, None, "copy")["id"]))
    assert copy.name == "copy"
    pictures.delete(picture)
    stage.gone(picture)
    for one in (copy, group):
        there.delete(one, force=True)
        stage.gone(one)
    stage.gone(made)


def administration(stage: Stage) -> None:
    cinder, there = stage.cinder, stage.cinder.services
    assert [one.zoneName for one in cinder.availability_zones.list()] == ["nova"]
    assert any(one.alias for one in cinder.list_extensions.show_all())
    assert there.server_api_version()
    pools = cinder.pools.list(detailed=True)
    assert sorted(one.volume_backend_name for one in pools) == ["ceph", stage.second]
    backend = stage.pool().partition("#")[0]
    assert cinder.capabilities.get(backend).storage_protocol == "ceph"
    assert "volume" in [one.resource for one in cinder.resource_filters.list()]
    [service] = there.list(backend, "cinder-volume")
    assert (service.state, service.status) == ("up", "enabled")
    assert there.disable(backend, "cinder-volume").status == "disabled"
    there.disable_log_reason(backend, "cinder-volume", "new disks")
    assert there.list(backend, "cinder-volume")[0].disabled_reason == "new disks"
    assert there.enable(backend, "cinder-volume").status == "enabled"
    there.freeze_host(backend)
    assert there.list(backend, "cinder-volume")[0].frozen is True
    there.thaw_host(backend)
    with stage.seen.refused(400, "replicat"):
        there.failover_host(backend, "default")
    there.set_log_levels("INFO", "cinder-volume", backend, "cinderlite")
    assert {one.level for one in there.get_log_levels("cinder-volume", backend, "cinderlite")} == {"INFO"}
    cleaning, unavailable = cinder.workers.clean(host=backend, binary="cinder-volume", is_up=True)
    assert unavailable == []
    assert {one.host for one in cleaning} <= {backend}


def clusters(stage: Stage) -> None:
    """The service belongs to none."""
    there = stage.cinder.clusters
    assert there.list() == []
    with stage.seen.refused(404, "nobody"):
        there.show("nobody")
    with stage.seen.refused(404, "nobody"):
        there.update("nobody", "cinder-volume", disabled=True)


PARTS = (
    volumes, moves, attaching, snapshots, taking_over, images, backups, types, qos, transfers, quotas, messages,
    group_types, groups, replication, group_snapshots, consistency_groups, administration, clusters,
)  # fmt: skip


def watch(cinder: Any, seen: Recording) -> None:
    """Note what is called of the managers, and of the types: their specs have no manager."""
    for label, manager in vars(cinder).items():
        if not isinstance(manager, base.Manager):
            continue
        for name, method in inspect.getmembers(manager, inspect.ismethod):
            if not name.startswith("_") and method.__module__ not in INHERITED:
                seen.watch(manager, name, f"{label}.{name}")
    for kind in (volume_types_module.VolumeType, group_types_module.GroupType):
        for name in ("get_keys", "set_keys", "unset_keys"):
            seen.watch(kind, name, f"{kind.__name__}.{name}")


def login() -> Any:
    """The client at the newest version, with its own extensions."""
    plugin = http_basic.HTTPBasicAuth(
        endpoint=os.environ["OS_ENDPOINT"], username=os.environ["OS_USERNAME"], password=os.environ["OS_PASSWORD"]
    )
    return client.Client("3.71", session=session.Session(auth=plugin), extensions=client.discover_extensions("3"))


def main() -> None:
    seen = Recording(exceptions.ClientException)
    cinder = login()
    watch(cinder, seen)
    stage = Stage(cinder, seen, **json.loads(sys.argv[1]))
    parts: list[Callable[[], None]] = [functools.wraps(part)(functools.partial(part, stage)) for part in PARTS]
    print(seen.report(parts))


if __name__ == "__main__":
    main()
