"""Invalid requests: their errors, and that the server stays healthy."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from configs.model_settings import RESERVED_PATHS
from loadbalancer.api.idempotency_keys import ReplayedPaths
from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S, wait_until

GENERATE = "/v1/images/generations"

#: (fields beside the prompt, named parameter, part of the message)
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "Invalid type for 'prompt': null. Expected a string"),
    ({"prompt": 7}, "prompt", "Expected a string"),
    ({"prompt": ["a seven"]}, "prompt", "Expected a string"),
    ({"prompt": ""}, "prompt", "Must not be empty"),
    ({"prompt": " \n\t"}, "prompt", "Must not be empty"),
    ({"prompt": "x" * 501}, "prompt", "It has 501 characters; at most 500 are allowed"),
    ({"negative_prompt": "x" * 501}, "negative_prompt", "at most 500"),
    ({"model": 3}, "model", "Expected a string"),
    ({"n": 0}, "n", "Invalid value for 'n': 0. Must be at least 1"),
    ({"n": -1}, "n", "at least 1"),
    ({"n": 7}, "n", "Invalid value for 'n': 7. Must be between 1 and 5"),
    ({"n": 10**30}, "n", "'n'"),
    ({"n": "two"}, "n", "Invalid type for 'n': 'two'. Expected an integer"),
    ({"n": "2"}, "n", "Expected an integer"),
    ({"n": 1.5}, "n", "Expected an integer"),
    ({"n": 2.0}, "n", "Expected an integer"),
    ({"n": True}, "n", "Expected an integer"),
    ({"n": [1]}, "n", "Expected an integer"),
    ({"size": "64"}, "size", "Must be 'auto' or WIDTHxHEIGHT"),
    ({"size": "64X64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "64x64\n"}, "size", "WIDTHxHEIGHT"),
    ({"size": "٦٤x٦٤"}, "size", "WIDTHxHEIGHT"),
    ({"size": "0x64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "-64x64"}, "size", "WIDTHxHEIGHT"),
    ({"size": 64}, "size", "Expected a string"),
    ({"size": "60x64"}, "size", "multiples of 8"),
    ({"size": "24x64"}, "size", "at least 32"),
    ({"size": "256x264"}, "size", "It has 67584 pixels; at most 65536"),
    ({"size": "99999x99999"}, "size", "multiples of 8"),
    ({"response_format": "file"}, "response_format", "Supported: 'b64_json' or 'url'"),
    ({"background": "transparent"}, "background", "Supported: 'auto' or 'opaque'"),
    ({"output_format": "gif"}, "output_format", "Supported: 'png', 'jpeg' or 'webp'"),
    ({"output_format": "PNG"}, "output_format", "Supported"),
    ({"output_compression": 101, "output_format": "jpeg"}, "output_compression", "at most 100"),
    ({"output_compression": -1, "output_format": "jpeg"}, "output_compression", "at least 0"),
    ({"output_compression": 50}, "output_compression", "lossless"),
    ({"quality": "8k"}, "quality", "Invalid value for 'quality': '8k'. Supported: 'auto', 'low', 'medium'"),
    ({"background": "transparent"}, "background", "Supported: 'auto' or 'opaque'"),
    ({"style": "cubist"}, "style", "Supported"),
    ({"moderation": "off"}, "moderation", "Supported"),
    ({"seed": -2}, "seed", "at least -1"),
    ({"seed": 2**32}, "seed", "less than 4294967296"),
    ({"seed": "7"}, "seed", "Expected an integer"),
    ({"stream": "yes"}, "stream", "Expected a boolean"),
    ({"stream": 1}, "stream", "Expected a boolean"),
    ({"stream": True, "partial_images": 4}, "partial_images", "at most 3"),
    ({"stream": True, "n": 7}, "n", "between 1 and 5"),
    ({"partial_images": 2}, "partial_images", "Previews need stream: true"),
    ({"num_inference_steps": 0}, "num_inference_steps", "at least 1"),
    ({"num_inference_steps": 1001}, "num_inference_steps", "Must be between 1 and 1000"),
    ({"num_inference_steps": 20.0}, "num_inference_steps", "Expected an integer"),
    ({"guidance_scale": -0.5}, "guidance_scale", "at least 0"),
    ({"guidance_scale": 20.5}, "guidance_scale", "Must be between 0 and 20"),
    ({"guidance_scale": "3"}, "guidance_scale", "Expected a number"),
    ({"scheduler": "magic"}, "scheduler", "Supported: default, ddim"),
    ({"priority": 101}, "priority", "at most 100"),
    ({"timeout_s": 0}, "timeout_s", "greater than 0"),
    ({"timeout_s": 3601}, "timeout_s", "3600"),
    ({"num_steps": 20}, "num_steps", "Unknown parameter: 'num_steps'. Did you mean 'num_inference_steps'?"),
    ({"frame_count": 2}, "frame_count", "Unknown parameter: 'frame_count'"),
    ({"x" * 200: 1}, "x" * 77 + "...", "Unknown parameter"),
]


@pytest.fixture(autouse=True)
def healthy_afterwards(shared: Server, http: httpx.Client) -> Iterator[None]:
    """After rejected requests, nothing is queued and the next request is served."""
    yield
    wait_until(lambda: all(model.queued == model.running == 0 for model in shared.snapshot().models), "idle models")
    assert http.post("/predict", json={"prompt": "a seven", "num_inference_steps": 1}).status_code == 200


def error_of(answered: httpx.Response) -> dict[str, Any]:
    """Return the error, and check that it has exactly OpenAI's shape."""
    assert answered.headers["content-type"] == "application/json"
    assert answered.headers["x-request-id"]
    body = answered.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return dict(body["error"])


