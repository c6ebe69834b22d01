"""The Python side of the benchmark: channels_redis as it is, driven like the Rust side (worker.rs).

Reads a number per line: a sender sends as many events, a receiver waits for as many more; each answers
"done". Ends when its standard input ends.
"""

import asyncio
import json
import os
import sys

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

GROUP = "bench"


def say(text):
    print(text, flush=True)


class Receiver:
    def __init__(self, layer, setup):
        self.layer = layer
        self.setup = setup
        self.left = 0
        self.readers = []
        self.arrived = asyncio.Event()

    async def start(self):
        group = self.setup["kind"] == "group"
        channel = None
        for _ in range(self.setup["members"] if group else 1):
            channel = await self.layer.new_channel()
            if group:
                await self.layer.group_add(GROUP, channel)
            self.readers.append(asyncio.ensure_future(self.read(channel)))
        say(json.dumps({"channel": channel}))

    async def read(self, channel):
        while True:
            await self.layer.receive(channel)
            self.left -= 1
            if self.left == 0:
                self.arrived.set()

    async def obey(self, count):
        self.left += count * (self.setup["members"] if self.setup["kind"] == "group" else 1)
        while self.left > 0:
            self.arrived.clear()
            await self.arrived.wait()
        say("done")


class Sender:
    def __init__(self, layer, setup):
        self.layer = layer
        self.setup = setup

    async def start(self):
        say("{}")

    async def call(self, count):
        event, channel = self.setup["event"], self.setup["channel"]
        for _ in range(count):
            if self.setup["kind"] == "group":
                await self.layer.group_send(GROUP, event)
            else:
                await self.layer.send(channel, event)

    async def obey(self, count):
        callers = self.setup["callers"]
        shares = [count // callers + (at < count % callers) for at in range(callers)]
        await asyncio.gather(*(self.call(share) for share in shares))
        say("done")


async def main():
    setup = json.loads(sys.argv[1])
    options = {"hosts": [setup["url"]], "prefix": setup["prefix"]}
    if setup["layer"] == "core":
        layer = RedisChannelLayer(capacity=setup["capacity"], **options)
    else:
        layer = RedisPubSubChannelLayer(**options)
    worker = (Sender if setup["role"] == "sender" else Receiver)(layer, setup)
    await worker.start()
    loop = asyncio.get_running_loop()
    orders = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = asyncio.ensure_future(worker.obey(int(line)))
        orders.add(order)
        order.add_done_callback(orders.discard)
    os._exit(0)


asyncio.run(main())
