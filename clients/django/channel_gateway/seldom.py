"""Log lines at a bounded rate, so that a fault of hours is no log of gigabytes."""

from __future__ import annotations

import logging
import threading
import time

_EVERY = 60.0
_lock = threading.Lock()
_last: dict[str, tuple[float, int]] = {}

logger = logging.getLogger("channel_gateway")


def log(level: int, what: str, message: str, *args: object, every: float = _EVERY) -> None:
    """Logs the message, at most once in ``every`` seconds for each ``what``; says how many it left out."""
    now = time.monotonic()
    with _lock:
        then, left_out = _last.get(what, (None, 0))
        if then is not None and now - then < every:
            _last[what] = (then, left_out + 1)
            return
        _last[what] = (now, 0)
    if left_out:
        message += f" ({left_out} more since the last such line)"
    logger.log(level, message, *args)


def warning(what: str, message: str, *args: object) -> None:
    """A line that an operator should see."""
    log(logging.WARNING, what, message, *args)


def error(what: str, message: str, *args: object) -> None:
    """A line about something that does not work."""
    log(logging.ERROR, what, message, *args)
