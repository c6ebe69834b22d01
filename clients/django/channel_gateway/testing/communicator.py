"""A browser in the manner of Channels' ``WebsocketCommunicator``, with a real socket to a real node."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import struct
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import sync_to_async

from ..tokens import make_token


class GatewayCommunicator:
    """One socket.

    communicator = GatewayCommunicator(self.gateway_url + "/ws/chat/lobby/").force_login(user)
    connected, subprotocol = await communicator.connect()
    """

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        subprotocols: list[str] | None = None,
        origin: str | None = None,
    ) -> None:
        """``subprotocols`` is ``["gateway.v1"]`` by default; a list of one's own makes a plain client."""
        self.url = url
        self.headers = dict(headers or {})
        self.subprotocols = ["gateway.v1"] if subprotocols is None else list(subprotocols)
        if origin:
            self.headers["Origin"] = origin
        self._user: Any = None
        self._token: str | None = None
        self._rooms: list[str] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        #: After the end: the code and the reason of the close frame.
        self.close_code: int | None = None
        self.close_reason = ""

    def force_login(self, user: Any, *, rooms: list[str] | None = None) -> GatewayCommunicator:
        """Signs in with a token of this user, as the page would; ``rooms`` as a policy would name them."""
        self._user, self._rooms = user, rooms
        return self

    def force_token(self, token: str) -> GatewayCommunicator:
        """Signs in with this token."""
        self._token = token
        return self

    async def connect(self, timeout: float = 10) -> tuple[bool, Any]:
        """``(True, subprotocol)``, or ``(False, status)`` if the handshake was refused."""
        return await asyncio.wait_for(self._connect(), timeout)

    async def _connect(self) -> tuple[bool, Any]:
        offered = list(self.subprotocols)
        token = self._token
        if token is None and self._user is not None:
            token = await sync_to_async(make_token)(self._user, rooms=self._rooms)
        if token:
            offered.append(f"bearer.{token}")
        parts = urlsplit(self.url)
        host, port = parts.hostname or "localhost", parts.port or (443 if parts.scheme == "wss" else 80)
        self._reader, self._writer = await asyncio.open_connection(host, port, ssl=parts.scheme == "wss" or None)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if offered:
            lines.append(f"Sec-WebSocket-Protocol: {', '.join(offered)}")
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        if status != 101:
            await self._end()
            return False, status
        answered = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        return True, answered.get("sec-websocket-protocol")

    async def send_to(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Sends a frame."""
        if (text_data is None) == (bytes_data is None):
            raise ValueError("either text_data or bytes_data")
        if text_data is not None:
            await self._send(0x1, text_data.encode())
        else:
            await self._send(0x2, bytes_data or b"")

    async def send_json_to(self, data: Any) -> None:
        """Sends a frame of JSON."""
        await self.send_to(text_data=json.dumps(data))

    async def receive_from(self, timeout: float = 10) -> str | bytes:
        """The next frame; raises ``ConnectionError`` if the socket was closed instead, see ``close_code``."""
        return await asyncio.wait_for(self._receive(), timeout)

    async def receive_json_from(self, timeout: float = 10, *, type: str | None = None) -> Any:
        """The next frame; with ``type`` the next one of that type, others are passed over."""

        async def next_one() -> Any:
            while True:
                frame = json.loads(await self._receive())
                if type is None or frame.get("type") == type:
                    return frame

        return await asyncio.wait_for(next_one(), timeout)

    async def receive_nothing(self, timeout: float = 0.5) -> bool:
        """Whether nothing comes for so long."""
        assert self._reader is not None  # noqa: S101
        try:
            # Nothing may be lost of what comes right at the end: only its first byte is waited for.
            return not await asyncio.wait_for(self._has_more(), timeout)
        except asyncio.TimeoutError:
            return True

    async def _has_more(self) -> bool:
        reader: Any = self._reader
        while not reader._buffer and not reader.at_eof():
            await reader._wait_for_data("receive_nothing")
        return bool(reader._buffer)

    async def receive_close(self, timeout: float = 10) -> int:
        """Waits until the node closes, passes over what comes before, and returns the code."""

        async def to_the_end() -> int:
            while True:
                try:
                    await self._receive()
                except ConnectionError:
                    return self.close_code or 1006

        return await asyncio.wait_for(to_the_end(), timeout)

    async def disconnect(self, code: int = 1000, timeout: float = 10) -> None:
        """Closes, and waits for the node to do so."""
        if self._writer is None or self._writer.is_closing():
            return
        try:
            await self._send(0x8, struct.pack("!H", code))
            await self.receive_close(timeout)
        except (ConnectionError, asyncio.TimeoutError):
            pass
        finally:
            await self._end()

    async def _send(self, opcode: int, payload: bytes) -> None:
        if self._writer is None:
            raise ConnectionError("connect() first")
        size = len(payload)
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += bytes([0x80 | 126]) + struct.pack("!H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack("!Q", size)
        mask = os.urandom(4)
        self._writer.write(head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)))
        await self._writer.drain()

    async def _receive(self) -> str | bytes:
        if self._reader is None:
            raise ConnectionError("connect() first")
        whole, kind = b"", 0
        while True:
            try:
                first, second = await self._reader.readexactly(2)
                size = second & 0x7F
                if size == 126:
                    (size,) = struct.unpack("!H", await self._reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
                payload = await self._reader.readexactly(size)
            except (asyncio.IncompleteReadError, OSError) as error:
                await self._end()
                raise ConnectionError(f"the socket is closed: {self.close_code}") from error
            opcode = first & 0x0F
            if opcode == 0x9:
                await self._send(0xA, payload)
            elif opcode == 0x8:
                self.close_code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
                self.close_reason = payload[2:].decode("utf-8", "replace")
                await self._end()
                raise ConnectionError(f"the node closed: {self.close_code} {self.close_reason}")
            elif opcode != 0xA:
                kind = kind or opcode
                whole += payload
                if first & 0x80:
                    return whole.decode() if kind == 0x1 else whole

    async def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
