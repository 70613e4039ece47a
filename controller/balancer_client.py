"""HTTP client of the balancer, for the control loop and the commands."""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec

from wire.scaling import ControllerReport, PendingCommands
from wire.snapshot import Snapshot

log = logging.getLogger(__name__)

#: For requests of the control loop.
_TIMEOUT_S = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - connected to, not bound


class HttpAnswer(NamedTuple):
    """An answer of any status."""

    status: int
    body: bytes


class BalancerHttpClient:
    """Sends requests to one balancer. `snapshot` and `exchange` return None on failure: the loop repeats them."""

    def __init__(self, url: str, token: str, tls_cert: Path | None = None) -> None:
        """With `tls_cert`, trust that certificate only. Raises `ValueError` and `OSError` if it cannot be read.

        Its issuer and names are not checked: the balancer is addressed by IP address, not by the name in it.
        """
        self.url = url
        self._trusted = aiohttp.Fingerprint(_fingerprint(tls_cert)) if tls_cert else True
        self._headers = {"authorization": f"Bearer {token}"}
        self._snapshots = msgspec.json.Decoder(Snapshot)
        self._commands = msgspec.json.Decoder(PendingCommands)

    async def snapshot(self) -> Snapshot | None:
        """Return the snapshot; None if the balancer does not answer with one."""
        body = await self._request_or_none("GET", "/internal/snapshot")
        try:
            return None if body is None else self._snapshots.decode(body)
        except msgspec.MsgspecError as error:
            log.debug("no snapshot: %s", error)
            return None

    async def exchange(self, report: ControllerReport) -> PendingCommands | None:
        """Send the report and return the pending commands; None if the balancer does not accept it."""
        body = await self._request_or_none("POST", "/internal/controller", msgspec.json.encode(report))
        try:
            return None if body is None else self._commands.decode(body)
        except msgspec.MsgspecError as error:
            log.debug("no commands: %s", error)
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
        """Return the answer of any status. Raises `aiohttp.ClientError`, `TimeoutError` and `OSError`."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session,
            session.request(method, f"{self.url}{path}", data=body, params=query, ssl=self._trusted) as answer,
        ):
            return HttpAnswer(answer.status, await answer.read())

    async def _request_or_none(self, method: str, path: str, body: bytes | None = None) -> bytes | None:
        try:
            answer = await self.request(method, path, body, timeout_s=_TIMEOUT_S)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("%s %s: %s", method, path, error)
            return None
        if answer.status != 200:
            log.debug("%s %s is answered %d", method, path, answer.status)
            return None
        return answer.body


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Return the URL by which this machine reaches a balancer that listens on `host`."""
    host, scheme = _ANY_ADDRESS.get(host, host), "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _fingerprint(cert: Path) -> bytes:
    """Return the SHA-256 of the first certificate in the PEM file, which is the server's own."""
    _, begin, rest = cert.read_text(encoding="ascii").partition(ssl.PEM_HEADER)
    body, end, _ = rest.partition(ssl.PEM_FOOTER)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(begin + body + end)).digest()
