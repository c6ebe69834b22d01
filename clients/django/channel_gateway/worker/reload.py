"""``gateway_worker`` under ``DEBUG``: Django's autoreload, but what is asked to stop drains first.

Django's own ends its child, and the child its thread, wherever they are. Here a signal goes on to the child, and there
to whoever serves.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final

from django.utils import autoreload

logger = logging.getLogger("django.utils.autoreload")

#: What a child ends with because code has changed.
CHANGED: Final = 3

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Those of a process whose main thread watches files, for the thread that serves."""

    def __init__(self) -> None:
        """To be made in the main thread."""
        self.asked = False
        self._then: Callable[[], object] | None = None
        self._code = 0
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def take(self, then: Callable[[], object]) -> None:
        """Whoever serves is there; ``then`` is called in the main thread, at each signal."""
        self._then = then

    def ended(self, code: int) -> None:
        """Whoever served is not there any more. If that is because of a signal, the process is done."""
        self._then, self._code = None, code
        if self.asked:
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        then = self._then
        if then is None:
            sys.exit(self._code)
        then()


def run_with_reloader(serve: Callable[[Signals], int]) -> int:
    """Runs ``serve``, which returns an exit code, in a process that begins again when code changes."""
    if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
        return _parent()
    signals = Signals()

    def work() -> None:
        code = 0
        try:
            code = serve(signals)
        finally:
            signals.ended(code)

    reloader = autoreload.get_reloader()
    logger.info("Watching for file changes with %s", reloader.__class__.__name__)
    autoreload.start_django(reloader, work)
    return 0


def _parent() -> int:
    """Starts the child again for as long as code changes."""
    child: subprocess.Popen[bytes] | None = None
    asked = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        # A terminal sends Ctrl-C to both; twice would be at once.
        if child is not None and not (number == signal.SIGINT and sys.stdin.isatty()):
            child.send_signal(signal.SIGTERM)

    for number in SIGNALS:
        signal.signal(number, on_signal)
    command = autoreload.get_child_arguments()
    environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    while True:
        child = subprocess.Popen(command, env=environment, close_fds=False)  # noqa: S603
        if asked:
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        if asked or code != CHANGED:
            # One that was asked before it listens to signals has stopped as it was told.
            return 0 if asked and code == -signal.SIGTERM else code if code >= 0 else 128 - code
