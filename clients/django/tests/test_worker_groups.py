"""Groups behind a real gateway: the worker's own layer, consumers of groups, shared handlers."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.request
from pathlib import Path

from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull
from channels.layers import channel_layers, get_channel_layer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.conf import settings
from django.test import TransactionTestCase, override_settings, tag

from channel_gateway.testing import GatewayCommunicator, Node
from channel_gateway.worker.layer import GatewayLayer

from . import group_consumers
from .bridge import SECRET
from .clients import GatewayClient, Refused, until
from .group_consumers import Counted, Late
from .run import WITH_US, free_port, redis_at
from .test_worker_live import LONG, Live, WithGateway, knows_bridges

PUBSUB = {
    "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "CONFIG": {"hosts": [settings.REDIS_URL], "prefix": "groups"},
}
CORE = {
    "BACKEND": "channels_redis.core.RedisChannelLayer",
    "CONFIG": {
        "hosts": [settings.REDIS_URL],
        "prefix": "groups-core",
        "symmetric_encryption_keys": ["a key of the tests", b"an older one"],
    },
}


def node_config(layer):
    is_core = layer["BACKEND"] == CORE["BACKEND"]
    config = {
        "redis_url": settings.REDIS_URL,
        "layer": "core" if is_core else "pubsub",
        "layer_prefix": layer["CONFIG"]["prefix"],
        # A node with a database of its own is a deployment of its own.
        "namespace": f"of-{layer['CONFIG']['prefix']}",
    }
    if is_core:
        config["layer_encryption_keys"] = "a key of the tests"
    return config


class WithLayer(WithGateway):
    """A node and a worker on one layer, and the same layer as any other process of the site has it."""

    layer = PUBSUB

    @classmethod
    def setUpClass(cls):
        cls.is_core = cls.layer["BACKEND"] == CORE["BACKEND"]
        cls.layer = {**cls.layer, "CONFIG": {**cls.layer["CONFIG"], "prefix": cls.__name__.lower()}}
        cls.bridge = node_config(cls.layer)
        layers = override_settings(CHANNEL_LAYERS={"default": cls.layer})
        layers.enable()
        cls.addClassCleanup(layers.disable)
        super().setUpClass()

    def setUp(self):
        super().setUp()
        Counted.runs.clear()

    @contextlib.asynccontextmanager
    async def site_layer(self):
        """channels_redis' own, as a Django process has it."""
        config = self.layer["CONFIG"]
        made = RedisChannelLayer(**config) if self.is_core else RedisPubSubChannelLayer(**config)
        try:
            yield made
        finally:
            await made.close_pools() if self.is_core else await made.flush()

    async def room(self, server, path, count):
        return [await server.client(path) for _ in range(count)]

    async def drop(self, *clients):
        for each in clients:
            await each.close()


