"""A user's class as the step loop runs it: batches, errors of one item, steps, checkpoints."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer

from muster import Content, Engine, Failed, IterativeEngine
from tests.support.images import png
from tests.support.user_engines import CallOutcome, call, parsed, run_calls, user_engine
from wire.inputs import CallInputs, ImageInputs, Part
from worker.engine import DeviceLost, EngineRequest, OutOfMemory, TaskError, UnsupportedModel


class Word(BaseModel):
    text: str
    times: int = 1


class Repeat:
    max_batch_size = 8
    batch_wait_ms = 2.5

    def __init__(self, mark: str = "") -> None:
        self.mark = mark
        self.batches: list[int] = []

    def load(self, device: str) -> None:
        self.device = device

    def predict(self, items: list[Word]) -> list[str]:
        self.batches.append(len(items))
        return [self.mark + item.text * item.times for item in items]


class One:
    def predict(self, item: str) -> int:
        return len(item)


class HTTPError(Exception):
    """As FastAPI's HTTPException."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(detail)
        self.status_code = status_code
        self.detail = detail


class Textless(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


BASE_ERRORS: dict[str, BaseException] = {
    "interrupt": KeyboardInterrupt(),
    "generator": GeneratorExit(),
    "cancelled": asyncio.CancelledError(),
    "stop": StopIteration(3),
    "base": BaseException("base"),
    "textless": Textless(),
    "surrogate": ValueError("a\ud800b\0"),
}


class Moody:
    """Fails as its items say."""

    def predict(self, items: list[str]) -> list[Any]:
        for item in items:
            if item == "raise":
                raise RuntimeError("raised on demand")
            if item == "exit":
                sys.exit("left on demand")
            if item in BASE_ERRORS:
                raise BASE_ERRORS[item]
            if item == "none":
                return None  # type: ignore[return-value]
            if item == "few":
                return ["one"] * (len(items) - 1)
        results: dict[str, Any] = {
            "failed": Failed("failed on demand", status=422, param="text"),
            "http": HTTPError(404, "not there"),
            "error": ValueError("returned on demand"),
            "object": object(),
        }
        return [results.get(item, item) for item in items]


def outcomes(engine: Any, *values: Any, **model: Any) -> list[CallOutcome]:
    return run_calls(user_engine(engine, **model), [call(value) for value in values])


def test_batch_is_one_call_with_validated_items() -> None:
    engine = Repeat(">")
    found = run_calls(
        user_engine(lambda: engine), [call({"text": "a", "times": 2}), call({"text": 5}), call({"text": "b"})]
    )
    assert [each.value for each in found] == [">aa", None, ">b"]
    assert found[1].error == "text: Input should be a valid string"
    assert (engine.batches, engine.device) == ([2], "cpu")


def test_properties_are_reported() -> None:
    engine = user_engine(Repeat)
    assert engine.limits() == (8, 2.5)
    info = engine.info()
    assert (info.pipeline, info.unit, info.streams, info.checkpoints) == ("Repeat", "call", False, False)
    assert '"required": ["text"]' in info.input_schema
    assert info.output_schema == '{"type": "string"}'
    assert user_engine(One).limits().max_batch_size == 1


def test_failures_are_no_part_of_the_result_schema() -> None:
    class Careful:
        def predict(self, items: list[str]) -> list[str | Failed]:
            return [item or Failed("it is empty", status=400) for item in items]

        def load(self, device: str) -> None:
            """Nothing to load."""

    assert user_engine(Careful).info().output_schema == '{"type": "string"}'
    assert [each.error for each in outcomes(Careful, "a", "")] == ["", "it is empty"]


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ("raise", "RuntimeError: raised on demand"),
        ("exit", "SystemExit: left on demand"),
        ("interrupt", "KeyboardInterrupt"),
        ("generator", "GeneratorExit"),
        ("cancelled", "CancelledError"),
        ("stop", "StopIteration: 3"),
        ("base", "BaseException: base"),
        ("textless", "Textless"),
        ("surrogate", "ValueError: a?b?"),
        ("failed", "text: failed on demand"),
        ("http", "not there"),
        ("error", "ValueError: returned on demand"),
        ("object", "the result cannot be sent: Unable to serialize unknown type: <class 'object'>"),
    ],
)
def test_failing_item_costs_no_other(caplog: pytest.LogCaptureFixture, item: str, error: str) -> None:
    caplog.set_level(logging.CRITICAL + 1)  # pytest-xdist cannot pass on a log with a lone surrogate
    found = outcomes(Moody, "a", "b", item, "c")
    assert found == [CallOutcome("a"), CallOutcome("b"), CallOutcome(error=error), CallOutcome("c")]


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ("none", "predict returned None; it must return a list with one result per item"),
        ("few", "predict returned 1 results for 2 items"),
    ],
)
def test_wrong_number_of_results_fails_batch(item: str, error: str) -> None:
    assert {each.error for each in outcomes(Moody, item, "a")} == {error}


