"""Browsers for the worker's tests: the same words, whether a node of the tests' own is between or the gateway."""

import asyncio
import json

from channel_gateway.testing import GatewayCommunicator


class Refused(Exception):
    """The handshake was answered with another status than 101."""

    def __init__(self, status, headers=None, body=b""):
        super().__init__(status)
        self.status, self.headers, self.body = status, headers, body


class DirectClient:
    """A socket of the tests' node."""

    def __init__(self, socket):
        self.socket = socket

    @classmethod
    async def open(cls, node, path, *, headers=(), subprotocols=(), **more):
        path, _, query = path.partition("?")
        socket = node.open(path, headers=headers, subprotocols=subprotocols, query=query.encode(), **more)
        kind, *rest = await socket.next()
        if kind == "accept":
            client = cls(socket)
            client.subprotocol = rest[0]["subprotocol"]
            client.headers = {name.decode(): value.decode() for name, value in rest[0]["headers"]}
            return client
        if kind == "end":
            socket.closed(1006)
            raise Refused(503 if rest[0] == 3 else 500)
        raise Refused(rest[0]["status"], rest[0]["headers"], rest[0]["body"])

    async def say(self, data):
        self.socket.say(data)

    async def hears(self):
        return await self.socket.hears()

    async def close(self, code=1000):
        self.socket.closed(code)
        await self.socket.end()

    async def vanish(self):
        self.socket.closed(1006)
        await self.socket.end()

    async def ended(self):
        """The code and reason that the client is closed with."""
        while True:
            kind, *rest = await self.socket.next()
            if kind == "close":
                return tuple(rest)
            if kind == "end":
                code = (1000, 1011, 1011)[rest[0]]
                self.socket.closed(code)
                return code, ""


class GatewayClient:
    """A real socket to a real node."""

    def __init__(self, communicator):
        self.communicator = communicator

    @classmethod
    async def open(cls, url, path, *, headers=(), subprotocols=()):
        given = {name.decode(): value.decode() for name, value in headers if name != b"host"}
        communicator = GatewayCommunicator(url + path, headers=given, subprotocols=list(subprotocols))
        connected, answer = await communicator.connect(30)
        if not connected:
            raise Refused(answer)
        client = cls(communicator)
        client.subprotocol = answer
        return client

    async def say(self, data):
        text = isinstance(data, str)
        await self.communicator.send_to(data if text else None, None if text else data)

    async def hears(self):
        return await self.communicator.receive_from(30)

    async def close(self, code=1000):
        await self.communicator.disconnect(code)

    async def vanish(self):
        self.communicator._writer.transport.abort()

    async def ended(self):
        code = await self.communicator.receive_close(30)
        return code, self.communicator.close_reason


async def says_json(client, data):
    """Says it, and returns what is heard then."""
    await client.say(json.dumps(data))
    return json.loads(await client.hears())


async def until(condition, seconds=30):
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.01)
