# SPDX-License-Identifier: Apache-2.0
"""/os-services, /os-availability-zone, /extensions: what the service says of itself, and what may be decided of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import marshmallow
from marshmallow import fields, validate

from cinderlite import errors
from cinderlite.api.microversion import Version
from cinderlite.api.rest import Blueprint
from cinderlite.api.schema import VIEW, Label, Schema, StrictBody, time_text, versioned
from cinderlite.api.volume import SERVICE
from cinderlite.context import Context
from cinderlite.core import logs, placement, services
from cinderlite.db import models

bp = Blueprint("services", SERVICE, "Services and zones.")

#: Since when a cluster can be named instead of a host.
CLUSTERS_FAIL_OVER = Version(3, 26)
API = "cinder-api"
BINARIES = (services.SCHEDULER, services.VOLUME, services.BACKUP, API)

#: What Cinder calls an extension and this service has; Horizon looks for the *name* AvailabilityZones.
EXTENSIONS = {
    "OS-SCH-HNT": "SchedulerHints",
    "backups": "Backups",
    "capabilities": "Capabilities",
    "cgsnapshots": "Cgsnapshots",
    "consistencygroups": "Consistencygroups",
    "encryption": "VolumeTypeEncryption",
    "os-admin-actions": "AdminActions",
    "os-availability-zone": "AvailabilityZones",
    "os-extended-services": "ExtendedServices",
    "os-extended-snapshot-attributes": "ExtendedSnapshotAttributes",
    "os-hosts": "Hosts",
    "os-quota-class-sets": "QuotaClasses",
    "os-quota-sets": "Quotas",
    "os-services": "Services",
    "os-snapshot-actions": "SnapshotActions",
    "os-snapshot-manage": "SnapshotManage",
    "os-snapshot-unmanage": "SnapshotUnmanage",
    "os-types-extra-specs": "TypesExtraSpecs",
    "os-types-manage": "TypesManage",
    "os-used-limits": "UsedLimits",
    "os-vol-host-attr": "VolumeHostAttribute",
    "os-vol-image-meta": "VolumeImageMetadata",
    "os-vol-mig-status-attr": "VolumeMigStatusAttribute",
    "os-vol-tenant-attr": "VolumeTenantAttribute",
    "os-volume-actions": "VolumeActions",
    "os-volume-encryption-metadata": "VolumeEncryptionMetadata",
    "os-volume-manage": "VolumeManage",
    "os-volume-transfer": "VolumeTransfer",
    "os-volume-type-access": "VolumeTypeAccess",
    "os-volume-unmanage": "VolumeUnmanage",
    "qos-specs": "Qos_specs_manage",
    "scheduler-stats": "Scheduler_stats",
}


class Service(Schema):
    """A service as Cinder lists them; one process here is what three of Cinder's are."""

    envelope = "service", "services"

    binary = fields.String()
    host = fields.String()
    zone = fields.String()
    status = fields.String()
    state = fields.String()
    updated_at = fields.String()
    disabled_reason = fields.String()
    # Only a back end replicates and freezes.
    replication_status = versioned(fields.String(), optional=True)
    active_backend_id = versioned(fields.String(), optional=True)
    frozen = versioned(fields.Boolean(), optional=True)
    cluster = versioned(fields.String(), since="3.7")
    backend_state = versioned(fields.String(), since="3.49", optional=True)

    def write_all(self, items: Iterable[Any]) -> list[dict[str, Any]]:
        """A back end shows that it never failed over, which is null."""
        written = super().write_all(items)
        for one in written:
            if one["binary"] == services.VOLUME:
                one.setdefault("active_backend_id", None)
        return written


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    binary: str
    host: str
    zone: str
    status: str
    state: str
    updated_at: str | None
    disabled_reason: str | None
    frozen: bool | None = None
    backend_state: str | None = None
    replication_status: str | None = None
    active_backend_id: str | None = None
    cluster: str | None = None


def _row(ctx: Context, row: models.Service) -> _Row:
    shown = _Row(
        binary=row.binary,
        host=row.host,
        zone=services.zone(ctx, row),
        status="disabled" if row.disabled else "enabled",
        state="up" if services.is_up(ctx, row) else "down",
        updated_at=time_text(row.updated_at),
        disabled_reason=row.disabled_reason,
    )
    if row.binary != services.VOLUME:
        return shown
    return dataclasses.replace(
        shown, frozen=row.frozen, backend_state=services.backend_state(ctx, row), replication_status="disabled"
    )


