"""The site's settings as ``gateway.toml``, with the secrets beside it as files."""

from __future__ import annotations

import os
import secrets as random
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .conf import Conf, conf, layer_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"
CORE = "channels_redis.core.RedisChannelLayer"

_SESSIONS = "django.contrib.sessions.backends."
ENGINES = ("db", "cached_db", "signed_cookies", "cache")

#: Settings that are lists of secrets: their files have one entry a line.
_LISTS = {"jwt_secret", "django_secret_key", "layer_encryption_keys"}


#: What the gateway takes for a secret, so that a site's own `CONFIG` is no way into the file either.
_SECRETS = {"api_key", "auth_secret", "bridge.secret", *_LISTS}
_URLS = {"redis_url", "database_url", "django.database_url", "django.cache_url"}


@dataclass
class NodeConfig:
    """What a node of this site needs to be told."""

    #: By key of the file; those of a section with a dot.
    plain: dict[str, Any] = field(default_factory=dict)
    #: The same, of what nobody may see. A list has several entries.
    secret: dict[str, list[str]] = field(default_factory=dict, repr=False)
    #: The tables of ``[[bridge]]``; their secrets are in ``secret``, as ``bridge.1.secret`` and so on.
    bridges: list[dict[str, Any]] = field(default_factory=list)
    #: What cannot be said in the file.
    notes: list[str] = field(default_factory=list)


def layer_kind() -> str:
    """``pubsub``, ``core``, or nothing for another layer."""
    backend = layer_config()[0]
    known = {PUBSUB: "pubsub", CORE: "core"}
    if backend in known:
        return known[backend]
    # A class of the site's own that inherits from one of them.
    try:
        found = import_string(backend) if backend else None
    except ImportError:
        return ""
    parents = {f"{each.__module__}.{each.__qualname__}" for each in getattr(found, "__mro__", ())}
    return next((kind for path, kind in known.items() if path in parents), "")


def session_engine() -> tuple[str, str]:
    """The engine's name for the gateway, and why it cannot read the site's sessions (empty if it can)."""
    if "django.contrib.sessions" not in settings.INSTALLED_APPS:
        return "", "django.contrib.sessions is not installed"
    engine = settings.SESSION_ENGINE
    if "ickle" in getattr(settings, "SESSION_SERIALIZER", ""):
        return "", f"SESSION_SERIALIZER {settings.SESSION_SERIALIZER} writes pickles"
    if engine.startswith(_SESSIONS) and engine.removeprefix(_SESSIONS) in ENGINES:
        name = engine.removeprefix(_SESSIONS)
    else:
        # An engine of the site's own on top of Django's: then the name of its class is in the signature.
        try:
            parents = [each.__module__ for each in import_module(engine).SessionStore.__mro__]
        except (ImportError, AttributeError) as error:
            return "", f"SESSION_ENGINE {engine} cannot be imported: {error}"
        found = [each.removeprefix(_SESSIONS) for each in parents if each.startswith(_SESSIONS)]
        name = next((each for each in found if each in ENGINES), "")
        if not name or found[0] not in ENGINES:
            return "", f"SESSION_ENGINE {engine} keeps sessions where the gateway cannot read them"
    if name == "cache" and not _session_cache_url():
        return "", "the cache of the sessions is not in Redis"
    return name, ""


def sign_in(found: Conf) -> tuple[str, ...]:
    """The ways to sign in: as ``GATEWAY["SIGN_IN"]`` says, else all that the settings allow."""
    if found.sign_in is not None:
        return found.sign_in
    ways = []
    if found.jwt_secret:
        ways.append("jwt")
    if not session_engine()[1]:
        ways.append("session")
    if found.auth_url:
        ways.append("auth")
    return tuple(ways)


def node_config() -> NodeConfig:
    """Everything that a node has to be told."""
    found, config = conf(), NodeConfig()
    _layer(config, found)
    _sign_in(config, found)
    if found.api_key:
        config.secret["api_key"] = [found.api_key[0]]
    url = found.database_url or gateway_database_url(found.database)
    _put_url(config, "database_url", url)
    origins = allowed_origins(found)
    if origins:
        config.plain["allowed_origins"] = origins
    for key, value in _flat(found.config).items():
        config.secret.pop(key, None)
        config.plain.pop(key, None)
        if key in _SECRETS:
            config.secret[key] = _texts(value)
        elif key == "bridge" and _has_tables(value):
            _bridges(config, value)
        elif isinstance(value, Mapping) or _has_tables(value):
            raise ImproperlyConfigured(f"GATEWAY['CONFIG'] has tables in {key!r}, where the gateway has none")
        elif key in _URLS and isinstance(value, str):
            _put_url(config, key, value)
        else:
            config.plain[key] = value
    return config


