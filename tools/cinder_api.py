# SPDX-License-Identifier: Apache-2.0
"""Every operation of Cinder's v3 API, as data: what cinderlite is held against, and what it leaves out and why.

A line of OPERATIONS is method, path, the action if it is one, since when it exists, and the status of a success. Where
cinderlite differs on purpose DIFFERS says so; a test refuses any other difference of what is declared.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """An operation as Cinder has it."""

    method: str
    path: str
    action: str | None
    since: str
    status: int

    @property
    def key(self) -> tuple[str, str, str | None]:
        """What tells it from all others."""
        return self.method, normal(self.path), self.action

    @property
    def name(self) -> str:
        """As a reader calls it."""
        return f"{self.method} {self.path}" + (f" {self.action}" if self.action else "")


def normal(path: str) -> str:
    """A path whatever its parts are called."""
    return re.sub(r"<[^>]+>|{[^}]+}", "{}", path)


_SUB = """
GET    {0}/{{id}}/metadata                                            3.0  200
POST   {0}/{{id}}/metadata                                            3.0  200
PUT    {0}/{{id}}/metadata                                            3.0  200
GET    {0}/{{id}}/metadata/{{key}}                                    3.0  200
PUT    {0}/{{id}}/metadata/{{key}}                                    3.0  200
DELETE {0}/{{id}}/metadata/{{key}}                                    3.0  200
"""
_TRANSFERS = """
GET    {0}                                                            3.0  200
GET    {0}/detail                                                     3.0  200
POST   {0}                                                            3.0  202
GET    {0}/{{id}}                                                     3.0  200
DELETE {0}/{{id}}                                                     3.0  202
POST   {0}/{{id}}/accept                                              3.0  202
"""

OPERATIONS = f"""
GET    /volumes                                                       3.0  200
GET    /volumes/detail                                                3.0  200
GET    /volumes/summary                                               3.12 200
POST   /volumes                                                       3.0  202
GET    /volumes/{{id}}                                                3.0  200
PUT    /volumes/{{id}}                                                3.0  200
DELETE /volumes/{{id}}                                                3.0  202
{_SUB.format("/volumes")}
GET    /volumes/{{id}}/encryption                                     3.0  200
GET    /volumes/{{id}}/encryption/{{key}}                             3.0  200
POST   /volumes/{{id}}/action             os-extend                   3.0  202
POST   /volumes/{{id}}/action             os-extend_volume_completion 3.0  202
POST   /volumes/{{id}}/action             os-reset_status             3.0  202
POST   /volumes/{{id}}/action             os-force_delete             3.0  202
POST   /volumes/{{id}}/action             os-force_detach             3.0  202
POST   /volumes/{{id}}/action             os-attach                   3.0  202
POST   /volumes/{{id}}/action             os-detach                   3.0  202
POST   /volumes/{{id}}/action             os-reserve                  3.0  202
POST   /volumes/{{id}}/action             os-unreserve                3.0  202
POST   /volumes/{{id}}/action             os-begin_detaching          3.0  202
POST   /volumes/{{id}}/action             os-roll_detaching           3.0  202
POST   /volumes/{{id}}/action             os-initialize_connection    3.0  200
POST   /volumes/{{id}}/action             os-terminate_connection     3.0  202
POST   /volumes/{{id}}/action             os-volume_upload_image      3.0  202
POST   /volumes/{{id}}/action             os-update_readonly_flag     3.0  202
POST   /volumes/{{id}}/action             os-retype                   3.0  202
POST   /volumes/{{id}}/action             os-set_bootable             3.0  200
POST   /volumes/{{id}}/action             os-migrate_volume           3.0  202
POST   /volumes/{{id}}/action             os-migrate_volume_completion 3.0 200
POST   /volumes/{{id}}/action             os-set_image_metadata       3.0  200
POST   /volumes/{{id}}/action             os-unset_image_metadata     3.0  200
POST   /volumes/{{id}}/action             os-show_image_metadata      3.0  200
POST   /volumes/{{id}}/action             os-unmanage                 3.0  202
POST   /volumes/{{id}}/action             revert                      3.40 202
POST   /volumes/{{id}}/action             os-reimage                  3.68 202

