"""Source images and LoRAs: `/v1/images/edits` and data URLs, through the official client and plain HTTP."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageOps

from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S
from tests.support.images import data_url, file, half, make_image, png
from wire.inputs import ImageInputs, Lora
from worker.engines.sim import expected_image

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
RGB = make_image().tobytes()
MASK = half("L")


def expected(sources: tuple[bytes, ...] = (RGB,), **changes: Any) -> bytes:
    """Return the quick model's image for "a seven", seed 7 and these sources, with `changes`."""
    plain: dict[str, Any] = {"prompt": "a seven", "seed": 7, "width": 64, "height": 64, "steps": 8}
    plain |= {"guidance_scale": 3.0, "scheduler": "ddim"}
    plain |= {"mode": "image", "strength": 0.8} if len(sources) == 1 else {"mode": "inpaint", "strength": 1.0}
    return expected_image(ImageInputs(**plain | changes), sources)


def edit(http: httpx.Client, files: dict[str, bytes] | None = None, **fields: str) -> httpx.Response:
    """Return the response to a form for "a seven" and seed 7."""
    sent = {name: ("a name.txt", content, "text/plain") for name, content in (files or {"image": png()}).items()}
    return http.post(EDIT, files=sent, data={"prompt": "a seven", "seed": "7"} | fields)


def images(answered: httpx.Response) -> list[bytes]:
    assert answered.status_code == 200, answered.text
    return [base64.b64decode(image["b64_json"]) for image in answered.json()["data"]]


@pytest.fixture
def sdk(shared: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}),
        ({"model": "quick", "quality": "auto", "background": "opaque", "input_fidelity": "high", "user": "u"}, {}),
        ({"response_format": "b64_json", "stream": "false", "timeout_s": "59.5", "priority": "-3"}, {}),
        ({"strength": "0.25"}, {"strength": 0.25}),
        ({"num_inference_steps": "5", "guidance_scale": "7"}, {"steps": 5, "guidance_scale": 7.0}),
        ({"negative_prompt": "blur", "scheduler": "euler"}, {"negative_prompt": "blur", "scheduler": "euler"}),
        ({"output_format": "webp", "output_compression": "50"}, {"output_format": "webp", "output_quality": 50}),
        ({"reproducible": "true"}, {"reproducible": True}),
        ({"loras": '[{"name": "ink", "scale": 0.5}]'}, {"loras": (Lora("ink", 0.5),)}),
        ({"prompt": "ein Häuschen, 家"}, {"prompt": "ein Häuschen, 家"}),
    ],
    ids=lambda case: ",".join(case),
)
def test_all_form_fields_reach_the_worker(http: httpx.Client, fields: dict[str, str], changes: dict[str, Any]) -> None:
    assert images(edit(http, None, **fields)) == [expected(**changes)]


def test_all_upload_formats_give_the_same_image(http: httpx.Client) -> None:
    for content in (png(), png(mode="RGBA"), file(make_image(), "WEBP", lossless=True)):
        assert images(edit(http, {"image": content})) == [expected()]
        assert images(edit(http, {"image[]": content})) == [expected()]


@pytest.mark.parametrize(
    ("files", "sources"),
    [
        ({"image": png(), "mask": file(MASK)}, (RGB, MASK.tobytes())),
        ({"image": png(), "mask": file(half("RGBA"))}, (RGB, ImageOps.invert(MASK).tobytes())),
        ({"image": file(half("RGBA"))}, (b"\xff" * 64 * 64 * 3, ImageOps.invert(MASK).tobytes())),
    ],
    ids=["white", "transparent", "the picture's own"],
)
def test_masks(http: httpx.Client, files: dict[str, bytes], sources: tuple[bytes, ...]) -> None:
    assert images(edit(http, files)) == [expected(sources)]
    assert images(edit(http, files, strength="0.5", n="2")) == [
        expected(sources, strength=0.5, seed=seed) for seed in (7, 8)
    ]


@pytest.mark.parametrize(
    ("size", "own", "drawn"),
    [
        (None, (64, 64), (64, 64)),
        ("auto", (100, 70), (96, 72)),
        ("auto", (600, 300), (352, 184)),
        ("96x32", (64, 64), (96, 32)),
    ],
)
def test_sizes(http: httpx.Client, size: str | None, own: tuple[int, int], drawn: tuple[int, int]) -> None:
    answered = edit(http, {"image": png(*own)}, **{} if size is None else {"size": size})
    width, height = drawn
    pixels = make_image(*own).resize(drawn, Image.Resampling.LANCZOS).tobytes()
    assert images(answered) == [expected((pixels,), width=width, height=height)]
    assert answered.json()["size"] == f"{width}x{height}"


@pytest.mark.parametrize("masked", [False, True])
def test_data_urls_in_generations(http: httpx.Client, masked: bool) -> None:
    body = {"prompt": "a seven", "seed": 7, "image": data_url(png())}
    if masked:
        body["mask"] = data_url(file(MASK))
    sources = (RGB, MASK.tobytes()) if masked else (RGB,)
    assert images(http.post(GENERATE, json=body)) == [expected(sources)]
    assert images(http.post(GENERATE, json=body | {"strength": 0.5, "n": 2})) == [
        expected(sources, strength=0.5, seed=seed) for seed in (7, 8)
    ]


