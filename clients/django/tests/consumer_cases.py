"""What has to hold for a site's consumers, whatever is in front of the worker; Daphne's own cases by their names."""

import json
from urllib.parse import quote

from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.test import Client

from .asgi import Kept
from .clients import Refused, says_json, until


class Told:
    """An application that does as the test says, as the testing instance of Daphne does."""

    def __init__(self):
        self.scopes, self.messages = [], []
        self.answers = [{"type": "websocket.accept"}]

    async def __call__(self, scope, receive, send):
        if scope["type"] != "websocket":
            raise ValueError("only websockets here")
        self.scopes.append(scope)
        while True:
            message = await receive()
            self.messages.append(message)
            answers, self.answers = self.answers, []
            for each in answers:
                await send(each)
            if message["type"] == "websocket.disconnect":
                return


class DaphneCases:
    """The cases of Daphne's tests of WebSockets. ``serve(application)`` gives something with ``client(path, …)``."""

    async def told(self):
        told = Told()
        return told, await self.serve(told)

    async def test_daphne_accept(self):
        told, server = await self.told()
        await server.client("/")
        self.assertEqual(told.messages, [{"type": "websocket.connect"}])
        self.check_scope(told.scopes[0])

    def check_scope(self, scope):
        self.assertEqual((scope["type"], scope["asgi"]), ("websocket", {"version": "3.0", "spec_version": "2.3"}))
        kinds = {"path": str, "raw_path": bytes, "query_string": bytes, "root_path": str, "scheme": str}
        for key, kind in kinds.items():
            self.assertIsInstance(scope[key], kind, key)
        self.assertIn(scope["scheme"], ("ws", "wss"))
        for name, value in scope["headers"]:
            self.assertIsInstance(name, bytes)
            self.assertEqual(name, name.lower())
            self.assertIsInstance(value, bytes)
        for key in ("client", "server"):
            host, port = scope[key]
            self.assertIsInstance(host, str)
            self.assertIsInstance(port, int)
        self.assertTrue(all(isinstance(each, str) for each in scope["subprotocols"]))

    async def test_daphne_reject(self):
        told, server = await self.told()
        told.answers = [{"type": "websocket.close"}]
        with self.assertRaises(Refused) as caught:
            await server.client("/")
        self.assertEqual(caught.exception.status, 403)
        await until(lambda: len(told.messages) == 2)
        self.assertEqual(told.messages[1]["code"], 1006)

    async def test_daphne_subprotocols(self):
        told, server = await self.told()
        told.answers = [{"type": "websocket.accept", "subprotocol": "proto2"}]
        client = await server.client("/", subprotocols=["proto1", "proto2"])
        self.assertEqual(client.subprotocol, "proto2")
        self.assertEqual(told.scopes[0]["subprotocols"], ["proto1", "proto2"])

    async def test_daphne_http_bits(self):
        told, server = await self.told()
        path, query = "/a b/ä/🐉/", "q=%F0%9F%90%89&q=2&empty="
        headers = [(b"x-one", b"1"), (b"x-two", b"a, b"), (b"x-bytes", b"\xc3\xa4")]
        await server.client(f"{quote(path)}?{query}", headers=headers)
        scope = told.scopes[0]
        self.check_scope(scope)
        self.assertEqual((scope["path"], scope["query_string"]), (path, query.encode()))
        for each in headers:
            self.assertIn(each, scope["headers"])

    async def test_daphne_raw_path(self):
        told, server = await self.told()
        await server.client("/foo%2Fbar")
        self.assertEqual((told.scopes[0]["path"], told.scopes[0]["raw_path"]), ("/foo/bar", b"/foo%2Fbar"))

    async def test_daphne_text_frames(self):
        told, server = await self.told()
        client = await server.client("/")
        told.answers = [{"type": "websocket.send", "text": "here be dragons 🐉"}]
        await client.say("what is here? 🌍")
        self.assertEqual(await client.hears(), "here be dragons 🐉")
        self.assertEqual(told.messages[1], {"type": "websocket.receive", "text": "what is here? 🌍"})

    async def test_daphne_binary_frames(self):
        told, server = await self.told()
        client = await server.client("/")
        told.answers = [{"type": "websocket.send", "bytes": b"here be \xe2 bytes"}]
        await client.say(b"what is here? \xe2")
        self.assertEqual(await client.hears(), b"here be \xe2 bytes")
        self.assertEqual(told.messages[1], {"type": "websocket.receive", "bytes": b"what is here? \xe2"})

    async def test_daphne_application_checker_handles_asyncio_cancellederror(self):
        import asyncio

        async def application(scope, receive, send):
            await send({"type": "websocket.accept"})
            raise asyncio.CancelledError

        server = await self.serve(application)
        client = await server.client("/")
        self.assertEqual((await client.ended())[0], 1011)
        await until(lambda: server.worker.running == 0)


