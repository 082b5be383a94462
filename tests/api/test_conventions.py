# SPDX-License-Identifier: Apache-2.0
"""What holds for every operation of both services, those that will be declared tomorrow too."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import flask
import pytest

import generate
from cinderlite.api import compute, volume
from cinderlite.api.rest import Operation
from conftest import PROJECT, Client

SERVICES = [pytest.param(volume, id="volume"), pytest.param(compute, id="compute")]
UNKNOWN = str(uuid.UUID(int=0))


def path_of(service: Any, operation: Operation, part: str = UNKNOWN) -> str:
    """The operation's path with `part` for each of its parts."""
    return str(service.SERVICE.prefix) + re.sub(r"<[^>]+>", part, operation.rule)


def raw(client: Client, method: str, path: str, data: bytes | str, kind: str | None) -> Any:
    return client.app.test_client().open(path, method=method, data=data, content_type=kind, headers=client.headers)


def newest(client: Client, service: Any) -> Client:
    return client.at(str(service.SERVICE.maximum))


@pytest.mark.parametrize("service", SERVICES)
def test_a_body_that_is_not_json_is_415(admin: Client, service: Any) -> None:
    asking = newest(admin, service)
    for operation in generate.operations(service):
        path = path_of(service, operation)
        answer = raw(asking, operation.method, path, "x=1", "application/x-www-form-urlencoded")
        assert (answer.status_code, answer.json["badMediaType"]["code"]) == (415, 415), operation.name
        assert answer.headers["OpenStack-API-Version"] == f"{service.SERVICE.type} {service.SERVICE.maximum}"
        assert raw(asking, operation.method, path, b"", "text/plain").status_code != 415, operation.name


@pytest.mark.parametrize("service", SERVICES)
def test_json_behind_the_path_changes_nothing(admin: Client, service: Any) -> None:
    asking = newest(admin, service)
    for operation in generate.operations(service):
        if operation.rule.endswith("<key>"):  # A key may end so itself.
            continue
        short = path_of(service, operation)
        project = short.replace(service.SERVICE.prefix, f"{service.SERVICE.prefix}/{PROJECT}", 1)
        for path in (short, project):
            plain, suffixed = asking.request(operation.method, path), asking.request(operation.method, path + ".json")
            assert suffixed.status_code == plain.status_code, operation.name
            assert _without_times(suffixed.text) == _without_times(plain.text), operation.name


