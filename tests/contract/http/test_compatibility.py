"""Compatibility with clients of other servers: HEAD, health check paths, compressed bodies, edits as JSON."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest

from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S
from tests.contract.http.test_edits import GENERATE, MASK, RGB, expected, images
from tests.support.images import data_url, file, half, png

EDIT = "/v1/images/edits"
BODY = {"prompt": "a seven", "seed": 7}
PLAIN = json.dumps(BODY).encode()


def code_of(answered: httpx.Response) -> tuple[int, str]:
    return answered.status_code, answered.json()["error"]["code"]


@pytest.mark.parametrize("path", ["/healthz", "/health", "/livez", "/readyz", "/v1/models", "/docs", "/nothing", "/"])
def test_head_equals_get_without_body(http: httpx.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    for name in ("content-type", "content-length", "location"):
        assert head.headers.get(name) == got.headers.get(name)
    assert head.headers["x-request-id"]


def test_head_of_a_stream_ends(http: httpx.Client) -> None:
    job = http.post("/v1/jobs", json={"path": "/predict", "body": {"prompt": "a seven", "model": "slow"}}).json()
    try:
        head = http.head(f"/v1/jobs/{job['id']}/events")
        assert (head.status_code, head.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        assert http.get("/healthz").status_code == 200, "the connection can be used again"
    finally:
        assert http.delete(f"/v1/jobs/{job['id']}").status_code == 200


@pytest.mark.parametrize("path", [GENERATE, "/predict"])
def test_head_is_not_post(http: httpx.Client, path: str) -> None:
    assert http.head(path).status_code == 405


@pytest.mark.parametrize(
    ("coding", "encode"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_body_is_read(http: httpx.Client, coding: str, encode: Any) -> None:
    answered = http.post(GENERATE, content=encode(PLAIN), headers={"content-encoding": coding})
    assert images(answered) == images(http.post(GENERATE, json=BODY))


@pytest.mark.parametrize(
    ("content", "headers", "outcome"),
    [
        (gzip.compress(PLAIN, mtime=0)[:-9], {"content-encoding": "gzip"}, (400, "invalid_body")),
        (gzip.compress(PLAIN, mtime=0) * 2, {"content-encoding": "gzip"}, (400, "invalid_body")),
        (PLAIN, {"content-encoding": "gzip"}, (400, "invalid_body")),
        (gzip.compress(b" " * 600_000 + PLAIN, mtime=0), {"content-encoding": "gzip"}, (413, "body_too_large")),
        (PLAIN, {"content-encoding": "br"}, (415, "unsupported_media_type")),
        (PLAIN, {"content-encoding": "gzip, gzip"}, (415, "unsupported_media_type")),
        (b"--x--", {"content-type": "multipart/form-data; boundary=x"}, (415, "unsupported_media_type")),
    ],
    # Of the content they would differ between two processes of one run: gzip writes the time into it.
    ids=["cut", "two members", "not gzip", "large", "br", "twice", "form"],
)
def test_unusable_body_is_rejected(
    http: httpx.Client, content: bytes, headers: dict[str, str], outcome: tuple[int, str]
) -> None:
    assert code_of(http.post(GENERATE, content=content, headers=headers)) == outcome


def test_compressed_repeated_request_is_replayed(http: httpx.Client) -> None:
    headers = {"content-encoding": "gzip", "idempotency-key": "compressed"}
    first, second = (http.post(GENERATE, content=gzip.compress(PLAIN, mtime=0), headers=headers) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.content == second.content


def test_byte_order_mark_is_ignored(http: httpx.Client) -> None:
    assert http.post(GENERATE, content=b"\xef\xbb\xbf" + PLAIN).status_code == 200


@pytest.mark.parametrize("fields", [{"seed": -1}, {"model": ""}, {"size": ""}, {"bot_task": "image"}, {"n": None}])
def test_default_values_of_other_clients_are_accepted(http: httpx.Client, fields: dict[str, Any]) -> None:
    assert http.post(GENERATE, json={"prompt": "a seven"} | fields).status_code == 200


@pytest.mark.parametrize("masked", [False, True])
def test_edit_as_json(http: httpx.Client, masked: bool) -> None:
    body: dict[str, Any] = BODY | {"images": [{"image_url": data_url(png())}]}
    if masked:
        body["mask"] = {"image_url": data_url(file(half("L")))}
    sources = (RGB, MASK.tobytes()) if masked else (RGB,)
    assert images(http.post(EDIT, json=body)) == [expected(sources)]


@pytest.mark.parametrize(
    ("fields", "param", "fragment"),
    [
        ({}, "images", "Missing required parameter"),
        ({"images": []}, "images", "at least 1"),
        ({"images": [{"image_url": "data:,"}] * 2}, "images", "at most 1"),
        ({"images": [{}]}, "image", "Must be a data URL"),
        ({"images": [{"image_url": "https://example.org/a.png"}]}, "image", "are not fetched"),
        ({"images": [{"file_id": "file-1"}]}, "images[0].file_id", "file_id"),
        ({"images": ["data:,"]}, "images[0]", "an object"),
    ],
)
def test_invalid_json_edit_is_rejected(http: httpx.Client, fields: dict[str, Any], param: str, fragment: str) -> None:
    answered = http.post(EDIT, json=BODY | fields)
    assert answered.status_code == 400
    error = answered.json()["error"]
    assert error["param"] == param
    assert fragment in error["message"]


def test_json_edit_body_limit_excludes_images(http: httpx.Client) -> None:
    image = {"images": [{"image_url": data_url(png()) + "A" * 30_000}]}
    assert http.post(EDIT, json=BODY | image).status_code != 413
    answered = http.post(EDIT, json=BODY | image | {"user": "x" * 20_000})
    assert code_of(answered) == (413, "body_too_large")


def test_unknown_path_suggests_the_nearest(shared: Server) -> None:
    answered = httpx.post(f"{shared.base_url}/images/generations", json=BODY, timeout=PATIENCE_S)
    assert answered.status_code == 404
    assert "Did you mean /v1/images/generations?" in answered.json()["error"]["message"]
