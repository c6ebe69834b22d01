"""A small node of the tests' own: it dials a worker, proves the secret, and plays the clients of its sockets."""

import asyncio
import hashlib
import hmac
import os
import struct

import msgpack

HEAD = struct.Struct("<IBQ")
HELLO, WELCOME, PROOF, PING, PONG, DRAIN = range(1, 7)
OPEN, ACCEPT, DENY, TEXT, BINARY, CLOSE, CLOSED, PAUSE, RESUME, CREDIT, END, WAITING = range(16, 28)
SECRET = b"a secret of the tests"
PATIENCE = 30


def frame(kind, sid, body=b""):
    return HEAD.pack(9 + len(body), kind, sid) + body


def mac(secret, role, one, other):
    return hmac.new(secret, b"gateway.bridge.1 " + role + one + other, hashlib.sha256).digest()


class LinkEnded(Exception):
    """The worker has closed the link."""


class Node:
    """One link. What the worker sends is taken at once, credits are only counted: `Socket.held` says what is out."""

    def __init__(self, name="test"):
        self.name = name
        self.sockets = {}
        self.welcome = None
        self.drain = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.pongs = 0
        self.answers_pings, self.unanswered = True, []
        self.reading = asyncio.Event()
        self.reading.set()
        self._last = 0

    async def dial(self, address, secret=SECRET, tls=None):
        if address.startswith("unix:"):
            connecting = asyncio.open_unix_connection(address[5:])
        else:
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            connecting = asyncio.open_connection(host, int(port), ssl=tls)
        self.reader, self.writer = await connecting
        nonce = os.urandom(32)
        hello = {"v": 1, "node": self.name, "deployment": "d", "nonce": nonce}
        self.write(HELLO, 0, msgpack.packb(hello))
        kind, _, body = await self.read()
        assert kind == WELCOME, kind
        self.welcome = msgpack.unpackb(body)
        theirs = self.welcome["nonce"]
        if not hmac.compare_digest(self.welcome["mac"], mac(secret, b"worker", nonce, theirs)):
            self.close()
            raise PermissionError("the worker has another secret")
        self.write(PROOF, 0, msgpack.packb({"mac": mac(secret, b"node", nonce, theirs)}))
        self._task = asyncio.ensure_future(self._run())
        return self

    def write(self, kind, sid, body=b""):
        self.writer.write(frame(kind, sid, body))

    def answer_pings(self):
        while self.unanswered and self.answers_pings:
            self.write(PONG, 0, self.unanswered.pop(0))

    async def read(self):
        try:
            length, kind, sid = HEAD.unpack(await self.reader.readexactly(HEAD.size))
            return kind, sid, await self.reader.readexactly(length - 9)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise LinkEnded from error

    async def _run(self):
        try:
            while True:
                await self.reading.wait()
                kind, sid, body = await self.read()
                if kind == PING:
                    self.unanswered.append(body)
                    self.answer_pings()
                elif kind == PONG:
                    self.pongs += 1
                elif kind == DRAIN:
                    self.drain.done() or self.drain.set_result(msgpack.unpackb(body)["window"])
                elif kind < 128 and not self._frame(kind, sid, body):
                    self.sockets[sid]._frame(kind, body)
        except LinkEnded:
            pass
        finally:
            self.ended.set()
            for each in self.sockets.values():
                each.events.put_nowait(("gone",))

    def _frame(self, kind, sid, body):
        """Whether a frame was the node's own business."""
        return False

    def open(self, path="/", headers=(), subprotocols=(), query=b"", channel_name="test.1", **more):
        self._last += 1
        socket = self.sockets[self._last] = Socket(self, self._last, channel_name)
        scope = {
            "type": "websocket",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query,
            "headers": [[name, value] for name, value in headers],
            "subprotocols": list(subprotocols),
            "client": ["127.0.0.1", 5],
            "server": ["127.0.0.1", 80],
            "scheme": "ws",
            "http_version": "1.1",
            "channel_name": channel_name,
            **more.pop("scope", {}),
        }
        self.write(OPEN, socket.sid, msgpack.packb({"scope": scope, "attempt": 0, **more}))
        return socket

    async def connect(self, path="/", **options):
        socket = self.open(path, **options)
        kind, *rest = await socket.next()
        assert kind == "accept", (kind, rest)
        socket.accepted = rest[0]
        return socket

    def close(self):
        self.writer.transport.abort()
        if hasattr(self, "_task"):
            self._task.cancel()


class Socket:
    def __init__(self, node, sid, channel_name=""):
        self.node, self.sid, self.channel_name = node, sid, channel_name
        self.events = asyncio.Queue()
        self.credit = 0
        self.sent = 0
        self.ends = []
        self.is_closed = False
        self.ended = asyncio.get_running_loop().create_future()

    def _frame(self, kind, body):
        if kind == CREDIT:
            self.credit += struct.unpack("<I", body)[0]
            self.events.put_nowait(("credit", self.credit)) if self.sees_credit else None
        elif kind == TEXT:
            self.events.put_nowait(("text", body.decode()))
        elif kind == BINARY:
            self.events.put_nowait(("bytes", body))
        elif kind == ACCEPT:
            self.events.put_nowait(("accept", msgpack.unpackb(body)))
        elif kind == DENY:
            self.events.put_nowait(("deny", msgpack.unpackb(body)))
            self.closed(1006)
        elif kind == CLOSE:
            code = struct.unpack_from("<H", body)[0]
            self.events.put_nowait(("close", code, body[2:].decode()))
            self.closed(code)
        elif kind == WAITING:
            self.events.put_nowait(("waiting",))
        elif kind == END:
            self.ends.append((body[0], body[1:].decode()))
            self.events.put_nowait(("end", body[0], body[1:].decode()))
            self.ended.done() or self.ended.set_result(body[0])

    sees_credit = False

    async def next(self, timeout=PATIENCE):
        return await asyncio.wait_for(self.events.get(), timeout)

    async def hears(self, timeout=PATIENCE):
        kind, data, *_ = await self.next(timeout)
        assert kind in ("text", "bytes"), kind
        return data

    def say(self, data):
        self.sent += 1
        text = isinstance(data, str)
        self.node.write(TEXT if text else BINARY, self.sid, data.encode() if text else data)

    def closed(self, code=1000, reason=""):
        """The client's end, or the node's answer to the application's."""
        self.is_closed = True
        self.node.write(CLOSED, self.sid, struct.pack("<H", code) + reason.encode())

    def pause(self, paused=True):
        self.node.write(PAUSE if paused else RESUME, self.sid)

    async def end(self, timeout=PATIENCE):
        return await asyncio.wait_for(asyncio.shield(self.ended), timeout)
