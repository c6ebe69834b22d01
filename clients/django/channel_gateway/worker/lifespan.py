"""The application's lifespan, once per process."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from .instance import Application, Message

logger = logging.getLogger("channel_gateway.worker")

#: An application that takes the scope for a socket's waits for ever.
SAID_AFTER_SECONDS: Final = 10.0
WAITS: Final = "the application has not answered lifespan.startup for %.0f s; --lifespan off if it never does"


class StartupFailed(Exception):
    """The application has said that it cannot start."""


class Lifespan:
    """Runs ``application`` with the scope ``lifespan``; one that does not know it runs without."""

    def __init__(self, application: Application | None) -> None:
        """Nothing runs yet, and never with ``None``."""
        self.state: dict[str, Any] = {}
        self._application = application
        self._messages: asyncio.Queue[Message] = asyncio.Queue(2)
        self._started = asyncio.Event()
        self._stopped = asyncio.Event()
        self._failed: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when the application is ready; raises ``StartupFailed``."""
        if self._application is None:
            return
        self._task = asyncio.ensure_future(self._run(self._application))
        self._messages.put_nowait({"type": "lifespan.startup"})
        waits = asyncio.get_running_loop().call_later(SAID_AFTER_SECONDS, logger.warning, WAITS, SAID_AFTER_SECONDS)
        try:
            await self._started.wait()
        finally:
            waits.cancel()
        if self._failed is not None:
            raise StartupFailed(self._failed)

    async def stop(self, seconds: float) -> None:
        """Tells the application, and waits so long for it."""
        if self._task is None or self._task.done():
            return
        self._messages.put_nowait({"type": "lifespan.shutdown"})
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except asyncio.TimeoutError:
            logger.warning("the application's lifespan has not ended within %.0f s", seconds)
        if self._failed is not None:
            logger.error("the application's shutdown failed: %s", self._failed)
        self._task.cancel()

    async def _run(self, application: Application) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await application(scope, self._messages.get, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._failed is not None:
                logger.error("the application's lifespan raised", exc_info=error)
            elif self._started.is_set():
                self._failed = f"{type(error).__name__}: {error}"
            else:
                # As ASGI says: who raises does not know what a lifespan is.
                logger.debug("the application has no lifespan: %r", error)
        finally:
            self._started.set()
            self._stopped.set()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("lifespan.startup.complete", "lifespan.startup.failed") and not self._started.is_set():
            if kind.endswith("failed"):
                self._failed = str(message.get("message") or "no reason given")
            self._started.set()
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed") and self._started.is_set():
            if kind.endswith("failed"):
                self._failed = str(message.get("message") or "no reason given")
            self._stopped.set()
        else:
            raise RuntimeError(f"{kind!r} cannot be sent now in a lifespan")
