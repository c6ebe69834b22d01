"""From options to an exit code: 0 asked to stop and drained, 1 failed, 2 wrong options, 3 drained too late."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from . import database, listen
from .instance import Application
from .lifespan import StartupFailed
from .options import Options, log_to_stderr
from .server import Server
from .supervisor import RECYCLE, Child, Supervisor, this_command

if TYPE_CHECKING:
    from .reload import Signals

logger = logging.getLogger("channel_gateway.worker")

OK: Final = 0
FAILED: Final = 1
WRONG: Final = 2
SOCKETS_LEFT: Final = 3

#: Seconds that threads of the application's have after the end.
THREAD_SECONDS: Final = 5.0


def run(name: str, load: Callable[[], Application], options: Options, signals: Signals | None = None) -> int:
    """Runs until a signal says so. ``name`` is the application's, ``load`` imports it.

    ``signals`` are those of the main thread, where this is another one.
    """
    log_to_stderr(options.log_level)
    child = Child.of_environment()
    if options.processes and child is None:
        return Supervisor(options.processes, options.drain_seconds).run(signals)
    try:
        application = load()
    except ImportError as error:
        logger.error("the application %s cannot be imported: %s", name, error, exc_info=error)
        return WRONG
    if options.close_connections == "needed":
        database.install()
    # What is there now stays; a collection need not look at it.
    gc.collect()
    gc.freeze()
    code = _in_a_loop(_serve(name, application, options, child, signals), options.loop)
    if code == RECYCLE and child is None:
        logging.shutdown()
        command = this_command()
        os.execv(command[0], command)  # noqa: S606
    if signals is None or signals.asked:
        # A thread that never ends would keep the process from ending.
        late = threading.Timer(THREAD_SECONDS, os._exit, (code,))
        late.daemon = True
        late.start()
    return code


async def _serve(
    name: str, application: Application, options: Options, child: Child | None, signals: Signals | None
) -> int:
    loop = asyncio.get_running_loop()
    address = options.listen.numbered(child.number) if child else options.listen
    server = Server(
        application,
        options.secret,
        application_name=name,
        max_sockets=options.max_sockets,
        drain_seconds=options.drain_seconds,
        lifespan=options.lifespan != "off",
    )
    asked, at_once = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            at_once.set()
        asked.set()

    # Under Django's autoreload this is not the main thread.
    if signals is not None:
        signals.take(functools.partial(loop.call_soon_threadsafe, on_signal))
    elif threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
    if child is not None:
        child.when_orphaned(loop, asked.set)
    try:
        context = listen.tls(options.certificate, options.key, options.ca)
        if await _unless(server.start(address, options.mode, context), at_once) is None:
            return OK
    except StartupFailed as error:
        logger.error("the application's startup failed: %s", error)
        return FAILED
    except listen.Unusable as error:
        logger.error("%s", error)
        await server.stop()
        return WRONG
    logger.info(
        "worker %s listens on %s, application=%s, loop=%s",
        server.name,
        address,
        name,
        type(loop).__module__.partition(".")[0],
    )
    recycle = False
    if options.max_age:
        # Processes that began together do not leave together.
        age = options.max_age * random.uniform(0.9, 1.0)  # noqa: S311
        try:
            await asyncio.wait_for(asked.wait(), age)
        except asyncio.TimeoutError:
            logger.info("the process has reached its age, %.0f s", age)
            recycle = True
    else:
        await asked.wait()
    drained = await _unless(server.drain(), at_once)
    await server.stop()
    if recycle and not asked.is_set():
        return RECYCLE
    if drained is None:
        logger.info("ended at once")
        return OK
    return OK if drained else SOCKETS_LEFT


async def _unless(work: Coroutine[Any, Any, Any], stop: asyncio.Event) -> Any:
    """What ``work`` returns, ``True`` for nothing; ``None`` if it was told to stop first."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
        return None
    result = task.result()
    return True if result is None else result


def _in_a_loop(main: Coroutine[Any, Any, int], kind: str) -> int:
    loop = _new_loop(kind)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        with contextlib.suppress(Exception):
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=1))
            loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


def _new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()
