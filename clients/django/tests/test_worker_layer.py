"""The worker's own layer and shared handlers, with a node of the tests' own."""

import asyncio
import json
import logging
import tempfile
import threading

import msgpack
from asgiref.sync import async_to_sync
from channels.auth import AuthMiddlewareStack
from channels.exceptions import ChannelFull
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.sessions import CookieMiddleware, InstanceSessionWrapper, SessionMiddleware, SessionMiddlewareStack
from django.conf import settings
from django.test import SimpleTestCase, TransactionTestCase, override_settings, tag
from django.urls import path as django_path
from redis.exceptions import ConnectionError as RedisIsAway

from channel_gateway.worker import frames
from channel_gateway.worker.layer import GatewayLayer, differs, place, same_place

from . import asgi, group_consumers
from .bridge import SECRET
from .clients import DirectClient, says_json, until
from .group_consumers import Counted, Late, Lingers
from .group_node import GroupNode
from .run import free_port
from .test_worker_consumers import Direct, WithWorker

LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [settings.REDIS_URL], "prefix": "site"},
    }
}
ABOUT = {
    "kind": "pubsub",
    "prefix": "site",
    "serializer": "msgpack",
    "raw": 0,
    "hosts": [place(settings.REDIS_URL)],
    "keys": [],
}


