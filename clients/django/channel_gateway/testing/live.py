"""A node for tests, on free ports, with tables of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import override_settings

from .. import binary
from ..exceptions import GatewayError
from ..toml import PUBSUB, environment_name


class Node:
    """A running gateway."""

    def __init__(self, config: dict[str, Any] | None = None, *, program: str | None = None) -> None:
        """``config`` are settings of the gateway by their names in the file, ``limits.connections`` included."""
        self.program = program or binary.find()
        self.config = dict(config or {})
        self.port = self.internal_port = 0
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where sockets are opened."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        """The internal listener."""
        return f"http://127.0.0.1:{self.internal_port}"

    def start(self, timeout: float = 30) -> Node:
        """Returns when it is ready."""
        self._directory = Path(tempfile.mkdtemp(prefix="gateway-test-"))
        # Between looking for a free port and taking it somebody else may. The database stays: with another one the
        # Redis that was named would be another deployment's.
        for attempt in range(3):
            try:
                return self._start(timeout, self._directory)
            except GatewayError:
                if attempt == 2 or "in use" not in self.log():
                    self.stop()
                    raise
                self._end()
        return self

    def _start(self, timeout: float, directory: Path) -> Node:
        self.port, self.internal_port = _free_ports()
        given = {
            "listen": f"127.0.0.1:{self.port}",
            "internal_listen": f"127.0.0.1:{self.internal_port}",
            "database_url": f"sqlite://{directory}/gateway.db?mode=rwc",
            "drain.delay_seconds": 0,
            **self.config,
        }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        variables = {environment_name(key): _text(value) for key, value in given.items()}
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [*_with_us(), self.program, "serve"],
                env={**clean, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise GatewayError(f"the node ended with {self._process.returncode}: {self.log()}")
            try:
                with urllib.request.urlopen(f"{self.api_url}/readyz", timeout=1):  # noqa: S310
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise GatewayError(f"the node was not ready in {timeout} s: {self.log()}")

    def log(self) -> str:
        """The end of what it has said."""
        try:
            return self._log.read_text(errors="replace")[-4000:]
        except (OSError, AttributeError):
            return ""

    def stop(self) -> None:
        """Ends it and removes what it has written."""
        self._end()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                # Twice is at once: nobody has to be spread over other nodes.
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Node:
        """Starts it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.stop()


def _with_us() -> list[str]:
    """In front of a command, where Linux' own tools are: then it does not outlive a killed test run."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class GatewayLiveServerTestCase(StaticLiveServerTestCase):
    """Django's live server with a node beside it.

    With ``gateway_redis_url`` (or ``GATEWAY_TEST_REDIS_URL``) the node and the site share that Redis, under a prefix of
    their own; without it the node has its in-memory layer and the site publishes through the API. Sockets go to
    ``self.gateway_url``; users sign in by token (``GatewayCommunicator.force_login``).
    """

    #: Settings of the node, by their names in ``gateway.toml``.
    gateway_config: ClassVar[dict[str, Any]] = {}
    #: Keys of ``settings.GATEWAY``.
    gateway_site: ClassVar[dict[str, Any]] = {}
    gateway_redis_url: ClassVar[str | None] = None
    node: ClassVar[Node]
    gateway_url: ClassVar[str]
    _gateway_settings: ClassVar[Any]

    @classmethod
    def setUpClass(cls) -> None:
        """Starts the live server, then the node."""
        super().setUpClass()
        cls.prepare_gateway()
        mark = secrets.token_hex(4)
        jwt_secret, api_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        redis_url = cls.gateway_redis_url or os.environ.get("GATEWAY_TEST_REDIS_URL")
        site = {key: value for key, value in getattr(settings, "GATEWAY", {}).items() if not key.endswith("_FILE")}
        site |= {"JWT_SECRET": jwt_secret, "API_KEY": api_key, "BACKEND": "api"}
        config: dict[str, Any] = {
            "jwt_secret": jwt_secret,
            "api_key": api_key,
            "allowed_origins": [cls.live_server_url],
            "room_policy": "members",
        }
        changed: dict[str, Any] = {}
        if redis_url:
            site |= {"BACKEND": "redis", "REDIS_URL": redis_url, "NAMESPACE": f"test-{mark}"}
            config |= {"redis_url": redis_url, "layer_prefix": f"test-{mark}", "namespace": f"test-{mark}"}
            layer = {"BACKEND": PUBSUB, "CONFIG": {"hosts": [redis_url], "prefix": f"test-{mark}"}}
            changed["CHANNEL_LAYERS"] = {site.get("LAYER_ALIAS", "default"): layer}
        config |= cls.gateway_config
        site |= cls.gateway_site
        try:
            cls.node = Node(config, program=site.get("BINARY")).start()
        except BaseException:
            cls.doClassCleanups()
            super().tearDownClass()
            raise
        cls.addClassCleanup(cls.node.stop)
        cls.gateway_url = cls.node.url
        site |= {"API_URL": cls.node.api_url, "URL": f"{cls.node.url}/ws/chat/"}
        override = override_settings(GATEWAY=site, **changed)
        override.enable()
        cls.addClassCleanup(override.disable)

    @classmethod
    def prepare_gateway(cls) -> None:
        """For a class that needs ``live_server_url`` to say its ``gateway_config`` and ``gateway_site``."""
