# SPDX-License-Identifier: Apache-2.0
"""JSON shapes: marshmallow schemas whose fields come and go with the API version and the caller's rights.

`versioned(field, since="3.48")` is all there is to a new field. `Schema.twin(version, denied)` is the cached instance
that has just the fields of one version; rows are dumped by a plan that the twin computes once, since marshmallow's
own loop would cost most of the time of a long list.
"""

from __future__ import annotations

import contextvars
import dataclasses
import datetime
import functools
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

import marshmallow
from marshmallow import fields, validate

from cinderlite import errors
from cinderlite.api.filters import Filters
from cinderlite.api.microversion import Version, Window, window


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """How the answer of this request is to be written: at which version, with which links, for whom."""

    version: Version
    #: Base URL of the service and the project part of the request's path ("" or "/<project>").
    base: str
    prefix: str
    project: str
    #: Whether the caller may see what is marked with a policy rule.
    allows: Callable[[str], bool]
    #: Whether another service asks.
    to_service: bool = False
    #: By which keys members may filter lists.
    filters: Filters = dataclasses.field(default_factory=Filters)


VIEW: contextvars.ContextVar[View] = contextvars.ContextVar("view")


def versioned(
    field: fields.Field[Any],
    *,
    since: str | None = None,
    until: str | None = None,
    policy: str | None = None,
    optional: bool = False,
) -> fields.Field[Any]:
    """Mark a field as existing in a window of versions, or only for those whom a policy rule allows to see it.

    The key of an `optional` one is left out of an answer in which it would be null.
    """
    field.metadata = {**field.metadata, "window": window(since, until), "policy": policy, "optional": optional}
    return field


class Schema(marshmallow.Schema):
    """A JSON object of an answer in its envelope, such as {"volume": {...}} and {"volumes": [...]}."""

    #: Key around one object, and around a list.
    envelope: ClassVar[tuple[str, str]] = ("", "")
    #: Key of the list's links.
    links_key: ClassVar[str] = ""
    _version: Version | None = None
    _denied: frozenset[str] = frozenset()

    @classmethod
    def rules(cls) -> frozenset[str]:
        """Policy rules that decide on fields."""
        return _rules(cls)

    @classmethod
    def twin(cls, version: Version, denied: frozenset[str] = frozenset()) -> Self:
        """The instance for one version, without the fields of the denied policy rules."""
        return _twin(cls, version, denied)  # type: ignore[return-value]

    @classmethod
    def here(cls) -> Self:
        """The instance for the request under way."""
        view = VIEW.get()
        rules = cls.rules()
        return cls.twin(view.version, frozenset(rule for rule in rules if not view.allows(rule)) if rules else rules)

    def write(self, row: Any) -> dict[str, Any]:
        """One row as JSON, without its envelope."""
        return self.write_all([row])[0]

    def write_all(self, items: Iterable[Any]) -> list[dict[str, Any]]:
        """Rows as JSON; here a schema leaves out what some rows do not have."""
        return rows(self, items)

    @functools.cached_property
    def plan(self) -> list[tuple[str, Callable[[Any], Any]]]:
        return [(field.data_key or name, _getter(name, field)) for name, field in self.dump_fields.items()]

    @functools.cached_property
    def optional(self) -> list[str]:
        return [
            field.data_key or name for name, field in self.dump_fields.items() if field.metadata.get("optional", False)
        ]


class Body(Schema):
    """What a request carries."""

    #: Keys that may stand beside the envelope's.
    beside: ClassVar[frozenset[str]] = frozenset()
    #: Since when unknown keys are refused; before they are ignored. None: never.
    strict_since: ClassVar[Version | None] = None

    def read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a request body, out of its envelope. Raises BadRequest with the API's words."""
        key = self.envelope[0]
        inner = body.get(key) if key else body
        if not isinstance(inner, dict):
            raise errors.BadRequest(f"Missing required element '{key}' in request body.")
        extra = set(body) - {key} - self.beside
        if key and self.is_strict and extra:
            raise errors.BadRequest(
                f"Additional properties are not allowed ({', '.join(repr(name) for name in sorted(extra))} "
                f"was unexpected)"
            )
        return self.values(inner)

    def values(self, inner: Mapping[str, Any]) -> dict[str, Any]:
        """The values of what is in the envelope. Raises BadRequest with the API's words."""
        try:
            loaded = self.load(inner, unknown=marshmallow.RAISE if self.is_strict else marshmallow.EXCLUDE)
        except marshmallow.ValidationError as error:
            raise errors.BadRequest(_sentence(error, inner)) from error
        return dict(loaded)

    @property
    def is_strict(self) -> bool:
        """Whether unknown keys are refused."""
        return self.strict_since is not None and (self._version is None or self._version >= self.strict_since)


