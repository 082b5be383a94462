# SPDX-License-Identifier: Apache-2.0
"""What reads text that anybody may write takes every text, and refuses by the error that it says it does.

HOSTILE_EXAMPLES says how many texts each gets, other ones each time; without it they are the same in every run.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import struct
import uuid
from typing import Any
from xml.etree import ElementTree as ET

import hypothesis
import pytest
from hypothesis import strategies as st

from cinderlite import errors
from cinderlite.api import compute, filters, paging, volume
from cinderlite.api.volume import quotas
from cinderlite.core import backup_records, capabilities, cephx_users, images, limits, qos, records, tuning, vault
from cinderlite.guests import Flavor, agent, domains, inventory
from cinderlite.images import Image, formats
from cinderlite.keys import luks
from cinderlite.keys.master import MasterKey

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "80"))
hostile = hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize="HOSTILE_EXAMPLES" not in os.environ,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip

#: What a reader stumbles over that stumbles.
ODD = [
    "", "\0", "'", '"', "%", "\\", "²", "٣", "--5", "-", "+1", "1e999", "nan", "0x" + "f" * 8000, "9" * 8000, "[" * 5000,
    "{" * 5000, "{'a': " * 200, "-" * 5000 + "1", "{1: 0x" + "f" * 5000 + "}", "{'\\ud800': 1}", "\U0001f4a9" * 300,
    '{"a":' * 2000, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "gt:", "gt:0001-01-01T00:00:00+01:00",
    "<or>", "<is>", "<in>", "= ", "s== ", "volume 3." + "9" * 5000, "volume ٣.٣", "latest", "volume latest,volume",
]  # fmt: skip
text = st.one_of(st.sampled_from(ODD), st.text(max_size=60))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


#: What back ends say of themselves.
figures = st.none() | st.booleans() | st.integers(0, 2**63) | st.floats() | text


@hostile
@hypothesis.given(text, text)
def test_the_query_of_a_list(key: str, said: str) -> None:
    for read in (
        lambda: paging.literal(key, said),
        lambda: paging.boolean(key, said),
        lambda: paging.number({key: said}, key),
        lambda: paging.moment({key: said}, key),
        lambda: (
            paging.moments(None, key)(said) if ":" not in said else paging.moment({key: said.partition(":")[2]}, key)
        ),
    ):
        with contextlib.suppress(errors.BadRequest):
            read()
    filters.Filters().allow("volume", said, like=True)


@hostile
@hypothesis.given(json_values.map(repr) | json_values.map(json.dumps))
def test_a_literal_of_any_depth(said: str) -> None:
    with contextlib.suppress(errors.BadRequest):
        assert all(isinstance(word, str) for pair in paging.literal("metadata", said).items() for word in pair)


@hostile
@hypothesis.given(
    st.dictionaries(st.sampled_from(["OpenStack-API-Version", "X-OpenStack-Nova-API-Version"]), text, max_size=2),
    st.sampled_from(["", "volume ", "compute "]),
)
@hypothesis.example({"OpenStack-API-Version": "3." + "9" * 5000}, "volume ")
@hypothesis.example({"X-OpenStack-Nova-API-Version": "2." + "9" * 5000}, "")
@hypothesis.example({"OpenStack-API-Version": "٣.٣"}, "volume ")
def test_version_headers(headers: dict[str, str], service: str) -> None:
    headers = {name: service + said for name, said in headers.items()}
    for one in (volume.SERVICE, compute.SERVICE):
        with contextlib.suppress(errors.BadRequest, errors.VersionOutOfRange):
            assert one.minimum <= one.negotiate(headers) <= one.maximum


@hostile
@hypothesis.given(figures, text, text, st.sampled_from([*capabilities._OPERATORS, "<or>", ""]))
def test_what_extra_specs_ask_of_a_back_end(have: Any, one: str, other: str, word: str) -> None:
    for wanted in (one, f"{word} {one}", f"{word} {one} {word} {other}"):
        assert isinstance(capabilities.matches(have, wanted), bool)


@hostile
@hypothesis.given(
    st.dictionaries(st.sampled_from([*(tuning.PREFIX + name for name in tuning._READERS), "x"]), text), st.booleans()
)
def test_how_a_disk_is_plugged_in(specs: dict[str, str], shared: bool) -> None:
    tuning.combined(specs, specs, shared=shared)
    with contextlib.suppress(errors.InvalidInput):
        tuning.refuse_flawed(specs)


_LIMITS = [f"{base}{end}" for base in limits.BASES for end in ("", "_max", "_max_length", "_per_gb", "_per_gb_min")]


@hostile
@hypothesis.given(
    st.dictionaries(
        st.sampled_from([*_LIMITS, limits.SIZE_OF_ONE, "x"]), st.text("0123456789²٣-", max_size=255) | text
    ),
    st.integers(1, 2**31),
)
def test_limits_of_qos_specs(specs: dict[str, str], size: int) -> None:
    specs = {key: value[:255] for key, value in specs.items()}
    try:
        qos._refuse_no_numbers(specs)
    except errors.InvalidQosSpecs:
        return
    for together in (False, True):
        assert all(0 < value <= limits.MOST for value in limits.kept(specs, size, together=together).values())


@hostile
@hypothesis.given(json_values)
@hypothesis.example("--5")
@hypothesis.example("²")
def test_a_quota(said: Any) -> None:
    with contextlib.suppress(errors.BadRequest):
        assert -1 <= quotas._limit("volumes", said) < 2**31


def _record() -> dict[str, Any]:
    """A record as it should be."""
    which, volume_id, backup = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
    chain = vault.chain_of(volume_id, which)
    details = {
        "chain": chain, "stored_as": backup, "snap": vault.snap_of(backup),
        "volume": {"name": "", "bootable": False, "volume_type_id": None, "image_metadata": {}, "metadata": {}},
    }  # fmt: skip
    return {
        "id": backup, "volume_id": volume_id, "snapshot_id": None, "parent_id": None, "size": 1, "object_count": 0,
        "container": None, "availability_zone": None, "name": None, "description": None, "encryption_key_id": None,
        "details": details, "data_timestamp": "2026-01-01T00:00:00",
    }  # fmt: skip


def test_a_record_of_a_backup_is_read() -> None:
    said = base64.b64encode(json.dumps(_record()).encode()).decode()
    assert backup_records._read(said)["id"] == str(uuid.UUID(int=3))


@hostile
@hypothesis.given(st.data())
def test_a_record_of_a_backup(data: st.DataObject) -> None:
    record: Any = _record()
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.sampled_from([record, record["details"], record["details"].get("volume", record)]))
        if isinstance(place, dict) and place:
            place[data.draw(st.sampled_from(sorted(place)))] = data.draw(json_values)
        if not isinstance(record["details"], dict):
            break
    whole = json.dumps(data.draw(st.sampled_from([record, record, record, data.draw(json_values)]))).encode()
    said = data.draw(
        st.sampled_from([base64.b64encode(whole).decode(), whole.decode(), base64.b64encode(b"[" * 9999).decode()])
    )
    try:
        found = backup_records._read(said)
    except errors.InvalidInput:
        return
    # Whatever else it says, it names nothing of another volume's.
    assert found["details"]["chain"].startswith(vault.chain_of(found["volume_id"], ""))
    assert uuid.UUID(found["details"]["stored_as"])


@hostile
@hypothesis.given(json_values.map(json.dumps) | text)
def test_an_owner_file(said: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    with contextlib.suppress(ValueError):
        assert isinstance(inventory.parse(said.encode("utf-8", "surrogatepass"), now), inventory.Owner)


@hostile
@hypothesis.given(
    st.dictionaries(st.sampled_from(["id", "user_id", "project_id", "flavor", "metadata", "monitor"]), json_values)
)
def test_an_owner_file_with_the_right_names(said: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        found = inventory.parse(json.dumps({"project_id": "p", **said}).encode(), datetime.datetime.now(datetime.UTC))
        assert isinstance(found.flavor, Flavor)


@hostile
@hypothesis.given(
    st.dictionaries(st.sampled_from(["project", "user", "created", "id", "vcpus", "ram", "disk"]), text), text
)
def test_whose_a_domain_is(said: dict[str, str], word: str) -> None:
    domain = ET.Element("domain")
    nova = domains.NOVAS[0]
    for space in (domains.OURS, nova):
        for child in list(domain):
            domain.remove(child)
        metadata = ET.SubElement(domain, "metadata")
        ours = ET.SubElement(metadata, f"{{{space}}}" + ("server" if space == domains.OURS else "instance"), said)
        ET.SubElement(ours, f"{{{space}}}flavor", said).text = word
        ET.SubElement(ours, f"{{{space}}}creationTime").text = word
        ET.SubElement(ET.SubElement(ours, f"{{{space}}}owner"), f"{{{space}}}project", {"uuid": word})
        assert isinstance(domains.owner(domain), inventory.Owner)


@hostile
@hypothesis.given(json_values.map(json.dumps) | text)
def test_what_stands_in_ceph_beside_the_images(said: str) -> None:
    stored = said.encode("utf-8", "surrogatepass")
    for keys in (None, MasterKey([bytes(32)])):
        with contextlib.suppress(errors.InvalidInput):
            records.parsed(keys, "host", "volumes/1", b"- " + stored, unsigned=True)
    assert isinstance(cephx_users._read(stored), dict)


@hostile
@hypothesis.given(st.sampled_from(records.KINDS), st.data())
def test_a_record_of_a_row(kind: records.Kind, data: st.DataObject) -> None:
    row_id = str(uuid.UUID(int=1))
    row = data.draw(st.dictionaries(st.sampled_from(sorted(records.columns(kind.model))), json_values, max_size=4))
    parts = data.draw(st.dictionaries(st.sampled_from([*kind.parts, "x"]), json_values, max_size=2))
    content = {"kind": kind.word, "row": row | {"id": row_id}, "parts": parts}
    key = records.key_of(kind.word, row_id)
    with contextlib.suppress(errors.InvalidInput):
        assert records.parsed(None, "host", key, records.seal(None, content)).id == row_id


@hostile
@hypothesis.given(json_values.map(json.dumps) | text)
def test_what_a_guests_agent_says(said: str) -> None:
    with contextlib.suppress(ValueError):
        agent._parsed(said.encode("utf-8", "surrogatepass"))


@hostile
@hypothesis.given(json_values | json_values.map(json.dumps) | text)
def test_the_disks_that_an_image_names(said: Any) -> None:
    image = Image({"id": "id", "block_device_mapping": said})
    assert isinstance(images._root_snapshot(image), str | None)


_HEADS = [
    b"QFI\xfb", b"KDMV", b"conectix", b"vhdxfile", b"LUKS\xba\xbe", b"QED\0", b"# Disk DescriptorFile\n",
    b"<<< Oracle VM VirtualBox Disk Image >>>\n", b"WithoutFreeSpace", b"\x7f\x10\xda\xbe".rjust(68, b"\0"), b"",
]  # fmt: skip


@hostile
@hypothesis.given(
    st.sampled_from(_HEADS),
    st.binary(max_size=2048),
    st.sampled_from(sorted(formats.READABLE - formats.RAW)),
    st.integers(0, 70000),
)
def test_the_header_of_an_image(head: bytes, rest: bytes, name: str, zeros: int) -> None:
    pytest.importorskip("oslo_utils.imageutils.format_inspector")
    import io

    file = head + rest + bytes(zeros)
    with contextlib.suppress(errors.ImageUnacceptable):
        formats.receive("id", name, iter([file[:7], file[7:600], file[600:]]), io.BytesIO())
    with contextlib.suppress(errors.ImageUnacceptable):
        formats.refuse_disguised("id", file)


_SOUND = luks.header(b"right", 64)


@hostile
@hypothesis.given(st.data())
def test_the_header_of_an_encrypted_volume(data: st.DataObject) -> None:
    start = bytearray(_SOUND)
    # Any of the numbers: of rounds, of where things are and how long.
    places = [104, 108, 164, *(208 + slot * 48 + field for slot in range(2) for field in (0, 4, 40, 44))]
    for place in data.draw(st.sets(st.sampled_from(places), min_size=1, max_size=3)):
        struct.pack_into(
            ">I", start, place, data.draw(st.sampled_from([0, 1, 8, 4000, 2**31, 2**32 - 1, luks._ACTIVE]))
        )
    start = start[: data.draw(st.sampled_from([len(start), len(start) // 2, 600, 100, 0]))]
    assert luks.opens(bytes(start), b"wrong") is False
    with contextlib.suppress(luks.NotOpened):
        luks.resealed(bytes(start), b"right", b"new")
