"""Reads the server's state each second while it is under load: workers, queue, decisions, memory."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, NamedTuple

import httpx
import msgspec
import psutil

from scripts.loadtest_lib.target import Target
from wire.scaling import MAX_DECISIONS, DecisionPage
from wire.snapshot import Snapshot

_EVERY_S = 1.0
_TIMEOUT_S = 10.0


class ServerSample(NamedTuple):
    """The server at one moment, over all models. `time` is in Unix seconds, `rss` in bytes."""

    time: float
    workers: int
    queued: int
    running: int
    rss: int | None


class ServerSampler:
    """Samples in a thread. What the server does not let it read is missing, with the reason."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._process = psutil.Process(target.pid) if target.pid is not None else None
        self._decoder = msgspec.json.Decoder(Snapshot)
        self.samples: list[ServerSample] = []
        self.decisions: list[dict[str, Any]] = []
        #: Why something is missing; empty if nothing is.
        self.problem = ""

    def __enter__(self) -> ServerSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(2 * _TIMEOUT_S)
        self._read_decisions()

    def _run(self) -> None:
        with httpx.Client(headers=dict(self._target.admin_headers), timeout=_TIMEOUT_S) as client:
            while not self._stopped.wait(_EVERY_S - time.time() % _EVERY_S):
                content = self._get(client, "/internal/snapshot")
                if content is not None:
                    with contextlib.suppress(msgspec.MsgspecError):
                        self.samples.append(self._sample(self._decoder.decode(content)))

    def _sample(self, snapshot: Snapshot) -> ServerSample:
        ready = sum(worker.state == "ready" and worker.slots > 0 for worker in snapshot.workers)
        queued, running = (sum(getattr(model, name) for model in snapshot.models) for name in ("queued", "running"))
        return ServerSample(time.time(), ready, queued, running, self._rss())

    def _rss(self) -> int | None:
        if self._process is None:
            return None
        try:
            return int(self._process.memory_info().rss)
        except psutil.Error:
            return None

    def _read_decisions(self) -> None:
        with httpx.Client(headers=dict(self._target.admin_headers), timeout=_TIMEOUT_S) as client:
            content = self._get(client, f"/internal/decisions?limit={MAX_DECISIONS}")
        if content is not None:
            page = msgspec.json.decode(content, type=DecisionPage)
            self.decisions = [msgspec.to_builtins(each) for each in reversed(page.decisions)]

    def _get(self, client: httpx.Client, path: str) -> bytes | None:
        try:
            answer = client.get(f"{self._target.url}{path}")
        except httpx.HTTPError as error:
            self.problem = f"{path}: {type(error).__name__}"
            return None
        if answer.is_success:
            return answer.content
        self.problem = f"{path}: {answer.status_code}; it needs an API key with the scope admin"
        return None
