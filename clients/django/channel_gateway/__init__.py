"""The Django side of Channel Gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .exceptions import ApiError, GatewayError, InvalidEvent, Unavailable
    from .memberships import room_members
    from .names import group_of, room_group
    from .publishing import add_members, announce, chat, disconnect, notify, publish, put_room, remove_members, send
    from .sharing import shared

__all__ = [
    "ApiError",
    "GatewayError",
    "InvalidEvent",
    "Unavailable",
    "add_members",
    "announce",
    "chat",
    "disconnect",
    "group_of",
    "notify",
    "publish",
    "put_room",
    "remove_members",
    "room_group",
    "room_members",
    "send",
    "shared",
]

_WHERE = {
    "exceptions": ("ApiError", "GatewayError", "InvalidEvent", "Unavailable"),
    "memberships": ("room_members",),
    "names": ("group_of", "room_group"),
    "publishing": (
        "add_members",
        "announce",
        "chat",
        "disconnect",
        "notify",
        "publish",
        "put_room",
        "remove_members",
        "send",
    ),
    "sharing": ("shared",),
}


def __getattr__(name: str) -> Any:
    """Imported when asked for: settings may not be there yet when this module is."""
    from importlib import import_module

    for module, found in _WHERE.items():
        if name in found:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
