"""``settings.GATEWAY``: every key with its default, read whole, with every mistake reported at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

WHEN = ("commit", "now", "outbox")
SIGN_IN = ("jwt", "session", "auth")
SIGNALS = ("logout", "password", "deactivated")

#: Secrets; each may be a list, and each may come from a file named by ``…_FILE``, with one entry a line.
SECRETS = ("JWT_SECRET", "AUTH_SECRET", "API_KEY", "BRIDGE_SECRET")

#: Bytes that the gateway wants of a secret, at least.
MIN_SECRET_BYTES = 16


@dataclass(frozen=True)
class Conf:
    """The keys of ``settings.GATEWAY``, in lower case."""

    # Publishing
    backend: str = "redis"
    layer_alias: str = "default"
    redis_url: str | None = None
    redis_options: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = "gateway"
    source: str = "django"
    when: str = "commit"
    timeout: float = 2.0
    max_connections: int = 10
    data_bytes: int = 16384
    relay_after: float = 5.0
    # Names
    user_name: str = "username"
    user_group: str = "{username}"
    raw_group_names: bool = False
    # Signing in
    sign_in: tuple[str, ...] | None = None
    jwt_secret: tuple[str, ...] = ()
    jwt_algorithm: str = "HS256"
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_user_claim: str = "sub"
    jwt_user_id_claim: str | None = None
    token_seconds: int = 300
    auth_url: str | None = None
    auth_secret: tuple[str, ...] = ()
    policy: str = "channel_gateway.policy.Policy"
    signals: tuple[str, ...] = SIGNALS
    # The page
    url: str = "/ws/chat/"
    # The internal API
    api_url: str = "http://127.0.0.1:9000"
    api_key: tuple[str, ...] = ()
    # The node
    binary: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    database: str = "default"
    database_url: str | None = None
    allowed_origins: tuple[str, ...] | None = None
    secrets_dir: str | None = None
    # The worker
    layer: str = "gateway"
    bridge_secret: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without secrets, as this ends up in tracebacks."""
        return f"<Conf backend={self.backend!r} namespace={self.namespace!r}>"


_KINDS: dict[str, type | tuple[type, ...]] = {
    "timeout": (int, float),
    "relay_after": (int, float),
    "max_connections": int,
    "data_bytes": int,
    "token_seconds": int,
    "raw_group_names": bool,
    "config": Mapping,
    "redis_options": Mapping,
}
_LISTS = {"sign_in", "signals", "allowed_origins", *(name.lower() for name in SECRETS)}
_OPTIONAL = {each.name for each in fields(Conf) if each.default is None} | {name.lower() for name in SECRETS}
_CHOICES: dict[str, tuple[str, ...]] = {
    "when": WHEN,
    "user_name": ("username", "id"),
    "layer": ("gateway", "site"),
    "jwt_algorithm": ("HS256", "HS384", "HS512"),
}


def read(given: Any) -> tuple[Conf, list[str]]:
    """The settings, and what is wrong with them; what is wrong has its default."""
    if not isinstance(given, Mapping):
        return Conf(), ["GATEWAY must be a dict"]
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    known = {each.name.upper() for each in fields(Conf)}
    in_files = {f"{name}_FILE": name for name in SECRETS}
    for key, value in given.items():
        if key in in_files:
            if value in (None, ""):
                continue
            if given.get(in_files[key]):
                mistakes.append(f"GATEWAY has both {in_files[key]!r} and {key!r}")
                continue
            try:
                lines = Path(os.fspath(value)).read_text(encoding="utf-8").splitlines()
            except (OSError, TypeError, UnicodeDecodeError) as error:
                mistakes.append(f"GATEWAY[{key!r}] cannot be read: {error}")
                continue
            values[in_files[key].lower()] = tuple(line for line in lines if line)
        elif key not in known:
            near = difflib.get_close_matches(str(key), [*known, *in_files], n=1)
            mistakes.append(f"GATEWAY has no key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        else:
            name = str(key).lower()
            try:
                value = _value(name, value)
            except ValueError as error:
                mistakes.append(f"GATEWAY[{key!r}] {error}")
            else:
                if value is not None:
                    values[name] = value
    conf = Conf(**values)
    mistakes += _contradictions(conf)
    return conf, mistakes


def _value(name: str, value: Any) -> Any:
    # An empty value is an unset one, as it is for the gateway.
    if value is None or value == "":
        if name in _OPTIONAL or value == "":
            return None
        raise ValueError("must not be None")
    if name in _LISTS:
        entries = (value,) if isinstance(value, str) else value
        if not isinstance(entries, (list, tuple, set, frozenset)) or not all(isinstance(each, str) for each in entries):
            raise ValueError("must be text, or a list of texts")
        return tuple(each for each in entries if each)
    if isinstance(value, Path):
        value = str(value)
    kind = _KINDS.get(name, str)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"must be {_named(kind)}, not {type(value).__name__}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"must be one of {', '.join(_CHOICES[name])}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
        raise ValueError("must be more than 0")
    return value


def _named(kind: type | tuple[type, ...]) -> str:
    words = {str: "text", int: "a whole number", bool: "True or False", Mapping: "a dict"}
    return "a number" if isinstance(kind, tuple) else words.get(kind, kind.__name__)


def _contradictions(conf: Conf) -> list[str]:
    mistakes = []
    for name, allowed in (("sign_in", SIGN_IN), ("signals", SIGNALS)):
        wrong = [each for each in getattr(conf, name) or () if each not in allowed]
        if wrong:
            mistakes.append(f"GATEWAY[{name.upper()!r}] has {wrong[0]!r}; it may hold {', '.join(allowed)}")
    if len(conf.source.encode()) > 128 or "\0" in conf.source:
        mistakes.append("GATEWAY['SOURCE'] must have 1 to 128 bytes")
    before, found, after = conf.user_group.partition("{username}")
    if not found or "{username}" in after:
        mistakes.append("GATEWAY['USER_GROUP'] must hold {username} once")
    elif any(before and (before.startswith(taken) or taken.startswith(before)) for taken in ("chat_", "u.", "r.")):
        mistakes.append("GATEWAY['USER_GROUP'] could give a user's group the name of a room's, or begin with u. or r.")
    return mistakes


@lru_cache(maxsize=1)
def _loaded() -> Conf:
    conf, mistakes = read(getattr(settings, "GATEWAY", {}))
    if mistakes:
        raise ImproperlyConfigured("; ".join(mistakes))
    return conf


def conf() -> Conf:
    """The settings in force. Raises ``ImproperlyConfigured`` with everything that is wrong."""
    return _loaded()


def _changed(*, setting: str, **_: Any) -> None:
    if setting in ("GATEWAY", "CHANNEL_LAYERS"):
        _loaded.cache_clear()


setting_changed.connect(_changed, dispatch_uid="channel_gateway.conf")


def layer_config(alias: str | None = None) -> tuple[str, dict[str, Any]]:
    """Backend and ``CONFIG`` of the site's channel layer; an empty backend where there is none."""
    layers = cast("Mapping[str, Any]", getattr(settings, "CHANNEL_LAYERS", None) or {})
    layer = layers.get(alias or conf().layer_alias) or {}
    return str(layer.get("BACKEND", "")), dict(layer.get("CONFIG") or {})
