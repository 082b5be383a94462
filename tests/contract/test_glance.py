# SPDX-License-Identifier: Apache-2.0
"""What the service asks of an image service, on the fake and on a real Glance."""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Iterator

import pytest

from backends import glance as image_service
from cinderlite import errors
from cinderlite.images.glance import Glance
from fakes_glance import FakeGlance

pytest.importorskip("openstack", reason="the extra 'glance' is not installed")

Service = FakeGlance | image_service.Glance
ASKER = "req-test"


def connected(url: str, **options: object) -> Glance:
    """The service's view of an image service that believes anybody."""
    from keystoneauth1 import noauth

    return Glance(
        servers=[url], catalog=("image", "glance", "publicURL"), region=None, retries=0, direct_schemes=(),
        service=noauth.NoAuth, session={"timeout": 20}, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def real_service(lab_directory: pathlib.Path) -> Iterator[image_service.Glance]:
    with image_service.Glance.running(lab_directory / "glance-of-contract") as made:
        yield made


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    if request.param == "real":
        yield request.getfixturevalue("real_service")
        return
    fake = FakeGlance()
    yield fake
    fake.stop()


@pytest.fixture
def glance(service: Service) -> Glance:
    return connected(service.url)


def test_an_image_is_found_by_id_url_and_name(service: Service, glance: Glance) -> None:
    name = f"name {uuid.uuid4()}"
    made = service.create(b"x" * 1000, name=name, os_distro="debian", min_disk=3, disk_format="iso")
    found = glance.show(ASKER, made)
    assert (found.id, found.status, found.size, found.disk_format) == (made, "active", 1000, "iso")
    assert found.needs_gigabytes == 3
    assert found.fields["os_distro"] == "debian"
    assert found.fields["checksum"]
    for reference in (made, made.upper(), f"http://glance/v2/images/{made}", name):
        assert glance.find(ASKER, reference, lambda _: True).id == made
        with pytest.raises(errors.ImageUnknown):
            glance.find(ASKER, reference, lambda _: False)
    service.create(b"y", name=name)
    with pytest.raises(errors.Conflict):
        glance.find(ASKER, name, lambda _: True)
    for reference in (str(uuid.uuid4()), "nothing of that name"):
        with pytest.raises(errors.ImageUnknown):
            glance.find(ASKER, reference, lambda _: True)
    with pytest.raises(errors.ImageUnknown):
        glance.show(ASKER, str(uuid.uuid4()))


def test_data_come_as_they_are(service: Service, glance: Glance) -> None:
    data = bytes(range(256)) * 20_000
    image = glance.show(ASKER, service.create(data))
    assert b"".join(glance.download(ASKER, image)) == data


def test_data_with_another_hash_are_refused(service: Service, glance: Glance) -> None:
    image = glance.show(ASKER, service.create(b"right"))
    wrong = type(image)({**image.fields, "os_hash_value": "0" * 128})
    with pytest.raises(errors.ImageUnacceptable, match="hash"):
        list(glance.download(ASKER, wrong))


def test_an_image_is_made_in_two_steps(service: Service, glance: Glance) -> None:
    image_id = str(uuid.uuid4())
    project = uuid.uuid4().hex
    made = glance.create(
        ASKER, image_id, project, name="made", disk_format="raw", container_format="bare", visibility="private",
        protected=True, os_distro="debian",
    )  # fmt: skip
    assert (made.id, made.status) == (image_id, "queued")
    with pytest.raises(errors.GlanceRefused):
        glance.create(ASKER, image_id, project, name="again", disk_format="raw", container_format="bare")
    pieces = [b"a" * 2**20, b"b" * 2**20, b"c"]
    glance.upload(ASKER, image_id, lambda: iter(pieces), 2**21 + 1)
    stored = service.image(image_id)
    assert (stored["status"], stored["size"], stored["visibility"], stored["protected"]) == (
        "active", 2**21 + 1, "private", True,
    )  # fmt: skip
    assert (stored["name"], stored["os_distro"], stored["owner"]) == ("made", "debian", project)
    assert b"".join(glance.download(ASKER, glance.show(ASKER, image_id))) == b"".join(pieces)
    with pytest.raises(errors.GlanceRefused):
        glance.delete(ASKER, image_id)


def test_what_the_data_raise_ends_the_upload(service: Service, glance: Glance) -> None:
    image_id = str(uuid.uuid4())
    glance.create(ASKER, image_id, "p", name="made", disk_format="raw", container_format="bare")

    def broken() -> Iterator[bytes]:
        yield b"a" * 2**20
        raise errors.Superseded

    with pytest.raises(errors.Superseded):
        glance.upload(ASKER, image_id, broken, 2**30)
    assert service.image(image_id)["status"] != "active"
    glance.delete(ASKER, image_id)
    glance.delete(ASKER, image_id)
    assert service.image(image_id) == {}


def test_a_service_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(errors.GlanceUnavailable):
        connected("http://127.0.0.1:9").show(ASKER, str(uuid.uuid4()))
