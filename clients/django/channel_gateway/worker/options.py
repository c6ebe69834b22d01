"""What the worker is told on its command line, and the secret."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .listen import Address, Unusable, parse

#: Bytes that a node wants of the secret, at least.
MIN_SECRET_BYTES = 16

SECRET = "GATEWAY_BRIDGE__SECRET"  # noqa: S105
LOG_LEVELS = ("debug", "info", "warning", "error")

logger = logging.getLogger("channel_gateway.worker")


class WrongOptions(Exception):
    """Everything that is wrong, one a line."""


@dataclass(frozen=True)
class Options:
    """Seconds, and numbers of sockets; 0 is no limit."""

    listen: Address
    secret: bytes
    mode: int = 0o600
    processes: int | None = None
    max_sockets: int = 0
    max_age: float = 0
    drain_seconds: float = 20.0
    certificate: str | None = None
    key: str | None = None
    ca: str | None = None
    lifespan: str = "auto"
    loop: str = "auto"
    close_connections: str = "needed"
    log_level: str = "info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The same for both commands."""
    add = parser.add_argument
    add("--listen", metavar="ADDRESS", required=True, help="unix:/run/site/worker.sock, or tcp://0.0.0.0:9100")
    add("--mode", default="0600", help="of the socket's file, octal; default 0600")
    add("--secret-file", metavar="FILE", help=f"the nodes' secret; or {SECRET}, or {SECRET}_FILE")
    add("--processes", type=int, metavar="N", help="worker-1.sock to worker-N.sock, or N ports from the given one on")
    add("--max-sockets", type=int, default=0, metavar="N", help="of one process; default 0: any number")
    add("--max-age", type=float, default=0, metavar="SECONDS", help="then a process drains and a new one follows")
    add("--drain-seconds", type=float, default=20.0, metavar="SECONDS", help="over which sockets leave; default 20")
    add("--certificate", metavar="FILE", help="TLS for tcp://: the chain, PEM")
    add("--key", metavar="FILE", help="its key, where the chain's file does not hold it")
    add("--ca", metavar="FILE", help="a node has to show a certificate of this CA")
    add("--lifespan", choices=("auto", "off"), default="auto", help="off for an application that does not know it")
    add("--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="default: uvloop where it is installed")
    add(
        "--close-connections",
        choices=("needed", "always"),
        default="needed",
        help="when Channels looks for old database connections: where one is open, or before each handler",
    )
    add("--log-level", choices=LOG_LEVELS, default="info")
    add("--noreload", action="store_true", help="do not start again when code changes, under Django's DEBUG")


def read(given: Mapping[str, Any], of_settings: tuple[str, ...] | None = None) -> Options:
    """``given`` are the parsed arguments. Raises ``WrongOptions`` with everything that is wrong."""
    mistakes: list[str] = []
    address = Address()
    try:
        address = parse(given["listen"])
        if given["processes"]:
            address.numbered(given["processes"])
    except (Unusable, ValueError) as error:
        mistakes.append(f"--listen: {error}")
    mode = 0
    try:
        mode = int(str(given["mode"]), 8)
        if not 0 <= mode <= 0o777:
            raise ValueError
    except ValueError:
        mistakes.append(f"--mode: {given['mode']!r} is not an octal mode such as 0660")
    if given["processes"] is not None and given["processes"] < 1:
        mistakes.append("--processes: must be at least 1")
    mistakes += [
        f"--{name.replace('_', '-')}: must not be less than 0"
        for name in ("max_sockets", "max_age", "drain_seconds")
        if not given[name] >= 0
    ]
    if given["certificate"] and address.path is not None:
        mistakes.append("--certificate: TLS is for tcp://; a Unix socket has its --mode")
    if (given["key"] or given["ca"]) and not given["certificate"]:
        mistakes.append("--key and --ca need a --certificate")
    found = b""
    try:
        found = secret(given["secret_file"], os.environ, of_settings)
    except ValueError as error:
        mistakes.append(str(error))
    if mistakes:
        raise WrongOptions("\n".join(mistakes))
    others = (each.name for each in fields(Options) if each.name not in ("listen", "secret", "mode"))
    return Options(listen=address, secret=found, mode=mode, **{name: given[name] for name in others})


def secret(file: str | None, environment: Mapping[str, str], of_settings: tuple[str, ...] | None) -> bytes:
    """The flag's, else the environment's, else the settings'; an empty value is an unset one. Raises ``ValueError``."""
    in_environment, its_file = environment.get(SECRET), environment.get(f"{SECRET}_FILE")
    if file:
        where, found = f"--secret-file {file}", _content(file)
    elif in_environment and its_file:
        raise ValueError(f"both {SECRET} and {SECRET}_FILE are set")
    elif in_environment:
        where, found = SECRET, in_environment.encode()
    elif its_file:
        where, found = f"{SECRET}_FILE {its_file}", _content(its_file)
    elif of_settings:
        where, found = "GATEWAY['BRIDGE_SECRET']", of_settings[0].encode()
    else:
        raise ValueError(
            f"there is no secret: --secret-file, {SECRET}, {SECRET}_FILE or, with Django, GATEWAY['BRIDGE_SECRET'];"
            " the same as the bridge's in gateway.toml"
        )
    if len(found) < MIN_SECRET_BYTES:
        raise ValueError(f"{where}: the secret has {len(found)} bytes, and must have at least {MIN_SECRET_BYTES}")
    return found


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ValueError(f"the secret in {path} cannot be read: {error}") from error


def log_to_stderr(level: str) -> None:
    """Where nobody has said where log lines go."""
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s [%(process)d] %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(level.upper())
