"""`GenericEngine`: errors, and the contract of its rows with the step loop."""

from __future__ import annotations

import gc
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from configs.model_sections import Defaults
from scripts.harness.processes import PATIENCE_S
from tests.support.tiny_pipelines import (
    BUILT_IN,
    SIZE,
    admit,
    digits,
    engine_of,
    finish,
    model_of,
    pixels,
    request,
    sources_of,
)
from wire.inputs import ImageInputs, Lora
from worker.engine import Checkpoint, DeviceLost, EngineRequest, OutOfMemory, TaskError, UnsupportedModel
from worker.engines.diffusion.generic.engine import GenericEngine
from worker.engines.diffusion.generic.row import GenericRow

Engines = Callable[[str], GenericEngine]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return cache(lambda kind: engine_of(model_of(kind, tmp_path_factory.mktemp(kind))))


@pytest.fixture
def engine(engines: Engines) -> GenericEngine:
    return engines("text")


def threads(expected: int) -> bool:
    """Return true when this number of request threads exist; ended threads may take a moment to exit."""
    for _ in range(1000):
        if sum(thread.name == "request" for thread in threading.enumerate()) == expected:
            return True
        time.sleep(0.01)
    return False


@contextmanager
def failing(module: torch.nn.Module, error: Exception) -> Iterator[None]:
    """Make every forward pass of the module fail."""

    def hook(*given: Any) -> None:
        raise error

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def part(engine: GenericEngine, name: str) -> torch.nn.Module:
    found = getattr(engine._pipeline, name)
    assert isinstance(found, torch.nn.Module)
    return found


def refusal(engine: GenericEngine, inputs: ImageInputs, *sources: bytes) -> TaskError:
    [rejection] = engine.admit([EngineRequest(inputs, sources)])
    assert isinstance(rejection, TaskError)
    assert threads(0)
    return rejection


# ---- errors


@pytest.mark.parametrize(("kind", "broken"), [("text", "unet"), ("control", "unet"), ("control", "controlnet")])
def test_forward_pass_error_moves_no_row(engines: Engines, kind: str, broken: str) -> None:
    engine = engines(kind)
    [mode] = engine.info().modes
    requested = [request(mode, seed=n, scheduler=name) for n, name in enumerate(("ddim", "heun", "dpmpp_2m"))]
    rows, untouched = admit(engine, *requested), admit(engine, *requested)
    for _ in range(2):
        engine.step(rows)
    with failing(part(engine, broken), RuntimeError("not now")):
        for group in (rows, rows, rows[:1]):
            with pytest.raises(RuntimeError, match="not now"):
                engine.step(group)
    assert [row.step for row in rows] == [2, 2, 2]
    assert all(row.failure is None for row in rows)
    finish(engine, *rows)
    finish(engine, *untouched)
    for row, expected in zip(rows, untouched, strict=True):
        np.testing.assert_array_equal(pixels(row), pixels(expected), err_msg="a failed step must not change the row")


