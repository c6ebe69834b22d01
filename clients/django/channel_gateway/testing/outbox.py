"""What was published, with ``GATEWAY["BACKEND"] = "locmem"``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, overload

from django.conf import settings
from django.test import override_settings

from ..backends.locmem import sent


class Event:
    """One published event."""

    def __init__(self, fields: dict[str, str]) -> None:
        """``fields`` are those of the stream entry."""
        self.fields = fields
        self.type = fields["type"]
        self.id = fields["id"]
        self.source = fields["source"]
        to = fields["to"]
        self.to: list[str] = json.loads(to) if to.startswith("[") else [to]
        self.data: dict[str, Any] = json.loads(fields["data"])

    @property
    def message(self) -> str | None:
        """The text of a message."""
        return self.data.get("message")

    @property
    def frame(self) -> dict[str, Any] | None:
        """The site's own frame of a ``gateway.send``."""
        return json.loads(self.data["text"]) if self.type == "gateway.send" else None

    def __repr__(self) -> str:
        """For the output of a test that failed."""
        return f"<Event {self.type} to {', '.join(self.to)}: {self.data}>"


class Outbox(Sequence[Event]):
    """Reads what the backend ``locmem`` has kept."""

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        """One, or some."""
        if isinstance(index, slice):
            return [Event(fields) for fields in sent[index]]
        return Event(sent[index])

    def __len__(self) -> int:
        """How many."""
        return len(sent)

    def __repr__(self) -> str:
        """All of them."""
        return repr(list(self))

    def clear(self) -> None:
        """Forgets them."""
        sent.clear()

    def to(self, recipient: str) -> list[Event]:
        """Those for ``user:NAME``, ``room:NAME`` or ``everyone``."""
        return [event for event in self if recipient in event.to]


#: What was published in this process.
outbox = Outbox()


class GatewayTestMixin:
    """Keeps what a test publishes in ``outbox``, which is empty when it begins."""

    def setUp(self) -> None:
        """Takes the place of the backend."""
        override = override_settings(GATEWAY={**getattr(settings, "GATEWAY", {}), "BACKEND": "locmem"})
        override.enable()
        self.addCleanup(override.disable)  # type: ignore[attr-defined]
        outbox.clear()
        super().setUp()  # type: ignore[misc]
