"""Calls of a model: KServe's V1 protocol, bytes, forms, a path of its own, and the media types of responses."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import httpx
import pytest

from scripts.harness.processes import wait_until

PREDICT = "/v1/models/echo:predict"
OWN = "/echo"
PNG = b"\x89PNG\r\n\x1a\n"


def error_of(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_each_instance_has_its_prediction(http: httpx.Client) -> None:
    instances = [1, {"text": "ü", "nested": [[1.5, None]]}, "two", [], True]
    answer = http.post(PREDICT, json={"instances": instances})
    assert (answer.status_code, answer.json()) == (200, {"predictions": instances})
    assert answer.headers["content-type"] == "application/json"


def test_options_beside_the_instances(http: httpx.Client) -> None:
    body = {"instances": [1], "priority": 3, "timeout_s": 20, "stream": False}
    assert http.post(PREDICT, json=body).json() == {"predictions": [1]}
    assert http.post(f"{PREDICT}?timeout_s=20&priority=-3", json={"instances": [1]}).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "value"),
    [
        (b'{"instances":[1]}', {"content-type": "application/x-www-form-urlencoded"}, 1),
        (b'{"instances":[1]}', {"content-type": "application/vnd.api+json"}, 1),
        (b'\xef\xbb\xbf{"instances":[1]}', {}, 1),
        (gzip.compress(b'{"instances":[1]}', mtime=0), {"content-encoding": "gzip"}, 1),
        (b"hello", {"content-type": "text/plain; charset=utf-8"}, "hello"),
        (PNG, {"content-type": "image/png"}, {"b64": base64.b64encode(PNG).decode(), "media_type": "image/png"}),
    ],
    ids=["curl", "a kind of JSON", "byte order mark", "gzip", "text", "image"],
)
def test_bodies_of_any_type(http: httpx.Client, content: bytes, headers: dict[str, str], value: object) -> None:
    answer = http.post(PREDICT, content=content, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [value]})


@pytest.mark.parametrize("size", [100, 100_000, 400_000], ids=["in one part", "in parts", "large"])
def test_bodies_of_any_size_are_equal(http: httpx.Client, size: int) -> None:
    """Small ones take a shorter way through the server, and large ones are written in a thread."""
    text = "ü" * (size // 2)
    assert http.post(PREDICT, json={"instances": [text]}).json() == {"predictions": [text]}
    assert http.post(OWN, files={"text": ("a.txt", text.encode(), "text/plain")}).json() == {"text": text}
    answer = http.post(OWN, content=text.encode(), headers={"content-type": "text/plain", "accept": "text/*"})
    assert answer.content == text.encode(), answer.text[:300]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_form_is_one_input(http: httpx.Client) -> None:
    answer = http.post(PREDICT, data={"a": "1"}, files={"photo": ("x.png", PNG, "image/png")})
    photo = {"b64": base64.b64encode(PNG).decode(), "media_type": "image/png"}
    assert answer.json() == {"predictions": [{"a": "1", "photo": photo}]}


@pytest.mark.parametrize(
    ("content_type", "accept", "returned"),
    [
        ("image/png", "image/*", "image/png"),
        ("image/png", "image/png, application/json;q=0.5", "image/png"),
        ("image/png", "application/octet-stream", "application/octet-stream"),
        ("application/json", "application/octet-stream", "application/octet-stream"),
        ("image/png", "text/html", None),
    ],
)
def test_accept_chooses_the_bytes(http: httpx.Client, content_type: str, accept: str, returned: str | None) -> None:
    answer = http.post(OWN, content=b"[7]", headers={"content-type": content_type, "accept": accept})
    if returned is None:
        assert answer.status_code == 406
        assert "can be sent as application/json, image/png, application/octet-stream" in error_of(answer)["message"]
    else:
        assert (answer.headers["content-type"], answer.content) == (returned, b"[7]")


def test_bytes_are_for_one_instance(http: httpx.Client) -> None:
    answer = http.post(PREDICT, json={"instances": [1, 2]}, headers={"accept": "image/png"})
    assert (answer.status_code, error_of(answer)["code"]) == (406, "not_acceptable")


def test_own_path_takes_one_input(http: httpx.Client) -> None:
    assert http.post(OWN, json={"input": 4}).json() == {"input": 4}
    assert http.post(OWN, json=[1, 2]).json() == [1, 2]
    for query in ("timeout_s=x", "timeout_s=1&timeout_s=1", "priority=1.5"):
        assert http.post(f"{OWN}?{query}", json=1).status_code == 400
    for content in (b"", b"{", b"1 2", b'"\xff"'):
        assert error_of(http.post(OWN, content=content))["code"] == "invalid_json"
    assert error_of(http.post(f"{OWN}?nothing=1", json=1))["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    ("instances", "status", "param", "fragment"),
    [
        ([1, "sim:nan"], 400, "instances[1]", "instances[1]: the value is not allowed"),
        ([1, 2, "sim:fail"], 500, None, "instances[2]: the call failed: step failed: a failure on demand"),
        ([], 400, "instances", "at least one"),
        ([1] * 6, 400, "instances", "more than 5"),
    ],
)
def test_one_failed_instance_fails_the_request(
    http: httpx.Client, instances: list[Any], status: int, param: str | None, fragment: str
) -> None:
    answer = http.post(PREDICT, json={"instances": instances})
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)
    assert fragment in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "fragment"),
    [
        ("POST", "/v1/models/nothing:predict", {"instances": [1]}, 404, "does not exist. Served: 'quick'"),
        ("POST", "/v1/models/quick:predict", {"instances": [1]}, 400, "use POST /v1/images/generations"),
        ("POST", "/v1/images/generations", {"prompt": "a", "model": "echo"}, 400, f"use POST {PREDICT} or"),
        ("POST", "/predict", {"prompt": "a", "model": "echo"}, 400, f"use POST {PREDICT} or"),
        ("POST", PREDICT, {"instances": [1], "parameters": {}}, 400, "'parameters'"),
        ("POST", PREDICT, {"instances": [1], "timeout_s": 99999}, 400, "at most 3600"),
        ("POST", f"{PREDICT}?priority=101", {"instances": [1]}, 400, "between -100 and 100"),
    ],
)
def test_wrong_calls_are_explained(
    http: httpx.Client, method: str, path: str, body: Any, status: int, fragment: str
) -> None:
    answer = http.request(method, path, json=body)
    assert (answer.status_code, fragment in error_of(answer)["message"]) == (status, True), answer.text


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "", 400, "invalid_json"),
        (b'{"instances":["\xff"]}', "", 400, "invalid_json"),
        (b'{"instances":[1]}', "application/json; charset=utf-16", 400, "invalid_json"),
        (b"x", "nothing", 415, "unsupported_media_type"),
        (b"\xe9", "text/plain; charset=latin-1", 415, "unsupported_media_type"),
        (b"x", "multipart/form-data", 400, "invalid_form"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400, "invalid_form"),
        (bytes(500_001), "image/png", 413, "body_too_large"),
    ],
)
def test_bodies_that_cannot_be_read(
    http: httpx.Client, content: bytes, content_type: str, status: int, code: str
) -> None:
    answer = http.post(PREDICT, content=content, headers={"content-type": content_type})
    assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text


@pytest.mark.parametrize(
    ("instances", "chunks"),
    [([[1, {"a": 2}, "three"]], [[1, {"a": 2}, "three"]]), ([{"a": 1}, [4, 5]], [[{"a": 1}], [4, 5]])],
    ids=["an engine that streams", "one piece beside several"],
)
def test_stream_has_an_event_for_each_chunk(http: httpx.Client, instances: list[Any], chunks: list[list[Any]]) -> None:
    answer = http.post(PREDICT, json={"instances": instances, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    for index, expected in enumerate(chunks):
        *pieces, end = [event for event in events if event["index"] == index]
        assert [(each["type"], each["chunk"], each["prediction"]) for each in pieces] == [
            ("prediction.chunk", number, value) for number, value in enumerate(expected)
        ]
        assert (end["type"], end["chunks"], end["model"]) == ("prediction.completed", len(expected), "echo")


def test_failed_stream_ends_with_its_error(http: httpx.Client) -> None:
    answer = http.post(OWN, json="sim:fail", headers={"accept": "text/event-stream"})
    assert answer.text.startswith("event: error\n")
    assert "the call failed: step failed" in answer.text


def test_idempotency_key_replays_a_call(http: httpx.Client) -> None:
    answers = [
        http.post(OWN, content=b"7", headers={"idempotency-key": "call-1", "accept": "application/octet-stream"})
        for _ in range(2)
    ]
    assert [each.content for each in answers] == [b"7", b"7"]
    assert answers[1].headers["idempotent-replayed"] == "true"
    for content, accept in ((b"8", "application/octet-stream"), (b"7", "application/json")):
        answer = http.post(OWN, content=content, headers={"idempotency-key": "call-1", "accept": accept})
        assert answer.status_code == 422


def test_model_says_which_paths_serve_it(http: httpx.Client) -> None:
    card = http.get("/v1/models/echo").json()
    assert (card["name"], card["ready"], card["task"]) == ("echo", True, "call")
    assert card["endpoints"] == [PREDICT, "/v2/models/echo/infer", OWN, "/v1/embeddings"]
    assert card["limits"] == {"max_instances": 5}
    assert http.get("/v1/models/quick").json()["endpoints"][0] == "/v1/images/generations"


def finished(http: httpx.Client, body: Any, **more: Any) -> dict[str, Any]:
    """Create a job, and return its view at its end."""
    created = http.post("/v1/jobs", json={"path": PREDICT, "body": body} | more)
    assert created.status_code == 202, created.text
    job = created.json()["id"]
    view: dict[str, Any] = {}

    def ended() -> bool:
        view.update(http.get(f"/v1/jobs/{job}").json())
        return view["ended_at"] is not None

    wait_until(ended, "the end of the job")
    return view


def test_job_returns_the_predictions(http: httpx.Client) -> None:
    instances = [1, {"text": "ü"}, [2]]
    view = finished(http, {"instances": instances, "priority": 2})
    assert (view["state"], view["path"], view["model"], view["n"], view["step"]) == ("done", PREDICT, "echo", 3, 3)
    assert http.get(f"/v1/jobs/{view['id']}/result").json() == {"predictions": instances}
    events = http.get(f"/v1/jobs/{view['id']}/events").text
    data = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    assert [each["prediction"] for each in data if each["type"] == "prediction.chunk"] == instances
    assert sum(each["type"] == "prediction.completed" for each in data) == 3


def test_job_of_one_call_returns_bytes(http: httpx.Client) -> None:
    view = finished(http, {"instances": [[7]]})
    result = f"/v1/jobs/{view['id']}/result"
    answer = http.get(result, headers={"accept": "application/octet-stream"})
    assert (answer.headers["content-type"], answer.content) == ("application/octet-stream", b"[7]")
    assert http.get(result, headers={"accept": "image/png"}).status_code == 406


def test_failed_job_has_the_error_of_its_call(http: httpx.Client) -> None:
    view = finished(http, {"instances": [1, "sim:nan"]})
    assert (view["state"], view["error"]["param"]) == ("failed", "instances[1]")
    answer = http.get(f"/v1/jobs/{view['id']}/result")
    assert (answer.status_code, error_of(answer)["message"]) == (400, view["error"]["message"])


@pytest.mark.parametrize(
    ("path", "body", "status", "fragment"),
    [
        ("/v1/models/nothing:predict", {"instances": [1]}, 404, "does not exist"),
        ("/v1/models/quick:predict", {"instances": [1]}, 400, "takes no calls: use POST /v1/images/generations"),
        (PREDICT, {"instances": []}, 400, "at least one"),
        (PREDICT, {"instances": [1] * 6}, 400, "more than 5"),
        (PREDICT, {"prompt": "a"}, 400, "Unknown parameter: 'prompt'"),
        (OWN, {"instances": [1]}, 400, "'/v1/models/{model}:predict'"),
    ],
)
def test_wrong_jobs_are_explained(http: httpx.Client, path: str, body: Any, status: int, fragment: str) -> None:
    answer = http.post("/v1/jobs", json={"path": path, "body": body})
    assert (answer.status_code, fragment in error_of(answer)["message"]) == (status, True), answer.text
