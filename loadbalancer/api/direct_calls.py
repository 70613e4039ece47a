"""How an application takes requests straight from the connection, without a task and without ASGI."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from starlette.types import ASGIApp, Scope

RawHeaders = Iterable[tuple[bytes, bytes]]
#: Of a request. Names are in lower case.
HeaderList = list[tuple[bytes, bytes]]
#: Largest body of a direct request. The server buffers so much of each connection in any case.
MAX_DIRECT_BYTES = 64 * 2**10


class ResponseWriter(Protocol):
    """Writes the body of a response whose length is not known before."""

    def write(self, data: bytes) -> int:
        """Send a part, which must not be empty. Return how many bytes wait for the client to read."""

    def finish(self) -> None:
        """The response is complete. Idempotent."""


class Responder(Protocol):
    """What a call needs of its exchange. One of the methods is called once, unless the call is cancelled."""

    @property
    def scheme(self) -> str:
        """Of the client's URL: `http` or `https`, also behind a proxy that terminates TLS."""

    @property
    def server(self) -> tuple[str, int | None] | None:
        """The address and port that the client has connected to."""

    @property
    def body_bytes(self) -> int:
        """Bytes of the response's body so far."""

    def respond(
        self,
        status: int,
        headers: RawHeaders,
        frames: Sequence[bytes | memoryview],
        on_end: Callable[[], None],
    ) -> None:
        """Send a complete response, whose headers have its Content-Length. Nothing is copied that is large.

        `on_end` is called when the client has read it but for what sockets buffer, or has left.
        """

    def stream(self, status: int, headers: RawHeaders, on_end: Callable[[], None]) -> ResponseWriter | None:
        """Begin a response that has no length yet. Returns None, after `on_end`, if the client has left.

        `on_end` is called when it is finished and the client has read it but for what sockets buffer, or has left.
        """

    def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let an ASGI application respond, in a task of its own. Not for a request that reads a body."""


class DirectCall(Protocol):
    """One request that was recognized by its head."""

    def begin(self, responder: Responder, body: bytes) -> None:
        """The request is complete. Raises nothing."""

    def cancel(self) -> None:
        """The client has left, before the response was complete. Raises nothing."""


class DirectHead(Protocol):
    """The head of requests that are taken directly: what is the same in all that begin with the same bytes."""

    @property
    def max_bytes(self) -> int:
        """Size of the largest body."""

    def new_call(self, headers: HeaderList) -> DirectCall:
        """Return the call of a request with these headers. They are those of the head, but for Content-Length."""


class DirectCalls(Protocol):
    """Recognizes the requests that are taken directly. It is the attribute `direct` of an application that has any."""

    def find(self, method: bytes, target: bytes, headers: HeaderList) -> DirectHead | None:
        """Return None for a request that goes through ASGI. Raises nothing.

        The server asks only for requests with a declared body of at most `MAX_DIRECT_BYTES`.
        """
