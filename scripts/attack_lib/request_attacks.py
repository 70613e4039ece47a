"""Attacks with complete requests that are unusual or many, by a client without a key."""

from __future__ import annotations

import contextlib
import time

from scripts.attack_lib.attack import MIB, Attack, BoundBroken
from scripts.attack_lib.raw_client import HOST, connect, expect_status, receive, statuses
from scripts.attack_lib.target import Target

_DOCUMENT = b"GET /openapi.json HTTP/1.1\r\n" + HOST
_EXPECT = (
    b"POST /v1/images/generations HTTP/1.1\r\n%bContent-Type: application/json\r\n"
    b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
)
_BYTES_READ = 100 * MIB


def _refused_expectation(target: Target) -> str:
    """A client that offers a body which nobody wants gets the refusal, and is not told to go on."""
    with connect(target.port) as connection:
        connection.sendall(_EXPECT % (HOST, 31 * MIB))
        found = statuses(receive(connection, 2.0))
    if found != [401]:
        raise BoundBroken(f"answered {found}, expected [401]")
    return "401, no 100"


def _http_1_0(target: Target) -> str:
    """HTTP/1.0 has no Host, and its connections are closed after the answer."""
    with connect(target.port) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n" * 3)
        found = statuses(receive(connection, 2.0))
    if found != [200]:
        raise BoundBroken(f"answered {found}, expected [200]")
    return "200, closed"


def _odd_headers(target: Target) -> str:
    """Ranges and preferences that no client means."""
    many = b",".join(b"text/x-%d;q=0.%d" % (number, number % 10) for number in range(3000))
    odd = (
        b"Range: bytes=" + b",".join(b"%d-%d" % (start, start + 1) for start in range(5000)),
        b"Accept: " + many,
        b"Accept-Encoding: " + b"gzip;q=0.5," * 5000 + b"*;q=0",
        b"Accept-Language: " + b"-" * 60_000,
        b"If-None-Match: " + b'"a",' * 10_000 + b"*",
        b"Cookie: " + b"a=b; " * 10_000,
        b"Content-Encoding: " + b"gzip," * 10_000,
    )
    for header in odd:
        with connect(target.port) as connection:
            connection.sendall(_DOCUMENT + header + b"\r\nConnection: close\r\n\r\n")
            expect_status(receive(connection, 5.0), 200, 206, 400, 415, 416)
    return f"{len(odd)} headers of up to 60 KB"


def _small_requests(target: Target) -> str:
    """Many connections, each with many requests. All are answered."""
    count, each = 50, 100
    with contextlib.ExitStack() as opened:
        held = [opened.enter_context(connect(target.port)) for _ in range(count)]
        for connection in held:
            connection.sendall((b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") * (each - 1))
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        answered = sum(statuses(receive(connection, 20.0)).count(200) for connection in held)
    if answered != count * each:
        raise BoundBroken(f"{answered} of {count * each} requests were answered with 200")
    return f"{answered} requests"


def _large_answers(target: Target) -> str:
    """Ask for 100 MB on one connection, and read it."""
    with target.client(None) as client:
        size = len(client.get("/openapi.json").content)
    count = _BYTES_READ // size
    ask = (_DOCUMENT + b"\r\n") * count
    received = sent = 0
    deadline = time.monotonic() + 60.0
    with connect(target.port) as connection:
        connection.setblocking(False)
        while received < _BYTES_READ and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                if sent < len(ask):
                    sent += connection.send(ask[sent : sent + 65536])
            with contextlib.suppress(BlockingIOError):
                part = connection.recv(MIB)
                if not part:
                    break
                received += len(part)
                continue
            time.sleep(0.001)
    if received < count * size:
        raise BoundBroken(f"{received >> 20} of {count * size >> 20} MiB came")
    return f"{received >> 20} MiB in {count} answers"


def _heads(target: Target) -> str:
    """Thousands of HEAD requests: as many answers, none with a body."""
    count, connections = 200, 20
    ask = (b"HEAD /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * (count - 1)
    ask += b"HEAD /openapi.json HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    with contextlib.ExitStack() as opened:
        held = [opened.enter_context(connect(target.port)) for _ in range(connections)]
        for connection in held:
            connection.sendall(ask)
        answers = [receive(connection, 20.0) for connection in held]
    wrong = [answer for answer in answers if statuses(answer) != [200] * count or b"{" in answer]
    if wrong:
        raise BoundBroken(f"{len(wrong)} of {connections} connections got other answers: {wrong[0][:80]!r}")
    return f"{count * connections} answers"


ATTACKS = [
    Attack("Expect: 100-continue without a key", "401, no 100", _refused_expectation),
    Attack("three requests of HTTP/1.0", "200, closed", _http_1_0),
    Attack("absurd Range, Accept and others", "200 or 4xx", _odd_headers),
    Attack("5000 small requests on 50 connections", "200", _small_requests),
    Attack("100 MB of pipelined answers", "all come", _large_answers, is_short=False),
    Attack("4000 HEAD requests", "no body", _heads),
]
