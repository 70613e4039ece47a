"""Durable jobs through crashes of the balancer, full disks and failing webhooks: real processes and files."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import shutil
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from configs.paths import jobs_file
from scripts.harness.balancer import Server, sim
from scripts.harness.processes import PATIENCE_S, launch, stop, wait_until
from tests.conftest import StartServer
from tests.support.images import data_url, png
from tests.support.texts import expected_text
from tests.support.waiting import until
from wire.inputs import ImageInputs
from worker.engines.sim import expected_image

ENDS = ("done", "failed", "cancelled")
GENERATE, PREDICT = "/v1/images/generations", "/predict"
STEPS = 60
#: About a second and a half for an image, with a checkpoint every five steps.
SLOW = {
    "sim": sim(t0_s=0.025, defaults={"size": "64x64", "steps": STEPS, "guidance_scale": 3.0, "scheduler": "ddim"})
    | {"batching": {"checkpoint_every": 5}}
}
JOBS = {"checkpoint_every_s": 0.1, "webhook_private": True, "webhook_retry_s": 0.1, "webhook_attempts": 100}


def end_balancer(server: Server, signum: signal.Signals) -> None:
    stop(server.balancer, signum)


def start_balancer(server: Server) -> None:
    options = ("--config", str(server.config), "--port", str(server.port))
    server.balancer = launch("loadbalancer", server.data_dir, *options, log="loadbalancer")

    def answers() -> bool:
        assert server.balancer.poll() is None, server.logs()
        try:
            return httpx.get(f"{server.base_url}/healthz", timeout=PATIENCE_S).is_success
        except httpx.TransportError:
            return False

    wait_until(answers, "the first response of the new balancer")


def call(server: Server, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(method, f"{server.base_url}{path}", timeout=PATIENCE_S, **options)


def post(server: Server, seed: int = 7, key: str | None = None, webhook: Any = None, **body: Any) -> httpx.Response:
    request = {"path": GENERATE, "body": {"prompt": "a seven", "seed": seed} | body, "webhook": webhook}
    return call(server, "POST", "/v1/jobs", json=request, headers={"idempotency-key": key} if key else None)


def accepted(response: httpx.Response) -> str:
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def get_job(server: Server, job: str) -> dict[str, Any]:
    view: dict[str, Any] = call(server, "GET", f"/v1/jobs/{job}").json()
    return view


def wait_for_end(server: Server, job: str) -> dict[str, Any]:
    wait_until(lambda: get_job(server, job)["state"] in ENDS, "the end of the job")
    return get_job(server, job)


def images(server: Server, job: str) -> list[bytes]:
    response = call(server, "GET", f"/v1/jobs/{job}/result")
    assert response.status_code == 200, response.text
    return [base64.b64decode(image["b64_json"]) for image in response.json()["data"]]


def expected(seed: int, steps: int = STEPS) -> bytes:
    return expected_image(ImageInputs("a seven", 64, 64, steps, 3.0, seed, "ddim"))


def rows_stepped(server: Server) -> int:
    return sum(worker.counters.rows for worker in server.snapshot().workers)


# ---- crashes of the balancer


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_are_done_exactly_once_despite_balancer_crashes(server: StartServer, how: signal.Signals) -> None:
    running = server(SLOW, 2, jobs=JOBS)
    jobs = {accepted(post(running, seed, n=2)): seed for seed in range(0, 16, 2)}
    for restarts in range(2):
        wait_until(lambda n=restarts: _done(running) > n, "results of this balancer")  # type: ignore[misc]
        end_balancer(running, how)
        start_balancer(running)
    for job, seed in jobs.items():
        assert wait_for_end(running, job)["state"] == "done"
        assert images(running, job) == [expected(seed), expected(seed + 1)]
        first = images(running, job)
        assert images(running, job) == first, "the result does not change"
    with contextlib.closing(sqlite3.connect(jobs_file(running.data_dir))) as db:
        assert db.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,), "no checkpoint is left"


def pause_workers(server: Server, signum: signal.Signals = signal.SIGSTOP) -> None:
    for worker in server.workers.values():
        worker.send_signal(signum)


def _done(server: Server) -> int:
    return len(call(server, "GET", "/v1/jobs?limit=100&state=done").json()["data"])


@pytest.mark.parametrize("away_s", [0.0, 3.0], ids=["finished after restart", "finished before restart"])
def test_running_tasks_continue_while_the_balancer_restarts(server: StartServer, away_s: float) -> None:
    slow = {"sim": {"t0_s": 0.1, "t1_s": 0.0005, "load_s": 0.0}, "batching": {"checkpoint_every": "never"}}
    running = server(SLOW | {"sim": SLOW["sim"] | slow}, jobs=JOBS)
    job = accepted(post(running, n=2))
    for restarts in range(2):
        wait_until(lambda n=restarts: get_job(running, job)["step"] >= 20 * (n + 1), "steps under this balancer")  # type: ignore[misc]
        if not restarts:  # else the job could end before the second one, as starts take long on a busy machine
            pause_workers(running)
        end_balancer(running, signal.SIGKILL)
        if restarts:
            time.sleep(away_s)  # nobody can be asked what the worker has done meanwhile; it is right with any time
        start_balancer(running)
        pause_workers(running, signal.SIGCONT)
    assert wait_for_end(running, job)["state"] == "done"
    assert images(running, job) == [expected(7), expected(8)]
    wait_until(lambda: rows_stepped(running) >= 2 * STEPS, "the steps that the worker has counted")
    assert rows_stepped(running) == 2 * STEPS, "no step is repeated, without any checkpoint"


def test_text_job_has_the_same_tokens_after_a_restart(server: StartServer) -> None:
    model = {"engine": "sim", "max_batch_size": 4, "sim": {"task": "text", "t0_s": 0.02, "load_s": 0.0}}
    running = server({"words": model}, jobs=JOBS)
    body = {"messages": [{"role": "user", "content": "hello"}], "seed": 3, "max_tokens": 150, "n": 2}
    answered = call(running, "POST", "/v1/jobs", json={"path": "/v1/chat/completions", "body": body})
    job = accepted(answered)
    wait_until(lambda: get_job(running, job)["step"] >= 20, "tokens under the first balancer")
    end_balancer(running, signal.SIGKILL)
    start_balancer(running)
    assert wait_for_end(running, job)["state"] == "done"
    answer = call(running, "GET", f"/v1/jobs/{job}/result").json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == [
        expected_text(seed, 150) for seed in (3, 4)
    ]
    assert answer["usage"]["completion_tokens"] == 300
    assert "no valid result" not in running.log("loadbalancer")


def test_job_resumes_from_checkpoint_after_all_processes_died(server: StartServer) -> None:
    running = server(SLOW | {"sim": SLOW["sim"] | {"sim": {"t0_s": 0.25, "t1_s": 0.0005, "load_s": 0.0}}}, jobs=JOBS)
    job = accepted(post(running))
    wait_until(lambda: _saved_step(running) >= 20, "a checkpoint on disk")
    end_balancer(running, signal.SIGKILL)
    for worker in running.workers.values():
        worker.kill()
        worker.wait(PATIENCE_S)
    saved = _saved_step(running)
    start_balancer(running)
    wait_until(lambda: get_job(running, job)["step"] == saved, "the job at its checkpoint")
    name = running.start_worker("sim")
    running.wait_for_workers(name)
    assert wait_for_end(running, job)["state"] == "done"
    assert images(running, job) == [expected(7)]
    wait_until(lambda: rows_stepped(running) >= STEPS - saved, "the steps that the worker has counted")
    assert rows_stepped(running) == STEPS - saved, "no step is repeated"


def _saved_step(server: Server) -> int:
    with contextlib.closing(sqlite3.connect(jobs_file(server.data_dir), timeout=PATIENCE_S)) as db:
        return int(db.execute("SELECT ifnull(max(step), 0) FROM checkpoints").fetchone()[0])


def _delivered(server: Server) -> int:
    """Return the number of webhooks that are not due any more, because they were received."""
    with contextlib.closing(sqlite3.connect(jobs_file(server.data_dir), timeout=PATIENCE_S)) as db:
        query = "SELECT count(*) FROM deliveries WHERE delivered IS NOT NULL AND due IS NULL"
        return int(db.execute(query).fetchone()[0])


def test_job_accepted_during_shutdown_is_done_after_restart(server: StartServer) -> None:
    running = server(SLOW, jobs=JOBS, server={"shutdown_s": 8})
    parameters = {"prompt": "a seven", "seed": 7}
    content = json.dumps({"path": GENERATE, "body": parameters}).encode()
    head = f"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) as job, ThreadPoolExecutor() as pool:
        job.sendall(head + content[:10])
        other = pool.submit(call, running, "POST", PREDICT, json=parameters | {"num_inference_steps": 1000})  # 25 s
        wait_until(lambda: sum(worker.running for worker in running.snapshot().workers) == 1, "a running request")
        pause_workers(running)
        running.balancer.send_signal(signal.SIGTERM)
        is_closed = lambda: "shutting_down" in call(running, "GET", "/readyz").text  # noqa: E731
        wait_until(is_closed, "admission to be closed")
        job.sendall(content[10:])
        status_line = job.makefile("rb").readline()
        assert other.result().status_code == 503
    assert status_line.split()[1] == b"202"
    assert running.balancer.wait(PATIENCE_S) == 0
    start_balancer(running)
    pause_workers(running, signal.SIGCONT)
    [view] = call(running, "GET", "/v1/jobs").json()["data"]
    assert wait_for_end(running, view["id"])["state"] == "done"
    assert images(running, view["id"]) == [expected(7)]


def test_unreadable_job_fails_and_unreadable_checkpoint_restarts(server: StartServer) -> None:
    running = server(SLOW, jobs=JOBS)
    steps = 300  # none is done before its balancer is killed
    broken, half, good = (accepted(post(running, seed, num_inference_steps=steps)) for seed in range(3))
    wait_until(lambda: _saved_step(running) >= 5, "checkpoints on disk")
    end_balancer(running, signal.SIGKILL)
    with contextlib.closing(sqlite3.connect(jobs_file(running.data_dir))) as db, db:
        db.execute("UPDATE jobs SET asked = ? WHERE id = ?", (b"{", broken))
        db.execute("UPDATE checkpoints SET frames = ? WHERE job = ?", (b"\xc1", half))
    start_balancer(running)
    view = wait_for_end(running, broken)
    assert (view["state"], view["error"]["code"]) == ("failed", "job_unreadable")
    assert call(running, "GET", f"/v1/jobs/{broken}/result").status_code == 500
    for seed, job in ((1, half), (2, good)):
        assert wait_for_end(running, job)["state"] == "done"
        assert images(running, job) == [expected(seed, steps)]
    listed = call(running, "GET", "/v1/jobs").json()["data"]
    assert {view["id"] for view in listed} == {broken, half, good}


def test_source_images_and_deadlines_survive_a_restart(server: StartServer) -> None:
    running = server(SLOW, 0, jobs=JOBS)
    with_image = accepted(post(running, image=data_url(png())))
    late = accepted(post(running, timeout_s=0.5))
    end_balancer(running, signal.SIGKILL)
    start_balancer(running)
    assert wait_for_end(running, late)["error"]["code"] == "timeout"
    running.wait_for_workers(running.start_worker("sim"))
    assert wait_for_end(running, with_image)["state"] == "done"


def test_idempotency_keys_survive_a_restart(server: StartServer) -> None:
    running = server(SLOW, jobs=JOBS)
    job = accepted(post(running, key="job"))
    headers = {"idempotency-key": "sync"}
    first = call(running, "POST", PREDICT, json={"prompt": "a seven"}, headers=headers)
    assert first.status_code == 200
    end_balancer(running, signal.SIGKILL)
    start_balancer(running)
    again = call(running, "POST", PREDICT, json={"prompt": "a seven"}, headers=headers)
    assert (again.status_code, again.content) == (200, first.content)
    assert call(running, "POST", PREDICT, json={"prompt": "a one"}, headers=headers).status_code == 422
    assert accepted(post(running, key="job")) == job
    assert post(running, seed=8, key="job").status_code == 422
    assert len(call(running, "GET", "/v1/jobs").json()["data"]) == 1


# ---- limits


def test_waiting_jobs_leave_queue_space_for_requests(server: StartServer) -> None:
    running = server({"sim": sim(t0_s=0.02)}, 0, queue={"max_tasks": 8}, server={"max_n": 4}, jobs=JOBS)
    jobs = [accepted(post(running, seed, n=2)) for seed in range(0, 40, 2)]
    assert get_job(running, jobs[-1])["position"] > 8, "more than the queue holds"
    wait_until(lambda: running.snapshot().models[0].queued == 4, "half of the queue is filled")
    cancelled = accepted(post(running, 99))
    assert call(running, "DELETE", f"/v1/jobs/{cancelled}").json()["state"] == "cancelled"
    running.wait_for_workers(running.start_worker("sim"))
    for _ in range(3):
        assert call(running, "POST", PREDICT, json={"prompt": "a seven"}).status_code == 200
    for number, job in enumerate(jobs):
        assert wait_for_end(running, job)["state"] == "done"
        assert images(running, job) == [expected(2 * number, 8), expected(2 * number + 1, 8)]


def test_jobs_above_the_limit_are_rejected(server: StartServer) -> None:
    running = server(workers=0, jobs=JOBS | {"max_unfinished": 2})
    first = accepted(post(running, key="k"))
    accepted(post(running))
    assert accepted(post(running, key="k")) == first, "the key names the same job"
    full = post(running)
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    call(running, "DELETE", f"/v1/jobs/{first}")
    accepted(post(running))


def test_results_expire(server: StartServer) -> None:
    running = server(jobs=JOBS | {"keep_s": 1.0})
    job = accepted(post(running, key="k"))
    wait_until(lambda: call(running, "GET", f"/v1/jobs/{job}").status_code == 404, "the job to expire")
    assert accepted(post(running, seed=8, key="k")) != job, "its key is free"


def test_oldest_results_are_deleted_above_the_limit(server: StartServer) -> None:
    running = server(jobs=JOBS | {"max_bytes": 1 << 16})
    jobs = [accepted(post(running, seed)) for seed in range(40)]
    for job in jobs[-3:]:
        wait_for_end(running, job)
    wait_until(lambda: call(running, "GET", f"/v1/jobs/{jobs[0]}").status_code == 404, "the oldest to be deleted")
    left = [view["id"] for view in call(running, "GET", "/v1/jobs?limit=100").json()["data"]]
    assert 0 < len(left) < 40
    assert len(images(running, left[0])) == 1


def test_full_disk_rejects_jobs_only(server: StartServer) -> None:
    models = {"sim": sim(), "absent": sim()}
    running = server(models, {"sim": 1}, jobs=JOBS | {"max_file_bytes": 1 << 20})
    large: dict[str, Any] = {"model": "absent", "size": "256x256", "image": data_url(png(256, 256))}
    jobs: list[str] = []
    while (response := post(running, **large)).status_code == 202:
        jobs.append(accepted(response))
        assert len(jobs) < 10, "each takes 192 KiB of 1 MiB"
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_full")
    assert int(response.headers["retry-after"]) >= 1
    for headers in ({}, {"idempotency-key": "k"}):
        assert call(running, "POST", PREDICT, json={"prompt": "a seven"}, headers=headers).status_code == 200
    for job in jobs[:2]:
        assert call(running, "DELETE", f"/v1/jobs/{job}").status_code == 200
    accepted(post(running, **large))
    assert wait_for_end(running, accepted(post(running)))["state"] == "done"


def test_unusable_folder_rejects_jobs_until_it_is_repaired(server: StartServer) -> None:
    running = server(workers=1, jobs=JOBS)
    end_balancer(running, signal.SIGTERM)
    shutil.rmtree(jobs_file(running.data_dir).parent)
    jobs_file(running.data_dir).parent.write_text("in the way")
    start_balancer(running)
    refused = post(running)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    running.wait_for_workers(*running.workers)
    assert call(running, "POST", PREDICT, json={"prompt": "a seven"}).status_code == 200
    jobs_file(running.data_dir).parent.unlink()
    assert wait_for_end(running, accepted(post(running)))["state"] == "done"


# ---- webhooks


class Receiver:
    """A webhook receiver on this machine; `status` returns the status for the n-th message of a job."""

    def __init__(self, status: Callable[[int], int]) -> None:
        self._status = status
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.redirected = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/hook", self._on_hook)
        app.router.add_route("*", "/redirected", self._on_redirect)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    def of(self, job: str) -> list[tuple[dict[str, str], bytes]]:
        return [(headers, body) for headers, body in self.received if headers["webhook-id"] == job]

    async def _on_hook(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append((headers, await request.read()))
        status = self._status(len(self.of(headers["webhook-id"])))
        return web.Response(status=status, headers={"location": "/redirected"} if status == 307 else None)

    async def _on_redirect(self, request: web.Request) -> web.Response:
        self.redirected += 1
        return web.Response()


@pytest_asyncio.fixture
async def receivers() -> AsyncIterator[Callable[[Callable[[int], int]], Any]]:
    started: list[Receiver] = []

    async def make(status: Callable[[int], int]) -> Receiver:
        receiver = Receiver(status)
        await receiver.start()
        started.append(receiver)
        return receiver

    yield make
    for receiver in started:
        await receiver.stop()


SECRET = "a secret of many letters"


async def test_webhooks_are_signed_and_retried_until_received(server: StartServer, receivers: Any) -> None:
    receiver = await receivers(lambda n: {1: 500, 2: 307}.get(n, 204))
    hook = {"url": f"http://127.0.0.1:{receiver.port}/hook", "secret": SECRET}
    running = await asyncio.to_thread(server, jobs=JOBS)
    done = accepted(await asyncio.to_thread(post, running, webhook=hook))
    failed = accepted(await asyncio.to_thread(post, running, webhook=hook, prompt="sim:fail"))
    await until(lambda: min(len(receiver.of(job)) for job in (done, failed)) >= 3)
    for job, state in ((done, "done"), (failed, "failed")):
        for headers, body in receiver.of(job):
            signed = f"{job}.{headers['webhook-timestamp']}.".encode() + body
            digest = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{digest}"
            assert json.loads(body) == await asyncio.to_thread(get_job, running, job)
            assert json.loads(body)["state"] == state
    assert receiver.redirected == 0, "no redirect is followed"
    await until(lambda: _delivered(running) == 2)  # then no more come
    assert Counter(headers["webhook-id"] for headers, _ in receiver.received) == {done: 3, failed: 3}
    assert SECRET not in running.log("loadbalancer")


async def test_webhook_is_retried_after_a_restart(server: StartServer, receivers: Any) -> None:
    state = {"status": 503}
    receiver = await receivers(lambda _: state["status"])
    running = await asyncio.to_thread(server, jobs=JOBS)
    hook = {"url": f"http://127.0.0.1:{receiver.port}/hook"}
    job = accepted(await asyncio.to_thread(post, running, webhook=hook))
    await until(lambda: receiver.of(job))
    await asyncio.to_thread(end_balancer, running, signal.SIGKILL)
    refused = len(receiver.of(job))
    state["status"] = 200
    await asyncio.to_thread(start_balancer, running)
    await until(lambda: len(receiver.of(job)) > refused)
    headers, body = receiver.of(job)[-1]
    assert "webhook-signature" not in headers, "no secret was given"
    assert json.loads(body)["state"] == "done"


async def test_webhook_to_private_address_is_never_sent(server: StartServer, receivers: Any) -> None:
    receiver = await receivers(lambda _: 200)
    running = await asyncio.to_thread(server, jobs=JOBS | {"webhook_private": False, "webhook_attempts": 2})
    hook = {"url": f"http://localhost:{receiver.port}/hook"}
    job = accepted(await asyncio.to_thread(post, running, webhook=hook))
    await until(lambda: "given up" in running.log("loadbalancer"))
    assert not receiver.received
    assert (await asyncio.to_thread(get_job, running, job))["state"] == "done"
    direct = {"url": f"http://127.0.0.1:{receiver.port}/hook"}
    assert (await asyncio.to_thread(post, running, webhook=direct)).status_code == 400
