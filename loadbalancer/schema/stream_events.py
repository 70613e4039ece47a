"""What a streaming client hears: the events of `stream: true`, and which progress is worth one.

`image_generation.partial_image` and `image_generation.completed` are OpenAI's, with our fields added;
`image_generation.progress` is ours. Edits have the same events under OpenAI's other name, `image_edit.*`. Pure: time
is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from loadbalancer.scheduling.task import TaskState
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.responses import Flagged, Timings
from wire.errors import ErrorDetail
from wire.messages import ImageFormat

#: Least time between two looks at a request's progress.
PROGRESS_EVERY_S = 0.25
#: A connection is never silent for ten seconds (this and a look at the progress), so that no proxy takes it for dead.
KEEP_ALIVE_S = 9.0
KEEP_ALIVE = b": still here\n\n"


class Progress(msgspec.Struct, frozen=True, tag_field="type", tag="image_generation.progress"):
    """How far one image is. Sent at once, then at most four times a second, and only when something has changed."""

    index: Annotated[int, msgspec.Meta(description="Which image of the request, from 0.")]
    state: TaskState
    step: Annotated[int, msgspec.Meta(description="Denoising steps done.")]
    steps: Annotated[int, msgspec.Meta(description="Denoising steps in all.")]
    queue_position: Annotated[int, msgspec.Meta(description="Images before it in the queue; 0 once it runs.")]
    eta_s: Annotated[float | None, msgspec.Meta(description="Seconds to its end; null while unknown.")]

    def differs_from(self, told: Progress | None) -> bool:
        """Whether it is news to someone who knows `told`. A new estimate alone is not."""
        return told is None or msgspec.structs.replace(self, eta_s=None) != msgspec.structs.replace(told, eta_s=None)


class TokenDetails(msgspec.Struct, frozen=True):
    """Part of `Usage`."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Nothing is counted in tokens here; OpenAI's clients require the field."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class PartialImage(msgspec.Struct, frozen=True, tag_field="type", tag="image_generation.partial_image"):
    """A preview of one image on its way."""

    b64_json: memoryview
    partial_image_index: int
    created_at: int
    output_format: ImageFormat
    size: str
    index: int
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"


class CompletedImage(msgspec.Struct, frozen=True, tag_field="type", tag="image_generation.completed"):
    """One finished image. The stream ends after the last."""

    b64_json: memoryview
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


class EditProgress(Progress, frozen=True, tag_field="type", tag="image_edit.progress"):
    """`Progress` of an edit."""


class EditPartialImage(PartialImage, frozen=True, tag_field="type", tag="image_edit.partial_image"):
    """`PartialImage` of an edit."""


class EditCompletedImage(CompletedImage, frozen=True, tag_field="type", tag="image_edit.completed"):
    """`CompletedImage` of an edit."""


class ErrorEvent(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The request failed after its stream had begun. Nothing follows."""

    error: ErrorDetail


Event = Progress | PartialImage | CompletedImage | ErrorEvent
_OF_EDITS: dict[type[Event], Any] = {
    Progress: EditProgress,
    PartialImage: EditPartialImage,
    CompletedImage: EditCompletedImage,
}

_encoder = msgspec.json.Encoder()


def encode(event: Event, *, edit: bool = False) -> bytes:
    """The event as it goes over the connection. JSON has no raw line breaks, so one `data:` line holds it."""
    if edit and type(event) in _OF_EDITS:
        event = _OF_EDITS[type(event)](*msgspec.structs.astuple(event))
    name = type(event).__struct_config__.tag
    return b"event: %b\ndata: %b\n\n" % (str(name).encode(), _encoder.encode(event))


def encode_error(error: ApiError) -> bytes:
    """The error as the last event of a stream."""
    return encode(ErrorEvent(error.body.error))


class ProgressThrottle:
    """When to look at a request's progress, and what of it to tell. Times are seconds on one clock."""

    def __init__(self) -> None:
        self._told: dict[int, Progress] = {}
        self._look_at = float("-inf")
        self._last_sent = float("-inf")

    def wait_s(self, now: float) -> float:
        """How long nothing needs to be done, unless something happens."""
        return max(self._look_at - now, 0.0)

    def due(self, now: float) -> bool:
        """Whether it is time to look. Asked once per look: the next is due `PROGRESS_EVERY_S` later."""
        if now < self._look_at:
            return False
        self._look_at = now + PROGRESS_EVERY_S
        return True

    def news(self, views: Sequence[Progress]) -> list[Progress]:
        """Those that say more than was told before."""
        fresh = [view for view in views if view.differs_from(self._told.get(view.index))]
        self._told |= {view.index: view for view in fresh}
        return fresh

    def sent(self, now: float) -> None:
        """Something has gone out."""
        self._last_sent = now

    def silent(self, now: float) -> bool:
        """Whether nothing has gone out for `KEEP_ALIVE_S`."""
        return now - self._last_sent >= KEEP_ALIVE_S
