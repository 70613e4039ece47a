"""`DiffusionEngine`: errors, and the contract of its rows with the step loop."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from PIL import Image

from configs.samplers import MODEL_DEFAULT, SAMPLERS, sampler_names
from tests.support.tiny_diffusion import SIZE, admit, engine_of, engine_request, finish, pipeline, request, run
from wire.inputs import ImageInputs, Lora
from worker.engine import Checkpoint, DeviceLost, EngineRequest, OutOfMemory, TaskError
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.row import DiffusionRow, MaskState

# diffusers' KDPM2 schedulers pass a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    folder = tmp_path_factory.mktemp("tiny")
    pipeline().save_pretrained(folder)
    return engine_of(folder)


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """Call the hook before each forward pass of the module; its errors propagate."""
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def failing(error: Exception) -> Callable[..., None]:
    def hook(*given: Any) -> None:
        raise error

    return hook


def unet(engine: DiffusionEngine) -> torch.nn.Module:
    found = engine._family.denoiser
    assert isinstance(found, torch.nn.Module)
    return found


def refusal(engine: DiffusionEngine, task: EngineRequest) -> TaskError:
    [answer] = engine.admit([task])
    assert isinstance(answer, TaskError)
    return answer


# ---- errors


def test_forward_pass_error_moves_no_row(engine: DiffusionEngine) -> None:
    kinds = (("ddim", "text"), ("euler", "image"), ("heun", "inpaint"), ("dpmpp_2m", "inpaint"), ("pndm", "text"))
    asked = [request(scheduler=name, mode=mode, seed=n) for n, (name, mode) in enumerate(kinds)]
    rows, untouched = admit(engine, *asked), admit(engine, *asked)
    for _ in range(3):
        engine.step(rows)
    before = [(row.step, row.latents.clone()) for row in rows]
    with hooked(unet(engine), failing(RuntimeError("a kernel is missing"))):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="a kernel is missing"):
                engine.step(rows)
    for row, (step, latents) in zip(rows, before, strict=True):
        assert row.step == step == 3
        assert torch.equal(row.latents, latents)
    finish(engine, *rows)
    finish(engine, *untouched)
    for row, expected in zip(rows, untouched, strict=True):
        assert torch.equal(row.latents, expected.latents), "a failed step must not change the row"


DEVICE_ERRORS = [
    (torch.OutOfMemoryError("tried to allocate 9 GiB"), OutOfMemory),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
    (torch.AcceleratorError("an illegal memory access was encountered"), DeviceLost),
    (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
]


@pytest.mark.parametrize(("error", "expected_error"), DEVICE_ERRORS)
def test_device_errors_translated(engine: DiffusionEngine, error: Exception, expected_error: type[Exception]) -> None:
    rows = admit(engine, request(), request())
    with hooked(unet(engine), failing(error)), pytest.raises(expected_error, match="a step of 2 images"):
        engine.step(rows)
    assert [row.step for row in rows] == [0, 0]
    finish(engine, *rows)
    encoder = engine._family.pipeline.text_encoder
    with hooked(encoder, failing(error)), pytest.raises(expected_error, match="preparing 2 images"):
        engine.admit([engine_request(request(prompt=f"{error} {n}")) for n in range(2)])


ILLEGAL_ACCESS = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class FailingMask(MaskState):
    """A mask whose blending raises an error."""

    error: Exception

    def blend(self, protected: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        del protected, generated
        raise self.error


@contextmanager
def mask_failing(row: DiffusionRow, error: Exception) -> Iterator[None]:
    """Make the blending of the row's mask raise this error."""
    mask = row.mask_state
    assert mask is not None
    row.mask_state = type("Mask", (FailingMask,), {"error": error})(mask.image, mask.noise, mask.mask)
    try:
        yield
    finally:
        row.mask_state = mask


def test_lost_device_is_not_blamed_on_a_masked_row(engine: DiffusionEngine) -> None:
    rows = admit(engine, request(), request(mode="inpaint"))
    with mask_failing(rows[1], ILLEGAL_ACCESS), pytest.raises(DeviceLost, match="a step of 2 images"):
        engine.step(rows)
    assert all(row.sampler.failure is None for row in rows)


