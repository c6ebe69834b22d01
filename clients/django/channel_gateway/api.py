"""The gateway's internal API, for the admin, ``gateway_sync``, and the backend ``api``."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from .conf import conf
from .exceptions import ApiError, Unavailable

#: Bytes of an answer that are read, at most.
MAX_ANSWER = 64 * 1024 * 1024


def path(*segments: str, **query: Any) -> str:
    """``/api/…`` with each segment quoted, so that a name cannot mean another path."""
    text = "/api/" + "/".join(quote(segment, safe="") for segment in segments)
    given = {key: value for key, value in query.items() if value is not None}
    return f"{text}?{urlencode(given)}" if given else text


def call(method: str, where: str, body: Any = None, *, timeout: float | None = None) -> Any:
    """Calls the API. Raises ``ApiError`` for what it refuses, ``Unavailable`` if there is no answer, or a 5xx."""
    found = conf()
    parts = urlsplit(found.api_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unavailable("GATEWAY['API_URL'] must be http://HOST:PORT")
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Accept": "application/json"}
    if found.api_key:
        headers["Authorization"] = f"Bearer {found.api_key[0]}"
    data = None
    if body is not None:
        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        headers["Content-Type"] = "application/json"
    connection = make(parts.hostname, parts.port, timeout=timeout or max(found.timeout, 5.0))
    try:
        connection.request(method, parts.path.rstrip("/") + where, data, headers)
        answer = connection.getresponse()
        content = answer.read(MAX_ANSWER + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"the gateway's API at {found.api_url} did not answer: {error}") from error
    finally:
        connection.close()
    if len(content) > MAX_ANSWER:
        raise Unavailable("the gateway's API gave too long an answer")
    try:
        value = json.loads(content) if content else None
    except ValueError as error:
        raise Unavailable(f"{found.api_url} is no gateway: its answer is not JSON") from error
    if answer.status >= 500:
        raise Unavailable(f"the gateway's API answered {answer.status}: {_detail(value)}")
    if answer.status >= 400:
        raise ApiError(answer.status, _detail(value))
    return value


def _detail(value: Any) -> str:
    return str(value.get("detail") or value.get("title") or "") if isinstance(value, dict) else ""
