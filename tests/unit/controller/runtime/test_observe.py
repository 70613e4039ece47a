"""Observations from the balancer's snapshot, the HTTP client, and the visible GPUs."""

from __future__ import annotations

import socket

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from controller.balancer_client import BalancerHttpClient, url_of
from controller.runtime.observe import WorkerTracker
from controller.types import Queue, Stage
from host.types import WorkerProcess
from scripts.harness.processes import PATIENCE_S
from wire.messages import WorkerCounters
from wire.snapshot import ModelStats, Snapshot, WorkerState, WorkerStats


def stats(
    worker: str, state: WorkerState = "ready", slots: int = 4, assigned: int = 1, running: int = 2
) -> WorkerStats:
    return WorkerStats(worker, "m", "sim:0", 1, state, slots, assigned, running, 0.1, 0.0, 0.0, 0, WorkerCounters())


def snapshot(*workers: WorkerStats, uptime_s: float = 1000.0) -> Snapshot:
    return Snapshot(0.0, uptime_s, [ModelStats("m", 7, 3, None, 0.0, 0.0, 0.0)], list(workers))


def child(name: str, model: str = "m", drained_at: float | None = None) -> WorkerProcess:
    return WorkerProcess(name, model, "sim:0", 1, 0.0, drained_at)


@pytest.mark.parametrize(
    ("own", "present", "stage", "load"),
    [
        (child("w"), snapshot(stats("w")), Stage.READY, 3),
        (child("w"), snapshot(stats("w", "silent")), Stage.READY, 3),
        # Connected without slots yet, or unknown.
        (child("w"), snapshot(stats("w", slots=0, assigned=0, running=0)), Stage.STARTING, 0),
        (child("w"), snapshot(), Stage.STARTING, 0),
        (child("w"), None, Stage.STARTING, 0),
        (child("w", drained_at=5.0), snapshot(stats("w")), Stage.DRAINING, 3),
        # Drained by its operator.
        (child("w"), snapshot(stats("w", "draining", slots=0)), Stage.DRAINING, 3),
    ],
)
def test_worker_stage(own: WorkerProcess, present: Snapshot | None, stage: Stage, load: int) -> None:
    tracker = WorkerTracker()
    if present is not None:
        tracker.update(present, 10.0)
    observed = tracker.observe(["m"], [own, child("other", model="n")], present, 10.0)["m"]
    assert [(r.process.id, r.stage, r.load, r.silent_since) for r in observed.replicas] == [("w", stage, load, None)]
    assert observed.queue == (None if present is None else Queue(7, 3, uptime_s=1000.0))


def test_all_statistics_reach_the_policy() -> None:
    model_snapshot = ModelStats("m", 7, 3, 9.0, 4.5, 0.1, 0.2, 8, 2.5, 80.0, 6.5, 40, 400, 1000, 10, 33, 2)
    observed = WorkerTracker().observe(["m", "n"], [], Snapshot(0.0, 1234.0, [model_snapshot], []), 10.0)
    assert observed["m"].queue == Queue(
        queued=7,
        running=3,
        batch_cap=8,
        batch_slowdown=2.5,
        backlog_work_s=80.0,
        mean_work_s=6.5,
        arrivals_short_window=40,
        arrivals_long_window=400,
        started_total=1000,
        started_late_total=10,
        oldest_wait_s=4.5,
        proxied_in_flight=2,
        uptime_s=1234.0,
    )
    assert observed["n"].queue is None, "of another model"


def test_stuck_and_silent_workers_differ() -> None:
    tracker = WorkerTracker()
    model_snapshot = snapshot(stats("w", "stuck"), stats("v", "silent"))
    tracker.update(model_snapshot, 10.0)
    observed = tracker.observe(["m"], [child("w"), child("v")], model_snapshot, 10.0)["m"]
    assert [(r.process.id, r.stage, r.stuck) for r in observed.replicas] == [
        ("w", Stage.READY, True),
        ("v", Stage.READY, False),
    ]


def test_worker_stays_ready_without_balancer() -> None:
    tracker = WorkerTracker()
    assert tracker.update(snapshot(stats("w")), 10.0) == ["w"]
    assert tracker.update(snapshot(stats("w")), 11.0) == [], "new only once"
    [replica] = tracker.observe(["m"], [child("w")], None, 500.0)["m"].replicas
    assert (replica.stage, replica.silent_since) == (Stage.READY, None)


def test_silence_counts_from_last_snapshot_or_balancer_start() -> None:
    tracker = WorkerTracker()
    tracker.update(snapshot(stats("w")), 10.0)
    tracker.update(snapshot(), 40.0)
    assert tracker.silent_since("w", snapshot(), 40.0) == 10.0
    assert tracker.silent_since("w", snapshot(uptime_s=5.0), 40.0) == 35.0
    assert tracker.silent_since("w", None, 40.0) is None
    assert tracker.silent_since("never", snapshot(), 40.0) is None
    tracker.update(snapshot(stats("w")), 41.0)
    assert tracker.silent_since("w", snapshot(), 41.0) is None
    assert tracker.forget(child("w")).ready_at == 10.0
    assert tracker.forget(child("w")).ready_at is None, "it is forgotten"
    assert tracker.update(snapshot(stats("w")), 42.0) == ["w"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("example.org", "http://example.org:8000"),
    ],
)
def test_balancer_url(host: str, url: str) -> None:
    assert url_of(host, 8000, tls=False) == url
    assert url_of(host, 8000, tls=True) == url.replace("http://", "https://")


async def test_invalid_answer_gives_no_snapshot() -> None:
    good = (
        b'{"time": 1, "uptime_s": 2, "workers": [],'
        b' "models": [{"model": "m", "queued": 1, "running": 0, "queued_work_s": null,'
        b' "oldest_wait_s": 0, "arrival_rate": 0, "service_rate": 0}]}'
    )
    answers = {"good": (200, good), "empty": (200, b""), "other": (200, b'{"hello": 1}'), "broken": (500, good)}

    async def handle(request: web.Request) -> web.Response:
        status, body = answers[request.headers["authorization"].removeprefix("Bearer ")]
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_get("/internal/snapshot", handle)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}"
        found = {token: await BalancerHttpClient(url, token).snapshot() for token in answers}
    assert [token for token, answer in found.items() if answer is not None] == ["good"]
    assert found["good"] is not None
    assert found["good"].models[0].queued == 1
    assert await BalancerHttpClient(url, "good").snapshot() is None, "the server has stopped"


async def test_silent_balancer_ends_the_request_and_its_thread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = BalancerHttpClient(f"http://127.0.0.1:{silent.getsockname()[1]}", "token")
        with pytest.raises(TimeoutError):
            await client.request("GET", "/internal/snapshot", timeout_s=0.2)
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(PATIENCE_S)
            while connection.recv(4096):
                pass
