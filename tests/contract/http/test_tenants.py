"""Limits per API key: one key cannot take resources beyond its share."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.images import data_url, png

MODELS = {"quick": sim(), "absent": sim(), "words": {"engine": "sim", "sim": {"task": "text"}}}
KEYS: dict[str, dict[str, Any]] = {
    "alice": {},
    "bob": {},
    "carol": {},
    "painter": {"scopes": ["images"]},
    "narrow": {"max_concurrent": 1, "requests_per_minute": 30},
    "writer": {"tokens_per_minute": 1},
}
MAX_UNFINISHED = 8
JOBS = {
    "max_unfinished": MAX_UNFINISHED,
    "max_bytes": 200_000,
    "max_response_bytes": 1 << 16,
    "webhook_private": True,
    "webhook_timeout_s": 2,
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("tenants")
    ring = {name: {"sha256": hashlib.sha256(name.encode()).hexdigest()} | options for name, options in KEYS.items()}
    (data_dir / "keys.yaml").write_text(yaml.safe_dump({"keys": ring}))
    limits = {"max_reads_per_key": 3}
    with running(data_dir, MODELS, {"quick": 1}, jobs=JOBS, server=limits) as server:
        yield server
        assert server.balancer.poll() is None, server.logs()
        assert "Traceback" not in server.log("loadbalancer"), server.log("loadbalancer")


def call(server: Server, owner: str, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {owner}"} | options.pop("headers", {})
    return httpx.request(method, f"{server.base_url}{path}", headers=headers, timeout=PATIENCE_S, **options)


def post_job(server: Server, owner: str, model: str = "absent", **body: Any) -> httpx.Response:
    wanted = {"path": "/v1/images/generations", "body": {"prompt": "a seven", "model": model} | body}
    return call(server, owner, "POST", "/v1/jobs", json=wanted)


def discard_all(server: Server, *owners: str) -> None:
    for owner in owners:
        for job in call(server, owner, "GET", "/v1/jobs?limit=100").json()["data"]:
            if job["ended_at"] is None:
                assert call(server, owner, "DELETE", f"/v1/jobs/{job['id']}").status_code == 200


def test_unfinished_jobs_are_limited_per_key(shop: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:  # concurrent requests must not pass the limit
        answers = list(pool.map(lambda _: post_job(shop, "bob"), range(20)))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(202) == MAX_UNFINISHED
    full = next(answer for answer in answers if answer.status_code == 429)
    assert full.json()["error"]["message"].startswith("No more unfinished jobs are accepted: 'bob' holds 8 of 8")
    assert int(full.headers["retry-after"]) >= 1
    assert post_job(shop, "alice").status_code == 202
    assert post_job(shop, "carol").status_code == 202, "nor do two keys shut out a third"
    assert post_job(shop, "bob").status_code == 429
    discard_all(shop, "bob")
    assert post_job(shop, "bob").status_code == 202
    discard_all(shop, "alice", "bob", "carol")


def test_refused_text_job_is_not_charged(shop: Server) -> None:
    assert [post_job(shop, "writer").status_code for _ in range(MAX_UNFINISHED)] == [202] * MAX_UNFINISHED
    job = {"path": "/v1/completions", "body": {"prompt": "a", "model": "words"}}
    refused = [call(shop, "writer", "POST", "/v1/jobs", json=job) for _ in range(2)]
    assert [answer.json()["error"]["code"] for answer in refused] == ["queue_full"] * 2, "its tokens are there"
    discard_all(shop, "writer")


def test_source_images_are_limited_per_key(shop: Server) -> None:
    picture = {"image": data_url(png(192, 192)), "size": "192x192"}  # 110,592 bytes of pixels
    assert post_job(shop, "bob", **picture).status_code == 202
    full = post_job(shop, "bob", **picture)
    assert full.status_code == 429
    assert "source images" in full.json()["error"]["message"]
    small = {"image": data_url(png()), "size": "64x64"}
    assert post_job(shop, "alice", **small).status_code == 202
    discard_all(shop, "alice", "bob")


def test_stored_responses_do_not_displace_jobs_of_others(shop: Server) -> None:
    job = post_job(shop, "bob", "quick").json()["id"]
    path = f"/v1/jobs/{job}/result"
    wait_until(lambda: call(shop, "bob", "GET", path).status_code == 200, "the result")
    body = {"prompt": "a seven", "model": "quick", "n": 4}
    for number in range(80):
        answer = call(
            shop, "painter", "POST", "/v1/images/generations", json=body, headers={"idempotency-key": f"k{number}"}
        )
        assert answer.status_code == 200

    def first_is_gone() -> bool:
        again = call(shop, "painter", "POST", "/v1/images/generations", json=body, headers={"idempotency-key": "k0"})
        return "idempotent-replayed" not in again.headers

    wait_until(first_is_gone, "the sweep")
    assert call(shop, "bob", "GET", path).status_code == 200


def test_event_streams_of_one_key_are_bounded(shop: Server) -> None:
    job = post_job(shop, "bob").json()["id"]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stream = stack.enter_context(
                httpx.stream(
                    "GET",
                    f"{shop.base_url}/v1/jobs/{job}/events",
                    headers={"authorization": "Bearer bob"},
                    timeout=PATIENCE_S,
                )
            )
            assert stream.status_code == 200
        full = call(shop, "bob", "GET", f"/v1/jobs/{job}")
        assert full.status_code == 429
        assert "'bob': 3 GET and DELETE requests are in progress" in full.json()["error"]["message"]
        assert call(shop, "alice", "GET", "/v1/jobs").status_code == 200
    wait_until(lambda: call(shop, "bob", "GET", "/v1/jobs").status_code == 200, "the streams to end")
    discard_all(shop, "bob")


@pytest.mark.parametrize("path", ["", "/result", "/events"])
def test_jobs_of_other_keys_return_404(shop: Server, path: str) -> None:
    job = post_job(shop, "bob").json()["id"]
    answers = [call(shop, "alice", "GET", f"/v1/jobs/{each}{path}") for each in (job, "job_unknown")]
    messages = [answer.json()["error"]["message"] for answer in answers]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert messages[0].replace(job, "job_unknown") == messages[1]
    discard_all(shop, "bob")
