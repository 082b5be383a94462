# SPDX-License-Identifier: Apache-2.0
"""Service type "volume": Block Storage v3. Each module here is a resource, found by its `bp`."""

from __future__ import annotations

from cinderlite.api.microversion import Service, Version

#: The newest version of each step of Cinder's API that an answer or an operation here depends on, and what it brings.
HISTORY = {
    "3.0": "The API as it was in v2.",
    "3.2": "The filter bootable is strict.",
    "3.3": "User messages.",
    "3.12": "A summary of volumes.",
    "3.13": "group_id in volumes.",
    "3.15": "ETag and If-Match on volume metadata.",
    "3.21": "provider_id in volumes, for administrators.",
    "3.27": "Attachments.",
    "3.31": "Unknown filters are refused.",
    "3.34": "Filters that search: name~=.",
    "3.36": "metadata in the summary.",
    "3.45": "count with with_count.",
    "3.47": "backup_id as a source (refused here).",
    "3.48": "shared_targets and service_uuid in volumes.",
    "3.49": "backend_state in services.",
    "3.53": "Bodies of volume create and update are strict.",
    "3.60": "Filters on times.",
    "3.61": "cluster_name in volumes, for administrators.",
    "3.63": "volume_type_id in volumes.",
    "3.65": "consumes_quota in volumes.",
    "3.67": "The project in the URL is optional.",
    "3.69": "shared_targets may be null.",
    "3.71": "The newest version of Cinder's API.",
}

SERVICE = Service(
    name="volume",
    type="volume",
    prefix="/v3",
    version_id="v3.0",
    minimum=Version(3, 0),
    maximum=Version(3, 71),
    legacy_header="",
    strict_header=True,
    updated="2023-08-31T00:00:00Z",
)
