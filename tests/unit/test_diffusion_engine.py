"""The diffusion engine where things go wrong, and what its rows promise to the step loop."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny_diffusion import SIZE, admitted, engine_of, finish, pipeline, request
from worker.engine import Checkpoint, TaskError
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.rows import DiffusionRow


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    folder = tmp_path_factory.mktemp("tiny")
    pipeline().save_pretrained(folder)
    return engine_of(folder)


def unet(engine: DiffusionEngine) -> torch.nn.Module:
    """The denoiser itself: hooks on it are where a real forward pass fails."""
    found = engine._family._pipeline.unet
    assert isinstance(found, torch.nn.Module)
    return found


def failing(error: Exception) -> Callable[..., None]:
    def hook(*given: Any) -> None:
        raise error

    return hook


def test_a_forward_pass_that_raises_moves_no_row(engine: DiffusionEngine) -> None:
    wanted = [request(scheduler=name, seed=n) for n, name in enumerate(("ddim", "euler", "heun", "dpmpp_2m", "pndm"))]
    rows, untouched = admitted(engine, *wanted), admitted(engine, *wanted)
    for _ in range(3):
        engine.step(rows)
    before = [(row.step, row.latents.clone()) for row in rows]
    hook = unet(engine).register_forward_pre_hook(failing(RuntimeError("the device is gone")))
    try:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the device is gone"):
                engine.step(rows)
    finally:
        hook.remove()
    for row, (step, latents) in zip(rows, before, strict=True):
        assert row.step == step == 3
        assert torch.equal(row.latents, latents)
    finish(engine, *rows)
    finish(engine, *untouched)
    for row, expected in zip(rows, untouched, strict=True):
        assert torch.equal(row.latents, expected.latents), "a failed step left its mark"


def test_running_out_of_memory_is_told_as_such(engine: DiffusionEngine) -> None:
    rows = admitted(engine, request(), request())
    hook = unet(engine).register_forward_pre_hook(failing(torch.OutOfMemoryError("tried to allocate 9 GiB")))
    try:
        with pytest.raises(TaskError) as caught:
            engine.step(rows)
    finally:
        hook.remove()
    assert caught.value.kind == "out_of_memory"
    assert caught.value.message.startswith("2 images do not fit")
    finish(engine, *rows)


def test_a_sampler_that_breaks_takes_no_other_row_along(engine: DiffusionEngine) -> None:
    healthy, sick, expected = admitted(engine, request(scheduler="euler"), request(), request(scheduler="euler"))
    engine.step([healthy, sick])
    kept = sick.latents
    sick.sampling._scheduler.alphas_cumprod = sick.sampling._scheduler.alphas_cumprod[:1]  # its next step is past this
    engine.step([healthy, sick])
    assert (healthy.step, sick.step) == (2, 1)
    assert torch.equal(sick.latents, kept)
    with pytest.raises(TaskError, match="scheduler 'default' failed at step 1"):
        engine.step([healthy, sick])
    assert healthy.step == 2, "the healthy row waits for the batch without the sick one"
    finish(engine, healthy)
    finish(engine, expected)
    torch.testing.assert_close(healthy.latents, expected.latents, rtol=1e-4, atol=1e-4)


def test_latents_that_are_not_finite_are_an_error_that_says_so(engine: DiffusionEngine) -> None:
    [row] = admitted(engine, request())
    finish(engine, row)
    row.latents = row.latents.clone()
    row.latents[0, 0, 0, 0] = float("nan")
    with pytest.raises(TaskError, match=r"latents of scheduler 'default' are not finite in torch\.float32"):
        engine.render(row)()


def test_an_autoencoder_that_overflows_is_an_error_that_says_so(engine: DiffusionEngine) -> None:
    [row] = admitted(engine, request())
    finish(engine, row)
    row.latents = torch.full_like(row.latents, 1e38)
    with pytest.raises(TaskError, match="autoencoder's output is not finite") as caught:
        engine.render(row)()
    assert caught.value.kind == "error"


def test_a_picture_is_of_the_moment_it_was_asked_for(engine: DiffusionEngine) -> None:
    [row, twin] = admitted(engine, request(), request())
    engine.step([row])
    engine.step([twin])
    later = engine.render(row)
    finish(engine, row)
    assert later() == engine.render(twin)()
    assert later() != engine.render(row)()


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "lcm"])
def test_a_preview_shows_where_the_picture_is_going(engine: DiffusionEngine, scheduler: str) -> None:
    previewed, plain = admitted(
        engine, request(scheduler=scheduler, partial_images=2), request(scheduler=scheduler, partial_images=0)
    )
    engine.step([previewed, plain])
    assert torch.equal(previewed.latents, plain.latents)
    assert not torch.equal(previewed.picture(), previewed.latents)
    assert plain.picture() is plain.latents
    finish(engine, previewed)
    assert previewed.picture() is previewed.latents


@pytest.mark.parametrize(("output_format", "pillow"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(engine: DiffusionEngine, output_format: str, pillow: str) -> None:
    [row] = admitted(engine, request(output_format=output_format, output_quality=90, width=40, height=32))
    finish(engine, row)
    picture = Image.open(io.BytesIO(engine.render(row)()))
    assert (picture.format, picture.size, picture.mode) == (pillow, (40, 32), "RGB")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_costs_bytes(engine: DiffusionEngine, output_format: str) -> None:
    sizes = []
    for quality in (10, 100):
        [row] = admitted(engine, request(output_format=output_format, output_quality=quality, width=64, height=64))
        finish(engine, row)
        sizes.append(len(engine.render(row)()))
    assert sizes[0] < sizes[1]


def test_only_the_size_decides_who_shares_a_step(engine: DiffusionEngine) -> None:
    key = engine.key(request())
    other = request(scheduler="heun", steps=3, guidance_scale=1.0, prompt="x", negative_prompt="y", partial_images=1)
    assert engine.key(other) == key
    assert len({key, engine.key(request(width=64)), engine.key(request(height=64))}) == 3


def test_a_refusal_is_one_tasks_own(engine: DiffusionEngine) -> None:
    wanted = [request(), request(scheduler="lcm", steps=60), request(width=SIZE + 4), request(seed=2)]
    first, steps, size, last = engine.admit([(inputs, None) for inputs in wanted])
    assert isinstance(first, DiffusionRow)
    assert isinstance(last, DiffusionRow)
    assert isinstance(steps, TaskError)
    assert isinstance(size, TaskError)
    assert (steps.kind, size.kind) == ("invalid", "invalid")
    assert size.message == "width and height must be multiples of 8, got 36x32"


def test_no_state_is_given_away_and_none_is_taken(engine: DiffusionEngine) -> None:
    [row] = admitted(engine, request())
    assert engine.evict(row) is None
    [refused] = engine.admit([(request(), Checkpoint(3, [b"from somewhere else"]))])
    assert isinstance(refused, TaskError)


def test_guidance_costs_a_second_pass_only_where_it_guides(engine: DiffusionEngine) -> None:
    rows = admitted(engine, request(guidance_scale=1.0), request(guidance_scale=1.1), request(guidance_scale=0.0))
    assert [row.passes for row in rows] == [1, 2, 1]
    sizes = []
    hook = unet(engine).register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    try:
        engine.step(rows)
    finally:
        hook.remove()
    assert sizes == [4], "one forward pass, of four rows"


def test_a_worker_on_a_cpu_keeps_to_one_thread_wherever_it_computes(engine: DiffusionEngine) -> None:
    seen = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [1, 1]
    assert engine.memory_bytes() > 2**20


def test_what_the_model_computes_is_never_kept_for_gradients(engine: DiffusionEngine) -> None:
    [row] = admitted(engine, request())
    engine.step([row])
    assert row.latents.is_inference()
    assert row.embeddings.is_inference()