def _has_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) for each in value)


def _bridges(config: NodeConfig, given: Iterable[Any]) -> None:
    for number, table in enumerate(given, 1):
        if not isinstance(table, Mapping):
            raise ImproperlyConfigured(f"GATEWAY['CONFIG']['bridge'] must hold dicts only: number {number} is none")
        plain = {str(key).replace("-", "_"): value for key, value in table.items()}
        if any(isinstance(value, Mapping) or _has_tables(value) for value in plain.values()):
            raise ImproperlyConfigured(f"GATEWAY['CONFIG']['bridge'] has tables in number {number}")
        secret = plain.pop("secret", None)
        if secret:
            config.secret[_secret_of(number)] = _texts(secret)
        config.bridges.append(plain)


def _secret_of(number: int) -> str:
    return f"bridge.{number}.secret"


def _layer(config: NodeConfig, found: Conf) -> None:
    kind, (_, given) = layer_kind(), layer_config()
    if found.redis_url:
        _put_url(config, "redis_url", found.redis_url)
    if kind:
        urls = [redis_url(host) for host in given.get("hosts") or ["redis://localhost:6379"]]
        _put_url(config, "redis_url", ",".join(urls))
        config.plain["layer"] = kind
        config.plain["layer_prefix"] = str(given.get("prefix", "asgi"))
        for key, name, default in (
            ("serializer_format", "layer_serializer", "msgpack"),
            ("expiry", "layer_expiry", 60),
            ("group_expiry", "layer_group_expiry", 86400),
            ("capacity", "layer_capacity", 100),
        ):
            if given.get(key, default) != default:
                config.plain[name] = given[key]
        keys = given.get("symmetric_encryption_keys") or []
        if keys:
            config.secret["layer_encryption_keys"] = [
                each.decode() if isinstance(each, bytes) else str(each) for each in keys
            ]
        if given.get("channel_capacity"):
            config.notes.append("CHANNEL_LAYERS has channel_capacity, which the gateway does not have")
    for name, default in (("namespace", "gateway"), ("user_group", "{username}"), ("raw_group_names", False)):
        if getattr(found, name) != default:
            config.plain[name] = getattr(found, name)


def _sign_in(config: NodeConfig, found: Conf) -> None:
    ways = sign_in(found)
    if found.user_name != "username":
        config.plain["user_name"] = found.user_name
    if "jwt" in ways and found.jwt_secret:
        config.secret["jwt_secret"] = list(found.jwt_secret)
        for name, default in (
            ("jwt_user_claim", "sub"),
            ("jwt_user_id_claim", None),
            ("jwt_audience", None),
            ("jwt_issuer", None),
        ):
            if getattr(found, name) != default:
                config.plain[name] = getattr(found, name)
    if "auth" in ways and found.auth_url:
        config.plain["auth_url"] = found.auth_url
        if found.auth_secret:
            config.secret["auth_secret"] = [found.auth_secret[0]]
    if "session" in ways:
        _sessions(config)
    if "session" in ways or found.jwt_user_id_claim:
        _users(config, found)