@bp.get("/os-services", returns=(200, Service), policy="volume_extension:services:index")
def index(ctx: Context, query: Mapping[str, str]) -> list[_Row]:
    """List the API hosts as the Cinder services that each of them stands for; filters host and binary.

    A host's name finds its back ends (host@backend), too.
    """
    rows = [_row(ctx, row) for row in services.listed(ctx)]
    return [
        row
        for row in rows
        if query.get("binary") in (None, row.binary)
        and query.get("host") in (None, row.host, row.host.partition("@")[0])
    ]


# -- what administrators decide


class _Host(fields.String):
    """A host, or a back end of one: host@backend."""

    def __init__(self, **kwargs: Any) -> None:
        form = validate.Regexp(r"[a-zA-Z0-9\-._#@:/+\[\]]{1,255}\Z")
        super().__init__(**{"allow_none": True, "validate": form, **kwargs})


class _Part(StrictBody):
    """Which part of a host is meant; `binary` counts before the older `service`."""

    host = _Host()
    binary = fields.String(validate=validate.Length(1, 255))
    service = fields.String(validate=validate.Length(1, 255))
    cluster = fields.String(allow_none=True)

    @marshmallow.validates_schema
    def _one_is_named(self, data: Mapping[str, Any], **_kwargs: Any) -> None:
        if "binary" not in data and "service" not in data:
            raise marshmallow.ValidationError("'binary' is a required property", "binary")


class _PartWithReason(_Part):
    """Which part of a host is disabled, and why."""

    disabled_reason = Label(required=True)


class _Backend(StrictBody):
    """Which back end is meant; there are no clusters."""

    host = _Host()
    cluster = fields.String(allow_none=True)


class _Failover(_Backend):
    """Which back end is to be moved, and where."""

    backend_id = fields.String(allow_none=True)


class Switched(Schema):
    """A part of a host as it was enabled or disabled."""

    host = fields.String()
    service = fields.String()
    binary = fields.String()
    status = fields.String()
    disabled = fields.Boolean()


class SwitchedWithReason(Switched):
    """The same with the reason."""

    disabled_reason = fields.String()


@dataclasses.dataclass(frozen=True, slots=True)
class _Switched:
    host: str
    service: str
    binary: str
    disabled: bool
    disabled_reason: str | None = None

    @property
    def status(self) -> str:
        return "disabled" if self.disabled else "enabled"


def _switched(body: Mapping[str, Any], *, disabled: bool) -> _Switched:
    return _Switched(
        _host(body), body.get("service", ""), body.get("binary", ""), disabled, body.get("disabled_reason")
    )


def _host(body: Mapping[str, Any]) -> str:
    """The host that a body names. Raises InvalidInput."""
    if not body.get("host"):
        raise errors.InvalidInput("Host field is missing.")
    return str(body["host"])


def _back_end(body: Mapping[str, Any]) -> str:
    """The back end that a body names, since 3.26 by host or cluster, of which there are none. Raises InvalidInput."""
    if VIEW.get().version < CLUSTERS_FAIL_OVER:
        return _host(body)
    if bool(body.get("host")) == bool(body.get("cluster")):
        raise errors.InvalidInput("One and only one of cluster and host must be set.")
    if body.get("cluster"):
        raise errors.InvalidInput(f"No service found with cluster={body['cluster']}")
    return str(body["host"])


_UPDATE = "volume_extension:services:update"


@bp.put("/os-services/enable", body=_Part, returns=(200, Switched), policy=_UPDATE)
def enable(ctx: Context, body: dict[str, Any]) -> _Switched:
    """Let a back end (`cinder-volume` on `host@backend`) get new volumes again."""
    done = _switched(body, disabled=False)
    services.enable(ctx, done.host, done.binary or done.service)
    return done


@bp.put("/os-services/disable", body=_Part, returns=(200, Switched), policy=_UPDATE)
def disable(ctx: Context, body: dict[str, Any]) -> _Switched:
    """Keep new volumes away from a back end; what is there can be used and deleted."""
    done = _switched(body, disabled=True)
    services.disable(ctx, done.host, done.binary or done.service)
    return done


