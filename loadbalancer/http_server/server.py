"""The HTTP server: uvicorn with its own way to stop, and limits on what clients can take."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from configs.sections import Server
from loadbalancer.api.direct_calls import DirectCalls
from loadbalancer.http_server.connection_table import ConnectionTable
from loadbalancer.http_server.input_budget import InputBudget
from loadbalancer.http_server.listener import ConnectionListener, TlsHandshake
from loadbalancer.http_server.parse_queue import ParseQueue
from loadbalancer.http_server.protocol import MIN_PROGRESS_BYTES, BoundedHttpProtocol
from loadbalancer.metrics.refusals import RefusalCounter

log = logging.getLogger(__name__)

#: Seconds for complete responses that their clients have not read yet when the server stops.
_FLUSH_S = 1.0
#: uvicorn's interval between two calls of `on_tick`.
_TICK_S = 0.1


def set_socket_limits(listener: socket.socket, send_timeout_s: float) -> None:
    """Limit the kernel's send buffer per connection, and time out connections whose peer accepts no data.

    A small buffer makes slow readers visible to the protocol. The kernel's time-out is twice as long: it is for data
    that has left this process.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * MIN_PROGRESS_BYTES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * send_timeout_s))


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration with limits, and counters of connections."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Server,
        max_connections: int,
        refusals: RefusalCounter,
        *,
        internal_token: str = "",
        **options: Any,
    ) -> None:
        super().__init__(app, http=BoundedHttpProtocol, ws="none", timeout_keep_alive=1, **options)
        self.limits = limits
        self.counters: Counter[str] = Counter()
        self.refusals = refusals
        self.table = ConnectionTable(limits, max_connections, refusals)
        self.parse_queue = ParseQueue()
        self.input_budget = InputBudget()
        #: Headers of every response, as they are sent.
        self.default_lines = b""
        #: Set where the application takes requests directly.
        self.direct: DirectCalls | None = getattr(app, "direct", None)
        self._internal = f"Bearer {internal_token}".encode() if internal_token else None
        self.load()

    def is_internal(self, authorization: bytes) -> bool:
        """Whether a request with this header comes from the controller."""
        return self._internal is not None and hmac.compare_digest(authorization, self._internal)

    def is_trusted_proxy(self, address: str) -> bool:
        """Whether a client with this address may say which scheme its own client has used."""
        app = self.loaded_app
        return isinstance(app, ProxyHeadersMiddleware) and address in app.trusted_hosts

    def on_slow_reader(self) -> None:
        """Count a connection that is aborted because its client does not read."""
        self.counters["slow_readers"] += 1
        self.refusals.add("slow_reader")


class HttpServer(uvicorn.Server):
    """uvicorn without signal handlers: on a signal it would refuse connections before requests are answered."""

    config: HttpConfig

    def __init__(self, config: HttpConfig) -> None:
        super().__init__(config)
        self.servers: list[ConnectionListener] = []  # type: ignore[assignment] # uvicorn only closes them
        limits = config.limits
        shortest = min(limits.header_timeout_s, limits.body_timeout_s, limits.keep_alive_s, limits.send_timeout_s)
        self._check_every = max(round(min(shortest / 5, 1.0) / _TICK_S), 1)

    @property
    def task_failures(self) -> Counter[str]:
        """Unexpected failures since the start, by name of the background task."""
        return sum((each.task_failures for each in self.servers), Counter[str]())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets. Differs from uvicorn in how connections are accepted."""
        config = self.config

        def create(handshake: TlsHandshake | None) -> asyncio.Protocol:
            return BoundedHttpProtocol(config, self.server_state, handshake)

        timeout_s = config.limits.header_timeout_s
        self.servers = [
            ConnectionListener(each, config.ssl, config.table, config.refusals, timeout_s, create)
            for each in sockets or ()
        ]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Check the deadlines of all connections about once a second, or more often where a limit is short."""
        if counter % self._check_every == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, BoundedHttpProtocol)
                connection.check_deadlines(now)
        is_last = await super().on_tick(counter)
        self.config.default_lines = b"".join(b"%s: %s\r\n" % line for line in self.server_state.default_headers)
        return is_last

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every connection. Connections that are not read are aborted after `_FLUSH_S`."""
        timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._abort_connections)
        await super().shutdown(sockets)
        timer.cancel()

    def _abort_connections(self) -> None:
        """Abort before uvicorn cancels the requests: they then end as if the clients had disconnected."""
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
