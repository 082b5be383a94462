# SPDX-License-Identifier: Apache-2.0
"""How a request travels: gate → load → policy → call → dump. The one clever file.

An operation is declared in one place: URL, since when, who may, what comes in, what goes out; below it a docstring
(which is the API's description) and a few lines that call `core`. This file and `app` are the only ones to touch
flask's request. What a newcomer gets wrong: with `on=` the named object is looked up *before* the policy is asked, so
that another project's object is a 404 and never a 403.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import flask
from werkzeug.exceptions import RequestEntityTooLarge

from cinderlite import errors, metrics
from cinderlite.api import admission, microversion
from cinderlite.api.microversion import Service, Version, Window
from cinderlite.api.policy import Policy
from cinderlite.api.schema import VIEW, Body, Schema, View
from cinderlite.context import Context

Finder = Callable[[Context, str], Any]
Function = TypeVar("Function", bound=Callable[..., Any])
#: Keys of the scheduler hints in a body.
HINTS = ("OS-SCH-HNT:scheduler_hints", "scheduler_hints")
_JSON = ("application/json", "application/vnd.openstack.volume+json")
#: Lists that say with `with_count` how many there are.
COUNTED = frozenset({"volumes", "snapshots", "backups"})


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation as declared; `rule` is its path below the service's prefix.

    `action` is set where one URL serves several operations: the only key of the body, such as "os-extend".
    """

    method: str
    rule: str
    name: str
    policy: str | None
    window: Window
    body: type[Body] | None
    status: int
    answer: type[Schema] | None
    finders: Mapping[str, Finder]
    function: Callable[..., Any]
    description: str
    action: str | None = None
    slow: bool | Callable[[Any], bool] = False

    @functools.cached_property
    def parameters(self) -> frozenset[str]:
        """What the function takes."""
        return frozenset(inspect.signature(self.function).parameters)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What an operation returns when a value is not all there is to say; `text` stands for itself, not as JSON."""

    value: Any = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    status: int | None = None
    text: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Some items of a list, how to get the next ones, and how many there are in all if that was asked."""

    items: Sequence[Any]
    next: Mapping[str, str] | None = None
    count: int | None = None


#: Service and rule → action → operation: several blueprints may declare actions of one URL, which the first registers.
_ACTIONS: dict[tuple[str, str], dict[str, Operation]] = {}


class Blueprint(flask.Blueprint):
    """The operations of one resource, `about` which it is."""

    def __init__(self, name: str, service: Service, about: str) -> None:
        super().__init__(name, __name__)
        self.about = about
        self.service = service
        self.operations: list[Operation] = []

    def get(self, rule: str, **declared: Any) -> Callable[[Function], Function]:
        """Declare a GET; see `operation`."""
        return self.operation("GET", rule, **declared)

    def post(self, rule: str, **declared: Any) -> Callable[[Function], Function]:
        """Declare a POST; see `operation`."""
        return self.operation("POST", rule, **declared)

    def put(self, rule: str, **declared: Any) -> Callable[[Function], Function]:
        """Declare a PUT; see `operation`."""
        return self.operation("PUT", rule, **declared)

    def delete(self, rule: str, **declared: Any) -> Callable[[Function], Function]:
        """Declare a DELETE; see `operation`."""
        return self.operation("DELETE", rule, **declared)

    def operation(self, method: str, rule: str, **declared: Any) -> Callable[[Function], Function]:
        """Declare an operation.

        `policy` names its rule (None: everybody who is logged in). `body` and `returns` (status, schema) say what comes
        in and goes out, `since` and `until` in which versions. `on` looks up the object behind a path part before the
        policy is asked: a finder for `<id>`, or a mapping from part names to finders, outermost first. The function
        gets the context, the objects in that order, then what it has a parameter for: the body's values (`body`), the
        query (`query`), the headers (`headers`), scheduler hints (`hints`); and the remaining path parts by name.
        `slow` says whether it may wait for a guest, for another service or for monitors; a function of the body where
        that depends on it. All of a service may that is `slow` itself.
        """

        def declare(function: Function) -> Function:
            view = _view(self.service, self._declare(function, method, rule, **declared))
            self.add_url_rule(rule, function.__name__, view, methods=[method])
            return function

        return declare

    def action(self, rule: str, name: str, **declared: Any) -> Callable[[Function], Function]:
        """Declare an action: a POST whose body has one key, `name`, and under it what `body` describes.

        Without `body` whatever stands there is ignored, as Cinder does. It answers 202 if nothing else is said. The
        rest is as for `operation`.
        """

        def declare(function: Function) -> Function:
            operation = self._declare(function, "POST", rule, action=name, **{"returns": (202, None), **declared})
            actions = _ACTIONS.setdefault((self.service.name, rule), {})
            if name in actions:
                raise TypeError(f"{name} is declared twice for {rule}")
            if not actions:
                view = _actions_view(self.service, actions)
                self.add_url_rule(rule, f"{function.__name__}_and_others", view, methods=["POST"])
            actions[name] = operation
            return function

        return declare

    def _declare(
        self,
        function: Callable[..., Any],
        method: str,
        rule: str,
        *,
        policy: str | None,
        body: type[Body] | None = None,
        returns: tuple[int, type[Schema] | None] = (200, None),
        on: Finder | Mapping[str, Finder] | None = None,
        since: str | None = None,
        until: str | None = None,
        action: str | None = None,
        slow: bool | Callable[[Any], bool] = False,
    ) -> Operation:
        description = inspect.getdoc(function)
        if not description:
            raise TypeError(f"{method} {rule} has no docstring")
        finders = on if isinstance(on, Mapping) else ({"id": on} if on else {})
        declared = Operation(
            method, rule, f"{self.name}.{function.__name__}", policy, microversion.window(since, until),
            body, *returns, finders, function, description, action,
            self.service.slow or slow,
        )  # fmt: skip
        self.operations.append(declared)
        return declared


