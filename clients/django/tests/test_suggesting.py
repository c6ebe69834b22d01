"""What ``manage.py check`` says of handlers that could be shared."""

import os
from unittest import mock

from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.test import SimpleTestCase, override_settings

from channel_gateway import checks, shared
from channel_gateway.suggesting import candidates, consumers

from . import group_consumers


class Some(AsyncJsonWebsocketConsumer):
    async def reads(self, event):
        await self.send_json({"text": event["text"], "n": len(event.get("list", []))})

    async def reads_more(self, event):
        for each in event["list"]:
            await self.send(text_data=str(each))

    @shared
    async def marked(self, event):
        await self.send_json(event)

    async def keeps(self, event):
        self.last = event
        await self.send_json(event)

    async def looks(self, event):
        if self.scope["user"].is_staff:
            await self.send_json(event)

    async def closes(self, event):
        await self.send_json(event, close=True)

    async def calls(self, event):
        await group_consumers.application(event)
        await self.send_json(event)

    async def changes(self, event):
        event["seen"] = True
        await self.send_json(event)

    async def silent(self, event):
        pass

    async def receive_json(self, content):
        await self.send_json(content)

    async def no_handler(self, event, more):
        await self.send_json(event)


class SuggestingTests(SimpleTestCase):
    def test_handlers_that_only_read_the_event(self):
        self.assertEqual([name for _, name in candidates([Some])], ["reads", "reads_more"])
        found = {f"{cls.__name__}.{name}" for cls, name in candidates([group_consumers.Tutorial, group_consumers.Asks])}
        self.assertEqual(found, {"Tutorial.chat_message", "Asks.direct_message"})
        self.assertIn(Some, set(consumers(AsyncConsumer)))

    def test_it_is_said_where_there_are_workers_and_only_there(self):
        def said():
            return [each.msg for each in checks.check_settings(None) if each.id == "gateway.I001"]

        with override_settings(ASGI_APPLICATION="tests.group_consumers.application"):
            self.assertEqual(said(), [])
            with mock.patch.dict(os.environ, {"GATEWAY_BRIDGE__SECRET": "a secret of the tests"}):
                self.assertIn(
                    "tests.group_consumers.Tutorial.chat_message only reads its event, and runs once for each socket.",
                    said(),
                )
