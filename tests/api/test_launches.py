# SPDX-License-Identifier: Apache-2.0
"""What a server is started with, over HTTP and on the command line: which disks, who may know, what is not kept."""

from __future__ import annotations

import json
import pathlib
import stat
from typing import Any

import pytest

from cinderlite import app
from cinderlite.cmd import manage
from cinderlite.context import World
from conftest import PROJECT, Client
from fakes_cluster import FakeCluster
from fakes_hypervisor import FakeHypervisor


@pytest.fixture
def server(hypervisor: FakeHypervisor) -> str:
    made = hypervisor.add_server("vm1", PROJECT, kept=True).id
    hypervisor.guests[made].gone = True
    return made


def attach(client: Client, server: str, **more: Any) -> str:
    volume: str = client.volume(**more)["id"]
    body = {"volumeAttachment": {"volumeId": volume}}
    assert client.post(f"/v2.1/servers/{server}/os-volume_attachments", body).status_code == 200
    return volume


def told(client: Client, server: str, query: str = "") -> dict[str, Any]:
    answer = client.get(f"/v2.1/servers/{server}/launch-arguments{query}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json["launch_arguments"]
    return found


def booting(found: dict[str, Any]) -> list[str]:
    return [value["serial"] for value in map(json.loads, found["arguments"][1::2]) if "bootindex" in value]


def test_the_volumes_of_a_server_and_the_one_it_boots_from(client: Client, admin: Client, server: str) -> None:
    assert told(admin, server) == {"arguments": [], "secrets": [], "volumes": []}
    first, second, third = (attach(client, server) for _ in range(3))
    assert client.post(f"/v3/volumes/{second}/action", {"os-set_bootable": {"bootable": True}}).status_code == 200
    found = told(admin, server, "?bus=port1,port2&directory=/srv/x")
    assert [(one["volume_id"], one["bus"]) for one in found["volumes"]] == [
        (second, "port1"), (first, "port2"), (third, "cinderlite.0"),
    ]  # fmt: skip
    assert booting(found) == [second]
    assert all(one["file"].startswith(f"/srv/x/{server}.") for one in found["secrets"])
    assert booting(told(admin, server, f"?boot={third}")) == [third]
    assert booting(told(admin, server, "?boot=none")) == []
    assert client.delete(f"/v2.1/servers/{server}/os-volume_attachments/{third}").status_code == 202
    assert {one["volume_id"] for one in told(admin, server)["volumes"]} == {first, second}
    assert len(told(admin, server, "?format=libvirt")["disks"]) == 2


def test_of_a_server_that_runs_the_disks_stay_where_they_are(
    client: Client, admin: Client, hypervisor: FakeHypervisor
) -> None:
    server = hypervisor.add_server("vm2", PROJECT).id
    first, second = (attach(client, server) for _ in range(2))
    found = {one["volume_id"]: one["bus"] for one in told(admin, server, "?bus=port9")["volumes"]}
    assert found == {first: "port1", second: "port2"}


@pytest.mark.parametrize(
    "query", ["?boot=nonsense", "?bus=pcie.0", "?bus=a%20b", "?format=shell", "?nonsense=1", "?directory=here"]
)
def test_what_makes_no_sense_is_400(admin: Client, server: str, query: str) -> None:
    assert admin.get(f"/v2.1/servers/{server}/launch-arguments{query}").status_code == 400


def test_who_may_and_that_nobody_keeps_it(
    client: Client,
    admin: Client,
    stranger: Client,
    server: str,
    cluster: FakeCluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attach(client, server)
    path = f"/v2.1/servers/{server}/launch-arguments"
    caplog.clear()
    answer = admin.get(path)
    assert answer.headers["Cache-Control"] == "no-store"
    [key] = [one.key for one in cluster.made_users.values()]
    assert key in {one["content"] for one in answer.json["launch_arguments"]["secrets"]}
    assert key not in caplog.text
    assert key not in str(answer.json["launch_arguments"]["arguments"])
    assert client.get(path).status_code == 403
    assert stranger.get(path).status_code == 404
    assert admin.get("/v2.1/servers/nonsense/launch-arguments").status_code == 404


def test_on_the_command_line_secrets_are_in_files_of_their_own(
    client: Client,
    world: World,
    server: str,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    volume = attach(client, server)
    [key] = [one.key for one in cluster.made_users.values()]
    monkeypatch.setattr(app, "real_world", lambda _conf: world)
    monkeypatch.setattr(type(world.db), "close", lambda _self: None)

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["cinderlite-manage", "server", "launch-args", *words])
        assert manage.main() == 0
        cluster.down = False  # A command closes what it has opened.
        return capsys.readouterr().out

    directory = tmp_path / "secrets"
    for _ in range(2):
        line = run("vm1", "--secrets", str(directory), "--bus", "port1", "--boot", volume)
        [file] = directory.iterdir()
        assert str(file) in line
        assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (key, 0o600)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert key not in line
    assert json.loads(run(server, "--format", "json"))["volumes"][0]["volume_id"] == volume
    assert volume in json.loads(run(server, "--format", "libvirt"))["disks"][0]
    monkeypatch.setattr("sys.argv", ["cinderlite-manage", "server", "launch-args", "nobody"])
    assert manage.main() == 1
