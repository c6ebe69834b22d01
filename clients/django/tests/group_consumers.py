"""Consumers of groups as sites have them, the Channels tutorial's among them, word for word."""

import asyncio
import contextlib
import json
import os

from asgiref.sync import async_to_sync
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path, re_path

from channel_gateway import shared


class TutorialSync(WebsocketConsumer):
    """Part 2 of the tutorial, from `chat/consumers.py`."""

    def connect(self):
        self.room_name = self.scope["url_route"]["kwargs"]["room_name"]
        self.room_group_name = f"chat_{self.room_name}"

        # Join room group
        async_to_sync(self.channel_layer.group_add)(self.room_group_name, self.channel_name)

        self.accept()

    def disconnect(self, close_code):
        # Leave room group
        async_to_sync(self.channel_layer.group_discard)(self.room_group_name, self.channel_name)

    # Receive message from WebSocket
    def receive(self, text_data):
        text_data_json = json.loads(text_data)
        message = text_data_json["message"]

        # Send message to room group
        async_to_sync(self.channel_layer.group_send)(self.room_group_name, {"type": "chat.message", "message": message})

    # Receive message from room group
    def chat_message(self, event):
        message = event["message"]

        # Send message to WebSocket
        self.send(text_data=json.dumps({"message": message}))


class Tutorial(AsyncWebsocketConsumer):
    """Part 3."""

    async def connect(self):
        self.room_name = self.scope["url_route"]["kwargs"]["room_name"]
        self.room_group_name = f"chat_{self.room_name}"

        # Join room group
        await self.channel_layer.group_add(self.room_group_name, self.channel_name)

        await self.accept()

    async def disconnect(self, close_code):
        # Leave room group
        await self.channel_layer.group_discard(self.room_group_name, self.channel_name)

    # Receive message from WebSocket
    async def receive(self, text_data):
        text_data_json = json.loads(text_data)
        message = text_data_json["message"]

        # Send message to room group
        await self.channel_layer.group_send(self.room_group_name, {"type": "chat.message", "message": message})

    # Receive message from room group
    async def chat_message(self, event):
        message = event["message"]

        # Send message to WebSocket
        await self.send(text_data=json.dumps({"message": message}))


class Counted:
    """How often handlers have run."""

    runs = {}

    @classmethod
    def count(cls, what):
        cls.runs[what] = cls.runs.get(what, 0) + 1


class TutorialShared(Tutorial):
    """The same with one line."""

    @shared
    async def chat_message(self, event):
        Counted.count("shared")
        await super().chat_message(event)


class TutorialSyncShared(TutorialSync):
    """The synchronous one with it."""

    @shared
    def chat_message(self, event):
        Counted.count("shared_sync")
        super().chat_message(event)


class Named(AsyncJsonWebsocketConsumer):
    """Made with an argument, by which its sockets differ."""

    groups = ["named"]

    def __init__(self, name, **more):
        super().__init__(**more)
        self.name = name

    @shared
    async def named(self, event):
        Counted.count(f"named_{self.name}")
        await self.send_json({"name": self.name, "text": event["text"]})


class NotShared(AsyncJsonWebsocketConsumer):
    """Says that its handlers are shared, and they are not."""

    groups = ["not-shared"]

    async def connect(self):
        self.mine = 0
        await self.accept()

    @shared
    async def counts(self, event):
        Counted.count("counts")
        self.mine += 1
        await self.send_json(self.mine)

    @shared
    async def closes(self, event):
        await self.close(4001)

    @shared
    async def closes_quietly(self, event):
        with contextlib.suppress(BaseException):
            await self.close(4002)

    @shared
    async def reads(self, event):
        await self.send_json(self.scope["path"])

    @shared
    async def reads_all(self, event):
        await self.send_json(sorted(vars(self).keys() & {"mine", "scope"}))

    @shared
    async def fails(self, event):
        Counted.count("fails")
        raise ValueError("as asked")


class Stays(AsyncJsonWebsocketConsumer):
    """Goes on with another worker, and knows how far it was."""

    gateway_reattach = True

    async def connect(self):
        again = self.scope["extensions"].get("gateway.reattach")
        if not again:
            self.gateway_state = {"heard": 0}
        elif self.gateway_state != again["state"]:
            raise RuntimeError("two states")
        await self.channel_layer.group_add("news", self.channel_name)
        await self.accept()
        if not again:
            await self.send_json("welcome")

    async def disconnect(self, code):
        await self.channel_layer.group_discard("news", self.channel_name)

    async def receive_json(self, content):
        await self.send_json({"echo": content, "pid": os.getpid()})

    async def news(self, event):
        self.gateway_state = {"heard": self.gateway_state["heard"] + 1}
        await self.send_json({"by": event["by"], "number": event["number"], **self.gateway_state})