GET    /snapshots                                                     3.0  200
GET    /snapshots/detail                                              3.0  200
GET    /snapshots/{{id}}                                              3.0  200
POST   /snapshots                                                     3.0  202
PUT    /snapshots/{{id}}                                              3.0  200
DELETE /snapshots/{{id}}                                              3.0  202
{_SUB.format("/snapshots")}
POST   /snapshots/{{id}}/action           os-reset_status             3.0  202
POST   /snapshots/{{id}}/action           os-force_delete             3.0  202
POST   /snapshots/{{id}}/action           os-update_snapshot_status   3.0  202
POST   /snapshots/{{id}}/action           os-unmanage                 3.0  202

POST   /os-volume-manage                                              3.0  202
GET    /os-volume-manage                                              3.0  200
GET    /os-volume-manage/detail                                       3.0  200
POST   /manageable_volumes                                            3.8  202
GET    /manageable_volumes                                            3.8  200
GET    /manageable_volumes/detail                                     3.8  200
POST   /os-snapshot-manage                                            3.0  202
GET    /os-snapshot-manage                                            3.0  200
GET    /os-snapshot-manage/detail                                     3.0  200
POST   /manageable_snapshots                                          3.8  202
GET    /manageable_snapshots                                          3.8  200
GET    /manageable_snapshots/detail                                   3.8  200

GET    /types                                                         3.0  200
GET    /types/default                                                 3.0  200
GET    /types/{{id}}                                                  3.0  200
POST   /types                                                         3.0  200
PUT    /types/{{id}}                                                  3.0  200
DELETE /types/{{id}}                                                  3.0  202
GET    /types/{{id}}/extra_specs                                      3.0  200
POST   /types/{{id}}/extra_specs                                      3.0  200
GET    /types/{{id}}/extra_specs/{{key}}                              3.0  200
PUT    /types/{{id}}/extra_specs/{{key}}                              3.0  200
DELETE /types/{{id}}/extra_specs/{{key}}                              3.0  202
GET    /types/{{id}}/os-volume-type-access                            3.0  200
POST   /types/{{id}}/action               addProjectAccess            3.0  202
POST   /types/{{id}}/action               removeProjectAccess         3.0  202
GET    /types/{{id}}/encryption                                       3.0  200
POST   /types/{{id}}/encryption                                       3.0  200
GET    /types/{{id}}/encryption/{{key}}                               3.0  200
PUT    /types/{{id}}/encryption/{{encryption_id}}                     3.0  200
DELETE /types/{{id}}/encryption/{{encryption_id}}                     3.0  202
GET    /default-types                                                 3.62 200
GET    /default-types/{{project_id}}                                  3.62 200
PUT    /default-types/{{project_id}}                                  3.62 200
DELETE /default-types/{{project_id}}                                  3.62 204
GET    /qos-specs                                                     3.0  200
POST   /qos-specs                                                     3.0  200
GET    /qos-specs/{{id}}                                              3.0  200
PUT    /qos-specs/{{id}}                                              3.0  200
DELETE /qos-specs/{{id}}                                              3.0  202
PUT    /qos-specs/{{id}}/delete_keys                                  3.0  202
GET    /qos-specs/{{id}}/associations                                 3.0  200
GET    /qos-specs/{{id}}/associate                                    3.0  202
GET    /qos-specs/{{id}}/disassociate                                 3.0  202
GET    /qos-specs/{{id}}/disassociate_all                             3.0  202

GET    /attachments                                                   3.27 200
GET    /attachments/detail                                            3.27 200
GET    /attachments/{{id}}                                            3.27 200
POST   /attachments                                                   3.27 200
PUT    /attachments/{{id}}                                            3.27 200
DELETE /attachments/{{id}}                                            3.27 200
POST   /attachments/{{id}}/action         os-complete                 3.44 204

{_TRANSFERS.format("/os-volume-transfer")}
{_TRANSFERS.format("/volume-transfers")}

