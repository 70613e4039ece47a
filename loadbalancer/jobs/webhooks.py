"""Headers, allowed addresses and retry pauses of webhooks. Pure.

Signatures follow Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`. Its libraries verify sender and age.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from loadbalancer.storage.records import MAX_PAUSE_S

_PREFIX = "whsec_"
#: IPv6 addresses that a NAT64 gateway maps to IPv4.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def signing_key(secret: str) -> bytes:
    """Decode a `whsec_` secret; any other text is the key itself. Raises `ValueError` unless it has 24 to 64 bytes."""
    if not secret.startswith(_PREFIX):
        return secret.encode()
    key = base64.b64decode(secret[len(_PREFIX) :], validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError(f"it holds {len(key)} bytes")
    return key


def headers(message: str, secret: str | None, body: bytes, now: float) -> Mapping[str, str]:
    """Return the headers of a message, unsigned without a secret. `now` is Unix seconds."""
    stamp = str(int(now))
    signed_headers = {"webhook-id": message, "webhook-timestamp": stamp, "content-type": "application/json"}
    if secret is not None:
        signed = hmac.new(signing_key(secret), f"{message}.{stamp}.".encode() + body, hashlib.sha256).digest()
        signed_headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
    return signed_headers


def pause_s(attempts: int, first_s: float) -> float:
    """Return the pause after so many failed attempts: it doubles each time, up to an hour."""
    return min(first_s * 2.0 ** min(attempts - 1, 32), MAX_PAUSE_S)


def problem(url: str, *, private: bool) -> str | None:
    """Return what is wrong with the URL; None if it is allowed. Host names are not resolved."""
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
    except ValueError:  # a name: its addresses are checked when it is resolved
        return None
    return None if private or is_public(address) else "Private, loopback and link-local addresses are not allowed"


def is_public(address: Address) -> bool:
    """Return True for a global unicast address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast
