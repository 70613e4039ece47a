"""What the HTTP server answers to requests beyond its limits, over real sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.http_server import HttpService, http_service, read_all

HOST = b"Host: a\r\n"
LAST = HOST + b"Connection: close\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTES = 8 << 20


@pytest.fixture(scope="module")
def service() -> Iterator[HttpService]:
    with http_service() as started:
        yield started


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def get(headers: bytes = LAST, path: bytes = b"/") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + headers + b"\r\n"


def post(body: bytes, headers: bytes = LAST, path: bytes = b"/") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (get(path=b"/" + b"a" * 8000), [200]),
        (get(path=b"/" + b"a" * 8192), [414]),
        (b"GET /" + b"a" * MEGABYTES, [414]),
        (get(LAST + b"a: b\r\n" * 98), [200]),
        (get(LAST + b"a: b\r\n" * 99), [431]),
        (get(LAST + b"a: " + b"b" * 60_000 + b"\r\n"), [200]),
        (get(LAST + b"a: " + b"b" * 65_536 + b"\r\n"), [431]),
        (get(LAST + (b"a: " + b"b" * 8000 + b"\r\n") * 9), [431]),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * MEGABYTES, [431]),
        (b"GET / HTTP/1.1\r\n" + HOST + b"b" * MEGABYTES, [431]),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * (MEGABYTES // 6), [431]),
        (CHUNKED + b"0\r\nX: " + b"a" * MEGABYTES, [400]),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * (MEGABYTES // 6), [400]),
        (CHUNKED + b"1;" + b"a" * MEGABYTES, [400]),
        (CHUNKED + b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n" * 100_000, [400]),
        (CHUNKED + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n" + get(), [200, 200]),
        (CHUNKED + b"1;a=b\r\nx\r\n0\r\nX-Trailer: 1\r\n\r\n" + get(), [200, 200]),
        (get(b""), [400]),
        (get(HOST + LAST), [400]),
        (b"GET / HTTP/1.0\r\n\r\n", [200]),
        (b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n", [400]),
        (b"CONNECT a:22 HTTP/1.1\r\n" + HOST + b"\r\nSSH-2.0", [501]),
        (b"\x16\x03\x01\x02\x00\x01\x00", [400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
        (b"GET / HTTP/2.0\r\n" + LAST + b"\r\n", [505]),
        (b"GET / HTTP/0.9\r\n" + LAST + b"\r\n", [505]),
        (post(b"x", LAST + b"Expect: 200-ok\r\n"), [417]),
        (post(b"x", LAST + b"Expect: 100-Continue\r\n"), [100, 200]),
        (b"POST / HTTP/1.0\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx", [200]),
        (post(b"x", LAST + b"Transfer-Encoding: chunked\r\n"), [400]),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", [501]),
        (get(HOST) * 50 + get(), [200] * 51),
        (get(HOST) * 5000 + get(), [200] * 5001),
        (get(HOST) * 5000 + b"GARBAGE", [200] * 5000 + [400]),
        (get(HOST, b"/slow") + b"GARBAGE", [200, 400]),
        (get(HOST, b"/slow") + CHUNKED + b"x", [200, 400]),
        (post(b"x" * 50_000, HOST, b"/early") + get(), [200, 200]),
        (post(b"x" * MEGABYTES, HOST, b"/early"), [200]),
        (b"\r\n\r\n" + get(), [200]),
        (b"POST /early HTTP/1.1\r\n" + LAST + CHUNKED[26:] + b"1\r\nx\r\n" * 100_000, [200]),
    ],
    ids=lambda value: repr(value[:50]) if isinstance(value, bytes) else str(value)[:30],
)
def test_statuses(service: HttpService, sent: bytes, expected: list[int]) -> None:
    """`exchange` raises if the connection is reset before the answer is read."""
    assert statuses(service.exchange(sent)) == expected


def test_refusals_have_the_shape_of_openai(service: HttpService) -> None:
    before = service.refused("headers_too_large")
    head, _, body = service.exchange(get(LAST + b"a: b\r\n" * 200)).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert re.search(rb"\r\nx-request-id: \w+", head)
    assert b"content-type: application/json" in head
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "headers_too_large")
    assert service.refused("headers_too_large") == before + 1


def test_trailers_do_not_become_headers(service: HttpService) -> None:
    answer = service.exchange(CHUNKED + b"0\r\nAuthorization: x\r\n\r\n" + get())
    assert b"authorization" not in answer.lower()


def test_body_not_sent_after_early_answer_is_no_request(service: HttpService) -> None:
    """A client that expects 100 gets a final answer. What it sends next is no body."""
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 40\r\n\r\n"
    assert statuses(service.exchange(head)) == [200]


def test_memory_of_incomplete_headers_is_bounded(service: HttpService) -> None:
    """Whatever follows the limit is not even parsed."""
    with service.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"a: ")
        sent = 0
        try:
            for _ in range(200):
                sent += connection.send(b"b" * 65536)
        except ConnectionError:
            pass
        assert statuses(read_all(connection)) == [431]


@pytest.mark.parametrize("size", [1024, 5000, 10_000])
@pytest.mark.parametrize("pause_s", [0.0, 0.01])
def test_small_limits_are_exact(size: int, pause_s: float) -> None:
    """Names, values and four bytes for each header."""
    with http_service(max_header_bytes=size, max_headers=8) as small:
        for excess, expected in ((0, [200]), (1, [431])):
            filler = b"x" * (size - len(LAST) - len(b"a: \r\n") + excess)
            head = get(LAST + b"a: " + filler + b"\r\n")
            assert statuses(small.exchange(head[:700], head[700:], pause_s=pause_s)) == expected
        assert statuses(small.exchange(get(LAST + b"a: b\r\n" * 6))) == [200]
        assert statuses(small.exchange(get(LAST + b"a: b\r\n" * 7))) == [431]


# ---- time


@pytest.fixture(scope="module")
def hasty() -> Iterator[HttpService]:
    with http_service(header_timeout_s=0.3, body_timeout_s=0.3, keep_alive_s=0.6, send_timeout_s=0.5) as started:
        yield started


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", []),
        (b"\r\n", []),
        (b"GET / HTTP/1.1\r\nHos", [408]),
        (get(HOST), [200]),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\nabc", [408]),
        (CHUNKED + b"a\r\nabc", [408]),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", [100, 408]),
        (get(HOST, b"/slow") + b"GET / HTTP/1.1\r\n", [200, 408]),
    ],
)
def test_silent_clients_are_answered_and_closed(hasty: HttpService, sent: bytes, expected: list[int]) -> None:
    assert statuses(hasty.exchange(sent)) == expected


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nHost: a\r\nX: ", CHUNKED + b"fffff\r\n"])
def test_a_byte_now_and_then_does_not_keep_a_connection(hasty: HttpService, start: bytes) -> None:
    with hasty.connect() as connection:
        connection.sendall(start)
        began = time.monotonic()
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            connection.sendall(b"b")
            try:
                answer = connection.recv(100)
            except TimeoutError:
                assert time.monotonic() - began < PATIENCE_S
    assert statuses(answer) == [408]


def test_client_that_does_not_read_is_aborted(hasty: HttpService) -> None:
    before = hasty.config.counters["slow_readers"]
    with hasty.connect(receive_buffer=4096) as connection:
        connection.sendall(get(HOST, b"/large"))
        wait_until(lambda: hasty.config.counters["slow_readers"] > before, "the connection to be aborted")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"F@O / HTTP/1.1\r\n", "invalid method"),
        (b"GET / HTTP/1.1\nHost: a\n\n", "expected CRLF"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n", "invalid character in Content-Length"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "duplicate Content-Length"),
        (CHUNKED + b"zz\r\n", "invalid character in chunk size"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 is not supported"),
    ],
)
def test_malformed_requests_are_explained(service: HttpService, sent: bytes, reason: str) -> None:
    _, _, body = service.exchange(sent).partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error["code"] == "malformed_request"
    assert reason in error["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTT",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nshort",
        CHUNKED + b"5\r\nsho",
        CHUNKED + b"5\r\nshort\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n",
    ],
)
def test_requests_that_are_cut_short_are_answered(service: HttpService, sent: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert statuses(answer)[-1] == 400
    assert b"cut short" in answer


def test_client_that_sends_nothing_is_only_closed(service: HttpService) -> None:
    for sent in (b"", b"\r\n\r\n"):
        with service.connect() as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b""
