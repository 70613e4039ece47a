"""`/v1/jobs`: validation, results, events, ownership and idempotency keys."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
import yaml

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.http_server import read_all
from tests.support.images import data_url, file, half, make_image, png
from tests.support.texts import expected_text
from wire.inputs import ImageInputs
from worker.engines.sim import expected_image

GENERATE, EDIT, PREDICT = "/v1/images/generations", "/v1/images/edits", "/predict"
MODELS = {
    "quick": sim(),
    "slow": sim(t0_s=0.1, max_batch_size=1, defaults={"size": "64x64", "steps": 600}),
    "absent": sim(),
    "words": {"engine": "sim", "max_batch_size": 8, "sim": {"task": "text", "t0_s": 0.002, "load_s": 0.0}},
    "mute": {"engine": "sim", "sim": {"task": "text"}},
}
KEYS = {"alice": "sk-alice", "bob": "sk-bob"}
ENDS = ("done", "failed", "cancelled")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("jobs")
    ring: dict[str, dict[str, Any]] = {
        name: {"sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in KEYS.items()
    }
    for name, tokens in (("limited", 100), ("narrow", 1), ("hasty", 1), ("undecided", 1), ("patient", 1)):
        key = f"sk-{name}".encode()
        ring[name] = {"sha256": hashlib.sha256(key).hexdigest(), "tokens_per_minute": tokens}
    (data_dir / "keys.yaml").write_text(yaml.safe_dump({"keys": ring}))
    limits = {"max_n": 5, "max_body_bytes": 20_000, "max_upload_bytes": 500_000, "max_prompt_chars": 500}
    with running(data_dir, MODELS, {"quick": 1, "slow": 1, "words": 1}, server=limits) as server:
        yield server
        assert server.balancer.poll() is None, server.logs()
        assert "Traceback" not in server.log("loadbalancer"), server.log("loadbalancer")


def client(server: Server, name: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {KEYS[name]}"}
    return httpx.Client(base_url=server.base_url, timeout=PATIENCE_S, headers=headers)


@pytest.fixture
def alice(desk: Server) -> Iterator[httpx.Client]:
    with client(desk, "alice") as made:
        yield made


@pytest.fixture
def bob(desk: Server) -> Iterator[httpx.Client]:
    with client(desk, "bob") as made:
        yield made


def post(http: httpx.Client, path: str = GENERATE, key: str | None = None, **body: Any) -> dict[str, Any]:
    """Submit a job for "a seven" and seed 7, and return its view."""
    wanted = {"path": path, "body": {"prompt": "a seven", "seed": 7} | body}
    answered = http.post("/v1/jobs", json=wanted, headers={"idempotency-key": key} if key else None)
    assert answered.status_code == 202, answered.text
    view: dict[str, Any] = answered.json()
    assert answered.headers["location"] == f"/v1/jobs/{view['id']}"
    return view


def send_together(server: Server, name: str, bodies: Sequence[bytes]) -> list[httpx.Response]:
    """Post these jobs of one idempotency key so that the server finds all of them at once."""
    with contextlib.ExitStack() as stack:
        server.balancer.send_signal(signal.SIGSTOP)
        try:
            connections = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
                for _ in bodies
            ]
            for connection, body in zip(connections, bodies, strict=True):
                head = (
                    "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nidempotency-key: together\r\n"
                    f"authorization: Bearer sk-{name}\r\ncontent-length: {len(body)}\r\n\r\n"
                )
                connection.sendall(head.encode() + body)
        finally:
            server.balancer.send_signal(signal.SIGCONT)
        return [_response(read_all(connection)) for connection in connections]


def _response(received: bytes) -> httpx.Response:
    head, _, body = received.partition(b"\r\n\r\n")
    return httpx.Response(int(head.split()[1]), content=body)


def look(http: httpx.Client, view: dict[str, Any]) -> dict[str, Any]:
    answered = http.get(f"/v1/jobs/{view['id']}")
    assert answered.status_code == 200, answered.text
    now: dict[str, Any] = answered.json()
    return now


def ended(http: httpx.Client, view: dict[str, Any]) -> dict[str, Any]:
    wait_until(lambda: look(http, view)["state"] in ENDS, "the end of the job")
    return look(http, view)


def expected(seed: int = 7, sources: tuple[bytes, ...] = (), **changes: Any) -> bytes:
    plain: dict[str, Any] = {"prompt": "a seven", "seed": seed, "width": 64, "height": 64, "steps": 8}
    return expected_image(ImageInputs(**plain | {"guidance_scale": 3.0, "scheduler": "ddim"} | changes), sources)


def events(http: httpx.Client, view: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with http.stream("GET", f"/v1/jobs/{view['id']}/events") as answered:
        assert answered.headers["content-type"].startswith("text/event-stream")
        for line in answered.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


# ---- life cycle


RGB = make_image().tobytes()
MASK = half("L")
PICTURED: dict[str, Any] = {"sources": (RGB,), "mode": "image", "strength": 0.8}
MASKED: dict[str, Any] = {"sources": (RGB, MASK.tobytes()), "mode": "inpaint", "strength": 1.0}


@pytest.mark.parametrize(
    ("path", "body", "changes"),
    [
        (GENERATE, {}, [{}]),
        (GENERATE, {"n": 3, "output_format": "webp"}, [{"seed": s, "output_format": "webp"} for s in (7, 8, 9)]),
        (GENERATE, {"stream": True, "partial_images": 2, "timeout_s": 50, "priority": 3}, [{}]),
        (GENERATE, {"image": data_url(png())}, [PICTURED]),
        (GENERATE, {"image": data_url(png()), "mask": data_url(file(MASK))}, [MASKED]),
        (EDIT, {"image": data_url(png())}, [PICTURED]),
        (EDIT, {"image": data_url(png()), "mask": data_url(file(MASK)), "n": 1}, [MASKED]),
        (EDIT, {"image": data_url(png()), "mask": None, "strength": 0.25}, [PICTURED | {"strength": 0.25}]),
    ],
    ids=lambda case: case.strip("/") if isinstance(case, str) else None,
)
def test_result_equals_the_endpoint_response(
    alice: httpx.Client, path: str, body: dict[str, Any], changes: list[dict[str, Any]]
) -> None:
    view = ended(alice, post(alice, path, **body))
    assert (view["state"], view["error"], view["n"], view["path"]) == ("done", None, len(changes), path)
    assert view["step"] == view["steps"] == 8 * len(changes)
    assert view["created_at"] <= view["started_at"] <= view["ended_at"] < view["expires_at"]
    assert view["timings"]["queued_s"] + view["timings"]["running_s"] == pytest.approx(
        view["ended_at"] - view["created_at"]
    )
    assert (view["position"], view["eta_s"]) == (None, None)
    answer = alice.get(f"/v1/jobs/{view['id']}/result").json()
    assert [base64.b64decode(image["b64_json"]) for image in answer["data"]] == [expected(**each) for each in changes]
    assert (answer["model"], answer["size"]) == ("quick", "64x64")


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "seed": 3, "max_tokens": 5}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"n": 2}),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/completions", {"prompt": ["a", "b"], "seed": 3, "max_tokens": 5, "n": 2}),
        ("/v1/responses", {"input": "hello", "seed": 3, "max_output_tokens": 5, "instructions": "be short"}),
    ],
)
def test_text_job_has_the_response_of_its_endpoint(alice: httpx.Client, path: str, body: dict[str, Any]) -> None:
    request = body | {"model": "words"}
    view = ended(alice, alice.post("/v1/jobs", json={"path": path, "body": request}).json())
    assert (view["state"], view["error"]) == ("done", None)
    answers = [alice.get(f"/v1/jobs/{view['id']}/result"), alice.post(path, json=request | {"stream": False})]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    job, plain = (answer.json() for answer in answers)
    assert view["id"].rpartition("_")[2] in job["id"]
    outputs = [each.get("output") or each["choices"] for each in (job, plain)]
    for item in [item for output in outputs for item in output]:
        item.pop("id", None)
    assert outputs[0] == outputs[1]
    assert job["usage"] == plain["usage"]
    with alice.stream("GET", f"/v1/jobs/{view['id']}/events") as followed:
        text = followed.read().decode()
    assert expected_text(3, 5) in text
    assert text.rstrip().endswith("[DONE]") or "response.incomplete" in text


def contents(lines: Iterator[str]) -> Iterator[str]:
    """Yield the text in the events of a chat's stream."""
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                yield choice["delta"].get("content", "")


