# SPDX-License-Identifier: Apache-2.0
"""Service type "compute": volume attachments, and what clients read before they attach. The rest is Nova's."""

from __future__ import annotations

from cinderlite.api.microversion import Service, Version

#: Versions of Nova's API on which an answer or an operation here depends, and what each brings.
HISTORY = {
    "2.1": "The API as it began.",
    "2.3": "Extended server attributes for administrators; delete_on_termination in volumes_attached.",
    "2.9": "locked in servers.",
    "2.16": "host_status for administrators.",
    "2.11": "forced_down in services.",
    "2.19": "description in servers.",
    "2.20": "Volumes of shelved servers, which there are none of here.",
    "2.26": "tags in servers.",
    "2.47": "The flavor is embedded in the server.",
    "2.49": "tag when attaching.",
    "2.51": "The event volume-extended; whoever sees a server's actions sees what became of them.",
    "2.53": "The id of a service is a UUID.",
    "2.55": "description in flavors.",
    "2.58": "updated_at in a server's actions, which come in pages.",
    "2.60": "Volumes that several servers may have.",
    "2.61": "extra_specs in flavors.",
    "2.62": "The host in what became of a server's actions.",
    "2.63": "trusted_image_certificates in servers.",
    "2.70": "tag in attachments.",
    "2.71": "server_groups in a server.",
    "2.73": "locked_reason in servers.",
    "2.75": "Unknown query keys are refused; swap in flavors is a number.",
    "2.76": "The event power-update.",
    "2.79": "delete_on_termination in attachments.",
    "2.82": "The event accelerator-request-bound.",
    "2.84": "details in what became of a server's actions.",
    "2.85": "PUT changes delete_on_termination of an attachment.",
    "2.89": "attachment_id and bdm_uuid in attachments, id is gone from what GET answers.",
    "2.93": "The event volume-reimaged.",
    "2.96": "pinned_availability_zone in servers.",
    "2.100": "scheduler_hints in servers; the last version whose attach answers with a body.",
}

SERVICE = Service(
    name="compute",
    type="compute",
    prefix="/v2.1",
    version_id="v2.1",
    minimum=Version(2, 1),
    maximum=Version(2, 100),
    legacy_header="X-OpenStack-Nova-API-Version",
    strict_header=False,
    updated="2013-07-23T11:33:21Z",
    slow=True,
)
