"""What stands in the stream after each call, and when."""

import json
import multiprocessing
import os
import socket
import threading
import uuid
from datetime import datetime, timezone
from decimal import Decimal

from django.contrib.auth.models import User
from django.db import transaction
from django.test import RequestFactory, SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

import channel_gateway as gw
from channel_gateway import backends
from channel_gateway.ids import new_id
from channel_gateway.signals import publish_failed

from .base import CLIENT, StreamMixin, gateway


class FieldsTests(StreamMixin, SimpleTestCase):
    when = "now"

    def test_a_notification(self):
        given = gw.notify("alice", "paid", from_user="shop", data={"order": 7})
        (entry,) = self.entries()
        time = entry.pop("time")
        self.assertEqual(datetime.fromisoformat(time.replace("Z", "+00:00")).tzinfo, timezone.utc)
        self.assertEqual(
            entry,
            {
                "id": given,
                "source": "django",
                "type": "notification",
                "to": "user:alice",
                "data": '{"message":"paid","from_user":"shop","data":{"order":7}}',
            },
        )
        self.assertEqual(uuid.UUID(given).version, 7)

    def test_every_type(self):
        gw.chat("lobby", "hi")
        gw.disconnect("user:alice", code=4401, reason="bye")
        gw.disconnect("everyone")
        gw.send(["user:a", "room:b"], {"type": "cart", "sum": Decimal("1.50")})
        gw.announce("closing soon", data={"at": 5})
        gw.add_members("lobby", ["a", "b", "a"])
        gw.remove_members("lobby", "a")
        gw.put_room("lobby", display_name="The lobby")
        gw.publish("room:lobby", "chat", {"message": "x"})
        self.assertEqual(
            self.short(),
            [
                ("chat", "room:lobby", {"message": "hi"}),
                ("gateway.disconnect", "user:alice", {"code": 4401, "reason": "bye"}),
                ("gateway.disconnect", "everyone", {"code": 4403}),
                ("gateway.send", '["user:a","room:b"]', {"text": '{"type":"cart","sum":"1.50"}'}),
                (
                    "gateway.send",
                    "everyone",
                    {"text": '{"type":"announcement","message":"closing soon","data":{"at":5}}'},
                ),
                ("member.add", "room:lobby", {"users": ["a", "b"]}),
                ("member.remove", "room:lobby", {"users": ["a"]}),
                ("room.put", "room:lobby", {"display_name": "The lobby"}),
                ("chat", "room:lobby", {"message": "x"}),
            ],
        )

    def test_data_of_64_levels(self):
        def deep(levels):
            return {"[{": None} if levels == 1 else {'k\\"': deep(levels - 1)}

        gw.notify("a", "x", data=deep(64))
        with self.assertRaises(gw.InvalidEvent):
            gw.notify("a", "x", data=deep(65))
        self.assertEqual(len(self.entries()), 1)

    def test_identity_expiry_and_trace(self):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        moment = datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
        given = gw.notify("a", "x", id="order-42", source="shop", expires_at=moment, traceparent=trace)
        (entry,) = self.entries()
        self.assertEqual([given, entry["id"], entry["source"]], ["order-42", "order-42", "shop"])
        self.assertEqual([entry["expires_at"], entry["traceparent"]], ["2030-01-02T03:04:05.000006Z", trace])

    def test_over_a_thousand_recipients_are_several_entries_of_one_identity(self):
        gw.notify([f"user{number}" for number in range(2500)], "x", id="all")
        entries = self.entries()
        self.assertEqual([len(json.loads(each["to"])) for each in entries], [1000, 1000, 500])
        self.assertEqual({each["id"] for each in entries}, {"all"})

    def test_many_members_have_an_identity_for_each_part(self):
        gw.add_members("lobby", [f"user{number}" for number in range(250)], id="m")
        self.assertEqual([each["id"] for each in self.entries()], ["m", "m/1", "m/2"])

    def test_users_lazy_users_and_lazy_texts(self):
        user = User(pk=1, username="alice")
        gw.notify(SimpleLazyObject(lambda: user), gettext_lazy("Home"), from_user=user)
        gw.publish(SimpleLazyObject(lambda: user), "notification", {"message": "y"})
        gw.publish([user, "user:bob", user], "notification", {"message": "z"})
        self.assertEqual(
            [(to, data["message"]) for _, to, data in self.short()],
            [("user:alice", "Home"), ("user:alice", "y"), ('["user:alice","user:bob"]', "z")],
        )

    def test_half_of_a_surrogate_pair_is_read_as_the_gateway_reads_it(self):
        gw.notify("alice", "cut \ud83d", data={"k\ud83d": "\U0001f389"})
        data = self.short()[0][2]
        self.assertEqual(data, {"message": "cut \ufffd", "data": {"k\ufffd": "\U0001f389"}})

    def test_what_can_never_work_fails_in_the_caller(self):
        wrong = [
            lambda: gw.notify("alice", "x" * 65536),
            lambda: gw.notify("alice", "x", data={"k": "x" * 16384}),
            lambda: gw.notify("alice", "x", data={"k": object()}),
            lambda: gw.notify("alice", "x", data={"k": float("nan")}),
            lambda: gw.notify("alice", "x", data=["k"]),
            lambda: gw.notify("alice", 7),
            lambda: gw.notify("alice", "x\0"),
            lambda: gw.notify("alice", "x", id=""),
            lambda: gw.notify("alice", "x", id="x" * 129),
            lambda: gw.notify("alice", "x", source="ü" * 65),
            lambda: gw.notify("alice", "x", from_user="x" * 151),
            lambda: gw.notify([], "x"),
            lambda: gw.notify("a/b", "x"),
            lambda: gw.notify("alice", "x", expires_at="tomorrow"),
            lambda: gw.notify("alice", "x", traceparent="here"),
            lambda: gw.chat(".", "x"),
            lambda: gw.publish("alice", "notification", {"message": "x"}),
            lambda: gw.publish(None, "notification", {"message": "x"}),
            lambda: gw.publish("user:alice", "chat", {"message": "x"}),
            lambda: gw.publish("room:lobby", "notification", {"message": "x"}),
            lambda: gw.publish("everyone", "notification", {"message": "x"}),
            lambda: gw.publish(["everyone", "user:a"], "gateway.disconnect", {}),
            lambda: gw.publish("user:alice", "cart", {}),
            lambda: gw.publish("user:alice", "notification", {}),
            lambda: gw.publish("user:alice", "notification", "x"),
            lambda: gw.publish("user:alice", "gateway.send", {"text": "[1]"}),
            lambda: gw.send("user:alice", {"type": "chat"}),
            lambda: gw.send("user:alice", []),
            lambda: gw.send("user:alice", {"type": [1]}),
            lambda: gw.send("user:alice", {"type": {}}),
            lambda: gw.send("user:alice", {"type": "x", "a": float("nan")}),
            lambda: gw.publish("user:alice", "gateway.send", {"text": '{"type":"x","a":NaN}'}),
            lambda: gw.publish("user:alice", "gateway.send", {"text": '{"type":"x","a":[-Infinity]}'}),
            lambda: gw.publish("user:alice", "gateway.send", {"text": '{"a":' + "[" * 30000}),
            lambda: gw.notify(None, "x"),
            lambda: gw.notify([7], "x"),
            lambda: gw.notify("alice", "x", from_user=7),
            lambda: gw.add_members("lobby", [None]),
            lambda: gw.disconnect("user:alice", code=1006),
            lambda: gw.disconnect("user:alice", code=True),
            lambda: gw.disconnect("user:alice", reason="ü" * 62),
            lambda: gw.add_members("lobby", []),
            lambda: gw.publish("room:lobby", "member.add", {"users": ["a/b"]}),
        ]
        for number, call in enumerate(wrong):
            with self.subTest(number), self.assertRaises(gw.InvalidEvent):
                call()
        with self.assertRaises(ValueError):
            gw.notify("alice", "x", when="later")
        self.assertEqual(self.entries(), [])

    def test_ids_ascend(self):
        ids = [new_id() for _ in range(5000)]
        self.assertEqual(ids, sorted(set(ids)))
        self.assertEqual({uuid.UUID(each).version for each in ids}, {7})