class StrictBody(Body):
    """What a request carries where unknown keys are refused at every version."""

    strict_since = Version(3, 0)


class ActionBody(StrictBody):
    """What an action carries under its name."""

    #: Whether null may stand there instead of an object without keys.
    nullable: ClassVar[bool] = False


@functools.lru_cache(maxsize=4096)
def _twin(cls: type[Schema], version: Version, denied: frozenset[str]) -> Schema:
    hidden = [
        name
        for name, field in cls._declared_fields.items()
        if version not in field.metadata.get("window", Window()) or field.metadata.get("policy") in denied
    ]
    # A name in `exclude` must be known to the schema, which all of these are.
    # Answers are never loaded: two keys of one may show the same attribute.
    twin = cls(
        exclude=hidden, dump_only=() if issubclass(cls, Body) else tuple(set(cls._declared_fields) - set(hidden))
    )
    twin._version, twin._denied = version, denied
    return twin


@functools.cache
def _rules(cls: type[Schema]) -> frozenset[str]:
    return frozenset(
        field.metadata["policy"] for field in cls._declared_fields.values() if field.metadata.get("policy")
    )


def _getter(name: str, field: fields.Field[Any]) -> Callable[[Any], Any]:
    attribute = field.attribute or name
    if isinstance(field, Computed):
        return field.compute
    fetch = operator.attrgetter(attribute)
    if isinstance(field, Time):
        return lambda row: time_text(fetch(row))
    if type(field) in (fields.String, fields.Integer, fields.Boolean, fields.Raw, fields.Dict, fields.UUID):
        return fetch  # Typed by the database already.
    return lambda row: field._serialize(fetch(row), attribute, row)


def _sentence(error: marshmallow.ValidationError, body: Mapping[str, Any]) -> str:
    """The first complaint, in the words that Cinder's schema check uses."""
    path: list[str] = []
    messages: Any = error.messages
    while isinstance(messages, dict):
        name, messages = next(iter(messages.items()))
        path.append(str(name))
    text = messages[0] if isinstance(messages, list) else str(messages)
    value: Any = body
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if path[-1] == "_schema":  # About no field in particular.
        return text
    if text == "Unknown field.":
        return f"Additional properties are not allowed ('{path[-1]}' was unexpected)"
    if text == "Missing data for required field.":
        return f"Invalid input for field/attribute {path[-1]}. '{path[-1]}' is a required property"
    return f"Invalid input for field/attribute {path[-1]}. Value: {str(value)[:255]}. {text}"


# -- fields


def time_text(value: datetime.datetime | None) -> str | None:
    """A time as Cinder writes it: naive UTC, always six fractional digits, no zone letter (gophercloud needs that)."""
    return None if value is None else value.isoformat(timespec="microseconds")


class Time(fields.DateTime):
    """A time of Cinder's form."""


class Computed(fields.Field[Any]):
    """A value made from the row by a function; never read from a body."""

    def __init__(self, compute: Callable[[Any], Any], **kwargs: Any) -> None:
        super().__init__(dump_only=True, **kwargs)
        self.compute = compute

    def _serialize(self, value: Any, attr: str | None, obj: Any, **_kwargs: Any) -> Any:
        return self.compute(obj)


class Bool(fields.Boolean):
    """A boolean, or one of the words that OpenStack takes for one, in any case."""

    _TRUE: ClassVar = frozenset({"1", "t", "true", "on", "y", "yes"})
    _FALSE: ClassVar = frozenset({"0", "f", "false", "off", "n", "no"})

    def _deserialize(
        self,
        value: Any,
        attr: str | None,
        data: Mapping[str, Any] | None,
        **kwargs: Any,
    ) -> Any:
        if isinstance(value, bool):
            return value
        word = value.strip().lower() if isinstance(value, str) else ""
        if word in self._TRUE:
            return True
        if word in self._FALSE:
            return False
        raise marshmallow.ValidationError(f"'{value}' is not a 'boolean'")


