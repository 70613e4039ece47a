"""The response of the Images API from finished images."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.responses import ImageData, ImagesAnswer, Timings
from loadbalancer.storage.records import StoredImage


def images_answer(
    spec: GenerationSpec, images: Sequence[TaskCompleted], created: float, urls: Sequence[str] | None = None
) -> ImagesAnswer:
    """The response of the Images API; `images`, and `urls` if they are answered, are in the order of the inputs."""
    data = [
        image_data(image, inputs.seed, None if urls is None else urls[index])
        for index, (image, inputs) in enumerate(zip(images, spec.inputs, strict=True))
    ]
    return ImagesAnswer(int(created), data, spec.model, spec.size, spec.inputs[0].output_format)


def image_data(image: TaskCompleted | StoredImage, seed: int, url: str | None = None) -> ImageData:
    """The image as base64, or as its URL."""
    timings = Timings(image.waited_s, image.ran_s)
    if url is not None:
        return ImageData(msgspec.UNSET, seed, timings, image.flagged, url)
    return ImageData(memoryview(image.image), seed, timings, image.flagged)
