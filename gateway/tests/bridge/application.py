"""What the tests run behind the gateway: an ASGI application by hand, and consumers of Channels."""

import asyncio
import os

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="for these tests only", INSTALLED_APPS=["channels"], LOGGING_CONFIG=None, USE_TZ=True, ALLOWED_HOSTS=["*"]
)
django.setup()

from channels.generic.websocket import AsyncJsonWebsocketConsumer, WebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


def note(what):
    """A line that the test reads."""
    with open(os.environ["TEST_NOTES"], "a") as notes:
        notes.write(f"{what}\n")


class Sync(WebsocketConsumer):
    """What a synchronous consumer does."""

    def connect(self):
        self.count = 0
        headers = [(b"x-from", b"python"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        self.accept(subprotocol=(self.scope["subprotocols"] or [None])[0], headers=headers)

    def receive(self, text_data=None, bytes_data=None):
        self.count += 1
        if bytes_data is not None:
            self.send(bytes_data=bytes_data[::-1])
        elif text_data == "pid":
            self.send(f"{os.getpid()} {self.count}")
        elif text_data == "raise":
            raise ValueError("as it was asked")
        elif text_data.startswith("close "):
            code, reason = text_data.split(" ", 2)[1:]
            self.close(code=int(code), reason=reason)
        else:
            self.send(text_data)

    def disconnect(self, code):
        note(f"sync {code}")


class Json(AsyncJsonWebsocketConsumer):
    """What an asynchronous one does; it accepts from a task of its own."""

    async def connect(self):
        self.accepting = asyncio.create_task(self.accept_later())

    async def accept_later(self):
        await asyncio.sleep(0.05)
        await self.accept()
        await self.send_json({"kwargs": self.scope["url_route"]["kwargs"], "path": self.scope["path"]})

    async def receive_json(self, content):
        if content == "flood":
            has_waited = False
            for number in range(4_000):
                sending = asyncio.ensure_future(self.send(bytes_data=number.to_bytes(4, "little") + bytes(20_000)))
                if not has_waited and not (await asyncio.wait([sending], timeout=1))[0]:
                    has_waited = True
                    note("send waits")
                await sending
            content = "flooded"
        elif content == "sleep":
            await asyncio.sleep(2)
        await self.send_json(content)

    async def disconnect(self, code):
        note(f"json {code}")


class Refuses(AsyncJsonWebsocketConsumer):
    """Closes before it accepts."""

    async def connect(self):
        await self.close()


async def by_hand(scope, receive, send):
    """What no consumer does."""
    assert (await receive())["type"] == "websocket.connect"
    what = scope["query_string"].decode()
    if what == "raise":
        raise RuntimeError("before it accepts")
    if what == "late":
        await asyncio.sleep(60)
    if what == "response":
        await send({"type": "websocket.http.response.start", "status": 418, "headers": [(b"x-tea", b"pot")]})
        await send({"type": "websocket.http.response.body", "body": b"short"})
    if what == "ends":
        await send({"type": "websocket.accept"})
    # And returns.


application = ProtocolTypeRouter(
    {
        "websocket": URLRouter(
            [
                path("ws/sync/", Sync.as_asgi()),
                path("ws/json/<slug:name>/", Json.as_asgi()),
                path("ws/refuses/", Refuses.as_asgi()),
                path("ws/by-hand/", by_hand),
            ]
        )
    }
)
