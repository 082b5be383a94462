# SPDX-License-Identifier: Apache-2.0
"""What the answers of Cinder's v3 API hold, key by key: `METHOD path: envelope: keys`.

An envelope `[]` is a list, `-` stands for none, and a lone `*` for an object of any keys. Behind a key: `@3.N` since when
it is there, `!` that only administrators see it, `?` that it may be missing. Names in capitals are other lines. Where a
path is not listed its answer has no body. Written from Cinder's documents and code; clients and tempest refuse more.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import cinder_api
from cinderlite.api.microversion import Version

_NAMED = {
    "VOLUME": """id user_id name description availability_zone status size created_at updated_at volume_type snapshot_id
        source_volid consistencygroup_id metadata links bootable encrypted multiattach replication_status attachments
        migration_status! group_id@3.13 provider_id@3.21! shared_targets@3.48 service_uuid@3.48 cluster_name@3.61!
        volume_type_id@3.63 encryption_key_id@3.64? consumes_quota@3.65""",
    "VOLUME_SHOWN": """VOLUME os-vol-host-attr:host! os-vol-tenant-attr:tenant_id os-vol-mig-status-attr:migstat!
        os-vol-mig-status-attr:name_id! volume_image_metadata?""",
    "SNAPSHOT": """id created_at updated_at name description volume_id status size metadata group_snapshot_id@3.14
        user_id@3.41 consumes_quota@3.65""",
    "SNAPSHOT_SHOWN": "SNAPSHOT os-extended-snapshot-attributes:project_id os-extended-snapshot-attributes:progress",
    "TYPE_MADE": "id name description is_public os-volume-type-access:is_public extra_specs",
    "TYPE": "TYPE_MADE qos_specs_id!",
    "ENCRYPTION": "volume_type_id encryption_id provider cipher key_size control_location",
    "ATTACHMENT_REF": "id status instance volume_id",
    "ATTACHMENT": "ATTACHMENT_REF attached_at detached_at attach_mode connection_info",
    "TRANSFER_REF": "id volume_id name links",
    "HISTORY": "no_snapshots@3.55 source_project_id@3.57 destination_project_id@3.57 accepted@3.57",
    "OLD_HISTORY": "no_snapshots@3.55? source_project_id@3.57? destination_project_id@3.57? accepted@3.57?",
    "BACKUP": """id status size object_count availability_zone container created_at updated_at name description
        fail_reason volume_id links is_incremental has_dependent_backups snapshot_id data_timestamp metadata@3.43
        os-backup-project-attr:project_id@3.18! user_id@3.56! encryption_key_id@3.64?""",
    "GROUP": """id status availability_zone created_at name description group_type volume_types group_snapshot_id@3.14
        source_group_id@3.14 volumes@3.25? replication_status@3.38 project_id@3.58!""",
    "GROUP_TYPE": "id name description is_public group_specs!",
    "GROUP_SNAPSHOT_REF": "id name group_type_id",
    "GROUP_SNAPSHOT": "GROUP_SNAPSHOT_REF group_id status created_at description project_id@3.58!",
    "CONSISTENCY": "id name status availability_zone created_at description volume_types",
    "CGSNAPSHOT": "id name consistencygroup_id status created_at description",
    "MANAGEABLE": "reference size safe_to_manage",
    "MANAGEABLE_MORE": "reason_not_safe cinder_id extra_info",
    "SERVICE": """binary host zone status state updated_at disabled_reason replication_status? active_backend_id? frozen?
        cluster@3.7 backend_state@3.49?""",
    "CLUSTER": "name binary state status replication_status@3.26",
    "CLUSTER_SHOWN": """CLUSTER num_hosts num_down_hosts last_heartbeat created_at updated_at disabled_reason frozen@3.26
        active_backend_id@3.26""",
    "MESSAGE": """id event_id user_message message_level created_at guaranteed_until request_id links resource_type?
        resource_uuid?""",
    "QUOTA": "volumes snapshots gigabytes backups backup_gigabytes per_volume_gigabytes groups",
}


def _metadata(path: str) -> str:
    whole = "".join(f"{method} {path}/{{}}/metadata: metadata: *\n" for method in ("GET", "POST", "PUT"))
    return whole + "".join(f"{method} {path}/{{}}/metadata/{{}}: meta: *\n" for method in ("GET", "PUT"))


def _transfers(path: str, history: str) -> str:
    return f"""