@pytest.mark.parametrize(
    ("status", "kind", "sent"), [(400, "invalid", 0), (404, "invalid", 404), (500, "error", 0), (503, "error", 503)]
)
def test_status_of_failure_is_sent(status: int, kind: str, sent: int) -> None:
    class Failing:
        def predict(self, item: str) -> str:
            raise Failed("no", status=status)

    engine = user_engine(Failing)
    [row] = engine.admit([call("a")])
    with pytest.raises(TaskError) as caught:
        engine.step([row])  # type: ignore[list-item]
    assert (caught.value.kind, caught.value.status) == (kind, sent)


def test_error_of_any_engine_can_be_sent() -> None:
    assert TaskError("error", "bad \ud800").message == "bad ?"


def test_key_can_be_sent_as_shape() -> None:
    class Keyed:
        def key(self, item: int) -> str:
            return "\ud800"

        def predict(self, items: list[int]) -> list[int]:
            return items

    assert user_engine(Keyed).key(call(1)) == "'\\ud800'"


def test_long_error_is_cut() -> None:
    class Verbose:
        def predict(self, item: str) -> str:
            raise ValueError("x" * 10_000)

    [found] = outcomes(Verbose, "a")
    assert len(found.error) == 500


class OutOfMemoryError(RuntimeError):
    """As torch's."""


def test_items_that_a_failed_batch_has_changed_are_decoded_again() -> None:
    class Popping:
        def predict(self, items: list[dict[str, int]]) -> list[int]:
            return [10 // item.pop("by") for item in items]

    found = outcomes(Popping, {"by": 2}, {"by": 0}, {"by": 5})
    assert [each.value for each in found] == [5, None, 2]
    assert found[1].error.startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLost),
    ],
)
def test_device_errors_are_recognised(error: Exception, expected: type[Exception]) -> None:
    class Heavy:
        def predict(self, items: list[str]) -> list[str]:
            raise error

    engine = user_engine(Heavy)
    rows = engine.admit([call("a"), call("b")])
    with pytest.raises(expected):
        engine.step(rows)  # type: ignore[arg-type]


class LostDevice:
    """Fails as CUDA does from then on, at the place that its item names."""

    def fail(self, place: str, item: str) -> str:
        if item == place:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return item


class AsyncOnLostDevice(LostDevice):
    async def predict(self, item: str) -> str:
        return self.fail("predict", item)


class StepsOnLostDevice(LostDevice):
    def start(self, item: str) -> str:
        return self.fail("start", item)

    def step(self, states: list[str]) -> list[bool]:
        return [bool(self.fail("step", state)) for state in states]

    def result(self, state: str) -> str:
        return self.fail("result", state)


class StreamOnLostDevice(LostDevice):
    def predict(self, item: str) -> Iterator[str]:
        return iter(self.fail("predict", item))


class HooksOnLostDevice(LostDevice):
    max_batch_size = 2

    def setup(self, device: str) -> None: ...

    def decode_request(self, request: str) -> str:
        return self.fail("decode", request)

    def predict(self, inputs: list[str]) -> list[str]:
        return inputs

    def encode_response(self, output: str) -> str:
        return self.fail("encode", output)


class TensorOnLostDevice(BaseModel):
    value: str

    @model_serializer
    def write(self) -> str:
        return LostDevice().fail("render", self.value)


class ResultOnLostDevice(LostDevice):
    def predict(self, items: list[str]) -> list[TensorOnLostDevice]:
        return [TensorOnLostDevice(value=item) for item in items]


