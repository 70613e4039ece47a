"""`POST /v1/images/generations` and `/predict`, against a real server, through the official client and plain HTTP."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S
from tests.contract.conftest import MAX_QUEUED
from wire.inputs import ImageInputs
from worker.engines.sim import expected_image

GENERATE = "/v1/images/generations"


def inputs(**changes: Any) -> ImageInputs:
    """Return the quick model's inputs for "a seven" and seed 7, with `changes`."""
    plain: dict[str, Any] = {"prompt": "a seven", "seed": 7}
    plain |= {"width": 64, "height": 64, "steps": 8, "guidance_scale": 3.0, "scheduler": "ddim"}
    return ImageInputs(**plain | changes)


@pytest.fixture
def sdk(shared: Server) -> Any:
    with openai.OpenAI(base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {}),
        ({"model": None, "n": None, "size": None, "user": None, "stream": None}, {}),
        ({"size": "auto", "quality": "standard", "background": "opaque", "style": "vivid", "moderation": "low"}, {}),
        ({"quality": "auto", "user": "u", "safety_identifier": "s", "response_format": "b64_json"}, {}),
        *(({"quality": quality}, {}) for quality in ("low", "medium", "high", "standard", "hd")),
        ({"style": "natural", "background": "auto", "moderation": "low", "output_compression": 100}, {}),
        ({"n": None, "response_format": None, "quality": None, "stream": None, "size": None, "seed": 7}, {}),
        ({"size": "96x32"}, {"width": 96, "height": 32}),
        ({"output_format": "jpeg"}, {"output_format": "jpeg"}),
        ({"output_format": "jpeg", "output_compression": 40}, {"output_format": "jpeg", "output_quality": 40}),
        ({"output_format": "webp", "output_compression": 0}, {"output_format": "webp", "output_quality": 0}),
        ({"output_compression": 100}, {}),
        ({"num_inference_steps": 3}, {"steps": 3}),
        ({"guidance_scale": 0}, {"guidance_scale": 0.0}),
        ({"guidance_scale": 7.25}, {"guidance_scale": 7.25}),
        ({"negative_prompt": "blur"}, {"negative_prompt": "blur"}),
        ({"scheduler": "DPMpp-2M"}, {"scheduler": "dpmpp_2m"}),
        ({"scheduler": "EulerDiscreteScheduler"}, {"scheduler": "euler"}),
        ({"seed": 2**32 - 1}, {"seed": 2**32 - 1}),
        ({"timeout_s": 59, "priority": -3, "partial_images": 0}, {}),
    ],
    ids=lambda case: ",".join(case) if isinstance(case, dict) else None,
)
def test_all_parameters_reach_the_worker(http: httpx.Client, body: dict[str, Any], expected: dict[str, Any]) -> None:
    answered = http.post(GENERATE, json={"prompt": "a seven", "seed": 7} | body)
    assert answered.status_code == 200, answered.text
    wanted = inputs(**expected)
    answer = answered.json()
    (image,) = answer["data"]
    assert base64.b64decode(image["b64_json"]) == expected_image(wanted)
    assert image["seed"] == wanted.seed
    assert image["timings"]["queued_s"] >= 0
    assert image["timings"]["running_s"] > 0
    assert answer["size"] == f"{wanted.width}x{wanted.height}"
    assert answer["output_format"] == wanted.output_format
    assert answer["model"] == "quick"
    assert answer["background"] == "opaque"


def test_images_have_consecutive_seeds_in_order(http: httpx.Client) -> None:
    seeds = [2**32 - 2, 2**32 - 1, 0, 1]
    data = http.post(GENERATE, json={"prompt": "a seven", "n": 4, "seed": seeds[0]}).json()["data"]
    assert [image["seed"] for image in data] == seeds
    assert [base64.b64decode(image["b64_json"]) for image in data] == [
        expected_image(inputs(seed=seed)) for seed in seeds
    ]


def test_random_seed_repeats_its_image(http: httpx.Client) -> None:
    first, second = (http.post(GENERATE, json={"prompt": "a seven"}).json()["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    again = http.post(GENERATE, json={"prompt": "a seven", "seed": first["seed"]}).json()["data"][0]
    assert again["b64_json"] == first["b64_json"]


def test_official_client(sdk: openai.OpenAI) -> None:
    answer = sdk.images.generate(
        model="quick",
        prompt="a seven",
        n=2,
        size="64x64",  # type: ignore[call-overload,unused-ignore]
        extra_body={"seed": 7, "num_inference_steps": 5},
    )
    assert answer.data is not None
    assert [base64.b64decode(image.b64_json or "") for image in answer.data] == [
        expected_image(inputs(seed=seed, steps=5)) for seed in (7, 8)
    ]
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")


async def test_official_async_client(shared: Server) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as sdk:
        answer = await sdk.images.generate(model="quick", prompt="a seven", extra_body={"seed": 7})
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "") == expected_image(inputs())


def test_official_client_raises_its_own_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.images.generate(model="quick", prompt="a seven", size="1024x1024")
    assert (raised.value.param, raised.value.code) == ("size", "invalid_value")
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.images.generate(model="dall-e-3", prompt="a seven")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    with sdk.images.generate(model="absent", prompt="a seven", n=MAX_QUEUED, stream=True) as waiting:
        next(waiting)  # the tasks fill the queue
        with pytest.raises(openai.RateLimitError) as full:
            sdk.images.generate(model="absent", prompt="a seven")
    assert full.value.code == "queue_full"
    assert int(full.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.InternalServerError) as failed:
        sdk.images.generate(model="quick", prompt="sim:fail", n=2)
    assert failed.value.response.headers["x-should-retry"] == "false"


def test_request_past_timeout_returns_504(http: httpx.Client) -> None:
    answered = http.post(GENERATE, json={"model": "absent", "prompt": "a seven", "timeout_s": 0.3})
    assert answered.status_code == 504
    assert answered.json()["error"]["code"] == "timeout"
    assert int(answered.headers["retry-after"]) >= 1


def test_failing_request_does_not_affect_others(http: httpx.Client) -> None:
    failed = http.post(GENERATE, json={"prompt": "sim:fail"})
    assert failed.status_code == 500
    assert failed.json()["error"] == {
        "message": "The image could not be generated: step failed: a failure on demand",
        "type": "server_error",
        "param": None,
        "code": "generation_failed",
    }
    assert http.post(GENERATE, json={"prompt": "a seven"}).status_code == 200


def test_predict(http: httpx.Client) -> None:
    answered = http.post("/predict", json={"prompt": "a seven", "seed": 7, "size": "32x32"})
    assert answered.json().keys() == {"image"}
    picture = base64.b64decode(answered.json()["image"])
    assert picture == expected_image(inputs(width=32, height=32))
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.size) == ("PNG", (32, 32))


