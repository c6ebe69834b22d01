"""UUIDv7 (RFC 9562), which Python has from 3.14 on."""

from __future__ import annotations

import os
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A new identity. Those of a process ascend, so a table's index grows at one end."""
    global _last
    with _lock:
        # Milliseconds, and twelve bits of what is less than one.
        now = time.time_ns() * 4096 // 1_000_000
        _last = now = max(now, _last + 1)
    milliseconds, fraction = divmod(now, 4096)
    random = int.from_bytes(os.urandom(8), "big") & (2**62 - 1)
    value = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | random
    return str(uuid.UUID(int=value))


def _in_child() -> None:
    # A fork may have happened while another thread held it.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