@pytest.mark.parametrize(
    ("engine", "place"),
    [
        (AsyncOnLostDevice, "predict"),
        (StepsOnLostDevice, "start"),
        (StepsOnLostDevice, "step"),
        (StepsOnLostDevice, "result"),
        (StreamOnLostDevice, "predict"),
        (HooksOnLostDevice, "decode"),
        (HooksOnLostDevice, "encode"),
        (ResultOnLostDevice, "render"),
    ],
)
def test_lost_device_is_recognised_wherever_it_shows(engine: type[LostDevice], place: str) -> None:
    assert [each.error for each in run_calls(user_engine(engine), [call("other"), call("other")])] == ["", ""]
    with pytest.raises(DeviceLost, match="an illegal memory access"):
        run_calls(user_engine(engine), [call("other"), call(place)])


class PictureModel(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    data: bytes
    pixels: numpy.ndarray | None


class Anything(BaseModel):
    value: Any


class OwnBytes(BaseModel):
    model_config = ConfigDict(ser_json_bytes="hex")
    data: bytes


RESULTS: list[tuple[Any, list[str], list[Any]]] = [
    ({"a": numpy.float32(0.5), "b": numpy.int64(2)}, ["application/json"], [{"a": 0.5, "b": 2}]),
    ({"a": [numpy.zeros(2)]}, ["application/json"], [{"a": [[0.0, 0.0]]}]),
    ({"word": Word(text="x")}, ["application/json"], [{"word": {"text": "x", "times": 1}}]),
    (b"raw", ["application/octet-stream"], [b"raw"]),
    (Content(b"<svg/>", "image/svg+xml"), ["image/svg+xml"], [b"<svg/>"]),
    (numpy.array([[1, 2]], "uint8"), ["application/octet-stream"], [b"\1\2"]),
    ({"x": numpy.array([1], "uint8"), "y": b"2"}, ["application/octet-stream"] * 2, [b"\1", b"2"]),
    ((numpy.array([1], "uint8"), numpy.array([2], "uint8")), ["application/octet-stream"] * 2, [b"\1", b"\2"]),
    (float("nan"), ["application/json"], [None]),
    ({"a": numpy.longdouble(0.5), "b": 1}, ["application/json"], [{"a": 0.5, "b": 1}]),
    (PictureModel(data=b"\xff", pixels=numpy.zeros(1)), ["application/json"], [{"data": "/w==", "pixels": [0.0]}]),
    ([PictureModel(data=b"ab", pixels=None)], ["application/json"], [[{"data": "YWI=", "pixels": None}]]),
    (Anything(value=numpy.zeros(1)), ["application/json"], [{"value": [0.0]}]),
    ([Anything(value=numpy.float32(0.5))], ["application/json"], [[{"value": 0.5}]]),
    (OwnBytes(data=b"ab"), ["application/json"], [{"data": "6162"}]),
]


@pytest.mark.parametrize(("value", "types", "values"), RESULTS)
def test_results_are_encoded_by_type(value: Any, types: list[str], values: list[Any]) -> None:
    class Constant:
        def predict(self, items: list[Any]) -> list[Any]:
            return [value for _ in items]

    engine = user_engine(Constant)
    [row] = engine.admit([call(None)])
    engine.step([row])  # type: ignore[list-item]
    made = engine.render(row)  # type: ignore[arg-type]
    result = made() if callable(made) else made
    assert [part.media_type for part in result.parts] == types
    assert [parsed(part, frame) for part, frame in zip(result.parts, result.frames, strict=True)] == values


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (Content(b"x", "nothing"), "'nothing' is no media type, such as image/png"),
        (Content(b"x", "text/html\r\nx: y"), "is no media type"),
        ({"a\nb": b"x"}, "is no name of a value"),
        ({"x" * 201: b"x"}, "is no name of a value"),
        ({str(number): b"x" for number in range(257)}, "it has 257 parts; at most 256 are allowed"),
        (numpy.zeros([1] * 33), "an array has 33 dimensions; at most 32 are allowed"),
        (numpy.zeros(1, "datetime64[s]"), "an array of datetime64[s] cannot be sent"),
        ({(1, 2): "x"}, "a key in it is neither a text nor a number"),
        ({1: "x", None: "y"}, "a key in it is neither a text nor a number"),
        ("\ud800", "surrogates not allowed"),
        (numpy.array([{}]), "an array of objects may hold text and bytes only, not dict"),
    ],
)
def test_results_that_cannot_be_sent_are_explained(value: Any, error: str) -> None:
    class Constant:
        def predict(self, items: list[Any]) -> list[Any]:
            return [value for _ in items]

    [found] = outcomes(Constant, None)
    assert found.error.startswith("the result cannot be sent: ")
    assert error in found.error