def _sessions(config: NodeConfig) -> None:
    engine, wrong = session_engine()
    if wrong:
        config.notes.append(f"the gateway cannot read the sessions: {wrong}")
        return
    fallbacks = getattr(settings, "SECRET_KEY_FALLBACKS", [])
    config.secret["django_secret_key"] = [_text(each) for each in (settings.SECRET_KEY, *fallbacks)]
    config.plain["django.session_engine"] = engine
    config.plain["django.session_cookie_name"] = settings.SESSION_COOKIE_NAME
    if engine == "signed_cookies":
        config.plain["django.session_cookie_age"] = settings.SESSION_COOKIE_AGE
    store = import_module(settings.SESSION_ENGINE).SessionStore
    if engine in ("db", "cached_db"):
        config.plain["django.session_table"] = store.get_model_class()._meta.db_table
    if engine != "signed_cookies" and store.__qualname__ != "SessionStore":
        config.plain["django.session_salt"] = f"django.contrib.sessions.{store.__qualname__}"
    if engine == "cache":
        cache = settings.CACHES[settings.SESSION_CACHE_ALIAS]
        _put_url(config, "django.cache_url", _session_cache_url())
        if cache.get("KEY_PREFIX"):
            config.plain["django.cache_key_prefix"] = cache["KEY_PREFIX"]
        if cache.get("VERSION", 1) != 1:
            config.plain["django.cache_version"] = cache["VERSION"]
        if cache.get("KEY_FUNCTION"):
            config.notes.append("the session cache has a KEY_FUNCTION, which the gateway does not know")
    if settings.AUTHENTICATION_BACKENDS != ["django.contrib.auth.backends.ModelBackend"]:
        config.plain["django.auth_backends"] = list(settings.AUTHENTICATION_BACKENDS)


def _users(config: NodeConfig, found: Conf) -> None:
    meta = get_user_model()._meta
    columns = {each.name: each.column for each in meta.concrete_fields}
    config.plain["django.user_table"] = meta.db_table
    config.plain["django.user_id_column"] = meta.pk.column if meta.pk else "id"
    config.plain["django.user_name_column"] = columns[get_user_model().USERNAME_FIELD]
    config.plain["django.user_password_column"] = columns.get("password", "password")
    config.plain["django.user_active_column"] = columns.get("is_active", "-")
    if not settings.USE_TZ:
        config.plain["django.time_zone"] = settings.TIME_ZONE
    _put_url(config, "django.database_url", database_url("default"))


def _session_cache_url() -> str:
    cache = settings.CACHES.get(settings.SESSION_CACHE_ALIAS, {})
    if "redis" not in str(cache.get("BACKEND", "")).lower():
        return ""
    where = cache.get("LOCATION", "")
    first = where if isinstance(where, str) else (list(where) or [""])[0]
    return str(first).split(",")[0].strip()


def _texts(value: Any) -> list[str]:
    return [_text(each) for each in value] if isinstance(value, (list, tuple)) else [_text(value)]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# ---- addresses ----


def _put_url(config: NodeConfig, key: str, url: str) -> None:
    """Into the file, or, with a password in it, to the secrets."""
    config.plain.pop(key, None)
    config.secret.pop(key, None)
    if "password" in url or any(_has_password(each) for each in url.split(",")):
        config.secret[key] = [url]
    else:
        config.plain[key] = url


def _has_password(url: str) -> bool:
    return "@" in urlsplit(url).netloc