DEVICE = [
    (torch.OutOfMemoryError("tried to allocate 9 GiB"), OutOfMemory),
    (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
]


@pytest.mark.parametrize(("error", "reported"), DEVICE, ids=lambda value: str(value)[:12])
def test_device_errors_translated(engine: GenericEngine, error: Exception, reported: type[Exception]) -> None:
    rows = admit(engine, request(), request(seed=2))
    with failing(part(engine, "unet"), error), pytest.raises(reported):
        engine.step(rows)
    finish(engine, *rows)
    with failing(part(engine, "text_encoder"), error), pytest.raises(reported):
        engine.admit([EngineRequest(request()), EngineRequest(request(seed=2))])
    assert threads(0)


class FailingEvent:
    """Stands for a CUDA event whose device was lost."""

    def synchronize(self) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")


def test_lost_device_shows_while_waiting_for_last_step(engine: GenericEngine) -> None:
    rows = admit(engine, request(), request(seed=2))
    event: Any = FailingEvent()
    engine._completion.event = event
    with pytest.raises(DeviceLost):
        engine.step(rows)
    engine._completion.event = None
    for row in rows:
        engine.release(row)
    assert threads(0)


def test_admission_out_of_memory_releases_all_rows(engine: GenericEngine) -> None:
    recorded = []

    def second(*given: Any) -> None:
        recorded.append(given)
        if len(recorded) > 2:  # a request with guidance encodes two texts
            raise torch.OutOfMemoryError("9 GiB")

    handle = part(engine, "text_encoder").register_forward_pre_hook(second)
    try:
        with pytest.raises(OutOfMemory):
            engine.admit([EngineRequest(request()), EngineRequest(request(seed=2))])
    finally:
        handle.remove()
    assert threads(0)


def test_pipeline_error_between_calls_fails_only_its_row(engine: GenericEngine) -> None:
    healthy, sick, expected = admit(engine, request(), request(seed=2), request())
    engine.step([healthy, sick])
    [scheduler] = sick._progress._schedulers
    scheduler.alphas_cumprod = scheduler.alphas_cumprod[:1]  # the next step is past the end of this tensor
    engine.step([healthy, sick])
    assert (healthy.step, sick.step) == (2, 1)
    for _ in range(2):
        with pytest.raises(TaskError, match="the pipeline failed: index"):
            engine.step([healthy, sick])
    assert healthy.step == 2, "the healthy row must wait"
    engine.release(sick)
    finish(engine, healthy)
    finish(engine, expected)
    np.testing.assert_allclose(pixels(healthy), pixels(expected), atol=1e-4)
    assert threads(0)


def test_non_finite_image_reported(engine: GenericEngine) -> None:
    decoder = engine._pipeline.vae.decoder
    [row] = admit(engine, request())
    handle = decoder.register_forward_hook(lambda module, given, output: output * float("nan"))
    try:
        finish(engine, row)
        with pytest.raises(TaskError, match="not finite") as caught:
            engine.render(row)()
    finally:
        handle.remove()
    assert caught.value.kind == "error"


def test_decoder_error_fails_only_its_image(engine: GenericEngine) -> None:
    rows = admit(engine, request(), request(steps=7))
    with failing(engine._pipeline.vae.decoder, RuntimeError("no room")):
        while rows[0].step < rows[0].steps:
            engine.step(rows)
        with pytest.raises(TaskError, match="the pipeline failed: no room"):
            engine.render(rows[0])()
    finish(engine, *rows[1:])
    assert engine.render(rows[1])().data


# ---- life cycle of a row


@pytest.mark.parametrize("kind", ["text", "control", "separate", "lists"])
def test_released_row_frees_its_thread(engines: Engines, kind: str) -> None:
    engine = engines(kind)
    [mode] = engine.info().modes
    early, unstepped, stays = admit(engine, *(request(mode, seed=n) for n in range(3)))
    assert threads(3)
    engine.release(unstepped)
    engine.step([early, stays])
    engine.release(early)
    assert threads(1)
    finish(engine, stays)
    image = engine.render(stays)
    engine.release(stays)
    assert image().data
    assert threads(0)


#: Kind, changes to the request, and the expected number of denoiser calls.
STEPS: list[tuple[str, dict[str, Any], int]] = [
    ("text", {"steps": 5}, 5),
    ("text", {"steps": 5, "scheduler": "heun"}, 9),
    ("text", {"steps": 5, "scheduler": "pndm"}, 14),
    ("image", {"steps": 6, "strength": 0.5}, 3),
    ("inpaint", {"steps": 6, "strength": 1.0}, 6),
    ("control", {"steps": 4}, 4),
    ("control_image", {"steps": 4, "strength": 0.5}, 2),
    ("consistency", {"steps": 3}, 3),
    ("unconditional", {"steps": 3}, 3),
    ("separate", {"steps": 4, "guidance_scale": 1.0}, 4),
    ("separate", {"steps": 4, "guidance_scale": 3.0}, 8),
    ("lists", {"steps": 4}, 4),
]


@pytest.mark.parametrize(("kind", "changes", "steps"), STEPS, ids=str)
def test_steps_known_at_start_and_count_denoiser_calls(
    engines: Engines, kind: str, changes: dict[str, Any], steps: int
) -> None:
    engine = engines(kind)
    [mode] = engine.info().modes
    finish(
        engine, *admit(engine, request(mode, **changes))
    )  # the first request of a kind may start with a wrong estimate
    [row] = admit(engine, request(mode, **changes))
    reported = []
    while row.step < row.steps:
        reported.append((row.step, row.steps))
        engine.step([row])
    assert reported == [(n, steps) for n in range(steps)]
    assert (row.step, row.steps) == (steps, steps)


@pytest.mark.parametrize("kind", ["text", "control"])
def test_rows_of_all_settings_share_forward_pass(engines: Engines, kind: str) -> None:
    engine = engines(kind)
    [mode] = engine.info().modes
    rows = admit(
        engine,
        request(mode, guidance_scale=1.0),
        request(mode, scheduler="euler", prompt="0"),
        request(mode, scheduler="lcm", steps=9, negative_prompt="1"),
    )
    sizes = []
    handle = part(engine, "unet").register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    try:
        engine.step(rows)
        engine.step(rows[:2])
        engine.step(rows)
    finally:
        handle.remove()
        for row in rows:
            engine.release(row)
    assert sizes == [5, 3, 5], "one forward pass per step"


def test_image_available_only_at_end_and_repeatedly(engine: GenericEngine) -> None:
    [row] = admit(engine, request(output_format="webp", width=40))
    engine.step([row])
    with pytest.raises(TaskError, match="no image before the last step"):
        engine.render(row)()
    finish(engine, row)
    first = engine.render(row)()
    assert first == engine.render(row)()
    image = Image.open(io.BytesIO(first.data))
    assert (image.format, image.size, image.mode) == ("WEBP", (40, SIZE), "RGB")


def test_decode_runs_beside_steps_of_others(engine: GenericEngine) -> None:
    proceed = threading.Event()
    decoder = engine._pipeline.vae.decoder
    first, other = admit(engine, request(steps=2), request(steps=6))
    handle = decoder.register_forward_pre_hook(lambda module, given: proceed.wait(PATIENCE_S) and None)
    try:
        finish(engine, first)
        for _ in range(3):
            engine.step([other])
        assert threads(2)
        assert first.thread.is_rendering
    finally:
        proceed.set()
        handle.remove()
    assert engine.render(first)().data
    finish(engine, other)


def test_concurrent_decodes_keep_vae_dtype(tmp_path: Path) -> None:
    engine = engine_of(model_of("large", tmp_path, dtype="float16"))
    assert engine.info().dtype == "float16"
    for _ in range(3):
        rows = admit(engine, *(request(seed=n, steps=3 + n % 2) for n in range(4)))
        finish(engine, *rows)
        assert all(np.isfinite(pixels(row)).all() for row in rows)
    assert {parameter.dtype for parameter in part(engine, "vae").parameters()} == {torch.float32}


def test_checkpoints_unsupported(engine: GenericEngine) -> None:
    [row] = admit(engine, request())
    assert engine.save(row) is None
    engine.release(row)
    [rejection] = engine.admit([EngineRequest(request(), (), Checkpoint(3, [b"from somewhere else"]))])
    assert isinstance(rejection, TaskError)


def test_finished_requests_leak_nothing(engines: Engines) -> None:
    engine = engines("unconditional")

    def wave() -> None:
        rows = admit(engine, *(request(seed=n, steps=13 + n) for n in range(8)))
        finish(engine, *rows[:6])
        for row in rows[:6]:
            assert engine.render(row)().data
        for row in rows:
            engine.release(row)

    def tensors() -> int:
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    wave()
    gc.collect()
    before = tensors(), len(gc.get_objects())
    gc.disable()
    try:
        for _ in range(8):  # more than a thousand row steps
            wave()
        assert threads(0)
        assert tensors() <= before[0] + 8, "tensors must not wait for the garbage collector"
    finally:
        gc.enable()
    gc.collect()
    assert len(gc.get_objects()) <= before[1] + 200


# ---- capabilities and rejections


def test_modes_found_by_probe(engines: Engines) -> None:
    modes = {kind: engines(kind).info().modes for kind in (*BUILT_IN, "control", "control_inpaint", "classes")}
    assert modes == {
        "text": ("text",),
        "image": ("image",),
        "inpaint": ("inpaint",),
        "control": ("image",),
        "control_inpaint": ("inpaint",),
        "classes": ("text",),
    }
    about = engines("control").info()
    assert (about.pipeline, about.batching, about.dtype) == (
        "StableDiffusionControlNetPipeline",
        "generic",
        "float32",
    )
    assert (about.checkpoints, about.loras, about.reproducible) == (False, False, True)


REFUSED: list[tuple[str, ImageInputs, str]] = [
    ("text", request(scheduler="lcm", steps=60), "60"),
    ("text", request(scheduler="flow_match_heun"), "cannot be used with this model"),
    ("text", request(width=SIZE + 4), "divisible by 8"),
    ("text", request("image"), "supports mode text, not image"),
    ("text", request(loras=(Lora("sepia"),)), "LoRA"),
    ("image", request(), "supports mode image, not text"),
    ("consistency", request(negative_prompt="blurred"), "does not support negative prompts"),
    ("classes", request(prompt="3", scheduler="euler"), "only its own scheduler, not 'euler'"),
    ("classes", request(prompt="a shark"), "class number below 1000 or a class name"),
    ("classes", request(prompt="1000"), "class number below 1000 or a class name"),
    ("classes", request(prompt="3", width=2 * SIZE), "only generates 32x32"),
    ("unconditional", request(scheduler="ddim"), "only its own scheduler"),
    ("unconditional", request(negative_prompt="blurred"), "does not support negative prompts"),
    ("separate", request(scheduler="euler"), "only its own scheduler"),
]


@pytest.mark.parametrize(("kind", "inputs", "text"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_rejection_states_reason_and_affects_no_other_row(
    engines: Engines, kind: str, inputs: ImageInputs, text: str
) -> None:
    engine = engines(kind)
    [mode] = engine.info().modes
    [row] = admit(engine, request(mode, prompt="1"))
    rejection, other = engine.admit([EngineRequest(i, sources_of(i)) for i in (inputs, request(mode, prompt="2"))])
    assert isinstance(rejection, TaskError)
    assert rejection.kind == "invalid"
    assert text in rejection.message
    assert isinstance(other, GenericRow)
    for own in (row, other):
        engine.release(own)
    assert threads(0)


@pytest.mark.parametrize(("count", "cut"), [(0, 0), (1, 0), (2, 1), (3, 0)])
def test_invalid_source_images_rejected(engines: Engines, count: int, cut: int) -> None:
    inputs = request("inpaint")
    sources = [*sources_of(inputs), b""][:count]
    if cut:
        sources[-1] = sources[-1][:-cut]
    rejection = refusal(engines("inpaint"), inputs, *sources)
    assert rejection.kind == "invalid"
    assert ("images" in rejection.message) or ("bytes" in rejection.message)


def test_class_label_by_number_or_name(engines: Engines) -> None:
    engine = engines("classes")
    rows = admit(engine, *(request(prompt=prompt) for prompt in ("7", "shark", " white shark", "8")))
    finish(engine, *rows)
    seven, shark, white, eight = (pixels(row) for row in rows)
    np.testing.assert_allclose(shark, seven, atol=1e-4)
    np.testing.assert_allclose(white, seven, atol=1e-4)
    assert np.abs(eight - seven).max() > 1e-3


UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("text", {"pipeline": "StableDiffusionPAGPipeline"}, "modifies the shared denoiser"),
    ("text", {"pipeline": "KandinskyV22Pipeline"}, "KandinskyV22Pipeline"),
    ("text", {"defaults": Defaults(size="64x64", scheduler="flow_match_heun")}, "'flow_match_heun' cannot be used"),
    ("classes", {"defaults": Defaults(size="64x64")}, "only generates 32x32: set defaults.size to it"),
]


@pytest.mark.parametrize(("kind", "changes", "text"), UNSUPPORTED, ids=lambda value: value if len(value) > 20 else "")
def test_unsupported_pipeline_rejected_at_load(tmp_path: Path, kind: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        engine_of(model_of(kind, tmp_path, **changes))
    assert threads(0)


class BatchDependent(torch.nn.Module):
    """Makes the result depend on the position in the batch."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.inner(*args, **kwargs)
        return answer + torch.arange(len(answer)).reshape(-1, 1, 1, 1)


def test_batch_dependent_denoiser_not_batched(tmp_path: Path) -> None:
    engine = engine_of(model_of("text", tmp_path))
    unet: Any = part(engine, "unet")
    unet.conv_out = BatchDependent(unet.conv_out)
    engine._probe()
    single, first, second = admit(engine, *(request(seed=n) for n in (2, 1, 2)))
    finish(engine, single)
    finish(engine, first, second)
    np.testing.assert_array_equal(pixels(second), pixels(single))


# ---- safety checker


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with a safety checker that flags everything."""
    folder = tmp_path_factory.mktemp("checked")
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config={**tower, "image_size": 32, "patch_size": 16}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0)
    torch.nn.init.constant_(checker.special_care_embeds_weights, 2.0)
    pipeline = digits()
    pipeline.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor(size=32, crop_size=32))
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("requested", ["off", "flag", "refuse"])
def test_unsafe_image_flagged_or_rejected(checked: Path, requested: Any, tmp_path: Path) -> None:
    engine = engine_of(model_of("text", tmp_path, path=str(checked), safety_checker=requested))
    [row] = admit(engine, request())
    finish(engine, row)
    if requested == "refuse":
        with pytest.raises(TaskError) as caught:
            engine.render(row)()
        assert caught.value.kind == "unsafe"
        return
    image = engine.render(row)()
    assert image.flagged == (requested == "flag")
    assert np.asarray(Image.open(io.BytesIO(image.data))).std() > 1, "the image must not be black"


# ---- random event order


class AnyOrder(RuleBasedStateMachine):
    """Rows join, step in any combination, fail and leave; each finished image equals that of a single run."""

    engine: GenericEngine
    single: ClassVar[dict[tuple[int, int], bytes]] = {}

    @initialize()
    def begin(self) -> None:
        self.rows: list[GenericRow] = []

    @rule(seed=st.integers(0, 2), steps=st.integers(1, 4))
    def join(self, seed: int, steps: int) -> None:
        self.rows += admit(self.engine, request(seed=seed, steps=steps))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), fails=st.booleans())
    def step(self, data: st.DataObject, fails: bool) -> None:
        chosen = [row for row in self.rows if data.draw(st.booleans())]
        before = [row.step for row in chosen]
        if fails and chosen:
            with failing(part(self.engine, "unet"), RuntimeError("not now")), pytest.raises(RuntimeError):
                self.engine.step(chosen)
        else:
            self.engine.step(chosen)
        assert [row.step for row in chosen] == [step + (not fails) for step in before]
        for row in [row for row in self.rows if row.step == row.steps]:
            self.rows.remove(row)
            image = self.engine.render(row)
            self.engine.release(row)
            assert image().data == self.expected(row.inputs)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.rows))
        self.rows.remove(row)
        self.engine.release(row)

    def expected(self, inputs: ImageInputs) -> bytes:
        key = inputs.seed, inputs.steps
        if key not in self.single:
            [row] = admit(self.engine, inputs)
            finish(self.engine, row)
            self.single[key] = self.engine.render(row)().data
        return self.single[key]

    @invariant()
    def a_thread_for_each_row(self) -> None:
        assert threads(len(getattr(self, "rows", [])))

    def teardown(self) -> None:
        for row in self.rows:
            self.engine.release(row)
        assert threads(0)


def test_random_event_order(tmp_path: Path) -> None:
    AnyOrder.engine = engine_of(model_of("unconditional", tmp_path, reproducible=True))
    machine: Any = AnyOrder.TestCase
    machine.settings = settings(max_examples=10, stateful_step_count=15, deadline=None)
    machine().runTest()