class ConsumerCases:
    """A site's own consumers. ``serve()`` gives something with ``client(path, …)``."""

    async def test_every_class_of_consumer(self):
        server = await self.serve()
        Kept.ends.clear()
        for path in ("/ws/echo/", "/ws/sync/"):
            client = await server.client(path)
            for data in ("ä🐉", b"\xff\x00", "x" * 40_000, ""):
                await client.say(data)
                self.assertEqual(await client.hears(), data)
            await client.close(4001)
        for path in ("/ws/json/", "/ws/syncjson/"):
            client = await server.client(path)
            self.assertEqual(await says_json(client, {"a": [1, None]}), {"got": {"a": [1, None]}})
            await client.close()
        client = await server.client("/ws/plain/")
        await client.say("hello")
        self.assertEqual(await client.hears(), "HELLO")
        await client.vanish()
        await until(lambda: len(Kept.ends) == 3)
        self.assertEqual(Kept.ends, [("Echo", 4001), ("SyncEcho", 4001), ("Plain", 1006)])

    async def test_the_handshake_is_the_applications(self):
        server = await self.serve()
        statuses = {"/ws/talk/deny/": 403, "/ws/talk/close/": 403, "/ws/talk/fault/": 500, "/ws/nowhere/": 500}
        for path, status in statuses.items():
            with self.subTest(path), self.assertRaises(Refused) as caught:
                await server.client(path)
            self.assertEqual(caught.exception.status, status)
        client = await server.client("/ws/talk/subprotocol/", subprotocols=["one", "two"])
        self.assertEqual(client.subprotocol, "two")
        client = await server.client("/ws/talk/later/")
        self.assertEqual(json.loads(await client.hears()), {"later": True})
        await client.close()

    async def test_instance_state_lives_as_long_as_the_socket(self):
        server = await self.serve()
        one, other = await server.client("/ws/talk/a/"), await server.client("/ws/talk/a/")
        for number in range(1, 4):
            self.assertEqual(await says_json(one, {"do": "count"}), {"count": number})
        self.assertEqual(await says_json(other, {"do": "count"}), {"count": 1})

    async def test_closing(self):
        server = await self.serve()
        for how, expected in (
            ({}, (1000, "")),
            ({"code": 4321, "reason": "because"}, (4321, "because")),
            ({"code": 1005}, (1011, "")),
            ({"code": 4000, "reason": "ä" * 100}, (4000, "ä" * 61)),
        ):
            Kept.ends.clear()
            client = await server.client("/ws/talk/a/")
            await client.say(json.dumps({"do": "close", **how}))
            self.assertEqual(await client.ended(), expected)
            await until(lambda: Kept.ends)
            self.assertEqual(Kept.ends, [("Talk", expected[0])])
        client = await server.client("/ws/talk/a/")
        await client.say(json.dumps({"do": "fault"}))
        self.assertEqual((await client.ended())[0], 1011)

    async def test_a_large_binary_message(self):
        server = await self.serve()
        client = await server.client("/ws/talk/a/")
        await client.say(json.dumps({"do": "binary", "size": 2000}))
        self.assertEqual(await client.hears(), bytes(range(256)) * 2000)

    async def test_user_session_and_database(self):
        server = await self.serve()

        def sign_in():
            User.objects.create_user("eve")
            client = Client()
            client.force_login(User.objects.create_user("ann"))
            return client.cookies["sessionid"].value

        key = await sync_to_async(sign_in)()
        nobody = await server.client("/ws/talk/a/")
        self.assertEqual(await says_json(nobody, {"do": "who"}), {"user": "", "signed_in": False})
        headers = [(b"cookie", f"other=1; sessionid={key}".encode())]
        ann = await server.client("/ws/talk/a/", headers=headers)
        self.assertEqual(await says_json(ann, {"do": "who"}), {"user": "ann", "signed_in": True})
        self.assertEqual(await says_json(ann, {"do": "users"}), {"users": ["ann", "eve"]})
        self.assertEqual(await says_json(ann, {"do": "session", "visits": 7}), {"visits": None})
        stored = await sync_to_async(lambda: SessionStore(key).load())()
        self.assertEqual(stored["visits"], 7)
        again = await server.client("/ws/talk/a/", headers=headers)
        self.assertEqual(await says_json(again, {"do": "session"}), {"visits": 7})
        for each in (nobody, ann, again):
            await each.close()

    async def test_groups_of_the_sites_layer(self):
        server = await self.serve()
        clients = [await server.client("/ws/talk/a/") for _ in range(3)]
        for each in clients:
            self.assertEqual(await says_json(each, {"do": "join", "group": "lobby"}), {"joined": "lobby"})
        await clients[0].say(json.dumps({"do": "say", "group": "lobby", "text": "hello"}))
        for each in clients:
            self.assertEqual(json.loads(await each.hears()), {"said": "hello"})
        for each in clients:
            await each.close()


