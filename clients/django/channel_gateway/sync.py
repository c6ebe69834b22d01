"""Compares the site's memberships with the gateway's, and repairs what differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import api, memberships
from .exceptions import ApiError
from .memberships import Relation
from .names import is_valid_name, is_valid_user

_PAGE = 500


@dataclass(frozen=True)
class Difference:
    """Something that the gateway has otherwise."""

    what: str
    room: str
    user: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.room}" + (f" {self.user}" if self.user else "")


def differences(using: str | None = None, *, repair: bool = True) -> Iterator[Difference]:
    """Each difference, after it was repaired.

    Rooms that no relation of the site's knows are left alone. What changes meanwhile is looked at again right before
    it is repaired: the gateway is read first, so who is a member there was one in the site before.
    """
    known = _gateway_rooms()
    # Two relations may fill one room.
    parts: dict[str, list[tuple[Relation, Any]]] = {}
    for relation in memberships.relations:
        relation.connect()
        if not relation.room_path and not relation.is_many_to_many:
            for row in relation.all_rooms(using):
                parts.setdefault(relation.name(row), []).append((relation, row))
        else:
            for room in relation.all_rooms(using):
                parts.setdefault(relation.name(room), []).append((relation, room))
    for name, sources in parts.items():
        if is_valid_name(name):
            yield from _room(name, sources, known, using, repair)


def _gateway_rooms() -> dict[str, str]:
    """Names and display names."""
    found: dict[str, str] = {}
    after: str | None = None
    while True:
        page = api.call("GET", api.path("rooms", after=after, limit=_PAGE))["rooms"]
        found |= {room["name"]: room["display_name"] for room in page}
        if len(page) < _PAGE:
            return found
        after = page[-1]["name"]


def _room(
    name: str, sources: list[tuple[Relation, Any]], known: dict[str, str], using: str | None, repair: bool
) -> Iterator[Difference]:
    display = next((found for relation, room in sources if (found := relation.display_name(room))), None)
    there: set[str] = set()
    if name in known:
        try:
            there = set(api.call("GET", api.path("rooms", name))["members"])
        except ApiError as error:
            if error.status != 404:
                raise
            known.pop(name)
    if name not in known or (display is not None and known[name] != display):
        if repair:
            api.call("PUT", api.path("rooms", name), {} if display is None else {"display_name": display})
        yield Difference("room", name)
    wanted = {user for relation, room in sources for user in relation.members(room, using) if is_valid_user(user)}
    for user in sorted(wanted - there):
        if not repair or _is_member(sources, user, using):
            if repair:
                api.call("PUT", api.path("rooms", name, "members", user))
            yield Difference("add", name, user)
    for user in sorted(there - wanted):
        if not repair or not _is_member(sources, user, using):
            if repair:
                api.call("DELETE", api.path("rooms", name, "members", user))
            yield Difference("remove", name, user)


def _is_member(sources: list[tuple[Relation, Any]], user: str, using: str | None) -> bool:
    return any(relation.has(room, user, using) for relation, room in sources)
