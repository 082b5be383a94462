# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of one version of a service, built from its declared operations; and a page to read it.

OpenAPI knows one operation for a method and a path: actions, which share both, become one whose body is one of theirs.
What answers may hold is said from the schemas; an operation without one answers "an object".
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import apispec
import flask
import marshmallow
from apispec.ext.marshmallow.openapi import OpenAPIConverter

from cinderlite import errors
from cinderlite.api import schema as shapes
from cinderlite.api.microversion import Service, Version
from cinderlite.api.paging import COUNT_SINCE, Listing
from cinderlite.api.rest import COUNTED, HINTS, Blueprint, Operation

_OPENAPI = "3.1.0"
_PART = re.compile(r"<(?:[^:>]+:)?([^>]+)>")

#: JSON Schema of our own kinds of fields; `apispec` knows marshmallow's.
_OWN: dict[type[marshmallow.fields.Field[Any]], dict[str, Any]] = {
    shapes.Bool: {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[A-Za-z01]{1,5}$"}]},
    shapes.GiB: {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
            {"type": "string", "pattern": "^0*[1-9][0-9]{0,7}$", "maxLength": 9},
        ]
    },
    shapes.Whole: {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
            {"type": "string", "pattern": "^[0-9]{1,9}$"},
        ]
    },
    shapes.Name: {"type": "string", "maxLength": 255},
    shapes.Label: {"type": "string", "maxLength": 255, "pattern": r"\S"},
    shapes.Specs: {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 255},
        "propertyNames": {"pattern": "^[a-zA-Z0-9_:.-]{1,255}$"},
    },
    shapes.Metadata: {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 255},
        "propertyNames": {"pattern": "^[a-zA-Z0-9_:. /-]{1,255}$"},
    },
    shapes.Id: {"type": "string", "format": "uuid", "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"},
    shapes.Time: {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$"},
}

_LIST = {
    "limit": {"type": "integer", "minimum": 0},
    "marker": {"type": "string"},
    "offset": {"type": "integer", "minimum": 0},
    "sort": {"type": "string", "description": "key[:asc|desc], several with commas"},
    "sort_key": {"type": "string"},
    "sort_dir": {"enum": ["asc", "desc"]},
    "all_tenants": {"type": "string", "description": "For administrators: whether to list every project's."},
}

_FAULT = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["code", "message"],
        "properties": {
            "code": {"type": "integer"},
            "message": {"type": "string"},
            "retryAfter": {"type": "string"},
        },
        "additionalProperties": False,
    },
}


