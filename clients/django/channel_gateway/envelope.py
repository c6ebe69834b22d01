"""Envelopes: what is published, as the fields of a stream entry (contract of the gateway's ``docs/publishing.md``)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.utils.functional import Promise
from django.utils.timezone import is_naive, make_aware

from . import names
from .conf import conf
from .exceptions import InvalidEvent
from .ids import new_id

MAX_RECIPIENTS = 1000
MAX_DATA = 64 * 1024
MAX_ID_BYTES = 128
MAX_REASON_BYTES = 123
MAX_DISPLAY_NAME_CHARS = 255

TYPES = (
    "notification",
    "chat",
    "gateway.disconnect",
    "gateway.send",
    "member.add",
    "member.remove",
    "room.put",
)

#: Types whose entries must reach the stream in the order they were made.
ORDERED = ("member.add", "member.remove", "room.put")

#: Frames of the gateway, whose ``type`` no frame of the site's own may have.
OWN_FRAMES = frozenset(
    [
        "chat",
        "notification",
        "ack",
        "history",
        "notifications",
        "seen",
        "resumed",
        "rooms",
        "read",
        "typing",
        "presence",
        "presence_change",
        "redacted",
        "pong",
        "auth",
        "error",
    ]
)

#: Levels of objects and lists in the site's own data.
MAX_LEVELS = 64

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One entry of the stream."""

    fields: dict[str, str] = field(repr=False)

    @property
    def id(self) -> str:
        """The identity, together with the source."""
        return self.fields["id"]

    @property
    def key(self) -> str:
        """What it must keep its order with; empty for most."""
        return self.fields["to"] if self.fields["type"] in ORDERED else ""


class _Encoder(DjangoJSONEncoder):
    """Dates to the microsecond, as the gateway has them."""

    def default(self, o: Any) -> Any:
        if isinstance(o, datetime):
            return rfc3339(o) if not is_naive(o) else o.isoformat()
        if isinstance(o, date):
            return o.isoformat()
        return super().default(o)


def to_json(value: Any) -> str:
    """Compact JSON. Raises ``InvalidEvent`` for what is none, NaN and Infinity included."""
    try:
        text = json.dumps(value, cls=_Encoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"it cannot be written as JSON: {error}") from error
    return whole(text)


def whole(text: str) -> str:
    """The text, with half of a surrogate pair (a text cut in an emoji) as U+FFFD, as the gateway reads it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def rfc3339(moment: datetime) -> str:
    """RFC 3339 in UTC. A time without a zone is one of the site's."""
    if is_naive(moment):
        moment = make_aware(moment)
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def recipients(to: Any) -> list[str]:
    """``user:NAME``, ``room:NAME`` and ``everyone`` for what a caller names: text, users, rooms, lists of them."""
    found = dict.fromkeys(_recipients(to, depth=0))
    if not found:
        raise InvalidEvent("it has no recipient")
    return list(found)


def _recipients(to: Any, depth: int) -> Iterator[str]:
    if isinstance(to, str):
        kind, separator, name = to.partition(":")
        if to == "everyone":
            yield to
        elif separator and kind in ("user", "room"):
            if kind == "user":
                names.check_user(name)
            else:
                names.check_name("a room", name)
            yield str(to)
        else:
            raise InvalidEvent(f"{to!r} is no recipient: write user:NAME or room:NAME, or give a user")
    elif hasattr(to, "get_username"):
        yield f"user:{names.name_of(to)}"
    elif isinstance(to, Iterable) and not hasattr(to, "_meta") and not isinstance(to, (bytes, Mapping)) and depth == 0:
        for each in to:
            yield from _recipients(each, depth + 1)
    elif to is None:
        raise InvalidEvent("it has no recipient")
    else:
        yield f"room:{names.room_name(to)}"


def users(to: Any) -> list[str]:
    """``user:NAME`` for users and for names of users."""
    each = [to] if _is_one(to) else list(to)
    return [f"user:{name_of(user)}" for user in each]


def name_of(user: Any) -> str:
    """What the gateway calls a user. Raises ``InvalidEvent`` for what is none, too."""
    try:
        return names.name_of(user)
    except TypeError as error:
        raise InvalidEvent(str(error)) from error


def rooms(to: Any) -> list[str]:
    """``room:NAME`` for rooms and for names of rooms."""
    each = [to] if _is_one(to) else list(to)
    return [f"room:{names.room_name(room)}" for room in each]


def _is_one(to: Any) -> bool:
    # A lazy object, such as `request.user`, can be iterated as far as Python knows.
    return isinstance(to, str) or hasattr(to, "get_username") or hasattr(to, "_meta") or not isinstance(to, Iterable)


