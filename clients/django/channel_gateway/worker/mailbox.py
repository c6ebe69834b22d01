"""What a consumer has not received yet of what its groups bring, and what came for its channel alone."""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Any, Final

import msgpack

from ..seldom import warning

if TYPE_CHECKING:
    from .instance import Instance

#: Bytes that wait in one; a larger event waits alone.
MAX_BYTES: Final = 4 * 1024 * 1024
#: Events that wait in one, where the layer knows no capacity, as channels_redis' pub/sub.
MAX_EVENTS: Final = 10_000


class Mailbox:
    """Of one channel. Over its capacity the oldest go, as in channels_redis."""

    __slots__ = ("_bytes", "_capacity", "_events", "_expiry", "_waiters", "channel", "groups", "instance", "joining")

    def __init__(self, channel: str, instance: Instance, capacity: int, expiry: float) -> None:
        """``expiry`` of 0 is never."""
        self.channel = channel
        self.instance = instance
        self._capacity = capacity
        self._expiry = expiry
        self._events: collections.deque[tuple[bytes, float]] = collections.deque()
        self._bytes = 0
        self._waiters: list[asyncio.Future[None]] | None = None
        self.groups: set[str] = set()
        #: Those that wait until the node has joined a group.
        self.joining: dict[str, list[asyncio.Future[bool]]] | None = None

    @property
    def idle(self) -> bool:
        """Whether the consumer has received everything, and waits for more."""
        return not self._events and bool(self._waiters)

    def put(self, event: bytes) -> None:
        """An event has come."""
        events = self._events
        while events and (len(events) >= self._capacity or self._bytes + len(event) > MAX_BYTES):
            lost, _ = events.popleft()
            self._bytes -= len(lost)
            self.instance.link.count("mailbox_full")
            warning(
                "mailbox_full",
                "%s: an event was dropped, for %d wait: its handlers take longer than its events come",
                self.instance,
                len(events) + 1,
            )
        events.append((event, self.instance.link.loop.time() if self._expiry else 0.0))
        self._bytes += len(event)
        if self._waiters:
            self._wake()

    async def receive(self) -> Any:
        """The next event."""
        while True:
            while not self._events:
                await self._wait()
            event, at = self._events.popleft()
            self._bytes -= len(event)
            if self._waiters and self._events:
                self._wake()
            if self._expiry and self.instance.link.loop.time() - at > self._expiry:
                self.instance.link.count("expired")
                continue
            return msgpack.unpackb(event)

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = self.instance.link.loop.create_future()
        if self._waiters is None:
            self._waiters = [waiter]
        else:
            self._waiters.append(waiter)
        instance = self.instance
        if instance.leaving:
            instance.leave_if_idle()
        elif instance.consumer is not None:
            instance.tell_state()
        try:
            await waiter
        except BaseException:
            # Woken, and given up in the same turn: another one may take it.
            if waiter.done() and not waiter.cancelled() and self._events:
                self._wake()
            raise
        finally:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)
                return

    def clear(self) -> None:
        """Forgets what waits."""
        self._events.clear()
        self._bytes = 0

    def release(self) -> None:
        """No node answers any more: its groups have ended with the socket."""
        for waiting in (self.joining or {}).values():
            for each in waiting:
                if not each.done():
                    each.set_result(True)
        self.joining = None

    def close(self) -> None:
        """The instance has returned."""
        self.clear()
        self.release()
