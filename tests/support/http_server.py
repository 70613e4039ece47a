"""A real HTTP server with a small application, in a thread, and raw connections to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvloop
from starlette.types import Receive, Scope, Send

from configs.sections import Server
from loadbalancer.http_server.server import HttpConfig, HttpServer, set_socket_limits
from loadbalancer.metrics.refusals import RefusalCounter
from scripts.harness.processes import PATIENCE_S
from tests.support.certificates import Certificate

TOKEN = "internal-token"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request as it was parsed. `/early` answers without reading, `/slow` after a while."""
    body = b""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    while scope["path"] != "/early":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "body": body.hex() if len(body) < 100 else len(body),
        "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
    }
    content = b"x" * (1 << 22) if scope["path"] == "/large" else json.dumps(seen).encode()
    headers = [(b"content-length", str(len(content)).encode()), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@dataclass
class HttpService:
    """The running server."""

    port: int
    config: HttpConfig
    certificate: Certificate | None = None

    def connect(self, *, receive_buffer: int = 0, plain: bool = False) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", self.port))
        if self.certificate is None or plain:
            return connection
        context = ssl.create_default_context(cafile=self.certificate.cert)
        return context.wrap_socket(connection, server_hostname="127.0.0.1")

    def exchange(self, *pieces: bytes, pause_s: float = 0.0) -> bytes:
        """Send the pieces, say that nothing follows, and return all that the server sends until it closes."""
        with self.connect() as connection:
            for piece in pieces:
                try:
                    connection.sendall(piece)
                except ConnectionError:
                    break
                time.sleep(pause_s)
            return read_all(connection)

    def refused(self, reason: str) -> int:
        return self.config.refusals.counts[reason]


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes. Raises `ConnectionResetError` if it resets the connection instead."""
    parts: list[bytes] = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def http_service(
    max_connections: int = 100, app: Any = echo, certificate: Certificate | None = None, **limits: Any
) -> Iterator[HttpService]:
    """Serve the application with these limits on a free port of the loopback address."""
    server_limits = Server.model_construct(**(Server().model_dump() | limits))
    config = HttpConfig(
        app,
        server_limits,
        max_connections,
        RefusalCounter(),
        internal_token=TOKEN,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        ssl_certfile=certificate and certificate.cert,
        ssl_keyfile=certificate and certificate.key,
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    set_socket_limits(listener, server_limits.send_timeout_s)
    server = HttpServer(config)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve(sockets=[listener])), daemon=True)
    port = int(listener.getsockname()[1])
    thread.start()
    try:
        yield HttpService(port, config, certificate)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class RecordingTransport(asyncio.Transport):
    """A transport without a socket that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass
