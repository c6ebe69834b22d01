"""Publishing: synchronous, from any thread or process, one ``XADD``."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import DEFAULT_DB_ALIAS, transaction

from . import envelope, relay, seldom
from .backends import backend
from .conf import WHEN, conf
from .envelope import Entry
from .exceptions import GatewayError, InvalidEvent
from .signals import publish_failed


def publish(
    to: Any,
    type: str,
    data: Mapping[str, Any],
    *,
    id: Any = None,
    source: str | None = None,
    when: str | None = None,
    using: str | None = None,
    expires_at: datetime | None = None,
    traceparent: str | None = None,
) -> str:
    """Publishes an event and returns its id.

    ``to`` is ``"user:NAME"``, ``"room:NAME"``, a user, a room, or a list (or queryset) of them; ``"everyone"`` for
    ``gateway.send`` and ``gateway.disconnect``. ``id`` (up to 128 bytes) and ``source`` (``GATEWAY["SOURCE"]``) are
    the identity: the same again changes nothing, so a task that is tried again gives its own.

    ``when``: ``"commit"`` (default: ``GATEWAY["WHEN"]``) sends after the transaction, and not at all if that is rolled
    back; ``"now"`` sends at once; ``"outbox"`` writes a row in the same transaction, which is sent after it, by
    ``gateway_relay`` if not by this process. ``using`` is the database of the transaction.

    Raises ``InvalidEvent`` for what can never work, before anything is sent. With ``"now"``, and with ``"commit"``
    where there is no transaction, ``Unavailable`` when Redis is away. After a transaction nobody is there to catch it:
    then it is logged, and the signal ``publish_failed`` is sent.
    """
    made = envelope.entries(to, type, data, id=id, source=source, expires_at=expires_at, traceparent=traceparent)
    _deliver(made, when, using)
    return made[0].id


def notify(
    user: Any,
    message: Any,
    *,
    data: Mapping[str, Any] | None = None,
    from_user: Any = None,
    **options: Any,
) -> str:
    """Notifies a user, or several: stored in their inboxes, then shown on all their sockets.

    ``data`` is an object of the site's own, up to 16 KiB. ``from_user`` is a name or a user; by default the source.
    The rest is as in ``publish``.
    """
    return publish(envelope.users(user), "notification", _message(message, data, from_user), **options)


def chat(
    room: Any,
    message: Any,
    *,
    from_user: Any = None,
    data: Mapping[str, Any] | None = None,
    **options: Any,
) -> str:
    """Writes a chat message into a room, or several: stored, then shown to all members. As ``notify``."""
    return publish(envelope.rooms(room), "chat", _message(message, data, from_user), **options)


def disconnect(to: Any, *, code: int = 4403, reason: str = "", **options: Any) -> str:
    """Closes every socket of users or rooms (as ``to`` of ``publish``).

    A client comes back by itself after codes below 4400, after 4401 with a new token, and after 4403 not at all.
    """
    data: dict[str, Any] = {"code": code}
    if reason:
        data["reason"] = envelope.text("reason", reason)
    return publish(to, "gateway.disconnect", data, **options)


def send(to: Any, frame: Mapping[str, Any], **options: Any) -> str:
    """Passes on a frame of the site's own, live only: a dict whose ``type`` is none of the gateway's."""
    if not isinstance(frame, Mapping):
        raise InvalidEvent("a frame must be a dict")
    return publish(to, "gateway.send", {"text": envelope.to_json(frame)}, **options)


def announce(message: Any, *, data: Mapping[str, Any] | None = None, **options: Any) -> str:
    """Tells everyone who is connected, on all nodes; nothing is stored.

    The frame is ``{"type": "announcement", "message": TEXT, "data": OBJECT?}``.
    """
    frame: dict[str, Any] = {"type": "announcement", "message": envelope.text("message", message)}
    if (given := envelope.site_data(data)) is not None:
        frame["data"] = given
    return send("everyone", frame, **options)


def add_members(room: Any, users: Any, **options: Any) -> str:
    """Makes users members of a room, which has to be there (``put_room``)."""
    return _members("member.add", room, users, **options)


def remove_members(room: Any, users: Any, **options: Any) -> str:
    """Takes users out of a room; their sockets stop hearing it."""
    return _members("member.remove", room, users, **options)


def put_room(room: Any, *, display_name: Any = None, **options: Any) -> str:
    """Makes a room, or gives it another display name."""
    data = {} if display_name is None else {"display_name": envelope.text("display_name", display_name)}
    return publish(envelope.rooms(room), "room.put", data, **options)


#: Names in one entry: a thousand of the longest would be over 64 KiB.
_MEMBERS = 100


def _members(
    type: str, room: Any, users: Any, *, id: Any = None, when: Any = None, using: Any = None, **rest: Any
) -> str:
    members = list(dict.fromkeys(each.partition(":")[2] for each in envelope.users(users)))
    if not members:
        raise InvalidEvent("it names no user")
    room = envelope.rooms(room)
    made: list[Entry] = []
    for start in range(0, len(members), _MEMBERS):
        # To the same room, so each needs an identity of its own.
        part = id if id is None or start == 0 else f"{id}/{start // _MEMBERS}"
        made += envelope.entries(room, type, {"users": members[start : start + _MEMBERS]}, id=part, **rest)
    _deliver(made, when, using)
    return made[0].id


def _message(message: Any, data: Mapping[str, Any] | None, from_user: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"message": envelope.text("message", message)}
    if from_user is not None:
        content["from_user"] = from_user if isinstance(from_user, str) else envelope.name_of(from_user)
    if data is not None:
        content["data"] = data
    return content


def _deliver(made: list[Entry], when: str | None, using: str | None) -> None:
    when = when or conf().when
    if when not in WHEN:
        raise ValueError(f"when must be one of {', '.join(WHEN)}")
    if when == "outbox":
        relay.keep(made, using)
    elif when == "commit" and transaction.get_connection(using).in_atomic_block:
        # Robust: what this raises must not keep the site's other callbacks from running.
        transaction.on_commit(functools.partial(_after_commit, made), using=using or DEFAULT_DB_ALIAS, robust=True)
    elif when == "commit":
        # Without a transaction this is at once. With autocommit switched off by hand it says so.
        transaction.on_commit(functools.partial(_send, made), using=using or DEFAULT_DB_ALIAS)
    else:
        _send(made)


def _send(made: list[Entry]) -> None:
    backend().send([entry.fields for entry in made])


def _after_commit(made: list[Entry]) -> None:
    try:
        _send(made)
    except GatewayError as error:
        seldom.error(
            "publish",
            "the transaction is committed, but event %s was not published; when='outbox' would have kept it: %s",
            made[0].id,
            error,
        )
        publish_failed.send_robust(sender=None, entries=[entry.fields for entry in made], error=error)


@contextmanager
def quietly(what: str) -> Iterator[None]:
    """For what the site did not call itself: a gateway that is away must not keep it from saving a user."""
    try:
        yield
    except GatewayError as error:
        seldom.error(what, "%s was not published: %s", what, error)
        if not isinstance(error, InvalidEvent):
            publish_failed.send_robust(sender=None, entries=[], error=error)
