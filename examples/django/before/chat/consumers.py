import json

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User

from .models import Message, Notification, Room

PAGE = 50


class Refused(Exception):
    """Answered with an error frame of this code."""


class ChatConsumer(AsyncWebsocketConsumer):
    """One socket of a signed-in user: all chat of all their rooms, and their notifications."""

    async def connect(self):
        self.user = self.scope["user"]
        room = self.scope["url_route"]["kwargs"].get("room_name")
        if not self.user.is_authenticated or (room and not await self.members(room)):
            await self.close()
            return
        # Whoever writes to the group of this name writes to all of the user's sockets.
        await self.channel_layer.group_add(self.user.username, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.user.username, self.channel_name)

    # ---- frames from the browser ----

    async def receive(self, text_data=None, bytes_data=None):
        frame = {}
        try:
            frame = json.loads(text_data or "")
            match frame["cate"]:
                case "chat":
                    await self.chat(frame)
                case "notification":
                    await self.notification(frame)
                case "history":
                    await self.answer(frame, "history", **await self.history(frame))
                case "notifications":
                    await self.answer(frame, "notifications", **await self.inbox())
                case "seen":
                    await self.answer(frame, "seen", unseen=await self.mark_seen(frame["up_to"]))
                case _:
                    raise Refused("unknown_cate")
        except Refused as refused:
            await self.answer(frame, "error", code=str(refused))
        except (AttributeError, KeyError, TypeError, ValueError):
            await self.answer(frame if isinstance(frame, dict) else {}, "error", code="invalid")

    async def chat(self, frame):
        members = await self.members(frame["group_name"])
        if not members:
            raise Refused("room_not_found")
        message, is_new = await self.store_message(frame)
        if is_new:
            for name in members:
                await self.channel_layer.group_send(name, {**message, "type": "chat.message"})
        await self.answer(frame, "ack", id=message["id"], seq=message["seq"], date=message["date"])

    async def notification(self, frame):
        row, is_new = await self.store_notification(frame)
        if is_new:
            await self.channel_layer.group_send(frame["user_name"], row.event())
        await self.answer(frame, "ack", id=row.pk, seq=row.pk, date=row.date.isoformat())

    async def answer(self, frame, kind, **fields):
        if "client_id" in frame:
            fields["client_id"] = frame["client_id"]
        await self.send(json.dumps({"type": kind, **fields}))

    # ---- events from the channel layer ----

    async def chat_message(self, event):
        await self.send(json.dumps({**event, "type": "chat"}))

    async def notification_message(self, event):
        await self.send(json.dumps({**event, "type": "notification", "seq": event["id"]}))

    # ---- the database ----

    @database_sync_to_async
    def members(self, room):
        """Names of the room's members; none if the user is not among them."""
        names = list(User.objects.filter(rooms__name=room).values_list("username", flat=True))
        return names if self.user.username in names else []

    @database_sync_to_async
    def store_message(self, frame):
        room = Room.objects.get(name=frame["group_name"])
        given = {"room": room, "author": self.user, "text": frame["message"], "data": frame.get("data")}
        message, is_new = Message.objects.get_or_create(client_id=frame["client_id"], defaults=given)
        return as_frame(message), is_new

    @database_sync_to_async
    def store_notification(self, frame):
        user = User.objects.filter(username=frame["user_name"]).first()
        if user is None:
            raise Refused("user_not_found")
        given = {"user": user, "sender": self.user.username, "text": frame["message"], "data": frame.get("data")}
        return Notification.objects.get_or_create(client_id=frame["client_id"], defaults=given)

    @database_sync_to_async
    def history(self, frame):
        rows = Message.objects.filter(room__name=frame["group_name"], room__members=self.user)
        if "before" in frame:
            rows = rows.filter(pk__lt=frame["before"])
        newest = list(rows.select_related("room", "author").order_by("-pk")[: PAGE + 1])
        messages = [as_frame(row) for row in reversed(newest[:PAGE])]
        return {"group_name": frame["group_name"], "messages": messages, "has_more": len(newest) > PAGE}

    @database_sync_to_async
    def inbox(self):
        rows = self.user.notifications.order_by("-pk")[:PAGE]
        found = [{**row.event(), "type": "notification", "seq": row.pk, "seen": row.seen} for row in reversed(rows)]
        return {"notifications": found, "unseen": self.user.notifications.filter(seen=False).count()}

    @database_sync_to_async
    def mark_seen(self, up_to):
        self.user.notifications.filter(pk__lte=up_to).update(seen=True)
        return self.user.notifications.filter(seen=False).count()


def as_frame(message):
    return {
        "type": "chat",
        "id": message.pk,
        "seq": message.pk,
        "group_name": message.room.name,
        "display_name": message.room.title,
        "message": message.text,
        "data": message.data,
        "from_user": message.author.username,
        "date": message.date.isoformat(),
    }
