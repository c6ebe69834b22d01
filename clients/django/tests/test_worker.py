"""The worker, with a small node of the tests' own: ASGI, the link, bounds. Nothing of Django."""

import asyncio
import contextlib
import logging
import os
import struct
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import msgpack

from channel_gateway.worker import frames, instance, link, listen, options
from channel_gateway.worker.lifespan import StartupFailed
from channel_gateway.worker.server import Server, load

from . import bridge
from .bridge import SECRET, Node


class WorkerCase(unittest.IsolatedAsyncioTestCase):
    """Workers in this process, and links to them."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="gateway-worker-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        logger = logging.getLogger("channel_gateway.worker")
        level, logger.level = logger.level, logging.CRITICAL
        self.addCleanup(setattr, logger, "level", level)

    async def asyncSetUp(self):
        # Its debugging makes a flood a hundred times slower.
        asyncio.get_running_loop().set_debug(False)

    async def worker(self, application, *, lifespan=False, **more):
        server = Server(application, SECRET, lifespan=lifespan, application_name="tests:app", **more)
        self.addAsyncCleanup(server.stop)
        self.address = f"unix:{self.directory}/worker.sock"
        await server.start(listen.parse(self.address))
        return server

    async def dial(self, **more):
        node = await Node(**more).dial(self.address)
        self.addCleanup(node.close)
        return node

    async def until(self, condition):
        async with asyncio.timeout(bridge.PATIENCE) if hasattr(asyncio, "timeout") else contextlib.nullcontext():
            while not condition():
                await asyncio.sleep(0.005)

    async def connect(self, application, path="/", **more):
        await self.worker(application)
        return await (await self.dial()).connect(path, **more)


class Recorder:
    """Accepts, echoes, and keeps what it was given."""

    def __init__(self, **options):
        self.scopes, self.messages, self.raised = [], [], []
        self.returned = 0
        self.options = options

    async def __call__(self, scope, receive, send):
        if scope["type"] != "websocket":
            raise ValueError("only websockets here")
        self.scopes.append(scope)
        while True:
            message = await receive()
            self.messages.append(message)
            kind = message["type"]
            if kind == "websocket.connect":
                await send({"type": "websocket.accept", **self.options})
            elif kind == "websocket.disconnect":
                break
            elif message.get("text", "").startswith("close"):
                words = message["text"].split(" ", 2)
                code = {"code": int(words[1])} if len(words) > 1 else {}
                await send({"type": "websocket.close", **code, **({"reason": words[2]} if len(words) > 2 else {})})
            elif message.get("text") == "return":
                break
            elif message.get("text") == "raise":
                raise KeyError("asked to")
            else:
                await send({**message, "type": "websocket.send"})
        self.returned += 1

    def kinds(self):
        return [message["type"].removeprefix("websocket.") for message in self.messages]

    def ends(self):
        return [message for message in self.messages if message["type"] == "websocket.disconnect"]


def answers(*messages):
    """An application that answers the connect with these, then waits for the disconnect."""

    async def application(scope, receive, send):
        application.scopes.append(scope)
        application.messages.append(await receive())
        for message in messages:
            await send(message)
        while application.messages[-1]["type"] != "websocket.disconnect":
            application.messages.append(await receive())

    application.scopes, application.messages = [], []
    return application


class ScopeTests(WorkerCase):
    async def test_the_scope_is_that_of_asgi_3(self):
        app = Recorder()
        headers = [(b"host", b"example.com"), (b"cookie", b"a=b"), (b"x", b"1"), (b"x", b"2")]
        await self.connect(
            app,
            "/ä/b",
            headers=headers,
            subprotocols=["one", "two"],
            query=b"a=%20b",
            scope={"raw_path": b"/%C3%A4%2Fb", "scheme": "wss", "gateway_auth": {"user": "ann", "id": 7}},
            traceparent="00-11111111111111111111111111111111-2222222222222222-01",
        )
        scope = app.scopes[0]
        traced = (b"traceparent", b"00-11111111111111111111111111111111-2222222222222222-01")
        expected = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "wss",
            "path": "/ä/b",
            "raw_path": b"/%C3%A4%2Fb",
            "query_string": b"a=%20b",
            "root_path": "",
            "headers": [*headers, traced],
            "client": ["127.0.0.1", 5],
            "server": ["127.0.0.1", 80],
            "subprotocols": ["one", "two"],
            "extensions": {"websocket.http.response": {}, "gateway.auth": {"user": "ann", "id": 7}},
            "state": {},
        }
        self.assertEqual(scope, expected)

    async def test_the_lifespan_runs_once_and_its_state_is_copied_for_each_socket(self):
        said, states = [], []

        async def application(scope, receive, send):
            if scope["type"] == "lifespan":
                while True:
                    kind = (await receive())["type"]
                    said.append(kind)
                    scope["state"]["pool"] = shared
                    await send({"type": f"{kind}.complete"})
                    if kind == "lifespan.shutdown":
                        return
            states.append(scope["state"])
            scope["state"]["own"] = len(states)
            await receive()
            await send({"type": "websocket.accept"})
            await receive()

        shared = object()
        server = await self.worker(application, lifespan=True)
        node = await self.dial()
        await node.connect()
        await node.connect()
        self.assertEqual(states, [{"pool": shared, "own": 1}, {"pool": shared, "own": 2}])
        await server.stop()
        self.assertEqual(said, ["lifespan.startup", "lifespan.shutdown"])

    async def test_a_startup_that_fails_is_said(self):
        async def application(scope, receive, send):
            await send({"type": "lifespan.startup.failed", "message": "no database"})

        with self.assertRaisesRegex(StartupFailed, "no database"):
            await self.worker(application, lifespan=True)


class HandshakeTests(WorkerCase):
    async def test_accept_with_subprotocol_and_headers(self):
        app = answers({"type": "websocket.accept", "subprotocol": "two", "headers": [(b"x-a", b"b"), (b"x-a", b"c")]})
        socket = await self.connect(app, subprotocols=["one", "two"])
        self.assertEqual(socket.accepted, {"subprotocol": "two", "headers": [[b"x-a", b"b"], [b"x-a", b"c"]]})

    async def test_close_before_accept_is_403_and_then_a_disconnect(self):
        app = answers({"type": "websocket.close"})
        await self.worker(app)
        socket = (await self.dial()).open()
        self.assertEqual(await socket.next(), ("deny", {"status": 403, "headers": [], "body": b""}))
        self.assertEqual(await socket.end(), 0)
        self.assertEqual(app.messages[1:], [{"type": "websocket.disconnect", "code": 1006, "reason": ""}])

    async def test_a_response_of_the_applications(self):
        start = {"type": "websocket.http.response.start", "status": 402, "headers": [(b"retry-after", b"9")]}
        app = answers(
            start,
            {"type": "websocket.http.response.body", "body": b"pay", "more_body": True},
            {"type": "websocket.http.response.body", "body": b" first"},
        )
        await self.worker(app)
        socket = (await self.dial()).open()
        answer = {"status": 402, "headers": [[b"retry-after", b"9"]], "body": b"pay first"}
        self.assertEqual(await socket.next(), ("deny", answer))
        self.assertEqual(await socket.end(), 0)
        self.assertEqual([each["type"] for each in app.messages], ["websocket.connect", "websocket.disconnect"])

    async def test_what_ends_without_an_answer_says_so(self):
        async def returns(scope, receive, send):
            await receive()

        async def raises(scope, receive, send):
            raise LookupError("no such path")

        async def exits(scope, receive, send):
            raise SystemExit(3)

        async def cancels(scope, receive, send):
            raise asyncio.CancelledError

        def not_async(scope, receive, send):
            raise ArithmeticError("at once")

        cases = [(returns, 0, "without an answer"), (raises, 1, "LookupError: no such path"), (exits, 1, "sys.exit")]
        cases += [(cancels, 1, "cancelled"), (not_async, 1, "ArithmeticError")]
        current = None
        await self.worker(lambda *given: current(*given))
        node = await self.dial()
        for application, outcome, text in cases:
            with self.subTest(application.__name__):
                current = application
                kind, found, said = await node.open().next()
                self.assertEqual((kind, found), ("end", outcome))
                self.assertIn(text, said)

    async def test_the_client_may_leave_before_the_answer(self):
        came, go = asyncio.Event(), asyncio.Event()
        messages = []

        async def application(scope, receive, send):
            messages.append(await receive())
            came.set()
            await go.wait()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "nobody hears it"})
            messages.append(await receive())

        server = await self.worker(application)
        socket = (await self.dial()).open()
        await came.wait()
        socket.closed(1006)
        await self.until(lambda: socket.node.sockets and server._lingering)
        go.set()
        self.assertEqual(await socket.end(), 0)
        self.assertEqual(messages[1]["code"], 1006)
        self.assertEqual(server.counts["after_end"], 2)

    async def test_what_asgi_does_not_allow_raises_in_the_application(self):
        accept, text = {"type": "websocket.accept"}, {"type": "websocket.send", "text": "x"}
        start = {"type": "websocket.http.response.start", "status": 400, "headers": []}
        body = {"type": "websocket.http.response.body", "body": b""}
        wrong = [
            [text],
            [accept, accept],
            [{"type": "websocket.unknown"}],
            [accept, {"type": "http.response.start", "status": 200}],
            [accept, start],
            [body],
            [start, text],
            [start, accept],
            [start, start],
            [{**start, "status": 101}],
            [start, {**body, "body": bytes(1024 * 1024 + 1)}],
            [accept, {"type": "websocket.send"}],
            [accept, {"type": "websocket.send", "text": None, "bytes": None}],
            [accept, {"type": "websocket.send", "text": "\ud800"}],
            [accept, {"type": "websocket.send", "bytes": bytes(16 * 1024 * 1024 + 1)}],
            [{**accept, "headers": [("x", "y")]}],
            [{**accept, "headers": [(b"x", b"y\r\nset-cookie: a=b")]}],
            [{**accept, "headers": [(b"x y", b"z")]}],
            [{**accept, "headers": [(b"Sec-WebSocket-Protocol", b"a")]}],
            [{**accept, "subprotocol": "a, b"}],
        ]
        caught = []
        messages = []

        async def application(scope, receive, send):
            await receive()
            try:
                for message in messages:
                    await send(message)
            except Exception as error:
                caught.append((len(messages), type(error)))
                raise

        await self.worker(application)
        node = await self.dial()
        for each in wrong:
            messages = each
            with self.subTest([message["type"] for message in each]):
                socket = node.open()
                self.assertEqual(await socket.end(), 1)
                self.assertIn(caught.pop()[1], (RuntimeError, ValueError, TypeError, UnicodeEncodeError))


class MessageTests(WorkerCase):
    async def test_text_and_binary_in_their_order(self):
        app = Recorder()
        socket = await self.connect(app)
        said = ["ä\0🐉", b"\xff\x00", "", b"", "x" * 70_000]
        for each in said:
            socket.say(each)
            self.assertEqual(await socket.hears(), each)
        texts = [{"type": "websocket.receive", "text" if isinstance(each, str) else "bytes": each} for each in said]
        self.assertEqual(app.messages[1:], texts)

    async def test_bytes_may_be_any_buffer(self):
        app = answers(
            {"type": "websocket.accept"},
            {"type": "websocket.send", "bytes": bytearray(b"one")},
            {"type": "websocket.send", "bytes": memoryview(b"two"), "text": None},
        )
        socket = await self.connect(app)
        self.assertEqual([await socket.hears(), await socket.hears()], [b"one", b"two"])

    async def test_a_frame_may_come_in_pieces(self):
        socket = await self.connect(Recorder())
        whole = b"".join(bridge.frame(bridge.TEXT, socket.sid, text) for text in (b"one", b"x" * 3000, b"two"))
        for at in range(0, len(whole), 7):
            socket.node.writer.write(whole[at : at + 7])
            await asyncio.sleep(0)
        self.assertEqual([await socket.hears() for _ in range(3)], ["one", "x" * 3000, "two"])
        large = os.urandom(5_000_000)
        socket.say(large)
        self.assertEqual(await socket.hears(), large)

    async def test_credit_is_given_for_what_was_taken(self):
        gate = asyncio.Semaphore(0)
        taken = []

        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            while True:
                await gate.acquire()
                taken.append(await receive())

        server = await self.worker(application)
        socket = await (await self.dial()).connect()
        socket.sees_credit = True
        for number in range(8):
            socket.say(str(number))
        held = next(iter(server._links)).sockets[socket.sid]
        await self.until(lambda: len(held._queue) == 8)
        self.assertEqual(socket.credit, 0)
        gate.release()
        self.assertEqual(await socket.next(), ("credit", 1))
        for _ in range(7):
            gate.release()
        while socket.credit < 8:
            await socket.next()
        self.assertEqual([each["text"] for each in taken], list("01234567"))
        # One message alone may have any size.
        socket.say(bytes(200_000))
        gate.release()
        while socket.credit < 9:
            await socket.next()

    async def test_a_node_that_sends_without_credit_loses_its_link(self):
        async def application(scope, receive, send):
            if (await receive())["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})
            await sleeps.wait()

        for what in ([b"x"] * 17, [bytes(70_000)] * 3):
            sleeps = asyncio.Event()
            server = await self.worker(application)
            socket = await (await self.dial()).connect()
            for each in what:
                socket.say(each)
            await asyncio.wait_for(socket.node.ended.wait(), bridge.PATIENCE)
            self.assertEqual(server.counts["malformed"], 1)
            sleeps.set()
            await server.stop()

    async def test_pause_makes_send_wait_in_its_order(self):
        app = Recorder()
        socket = await self.connect(app)
        socket.pause()
        for number in range(6):
            socket.say(str(number))
        self.assertEqual((await socket.next())[0], "waiting")
        # Only one was taken, as the handler waits.
        self.assertEqual(app.kinds(), ["connect", "receive"])
        self.assertTrue(socket.events.empty())
        socket.pause(False)
        self.assertEqual([await socket.hears() for _ in range(6)], list("012345"))

    async def test_sends_of_many_tasks_keep_the_order_of_their_calls(self):
        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] != "websocket.disconnect":
                tasks = [
                    asyncio.ensure_future(send({"type": "websocket.send", "text": str(number)})) for number in range(20)
                ]
                await asyncio.sleep(0)
                tasks[3].cancel()
                await asyncio.wait(tasks)

        socket = await self.connect(application)
        socket.pause()
        socket.say("go")
        self.assertEqual((await socket.next())[0], "waiting")
        socket.pause(False)
        expected = [str(number) for number in range(20) if number != 3]
        self.assertEqual([await socket.hears() for _ in expected], expected)
        self.assertTrue(socket.events.empty())

    async def test_a_close_of_another_task_ends_sends_that_wait(self):
        done = []

        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            waits = asyncio.ensure_future(send({"type": "websocket.send", "text": "too late"}))
            await asyncio.sleep(0)
            await send({"type": "websocket.close"})
            done.append(await waits)

        socket = await self.connect(application)
        socket.pause()
        socket.say("go")
        self.assertEqual([(await socket.next())[0] for _ in range(3)], ["waiting", "close", "end"])
        self.assertEqual(done, [None])

    async def test_a_receive_given_up_as_its_message_comes_leaves_it_to_another(self):
        receiving = []

        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            receiving[:] = asyncio.ensure_future(receive()), asyncio.ensure_future(receive())
            await send({"type": "websocket.send", "text": (await receiving[1])["text"]})

        def comes_and_is_given_up(self, kind, body):
            taken(self, kind, body)
            receiving[0].cancel()

        socket = await self.connect(application)
        taken = instance.Instance.message
        with mock.patch.object(instance.Instance, "message", comes_and_is_given_up):
            socket.say("kept")
            self.assertEqual(await socket.hears(), "kept")

    async def test_a_send_that_waits_ends_with_its_socket(self):
        app = Recorder()
        server = await self.worker(app)
        socket = await (await self.dial()).connect()
        socket.pause()
        socket.say("never sent")
        self.assertEqual((await socket.next())[0], "waiting")
        socket.closed(4008, "outbox full")
        self.assertEqual(await socket.end(), 0)
        self.assertEqual(app.ends(), [{"type": "websocket.disconnect", "code": 4008, "reason": "outbox full"}])
        self.assertEqual(server.counts, {"after_end": 1})

    async def test_a_handler_that_only_sends_lets_others_in_and_waits_for_the_link(self):
        sent = 0

        async def application(scope, receive, send):
            nonlocal sent
            await receive()
            await send({"type": "websocket.accept"})
            if scope["path"] == "/flood":
                while True:
                    await send({"type": "websocket.send", "bytes": bytes(1000)})
                    sent += 1
            await receive()
            await send({"type": "websocket.send", "text": "still here"})

        server = await self.worker(application)
        flooded = await self.dial()
        flooded.writer.transport.pause_reading()
        flooded.open("/flood")
        other = await (await self.dial()).connect("/other")
        other.say("?")
        self.assertEqual(await other.hears(), "still here")
        one = next(each for each in server._links if each.paused or each.unflushed or len(each.sockets) == 1)
        await self.until(lambda: one.paused or any(each.paused for each in server._links))
        # It waits: what is sent does not grow.
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        held = max(each._transport.get_write_buffer_size() for each in server._links)
        self.assertLess(held, 2 * link.WRITE_HIGH)

    async def test_a_pause_reaches_a_handler_that_only_sends(self):
        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            while True:
                await send({"type": "websocket.send", "text": "more"})

        await self.worker(application)
        socket = await (await self.dial()).connect()
        socket.pause()
        while (await socket.next())[0] != "waiting":
            pass
        self.assertTrue(socket.events.empty())
        socket.pause(False)
        self.assertEqual(await socket.hears(), "more")

    async def test_receive_may_be_given_up_and_called_again(self):
        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            found = []
            while len(found) < 50:
                with contextlib.suppress(asyncio.TimeoutError):
                    found.append((await asyncio.wait_for(receive(), 0.001))["text"])
                await send({"type": "websocket.send", "text": ",".join(found)})
            one, two = asyncio.ensure_future(receive()), asyncio.ensure_future(receive())
            await send({"type": "websocket.send", "text": "two wait"})
            await send({"type": "websocket.send", "text": (await one)["text"] + (await two)["text"]})

        socket = await self.connect(application)
        for number in range(50):
            socket.say(str(number))
            while not (await socket.hears()).endswith(str(number)):
                pass
        while (heard := await socket.hears()) != "two wait":
            self.assertTrue(",".join(map(str, range(50))).startswith(heard))
        socket.say("a")
        socket.say("b")
        self.assertEqual(await socket.hears(), "ab")


class EndTests(WorkerCase):
    async def test_the_client_closes(self):
        for code, reason in ((1000, ""), (1005, ""), (1006, ""), (4123, "because"), (1012, "retry=1-2")):
            with self.subTest(code):
                app = Recorder()
                server = await self.worker(app)
                socket = await (await self.dial()).connect()
                socket.closed(code, reason)
                self.assertEqual(await socket.end(), 0)
                self.assertEqual(app.ends(), [{"type": "websocket.disconnect", "code": code, "reason": reason}])
                await server.stop()

    async def test_the_application_closes(self):
        cases = {
            "close": (1000, ""),
            "close 4000": (4000, ""),
            "close 3000 bye": (3000, "bye"),
            "close 1005": (1011, ""),
            "close 1006": (1011, ""),
            "close 1015": (1011, ""),
            "close 1004": (1011, ""),
            "close 999": (1011, ""),
            "close 5000": (1011, ""),
            "close 70000": (1011, ""),
            "close -1": (1011, ""),
            f"close 1001 {'ä' * 100}": (1001, "ä" * 61),
            f"close 1001 {'🐉' * 31}": (1001, "🐉" * 30),
        }
        app = Recorder()
        await self.worker(app)
        node = await self.dial()
        for text, (code, reason) in cases.items():
            with self.subTest(text):
                socket = await node.connect()
                socket.say(text)
                self.assertEqual(await socket.next(), ("close", code, reason))
                self.assertEqual(await socket.end(), 0)
                self.assertEqual(app.ends()[-1]["code"], code)
        self.assertEqual(len(app.ends()), len(cases))

    async def test_what_was_sent_after_the_end_is_dropped_and_lets_others_run(self):
        turns = 0

        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
            for message in ({"type": "websocket.send", "text": "x"}, {"type": "websocket.accept"}, {"type": "no.such"}):
                await send(message)
            before = turns
            for _ in range(100):
                await send({"type": "websocket.send"})
            assert turns - before >= 50, (before, turns)
            await receive()
            await send({"type": "websocket.send", "text": "y"})

        async def clock():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        server = await self.worker(application)
        ticking = asyncio.ensure_future(clock())
        socket = await (await self.dial()).connect()
        self.assertEqual(await socket.next(), ("close", 1000, ""))
        self.assertEqual(await socket.end(), 0)
        ticking.cancel()
        self.assertEqual(server.counts, {"after_end": 104})
        self.assertEqual(len(socket.ends), 1)

    async def test_returning_and_raising_while_open(self):
        await self.worker(Recorder())
        node = await self.dial()
        for text, outcome, said in (("return", 0, ""), ("raise", 1, "KeyError: 'asked to'")):
            socket = await node.connect()
            socket.say(text)
            self.assertEqual(await socket.next(), ("end", outcome, said))
            # The node closes it, and says so; nothing else comes of it.
            socket.closed(1000)
        other = await node.connect()
        other.say("still")
        self.assertEqual(await other.hears(), "still")

    async def test_what_does_not_return_is_cancelled(self):
        told = []

        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told.append("cancelled")
                if scope["path"] == "/stubborn":
                    await asyncio.Event().wait()
                raise

        linger, instance_linger = 0.05, instance.LINGER
        self.addCleanup(self._linger, instance_linger)
        self._linger(linger)
        server = await self.worker(application)
        node = await self.dial()
        socket, stubborn = await node.connect(), await node.connect("/stubborn")
        socket.closed(1001)
        stubborn.closed(1001)
        self.assertEqual(await socket.end(), 2)
        self.assertEqual(await stubborn.end(), 2)
        self.assertEqual(told, ["cancelled"] * 2)
        self.assertEqual(server.running, 0)

    @staticmethod
    def _linger(seconds):
        from channel_gateway.worker import server

        server.LINGER = seconds

    async def test_a_link_that_dies_is_a_disconnect_for_each(self):
        app = Recorder()
        server = await self.worker(app)
        node = await self.dial()
        for _ in range(5):
            await node.connect()
        waits = await node.connect()
        waits.pause()
        waits.say("waits")
        self.assertEqual((await waits.next())[0], "waiting")
        closed = await node.connect()
        closed.closed(1001)
        await closed.end()
        node.close()
        await self.until(lambda: app.returned == 7)
        self.assertEqual([each["code"] for each in app.ends()], [1001] + [1006] * 6)
        self.assertEqual((server.running, len(server._links)), (0, 0))

    async def test_nothing_is_left_of_a_socket(self):
        server = await self.worker(Recorder())
        node = await self.dial()
        held = next(iter(server._links))
        first, second, third = [await node.connect() for _ in range(3)]
        first.closed(1000)
        second.say("close")
        third.say("return")
        for each in (first, second, third):
            await each.end()
        third.closed(1000)
        await self.until(lambda: not held.sockets)
        third.say("nobody")
        await self.until(lambda: server.counts.get("unknown_sid") == 1)

    # The faults that other servers had, by name.

    async def test_granian_798_a_disconnect_follows_the_applications_own_close(self):
        app = Recorder()
        socket = await self.connect(app)
        socket.say("close 4001")
        await socket.end()
        self.assertEqual(app.kinds(), ["connect", "receive", "disconnect"])
        self.assertEqual(app.ends()[0]["code"], 4001)

    async def test_granian_601_what_follows_the_disconnect_runs_to_its_end(self):
        done = []

        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            try:
                await receive()
            finally:
                for _ in range(5):
                    await asyncio.sleep(0.01)
                done.append(scope["path"])

        server = await self.worker(application)
        node = await self.dial()
        socket = await node.connect("/client")
        socket.closed(1000)
        await socket.end()
        await node.connect("/drain")
        draining = asyncio.ensure_future(server.drain())
        await node.drain
        node.sockets[2].closed(1012)
        self.assertTrue(await draining)
        self.assertEqual(done, ["/client", "/drain"])

    async def test_unit_572_and_825_a_close_of_either_side_ends_the_application_once(self):
        app = Recorder()
        await self.worker(app)
        node = await self.dial()
        # Both at once: the client's close has crossed the application's.
        socket = await node.connect()
        socket.say("close 4000")
        socket.closed(1001, "crossed")
        await socket.end()
        refused = await node.connect()
        refused.closed(1006)
        refused.closed(1006)
        await refused.end()
        self.assertEqual(app.kinds().count("disconnect"), 2)
        self.assertEqual(app.returned, 2)

    async def test_uvicorn_226_a_client_that_vanishes_is_a_disconnect_with_1006(self):
        app = Recorder()
        socket = await self.connect(app)
        for number in range(3):
            socket.say(str(number))
        socket.closed(1006)
        await socket.end()
        self.assertEqual(app.kinds(), ["connect", "receive", "receive", "receive", "disconnect"])
        self.assertEqual(app.ends()[0]["code"], 1006)

    async def test_uvicorn_1344_a_server_that_stops_says_1012(self):
        app = Recorder()
        server = await self.worker(app, drain_seconds=0.05)
        node = await self.dial()
        await node.connect()
        self.assertEqual(await self._drain(server, node), 0.05)
        self.assertEqual([each["code"] for each in app.ends()], [1012])

    async def _drain(self, server, node):
        draining = asyncio.ensure_future(server.drain())
        window = await node.drain
        for socket in node.sockets.values():
            socket.closed(1012, "retry=1-2")
        self.assertTrue(await draining)
        return window


class LinkTests(WorkerCase):
    async def test_the_worker_says_who_it_is(self):
        await self.worker(Recorder(), max_sockets=7)
        welcome = (await self.dial()).welcome
        self.assertEqual((welcome["v"], welcome["app"], welcome["max_sockets"]), (1, "tests:app", 7))
        self.assertIn(str(os.getpid()), welcome["worker"])

    async def test_neither_side_takes_another_secret(self):
        app = Recorder()
        server = await self.worker(app)
        with self.assertRaises(PermissionError):
            await Node().dial(self.address, secret=b"another secret of theirs")
        # A node that goes on regardless is closed, and what it says with its proof is not read.
        reader, writer = await asyncio.open_unix_connection(self.address[5:])
        writer.write(bridge.frame(bridge.HELLO, 0, msgpack.packb({"v": 1, "node": "n", "nonce": bytes(32)})))
        await reader.readexactly(4)
        writer.write(bridge.frame(bridge.PROOF, 0, msgpack.packb({"mac": bytes(32)})))
        writer.write(bridge.frame(bridge.OPEN, 1, msgpack.packb({"scope": {}})))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        self.assertEqual(server.counts["wrong_secret"], 1)
        self.assertEqual(app.scopes, [])
        await self.until(lambda: not server._links and not server._strangers)

    async def test_a_worker_cannot_be_shown_its_own_proof(self):
        server = await self.worker(Recorder())
        reader, writer = await asyncio.open_unix_connection(self.address[5:])
        writer.write(bridge.frame(bridge.HELLO, 0, msgpack.packb({"v": 1, "node": "n", "nonce": bytes(32)})))
        length, _, _ = bridge.HEAD.unpack(await reader.readexactly(13))
        welcome = msgpack.unpackb(await reader.readexactly(length - 9))
        writer.write(bridge.frame(bridge.PROOF, 0, msgpack.packb({"mac": welcome["mac"]})))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        self.assertEqual(server.counts, {"wrong_secret": 1})

    async def test_malformed_beginnings(self):
        server = await self.worker(Recorder())
        hello = {"v": 1, "node": "n", "nonce": bytes(32)}
        beginnings = [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            struct.pack("<IBQ", 5000, bridge.HELLO, 0),
            struct.pack("<IBQ", 3, bridge.HELLO, 0),
            bridge.frame(bridge.HELLO, 1, msgpack.packb(hello)),
            bridge.frame(bridge.HELLO, 0, b"\xc1"),
            bridge.frame(bridge.HELLO, 0, msgpack.packb([1])),
            bridge.frame(bridge.HELLO, 0, msgpack.packb({**hello, "v": 2})),
            bridge.frame(bridge.HELLO, 0, msgpack.packb({**hello, "nonce": b"short"})),
            bridge.frame(bridge.OPEN, 1, msgpack.packb({"scope": {}})),
            bridge.frame(bridge.PING, 0, bytes(8)),
        ]
        for number, beginning in enumerate(beginnings, 1):
            with self.subTest(beginning):
                reader, writer = await asyncio.open_unix_connection(self.address[5:])
                writer.write(beginning)
                with contextlib.suppress(ConnectionError):
                    self.assertEqual(await asyncio.wait_for(reader.read(), bridge.PATIENCE), b"")
                writer.close()
                self.assertEqual(server.counts["malformed"], number)

    async def test_malformed_frames_end_the_link_and_nothing_else(self):
        app = Recorder()
        server = await self.worker(app)
        other = await (await self.dial()).connect()
        scope = {"path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
        broken = [
            bridge.frame(31, 1),
            bridge.frame(0, 0),
            bridge.frame(bridge.TEXT, 0, b"x"),
            bridge.frame(bridge.TEXT, 9, b"never opened"),
            bridge.frame(bridge.TEXT, 1, b"\xff"),
            bridge.frame(bridge.CLOSED, 1, b"\x01"),
            bridge.frame(bridge.OPEN, 2, b"\xc1"),
            bridge.frame(bridge.OPEN, 1, msgpack.packb({"scope": scope})),
            bridge.frame(bridge.OPEN, 2, msgpack.packb({"scope": {**scope, "headers": [[b"a"]]}})),
            bridge.frame(bridge.OPEN, 2, msgpack.packb({"scope": {**scope, "path": 7}})),
            bridge.frame(bridge.ACCEPT, 1, msgpack.packb({})),
            struct.pack("<IBQ", frames.MAX_FRAME + 1, bridge.TEXT, 1),
        ]
        for number, bad in enumerate(broken, 1):
            with self.subTest(bad):
                node = await self.dial()
                await node.connect()
                node.writer.write(bad)
                await asyncio.wait_for(node.ended.wait(), bridge.PATIENCE)
                self.assertEqual(server.counts["malformed"], number)
        await self.until(lambda: len(app.ends()) == len(broken))
        self.assertEqual({each["code"] for each in app.ends()}, {1006})
        other.say("still")
        self.assertEqual(await other.hears(), "still")

    async def test_kinds_of_later_versions_are_passed_over(self):
        await self.worker(Recorder())
        node = await self.dial()
        node.write(200, 0, b"?")
        node.write(200, 77, b"?")
        await node.connect()

    async def test_pings_are_answered(self):
        await self.worker(Recorder())
        node = await self.dial()
        node.write(bridge.PING, 0, b"12345678")
        await self.until(lambda: node.pongs == 1)

    async def test_a_silent_node_is_given_up(self):
        self.addCleanup(setattr, link, "PING_SECONDS", link.PING_SECONDS)
        link.PING_SECONDS = 0.01
        app = Recorder()
        server = await self.worker(app)
        node = await self.dial()
        await node.connect()
        node.writer.transport.pause_reading()
        node._task.cancel()
        await self.until(lambda: app.returned)
        self.assertEqual(app.ends()[0]["code"], 1006)
        self.assertEqual(server.counts, {"silent": 1})

    async def test_who_does_not_prove_the_secret_in_time_is_closed(self):
        self.addCleanup(setattr, link, "STEP_SECONDS", link.STEP_SECONDS)
        link.STEP_SECONDS = 0.02
        server = await self.worker(Recorder())
        _, writer = await asyncio.open_unix_connection(self.address[5:])
        await self.until(lambda: server.counts == {"too_slow": 1} and not server._links)
        writer.close()

    async def test_strangers_are_bounded(self):
        server = await self.worker(Recorder())
        writers = []
        for _ in range(70):
            with contextlib.suppress(ConnectionError):
                writers.append((await asyncio.open_unix_connection(self.address[5:]))[1])
        await self.until(lambda: server.counts.get("links_refused") == 6)
        self.assertEqual(len(server._links), 64)
        for writer in writers:
            writer.close()
        await self.until(lambda: not server._links)
        await (await self.dial()).connect()

    async def test_max_sockets_counts_over_all_nodes(self):
        await self.worker(Recorder(), max_sockets=2)
        one, other = await self.dial(), await self.dial()
        first = await one.connect()
        await other.connect()
        self.assertEqual(await other.open().next(), ("end", 3, "full"))
        first.closed(1000)
        await first.end()
        await other.connect()

    async def test_a_worker_that_drains_takes_no_sockets_and_waits_for_the_last(self):
        app = Recorder()
        server = await self.worker(app, drain_seconds=20)
        node = await self.dial()
        socket = await node.connect()
        draining = asyncio.ensure_future(server.drain())
        self.assertEqual(await node.drain, 20)
        self.assertEqual(await node.open().next(), ("end", 3, "draining"))
        socket.say("still")
        self.assertEqual(await socket.hears(), "still")
        self.assertFalse(Path(self.address[5:]).exists())
        self.assertFalse(draining.done())
        socket.closed(1012, "retry=1-2")
        self.assertTrue(await draining)
        await server.stop()
        await node.ended.wait()
        self.assertEqual([each["code"] for each in app.ends()], [1012])

    async def test_what_is_left_after_the_window_is_ended(self):
        app = Recorder()
        server = await self.worker(app, drain_seconds=-1.9)
        await (await self.dial()).connect()
        self.assertFalse(await server.drain())
        self.assertEqual([each["code"] for each in app.ends()], [1012])

    async def test_a_flood_into_a_handler_that_sleeps_takes_no_memory(self):
        awake = asyncio.Event()

        async def application(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            await awake.wait()
            while (await receive())["type"] != "websocket.disconnect":
                pass

        server = await self.worker(application)
        node = await self.dial()
        sockets = [await node.connect() for _ in range(50)]
        # As a node does: no more than 8 without credit. What is more never reaches the link.
        for socket in sockets:
            for _ in range(8):
                socket.say(bytes(8000))
        held = next(iter(server._links))
        await self.until(lambda: all(len(each._queue) == 8 for each in held.sockets.values()))
        self.assertLess(sum(len(one[0]["bytes"]) for each in held.sockets.values() for one in each._queue), 3_300_000)
        awake.set()
        await self.until(lambda: all(each.credit == 8 for each in sockets))


class ListenTests(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="gateway-worker-")
        self.addCleanup(directory.cleanup)
        self.path = f"{directory.name}/w.sock"

    def test_addresses(self):
        self.assertEqual(str(listen.parse("unix:/run/a.sock")), "unix:/run/a.sock")
        self.assertEqual(str(listen.parse("unix:///run/a.sock")), "unix:/run/a.sock")
        self.assertEqual(str(listen.parse("tcp://0.0.0.0:9100")), "tcp://0.0.0.0:9100")
        self.assertEqual(str(listen.parse("tcp://[::1]:9100")), "tcp://[::1]:9100")
        for wrong in (
            "",
            "unix:",
            "/run/a.sock",
            "tcp://a",
            "tcp://:9",
            "tcp://a:x",
            "http://a:1",
            "tcp://a:0",
            "unix:/a/",
        ):
            with self.assertRaises(ValueError, msg=wrong):
                listen.parse(wrong)

    def test_numbered(self):
        self.assertEqual(str(listen.parse("unix:/run/worker.sock").numbered(3)), "unix:/run/worker-3.sock")
        self.assertEqual(str(listen.parse("unix:/run/worker").numbered(1)), "unix:/run/worker-1")
        self.assertEqual(str(listen.parse("tcp://0.0.0.0:9100").numbered(1)), "tcp://0.0.0.0:9100")
        self.assertEqual(str(listen.parse("tcp://0.0.0.0:9100").numbered(4)), "tcp://0.0.0.0:9103")
        with self.assertRaises(listen.Unusable):
            listen.parse("tcp://a:65535").numbered(2)

    def test_a_file_nobody_answers_on_is_replaced(self):
        dead = listen.bind(self.path, 0o600)
        dead.close()
        sock = listen.bind(self.path, 0o640)
        self.addCleanup(sock.close)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o640)

    def test_a_living_one_and_any_other_file_are_not(self):
        living = listen.bind(self.path, 0o600)
        self.addCleanup(living.close)
        living.listen(1)
        with self.assertRaisesRegex(listen.Unusable, "another worker answers"):
            listen.bind(self.path, 0o600)
        Path(f"{self.path}.txt").write_text("mine")
        with self.assertRaisesRegex(listen.Unusable, "no socket"):
            listen.bind(f"{self.path}.txt", 0o600)
        with self.assertRaisesRegex(listen.Unusable, "no directory"):
            listen.bind(f"{self.path}/x/y", 0o600)

    def test_the_secret(self):
        file = Path(f"{self.path}.secret")
        file.write_text("of a file, long enough\n")
        name, in_file = options.SECRET, f"{options.SECRET}_FILE"
        of_settings = ("of the settings, long enough", "an older one")
        here = {name: "of the environment, long"}
        self.assertEqual(options.secret(str(file), here, of_settings), b"of a file, long enough")
        self.assertEqual(options.secret(None, here, of_settings), b"of the environment, long")
        self.assertEqual(options.secret("", {in_file: str(file), name: ""}, None), b"of a file, long enough")
        self.assertEqual(options.secret(None, {name: "", in_file: ""}, of_settings), b"of the settings, long enough")
        for given in ({}, {name: "short"}, {**here, in_file: str(file)}, {in_file: "/no/such/file"}):
            with self.assertRaises(ValueError):
                options.secret(None, given, ())

    def test_applications_are_found(self):
        self.assertIs(load("tests.test_worker:answers"), answers)
        self.assertIs(load("tests.test_worker.answers"), answers)
        for wrong in ("", "tests", "no.such:app", "tests.test_worker:no", "tests.test_worker:SECRET"):
            with self.assertRaises(ImportError, msg=wrong):
                load(wrong)
