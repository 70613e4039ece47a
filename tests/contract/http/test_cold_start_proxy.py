"""`cold_start_proxy`: an upstream server answers while a model has no worker. It is real, or a stub that fails."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import ImageOps

from loadbalancer.access.api_keys import fingerprint
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, free_port, launch, stop, wait_until
from tests.conftest import StartServer
from tests.support.images import file, half, make_image, png
from wire.inputs import ImageInputs
from worker.engines.sim import expected_image

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
KEY = "sk-far-secret"
BODY = {"prompt": "a seven", "seed": 7}
PROXIED = "x-muster-proxied"
#: An image with these takes minutes, so only a disconnect ends it.
SLOW = {"t0_s": 0.1, "max_batch_size": 1, "defaults": {"size": "64x64", "steps": 600}}


def expected(sources: tuple[bytes, ...] = (), **changes: Any) -> bytes:
    plain: dict[str, Any] = {"prompt": "a seven", "seed": 7, "width": 64, "height": 64, "steps": 8}
    plain |= {"guidance_scale": 3.0, "scheduler": "ddim"}
    return expected_image(ImageInputs(**plain | changes), sources)


def images(answered: httpx.Response) -> list[bytes]:
    assert answered.status_code == 200, answered.text
    return [base64.b64decode(image["b64_json"]) for image in answered.json()["data"]]


def metric_value(server: Server, metric: str) -> float:
    lines = httpx.get(f"{server.base_url}/metrics", timeout=PATIENCE_S).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(metric))


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The upstream server. It requires a key and accepts at most two images."""
    folder = tmp_path_factory.mktemp("far")
    keys = folder / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": {"near": {"sha256": fingerprint(KEY)}}}))
    models = {"big": sim(), "slow": sim(**SLOW)}
    with running(folder / "data", models, server={"max_n": 2}, access={"keys_file": str(keys)}) as server:
        yield server