def test_text_job_is_told_while_it_runs(alice: httpx.Client) -> None:
    body = CHAT | {"model": "words", "max_tokens": 3000}
    job = alice.post("/v1/jobs", json={"path": "/v1/chat/completions", "body": body}).json()["id"]
    with alice.stream("GET", f"/v1/jobs/{job}/events") as followed:
        parts = contents(followed.iter_lines())
        text = next(part for part in parts if part)
        assert alice.get(f"/v1/jobs/{job}").json()["state"] == "running", "the text comes before its end"
        with alice.stream("GET", f"/v1/jobs/{job}/events") as late:
            assert "".join(contents(late.iter_lines())) == expected_text(3, 3000)
        assert text + "".join(parts) == expected_text(3, 3000)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", CHAT | {"model": "quick"}, "model"),
        ("/v1/completions", {"prompt": "a", "echo": True}, "echo"),
        ("/v1/responses", {"input": "a", "store": True}, "store"),
    ],
)
def test_text_job_is_checked_as_by_its_endpoint(
    alice: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    answered = alice.post("/v1/jobs", json={"path": path, "body": {"model": "words"} | body})
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, param)


def test_failed_text_job_has_the_error_of_its_endpoint(alice: httpx.Client) -> None:
    long = {"model": "words", "prompt": "x" * 200_000}
    view = ended(alice, alice.post("/v1/jobs", json={"path": "/v1/completions", "body": long}).json())
    assert (view["state"], view["error"]["type"]) == ("failed", "invalid_request_error")
    assert alice.get(f"/v1/jobs/{view['id']}/result").status_code == 400