@pytest.mark.parametrize(("body", "param", "fragment"), REFUSED, ids=lambda case: str(case)[:40])
def test_invalid_request_returns_400(http: httpx.Client, body: dict[str, Any], param: str, fragment: str) -> None:
    answered = http.post(GENERATE, json={"prompt": "a seven"} | body)
    assert answered.status_code == 400, answered.text
    error = error_of(answered)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert fragment in error["message"]
    assert error["code"] in {"invalid_value", "invalid_type", "unknown_parameter"}


@pytest.mark.parametrize("path", [GENERATE, "/predict"])
@pytest.mark.parametrize(
    ("content", "code", "fragment"),
    [
        (b"", "invalid_json", "is empty"),
        (b" \r\n", "invalid_json", "is empty"),
        ('{"prompt": "a"}'.encode("utf-16"), "invalid_json", "it is UTF-16 or UTF-32"),
        ('{"prompt": "a"}'.encode("utf-32-be"), "invalid_json", "it is UTF-16 or UTF-32"),
        (b"{", "invalid_json", "is not valid JSON"),
        (b'{"prompt": "a"} x', "invalid_json", "is not valid JSON"),
        (b'{"prompt": "\xff\xfe"}', "invalid_json", "is not valid JSON"),
        (b'{"prompt": "\\ud800"}', "invalid_json", "is not valid JSON"),
        (b"[" * 5000, "invalid_json", "is not valid JSON"),
        (b"[]", "invalid_json", "must be a JSON object"),
        (b'"a seven"', "invalid_json", "must be a JSON object"),
        (b"null", "invalid_json", "must be a JSON object"),
        (b"{}", "missing_required_parameter", "Missing required parameter: 'prompt'"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "invalid_value", "'guidance_scale': NaN. Must be a finite number"),
        (b'{"prompt": "a", "timeout_s": Infinity}', "invalid_value", "'timeout_s': Infinity."),
        (b'{"prompt": "a", "priority": null, "timeout_s": true}', "invalid_type", "'timeout_s': true. Expected"),
        (b'{"prompt": {"a": null}}', "invalid_type", "'prompt': {\"a\": null}. Expected a string"),
    ],
    ids=lambda case: repr(case)[:40] if isinstance(case, bytes) else "",
)
def test_malformed_body_returns_400(http: httpx.Client, path: str, content: bytes, code: str, fragment: str) -> None:
    answered = http.post(path, content=content, headers={"content-type": "application/json"})
    assert answered.status_code == 400
    error = error_of(answered)
    assert error["code"] == code
    assert fragment in error["message"]


def test_predict_rejects_parameters_of_images_api(http: httpx.Client) -> None:
    error = error_of(http.post("/predict", json={"prompt": "a seven", "n": 2}))
    assert (error["param"], error["code"]) == ("n", "unknown_parameter")


@pytest.mark.parametrize("name", ["dall-e-3", " ", "../quick", "x" * 300])
def test_unknown_model_returns_404(http: httpx.Client, name: str) -> None:
    answered = http.post(GENERATE, json={"prompt": "a seven", "model": name})
    assert answered.status_code == 404
    error = error_of(answered)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "Served: 'quick', 'slow', 'absent'" in error["message"]


def _endless() -> Iterator[bytes]:
    while True:
        yield b" " * 4096


@pytest.mark.parametrize(
    ("path", "most", "more"),
    [
        ("/predict", 20_000, 1),
        ("/predict", 20_000, 5_000_000),
        (GENERATE, 500_000, 1),
        (GENERATE, 500_000, 5_000_000),
        (GENERATE, 500_000, None),  # the client reads only after the server has given up
    ],
)
def test_body_over_limit_returns_413(http: httpx.Client, path: str, most: int, more: int | None) -> None:
    """The server must stop reading to answer an endless chunked body."""
    answered = http.post(path, content=_endless() if more is None else b" " * (most + more))
    assert answered.status_code == 413
    error = error_of(answered)
    assert error["code"] == "body_too_large"
    assert f"{most} bytes" in error["message"]


def test_body_limit_excludes_images(http: httpx.Client) -> None:
    answered = http.post(GENERATE, json={"prompt": "a seven", "user": "x" * 20_000})
    assert answered.status_code == 413
    assert "beside its images" in error_of(answered)["message"]


def test_body_of_exactly_the_limit_is_read(http: httpx.Client) -> None:
    content = b'{"prompt": "a seven"}'
    assert http.post("/predict", content=content + b" " * (20_000 - len(content))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", GENERATE, "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("POST", "/v1/jobs/job_1", "DELETE, GET, HEAD"),
        ("GET", "/v1/models/echo:predict", "POST"),
        ("GET", "/v2/models/echo/infer", "POST"),
        ("PATCH", "/v1/models/echo:predict", "POST"),
        ("POST", "/v1/models/echo", "GET, HEAD"),
        ("GET", "/echo", "POST"),
        ("DELETE", "/", "GET, HEAD"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
    ],
)
def test_wrong_method_names_those_of_the_path(http: httpx.Client, method: str, path: str, allow: str) -> None:
    answered = http.request(method, path)
    assert answered.status_code == 405
    assert answered.headers["allow"] == allow
    error = answered.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message.startswith(f"{method} {path}: this path allows {allow}.")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/models/", 404, "not_found"),
        ("GET", "/docs/", 404, "not_found"),
        ("GET", "/metrics/", 404, "not_found"),
        ("GET", "/healthz/", 404, "not_found"),
        ("GET", "/v1/images", 404, "not_found"),
        ("POST", "/v1/images/generations/", 404, "not_found"),
        ("GET", "/v1/models/nothing", 404, "model_not_found"),
        ("GET", GENERATE, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
        ("GET", "/internal/snapshot", 401, "invalid_api_key"),
        ("GET", "/internal/nothing", 401, "invalid_api_key"),
        ("POST", "/v1/images/variations", 404, "not_found"),
    ],
)
def test_wrong_path_or_method_returns_404_or_405(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answered = http.request(method, path)
    assert answered.status_code == status
    assert error_of(answered)["code"] == code
    if status == 405:
        assert answered.headers["allow"]


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/v1/models"])
def test_key_on_open_path_is_405_before_the_body(shared: Server, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\ncontent-length: 9000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", shared.port), timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 405"


def test_keys_replay_every_path_that_makes_work(http: httpx.Client) -> None:
    posts = {path for path, methods in http.get("/openapi.json").json()["paths"].items() if "post" in methods}
    replayed = ReplayedPaths(["/echo"])
    assert all((path in replayed) is not path.startswith(("/v1/jobs", "/internal/")) for path in posts)


def test_models_cannot_take_a_path_of_the_server(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert [path for path in paths if not path.startswith(RESERVED_PATHS)] == ["/echo"]


@pytest.mark.parametrize("header", ["Bearer", "Bearer wrong", "Basic eDp5", "Bearer \xe9"])
def test_snapshot_requires_internal_token(http: httpx.Client, header: str) -> None:
    answered = http.get("/internal/snapshot", headers=[(b"authorization", header.encode("latin-1"))])
    assert answered.status_code == 401
    assert answered.headers["www-authenticate"] == "Bearer"


def test_unreachable_deadline_returns_503_at_once(http: httpx.Client, shared: Server) -> None:
    """600 steps of a tenth of a second do not fit into ten seconds."""

    def measured() -> bool:
        return any(model.model == "slow" and model.batch_cap for model in shared.snapshot().models)

    wait_until(measured, "a measured step")
    answered = http.post(GENERATE, json={"prompt": "a seven", "model": "slow", "timeout_s": 10})
    assert answered.status_code == 503
    assert error_of(answered)["code"] == "deadline_unreachable"
    about = re.search(r"about (\d+)", error_of(answered)["message"])
    assert about is not None
    assert int(about[1]) >= 60, "steps as measured, which take longer on a busy machine"
    assert 1 <= int(answered.headers["retry-after"]) <= 60


def test_error_truncates_the_path(http: httpx.Client) -> None:
    for answered in (http.get("/" + "x" * 10_000), http.get("/v1/models/" + "x" * 10_000), http.put("/v1/%0a%1b[31m")):
        message = answered.json()["error"]["message"]
        assert len(message) < 300
        assert message.isprintable()
