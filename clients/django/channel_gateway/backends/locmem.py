"""Keeps what is sent in a list, for tests: ``channel_gateway.testing.outbox``."""

from __future__ import annotations

from collections.abc import Sequence

from . import Fields

#: What was sent, as stream entries.
sent: list[Fields] = []


class LocmemBackend:
    """What is sent stays in this process."""

    def send(self, entries: Sequence[Fields]) -> None:
        """Appends them."""
        sent.extend(dict(entry) for entry in entries)