class ConsumerOfGroupsCases:
    async def chat(self, path):
        server = await self.serve(group_consumers.application())
        clients = await self.room(server, path, 3)
        other = await server.client(path.replace("lobby", "elsewhere"))
        for number in range(5):
            await clients[0].say(json.dumps({"message": f"hello {number}"}))
        for each in clients:
            for number in range(5):
                self.assertEqual(json.loads(await each.hears()), {"message": f"hello {number}"})
        await self.drop(clients.pop())
        # From a process of the site's that has channels_redis and knows nothing of a gateway.
        async with self.site_layer() as layer:
            await layer.group_send("chat_lobby", {"type": "chat.message", "message": "from elsewhere"})
            for each in clients:
                self.assertEqual(json.loads(await each.hears()), {"message": "from elsewhere"})
            await layer.group_send("chat_elsewhere", {"type": "chat.message", "message": "only here"})
        self.assertEqual(json.loads(await other.hears()), {"message": "only here"})
        await self.drop(other, *clients)

    async def test_the_tutorials_chat_part_2(self):
        await self.chat("/ws/tutorial-sync/lobby/")

    async def test_the_tutorials_chat_part_3(self):
        await self.chat("/ws/tutorial/lobby/")

    async def test_the_tutorials_chat_with_one_line(self):
        await self.chat("/ws/shared/lobby/")
        self.assertEqual(Counted.runs, {"shared": 7})

    async def test_the_synchronous_chat_with_one_line(self):
        await self.chat("/ws/shared-sync/lobby/")
        self.assertEqual(Counted.runs, {"shared_sync": 7})

    async def test_classes_with_other_arguments_are_not_shared_together(self):
        server = await self.serve(group_consumers.application())
        clients = {name: await self.room(server, f"/ws/named/{name}/", 2) for name in ("one", "two")}
        await get_channel_layer().group_send("named", {"type": "named", "text": "x"})
        for name, of_name in clients.items():
            for each in of_name:
                self.assertEqual(json.loads(await each.hears()), {"name": name, "text": "x"})
            await self.drop(*of_name)
        self.assertEqual(Counted.runs, {"named_one": 1, "named_two": 1})

    async def test_what_is_not_shared_after_all_runs_for_each_socket(self):
        server = await self.serve(group_consumers.application())
        clients = await self.room(server, "/ws/not-shared/", 3)
        layer = get_channel_layer()
        for number in (1, 2):
            await layer.group_send("not-shared", {"type": "counts"})
            for each in clients:
                self.assertEqual(json.loads(await each.hears()), number)
        self.assertEqual(Counted.runs["counts"], 1 + 2 * 3)
        await layer.group_send("not-shared", {"type": "reads"})
        for each in clients:
            self.assertEqual(json.loads(await each.hears()), "/ws/not-shared/")
        await layer.group_send("not-shared", {"type": "closes"})
        for each in clients:
            self.assertEqual((await each.ended())[0], 4001)

    async def test_a_shared_handler_that_raises_does_what_it_does_everywhere(self):
        server = await self.serve(group_consumers.application())
        clients = await self.room(server, "/ws/not-shared/", 2)
        await get_channel_layer().group_send("not-shared", {"type": "fails"})
        for each in clients:
            self.assertEqual((await each.ended())[0], 1011)
        self.assertEqual(Counted.runs["fails"], 3)

    async def test_groups_of_a_client_that_has_left(self):
        server = await self.serve(group_consumers.application())
        for where in ("connect", "receive"):
            Late.waits, Late.may_join, Late.done = asyncio.Event(), asyncio.Event(), []
            if where == "connect":
                communicator = GatewayCommunicator(self.node.url + "/ws/late/?connect")
                opening = asyncio.ensure_future(communicator.connect(30))
                await Late.waits.wait()
                communicator._writer.transport.abort()
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    await opening
            else:
                client = await server.client("/ws/late/")
                await client.say("x")
                await Late.waits.wait()
                await client.vanish()
            await until(lambda: all(each.instance.closed for each in server.worker.mailboxes.values()))
            Late.may_join.set()
            await until(lambda: len(Late.done) == 3)
            self.assertEqual(Late.done, [where, "disconnect", 1006])

    async def test_own_and_group_keep_the_senders_order(self):
        server = await self.serve(group_consumers.application())
        client = await server.client("/ws/ordered/")
        await client.say("50")
        own = group = 0
        while group < 50:
            kind, number = json.loads(await client.hears())
            if kind == "own":
                self.assertEqual(number, own)
                own += 1
            else:
                self.assertEqual(number, group)
                group += 1
                self.assertGreaterEqual(own, group)
        await self.drop(client)

    async def test_send_from_any_process_to_a_channel_runs_its_handler(self):
        server = await self.serve(group_consumers.application())
        client, other = await self.room(server, "/ws/asks/", 2)
        await client.say("1")
        channel = json.loads(await client.hears())
        event = {"type": "direct.message", "list": [1, None, 2.5], "text": "ä"}
        async with self.site_layer() as layer:
            await layer.send(channel, event)
            self.assertEqual(json.loads(await client.hears()), event)
        await get_channel_layer().send(channel, event)
        self.assertEqual(json.loads(await client.hears()), event)
        await self.drop(client, other)

    async def test_two_nodes(self):
        bridge = {
            "bridge.path": "/",
            "bridge.workers": f"unix:{self.directory}/worker-*.sock",
            "bridge.secret": SECRET.decode(),
            **self.bridge,
        }
        config = {**bridge, "database_url": f"sqlite://{self.node._directory}/gateway.db?mode=rwc"}
        second = Node(config, program=settings.GATEWAY["BINARY"])
        await asyncio.to_thread(second.start)
        self.addCleanup(second.stop)
        for path, runs in (("/ws/tutorial/lobby/", None), ("/ws/shared/lobby/", 2)):
            Counted.runs.clear()
            server = await self.serve(group_consumers.application())
            await until(lambda server=server: sum(link.proved for link in server.worker._links) == 2, 60)
            clients = [await server.client(path), await Live(server.worker, second).client(path)]
            await clients[0].say('{"message": "to both"}')
            for each in clients:
                self.assertEqual(json.loads(await each.hears()), {"message": "to both"})
            self.assertEqual(Counted.runs.get("shared"), runs)
            await self.drop(*clients)
            await server.worker.stop()


