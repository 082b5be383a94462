# SPDX-License-Identifier: Apache-2.0
"""Lists: limit, marker, offset, sort and filters as data, turned into one SELECT over an index.

A marker becomes a condition on the sort keys (never an OFFSET), so a page deep in a long list costs what the first
one does.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Select, and_, false, func, or_, select
from sqlalchemy.orm import Session

from cinderlite import errors
from cinderlite.api.microversion import Version, Window, window
from cinderlite.api.rest import Page
from cinderlite.api.schema import VIEW
from cinderlite.context import Context

#: Query keys that are never filters.
RESERVED = frozenset({"limit", "marker", "offset", "sort", "sort_key", "sort_dir", "all_tenants", "with_count"})

TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})
FALSE = frozenset({"0", "f", "false", "off", "n", "no"})

#: Since when an unknown filter is refused rather than ignored, in most lists.
STRICT_SINCE = Version(3, 31)
#: Since when most of the compute API refuses query keys that it does not know.
QUERIES_STRICT_SINCE = Version(2, 75)
#: Since when `key~=` searches.
LIKE_SINCE = Version(3, 34)
#: Since when `with_count` counts.
COUNT_SINCE = Version(3, 45)

_COMPARE = {
    "gt": operator.gt, "gte": operator.ge, "eq": operator.eq, "neq": operator.ne, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip

Build = Callable[[str], ColumnElement[bool]]


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """A query key that narrows a list, in a window of versions; outside it the key is dropped."""

    build: Build
    window: Window = dataclasses.field(default_factory=Window)
    admin: bool = False


def filter_(build: Build, *, since: str | None = None, until: str | None = None, admin: bool = False) -> Filter:
    """Declare a filter."""
    return Filter(build, window(since, until), admin)


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """What can be asked of one list: its filters, its sort keys, its searchable texts."""

    #: The id column: last sort key of every list, and what a marker names.
    id: Any
    #: Sort key → column, or an expression that is never NULL.
    keys: Mapping[str, Any]
    filters: Mapping[str, Sequence[Filter]]
    #: Columns that `key~=` may search as text.
    like: Mapping[str, Any]
    not_found: Callable[[str], errors.NotFound]
    #: Since when an unknown filter is refused rather than ignored; None: never.
    strict_since: Version | None = STRICT_SINCE
    #: Its name in the file of filters, which from then on says what members may use.
    resource: str | None = None


def flag(query: Mapping[str, str], key: str) -> bool:
    """A boolean of the query; False without it. Raises BadRequest."""
    return boolean(key, query[key]) if key in query else False


def boolean(key: str, text: str) -> bool:
    """A boolean from one of the words that OpenStack takes for one. Raises BadRequest."""
    word = text.strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise errors.InvalidInput(f"Invalid value '{text}' for {key}; it must be a boolean.")


def number(query: Mapping[str, str], key: str) -> int | None:
    """A non-negative integer of the query; None without it. Raises BadRequest."""
    if key not in query:
        return None
    text = query[key]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise errors.InvalidInput(f"{key} must be an integer >= 0, not '{text[:64]}'")
    return int(text)


def moment(query: Mapping[str, str], key: str) -> datetime.datetime | None:
    """A time of the query; None without it. Raises BadRequest."""
    return _moment(key, query[key]) if key in query else None


def _moment(key: str, text: str) -> datetime.datetime:
    try:
        value = datetime.datetime.fromisoformat(text.strip())
        return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:  # The latter: elsewhere it is the year 0, or 10000.
        raise errors.InvalidInput(f"Invalid date '{text[:64]}' for {key}.") from error


def refuse_others(query: Mapping[str, str], known: Collection[str]) -> None:
    """Raise BadRequest for a key of the query that the compute API does not know; earlier versions ignore it."""
    unknown = sorted(set(query) - set(known))
    if unknown and VIEW.get().version >= QUERIES_STRICT_SINCE:
        raise errors.BadRequest(f"Additional properties are not allowed ('{unknown[0][:64]}' was unexpected)")


def literal(key: str, text: str) -> dict[str, str]:
    """A dictionary as clients write it into a URL, in Python's or JSON's quoting. Raises BadRequest."""
    try:
        value = ast.literal_eval(text)
        if isinstance(value, dict):
            return {_whole(str(name)): _whole(str(word)) for name, word in value.items()}
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        pass  # Answered like one that is something else.
    raise errors.InvalidInput(f"Invalid value for {key}: it must be a dictionary.")


def _whole(text: str) -> str:
    """The text with its surrogate pairs joined, as which JSON spells what is beyond 16 bits. Raises ValueError."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


def moments(column: Any, key: str) -> Build:
    """A filter on times: `gt:2026-01-31T12:00:00,lt:…`."""

    def build(text: str) -> ColumnElement[bool]:
        conditions = []
        for part in text.split(","):
            word, _, when = part.partition(":")
            if word not in _COMPARE:
                raise errors.InvalidInput(f"Invalid filter operator '{word[:64]}' for {key}.")
            conditions.append(_COMPARE[word](column, _moment(key, when)))
        return and_(*conditions)

    return build


