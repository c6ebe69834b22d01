"""What can go wrong when something is published."""

from __future__ import annotations


class GatewayError(Exception):
    """Whatever this package raises."""


class InvalidEvent(GatewayError, ValueError):
    """It can never work as it is: not JSON, too large, no recipient, a name that cannot be."""


class Unavailable(GatewayError):
    """Redis, or the gateway's API, could not be reached or did not take it.

    Whether it was taken is not known. To publish it again with the same ``id`` is safe: the gateway stores an identity
    once.
    """


class ApiError(GatewayError):
    """The gateway's API refused a call."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