GET {path}: transfers[]: TRANSFER_REF
GET {path}/detail: transfers[]: TRANSFER_REF created_at {history}
GET {path}/{{}}: transfer: TRANSFER_REF created_at {history}
POST {path}: transfer: TRANSFER_REF created_at auth_key {history}
POST {path}/{{}}/accept: transfer: TRANSFER_REF
"""


def _manageable(kind: str, plural: str, more: str, made: str) -> str:
    return "".join(
        f"GET {path}: {plural}[]: MANAGEABLE {more}\nGET {path}/detail: {plural}[]: MANAGEABLE {more} MANAGEABLE_MORE\n"
        f"POST {path}: {kind}: {made}\n"
        for path in (f"/os-{kind}-manage", f"/manageable_{kind}s")
    )


SHAPES = f"""
GET /volumes: volumes[]: id name links
GET /volumes/detail: volumes[]: VOLUME_SHOWN
GET /volumes/summary: volume-summary: total_count total_size metadata@3.36
POST /volumes: volume: VOLUME
GET /volumes/{{}}: volume: VOLUME_SHOWN
PUT /volumes/{{}}: volume: VOLUME
GET /volumes/{{}}/encryption: -: encryption_key_id control_location? cipher? key_size? provider?
{_metadata("/volumes")}
POST /volumes/{{}}/action os-initialize_connection: connection_info: driver_volume_type data enforce_multipath?
POST /volumes/{{}}/action os-volume_upload_image: os-volume_upload_image: id updated_at status display_description size
 volume_type image_id container_format disk_format image_name protected@3.1 visibility@3.1
POST /volumes/{{}}/action os-migrate_volume_completion: -: save_volume_id
POST /volumes/{{}}/action os-set_image_metadata: metadata: *
POST /volumes/{{}}/action os-show_image_metadata: metadata: *

GET /snapshots: snapshots[]: SNAPSHOT
GET /snapshots/detail: snapshots[]: SNAPSHOT_SHOWN
GET /snapshots/{{}}: snapshot: SNAPSHOT_SHOWN
POST /snapshots: snapshot: SNAPSHOT
PUT /snapshots/{{}}: snapshot: SNAPSHOT
{_metadata("/snapshots")}
{_manageable("volume", "manageable-volumes", "", "VOLUME")}
{_manageable("snapshot", "manageable-snapshots", "source_reference", "SNAPSHOT")}

GET /types: volume_types[]: TYPE
GET /types/default: volume_type: TYPE
GET /types/{{}}: volume_type: TYPE
POST /types: volume_type: TYPE_MADE
PUT /types/{{}}: volume_type: id name description is_public extra_specs
GET /types/{{}}/extra_specs: extra_specs: *
POST /types/{{}}/extra_specs: extra_specs: *
GET /types/{{}}/extra_specs/{{}}: -: *
PUT /types/{{}}/extra_specs/{{}}: -: *
GET /types/{{}}/os-volume-type-access: volume_type_access[]: volume_type_id project_id
GET /types/{{}}/encryption: -: encryption_id? volume_type_id? provider? cipher? key_size? control_location? created_at?
 updated_at? deleted? deleted_at?
POST /types/{{}}/encryption: encryption: ENCRYPTION
GET /types/{{}}/encryption/{{}}: -: *
PUT /types/{{}}/encryption/{{}}: encryption: *
GET /default-types: default_types[]: project_id volume_type_id
GET /default-types/{{}}: default_type: project_id volume_type_id
PUT /default-types/{{}}: default_type: project_id volume_type_id
GET /qos-specs: qos_specs[]: id name consumer specs
POST /qos-specs: qos_specs: id name consumer specs
GET /qos-specs/{{}}: qos_specs: id name consumer specs
PUT /qos-specs/{{}}: qos_specs: *
GET /qos-specs/{{}}/associations: qos_associations[]: association_type name id

