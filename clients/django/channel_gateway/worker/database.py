"""Old database connections are closed as Channels does it, and the way to them is left out where there are none.

Since 4.2 Channels looks before each handler whether a connection is to be closed. Connections belong to a thread, so
that takes two turns from thread to thread, which cost more than the handler of most frames. A connection that is not
open is never closed: where no thread has an open one, the handler begins at once.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final

logger = logging.getLogger("channel_gateway.worker")

#: What Channels calls it, in every module that has imported it by name.
NAME: Final = "aclose_old_connections"


class Connections:
    """Django's connections of all threads but the event loop's, as far as there are any."""

    def __init__(self) -> None:
        """Made in the thread of the event loop. Channels closes nothing there, and so nothing there counts."""
        self._loop_thread = threading.get_ident()
        self._lock = threading.Lock()
        # Replaced, never changed: it is read without the lock.
        self._known: tuple[weakref.ref[Any], ...] = ()

    def note(self, connection: Any) -> None:
        """One that was made in this thread."""
        if threading.get_ident() == self._loop_thread:
            return
        with self._lock:
            left = [each for each in self._known if each() not in (None, connection)]
            self._known = (*left, weakref.ref(connection))

    def any_open(self) -> bool:
        """Whether some thread has one that is open, which includes one that is broken."""
        for known in self._known:
            connection = known()
            if connection is not None and connection.connection is not None:
                return True
        return False

    def watch(self, handler: Any) -> None:
        """Notes the connections that ``handler``, Django's, makes from now on."""
        make = handler.create_connection

        def create_connection(alias: str) -> Any:
            connection = make(alias)
            self.note(connection)
            return connection

        handler.create_connection = create_connection

    def note_all(self, handler: Any) -> None:
        """Notes those of this thread, which were made before."""
        for connection in handler.all(initialized_only=True):
            self.note(connection)


def only_where_needed(close: Callable[[], Awaitable[None]], connections: Connections) -> Callable[[], Awaitable[None]]:
    """Channels' ``aclose_old_connections``, where there is one to look at."""

    async def aclose_old_connections() -> None:
        if connections.any_open():
            await close()

    return aclose_old_connections


def install() -> bool:
    """Puts it in the place of Channels' own; ``False`` where Django or Channels is not used, or is older than that.

    To be called in the thread of the event loop, before it runs.
    """
    if "django.db" not in sys.modules:
        return False
    try:
        from channels import db
    except ImportError:
        return False
    close = getattr(db, NAME, None)
    if close is None:
        return False
    from asgiref.sync import SyncToAsync
    from django.conf import settings
    from django.db import connections as handler

    if not settings.configured:
        return False
    connections = Connections()
    connections.watch(handler)
    # What the application did while it was imported was done in this thread too.
    SyncToAsync.single_thread_executor.submit(connections.note_all, handler).result()
    instead = only_where_needed(close, connections)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "channels" and getattr(module, NAME, None) is close:
            setattr(module, NAME, instead)
    logger.debug("old database connections are looked at where there are open ones")
    return True
