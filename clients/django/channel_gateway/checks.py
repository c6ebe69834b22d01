"""``manage.py check --tag gateway``: what would not work, and what to type."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import checks
from django.core.checks import CheckMessage, Error, Info
from django.core.checks import Warning as Warn
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string

from .backends import BACKENDS
from .conf import MIN_SECRET_BYTES, Conf, read
from .policy import REQUIRED
from .toml import CORE, PUBSUB, allowed_origins, database_url, layer_kind, redis_url, session_engine, sign_in

TAG = "gateway"


def register() -> None:
    """Called when the app is ready."""
    checks.register(check_settings, TAG)
    checks.register(check_usernames, TAG, checks.Tags.database)


def check_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """What can be seen without asking anybody."""
    found, mistakes = read(getattr(settings, "GATEWAY", {}))
    if mistakes:
        hint = "The keys and their defaults are in the README of channel-gateway."
        return [Error(mistake, hint=hint, id="gateway.E001") for mistake in mistakes]
    try:
        return [
            *_secrets(found),
            *_layer(found),
            *_names(found),
            *_sessions(found),
            *_classes(found),
            *_database(found),
            *_origins(found),
            *_urls(found),
            *_shared(found),
        ]
    except ImproperlyConfigured as error:
        return [Error(str(error), id="gateway.E001")]


def _secrets(found: Conf) -> Iterable[CheckMessage]:
    ways = sign_in(found)
    if not ways:
        yield Error(
            "Nobody can sign in at the gateway: there is no secret for tokens, and it cannot read the sessions.",
            hint="Set GATEWAY = {'JWT_SECRET': …} to a random text of 32 characters:"
            " python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            id="gateway.E002",
        )
    if "jwt" in ways and not found.jwt_secret:
        yield Error(
            "GATEWAY['SIGN_IN'] has 'jwt', but there is no GATEWAY['JWT_SECRET'].",
            hint="Set GATEWAY['JWT_SECRET'] or GATEWAY['JWT_SECRET_FILE'], or leave 'jwt' out.",
            id="gateway.E002",
        )
    if "auth" in ways and not (found.auth_url and found.auth_secret):
        yield Error(
            "The gateway is to ask Django who a visitor is, but GATEWAY['AUTH_URL'] or ['AUTH_SECRET'] is missing.",
            hint="Set AUTH_URL to the address of the view auth/ as the gateway reaches it, and AUTH_SECRET to a random"
            " text.",
            id="gateway.E002",
        )
    for name in ("jwt_secret", "auth_secret", "api_key", "bridge_secret"):
        if any(len(each.encode()) < MIN_SECRET_BYTES for each in getattr(found, name)):
            yield Error(
                f"GATEWAY[{name.upper()!r}] is shorter than {MIN_SECRET_BYTES} bytes.",
                hint="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                id="gateway.E003",
            )
    if settings.SECRET_KEY and settings.SECRET_KEY in found.jwt_secret:
        yield Warn(
            "GATEWAY['JWT_SECRET'] is Django's SECRET_KEY.",
            hint="Give the tokens a secret of their own, so that one can be changed without the other.",
            id="gateway.W004",
        )
    if not found.api_key and found.backend == "api":
        yield Error(
            "GATEWAY['BACKEND'] is 'api', but there is no GATEWAY['API_KEY'].",
            hint="Set it to the node's --api-key.",
            id="gateway.E002",
        )


def _shared(found: Conf) -> Iterable[CheckMessage]:
    """Where there are workers: handlers that could run once for many sockets."""
    from .worker.options import SECRET

    if not (found.bridge_secret or os.environ.get(SECRET) or os.environ.get(f"{SECRET}_FILE")):
        return
    try:
        from channels.consumer import AsyncConsumer

        # All consumers that have routes are there then.
        import_string(getattr(settings, "ASGI_APPLICATION", None) or "")
    except Exception:
        # Whoever starts it hears why.
        return
    from .suggesting import candidates, consumers

    for cls, name in candidates(dict.fromkeys(consumers(AsyncConsumer))):
        yield Info(
            f"{cls.__module__}.{cls.__qualname__}.{name} only reads its event, and runs once for each socket.",
            hint="With @shared (from channel_gateway import shared) it runs once for all sockets of a node, if it makes"
            " the same of an event for each of them.",
            id="gateway.I001",
        )


def _layer(found: Conf) -> Iterable[CheckMessage]:
    if found.backend != "redis" and not layer_kind():
        return
    if not layer_kind():
        if found.redis_url:
            yield Warn(
                "CHANNEL_LAYERS has no layer of channels_redis, so group_send does not reach the gateway.",
                hint=f"Set CHANNEL_LAYERS['{found.layer_alias}']['BACKEND'] to {PUBSUB!r}, or silence gateway.W005 if"
                " the site publishes with channel_gateway alone.",
                id="gateway.W005",
            )
            return
        yield Error(
            f"CHANNEL_LAYERS['{found.layer_alias}'] is no layer of channels_redis, which the gateway shares.",
            hint=f"Set its BACKEND to {PUBSUB!r} or {CORE!r}, with CONFIG = {{'hosts': [REDIS_URL]}}; or set"
            " GATEWAY['REDIS_URL'] if the site only publishes.",
            id="gateway.E004",
        )
        return
    yield from _shared_redis()


def _shared_redis() -> Iterable[CheckMessage]:
    from .conf import layer_config

    hosts = layer_config()[1].get("hosts") or ["redis://localhost:6379"]
    layer = {_place(redis_url(host)) for host in hosts}
    for alias, cache in settings.CACHES.items():
        if "redis" not in str(cache.get("BACKEND", "")).lower():
            continue
        where = cache.get("LOCATION") or ""
        database = (cache.get("OPTIONS") or {}).get("db", 0)
        places = {_place(each, database) for each in (where.split(",") if isinstance(where, str) else where)}
        if places & layer:
            yield Warn(
                f"The cache '{alias}' is in the same Redis database as the channel layer: cache.clear() deletes the"
                " events that wait there, and an eviction policy for a cache may, too.",
                hint="Give one of them another database, as redis://HOST:6379/1, or better another Redis.",
                id="gateway.W001",
            )


def _place(url: Any, database: Any = 0) -> tuple[str, int, str]:
    """Where a URL leads, as redis-py reads it; ``database`` where it names none."""
    parts = urlsplit(str(url).strip())
    host = parts.hostname or parts.path
    host = "localhost" if host in ("127.0.0.1", "::1") else host
    try:
        port = parts.port or 6379
    except ValueError:
        port = 6379
    in_query = parse_qs(parts.query).get("db", [""])[0]
    in_path = parts.path.strip("/") if parts.hostname else ""
    return host, port, in_query or in_path or str(database)


def _names(found: Conf) -> Iterable[CheckMessage]:
    ways = sign_in(found)
    if found.user_name == "id" and "jwt" in ways and len(ways) > 1 and not found.jwt_user_id_claim:
        yield Error(
            "One user would have two names: tokens would name the username, the other ways to sign in the id.",
            hint="Set GATEWAY['JWT_USER_ID_CLAIM'] = 'user_id', or take one way to sign in with GATEWAY['SIGN_IN'].",
            id="gateway.E005",
        )
    if found.user_name == "username":
        user = get_user_model()
        name = user._meta.get_field(user.USERNAME_FIELD)
        if not getattr(name, "unique", True):
            yield Error(
                f"Two users may share a name: {user.__name__}.{user.USERNAME_FIELD} is not unique.",
                hint="Set GATEWAY['USER_NAME'] = 'id'.",
                id="gateway.E005",
            )
        if name.get_internal_type() == "EmailField" or "email" in name.name:
            yield _refused(f"Users are named by {name.name}, and Channels refuses an @ in the name of a group.")


def _refused(message: str) -> CheckMessage:
    return Warn(
        message,
        hint="Where the site calls group_send, write channel_gateway.group_of(user) for the group's name; or set"
        " GATEWAY['USER_NAME'] = 'id'.",
        id="gateway.W002",
    )


def _sessions(found: Conf) -> Iterable[CheckMessage]:
    wrong, ways = session_engine()[1], sign_in(found)
    if wrong and ways == ("jwt",) and found.sign_in is None and "django.contrib.sessions" in settings.INSTALLED_APPS:
        yield Warn(
            f"Sessions are no way to sign in, only tokens are, as the gateway cannot read the sessions: {wrong}.",
            hint="Say GATEWAY['SIGN_IN'] = ['jwt'] if that is meant, or let the gateway ask Django (AUTH_URL,"
            " AUTH_SECRET).",
            id="gateway.W009",
        )
    if wrong and "session" in ways:
        yield Error(
            f"The gateway cannot read the sessions: {wrong}.",
            hint="Take 'session' out of GATEWAY['SIGN_IN'], and let the gateway ask Django (AUTH_URL, AUTH_SECRET) or"
            " sign in by token (JWT_SECRET).",
            id="gateway.E006",
        )


def _classes(found: Conf) -> Iterable[CheckMessage]:
    policy, backend = "channel_gateway.policy.Policy", "channel_gateway.backends.Backend"
    for key, path, default, methods in (
        ("POLICY", found.policy, policy, REQUIRED),
        ("BACKEND", BACKENDS.get(found.backend, found.backend), backend, ("send",)),
    ):
        try:
            loaded = import_string(path)
        except ImportError as error:
            yield Error(
                f"GATEWAY[{key!r}] cannot be imported: {error}",
                hint="Write the dotted path of a class.",
                id="gateway.E007",
            )
            continue
        missing = [name for name in methods if not callable(getattr(loaded, name, None))]
        if missing:
            yield Error(
                f"GATEWAY[{key!r}]: {path} has no method {missing[0]}.",
                hint=f"Write a class with the methods of {default}.",
                id="gateway.E007",
            )


def _database(found: Conf) -> Iterable[CheckMessage]:
    if found.database_url:
        return
    try:
        url = database_url(found.database)
    except ImproperlyConfigured as error:
        yield Error(str(error), hint="GATEWAY['DATABASE_URL'] = 'postgres://…'", id="gateway.E008")
        return
    if url.startswith("sqlite://") and not settings.DEBUG and (":memory:" in url or "mode=memory" in url):
        yield Warn(
            "The site's database is in memory, which no other process can read.",
            hint="Set GATEWAY['DATABASE_URL'].",
            id="gateway.W006",
        )


def _origins(found: Conf) -> Iterable[CheckMessage]:
    given = allowed_origins(found)
    if "*" in given:
        yield Warn(
            "GATEWAY['ALLOWED_ORIGINS'] is '*': every page of the web may open a socket with a visitor's cookies.",
            hint="Name the site's hosts, as ['example.com', '.example.com'].",
            id="gateway.W003",
        )
    elif "*" in settings.ALLOWED_HOSTS and not given:
        yield Warn(
            "ALLOWED_HOSTS is '*', so it does not say which pages may open a socket; the gateway then takes those whose"
            " origin is the host they ask for.",
            hint="Name the site's hosts in ALLOWED_HOSTS, or in GATEWAY['ALLOWED_ORIGINS'].",
            id="gateway.W003",
        )


def _urls(found: Conf) -> Iterable[CheckMessage]:
    ways = sign_in(found)
    try:
        reverse("channel_gateway:token")
    except NoReverseMatch:
        if "jwt" in ways or "auth" in ways:
            yield Warn(
                "The views token/ and auth/ of channel_gateway are not in the site's URLs.",
                hint="urlpatterns += [path('gateway/', include('channel_gateway.urls'))]",
                id="gateway.W007",
            )
    except Exception:
        # A mistake in the site's URLs is another check's.
        return
    else:
        if ways and not found.jwt_secret and found.sign_in is None:
            yield Warn(
                "There is no GATEWAY['JWT_SECRET'], so the view token/ has no tokens to give.",
                hint="Set it to a random text of 32 characters (python -c 'import secrets;"
                " print(secrets.token_urlsafe(32))'), or say GATEWAY['SIGN_IN'] = ['session'].",
                id="gateway.W008",
            )


def check_usernames(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Whether there are names that Channels refuses as groups."""
    found, mistakes = read(getattr(settings, "GATEWAY", {}))
    user = get_user_model()
    if mistakes or found.user_name != "username" or found.raw_group_names:
        return []
    # Asked for by its tag, Django 4.2 and 5.2 name no databases.
    for database in databases or (user._default_manager.db,):
        if database != user._default_manager.db:
            continue
        odd = user._default_manager.using(database).exclude(
            **{f"{user.USERNAME_FIELD}__regex": r"^[A-Za-z0-9_.-]{1,99}$"}
        )
        try:
            name = odd.values_list(user.USERNAME_FIELD, flat=True).first()
        except (DatabaseError, ImproperlyConfigured):
            # Before the first `migrate`, or without a database.
            return []
        if name is not None:
            return [_refused(f"Channels refuses the names of some users as groups, such as {name!r}.")]
    return []
