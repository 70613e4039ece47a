"""The response of the Images API from finished images."""

from __future__ import annotations

from collections.abc import Sequence

from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.responses import ImageData, ImagesAnswer, Timings
from loadbalancer.storage.records import StoredImage


def images_answer(spec: GenerationSpec, images: Sequence[TaskCompleted | StoredImage], created: float) -> ImagesAnswer:
    """The response of the Images API; `images` are in the order of the spec's inputs."""
    data = [image_data(image, inputs.seed) for image, inputs in zip(images, spec.inputs, strict=True)]
    return ImagesAnswer(int(created), data, spec.model, spec.size, spec.inputs[0].output_format)


def image_data(image: TaskCompleted | StoredImage, seed: int) -> ImageData:
    return ImageData(memoryview(image.image), seed, Timings(image.waited_s, image.ran_s), image.flagged)