def test_tokens_per_minute_of_a_key_are_limited(desk: Server) -> None:
    headers = {"authorization": "Bearer sk-limited"}
    with httpx.Client(base_url=desk.base_url, timeout=PATIENCE_S, headers=headers) as http:
        path, body = "/v1/chat/completions", CHAT | {"model": "words"}
        first = http.post(path, json=body)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-tokens"] == "100"
        assert 0 < int(first.headers["x-ratelimit-remaining-tokens"]) < 100
        with http.stream("POST", path, json=body | {"max_tokens": 300, "stream": True}) as answered:
            assert answered.headers["x-ratelimit-limit-tokens"] == "100"
            answered.read()
        # It took more than was expected.
        wait_until(lambda: http.post(path, json=body).status_code == 429, "the end of the request is counted")
        refused = [http.post(path, json=body), http.post("/v1/jobs", json={"path": path, "body": body})]
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
        assert "tokens per minute: 100" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) > 60
        assert answer.headers["x-ratelimit-remaining-tokens"] == "0"


def test_repeated_text_job_is_charged_once(desk: Server) -> None:
    """The first one takes more tokens than the key has in a minute, so that no other fits."""
    headers = {"authorization": "Bearer sk-narrow", "idempotency-key": "same"}
    job = {"path": "/v1/chat/completions", "body": CHAT | {"model": "words"}}
    with httpx.Client(base_url=desk.base_url, timeout=PATIENCE_S, headers=headers) as http:
        first, again = (http.post("/v1/jobs", json=job) for _ in range(2))
        other = http.post("/v1/jobs", json=job, headers={"idempotency-key": "other"})
        reused = http.post("/v1/jobs", json=job | {"metadata": {"a": "b"}})
    assert [answer.status_code for answer in (first, again, other, reused)] == [202, 202, 429, 422]
    assert again.json()["id"] == first.json()["id"]


