"""Decides which requests enter: origin, API key, limits of the key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from configs.sections import Access
from loadbalancer.access.api_keys import ANONYMOUS, INTERNAL, Authenticator, Caller, KeyRing
from loadbalancer.access.origin_policy import OriginPolicy
from loadbalancer.access.rate_limit import RateLimiter
from loadbalancer.schema.errors import InvalidRequest

#: A key may send so many GET and DELETE requests per minute for each request that its limit allows.
_READS_PER_REQUEST = 60
#: Parameters of a query, which are parsed for every route. No route has more than a few.
_MAX_QUERY_PARAMETERS = 64
#: Owners without limits.
_UNLIMITED = (ANONYMOUS, INTERNAL)


class CurrentKeys(Protocol):
    """The API keys in force."""

    @property
    def ring(self) -> KeyRing | None:
        """The keys; None while keys are off."""


class AccessControl:
    """Checks each request before its route, and counts those that are under way."""

    def __init__(
        self,
        access: Access,
        authenticator: Authenticator,
        keys: CurrentKeys,
        machine: Iterable[str] = (),
        max_reads: int = 256,
    ) -> None:
        """`machine` are the names of this machine.

        `max_reads` bounds the GET and DELETE requests of one key at once.
        """
        self._origins = OriginPolicy(
            access.hosts, access.cors_origins, loopback=authenticator.loopback, machine=machine
        )
        self._authenticator = authenticator
        #: Only read: whoever remembers a caller compares the ring.
        self.keys = keys
        self._limits = RateLimiter()
        self._reads = RateLimiter("GET and DELETE requests")
        self._max_reads = max_reads
        #: POST requests under way.
        self.posts = 0

    def check(self, query: bytes, host: str | None, origin: str | None) -> None:
        """Check what needs no key. Raises `InvalidRequest` and `Forbidden`."""
        if query and query.count(b"&") >= _MAX_QUERY_PARAMETERS:
            text = f"The query has more than {_MAX_QUERY_PARAMETERS} parameters."
            raise InvalidRequest(text, code="too_many_query_parameters")
        self._origins.check(host, origin, keyless=self.keys.ring is None)

    def authenticate(self, path: str, authorization: str) -> Caller:
        """Return who calls. Raises `Unauthorized` and `Forbidden`. It depends on nothing but the keys in force."""
        return self._authenticator.enter(path, authorization, self.keys.ring)

    def enter(self, caller: Caller, *, is_post: bool, now: float) -> None:
        """Count a request; `leave` must follow. Raises `ApiError`, and then counts nothing.

        The limits of a key are for POST, which creates work. Those of other requests are generous.
        """
        owner = caller.owner
        if owner not in _UNLIMITED:
            per_minute = caller.requests_per_minute
            if not is_post:
                per_minute = None if per_minute is None else per_minute * _READS_PER_REQUEST
                self._reads.enter(owner, per_minute, self._max_reads, now)
            elif per_minute or caller.max_concurrent:
                self._limits.enter(owner, per_minute, caller.max_concurrent, now)
        self.posts += is_post

    def leave(self, caller: Caller, *, is_post: bool) -> None:
        """A request that has entered has ended."""
        self.posts -= is_post
        if caller.owner not in _UNLIMITED:
            if not is_post:
                self._reads.leave(caller.owner)
            elif caller.requests_per_minute or caller.max_concurrent:
                self._limits.leave(caller.owner)

    def headers(self, caller: Caller, now: float) -> list[tuple[bytes, bytes]]:
        """The headers of a response to POST that tell a caller the limits of its key."""
        if not (caller.requests_per_minute or caller.max_concurrent):
            return []
        found = self._limits.headers(caller.owner, now)
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found.items()]
