"""``manage.py gateway_serve``."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import binary, relay, toml
from ...exceptions import GatewayError

_PASSED_ON = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_PR_SET_PDEATHSIG = 1


class Command(BaseCommand):
    """Runs a node with this site's settings."""

    help = "Runs a gateway node with this site's settings. What follows -- goes to `gateway serve`."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument("--relay", action="store_true", help="also send what waits in the outbox, in a thread")
        parser.add_argument("arguments", nargs="*", help="arguments of `gateway serve`, after --")

    def handle(self, *_: Any, **options: Any) -> None:
        """Runs until the node ends, and exits as it did."""
        try:
            program, config = binary.find(), toml.node_config()
        except (GatewayError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error
        # The node reads it again at SIGHUP, so it stays until the end.
        directory = Path(tempfile.mkdtemp(prefix="gateway-"))
        try:
            code = self._run(program, config, directory, options)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        sys.exit(code)

    def _run(self, program: str, config: toml.NodeConfig, directory: Path, options: dict[str, Any]) -> int:
        file = directory / "gateway.toml"
        toml.write_secrets(config, directory)
        file.write_text(toml.render(config, directory), encoding="utf-8")
        environment = {**os.environ}
        for line in toml.environment(config, directory):
            name, _, path = line.partition("=")
            # Whoever sets one by hand means it.
            if not environment.get(name) and not environment.get(name.removesuffix("_FILE")):
                environment[name] = path
        node: subprocess.Popen[bytes] | None = None
        early: list[int] = []

        def pass_on(number: int, _frame: Any) -> None:
            if node is None:
                early.append(number)
            elif node.poll() is None:
                node.send_signal(number)

        for name in _PASSED_ON:
            signal.signal(getattr(signal, name), pass_on)
        # A session of its own: else a Ctrl-C would reach it twice, and the second one means "at once".
        node = subprocess.Popen(  # noqa: S603
            [program, "serve", "--config", str(file), *options["arguments"]],
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        for number in early:
            node.send_signal(number)
        stop = threading.Event()
        thread = None
        if options["relay"]:
            thread = threading.Thread(target=relay.run, args=(stop,), name="gateway-relay", daemon=True)
            thread.start()
        code = node.wait()
        stop.set()
        if thread is not None:
            thread.join(timeout=5)
        return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    """Linux: whoever is killed without a chance to pass that on takes the node along, which then drains."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