async def channels(case, server, count, told):
    """So many channels of sockets; the sockets last as long as the test."""
    for _ in range(count):
        await server.client("/")
    await until(lambda: len(told) == count)
    return told


class LayerCases:
    """Channels' and channels_redis' own tests of layers, as far as they mean something here."""

    async def layer_and(self, count):
        told = []

        async def application(scope, receive, send):
            if scope["type"] != "websocket":
                raise ValueError("only websockets here")
            await receive()
            told.append(await get_channel_layer().new_channel())
            await send({"type": "websocket.accept"})
            while (await receive())["type"] != "websocket.disconnect":
                pass

        server = await self.serve(application)
        for _ in range(count):
            self.clients.append(await server.client("/"))
        layer = get_channel_layer()
        self.assertIsInstance(layer, GatewayLayer)
        return layer, told

    def setUp(self):
        super().setUp()
        self.clients = []

    async def receives(self, layer, channel, seconds=10):
        return await asyncio.wait_for(layer.receive(channel), seconds)

    async def hears_nothing(self, layer, channel):
        with self.assertRaises(asyncio.TimeoutError):
            await self.receives(layer, channel, 0.5)

    async def test_send_receive(self):
        layer, (one, two) = await self.layer_and(2)
        self.assertNotEqual(one, two)
        await layer.send(one, {"type": "test.message", "text": "Ahoy-hoy!", "bytes": b"\x00\xff", "n": None})
        message = {"type": "test.message", "text": "Ahoy-hoy!", "bytes": b"\x00\xff", "n": None}
        self.assertEqual(await self.receives(layer, one), message)
        await self.hears_nothing(layer, two)

    async def test_multi_send_receive(self):
        layer, (one,) = await self.layer_and(1)
        for number in range(3):
            await layer.send(one, {"type": f"message.{number}"})
        for number in range(3):
            self.assertEqual((await self.receives(layer, one))["type"], f"message.{number}")

    async def test_plain_channels_are_the_sites_layers(self):
        layer, _ = await self.layer_and(1)
        waiting = asyncio.ensure_future(layer.receive("a-plain-channel"))
        # With pub/sub, what is sent before it listens is nobody's.
        for _ in range(100):
            await layer.send("a-plain-channel", {"type": "test.message"})
            if (await asyncio.wait([waiting], timeout=0.1))[0]:
                break
        self.assertEqual(await asyncio.wait_for(waiting, 10), {"type": "test.message"})

    async def test_groups_basic(self):
        layer, (one, two, three) = await self.layer_and(3)
        for each in (one, two, three):
            await layer.group_add("test-group", each)
        await layer.group_discard("test-group", two)
        await layer.group_send("test-group", {"type": "message.1"})
        for each in (one, three):
            self.assertEqual((await self.receives(layer, each))["type"], "message.1")
        await self.hears_nothing(layer, two)

    async def test_groups_same_channel_twice_and_discard_before_add(self):
        layer, (one,) = await self.layer_and(1)
        await layer.group_discard("test-group", one)
        await layer.group_add("test-group", one)
        await layer.group_add("test-group", one)
        await layer.group_send("test-group", {"type": "message.1"})
        self.assertEqual((await self.receives(layer, one))["type"], "message.1")
        await self.hears_nothing(layer, one)

    async def test_a_mixed_group_with_a_channel_of_the_sites_layer(self):
        layer, (one,) = await self.layer_and(1)
        async with self.site_layer() as other:
            theirs = await other.new_channel()
            await other.group_add("mixed", theirs)
            await layer.group_add("mixed", one)
            await layer.group_send("mixed", {"type": "a"})
            await other.group_send("mixed", {"type": "b"})
            # Two senders on two ways to Redis: either may be the first.
            self.assertEqual({(await self.receives(layer, one))["type"] for _ in "ab"}, {"a", "b"})
            self.assertEqual({(await self.receives(other, theirs))["type"] for _ in "ab"}, {"a", "b"})

    async def test_from_threads_and_other_loops(self):
        layer, (one,) = await self.layer_and(1)
        await layer.group_add("test-group", one)
        errors = []

        def send(number):
            try:
                async_to_sync(layer.group_send)("test-group", {"type": f"message.{number}"})
                asyncio.run(layer.send(one, {"type": f"direct.{number}"}))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(1)]
        for each in threads:
            each.start()
        got = {(await self.receives(layer, one))["type"] for _ in range(2)}
        for each in threads:
            await asyncio.to_thread(each.join)
        self.assertEqual((got, errors), ({"message.0", "direct.0"}, []))

    async def test_cancelled_receives_lose_nothing(self):
        layer, (one,) = await self.layer_and(1)
        for number in range(20):
            waiting = asyncio.ensure_future(layer.receive(one))
            await asyncio.sleep(0)
            await layer.send(one, {"type": f"message.{number}"})
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                # It may have been there already.
                self.assertEqual((await waiting)["type"], f"message.{number}")
                continue
            self.assertEqual((await self.receives(layer, one))["type"], f"message.{number}")

    async def test_names_and_messages(self):
        layer, (one,) = await self.layer_and(1)
        for bad in ("¯\\_(ツ)_/¯", "x" * 400, "a b", 5):
            with self.assertRaises(TypeError):
                await layer.group_add(bad, one)
            with self.assertRaises(TypeError):
                await layer.group_send(bad, {"type": "x"})
            with self.assertRaises(TypeError):
                await layer.send(bad, {"type": "x"})
        with self.assertRaises(TypeError):
            await layer.send(one, "no message")
        with self.assertRaises(TypeError):
            await layer.group_send("g", {"type": "x", "at": object()})
        self.assertEqual(layer.extensions, ("groups", "flush"))

    async def test_flush(self):
        layer, (one,) = await self.layer_and(1)
        await layer.group_add("test-group", one)
        await layer.send(one, {"type": "message.1"})
        await asyncio.sleep(0.5)
        await layer.flush()
        await layer.group_send("test-group", {"type": "message.2"})
        await self.hears_nothing(layer, one)
        await layer.group_add("test-group", one)
        await layer.group_send("test-group", {"type": "message.3"})
        self.assertEqual((await self.receives(layer, one))["type"], "message.3")