def test_concurrent_repetitions_of_a_text_job_are_one_job_charged_once(desk: Server) -> None:
    """The job takes more tokens than the key has in a minute, so that no other fits."""
    job = {"path": "/v1/chat/completions", "body": CHAT | {"model": "words"}}
    other = json.dumps(job | {"metadata": {"a": "b"}}).encode()
    *same, reused = send_together(desk, "hasty", [json.dumps(job).encode()] * 12 + [other])
    assert [answer.status_code for answer in same] == [202] * 12, [answer.text for answer in same]
    assert len({answer.json()["id"] for answer in same}) == 1
    assert reused.status_code == 422, reused.text


@pytest.mark.parametrize("ending", ["invalid", "late", "gone"])
def test_requests_that_take_nothing_are_charged_nothing(desk: Server, ending: str) -> None:
    """Any other charge would be more than the key has in a minute."""
    path, headers = "/v1/chat/completions", {"authorization": "Bearer sk-patient"}
    with httpx.Client(base_url=desk.base_url, timeout=PATIENCE_S, headers=headers) as http:
        if ending == "invalid":
            assert http.post(path, json=CHAT | {"model": "mute", "n": 0}).status_code == 400
        elif ending == "late":
            assert http.post(path, json=CHAT | {"model": "mute", "timeout_s": 0.2}).status_code == 504
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(path, json=CHAT | {"model": "mute"}, timeout=httpx.Timeout(PATIENCE_S, read=0.2))
        job = {"path": path, "body": CHAT | {"model": "mute"}}
        accepted: list[httpx.Response] = []

        def is_accepted() -> bool:
            accepted.append(http.post("/v1/jobs", json=job))
            return accepted[-1].status_code == 202

        wait_until(is_accepted, "the charge is returned")
        assert http.post("/v1/jobs", json=job).status_code == 429, "it is charged in full"
        assert http.delete(f"/v1/jobs/{accepted[-1].json()['id']}").json()["state"] == "cancelled"


def test_cancelled_text_job_is_charged_what_it_has_taken(desk: Server) -> None:
    headers = {"authorization": "Bearer sk-undecided"}
    job = {"path": "/v1/chat/completions", "body": CHAT | {"model": "words"}}
    with httpx.Client(base_url=desk.base_url, timeout=PATIENCE_S, headers=headers) as http, desk.stopped():
        first = http.post("/v1/jobs", json=job)
        refused = http.post("/v1/jobs", json=job)
        assert http.delete(f"/v1/jobs/{first.json()['id']}").json()["state"] == "cancelled"
        second = http.post("/v1/jobs", json=job)
        assert http.delete(f"/v1/jobs/{second.json()['id']}").json()["state"] == "cancelled"
    assert [answer.status_code for answer in (first, refused, second)] == [202, 429, 202]


def test_predict_job_has_the_predict_response(alice: httpx.Client) -> None:
    view = ended(alice, post(alice, PREDICT))
    answer = alice.get(f"/v1/jobs/{view['id']}/result").json()
    assert base64.b64decode(answer["image"]) == expected()


def test_metadata_is_returned_unchanged(alice: httpx.Client) -> None:
    wanted = {"path": PREDICT, "body": {"prompt": "a seven"}, "metadata": {"häuschen": "家"}}
    view = alice.post("/v1/jobs", json=wanted).json()
    assert view["metadata"] == wanted["metadata"] == look(alice, view)["metadata"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prompt": "sim:fail"}, 500, "generation_failed"),
        ({"prompt": "a seven", "model": "absent", "timeout_s": 0.3}, 504, "timeout"),
    ],
)
def test_failed_job_has_the_error_of_its_endpoint(
    alice: httpx.Client, body: dict[str, Any], status: int, code: str
) -> None:
    view = ended(alice, post(alice, **body))
    assert (view["state"], view["error"]["code"]) == ("failed", code)
    answered = alice.get(f"/v1/jobs/{view['id']}/result")
    assert (answered.status_code, answered.json()["error"]) == (status, view["error"])
    received = list(events(alice, view))
    assert [event["type"] for event in received] == ["error"]
    assert received[0]["error"] == view["error"]