class WhenTests(StreamMixin, TransactionTestCase):
    def messages(self):
        return [data["message"] for _, _, data in self.short()]

    def test_after_the_transaction_and_not_at_all_if_it_is_rolled_back(self):
        with transaction.atomic():
            given = gw.notify("alice", "one")
            self.assertEqual(self.entries(), [])
            try:
                with transaction.atomic():
                    gw.notify("alice", "of a savepoint that is rolled back")
                    raise KeyError
            except KeyError:
                pass
            with transaction.atomic():
                gw.notify("alice", "two")
        self.assertEqual(self.messages(), ["one", "two"])
        self.assertEqual(self.entries()[0]["id"], given)
        with self.assertRaises(KeyError), transaction.atomic():
            gw.notify("alice", "three")
            raise KeyError
        self.assertEqual(self.messages(), ["one", "two"])

    def test_at_once_without_a_transaction_and_with_now(self):
        gw.notify("alice", "one")
        self.assertEqual(self.messages(), ["one"])
        with transaction.atomic():
            gw.notify("alice", "two", when="now")
            self.assertEqual(self.messages(), ["one", "two"])

    def test_with_atomic_requests(self):
        from django.core.handlers.base import BaseHandler
        from django.db import connection

        def view(request):
            gw.notify("alice", "in a request")
            self.assertTrue(connection.in_atomic_block)
            self.assertEqual(self.entries(), [])
            if "fail" in request.GET:
                raise KeyError
            return

        request = RequestFactory()
        connection.settings_dict["ATOMIC_REQUESTS"] = True
        self.addCleanup(connection.settings_dict.__setitem__, "ATOMIC_REQUESTS", False)
        atomic = BaseHandler().make_view_atomic(view)
        with self.assertRaises(KeyError):
            atomic(request.get("/?fail"))
        self.assertEqual(self.entries(), [])
        atomic(request.get("/"))
        self.assertEqual(self.messages(), ["in a request"])

    def test_redis_away(self):
        failed = []
        receiver = lambda **given: failed.append(given)  # noqa: E731
        publish_failed.connect(receiver)
        self.addCleanup(publish_failed.disconnect, receiver)
        later = []
        with gateway(REDIS_URL=f"redis://127.0.0.1:{_nobody()}"):
            # The caller is told where there is one …
            for when in ("now", "commit"):
                with self.assertRaises(gw.Unavailable):
                    gw.notify("alice", "x", when=when)
            self.assertEqual(failed, [])
            # … and after the transaction nothing of the site's is kept from running.
            with self.assertLogs("channel_gateway", "ERROR") as logs, transaction.atomic():
                given = gw.notify("alice", "the text is nobody's business")
                transaction.on_commit(lambda: later.append(1))
        self.assertEqual(later, [1])
        self.assertEqual([each["id"] for each in failed[0]["entries"]], [given])
        self.assertIn(given, logs.output[0])
        self.assertNotIn("business", logs.output[0])

    def test_a_hanging_redis_is_given_up(self):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            url = f"redis://127.0.0.1:{server.getsockname()[1]}"
            with gateway(REDIS_URL=url, TIMEOUT=0.1), self.assertRaises(gw.Unavailable):
                gw.notify("alice", "x")

    def test_what_redis_had_closed_meanwhile_is_sent_over_a_new_connection(self):
        gw.notify("alice", "one")
        CLIENT.client_kill_filter(_type="normal", skipme=True)
        gw.notify("alice", "two")
        self.assertEqual(self.messages(), ["one", "two"])

    def test_many_threads_share_a_bounded_pool(self):
        errors = []

        def work(number):
            try:
                for each in range(20):
                    gw.notify("alice", f"{number}.{each}", when="now")
            except Exception as error:
                errors.append(error)

        with gateway(NAMESPACE=self.namespace, MAX_CONNECTIONS=3):
            threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            pool = backends.backend()._client.connection_pool
            self.assertLessEqual(len(pool._connections), 3)
        self.assertEqual(errors, [])
        self.assertEqual(len(self.entries()), 240)

    def test_a_fork_has_connections_of_its_own(self):
        gw.notify("alice", "parent", when="now")
        mine = backends.backend()
        context = multiprocessing.get_context("fork")
        answers = context.Queue()

        def child(number):
            gw.notify("alice", f"child {number}", when="now")
            answers.put((os.getpid(), backends.backend() is mine))

        children = [context.Process(target=child, args=(number,)) for number in range(4)]
        for process in children:
            process.start()
        said = [answers.get(timeout=20) for _ in children]
        for process in children:
            process.join()
        gw.notify("alice", "parent again", when="now")
        self.assertEqual([process.exitcode for process in children], [0] * 4)
        self.assertEqual({same for _, same in said}, {False})
        self.assertIs(backends.backend(), mine)
        self.assertEqual(sorted(self.messages()), sorted(["parent", "parent again", *(f"child {n}" for n in range(4))]))


