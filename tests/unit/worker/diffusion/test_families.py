"""Rejections and special cases of each checkpoint family."""

from __future__ import annotations

import io
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

from tests.support.tiny_diffusion import (
    CHECKPOINTS,
    admit,
    engine_of,
    engine_request,
    finish,
    pipeline,
    request,
    run,
    sdxl,
)
from wire.inputs import SOURCES, ImageInputs
from worker.engine import Checkpoint, EngineRequest, TaskError, UnsupportedModel
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.row import DiffusionRow

Engines = dict[str, DiffusionEngine]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    made: Engines = {}
    for name, make in CHECKPOINTS.items():
        folder = tmp_path_factory.mktemp(name)
        make().save_pretrained(folder)
        made[name] = engine_of(folder)
    return made


def answer(engine: DiffusionEngine, inputs: ImageInputs) -> DiffusionRow | TaskError:
    [row] = engine.admit([engine_request(inputs)])
    assert isinstance(row, DiffusionRow | TaskError)
    return row


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_modes_supported_by_denoiser(engines: Engines, name: str) -> None:
    engine = engines[name]
    expected = ("inpaint",) if name.endswith("inpaint") else ("text", "image", "inpaint")
    assert engine.info().modes == expected
    for mode in SOURCES:
        row = answer(engine, request(mode=mode))
        if mode in expected:
            assert isinstance(row, DiffusionRow)
        else:
            assert isinstance(row, TaskError)
            assert row.message == f"this model supports mode inpaint, not {mode}"


