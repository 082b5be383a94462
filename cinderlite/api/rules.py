# SPDX-License-Identifier: Apache-2.0
"""The policy rules with their defaults: Cinder's and Nova's names, so that an operator's policy file keeps its meaning.

Data only; `policy` asks them. A rule that stands here and is asked by no operation is one of Cinder's that decides on
something this service cannot do, or does under another rule; a file that names it loads all the same.
"""

from __future__ import annotations

from oslo_policy import policy

ADMIN = "rule:admin_api"
READER = "rule:xena_system_admin_or_project_reader"
MEMBER = "rule:xena_system_admin_or_project_member"
#: A cloud without Keystone has nobody of the role "service": there an administrator stands in.
SERVICE = "rule:service_api or rule:admin_api"

BASE = {
    "context_is_admin": ("role:admin", "Decides what counts for an administrator."),
    "admin_api": ("is_admin:True", "Default rule for what only administrators may."),
    "service_api": (
        "role:service or service_roles:service",
        "Another service: by itself, or with its token beside that of the user on whose behalf it calls.",
    ),
    "admin_or_owner": ("is_admin:True or project_id:%(project_id)s", "An administrator or the owner."),
    "xena_system_admin_or_project_reader": (
        "(role:admin) or (role:reader and project_id:%(project_id)s)",
        "Reading: an administrator, or a reader of the project.",
    ),
    "xena_system_admin_or_project_member": (
        "(role:admin) or (role:member and project_id:%(project_id)s)",
        "Changing: an administrator, or a member of the project.",
    ),
    # Names that Cinder's own files refer to. There is no system scope here: an administrator is one everywhere.
    "system_reader_or_project_reader": (
        "rule:xena_system_admin_or_project_reader",
        "Of Cinder's earlier defaults, for files that refer to it.",
    ),
    "system_admin_or_project_member": (
        "rule:xena_system_admin_or_project_member",
        "Of Cinder's earlier defaults, for files that refer to it.",
    ),
    "system_admin_or_project_admin": ("role:admin", "Of Cinder's earlier defaults, for files that refer to it."),
    "system_admin_only": ("role:admin", "Of Cinder's earlier defaults, for files that refer to it."),
    "system_or_domain_or_project_admin": ("role:admin", "Of Cinder's earlier defaults, for files that refer to it."),
}

FOR_READERS = {
    "volume:get": "Show a volume.",
    "volume:get_all": "List volumes and sum them up.",
    "volume:get_volume_metadata": "Show a volume's metadata.",
    "volume_extension:volume_tenant_attribute": "See to which project a volume belongs.",
    "volume_extension:volume_encryption_metadata": "See how a volume is encrypted.",
    "volume_extension:volume_image_metadata:show": "See what is known of the image that a volume was made from.",
    "volume:get_snapshot": "Show a snapshot.",
    "volume:get_all_snapshots": "List snapshots.",
    "volume:get_snapshot_metadata": "Show a snapshot's metadata.",
    "volume_extension:extended_snapshot_attributes": "See a snapshot's project and progress.",
    "volume:attachment_get": "Show an attachment.",
    "volume:attachment_get_all": "List attachments.",
    "volume:get_transfer": "Show a transfer.",
    "volume:get_all_transfers": "List transfers.",
    "volume_extension:type_get": "Show a volume type.",
    "volume_extension:type_get_all": "List volume types.",
    "volume_extension:access_types_extra_specs": "See the extra specs of volume types.",
    "volume_extension:types_extra_specs:index": "List a type's extra specs.",
    "volume_extension:types_extra_specs:show": "Show one of a type's extra specs.",
    "backup:get": "Show a backup.",
    "backup:get_all": "List backups.",
    "group:get": "Show a group.",
    "group:get_all": "List groups.",
    "group:get_group_snapshot": "Show a group snapshot.",
    "group:get_all_group_snapshots": "List group snapshots.",
    "message:get": "Show a user message.",
    "message:get_all": "List user messages.",
    "volume_extension:quotas:show": "Show a project's quota.",
    "limits_extension:used_limits": "Show what a project uses of its limits.",
    "os_compute_api:servers:index": "List servers.",
    "os_compute_api:servers:detail": "List servers in detail.",
    "os_compute_api:servers:show": "Show a server.",
    "os_compute_api:os-flavor-access": "List flavors.",
    "os_compute_api:os-availability-zone:list": "List the compute service's availability zones.",
    "os_compute_api:limits": "Show the compute limits.",
    "os_compute_api:os-volumes-attachments:index": "List a server's volumes.",
    "os_compute_api:os-volumes-attachments:show": "Show a volume of a server.",
    "os_compute_api:os-instance-actions:list": "List what was done to a server.",
    "os_compute_api:os-instance-actions:show": "Show one thing that was done to a server.",
    "os_compute_api:os-quota-sets:show": "Show the compute quotas of a project.",
    "os_compute_api:os-quota-sets:detail": "Show the compute quotas of a project with what is used.",
    "os_compute_api:os-quota-sets:defaults": "Show the default compute quotas.",
}

