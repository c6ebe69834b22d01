"""``token/``: a token for who is signed in. ``auth/``: the gateway asks who a visitor is (``--auth-url``)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from . import seldom
from .conf import conf
from .envelope import rfc3339
from .exceptions import InvalidEvent
from .names import is_valid_name, name_of, room_name
from .policy import Policy
from .policy import policy as the_policy
from .tokens import make_token, read_token

_View = TypeVar("_View", bound=Callable[..., Any])

try:
    from django.contrib.auth.decorators import login_not_required
except ImportError:  # before Django 5.1

    def login_not_required(view_func: _View) -> _View:
        """Nothing to be exempt from."""
        return view_func


def _is_user(user: Any) -> bool:
    """Signed in, and allowed to: who was deactivated meanwhile is not."""
    return (
        bool(getattr(user, "is_authenticated", False))
        and getattr(user, "pk", None) is not None
        and bool(getattr(user, "is_active", True))
    )


def _rooms(policy: Policy, user: Any, room: str | None) -> list[str] | None:
    """What the policy says, and the room that is asked for, if it may be entered."""
    given = policy.rooms(user)
    rooms = None if given is None else list(dict.fromkeys(room_name(each) for each in given))
    if room is not None and room not in (rooms or ()) and policy.can_enter(user, room):
        rooms = [*(rooms or ()), room]
    return rooms


@never_cache
@login_not_required
@require_http_methods(["GET", "HEAD", "POST"])
def token(request: HttpRequest) -> JsonResponse:
    """``{"token": JWT, "expires_in": SECONDS}`` for the signed-in user, 401 for nobody.

    ``?room=NAME`` asks for the right to one more room: 404 if the policy does not give it.
    """
    policy = the_policy()
    user = policy.user(request)
    if not _is_user(user):
        return JsonResponse({"error": "not signed in"}, status=401)
    room = request.GET.get("room") or None
    try:
        rooms = _rooms(policy, user, room if room and is_valid_name(room) else None)
        signed = make_token(user, rooms=rooms)
    except InvalidEvent as error:
        seldom.error("token", "no token could be made for user %s: %s", user.pk, error)
        return JsonResponse({"error": "this user cannot be signed in"}, status=403)
    except ImproperlyConfigured as error:
        seldom.error("token.settings", "no token could be made: %s", error)
        return JsonResponse({"error": "not configured"}, status=503)
    if room and room not in (rooms or ()):
        return JsonResponse({"error": "no such room"}, status=404)
    return JsonResponse({"token": signed, "expires_in": conf().token_seconds})


@never_cache
@login_not_required
@require_GET
def auth(request: HttpRequest) -> JsonResponse:
    """What the gateway asks with a visitor's credentials.

    200 with ``{"user": {"id", "username"}, "rooms"?, "expires_at"?}`` lets in; 200 with ``{"user": null}`` is nobody;
    401 is a sign-in that does not count (any more). A gateway that does not know the secret gets 404. It takes that for
    a fault of the settings: 503 to visitors, who come back, and a line in its log.
    """
    if not _knows_secret(request):
        seldom.error("auth", "a request to %s came without the right X-Gateway-Secret", request.path)
        return JsonResponse({"error": "not found"}, status=404)
    policy = the_policy()
    expires_at: datetime | None = None
    user = policy.user(request)
    bearer = _bearer(request)
    if not _is_user(user) and bearer:
        found = read_token(bearer)
        if found is None:
            return JsonResponse({"error": "the token does not count"}, status=401)
        user, expires_at = found[0], datetime.fromtimestamp(found[1], timezone.utc)
    if not _is_user(user):
        if _has_bad_session(request):
            return JsonResponse({"error": "the session does not count"}, status=401)
        return JsonResponse({"user": None})
    try:
        name_of(user)
        rooms = _rooms(policy, user, _room_of(request))
    except InvalidEvent as error:
        seldom.error("auth", "user %s cannot be signed in: %s", user.pk, error)
        return JsonResponse({"error": "this user cannot be signed in"}, status=401)
    answer: dict[str, Any] = {"user": {"id": str(user.pk), "username": str(user.get_username())}}
    if rooms is not None:
        answer["rooms"] = rooms
    expires_at = policy.expires_at(user, request) or expires_at
    if expires_at is not None:
        answer["expires_at"] = rfc3339(expires_at)
    return JsonResponse(answer)


def _knows_secret(request: HttpRequest) -> bool:
    given = request.headers.get("X-Gateway-Secret", "")
    # All of them, so that the time says nothing of which one it was.
    fits = [constant_time_compare(given, secret) for secret in conf().auth_secret]
    return bool(given) and True in fits


def _bearer(request: HttpRequest) -> str | None:
    kind, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" and value.strip() else None


def _has_bad_session(request: HttpRequest) -> bool:
    """Whether the visitor's session is forged, expired, unknown, or of somebody who may not be signed in any more.

    A good one in which nobody is logged in, say with a cart, is no sign-in at all.
    """
    if settings.SESSION_COOKIE_NAME not in request.COOKIES:
        return False
    session = getattr(request, "session", None)
    if session is None:
        return False
    # Loading finds out: Django then takes the key away from one that is not there, and empties a forged cookie.
    is_logged_in = SESSION_KEY in session
    is_cookie = settings.SESSION_ENGINE.endswith(".signed_cookies")
    return is_logged_in or session.session_key is None or (is_cookie and not list(session.keys()))


def _room_of(request: HttpRequest) -> str | None:
    """The room in the socket's path, which the gateway gives as ``X-Original-URI``."""
    path = urlsplit(request.headers.get("X-Original-URI", "")).path
    parts = path.rstrip("/").split("/")
    if len(parts) == 4 and parts[:3] == ["", "ws", "chat"]:
        room = unquote(parts[3])
        if is_valid_name(room):
            return room
    return None
