"""Workers as processes: signals, several of them, their age, TLS, autoreload."""

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from django.test import tag

from .bridge import SECRET, LinkEnded, Node
from .clients import until
from .run import WITH_US, free_port, free_ports

# As on a machine where neither Django nor Channels nor Redis' client is.
BARE = """
import runpy, sys
for name in ("django", "channels", "redis", "jwt"):
    sys.modules[name] = None
sys.argv[0] = "worker"
runpy.run_module("channel_gateway.worker", run_name="__main__")
"""


class WithProcesses(unittest.IsolatedAsyncioTestCase):
    """Workers that are started and dialled; they end with the test."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="gateway-worker-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / "worker.sock"
        self.log = self.directory / "log"

    async def asyncSetUp(self):
        asyncio.get_running_loop().set_debug(False)

    def start(self, *arguments, module=("-m", "channel_gateway.worker", "tests.worker_apps:echo"), listen=None, **more):
        environment = {
            **os.environ,
            "GATEWAY_BRIDGE__SECRET": SECRET.decode(),
            "TEST_ENDS": str(self.directory / "ends"),
        }
        environment |= more
        command = [*WITH_US, sys.executable, *module, "--listen", listen or f"unix:{self.path}", *arguments]
        log = self.enterContext(self.log.open("ab")) if hasattr(self, "enterContext") else self.log.open("ab")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    async def dial(self, address=None, **more):
        async def dialled():
            while True:
                with contextlib.suppress(OSError, LinkEnded):
                    return await Node().dial(address or f"unix:{self.path}", **more)
                await asyncio.sleep(0.02)

        node = await asyncio.wait_for(dialled(), 30)
        self.addCleanup(node.close)
        return node

    async def ended(self, process):
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, process.wait), 30)

    async def pid_of(self, node):
        socket = await node.connect()
        socket.say("pid")
        return int(await socket.hears())


@tag("once")
class ProcessTests(WithProcesses):
    async def test_it_needs_no_django_and_leaves_when_it_is_asked(self):
        process = self.start(module=("-c", BARE, "tests.worker_apps:echo"))
        node = await self.dial()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        socket = await node.connect()
        socket.say("hello")
        self.assertEqual(await socket.hears(), "hello")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await asyncio.wait_for(node.drain, 30), 20.0)
        await until(lambda: not self.path.exists())
        socket.closed(1012, "retry=1-2")
        self.assertEqual(await socket.end(), 0)
        self.assertEqual(await self.ended(process), 0)
        self.assertEqual((self.directory / "ends").read_text(), f"{process.pid} / 1012\n")

    async def test_a_second_signal_ends_it_at_once(self):
        process = self.start()
        node = await self.dial()
        await node.connect()
        process.send_signal(signal.SIGTERM)
        await node.drain
        process.send_signal(signal.SIGINT)
        self.assertEqual(await self.ended(process), 0)
        await asyncio.wait_for(node.ended.wait(), 30)

    async def test_after_the_window_it_says_that_sockets_were_left(self):
        process = self.start("--drain-seconds", "0.1")
        node = await self.dial()
        await node.connect()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 3)

    async def test_a_killed_worker_is_followed_by_another_and_a_living_one_is_not(self):
        first = self.start()
        node = await self.dial()
        await node.connect()
        second = self.start()
        self.assertEqual(await self.ended(second), 2)
        self.assertIn("another worker answers", self.log.read_text())
        first.kill()
        await asyncio.wait_for(node.ended.wait(), 30)
        self.assertTrue(self.path.exists())
        third = self.start()
        self.assertEqual(await self.pid_of(await self.dial()), third.pid)

    async def test_a_stopped_worker_goes_on_where_it_was(self):
        process = self.start()
        node = await self.dial()
        socket = await node.connect()
        process.send_signal(signal.SIGSTOP)
        for number in range(8):
            socket.say(str(number))
        other = self.start()
        # Nobody answers there, but somebody is there.
        self.assertEqual(await self.ended(other), 2)
        self.assertTrue(socket.events.empty())
        process.send_signal(signal.SIGCONT)
        self.assertEqual([await socket.hears() for _ in range(8)], list("01234567"))
        # The node is gone while it stands still.
        process.send_signal(signal.SIGSTOP)
        node.close()
        process.send_signal(signal.SIGCONT)
        ends = self.directory / "ends"
        await until(lambda: ends.exists() and ends.read_text() == f"{process.pid} / 1006\n")

    async def test_processes_are_numbered_and_started_again(self):
        parent = self.start("--processes", "2")
        paths = [self.directory / f"worker-{number}.sock" for number in (1, 2)]
        nodes = [await self.dial(f"unix:{path}") for path in paths]
        pids = [await self.pid_of(node) for node in nodes]
        self.assertEqual(len({parent.pid, *pids}), 3)
        os.kill(pids[0], signal.SIGKILL)
        await asyncio.wait_for(nodes[0].ended.wait(), 30)
        again = await self.dial(f"unix:{paths[0]}")
        pids.append(await self.pid_of(again))
        self.assertEqual(len(set(pids)), 3)
        parent.send_signal(signal.SIGTERM)
        for node in (again, nodes[1]):
            await asyncio.wait_for(node.drain, 30)
            for socket in node.sockets.values():
                socket.closed(1012)
        self.assertEqual(await self.ended(parent), 0)
        self.assertEqual(len((self.directory / "ends").read_text().splitlines()), 2)

    async def test_a_killed_parent_takes_its_processes_along(self):
        port = free_ports(2)
        parent = self.start("--processes", "2", "--drain-seconds", "0", listen=f"tcp://127.0.0.1:{port}")
        nodes = [await self.dial(f"tcp://127.0.0.1:{port + number}") for number in (0, 1)]
        parent.kill()
        for node in nodes:
            await asyncio.wait_for(node.ended.wait(), 30)

    async def test_what_can_never_start_ends_all(self):
        parent = self.start("--processes", "2", module=("-m", "channel_gateway.worker", "tests.worker_apps:nothing"))
        self.assertEqual(await self.ended(parent), 2)
        self.assertIn("has no 'nothing'", self.log.read_text())

    async def test_a_process_that_reaches_its_age_drains_and_a_new_one_follows(self):
        alone = self.start("--max-age", "3")
        node = await self.dial()
        socket = await node.connect()
        await asyncio.wait_for(node.drain, 30)
        socket.closed(1012)
        await asyncio.wait_for(node.ended.wait(), 30)
        # The same process, another program.
        self.assertEqual(await self.pid_of(await self.dial()), alone.pid)
        self.end(alone)
        self.path = self.directory / "of.sock"
        self.start("--max-age", "3", "--processes", "1")
        address = f"unix:{self.directory}/of-1.sock"
        node = await self.dial(address)
        before = await self.pid_of(node)
        await asyncio.wait_for(node.drain, 30)
        node.sockets[1].closed(1012)
        await asyncio.wait_for(node.ended.wait(), 30)
        self.assertNotEqual(await self.pid_of(await self.dial(address)), before)

    async def test_all_wrong_options_are_said_at_once(self):
        wrong = ("--mode", "rw", "--processes", "0", "--drain-seconds", "-1", "--key", "k")
        process = self.start(*wrong, listen="nowhere", GATEWAY_BRIDGE__SECRET="short")
        self.assertEqual(await self.ended(process), 2)
        said = self.log.read_text()
        for each in ("nowhere", "--mode", "--processes", "--drain-seconds", "--certificate", "5 bytes"):
            self.assertIn(each, said)

    @unittest.skipUnless(shutil.which("openssl"), "there is no openssl")
    async def test_tls_with_certificates_of_both(self):
        def make(name, *more):
            key, certificate = str(self.directory / f"{name}.key"), str(self.directory / f"{name}.pem")
            command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key]
            command += ["-out", certificate, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", *more]
            subprocess.run(command, check=True, capture_output=True)
            return certificate, key

        mine, theirs = make("worker"), make("node")
        port = free_port()
        address = f"tcp://127.0.0.1:{port}"
        self.start("--certificate", mine[0], "--key", mine[1], "--ca", theirs[0], listen=address)
        context = ssl.create_default_context(cafile=mine[0])
        context.load_cert_chain(*theirs)
        node = await self.dial(address, tls=context)
        socket = await node.connect()
        socket.say("x" * 100_000)
        self.assertEqual(await socket.hears(), "x" * 100_000)
        nobody = ssl.create_default_context(cafile=mine[0])
        with self.assertRaises((LinkEnded, OSError)):
            await Node().dial(address, tls=nobody)

    async def test_memory_stays_flat_under_floods_both_ways(self):
        process = self.start()
        node = await self.dial()
        socket = await node.connect()

        def resident():
            return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

        before = resident()
        for _ in range(20):
            sleeper = await node.connect()
            sleeper.say("sleep")
            for _ in range(7):
                sleeper.say(bytes(8000))
        # A client that does not read, and a node that does not read either.
        flooding = await node.connect()
        flooding.say("flood")
        flooding.pause()
        while (await flooding.next())[0] != "waiting":
            pass
        node.reading.clear()
        socket.say("flood")
        await asyncio.sleep(0.5)
        self.assertLess(resident() - before, 24 * 1024 * 1024)
        node.reading.set()
        socket.pause()
        while (await socket.next())[0] != "waiting":
            pass
        other = await node.connect()
        other.say("still")
        self.assertEqual(await other.hears(), "still")


@tag("once")
class CommandTests(ProcessTests):
    """`manage.py gateway_worker`; what is the same for both commands is not looked at again."""

    for _name in [name for name in dir(ProcessTests) if name.startswith("test_")]:
        locals()[_name] = None
    del _name

    def site(self, answer):
        (self.directory / "live_app.py").write_text(
            "from django.contrib.auth import get_user_model\n"
            "async def application(scope, receive, send):\n"
            "    assert scope['type'] == 'websocket' and get_user_model()\n"
            "    await receive()\n"
            "    await send({'type': 'websocket.accept'})\n"
            f"    await send({{'type': 'websocket.send', 'text': {answer!r}}})\n"
            "    await receive()\n"
        )

    def start_site(self, *arguments, debug):
        (self.directory / "live_settings.py").write_text(
            "from tests.settings import *\n"
            f"DEBUG = {debug}\n"
            "ASGI_APPLICATION = 'live_app.application'\n"
            f"GATEWAY = {{**GATEWAY, 'BRIDGE_SECRET': {SECRET.decode()!r}}}\n"
        )
        return self.start(
            *arguments,
            module=("-m", "django", "gateway_worker"),
            DJANGO_SETTINGS_MODULE="live_settings",
            PYTHONPATH=f"{self.directory}:{os.environ.get('PYTHONPATH', '.')}",
            GATEWAY_BRIDGE__SECRET="",
        )

    def address(self, numbered):
        return f"unix:{self.directory}/worker{'-1' if numbered else ''}.sock"

    async def hears(self, numbered=False):
        node = await self.dial(self.address(numbered))
        socket = await node.connect()
        heard = await socket.hears()
        node.close()
        return heard

    async def test_gateway_worker(self):
        self.site("one")
        process = self.start_site(debug=False)
        self.assertEqual(await self.hears(), "one")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0)

    async def test_gateway_worker_starts_again_when_code_changes(self):
        self.site("one")
        self.start_site(debug=True)
        self.assertEqual(await self.hears(), "one")

        async def changed():
            while True:
                # What is changed before Django has looked for the first time is never seen as a change.
                self.site("two, longer")
                for _ in range(30):
                    # The one that ends takes its sockets along.
                    with contextlib.suppress(AssertionError, LinkEnded, asyncio.TimeoutError):
                        if await self.hears() == "two, longer":
                            return
                    await asyncio.sleep(0.1)

        await asyncio.wait_for(changed(), 60)

    async def test_gateway_worker_that_watches_its_code_drains_when_it_is_asked_to_stop(self):
        self.site("one")
        for processes in ((), ("--processes", "1")):
            with self.subTest(processes=processes):
                process = self.start_site("--drain-seconds", "7", *processes, debug=True)
                self.assertEqual(await self.hears(bool(processes)), "one")
                node = await self.dial(self.address(bool(processes)))
                socket = await node.connect()
                self.assertEqual(await socket.hears(), "one")
                process.send_signal(signal.SIGTERM)
                self.assertEqual(await asyncio.wait_for(node.drain, 30), 7)
                self.assertIsNone(process.poll())
                socket.closed(1012, "retry=1-2")
                self.assertEqual(await socket.end(), 0)
                self.assertEqual(await self.ended(process), 0)

    async def test_a_second_signal_ends_one_that_watches_its_code_at_once(self):
        self.site("one")
        process = self.start_site(debug=True)
        node = await self.dial()
        await node.connect()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(node.drain, 30)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await self.ended(process), 0)

    async def test_gateway_worker_says_what_is_missing(self):
        self.site("one")
        process = self.start_site("--mode", "x", debug=False)
        self.assertEqual(await self.ended(process), 2)
        self.assertIn("--mode", self.log.read_text())
