"""The worker's own channel layer: groups are joined at the node, and what is sent leaves in the sender's order.

It stands in the place of each of the site's layers that is the node's, too. What is about a bridged socket's channel
goes over its link; everything else (channels that are no socket's, plain ones) is the site's own layer's, which stays.
"""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import socket
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgpack

from ..seldom import warning
from . import frames
from .frames import COUNT, Malformed
from .instance import TURN_BYTES, Instance, current
from .mailbox import MAX_EVENTS, Mailbox

if TYPE_CHECKING:
    from .link import Link
    from .server import Server

logger = logging.getLogger("channel_gateway.worker")

KINDS: Final = {
    "channels_redis.pubsub.RedisPubSubChannelLayer": "pubsub",
    "channels_redis.core.RedisChannelLayer": "core",
}
#: Events and their bytes that the layer need not have taken before `group_send` returns.
UNPUBLISHED: Final = 1024
UNPUBLISHED_BYTES: Final = 4 * 1024 * 1024
#: Seconds that the node may take for an answer.
ANSWER_SECONDS: Final = 15.0


class Outgoing:
    """What a link has sent, and the node has not answered yet."""

    def __init__(self, link: Link) -> None:
        """Nothing yet."""
        self._link = link
        self._sizes: collections.deque[int] = collections.deque()
        self._bytes = 0
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._requests: dict[int, asyncio.Future[int]] = {}
        self._last_request = 0

    async def publish(self, sid: int, group: bytes, event: bytes) -> None:
        """Sends to a group; waits only if the layer is far behind."""
        link = self._link
        while link.connected and (len(self._sizes) >= UNPUBLISHED or self._bytes > UNPUBLISHED_BYTES or self._waiting):
            turn: asyncio.Future[None] = link.loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except BaseException:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._wake()
                raise
            if len(self._sizes) < UNPUBLISHED and self._bytes <= UNPUBLISHED_BYTES:
                break
        self._sizes.append(len(event))
        self._bytes += len(event)
        link.write(frames.frame(frames.PUBLISH, sid, frames.named(group, event)))
        if len(self._sizes) < UNPUBLISHED and self._bytes <= UNPUBLISHED_BYTES:
            self._wake()
        if link.unflushed > TURN_BYTES:
            link.flush()
            await asyncio.sleep(0)

    def published(self, count: int) -> None:
        """So many were taken."""
        for _ in range(min(count, len(self._sizes))):
            self._bytes -= self._sizes.popleft()
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def send(self, sid: int, channel: bytes, event: bytes) -> int:
        """Sends to one channel; what became of it."""
        link = self._link
        self._last_request = request = (self._last_request + 1) & 0xFFFFFFFF
        answer: asyncio.Future[int] = link.loop.create_future()
        self._requests[request] = answer
        link.write(frames.frame(frames.SEND, sid, COUNT.pack(request) + frames.named(channel, event)))
        try:
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except asyncio.TimeoutError:
            return frames.SENT_AWAY
        finally:
            self._requests.pop(request, None)

    def sent(self, body: bytes) -> None:
        """The node's answer."""
        if len(body) != COUNT.size + 1:
            raise Malformed("an answer of another length")
        answer = self._requests.get(COUNT.unpack_from(body)[0])
        if answer is not None and not answer.done():
            answer.set_result(body[COUNT.size])

    def end(self) -> None:
        """The link is gone."""
        for answer in self._requests.values():
            if not answer.done():
                answer.set_result(frames.SENT_AWAY)
        self._sizes.clear()
        self._bytes = 0
        while self._waiting:
            self._wake()