def test_unfinished_or_cancelled_job_has_no_result(alice: httpx.Client) -> None:
    view = post(alice, model="absent")
    early = alice.get(f"/v1/jobs/{view['id']}/result")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "job_not_finished")
    assert early.headers["retry-after"] == "1"
    assert alice.delete(f"/v1/jobs/{view['id']}").json()["state"] == "cancelled"
    late = alice.get(f"/v1/jobs/{view['id']}/result")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "job_cancelled")


def tasks(server: Server, model: str) -> tuple[int, int]:
    (stats,) = (stats for stats in server.snapshot().models if stats.model == model)
    return stats.queued, stats.running


def test_delete_cancels_unfinished_and_removes_ended_jobs(desk: Server, alice: httpx.Client) -> None:
    running_, waiting = post(alice, model="slow"), post(alice, model="slow")
    wait_until(lambda: look(alice, running_)["state"] == "running", "the first job's start")
    assert look(alice, waiting)["state"] == "queued"
    for view in (running_, waiting):
        assert alice.delete(f"/v1/jobs/{view['id']}").json()["state"] == "cancelled"
        assert look(alice, view)["state"] == "cancelled"
    wait_until(lambda: tasks(desk, "slow") == (0, 0), "free slots")
    for view in (running_, waiting):
        assert alice.delete(f"/v1/jobs/{view['id']}").json()["id"] == view["id"]
        assert alice.delete(f"/v1/jobs/{view['id']}").status_code == 404


def test_position_and_steps_are_reported(alice: httpx.Client) -> None:
    first = post(alice, model="slow")
    wait_until(lambda: look(alice, first)["step"] > 0, "the first job's steps")
    wait_until(lambda: look(alice, first)["eta_s"] is not None, "a measured step")
    second, third = post(alice, model="slow"), post(alice, model="slow")
    now = look(alice, first)
    assert (now["state"], now["position"], now["steps"]) == ("running", 0, 600)
    assert [look(alice, view)["position"] for view in (second, third)] == [0, 1]
    for view in (first, second, third):
        alice.delete(f"/v1/jobs/{view['id']}")


# ---- events


def test_late_subscriber_gets_stored_images(alice: httpx.Client) -> None:
    view = ended(alice, post(alice, n=2))
    for _ in range(2):
        received = list(events(alice, view))
        assert [(event["type"], event["index"]) for event in received] == [
            ("image_generation.completed", i) for i in (0, 1)
        ]
        assert [base64.b64decode(event["b64_json"]) for event in received] == [expected(7), expected(8)]


def test_subscriber_gets_progress_previews_and_end(desk: Server, alice: httpx.Client) -> None:
    body: dict[str, Any] = {"n": 2, "num_inference_steps": 400, "stream": True, "partial_images": 3}
    with desk.stopped():  # until it listens
        view = post(alice, EDIT, image=data_url(png()), **body)
        following = events(alice, view)
        first = next(following)
    received = [first, *following]
    assert received[0]["type"] == "image_edit.progress"
    assert received[0]["step"] < received[0]["steps"]
    kinds = [event["type"] for event in received]
    assert "image_edit.partial_image" in kinds
    assert kinds[-1] == "image_edit.completed"
    assert sorted(event["index"] for event in received if event["type"] == "image_edit.completed") == [0, 1]


def test_cancelled_job_ends_its_streams(alice: httpx.Client) -> None:
    view = post(alice, model="slow")
    stream = events(alice, view)
    assert next(stream)["type"] == "image_generation.progress"
    alice.delete(f"/v1/jobs/{view['id']}")
    *_, last = stream
    assert (last["type"], last["error"]["code"]) == ("error", "job_cancelled")