class JoinsLate(AsyncJsonWebsocketConsumer):
    """Joins a group while its worker leaves, and says when it goes on."""

    gateway_reattach = True

    async def connect(self):
        if self.scope["extensions"].get("gateway.reattach"):
            print("goes on", flush=True)
            await self.channel_layer.group_add("late", self.channel_name)
        await self.accept()

    async def receive_json(self, content):
        await self.send_json("begun")
        await asyncio.sleep(content)
        await self.channel_layer.group_add("late", self.channel_name)
        await self.channel_layer.group_send("late", {"type": "late"})

    async def late(self, event):
        await self.send_json("late")


class Greets(Stays):
    """The same on another server, or one that does not ask for it."""

    gateway_reattach = False


class Lingers(AsyncJsonWebsocketConsumer):
    """Is in a group, and takes its time to leave."""

    groups = ["lingers"]
    #: What `disconnect` waits for.
    may_end: asyncio.Event

    async def disconnect(self, code):
        await self.may_end.wait()
        await self.channel_layer.group_discard("lingers", self.channel_name)

    async def said(self, event):
        await self.send_json(event["text"])


class Late(AsyncWebsocketConsumer):
    """Joins and leaves groups when its client has gone."""

    #: Whether it has begun to wait for `may_join`, or to connect.
    waits: asyncio.Event
    may_join: asyncio.Event
    #: What was done, in its order.
    done = []

    async def joins(self, where):
        await self.channel_layer.group_add("late", self.channel_name)
        await self.channel_layer.group_discard("late", self.channel_name)
        Late.done.append(where)

    async def connect(self):
        if self.scope["query_string"] != b"connect":
            await self.accept()
            return
        Late.waits.set()
        await Late.may_join.wait()
        await self.joins("connect")

    async def receive(self, text_data):
        Late.waits.set()
        await Late.may_join.wait()
        await self.joins("receive")

    async def disconnect(self, code):
        await self.joins("disconnect")
        Late.done.append(code)


class LateSync(WebsocketConsumer):
    """The synchronous one; the node is told of the end while it joins."""

    def connect(self):
        async_to_sync(self.channel_layer.group_add)("late", self.channel_name)
        Late.done.append("connect")

    def disconnect(self, code):
        async_to_sync(self.channel_layer.group_add)("late", self.channel_name)
        async_to_sync(self.channel_layer.group_discard)("late", self.channel_name)
        Late.done += ["disconnect", code]


class Ordered(JsonWebsocketConsumer):
    """Sends to its client and then to a group."""

    groups = ["ordered"]

    def receive_json(self, content):
        for number in range(content):
            self.send_json(["own", number])
            async_to_sync(self.channel_layer.group_send)("ordered", {"type": "said", "number": number})

    def said(self, event):
        self.send_json(["group", event["number"]])


class Asks(AsyncJsonWebsocketConsumer):
    """Tells its channel's name, and what comes for it."""

    async def receive_json(self, content):
        await self.send_json(self.channel_name)

    async def direct_message(self, event):
        await self.send_json(event)


def application():
    routes = [
        re_path(r"ws/tutorial/(?P<room_name>\w+)/$", Tutorial.as_asgi()),
        re_path(r"ws/tutorial-sync/(?P<room_name>\w+)/$", TutorialSync.as_asgi()),
        re_path(r"ws/shared/(?P<room_name>\w+)/$", TutorialShared.as_asgi()),
        re_path(r"ws/shared-sync/(?P<room_name>\w+)/$", TutorialSyncShared.as_asgi()),
        path("ws/named/one/", Named.as_asgi(name="one")),
        path("ws/named/two/", Named.as_asgi(name="two")),
        path("ws/not-shared/", NotShared.as_asgi()),
        path("ws/stays/", Stays.as_asgi()),
        path("ws/greets/", Greets.as_asgi()),
        path("ws/joins-late/", JoinsLate.as_asgi()),
        path("ws/lingers/", Lingers.as_asgi()),
        path("ws/late/", Late.as_asgi()),
        path("ws/late-sync/", LateSync.as_asgi()),
        path("ws/ordered/", Ordered.as_asgi()),
        path("ws/asks/", Asks.as_asgi()),
    ]
    return ProtocolTypeRouter({"websocket": URLRouter(routes)})