@tag("once")
class PubSubGroupTests(WithLayer, ConsumerOfGroupsCases, TransactionTestCase):
    pass


@tag("once")
class CoreGroupTests(WithLayer, ConsumerOfGroupsCases, TransactionTestCase):
    layer = CORE


@tag("once")
class PubSubLayerTests(WithLayer, LayerCases, TransactionTestCase):
    pass


@tag("once")
class CoreLayerTests(WithLayer, LayerCases, TransactionTestCase):
    layer = {**CORE, "CONFIG": {**CORE["CONFIG"], "capacity": 3}}

    async def test_groups_channel_full(self):
        """Over its capacity a channel loses the oldest, and sending raises nothing."""
        layer, (one,) = await self.layer_and(1)
        await layer.group_add("test-group", one)
        for number in range(5):
            await layer.group_send("test-group", {"type": f"message.{number}"})
        await until(lambda: layer._server.counts.get("mailbox_full") == 2)
        for number in (2, 3, 4):
            self.assertEqual((await self.receives(layer, one))["type"], f"message.{number}")

    async def test_send_capacity(self):
        """Nobody reads this channel; the node's capacity counts, which is the default here."""
        layer, _ = await self.layer_and(1)
        for _ in range(100):
            await layer.send("nobody-reads", {"type": "message"})
        with self.assertRaises(ChannelFull):
            await layer.send("nobody-reads", {"type": "message"})


