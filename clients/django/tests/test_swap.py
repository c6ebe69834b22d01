"""The swap: a Channels project on Daphne goes to the gateway and back, while two people chat in a browser.

As docs/from-channels.md says it, with the project of examples/django, in an environment of its own. GATEWAY_LONG=1 gets
all its packages from the index and the program's wheel from a release build; else the packages are those that
`check.sh install` has installed, and the wheel holds the debug build. SCREENSHOTS: where a picture goes.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import TestCase

from django.test import tag

from .run import HERE, WITH_US, answers, free_port, wait

ROOT = HERE.parent.parent
EXAMPLE = ROOT / "examples/django"
LONG = bool(os.environ.get("TEST_LONG"))
PATIENCE = 120
#: What the site's rooms, members, messages and notifications are, as docs/from-channels.md has it.
TABLES = [
    *("--rooms", "chat.Room:name,title"),
    *("--members", "chat.Room_members:room,user"),
    *("--messages", "chat.Message:room,author,text,date,data"),
    *("--notifications", "chat.Notification:user,sender,text,date,seen,data"),
]


def packages():
    """Where the project's packages are: made by `check.sh install`."""
    found = next((ROOT / ".venv/django/swap").glob("lib/python3*/site-packages"), None)
    if found is None:
        raise AssertionError("run clients/django/check.sh install")
    return found


def built_wheels():
    """Where both wheels are, of this tree: made by `check.sh wheels DIRECTORY`, and by `check.sh` for itself."""
    if "TEST_WHEELS" not in os.environ:
        raise AssertionError("run clients/django/check.sh wheels DIRECTORY, and set TEST_WHEELS to it")
    return Path(os.environ["TEST_WHEELS"])