FOR_MEMBERS = {
    "volume:create": "Create a volume.",
    "volume:create_from_image": "Create a volume from an image.",
    "volume:update": "Change a volume's name and description.",
    "volume:delete": "Delete a volume.",
    "volume:create_volume_metadata": "Add to a volume's metadata.",
    "volume:update_volume_metadata": "Replace a volume's metadata.",
    "volume:delete_volume_metadata": "Remove a key of a volume's metadata.",
    "volume_extension:volume_image_metadata:set": "Add to what is known of a volume's image.",
    "volume_extension:volume_image_metadata:remove": "Remove a key of what is known of a volume's image.",
    "volume:extend": "Make a volume bigger.",
    "volume:extend_attached_volume": "Make a volume bigger while it is attached.",
    "volume:revert_to_snapshot": "Take a volume back to its newest snapshot.",
    "volume:retype": "Give a volume another type.",
    "volume:update_readonly_flag": "Allow only reading of a volume, or writing again.",
    "volume:multiattach": "Create a volume that several servers may hold.",
    "volume:multiattach_bootable_volume": "Attach a bootable volume to several servers.",
    "volume:reimage": "Write an image over a volume.",
    "volume:reimage_reserved": "Write an image over a volume that is reserved.",
    "volume_extension:volume_actions:upload_image": "Make an image of a volume.",
    "volume_extension:volume_actions:initialize_connection": "Ask how a volume is opened.",
    "volume_extension:volume_actions:terminate_connection": "Say that a volume is not open any more.",
    "volume_extension:volume_actions:reserve": "Reserve a volume for attaching.",
    "volume_extension:volume_actions:unreserve": "Take a reservation back.",
    "volume_extension:volume_actions:begin_detaching": "Mark a volume as being detached.",
    "volume_extension:volume_actions:roll_detaching": "Take that mark back.",
    "volume_extension:volume_actions:attach": "Note that a volume is attached.",
    "volume_extension:volume_actions:detach": "Note that a volume is detached.",
    "volume:create_snapshot": "Create a snapshot.",
    "volume:update_snapshot": "Change a snapshot's name and description.",
    "volume:delete_snapshot": "Delete a snapshot.",
    "volume:update_snapshot_metadata": "Change a snapshot's metadata.",
    "volume:delete_snapshot_metadata": "Remove a key of a snapshot's metadata.",
    "snapshot_extension:snapshot_actions:update_snapshot_status": "Report how far a snapshot is.",
    "volume:attachment_create": "Create an attachment.",
    "volume:attachment_update": "Tell an attachment its connector.",
    "volume:attachment_complete": "Mark an attachment as done.",
    "volume:attachment_delete": "Delete an attachment.",
    "volume:create_transfer": "Offer a volume to another project.",
    "volume:accept_transfer": "Take an offered volume.",
    "volume:delete_transfer": "Take an offer back.",
    "volume_extension:volume_type_access": "See whether a volume type is public.",
    "backup:create": "Create a backup.",
    "backup:update": "Change a backup's name, description and metadata.",
    "backup:delete": "Delete a backup.",
    "backup:restore": "Restore a backup.",
    "group:create": "Create a group.",
    "group:update": "Change a group and its members.",
    "group:delete": "Delete a group.",
    "group:enable_replication": "Have a group replicated.",
    "group:disable_replication": "Have a group not replicated.",
    "group:failover_replication": "Move a group to its replica.",
    "group:list_replication_targets": "List where a group is replicated.",
    "group:create_group_snapshot": "Create a group snapshot.",
    "group:update_group_snapshot": "Change a group snapshot.",
    "group:delete_group_snapshot": "Delete a group snapshot.",
    "message:delete": "Delete a user message.",
    "os_compute_api:os-volumes-attachments:create": "Attach a volume to a server.",
    "os_compute_api:os-volumes-attachments:update": "Change what becomes of a volume when its server ends.",
    "os_compute_api:os-volumes-attachments:delete": "Detach a volume from a server.",
}