@tag("once")
class OtherLayerTests(WithLayer, TransactionTestCase):
    """What is not the node's stays as it is."""

    async def test_another_prefix_and_the_sites_wish(self):
        other = {**PUBSUB, "CONFIG": {**PUBSUB["CONFIG"], "prefix": "another"}}
        layer = self.layer
        memory = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
        with override_settings(CHANNEL_LAYERS={"default": layer, "other": other, "memory": memory}):
            server = await self.serve(group_consumers.application())
            await until(lambda: isinstance(channel_layers["default"], GatewayLayer))
            self.assertNotIsInstance(channel_layers["other"], GatewayLayer)
            self.assertNotIsInstance(channel_layers["memory"], GatewayLayer)
            await server.worker.stop()
            self.assertNotIsInstance(channel_layers["default"], GatewayLayer)
        with override_settings(GATEWAY={**settings.GATEWAY, "LAYER": "site"}):
            server = await self.serve(group_consumers.application())
            client = await server.client("/ws/tutorial/lobby/")
            self.assertNotIsInstance(channel_layers["default"], GatewayLayer)
            await client.say('{"message": "as ever"}')
            self.assertEqual(json.loads(await client.hears()), {"message": "as ever"})
            await client.close()


@tag("once")
class ReattachTests(unittest.IsolatedAsyncioTestCase):
    """One generation of workers is replaced by the next under sockets with publishers."""

    SOCKETS, PUBLISHERS = (1000, 10) if LONG else (40, 3)
    DRAIN = "60" if LONG else "6"
    #: Seconds between two events of one publisher.
    PAUSE = 2.5 if LONG else 0.2

    def setUp(self):
        if not knows_bridges():
            self.skipTest("this gateway has no bridges")
        directory = tempfile.TemporaryDirectory(prefix="gateway-worker-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.prefix = self._testMethodName.replace("_", "-")[:60]

    async def start_node(self):
        config = {
            "bridge.path": "/",
            "bridge.workers": f"unix:{self.directory}/worker-*.sock",
            "bridge.secret": SECRET.decode(),
            "redis_url": settings.REDIS_URL,
            "layer": "pubsub",
            "layer_prefix": self.prefix,
            "namespace": f"of-{self.prefix}",
            "drain.window_seconds": 2,
        }
        self.node = Node(config, program=settings.GATEWAY["BINARY"])
        await asyncio.to_thread(self.node.start)
        self.addCleanup(self.node.stop)

    async def start_worker(self, number):
        environment = {
            **os.environ,
            "GATEWAY_BRIDGE__SECRET": SECRET.decode(),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_LAYER_PREFIX": self.prefix,
        }
        command = [*WITH_US, sys.executable, "-m", "channel_gateway.worker", "tests.group_asgi:application"]
        command += ["--listen", f"unix:{self.directory}/worker-{number}.sock", "--drain-seconds", self.DRAIN]
        with (self.directory / f"log-{number}").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    async def metric(self, line):
        def ask():
            with urllib.request.urlopen(f"{self.node.api_url}/metrics", timeout=30) as answer:
                return answer.read().decode()

        for each in (await asyncio.to_thread(ask)).splitlines():
            if each.startswith(line + " "):
                return float(each.rpartition(" ")[2])
        return 0.0

    async def linked(self, count):
        while await self.metric('gateway_bridge_links{path="/"}') != count:
            await asyncio.sleep(0.05)

    async def listen(self, client, heard):
        """Notes what the client hears, with the longest time in which it heard nothing."""
        last = None
        while True:
            try:
                message = json.loads(await client.communicator.receive_from(None))
            except asyncio.CancelledError:
                raise
            except Exception:
                heard["closed"] = (client.communicator.close_code, client.communicator.close_reason)
                return
            now = asyncio.get_running_loop().time()
            if isinstance(message, dict) and "by" in message:
                heard["numbers"].setdefault(message["by"], []).append(message["number"])
                heard["counts"].append(message["heard"])
                if last is not None:
                    heard["silence"] = max(heard["silence"], now - last)
                last = now
            elif isinstance(message, dict):
                heard["echoes"].append(message)

    async def publish(self, layer, name, stop):
        number = 0
        while not stop.is_set():
            await layer.group_send("news", {"type": "news", "by": name, "number": number})
            number += 1
            await asyncio.sleep(self.PAUSE)
        return number

    async def under_publishers(self, path, replace):
        """Sockets that hear publishers while ``replace`` replaces their workers. Returns what each has heard."""
        await self.start_node()
        first = await self.start_worker(1)
        await self.linked(1)
        clients, heard, listening = [], [], []
        for _ in range(self.SOCKETS):
            client = await GatewayClient.open(self.node.url, path)
            self.assertEqual(json.loads(await client.hears()), "welcome")
            clients.append(client)
            heard.append({"numbers": {}, "counts": [], "silence": 0.0, "echoes": [], "closed": None})
            # At once: who does not read answers no ping.
            listening.append(asyncio.ensure_future(self.listen(client, heard[-1])))
        layer, stop = RedisPubSubChannelLayer(hosts=[settings.REDIS_URL], prefix=self.prefix), asyncio.Event()
        publishing = [asyncio.ensure_future(self.publish(layer, f"p{n}", stop)) for n in range(self.PUBLISHERS)]
        await asyncio.sleep(3 * self.PAUSE)
        await replace(first, clients)
        await asyncio.sleep(3 * self.PAUSE)
        stop.set()
        sent = {f"p{n}": await each for n, each in enumerate(publishing)}
        end = asyncio.get_running_loop().time() + 30
        while any(
            not each["closed"] and sum(map(len, each["numbers"].values())) < sum(sent.values()) for each in heard
        ):
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(0.05)
        for each in listening:
            each.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        await layer.flush()
        return sent, heard

    async def leave(self, process, clients):
        await self.start_worker(2)
        await self.linked(2)
        process.send_signal(signal.SIGTERM)
        for number, client in enumerate(clients):
            await client.say(json.dumps(number))
        self.assertEqual(await asyncio.to_thread(process.wait, 120), 0)

    async def test_no_socket_is_closed_and_no_event_lost(self):
        sent, heard = await self.under_publishers("/ws/stays/", self.leave)
        for number, each in enumerate(heard):
            self.assertIsNone(each["closed"])
            self.assertEqual(each["numbers"], {name: list(range(count)) for name, count in sent.items()})
            # The state went along.
            self.assertEqual(each["counts"], list(range(1, sum(sent.values()) + 1)))
            self.assertEqual([echo["echo"] for echo in each["echoes"]], [number])
        kept = await self.metric('gateway_bridge_reattached_total{path="/",outcome="kept"}')
        self.assertEqual(kept, self.SOCKETS)
        silent = sorted(each["silence"] for each in heard)
        own = await self.metric("gateway_bridge_reattach_seconds_sum") / self.SOCKETS
        print(
            f"\n{self.SOCKETS} sockets, {sum(sent.values())} events of {self.PUBLISHERS} publishers: longest silence"
            f" {silent[-1]:.2f} s, an event each {self.PAUSE / self.PUBLISHERS:.2f} s; without an instance"
            f" {own * 1000:.0f} ms on average"
        )

    async def test_sockets_of_a_killed_worker_go_on_too(self):
        async def kill(process, clients):
            await self.start_worker(2)
            await self.linked(2)
            process.kill()
            await self.linked(1)

        sent, heard = await self.under_publishers("/ws/stays/", kill)
        for each in heard:
            self.assertIsNone(each["closed"])
            for name, count in sent.items():
                numbers = each["numbers"][name]
                # In order, and only around the kill something may be missing.
                self.assertEqual(numbers, sorted(set(numbers)))
                self.assertEqual(numbers[-1], count - 1)
                self.assertGreaterEqual(len(numbers), count - 3)

    async def begun(self, seconds):
        """A client of the one worker, whose consumer is busy for so long."""
        await self.start_node()
        worker = await self.start_worker(1)
        await self.linked(1)
        client = await GatewayClient.open(self.node.url, "/ws/joins-late/")
        await client.say(str(seconds))
        self.assertEqual(json.loads(await client.hears()), "begun")
        return worker, client

    async def test_what_a_group_brings_that_is_joined_while_leaving(self):
        first, client = await self.begun(1)
        await self.start_worker(2)
        await self.linked(2)
        first.send_signal(signal.SIGTERM)
        self.assertEqual(json.loads(await client.hears()), "late")
        await client.close()

    async def test_a_socket_that_has_ended_goes_on_nowhere(self):
        first, client = await self.begun(0)
        first.send_signal(signal.SIGTERM)
        # Nobody takes new ones, so nobody takes this one; then it is gone.
        with self.assertRaises(Refused):
            while True:
                await (await GatewayClient.open(self.node.url, "/ws/joins-late/")).close()
        await client.close(4000)
        while await self.metric('gateway_bridge_sockets{path="/"}'):
            await asyncio.sleep(0.05)
        await asyncio.to_thread(first.wait, 60)
        await self.start_worker(2)
        await self.linked(1)
        another = await GatewayClient.open(self.node.url, "/ws/joins-late/")
        await another.say("0")
        self.assertEqual(json.loads(await another.hears()), "begun")
        self.assertNotIn("goes on", (self.directory / "log-2").read_text())
        await another.close()

    async def test_without_it_all_are_told_to_come_back_spread(self):
        _, heard = await self.under_publishers("/ws/greets/", self.leave_alone)
        for each in heard:
            self.assertEqual(each["closed"][0], 1012)
            self.assertRegex(each["closed"][1], r"^retry=0-\d+$")
        again = [await GatewayClient.open(self.node.url, "/ws/greets/") for _ in heard]
        for each in again:
            self.assertEqual(json.loads(await each.hears()), "welcome")
            await each.vanish()

    async def leave_alone(self, process, clients):
        await self.start_worker(2)
        await self.linked(2)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await asyncio.to_thread(process.wait, 120), 0)