def redis_url(host: Any) -> str:
    """An entry of ``hosts`` as channels_redis has it, as a URL."""
    if isinstance(host, (tuple, list)):
        return f"redis://{_host(str(host[0]))}:{host[1]}"
    if not isinstance(host, Mapping):
        return _text(host)
    if "address" in host:
        return _text(host["address"])
    user = quote(str(host.get("username") or ""), safe="")
    password = quote(str(host.get("password") or ""), safe="")
    login = f"{user}:{password}@" if user or password else ""
    database = f"/{host['db']}" if host.get("db") else ""
    if "master_name" in host:
        where = ",".join(f"{_host(str(name))}:{port}" for name, port in host.get("sentinels", ()))
        return f"redis+sentinel://{login}{where}/{host['master_name']}{database}"
    if "path" in host:
        return f"unix://{login}{host['path']}" + (f"?db={host['db']}" if host.get("db") else "")
    return f"redis://{login}{_host(str(host.get('host', 'localhost')))}:{host.get('port', 6379)}{database}"


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def database_url(alias: str) -> str:
    """A database of the site's, as a URL."""
    if alias not in settings.DATABASES:
        raise ImproperlyConfigured(f"GATEWAY['DATABASE']: there is no database {alias!r}")
    given = settings.DATABASES[alias]
    engine = str(given.get("ENGINE", "")).rpartition(".")[2]
    name = str(given.get("NAME", ""))
    if "sqlite" in engine or "spatialite" in engine:
        path = Path(name)
        return f"sqlite://{quote(str(path if path.is_absolute() else Path.cwd() / path), safe='/')}?mode=rwc"
    scheme = {"postgresql": "postgres", "postgis": "postgres", "mysql": "mysql"}.get(engine)
    if scheme is None:
        raise ImproperlyConfigured(
            f"the gateway has no {engine or 'such'} database: set GATEWAY['DATABASE_URL'] to one of SQLite, PostgreSQL,"
            " MySQL or MariaDB"
        )
    options = given.get("OPTIONS") or {}
    user, password = (quote(str(given.get(key) or ""), safe="") for key in ("USER", "PASSWORD"))
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    host, port = str(given.get("HOST") or ""), str(given.get("PORT") or "")
    query: dict[str, str] = {}
    if host.startswith("/"):
        query["host" if scheme == "postgres" else "socket"] = host
        host = "localhost"
    elif scheme == "mysql" and options.get("unix_socket"):
        query["socket"] = str(options["unix_socket"])
    for key in ("sslmode", "sslrootcert", "sslcert", "sslkey"):
        if scheme == "postgres" and options.get(key):
            query[key] = str(options[key])
    if scheme == "mysql" and isinstance(options.get("ssl"), Mapping) and options["ssl"].get("ca"):
        query |= {"ssl-mode": "VERIFY_CA", "ssl-ca": str(options["ssl"]["ca"])}
    where = _host(host or "localhost") + (f":{port}" if port else "")
    text = f"{scheme}://{login}{where}/{quote(name, safe='')}"
    return text + ("?" + "&".join(f"{key}={quote(value, safe='/')}" for key, value in query.items()) if query else "")


def gateway_database_url(alias: str) -> str:
    """Where the gateway's own tables go: beside the site's, but into a file of their own with SQLite."""
    url = database_url(alias)
    if not url.startswith("sqlite://"):
        return url
    path = url.removeprefix("sqlite://").partition("?")[0]
    return f"sqlite://{path.rpartition('/')[0]}/gateway.db?mode=rwc"


def allowed_origins(found: Conf) -> list[str]:
    """Where pages may come from: ``GATEWAY["ALLOWED_ORIGINS"]``, else the hosts and trusted origins of the site."""
    if found.allowed_origins is not None:
        return list(found.allowed_origins)
    hosts = [host for host in settings.ALLOWED_HOSTS if host != "*"]
    return list(dict.fromkeys([*hosts, *settings.CSRF_TRUSTED_ORIGINS]))


# ---- writing and comparing ----


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        key = str(key).replace("-", "_")
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            found[key] = value
    return found


def environment_name(key: str) -> str:
    """The variable of a setting."""
    return "GATEWAY_" + key.replace(".", "__").upper()


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    quoted = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in quoted) + '"'


