"""Checks what workers send: a faulty or compromised worker must not decide what clients receive. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from configs.text import printable
from wire.codec import Frame
from wire.inputs import CallInputs, ImageFormat, ImageInputs, Part, TaskInputs, TextInputs
from wire.messages import Hello, Preempted, Progress

#: Longer texts are cut, such as the reason of a failure.
MAX_TEXT_CHARS = 1000
#: The first bytes of an image by format.
_SIGNATURES: dict[ImageFormat, re.Pattern[bytes]] = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
_HEAD_BYTES = 12
_JSON = "application/json"
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}")


def result_error(parts: Sequence[Part], frames: Sequence[Frame], inputs: TaskInputs, max_bytes: int) -> str:
    """Return why this is no result of such a task; empty if it is one. Nothing is decoded."""
    if isinstance(inputs, ImageInputs):
        if len(frames) != 1:
            return "it is not one image"
        size, head = memoryview(frames[0]).nbytes, bytes(frames[0][:_HEAD_BYTES])
        if not size or size > max_bytes:
            return _too_large(size, max_bytes) if size else "it is empty"
        found = next((name for name, signature in _SIGNATURES.items() if signature.match(head)), None)
        expected = inputs.output_format
        return "" if found == expected else f"it is {found or 'no image'}, not {expected}"
    if isinstance(inputs, TextInputs):
        return "a text has no parts" if parts else ""
    for part in parts:
        if (part.media_type != _JSON and not _MEDIA_TYPE.fullmatch(part.media_type)) or not part.name.isprintable():
            return "a part has no media type, or a name that is not printable"
    size = 0
    for frame in frames:
        size += len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes
    return "" if size <= max_bytes else _too_large(size, max_bytes)


def chunk_error(part: Part, frames: Sequence[Frame], inputs: TaskInputs, max_bytes: int) -> str:
    """Return why this is no piece of the result of such a task; empty if it is one."""
    if not isinstance(inputs, CallInputs):
        return "only results of calls come in chunks"
    return result_error((part,), frames, inputs, max_bytes)


def _too_large(size: int, max_bytes: int) -> str:
    return f"it has {size} bytes; allowed are {max_bytes} (workers.max_result_bytes)"


def drop_invalid(
    message: Progress | Preempted, frames: Sequence[Frame], inputs: TaskInputs, max_bytes: int
) -> tuple[Progress | Preempted, Sequence[Frame], list[str]]:
    """Return both without an invalid preview or a too large checkpoint, and the names of what was dropped."""
    dropped: list[str] = []
    previews = 0
    if isinstance(message, Progress) and message.preview:
        if not isinstance(inputs, ImageInputs) or result_error((), frames[:1], inputs, max_bytes):
            dropped.append("invalid_previews")
            message, frames = msgspec.structs.replace(message, preview=False), frames[1:]
        else:
            previews = 1
    if sum(memoryview(frame).nbytes for frame in frames[previews:]) > max_bytes:
        dropped.append("oversized_checkpoints")
        frames = frames[:previews]
    return message, frames, dropped


def clean_text(text: str) -> str:
    """Return a text of a worker for people: in one line, printable and bounded."""
    return printable(" ".join(text[: 2 * MAX_TEXT_CHARS].split()), MAX_TEXT_CHARS)


def hello_error(hello: Hello) -> str | None:
    """Return the name in this message that is not printable; None if all are."""
    engine = hello.engine_info
    names = {
        "worker": hello.worker,
        "model": hello.model,
        "device": hello.device,
        "pipeline": engine.pipeline,
        "batching": engine.batching,
        "dtype": engine.dtype,
    }
    unprintable = [field for field, name in names.items() if not name.isprintable()]
    return f"its {' and '.join(unprintable)} name has characters that are not printable" if unprintable else None
