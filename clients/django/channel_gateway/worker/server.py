"""One process: its listener, its links, and the instances of the application."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from . import shared
from .instance import LINGER, Application, Instance
from .layer import Layers
from .lifespan import Lifespan
from .link import Link
from .listen import Address, Listener, listen
from .mailbox import Mailbox
from .shared import Sharing

logger = logging.getLogger("channel_gateway.worker")

#: Links that have not proved the secret, and all links.
MAX_STRANGERS: Final = 64
MAX_LINKS: Final = 1024
#: Seconds for the application's shutdown.
SHUTDOWN_SECONDS: Final = 10.0


class Server:
    """Runs ``application`` for all sockets that nodes open over their links."""

    def __init__(
        self,
        application: Application,
        secret: bytes,
        *,
        application_name: str = "",
        max_sockets: int = 0,
        drain_seconds: float = 20.0,
        lifespan: bool = True,
    ) -> None:
        """Made inside the loop it runs in; ``max_sockets`` of 0 is any number."""
        self.loop = asyncio.get_running_loop()
        self.application = application
        self.application_name = application_name
        self.secret = secret
        self.max_sockets = max_sockets
        self.drain_seconds = drain_seconds
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        #: Instances that have not returned.
        self.running = 0
        self.draining = False
        #: What was dropped, or given up, by its reason.
        self.counts: dict[str, int] = {}
        self.says_all = logger.isEnabledFor(logging.DEBUG)
        #: Those of bridged sockets, by channel name.
        self.mailboxes: dict[str, Mailbox] = {}
        self.layers = Layers(self)
        self.sharing = Sharing(self)
        self._lifespan = Lifespan(application if lifespan else None)
        self._links: set[Link] = set()
        self._way: Link | None = None
        self._strangers = 0
        self._listener: Listener | None = None
        self._lingering: collections.deque[tuple[float, Instance]] = collections.deque()
        self._linger_timer: asyncio.TimerHandle | None = None
        self._nobody = asyncio.Event()
        self._nobody.set()

    @property
    def state(self) -> dict[str, Any]:
        """What the lifespan has left for every socket."""
        return self._lifespan.state

    async def start(self, address: Address, mode: int = 0o600, context: ssl.SSLContext | None = None) -> None:
        """Starts the application, then listens. Raises ``StartupFailed`` or ``Unusable``."""
        shared.install()
        await self._lifespan.start()
        self.name = f"{socket.gethostname()}:{os.getpid()}:{address.path or address.port}"
        self._listener = await listen(lambda: Link(self), address, mode, context)

    async def drain(self) -> bool:
        """Takes no new sockets, and returns when the nodes have closed the open ones, spread over the window.

        ``False`` if some had to be ended after it.
        """
        self._stop_listening()
        begun, self.draining = self.draining, True
        if not begun:
            logger.info("draining, sockets=%d, window=%.1f s", self.running, self.drain_seconds)
            for link in list(self._links):
                link.drain(self.drain_seconds)
        # What a node sends last needs a moment.
        if await self._until_nobody(self.drain_seconds + 2):
            return True
        logger.warning("the drain window has passed, sockets=%d", self.running)
        self._end_all(1012)
        await self._until_nobody(LINGER)
        return False

    async def stop(self) -> None:
        """Ends what still runs, and the links. Safe after ``drain`` and without it."""
        self._stop_listening()
        self.draining = True
        self._end_all(1012)
        # Without a drain there is no time to wait for.
        await asyncio.sleep(0)
        for link in list(self._links):
            for instance in list(link.sockets.values()):
                instance.cancel()
        await self._until_nobody(1)
        await self._lifespan.stop(SHUTDOWN_SECONDS)
        for link in list(self._links):
            link.close()
        # Until they have left, so that nothing of them is called in a closed loop.
        end = time.monotonic() + 1
        while self._links and time.monotonic() < end:
            await asyncio.sleep(0.01)
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self.layers.give_back()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _end_all(self, code: int) -> None:
        for link in list(self._links):
            for instance in list(link.sockets.values()):
                if instance.running:
                    instance.disconnect(code, "")

    async def _until_nobody(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._nobody.wait(), seconds)
        return not self.running

    def any_link(self) -> Link | None:
        """One that carries frames, always the same for as long as it does."""
        if self._way is None or not self._way.connected:
            self._way = next((link for link in self._links if link.connected), None)
        return self._way

    # What links say

    def admit(self, link: Link) -> bool:
        """Whether a new link may begin."""
        if self.draining or self._strangers >= MAX_STRANGERS or len(self._links) >= MAX_LINKS:
            self.count("links_refused")
            return False
        self._links.add(link)
        self._strangers += 1
        return True

    def proved(self, link: Link) -> None:
        """It knows the secret."""
        self._strangers -= 1

    def left(self, link: Link) -> None:
        """It has ended."""
        if link in self._links:
            self._links.remove(link)
            if not link.proved:
                self._strangers -= 1

    def takes(self) -> bool:
        """Whether one more socket may be opened; counts over all nodes, each of which counts its own."""
        if self.draining or (self.max_sockets and self.running >= self.max_sockets):
            return False
        self._nobody.clear()
        return True

    def ended(self) -> None:
        """An instance has returned."""
        self.running -= 1
        if not self.running:
            self._nobody.set()

    def count(self, reason: str) -> None:
        """What is dropped or given up is counted, over all links."""
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def linger(self, instance: Instance) -> None:
        """It has got its disconnect; what has not returned in time is cancelled."""
        self._lingering.append((self.loop.time() + LINGER, instance))
        if self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER, self._cancel_late)

    def _cancel_late(self) -> None:
        self._linger_timer = None
        now = self.loop.time()
        while self._lingering:
            at, instance = self._lingering[0]
            if instance.running and at > now + 0.001:
                self._linger_timer = self.loop.call_at(at, self._cancel_late)
                return
            self._lingering.popleft()
            if instance.running:
                if instance.cancelled:
                    logger.error("%s: the application goes on although it was cancelled", instance)
                else:
                    logger.warning(
                        "%s: cancelled, for it had not returned %.0f s after its disconnect", instance, LINGER
                    )
                    instance.link.count("cancelled")
                instance.cancel()
                self._lingering.append((now + LINGER, instance))


def load(name: str) -> Callable[..., Any]:
    """``package.module:attribute``, or ``package.module.attribute`` as Django has it. Raises ``ImportError``."""
    module_name, colon, attribute = name.partition(":")
    if not colon:
        module_name, _, attribute = name.rpartition(".")
    if not module_name or not attribute:
        raise ImportError(f"{name!r} is not module:application")
    from importlib import import_module

    found: Any = import_module(module_name)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ImportError(f"module {module_name!r} has no {attribute!r}") from None
    if not callable(found):
        raise ImportError(f"{name!r} is no application: it cannot be called")
    return found  # type: ignore[no-any-return]