def test_content_type_of_json_body_is_ignored(http: httpx.Client) -> None:
    """`curl -d` sends the content type of a form."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert http.post("/predict", content=b'{"prompt": "a seven"}', headers=headers).status_code == 200


def test_unsafe_image_is_flagged_and_returned(http: httpx.Client) -> None:
    asked = {"model": "quick", "prompt": "a seven, sim:flag", "n": 2, "num_inference_steps": 2}
    data = http.post("/v1/images/generations", json=asked).json()["data"]
    assert [image["flagged"] for image in data] == [True, True]
    assert all(image["b64_json"] for image in data)
    fine = http.post("/v1/images/generations", json=asked | {"prompt": "a seven"}).json()["data"]
    assert all("flagged" not in image for image in fine)


def test_a_prompt_that_was_cut_is_said_in_every_answer(http: httpx.Client) -> None:
    prompt = "a seven, sim:truncate"
    body = {"model": "quick", "prompt": prompt, "num_inference_steps": 2}
    for fields, found in (({}, len(prompt)), ({"prompt": "a seven"}, None)):
        image = http.post(GENERATE, json=body | fields).json()["data"][0]
        assert image.get("truncated_tokens") == found
        file = http.post(GENERATE, json=body | fields, headers={"accept": "image/png"})
        assert file.headers.get("x-muster-truncated-tokens") == (str(found) if found else None)
        events = http.post(GENERATE, json=body | fields | {"stream": True}).text
        [completed] = [line for line in events.splitlines() if line.startswith("data:") and "completed" in line]
        assert json.loads(completed.removeprefix("data:")).get("truncated_tokens") == found
        job = http.post("/v1/jobs", json={"path": GENERATE, "body": body | fields}).json()["id"]
        http.get(f"/v1/jobs/{job}/events")  # until its end
        stored = http.get(f"/v1/jobs/{job}/result").json()
        assert stored["data"][0].get("truncated_tokens") == found


@pytest.mark.parametrize(
    ("path", "body", "accept", "expected"),
    [
        (GENERATE, {}, "image/png", {}),
        (GENERATE, {"n": 1}, "image/*", {}),
        (GENERATE, {}, "image/webp, application/json;q=0.9", {"output_format": "webp"}),
        (GENERATE, {"output_format": "jpeg"}, "image/jpeg", {"output_format": "jpeg"}),
        ("/predict", {}, "image/png", {}),
    ],
)
def test_accept_returns_the_file(
    http: httpx.Client, path: str, body: dict[str, Any], accept: str, expected: dict[str, Any]
) -> None:
    request = {"prompt": "a seven", "seed": 7} | body
    for replayed in (False, True):
        headers = {"accept": accept, "idempotency-key": f"file {path} {accept}".replace(" ", "-").replace(",", ";")}
        answer = http.post(path, json=request, headers=headers)
        assert answer.headers["content-type"] == f"image/{expected.get('output_format', 'png')}"
        assert answer.headers["x-muster-seed"] == "7"
        assert answer.content == expected_image(inputs(**expected))
        assert ("idempotent-replayed" in answer.headers) is replayed


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "application/json, image/png", "broken"])
def test_accept_of_other_types_returns_json(http: httpx.Client, accept: str) -> None:
    answer = http.post(GENERATE, json={"prompt": "a seven"}, headers={"accept": accept})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "body", "accept", "fragment"),
    [
        (GENERATE, {"n": 2}, "image/png", "the request is for 2 images"),
        (GENERATE, {"stream": True}, "image/png", "the request is for a stream"),
        (GENERATE, {"response_format": "url"}, "image/png", "the request is for a URL"),
        (GENERATE, {"output_format": "jpeg"}, "image/png", "output_format is jpeg"),
        ("/predict", {}, "image/webp", "This path generates PNG files, and Accept asks for image/webp"),
    ],
)
def test_file_that_cannot_be_is_406(
    http: httpx.Client, path: str, body: dict[str, Any], accept: str, fragment: str
) -> None:
    answer = http.post(path, json={"prompt": "a seven"} | body, headers={"accept": accept})
    assert (answer.status_code, answer.json()["error"]["code"]) == (406, "not_acceptable")
    assert fragment in answer.json()["error"]["message"]
