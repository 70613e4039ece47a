"""Traces of real servers, as a collector receives them: complete and in order."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="pip install -e '.[otel]'")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install -e '.[otel]'")

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, launch, stop, wait_until
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_receiver

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER_KIND, INTERNAL, CLIENT = 2, 1, 3
#: An image takes eight seconds, so that none is finished before its worker is killed at its first preview.
SLOW = sim(t0_s=0.1, defaults={"size": "64x64", "steps": 80, "guidance_scale": 3.0, "scheduler": "ddim"})
MODELS = {
    "slow": SLOW | {"batching": {"checkpoint_every": 5}, "limits": {"max_steps": 100}},
    "words": {"engine": "sim", "sim": {"task": "text", "t0_s": 0.002, "load_s": 0.0}},
    "absent": sim(),
}
JOBS = {"checkpoint_every_s": 0.1, "webhook_private": True}


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as received:
        yield received


@pytest.fixture(scope="module")
def server(collector: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        workers = {"slow": 2, "words": 1}
        folder = tmp_path_factory.mktemp("traced")
        logs = {"format": "json", "access": True}
        cloud = sim() | {"cold_start_proxy": {"url": f"http://127.0.0.1:{collector.port}"}}
        with running(
            folder, MODELS | {"cloud": cloud}, workers, jobs=JOBS, queue={"max_tasks": 20}, logging=logs
        ) as made:
            yield made


def post(server: Server, path: str, trace: str, /, **body: object) -> httpx.Response:
    headers = {"traceparent": f"00-{trace}-{CALLER}-01", "x-request-id": f"r-{trace[:4]}"}
    return httpx.post(f"{server.base_url}{path}", json=body, headers=headers, timeout=PATIENCE_S)


def check_tree(spans: list[ReceivedSpan], parent: str = CALLER) -> None:
    """One outer span, and in it all others, each in its time."""
    first = spans[0]
    assert (first.parent, {span.parent for span in spans[1:]}) == (parent, {first.id})
    assert all(first.start <= span.start <= span.end <= first.end for span in spans)


def test_image_that_moved_between_two_workers(server: Server, collector: OtlpReceiver) -> None:
    body = {"model": "slow", "prompt": "secret words", "stream": True, "partial_images": 3}
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    killed = ""
    with httpx.stream(
        "POST", f"{server.base_url}/v1/images/generations", json=body, headers=headers, timeout=PATIENCE_S
    ) as response:
        assert response.headers["traceresponse"].startswith(f"00-{TRACE}-")
        for line in response.iter_lines():
            if "partial_image" in line and not killed:
                [killed] = [each.worker for each in server.snapshot().workers if each.assigned + each.running]
                server.workers[killed].kill()
    spans = collector.trace(TRACE, "POST /v1/images/generations", "queue", "queue", "worker", "worker", "render")
    check_tree(spans)
    outer, receive, queue, first, again, second, render = spans
    assert [span.name for span in spans[1:]] == ["receive", "queue", "worker", "queue", "worker", "render"]
    assert receive.end == queue.start <= queue.end == first.start < first.end == again.start
    assert again.end == second.start < second.end == render.start <= render.end == outer.end
    assert (first.attributes["muster.worker"], first.attributes["muster.outcome"]) == (killed, "worker_lost")
    assert second.attributes["muster.worker"] in set(server.workers) - {killed}
    assert second.attributes["muster.outcome"] == "done"
    assert second.attributes["muster.resumed_at"] > 0
    assert (first.links, second.links) == ([], [first.id])
    assert outer.kind == SERVER_KIND
    assert outer.attributes["gen_ai.output.type"] == "image"
    assert not any("secret" in str(span) for span in spans)
    assert collector.services == {"muster"}
    server.wait_for_workers(server.start_worker("slow"))


def test_text_stream(server: Server, collector: OtlpReceiver) -> None:
    trace = "a" * 32
    message = {"role": "user", "content": "secret words"}
    response = post(server, "/v1/chat/completions", trace, model="words", messages=[message], stream=True, max_tokens=9)
    assert response.text.endswith("data: [DONE]\n\n")
    spans = collector.trace(trace, "POST /v1/chat/completions", "worker", "render")
    check_tree(spans)
    assert [span.name for span in spans[1:]] == ["receive", "queue", "worker", "render"]
    attributes = spans[0].attributes
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "words"
    assert attributes["gen_ai.usage.output_tokens"] == 9
    assert attributes["gen_ai.usage.input_tokens"] > 0
    first_token_s = attributes["gen_ai.latency.time_to_first_token"]
    assert 0 < first_token_s <= (spans[0].end - spans[0].start) / 1e9
    assert attributes["muster.request_id"] == response.headers["x-request-id"] == "r-aaaa"
    assert attributes["http.response.body.size"] == len(response.content)
    assert not any("secret" in str(span) for span in spans)


def test_each_request_has_a_line_in_the_log(server: Server) -> None:
    trace, message = "9" * 32, {"role": "user", "content": "secret words"}
    post(server, "/v1/chat/completions", trace, model="words", messages=[message], max_tokens=9)
    post(server, "/v1/chat/completions", trace, model="words", messages=[])

    def own_lines() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in server.log("loadbalancer").splitlines()]
        return [line for line in lines if line.get("request_id") == "r-9999"]

    wait_until(lambda: len(own_lines()) == 2, "two lines of the access log")
    answered, refused = own_lines()
    assert answered["logger"] == "loadbalancer.access"
    assert (answered["method"], answered["path"], answered["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (answered["model"], answered["owner"], answered["output_tokens"]) == ("words", "anonymous", 9)
    assert 0 < answered["ran_s"] <= answered["duration_s"]
    assert answered["trace_id"] == refused["trace_id"] == trace
    assert (refused["status"], refused["error"]) == (400, "invalid_value")
    logs = server.logs()
    assert "secret" not in logs
    workers = [line for name in server.workers for line in server.log(name).splitlines()]
    assert {json.loads(line)["program"] for line in workers} == {"worker"}


def test_refused_and_cancelled_requests(server: Server, collector: OtlpReceiver) -> None:
    refused = post(server, "/v1/images/generations", "b" * 32, model="slow", prompt="x", n=200)
    assert refused.status_code == 400
    (outer,) = collector.trace("b" * 32, "POST /v1/images/generations")
    assert (outer.attributes["http.response.status_code"], outer.is_error) == (400, False)
    assert outer.attributes["error.type"] == refused.json()["error"]["code"]

    full = [post(server, "/v1/images/generations", "c" * 32, model="absent", prompt="x", n=10, timeout_s=0.2)]
    assert full[0].status_code == 504
    spans = collector.trace("c" * 32, "POST /v1/images/generations", *["queue"] * 10)
    check_tree(spans)
    assert {span.attributes["muster.outcome"] for span in spans if span.name == "queue"} == {"expired"}
    assert spans[0].is_error


def test_only_what_creates_or_ends_something_is_traced(server: Server, collector: OtlpReceiver) -> None:
    for _ in range(3):
        assert "traceresponse" not in httpx.get(f"{server.base_url}/v1/models", timeout=PATIENCE_S).headers
    headers = {"traceparent": f"00-{'d' * 32}-{CALLER}-01"}
    httpx.get(f"{server.base_url}/v1/models", headers=headers, timeout=PATIENCE_S)
    unsampled = {"traceparent": f"00-{'e' * 32}-{CALLER}-00"}
    echoed = httpx.get(f"{server.base_url}/v1/models", headers=unsampled, timeout=PATIENCE_S).headers["traceresponse"]
    assert echoed.endswith("-00")
    assert [span.name for span in collector.trace("d" * 32, "GET /v1/models")] == ["GET /v1/models"]
    assert len([span for span in collector.spans if span.name == "GET /v1/models"]) == 1


def test_server_behind_a_cold_start_proxy_gets_the_context(server: Server, collector: OtlpReceiver) -> None:
    trace = "8" * 32
    answered = post(server, "/v1/images/generations", trace, model="cloud", prompt="x")
    assert answered.status_code == 502  # it has answered no JSON
    spans = collector.trace(trace, "POST /v1/images/generations", "proxy")
    check_tree(spans)
    assert (spans[1].kind, spans[1].attributes["muster.outcome"], spans[1].is_error) == (CLIENT, "failed", True)
    sent = collector.headers["/images/generations"]
    assert sent["traceparent"] == f"00-{trace}-{spans[1].id}-01"


def test_job_goes_on_in_its_trace_after_a_restart(server: Server, collector: OtlpReceiver) -> None:
    trace, hook = "f" * 32, {"url": f"http://127.0.0.1:{collector.port}/hook"}
    body = {"model": "slow", "prompt": "secret words"}
    created = post(server, "/v1/jobs", trace, path="/v1/images/generations", body=body, webhook=hook)
    assert created.status_code == 202
    job = created.json()["id"]
    wait_until(
        lambda: any(worker.assigned + worker.running for worker in server.snapshot().workers), "the start of the job"
    )
    collector.trace(trace, "POST /v1/jobs")  # what it has not sent yet would be lost with it
    stop(server.balancer, signal.SIGKILL)
    options = ("--config", str(server.config), "--port", str(server.port))
    server.balancer = launch("loadbalancer", server.data_dir, *options, log="loadbalancer")
    spans = collector.trace(trace, "POST /v1/jobs", "job", "worker", "webhook")
    own = {span.name: span for span in spans}
    assert own["job"].parent == own["POST /v1/jobs"].id
    assert own["worker"].parent == own["webhook"].parent == own["job"].id
    assert own["job"].start <= own["worker"].start <= own["worker"].end <= own["job"].end <= own["webhook"].end
    assert own["job"].attributes["muster.job"] == job
    assert own["job"].attributes["muster.request_id"] == "r-ffff"
    assert collector.headers["/hook"]["traceparent"] == f"00-{trace}-{own['webhook'].id}-01"
    assert own["webhook"].kind == CLIENT
    view = json.loads(httpx.get(f"{server.base_url}/v1/jobs/{job}", timeout=PATIENCE_S).content)
    assert view["state"] == "done"
    assert not any("secret" in str(span) for span in spans)
