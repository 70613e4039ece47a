"""Which requests that a web page had a browser send are answered."""

from __future__ import annotations

import pytest

from loadbalancer.access.origin_policy import OriginPolicy
from loadbalancer.schema.errors import Forbidden

HERE = OriginPolicy(["muster.lan", "[fd00::7]"], ["https://page.example"], loopback=True)
OPEN = OriginPolicy([], ["*"], loopback=True)
ABROAD = OriginPolicy([], [], loopback=False)


def refusal(origins: OriginPolicy, host: str | None, origin: str | None) -> str | None:
    try:
        origins.check(host, origin)
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
def test_names_of_this_machine_and_those_configured_are_answered(host: str | None) -> None:
    assert refusal(HERE, host, None) is None


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
        "[::1",
        "localhost:port",
        "evil.example@localhost",
        "localhost/path",
        "2130706433",
    ],
)
def test_other_names_lead_here_only_by_a_trick(host: str) -> None:
    for origins in (HERE, OPEN):
        assert refusal(origins, host, None) == "host_not_allowed"
    assert refusal(ABROAD, host, None) is None, "others look this server up, and need keys"


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("localhost:8000", "http://localhost:8000", True),
        ("LocalHost:8000", "http://localhost:8000", True),
        ("localhost:8000", "https://localhost:8000", True),  # TLS ends at a proxy before it
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
def test_pages_call_their_own_server_or_one_that_names_them(host: str | None, origin: str, answered: bool) -> None:
    assert refusal(HERE, host, origin) == (None if answered else "origin_not_allowed")
    assert refusal(OPEN, host, origin) is None


def test_pages_are_told_apart_where_others_reach_the_server_too() -> None:
    assert refusal(ABROAD, "muster.example", "https://muster.example") is None
    assert refusal(ABROAD, "muster.example", "https://evil.example") == "origin_not_allowed"
