"""The events of `stream: true`, and the rate limit of progress events.

`image_generation.partial_image` and `image_generation.completed` are OpenAI's, with our fields added;
`image_generation.progress` is ours. Edits have the same events under OpenAI's other name, `image_edit.*`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.responses import Base64, Flagged, Timings, TruncatedTokens
from wire.errors import ErrorDetail
from wire.inputs import ImageFormat

#: Minimum seconds between two polls of a request's progress.
PROGRESS_EVERY_S = 0.25
#: A stream sends something within ten seconds (this and one poll), so that no proxy closes the connection.
KEEP_ALIVE_S = 9.0
KEEP_ALIVE = b": still here\n\n"


class Progress(msgspec.Struct, frozen=True, tag_field="type", tag="image_generation.progress"):
    """The progress of one image. Sent first at once, then on changes, at most four times a second."""

    index: Annotated[int, msgspec.Meta(description="Index of the image in the request, from 0.")]
    state: TaskState
    step: Annotated[int, msgspec.Meta(description="Denoising steps done.")]
    steps: Annotated[int, msgspec.Meta(description="Total denoising steps.")]
    queue_position: Annotated[int, msgspec.Meta(description="Images before it in the queue; 0 while it runs.")]
    eta_s: Annotated[float | None, msgspec.Meta(description="Seconds until it is finished; null while unknown.")]

    def differs_from(self, sent: Progress | None) -> bool:
        """True if more than the estimate differs from the progress that was sent last."""
        return sent is None or msgspec.structs.replace(self, eta_s=None) != msgspec.structs.replace(sent, eta_s=None)


class TokenDetails(msgspec.Struct, frozen=True):
    """Details of `Usage`."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Always zero: images are not counted in tokens, but OpenAI's clients require the field."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class PartialImage(msgspec.Struct, frozen=True, tag_field="type", tag="image_generation.partial_image"):
    """A preview of one unfinished image."""

    b64_json: Base64
    partial_image_index: int
    created_at: int
    output_format: ImageFormat
    size: str
    index: int
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"


class CompletedImage(msgspec.Struct, frozen=True, tag_field="type", tag="image_generation.completed"):
    """One finished image. The stream ends after the last."""

    b64_json: Base64 | msgspec.UnsetType
    created_at: int
    output_format: ImageFormat
    size: str
    index: int
    seed: int
    model: str
    timings: Timings
    usage: Usage = Usage()
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"
    flagged: Flagged | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    truncated_tokens: TruncatedTokens | msgspec.UnsetType = msgspec.UNSET


class EditProgress(Progress, frozen=True, tag_field="type", tag="image_edit.progress"):
    """`Progress` of an edit."""


class EditPartialImage(PartialImage, frozen=True, tag_field="type", tag="image_edit.partial_image"):
    """`PartialImage` of an edit."""


class EditCompletedImage(CompletedImage, frozen=True, tag_field="type", tag="image_edit.completed"):
    """`CompletedImage` of an edit."""


class ErrorEvent(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The request failed after its stream had started. It is the last event."""

    error: ErrorDetail


Event = Progress | PartialImage | CompletedImage | ErrorEvent
_EDIT_EVENTS: dict[type[Event], Any] = {
    Progress: EditProgress,
    PartialImage: EditPartialImage,
    CompletedImage: EditCompletedImage,
}

_encoder = msgspec.json.Encoder()


def encode(event: Event, *, edit: bool = False) -> bytes:
    """The event in wire format. JSON has no raw line breaks, so that it fits one `data:` line."""
    if edit and type(event) in _EDIT_EVENTS:
        event = _EDIT_EVENTS[type(event)](*msgspec.structs.astuple(event))
    name = type(event).__struct_config__.tag
    return b"event: %b\ndata: %b\n\n" % (str(name).encode(), _encoder.encode(event))


def encode_error(error: ApiError) -> bytes:
    """The error as the last event of a stream."""
    return encode(ErrorEvent(error.body.error))


class ProgressThrottle:
    """Decides when to poll a request's progress, and which of it to send. Times are seconds on one clock."""

    def __init__(self) -> None:
        self._sent: dict[int, Progress] = {}
        self._next_poll = float("-inf")
        self._last_sent = float("-inf")

    def wait_s(self, now: float) -> float:
        """Seconds until the next poll."""
        return max(self._next_poll - now, 0.0)

    def poll(self, now: float) -> bool:
        """True if a poll is due; the next is then due `PROGRESS_EVERY_S` later."""
        if now < self._next_poll:
            return False
        self._next_poll = now + PROGRESS_EVERY_S
        return True

    def changed(self, views: Sequence[Progress]) -> list[Progress]:
        """The views that differ from those returned before."""
        fresh = [view for view in views if view.differs_from(self._sent.get(view.index))]
        self._sent |= {view.index: view for view in fresh}
        return fresh

    def on_sent(self, now: float) -> None:
        self._last_sent = now

    def is_silent(self, now: float) -> bool:
        """True if nothing was sent for `KEEP_ALIVE_S`."""
        return now - self._last_sent >= KEEP_ALIVE_S
