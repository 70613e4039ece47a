"""The addresses that a host name means, for those who listen on them."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Resolver = Callable[..., Sequence[tuple[Any, ...]]]

#: The address belongs to a family that this machine does not use.
_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenAddress(NamedTuple):
    """An address to bind."""

    family: socket.AddressFamily
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.family == socket.AF_INET6 else f"{self.host}:{self.port}"


def listen_addresses(host: str, port: int, resolve: Resolver = socket.getaddrinfo) -> list[ListenAddress]:
    """Return every address of the name, such as 127.0.0.1 and ::1 of localhost. Raises `OSError` for an unknown one."""
    found = resolve(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys(ListenAddress(family, address[0], port) for family, _, _, _, address in found)
    any_address = ListenAddress(socket.AF_INET6, "::", port)
    return [any_address] if any_address in addresses else list(addresses)


def bind_all(addresses: Sequence[ListenAddress], backlog: int) -> list[socket.socket]:
    """Listen on all of them; `::` includes IPv4. An address whose family is not in use is left out if there is another.

    Raises `OSError` if one cannot be bound, or none is left.
    """
    listeners: list[socket.socket] = []
    unavailable: OSError | None = None
    with contextlib.ExitStack() as opened:
        for family, host, port in addresses:
            try:
                listener = socket.create_server(
                    (host, port), family=family, backlog=backlog, dualstack_ipv6=host == "::"
                )
            except OSError as error:
                if error.errno not in _UNAVAILABLE:
                    raise
                unavailable = error
            else:
                listeners.append(opened.enter_context(listener))
        if not listeners:
            raise unavailable or OSError(errno.EADDRNOTAVAIL, "the name has no address")
        opened.pop_all()
    return listeners


def machine_names(host: str) -> set[str]:
    """Return the names of this machine, with `host`, by which it was told to listen. Resolves nothing."""
    name = socket.gethostname().lower()
    label = name.partition(".")[0]
    return {name, label, f"{label}.local", host.lower()} - {""}
