"""Large JSON bodies are rejected before they become objects, and errors stay small whatever the client sent."""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import pytest

from loadbalancer.jobs.requests import parse_job
from loadbalancer.schema.body_limits import MAX_ENTRIES
from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest
from loadbalancer.schema.parsing import parse, parse_form
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest

MANY = {f"member{i}": 0 for i in range(MAX_ENTRIES + 1)}
#: More CPU time than any rejection takes on a slow machine, and far less than one error for each member does.
MAX_CPU_S = 2.0


def job(**changes: Any) -> dict[str, Any]:
    return {"path": "/predict", "body": {"prompt": "a"}} | changes


@pytest.mark.parametrize(
    ("body", "param", "fragment"),
    [
        ({"prompt": "a"} | MANY, "member0", "Unknown parameter: 'member0'"),
        (MANY | {"prompt": "a"}, "member0", "Unknown parameter: 'member0'"),
        ({"prompt": "a", "loras": [{"name": "ink"}] * 65}, "loras", "'loras': 65 entries. At most 64 are allowed"),
        ({"prompt": "a", "loras": [{"name": "ink"} | MANY]}, "loras", "66 entries"),
        ({"prompt": "a", "loras": [[0] * 100]}, "loras", "100 entries"),
        ({"prompt": [0] * 100}, "prompt", "100 entries"),
        ({"prompt": "a", "member": {"a": MANY}}, "member", "65 entries"),
    ],
    ids=["last", "first", "list", "object in a list", "list in a list", "wrong type", "object in an object"],
)
def test_too_many_entries_are_one_error(body: dict[str, Any], param: str, fragment: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse(ImageRequest, json.dumps(body).encode())
    assert rejected.value.param == param
    assert fragment in rejected.value.message


def test_as_many_entries_as_allowed_are_parsed() -> None:
    loras = [{"name": f"lora{i}"} for i in range(MAX_ENTRIES)]
    assert len(parse(ImageRequest, json.dumps({"prompt": "a", "loras": loras}).encode()).loras or ()) == MAX_ENTRIES


@functools.lru_cache(1)
def _members(count: int) -> bytes:
    return b",".join(b'"%d":0' % i for i in range(count))


@pytest.mark.parametrize(
    ("body", "count", "status"),
    [
        (b'{"path":"/predict",%b}', 1_000_000, 413),
        (b'{"path":"/v1/images/edits","body":{%b}}', 1_000_000, 413),
        (b'{"path":"/v1/images/generations","body":{%b}}', 1_000_000, 413),
        (b'{"path":"/predict","body":{%b}}', 1_000_000, 413),
        (b'{"path":"/predict",%b}', 80_000, 400),
        (b'{"path":"/v1/images/edits","body":{%b}}', 80_000, 400),
        (b'{"path":"/predict","body":{"prompt":"a"},"metadata":{%b}}', 80_000, 400),
    ],
    ids=["members", "edit", "generation", "predict", "members in 1 MiB", "edit in 1 MiB", "metadata in 1 MiB"],
)
def test_job_of_many_members_is_rejected_cheaply(body: bytes, count: int, status: int) -> None:
    body %= _members(count)
    started = time.thread_time()
    with pytest.raises((InvalidRequest, BodyTooLarge)) as rejected:
        parse_job(body, 1 << 20, webhook_private=True)
    assert rejected.value.status == status
    assert time.thread_time() - started < MAX_CPU_S


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        {LONG: 0},
        {"prompt": "a", LONG: [0] * 100},
        {"prompt": "a", "loras": [{LONG: 0}]},
        {"prompt": "a", "size": LONG, LONG: 0},
        {"prompt": "a", "quality": LONG},
        {"prompt": {LONG: LONG}},
        {"prompt": "a", "a\u0000\n\x1b[31m" + LONG: 0},
    ],
    ids=range(7),
)
def test_errors_echo_little_of_the_request(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse(ImageRequest, json.dumps(body).encode())
    assert len(rejected.value.message) < 500
    assert len(rejected.value.param or "") <= 80
    assert (rejected.value.message + (rejected.value.param or "")).isprintable()


@pytest.mark.parametrize("key", [LONG, "a\nb"])
def test_errors_of_jobs_echo_little(key: str) -> None:
    for changes in ({"metadata": {key: 1}}, {key: 1}, {"webhook": {key: 1}}):
        with pytest.raises(InvalidRequest) as rejected:
            parse_job(json.dumps(job(**changes)).encode(), 1 << 20, webhook_private=True)
        assert len(rejected.value.message) < 500
        assert len(rejected.value.param or "") <= 80
        assert (rejected.value.message + (rejected.value.param or "")).isprintable()


def test_errors_of_forms_echo_little() -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse_form(EditRequest, {"prompt": "a", LONG: "a"})
    assert len(rejected.value.message) < 500
    assert len(rejected.value.param or "") <= 80


def test_body_that_is_no_object_is_explained() -> None:
    for body in (b"[" * 100_000, b"[1]", b"null", b"", b'{"prompt": "\xff"}', b'{"a":' * 100_000):
        with pytest.raises(InvalidRequest, match="The request body"):
            parse(PredictRequest, body)
