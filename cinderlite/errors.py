# SPDX-License-Identifier: Apache-2.0
"""Every error that cinderlite raises on purpose, and the HTTP status each one answers with.

The tree (class, status)::

    CinderliteError                 500
    ├── BadRequest                  400   what the caller sent cannot be done, now or ever
    │   ├── InvalidInput                  a value is wrong
    │   ├── InvalidHost                   no back end or cluster has that name
    │   ├── InvalidVolume, InvalidSnapshot, InvalidBackup, InvalidVolumeType  the state does not allow it
    │   ├── InvalidAuthKey                that is not the key of the transfer
    │   ├── VolumeTypeInUse, VolumeTypeIsDefault  something still needs the type
    │   ├── InvalidGroup, InvalidGroupSnapshot, InvalidGroupType, GroupTypeInUse
    │   ├── VolumeTypeEncryptionExists    the type has its encryption already
    │   ├── InvalidQosSpecs, QosSpecsInUse
    │   ├── NoBackend                     no back end fits what is asked for
    │   ├── ImageUnknown                  the image service has no such image for the caller
    │   ├── ImageUnacceptable             an image that cannot become a volume, or whose file is not what it says
    │   ├── GlanceRefused                 the image service does not want what we ask on the caller's behalf
    │   └── MalformedUrl                  the project in the URL is not the caller's
    ├── Unauthorized                401
    ├── Forbidden                   403
    │   └── TooManyAttachments            the server holds as many volumes as is allowed
    ├── NotFound                    404
    │   ├── SnapshotNotFound, SnapshotMetadataNotFound, ServiceNotFound, ServiceMissing, HostNotFound
    │   ├── ClusterNotFound, BackupNotFound
    │   ├── ImageMetadataNotFound             the volume has no such key of image metadata
    │   ├── VolumeNotFound, VolumeTypeNotFound, AttachmentNotFound, MessageNotFound
    │   ├── GroupNotFound, GroupSnapshotNotFound, GroupTypeNotFound, GroupTypeSpecNotFound
    │   ├── ExtraSpecNotFound, VolumeTypeAccessNotFound, VolumeTypeEncryptionNotFound, DefaultTypeNotFound
    │   ├── QosSpecsNotFound, QosKeyNotFound
    │   ├── ServerNotFound, FlavorNotFound, ActionNotFound
    │   └── NotAttached                   the volume is not on that server
    ├── VersionOutOfRange           406
    ├── Conflict                    409
    │   ├── VolumeTypeExists, VolumeTypeAccessExists, QosSpecsExists
    │   ├── NoFreePlace                   the server has no room for another disk
    │   ├── DeviceInUse                   another of the server's volumes has the device name asked for
    │   ├── NotMigrating                  a volume takes another one's place only on its way
    │   ├── GroupTypeExists
    │   ├── KeyNotFound                   nothing opens the encrypted volume any more
    │   ├── AttachmentInUse               a live device stands behind the Cinder attachment
    │   ├── ClientsUnclear                which of an image's users is the server that is to lose it
    │   └── GuestRefused                  QEMU said no
    ├── PreconditionFailed          412
    ├── OverQuota                   413
    │   └── LimitExceeded, VolumeSizeExceedsAvailableQuota, BackupSizeExceedsAvailableQuota,
    │       VolumeSizeExceedsLimit
    ├── UnsupportedMediaType        415
    ├── DefaultTypeMissing          500   no volume type has the configured default's name
    └── Unavailable                 503   nothing is known to have changed; try again later
        ├── CephUnavailable               refused before anything was begun
        │   ├── NoStatistics                  a pool's, or a manager's, first seconds
        │   └── StillBusy                     librbd finds an image busy, which may pass
        ├── CephTimeout                   begun, and its end is unknown: look before repeating
        ├── GuestUnreachable              no monitor answered; nothing was sent
        ├── GuestTimeout                  begun, and its end is unknown: look before repeating
        ├── GuestStillWatches             its process is gone, but Ceph has not noticed yet
        ├── FencePending                  Ceph was told to keep a client out, and still counts it
        ├── GlanceUnavailable             the image service does not answer
        │   └── GlanceLoggedOut               the token has lapsed, or the service's account is wrong
        ├── BackendMissing                a back end that this process is not configured for
        ├── ServiceDisabled               an administrator closed the back end
        ├── BackupServiceMissing          no backup pool is configured
        ├── KeyStoreUnavailable           the keys of encrypted volumes cannot be had
        ├── MembersBusy                   volumes of a group are still on their way
        ├── AtWork, LeavingOff            an image is worked on only when its volume's other work is done
        ├── Superseded                    this process is not to go on: it lost the work's lease, or ends
        ├── DatabaseUnavailable
        └── Overloaded                    too many requests at a time; nothing was looked at

Backend errors that `core` tells apart and no client ever sees as such:

    BackendError                    500
    ├── BackupDamaged                     what lies in the backup pool is not what was stored
    ├── CephError                         librbd or librados failed in a way that has no better name
    │   ├── ImageNotFound, ImageExists
    │   ├── UsersRefused                  the service may not make or remove cephx users
    │   └── ImageBusy                     somebody has the image open
    ├── MoveFailed                        a volume in use stays where it was
    ├── ImageCopyFailed                   an image could not be copied from or to the image service
    └── GuestError                        the guest's side failed
        ├── GuestGone                     the QEMU process does not exist any more
        ├── DeviceHeld                    the guest has not let the disk go yet
        └── DetachGivenUp                 nor does anybody wait for it any more

`message` is a sentence for the API's user; it never holds a secret.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any


class CinderliteError(Exception):
    """Base of all; an instance that reaches the edge unmapped is a 500."""

    status = 500
    #: Key of the fault object in the answer; `api.faults` derives it from the status where it is None.
    fault: str | None = None
    template = "{0}"

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.message = self.template.format(*args) if args else self.template.format("")

    def __str__(self) -> str:
        return self.message


class BadRequest(CinderliteError):
    status = 400


class InvalidInput(BadRequest):
    template = "Invalid input received: {0}"


class InvalidHost(BadRequest):
    template = "Invalid host: No available service named '{0}'"


class InvalidVolume(BadRequest):
    template = "Invalid volume: {0}"


class OpenElsewhere(InvalidVolume):
    template = "Invalid volume: volume {0} is still open elsewhere: {1}"


class InvalidSnapshot(BadRequest):
    template = "Invalid snapshot: {0}"


class InvalidAuthKey(BadRequest):
    template = "Invalid auth key: Attempt to transfer {0} with invalid auth key."


class InvalidVolumeType(BadRequest):
    template = "Invalid volume type: {0}"


class VolumeTypeInUse(BadRequest):
    template = "Target volume type is still in use."


class VolumeTypeIsDefault(BadRequest):
    template = "The volume type {0} is a default volume type and cannot be deleted."


class InvalidGroup(BadRequest):
    template = "Invalid Group: {0}"


class InvalidGroupSnapshot(BadRequest):
    template = "Invalid GroupSnapshot: {0}"


class InvalidGroupType(BadRequest):
    template = "Invalid group type: {0}"


class GroupTypeInUse(BadRequest):
    template = "Target group type is still in use."


class VolumeTypeEncryptionExists(BadRequest):
    template = "Volume type encryption for type {0} already exists."


class InvalidBackup(BadRequest):
    template = "Invalid backup: {0}"


class InvalidQosSpecs(BadRequest):
    template = "Invalid qos specs: {0}"


class QosSpecsInUse(BadRequest):
    template = "Qos specs still in use."


class NoBackend(BadRequest):
    template = "No valid back end was found: {0}."


class ImageUnknown(BadRequest):
    def __init__(self) -> None:
        super().__init__("Invalid image identifier or unable to access requested image.")


class ImageUnacceptable(BadRequest):
    template = "Image {0} is unacceptable: {1}"


class GlanceRefused(BadRequest):
    template = "The image service refuses: {0}"


class MalformedUrl(BadRequest):
    template = "Malformed request url"


class Unauthorized(CinderliteError):
    status = 401


class Forbidden(CinderliteError):
    status = 403
    template = "Policy doesn't allow {0} to be performed."


class TooManyAttachments(Forbidden):
    template = "The server holds the maximum of {0} volumes already."


class NotFound(CinderliteError):
    status = 404


class VolumeNotFound(NotFound):
    template = "Volume {0} could not be found."


class VolumeTypeNotFound(NotFound):
    template = "Volume type {0} could not be found."


class ExtraSpecNotFound(NotFound):
    template = "Volume Type {0} has no extra specs with key {1}."


class VolumeTypeAccessNotFound(NotFound):
    template = "Volume type access not found for {0} / {1} combination."


class VolumeTypeEncryptionNotFound(NotFound):
    template = "Volume type encryption for type {0} does not exist."


class DefaultTypeNotFound(NotFound):
    template = "Default type for project {0} not found."


class QosSpecsNotFound(NotFound):
    template = "No such QoS spec {0}."


class QosKeyNotFound(NotFound):
    template = "QoS spec {0} has no spec with key {1}."


class VolumeMetadataNotFound(NotFound):
    template = "Volume {0} has no metadata with key {1}."


class ImageMetadataNotFound(NotFound):
    template = "Image metadata for volume {0} cannot be found."


class ServiceNotFound(NotFound):
    template = "Service {0} could not be found."


class ServiceMissing(NotFound):
    template = "Could not find binary {0} on host {1}."


class HostNotFound(NotFound):
    template = "Host {0} could not be found."


class ClusterNotFound(NotFound):
    template = "Cluster {0} could not be found."


class SnapshotNotFound(NotFound):
    template = "Snapshot {0} could not be found."


class SnapshotMetadataNotFound(NotFound):
    template = "Snapshot {0} has no metadata with key {1}."


class BackupNotFound(NotFound):
    template = "Backup {0} could not be found."


class AttachmentNotFound(NotFound):
    template = "Volume attachment could not be found with filter: attachment_id = {0}."


class GroupNotFound(NotFound):
    template = "Group {0} could not be found."


class GroupSnapshotNotFound(NotFound):
    template = "GroupSnapshot {0} could not be found."


class GroupTypeNotFound(NotFound):
    template = "Group type {0} could not be found."


class GroupTypeSpecNotFound(NotFound):
    template = "Group Type {0} has no specs with key {1}."


class MessageNotFound(NotFound):
    template = "Message {0} could not be found."


class TransferNotFound(NotFound):
    template = "Transfer {0} could not be found."


class ServerNotFound(NotFound):
    template = "Instance {0} could not be found."


class FlavorNotFound(NotFound):
    template = "Flavor {0} could not be found."


class ActionNotFound(NotFound):
    template = "Action {0} not found"


class NotAttached(NotFound):
    template = "Instance {0} is not attached to volume {1}"


class VersionOutOfRange(CinderliteError):
    status = 406
    template = "Version {0} is not supported by the API. Minimum is {1} and maximum is {2}."


class Conflict(CinderliteError):
    status = 409


class VolumeTypeExists(Conflict):
    template = "Volume Type {0} already exists."


class VolumeTypeAccessExists(Conflict):
    template = "Volume type access for {0} / {1} combination already exists."


class QosSpecsExists(Conflict):
    template = "QoS Specs {0} already exists."


class NoFreePlace(Conflict):
    template = "{0}"


class DeviceInUse(Conflict):
    template = "The supplied device path ({0}) is in use."


class NotMigrating(Conflict):
    template = "volume {0} is not migrating; this API should only be called by Cinder"


class GroupTypeExists(Conflict):
    template = "Group Type {0} already exists."


class KeyNotFound(Conflict):
    template = "There is no encryption key {0}."


class AttachmentInUse(Conflict):
    template = "ConflictNovaUsingAttachment: Detach volume from instance {0} using the Compute API"


class ClientsUnclear(Conflict):
    template = (
        "Volume {0} is open in several places, and which of {1} is that server is not known. Name it: "
        "cinderlite-manage attachment force-detach {2} --client ADDRESS"
    )


class GuestRefused(Conflict):
    template = "The hypervisor refused: {0}"


class PreconditionFailed(CinderliteError):
    status = 412
    template = ""


class OverQuota(CinderliteError):
    status = 413


class LimitExceeded(OverQuota):
    template = "{0}LimitExceeded: Maximum number of {1} allowed ({2}) exceeded for quota '{3}'."


class VolumeSizeExceedsAvailableQuota(OverQuota):
    template = (
        "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed {0} quota. "
        "Requested {1}G, quota is {2}G and {3}G has been consumed."
    )


class BackupSizeExceedsAvailableQuota(OverQuota):
    template = (
        "VolumeBackupSizeExceedsAvailableQuota: Requested backup exceeds allowed Backup gigabytes quota. "
        "Requested {0}G, quota is {1}G and {2}G has been consumed."
    )


class VolumeSizeExceedsLimit(OverQuota):
    template = "VolumeSizeExceedsLimit: Requested volume size {0}G is larger than maximum allowed limit {1}G."


class UnsupportedMediaType(CinderliteError):
    status = 415
    template = "Unsupported Content-Type"


class DefaultTypeMissing(CinderliteError):
    template = "The request cannot be fulfilled as the default volume type {0} cannot be found."


class Unavailable(CinderliteError):
    status = 503


class ServiceDisabled(Unavailable):
    template = "Service on {0} is disabled: {1}."


class CephUnavailable(Unavailable):
    template = "The storage cluster does not answer: {0}"


class NoStatistics(CephUnavailable):
    template = "there are no statistics of pool {0} yet"


class StillBusy(CephUnavailable):
    template = "{0}"


class CephTimeout(Unavailable):
    """A call that was begun and whose end is unknown; `pending` ends (with any result) when the call really has.

    `pending` is None when the call itself has ended, but what it asked of the cluster may still be applied.
    """

    template = "The storage cluster did not answer in time: {0}"

    def __init__(self, reason: object, pending: concurrent.futures.Future[Any] | None = None) -> None:
        super().__init__(reason)
        self.pending = pending


class GuestUnreachable(Unavailable):
    template = "The monitor of server {0} cannot be reached: {1}"


class GuestTimeout(Unavailable):
    template = "The monitor of server {0} did not answer in time: {1}"


class GuestStillWatches(Unavailable):
    template = "The server is gone, but the storage cluster still counts its client {0} as a user of the volume."


class GlanceUnavailable(Unavailable):
    template = "The image service does not answer: {0}"


class GlanceLoggedOut(GlanceUnavailable):
    def __init__(self) -> None:
        super().__init__("it does not accept the credentials")


class FencePending(Unavailable):
    template = "The storage cluster keeps {0} out from now on, but still counts it as a user of the volume."


class BackendMissing(Unavailable):
    template = "The back end '{0}' is not among the enabled ones of this service."


class BackupServiceMissing(Unavailable):
    template = "Service cinder-backup could not be found."


class KeyStoreUnavailable(Unavailable):
    template = "The keys of encrypted volumes cannot be had: {0}"


class MembersBusy(Unavailable):
    template = "Operations on volumes of group {0} are still under way."


class AtWork(Unavailable):
    template = "An operation on volume {0} is under way."


class LeavingOff(Unavailable):
    template = "The image of volume {0} is still being made whole; that is about to leave off."


class Superseded(Unavailable):
    template = "The work is left to another process."


class DatabaseUnavailable(Unavailable):
    template = "The database does not answer."


class Overloaded(Unavailable):
    template = "The service has too many requests at the moment. Nothing was changed; try again later."


class BackendError(CinderliteError):
    pass


class BackupDamaged(BackendError):
    template = "Backup {0} is damaged: {1}"


class CephError(BackendError):
    template = "{0}"


class ImageNotFound(CephError):
    template = "Image {0} could not be found."


class ImageExists(CephError):
    template = "Image {0} exists already."


class ImageBusy(CephError):
    template = "Image {0} is in use by {1}."


class UsersRefused(CephError):
    template = "The monitors do not let this service make or remove {0}; see cinderlite-manage ceph check."


class ImageCopyFailed(BackendError):
    template = "The image could not be copied: {0}"


class MoveFailed(BackendError):
    template = "The volume stays where it was: {0}"


class GuestError(BackendError):
    pass


class GuestGone(GuestError):
    template = "Server {0} is not running."


class DeviceHeld(GuestError):
    template = (
        "The guest on server {0} has not released the disk yet; unmount it, let the guest run, or reboot the guest."
    )


class DetachGivenUp(GuestError):
    template = (
        "The guest on server {0} did not release the disk within {1} s, so the volume stays attached to it; unmount "
        "it, let the guest run or reboot it, then detach the volume again."
    )
