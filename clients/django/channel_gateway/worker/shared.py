"""Shared handlers: which consumers have some, and an event rendered once for all sockets of a class.

A handler that is rendered runs on a stub of its class: it may send, call methods and read what the class and what
``as_asgi()`` was given say. Whatever is an instance's own is not there, and touching it is told to the node, which then
gives the event to each socket's own handler.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final

import msgpack

from ..sharing import MARK
from . import frames
from .frames import COUNT, NUMBER
from .instance import MAX_ERROR, Instance, Send, current

if TYPE_CHECKING:
    from .link import Link
    from .server import Server

logger = logging.getLogger("channel_gateway.worker")

#: Seconds that a rendering may take; the node asks another worker after 10.
RENDER_SECONDS: Final = 8.0
#: Different arguments of one class that are told apart; with more, its instances differ from the start.
MAX_VARIANTS: Final = 32
#: Renderings at once, over all links.
AT_ONCE: Final = 64


class NotShared(BaseException):
    """The handler is not shared. No ``except Exception`` of a handler's hides it."""


class Sharing:
    """What a worker knows of classes with shared handlers."""

    def __init__(self, server: Server) -> None:
        """Nothing is known yet."""
        self._server = server
        self._handlers: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()
        self._variants: dict[str, tuple[type, dict[str, Any]]] = {}
        self._stubs: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()
        self._names_of: dict[str, int] = {}
        self._told: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[tuple[Link, int, str, bytes]] = []

    def adopt(self, instance: Instance, consumer: Any, send: Send) -> None:
        """A consumer begins to run for a socket: tells the node which of its handlers are shared."""
        handlers = self.handlers(type(consumer))
        reattach = bool(getattr(consumer, "gateway_reattach", False))
        if reattach:
            instance.consumer = consumer
        if not handlers and not reattach:
            return
        if handlers and not _is_own(send, instance):
            self._tell(type(consumer), "what it sends passes through a middleware")
            handlers = ()
        name = self._variant(consumer) if handlers else ""
        if name or reattach:
            cls = type(consumer)
            fields = {
                "class": name or f"{cls.__module__}.{cls.__qualname__}#",
                "shared": list(handlers) if name else [],
                "reattach": int(reattach),
            }
            instance.link.write(frames.packed(frames.CLASS, instance.sid, fields))
        if reattach and instance.state_left is not None:
            consumer.gateway_state = instance.state_left

    def handlers(self, cls: type) -> tuple[str, ...]:
        """The names of a class's shared handlers."""
        known = self._handlers.get(cls)
        if known is None:
            found = (name for name in dir(cls) if not name.startswith("_"))
            known = tuple(name for name in found if getattr(getattr(cls, name, None), MARK, False))
            self._handlers[cls] = known
        return known

    def _variant(self, consumer: Any) -> str:
        """The class's name, with a print of what its instance was made with; nothing if that tells instances apart."""
        cls = type(consumer)
        name = f"{cls.__module__}.{cls.__qualname__}"
        made_with = {key: value for key, value in vars(consumer).items() if not (key == "groups" and value == [])}
        if made_with:
            text = repr(sorted(made_with.items(), key=lambda item: item[0]))
            if " at 0x" in text:
                # Good within this process only.
                text += str(os.getpid())
            full = f"{name}#{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"
        else:
            full = name
        if full not in self._variants:
            if self._names_of.get(name, 0) >= MAX_VARIANTS:
                self._tell(cls, "its instances are all made with something else")
                return ""
            try:
                kept = copy.deepcopy(made_with)
            except Exception as error:
                self._tell(cls, f"what it is made with cannot be copied: {error}")
                return ""
            self._names_of[name] = self._names_of.get(name, 0) + 1
            self._variants[full] = (cls, kept)
        return full

    def _tell(self, cls: type, why: str) -> None:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name not in self._told:
            self._told.add(name)
            logger.warning("the shared handlers of %s run once for each socket: %s", name, why)

    # Rendering

    def render(self, link: Link, body: bytes) -> None:
        """The node asks for a rendering."""
        if len(body) < NUMBER.size + frames.LENGTH.size:
            raise frames.Malformed("a rendering of nothing")
        request = NUMBER.unpack_from(body)[0]
        after = NUMBER.size + frames.LENGTH.size
        length = frames.LENGTH.unpack_from(body, NUMBER.size)[0]
        name, event = str(body[after : after + length], "utf-8", "replace"), body[after + length :]
        if len(self._tasks) >= AT_ONCE:
            # As many as the node lets wait.
            self._waiting.append((link, request, name, event))
            return
        self._start(link, request, name, event)

    def _start(self, link: Link, request: int, name: str, event: bytes) -> None:
        # It is no socket's.
        token = current.set(None)
        try:
            task = link.loop.create_task(self._render(link, request, name, event))
        finally:
            current.reset(token)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        while self._waiting and len(self._tasks) < AT_ONCE:
            waiting = self._waiting.pop(0)
            if waiting[0].connected:
                self._start(*waiting)

    async def _render(self, link: Link, request: int, name: str, event: bytes) -> None:
        said: list[tuple[int, bytes]] = []
        outcome, text = frames.SHARED, ""
        try:
            await asyncio.wait_for(self._on_stub(name, msgpack.unpackb(event), said), RENDER_SECONDS)
        except NotShared as why:
            outcome, text = frames.NOT_SHARED, str(why)
        except asyncio.TimeoutError:
            outcome, text = frames.FAILED, f"it took longer than {RENDER_SECONDS:.0f} s"
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # Each socket's own handler shall fail as it does on any server.
            outcome, text = frames.FAILED, f"{type(error).__name__}: {error}"
        if outcome == frames.NOT_SHARED:
            kind = f"{name} {text}"
            if kind not in self._told:
                self._told.add(kind)
                logger.warning("a handler of %s is marked as shared and is not: %s", name, text)
        if outcome == frames.SHARED:
            answer = b"".join(bytes((kind,)) + COUNT.pack(len(each)) + each for kind, each in said)
        else:
            answer = text.encode(errors="replace")[:MAX_ERROR]
        if len(answer) > frames.MAX_MESSAGE:
            outcome, answer = frames.FAILED, b"it sends more than a link carries"
        link.write(frames.frame(frames.RENDERED, 0, NUMBER.pack(request) + bytes((outcome,)) + answer))

    async def _on_stub(self, name: str, event: Any, said: list[tuple[int, bytes]]) -> None:
        if name not in self._variants:
            raise RuntimeError("no instance of this class has run here")
        cls, made_with = self._variants[name]
        stub = self._stub(cls)
        state = _state_of(stub)
        state.update(copy.deepcopy(made_with) if made_with else {})
        state["base_send"] = _sender(stub, said, sync=bool(getattr(cls, "_sync", False)))
        await stub.dispatch(event)
        if "_gateway_touched" in state:
            raise NotShared(state["_gateway_touched"])

    def _stub(self, cls: type) -> Any:
        made = self._stubs.get(cls)
        if made is None:
            body = {
                "__getattr__": _no("reads"),
                "__setattr__": _no("sets"),
                "__delattr__": _no("deletes"),
                "__dict__": property(lambda stub: _touched(stub, "it reads self.__dict__")),
                "__module__": cls.__module__,
                "__qualname__": cls.__qualname__,
                "__doc__": cls.__doc__,
            }
            try:
                made = self._stubs[cls] = type(cls)(cls.__name__, (cls,), body)
            except Exception as error:
                raise NotShared(f"no stub can be made of it: {error}") from error
        return object.__new__(made)