def _view(service: Service, operation: Operation) -> Callable[..., flask.Response]:
    def view(**parts: str) -> flask.Response:
        return _perform(service, operation, _context(parts), parts, functools.cache(_json_body))

    view.__name__ = operation.function.__name__
    return view


def _actions_view(service: Service, actions: Mapping[str, Operation]) -> Callable[..., flask.Response]:
    def view(**parts: str) -> flask.Response:
        ctx = _context(parts)
        body = _json_body()
        names = list(body)
        if len(names) != 1 or names[0] not in actions:
            raise errors.BadRequest(
                f"There is no such action: {', '.join(names)[:255]}. Verify the request body and Content-Type header "
                f"and try again."
            )
        [(name, inner)] = body.items()
        return _perform(service, actions[name], ctx, parts, lambda: inner)

    return view


def _context(parts: dict[str, str]) -> Context:
    """Who asks. Raises Unauthorized, MalformedUrl if the project in the path is another one, UnsupportedMediaType."""
    ctx: Context = flask.current_app.extensions["cinderlite"].context(flask.request.environ, flask.g.request_id)
    project = parts.pop("project_id", None)
    if project is not None and project != ctx.project_id:
        raise errors.MalformedUrl
    _refuse_what_nobody_reads()
    flask.g.project = f"/{project}" if project else ""
    return ctx


def _perform(
    service: Service, operation: Operation, ctx: Context, parts: dict[str, str], body: Callable[[], Any]
) -> flask.Response:
    flask.g.operation = operation.name
    edge = flask.current_app.extensions["cinderlite"]
    policy: Policy = edge.policy
    version = flask.g.version
    if version not in operation.window:
        raise errors.NotFound("The resource could not be found.")
    if operation.slow if isinstance(operation.slow, bool) else operation.slow(body()):
        place: admission.Place = flask.request.environ[admission.PLACE]
        place.slow_down()
    found = [finder(ctx, parts.pop(part)) for part, finder in operation.finders.items()]
    target = found[0] if found else ctx
    if operation.policy is not None and not policy.allows(ctx, operation.policy, target):
        raise errors.Forbidden(operation.policy)
    view = View(
        version,
        edge.base_url(flask.request),
        service.prefix,
        flask.g.project,
        lambda rule: policy.allows(ctx, rule, target),
        ctx.is_service,
        edge.filters,
    )
    token = VIEW.set(view)
    try:
        values = dict(parts) | _given(operation, version, body)
        return _respond(operation, operation.function(ctx, *found, **values))
    finally:
        VIEW.reset(token)


