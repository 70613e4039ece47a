"""Health, models, metrics and documentation of a server, and how it starts and stops."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from scripts.harness.balancer import Server, sim
from scripts.harness.processes import PATIENCE_S, ROOT, free_port, launch, stop, wait_until
from scripts.monitoring.catalog import families
from tests.conftest import StartServer
from tests.contract.conftest import LORAS

GENERATE = "/v1/images/generations"
SLOW = {"sim": sim(t0_s=0.1, defaults={"size": "64x64", "steps": 600})}


def test_health_and_readiness(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    unready = http.get("/readyz")
    assert unready.status_code == 503
    assert unready.json()["error"]["message"] == "No worker is ready for: absent."


def test_readyz_waits_for_a_worker_of_each_model(server: StartServer) -> None:
    started = server({"one": sim(), "two": sim()}, workers={"one": 1})
    assert httpx.get(f"{started.base_url}/readyz", timeout=PATIENCE_S).status_code == 503
    started.wait_for_workers(started.start_worker("two"))
    assert httpx.get(f"{started.base_url}/readyz", timeout=PATIENCE_S).json() == {"status": "ready"}


def test_models(shared: Server, http: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0) as sdk:
        listed = list(sdk.models.list())
        one = sdk.models.retrieve("slow")
    assert [model.id for model in listed] == ["quick", "slow", "absent", "echo", "words"]
    assert (one.id, one.object, one.owned_by) == ("slow", "model", "muster")
    card = http.get("/v1/models/absent").json()
    assert (card["engine"], card["ready"], card["workers"]) == ("sim", False, 0)
    assert card["defaults"] == {
        "size": "64x64",
        "steps": 8,
        "guidance_scale": 3.0,
        "scheduler": "ddim",
        "strength": 0.8,
    }
    assert card["limits"]["max_pixels"] == 65536
    assert card["limits"]["max_n"] == 5
    assert http.get("/v1/models/quick").json()["ready"] is True


def test_models_list_engine_capabilities(http: httpx.Client) -> None:
    unknown = http.get("/v1/models/absent").json()
    assert [unknown[name] for name in ("pipeline", "batching", "checkpoints", "reproducible")] == [None] * 4
    assert unknown["modes"] == unknown["loras"] == unknown["curves"] == []
    assert http.post(GENERATE, json={"prompt": "a seven", "n": 2}).status_code == 200
    card = http.get("/v1/models/quick").json()
    assert (card["pipeline"], card["batching"]) == ("simulated", "sim")
    assert card["modes"] == ["text", "image", "inpaint"]
    assert card["checkpoints"] is card["reproducible"] is True
    assert card["loras"] == LORAS
    wait_until(lambda: bool(http.get("/v1/models/quick").json()["curves"]), "a measured curve")
    curve = next(each for each in http.get("/v1/models/quick").json()["curves"] if each["size"] == "64x64")
    assert curve["cap"] >= 1
    for batch, seconds in curve["points"]:
        assert batch >= 1
        assert seconds > 0


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ("abc-1.2_3", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ("a\tb", False),
        ("é", False),
        ("", False),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/healthz"), ("GET", "/nothing"), ("POST", "/predict")])
def test_responses_carry_a_request_id(http: httpx.Client, method: str, path: str, own: str, kept: bool) -> None:
    answered = http.request(method, path, headers=[(b"x-request-id", own.encode())])
    told = answered.headers["x-request-id"]
    assert (told == own) is kept
    assert told.isascii()
    assert 1 <= len(told) <= 128


def samples(http: httpx.Client) -> dict[str, float]:
    """Return every sample of `/metrics` by name and labels."""
    answered = http.get("/metrics")
    assert answered.headers["content-type"].startswith("text/plain")
    return {
        f"{sample.name} {' '.join(sample.labels.values())}".strip(): sample.value
        for family in text_string_to_metric_families(answered.text)
        for sample in family.samples
    }


def test_metrics(shared: Server, http: httpx.Client) -> None:
    wait_until(lambda: all(model.queued == model.running == 0 for model in shared.snapshot().models), "idle models")
    before = samples(http)
    assert http.post(GENERATE, json={"prompt": "a seven", "n": 3, "num_inference_steps": 5}).status_code == 200
    assert http.post(GENERATE, json={"prompt": ""}).status_code == 400
    after = samples(http)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown(f"muster_http_requests_total {GENERATE} 200") == 1
    assert grown(f"muster_http_requests_total {GENERATE} 400") == 1
    assert grown(f"muster_http_request_duration_seconds_count {GENERATE}") == 2
    assert grown("muster_queue_wait_seconds_count quick") == 3
    assert grown("muster_run_seconds_count quick") == 3
    assert grown("muster_events_total done") == 3
    assert after["muster_workers quick ready"] == 1
    assert after["muster_workers absent ready"] == 0
    assert after["muster_queue_tasks quick"] == 0
    assert after["muster_worker_slots sim:0 quick quick-0"] == 4

    def rows() -> bool:  # the worker sends its counters with the next heartbeat
        return samples(http)["muster_worker_rows_total sim:0 quick quick-0"] >= 15

    wait_until(rows, "15 rows in the worker's counters")


def test_every_metric_is_in_the_list(http: httpx.Client) -> None:
    found = {family.name for family in text_string_to_metric_families(http.get("/metrics").text)}
    assert found <= {family.name.removesuffix("_total") for family in families().values()}


def test_metrics_in_openmetrics_format(http: httpx.Client) -> None:
    accept = "application/openmetrics-text;version=1.0.0"
    answered = http.get("/metrics", headers={"accept": accept})
    assert answered.headers["content-type"].startswith("application/openmetrics-text")
    assert answered.text.endswith("# EOF\n")


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_documentation(http: httpx.Client) -> None:
    assert "swagger-ui" in http.get("/docs").text
    answer = http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert http.head("/openapi.json").headers["content-length"] == str(len(answer.content))
    document = answer.json()
    schemas = document["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in references(document)} <= schemas.keys()
    documented = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert documented == {
        ("post", GENERATE),
        ("post", "/v1/images/edits"),
        ("post", "/predict"),
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("post", "/v1/responses"),
        ("post", "/v1/embeddings"),
        ("post", "/v1/jobs"),
        ("get", "/v1/jobs"),
        ("get", "/v1/jobs/{job}"),
        ("delete", "/v1/jobs/{job}"),
        ("get", "/v1/jobs/{job}/result"),
        ("get", "/v1/jobs/{job}/events"),
        ("get", "/v1/results/{name}"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model}"),
        ("post", "/v1/models/{model}:predict"),
        ("post", "/v1/models/echo:predict"),
        ("post", "/echo"),
        ("post", "/v2/models/{model}/infer"),
        ("get", "/v2/models/{model}"),
        ("get", "/v2/models/{model}/ready"),
        ("get", "/v2"),
        ("get", "/v2/health/live"),
        ("get", "/v2/health/ready"),
        ("get", "/healthz"),
        ("get", "/readyz"),
        ("get", "/metrics"),
        ("get", "/internal/controller"),
        ("get", "/internal/decisions"),
        *(("post", f"/internal/{order}") for order in ("scale", "pause", "resume", "reload", "drain", "restart")),
    }
    own = document["paths"]["/echo"]["post"]
    assert own["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/echo.Input"}
    for name in ("ImageRequest", "EditRequest", "PredictRequest", "LoraRequest", "JobRequest", "WebhookRequest"):
        assert all(field.get("description") for field in schemas[name]["properties"].values())
    assert document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"] == {
        "multipart/form-data": {"schema": {"$ref": "#/components/schemas/EditRequest"}},
        "application/json": {"schema": {"$ref": "#/components/schemas/JsonEditRequest"}},
    }
    assert schemas["EditRequest"]["required"] == ["prompt", "image"]
    assert schemas["EditRequest"]["properties"]["image"]["format"] == "binary"
    for name, path in (("ImageRequest", GENERATE), ("PredictRequest", "/predict")):
        for example in schemas[name]["examples"]:
            assert http.post(path, json=example | {"model": "quick"}).status_code == 200
    for example in schemas["JobRequest"]["examples"]:
        assert http.post("/v1/jobs", json=example | {"body": example["body"] | {"model": "quick"}}).status_code == 202


def test_responses_match_the_openapi_document(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    for name, answered in (
        ("ImagesAnswer", http.post(GENERATE, json={"prompt": "a seven", "n": 2})),
        ("PredictAnswer", http.post("/predict", json={"prompt": "a seven"})),
        ("JobView", http.post("/v1/jobs", json={"path": "/predict", "body": {"prompt": "a seven"}})),
        ("JobList", http.get("/v1/jobs")),
        ("ModelList", http.get("/v1/models")),
        ("Health", http.get("/healthz")),
        ("ErrorBody", http.get("/readyz")),
    ):
        jsonschema.validate(
            answered.json(), {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        )


# ---- starting and stopping


def wait_for_running(server: Server, count: int) -> None:
    wait_until(lambda: sum(model.running for model in server.snapshot().models) == count, f"{count} running tasks")


def interrupt(server: Server, signum: signal.Signals = signal.SIGTERM) -> None:
    server.balancer.send_signal(signum)
    wait_until(lambda: "stopping" in server.log("loadbalancer"), "the server's word on the signal")


def test_stop_finishes_running_requests(server: StartServer) -> None:
    started = server({"sim": sim()}, server={"shutdown_s": 8.0})
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        body = {"prompt": "a seven", "num_inference_steps": 20}
        with started.stopped():  # else it could be finished before it is seen
            under_way = pool.submit(httpx.post, f"{started.base_url}{GENERATE}", json=body, timeout=PATIENCE_S)
            wait_for_running(started, 1)
            interrupt(started)
        assert under_way.result().status_code == 200
    assert started.balancer.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stop_ends_late_requests_with_503(server: StartServer, signum: signal.Signals) -> None:
    started = server(SLOW, server={"shutdown_s": 0.5})
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(
                httpx.post,
                f"{started.base_url}{GENERATE}",
                json={"prompt": "a seven", "stream": stream},
                timeout=PATIENCE_S,
            )
            for stream in (False, True)
        ]
        wait_for_running(started, 2)
        assert stop(started.balancer, signum) == 0
        plain, streamed = (future.result() for future in asked)
    assert plain.status_code == 503
    assert plain.json()["error"]["code"] == "shutting_down"
    assert streamed.text.rstrip().splitlines()[-2] == "event: error"
    assert "shutting_down" in streamed.text
    assert "Traceback" not in started.log("loadbalancer")


def test_stop_rejects_new_requests_second_signal_ends_at_once(server: StartServer) -> None:
    started = server(SLOW, server={"shutdown_s": 8.0})
    with (
        httpx.Client(base_url=started.base_url, timeout=PATIENCE_S) as http,
        http.stream("POST", GENERATE, json={"prompt": "a seven", "stream": True}) as running,
    ):
        lines = running.iter_lines()
        next(lines)
        interrupt(started)
        for refused in (http.post("/predict", json={"prompt": "a seven"}), http.get("/readyz")):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert int(refused.headers["retry-after"]) >= 1
        assert http.get("/healthz").status_code == 200
        assert stop(started.balancer) == 0
        assert any("shutting_down" in line for line in lines)


def test_idle_server_stops_with_status_0(server: StartServer) -> None:
    assert stop(server(workers=0).balancer) == 0


def test_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        child = launch("loadbalancer", tmp_path, "--port", port, log="loadbalancer")
        assert child.wait(PATIENCE_S) == 2
    told = (tmp_path / "loadbalancer.log").read_text()
    assert f"port {port}" in told
    assert "in use" in told
    assert "Traceback" not in told


def test_second_balancer_in_data_dir_is_refused(server: StartServer) -> None:
    """A second balancer would take the workers of the first."""
    started = server(workers=0)
    options = ("--config", str(started.config), "--port", str(free_port()))
    assert launch("loadbalancer", started.data_dir, *options, log="second").wait(PATIENCE_S) == 2
    assert "already served by another balancer" in started.log("second")
    started.wait_for_workers(started.start_worker("sim"))


def test_help_says_how_to_join_a_worker() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadbalancer", "--help"], cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=True
    )
    assert b"python -m worker --model digits" in done.stdout
    assert b"SIGTERM" in done.stdout


@pytest.mark.parametrize(("count", "status"), [(1, 200), (64, 200), (65, 400), (3000, 400)])
def test_number_of_query_parameters_is_bounded(http: httpx.Client, count: int, status: int) -> None:
    answer = http.get("/healthz?" + "&".join(["a"] * count))
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["code"] == "too_many_query_parameters"