def _is_own(send: Any, instance: Instance) -> bool:
    """Whether what is sent reaches the instance unchanged."""
    # Channels' sessions stand in the way of each consumer behind `AuthMiddlewareStack`, and look at HTTP alone. A class
    # that inherits from theirs may do more.
    wrapper = getattr(sys.modules.get("channels.sessions"), "InstanceSessionWrapper", None)
    while wrapper is not None and getattr(send, "__func__", None) is wrapper.send and type(send.__self__) is wrapper:
        send = send.__self__.real_send
    return getattr(send, "__self__", None) is instance


def _state_of(stub: Any) -> dict[str, Any]:
    """What stands in a stub, whose own ``__dict__`` is out of bounds for the handler."""
    found = next(vars(each)["__dict__"] for each in reversed(type(stub).__mro__) if "__dict__" in vars(each))
    return found.__get__(stub)  # type: ignore[no-any-return]


def _touched(stub: Any, why: str) -> Any:
    # Remembered, as the handler may catch what is raised.
    _state_of(stub)["_gateway_touched"] = why
    raise NotShared(why)


def _no(does: str) -> Any:
    return lambda stub, name, *_: _touched(stub, f"it {does} self.{name}")


def _sender(stub: Any, said: list[tuple[int, bytes]], *, sync: bool) -> Any:
    def take(message: Any) -> None:
        if message["type"] != "websocket.send":
            _touched(stub, f"it sends {message['type']!r}")
        text = message.get("text")
        if text is not None:
            said.append((frames.TEXT, text.encode()))
        else:
            said.append((frames.BINARY, bytes(memoryview(message["bytes"]))))

    async def take_later(message: Any) -> None:
        take(message)

    return take if sync else take_later


def install() -> None:
    """Has every consumer of Channels tell its worker that it begins. Without Channels there is nothing to do."""
    module = sys.modules.get("channels.consumer")
    if module is None:
        return
    AsyncConsumer: Any = module.AsyncConsumer  # noqa: N806
    original = AsyncConsumer.__call__
    if getattr(original, "_gateway", False):
        return

    def begin(self: Any, scope: Any, receive: Any, send: Any) -> Any:
        instance = current.get()
        if instance is not None and not instance.adopted:
            instance.adopted = True
            instance.link.server.sharing.adopt(instance, self, send)
        return original(self, scope, receive, send)

    begin._gateway = True  # type: ignore[attr-defined]
    AsyncConsumer.__call__ = begin
