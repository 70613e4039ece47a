"""All open connections: how many there may be, and which are closed to make room."""

from __future__ import annotations

import ipaddress
from collections import Counter
from enum import Enum, auto
from functools import lru_cache
from typing import Protocol

from configs.sections import Server
from loadbalancer.metrics.refusals import RefusalCounter

#: Fraction of connections beyond the limit that are still accepted, for health checks and the controller.
_RESERVE = 1 / 8
#: Fraction of connections that are closed at once to make room.
_BATCH = 1 / 16
#: An idle connection is not closed for another one before this time. Those beyond the limit may be at once.
_MIN_IDLE_S = 1.0
#: A connection beyond the limit is not closed for another one before this time: it may be a health check.
_GRACE_S = 0.02


class Connection(Protocol):
    """What the table needs of a connection."""

    address: str
    restricted: bool

    def idle_since(self) -> float | None: ...

    def abort(self) -> None: ...


class Admission(Enum):
    """What becomes of a new connection."""

    OPEN = auto()
    #: Only health checks and the controller are answered.
    RESTRICTED = auto()
    #: It is closed at once.
    CLOSED = auto()


def admission(count: int, maximum: int) -> Admission:
    """Decide on a connection that is the `count`-th where `maximum` are allowed."""
    if count <= maximum:
        return Admission.OPEN
    return Admission.RESTRICTED if count <= with_reserve(maximum) else Admission.CLOSED


def with_reserve(maximum: int) -> int:
    """Return how many connections are accepted in all where `maximum` are allowed."""
    return maximum + max(int(maximum * _RESERVE), 1)


class ConnectionTable:
    """The open connections, in all and by address."""

    def __init__(self, limits: Server, max_connections: int, refusals: RefusalCounter) -> None:
        self._max = max_connections
        self._max_per_address = limits.max_connections_per_address
        self._trusted = tuple(ipaddress.ip_network(each, strict=False) for each in limits.trusted_proxies)
        self._refusals = refusals
        self._open: set[Connection] = set()
        self._by_client: Counter[str] = Counter()
        #: The oldest first.
        self._restricted: dict[Connection, None] = {}
        #: No idle connection was found then.
        self._searched_at = float("-inf")

    def __len__(self) -> int:
        return len(self._open)

    def free_places(self) -> int:
        """How many connections can be admitted without closing one, those beyond the limit included."""
        return max(with_reserve(self._max) - len(self._open), 0)

    def replaceable_places(self, now: float) -> int:
        """How many connections beyond the limit have had the time for a health check, and can make room for others."""
        return sum(_has_waited(each, now) for each in self._restricted)

    def admit(self, connection: Connection, now: float) -> None:
        """Add a connection. It is restricted or aborted if there are too many, after idle ones have been closed."""
        self._open.add(connection)
        client = client_of(connection.address)
        self._by_client[client] += 1
        if len(self._open) > self._max:
            self._make_room(now)
        found = self._admission(connection, client, now)
        connection.restricted = found is Admission.RESTRICTED
        if found is Admission.RESTRICTED:
            self._restricted[connection] = None
        elif found is Admission.CLOSED:
            connection.abort()

    def _admission(self, connection: Connection, client: str, now: float) -> Admission:
        """Decide on a connection that is in the table, and count a refusal."""
        found = admission(len(self._open), self._max)
        if found is Admission.CLOSED:
            found = self._replace_restricted(None, "too_many_connections", now)
        if found is not Admission.OPEN or self._is_trusted(connection.address):
            return found
        found = admission(self._by_client[client], self._max_per_address)
        if found is Admission.CLOSED:
            found = self._replace_restricted(client, "too_many_connections_of_address", now)
        return found

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended, or is being closed."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._restricted.pop(connection, None)
        client = client_of(connection.address)
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]

    def _make_room(self, now: float) -> None:
        """Close those that have been idle for longest, or have not sent a complete request. Looks at most once a second
        if there are none.
        """
        if now - self._searched_at < _MIN_IDLE_S:
            return
        idle = [(since, each) for each in self._open if (since := each.idle_since()) is not None]
        idle = [(since, each) for since, each in idle if now - since >= _MIN_IDLE_S]
        if not idle:
            self._searched_at = now
            return
        idle.sort(key=lambda entry: entry[0])
        for _, each in idle[: max(int(self._max * _BATCH), 1)]:
            self.remove(each)
            self._refusals.add("idle_connection_closed")
            each.abort()

    def _replace_restricted(self, client: str | None, reason: str, now: float) -> Admission:
        """Close the oldest restricted connection, of this client if one is given, that waits for its client.

        A health check takes a moment. What stays for longer does not hold the room that is meant for health checks.
        """
        self._refusals.add(reason)
        waiting = [each for each in self._restricted if client is None or client_of(each.address) == client]
        waiting = [each for each in waiting if each.idle_since() is not None]
        oldest = next((each for each in waiting if _has_waited(each, now)), next(iter(waiting), None))
        if oldest is None:
            return Admission.CLOSED
        self.remove(oldest)
        oldest.abort()
        return Admission.RESTRICTED

    def _is_trusted(self, address: str) -> bool:
        """Whether many clients may share the address. Loopback: a reverse proxy on this machine."""
        ip = _parsed(address)
        return ip is None or ip.is_loopback or any(ip in network for network in self._trusted)


def _has_waited(connection: Connection, now: float) -> bool:
    since = connection.idle_since()
    return since is not None and now - since >= _GRACE_S


@lru_cache(4096)
def client_of(address: str) -> str:
    """The address, or the /64 network of an IPv6 address: one client has all of it."""
    ip = _parsed(address)
    if ip is None or ip.version == 4:
        return str(ip or address)
    return str(ipaddress.ip_network((ip, 64), strict=False))


@lru_cache(4096)
def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # of a Unix socket
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip
