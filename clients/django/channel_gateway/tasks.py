"""For Celery beat, where Celery is installed: the task ``channel_gateway.relay``."""

from __future__ import annotations

from .relay import relay

try:
    from celery import shared_task
except ImportError:  # pragma: no cover
    pass
else:
    relay_task = shared_task(name="channel_gateway.relay", ignore_result=True)(relay)
