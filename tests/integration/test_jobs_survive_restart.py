"""Durable jobs through deaths of the balancer, full disks and deaf webhooks: real processes, real files."""

from __future__ import annotations

import asyncio
import base64
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
from wire.messages import ImageInputs
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

    wait_until(answers, "the new balancer's first answer")


def call(server: Server, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(method, f"{server.base_url}{path}", timeout=PATIENCE_S, **options)


def post(server: Server, seed: int = 7, key: str | None = None, webhook: Any = None, **body: Any) -> httpx.Response:
    wanted = {"path": GENERATE, "body": {"prompt": "a seven", "seed": seed} | body, "webhook": webhook}
    return call(server, "POST", "/v1/jobs", json=wanted, headers={"idempotency-key": key} if key else None)


def accepted(answered: httpx.Response) -> str:
    assert answered.status_code == 202, answered.text
    return str(answered.json()["id"])


def look(server: Server, job: str) -> dict[str, Any]:
    view: dict[str, Any] = call(server, "GET", f"/v1/jobs/{job}").json()
    return view


def ended(server: Server, job: str) -> dict[str, Any]:
    wait_until(lambda: look(server, job)["state"] in ENDS, "the end of the job")
    return look(server, job)


def pictures(server: Server, job: str) -> list[bytes]:
    answered = call(server, "GET", f"/v1/jobs/{job}/result")
    assert answered.status_code == 200, answered.text
    return [base64.b64decode(image["b64_json"]) for image in answered.json()["data"]]


def expected(seed: int, steps: int = STEPS) -> bytes:
    return expected_image(ImageInputs("a seven", 64, 64, steps, 3.0, seed, "ddim"))


def rows_stepped(server: Server) -> int:
    return sum(worker.counters.rows for worker in server.snapshot().workers)


# ---- deaths of the balancer


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_every_job_is_done_once_and_right_though_the_balancer_dies(server: StartServer, how: signal.Signals) -> None:
    running = server(SLOW, 2, jobs=JOBS)
    jobs = {accepted(post(running, seed, n=2)): seed for seed in range(0, 16, 2)}
    for lives in range(2):
        wait_until(lambda n=lives: _done(running) > n, "the first ends of this life")  # type: ignore[misc]
        end_balancer(running, how)
        start_balancer(running)
    for job, seed in jobs.items():
        assert ended(running, job)["state"] == "done"
        assert pictures(running, job) == [expected(seed), expected(seed + 1)]
        first = pictures(running, job)
        assert pictures(running, job) == first, "the answer does not change any more"
    with sqlite3.connect(jobs_file(running.data_dir)) as db:
        assert db.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,), "nothing is left behind"


def _done(server: Server) -> int:
    return len(call(server, "GET", "/v1/jobs?limit=100&state=done").json()["data"])


@pytest.mark.parametrize("away_s", [0.0, 6.0], ids=["finished after", "finished meanwhile"])
def test_what_workers_run_goes_on_there_though_the_balancer_dies(server: StartServer, away_s: float) -> None:
    slowly = {"sim": {"t0_s": 0.1, "t1_s": 0.0005, "load_s": 0.0}, "batching": {"checkpoint_every": "never"}}
    running = server(SLOW | {"sim": SLOW["sim"] | slowly}, jobs=JOBS)
    job = accepted(post(running, n=2))
    for lives in range(2):
        wait_until(lambda n=lives: look(running, job)["step"] >= 20 * (n + 1), "steps of this life")  # type: ignore[misc]
        assert look(running, job)["state"] == "running"
        end_balancer(running, signal.SIGKILL)
        if lives:
            time.sleep(away_s)  # whether it is long enough or not: nothing is to be done twice
        start_balancer(running)
    assert ended(running, job)["state"] == "done"
    assert pictures(running, job) == [expected(7), expected(8)]
    wait_until(lambda: rows_stepped(running) >= 2 * STEPS, "the worker's own count")
    assert rows_stepped(running) == 2 * STEPS, "not one step was done again, though none was ever saved"


