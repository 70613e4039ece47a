"""Runs the balancer: starts its components, serves until a signal, and ends them in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence

from configs.sections import Server
from configs.settings import Settings
from loadbalancer.access.key_enforcement import EnforcedKeys
from loadbalancer.access.startup_checks import StartupError
from loadbalancer.components import FLUSH_S, Components, build_components
from loadbalancer.garbage_collection import GarbageCollection
from loadbalancer.transport.curve_listener import CannotListen

log = logging.getLogger("loadbalancer")


async def serve(settings: Settings, listeners: Sequence[socket.socket], keys: EnforcedKeys, token: str) -> None:
    """Serve on the sockets until a signal, then finish the running requests. `token` is the internal token.

    Raises `StartupError`.
    """
    parts = build_components(settings, keys, token)
    first_signal, second_signal = _signals()
    await parts.jobs.start()  # before the workers connect: they may still run tasks of jobs
    try:
        await parts.scheduler.start()
    except CannotListen as error:
        raise StartupError(str(error)) from None
    parts.observers.start()
    parts.webhook_sender.start()
    keys.start()
    parts.page.start()
    garbage_collection = GarbageCollection()
    garbage_collection.start()
    serving = asyncio.create_task(parts.server.serve(sockets=list(listeners)))
    log.info("serving %s at %s", ", ".join(settings.models), _url(settings.server))
    await asyncio.wait({serving, first_signal}, return_when=asyncio.FIRST_COMPLETED)
    await _finish_requests(parts, settings.server.shutdown_s, second_signal)
    parts.server.should_exit = True
    await serving
    await keys.stop()
    await parts.database.close()
    await parts.observers.stop()
    garbage_collection.stop()
    log.info("stopped")


async def _finish_requests(parts: Components, shutdown_s: float, at_once: asyncio.Future[None]) -> None:
    """Let running requests finish for `shutdown_s`, or until `at_once`; the others get 503."""
    parts.tracker.close()
    await asyncio.gather(parts.page.stop(), parts.simulator.stop())
    parts.scheduler.announce_stop(shutdown_s + FLUSH_S)
    log.info("stopping: %r, %r", parts.tracker, parts.jobs)
    # The next start resumes the jobs.
    await asyncio.gather(parts.decoders.close(), parts.jobs.stop(), parts.webhook_sender.stop())
    finished = asyncio.create_task(parts.tracker.wait_idle())
    await asyncio.wait({finished, at_once}, timeout=shutdown_s, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(parts.scheduler.stop(), parts.upstream.close())
    await asyncio.wait({finished}, timeout=FLUSH_S)
    finished.cancel()


def _signals() -> tuple[asyncio.Future[None], asyncio.Future[None]]:
    """Return futures of the first signal to stop and of a second SIGINT or SIGTERM.

    SIGUSR1 comes from the controller and is never counted: a service manager may send SIGTERM beside it.
    """
    loop = asyncio.get_running_loop()
    first: asyncio.Future[None] = loop.create_future()
    second: asyncio.Future[None] = loop.create_future()
    counted = 0

    def stop(signum: signal.Signals) -> None:
        nonlocal counted
        counted += signum != signal.SIGUSR1
        for future, is_reached in ((first, True), (second, counted > 1)):
            if is_reached and not future.done():
                future.set_result(None)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(signum, stop, signum)
    return first, second


def _url(server: Server) -> str:
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{'https' if server.tls_cert else 'http'}://{host}:{server.port}"