@pytest.fixture(scope="module")
def near(far: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server without workers, except a slow one of `busy`."""
    url = f"{far.base_url}/v1"
    keyed = {"url": url, "api_key_env": "FAR_KEY"}
    models = {
        "m": sim(cold_start_proxy=keyed | {"model": "big"}),
        "slow": sim(cold_start_proxy=keyed, defaults=SLOW["defaults"]),
        "busy": sim(cold_start_proxy=keyed | {"model": "big", "max_wait_s": 5}, t0_s=0.1, max_batch_size=1),
        "keyless": sim(cold_start_proxy={"url": url, "model": "big"}),
        "dead": sim(cold_start_proxy={"url": f"http://127.0.0.1:{free_port()}"}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAR_KEY", KEY)
        with running(tmp_path_factory.mktemp("near"), models, {"busy": 1}, server={"max_n": 5}) as server:
            yield server
            assert "Traceback" not in server.log("loadbalancer")
            assert KEY not in server.log("loadbalancer")


def test_openai_client_gets_image_from_upstream(near: Server) -> None:
    answered, forwarded = (
        metric_value(near, "muster_proxied_requests_total"),
        metric_value(near, 'muster_tasks_proxied_total{model="m"}'),
    )
    with openai.OpenAI(base_url=f"{near.base_url}/v1", api_key="the client's own", max_retries=0) as sdk:
        raw = sdk.images.with_raw_response.generate(model="m", prompt="a seven", n=2, extra_body={"seed": 7})
    assert raw.headers[PROXIED] == "true"
    assert [base64.b64decode(i.b64_json or "") for i in raw.parse().data or ()] == [expected(), expected(seed=8)]
    counter = 'muster_proxied_requests_total{model="m",outcome="answered"}'
    wait_until(lambda: metric_value(near, counter) == answered + 1, "the count of the request")
    assert metric_value(near, 'muster_tasks_proxied_total{model="m"}') == forwarded + 2
    wait_until(lambda: not any(stats.proxied_in_flight for stats in near.snapshot().models), "nothing in flight")
    [stats] = [model for model in near.snapshot().models if model.model == "m"]
    assert stats.queued == 0
    assert stats.arrivals_short_window >= 2, "they are arrivals of the model all the same: its workers are needed"


def test_upstream_events_are_streamed(near: Server) -> None:
    body = BODY | {"model": "m", "stream": True, "partial_images": 1}
    with httpx.stream("POST", f"{near.base_url}{GENERATE}", json=body, timeout=PATIENCE_S) as answered:
        assert answered.headers[PROXIED] == "true"
        assert answered.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answered.iter_lines() if line.startswith("data: {")]
    kinds = [event["type"] for event in events]
    assert "image_generation.partial_image" in kinds
    assert kinds[-1] == "image_generation.completed"
    assert base64.b64decode(events[-1]["b64_json"]) == expected()


def test_form_is_proxied_with_its_files(near: Server) -> None:
    files = {"image[]": ("a.png", png(), "image/png"), "mask": ("m.png", file(half("LA")), "image/png")}
    fields = {"model": "m", "prompt": "a seven", "seed": "7"}
    answered = httpx.post(f"{near.base_url}{EDIT}", files=files, data=fields, timeout=PATIENCE_S)
    assert answered.headers[PROXIED] == "true"
    mask = ImageOps.invert(half("L")).tobytes()  # transparent areas are drawn again
    assert images(answered) == [expected((make_image().tobytes(), mask), mode="inpaint")]


@pytest.mark.parametrize(
    ("change", "status", "param", "there"),
    [
        ({"size": "7x7"}, 400, "size", False),
        ({"n": 6}, 400, "n", False),
        # The upstream rejects what this server allows: the client gets the upstream's error.
        ({"n": 3}, 400, "n", True),
    ],
)
def test_upstream_client_error_is_returned(
    near: Server, change: dict[str, Any], status: int, param: str, there: bool
) -> None:
    asked, rejected = (
        metric_value(near, "muster_proxied_requests_total"),
        metric_value(near, 'muster_proxied_requests_total{model="m",outcome="refused"}'),
    )
    answered = httpx.post(f"{near.base_url}{GENERATE}", json=BODY | {"model": "m"} | change, timeout=PATIENCE_S)
    assert (answered.status_code, answered.json()["error"]["param"]) == (status, param)
    assert metric_value(near, "muster_proxied_requests_total") == asked + there
    assert metric_value(near, 'muster_proxied_requests_total{model="m",outcome="refused"}') == rejected + there


def test_wrong_upstream_key_returns_502(near: Server) -> None:
    headers = {"authorization": f"Bearer {KEY}"}  # the right key, but sent by a client
    answered = httpx.post(
        f"{near.base_url}{GENERATE}", json=BODY | {"model": "keyless"}, headers=headers, timeout=PATIENCE_S
    )
    assert (answered.status_code, answered.json()["error"]["code"]) == (502, "proxy_failed")
    assert metric_value(near, 'muster_proxied_requests_total{model="keyless",outcome="failed"}') == 1


def test_forwarded_request_is_not_forwarded_again(near: Server) -> None:
    body = BODY | {"model": "m", "timeout_s": 1}
    headers = {"x-muster-forwarded": "1"}
    answered = httpx.post(f"{near.base_url}{GENERATE}", json=body, headers=headers, timeout=PATIENCE_S)
    assert (answered.status_code, answered.json()["error"]["code"]) == (504, "timeout")
    assert PROXIED not in answered.headers


def test_jobs_and_predict_are_not_proxied(near: Server) -> None:
    asked = metric_value(near, "muster_proxied_requests_total")
    with httpx.Client(base_url=near.base_url, timeout=PATIENCE_S) as http:
        job = http.post("/v1/jobs", json={"path": GENERATE, "body": BODY | {"model": "m"}}).json()
        assert http.post("/predict", json=BODY | {"model": "m", "timeout_s": 1}).status_code == 504
        assert http.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"
        assert http.delete(f"/v1/jobs/{job['id']}").is_success
    assert metric_value(near, "muster_proxied_requests_total") == asked


def test_ready_worker_is_used_unless_wait_exceeds_max_wait_s(near: Server) -> None:
    url = f"{near.base_url}{GENERATE}"
    body = BODY | {"model": "busy", "num_inference_steps": 20}
    assert PROXIED not in httpx.post(url, json=body, timeout=PATIENCE_S).headers, "two seconds, and nobody waits"
    long = BODY | {"model": "busy", "num_inference_steps": 600, "stream": True}
    with httpx.stream("POST", url, json=long, timeout=PATIENCE_S) as first:
        assert PROXIED not in first.headers
        wait_until(lambda: metric_value(near, 'muster_running_tasks{model="busy"}') == 1, "the long one")
        answered = httpx.post(url, json=body, timeout=PATIENCE_S)
    assert answered.headers[PROXIED] == "true"
    assert images(answered) == [expected(steps=20)]


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_cancels_upstream_request(near: Server, far: Server, stream: bool) -> None:
    def under_way() -> int:
        return sum(stats.queued + stats.running for stats in far.snapshot().models)

    async def ask() -> None:
        async with (
            httpx.AsyncClient(base_url=near.base_url, timeout=PATIENCE_S) as http,
            http.stream("POST", GENERATE, json=BODY | {"model": "slow", "stream": stream}) as answered,
        ):
            await answered.aread()

    ended = metric_value(near, 'muster_proxied_requests_total{model="slow"')

    async def hang_up() -> None:
        asking = asyncio.create_task(ask())
        await asyncio.to_thread(wait_until, lambda: under_way() == 1, "the work there")
        [slow] = [stats for stats in near.snapshot().models if stats.model == "slow"]
        assert slow.proxied_in_flight == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(hang_up())
    wait_until(lambda: under_way() == 0, "its end")
    counter = 'muster_proxied_requests_total{model="slow",outcome="cancelled"}'
    wait_until(lambda: metric_value(near, counter) == ended + 1, "its outcome")
    wait_until(lambda: not any(stats.proxied_in_flight for stats in near.snapshot().models), "nothing elsewhere")


def test_unreachable_upstream_queues_request_locally(near: Server) -> None:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(base_url=near.base_url, timeout=PATIENCE_S) as http:
            asking = asyncio.create_task(http.post(GENERATE, json=BODY | {"model": "dead"}))
            await asyncio.to_thread(
                wait_until,
                lambda: metric_value(near, 'muster_queue_tasks{model="dead"}') == 1,
                "its place in the queue",
            )
            await asyncio.to_thread(near.start_worker, "dead")
            return await asking

    answered = asyncio.run(ask())
    assert images(answered) == [expected()]
    assert PROXIED not in answered.headers
    assert metric_value(near, 'muster_proxied_requests_total{model="dead",outcome="queued"}') == 1
    [stats] = [model for model in near.snapshot().models if model.model == "dead"]
    assert stats.arrivals_long_window == 1, "it is one arrival, although it was tried elsewhere first"


async def test_stop_does_not_wait_for_upstream(
    far: Server, server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    proxy = {"url": f"{far.base_url}/v1", "api_key_env": "FAR_KEY"}
    slow = sim(cold_start_proxy=proxy, defaults=SLOW["defaults"])
    own = await asyncio.to_thread(server, {"slow": slow}, workers=0, server={"shutdown_s": 1})
    async with httpx.AsyncClient(base_url=own.base_url, timeout=PATIENCE_S) as http:
        asking = asyncio.create_task(http.post(GENERATE, json=BODY))
        await asyncio.to_thread(wait_until, lambda: own.snapshot().models[0].proxied_in_flight == 1, "the work there")
        assert await asyncio.to_thread(stop, own.balancer) == 0
        assert (await asking).json()["error"]["code"] == "shutting_down"
    assert "Traceback" not in own.log("loadbalancer")


def test_missing_upstream_key_fails_start(tmp_path: Path) -> None:
    proxy = {"url": "http://127.0.0.1:1/v1", "api_key_env": "NO_SUCH_KEY"}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"models": {"m": sim(cold_start_proxy=proxy)}}))
    options = ["--config", str(config), "--port", str(free_port())]
    assert launch("loadbalancer", tmp_path, *options, log="balancer").wait(PATIENCE_S) == 2
    output = (tmp_path / "balancer.log").read_text()
    assert "models.m.cold_start_proxy.api_key_env names NO_SUCH_KEY, which is not set in the environment" in output


# ---- an upstream that fails


async def misbehave(request: web.Request) -> web.StreamResponse:
    """Fail as the prompt says: with a status, or by closing the connection."""
    asked = await request.json()
    match asked["prompt"].split():
        case ["status", status]:
            body = {"error": {"message": "Theirs.", "type": "t", "param": "prompt", "code": "theirs"}}
            return web.json_response(body, status=int(status), headers={"location": "/v1/elsewhere"})
        case ["words", status]:
            return web.Response(status=int(status), text="no JSON at all")
        case ["page"]:
            return web.Response(text="<html>", content_type="text/html")
        case ["hang"]:
            await asyncio.sleep(PATIENCE_S)
    answer = web.StreamResponse(
        headers={"content-type": "text/event-stream" if "stream" in asked else "application/json"}
    )
    await answer.prepare(request)
    await answer.write(b'event: progress\ndata: {"type": "progress"}\n\ndata: {"half')
    assert request.transport is not None
    request.transport.abort()
    return answer


@pytest.fixture(scope="module")
def strange_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def puzzled(strange_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose upstream fails, or is the server itself."""
    proxy = {"url": f"{strange_url}/v1/"}
    data_dir = tmp_path_factory.mktemp("puzzled")
    with running(data_dir, {"m": sim(cold_start_proxy=proxy)}, 0) as server:
        yield server
        assert "Traceback" not in server.log("loadbalancer")


@pytest.fixture
async def strange(strange_url: str) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_post("/v1/images/generations", misbehave)
    async with TestServer(app, port=int(strange_url.rsplit(":", 1)[1])):
        yield


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("status 500", 502, "proxy_failed"),
        ("status 302", 502, "proxy_failed"),
        ("status 401", 502, "proxy_failed"),
        ("status 404", 502, "proxy_failed"),
        ("words 500", 502, "proxy_failed"),
        ("page", 502, "proxy_failed"),
        ("break off", 502, "proxy_failed"),
        ("hang", 504, "timeout"),
        ("status 504", 504, "timeout"),
        ("status 400", 400, "theirs"),
        ("status 422", 400, "theirs"),
        ("words 400", 400, "invalid_value"),
    ],
)
@pytest.mark.usefixtures("strange")
async def test_upstream_failure_has_our_error_shape(puzzled: Server, prompt: str, status: int, code: str) -> None:
    async with httpx.AsyncClient(base_url=puzzled.base_url, timeout=PATIENCE_S) as http:
        body = {"prompt": prompt} | ({"timeout_s": 2} if "hang" in prompt else {})
        answered = await http.post(GENERATE, json=body)
    assert (answered.status_code, answered.json()["error"]["code"]) == (status, code)
    assert "://" not in answered.text, "where it was asked is nobody's business"


