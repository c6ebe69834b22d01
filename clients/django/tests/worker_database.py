"""A site whose consumers leave database connections behind, in every way. Run by workers of their own."""

import os

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="for these tests only",
    INSTALLED_APPS=["channels"],
    LOGGING_CONFIG=None,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["TEST_DATABASE"],
            "CONN_MAX_AGE": {"none": None}.get(os.environ["TEST_MAX_AGE"], 0),
        }
    },
)
django.setup()

import channels.db  # noqa: E402
from asgiref.sync import SyncToAsync, sync_to_async  # noqa: E402
from channels.db import database_sync_to_async  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from django.db import close_old_connections, connection  # noqa: E402

looks = 0


def counted():
    global looks
    looks += 1
    close_old_connections()


channels.db.close_old_connections = counted

if os.environ.get("TEST_AT_IMPORT"):
    SyncToAsync.single_thread_executor.submit(connection.ensure_connection).result()


class Consumer(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(str(await getattr(self, text_data)()))

    async def looks(self):
        return looks

    async def is_open(self):
        return await sync_to_async(lambda: connection.connection is not None)()

    async def leave(self):
        """As Django's asynchronous ORM does it: nobody closes it afterwards."""
        return await sync_to_async(self._query)()

    async def query(self):
        return await database_sync_to_async(self._query)()

    def _query(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone()[0]

    async def expire(self):
        """It has reached its age."""
        await sync_to_async(lambda: setattr(connection, "close_at", 1))()

    async def forget(self):
        """A transaction that was begun by hand."""
        await sync_to_async(lambda: connection.set_autocommit(False))()


application = Consumer.as_asgi()