FOR_ADMINS = {
    "volume:force_delete": "Delete a volume in whatever state.",
    "volume:update_volume_admin_metadata": "Change what only administrators see of a volume.",
    "volume_extension:volume_host_attribute": "See on which back end a volume is.",
    "volume_extension:volume_mig_status_attribute": "See how a volume's migration goes.",
    "volume_extension:volume_admin_actions:reset_status": "Set a volume's status by hand.",
    "volume_extension:volume_admin_actions:force_delete": "Delete a volume whatever its status.",
    "volume_extension:volume_admin_actions:force_detach": "Detach a volume whatever its status.",
    "volume_extension:volume_admin_actions:extend_volume_completion": "Report that an attached volume is bigger.",
    "volume_extension:volume_admin_actions:migrate_volume": "Move a volume to another back end.",
    "volume_extension:volume_admin_actions:migrate_volume_completion": "Finish a volume's migration by hand.",
    "volume_extension:volume_actions:upload_public": "Make a public image of a volume.",
    "volume_extension:list_manageable": "List images that could become volumes.",
    "volume_extension:volume_manage": "Make a volume of an image that is there already.",
    "volume_extension:volume_unmanage": "Forget a volume and leave its image.",
    "snapshot_extension:list_manageable": "List RBD snapshots that could become snapshots.",
    "snapshot_extension:snapshot_manage": "Make a snapshot of an RBD snapshot that is there already.",
    "snapshot_extension:snapshot_unmanage": "Forget a snapshot and leave it in Ceph.",
    "volume_extension:snapshot_admin_actions:reset_status": "Set a snapshot's status by hand.",
    "volume_extension:snapshot_admin_actions:force_delete": "Delete a snapshot whatever its status.",
    "volume_extension:type_create": "Create a volume type.",
    "volume_extension:type_update": "Change a volume type.",
    "volume_extension:type_delete": "Delete a volume type.",
    "volume_extension:access_types_qos_specs_id": "See the QoS specs of volume types.",
    "volume_extension:types_extra_specs:create": "Add extra specs to a type.",
    "volume_extension:types_extra_specs:update": "Change one of a type's extra specs.",
    "volume_extension:types_extra_specs:delete": "Remove one of a type's extra specs.",
    "volume_extension:types_extra_specs:read_sensitive": "See all extra specs, not only those meant for tenants.",
    "volume_extension:volume_type_access:addProjectAccess": "Let a project use a private type.",
    "volume_extension:volume_type_access:removeProjectAccess": "Let a project use a private type no more.",
    "volume_extension:volume_type_access:get_all_for_type": "List the projects that may use a private type.",
    "volume_extension:volume_type_encryption": "Default for what concerns the encryption of types.",
    "volume_extension:volume_type_encryption:create": "Have the volumes of a type encrypted.",
    "volume_extension:volume_type_encryption:get": "See how the volumes of a type are encrypted.",
    "volume_extension:volume_type_encryption:update": "Change how the volumes of a type are encrypted.",
    "volume_extension:volume_type_encryption:delete": "Have the volumes of a type encrypted no more.",
    "volume_extension:default_get": "Show a project's default type.",
    "volume_extension:default_get_all": "List the projects' default types.",
    "volume_extension:default_set_or_update": "Set a project's default type.",
    "volume_extension:default_unset": "Remove a project's default type.",
    "volume_extension:qos_specs_manage:get": "Show QoS specs.",
    "volume_extension:qos_specs_manage:get_all": "List QoS specs.",
    "volume_extension:qos_specs_manage:create": "Create QoS specs.",
    "volume_extension:qos_specs_manage:update": "Change QoS specs and their associations.",
    "volume_extension:qos_specs_manage:delete": "Delete QoS specs.",
    "group:group_types:create": "Create a group type.",
    "group:group_types:update": "Change a group type.",
    "group:group_types:delete": "Delete a group type.",
    "group:access_group_types_specs": "See the specs of group types.",
    "group:group_types_specs:get": "Show one of a group type's specs.",
    "group:group_types_specs:get_all": "List a group type's specs.",
    "group:group_types_specs:create": "Add specs to a group type.",
    "group:group_types_specs:update": "Change one of a group type's specs.",
    "group:group_types_specs:delete": "Remove one of a group type's specs.",
    "group:reset_status": "Set a group's status by hand.",
    "group:reset_group_snapshot_status": "Set a group snapshot's status by hand.",
    "group:group_project_attribute": "See to which project a group belongs.",
    "group:group_snapshot_project_attribute": "See to which project a group snapshot belongs.",
    "backup:backup_project_attribute": "See to which project a backup belongs.",
    "backup:backup-import": "Import a backup's record.",
    "backup:export-import": "Export a backup's record.",
    "volume_extension:backup_admin_actions:reset_status": "Set a backup's status by hand.",
    "volume_extension:backup_admin_actions:force_delete": "Delete a backup whatever its status.",
    "volume_extension:quotas:update": "Change a project's quota.",
    "volume_extension:quotas:delete": "Give a project the default quota again.",
    "volume_extension:quota_classes:get": "Show a quota class.",
    "volume_extension:quota_classes:update": "Change a quota class.",
    "volume_extension:services:index": "List services.",
    "volume_extension:services:update": "Enable and disable services, and set log levels.",
    "volume:freeze_host": "Freeze a back end.",
    "volume:thaw_host": "Thaw a back end.",
    "volume:failover_host": "Move a back end to its replica.",
    "volume_extension:hosts": "List hosts and what they hold.",
    "volume_extension:capabilities": "See what a back end can do.",
    "scheduler_extension:scheduler_stats:get_pools": "List pools with their figures.",
    "clusters:get": "Show a cluster of services.",
    "clusters:get_all": "List clusters of services.",
    "clusters:update": "Enable and disable a cluster of services.",
    "workers:cleanup": "Have interrupted work taken up.",
    "os_compute_api:os-extended-server-attributes": "See on which host a server runs.",
    "os_compute_api:os-server-diagnostics": "See how many more disks a server takes.",
    "os_compute_api:os-availability-zone:detail": "List availability zones with their hosts.",
    "os_compute_api:os-instance-actions:events": "See in full what became of an action on a server.",
    "os_compute_api:os-services:list": "List the hosts of servers as compute services.",
}