GET    /backups                                                       3.0  200
GET    /backups/detail                                                3.0  200
GET    /backups/{{id}}                                                3.0  200
POST   /backups                                                       3.0  202
PUT    /backups/{{id}}                                                3.9  200
DELETE /backups/{{id}}                                                3.0  202
POST   /backups/{{id}}/restore                                        3.0  202
GET    /backups/{{id}}/export_record                                  3.0  200
POST   /backups/import_record                                         3.0  201
POST   /backups/{{id}}/action             os-reset_status             3.0  202
POST   /backups/{{id}}/action             os-force_delete             3.0  202

GET    /groups                                                        3.13 200
GET    /groups/detail                                                 3.13 200
GET    /groups/{{id}}                                                 3.13 200
POST   /groups                                                        3.13 202
PUT    /groups/{{id}}                                                 3.13 202
POST   /groups/{{id}}/action              delete                      3.13 202
POST   /groups/{{id}}/action              reset_status                3.20 202
POST   /groups/{{id}}/action              enable_replication          3.38 202
POST   /groups/{{id}}/action              disable_replication         3.38 202
POST   /groups/{{id}}/action              failover_replication        3.38 202
POST   /groups/{{id}}/action              list_replication_targets    3.38 200
POST   /groups/action                     create-from-src             3.14 202
GET    /group_types                                                   3.11 200
GET    /group_types/default                                           3.11 200
GET    /group_types/{{id}}                                            3.11 200
POST   /group_types                                                   3.11 202
PUT    /group_types/{{id}}                                            3.11 200
DELETE /group_types/{{id}}                                            3.11 202
GET    /group_types/{{id}}/group_specs                                3.11 200
POST   /group_types/{{id}}/group_specs                                3.11 202
GET    /group_types/{{id}}/group_specs/{{key}}                        3.11 200
PUT    /group_types/{{id}}/group_specs/{{key}}                        3.11 200
DELETE /group_types/{{id}}/group_specs/{{key}}                        3.11 202
GET    /group_snapshots                                               3.14 200
GET    /group_snapshots/detail                                        3.14 200
GET    /group_snapshots/{{id}}                                        3.14 200
POST   /group_snapshots                                               3.14 202
DELETE /group_snapshots/{{id}}                                        3.14 202
POST   /group_snapshots/{{id}}/action     reset_status                3.19 202
GET    /consistencygroups                                             3.0  200
GET    /consistencygroups/detail                                      3.0  200
GET    /consistencygroups/{{id}}                                      3.0  200
POST   /consistencygroups                                             3.0  202
POST   /consistencygroups/create_from_src                             3.0  202
POST   /consistencygroups/{{id}}/delete                               3.0  202
PUT    /consistencygroups/{{id}}/update                               3.0  202
PUT    /consistencygroups/{{id}}                                      3.0  202
GET    /cgsnapshots                                                   3.0  200
GET    /cgsnapshots/detail                                            3.0  200
GET    /cgsnapshots/{{id}}                                            3.0  200
POST   /cgsnapshots                                                   3.0  202
DELETE /cgsnapshots/{{id}}                                            3.0  202

