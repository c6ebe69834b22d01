"""The outbox: rows written in the site's transactions, sent after them.

Who committed sends at once and deletes. What that did not do, because the process died or Redis was away, ``relay``
does. Both may send the same: the gateway stores an identity once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import Error as DatabaseError
from django.db import router, transaction
from django.utils import timezone

from . import seldom
from .backends import backend
from .conf import conf
from .envelope import Entry
from .exceptions import GatewayError, InvalidEvent
from .signals import publish_failed

#: Rows that one transaction sends, at most.
BATCH = 100

#: Seconds in which nobody tries at once, after Redis did not answer: requests must not all wait for it.
_PAUSE = 2.0

#: Seconds in which somebody else may finish with a key, and how often to look.
_PATIENCE = 0.5
_TRIES = 10
_paused_until = 0.0


def database(using: str | None = None) -> str:
    """The database whose transactions the outbox is in."""
    from .models import Outbox

    if using is not None and router.allow_migrate_model(using, Outbox):
        return using
    return str(router.db_for_write(Outbox))


def keep(entries: Sequence[Entry], using: str | None = None) -> None:
    """Writes rows in the caller's transaction, and sends them after it if Redis is there."""
    from .models import Outbox

    db = database(using)
    now = timezone.now()
    rows = [Outbox(fields=json.dumps(entry.fields), key=entry.key[:255], created_at=now) for entry in entries]
    with transaction.atomic(using=db, savepoint=False):
        for row in rows:
            # One by one: not every database tells the ids of many.
            row.save(using=db, force_insert=True)
    transaction.on_commit(functools.partial(_at_once, db, rows), using=db, robust=True)


def _at_once(db: str, rows: Sequence[Any]) -> None:
    global _paused_until
    if time.monotonic() < _paused_until:
        return
    try:
        keys = list(dict.fromkeys(row.key for row in rows if row.key))
        plain = [row for row in rows if not row.key]
        _send_rows(db, plain)
        if keys:
            _check()
        for key in keys:
            _send_key(db, key, tries=_TRIES)
    except GatewayError as error:
        _paused_until = time.monotonic() + _PAUSE
        seldom.warning("outbox", "events wait in the outbox, as they could not be sent: %s", error)
    except DatabaseError as error:
        seldom.warning("outbox", "events stay in the outbox: %s", error)


def relay(*, older_than: float | None = None, batch: int = BATCH, using: str | None = None) -> int:
    """Sends what is older than ``older_than`` seconds (``GATEWAY["RELAY_AFTER"]``), and returns how many.

    Any number may run at once. Raises ``Unavailable`` when Redis is away; the rows then stay.
    """
    db = database(using)
    age = conf().relay_after if older_than is None else older_than
    before = timezone.now() - timedelta(seconds=age)
    total = 0
    if waiting(using):
        _check()
    while sent := _send_plain(db, before, batch):
        total += sent
    for key in _keys(db, before):
        while sent := _send_key(db, key, batch=batch):
            total += sent
    return total


def waiting(using: str | None = None) -> int:
    """How many events wait."""
    from .models import Outbox

    count: int = Outbox._default_manager.using(database(using)).count()
    return count


def _send_plain(db: str, before: Any, batch: int) -> int:
    from .models import Outbox

    with transaction.atomic(using=db):
        rows = _locked(db, Outbox._default_manager.using(db).filter(key="", created_at__lte=before), skip=True)
        return _send_rows(db, list(rows[:batch]))


def _keys(db: str, before: Any) -> list[str]:
    from .models import Outbox

    old = Outbox._default_manager.using(db).filter(created_at__lte=before).exclude(key="")
    return list(old.order_by("key").values_list("key", flat=True).distinct()[:1000])


def _send_key(db: str, key: str, *, tries: int = 1, batch: int = BATCH) -> int:
    """Sends the oldest of a key, in order.

    While one process does so, others try again for a while, then leave it to the relay: a request must not wait for
    long, and many of them not for each other.
    """
    from .models import Outbox

    for left in reversed(range(tries)):
        try:
            with transaction.atomic(using=db):
                rows = _locked(db, Outbox._default_manager.using(db).filter(key=key), skip=False)
                return _send_rows(db, list(rows[:batch]))
        except DatabaseError:
            if left:
                time.sleep(_PATIENCE / tries)
    return 0


def _check() -> None:
    """Whether anybody answers, before a lock is taken: while it is held, SQLite has no other writer."""
    check = getattr(backend(), "check", None)
    if check is not None:
        check()


def _locked(db: str, rows: Any, *, skip: bool) -> Any:
    """The rows in order, with a lock where the database has one."""
    has = transaction.get_connection(db).features
    rows = rows.order_by("pk")
    if not has.has_select_for_update:
        # SQLite has one writer: whoever writes first, even nothing, is alone until the end of the transaction.
        rows.model._default_manager.using(db).filter(pk=-1).update(key="")
        return rows
    if skip and has.has_select_for_update_skip_locked:
        return rows.select_for_update(skip_locked=True)
    if not skip and has.has_select_for_update_nowait:
        return rows.select_for_update(nowait=True)
    return rows.select_for_update()


def _send_rows(db: str, rows: Sequence[Any]) -> int:
    if not rows:
        return 0
    entries = [json.loads(row.fields) for row in rows]
    try:
        backend().send(entries)
    except InvalidEvent:
        # Of the backend `api`: a room that does not exist, say. That one must not keep the others.
        for entry in entries:
            _send_or_drop(entry)
    type(rows[0])._default_manager.using(db).filter(pk__in=[row.pk for row in rows]).delete()
    return len(rows)


def _send_or_drop(entry: dict[str, str]) -> None:
    try:
        backend().send([entry])
    except InvalidEvent as error:
        seldom.error("outbox.refused", "event %s of the outbox is dropped: %s", entry.get("id"), error)
        publish_failed.send_robust(sender=None, entries=[entry], error=error)


class Stop:
    """A ``threading.Event`` that a signal may set: setting an event while its own thread waits for it can hang."""

    def __init__(self) -> None:
        """Not set."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def set(self) -> None:
        """From any thread, or a signal's handler."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"x")

    def is_set(self) -> bool:
        """Whether it is."""
        return self.wait(0)

    def wait(self, timeout: float) -> bool:
        """Until it is set, or so many seconds."""
        return bool(select.select([self._reader], [], [], timeout)[0])


def run(stop: Any, *, interval: float = 1.0, older_than: float | None = None, using: str | None = None) -> None:
    """Relays until ``stop`` (a ``Stop`` or ``threading.Event``) is set; what goes wrong is logged and tried again."""
    from django.db import close_old_connections

    failing = False
    while not stop.is_set():
        try:
            close_old_connections()
            relay(older_than=older_than, using=using)
        except (GatewayError, DatabaseError) as error:
            if not failing:
                seldom.logger.warning("the outbox cannot be relayed: %s", error)
            failing = True
        else:
            if failing:
                seldom.logger.warning("the outbox is relayed again")
            failing = False
        stop.wait(interval)


def _in_child() -> None:
    global _paused_until
    _paused_until = 0.0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
