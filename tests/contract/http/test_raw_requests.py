"""Requests as no client library sends them, over raw sockets."""

from __future__ import annotations

import json
import re
import socket

import pytest

from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S
from tests.support.http_server import read_all
from tests.support.texts import CHAT

HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"


def exchange(server: Server, request: bytes) -> tuple[int, str, bytes]:
    """Return status, headers and body of the response to one request, after which the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    line, _, headers = head.decode("latin-1").partition("\r\n")
    found = re.match(r"HTTP/1\.1 (\d{3}) ", line)
    assert found is not None, line
    return int(found[1]), headers, body


def error_code(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://evil.example/v1/models", b"localhost", 403),
        (b"http://evil.example/v1/models", b"evil.example", 403),
        (b"http://localhost:80/v1/models", b"evil.example", 200),
        (b"HTTPS://LOCALHOST/v1/models", b"localhost", 200),
        (b"http://localhost@evil.example/v1/models", b"localhost", 400),
        (b"/v1/models", b"", 403),
    ],
)
def test_host_is_that_of_the_target(shared: Server, target: bytes, host: bytes, status: int) -> None:
    request = b"GET %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target, host, CLOSE)
    found, _, body = exchange(shared, request)
    assert found == status
    if status == 403:
        assert error_code(body) == "host_not_allowed"


def test_origin_is_compared_with_the_host_of_the_target(shared: Server) -> None:
    head = b"GET http://localhost/v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n" + CLOSE
    assert exchange(shared, head + b"Origin: http://localhost\r\n\r\n")[0] == 200
    found, _, body = exchange(shared, head + b"Origin: http://127.0.0.1\r\n\r\n")
    assert (found, error_code(body)) == (403, "origin_not_allowed")


def test_options_of_the_server(shared: Server) -> None:
    status, headers, body = exchange(shared, b"OPTIONS * HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
    assert (status, body) == (204, b"")
    assert "\r\nallow: DELETE, GET, HEAD, OPTIONS, POST" in f"\r\n{headers}"


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (b"TRACE /v1/models HTTP/1.1", 405, "method_not_allowed"),
        (b"TRACE /nothing HTTP/1.1", 404, "not_found"),
        (b"CONNECT localhost:22 HTTP/1.1", 501, "unsupported_method"),
    ],
)
def test_methods_of_proxies(shared: Server, line: bytes, status: int, code: str) -> None:
    found, headers, body = exchange(shared, line + b"\r\n" + HOST + CLOSE + b"\r\n")
    assert (found, error_code(body)) == (status, code)
    assert ("allow: GET, HEAD" in headers) is (status == 405)


GET = b"GET /healthz HTTP/1.1\r\n" + CLOSE
POST = b"POST /echo HTTP/1.1\r\n" + HOST + CLOSE
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "fragment"),
    [
        (GET + b"Host: localhost/path\r\n\r\n", 400, "The header Host must be a name or an address"),
        (GET + b"Host: localhost, evil.example\r\n\r\n", 400, "The header Host must be"),
        (GET + HOST + HOST + b"\r\n", 400, "more than one Host header"),
        (GET + HOST + b"X-A: a\r\n b\r\n\r\n", 400, "unexpected whitespace after header value"),
        (GET + HOST + b"X-A : a\r\n\r\n", 400, "invalid header token"),
        (POST + b"Content-Length: +2\r\n\r\n{}", 400, "invalid character in Content-Length"),
        (POST + b"Content-Length: 2, 2\r\n\r\n{}", 400, "invalid character in Content-Length"),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, "duplicate Content-Length"),
        (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}", 400, ": Content-Length overflow."),
        (POST + b"Content-Length: " + b"9" * 15 + b"\r\n\r\n{}", 413, "larger than"),
        (POST + b"Expect: 100-continue\r\nContent-Length: " + b"9" * 15 + b"\r\n\r\n", 413, "larger than"),
        (CHUNKED + b"-1\r\n", 400, "invalid character in chunk size"),
        (CHUNKED + b"F" * 20 + b"\r\n", 400, "chunk size overflow"),
        (CHUNKED + b"2\n{}\n0\n\n", 400, "missing expected CR"),
        (CHUNKED + b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n", 400, "with Transfer-Encoding"),
        (b"GET /healthz HTTP/1.1\nHost: localhost\n\n", 400, "expected CRLF after version"),
        (b"GET /healthz\r\n" + HOST + b"\r\n", 505, "HTTP/0.9 is not supported"),
        (GET.replace(b"/healthz", b"//v1/models") + HOST + b"\r\n", 404, "Did you mean /v1/models?"),
        (GET.replace(b"/healthz", b"/v1/../healthz") + HOST + b"\r\n", 404, "Unknown path"),
        (GET.replace(b"/healthz", b"/v1/models/%00") + HOST + b"\r\n", 404, "does not exist"),
        (GET.replace(b"/healthz", b"/v1/models/%ff%zz") + HOST + b"\r\n", 404, "does not exist"),
    ],
)
def test_odd_requests_are_told_why(shared: Server, request_: bytes, status: int, fragment: str) -> None:
    found, _, body = exchange(shared, request_)
    assert found == status
    assert error_code(body)
    assert fragment in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "request_",
    [
        CHUNKED + b'2;a=b;c="d"\r\n{}\r\n0;x\r\nX-Trailer: 1\r\n\r\n',
        CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        POST + b"Content-Length: 0002\r\n\r\n{}",
        b"\r\n\r\n" + POST + b"Content-Length: 2\r\n\r\n{}",
        POST + b"Content-Length: 5\r\n\r\n\xef\xbb\xbf{}",
        POST.replace(b"/echo", b"/%65cho") + b"Content-Length: 2\r\n\r\n{}",
        POST.replace(b"/echo", b"http://localhost/echo?") + b"Content-Length: 2\r\n\r\n{}",
        b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n\r\n{}",
    ],
)
def test_odd_requests_that_are_right(shared: Server, request_: bytes) -> None:
    status, _, body = exchange(shared, request_)
    assert (status, body) == (200, b"{}")


@pytest.mark.parametrize(
    ("path", "content", "end"),
    [
        (
            CHAT,
            b'{"model": "words", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]',
            b"data: [DONE]\n\n",
        ),
        ("/v1/images/generations", b'{"model": "quick", "prompt": "a", "response_format": "b64_json"', b"}\n\n"),
    ],
)
def test_stream_to_http_1_0_has_no_chunks(shared: Server, path: str, content: bytes, end: bytes) -> None:
    """RFC 9112, section 6.1. The close ends it."""
    body = content + b', "stream": true}'
    head = b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body))
    status, headers, events = exchange(shared, head + body)
    assert (status, "connection: close" in headers, "transfer-encoding" in headers) == (200, True, False)
    lines = events.split(b"\n")
    assert all(line.partition(b":")[0] in (b"", b"event", b"data") for line in lines)
    assert events.endswith(end)
