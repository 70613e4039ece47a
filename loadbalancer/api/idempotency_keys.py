"""Idempotency keys: which paths take them, and the digest by which a repetition is told from another request."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Container, Iterable, Iterator

from loadbalancer.access.api_keys import required_scope
from loadbalancer.schema.errors import InvalidRequest, KeyReused
from loadbalancer.storage.records import IdempotencyKey

HEADER = "idempotency-key"
#: Paths whose responses are replayed. Jobs store their own keys; nothing else creates work that must not run twice.
PATHS = frozenset(
    {
        "/v1/images/generations",
        "/v1/images/edits",
        "/predict",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
    }
)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_BOUNDARY = re.compile(rb'boundary=(?:"([^"\0]+)"|([^";,\s\0]+))', re.IGNORECASE)
#: Digests of larger bodies are made in a thread.
_INLINE_BYTES = 64 * 2**10
_DIGEST_PART_BYTES = 256 * 2**10


class ReplayedPaths(Container[str]):
    """The paths whose responses are replayed: `PATHS`, and those of calls."""

    def __init__(self, call_paths: Iterable[str] = ()) -> None:
        """`call_paths` are the models' own paths."""
        self._paths = PATHS.union(call_paths)

    def __contains__(self, path: object) -> bool:
        return path in self._paths or (isinstance(path, str) and required_scope(path) == "calls")


def key_of(owner: str, given: str, path: str, media_type: str, body: bytes) -> IdempotencyKey:
    """Return the key with the digest of the request, without the boundary of a form. Raises `InvalidRequest`.

    What else tells requests apart may follow `media_type` after a null character.
    """
    if not _KEY.fullmatch(given):
        text = "Invalid header 'Idempotency-Key': Must be 1 to 255 visible ASCII characters."
        raise InvalidRequest(text, code="invalid_idempotency_key")
    kind = media_type.encode("latin-1", "replace")
    found = _BOUNDARY.search(kind)
    boundary = b""
    if found is not None:
        boundary, (start, end) = found[found.lastindex or 0], found.span(found.lastindex or 0)
        kind = kind[:start] + kind[end:]
    digest = hashlib.sha256(b"\0".join([path.encode(), kind, b""]))
    for part in _without_boundary(body, b"--" + boundary) if boundary else [body]:
        digest.update(part)
    return IdempotencyKey(owner, given, digest.digest())


async def key_of_request(owner: str, given: str, path: str, media_type: str, body: bytes) -> IdempotencyKey:
    """Do the same. The digest of a large body is made in a thread, as it would stall the event loop."""
    if len(body) <= _INLINE_BYTES:
        return key_of(owner, given, path, media_type, body)
    return await asyncio.to_thread(key_of, owner, given, path, media_type, body)


def _without_boundary(body: bytes, delimiter: bytes) -> Iterator[bytes]:
    """Yield the body with `--` in place of each delimiter, in parts: without a copy of the body.

    A body may have millions of delimiters, so that they are not looked for one by one.
    """
    start, part_bytes = 0, max(_DIGEST_PART_BYTES, 2 * len(delimiter))
    while start < len(body):
        end = min(start + part_bytes, len(body))
        *before, last = body[start:end].split(delimiter)
        # The next delimiter may begin in this part.
        kept = min(len(last), len(delimiter) - 1) if end < len(body) else 0
        yield b"--".join([*before, last[: len(last) - kept]])
        start = end - kept


def reused(key: str) -> KeyReused:
    text = f"The Idempotency-Key '{key}' was used for another request. Choose a new key for each request."
    return KeyReused(text)
