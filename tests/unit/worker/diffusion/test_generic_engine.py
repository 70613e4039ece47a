"""The generic engine where things go wrong, and what its rows promise to the step loop."""

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

from configs.settings import Defaults
from tests.support.tiny_pipelines import (
    BUILT_IN,
    SIZE,
    admitted,
    digits,
    engine_of,
    finish,
    model_of,
    pixels,
    request,
    sources_of,
)
from wire.messages import ImageInputs, Lora
from worker.engine import Checkpoint, DeviceLost, OutOfMemory, TaskError, UnsupportedModel, Wanted
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
    """Whether there are so many threads of requests. One that has given its last word may need a moment to go."""
    for _ in range(1000):
        if sum(thread.name == "request" for thread in threading.enumerate()) == expected:
            return True
        time.sleep(0.01)
    return False


@contextmanager
def failing(module: torch.nn.Module, error: Exception) -> Iterator[None]:
    """Every forward pass of the module fails."""

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
    [refused] = engine.admit([Wanted(inputs, sources)])
    assert isinstance(refused, TaskError)
    assert threads(0)
    return refused


# ---- failures


@pytest.mark.parametrize(("kind", "broken"), [("text", "unet"), ("control", "unet"), ("control", "controlnet")])
def test_a_forward_pass_that_raises_moves_no_row(engines: Engines, kind: str, broken: str) -> None:
    engine = engines(kind)
    [mode] = engine.about().modes
    wanted = [request(mode, seed=n, scheduler=name) for n, name in enumerate(("ddim", "heun", "dpmpp_2m"))]
    rows, untouched = admitted(engine, *wanted), admitted(engine, *wanted)
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
        np.testing.assert_array_equal(pixels(row), pixels(expected), err_msg="a failed step left its mark")


