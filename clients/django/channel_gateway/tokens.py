"""Short-lived tokens (JWT) with which the browser signs in at the gateway."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

import jwt
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured

from .conf import conf
from .names import name_of


def make_token(user: Any, *, rooms: Iterable[str] | None = None, seconds: int | None = None) -> str:
    """A token for a user, good for ``seconds`` (``GATEWAY["TOKEN_SECONDS"]``: 300)."""
    found = conf()
    if not found.jwt_secret:
        raise ImproperlyConfigured(
            "GATEWAY['JWT_SECRET'] is missing: it signs the tokens, and the gateway needs the same"
        )
    now = int(time.time())
    claims: dict[str, Any] = {
        found.jwt_user_claim: name_of(user),
        "iat": now,
        "exp": now + (found.token_seconds if seconds is None else seconds),
        "jti": uuid.uuid4().hex,
    }
    if found.jwt_user_id_claim:
        claims[found.jwt_user_id_claim] = str(user.pk)
    if found.jwt_audience:
        claims["aud"] = found.jwt_audience
    if found.jwt_issuer:
        claims["iss"] = found.jwt_issuer
    if rooms is not None:
        claims["rooms"] = list(rooms)
    return jwt.encode(claims, found.jwt_secret[0], algorithm=found.jwt_algorithm)


def read_token(token: str) -> tuple[Any, int] | None:
    """The user of a token of ours and its end; ``None`` for any other token, or one that is over."""
    found = conf()
    claim = found.jwt_user_id_claim or found.jwt_user_claim
    for secret in found.jwt_secret:
        try:
            claims = jwt.decode(
                token,
                secret,
                algorithms=[found.jwt_algorithm],
                audience=found.jwt_audience,
                issuer=found.jwt_issuer,
                leeway=0,
                options={"require": ["exp", claim]},
            )
        except jwt.PyJWTError:
            continue
        model = get_user_model()
        by_id = bool(found.jwt_user_id_claim) or found.user_name == "id"
        try:
            user = model._default_manager.get(**{"pk" if by_id else model.USERNAME_FIELD: claims[claim]})
        except (model.DoesNotExist, ValueError, TypeError):
            return None
        return (user, int(claims["exp"])) if getattr(user, "is_active", True) else None
    return None