@bp.put("/os-services/disable-log-reason", body=_PartWithReason, returns=(200, SwitchedWithReason), policy=_UPDATE)
def disable_log_reason(ctx: Context, body: dict[str, Any]) -> _Switched:
    """Disable a back end and note why."""
    done = _switched(body, disabled=True)
    services.disable(ctx, done.host, done.binary or done.service, done.disabled_reason)
    return done


@bp.put("/os-services/freeze", body=_Backend, policy="volume:freeze_host")
def freeze(ctx: Context, body: dict[str, Any]) -> None:
    """Freeze a back end: nothing is created, deleted or snapshotted there, what is there can be used.

    It is disabled too. 400 if it is frozen already or there is no such back end.
    """
    services.freeze(ctx, _back_end(body))


@bp.put("/os-services/thaw", body=_Backend, policy="volume:thaw_host")
def thaw(ctx: Context, body: dict[str, Any]) -> None:
    """Take a freeze back and enable the back end; 400 if it is not frozen."""
    services.thaw(ctx, _back_end(body))


@bp.put("/os-services/failover_host", body=_Failover, returns=(202, None), policy="volume:failover_host")
def failover_host(ctx: Context, body: dict[str, Any]) -> None:
    """Always refused with 400: no back end has a replica that this service knows of."""
    services.fail_over(ctx, _back_end(body))


@bp.put("/os-services/failover", body=_Failover, returns=(202, None), policy="volume:failover_host", since="3.26")
def failover(ctx: Context, body: dict[str, Any]) -> None:
    """Always refused with 400, as failover_host."""
    services.fail_over(ctx, _back_end(body))


# -- log levels


class _Logs(StrictBody):
    """Whose loggers are meant; the prefix is that of their names."""

    binary = fields.String(validate=validate.OneOf((*BINARIES, "", "*")))
    server = fields.String(allow_none=True)
    prefix = fields.String(allow_none=True)


class _LogLevel(_Logs):
    """The level that they are given: INFO, WARNING, ERROR or DEBUG, in any case."""

    level = fields.String(allow_none=True)


def _parts(ctx: Context, body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Host and binary of what this process plays and the body names; all of them share its loggers."""
    host = ctx.settings.host
    here = [(host, API), *((row.host, row.binary) for row in services.listed(ctx) if services.is_here(ctx, row))]
    wanted, server = body.get("binary") or "*", body.get("server") or host
    return [one for one in here if wanted in ("*", one[1]) and server in (one[0], one[0].partition("@")[0])]


@bp.put("/os-services/set-log", body=_LogLevel, returns=(202, None), policy=_UPDATE, since="3.32")
def set_log(ctx: Context, body: dict[str, Any]) -> None:
    """Set the level of loggers in the process that answers, until it ends.

    One process is all of Cinder's services here. With several of them, or several hosts, ask each.
    """
    level = (body.get("level") or "").upper()
    if level not in logs.LEVELS:
        raise errors.InvalidInput(f"{level[:64]} is not a valid log level.")
    if _parts(ctx, body):
        logs.set_level(body.get("prefix") or "", level)


@bp.put("/os-services/get-log", body=_Logs, policy=_UPDATE, since="3.32")
def get_log(ctx: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Show the levels of the loggers in the process that answers, once for each service that it is."""
    levels = logs.levels(body.get("prefix") or "")
    return {"log_levels": [{"host": host, "binary": binary, "levels": levels} for host, binary in _parts(ctx, body)]}


# -- zones and extensions


@bp.get("/os-availability-zone", policy=None)
def zones(ctx: Context) -> dict[str, Any]:
    """List the availability zones."""
    found = [
        {"zoneName": name, "zoneState": {"available": is_open}} for name, is_open in placement.open_zones(ctx).items()
    ]
    return {"availabilityZoneInfo": found}


def _extension(alias: str) -> dict[str, Any]:
    name = EXTENSIONS[alias]
    return {
        "alias": alias,
        "name": name,
        "description": f"{name}.",
        "updated": "2013-01-01T00:00:00+00:00",
        "links": [],
    }


@bp.get("/extensions", policy=None)
def extensions(_ctx: Context) -> dict[str, Any]:
    """List what Cinder calls extensions."""
    return {"extensions": [_extension(alias) for alias in EXTENSIONS]}


@bp.get("/extensions/<alias>", policy=None)
def extension(_ctx: Context, alias: str) -> dict[str, Any]:
    """Show one extension."""
    if alias not in EXTENSIONS:
        raise errors.NotFound(f"Extension with alias {alias} could not be found.")
    return {"extension": _extension(alias)}
