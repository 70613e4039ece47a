"""The responses of a connection, in the order of its requests, and its close."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from loadbalancer.api.http_helpers import encode_json
from loadbalancer.http_server.exchange import Exchange
from loadbalancer.http_server.parse_queue import TASK_COST
from loadbalancer.http_server.request_parser import BoundedRequestParser
from loadbalancer.http_server.stages import BODY, HANDLING, HEAD, IDLE, LINGERING, REFUSED
from loadbalancer.schema.errors import ApiError

if TYPE_CHECKING:
    from loadbalancer.http_server.server import HttpConfig

#: Seconds for a client to read its response while the rest of its request is discarded.
_LINGER_S = 5.0
_access_log = logging.getLogger("uvicorn.access")


class OrderedResponses(BoundedRequestParser):
    """Input and output of a connection. An error response waits for the responses to earlier requests."""

    def __init__(self, config: HttpConfig, server_state: ServerState) -> None:
        super().__init__(config)
        self.server_state = server_state
        #: When the connection is closed, whatever the client still sends.
        self._linger_until = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.server_state.connections.add(self)  # type: ignore[arg-type]
        self.transport = transport
        self.client, self.server = get_remote_addr(transport), get_local_addr(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self.flow = FlowControl(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        active = self._active
        if active is not None and not active.response_complete:
            active.disconnect()
        self._active = self._last = None  # without references to itself the connection needs no collection of garbage
        self.pipeline.clear()
        self.flow.resume_writing()
        super().connection_lost(exc)
        if exc is None:
            self.transport.close()

    def _is_busy(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _close(self) -> None:
        """Close after the response. Input that is under way is discarded for a while, so that the client reads it."""
        socket = self.transport
        if self._stage in (BODY, REFUSED) and socket.can_write_eof() and not socket.is_closing():
            self._stage, self._since, self._unparsed = LINGERING, time.monotonic(), b""
            self._linger_until, self._window_received = self._since + _LINGER_S, self._received
            socket.write_eof()
            self.resume_reading()
        elif self._stage != LINGERING:
            socket.close()

    def _start(self, exchange: Exchange) -> None:
        if exchange.call is not None:
            if not exchange.more_body:
                exchange.begin_call()
        elif exchange.refusal is not None:
            self._write_error(exchange.refusal)
        else:
            self.start_task(exchange, self.config.loaded_app)

    def start_task(self, exchange: Exchange, app: ASGIApp) -> None:
        self.config.parse_queue.add_cost(TASK_COST - 1)
        task = asyncio.get_running_loop().create_task(exchange.run_asgi(app))
        tasks = self.server_state.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_response_complete(self, exchange: Exchange) -> None:
        self.server_state.total_requests += 1
        exchange.body = b""  # what nobody has read
        if not exchange.keep_alive:
            self._close()
        if self._stage == LINGERING or self.transport.is_closing():
            return
        if self.pipeline:
            self._active = following = self.pipeline.popleft()
            self._start(following)
            self._continue_input()
            return
        if self._stage == BODY and self._awaits_continue:
            self._close()  # the client does not send the body now, but may send another request
            return
        if self._stage == HANDLING:
            self._stage, self._since = IDLE, time.monotonic()
        if self._unparsed or self.flow.read_paused:
            self._continue_input()

    def _continue_input(self) -> None:
        if self._unparsed:
            self._parse_or_wait()
        else:
            self.resume_reading()

    def _refuse(self, error: ApiError) -> None:
        """Answer with the error, after the responses to earlier requests, and close. Nothing more is parsed."""
        self.config.refusals.add(error.code or "")
        stage, self._stage = self._stage, REFUSED
        self._unparsed = b""
        if stage == HEAD:
            self.headers.clear()  # the connection may last for some seconds
        exchange = self._last
        if stage == BODY and exchange is not None:  # its body is refused
            if exchange is not self._active:
                self.pipeline.pop()
            elif exchange.response_complete:
                self._close()
                return
            else:
                exchange.disconnect()
                if exchange.response_started:
                    self._close()
                else:
                    self._write_error(error)
                return
        if self._is_busy():  # it waits for the responses that are due
            self.flow.pause_reading()
            self._last = Exchange(self, "GET", None, keep_alive=False, refusal=error)
            self.pipeline.append(self._last)
        else:
            self._write_error(error)

    def _write_error(self, error: ApiError) -> None:
        """Answer with the error, and close."""
        body = encode_json(error.body)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        headers["x-request-id"] = os.urandom(16).hex()
        lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        self.transport.write(b"".join((STATUS_LINE[error.status], self.config.default_lines, *lines, b"\r\n", body)))
        self._close()

    def log_access(self, method: str, status: int) -> None:
        host, port = self.client or ("", 0)
        _access_log.info('%s:%d - "%s %r" %d', host, port, method, self.url, status)
