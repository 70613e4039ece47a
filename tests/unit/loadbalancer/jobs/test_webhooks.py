"""What webhooks say, where they may go, and when they are tried again."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress

import pytest

from loadbalancer.jobs.webhooks import headers, is_public, pause_s, problem, signing_key

# The example of the Standard Webhooks specification's own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE, STAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_signature_is_the_one_of_the_standard() -> None:
    told = headers(MESSAGE, SECRET, BODY, STAMP + 0.9)
    assert told["webhook-signature"] == SIGNATURE
    assert (told["webhook-id"], told["webhook-timestamp"]) == (MESSAGE, str(STAMP))


def test_any_other_text_is_the_key_itself_and_no_secret_no_signature() -> None:
    told = headers("m", "a plain secret of mine", b"{}", 5.0)
    wanted = hmac.new(b"a plain secret of mine", b"m.5.{}", hashlib.sha256).digest()
    assert told["webhook-signature"] == f"v1,{base64.b64encode(wanted).decode()}"
    assert "webhook-signature" not in headers("m", None, b"{}", 5.0)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!!!", "whsec_" + base64.b64encode(bytes(23)).decode()])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(ValueError):
        signing_key(secret)


@pytest.mark.parametrize(("attempts", "pause"), [(1, 5), (2, 10), (3, 20), (10, 2560), (11, 3600), (10_000, 3600)])
def test_pauses_double_up_to_an_hour(attempts: int, pause: float) -> None:
    assert pause_s(attempts, 5.0) == pause


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::127.0.0.1", False),
        ("64:ff9b::169.254.169.254", False),
        ("64:ff9b::93.184.216.34", True),
        ("2002:7f00:1::", False),
        ("2002:c0a8:101::1", False),
        ("2001:db8::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://example.com/hook?a=b", None),
        ("http://example.com:8080", None),
        ("https://93.184.216.34/", None),
        ("ftp://example.com/", "http or https"),
        ("file:///etc/passwd", "http or https"),
        ("example.com/hook", "http or https"),
        ("http://", "http or https"),
        ("https://me:secret@example.com/", "user name"),
        ("http://example.com:99999/", "ort"),
        ("http://[::1", "IPv6"),
        ("http://127.0.0.1/", "Private"),
        ("http://[::1]:80/", "Private"),
        ("http://[::ffff:10.0.0.1]/", "Private"),
        ("http://169.254.169.254/latest/meta-data", "Private"),
    ],
)
def test_what_is_wrong_with_an_address(url: str, told: str | None) -> None:
    wrong = problem(url, private=False)
    assert wrong is None if told is None else wrong is not None and told in wrong


def test_private_addresses_where_they_are_allowed() -> None:
    assert problem("http://127.0.0.1:8080/hook", private=True) is None
    assert problem("gopher://127.0.0.1/", private=True) is not None
