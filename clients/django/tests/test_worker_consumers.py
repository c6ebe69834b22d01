"""A site's consumers behind the worker, with a node of the tests' own."""

import contextlib
import functools
import logging
import tempfile

from asgiref.sync import sync_to_async
from django.test import TransactionTestCase, override_settings, tag

from channel_gateway.worker import listen
from channel_gateway.worker.server import Server

from . import asgi
from .bridge import SECRET, Node
from .clients import DirectClient, Refused, says_json
from .consumer_cases import ConsumerCases, DaphneCases, StrangerCases
from .run import redis


class Direct:
    """A worker in this process, and a link to it."""

    def __init__(self, worker, node):
        self.worker, self.node = worker, node

    async def client(self, path, **options):
        # As the gateway: the path as it was sent, and decoded.
        from urllib.parse import unquote

        raw, _, query = path.partition("?")
        decoded = unquote(raw)
        scope = {"raw_path": raw.encode()}
        return await DirectClient.open(self.node, f"{decoded}?{query}" if query else decoded, scope=scope, **options)


def _with_stack(test):
    @functools.wraps(test)
    async def wrapped(self):
        async with contextlib.AsyncExitStack() as self.stack:
            await test(self)

    return wrapped


class WithWorker:
    """``serve`` for the cases; what it starts ends with the test's coroutine."""

    def setUp(self):
        super().setUp()
        logger = logging.getLogger("channel_gateway.worker")
        level, logger.level = logger.level, logging.CRITICAL
        self.addCleanup(setattr, logger, "level", level)

    def __init_subclass__(cls):
        super().__init_subclass__()
        for name in dir(cls):
            if name.startswith("test_"):
                setattr(cls, name, _with_stack(getattr(cls, name)))

    async def start_worker(self, application, address):
        worker = Server(application, SECRET, application_name="tests")
        self.stack.push_async_callback(worker.stop)
        await worker.start(listen.parse(address))
        return worker

    async def serve(self, application=None, *, strangers=False):
        if application is None:
            application = asgi.websockets(asgi.strangers() if strangers else ())
        address = f"unix:{self.stack.enter_context(tempfile.TemporaryDirectory(prefix='gateway-worker-'))}/w.sock"
        worker = await self.start_worker(application, address)
        node = await Node().dial(address)
        self.stack.callback(node.close)
        return Direct(worker, node)


@tag("once")
class DaphneTests(WithWorker, DaphneCases, TransactionTestCase):
    pass


class ConsumerTests(WithWorker, ConsumerCases, TransactionTestCase):
    async def test_sockets_live_on_without_redis(self):
        own = contextlib.ExitStack()
        url = await sync_to_async(own.enter_context)(redis())
        self.stack.callback(own.close)
        layer = {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [url]}}
        with override_settings(CHANNEL_LAYERS={"default": layer}):
            server = await self.serve()
            client, leaves = await server.client("/ws/talk/a/"), await server.client("/ws/talk/a/")
            await says_json(client, {"do": "join", "group": "lobby"})
            await sync_to_async(own.close)()
            for number in range(1, 4):
                self.assertEqual((await says_json(client, {"do": "count"}))["count"], number + 1)
            await leaves.close()
            self.assertEqual((await says_json(client, {"do": "count"}))["count"], 5)
            # A new consumer subscribes to its channel: without Redis that fails, as under any server.
            with self.assertRaises(Refused):
                await server.client("/ws/echo/")


@tag("once")
class StrangerTests(WithWorker, StrangerCases, TransactionTestCase):
    pass