class HostsTests(SimpleTestCase):
    """Entries of ``hosts`` as channels_redis takes them."""

    def pool(self, hosts, **site):
        layer = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": hosts}}}
        with override_settings(CHANNEL_LAYERS=layer), gateway(REDIS_URL=None, **site):
            return backends.backend()._client.connection_pool

    def test_every_form(self):
        for host in (
            "redis://:pass@redis.example:6390/2",
            {"address": "redis://:pass@redis.example:6390/2"},
            {"host": "redis.example", "port": 6390, "password": "pass", "db": 2},
        ):
            given = self.pool([host]).connection_kwargs
            found = [given[key] for key in ("host", "port", "password", "db", "socket_timeout")]
            self.assertEqual(found, ["redis.example", 6390, "pass", 2, 2.0])
        self.assertEqual(self.pool([("redis.example", 6391)]).connection_kwargs["port"], 6391)
        # The stream is on the first host.
        self.assertEqual(self.pool(["redis://one", "redis://two"]).connection_kwargs["host"], "one")

    def test_unix_sockets_and_sentinels(self):
        pool = self.pool(["unix:///nowhere/redis.sock?db=3"])
        self.assertEqual(pool.connection_kwargs["path"], "/nowhere/redis.sock")
        self.assertEqual(pool.make_connection().path, "/nowhere/redis.sock")
        pool = self.pool([{"sentinels": [("s1", 26379)], "master_name": "main", "db": 1}])
        self.assertEqual([pool.service_name, pool.connection_kwargs["db"]], ["main", 1])
        with gateway(REDIS_URL="redis+sentinel://:pass@s1:1,s2/main"):
            pool = backends.backend()._client.connection_pool
        self.assertEqual([pool.service_name, pool.connection_kwargs["password"]], ["main", "pass"])


class BackendTests(TestCase):
    def test_dummy_and_a_class_of_ones_own(self):
        with gateway(BACKEND="dummy"):
            gw.notify("alice", "x", when="now")
        with gateway(BACKEND="channel_gateway.backends.dummy.DummyBackend"):
            gw.notify("alice", "x", when="now")


def _nobody():
    """A port where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
