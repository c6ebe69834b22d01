"""The site's consumers, as a site has them: one of every class, and some that nobody here wrote."""

import asyncio

from channels.auth import AuthMiddlewareStack
from channels.consumer import AsyncConsumer
from channels.db import database_sync_to_async
from channels.exceptions import DenyConnection, StopConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path, re_path


class Kept:
    """What the tests look at."""

    ends = []


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=text_data, bytes_data=bytes_data)

    async def disconnect(self, code):
        Kept.ends.append(("Echo", code))


class SyncEcho(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data=text_data, bytes_data=bytes_data)

    def disconnect(self, code):
        Kept.ends.append(("SyncEcho", code))


class Json(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content):
        await self.send_json({"got": content})


class SyncJson(JsonWebsocketConsumer):
    def receive_json(self, content):
        self.send_json({"got": content})


class Plain(AsyncConsumer):
    async def websocket_connect(self, message):
        await self.send({"type": "websocket.accept"})

    async def websocket_receive(self, message):
        await self.send({"type": "websocket.send", "text": message["text"].upper()})

    async def websocket_disconnect(self, message):
        Kept.ends.append(("Plain", message["code"]))
        raise StopConsumer


class Talk(AsyncJsonWebsocketConsumer):
    """Does what it is told."""

    async def connect(self):
        self.count = 0
        what = self.scope["url_route"]["kwargs"]["what"]
        if what == "deny":
            raise DenyConnection
        if what == "close":
            await self.close()
            # As consumers do that were written for Daphne.
            await self.send_json({"never": "seen"})
        elif what == "fault":
            raise RuntimeError("asked to")
        elif what == "subprotocol":
            await self.accept(subprotocol="two", headers=[(b"x-room", b"lobby")])
        elif what == "later":
            self.task = asyncio.create_task(self.later())
        else:
            await self.accept()

    async def later(self):
        await asyncio.sleep(0.05)
        await self.accept()
        await self.send_json({"later": True})

    async def receive_json(self, content):
        self.count += 1
        await getattr(self, f"do_{content.pop('do')}")(**content)

    async def do_count(self):
        await self.send_json({"count": self.count})

    async def do_who(self):
        user = self.scope["user"]
        await self.send_json({"user": user.username, "signed_in": user.is_authenticated})

    async def do_users(self):
        from django.contrib.auth.models import User

        names = await database_sync_to_async(lambda: sorted(User.objects.values_list("username", flat=True)))()
        await self.send_json({"users": names})

    async def do_session(self, **changed):
        session = self.scope["session"]

        def work():
            found = {key: session.get(key) for key in ("visits",)}
            session.update(changed)
            session.save()
            return found

        await self.send_json(await database_sync_to_async(work)())

    async def do_close(self, **how):
        await self.close(**how)

    async def do_binary(self, size):
        await self.send(bytes_data=bytes(range(256)) * size)

    async def do_fault(self):
        raise RuntimeError("asked to")

    async def do_join(self, group):
        await self.channel_layer.group_add(group, self.channel_name)
        await self.send_json({"joined": group})

    async def do_say(self, group, text):
        await self.channel_layer.group_send(group, {"type": "said", "text": text})

    async def do_whisper(self, text):
        await self.channel_layer.send(self.channel_name, {"type": "said", "text": text})
        await self.send_json({"whispered": text})

    async def said(self, event):
        await self.send_json({"said": event["text"]})

    async def disconnect(self, code):
        Kept.ends.append(("Talk", code))


def multiplexed():
    from channelsmultiplexer import AsyncJsonWebsocketDemultiplexer

    class Demultiplexer(AsyncJsonWebsocketDemultiplexer):
        applications = {"one": Json.as_asgi(), "two": SyncJson.as_asgi()}

    return Demultiplexer.as_asgi()


def graphql():
    import strawberry
    from strawberry.channels import GraphQLWSConsumer

    @strawberry.type
    class Query:
        hello: str = "world"

    @strawberry.type
    class Subscription:
        @strawberry.subscription
        async def count(self, target: int = 3) -> int:
            for number in range(target):
                yield number

    return GraphQLWSConsumer.as_asgi(schema=strawberry.Schema(query=Query, subscription=Subscription))


def rest():
    from django.contrib.auth.models import User
    from djangochannelsrestframework.generics import GenericAsyncAPIConsumer
    from djangochannelsrestframework.mixins import CreateModelMixin, ListModelMixin, PatchModelMixin
    from djangochannelsrestframework.permissions import AllowAny
    from rest_framework.serializers import ModelSerializer

    class Serializer(ModelSerializer):
        class Meta:
            model = User
            fields = ["id", "username", "email"]

    class Users(ListModelMixin, CreateModelMixin, PatchModelMixin, GenericAsyncAPIConsumer):
        queryset = User.objects.all()
        serializer_class = Serializer
        permission_classes = [AllowAny]

    return Users.as_asgi()


routes = [
    path("ws/echo/", Echo.as_asgi()),
    path("ws/sync/", SyncEcho.as_asgi()),
    path("ws/json/", Json.as_asgi()),
    path("ws/syncjson/", SyncJson.as_asgi()),
    path("ws/plain/", Plain.as_asgi()),
    re_path(r"^ws/talk/(?P<what>\w+)/$", Talk.as_asgi()),
]


def strangers():
    """Packages that nobody here wrote; only where they are asked for."""
    return [
        path("ws/multiplexed/", multiplexed()),
        path("ws/graphql/", graphql()),
        path("ws/rest/", rest()),
    ]


def websockets(more=()):
    return AuthMiddlewareStack(URLRouter([*routes, *more]))


application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": websockets()})