class Word(fields.String):
    """A word such as a status, in letters of either case; read in small ones."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        return str(super()._deserialize(value, attr, data, **kwargs)).lower()


def named(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a body says of name and description, under either of the API's names for them."""
    names = {"display_name": "name", "display_description": "description"}
    old = {inside: body[outside] for outside, inside in names.items() if outside in body}
    return old | {key: body[key] for key in names.values() if key in body}


class Whole(fields.Integer):
    """A whole number from 0, or its digits."""

    least: ClassVar[int] = 0
    _DIGITS = re.compile(r"[0-9]+")

    def _deserialize(
        self,
        value: Any,
        attr: str | None,
        data: Mapping[str, Any] | None,
        **kwargs: Any,
    ) -> int:
        if isinstance(value, str) and self._DIGITS.fullmatch(value) and len(value) < 10:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise marshmallow.ValidationError(f"{value!r} is not an integer")
        if value < self.least:
            raise marshmallow.ValidationError(f"{value} is less than the minimum of {self.least}")
        if value > 2**31 - 1:
            raise marshmallow.ValidationError(f"{value} is greater than the maximum of {2**31 - 1}")
        return value


class GiB(Whole):
    """A size in GiB: an integer or its digits, at least 1."""

    least = 1


class Name(fields.String):
    """A display name or description: at most 255 characters of any script, blanks around it dropped."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_none": True, **kwargs})

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs).strip()
        if len(text) > 255:
            raise marshmallow.ValidationError(f"'{text[:40]}...' is too long")
        if "\x00" in text:
            raise marshmallow.ValidationError("a null character is not allowed")
        return text


class Label(Name):
    """The name of something that cannot be without one: neither null nor blank."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_none": False, **kwargs})

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not text:
            raise marshmallow.ValidationError("it must not be empty")
        return text


class Metadata(fields.Dict):
    """An object of strings with Cinder's rules for keys and values; null stands for none."""

    _KEY = re.compile(r"[a-zA-Z0-9\-_:. /]{1,255}")
    _NULLS = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keys=fields.String(), values=fields.Raw(allow_none=True), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        found: dict[str, Any] = super()._deserialize(value, attr, data, **kwargs)  # type: ignore[no-untyped-call]
        for key, text in found.items():
            if not self._KEY.fullmatch(key):
                raise marshmallow.ValidationError(
                    f"'{key[:255]}' does not match any of the regexes: '{self._KEY.pattern}'"
                )
            if text is None and self._NULLS:
                continue
            if not isinstance(text, str):
                raise marshmallow.ValidationError(f"{text!r} is not of type 'string'")
            if len(text) > 255:
                raise marshmallow.ValidationError(f"'{text[:40]}...' is too long")
        return found


class Specs(Metadata):
    """An object of strings as metadata, with neither blanks nor slashes in its keys."""

    _KEY = re.compile(r"[a-zA-Z0-9\-_:.]{1,255}")


class Id(fields.String):
    """A UUID with its dashes, in either case."""

    _FORM = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not self._FORM.fullmatch(text):
            raise marshmallow.ValidationError(f"'{text}' is not a 'uuid'")
        return text.lower()


def links(collection: str) -> Computed:
    """The self and bookmark links of an object in `collection`."""

    def compute(row: Any) -> list[dict[str, str]]:
        view = VIEW.get()
        tail = f"{view.project}/{collection}/{row.id}"
        return [
            {"rel": "self", "href": f"{view.base}{view.prefix}{tail}"},
            {"rel": "bookmark", "href": f"{view.base}{tail}"},
        ]

    return Computed(compute)


def rows(schema: Schema, items: Iterable[Any]) -> list[dict[str, Any]]:
    """Many rows by one plan."""
    plan, optional = schema.plan, schema.optional
    written = [{key: get(row) for key, get in plan} for row in items]
    for one in written if optional else ():
        for key in optional:
            if one[key] is None:
                del one[key]
    return written


class MetadataBody(StrictBody):
    """Metadata as a whole."""

    metadata = Metadata(required=True)


class MetaBody(StrictBody):
    """One key of the metadata."""

    meta = Metadata(required=True)


class PairBody(Body):
    """One key and its value, in no envelope."""

    pair = Specs(required=True, validate=validate.Length(equal=1))

    def read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The key with its value. Raises BadRequest."""
        return dict(self.values({"pair": body})["pair"])
