"""The result of a job: the response of its endpoint, sent in pieces, so that one image at a time is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.responses import Response, StreamingResponse

from loadbalancer.api.call_json import json_of
from loadbalancer.api.calls import bytes_headers, not_acceptable
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.image_requests import image_data
from loadbalancer.generation.text.stored_text import StoredTexts
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.schema.call_results import response_type, unpack_result
from loadbalancer.schema.media_types import JSON, MediaRange
from loadbalancer.schema.responses import ImagesAnswer, PredictAnswer, base64_json
from loadbalancer.storage.records import JobRecord, StoredImage

_encoder = msgspec.json.Encoder()
_EMPTY_DATA = b'"data":[]'


class JobResult(StreamingResponse):
    """Reads each image when it is sent. If an image is deleted meanwhile, the connection closes early."""

    def __init__(
        self,
        record: JobRecord,
        load: Callable[[int], Awaitable[StoredImage]],
        first: StoredImage,
        link: Callable[[int], Awaitable[str]] | None,
    ) -> None:
        """`first` is the first image: it shows before the status is sent that the result exists.

        `link` returns the URL of an image, if URLs are answered.
        """
        if record.order.text is not None:
            chunks = _texts(record, load, first)
        elif record.order.calls:
            chunks = _predictions(len(record.order.inputs), load, first)
        else:
            chunks = _predict(first) if record.order.path == "/predict" else _images(record, load, first, link)
        super().__init__(chunks, media_type="application/json")


def job_bytes(first: StoredImage, accepted: tuple[MediaRange, ...]) -> Response | None:
    """Return the result of a job with one call as bytes; None if its client prefers JSON. Raises `NotAcceptable`."""
    result = unpack_result(first.image)
    kind = response_type(result, accepted)
    if kind is None:
        raise not_acceptable(result, accepted)
    if kind == JSON:
        return None
    [part], [frame] = result
    return FrameResponse([memoryview(frame)], kind, headers=bytes_headers(part))


async def _predictions(
    count: int, load: Callable[[int], Awaitable[StoredImage]], result: StoredImage
) -> AsyncIterator[bytes]:
    yield b'{"predictions":['
    for item in range(count):
        if item:
            yield b","
            result = await load(item)
        yield b"".join(await json_of(unpack_result(result.image)))
    yield b"]}"


async def _texts(
    record: JobRecord, load: Callable[[int], Awaitable[StoredImage]], first: StoredImage
) -> AsyncIterator[bytes]:
    others = [(await load(item)).image for item in range(1, len(record.order.inputs))]
    yield _encoder.encode(StoredTexts(record, [first.image, *others]).answer())


async def _predict(image: StoredImage) -> AsyncIterator[bytes]:
    yield _encoder.encode(PredictAnswer(base64_json(image.image), image.flagged, image.truncated_tokens))


async def _images(
    record: JobRecord,
    load: Callable[[int], Awaitable[StoredImage]],
    image: StoredImage,
    link: Callable[[int], Awaitable[str]] | None,
) -> AsyncIterator[bytes]:
    spec, inputs = GenerationSpec(record.order.model, record.order.images, 0.0, 0), record.order.images
    answer = ImagesAnswer(int(record.ended or 0), [], spec.model, inputs[0].shape.key, inputs[0].output_format)
    before, _, after = _encoder.encode(answer).partition(_EMPTY_DATA)
    yield before + _EMPTY_DATA[:-1]
    for item, each in enumerate(inputs):
        if item:
            yield b","
            image = await load(item)
        url = None if link is None else await link(item)
        yield _encoder.encode(image_data(image.image, image, each.seed, url))
    yield b"]" + after
