"""What a webhook says, where it may go, and when it is tried again. Pure; `webhook_sender` sends them.

Signatures follow Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`, so that a receiver can check with any of its
libraries who sent a message and that it is not an old one sent again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

_PREFIX = "whsec_"
_MAX_PAUSE_S = 3600.0
#: Addresses that stand for IPv4 ones: a gateway between the two networks would deliver there.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def signing_key(secret: str) -> bytes:
    """The key that the secret stands for. Raises `ValueError` for a `whsec_` secret that is not 24 to 64 bytes.

    Any other text is the key itself.
    """
    if not secret.startswith(_PREFIX):
        return secret.encode()
    key = base64.b64decode(secret[len(_PREFIX) :], validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError(f"it holds {len(key)} bytes")
    return key


def headers(message: str, secret: str | None, body: bytes, now: float) -> Mapping[str, str]:
    """The headers of a message; without a secret it goes unsigned. `now` is Unix seconds."""
    stamp = str(int(now))
    signed_headers = {"webhook-id": message, "webhook-timestamp": stamp, "content-type": "application/json"}
    if secret is not None:
        signed = hmac.new(signing_key(secret), f"{message}.{stamp}.".encode() + body, hashlib.sha256).digest()
        signed_headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
    return signed_headers


def pause_s(attempts: int, first_s: float) -> float:
    """How long to wait after so many failed attempts: doubled each time, up to an hour."""
    return min(first_s * 2.0 ** min(attempts - 1, 32), _MAX_PAUSE_S)


def problem(url: str, *, private: bool) -> str | None:
    """What is wrong with the address, as far as its text tells; None if nothing is."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not host:
        return "Must be an http or https URL"
    if parts.username is not None or parts.password is not None:
        return "Must not hold a user name or a password"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name, whose addresses are looked at when it is used
        return None
    return None if private or is_public(address) else "Private, loopback and link-local addresses are not allowed"


def is_public(address: Address) -> bool:
    """Whether the address is one of the whole internet, and not of this machine or of a network around it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast
