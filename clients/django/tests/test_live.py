"""Against a real node: what is published arrives, once."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from typing import ClassVar
from unittest import SkipTest

from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import transaction
from django.test import SimpleTestCase, override_settings, tag

import channel_gateway as gw
from channel_gateway import api, backends, relay, seldom, sync, toml
from channel_gateway.exceptions import ApiError, Unavailable
from channel_gateway.models import Outbox
from channel_gateway.signals import publish_failed
from channel_gateway.testing import GatewayCommunicator, GatewayLiveServerTestCase
from channel_gateway.testing.live import _free_ports

from .club.models import Alert, Club, Membership, Post, Project
from .test_publishing import _nobody


def site(**changed):
    return override_settings(GATEWAY={**settings.GATEWAY, **changed})


def knows(setting):
    """Whether the gateway has this setting."""
    done = subprocess.run([settings.GATEWAY["BINARY"], "genconfig"], capture_output=True, text=True, check=True)
    return setting in done.stdout


class Helpers:
    """What these tests do again and again."""

    def setUp(self):
        super().setUp()
        relay._paused_until = 0
        with site(BACKEND="dummy"):
            self.ann = User.objects.create_user(f"ann{time.monotonic_ns()}")
            self.bob = User.objects.create_user(f"bob{time.monotonic_ns()}")

    def room(self, *members):
        name = f"room{time.monotonic_ns()}"
        api.call("PUT", api.path("rooms", name), {"display_name": "A room"})
        for member in members:
            api.call("PUT", api.path("rooms", name, "members", member.username))
        return name

    async def open(self, user, path="/ws/chat/", **options):
        socket = GatewayCommunicator(self.gateway_url + path, **options).force_login(user)
        self.assertEqual(await socket.connect(), (True, "gateway.v1"))
        # Until its first frame has been handled, nothing is sent to it.
        await socket.send_json_to({"cate": "rooms"})
        await socket.receive_json_from(type="rooms")
        return socket

    async def receive_each(self, socket, *types):
        """The next frame of each type, in whatever order they come."""
        found = {}
        while len(found) < len(types):
            frame = await socket.receive_json_from()
            if frame["type"] in types:
                found.setdefault(frame["type"], frame)
        return [found[each] for each in types]

    def inbox(self, user):
        return api.call("GET", api.path("users", user.username, "notifications"))["notifications"]

    def until(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)


class LiveMixin(Helpers):
    async def test_chat_notifications_and_disconnect(self):
        room = await sync_to_async(self.room)(self.ann, self.bob)
        ann, bob = await self.open(self.ann), await self.open(self.bob, "/ws/chat/")

        def publish():
            with transaction.atomic():
                gw.chat(room, "hello", from_user=self.bob)
                gw.notify(self.ann, "paid")

        await sync_to_async(publish)()
        frame, notification = await self.receive_each(ann, "chat", "notification")
        found = [frame[key] for key in ("message", "group_name", "from_user", "seq")]
        self.assertEqual(found, ["hello", room, self.bob.username, 1])
        self.assertEqual((await bob.receive_json_from(type="chat"))["id"], frame["id"])
        self.assertEqual([notification["message"], notification["from_user"]], ["paid", "django"])
        self.assertTrue(await bob.receive_nothing())
        await sync_to_async(gw.disconnect)(self.ann, code=4401, reason="bye")
        self.assertEqual(await ann.receive_close(), 4401)
        self.assertEqual(ann.close_reason, "bye")
        await bob.disconnect()

    async def test_data_of_the_sites_own(self):
        if not knows("data_bytes"):
            self.skipTest("this gateway passes on no data")
        room = await sync_to_async(self.room)(self.ann)
        ann = await self.open(self.ann)
        data = {"order": 7, "deep": [{"k": "\U0001f389"}] * 3, "long": "x" * 16000}
        for levels in range(60):
            data = {"level": data} if levels % 2 else {"level": data, "n": levels}
            if len(json.dumps(data, ensure_ascii=False).encode()) > 16300:
                break
        await sync_to_async(gw.chat)(room, "hello", data=data)
        self.assertEqual((await ann.receive_json_from(type="chat"))["data"], data)
        deep = {"k": 1}
        for _ in range(63):
            deep = {"k": deep}
        await sync_to_async(gw.notify)(self.ann, "paid", data=deep)
        self.assertEqual((await ann.receive_json_from(type="notification"))["data"], deep)
        await ann.disconnect()

    async def hears(self, socket, *rooms):
        """Waits until a socket hears these rooms and no others."""
        end = time.monotonic() + 20
        while True:
            await socket.send_json_to({"cate": "rooms"})
            frame = await socket.receive_json_from(type="rooms")
            found = sorted(room["group_name"] for room in frame["rooms"])
            if found == sorted(rooms):
                return
            self.assertLess(time.monotonic(), end, found)
            await asyncio.sleep(0.05)

    async def test_who_becomes_a_member_hears_the_room(self):
        """A relation of the site's, through the outbox, to sockets that are open."""
        ann, bob = await self.open(self.ann), await self.open(self.bob)
        with site(WHEN="outbox"):

            def make():
                with transaction.atomic():
                    project = Project.objects.create(title="Apollo")
                    project.team.add(self.ann, self.bob)
                return project

            project = await sync_to_async(make)()
            name = f"project-{project.pk}"
            await self.hears(ann, name)
            await self.hears(bob, name)
            await sync_to_async(gw.chat)(name, "welcome")
            frame = await ann.receive_json_from(type="chat")
            self.assertEqual([frame["message"], frame["display_name"]], ["welcome", "Apollo"])
            await sync_to_async(project.team.remove)(self.ann)
            await self.hears(ann)
            await sync_to_async(gw.chat)(name, "among us")
            self.assertEqual((await bob.receive_json_from(type="chat"))["message"], "welcome")
            self.assertEqual((await bob.receive_json_from(type="chat"))["message"], "among us")
            self.assertTrue(await ann.receive_nothing())
            await sync_to_async(project.delete)()
            await self.hears(bob)
        self.assertEqual(await sync_to_async(Outbox.objects.count)(), 0)
        await ann.disconnect()
        await bob.disconnect()

    async def test_members_by_hand_and_a_repeat(self):
        ann = await self.open(self.ann)
        name = f"room{time.monotonic_ns()}"

        def publish():
            gw.put_room(name, display_name="By hand")
            gw.add_members(name, [self.ann, self.bob], id="in-1")
            gw.remove_members(name, self.bob)
            gw.add_members(name, [self.ann, self.bob], id="in-1")

        await sync_to_async(publish)()
        await self.hears(ann, name)
        members = lambda: api.call("GET", api.path("rooms", name))["members"]  # noqa: E731
        await sync_to_async(self.until)(lambda: members() == [self.ann.username])
        await sync_to_async(gw.chat)(name, "last")
        await ann.receive_json_from(type="chat")
        self.assertEqual(await sync_to_async(members)(), [self.ann.username])
        await ann.disconnect()

    async def test_announcements_and_frames_of_the_sites_own(self):
        ann, bob = await self.open(self.ann), await self.open(self.bob, "/ws/notifications/")
        await sync_to_async(gw.announce)("back soon", data={"minutes": 5})
        announced = {"type": "announcement", "message": "back soon", "data": {"minutes": 5}}
        await sync_to_async(gw.send)(self.bob, {"type": "cart", "items": 2})
        self.assertEqual(await ann.receive_json_from(type="announcement"), announced)
        cart = {"type": "cart", "items": 2}
        self.assertEqual(await self.receive_each(bob, "announcement", "cart"), [announced, cart])
        await sync_to_async(gw.disconnect)("everyone", code=4100)
        for socket in (ann, bob):
            self.assertEqual(await socket.receive_close(), 4100)

    async def test_a_log_out_ends_the_sockets(self):
        ann = await self.open(self.ann)
        client = await sync_to_async(self.client_class)()
        await sync_to_async(client.force_login)(self.ann)
        await sync_to_async(client.logout)()
        self.assertEqual(await ann.receive_close(), 4401)

    async def test_the_token_of_the_view_signs_in(self):
        await sync_to_async(self.client.force_login)(self.ann)
        token = (await sync_to_async(self.client.get)("/gateway/token/")).json()["token"]
        socket = GatewayCommunicator(self.gateway_url + "/ws/chat/", origin=self.live_server_url).force_token(token)
        self.assertEqual(await socket.connect(), (True, "gateway.v1"))
        await socket.disconnect()
        self.assertEqual(socket.close_code, 1000)

    async def test_refusals(self):
        plain = GatewayCommunicator(self.gateway_url + "/ws/chat/", subprotocols=[])
        self.assertEqual(await plain.connect(), (False, 401))
        nobody = GatewayCommunicator(self.gateway_url + "/ws/chat/")
        self.assertEqual((await nobody.connect())[0], True)
        self.assertEqual(await nobody.receive_close(), 4401)
        elsewhere = GatewayCommunicator(self.gateway_url + "/ws/chat/", origin="https://elsewhere.example")
        self.assertEqual(await elsewhere.force_login(self.ann).connect(), (False, 403))

    async def test_sockets_say_things(self):
        room = await sync_to_async(self.room)(self.ann)
        ann = await self.open(self.ann)
        await ann.send_json_to({"cate": "chat", "group_name": room, "message": "x" * 70, "client_id": "1"})
        self.assertEqual((await ann.receive_json_from(type="ack"))["client_id"], "1")
        await ann.send_to(bytes_data=b"\0")
        self.assertEqual((await ann.receive_json_from(type="error"))["code"], "invalid")
        await ann.disconnect()

    def test_once_by_its_identity(self):
        for _ in range(3):
            gw.notify(self.ann, "paid", id="order-42")
        gw.notify(self.ann, "last")
        self.until(lambda: len(self.inbox(self.ann)) >= 2)
        self.assertEqual([each["message"] for each in self.inbox(self.ann)], ["paid", "last"])

    def test_sync_mends_what_sent_no_signals(self):
        with site(BACKEND="dummy"):
            club = Club.objects.create(slug=f"club{time.monotonic_ns()}")
            project = Project.objects.create(title="Apollo")
            project.team.add(self.bob)
            Membership.objects.bulk_create([Membership(person=user, club=club) for user in (self.ann, self.bob)])
            Membership.objects.bulk_create([Membership(person=self.bob, club=club, is_guest=True)])
        name = f"project-{project.pk}"
        # Somebody who is no member any more, and a room that is none of the site's.
        api.call("PUT", api.path("rooms", name))
        api.call("PUT", api.path("rooms", name, "members", self.ann.username))
        other = self.room(self.ann)
        wanted = {
            f"room {club.slug}",
            f"add {club.slug} {self.ann.username}",
            f"add {club.slug} {self.bob.username}",
            f"room {name}",
            f"add {name} {self.bob.username}",
            f"remove {name} {self.ann.username}",
        }
        out = StringIO()
        with self.assertRaises(SystemExit):
            call_command("gateway_sync", "--dry-run", stdout=out, stderr=StringIO())
        self.assertEqual(set(out.getvalue().splitlines()), wanted)
        out = StringIO()
        call_command("gateway_sync", stdout=out, stderr=StringIO())
        self.assertEqual(set(out.getvalue().splitlines()), wanted)
        self.assertEqual(list(sync.differences()), [])
        found = api.call("GET", api.path("rooms", name))
        self.assertEqual([found["members"], found["display_name"]], [[self.bob.username], "Apollo"])
        self.assertEqual(api.call("GET", api.path("rooms", other))["members"], [self.ann.username])

    def test_the_admin(self):
        from django.contrib.auth.models import Permission

        admin = "/admin/channel_gateway/gateway/"
        with site(BACKEND="dummy"):
            staff = User.objects.create_user(f"staff{time.monotonic_ns()}", is_staff=True)
            boss = User.objects.create_superuser(f"boss{time.monotonic_ns()}")
        pages = [admin, f"{admin}user/?name={self.ann.username}", f"{admin}dead/"]
        actions = [("user/disconnect/", {"name": self.ann.username}), ("dead/drop/", {"id": "1-1"})]
        for page in pages:
            self.assertEqual(self.client.get(page).status_code, 302)
        self.client.force_login(staff)
        for page in pages:
            self.assertEqual(self.client.get(page).status_code, 403)
        staff.user_permissions.add(Permission.objects.get(codename="view_gateway"))
        for page in pages:
            answer = self.client.get(page)
            self.assertEqual(answer.status_code, 200)
            self.assertNotContains(answer, "/disconnect/")
            self.assertNotContains(answer, "/drop/")
        for action, data in actions:
            self.assertEqual(self.client.post(admin + action, data).status_code, 403)
        gw.notify(self.ann, "<b>paid</b>", when="now")
        self.until(lambda: self.inbox(self.ann))
        answer = self.client.get(pages[1])
        self.assertContains(answer, "&lt;b&gt;paid&lt;/b&gt;")
        self.assertNotContains(answer, "user/disconnect/")
        self.client.force_login(boss)
        for action, _ in actions:
            self.assertEqual(self.client.get(admin + action).status_code, 405)
        strict = self.client_class(enforce_csrf_checks=True)
        strict.force_login(boss)
        self.assertEqual(strict.post(admin + actions[0][0], actions[0][1]).status_code, 403)
        answer = self.client.post(
            f"{admin}user/notify/", {"name": self.ann.username, "message": "from the admin"}, follow=True
        )
        self.assertContains(answer, "is notified")
        self.until(lambda: "from the admin" in [each["message"] for each in self.inbox(self.ann)])
        answer = self.client.post(f"{admin}user/disconnect/", {"name": self.ann.username}, follow=True)
        self.assertContains(answer, "are being closed")
        answer = self.client.post(f"{admin}user/disconnect/", {"name": "a/b"}, follow=True)
        self.assertContains(answer, "no user of that name")
        self.assertContains(self.client.get(admin), self.node_id())
        with site(API_URL=f"http://127.0.0.1:{_nobody()}"):
            self.assertContains(self.client.get(admin), "did not answer")
        with site(API_KEY="a wrong key"):
            self.assertContains(self.client.get(admin), "401")

    def node_id(self):
        found = api.call("GET", api.path("nodes"))["nodes"][0]
        return found["id"] if isinstance(found, dict) else found

    @tag("once")
    def test_the_page_in_a_browser(self):
        """The tag under a strict policy of content: the client loads, signs in by token, and hears."""
        self.client.force_login(self.ann)
        given = {"url": f"{self.live_server_url}/", "session": self.client.cookies["sessionid"].value}
        script = Path(__file__).with_name("browser.mjs")
        with subprocess.Popen(
            ["node", script, json.dumps(given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as browser:
            said = json.loads(browser.stdout.readline())
            self.assertEqual(said, {"state": "open", "complaints": []})
            gw.notify(self.ann, "seen in a browser")
            said = json.loads(browser.stdout.readline())
            self.assertEqual(said, {"message": "seen in a browser"})
            browser.stdin.close()
            self.assertEqual(browser.wait(30), 0)

    def test_the_page_of_the_site(self):
        html = self.client.get("/").content.decode()
        self.assertIn(f'data-gateway-url="{self.gateway_url}/ws/chat/"', html)
        self.assertIn("/gateway/token/", html)

    def test_the_api_refuses_and_is_away(self):
        with self.assertRaises(ApiError) as raised:
            api.call("GET", api.path("rooms", "never made"))
        self.assertEqual(raised.exception.status, 404)
        with site(API_URL=f"http://127.0.0.1:{_nobody()}"), self.assertRaises(Unavailable):
            api.call("GET", api.path("nodes"))
        # A name cannot mean another path.
        self.assertEqual(api.path("rooms", "../a/b?c#d"), "/api/rooms/..%2Fa%2Fb%3Fc%23d")


class MemoryTests(LiveMixin, GatewayLiveServerTestCase):
    """The node has its in-memory layer; the site publishes through the API."""

    def test_what_the_api_refuses_does_not_keep_the_rest_of_the_outbox(self):
        failed = []
        receiver = lambda **given: failed.extend(given["entries"])  # noqa: E731
        publish_failed.connect(receiver)
        self.addCleanup(publish_failed.disconnect, receiver)
        seldom._last.clear()
        with site(API_URL=f"http://127.0.0.1:{_nobody()}", WHEN="outbox"):
            gw.notify(self.ann, "first")
            wrong = gw.chat("no such room", "x")
            gw.notify(self.ann, "second")
        with self.assertLogs("channel_gateway", "ERROR"):
            self.assertEqual(relay.relay(older_than=0), 3)
        self.assertEqual([each["message"] for each in self.inbox(self.ann)], ["first", "second"])
        self.assertEqual([each["id"] for each in failed], [wrong])

    def test_what_the_api_refuses_is_an_error_of_the_caller(self):
        with self.assertRaises(gw.InvalidEvent):
            gw.chat("no such room", "x", when="now")
        with site(API_KEY="a wrong key"), self.assertRaises(ApiError):
            gw.notify(self.ann, "x", when="now")


class RedisTests(LiveMixin, GatewayLiveServerTestCase):
    """Node and site share a Redis."""

    gateway_redis_url = settings.REDIS_URL

    def test_dead_letters_in_the_admin(self):
        given = gw.chat("no such room", "lost")
        self.until(lambda: api.call("GET", api.path("dead"))["dead"])
        (letter,) = api.call("GET", api.path("dead"))["dead"]
        self.assertEqual(letter["fields"]["id"], given)
        with site(BACKEND="dummy"):
            self.client.force_login(User.objects.create_superuser("boss"))
        dead = "/admin/channel_gateway/gateway/dead/"
        self.assertContains(self.client.get(dead), given)
        api.call("PUT", api.path("rooms", "no such room"))
        answer = self.client.post(f"{dead}retry/", {"id": letter["dead_id"]}, follow=True)
        self.assertContains(answer, "is tried again")
        self.until(lambda: api.call("GET", api.path("rooms", "no such room"))["seq"] == 1)
        gw.chat("none either", "lost")
        self.until(lambda: api.call("GET", api.path("dead"))["dead"])
        (letter,) = api.call("GET", api.path("dead"))["dead"]
        self.assertContains(self.client.post(f"{dead}drop/", {"id": letter["dead_id"]}, follow=True), "is dropped")
        self.assertEqual(api.call("GET", api.path("dead"))["dead"], [])
        self.assertContains(self.client.post(f"{dead}drop/", {"id": "../rooms"}, follow=True), "40")

    async def test_group_send_by_the_names_of_group_of(self):
        from channels.layers import channel_layers, get_channel_layer

        channel_layers.backends.clear()
        self.addCleanup(channel_layers.backends.clear)
        odd = await sync_to_async(User.objects.create_user)("jose@example.com")
        socket = await self.open(odd)
        event = {"type": "notification.message", "message": "live", "from_user": "django", "id": 1}
        await get_channel_layer().group_send(gw.group_of(odd), event)
        self.assertEqual((await socket.receive_json_from(type="notification"))["message"], "live")
        send = {"type": "gateway.send", "text": json.dumps({"type": "cart"})}
        await get_channel_layer().group_send(gw.group_of(odd), send)
        self.assertEqual(await socket.receive_json_from(type="cart"), {"type": "cart"})
        await socket.disconnect()

    def test_nothing_lost_and_nothing_twice_over_a_redis_that_was_away(self):
        """Rows are relayed by two at once, one of which sent without deleting: each message comes once."""
        with site(WHEN="outbox", REDIS_URL=f"redis://127.0.0.1:{_nobody()}"):
            for number in range(40):
                gw.notify(self.ann, f"{number}")
        with site(WHEN="outbox"):

            class Forgets:
                def send(self, entries):
                    backends.import_string(backends.BACKENDS["redis"])().send(entries)
                    raise Unavailable("the answer got lost")

            backends._backend = Forgets()
            with self.assertRaises(Unavailable):
                relay.relay(older_than=0)
            backends.forget()
            self.assertEqual(relay.relay(older_than=0), 40)
        self.until(lambda: len(self.inbox(self.ann)) >= 40)
        gw.notify(self.ann, "last")
        self.until(lambda: self.inbox(self.ann)[-1]["message"] == "last")
        found = [each["message"] for each in self.inbox(self.ann)]
        self.assertEqual(sorted(found[:-1], key=int), [f"{number}" for number in range(40)])


class ImportTests(Helpers, GatewayLiveServerTestCase):
    """The tables of a chat, by a real `gateway import` into the database of a running node."""

    gateway_redis_url = settings.REDIS_URL
    tables: ClassVar = {
        "rooms": ["club.Club:slug"],
        "members": ["club.Membership:club,person"],
        "messages": ["club.Post:club,author,text,said_at,extra"],
        "notifications": ["club.Alert:user,sender,text,created,read_at"],
    }

    @classmethod
    def prepare_gateway(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.gateway_config = {"database_url": f"sqlite://{cls.directory.name}/gateway.db?mode=rwc"}

    def bring(self, *more):
        """Runs the command with the node's own settings, and returns what the gateway reports."""
        config = self.node.config
        with (
            site(NAMESPACE=config["namespace"], DATABASE_URL=config["database_url"], BACKEND="dummy"),
            tempfile.TemporaryFile() as out,
        ):
            kept = os.dup(1)
            try:
                os.dup2(out.fileno(), 1)
                call_command("gateway_import", *more, **self.tables)
            finally:
                os.dup2(kept, 1)
                os.close(kept)
                out.seek(0)
                self.said = out.read().decode()
        return json.loads(self.said)

    async def test_an_existing_chat_comes_over_while_its_users_are_connected(self):
        noon = datetime(2020, 1, 2, 12, 0, 0, 5, tzinfo=timezone.utc)

        def make():
            with site(BACKEND="dummy"):
                club = Club.objects.create(slug=f"club{time.monotonic_ns()}")
                Membership.objects.create(person=self.ann, club=club)
                posts = [
                    Post(club=club, author=self.bob, text=f"{number}", said_at=noon + timedelta(minutes=number))
                    for number in range(3000)
                ]
                Post.objects.bulk_create(posts)
                Alert.objects.create(user=self.ann, sender="shop", text="read", created=noon, read_at=noon)
                Alert.objects.create(user=self.ann, sender="shop", text="new", created=noon)
            return club

        club = await sync_to_async(make)()
        ann = await self.open(self.ann)
        report = await sync_to_async(self.bring)()
        self.assertEqual([report[key] for key in ("stored", "known", "differing")], [3002, 0, 0])
        self.assertTrue(report["nodes_told"])
        frame = await ann.receive_json_from(type="resumed")
        self.assertEqual(frame, {"type": "resumed", "rooms": {}, "notifications": False})
        await ann.send_json_to({"cate": "notifications"})
        inbox = await ann.receive_json_from(type="notifications")
        self.assertEqual(
            [(each["message"], each["seen"]) for each in inbox["notifications"]], [("read", True), ("new", False)]
        )
        self.assertEqual((inbox["unseen"], inbox["notifications"][0]["date"]), (1, "2020-01-02T12:00:00.000005Z"))
        # She is a member now, without having connected again.
        rooms = []
        while club.slug not in rooms:
            await ann.send_json_to({"cate": "rooms"})
            rooms = [each["group_name"] for each in (await ann.receive_json_from(type="rooms"))["rooms"]]
            await asyncio.sleep(0.05)  # within the rate
        await ann.send_json_to({"cate": "history", "group_name": club.slug, "limit": 3})
        history = await ann.receive_json_from(type="history")
        found = [(each["seq"], each["message"], each["from_user"]) for each in history["messages"]]
        self.assertEqual(found, [(seq, f"{seq - 1}", self.bob.username) for seq in (2998, 2999, 3000)])

        def again():
            with site(BACKEND="dummy"):
                Post.objects.create(club=club, author=self.ann, text="rest", said_at=noon + timedelta(days=9))
            return self.bring()

        report = await sync_to_async(again)()
        self.assertEqual([report[key] for key in ("stored", "known", "refused")], [1, 3002, 0])
        frame = await ann.receive_json_from(type="resumed")
        self.assertEqual(frame["rooms"], {club.slug: False})
        await ann.send_json_to({"cate": "chat", "group_name": club.slug, "message": "live", "client_id": "1"})
        self.assertEqual((await ann.receive_json_from(type="ack"))["seq"], 3002)
        # From now on the gateway's own messages are in the room.
        with self.assertRaises(SystemExit) as refused:
            await sync_to_async(self.bring)()
        self.assertEqual((refused.exception.code, json.loads(self.said)["refused"]), (1, 3001))
        report = await sync_to_async(self.bring)("--", "--append")
        self.assertEqual([report[key] for key in ("stored", "known")], [0, 3003])
        await ann.disconnect()


class SignInMixin:
    """Sign-ins by Django itself, which another process of Django's judges or the gateway reads."""

    def setUp(self):
        super().setUp()
        with site(BACKEND="dummy"):
            self.ann = User.objects.create_user("ann", password="first")

    def cookie(self, client):
        return {"Cookie": f"sessionid={client.cookies['sessionid'].value}"}

    async def open(self, headers, path="/ws/chat/", origin=None):
        socket = GatewayCommunicator(self.gateway_url + path, headers=headers, origin=origin or self.live_server_url)
        self.assertEqual((await socket.connect())[0], True)
        return socket

    async def rooms(self, headers, path="/ws/chat/"):
        socket = await self.open(headers, path)
        await socket.send_json_to({"cate": "rooms"})
        frame = await socket.receive_json_from(type="rooms")
        await socket.disconnect()
        return sorted(room["group_name"] for room in frame["rooms"])

    async def test_a_cookie_signs_in_and_a_log_out_ends_it(self):
        await sync_to_async(self.client.force_login)(self.ann)
        headers = self.cookie(self.client)
        socket = await self.open(headers)
        await socket.send_json_to({"cate": "rooms"})
        await socket.receive_json_from(type="rooms")
        found = await sync_to_async(api.call)("GET", api.path("users", "ann"))
        self.assertEqual(len(found["sockets"]), 1)
        await sync_to_async(self.client.logout)()
        self.assertEqual(await socket.receive_close(), 4401)

    async def test_who_does_not_count(self):
        stranger = await self.open({"Cookie": "sessionid=forged0forged0forged0forged0forg"})
        self.assertEqual(await stranger.receive_close(), 4401)
        nobody = await self.open({})
        self.assertEqual(await nobody.receive_close(), 4401)


class SessionTests(SignInMixin, GatewayLiveServerTestCase):
    """The node reads the sessions, with what gateway_config gives."""

    @classmethod
    def prepare_gateway(cls):
        if not knows("[django]"):
            raise SkipTest("this gateway reads no sessions")
        config = toml.node_config()
        given = {**config.plain, **{key: "\n".join(values) for key, values in config.secret.items()}}
        cls.gateway_config = {key: value for key, value in given.items() if key.startswith("django")}


class AskTests(SignInMixin, GatewayLiveServerTestCase):
    """The node asks the view auth/."""

    @classmethod
    def prepare_gateway(cls):
        if not knows("auth_url"):
            raise SkipTest("this gateway does not ask Django")
        url, secret = f"{cls.live_server_url}/gateway/auth/", settings.GATEWAY["AUTH_SECRET"]
        cls.gateway_config = {"auth_url": url, "auth_secret": secret}
        cls.gateway_site = {"AUTH_URL": url, "POLICY": "tests.test_views.RoomsPolicy"}

    async def test_the_policy_names_the_rooms(self):
        await sync_to_async(self.client.force_login)(self.ann)
        found = await self.rooms(self.cookie(self.client), "/ws/chat/open-1/")
        self.assertEqual(found, ["all", "of-ann", "open-1"])

    async def test_a_wrong_secret_lets_nobody_in(self):
        await sync_to_async(self.client.force_login)(self.ann)
        with site(AUTH_SECRET="another one than the gateway has"):
            socket = GatewayCommunicator(
                self.gateway_url + "/ws/chat/", headers=self.cookie(self.client), origin=self.live_server_url
            )
            # A fault of the settings, not of the visitor, who comes back.
            self.assertEqual(await socket.connect(), (False, 503))


class ServeTests(SimpleTestCase):
    def test_what_the_node_takes_by_itself_is_what_the_check_compares_with(self):
        """`gateway_config --check` knows the node's defaults."""
        told = subprocess.run(
            [settings.GATEWAY["BINARY"], "genconfig"], capture_output=True, text=True, check=True
        ).stdout
        given = toml._flat(toml.tomllib.loads(re.sub(r"(?m)^#(?=[a-z_]+ = )", "", told)))
        for key, default in toml._DEFAULTS.items():
            with self.subTest(key):
                self.assertTrue(toml._same(given.get(key, ""), default), (given.get(key), default))

    def test_a_real_node_by_gateway_serve(self):
        """The site's settings alone make a node that signs in the site's tokens, and ends when it is told to."""
        with tempfile.TemporaryDirectory() as directory:
            listen, internal = _free_ports()
            environment = {
                **os.environ,
                "TEST_SQLITE": f"{directory}/site.sqlite3",
                # What a gateway of today can do.
                "TEST_SIGN_IN": "jwt,session" if knows("[django]") else "jwt",
            }
            environment.pop("TEST_POSTGRES", None)
            manage = [sys.executable, "-m", "django"]
            subprocess.run([*manage, "migrate", "-v", "0"], env=environment, check=True)
            more = ["--internal-listen", f"127.0.0.1:{internal}"]
            more += ["--namespace", f"serve-{listen}", "--layer-prefix", f"serve-{listen}"]
            node = subprocess.Popen(
                [*manage, "gateway_serve", "--relay", "--", "--listen", f"127.0.0.1:{listen}", *more],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                line = ""
                while "listening" not in line and "ready" not in line:
                    line = node.stderr.readline()
                    self.assertTrue(line, "the node ended")
                async_to_sync(self.signs_in)(f"ws://127.0.0.1:{listen}/ws/chat/")
                node.terminate()
                rest = node.stderr.read()
                self.assertEqual(node.wait(60), 0, rest)
            finally:
                node.kill()
                node.wait()
                node.stderr.close()
            self.assertTrue(Path(directory, "gateway.db").exists())

    async def signs_in(self, url):
        socket = GatewayCommunicator(url).force_login(User(pk=1, username="ann"))
        for _ in range(200):
            with contextlib.suppress(OSError):
                self.assertEqual(await socket.connect(), (True, "gateway.v1"))
                break
            await asyncio.sleep(0.05)
        await socket.disconnect()
        self.assertEqual(socket.close_code, 1000)