FOR_SERVICES = {
    "cinderlite:servers:launch": "See what a server is to be started with, and with that what opens its volumes.",
    "os_compute_api:os-volumes-attachments:swap": "Have a server use another volume in place of one.",
    "os_compute_api:os-server-external-events:create": "Tell of something that happened to a server's volume or port.",
    "os_compute_api:os-assisted-volume-snapshots:create": "Have a snapshot taken by the server that has the volume.",
    "os_compute_api:os-assisted-volume-snapshots:delete": "Have such a snapshot removed.",
}

#: Every rule with its default check and what it decides.
#: Rule → what it was called when Cinder had one for several: a file that still has that name decides.
FORMERLY = {
    **dict.fromkeys(
        ("group:group_types:create", "group:group_types:update", "group:group_types:delete"), "group:group_types_manage"
    ),
    **{f"group:group_types_specs:{verb}": "group:group_types_specs"
       for verb in ("get", "get_all", "create", "update", "delete")},
    **{f"volume_extension:quota_classes:{verb}": "volume_extension:quota_classes" for verb in ("get", "update")},
    **{f"volume_extension:volume_image_metadata:{verb}": "volume_extension:volume_image_metadata"
       for verb in ("show", "set", "remove")},
    **{f"volume_extension:type_{verb}": "volume_extension:types_manage" for verb in ("create", "update", "delete")},
}  # fmt: skip


def _rule(name: str, check: str, description: str) -> policy.RuleDefault:
    if name not in FORMERLY:
        return policy.RuleDefault(name, check, description)
    old = policy.DeprecatedRule(
        FORMERLY[name], check, deprecated_reason="Cinder split it into several.", deprecated_since="Xena"
    )
    return policy.RuleDefault(name, check, description, deprecated_rule=old)


RULES = [
    *(policy.RuleDefault(name, check, description) for name, (check, description) in BASE.items()),
    *(
        _rule(name, check, description)
        for check, rules in ((READER, FOR_READERS), (MEMBER, FOR_MEMBERS), (ADMIN, FOR_ADMINS), (SERVICE, FOR_SERVICES))
        for name, description in rules.items()
    ),
]
