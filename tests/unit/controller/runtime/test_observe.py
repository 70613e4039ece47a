"""Observations from the balancer's snapshot, the HTTP client, and the visible GPUs."""

from __future__ import annotations

import socket

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from controller.balancer_client import SNAPSHOT, BalancerHttpClient, url_of
from controller.runtime.observe import WorkerTracker
from controller.types import Queue, Replica, Stage
from host.types import WorkerProcess
from scripts.harness.processes import PATIENCE_S
from wire.messages import StartupTimes, WorkerCounters
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
    observed = WorkerTracker().observe(["m"], [own, child("other", model="n")], present, 10.0)["m"]
    assert [(r.process.id, r.stage, r.load, r.silent_since) for r in observed.replicas] == [("w", stage, load, None)]
    assert observed.queue == (None if present is None else Queue(7, 3, uptime_s=1000.0))


def test_all_statistics_reach_the_policy() -> None:
    model_snapshot = ModelStats("m", 7, 3, 9.0, 4.5, 0.1, 0.2, 8, 2.5, 80.0, 30.0, 6.5, 40, 400, 1000, 10, 33, 2, (), 4)
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
        unstarted_late_total=4,
        oldest_wait_s=4.5,
        proxied_in_flight=2,
        uptime_s=1234.0,
        long_work_s=30.0,
    )
    assert observed["n"].queue is None, "of another model"


def test_stuck_and_silent_workers_differ() -> None:
    model_snapshot = snapshot(stats("w", "stuck"), stats("v", "silent"))
    observed = WorkerTracker().observe(["m"], [child("w"), child("v")], model_snapshot, 10.0)["m"]
    assert [(r.process.id, r.stage, r.stuck) for r in observed.replicas] == [
        ("w", Stage.READY, True),
        ("v", Stage.READY, False),
    ]


def replica_of(tracker: WorkerTracker, present: Snapshot | None, now: float) -> Replica:
    [replica] = tracker.observe(["m"], [child("w")], present, now)["m"].replicas
    return replica


def test_worker_stays_ready_without_balancer() -> None:
    tracker = WorkerTracker()
    assert replica_of(tracker, snapshot(stats("w")), 10.0).process.ready_at == 10.0
    assert replica_of(tracker, snapshot(stats("w")), 11.0).process.ready_at == 10.0, "ready only once"
    replica = replica_of(tracker, None, 500.0)
    assert (replica.stage, replica.silent_since, replica.process.ready_at) == (Stage.READY, None, 10.0)


def test_silence_counts_from_last_snapshot_or_balancer_start() -> None:
    tracker = WorkerTracker()
    assert replica_of(tracker, snapshot(), 9.0).silent_since is None, "it was never there"
    replica_of(tracker, snapshot(stats("w")), 10.0)
    assert replica_of(tracker, snapshot(), 40.0).silent_since == 10.0
    assert replica_of(tracker, snapshot(uptime_s=5.0), 40.0).silent_since == 35.0
    assert replica_of(tracker, None, 40.0).silent_since is None
    assert replica_of(tracker, snapshot(stats("w")), 41.0).silent_since is None
    assert tracker.forget(child("w")).ready_at == 10.0
    assert tracker.forget(child("w")).ready_at is None, "it is forgotten"
    assert replica_of(tracker, snapshot(stats("w")), 42.0).process.ready_at == 42.0


def test_worker_that_has_exited_is_not_recorded_again() -> None:
    tracker = WorkerTracker()
    replica_of(tracker, snapshot(stats("w")), 10.0)
    tracker.forget(child("w"))
    tracker.observe(["m"], [], snapshot(stats("w")), 11.0)  # the balancer has not noticed its end yet
    assert tracker.forget(child("w")).ready_at is None


def test_start_of_a_worker_is_kept_while_it_is_absent() -> None:
    started = msgspec.structs.replace(stats("w"), start=StartupTimes(1.0, 2.0, 4.0, 8.0, 16.0, standby=True))
    tracker = WorkerTracker()
    assert replica_of(tracker, snapshot(), 9.0).started_in_s == 0.0
    for present in (snapshot(started), snapshot(), None):
        replica = replica_of(tracker, present, 10.0)
        assert (replica.started_in_s, replica.from_standby) == (31.0, True)


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
        found = {}
        for token in answers:
            if (answer := await BalancerHttpClient(url, token).call(SNAPSHOT)) is not None:
                found[token] = answer.models[0].queued
    assert found == {"good": 1}
    assert await BalancerHttpClient(url, "good").call(SNAPSHOT) is None, "the server has stopped"


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
