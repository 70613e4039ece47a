"""Parsing and validation of requests, also of random ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.model_settings import Model
from configs.sections import Server
from configs.settings import Settings
from loadbalancer.generation.validation import (
    GenerationSpec,
    ImageModel,
    image_model,
    resolve_images,
    resolve_model,
    resolve_request,
)
from loadbalancer.schema.errors import ApiError, BodyTooLarge, InvalidRequest, ModelNotFound
from loadbalancer.schema.parsing import parse, parse_form
from loadbalancer.schema.requests import SEEDS, BaseImageRequest, EditRequest, ImageRequest, PredictRequest
from wire.messages import EngineInfo, ImageDefaults

SETTINGS = Settings(
    server=Server(timeout_s=30.0, max_timeout_s=60.0, max_n=4, max_prompt_chars=50),
    models={
        "first": Model.model_validate(
            {
                "engine": "sim",
                "defaults": {"size": "64x96", "steps": 20, "guidance_scale": 3.0, "scheduler": "ddim"},
                "limits": {"max_pixels": 65536, "min_side": 32, "max_steps": 100, "max_guidance_scale": 20},
            }
        ),
        "second": Model(engine="sim"),
    },
)


def image_model_of(requested: BaseImageRequest, settings: Settings = SETTINGS) -> ImageModel:
    name = resolve_model(requested.model, settings)
    return image_model(name, settings.models[name])


Result = TypeVar("Result")
PLAUSIBLE_TEXT = st.sampled_from(["a seven", "first", "auto", "64x64", "png", "2", "0.5", "true", "null", "[]", "{}"])


def resolve(random_seed: int = 99, **body: Any) -> GenerationSpec:
    return resolve_body(body, random_seed)


def resolve_body(body: Any, random_seed: int) -> GenerationSpec:
    requested = parse(ImageRequest, json.dumps(body).encode())
    return resolve_images(requested, image_model_of(requested), SETTINGS.server, random_seed)


def test_absent_fields_take_configured_defaults() -> None:
    job = resolve(prompt="a seven")
    (inputs,) = job.inputs
    assert (job.model, job.timeout_s, job.priority, job.inputs[0].shape.key, job.inputs[0].output_format) == (
        "first",
        30.0,
        0,
        "64x96",
        "png",
    )
    assert (inputs.width, inputs.height, inputs.steps, inputs.guidance_scale) == (64, 96, 20, 3.0)
    assert (inputs.scheduler, inputs.seed, inputs.negative_prompt) == ("ddim", 99, "")
    assert (inputs.output_quality, inputs.previews) == (100, 0)


#: The presets of a model, a request, and the resulting steps, guidance and scheduler.
QUALITIES: list[tuple[dict[str, Any], dict[str, Any], tuple[int, float, str]]] = [
    ({}, {"quality": "high"}, (20, 3.0, "ddim")),
    ({"low": {"steps": 5}}, {"quality": "low"}, (5, 3.0, "ddim")),
    ({"low": {"steps": 5}}, {"quality": "high"}, (20, 3.0, "ddim")),
    ({"low": {"steps": 5}}, {"quality": "auto"}, (20, 3.0, "ddim")),
    ({"low": {"steps": 5}}, {}, (20, 3.0, "ddim")),
    ({"high": {"guidance_scale": 0, "scheduler": "Heun"}}, {"quality": "high"}, (20, 0.0, "heun")),
    ({"high": {"steps": 50}}, {"quality": "hd"}, (50, 3.0, "ddim")),
    ({"high": {"steps": 50}, "hd": {"steps": 60}}, {"quality": "hd"}, (60, 3.0, "ddim")),
    ({"medium": {"steps": 9}}, {"quality": "standard"}, (9, 3.0, "ddim")),
    ({"high": {"steps": 50}}, {"quality": "high", "num_inference_steps": 7}, (7, 3.0, "ddim")),
    ({"high": {"scheduler": "heun"}}, {"quality": "high", "scheduler": "lms"}, (20, 3.0, "lms")),
]


@pytest.mark.parametrize(("presets", "body", "expected"), QUALITIES)
def test_quality_is_a_preset_of_the_model(
    presets: dict[str, Any], body: dict[str, Any], expected: tuple[int, float, str]
) -> None:
    first = Model.model_validate(SETTINGS.models["first"].model_dump() | {"quality": presets})
    settings = SETTINGS.model_copy(update={"models": {"first": first}})
    request = parse(ImageRequest, json.dumps({"prompt": "a", **body}).encode())
    [inputs] = resolve_images(request, image_model_of(request, settings), settings.server, 1).inputs
    assert (inputs.steps, inputs.guidance_scale, inputs.scheduler) == expected


def test_unset_defaults_are_those_of_the_engine() -> None:
    engine = EngineInfo(defaults=ImageDefaults(9, 0.0, 128))
    model = image_model("second", SETTINGS.models["second"], engine)
    request = parse(ImageRequest, b'{"prompt": "a", "model": "second"}')
    [inputs] = resolve_images(request, model, SETTINGS.server, 1).inputs
    assert (inputs.width, inputs.height, inputs.steps, inputs.guidance_scale) == (128, 128, 9, 0.0)


def test_limits_are_those_of_the_requested_model() -> None:
    assert resolve(prompt="a", model="second", size="512x512").inputs[0].shape.key == "512x512"
    with pytest.raises(InvalidRequest, match="at most 65536"):
        resolve(prompt="a", model="first", size="512x512")
    with pytest.raises(ModelNotFound, match="Served: 'first', 'second'"):
        resolve(prompt="a", model="third")


@pytest.mark.parametrize(
    ("field", "most", "beyond"),
    [
        ("n", 4, 5),
        ("num_inference_steps", 100, 101),
        ("guidance_scale", 20.0, 20.001),
        ("timeout_s", 60, 60.5),
        ("seed", SEEDS - 1, SEEDS),
        ("prompt", "x" * 50, "x" * 51),
        ("negative_prompt", "x" * 50, "x" * 51),
        ("size", "256x256", "256x264"),
        ("size", "32x32", "32x24"),
        ("size", "2048x32", "2056x32"),
    ],
)
def test_bounds_are_inclusive(field: str, most: Any, beyond: Any) -> None:
    resolve(**{"prompt": "a", field: most})
    with pytest.raises(InvalidRequest) as rejected:
        resolve(**{"prompt": "a", field: beyond})
    assert rejected.value.param == field
    assert rejected.value.status == 400


@pytest.mark.parametrize(("seed", "seeds"), [(5, [5, 6, 7]), (SEEDS - 2, [SEEDS - 2, SEEDS - 1, 0])])
def test_seeds_count_up_and_wrap(seed: int, seeds: list[int]) -> None:
    assert [inputs.seed for inputs in resolve(prompt="a", n=3, seed=seed).inputs] == seeds
    assert [inputs.seed for inputs in resolve(prompt="a", n=3, random_seed=seed).inputs] == seeds


def test_images_of_a_request_differ_only_in_seed() -> None:
    job = resolve(prompt="a", n=4, seed=1, stream=True, partial_images=3, output_format="webp", output_compression=5)
    assert len({repr(inputs).replace(f"seed={inputs.seed}", "") for inputs in job.inputs}) == 1
    assert (job.inputs[0].previews, job.inputs[0].output_quality, job.inputs[0].output_format) == (3, 5, "webp")


def test_empty_names_mean_the_defaults() -> None:
    assert resolve(prompt="a", model="", size="", scheduler="") == resolve(prompt="a")


def test_predict_makes_one_png() -> None:
    asked = parse(PredictRequest, b'{"prompt": "a", "model": "second", "priority": 5, "timeout_s": 1.5}')
    job = resolve_request(asked, image_model_of(asked), SETTINGS.server, 3)
    assert (job.model, len(job.inputs), job.inputs[0].output_format, job.priority, job.timeout_s) == (
        "second",
        1,
        "png",
        5,
        1.5,
    )


def test_first_of_several_errors_is_reported() -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse(ImageRequest, b'{"size": 3, "n": "two"}')
    assert rejected.value.param == "prompt"


def outcome_of(attempt: Callable[[], Result]) -> Result | ApiError:
    try:
        return attempt()
    except ApiError as error:
        return error


# ---- forms


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("prompt", "7", "7"),
        ("prompt", "null", "null"),
        ("size", "64x64", "64x64"),
        ("output_format", "webp", "webp"),
        ("user", "true", "true"),
        ("n", "2", 2),
        ("n", " 2 ", 2),
        ("n", "null", None),
        ("seed", "4294967295", 4294967295),
        ("guidance_scale", "7", 7.0),
        ("strength", "0.25", 0.25),
        ("stream", "true", True),
        ("reproducible", "false", False),
        ("loras", "[]", ()),
        ("n", "", None),
        ("model", "", ""),
        ("negative_prompt", "", ""),
        ("user", "None", "None"),
        ("seed", "None", None),
        ("seed", "-1", None),
        ("stream", "True", True),
        ("stream", "False", False),
    ],
)
def test_form_texts_are_parsed_as_json_values(field: str, text: str, value: Any) -> None:
    assert getattr(parse_form(EditRequest, {"prompt": "a", field: text}), field) == value


def test_loras_of_a_form_are_json() -> None:
    asked = parse_form(EditRequest, {"prompt": "a", "loras": '[{"name": "ink", "scale": 0.5}, {"name": "fog"}]'})
    assert [(lora.name, lora.scale) for lora in asked.loras or ()] == [("ink", 0.5), ("fog", None)]


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("n", "two", "Invalid type for 'n': 'two'. Expected an integer."),
        ("n", "2.5", "Invalid type for 'n': 2.5. Expected an integer."),
        ("n", "0", "Invalid value for 'n': 0. Must be at least 1."),
        ("n", "٢", "Invalid type for 'n': '٢'. Expected an integer."),
        ("strength", "NaN", "Invalid type for 'strength': 'NaN'. Expected a number."),
        ("strength", "1.5", "Invalid value for 'strength': 1.5. Must be at most 1."),
        ("strength", "0", "Invalid value for 'strength': 0. Must be greater than 0."),
        ("stream", "TRUE", "Expected a boolean."),
        ("n", "True", "Expected an integer."),
        ("stream", "yes", "Invalid type for 'stream': 'yes'. Expected a boolean."),
        ("loras", "ink", "Invalid type for 'loras': 'ink'. Expected a list."),
        ("loras", "[" * 100_000, "Expected a list."),
        ("quality", "8k", "Supported: 'auto', 'low', 'medium', 'high', 'standard' or 'hd'."),
        ("input_fidelity", "low ", "Supported: 'high' or 'low'."),
        ("strenght", "1", "Unknown parameter: 'strenght'. Did you mean 'strength'?"),
        ("style", "vivid", "Unknown parameter: 'style'."),
        ("prompt", "\ud800", "text that is not Unicode"),
    ],
)
def test_form_errors_equal_json_errors(field: str, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse_form(EditRequest, {"prompt": "a", field: text})
    assert message in rejected.value.message


@given(
    fields=st.dictionaries(
        st.sampled_from([*EditRequest.model_fields, "other"]), st.text() | PLAUSIBLE_TEXT, max_size=6
    )
)
def test_random_form_is_parsed_or_rejected(fields: dict[str, str]) -> None:
    read = outcome_of(lambda: parse_form(EditRequest, fields))
    if isinstance(read, ApiError):
        assert isinstance(read, InvalidRequest)
        assert read.message.endswith((".", "?"))
    else:
        assert read.prompt == fields["prompt"]


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (b'{"prompt": "a", "image": "%b"}' % (b"x" * 500), True),
        (b'{"prompt": "a", "image": "%b", "mask": "%b"}' % (b"x" * 500, b"y" * 500), True),
        (b'{"prompt": "%b"}' % (b"x" * 500), False),
        (b'{"prompt": "a", "image": [%b1]}' % (b"1," * 250), False),
        (b'{"prompt": "a", "mask": "%b", "seed": 1%b}' % (b"x" * 500, b" " * 100), False),
        (b'{"prompt": "a"%b}' % (b', "image": "x"' * 50), False),
        (b"[%b1]" % (b"1," * 250), False),
        (b"x" * 500, True),
    ],
)
def test_body_limit_excludes_images(body: bytes, fits: bool) -> None:
    """Invalid JSON keeps its own error."""
    read = outcome_of(lambda: parse(ImageRequest, body, 100))
    assert isinstance(read, BodyTooLarge) is not fits
    if isinstance(read, ApiError):
        assert "larger beside its images than 100 bytes" in read.message or read.code == "invalid_json"


# ---- anything


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLAUSIBLE = st.sampled_from(["first", "auto", "64x64", "png", "jpeg", "b64_json", "euler", 0, 1, 2, 7, 32.5, True])
BODIES = st.dictionaries(st.sampled_from([*ImageRequest.model_fields, "other"]), PLAUSIBLE | JSON, max_size=8)


@given(body=BODIES | JSON, seed=st.integers(0, SEEDS - 1))
def test_random_json_is_within_bounds_or_rejected(body: Any, seed: int) -> None:
    job = outcome_of(lambda: resolve_body(body, seed))
    if isinstance(job, ApiError):
        assert job.status in (400, 404)
        assert job.message.endswith((".", "?"))
        assert len(job.message) < 1000
        return
    limits = SETTINGS.models[job.model].limits
    assert 1 <= len(job.inputs) <= 4
    assert 0 < job.timeout_s <= 60
    for inputs in job.inputs:
        assert inputs.prompt.strip()
        assert inputs.width * inputs.height <= limits.max_pixels
        assert min(inputs.width, inputs.height) >= limits.min_side
        assert inputs.width % 8 == inputs.height % 8 == 0
        assert 1 <= inputs.steps <= limits.max_steps
        assert 0 <= inputs.guidance_scale <= limits.max_guidance_scale
        assert 0 <= inputs.seed < SEEDS
        assert 0 <= inputs.previews <= 3
        assert 0 <= inputs.output_quality <= 100


@given(body=st.binary(max_size=200))
def test_random_bytes_are_rejected_with_reason(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(ImageRequest, body)