class Process:
    """A server that says what it does to a file."""

    def __init__(self, name, command, **options):
        self.log = Path(options["cwd"], f"{name}.log")
        with self.log.open("ab") as log:
            options |= {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            self.process = subprocess.Popen([*WITH_US, *map(str, command)], **options)

    def end(self):
        """Asked to end, it does."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()


class Browser:
    """The two people: what tests/swap.mjs does."""

    def __init__(self, url):
        self.process = subprocess.Popen(
            [*WITH_US, "node", HERE / "tests/swap.mjs", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __getattr__(self, name):
        def order(*given):
            self.process.stdin.write(json.dumps([name, *given]) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or '{"error": "the browser is gone"}')
            if "error" in answer:
                raise AssertionError(f"{name}{given}: {answer['error']}")
            return answer["value"]

        return order

    def end(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


@tag("once")
class SwapTests(TestCase):
    def setUp(self):
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-swap-")))
        self.site = self.directory / "site"
        self.python = self.directory / "venv/bin/python"
        self.pages, self.public, self.node, self.internal = (free_port() for _ in range(4))
        self.key = "the key of the internal API of the swap"
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("GATEWAY_", "DJANGO_", "PYTHON"))
        }
        self.environment = {
            **clean,
            # A database of its own in the Redis that the tests share.
            "REDIS_URL": f"{os.environ['TEST_REDIS_URL']}/5",
            "GATEWAY_API_KEY": self.key,
            "PYTHONDONTWRITEBYTECODE": "1",
            "DJANGO_SETTINGS_MODULE": "settings_here",
        }

    # ---- what an operator does ----

    @contextmanager
    def step(self, text):
        start = time.monotonic()
        yield
        print(f"swap: {time.monotonic() - start:6.1f} s  {text}", flush=True)

    def run_in(self, directory, *command, **options):
        done = subprocess.run(
            [*map(str, command)], cwd=directory, env=self.environment, capture_output=True, text=True, **options
        )
        self.assertEqual(done.returncode, 0, f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done.stdout + done.stderr

    def manage(self, *arguments, **options):
        return self.run_in(self.site, self.python, "manage.py", *arguments, **options)

    def pip(self, command, *arguments):
        tool = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python, command, "--quiet"]
        self.run_in(EXAMPLE, *tool, *arguments)

    def deploy(self, state):
        """The project as it is in this state: its files over those that are there."""
        shutil.copytree(EXAMPLE / state, self.site, symlinks=False, dirs_exist_ok=True)
        # What differs on this machine: where the API listens.
        Path(self.site, "settings_here.py").write_text(
            "from mysite.settings import *\n"
            + (f"GATEWAY['API_URL'] = 'http://127.0.0.1:{self.internal}'\n" if state == "after" else "")
        )

    def start_daphne(self):
        command = [self.python, "-m", "daphne", "-b", "127.0.0.1", "-p", self.pages, "mysite.asgi:application"]
        daphne = Process("daphne", command, cwd=self.site, env=self.environment)
        self.stack.callback(daphne.end)
        wait("Daphne", lambda: answers(self.pages), PATIENCE)
        return daphne

    def start_haproxy(self):
        shutil.copy(EXAMPLE / "haproxy.cfg", self.directory)
        places = {
            "HAPROXY_SOCKET": f"{self.directory}/haproxy.sock",
            "HAPROXY_BIND": f"127.0.0.1:{self.public}",
            "DAPHNE": f"127.0.0.1:{self.pages}",
            "GATEWAY": f"127.0.0.1:{self.node}",
        }
        command = ["haproxy", "-db", "-f", "haproxy.cfg"]
        balancer = Process("haproxy", command, cwd=self.directory, env={**os.environ, **places})
        self.stack.callback(balancer.end)
        wait("HAProxy", lambda: answers(self.public), PATIENCE)

    def balancer(self, *commands):
        for command in commands:
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(f"{self.directory}/haproxy.sock")
                one.sendall(f"{command}\n".encode())
                said = b"".join(iter(lambda: one.recv(4096), b"")).strip()
            self.assertEqual(said, b"", command)

    def close_route(self, server):
        """Nobody gets in any more, and who is in gets out."""
        self.balancer(f"set server sockets/{server} state maint", f"shutdown sessions server sockets/{server}")

    def open_route(self, server):
        self.balancer(f"set server sockets/{server} state ready")

    def api(self, path):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.internal}/api/{path}", headers={"Authorization": f"Bearer {self.key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.internal}/readyz", timeout=1):
                return True
        except OSError:
            return False

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.internal}/metrics", timeout=30) as answer:
            found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(found[1])

    # ---- what is to be seen ----

    def numbers(self, texts, count):
        """Of each author the numbered messages: all of them, once, in order."""
        for name, last in count.items():
            found = [int(text.split()[1]) for text in texts if re.fullmatch(rf"{name} \d+", text)]
            self.assertEqual(found, list(range(1, last + 1)), name)

    def on_the_gateway(self, room):
        """The texts of a room, and that nothing is missing between them."""
        found, after = [], 0
        while page := self.api(f"rooms/{room}/history?after={after}&limit=100")["messages"]:
            found += page
            after = page[-1]["seq"]
        self.assertEqual([each["seq"] for each in found], list(range(1, len(found) + 1)))
        return [each["message"] for each in found]

    def in_the_table(self, room):
        code = (
            "import json; from chat.models import Message;"
            f" print(json.dumps(list(Message.objects.filter(room__name={room!r}).order_by('pk')"
            ".values_list('text', flat=True))))"
        )
        return json.loads(self.manage("shell", "-c", code).splitlines()[-1])

    # ---- the test ----

    def test_there_and_back(self):
        with self.step("make an environment"):
            self.run_in(self.directory, sys.executable, "-m", "venv", "--without-pip", "venv")
            self.deploy("before")
            if LONG:
                self.pip("install", "-r", "before/requirements.txt")
            else:
                own = next((self.directory / "venv").glob("lib/python3*/site-packages"))
                (own / "packages.pth").write_text(f"{packages()}\n")
        with self.step("start the site as it was"):
            self.manage("migrate")
            daphne = self.start_daphne()
            self.start_haproxy()
        browser = Browser(f"http://127.0.0.1:{self.public}")
        self.stack.callback(browser.end)
        with self.step("two people sign in"):
            browser.start("alice", "bob")
            browser.sign_in_again("bob")
            browser.open_room("alice", "Books")
            # Told by a view, through the channel layer.
            browser.join_room("bob", "Books")
            self.assertEqual(browser.inbox("alice", 1), ["bob has come to Books"])
            for name in ("alice", "bob"):
                browser.enter(name, "Lobby")
            browser.say("bob", "look here, @alice")
            told = "bob in Lobby: look here, @alice"
            self.assertEqual(browser.inbox("alice", 2), [told, "bob has come to Books"])
            browser.say("alice", "I see")
            browser.shows("bob", "I see")
        browser.talk()

        with self.step("pip install"):
            wheels = built_wheels()
            [app], [program] = wheels.glob("channel_gateway-*.whl"), wheels.glob("channel_gateway_server-*.whl")
            self.pip("install", *([] if LONG else ["--no-index"]), f"{app}[server]", program)
            self.run_in(self.directory, self.directory / "venv/bin/gateway", "version")
        self.deploy("after")
        with self.step("migrate, check, gateway_config"):
            self.manage("migrate")
            self.assertIn("no issues", self.manage("check", "--tag", "gateway", "--fail-level", "WARNING"))
            self.manage("gateway_config", "--output", "gateway.toml")
            self.manage("gateway_config", "--check", "gateway.toml")
        with self.step("gateway_serve"):
            listen = ["--listen", f"127.0.0.1:{self.node}", "--internal-listen", f"127.0.0.1:{self.internal}"]
            command = [self.python, "manage.py", "gateway_serve", "--", *listen]
            gateway = Process("gateway", command, cwd=self.site, env=self.environment)
            self.stack.callback(gateway.end)
            wait("the gateway", lambda: self.ready() or gateway.process.poll() is not None, PATIENCE)
            self.assertTrue(self.ready(), gateway.log.read_text()[-4000:])
        with self.step("gateway_import, while they talk"):
            self.manage("gateway_import", *TABLES)

        with self.step("the switch: nobody has a socket"):
            self.close_route("daphne")
            daphne.end()
            daphne = self.start_daphne()
            self.manage("gateway_import", *TABLES)
            self.open_route("gateway")
        with self.step("both are back"):
            for name in ("alice", "bob"):
                browser.status(name, "")
        self.assertEqual(self.metric("gateway_connections"), 2)
        count = browser.hush()
        self.agree(browser, count, self.on_the_gateway)
        self.assertEqual(browser.inbox("alice", 2), [told, "bob has come to Books"])
        stored = self.api("users/alice/notifications")["notifications"]
        self.assertEqual([each["message"] for each in stored], ["bob has come to Books", told])
        self.assertIn("0 differ", self.manage("gateway_sync", "--dry-run"))
        if os.environ.get("SCREENSHOTS"):
            browser.picture("alice", f"{os.environ['SCREENSHOTS']}/swap.png")
        # Rooms, members and what the site itself says reach the node by themselves.
        browser.open_room("alice", "Films")
        browser.join_room("bob", "Films")
        browser.say("bob", "is this one on?")
        browser.shows("alice", "is this one on?")
        self.assertEqual(browser.inbox("alice", 3), ["bob has come to Films", told, "bob has come to Books"])
        for name in ("alice", "bob"):
            browser.enter(name, "Lobby")
        browser.say("alice", "hello again, @bob")
        self.assertEqual(browser.inbox("bob", 1), ["alice in Lobby: hello again, @bob"])

        browser.talk()
        browser.shows("bob", f"alice {count['alice'] + 3}")
        with self.step("the way back: nobody has a socket"):
            self.close_route("gateway")
            with (EXAMPLE / "take_back.py").open() as script:
                self.manage("shell", stdin=script)
            self.deploy("before")
            daphne.end()
            self.start_daphne()
            self.open_route("daphne")
        with self.step("both are back"):
            for name in ("alice", "bob"):
                browser.status(name, "")
        count = browser.hush()
        self.agree(browser, count, self.in_the_table)
        self.assertEqual(browser.inbox("bob", 1), ["alice in Lobby: hello again, @bob"])
        self.assertEqual(set(browser.inbox("alice", 3)), {"bob has come to Films", told, "bob has come to Books"})
        self.assertEqual(self.metric("gateway_connections"), 0)
        self.assertEqual(gateway.end(), 0)
        self.assertEqual(browser.check(), [])

    def agree(self, browser, count, stored):
        """What was said is stored once, and each page shows the newest of it as it is stored."""
        last = {name: f"{name} {number}" for name, number in count.items()}
        for name in count:
            for other in last.values():
                browser.shows(name, other)
        everything = stored("lobby")
        self.numbers(everything, count)
        for name in count:
            shown = browser.shows(name, last[name])
            self.assertEqual(shown, everything[-len(shown) :])
