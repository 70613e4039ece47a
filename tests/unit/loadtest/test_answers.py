"""What the load test reads in answers."""

from __future__ import annotations

import json

import msgspec
import pytest

from loadbalancer.schema.stream_events import ErrorEvent
from scripts.loadtest_lib.answers import error_code, is_first_part, is_stream_error, reported_s
from wire.errors import ErrorDetail


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"error": {"code": "queue_full", "message": "full"}}', "queue_full"),
        (b'{"error": {"code": null, "message": "it is full"}}', "it is full"),
        (b"<html>bad gateway", "<html>bad gateway"),
        (b'{"error": "text"}', '{"error": "text"}'),
        (b"\xff" * 1000, "\N{REPLACEMENT CHARACTER}" * 160),
        (b"", ""),
    ],
)
def test_error_is_named_by_its_code(content: bytes, text: str) -> None:
    assert error_code(content) == text


def test_error_events_of_the_server_are_found() -> None:
    detail = ErrorDetail("it failed", "server_error", None, "task_failed")
    event = msgspec.json.encode(ErrorEvent(detail))
    assert is_stream_error(b"data: " + event + b"\n")
    assert error_code(event) == "task_failed"
    assert is_stream_error(b'data: {"error":{"message":"x"}}\n')


@pytest.mark.parametrize(
    ("line", "kind", "is_first"),
    [
        (b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n', "chat", False),
        (b'data: {"choices":[{"delta":{"content":"hi"}}]}\n', "chat", True),
        (b"data: [DONE]\n", "chat", False),
        (b"event: image_generation.progress\n", "image", False),
        (b"event: image_generation.partial_image\n", "image", True),
        (b"event: image_edit.partial_image\n", "edit", True),
        (b'data: {"type":"image_generation.partial_image"}\n', "image", False),
    ],
)
def test_first_part_of_a_stream(line: bytes, kind: str, is_first: bool) -> None:
    assert is_first_part(line, kind) is is_first
    assert not is_stream_error(line)


def test_text_about_errors_is_no_error() -> None:
    line = b'data: {"choices":[{"delta":{"content":"{\\"error\\":{}"}}]}\n'
    assert not is_stream_error(line)


def test_reported_time_is_of_the_slowest_image() -> None:
    data = [{"timings": {"queued_s": 1.0, "running_s": 2.0}}, {"timings": {"queued_s": 0.5, "running_s": 3.0}}]
    assert reported_s(json.dumps({"data": data}).encode()) == 3.5
