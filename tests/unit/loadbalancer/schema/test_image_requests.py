"""Validation of LoRAs, source images and engine capabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from configs.model_settings import Model
from configs.settings import Settings
from loadbalancer.generation.decoding.messages import SourceImages
from loadbalancer.generation.validation import (
    GenerationSpec,
    ImageModel,
    image_model,
    requested_size,
    resolve_images,
    resolve_model,
    resolve_request,
    with_source_images,
)
from loadbalancer.scheduling.task import TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.errors import ContentRefused, InvalidRequest, from_ended
from loadbalancer.schema.parsing import parse
from loadbalancer.schema.requests import BaseImageRequest, ImageRequest, PredictRequest
from wire.inputs import ImageInputs, Lora
from wire.messages import EngineInfo

ABLE = EngineInfo("AblePipeline", modes=("text", "image", "inpaint"), loras=True, reproducible=True)
TEXT_ONLY = EngineInfo("TextPipeline", modes=("text",))
INPAINT_ONLY = EngineInfo("InpaintPipeline", modes=("inpaint",))
ADAPTERS = ["ink", "fog", "snow", "v1.5_b-2"]
URL = "data:image/png;base64,AAAA"
PLAIN = SourceImages(64, 32, (bytes(64 * 32 * 3),))
MASKED = SourceImages(64, 32, (bytes(64 * 32 * 3), bytes(64 * 32)))


def settings(**model: Any) -> Settings:
    limits = {"max_loras": 2, "max_lora_scale": 2.0, "min_side": 32}
    return Settings(
        models={
            "first": Model.model_validate(
                {
                    "path": "builtin:digits",
                    "loras": Path("adapters"),
                    "defaults": {"steps": 20, "strength": 0.6},
                    "limits": limits,
                }
                | model
            )
        }
    )


class Known(NamedTuple):
    """What is known of a model beside its settings."""

    engine: EngineInfo | None = None
    loras: Sequence[str] = ()


def image_model_of(settings: Settings, requested: BaseImageRequest, known: Known) -> ImageModel:
    name = resolve_model(requested.model, settings)
    return image_model(name, settings.models[name], known.engine, known.loras)


def resolve(known: Known | None = None, model: dict[str, Any] | None = None, **body: Any) -> GenerationSpec:
    requested = parse(ImageRequest, json.dumps({"prompt": "a seven"} | body).encode())
    own = settings(**model or {})
    return resolve_images(requested, image_model_of(own, requested, known or Known(ABLE, ADAPTERS)), own.server, 7)


def complete(sources: SourceImages, known: Known | None = None, **body: Any) -> GenerationSpec:
    requested = parse(ImageRequest, json.dumps({"prompt": "a seven", "image": URL} | body).encode())
    model = image_model_of(settings(), requested, known or Known(ABLE))
    job = resolve_images(requested, model, settings().server, 7)
    return with_source_images(job, sources, requested, model)


# ---- LoRA adapters


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ([], ()),
        ([{"name": "ink"}], (Lora("ink", 1.0),)),
        ([{"name": "ink", "scale": None}], (Lora("ink", 1.0),)),
        ([{"name": "fog", "scale": -2}, {"name": "ink", "scale": 2.0}], (Lora("fog", -2.0), Lora("ink", 2.0))),
        ([{"name": "v1.5_b-2", "scale": 0}], (Lora("v1.5_b-2", 0.0),)),
    ],
)
def test_loras_are_resolved(requested: list[dict[str, Any]], expected: tuple[Lora, ...]) -> None:
    assert [inputs.loras for inputs in resolve(loras=requested, n=2).inputs] == [expected, expected]
    predict = parse(PredictRequest, json.dumps({"prompt": "a", "loras": requested}).encode())
    model = image_model_of(settings(), predict, Known(ABLE, ADAPTERS))
    assert resolve_request(predict, model, settings().server, 7).inputs[0].loras == expected


@pytest.mark.parametrize(
    ("requested", "param", "fragment"),
    [
        ("ink", "loras", "Expected a list"),
        (["ink"], "loras[0]", "Expected an object"),
        ([{}], "loras[0].name", "Missing required parameter: 'loras[0].name'"),
        ([{"name": 7}], "loras[0].name", "Expected a string"),
        ([{"name": "ink", "scale": "1"}], "loras[0].scale", "Expected a number"),
        ([{"name": "ink"}, {"name": "fog", "weight": 1}], "loras[1].weight", "Unknown parameter: 'loras[1].weight'"),
        ([{"name": "ink", "scales": 1}], "loras[0].scales", "Did you mean 'scale'?"),
        ([{"name": "rain"}], "loras[0].name", "no such adapter"),
        ([{"name": "ink"}, {"name": "ink"}], "loras[1].name", "named twice"),
        ([{"name": "ink"}, {"name": "fog"}, {"name": "snow"}], "loras", "at most 2 are allowed"),
        ([{"name": "ink"}, {"name": "fog", "scale": 2.01}], "loras[1].scale", "between -2.0 and 2.0"),
        ([{"name": "ink", "scale": -2.01}], "loras[0].scale", "between -2.0 and 2.0"),
        *[
            ([{"name": name}], "loras[0].name", "Must be 1 to 128 letters")
            for name in ("", ".", "..", "../ink", "/etc/ink", "a/b", "a\\b", ".ink", "-ink", "ink\n", "ïnk", "x" * 129)
        ],
    ],
)
def test_invalid_loras_are_rejected(requested: Any, param: str, fragment: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        resolve(loras=requested)
    assert rejected.value.param == param
    assert fragment in rejected.value.message


@pytest.mark.parametrize(
    ("known", "model"),
    [(Known(TEXT_ONLY, ADAPTERS), {}), (Known(ABLE, ADAPTERS), {"loras": None})],
)
def test_loras_of_unsupporting_model_are_rejected(known: Known, model: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="takes no LoRA adapters") as rejected:
        resolve(known, model, loras=[{"name": "ink"}])
    assert rejected.value.param == "loras"
    assert resolve(known, model, loras=[]).inputs[0].loras == ()


# ---- engine capabilities


@pytest.mark.parametrize(
    ("requested", "configured", "expected"),
    [(None, False, False), (True, False, True), (False, True, True), (None, True, True), (False, False, False)],
)
def test_reproducible_by_request_or_configuration(requested: bool | None, configured: bool, expected: bool) -> None:
    assert resolve(model={"reproducible": configured}, reproducible=requested).inputs[0].reproducible is expected


def test_reproducible_of_unsupporting_engine_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match=r"TextPipeline.*cannot promise") as rejected:
        resolve(Known(TEXT_ONLY), reproducible=True)
    assert rejected.value.param == "reproducible"
    assert not resolve(Known(TEXT_ONLY), reproducible=False).inputs[0].reproducible


def test_unknown_engine_accepts_all_capabilities() -> None:
    assert resolve(Known(None, ADAPTERS), reproducible=True, loras=[{"name": "ink"}]).inputs[0].reproducible
    assert complete(MASKED, Known()).inputs[0].mode == "inpaint"


@pytest.mark.parametrize(
    ("about", "sources", "fragment"),
    [
        (TEXT_ONLY, PLAIN, "cannot generate from an image. It supports text only"),
        (TEXT_ONLY, MASKED, "cannot generate from an image with a mask. It supports text only"),
        (INPAINT_ONLY, PLAIN, "cannot generate from an image. It supports an image with a mask"),
        (INPAINT_ONLY, None, "cannot generate from text only. It supports an image with a mask"),
    ],
)
def test_input_unsupported_by_engine_is_refused(about: EngineInfo, sources: SourceImages | None, fragment: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        complete(sources, Known(about)) if sources else resolve(Known(about))
    assert rejected.value.param == "image"
    assert fragment in rejected.value.message


# ---- source images


@pytest.mark.parametrize(
    ("sources", "body", "mode", "strength"),
    [
        (PLAIN, {}, "image", 0.6),
        (PLAIN, {"strength": 0.05}, "image", 0.05),
        (PLAIN, {"strength": 1}, "image", 1.0),
        (MASKED, {}, "inpaint", 1.0),
        (MASKED, {"strength": 0.5}, "inpaint", 0.5),
    ],
)
def test_source_images_set_mode_strength_and_size(
    sources: SourceImages, body: dict[str, Any], mode: str, strength: float
) -> None:
    job = complete(sources, n=2, seed=5, **body)
    assert job.sources == sources.frames
    assert job.inputs[0].shape.key == "64x32"
    for seed, inputs in zip((5, 6), job.inputs, strict=True):
        assert (inputs.mode, inputs.strength, inputs.seed) == (mode, strength, seed)
        assert (inputs.width, inputs.height) == (64, 32)


@pytest.mark.parametrize(
    ("body", "size"), [({}, None), ({"size": None}, None), ({"size": "auto"}, None), ({"size": "96x64"}, (96, 64))]
)
def test_requested_size_is_none_without_explicit_size(body: dict[str, Any], size: tuple[int, int] | None) -> None:
    requested = parse(ImageRequest, json.dumps({"prompt": "a", "image": URL} | body).encode())
    assert (
        requested_size(
            requested, resolve_images(requested, image_model_of(settings(), requested, Known()), settings().server, 7)
        )
        == size
    )


@pytest.mark.parametrize(
    ("body", "param", "fragment"),
    [
        ({"strength": 0.5}, "strength", "needs a source image"),
        ({"mask": URL}, "mask", "needs a source image"),
        ({"image": None, "mask": URL}, "mask", "needs a source image"),
        ({"image": 7}, "image", "Expected a string"),
        ({"image": URL, "size": "24x64"}, "size", "at least 32"),
    ],
)
def test_parameters_without_source_image_are_rejected(body: dict[str, Any], param: str, fragment: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        resolve(**body)
    assert rejected.value.param == param
    assert fragment in rejected.value.message


@pytest.mark.parametrize(("steps", "strength", "allowed"), [(20, 0.05, True), (19, 0.05, False), (1, 0.99, False)])
def test_strength_leaves_at_least_one_step(steps: int, strength: float, allowed: bool) -> None:
    def attempt() -> ImageInputs:
        return complete(PLAIN, num_inference_steps=steps, strength=strength).inputs[0]

    if allowed:
        assert attempt().steps == steps
        return
    with pytest.raises(InvalidRequest, match=f"Of {steps} steps it leaves none") as rejected:
        attempt()
    assert rejected.value.param == "strength"


def test_unsafe_image_is_a_user_error() -> None:
    error = from_ended(TaskEnded("t", TaskState.FAILED, "unsafe", "The safety checker objects."))
    assert isinstance(error, ContentRefused)
    assert (error.status, error.body.error.type) == (400, "image_generation_user_error")
    assert (error.body.error.code, error.body.error.message) == (
        "content_policy_violation",
        "The safety checker objects.",
    )
