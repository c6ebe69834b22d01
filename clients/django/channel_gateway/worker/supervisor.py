"""``--processes N``: a parent that starts workers, and starts again what has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .reload import Signals

logger = logging.getLogger("channel_gateway.worker")

#: What a process says of itself that has reached its age.
RECYCLE: Final = 75
#: What one says that will never start.
_WRONG: Final = 2

_CHILD: Final = "GATEWAY_WORKER_CHILD"
#: Seconds before a process is started again that has ended too early: doubled each time, up to the last.
_BACKOFF: Final = (0.5, 30.0)
#: Seconds after which a process has not ended too early, and after which it has worked at all.
_SETTLED: Final = 60.0
_WORKED: Final = 5.0
#: Seconds over the drain's that a process has for its end.
_GRACE: Final = 30.0


@dataclass(frozen=True)
class Child:
    """What a process knows of its parent."""

    number: int
    pipe: int

    @classmethod
    def of_environment(cls) -> Child | None:
        """``None`` for a process that has no such parent."""
        # What the application starts is no worker.
        text = os.environ.pop(_CHILD, "")
        if not text:
            return None
        number, _, pipe = text.partition(":")
        return cls(int(number), int(pipe))

    @staticmethod
    def is_one() -> bool:
        """Whether this process is one of several."""
        return bool(os.environ.get(_CHILD))

    def when_orphaned(self, loop: asyncio.AbstractEventLoop, then: Callable[[], Any]) -> None:
        """A parent that was killed takes its pipe along."""
        os.set_inheritable(self.pipe, False)

        def ended() -> None:
            loop.remove_reader(self.pipe)
            then()

        loop.add_reader(self.pipe, ended)


def this_command() -> list[str]:
    """How this process was started."""
    return [sys.executable, *sys.orig_argv[1:]]


class _Slot:
    """One of the N processes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.begun = 0.0
        self.start_at = 0.0
        self.backoff = 0.0
        #: Whether one of its processes has worked.
        self.worked = False


class Supervisor:
    """Runs this very command ``processes`` times."""

    def __init__(self, processes: int, drain_seconds: float) -> None:
        """Nothing is started yet."""
        self._slots = [_Slot(number) for number in range(1, processes + 1)]
        self._patience = drain_seconds + _GRACE
        self._signals = 0
        self._kill_at = 0.0
        self._wake = threading.Event()
        self._code = 0

    def run(self, signals: Signals | None = None) -> int:
        """Until all processes have ended after a signal, or one says that it can never start."""
        # Closed by the kernel when this process ends, however it ends.
        reading, self._alive = os.pipe()
        self._pipe = reading
        in_main = threading.current_thread() is threading.main_thread()
        before = {}
        if signals is not None:
            signals.take(self._ask)
        elif in_main:
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, self._on_signal)
        try:
            while self._step():
                self._wake.wait(0.1)
                self._wake.clear()
        finally:
            for slot in self._slots:
                if slot.process is not None:
                    slot.process.kill()
                    slot.process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(self._alive)
        return self._code

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._ask()

    def _ask(self) -> None:
        self._signals += 1
        self._stop()

    def _stop(self) -> None:
        self._kill_at = time.monotonic() + (self._patience if self._signals < 2 else _GRACE)
        for slot in self._slots:
            if slot.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    slot.process.send_signal(signal.SIGTERM)
        self._wake.set()

    def _step(self) -> bool:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is not None:
                code = slot.process.poll()
                if code is not None:
                    slot.process = None
                    self._ended(slot, code, now)
            if slot.process is None and not self._signals and now >= slot.start_at:
                self._start(slot, now)
        left = [slot for slot in self._slots if slot.process is not None]
        if self._signals and left and now > self._kill_at:
            for slot in left:
                if slot.process is not None:
                    logger.error("process %d (pid %d) has not ended, and is killed", slot.number, slot.process.pid)
                    slot.process.kill()
            self._kill_at = now + _GRACE
        return bool(left) or not self._signals

    def _start(self, slot: _Slot, now: float) -> None:
        slot.begun = now
        slot.process = subprocess.Popen(  # noqa: S603
            this_command(),
            env={**os.environ, _CHILD: f"{slot.number}:{self._pipe}"},
            pass_fds=(self._pipe,),
            # A Ctrl-C reaches the parent, which passes it on; twice would be at once.
            start_new_session=True,
        )
        if self._signals:
            slot.process.send_signal(signal.SIGTERM)

    def _ended(self, slot: _Slot, code: int, now: float) -> None:
        if self._signals:
            # One that was told to stop before it listens to signals has stopped as it was told.
            if code != -signal.SIGTERM and self._code != _WRONG:
                self._code = max(self._code, code if code >= 0 else 128 - code)
            return
        slot.worked = slot.worked or code == RECYCLE or now - slot.begun > _WORKED
        if code == RECYCLE:
            slot.backoff = slot.start_at = 0.0
            return
        if code == _WRONG and not slot.worked:
            # It has said why; the others have the same options. Later it may be a deploy that is half done.
            self._code = code
            self._signals = 1
            self._stop()
            return
        if now - slot.begun > _SETTLED:
            slot.backoff = 0.0
        slot.backoff = min(_BACKOFF[1], slot.backoff * 2) if slot.backoff else _BACKOFF[0]
        slot.start_at = now + slot.backoff
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        logger.error("process %d %s; started again in %.1f s", slot.number, how, slot.backoff)
