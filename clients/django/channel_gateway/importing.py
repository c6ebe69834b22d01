"""The site's own tables as the lines that ``gateway import`` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import connections
from django.db.models import Q

from . import memberships
from .conf import conf
from .envelope import _Encoder, rfc3339, whole
from .exceptions import GatewayError

#: What a line has, in the order in which the fields are named, and how many of them are needed.
ROLES: dict[str, tuple[tuple[str, ...], int]] = {
    "rooms": (("name", "display_name"), 1),
    "members": (("room", "user"), 2),
    "messages": (("room", "from_user", "message", "date", "data"), 4),
    "notifications": (("user", "from_user", "message", "date", "seen", "data"), 4),
}
_PAGE = 2000
#: Rows of a query that is sorted anew for each page.
_LONG_PAGE = 20000
_encode = _Encoder(ensure_ascii=False, separators=(",", ":")).encode
_NAMES = {"room": "room", "name": "room", "user": "user", "from_user": "user"}


class WrongTable(GatewayError):
    """What was said of a table cannot be."""


class Table:
    """``app.Model:field,field`` or ``app.Model:role=field,…``; a field may be a path, as ``author__username``.

    A field that leads to a user or to a room of ``@room_members`` is written as the name of that.
    """

    def __init__(self, kind: str, text: str) -> None:
        """Finds the model and its fields."""
        label, _, named = text.partition(":")
        roles, needed = ROLES[kind]
        self.kind = kind
        try:
            self.model: Any = apps.get_model(label)
        except (LookupError, ValueError) as error:
            raise WrongTable(f"--{kind}: there is no model {label}") from error
        self.fields: dict[str, str] = {}
        for place, each in enumerate(filter(None, named.split(","))):
            role, equals, path = each.partition("=")
            if not equals:
                if place >= len(roles):
                    raise WrongTable(f"--{kind}: {each} is one field too many; there are {', '.join(roles)}")
                role, path = roles[place], each
            if role not in roles or role in self.fields:
                raise WrongTable(f"--{kind}: {role!r} is none of {', '.join(roles)}, or named twice")
            self.fields[role] = path
        missing = [role for role in roles[:needed] if role not in self.fields]
        if missing:
            raise WrongTable(f"--{kind}: no field for {', '.join(missing)}")
        self.paths: dict[str, str] = {}
        self.names: dict[str, Callable[[Any], Any]] = {}
        for role, path in self.fields.items():
            self._resolve(role, path)
        self.source = self.model._meta.label_lower[:128]

    def _resolve(self, role: str, path: str) -> None:
        model, field = self.model, None
        for step in path.split("__"):
            if model is None:
                raise WrongTable(f"--{self.kind}: {path!r} goes on behind a field that is no relation")
            try:
                field = model._meta.pk if step == "pk" else model._meta.get_field(step)
            except FieldDoesNotExist as error:
                raise WrongTable(f"--{self.kind}: {error}") from error
            model = field.related_model if field.is_relation else None
        self.paths[role] = path
        wanted = _NAMES.get(role)
        if model is None or wanted is None:
            return
        if wanted == "user" and model is get_user_model():
            self.paths[role] = f"{path}__{'pk' if conf().user_name == 'id' else model.USERNAME_FIELD}"
            return
        relation = next((each for each in _relations() if each.rooms is model), None)
        if wanted == "room" and relation is not None:
            self.names[role] = _names_of_rooms(relation)
            return
        raise WrongTable(f"--{self.kind}: {path!r} leads to {model.__name__}; say which of its fields is the name")

    def rows(self, using: str | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Key and values of each row, in the order in which they are to be numbered."""
        date = self.paths.get("date")
        query = self.model._base_manager.using(using).order_by(*filter(None, [date]), "pk")
        rows = query.values_list("pk", *self.paths.values())
        # A client of MySQL gets all rows of a query before the first one can be seen.
        whole = connections[query.db].vendor != "mysql"
        for pk, *values in rows.iterator(chunk_size=_PAGE) if whole else self._pages(rows, date):
            found = dict(zip(self.paths, values, strict=True))
            for role, name in self.names.items():
                found[role] = name(found[role])
            yield pk, found

    def _pages(self, rows: Any, date: str | None) -> Iterator[tuple[Any, ...]]:
        """The same rows by queries with an end, each from where the one before ended."""
        if date is None:
            yield from self._pages_by(rows, lambda pk, _: Q(pk__gt=pk))
            return
        place = 1 + list(self.paths).index("date")
        nowhere = {f"{date}__isnull": True}
        yield from self._pages_by(rows.filter(**nowhere), lambda pk, _: Q(pk__gt=pk))
        yield from self._pages_by(
            rows.exclude(**nowhere),
            lambda pk, row: Q(**{f"{date}__gt": row[place]}) | Q(**{date: row[place]}, pk__gt=pk),
        )

    def _pages_by(self, rows: Any, behind: Callable[[Any, tuple[Any, ...]], Q]) -> Iterator[tuple[Any, ...]]:
        page = list(rows[:_LONG_PAGE])
        while page:
            yield from page
            page = list(rows.filter(behind(page[-1][0], page[-1]))[:_LONG_PAGE]) if len(page) == _LONG_PAGE else []

    def lines(self, using: str | None = None) -> Iterator[str]:
        """One line of JSON for each row."""
        make = getattr(self, f"_{self.kind}")
        source = None if self.kind in ("rooms", "members") else self.source
        for pk, row in self.rows(using):
            yield _line(make(row), source, pk)

    def _rooms(self, row: dict[str, Any]) -> dict[str, Any]:
        line = {"room": _text(row["name"])}
        if row.get("display_name") not in (None, ""):
            line["display_name"] = _text(row["display_name"])
        return line

    def _members(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"room": _text(row["room"]), "members": [_text(row["user"])]}

    def _messages(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"chat": {"room": _text(row["room"]), **self._message(row)}}

    def _notifications(self, row: dict[str, Any]) -> dict[str, Any]:
        line = {"user": _text(row["user"]), **self._message(row)}
        if "seen" in row:
            # A time of reading, too, says that it was read.
            line["seen"] = bool(row["seen"])
        return {"notification": line}

    def _message(self, row: dict[str, Any]) -> dict[str, Any]:
        date = row["date"]
        line = {
            "from_user": _text(row["from_user"]),
            "message": _text(row["message"]),
            "date": rfc3339(date) if isinstance(date, datetime) else _text(date),
        }
        if row.get("data") not in (None, ""):
            line["data"] = json.loads(row["data"]) if isinstance(row["data"], str) else row["data"]
        return line


def _line(value: dict[str, Any], source: str | None, pk: Any) -> str:
    if source is not None:
        value |= {"source": source, "id": str(pk)}
    return whole(_encode(value)) + "\n"


def _text(value: Any) -> str:
    # A user or a room that is gone: the gateway's import names the line.
    return "" if value is None else str(value)


def _relations() -> list[memberships.Relation]:
    memberships.connect()
    return memberships.relations


def _names_of_rooms(relation: memberships.Relation) -> Callable[[Any], str]:
    known: dict[Any, str] = {}

    def name(key: Any) -> str:
        if key is None:
            return ""
        if key not in known:
            room = relation.rooms._base_manager.filter(pk=key).first()
            known[key] = "" if room is None else relation.name(room)
        return known[key]

    return name
