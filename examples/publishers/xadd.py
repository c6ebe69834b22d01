"""Publishes durably with one XADD:  python xadd.py ID TO MESSAGE

TO is user:NAME for a notification, room:NAME for a chat message. The same ID again changes nothing.
REDIS_URL says where Redis is.  pip install redis
"""

import json
import os
import sys

import redis

event_id, to, message = sys.argv[1:]
client = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), decode_responses=True)
entry = client.xadd(
    "gateway:events",
    {
        "id": event_id,
        "source": "shop",
        "type": "notification" if to.startswith("user:") else "chat",
        "to": to,
        "data": json.dumps({"message": message, "from_user": "shop"}),
    },
)
print(entry)
