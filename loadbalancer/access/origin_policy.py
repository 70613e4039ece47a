"""Who sent a browser here. A page of any site can make a browser on this machine call a server that only it reaches.

Two headers tell, and no page can change them. `Origin` is the page's own site: only the server's own pages and those
of `access.cors_origins` may call. `Host` is the name that was looked up: a site can have its own name lead to
127.0.0.1 and so pass for the server's own, which is why a server on loopback goes by the names of loopback only.
Clients that are no browsers send no `Origin`, and the name that they were given. Decides from the headers alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from loadbalancer.schema.errors import Forbidden

_PORTS = {"http": 80, "https": 443}


class OriginPolicy:
    """The names of the server, and whose pages may call it."""

    def __init__(self, hosts: Iterable[str], pages: Iterable[str], *, loopback: bool) -> None:
        """`hosts` are names beside those of this machine, `pages` origins or `*`; `loopback`: nobody else connects."""
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self._pages = frozenset(page.lower() for page in pages)
        self._loopback = loopback

    def check(self, host: str | None, origin: str | None) -> None:
        """Raises `Forbidden`. Both are as the headers say; None is a header that is not there."""
        if self._loopback and host is not None and not self._is_own_host(host):
            text = "This server answers to the names of its own machine only; access.hosts allows others."
            raise Forbidden(text, code="host_not_allowed")
        if origin is not None and not self._is_allowed_origin(origin, host or ""):
            text = "Pages of other sites may not call this server; access.cors_origins allows them."
            raise Forbidden(text, code="origin_not_allowed")

    def _is_own_host(self, host: str) -> bool:
        name, _ = _address(f"http://{host}")
        return name in self._hosts or is_loopback(name)

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        if "*" in self._pages or origin.lower() in self._pages:
            return True
        scheme, own = origin.partition("://")[0].lower(), _address(origin)
        return bool(own[0]) and own == _address(f"{scheme}://{host}")


def is_loopback(host: str) -> bool:
    """Whether the name or address can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _address(url: str) -> tuple[str, int | None]:
    """Host in lower case and port; without a name what is none. A trailing dot changes nothing to the name."""
    try:
        parts = urlsplit(url)
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return "", None
        return (parts.hostname or "").removesuffix("."), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None
