# SPDX-License-Identifier: Apache-2.0
"""An operator's policy file that was written for Cinder decides here too."""

from __future__ import annotations

import pathlib

import pytest

from cinderlite import app as composition
from cinderlite.context import World
from conftest import PROJECT, Client, _client, configuration

FILE = """
"admin_api": "is_admin:True or (role:admin and is_admin_project:True)"
"admin_or_owner": "is_admin:True or project_id:%(project_id)s"
"project_operator": "role:operator and project_id:%(project_id)s"
"volume:create": "rule:project_operator"
"volume:delete": "rule:system_admin_or_project_member or rule:project_operator"
"volume_extension:types_manage": "role:operator"
"volume_extension:volume_image_metadata": ""
"volume:attachment_create": "!"
"volume:extend_attached_volume": "rule:admin_api"
"backup:backup_project_attribute": "rule:admin_or_owner"
"volume_extension:extended_snapshot_attributes": "rule:admin_api"
"clusters:get": "rule:system_admin_only"
"volume:of_a_release_yet_to_come": "rule:admin_api"
"""


@pytest.fixture
def operator(tmp_path: pathlib.Path, world: World) -> Client:
    """Somebody with a role of the operator's own, under the operator's file."""
    (tmp_path / "policy.yaml").write_text(FILE, encoding="utf-8")
    conf = configuration(tmp_path, oslo_policy__policy_file=str(tmp_path / "policy.yaml"))
    return _client(composition.create_app(conf, world), PROJECT, "operator,reader", "olga")


def test_its_rules_hold_and_the_others_keep_their_defaults(operator: Client) -> None:
    member = operator.with_headers(X_Test_Roles="member,reader")
    body = {"volume": {"size": 1}}
    assert member.post("/v3/volumes", body).status_code == 403
    volume = operator.volume()["id"]
    assert member.get(f"/v3/volumes/{volume}").status_code == 200
    attachment = {"attachment": {"volume_uuid": volume}}
    assert operator.with_headers(X_Test_Roles="admin").at("3.27").post("/v3/attachments", attachment).status_code == 403
    assert operator.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 403
    assert member.post("/v3/snapshots", {"snapshot": {"volume_id": volume}}).status_code == 202
    assert "os-extended-snapshot-attributes:progress" not in member.get("/v3/snapshots/detail").json["snapshots"][0]
    assert operator.at("3.7").get("/v3/clusters").status_code == 403
    assert operator.with_headers(X_Test_Roles="admin").at("3.7").get("/v3/clusters").status_code == 200


def test_rules_that_cinder_has_split_hold_under_their_former_name(operator: Client) -> None:
    assert operator.post("/v3/types", {"volume_type": {"name": "gold"}}).status_code == 200
    assert (
        operator.with_headers(X_Test_Roles="admin").post("/v3/types", {"volume_type": {"name": "x"}}).status_code == 403
    )
    volume = operator.volume()["id"]
    nobody = operator.with_headers(X_Test_Roles="visitor")
    metadata = {"os-set_image_metadata": {"metadata": {"os": "linux"}}}
    assert nobody.post(f"/v3/volumes/{volume}/action", metadata).status_code == 200


def test_who_makes_a_volume_in_use_bigger_is_whom_the_file_names(operator: Client) -> None:
    path = f"/v3/volumes/{operator.volume()['id']}/action"
    member = operator.with_headers(X_Test_Roles="member,reader").at("3.42")
    assert member.post(path, {"os-extend": {"new_size": 2}}).status_code == 202
    assert member.post(path, {"os-attach": {"host_name": "h", "mountpoint": "/dev/vdb"}}).status_code == 202
    assert member.post(path, {"os-extend": {"new_size": 3}}).status_code == 403
    assert member.at("3.41").post(path, {"os-extend": {"new_size": 3}}).status_code == 400
    assert member.with_headers(X_Test_Roles="admin").post(path, {"os-extend": {"new_size": 3}}).status_code == 202


def test_who_deletes_is_whom_the_file_names(operator: Client) -> None:
    volume = operator.volume()["id"]
    assert operator.with_headers(X_Test_Roles="reader").delete(f"/v3/volumes/{volume}").status_code == 403
    assert operator.delete(f"/v3/volumes/{volume}").status_code == 202