class StrangerCases:
    """Packages from PyPI. ``serve(strangers=True)``."""

    async def test_channelsmultiplexer(self):
        server = await self.serve(strangers=True)
        client = await server.client("/ws/multiplexed/")
        for stream in ("one", "two", "one"):
            answer = await says_json(client, {"stream": stream, "payload": {"n": 1}})
            self.assertEqual(answer, {"stream": stream, "payload": {"got": {"n": 1}}})
        await client.close()

    async def test_strawberry(self):
        server = await self.serve(strangers=True)
        client = await server.client("/ws/graphql/", subprotocols=["graphql-transport-ws"])
        self.assertEqual(client.subprotocol, "graphql-transport-ws")
        self.assertEqual((await says_json(client, {"type": "connection_init"}))["type"], "connection_ack")
        question = {"id": "1", "type": "subscribe", "payload": {"query": "subscription { count(target: 3) }"}}
        answers = [await says_json(client, question)]
        answers += [json.loads(await client.hears()) for _ in range(3)]
        numbers = [each["payload"]["data"]["count"] for each in answers[:3]]
        self.assertEqual((numbers, answers[3]["type"]), ([0, 1, 2], "complete"))
        await client.close()

    async def test_djangochannelsrestframework(self):
        server = await self.serve(strangers=True)
        client = await server.client("/ws/rest/")
        data = {"username": "rest", "email": "rest@example.com"}
        made = await says_json(client, {"action": "create", "request_id": 1, "data": data})
        self.assertEqual((made["response_status"], made["data"]["username"]), (201, "rest"))
        found = await says_json(client, {"action": "list", "request_id": 2})
        self.assertEqual([each["username"] for each in found["data"]], ["rest"])
        await client.close()
        self.assertTrue(await sync_to_async(User.objects.filter(username="rest").exists)())

    async def test_fastapi(self):
        from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect, WebSocketException

        app = FastAPI()
        left = []

        async def token(websocket: WebSocket):
            if websocket.query_params.get("token") != "let-me-in":
                raise WebSocketException(code=1008)
            return websocket.query_params["token"]

        async def item(websocket: WebSocket, name: str, found: str = Depends(token)):
            await websocket.accept()
            try:
                while True:
                    await websocket.send_json({"name": name, "token": found, "data": await websocket.receive_json()})
            except WebSocketDisconnect as error:
                left.append(error.code)

        app.websocket("/items/{name}/ws")(item)
        server = await self.serve(app)
        client = await server.client("/items/pen/ws?token=let-me-in")
        answer = await says_json(client, [1])
        self.assertEqual(answer, {"name": "pen", "token": "let-me-in", "data": [1]})
        await client.close(1001)
        await until(lambda: left)
        self.assertEqual(left, [1001])
        with self.assertRaises(Refused) as caught:
            await server.client("/items/pen/ws?token=wrong")
        self.assertEqual(caught.exception.status, 403)