GET /attachments: attachments[]: ATTACHMENT_REF
GET /attachments/detail: attachments[]: ATTACHMENT
GET /attachments/{{}}: attachment: ATTACHMENT
POST /attachments: attachment: ATTACHMENT
PUT /attachments/{{}}: attachment: ATTACHMENT
DELETE /attachments/{{}}: attachments[]: ATTACHMENT_REF
{_transfers("/volume-transfers", "HISTORY")}
{_transfers("/os-volume-transfer", "OLD_HISTORY")}

GET /backups: backups[]: id name links
GET /backups/detail: backups[]: BACKUP
GET /backups/{{}}: backup: BACKUP
POST /backups: backup: id name links
PUT /backups/{{}}: backup: id name links
POST /backups/{{}}/restore: restore: backup_id volume_id volume_name
GET /backups/{{}}/export_record: backup-record: backup_service backup_url
POST /backups/import_record: backup: id name links

GET /groups: groups[]: id name
GET /groups/detail: groups[]: GROUP
GET /groups/{{}}: group: GROUP
POST /groups: group: id name
POST /groups/action create-from-src: group: id name
POST /groups/{{}}/action list_replication_targets: replication_targets[]: *
GET /group_types: group_types[]: GROUP_TYPE
GET /group_types/default: group_type: GROUP_TYPE
GET /group_types/{{}}: group_type: GROUP_TYPE
POST /group_types: group_type: GROUP_TYPE
PUT /group_types/{{}}: group_type: GROUP_TYPE
GET /group_types/{{}}/group_specs: group_specs: *
POST /group_types/{{}}/group_specs: group_specs: *
GET /group_types/{{}}/group_specs/{{}}: -: *
PUT /group_types/{{}}/group_specs/{{}}: -: *
GET /group_snapshots: group_snapshots[]: id name
GET /group_snapshots/detail: group_snapshots[]: GROUP_SNAPSHOT
GET /group_snapshots/{{}}: group_snapshot: GROUP_SNAPSHOT
POST /group_snapshots: group_snapshot: GROUP_SNAPSHOT_REF
GET /consistencygroups: consistencygroups[]: id name
GET /consistencygroups/detail: consistencygroups[]: CONSISTENCY
GET /consistencygroups/{{}}: consistencygroup: CONSISTENCY
POST /consistencygroups: consistencygroup: id name
POST /consistencygroups/create_from_src: consistencygroup: id name
GET /cgsnapshots: cgsnapshots[]: id name
GET /cgsnapshots/detail: cgsnapshots[]: CGSNAPSHOT
GET /cgsnapshots/{{}}: cgsnapshot: CGSNAPSHOT
POST /cgsnapshots: cgsnapshot: id name

GET /scheduler-stats/get_pools: pools[]: name capabilities?
GET /capabilities/{{}}: -: namespace vendor_name volume_backend_name pool_name driver_version storage_protocol
 display_name description visibility replication_targets properties
