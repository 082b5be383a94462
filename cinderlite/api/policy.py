# SPDX-License-Identifier: Apache-2.0
"""Who may do what: oslo.policy with Cinder's and Nova's rule names and the defaults of the newer role model.

The rules that operations and fields name must stand here (refused at start-up otherwise), so that the generated
sample and the enforcement cannot differ. An operator's `policy.yaml` overrides them by name, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oslo_config import cfg
from oslo_policy import policy

from cinderlite.context import Context

ADMIN = "rule:admin_api"
READER = "rule:xena_system_admin_or_project_reader"
MEMBER = "rule:xena_system_admin_or_project_member"
ANYBODY = ""

BASE = [
    policy.RuleDefault("context_is_admin", "role:admin", "Decides what counts for an administrator."),
    policy.RuleDefault("admin_api", "is_admin:True", "Default rule for what only administrators may."),
    policy.RuleDefault(
        "admin_or_owner", "is_admin:True or project_id:%(project_id)s", "An administrator or the owner."
    ),
    policy.RuleDefault(
        "xena_system_admin_or_project_reader",
        "(role:admin) or (role:reader and project_id:%(project_id)s)",
        "Reading: an administrator, or a reader of the project.",
    ),
    policy.RuleDefault(
        "xena_system_admin_or_project_member",
        "(role:admin) or (role:member and project_id:%(project_id)s)",
        "Changing: an administrator, or a member of the project.",
    ),
]


def _rule(name: str, check: str, description: str) -> policy.RuleDefault:
    return policy.RuleDefault(name, check, description)


RULES = [
    *BASE,
    _rule("volume:create", MEMBER, "Create a volume."),
    _rule("volume:get", READER, "Show a volume."),
    _rule("volume:get_all", READER, "List volumes and sum them up."),
    _rule("volume:update", MEMBER, "Change a volume's name and description."),
    _rule("volume:delete", MEMBER, "Delete a volume."),
    _rule("volume:get_volume_metadata", READER, "Show a volume's metadata."),
    _rule("volume:create_volume_metadata", MEMBER, "Add to a volume's metadata."),
    _rule("volume:update_volume_metadata", MEMBER, "Replace a volume's metadata."),
    _rule("volume:delete_volume_metadata", MEMBER, "Remove a key of a volume's metadata."),
    _rule("volume_extension:volume_host_attribute", ADMIN, "See on which back end a volume is."),
    _rule("volume_extension:volume_tenant_attribute", READER, "See to which project a volume belongs."),
    _rule("volume_extension:volume_mig_status_attribute", ADMIN, "See how a volume's migration goes."),
    _rule("volume_extension:type_get", READER, "Show a volume type."),
    _rule("volume_extension:type_get_all", READER, "List volume types."),
    _rule("volume_extension:access_types_extra_specs", READER, "See the extra specs of volume types."),
    _rule("volume_extension:access_types_qos_specs_id", ADMIN, "See the QoS specs of volume types."),
    _rule("volume_extension:quotas:show", READER, "Show a project's quota."),
    _rule("volume_extension:quotas:update", ADMIN, "Change a project's quota."),
    _rule("volume_extension:quotas:delete", ADMIN, "Give a project the default quota again."),
    _rule("limits_extension:used_limits", READER, "Show what a project uses of its limits."),
    _rule("volume_extension:services:index", ADMIN, "List services."),
    _rule("scheduler_extension:scheduler_stats:get_pools", ADMIN, "List pools with their figures."),
    _rule("volume:attachment_get", READER, "Show an attachment."),
    _rule("volume:attachment_get_all", READER, "List attachments."),
    _rule("message:get_all", READER, "List user messages."),
    _rule("message:get", READER, "Show a user message."),
    _rule("message:delete", MEMBER, "Delete a user message."),
    _rule("os_compute_api:servers:index", READER, "List servers."),
    _rule("os_compute_api:servers:detail", READER, "List servers in detail."),
    _rule("os_compute_api:servers:show", READER, "Show a server."),
    _rule("os_compute_api:os-extended-server-attributes", ADMIN, "See on which host a server runs."),
    _rule("os_compute_api:os-flavor-access", READER, "List flavors."),
    _rule("os_compute_api:os-availability-zone:list", READER, "List the compute service's availability zones."),
    _rule("os_compute_api:os-availability-zone:detail", ADMIN, "List availability zones with their hosts."),
    _rule("os_compute_api:limits", READER, "Show the compute limits."),
    _rule("os_compute_api:os-volumes-attachments:index", READER, "List a server's volumes."),
    _rule("os_compute_api:os-volumes-attachments:show", READER, "Show a volume of a server."),
    _rule("os_compute_api:os-volumes-attachments:create", MEMBER, "Attach a volume to a server."),
    _rule("os_compute_api:os-volumes-attachments:delete", MEMBER, "Detach a volume from a server."),
]


def list_rules() -> list[policy.RuleDefault]:
    """Every rule with its default, for enforcement and for the generated sample."""
    return RULES


def get_enforcer() -> policy.Enforcer:
    """An enforcer for oslo.policy's command-line tools, from the default configuration files."""
    conf = cfg.ConfigOpts()
    conf([], project="cinderlite")
    enforcer = policy.Enforcer(conf)
    enforcer.register_defaults(RULES)
    return enforcer


class Policy:
    """The rules in force."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._enforcer = policy.Enforcer(conf)
        self._enforcer.suppress_default_change_warnings = True
        self._enforcer.register_defaults(RULES)
        self._enforcer.load_rules()

    def refuse_unknown(self, names: Iterable[str]) -> None:
        """Raise ValueError if an operation or field names a rule that has no default here."""
        missing = sorted(set(names) - {rule.name for rule in RULES})
        if missing:
            raise ValueError(f"no default for the policy rules {missing}")

    def is_admin(self, roles: Iterable[str]) -> bool:
        """Whether somebody with these roles is an administrator."""
        return bool(self._enforcer.enforce("context_is_admin", {}, {"roles": list(roles)}))

    def allows(self, ctx: Context, rule: str, target: Any) -> bool:
        """Whether the caller may do `rule` to `target`, any object with project_id and user_id."""
        credentials = {
            "user_id": ctx.user_id,
            "project_id": ctx.project_id,
            "roles": list(ctx.roles),
            "service_roles": list(ctx.service_roles),
            "is_admin": ctx.is_admin,
        }
        owner = {
            "project_id": getattr(target, "project_id", ctx.project_id),
            "user_id": getattr(target, "user_id", ctx.user_id),
        }
        return bool(self._enforcer.enforce(rule, owner, credentials))