def render(config: NodeConfig, directory: Path) -> str:
    """The file's text. ``directory`` is where the secrets are."""
    lines = ["# Settings of the channel gateway for this site, made by `manage.py gateway_config`."]
    if variables := environment(config, directory):
        lines.append(f"# Secrets are in files; the node's environment names them ({directory / ENVIRONMENT}):")
        lines += [f"#   {each}" for each in variables]
    lines += [f"# NOTE: {note}" for note in config.notes]
    sections: dict[str, list[str]] = {"": []}
    for key, value in config.plain.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(f"{name} = {_value(value)}")
    for section, entries in sections.items():
        if section:
            lines += ["", f"[{section}]"]
        lines += entries
    for table in _bridge_tables(config, directory):
        lines += ["", "[[bridge]]", *(f"{name} = {_value(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _bridge_tables(config: NodeConfig, directory: Path) -> list[dict[str, Any]]:
    """The tables as the file has them: no variable could name the secret of one of several."""
    tables = []
    for number, table in enumerate(config.bridges, 1):
        key = _secret_of(number)
        tables.append({**table, "secret_file": secret_path(directory, key)} if key in config.secret else table)
    return tables


#: Beside the secrets: what a service manager reads into the node's environment.
ENVIRONMENT = "gateway.env"


def secret_path(directory: Path, key: str) -> Path:
    """The file of a secret."""
    return directory / key.replace(".", "_")


def environment(config: NodeConfig, directory: Path) -> list[str]:
    """``GATEWAY_…_FILE=PATH`` for each secret; those of ``[[bridge]]`` are named in the file."""
    in_file = {_secret_of(number) for number in range(1, len(config.bridges) + 1)}
    named = [key for key in config.secret if key not in in_file]
    return [f"{environment_name(key)}_FILE={secret_path(directory, key)}" for key in named]


def content(key: str, entries: list[str]) -> str:
    """What stands in a secret's file."""
    wrong = [each for each in entries if "\n" in each or "\r" in each]
    if wrong and key in _LISTS:
        raise ImproperlyConfigured(f"{key} holds a line break, which no list of secrets can")
    return "\n".join(entries) + "\n"


def write_secrets(config: NodeConfig, directory: Path) -> None:
    """Each into a file that nobody else may read; none is ever half written."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for key, entries in config.secret.items():
        _write(secret_path(directory, key), content(key, entries))
    _write(directory / ENVIRONMENT, "".join(f"{line}\n" for line in environment(config, directory)))


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.{random.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


#: What the node takes where the site's settings say nothing.
_DEFAULTS: Final = {
    "namespace": "gateway",
    "user_group": "{username}",
    "raw_group_names": False,
    "user_name": "username",
    "layer_serializer": "msgpack",
    "layer_expiry": 60,
    "layer_group_expiry": 86400,
    "layer_capacity": 100,
    "jwt_user_claim": "sub",
    "jwt_user_id_claim": "",
    "jwt_audience": "",
    "jwt_issuer": "",
    "auth_url": "",
    "allowed_origins": "",
    "django.session_salt": "",
    "django.cache_key_prefix": "",
    "django.cache_version": 1,
    "django.auth_backends": "django.contrib.auth.backends.ModelBackend",
    "django.time_zone": "UTC",
}


def differences(config: NodeConfig, file: Path, directory: Path) -> list[str]:
    """What a file, and the secrets beside it, say otherwise than the site's settings."""
    try:
        given = _flat(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        return [f"{file} cannot be read: {error}"]
    except tomllib.TOMLDecodeError as error:
        return [f"{file} is not TOML: {error}"]
    found = []
    for key, default in _DEFAULTS.items():
        # An empty value is an unset one.
        is_unset = given.get(key) in (None, "", [])
        if key not in config.plain and not is_unset and not _same(given[key], default):
            found.append(f"{key} is {_value(given[key])}; the site has {_value(default)}")
    for key, value in config.plain.items():
        if key not in given:
            found.append(f"{key} is missing; the site has {_value(value)}")
        elif not _same(given[key], value):
            found.append(f"{key} is {_value(given[key])}; the site has {_value(value)}")
    found += _bridge_differences(_bridge_tables(config, directory), given.get("bridge"))
    for key, entries in config.secret.items():
        if key in given:
            if not _same(given[key], entries):
                found.append(f"{key} is another one than the site's")
            continue
        path = secret_path(directory, key)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            found.append(f"{key} is missing: there is no {path}")
        else:
            if text != content(key, entries):
                found.append(f"{key} is another one than the site's, in {path}")
            elif path.stat().st_mode & 0o077:
                found.append(f"{path} can be read by others: chmod 600")
    return found


def _bridge_differences(wanted: list[dict[str, Any]], given: Any) -> list[str]:
    if not wanted:
        return []
    tables = given if _has_tables(given) else []
    if len(tables) != len(wanted):
        return [f"there are {len(tables)} [[bridge]]; the site has {len(wanted)}"]
    found = []
    for number, (table, own) in enumerate(zip(tables, wanted, strict=True), 1):
        for key in dict.fromkeys([*own, *table]):
            if key == "secret":
                found.append(f"bridge {number}: secret stands in the file; the site has it in a file of its own")
            elif key not in table:
                found.append(f"bridge {number}: {key} is missing; the site has {_value(own[key])}")
            elif key not in own:
                found.append(f"bridge {number}: {key} is {_value(table[key])}; the site says nothing of it")
            elif not _same(table[key], own[key]):
                found.append(f"bridge {number}: {key} is {_value(table[key])}; the site has {_value(own[key])}")
    return found


def _same(given: Any, wanted: Any) -> bool:
    def plain(value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    return plain(given) == plain(wanted)
