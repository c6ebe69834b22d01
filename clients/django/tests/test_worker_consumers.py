"""A site's consumers behind the worker, with a node of the tests' own."""

import contextlib
import functools
import logging
import tempfile

from django.test import TransactionTestCase

from channel_gateway.worker import listen
from channel_gateway.worker.server import Server

from . import asgi
from .bridge import SECRET, Node
from .clients import DirectClient
from .consumer_cases import ConsumerCases, DaphneCases, StrangerCases


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


class DaphneTests(WithWorker, DaphneCases, TransactionTestCase):
    pass


class ConsumerTests(WithWorker, ConsumerCases, TransactionTestCase):
    pass


class StrangerTests(WithWorker, StrangerCases, TransactionTestCase):
    pass
