"""HTTP as bytes on a socket, for requests that no client library sends."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator

from scripts.attack_lib.attack import BoundBroken

HOST = b"Host: localhost\r\n"
_TIMEOUT_S = 30.0


@contextlib.contextmanager
def connect(port: int, *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        connection.settimeout(_TIMEOUT_S)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.connect(("127.0.0.1", port))
        yield connection


def send_until_refused(connection: socket.socket, chunk: bytes, max_bytes: int) -> int:
    """Send the chunk again and again. Return the bytes that were sent before the server hung up, or `max_bytes`."""
    sent = 0
    try:
        while sent < max_bytes:
            connection.sendall(chunk)
            sent += len(chunk)
    except OSError:
        pass
    return sent


def receive(connection: socket.socket, timeout_s: float = _TIMEOUT_S) -> bytes:
    """Return everything until the server closes, resets, or is silent for `timeout_s`."""
    connection.settimeout(timeout_s)
    received = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            received += part
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", received)]


def describe(received: bytes) -> str:
    found = statuses(received)
    return ", ".join(map(str, found)) if found else "closed"


def expect_status(received: bytes, *allowed: int) -> str:
    """Return what was seen. Raises `BoundBroken` unless the first status is allowed, or nothing was answered."""
    found = statuses(received)
    if found and found[0] not in allowed:
        raise BoundBroken(f"answered {found[0]}, expected {' or '.join(map(str, allowed))}")
    return describe(received)


def until_closed(connections: list[socket.socket], timeout_s: float) -> int:
    """Wait until the server has closed them. Return how many are still open after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    left = list(connections)
    while left and time.monotonic() < deadline:
        left = [each for each in left if not _is_closed(each)]
        time.sleep(0.05)
    return len(left)


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while True:
            if not connection.recv(65536):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True