def test_a_job_goes_on_from_its_last_checkpoint_when_everything_died(server: StartServer) -> None:
    running = server(SLOW | {"sim": SLOW["sim"] | {"sim": {"t0_s": 0.15, "t1_s": 0.0005, "load_s": 0.0}}}, jobs=JOBS)
    job = accepted(post(running))
    wait_until(lambda: _saved_step(running) >= 20, "a checkpoint on disk")
    end_balancer(running, signal.SIGKILL)
    for worker in running.workers.values():
        worker.kill()
        worker.wait(PATIENCE_S)
    saved = _saved_step(running)
    start_balancer(running)
    wait_until(lambda: look(running, job)["step"] == saved, "the job at its checkpoint")
    name = running.start_worker("sim")
    running.wait_for_workers(name)
    assert ended(running, job)["state"] == "done"
    assert pictures(running, job) == [expected(7)]
    wait_until(lambda: rows_stepped(running) >= STEPS - saved, "the worker's own count")
    assert rows_stepped(running) == STEPS - saved, "not one step was done again"


def _saved_step(server: Server) -> int:
    with sqlite3.connect(jobs_file(server.data_dir), timeout=PATIENCE_S) as db:
        return int(db.execute("SELECT ifnull(max(step), 0) FROM checkpoints").fetchone()[0])


def test_a_job_that_comes_while_the_balancer_stops_is_done_by_the_next_one(server: StartServer) -> None:
    running = server(SLOW, jobs=JOBS, server={"shutdown_s": 4})
    steps = 200  # longer than the balancer stays
    asked = {"prompt": "a seven", "seed": 7, "num_inference_steps": steps}
    content = json.dumps({"path": GENERATE, "body": asked}).encode()
    head = f"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) as job, ThreadPoolExecutor() as pool:
        job.sendall(head + content[:10])
        other = pool.submit(call, running, "POST", PREDICT, json=asked | {"num_inference_steps": 1000})
        wait_until(lambda: sum(worker.running for worker in running.snapshot().workers) == 1, "a reason to stay")
        running.balancer.send_signal(signal.SIGTERM)
        wait_until(lambda: post(running).status_code == 503, "the door to be closed")
        job.sendall(content[10:])
        answered = job.makefile("rb").readline()
        assert other.result().status_code == 503
    assert answered.split()[1] == b"202"
    assert running.balancer.wait(PATIENCE_S) == 0
    start_balancer(running)
    [view] = call(running, "GET", "/v1/jobs").json()["data"]
    assert ended(running, view["id"])["state"] == "done"
    assert pictures(running, view["id"]) == [expected(7, steps)]


def test_what_cannot_be_read_any_more_fails_alone_or_starts_again(server: StartServer) -> None:
    running = server(SLOW, jobs=JOBS)
    broken, half, good = (accepted(post(running, seed)) for seed in range(3))
    wait_until(lambda: _saved_step(running) >= 5, "checkpoints on disk")
    end_balancer(running, signal.SIGKILL)
    with sqlite3.connect(jobs_file(running.data_dir)) as db:
        db.execute("UPDATE jobs SET asked = ? WHERE id = ?", (b"{", broken))
        db.execute("UPDATE checkpoints SET frames = ? WHERE job = ?", (b"\xc1", half))
    start_balancer(running)
    view = ended(running, broken)
    assert (view["state"], view["error"]["code"]) == ("failed", "job_unreadable")
    assert call(running, "GET", f"/v1/jobs/{broken}/result").status_code == 500
    for seed, job in ((1, half), (2, good)):
        assert ended(running, job)["state"] == "done"
        assert pictures(running, job) == [expected(seed)]
    listed = call(running, "GET", "/v1/jobs").json()["data"]
    assert {view["id"] for view in listed} == {broken, half, good}