class GatewayLayer:
    """Channels' layer. ``inner`` is the site's own."""

    extensions = ("groups", "flush")

    def __init__(self, server: Server, inner: Any, kind: str, serializer: str, raw: bool) -> None:
        """Made inside the worker's loop."""
        from channels.layers import BaseChannelLayer

        self._server = server
        self._names = BaseChannelLayer()
        self._kind = kind
        self._checks = kind == "core" or not raw
        self._serializer = serializer
        self.inner = inner
        self._capacity = int(inner.capacity) if kind == "core" else MAX_EVENTS
        self._capacity_of = inner.get_capacity if kind == "core" else None
        self._expiry = float(inner.expiry or 0) if kind == "core" else 0.0

    def __getattr__(self, name: str) -> Any:
        """What else a site uses of its layer is that layer's."""
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        """For the log."""
        return f"<GatewayLayer over {type(self.inner).__name__}>"

    async def new_channel(self, *args: Any, **given: Any) -> str:
        """The socket's own channel, the first time that its instance asks; then one of the site's layer."""
        instance = current.get()
        if instance is None or instance.mailbox is not None or not instance.channel_name or args or given:
            return await self.inner.new_channel(*args, **given)  # type: ignore[no-any-return]
        channel = instance.channel_name
        capacity = self._capacity_of(channel) if self._capacity_of else self._capacity
        instance.mailbox = Mailbox(channel, instance, capacity, self._expiry)
        self._server.mailboxes[channel] = instance.mailbox
        return channel

    async def receive(self, channel: str) -> Any:
        """The next event of a channel."""
        mailbox = self._mailbox(channel)
        if mailbox is None:
            return await self.inner.receive(channel)
        if asyncio.get_running_loop() is self._server.loop:
            return await mailbox.receive()
        return await self._in_loop(mailbox.receive())

    async def group_add(self, group: str, channel: str) -> None:
        """Returns when the node hears the group."""
        self._check_group(group)
        mailbox = self._mailbox(channel)
        if mailbox is None:
            await self.inner.group_add(group, channel)
        elif asyncio.get_running_loop() is self._server.loop:
            await self._join(mailbox, group)
        else:
            await self._in_loop(self._join(mailbox, group))

    async def group_discard(self, group: str, channel: str) -> None:
        """Returns when the node hears nothing of the group for this channel; not being in it is fine."""
        self._check_group(group)
        mailbox = self._mailbox(channel)
        if mailbox is None:
            await self.inner.group_discard(group, channel)
        elif asyncio.get_running_loop() is self._server.loop:
            await self._leave(mailbox, group)
        else:
            await self._in_loop(self._leave(mailbox, group))

    async def group_send(self, group: str, message: Mapping[str, Any]) -> None:
        """Sends to a group, behind what the calling instance has sent to its client.

        Outside of a consumer there is no such order to keep: the site's own layer sends it, and raises while Redis is
        away.
        """
        self._check_group(group)
        event = self._pack(message)
        if asyncio.get_running_loop() is self._server.loop:
            await self._publish(group, event, message)
        else:
            await self._in_loop(self._publish(group, event, message))

    async def send(self, channel: str, message: Mapping[str, Any]) -> None:
        """Sends to one channel; raises ``ChannelFull`` as channels_redis does.

        While Redis is away it raises as well, except in a consumer: its socket outlives that, and an error that nobody
        catches would close it.
        """
        if self._checks:
            self._names.require_valid_channel_name(channel)
        event = self._pack(message)
        if asyncio.get_running_loop() is self._server.loop:
            sent = await self._send(channel, event, message)
        else:
            sent = await self._in_loop(self._send(channel, event, message))
        if sent == frames.SENT_FULL:
            from channels.exceptions import ChannelFull

            raise ChannelFull()
        if sent == frames.SENT_REFUSED:
            raise ValueError(f"the channel layer cannot carry this, or not to {channel!r}")
        if sent == frames.SENT_AWAY:
            self._server.count("layer")
            warning("layer_away", "what was sent to the channel %s is lost: the node's layer is away", channel)
            instance = current.get()
            if instance is None or not instance.running:
                from redis.exceptions import ConnectionError as Away

                raise Away(f"the node's channel layer is away: what was sent to {channel!r} is lost")

    async def flush(self) -> None:
        """Forgets all events and groups that this worker has. What core keeps in Redis is the nodes' as well."""
        if asyncio.get_running_loop() is self._server.loop:
            await self._flush()
        else:
            await self._in_loop(self._flush())
        if self._kind == "pubsub":
            await self.inner.flush()

    def _mailbox(self, channel: str) -> Mailbox | None:
        """A socket's; the caller's own before that of an instance that took the socket over."""
        instance = current.get()
        own = instance.mailbox if instance is not None else None
        return own if own is not None and own.channel == channel else self._server.mailboxes.get(channel)

    # In the worker's loop

    async def _in_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._server.loop))

    async def _join(self, mailbox: Mailbox, group: str) -> None:
        instance = mailbox.instance
        link, sid = instance.link, instance.sid
        if not link.connected or not instance.running or instance.has_ended:
            # Its groups have ended with the socket.
            return
        if mailbox.joining is None:
            mailbox.joining = {}
        answer: asyncio.Future[bool] = link.loop.create_future()
        mailbox.joining.setdefault(group, []).append(answer)
        mailbox.groups.add(group)
        link.write(frames.frame(frames.JOIN, sid, group.encode()))
        if not await answer:
            mailbox.groups.discard(group)
            if instance.has_ended:
                # Its end has come before the refusal, and is the reason for it.
                return
            raise RuntimeError(f"the node refuses the group {group!r}: no such name, or the socket is in too many")

    async def _leave(self, mailbox: Mailbox, group: str) -> None:
        self._tell_left(mailbox, group)
        # With a socket that has ended the node has left its groups.
        if not mailbox.instance.has_ended:
            await mailbox.instance.link.taken()

    def _tell_left(self, mailbox: Mailbox, group: str) -> None:
        mailbox.groups.discard(group)
        mailbox.instance.link.write(frames.frame(frames.LEAVE, mailbox.instance.sid, group.encode()))

    def _way(self) -> tuple[Link | None, int]:
        """The caller's own link, so that order is kept; else any."""
        instance = current.get()
        if instance is not None and instance.link.connected:
            return instance.link, instance.sid
        return self._server.any_link(), 0

    async def _publish(self, group: str, event: bytes, message: Mapping[str, Any]) -> None:
        # The node takes what it cannot send, too: what is no consumer's would never hear of it.
        link, sid = self._way() if current.get() is not None else (None, 0)
        if link is None:
            await self.inner.group_send(group, message)
        else:
            await link.outgoing.publish(sid, group.encode(), event)

    async def _send(self, channel: str, event: bytes, message: Mapping[str, Any]) -> int:
        link, sid = self._way()
        if link is None:
            await self.inner.send(channel, message)
            return frames.SENT_TAKEN
        return await link.outgoing.send(sid, channel.encode(), event)

    async def _flush(self) -> None:
        links = set()
        for mailbox in list(self._server.mailboxes.values()):
            for group in list(mailbox.groups):
                self._tell_left(mailbox, group)
                links.add(mailbox.instance.link)
        for link in links:
            await link.taken()
        # What came before the node had left is forgotten too.
        for mailbox in list(self._server.mailboxes.values()):
            mailbox.clear()

    # What Channels and channels_redis say of names and messages

    def _check_group(self, group: str) -> None:
        if self._checks:
            self._names.require_valid_group_name(group)
        elif not isinstance(group, str) or not 0 < len(group.encode()) <= 512:
            raise TypeError("Group name must be a text of 1 to 512 bytes")

    def _pack(self, message: Mapping[str, Any]) -> bytes:
        if not isinstance(message, dict):
            raise TypeError("message is not a dict")
        if self._serializer == "json":
            # As it would arrive: tuples are lists, keys are texts.
            message = json.loads(json.dumps(message))
        event: bytes = msgpack.packb(message)
        if len(event) > frames.MAX_MESSAGE:
            raise ValueError(f"an event of {len(event)} bytes is larger than {frames.MAX_MESSAGE}")
        return event