def test_subscriber_disconnect_does_not_affect_others(alice: httpx.Client) -> None:
    view = post(alice, num_inference_steps=300)
    next(events(alice, view))
    assert ended(alice, view)["state"] == "done"


# ---- rejected requests


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATE, {}),
        (GENERATE, {"prompt": 7}),
        (GENERATE, {"prompt": ""}),
        (GENERATE, {"prompt": "x" * 501}),
        (GENERATE, {"prompt": "a seven", "n": 6}),
        (GENERATE, {"prompt": "a seven", "model": "none"}),
        (GENERATE, {"prompt": "a seven", "size": "7x7"}),
        (GENERATE, {"prompt": "a seven", "promt": "typo"}),
        (GENERATE, {"prompt": "a seven", "partial_images": 2}),
        (GENERATE, {"prompt": "a seven", "timeout_s": 0}),
        (GENERATE, {"prompt": "a seven", "image": "http://example.com/a.png"}),
        (GENERATE, {"prompt": "a seven", "image": "data:image/png;base64,AAAA"}),
        (GENERATE, {"prompt": "a seven", "metadata": "x" * 30_000}),
        (PREDICT, {"prompt": "a seven", "n": 1}),
        (PREDICT, {"prompt": "a seven", "seed": -2}),
        (PREDICT, []),
        (PREDICT, "text"),
    ],
)
def test_invalid_inner_request_gets_the_endpoint_error(alice: httpx.Client, path: str, body: Any) -> None:
    own = alice.post(path, json=body)
    asked = alice.post("/v1/jobs", json={"path": path, "body": body})
    assert asked.status_code == own.status_code >= 400
    if isinstance(body, dict):
        assert asked.json() == own.json()
    else:
        assert asked.json()["error"]["param"] == "body"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a seven"}, "image"),
        ({"prompt": "a seven", "image": 7}, "image"),
        ({"prompt": "a seven", "image": data_url(png()), "mask": ["x"]}, "mask"),
        ({"image": data_url(png())}, "prompt"),
        ({"prompt": "a seven", "image": data_url(png()), "style": "vivid"}, "style"),
    ],
)
def test_invalid_edit_job_names_its_parameter(alice: httpx.Client, body: dict[str, Any], param: str) -> None:
    answered = alice.post("/v1/jobs", json={"path": EDIT, "body": body})
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, param)


BODY = {"prompt": "a seven"}