def text(what: str, value: Any) -> str:
    """A text that the gateway can store."""
    if isinstance(value, Promise):
        value = str(value)  # a lazy translation: in the language that is active now
    if not isinstance(value, str):
        raise InvalidEvent(f"{what} must be text, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidEvent(f"{what} holds NUL, which cannot be stored")
    return str(value)


def site_data(data: Any) -> dict[str, Any] | None:
    """The site's own object beside a message."""
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise InvalidEvent("data must be a dict")
    most, written = conf().data_bytes, to_json(dict(data))
    if len(written.encode()) > most:
        raise InvalidEvent(f"data is over {most} bytes")
    if _depth(written) > MAX_LEVELS:
        raise InvalidEvent(f"data has more than {MAX_LEVELS} levels")
    return dict(data)


def _depth(written: str) -> int:
    """How many levels of objects and lists JSON has, outside of its texts."""
    deepest = level = 0
    for bracket in _TEXT.sub("", written):
        if bracket in "[{":
            level += 1
            deepest = max(deepest, level)
        elif bracket in "]}":
            level -= 1
    return deepest


def entries(
    to: Any,
    type: str,
    data: Any,
    *,
    id: Any = None,
    source: str | None = None,
    expires_at: datetime | None = None,
    traceparent: str | None = None,
) -> list[Entry]:
    """The entries for a call: one, or several where it has over 1,000 recipients.

    The identity counts per recipient, so they share it.
    """
    if type not in TYPES:
        raise InvalidEvent(f"type must be one of {', '.join(TYPES)}")
    everyone = recipients(to)
    _check_kinds(type, everyone)
    if not isinstance(data, Mapping):
        raise InvalidEvent("data must be a dict")
    _check_data(type, data)
    written = to_json(dict(data))
    if len(written.encode()) > MAX_DATA:
        raise InvalidEvent("data is over 64 KiB")
    fields = {
        "id": _identity("id", new_id() if id is None else str(id)),
        "source": _identity("source", conf().source if source is None else source),
        "type": type,
        "to": "",
        "data": written,
        "time": rfc3339(datetime.now(timezone.utc)),
    }
    if expires_at is not None:
        if not isinstance(expires_at, datetime):
            raise InvalidEvent("expires_at must be a datetime")
        fields["expires_at"] = rfc3339(expires_at)
    if traceparent is not None:
        if not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent):
            raise InvalidEvent("traceparent must be as W3C has it")
        fields["traceparent"] = traceparent
    made = []
    for start in range(0, len(everyone), MAX_RECIPIENTS):
        some = everyone[start : start + MAX_RECIPIENTS]
        made.append(Entry({**fields, "to": some[0] if len(some) == 1 else to_json(some)}))
    return made


def _identity(what: str, value: Any) -> str:
    found = text(what, value)
    try:
        size = len(found.encode())
    except UnicodeEncodeError as error:
        raise InvalidEvent(f"{what} is not Unicode text") from error
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidEvent(f"{what} must have 1 to {MAX_ID_BYTES} bytes")
    return found


def _check_kinds(type: str, everyone: list[str]) -> None:
    kinds = {each.partition(":")[0] for each in everyone}
    wanted = {
        "chat": ({"room"}, "rooms"),
        "notification": ({"user"}, "users"),
        "gateway.disconnect": ({"user", "room", "everyone"}, ""),
        "gateway.send": ({"user", "room", "everyone"}, ""),
    }.get(type, ({"room"}, "rooms"))
    if not kinds <= wanted[0]:
        raise InvalidEvent(f"{type} goes to {wanted[1]}")
    if "everyone" in kinds and len(everyone) > 1:
        raise InvalidEvent("everyone cannot be one of several")


def _no_number(word: str) -> None:
    """NaN and Infinity: Python reads them, browsers do not."""
    raise ValueError(f"{word} is no JSON")


def _check_data(type: str, data: Mapping[str, Any]) -> None:
    if type in ("chat", "notification"):
        if "message" not in data:
            raise InvalidEvent("data.message is missing")
        text("data.message", data["message"])
        if "from_user" in data:
            names_of_sender = text("data.from_user", data["from_user"])
            if len(names_of_sender) > names.MAX_NAME_CHARS:
                raise InvalidEvent("data.from_user is too long")
        site_data(data.get("data"))
    elif type == "gateway.disconnect":
        code = data.get("code", 4403)
        # The codes that a close frame may carry.
        allowed = (
            isinstance(code, int)
            and not isinstance(code, bool)
            and (code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code <= 4999)
        )
        if not allowed:
            raise InvalidEvent(f"{code!r} is no code that a socket can be closed with")
        if len(text("data.reason", data.get("reason", "")).encode("utf-8", "replace")) > MAX_REASON_BYTES:
            raise InvalidEvent(f"data.reason is over {MAX_REASON_BYTES} bytes")
    elif type == "gateway.send":
        try:
            frame = json.loads(text("data.text", data.get("text")), parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise InvalidEvent("data.text must be a JSON object") from error
        if not isinstance(frame, dict):
            raise InvalidEvent("data.text must be a JSON object")
        kind = frame.get("type")
        if isinstance(kind, (list, dict)) or kind in OWN_FRAMES:
            raise InvalidEvent(f"a frame of the site's own may not have the type {kind!r}")
    elif type in ("member.add", "member.remove"):
        members = data.get("users")
        if not isinstance(members, (list, tuple)) or not members:
            raise InvalidEvent("data.users must be a list of names")
        for name in members:
            names.check_user(text("a name", name))
    elif type == "room.put" and data.get("display_name") is not None:
        length = len(text("data.display_name", data["display_name"]))
        if not 1 <= length <= MAX_DISPLAY_NAME_CHARS:
            raise InvalidEvent(f"data.display_name must have 1 to {MAX_DISPLAY_NAME_CHARS} characters")
