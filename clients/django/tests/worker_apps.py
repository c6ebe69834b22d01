"""Applications for workers in processes of their own; nothing of Django."""

import asyncio
import os


async def echo(scope, receive, send):
    """Echoes; says its process when asked, and writes its end down where the environment says."""
    if scope["type"] != "websocket":
        raise ValueError("only websockets here")
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            break
        text = message.get("text")
        if text == "pid":
            text = str(os.getpid())
        elif text == "traceparent":
            text = ", ".join(value.decode() for name, value in scope["headers"] if name == b"traceparent")
        elif text == "nap":
            await asyncio.sleep(0.3)
        elif text is not None and text.startswith("many "):
            for number in range(int(text[5:])):
                await send({"type": "websocket.send", "text": f"{number} {'x' * 2000}"})
            continue
        elif text == "raise":
            raise RuntimeError("asked to")
        elif text == "sleep":
            await asyncio.sleep(3600)
        elif text == "flood":
            while True:
                await send({"type": "websocket.send", "bytes": bytes(10_000)})
        await send({"type": "websocket.send", "text": text})
    if os.environ.get("TEST_ENDS"):
        with open(os.environ["TEST_ENDS"], "a") as ends:
            ends.write(f"{os.getpid()} {scope['path']} {message['code']}\n")
