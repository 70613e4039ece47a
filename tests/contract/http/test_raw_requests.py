"""Requests as no client library sends them, over raw sockets."""

from __future__ import annotations

import json
import re
import socket

import pytest

from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S
from tests.support.http_server import read_all

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
