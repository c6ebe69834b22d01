"""``{% load gateway %}{% gateway_client %}``: the browser client, without a line of inline script."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from django import template
from django.conf import settings
from django.contrib.staticfiles import finders
from django.forms.utils import flatatt
from django.templatetags.static import static
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..conf import conf
from ..toml import sign_in

register = template.Library()

CLIENT = "channel_gateway/client.js"
PAGE = "channel_gateway/page.js"


@register.simple_tag(takes_context=True)
def gateway_client(
    context: template.Context,
    url: str | None = None,
    *,
    token_url: str | None = None,
    room: str | None = None,
    nonce: str | None = None,
    integrity: bool = True,
) -> SafeString:
    """Loads the client and connects it to ``url`` (``GATEWAY["URL"]``: ``/ws/chat/``).

    The page finds it as ``window.gateway``, and is told by the event ``gateway`` on ``document``. ``token_url`` is
    where it gets tokens, ``""`` for none: then the session's cookie signs in. ``room`` asks for the right to that room.
    """
    request = context.get("request")
    if nonce is None:
        nonce = _nonce(context, request)
    client, page = static(CLIENT), static(PAGE)
    shared: dict[str, Any] = {"crossorigin": "anonymous"}
    if nonce:
        shared["nonce"] = str(nonce)
    token = _token_url(room) if token_url is None else token_url
    preload = {"rel": "modulepreload", "href": client, **shared}
    script = {"type": "module", "src": page, **shared}
    if integrity:
        preload |= _integrity(CLIENT)
        script |= _integrity(PAGE)
    script |= {"data-gateway-client": client, "data-gateway-url": url or conf().url}
    if token:
        script["data-gateway-token"] = token
    return format_html("<link{}>\n<script{}></script>", flatatt(preload), flatatt(script))


def _nonce(context: template.Context, request: Any) -> str | None:
    """Django's (6.0) or django-csp's. Both make it when it is first read, and are false until then."""
    for given in (
        context.get("csp_nonce"),
        getattr(request, "csp_nonce", None),
        getattr(request, "_csp_nonce", None),
    ):
        if given is not None:
            return str(given)
    return None


def _token_url(room: str | None) -> str:
    if "jwt" not in sign_in(conf()):
        return ""
    try:
        url = reverse("channel_gateway:token")
    except NoReverseMatch as error:
        raise template.TemplateSyntaxError(
            "gateway_client needs path('gateway/', include('channel_gateway.urls')) in the site's URLs, or token_url"
        ) from error
    if room:
        from urllib.parse import quote

        url += f"?room={quote(room, safe='')}"
    return url


def _integrity(name: str) -> dict[str, str]:
    digest = _digest(name) if settings.DEBUG else _cached_digest(name, settings.STATIC_ROOT, settings.STATIC_URL)
    return {"integrity": digest} if digest else {}


@lru_cache(maxsize=16)
def _cached_digest(name: str, _root: Any, _url: Any) -> str:
    return _digest(name)


def _digest(name: str) -> str:
    """Of the file as it is served; empty if it cannot be read here."""
    content = None if settings.DEBUG else _stored(name)
    if content is None:
        found = finders.find(name)
        content = Path(str(found)).read_bytes() if found else None
    if content is None:
        return ""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def _stored(name: str) -> bytes | None:
    """As `collectstatic` left it: a storage may have changed it."""
    from django.contrib.staticfiles.storage import staticfiles_storage

    try:
        stored = getattr(staticfiles_storage, "stored_name", lambda same: same)(name)
        with staticfiles_storage.open(stored) as file:
            return bytes(file.read())
    except Exception:  # any storage, with any error: then the packaged file is what there is
        return None
