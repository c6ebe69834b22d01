"""What the tests share."""

import json
import uuid

import redis
from django.conf import settings
from django.test import override_settings

from channel_gateway import seldom

CLIENT = redis.Redis.from_url(settings.REDIS_URL, decode_responses=True)


def gateway(**changed):
    """The site's settings of the gateway, changed."""
    return override_settings(GATEWAY={**settings.GATEWAY, **changed})


class LogMixin:
    """Each test sees the lines that come once in a minute."""

    def setUp(self):
        seldom._last.clear()
        super().setUp()


class StreamMixin:
    """A stream of the test's own in a real Redis."""

    when = "commit"

    def setUp(self):
        seldom._last.clear()
        self.namespace = f"test-{uuid.uuid4().hex[:8]}"
        override = gateway(NAMESPACE=self.namespace, WHEN=self.when)
        override.enable()
        self.addCleanup(override.disable)
        self.addCleanup(CLIENT.delete, f"{self.namespace}:events")
        super().setUp()

    def entries(self):
        """The fields of all entries, in order."""
        return [fields for _, fields in CLIENT.xrange(f"{self.namespace}:events")]

    def short(self):
        """Type, recipients and data of all entries."""
        return [(each["type"], each["to"], json.loads(each["data"])) for each in self.entries()]
