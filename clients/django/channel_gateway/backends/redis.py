"""One ``XADD`` each to the stream ``<namespace>:events``, over one pool of connections per process."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from ..conf import Conf, conf, layer_config
from ..exceptions import Unavailable
from . import Fields

logger = logging.getLogger("channel_gateway")

# Not all of redis-py says its types.
_Pool: Any = redis.BlockingConnectionPool
_Sentinel: Any = Sentinel

DEFAULT_URL = "redis://localhost:6379"


class RedisBackend:
    """Made once per process, and anew in the child of a fork (``backends.backend``); any thread may use it."""

    def __init__(self) -> None:
        """Connects when something is sent."""
        self._client = client()
        self._stream = f"{conf().namespace}:events"

    def check(self) -> None:
        """Asks for an answer; who holds a lock while it sends looks first whether there is anybody."""
        try:
            self._client.ping()
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {error}") from error

    def send(self, entries: Sequence[Fields]) -> None:
        """Appends all of them; raises ``Unavailable`` if any of them may be missing."""
        try:
            if len(entries) == 1:
                self._client.xadd(self._stream, cast("Any", entries[0]))
                return
            pipeline = self._client.pipeline(transaction=False)
            for entry in entries:
                pipeline.xadd(self._stream, cast("Any", entry))
            pipeline.execute()
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis did not take it: {error}") from error


def client() -> redis.Redis:
    """A client of the Redis that has the stream: ``REDIS_URL``, else the first host of the channel layer."""
    found = conf()
    options = _options(found)
    if found.redis_url:
        return _from_url(found.redis_url, options)
    hosts = layer_config()[1].get("hosts") or [DEFAULT_URL]
    return _from_host(hosts[0], options)


def _options(found: Conf) -> dict[str, Any]:
    return {
        "socket_timeout": found.timeout,
        "socket_connect_timeout": found.timeout,
        # Once more, over a new connection: what was said over one that Redis had closed meanwhile was not heard, and
        # what was heard is stored once all the same.
        "retry": Retry(NoBackoff(), 1),
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
        **found.redis_options,
    }


def _pool(found: Conf) -> dict[str, Any]:
    # More threads than connections wait for one, rather than open any number.
    return {"max_connections": found.max_connections, "timeout": found.timeout + 1}


def _from_host(host: Any, options: dict[str, Any]) -> redis.Redis:
    """As channels_redis reads an entry of ``hosts``."""
    if isinstance(host, (tuple, list)):
        host = {"host": host[0], "port": host[1]}
    if not isinstance(host, Mapping):
        return _from_url(str(host), options)
    given: dict[str, Any] = {**options, **host}
    if "address" in given:
        return _from_url(str(given.pop("address")), given)
    if (master := given.pop("master_name", None)) is not None:
        sentinels = given.pop("sentinels")
        return _sentinel(sentinels, str(master), given, given.pop("sentinel_kwargs", None))
    return redis.Redis(connection_pool=_Pool(**given, **_pool(conf())))


def _from_url(url: str, options: dict[str, Any]) -> redis.Redis:
    """Also ``redis+sentinel://HOST,HOST/NAME`` and ``redis+cluster://``, as the gateway has them."""
    parts = urlsplit(url)
    if parts.scheme == "redis+sentinel":
        where = parts.netloc.rpartition("@")
        given = dict(options)
        if where[1]:
            user, _, password = where[0].partition(":")
            given |= {"username": unquote(user) or None, "password": unquote(password) or None}
        sentinels = [_host_and_port(each, 26379) for each in where[2].split(",")]
        path = parts.path.strip("/").split("/")
        if len(path) > 1:
            given["db"] = int(path[1])
        return _sentinel(sentinels, path[0], given, None)
    if parts.scheme in ("redis+cluster", "rediss+cluster"):
        query = [(key, value) for key, value in parse_qsl(parts.query) if key != "protocol"]
        first = parts.netloc.split(",")[0]
        plain = urlunsplit((parts.scheme.partition("+")[0], first, "", urlencode(query), ""))
        given = {key: value for key, value in options.items() if key not in ("retry", "retry_on_error")}
        return cast("redis.Redis", redis.RedisCluster.from_url(plain, **given))
    return redis.Redis(connection_pool=_Pool.from_url(url, **_pool(conf()), **options))


def _sentinel(sentinels: Any, master: str, options: dict[str, Any], sentinel_options: Any) -> redis.Redis:
    own = sentinel_options or {"socket_timeout": conf().timeout, "socket_connect_timeout": conf().timeout}
    found = _Sentinel([tuple(each) for each in sentinels], sentinel_kwargs=own, **options)
    return cast("redis.Redis", found.master_for(master, max_connections=conf().max_connections))


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "localhost", parts.port or default