DEVICE = [
    (torch.OutOfMemoryError("tried to allocate 9 GiB"), OutOfMemory),
    (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
]


@pytest.mark.parametrize(("error", "told"), DEVICE, ids=lambda value: str(value)[:12])
def test_a_device_that_is_full_or_gone_is_told_as_such(
    engine: GenericEngine, error: Exception, told: type[Exception]
) -> None:
    rows = admitted(engine, request(), request(seed=2))
    with failing(part(engine, "unet"), error), pytest.raises(told):
        engine.step(rows)
    finish(engine, *rows)
    with failing(part(engine, "text_encoder"), error), pytest.raises(told):
        engine.admit([Wanted(request()), Wanted(request(seed=2))])
    assert threads(0)


def test_whoever_was_admitted_before_the_device_was_full_is_let_go(engine: GenericEngine) -> None:
    seen = []

    def second(*given: Any) -> None:
        seen.append(given)
        if len(seen) > 2:  # a request with guidance encodes two texts
            raise torch.OutOfMemoryError("9 GiB")

    handle = part(engine, "text_encoder").register_forward_pre_hook(second)
    try:
        with pytest.raises(OutOfMemory):
            engine.admit([Wanted(request()), Wanted(request(seed=2))])
    finally:
        handle.remove()
    assert threads(0)


def test_a_pipeline_that_breaks_between_two_calls_takes_no_other_row_along(engine: GenericEngine) -> None:
    healthy, sick, expected = admitted(engine, request(), request(seed=2), request())
    engine.step([healthy, sick])
    [scheduler] = sick._progress._schedulers
    scheduler.alphas_cumprod = scheduler.alphas_cumprod[:1]  # its next step is past this
    engine.step([healthy, sick])
    assert (healthy.step, sick.step) == (2, 1)
    for _ in range(2):
        with pytest.raises(TaskError, match="the pipeline failed: index"):
            engine.step([healthy, sick])
    assert healthy.step == 2, "the healthy row waits for the batch without the sick one"
    engine.release(sick)
    finish(engine, healthy)
    finish(engine, expected)
    np.testing.assert_allclose(pixels(healthy), pixels(expected), atol=1e-4)
    assert threads(0)


def test_a_picture_that_is_not_finite_is_an_error_that_says_so(engine: GenericEngine) -> None:
    decoder = engine._pipeline.vae.decoder
    [row] = admitted(engine, request())
    handle = decoder.register_forward_hook(lambda module, given, output: output * float("nan"))
    try:
        finish(engine, row)
        with pytest.raises(TaskError, match="not finite") as caught:
            engine.render(row)()
    finally:
        handle.remove()
    assert caught.value.kind == "error"


def test_a_decoder_that_fails_fails_its_picture_alone(engine: GenericEngine) -> None:
    rows = admitted(engine, request(), request(steps=7))
    with failing(engine._pipeline.vae.decoder, RuntimeError("no room")):
        while rows[0].step < rows[0].steps:
            engine.step(rows)
        with pytest.raises(TaskError, match="the pipeline failed: no room"):
            engine.render(rows[0])()
    finish(engine, *rows[1:])
    assert engine.render(rows[1])().data


# ---- the life of a row


@pytest.mark.parametrize("kind", ["text", "control", "separate", "lists"])
def test_a_row_that_is_released_frees_its_thread(engines: Engines, kind: str) -> None:
    engine = engines(kind)
    [mode] = engine.about().modes
    gone, at_once, stays = admitted(engine, *(request(mode, seed=n) for n in range(3)))
    assert threads(3)
    engine.release(at_once)
    engine.step([gone, stays])
    engine.release(gone)
    assert threads(1)
    finish(engine, stays)
    picture = engine.render(stays)
    engine.release(stays)
    assert picture().data
    assert threads(0)


#: Kind, changes to the request, evaluations of the denoiser that it takes.
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
def test_steps_are_known_from_the_start_and_count_calls_of_the_denoiser(
    engines: Engines, kind: str, changes: dict[str, Any], steps: int
) -> None:
    engine = engines(kind)
    [mode] = engine.about().modes
    finish(engine, *admitted(engine, request(mode, **changes)))  # the first of its kind may have to find out
    [row] = admitted(engine, request(mode, **changes))
    told = []
    while row.step < row.steps:
        told.append((row.step, row.steps))
        engine.step([row])
    assert told == [(n, steps) for n in range(steps)]
    assert (row.step, row.steps) == (steps, steps)


@pytest.mark.parametrize("kind", ["text", "control"])
def test_rows_of_every_setting_share_each_forward_pass(engines: Engines, kind: str) -> None:
    engine = engines(kind)
    [mode] = engine.about().modes
    rows = admitted(
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
    assert sizes == [5, 3, 5], "one forward pass for each step, whatever step a row is at"


def test_a_picture_is_there_at_the_end_only_and_as_often_as_one_likes(engine: GenericEngine) -> None:
    [row] = admitted(engine, request(output_format="webp", width=40))
    engine.step([row])
    with pytest.raises(TaskError, match="no image before the last step"):
        engine.render(row)()
    finish(engine, row)
    first = engine.render(row)()
    assert first == engine.render(row)()
    picture = Image.open(io.BytesIO(first.data))
    assert (picture.format, picture.size, picture.mode) == ("WEBP", (40, SIZE), "RGB")


def test_the_picture_is_made_beside_the_steps_of_others(engine: GenericEngine) -> None:
    go = threading.Event()
    decoder = engine._pipeline.vae.decoder
    first, other = admitted(engine, request(steps=2), request(steps=6))
    handle = decoder.register_forward_pre_hook(lambda module, given: go.wait(60) and None)
    try:
        finish(engine, first)
        for _ in range(3):
            engine.step([other])
        assert threads(2)
        assert first.thread.is_rendering
    finally:
        go.set()
        handle.remove()
    assert engine.render(first)().data
    finish(engine, other)


def test_pictures_made_at_one_time_leave_the_autoencoder_in_its_precision(tmp_path: Path) -> None:
    engine = engine_of(model_of("large", tmp_path, dtype="float16"))
    assert engine.about().dtype == "float16"
    for _ in range(3):
        rows = admitted(engine, *(request(seed=n, steps=3 + n % 2) for n in range(4)))
        finish(engine, *rows)
        assert all(np.isfinite(pixels(row)).all() for row in rows)
    assert {parameter.dtype for parameter in part(engine, "vae").parameters()} == {torch.float32}


def test_no_state_is_given_away_and_none_is_taken(engine: GenericEngine) -> None:
    [row] = admitted(engine, request())
    assert engine.save(row) is None
    engine.release(row)
    [refused] = engine.admit([Wanted(request(), (), Checkpoint(3, [b"from somewhere else"]))])
    assert isinstance(refused, TaskError)


def test_a_request_leaves_nothing_behind(engines: Engines) -> None:
    engine = engines("unconditional")

    def wave() -> None:
        rows = admitted(engine, *(request(seed=n, steps=13 + n) for n in range(8)))
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
        for _ in range(8):  # over a thousand steps of rows
            wave()
        assert threads(0)
        assert tensors() <= before[0] + 8, (
            "tensors wait for the garbage collector, and the device is full before it runs"
        )
    finally:
        gc.enable()
    gc.collect()
    assert len(gc.get_objects()) <= before[1] + 200


# ---- what it takes and what it refuses


def test_what_it_can_draw_from_was_tried(engines: Engines) -> None:
    modes = {kind: engines(kind).about().modes for kind in (*BUILT_IN, "control", "control_inpaint", "classes")}
    assert modes == {
        "text": ("text",),
        "image": ("image",),
        "inpaint": ("inpaint",),
        "control": ("image",),
        "control_inpaint": ("inpaint",),
        "classes": ("text",),
    }
    about = engines("control").about()
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
def test_a_refusal_says_why_and_touches_no_other(engines: Engines, kind: str, inputs: ImageInputs, text: str) -> None:
    engine = engines(kind)
    [mode] = engine.about().modes
    [row] = admitted(engine, request(mode, prompt="1"))
    refused, other = engine.admit([Wanted(i, sources_of(i)) for i in (inputs, request(mode, prompt="2"))])
    assert isinstance(refused, TaskError)
    assert refused.kind == "invalid"
    assert text in refused.message
    assert isinstance(other, GenericRow)
    for own in (row, other):
        engine.release(own)
    assert threads(0)


@pytest.mark.parametrize(("count", "cut"), [(0, 0), (1, 0), (2, 1), (3, 0)])
def test_source_pictures_that_are_not_as_the_mode_demands(engines: Engines, count: int, cut: int) -> None:
    inputs = request("inpaint")
    sources = [*sources_of(inputs), b""][:count]
    if cut:
        sources[-1] = sources[-1][:-cut]
    refused = refusal(engines("inpaint"), inputs, *sources)
    assert refused.kind == "invalid"
    assert ("images" in refused.message) or ("bytes" in refused.message)


def test_a_class_is_named_by_its_number_or_by_its_name(engines: Engines) -> None:
    engine = engines("classes")
    rows = admitted(engine, *(request(prompt=prompt) for prompt in ("7", "shark", " white shark", "8")))
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
def test_what_requests_cannot_run_is_refused_when_it_is_loaded(
    tmp_path: Path, kind: str, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        engine_of(model_of(kind, tmp_path, **changes))
    assert threads(0)


class Ranked(torch.nn.Module):
    """Makes what a picture gets depend on its place in the batch, as a model would that reads across it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.inner(*args, **kwargs)
        return answer + torch.arange(len(answer)).reshape(-1, 1, 1, 1)


def test_a_denoiser_that_reads_across_its_batch_gets_one_request_at_a_time(tmp_path: Path) -> None:
    engine = engine_of(model_of("text", tmp_path))
    unet: Any = part(engine, "unet")
    unet.conv_out = Ranked(unet.conv_out)
    engine._probe()
    alone, first, second = admitted(engine, *(request(seed=n) for n in (2, 1, 2)))
    finish(engine, alone)
    finish(engine, first, second)
    np.testing.assert_array_equal(pixels(second), pixels(alone))


# ---- the safety checker


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with a safety checker that objects to everything."""
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


@pytest.mark.parametrize("wanted", ["off", "flag", "refuse"])
def test_what_the_safety_checker_objects_to_is_flagged_or_refused(checked: Path, wanted: Any, tmp_path: Path) -> None:
    engine = engine_of(model_of("text", tmp_path, path=str(checked), safety_checker=wanted))
    [row] = admitted(engine, request())
    finish(engine, row)
    if wanted == "refuse":
        with pytest.raises(TaskError) as caught:
            engine.render(row)()
        assert caught.value.kind == "unsafe"
        return
    picture = engine.render(row)()
    assert picture.flagged == (wanted == "flag")
    assert np.asarray(Image.open(io.BytesIO(picture.data))).std() > 1, "the picture itself, not a black one"


# ---- any order of events


class AnyOrder(RuleBasedStateMachine):
    """Rows come, move in any company, fail together and leave; each that ends has the picture that it has alone."""

    engine: GenericEngine
    alone: ClassVar[dict[tuple[int, int], bytes]] = {}

    @initialize()
    def begin(self) -> None:
        self.rows: list[GenericRow] = []

    @rule(seed=st.integers(0, 2), steps=st.integers(1, 4))
    def join(self, seed: int, steps: int) -> None:
        self.rows += admitted(self.engine, request(seed=seed, steps=steps))

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
            picture = self.engine.render(row)
            self.engine.release(row)
            assert picture().data == self.expected(row.inputs)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.rows))
        self.rows.remove(row)
        self.engine.release(row)

    def expected(self, inputs: ImageInputs) -> bytes:
        key = inputs.seed, inputs.steps
        if key not in self.alone:
            [row] = admitted(self.engine, inputs)
            finish(self.engine, row)
            self.alone[key] = self.engine.render(row)().data
        return self.alone[key]

    @invariant()
    def a_thread_for_each_row(self) -> None:
        assert threads(len(getattr(self, "rows", [])))

    def teardown(self) -> None:
        for row in self.rows:
            self.engine.release(row)
        assert threads(0)


def test_rows_in_any_order_of_events(tmp_path: Path) -> None:
    AnyOrder.engine = engine_of(model_of("unconditional", tmp_path, reproducible=True))
    machine: Any = AnyOrder.TestCase
    machine.settings = settings(max_examples=10, stateful_step_count=15, deadline=None)
    machine().runTest()