def test_mask_without_memory_is_applied_later(engine: DiffusionEngine) -> None:
    rows = admit(engine, request(), request(mode="inpaint"))
    expected = admit(engine, request(), request(mode="inpaint"))
    engine.step(expected)
    with mask_failing(rows[1], torch.OutOfMemoryError("20 MiB")):
        engine.step(rows)
        with pytest.raises(OutOfMemory):
            engine.step(rows)
        with pytest.raises(OutOfMemory):
            engine.save(rows[1])
    assert [row.step for row in rows] == [1, 1]
    finish(engine, *rows)
    finish(engine, *expected)
    for row, other in zip(rows, expected, strict=True):
        assert torch.equal(row.latents, other.latents)


class MemoryLimit:
    """Lets a decoder run out of memory for latents of more than `area`, and while `busy`."""

    def __init__(self, area: int, busy: int = 0) -> None:
        self.area = area
        self.busy = busy
        self.sizes: list[int] = []

    def __call__(self, module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        height, width = given[0].shape[-2:]
        self.sizes.append(height * width)
        self.busy -= 1
        if height * width > self.area or self.busy >= 0:
            raise torch.OutOfMemoryError("9 GiB")


def decoded(engine: DiffusionEngine, **changes: Any) -> tuple[bytes, list[int]]:
    """Generate a large image; return it and the areas that its autoencoder decoded."""
    limit = changes.pop("limit", MemoryLimit(10**9))
    [row] = admit(engine, request(width=640, height=640, steps=1, guidance_scale=1.0, **changes))
    finish(engine, row)
    with hooked(engine._family.vae.decoder, limit):
        data = engine.render(row)().data
    engine.release(row)
    return data, limit.sizes


def test_decode_survives_a_memory_limit(engine: DiffusionEngine) -> None:
    whole, [area] = decoded(engine)
    again, areas = decoded(engine, limit=MemoryLimit(area, busy=1))
    assert areas == [area, area], "the second attempt runs between two steps"
    assert again == whole
    in_tiles, areas = decoded(engine, limit=MemoryLimit(area * 2 // 3))
    assert areas[:2] == [area, area]
    assert max(areas[2:]) <= area * 2 // 3, "the side of a tile is 512 pixels"
    assert Image.open(io.BytesIO(in_tiles)).size == (640, 640)


def test_reproducible_image_is_never_decoded_in_tiles(engine: DiffusionEngine) -> None:
    with pytest.raises(TaskError) as reported:
        decoded(engine, reproducible=True, limit=MemoryLimit(64 * 64))
    assert reported.value.kind == "out_of_memory"


def test_decode_out_of_memory_fails_only_its_task(engine: DiffusionEngine) -> None:
    [row] = admit(engine, request())
    finish(engine, row)
    image = engine.render(row)
    with hooked(engine._family.vae.decoder, MemoryLimit(0)), pytest.raises(TaskError) as reported:
        image()
    assert reported.value.kind == "out_of_memory"
    assert engine.render(row)().data


def test_row_error_fails_only_that_row(engine: DiffusionEngine) -> None:
    asked = request(scheduler="euler"), request(mode="inpaint"), request(scheduler="euler")
    healthy, sick, expected = admit(engine, *asked)
    engine.step([healthy, sick])
    assert sick.mask_state is not None
    sick.mask_state = MaskState(
        sick.mask_state.image, sick.mask_state.noise, sick.mask_state.mask[..., :3]
    )  # has the wrong size
    engine.step([healthy, sick])
    assert healthy.step == 2
    with pytest.raises(TaskError, match="mask could not be applied"):
        engine.step([healthy, sick])
    assert healthy.step == 2, "the healthy row must wait"
    finish(engine, healthy)
    finish(engine, expected)
    torch.testing.assert_close(healthy.latents, expected.latents, rtol=1e-4, atol=1e-4)


def test_non_finite_latents_reported(engine: DiffusionEngine) -> None:
    [row] = admit(engine, request())
    finish(engine, row)
    latents = row.latents.clone()
    latents[0, 0, 0, 0] = float("nan")
    row.sampler.latents = latents
    with pytest.raises(TaskError, match=r"latents of scheduler 'default' are not finite in torch\.float32"):
        engine.render(row)()


def test_vae_overflow_reported(engine: DiffusionEngine) -> None:
    [row] = admit(engine, request())
    finish(engine, row)
    row.sampler.latents = torch.full_like(row.latents, 1e38)
    with pytest.raises(TaskError, match="autoencoder's output is not finite") as caught:
        engine.render(row)()
    assert caught.value.kind == "error"


# ---- rejected requests


def test_invalid_task_does_not_affect_others(engine: DiffusionEngine) -> None:
    asked = [request(), request(scheduler="lcm", steps=60), request(width=SIZE + 4), request(seed=2)]
    first, steps, size, last = engine.admit([engine_request(inputs) for inputs in asked])
    assert isinstance(first, DiffusionRow)
    assert isinstance(last, DiffusionRow)
    assert isinstance(steps, TaskError)
    assert isinstance(size, TaskError)
    assert (steps.kind, size.kind) == ("invalid", "invalid")
    assert size.message == "width and height must be multiples of 8, got 36x32"


PIXELS = SIZE * SIZE
BAD_SOURCES: list[tuple[str, list[int], str]] = [
    ("text", [3 * PIXELS], "takes 0 source images, got 1"),
    ("image", [], "takes 1 source images, got 0"),
    ("image", [3 * PIXELS - 1], "image pixels of 32x32 must have 3072 bytes, got 3071"),
    ("image", [PIXELS], "image pixels of 32x32 must have 3072 bytes, got 1024"),
    ("inpaint", [3 * PIXELS], "takes 2 source images, got 1"),
    ("inpaint", [3 * PIXELS, 3 * PIXELS], "mask pixels of 32x32 must have 1024 bytes, got 3072"),
    ("inpaint", [3 * PIXELS, 0], "mask pixels of 32x32 must have 1024 bytes, got 0"),
]


@pytest.mark.parametrize(("mode", "sizes", "message"), BAD_SOURCES)
def test_sources_of_wrong_size_rejected(engine: DiffusionEngine, mode: str, sizes: list[int], message: str) -> None:
    reported = refusal(engine, EngineRequest(request(mode=mode), [bytes(size) for size in sizes]))
    assert (reported.kind, message in reported.message) == ("invalid", True), reported.message


def test_strength_without_steps_rejected(engine: DiffusionEngine) -> None:
    assert refusal(engine, engine_request(request(mode="image", strength=0.1, steps=4))).kind == "invalid"


def test_adapters_rejected_without_folder(engine: DiffusionEngine) -> None:
    assert refusal(engine, engine_request(request(loras=(Lora("ink"),)))).kind == "invalid"


# ---- images


def test_render_uses_state_at_time_of_call(engine: DiffusionEngine) -> None:
    [row, twin] = admit(engine, request(mode="inpaint"), request(mode="inpaint"))
    engine.step([row])
    engine.step([twin])
    later = engine.render(row)
    finish(engine, row)
    assert later() == engine.render(twin)()
    assert later() != engine.render(row)()


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "lcm"])
def test_preview_shows_denoised_estimate(engine: DiffusionEngine, scheduler: str) -> None:
    [row] = admit(engine, request(scheduler=scheduler))
    engine.step([row])
    assert not torch.equal(row.latents_to_decode(), row.latents)
    finish(engine, row)
    assert row.latents_to_decode() is row.latents


def test_protected_area_unchanged(engine: DiffusionEngine) -> None:
    [row] = admit(engine, request(mode="inpaint"))
    assert row.mask_state is not None
    protected = row.mask_state.mask.expand_as(row.latents) == 0
    assert protected.any()
    assert not protected.all()
    engine.step([row])
    assert torch.equal(row.latents_to_decode()[protected], row.mask_state.image[protected])
    assert not torch.equal(row.latents[protected], row.mask_state.image[protected]), "the latents must be noisy"
    finish(engine, row)
    assert torch.equal(row.latents[protected], row.mask_state.image[protected])


@pytest.mark.parametrize(("output_format", "pillow"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_output_formats(engine: DiffusionEngine, output_format: str, pillow: str) -> None:
    [row] = admit(engine, request(output_format=output_format, output_quality=90, width=40, height=32))
    finish(engine, row)
    image = Image.open(io.BytesIO(engine.render(row)().data))
    assert (image.format, image.size, image.mode) == (pillow, (40, 32), "RGB")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_higher_quality_gives_larger_file(engine: DiffusionEngine, output_format: str) -> None:
    sizes = []
    for quality in (10, 100):
        [row] = admit(engine, request(output_format=output_format, output_quality=quality, width=64, height=64))
        finish(engine, row)
        sizes.append(len(engine.render(row)().data))
    assert sizes[0] < sizes[1]


# ---- batch keys


def test_batch_key_is_size_adapters_and_reproducibility(engine: DiffusionEngine) -> None:
    key = engine.key(EngineRequest(request()))
    other = request(scheduler="heun", steps=3, guidance_scale=1.0, prompt="x", negative_prompt="y", mode="inpaint")
    assert engine.key(EngineRequest(other)) == key
    apart: list[dict[str, Any]] = [
        {"width": 64},
        {"height": 64},
        {"loras": (Lora("ink"),)},
        {"loras": (Lora("ink", 2.0),)},
    ]
    assert len({key, *(engine.key(EngineRequest(request(**one))) for one in [*apart, {"reproducible": True}])}) == 6


def test_guidance_above_one_takes_second_pass(engine: DiffusionEngine) -> None:
    rows = admit(engine, request(guidance_scale=1.0), request(guidance_scale=1.1), request(guidance_scale=0.0))
    assert [row.passes for row in rows] == [1, 2, 1]
    assert passes(engine, lambda: engine.step(rows)) == [4], "one forward pass, of four rows"


def passes(engine: DiffusionEngine, act: Callable[[], None]) -> list[int]:
    """Return the size of each forward pass during the action."""
    sizes: list[int] = []
    with hooked(unet(engine), lambda module, given: sizes.append(len(given[0]))):
        act()
    return sizes


def test_released_rows_dropped_from_layout_cache(engine: DiffusionEngine) -> None:
    rows = admit(engine, *(request(seed=n) for n in range(3)))
    engine.step(rows)
    engine.step(rows[1:])
    engine.release(rows[0])
    assert all(rows[0] not in known for known in engine._forward._layouts)
    finish(engine, *rows[1:])


# ---- checkpoints

#: One name per solver class; other differences do not affect checkpoints.
SOLVERS = list(
    {SAMPLERS[name].cls: name for name in reversed(sampler_names("noise")) if name != MODEL_DEFAULT}.values()
)
MOVING: list[tuple[str, dict[str, Any]]] = [(name, {"scheduler": name}) for name in SOLVERS] + [
    (f"{mode}-{strength}-{name}", {"scheduler": name, "mode": mode, "strength": strength})
    for mode, strength in (("image", 0.7), ("inpaint", 0.8), ("inpaint", 1.0))
    for name in (MODEL_DEFAULT, "euler_ancestral", "dpmpp_2m", "heun")
]


@pytest.mark.parametrize("changes", [changes for _, changes in MOVING], ids=[name for name, _ in MOVING])
def test_row_resumed_at_any_step_bit_equal(engine: DiffusionEngine, changes: dict[str, Any]) -> None:
    task = engine_request(request(steps=5, seed=7, **changes))
    [row] = admit(engine, task)
    saved = [engine.save(row)]
    while row.step < row.steps:
        engine.step([row])
        saved.append(engine.save(row))
    for step, checkpoint in enumerate(saved):
        taken = checkpoint()  # after the row went on, but with its earlier state
        assert taken.step == step
        [resumed] = admit(engine, EngineRequest(task.inputs, task.sources, taken))
        assert resumed.step == step
        finish(engine, resumed)
        assert torch.equal(resumed.latents, row.latents), f"resumed at step {step}"
        assert engine.render(resumed)() == engine.render(row)()


def test_checkpoint_is_small_safetensors(engine: DiffusionEngine) -> None:
    [row] = admit(engine, request(scheduler="dpmpp_2m"))
    engine.step([row])
    [blob] = engine.save(row)().frames
    assert len(blob) < 64 * 1024
    assert all(tensor.numel() for tensor in safetensors.torch.load(blob).values())


@pytest.mark.parametrize(
    "frames", [[b""], [b"from somewhere else"], [], [b"a", b"b"]], ids=["empty", "foreign", "none", "two"]
)
def test_invalid_checkpoint_fails_only_its_task(engine: DiffusionEngine, frames: list[bytes]) -> None:
    task = engine_request(request(), checkpoint=Checkpoint(3, frames))
    rejection, other = engine.admit([task, engine_request(request())])
    assert isinstance(rejection, TaskError)
    assert rejection.kind == "error"
    assert isinstance(other, DiffusionRow)


def test_checkpoint_of_other_step_is_an_error(engine: DiffusionEngine) -> None:
    [row] = admit(engine, request())
    engine.step([row])
    frames = engine.save(row)().frames
    assert refusal(engine, engine_request(request(), checkpoint=Checkpoint(4, frames))).kind == "error"


# ---- reproducible requests


def other_requests(seed: int) -> list[tuple[int, ImageInputs]]:
    """Other requests with their joining ticks."""
    kinds: list[dict[str, Any]] = [{"mode": "text"}, {"mode": "image"}, {"mode": "inpaint"}, {"guidance_scale": 1.0}]
    return [
        (n // 3, request(seed=seed + n, steps=3 + n % 4, prompt=f"{seed} {n}", reproducible=True, **kinds[n % 4]))
        for n in range(11)
    ]


@pytest.mark.parametrize("scheduler", [MODEL_DEFAULT, "euler_ancestral", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("changes", [{}, {"mode": "inpaint", "strength": 0.8}, {"guidance_scale": 1.0}], ids=str)
def test_reproducible_bytes_equal_in_any_batch(
    engine: DiffusionEngine, scheduler: str, changes: dict[str, Any]
) -> None:
    asked = request(prompt="the same again", seed=5, reproducible=True, scheduler=scheduler, **changes)
    [single] = admit(engine, asked)
    finish(engine, single)
    for seed, joins in ((100, 0), (200, 1)):
        among = other_requests(seed)
        row = run(engine, [*among[:5], (joins, asked), *among[5:]])
        [mine] = [one for one in row if one.inputs.seed == asked.seed]
        assert engine.render(mine)() == engine.render(single)()
        assert torch.equal(mine.latents, single.latents)


def test_reproducible_requests_use_fixed_size_passes(engine: DiffusionEngine) -> None:
    asked = [request(seed=n, guidance_scale=(3.0, 1.0)[n % 2], reproducible=True) for n in range(7)]
    for count, sizes in ((1, [8]), (5, [8]), (6, [8, 8]), (7, [8, 8])):
        rows = admit(engine, *asked[:count])
        assert passes(engine, partial(engine.step, rows)) == sizes, count


def test_reproducible_model_makes_all_requests_reproducible(engine: DiffusionEngine) -> None:
    plain = engine_of(Path(engine._model.path), reproducible=True)
    assert plain.key(EngineRequest(request())) == plain.key(EngineRequest(request(reproducible=True)))
    [row] = admit(plain, request())
    assert passes(plain, lambda: plain.step([row])) == [8]


# ---- process


def test_about_and_fingerprint(engine: DiffusionEngine) -> None:
    about = engine.info()
    assert (about.pipeline, about.batching, about.dtype) == ("StableDiffusionPipeline", "family", "float32")
    assert about.modes == ("text", "image", "inpaint")
    assert (about.checkpoints, about.reproducible, about.loras) == (True, True, False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(about), type=type(about)) == about
    for part in (engine._model.path, "float32", "CPU", torch.__version__):
        assert part in engine.fingerprint()


def test_cpu_worker_uses_one_thread(engine: DiffusionEngine) -> None:
    recorded = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: recorded.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert recorded == [1, 1]
    assert engine.memory_bytes() > 2**20


def test_engine_runs_in_inference_mode(engine: DiffusionEngine) -> None:
    [row] = admit(engine, request(mode="inpaint"))
    engine.step([row])
    engine.synchronize()
    assert not row.latents.requires_grad
    assert all(reported.is_inference() for reported in row.conditions.values())