def _without_times(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+", "", text)


@pytest.mark.parametrize("service", SERVICES)
def test_an_operation_is_404_before_its_version(admin: Client, service: Any) -> None:
    for operation in generate.operations(service):
        since = operation.window.since
        if since is None or since == service.SERVICE.minimum:
            continue
        body: Any = {operation.action: {}} if operation.action else None
        before = admin.at(f"{since.major}.{since.minor - 1}")
        answer = before.request(operation.method, path_of(service, operation), body)
        assert (answer.status_code, answer.json["itemNotFound"]["code"]) == (404, 404), operation.name


@pytest.mark.parametrize("part", ["%00", "a%FFb", "%F0%9F%92%BE" * 64, "9" * 40])
@pytest.mark.parametrize("service", SERVICES)
def test_no_part_of_a_path_is_an_error_of_the_service(admin: Client, service: Any, part: str) -> None:
    for operation in generate.operations(service):
        body: Any = {operation.action: {}} if operation.action else {"x": 1}
        answer = newest(admin, service).request(operation.method, path_of(service, operation, part), body)
        assert answer.status_code < 500, f"{operation.name}: {answer.text}"


def test_a_key_may_end_in_json(client: Client) -> None:
    path = f"/v3/volumes/{client.volume(metadata={'a.json': '1'})['id']}"
    assert client.get(f"{path}/metadata/a.json").json == {"meta": {"a.json": "1"}}
    assert client.get(f"{path}/metadata/a").status_code == 404
    assert client.get(f"{path}/metadata.json").json == {"metadata": {"a.json": "1"}}
    assert client.get(f"{path}.json").json["volume"]["id"] in path
    assert client.get("/v3/volumes/detail.json?limit=1").json["volumes_links"][0]["rel"] == "next"


def test_a_body_without_a_content_type_is_as_none(client: Client) -> None:
    body = json.dumps({"volume": {"size": 1}})
    answer = raw(client, "POST", "/v3/volumes", body, None)
    assert (answer.status_code, answer.json["badRequest"]["message"]) == (
        400, "Missing required element 'volume' in request body."
    )  # fmt: skip
    path = f"/v3/volumes/{client.volume()['id']}"
    assert raw(client, "DELETE", path, body, None).status_code == 202


@pytest.mark.parametrize("name", ["\ud800", "\x00", "a\ud834b"])
@pytest.mark.parametrize("where", ["name", "description", "metadata", "key", "availability_zone", "volume_type"])
def test_text_that_no_database_holds_is_400(client: Client, where: str, name: str) -> None:
    fields: dict[str, Any] = {"size": 1, where: name}
    if where in ("metadata", "key"):
        fields = {"size": 1, "metadata": {"k": name} if where == "metadata" else {name: "v"}}
    assert client.post("/v3/volumes", {"volume": fields}).status_code == 400


@pytest.mark.parametrize("letter", ["x", "ß", "я", "数", "ก", "💾", "\u0301", "é"])
def test_names_of_255_characters_of_any_script(client: Client, letter: str) -> None:
    name, blanks = letter * 255, f" \t{letter * 255}\n "
    made = client.volume(name=blanks, description=name, metadata={"k": name})
    assert (made["name"], made["description"], made["metadata"]) == (name, name, {"k": name})
    assert client.post("/v3/volumes", {"volume": {"size": 1, "name": name + letter}}).status_code == 400
    found = client.app.test_client().get("/v3/volumes", query_string={"name": name}, headers=client.headers)
    assert found.json is not None
    assert [one["id"] for one in found.json["volumes"]] == [made["id"]]


def test_names_that_look_alike_are_told_apart(client: Client) -> None:
    names = ["data", "Data", "dätа", "data\u200b", "d a t a", "straße", "strasse"]
    for name in names:
        client.volume(name=name, metadata={"k": "1", "K": "2", "k ": "3"})
    for name in names:
        found = client.app.test_client().get("/v3/volumes", query_string={"name": name}, headers=client.headers)
        assert found.json is not None
        assert [one["name"] for one in found.json["volumes"]] == [name]
    assert client.get("/v3/volumes/detail").json["volumes"][0]["metadata"] == {"k": "1", "K": "2", "k ": "3"}
    assert client.at("3.34").get("/v3/volumes?name~=ATA").json["volumes"] == []


@pytest.mark.parametrize("size", [2, "2", "02"])
def test_a_size_may_be_digits(client: Client, size: Any) -> None:
    assert client.volume(size=size)["size"] == 2


@pytest.mark.parametrize("word", ["1", "t", "TRUE", "on", "Y", "yes", True])
def test_a_boolean_may_be_a_word(client: Client, word: Any) -> None:
    answer = client.post("/v3/volumes", {"volume": {"size": 1, "multiattach": word}})
    assert "multiattach parameter has been removed" in answer.json["badRequest"]["message"]
    for other in ("0", "F", "false", "OFF", "n", "No", False, None):
        assert client.post("/v3/volumes", {"volume": {"size": 1, "multiattach": other}}).status_code == 202
        client.delete(client.get("/v3/volumes").json["volumes"][0]["links"][0]["href"].removeprefix("http://localhost"))
    assert client.post("/v3/volumes", {"volume": {"size": 1, "multiattach": "maybe"}}).status_code == 400


@pytest.mark.parametrize("conf", [{"public_endpoint": "https://volumes.example.org/base/"}], indirect=True)
def test_links_begin_with_the_public_endpoint(client: Client) -> None:
    volume = client.volume()["id"]
    first, second = client.get(f"/v3/{PROJECT}/volumes/{volume}").json["volume"]["links"]
    assert first["href"] == f"https://volumes.example.org/base/v3/{PROJECT}/volumes/{volume}"
    assert second["href"] == f"https://volumes.example.org/base/{PROJECT}/volumes/{volume}"
    page = client.get("/v3/volumes?limit=1").json["volumes_links"][0]["href"]
    assert page == f"https://volumes.example.org/base/v3/volumes?limit=1&marker={volume}"
    assert client.get("/v3/").json["versions"][0]["links"][1]["href"] == "https://volumes.example.org/base/v3/"


FORWARDED = {
    "X_Forwarded_For": "192.0.2.1", "X_Forwarded_Proto": "https", "X_Forwarded_Host": "cloud.example.org:8776",
    "X_Forwarded_Prefix": "/volume",
}  # fmt: skip


@pytest.mark.parametrize("conf", [{"enable_proxy_headers_parsing": True}], indirect=True)
def test_links_begin_where_the_proxy_is(client: Client) -> None:
    volume = client.volume()["id"]
    behind = client.with_headers(**FORWARDED)
    link = behind.get(f"/v3/volumes/{volume}").json["volume"]["links"][0]["href"]
    assert link == f"https://cloud.example.org:8776/volume/v3/volumes/{volume}"
    page = behind.get("/v3/volumes?limit=1").json["volumes_links"][0]["href"]
    assert page.startswith("https://cloud.example.org:8776/volume/v3/volumes?")
    for path in ("/", "/v3/"):
        links = behind.get(path).json["versions"][0]["links"]
        assert links[1]["href"] == "https://cloud.example.org:8776/volume/v3/"
    server = behind.get("/v2.1/").json["version"]["links"]
    assert server[1]["href"] == "https://cloud.example.org:8776/volume/v2.1/"


def test_nobody_else_says_where_links_begin(client: Client) -> None:
    volume = client.volume()["id"]
    link = client.with_headers(**FORWARDED).get(f"/v3/volumes/{volume}").json["volume"]["links"][0]["href"]
    assert link == f"http://localhost/v3/volumes/{volume}"


def test_the_next_page_begins_where_this_one_ends(client: Client) -> None:
    made = [client.volume(name=str(number))["id"] for number in range(5)]
    path, seen = "/v3/volumes?limit=2&offset=1&sort=created_at:asc", []
    while path:
        answer = client.get(path).json
        seen += [one["id"] for one in answer["volumes"]]
        path = answer.get("volumes_links", [{"href": ""}])[0]["href"].removeprefix("http://localhost")
    assert seen == made[1:]


def test_an_administrator_filters_by_any_column(client: Client, admin: Client) -> None:
    made = client.volume(name="a")
    client.volume(name="b", size=2)
    for query, names in (
        ("user_id=alice", "ab"), ("user_id=bob", ""), (f"volume_type_id={UNKNOWN}", ""), ("description=x", ""),
        ("deleted=false", "ab"), ("multiattach=False&size=2", "b"), ("size=x", ""), ("no_such_column=1", ""),
        ("intent=x", ""), (f"id={made['id']}", "a"),
    ):  # fmt: skip
        answer = admin.at("3.59").get(f"/v3/volumes?sort=name:asc&{query}")
        assert answer.status_code == 200, answer.text
        assert "".join(one["name"] for one in answer.json["volumes"]) == names, query
    assert len(client.at("3.30").get("/v3/volumes?no_such_column=1").json["volumes"]) == 2


def test_errors_of_http_have_the_faults_form(client: Client, application: flask.Flask) -> None:
    for method, path, status, name in (
        ("GET", "/v3/volumes/nope", 404, "itemNotFound"), ("PATCH", "/v3/volumes", 404, "itemNotFound"),
        ("GET", "/v3/volumes?limit=-1", 400, "badRequest"), ("GET", "/v1/volumes", 404, "itemNotFound"),
    ):  # fmt: skip
        answer = client.request(method, path)
        assert (answer.status_code, answer.json[name]["code"], set(answer.json)) == (status, status, {name})
        assert answer.content_type == "application/json"
    large = raw(client, "POST", "/v3/volumes", b" " * 200_000, "application/json")
    assert (large.status_code, large.json["overLimit"]["code"]) == (413, 413)