def test_source_pictures_and_time_limits_outlive_the_balancer(server: StartServer) -> None:
    running = server(SLOW, 0, jobs=JOBS)
    pictured = accepted(post(running, image=data_url(png())))
    late = accepted(post(running, timeout_s=0.5))
    end_balancer(running, signal.SIGKILL)
    start_balancer(running)
    assert ended(running, late)["error"]["code"] == "timeout"
    running.wait_for_workers(running.start_worker("sim"))
    assert ended(running, pictured)["state"] == "done"


def test_keys_mean_the_same_after_a_restart(server: StartServer) -> None:
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


# ---- room


def test_jobs_wait_on_disk_and_leave_room_for_requests(server: StartServer) -> None:
    running = server({"sim": sim(t0_s=0.02)}, 0, queue={"max_tasks": 8}, server={"max_n": 4}, jobs=JOBS)
    jobs = [accepted(post(running, seed, n=2)) for seed in range(0, 40, 2)]
    assert look(running, jobs[-1])["position"] > 8, "more than the queue holds"
    wait_until(lambda: running.snapshot().models[0].queued == 4, "half of the queue is filled")
    unwanted = accepted(post(running, 99))
    assert call(running, "DELETE", f"/v1/jobs/{unwanted}").json()["state"] == "cancelled"
    running.wait_for_workers(running.start_worker("sim"))
    for _ in range(3):
        assert call(running, "POST", PREDICT, json={"prompt": "a seven"}).status_code == 200
    for number, job in enumerate(jobs):
        assert ended(running, job)["state"] == "done"
        assert pictures(running, job) == [expected(2 * number, 8), expected(2 * number + 1, 8)]


def test_too_many_jobs_are_refused(server: StartServer) -> None:
    running = server(workers=0, jobs=JOBS | {"max_unfinished": 2})
    first = accepted(post(running, key="k"))
    accepted(post(running))
    assert accepted(post(running, key="k")) == first, "which is not a new one"
    full = post(running)
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    call(running, "DELETE", f"/v1/jobs/{first}")
    accepted(post(running))


def test_results_go_when_their_time_is_over(server: StartServer) -> None:
    running = server(jobs=JOBS | {"keep_s": 1.0})
    job = accepted(post(running, key="k"))
    wait_until(lambda: call(running, "GET", f"/v1/jobs/{job}").status_code == 404, "the job is forgotten")
    assert accepted(post(running, seed=8, key="k")) != job, "and its key is free"


def test_the_oldest_results_go_when_there_are_too_many(server: StartServer) -> None:
    running = server(jobs=JOBS | {"max_bytes": 1 << 16})
    jobs = [accepted(post(running, seed)) for seed in range(40)]
    for job in jobs[-3:]:
        ended(running, job)
    wait_until(lambda: call(running, "GET", f"/v1/jobs/{jobs[0]}").status_code == 404, "the oldest is forgotten")
    left = [view["id"] for view in call(running, "GET", "/v1/jobs?limit=100").json()["data"]]
    assert 0 < len(left) < 40
    assert len(pictures(running, left[0])) == 1


def test_a_full_disk_stops_jobs_and_nothing_else(server: StartServer) -> None:
    models = {"sim": sim(), "absent": sim()}
    running = server(models, {"sim": 1}, jobs=JOBS | {"max_file_bytes": 1 << 20})
    large: dict[str, Any] = {"model": "absent", "size": "256x256", "image": data_url(png(256, 256))}
    jobs: list[str] = []
    while (answered := post(running, **large)).status_code == 202:
        jobs.append(accepted(answered))
        assert len(jobs) < 10, "each takes 192 KiB of a MiB"
    assert (answered.status_code, answered.json()["error"]["code"]) == (503, "storage_full")
    assert int(answered.headers["retry-after"]) >= 1
    for headers in ({}, {"idempotency-key": "k"}):
        assert call(running, "POST", PREDICT, json={"prompt": "a seven"}, headers=headers).status_code == 200
    for job in jobs[:2]:
        assert call(running, "DELETE", f"/v1/jobs/{job}").status_code == 200
    accepted(post(running, **large))
    assert ended(running, accepted(post(running)))["state"] == "done"