@tag("once")
class ExampleTests(unittest.IsolatedAsyncioTestCase):
    """The consumer of examples/django, as it was under Daphne, behind the gateway; then with one line."""

    PEOPLE = """
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from chat.models import Room
room = Room.objects.get_or_create(name="lobby", defaults={"title": "Lobby"})[0]
for name in ("alice", "bob"):
    user = User.objects.create_user(name, password="secret")
    room.members.add(user)
    client = Client()
    client.force_login(user)
    print("cookie", name, client.cookies[settings.SESSION_COOKIE_NAME].value)
"""

    async def start(self, shared):
        if not knows_bridges():
            self.skipTest("this gateway has no bridges")
        directory = tempfile.TemporaryDirectory(prefix="gateway-worker-")
        self.addCleanup(directory.cleanup)
        site = Path(directory.name) / "site"
        ours = Path(__file__).resolve().parents[1]
        shutil.copytree(ours.parents[1] / "examples/django/before", site)
        # The server that it had; its app only starts it with `runserver`.
        (site / "daphne").mkdir()
        (site / "daphne/__init__.py").touch()
        if shared:
            consumers = site / "chat/consumers.py"
            text = consumers.read_text()
            marked = text.replace("    async def chat_message(", "    @shared\n    async def chat_message(")
            self.assertNotEqual(text, marked)
            consumers.write_text("from channel_gateway import shared\n" + marked)
        # The example's layer has the default prefix, which one deployment has for itself.
        port = free_port()
        url, _ = await asyncio.to_thread(self.enter, redis_at(port))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")},
            "REDIS_URL": url,
            "PYTHONPATH": str(ours),
            "GATEWAY_BRIDGE__SECRET": SECRET.decode(),
        }
        for arguments in (["migrate", "-v", "0"], ["shell", "-c", self.PEOPLE]):
            command = [sys.executable, "manage.py", *arguments]
            done = await asyncio.to_thread(
                subprocess.run, command, cwd=site, env=environment, capture_output=True, text=True, check=False
            )
            self.assertEqual(done.returncode, 0, done.stderr)
        cookies = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("cookie "))
        socket = f"unix:{directory.name}/worker.sock"
        command = [*WITH_US, sys.executable, "-m", "channel_gateway.worker", "mysite.asgi:application"]
        log = (site / "log").open("wb")
        process = subprocess.Popen([*command, "--listen", socket], cwd=site, env=environment, stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        config = {"bridge.path": "/ws/", "bridge.workers": socket, "bridge.secret": SECRET.decode()}
        node = Node(config | {"redis_url": url, "layer": "core"}, program=settings.GATEWAY["BINARY"])
        await asyncio.to_thread(node.start)
        self.addCleanup(node.stop)
        clients = {}
        for name, cookie in cookies.items():
            origin = node.url.replace("ws://", "http://")
            headers = [(b"cookie", f"sessionid={cookie}".encode()), (b"origin", origin.encode())]
            end = asyncio.get_running_loop().time() + 60
            while name not in clients:
                try:
                    clients[name] = await GatewayClient.open(node.url, "/ws/chat/lobby/", headers=headers)
                except Refused as refused:
                    # Until the worker is there.
                    self.assertEqual(refused.status, 503, (site / "log").read_text())
                    self.assertLess(asyncio.get_running_loop().time(), end, (site / "log").read_text())
        return clients, site

    def enter(self, context):
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        return stack.enter_context(context)

    async def chat(self, shared):
        clients, site = await self.start(shared)
        said = {"cate": "chat", "group_name": "lobby", "message": "hello", "client_id": "1"}
        await clients["alice"].say(json.dumps(said))
        frames = [json.loads(await clients["alice"].hears()) for _ in range(2)]
        self.assertEqual({each["type"] for each in frames}, {"chat", "ack"})
        heard = json.loads(await clients["bob"].hears())
        self.assertEqual((heard["type"], heard["message"], heard["from_user"]), ("chat", "hello", "alice"))
        told = {"cate": "notification", "user_name": "bob", "message": "look", "client_id": "2"}
        await clients["alice"].say(json.dumps(told))
        heard = json.loads(await clients["bob"].hears())
        self.assertEqual((heard["type"], heard["message"]), ("notification", "look"))
        self.assertIn("is the node's", (site / "log").read_text())
        self.assertNotIn("is not: ", (site / "log").read_text())

    async def test_unchanged(self):
        await self.chat(False)

    async def test_with_one_line(self):
        await self.chat(True)