def _given(operation: Operation, version: Version, body: Callable[[], Any]) -> dict[str, Any]:
    """What the function has a parameter for, beside what stands in the path."""
    parameters = operation.parameters
    given: dict[str, Any] = {}
    if operation.body is not None:
        schema, sent = operation.body.twin(version), body()
        if operation.action is None:
            given["body"] = schema.read(sent)
        elif isinstance(sent, dict) or (sent is None and getattr(schema, "nullable", False)):
            given["body"] = schema.values(sent or {})
        else:
            raise errors.BadRequest(f"Invalid input for field/attribute {operation.action}. It must be an object.")
        if "hints" in parameters:
            given["hints"] = _hints(sent)
    if "query" in parameters:
        given["query"] = flask.request.args
    if "headers" in parameters:
        given["headers"] = flask.request.headers
    return given


def _hints(body: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the envelope as scheduler hints, under the older name or the newer."""
    for key in HINTS:
        if body.get(key) is not None:
            if not isinstance(body[key], dict):
                raise errors.BadRequest(f"Invalid input for field/attribute {key}. It must be an object.")
            return dict(body[key])
    return {}


def _refuse_what_nobody_reads() -> None:
    """Refuse a body that is not JSON, whatever is asked for, and null characters: PostgreSQL holds none."""
    request = flask.request
    if request.content_type and _has_body() and request.mimetype not in _JSON:
        raise errors.UnsupportedMediaType
    if "\x00" in request.path:
        raise errors.NotFound("The resource could not be found.")
    if b"%00" in request.query_string:
        raise errors.InvalidInput("a null character is not allowed")


def _has_body() -> bool:
    return bool(flask.request.content_length) or "Transfer-Encoding" in flask.request.headers


def _json_body() -> dict[str, Any]:
    """The request's JSON object; nothing if it is empty or has no content type, as Cinder reads it."""
    request = flask.request
    data = request.get_data(cache=False) if request.content_type else b""
    if not data:
        return {}
    # Of a body in chunks werkzeug reads what it may, and does not say that there is more.
    if request.content_length is None and len(data) >= (request.max_content_length or 0):
        raise RequestEntityTooLarge
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise errors.BadRequest("Malformed request body") from error
    if not isinstance(body, dict) or (b"\\u" in data and not all(_storable(text) for text in _texts(body))):
        raise errors.BadRequest("Malformed request body")
    return body


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _storable(text: str) -> bool:
    """Whether a string has neither null characters nor halves of surrogate pairs, both of which JSON can spell."""
    return "\x00" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _respond(operation: Operation, result: Any) -> flask.Response:
    answer = result if isinstance(result, Answer) else Answer(result)
    payload = _payload(operation, answer.value)
    text = answer.text or ("" if payload is None else json.dumps(payload))
    kind = "application/json" if answer.text is None else "text/plain; charset=utf-8"
    response = flask.Response(text, status=answer.status or operation.status, content_type=kind)
    if not text:
        del response.headers["Content-Type"]
    response.headers.extend(answer.headers)
    return response


def _payload(operation: Operation, value: Any) -> Any:
    if value is None or operation.answer is None:
        return value
    schema = operation.answer.here()
    single, plural = schema.envelope
    if not isinstance(value, Page | list):
        return {single: schema.write(value)} if single else schema.write(value)
    page = value if isinstance(value, Page) else Page(value)
    body: dict[str, Any] = {plural: schema.write_all(page.items)}
    if page.next is not None:
        query = flask.request.args.copy()
        query.pop("offset", None)  # The marker stands behind what it skipped.
        for key, text in page.next.items():
            query[key] = text
        view = VIEW.get()
        path = flask.request.path
        href = f"{view.base}{path}?{flask.current_app.extensions['cinderlite'].encode(query)}"
        body[schema.links_key] = [{"rel": "next", "href": href}]
    if page.count is not None and plural in COUNTED:
        body["count"] = page.count
    return body


def observe(response: flask.Response) -> float:
    """Count the answered request; returns its seconds."""
    elapsed: float = time.monotonic() - flask.g.began
    service = flask.g.get("service")
    metrics.REQUESTS.labels(
        service.name if service else "none", flask.g.get("operation", "none"), response.status_code
    ).observe(elapsed)
    return elapsed
