"""Stream events: their format and rate, and the errors of tasks that end without an image."""

from __future__ import annotations

import json

import msgspec
import pytest

from loadbalancer.scheduling.task import TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.errors import ApiError, BodyTooLarge, TooBusy, from_ended
from loadbalancer.schema.responses import ImageData, PredictAnswer, Timings, base64_json
from loadbalancer.schema.stream_events import (
    KEEP_ALIVE_S,
    PROGRESS_EVERY_S,
    CompletedImage,
    PartialImage,
    Progress,
    ProgressThrottle,
    encode,
    encode_error,
)
from wire.messages import FailureKind


def progress(index: int = 0, *, step: int = 0, position: int = 0, eta_s: float | None = None) -> Progress:
    return Progress(index, TaskState.QUEUED if position else TaskState.RUNNING, step, 20, position, eta_s)


def test_polls_are_a_quarter_of_a_second_apart() -> None:
    throttle = ProgressThrottle()
    polls = [ms for ms in range(0, 1001, 10) if throttle.poll(ms / 1000)]
    assert polls == [0, 250, 500, 750, 1000]
    assert throttle.wait_s(1.0) == PROGRESS_EVERY_S
    assert throttle.wait_s(1.2) == pytest.approx(0.05)
    assert throttle.wait_s(9.0) == 0


@pytest.mark.parametrize(
    ("then", "is_sent"),
    [
        (progress(step=3, eta_s=2.0), False),
        (progress(step=3, eta_s=1.0), False),  # only the estimate has changed
        (progress(step=4, eta_s=2.0), True),
        (progress(step=3, position=1), True),
    ],
)
def test_only_changed_progress_is_sent(then: Progress, is_sent: bool) -> None:
    throttle = ProgressThrottle()
    assert throttle.changed([progress(step=3, eta_s=2.0)]) == [progress(step=3, eta_s=2.0)]
    assert throttle.changed([then]) == ([then] if is_sent else [])


def test_progress_changes_are_tracked_per_image() -> None:
    throttle = ProgressThrottle()
    assert throttle.changed([progress(0), progress(1)]) == [progress(0), progress(1)]
    assert throttle.changed([progress(0), progress(1, step=1)]) == [progress(1, step=1)]


def test_stream_is_silent_after_keep_alive_s() -> None:
    throttle = ProgressThrottle()
    throttle.on_sent(100.0)
    assert not throttle.is_silent(100.0 + KEEP_ALIVE_S - 0.1)
    assert throttle.is_silent(100.0 + KEEP_ALIVE_S)
    throttle.on_sent(100.0 + KEEP_ALIVE_S)
    assert not throttle.is_silent(100.0 + KEEP_ALIVE_S)


def test_event_is_one_name_and_one_line_of_json() -> None:
    image = base64_json(b"\x00\xffline\nbreak")
    for event, name in (
        (progress(), "image_generation.progress"),
        (PartialImage(image, 0, 1, "png", "64x64", 0), "image_generation.partial_image"),
        (CompletedImage(image, 1, "png", "64x64", 0, 7, "m", Timings(0.1, 0.2)), "image_generation.completed"),
    ):
        first, second, *rest = encode(event).decode().split("\n")
        assert first == f"event: {name}"
        assert json.loads(second.removeprefix("data: "))["type"] == name
        assert rest == ["", ""]
    error = encode_error(ApiError("first\nsecond", code="x")).decode()
    assert json.loads(error.split("\n")[1].removeprefix("data: "))["error"]["message"] == "first\nsecond"


@pytest.mark.parametrize("flagged", [True, False])
def test_flagged_is_present_only_when_true(flagged: bool) -> None:
    image, timings = base64_json(b"png"), Timings(0.1, 0.2)
    streamed = CompletedImage(image, 1, "png", "64x64", 0, 7, "m", timings, flagged=True if flagged else msgspec.UNSET)
    for encoded in (
        msgspec.json.encode(ImageData(image, 7, timings, flagged)),
        msgspec.json.encode(PredictAnswer(image, flagged)),
        encode(streamed).partition(b"data: ")[2],
        encode(streamed, edit=True).partition(b"data: ")[2],
    ):
        assert json.loads(encoded).get("flagged") is (True if flagged else None)


def test_edit_events_have_their_own_names() -> None:
    image = base64_json(b"png")
    for event in (
        progress(),
        PartialImage(image, 0, 1, "png", "64x64", 0),
        CompletedImage(image, 1, "png", "64x64", 0, 7, "m", Timings(0.1, 0.2)),
    ):
        expected = encode(event).replace(b"image_generation.", b"image_edit.")
        assert encode(event, edit=True) == expected
        assert b"image_edit." in expected


@pytest.mark.parametrize(
    ("state", "kind", "status", "code", "retried"),
    [
        (TaskState.EXPIRED, None, 504, "timeout", True),
        (TaskState.CANCELLED, None, 503, "shutting_down", True),
        (TaskState.FAILED, "invalid", 400, "invalid_value", False),
        (TaskState.FAILED, "context_length", 400, "invalid_value", False),
        (TaskState.FAILED, "unsafe", 400, "content_policy_violation", False),
        (TaskState.FAILED, "out_of_memory", 500, "out_of_memory", False),
        (TaskState.FAILED, "error", 500, "generation_failed", False),
    ],
)
def test_ended_task_maps_to_api_error(
    state: TaskState, kind: FailureKind | None, status: int, code: str, retried: bool
) -> None:
    error = from_ended(TaskEnded("t", state, kind, "the reason"))
    assert (error.status, error.body.error.code) == (status, code)
    assert ("retry-after" in error.headers) is retried
    assert (error.headers.get("x-should-retry") == "false") is (status == 500)


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (60.0, "60")])
def test_retry_after_is_rounded_up_to_seconds(seconds: float, header: str) -> None:
    assert TooBusy("full", retry_after_s=seconds).headers == {"retry-after": header}


def test_code_of_an_instance_does_not_change_its_class() -> None:
    assert TooBusy("full", code="other").body.error.code == "other"
    assert TooBusy("full").body.error.code == "queue_full"
    assert BodyTooLarge(5).headers == {"connection": "close"}