GET /os-hosts: hosts[]: host_name service zone service-status service-state last-update
GET /os-hosts/{{}}: host[]: resource
PUT /os-hosts/{{}}: -: *
GET /os-services: services[]: SERVICE
PUT /os-services/enable: -: host service binary status disabled
PUT /os-services/disable: -: host service binary status disabled
PUT /os-services/disable-log-reason: -: host service binary status disabled disabled_reason
PUT /os-services/get-log: log_levels[]: host binary levels
GET /clusters: clusters[]: CLUSTER
GET /clusters/detail: clusters[]: CLUSTER_SHOWN
GET /clusters/{{}}: cluster: CLUSTER_SHOWN
PUT /clusters/enable: cluster: CLUSTER disabled_reason
PUT /clusters/disable: cluster: CLUSTER disabled_reason
POST /workers/cleanup: -: cleaning unavailable
GET /messages: messages[]: MESSAGE
GET /messages/{{}}: message: MESSAGE
GET /limits: limits: rate absolute
GET /os-quota-sets/{{}}: quota_set: id QUOTA TYPES
GET /os-quota-sets/{{}}/defaults: quota_set: id QUOTA TYPES
PUT /os-quota-sets/{{}}: quota_set: QUOTA TYPES
GET /os-quota-class-sets/{{}}: quota_class_set: id QUOTA TYPES
PUT /os-quota-class-sets/{{}}: quota_class_set: QUOTA TYPES
GET /resource_filters: resource_filters[]: resource filters
GET /os-availability-zone: availabilityZoneInfo[]: zoneName zoneState
GET /extensions: extensions[]: alias name description updated links
GET /extensions/{{}}: extension: alias name description updated links
"""

#: Keys beside a list's: some are in the singular, and some lists have none.
LINKS = {
    "volumes": "volumes_links", "snapshots": "snapshots_links", "backups": "backups_links",
    "messages": "messages_links", "transfers": "transfers_links", "qos_specs": "qos_specs_links",
    "volume_types": "volume_type_links", "groups": "group_links", "group_types": "group_type_links",
    "group_snapshots": "group_snapshot_links", "consistencygroups": "consistencygroup_links",
}  # fmt: skip
#: Keys beside one object's.
BESIDE = {"qos_specs": {"links"}}
#: Quotas of a type's own.
_OF_TYPE = re.compile(r"(volumes|snapshots|gigabytes)_.+")
_KEY = re.compile(r"(?P<name>[^@!?]+)(@(?P<since>[\d.]+))?(?P<admin>!)?(?P<missing>\?)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """The keys of one answer."""

    envelope: str
    several: bool
    keys: tuple[str, ...]

    def complaint(self, said: Any, version: Version, *, admin: bool) -> str | None:
        """What is wrong with an answer's body; None if nothing is."""
        if self.envelope == "-":
            return self._object(said, version, admin=admin)
        if not isinstance(said, dict) or self.envelope not in said:
            return f"there is no {self.envelope}"
        beside = said.keys() - {self.envelope} - ({LINKS.get(self.envelope), "count"} if self.several else set())
        if beside - BESIDE.get(self.envelope, set()):
            return f"{beside} beside {self.envelope}"
        inner = said[self.envelope]
        if isinstance(inner, list) != self.several:
            return f"{self.envelope} is {type(inner).__name__}"
        complaints = (self._object(one, version, admin=admin) for one in (inner if self.several else [inner]))
        return next((complaint for complaint in complaints if complaint), None)

    def _object(self, said: Any, version: Version, *, admin: bool) -> str | None:
        if self.keys == ("*",):
            return None
        if not isinstance(said, dict):
            return f"{said!r} is no object"
        needed, allowed = set(), set()
        for key in self.keys:
            match = _KEY.fullmatch(key)
            assert match is not None, key
            if version < Version.parse(match["since"] or "3.0") or (match["admin"] and not admin):
                continue
            allowed.add(match["name"])
            if not match["missing"]:
                needed.add(match["name"])
        more = {key for key in said.keys() - allowed if not ("TYPES" in allowed and _OF_TYPE.fullmatch(key))}
        fewer = needed - said.keys() - {"TYPES"}
        return f"too many: {sorted(more)}, missing: {sorted(fewer)}" if more or fewer else _times(said)


def _times(said: Mapping[str, Any]) -> str | None:
    """Six digits of a second and no zone, null or (in attachments) nothing: that is what the clients parse."""
    for key, value in said.items():
        if key.endswith("_at") and value and not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", value):
            return f"{key} is {value}"
    return None


def _expanded(words: list[str]) -> list[str]:
    return [key for word in words for key in (_expanded(_NAMED[word].split()) if word in _NAMED else [word])]


def _parsed() -> dict[tuple[str, str, str | None], Shape]:
    found = {}
    for line in SHAPES.replace("\n ", " ").splitlines():
        if line:
            operation, envelope, keys = line.split(": ", 2)
            method, path, *action = operation.split()
            shape = Shape(envelope.removesuffix("[]"), envelope.endswith("[]"), tuple(_expanded(keys.split())))
            found[method, cinder_api.normal(path), action[0] if action else None] = shape
    return found


BY_OPERATION = _parsed()
