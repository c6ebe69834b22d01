"""``@shared``: a handler that is rendered once for many sockets. Needs neither Django nor Channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

Handler = TypeVar("Handler", bound=Callable[..., Any])

#: What marks a handler.
MARK: Final = "_gateway_shared"


def shared(handler: Handler) -> Handler:
    """Marks a consumer's handler of events as one that makes the same of an event for every socket of its class.

    Behind the gateway it runs once for each node and event, and what it sends goes to all sockets of the class that are
    in the group. It may read the event, the class and what ``as_asgi()`` was given, and may use whatever is not the
    instance's own. On any other server it is a handler like all others.
    """
    setattr(handler, MARK, True)
    return handler
