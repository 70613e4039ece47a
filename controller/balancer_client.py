"""HTTP client of the balancer, for the control loop and the commands.

One small request at a time: the standard library's client in a thread suffices. A client library would be a sixth of
the controller's memory and a fifth of its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import ssl
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection, InvalidURL
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from wire.agents import AgentStates
from wire.scaling import PendingCommands
from wire.snapshot import Snapshot

log = logging.getLogger(__name__)

Answer_co = TypeVar("Answer_co", covariant=True)

#: For requests of the control loop.
_TIMEOUT_S = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - connected to, not bound


class HttpAnswer(NamedTuple):
    """An answer of any status."""

    status: int
    body: bytes


class Endpoint(NamedTuple, Generic[Answer_co]):
    """An endpoint of the control loop, and the type of its answer."""

    method: str
    path: str
    answer: type[Answer_co]


SNAPSHOT = Endpoint("GET", "/internal/snapshot", Snapshot)
#: It takes a `ControllerReport`.
REPORT = Endpoint("POST", "/internal/controller", PendingCommands)
#: It takes an `AgentExchange`: orders to the agents of machines.
AGENTS = Endpoint("POST", "/internal/agents", AgentStates)


class BalancerHttpClient:
    """Sends requests to one balancer. `call` returns None on failure: the control loop repeats it."""

    def __init__(self, url: str, token: str, tls_cert: Path | None = None) -> None:
        """With `tls_cert`, trust that certificate only. Raises `ValueError` and `OSError` if it cannot be read.

        Its issuer and names are not checked: the balancer is addressed by IP address, not by the name in it.
        """
        self.url = url
        self._fingerprint = _fingerprint(tls_cert) if tls_cert else None
        self._headers = {"authorization": f"Bearer {token}"}

    async def call(self, endpoint: Endpoint[Answer_co], message: msgspec.Struct | None = None) -> Answer_co | None:
        """Send the message, and return the answer; None without a valid one."""
        body = None if message is None else msgspec.json.encode(message)
        try:
            answer = await self.request(endpoint.method, endpoint.path, body, timeout_s=_TIMEOUT_S)
            if answer.status == 200:
                return msgspec.json.decode(answer.body, type=endpoint.answer)
            log.debug("%s %s is answered %d", endpoint.method, endpoint.path, answer.status)
        except (HTTPException, OSError, msgspec.MsgspecError) as error:
            log.debug("%s %s: %s", endpoint.method, endpoint.path, error)
        return None

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        *,
        timeout_s: float,
    ) -> HttpAnswer:
        """Return the answer of any status. Raises `HTTPException`, `TimeoutError` and `OSError`."""
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise InvalidURL(f"{self.url}: {error}") from None
        if parts.scheme == "https":
            context = ssl.create_default_context()
            if self._fingerprint is not None:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection: HTTPConnection = HTTPSConnection(host, port, timeout=timeout_s, context=context)
        else:
            connection = HTTPConnection(host, port, timeout=timeout_s)
        target = parts.path + path + (f"?{urlencode(query)}" if query else "")
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.to_thread(self._exchange, connection, method, target, body)
        finally:
            opened = connection.sock
            if opened is not None:  # the thread still waits for it
                with contextlib.suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)

    def _exchange(self, connection: HTTPConnection, method: str, target: str, body: bytes | None) -> HttpAnswer:
        """Send the request and read the answer. Called in a thread."""
        try:
            connection.connect()
            if self._fingerprint is not None:
                self._check_certificate(connection.sock)
            connection.request(method, target, body, self._headers)
            with connection.getresponse() as response:
                return HttpAnswer(response.status, response.read())
        finally:
            connection.close()

    def _check_certificate(self, connection: socket.socket) -> None:
        """Raises `SSLError` unless the server has the trusted certificate."""
        shown = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLSocket) else None
        if shown is None or hashlib.sha256(shown).digest() != self._fingerprint:
            raise ssl.SSLError("the server shows another certificate")


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Return the URL by which this machine reaches a balancer that listens on `host`."""
    host, scheme = _ANY_ADDRESS.get(host, host), "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _fingerprint(cert: Path) -> bytes:
    """Return the SHA-256 of the first certificate in the PEM file, which is the server's own."""
    _, begin, rest = cert.read_text(encoding="ascii").partition(ssl.PEM_HEADER)
    body, end, _ = rest.partition(ssl.PEM_FOOTER)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(begin + body + end)).digest()
