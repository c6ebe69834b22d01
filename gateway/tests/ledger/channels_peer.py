"""What the ledger's clients talk to when they talk to Django Channels: rooms and inboxes, nothing stored.

A message is acknowledged when `group_send` has returned.
"""

import os
from urllib.parse import parse_qs

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="ledger",
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["channels"],
    ROOT_URLCONF=__name__,
    LOGGING_CONFIG=None,
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": {
                "core": "channels_redis.core.RedisChannelLayer",
                "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
            }[os.environ["LAYER"]],
            "CONFIG": {"hosts": [os.environ["REDIS_URL"]]},
        }
    },
)
django.setup()
urlpatterns = []

from channels.generic.websocket import AsyncJsonWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import path  # noqa: E402


class Peer(AsyncJsonWebsocketConsumer):
    async def connect(self):
        query = parse_qs(self.scope["query_string"].decode())
        self.joined = []
        for group in [f"user.{query['user'][0]}", *(f"room.{room}" for room in query["rooms"][0].split(","))]:
            await self.channel_layer.group_add(group, self.channel_name)
            self.joined.append(group)
        await self.accept()

    async def disconnect(self, code):
        for group in self.joined:
            await self.channel_layer.group_discard(group, self.channel_name)

    async def receive_json(self, content):
        if content["cate"] == "chat":
            group = f"room.{content['group_name']}"
            frame = {"type": "chat", "group_name": content["group_name"], "message": content["message"]}
        else:
            group = f"user.{content['user_name']}"
            frame = {"type": "notification", "message": content["message"]}
        await self.channel_layer.group_send(group, {"type": "said", "frame": frame})
        await self.send_json({"type": "ack", "client_id": content["client_id"]})

    async def said(self, event):
        await self.send_json(event["frame"])


application = ProtocolTypeRouter(
    {"http": get_asgi_application(), "websocket": URLRouter([path("ws/chat/", Peer.as_asgi())])}
)
