"""Accepted and rejected requests of web pages in a browser."""

from __future__ import annotations

import pytest

from configs.load import load
from loadbalancer.access.origin_policy import OriginPolicy
from loadbalancer.schema.errors import Forbidden, InvalidRequest

HERE = OriginPolicy(["muster.lan", "[fd00::7]"], ["https://page.example"], loopback=True)
OPEN = OriginPolicy([], ["*"], loopback=True)
ABROAD = OriginPolicy([], [], loopback=False)


def rejection_code(origins: OriginPolicy, host: str | None, origin: str | None, *, keyless: bool = False) -> str | None:
    try:
        origins.check(host, origin, keyless=keyless)
    except Forbidden as error:
        return error.code
    return None


@pytest.mark.parametrize(
    "host",
    [
        None,
        "localhost",
        "localhost:8000",
        "LOCALHOST:8000",
        "localhost.:8000",
        "muster.localhost:8000",
        "127.0.0.1:8000",
        "127.8.8.8",
        "[::1]:8000",
        "[::1]",
        "muster.lan",
        "Muster.LAN:8000",
        "[fd00::7]:8000",
    ],
)
def test_machine_names_and_configured_hosts_are_accepted(host: str | None) -> None:
    assert rejection_code(HERE, host, None) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "notlocalhost",
        "muster.lan.evil.example",
        "192.168.1.4:8000",
        "0.0.0.0:8000",
        "[::]:8000",
        "2130706433",
    ],
)
def test_foreign_host_name_is_rejected_on_loopback(host: str) -> None:
    for origins in (HERE, OPEN):
        assert rejection_code(origins, host, None) == "host_not_allowed"
    assert rejection_code(ABROAD, host, None) is None, "others look this server up, and need keys"


@pytest.mark.parametrize(
    "host",
    [
        "[::1",
        "::1",
        "localhost:port",
        "localhost:1:2",
        "evil.example@localhost",
        "localhost/path",
        "localhost, evil",
        "ä",
    ],
)
def test_malformed_host_is_rejected_everywhere(host: str) -> None:
    for origins in (HERE, OPEN, ABROAD):
        with pytest.raises(InvalidRequest) as rejected:
            origins.check(host, None, keyless=False)
        assert (rejected.value.status, rejected.value.code) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("localhost:8000", "http://localhost:8000", True),
        ("LocalHost:8000", "http://localhost:8000", True),
        ("localhost:8000", "https://localhost:8000", True),  # a reverse proxy terminates TLS
        ("localhost", "http://localhost", True),
        ("localhost:443", "https://localhost", True),
        ("localhost:8000", "https://page.example", True),
        ("localhost:8000", "HTTPS://PAGE.example", True),
        ("localhost:8000", "http://page.example", False),
        ("localhost:8000", "https://page.example.evil.example", False),
        ("localhost:8000", "https://evil.example", False),
        ("localhost:8000", "http://localhost:8001", False),
        ("localhost:8000", "http://localhost", False),
        ("localhost:8000", "http://127.0.0.1:8000", False),
        ("localhost:8000", "http://localhost:8000/page", False),
        ("localhost:8000", "http://localhost:8000@evil.example", False),
        ("localhost:8000", "null", False),
        ("localhost:8000", "", False),
        ("localhost:8000", "http://", False),
        ("localhost:8000", "http://[::1", False),
        (None, "http://localhost:8000", False),
        (None, "null", False),
    ],
)
def test_pages_of_own_or_configured_origin_are_allowed(host: str | None, origin: str, answered: bool) -> None:
    assert rejection_code(HERE, host, origin) == (None if answered else "origin_not_allowed")
    assert rejection_code(OPEN, host, origin) is None


def test_foreign_pages_are_rejected_on_public_address() -> None:
    assert rejection_code(ABROAD, "muster.example", "https://muster.example") is None
    assert rejection_code(ABROAD, "muster.example", "https://evil.example") == "origin_not_allowed"


NAMED = OriginPolicy(["muster.example"], [], loopback=False, machine=["GPU-Box", "gpu-box.local"])
UNNAMED = OriginPolicy([], [], loopback=False, machine=["gpu-box"])


@pytest.mark.parametrize(
    ("host", "named", "keyless"),
    [
        ("evil.example:8000", False, False),
        ("muster.example", True, False),
        ("gpu-box:8000", True, True),
        ("GPU-BOX.local", True, False),
        ("gpu-box.evil.example", False, False),
        ("192.168.1.4:8000", True, True),
        ("[fe80::1]:8000", True, True),
        ("localhost", True, True),
        ("3232235780", False, False),
        ("", False, False),
        (None, True, True),
    ],
)
def test_rebinding_off_loopback(host: str | None, named: bool, keyless: bool) -> None:
    assert (rejection_code(NAMED, host, None) is None) is named, "access.hosts is enforced wherever it is set"
    assert (rejection_code(UNNAMED, host, None, keyless=True) is None) is keyless, "nothing else protects this server"
    assert rejection_code(UNNAMED, host, None) is None, "a page has no key"
    page = f"http://{host}"
    assert (rejection_code(UNNAMED, host, page, keyless=True) is None) is (keyless and host is not None)


@pytest.mark.parametrize("origin", ["app://muster", "tauri://localhost", "chrome-extension://abcdefgh"])
def test_configured_application_origin_is_allowed(origin: str) -> None:
    load(overrides={"access": {"cors_origins": [origin]}})
    assert rejection_code(OriginPolicy([], [origin], loopback=True), "localhost:8000", origin) is None
    assert rejection_code(OriginPolicy([], [], loopback=True), "localhost:8000", origin) == "origin_not_allowed"


def test_origin_of_another_scheme_is_not_the_server() -> None:
    assert rejection_code(HERE, "localhost", "app://localhost") == "origin_not_allowed"