@tag("once")
@override_settings(CHANNEL_LAYERS=LAYERS)
class WorkerLayerTests(WithWorker, TransactionTestCase):
    def setUp(self):
        super().setUp()
        Counted.runs.clear()

    async def serve(self, application=None, about=ABOUT, **_):
        directory = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-worker-"))
        address = f"unix:{directory}/w.sock"
        worker = await self.start_worker(application or group_consumers.application(), address)
        self.node = await GroupNode(about).dial(address)
        self.stack.callback(self.node.close)
        await until(lambda: isinstance(get_channel_layer(), GatewayLayer))
        return Direct(worker, self.node)

    async def room(self, path, count):
        return [
            await DirectClient.open(self.node, path, channel_name=f"sitespecific.{number}") for number in range(count)
        ]

    async def test_the_tutorials_chat(self):
        for path in ("/ws/tutorial/lobby/", "/ws/tutorial-sync/lobby/", "/ws/shared/lobby/", "/ws/shared-sync/lobby/"):
            Counted.runs.clear()
            server = await self.serve()
            clients = await self.room(path, 3)
            for number in range(5):
                await clients[0].say(json.dumps({"message": f"hello {number}"}))
                for each in clients:
                    self.assertEqual(json.loads(await each.hears()), {"message": f"hello {number}"})
            self.assertEqual(sum(Counted.runs.values()), 5 if "shared" in path else 0)
            await clients[1].close()
            await until(lambda: len(self.node.groups["chat_lobby"]) == 2)
            for each in (clients[0], clients[2]):
                await each.close()
            await server.worker.stop()

    async def test_what_is_not_shared_says_why(self):
        await self.serve()
        clients = await self.room("/ws/not-shared/", 2)
        logging.getLogger("channel_gateway.worker").setLevel(logging.CRITICAL)
        for kind, why, heard in (
            ("counts", "it reads self.mine", 1),
            ("reads", "it reads self.scope", "/ws/not-shared/"),
            ("reads_all", "it reads self.__dict__", ["mine", "scope"]),
        ):
            self.node.publish("not-shared", {"type": kind})
            for each in clients:
                self.assertEqual(json.loads(await each.hears()), heard)
            self.assertEqual(self.node.outcome, (frames.NOT_SHARED, why))
        for kind, code in (("closes", 4001), ("closes_quietly", 4002)):
            self.node.outcome = None
            clients = await self.room("/ws/not-shared/", 2) if kind == "closes_quietly" else clients
            self.node.publish("not-shared", {"type": kind})
            for each in clients:
                self.assertEqual((await each.ended())[0], code)
            self.assertEqual(self.node.outcome, (frames.NOT_SHARED, "it sends 'websocket.close'"))
        clients = await self.room("/ws/not-shared/", 2)
        self.node.publish("not-shared", {"type": "fails"})
        for each in clients:
            self.assertEqual((await each.ended())[0], 1011)
        self.assertEqual(self.node.outcome, (frames.FAILED, "ValueError: as asked"))

    async def test_a_group_is_left_when_the_node_says_so(self):
        ended = asyncio.Event()

        async def application(scope, receive, send):
            layer = get_channel_layer()
            await receive()
            await send({"type": "websocket.accept"})
            channel = await layer.new_channel()
            await layer.group_add("left", channel)
            while (event := await receive())["type"] != "websocket.disconnect":
                await (layer.group_discard("left", channel) if event["text"] == "leave" else layer.flush())
                await layer.group_add("left", channel)
                await send({"type": "websocket.send", "text": "again"})
            await layer.group_discard("left", channel)
            ended.set()

        await self.serve(application)
        (client,) = await self.room("/", 1)
        await until(lambda: self.node.groups.get("left"))
        for text in ("leave", "flush"):
            self.node.answers_pings = False
            await client.say(text)
            await until(lambda: self.node.unanswered)
            # It has heard of it, and may have sent events before.
            self.assertEqual(self.node.groups["left"], [])
            await asyncio.sleep(0.05)
            self.assertEqual(self.node.groups["left"], [], "nothing goes on before its answer")
            self.node.answers_pings = True
            self.node.answer_pings()
            self.assertEqual(await client.hears(), "again")
            self.assertEqual(len(self.node.groups["left"]), 1)
        # Nobody waits for a node that is gone.
        self.node.answers_pings = False
        await client.say("leave")
        await until(lambda: self.node.unanswered)
        self.node.close()
        await asyncio.wait_for(ended.wait(), 30)

    async def test_a_channel_is_the_newest_instances(self):
        """A socket that is taken again may be with the instance after it before the first one has ended."""
        await self.serve()
        Lingers.may_end = asyncio.Event()
        (before,) = await self.room("/ws/lingers/", 1)
        before.socket.closed(1006)
        (after,) = await self.room("/ws/lingers/", 1)
        Lingers.may_end.set()
        await before.socket.end()
        self.node.publish("lingers", {"type": "said", "text": "still here"})
        self.assertEqual(json.loads(await after.hears()), "still here")
        await get_channel_layer().group_discard("lingers", "sitespecific.0")
        await until(lambda: not self.node.groups["lingers"])

    async def test_classes_with_other_arguments_have_other_names(self):
        await self.serve()
        one, two = await self.room("/ws/named/one/", 1), await self.room("/ws/named/two/", 2)
        self.assertEqual(len({about["class"] for about in self.node.classes.values()}), 2)
        self.node.publish("named", {"type": "named", "text": "x"})
        for name, clients in (("one", one), ("two", two)):
            for each in clients:
                self.assertEqual(json.loads(await each.hears()), {"name": name, "text": "x"})
        self.assertEqual(Counted.runs, {"named_one": 1, "named_two": 1})

    async def test_own_and_group_keep_the_senders_order(self):
        await self.serve()
        (client,) = await self.room("/ws/ordered/", 1)
        await client.say("50")
        own = group = 0
        while group < 50:
            kind, number = json.loads(await client.hears())
            self.assertEqual(number, own if kind == "own" else group)
            own, group = own + (kind == "own"), group + (kind == "group")
            self.assertGreaterEqual(own, group)

    async def test_send_and_what_the_node_answers(self):
        await self.serve()
        (client,) = await self.room("/ws/asks/", 1)
        await client.say("1")
        channel = json.loads(await client.hears())
        self.assertEqual(channel, "sitespecific.0")
        layer, event = get_channel_layer(), {"type": "direct.message", "n": [1, None, 2.5]}
        await layer.send(channel, event)
        self.assertEqual(json.loads(await client.hears()), event)
        # From a thread with a loop of its own, and from one with none.
        for send in (
            lambda: asyncio.run(layer.send(channel, event)),
            lambda: async_to_sync(layer.send)(channel, event),
        ):
            thread = threading.Thread(target=send)
            thread.start()
            self.assertEqual(json.loads(await client.hears()), event)
            await asyncio.to_thread(thread.join)
        for answer, error in ((1, ChannelFull), (3, ValueError), (2, RedisIsAway)):
            self.node.sends = answer
            with self.assertRaises(error):
                await layer.send(channel, event)

    async def test_a_socket_outlives_what_it_could_not_send(self):
        server = await self.serve(asgi.websockets())
        (client,) = await self.room("/ws/talk/a/", 1)
        self.node.sends = frames.SENT_AWAY
        for count in (1, 2):
            self.assertEqual(await says_json(client, {"do": "whisper", "text": "x"}), {"whispered": "x"})
            self.assertEqual(server.worker.counts["layer"], count)

    async def test_what_is_sent_to_a_group_outside_of_a_consumer_raises_while_redis_is_away(self):
        away = f"redis://127.0.0.1:{free_port()}"
        layers = {"default": {**LAYERS["default"], "CONFIG": {"hosts": [away], "prefix": "site"}}}
        with override_settings(CHANNEL_LAYERS=layers):
            await self.serve(about={**ABOUT, "hosts": [place(away)]})
            layer, event = get_channel_layer(), {"type": "chat.message", "message": "x"}
            with self.assertRaises(RedisIsAway):
                await layer.group_send("chat_lobby", event)
            with self.assertRaises(RedisIsAway):
                await asyncio.to_thread(async_to_sync(layer.group_send), "chat_lobby", event)
            # A consumer's goes to the node, and its socket outlives whatever becomes of it there.
            (client,) = await self.room("/ws/tutorial/lobby/", 1)
            await client.say(json.dumps({"message": "still here"}))
            self.assertEqual(json.loads(await client.hears()), {"message": "still here"})

    async def test_a_refused_group_raises(self):
        server = await self.serve()
        self.node.refuses.add("named")
        logging.getLogger("channel_gateway.worker").setLevel(logging.CRITICAL)
        socket = self.node.open("/ws/named/one/", channel_name="sitespecific.1")
        self.assertEqual((await socket.next())[0], "end")
        self.assertEqual((socket.ends[0][0], "refuses the group" in socket.ends[0][1]), (frames.RAISED, True))
        socket.closed(1006)
        await until(lambda: not server.worker.mailboxes)

    async def test_groups_of_a_socket_that_has_ended(self):
        """A client that leaves meanwhile is no error, and its instance gets its disconnect."""
        server = await self.serve()
        # The end comes with the refusal, or before anything is asked for.
        for ends_at in ({"late"}, set()):
            self.node.ends_at = ends_at
            for where in ("connect", "receive"):
                Late.waits, Late.may_join, Late.done = asyncio.Event(), asyncio.Event(), []
                socket = self.node.open("/ws/late/", query=where.encode(), channel_name="sitespecific.0")
                if where == "receive":
                    self.assertEqual((await socket.next())[0], "accept")
                    socket.say("x")
                await Late.waits.wait()
                if not ends_at:
                    socket.closed(1006)
                    await until(lambda: server.worker.mailboxes["sitespecific.0"].instance.closed)
                Late.may_join.set()
                with self.subTest(where, ends_at=ends_at):
                    self.assertEqual((await socket.end(), socket.ends), (frames.RETURNED, [(frames.RETURNED, "")]))
                    self.assertEqual(Late.done, [where, "disconnect", 1006])
        self.node.ends_at, Late.done = {"late"}, []
        socket = self.node.open("/ws/late-sync/", channel_name="sitespecific.0")
        self.assertEqual((await socket.end(), Late.done), (frames.RETURNED, ["connect", "disconnect", 1006]))
        await until(lambda: not server.worker.mailboxes)

    async def test_shared_behind_the_whole_stack(self):
        """Channels' sessions wrap what is sent, and leave it as it is; another middleware may change it."""

        class Upper:
            def __init__(self, inner):
                self.inner = inner

            async def __call__(self, scope, receive, send):
                async def upper(message):
                    await send({**message, "text": message["text"].upper()} if "text" in message else message)

                await self.inner(scope, receive, upper)

        class Shouts(InstanceSessionWrapper):
            async def send(self, message):
                await super().send({**message, "text": message["text"].upper()} if "text" in message else message)

        class ShoutingSessions(SessionMiddleware):
            async def __call__(self, scope, receive, send):
                wrapper = Shouts(scope, send)
                await wrapper.resolve_session()
                await self.inner(wrapper.scope, receive, wrapper.send)

        routes = URLRouter([django_path("ws/shared/<str:room_name>/", group_consumers.TutorialShared.as_asgi())])
        for stack, runs, text in (
            (AuthMiddlewareStack(routes), 1, '{"message": "hello"}'),
            (AuthMiddlewareStack(SessionMiddlewareStack(routes)), 1, '{"message": "hello"}'),
            (AuthMiddlewareStack(Upper(routes)), 3, '{"MESSAGE": "HELLO"}'),
            (Upper(AuthMiddlewareStack(routes)), 3, '{"MESSAGE": "HELLO"}'),
            (CookieMiddleware(ShoutingSessions(routes)), 3, '{"MESSAGE": "HELLO"}'),
        ):
            Counted.runs.clear()
            server = await self.serve(ProtocolTypeRouter({"websocket": stack}))
            clients = await self.room("/ws/shared/lobby/", 3)
            self.node.publish("chat_lobby", {"type": "chat.message", "message": "hello"})
            for each in clients:
                self.assertEqual(await each.hears(), text)
            self.assertEqual(Counted.runs, {"shared": runs}, stack)
            await server.worker.stop()

    async def test_what_a_consumer_does_not_receive_is_bounded(self):
        going = asyncio.Event()

        async def application(scope, receive, send):
            await receive()
            layer = get_channel_layer()
            channel = await layer.new_channel()
            await layer.group_add("busy", channel)
            await send({"type": "websocket.accept"})
            await going.wait()
            first = await layer.receive(channel)
            await send({"type": "websocket.send", "text": str(first["number"])})
            await receive()

        server = await self.serve(application)
        (client,) = await self.room("/", 1)
        for number in range(20):
            self.node.publish("busy", {"type": "x", "number": number, "text": "x" * 500_000})
        await until(lambda: server.worker.counts.get("mailbox_full", 0) == 12)
        going.set()
        self.assertEqual(await client.hears(), "12")

    async def test_an_instance_that_leaves_finishes_first(self):
        going = asyncio.Event()

        class Busy(group_consumers.Stays):
            async def receive_json(self, content):
                await going.wait()
                await super().receive_json(content)

        server = await self.serve(Busy.as_asgi())
        (client,) = await self.room("/", 1)
        self.assertEqual(json.loads(await client.hears()), "welcome")
        self.assertEqual(self.node.classes[1]["reattach"], 1)
        for number in range(3):
            await client.say(str(number))
            self.node.publish("news", {"type": "news", "by": "a", "number": number})
        self.node.detach(client.socket)
        going.set()
        heard = [json.loads(await client.hears()) for _ in range(6)]
        self.assertEqual([each["echo"] for each in heard if "echo" in each], [0, 1, 2])
        self.assertEqual([each["number"] for each in heard if "by" in each], [0, 1, 2])
        self.assertEqual(await client.socket.end(), frames.RETURNED)
        self.assertEqual(self.node.states[1], {"heard": 3})
        self.assertEqual(self.node.groups["news"], [1], "it is gone, and stays in its groups")
        await until(lambda: not server.worker.running)
        # And the next one.
        again = self.node.open(
            "/", channel_name="sitespecific.0", reattach={"attempt": 1, "state": msgpack.packb({"heard": 3})}
        )
        self.assertEqual((await again.next())[0], "accept")
        await until(lambda: 2 in self.node.ready)
        self.node.publish("news", {"type": "news", "by": "a", "number": 3})
        self.assertEqual(json.loads(await again.hears()), {"by": "a", "number": 3, "heard": 4})
        await until(lambda: self.node.states.get(2) == {"heard": 4})


