"""Whoever logs out, gets a new password, or is deactivated: their sockets end."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.db.models.signals import post_delete, post_save, pre_save

from . import memberships, publishing
from .conf import conf
from .exceptions import GatewayError
from .names import is_valid_name, name_of

_UID = "channel_gateway"
_NOTE = "_gateway_user_before"


def connect() -> None:
    """Called once all models are there."""
    user = get_user_model()
    user_logged_out.connect(_logged_out, dispatch_uid=_UID)
    for sender in memberships.senders(user):
        pre_save.connect(_before, sender=sender, dispatch_uid=_UID)
        post_save.connect(_saved, sender=sender, dispatch_uid=_UID)
        post_delete.connect(_deleted, sender=sender, dispatch_uid=_UID)
    memberships.connect()


def _close(user: Any, code: int, reason: str, using: str | None = None) -> None:
    with publishing.quietly("gateway.disconnect"):
        publishing.disconnect(f"user:{name_of(user)}", code=code, reason=reason, using=using)


def _logged_out(*, user: Any = None, **_: Any) -> None:
    # Nobody was signed in, or the user is of another model, from a backend of the site's own.
    if "logout" in conf().signals and getattr(user, "pk", None) is not None and hasattr(user, "get_username"):
        _close(user, 4401, "signed out")


def _before(*, instance: Any, raw: bool, using: str, update_fields: Any = None, **_: Any) -> None:
    instance.__dict__.pop(_NOTE, None)
    watched = {"password": "password" in conf().signals, "is_active": "deactivated" in conf().signals}
    watched[type(instance).USERNAME_FIELD] = conf().user_name == "username"
    names = {field.name for field in instance._meta.concrete_fields}
    wanted = [name for name, is_on in watched.items() if is_on and name in names]
    if update_fields is not None:
        # A log-in saves `last_login` alone.
        wanted = [name for name in wanted if name in update_fields]
    if raw or not wanted or instance.pk is None or instance._state.adding:
        return
    row = get_user_model()._base_manager.using(using).filter(pk=instance.pk).values(*wanted).first()
    if row is not None:
        instance.__dict__[_NOTE] = row


def _saved(*, instance: Any, raw: bool, using: str, **_: Any) -> None:
    before = instance.__dict__.pop(_NOTE, None)
    if raw or not before:
        return
    old = before.get(type(instance).USERNAME_FIELD)
    is_renamed = old is not None and old != instance.get_username()
    if is_renamed:
        # To the gateway that is somebody else, and the sockets are the old one's.
        memberships.renamed(instance, str(old), using)
        if not is_valid_name(str(old)):
            return
    who = str(old) if is_renamed else instance
    if before.get("is_active") and not instance.is_active:
        _close(who, 4403, "deactivated", using)
    elif is_renamed and "logout" in conf().signals:
        _close(who, 4401, "renamed", using)
    elif "password" in before and before["password"] != instance.password:
        _close(who, 4401, "password changed", using)


def _deleted(*, instance: Any, using: str, **_: Any) -> None:
    if "deactivated" not in conf().signals:
        return
    try:
        name_of(instance)
    except GatewayError:
        return
    _close(instance, 4403, "deleted", using)
