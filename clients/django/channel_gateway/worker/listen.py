"""Where a worker listens: ``unix:PATH`` or ``tcp://HOST:PORT``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

#: Connections that wait to be taken; nodes dial once each.
BACKLOG = 128


class Unusable(Exception):
    """The address, or what is there, cannot be used; the text says why."""


@dataclass(frozen=True)
class Address:
    """A path, or a host with a port."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def numbered(self, number: int) -> Address:
        """Of process 1, 2, …: ``worker.sock`` becomes ``worker-1.sock``, port 9100 stays with the first."""
        if self.path is None:
            if self.port + number - 1 > 65535:
                raise Unusable(f"port {self.port + number - 1} is more than 65535")
            return replace(self, port=self.port + number - 1)
        before, after = os.path.splitext(self.path)
        return replace(self, path=f"{before}-{number}{after}")

    def __str__(self) -> str:
        """As it is given."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Raises ``ValueError``."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            path = path[2:]
        if not path or path.endswith("/") or "*" in path:
            raise ValueError(f"{text!r} has no path of a socket: unix:/run/site/worker.sock")
        return Address(path=os.path.abspath(path))
    parts = urlsplit(text)
    if parts.scheme != "tcp" or not parts.hostname or parts.port is None or parts.path not in ("", "/"):
        raise ValueError(f"{text!r} is neither unix:/run/site/worker.sock nor tcp://0.0.0.0:9100")
    if parts.port == 0:
        raise ValueError("a node has to know the port: 0 cannot be one")
    return Address(host=parts.hostname, port=parts.port)


def tls(certificate: str | None, key: str | None, ca: str | None) -> ssl.SSLContext | None:
    """For TCP; with ``ca`` a node has to show a certificate of it."""
    if not certificate:
        if key or ca:
            raise Unusable("--key and --ca need a --certificate")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key or None)
        if ca:
            context.load_verify_locations(ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise Unusable(f"the certificate, its key or the CA cannot be read: {error}") from error
    return context


class Listener:
    """An open listener; a socket's file goes with it."""

    def __init__(self, server: asyncio.AbstractServer, path: str | None) -> None:
        """``path`` was made by us."""
        self._server = server
        self._path = path
        self._made = _identity(path) if path else None

    def close(self) -> None:
        """Takes no more links."""
        self._server.close()
        # Another worker may have put its own there.
        if self._path and self._made and _identity(self._path) == self._made:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._path = None


async def listen(
    factory: Callable[[], asyncio.Protocol], address: Address, mode: int, context: ssl.SSLContext | None
) -> Listener:
    """Raises ``Unusable``."""
    loop = asyncio.get_running_loop()
    try:
        if address.path is None:
            server = await loop.create_server(
                factory,
                address.host,
                address.port,
                ssl=context,
                backlog=BACKLOG,
            )
            return Listener(server, None)
        if context is not None:
            raise Unusable("TLS is for tcp://; a Unix socket has its --mode")
        sock = bind(address.path, mode)
        server = await loop.create_unix_server(factory, sock=sock, backlog=BACKLOG)
    except OSError as error:
        raise Unusable(f"{address} cannot be listened on: {error}") from error
    return Listener(server, address.path)


def bind(path: str, mode: int) -> socket.socket:
    """A Unix socket at ``path``. A file nobody answers on is replaced, a living one is not."""
    _make_place(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | getattr(socket, "SOCK_CLOEXEC", 0))
    # Nobody may dial between it is there and it has its mode.
    before = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Unusable(f"{path} was made by somebody else just now") from error
        raise
    finally:
        os.umask(before)
    os.chmod(path, mode)
    sock.setblocking(False)
    return sock


def _make_place(path: str) -> None:
    try:
        there = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        if not Path(path).parent.is_dir():
            raise Unusable(f"there is no directory {Path(path).parent}") from None
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise Unusable(f"{path} is a file, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError:
            # Somebody is there who does not take connections now.
            pass
    raise Unusable(f"another worker answers on {path}")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
