"""Publishes live, as any process of a Django site can:  python group_send.py LAYER TO MESSAGE

LAYER is pubsub or core, whichever the site and the gateway use. TO is user:NAME for a notification,
room:NAME for a chat message. REDIS_URL says where Redis is.  pip install channels channels_redis
"""

import hashlib
import os
import re
import sys
import uuid

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings

BACKENDS = {
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
}


def group_of(kind, name):
    """The group of a user's or a room's sockets: the name, where Channels allows it, else its hash."""
    plain = name if kind == "user" else f"chat_{name}"
    taken = kind == "user" and name.startswith(("chat_", "u.", "r."))
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,99}", plain) and not taken:
        return plain
    return kind[0] + "." + hashlib.sha256(name.encode()).hexdigest()[:40]


backend, to, message = sys.argv[1:]
# A Django site has this in its settings.
hosts = [os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")]
settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": BACKENDS[backend], "CONFIG": {"hosts": hosts}}})

kind, name = to.split(":", 1)
event = {"message": message, "from_user": "shop"}
if kind == "user":
    event |= {"type": "notification.message", "cate": "notification", "id": str(uuid.uuid4())}
else:
    event |= {"type": "chat.message", "cate": "chat", "group_name": name}
async_to_sync(get_channel_layer().group_send)(group_of(kind, name), event)
