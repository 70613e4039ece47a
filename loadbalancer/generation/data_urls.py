"""Source images in JSON: `data:` URLs."""

from __future__ import annotations

import binascii
from typing import NoReturn

from loadbalancer.schema.errors import InvalidRequest

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def decode_data_url(param: str, text: str) -> bytes:
    """The file in a `data:` URL. Raises `InvalidRequest`."""
    head = text[:200].partition(",")[0]
    if not head.lower().startswith("data:") or not head.lower().endswith(";base64") or len(head) == len(text):
        _reject(param, "Must be a data URL (data:image/png;base64,...); other addresses are not fetched")
    try:
        return _from_base64(text.encode("ascii"), len(head) + 1)
    except ValueError:  # not base64, or not ASCII
        _reject(param, "the text after 'base64,' is not base64")


def _from_base64(text: bytes, start: int) -> bytes:
    """Decode standard or URL-safe base64, with or without line breaks and padding. Raises `ValueError`.

    It begins at `start`. Files are large: only what is not plain base64 is copied.
    """
    try:
        return binascii.a2b_base64(memoryview(text)[start:], strict_mode=True)
    except binascii.Error:
        text = text[start:]
        text = text.translate(_URL_SAFE, b" \t\r\n").rstrip(b"=")
        text += b"=" * (-len(text) % 4)
        return binascii.a2b_base64(text, strict_mode=True)


def _reject(param: str, reason: str) -> NoReturn:
    raise invalid_image(param, reason)


def invalid_image(param: str, reason: str) -> InvalidRequest:
    """The error of a source image that cannot be used."""
    return InvalidRequest(f"Invalid image in '{param}': {reason}.", param=param, code="invalid_image")