class DiffersTests(SimpleTestCase):
    def test_places(self):
        for host, where in (
            ("redis://localhost", "localhost:6379/0"),
            ("redis://user:secret@Redis.example:7000/3", "redis.example:7000/3"),
            ("rediss://h:1?db=2", "h:1/2"),
            ("unix:///run/redis.sock?db=1", "unix:/run/redis.sock/1"),
            (("10.0.0.1", 6380), "10.0.0.1:6380/0"),
            ({"address": "redis://h"}, "h:6379/0"),
            ({"host": "h", "port": 1, "db": 4}, "h:1/4"),
            ({"sentinels": [("a", 1), ("b", 2)], "master_name": "m"}, "m@a:1,b:2/0"),
            ({"path": "/s"}, "unix:/s/0"),
        ):
            self.assertEqual(place(host), where)
        self.assertTrue(same_place("localhost:6379/0", "127.0.0.1:6379/3", databases=False))
        self.assertFalse(same_place("localhost:6379/0", "127.0.0.1:6379/3", databases=True))
        self.assertFalse(same_place("localhost:6379/0", "127.0.0.1:6380/0", databases=False))

    def test_why_a_layer_is_not_the_nodes(self):
        config = {"hosts": [settings.REDIS_URL], "prefix": "site"}
        print_of = lambda key: frames.print_of(SECRET, key)  # noqa: E731
        self.assertEqual(differs("pubsub", config, ABOUT, SECRET), "")
        for own, about, why in (
            ({}, {"kind": "core"}, "it is pubsub"),
            ({"prefix": "other"}, {}, "its prefix"),
            ({"serializer_format": "json"}, {}, "serializer_format"),
            ({"symmetric_encryption_keys": ["a"]}, {}, "one of both is encrypted"),
            ({"symmetric_encryption_keys": ["a"]}, {"keys": [print_of(b"b")]}, "other symmetric_encryption_keys"),
            ({"hosts": ["redis://elsewhere.invalid:1"]}, {}, "its hosts"),
            ({"hosts": [settings.REDIS_URL] * 2}, {}, "its hosts"),
        ):
            self.assertIn(why, differs("pubsub", {**config, **own}, {**ABOUT, **about}, SECRET))
        keys = {"symmetric_encryption_keys": ["a", b"b"]}
        theirs = {"keys": [print_of(b"a"), print_of(b"c")]}
        self.assertEqual(differs("pubsub", {**config, **keys}, {**ABOUT, **theirs}, SECRET), "")
