"""The Open Inference Protocol (KServe V2) as its clients use it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

INFER = "/v2/models/echo/infer"
MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
TENSOR: dict[str, Any] = {"name": "x", "shape": [2, 3], "datatype": "FP32"}


def test_json_tensors_return(http: httpx.Client) -> None:
    answer = http.post(INFER, json={"id": "7", "inputs": [TENSOR | {"data": MATRIX.tolist()}]})
    output = TENSOR | {"data": MATRIX.ravel().tolist()}
    assert answer.json() == {"model_name": "echo", "id": "7", "outputs": [output]}


@pytest.mark.parametrize("key", [None, "tensors"])
def test_binary_tensors_return(http: httpx.Client, key: str | None) -> None:
    """Also when they are replayed: the header with the size of the JSON belongs to the response."""
    request = {
        "inputs": [TENSOR | {"parameters": {"binary_data_size": MATRIX.nbytes}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(request).encode()
    headers = {"inference-header-content-length": str(len(head))} | ({"idempotency-key": key} if key else {})
    for _ in range(2):
        answer = http.post(INFER, content=head + MATRIX.tobytes(), headers=headers)
        size = int(answer.headers["inference-header-content-length"])
        assert json.loads(answer.content[:size])["outputs"][0]["parameters"] == {"binary_data_size": MATRIX.nbytes}
        assert answer.content[size:] == MATRIX.tobytes()


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/v2", 200, {"name": "muster", "extensions": ["binary_tensor_data"]}),
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/models/echo", 200, {"name": "echo", "platform": "simulated", "inputs": [], "outputs": []}),
        ("/v2/models/echo/ready", 200, {"name": "echo", "ready": True}),
        ("/v2/models/absent/ready", 503, {"name": "absent", "ready": False}),
        ("/v2/health/ready", 503, {"error": "No worker is ready for: absent."}),
        ("/v2/models/nothing", 404, {}),
        ("/v2/models/nothing/ready", 404, {}),
        (
            "/v2/models/echo/versions/1/ready",
            404,
            {"error": "Models have no versions here: use /v2/models/echo/infer."},
        ),
    ],
)
def test_metadata_and_health(http: httpx.Client, path: str, status: int, body: dict[str, Any]) -> None:
    answer = http.get(path)
    assert answer.status_code == status, answer.text
    assert answer.json().items() >= body.items()


@pytest.mark.parametrize(
    ("path", "headers", "content", "status", "fragment"),
    [
        (INFER, {}, b"{", 400, "not valid JSON"),
        (INFER, {}, b'{"inputs":[]}', 400, "at least one"),
        (INFER, {"inference-header-content-length": "99"}, b"{}", 400, "Must be at most 2"),
        (INFER, {"inference-header-content-length": "-1"}, b"{}", 400, "Must be at most 2"),
        (INFER, {}, b'{"a":"' + bytes(30_000), 413, "beside its binary tensors"),
        ("/v2/models/quick/infer", {}, b"{}", 400, "use POST /v1/images/generations"),
        ("/v2/models/nothing/infer", {}, b"{}", 404, "does not exist"),
        ("/v2/models/echo/versions/1/infer", {}, b"{}", 404, "no versions"),
    ],
)
def test_errors_have_the_form_of_the_protocol(
    http: httpx.Client, path: str, headers: dict[str, str], content: bytes, status: int, fragment: str
) -> None:
    answer = http.post(path, content=content, headers=headers)
    assert answer.status_code == status
    assert fragment in answer.json()["error"]


def test_failed_call_is_an_error_of_the_protocol(http: httpx.Client) -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["sim:nan"]}
    answer = http.post(INFER, json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()) == (400, {"error": "the value is not allowed, on demand"})


def test_client_of_triton(http: httpx.Client) -> None:
    client_module = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    client = client_module.InferenceServerClient(str(http.base_url).removeprefix("http://").rstrip("/"))
    assert client.is_server_live()
    assert client.is_model_ready("echo")
    text = np.array([["a", "ü"]], dtype=object)
    for binary in (True, False):
        inputs = []
        for name, values, kind in (("x", MATRIX, "FP32"), ("text", text, "BYTES")):
            inputs.append(client_module.InferInput(name, values.shape, kind))
            inputs[-1].set_data_from_numpy(values, binary_data=binary)
        result = client.infer("echo", inputs, request_id="7", timeout=20_000_000)
        assert result.get_response()["id"] == "7"
        assert np.array_equal(result.as_numpy("x"), MATRIX)
        assert [each.decode() for each in result.as_numpy("text").ravel()] == ["a", "ü"]