@pytest.mark.parametrize(
    ("name", "multiple"), [("sd", 8), ("sdxl", 8), ("sd3", 16), ("flux-dev", 16), ("flux-schnell", 16)]
)
def test_sizes_must_be_multiples(engines: Engines, name: str, multiple: int) -> None:
    assert isinstance(answer(engines[name], request(width=2 * multiple, height=5 * multiple)), DiffusionRow)
    for size in ((2 * multiple + multiple // 2, 32), (32, 2 * multiple + 1)):
        rejection = answer(engines[name], request(width=size[0], height=size[1]))
        assert isinstance(rejection, TaskError)
        assert rejection.message == f"width and height must be multiples of {multiple}, got {size[0]}x{size[1]}"


def test_sd3_rejects_too_many_patches(engines: Engines) -> None:
    assert isinstance(answer(engines["sd3"], request(width=32 * 16)), DiffusionRow)
    rejection = answer(engines["sd3"], request(width=33 * 16))
    assert isinstance(rejection, TaskError)
    assert rejection.message == "width and height must be at most 512 pixels for this model"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_passes_per_guidance_scale(engines: Engines, name: str) -> None:
    mode = engines[name].info().modes[0]
    one_pass = name.startswith("flux") or name == "sd-distilled"
    rows = admit(engines[name], *(request(guidance_scale=scale, mode=mode) for scale in (0.0, 1.0, 1.1, 7.5)))
    assert [row.passes for row in rows] == ([1, 1, 1, 1] if one_pass else [1, 1, 2, 2])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_guidance_scale_affects_result(engines: Engines, name: str) -> None:
    engine = engines[name]
    mode = engine.info().modes[0]
    rows = admit(engine, *(request(guidance_scale=scale, mode=mode) for scale in (2.0, 5.0)))
    finish(engine, *rows)
    assert torch.equal(rows[0].latents, rows[1].latents) == (name == "flux-schnell")


@pytest.mark.parametrize("name", ["flux-dev", "flux-schnell"])
def test_flux_takes_no_negative_prompt(engines: Engines, name: str) -> None:
    rejection = answer(engines[name], request(negative_prompt="blurred"))
    assert isinstance(rejection, TaskError)
    assert (rejection.kind, rejection.message) == ("invalid", "this model does not support negative prompts")


def test_sdxl_without_negative_prompt_uses_zeros(engines: Engines) -> None:
    engine = engines["sdxl"]
    none, some = admit(engine, request(), request(negative_prompt=" "))
    for name in ("embeddings", "text_embeds"):
        assert not none.conditions[name][0].any()
        assert some.conditions[name][0].any()
        assert none.conditions[name][1].any()


def test_sdxl_without_zero_prompt_encodes_empty_text(tmp_path: Path) -> None:
    made = sdxl()
    made.register_to_config(force_zeros_for_empty_prompt=False)
    made.save_pretrained(tmp_path)
    [row] = admit(engine_of(tmp_path), request())
    assert row.conditions["embeddings"][0].any()


def test_latent_mean_and_std_from_config(tmp_path: Path) -> None:
    mean, spread = [0.5, -1.0, 0.25, 2.0], [2.0, 0.5, 1.5, 3.0]
    made = sdxl(latents_mean=mean, latents_std=spread)
    made.save_pretrained(tmp_path)
    engine = engine_of(tmp_path)
    asked = request(mode="image", strength=0.7)
    [row] = admit(engine, asked)
    finish(engine, row)
    image = Image.frombytes("RGB", (asked.width, asked.height), engine_request(asked).sources[0])
    reference = diffusers.StableDiffusionXLImg2ImgPipeline(**made.components)
    reference.set_progress_bar_config(disable=True)
    [expected] = reference(
        asked.prompt,
        image=image,
        strength=asked.strength,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(asked.seed),
        output_type="pil",
    ).images
    got = Image.open(io.BytesIO(engine.render(row)().data))
    assert np.abs(np.asarray(got, dtype=float) - np.asarray(expected, dtype=float)).max() <= 1


def test_sdxl_vae_with_force_upcast_stays_float32(tmp_path: Path) -> None:
    for name, upcast, dtype in (("usual", True, torch.float32), ("fixed", False, torch.float16)):
        sdxl(force_upcast=upcast).save_pretrained(tmp_path / name)
        engine = engine_of(tmp_path / name, dtype="float16")
        assert engine.info().dtype == "float16"
        assert engine._family.vae.dtype == dtype
        [row] = run_one(engine, request(mode="inpaint"))
        assert row.latents.dtype == torch.float16
        assert Image.open(io.BytesIO(engine.render(row)().data)).size == (32, 32)


def run_one(engine: DiffusionEngine, inputs: ImageInputs) -> list[DiffusionRow]:
    rows = admit(engine, inputs)
    finish(engine, *rows)
    return rows


@pytest.mark.parametrize("name", sorted(set(CHECKPOINTS) - {"sd"}))
def test_resumed_rows_bit_equal_for_every_family(engines: Engines, name: str) -> None:
    engine = engines[name]
    for mode in engine.info().modes:
        task = engine_request(request(mode=mode, steps=5, strength=0.8))
        [row] = admit(engine, task)
        saved: list[Checkpoint] = []
        while row.step < row.steps:
            saved.append(engine.save(row)())
            engine.step([row])
        for checkpoint in saved:
            [resumed] = admit(engine, EngineRequest(task.inputs, task.sources, checkpoint))
            finish(engine, resumed)
            assert torch.equal(resumed.latents, row.latents), (mode, checkpoint.step)


@pytest.mark.parametrize("name", ["sdxl", "sd-inpaint", "sd3", "flux-dev"])
def test_reproducible_bits_equal_for_every_family(engines: Engines, name: str) -> None:
    engine = engines[name]
    modes = engine.info().modes
    asked = request(mode=modes[-1], reproducible=True, prompt="the same again", strength=0.8)
    [single] = run_one(engine, asked)
    others = [request(mode=modes[n % len(modes)], seed=50 + n, reproducible=True, steps=4 + n) for n in range(6)]
    rows = run(engine, [*((n // 3, one) for n, one in enumerate(others)), (1, asked)])
    [mine] = [row for row in rows if row.inputs == asked]
    assert torch.equal(mine.latents, single.latents)


# ---- rejected checkpoints


def test_refiner_rejected(tmp_path: Path) -> None:
    made = sdxl()
    parts = made.components | {"text_encoder": None, "tokenizer": None}
    diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="SDXL refiners are not supported"):
        engine_of(tmp_path)


def test_denoiser_with_other_inputs_rejected(tmp_path: Path) -> None:
    pipeline(in_channels=8).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="8 input channels, the latents have 4"):
        engine_of(tmp_path)


# ---- safety checker


def save_with_checker(folder: Path, *, objects: bool) -> None:
    """Save a Stable Diffusion whose safety checker flags everything or nothing."""
    text = CLIPTextConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    checker = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(config)
    # An image is flagged if its similarity to a concept exceeds the threshold.
    checker.concept_embeds_weights.data.fill_(-2.0 if objects else 2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)
    made = pipeline()
    made.register_modules(
        safety_checker=checker.eval(),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    )
    made.save_pretrained(folder)


CHECKED: list[tuple[str, bool, bool]] = [
    ("off", True, False),
    ("flag", True, True),
    ("flag", False, False),
    ("refuse", False, False),
]


@pytest.mark.parametrize(("setting", "objects", "flagged"), CHECKED)
def test_unsafe_image_flagged(tmp_path: Path, setting: str, objects: bool, flagged: bool) -> None:
    save_with_checker(tmp_path, objects=objects)
    engine = engine_of(tmp_path, safety_checker=setting)
    [row] = admit(engine, request())
    engine.step([row])
    assert not engine.render(row)().flagged, "previews must not be checked"
    finish(engine, row)
    image = engine.render(row)()
    assert image.flagged == flagged
    assert len(set(Image.open(io.BytesIO(image.data)).tobytes())) > 1, "the image must not be black"


def test_unsafe_image_rejected_with_policy_refuse(tmp_path: Path) -> None:
    save_with_checker(tmp_path, objects=True)
    engine = engine_of(tmp_path, safety_checker="refuse")
    [row] = run_one(engine, request())
    with pytest.raises(TaskError) as reported:
        engine.render(row)()
    assert reported.value.kind == "unsafe"


def test_checkpoint_without_checker_flags_nothing(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path)
    engine = engine_of(tmp_path, safety_checker="refuse")
    [row] = run_one(engine, request())
    assert not engine.render(row)().flagged
