# SPDX-License-Identifier: Apache-2.0
"""What is known of the image that a volume was made from, which its clones inherit and a user may change."""

from __future__ import annotations

from collections.abc import Mapping

from cinderlite import errors
from cinderlite.context import Context
from cinderlite.core import volumes
from cinderlite.db import models


def shown(volume: models.Volume) -> dict[str, str]:
    """The image metadata of a volume; nothing for one that was never an image."""
    return {row.key: row.value for row in volume.image_metadata_rows}


def add(ctx: Context, volume: models.Volume, values: Mapping[str, str]) -> dict[str, str]:
    """Merge image metadata and return all of it. Raises InvalidVolume."""
    with ctx.world.db.write() as session:
        current = volumes.find(ctx, session, volume.id)
        volumes.refuse_maintenance(current)
        volumes.write_metadata(session, current.image_metadata_rows, models.ImageMetadata, values, replace=False)
        current.updated_at = models.utcnow()
    return shown(current)


def remove(ctx: Context, volume: models.Volume, key: str) -> None:
    """Remove one key. Raises ImageMetadataNotFound, InvalidVolume."""
    with ctx.world.db.write() as session:
        current = volumes.find(ctx, session, volume.id)
        volumes.refuse_maintenance(current)
        row = next((row for row in current.image_metadata_rows if row.key == key), None)
        if row is None:
            raise errors.ImageMetadataNotFound(volume.id)
        current.image_metadata_rows.remove(row)
        current.updated_at = models.utcnow()
