"""Invalid uploads: the error names the parameter, and the server stays healthy."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.images import animated, bomb, data_url, file, half, make_image, png

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>'

Files = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def healthy_afterwards(shared: Server, http: httpx.Client) -> Iterator[None]:
    """After rejected requests, nothing is queued and the next image is served."""
    yield
    wait_until(lambda: all(model.queued == model.running == 0 for model in shared.snapshot().models), "idle models")
    answered = http.post(EDIT, files={"image": png()}, data={"prompt": "a seven", "num_inference_steps": "2"})
    assert answered.status_code == 200, answered.text


def post(http: httpx.Client, files: Files, fields: dict[str, Any]) -> httpx.Response:
    return http.post(EDIT, files=[(name, ("name", content)) for name, content in files], data=fields)


def error_of(answered: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answered.status_code == status, answered.text
    error = answered.json()["error"]
    assert error["type"] == "invalid_request_error"
    return dict(error)


#: (files, fields beside the prompt, named parameter, part of the message)
REFUSED: list[tuple[Files, dict[str, Any], str, str]] = [
    ([("image", b"")], {}, "image", "the file is empty"),
    ([("image", b"some text")], {}, "image", "not a PNG, JPEG or WebP file"),
    ([("image", SVG)], {}, "image", "not a PNG, JPEG or WebP file"),
    ([("image", file(make_image(), "GIF"))], {}, "image", "not a PNG, JPEG or WebP file"),
    ([("image", animated("PNG"))], {}, "image", "animated"),
    ([("image", animated("WEBP"))], {}, "image", "animated"),
    ([("image", file(make_image(), "JPEG")[:-100])], {}, "image", "broken or cut short"),
    ([("image", png()[:-100])], {}, "image", "broken or cut short"),
    ([("image", bomb(60_000, 60_000))], {}, "image", "60000x60000 is 3600000000 pixels; at most 25000000 are allowed"),
    ([("image", bomb(2**31 - 1, 2**31 - 1))], {}, "image", "at most 25000000 are allowed"),
    ([("image", png(8, 520))], {}, "image", "has the aspect ratio of 8x520"),
    ([("image", png()), ("image", png())], {}, "image", "Only one image is allowed"),
    ([("image", png()), ("image[]", png())], {}, "image", "Only one image is allowed"),
    ([("image[]", png()), ("image[]", png())], {}, "image", "Only one image is allowed"),
    ([("mask", png())], {}, "image", "Missing required parameter: 'image'"),
    ([("picture", png())], {}, "picture", "files are allowed in 'image' and 'mask'"),
    ([("image", png()), ("prompt", b"a seven")], {}, "prompt", "Unexpected file in 'prompt'"),
    ([("image", png()), ("mask", png()), ("mask", png())], {}, "mask", "Only one image is allowed"),
    ([("image", png()), ("mask", png(64, 72))], {}, "mask", "it is 64x72 and the image 64x64"),
    ([("image", png()), ("mask", b"no")], {}, "mask", "not a PNG, JPEG or WebP file"),
    ([("image", png()), ("mask", bomb(60_000, 60_000))], {}, "mask", "at most 25000000"),
    ([("image", png()), ("mask", file(half("L").point(lambda _: 0)))], {}, "mask", "it marks nothing"),
    ([("image", png()), ("mask", png(mode="RGBA"))], {}, "mask", "it marks nothing"),
    ([("image", png())], {"mask": "http://127.0.0.1/mask.png"}, "mask", "expected a file"),
    ([("image", png())], {"prompt": ["one", "two"]}, "prompt", "more than once"),
    ([("image", png())], {"n": "two"}, "n", "Invalid type for 'n': 'two'. Expected an integer"),
    ([("image", png())], {"n": "6"}, "n", "Must be between 1 and 5"),
    ([("image", png())], {"stream": "1"}, "stream", "Expected a boolean"),
    ([("image", png())], {"size": "24x24"}, "size", "at least 32"),
    ([("image", png())], {"strength": "1.01"}, "strength", "at most 1"),
    ([("image", png())], {"strength": "0"}, "strength", "greater than 0"),
    ([("image", png())], {"strength": "0.1"}, "strength", "Of 8 steps it leaves none"),
    ([("image", png())], {"style": "vivid"}, "style", "Unknown parameter: 'style'"),
    ([("image", png())], {"loras": "ink"}, "loras", "Expected a list"),
    ([("image", png())], {"loras": '[{"name": "rain"}]'}, "loras[0].name", "no such adapter"),
    ([("image", png())], {"loras": '[{"name": "folder"}]'}, "loras[0].name", "no such adapter"),
    ([("image", png())], {"loras": '[{"name": "../adapters0/ink"}]'}, "loras[0].name", "Must be 1 to 128 letters"),
    ([("image", png())], {"loras": '[{"name": "ink", "scale": 5}]'}, "loras[0].scale", "between -4.0 and 4.0"),
    ([("image", png())], {"model": "slow", "loras": '[{"name": "ink"}]'}, "loras", "takes no LoRA adapters"),
]


@pytest.mark.parametrize(("files", "fields", "param", "fragment"), REFUSED, ids=range(len(REFUSED)))
def test_invalid_form_returns_400(
    http: httpx.Client, files: Files, fields: dict[str, Any], param: str, fragment: str
) -> None:
    prompt = {} if any(name == "prompt" for name, _ in files) else {"prompt": "a seven"}
    error = error_of(post(http, files, prompt | fields))
    assert error["param"] == param
    assert fragment in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "fragment"),
    [
        ({"image": "https://127.0.0.1/picture.png"}, "image", "other addresses are not fetched"),
        ({"image": "file:///etc/passwd"}, "image", "other addresses are not fetched"),
        ({"image": ""}, "image", "Must be a data URL"),
        ({"image": "data:image/png;base64,%%%"}, "image", "is not base64"),
        ({"image": "data:image/png;base64,"}, "image", "the file is empty"),
        ({"image": data_url(b"some text")}, "image", "not a PNG, JPEG or WebP file"),
        ({"image": data_url(bomb(60_000, 60_000))}, "image", "at most 25000000 are allowed"),
        ({"image": [data_url(png())]}, "image", "Expected a string"),
        ({"image": data_url(png()), "mask": "nothing"}, "mask", "Must be a data URL"),
        ({"image": data_url(png()), "mask": data_url(png(72, 64))}, "mask", "it is 72x64"),
        ({"mask": data_url(png())}, "mask", "needs a source image"),
        ({"strength": 0.5}, "strength", "needs a source image"),
        ({"loras": [{"name": "/etc/passwd"}]}, "loras[0].name", "Must be 1 to 128 letters"),
        ({"loras": [{"name": "ink"}] * 2}, "loras[1].name", "named twice"),
        ({"loras": [{"name": "ink"}] * 5}, "loras", "at most 4 are allowed"),
        ({"model": "slow", "loras": [{"name": "ink"}]}, "loras", "takes no LoRA adapters"),
    ],
    ids=lambda case: json.dumps(case)[:40] if isinstance(case, dict) else "",
)
def test_invalid_body_returns_400(http: httpx.Client, body: dict[str, Any], param: str, fragment: str) -> None:
    error = error_of(http.post(GENERATE, json={"prompt": "a seven"} | body))
    assert error["param"] == param
    assert fragment in error["message"]


def test_missing_file_is_named(http: httpx.Client) -> None:
    for files, fields, param in (
        ([("image", png())], {}, "prompt"),
        ([("mask", png())], {"prompt": "a seven"}, "image"),
    ):
        error = error_of(post(http, files, fields))
        assert (error["param"], error["code"]) == (param, "missing_required_parameter")


# ---- malformed forms

PART = b'--b\r\nContent-Disposition: form-data; name="prompt"%b\r\n\r\n%b\r\n'
UTF_16, LATIN_1 = (b"\r\nContent-Type: text/plain; charset=%b" % name for name in (b"utf-16", b"latin-1"))
PROMPT = PART % (b"", b"a seven")


def raw(http: httpx.Client, body: bytes, content_type: str) -> httpx.Response:
    return http.post(EDIT, content=body, headers={"content-type": content_type})


@pytest.mark.parametrize(
    ("body", "content_type", "fragment"),
    [
        (PROMPT, "multipart/form-data", "Missing boundary"),
        (PROMPT, 'multipart/form-data; boundary=""', "form"),
        (PROMPT, "multipart/form-data; boundary=other", "does not begin with the boundary"),
        (b"garbage", "multipart/form-data; boundary=b", "does not begin with the boundary"),
        (PROMPT.replace(b"\r\n", b"\n") + b"--b--\n", "multipart/form-data; boundary=b", "must end in CRLF"),
        (PROMPT.replace(b"; ", b";\r\n "), "multipart/form-data; boundary=b", "Found invalid character 32 in header"),
        (
            b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n",
            "multipart/form-data; boundary=b",
            "must be provided",
        ),
        (PROMPT * 65 + b"--b--\r\n", "multipart/form-data; boundary=b", "Too many fields"),
        ((PART % (b'; filename="x"', b"x")) * 17 + b"--b--\r\n", "multipart/form-data; boundary=b", "Too many files"),
        (PROMPT + b"--b--\r\n", "multipart/form-data; boundary=b; charset=undefined", "set is 'undefined'"),
        (PROMPT + b"--b--\r\n", "multipart/form-data; boundary=b; charset=punycode", "set is 'punycode'"),
        (PROMPT + b"--b--\r\n", 'multipart/form-data; charset="IDNA"; boundary=b', "set is 'idna'"),
        (PART % (UTF_16, b"a") + b"--b--\r\n", "multipart/form-data; boundary=b", "set is 'utf-16'"),
        (PART % (LATIN_1, b"a") + b"--b--\r\n", "multipart/form-data; boundary=b", "a part is in 'latin-1'"),
        (PROMPT, "multipart/form-data; boundary=b", "ends before its last boundary"),
        (PROMPT[:-2], "multipart/form-data; boundary=b", "ends before its last boundary"),
        (PROMPT + b"--b", "multipart/form-data; boundary=b", "ends before its last boundary"),
        (PROMPT + b"--b--", "multipart/form-data; boundary=b", "Missing required parameter"),
    ],
    ids=range(18),
)
def test_unreadable_form_returns_400(http: httpx.Client, body: bytes, content_type: str, fragment: str) -> None:
    error = error_of(raw(http, body, content_type))
    assert fragment in error["message"]
    assert error["code"] in {"invalid_form", "missing_required_parameter"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", ""),
        (b'{"prompt": "a seven"}', "text/plain"),
        (b"prompt=a+seven", "application/x-www-form-urlencoded"),
        (PROMPT + b"--b--", "multipart/mixed; boundary=b"),
    ],
)
def test_neither_form_nor_json_returns_415(http: httpx.Client, body: bytes, content_type: str) -> None:
    answered = raw(http, body, content_type)
    assert answered.status_code == 415
    assert "takes multipart/form-data, or application/json" in answered.json()["error"]["message"]


@pytest.mark.parametrize(
    ("images", "param", "fragment"),
    [
        ({"image": "data:"}, "image", "Did you mean 'images'?"),
        ({"images": []}, "images", "Must have at least 1 entry."),
        ({"images": [{}, {}]}, "images", "Must have at most 1 entry."),
        ({"images": None}, "images", "Invalid type for 'images': null. Expected a list."),
        ({}, "images", "Missing required parameter"),
    ],
)
def test_wrong_images_of_a_json_edit_are_explained(
    http: httpx.Client, images: dict[str, Any], param: str, fragment: str
) -> None:
    answered = http.post(EDIT, json={"prompt": "a seven"} | images)
    error = error_of(answered)
    assert error["param"] == param
    assert fragment in error["message"]


@pytest.mark.parametrize("fields", [{"user": "x" * 20_001}, {"user": "x" * 12_000, "safety_identifier": "x" * 12_000}])
def test_texts_of_a_form_share_one_limit(http: httpx.Client, fields: dict[str, str]) -> None:
    error = error_of(post(http, [("image", png())], {"prompt": "a seven"} | fields), 413)
    assert "larger beside its images than 20000 bytes" in error["message"]


@pytest.mark.parametrize("path", [GENERATE, "/predict", "/v1/jobs"])
@pytest.mark.parametrize("charset", ["utf-16", "utf-7", "punycode", "x" * 200])
def test_json_in_another_charset_returns_400(http: httpx.Client, path: str, charset: str) -> None:
    content_type = f"application/json; charset={charset}"
    answered = http.post(path, content=b'{"prompt": "a seven"}', headers={"content-type": content_type})
    error = error_of(answered)
    assert error["code"] == "invalid_json"
    assert "JSON must be UTF-8" in error["message"]
    assert len(error["message"]) < 200


def _endless() -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    while True:
        yield b" " * 4096


@pytest.mark.parametrize("endless", [False, True])
def test_form_over_limit_returns_413(http: httpx.Client, endless: bool) -> None:
    content: Any = _endless() if endless else b" " * 500_001
    answered = http.post(EDIT, content=content, headers={"content-type": "multipart/form-data; boundary=b"})
    error = error_of(answered, 413)
    assert (error["code"], answered.headers["connection"]) == ("body_too_large", "close")
    assert "500000 bytes" in error["message"]


def test_disconnect_within_form_logs_no_error(shared: Server, http: httpx.Client) -> None:
    head = f"POST {EDIT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection(("127.0.0.1", shared.port), timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode() + b"content-length: 9000\r\n\r\n" + PROMPT)
    wait_until(lambda: f'muster_http_requests_total{{route="{EDIT}",status="499"}}' in http.get("/metrics").text, "499")
    assert "Traceback" not in shared.log("loadbalancer")
