"""Recognizes the next request of a connection that differs from the last one in its body only.

Clients that keep a connection send the same head again and again, but for its Content-Length. What has been parsed and
checked once holds for every request with the same bytes.
"""

from __future__ import annotations

from loadbalancer.api.direct_calls import MAX_DIRECT_BYTES, DirectHead, HeaderList

#: Longer heads are parsed each time, because every connection would keep one.
MAX_HEAD_BYTES = 2048
_LENGTH = b"content-length"


class RepeatedHead:
    """The head of a direct request, as it was received and as it was parsed."""

    __slots__ = ("_before", "_headers", "_index", "_max_length", "_rest", "direct", "method", "url")

    def __init__(
        self, before: bytes, rest: bytes, index: int, headers: HeaderList, method: str, url: bytes, direct: DirectHead
    ) -> None:
        """The value of Content-Length, which is the header `index`, is between `before` and `rest`.

        `index` is negative and `rest` empty where there is none.
        """
        self._before = before
        self._rest = rest
        self._index = index
        self._headers = headers
        self._max_length = min(direct.max_bytes, MAX_DIRECT_BYTES)
        self.method = method
        self.url = url
        self.direct = direct

    def match(self, data: bytes) -> tuple[HeaderList, bytes] | None:
        """Return the headers and the body if `data` is exactly one request with this head; otherwise None."""
        if not data.startswith(self._before):
            return None
        start, index, headers = len(self._before), self._index, self._headers
        if index < 0:
            return (headers, b"") if len(data) == start else None
        end = data.find(b"\r", start, start + 6)
        digits = data[start:end] if end > 0 else b""
        if not digits.isdigit() or not data.startswith(self._rest, end):
            return None
        body = data[end + len(self._rest) :]
        if not len(body) == int(digits) <= self._max_length:
            return None
        value = b"%d" % len(body)  # without zeros at its beginning
        if headers[index][1] != value:
            headers = [*headers[:index], (_LENGTH, value), *headers[index + 1 :]]
        return headers, body


def repeated_head(data: bytes, headers: HeaderList, method: str, url: bytes, direct: DirectHead) -> RepeatedHead | None:
    """Return the head for comparisons with the next request; None for one that cannot be compared so.

    `data` are its bytes, to the empty line at its end. Names in `headers` are in lower case.
    """
    # Where a parser takes another end of a line, the head might end before the data do.
    if len(data) > MAX_HEAD_BYTES or data.count(b"\n") != data.count(b"\r\n"):
        return None
    index = next((at for at, (name, _) in enumerate(headers) if name == _LENGTH), -1)
    if index < 0:
        return RepeatedHead(data, b"", -1, headers, method, url, direct)
    value = headers[index][1]
    before, found, rest = _split(data, value)
    return RepeatedHead(before, rest, index, headers, method, url, direct) if found else None


def _split(data: bytes, value: bytes) -> tuple[bytes, bool, bytes]:
    """Return what is before and after the value of Content-Length, and whether it was found exactly once."""
    name, lower = b"\r\n%b:" % _LENGTH, data.lower()
    start = lower.find(name) + len(name)
    if lower.count(name) != 1 or not value.isdigit():
        return b"", False, b""
    while data[start : start + 1] in (b" ", b"\t"):
        start += 1
    end = start + len(value)
    return data[:start], data[start:end] == value and data[end : end + 2] == b"\r\n", data[end:]