GET    /scheduler-stats/get_pools                                     3.0  200
GET    /capabilities/{{host}}                                         3.0  200
GET    /os-hosts                                                      3.0  200
GET    /os-hosts/{{host}}                                             3.0  200
PUT    /os-hosts/{{host}}                                             3.0  200
GET    /os-services                                                   3.0  200
PUT    /os-services/enable                                            3.0  200
PUT    /os-services/disable                                           3.0  200
PUT    /os-services/disable-log-reason                                3.0  200
PUT    /os-services/freeze                                            3.0  200
PUT    /os-services/thaw                                              3.0  200
PUT    /os-services/failover_host                                     3.0  202
PUT    /os-services/failover                                          3.26 202
PUT    /os-services/set-log                                           3.32 202
PUT    /os-services/get-log                                           3.32 200
GET    /clusters                                                      3.7  200
GET    /clusters/detail                                               3.7  200
GET    /clusters/{{name}}                                             3.7  200
PUT    /clusters/enable                                               3.7  200
PUT    /clusters/disable                                              3.7  200
POST   /workers/cleanup                                               3.24 202
GET    /messages                                                      3.3  200
GET    /messages/{{id}}                                               3.3  200
DELETE /messages/{{id}}                                               3.3  204
GET    /limits                                                        3.0  200
GET    /os-quota-sets/{{project}}                                     3.0  200
GET    /os-quota-sets/{{project}}/defaults                            3.0  200
PUT    /os-quota-sets/{{project}}                                     3.0  200
DELETE /os-quota-sets/{{project}}                                     3.0  200
GET    /os-quota-class-sets/{{class}}                                 3.0  200
PUT    /os-quota-class-sets/{{class}}                                 3.0  200
GET    /resource_filters                                              3.33 200
GET    /os-availability-zone                                          3.0  200
GET    /extensions                                                    3.0  200
GET    /extensions/{{alias}}                                          3.0  200
"""

#: By name as in OPERATIONS: what cinderlite does otherwise, or leaves out, and why.
DIFFERS: dict[str, str] = {
    "POST /volumes/{id}/action os-extend_volume_completion": "always 400: librbd and QEMU finish an extension within "
    "the request, so none ever waits for a compute service",
    "POST /volumes/{id}/action os-migrate_volume_completion": "always 400: Ceph moves an image by itself, so none ever "
    "waits for a compute service",
    "POST /volumes/{id}/action os-migrate_volume": "its snapshots go along, which Cinder refuses; a volume in use is "
    "moved by QEMU where cinderlite plugged it in, into one server only, without snapshots, and locked meanwhile",
    "POST /volumes/{id}/action os-retype": "one in use is moved by QEMU where cinderlite plugged it in, as by "
    "os-migrate_volume, and gets other limits of the front end at once",
    "POST /volumes/{id}/action os-force_detach": "asks the server for the disk if that answers, else has Ceph take "
    "nothing more from its client before the volume is free; Cinder only forgets the attachment",
    "DELETE /volumes/{id}": "also one in `error_deleting`, to try again; with `snapshots_outlive_volumes` also one "
    "with snapshots, which stay",
    "DELETE /snapshots/{id}": "also one in `error_deleting`, to try again",
    "POST /snapshots/{id}/action os-force_delete": "also one that belongs to a group snapshot, unless its data are in "
    "a snapshot of several images",
    "POST /qos-specs": "a 400 for a limit that is no whole number, with which Cinder's volumes could not be opened; "
    "limits that exclude each other are taken, and refuse the attach that they are needed for",
    "PUT /qos-specs/{id}": "the same; a change counts at once for disks that cinderlite plugged in, and for images",
    "DELETE /backups/{id}": "also the one that others are incremental to, and one that is still being made: every "
    "backup stands for itself, whatever `has_dependent_backups` says",
    "POST /backups/{id}/restore": "into a new volume: the backup stays `available`, so that several can be restored at "
    "a time, and the volume has the type that the backed-up one has and no description of its own",
    "POST /backups/{id}/action os-reset_status": "400 while work on it is under way, which ends by itself",
    "POST /groups/{id}/action reset_status": "400 while work on it is under way, which ends by itself",
    "GET /backups/{id}/export_record": "a record that cinderlite reads; Cinder's are in a form of their own",
    "GET /clusters": "always empty: any process serves every volume, so there is nothing to cluster; "
    "a cluster that is named is a 404",
    "PUT /os-hosts/{host}": "enables or disables all parts of the host, which Cinder never finished",
    "PUT /os-services/set-log": "acts on the process that answers only, which is all of Cinder's services",
    "PUT /os-services/get-log": "shows the process that answers only, once for each service that it is",
    "PUT /os-services/failover_host": "always 400, as in Cinder for a driver without replication",
    "PUT /os-services/failover": "always 400, as in Cinder for a driver without replication",
    "POST /workers/cleanup": "the process that answers does the work, whichever host began it",
}


def endpoints() -> Iterator[Endpoint]:
    """Every operation in the order of OPERATIONS."""
    for line in OPERATIONS.splitlines():
        words = line.split()
        if words:
            method, path, *action, since, status = words
            yield Endpoint(method, path, action[0] if action else None, since, int(status))
