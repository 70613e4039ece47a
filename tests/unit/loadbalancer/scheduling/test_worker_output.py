"""What workers send is checked: images by format and size, checkpoints by size, texts and names by their characters."""

from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loadbalancer.scheduling.worker_output import MAX_TEXT_CHARS, clean_text, drop_invalid, hello_error, result_error
from tests.support.scheduler import IMAGE, INPUTS, PNG
from wire.inputs import ImageFormat
from wire.messages import PROTOCOL, EngineInfo, Hello, Preempted, Progress

FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")
HELLO = Hello(PROTOCOL, "w", "m", "cuda:0", 1)


def encoded(output_format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, output_format.upper())
    return out.getvalue()


@pytest.mark.parametrize("requested", FORMATS)
@pytest.mark.parametrize("sent", [*FORMATS, "gif", "bmp", "tiff"])
def test_image_must_have_the_requested_format(sent: str, requested: ImageFormat) -> None:
    inputs = msgspec.structs.replace(INPUTS, output_format=requested)
    for frame in (encoded(sent), memoryview(encoded(sent))):
        assert (result_error(IMAGE, [frame], inputs, 1 << 20) == "") is (sent == requested)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "it is empty"),
        (b"<html><script>alert(1)</script>", "it is no image, not png"),
        (b"\x89PNG", "it is no image, not png"),
        (b"RIFF\0\0\0\0WAVE", "it is no image, not png"),
        (b"RIFF\n\n\n\nWEBP", "it is webp, not png"),
        (PNG + bytes(93), "it has 101 bytes; allowed are 100 (workers.max_result_bytes)"),
        (PNG + bytes(92), ""),
    ],
)
def test_invalid_image_has_a_reason(data: bytes, error: str) -> None:
    assert result_error(IMAGE, [data], INPUTS, 100) == error


def test_missing_image_is_invalid() -> None:
    assert result_error((), [], INPUTS, 100) == "it is not one image"


@given(st.binary(max_size=40), st.sampled_from(FORMATS))
def test_any_bytes_are_judged_without_an_error(data: bytes, requested: ImageFormat) -> None:
    error = result_error(IMAGE, [memoryview(data)], msgspec.structs.replace(INPUTS, output_format=requested), 30)
    assert error.isprintable()
    assert len(error) < 100


@pytest.mark.parametrize(
    ("preview", "frames", "left", "dropped"),
    [
        (False, [b"s" * 50, b"s" * 50], 2, []),
        (False, [b"s" * 50, b"s" * 51], 0, ["oversized_checkpoints"]),
        (True, [PNG], 1, []),
        (True, [PNG, b"s" * 100], 2, []),
        (True, [PNG, b"s" * 101], 1, ["oversized_checkpoints"]),
        (True, [b"<html>", b"s" * 100], 1, ["invalid_previews"]),
        (True, [b"<html>", b"s" * 101], 0, ["invalid_previews", "oversized_checkpoints"]),
    ],
)
def test_invalid_frames_of_progress_are_dropped(
    preview: bool, frames: list[bytes], left: int, dropped: list[str]
) -> None:
    progress = Progress("t", 1, 3, 20, preview, len(frames))
    message, kept, names = drop_invalid(progress, frames, INPUTS, 100)
    assert (len(kept), names) == (left, dropped)
    assert isinstance(message, Progress)
    assert message.preview is (preview and "invalid_previews" not in dropped)


def test_oversized_checkpoint_of_preempted_task_is_dropped() -> None:
    message = Preempted("t", 1, 3, 1)
    assert drop_invalid(message, [bytes(101)], INPUTS, 100) == (message, [], ["oversized_checkpoints"])


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("out of memory", "out of memory"),
        ("two\nlines\r\n", "two lines"),
        ("\x1b[31mred\x1b[0m \x00\x9b\u202e", "?[31mred?[0m ???"),
        ("x" * 300_000, "x" * (MAX_TEXT_CHARS - 3) + "..."),
        ("", ""),
    ],
)
def test_texts_are_printable_and_bounded(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text())
def test_any_text_becomes_printable(text: str) -> None:
    assert clean_text(text).isprintable()


@pytest.mark.parametrize("name", ["w\n", "\x1b]0;owned\x07", "a\u202eb", "\x9b", "\x00"])
def test_names_must_be_printable(name: str) -> None:
    assert hello_error(HELLO) is None
    for field in ("worker", "model", "device"):
        error = hello_error(msgspec.structs.replace(HELLO, **{field: name}))
        assert error == f"its {field} name has characters that are not printable"
    for field in ("pipeline", "batching", "dtype"):
        info = msgspec.structs.replace(EngineInfo(), **{field: name})
        assert hello_error(msgspec.structs.replace(HELLO, engine_info=info)) is not None


def test_unusual_printable_names_are_valid() -> None:
    assert hello_error(Hello(PROTOCOL, "[/bold] é 数字", "m", "NVIDIA H100 (0)", 1)) is None