@pytest.mark.parametrize(
    ("job", "param"),
    [
        ({"body": BODY}, "path"),
        ({"path": "/healthz", "body": BODY}, "path"),
        ({"path": PREDICT}, "body"),
        ({"path": PREDICT, "body": BODY, "webhooks": {}}, "webhooks"),
        ({"path": PREDICT, "body": BODY, "metadata": {"a": 1}}, "metadata.a"),
        ({"path": PREDICT, "body": BODY, "metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"path": PREDICT, "body": BODY, "webhook": {"url": "ftp://example.com"}}, "webhook.url"),
        ({"path": PREDICT, "body": BODY, "webhook": {"url": "http://127.0.0.1:1/"}}, "webhook.url"),
        ({"path": PREDICT, "body": BODY, "webhook": {"url": "http://[::ffff:10.0.0.1]/"}}, "webhook.url"),
        ({"path": PREDICT, "body": BODY, "webhook": {"url": "http://e.com", "secret": "short"}}, "webhook.secret"),
        (
            {"path": PREDICT, "body": BODY, "webhook": {"url": "http://e.com", "secret": "whsec_" + "!" * 20}},
            "webhook.secret",
        ),
        ({"path": PREDICT, "body": BODY, "webhook": {"url": "http://"}}, "webhook.url"),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_invalid_job_request_returns_400(alice: httpx.Client, job: Any, param: str | None) -> None:
    answered = alice.post("/v1/jobs", json=job)
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, param), answered.text


SURROGATES = b'{"path": "/predict", "body": {"prompt": "a"}, "metadata": {"a": "\\ud800"}}'


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"path": "/predict", "body": {"prompt": "\xff"}}', b"[" * 10_000, SURROGATES]
)
def test_invalid_json_returns_400(alice: httpx.Client, content: bytes) -> None:
    answered = alice.post("/v1/jobs", content=content)
    assert (answered.status_code, answered.json()["error"]["type"]) == (400, "invalid_request_error")


def test_body_over_limit_returns_413(alice: httpx.Client) -> None:
    large = {"path": PREDICT, "body": BODY, "metadata": {"a": "x" * 30_000}}
    assert alice.post("/v1/jobs", json=large).status_code in (400, 413)
    assert alice.post("/v1/jobs", content=b" " * 600_000).status_code == 413


# ---- ownership


def test_jobs_are_paginated_per_owner(desk: Server, bob: httpx.Client) -> None:
    while jobs := bob.get("/v1/jobs?limit=100").json()["data"]:  # of other tests: a deleted one is cancelled at first
        for view in jobs:
            bob.delete(f"/v1/jobs/{view['id']}")
    made = [post(bob)["id"] for _ in range(5)]
    for each in made:
        ended(bob, {"id": each})
    cancelled = post(bob, model="absent")["id"]
    bob.delete(f"/v1/jobs/{cancelled}")
    newest_first = [cancelled, *reversed(made)]
    found: list[str] = []
    for size, more in ((4, True), (2, False)):
        page = bob.get("/v1/jobs", params={"limit": 4} | ({"after": found[-1]} if found else {})).json()
        ids = [view["id"] for view in page["data"]]
        assert (len(ids), page["has_more"], page["first_id"], page["last_id"]) == (size, more, ids[0], ids[-1])
        found += ids
    assert found == newest_first
    assert [v["id"] for v in bob.get("/v1/jobs?state=cancelled").json()["data"]] == [cancelled]
    assert bob.get("/v1/jobs?state=running").json() == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
        "object": "list",
    }
    with client(desk, "alice") as alice:
        own = alice.get("/v1/jobs?limit=100").json()["data"]
        assert not {view["id"] for view in own} & set(newest_first)
        for method, rest in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
            answered = alice.request(method, f"/v1/jobs/{made[0]}{rest}")
            assert (answered.status_code, answered.json()["error"]["code"]) == (404, "job_not_found")
        assert alice.get(f"/v1/jobs?after={made[0]}").status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=-1",
        "limit=1.5",
        "state=gone",
        "after=nobody",
        "limit=²",
        "limit=00000005099999",
        "after=%00%ff",
        "limti=5",
        "order=asc",
        "limit=5&limit=6",
    ],
)
def test_invalid_page_returns_400(alice: httpx.Client, query: str) -> None:
    answered = alice.get(f"/v1/jobs?{query}")
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, query.partition("=")[0])


def test_misspelt_parameter_of_a_page_is_named_with_those_allowed(alice: httpx.Client) -> None:
    error = alice.get("/v1/jobs?limti=5").json()["error"]
    text = "Unknown parameter: 'limti'. Did you mean 'limit'? Supported: limit, after, state."
    assert (error["code"], error["message"]) == ("unknown_parameter", text)


# ---- idempotency keys


def submitted(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('muster_events_total{event="submitted"}'))


