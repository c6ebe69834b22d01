#!/usr/bin/env python3
"""What a socket and an echoed frame cost behind the bridge, beside Uvicorn and Daphne:  bench/bridge.py [--help]

Starts, one after the other and on free ports of 127.0.0.1: the gateway with one worker, Uvicorn and Daphne, each with
the same application; opens sockets, echoes frames, and prints one Markdown table. CPU is that of the server's processes
(gateway and worker together), from /proc; the generator is not counted. Needs Linux; makes `.venv/bridge` at the first
run. Best on a machine that does nothing else.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
DJANGO = HERE / "clients/django"
ENVIRONMENT = HERE / ".venv/bridge"
PACKAGES = [
    "Django==5.2.19",
    "PyJWT==2.15.1",
    "channels==4.3.2",
    "channels_redis==4.3.0",
    "daphne==4.2.3",
    "msgpack==1.2.4",
    "redis==7.4.1",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "websockets==17.4",
    "wsproto==1.3.2",
]
SECRET = "a secret of the benchmark"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGESIZE")
# The Redis for CHANNEL_LAYERS, where one is asked for.
LAYER = "BENCH_BRIDGE_REDIS"

SERVERS = ("gateway", "uvicorn", "uvicorn-wsproto", "daphne", "worker")


def application():
    """Imported by the servers: `bridge:raw`, `bridge:consumer`."""
    from django.conf import settings

    layers = {}
    if os.environ.get(LAYER):
        config = {"hosts": [os.environ[LAYER]], "prefix": "bench"}
        layers = {"default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": config}}
    settings.configure(
        SECRET_KEY="x",
        ALLOWED_HOSTS=["*"],
        CHANNEL_LAYERS=layers,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )
    import django

    django.setup()
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.routing import ProtocolTypeRouter

    class Echo(AsyncWebsocketConsumer):
        async def receive(self, text_data=None, bytes_data=None):
            await self.send(text_data, bytes_data)

    return ProtocolTypeRouter({"websocket": Echo.as_asgi()})


async def raw(scope, receive, send):
    """The least that an application can do."""
    if scope["type"] != "websocket":
        raise ValueError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": message["text"]})


def __getattr__(name):
    if name == "consumer":
        globals()[name] = application()
        return globals()[name]
    raise AttributeError(name)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """The processes of one server."""

    def __init__(self, kind, app, arguments, directory):
        self.kind = kind
        self.port = free_port()
        self.processes = []
        python = [sys.executable]
        environment = {**os.environ, "PYTHONPATH": f"{DJANGO}:{Path(__file__).parent}"}
        where = ["--port", str(self.port)]
        if kind.startswith("uvicorn"):
            ws = kind.partition("-")[2] or "auto"
            command = [*python, "-m", "uvicorn", f"bridge:{app}", *where, "--loop", "uvloop", "--ws", ws]
            self._start([*command, "--no-access-log", "--log-level", "warning"], environment)
        elif kind == "daphne":
            self._start([*python, "-m", "daphne", f"bridge:{app}", *where, "-v", "0"], environment)
        else:
            self.path = f"{directory}/worker.sock"
            command = [*python, "-m", "channel_gateway.worker", f"bridge:{app}", "--listen", f"unix:{self.path}"]
            environment["GATEWAY_BRIDGE__SECRET"] = SECRET
            command += ["--loop", arguments.loop, "--close-connections", arguments.close_connections]
            self._start([*command, "--log-level", "warning"], environment)
            if kind == "gateway":
                clean = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
                node = {
                    "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
                    "GATEWAY_INTERNAL_LISTEN": f"127.0.0.1:{free_port()}",
                    "GATEWAY_DATABASE_URL": f"sqlite://{directory}/gateway.db?mode=rwc",
                    "GATEWAY_BRIDGE__PATH": "/",
                    "GATEWAY_BRIDGE__WORKERS": f"unix:{self.path}",
                    "GATEWAY_BRIDGE__SECRET": SECRET,
                    "GATEWAY_DRAIN__DELAY_SECONDS": "0",
                    "RUST_LOG": "error",
                }
                self._start([arguments.gateway, "serve"], {**clean, **node})

    def _start(self, command, environment):
        self.processes.append(subprocess.Popen(command, env=environment, cwd=Path(__file__).parent))

    def cpu(self):
        """Seconds."""
        total = 0
        for each in self.processes:
            fields = Path(f"/proc/{each.pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def memory(self):
        """Bytes, of each process; the node before its worker."""
        pids = [each.pid for each in reversed(self.processes)]
        return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE for pid in pids]

    def stop(self):
        for each in reversed(self.processes):
            each.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(0.3)
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
                try:
                    each.wait(5)
                except subprocess.TimeoutExpired:
                    each.kill()
                    each.wait()


class Client(asyncio.Protocol):
    """One browser: frames of less than 126 bytes."""

    def __init__(self, heard):
        self.heard = heard
        self.opened = asyncio.get_running_loop().create_future()
        self.open = False
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /ws/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def data_received(self, data):
        data = self.buffer + data if self.buffer else data
        self.buffer = b""
        if not self.open:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self.buffer = head
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                self.opened.set_exception(ConnectionError(head.decode()))
                return
            self.open = True
            self.opened.set_result(self)
        at = 0
        while len(data) - at >= 2:
            after = at + 2 + data[at + 1]
            if after > len(data):
                break
            if data[at] == 0x81:
                self.heard(self, data[at + 2 : after])
            elif data[at] == 0x89:
                self.transport.write(struct.pack("!BBI", 0x8A, 0x80 | data[at + 1], 0) + data[at + 2 : after])
            at = after
        self.buffer = data[at:]

    def connection_lost(self, error):
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionError("closed"))

    def say(self, text):
        self.transport.write(b"\x81" + bytes((0x80 | len(text),)) + b"\0\0\0\0" + text)


class BridgeClient:
    """A socket of a node that the generator plays itself: what the worker costs alone."""

    def __init__(self, link, sid, heard):
        self.link, self.sid, self.heard = link, sid, heard
        self.opened = asyncio.get_running_loop().create_future()

    def say(self, text):
        self.link.write(19, self.sid, text)


class BridgeNode(asyncio.Protocol):
    HEAD = struct.Struct("<IBQ")

    def __init__(self):
        self.ready = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.clients = {}

    def connection_made(self, transport):
        import msgpack

        self.transport = transport
        self.nonce = os.urandom(32)
        hello = {"v": 1, "node": "bench", "deployment": "", "nonce": self.nonce}
        self.write(1, 0, msgpack.packb(hello))

    def write(self, kind, sid, body):
        self.transport.write(self.HEAD.pack(9 + len(body), kind, sid) + body)

    def data_received(self, data):
        data = self.buffer + data
        at = 0
        while len(data) - at >= 13:
            length, kind, sid = self.HEAD.unpack_from(data, at)
            after = at + 4 + length
            if after > len(data):
                break
            body = data[at + 13 : after]
            at = after
            if kind == 19:
                client = self.clients[sid]
                client.heard(client, body)
            elif kind == 17:
                self.clients[sid].opened.set_result(self.clients[sid])
            elif kind == 2:
                self.prove(body)
            elif kind == 4:
                self.write(5, 0, body)
        self.buffer = data[at:]

    def prove(self, body):
        import hashlib
        import hmac

        import msgpack

        told = b"gateway.bridge.1 node" + self.nonce + msgpack.unpackb(body)["nonce"]
        proof = hmac.new(SECRET.encode(), told, hashlib.sha256).digest()
        self.write(3, 0, msgpack.packb({"mac": proof}))
        self.ready.set_result(None)

    def open(self, heard):
        import msgpack

        sid = len(self.clients) + 1
        client = self.clients[sid] = BridgeClient(self, sid, heard)
        headers = [[b"host", b"127.0.0.1"], [b"connection", b"Upgrade"], [b"upgrade", b"websocket"]]
        headers += [[b"sec-websocket-version", b"13"], [b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="]]
        scope = {"path": "/ws/", "raw_path": b"/ws/", "query_string": b"", "headers": headers, "subprotocols": []}
        scope |= {"client": ["127.0.0.1", 1], "server": ["127.0.0.1", 2], "channel_name": "bench"}
        self.write(16, sid, msgpack.packb({"scope": scope, "attempt": 0}))
        return client


class Load:
    """Sockets, and what they hear."""

    def __init__(self, server):
        self.server = server
        self.clients = []
        self.latencies = []
        self.heard_count = 0
        self.again = False
        self.node = None

    def heard(self, client, data):
        self.heard_count += 1
        self.latencies.append(time.perf_counter() - float(data))
        if self.again:
            client.say(self.text())

    @staticmethod
    def text():
        return b"%064.9f" % time.perf_counter()

    async def connect(self, number, at_once=64):
        loop = asyncio.get_running_loop()
        if self.server.kind == "worker" and self.node is None:
            _, self.node = await loop.create_unix_connection(BridgeNode, self.server.path)
            await self.node.ready
        turns = asyncio.Semaphore(at_once)

        async def one():
            async with turns:
                if self.node is not None:
                    client = self.node.open(self.heard)
                else:
                    _, client = await loop.create_connection(
                        lambda: Client(self.heard), "127.0.0.1", self.server.port
                    )
                self.clients.append(await client.opened)

        await asyncio.gather(*(one() for _ in range(number)))

    async def wait_ready(self):
        end = time.monotonic() + 60
        while True:
            try:
                await asyncio.wait_for(self.connect(1), 5)
            except (OSError, asyncio.TimeoutError):
                if time.monotonic() > end or any(each.poll() is not None for each in self.server.processes):
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    async def rate(self, per_second, seconds):
        """Frames at fixed times, whatever the server does."""
        self.latencies, self.heard_count = [], 0
        cpu, begun, sent = self.server.cpu(), time.perf_counter(), 0
        while (now := time.perf_counter() - begun) < seconds:
            while sent < now * per_second:
                self.clients[sent % len(self.clients)].say(self.text())
                sent += 1
            await asyncio.sleep(0.001)
        while self.heard_count < sent and time.perf_counter() - begun < seconds + 5:
            await asyncio.sleep(0.01)
        return self._figures(cpu, seconds, sent)

    async def full(self, sockets, seconds):
        """Always one frame of each socket under way."""
        self.latencies, self.heard_count, self.again = [], 0, True
        cpu, begun = self.server.cpu(), time.perf_counter()
        for client in self.clients[:sockets]:
            client.say(self.text())
        await asyncio.sleep(seconds)
        self.again = False
        took = time.perf_counter() - begun
        await asyncio.sleep(0.2)
        return self._figures(cpu, took, self.heard_count)

    def _figures(self, cpu, seconds, sent):
        found = sorted(self.latencies)
        return {
            "cpu_us": (self.server.cpu() - cpu) / max(self.heard_count, 1) * 1e6,
            "per_second": self.heard_count / seconds,
            "lost": sent - self.heard_count,
            "p50_ms": statistics.median(found) * 1000 if found else float("nan"),
            "p99_ms": found[int(len(found) * 0.99)] * 1000 if found else float("nan"),
        }


async def measure(kind, app, arguments, directory):
    server = Server(kind, app, arguments, directory)
    try:
        load = Load(server)
        await load.wait_ready()
        # What is allocated once is not the socket's.
        await load.connect(50)
        memory, cpu = server.memory(), server.cpu()
        begun = time.perf_counter()
        await load.connect(arguments.sockets)
        await asyncio.sleep(0.5)
        figures = {
            "connect_us": (server.cpu() - cpu) / arguments.sockets * 1e6,
            "connects_per_second": arguments.sockets / (time.perf_counter() - begun - 0.5),
            "kib": [(after - was) / arguments.sockets / 1024 for was, after in zip(memory, server.memory())],
        }
        # Once warm.
        await load.rate(arguments.rate, 1)
        figures["rate"] = await load.rate(arguments.rate, arguments.seconds)
        figures["full"] = await load.full(arguments.full, arguments.seconds)
        return figures
    finally:
        server.stop()


def table(rows, arguments):
    print(
        f"| application | server | connect, µs CPU | idle socket, KiB (node + worker) | echo at {arguments.rate}/s, µs CPU | p50, ms | p99, ms |"
        f" echo, {arguments.full} under way, µs CPU | per second |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for app, kind, found in rows:
        kib = " + ".join(f"{each:.1f}" for each in found["kib"])
        rate, full = found["rate"], found["full"]
        lost = f" ({rate['lost']} lost)" if rate["lost"] else ""
        print(
            f"| {app} | {kind} | {found['connect_us']:.0f} | {kib} | {rate['cpu_us']:.1f}{lost} | {rate['p50_ms']:.2f} |"
            f" {rate['p99_ms']:.2f} | {full['cpu_us']:.1f} | {full['per_second']:.0f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gateway", default=str(HERE / "target/release/gateway"), help="the program")
    parser.add_argument("--servers", default="gateway,uvicorn,uvicorn-wsproto,daphne", help=f"of {', '.join(SERVERS)}")
    parser.add_argument("--applications", default="consumer,raw", help="consumer: Channels; raw: plain ASGI")
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=2000, help="frames a second")
    parser.add_argument("--full", type=int, default=100, help="frames always under way")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--runs", type=int, default=1, help="the one with the median CPU at the rate is shown")
    parser.add_argument("--redis-url", help="consumers with the pub/sub layer on this Redis; default: without a layer")
    parser.add_argument("--loop", default="auto", help="the worker's")
    parser.add_argument("--close-connections", default="needed", help="the worker's; always: as Channels does it")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wanted = "\n".join(PACKAGES)
    if Path(sys.prefix) != ENVIRONMENT and not os.environ.get("BENCH_BRIDGE_HERE"):
        installed = ENVIRONMENT / "installed"
        if not installed.is_file() or installed.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
            pip = [ENVIRONMENT / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *PACKAGES], check=True)
            installed.write_text(wanted)
        os.execv(ENVIRONMENT / "bin/python", [str(ENVIRONMENT / "bin/python"), *sys.argv])
    if arguments.redis_url:
        os.environ[LAYER] = arguments.redis_url
    import uvloop

    rows = []
    for app in arguments.applications.split(","):
        for kind in arguments.servers.split(","):
            runs = []
            for _ in range(arguments.runs):
                with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory:
                    loop = uvloop.new_event_loop()
                    runs.append(loop.run_until_complete(measure(kind, app, arguments, directory)))
                    loop.close()
            runs.sort(key=lambda found: found["rate"]["cpu_us"])
            rows.append((app, kind, runs[len(runs) // 2]))
            print(app, kind, "done", file=sys.stderr)
    if arguments.json:
        print(json.dumps([{"application": app, "server": kind, **found} for app, kind, found in rows], indent=1))
    else:
        table(rows, arguments)


if __name__ == "__main__":
    main()
