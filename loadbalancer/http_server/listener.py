"""Accepts connections: a few per turn of the event loop, and with TLS counted from their first packet on.

A server of uvloop accepts in one turn whatever waits. With TLS it calls the protocol of a connection only after its
handshake: until then nothing would bound the number of connections, and a handshake could take a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from configs.open_files import is_reserved
from loadbalancer.background_tasks import TaskSupervisor
from loadbalancer.http_server.connection_table import ConnectionTable
from loadbalancer.metrics.refusals import RefusalCounter

#: Pause after a failure to accept, such as with too many open files.
_RETRY_S = 0.1
#: Connections that are accepted in one turn of the event loop.
ACCEPTS_PER_TURN = 128
#: While every place is taken, connections wait in the kernel's queue: interval between two looks, and how long at most.
_FULL_PAUSE_S, _MAX_FULL_S = 0.01, 0.25


class TlsHandshake:
    """A connection until its handshake is complete, for the table of connections."""

    def __init__(self, connection: socket.socket, address: str, started_at: float) -> None:
        self.address = address
        self.restricted = False
        self._connection = connection
        self._started_at = started_at

    def idle_since(self) -> float | None:
        return self._started_at

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # its end lets the handshake fail
            self._connection.shutdown(socket.SHUT_RDWR)


class ConnectionListener:
    """Accepts connections of one socket and hands them to protocols, with TLS after the handshake.

    Has the part of `asyncio.Server` that uvicorn uses.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        table: ConnectionTable,
        refusals: RefusalCounter,
        timeout_s: float,
        create_protocol: Callable[[TlsHandshake | None], asyncio.Protocol],
    ) -> None:
        """`context` is None without TLS. `timeout_s` limits a handshake. Its protocol takes its place in the table."""
        self._listener = listener
        self._context = context
        self._table = table
        self._refusals = refusals
        self._timeout_s = timeout_s
        self._create_protocol = create_protocol
        self._loop = asyncio.get_running_loop()
        #: Accepted connections that are not in the table yet.
        self._connecting = 0
        listener.setblocking(False)
        self._tasks = TaskSupervisor()
        self._tasks.run_forever("accept", self._accept)

    @property
    def task_failures(self) -> Counter[str]:
        """Unexpected failures since the start, by name of the background task."""
        return self._tasks.failures

    def close(self) -> None:
        self._tasks.cancel()

    async def wait_closed(self) -> None:
        await self._tasks.stop()

    async def _accept(self) -> None:
        while True:
            try:
                waiting = [await self._loop.sock_accept(self._listener)]
            except OSError:
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                most = min(await self._places(), ACCEPTS_PER_TURN)
            except asyncio.CancelledError:
                waiting[0][0].close()
                raise
            # uvloop accepts one in a turn of the loop, and turns are long where many requests arrive.
            with contextlib.suppress(OSError):
                while len(waiting) < most:
                    waiting.append(self._listener.accept())
            served = [each for each in waiting if not is_reserved(each[0].fileno())]
            for connection, _ in waiting:
                if is_reserved(connection.fileno()):
                    self._refusals.add("too_many_open_files")
                    connection.close()
            self._connecting += len(served)
            for connection, address in served:
                connection.setblocking(False)
                if self._context is None:
                    self._tasks.run_to_completion("connect", self._connect(connection))
                else:
                    handshake = self._handshake(connection, address[0], self._context)
                    self._tasks.run_to_completion("tls_handshake", handshake)
            await asyncio.sleep(0 if len(served) == len(waiting) else _RETRY_S)

    async def _places(self) -> int:
        """Return how many connections may be accepted. Waits while all places are taken by those that just came.

        Connections beyond the limit replace each other, and of a crowd that is accepted at once a health check would be
        replaced before its request is read.
        """
        free = self._table.free_places() - self._connecting
        deadline = self._loop.time() + _MAX_FULL_S
        while free <= 0 and self._loop.time() < deadline:
            await asyncio.sleep(_FULL_PAUSE_S)
            await asyncio.sleep(0)  # what has arrived is read between the two
            if not self._connecting:
                free = self._table.free_places() or self._table.replaceable_places(self._loop.time())
        return free if free > 0 else ACCEPTS_PER_TURN

    async def _connect(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):  # the client is gone
                await self._loop.connect_accepted_socket(lambda: self._create_protocol(None), connection)
        finally:
            self._connecting -= 1

    async def _handshake(self, connection: socket.socket, address: str, context: ssl.SSLContext) -> None:
        handshake = TlsHandshake(connection, address, self._loop.time())
        self._table.admit(handshake, self._loop.time())
        self._connecting -= 1
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._create_protocol(handshake),
                connection,
                ssl=context,
                ssl_handshake_timeout=self._timeout_s,
            )
        except OSError:  # of TLS, of the connection, or a time-out
            self._refusals.add("tls_handshake_failed")
        finally:
            self._table.remove(handshake)