def test_media_type_of_class_applies_to_texts() -> None:
    class Page:
        media_type = "text/html; charset=utf-8"

        def predict(self, item: str) -> str:
            return f"<p>{item}</p>"

    assert outcomes(Page, "a") == [CallOutcome(b"<p>a</p>")]
    engine = user_engine(Page)
    assert engine.request("x").inputs == CallInputs((Part("text/html"),))


def test_memory_of_a_failed_batch_is_free_for_the_next() -> None:
    class Tensor:
        """Large, as far as the engine knows."""

    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Large:
        def predict(self, items: list[str]) -> list[str]:
            alive.append(sum(each() is not None for each in made))
            tensor = Tensor()
            made.append(weakref.ref(tensor))
            if len(items) > 1:
                raise OutOfMemoryError("CUDA out of memory")
            return items

    engine = user_engine(Large)
    rows = engine.admit([call("a"), call("b")])
    try:
        engine.step(rows)  # type: ignore[arg-type]
    except OutOfMemory:
        engine.step(rows[:1])  # type: ignore[arg-type]
    assert alive == [0, 0]


def test_key_separates_items_and_its_errors_fail_them() -> None:
    class Shapes:
        def predict(self, items: list[list[int]]) -> list[int]:
            return [sum(item) for item in items]

        def key(self, item: list[int]) -> int:
            return len(item) // (item[0] if item else 0)

    engine = user_engine(Shapes)
    assert [engine.key(call(value)) for value in ([1, 2], [2, 2], [1])] == ["2", "1", "1"]
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        engine.key(call([]))
    with pytest.raises(TaskError, match="valid array"):
        engine.key(call("text"))
    request = call([1, 5])
    engine.key(request)
    assert run_calls(engine, [request]) == [CallOutcome(6)]


@pytest.mark.parametrize("method", ["__hash__", "__eq__", "__repr__"])
def test_key_that_cannot_be_compared_fails_its_item(method: str) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("no comparison")

    key = type("Key", (), {"__hash__": object.__hash__, method: fail})

    class Keyed:
        def predict(self, items: list[str]) -> list[str]:
            return items

        def key(self, item: str) -> Any:
            return (1, key()) if method == "__repr__" else key()

    with pytest.raises(TaskError, match="RuntimeError: no comparison"):
        user_engine(Keyed).key(call("x"))


def test_image_task_is_refused() -> None:
    inputs = ImageInputs("a seven", 64, 64, steps=1, guidance_scale=1.0, seed=1, scheduler="ddim")
    [answer] = user_engine(Repeat).admit([EngineRequest(inputs)])
    assert str(answer) == "this model takes calls and generates no images"


def test_frames_without_parts_are_refused() -> None:
    [answer] = user_engine(Repeat).admit([EngineRequest(CallInputs((Part(),)), [])])
    assert isinstance(answer, TaskError)


@dataclasses.dataclass
class Careful:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise Failed("size must not be negative", status=422)
        if self.size > 9:
            raise KeyError(self.size)


def test_constructor_of_an_input_may_refuse_it() -> None:
    class Sizes:
        def predict(self, items: list[Careful]) -> list[int]:
            return [item.size for item in items]

    found = outcomes(Sizes, {"size": 1}, {"size": -1}, {"size": 10}, {"size": 2})
    assert [each.value for each in found] == [1, None, None, 2]
    assert [each.error for each in found[1:3]] == ["size must not be negative", "KeyError: 10"]


