"""Where entries go: ``GATEWAY["BACKEND"]``."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Protocol

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from ..conf import conf

Fields = dict[str, str]


class Backend(Protocol):
    """Takes entries, all of them or none that it knows of."""

    def send(self, entries: Sequence[Fields]) -> None:
        """Returns when they are taken; raises ``Unavailable`` when that is not known."""


BACKENDS = {
    "redis": "channel_gateway.backends.redis.RedisBackend",
    "api": "channel_gateway.backends.api.ApiBackend",
    "locmem": "channel_gateway.backends.locmem.LocmemBackend",
    "dummy": "channel_gateway.backends.dummy.DummyBackend",
}

_lock = threading.Lock()
_backend: Backend | None = None


def backend() -> Backend:
    """The one of this process."""
    global _backend
    found = _backend
    if found is None:
        with _lock:
            found = _backend
            if found is None:
                name = conf().backend
                found = _backend = import_string(BACKENDS.get(name, name))()
    return found


def forget() -> None:
    """The next call makes a new one."""
    global _backend
    _backend = None


def _in_child() -> None:
    # A child of a fork must not talk over its parent's sockets, and another thread may have held the lock.
    global _lock
    _lock = threading.Lock()
    forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _changed(*, setting: str, **_: object) -> None:
    if setting in ("GATEWAY", "CHANNEL_LAYERS"):
        forget()


setting_changed.connect(_changed, dispatch_uid="channel_gateway.backends")
