"""Attacks on the HTTP server by a client without a key."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable

from scripts.attack_lib.attack import MIB, Attack, BoundBroken
from scripts.attack_lib.raw_client import (
    HOST,
    connect,
    expect_status,
    receive,
    send_until_refused,
    statuses,
    until_closed,
)
from scripts.attack_lib.target import SERVER, Target

Run = Callable[[Target], str]
_FLOOD_BYTES = 64 * MIB
_HEAD = b"POST %b HTTP/1.1\r\n%bIdempotency-Key: k%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
#: What is not HTTP, and a path with control characters.
_BAD = (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100, b"GET /%0a%1b[31m HTTP/1.1\r\n\r\n")
_SLOW_BODY = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\nabc"
_GET = b"GET /healthz HTTP/1.1\r\n" + HOST
_OPENAPI = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n"
_CHUNKED = b"POST /healthz HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
#: Beyond the server's own time limits.
_GRACE_S = 6.0
_CROWD = 150


def _flood(start: bytes, chunk: bytes, *allowed: int) -> Run:
    def run(target: Target) -> str:
        with connect(target.port) as connection:
            connection.sendall(start)
            sent = send_until_refused(connection, chunk, _FLOOD_BYTES)
            return f"{expect_status(receive(connection, 5.0), *allowed)} after {sent >> 10} KiB"

    return run


def _single(request: bytes, *allowed: int) -> Run:
    def run(target: Target) -> str:
        with connect(target.port) as connection:
            connection.sendall(request)
            return expect_status(receive(connection, 2.0), *allowed)

    return run


def _hold(start: bytes, trickle: bytes = b"") -> Run:
    """Hold many connections that say too little, too slowly."""

    def run(target: Target) -> str:
        with contextlib.ExitStack() as opened:
            held = [opened.enter_context(connect(target.port)) for _ in range(_CROWD)]
            for connection in held:
                connection.sendall(start)
            limit_s = max(SERVER["header_timeout_s"], SERVER["body_timeout_s"], SERVER["keep_alive_s"]) + _GRACE_S
            deadline = time.monotonic() + limit_s
            left = len(held)
            while left and time.monotonic() < deadline:
                for connection in held:
                    with contextlib.suppress(OSError):
                        connection.setblocking(True)
                        connection.sendall(trickle)
                left = until_closed(held, 1.0)
            if left:
                raise BoundBroken(f"{left} of {len(held)} connections are open after {limit_s:.0f} s")
            return f"{len(held)} connections closed"

    return run


def _crowd(target: Target) -> str:
    """Open more connections than are allowed: health checks and bob must still be answered."""
    with contextlib.ExitStack() as opened:
        for _ in range(SERVER["max_connections"] + 100):
            with contextlib.suppress(OSError):
                opened.enter_context(connect(target.port)).sendall(_GET)
        with connect(target.port) as connection:
            connection.sendall(_GET + b"Connection: close\r\n\r\n")
            answer = receive(connection, 10.0)
    if statuses(answer) != [200]:
        raise BoundBroken(f"a health check got {statuses(answer) or 'no answer'}")
    return "a health check got 200"


def _upgrade_body(target: Target) -> str:
    """The body of a request with an offer to upgrade must not become a request."""
    inner = b"DELETE /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    head = b"POST /predict HTTP/1.1\r\n%bConnection: Upgrade\r\nUpgrade: %b\r\nContent-Length: %d\r\n\r\n"
    for offer in (b"foo", b"websocket", b"h2c"):
        with connect(target.port) as connection:
            connection.sendall(head % (HOST, offer, len(inner)))
            time.sleep(0.1)
            connection.sendall(inner)
            found = statuses(receive(connection, 1.0))
        if len(found) != 1:
            raise BoundBroken(f"Upgrade: {offer.decode()} got {len(found)} answers: {found}")
    return "one answer each"


def _noise(target: Target) -> str:
    """Requests that servers like to log."""
    with connect(target.port) as connection:
        upgrade = _GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        with contextlib.suppress(OSError):
            for _ in range(2000):
                connection.sendall(upgrade)
                if not connection.recv(65536):
                    break
    for number in range(400):
        with connect(target.port) as connection, contextlib.suppress(OSError):
            connection.sendall(_BAD[number % len(_BAD)])
            connection.shutdown(socket.SHUT_WR)
            receive(connection, 5.0)
    return "2400 requests"


def _unread(target: Target) -> str:
    """Ask for much and read nothing."""
    with contextlib.ExitStack() as opened:
        held = [opened.enter_context(connect(target.port, receive_bytes=4096)) for _ in range(40)]
        for connection in held:
            connection.settimeout(0.2)
            with contextlib.suppress(OSError):
                connection.sendall(_OPENAPI * 500)
        time.sleep(2.0)
    return f"{len(held)} connections"


def _burst(count: int, request: bytes, *, seconds: float = 3.0) -> Run:
    """Open many connections at once, and send on each as soon as it is open."""

    def run(target: Target) -> str:
        with contextlib.ExitStack() as opened:
            crowd = []
            for _ in range(count):
                connection = opened.enter_context(socket.socket())
                connection.setblocking(False)
                connection.connect_ex(("127.0.0.1", target.port))
                crowd.append(connection)
            deadline = time.monotonic() + seconds
            sent = 0
            while time.monotonic() < deadline:
                for connection in crowd:
                    with contextlib.suppress(OSError):
                        sent += connection.send(request)
                time.sleep(0.5)
        return f"{count} connections, {sent >> 10} KiB"

    return run


def _churn(request: bytes, count: int) -> Run:
    """Connect, ask and reset, again and again."""

    def run(target: Target) -> str:
        for _ in range(count):
            with connect(target.port) as connection, contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(request)
        return f"{count} connections"

    return run


def _bodies(path: str, *allowed: int) -> Run:
    """Many large bodies at once, where no body is expected, or without a key."""

    def run(target: Target) -> str:
        size = 31 * MIB
        seen = set()
        with contextlib.ExitStack() as opened:
            for number in range(12):
                connection = opened.enter_context(connect(target.port))
                connection.sendall(_HEAD % (path.encode(), HOST, number, size))
                send_until_refused(connection, b"a" * 65536, size - 65536)
                seen.add(expect_status(receive(connection, 5.0), *allowed))
        return ", ".join(sorted(seen))

    return run


_HEADERS = b"a: b\r\n" * 10_000
ATTACKS = [
    Attack("64 MiB of header lines", "431", _flood(_GET, _HEADERS, 431)),
    Attack("64 MiB in one header", "431", _flood(_GET + b"X-A: ", b"a" * 65536, 431)),
    Attack("64 MiB of URL", "414", _flood(b"GET /", b"a" * 65536, 414)),
    Attack("64 MiB of method", "400", _flood(b"", b"A" * 65536, 400, 414)),
    Attack("64 MiB of trailers", "4xx", _flood(_CHUNKED + b"0\r\nX-T: ", b"a" * 65536, 400, 405, 413, 431)),
    Attack("64 MiB of trailer lines", "4xx", _flood(_CHUNKED + b"0\r\n", _HEADERS, 400, 405, 413, 431)),
    Attack("64 MiB of chunk extension", "4xx", _flood(_CHUNKED + b"1;", b"a" * 65536, 400, 405, 413, 431)),
    Attack("200 headers", "431", _single(_GET + b"X: y\r\n" * 200 + b"\r\n", 431)),
    Attack("two Hosts", "400", _single(_GET + HOST + b"\r\n", 400)),
    Attack("no Host", "400", _single(b"GET /healthz HTTP/1.1\r\n\r\n", 400)),
    Attack(
        "Content-Length and Transfer-Encoding",
        "400",
        _single(_CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n", 400),
    ),
    Attack("CONNECT", "501", _single(b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n", 501)),
    Attack("150 silent connections", "closed", _hold(b""), is_short=False),
    Attack("150 slow headers", "408", _hold(_GET + b"X-A: b", b"c")),
    Attack("150 slow bodies", "408", _hold(_SLOW_BODY, b"d"), is_short=False),
    Attack("more connections than allowed", "health checks answered", _crowd),
    Attack("body after an Upgrade", "one answer", _upgrade_body),
    Attack("requests that invite log lines", "logs bounded", _noise),
    Attack("answers that nobody reads", "bounded", _unread),
    Attack("300 requests at once", "bounded", _burst(300, _GET + b"\r\n"), is_short=False),
    Attack("300 x 64 pipelined requests", "bounded", _burst(300, (_GET + b"\r\n") * 64), is_short=False),
    Attack("300 x 256 KiB pipelined", "503", _burst(300, (_GET + b"\r\n") * 5000, seconds=1.0), is_short=False),
    Attack(
        "300 x 256 KiB pipelined scrapes",
        "503",
        _burst(300, (b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n") * 5000, seconds=1.0),
        is_short=False,
    ),
    Attack(
        "300 x 64 KiB of small chunks",
        "503",
        _burst(300, _CHUNKED + b"1\r\na\r\n" * 11_000, seconds=1.0),
        is_short=False,
    ),
    Attack(
        "300 x 60 KiB of headers",
        "503",
        _burst(300, _GET + (b"X-A: " + b"a" * 1000 + b"\r\n") * 60, seconds=1.0),
        is_short=False,
    ),
    Attack("2000 connections reset after a request", "bounded", _churn(_OPENAPI, 2000), is_short=False),
    Attack("2000 parameters", "400", _single(b"GET /healthz?" + b"a&" * 1900 + _GET[12:] + b"\r\n", 400)),
    Attack("large bodies on an open path", "405", _bodies("/healthz", 405)),
    Attack("large bodies without a key", "401", _bodies("/v1/images/generations", 401)),
]
