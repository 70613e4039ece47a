"""Protection against requests that pages of other sites send through a browser on this machine.

A page cannot change two headers. `Origin` is the page's own site: only pages of this server and of
`access.cors_origins` are allowed. `Host` is the name that was resolved: a site can resolve its name to 127.0.0.1 (DNS
rebinding), so that a server on loopback accepts only loopback names and `access.hosts`. Clients other than browsers
send no `Origin`.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from loadbalancer.schema.errors import Forbidden

_PORTS = {"http": 80, "https": 443}


class OriginPolicy:
    """The accepted names of the server, and the origins whose pages may call it."""

    def __init__(self, hosts: Iterable[str], pages: Iterable[str], *, loopback: bool) -> None:
        """`hosts` are additional names, `pages` origins or `*`; `loopback`: the server listens on loopback only."""
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self._pages = frozenset(page.lower() for page in pages)
        self._loopback = loopback

    def check(self, host: str | None, origin: str | None) -> None:
        """Raises `Forbidden`. The arguments are the headers; None is an absent one."""
        if self._loopback and host is not None:
            name, _ = _address(f"http://{host}")
            if name not in self._hosts and not is_loopback(name):
                text = "This server accepts only the names of its own machine; access.hosts allows others."
                raise Forbidden(text, code="host_not_allowed")
        if origin is not None and not self._is_allowed(origin, host or ""):
            text = "Pages of other sites may not call this server; access.cors_origins allows them."
            raise Forbidden(text, code="origin_not_allowed")

    def _is_allowed(self, origin: str, host: str) -> bool:
        if "*" in self._pages or origin.lower() in self._pages:
            return True
        scheme, address = origin.partition("://")[0].lower(), _address(origin)
        return bool(address[0]) and address == _address(f"{scheme}://{host}")


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """True if the name or address always means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@functools.lru_cache(maxsize=64)  # of `Host` headers, which rarely differ
def _address(url: str) -> tuple[str, int | None]:
    """Host in lower case without a trailing dot, and port; an empty host for an invalid URL."""
    try:
        parts = urlsplit(url)
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return "", None
        return (parts.hostname or "").removesuffix("."), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None
