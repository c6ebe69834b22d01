#!/usr/bin/env python3
"""What a delivery in a room costs: the built-in chat, a consumer behind the bridge with an own and with a shared
handler, and the same consumer on Uvicorn with channels_redis:  bench/rooms.py [--help]

One after the other, on free ports of 127.0.0.1 and with a Redis of its own: so many sockets in one room, of which the
first speaks, at a rate and then as soon as it has heard itself. CPU is that of the server's processes (gateway and
worker together), without Redis and the generator, over the deliveries that were counted. Needs Linux, redis-server, and
`.venv/bridge`, which bench/bridge.py makes. Best on a machine that does nothing else.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bridge import DJANGO, ENVIRONMENT, HERE, SECRET, TICK, free_port

REDIS = "BENCH_ROOMS_REDIS"
JWT_SECRET = "the secret of tokens in this benchmark"
KINDS = ("chat", "shared", "own", "uvicorn")


def applications():
    """Imported by the servers: `rooms:own`, `rooms:shared`."""
    from django.conf import settings

    config = {"hosts": [os.environ[REDIS]], "prefix": "bench"}
    layer = {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": config}
    settings.configure(SECRET_KEY="x", ALLOWED_HOSTS=["*"], CHANNEL_LAYERS={"default": layer})
    import django

    django.setup()
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.routing import ProtocolTypeRouter

    from channel_gateway import shared

    class Room(AsyncWebsocketConsumer):
        async def connect(self):
            await self.channel_layer.group_add("room", self.channel_name)
            await self.accept()

        async def receive(self, text_data=None, bytes_data=None):
            message = json.loads(text_data)["message"]
            await self.channel_layer.group_send("room", {"type": "chat.message", "message": message})

        async def chat_message(self, event):
            await self.send(text_data=json.dumps({"message": event["message"]}))

    class SharedRoom(Room):
        @shared
        async def chat_message(self, event):
            await self.send(text_data=json.dumps({"message": event["message"]}))

    return {"own": Room, "shared": SharedRoom, "router": ProtocolTypeRouter}


def __getattr__(name):
    if name in ("own", "shared"):
        made = applications()
        globals()[name] = made["router"]({"websocket": made[name].as_asgi()})
        return globals()[name]
    raise AttributeError(name)


class Server:
    def __init__(self, kind, arguments, directory, redis):
        self.kind, self.port, self.processes = kind, free_port(), []
        environment = {**os.environ, "PYTHONPATH": f"{DJANGO}:{Path(__file__).parent}", REDIS: redis}
        if kind == "uvicorn":
            command = [sys.executable, "-m", "uvicorn", "rooms:own", "--port", str(self.port), "--loop", "uvloop"]
            self._start([*command, "--no-access-log", "--log-level", "warning"], environment)
            return
        node = {
            "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            "GATEWAY_INTERNAL_LISTEN": f"127.0.0.1:{free_port()}",
            "GATEWAY_DATABASE_URL": f"sqlite://{directory}/gateway.db?mode=rwc",
            "GATEWAY_REDIS_URL": redis,
            "GATEWAY_LAYER_PREFIX": "bench",
            "GATEWAY_DRAIN__DELAY_SECONDS": "0",
            "GATEWAY_LIMITS__CONNECTIONS_PER_USER": "0",
            "GATEWAY_LIMITS__FRAMES_PER_SECOND": "100000",
            "GATEWAY_LIMITS__FRAMES_BURST": "100000",
            "RUST_LOG": "error",
        }
        more = []
        if kind == "chat":
            node["GATEWAY_JWT_SECRET"] = JWT_SECRET
            node["GATEWAY_ROOM_POLICY"] = "open"
        else:
            path = f"{directory}/worker.sock"
            command = [sys.executable, "-m", "channel_gateway.worker", f"rooms:{kind}", "--listen", f"unix:{path}"]
            self._start([*command, "--log-level", "warning"], {**environment, "GATEWAY_BRIDGE__SECRET": SECRET})
            node |= {
                "GATEWAY_BRIDGE__PATH": "/",
                "GATEWAY_BRIDGE__WORKERS": f"unix:{path}",
                "GATEWAY_BRIDGE__SECRET": SECRET,
            }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        self._start([arguments.gateway, "serve", *more], {**clean, **node})

    def _start(self, command, environment):
        self.processes.append(subprocess.Popen(command, env=environment, cwd=Path(__file__).parent))

    def cpu(self):
        total = 0
        for each in self.processes:
            fields = Path(f"/proc/{each.pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def stop(self):
        for each in reversed(self.processes):
            each.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(0.5)
            if each.poll() is None:
                each.kill()
                each.wait()


class Client(asyncio.Protocol):
    """One browser; frames are counted, and those of the first are looked at."""

    def __init__(self, room, path, headers=""):
        self.room, self.path, self.headers = room, path, headers
        self.opened = asyncio.get_running_loop().create_future()
        self.open = False
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{self.headers}\r\n".encode()
        )

    def data_received(self, data):
        data = self.buffer + data if self.buffer else data
        if not self.open:
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self.buffer = data
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                self.opened.set_exception(ConnectionError(head.decode()))
                return
            self.open, data = True, rest
            self.opened.set_result(self)
        at, end = 0, len(data)
        while end - at >= 4:
            length, after = data[at + 1], at + 2
            if length == 126:
                length, after = struct.unpack_from("!H", data, at + 2)[0], at + 4
            if after + length > end:
                break
            if data[at] == 0x81:
                self.room.heard(self, data, after, after + length)
            elif data[at] == 0x89:
                self.transport.write(struct.pack("!BBI", 0x8A, 0x80 | length, 0) + data[after : after + length])
            at = after + length
        self.buffer = data[at:]

    def connection_lost(self, error):
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionError("closed"))

    def say(self, text):
        head = bytes((0x80 | len(text),)) if len(text) < 126 else b"\xfe" + struct.pack("!H", len(text))
        self.transport.write(b"\x81" + head + b"\0\0\0\0" + text)


class Room:
    def __init__(self, server):
        self.server, self.clients, self.count, self.latencies = server, [], 0, []
        self.again, self.waits = False, 0.0

    def heard(self, client, data, start, end):
        self.count += 1
        if client is self.clients[0]:
            at = data.find(b"at=", start, end)
            self.latencies.append(time.perf_counter() - float(data[at + 3 : at + 21]))
            if self.again:
                self.say()

    def say(self):
        message = f"at={time.perf_counter():018.9f}" + "x" * 43
        frame = {"message": message}
        if self.server.kind == "chat":
            frame = {"cate": "chat", "group_name": "bench", **frame}
        self.clients[0].say(json.dumps(frame).encode())

    async def connect(self, number):
        loop = asyncio.get_running_loop()
        path, headers = "/ws/", ""
        if self.server.kind == "chat":
            import jwt

            path = "/ws/chat/bench/"
            token = jwt.encode({"sub": "alice", "exp": int(time.time()) + 3600}, JWT_SECRET, "HS256")
            headers = f"Authorization: Bearer {token}\r\n"
        turns = asyncio.Semaphore(32)

        async def one():
            async with turns:
                _, client = await loop.create_connection(
                    lambda: Client(self, path, headers), "127.0.0.1", self.server.port
                )
                self.clients.append(await client.opened)

        await asyncio.gather(*(one() for _ in range(number)))

    async def wait_ready(self):
        end = time.monotonic() + 60
        while not self.clients:
            try:
                await asyncio.wait_for(self.connect(1), 5)
            except (OSError, asyncio.TimeoutError):
                if time.monotonic() > end or any(each.poll() is not None for each in self.server.processes):
                    raise
                await asyncio.sleep(0.2)

    async def rate(self, per_second, seconds):
        self.count, self.latencies, sent = 0, [], 0
        cpu, begun = self.server.cpu(), time.perf_counter()
        while (now := time.perf_counter() - begun) < seconds:
            while sent < now * per_second:
                self.say()
                sent += 1
            await asyncio.sleep(0.002)
        while self.count < sent * len(self.clients) and time.perf_counter() - begun < seconds + 10:
            await asyncio.sleep(0.01)
        return self._figures(cpu, seconds, sent * len(self.clients))

    async def full(self, window, seconds):
        self.count, self.latencies, self.again = 0, [], True
        cpu, begun = self.server.cpu(), time.perf_counter()
        for _ in range(window):
            self.say()
        await asyncio.sleep(seconds)
        self.again = False
        took, before = time.perf_counter() - begun, -1
        while self.count != before:
            before = self.count
            await asyncio.sleep(0.5)
        return self._figures(cpu, took, None)

    def _figures(self, cpu, seconds, wanted):
        found = sorted(self.latencies)
        return {
            "cpu_us": (self.server.cpu() - cpu) / max(self.count, 1) * 1e6,
            "per_second": self.count / seconds,
            "lost": 0 if wanted is None else wanted - self.count,
            "p50_ms": statistics.median(found) * 1000 if found else float("nan"),
        }


async def measure(kind, arguments, directory, redis):
    server = Server(kind, arguments, directory, redis)
    try:
        room = Room(server)
        await room.wait_ready()
        await room.connect(arguments.sockets - 1)
        await room.rate(arguments.rate, 2)
        return {
            "rate": await room.rate(arguments.rate, arguments.seconds),
            "full": await room.full(arguments.full, arguments.seconds),
        }
    finally:
        server.stop()


@contextlib.contextmanager
def redis_server():
    port = free_port()
    command = [shutil.which("redis-server"), "--port", str(port), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gateway", default=str(HERE / "target/release/gateway"), help="the program")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=2, help="messages a second")
    parser.add_argument("--full", type=int, default=4, help="messages always under way")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--runs", type=int, default=1, help="the one with the median CPU at the rate is shown")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if Path(sys.prefix) != ENVIRONMENT and not os.environ.get("BENCH_BRIDGE_HERE"):
        os.execv(ENVIRONMENT / "bin/python", [str(ENVIRONMENT / "bin/python"), *sys.argv])
    import uvloop

    rows = []
    for kind in arguments.kinds.split(","):
        runs = []
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory, redis_server() as redis:
                loop = uvloop.new_event_loop()
                runs.append(loop.run_until_complete(measure(kind, arguments, directory, redis)))
                loop.close()
        runs.sort(key=lambda found: found["rate"]["cpu_us"])
        rows.append((kind, runs[len(runs) // 2]))
        print(kind, "done", file=sys.stderr)
    if arguments.json:
        print(json.dumps([{"server": kind, **found} for kind, found in rows], indent=1))
        return
    print(
        f"| room of {arguments.sockets} | {arguments.rate} messages/s, µs CPU a delivery | p50, ms |"
        f" {arguments.full} under way, µs CPU a delivery | deliveries a second |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind, found in rows:
        rate, full = found["rate"], found["full"]
        lost = f" ({rate['lost']} lost)" if rate["lost"] else ""
        print(
            f"| {kind} | {rate['cpu_us']:.2f}{lost} | {rate['p50_ms']:.1f} | {full['cpu_us']:.2f} |"
            f" {full['per_second']:.0f} |"
        )


if __name__ == "__main__":
    main()