def everybody(ctx: Context, query: Mapping[str, str]) -> bool:
    """Whether an administrator asks for every project's rows; from others the wish is ignored. Raises BadRequest."""
    return ctx.is_admin and flag(query, "all_tenants")


def page(
    ctx: Context, listing: Listing, base: Select[Any], query: Mapping[str, str], *, options: Sequence[Any] = ()
) -> Page:
    """The page of `base` that `query` asks for, at most `osapi_max_limit` rows, read with `options`."""
    version, most = VIEW.get().version, ctx.settings.max_page
    chosen = base.where(*_conditions(listing, query, version, is_admin=ctx.is_admin))
    order = _order(listing, query)
    limit = min(number(query, "limit") if "limit" in query else most, most)  # type: ignore[type-var]
    paged = chosen.order_by(*(key.desc() if down else key.asc() for key, down in order)).limit(limit)
    paged = paged.offset(number(query, "offset") or 0).options(*options)
    count = None
    with ctx.world.db.read() as session:
        if version >= COUNT_SINCE and flag(query, "with_count"):
            count = session.scalar(select(func.count()).select_from(chosen.with_only_columns(listing.id).subquery()))
        if query.get("marker"):
            paged = paged.where(_after(session, listing, base, order, query["marker"]))
        items = list(session.scalars(paged).unique()) if limit else []
    full = bool(items) and len(items) == limit
    return Page(items, {"marker": items[-1].id, "limit": str(limit)} if full else None, count)


def _conditions(
    listing: Listing, query: Mapping[str, str], version: Version, *, is_admin: bool
) -> list[ColumnElement[bool]]:
    conditions, unknown = [], []
    for key, text in query.items():
        if key in RESERVED:
            continue
        opened = _is_open(listing, key, version)
        known = [
            one for one in listing.filters.get(key, ()) if is_admin or opened or (opened is None and not one.admin)
        ]
        if (
            key.endswith("~")
            and key[:-1] in listing.like
            and version >= LIKE_SINCE
            and (is_admin or opened is not False)
        ):
            conditions.append(listing.like[key[:-1]].contains(text, autoescape=True))
        elif not known and (is_admin or opened):
            conditions.append(_by_column(listing.id.class_, key, text))
        elif not known:
            unknown.append(key)
        conditions += [one.build(text) for one in known if version in one.window]
    if unknown and listing.strict_since is not None and version >= listing.strict_since:
        raise errors.BadRequest(f"Invalid filters {', '.join(sorted(unknown))} are found in query options.")
    return conditions


def _is_open(listing: Listing, key: str, version: Version) -> bool | None:
    """Whether members may use a key; None where that is for the list's own declarations to say."""
    if listing.resource is None or listing.strict_since is None or version < listing.strict_since:
        return None
    return VIEW.get().filters.allow(listing.resource, key, like=version >= LIKE_SINCE)


def _by_column(model: type[Any], key: str, text: str) -> ColumnElement[bool]:
    """A filter on any text, number or flag of a row, by those who may; what is none of its columns matches nothing."""
    column: sqlalchemy.Column[Any] | None = sqlalchemy.inspect(model).columns.get(key)
    if column is None:
        return false()
    kind = column.type.python_type
    if kind is bool:
        return column.is_(boolean(key, text))
    if kind is int:
        return column == int(text) if text.isascii() and text.isdigit() and len(text) < 10 else false()
    return column == text if kind is str else false()


def _order(listing: Listing, query: Mapping[str, str]) -> list[tuple[Any, bool]]:
    """Pairs of an expression and whether it goes down, the id last so that the order is total."""
    if "sort" in query and ("sort_key" in query or "sort_dir" in query):
        raise errors.InvalidInput(
            "The 'sort_key' and 'sort_dir' parameters are deprecated and cannot be used with the 'sort' parameter."
        )
    if "sort" in query:
        pairs = [part.strip().partition(":") for part in query["sort"].split(",")]
        wanted = [(key.strip(), direction.strip() or "desc") for key, _, direction in pairs]
    else:
        wanted = [(query.get("sort_key", "created_at"), query.get("sort_dir", "desc"))]
    order, down = [], True
    for key, direction in wanted:
        if direction.lower() not in ("asc", "desc"):
            raise errors.InvalidInput("Invalid sort direction: sort_dir must be 'asc' or 'desc'.")
        if key not in listing.keys:
            raise errors.InvalidInput(f"Invalid sort key '{key[:64]}'.")
        down = direction.lower() == "desc"
        order.append((listing.keys[key], down))
    return [*order, (listing.id, down)]


def _after(
    session: Session, listing: Listing, base: Select[Any], order: list[tuple[Any, bool]], marker: str
) -> ColumnElement[bool]:
    """The rows behind the one that `marker` names."""
    last = session.execute(base.with_only_columns(*(key for key, _ in order)).where(listing.id == marker)).one_or_none()
    if last is None:
        raise listing.not_found(marker)
    pairs = list(zip(order, last, strict=True))
    behind = []
    for index, ((key, down), value) in enumerate(pairs):
        equal = [other == text for (other, _), text in pairs[:index]]
        behind.append(and_(*equal, key < value if down else key > value))
    (first, down), value = pairs[0]
    # Said twice on purpose: the database seeks into the index by this half.
    return and_(first <= value if down else first >= value, or_(*behind))
