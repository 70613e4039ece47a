"""The limits hold for TLS connections, from their first packet on."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.harness.processes import wait_until
from tests.support.certificates import Certificate, needs_openssl, self_signed
from tests.support.http_server import HttpService, http_service, read_all

pytestmark = needs_openssl

HOST = b"Host: a\r\n"
LAST = HOST + b"Connection: close\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder: Path = tmp_path_factory.mktemp("tls")
    return self_signed(folder, "server")


@pytest.fixture(scope="module")
def secure(certificate: Certificate) -> Iterator[HttpService]:
    with http_service(max_connections=16, certificate=certificate, header_timeout_s=2.0) as started:
        yield started


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"GET / HTTP/1.1\r\n" + LAST + b"\r\n", [b"200"]),
        (b"GET /slow HTTP/1.1\r\n" + LAST + b"\r\n", [b"200"]),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 200 + b"\r\n", [b"431"]),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * 4_000_000, [b"431"]),
        (b"POST /early HTTP/1.1\r\n" + LAST + b"Content-Length: 4000000\r\n\r\n" + b"x" * 4_000_000, [b"200"]),
        (b"GET / HTTP/1.1\r\nHos", [b"408"]),
    ],
)
def test_statuses_over_tls(secure: HttpService, sent: bytes, expected: list[bytes]) -> None:
    assert re.findall(rb"HTTP/1\.1 (\d{3}) ", secure.exchange(sent)) == expected


def test_endless_handshakes_are_closed(secure: HttpService) -> None:
    before = secure.refused("tls_handshake_failed")
    with secure.connect(plain=True) as silent, secure.connect(plain=True) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n" + LAST + b"\r\n")
        for connection in (plain, silent):
            with contextlib.suppress(ConnectionResetError):
                read_all(connection)
    wait_until(lambda: secure.refused("tls_handshake_failed") == before + 2, "both to be counted")


def test_handshakes_shut_nobody_out(secure: HttpService) -> None:
    """They count as connections, and the oldest make room."""
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(secure.connect(plain=True))
        wait_until(lambda: len(secure.config.table) == 16, "16 connections")
        time.sleep(1.1)
        answer = secure.exchange(b"GET / HTTP/1.1\r\n" + LAST + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert secure.refused("idle_connection_closed") >= 1
