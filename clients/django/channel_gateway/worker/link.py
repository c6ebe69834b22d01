"""One node's link: proof of the secret, then frames of many sockets, in one buffer each way."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import struct
from typing import TYPE_CHECKING, Any, Final

import msgpack

from . import frames
from .frames import COUNT, HEAD, NUMBER, REST, Malformed
from .instance import FRAME_COST, Instance, Message, Scope
from .layer import Outgoing, joined

if TYPE_CHECKING:
    from .server import Server

logger = logging.getLogger("channel_gateway.worker")

#: Seconds for each step of the beginning.
STEP_SECONDS: Final = 5.0
#: Seconds between pings, and how many of them a node may be silent.
PING_SECONDS: Final = 5.0
SILENT_PINGS: Final = 12
#: Seconds that taken messages wait to be told to the node with others.
CREDIT_SECONDS: Final = 0.02
#: Bytes that wait for the kernel: over it every `send` on this link waits.
WRITE_HIGH: Final = 256 * 1024
WRITE_LOW: Final = 64 * 1024

_NEW, _WELCOMED, _PROVED = range(3)


class Link(asyncio.Protocol):
    """What a node has dialled."""

    def __init__(self, server: Server) -> None:
        """Begins when it is connected."""
        self.server = server
        self.loop = server.loop
        self.node = "a node"
        self.sockets: dict[int, Instance] = {}
        #: Whether the kernel takes no more.
        self.paused = False
        #: Instances with a `send` that waits.
        self.waiting: set[Instance] = set()
        #: Bytes since the last flush.
        self.unflushed = 0
        self._out: list[bytes] = []
        self._flushing = False
        self._in: bytearray | None = None
        self._needed = 0
        self._step = _NEW
        self._limit = frames.MAX_FRAME_BEFORE_PROOF
        self._of_node = self._of_worker = b""
        self._last_sid = 0
        self._silent = 0
        self._pings = 0
        #: Who waits for the node to have taken all that was written: the body of the ping that asks.
        self._asked: dict[bytes, asyncio.Future[None]] = {}
        #: What was dropped since this link began, by its reason; the node is told.
        self.counts: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._credits: list[Instance] = []
        #: What the node has not taken yet of what goes to groups.
        self.outgoing = Outgoing(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def proved(self) -> bool:
        """Whether the node has shown that it knows the secret."""
        return self._step == _PROVED

    @property
    def connected(self) -> bool:
        """Whether frames still leave."""
        return self._transport is not None and self._step == _PROVED

    # asyncio's

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A node, or somebody else, has dialled."""
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        if not self.server.admit(self):
            self._transport = None
            transport.abort()
            return
        self._timer = self.loop.call_later(STEP_SECONDS, self._too_slow)

    def connection_lost(self, error: Exception | None) -> None:
        """The node is gone, and its clients with it."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self.proved:
            log = logger.info if self.server.draining else logger.warning
            log("link of node %s ended%s, sockets=%d", self.node, f": {error}" if error else "", len(self.sockets))
        self.paused = False
        self._out.clear()
        self._in = None
        for instance in list(self.sockets.values()):
            instance.closed = True
            if instance.mailbox is not None:
                instance.mailbox.release()
            instance.disconnect(1006, "")
            if not instance.running:
                self.sockets.pop(instance.sid, None)
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(None)
        self._asked.clear()
        self.outgoing.end()
        self._resume()
        self.server.left(self)

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self.paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self.paused = False
        self._resume()

    def _resume(self) -> None:
        waiting, self.waiting = self.waiting, set()
        for instance in waiting:
            instance.resume()

    def data_received(self, data: bytes) -> None:
        """Whole frames are handled, the rest waits."""
        self._silent = 0
        held = self._in
        if held is not None:
            held += data
            if len(held) < self._needed:
                return
            data = bytes(held)
            self._in = None
        try:
            self._frames(data)
        except Malformed as error:
            self._give_up("malformed", str(error))
        except Exception:
            logger.exception("link of node %s: a fault of the worker's", self.node)
            self._give_up("malformed", "it could not be handled")

    def _frames(self, data: bytes) -> None:
        at, end = 0, len(data)
        sockets = self.sockets
        unpack_head = HEAD.unpack_from
        while end - at >= HEAD.size:
            length, kind, sid = unpack_head(data, at)
            if length > self._limit or length < REST:
                raise Malformed(f"a frame of {length} bytes")
            after = at + 4 + length
            if after > end:
                break
            body = data[at + HEAD.size : after]
            at = after
            if kind == frames.TEXT or kind == frames.BINARY:
                instance = sockets.get(sid)
                if instance is not None:
                    try:
                        instance.message(kind, body)
                    except UnicodeDecodeError as error:
                        raise Malformed("text that is not UTF-8") from error
                    continue
            elif kind == frames.EVENT and self._step == _PROVED:
                self._event(body)
                continue
            self._frame(kind, sid, body)
            if self._transport is None:
                return
        if at < end:
            # Of a large frame the beginning is not copied again with each piece.
            self._in = bytearray(memoryview(data)[at:])
            self._needed = HEAD.size
            if end - at >= HEAD.size:
                self._needed = 4 + HEAD.unpack_from(data, at)[0]

    def _frame(self, kind: int, sid: int, body: bytes) -> None:
        if self._step != _PROVED:
            self._begin(kind, sid, body)
        elif kind == frames.PING:
            self.write(frames.frame(frames.PONG, 0, body))
        elif kind == frames.PONG:
            asked = self._asked.pop(body, None)
            if asked is not None and not asked.done():
                asked.set_result(None)
        elif kind == frames.OPEN:
            self._open(sid, frames.unpack(body))
        elif frames.TEXT <= kind <= frames.RESUME and kind != frames.CLOSE:
            if sid == 0:
                raise Malformed(f"kind {kind} without a socket")
            instance = self.sockets.get(sid)
            if instance is None:
                # It may have crossed the instance's end.
                if sid > self._last_sid:
                    raise Malformed(f"socket {sid} was not opened")
                self.count("unknown_sid")
            elif kind == frames.CLOSED:
                self._closed(instance, body)
            elif kind == frames.PAUSE:
                instance.pause_by_node(True)
            elif kind == frames.RESUME:
                instance.pause_by_node(False)
        elif kind == frames.DETACH:
            instance = self.sockets.get(sid)
            if instance is not None:
                instance.detach()
        elif kind == frames.JOINED:
            instance = self.sockets.get(sid)
            if instance is not None:
                joined(instance, body)
        elif kind == frames.PUBLISHED:
            if len(body) != COUNT.size:
                raise Malformed("a number of another length")
            self.outgoing.published(COUNT.unpack_from(body)[0])
        elif kind == frames.SENT:
            self.outgoing.sent(body)
        elif kind == frames.RENDER:
            self.server.sharing.render(self, body)
        elif kind == frames.LAYER:
            self.server.layers.take(frames.unpack(body))
        elif kind < frames.OPTIONAL:
            raise Malformed(f"kind {kind}")

    def _event(self, body: bytes) -> None:
        """An event, and the sockets that hear it."""
        if len(body) < COUNT.size:
            raise Malformed("an event of nothing")
        end = COUNT.size + COUNT.unpack_from(body)[0]
        listed, rest = divmod(len(body) - end, NUMBER.size)
        if listed < 0 or rest:
            raise Malformed("an event for no socket")
        event = body[COUNT.size : end]
        sockets = self.sockets
        for sid in struct.unpack_from(f"<{listed}Q", body, end):
            instance = sockets.get(sid)
            if instance is None or instance.mailbox is None:
                # It may have crossed the instance's end; or the application asks for no events.
                self.count("no_mailbox")
            else:
                instance.mailbox.put(event)

    # The beginning

    def _begin(self, kind: int, sid: int, body: bytes) -> None:
        if sid != 0 or kind != (frames.HELLO if self._step == _NEW else frames.PROOF):
            raise Malformed("not the beginning of a link")
        fields = frames.unpack(body)
        server = self.server
        if self._step == _NEW:
            if fields.get("v") != frames.VERSION:
                raise Malformed(f"version {fields.get('v')!r}, and this is {frames.VERSION}")
            nonce, node = fields.get("nonce"), fields.get("node")
            if not isinstance(nonce, bytes) or len(nonce) != frames.NONCE_BYTES or not isinstance(node, str):
                raise Malformed("a beginning without a nonce or a name")
            # Not proved yet: it may be anything.
            self.node = ascii(node[:128])[1:-1]
            self._of_node, self._of_worker = nonce, secrets.token_bytes(frames.NONCE_BYTES)
            self._step = _WELCOMED
            welcome = {
                "v": frames.VERSION,
                "worker": server.name,
                "app": server.application_name,
                "max_sockets": server.max_sockets,
                "max_opening": 0,
                "groups": 1,
                "nonce": self._of_worker,
                "mac": frames.mac(server.secret, b"worker", self._of_node, self._of_worker),
            }
            self.write(frames.packed(frames.WELCOME, 0, welcome))
            self._start_timer(STEP_SECONDS, self._too_slow)
            return
        proof = fields.get("mac")
        wanted = frames.mac(server.secret, b"node", self._of_node, self._of_worker)
        if not isinstance(proof, bytes) or not hmac.compare_digest(proof, wanted):
            self._give_up("wrong_secret", "it does not know the secret")
            return
        self._step = _PROVED
        self._limit = frames.MAX_FRAME
        self._start_timer(PING_SECONDS, self._ping)
        logger.info("link of node %s", self.node)
        server.proved(self)

    def _start_timer(self, seconds: float, then: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, then)

    def _too_slow(self) -> None:
        self._give_up("too_slow", f"it has not proved the secret within {STEP_SECONDS:.0f} s")

    def _ping(self) -> None:
        self._silent += 1
        # Counted, not measured: a process that was stopped has heard nothing meanwhile, and may find it all waiting.
        if self._silent > SILENT_PINGS:
            self._give_up("silent", f"nothing was heard for {SILENT_PINGS * PING_SECONDS:.0f} s")
            return
        self._write_ping()
        if self._told != self.counts:
            self._told = dict(self.counts)
            self.write(frames.packed(frames.COUNTS, 0, self._told))
        self._start_timer(PING_SECONDS, self._ping)

    def _write_ping(self) -> bytes:
        self._pings += 1
        body = self._pings.to_bytes(8, "little")
        self.write(frames.frame(frames.PING, 0, body))
        return body

    async def taken(self) -> None:
        """Returns when the node has done what it was told so far, or when the link has ended: it works in order."""
        if self.connected:
            asked = self.loop.create_future()
            self._asked[self._write_ping()] = asked
            await asked

    def count(self, reason: str) -> None:
        """One more that was dropped."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.server.count(reason)

    def _give_up(self, reason: str, text: str) -> None:
        self.server.count(reason)
        logger.warning("link of %s given up: %s", self.node, text)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    # Sockets

    def _open(self, sid: int, fields: dict[str, Any]) -> None:
        if sid <= self._last_sid:
            raise Malformed(f"socket {sid} after {self._last_sid}")
        self._last_sid = sid
        scope, channel_name = _scope(fields)
        server = self.server
        if not server.takes():
            self.count("not_taken")
            # The application has not seen it: the node may ask another worker.
            text = b"draining" if server.draining else b"full"
            self.write(frames.frame(frames.END, sid, bytes((frames.NOT_TAKEN,)) + text))
            return
        scope["state"] = server.state.copy()
        instance = Instance(self, sid, ascii(scope["path"][:256])[1:-1], channel_name)
        reattach = scope["extensions"].get("gateway.reattach")
        if reattach is not None:
            instance.begin_again(reattach["state"])
        self.sockets[sid] = instance
        server.running += 1
        if server.says_all:
            logger.debug("%s: opened", instance)
        instance.start(server.application, scope)

    def _closed(self, instance: Instance, body: bytes) -> None:
        if len(body) < 2:
            raise Malformed("an end without a code")
        instance.closed = True
        code = frames.CODE.unpack_from(body)[0]
        if self.server.says_all:
            logger.debug("%s: closed with %d", instance, code)
        if instance.running:
            instance.disconnect(code, str(body[2:], "utf-8", "replace"))
        else:
            self.sockets.pop(instance.sid, None)

    def ended(self, instance: Instance) -> None:
        """The application has returned."""
        self.waiting.discard(instance)
        if instance.closed:
            self.sockets.pop(instance.sid, None)
        self.server.ended()

    # Writing

    def write(self, head: bytes, body: bytes = b"") -> None:
        """Takes a frame, in one or two pieces; what is taken leaves in its order, together, when the loop turns."""
        if self._transport is None:
            return
        self._out += (head, body)
        self.unflushed += len(head) + len(body) + FRAME_COST
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hands everything to the kernel."""
        self._flushing = False
        out = self._out
        if not out:
            return
        self._out = []
        self.unflushed = 0
        if self._transport is not None:
            self._transport.write(b"".join(out))

    def credit_later(self, instance: Instance) -> None:
        """What was taken is told with what others have taken."""
        if not self._credits:
            self.loop.call_later(CREDIT_SECONDS, self._credit)
        self._credits.append(instance)

    def _credit(self) -> None:
        waiting, self._credits = self._credits, []
        for instance in waiting:
            instance.credit_waits = False
            instance.credit()

    # Leaving

    def drain(self, window: float) -> None:
        """Tells the node that no more sockets are wanted."""
        if self.proved:
            self.write(frames.packed(frames.DRAIN, 0, {"window": window}))
        else:
            self.close()

    def close(self) -> None:
        """After what was written."""
        self.flush()
        if self._transport is not None:
            self._transport.close()


def _scope(fields: dict[str, Any]) -> tuple[Scope, str]:
    """The scope that ASGI 3 asks for, and the socket's channel name."""
    given = fields.get("scope")
    if not isinstance(given, dict):
        raise Malformed("a socket without a scope")
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    try:
        auth = given.get("gateway_auth")
        if auth is not None:
            extensions["gateway.auth"] = {"user": auth.get("user"), "id": auth.get("id")}
        reattach = fields.get("reattach")
        if reattach is not None:
            left = reattach.get("state")
            extensions["gateway.reattach"] = {
                "attempt": int(reattach.get("attempt") or 0),
                "state": None if left is None else msgpack.unpackb(left),
            }
        headers = [(bytes(name), bytes(value)) for name, value in given["headers"]]
        traceparent = fields.get("traceparent")
        if traceparent:
            headers = [each for each in headers if each[0] != b"traceparent"]
            headers.append((b"traceparent", traceparent.encode("latin-1")))
        path, raw_path, query_string = given["path"], given["raw_path"], given["query_string"]
        if not isinstance(path, str) or not isinstance(raw_path, bytes) or not isinstance(query_string, bytes):
            raise TypeError("path, raw_path or query_string")
        scope: Message = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": str(given.get("http_version") or "1.1"),
            "scheme": str(given.get("scheme") or "ws"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query_string,
            "root_path": str(given.get("root_path") or ""),
            "headers": headers,
            "client": given.get("client"),
            "server": given.get("server"),
            "subprotocols": [str(each) for each in given.get("subprotocols") or ()],
            "extensions": extensions,
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"a scope that cannot be read: {error!r}") from error
    return scope, str(given.get("channel_name") or "")
