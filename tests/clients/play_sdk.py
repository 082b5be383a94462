# SPDX-License-Identifier: Apache-2.0
"""Calls every method of openstacksdk's block-storage proxy against a running service; runs in the clients' environment.

    python -m clients.play_sdk '{"image": ID, "foreign": NAME, "second": BACKEND}'

The environment logs in, as an administrator of project demo. Prints in JSON what was called, what never, what failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import openstack
from openstack import exceptions
from openstack.block_storage.v3 import _proxy, cluster

from clients.recording import Recording, until

PROJECT = "demo"
CONNECTOR = {"host": "store1", "ip": "192.0.2.8", "initiator": "iqn.1993-08.org.debian:01:1", "os_type": "linux"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """The proxy as anybody gets it, the same at the newest version, and what the service has for the play."""

    storage: Any
    #: For what openstacksdk asks without a version, and so in vain.
    newest: Any
    seen: Recording
    #: An image of Glance's, an RBD image of nobody's, and the name of a second back end.
    image: str
    foreign: str
    second: str

    def wait(self, made: Any, status: str = "available") -> Any:
        """Wait for something to come to a status; what it is then."""
        return self.storage.wait_for_status(made.fetch(self.storage), status, ["error"], interval=0.2, wait=60)

    def gone(self, deleted: Any) -> None:
        """Wait for something to be gone."""
        self.storage.wait_for_delete(deleted, interval=0.2, wait=60)

    @contextlib.contextmanager
    def volume(self, name: str, size: int = 1, **fields: Any) -> Iterator[Any]:
        """A volume that is gone afterwards."""
        made = self.wait(self.storage.create_volume(name=name, size=size, **fields))
        yield made
        self.storage.delete_volume(made)
        self.gone(made)

    def pool(self) -> str:
        """The pool of the first back end, as hosts name it."""
        return next(str(one.name) for one in self.storage.backend_pools() if self.second not in one.name)


def volumes(stage: Stage) -> None:
    storage = stage.storage
    with stage.volume("data", metadata={"a": "b"}) as made:
        assert (made.status, made.size, made.name, made.is_bootable) == ("available", 1, "data", False)
        assert storage.get_volume(made.id).metadata == {"a": "b"}
        assert storage.find_volume("data").id == made.id
        assert [one.id for one in storage.volumes(details=False, name="data")] == [made.id]
        storage.update_volume(made.id, description="of the shop")
        storage.set_volume_metadata(made.id, c="d")
        assert storage.fetch_volume_metadata(made.id).metadata == {"a": "b", "c": "d"}
        storage.delete_volume_metadata(made.id, ["a"])
        assert storage.get_volume_metadata(made.id).metadata == {"c": "d"}
        storage.extend_volume(made, 2)
        stage.wait(made)
        storage.set_volume_readonly(made)
        storage.set_volume_bootable_status(made, bootable=True)
        shown = storage.get_volume(made.id)
        assert (shown.size, shown.description, shown.is_bootable) == (2, "of the shop", True)
        assert shown.metadata["readonly"] == "True"
        storage.set_volume_image_metadata(made, os_distro="debian", hw_qemu="yes")
        storage.delete_volume_image_metadata(made, ["hw_qemu"])
        assert storage.get_volume(made.id).volume_image_metadata == {"os_distro": "debian"}
        summary = storage.summary(all_projects=False)
        assert (summary.total_count, summary.total_size) == (1, 2)
        storage.reset_volume_status(made, "error")
        assert storage.get_volume(made.id).status == "error"
        storage.reset_volume_status(made, "available")
        # Only what began on an attached volume waits for somebody to complete it.
        with stage.seen.refused(400, "extension"):
            storage.complete_volume_extend(made)


def moves(stage: Stage) -> None:
    storage = stage.storage
    kind = storage.create_type(name="wide", extra_specs={})
    with stage.volume("mover") as made:
        [other] = {one.name for one in storage.backend_pools()} - {made.host}
        storage.retype_volume(made, kind)
        assert stage.wait(made).volume_type == "wide"
        storage.migrate_volume(made, host=other)
        moved = stage.wait(made)
        assert (moved.host, moved.migration_status) == (other, "success")
        with stage.seen.refused(400, "migrat"):
            storage.complete_volume_migration(made, made.id)
    storage.delete_type(kind)


def attaching(stage: Stage) -> None:
    storage = stage.storage
    with stage.volume("attached") as made:
        storage.reserve_volume(made)
        assert storage.get_volume(made.id).status == "attaching"
        storage.unreserve_volume(made)
        info = storage.init_volume_attachment(made, CONNECTOR)
        assert info["driver_volume_type"] == "rbd"
        assert info["data"]["name"].endswith(f"volume-{made.id}")
        storage.attach_volume(made, "/dev/rbd0", host_name="store1")
        [held] = storage.get_volume(made.id).attachments
        assert (held["host_name"], held["device"]) == ("store1", "/dev/rbd0")
        storage.begin_volume_detaching(made)
        assert storage.get_volume(made.id).status == "detaching"
        storage.abort_volume_detaching(made)
        assert storage.get_volume(made.id).status == "in-use"
        storage.terminate_volume_attachment(made, CONNECTOR)
        storage.detach_volume(made, held["attachment_id"])
        stage.wait(made)
        attachment = storage.create_attachment(made.id, connector=None, instance="6e5e1b6c-7b7e-4a0f-8a2d-0c5d3a8a4f7b")
        assert storage.get_attachment(attachment.id).status == "reserved"
        updated = storage.update_attachment(attachment.id, connector=CONNECTOR)
        assert updated.connection_info["driver_volume_type"] == "rbd"
        storage.complete_attachment(attachment.id)
        assert [(one.id, one.status) for one in storage.attachments()] == [(attachment.id, "attached")]
        assert storage.get_volume(made.id).status == "in-use"
        storage.delete_attachment(attachment.id)
        assert storage.get_volume(made.id).status == "available"


def snapshots(stage: Stage) -> None:
    storage = stage.storage
    with stage.volume("pictured") as made:
        one = stage.wait(storage.create_snapshot(volume_id=made.id, name="monday", metadata={"a": "b"}))
        assert (one.size, one.volume_id) == (1, made.id)
        assert storage.get_snapshot(one.id).name == "monday"
        assert storage.find_snapshot("monday").id == one.id
        assert [found.id for found in storage.snapshots(details=False)] == [one.id]
        storage.update_snapshot(one.id, name="tuesday")
        storage.set_snapshot_metadata(one.id, c="d")
        assert storage.fetch_snapshot_metadata(one.id).metadata == {"a": "b", "c": "d"}
        storage.delete_snapshot_metadata(one.id, ["c"])
        assert storage.get_snapshot_metadata(one.id).metadata == {"a": "b"}
        storage.reset_snapshot_status(one, "error")
        assert storage.get_snapshot(one.id).status == "error"
        storage.reset_snapshot(one, "creating")
        storage.set_snapshot_status(one, "available", "100%")
        shown = storage.get_snapshot(one.id)
        assert (shown.status, shown.progress, shown.name) == ("available", "100%", "tuesday")
        storage.revert_volume_to_snapshot(made, one)
        stage.wait(made)
        storage.delete_snapshot(one)
        stage.gone(one)


def taking_over(stage: Stage) -> None:
    storage = stage.storage
    host = stage.pool()
    found = [one.reference["source-name"] for one in stage.newest.manageable_volumes(host=host) if one.safe_to_manage]
    assert found == [stage.foreign]
    made = storage.manage_volume(host=host, ref={"source-name": stage.foreign}, name="taken over", metadata={"a": "b"})
    made = stage.wait(made)
    assert (made.name, made.size, made.metadata) == ("taken over", 1, {"a": "b"})
    snapshot = stage.wait(storage.create_snapshot(volume_id=made.id, name="let go"))
    storage.unmanage_snapshot(snapshot)
    stage.gone(snapshot)
    [free] = [one.reference for one in stage.newest.manageable_snapshots(host=host) if one.safe_to_manage]
    again = storage.manage_snapshot(volume_id=made.id, ref=free, name="taken back")
    again = stage.wait(again)
    assert (again.name, again.size) == ("taken back", 1)
    storage.delete_snapshot(again)
    stage.gone(again)
    storage.unmanage_volume(made)
    stage.gone(made)


def images(stage: Stage) -> None:
    storage = stage.storage
    with stage.volume("boot", image_id=stage.image) as made:
        assert made.is_bootable
        assert made.volume_image_metadata["image_id"] == stage.image
        said = storage.upload_volume_to_image(made, "uploaded", disk_format="qcow2", container_format="bare")
        assert said["image_name"] == "uploaded"
        stage.wait(made)
        image = storage.create_image("made", made, False, "bare", "qcow2", False, 60)
        assert image.id not in (said["image_id"], stage.image)
        stage.wait(made)


def backups(stage: Stage) -> None:
    storage = stage.storage
    with stage.volume("saved") as made:
        one = storage.create_backup(volume_id=made.id, name="monday", metadata={"a": "b"})
        one = stage.wait(one)
        assert (one.name, one.size, one.is_incremental, one.metadata) == ("monday", 1, False, {"a": "b"})
        assert storage.find_backup("monday").id == one.id
        assert [found.id for found in storage.backups(details=False)] == [one.id]
        assert storage.update_backup(one.id, name="tuesday").name == "tuesday"
        # The block-storage API has no such paths; openstacksdk has the methods for all that has metadata.
        nowhere = functools.partial(stage.seen.refused, 404, "")
        with nowhere():
            storage.fetch_backup_metadata(one.id)
        with nowhere():
            storage.get_backup_metadata(one.id)
        with nowhere():
            storage.set_backup_metadata(one.id, c="d")
        with nowhere():
            storage.delete_backup_metadata(one.id, ["c"])
        storage.restore_backup(one.id, name="restored")
        restored = stage.wait(until(lambda: storage.find_volume("restored"), "the volume of the restore"))
        stage.wait(one)
        assert restored.size == 1
        storage.delete_volume(restored)
        stage.gone(restored)
        record = storage.export_backup(one.id)["backup-record"]
        assert storage.export_record(one.id).json()["backup-record"]["backup_service"] == record["backup_service"]
        storage.reset_backup_status(one, "error")
        assert storage.get_backup(one.id).status == "error"
        storage.reset_backup(one, "available")
        assert storage.get_backup(one.id).status == "available"
        # It posts to a path that is only there to be read.
        with stage.seen.refused(404, ""):
            storage.import_backup(record["backup_service"], record["backup_url"])
        storage.delete_backup(one)
        stage.gone(one)


def types(stage: Stage) -> None:
    storage = stage.storage
    assert "__DEFAULT__" in [one.name for one in storage.types()]
    kind = storage.create_type(name="gold", description="fast", is_public=False)
    assert storage.get_type(kind.id).is_public is False
    assert storage.find_type("gold").id == kind.id
    assert storage.update_type(kind.id, description="faster").description == "faster"
    assert storage.update_type_extra_specs(kind.id, a="b", c="d").extra_specs == {"a": "b", "c": "d"}
    storage.delete_type_extra_specs(kind.id, ["c"])
    assert storage.get_type(kind.id).extra_specs == {"a": "b"}
    storage.add_type_access(kind.id, "other")
    assert [one["project_id"] for one in storage.get_type_access(kind.id)] == ["other"]
    storage.remove_type_access(kind.id, "other")
    assert storage.get_type_access(kind.id) == []
    luks = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end"}
    assert storage.create_type_encryption(kind.id, **luks).provider == "luks"
    assert storage.get_type_encryption(kind.id).key_size == 256
    storage.update_type_encryption(volume_type=kind.id, key_size=512)
    assert storage.get_type_encryption(kind.id).key_size == 512
    storage.delete_type_encryption(volume_type=kind.id)
    storage.set_default_type(PROJECT, kind.id)
    assert storage.show_default_type(PROJECT).volume_type_id == kind.id
    assert [(one.project_id, one.volume_type_id) for one in storage.default_types()] == [(PROJECT, kind.id)]
    storage.unset_default_type(PROJECT)
    assert list(storage.default_types()) == []
    storage.delete_type(kind.id)
    assert storage.find_type("gold") is None


def qos(stage: Stage) -> None:
    storage = stage.storage
    kind = storage.create_type(name="limited")
    spec = storage.create_qos_spec(name="slow", consumer="front-end", write_iops_sec="10")
    storage.update_qos_spec(spec.id, total_iops_sec="100", read_iops_sec="50")
    assert storage.get_qos_spec(spec.id).specs["total_iops_sec"] == "100"
    assert storage.find_qos_spec("slow").id == spec.id
    assert [one.name for one in storage.qos_specs()] == ["slow"]
    storage.associate_qos_spec(spec.id, kind.id)
    assert [(one.id, one.association_type) for one in storage.qos_spec_associations(spec.id)] == [
        (kind.id, "volume_type")
    ]
    storage.disassociate_qos_spec(spec.id, kind.id)
    storage.associate_qos_spec(spec.id, kind.id)
    storage.disassociate_all_qos_spec(spec.id)
    assert list(storage.qos_spec_associations(spec.id)) == []
    storage.delete_qos_spec_metadata(spec.id, ["read_iops_sec"])
    assert "read_iops_sec" not in storage.get_qos_spec(spec.id).specs
    storage.delete_qos_spec(spec.id)
    storage.delete_type(kind)


def transfers(stage: Stage) -> None:
    storage = stage.storage
    with stage.volume("given") as made:
        offer = storage.create_transfer(volume_id=made.id, name="for you")
        assert storage.get_volume(made.id).status == "awaiting-transfer"
        assert storage.get_transfer(offer.id).volume_id == made.id
        assert storage.find_transfer("for you").id == offer.id
        assert [one.id for one in storage.transfers()] == [offer.id]
        storage.delete_transfer(offer.id)
        assert storage.get_volume(made.id).status == "available"
        offer = storage.create_transfer(volume_id=made.id, name="again")
        assert storage.accept_transfer(offer.id, offer.auth_key).volume_id == made.id
        stage.wait(made)


def quotas(stage: Stage) -> None:
    storage = stage.storage
    default = storage.get_quota_set_defaults(PROJECT).volumes
    assert storage.update_quota_set(PROJECT, volumes=default + 5).volumes == default + 5
    with stage.volume("counted"):
        shown = storage.get_quota_set(PROJECT, usage=True)
        assert (shown.volumes, shown.usage["volumes"], shown.usage["gigabytes"]) == (default + 5, 1, 1)
        assert storage.get_limits().absolute.max_total_volumes == default + 5
    storage.revert_quota_set(PROJECT)
    assert storage.get_quota_set(PROJECT).volumes == default
    assert storage.get_quota_class_set("default").volumes == default
    assert storage.update_quota_class_set("default", backups=77).backups == 77
    assert storage.get_quota_set(PROJECT).backups == 77


def messages(stage: Stage) -> None:
    storage = stage.storage
    kind = storage.create_type(name="nowhere", extra_specs={"volume_backend_name": "no-such"})
    made = storage.create_volume(name="lost", size=1, volume_type="nowhere")
    until(lambda: storage.get_volume(made.id).status == "error", "the volume to fail")
    [said] = [one for one in stage.newest.messages() if one.resource_uuid == made.id]
    assert said.user_message
    assert said.message_level == "ERROR"
    assert stage.newest.get_message(said.id).id == said.id
    stage.newest.delete_message(said.id)
    assert said.id not in [one.id for one in stage.newest.messages()]
    storage.delete_volume(made, force=True)
    stage.gone(made)
    storage.delete_type(kind)


def group_types(stage: Stage) -> None:
    storage = stage.storage
    kind = storage.create_group_type(name="pairs", description="of two", is_public=True)
    assert storage.get_group_type(kind.id).name == "pairs"
    assert storage.find_group_type("pairs").id == kind.id
    assert "pairs" in [one.name for one in storage.group_types()]
    assert storage.update_group_type(kind.id, description="of more").description == "of more"
    assert storage.create_group_type_group_specs(kind.id, {"a": "b"}).group_specs == {"a": "b"}
    assert storage.get_group_type_group_specs_property(kind.id, "a") == "b"
    assert storage.update_group_type_group_specs_property(kind.id, "a", "c") == "c"
    assert storage.fetch_group_type_group_specs(kind.id).group_specs == {"a": "c"}
    storage.delete_group_type_group_specs_property(kind.id, "a")
    assert storage.fetch_group_type_group_specs(kind.id).group_specs == {}
    storage.delete_group_type(kind.id)
    assert storage.find_group_type("pairs") is None


def groups(stage: Stage) -> None:
    storage = stage.storage
    kind = storage.create_group_type(name="together")
    storage.create_group_type_group_specs(kind.id, {"consistent_group_snapshot_enabled": "<is> True"})
    volume_type = storage.find_type("__DEFAULT__")
    group = storage.create_group(name="shop", group_type=kind.id, volume_types=[volume_type.id])
    group = stage.wait(group)
    assert group.volume_types == [volume_type.id]
    assert storage.find_group("shop").id == group.id
    assert [one.name for one in storage.groups()] == ["shop"]
    made = stage.wait(storage.create_volume(name="member", size=1, group_id=group.id, volume_type=volume_type.id))
    storage.update_group(group.id, description="two disks")
    stage.wait(group)
    shown = storage.get_group(group.id, list_volume=True)
    assert (shown.description, shown.volumes) == ("two disks", [made.id])
    storage.reset_group_status(group, "error")
    assert storage.get_group(group.id).status == "error"
    storage.reset_group_state(group, "available")
    # There is no replication without a driver for it, and openstacksdk calls the fail-over by a name that is none.
    with stage.seen.refused(400, "replication"):
        storage.enable_group_replication(group)
    with stage.seen.refused(400, "replication"):
        storage.disable_group_replication(group)
    with stage.seen.refused(400, ""):
        storage.failover_group_replication(group)
    storage.delete_group(group.id, delete_volumes=True)
    stage.gone(group)
    assert storage.find_volume("member") is None
    storage.delete_group_type(kind.id)


def group_snapshots(stage: Stage) -> None:
    storage = stage.storage
    kind = storage.create_group_type(name="pictured together")
    storage.create_group_type_group_specs(kind.id, {"consistent_group_snapshot_enabled": "<is> True"})
    volume_type = storage.find_type("__DEFAULT__")
    group = stage.wait(storage.create_group(name="album", group_type=kind.id, volume_types=[volume_type.id]))
    stage.wait(storage.create_volume(name="member", size=1, group_id=group.id, volume_type=volume_type.id))
    picture = storage.create_group_snapshot(group_id=group.id, name="monday")
    picture = stage.wait(picture)
    assert (picture.name, picture.group_id) == ("monday", group.id)
    assert storage.find_group_snapshot("monday").id == picture.id
    assert [one.id for one in storage.group_snapshots()] == [picture.id]
    storage.reset_group_snapshot_status(picture, "error")
    assert storage.get_group_snapshot(picture.id).status == "error"
    storage.reset_group_snapshot_state(picture, "available")
    # It always sends both sources, of which the API wants one.
    with stage.seen.refused(400, "source_group_id"):
        storage.create_group_from_source(group_snapshot_id=picture.id, source_group_id=None, name="copy")
    source = {"create-from-src": {"group_snapshot_id": picture.id, "name": "copy"}}
    answer = stage.newest.post("/groups/action", json=source)
    copy = stage.wait(storage.get_group(answer.json()["group"]["id"]))
    assert copy.name == "copy"
    [copied] = storage.get_group(copy.id, list_volume=True).volumes
    assert storage.get_volume(copied).size == 1
    storage.delete_group(copy.id, delete_volumes=True)
    stage.gone(copy)
    storage.delete_group_snapshot(picture)
    stage.gone(picture)
    storage.delete_group(group.id, delete_volumes=True)
    stage.gone(group)
    storage.delete_group_type(kind.id)


def consistency_groups(stage: Stage) -> None:
    storage = stage.storage
    # It sends a list where the API has text with commas.
    with stage.seen.refused(400, "volume_types"):
        storage.create_consistency_group(name="old", volume_types=["__DEFAULT__"])
    fields = {"name": "old", "volume_types": "__DEFAULT__"}
    answer = storage.post("/consistencygroups", json={"consistencygroup": fields})
    assert answer.status_code == 202, answer.text
    group = stage.wait(storage.get_consistency_group(answer.json()["consistencygroup"]["id"]))
    assert storage.find_consistency_group("old").id == group.id
    assert [one.name for one in storage.consistency_groups()] == ["old"]
    made = stage.wait(
        storage.create_volume(name="member", size=1, consistency_group_id=group.id, volume_type="__DEFAULT__")
    )
    assert made.consistency_group_id == group.id
    storage.update_consistency_group(group, description="of old")
    group = stage.wait(group)
    assert group.description == "of old"
    picture = storage.create_consistency_group_snapshot(consistencygroup_id=group.id, name="monday")
    picture = stage.wait(picture)
    assert storage.get_consistency_group_snapshot(picture.id).consistencygroup_id == group.id
    assert storage.find_consistency_group_snapshot("monday").id == picture.id
    assert [one.id for one in storage.consistency_group_snapshots()] == [picture.id]
    copy = storage.create_consistency_group_from_source(consistency_group_snapshot=picture, name="copy")
    copy = stage.wait(copy)
    assert copy.name == "copy"
    storage.delete_consistency_group_snapshot(picture)
    stage.gone(picture)
    # It wraps its wish in a word that is not the API's.
    with stage.seen.refused(400, "consistencygroup"):
        storage.delete_consistency_group(group, force=True)
    for one in (copy, group):
        body = {"consistencygroup": {"force": True}}
        assert storage.post(f"/consistencygroups/{one.id}/delete", json=body).status_code == 202
        stage.gone(one)
    assert storage.find_volume("member") is None


def administration(stage: Stage) -> None:
    storage = stage.storage
    assert [one.name for one in storage.availability_zones()] == ["nova"]
    assert any(one.alias for one in storage.extensions())
    pools = list(storage.backend_pools(detailed=True))
    assert len(pools) == 2
    host = pools[0].name
    assert storage.get_capabilities(host.partition("#")[0]).storage_protocol == "ceph"
    assert "volume" in [one.resource for one in storage.resource_filters()]
    assert "cinder-volume" in [one.binary for one in storage.services()]
    service = storage.find_service("cinder-volume", host=host.partition("#")[0])
    assert (service.state, service.status) == ("up", "enabled")
    assert storage.disable_service(service, reason="new disks").status == "disabled"
    assert storage.enable_service(service).status == "enabled"
    storage.freeze_service(service)
    storage.thaw_service(service)
    with stage.seen.refused(400, "replicat"):
        stage.newest.failover_service(service, backend_id="default")
    storage.set_service_log_levels(level="INFO", binary="cinder-volume", server=service.host, prefix="cinderlite")
    [levels] = storage.get_service_log_levels(binary="cinder-volume", server=service.host, prefix="cinderlite")
    assert set(levels.levels.values()) == {"INFO"}
    # It puts where the API wants a post.
    with stage.seen.refused(404, ""):
        storage.cleanup_service_workers(binary="cinder-volume", host=service.host, cluster_name=None)


def clusters(stage: Stage) -> None:
    storage = stage.storage
    # A service that belongs to no cluster; its name is what nobody has.
    assert list(storage.clusters()) == []
    assert storage.find_cluster("nobody") is None
    with stage.seen.refused(404, "nobody"):
        storage.get_cluster("nobody")
    nobody = cluster.Cluster(name="nobody", binary="cinder-volume")
    with stage.seen.refused(404, "nobody"):
        stage.newest.enable_cluster(nobody)
    with stage.seen.refused(404, "nobody"):
        stage.newest.disable_cluster(nobody, reason="new disks")


PARTS = (
    volumes, moves, attaching, snapshots, taking_over, images, backups, types, qos, transfers, quotas, messages,
    group_types, groups, group_snapshots, consistency_groups, administration, clusters,
)  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    seen = Recording(exceptions.HttpException)
    for name, function in list(vars(_proxy.Proxy).items()):
        if inspect.isfunction(function) and not name.startswith("_"):
            seen.watch(_proxy.Proxy, name, name)
    stage = Stage(
        openstack.connect().block_storage,
        openstack.connect(block_storage_default_microversion="3.71").block_storage,
        seen,
        **json.loads(sys.argv[1]),
    )
    parts = [functools.wraps(part)(functools.partial(part, stage)) for part in PARTS]
    print(seen.report(parts))


if __name__ == "__main__":
    main()
