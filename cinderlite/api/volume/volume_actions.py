# SPDX-License-Identifier: Apache-2.0
"""/volumes/<id>/action: what is done to a volume beside its attachments and its image."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, pre_load, validate, validates_schema
from marshmallow.exceptions import ValidationError

from cinderlite import errors
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW, ActionBody, Bool, GiB, Id, Word, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import moves, types, volumes
from cinderlite.db import models

bp = Blueprint("volume_actions", SERVICE, "Actions on volumes.")

RULE = "/volumes/<id>/action"
#: Since when a volume in use can be extended, and the rule that then decides too.
EXTEND_IN_USE = Version(3, 42)
ATTACHED = "volume:extend_attached_volume"
STATUSES = (
    "attaching", "available", "awaiting-transfer", "backing-up", "creating", "detaching", "downloading", "error",
    "error_backing-up", "error_deleting", "error_extending", "error_managing", "error_restoring", "extending", "in-use",
    "maintenance", "managing", "reserved", "restoring-backup", "retyping", "uploading",
)  # fmt: skip


class Extend(ActionBody):
    """The size that the volume is to have."""

    new_size = GiB(required=True)


@bp.action(RULE, "os-extend", body=Extend, policy="volume:extend", on=volumes.bare, slow=True)
def extend(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Make a volume bigger; since 3.42 also one in use, whose servers see it at once."""
    in_use = VIEW.get().version >= EXTEND_IN_USE
    if in_use and not VIEW.get().allows(ATTACHED):
        in_use = False
        if volume.status == "in-use":
            raise errors.Forbidden(ATTACHED)
    volumes.extend(ctx, volume, body["new_size"], in_use=in_use)


class ExtendCompletion(ActionBody):
    """Whether the compute service failed."""

    error = Bool()


@bp.action(
    RULE,
    "os-extend_volume_completion",
    body=ExtendCompletion,
    policy="volume_extension:volume_admin_actions:extend_volume_completion",
    on=volumes.get,
)
def extend_completion(_ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Report the end of an extension that only a compute service can finish. With RBD none is ever waiting for that."""
    del body
    raise errors.InvalidVolume(f"Volume {volume.id} is not waiting for the end of an extension.")


class ResetStatus(ActionBody):
    """What to set, one thing at least."""

    status = Word(validate=validate.OneOf(STATUSES))
    attach_status = Word(validate=validate.OneOf(("attached", "detached")))
    migration_status = Word(
        validate=validate.OneOf(("migrating", "error", "success", "completing", "none", "starting"))
    )

    @pre_load
    def _without_nulls(self, data: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        """Null says nothing, as in Cinder."""
        return {key: value for key, value in data.items() if value is not None or key not in self.fields}

    @validates_schema
    def _something(self, data: dict[str, Any], **_kwargs: Any) -> None:
        if not data:
            raise ValidationError("Must specify 'status', 'attach_status', or 'migration_status' for update.")


@bp.action(
    RULE,
    "os-reset_status",
    body=ResetStatus,
    policy="volume_extension:volume_admin_actions:reset_status",
    on=volumes.get,
)
def reset_status(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Set a volume's status by hand."""
    volumes.reset_status(ctx, volume, **body)


@bp.action(RULE, "os-force_delete", policy="volume_extension:volume_admin_actions:force_delete", on=volumes.get)
def force_delete(ctx: Context, volume: models.Volume) -> None:
    """Delete a volume whatever its status, unless it is attached."""
    volumes.delete(ctx, volume, force=True)


class Revert(ActionBody):
    """The snapshot to go back to."""

    snapshot_id = Id(required=True)


@bp.action(RULE, "revert", body=Revert, policy="volume:revert_to_snapshot", on=volumes.get, since="3.40")
def revert(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Take a volume back to its newest snapshot."""
    volumes.revert(ctx, volume, body["snapshot_id"])


class Retype(ActionBody):
    """The type that the volume is to have, and whether it may be moved for that."""

    new_type = fields.String(required=True)
    migration_policy = fields.String(validate=validate.OneOf((moves.NEVER, moves.ON_DEMAND)))


@bp.action(RULE, "os-retype", body=Retype, policy="volume:retype", on=volumes.get, slow=True)
def retype(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Give a volume another type; with `migration_policy` on-demand it is moved to another pool if it must be."""
    policy = body.get("migration_policy", moves.NEVER)
    moves.retype(ctx, volume, body["new_type"], policy, may_share=VIEW.get().allows(types.SHARING))


class Migrate(ActionBody):
    """Where to, and how; the volume is always locked while it moves, and Ceph or QEMU decides how it is copied."""

    host = fields.String()
    cluster = versioned(fields.String(), since="3.16")
    force_host_copy = Bool()
    lock_volume = Bool()


@bp.action(
    RULE,
    "os-migrate_volume",
    body=Migrate,
    policy="volume_extension:volume_admin_actions:migrate_volume",
    on=volumes.get,
)
def migrate(ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Move a volume to another pool of its Ceph cluster with its snapshots; one in use, without any, also to others."""
    if bool(body.get("cluster")) == bool(body.get("host")):
        raise errors.BadRequest("One and only one of 'host' and 'cluster' must be set.")
    if body.get("cluster"):
        raise errors.InvalidHost(body["cluster"])
    moves.migrate(ctx, volume, body["host"])


class MigrateCompletion(ActionBody):
    """The volume that was copied to."""

    new_volume = Id(required=True)
    error = Bool()


@bp.action(
    RULE,
    "os-migrate_volume_completion",
    body=MigrateCompletion,
    returns=(200, None),
    policy="volume_extension:volume_admin_actions:migrate_volume_completion",
    on=volumes.get,
)
def migrate_completion(_ctx: Context, volume: models.Volume, body: dict[str, Any]) -> None:
    """Finish a migration by hand. Ceph finishes them itself, so none is ever waiting for that."""
    del body
    raise errors.InvalidVolume(f"Volume {volume.id} is not waiting for the completion of a migration.")
