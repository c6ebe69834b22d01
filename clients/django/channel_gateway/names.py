"""Names of users and rooms, and the groups on the channel layer that belong to them.

>>> group_of("alice"), room_group("lobby")
('alice', 'chat_lobby')
>>> group_of("jose@example.com")  # Channels takes no @ in the name of a group
'u.b12dcff163bf9a9349a168651427cf2c1b18b64c'
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

from .conf import conf
from .exceptions import InvalidEvent

MAX_NAME_CHARS = 150
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,99}")
_RULE = "1 to 150 characters, no / and no control characters, and neither . nor .."


def is_valid_name(name: str) -> bool:
    """Whether a room or user can be called this."""
    if name in ("", ".", "..") or len(name) > MAX_NAME_CHARS or "/" in name:
        return False
    # Cc: control characters; Cs: half of a surrogate pair, which is no text.
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def check_name(what: str, name: str) -> str:
    """The name, if it can be one."""
    if not is_valid_name(name):
        raise InvalidEvent(f"{what} cannot be called {name!r}: a name has {_RULE}")
    return name


def is_valid_user(name: str) -> bool:
    """Whether a user can be called this: ``anon.`` begins the names of visitors without one."""
    return is_valid_name(name) and not name.startswith("anon.")


def check_user(name: str) -> str:
    """The name, if a user can have it."""
    if check_name("a user", name).startswith("anon."):
        raise InvalidEvent(f"a user cannot be called {name!r}: anon. is for visitors without a name")
    return name


def name_of(user: Any) -> str:
    """What the gateway calls a user: the username or, with ``GATEWAY["USER_NAME"] = "id"``, the id.

    Takes a user, or the name itself.
    """
    by_id = conf().user_name == "id"
    if hasattr(user, "get_username"):
        if user.pk is None:
            raise InvalidEvent("a user that is not saved (or nobody is signed in) has no name")
        name = str(user.pk) if by_id else str(user.get_username())
    elif isinstance(user, str) or (
        by_id and (isinstance(user, int) or type(user).__name__ == "UUID") and not isinstance(user, bool)
    ):
        name = str(user)
    else:
        raise TypeError(f"a user or a name is wanted, not {type(user).__name__}")
    return check_user(name)


def _hashed(prefix: str, name: str) -> str:
    return prefix + hashlib.sha256(name.encode()).hexdigest()[:40]


def _stands(name: str) -> bool:
    return conf().raw_group_names or _PLAIN.fullmatch(name) is not None


def group_of(user: Any) -> str:
    """The group of all sockets of a user, for ``group_send``."""
    name = name_of(user)
    template = conf().user_group
    # With another template its prefix keeps a name from meaning a room.
    reserved = template.startswith("{username}") and name.startswith(("chat_", "u.", "r."))
    group = template.replace("{username}", name)
    return group if _stands(group) and not reserved else _hashed("u.", name)


def room_group(room: Any) -> str:
    """The group of all sockets of a room's members, for ``group_send``."""
    name = room_name(room)
    group = f"chat_{name}"
    return group if _stands(group) else _hashed("r.", name)


def room_name(room: Any) -> str:
    """What the gateway calls a room: the text itself, or what ``@room_members`` says of that model."""
    if not isinstance(room, str):
        from .memberships import name_of_room

        room = name_of_room(room)
    return check_name("a room", room)
