"""How many connections there may be, and which are closed to make room."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from configs.sections import Server
from loadbalancer.http_server.connection_table import Admission, ConnectionTable, admission, client_of
from loadbalancer.metrics.refusals import RefusalCounter
from scripts.harness.processes import wait_until
from tests.support.http_server import TOKEN, HttpService, http_service, read_all

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class FakeConnection:
    """A connection of an address that became idle at `since`; None is busy."""

    def __init__(self, address: str = "10.0.0.1", since: float | None = None) -> None:
        self.address, self.since = address, since
        self.restricted = False
        self.ended: str | None = None

    def idle_since(self) -> float | None:
        return self.since

    def abort(self) -> None:
        self.ended = "aborted"


def table(maximum: int = 16, per_address: int = 100, trusted: tuple[str, ...] = ()) -> ConnectionTable:
    server = Server(max_connections_per_address=per_address, trusted_proxies=trusted)
    return ConnectionTable(server, maximum, RefusalCounter())


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, Admission.OPEN),
        (16, Admission.OPEN),
        (17, Admission.RESTRICTED),
        (18, Admission.RESTRICTED),
        (19, Admission.CLOSED),
    ],
)
def test_admission(count: int, expected: Admission) -> None:
    assert admission(count, 16) is expected


def test_busy_connections_are_never_closed_for_new_ones() -> None:
    full = table()
    busy = [FakeConnection() for _ in range(16)]
    more = [FakeConnection() for _ in range(4)]
    for each in (*busy, *more):
        full.admit(each, 100.0)
    assert [each.ended for each in busy] == [None] * 16
    assert [(each.restricted, each.ended) for each in more] == [(True, None)] * 2 + [(False, "aborted")] * 2


def test_the_longest_idle_connection_makes_room() -> None:
    full = table()
    idle = [FakeConnection(since=50.0 - at) for at in range(16)]
    for each in idle:
        full.admit(each, 50.0)
    new = FakeConnection()
    full.admit(new, 100.0)
    assert not new.restricted
    assert [each.ended is not None for each in idle] == [False] * 15 + [True]
    assert len(full) == 16


@pytest.mark.parametrize(("limits", "held"), [((16, 100), 16), ((100, 16), 16)])
def test_restricted_connections_that_wait_are_replaced(limits: tuple[int, int], held: int) -> None:
    """In all, or of the address. The newest is a health check; those that are answered are left alone."""
    full = table(*limits)
    others = [FakeConnection(since=99.9) for _ in range(held)]
    answered, waiting = FakeConnection(), FakeConnection(since=99.9)
    for each in (*others, answered, waiting):
        full.admit(each, 100.0)
    new = FakeConnection()
    full.admit(new, 100.0)
    assert [each.ended for each in (answered, waiting, new)] == [None, "aborted", None]
    assert new.restricted
    last = FakeConnection(since=100.0)
    full.admit(last, 100.0)
    assert last.ended == "aborted"


def test_places_are_free_or_of_those_that_had_their_time() -> None:
    full = table()
    for count in range(16):
        full.admit(FakeConnection(), 100.0)
        assert full.free_places() == 17 - count
    busy, old, new = FakeConnection(), FakeConnection(since=100.0), FakeConnection(since=100.05)
    for each in (busy, old):
        full.admit(each, 100.0)
    assert (full.free_places(), full.replaceable_places(100.0), full.replaceable_places(100.05)) == (0, 0, 1)
    full.admit(new, 100.05)
    assert (old.ended, new.restricted, full.replaceable_places(100.06)) == ("aborted", True, 0)


def test_other_addresses_are_not_replaced_for_one() -> None:
    full = table(per_address=16)
    for address in ("10.0.0.2", "10.0.0.1"):
        for number in range(18):
            full.admit(FakeConnection(address, since=None if address == "10.0.0.1" else 0.0), float(number))
    new = FakeConnection("10.0.0.1")
    full.admit(new, 20.0)
    assert new.ended == "aborted"


@pytest.mark.parametrize(
    ("address", "trusted", "restricted"),
    [
        ("10.0.0.1", (), True),
        ("2001:db8::1", (), True),
        ("127.0.0.1", (), False),
        ("::1", (), False),
        ("::ffff:127.0.0.1", (), False),
        ("", (), False),
        ("10.0.0.1", ("10.0.0.0/24",), False),
        ("10.0.1.1", ("10.0.0.0/24", "::1"), True),
    ],
)
def test_limit_per_address(address: str, trusted: tuple[str, ...], restricted: bool) -> None:
    few = table(per_address=2, trusted=trusted)
    connections = [FakeConnection(address) for _ in range(3)]
    for each in connections:
        few.admit(each, 0.0)
    other = FakeConnection("192.0.2.7")
    few.admit(other, 0.0)
    assert [each.restricted for each in (*connections, other)] == [False, False, restricted, False]
    few.remove(connections[0])
    few.remove(connections[1])
    again = FakeConnection(address)
    few.admit(again, 0.0)
    assert not again.restricted


def test_nothing_is_kept_of_connections_that_have_ended() -> None:
    full = table()
    connections = [FakeConnection(f"10.0.0.{number}") for number in range(20)]
    for each in connections:
        full.admit(each, 0.0)
    for each in connections * 2:
        full.remove(each)
    assert (len(full), full.free_places()) == (0, 18)
    assert [name for name, value in vars(full).items() if isinstance(value, set | dict) and value] == []


@pytest.mark.parametrize(
    ("address", "client"),
    [("10.0.0.1", "10.0.0.1"), ("2001:db8::1:2:3", "2001:db8::/64"), ("::ffff:10.0.0.1", "10.0.0.1"), ("", "")],
)
def test_one_client_has_a_whole_ipv6_network(address: str, client: str) -> None:
    assert client_of(address) == client


# ---- over real sockets


@pytest.fixture
def small() -> Iterator[HttpService]:
    with http_service(max_connections=16, header_timeout_s=60.0) as started:
        yield started


def ask(service: HttpService, head: bytes) -> bytes:
    with service.connect() as connection:
        connection.sendall(head)
        try:
            return read_all(connection)
        except ConnectionResetError:
            return b""


@contextlib.contextmanager
def many(service: HttpService, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(count)]
        for each in connections:
            each.sendall(sent)
        wait_until(lambda: len(service.config.table) >= count, f"{count} connections")
        yield connections


def test_full_server_answers_health_checks_and_controller(small: HttpService) -> None:
    """Bodies that are under way hold all connections."""
    with many(small, 16, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"):
        close = b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        refused = ask(small, b"GET /v1/models" + close + b"\r\n")
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in refused
        assert b"too_many_connections" in refused
        for path in (b"/healthz", b"/readyz", b"/metrics"):
            answer = ask(small, (b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n") * 3)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer
            assert answer.count(b"HTTP/1.1 ") == 1, "further requests do not hold the connection"
        token = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
        assert ask(small, b"GET /internal/snapshot" + close + token + b"\r\n").startswith(b"HTTP/1.1 200 ")
    assert small.refused("too_many_connections") == 1


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: b"])
def test_room_for_health_checks_cannot_be_held(small: HttpService, sent: bytes) -> None:
    """Bodies hold all connections, and incomplete headers those beyond the limit."""
    with many(small, 16, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"), contextlib.ExitStack() as stack:
        for _ in range(5):
            with contextlib.suppress(OSError):
                stack.enter_context(small.connect()).sendall(sent)
        assert ask(small, GET.replace(b"/", b"/healthz", 1)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b",
        b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\nabc",
    ],
)
def test_incomplete_requests_shut_nobody_out(small: HttpService, sent: bytes) -> None:
    with many(small, 16, sent):
        time.sleep(1.1)  # younger ones are left in peace
        assert ask(small, GET).startswith(b"HTTP/1.1 200 ")
    assert small.refused("idle_connection_closed") >= 1


def test_responses_that_are_not_read_yet_are_not_cut(small: HttpService) -> None:
    with many(small, 16, b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as connections:
        time.sleep(1.1)
        assert ask(small, GET).startswith(b"HTTP/1.1 503 ")
        assert all(len(read_all(each)) > 1 << 22 for each in connections)