REQUESTS: dict[str, dict[str, Any]] = {
    "generate": {"url": GENERATE, "json": {"prompt": "a seven", "n": 2}},
    "predict": {"url": PREDICT, "json": {"prompt": "a seven"}},
    "stream": {"url": GENERATE, "json": {"prompt": "a seven", "stream": True}},
    "edit": {"url": EDIT, "data": {"prompt": "a seven"}, "files": {"image": png()}},
    "job": {"url": "/v1/jobs", "json": {"path": PREDICT, "body": {"prompt": "a seven"}}},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_repeated_idempotency_key_returns_same_job(alice: httpx.Client, bob: httpx.Client, name: str) -> None:
    def send(http: httpx.Client, **changes: Any) -> httpx.Response:
        return http.post(**REQUESTS[name] | changes, headers={"idempotency-key": f"same {name}".replace(" ", "-")})

    before = submitted(alice)
    first = send(alice)
    assert first.is_success, first.text
    if name == "job":
        ended(alice, first.json())
    made = submitted(alice) - before
    assert made >= 1
    again = send(alice)
    assert again.status_code == first.status_code
    if name == "job":
        assert again.json()["id"] == first.json()["id"]
        assert again.json()["state"] == "done", "the job as it is now"
    else:
        assert (again.content, again.headers["content-type"]) == (first.content, first.headers["content-type"])
        assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert submitted(alice) == before + made
    # The same key with another request is rejected for this owner; keys of other owners are separate.
    kind = "data" if name == "edit" else "json"
    other = json.loads(json.dumps(REQUESTS[name][kind]).replace("seven", "three"))
    refused = send(alice, **{kind: other})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    theirs = send(bob, **{kind: other})
    assert theirs.is_success
    assert "idempotent-replayed" not in theirs.headers


def test_idempotency_key_with_another_path_conflicts(alice: httpx.Client) -> None:
    headers = {"idempotency-key": "paths"}
    assert alice.post(PREDICT, json=BODY, headers=headers).status_code == 200
    assert alice.post(GENERATE, json=BODY, headers=headers).status_code == 422


@pytest.mark.parametrize("stream", [False, True])
def test_repeated_running_request_joins_it(desk: Server, alice: httpx.Client, stream: bool) -> None:
    headers = {"idempotency-key": f"join-{stream}"}
    body = {"prompt": "a seven", "seed": 7, "num_inference_steps": 400, "stream": stream}
    before = submitted(alice)
    answers: list[httpx.Response] = []

    def send() -> None:
        with client(desk, "alice") as http:
            answers.append(http.post(GENERATE, json=body, headers=headers))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 3
    assert submitted(alice) == before + 1


def test_joined_request_runs_until_last_client_disconnects(desk: Server, alice: httpx.Client) -> None:
    body, headers = {"prompt": "a seven", "model": "slow", "stream": True}, {"idempotency-key": "leave"}
    wait_until(lambda: tasks(desk, "slow") == (0, 0), "an idle model")
    with client(desk, "alice") as other, other.stream("POST", GENERATE, json=body, headers=headers) as second:
        with alice.stream("POST", GENERATE, json=body, headers=headers) as first:
            lines = first.iter_lines()
            next(lines)
            rest = second.iter_lines()
            next(rest)
            wait_until(lambda: tasks(desk, "slow") == (0, 1), "one task for both")
        while '"step":2' not in next(rest):
            pass
        assert tasks(desk, "slow") == (0, 1), "one listener is left"
    wait_until(lambda: tasks(desk, "slow") == (0, 0), "a free slot")


@pytest.mark.parametrize(
    "body",
    [{"prompt": "sim:fail"}, {"prompt": "sim:fail", "stream": True}, {"prompt": ""}],
    ids=["it", "stream", "400"],
)
def test_failed_request_can_be_retried_with_its_key(alice: httpx.Client, body: dict[str, Any]) -> None:
    headers = {"idempotency-key": f"fail-{len(body)}-{body['prompt']}"}
    first, again = (alice.post(GENERATE, json=body, headers=headers) for _ in range(2))
    assert first.status_code == again.status_code
    assert "idempotent-replayed" not in again.headers


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
@pytest.mark.parametrize("path", [PREDICT, "/v1/jobs"])
def test_invalid_idempotency_key_returns_400(alice: httpx.Client, path: str, key: str) -> None:
    answered = alice.post(path, json={"path": PREDICT, "body": BODY}, headers={"idempotency-key": key})
    assert (answered.status_code, answered.json()["error"]["code"]) == (400, "invalid_idempotency_key")