@pytest.mark.parametrize("prompt", ["status 429", "status 503"])
@pytest.mark.usefixtures("strange")
async def test_busy_upstream_queues_request_locally(puzzled: Server, prompt: str) -> None:
    async with httpx.AsyncClient(base_url=puzzled.base_url, timeout=PATIENCE_S) as http:
        answered = await http.post(GENERATE, json={"prompt": prompt, "timeout_s": 5})
    assert answered.status_code == 504
    assert "(queued)" in answered.json()["error"]["message"]


@pytest.mark.usefixtures("strange")
async def test_interrupted_upstream_stream_ends_with_error(puzzled: Server) -> None:
    async with (
        httpx.AsyncClient(base_url=puzzled.base_url, timeout=PATIENCE_S) as http,
        http.stream("POST", GENERATE, json={"prompt": "break off", "stream": True}) as answered,
    ):
        content = await answered.aread()
    assert answered.status_code == 200
    last = content.decode().rstrip().split("\n\n")[-1]
    assert json.loads(last.split("data: ", 1)[1])["error"]["code"] == "proxy_failed"


async def test_server_as_its_own_upstream_forwards_a_single_time(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"models": {"m": sim(cold_start_proxy={"url": f"http://127.0.0.1:{port}/v1"})}}))
    balancer = launch("loadbalancer", tmp_path, "--config", str(config), "--port", str(port), log="balancer")
    server = Server(tmp_path, config, port, balancer, {})
    try:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=PATIENCE_S) as http:
            await asyncio.to_thread(wait_until, lambda: listening(server), "the balancer")
            answered = await http.post(GENERATE, json=BODY | {"timeout_s": 4})
        assert answered.status_code == 504
        assert metric_value(server, 'muster_events_total{event="submitted"}') == 1
    finally:
        server.end()


def listening(server: Server) -> bool:
    assert server.balancer.poll() is None, server.log("balancer")
    try:
        return httpx.get(f"{server.base_url}/healthz", timeout=PATIENCE_S).is_success
    except httpx.TransportError:
        return False