class Layers:
    """Puts the worker's own layer in the place of the site's, and takes it back."""

    def __init__(self, server: Server) -> None:
        """Nothing is replaced yet."""
        self._server = server
        self._about: dict[str, Any] | None = None
        self._replaced: dict[str, Any] = {}

    def take(self, about: dict[str, Any]) -> None:
        """What a node says of its layer. The first one counts; others that differ are named in the log."""
        if self._about is not None:
            if about != self._about:
                logger.warning("a node has another channel layer than the first: groups do not reach its sockets")
            return
        self._about = about
        try:
            from channels.layers import channel_layers
            from django.conf import settings
        except ImportError:
            return
        if not settings.configured and not _has_settings():
            return
        if dict(getattr(settings, "GATEWAY", None) or {}).get("LAYER", "gateway") == "site":
            logger.info("the site's own channel layers stay: GATEWAY['LAYER'] is 'site'")
            return
        for alias, config in dict(channel_layers.configs or {}).items():
            self._take(channel_layers, alias, dict(config.get("CONFIG") or {}), about)

    def _take(self, channel_layers: Any, alias: str, config: dict[str, Any], about: dict[str, Any]) -> None:
        try:
            inner = channel_layers[alias]
        except Exception as error:
            logger.warning("the channel layer %r cannot be made, and stays as it is: %s", alias, error)
            return
        kind = kind_of(inner)
        if not kind:
            logger.info("the channel layer %r stays the site's own: it is none of channels_redis'", alias)
            return
        why = differs(kind, config, about, self._server.secret)
        if why:
            logger.warning("the channel layer %r stays the site's own, and is not the node's: %s", alias, why)
            return
        layer = GatewayLayer(self._server, inner, kind, str(about.get("serializer")), bool(about.get("raw")))
        self._replaced[alias] = channel_layers.set(alias, layer)
        logger.info("the channel layer %r is the node's: its groups are joined there", alias)

    def give_back(self) -> None:
        """As it was."""
        if self._replaced:
            from channels.layers import channel_layers

            for alias, inner in self._replaced.items():
                channel_layers.set(alias, inner)
            self._replaced.clear()
        self._about = None


