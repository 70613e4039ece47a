"""Protection against cross-site requests and DNS rebinding through a browser.

A web page cannot change the headers `Origin` and `Host`. `Origin` is the site of the page: only pages of this server
and of `access.cors_origins` are allowed. `Host` is the name that the browser resolved. A hostile site can resolve its
name to 127.0.0.1 (DNS rebinding), so a server on loopback accepts only loopback names and `access.hosts`. A server on
another address checks `Host` if it needs no key or has `access.hosts`. It then also accepts the names of its machine
and IP addresses, which cannot be rebound. Clients other than browsers send no `Origin`.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from loadbalancer.schema.errors import Forbidden, InvalidRequest

#: A header `Host` (RFC 9110, section 7.2).
_HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


class OriginPolicy:
    """The accepted names of the server, and the origins whose pages may call it."""

    def __init__(
        self, hosts: Iterable[str], pages: Iterable[str], *, loopback: bool, machine: Iterable[str] = ()
    ) -> None:
        """`hosts` lists additional names, `pages` origins or `*`. `loopback`: the server listens on loopback only.

        `machine` lists the machine's own names, which are accepted unless the server listens on loopback.
        """
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self._machine = frozenset(name.lower().removesuffix(".") for name in machine)
        self._pages = frozenset(page.lower() for page in pages)
        self._loopback = loopback
        #: `_check`, with the accepted headers cached: they rarely differ between requests.
        self.check = functools.lru_cache(maxsize=64)(self._check)

    def _check(self, host: str | None, origin: str | None, *, keyless: bool) -> None:
        """Raise `Forbidden` if a header is not accepted; None is an absent header. `keyless`: no key is required.

        Raise `InvalidRequest` for a `Host` that is none.
        """
        if host is not None and not _HOST.fullmatch(host):
            text = "The header Host must be a name or an address, and may have a port."
            raise InvalidRequest(text, code="malformed_request")
        if host is not None and (self._loopback or self._hosts or keyless):
            name, _ = _address(f"http://{host}")
            if name not in self._hosts and not is_loopback(name) and not self._is_of_machine(name):
                text = "This server accepts only the names of its own machine; access.hosts allows others."
                raise Forbidden(text, code="host_not_allowed")
        if origin is not None and not self._is_allowed(origin, host or ""):
            text = "Pages of other sites may not call this server; access.cors_origins allows them."
            raise Forbidden(text, code="origin_not_allowed")

    def _is_of_machine(self, name: str) -> bool:
        return not self._loopback and (name in self._machine or is_address(name))

    def _is_allowed(self, origin: str, host: str) -> bool:
        if "*" in self._pages or origin.lower() in self._pages:
            return True
        scheme, address = origin.partition("://")[0].lower(), _address(origin)
        return scheme in _PORTS and bool(address[0]) and address == _address(f"{scheme}://{host}")


@functools.lru_cache(maxsize=64)
def is_address(host: str) -> bool:
    """Return whether the host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Return whether the name or address is always loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@functools.lru_cache(maxsize=64)  # most requests have the same `Host` header
def _address(url: str) -> tuple[str, int | None]:
    """Return the host in lower case without a trailing dot, and the port; an empty host for an invalid URL."""
    try:
        parts = urlsplit(url)
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return "", None
        return (parts.hostname or "").removesuffix("."), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None
