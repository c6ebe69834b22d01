"""One instance of the application: one socket, from its ``OPEN`` to its end."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

import msgpack

from . import frames
from .frames import CODE, HEAD, REST

if TYPE_CHECKING:
    from .link import Link
    from .mailbox import Mailbox

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("channel_gateway.worker")

#: Seconds between the disconnect and the instance's cancellation.
LINGER: Final = 10.0
#: Bytes, with 64 for each frame, that may be sent before the loop turns: else a handler that only sends would not let
#: the node's PAUSE in.
TURN_BYTES: Final = 64 * 1024
FRAME_COST: Final = 64
#: Taken messages and bytes that are told to the node at once; fewer wait for others, 20 ms at most.
CREDIT_MESSAGES: Final = 4
CREDIT_BYTES: Final = 32 * 1024
#: What a node may leave without credit is 8 messages or 64 KiB; twice that is a fault of the node's.
OWED_MESSAGES: Final = 16
OWED_BYTES: Final = 128 * 1024
#: Bytes of an error that go to the node's log.
MAX_ERROR: Final = 1024

# What becomes of a socket, in its order.
CONNECTING: Final = 0
RESPONDING: Final = 1  # `websocket.http.response.start` was sent, its body was not
ACCEPTED: Final = 2
CLOSING: Final = 3  # the application has closed or refused it
ENDED: Final = 4  # its disconnect is in the queue

_SENDABLE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_SUBPROTOCOL: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_NO_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


#: Whose code it is that runs.
current: contextvars.ContextVar[Instance | None] = contextvars.ContextVar("gateway_instance", default=None)


class Instance:
    """The application's ``receive`` and ``send``, and what the node says of the socket."""

    __slots__ = (
        "_goodbye",
        "_greets",
        "_owed",
        "_owed_bytes",
        "_paused",
        "_queue",
        "_response",
        "_said_waiting",
        "_senders",
        "_state",
        "_state_told",
        "_taken",
        "_taken_bytes",
        "_task",
        "_waiters",
        "adopted",
        "cancelled",
        "channel_name",
        "closed",
        "consumer",
        "credit_waits",
        "dropped",
        "leaving",
        "link",
        "mailbox",
        "path",
        "sid",
        "state_left",
    )

    def __init__(self, link: Link, sid: int, path: str, channel_name: str) -> None:
        """``path`` and ``channel_name`` are for the log."""
        self.link = link
        self.sid = sid
        self.path = path
        self.channel_name = channel_name
        self._state = CONNECTING
        #: Messages that the application has not taken, with their bytes: 8, or 64 KiB, or one larger one; before and
        #: after them connect and disconnect, which are none of the client's.
        self._queue: list[tuple[Message, int | None]] = [({"type": "websocket.connect"}, None)]
        self._waiters: list[asyncio.Future[None]] | None = None
        self._paused = self._said_waiting = False
        self._senders: list[asyncio.Future[None]] | None = None
        self._response: tuple[int, list[tuple[bytes, bytes]], bytearray] | None = None
        self._task: asyncio.Task[None] | None = None
        # Received, and not told to the node as taken; taken, and not told yet.
        self._owed = self._owed_bytes = 0
        self._taken = self._taken_bytes = 0
        self.credit_waits = False
        #: Whether the node has said that the socket is closed.
        self.closed = False
        #: Whether the worker has cancelled it, for it had not returned long after the disconnect.
        self.cancelled = False
        #: Messages that were sent after the end.
        self.dropped = 0
        #: What its groups have brought, where its application asks for that.
        self.mailbox: Mailbox | None = None
        #: Whether a consumer of Channels has begun to run.
        self.adopted = False
        #: The consumer, where its class goes on elsewhere when this worker leaves.
        self.consumer: Any = None
        #: What the consumer before it has left.
        self.state_left: Any = None
        self._state_told = b""
        #: Whether the node has another worker for the socket, and this instance is to finish.
        self.leaving = False
        #: Whether its disconnect is in the queue.
        self._goodbye = False
        #: Until the node is told that `connect()` has returned: 1 before connect was taken, 2 after.
        self._greets = 0

    def start(self, application: Application, scope: Scope) -> None:
        """Runs the application until it returns."""
        token = current.set(self)
        try:
            self._task = self.link.loop.create_task(_run(application, scope, self.receive, self.send))
        finally:
            current.reset(token)
        self._task.add_done_callback(self._done)

    @property
    def running(self) -> bool:
        """Whether the application has not returned."""
        return self._task is not None

    @property
    def has_ended(self) -> bool:
        """Whether the socket has ended, for the node as for the application."""
        return self._state == ENDED

    # What the application calls

    async def receive(self) -> Message:
        """The next message; after the disconnect none comes."""
        if self._greets or self.consumer is not None:
            self._tell()
        while not self._queue:
            waiter: asyncio.Future[None] = self.link.loop.create_future()
            if self._waiters is None:
                self._waiters = [waiter]
            else:
                self._waiters.append(waiter)
            try:
                await waiter
            except BaseException:
                # Woken, and given up in the same turn: another one may take it.
                if waiter.done() and not waiter.cancelled() and self._queue:
                    self._wake_receiver()
                raise
            finally:
                self._waiters.remove(waiter)
        message, size = self._queue.pop(0)
        if self._waiters and self._queue:
            self._wake_receiver()
        if size is not None:
            self._take(size)
        elif self._goodbye and not self._queue:
            # One that leaves may send until here.
            self._state = ENDED
        return message

    async def send(self, message: Message) -> None:
        """Sends to the client; waits while the client does not read."""
        if self._state == ACCEPTED and message["type"] == "websocket.send":
            text = message.get("text")
            if text is not None:
                body = text.encode()
                kind = frames.TEXT
            else:
                body = message.get("bytes")
                if body is None:
                    raise ValueError("websocket.send needs text or bytes")
                if not isinstance(body, bytes):
                    body = bytes(memoryview(body))
                kind = frames.BINARY
            size = len(body)
            if size > frames.MAX_MESSAGE:
                raise ValueError(f"a message of {size} bytes is larger than {frames.MAX_MESSAGE}")
            link = self.link
            if self._paused or link.paused or self._senders:
                if not await self._may_send():
                    return
                link.write(HEAD.pack(REST + size, kind, self.sid), body)
                self._wake_sender()
            else:
                link.write(HEAD.pack(REST + size, kind, self.sid), body)
            if link.unflushed > TURN_BYTES:
                link.flush()
                await asyncio.sleep(0)
            return
        if self._state >= CLOSING:
            await self._drop()
            return
        self._send_other(message)

    def _send_other(self, message: Message) -> None:
        kind = message["type"]
        state = self._state
        if kind == "websocket.accept" and state == CONNECTING:
            subprotocol = message.get("subprotocol")
            if subprotocol is not None and not (isinstance(subprotocol, str) and _SUBPROTOCOL.match(subprotocol)):
                raise ValueError(f"{subprotocol!r} is no subprotocol")
            headers = _headers(message.get("headers") or ())
            if any(name.lower() == b"sec-websocket-protocol" for name, _ in headers):
                raise ValueError("the subprotocol is said by `subprotocol`, not by a header")
            self._state = ACCEPTED
            self.link.write(
                frames.packed(frames.ACCEPT, self.sid, {"subprotocol": subprotocol or None, "headers": headers})
            )
        elif kind == "websocket.close" and state == ACCEPTED:
            self._state = CLOSING
            code = message.get("code")
            code = 1000 if code is None else sendable(code)
            self.link.write(frames.frame(frames.CLOSE, self.sid, CODE.pack(code) + cut(message.get("reason") or "")))
            # What waits in other tasks comes too late.
            self._wake_sender()
        elif kind == "websocket.close" and state == CONNECTING:
            self._deny(403, [], b"")
        elif kind == "websocket.http.response.start" and state == CONNECTING:
            status = message["status"]
            # 101 would be an acceptance that the client believes.
            if not isinstance(status, int) or not 200 <= status < 600:
                raise ValueError(f"{status!r} is no status of a refusal")
            self._response = (status, _headers(message.get("headers") or ()), bytearray())
            self._state = RESPONDING
        elif kind == "websocket.http.response.body" and state == RESPONDING and self._response is not None:
            status, headers, body = self._response
            body += message.get("body", b"")
            if len(body) > frames.MAX_DENY_BODY:
                raise ValueError(f"the body of a refusal is larger than {frames.MAX_DENY_BODY} bytes")
            if not message.get("more_body", False):
                self._deny(status, headers, bytes(body))
        else:
            now = ("before the answer to websocket.connect", "in an HTTP response", "after websocket.accept")[state]
            raise RuntimeError(f"{kind!r} cannot be sent {now}")

    def _deny(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self._response = None
        self._state = CLOSING
        self.link.write(frames.packed(frames.DENY, self.sid, {"status": status, "headers": headers, "body": body}))
        # Nothing that the node could say would change it.
        self.disconnect(1006, "")

    async def _drop(self) -> None:
        self.dropped += 1
        self.link.count("after_end")
        # A handler that sends for ever must not keep the loop for itself.
        await asyncio.sleep(0)

    # Waiting until the client reads

    async def _may_send(self) -> bool:
        """Waits for its turn, in the order of the calls; ``False`` if the socket has ended meanwhile."""
        link = self.link
        if self._senders is None:
            self._senders = []
        senders = self._senders
        turn: asyncio.Future[None] = link.loop.create_future()
        senders.append(turn)
        try:
            while True:
                link.waiting.add(self)
                self._say_waiting()
                await turn
                # Only the first is woken.
                if self._state != ACCEPTED or not (self._paused or link.paused):
                    break
                senders[0] = turn = link.loop.create_future()
        except BaseException:
            senders.remove(turn)
            self._wake_sender()
            raise
        senders.remove(turn)
        if self._state == ACCEPTED:
            return True
        self._wake_sender()
        await self._drop()
        return False

    def _wake_sender(self) -> None:
        if self._senders and not self._senders[0].done():
            self._senders[0].set_result(None)

    def resume(self) -> None:
        """The link takes frames again."""
        self._wake_sender()

    def pause_by_node(self, paused: bool) -> None:
        """The client's outbox is half full, or nearly empty again."""
        self._paused = paused
        if paused:
            self._say_waiting()
        else:
            self._said_waiting = False
            self._wake_sender()

    def _say_waiting(self) -> None:
        # From then on the client's patience counts, and not from the moment its outbox was half full.
        if self._paused and self._senders and not self._said_waiting and self._state == ACCEPTED:
            self._said_waiting = True
            self.link.write(frames.frame(frames.WAITING, self.sid))

    # Going on elsewhere

    def begin_again(self, state: Any) -> None:
        """The socket is open already: what is accepted goes nowhere."""
        self.state_left = state
        self._greets = 1

    def detach(self) -> None:
        """Another worker goes on with the socket: this instance finishes with what it has, and gets its disconnect."""
        if self.closed or self._state == ENDED:
            return
        if self._state != ACCEPTED:
            self.disconnect(1012, "")
            return
        self.closed = True
        self.leaving = True
        if self.mailbox is None or self.mailbox.idle:
            self.leave_if_idle()

    def leave_if_idle(self) -> None:
        """Its consumer has been through all that came for it."""
        if not self._goodbye and self._task is not None:
            self._say_goodbye(1012, "")

    def _tell(self) -> None:
        """What the node has to know before the instance waits again."""
        if self._greets == 1:
            self._greets = 2
        elif self._greets == 2:
            self._greets = 0
            self.link.write(frames.frame(frames.READY, self.sid))
        self.tell_state()

    def tell_state(self) -> None:
        """What the consumer leaves for the next one, if that is news."""
        state = getattr(self.consumer, "gateway_state", None)
        if state is None and not self._state_told:
            return
        try:
            told: bytes = b"" if state is None else msgpack.packb(state)
        except (TypeError, ValueError) as error:
            logger.error("%s: gateway_state cannot be left: %s", self, error)
            return
        if told == self._state_told:
            return
        self._state_told = told
        if len(told) > frames.MAX_STATE:
            logger.error("%s: gateway_state has %d bytes, %d may be left", self, len(told), frames.MAX_STATE)
            return
        self.link.write(frames.frame(frames.STATE, self.sid, told))

    # What the node says

    def message(self, kind: int, body: bytes) -> None:
        """A message of the client's."""
        size = len(body)
        self._owed += 1
        self._owed_bytes += size
        if self._owed > OWED_MESSAGES or (self._owed_bytes - size > OWED_BYTES):
            raise frames.Malformed(f"socket {self.sid} was sent more than its application has received")
        if self._state >= CLOSING:
            # It has crossed the close, or nobody is there any more to take it.
            self._take(size)
            return
        if kind == frames.TEXT:
            self._queue.append(({"type": "websocket.receive", "text": str(body, "utf-8")}, size))
        else:
            self._queue.append(({"type": "websocket.receive", "bytes": body}, size))
        if self._waiters:
            self._wake_receiver()

    def disconnect(self, code: int, reason: str) -> None:
        """The socket's end, once, whoever ended it."""
        if self._state == ENDED:
            return
        self._state = ENDED
        self._response = None
        if self._task is None or self._goodbye:
            return
        self._say_goodbye(code, reason)
        self._wake_sender()

    def _say_goodbye(self, code: int, reason: str) -> None:
        self._goodbye = True
        self._queue.append(({"type": "websocket.disconnect", "code": code, "reason": reason}, None))
        if self._waiters:
            self._wake_receiver()
        self.link.server.linger(self)

    def _wake_receiver(self) -> None:
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)
                return

    def _take(self, size: int) -> None:
        self._taken += 1
        self._taken_bytes += size
        if self._taken >= CREDIT_MESSAGES or self._taken_bytes >= CREDIT_BYTES:
            self.credit()
        elif not self.credit_waits:
            self.credit_waits = True
            self.link.credit_later(self)

    def credit(self) -> None:
        """Tells the node what the application has taken."""
        taken = self._taken
        if taken:
            self._owed -= taken
            self._owed_bytes = max(0, self._owed_bytes - self._taken_bytes) if self._owed else 0
            self._taken = self._taken_bytes = 0
            if not self.closed:
                self.link.write(HEAD.pack(REST + 4, frames.CREDIT, self.sid) + frames.COUNT.pack(taken))

    # Its end

    def cancel(self) -> None:
        """It has had its time."""
        if self._task is not None:
            self.cancelled = True
            self._task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        was = self._state
        self._state = ENDED
        self._queue.clear()
        mailbox, self.mailbox = self.mailbox, None
        if mailbox is not None:
            # Its socket may be with another instance already: that one has the channel.
            if self.link.server.mailboxes.get(mailbox.channel) is mailbox:
                del self.link.server.mailboxes[mailbox.channel]
            mailbox.close()
        self._wake_sender()
        outcome, text = frames.RETURNED, ""
        if task.cancelled():
            outcome = frames.CANCELLED if self.cancelled else frames.RAISED
            text = "cancelled"
            if not self.cancelled:
                logger.error("%s: the application was cancelled, and not by the worker", self)
        else:
            error = task.exception()
            if error is not None:
                outcome = frames.RAISED
                text = f"{type(error).__name__}: {error}"
                logger.error("%s: the application raised", self, exc_info=error)
            elif was <= RESPONDING:
                text = "returned without an answer to the handshake"
                logger.error("%s: the application %s", self, text)
            elif was == ACCEPTED and not self.leaving:
                logger.info("%s: the application returned while the socket was open", self)
        if self.dropped:
            logger.info("%s: %d messages were sent after the end, and dropped", self, self.dropped)
        if self.consumer is not None:
            self.tell_state()
            self.consumer = None
        body = bytes((outcome,)) + text.encode(errors="replace")[:MAX_ERROR]
        self.link.write(frames.frame(frames.END, self.sid, body))
        self.link.ended(self)

    def __str__(self) -> str:
        """For the log."""
        return f"websocket {self.path} {self.channel_name}" if self.channel_name else f"websocket {self.path}"


async def _run(application: Application, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await application(scope, receive, send)
    except SystemExit as error:
        # It would end the worker, and with it everybody else's sockets.
        raise RuntimeError("the application called sys.exit()") from error


def sendable(code: Any) -> int:
    """``code`` if a close frame may carry it, else 1011."""
    return code if isinstance(code, int) and code in _SENDABLE_CODES else 1011


def cut(reason: str) -> bytes:
    """A close frame has room for 123 bytes; no character is cut in two."""
    encoded = reason.encode(errors="replace")
    if len(encoded) <= 123:
        return encoded
    return encoded[:123].decode(errors="ignore").encode()


def _headers(given: Iterable[Iterable[bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers that cannot be taken for more than they are."""
    headers = []
    for name, value in given:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError("headers are pairs of bytes")
        if not _TOKEN.match(name) or _NO_VALUE.search(value):
            raise ValueError(f"{name!r}: {value!r} is no header")
        headers.append((name, value))
    return headers