def _has_settings() -> bool:
    import os

    return bool(os.environ.get("DJANGO_SETTINGS_MODULE"))


def kind_of(layer: Any) -> str:
    """``pubsub``, ``core``, or nothing for another layer; a class of the site's own may inherit from one of them."""
    parents = (f"{each.__module__}.{each.__qualname__}" for each in type(layer).__mro__)
    return next((KINDS[each] for each in parents if each in KINDS), "")


def differs(kind: str, config: dict[str, Any], about: dict[str, Any], secret: bytes) -> str:
    """Why the site's layer is not the node's; nothing if it is."""
    if kind != about.get("kind"):
        return f"it is {kind}, the node's is {about.get('kind')}"
    prefix = str(config.get("prefix", "asgi"))
    if prefix != about.get("prefix"):
        return f"its prefix is {prefix!r}, the node's {about.get('prefix')!r}"
    serializer = str(config.get("serializer_format", "msgpack"))
    if serializer != about.get("serializer"):
        return f"its serializer_format is {serializer!r}, the node's {about.get('serializer')!r}"
    keys = config.get("symmetric_encryption_keys") or ()
    own = [frames.print_of(secret, each if isinstance(each, bytes) else str(each).encode()) for each in keys]
    theirs = list(about.get("keys") or ())
    if bool(own) != bool(theirs):
        return "one of both is encrypted"
    if own and (own[0] not in theirs or theirs[0] not in own):
        return "the two have other symmetric_encryption_keys"
    hosts = [place(each) for each in config.get("hosts") or ["redis://localhost:6379"]]
    nodes = [str(each) for each in about.get("hosts") or ()]
    if len(hosts) != len(nodes) or not all(
        same_place(one, other, databases=kind == "core") for one, other in zip(hosts, nodes, strict=True)
    ):
        return f"its hosts are {', '.join(hosts)}, the node's {', '.join(nodes)}"
    return ""


def place(host: Any) -> str:
    """Where an entry of ``hosts`` is, as a node says it: ``host:port/database``, without credentials."""
    if isinstance(host, (tuple, list)):
        return f"{host[0]}:{host[1]}/0"
    if isinstance(host, Mapping) and "address" not in host:
        database = host.get("db") or 0
        if "master_name" in host:
            where = ",".join(f"{name}:{port}" for name, port in host.get("sentinels", ()))
            return f"{host['master_name']}@{where}/{database}"
        if "path" in host:
            return f"unix:{host['path']}/{database}"
        return f"{host.get('host', 'localhost')}:{host.get('port', 6379)}/{database}"
    given = host["address"] if isinstance(host, Mapping) else host
    url = urlsplit(given.decode() if isinstance(given, bytes) else str(given))
    database = (parse_qs(url.query).get("db") or [""])[0]
    if url.scheme == "unix":
        return f"unix:{unquote(url.path)}/{database or 0}"
    where = url.netloc.rpartition("@")[2]
    if url.hostname and "," not in where:
        where = f"{url.hostname}:{url.port or 6379}"
    if "+sentinel" in url.scheme:
        name, _, of_path = url.path.strip("/").partition("/")
        return f"{name}@{where}/{database or of_path or 0}"
    return f"{where}/{database or url.path.strip('/') or 0}"


def same_place(one: str, other: str, *, databases: bool) -> bool:
    """Whether both lead to one Redis. Pub/sub is the same in all databases."""
    (one, of_one), (other, of_other) = (_parted(each) for each in (one, other))
    if databases and of_one != of_other:
        return False
    if one == other:
        return True
    if "@" in one or "@" in other or "unix:" in one + other:
        return False
    (name, _, port), (other_name, _, other_port) = one.rpartition(":"), other.rpartition(":")
    return port == other_port and bool(_addresses(name) & _addresses(other_name))


def _parted(text: str) -> tuple[str, str]:
    where, _, database = text.rpartition("/")
    return where, database


def _addresses(name: str) -> set[str]:
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(name.strip("[]"), None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()
    # `localhost` is either.
    return found | ({"127.0.0.1", "::1"} if found & {"127.0.0.1", "::1"} else set())


def joined(instance: Instance, body: bytes) -> None:
    """The node's answer to a join."""
    if len(body) < 2:
        raise Malformed("an answer to a join without a name")
    mailbox = instance.mailbox
    if mailbox is None or mailbox.joining is None:
        return
    group = str(body[1:], "utf-8", "replace")
    waiting = mailbox.joining.get(group)
    if waiting:
        answer = waiting.pop(0)
        if not waiting:
            del mailbox.joining[group]
        if not answer.done():
            answer.set_result(not body[0])