def test_generations_put_transparent_image_on_white(http: httpx.Client) -> None:
    """Only an edit uses transparency as a mask."""
    body = {"prompt": "a seven", "seed": 7, "image": data_url(file(half("RGBA")))}
    assert images(http.post(GENERATE, json=body)) == [expected((b"\xff" * 64 * 64 * 3,))]


@pytest.mark.parametrize("path", [GENERATE, "/predict"])
def test_adapters(http: httpx.Client, path: str) -> None:
    loras = [{"name": "ink", "scale": -1.5}, {"name": "fog"}]
    answered = http.post(path, json={"prompt": "a seven", "seed": 7, "loras": loras}).json()
    content = answered["data"][0]["b64_json"] if path == GENERATE else answered["image"]
    wanted = expected((), mode="text", strength=1.0, loras=(Lora("ink", -1.5), Lora("fog", 1.0)))
    assert base64.b64decode(content) == wanted


def test_large_upload_is_read_from_disk(http: httpx.Client) -> None:
    """A noise image does not compress, so its file is nearly as large as the body limit."""
    noise = Image.effect_noise((400, 400), 100).convert("RGB")
    content = file(noise, compress_level=0)
    assert 450_000 < len(content) < 500_000
    pixels = noise.resize((64, 64), Image.Resampling.LANCZOS).tobytes()
    assert images(edit(http, {"image": content}, size="64x64")) == [expected((pixels,))]


# ---- the official client


def form(boundary: bytes) -> bytes:
    """Return a form as an old mail program would write it."""
    file = b"form-data; name=image; filename*=UTF-8''h%C3%A4.png"
    parts = [(b'form-data; name="prompt"', b"a seven"), (b'form-data; name="seed"', b"7"), (file, png())]
    delimiter = b"--%b \t\r\n" % boundary
    body = b"".join(b"%bContent-Disposition: %b\r\n\r\n%b\r\n" % (delimiter, *part) for part in parts)
    return b"This is a multi-part message in MIME format.\r\n\r\n%b--%b--\r\nan epilogue\r\n" % (body, boundary)


def test_form_with_preamble_padding_and_epilogue(http: httpx.Client) -> None:
    headers = {"content-type": 'multipart/form-data; boundary="a b"'}
    assert images(http.post(EDIT, content=form(b"a b"), headers=headers)) == [expected()]


def test_form_is_repeated_with_another_boundary(http: httpx.Client) -> None:
    answers = []
    for boundary in ("one", "another"):
        kind = f"multipart/form-data; boundary={boundary}"
        headers = {"content-type": kind, "accept": "image/png", "idempotency-key": "form"}
        answers.append(http.post(EDIT, content=form(boundary.encode()), headers=headers))
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert answers[0].content == answers[1].content
    assert answers[1].headers["idempotent-replayed"] == "true"


def test_official_client(sdk: openai.OpenAI) -> None:
    answer = sdk.images.edit(
        model="quick",
        image=("picture.png", png(), "image/png"),
        mask=io.BytesIO(file(half("RGBA"))),
        prompt="a seven",
        n=2,
        size="64x64",  # type: ignore[call-overload,unused-ignore]
        input_fidelity="low",
        extra_body={"seed": 7, "loras": json.dumps([{"name": "ink"}])},
    )
    assert answer.data is not None
    sources = RGB, ImageOps.invert(MASK).tobytes()
    assert [base64.b64decode(image.b64_json or "") for image in answer.data] == [
        expected(sources, seed=seed, loras=(Lora("ink"),)) for seed in (7, 8)
    ]
    assert answer.size == "64x64"


def test_official_client_with_a_list_of_one_image(sdk: openai.OpenAI) -> None:
    answer = sdk.images.edit(model="quick", image=[png()], prompt="a seven", extra_body={"seed": 7})
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "") == expected()
    with pytest.raises(openai.BadRequestError, match="Only one image is allowed") as raised:
        sdk.images.edit(model="quick", image=[png(), png()], prompt="a seven")
    assert raised.value.param == "image"


def test_official_client_understands_the_stream(shared: Server, sdk: openai.OpenAI) -> None:
    with shared.stopped("quick-0"):  # until the stream has begun
        stream = sdk.images.edit(
            model="quick",
            image=png(),
            prompt="a seven",
            stream=True,
            partial_images=2,
            extra_body={"seed": 7, "num_inference_steps": 30},
        )
    received = [event for event in stream if event.type in ("image_edit.partial_image", "image_edit.completed")]
    *previews, last = received
    assert previews
    for event in previews:
        assert event.type == "image_edit.partial_image"
        with Image.open(io.BytesIO(base64.b64decode(event.b64_json))) as preview:
            assert preview.size == (64, 64)
    assert last.type == "image_edit.completed"
    assert base64.b64decode(last.b64_json) == expected(steps=30)
    assert (last.size, last.output_format, last.usage.total_tokens) == ("64x64", "png", 0)


async def test_official_async_client(shared: Server) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as sdk:
        answer = await sdk.images.edit(model="quick", image=png(), prompt="a seven", extra_body={"seed": 7})
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "") == expected()
