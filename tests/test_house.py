# SPDX-License-Identifier: Apache-2.0
"""The house's own rules: what is declared is documented, what is generated is up to date."""

from __future__ import annotations

import pathlib
import re
from types import ModuleType

import pytest

import cinder_api
import generate
from cinderlite import config
from cinderlite.api import compute, policy, volume
from cinderlite.api.microversion import Version

SERVICES = [pytest.param(volume, id="volume"), pytest.param(compute, id="compute")]

#: Operations that ask no policy: everybody who is logged in may.
FOR_EVERYBODY = {
    "resource_filters.index", "services.zones", "services.extensions", "services.extension", "servers.extensions",
    "group_types.index", "group_types.show_default", "group_types.show",
}  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
def test_each_operation_has_policy_description_and_reference(service: ModuleType) -> None:
    rules = {rule.name for rule in policy.list_rules()}
    for operation in generate.operations(service):
        assert operation.policy in rules or operation.name in FOR_EVERYBODY, operation.name
        assert operation.description.endswith("."), operation.name
        assert generate.sample(service, operation).exists(), f"{operation.name}: run tox -e samples"


@pytest.mark.parametrize("service", SERVICES)
def test_each_version_that_changes_something_is_in_the_history(service: ModuleType) -> None:
    known = {Version.parse(text) for text in service.HISTORY}
    for operation in generate.operations(service):
        windows = [operation.window]
        for schema in (operation.body, operation.answer):
            if schema is not None:
                windows += [field.metadata["window"] for field in schema._declared_fields.values()
                            if "window" in field.metadata]  # fmt: skip
        for window in windows:
            assert window.since is None or window.since in known, f"{operation.name}: {window.since}"
    assert service.SERVICE.maximum in known


def test_generated_files_are_up_to_date() -> None:
    files = {generate.CONFIG: generate.config_sample(), generate.POLICY: generate.policy_sample(), **generate.pages()}
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: see tox.ini"


def test_each_operation_is_as_cinder_has_it() -> None:
    """Same method and path, since when, and status; what differs on purpose stands in tools/cinder_api.py."""
    theirs = {endpoint.key: endpoint for endpoint in cinder_api.endpoints()}
    for operation in generate.operations(volume):
        key = operation.method, cinder_api.normal(operation.rule), operation.action
        assert key in theirs, f"Cinder has no {key}"
        endpoint = theirs[key]
        since = str(operation.window.since or volume.SERVICE.minimum)
        if endpoint.name not in cinder_api.DIFFERS:
            assert (since, operation.status) == (endpoint.since, endpoint.status), operation.name
    assert cinder_api.DIFFERS.keys() <= {endpoint.name for endpoint in theirs.values()}


def test_each_option_says_what_it_is_for() -> None:
    for group, options in config.list_opts():
        for option in options:
            assert option.help, f"{group}.{option.name}"
            assert option.help.endswith("."), f"{group}.{option.name}"


def test_no_module_is_without_its_first_words() -> None:
    for path in (pathlib.Path(__file__).parent.parent / "cinderlite").rglob("*.py"):
        first, second, *_ = path.read_text(encoding="utf-8").splitlines()
        assert first == "# SPDX-License-Identifier: Apache-2.0", path
        assert second.startswith('"""'), path


def test_a_volumes_image_is_looked_for_in_its_namespace() -> None:
    """A volume's host alone does not say where its image is: see `World.cluster_of`."""
    for path in (pathlib.Path(__file__).parent.parent / "cinderlite" / "core").rglob("*.py"):
        named = re.findall(r"world\.cluster\(([\w.\[\]]+)\.host\)", path.read_text(encoding="utf-8"))
        assert set(named) <= {"group", "source"}, path
