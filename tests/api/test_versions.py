# SPDX-License-Identifier: Apache-2.0
"""Discovery and version negotiation of both services."""

from __future__ import annotations

import flask
import pytest

from conftest import PROJECT, Client


@pytest.fixture
def nobody(application: flask.Flask) -> Client:
    """Somebody whom the service refuses wherever a login is needed."""
    from cinderlite import errors

    def refuse(_environ: object) -> None:
        raise errors.Unauthorized("The request you have made requires authentication.")

    application.extensions["cinderlite"]._strategy = refuse
    return Client(application, {})


def test_discovery_needs_no_login(nobody: Client) -> None:
    root = nobody.get("/")
    assert root.status_code == 300
    assert root.json == nobody.get("/v3/").json
    assert [entry["id"] for entry in root.json["versions"]] == ["v3.0"]
    for path in ("/v3", "/v3/"):
        answer = nobody.get(path)
        assert answer.status_code == 200
        assert answer.json["versions"][0]["links"][1] == {"rel": "self", "href": "http://localhost/v3/"}
        assert set(answer.json["versions"][0]) == {
            "id", "status", "version", "min_version", "updated", "links", "media-types",
        }  # fmt: skip
    for path in ("/v2.1", "/v2.1/"):
        answer = nobody.get(path)
        assert answer.json["version"]["id"] == "v2.1"
        assert (2, 89) <= tuple(map(int, answer.json["version"]["version"].split("."))) <= (2, 100)
    assert nobody.get("/healthcheck").json == {"status": "ok", "ceph:ceph": "ok", "database": "ok"}
    assert nobody.get("/v3/volumes").status_code == 401
    assert nobody.get("/v2.1/servers").status_code == 401


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        (None, "volume 3.0"),
        ("volume 3.27", "volume 3.27"),
        ("volume latest", "volume 3.71"),
        ("compute 2.1, volume 3.5", "volume 3.5"),
    ],
)
def test_the_version_used_is_echoed(client: Client, asked: str | None, used: str) -> None:
    asking = client.with_headers(**({"OpenStack_API_Version": asked} if asked else {}))
    answer = asking.get("/v3/volumes")
    assert answer.status_code == 200
    assert answer.headers["OpenStack-API-Version"] == used
    assert answer.headers["Vary"] == "OpenStack-API-Version"


def test_a_version_out_of_range_is_406_with_the_range(client: Client) -> None:
    answer = client.at("3.99").get("/v3/volumes")
    assert answer.status_code == 406
    assert answer.json == {
        "computeFault": {
            "code": 406,
            "message": "Version 3.99 is not supported by the API. Minimum is 3.0 and maximum is 3.71.",
        }
    }


@pytest.mark.parametrize("asked", ["volume 3", "volume abc", "volume 3.01x", "compute 2.1", "volume"])
def test_nonsense_for_a_version_is_400(client: Client, asked: str) -> None:
    answer = client.with_headers(OpenStack_API_Version=asked).get("/v3/volumes")
    assert answer.status_code == 400
    assert "badRequest" in answer.json
    assert "OpenStack-API-Version" not in answer.headers


def test_compute_takes_either_header_and_echoes_both(client: Client) -> None:
    for header, value in (("OpenStack_API_Version", "compute 2.60"), ("X_OpenStack_Nova_API_Version", "2.60")):
        answer = client.with_headers(**{header: value}).get("/v2.1/servers")
        assert answer.headers["OpenStack-API-Version"] == "compute 2.60"
        assert answer.headers["X-OpenStack-Nova-API-Version"] == "2.60"
        assert set(answer.headers["Vary"].split(", ")) == {"OpenStack-API-Version", "X-OpenStack-Nova-API-Version"}
    assert client.get("/v2.1/servers").headers["X-OpenStack-Nova-API-Version"] == "2.1"
    assert client.at("2.101").get("/v2.1/servers").status_code == 406


def test_what_a_version_does_not_have_is_404_and_its_fields_are_hidden(client: Client) -> None:
    assert client.at("3.11").get("/v3/volumes/summary").status_code == 404
    assert client.at("3.12").get("/v3/volumes/summary").status_code == 200
    volume = client.volume()
    path = f"/v3/volumes/{volume['id']}"
    assert "volume_type_id" not in client.at("3.62").get(path).json["volume"]
    assert "volume_type_id" in client.at("3.63").get(path).json["volume"]


def test_both_forms_of_the_url_and_their_links(client: Client) -> None:
    volume = client.volume()["id"]
    short = client.get(f"/v3/volumes/{volume}").json["volume"]["links"]
    long = client.get(f"/v3/{PROJECT}/volumes/{volume}").json["volume"]["links"]
    assert short[0]["href"] == f"http://localhost/v3/volumes/{volume}"
    assert long[0]["href"] == f"http://localhost/v3/{PROJECT}/volumes/{volume}"
    assert long[1]["href"] == f"http://localhost/{PROJECT}/volumes/{volume}"
    foreign = client.get(f"/v3/{'c' * 32}/volumes/{volume}")
    assert (foreign.status_code, foreign.json["badRequest"]["message"]) == (400, "Malformed request url")


def test_request_ids_are_answered_on_success_and_failure(client: Client) -> None:
    seen = set()
    for path in ("/v3/volumes", "/v3/volumes/nope", "/nowhere"):
        answer = client.get(path)
        assert answer.headers["x-openstack-request-id"] == answer.headers["x-compute-request-id"]
        assert answer.headers["x-openstack-request-id"].startswith("req-")
        seen.add(answer.headers["x-openstack-request-id"])
    assert len(seen) == 3


def test_unknown_paths_and_methods_are_404_in_json(client: Client) -> None:
    for method, path in (("GET", "/nowhere"), ("GET", "/v3/images/x"), ("DELETE", "/v3/volumes"), ("GET", "/v2.1/x"),
                         ("GET", "/v3/volumes/"), ("PUT", "/v3/volumes/")):  # fmt: skip
        answer = client.request(method, path)
        assert answer.status_code == 404
        assert answer.json["itemNotFound"]["code"] == 404
        assert answer.content_type == "application/json"
