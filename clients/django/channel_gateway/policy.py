"""Who may hear which rooms: ``GATEWAY["POLICY"]`` names a class like this one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from django.http import HttpRequest
from django.utils.module_loading import import_string

from .conf import conf


class Policy:
    """The default: the gateway's stored memberships decide, and nothing is added to them."""

    def rooms(self, user: Any) -> Iterable[str] | None:
        """Rooms (names, or objects that ``@room_members`` knows) that the user hears beside the stored memberships.

        They count for one socket, for as long as it lives; missing ones are made. ``None``: none.
        """
        return None

    def can_enter(self, user: Any, room: str) -> bool:
        """Whether the user may enter a room that is neither in ``rooms`` nor a stored membership.

        Asked for the room in the socket's URL, and for ``token/?room=NAME``.
        """
        return False

    def user(self, request: HttpRequest) -> Any:
        """Who makes a request; for sites that sign in by other means than Django's session, say by an API token."""
        return getattr(request, "user", None)

    def expires_at(self, user: Any, request: HttpRequest) -> datetime | None:
        """When a sign-in by ``auth/`` ends. ``None``: the gateway asks again every few minutes instead."""
        return None


#: What a class has to have that does not inherit; the rest is the default's.
REQUIRED: Final = ("rooms", "can_enter")
_OPTIONAL: Final = ("user", "expires_at")


class _Completed(Policy):
    """A class of the site's that does not inherit."""

    def __init__(self, own: Any) -> None:
        for name in (*REQUIRED, *_OPTIONAL):
            if name in REQUIRED or callable(getattr(own, name, None)):
                setattr(self, name, getattr(own, name))


def policy() -> Policy:
    """The site's policy."""
    own = import_string(conf().policy)()
    return own if isinstance(own, Policy) else _Completed(own)
