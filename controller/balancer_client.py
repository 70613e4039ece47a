"""The balancer's HTTP interface, as far as the controller and its commands use it."""

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

#: How long the loop waits for an answer.
_PATIENCE_S = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - asked at, not bound to


class HttpAnswer(NamedTuple):
    """What the balancer answered."""

    status: int
    body: bytes


class BalancerHttpClient:
    """Asks one balancer. What the loop uses never raises: a balancer that is not there is asked again soon."""

    def __init__(self, url: str, token: str, tls_cert: Path | None = None) -> None:
        """With `tls_cert` only the holder of that very certificate is trusted: raises `ValueError` and `OSError`.

        Neither its issuer nor its names matter then: the balancer is asked by its address, not by the name in it.
        """
        self.url = url
        self._trusted = aiohttp.Fingerprint(_fingerprint(tls_cert)) if tls_cert else True
        self._headers = {"authorization": f"Bearer {token}"}
        self._snapshots = msgspec.json.Decoder(Snapshot)
        self._orders = msgspec.json.Decoder(PendingCommands)

    async def snapshot(self) -> Snapshot | None:
        """The present; None where the balancer does not answer, or not as ours would."""
        body = await self._quietly("GET", "/internal/snapshot")
        try:
            return None if body is None else self._snapshots.decode(body)
        except msgspec.MsgspecError as error:
            log.debug("no snapshot: %s", error)
            return None

    async def exchange(self, report: ControllerReport) -> PendingCommands | None:
        """Give the report, get what people have ordered; None where the balancer does not take it."""
        body = await self._quietly("POST", "/internal/controller", msgspec.json.encode(report))
        try:
            return None if body is None else self._orders.decode(body)
        except msgspec.MsgspecError as error:
            log.debug("no orders: %s", error)
            return None

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        *,
        within_s: float,
    ) -> HttpAnswer:
        """Any answer at all. Raises `aiohttp.ClientError`, `TimeoutError` and `OSError` where there is none."""
        timeout = aiohttp.ClientTimeout(total=within_s)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session,
            session.request(method, f"{self.url}{path}", data=body, params=query, ssl=self._trusted) as answer,
        ):
            return HttpAnswer(answer.status, await answer.read())

    async def _quietly(self, method: str, path: str, body: bytes | None = None) -> bytes | None:
        try:
            answer = await self.ask(method, path, body, within_s=_PATIENCE_S)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("%s %s: %s", method, path, error)
            return None
        if answer.status != 200:
            log.debug("%s %s is answered %d", method, path, answer.status)
            return None
        return answer.body


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Where to ask a balancer that listens there, on this machine."""
    host, scheme = _ANY_ADDRESS.get(host, host), "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _fingerprint(cert: Path) -> bytes:
    """SHA-256 of the first certificate in the PEM file, which is the server's own."""
    _, begin, rest = cert.read_text(encoding="ascii").partition(ssl.PEM_HEADER)
    body, end, _ = rest.partition(ssl.PEM_FOOTER)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(begin + body + end)).digest()
