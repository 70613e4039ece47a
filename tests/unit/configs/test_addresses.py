"""A host name stands for all of its addresses."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from configs.addresses import ListenAddress, bind_all, listen_addresses
from scripts.harness.processes import PATIENCE_S, free_port

V4, V6 = socket.AF_INET, socket.AF_INET6


def resolver(*addresses: tuple[socket.AddressFamily, str]) -> Callable[..., list[tuple[Any, ...]]]:
    return lambda host, port, **_: [(family, socket.SOCK_STREAM, 6, "", (text, port)) for family, text in addresses]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(V6, "::1")], ["[::1]:80"]),
        ([(V6, "::1"), (V4, "127.0.0.1")], ["[::1]:80", "127.0.0.1:80"]),
        ([(V4, "127.0.0.1"), (V4, "127.0.0.1")], ["127.0.0.1:80"]),
    ],
)
def test_all_addresses_of_a_name(found: list[tuple[socket.AddressFamily, str]], expected: list[str]) -> None:
    assert [str(address) for address in listen_addresses("name", 80, resolver(*found))] == expected


def test_unknown_name_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"not known|resolution|No address"):
        listen_addresses("no-such-host.invalid", 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::", ""])
def test_bound_addresses_accept_connections(host: str) -> None:
    port = free_port()
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    listeners = bind_all(listen_addresses(host, port), backlog=5)
    try:
        reached = [address for address in ("127.0.0.1", "::1") if accepts(address, port)]
    finally:
        for listener in listeners:
            listener.close()
    v6 = ["::1"] if has_ipv6() else []
    expected = {"127.0.0.1": ["127.0.0.1"], "0.0.0.0": ["127.0.0.1"], "::1": v6}
    if host == "localhost":
        assert reached == [a for a in ("127.0.0.1", "::1") if a in {x.host for x in listen_addresses(host, port)}]
    else:
        assert reached == expected.get(host, ["127.0.0.1", *v6])


def test_taken_address_releases_the_others() -> None:
    with socket.create_server(("127.0.0.2", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(OSError) as refused:
            bind_all([ListenAddress(V4, "127.0.0.1", port), ListenAddress(V4, "127.0.0.2", port)], backlog=1)
        assert refused.value.errno == errno.EADDRINUSE
        socket.create_server(("127.0.0.1", port)).close()


def test_unused_family_is_left_out() -> None:
    # 192.0.2.1 is reserved for documentation: no machine has it.
    port = free_port()
    missing, local = ListenAddress(V4, "192.0.2.1", port), ListenAddress(V4, "127.0.0.1", port)
    [listener] = bind_all([missing, local], backlog=1)
    listener.close()
    with pytest.raises(OSError) as refused:
        bind_all([missing], backlog=1)
    assert refused.value.errno == errno.EADDRNOTAVAIL


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=V6).close()
    except OSError:
        return False
    return True
