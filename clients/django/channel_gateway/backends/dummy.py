"""Nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence

from . import Fields


class DummyBackend:
    """For a site that runs without a gateway, say on a developer's machine."""

    def send(self, entries: Sequence[Fields]) -> None:
        """Does nothing."""
