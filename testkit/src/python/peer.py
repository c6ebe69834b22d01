"""A layer of channels_redis that obeys orders.

Reads one order a line, [id, operation, argument, ...], all in JSON, and runs them side by side; answers
[id, result] or [id, null, kind of error, text]. Bytes travel as {"hex": "00ff"}. Ends with its input.
"""

import asyncio
import inspect
import json
import math
import os
import random
import sys
import threading
import time

from channels.exceptions import ChannelFull


def outward(value):
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): outward(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [outward(item) for item in value]
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def inward(value):
    if isinstance(value, dict):
        if list(value) == ["hex"]:
            return bytes.fromhex(value["hex"])
        return {key: inward(item) for key, item in value.items()}
    if isinstance(value, list):
        return [inward(item) for item in value]
    return value


class Peer:
    def __init__(self, layer):
        self.layer = layer
        # Cancelling a receive loses messages (core) or the channel (pub/sub), so one whose time is up
        # goes on here, and the next order takes it over.
        self.idle = {}

    async def next_message(self, channel, deadline):
        idle = self.idle.setdefault(channel, [])
        task = idle.pop() if idle else asyncio.ensure_future(self.layer.receive(channel))
        await asyncio.wait([task], timeout=max(0, deadline - time.monotonic()))
        if task.done():
            return [task.result()]
        idle.append(task)
        return []

    async def receive(self, channel, seconds):
        """Waits for a message; a list of one or none."""
        return await self.next_message(channel, time.monotonic() + seconds)

    async def receive_many(self, channel, count, seconds):
        """At most `count` messages, fewer if the time is up."""
        deadline = time.monotonic() + seconds
        messages = []
        while len(messages) < count and (got := await self.next_message(channel, deadline)):
            messages += got
        return messages

    async def receive_all(self, channel, seconds):
        """All messages until none comes for that long."""
        messages = []
        while got := await self.next_message(channel, time.monotonic() + seconds):
            messages += got
        return messages

    async def send_many(self, channel, message, count):
        """Sends it `count` times, numbered in "n"; says how many were not refused as too many."""
        sent = 0
        for n in range(count):
            try:
                await self.layer.send(channel, {**message, "n": n})
                sent += 1
            except ChannelFull:
                pass
        return sent

    async def group_send_many(self, group, message, count, pause):
        """Sends it `count` times, numbered in "n", with a pause in seconds after each."""
        for n in range(count):
            await self.layer.group_send(group, {**message, "n": n})
            if pause:
                await asyncio.sleep(pause)

    async def churn(self, tasks, seconds):
        """Tasks that open a channel, receive for 0 to 10 ms and are cancelled, over and over."""
        deadline = time.monotonic() + seconds

        async def one():
            rounds = 0
            while time.monotonic() < deadline:
                channel = await self.layer.new_channel()
                try:
                    await asyncio.wait_for(self.layer.receive(channel), random.uniform(0, 0.01))
                except asyncio.TimeoutError:
                    pass
                rounds += 1
            return rounds

        return sum(await asyncio.gather(*(one() for _ in range(tasks))))

    async def time(self):
        return time.time()

    async def run(self, number, operation, arguments):
        try:
            found = getattr(self if hasattr(Peer, operation) else self.layer, operation)
            result = found(*map(inward, arguments)) if callable(found) else found
            if inspect.isawaitable(result):
                result = await result
            answer = json.dumps([number, outward(result)])
        except Exception as error:
            answer = json.dumps([number, None, type(error).__name__, str(error)])
        print(answer, flush=True)


async def main():
    kind, config = sys.argv[1], json.loads(sys.argv[2])
    if kind == "core":
        from channels_redis.core import RedisChannelLayer as Layer
    else:
        from channels_redis.pubsub import RedisPubSubChannelLayer as Layer
    peer = Peer(Layer(**config))
    orders = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read():
        for line in sys.stdin:
            loop.call_soon_threadsafe(orders.put_nowait, line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    print(json.dumps([0, None]), flush=True)
    running = set()
    while True:
        number, operation, *arguments = json.loads(await orders.get())
        task = asyncio.ensure_future(peer.run(number, operation, arguments))
        running.add(task)
        task.add_done_callback(running.discard)


asyncio.run(main())