class Counter:
    """Adds its increment in each step; counts from 0 to the limit."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def start(self, item: dict[str, int]) -> dict[str, Any]:
        if item["limit"] < 0:
            raise Failed("limit must not be negative", status=400, param="limit")
        return {"total": numpy.zeros(1, "int64"), "limit": item["limit"], "raw": b"x"}

    def step(self, states: list[dict[str, Any]]) -> list[bool]:
        self.batches.append(len(states))
        for state in states:
            state["total"] = state["total"] + 1
        return [bool(state["total"][0] >= state["limit"]) for state in states]

    def result(self, state: dict[str, Any]) -> int:
        if state["limit"] == 13:
            raise RuntimeError("no thirteen")
        return int(state["total"][0])

    def save(self, state: dict[str, Any]) -> dict[str, Any]:
        return state

    def restore(self, item: dict[str, int], saved: dict[str, Any]) -> dict[str, Any]:
        assert item["limit"] == saved["limit"]
        return saved

    def preview(self, state: dict[str, Any]) -> int | None:
        total = int(state["total"][0])
        return total if total % 2 == 0 else None


def test_items_of_an_iterative_engine_leave_when_done() -> None:
    engine = Counter()
    made = user_engine(lambda: engine)
    found = run_calls(made, [call({"limit": 2}), call({"limit": 5}), call({"limit": -1}), call({"limit": 13})])
    assert [each.value for each in found] == [2, 5, None, None]
    assert [each.error for each in found[2:]] == ["limit: limit must not be negative", "RuntimeError: no thirteen"]
    assert engine.batches == [3] * 2 + [2] * 3 + [1] * 8
    info = made.info()
    assert (info.unit, info.checkpoints, info.streams, info.repeatable) == ("step", True, True, True)


def test_checkpoint_continues_in_another_worker() -> None:
    request = call({"limit": 6})
    first = user_engine(Counter)
    [row] = first.admit([request])
    for _ in range(4):
        first.step([row])  # type: ignore[list-item]
    save = first.save(row)  # type: ignore[arg-type]
    first.step([row])  # type: ignore[list-item]
    assert save is not None
    checkpoint = save()
    assert checkpoint.step == 4

    engine = Counter()
    second = user_engine(lambda: engine)
    found = run_calls(second, [EngineRequest(request.inputs, request.sources, checkpoint)])
    assert (found, engine.batches) == ([CallOutcome(6)], [1, 1])


@pytest.mark.parametrize("frames", [[b"\xff"], [], [b"\x82\xa6values\x80\xa5parts\x90", b"more"]])
def test_broken_checkpoint_starts_again(frames: list[bytes]) -> None:
    from worker.engine import Checkpoint

    request = call({"limit": 3})
    found = run_calls(user_engine(Counter), [EngineRequest(request.inputs, request.sources, Checkpoint(2, frames))])
    assert found == [CallOutcome(3)]


def test_previews_are_streamed_to_those_who_ask() -> None:
    found = run_calls(user_engine(Counter), [call({"limit": 5}, stream=True), call({"limit": 5})])
    assert found == [CallOutcome(5, chunks=(2, 4)), CallOutcome(5)]


def test_steps_of_a_fixed_number() -> None:
    class Fixed:
        def steps(self, item: int) -> int:
            return item

        def start(self, item: int) -> list[int]:
            return []

        def step(self, states: list[list[int]]) -> None:
            for state in states:
                state.append(1)

        def result(self, state: list[int]) -> int:
            return len(state)

    found = outcomes(Fixed, 3, 1, 0, 2**31)
    assert [each.value for each in found] == [3, 1, None, None]
    assert found[2].error == "ValueError: steps returned 0; it must be between 1 and 2147483647"
    assert found[3].error == "ValueError: steps returned 2147483648; it must be between 1 and 2147483647"


def test_step_without_end_is_an_error() -> None:
    class Endless:
        def start(self, item: int) -> list[int]:
            return []

        def step(self, states: list[Any]) -> None:
            """Never done."""

        def result(self, state: Any) -> None:
            """Never called."""

    [found] = outcomes(Endless, 1)
    assert found.error == "step returned None, and the engine has no steps(item): no item would ever end"


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ([False], "step returned 1 results for 2 items"),
        (False, "step returned a bool; it must return a list with one result per item"),
        ([False, numpy.zeros(2)], "ValueError: The truth value of an array with more than one element is ambiguous"),
    ],
)
def test_step_with_wrong_flags_is_not_repeated_with_states_that_have_advanced(flags: Any, error: str) -> None:
    sizes: list[int] = []

    class Wrong:
        def start(self, item: int) -> list[int]:
            return []

        def step(self, states: list[Any]) -> Any:
            sizes.append(len(states))
            return flags

        def result(self, state: Any) -> str:
            return "done"

    found = outcomes(Wrong, 1, 2)
    assert all(each.error.startswith(error) for each in found)
    assert sizes == [2]


class NoPredict:
    def load(self, device: str) -> None:
        """Not enough."""


class OnlyDocumented(Engine):
    """Inherits the documentation of `predict`."""


class OnlyStep(IterativeEngine):
    def step(self, states: list[Any]) -> None:
        """Not enough."""


class TwoArguments:
    def predict(self, items: list[str], other: int) -> list[str]:
        return items


class HalfIterative:
    def step(self, states: list[Any]) -> None:
        """Not enough."""


class SaveOnly(Counter):
    restore = None  # type: ignore[assignment]


class BadLimit:
    max_batch_size = 0

    def predict(self, items: list[str]) -> list[str]:
        return items


class BadAnnotation:
    def predict(self, items: list[Missing]) -> list[str]:  # type: ignore[name-defined]  # noqa: F821
        return []


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        (NoPredict, "NoPredict is not an engine: it has no method predict"),
        (OnlyDocumented, "OnlyDocumented is not an engine: it has no method predict"),
        (OnlyStep, "OnlyStep has no method start, result"),
        (TwoArguments, "TwoArguments.predict takes items, other; it must take one argument"),
        (HalfIterative, "HalfIterative has no method start, result"),
        (SaveOnly, "SaveOnly has save but no restore"),
        (BadLimit, "BadLimit.max_batch_size is 0; it must be a number of at least 1"),
        (BadAnnotation, "the annotations of BadAnnotation.predict cannot be read: name 'Missing' is not defined"),
    ],
)
def test_what_is_no_engine_is_explained(engine: Any, text: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        user_engine(engine)
    assert text in str(caught.value)


def test_setup_is_another_name_of_load() -> None:
    class WithSetup:
        def setup(self, device: str) -> None:
            self.device = device

        def predict(self, item: str) -> str:
            return item + self.device

    assert outcomes(WithSetup, "a ") == [CallOutcome("a cpu")]


class Matrix:
    """Returns one array with a row per item."""

    max_batch_size = 4

    def predict(self, rows: list[list[float]]) -> numpy.ndarray:
        return numpy.asarray(numpy.array(rows).sum(axis=1))


class Named:
    def predict(self, items: list[float]) -> numpy.ndarray:
        return numpy.asarray(numpy.array(items) * 2)


class Single:
    def predict(self, item: list[float]) -> list[float]:
        return [2 * each for each in item]


class Declared:
    batched = False

    def predict(self, values: list[float]) -> list[float]:
        return [2 * each for each in values]


class Compiled:
    """Its `predict` is an object that is called."""

    def __init__(self) -> None:
        class Model:
            def __call__(self, items: Any) -> Any:
                return items

        self.predict = Model()


@pytest.mark.parametrize(
    ("engine", "item", "result"),
    [
        (Matrix, [1, 2], 3.0),
        (Named, 2, 4.0),
        (Single, [1, 2], [2.0, 4.0]),
        (Declared, [1, 2], [2.0, 4.0]),
        (Compiled, [1], [1]),
    ],
)
def test_batch_or_item_follows_from_names_and_types(engine: Any, item: Any, result: Any) -> None:
    assert outcomes(engine, item, item) == [CallOutcome(result)] * 2


def test_failing_example_is_named_at_the_start() -> None:
    class Failing:
        def predict(self, item: str) -> str:
            raise RuntimeError("no kernel")

        def example(self) -> str:
            return "a"

    with pytest.raises(UnsupportedModel, match="the example of Failing failed: RuntimeError: no kernel"):
        user_engine(Failing).warm_up()


def test_async_engines_are_not_measured() -> None:
    class Remote:
        calls = 0

        async def predict(self, item: str) -> str:
            Remote.calls += 1
            return item

        def example(self) -> str:
            return "a"

    engine = user_engine(Remote)
    assert (engine.samples(), len(engine.examples())) == ([], 1)
    engine.warm_up()
    assert Remote.calls == 1
    engine.close()


class Picture(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    image: Image.Image
    decoder: str = Field(default="", validate_default=True)

    @field_validator("decoder")
    @classmethod
    def _thread(cls, value: str) -> str:
        return threading.current_thread().name.partition("_")[0]


class Sizes:
    def predict(self, items: list[Picture]) -> list[list[Any]]:
        return [[item.image.width, item.decoder] for item in items]


def test_images_for_a_gpu_are_decoded_side_by_side() -> None:
    engine = user_engine(Sizes, "cuda:0")
    inputs = CallInputs((Part("image/png", "image"),))
    found = run_calls(engine, [EngineRequest(inputs, [data]) for data in (png(8, 8), png(16, 8), b"no image")])
    assert [each.value for each in found] == [[8, "decode"], [16, "decode"], None]
    assert "not a PNG, JPEG or WebP file" in found[2].error
    engine.close()