def document(service: Service, blueprints: Iterable[Blueprint], version: Version, base: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `service` at `version`; `base` is the URL that the service is under."""
    return _Writer(service, list(blueprints), version).document(base)


class _Writer:
    """One document in the making."""

    def __init__(self, service: Service, blueprints: Sequence[Blueprint], version: Version) -> None:
        self.service, self.blueprints, self.version = service, blueprints, version
        self.schemas: dict[str, Any] = {"Fault": _FAULT}
        self.converter = OpenAPIConverter(_OPENAPI, _inline, apispec.APISpec("", "", _OPENAPI))

    def document(self, base: str) -> dict[str, Any]:
        """All of it."""
        paths = self.paths()
        return {
            "openapi": _OPENAPI,
            "info": {
                "title": f"cinderlite: {self.service.name}",
                "version": str(self.version),
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [
                {"url": f"{base}{self.service.prefix}"},
                {
                    "url": f"{base}{self.service.prefix}/{{project_id}}",
                    "variables": {"project_id": {"default": "project", "description": "The caller's project."}},
                },
            ],
            "security": [{"token": []}, {"password": []}],
            "tags": [{"name": bp.name, "description": bp.about} for bp in self.blueprints],
            "paths": paths,
            "components": {
                "schemas": self.schemas,
                "securitySchemes": {
                    "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
                    "password": {"type": "http", "scheme": "basic"},
                },
            },
        }

    def paths(self) -> dict[str, Any]:
        """Every path with its methods."""
        found: dict[str, dict[str, list[Operation]]] = {}
        names: dict[str, str] = {}
        for blueprint in self.blueprints:
            for operation in blueprint.operations:
                if self.version in operation.window:
                    # Two rules that differ in the names of their parts are one path.
                    path = names.setdefault(_PART.sub("{}", operation.rule), _PART.sub(r"{\1}", operation.rule))
                    found.setdefault(path, {}).setdefault(operation.method.lower(), []).append(operation)
        return {
            path: {
                "parameters": self._path_parameters(path),
                **{
                    method: self._actions(path, several) if several[0].action else self._operation(several[0])
                    for method, several in methods.items()
                },
            }
            for path, methods in found.items()
        }

    def _path_parameters(self, path: str) -> list[dict[str, Any]]:
        version = {
            "name": "OpenStack-API-Version",
            "in": "header",
            "schema": {"enum": [f"{self.service.type} {self.version}"]},
            "required": self.version != self.service.minimum,
        }
        parts = re.findall(r"{([^}]+)}", path)
        texts = {"type": "string", "minLength": 1}
        return [version, *({"name": name, "in": "path", "required": True, "schema": texts} for name in parts)]

    def _operation(self, operation: Operation) -> dict[str, Any]:
        described: dict[str, Any] = {
            **_words(operation),
            "operationId": operation.name,
            "tags": [operation.name.partition(".")[0]],
            "responses": self._responses([operation]),
        }
        if query := self._query(operation):
            described["parameters"] = query
        if operation.body is not None:
            described["requestBody"] = _content(self._body(operation), required=True)
        return described

    def _actions(self, path: str, operations: Sequence[Operation]) -> dict[str, Any]:
        """The actions of a path as one operation."""
        return {
            "operationId": "act" + re.sub(r"\W+", "_", path),
            "summary": "Do something to it; the only key of the body says what.",
            "description": "\n\n".join(f"**{one.action}**: {one.description}" for one in operations),
            "tags": [operations[0].name.partition(".")[0]],
            "requestBody": _content({"oneOf": [self._action(one) for one in operations]}, required=True),
            "responses": self._responses(operations),
        }

    def _action(self, operation: Operation) -> dict[str, Any]:
        inner: dict[str, Any] = {} if operation.body is None else self._component(operation, operation.body)
        return {
            "type": "object",
            "title": operation.action,
            "description": operation.description,
            "required": [operation.action],
            "properties": {operation.action: inner},
            "additionalProperties": False,
            "x-policy": operation.policy,
        }

    def _body(self, operation: Operation) -> dict[str, Any]:
        body = operation.body
        assert body is not None  # noqa: S101 -- the caller looked
        inner = self._component(operation, body)
        key = body.envelope[0]
        if not key:
            return inner
        beside: dict[str, Any] = {name: {"type": ["object", "null"]} for name in body.beside & set(HINTS)}
        return {
            "type": "object",
            "required": [key],
            "properties": {key: inner, **beside},
            "additionalProperties": not body.twin(self.version).is_strict,
        }

    def _query(self, operation: Operation) -> list[dict[str, Any]]:
        """Query keys; filters are those of the module's list, if it has one."""
        if "query" not in operation.parameters or not _is_list(operation):
            return []
        keys: dict[str, Any] = dict(_LIST)
        if operation.answer and operation.answer.envelope[1] in COUNTED and self.version >= COUNT_SINCE:
            keys["with_count"] = {"type": "string"}
        lists = [one for one in operation.function.__globals__.values() if isinstance(one, Listing)]
        for listing in lists if len(lists) == 1 else ():
            for key, filters in listing.filters.items():
                if any(self.version in one.window and not one.admin for one in filters):
                    keys[key] = {"type": "string"}
        return [{"name": key, "in": "query", "schema": shape} for key, shape in sorted(keys.items())]

    def _responses(self, operations: Sequence[Operation]) -> dict[str, Any]:
        answers: dict[str, list[dict[str, Any] | None]] = {}
        for operation in operations:
            shape = self._answer(operation)
            found = answers.setdefault(str(operation.status), [])
            if shape not in found:
                found.append(shape)
        fault = {"$ref": "#/components/schemas/Fault"}
        return {
            **{status: _response(shapes) for status, shapes in answers.items()},
            # Without a body, alone of all faults: If-Match names another state.
            "412": {"description": "What If-Match names is not what there is."},
            "4XX": {"description": "A fault.", **_content(fault)},
            "5XX": {"description": "A fault of the service, or of what it depends on.", **_content(fault)},
        }

    def _answer(self, operation: Operation) -> dict[str, Any] | None:
        """What a success carries; None if nothing or if only the operation itself knows."""
        if operation.answer is None:
            return {"type": "object"} if _returns(operation).startswith("dict") else None
        inner = self._component(operation, operation.answer)
        single, plural = operation.answer.envelope
        if _is_list(operation):
            links = {"type": "array", "items": {"type": "object", "required": ["rel", "href"]}}
            beside: dict[str, Any] = {operation.answer.links_key: links} if operation.answer.links_key else {}
            if plural in COUNTED and self.version >= COUNT_SINCE:
                beside["count"] = {"type": "integer"}
            return _object({plural: {"type": "array", "items": inner}, **beside}, [plural])
        return _object({single: inner}, [single]) if single else inner

    def _component(self, operation: Operation, shape: type[shapes.Schema]) -> dict[str, Any]:
        name = f"{operation.name.partition('.')[0]}.{shape.__name__}"
        if name not in self.schemas:
            self.schemas[name] = self._shape(shape)
        return {"$ref": f"#/components/schemas/{name}"}

    def _shape(self, shape: type[shapes.Schema]) -> dict[str, Any]:
        twin = shape.twin(self.version)
        about = {"description": inspect.getdoc(shape) or ""}
        if isinstance(twin, shapes.Body):
            if type(twin).read is not shapes.Body.read or type(twin).values is not shapes.Body.values:
                return {"type": "object", **about}  # It takes its values apart itself.
            known = {key: self._property(field) for key, field in _keys(twin.load_fields)}
            needed = [key for key, field in _keys(twin.load_fields) if field.required]
            return {**_object(known, needed), "additionalProperties": not twin.is_strict, **about}
        known = {key: _or_null(self._property(field)) for key, field in _keys(twin.dump_fields)}
        if shape.write is not shapes.Schema.write:
            return {"type": "object", "properties": known, **about}  # It adds and leaves out keys itself.
        loose = {
            key
            for key, field in _keys(twin.dump_fields)
            if field.metadata.get("policy") or field.metadata.get("optional")
        }
        return {**_object(known, [key for key in known if key not in loose]), **about}

    def _property(self, field: marshmallow.fields.Field[Any]) -> dict[str, Any]:
        own = next((_OWN[kind] for kind in type(field).__mro__ if kind in _OWN), None)
        if own is not None:
            return _or_null(own) if field.allow_none else dict(own)
        found: dict[str, Any] = {} if isinstance(field, shapes.Computed) else self.converter.field2property(field)
        found.pop("readOnly", None)
        return found


def _inline(_schema: Any) -> str:
    """The name of a nested schema's component: none, it is written where it is."""
    return ""


def _keys(found: Mapping[str, marshmallow.fields.Field[Any]]) -> list[tuple[str, marshmallow.fields.Field[Any]]]:
    return [(field.data_key or name, field) for name, field in found.items()]


def _object(properties: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    """An object of these keys and no others."""
    needed = {"required": list(required)} if required else {}
    return {"type": "object", "properties": properties, **needed, "additionalProperties": False}


def _or_null(shape: Mapping[str, Any]) -> dict[str, Any]:
    """The shape, or null."""
    if not shape or "null" in shape.get("type", ()):
        return dict(shape)
    if isinstance(shape.get("type"), str) and "enum" not in shape:
        return {**shape, "type": [shape["type"], "null"]}
    return {"anyOf": [dict(shape), {"type": "null"}]}


def _content(shape: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": shape}}, **more}


def _response(shapes: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """A success that carries one of the shapes, None for nothing."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes):
        return {"description": "Done, or begun."}
    return {"description": "Done, or begun.", **_content(known[0] if len(known) == 1 else {"anyOf": known})}


def _words(operation: Operation) -> dict[str, Any]:
    return {
        "summary": operation.description.partition("\n")[0],
        "description": operation.description,
        "x-policy": operation.policy,
    }


def _returns(operation: Operation) -> str:
    return str(operation.function.__annotations__.get("return", ""))


def _is_list(operation: Operation) -> bool:
    return _returns(operation).startswith(("Page", "list[", "Sequence["))


# -- served

#: Files of Swagger UI that the page loads.
_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
#: What is served below a service's prefix. One by one, so that no project's path is ever taken for an open one.
PATHS = ("openapi.json", "docs/", *(f"docs/{name}" for name in _FILES))


def register(
    app: flask.Flask, service: Service, blueprints: Sequence[Blueprint], base_url: Callable[[flask.Request], str]
) -> None:
    """Serve the documents of a service and, if the library is installed, the page that shows them; nobody logs in."""

    @functools.lru_cache(maxsize=8)
    def built(version: Version, base: str) -> str:
        return json.dumps(document(service, blueprints, version, base))

    def openapi() -> flask.Response:
        asked = flask.request.args.get("microversion", "latest")
        return flask.Response(built(service.version(asked), base_url(flask.request)), content_type="application/json")

    def page(name: str) -> flask.Response:
        library = importlib.util.find_spec("flask_swagger_ui")
        if library is None or library.origin is None:
            raise errors.NotFound("The resource could not be found.")
        if name:
            return flask.send_from_directory(pathlib.Path(library.origin).parent / "dist", name)
        return flask.Response(_PAGE.replace("TITLE", service.name), content_type="text/html; charset=utf-8")

    app.add_url_rule(f"{service.prefix}/openapi.json", f"{service.name}_openapi", openapi)
    for name in ("", *_FILES):
        rule = f"{service.prefix}/docs/{name}"
        app.add_url_rule(rule, f"{service.name}_docs_{name}".replace(".", "_"), page, defaults={"name": name})


#: Everything comes from this service: it works without the internet, and tells nobody that it is read.
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>cinderlite: TITLE</title>
<link rel="stylesheet" href="swagger-ui.css"><link rel="icon" href="favicon-32x32.png"></head>
<body><div id="ui"></div><script src="swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "../openapi.json" + location.search, dom_id: "#ui", deepLinking: true,
 validatorUrl: null, docExpansion: "none"})</script></body></html>
"""
