"""Resolves host names in separate threads, so that an unresponsive name server blocks nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

#: A lookup cannot be interrupted, and may outlast the delivery that needs it.
_MAX_LOOKUPS = 256


class HostResolver(AbstractResolver):
    """Resolves each name in a daemon thread, without a cache."""

    def __init__(self) -> None:
        self._running = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses. Raises `OSError`."""
        if self._running >= _MAX_LOOKUPS:
            raise OSError("too many host names are being looked up")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Any]] = loop.create_future()
        self._running += 1
        threading.Thread(target=self._look_up, args=(loop, found, host, port, family), daemon=True).start()
        addresses = await found
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, address in addresses
        ]

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""

    def _look_up(
        self, loop: asyncio.AbstractEventLoop, found: asyncio.Future[list[Any]], host: str, port: int, family: int
    ) -> None:
        addresses: list[Any] = []
        failure: OSError | UnicodeError | None = None
        try:
            addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except (OSError, UnicodeError) as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._complete, found, addresses, failure)

    def _complete(
        self, found: asyncio.Future[list[Any]], addresses: list[Any], failure: OSError | UnicodeError | None
    ) -> None:
        self._running -= 1
        if found.done():
            return
        if failure is None:
            found.set_result(addresses)
        else:
            found.set_exception(failure if isinstance(failure, OSError) else OSError(str(failure)))
