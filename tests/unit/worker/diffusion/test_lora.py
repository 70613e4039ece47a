"""LoRA adapters: results equal those of the pipeline, unloading leaves no trace, and capacity is respected."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from tests.support.tiny_diffusion import CHECKPOINTS, admit, engine_of, engine_request, finish, pipeline, request
from tests.support.tiny_loras import (
    CPU,
    DENOISER,
    ENCODER,
    denoiser_output,
    parts_of,
    rewrite,
    save_lora,
    save_two,
    unchanged,
)
from wire.inputs import ImageInputs, Lora
from worker.engine import Checkpoint, EngineRequest, TaskError
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.lora.loader import LoraLoader
from worker.engines.diffusion.row import DiffusionRow

# The reference pipelines log this when a second adapter is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")

#: Maximum difference of latents relative to the largest latent, as without adapters.
LATENTS = 3e-5
#: Text encoders that adapters of a checkpoint may change.
ENCODERS = {
    "sd": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
    "sd3": ("text_encoder", "text_encoder_2"),
    "flux-dev": ("text_encoder",),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_two(tmp_path_factory.mktemp("loras"))


@pytest.fixture
def loras(shipped: Path, tmp_path: Path) -> Path:
    """Copy of a folder with `ink`, for the denoiser, and `wet.v1`, for denoiser and text encoder."""
    return shutil.copytree(shipped, tmp_path / "loras")


@pytest.fixture
def engine(checkpoint: Path, loras: Path) -> DiffusionEngine:
    return engine_of(checkpoint, loras=loras)


def generate_latents(engine: DiffusionEngine, *asked: ImageInputs) -> list[torch.Tensor]:
    """Return the latents of these requests; batch keys take turns."""
    rows = admit(engine, *asked)
    while unfinished := [row for row in rows if row.step < row.steps]:
        for key in {engine.key(EngineRequest(row.inputs)): None for row in unfinished}:
            engine.step([row for row in unfinished if engine.key(EngineRequest(row.inputs)) == key])
    for row in rows:
        engine.release(row)
    return [row.latents for row in rows]


def by_pipeline(made: Any, folder: Path, inputs: ImageInputs) -> torch.Tensor:
    """Return the latents of diffusers' pipeline with the request's adapters."""
    named = {lora.name.replace(".", "_"): lora for lora in inputs.loras}
    loaded = {adapter_name for part in made.get_list_adapters().values() for adapter_name in part}
    for adapter_name in named.keys() - loaded:
        made.load_lora_weights(folder, weight_name=f"{named[adapter_name].name}.safetensors", adapter_name=adapter_name)
    if named:
        made.enable_lora()
        made.set_adapters(list(named), [lora.scale for lora in named.values()])
    else:
        made.disable_lora()
    options = {"max_sequence_length": 512} if hasattr(made, "_pack_latents") else {}
    latents: torch.Tensor = made(
        inputs.prompt,
        width=inputs.width,
        height=inputs.height,
        num_inference_steps=inputs.steps,
        guidance_scale=inputs.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(inputs.seed),
        output_type="latent",
        **options,
    ).images
    return latents


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return float((ours - theirs).abs().max()) <= LATENTS * float(theirs.abs().max())


def loaded_adapters(engine: DiffusionEngine) -> str:
    """Return the numbers of loaded adapters, such as `2 of 3 in use`."""
    return repr(engine._loras).partition("<RefCountedLru ")[2].partition(",")[0]


# ---- results


@pytest.mark.parametrize("kind", ENCODERS)
def test_different_adapters_in_one_batch_equal_pipeline(kind: str, tmp_path: Path) -> None:
    make = CHECKPOINTS[kind]
    made = make()
    made.save_pretrained(tmp_path / "model")
    denoiser = made._lora_loadable_modules[0]
    save_lora(tmp_path, "ink", make, seed=1)
    save_lora(tmp_path, "wet.v1", make, 2, {denoiser: DENOISER, **dict.fromkeys(ENCODERS[kind], ENCODER)}, rank=2)
    engine = engine_of(tmp_path / "model", loras=tmp_path)
    assert engine.info().loras
    sets: list[tuple[Lora, ...]] = [
        (),
        (Lora("ink", 0.5),),
        (Lora("ink", -1.0),),
        (Lora("wet.v1"),),
        (Lora("ink"), Lora("wet.v1", 0.7)),
    ]
    asked = [request(loras=own, seed=seed, steps=3 + seed) for seed in range(2) for own in sets]
    ours = generate_latents(engine, *asked)
    theirs = [by_pipeline(made, tmp_path, inputs) for inputs in asked]
    for place, (own, their) in enumerate(zip(ours, theirs, strict=True)):
        assert close(own, their), asked[place]
    for place in range(1, len(sets)):
        assert not close(ours[0], ours[place]), "the adapter must have an effect"


def test_without_adapters_model_unchanged(engine: DiffusionEngine, checkpoint: Path) -> None:
    before = parts_of(engine._family.pipeline)
    [never] = generate_latents(engine_of(checkpoint), request())
    assert torch.equal(generate_latents(engine, request())[0], never)
    generate_latents(engine, request(loras=(Lora("ink"), Lora("wet.v1"))))
    assert torch.equal(generate_latents(engine, request())[0], never)
    assert loaded_adapters(engine) == "0 of 2 in use"
    assert unchanged(before, parts_of(engine._family.pipeline))


def test_adapter_order_is_irrelevant(engine: DiffusionEngine) -> None:
    one, other = (request(loras=own) for own in ((Lora("ink"), Lora("wet.v1")), (Lora("wet.v1"), Lora("ink"))))
    assert engine.key(EngineRequest(one)) == engine.key(EngineRequest(other))
    assert engine.key(EngineRequest(one)) != engine.key(
        EngineRequest(request(loras=(Lora("ink"), Lora("wet.v1", 0.5))))
    )
    assert torch.equal(*generate_latents(engine, one, other))


def test_only_text_encoder_adapters_reencode_prompts(engine: DiffusionEngine) -> None:
    generate_latents(engine, request())
    plain = len(engine._admission._prompt_cache)
    generate_latents(engine, request(loras=(Lora("ink"),)))
    assert len(engine._admission._prompt_cache) == plain
    generate_latents(engine, request(loras=(Lora("wet.v1"),)), request(loras=(Lora("wet.v1", 0.5),)))
    assert len(engine._admission._prompt_cache) == 3 * plain


def test_kohya_files_equal_pipeline(checkpoint: Path, loras: Path) -> None:
    weights = load_file(loras / "wet.v1.safetensors")
    # They expect the text encoder's layers in a `text_model`.
    kohya = convert_state_dict_to_kohya(
        {key.replace("encoder.layers", "text_model.encoder.layers"): value for key, value in weights.items()}
    )
    assert all(key.startswith(("lora_unet_", "lora_te1_text_model_")) for key in kohya)
    halved = {key: value / 2 if key.endswith(".alpha") else value for key, value in kohya.items()}
    save_file(halved, loras / "kohya.safetensors")
    inputs = request(loras=(Lora("kohya"),))
    assert close(
        generate_latents(engine_of(checkpoint, loras=loras), inputs)[0], by_pipeline(pipeline(), loras, inputs)
    )


def test_row_resumed_by_other_worker_uses_its_adapters(checkpoint: Path, loras: Path) -> None:
    inputs = request(loras=(Lora("ink", 0.8), Lora("wet.v1")), scheduler="dpmpp_2m")
    engine, other = (engine_of(checkpoint, loras=loras) for _ in range(2))
    generate_latents(other, request(loras=(Lora("wet.v1", 0.1),)))
    [row] = admit(engine, inputs)
    for _ in range(3):
        engine.step([row])
    state: Checkpoint = engine.save(row)()
    finish(engine, row)
    [resumed] = admit(other, engine_request(inputs, checkpoint=state))
    finish(other, resumed)
    assert torch.equal(resumed.latents, row.latents)


# ---- loaded adapters


def test_loaded_adapters_limited_to_capacity_or_use(checkpoint: Path, loras: Path) -> None:
    save_lora(loras, "fog", pipeline, seed=3)
    engine = engine_of(checkpoint, loras=loras, max_loras=1)
    before = parts_of(engine._family.pipeline)
    ink, fog, both = admit(
        engine, *(request(loras=own) for own in ((Lora("ink"),), (Lora("fog"),), (Lora("fog"), Lora("ink"))))
    )
    assert loaded_adapters(engine) == "2 of 2 in use"
    for row in (ink, both):
        engine.release(row)
    assert loaded_adapters(engine) == "1 of 1 in use"
    engine.release(fog)
    assert loaded_adapters(engine) == "0 of 1 in use"
    generate_latents(engine, request(loras=(Lora("wet.v1"),)))
    assert loaded_adapters(engine) == "0 of 1 in use"
    made = engine._family.pipeline
    assert sum(map(len, made.get_list_adapters().values())) == 2  # of its two parts
    engine._loras.activate(())
    assert unchanged(before, parts_of(engine._family.pipeline))


def test_reloaded_adapter_gives_equal_result(checkpoint: Path, loras: Path) -> None:
    engine = engine_of(checkpoint, loras=loras, max_loras=1)
    asked = [request(loras=(Lora(name),)) for name in ("ink", "wet.v1")]
    first, second = ([generate_latents(engine, inputs)[0] for inputs in asked] for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_rejected_task_releases_its_adapters(engine: DiffusionEngine) -> None:
    own = (Lora("ink"), Lora("wet.v1"))
    [answer] = engine.admit([engine_request(request(mode="image", strength=0.01, loras=own))])
    assert isinstance(answer, TaskError)
    assert loaded_adapters(engine) == "0 of 2 in use"

    def fail(*given: Any) -> None:
        raise RuntimeError("a kernel is missing")

    hook = engine._family.pipeline.text_encoder.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        engine.admit([engine_request(request(loras=own)), engine_request(request(loras=own[:1]))])
    hook.remove()
    assert loaded_adapters(engine) == "0 of 2 in use"


def replace(path: Path, new: Path) -> None:
    new.replace(path)


def overwrite(path: Path, new: Path) -> None:
    path.write_bytes(new.read_bytes())


@pytest.mark.parametrize("change", [replace, overwrite])
def test_replaced_file_used_by_later_requests_only(
    change: Callable[[Path, Path], None], engine: DiffusionEngine, loras: Path, tmp_path: Path
) -> None:
    inputs = request(loras=(Lora("ink"),))
    [before] = generate_latents(engine, inputs)
    [old] = admit(engine, inputs)
    engine.step([old])
    new = save_lora(tmp_path, "new", pipeline, seed=9)
    os.utime(new, (1e9, 1e9))
    change(loras / "ink.safetensors", new)
    [young] = admit(engine, inputs)
    assert loaded_adapters(engine) == "2 of 2 in use"
    finish(engine, old, young)  # in one batch, because their batch keys are equal
    assert torch.equal(old.latents, before)
    engine.release(old)
    engine.release(young)
    assert loaded_adapters(engine) == "0 of 1 in use"
    [after] = generate_latents(engine, inputs)
    assert torch.equal(young.latents, after)
    assert not close(after, before)


def test_is_active_reports_changed_model(loras: Path) -> None:
    made = pipeline()
    adapters = LoraLoader(made, loras, 2, CPU)
    plain = denoiser_output(made)
    text = []
    for name in ("ink", "wet.v1"):
        for lora_scales in (adapters.acquire([Lora(name)]), ()):
            adapters.activate(lora_scales)
            text.append((adapters.is_active, torch.equal(denoiser_output(made), plain)))
    assert text == [(True, False), (False, True)] * 2


def test_lora_dropout_inactive_at_inference(engine: DiffusionEngine, loras: Path) -> None:
    path = Path(shutil.copy(loras / "ink.safetensors", loras / "dropped.safetensors"))
    rewrite(path, settings=lambda settings: settings | {"unet.lora_dropout": 0.9})
    ink, dropped = generate_latents(engine, request(loras=(Lora("ink"),)), request(loras=(Lora("dropped"),)))
    assert torch.equal(ink, dropped)


def test_model_without_folder_rejects_adapters(checkpoint: Path) -> None:
    engine = engine_of(checkpoint)
    assert not engine.info().loras
    [answer] = engine.admit([engine_request(request(loras=(Lora("ink"),)))])
    assert isinstance(answer, TaskError)
    assert answer.message == "this model does not support LoRA adapters"


def test_invalid_file_fails_only_its_requests(engine: DiffusionEngine, loras: Path) -> None:
    (loras / "bad.safetensors").write_bytes((loras / "ink.safetensors").read_bytes()[:-100])
    [single] = generate_latents(engine, request(loras=(Lora("ink"),)))
    sets = ((Lora("bad"),), (Lora("ink"),), (Lora("ink"), Lora("bad")), ())
    answers = engine.admit([engine_request(request(loras=own)) for own in sets])
    assert [isinstance(answer, TaskError) for answer in answers] == [True, False, True, False]
    assert loaded_adapters(engine) == "1 of 1 in use"
    assert isinstance(answers[1], DiffusionRow)
    finish(engine, answers[1])
    assert torch.equal(answers[1].latents, single)
