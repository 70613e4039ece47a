"""Looking: the balancer's snapshot over HTTP, put together with our own processes into one observation per model."""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec

from controller.replica import Child, Observation, Queue, Replica, Stage
from wire.snapshot import Snapshot, WorkerStats

log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - asked at, not bound to


class Balancer:
    """The balancer's HTTP interface, as far as the controller uses it."""

    def __init__(self, host: str, port: int, token: str, tls_cert: Path | None = None) -> None:
        """With `tls_cert` it speaks HTTPS, to the holder of that very certificate: raises `ValueError` and `OSError`.

        Neither its issuer nor its names matter then: the balancer is asked by its address, not by the name in it.
        """
        host, scheme = _ANY_ADDRESS.get(host, host), "https" if tls_cert else "http"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        self._trusted = aiohttp.Fingerprint(_fingerprint(tls_cert)) if tls_cert else True
        self._headers = {"authorization": f"Bearer {token}"}
        self._decoder = msgspec.json.Decoder(Snapshot)

    async def snapshot(self) -> Snapshot | None:
        """The present; None where the balancer does not answer, or not as ours would."""
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT, headers=self._headers) as session,
                session.get(f"{self.url}/internal/snapshot", ssl=self._trusted) as answer,
            ):
                answer.raise_for_status()
                return self._decoder.decode(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError) as error:
            log.debug("no snapshot: %s", error)
            return None


def _fingerprint(cert: Path) -> bytes:
    """SHA-256 of the first certificate in the PEM file, which is the server's own."""
    _, begin, rest = cert.read_text(encoding="ascii").partition(ssl.PEM_HEADER)
    body, end, _ = rest.partition(ssl.PEM_FOOTER)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(begin + body + end)).digest()


class Hearing:
    """When the balancer last heard each worker, by the controller's clock."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def listen(self, snapshot: Snapshot, now: float) -> list[str]:
        """Take in a snapshot; the workers heard for the first time."""
        heard = [worker.worker for worker in snapshot.workers if worker.slots or worker.state == "draining"]
        new = [worker for worker in heard if worker not in self.first]
        self.first |= dict.fromkeys(new, now)
        self._last |= dict.fromkeys(heard, now)
        return new

    def forget(self, worker: str) -> None:
        """The worker is gone."""
        self.first.pop(worker, None)
        self._last.pop(worker, None)

    def unheard_since(self, worker: str, snapshot: Snapshot | None, now: float) -> float | None:
        """Since when a worker that was heard once is missing from snapshots; None while nothing says so.

        The time that the balancer was not there, or had just come, does not count against the worker.
        """
        last = self._last.get(worker)
        if snapshot is None or last is None or last >= now:
            return None
        return max(last, now - snapshot.uptime_s)


def observe(
    model: str, children: Sequence[Child], snapshot: Snapshot | None, hearing: Hearing, now: float
) -> Observation:
    """One model's processes with what the balancer says of them."""
    known = {stats.worker: stats for stats in snapshot.workers} if snapshot else {}
    replicas = []
    for child in children:
        if child.model == model:
            stats = known.get(child.id)
            load = stats.assigned + stats.running if stats else 0
            unheard = hearing.unheard_since(child.id, snapshot, now)
            stuck = stats is not None and stats.state == "stuck"
            replicas.append(Replica(child, _stage(child, stats, hearing), load, unheard, stuck))
    queues = (
        {stats.model: Queue(stats.queued, stats.running, stats.batch_cap) for stats in snapshot.models}
        if snapshot
        else {}
    )
    return Observation(model, queues.get(model), replicas)


def _stage(child: Child, stats: WorkerStats | None, hearing: Hearing) -> Stage:
    # A worker that somebody else told to go is no more capacity than one that we did.
    if child.drained_at is not None or (stats is not None and stats.state == "draining"):
        return Stage.DRAINING
    return Stage.READY if child.id in hearing.first else Stage.STARTING
