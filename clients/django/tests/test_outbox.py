"""when="outbox": neither a crash nor Redis' absence loses anything, or sends it twice to anybody."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from io import StringIO
from unittest import skipUnless

from django.core.management import call_command
from django.db import connection, connections, transaction
from django.test import TransactionTestCase, tag
from django.utils import timezone

import channel_gateway as gw
from channel_gateway import backends, relay
from channel_gateway.exceptions import Unavailable
from channel_gateway.models import Outbox

from .base import StreamMixin, gateway
from .test_publishing import _nobody

FORK = multiprocessing.get_context("fork")


class OutboxTests(StreamMixin, TransactionTestCase):
    when = "outbox"

    def setUp(self):
        super().setUp()
        relay._paused_until = 0

    def away(self):
        """Redis is stopped, as far as this process can see."""
        return gateway(NAMESPACE=self.namespace, WHEN="outbox", REDIS_URL=f"redis://127.0.0.1:{_nobody()}")

    def test_sent_at_once_after_the_commit_and_deleted(self):
        with transaction.atomic():
            given = gw.notify("alice", "paid")
            self.assertEqual(Outbox.objects.count(), 1)
            self.assertEqual(self.entries(), [])
        self.assertEqual([each["id"] for each in self.entries()], [given])
        self.assertEqual(Outbox.objects.count(), 0)
        gw.notify("alice", "without a transaction")
        self.assertEqual([len(self.entries()), Outbox.objects.count()], [2, 0])

    def test_rolled_back_with_the_rest(self):
        with self.assertRaises(KeyError), transaction.atomic():
            gw.notify("alice", "x")
            raise KeyError
        self.assertEqual([Outbox.objects.count(), self.entries()], [0, []])

    def test_redis_stopped_and_back(self):
        with self.away():
            with self.assertLogs("channel_gateway", "WARNING"):
                ids = [gw.notify("alice", f"{number}") for number in range(250)]
            # One attempt, then requests do not wait for a Redis that is away.
            self.assertEqual(Outbox.objects.count(), 250)
            with self.assertRaises(Unavailable):
                relay.relay(older_than=0)
        self.assertEqual(relay.relay(older_than=0), 250)
        self.assertEqual([each["id"] for each in self.entries()], ids)
        self.assertEqual(relay.waiting(), 0)

    def test_the_young_are_left_to_who_wrote_them(self):
        with self.away():
            relay._paused_until = time.monotonic() + 60
            gw.notify("alice", "young")
            gw.notify("alice", "old")
        relay._paused_until = 0
        Outbox.objects.filter(pk=Outbox.objects.last().pk).update(created_at=timezone.now() - timedelta(seconds=6))
        self.assertEqual(relay.relay(), 1)
        self.assertEqual(relay.waiting(), 1)
        call_command("gateway_relay", "--once", "--older-than", "0", stdout=StringIO())
        self.assertEqual(relay.waiting(), 0)

    def test_killed_between_the_commit_and_the_xadd(self):
        """The process dies at the worst of moments; the relay of another one sends."""
        connections.close_all()
        made = FORK.Pipe(duplex=False)

        def child():
            class Killed:
                def send(self, entries):
                    made[1].send([each["id"] for each in entries])
                    os.kill(os.getpid(), signal.SIGKILL)

            backends._backend = Killed()
            with transaction.atomic():
                gw.notify("alice", "paid", id="order-42")

        process = FORK.Process(target=child)
        process.start()
        process.join(30)
        self.assertEqual(process.exitcode, -signal.SIGKILL)
        self.assertEqual(made[0].recv(), ["order-42"])
        self.assertEqual(self.entries(), [])
        self.assertEqual(relay.relay(older_than=0), 1)
        self.assertEqual([each["id"] for each in self.entries()], ["order-42"])

    def test_killed_between_the_xadd_and_the_delete(self):
        """Then it is sent again, under the identity that the gateway stores once."""
        connections.close_all()

        def child():
            real = backends.backend()

            class Killed:
                def send(self, entries):
                    real.send(entries)
                    os.kill(os.getpid(), signal.SIGKILL)

            backends._backend = Killed()
            gw.notify("alice", "paid", id="order-42")

        process = FORK.Process(target=child)
        process.start()
        process.join(30)
        self.assertEqual(process.exitcode, -signal.SIGKILL)
        self.assertEqual(relay.relay(older_than=0), 1)
        self.assertEqual([each["id"] for each in self.entries()], ["order-42"] * 2)

    @tag("once")
    def test_two_relays_at_once(self):
        with self.away():
            relay._paused_until = time.monotonic() + 60
            ids = [gw.notify("alice", f"{number}") for number in range(300)]
            for number in range(60):
                gw.add_members(f"room-{number % 3}", f"user{number}")
        connections.close_all()

        def work(answers):
            answers.put(relay.relay(older_than=0, batch=7))

        answers = FORK.Queue()
        processes = [FORK.Process(target=work, args=(answers,)) for _ in range(3)]
        for process in processes:
            process.start()
        sent = [answers.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(30)
        # What one of them held when the other looked is found by the next look.
        sent.append(relay.relay(older_than=0))
        entries = self.entries()
        self.assertEqual(sum(sent), len(entries))
        self.assertEqual(len(entries), 360)
        self.assertEqual({each["id"] for each in entries if each["type"] == "notification"}, set(ids))
        self.assertEqual(relay.waiting(), 0)
        # Of a room in order.
        for number in range(3):
            users = [data["users"][0] for _, to, data in self.short() if to == f"room:room-{number}"]
            self.assertEqual(users, [f"user{each}" for each in range(number, 60, 3)])

    def test_a_later_change_of_a_room_does_not_overtake_an_earlier_one(self):
        with self.away():
            relay._paused_until = time.monotonic() + 60
            gw.add_members("lobby", "alice")
        relay._paused_until = 0
        gw.remove_members("lobby", "alice")
        self.assertEqual([kind for kind, _, _ in self.short()], ["member.add", "member.remove"])
        self.assertEqual(relay.waiting(), 0)

    @skipUnless(connection.vendor == "postgresql", "row locks")
    def test_who_holds_a_room_keeps_nobody_waiting_and_the_order(self):
        with self.away():
            relay._paused_until = time.monotonic() + 60
            gw.add_members("lobby", "alice")
            gw.notify("alice", "x")
        relay._paused_until = 0
        real, holds, go_on = backends.backend(), threading.Event(), threading.Event()

        class Slow:
            def send(self, entries):
                if entries[0]["type"] == "member.add":
                    holds.set()
                    go_on.wait(30)
                real.send(entries)

        def hold():
            try:
                relay._send_key("default", "room:lobby")
            finally:
                connections.close_all()

        backends._backend = Slow()
        self.addCleanup(backends.forget)
        holder = threading.Thread(target=hold)
        holder.start()
        holds.wait(30)
        # The notification goes, the room is another's.
        self.assertEqual(relay.relay(older_than=0), 1)
        # Who comes later does not wait for long; its row stays.
        self.remove()
        self.assertEqual(relay.waiting(), 2)
        go_on.set()
        holder.join(30)
        self.assertEqual(relay.relay(older_than=0), 1)
        types = [kind for kind, to, _ in self.short() if to == "room:lobby"]
        self.assertEqual(types, ["member.add", "member.remove"])

    def remove(self):
        gw.remove_members("lobby", "alice")

    def test_the_relay_of_a_service_goes_on_after_faults_and_stops_when_told(self):
        stop = threading.Event()
        thread = threading.Thread(
            target=lambda: (relay.run(stop, interval=0.05, older_than=0), connections.close_all())
        )
        with self.away():
            relay._paused_until = time.monotonic() + 60
            gw.notify("alice", "x")
            with self.assertLogs("channel_gateway", "WARNING") as logs:
                thread.start()
                self.until(lambda: logs.output)
        self.until(lambda: len(self.entries()) == 1)
        stop.set()
        thread.join(10)
        self.assertFalse(thread.is_alive())

    @skipUnless(connection.vendor == "sqlite", "another process has to find the tests' database")
    def test_the_command_relays_until_it_is_told_to_end(self):
        with self.away():
            relay._paused_until = time.monotonic() + 60
            gw.notify("alice", "x")
        connections.close_all()
        command = [sys.executable, "-m", "django", "gateway_relay", "--interval", "0.05", "--older-than", "0"]
        process = subprocess.Popen(command, env={**os.environ, "TEST_NAMESPACE": self.namespace})
        self.addCleanup(process.kill)
        self.until(lambda: len(self.entries()) == 1)
        self.until(lambda: relay.waiting() == 0)
        process.terminate()
        self.assertEqual(process.wait(30), 0)

    @tag("once")
    def test_a_signal_ends_a_wait_whenever_it_comes(self):
        """A handler runs in the thread that waits, between any two of its instructions."""
        stop, seen = relay.Stop(), []

        def handler(*_):
            seen.append(1)
            stop.set()

        before = signal.signal(signal.SIGALRM, handler)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        for _ in range(2000):
            stop = relay.Stop()
            signal.setitimer(signal.ITIMER_REAL, 0.0002)
            while not stop.wait(0.0001):
                pass
            os.close(stop._reader)
            os.close(stop._writer)
        self.assertEqual(len(seen), 2000)

    def until(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)

    def test_as_a_task_of_celery(self):
        from channel_gateway import tasks

        if not hasattr(tasks, "relay_task"):
            self.skipTest("Celery is not installed")
        self.assertEqual(tasks.relay_task.name, "channel_gateway.relay")
        self.assertEqual(tasks.relay_task(older_than=0), 0)
