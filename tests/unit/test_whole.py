# SPDX-License-Identifier: Apache-2.0
"""A volume that is read without a session is the one that a session reads."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import exc

from cinderlite.context import World
from cinderlite.core import volumes, whole
from cinderlite.core.group_types import RESERVED
from cinderlite.db import models


@pytest.fixture
def made(world: World) -> str:
    """A volume with one of everything that can belong to it."""
    with world.db.write() as session:
        kind = session.scalars(sqlalchemy.select(models.VolumeType)).one()
        of_groups = session.scalars(sqlalchemy.select(models.GroupType).filter_by(name=RESERVED)).one()
        own: dict[str, Any] = {"project_id": "mine", "user_id": "me", "status": "in-use"}
        group = models.Group(**own, host="one@ceph#rbd", availability_zone="nova", group_type_id=of_groups.id)
        session.add(group)
        session.flush()
        volume = models.Volume(
            **own, size=3, host="one@ceph#rbd", availability_zone="nova", volume_type_id=kind.id, group_id=group.id,
            readonly=False, kept={"image_id": "12", "snaps": []}, purge_at=12.5,
        )  # fmt: skip
        volume.metadata_rows = [models.VolumeMetadata(key=key, value=key * 2) for key in "ab"]
        volume.image_metadata_rows = [models.ImageMetadata(key="os", value="none")]
        session.add(volume)
        session.flush()
        for device in ("/dev/vdb", "/dev/vdc"):
            attachment = models.Attachment(
                volume_id=volume.id, project_id="mine", status="attached", device=device, clients=["1.2.3.4:0/5"]
            )
            session.add(attachment)
            session.flush()
        return volume.id


def values(row: models.Base) -> dict[str, Any]:
    """All columns of a row."""
    return {one.key: getattr(row, one.key) for one in sqlalchemy.inspect(type(row)).column_attrs}


def test_it_is_what_a_session_reads(world: World, made: str) -> None:
    found = whole.read(world, made, "mine")
    assert found is not None
    with world.db.read() as session:
        query = sqlalchemy.select(models.Volume).where(models.Volume.id == made).options(*volumes.SHOWN)
        expected = session.scalars(query).one()
    assert values(found) == values(expected)
    assert values(found.volume_type) == values(expected.volume_type)
    assert found.group is not None
    assert found.group.group_type.name == RESERVED
    for part, count in (("metadata_rows", 2), ("image_metadata_rows", 1), ("attachments", 2)):
        rows = [values(one) for one in getattr(found, part)]
        assert len(rows) == count
        assert rows == [values(one) for one in getattr(expected, part)]


def test_whose_it_is_and_whether_it_is_gone_are_minded(world: World, made: str) -> None:
    assert whole.read(world, made, "other") is None
    assert whole.read(world, "nobody", None) is None
    assert whole.read(world, made, None) is not None
    with world.db.write() as session:
        session.get_one(models.Volume, made).deleted = True
    assert whole.read(world, made, "mine") is None
    assert whole.read(world, made, "mine", gone=True) is not None


def test_what_was_not_asked_for_is_not_taken_for_nothing(world: World, made: str) -> None:
    found, bare = whole.read(world, made, "mine"), whole.read(world, made, "mine", shown=False)
    assert found is not None
    assert bare is not None
    for row, name in (
        (bare, "metadata_rows"),
        (found.volume_type, "extra_spec_rows"),
        (found.attachments[0], "volume"),
    ):
        with pytest.raises(exc.InvalidRequestError):
            getattr(row, name)