def test_a_folder_that_cannot_be_used_stops_jobs_until_it_can(server: StartServer) -> None:
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
    assert ended(running, accepted(post(running)))["state"] == "done"


# ---- webhooks


class Receiver:
    """A webhook's receiver on this machine; `status` says what it answers to the n-th message of a job."""

    def __init__(self, status: Callable[[int], int]) -> None:
        self._status = status
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.strayed = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/hook", self._hear)
        app.router.add_route("*", "/elsewhere", self._stray)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    def of(self, job: str) -> list[tuple[dict[str, str], bytes]]:
        return [(headers, body) for headers, body in self.heard if headers["webhook-id"] == job]

    async def _hear(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.heard.append((headers, await request.read()))
        status = self._status(len(self.of(headers["webhook-id"])))
        return web.Response(status=status, headers={"location": "/elsewhere"} if status == 307 else None)

    async def _stray(self, request: web.Request) -> web.Response:
        self.strayed += 1
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


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), what


SECRET = "a secret of many letters"


async def test_ends_are_told_until_they_are_received_and_signed(server: StartServer, receivers: Any) -> None:
    receiver = await receivers(lambda n: {1: 500, 2: 307}.get(n, 204))
    hook = {"url": f"http://127.0.0.1:{receiver.port}/hook", "secret": SECRET}
    running = await asyncio.to_thread(server, jobs=JOBS)
    done = accepted(await asyncio.to_thread(post, running, webhook=hook))
    failed = accepted(await asyncio.to_thread(post, running, webhook=hook, prompt="sim:fail"))
    await until(lambda: min(len(receiver.of(job)) for job in (done, failed)) >= 3, "three attempts for each")
    for job, state in ((done, "done"), (failed, "failed")):
        for headers, body in receiver.of(job):
            signed = f"{job}.{headers['webhook-timestamp']}.".encode() + body
            digest = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{digest}"
            assert json.loads(body) == await asyncio.to_thread(look, running, job)
            assert json.loads(body)["state"] == state
    assert receiver.strayed == 0, "no redirect is followed"
    await asyncio.sleep(0.5)
    assert Counter(headers["webhook-id"] for headers, _ in receiver.heard) == {done: 3, failed: 3}, "then it is quiet"
    assert SECRET not in running.log("loadbalancer")


async def test_a_webhook_is_tried_again_after_a_restart(server: StartServer, receivers: Any) -> None:
    answers = {"status": 503}
    receiver = await receivers(lambda _: answers["status"])
    running = await asyncio.to_thread(server, jobs=JOBS)
    hook = {"url": f"http://127.0.0.1:{receiver.port}/hook"}
    job = accepted(await asyncio.to_thread(post, running, webhook=hook))
    await until(lambda: receiver.of(job), "the first attempt")
    await asyncio.to_thread(end_balancer, running, signal.SIGKILL)
    refused = len(receiver.of(job))
    answers["status"] = 200
    await asyncio.to_thread(start_balancer, running)
    await until(lambda: len(receiver.of(job)) > refused, "another attempt")
    headers, body = receiver.of(job)[-1]
    assert "webhook-signature" not in headers, "no secret was given"
    assert json.loads(body)["state"] == "done"


async def test_names_of_private_addresses_get_nothing(server: StartServer, receivers: Any) -> None:
    receiver = await receivers(lambda _: 200)
    running = await asyncio.to_thread(server, jobs=JOBS | {"webhook_private": False, "webhook_attempts": 2})
    hook = {"url": f"http://localhost:{receiver.port}/hook"}
    job = accepted(await asyncio.to_thread(post, running, webhook=hook))
    await until(lambda: "given up" in running.log("loadbalancer"), "the last attempt")
    assert not receiver.heard
    assert (await asyncio.to_thread(look, running, job))["state"] == "done"
    direct = {"url": f"http://127.0.0.1:{receiver.port}/hook"}
    assert (await asyncio.to_thread(post, running, webhook=direct)).status_code == 400
