"""A site's consumers behind a real gateway: browser, node, link, worker, application."""

import asyncio
import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from asgiref.sync import sync_to_async
from django.conf import settings
from django.test import TransactionTestCase, override_settings, tag

from channel_gateway.testing import GatewayCommunicator, Node

from . import asgi
from .asgi import Kept
from .bridge import SECRET
from .clients import GatewayClient, says_json, until
from .consumer_cases import ConsumerCases, DaphneCases, StrangerCases, Told
from .run import WITH_US, free_port, redis_at
from .test_worker_consumers import WithWorker

LONG = bool(os.environ.get("TEST_LONG"))
PUBSUB, CORE = "pubsub.RedisPubSubChannelLayer", "core.RedisChannelLayer"


def knows_bridges():
    """Whether the gateway has bridges; one that is older is not asked."""
    done = subprocess.run([settings.GATEWAY["BINARY"], "genconfig"], capture_output=True, text=True, check=False)
    return "bridge" in done.stdout


class Live:
    """A worker in this process, behind a node."""

    def __init__(self, worker, node):
        self.worker, self.node = worker, node

    async def client(self, path, **options):
        return await GatewayClient.open(self.node.url, path, **options)

    async def ask(self, request):
        """The answer's head to these bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.node.port)
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        writer.close()
        return head


class WithGateway(WithWorker):
    """One node for the class, a worker for each test."""

    bridge = {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not knows_bridges():
            cls.doClassCleanups()
            raise unittest.SkipTest("this gateway has no bridges")
        directory = tempfile.TemporaryDirectory(prefix="gateway-worker-")
        cls.addClassCleanup(directory.cleanup)
        cls.directory = Path(directory.name)
        config = {
            "bridge.path": "/",
            "bridge.workers": f"unix:{cls.directory}/worker-*.sock",
            "bridge.secret": SECRET.decode(),
            "trusted_proxies": ["127.0.0.1"],
            "drain.window_seconds": 1,
            **cls.bridge,
        }
        cls.node = Node(config, program=settings.GATEWAY["BINARY"]).start()
        cls.addClassCleanup(cls.node.stop)

    async def serve(self, application=None, *, strangers=False):
        if application is None:
            application = asgi.websockets(asgi.strangers() if strangers else ())
        worker = await self.start_worker(application, f"unix:{self.directory}/worker-{id(self)}.sock")
        await until(lambda: any(link.proved for link in worker._links), 60)
        return Live(worker, self.node)


@tag("once")
class LiveDaphneTests(WithGateway, DaphneCases, TransactionTestCase):
    bridge = {"bridge.frame_bytes": 65536}

    async def test_daphne_xff(self):
        told, server = await self.told()
        headers = [(b"X-Forwarded-For", b"10.1.2.3"), (b"X-Forwarded-Proto", b"https")]
        await server.client("/", headers=headers)
        self.assertEqual((told.scopes[0]["client"][0], told.scopes[0]["scheme"]), ("10.1.2.3", "wss"))

    async def test_daphne_websocket_max_message_size(self):
        told, server = await self.told()
        client = await server.client("/")
        await client.say("x" * 65537)
        self.assertEqual((await client.ended())[0], 1009)
        await until(lambda: len(told.messages) == 2)
        kinds = [each["type"] for each in told.messages]
        self.assertEqual(kinds, ["websocket.connect", "websocket.disconnect"])

    async def test_daphne_websocket_max_message_size_allows_under_limit(self):
        told, server = await self.told()
        client = await server.client("/")
        told.answers = [{"type": "websocket.send", "text": "ack"}]
        await client.say("x" * 65536)
        self.assertEqual(await client.hears(), "ack")

    async def test_daphne_websocket_upgrade_rejects_smuggled_headers(self):
        told, server = await self.told()
        for byte in (b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e"):
            with self.subTest(byte):
                head = await server.ask(
                    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                    b"X-Padding: innocent" + byte + b"X-Secret-Auth: admin-token\r\n\r\n"
                )
                self.assertTrue(head.startswith(b"HTTP/1.1 400"), head)
        self.assertEqual(told.scopes, [])


@tag("once")
class LiveConsumerTests(WithGateway, ConsumerCases, TransactionTestCase):
    async def test_http_on_a_bridged_path_is_426(self):
        server = await self.serve()
        head = await server.ask(b"GET /ws/echo/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 426"), head)

    async def test_a_response_and_headers_of_the_applications(self):
        async def application(scope, receive, send):
            if scope["type"] != "websocket":
                raise ValueError
            await receive()
            if scope["path"] == "/refused":
                headers = [(b"retry-after", b"9"), (b"content-type", b"text/plain")]
                await send({"type": "websocket.http.response.start", "status": 402, "headers": headers})
                await send({"type": "websocket.http.response.body", "body": b"pay first"})
            else:
                await send({"type": "websocket.accept", "headers": [(b"x-room", b"lobby"), (b"set-cookie", b"a=b")]})
            await receive()

        server = await self.serve(application)
        request = (
            b"GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = (await server.ask(request % b"refused")).lower()
        self.assertTrue(head.startswith(b"http/1.1 402"), head)
        self.assertIn(b"\r\nretry-after: 9\r\n", head)
        head = (await server.ask(request % b"")).lower()
        self.assertTrue(head.startswith(b"http/1.1 101"), head)
        self.assertIn(b"\r\nx-room: lobby\r\n", head)
        self.assertIn(b"\r\nset-cookie: a=b\r\n", head)

    async def test_a_worker_that_drains_sends_its_clients_elsewhere(self):
        told = Told()
        server = await self.serve(told)
        server.worker.drain_seconds = 0.5
        client = await server.client("/")
        draining = asyncio.ensure_future(server.worker.drain())
        code, reason = await client.ended()
        low, _, high = reason.removeprefix("retry=").partition("-")
        self.assertEqual(code, 1012)
        self.assertLess(int(low), int(high))
        self.assertTrue(await draining)
        self.assertEqual([each.get("code") for each in told.messages], [None, 1012])

    async def test_a_slow_client_makes_send_wait_and_then_goes_with_4008(self):
        sent, told = 0, []

        async def application(scope, receive, send):
            nonlocal sent
            if scope["type"] != "websocket":
                raise ValueError
            await receive()
            await send({"type": "websocket.accept"})
            if scope["path"] == "/echo":
                await send({"type": "websocket.send", **await receive()})
                return
            reading = asyncio.ensure_future(receive())
            while not reading.done():
                await send({"type": "websocket.send", "bytes": bytes(20_000)})
                sent += 1
            told.append(reading.result())

        server = await self.serve(application)
        slow = await server.client("/slow")
        slow.communicator._writer.transport.pause_reading()
        await until(lambda: told, 90)
        self.assertEqual(told[0]["code"], 4008)
        # The kernel's buffers, the outbox, the link's: not what a handler can make in seconds.
        self.assertLess(sent * 20_000, 64 * 1024 * 1024)

    async def test_a_flood_into_a_handler_that_sleeps_is_held_at_the_client(self):
        awake, heard = asyncio.Event(), []

        async def application(scope, receive, send):
            if scope["type"] != "websocket":
                raise ValueError
            await receive()
            await send({"type": "websocket.accept"})
            await awake.wait()
            while (message := await receive())["type"] != "websocket.disconnect":
                heard.append(message["text"])

        server = await self.serve(application)
        client = await server.client("/")
        texts = [f"{number} {'x' * 5000}" for number in range(600)]

        async def flood():
            for text in texts:
                await client.say(text)

        flooding = asyncio.ensure_future(flood())
        held = next(iter(server.worker._links))
        await until(lambda: held.sockets and max(len(each._queue) for each in held.sockets.values()) >= 8)
        for _ in range(50):
            await asyncio.sleep(0.01)
            self.assertLessEqual(max(len(each._queue) for each in held.sockets.values()), 8)
        awake.set()
        await flooding
        await until(lambda: len(heard) == len(texts))
        self.assertEqual(heard, texts)
        await client.close()


@tag("once")
class LiveStrangerTests(WithGateway, StrangerCases, TransactionTestCase):
    pass


@tag("once")
class LiveRedisTests(WithWorker, TransactionTestCase):
    """Redis stops, and is killed, under sockets of consumers with either of its layers and without one."""

    SECONDS = 30 if LONG else 3

    async def talk_on(self, layer, fault):
        if not knows_bridges():
            self.skipTest("this gateway has no bridges")
        with contextlib.ExitStack() as own, tempfile.TemporaryDirectory(prefix="gateway-worker-") as directory:
            port = free_port()
            url, redis = await sync_to_async(own.enter_context)(redis_at(port))
            backend = {"BACKEND": f"channels_redis.{layer}", "CONFIG": {"hosts": [url]}}
            own.enter_context(override_settings(CHANNEL_LAYERS={"default": backend} if layer else {}))
            address = f"unix:{directory}/worker.sock"
            worker = await self.start_worker(asgi.websockets(), address)
            config = {"bridge.path": "/", "bridge.workers": address, "bridge.secret": SECRET.decode()}
            config |= {"redis_url": url, "layer": "core" if layer == CORE else "pubsub"}
            node = Node(config, program=settings.GATEWAY["BINARY"])
            await sync_to_async(node.start)()
            own.callback(node.stop)
            await until(lambda: any(link.proved for link in worker._links), 60)
            clients = [await self.newcomer(node, layer) for _ in range(3)]
            fault(redis)
            end = asyncio.get_running_loop().time() + self.SECONDS
            while asyncio.get_running_loop().time() < end or len(clients) < 5:
                for client in clients:
                    if layer:
                        # Nobody hears it, and it neither raises in the consumer nor holds it up.
                        client.said += 1
                        await client.say(json.dumps({"do": "say", "group": "lobby", "text": "lost"}))
                    await self.counts(client)
                if len(clients) < 5:
                    clients.append(await self.newcomer(node, layer))
                await asyncio.sleep(0.1)
            if layer:
                await asyncio.wait_for(self.sends_to_a_channel(clients[0]), 20)
                await until(lambda: worker.counts.get("layer"))
            # Who leaves meanwhile does so.
            Kept.ends.clear()
            await clients.pop().close(4001)
            await until(lambda: Kept.ends == [("Talk", 4001)])
            if layer:
                if redis.poll() is None:
                    redis.send_signal(signal.SIGCONT)
                else:
                    await sync_to_async(own.enter_context)(redis_at(port))
                await asyncio.wait_for(self.all_hear_the_group_again(clients), 60)

    async def newcomer(self, node, layer):
        client = await asyncio.wait_for(GatewayClient.open(node.url, "/ws/talk/a/"), 5)
        client.said = 0
        if layer:
            client.said += 1
            await asyncio.wait_for(says_json(client, {"do": "join", "group": "lobby"}), 5)
        return client

    async def counts(self, client):
        client.said += 1
        self.assertEqual(await asyncio.wait_for(says_json(client, {"do": "count"}), 5), {"count": client.said})

    async def sends_to_a_channel(self, client):
        client.said += 1
        self.assertEqual(await says_json(client, {"do": "whisper", "text": "lost"}), {"whispered": "lost"})
        await self.counts(client)

    async def all_hear_the_group_again(self, clients):
        # What is said while the layer reconnects may be lost, as under any server.
        deaf, number = set(clients), 0
        while deaf:
            number += 1
            await clients[0].say(json.dumps({"do": "say", "group": "lobby", "text": f"again {number}"}))
            for client in clients:
                with contextlib.suppress(asyncio.TimeoutError):
                    while json.loads(await asyncio.wait_for(client.hears(), 1)) != {"said": f"again {number}"}:
                        pass
                    deaf.discard(client)

    async def test_stopped_with_the_pubsub_layer(self):
        await self.talk_on(PUBSUB, lambda redis: redis.send_signal(signal.SIGSTOP))

    async def test_killed_with_the_pubsub_layer(self):
        await self.talk_on(PUBSUB, lambda redis: (redis.kill(), redis.wait()))

    async def test_stopped_with_the_core_layer(self):
        await self.talk_on(CORE, lambda redis: redis.send_signal(signal.SIGSTOP))

    async def test_killed_with_the_core_layer(self):
        await self.talk_on(CORE, lambda redis: (redis.kill(), redis.wait()))

    async def test_stopped_without_a_layer(self):
        await self.talk_on("", lambda redis: redis.send_signal(signal.SIGSTOP))

    async def test_killed_without_a_layer(self):
        await self.talk_on("", lambda redis: (redis.kill(), redis.wait()))


@tag("once")
class LiveLogTests(unittest.IsolatedAsyncioTestCase):
    async def test_node_and_worker_call_a_socket_by_the_same_name_and_pass_its_trace_on(self):
        if not knows_bridges():
            self.skipTest("this gateway has no bridges")
        temporary = tempfile.TemporaryDirectory(prefix="gateway-worker-")
        self.addCleanup(temporary.cleanup)
        directory = Path(temporary.name)
        environment = {**os.environ, "GATEWAY_BRIDGE__SECRET": SECRET.decode()}
        command = [*WITH_US, sys.executable, "-m", "channel_gateway.worker", "tests.worker_apps:echo"]
        command += ["--listen", f"unix:{directory}/worker.sock", "--log-level", "debug"]
        log = directory / "log"
        with log.open("ab") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        config = {
            "bridge.path": "/",
            "bridge.workers": f"unix:{directory}/worker.sock",
            "bridge.secret": SECRET.decode(),
        }
        node = await asyncio.to_thread(Node(config, program=settings.GATEWAY["BINARY"]).start)
        self.addCleanup(node.stop)
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        headers = {"traceparent": trace}
        client = GatewayCommunicator(node.url + "/ws/a", headers=headers, subprotocols=[])
        self.assertTrue((await client.connect(60))[0])
        await client.send_to("traceparent")
        self.assertEqual(await client.receive_from(30), trace)
        await client.send_to("raise")
        self.assertEqual(await client.receive_close(30), 1011)
        await until(lambda: "WSDISCONNECT" in node.log() and "closed with 1011" in log.read_text())
        plain = re.sub(r"\x1b\[[0-9;]*m", "", node.log())
        ours, theirs = plain.splitlines(), log.read_text().splitlines()
        name = re.search(r"channel=(\S+)", next(line for line in ours if "WSCONNECT" in line))[1]
        self.assertRegex(name, r"^(gateway)?specific\.")
        for what in ("WSCONNECT /ws/a", "the application failed", "WSDISCONNECT /ws/a"):
            self.assertTrue(any(what in line and name in line for line in ours), (what, ours))
        for what in ("opened", "the application raised", "closed with 1011"):
            self.assertTrue(any(what in line and f"websocket /ws/a {name}" in line for line in theirs), (what, theirs))


@tag("once")
class LiveModelTests(unittest.IsolatedAsyncioTestCase):
    """Hundreds of sockets on three workers that are killed and stopped at random: most talk, some do not read for a
    while, some flood a handler that sleeps.
    """

    SOCKETS = 1000 if LONG else 200
    FAULTS = 40 if LONG else 14
    #: Seconds for which a worker is stopped, at most; from ten on it is missed.
    STOPPED = 13 if LONG else 1

    def setUp(self):
        if not knows_bridges():
            self.skipTest("this gateway has no bridges")
        directory = tempfile.TemporaryDirectory(prefix="gateway-worker-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.ends = self.directory / "ends"
        self.ends.touch()
        self.seed = int(os.environ.get("TEST_SEED") or random.randrange(10_000))
        self.random = random.Random(self.seed)
        self.processes = {}

    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)
        # Both ends of the sockets' links and more.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    @staticmethod
    def resident(pid):
        """KiB."""
        return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])

    async def talk(self, socket, stop):
        """A few words under way, for as long as it may."""
        sent = heard = 0
        while not stop.is_set() or heard < sent:
            while sent - heard < 6 and not stop.is_set():
                await socket.send_to(str(sent))
                sent += 1
            self.assertEqual(await socket.receive_from(60), str(heard))
            heard += 1
            self.heard += 1
            await asyncio.sleep((0.2 + random.random() / 5) * self.SOCKETS / 200)

    async def read_slowly(self, socket, stop):
        """More than the outbox holds, for who does not read at first."""
        while not stop.is_set():
            await socket.send_to("many 400")
            socket._writer.transport.pause_reading()
            await asyncio.sleep(random.random() * 2)
            socket._writer.transport.resume_reading()
            for number in range(400):
                self.assertEqual((await socket.receive_from(60)).split()[0], str(number))
                self.heard += 1
            await asyncio.sleep(self.SOCKETS / 200)

    async def flood(self, socket, stop):
        """More than is held, for a handler that sleeps."""
        while not stop.is_set():
            said = ["nap", *(f"{number} {'y' * 1000}" for number in range(100))]

            async def say(said=said):
                for text in said:
                    await socket.send_to(text)

            saying = asyncio.ensure_future(say())
            try:
                for text in said:
                    self.assertEqual(await socket.receive_from(60), text)
                    self.heard += 1
                await saying
            finally:
                saying.cancel()
            await asyncio.sleep(self.SOCKETS / 200)

    def start(self, number):
        path = self.directory / f"worker-{number}.sock"
        environment = {**os.environ, "GATEWAY_BRIDGE__SECRET": SECRET.decode(), "TEST_ENDS": str(self.ends)}
        command = [*WITH_US, sys.executable, "-m", "channel_gateway.worker", "tests.worker_apps:echo"]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--listen", f"unix:{path}", "--drain-seconds", "1"], env=environment, stdout=log, stderr=log
            )
        self.processes[number] = process
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

    async def test_sockets_keep_their_order_and_end_once_whatever_happens_to_workers(self):
        for number in range(3):
            self.start(number)
        config = {
            "bridge.path": "/",
            "bridge.workers": f"unix:{self.directory}/worker-*.sock",
            "bridge.secret": SECRET.decode(),
            "bridge.outbox_bytes": 65536,
            "bridge.slow_seconds": 60,
        }
        node = await asyncio.to_thread(Node(config, program=settings.GATEWAY["BINARY"]).start)
        self.addCleanup(node.stop)
        stop, opened, killed = asyncio.Event(), {}, set()
        self.heard = 0
        manners = [self.talk] * 8 + [self.read_slowly, self.flood]

        async def client(name):
            visit, manner = 0, manners[name % len(manners)]
            while not stop.is_set():
                visit += 1
                path = f"/{name}/{visit}"
                socket = GatewayCommunicator(node.url + path, subprotocols=[])
                try:
                    connected, _ = await socket.connect(60)
                    if not connected:
                        await asyncio.sleep(0.2)
                        continue
                    await socket.send_to("pid")
                    opened[path] = int(await socket.receive_from(60))
                    await manner(socket, stop)
                    await socket.disconnect(timeout=60)
                except (ConnectionError, asyncio.IncompleteReadError):
                    # Its worker has gone: all that was heard was in order, and it comes back.
                    await asyncio.sleep(random.random() / 5)

        clients = [asyncio.ensure_future(client(name)) for name in range(self.SOCKETS)]
        await until(lambda: len(opened) >= self.SOCKETS, 120)
        flat = None
        for fault in range(self.FAULTS):
            before = self.heard
            if fault == self.FAULTS // 3:
                flat = self.resident(node._process.pid)
            number = self.random.randrange(3)
            process = self.processes[number]
            if self.random.random() < 0.5:
                process.kill()
                killed.add(process.pid)
                await asyncio.to_thread(process.wait)
                self.start(number)
            else:
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self.random.random() * self.STOPPED)
                process.send_signal(signal.SIGCONT)
            # Work goes on between the faults.
            await until(lambda before=before: self.heard > before + 100, 120)
        stop.set()
        # Nothing piles up, neither here nor there.
        self.assertLess(self.resident(node._process.pid) - flat, 30_000)
        done = await asyncio.wait_for(asyncio.gather(*clients, return_exceptions=True), 180)
        self.assertEqual([each for each in done if each is not None], [], f"TEST_SEED={self.seed}")
        expected = sorted(path for path, pid in opened.items() if pid not in killed)

        def ends():
            return [line.split() for line in self.ends.read_text().splitlines()]

        await until(lambda: len([path for pid, path, _ in ends() if int(pid) not in killed]) >= len(expected), 60)
        found = sorted(path for pid, path, _ in ends() if int(pid) not in killed)
        every = [path for _, path, _ in ends()]
        self.assertEqual(len(set(every)), len(every), f"TEST_SEED={self.seed}: a disconnect twice")
        # A socket whose process was never heard of may have ended too.
        self.assertEqual(sorted(set(found) & set(opened)), expected, f"TEST_SEED={self.seed}")
        workers = [self.resident(process.pid) for process in self.processes.values()]
        self.assertLess(max(workers), 120_000, workers)
        print(
            f"\n{self.SOCKETS} sockets, {len(opened)} opened, {len(killed)} kills of {self.FAULTS} faults,"
            f" {self.heard} heard, TEST_SEED={self.seed}"
        ) if LONG else None
