"""``POST /api/events``: for a node with the in-memory layer, and for a site that does not reach Redis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .. import api
from ..exceptions import ApiError, InvalidEvent
from . import Fields


class ApiBackend:
    """Each call waits until a node has stored it."""

    def send(self, entries: Sequence[Fields]) -> None:
        """Returns after the gateway's commit."""
        envelopes = [_envelope(entry) for entry in entries]
        try:
            api.call("POST", api.path("events"), envelopes[0] if len(envelopes) == 1 else envelopes)
        except ApiError as error:
            if error.status in (401, 403):
                raise
            raise InvalidEvent(str(error)) from error


def _envelope(entry: Fields) -> dict[str, Any]:
    to = entry["to"]
    return {**entry, "to": json.loads(to) if to.startswith("[") else to, "data": json.loads(entry["data"])}
