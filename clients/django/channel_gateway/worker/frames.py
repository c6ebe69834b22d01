"""The frames of a link: ``u32le length | u8 kind | u64le sid | body``, little-endian, the length without itself."""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any, Final

import msgpack

VERSION: Final = 1

HELLO: Final = 1
WELCOME: Final = 2
PROOF: Final = 3
PING: Final = 4
PONG: Final = 5
DRAIN: Final = 6

OPEN: Final = 16
ACCEPT: Final = 17
DENY: Final = 18
TEXT: Final = 19
BINARY: Final = 20
CLOSE: Final = 21
CLOSED: Final = 22
PAUSE: Final = 23
RESUME: Final = 24
CREDIT: Final = 25
END: Final = 26
WAITING: Final = 27

LAYER: Final = 32
JOIN: Final = 33
LEAVE: Final = 34
JOINED: Final = 35
PUBLISH: Final = 36
SEND: Final = 37
SENT: Final = 38
PUBLISHED: Final = 39
EVENT: Final = 40
CLASS: Final = 41
RENDER: Final = 42
RENDERED: Final = 43
DETACH: Final = 44
STATE: Final = 45
READY: Final = 46

COUNTS: Final = 128

#: Kinds from here on may be ignored by who does not know them.
OPTIONAL: Final = 128

#: Bytes that a consumer may leave for the next one.
MAX_STATE: Final = 4096

#: What ``SENT`` says of an event for one channel.
SENT_TAKEN: Final = 0
SENT_FULL: Final = 1
SENT_AWAY: Final = 2
SENT_REFUSED: Final = 3

#: What ``RENDERED`` says.
SHARED: Final = 0
NOT_SHARED: Final = 1
FAILED: Final = 2

#: What ``END`` says of an instance.
RETURNED: Final = 0
RAISED: Final = 1
CANCELLED: Final = 2
NOT_TAKEN: Final = 3

HEAD: Final = struct.Struct("<IBQ")
#: Bytes of ``length`` that are not the body.
REST: Final = HEAD.size - 4
CODE: Final = struct.Struct("<H")
COUNT: Final = struct.Struct("<I")
LENGTH: Final = struct.Struct("<H")
NUMBER: Final = struct.Struct("<Q")

#: A message's bytes at most; a frame may have 64 KiB more.
MAX_MESSAGE: Final = 16 * 1024 * 1024
MAX_FRAME: Final = MAX_MESSAGE + 64 * 1024
#: A frame's bytes before both sides have proved the secret.
MAX_FRAME_BEFORE_PROOF: Final = 4096
#: A refusal's body.
MAX_DENY_BODY: Final = 1024 * 1024

NONCE_BYTES: Final = 32


class Malformed(Exception):
    """What came is not a frame of this protocol; the link is closed."""


def frame(kind: int, sid: int, body: bytes = b"") -> bytes:
    """A whole frame."""
    return HEAD.pack(REST + len(body), kind, sid) + body


def packed(kind: int, sid: int, fields: dict[str, Any]) -> bytes:
    """A whole frame with a map."""
    body: bytes = msgpack.packb(fields)
    return HEAD.pack(REST + len(body), kind, sid) + body


def unpack(body: bytes) -> dict[str, Any]:
    """The map of a frame."""
    try:
        fields = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as error:
        raise Malformed(f"a map that cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise Malformed("not a map")
    return fields


def named(name: bytes, rest: bytes) -> bytes:
    """A name and what follows it."""
    return LENGTH.pack(len(name)) + name + rest


def mac(secret: bytes, role: bytes, of_node: bytes, of_worker: bytes) -> bytes:
    """What proves the secret; ``role`` is who proves it, so that neither can send the other's back."""
    return hmac.new(secret, b"gateway.bridge.1 " + role + of_node + of_worker, hashlib.sha256).digest()


def print_of(secret: bytes, key: bytes) -> bytes:
    """By what both sides know a key of the layer, without saying it."""
    return hmac.new(secret, b"gateway.bridge.1 layer key " + key, hashlib.sha256).digest()
