"""What the server makes of the target in a request line, over real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.support.http_server import HttpService, http_service

HEADERS = b"Host: here:80\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def service() -> Iterator[HttpService]:
    with http_service() as started:
        yield started


def answer(service: HttpService, line: bytes, headers: bytes = HEADERS) -> tuple[int, bytes]:
    head, _, body = service.exchange(line + b"\r\n" + headers).partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
    assert found is not None, head
    return int(found[1]), body


@pytest.mark.parametrize(
    ("line", "path", "query", "host"),
    [
        (b"GET /a?b HTTP/1.1", "/a", "b", "here:80"),
        (b"GET http://there/a?b HTTP/1.1", "/a", "b", "there"),
        (b"GET HTTP://There:81/a HTTP/1.1", "/a", "", "There:81"),
        (b"GET https://[::1]:81/a HTTP/1.0", "/a", "", "[::1]:81"),
        (b"GET http://there HTTP/1.1", "/", "", "there"),
        (b"GET http://there?b HTTP/1.1", "/", "b", "there"),
        (b"GET //there/a HTTP/1.1", "//there/a", "", "here:80"),
        (b"GET /a?b=http://there/ HTTP/1.1", "/a", "b=http://there/", "here:80"),
        (b"OPTIONS * HTTP/1.1", "*", "", "here:80"),
    ],
)
def test_target_is_parsed(service: HttpService, line: bytes, path: str, query: str, host: str) -> None:
    """RFC 9112, section 3.2.2: the host of a URL in the request line replaces the header Host."""
    status, body = answer(service, line)
    seen = json.loads(body)
    assert (status, seen["path"], seen["query"]) == (200, path, query)
    assert [value for name, value in seen["headers"] if name == "host"] == [host]


def test_host_of_the_target_needs_no_header(service: HttpService) -> None:
    _, body = answer(service, b"GET http://there/ HTTP/1.0", b"\r\n")
    assert ["host", "there"] in json.loads(body)["headers"]


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (b"GET * HTTP/1.1", 400, "malformed_request"),
        (b"HEAD * HTTP/1.1", 400, "malformed_request"),
        (b"GET ftp://there/ HTTP/1.1", 400, "malformed_request"),
        (b"GET http://user@there/ HTTP/1.1", 400, "malformed_request"),
        (b"GET http://there:99999/ HTTP/1.1", 400, "malformed_request"),
        (b"GET http:///a HTTP/1.1", 400, "malformed_request"),
        (b"GET there HTTP/1.1", 400, "malformed_request"),
        ("GET /ä HTTP/1.1".encode(), 400, "malformed_request"),
        (b"CONNECT there:22 HTTP/1.1", 501, "unsupported_method"),
        (b"CONNECT /a HTTP/1.1", 501, "unsupported_method"),
        (b"FOO /a HTTP/1.1", 501, "unsupported_method"),
        (b"get /a HTTP/1.1", 501, "unsupported_method"),
        (b"FOO /a", 400, "malformed_request"),
        (b"G@T /a HTTP/1.1", 400, "malformed_request"),
        (b" GET /a HTTP/1.1", 400, "malformed_request"),
    ],
)
def test_other_targets_are_refused(service: HttpService, line: bytes, status: int, code: str) -> None:
    found, body = answer(service, line)
    error = json.loads(body)["error"]
    assert (found, error["type"], error["code"]) == (status, "invalid_request_error", code)
